"""Collateral: how far the names of people who must stay moved with those removed."""

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxdefense.data.identities import Identity, read_names
from jaxdefense.data.names import census, random_names
from jaxdefense.errors import InputError
from jaxdefense.evals.embed import Embedder, unit
from jaxdefense.results import Collateral
from jaxdefense.words import folded_words, some

MOVED = "collateral.csv"
PROMPT = "a photo of {0}"
_NUM_NAMESAKES, _NUM_SIMILAR, _NUM_RANDOM, _NUM_LISTED = 4, 5, 200, 20


def read_others(file: str, removed: Sequence[Identity]) -> list[str]:
    """Read the names of people who must stay, one a line.

    Raises:
        InputError: the file cannot be read or is empty, or names someone who is removed.
    """
    others = {folded_words(name): name for name in read_names(file, "collateral")}
    if not others:
        raise InputError(f"collateral file `{file}` must hold names, one a line.")
    gone = {folded_words(name) for identity in removed for name in identity.names}
    if both := [name for key, name in others.items() if key in gone]:
        raise InputError(
            f"collateral file `{file}`: {some(both)} is to be removed; list only people who stay."
        )
    return list(others.values())


def namesakes(removed: Sequence[Identity], seed: int) -> dict[str, list[str]]:
    """Make up people who share a first or last name with someone removed.

    Returns:
        names by group; none for a person whose name is one word.
    """
    rng = np.random.default_rng(seed)
    first, last = census("female") + census("male"), census("last")
    gone = {folded_words(name) for identity in removed for name in identity.names}
    groups: dict[str, dict[tuple[str, ...], str]] = {"same first name": {}, "same last name": {}}
    for identity in removed:
        own = identity.name.split()
        for (_, found), place, others in zip(groups.items(), (0, -1), (last, first), strict=True):
            for i in rng.permutation(len(others))[:_NUM_NAMESAKES].tolist():
                pair = (own[place], others[i]) if place == 0 else (others[i], own[place])
                name = " ".join(pair)
                if len(own) > 1 and folded_words(name) not in gone:
                    found[folded_words(name)] = name
    return {group: list(found.values()) for group, found in groups.items()}


def similar_names(teacher: Embedder, removed: Sequence[Identity]) -> list[str]:
    """Find the census names that the teacher puts closest to each of those removed."""
    own = {word for identity in removed for word in folded_words(identity.name)}
    words = dict.fromkeys((*census("female"), *census("male"), *census("last")))
    words = [word for word in words if word.casefold() not in own]
    word_ME = teacher.texts([PROMPT.format(word) for word in words], "similar names")
    name_BE = teacher.texts([PROMPT.format(who.name) for who in removed], "removed names")
    close_BK = np.argsort(-name_BE @ word_ME.T, axis=-1, kind="stable")[:, :_NUM_SIMILAR]
    return [words[i] for i in np.unique(close_BK)]


class Movement(NamedTuple):
    """How far a name moved: cosine of its embeddings before and after, 1 if it stayed."""

    name: str
    group: str
    cosine: float


def movements(
    student: Embedder, teacher: Embedder, removed: Sequence[Identity], others: list[str], seed: int
) -> list[Movement]:
    """Measure how far names moved: the cosine of student and teacher on a prompt of each.

    Args:
        student, teacher: the defended model and the model before.
        removed: people on the list.
        others: names of further people who must stay.
        seed: seed of the names that are made up.

    Returns:
        the movement of each name; the groups `removed` and `random` are for comparison.
    """
    listed = [name for identity in removed for name in identity.names]
    groups = {
        **namesakes(removed, seed),
        "similar": similar_names(teacher, removed),
        "named": others,
        "random": random_names(_NUM_RANDOM, seed, exclude=[*listed, *others]),
        "removed": listed,
    }
    names = [(name, group) for group, names in groups.items() for name in names]
    texts = [PROMPT.format(name) for name, _ in names]
    ours, theirs = (unit(model.texts(texts, "names")) for model in (student, teacher))
    cosine_B = np.einsum("be,be->b", ours, theirs, dtype=np.float64)
    pairs = zip(names, cosine_B.tolist(), strict=True)
    return [Movement(name, group, cosine) for (name, group), cosine in pairs]


def summarise(moved: Sequence[Movement]) -> Collateral:
    """Return num, mean and least cosine of each group, and which names not removed moved most."""
    groups: dict[str, list[float]] = {}
    for name in moved:
        groups.setdefault(name.group, []).append(name.cosine)
    others = sorted((x for x in moved if x.group != "removed"), key=lambda x: x.cosine)
    return {
        "groups": {
            group: {"mean": float(np.mean(values)), "least": min(values), "num": len(values)}
            for group, values in groups.items()
        },
        "most_moved": [
            {"name": x.name, "group": x.group, "cosine": x.cosine} for x in others[:_NUM_LISTED]
        ],
    }


def table(moved: Sequence[Movement]) -> str:
    """Write one line of CSV for each name."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([Movement._fields, *moved])
    return file.getvalue()
