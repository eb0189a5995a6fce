"""Sums up what a part of a proof measured of people."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from jaxdefense.idia.statistics import mean_interval, wilson
from jaxdefense.results import Groups, Mean, ProofCurve, ProofPart

Values = Mapping[str, Sequence[float] | np.ndarray]  # group -> a value of each person


def new_part(
    figures: Mapping[str, dict[str, Groups]] | None = None,
    curves: Mapping[str, ProofCurve] | None = None,
    people: Mapping[str, dict[str, float]] | None = None,
    notes: Iterable[str] = (),
) -> ProofPart:
    """Make a part of a proof; `run` says how long it took."""
    return {
        "seconds": 0.0,
        "figures": dict(figures or {}),
        "curves": dict(curves or {}),
        "people": dict(people or {}),
        "notes": list(notes),
    }


def per_person(value_P: np.ndarray, owner_P: np.ndarray) -> np.ndarray:
    """Average over each person's photos, at least one each; f64 [I]."""
    return np.bincount(owner_P, value_P) / np.bincount(owner_P)


def mean_of(values: Iterable[float] | np.ndarray, rate: bool = False) -> Mean:
    """Average values in [0, 1], one of each person, photo or text.

    Args:
        values: at least one.
        rate: whether each is 0 or 1.

    Returns:
        their mean, over how many, and its 95 % interval: Wilson's of a rate, `mean_interval` of
        other values.
    """
    value_N = np.asarray(list(values), np.float64)
    mean, num = float(value_N.mean()), len(value_N)
    interval = wilson(round(mean * num), num) if rate else mean_interval(value_N.tolist())
    return {"mean": mean, "interval": interval, "num": num}


def means(values: Values, rate: bool = False) -> Groups:
    """Average the values of each group, see `mean_of`; a group of nobody is left out."""
    return {group: mean_of(value, rate) for group, value in values.items() if len(value)}
