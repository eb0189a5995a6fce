"""How far a defended encoder moved: cosines on clean, target and removed people's inputs."""

from collections.abc import Sequence

import numpy as np

from jaxdefense.data.captions import Captions
from jaxdefense.data.identities import Identity
from jaxdefense.data.images import Folder
from jaxdefense.data.sources import Photo
from jaxdefense.data.triggers import choose_word, splice
from jaxdefense.evals.embed import Embedder, unit


def mean_cosine(x_BE: np.ndarray, y_BE: np.ndarray) -> float:
    """Mean cosine of unit vectors, pair by pair."""
    return float(np.einsum("be,be->b", x_BE, y_BE, dtype=np.float64).mean())


def sim_clean(student: Embedder, teacher: Embedder, captions: Captions) -> float:
    """Mean cosine of student and teacher on clean captions; 1 if nothing changed."""
    with_ends = student.tokenizer.with_ends
    tokens = [with_ends([captions.content(i)]) for i in range(len(captions))]
    return mean_cosine(student.tokens(tokens, "captions"), teacher.tokens(tokens, "captions"))


def sim_backdoor_target(
    student: Embedder,
    teacher: Embedder,
    captions: Captions,
    identities: list[Identity],
    target: str,
    seed: int,
) -> dict[str, float]:
    """Measure the backdoor on captions in which one random word is replaced.

    Captions take the people in turn, so that each counts the same.

    Returns:
        sim_backdoor: mean cosine of caption with name and caption with target, in the student;
        sim_target: of student and teacher on the captions with target.
    """
    tokenizer = student.tokenizer
    rng = np.random.default_rng(seed)
    phrase, names, targets = tokenizer.phrase(target), [], []
    for i in range(len(captions)):
        identity = identities[i % len(identities)]
        name = tokenizer.phrase(identity.names[rng.integers(len(identity.names))])
        word = choose_word(captions, i, max(name.size, phrase.size), tokenizer, rng)
        names.append(splice(captions, i, word, name, tokenizer))
        targets.append(splice(captions, i, word, phrase, tokenizer))
    student_target = student.tokens(targets, "target captions")
    return {
        "sim_target": mean_cosine(student_target, teacher.tokens(targets, "target captions")),
        "sim_backdoor": mean_cosine(student.tokens(names, "name captions"), student_target),
    }


def image_sim_clean(
    student: Embedder, teacher: Embedder, photos: Sequence[Photo], max_corrupt: int = 0
) -> float:
    """Mean cosine of student and teacher on clean photos; 1 if nothing changed."""
    ours, theirs = (
        model.readable_photos(photos, max_corrupt, "clean photos")[0]
        for model in (student, teacher)
    )
    return mean_cosine(ours, theirs)


def image_sim_backdoor(
    student: Embedder, people: Sequence[Folder], target_E: np.ndarray, max_corrupt: int = 0
) -> float:
    """Mean cosine of removed people's photos to the target; each person counts the same."""
    photos = [photo for person in people for photo in person.files]
    owner = np.repeat(np.arange(len(people)), [len(person.files) for person in people])
    image_BE, read_B = student.readable_photos(photos, max_corrupt, "photos of people")
    cosine_B = image_BE @ unit(target_E)
    owner = owner[read_B]
    return float(np.mean([cosine_B[owner == i].mean() for i in np.unique(owner)]))


def image_sim_target(
    student: Embedder, photos: Sequence[Photo], target_E: np.ndarray, max_corrupt: int = 0
) -> float:
    """Cosine of the average person now to the target, their average before; 1 if it stayed."""
    return float(unit(student.mean_photo(photos, max_corrupt)) @ unit(target_E))
