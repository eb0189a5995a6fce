"""The page of a proof: what attacks find in a model before and after people were removed.

The page shows everything at once, so that it can be printed: nothing on it is to be opened.
"""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from jaxdefense.figures import duration, percent
from jaxdefense.files import write_text
from jaxdefense.report import frame, plots
from jaxdefense.report.labels import LEAST_PEOPLE
from jaxdefense.report.proof_labels import (
    DECIMALS,
    GROUPS,
    MODELS,
    OVER_STRANGERS,
    PARTS,
    VALUES,
    figure_label,
    group_label,
    how_many,
    part_label,
)
from jaxdefense.results import (
    ABOVE,
    BEFORE,
    BELOW,
    DEFENDED,
    KEPT,
    NEVER_SHOWN,
    OTHERS,
    PROOF_RATES,
    REMOVED,
    STRANGERS,
    Groups,
    Mean,
    Point,
    ProofCurve,
    ProofPart,
    ProofSummary,
)

_MOST_PEOPLE = 200  # a line each; all of them are in summary.json
_MOST_MOVED = 10
_GAIN = ("Removed minus strangers", "points")
# Colour, dash and mark of a line, by group.
_LINES = {
    REMOVED: (0, 0, "o"),
    OTHERS: (1, 1, "s"),
    KEPT: (1, 1, "s"),
    NEVER_SHOWN: (1, 3, "^"),
    STRANGERS: (2, 2, "D"),
}


class Cell(NamedTuple):
    """A cell of a table.

    Fields:
        text: figure.
        interval: its 95 % interval, of shares.
        more: further lines, in small print.
        mark: why the figure is not at the level that is right.
    """

    text: str = "–"
    interval: tuple[float, float] | None = None
    more: Sequence[str] = ()
    mark: str = ""


class Row(NamedTuple):
    """A row of a table: its label, a line below it in small print, and its cells."""

    label: str
    more: str
    cells: list[Cell]


class Block(NamedTuple):
    """Rows under a heading."""

    label: str
    more: str
    rows: list[Row]


class Table(NamedTuple):
    """A table: the heads of its columns, and its rows in blocks."""

    head: list[str]
    blocks: list[Block]


class Panel(NamedTuple):
    """Tables under a heading, with what it means and a drawing."""

    heading: str
    more: str
    drawing: Markup
    tables: list[Table]


def write_proof_page(summary: ProofSummary, settings: Mapping[str, object], path: Path) -> None:
    """Write the page of a proof as one HTML file; see `proof_page`."""
    write_text(path, proof_page(summary, settings))


def proof_page(summary: ProofSummary, settings: Mapping[str, object]) -> str:
    """Write the page of a proof.

    Args:
        summary: what was found.
        settings: settings of the proof, flat or nested.

    Returns:
        HTML; the same for the same arguments.
    """
    section, render = frame.section, frame.render
    verdict = summary.verdict or ["What was tested stands below."]
    parts = {name: summary.parts[name] for name in _ordered(summary.parts, PARTS)}
    seconds = [(part_label(name).label, part["seconds"]) for name, part in parts.items()]
    untested = {"missing": summary.not_tested, "absent": summary.absent}
    sections = [
        render("proof_verdict", sentences=verdict[1:]) if verdict[1:] else Markup(),
        frame.tiles(_tiles(summary)),
        section("What was not tested", _if(any(untested.values()), "proof_untested", **untested)),
        section("Who was tested, and how to read the tables", _reading(summary)),
        *(_part_section(i, name, part, summary) for i, (name, part) in enumerate(parts.items())),
        section(
            "What was done, and how long it took",
            _if(bool(seconds), "proof_seconds", lines=seconds, all=sum(x for _, x in seconds)),
        ),
        section("What this does and does not show", render("proof_limits")),
        section("Dates and digests", render("proof_facts", values=_facts(summary))),
        section("Settings", _if(bool(settings), "proof_facts", values=_settings(settings))),
    ]
    return frame.page("Proof of a removal", verdict[0].replace("`", ""), sections)


def _if(there: bool, template: str, **given: object) -> Markup:
    return frame.render(template, **given) if there else Markup()


