"""Reading and writing model directories of the Hugging Face layout.

A directory is read whole or not at all, and what is written holds every tensor and file that came
in: names, dtypes and shards as they were. Nothing is ever unpickled.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxdefense.clip.config import CLIPConfig, Remat
from jaxdefense.clip.model import CLIP
from jaxdefense.clip.tokenizer import Tokenizer
from jaxdefense.convert.huggingface import config_from_hf, hf_table
from jaxdefense.convert.table import (
    Row,
    host_params,
    ignored_key,
    source_tensor,
)

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# What else goes along. Any other file may hold the same weights in another format: the defended
# directory must not carry an undefended copy of the model it replaces.
_COMPANIONS = {"", ".json", ".jsonl", ".txt", ".md", ".model", ".jinja", ".py", ".yaml", ".yml"}


@dataclasses.dataclass(frozen=True)
class ModelDirectory:
    """A model directory that was read and found whole.

    Fields:
        path: where it lies.
        cfg: the model's sizes.
        weight_files: tensor files relative to `path`, each with its tensors' names.
        rows: the conversion table that fits it.
    """

    path: Path
    cfg: CLIPConfig
    weight_files: dict[str, list[str]]
    rows: list[Row]

    def tokenizer(self, directory: str = "") -> Tokenizer:
        """Load the model's tokenizer, or that in another directory.

        Raises:
            ValueError: the model has no text tower; the tokenizer is missing or another model's.
        """
        text, where = self.cfg.text, directory or self.path
        if text is None:
            raise ValueError(f"`{self.path}` has no text encoder.")
        tokenizer = Tokenizer(where, text.context_length, padded=not text.packable)
        if tokenizer.vocab_size > text.vocab_size:
            raise ValueError(
                f"`{where}`: its tokenizer has {tokenizer.vocab_size} tokens, the model "
                f"{text.vocab_size}; give the model's own."
            )
        return tokenizer

    def digest(self) -> str:
        """Hash the weight files; SHA-256, in hex."""
        total = hashlib.sha256()
        for name in sorted(self.weight_files):
            with open(self.path / name, "rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        return total.hexdigest()

    def load(self, dtype: str = "auto", remat: Remat = "none") -> CLIP:
        """Build the model with f32 parameters on the host.

        Args:
            dtype: of the computation; auto is bfloat16 on accelerators, float32 on CPU.
            remat: see `TowerConfig`.

        Raises:
            ValueError: a tensor has a dtype other than f32, f16 or bf16.
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
                    _check_dtype(value.dtype, key, self.path / file)
                    arrays[row.path][row.index] = row.load(value.astype(np.float32))
                    filled[row.path] += value.size
        for path, array in arrays.items():
            assert filled[path] == array.size, f"the table leaves part of {path} unfilled"
        state = nnx.from_flat_state([(path, v.replace(arrays[path])) for path, v in flat.items()])
        return nnx.merge(graphdef, state)

    def save(self, model: CLIP, out: Path) -> list[str]:
        """Write this directory again to `out` with the model's weights in place of its own.

        The new directory appears at once and complete, or not at all.

        Args:
            model: same sizes as `self.cfg`.
            out: must not exist.

        Returns:
            names of files left out: any but text, as they may hold the undefended weights.

        Raises:
            ValueError: `out` exists.
        """
        params = host_params(model)
        by_key = {row.key: row for row in self.rows}
        left_out = []

        def fill(tmp: Path) -> None:
            for source in sorted(self.path.rglob("*")):
                name = source.relative_to(self.path).as_posix()
                if source.is_dir() or any(part.startswith(".") for part in Path(name).parts):
                    continue
                if name not in self.weight_files:
                    index = name.endswith(".index.json") and name != INDEX
                    stale = name == INDEX and SINGLE in self.weight_files
                    if index or stale or source.suffix not in _COMPANIONS:
                        left_out.append(name)
                        continue
                    (tmp / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source, tmp / name)
                    continue
                tensors = {}
                with safe_open(source, framework="numpy") as old:
                    metadata = old.metadata()
                    for key in self.weight_files[name]:
                        tensors[key] = value = old.get_tensor(key)
                        if (row := by_key.get(key)) is not None:
                            tensors[key] = source_tensor(params, row, value.dtype)
                save_file(tensors, tmp / name, metadata=metadata)
                shutil.copymode(source, tmp / name)  # the library writes for its owner alone

        write_directory(out, fill)
        return left_out


