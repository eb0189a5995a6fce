"""`jaxdefense convert`: converts a checkpoint from one library's layout to another's.

Conversion goes tensor by tensor and changes neither values nor dtypes. One layout may keep several
tensors where another keeps one, or a transposed one. Both layouts' tables share jaxdefense's own
parameters.
"""

import dataclasses
import functools
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import save_file

from jaxdefense.clip.config import CLIPConfig
from jaxdefense.clip.model import CLIP
from jaxdefense.convert import orbax
from jaxdefense.convert.directory import (
    HF,
    LAYOUTS,
    OPENCLIP,
    Layout,
    check_companions,
    check_tensors,
    copy_companions,
    read_model_directory,
    write_directory,
)
from jaxdefense.convert.huggingface import hf_config
from jaxdefense.convert.openclip import config_from_shapes, openclip_config
from jaxdefense.convert.preprocess import (
    from_openclip,
    read_preprocess,
    to_hf,
    to_openclip,
    write_preprocessor,
)
from jaxdefense.convert.table import Path as ParamPath
from jaxdefense.convert.table import Row, ignored_key
from jaxdefense.convert.torch_file import read_torch_file
from jaxdefense.errors import InputError
from jaxdefense.files import read_json
from jaxdefense.ledger.card import drop_section
from jaxdefense.ledger.entries import LEDGER, Ledger
from jaxdefense.ledger.runs import join_ledgers, ledger_of_model
from jaxdefense.log import Progress
from jaxdefense.paths import check_new, check_outside
from jaxdefense.results import ConversionSummary

logger = logging.getLogger(__name__)

TARGETS = (*LAYOUTS, "orbax")
_SHARD_BYTES = 5 * 10**9  # as in transformers


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint to convert; its tensors are not read yet.

    Fields:
        directory: the directory of its other files; None if there are none.
        layout: the layout that its tensors are named by.
        config: the JSON object of its config file.
        cfg: the model's sizes.
        rows: its conversion table.
        read: fetches a tensor by its name.
        keys: keys of all tensors, including those that are not weights.
        ledger: of the model directory that it is, if it has one.
    """

    directory: Path | None
    layout: Layout
    config: dict[str, Any]
    cfg: CLIPConfig
    rows: list[Row]
    read: Callable[[str], np.ndarray]
    keys: list[str]
    ledger: Ledger | None = None


def convert(
    src: Path, dst: Path, to: str, *, layout: str = "", activation: str = ""
) -> ConversionSummary:
    """Convert a checkpoint to another layout.

    Args:
        src: a model directory of either layout, one written by `--to orbax`, or a .pt file.
        dst: must not exist; appears complete in one step, or not at all.
        to: one of `TARGETS`.
        layout: the layout to read if `src` has both; "" for what `find_layout` finds.
        activation: activation of a .pt file without a config beside it, "quick_gelu" or "gelu".

    Returns:
        what was converted: layouts, tensors, parameters.

    Raises:
        InputError: `src` is not a complete checkpoint, `dst` exists, or the other library has no
            such model.
    """
    if to not in TARGETS:
        raise InputError(f"`--to` (={to}) must be one of {', '.join(TARGETS)}.")
    if layout and layout not in LAYOUTS:
        raise InputError(f"`--from` (={layout}) must be one of {', '.join(LAYOUTS)}.")
    check_new(dst)
    checkpoint = _read(src, dst, layout, activation)
    if to == "orbax":
        write_directory(dst, lambda tmp: _write_orbax(checkpoint, tmp))
        return _summary(checkpoint, to, checkpoint.rows)
    target = LAYOUTS[to]
    preprocessor: dict[str, Any] = {}
    if target is checkpoint.layout:
        config, rows = checkpoint.config, checkpoint.rows
        extra = [key for key in checkpoint.keys if ignored_key(key)]
    else:
        config, preprocessor = _config(checkpoint, target)
        # Reading the new config back must give the same model.
        again = target.read_config(config)
        assert again == checkpoint.cfg, (again, checkpoint.cfg)
        rows, extra = target.table(again, ()), []

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        yield from _converted(checkpoint, rows)
        yield from ((key, checkpoint.read(key)) for key in extra)

    def fill(tmp: Path) -> None:
        _copy_companions(checkpoint, tmp)
        (tmp / target.config).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if preprocessor:
            write_preprocessor(tmp, preprocessor)
        _write_shards(tmp, target, tensors(), len(rows) + len(extra))
        join_ledgers(tmp, "convert", checkpoint.ledger)

    write_directory(dst, fill)
    return _summary(checkpoint, to, rows)


def _copy_companions(checkpoint: Checkpoint, out: Path) -> None:
    """Copy the tokenizer and other text files, but none that describes the weights' layout."""
    if checkpoint.directory:
        copy_companions(checkpoint.directory, out, weights=(orbax.ARRAYS, orbax.MANIFEST))
    for layout in LAYOUTS.values():
        (out / layout.config).unlink(missing_ok=True)
    if (out / LEDGER).exists():  # of the new weights another is written, or none
        (out / LEDGER).unlink()
        drop_section(out)


