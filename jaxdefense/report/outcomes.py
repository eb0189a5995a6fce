"""The section on what became of each person."""

from collections import Counter
from typing import NamedTuple

from markupsafe import Markup

from jaxdefense.evals import outcome as outcomes
from jaxdefense.evals.outcome import UNKNOWN, UNTESTED
from jaxdefense.report.frame import render
from jaxdefense.report.labels import stage_label
from jaxdefense.report.proof import PersonResult, Proof

_OUTCOMES = {
    True: (outcomes.UNLEARNED, outcomes.FAILED, outcomes.NEVER),
    False: (
        outcomes.KEPT,
        outcomes.WEAKENED,
        outcomes.WRONGLY,
        outcomes.RECALLED,
        outcomes.NEVER,
    ),
    None: (),
}
_LISTED = {True: "yes", False: "no", None: "?"}
_MOST_ROWS = 1000


class _Line(NamedTuple):
    """A person, with their correct templates and share of photos named right at each stage."""

    name: str
    outcome: str
    bad: bool
    listed: str
    stages: list[tuple[int | str, float | None]]


def outcomes_of(proof: Proof) -> Markup:
    """Show what became of each person, and count the outcomes."""
    counts = tally(proof)
    groups = proof.groups()
    counted = [
        (heading, len(people), counts[people[0].removed])
        for heading, people in groups.items()
        if len(proof.stages) > 1 and _OUTCOMES[people[0].removed]
    ]
    people = [
        person
        for group in groups.values()
        for person in sorted(group, key=lambda p: proof.outcome(p) not in outcomes.BAD)
    ]
    if not people:
        return Markup()
    return render(
        "outcomes",
        proof=proof,
        counted=counted,
        head=("Person", "Outcome", "On the list", *map(stage_label, proof.stages)),
        lines=[_line(proof, person) for person in people[:_MOST_ROWS]],
        more=max(0, len(people) - _MOST_ROWS),
    )


def _line(proof: Proof, person: PersonResult) -> _Line:
    what = proof.outcome(person)
    stages = [
        (person.correct.get(stage, "–"), person.photos_right.get(stage)) for stage in proof.stages
    ]
    return _Line(person.name, what, what in outcomes.BAD, _LISTED[person.removed], stages)


def tally(proof: Proof) -> dict[bool | None, dict[str, int]]:
    """Count the outcomes of each group of people, by `removed`."""
    counted = {}
    for people in proof.groups().values():
        counts, removed = Counter(map(proof.outcome, people)), people[0].removed
        counted[removed] = {
            what: counts[what]
            for what in (*_OUTCOMES[removed], UNKNOWN, UNTESTED)
            if counts[what] or what not in (outcomes.NEVER, UNKNOWN, UNTESTED)
        }
    return counted