def resolve_dtype(dtype: str) -> str:
    """Settle on a dtype to compute in: auto is bfloat16 on accelerators, float32 on CPU."""
    if dtype != "auto":
        return dtype
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def write_directory(out: Path, fill: Callable[[Path], None]) -> None:
    """Have `fill` write a directory beside `out`, then move it there in one step.

    Raises:
        ValueError: `out` exists.
    """
    if out.exists():
        raise ValueError(f"`{out}` already exists; give a directory that does not.")
    out.parent.mkdir(parents=True, exist_ok=True)
    tmp = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        fill(tmp)
        for file in tmp.rglob("*"):
            if file.is_file():
                with open(file, "rb") as written:
                    os.fsync(written.fileno())
        tmp.chmod(0o755)
        os.rename(tmp, out)
    except BaseException:
        shutil.rmtree(tmp, ignore_errors=True)
        raise


def read_model_directory(path: str | Path) -> ModelDirectory:
    """Read a model directory's config and tensor headers and hold them against each other.

    Args:
        path: the directory, Hugging Face layout.

    Raises:
        ValueError: it or one of its files is missing, cut short or not what it should be; or
            tensors are unmapped, missing, repeated or of another shape than `config.json` says.
    """
    path = Path(path)
    raw = read_json(path / "config.json")
    try:
        cfg = config_from_hf(raw)
    except ValueError as error:
        raise ValueError(f"`{path / 'config.json'}`: {error}") from error
    shapes: dict[str, tuple[int, ...]] = {}
    weight_files: dict[str, list[str]] = {}
    for file in _weight_files(path):
        weight_files[file] = []
        try:
            with safe_open(path / file, framework="numpy") as tensors:
                for key in tensors.keys():  # noqa: SIM118
                    if key in shapes:
                        raise ValueError(
                            f"`{path / file}`: tensor `{key}` is repeated; another file of "
                            "this directory holds it too."
                        )
                    shapes[key] = tuple(tensors.get_slice(key).get_shape())
                    weight_files[file].append(key)
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"`{path / file}` is not a whole safetensors file ({error}); copy it again."
            ) from error
    prefix = "text_model." if cfg.text else "vision_model."
    rows = hf_table(cfg, not any(key.startswith(prefix) for key in shapes))
    _check_tensors(path, rows, shapes)
    return ModelDirectory(path, cfg, weight_files, rows)


def read_json(path: Path) -> dict:
    """Read a JSON object.

    Raises:
        ValueError: it is missing or not one.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"`{path}` does not exist; a model directory holds one.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"`{path}` is not a JSON file that can be read: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"`{path}` must hold one JSON object.")
    return value


def _weight_files(path: Path) -> list[str]:
    if (path / SINGLE).exists():
        return [SINGLE]
    if not (path / INDEX).exists():
        hint = "; convert its .bin file to safetensors" if list(path.glob("*.bin")) else ""
        raise ValueError(f"`{path}` holds neither {SINGLE} nor {INDEX}{hint}.")
    index = read_json(path / INDEX)
    if not isinstance(index.get("weight_map"), dict):
        raise ValueError(f"`{path / INDEX}` has no `weight_map`.")
    files = sorted(set(map(str, index["weight_map"].values())))
    if outside := [file for file in files if Path(file).name != file or file.startswith(".")]:
        raise ValueError(f"`{path / INDEX}` names {some(outside)}; a shard lies beside its index.")
    if missing := [file for file in files if not (path / file).exists()]:
        raise ValueError(f"`{path}` lacks {some(missing)}, which {INDEX} names.")
    return files


def _check_tensors(path: Path, rows: list[Row], shapes: dict[str, tuple[int, ...]]) -> None:
    wanted = {row.key: row.shape for row in rows}
    if missing := [key for key in wanted if key not in shapes]:
        raise ValueError(f"`{path}`: tensors missing from the checkpoint: {some(missing)}.")
    if unmapped := [k for k in shapes if k not in wanted and not ignored_key(k)]:
        raise ValueError(
            f"`{path}`: tensors that a CLIP of this config.json does not have: {some(unmapped)}."
        )
    for key, shape in wanted.items():
        if shapes[key] != shape:
            raise ValueError(
                f"`{path}`: tensor `{key}` has shape {shapes[key]}, config.json makes it {shape}."
            )


def _check_dtype(dtype: np.dtype, key: str, file: Path) -> None:
    if dtype.name not in ("float32", "float16", "bfloat16"):
        raise ValueError(
            f"`{file}`: tensor `{key}` is {dtype.name}; must be float32, float16 or bfloat16."
        )


def some(names: Iterable[str], limit: int = 4) -> str:
    """Name the first few, and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(f"`{name}`" for name in names[:limit]) + rest
