"""`jaxdefense bench scale`: what a run costs as one size of the work grows.

Every point is a process of its own, so that its peak memory is its own. The exponent of a part is
the slope of a straight line through log cost over log size, by least squares over the larger half
of the sizes: below, what does not grow hides what does.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from jaxdefense.bench.process import peak_memory

SIZES: dict[str, tuple[int, ...]] = {
    "identities": (1, 10, 100, 1_000, 10_000),
    "captions": (10_000, 100_000, 1_000_000),
    "candidates": (1_000, 10_000, 100_000, 1_000_000),
    "batch": (8, 16, 32, 64, 128),
}
_CAPTIONS, _STEPS = 10_000, 8


def bench_scale(
    axis: str, sizes: Sequence[int], captions: str, plot: str, console: Console
) -> dict[str, Any]:
    """Measure one axis.

    Args:
        axis: one of `SIZES`.
        sizes: growing; empty for those of `SIZES`.
        captions: file whose lines are repeated, numbered; "" for the demo's.
        plot: PNG file to draw it into, or "".
        console: for progress.

    Returns:
        by size its parts, in seconds, and peak_mb; under `exponent` that of each part.

    Raises:
        ValueError: no such axis, or sizes that do not grow.
    """
    if axis not in SIZES:
        raise ValueError(f"`AXIS` (={axis}) must be one of {', '.join(SIZES)}.")
    sizes = sizes or SIZES[axis]
    if (
        len(sizes) < 2
        or sizes[0] < 1
        or any(a >= b for a, b in zip(sizes, sizes[1:], strict=False))
    ):
        raise ValueError(f"`--sizes` (={','.join(map(str, sizes))}) must be two or more, growing.")
    points = {}
    for size in track(sizes, axis, console=console, disable=not console.is_terminal):
        command = [sys.executable, "-m", "jaxdefense.bench.scale", axis, str(size), captions]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [""])[-1]
            raise ValueError(f"{axis} {size}: {last}")
        points[size] = json.loads(done.stdout)
        console.print(f"{axis} {size}: {done.stdout.strip()}", highlight=False)
    slopes = {
        part: exponent(sizes, [point[part] for point in points.values()])
        for part in points[sizes[0]]
    }
    if plot:
        _draw(axis, points, slopes, plot)
    return {axis: {str(size): point for size, point in points.items()} | {"exponent": slopes}}


def _draw(
    axis: str, points: dict[int, dict[str, float]], slopes: dict[str, float], path: str
) -> None:
    """Draw every part over the size, both logarithmic."""
    from matplotlib.figure import Figure  # for who asks for it

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for part, slope in slopes.items():
        costs = [point[part] for point in points.values()]
        axes.loglog(list(points), costs, marker=".", label=f"{part}, exponent {slope:g}")
    axes.set(xlabel=axis, ylabel="seconds, MB")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=80)


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Fit cost = c * size ** exponent over the larger half of the sizes, at least two."""
    num = max(2, (len(sizes) + 1) // 2)
    slope, _ = np.polyfit(np.log(sizes[-num:]), np.log(np.maximum(costs[-num:], 1e-9)), 1)
    return round(float(slope), 2)


def _timed(parts: dict[str, float], name: str, work: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    out = work()
    parts[name] = round(time.perf_counter() - start, 4)
    return out


def _write_captions(num: int, source: str, path: Path) -> None:
    """Write so many captions, told apart by a number, a line at a time."""
    from jaxdefense.data.captions import read_lines
    from jaxdefense.demo import world

    texts = read_lines(source, "captions") if source else world.captions(2_000, seed=0)
    with open(path, "w") as file:
        for i in range(num):
            file.write(f"{texts[i % len(texts)]} {i // len(texts)}\n")


def _text_point(people: int, captions: int, batch: int, source: str, scratch: Path) -> dict:
    """Start a text defense of the demo's model and take steps."""
    from flax import nnx

    from jaxdefense.bench.ours import Ours, num_parts
    from jaxdefense.clip.presets import preset
    from jaxdefense.clip.text import TextTower
    from jaxdefense.clip.tokenizer import Tokenizer
    from jaxdefense.config import TextDataConfig, TextTrainConfig
    from jaxdefense.data.captions import read_training_captions
    from jaxdefense.data.identities import read_identities
    from jaxdefense.data.names import random_names
    from jaxdefense.defense.text import make_triggers, text_batches, text_objective
    from jaxdefense.demo.run import shipped_model

    quiet = Console(quiet=True)
    names = random_names(people, 0)
    (scratch / "names.txt").write_text("\n".join(names) + "\n")
    _write_captions(captions, source, scratch / "captions.txt")
    data = TextDataConfig(str(scratch / "names.txt"), str(scratch / "captions.txt"))
    train = TextTrainConfig(num_clean=batch, num_poisoned=batch)
    text = preset("demo").text
    assert text
    tokenizer = Tokenizer(shipped_model(), text.context_length)
    parts: dict[str, float] = {}
    identities = _timed(parts, "read_names_s", lambda: read_identities(data.names))
    triggers = _timed(
        parts, "tokenise_names_s", lambda: make_triggers(identities, tokenizer, train, "names")
    )
    read = partial(read_training_captions, data.captions, "", names, tokenizer, quiet)
    clean = _timed(parts, "captions_s", read)
    _timed(parts, "captions_again_s", read)
    batches = _timed(
        parts,
        "layout_s",
        lambda: text_batches(clean.captions, triggers, tokenizer, train, num_parts()),
    )  # fmt: skip
    _timed(parts, "make_batches_s", lambda: [batches[i] for i in range(_STEPS)])
    ours = Ours(TextTower(text, nnx.Rngs(0)), text_objective(train), batches)
    ours.steps(1)
    _timed(parts, "steps_s", lambda: ours.steps(_STEPS))
    return parts


def _attack_point(num: int) -> dict:
    """Attack 10 people, 20 photos each, with so many random embeddings for candidates."""
    from jaxdefense.idia.attack import infer
    from jaxdefense.sharding import make_mesh

    rng, block, templates = np.random.default_rng(0), 1024, 21

    def unit(*shape: int) -> np.ndarray:
        x = rng.standard_normal((*shape, 64), dtype=np.float32)
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    def attack(num: int) -> None:
        blocks = (unit(templates, min(block, num - i)) for i in range(0, num, block))
        group_M = np.zeros(num, np.int64)
        people = min(10, num)
        owner_P = np.arange(200) * people // 200
        infer(unit(200), owner_P, blocks, group_M, people, block, make_mesh())

    parts: dict[str, float] = {}
    attack(block)  # compiles
    _timed(parts, "attack_s", lambda: attack(num))
    return parts


def _main(axis: str, size: int, source: str) -> None:
    sizes = {"identities": 64, "captions": _CAPTIONS, "batch": 32} | {axis: size}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["XDG_CACHE_HOME"] = scratch  # nothing is found that was kept before
        if axis == "candidates":
            parts = _attack_point(size)
        else:
            parts = _text_point(
                sizes["identities"], sizes["captions"], sizes["batch"], source, Path(scratch)
            )
    print(json.dumps(parts | {"peak_mb": round(peak_memory() / 1e6)}))


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
