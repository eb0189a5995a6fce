"""The names an attack chooses from: the people's own, then a file's, or random ones."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxdefense.data.identities import read_names
from jaxdefense.data.names import SEXES, RandomNames
from jaxdefense.errors import InputError
from jaxdefense.files import read_lines
from jaxdefense.words import folded_words, some

Sexes = Mapping[tuple[str, ...], str]  # folded name -> f or m


class Candidates:
    """Candidate names by number, the people's own first; random ones are made when asked for.

    Fields:
        group_M: int8 [M], a person is compared with the candidates of their group alone.
        added: people whose names a candidates file lacks.
    """

    def __init__(
        self, people: Sequence[str], others: Sequence[str] | RandomNames, sexes: Sexes | None = None
    ):
        """Put names together.

        Args:
            people: names of those on the photos.
            others: further names.
            sexes: of each name, random ones apart, if people are to be compared with their own.

        Raises:
            InputError: a name has no sex, or of someone's sex there is no other candidate.
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
                    f"of the sex of {name!r} ({SEXES[group]}) there is no candidate but the "
                    "people's own names; any answer would be right. Give more."
                )

    def __len__(self) -> int:
        return len(self._people) + len(self._others)

    def __getitem__(self, index: int) -> str:
        other = index - len(self._people)
        return self._people[index] if other < 0 else self._others[other]

    def block(self, start: int, size: int) -> list[str]:
        """List the names from `start` on, `size` of them or what there is."""
        return [self[i] for i in range(start, min(start + size, len(self)))]


def candidate_names(
    people: Sequence[str],
    file: str,
    num: int,
    seed: int,
    sexes: Sexes | None = None,
    exclude: Sequence[str] = (),
) -> Candidates:
    """Put the candidates together: the people's own names, then a file's, or random ones.

    Args:
        people: names of those on the photos.
        file: one name a line, or "" for random names.
        num: candidates in all; with a file, all of it is taken.
        seed: of the random names.
        sexes: see `Candidates`.
        exclude: names that must not come up as random ones.

    Raises:
        InputError: a name is there twice, or there is none besides the people's own.
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
    """Read lines of a name, a tab, and `f` or `m`.

    Raises:
        InputError: the file cannot be read, or a line is no such, or its name is there twice.
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
