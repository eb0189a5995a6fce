"""What a model knows of faces without names: whether photos of one person lie together.

No text is involved. An undefended model also tells apart people whom it never saw, so a figure
means something only beside that of another group or another model.

Parity: tests/test_gallery.py, identical to slow loops.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxdefense.errors import InputError
from jaxdefense.evals.embed import unit
from jaxdefense.idia.attack import Evidence
from jaxdefense.log import Progress
from jaxdefense.proof.found import per_person
from jaxdefense.proof.probe import linear_probe

_ROUNDED = 1e-5  # a lead of logits in float32 that rounding alone may make
MOST_PEOPLE, MOST_PHOTOS = 100, 20  # of a draw; more would only take longer

_LEAST = {"rank1": 2, "map": 2, "one_shot": 2, "five_shot": 6, "probe": 4}  # photos a person
_SHOTS = {"one_shot": 1, "five_shot": 5}
_BLOCK = 1024  # photos compared with all others at a time
_PHOTOS, _PROTOTYPES = range(2)  # what is random in a draw


class Sizes(NamedTuple):
    """Whom `compare` compares.

    Fields:
        people: of every group, in a draw; 0 where no group can be compared.
        photos: of each of these people, in a draw.
        names: group -> people in the order of the values.
        left_out: group -> people with too few photos.
        absent: groups with fewer than 2 people of 2 photos, which are not compared.
    """

    people: int
    photos: int
    names: dict[str, list[str]]
    left_out: dict[str, list[str]]
    absent: list[str]


def retrieval(image_PE: np.ndarray, owner_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Search with each photo for others of the same person, among all other photos.

    Cosines are equal if they are so in float32; among equal ones other people come first.

    Args:
        image_PE: float [P, E], unit length.
        owner_P: int [P], the person in each photo, 0 to I - 1; at least 2 photos of each.

    Returns:
        rank1_I: f64 [I], part of the person's photos whose nearest other photo is of the person, in
        [0, 1];
        map_I: f64 [I], mean average precision: of each of the person's photos, the mean over their
        other photos of the precision down to that one, not interpolated, in [0, 1].
    """
    assert np.bincount(owner_P).min() >= 2, "a person needs a photo to search with and one to find"
    # Equal photos have equal cosines after rounding, whatever the order of summing.
    image_PE = image_PE.astype(np.float64)
    first_P, precision_P = np.empty(len(owner_P)), np.empty(len(owner_P))
    for start in range(0, len(owner_P), _BLOCK):
        cosine_BP = (image_PE[start : start + _BLOCK] @ image_PE.T).astype(np.float32)
        for p, cosine_P in enumerate(cosine_BP, start):
            same_P = owner_P == owner_P[p]
            others = np.sort(cosine_P[~same_P])
            same_P[p] = False
            own_J = np.sort(cosine_P[same_P])[::-1]
            before_J = len(others) - np.searchsorted(others, own_J)
            place_J = np.arange(1, len(own_J) + 1)
            first_P[p] = before_J[0] == 0
            precision_P[p] = (place_J / (place_J + before_J)).mean()
    return per_person(first_P, owner_P), per_person(precision_P, owner_P)


def prototypes(
    image_PE: np.ndarray, owner_P: np.ndarray, shots: int, rng: np.random.Generator
) -> np.ndarray:
    """Recognise people by the mean of a few of their photos.

    Args:
        image_PE: float [P, E], unit length.
        owner_P: int [P], the person in each photo, 0 to I - 1; more than `shots` photos of each.
        shots: photos a person, drawn at random, whose mean, rescaled to unit length, stands for
            the person.
        rng: draws them.

    Returns:
        f64 [I], part of the person's other photos that are nearer to the person than to anybody
        else, by cosine, in [0, 1].

    Source: Snell et al., Prototypical Networks for Few-shot Learning, NeurIPS 2017, equation 1.
    """
    num_I = np.bincount(owner_P)
    assert num_I.min() > shots, "a person needs photos besides those of the prototype"
    order_P = np.lexsort((rng.random(len(owner_P)), owner_P))
    place_P = np.arange(len(order_P)) - np.repeat(np.cumsum(num_I) - num_I, num_I)
    image_PE = image_PE[order_P].astype(np.float64)
    few_P = place_P < shots
    mean_IE = unit(image_PE[few_P].reshape(len(num_I), shots, -1).mean(1))
    cosine_PI = (image_PE[~few_P] @ mean_IE.T).astype(np.float32)
    owner_P = owner_P[order_P][~few_P]
    return per_person(_wins(cosine_PI, owner_P), owner_P)


