"""The names an attack chooses from: the people's own, then those of a file, or random ones."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxdefense.data.identities import read_names
from jaxdefense.data.names import SEXES, RandomNames
from jaxdefense.errors import InputError
from jaxdefense.files import read_lines
from jaxdefense.words import folded_words, some

Sexes = Mapping[tuple[str, ...], str]  # folded name -> f or m


class Candidates:
    """Candidate names by number, the people's own first; random names are made on demand.

    Fields:
        group_M: int8 [M], groups; a person is compared only with the candidates of their group.
        added: people whose names the candidates file lacks.
    """

    def __init__(
        self, people: Sequence[str], others: Sequence[str] | RandomNames, sexes: Sexes | None = None
    ):
        """Combine the people's names with other names.

        Args:
            people: names of the people in the photos.
            others: further names.
            sexes: the sex of every name that is not random; None to compare people with all names.

        Raises:
            InputError: a name has no sex, or no other name has the sex of one of the people.
        """
        self._people, self._others, self.added = people, others, list[str]()
        self.group_M = np.zeros(len(self), np.int8)
        if sexes is None:
            return
        random = isinstance(others, RandomNames)
        known = list(people) if random else [*people, *others]
        if missing := [name for name in known if folded_words(name) not in sexes]:
            raise InputError(
                f"`sexes` has no line for {some(missing)}; give name, tab, {' or '.join(SEXES)}."
            )
        groups = [SEXES.index(sexes[folded_words(name)]) for name in known]
        rest = [SEXES.index(others.sex(i)) for i in range(len(others))] if random else []
        self.group_M[:] = groups + rest
        for name, group in zip(people, groups, strict=False):
            if group not in self.group_M[len(people) :]:
                raise InputError(
                    f"the only candidates of the sex of {name!r} ({SEXES[group]}) are the people's "
                    "own names, so any answer would be right; give more candidates."
                )

    def __len__(self) -> int:
        return len(self._people) + len(self._others)

    def __getitem__(self, index: int) -> str:
        other = index - len(self._people)
        return self._people[index] if other < 0 else self._others[other]

    def block(self, start: int, size: int) -> list[str]:
        """List up to `size` names, beginning with number `start`."""
        return [self[i] for i in range(start, min(start + size, len(self)))]


def candidate_names(
    people: Sequence[str],
    file: str,
    num: int,
    seed: int,
    sexes: Sexes | None = None,
    exclude: Sequence[str] = (),
) -> Candidates:
    """Combine the candidates: the people's own names, then those of a file, or random ones.

    Args:
        people: names of the people in the photos.
        file: a file with one name a line, or "" for random names.
        num: number of candidates in all; unused with a file, whose names are all candidates.
        seed: seed of the random names.
        sexes: see `Candidates`.
        exclude: names that must not come up as random names.

    Raises:
        InputError: a name comes up twice, or there is no name besides the people's own.
    """
    own: set[tuple[str, ...]] = set()
    for name in people:
        if (key := folded_words(name)) in own:
            raise InputError(f"faces: {name!r} has two folders; join them.")
        own.add(key)
    if not file:
        if num <= len(people):
            raise InputError(
                f"`num_candidates` (={num}) must be above the number of people (={len(people)}); "
                "with no other names to choose from, any answer is right."
            )
        return Candidates(
            people, RandomNames(num - len(people), seed, exclude=[*people, *exclude]), sexes
        )
    others: list[str] = []
    listed: set[tuple[str, ...]] = set()
    for name in read_names(file, "candidates"):
        key = folded_words(name)
        if key in listed:
            raise InputError(f"candidates file `{file}`: {name!r} is there twice; keep one.")
        listed.add(key)
        if key not in own:
            others.append(name)
    if not listed:
        raise InputError(f"candidates file `{file}` is empty; give one name a line.")
    if not others:
        raise InputError(f"candidates file `{file}` holds no name besides the people's own.")
    candidates = Candidates(people, others, sexes)
    candidates.added = [name for name in people if folded_words(name) not in listed]
    return candidates


def read_sexes(file: str) -> Sexes:
    """Read a file whose lines are a name, a tab, and `f` or `m`.

    Raises:
        InputError: the file cannot be read, a line has another form, or a name comes up twice.
    """
    sexes: dict[tuple[str, ...], str] = {}
    for line in read_lines(file, "sexes"):
        name, _, sex = (part.strip() for part in line.partition("\t"))
        key = folded_words(name)
        if not key or sex not in SEXES or key in sexes:
            raise InputError(
                f"sexes file `{file}`: {line!r} must be a name not named before, a tab, and "
                f"{' or '.join(SEXES)}."
            )
        sexes[key] = sex
    return sexes
