"""Timing two things in turn, so that both meet the same machine in the same mood."""

import dataclasses
import os
import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds a call, of each contestant, in rounds that took turns.

    Fields:
        seconds: name -> seconds of each round.
        samples: a call works on.
    """

    seconds: dict[str, list[float]]
    samples: int

    def summary(self) -> dict[str, Any]:
        """Give medians in samples/s and, with two contestants, how often the first beats the other.

        Returns:
            samples_per_second by name; ratio: median over the rounds; ratio_range: least and most.
        """
        rate = {name: self.samples / float(np.median(s)) for name, s in self.seconds.items()}
        out: dict[str, Any] = {"samples_per_second": {k: round(v, 2) for k, v in rate.items()}}
        if len(self.seconds) == 2:
            ours, theirs = (np.array(s) for s in self.seconds.values())
            out["ratio"] = round(float(np.median(theirs / ours)), 2)
            out["ratio_range"] = [round(float(x), 2) for x in np.sort(theirs / ours)[[0, -1]]]
        return out


def side_by_side(
    contestants: dict[str, Callable[[], None]], samples: int, rounds: int, calls: int
) -> Timing:
    """Time contestants in turn: A B A B.

    Args:
        contestants: each does its work to the end when called.
        samples: a call works on.
        rounds: of each.
        calls: a round.
    """
    for call in contestants.values():  # compile, fill caches
        call()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, call in contestants.items():
            start = time.perf_counter()
            for _ in range(calls):
                call()
            seconds[name].append((time.perf_counter() - start) / calls)
    return Timing(seconds, samples)


def machine() -> dict[str, str]:
    """Name what the figures were measured on."""
    return {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processor": f"{platform.machine()}, {_cores()} cores",
        "jax": jax.__version__,
    }


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
