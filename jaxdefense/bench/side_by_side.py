"""Timing several implementations in turn, so that load on the machine slows all of them alike.

Nothing here loads JAX or torch: each implementation loads its library in its own process.
"""

import dataclasses
import importlib.util
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import numpy as np

from jaxdefense.bench.process import Process
from jaxdefense.errors import InputError
from jaxdefense.log import Progress

logger = logging.getLogger(__name__)

# Names of the implementations in the figures.
JAXDEFENSE, TORCH, COMPILED = "jaxdefense", "torch", "torch_compiled"
AGAIN = "jaxdefense_again"  # with the programs that a run before kept
_KEPT = "kept"


@dataclasses.dataclass(frozen=True)
class Timing:
    """The time that each implementation took in each round.

    Fields:
        seconds: name -> seconds a call, one figure a round.
        samples: number of samples that one call works on.
    """

    seconds: dict[str, list[float]]
    samples: int

    def rates(self) -> dict[str, float]:
        """Return the median rate of each implementation, samples/s."""
        return {name: self.samples / float(np.median(s)) for name, s in self.seconds.items()}

    def ratio(self, name: str, other: str) -> list[float]:
        """Compare two implementations round by round: how many times as fast `name` is as `other`.

        Returns:
            median, minimum and maximum over the rounds.
        """
        ratios = np.array(self.seconds[other]) / np.array(self.seconds[name])
        return [round(float(f(ratios)), 2) for f in (np.median, np.min, np.max)]

    def summary(self) -> dict[str, Any]:
        """Return the median rates, and compare the first with the fastest of the plain others.

        Returns:
            samples_per_second by name. If there are others, ratio: median over the rounds; and
            ratio_range: minimum and maximum. If COMPILED is there, ratio_to_compiled likewise; if
            AGAIN is, ratio_again is that of it.
        """
        out: dict[str, Any] = {"samples_per_second": rounded(self.rates())}
        first, *others = self.seconds
        if COMPILED in others:
            others.remove(COMPILED)
            out["ratio_to_compiled"], *out["ratio_to_compiled_range"] = self.ratio(first, COMPILED)
        if again := AGAIN in others:
            others.remove(AGAIN)
        if others:
            other = min(others, key=lambda name: float(np.median(self.seconds[name])))
            out["ratio"], *out["ratio_range"] = self.ratio(first, other)
            if again:
                out["ratio_again"], *out["ratio_again_range"] = self.ratio(AGAIN, other)
        return out


def rounded(figures: Mapping[str, float]) -> dict[str, float]:
    """Round to four significant digits; round figures from 1000 on to whole numbers."""
    return {name: float(f"{x:.4g}") if abs(x) < 1000 else round(x) for name, x in figures.items()}


def shares(
    samples_per_second: Mapping[str, float], flops: Mapping[str, float], samples: int, top: float
) -> dict[str, Any]:
    """Return FLOP a sample and a second, and shares of the rate of one large matrix product.

    Args:
        samples_per_second: rate of each implementation.
        flops: operations of the matrix products of each.
        samples: number of samples that these operations work on.
        top: rate of the large product, FLOP/s.
    """
    a_sample = {name: x / samples for name, x in flops.items()}
    rates = {name: x * a_sample[name] for name, x in samples_per_second.items()}
    return {
        "gflop_a_sample": rounded({name: x / 1e9 for name, x in a_sample.items()}),
        "gflop_per_second": rounded({name: x / 1e9 for name, x in rates.items()}),
        "gflop_per_second_of_a_product": round(top / 1e9, 1),
        "share": {name: round(x / top, 3) for name, x in rates.items()},
    }


