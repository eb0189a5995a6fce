"""The training loop: data, clock, progress, metrics, saving, stopping.

Nothing else owns a train state.

One iteration does five things in this order: take the batch, dispatch the step, read the metrics of
the step before, validate if due, save if due. Metrics are read one step late, so that the device
never waits for the host. tests/test_loop.py checks the order.

If there are several processes, only the first writes metrics. Every process saves its own part, and
all stop after the same step.
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

from jaxdefense.buckets.local import is_mirrored, upload_results
from jaxdefense.checkpoint import Checkpoints
from jaxdefense.defense.step import TrainState
from jaxdefense.defense.validate import Watch
from jaxdefense.distributed import Stop, first
from jaxdefense.errors import Interrupted, RunError
from jaxdefense.log import Progress
from jaxdefense.sharding import put
from jaxdefense.trackers import Tracker

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
_TRAIN, _VALIDATION = "train", "validation"  # of a tracker's figures
_OF_THE_LINE = ("step", "time", "samples_per_second")  # entries that no step computes
_TRACED = range(2, 5)  # steps of a run that a profile shows; the first ones compile


class Diverged(RunError):
    """A metric is not a finite number."""


class OutOfMemory(RunError):
    """A step does not fit a device."""


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How long to train, and how often to save.

    Fields:
        steps: of the whole run.
        save_every: steps between checkpoints.
        keep: checkpoints to keep.
        prefetch: batches made ahead.
        samples_per_step: the throughput is computed from it.
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
    """The result of a run: last state, last metrics, seconds and samples/s of this process.

    The step after which training was seen to diverge is None if it did not.
    """

    state: TrainState
    metrics: dict[str, float]
    seconds: float
    samples_per_second: float
    diverged_at_step: int | None = None


class _Steps:
    """A random-access source of batches with a length, as Grain needs it."""

    def __init__(self, batches: Any, num: int):
        self._batches, self._num = batches, num

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, index: int) -> Any:
        return self._batches[index]


def read_ahead(batches: Any, start: int, stop: int, num: int) -> Iterator[Any]:
    """Give `batches[start]` to `batches[stop - 1]`; a thread makes up to `num` of them ahead."""
    read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=num)
    return iter(grain.MapDataset.source(_Steps(batches, stop))[start:].to_iter_dataset(read))


def _numbered(
    batches: Any, start: int, stop: int, cfg: LoopConfig, watch: Watch | None
) -> Iterator[tuple[int, Any]]:
    """Give steps and batches; read none past a validation, which may change who is drawn."""
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
    abstract: TrainState | None = None,
    tracker: Tracker | None = None,
) -> Outcome:
    """Train from the newest checkpoint, or from the start, until the last step.

    With `watch`, the run ends as soon as the watch is finished.

    Args:
        step_fn: the compiled step.
        init: makes the first state, on the devices.
        state_sharding: of a state.
        teacher: on the devices.
        batches: `batches[step]`, on the host.
        place: the sharding of a batch.
        key: of the run, on the devices.
        cfg: see `LoopConfig`.
        directory: of the run.
        watch: begun; validates, and may end the run early.
        abstract: shapes of a state; None to find them by tracing `init`.
        tracker: is told each step and validation, once.

    Raises:
        Diverged: a metric or a parameter is not finite, and no state passed validation before; the
            message names it and the step.
        Interrupted: SIGINT or SIGTERM came; a checkpoint was saved.
        OutOfMemory: a step does not fit a device.
        InputError: the directory's checkpoint belongs to another model.
        Unwritten: a checkpoint could not be written.
    """
    checkpoints = Checkpoints(directory / "checkpoints", cfg.keep)
    shapes = abstract or jax.eval_shape(init)
    start, state = _newest(checkpoints, init, shapes, state_sharding, watch, cfg.steps)
    tracker, started = tracker or Tracker({}), time.monotonic()
    log = _Log(directory / METRICS, start, cfg.samples_per_step, tracker)
    _tell_before(tracker, log, watch)
    with (
        _stop_signals() as received,
        Progress("defending", cfg.steps, start, "steps", "compiling") as progress,
        log,
        closing(checkpoints),  # finishes what is being written, however the run ends
        jax.transfer_guard("disallow"),
    ):
        training = _Training(step_fn, state, cfg, log, progress, start, tracker)
        del state  # its arrays are donated to the steps
        take = partial(training.take, place=place, teacher=teacher, key=key)
        diverged_at_step = None
        try:
            _take_all(training, take, batches, checkpoints, received, watch)
        except Diverged as error:
            if not (watch and watch.reached):
                raise
            logger.warning(f"{error} The run ends here: a state before it passed validation.")
            diverged_at_step = training.done
    seconds, rate = time.monotonic() - started, training.throughput()
    return Outcome(training.state, training.metrics, seconds, rate, diverged_at_step)


def _tell_before(tracker: Tracker, log: "_Log", watch: Watch | None) -> None:
    """Tell what the run found before it resumes; a tracker skips what it was told before."""
    told: list[tuple[Any, str, dict[str, float], float | None]] = [
        (n, _VALIDATION, verdict.rates(), None) for n, verdict in (watch.found if watch else ())
    ]
    for entry in log.kept:
        values = {name: x for name, x in entry.items() if name not in ("step", "time")}
        told.append((entry["step"], _TRAIN, values, entry["time"]))
    # The validation after n steps comes before step n.
    for step, part, values, at in sorted(told, key=lambda x: (x[0], x[1] == _TRAIN)):
        tracker.tell(part, step, values, at)


def _take_all(
    training: "_Training",
    take: Callable[[int, Any], None],
    batches: Any,
    checkpoints: Checkpoints,
    received: list[int],
    watch: Watch | None,
) -> None:
    """Take the remaining steps; `received` collects signals. See `run` for the other arguments."""
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
    abstract: TrainState,
    state_sharding: Any,
    watch: Watch | None,
    steps: int,
) -> tuple[int, TrainState]:
    """Give the steps taken and the newest state, of a checkpoint or the best, or the first."""
    start, state = checkpoints.restore_newest(abstract, state_sharding)
    if watch:
        start, state = watch.newer(start, state, abstract, state_sharding)
        watch.go_on(start)
    if state is None:
        return start, init()
    logger.info(f"resuming at step {start} of {steps}")
    return start, state


class _Training:
    """A run in progress: its state, and what the host knows about it."""

    def __init__(
        self,
        step_fn: Callable[..., tuple[TrainState, dict[str, jax.Array]]],
        state: TrainState,
        cfg: LoopConfig,
        log: "_Log",
        progress: Progress,
        start: int,
        tracker: Tracker,
    ):
        """Begin after `start` steps; see `run` for the other arguments."""
        self._step_fn, self._log, self._progress, self._tracker = step_fn, log, progress, tracker
        self.cfg, self.state, self.metrics = cfg, state, log.last
        self.done = self._start = start
        self._pending: dict[str, jax.Array] | None = None  # metrics of the last step, unread
        self._programs = 0
        self._warm, self._aside = time.monotonic(), 0.0  # _aside: seconds of validations, uploads

    def take(
        self, step: int, batch: Any, *, place: NamedSharding, teacher: Any, key: jax.Array
    ) -> None:
        """Dispatch a step; while it runs, read the metrics of the step before."""
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
        if step == self._start:  # the first step compiles, so throughput counts only later steps
            self._warm = time.monotonic()
        self._progress.update(step + 1, f"loss {self.metrics['total']:.4f}")

    def _settle(self) -> None:
        """Read the last step's metrics, and check its parameters."""
        if self._pending is not None:
            self._read(self.done - 1, self._pending)
        self._pending = None
        _check_finite(self.state, self.done - 1)

    def validate(self, watch: Watch) -> None:
        """Validate the state, and continue with the rate and the push that the verdict asks for."""
        self._settle()
        began = time.monotonic()
        with jax.transfer_guard("allow"):
            self.state = watch.look(self.done, self.state)
        verdict = watch.found[-1][1]
        logger.info(f"validation at step {self.done}: {verdict}")
        self._tracker.tell(_VALIDATION, self.done, verdict.rates())
        self._leave_out(time.monotonic() - began)

    def _leave_out(self, seconds: float) -> None:
        """Leave these seconds out of the throughput."""
        self._aside += seconds
        self._log.leave_out(seconds)

    def due(self) -> bool:
        """Tell whether a checkpoint is due."""
        return self.done % self.cfg.save_every == 0 or self.done == self.cfg.steps

    def save(self, checkpoints: Checkpoints) -> None:
        """Save the state; raise Diverged if it is not finite."""
        self._settle()
        checkpoints.save(self.done, self.state, self.metrics["total"])
        if is_mirrored(self._log.path):
            began = time.monotonic()
            checkpoints.wait()  # what is half written would be uploaded only with the next one
            upload_results(self._log.path)
            self._leave_out(time.monotonic() - began)

    def throughput(self) -> float:
        """Give the samples a second of all steps but the first, without validations, uploads."""
        timed = self.done - self._start - 1
        seconds = time.monotonic() - self._warm - self._aside
        return timed * self.cfg.samples_per_step / seconds if timed > 0 else 0.0