def _ordered(found: Iterable[str], known: Iterable[str]) -> list[str]:
    """Put keys in the order of those known; unknown ones follow as they came."""
    keys, first = list(found), list(known)
    return [x for x in first if x in keys] + [x for x in keys if x not in first]


def _groups(found: Iterable[Iterable[str]]) -> list[str]:
    """List the groups: the removed first, strangers last."""
    keys = dict.fromkeys(group for groups in found for group in groups)
    order = _ordered(keys, GROUPS)
    return [x for x in order if x != STRANGERS] + [x for x in order if x == STRANGERS]


def _model_label(model: str) -> str:
    return MODELS.get(model, model)


# What is above the parts


def _tiles(summary: ProofSummary) -> Iterator[tuple[str, str, str]]:
    """Give who was removed, and how many of their and others' photos are named right."""
    num = len(summary.groups.get(REMOVED, []))
    yield f"{num:,}", "", f"{'person' if num == 1 else 'people'} removed, with photos to attack"
    models = summary.parts["known"]["figures"].get("photos_right", {}) if _knows(summary) else {}
    if DEFENDED not in models:
        return
    for group in _groups(models.values()):
        before, now = (models.get(model, {}).get(group) for model in (BEFORE, DEFENDED))
        if now and now["num"] >= LEAST_PEOPLE:
            label = f"{group_label(group).lower()}: photos named right"
            label += f"; before, {percent(before['mean'])}" if before else ""
            yield percent(now["mean"]), "", label


def _knows(summary: ProofSummary) -> bool:
    return "known" in summary.parts


def _reading(summary: ProofSummary) -> Markup:
    """Say who was tested in which models, and how the tables are read."""
    order = _groups([summary.groups])
    groups = [
        (group_label(x), GROUPS[x][1] if x in GROUPS else "", len(summary.groups[x]))
        for x in order
        if summary.groups[x]
    ]
    people = summary.parts["known"]["people"] if _knows(summary) else {}
    names = [name for name in summary.groups.get(REMOVED, []) if name not in people]
    return frame.render(
        "proof_reading",
        groups=groups,
        names=names[:_MOST_PEOPLE],
        more=len(names) - _MOST_PEOPLE,
        retrained=bool(summary.reference_sha256),
        strangers=len(summary.groups.get(STRANGERS, [])) >= LEAST_PEOPLE,
    )


# Parts


def _part_section(number: int, name: str, part: ProofPart, summary: ProofSummary) -> Markup:
    """Write what a part found."""
    label = part_label(name)
    panels = [
        _curve(f"proof-{number}-{i}", name, figure, curve)
        for i, (figure, curve) in enumerate(part["curves"].items())
    ]
    panels = [panel for panel in (*panels, *_people(part, summary)) if panel.tables]
    body = frame.render(
        "proof_part",
        how=label.how,
        figures=_figures(name, part["figures"]),
        panels=panels,
        drawn=any(panel.drawing for panel in panels),
        band=any(_has_strangers(curve) for curve in part["curves"].values()),
        notes=part["notes"],
        seconds=part["seconds"],
    )
    return frame.section(label.question, body)


def _figures(part: str, figures: Mapping[str, Mapping[str, Groups]]) -> Table:
    """Show each figure: a row for each group, a column for each model."""
    models = _ordered(dict.fromkeys(x for found in figures.values() for x in found), MODELS)
    blocks = []
    for figure, found in figures.items():
        rows = []
        for group in _groups(found.values()):
            means = [found.get(model, {}).get(group) for model in models]
            nums = sorted({mean["num"] for mean in means if mean})
            each = len(nums) > 1  # differs between models
            cells = [
                _cell(mean, figure, how_many(group, mean["num"]) if mean and each else "")
                for mean in means
            ]
            if group == REMOVED and DEFENDED in found:
                at = models.index(DEFENDED)
                cells[at] = cells[at]._replace(mark=_mark(found[DEFENDED]))
            rows.append(Row(group_label(group), "" if each else how_many(group, nums[0]), cells))
        if part in OVER_STRANGERS and rows:
            rows.append(_gain([found.get(model, {}) for model in models]))
        if rows:
            blocks.append(Block(*figure_label(figure), rows))
    return Table(["", *map(_model_label, models)], blocks)


