"""Timing two things in turn, so that both meet the same machine in the same mood."""

import dataclasses
import os
import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdefense.convert.directory import resolve_dtype


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds a time, of each contestant, in rounds that took turns.

    Fields:
        seconds: name -> of each round.
        samples: worked on each time.
    """

    seconds: dict[str, list[float]]
    samples: int

    def summary(self) -> dict[str, Any]:
        """Give medians in samples/s, and how far the first is ahead of the fastest of the others.

        Returns:
            samples_per_second by name; with others, ratio: median over the rounds; ratio_range:
            least and most.
        """
        rate = {name: self.samples / float(np.median(s)) for name, s in self.seconds.items()}
        out: dict[str, Any] = {"samples_per_second": {k: round(v, 2) for k, v in rate.items()}}
        ours, *others = (np.array(s) for s in self.seconds.values())
        if others:
            theirs = min(others, key=np.median)
            out["ratio"] = round(float(np.median(theirs / ours)), 2)
            out["ratio_range"] = [round(float(x), 2) for x in np.sort(theirs / ours)[[0, -1]]]
        return out


def side_by_side(
    contestants: dict[str, Callable[[int], None]], samples: int, rounds: int, calls: int
) -> Timing:
    """Time contestants in turn: A B A B.

    Args:
        contestants: each does its work so many times when called, and leaves none of it behind:
            what it makes ahead it makes within the call.
        samples: worked on each time.
        rounds: of each.
        calls: times a round.
    """
    for work in contestants.values():  # compile, fill caches
        work(calls)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, work in contestants.items():
            start = time.perf_counter()
            work(calls)
            seconds[name].append((time.perf_counter() - start) / calls)
    return Timing(seconds, samples)


def check_counts(**counts: int) -> None:
    """Raise ValueError if one is not above 0."""
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"`--{name}` (={value}) must be above 0.")


def has_torch() -> bool:
    """Whether there is something to be compared with."""
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError:
        return False
    return True


def with_rate(summary: dict[str, Any], flops: int, samples: int) -> dict[str, Any]:
    """Add what rate ours computes at, and its share of the rate of one large matrix product.

    Args:
        summary: of a timing whose first contestant is ours.
        flops: of its matrix products each time.
        samples: worked on each time.
    """
    rate = next(iter(summary["samples_per_second"].values())) * flops / samples
    top = matmul_rate()
    return summary | {
        "gflop_per_second": round(rate / 1e9, 1),
        "gflop_per_second_of_a_product": round(top / 1e9, 1),
        "share": round(rate / top, 3),
    }


def matmul_rate() -> float:
    """Measure the FLOP/s of one large matrix product, in the dtype models compute in here."""
    dtype = resolve_dtype("auto")
    side = 2048 if dtype == "float32" else 8192
    a = jnp.ones((side, side), dtype)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        product(a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / float(np.median(seconds))


def machine() -> dict[str, str]:
    """Name what the figures were measured on."""
    return {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processor": f"{platform.machine()}, {_cores()} cores",
        "jax": jax.__version__,
    }


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
