"""Which samples a step takes, and how much each weighs: a function of seed and step alone."""

import functools
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

_Item = TypeVar("_Item")


def even_weights(who: np.ndarray) -> np.ndarray:
    """Weight samples so that every person in the batch counts the same; sums to 1.

    Args:
        who: int [samples], the person of each; below 0 for a sample of nobody, which weighs 0.
    """
    poisoned = who >= 0
    people, inverse, counts = np.unique(who[poisoned], return_inverse=True, return_counts=True)
    weights = np.zeros(len(who))
    weights[poisoned] = 1 / (len(people) * counts[inverse])
    return weights


def evened(groups: Sequence[Sequence[_Item]]) -> list[_Item]:
    """Join groups so that each comes up equally often: small ones are repeated."""
    most = max((len(group) for group in groups), default=0)
    return [group[i % len(group)] for group in groups if group for i in range(most)]


class Shuffle:
    """An endless shuffle of range(num), reshuffled each time round, read from any index.

    It keeps a permutation a round rather than compute an index at a time: Grain's index shuffle
    costs more than the rest of a batch.
    """

    def __init__(self, num: int, seed: int, stream: int):
        self._num = num

        def permutation(epoch: int) -> np.ndarray:
            return np.random.default_rng((seed, stream, epoch)).permutation(num)

        self._permutation = functools.lru_cache(maxsize=4)(permutation)

    def take(self, start: int, count: int) -> list[int]:
        """Read `count` indices from index `start` on."""
        out: list[int] = []
        while len(out) < count:
            epoch, at = divmod(start + len(out), self._num)
            out += self._permutation(epoch)[at : at + count - len(out)].tolist()
        return out
