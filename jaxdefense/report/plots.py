"""Plots as inline SVG in the page's own colours and font, so that they suit light and dark pages.

Matplotlib draws with stand-in colours; each is then replaced by a CSS variable of the page. A plot
in a file of its own is a PNG in the colours of the light page.
"""

import dataclasses
import io
import itertools
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter
from PIL import Image

from jaxdefense.report.frame import LIGHT

_INK, _MUTED, _LINE = "#010101", "#010102", "#010103"
_SERIES = ("#010104", "#010105", "#010106")
_VARIABLES = {
    _INK: "--ink",
    _MUTED: "--muted",
    _LINE: "--line",
    **{colour: f"--series-{i}" for i, colour in enumerate(_SERIES, 1)},
}
_PAPER = {colour: LIGHT[variable] for colour, variable in _VARIABLES.items()}
_DASHES = ("-", "--", ":", "-.")
_MAX_POINTS = 300  # of a curve
_RC = {
    "font.size": 10,
    "svg.fonttype": "none",  # text stays text, in the page's font
    "text.parse_math": False,
    "axes.edgecolor": _LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "axes.labelcolor": _MUTED,
}


def bars(
    name: str,
    title: str,
    series: Sequence[str],
    groups: Sequence[tuple[str, Sequence[float | None]]],
) -> str:
    """Draw groups of horizontal bars, each with its label and value beside it.

    Args:
        name: name of the plot, unique in the page.
        title: text that is read aloud in place of the plot.
        series: what the bars of every group stand for.
        groups: heading, and a value in [0, 1] for each of `series`; None if not measured.
    """
    width, heading, row, gap = 360, 20, 19, 12  # points
    start, end = 104, 308  # of the bars
    height = len(groups) * (heading + row * len(series) + gap) - gap
    with _context(name):
        fig = Figure(figsize=(width / 72, height / 72))
        ax = fig.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        ax.set_axis_off()
        y = 0.0
        for group, values in groups:
            ax.text(0, y + 7, group, color=_INK, weight="bold", va="center")
            y += heading
            for i, (label, value) in enumerate(zip(series, values, strict=True)):
                middle, colour = y + row / 2 - 1, _SERIES[i % len(_SERIES)]
                ax.text(start - 8, middle, label, color=_MUTED, ha="right", va="center")
                ax.add_patch(_bar(start, y + 2, end - start, row - 6, _LINE))
                if value is not None:
                    length = (end - start) * min(max(value, 0), 1)
                    ax.add_patch(_bar(start, y + 2, length, row - 6, colour))
                text = "–" if value is None else f"{value:.1%}"
                ax.text(end + 8, middle, text, color=_INK, va="center")
                y += row
            y += gap
        return _svg(fig, name, title)


def curves(name: str, title: str, runs: Sequence[tuple[np.ndarray, np.ndarray]]) -> str:
    """Draw one quantity over the steps of one or several runs.

    Args:
        name: name of the plot, unique in the page.
        title: text that is read aloud in place of the plot.
        runs: steps and values of each run, finite, at least one; colour and dashes tell runs apart.
    """
    with _context(name):
        fig = Figure(figsize=(236 / 72, 150 / 72), layout="constrained")
        ax = fig.add_subplot(xlabel="step")
        for i, (steps, values) in enumerate(runs):
            marker = "o" if len(steps) == 1 else ""
            ax.plot(
                *_thin(steps, values),
                color=_SERIES[(1 + i) % len(_SERIES)],
                linewidth=1.4,
                linestyle=_DASHES[i % len(_DASHES)],
                marker=marker,
            )
        ax.grid(axis="y", color=_LINE, linewidth=0.6)
        ax.tick_params(length=0)
        ax.ticklabel_format(useOffset=False)
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
        ax.yaxis.set_major_locator(MaxNLocator(4))
        return _svg(fig, name, title)


