"""Reads and writes model directories, in the Hugging Face and the OpenCLIP layout.

A directory is read whole or not at all. A written copy holds every tensor of the directory that was
read, with the same names, dtypes and shards, and its text files. Only safetensors are read: of
pickles a copy is made first, by torch; see `unpickled`.
"""

import dataclasses
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from numpy.typing import DTypeLike
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxdefense.clip.config import CLIPConfig, Remat, TextConfig
from jaxdefense.clip.layers import STACKED_DIMS
from jaxdefense.clip.model import CLIP
from jaxdefense.clip.tokenizer import Tokenizer
from jaxdefense.convert.huggingface import config_from_hf, hf_config, hf_table
from jaxdefense.convert.openclip import config_from_openclip, openclip_reading, openclip_table
from jaxdefense.convert.pipeline import encoder_of, pipeline_of
from jaxdefense.convert.table import (
    Row,
    host_params,
    ignored_key,
    source_tensor,
)
from jaxdefense.convert.weights import Weights, find_weights
from jaxdefense.errors import InputError
from jaxdefense.files import read_json
from jaxdefense.hub import local
from jaxdefense.paths import check_new, check_outside
from jaxdefense.results import SUMMARY, BothDefenseSummary, DefenseSummary, kind_of
from jaxdefense.words import some


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a library lays a model out in a directory.

    Fields:
        name: its name in commands.
        config: the file with the model's sizes.
        weights: the weight file, if there is one only; an index names several.
        pickle: the same as torch pickles it; see `unpickled`.
        read_config: derives the sizes from the config.
        table: lists the tensors of a model, given its keys, as some have two spellings.
        stacked_dims: dims of our layers that count tensors; see `losses.weight_distance`.
    """

    name: str
    config: str
    weights: str
    pickle: str
    read_config: Callable[[dict[str, Any]], CLIPConfig]
    table: Callable[[CLIPConfig, Collection[str]], list[Row]]
    stacked_dims: tuple[str, ...] = STACKED_DIMS

    @property
    def index(self) -> str:
        """The file that says which weight file holds which tensor."""
        return f"{self.weights}.index.json"

    def weights_in(self, path: Path) -> Weights | None:
        """Find the weights in a directory; see `find_weights`."""
        names = [file.name for file in path.iterdir()] if path.is_dir() else []
        return find_weights(names, self.weights, self.pickle)


HF = Layout("hf", "config.json", "model.safetensors", "pytorch_model.bin", config_from_hf, hf_table)
OPENCLIP = Layout(
    "openclip",
    "open_clip_config.json",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    config_from_openclip,
    openclip_table,
    tuple(dim for dim in STACKED_DIMS if dim != "qkv"),
)
LAYOUTS = {layout.name: layout for layout in (HF, OPENCLIP)}

_WRAPPERS = ("module.", "model.", "text_model.", "clip.", "_orig_mod.")
_DTYPES = ("F32", "F16", "BF16")
# Suffixes of the files that are copied too. Any other file may hold the same weights in another
# format, and a defended directory must not hold an undefended copy of the model.
_COMPANIONS = {".json", ".jsonl", ".txt", ".md", ".model", ".jinja", ".py", ".yaml", ".yml"}


@dataclasses.dataclass(frozen=True)
class ModelDirectory:
    """A model directory that was read and found complete.

    Fields:
        path: where it is.
        source: where it was, before pickles were copied; else the same.
        layout: how it is laid out.
        cfg: the model's sizes.
        weight_files: tensor files relative to `path`, each with its tensors' names.
        rows: the model's conversion table.
    """

    path: Path
    source: Path
    layout: Layout
    cfg: CLIPConfig
    weight_files: dict[str, list[str]]
    rows: list[Row]

    @property
    def copied(self) -> bool:
        """Whether `path` is a copy in the cache, as `source` holds pickles."""
        return self.path != self.source

    def check_outside(self, out: Path, name: str = "out") -> None:
        """Raise InputError if an output lies in the directory; see `paths.check_outside`."""
        for place in (self.path, self.source):
            check_outside(out, place, name)

    def tokenizer(self, directory: str = "") -> Tokenizer:
        """Load the model's tokenizer, or the one in another directory.

        Raises:
            InputError: the model has no text tower; the tokenizer is missing or another model's; or
                the config asks for a way to read texts that jaxdefense does not support.
        """
        text = self.cfg.text
        where = model_of_run(Path(directory)) if directory else self.tokenizer_path()
        if text is None:
            raise InputError(f"`{self.source}` has no text encoder.")
        config, reading = self.source / self.layout.config, None
        if self.layout is OPENCLIP:
            try:
                reading = openclip_reading(read_json(config))
            except InputError as error:
                raise InputError(f"`{config}`: {error}") from error
        tokenizer = Tokenizer(where, text.context_length, not text.packable, reading)
        if tokenizer.vocab_size > text.vocab_size:
            raise InputError(
                f"`{where}`: its tokenizer has {tokenizer.vocab_size} tokens, the model "
                f"{text.vocab_size}; give the model's own tokenizer."
            )
        self._check_readout(text, tokenizer, where)
        return tokenizer

    def tokenizer_path(self) -> Path:
        """Find the model's tokenizer; that of a diffusion pipeline lies beside its encoder."""
        pipeline = pipeline_of(self.source)
        beside = pipeline.tokenizer_of(self.source.name) if pipeline else self.path
        return beside if beside.is_dir() else self.path

    def _check_readout(self, text: TextConfig, tokenizer: Tokenizer, where: str | Path) -> None:
        """Raise InputError if the model would read texts of this tokenizer out at a wrong token."""
        eos, pad = tokenizer.eos, tokenizer.pad
        if text.readout == "token" and text.eos_token_id != eos:
            raise InputError(
                f"`{self.source / self.layout.config}` reads texts out at token "
                f"{text.eos_token_id}, but the tokenizer in `{where}` ends them with {eos}: "
                "without that token, every text is read out at its first token and embeds alike. "
                "Give the model's own tokenizer, or correct the config."
            )
        if text.readout == "largest" and pad is not None and pad > eos:
            raise InputError(
                f"`{self.source / self.layout.config}` reads texts out at their largest token id, "
                f"but the tokenizer in `{where}` pads them with {pad}, above the end of text "
                f"({eos}): the model's library reads out the padding. Give the model's own "
                "tokenizer, or correct the config."
            )

    def digest(self) -> str:
        """Hash the weight files; SHA-256, in hex. Files that did not change are read once."""
        return digest_of([self.path / name for name in sorted(self.weight_files)])

    def load(self, dtype: str = "auto", remat: Remat = "none") -> CLIP:
        """Build the model with f32 parameters on the host.

        Args:
            dtype: dtype of the computation; auto is bfloat16 on accelerators, float32 on CPU.
            remat: see `TowerConfig`.
        """
        dtype = resolve_dtype(dtype)
        cfg = self.cfg.with_compute(dtype, remat)
        abstract = nnx.eval_shape(lambda: CLIP(cfg, nnx.Rngs(0)))
        graphdef, state = nnx.split(abstract)
        flat = dict(nnx.to_flat_state(state))
        arrays = {path: np.empty(v.shape, np.float32) for path, v in flat.items()}
        by_key = {row.key: row for row in self.rows}
        filled: dict[tuple, int] = dict.fromkeys(arrays, 0)
        for file, keys in self.weight_files.items():
            with safe_open(self.path / file, framework="numpy") as tensors:
                for key in keys:
                    if (row := by_key.get(key)) is None:
                        continue
                    value = tensors.get_tensor(key)
                    arrays[row.path][row.index] = row.load(value.astype(np.float32))
                    filled[row.path] += value.size
        for path, array in arrays.items():
            assert filled[path] == array.size, f"the table leaves part of {path} unfilled"
        state = nnx.from_flat_state([(path, v.replace(arrays[path])) for path, v in flat.items()])
        return nnx.merge(graphdef, state)

    def save(
        self, model: CLIP, out: Path, then: Callable[[Path], object] = lambda written: None
    ) -> list[str]:
        """Write a copy of this directory to `out` with the model's weights.

        The new directory appears complete in one step, or not at all.

        Args:
            model: same sizes as `self.cfg`.
            out: must not exist.
            then: called with the directory before it appears.

        Returns:
            names of the files not copied: all but text, as they may hold undefended weights.

        Raises:
            InputError: `out` exists.
        """
        params = host_params(model)
        by_key = {row.key: row for row in self.rows}

        def changed(key: str, old: np.ndarray) -> np.ndarray:
            row = by_key.get(key)
            return old if row is None else source_tensor(params, row, old.dtype)

        return self.rewrite(changed, out, then)

    def tensor(self, key: str) -> np.ndarray:
        """Read a tensor as the files hold it."""
        file = next(name for name, keys in self.weight_files.items() if key in keys)
        with safe_open(self.path / file, framework="numpy") as tensors:
            return tensors.get_tensor(key)

    def rewrite(
        self,
        changed: Callable[[str, np.ndarray], np.ndarray],
        out: Path,
        then: Callable[[Path], object] = lambda written: None,
    ) -> list[str]:
        """Write a copy of this directory with other values of its tensors; see `save`.

        Args:
            changed: takes a tensor's name and its value, and gives the new value.
            out, then: see `save`.
        """
        left_out = []

        def fill(tmp: Path) -> None:
            left_out.extend(copy_companions(self.path, tmp, self.layout, self.weight_files))
            for name, keys in self.weight_files.items():
                tensors = {}
                with safe_open(self.path / name, framework="numpy") as old:
                    metadata = old.metadata()
                    for key in keys:
                        tensors[key] = changed(key, old.get_tensor(key))
                save_file(tensors, tmp / name, metadata=metadata)
                # The library writes files that only their owner may read.
                shutil.copymode(self.path / name, tmp / name)
            then(tmp)

        write_directory(out, fill)
        return left_out