def _summary(checkpoint: Checkpoint, to: str, rows: list[Row]) -> ConversionSummary:
    return ConversionSummary(
        from_=checkpoint.layout.name,
        to=to,
        tensors=len(rows),
        parameters=sum(math.prod(row.shape) for row in rows),
    )


def _read(src: Path, dst: Path, layout: str, activation: str) -> Checkpoint:
    """Read a checkpoint, unless the new one would lie in its directory."""
    if src.is_file():
        return _read_torch(src, activation)
    if (src / orbax.MANIFEST).exists():
        check_outside(dst, src, "DST")
        return _read_orbax(src)
    directory = read_model_directory(src, layout, logger.info)
    directory.check_outside(dst, "DST")
    src = directory.path
    check_companions(src, directory.weight_files)
    where = {key: file for file, keys in directory.weight_files.items() for key in keys}

    def read(key: str) -> np.ndarray:
        # Opened for each tensor: pages of a file that stays mapped would count as memory.
        with safe_open(src / where[key], framework="numpy") as tensors:
            return tensors.get_tensor(key)

    form = directory.layout
    config = read_json(src / form.config)
    rows, ledger = directory.rows, ledger_of_model(directory)
    return Checkpoint(src, form, config, directory.cfg, rows, read, list(where), ledger)


def _read_torch(src: Path, activation: str) -> Checkpoint:
    if activation not in ("", "gelu", "quick_gelu"):
        raise InputError(f"`--activation` (={activation}) must be gelu or quick_gelu.")
    tensors = read_torch_file(src)
    shapes = {key: value.shape for key, value in tensors.items()}
    beside = src.parent / OPENCLIP.config
    try:
        if beside.exists():
            cfg = OPENCLIP.read_config(config := read_json(beside))
        else:
            cfg = config_from_shapes(shapes, activation or "quick_gelu")
            config = {"model_cfg": openclip_config(cfg), "preprocess_cfg": {}}
            if not activation:
                logger.warning(
                    f"no {OPENCLIP.config} beside it: taken to be OpenAI's, with QuickGELU; give "
                    "`--activation gelu` if OpenCLIP trained it without QuickGELU"
                )
    except InputError as error:
        raise InputError(f"`{src}`: {error}") from error
    rows = OPENCLIP.table(cfg, shapes)
    check_tensors(src, OPENCLIP, rows, shapes)
    return Checkpoint(
        src.parent if beside.exists() else None,
        OPENCLIP,
        config,
        cfg,
        rows,
        tensors.__getitem__,
        list(tensors),
    )


def _read_orbax(src: Path) -> Checkpoint:
    manifest = orbax.read_manifest(src)
    form = LAYOUTS[manifest["layout"]]
    config = read_json(src / form.config)
    cfg = form.read_config(config)
    rows = form.table(cfg, manifest["dtypes"])
    params, extra = orbax.read_arrays(src, _shapes(cfg))
    by_key = {row.key: row for row in rows}

    def read(key: str) -> np.ndarray:
        if (row := by_key.get(key)) is None:
            return extra[key]
        value = row.store(params[row.path][row.index])
        return np.array(value, np.dtype(manifest["dtypes"][key]), order="C")

    return Checkpoint(src, form, config, cfg, rows, read, [*by_key, *extra])


def _shapes(cfg: CLIPConfig) -> dict[ParamPath, tuple[int, ...]]:
    state = nnx.state(nnx.eval_shape(lambda: CLIP(cfg, nnx.Rngs(0))))
    return {tuple(map(str, path)): v.shape for path, v in nnx.to_flat_state(state)}


def _group(row: Row) -> tuple[ParamPath, int | None]:
    """Name the part of the parameters that both layouts keep whole: one layer of one array."""
    return row.path, row.index[0] if row.index else None  # pyright: ignore[reportReturnType]


