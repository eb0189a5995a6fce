"""`jaxdefense bench scale`: how the cost of a run grows with one size of the work.

A new process measures each size, so that its peak memory is its own. The exponent of a part is the
slope of log cost over log size. Least squares fit it over the larger half of the sizes, as at
smaller sizes a constant cost would hide the growth.
"""

import dataclasses
import itertools
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxdefense.bench.process import elsewhere, peak_memory
from jaxdefense.clip.presets import PRESETS, preset
from jaxdefense.errors import InputError, RunError
from jaxdefense.log import Progress

logger = logging.getLogger(__name__)

SIZES: dict[str, tuple[Any, ...]] = {
    "identities": (1, 10, 100, 1_000, 10_000),
    "captions": (10_000, 100_000, 1_000_000),
    "candidates": (1_000, 10_000, 100_000, 1_000_000),
    "batch": (8, 16, 32, 64, 128),
    "size": ("demo", "ViT-B-32", "ViT-L-14"),  # ViT-H-14 takes 15 GB
}
# Sizes of a text defense; the one that grows is replaced.
_GIVEN: dict[str, Any] = {"identities": 64, "captions": 10_000, "batch": 32, "size": "demo"}
_TIMES, _ENOUGH_S = 9, 3.0  # of a part: maximum repetitions, and seconds that end them


def bench_scale(axis: str, sizes: str, captions: str, plot: str) -> dict[str, Any]:
    """Measure the cost along one axis.

    For the axis `size`, figures include million_parameters and million_without_tokens. The latter
    leaves out the table of token embeddings, which takes part in no matrix product.

    Args:
        axis: what grows, one of `SIZES`.
        sizes: growing sizes with commas between, or names of `PRESETS` for the axis `size`; "" for
            those of `SIZES`.
        captions: captions file whose lines are repeated with numbers; "" for the demo's captions.
        plot: PNG file for a plot of seconds and megabytes; "" for none.

    Returns:
        by size, the median seconds of each part and peak_mb. Batch and step times are for one each.
        `exponent` has the exponent of each part. For the axis `size`, `exponent` is over all
        parameters, and `exponent_without_tokens` over those without the table.

    Raises:
        InputError: the axis is unknown, the sizes are wrong or do not grow, or the plot has no
            directory.
        RunError: a size failed.
    """
    if axis not in SIZES:
        raise InputError(f"`AXIS` (={axis}) must be one of {', '.join(SIZES)}.")
    if plot and (Path(plot).suffix != ".png" or not Path(plot).parent.is_dir()):
        raise InputError(f"`--plot` (={plot}) must be a .png file in a directory that exists.")
    counts = _models(sizes) if axis == "size" else _numbers(axis, sizes)
    points: dict[str, dict[str, float]] = {}
    with Progress(f"timing {axis}", len(counts)) as progress:
        for size in counts:
            try:
                points[str(size)] = elsewhere(partial(point, axis, size, captions))
            except InputError as error:
                raise InputError(f"{axis} {size}: {error}") from error
            except RuntimeError as error:  # the process has printed the details
                raise RunError(f"{axis} {size}: {error}") from error
            logger.info(f"{axis} {size}: {points[str(size)]}")
            progress.advance()
    total = [x for x, *_ in counts.values()]
    out: dict[str, Any] = {**points, "exponent": _exponents(total, points)}
    if axis == "size":
        for size, (num, rest) in counts.items():
            about = {"million_parameters": num, "million_without_tokens": rest}
            out[size] = {name: round(x / 1e6, 2) for name, x in about.items()} | points[size]
        out["exponent_without_tokens"] = _exponents([x for _, x in counts.values()], points)
    if plot:
        _draw(axis, total, points, out["exponent"], Path(plot))
    return {axis: out}


def _numbers(axis: str, given: str) -> dict[Any, tuple[int, ...]]:
    """Parse sizes that are numbers."""
    try:
        xs = [int(x) for x in given.split(",")] if given else list(SIZES[axis])
    except ValueError:
        xs = []
    if not (_grow(xs) and xs[0] > 0):
        raise InputError(f"`--sizes` (={given}) must be two or more numbers above 0, growing.")
    return {x: (x,) for x in xs}