def thresholds(name: str, title: str, lines: Sequence[tuple[str, int, bool, list[float]]]) -> str:
    """Draw the share of people with at least 1, 2, ... correct templates.

    Args:
        name: name of the plot, unique in the page.
        title: text that is read aloud in place of the plot.
        lines: label, index of the colour, whether it shows the model before, and rates in [0, 1].
    """
    with _context(name):
        fig = Figure(figsize=(360 / 72, 210 / 72), layout="constrained")
        ax = fig.add_subplot(xlabel="correct templates, at least", ylim=(-3, 103))
        for label, colour, before, values in lines:
            ax.plot(
                range(1, len(values) + 1),
                [100 * value for value in values],
                color=_SERIES[colour % len(_SERIES)],
                linewidth=1.6,
                linestyle="--" if before else "-",
                marker="o" if len(values) == 1 else "",
                label=label,
            )
        ax.set_ylabel("recognised, %")
        ax.grid(axis="y", color=_LINE, linewidth=0.6)
        ax.tick_params(length=0)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        fig.legend(loc="outside lower left", ncols=2, frameon=False, labelcolor=_INK, fontsize=9)
        return _svg(fig, name, title)


def moves(name: str, title: str, groups: Sequence[tuple[str, int, np.ndarray, np.ndarray]]) -> str:
    """Draw how points moved: a ring before, a dot after, and a line between.

    Args:
        name: name of the plot, unique in the page.
        title: text that is read aloud in place of the plot.
        groups: label, index of the colour, and points [N, 2] before and after.
    """
    with _context(name):
        fig = Figure(figsize=(330 / 72, 300 / 72), layout="constrained")
        ax = fig.add_subplot(aspect="equal", adjustable="datalim")
        for label, colour, before_N2, after_N2 in groups:
            c = _SERIES[colour % len(_SERIES)]
            segments = np.stack([before_N2, after_N2], 1).tolist()
            ax.add_collection(LineCollection(segments, colors=c, linewidths=0.6, alpha=0.45))
            ax.scatter(*before_N2.T, s=16, facecolors="none", edgecolors=c, linewidths=0.9)
            ax.scatter(*after_N2.T, s=15, color=c, linewidths=0, label=label)
        ax.autoscale_view()
        ax.set_axis_off()
        fig.legend(loc="outside lower left", ncols=2, frameon=False, labelcolor=_INK, fontsize=9)
        return _svg(fig, name, title)


@dataclasses.dataclass(frozen=True)
class Line:
    """A quantity against a number, each point over several runs.

    Fields:
        label: label of the line.
        xs: values of the number, above 0.
        means: mean of the quantity at each of `xs`.
        stds: standard deviation at each of `xs`, 0 where there is only one run.
        colour: index into `_SERIES`.
        dash: index into `_DASHES`, modulo its length.
    """

    label: str
    xs: Sequence[float]
    means: Sequence[float]
    stds: Sequence[float]
    colour: int
    dash: int


