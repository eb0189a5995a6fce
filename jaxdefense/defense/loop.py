"""The run: data, clock, progress, metrics, saving, stopping. The only owner of a train state.

Order within an iteration: take the batch, dispatch the step, read the metrics of the step before
(so the device never waits for the host), validate if due, save if due. Held by tests/test_loop.py.
Of several processes the first alone writes metrics; all save, each its own part, and all stop at
one step.
"""

import dataclasses
import json
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from jaxdefense.checkpoint import Checkpoints
from jaxdefense.defense.step import TrainState
from jaxdefense.defense.validate import Watch
from jaxdefense.distributed import Stop, first
from jaxdefense.errors import Interrupted, RunError
from jaxdefense.log import Progress
from jaxdefense.sharding import put

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
_OF_THE_LINE = ("step", "time", "samples_per_second")  # that no step computes
_TRACED = range(2, 5)  # steps of a run that a profile shows: the first ones compile


class Diverged(RunError):
    """A metric is not a finite number."""


class OutOfMemory(RunError):
    """A step does not fit a device."""


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How long, and how often to save.

    Fields:
        steps: in all.
        save_every: steps between checkpoints.
        keep: checkpoints that stay.
        prefetch: batches made ahead.
        samples_per_step: for the throughput.
        profile: directory for a trace of a few steps, "" for none.
    """

    steps: int
    save_every: int
    keep: int
    prefetch: int
    samples_per_step: int
    profile: str = ""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run gives: its last state, its last metrics, seconds and samples/s of this process."""

    state: TrainState
    metrics: dict[str, float]
    seconds: float
    samples_per_second: float


class _Steps:
    """A random-access source of batches with a length, as Grain wants it."""

    def __init__(self, batches: Any, num: int):
        self._batches, self._num = batches, num

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, index: int) -> Any:
        return self._batches[index]


def read_ahead(batches: Any, start: int, stop: int, num: int) -> Iterator[Any]:
    """Give `batches[start]` to `batches[stop - 1]`, up to `num` of them made ahead in a thread."""
    read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=num)
    return iter(grain.MapDataset.source(_Steps(batches, stop))[start:].to_iter_dataset(read))


def _numbered(
    batches: Any, start: int, stop: int, cfg: LoopConfig, watch: Watch | None
) -> Iterator[tuple[int, Any]]:
    """Give batches with their steps; none ahead of a validation, which may change who is drawn."""
    while start < stop:
        until = min(stop, watch.next_due(start)) if watch else stop
        yield from enumerate(read_ahead(batches, start, until, cfg.prefetch), start)
        start = until


def run(
    step_fn: Callable[..., tuple[TrainState, dict[str, jax.Array]]],
    init: Callable[[], TrainState],
    state_sharding: Any,
    teacher: Any,
    batches: Any,
    place: NamedSharding,
    key: jax.Array,
    cfg: LoopConfig,
    directory: Path,
    watch: Watch | None = None,
) -> Outcome:
    """Train from the newest checkpoint, or the start, to the end, or until `watch` is content.

    Args:
        step_fn: the compiled step.
        init: makes the first state, placed.
        state_sharding: of a state.
        teacher: placed.
        batches: `batches[step]`, on the host.
        place: where a batch goes.
        key: of the run, placed.
        cfg: see there.
        directory: of the run.
        watch: validates, and may end the run early.

    Raises:
        Diverged: a metric is not finite; names step and metric.
        Interrupted: SIGINT or SIGTERM came; a checkpoint was saved.
        OutOfMemory: a step does not fit a device.
        InputError: the directory's checkpoint is of another model.
        Unwritten: a checkpoint could not be written.
    """
    if watch:  # before there is another state in memory
        with Progress("validating the model as it is"):
            watch.begin(init().params)
    checkpoints = Checkpoints(directory / "checkpoints", cfg.keep)
    start, state = _newest(checkpoints, init, state_sharding, watch, cfg.steps)
    log, started = _Log(directory / METRICS, start, cfg.samples_per_step), time.monotonic()
    with (
        _stop_signals() as received,
        Progress("defending", cfg.steps, start, "steps", "compiling") as progress,
        log,
        closing(checkpoints),  # what is being written is finished, however the run ends
        jax.transfer_guard("disallow"),
    ):
        training = _Training(step_fn, state, cfg, log, progress, start)
        del state  # its arrays are donated to the steps
        take = partial(training.take, place=place, teacher=teacher, key=key)
        _take_all(training, take, batches, checkpoints, received, watch)
    seconds = time.monotonic() - started
    return Outcome(training.state, training.metrics, seconds, training.throughput())


