"""What attacks found about people at each stage: the model before, and after each defense."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from jaxdefense.evals import outcome as outcomes
from jaxdefense.evals.outcome import UNKNOWN, UNTESTED, Seen
from jaxdefense.idia.statistics import measure, rates, wilson
from jaxdefense.results import Measures

_HEADINGS = {True: "On the list", False: "Not on the list", None: "Attacked"}


class Found(NamedTuple):
    """How many people an attack recognised.

    Fields:
        known: number of people whom it recognised.
        num: number of people attacked, at least one.
    """

    known: int
    num: int

    @property
    def rate(self) -> float:
        """Share of the people attacked who were recognised, in [0, 1]."""
        return self.known / self.num

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the rate for such people, within [0, 1]."""
        return wilson(self.known, self.num)


@dataclasses.dataclass(frozen=True)
class PersonResult:
    """What the attack found about a person.

    Fields:
        name: name of the person.
        removed: whether they are on the list; None if no list is known.
        correct: stage -> number of templates whose answer was their name.
        photo: JPEG file, or None.
        answers: stage -> the name that most templates answered, "" if none did.
        variants: variant -> stage -> correct templates, if they have such a form.
        photos_right: stage -> share of their photos named right, where it was recorded.
        kept: whether the defense was shown their face as one to keep; None if not known.
    """

    name: str
    removed: bool | None
    correct: Mapping[str, int]
    photo: bytes | None
    answers: Mapping[str, str]
    variants: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    photos_right: Mapping[str, float] = dataclasses.field(default_factory=dict)
    kept: bool | None = None


@dataclasses.dataclass(frozen=True)
class Proof:
    """What was measured, before and after.

    Fields:
        stages: stage -> what was measured of `top1` and `sim_clean`; stages are in order.
        people: people attacked, and people on the list of whom the attack had no photos.
        num_templates: number of templates of the attack.
        threshold: number of correct templates from which on the attack succeeds.
        num_candidates: number of names that the attack chose from.
    """

    stages: dict[str, dict[str, float]]
    people: list[PersonResult]
    num_templates: int
    threshold: int
    num_candidates: int

    @property
    def first(self) -> str:
        """The first stage, with which the last is compared."""
        return next(iter(self.stages))

    @property
    def last(self) -> str:
        """The last stage, which decides the outcomes."""
        return list(self.stages)[-1]

    def of(self, removed: bool | None) -> list[PersonResult]:
        """Return the people whose `removed` is the given value."""
        return [person for person in self.people if person.removed is removed]

    def groups(self) -> dict[str, list[PersonResult]]:
        """Return the people by heading, without empty groups."""
        groups = {heading: self.of(removed) for removed, heading in _HEADINGS.items()}
        return {heading: people for heading, people in groups.items() if people}

    def found(self, people: Iterable[PersonResult], stage: str, variant: str = "") -> Found | None:
        """Count the people attacked and those recognised; None if nobody was attacked."""
        return self.at_least(self.threshold, people, stage, variant)

    def at_least(
        self, num: int, people: Iterable[PersonResult], stage: str, variant: str = ""
    ) -> Found | None:
        """Count who has at least `num` correct templates; None if nobody was attacked."""
        counts = self.counts(people, stage, variant)
        return Found(sum(n >= num for n in counts), len(counts)) if counts else None

    def still(self, people: Iterable[PersonResult], stage: str) -> Found | None:
        """Count who was recognised at the first stage, and who of them still is; None if nobody."""
        known = [x for x in people if x.correct.get(self.first, 0) >= self.threshold]
        return self.found(known, stage)

    def measure(self, people: Iterable[PersonResult], stage: str) -> Measures | None:
        """Summarise how well people are known, see `statistics.measure`; None if not measured."""
        attacked = [person for person in people if stage in person.correct]
        right = [p.photos_right[stage] for p in attacked if stage in p.photos_right]
        if not attacked or len(right) < len(attacked):
            return None
        correct = self.counts(attacked, stage)
        return measure(correct, right, self.threshold, self.num_templates)

    def counts(self, people: Iterable[PersonResult], stage: str, variant: str = "") -> list[int]:
        """Return the number of correct templates of each person attacked."""
        correct = (p.variants.get(variant, {}) if variant else p.correct for p in people)
        return [counts[stage] for counts in correct if stage in counts]

    def curve(self, people: Sequence[PersonResult], stage: str) -> list[float] | None:
        """Return the share of those attacked with at least 1, 2, ... correct templates."""
        counts = self.counts(people, stage)
        return rates(counts, self.num_templates) if counts else None

    def outcome(self, person: PersonResult) -> str:
        """Name what became of a person between the first stage and the last."""
        if not person.correct:
            return UNTESTED
        stages = self.first, self.last
        unknown = person.removed is None or stages[0] == stages[1]
        if unknown or not all(stage in person.correct for stage in stages):
            return UNKNOWN
        before, after = (
            Seen(person.correct[stage], person.photos_right.get(stage)) for stage in stages
        )
        return outcomes.outcome(bool(person.removed), before, after, self.threshold)

    def variants(self) -> list[str]:
        """Return the variants tried, by falling rate of listed people found at the last stage."""
        names = dict.fromkeys(name for person in self.people for name in person.variants)
        who = self.of(True) or self.people

        def rate(variant: str) -> float:
            found = self.found(who, self.last, variant) or self.found(who, self.first, variant)
            return found.rate if found else -1.0

        return sorted(names, key=rate, reverse=True)