def spreads(
    name: str,
    title: str,
    xlabel: str,
    lines: Sequence[Line],
    before: float | None,
    limits: tuple[float, float] | None,
) -> str:
    """Draw means with their standard deviations against a number, on an axis in powers of two.

    Lines are shifted a little sideways, so that none hides another.

    Args:
        name: name of the plot, unique in the page.
        title: text that is read aloud in place of the plot.
        xlabel: label of the number.
        lines: lines to draw, at least one.
        before: value before the defense, to compare with; None if there is none.
        limits: limits of the means' axis, which then shows percentages; None to fit the lines.
    """
    with _context(name):
        fig = Figure(figsize=(300 / 72, 230 / 72), layout="constrained")
        ax = fig.add_subplot(xlabel=xlabel)
        ax.set_xscale("log", base=2)
        if before is not None:
            ax.axhline(
                before, color=_SERIES[2], linewidth=1.4, linestyle=_DASHES[2], label="before"
            )
        for i, line in enumerate(lines):
            beside = 2 ** (0.07 * (i - (len(lines) - 1) / 2))
            ax.errorbar(
                np.multiply(line.xs, beside),
                line.means,
                line.stds,
                color=_SERIES[line.colour],
                linewidth=1.4,
                linestyle=_DASHES[line.dash % len(_DASHES)],
                marker="o",
                markersize=3,
                capsize=2,
                elinewidth=0.8,
                label=line.label,
            )
        ax.grid(axis="y", color=_LINE, linewidth=0.6)
        ax.tick_params(which="both", length=0)
        ticks = sorted({x for line in lines for x in line.xs})
        ax.set_xticks(ticks, [f"{x:g}" for x in ticks])
        ax.set_xticks([], minor=True)
        if limits:
            ax.set_ylim(*limits)
            ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        else:
            ax.ticklabel_format(axis="y", useOffset=False)
            ax.yaxis.set_major_locator(MaxNLocator(4))
        fig.legend(
            loc="outside lower left", ncols=2, frameon=False, labelcolor=_INK, fontsize=9,
            handlelength=2.6,
        )  # fmt: skip
        return _svg(fig, name, title)


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A share at places of an axis, with its label beside its end.

    Fields:
        label: label of the line.
        places: index of each place.
        percents: share at each place, in %.
        colour: index into `_SERIES`.
        dash: index into `_DASHES`; None for a thin line of long dashes, to compare with. Of a
            single place, such a line goes all across.
        marker: Matplotlib's, "" for none.
        band: interval at each place, in %; empty for none.
    """

    label: str
    places: Sequence[int]
    percents: Sequence[float]
    colour: int
    dash: int | None
    marker: str
    band: Sequence[tuple[float, float]]


def labelled(
    name: str, title: str, xlabel: str, ticks: Sequence[str], lines: Sequence[Labelled]
) -> str:
    """Draw shares over a few places, evenly spaced, each line with its label.

    Args:
        name: name of the plot, unique in the page.
        title: text that is read aloud in place of the plot.
        xlabel: what the places are of.
        ticks: label of each place.
        lines: lines to draw, at least one.
    """
    width, height, left, bottom, right, top = 372, 220, 34, 40, 132, 8  # points
    inner = height - bottom - top
    ends = _apart([line.percents[-1] for line in lines], min(1300 / inner, 106 / len(lines)))
    with _context(name):
        fig = Figure(figsize=(width / 72, height / 72))
        box = (left / width, bottom / height, (width - left - right) / width, inner / height)
        ax = fig.add_axes(box, xlabel=xlabel, ylim=(-3, 103))
        last = len(ticks) - 1
        ax.set_xlim(-0.05 * max(last, 1), 1.05 * last if last else 0.05)
        for line, end in zip(lines, ends, strict=True):
            c, places, percents = _SERIES[line.colour], line.places, line.percents
            if line.dash is None and len(places) == 1:
                places, percents = (0, last), [*percents] * 2
            if line.band:
                low, high = zip(*line.band, strict=True)
                ax.fill_between(places, low, high, color=c, alpha=0.2, lw=0)
            ax.plot(
                places,
                percents,
                color=c,
                linewidth=1 if line.dash is None else 1.6,
                linestyle=(0, (7, 3)) if line.dash is None else _DASHES[line.dash],
                marker=line.marker,
                markersize=4,
                clip_on=False,
            )
            x = ax.get_xlim()[1]
            beside = x + 14 / (width - left - right) * (x - ax.get_xlim()[0])
            from_end = ([places[-1], beside], [percents[-1], end])
            ax.plot(*from_end, color=c, linewidth=0.6, clip_on=False, scalex=False)
            ax.text(beside, end, f" {line.label}", color=_INK, fontsize=9, va="center")
        ax.grid(axis="y", color=_LINE, linewidth=0.6)
        ax.tick_params(length=0)
        ax.set_yticks(range(0, 101, 25))
        ax.set_xticks(range(len(ticks)), ticks)
        return _svg(fig, name, title)


def _apart(values: Sequence[float], least: float) -> list[float]:
    """Move values apart, in their order, by at least `least`, and up to 103 at most."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    moved = list(values)
    for low, high in itertools.pairwise(order):
        moved[high] = max(moved[high], moved[low] + least)
    for i, n in enumerate(reversed(order)):
        moved[n] = min(moved[n], 103 - i * least)
    return moved


