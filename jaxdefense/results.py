"""What each command found: one frozen dataclass a kind, as `summary.json` holds it.

The JSON object begins with `kind` and `schema`, the version of what follows. A field with a default
is left out where it has that default: what was not measured leaves no trace. `config.json` holds
the kind too, from a run's start, so that a directory says what it is before it is finished.
"""

import abc
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal, NotRequired, TypedDict, TypeVar, cast

from jaxdefense.errors import InputError
from jaxdefense.figures import count, duration
from jaxdefense.files import write_json
from jaxdefense.typed_json import Json, fields_of, plain
from jaxdefense.words import some

SUMMARY, SETTINGS = "summary.json", "config.json"
GIVEN_IN = "directory"  # key of the settings: where their relative paths count from
SCHEMA = 1
_MOST_NAMED = 20  # people without photos, in a sentence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """What is found in a directory."""

    kind: ClassVar[str]


S = TypeVar("S", bound=Summary)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result(Summary, abc.ABC):
    """What a command found."""

    @abc.abstractmethod
    def sentences(self, out: str) -> list[str]:
        """Say in two or three sentences what was done, what came of it, and where it lies.

        Args:
            out: directory or file of the results.
        """

    def figures(self) -> dict[str, float]:
        """Give what can be plotted, by name; the name of no person is among them."""
        return _numbers(vars(self))


def _numbers(found: Mapping[str, object], at: str = "") -> dict[str, float]:
    """Give the numbers of a mapping, without those that are nested in it."""
    return {at + name: float(x) for name, x in found.items() if isinstance(x, int | float)}


# Defenses


class Found(TypedDict):
    """What a validation found; see `defense.validate.Verdict`."""

    reached: bool
    right: float
    above: float
    gap: float
    moved: dict[str, float]
    left: dict[str, float]
    expected: NotRequired[float]


class Validated(TypedDict):
    """What the first validation found, and that of the state taken."""

    before: Found
    after: Found


def rates_of(found: Found) -> dict[str, float]:
    """Give the figures of a validation by name, and how many people are left, but not who."""
    left = {"left": float(len(found["left"]))}
    return _numbers(found) | left | _numbers(found["moved"], "moved/")


class EarlierRun(TypedDict):
    """The defense that one follows.

    Fields:
        run: its directory.
        how: replay, fresh, restore or rebase; see `ledger.entries.How`.
        model_sha256: digest of the model that it led to.
        people: it removed, and that were removed again.
        restored: names of people who came off the list.
        teacher_is_original: False where the model before all removals was not at hand.
    """

    run: str
    how: str
    model_sha256: str
    people: int
    restored: list[str]
    teacher_is_original: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class DefenseSummary(Result):
    """A defense of one encoder.

    Fields:
        steps: at most; given, or counted for the people.
        reached: whether the removed count as removed; None without validation, as the next three.
        stopped_at_step: whose state was taken.
        diverged_at_step: step after which training was seen to diverge; None if it did not. Then
            the state that was taken is an earlier one.
        alpha: part of the way from the teacher to it that was gone, in (0, 1].
        validation: what it found before and after.
        seconds: of training.
        samples_per_second: trained on.
        identities: people removed.
        names: all names of each.
        without_photos: all names of each person on the list whose face was not removed, as there
            were no photos; nobody of a text encoder.
        final: terms of the loss at the last step.
        earlier: the defense that this one follows, if any.
        defended_sha256: digest of the weights that came out.
    """

    encoder: ClassVar[str]
    what: ClassVar[str]

    steps: int
    reached: bool | None = None
    stopped_at_step: int | None = None
    diverged_at_step: int | None = None
    alpha: float | None = None
    validation: Validated | None = None
    seconds: float
    samples_per_second: float
    identities: int
    names: list[list[str]] = dataclasses.field(default_factory=list)
    without_photos: list[list[str]] = dataclasses.field(default_factory=list)
    final: dict[str, float]
    earlier: EarlierRun | None = None
    defended_sha256: str = ""

    def figures(self) -> dict[str, float]:
        """See `Result`."""
        found = _numbers(vars(self))
        return found | rates_of(self.validation["after"]) if self.validation else found

    @property
    def listed(self) -> list[list[str]]:
        """All names of each person on the list, those removed first."""
        return [*self.names, *self.without_photos]

    def verdict(self) -> str:
        """Say in a sentence whether the removed count as removed."""
        if self.validation is None:
            return "Nothing was validated: attack the model to see whom it still knows."
        after = self.validation["after"]
        right = f"{after['right']:.1%} of the held-out pairs still lead to the person"
        if expected := after.get("expected"):
            right += f", and {expected:.1%} of those with new photos are expected to"
        if self.diverged_at_step:
            right += f"; training diverged at step {self.diverged_at_step}, after the state taken"
        if self.reached:
            return f"Validation passed: {right}."
        left = count(len(after["left"]), "person", "people")
        still = f"it still finds {left}" if any(after["left"].values()) else f"{left} did not pass"
        return f"Validation did not pass: {right}; {still}."

    def sentences(self, out: str) -> list[str]:
        """See `Result`."""
        who = count(self.identities, "person", "people")
        return [
            f"The {self.encoder} encoder was trained to forget the {self.what} of {who}: "
            f"{count(self.steps, 'step')} at most, {duration(self.seconds)}.",
            *said_of(self.earlier),
            *said_of_absent(self.without_photos),
            self.verdict(),
            f"`{out}` holds the defended model, and report.html on it.",
        ]