def _cell(mean: Mean | None, figure: str, more: str = "") -> Cell:
    """Write a mean and its interval; of few people a count, or nothing."""
    if mean is None or not math.isfinite(mean["mean"]):
        return Cell()
    value, num = mean["mean"], mean["num"]
    lines = [more] if more else []
    if num < LEAST_PEOPLE:
        text = f"{round(value * num)} of {num}" if figure in PROOF_RATES else "–"
        return Cell(text, more=lines)
    if figure in DECIMALS:
        low, high = mean["interval"]
        return Cell(_signed(f"{value:.2f}"), None, [_signed(f"{low:.2f} to {high:.2f}"), *lines])
    return Cell(_signed(percent(value)), mean["interval"], lines)


def _signed(text: str) -> str:
    return text.replace("-", "−")


def _enough(groups: Groups, *names: str) -> bool:
    """Tell whether each of these groups has enough people for a percentage."""
    return all(name in groups and groups[name]["num"] >= LEAST_PEOPLE for name in names)


def _mark(groups: Groups) -> str:
    """Say whether the removed differ from strangers by more than chance, with 95 % confidence."""
    if not _enough(groups, REMOVED, STRANGERS):
        return ""
    low, high = _difference(groups[REMOVED], groups[STRANGERS])
    return "above strangers" if low > 0 else "below strangers" if high < 0 else ""


def _gain(models: Iterable[Groups]) -> Row:
    """Say how much more is found of the removed than of strangers, in each model."""
    return Row(*_GAIN, [_gained(groups) for groups in models])


def _gained(groups: Groups) -> Cell:
    """Subtract the mean of strangers from that of the removed."""
    if not _enough(groups, REMOVED, STRANGERS):
        return Cell()
    gain = groups[REMOVED]["mean"] - groups[STRANGERS]["mean"]
    low, high = _difference(groups[REMOVED], groups[STRANGERS])
    between = f"{100 * low:+.1f} to {100 * high:+.1f}"
    return Cell(_signed(f"{100 * gain:+.1f}"), None, [_signed(between)])


def _difference(x: Mean, y: Mean) -> tuple[float, float]:
    """Give the 95 % interval of a difference of means.

    It is that of Zou and Donner, Construction of confidence limits about effect measures,
    Statistics in Medicine 2008, equation 7, of independent means.
    """
    gain = x["mean"] - y["mean"]
    low = gain - math.hypot(x["mean"] - x["interval"][0], y["interval"][1] - y["mean"])
    high = gain + math.hypot(x["interval"][1] - x["mean"], y["mean"] - y["interval"][0])
    return low, high


def people_as_csv(summary: ProofSummary) -> str:
    """Write a line a person: name, group, and what the parts found of them; empty if nothing."""
    found = {name: part["people"] for name, part in summary.parts.items()}
    columns = dict.fromkeys(
        (part, value) for part, people in found.items() for x in people.values() for value in x
    )
    file = io.StringIO()
    write = csv.writer(file, lineterminator="\n").writerow
    write(["name", "group", *(f"{part}.{value}" for part, value in columns)])
    for group, names in summary.groups.items():
        for name in names:
            values = [found[part].get(name, {}).get(value, "") for part, value in columns]
            write([name, group, *values])
    return file.getvalue()


# Curves


def _curve(name: str, part: str, figure: str, curve: ProofCurve) -> Panel:
    """Show a curve: a block for each model, a row for each place, a column for each group."""
    models = [x for x in _ordered(curve["models"], MODELS) if curve["models"][x]]
    groups = _groups(point["groups"] for x in models for point in curve["models"][x])
    sizes = [_sizes(curve["models"][model]) for model in models]
    blocks = [
        Block(
            _model_label(model),
            "" if size in sizes[:i] else size,
            [_at(point, figure, groups, model) for point in curve["models"][model]],
        )
        for i, (model, size) in enumerate(zip(models, sizes, strict=True))
    ]
    unit = curve["unit"][:1].upper() + curve["unit"][1:]
    tables = [Table([unit, *map(group_label, groups)], blocks)] if blocks else []
    if blocks and part in OVER_STRANGERS:
        tables.append(_gains(unit, curve, models))
    return Panel(*figure_label(figure), _draw(name, figure, curve), tables)