def digest_of(files: Iterable[Path]) -> str:
    """Hash files, in order; SHA-256, in hex. Files that did not change are read once."""
    found = [(file, file.stat()) for file in files]
    return _digest(
        tuple((file, x.st_ino, x.st_size, x.st_mtime_ns, x.st_ctime_ns) for file, x in found)
    )


@functools.lru_cache(maxsize=16)
def _digest(files: tuple[tuple[Path, int, int, int, int], ...]) -> str:
    """Hash files, given with number, size, and times of change."""
    total = hashlib.sha256()
    for path, *_ in files:
        with open(path, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def write_new(model: CLIP, out: Path, dtype: DTypeLike = np.float32) -> None:
    """Write weights and config of a new model in Hugging Face's layout.

    Args:
        model: a model built like CLIP.
        out: a directory.
        dtype: dtype of the tensors.
    """
    params = host_params(model)
    tensors = {row.key: source_tensor(params, row, dtype) for row in hf_table(model.cfg)}
    save_file(tensors, out / HF.weights, metadata={"format": "pt"})
    (out / HF.weights).chmod(0o644)  # the library writes for the owner alone
    config = hf_config(model.cfg) | {"dtype": np.dtype(dtype).name}
    (out / HF.config).write_text(json.dumps(config, indent=2) + "\n")


def copy_companions(
    source: Path, out: Path, layout: Layout | None = None, weights: Collection[str] = ()
) -> list[str]:
    """Copy the text files beside a model's weights: tokenizer, processor, licence.

    Args:
        source: a model directory.
        out: the directory to copy to.
        layout: its index is copied too if the weights are several files; None for no index.
        weights: files and folders to skip.

    Returns:
        names of the files not copied, in order.
    """
    left_out = []
    own = layout.weights_in(source) if layout else None
    for file, name in _companions(source, weights):
        ours = own is not None and name == own.index
        if not _is_text(file) or ".index." in name and not ours:
            left_out.append(name)
            continue
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, out / name)
    return left_out