def costs(
    xlabel: str, xs: Sequence[float], panels: Mapping[str, Mapping[str, Sequence[float]]]
) -> bytes:
    """Draw costs against size on logarithmic axes, with one panel for each unit.

    Args:
        xlabel: label of the sizes.
        xs: sizes, above 0.
        panels: unit -> label -> a cost at each size, above 0.

    Returns:
        a PNG file.
    """
    settings: dict[Any, Any] = {name: _PAPER.get(x, x) for name, x in _RC.items()}
    with matplotlib.rc_context(settings):
        fig = Figure(figsize=(640 / 72, 250 / 72), layout="constrained")
        number = 0
        for ax, (unit, lines) in zip(
            fig.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
        ):
            ax.set(xlabel=xlabel, title=unit, xscale="log", yscale="log")
            for label, ys in lines.items():
                ax.plot(
                    xs,
                    ys,
                    color=_PAPER[_SERIES[number % len(_SERIES)]],
                    linewidth=1.4,
                    linestyle=_DASHES[number // len(_SERIES) % len(_DASHES)],
                    marker="o",
                    markersize=3,
                    label=label,
                )
                number += 1
            least, most = ax.get_ylim()
            room = max(1.0, 10 / (most / least)) ** 0.5  # at least a decade, else noise fills it
            ax.set_ylim(least / room, most * room)
            between = (1, 2, 5) if most / least < 100 else (1,)
            ax.yaxis.set_major_locator(LogLocator(subs=between))
            ax.yaxis.set_major_formatter(lambda y, _: f"{y:,g}")
            ax.xaxis.set_major_formatter(EngFormatter(sep=""))
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_minor_formatter(NullFormatter())
            ax.grid(axis="y", color=_PAPER[_LINE], linewidth=0.6)
            ax.tick_params(which="both", length=0)
        fig.legend(
            loc="outside right center", frameon=False, labelcolor=_PAPER[_INK], fontsize=9,
            handlelength=2.6,
        )  # fmt: skip
        return _png(fig)


def _context(name: str) -> AbstractContextManager[None]:
    settings: dict[Any, Any] = _RC | {"svg.hashsalt": name}
    return matplotlib.rc_context(settings)


def _bar(x: float, y: float, width: float, height: float, colour: str) -> Rectangle:
    return Rectangle((x, y), width, height, facecolor=colour, edgecolor="none")


def _thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average neighbouring points, so that at most `_MAX_POINTS` are left."""
    edges = np.unique(np.linspace(0, len(steps), _MAX_POINTS + 1).astype(int))
    counts = np.diff(edges)
    return tuple(np.add.reduceat(x, edges[:-1]) / counts for x in (steps, values))  # pyright: ignore


def _png(fig: Figure) -> bytes:
    drawn, file = io.BytesIO(), io.BytesIO()
    fig.savefig(drawn, format="png", dpi=96)
    # With few colours the file has a third of the bytes.
    Image.open(drawn).convert("RGB").quantize(32).save(file, format="png", optimize=True)
    return file.getvalue()


def _svg(fig: Figure, name: str, title: str) -> str:
    buffer = io.StringIO()
    left_out = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    fig.savefig(buffer, format="svg", transparent=True, metadata=left_out)
    body = buffer.getvalue().partition("<svg")[2].partition(">")[2]
    # Its style sheet would apply to the whole page; comments repeat the labels.
    body = re.sub(r"<!--.*?-->|<defs>\s*<style.*?</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", body)  # ids must be unique in a page
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    width, height = fig.get_size_inches() * 72
    return (
        f'<svg class="plot" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{escape(title)}">{body.strip()}'
    )
