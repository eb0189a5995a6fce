"""`jaxdefense bench end2end`: a whole defense, from files to the defended model directory.

Ours is what `jaxdefense defend` does with the paper's loss, report included; PyTorch reads the same
checkpoint and files, trains as the paper's procedure is written, and writes the checkpoint. Each
time in a fresh process that has compiled nothing yet.
"""

import dataclasses
import statistics
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from jaxdefense.bench.process import Process, elsewhere
from jaxdefense.bench.side_by_side import OURS, TORCH, Timing, check_counts, with_torch
from jaxdefense.bench.theirs_run import TheirRun, laps
from jaxdefense.clip.config import VisionConfig
from jaxdefense.clip.presets import preset
from jaxdefense.config import (
    PAPER_IMAGE,
    PAPER_IMAGE_OPTIMIZER,
    PAPER_TEXT,
    PAPER_TEXT_OPTIMIZER,
    DefendImageConfig,
    DefendTextConfig,
    ImageDataConfig,
    ModelConfig,
    OverlayConfig,
    TextDataConfig,
)
from jaxdefense.data.captions import read_captions
from jaxdefense.data.names import random_names
from jaxdefense.errors import InputError

_NUM_CAPTIONS, _NUM_IMAGES, _NUM_PHOTOS = 8000, 500, 20

Config = DefendTextConfig | DefendImageConfig