def text_companions(source: Path, weights: Collection[str]) -> dict[str, Path]:
    """List the text files beside a model's weights, by name; see `copy_companions`."""
    return {name: file for file, name in _companions(source, weights) if _is_text(file)}


def check_companions(source: Path, weights: Collection[str] = ()) -> None:
    """Raise InputError if a file beside a model's weights could not be copied later."""
    for _ in _companions(source, weights):
        pass


def _companions(source: Path, weights: Collection[str]) -> Iterator[tuple[Path, str]]:
    """Yield the files beside a model's weights, and their names, in order.

    Raises:
        InputError: a file is a broken link, is not a regular file, or may not be read.
    """
    for file in sorted(source.rglob("*")):
        name = file.relative_to(source).as_posix()
        if any(part.startswith(".") for part in Path(name).parts):
            continue
        if not os.access(file, os.R_OK) and os.path.exists(file):
            raise InputError(f"`{file}` may not be read; change its permissions, or remove it.")
        if file.is_dir():
            continue
        if name in weights or name.split("/")[0] in weights:
            continue
        if not file.exists():
            raise InputError(
                f"`{file}` is a link to {os.readlink(file)}, which does not exist; get the model's "
                "files again, or remove the link."
            )
        if not file.is_file():  # reading a pipe could wait forever
            raise InputError(f"`{file}` is not a regular file; remove it.")
        yield file, name


