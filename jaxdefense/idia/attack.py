"""The identity inference attack (IDIA): tells from photos and names whom a model knows.

The attack embeds each prompt and each photo once. Candidates come in blocks, so only time limits
their number.

Source: Hintersdorf et al., Does CLIP Know My Face?, JAIR 2024, section 4.
Parity: tests/test_idia.py, identical to a loop in NumPy.
"""

import dataclasses
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing

import numpy as np
from jax.sharding import Mesh

from jaxdefense.data.images import Photos
from jaxdefense.data.sources import Photo
from jaxdefense.errors import InputError
from jaxdefense.evals.embed import Embedder
from jaxdefense.evals.outcome import Seen
from jaxdefense.idia.candidates import Candidates
from jaxdefense.idia.conditions import draw
from jaxdefense.idia.nearest import Nearest
from jaxdefense.idia.prompts import TEMPLATES, fill
from jaxdefense.idia.votes import NO_ANSWER, vote
from jaxdefense.log import Progress


@dataclasses.dataclass(frozen=True)
class AttackResult:
    """What the attack found.

    Fields:
        names: the names of the I people; the lists below follow this order.
        correct: templates whose answer was the person's name.
        unanswered: templates without an answer, as several names had the most votes.
        answers: the name that most templates answered, "" if no template had an answer.
        num_photos: photos that the person was attacked with.
        photos_right: part of the pairs of a photo and a template in which the nearest candidate is
            the person, in [0, 1]; no votes are involved.
        threshold: the attack succeeds on people with at least this many correct templates.
        num_candidates: M.
        num_templates: Q.
    """

    names: list[str]
    correct: list[int]
    unanswered: list[int]
    answers: list[str]
    num_photos: list[int]
    photos_right: list[float]
    threshold: int
    num_candidates: int
    num_templates: int

    def known(self) -> dict[str, bool]:
        """Say for each name whether the attack succeeds."""
        return {name: n >= self.threshold for name, n in zip(self.names, self.correct, strict=True)}

    def by_name(self) -> dict[str, Seen]:
        """Return what the attack found on each person, by name."""
        pairs = map(Seen, self.correct, self.photos_right)
        return dict(zip(self.names, pairs, strict=True))

    def __getitem__(self, part: slice) -> "AttackResult":
        """Return the result on a slice of the people."""
        lists = ("names", "correct", "unanswered", "answers", "num_photos", "photos_right")
        return dataclasses.replace(self, **{name: getattr(self, name)[part] for name in lists})