def side_by_side(
    implementations: Mapping[str, Callable[[int], Any]],
    samples: int,
    rounds: int,
    calls: int,
    warm: bool = True,
) -> Timing:
    """Time implementations in turn: A B A B.

    Args:
        implementations: functions by name. Each does its work as many times as its argument says.
            All work must end within the call, and anything prepared must be prepared within it.
        samples: number of samples that one call works on.
        rounds: number of rounds; each implementation has one turn a round.
        calls: how many times the work is done in a turn.
        warm: whether an untimed round comes first, which compiles and fills caches. Each turn then
            also begins with the work done once, untimed: the system may have taken back memory
            from a process that waits.
    """
    for work in implementations.values() if warm else ():
        work(calls)
    seconds: dict[str, list[float]] = {name: [] for name in implementations}
    with Progress("timing", rounds, unit="rounds") as progress:
        for _ in range(rounds):
            for name, work in implementations.items():
                if warm:
                    work(1)
                start = time.perf_counter()
                work(calls)
                seconds[name].append((time.perf_counter() - start) / calls)
            progress.advance()
    return Timing(seconds, samples)


class Processes:
    """The processes of one comparison, one for each implementation."""

    def __init__(self, constructors: Mapping[str, Callable[[], Any]]):
        """Start the processes and wait until all are ready.

        Args:
            constructors: by name, functions that create the implementations; see `Process`. Each
                implementation has `peak_memory`.
        """
        self._processes = dict[str, Process]()
        logger.info(f"loading {', '.join(constructors)}")
        with ExitStack() as stack:
            for name, constructor in constructors.items():
                self._processes[name] = Process(constructor)
                stack.callback(self._processes[name].end)
            self.ask("peak_memory")
            self._stack = stack.pop_all()

    def __enter__(self) -> "Processes":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def __getitem__(self, name: str) -> Process:
        return self._processes[name]

    def ask(self, method: str) -> dict[str, Any]:
        """Call a method without arguments in each process; return what each returned."""
        return {name: process(method) for name, process in self._processes.items()}

    def compile(self) -> None:
        """Have COMPILED compile, if it is there; if it cannot, log why and end it."""
        if process := self._processes.get(COMPILED):
            logger.info("compiling PyTorch's work")
            if why := process("compile"):
                logger.warning(f"torch.compile failed, so {COMPILED} is left out: {why}")
                self._processes.pop(COMPILED).end()

    def methods(self, method: str) -> dict[str, Callable[..., Any]]:
        """Return a method of each implementation as a function."""
        return {name: process.method(method) for name, process in self._processes.items()}

    def peak_memory_mb(self) -> dict[str, int]:
        """Return the peak memory of each in 10^6 bytes, of the GPU if it computes there."""
        return {name: round(x / 1e6) for name, x in self.ask("peak_memory").items()}


def with_kept(
    plain: Callable[[], Any], kept: Callable[[], Any], samples: int, rounds: int, calls: int
) -> dict[str, Any]:
    """Time steps beside the same steps with the teacher's embeddings of clean inputs kept.

    Args:
        plain, kept: constructors of `JaxSteps`.
        samples: of a step.
        rounds, calls: see `side_by_side`.

    Returns:
        `samples_per_second` and `gflop_a_sample`, of matrix products, of each; how many times as
        fast the kept steps are: `ratio` and `ratio_range`.
    """
    logger.info("timing the step with the teacher's embeddings of clean inputs kept")
    with Processes({_KEPT: kept, JAXDEFENSE: plain}) as processes:
        timing = side_by_side(processes.methods("steps"), samples, rounds, calls)
        flops = processes.ask("flops")
    gflop = {name: x / samples / 1e9 for name, x in flops.items()}
    return timing.summary() | {"gflop_a_sample": rounded(gflop)}


def check_counts(**counts: int) -> None:
    """Raise InputError if a count is not above 0."""
    for name, value in counts.items():
        if value < 1:
            raise InputError(f"`--{name}` (={value}) must be above 0.")


def has_torch() -> bool:
    """Return whether the libraries of the PyTorch implementations are installed."""
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def with_torch(on_jax: Mapping[str, Any], on_torch: Mapping[str, Any]) -> dict[str, Any]:
    """Join both mappings; if torch is not installed, return the first alone."""
    if has_torch():
        return {**on_jax, **on_torch}
    logger.info("torch is not installed: timing jaxdefense alone")
    return dict(on_jax)