def bench_end2end(
    size: str,
    tower: str,
    steps: int,
    num: int,
    people: int,
    rounds: int,
    captions: str,
    tokenizer: str,
    images: str,
    faces: str,
    console: Console,
) -> dict[str, Any]:
    """Time whole runs.

    Args:
        size: of the model: `demo` is the one that ships with the package, with the paper's loss and
            weights and rates that suit its size; another of `PRESETS` has random weights, and the
            paper's settings.
        tower: text or image.
        steps: of a run.
        num: clean samples a step, and as many poisoned.
        people: who are removed.
        rounds: of each, in turn; none is left out.
        captions: file, one a line; "" for the demo's.
        tokenizer: directory of one, for random weights; "" for the demo's.
        images, faces: directories; "" for drawn ones. All of `faces` are removed.
        console: for progress.

    Returns:
        machine; `run`: seconds (medians), as of `Timing.summary` for all samples of a run, and
        `peak_memory_mb`; `phases`: seconds of each, medians.

    Raises:
        InputError: a flag is out of range, or an input is wrong.
    """
    check_counts(steps=steps, num=num, people=people, rounds=rounds)
    if tower not in ("text", "image"):
        raise InputError(f"`--tower` (={tower}) must be text or image.")
    vision = preset(size).vision
    if not isinstance(vision, VisionConfig):
        raise InputError(f"`--size` (={size}) must have a vision transformer.")
    with TemporaryDirectory() as scratch:
        console.print("writing model and data")
        given = {"captions": captions, "tokenizer": tokenizer, "images": images, "faces": faces}
        inputs = partial(_write_inputs, Path(scratch), size, tower, people, **given)
        cfg, machine = elsewhere(inputs)
        train = dataclasses.replace(cfg.train, steps=steps, num_clean=num, num_poisoned=num)
        milestones = (steps // 2, 3 * steps // 4)
        optimizer = dataclasses.replace(cfg.optimizer, milestones=milestones)
        cfg = dataclasses.replace(cfg, train=train, optimizer=optimizer)
        makes = with_torch({OURS: partial(_Run, cfg)}, {TORCH: partial(TheirRun, cfg)}, console)
        seconds: dict[str, list[float]] = {name: [] for name in makes}
        phases: dict[str, list[dict[str, float]]] = {name: [] for name in makes}
        memory = dict.fromkeys(makes, 0.0)
        for i in range(rounds):
            for name, make in makes.items():
                console.print(f"round {i + 1} of {rounds}: {name}")
                start = time.perf_counter()
                process = Process(make)
                try:
                    found = process("run", f"{scratch}/{name}{i}")
                    total = time.perf_counter() - start
                    memory[name] = max(memory[name], process("peak_memory"))
                finally:
                    process.end()
                seconds[name].append(total)
                start_up = {"start_process": total - sum(found.values())}
                phases[name].append(start_up | found)
    run = {"seconds": {name: round(statistics.median(s), 1) for name, s in seconds.items()}}
    run |= Timing(seconds, steps * 2 * num).summary()
    run["peak_memory_mb"] = {name: round(x / 1e6) for name, x in memory.items()}
    order = dict.fromkeys(phase for found in phases.values() for one in found for phase in one)
    medians = {
        phase: {
            name: round(statistics.median(one[phase] for one in found), 2)
            for name, found in phases.items()
            if phase in found[0]
        }
        for phase in order
    }
    sizes = {"size": size, "tower": tower, "steps": steps, "clean": num, "poisoned": num}
    return {**machine, **sizes, "run": run, "phases": medians}


def _write_inputs(
    scratch: Path,
    size: str,
    tower: str,
    people: int,
    captions: str,
    tokenizer: str,
    images: str,
    faces: str,
) -> tuple[Config, dict[str, str]]:
    """Write what both sides read; the settings of our run, and what machine this is."""
    from jaxdefense.bench.models import write_random_model
    from jaxdefense.bench.ours import Contestant
    from jaxdefense.demo import world
    from jaxdefense.demo.run import shipped_model

    model = shipped_model()
    if size != "demo":
        directory = Path(tokenizer) if tokenizer else model
        model = scratch / "model"
        write_random_model(size, directory, model)
    made = ModelConfig(str(model))
    if tower == "text":
        texts = read_captions(captions) if captions else world.captions(_NUM_CAPTIONS, 0)
        names = random_names(people, 0)
        for name, lines in (("captions", texts), ("names", names)):
            (scratch / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        data = TextDataConfig(str(scratch / "names.txt"), str(scratch / "captions.txt"))
        train, optimizer = PAPER_TEXT, PAPER_TEXT_OPTIMIZER
        if size == "demo":
            train = dataclasses.replace(train, w_weight=0.001, target="object")
            optimizer = dataclasses.replace(optimizer, lr=1e-3)
        return DefendTextConfig("", made, data, train, optimizer), Contestant().machine()
    if not images:
        world.write_images(_NUM_IMAGES, scratch / "images")
    if not faces:
        world.write_faces(world.members()[:people], _NUM_PHOTOS, scratch / "faces")
    data = ImageDataConfig(
        faces or str(scratch / "faces"), images or str(scratch / "images"), cache_dir="none"
    )
    train, optimizer = PAPER_IMAGE, PAPER_IMAGE_OPTIMIZER
    if size == "demo":
        overlay = OverlayConfig(min_size=0.5)
        train = dataclasses.replace(train, w_backdoor=3.0, w_weight=0.0005, overlay=overlay)
        optimizer = dataclasses.replace(optimizer, lr=1.5e-3)
    return DefendImageConfig("", made, data, train, optimizer), Contestant().machine()


class _Run:
    """Our run, cold."""

    def __init__(self, cfg: Config):
        self._cfg = cfg

    def run(self, out: str) -> dict[str, float]:
        """Do it all, into a directory; seconds of each phase."""
        lap = laps()
        import jax

        from jaxdefense.defense.defend import run
        from jaxdefense.defense.image import plan_image
        from jaxdefense.defense.text import plan_text
        from jaxdefense.report.write import write_run_report

        jax.config.update("jax_enable_compilation_cache", False)
        phases = {"import": lap()}
        cfg, console = dataclasses.replace(self._cfg, out=out), Console(quiet=True)
        text = isinstance(cfg, DefendTextConfig)
        plan = plan_text(cfg, console) if text else plan_image(cfg, console)
        phases["read"] = lap()
        summary, trained = run(plan, console), lap()
        t = cfg.train
        rate = summary["samples_per_second"]  # after the first step, which compiles
        steps = (t.steps - 1) * (t.num_clean + t.num_poisoned) / rate if rate else 0.0
        phases["compile_and_first_step"] = summary["seconds"] - steps
        phases["steps"] = steps
        phases["write"] = trained - summary["seconds"]
        write_run_report(Path(cfg.out))
        phases["report"] = lap()
        return phases

    def peak_memory(self) -> int:
        from jaxdefense.bench.ours import Contestant

        return Contestant().peak_memory()