def _is_text(file: Path) -> bool:
    if file.suffix:
        return file.suffix in _COMPANIONS
    with open(file, "rb") as start:  # LICENSE is text, a piece of an array store is not
        return b"\0" not in start.read(4096)


def resolve_dtype(dtype: str) -> str:
    """Choose the dtype to compute in: auto is bfloat16 on accelerators, float32 on CPU."""
    if dtype != "auto":
        return dtype
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def write_directory(out: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write a directory beside `out`, then rename it to `out` in one step.

    Raises:
        InputError: `out` exists.
        OSError: there is no room, or no permission.
    """
    check_new(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    tmp = Path(tempfile.mkdtemp(prefix=f".{out.name[:50]}.", dir=out.parent))
    try:
        fill(tmp)
        for file in tmp.rglob("*"):
            if file.is_file():
                with open(file, "rb") as written:
                    os.fsync(written.fileno())
        tmp.chmod(0o755)
        os.rename(tmp, out)
    except BaseException as error:
        shutil.rmtree(tmp, ignore_errors=True)
        if isinstance(error, SafetensorError):  # on a full disk, for example
            raise OSError(f"`{out}` was not written: {error}.") from error
        raise


def read_model_directory(
    path: str | Path, layout: str = "", note: Callable[[str], object] | None = None
) -> ModelDirectory:
    """Read a model directory's config and tensor headers, and check that they agree.

    Args:
        path: the directory; for a run directory, its `model` is read; or an id, see `hub`.
        layout: one of `LAYOUTS`, or "" for what `find_layout` finds.
        note: called with a line if `path` is a run directory.

    Raises:
        InputError: the directory or a file is missing, cut short or wrong; or tensors are unmapped,
            missing, repeated or of a wrong shape or dtype; or see `hub.local`.
        RunError: see `hub.local`.
    """
    given, found = path, local(path, layout)
    source, layout = encoder_of(model_of_run(found.path)), layout or found.layout
    if note and source != found.path:
        what = f"pipeline: its {source.name}" if pipeline_of(source) else "run directory: its model"
        note(f"`{given}` is a {what} is read")
    form = LAYOUTS[layout] if layout else find_layout(source)
    if not ((weights := form.weights_in(source)) and weights.pickled):
        return _read(source, source, form)
    from jaxdefense.convert.unpickled import unpickled  # which needs this module

    weights = dataclasses.replace(weights, files=weight_names(source, form))
    path = unpickled(source, form, weights)
    try:
        return _read(path, source, form)
    except InputError as error:
        raise InputError(f"`{source}`, copied as safetensors: {error}") from error


def _read(path: Path, source: Path, form: Layout) -> ModelDirectory:
    """Read a directory of safetensors; see `ModelDirectory`."""
    raw = read_json(path / form.config)
    try:
        cfg = form.read_config(raw)
    except InputError as error:
        raise InputError(f"`{path / form.config}`: {error}") from error
    shapes: dict[str, tuple[int, ...]] = {}
    weight_files: dict[str, list[str]] = {}
    for file in weight_names(path, form):
        weight_files[file] = []
        for key, shape in _headers(path, file):
            if key in shapes:
                raise InputError(
                    f"`{path / file}`: tensor `{key}` is repeated; another file of this directory "
                    "holds it too."
                )
            shapes[key] = shape
            weight_files[file].append(key)
    rows = form.table(cfg, shapes)
    check_tensors(path, form, rows, shapes)
    return ModelDirectory(path, source, form, cfg, weight_files, rows)


def model_of_run(path: Path) -> Path:
    """Return the model directory in a run directory, and any other path as it is.

    Raises:
        InputError: the path holds a run that is not finished, or results without a model.
    """
    if any(layout.weights_in(path) for layout in LAYOUTS.values()):
        return path
    kind = kind_of(path)
    trains = kind is not None and issubclass(kind, DefenseSummary | BothDefenseSummary)
    if trains and not (path / SUMMARY).exists():
        raise InputError(f"`{path}` holds a run that is not finished; run it to its end.")
    if any((path / "model" / layout.config).exists() for layout in LAYOUTS.values()):
        return path / "model"
    if kind:
        raise InputError(
            f"`{path}` holds the results of a command, but no model; give a model directory, or "
            "the directory of a defense."
        )
    return path


def run_of_model(path: str | Path) -> Path | None:
    """Return the directory of the finished run that a model is from; None if there is none.

    Args:
        path: directory of the model or of the run; `RUN/model` belongs to RUN.
    """
    path = Path(path).absolute()  # so that "." has a name too
    places = [path, path.parent] if path.name == "model" else [path]  # a run may be called model
    for run in places:
        kind = kind_of(run) if (run / SUMMARY).is_file() else None
        if kind is not None and issubclass(kind, DefenseSummary | BothDefenseSummary):
            return run
    return None


def check_same_sizes(teacher: ModelDirectory, given: str, model: ModelDirectory, path: str) -> None:
    """Raise InputError if a teacher has other sizes than the model; both as the user gave them."""
    if teacher.cfg != model.cfg:
        raise InputError(
            f"`teacher` (={given}) has other sizes than `model.path` (={path}); give the model as "
            "it was before the defense."
        )


def find_layout(path: Path) -> Layout:
    """Find a directory's layout by its config file; if it has both, by the weights beside it."""
    found = [layout for layout in LAYOUTS.values() if (path / layout.config).exists()]
    whole = [(weights.pickled, x) for x in found if (weights := x.weights_in(path))]
    whole = [x for _, x in sorted(whole, key=lambda x: x[0])]
    return (whole or found or [HF])[0]


def _headers(path: Path, file: str) -> Iterable[tuple[str, tuple[int, ...]]]:
    """Read names and shapes of a weight file's tensors.

    Raises:
        InputError: the file is not complete safetensors, is a link out of its directory, or holds
            a weight that is not a float.
    """
    _check_place(path, file)
    try:
        with safe_open(path / file, framework="numpy") as tensors:
            found = [(key, tensors.get_slice(key)) for key in tensors.keys()]  # noqa: SIM118
            headers = [(key, tuple(s.get_shape()), s.get_dtype()) for key, s in found]
    except (SafetensorError, OSError) as error:
        if _is_pickle(path / file):
            raise InputError(
                f"`{path / file}` is a pickle, which is never loaded; save it as safetensors, or "
                "give a .pt file to `jaxdefense convert`."
            ) from None
        raise InputError(
            f"`{path / file}` is not a whole safetensors file ({error}); copy it again."
        ) from error
    for key, shape, dtype in headers:
        if dtype not in _DTYPES and not ignored_key(key):
            raise InputError(
                f"`{path / file}`: tensor `{key}` is {dtype}; must be one of {', '.join(_DTYPES)}."
            )
        yield key, shape


def _is_pickle(file: Path) -> bool:
    """Tell whether a file begins as torch's do: as a zip archive, or a bare pickle."""
    try:
        with open(file, "rb") as start:
            magic = start.read(9)
    except OSError:
        return False
    # In a safetensors file, the first eight bytes are a length and the ninth opens the header.
    return magic[:2] == b"PK" or (magic[:1] == b"\x80" and magic[8:] not in (b"", b"{"))


def _check_place(path: Path, file: str) -> None:
    """Raise InputError if a weight file is a link out of its directory.

    Others may replace a file elsewhere after its check. Links in the cache of the Hugging Face hub
    pass, as all of them lead into the blobs of one repository.
    """
    real, home = (path / file).resolve(), path.resolve()
    blobs = [x.parent / "blobs" for x in home.parents if x.name == "snapshots"]
    if not (real.is_relative_to(home) or real.parent in blobs):
        raise InputError(
            f"`{path / file}` is a link out of the directory, to {real}; copy the file here."
        )


def weight_names(path: Path, layout: Layout) -> list[str]:
    """List the weight files of a directory, by its index if it has one.

    Raises:
        InputError: there are none, or one that the index names is missing or elsewhere.
    """
    if (weights := layout.weights_in(path)) is None:
        pickles = [file.name for end in ("bin", "pt", "pth") for file in path.glob(f"*.{end}")]
        hint = f"; {some(pickles)} is a pickle: convert it to safetensors" if pickles else ""
        raise InputError(f"`{path}` holds neither {layout.weights} nor {layout.index}{hint}.")
    if not weights.index:
        return weights.files
    index = read_json(index_file := path / weights.index)
    if not isinstance(index.get("weight_map"), dict):
        raise InputError(f"`{index_file}` has no `weight_map`.")
    files = sorted(set(map(str, index["weight_map"].values())))
    if outside := [file for file in files if Path(file).name != file or file.startswith(".")]:
        raise InputError(f"`{index_file}` names {some(outside)}; a shard lies beside its index.")
    if missing := [file for file in files if not (path / file).exists()]:
        raise InputError(f"`{path}` lacks {some(missing)}, which {weights.index} names.")
    return files


def check_tensors(
    path: Path, layout: Layout, rows: list[Row], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise InputError if a table and a checkpoint's tensors do not fit each other."""
    wanted = {row.key: row.shape for row in rows}
    missing = [key for key in wanted if key not in shapes]
    for prefix in _WRAPPERS:
        if missing and all(f"{prefix}{key}" in shapes for key in missing):
            raise InputError(
                f"`{path}`: {len(missing)} tensors begin with `{prefix}`, {some(missing[:1])} "
                "among them, as a training program wrapped the model; save it unwrapped."
            )
    if missing:
        raise InputError(f"`{path}`: tensors missing from the checkpoint: {some(missing)}.")
    if unmapped := [k for k in shapes if k not in wanted and not ignored_key(k)]:
        raise InputError(
            f"`{path}`: tensors that a CLIP of this {layout.config} does not have: "
            f"{some(unmapped)}."
        )
    for key, shape in wanted.items():
        if shapes[key] != shape:
            raise InputError(
                f"`{path}`: tensor `{key}` has shape {shapes[key]}, but {layout.config} makes it "
                f"{shape}."
            )
