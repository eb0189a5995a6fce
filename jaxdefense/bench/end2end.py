"""`jaxdefense bench end2end`: a whole defense, from files to the defended model directory.

jaxdefense does what `jaxdefense defend` does with the paper's loss, report included. It runs once
where nothing is compiled yet. It runs again with the programs that the first run kept, as every
later run on a machine has them. PyTorch reads the same checkpoint and files, trains as the paper
describes, and writes the checkpoint. Each run has a new process.
"""

import dataclasses
import logging
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jaxdefense.bench.process import Process, elsewhere
from jaxdefense.bench.side_by_side import (
    AGAIN,
    JAXDEFENSE,
    TORCH,
    Timing,
    check_counts,
    shares,
    with_torch,
)
from jaxdefense.bench.stopwatch import stopwatch
from jaxdefense.bench.torch.run import TorchRun
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

logger = logging.getLogger(__name__)

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
) -> dict[str, Any]:
    """Time whole runs of a defense.

    The demo's model is trained with the paper's loss, but with weights and rates that suit its
    size. Other models are trained with the paper's settings.

    Args:
        size: model, `demo` for the one that ships with the package, or another of `PRESETS` with
            random weights.
        tower: encoder that is defended, text or image.
        steps: number of training steps of a run.
        num: number of clean samples a step, and as many poisoned.
        people: number of people who are removed, if `faces` is empty or the tower is text.
        rounds: number of rounds; in each, every implementation runs once and is timed.
        captions: captions file, one a line; "" for the demo's captions.
        tokenizer: tokenizer directory for a model with random weights; "" for the demo's.
        images: directory of ordinary photos; "" for drawn ones.
        faces: directory with a folder of photos a person, all of whom are removed; "" for drawn
            ones.

    Returns:
        the machine, `run` and `phases`. `run` has median seconds, `peak_memory_mb`, and the figures
        of `Timing.summary` and `shares` for all samples of a run. `phases` has the median seconds
        of each phase.

    Raises:
        InputError: a parameter is out of range, or an input is wrong.
    """
    check_counts(steps=steps, num=num, people=people, rounds=rounds)
    if tower not in ("text", "image"):
        raise InputError(f"`--tower` (={tower}) must be text or image.")
    vision = preset(size).vision
    if not isinstance(vision, VisionConfig):
        raise InputError(f"`--size` (={size}) must have a vision transformer.")
    with TemporaryDirectory() as scratch:
        logger.info("writing model and data")
        given = {"captions": captions, "tokenizer": tokenizer, "images": images, "faces": faces}
        inputs = partial(_write_inputs, Path(scratch), size, tower, people, **given)
        cfg, machine, top = elsewhere(partial(_prepare, inputs))
        cfg = _with_steps(cfg, steps, num)
        on_jax: dict[str, Any] = dict.fromkeys((JAXDEFENSE, AGAIN), partial(JaxRun, cfg))
        runs = _time_runs(with_torch(on_jax, {TORCH: partial(TorchRun, cfg)}), rounds, scratch)
    sizes = {"size": size, "tower": tower, "steps": steps, "clean": num, "poisoned": num}
    return {**machine, **sizes, "run": runs.summary(steps, 2 * num, top), "phases": runs.phases()}


