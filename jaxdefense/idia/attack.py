"""The identity inference attack (IDIA): a model, people's photos, candidate names -> who is known.

Each prompt and each photo is embedded once; candidates are a dim of an array, not a loop.

Source: Hintersdorf et al., Does CLIP Know My Face?, JAIR 2024, section 4.
Parity: tests/test_idia.py, identical to a loop in NumPy.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxdefense.data.captions import folded_words, read_lines
from jaxdefense.data.images import Folder
from jaxdefense.data.names import random_names
from jaxdefense.evals.embed import Embedder
from jaxdefense.idia.prompts import TEMPLATES, fill
from jaxdefense.idia.votes import NO_ANSWER, majority, nearest


@dataclasses.dataclass(frozen=True)
class AttackResult:
    """What the attack found.

    Fields:
        names: of the people, I.
        correct: templates whose answer was the person's name, for each of them.
        answers: the name most templates answered, "" if none did.
        threshold: correct templates at which the attack succeeds.
        num_candidates: M.
        num_templates: Q.
    """

    names: list[str]
    correct: list[int]
    answers: list[str]
    threshold: int
    num_candidates: int
    num_templates: int

    @property
    def tpr(self) -> float:
        """Part of the people on whom the attack succeeds; of strangers, its false positives."""
        return float(np.mean([n >= self.threshold for n in self.correct]))

    def per_identity(self) -> dict[str, int]:
        """Give the correct templates by name."""
        return dict(zip(self.names, self.correct, strict=True))

    def summary(self) -> dict:
        """Give what goes into `summary.json`."""
        return {
            "tpr": self.tpr,
            "fnr": 1 - self.tpr,
            "num_identities": len(self.names),
            "threshold": self.threshold,
            "num_candidates": self.num_candidates,
            "num_templates": self.num_templates,
            "per_identity": self.per_identity(),
            "answers": dict(zip(self.names, self.answers, strict=True)),
        }


def candidate_names(people: Sequence[str], file: str, num: int, seed: int) -> list[str]:
    """Put the candidates together: the people's own names, then a file's, or random ones.

    Args:
        people: names of those on the photos.
        file: one name a line, or "" for random names.
        num: candidates in all; with a file, all of it is taken.
        seed: of the random names.

    Raises:
        ValueError: a name is there twice, or `num` leaves no room for the people's own.
    """
    seen: set[tuple[str, ...]] = set()
    for name in people:
        if (key := folded_words(name)) in seen:
            raise ValueError(f"faces: {name!r} has two folders; join them.")
        seen.add(key)
    if not file:
        if num <= len(people):
            raise ValueError(
                f"`num_candidates` (={num}) must be above the number of people (={len(people)}); "
                "with no other names to choose from, any answer is right."
            )
        return [*people, *random_names(num - len(people), seed, exclude=people)]
    others: list[str] = []
    listed: set[tuple[str, ...]] = set()
    for name in read_lines(file, "candidates"):
        key = folded_words(name)
        if not key or key in listed:
            raise ValueError(f"candidates file `{file}`: {name!r} is there twice, or no name.")
        listed.add(key)
        if key not in seen:
            others.append(name)
    if not others:
        raise ValueError(f"candidates file `{file}` holds no name besides the people's own.")
    return [*people, *others]


def infer(
    image_PE: np.ndarray, owner_P: np.ndarray, text_QME: np.ndarray, num_people: int
) -> tuple[np.ndarray, np.ndarray]:
    """Run the attack on embeddings.

    Args:
        image_PE: f32 [P, E], photos, unit length.
        owner_P: int [P], whose photo it is; the i-th person's own name is candidate i.
        text_QME: f32 [Q, M, E], unit length.
        num_people: I.

    Returns:
        correct_I: int [I], templates whose answer is the person's own name;
        answer_QI: int [Q, I], candidates, or NO_ANSWER.
    """
    answer_QP = nearest(jnp.asarray(image_PE), jnp.asarray(text_QME))
    counts = np.bincount(owner_P, minlength=num_people)
    index_IJ = np.zeros((num_people, counts.max()), np.int64)
    mask_IJ = np.arange(counts.max()) < counts[:, None]
    index_IJ[mask_IJ] = np.argsort(owner_P, kind="stable")
    answer_QI = majority(answer_QP[:, jnp.asarray(index_IJ)], jnp.asarray(mask_IJ))
    answer_QI = np.asarray(jax.device_get(answer_QI))
    return (answer_QI == np.arange(num_people)).sum(0), answer_QI


def attack(
    model: Embedder,
    people: Sequence[Folder],
    candidates: Sequence[str],
    *,
    num_photos: int,
    threshold: int,
    seed: int,
    max_corrupt: int = 0,
    templates: Sequence[str] = TEMPLATES,
) -> AttackResult:
    """Attack a model.

    Args:
        model: with both encoders.
        people: their photos; the first candidates are their names, in order.
        candidates: see `candidate_names`.
        num_photos: a person, at most; with more, a random choice.
        threshold: correct templates at which the attack succeeds.
        seed: of that choice.
        max_corrupt: photos that may be broken; they are left out.
        templates: with `{0}` for the name.

    Raises:
        ValueError: too many photos cannot be read, or all of a person; or the model's embeddings
            are not finite or all equal.
    """
    assert list(candidates[: len(people)]) == [person.name for person in people]
    if threshold > len(templates):
        raise ValueError(
            f"`threshold` (={threshold}) must be at most the number of templates "
            f"(={len(templates)})."
        )
    rng = np.random.default_rng(seed)
    files, owner = [], []
    for i, person in enumerate(people):
        chosen = sorted(rng.permutation(len(person.files))[:num_photos])
        files += [person.files[j] for j in chosen]
        owner += [i] * len(chosen)
    image_PE, read_P = model.readable_photos(files, max_corrupt)
    owner_P = np.array(owner)[read_P]
    if missing := np.setdiff1d(np.arange(len(people)), owner_P).tolist():
        raise ValueError(f"no photo of {people[missing[0]].name!r} can be read; give others.")
    text_BE = model.texts(fill(candidates, templates), "prompts")
    text_QME = text_BE.reshape(len(templates), len(candidates), -1)
    correct_I, answer_QI = infer(image_PE, owner_P, text_QME, len(people))
    return AttackResult(
        [person.name for person in people],
        correct_I.tolist(),
        [_most_given(answer_QI[:, i], candidates) for i in range(len(people))],
        threshold,
        len(candidates),
        len(templates),
    )


def _most_given(answer_Q: np.ndarray, candidates: Sequence[str]) -> str:
    given = answer_Q[answer_Q != NO_ANSWER]
    return candidates[int(np.bincount(given).argmax())] if len(given) else ""
