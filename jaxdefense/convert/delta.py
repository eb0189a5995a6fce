"""A patch instead of a model: what a defense changed, and a model made from the original with it.

A patch holds the tensors that moved, as differences of their bits: whoever has it and the original
has the defended model, bit for bit, and whoever has it alone has no model. Of a tensor of which few
rows moved, such as a table of token embeddings, it holds those rows. Texts beside the weights that
differ, the ledger and the card among them, are in its metadata.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxdefense.buckets.inputs import fetched
from jaxdefense.config import ApplyConfig, DeltaConfig
from jaxdefense.convert.directory import (
    ModelDirectory,
    read_model_directory,
    run_of_model,
    text_companions,
)
from jaxdefense.errors import InputError
from jaxdefense.hub import is_pinned
from jaxdefense.ledger.entries import shown
from jaxdefense.log import Progress
from jaxdefense.paths import check_new
from jaxdefense.results import (
    ApplicationSummary,
    DeltaSummary,
    Summary,
    halves_of,
    read_settings,
    read_summary,
    teacher_digest,
)
from jaxdefense.run_directory import place_from
from jaxdefense.words import some

_FORMAT, _SCHEMA = "jaxdefense-delta", "1"
_ROWS = ".moved_rows"  # ending of the tensor with the numbers of the rows
_FEW = 0.5  # part of the rows; if fewer moved, only these are held


def delta(cfg: DeltaConfig) -> DeltaSummary:
    """Write what a defense changed.

    Args:
        cfg: see `DeltaConfig`.

    Returns:
        how much moved, and the digests of both models.

    Raises:
        InputError: the run's model or the original is missing, they hold other tensors, or one is
            not the model that the run says; or `out` exists.
    """
    out = Path(cfg.out)
    if out.suffix != ".safetensors":
        raise InputError(f"`out` (={out}) must end in .safetensors.")
    check_new(out)
    defended = read_model_directory(cfg.run)
    original = read_model_directory(cfg.model or _teacher_of(cfg.run))
    defended.check_outside(out)
    original.check_outside(out)
    _check_alike(original, defended)
    digests = original.digest(), defended.digest()
    _check_run(cfg, original, digests)
    tensors, moved = dict[str, np.ndarray](), 0
    keys = [key for names in original.weight_files.values() for key in names]
    with Progress("comparing", len(keys), unit="tensors") as progress:
        for key in keys:
            old, new = original.tensor(key), defended.tensor(key)
            if (old.shape, old.dtype) != (new.shape, new.dtype):
                raise InputError(
                    f"`{key}` is {old.dtype}{list(old.shape)} in `{original.source}` and "
                    f"{new.dtype}{list(new.shape)} in `{defended.source}`; give the model that was "
                    "defended."
                )
            if (change := _difference(old, new)) is not None:
                values, rows = change
                moved += values.size
                tensors[key] = values
                if rows is not None:
                    tensors[key + _ROWS] = rows
            progress.advance()
    if not tensors:
        raise InputError(
            f"`{cfg.run}` and `{original.source}` have the same weights; nothing moved."
        )
    metadata = {
        "format": _FORMAT,
        "schema": _SCHEMA,
        "from_sha256": digests[0],
        "to_sha256": digests[1],
        "texts": json.dumps(_changed_texts(original, defended)),
        "digests": json.dumps({x: _sha256(y) for x, y in _texts(defended).items()}),
        # The library writes the metadata of a file in an order of its own each time.
        "heads": json.dumps({x: _head(defended.path / x) for x in defended.weight_files}),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    descriptor, part = tempfile.mkstemp(prefix=f".{out.name[:50]}.", dir=out.parent)
    os.close(descriptor)
    try:
        save_file(tensors, part, metadata=metadata)
        os.chmod(part, 0o644)
        with open(part, "rb") as written:
            os.fsync(written.fileno())
        os.rename(part, out)
    except SafetensorError as error:  # on a full disk, for example
        raise OSError(f"`{out}` was not written: {error}.") from error
    finally:
        Path(part).unlink(missing_ok=True)
    return DeltaSummary(
        tensors=sum(not key.endswith(_ROWS) for key in tensors),
        of_tensors=len(keys),
        parameters=moved,
        bytes=out.stat().st_size,
        from_sha256=digests[0],
        to_sha256=digests[1],
    )


class _Patch(NamedTuple):
    """A patch as its file holds it; see `delta`."""

    from_sha256: str
    to_sha256: str
    texts: dict[str, str]
    digests: dict[str, str]
    heads: dict[str, str]
    changes: dict[str, np.ndarray]


def apply(cfg: ApplyConfig) -> ApplicationSummary:
    """Make the defended model from the original and a patch, and check it by its digests.

    Args:
        cfg: see `ApplyConfig`.

    Returns:
        the digest of the model written.

    Raises:
        InputError: the patch cannot be read, or is of another original, or `out` exists.
    """
    out = Path(cfg.out)
    check_new(out)
    original, patch = read_model_directory(cfg.model), _read(Path(cfg.delta))
    original.check_outside(out)
    if (digest := original.digest()) != patch.from_sha256:
        raise InputError(
            f"`{cfg.delta}` is of the original {shown(patch.from_sha256)}, and `{cfg.model}` is "
            f"{shown(digest)}; give that model."
        )

    if patch.heads.keys() != original.weight_files.keys():
        raise InputError(f"`{cfg.delta}` is of other weight files; give the model as it was.")

    def changed(key: str, old: np.ndarray) -> np.ndarray:
        change, rows = patch.changes.get(key), patch.changes.get(key + _ROWS)
        try:
            return _changed(old, change, rows)
        except (ValueError, IndexError, TypeError) as error:
            raise InputError(f"`{cfg.delta}`: `{key}` does not fit: {error}.") from error

    def then(made: Path) -> None:
        try:
            for name, text in patch.texts.items():
                (made / name).parent.mkdir(parents=True, exist_ok=True)
                (made / name).write_text(text, encoding="utf-8", newline="")
            for name, head in patch.heads.items():
                _put_head(made / name, head)
        except (FileExistsError, NotADirectoryError, IsADirectoryError, ValueError) as error:
            raise InputError(f"`{cfg.delta}` does not fit the model: {error}.") from error
        directory = read_model_directory(made)
        if (found := directory.digest()) != patch.to_sha256:
            raise InputError(
                f"`{cfg.delta}` made the model {shown(found)} instead of "
                f"{shown(patch.to_sha256)}: the file is broken; copy it again."
            )
        texts = {name: _sha256(file) for name, file in _texts(directory).items()}
        if differ := [
            x for x in {**texts, **patch.digests} if texts.get(x) != patch.digests.get(x)
        ]:
            raise InputError(
                f"`{cfg.model}` has other texts beside the weights than the model that was "
                f"defended: {some(sorted(differ))}; give that model."
            )

    with Progress("writing the defended model"):
        original.rewrite(changed, out, then)
    num = sum(not key.endswith(_ROWS) for key in patch.changes)
    return ApplicationSummary(model_sha256=patch.to_sha256, tensors=num)


def _read(path: Path) -> _Patch:
    """Read a patch.

    Raises:
        InputError: it is none, or would write elsewhere than beside the weights.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            told: Mapping[str, str] = file.metadata() or {}
            changes = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"`{path}` is no patch that can be read ({error}); copy it again."
        ) from error
    if told.get("format") != _FORMAT or told.get("schema") != _SCHEMA:
        raise InputError(f"`{path}` is no patch of `jaxdefense delta`, of schema {_SCHEMA}.")
    try:
        texts, digests, heads = (json.loads(told[name]) for name in ("texts", "digests", "heads"))
        pairs = [pair for each in (texts, digests, heads) for pair in each.items()]
        ends = told["from_sha256"], told["to_sha256"]
    except (KeyError, ValueError, AttributeError) as error:
        raise InputError(f"`{path}` is a patch that is not whole; copy it again.") from error
    if not all(isinstance(x, str) for pair in pairs for x in pair):
        raise InputError(f"`{path}` is a patch that is not whole; copy it again.")
    patch = _Patch(*ends, texts, digests, heads, changes)
    if odd := [name for name in (*patch.texts, *patch.heads) if not _beside(name)]:
        raise InputError(f"`{path}` would write {some(odd)}, not beside the weights; distrust it.")
    return patch