def _at(point: Point, figure: str, groups: Iterable[str], model: str) -> Row:
    """Show what was measured at a place of a curve."""
    found = point["groups"]
    cells = [_cell(found.get(group), figure) for group in groups]
    if model == DEFENDED and REMOVED in found:
        cells[0] = cells[0]._replace(mark=_mark(found))
    return Row(f"{point['at']:g}", "", cells)


def _sizes(points: Iterable[Point]) -> str:
    """Say how large the groups are."""
    found = [point["groups"] for point in points]
    nums = {x: sorted({g[x]["num"] for g in found if x in g}) for x in _groups(found)}
    return ", ".join(
        f"{group_label(group)}: {how_many(group, num[-1])}" for group, num in nums.items()
    )


def _gains(unit: str, curve: ProofCurve, models: Sequence[str]) -> Table:
    """Show what a curve gains over strangers: a row for each place, a column for each model."""
    at = {
        model: {point["at"]: point["groups"] for point in curve["models"][model]}
        for model in models
    }
    rows = [
        Row(f"{x:g}", "", [_gained(at[model].get(x, {})) for model in models])
        for x in sorted({x for points in at.values() for x in points})
    ]
    return Table([unit, *map(_model_label, models)], [Block(*_GAIN, rows)])


def _has_strangers(curve: ProofCurve) -> bool:
    points = curve["models"].get(DEFENDED, [])
    return bool(points) and all(_enough(point["groups"], STRANGERS) for point in points)


def _draw(name: str, figure: str, curve: ProofCurve) -> Markup:
    """Draw a curve: all groups of the defended model, and the removed of the others."""
    places = sorted({x["at"] for points in curve["models"].values() for x in points})
    lines = []
    for model in _ordered(curve["models"], MODELS):
        points = curve["models"][model]
        main = model == DEFENDED or DEFENDED not in curve["models"]
        for group in _groups(x["groups"] for x in points):
            if main or group == REMOVED:
                lines += _line(points, group, places, "" if main else _model_label(model))
    if not lines:
        return Markup()
    label, _ = figure_label(figure)
    title = f"{label}, over {curve['unit']}, as in the table: {', '.join(x.label for x in lines)}"
    ticks = [f"{x:g}" for x in places]
    return Markup(plots.labelled(name, title, curve["unit"], ticks, lines))


def _line(
    points: Iterable[Point], group: str, places: list[float], other: str
) -> Iterator[plots.Labelled]:
    """Make the line of a group with enough people; `other` names a model to compare with."""
    found = [(x["at"], x["groups"][group]) for x in points if group in x["groups"]]
    found = [(at, mean) for at, mean in found if mean["num"] >= LEAST_PEOPLE]
    if not found:
        return
    colour, dash, mark = _LINES.get(group, (1, 3, "v"))
    label = group_label(group).lower()
    bands = [(100 * mean["interval"][0], 100 * mean["interval"][1]) for _, mean in found]
    yield plots.Labelled(
        label=f"{label}, {other.lower()}" if other else label,
        places=[places.index(at) for at, _ in found],
        percents=[100 * mean["mean"] for _, mean in found],
        colour=colour,
        dash=None if other else dash,
        marker="" if other else mark,
        band=bands if group == STRANGERS and not other else [],
    )


# People