def _num_programs(step_fn: Any) -> int:
    """Count the programs that a jitted function was compiled to; this costs next to nothing."""
    return getattr(step_fn, "_cache_size", int)()  # not part of JAX's public interface


def _what_changed(step: int, batch: Any) -> str:
    shapes = ", ".join(f"{x.dtype}{list(x.shape)}" for x in jax.tree.leaves(batch))
    return (
        f"step {step} was compiled anew, for a batch of {shapes}: batches of a run must all have "
        "one shape and dtype."
    )


@contextmanager
def _out_of_memory(step_fn: Any, *args: Any) -> Iterator[None]:
    """If a step does not fit a device, say how much it needs and what would make it smaller."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        what = str(error).partition("RESOURCE_EXHAUSTED:")[2].strip().partition("\n")[0]
        raise OutOfMemory(
            f"a step does not fit the memory of a device{_memory(step_fn, args)} ({what}). What "
            "helps, cheapest first: `model.remat` dots or full, `train.accumulate` above 1, "
            "`mesh.fsdp` above 1 with several devices, a smaller `train.num_clean`."
        ) from error


def _memory(step_fn: Any, args: tuple) -> str:
    """Say how much memory the compiled step needs, if that is known."""
    try:
        found = step_fn.lower(*args).compile().memory_analysis()
        sizes = {
            "arguments": found.argument_size_in_bytes,
            "results": found.output_size_in_bytes - found.alias_size_in_bytes,
            "in between": found.temp_size_in_bytes,
        }
    except Exception:  # the compiler itself may have run out of memory
        return ""
    return ": " + ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in sizes.items())


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _check_finite(state: TrainState, step: int) -> None:
    """Raise Diverged if the step made bad parameters: its metrics show only the ones before it."""
    if not jax.device_get(_all_finite(state.params)):
        raise Diverged(f"step {step}: made parameters that are not finite; lower `optimizer.lr`.")


class _Log:
    """Metrics as JSON lines; a resumed run first drops the lines of steps that it takes again.

    Every process reads and checks the metrics; only the first process writes them. A line holds the
    metrics of a step and three more entries. `step` is its number. `time` is when the metrics were
    read, in seconds since the epoch. `samples_per_second` counts from the line before, without
    validations. For the first line of a process it counts from the start, including compilation.

    `kept` holds the lines that were there before, of steps that are not taken again.
    """

    def __init__(self, path: Path, start: int, samples_per_step: int, tracker: Tracker):
        self.path, self._samples, self._tracker = path, samples_per_step, tracker
        self._since = time.monotonic()
        self.last: dict[str, float] = {}
        self.kept: list[dict[str, float]] = []
        kept = []
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # a crash cut the line short
                break
            if entry["step"] < start:
                kept.append(line + "\n")
                self.kept.append(entry)
                self.last = {name: x for name, x in entry.items() if name not in _OF_THE_LINE}
        self._kept = "".join(kept)

    def __enter__(self) -> "_Log":
        self._file = open(self.path if first() else os.devnull, "w", buffering=1)
        self._file.write(self._kept)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def leave_out(self, seconds: float) -> None:
        """Leave these seconds out of the throughput."""
        self._since += seconds

    def write(self, step: int, metrics: dict[str, jax.Array]) -> dict[str, float]:
        """Fetch and write the metrics of a step; raise Diverged if one of them is not finite."""
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
        pace = {"samples_per_second": round(rate, 3)}
        self._file.write(json.dumps(line | pace) + "\n")
        self._tracker.tell(_TRAIN, step, values | pace)
        return values


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Record SIGINT and SIGTERM instead of exiting; a second signal of a kind kills."""
    received: list[int] = []

    def note(signum: int, _: Any) -> None:
        received.append(signum)
        signal.signal(signum, signal.SIG_DFL)

    signals = (signal.SIGINT, signal.SIGTERM)
    try:
        old = {signum: signal.signal(signum, note) for signum in signals}
    except ValueError:  # not the main thread: the calling program handles signals
        yield received
        return
    try:
        yield received
    finally:
        for signum, handler in old.items():
            signal.signal(signum, handler)
