"""Timing several in turn, so that all meet the same machine in the same mood.

Nothing here loads JAX or torch: contestants do, each in its own process.
"""

import dataclasses
import importlib.util
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import numpy as np
from rich.console import Console

from jaxdefense.bench.process import Process
from jaxdefense.errors import InputError

OURS, TORCH = "jaxdefense", "torch"


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds a time, of each contestant, in rounds that took turns.

    Fields:
        seconds: name -> of each round.
        samples: worked on each time.
    """

    seconds: dict[str, list[float]]
    samples: int

    def rates(self) -> dict[str, float]:
        """Give medians in samples/s."""
        return {name: self.samples / float(np.median(s)) for name, s in self.seconds.items()}

    def ratio(self, name: str, other: str) -> list[float]:
        """Compare round by round: how often `name` is done while `other` is once.

        Returns:
            median, least, most.
        """
        ratios = np.array(self.seconds[other]) / np.array(self.seconds[name])
        return [round(float(f(ratios)), 2) for f in (np.median, np.min, np.max)]

    def summary(self) -> dict[str, Any]:
        """Give medians in samples/s, and how far the first is ahead of the fastest of the others.

        Returns:
            samples_per_second by name; with others, ratio: median over the rounds; ratio_range:
            least and most.
        """
        out: dict[str, Any] = {"samples_per_second": rounded(self.rates())}
        ours, *others = self.seconds
        if others:
            other = min(others, key=lambda name: float(np.median(self.seconds[name])))
            out["ratio"], *out["ratio_range"] = self.ratio(ours, other)
        return out


def rounded(figures: Mapping[str, float]) -> dict[str, float]:
    """Leave four digits, or all before the point."""
    return {name: float(f"{x:.4g}") if abs(x) < 1000 else round(x) for name, x in figures.items()}


def side_by_side(
    contestants: Mapping[str, Callable[[int], Any]],
    samples: int,
    rounds: int,
    calls: int,
    console: Console | None = None,
    warm: bool = True,
) -> Timing:
    """Time contestants in turn: A B A B.

    Args:
        contestants: each does its work so many times when called, and leaves none of it behind:
            what it makes ahead it makes within the call.
        samples: worked on each time.
        rounds: of each.
        calls: times a round.
        console: for progress.
        warm: with a round before that is not timed: it compiles, and fills caches. And each turn
            begins with a call that is not: of who waits the system may take the memory back.
    """
    for work in contestants.values() if warm else ():
        work(calls)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for i in range(rounds):
        if console:
            console.print(f"round {i + 1} of {rounds}")
        for name, work in contestants.items():
            if warm:
                work(1)
            start = time.perf_counter()
            work(calls)
            seconds[name].append((time.perf_counter() - start) / calls)
    return Timing(seconds, samples)


class Field:
    """The contestants of one comparison, all loaded."""

    def __init__(self, makes: Mapping[str, Callable[[], Any]], console: Console):
        """Start them, and wait until all are ready.

        Args:
            makes: of each by name, ours first: see `Process`. Each object has `peak_memory`, ours
                `machine` too.
            console: for progress.
        """
        self._processes = dict[str, Process]()
        console.print(f"loading {', '.join(makes)}")
        with ExitStack() as stack:
            for name, make in makes.items():
                self._processes[name] = Process(make)
                stack.callback(self._processes[name].end)
            self.ask("peak_memory")
            self._stack = stack.pop_all()

    def __enter__(self) -> "Field":
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
        """Call a method of each without arguments; what each returned."""
        return {name: process(method) for name, process in self._processes.items()}

    def does(self, method: str) -> dict[str, Callable[..., Any]]:
        """Give a method of each as a function."""
        return {name: process.does(method) for name, process in self._processes.items()}

    def peak_memory_mb(self) -> dict[str, int]:
        """Give the most memory each has taken, of the GPU if it computes there, 10^6 bytes."""
        return {name: round(x / 1e6) for name, x in self.ask("peak_memory").items()}


def check_counts(**counts: int) -> None:
    """Raise InputError if one is not above 0."""
    for name, value in counts.items():
        if value < 1:
            raise InputError(f"`--{name}` (={value}) must be above 0.")


def has_torch() -> bool:
    """Whether there is something to be compared with."""
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def with_torch(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], console: Console
) -> dict[str, Any]:
    """Join contestants; without torch, ours alone."""
    if has_torch():
        return {**ours, **theirs}
    console.print("torch is not installed: ours alone")
    return dict(ours)


def num_cores() -> int:
    """Count the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