def said_of(earlier: EarlierRun | None) -> list[str]:
    """Say which people a defense removed again; nothing if it follows none."""
    if earlier is None:
        return []
    who, off = count(earlier["people"], "person", "people"), len(earlier["restored"])
    said = f"Of these, {who} had been removed by `{earlier['run']}`"
    said += f", from whose list {count(off, 'name')} came off." if off else "."
    if not earlier["teacher_is_original"]:
        said += (
            " The teacher was a defended model, as the one before all removals was not given: what "
            "it had lost of these people before could not be measured."
        )
    return [said]


def said_of_absent(names: Sequence[Sequence[str]]) -> list[str]:
    """Say whose faces a defense left, as there were no photos; nothing if there are none.

    Args:
        names: all names of each person.
    """
    if not names:
        return []
    who = count(len(names), "person", "people")
    return [
        f"Of {who} on the list there were no photos, so their faces were neither removed nor "
        f"tested: {some((x[0] for x in names), _MOST_NAMED)}."
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextDefenseSummary(DefenseSummary):
    """A defense of the text encoder.

    Fields:
        targets: by name of the person, what it came to mean, if that was drawn.
        level: what was compared; see `TextTrainConfig`.
    """

    kind = "defense_text"
    encoder, what = "text", "names"

    targets: dict[str, str] | None = None
    level: str = "pooled"

    def verdict(self) -> str:
        """See `DefenseSummary`."""
        if self.validation is None and self.level != "pooled":
            return "Nothing was validated: look at pictures that the diffusion model now makes."
        return super().verdict()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageDefenseSummary(DefenseSummary):
    """A defense of the image encoder.

    Fields:
        corrupt: photos that cannot be read -> why.
    """

    kind = "defense_image"
    encoder, what = "image", "faces"

    corrupt: dict[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BothDefenseSummary(Result):
    """A defense of both encoders.

    Fields:
        text, image: of each.
        defended_sha256: digest of the merged weights.
    """

    kind = "defense_both"

    text: TextDefenseSummary
    image: ImageDefenseSummary
    defended_sha256: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the removed count as removed by both encoders; None if one was not validated."""
        found = {self.text.reached, self.image.reached}
        return False if False in found else None if None in found else True

    def sentences(self, out: str) -> list[str]:
        """See `Result`."""
        seconds = duration(self.text.seconds + self.image.seconds)
        who = count(self.text.identities, "person", "people")
        if self.image.identities != self.text.identities:
            faces = count(self.image.identities, "person", "people")
            who = f"the names of {who} and the faces of {faces}"
        return [
            f"Both encoders were trained to forget {who}, in {seconds}.",
            *said_of(self.text.earlier),
            *said_of_absent(self.image.without_photos),
            f"Names: {self.text.verdict()} Faces: {self.image.verdict()}",
            f"`{out}` holds the merged model, and report.html on it.",
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergeSummary(Result):
    """A merger; it is told, and written nowhere.

    Fields:
        text, image: directories of the models that each encoder comes from.
        model: directory of the merged one.
    """

    kind = "merge"

    text: str
    image: str
    model: str

    def sentences(self, out: str) -> list[str]:
        """See `Result`."""
        return [
            f"The text encoder of `{self.text}` and the image encoder of `{self.image}` are one "
            "model now.",
            f"It lies in `{self.model}`. Neither run looked at the other's encoder, and what both "
            "moved may match again: attack this model.",
        ]


# Measurements


class Measures(TypedDict):
    """How well the model knows people; see `idia.statistics.measure`."""

    tpr: float
    tpr_interval: tuple[float, float]
    tpr_majority: float
    tpr_majority_interval: tuple[float, float]
    photos_right: float
    photos_right_interval: tuple[float, float]
    mean_templates: float
    mean_templates_interval: tuple[float, float]


class Curve(TypedDict):
    """Rates over thresholds; see `idia.statistics.statistics`."""

    threshold: list[int]
    tpr: list[float]
    fpr: NotRequired[list[float]]


class Rates(TypedDict):
    """On whom an attack succeeds; see `idia.statistics.statistics`."""

    tpr: float
    tpr_interval: tuple[float, float]
    fnr: float
    fnr_interval: tuple[float, float]
    curve: Curve
    fpr: NotRequired[float]
    fpr_interval: NotRequired[tuple[float, float]]
    auc: NotRequired[float]


class Conditions(TypedDict, total=False):
    """What two attacks must have in common; what was not recorded is missing."""

    threshold: int
    num_candidates: int
    num_templates: int
    seed: int
    num_photos: int
    dtype: str
    preprocessing: str
    photos_sha256: dict[str, str]
    sexes_sha256: str
    templates_sha256: str
    candidates_sha256: str


class Range(TypedDict):
    """The least and the most of something."""

    min: int
    max: int


class KnownBefore(TypedDict):
    """Of the people recognised before, who still are; the paper reports this rate as TPR.

    Fields:
        num: recognised before, at least one.
        recognised: of these, still recognised.
        tpr: their share.
    """

    num: int
    recognised: int
    tpr: float
    tpr_interval: tuple[float, float]


class Group(TypedDict):
    """How well some people were known before, and are now; `known_before` if any were."""

    num: int
    before: Measures
    after: Measures
    known_before: NotRequired[KnownBefore]


class VariantSummary(TypedDict):
    """What an attack found by a way round; the rates are missing where nobody has such a form."""

    num_identities: int
    skipped: list[str]
    num_candidates: NotRequired[int]
    num_templates: NotRequired[int]
    per_identity: NotRequired[dict[str, int]]
    tpr: NotRequired[float]
    tpr_interval: NotRequired[tuple[float, float]]
    fnr: NotRequired[float]
    fnr_interval: NotRequired[tuple[float, float]]
    fpr: NotRequired[float]
    fpr_interval: NotRequired[tuple[float, float]]
    auc: NotRequired[float]
    tpr_majority: NotRequired[float]
    tpr_majority_interval: NotRequired[tuple[float, float]]
    photos_right: NotRequired[float]
    photos_right_interval: NotRequired[tuple[float, float]]
    mean_templates: NotRequired[float]
    mean_templates_interval: NotRequired[tuple[float, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackSummary(Result):
    """An identity inference attack.

    Fields:
        tpr, fnr: parts of the people on whom it succeeds, and does not, in [0, 1].
        tpr_majority: part on whom it does at `majority` templates, more than half of them.
        photos_right: mean share of a person's photos named right, in [0, 1].
        mean_templates: mean number of a person's correct templates.
        curve: rates over all thresholds.
        fpr, auc: of strangers, and how well it tells them from the others.
        threshold: correct templates at which it succeeds.
        photos_per_identity: least and most.
        no_answer: people without an answer in any template.
        per_identity: by name, correct templates.
        per_identity_photos_right: by name, share of the photos named right.
        answers: by name, the name most templates answered, "" if none did.
        strangers: by name, correct templates of people the model never saw.
        variants: by name of the way round.
        outcomes: what became of people -> of how many.
        removed: those attacked who were to be removed.
        untested: those who were to be removed and were not attacked, without photos.
        spent: likewise, as the run was trained on all of their photos.
        groups: `removed` and `others`.
        conditions: see `idia.conditions`.
        model_sha256: digest of the weights attacked.
    """

    kind = "attack"

    tpr: float
    tpr_interval: tuple[float, float]
    fnr: float
    fnr_interval: tuple[float, float]
    tpr_majority: float
    tpr_majority_interval: tuple[float, float]
    photos_right: float
    photos_right_interval: tuple[float, float]
    mean_templates: float
    mean_templates_interval: tuple[float, float]
    curve: Curve
    fpr: float | None = None
    fpr_interval: tuple[float, float] | None = None
    auc: float | None = None
    num_identities: int
    threshold: int
    num_candidates: int
    num_templates: int
    photos_per_identity: Range
    no_answer: int
    majority: int
    per_identity: dict[str, int]
    per_identity_photos_right: dict[str, float] | None = None
    answers: dict[str, str] = dataclasses.field(default_factory=dict)
    num_strangers: int | None = None
    strangers: dict[str, int] | None = None
    strangers_photos_right: float | None = None
    variants: dict[str, VariantSummary] | None = None
    outcomes: dict[str, int] | None = None
    removed: list[str] | None = None
    untested: list[str] = dataclasses.field(default_factory=list)
    spent: list[str] = dataclasses.field(default_factory=list)
    groups: dict[str, Group] | None = None
    conditions: Conditions | None = None
    model_sha256: str = ""

    def figures(self) -> dict[str, float]:
        """See `Result`."""
        found = _numbers(vars(self)) | _numbers(self.outcomes or {}, "outcomes/")
        for name, variant in (self.variants or {}).items():
            found |= _numbers(variant, f"variants/{name}/")
        for name, group in (self.groups or {}).items():
            found |= _numbers(group["before"], f"{name}/before/")
            found |= _numbers(group["after"], f"{name}/after/")
        return found

    def sentences(self, out: str) -> list[str]:
        """See `Result`."""
        low, high = self.tpr_interval
        known = round(self.tpr * self.num_identities)
        said = [
            f"The attack recognised {known} of {count(self.num_identities, 'person', 'people')} "
            f"({self.tpr:.1%}, with 95% confidence {low:.1%} to {high:.1%}) and named "
            f"{self.photos_right:.1%} of their photos right."
        ]
        if self.groups is not None:
            which = {"removed": "to be removed", "others": "others"}
            parts = [
                f"of {group['num']} {which[name]} it knew "
                f"{round(group['before']['tpr'] * group['num'])} before the defense and "
                f"{round(group['after']['tpr'] * group['num'])} now"
                for name, group in self.groups.items()
            ]
            if "removed" in self.groups and (known := self.groups["removed"].get("known_before")):
                parts.append(
                    f"of the {known['num']} to be removed whom it knew before it still knows "
                    f"{known['recognised']} ({known['tpr']:.1%})"
                )
            text = "; ".join(parts)
            said.append(f"{text[:1].upper()}{text[1:]}.")
        elif self.fpr is not None and self.num_strangers is not None:
            said.append(
                f"Of {count(self.num_strangers, 'stranger')} it took {self.fpr:.1%} for known."
            )
        if self.untested:
            said.append(
                f"{count(len(self.untested), 'person', 'people')} on the list could not be tested, "
                f"without photos: {some(self.untested, _MOST_NAMED)}."
            )
        if self.spent:
            said.append(
                f"{count(len(self.spent), 'person', 'people')} on the list could not be tested, as "
                f"the run was trained on all of their photos: {some(self.spent, _MOST_NAMED)}."
            )
        return [*said, f"`{out}` holds the results."]


class CollateralGroup(TypedDict):
    """Cosines of the names of a group, before and after."""

    mean: float
    least: float
    num: int


class Moved(TypedDict):
    """How far a name moved."""

    name: str
    group: str
    cosine: float


class Collateral(TypedDict):
    """How far the names of others moved along."""

    groups: dict[str, CollateralGroup]
    most_moved: list[Moved]


FacesOf = Literal["", "removed", "everybody"]
_UTILITY = {
    "sim_clean": "captions keep a cosine of {:.3f} to the original",
    "image_sim_clean": "photos keep a cosine of {:.3f} to the original",
    "face_rank1": "{:.1%} of {whose} photos are nearest to another of the same person",
    "teacher_face_rank1": "with the original {:.1%}",
    "top1": "objects are told in {:.1%} of photos",
    "teacher_top1": "the original tells {:.1%}",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSummary(Result):
    """A defended model against the one before; None is what was not measured.

    Fields:
        sim_clean, sim_target, sim_backdoor: cosines of the text encoder; see `evals.similarity`.
        image_sim_clean, image_sim_target, image_sim_backdoor: the same of the image encoder.
        face_rank1, face_map: how well photos of a person find others of the same person among
            all; see `evals.similarity.gallery`.
        teacher_face_rank1, teacher_face_map: of the model before.
        top1, top5: zero-shot accuracies, in [0, 1].
        teacher_top1, teacher_top5: of the model before.
        collateral: how far the names of others moved along.
        model_sha256, teacher_sha256: digests of the weights.
        dtype: of the computation.
        level: what is compared of captions; see `TextTrainConfig`.
        faces_of: whose photos figures of faces are of: those removed alone, or everybody given, as
            also where this is "".
    """

    kind = "evaluation"

    sim_clean: float | None = None
    sim_target: float | None = None
    sim_backdoor: float | None = None
    image_sim_clean: float | None = None
    image_sim_target: float | None = None
    image_sim_backdoor: float | None = None
    face_rank1: float | None = None
    face_map: float | None = None
    teacher_face_rank1: float | None = None
    teacher_face_map: float | None = None
    top1: float | None = None
    top5: float | None = None
    teacher_top1: float | None = None
    teacher_top5: float | None = None
    collateral: Collateral | None = None
    model_sha256: str = ""
    dtype: str = ""
    teacher_sha256: str = ""
    level: str = "pooled"
    faces_of: FacesOf = ""

    def utility(self) -> dict[str, float]:
        """List what was measured, collateral apart."""
        found = vars(self).items()
        return {name: value for name, value in found if isinstance(value, float | int)}

    def figures(self) -> dict[str, float]:
        """See `Result`."""
        found = self.utility()
        for name, group in (self.collateral["groups"] if self.collateral else {}).items():
            found |= _numbers(group, f"collateral/{name}/")
        return found

    def sentences(self, out: str) -> list[str]:
        """See `Result`."""
        found = self.utility()
        whose = "removed people's" if self.faces_of == "removed" else "people's"
        texts = ((name, text) for name, text in _UTILITY.items() if name in found)
        parts = [text.format(found[name], whose=whose) for name, text in texts]
        if self.collateral is not None and (moved := self.collateral["most_moved"]):
            first = moved[0]
            parts.append(
                f"{first['name']!r} moved most of those who stay, to {first['cosine']:.2f}"
            )
        what = count(len(found) + (self.collateral is not None), "figure")
        text = "; ".join(parts)
        said = [f"{text[:1].upper()}{text[1:]}."] if text else []
        if self.level != "pooled":
            said.append(f"Captions were compared at level {self.level}, as the run was trained.")
        return [
            "The defended model was compared with the original.",
            *said,
            f"`{out}` holds {what}.",
        ]


# Proofs

# Its models, and its groups of people.
PROOF_MODELS = BEFORE, DEFENDED, RETRAINED = "before", "defended", "retrained"
PROOF_GROUPS = REMOVED, OTHERS, KEPT, NEVER_SHOWN, STRANGERS = (
    "removed",
    "others",
    "kept",
    "never shown",
    "strangers",
)
# Figures that are 0 or 1 of each person.
PROOF_RATES = frozenset({"recognised", "recognised_majority", "above", "below", "shares_word"})
# Places among strangers outside of which 5 % of them lie.
ABOVE, BELOW = 0.975, 0.025


class Mean(TypedDict):
    """A mean over people, photos or texts, its 95 % interval, and over how many."""

    mean: float
    interval: tuple[float, float]
    num: int


Groups = dict[str, Mean]  # by group of people, or by what it is a mean over


class Point(TypedDict):
    """What was measured at one place of a curve, by group."""

    at: float
    groups: Groups


class ProofCurve(TypedDict):
    """A figure over something, by model.

    Fields:
        unit: of `at`.
        models: by model, points by rising `at`.
    """

    unit: str
    models: dict[str, list[Point]]


class ProofPart(TypedDict):
    """What one part of a proof found.

    Fields:
        seconds: it took.
        figures: figure -> model, of `PROOF_MODELS` -> group.
        curves: by figure.
        people: name -> value -> how much.
        notes: what was assumed, skipped or cut short, in sentences.
    """

    seconds: float
    figures: dict[str, dict[str, Groups]]
    curves: dict[str, ProofCurve]
    people: dict[str, dict[str, float]]
    notes: list[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProofSummary(Result):
    """A proof: a defended model and the model before, put to attacks.

    Fields:
        verdict: sentences for whoever reads nothing else.
        not_tested: what was not, each with the reason.
        groups: people attacked, by group, of `PROOF_GROUPS`.
        absent: people on the list without photos that no defense saw.
        parts: by name.
        date: of the end, as in ISO 8601.
        model_sha256, teacher_sha256, reference_sha256: digests of the weights; "" for no reference.
        dtype: of the computation.
    """

    kind = "proof"

    verdict: list[str]
    not_tested: list[str]
    groups: dict[str, list[str]]
    absent: list[str] = dataclasses.field(default_factory=list)
    parts: dict[str, ProofPart]
    date: str
    model_sha256: str
    teacher_sha256: str
    reference_sha256: str = ""
    dtype: str

    def figures(self) -> dict[str, float]:
        """See `Result`."""
        return {
            f"{part}/{figure}/{model}/{group}": mean["mean"]
            for part, found in self.parts.items()
            for figure, models in found["figures"].items()
            for model, groups in models.items()
            for group, mean in groups.items()
        }

    def sentences(self, out: str) -> list[str]:
        """See `Result`."""
        return [*self.verdict, f"`{out}` holds the results, and report.html on them."]


# Sweeps


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellSummary(Summary):
    """One defense of a sweep; None where there is nothing to measure.

    Fields:
        tower: encoder that was defended.
        n, seed, w_weight: people removed, who they are, weight of the weight loss; of both
            encoders, a factor of the weights of each.
        removed_tpr, removed_fnr, others_tpr: parts of people recognised, or not.
        top1, top5: see `EvaluationSummary`.
        sim_clean: cosine to the model before on ordinary inputs of the encoder; of both encoders,
            on captions, and `image_sim_clean` on photos.
        seconds: of defense, attack and evaluation.
        num_others: people who were not removed.
        removed_..., others_...: `idia.statistics.Measures` of each.
        reached: whether the removed count as removed, if that was validated.
        removed_num_known, others_num_known: of these people, recognised in the model as it is.
        removed_known_tpr, others_known_tpr: part of those who still are, as the paper reports.
        num_namesakes: of the others, those who share the first or the last word of their name with
            somebody removed.
        namesakes_tpr, namesakes_photos_right: of these.
        num_crossed, crossed_tpr, crossed_photos_right: of the namesakes who share the first word
            with somebody removed, and the last.
        steps: of the defense, at most; None of both encoders, which have numbers of their own.
    """

    kind = "sweep_cell"

    tower: Literal["text", "image", "both"]
    n: int
    seed: int
    w_weight: float
    removed_tpr: float | None
    removed_fnr: float | None
    others_tpr: float | None
    top1: float | None
    top5: float | None
    sim_clean: float | None
    seconds: float
    num_others: int
    removed_tpr_majority: float | None
    removed_photos_right: float | None
    removed_mean_templates: float | None
    others_tpr_majority: float | None
    others_photos_right: float | None
    others_mean_templates: float | None
    reached: bool | None
    image_sim_clean: float | None = None
    removed_num_known: int | None = None
    removed_known_tpr: float | None = None
    others_num_known: int | None = None
    others_known_tpr: float | None = None
    num_namesakes: int | None = None
    namesakes_tpr: float | None = None
    namesakes_photos_right: float | None = None
    num_crossed: int | None = None
    crossed_tpr: float | None = None
    crossed_photos_right: float | None = None
    steps: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class UndefendedSummary(Summary):
    """The model of a sweep as it is: see `AttackSummary` and `EvaluationSummary`."""

    kind = "sweep_before"

    tpr: float
    fnr: float
    num_identities: int
    tpr_majority: float | None = None
    photos_right: float | None = None
    mean_templates: float | None = None
    top1: float | None = None
    top5: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepSummary(Result):
    """A sweep, or a part of it; its figures are in `sweep.json`.

    Fields:
        cells: of the whole sweep.
        finished: of these, by whomever.
    """

    kind = "sweep"

    cells: int
    finished: int

    def sentences(self, out: str) -> list[str]:
        """See `Result`."""
        return [
            f"Of {count(self.cells, 'cell')} of the sweep, {self.finished:,} are finished.",
            f"`{out}/sweep.csv` holds a line a cell; `jaxdefense report` draws them.",
        ]


# Demo, conversion, report


class DemoStage(TypedDict):
    """What the demo measured of a model, in [0, 1]; None of nobody."""

    removed_tpr: float | None
    retained_tpr: float | None
    removed_photos_right: float | None
    retained_photos_right: float | None
    unseen_photos_right: float | None
    top1: float
    sim_clean: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoSummary(Result):
    """The demo: the model as it is, with one encoder defended, and with both.

    Fields:
        before, text, image, merged: of these models.
        nonmember_fpr: part of the people unknown to the model whom the attack recognised.
        seconds: in all.
    """

    kind = "demo"

    before: DemoStage
    text: DemoStage
    image: DemoStage
    merged: DemoStage
    nonmember_fpr: float
    seconds: float

    def sentences(self, out: str) -> list[str]:
        """See `Result`."""

        def change(name: Literal["removed_tpr", "retained_tpr"]) -> str:
            before, after = self.before[name] or 0.0, self.merged[name] or 0.0
            return f"{before:.0%} before and {after:.0%} after"

        return [
            f"Of those who asked to be removed, the model recognised {change('removed_tpr')}; of "
            f"the others, {change('retained_tpr')}.",
            f"The demo took {duration(self.seconds)}; open `{out}/report.html`, and for the proof "
            f"`{out}/proof/report.html`.",
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LedgerSummary(Result):
    """The ledger of a model; it is told, and written nowhere else.

    Fields:
        said: a sentence an entry, and one for each attack on the model.
        runs: the entries, oldest first, as `ledger.json` holds them.
        model_sha256: digest of the weights.
    """

    kind = "ledger"

    said: list[str]
    runs: list[dict[str, Json]]
    model_sha256: str

    def sentences(self, out: str) -> list[str]:
        """See `Result`."""
        return [*self.said, f"The ledger holds together, and is of the weights in `{out}`."]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeltaSummary(Result):
    """A patch; it is told, and written nowhere.

    Fields:
        tensors, of_tensors: that moved, of all.
        parameters: that the patch holds.
        bytes: of the file.
        from_sha256, to_sha256: digests of the weights of the original and of the defended model.
    """

    kind = "delta"

    tensors: int
    of_tensors: int
    parameters: int
    bytes: int
    from_sha256: str
    to_sha256: str

    def sentences(self, out: str) -> list[str]:
        """See `Result`."""
        return [
            f"{self.tensors:,} of {count(self.of_tensors, 'tensor')} moved: the patch holds "
            f"{count(self.parameters, 'parameter')}, {self.bytes / 1e6:,.1f} MB.",
            f"`jaxdefense apply {out}` with the original gives the defended model.",
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ApplicationSummary(Result):
    """A patch that was applied; it is told, and written nowhere.

    Fields:
        model_sha256: digest of the weights written, which is the one that the patch names.
        tensors: changed.
    """

    kind = "application"

    model_sha256: str
    tensors: int

    def sentences(self, out: str) -> list[str]:
        """See `Result`."""
        return [
            f"The patch changed {count(self.tensors, 'tensor')}; the weights have the digest that "
            f"it names, {self.model_sha256}.",
            f"The defended model lies in `{out}`.",
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConversionSummary(Result):
    """A conversion; it is told, and written nowhere.

    Fields:
        from_, to: layouts; JSON says `from`.
        tensors, parameters: how many there are.
    """

    kind = "conversion"

    from_: str
    to: str
    tensors: int
    parameters: int

    def sentences(self, out: str) -> list[str]:
        """See `Result`."""
        return [
            f"The checkpoint was converted from {self.from_} to {self.to}: "
            f"{count(self.tensors, 'tensor')} with {count(self.parameters, 'parameter')}.",
            f"It lies in `{out}`.",
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FindSummary(Result):
    """Photos found by the captions.

    Fields:
        shards: that were given.
        looked_through: of these; fewer if everybody had enough photos before.
        captions: that were read.
        unreadable: photos that could not be read.
        unreadable_captions: captions that could not be read.
        damaged: shards whose rest was left out.
        photos: of each person; 0 where none was found.
    """

    kind = "find"

    shards: int
    looked_through: int
    captions: int
    unreadable: int
    unreadable_captions: int
    damaged: list[str]
    photos: dict[str, int]

    def sentences(self, out: str) -> list[str]:
        """See `Result`."""
        found = {who: num for who, num in self.photos.items() if num}
        nobody = [who for who, num in self.photos.items() if not num]
        said = [
            f"Of {count(len(self.photos), 'person', 'people')}, {len(found)} are named by captions "
            f"of {count(sum(found.values()), 'photo')}, among {count(self.captions, 'caption')} of "
            f"{count(self.looked_through, 'shard')}."
        ]
        if nobody:
            said.append(f"Nothing was found of {some(nobody)}.")
        if self.damaged:
            said.append(
                f"{count(len(self.damaged), 'shard')} could not be read, or not to the end: "
                f"{some(self.damaged)}."
            )
        if not found:
            return said
        return [
            *said,
            "A caption holds a name, not a person: namesakes, other people and photos without a "
            f"face are among them. Look through `{out}/NAME.jpg`, and delete what is not the "
            "person from the folder `NAME`.",
            f"The folders lie in `{out}`; give them as `--faces` then.",
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportSummary(Result):
    """A report; it is told, and written nowhere.

    Fields:
        headline: what it says first.
        csv, json, html: its files.
    """

    kind = "report"

    headline: str
    csv: str
    json: str
    html: str

    def sentences(self, out: str) -> list[str]:
        """See `Result`."""
        return [self.headline, f"The page is `{self.html}`; `{self.csv}` and `{self.json}` too."]


_KINDS: dict[str, type[Summary]] = {
    kind.kind: kind
    for kind in (
        TextDefenseSummary,
        ImageDefenseSummary,
        BothDefenseSummary,
        AttackSummary,
        EvaluationSummary,
        ProofSummary,
        SweepSummary,
        CellSummary,
        UndefendedSummary,
        DemoSummary,
        FindSummary,
    )
}


# Writing and reading


def as_json(summary: Summary) -> dict[str, Json]:
    """Write a summary as JSON values, its kind and schema first."""
    return {"kind": summary.kind, "schema": SCHEMA} | values(summary)


def values(summary: Summary) -> dict[str, Json]:
    """Write a summary's fields as JSON values, without kind and schema."""
    return cast(dict[str, Json], plain(summary))


def write_summary(directory: Path, summary: Summary) -> None:
    """Write a directory's `summary.json`, in one step."""
    write_json(directory / SUMMARY, as_json(summary))


def read_summary(directory: Path, kind: type[S]) -> S:
    """Read a directory's `summary.json`.

    Args:
        directory: of a run or of results, finished.
        kind: what it must be; `Summary` for any.

    Raises:
        InputError: it cannot be read, or is of another kind, of an unknown one, of a newer schema,
            or lacks a field.
    """
    found = read_object(directory / SUMMARY)
    if "kind" not in found:  # of before kinds were written
        settings = read_object(directory / SETTINGS)
        found |= {"kind": _earlier(settings), "schema": SCHEMA}
    return from_json(found, kind, f"`{directory / SUMMARY}`")


def from_json(found: Mapping[str, Json], kind: type[S], where: str) -> S:
    """Read a summary from the values of `as_json`; see `read_summary`.

    Raises:
        InputError: it is not what it must be; begins with `where`.
    """
    name, schema = found.get("kind"), found.get("schema")
    if not isinstance(name, str) or name not in _KINDS:
        what = f"of the kind {name!r}" if name else "of no kind"
        raise InputError(f"{where} is {what}, which this version of jaxdefense does not know.")
    if not isinstance(schema, int) or schema > SCHEMA:
        raise InputError(
            f"{where} has the schema {schema!r}, this version of jaxdefense reads up to {SCHEMA}; "
            "use the version that wrote it."
        )
    if not issubclass(_KINDS[name], kind):
        wanted = " or ".join(x for x, known in _KINDS.items() if issubclass(known, kind))
        raise InputError(f"{where} is of the kind {name}, not {wanted}.")
    return cast(S, _KINDS[name](**fields_of(_KINDS[name], found, where)))


def kind_of(directory: Path) -> type[Summary] | None:
    """Tell what a directory holds, finished or not; None if no command of ours wrote it."""
    try:
        settings = read_object(directory / SETTINGS)
    except InputError:
        return None
    name = settings["kind"] if "kind" in settings else _earlier(settings)
    return _KINDS.get(name) if isinstance(name, str) else None


def halves_of(run: Path) -> list[Path]:
    """List the directories of the encoders that a run defended, which say how; most have one."""
    both = kind_of(run) is BothDefenseSummary
    return [run / "text", run / "image"] if both else [run]


def teacher_digest(run: Path) -> str:
    """Give the digest of the weights that a run defended; "" if it does not say, as of long ago."""
    resolved = read_settings(halves_of(run)[0]).get("resolved")
    found = resolved.get("model_sha256") if isinstance(resolved, dict) else None
    return found if isinstance(found, str) else ""


def read_settings(directory: Path) -> dict[str, Json]:
    """Read the settings that a directory was made with, as nested dicts.

    Raises:
        InputError: they cannot be read.
    """
    settings = read_object(directory / SETTINGS)
    settings.pop("kind", None)
    settings.pop(GIVEN_IN, None)
    return settings


def read_object(path: Path) -> dict[str, Json]:
    """Read a JSON object of a directory of ours.

    Raises:
        InputError: it cannot be read, or is none.
    """
    return parse_object(read_text(path), f"`{path}`")


def read_text(path: Path) -> str:
    """Read a file of a directory of ours.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"`{path}` cannot be read ({error.strerror}); give the directory of a finished "
            "defense, attack or evaluation."
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"`{path}` is not UTF-8 text; it must hold JSON.") from error


def parse_object(text: str, where: str) -> dict[str, Json]:
    """Parse a JSON object.

    Raises:
        InputError: it is none; begins with `where`.
    """
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{where} is not JSON ({error}); it must hold a JSON object.") from error
    if not isinstance(value, dict):
        raise InputError(f"{where} must hold a JSON object, not {type(value).__name__}.")
    return value


def _earlier(settings: Mapping[str, Json]) -> str:
    """Tell the kind of a directory of before kinds were written, "" if it is none.

    By the sections of its settings: these were always written whole, and no two commands had the
    same. Cells of a sweep have none; a sweep of that time is done again.
    """
    if not (isinstance(settings.get("model"), dict) and "out" in settings):
        return ""
    data = settings.get("data")
    faces = isinstance(data, dict) and "faces" in data
    for kind, sections in (
        (SweepSummary, ("sweep", "attack", "evaluate")),
        (EvaluationSummary, ("teacher",)),
        (AttackSummary, ("faces", "num_candidates")),
        (BothDefenseSummary, ("text", "image")),
        (ImageDefenseSummary if faces else TextDefenseSummary, ("data", "train")),
    ):
        if all(section in settings for section in sections):
            return kind.kind
    return ""