def _with_steps(cfg: Config, steps: int, num: int) -> Config:
    """Set steps and samples a step; the learning rate falls after 1/2 and 3/4 of the steps."""
    train: Any = dataclasses.replace(cfg.train, steps=steps, num_clean=num, num_poisoned=num)
    milestones = (steps // 2, 3 * steps // 4)
    optimizer = dataclasses.replace(cfg.optimizer, milestones=milestones)
    return dataclasses.replace(cfg, train=train, optimizer=optimizer)


@dataclasses.dataclass(frozen=True)
class _Runs:
    """What was measured of the runs of each implementation.

    Fields:
        seconds: name -> seconds of each run.
        phase_seconds: name -> seconds of each phase, a mapping a run.
        memory: name -> peak memory of all runs, bytes.
        flops: name -> operations of a step's matrix products.
    """

    seconds: dict[str, list[float]]
    phase_seconds: dict[str, list[dict[str, float]]]
    memory: dict[str, float]
    flops: dict[str, float]

    def summary(self, steps: int, samples: int, top: float) -> dict[str, Any]:
        """Return median seconds, the figures of `Timing.summary` and `shares`, and peak memory.

        Args:
            steps: of a run.
            samples: of a step.
            top: see `shares`.
        """
        medians = {name: round(statistics.median(s), 1) for name, s in self.seconds.items()}
        memory = {name: round(x / 1e6) for name, x in self.memory.items()}
        timing = Timing(self.seconds, steps * samples)
        measured = {"seconds": medians, **timing.summary(), "peak_memory_mb": memory}
        return measured | shares(timing.rates(), self.flops, samples, top)

    def phases(self) -> dict[str, dict[str, float]]:
        """Return the median seconds of each phase, by phase and name."""
        order = dict.fromkeys(
            phase for runs in self.phase_seconds.values() for run in runs for phase in run
        )
        return {
            phase: {
                name: round(statistics.median(run[phase] for run in runs), 2)
                for name, runs in self.phase_seconds.items()
                if phase in runs[0]
            }
            for phase in order
        }


def _time_runs(constructors: Mapping[str, Callable[[], Any]], rounds: int, scratch: str) -> _Runs:
    """Run each implementation once a round, each time in a new process."""
    seconds: dict[str, list[float]] = {name: [] for name in constructors}
    phases: dict[str, list[dict[str, float]]] = {name: [] for name in constructors}
    memory, flops = dict.fromkeys(constructors, 0.0), dict[str, float]()
    for i in range(rounds):
        for name, constructor in constructors.items():
            logger.info(f"round {i + 1} of {rounds}: {name}")
            start = time.perf_counter()
            process = Process(constructor)
            try:
                found = process("run", f"{scratch}/{i}/{name}")
                total = time.perf_counter() - start
                memory[name] = max(memory[name], process("peak_memory"))
                if i == 0:
                    flops[name] = process("flops")
            finally:
                process.end()
            seconds[name].append(total)
            start_up = {"start_process": total - sum(found.values())}
            phases[name].append(start_up | found)
    return _Runs(seconds, phases, memory, flops)


def _prepare(write_inputs: Callable[[], Config]) -> tuple[Config, dict[str, str], float]:
    """Write the inputs; return the settings, the machine, and the FLOP/s of a large product."""
    from jaxdefense.bench.machine import JaxImplementation

    machine = JaxImplementation()
    return write_inputs(), machine.machine(), machine.matmul_rate()


def _write_inputs(
    scratch: Path,
    size: str,
    tower: str,
    people: int,
    captions: str,
    tokenizer: str,
    images: str,
    faces: str,
) -> Config:
    """Write the inputs of both implementations; return the settings."""
    from jaxdefense.bench.models import write_random_model
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
        return DefendTextConfig("", made, data, train, optimizer)
    if not images:
        world.write(world.images(_NUM_IMAGES, scratch / "images"))
    if not faces:
        world.write(world.faces(world.members()[:people], _NUM_PHOTOS, scratch / "faces"))
    data = ImageDataConfig(
        faces or str(scratch / "faces"), images or str(scratch / "images"), cache_dir="none"
    )
    train, optimizer = PAPER_IMAGE, PAPER_IMAGE_OPTIMIZER
    if size == "demo":
        overlay = OverlayConfig(min_size=0.5)
        train = dataclasses.replace(train, w_backdoor=3.0, w_weight=0.0005, overlay=overlay)
        optimizer = dataclasses.replace(optimizer, lr=1.5e-3)
    return DefendImageConfig("", made, data, train, optimizer)


class JaxRun:
    """A run of jaxdefense."""

    def __init__(self, cfg: Config):
        self._cfg = cfg
        self._plan: Any = None

    def run(self, out: str) -> dict[str, float]:
        """Run the defense in the run directory `out`; return the seconds of each phase.

        Compiled programs are kept beside it, and read if they are there.
        """
        lap = stopwatch()
        import jax

        from jaxdefense.defense.defend import run
        from jaxdefense.defense.image import plan_image
        from jaxdefense.defense.plan import Plan
        from jaxdefense.defense.text import plan_text
        from jaxdefense.report.write import write_run_report

        jax.config.update("jax_compilation_cache_dir", f"{Path(out).parent}/programs")
        phases = {"import": lap()}
        cfg = dataclasses.replace(self._cfg, out=out)
        text = isinstance(cfg, DefendTextConfig)
        plan: Plan = plan_text(cfg) if text else plan_image(cfg)
        self._plan = plan
        phases["read"] = lap()
        summary, trained = run(plan), lap()
        t = cfg.train
        rate = summary.samples_per_second  # measured after the first step, which compiles
        steps = (t.steps - 1) * (t.num_clean + t.num_poisoned) / rate if rate else 0.0
        phases["compile_and_first_step"] = summary.seconds - steps
        phases["steps"] = steps
        phases["write"] = trained - summary.seconds
        write_run_report(Path(cfg.out))
        phases["report"] = lap()
        return phases

    def flops(self) -> int:
        """Count the operations of the matrix products of a step of the run."""
        import jax

        from jaxdefense.bench.flops import product_flops
        from jaxdefense.defense.step import init_state, train_step

        encoder = self._plan.encoder
        cfg, teacher = encoder.step_cfg, encoder.teacher
        state = jax.eval_shape(partial(init_state, cfg=cfg), teacher)
        step = partial(train_step, cfg=cfg)
        return product_flops(step, state, teacher, self._plan.batches[0], jax.random.key(0))

    def peak_memory(self) -> int:
        """Return the peak memory in bytes: of the accelerators if any, else of the process."""
        from jaxdefense.bench.machine import JaxImplementation

        return JaxImplementation().peak_memory()
