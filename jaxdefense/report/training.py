"""The sections on how training went: its losses, and the validation of a run."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from jaxdefense.figures import decimal, measured, percent
from jaxdefense.report import plots
from jaxdefense.report.frame import render
from jaxdefense.results import DefenseSummary

_TERMS = {
    "utility": "distance to the original model on ordinary inputs",
    "backdoor": "how much nearer than strangers inputs with a listed identity come to it; with a "
    "target, their distance to the target",
    "name": "distance to the original model on other names",
    "keep": "distance to the original model on photos with other people's faces",
    "weight": "how far the weights moved from the original's, a sum of L2 norms",
    "total": "the weighted sum that training lowers",
}
_VALIDATION = (
    "Stage",
    "Still lead to the person",
    "Above strangers",
    "Others, cosine to the original",
    "Ordinary inputs, cosine to the original",
)


class _Figure(NamedTuple):
    """A loss: its last value in each run, what it means, and its plot."""

    term: str
    last: str
    meaning: str
    plot: Markup


def validated(found: DefenseSummary) -> Markup:
    """Show the validation of a defense on held-out data; "" if there was none."""
    if found.validation is None:
        return Markup()
    before, after = found.validation["before"], found.validation["after"]
    lines = [
        [
            stage,
            percent(verdict["right"]),
            percent(verdict["above"]),
            *(
                decimal(1 - verdict["moved"][kind]) if kind in verdict["moved"] else ""
                for kind in ("kept", "clean")
            ),
        ]
        for stage, verdict in (("Before", before), ("After", after))
    ]
    left, expected = list(after["left"].items()), after.get("expected", 0.0)
    figures = {"left": left, "expected": expected, "head": _VALIDATION, "lines": lines}
    return render("validated", found=found, **figures)


def losses(rows: Sequence[Mapping[str, object]], distances: Iterable[str]) -> Markup:
    """Draw the training curves of one or several runs.

    A step that is no later than the one before starts another run.

    Args:
        rows: rows of `metrics.jsonl`.
        distances: name of the distance that each run lowered.
    """
    runs, figures = _split(rows), list[_Figure]()
    for term, meaning in _TERMS.items():
        pairs = [[(measured(row, "step"), measured(row, term)) for row in run] for run in runs]
        finite = [[pair for pair in run if pair[1] is not None] for run in pairs]
        lines = [tuple(np.array(run, float).T) for run in finite if run]
        if not any(values.any() for _, values in lines):  # a term that is switched off
            continue
        last = " · ".join(decimal(values[-1], 4) for _, values in lines)
        svg = plots.curves(f"loss-{term}", f"{term} over the steps, last: {last}", lines)
        figures.append(_Figure(term, last, meaning, Markup(svg)))
    if not figures:
        return Markup()
    best = " or ".join(
        "−1, the negative cosine of equal directions" if distance == "cosine" else "0"
        for distance in dict.fromkeys(distances)
    )
    return render("losses", figures=figures, num_runs=len(runs), best=best)


def _split(rows: Sequence[Mapping[str, object]]) -> list[list[Mapping[str, object]]]:
    """Split rows where a step is no later than the one before."""
    runs: list[list[Mapping[str, object]]] = []
    previous = math.inf
    for row in rows:
        if (step := measured(row, "step")) is not None:
            if step <= previous:
                runs.append([])
            runs[-1].append(row)
            previous = step
    return runs
