"""A patch instead of a model: what a defense changed, and a model made from the original with it.

A patch holds the tensors that moved, as differences of their bits: whoever has it and the original
has the defended model, bit for bit, and whoever has it alone has no model. Of a tensor of which few
rows moved, such as a table of token embeddings, it holds those rows. Texts beside the weights that
differ, the ledger and the card among them, are in its metadata.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxdefense.config import ApplyConfig, DeltaConfig
from jaxdefense.convert.directory import (
    ModelDirectory,
    read_model_directory,
    run_of_model,
    text_companions,
)
from jaxdefense.errors import InputError
from jaxdefense.ledger.entries import shown
from jaxdefense.log import Progress
from jaxdefense.paths import check_new, check_outside
from jaxdefense.results import (
    ApplicationSummary,
    BothDefenseSummary,
    DeltaSummary,
    kind_of,
    read_settings,
)
from jaxdefense.run_directory import place_from

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
        InputError: the run's model or the original is missing, or they are of different kinds, or
            the original is another; or `out` exists.
    """
    out = Path(cfg.out)
    if out.suffix != ".safetensors":
        raise InputError(f"`out` (={out}) must end in .safetensors.")
    check_new(out)
    defended = read_model_directory(cfg.run)
    original = read_model_directory(cfg.model or _teacher_of(cfg.run))
    check_outside(out, defended.path)
    check_outside(out, original.path)
    _check_alike(original, defended)
    tensors, moved = dict[str, np.ndarray](), 0
    keys = [key for names in original.weight_files.values() for key in names]
    with Progress("comparing", len(keys), unit="tensors") as progress:
        for key in keys:
            old, new = original.tensor(key), defended.tensor(key)
            if (change := _difference(old, new)) is not None:
                values, rows = change
                moved += values.size
                tensors[key] = values
                if rows is not None:
                    tensors[key + _ROWS] = rows
            progress.advance()
    digests = original.digest(), defended.digest()
    if not tensors:
        raise InputError(f"`{cfg.run}` and `{original.path}` have the same weights; nothing moved.")
    metadata = {
        "format": _FORMAT,
        "schema": _SCHEMA,
        "from_sha256": digests[0],
        "to_sha256": digests[1],
        "texts": json.dumps(_changed_texts(original, defended)),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkstemp(prefix=f".{out.name[:50]}.", dir=out.parent)[1])
    try:
        save_file(tensors, part, metadata=metadata)
        part.chmod(0o644)
        with open(part, "rb") as written:
            os.fsync(written.fileno())
        part.rename(out)
    except SafetensorError as error:  # on a full disk, for example
        raise OSError(f"`{out}` was not written: {error}.") from error
    finally:
        part.unlink(missing_ok=True)
    return DeltaSummary(
        tensors=sum(not key.endswith(_ROWS) for key in tensors),
        of_tensors=len(keys),
        parameters=moved,
        bytes=out.stat().st_size,
        from_sha256=digests[0],
        to_sha256=digests[1],
    )


def apply(cfg: ApplyConfig) -> ApplicationSummary:
    """Make the defended model from the original and a patch, and check it by its digest.

    Args:
        cfg: see `ApplyConfig`.

    Returns:
        the digest of the model written.

    Raises:
        InputError: the patch cannot be read, or is of another original, or `out` exists.
    """
    out, patch = Path(cfg.out), Path(cfg.delta)
    check_new(out)
    original = read_model_directory(cfg.model)
    check_outside(out, original.path)
    try:
        with safe_open(patch, framework="numpy") as file:
            told: Mapping[str, str] = file.metadata() or {}
            changes = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"`{patch}` is no patch that can be read ({error}); copy it again."
        ) from error
    if told.get("format") != _FORMAT or told.get("schema") != _SCHEMA:
        raise InputError(f"`{patch}` is no patch of `jaxdefense delta`, of schema {_SCHEMA}.")
    if (digest := original.digest()) != told["from_sha256"]:
        raise InputError(
            f"`{patch}` is of the original {shown(told['from_sha256'])}, and `{cfg.model}` is "
            f"{shown(digest)}; give that model."
        )

    def changed(key: str, old: np.ndarray) -> np.ndarray:
        return _changed(old, changes.get(key), changes.get(key + _ROWS))

    def then(made: Path) -> None:
        for name, text in json.loads(told["texts"]).items():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            (made / name).write_text(text, encoding="utf-8", newline="")
        if (found := read_model_directory(made).digest()) != told["to_sha256"]:
            raise InputError(
                f"`{patch}` made the model {shown(found)} instead of {shown(told['to_sha256'])}: "
                "the file is broken; copy it again."
            )

    with Progress("writing the defended model"):
        original.rewrite(changed, out, then)
    num = sum(not key.endswith(_ROWS) for key in changes)
    return ApplicationSummary(model_sha256=told["to_sha256"], tensors=num)


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
    half = found / "text" if kind_of(found) is BothDefenseSummary else found
    settings: dict[str, Any] = read_settings(half)
    path = place_from(half, str(settings["model"]["path"]))
    if not path.is_dir():
        raise InputError(
            f"`{path}`, which `{run}` defended, does not exist; give the original by `--model`."
        )
    return path


def _check_alike(original: ModelDirectory, defended: ModelDirectory) -> None:
    """Raise InputError unless two directories have the same files of the same tensors."""
    if original.layout is not defended.layout or original.weight_files != defended.weight_files:
        raise InputError(
            f"`{original.path}` and `{defended.path}` do not hold the same tensors in the same "
            "files; give the model that was defended, in the layout it was in."
        )


def _changed_texts(original: ModelDirectory, defended: ModelDirectory) -> dict[str, str]:
    """Give the texts of a defended model that the original lacks, or has otherwise."""
    old, new = text_companions(original), text_companions(defended)
    changed = {name: file for name, file in new.items() if _bytes(old.get(name)) != _bytes(file)}
    try:
        return {name: file.read_bytes().decode() for name, file in changed.items()}
    except UnicodeDecodeError as error:
        raise InputError(f"`{defended.path}` holds a text that is not UTF-8: {error}.") from error


def _bytes(file: Path | None) -> bytes | None:
    return file.read_bytes() if file else None


def _bits(x: np.ndarray) -> np.ndarray:
    """View values as integers of their bits."""
    return x.view(np.dtype(f"u{x.dtype.itemsize}"))


def _difference(old: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Subtract bits; also give the numbers of the rows that moved if few did. None: none did."""
    change = _bits(new) - _bits(old)  # modulo their number
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
    bits = _bits(old).copy()
    if rows is None:
        bits += change
    else:
        bits[rows] += change
    return bits.view(old.dtype)
