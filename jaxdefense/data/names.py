"""Random full names, as the candidates of an attack or the keepers of the name loss.

Source: US Census Bureau, 1990 census, the most frequent first names by sex and surnames (public
domain); the counts in `census/` are its first 500, 500 and 1,000.
"""

from collections.abc import Collection
from functools import cache
from importlib import resources

import numpy as np

from jaxdefense.data.captions import folded_words


@cache
def census(which: str) -> tuple[str, ...]:
    """List names by falling frequency; `which` is `female`, `male` or `last`."""
    file = resources.files("jaxdefense.data") / "census" / f"{which}.txt"
    return tuple(file.read_text(encoding="utf-8").split())


def random_names(num: int, seed: int, exclude: Collection[str] = ()) -> list[str]:
    """Draw distinct full names, first name and surname, alternately female and male.

    Args:
        num: at most 500,000.
        seed: same seed, same names.
        exclude: names that must not come up, in any case.

    Raises:
        ValueError: `num` is out of range.
    """
    if not 0 <= num <= 500_000:
        raise ValueError(f"`num` (={num}) must be from 0 to 500000 random names.")
    rng = np.random.default_rng(seed)
    seen = {folded_words(name) for name in exclude}
    last, names = census("last"), []
    while len(names) < num:
        first = census("male" if len(names) % 2 else "female")
        name = f"{first[rng.integers(len(first))]} {last[rng.integers(len(last))]}"
        if (key := folded_words(name)) not in seen:
            seen.add(key)
            names.append(name)
    return names