def _beside(name: str) -> bool:
    """Whether a name leads to a file beside the weights."""
    parts = PurePosixPath(name).parts
    return bool(parts) and not any(x.startswith(".") or x == "/" or "\\" in x for x in parts)


def _head(file: Path) -> str:
    """Read the header of a weight file."""
    with open(file, "rb") as opened:
        return opened.read(int.from_bytes(opened.read(8), "little")).decode()


def _put_head(file: Path, head: str) -> None:
    """Write a weight file's header in another order; leave it if it says something else."""
    own, wanted = _head(file), head.encode()
    if len(own.encode()) != len(wanted) or json.loads(own) != json.loads(head):
        return
    with open(file, "r+b") as opened:
        opened.seek(8)
        opened.write(wanted)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _check_run(cfg: DeltaConfig, original: ModelDirectory, digests: tuple[str, str]) -> None:
    """Raise InputError if one of the models is not what the run says of it, if it is a run's.

    An original that is given may be another: a defended model, for whoever has that already.
    """
    if (run := run_of_model(cfg.run)) is None:
        return
    before, summary = teacher_digest(run), read_summary(run, Summary)
    after = getattr(summary, "defended_sha256", "")
    if before and before != digests[0] and not cfg.model:
        raise InputError(
            f"`{original.source}` is {shown(digests[0])}, and `{run}` defended "
            f"{shown(before)}; give that model by `--model`."
        )
    if after and after != digests[1]:
        raise InputError(f"`{cfg.run}` holds other weights than `{run}` wrote; bring these back.")