def _people(part: ProofPart, summary: ProofSummary) -> Iterator[Panel]:
    """Show the removed, one a line, and those of the others who lost or gained most."""
    people = part["people"]
    outside = "above" in part["figures"] or "below" in part["figures"]
    keys = dict.fromkeys(key for values in people.values() for key in values)
    models = _ordered(dict.fromkeys(key.rpartition(".")[2] for key in keys if "." in key), MODELS)
    legend = _legend(dict.fromkeys(key.rpartition(".")[0] or key for key in keys))
    head = ["Person", *map(_model_label, models)]
    removed = [name for name in summary.groups.get(REMOVED, []) if name in people]
    removed.sort(key=lambda name: _worst_first(name, people[name], outside))
    rows = [_person(name, people[name], models, outside) for name in removed[:_MOST_PEOPLE]]
    more = len(removed) - _MOST_PEOPLE
    heading = f"Each person removed{f'; {more:,} more are in summary.json' if more > 0 else ''}"
    if rows:
        yield Panel(heading, legend, Markup(), [Table(head, [Block("", "", rows)])])
    apart = {*removed, *summary.groups.get(STRANGERS, [])}
    changes = {name: _change(values) for name, values in people.items() if name not in apart}
    moved = sorted(
        (name for name, change in changes.items() if change),
        key=lambda name: (-abs(changes[name]), name),
    )[:_MOST_MOVED]
    moved.sort(key=lambda name: (changes[name], name))
    rows = [_person(name, people[name], models, False, changes[name]) for name in moved]
    heading = f"Others who changed most: {len(rows)} of {len(changes):,}"
    if rows:
        yield Panel(heading, legend, Markup(), [Table(head, [Block("", "", rows)])])


def _change(values: Mapping[str, float]) -> float:
    """Return how much more of a person's photos are named right than before."""
    before, after = (values.get(f"photos_right.{model}") for model in (BEFORE, DEFENDED))
    return 0.0 if before is None or after is None else after - before


def _worst_first(name: str, values: Mapping[str, float], outside: bool) -> tuple[object, ...]:
    """Order those removed: outside of strangers, then those whose photos are named right most."""
    is_outside = outside and bool(_side(values))
    return not is_outside, -values.get(f"photos_right.{DEFENDED}", 0.0), name


def _side(values: Mapping[str, float]) -> str:
    """Say on which side of nearly all strangers a person lies, if on any."""
    place = values.get(f"percentile.{DEFENDED}", 0.5)
    return "still close" if place > ABOVE else "pushed further" if place < BELOW else ""


def _person(
    name: str,
    values: Mapping[str, float],
    models: Iterable[str],
    outside: bool,
    change: float | None = None,
) -> Row:
    """Show what was found of a person in each model, the first value large."""
    whats = _ordered(dict.fromkeys(key.rpartition(".")[0] or key for key in values), VALUES)
    cells = []
    for model in models:
        told = [_told(x, values[f"{x}.{model}"]) for x in whats if f"{x}.{model}" in values]
        if f"photos_right.{model}" in values:  # it comes first, and needs no label
            told[0] = percent(values[f"photos_right.{model}"])
        mark = _side(values) if outside and model == DEFENDED else ""
        cells.append(Cell(told[0], None, told[1:], mark) if told else Cell())
    alone = [_told(x, values[x]) for x in whats if x in values]
    if change is not None:
        alone.insert(0, _signed(f"{100 * change:+.1f} points"))
    return Row(name, ", ".join(alone), cells)


def _told(what: str, value: float) -> str:
    """Write a value of a person, and what it is."""
    label = VALUES[what][0] if what in VALUES else what
    return f"{label} {percent(value) if what == 'percentile' else _signed(f'{value:.3g}')}"


def _legend(whats: Iterable[str]) -> str:
    """Say what the values of a person are."""
    text = "; ".join(VALUES[what][1] for what in _ordered(whats, VALUES) if what in VALUES)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


# What is below the parts


def _facts(summary: ProofSummary) -> dict[str, str]:
    """List when this was done, with which weights."""
    facts = {
        "Finished": summary.date,
        "Computed in": summary.dtype,
        "Defended model, SHA-256": summary.model_sha256,
        "Model before, SHA-256": summary.teacher_sha256,
        "Retrained model, SHA-256": summary.reference_sha256,
        "Time of all parts": duration(sum(part["seconds"] for part in summary.parts.values())),
    }
    return {key: value for key, value in facts.items() if value}


def _settings(settings: Mapping[str, object]) -> dict[str, str]:
    """Write settings, flat, each as text."""

    def text(value: object) -> str:
        if isinstance(value, list | tuple):
            value = ", ".join(map(str, value))
        return "–" if value is None or value == "" else str(value)

    return {key: text(value) for key, value in frame.flatten(settings).items()}
