"""The report of a sweep: figures in one self-contained HTML file, and the numbers beside it.

The page uses no network and no scripts; see `report/frame.py`.
"""

import csv
import dataclasses
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from jaxdefense.errors import InputError
from jaxdefense.figures import count, decimal, duration, percent
from jaxdefense.files import write_json, write_text
from jaxdefense.report import frame, plots
from jaxdefense.report.labels import LEAST_PEOPLE
from jaxdefense.results import CellSummary, UndefendedSummary, read_settings
from jaxdefense.sweep.results import GROUPS, RATES, Finished, collect

_PEOPLE = {"removed_tpr": "removed", "others_tpr": "others"}
_NAMESAKES = {
    "namesakes_tpr": "namesakes of the removed",
    "crossed_tpr": "first and last name of removed",
}
_RIGHT = {"removed_photos_right": "removed", "others_photos_right": "others"}
_OBJECTS = {"top1": "top-1", "top5": "top-5"}
_HEADS = {
    "removed_tpr": "Removed, TPR",
    "removed_fnr": "Removed, FNR",
    "others_tpr": "Others, TPR",
    "top1": "Objects, top-1",
    "top5": "Objects, top-5",
    "sim_clean": "Similarity",
    "image_sim_clean": "Similarity, photos",
    "removed_tpr_majority": "Removed, TPR by majority",
    "removed_photos_right": "Removed, photos named right",
    "removed_mean_templates": "Removed, mean templates",
    "removed_known_tpr": "Removed, TPR of those known before",
    "others_tpr_majority": "Others, TPR by majority",
    "others_photos_right": "Others, photos named right",
    "others_mean_templates": "Others, mean templates",
    "others_known_tpr": "Others, TPR of those known before",
    "namesakes_tpr": "Namesakes of removed, TPR",
    "namesakes_photos_right": "Namesakes of removed, photos named right",
    "crossed_tpr": "First and last name of removed, TPR",
    "crossed_photos_right": "First and last name of removed, photos named right",
}
# What counts the people of a rate that is of some of them alone.
_KNOWN = {f"{who}_known_tpr": f"{who}_num_known" for who in ("removed", "others")} | {
    f"{who}_{what}": f"num_{who}"
    for who in ("namesakes", "crossed")
    for what in ("tpr", "photos_right")
}
_NUM_PEOPLE = "people removed"
_WHAT = {"text": "names", "image": "faces", "both": "names and faces"}
_SIMILARITY = {"sim_clean": "", "image_sim_clean": "photos"}


@dataclasses.dataclass(frozen=True)
class Point:
    """Defenses that differ only in their seed.

    Fields:
        w_weight, n: see `CellSummary`.
        seeds: number of seeds.
        mean: mean of each of RATES and GROUPS over seeds; None if no seed has a figure. Of those
            known before, who differ in number from seed to seed, the part of all of them.
        std: sample standard deviation; None also if only one seed has a figure.
        num_known: those known before, of all seeds, by the rate that is of them alone.
    """

    w_weight: float
    n: int
    seeds: int
    mean: dict[str, float | None]
    std: dict[str, float | None]
    num_known: dict[str, int]

    def flat(self) -> dict[str, float | None]:
        """Return the point as one flat mapping."""
        out: dict[str, float | None] = {"w_weight": self.w_weight, "n": self.n, "seeds": self.seeds}
        for rate in self.mean:
            out |= {f"{rate}_mean": self.mean[rate], f"{rate}_std": self.std[rate]}
        return out

    def num_people(self, rate: str) -> int:
        """Return how many people, of all seeds, a rate of those removed is of."""
        return self.num_known.get(rate, self.n * self.seeds)


def write_sweep_report(sweep: Path, path: Path) -> str:
    """Write the report of a sweep, and its numbers as `.json` and `.csv` beside it.

    Args:
        sweep: directory of the sweep, finished or not.
        path: HTML file to write.

    Returns:
        the headline.

    Raises:
        InputError: no cell is finished, or a file of one cannot be read.
    """
    found = collect(sweep)
    if not (cells := found.cells):
        raise InputError(f"`{sweep}` holds no finished cell; run `jaxdefense sweep` first.")
    settings = frame.flatten(read_settings(sweep))
    points = average(cells)
    sections = [
        frame.tiles(_tiles(found)),
        frame.section("Against the number of people removed", _figures(points, found.before)),
        frame.section("Mean and spread", _points(points)),
        frame.section("Every defense", _cells(cells)),
        frame.section("What this does and does not show", frame.render("sweep_limits")),
        frame.settings(settings),
    ]
    headline = _headline(cells)
    page = frame.page("Sweep over the number of people", headline, sections)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        path.with_suffix(".json"), found.as_json() | {"points": [point.flat() for point in points]}
    )
    write_text(path.with_suffix(".csv"), table(points))
    write_text(path, page)
    return headline


def average(cells: Sequence[CellSummary]) -> list[Point]:
    """Average over seeds; return one point for each `w_weight` and `n`, sorted."""
    groups: dict[tuple[float, int], list[CellSummary]] = {}
    for cell in cells:
        groups.setdefault((cell.w_weight, cell.n), []).append(cell)
    points = []
    for (w_weight, n), group in sorted(groups.items()):
        mean, std = dict[str, float | None](), dict[str, float | None]()
        for rate in (*RATES, *GROUPS):
            values = [x for cell in group if (x := getattr(cell, rate)) is not None]
            mean[rate] = float(np.mean(values)) if values else None
            std[rate] = float(np.std(values, ddof=1)) if len(values) > 1 else None
        num_known = dict[str, int]()
        for rate in _KNOWN:
            nums = [_num_people(cell, rate) for cell in group]
            num_known[rate] = total = sum(nums)
            pairs = zip(group, nums, strict=True)
            still = sum(num * (getattr(cell, rate) or 0.0) for cell, num in pairs)
            mean[rate] = still / total if total else None
        points.append(Point(w_weight, n, len(group), mean, std, num_known))
    return points


