"""The run: data, clock, progress, metrics, saving, stopping. The only owner of a train state.

Order within an iteration: take the batch, dispatch the step, read the metrics of the step before
(so the device never waits for the host), validate if due, save if due. Held by tests/test_loop.py.
Of several processes the first alone writes metrics; all save, each its own part, and all stop at
one step.
"""

import dataclasses
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxdefense.checkpoint import Checkpoints
from jaxdefense.defense.step import TrainState
from jaxdefense.defense.validate import Watch
from jaxdefense.distributed import Stop, first
from jaxdefense.errors import Interrupted, RunError
from jaxdefense.sharding import put

METRICS = "metrics.jsonl"
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
    batches: Any, start: int, stop: int, num: int, watch: Watch | None
) -> Iterator[tuple[int, Any]]:
    """Give batches with their steps; none ahead of a validation, which may change who is drawn."""
    while start < stop:
        until = min(stop, watch.next_due(start)) if watch else stop
        yield from enumerate(read_ahead(batches, start, until, num), start)
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
    console: Console,
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
        console: for progress.
        watch: validates, and may end the run early.

    Raises:
        Diverged: a metric is not finite; names step and metric.
        Interrupted: SIGINT or SIGTERM came; a checkpoint was saved.
        OutOfMemory: a step does not fit a device.
        InputError: the directory's checkpoint is of another model.
        Unwritten: a checkpoint could not be written.
    """
    if watch:  # before there is another state in memory
        watch.begin(init().params)
    checkpoints = Checkpoints(directory / "checkpoints", cfg.keep)
    start, state = checkpoints.restore_newest(jax.eval_shape(init), state_sharding, console)
    if watch:
        abstract = jax.eval_shape(init)
        start, state = watch.newer(start, state, abstract, state_sharding, console)
        watch.go_on(start)
    if state is None:
        state = init()
    else:
        console.print(f"resuming at step {start} of {cfg.steps}")
    log, stop_for = _Log(directory / METRICS, start), Stop(cfg.steps)
    started = warm = time.monotonic()
    metrics = log.last
    pending: dict[str, jax.Array] | None = None
    done, aside = start, 0.0  # steps; seconds of validations
    programs, last, end = 0, bool(watch and watch.finished), cfg.steps
    if last:
        end = start
    with (
        _stop_signals() as received,
        _progress(console) as progress,
        log,
        closing(checkpoints),  # what is being written is finished, however the run ends
    ):
        task = progress.add_task("defending", total=cfg.steps, completed=start, loss="compiling")

        def note(step: int, new: dict[str, jax.Array]) -> None:
            nonlocal metrics, warm
            metrics = log.write(step, new)
            if step == start:  # the first step compiles: throughput is of those after it
                warm = time.monotonic()
            progress.update(task, completed=step + 1, loss=f"loss {metrics['total']:.4f}")
            if not console.is_terminal and (step + 1) % max(1, cfg.steps // 10) == 0:
                console.print(f"step {step + 1} of {cfg.steps}: loss {metrics['total']:.4f}")

        with jax.transfer_guard("disallow"):
            for step, batch in _numbered(batches, start, end, cfg.prefetch, watch):
                if cfg.profile and first() and step - start == _TRACED.start:
                    jax.profiler.start_trace(cfg.profile)
                with _out_of_memory(step_fn, state, teacher, batch, key):
                    state, new = step_fn(state, teacher, put(batch, place), key)
                    programs = programs or _num_programs(step_fn)
                    assert _num_programs(step_fn) == programs, _what_changed(step, batch)
                    if pending is not None:
                        note(step - 1, pending)
                pending, done = new, step + 1
                if cfg.profile and first() and done - start == _TRACED.stop:
                    jax.block_until_ready(state)
                    jax.profiler.stop_trace()
                if watch and watch.due(done):
                    note(step, pending)
                    pending = None
                    _check_finite(state, step)
                    began = time.monotonic()
                    with jax.transfer_guard("allow"):
                        state = watch.look(done, state)
                    last = watch.finished
                    console.print(f"validation at step {done}: {watch.found[-1][1]}")
                    aside += time.monotonic() - began
                stop = stop_for(done, received[0] if received else 0, last)
                if stop or last or done % cfg.save_every == 0 or done == cfg.steps:
                    if pending is not None:
                        note(step, pending)
                    pending = None
                    _check_finite(state, step)  # a broken state must not be saved
                    checkpoints.save(done, state, metrics["total"])
                if stop:
                    raise Interrupted(stop, done)
                if last:
                    break
    now, timed = time.monotonic(), done - start - 1
    rate = timed * cfg.samples_per_step / (now - warm - aside) if timed > 0 else 0.0
    return Outcome(state, metrics, now - started, rate)


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

    Every process reads and checks them, the first writes.
    """

    def __init__(self, path: Path, start: int):
        self._path = path
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
                self.last = {k: v for k, v in entry.items() if k != "step"}
        self._kept = "".join(kept)

    def __enter__(self) -> "_Log":
        self._file = open(self._path if first() else os.devnull, "w", buffering=1)
        self._file.write(self._kept)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, step: int, metrics: dict[str, jax.Array]) -> dict[str, float]:
        """Fetch and write the metrics of a step; raise Diverged if one is not finite."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        for name, value in values.items():
            if not math.isfinite(value):
                raise Diverged(
                    f"step {step}: `{name}` is {value}; lower `optimizer.lr`, or set "
                    "`model.dtype` to float32."
                )
        self._file.write(json.dumps({"step": step} | values) + "\n")
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


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps, {task.fields[loss]}, left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