def _teacher_of(run: str) -> Path:
    """Find the model that a run defended.

    Raises:
        InputError: there is no such run, or the model is gone.
    """
    if (found := run_of_model(run)) is None:
        raise InputError(
            f"`{run}` is not the directory of a finished run, which would say what it defended; "
            "give the original by `--model` too."
        )
    half = halves_of(found)[0]
    settings: dict[str, Any] = read_settings(half)
    path = place_from(half, str(settings["model"]["path"]))
    if is_pinned(str(path)):
        return path
    if not (path := fetched(path)).is_dir():
        raise InputError(
            f"`{path}`, which `{run}` defended, does not exist; give the original by `--model`."
        )
    return path


def _check_alike(original: ModelDirectory, defended: ModelDirectory) -> None:
    """Raise InputError unless two directories have the same files of the same tensors."""
    if original.layout is not defended.layout or original.weight_files != defended.weight_files:
        raise InputError(
            f"`{original.source}` and `{defended.source}` do not hold the same tensors in the same "
            "files; give the model that was defended, in the layout it was in."
        )


def _texts(directory: ModelDirectory) -> dict[str, Path]:
    return text_companions(directory.path, directory.weight_files)


def _changed_texts(original: ModelDirectory, defended: ModelDirectory) -> dict[str, str]:
    """Give the texts of a defended model that the original lacks, or has otherwise."""
    old, new = _texts(original), _texts(defended)
    changed = {name: file for name, file in new.items() if _bytes(old.get(name)) != _bytes(file)}
    try:
        return {name: file.read_bytes().decode() for name, file in changed.items()}
    except UnicodeDecodeError as error:
        raise InputError(f"`{defended.source}` holds a text that is not UTF-8: {error}.") from error


def _bytes(file: Path | None) -> bytes | None:
    return file.read_bytes() if file else None


def _bits(x: np.ndarray) -> np.ndarray:
    """View values as integers of their bits."""
    return x.view(np.dtype(f"u{x.dtype.itemsize}"))


def _difference(old: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Subtract bits; also give the numbers of the rows that moved if few did. None: none did."""
    change = np.asarray(_bits(new) - _bits(old))  # modulo their number; not a scalar
    if not change.any():
        return None
    if change.ndim < 2:
        return change, None
    rows = np.flatnonzero(change.reshape(len(change), -1).any(1))
    if len(rows) >= _FEW * len(change):
        return change, None
    return np.ascontiguousarray(change[rows]), rows.astype(np.int32)


def _changed(old: np.ndarray, change: np.ndarray | None, rows: np.ndarray | None) -> np.ndarray:
    """Undo `_difference`."""
    if change is None:
        return old
    bits = np.array(_bits(old))
    if rows is None:
        bits[...] += change
    else:
        bits[rows] += change
    return bits.view(old.dtype)
