"""Figures as they are said: rates, numbers, how many, how long."""

import math
import numbers
from collections.abc import Mapping


def measured(metrics: Mapping[str, object], key: str) -> float | None:
    """Look a number up; what is no finite number counts as not measured."""
    value = metrics.get(key)
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return None
    return float(value) if math.isfinite(value) else None


def percent(value: float | None) -> str:
    """Write a rate."""
    return "–" if value is None else f"{value:.1%}"


def decimal(value: float | None, digits: int = 3) -> str:
    """Write a number."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def count(num: int, one: str, many: str = "") -> str:
    """Write how many there are of something."""
    many = many or (one[:-1] + "ies" if one.endswith("y") else one + "s")
    return f"{num:,} {one if num == 1 else many}"


def duration(seconds: float) -> str:
    """Write a time."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
