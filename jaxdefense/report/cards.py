"""The section that shows people's photos with what the model calls them."""

from typing import NamedTuple

from markupsafe import Markup

from jaxdefense.evals import outcome as outcomes
from jaxdefense.report.frame import jpeg, render
from jaxdefense.report.labels import stage_label
from jaxdefense.report.proof import PersonResult, Proof

_NUM_LISTED_PHOTOS, _NUM_OTHER_PHOTOS = 12, 6


class _Line(NamedTuple):
    """What the model calls a person at a stage; `kind` selects the mark."""

    stage: str
    correct: int | str
    kind: str
    answer: str


class _Card(NamedTuple):
    """A person: a photo as a data URL, the outcome, and one line for each stage."""

    name: str
    photo: str
    outcome: str
    bad: bool
    lines: list[_Line]


class _Group(NamedTuple):
    """People under a heading: the cards shown, and the number of people in the group."""

    heading: str
    num: int
    cards: list[_Card]


def photos(proof: Proof) -> Markup:
    """Show what the model calls people; those for whom the defense went wrong come first."""

    def order(person: PersonResult) -> tuple[bool, bool]:
        what = proof.outcome(person)
        return what not in outcomes.BAD, what == outcomes.NEVER

    groups = []
    for heading, everyone in proof.groups().items():
        limit = _NUM_OTHER_PHOTOS if everyone[0].removed is False else _NUM_LISTED_PHOTOS
        if people := sorted((p for p in everyone if p.photo is not None), key=order):
            cards = [_card(proof, person) for person in people[:limit]]
            groups.append(_Group(heading, len(everyone), cards))
    return render("cards", proof=proof, groups=groups) if groups else Markup()


def _card(proof: Proof, person: PersonResult) -> _Card:
    assert person.photo is not None
    lines = []
    for stage in proof.stages:
        if stage in person.answers:
            answer = person.answers[stage]
            kind = "own" if answer == person.name else "other" if answer else "none"
            correct = person.correct.get(stage, "–")
            lines.append(_Line(stage_label(stage), correct, kind, answer))
    what = proof.outcome(person)
    return _Card(person.name, jpeg(person.photo), what, what in outcomes.BAD, lines)
