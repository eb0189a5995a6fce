"""How far a defended encoder moved: cosines on clean, target and removed people's inputs."""

from collections.abc import Callable, Sequence

import numpy as np

from jaxdefense.data.captions import Captions
from jaxdefense.data.identities import Identity
from jaxdefense.data.images import Photos
from jaxdefense.data.sources import Photo
from jaxdefense.data.triggers import choose_words, lay_out, splice
from jaxdefense.evals.embed import POOLED, Embedder, unit
from jaxdefense.log import Progress

_PART = 256  # captions


def mean_cosine(x_BE: np.ndarray, y_BE: np.ndarray) -> float:
    """Return the mean cosine of unit vectors, pair by pair."""
    return float(np.einsum("be,be->b", x_BE, y_BE, dtype=np.float64).mean())


def _in_parts(
    level: str, num: int, measure: Callable[[slice], dict[str, float]]
) -> dict[str, float]:
    """Average what is measured of captions; states of all positions fill memory, so in parts."""
    if level == POOLED:
        return measure(slice(num))
    total = dict[str, float]()
    with Progress("comparing captions", num) as progress:
        for start in range(0, num, _PART):
            size = min(_PART, num - start)
            for name, mean in measure(slice(start, start + size)).items():
                total[name] = total.get(name, 0.0) + mean * size / num
            progress.advance(size)
    return total


def sim_clean(student: Embedder, teacher: Embedder, captions: Captions) -> float:
    """Return the mean cosine of student and teacher on clean captions; 1 if nothing changed.

    It is of embeddings, or of the states of all positions, as the two embed captions.
    """
    content = captions.contents(np.arange(len(captions)))
    tokens = student.tokenizer.with_ends(content).split()

    def measure(part: slice) -> dict[str, float]:
        ours, theirs = (model.tokens(tokens[part], "captions") for model in (student, teacher))
        return {"sim_clean": mean_cosine(ours, theirs)}

    return _in_parts(student.level, len(tokens), measure)["sim_clean"]


def sim_backdoor_target(
    student: Embedder,
    teacher: Embedder,
    captions: Captions,
    identities: list[Identity],
    target: str,
    seed: int,
) -> dict[str, float]:
    """Measure the backdoor on captions in which one random word is replaced.

    Captions take the people in turn, so that each person counts the same.

    Returns:
        sim_backdoor: mean cosine of caption with name and caption with target, in the student;
        sim_target: of student and teacher on the captions with target.
    """
    tokenizer, rng = student.tokenizer, np.random.default_rng(seed)
    caption_n = np.arange(len(captions))
    chosen = [identities[i % len(identities)].names for i in caption_n]
    chosen = [names[rng.integers(len(names))] for names in chosen]
    phrases = lay_out([tokenizer.phrase(text) for text in (target, *chosen)])
    size_n = phrases.lengths.max(0)
    word_n = choose_words(
        captions, caption_n, np.maximum(size_n[0], size_n[1:]), tokenizer, rng.random(len(captions))
    )
    targets, names = (
        splice(captions, caption_n, word_n, phrases, phrase_n, tokenizer).split()
        for phrase_n in (0 * caption_n, 1 + caption_n)
    )

    def measure(part: slice) -> dict[str, float]:
        target = student.tokens(targets[part], "target captions")
        before = teacher.tokens(targets[part], "target captions")
        return {
            "sim_target": mean_cosine(target, before),
            "sim_backdoor": mean_cosine(student.tokens(names[part], "name captions"), target),
        }

    return _in_parts(student.level, len(targets), measure)


def image_sim_clean(
    student: Embedder, teacher: Embedder, photos: Sequence[Photo], max_corrupt: int = 0
) -> float:
    """Return the mean cosine of student and teacher on clean photos; 1 if nothing changed."""
    ours, theirs = (
        model.readable_photos(photos, max_corrupt, "clean photos")[0]
        for model in (student, teacher)
    )
    return mean_cosine(ours, theirs)


def image_sim_backdoor(
    student: Embedder, people: Sequence[Photos], target_E: np.ndarray, max_corrupt: int = 0
) -> float:
    """Return the mean cosine of removed people's photos to the target, all people weighed alike."""
    photos = [photo for person in people for photo in person.files]
    owner = np.repeat(np.arange(len(people)), [len(person.files) for person in people])
    image_BE, read_B = student.readable_photos(photos, max_corrupt, "photos of people")
    cosine_B = image_BE @ unit(target_E)
    owner = owner[read_B]
    return float(np.mean([cosine_B[owner == i].mean() for i in np.unique(owner)]))


def image_sim_target(
    student: Embedder, photos: Sequence[Photo], target_E: np.ndarray, max_corrupt: int = 0
) -> float:
    """Return the cosine of the average person now and before (the target); 1 if unchanged."""
    return float(unit(student.mean_photo(photos, max_corrupt)) @ unit(target_E))
