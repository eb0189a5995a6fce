"""How far a defended encoder moved: cosines on clean, target and removed people's inputs."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from jaxdefense.data.captions import Captions
from jaxdefense.data.identities import Identity
from jaxdefense.data.images import Photos
from jaxdefense.data.sources import Photo
from jaxdefense.data.triggers import choose_words, lay_out, splice
from jaxdefense.evals.embed import POOLED, Embedder, unit
from jaxdefense.log import Progress
from jaxdefense.proof.gallery import retrieval

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
    """Return the mean cosine of student and teacher on clean photos; 1 if nothing changed.

    At level penultimate, the mean over patches too.
    """
    what = "clean photos"
    if student.image_level == "penultimate":
        pairs = zip(
            student.patches(photos, max_corrupt, what),
            teacher.patches(photos, max_corrupt, what),
            strict=True,
        )
        return _mean(_cosines(ours, theirs) for (ours, _), (theirs, _) in pairs)
    ours, theirs = (
        model.readable_photos(photos, max_corrupt, what)[0] for model in (student, teacher)
    )
    return mean_cosine(ours, theirs)


def image_sim_backdoor(
    student: Embedder, people: Sequence[Photos], target_E: np.ndarray, max_corrupt: int = 0
) -> float:
    """Return the mean cosine of removed people's photos to the target, all people weighed alike.

    At level penultimate the target is f32 [T, D], and the cosine the mean over patches.
    """
    photos, owner = joined(people)
    what = "photos of people"
    if student.image_level == "penultimate":
        blocks = [
            (_cosines(patch_BTD, target_E), read_B)
            for patch_BTD, read_B in student.patches(photos, max_corrupt, what)
        ]
        cosine_B, read_B = (np.concatenate(x) for x in zip(*blocks, strict=True))
    else:
        image_BE, read_B = student.readable_photos(photos, max_corrupt, what)
        cosine_B = image_BE @ unit(target_E)
    owner = owner[read_B]
    return float(np.mean([cosine_B[owner == i].mean() for i in np.unique(owner)]))


def image_sim_target(
    student: Embedder, photos: Sequence[Photo], target_E: np.ndarray, max_corrupt: int = 0
) -> float:
    """Return the cosine of the average person now and before (the target); 1 if unchanged."""
    return float(_cosines(student.mean_photo(photos, max_corrupt)[None], target_E)[0])


def gallery(model: Embedder, people: Sequence[Photos], max_corrupt: int = 0) -> dict[str, float]:
    """Search with each photo for others of the same person: identity without any name.

    Args:
        model: of any level; at penultimate, a photo is the mean of its patches.
        people: those with a single photo are left out.
        max_corrupt: see `Embedder.readable_photos`.

    Returns:
        face_rank1, face_map: means over people, see `proof.gallery.retrieval`; nothing of fewer
        than two people of two photos.
    """
    photos, owner = joined(people)
    image_BE, read_B = model.readable_photos(photos, max_corrupt, "photos of people")
    owner = owner[read_B]
    several_B = np.bincount(owner, minlength=len(people))[owner] > 1
    numbers, owner = np.unique(owner[several_B], return_inverse=True)
    if len(numbers) < 2:
        return {}
    rank1_I, map_I = retrieval(image_BE[several_B], owner)
    return {"face_rank1": float(rank1_I.mean()), "face_map": float(map_I.mean())}


def joined(people: Sequence[Photos]) -> tuple[list[Photo], np.ndarray]:
    """List the photos of all people, and the number of the person of each."""
    owner = np.repeat(np.arange(len(people)), [len(person.files) for person in people])
    return [photo for person in people for photo in person.files], owner


def _cosines(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Give the cosine of the last dim, mean over patches where there are any; [B]."""
    cosine = (unit(x) * unit(y)).sum(-1, dtype=np.float64)
    return cosine.reshape(len(x), -1).mean(-1)


def _mean(blocks: Iterable[np.ndarray]) -> float:
    """Average blocks of numbers, one in memory at a time."""
    total, num = 0.0, 0
    for block in blocks:
        total, num = total + block.sum(), num + len(block)
    return float(total / num)
