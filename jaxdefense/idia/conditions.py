"""What two attacks must have in common for their results to be compared: all but the model.

An attack draws its photos here. It records its conditions in `summary.json`, under `conditions`.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

from jaxdefense.convert.directory import run_of_model
from jaxdefense.data.identities import read_identities
from jaxdefense.data.images import Photos
from jaxdefense.data.sources import Photo, photo_digest
from jaxdefense.distributed import on_first
from jaxdefense.errors import InputError
from jaxdefense.results import (
    BothDefenseSummary,
    Conditions,
    TextDefenseSummary,
    kind_of,
    read_summary,
)
from jaxdefense.words import folded_words, some

_WORDS = {
    "candidates_sha256": "other candidate names (if one attack skips random targets, `exclude` "
    "makes the other skip them)",
    "templates_sha256": "other prompts",
    "sexes_sha256": "other sexes of the candidates",
}


def draw(people: Sequence[Photos], num: int, seed: int) -> list[Photos]:
    """Choose the photos that people are attacked with.

    A person's photos are ranked by the SHA-256 of the seed and the photo's contents, and the first
    `num` are taken. So the choice depends on nothing else: not on other people, not on the names or
    order of files, and not on photos that were skipped before. If a person has more than `num`
    photos, all of them are read.

    Args:
        people: people with all their photos.
        num: at most this many photos a person.
        seed: seed of the choice.

    Returns:
        the same people with the chosen photos, in the order they had.
    """
    chosen = on_first(lambda: [_choose(person, num, seed) for person in people])
    return [
        dataclasses.replace(person, files=tuple(person.files[i] for i in which))
        for person, which in zip(people, chosen, strict=True)
    ]


def _choose(person: Photos, num: int, seed: int) -> list[int]:
    every = range(len(person.files))
    if len(person.files) <= num:
        return list(every)
    ranks = [hashlib.sha256(f"{seed} {_digest(photo)}".encode()).digest() for photo in person.files]
    return sorted(sorted(every, key=ranks.__getitem__)[:num])


def photos_digest(person: Photos) -> str:
    """Hash a person's photos, whatever their order and file names; SHA-256, in hex."""
    digests = sorted(map(_digest, person.files))
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _digest(photo: Photo) -> str:
    try:
        return photo_digest(photo)
    except ValueError:  # decoding the photo will report it
        return str(photo)


def difference(before: Conditions, after: Conditions) -> str:
    """Say in words how two attacks differ, "" if they can be compared.

    Args:
        before, after: `conditions` of each attack; the attack before may have more people.
    """
    for key, new in after.items():
        old = before.get(key)
        if key == "photos_sha256":
            was, now = before.get("photos_sha256", {}), after.get("photos_sha256", {})
            if missing := [name for name in now if name not in was]:
                return f"it lacks {some(missing)}; attack the same people"
            if other := [name for name in now if now[name] != was[name]]:
                return (
                    f"it was made with other photos of {some(other)}; attack that model again with "
                    "the same photos, and the same `--unseen-by`"
                )
        elif old != new:
            if old is None:
                return f"it does not say its `{key}`; attack that model again"
            what = _WORDS.get(key) or f"`{key}` {old}, this attack {new}"
            return f"it has {what}; the two must be alike but for the model"
    return ""


def random_targets(model: str | Path) -> list[str]:
    """List the random names that removed people's names came to mean.

    The list is empty if the model is not from a run with random targets.

    Args:
        model: directory of a model or of a run; `RUN/model` belongs to RUN.
    """
    run = run_of_model(model)
    kind = kind_of(run) if run else None
    if run and kind is TextDefenseSummary:
        return list((read_summary(run, TextDefenseSummary).targets or {}).values())
    if run and kind is BothDefenseSummary:
        return list((read_summary(run, BothDefenseSummary).text.targets or {}).values())
    return []


def read_excluded(source: str) -> list[str]:
    """Read names that must not be candidates.

    Args:
        source: a names file, or the run directory of a text defense with random targets.

    Raises:
        InputError: the source cannot be read, or the run has no random targets.
    """
    if not Path(source).is_dir():
        return [name for identity in read_identities(source) for name in identity.names]
    if not (targets := random_targets(source)):
        raise InputError(
            f"`exclude` (={source}) is not a run of a text defense with random targets; give one, "
            "or a file of names."
        )
    return targets


def named_in(names: Sequence[str], among: Sequence[str]) -> list[str]:
    """List the names that are also among others, ignoring case."""
    keys = set(map(folded_words, among))
    return [name for name in names if folded_words(name) in keys]