def _converted(checkpoint: Checkpoint, rows: list[Row]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each tensor of a target table, made from the source's tensors."""
    if rows is checkpoint.rows:
        yield from ((row.key, checkpoint.read(row.key)) for row in rows)
        return
    shapes = _shapes(checkpoint.cfg)
    sources: dict[tuple, list[Row]] = {}
    for row in checkpoint.rows:
        sources.setdefault(_group(row), []).append(row)

    # Rows of one group follow each other, except that an attention's kernels and biases alternate.
    @functools.lru_cache(maxsize=2)
    def part_of(group: tuple) -> np.ndarray:
        return _part(checkpoint, sources[group], shapes)

    for row in rows:
        part = part_of(_group(row))[row.index[1:]]
        yield row.key, np.ascontiguousarray(row.store(part)).reshape(row.shape)


def _part(
    checkpoint: Checkpoint, sources: list[Row], shapes: Mapping[ParamPath, tuple[int, ...]]
) -> np.ndarray:
    values = [checkpoint.read(row.key) for row in sources]
    if len(dtypes := {value.dtype.name for value in values}) > 1:
        raise InputError(
            f"`{sources[0].key}` and `{sources[1].key}` have dtypes {', '.join(sorted(dtypes))}; "
            "the other layout keeps them in one tensor: save both in one dtype."
        )
    shape = shapes[sources[0].path]
    part = np.empty(shape[1:] if sources[0].index else shape, values[0].dtype)
    for row, value in zip(sources, values, strict=True):
        part[row.index[1:]] = row.load(value)
    return part


def _write_shards(
    out: Path,
    layout: Layout,
    tensors: Iterator[tuple[str, np.ndarray]],
    num: int,
) -> None:
    """Write weight files; Hugging Face's in shards, with one at a time in memory."""
    limit = _SHARD_BYTES if layout is HF else math.inf
    shards: list[list[str]] = []
    held: dict[str, np.ndarray] = {}
    total = size = 0

    def flush() -> None:
        nonlocal size
        save_file(held, out / f"shard-{len(shards)}", metadata={"format": "pt"})
        (out / f"shard-{len(shards)}").chmod(0o644)
        shards.append(list(held))
        held.clear()
        size = 0

    with Progress("converting", num, unit="tensors") as progress:
        for key, value in tensors:
            if held and size + value.nbytes > limit:
                flush()
            held[key] = value
            size += value.nbytes
            total += value.nbytes
            progress.advance()
        flush()
    if len(shards) == 1:
        (out / "shard-0").rename(out / layout.weights)
        return
    stem, suffix = layout.weights.rsplit(".", 1)
    weight_map = {}
    for i, keys in enumerate(shards):
        name = f"{stem}-{i + 1:05d}-of-{len(shards):05d}.{suffix}"
        (out / f"shard-{i}").rename(out / name)
        weight_map |= dict.fromkeys(keys, name)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (out / layout.index).write_text(json.dumps(index, indent=2) + "\n")


def _write_orbax(checkpoint: Checkpoint, out: Path) -> None:
    shapes = _shapes(checkpoint.cfg)
    params: dict[ParamPath, np.ndarray] = {}
    dtypes: dict[str, str] = {}
    with Progress("converting", len(checkpoint.rows), unit="tensors") as progress:
        for row in checkpoint.rows:
            value = checkpoint.read(row.key)
            dtypes[row.key] = value.dtype.name
            if row.path not in params:
                params[row.path] = np.empty(shapes[row.path], value.dtype)
            elif (dtype := np.result_type(params[row.path], value.dtype)) != params[row.path].dtype:
                params[row.path] = params[row.path].astype(dtype)  # wider, so nothing is lost
            params[row.path][row.index] = row.load(value)
            progress.advance()
    extra = {key: checkpoint.read(key) for key in checkpoint.keys if key not in dtypes}
    _copy_companions(checkpoint, out)
    if checkpoint.ledger:
        logger.info(f"{LEDGER} stays behind: nothing would check that it is of these weights")
    config = json.dumps(checkpoint.config, indent=2) + "\n"
    (out / checkpoint.layout.config).write_text(config, encoding="utf-8")
    with Progress("writing the checkpoint"):
        orbax.write(out, checkpoint.layout.name, dtypes, params, extra)


def _config(checkpoint: Checkpoint, target: Layout) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a model's config in the other layout, and its processor's if that is a file."""
    where, cfg = checkpoint.directory, checkpoint.cfg
    try:
        if target is HF:
            config, size = hf_config(cfg), cfg.vision.image_size if cfg.vision else 0
            return config, to_hf(from_openclip(checkpoint.config.get("preprocess_cfg"), size))
        config = {"model_cfg": openclip_config(cfg)}
        assert where and cfg.vision
        preprocess = read_preprocess(where, cfg.vision.image_size, note=logger.info, layout=HF)
        return config | {"preprocess_cfg": to_openclip(preprocess)}, {}
    except InputError as error:
        raise InputError(f"`{where or 'it'}`: {error}") from error