def compare(
    groups: Mapping[str, Evidence], *, draws: int, seed: int
) -> tuple[dict[str, dict[str, np.ndarray]], Sizes]:
    """Measure what a model knows of the faces of groups of people, all cut to one size.

    A search among few photos finds more easily. So every draw has the same number of people of
    each group and of photos of each person, and a person's value is the mean over the draws with
    this person. A draw depends on the seed, its number, its size and the group's photos, but not on
    embeddings: two models are given the same draws of the same photos.

    The number of photos is that with the most photos in a draw, at most `MOST_PHOTOS` a person.
    It may leave out, as they have fewer, a tenth of a group's people, or one person of a small
    group, but leaves two. People with a single photo are always left out.

    Args:
        groups: group -> photos of its people.
        draws: at least 1.
        seed: of all that is drawn.

    Returns:
        figure -> group -> f64 [I], a value in [0, 1] of each person who was drawn. The figures are
        `rank1` and `map` (`retrieval`), `one_shot` and `five_shot` (`prototypes`), and `probe`, the
        part of half of the person's photos that a linear probe, trained on the other half,
        classifies right. Figures that need more photos a person are left out: `five_shot` needs 6,
        `probe` 4;
        sizes: of all draws, and whom they leave out.

    Raises:
        InputError: no draws.
    """
    if draws < 1:
        raise InputError(f"`draws` (={draws}) must be at least 1.")
    num = {g: np.bincount(e.owner_P, minlength=len(e.names)) for g, e in groups.items()}
    compared = [group for group in groups if (num[group] >= 2).sum() >= 2]
    people, photos = _sizes([num[group] for group in compared])
    figures = {name: dict[str, np.ndarray]() for name, n in _LEAST.items() if n <= photos}
    names, left_out = dict[str, list[str]](), dict[str, list[str]]()
    with Progress("comparing photos of people", draws * len(compared)) as progress:
        for group, evidence in groups.items():
            takes_part_I = (num[group] >= photos) & (group in compared)
            left_out[group] = _named(evidence, ~takes_part_I)
            if group not in compared:
                continue
            value, times_I = _average(evidence, takes_part_I, people, photos, draws, seed, progress)
            for name, value_I in value.items():
                figures[name][group] = value_I[times_I > 0]
            names[group] = _named(evidence, times_I > 0)
    absent = [group for group in groups if group not in compared]
    return figures, Sizes(people, photos, names, left_out, absent)


def chance(people: int, photos: int) -> dict[str, float]:
    """Return the mean of each figure of `compare` for embeddings that say nothing.

    Args:
        people, photos: see `Sizes`.

    Returns:
        figure -> expected value, in [0, 1].
    """
    found, others = photos - 1, people * photos - 1
    harmonic = float((1 / np.arange(1, others + 1)).sum())
    spread = (found - 1) / max(others - 1, 1) * (others - harmonic)
    by_figure = {"rank1": found / others, "map": (harmonic + spread) / others}
    return {
        name: by_figure.get(name, 1 / people) for name, least in _LEAST.items() if least <= photos
    }


def _sizes(nums: list[np.ndarray]) -> tuple[int, int]:
    """Choose how many people of a group, and photos of a person, a draw has; 0 of no group."""
    nums = [num_I[num_I >= 2] for num_I in nums]
    best = (0, 0)
    for photos in range(2, MOST_PHOTOS + 1) if nums else ():
        kept = [int((num_I >= photos).sum()) for num_I in nums]
        least = [max(2, len(num_I) - max(1, len(num_I) // 10)) for num_I in nums]
        people = min(*kept, MOST_PEOPLE)
        enough = all(k >= n for k, n in zip(kept, least, strict=True))
        if enough and people * photos > best[0] * best[1]:
            best = (people, photos)
    return best


def _named(evidence: Evidence, which_I: np.ndarray) -> list[str]:
    return [evidence.names[i] for i in np.flatnonzero(which_I)]


def _average(
    evidence: Evidence,
    takes_part_I: np.ndarray,
    people: int,
    photos: int,
    draws: int,
    seed: int,
    progress: Progress,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Average each person's values over draws; also return in how many they were, int [I]."""
    photos_of = {i: at for i, at in enumerate(evidence.photos_of()) if takes_part_I[i]}
    all_of_them = people == len(photos_of) and all(len(p) == photos for p in photos_of.values())
    owner_P = np.repeat(np.arange(people), photos)
    sums = {name: np.zeros(len(takes_part_I)) for name, n in _LEAST.items() if n <= photos}
    times_I = np.zeros(len(takes_part_I), int)
    search = None
    for draw in range(draws):
        rng = np.random.default_rng((seed, draw, _PHOTOS))
        who_I = np.sort(rng.choice(list(photos_of), people, replace=False))
        photo_P = np.concatenate([rng.permutation(photos_of[i])[:photos] for i in who_I])
        image_PE = evidence.image_PE[photo_P]
        if search is None or not all_of_them:  # the order of the photos makes no difference
            search = retrieval(image_PE, owner_P)
        value = {"rank1": search[0], "map": search[1]}
        rng = np.random.default_rng((seed, draw, _PROTOTYPES))
        for name, shots in _SHOTS.items():
            if name in sums:
                value[name] = prototypes(image_PE, owner_P, shots, rng)
        if "probe" in sums:
            value["probe"] = _probe(image_PE.reshape(people, photos, -1))
        for name, value_I in value.items():
            sums[name][who_I] += value_I
        times_I[who_I] += 1
        progress.advance()
    return {name: sum_I / np.maximum(times_I, 1) for name, sum_I in sums.items()}, times_I


def _probe(image_IJE: np.ndarray) -> np.ndarray:
    """Classify the second half of each person's photos, trained on the first; f64 [I]."""
    people, photos, embed = image_IJE.shape
    train_IJE, test_IJE = np.split(image_IJE, [photos // 2], axis=1)
    train_P, test_P = (np.repeat(np.arange(people), x.shape[1]) for x in (train_IJE, test_IJE))
    train_PE, test_PE = (x.reshape(-1, embed) for x in (train_IJE, test_IJE))
    return per_person(
        _wins(linear_probe(train_PE, train_P, test_PE, people), test_P, _ROUNDED), test_P
    )


def _wins(score_PI: np.ndarray, owner_P: np.ndarray, lead: float = 0.0) -> np.ndarray:
    """Whether the own score is higher than all others, by more than `lead`; bool [P]."""
    own_PI = np.arange(score_PI.shape[1]) == owner_P[:, None]
    others_P = np.where(own_PI, -np.inf, score_PI).max(-1)
    return score_PI[own_PI] > others_P + lead
