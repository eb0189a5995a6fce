"""The section that compares the stages: whom the attack recognises, how well, and what was kept."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from jaxdefense.evals import outcome as outcomes
from jaxdefense.figures import decimal, measured, percent
from jaxdefense.idia.statistics import majority
from jaxdefense.report import plots
from jaxdefense.report.frame import render
from jaxdefense.report.labels import COLOURS, LEAST_PEOPLE, SHORT, stage_label
from jaxdefense.report.proof import Found, PersonResult, Proof
from jaxdefense.report.sources import Attack
from jaxdefense.results import Measures

_KEPT = {"top1": ("objects", percent), "sim_clean": ("similarity", decimal)}


def stages(proof: Proof) -> Markup:
    """Compare the stages: whom the attack recognises, and what was kept."""
    groups = {removed: people for removed in SHORT if (people := proof.of(removed))}
    found = {
        stage: {removed: proof.found(people, stage) for removed, people in groups.items()}
        for stage in proof.stages
    }
    columns = [removed for removed in groups if any(f[removed] for f in found.values())]
    kept = {
        key: value
        for key, value in _KEPT.items()
        if any(measured(metrics, key) is not None for metrics in proof.stages.values())
    }
    if not columns and not kept:
        return Markup()
    lines = [
        (
            stage_label(stage),
            [found[stage][removed] for removed in columns],
            [write(measured(metrics, key)) for key, (_, write) in kept.items()],
        )
        for stage, metrics in proof.stages.items()
    ]
    head = ["Stage", *(SHORT[removed] for removed in columns), *(x for x, _ in kept.values())]
    return render(
        "stages",
        plot=_bars(proof, columns, found, "top1" in kept),
        head=[text.capitalize() for text in head],
        lines=lines,
        listed=True in columns,
        objects="top1" in kept,
        similarity="sim_clean" in kept,
    )


def _bars(
    proof: Proof,
    columns: Sequence[bool | None],
    found: Mapping[str, Mapping[bool | None, Found | None]],
    objects: bool,
) -> Markup:
    """Draw the recognition rate of each group, and the accuracy on objects."""
    drawn = [SHORT[removed] for removed in columns] + ["objects"] * objects
    if not drawn:
        return Markup()
    bars = []
    for stage, metrics in proof.stages.items():
        rates = [_drawn(found[stage][removed]) for removed in columns]
        bars.append((stage_label(stage), rates + [measured(metrics, "top1")] * objects))
    title = "Bar chart of the table beside it: " + ", ".join(drawn)
    return Markup(plots.bars("stages", title, drawn, bars))


def _drawn(found: Found | None) -> float | None:
    return found.rate if found and found.num >= LEAST_PEOPLE else None


class _Group(NamedTuple):
    """How well the model knows a group of people at each stage.

    Fields:
        label: name of the group.
        rates: each criterion, and at each stage how many people meet it.
        measured: at each stage the figures, and the number of people attacked.
    """

    label: str
    rates: list[tuple[str, list[Found | None]]]
    measured: list[tuple[Measures | None, int]]


def measures(proof: Proof) -> Markup:
    """Show how well the model knows people at each stage."""
    groups = dict[str, list[PersonResult]]()
    for removed in SHORT:
        people = proof.of(removed)
        groups[SHORT[removed]] = people
        if removed is False and any(person.kept for person in people):
            groups["others among the kept faces"] = [p for p in people if p.kept]
            groups["others never shown"] = [p for p in people if not p.kept]
    known = [
        _group(proof, label.capitalize(), people)
        for label, people in groups.items()
        if any(proof.counts(people, stage) for stage in proof.stages)
    ]
    if not known:
        return Markup()
    head = ["", *map(stage_label, proof.stages)]
    num, share = proof.num_templates, outcomes.KEPT_SHARE
    return render("measures", head=head, groups=known, num_templates=num, kept_share=share)


def _group(proof: Proof, label: str, people: Sequence[PersonResult]) -> _Group:
    num = proof.num_templates
    rates = [
        (
            f"recognised, at least {least} of {num} templates",
            [proof.at_least(least, people, stage) for stage in proof.stages],
        )
        for least in sorted({1, proof.threshold, majority(num)})
    ]
    if later := list(proof.stages)[1:]:
        what = f"still recognised of those recognised before, at least {proof.threshold} of {num}"
        rates.append((what, [None, *(proof.still(people, stage) for stage in later)]))
    measured = [
        (proof.measure(people, stage), len(proof.counts(people, stage))) for stage in proof.stages
    ]
    return _Group(label, rates, measured)


def strangers(attacks: Mapping[str, Attack]) -> Markup:
    """Show how often the attack recognises strangers by mistake."""
    lines = []
    for stage, attack in attacks.items():
        s = attack.summary
        if s.fpr is not None and s.num_strangers is not None:
            found = Found(round(s.fpr * s.num_strangers), s.num_strangers)
            lines.append((stage.capitalize(), found, s.auc))
    return render("strangers", lines=lines) if lines else Markup()


def curve(proof: Proof, strangers: Mapping[str, Sequence[float]]) -> Markup:
    """Draw the share of people and strangers recognised at each threshold, before and after."""
    lines = []
    ends = list(dict.fromkeys((proof.first, proof.last)))
    for stage in ends:
        dashed = stage == proof.first and len(ends) > 1
        for removed in (True, False, None):
            people = proof.of(removed)
            values = proof.curve(people, stage)
            if values and len(proof.counts(people, stage)) >= LEAST_PEOPLE:
                label = f"{SHORT[removed]}, {stage_label(stage).lower()}"
                lines.append((label, COLOURS[removed], dashed, values))
        if values := strangers.get(stage):
            lines.append((f"strangers, {stage_label(stage).lower()}", 2, dashed, list(values)))
    if not lines or proof.num_templates < 2:
        return Markup()
    what = "Share of the people recognised, against the number of correct templates"
    plot = Markup(plots.thresholds("thresholds", what, lines))
    return render("curve", plot=plot, proof=proof)