def infer(
    image_PE: np.ndarray,
    owner_P: np.ndarray,
    blocks: Iterable[np.ndarray],
    group_M: np.ndarray,
    num_people: int,
    block: int,
    mesh: Mesh,
    own_I: np.ndarray | None = None,
    same_M: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Run the attack on embeddings.

    Args:
        image_PE: f32 [P, E], photos, unit length.
        owner_P: int [P], the person in each photo.
        blocks: f32 [Q, up to `block`, E], candidates in each template, unit length; M in all.
        group_M: int [M], groups; a person is compared only with the group of their own name.
        num_people: I.
        block: at most this many candidates at a time.
        mesh: the mesh of devices.
        own_I: int [I], the candidate that is each person's own name; None for 0 to I - 1.
        same_M: int [M], the candidate that each one's votes count for; None for itself.

    Returns:
        correct_I: int [I], templates whose answer is the person's own name;
        answer_QI: int [Q, I], the candidate answered, or NO_ANSWER;
        right_I: f64 [I], part of the pairs of a photo and a template in which the nearest candidate
        is the person, in [0, 1].
    """
    own_I = np.arange(num_people) if own_I is None else own_I
    nearest, start = None, 0
    for text_QME in blocks:
        if nearest is None:
            nearest = Nearest(image_PE, group_M[own_I][owner_P], len(text_QME), block, mesh)
        stop = start + text_QME.shape[1]
        nearest.add(text_QME, group_M[start:stop])
        start = stop
    assert nearest and start == len(group_M)
    answer_QP = nearest.answers()
    answer_QI = vote(answer_QP if same_M is None else same_M[answer_QP], owner_P, num_people)
    right_P = nearest.times_right(own_I[owner_P], same_M)
    right_I = np.bincount(owner_P, right_P) / np.bincount(owner_P) / len(answer_QP)
    return (answer_QI == own_I).sum(0), answer_QI, right_I


@dataclasses.dataclass(frozen=True)
class Evidence:
    """The embedded photos of people.

    Fields:
        names: the names of the I people.
        image_PE: f32 [P, E], unit length.
        owner_P: int [P], the person in each photo.
        first: each person's first photo that could be read.
    """

    names: list[str]
    image_PE: np.ndarray
    owner_P: np.ndarray
    first: list[Photo]

    def mean_photos(self) -> np.ndarray:
        """Average each person's photos, unnormalised; f64 [I, E]."""
        sum_IE = np.zeros((len(self.names), self.image_PE.shape[1]))
        np.add.at(sum_IE, self.owner_P, self.image_PE)
        return sum_IE / np.bincount(self.owner_P)[:, None]

    def photos_of(self) -> list[np.ndarray]:
        """List each person's photos; int each, indices into P, in order."""
        order = np.argsort(self.owner_P, kind="stable")
        return np.split(order, np.cumsum(np.bincount(self.owner_P, minlength=len(self.names)))[:-1])

    def of(self, who: Sequence[int]) -> "Evidence":
        """Return the photos of some people, in the given order."""
        at = {i: new for new, i in enumerate(who)}
        new_P = np.array([at.get(i, -1) for i in self.owner_P.tolist()])
        kept_P = new_P >= 0
        names, first = [self.names[i] for i in who], [self.first[i] for i in who]
        return Evidence(names, self.image_PE[kept_P], new_P[kept_P], first)


def gather(
    model: Embedder,
    people: Sequence[Photos],
    *,
    max_corrupt: int = 0,
    forms: Sequence[str] = ("",),
) -> Evidence:
    """Embed people's photos; see `attack`.

    Args:
        model: a model with an image encoder.
        people: people with the chosen photos.
        max_corrupt: at most this many photos may be broken.
        forms: forms of the photos, each of `PHOTO_FORMS`, or "" for the photos as they are; the
            result holds all people in the first form, then all people in the next.
    """
    files = [file for person in people for file in person.files]
    owner = np.repeat(np.arange(len(people)), [len(person.files) for person in people])
    images, owners, first = [], [], list[Photo]()
    for form in forms:
        image_PE, read_P = model.readable_photos(files, max_corrupt, "photos", form)
        owner_P = owner[read_P]
        if missing := np.setdiff1d(np.arange(len(people)), owner_P).tolist():
            raise InputError(f"no photo of {people[missing[0]].name!r} can be read; give others.")
        owners.append(owner_P + len(images) * len(people))
        shown = [file for file, read in zip(files, read_P, strict=True) if read]
        first += [shown[i] for i in np.unique(owner_P, return_index=True)[1]]
        images.append(image_PE)
    names = [person.name for person in people] * len(forms)
    return Evidence(names, np.concatenate(images), np.concatenate(owners), first)


def attack(
    model: Embedder,
    people: Sequence[Photos],
    candidates: Candidates,
    *,
    num_photos: int,
    threshold: int,
    seed: int,
    max_corrupt: int = 0,
    templates: Sequence[str] = TEMPLATES,
    block: int = 4096,
) -> AttackResult:
    """Attack a model.

    Args:
        model: a model with both encoders.
        people: people with their photos; the first candidates are their names, in this order.
        candidates: see `candidate_names`.
        num_photos: at most this many photos a person; `conditions.draw` chooses among more.
        threshold: the attack succeeds on people with at least this many correct templates.
        seed: seed of that choice of photos.
        max_corrupt: at most this many photos may be broken; the attack skips them.
        templates: prompts with `{0}` for the name.
        block: number of candidates embedded and compared at a time.

    Raises:
        InputError: too many photos cannot be read, or none of a person's can; or the model's
            embeddings are not finite, or all equal.
    """
    assert candidates.block(0, len(people)) == [person.name for person in people]
    check_threshold(threshold, templates)
    evidence = gather(model, draw(people, num_photos, seed), max_corrupt=max_corrupt)
    return attack_with(
        model, evidence, candidates, threshold=threshold, templates=templates, block=block
    )


def check_threshold(threshold: int, templates: Sequence[str]) -> None:
    """Raise InputError if the threshold is above the number of templates."""
    if threshold > len(templates):
        raise InputError(
            f"`threshold` (={threshold}) must be at most the number of templates "
            f"(={len(templates)})."
        )


def attack_with(
    model: Embedder,
    evidence: Evidence,
    candidates: Candidates,
    *,
    threshold: int,
    templates: Sequence[str],
    block: int,
    own_I: np.ndarray | None = None,
    same_M: np.ndarray | None = None,
) -> AttackResult:
    """Attack with embedded photos; see `attack`, and `infer` for `own_I` and `same_M`."""
    num, block = len(evidence.names), min(block, len(candidates))
    with closing(_embedded(model, candidates, templates, block)) as blocks:
        correct_I, answer_QI, right_I = infer(
            evidence.image_PE,
            evidence.owner_P,
            blocks,
            candidates.group_M,
            num,
            block,
            model.mesh,
            own_I,
            same_M,
        )
    return AttackResult(
        evidence.names,
        correct_I.tolist(),
        (answer_QI == NO_ANSWER).sum(0).tolist(),
        [_most_given(answer_QI[:, i], candidates) for i in range(num)],
        np.bincount(evidence.owner_P).tolist(),
        right_I.tolist(),
        threshold,
        len(candidates),
        len(templates),
    )


def _embedded(
    model: Embedder, candidates: Candidates, templates: Sequence[str], block: int
) -> Generator[np.ndarray]:
    """Embed the candidates block by block; f32 [Q, up to `block`, E]."""
    with Progress("comparing photos with candidates", len(candidates)) as progress:
        for start in range(0, len(candidates), block):
            names = candidates.block(start, block)
            text_QME = model.prompts(fill(names, templates))
            if not start:
                _check_told_apart(text_QME, templates)
            yield text_QME
            progress.advance(len(names))


def _check_told_apart(text_QME: np.ndarray, templates: Sequence[str]) -> None:
    """Raise InputError if the model embeds all names alike: every answer would be the first."""
    for text_ME, template in zip(text_QME, templates, strict=True):
        if len(text_ME) > 1 and np.ptp(text_ME, axis=0).max() < 1e-6:
            raise InputError(
                f"the model embeds all names in {template!r} alike; it is broken, or the template "
                "is too long."
            )


def _most_given(answer_Q: np.ndarray, candidates: Candidates) -> str:
    given = answer_Q[answer_Q != NO_ANSWER]
    if not len(given):
        return ""
    values, counts = np.unique(given, return_counts=True)
    return candidates[int(values[counts.argmax()])]