def _take_all(
    training: "_Training",
    take: Callable[[int, Any], None],
    batches: Any,
    checkpoints: Checkpoints,
    received: list[int],
    watch: Watch | None,
) -> None:
    """Take the steps that are left; `received` comes to hold signals. For the rest see `run`."""
    cfg, start = training.cfg, training.done
    stop_for = Stop(cfg.steps)
    over = bool(watch and watch.finished)
    for step, batch in _numbered(batches, start, start if over else cfg.steps, cfg, watch):
        take(step, batch)
        if watch and watch.due(training.done):
            training.validate(watch)
            over = watch.finished
        stop = stop_for(training.done, received[0] if received else 0, over)
        if stop or over or training.due():
            training.save(checkpoints)
        if stop:
            raise Interrupted(stop, training.done)
        if over:
            break


def _newest(
    checkpoints: Checkpoints,
    init: Callable[[], TrainState],
    state_sharding: Any,
    watch: Watch | None,
    steps: int,
) -> tuple[int, TrainState]:
    """Restore the newest state, of the checkpoints or the best, or make the first; see `run`.

    Returns:
        how many steps it has taken; and the state.
    """
    abstract = jax.eval_shape(init)
    start, state = checkpoints.restore_newest(abstract, state_sharding)
    if watch:
        start, state = watch.newer(start, state, abstract, state_sharding)
        watch.go_on(start)
    if state is None:
        return start, init()
    logger.info(f"resuming at step {start} of {steps}")
    return start, state


class _Training:
    """A run under way: its state, and what is known of it on the host."""

    def __init__(
        self,
        step_fn: Callable[..., tuple[TrainState, dict[str, jax.Array]]],
        state: TrainState,
        cfg: LoopConfig,
        log: "_Log",
        progress: Progress,
        start: int,
    ):
        """Begin after `start` steps; for the rest see `run`."""
        self._step_fn, self._log, self._progress = step_fn, log, progress
        self.cfg, self.state, self.metrics = cfg, state, log.last
        self.done = self._start = start
        self._pending: dict[str, jax.Array] | None = None  # metrics of the last step, unread
        self._programs = 0
        self._warm, self._aside = time.monotonic(), 0.0  # seconds; those of validations

    def take(
        self, step: int, batch: Any, *, place: NamedSharding, teacher: Any, key: jax.Array
    ) -> None:
        """Dispatch a step, and read the metrics of the one before while it runs."""
        cfg, before = self.cfg, self._pending
        if cfg.profile and first() and step - self._start == _TRACED.start:
            jax.profiler.start_trace(cfg.profile)
        with _out_of_memory(self._step_fn, self.state, teacher, batch, key):
            placed = put(batch, place)
            self.state, self._pending = self._step_fn(self.state, teacher, placed, key)
            self._programs = self._programs or _num_programs(self._step_fn)
            assert _num_programs(self._step_fn) == self._programs, _what_changed(step, batch)
            if before is not None:
                self._read(step - 1, before)
        self.done = step + 1
        if cfg.profile and first() and self.done - self._start == _TRACED.stop:
            jax.block_until_ready(self.state)
            jax.profiler.stop_trace()

    def _read(self, step: int, metrics: dict[str, jax.Array]) -> None:
        self.metrics = self._log.write(step, metrics)
        if step == self._start:  # the first step compiles: throughput is of those after it
            self._warm = time.monotonic()
        self._progress.update(step + 1, f"loss {self.metrics['total']:.4f}")

    def _settle(self) -> None:
        """Read the last step's metrics, and check the parameters that it made."""
        if self._pending is not None:
            self._read(self.done - 1, self._pending)
        self._pending = None
        _check_finite(self.state, self.done - 1)

    def validate(self, watch: Watch) -> None:
        """Look at the state, and go on at the rate and the push that this asks for."""
        self._settle()
        began = time.monotonic()
        with jax.transfer_guard("allow"):
            self.state = watch.look(self.done, self.state)
        logger.info(f"validation at step {self.done}: {watch.found[-1][1]}")
        aside = time.monotonic() - began
        self._aside += aside
        self._log.leave_out(aside)

    def due(self) -> bool:
        """Whether a checkpoint is due."""
        return self.done % self.cfg.save_every == 0 or self.done == self.cfg.steps

    def save(self, checkpoints: Checkpoints) -> None:
        """Save the state, unless it is broken."""
        self._settle()
        checkpoints.save(self.done, self.state, self.metrics["total"])

    def throughput(self) -> float:
        """Give the samples a second of the steps after the first, validations left out."""
        timed = self.done - self._start - 1
        seconds = time.monotonic() - self._warm - self._aside
        return timed * self.cfg.samples_per_step / seconds if timed > 0 else 0.0


