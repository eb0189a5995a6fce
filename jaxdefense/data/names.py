"""Random full names: candidates of an attack, or names to keep in the name loss.

Source: US Census Bureau, 1990 census, the most frequent first names by sex and surnames (public
domain); `census/` holds its first 500, 500 and 2,000.
"""

import zlib
from collections.abc import Collection, Iterator, Sequence
from functools import cache, lru_cache
from importlib import resources

import numpy as np

from jaxdefense.errors import InputError
from jaxdefense.words import folded_words

SEXES = ("f", "m")
_CROSSED, _SPARE = 1, 100  # stream of random numbers; crossings


@cache
def census(which: str) -> tuple[str, ...]:
    """List names by falling frequency; `which` is `female`, `male` or `last`."""
    file = resources.files("jaxdefense.data") / "census" / f"{which}.txt"
    return tuple(file.read_text(encoding="utf-8").split())


@cache
def _first_names() -> tuple[tuple[str, ...], ...]:
    """First names of women and of men, without those of both, so that a name shows the sex."""
    female, male = census("female"), census("male")
    both = {*female} & {*male}
    return tuple(tuple(x for x in names if x not in both) for names in (female, male))


class RandomNames:
    """Distinct full names in random order, women and men in turn, each made on request.

    A million of them take 8 MB.
    """

    def __init__(self, num: int, seed: int, exclude: Collection[str] = ()):
        """Draw.

        Args:
            num: of names; there are 1,892,000.
            seed: the same seed gives the same names, and the same first ones for any `num`.
            exclude: names that must not come up, in any case.

        Raises:
            InputError: `num` is out of range.
        """
        self._num, rng = num, np.random.default_rng(seed)
        out, last = {folded_words(name) for name in exclude}, _index(census("last"))
        self._pairs = []
        for names in _first_names():
            pair_N = rng.permutation(len(names) * len(last))  # of first name and surname
            first = _index(names)
            excluded = [
                first[words[0]] * len(last) + last[words[1]]
                for words in out
                if len(words) == 2 and words[0] in first and words[1] in last
            ]
            if excluded:
                pair_N = pair_N[~np.isin(pair_N, excluded)]
            self._pairs.append(pair_N.astype(np.int32))
        most = 2 * min(map(len, self._pairs))
        if not 0 <= num <= most:
            raise InputError(f"`num` (={num}) must be from 0 to {most} random names.")

    def __len__(self) -> int:
        return self._num

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(self._num))

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < self._num:
            raise IndexError(index)
        last, which = census("last"), index % 2
        i, j = divmod(int(self._pairs[which][index // 2]), len(last))
        return f"{_first_names()[which][i]} {last[j]}"

    def sex(self, index: int) -> str:
        """`f` or `m`."""
        return SEXES[index % 2]


@cache
def _index(names: tuple[str, ...]) -> dict[str, int]:
    return {name.casefold(): i for i, name in enumerate(names)}


def random_names(num: int, seed: int, exclude: Collection[str] = ()) -> list[str]:
    """List random names; see `RandomNames`."""
    return list(RandomNames(num, seed, exclude))


def namesakes(name: str, num: int, seed: int, exclude: Collection[str] = ()) -> list[str]:
    """List names that share the first or the last word of a name, about half of them each.

    Args:
        name: of one word or more; a name of one word has no namesakes.
        num: at most.
        seed: of the choice.
        exclude: names that must not come up, upper or lower case; a frozenset is folded only once.
    """
    words = name.split()
    if len(words) < 2:
        return []
    # A name without its middle part may still be the person's.
    excluded = {folded_words(name), folded_words(f"{words[0]} {words[-1]}")}
    listed = _folded(frozenset(exclude))
    rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
    female, male = _first_names()
    last = census("last")
    out = dict[str, None]()
    for i in range(2 * num):  # some may be excluded
        if len(out) == num:
            break
        pair = (words[0], last[rng.integers(len(last))])
        if i % 2:
            j = rng.integers(len(female) + len(male))
            pair = (female[j] if j < len(female) else male[j - len(female)], words[-1])
        if (key := folded_words(" ".join(pair))) not in excluded and key not in listed:
            out[" ".join(pair)] = None
    return list(out)


def crossings(
    names: Sequence[str], num: int, seed: int, exclude: Collection[str] = ()
) -> list[str]:
    """List other names that combine the first word of one name and the last word of another.

    Args:
        names: those to cross; names of one word are not crossed.
        num: at most.
        seed: of the choice.
        exclude: names that must not come up, nor without their middle part; see `namesakes`.
    """
    pairs = [(words[0], words[-1]) for words in map(str.split, names) if len(words) > 1]
    seen = {(words[0], words[-1]) for words in _folded(frozenset(exclude).union(names)) if words}
    rng, all_pairs = np.random.default_rng((seed, _CROSSED)), len(pairs) ** 2
    # More are drawn than needed, as some are excluded or come up again.
    num_drawn = min(all_pairs, 2 * num + _SPARE)
    drawn = rng.choice(all_pairs, num_drawn, replace=False) if pairs else ()
    out = list[str]()
    for i, j in (divmod(int(x), len(pairs)) for x in drawn):
        if len(out) == num:
            break
        name = f"{pairs[i][0]} {pairs[j][1]}"
        words = folded_words(name)
        if words and (ends := (words[0], words[-1])) not in seen:
            seen.add(ends)
            out.append(name)
    return out


@lru_cache(maxsize=4)
def _folded(names: frozenset[str]) -> frozenset[tuple[str, ...]]:
    return frozenset(map(folded_words, names))