def table(points: Sequence[Point]) -> str:
    """Write one line of CSV for each point; a field that was not measured is empty."""
    file = io.StringIO()
    write = csv.writer(file, lineterminator="\n").writerow
    write(points[0].flat())
    for point in points:
        write(["" if value is None else value for value in point.flat().values()])
    return file.getvalue()


def _headline(cells: Sequence[CellSummary]) -> str:
    defenses = count(len(cells), "defense")
    most = count(max(cell.n for cell in cells), "person", "people")
    return (
        f"{defenses} of one model, removing the {_WHAT[cells[0].tower]} of up to {most}; each was "
        "attacked and "
        "evaluated."
    )


def _tiles(found: Finished) -> Iterable[tuple[str, str, str]]:
    cells, before = found.cells, found.before
    yield f"{len(cells)}", "", "defenses"
    yield f"{len({cell.seed for cell in cells})}", "", "seeds"
    if before:
        yield percent(before.tpr), f"of {before.num_identities}", "recognised before"
        if before.top1 is not None:
            yield percent(before.top1), "", "objects classified correctly before"


def _figures(points: Sequence[Point], before: UndefendedSummary | None) -> Markup:
    figures = [
        ("people", "Recognised by the attack", _PEOPLE, "tpr"),
        ("namesakes", "Who shares a name with them recognised", _NAMESAKES, "tpr"),
        ("photos", "Their photos named right", _RIGHT, "photos_right"),
        ("objects", "Objects classified correctly", _OBJECTS, "top1"),
        ("similarity", "Similarity to the original", _SIMILARITY, ""),
    ]
    drawn = []
    for name, title, rates, key in figures:
        if lines := _lines(points, rates):
            what = f"{title}, against the number of {_NUM_PEOPLE}: see the table below"
            limits = (-0.03, 1.03) if key else None
            svg = plots.spreads(name, what, _NUM_PEOPLE, lines, getattr(before, key, None), limits)
            drawn.append((title, Markup(svg)))
    return frame.render("sweep_figures", figures=drawn)


def _lines(points: Sequence[Point], rates: dict[str, str]) -> list[plots.Line]:
    weights = sorted({point.w_weight for point in points})
    lines = []
    for colour, (rate, label) in enumerate(rates.items()):
        for dash, weight in enumerate(reversed(weights)):
            known = [
                (point.n, mean, point.std[rate] or 0.0)
                for point in points
                if point.w_weight == weight and (mean := point.mean[rate]) is not None
            ]
            if known:
                xs, means, stds = zip(*known, strict=True)
                what = f"{label}, w = {weight:g}" if label else f"w = {weight:g}"
                lines.append(plots.Line(what, xs, means, stds, colour, dash))
    return lines


def _points(points: Sequence[Point]) -> Markup:
    tables = []
    for rates in (RATES, GROUPS):
        known = [rate for rate in rates if any(p.mean[rate] is not None for p in points)]
        rows = [
            [
                f"{point.n}",
                f"{point.w_weight:g}",
                f"{point.seeds}",
                *(
                    _text(rate, point.mean[rate], point.std[rate], point.num_people(rate))
                    for rate in known
                ),
            ]
            for point in points
        ]
        if known:
            head = ("Removed", "w", "Seeds", *(_HEADS[rate] for rate in known))
            tables.append((head, rows))
    return frame.render("sweep_points", tables=tables)


def _cells(cells: Sequence[CellSummary]) -> Markup:
    tables = []
    for every in (RATES, GROUPS):
        rates = [x for x in every if any(getattr(cell, x) is not None for cell in cells)]
        if not rates:
            continue
        rows = [
            [
                f"{cell.n}",
                f"{cell.seed}",
                f"{cell.w_weight:g}",
                *(
                    _text(rate, getattr(cell, rate), None, _num_people(cell, rate))
                    for rate in rates
                ),
                duration(cell.seconds),
            ]
            for cell in cells
        ]
        head = ("Removed", "Seed", "w", *(_HEADS[rate] for rate in rates), "Time")
        tables.append((head, rows))
    return frame.render("sweep_cells", num=len(cells), tables=tables)


def _num_people(cell: CellSummary, rate: str) -> int:
    """Return how many people a rate of those removed is of."""
    num = getattr(cell, _KNOWN[rate]) if rate in _KNOWN else cell.n
    return num or 0


def _text(rate: str, mean: float | None, std: float | None, num_people: int) -> str:
    """Write a figure; for too few people, a count rather than a percentage."""
    if mean is None:
        return "–"
    if rate in _SIMILARITY or rate.endswith("_mean_templates"):
        digits = 3 if rate in _SIMILARITY else 1
        more = "" if std is None else f" ± {decimal(std, digits)}"
        return decimal(mean, digits) + more
    if (rate.startswith("removed_") or rate in _KNOWN) and num_people < LEAST_PEOPLE:
        of_people = not rate.endswith("_photos_right")
        return f"{round(mean * num_people)} of {num_people}" if of_people else "–"
    return percent(mean) + ("" if std is None else f" ± {std:.1%}")
