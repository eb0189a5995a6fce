"""A stopwatch for the phases of a run."""

import time
from collections.abc import Callable


def stopwatch() -> Callable[[], float]:
    """Return a function that returns the seconds since its last call, or since its creation."""
    last = time.perf_counter()

    def lap() -> float:
        nonlocal last
        begin, last = last, time.perf_counter()
        return last - begin

    return lap