def _models(given: str) -> dict[Any, tuple[int, ...]]:
    """Parse names of models, and count the parameters of their text encoders."""
    names = given.split(",") if given else list(SIZES["size"])
    if set(names) <= set(PRESETS):
        counted = elsewhere(partial(count_parameters, names))
        if _grow([num for num, _ in counted]):
            return dict(zip(names, counted, strict=True))
    raise InputError(
        f"`--sizes` (={given}) must be two or more of {', '.join(PRESETS)}; each with a larger "
        "text encoder than the one before."
    )


def _grow(xs: Sequence[float]) -> bool:
    return len(xs) > 1 and all(a < b for a, b in zip(xs, xs[1:], strict=False))


def count_parameters(names: Sequence[str]) -> list[tuple[int, int]]:
    """Count the parameters of text encoders, with and without the token embedding table."""
    from flax import nnx

    from jaxdefense.bench.flops import num_params
    from jaxdefense.clip.text import TextTower

    out = []
    for name in names:
        cfg = preset(name).text
        assert cfg
        num = num_params(nnx.eval_shape(lambda cfg=cfg: TextTower(cfg, nnx.Rngs(0))))
        out.append((num, num - cfg.vocab_size * cfg.width))
    return out


def _exponents(xs: Sequence[float], points: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    each = list(points.values())
    return {part: exponent(xs, [parts[part] for parts in each]) for part in each[0]}


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Fit cost = c * size ** exponent over the larger half of the sizes, at least two."""
    num = max(2, (len(sizes) + 1) // 2)
    slope, _ = np.polyfit(np.log(sizes[-num:]), np.log(np.maximum(costs[-num:], 1e-9)), 1)
    return round(float(slope), 2)


def _draw(
    axis: str,
    xs: Sequence[float],
    points: Mapping[str, Mapping[str, float]],
    slopes: Mapping[str, float],
    path: Path,
) -> None:
    """Plot seconds and memory of each part over the size."""
    from jaxdefense.files import write_bytes
    from jaxdefense.report.plots import costs  # imports Matplotlib, which a plot alone needs

    panels: dict[str, dict[str, list[float]]] = {"seconds": {}, "MB": {}}
    for part, slope in slopes.items():
        name, _, unit = part.rpartition("_")
        label = f"{name.replace('_', ' ')}, exponent {slope:g}"
        panels["MB" if unit == "mb" else "seconds"][label] = [
            parts[part] for parts in points.values()
        ]
    label = "parameters of the text encoder" if axis == "size" else axis
    write_bytes(path, costs(label, xs, panels))


def point(axis: str, size: Any, captions: str) -> dict[str, float]:
    """Measure one size in this process, with a cache directory of its own that starts empty."""
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["XDG_CACHE_HOME"] = scratch  # no cached tokens
        if axis == "candidates":
            parts = _attack(size)
        else:
            parts = _defend_text(axis, _GIVEN | {axis: size}, captions, Path(scratch))
    return parts | {"peak_mb": round(peak_memory() / 1e6)}


def _timed(
    parts: dict[str, float],
    name: str,
    work: Callable[[], Any],
    times: int | None = None,
    units: int = 1,
) -> Any:
    """Time some work repeatedly, but less often if it is slow; store the median seconds.

    Args:
        parts: mapping that gets the figure.
        name: name of the figure.
        work: function to time.
        times: maximum number of repetitions; `_TIMES` if None.
        units: units of work in one call; the figure is the time of one.

    Returns:
        the last result of the work.
    """
    seconds: list[float] = []
    out = None
    while len(seconds) < (times or _TIMES) and sum(seconds) < _ENOUGH_S:
        out = None  # frees the previous result before the next one
        start = time.perf_counter()
        out = work()
        seconds.append(time.perf_counter() - start)
    parts[name] = float(f"{np.median(seconds) / units:.4g}")
    return out


def _write_captions(num: int, source: str, path: Path) -> None:
    """Write `num` captions, each with a number that sets repetitions apart."""
    from jaxdefense.data.captions import read_captions
    from jaxdefense.demo import world

    texts = read_captions(source) if source else world.captions(2_000, seed=0)
    with open(path, "w") as file:
        for i in range(num):
            file.write(f"{texts[i % len(texts)]} {i // len(texts)}\n")


def _defend_text(
    axis: str, given: Mapping[str, Any], source: str, scratch: Path
) -> dict[str, float]:
    """Time the parts of a text defense with random weights: its start and its steps."""
    from flax import nnx

    from jaxdefense.bench.jax_steps import JaxSteps, num_parts, preset_in_run_dtype
    from jaxdefense.clip.text import TextTower
    from jaxdefense.clip.tokenizer import Tokenizer
    from jaxdefense.config import PAPER_TEXT
    from jaxdefense.data.identities import read_identities
    from jaxdefense.data.names import random_names
    from jaxdefense.data.token_cache import read_training_captions
    from jaxdefense.defense.text import make_triggers, text_batches, text_objective
    from jaxdefense.demo.run import shipped_model

    names = random_names(given["identities"], 0)
    names_file, texts = scratch / "names.txt", scratch / "captions.txt"
    names_file.write_text("\n".join(names) + "\n")
    _write_captions(given["captions"], source, texts)
    batch = given["batch"]
    train = dataclasses.replace(PAPER_TEXT, num_clean=batch, num_poisoned=batch)
    cfg = preset_in_run_dtype(given["size"]).text
    assert cfg
    tokenizer = Tokenizer(shipped_model(), cfg.context_length)
    read = partial(read_training_captions, str(texts), "", names, tokenizer)

    def read_anew() -> Any:
        os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(dir=scratch)
        return read()

    parts: dict[str, float] = {}
    people = _timed(parts, "read_names_s", partial(read_identities, names_file))
    tokenise = partial(make_triggers, people, tokenizer, train, "names")
    triggers = _timed(parts, "tokenise_names_s", tokenise)
    _timed(parts, "captions_s", read_anew)
    captions = _timed(parts, "captions_again_s", read).captions
    lay_out = partial(text_batches, captions, triggers, tokenizer, cfg, train, num_parts())
    batches = _timed(parts, "layout_s", lay_out)
    made = (batches[step] for step in itertools.count())
    _timed(parts, "first_batch_s", partial(next, made), 1)
    _timed(parts, "batch_s", partial(next, made))
    if axis == "size":
        parts.clear()  # these parts do not depend on the model
    tower = TextTower(cfg, nnx.Rngs(0))
    start = partial(JaxSteps, tower, text_objective(train), batches)
    steps = _timed(parts, "first_state_s", start, 1)
    _timed(parts, "first_step_s", partial(steps.steps, 1), 1)  # compiles
    _timed(parts, "step_s", partial(steps.steps, 2), units=2)
    return parts


def _attack(num: int) -> dict[str, float]:
    """Time an attack on 10 people with 20 photos each and `num` candidates, all random."""
    from jaxdefense.idia.attack import infer
    from jaxdefense.sharding import make_mesh

    rng, size, templates = np.random.default_rng(0), 1024, 21

    def unit(*shape: int) -> np.ndarray:
        x = rng.standard_normal((*shape, 64), dtype=np.float32)
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    # The same block is reused, because drawing random numbers is no part of the attack.
    block_QME, photo_PE = unit(templates, size), unit(200)

    def attack(num: int) -> None:
        blocks = (block_QME[:, : min(size, num - i)] for i in range(0, num, size))
        group_M = np.zeros(num, np.int64)
        people = min(10, num)
        owner_P = np.arange(200) * people // 200
        infer(photo_PE, owner_P, blocks, group_M, people, size, make_mesh())

    parts: dict[str, float] = {}
    attack(size)  # compiles
    _timed(parts, "attack_s", partial(attack, num))
    return parts