def _num_programs(step_fn: Any) -> int:
    """Count what a jitted function was compiled for so far; read on the host, in no time."""
    return getattr(step_fn, "_cache_size", int)()  # not of JAX's public interface


def _what_changed(step: int, batch: Any) -> str:
    shapes = ", ".join(f"{x.dtype}{list(x.shape)}" for x in jax.tree.leaves(batch))
    return (
        f"step {step} was compiled anew, for a batch of {shapes}: batches of a run must all have "
        "one shape and dtype."
    )


@contextmanager
def _out_of_memory(step_fn: Any, *args: Any) -> Iterator[None]:
    """Say of a step that does not fit a device what it takes, and what would make it smaller."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        what = str(error).partition("RESOURCE_EXHAUSTED:")[2].strip().partition("\n")[0]
        raise OutOfMemory(
            f"a step does not fit the memory of a device{_memory(step_fn, args)} ({what}). What "
            "helps, the cheapest first: `model.remat` dots or full, `train.accumulate` above 1, "
            "`mesh.fsdp` above 1 with several devices, a smaller `train.num_clean`."
        ) from error


def _memory(step_fn: Any, args: tuple) -> str:
    """Tell what the compiled step takes, if that is known."""
    try:
        found = step_fn.lower(*args).compile().memory_analysis()
        sizes = {
            "arguments": found.argument_size_in_bytes,
            "results": found.output_size_in_bytes - found.alias_size_in_bytes,
            "in between": found.temp_size_in_bytes,
        }
    except Exception:  # it may be the compiler that ran out
        return ""
    return ": " + ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in sizes.items())


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _check_finite(state: TrainState, step: int) -> None:
    """Raise Diverged if the step made parameters that are not: metrics show those before it."""
    if not jax.device_get(_all_finite(state.params)):
        raise Diverged(f"step {step}: made parameters that are not finite; lower `optimizer.lr`.")


class _Log:
    """Metrics as JSON lines; lines of steps that will be taken again are dropped first.

    Every process reads and checks them, the first writes. Beside the metrics of a step a line has
    `step`; `time`, seconds since the epoch when they were read; and `samples_per_second` since the
    line before, validations left out, the first of a process since it began, compilation and all.
    """

    def __init__(self, path: Path, start: int, samples_per_step: int):
        self._path, self._samples = path, samples_per_step
        self._since = time.monotonic()
        self.last: dict[str, float] = {}
        kept = []
        if start and path.exists():
            for line in path.read_text().splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:  # the line a crash cut short
                    break
                if entry["step"] >= start:
                    break
                kept.append(line + "\n")
                self.last = {name: x for name, x in entry.items() if name not in _OF_THE_LINE}
        self._kept = "".join(kept)

    def __enter__(self) -> "_Log":
        self._file = open(self._path if first() else os.devnull, "w", buffering=1)
        self._file.write(self._kept)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def leave_out(self, seconds: float) -> None:
        """Count these seconds in no line's throughput."""
        self._since += seconds

    def write(self, step: int, metrics: dict[str, jax.Array]) -> dict[str, float]:
        """Fetch and write the metrics of a step; raise Diverged if one is not finite."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        for name, value in values.items():
            if not math.isfinite(value):
                raise Diverged(
                    f"step {step}: `{name}` is {value}; lower `optimizer.lr`, or set "
                    "`model.dtype` to float32."
                )
        now = time.monotonic()
        rate, self._since = self._samples / max(now - self._since, 1e-9), now
        line = {"step": step, "time": round(time.time(), 3), **values}
        self._file.write(json.dumps(line | {"samples_per_second": round(rate, 3)}) + "\n")
        return values


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Note SIGINT and SIGTERM instead of dying of them; a second one kills."""
    received: list[int] = []

    def note(signum: int, _: Any) -> None:
        received.append(signum)
        signal.signal(signum, signal.SIG_DFL)

    signals = (signal.SIGINT, signal.SIGTERM)
    try:
        old = {signum: signal.signal(signum, note) for signum in signals}
    except ValueError:  # not the main thread: the embedding program handles signals
        yield received
        return
    try:
        yield received
    finally:
        for signum, handler in old.items():
            signal.signal(signum, handler)
