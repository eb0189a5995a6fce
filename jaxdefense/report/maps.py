"""The section that draws where a model embeds people's photos and names."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from jaxdefense.report import plots
from jaxdefense.report.embedding_map import EmbeddingMap
from jaxdefense.report.frame import render
from jaxdefense.report.labels import COLOURS, SHORT

_MOST_POINTS = 400


class _Figure(NamedTuple):
    """A map: what it shows, its share of the variance, and how many of all people it shows."""

    what: str
    share: float
    shown: int
    num: int
    plot: Markup


def embedding_map(maps: Mapping[str, EmbeddingMap]) -> Markup:
    """Draw where the model embeds people's photos and names, before and after."""
    figures, still = list[_Figure](), list[str]()
    for what, found in maps.items():
        if found.moved:
            figures.append(_figure(f"map-{len(figures)}", what, found))
        else:
            still.append(what)
    return render("maps", figures=figures, still=still) if maps else Markup()


def _figure(name: str, what: str, found: EmbeddingMap) -> _Figure:
    colour_I = np.array([COLOURS[removed] for removed in found.removed])
    shown = np.argsort(colour_I, kind="stable")[:_MOST_POINTS]
    groups = []
    for removed in (False, None, True):  # the people on the list are drawn on top
        at = shown[colour_I[shown] == COLOURS[removed]]
        if len(at):
            before, after = found.before_I2[at], found.after_I2[at]
            groups.append((SHORT[removed], COLOURS[removed], before, after))
    svg = plots.moves(name, f"{what}: their places before and after", groups)
    return _Figure(what, found.share, len(shown), len(colour_I), Markup(svg))
