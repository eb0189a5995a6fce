"""What attacks found on people, stage by stage: the model before, and after each defense."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from jaxdefense.evals import outcome as outcomes
from jaxdefense.evals.outcome import UNKNOWN, Seen
from jaxdefense.idia.statistics import measure, rates, wilson
from jaxdefense.results import Measures

_HEADINGS = {True: "On the list", False: "Not on the list", None: "Attacked"}


class Found(NamedTuple):
    """On how many people an attack succeeded.

    Fields:
        known: on whom it did.
        num: attacked, at least one.
    """

    known: int
    num: int

    @property
    def rate(self) -> float:
        """The part of them."""
        return self.known / self.num

    @property
    def interval(self) -> tuple[float, float]:
        """Where the rate of such people lies with 95 % confidence."""
        return wilson(self.known, self.num)


@dataclasses.dataclass(frozen=True)
class PersonResult:
    """What the attack found on a person.

    Fields:
        name: theirs.
        removed: they are on the list; None if no list is known.
        correct: stage -> templates whose answer was their name.
        photo: JPEG, or None.
        answers: stage -> the name most templates answered, "" if none did.
        variants: variant -> stage -> correct templates, where they have such a form.
        photos_right: stage -> share of their photos named right, where it was recorded.
        kept: their face was shown to the defense as one to keep; None if that is not known.
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
        stages: stage, in order, -> those measured of `top1 sim_clean`.
        people: whom the attack was run on.
        num_templates: the most correct templates there can be.
        threshold: correct templates at which the attack succeeds.
        num_candidates: names the attack chose from.
    """

    stages: dict[str, dict[str, float]]
    people: list[PersonResult]
    num_templates: int
    threshold: int
    num_candidates: int

    @property
    def first(self) -> str:
        """The stage everything is compared with."""
        return next(iter(self.stages))

    @property
    def last(self) -> str:
        """The stage that counts."""
        return list(self.stages)[-1]

    def of(self, removed: bool | None) -> list[PersonResult]:
        """List those on the list, those not on it, or those of whom that is not known."""
        return [person for person in self.people if person.removed is removed]

    def groups(self) -> dict[str, list[PersonResult]]:
        """List them by heading."""
        groups = {heading: self.of(removed) for removed, heading in _HEADINGS.items()}
        return {heading: people for heading, people in groups.items() if people}

    def found(self, people: Iterable[PersonResult], stage: str, variant: str = "") -> Found | None:
        """Count on whom an attack succeeded, of those attacked."""
        return self.at_least(self.threshold, people, stage, variant)

    def at_least(
        self, num: int, people: Iterable[PersonResult], stage: str, variant: str = ""
    ) -> Found | None:
        """Count who has so many correct templates, of those attacked."""
        counts = self.counts(people, stage, variant)
        return Found(sum(n >= num for n in counts), len(counts)) if counts else None

    def measure(self, people: Iterable[PersonResult], stage: str) -> Measures | None:
        """Sum up how well people are known, see `statistics.measure`; None if it is not known."""
        attacked = [person for person in people if stage in person.correct]
        right = [p.photos_right[stage] for p in attacked if stage in p.photos_right]
        if not attacked or len(right) < len(attacked):
            return None
        correct = self.counts(attacked, stage)
        return measure(correct, right, self.threshold, self.num_templates)

    def counts(self, people: Iterable[PersonResult], stage: str, variant: str = "") -> list[int]:
        """List the correct templates of those attacked."""
        correct = (p.variants.get(variant, {}) if variant else p.correct for p in people)
        return [counts[stage] for counts in correct if stage in counts]

    def curve(self, people: Sequence[PersonResult], stage: str) -> list[float] | None:
        """Give the part of those attacked with at least 1, 2, ... correct templates."""
        counts = self.counts(people, stage)
        return rates(counts, self.num_templates) if counts else None

    def outcome(self, person: PersonResult) -> str:
        """Name what became of a person between the first stage and the last."""
        stages = self.first, self.last
        unknown = person.removed is None or stages[0] == stages[1]
        if unknown or not all(stage in person.correct for stage in stages):
            return UNKNOWN
        before, after = (
            Seen(person.correct[stage], person.photos_right.get(stage)) for stage in stages
        )
        return outcomes.outcome(bool(person.removed), before, after, self.threshold)

    def variants(self) -> list[str]:
        """Name the variants tried, that by which most of the list are found at last first."""
        names = dict.fromkeys(name for person in self.people for name in person.variants)
        who = self.of(True) or self.people

        def rate(variant: str) -> float:
            found = self.found(who, self.last, variant) or self.found(who, self.first, variant)
            return found.rate if found else -1.0

        return sorted(names, key=rate, reverse=True)
