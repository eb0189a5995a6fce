"""Many token sequences of different lengths in one flat array."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Ragged(NamedTuple):
    """Sequences, concatenated.

    Fields:
        flat: int [sum of lengths].
        lengths: int64 [n].
    """

    flat: np.ndarray
    lengths: np.ndarray

    def split(self) -> list[np.ndarray]:
        """Split into one array per sequence."""
        return np.split(self.flat, np.cumsum(self.lengths)[:-1]) if self.lengths.size else []


def ragged(sequences: Sequence[np.ndarray]) -> Ragged:
    """Concatenate int32 sequences."""
    flat = np.concatenate([np.empty(0, np.int32), *sequences])
    return Ragged(flat, np.array([len(sequence) for sequence in sequences], np.int64))


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenate the ranges that begin at `starts` and have these `lengths`; int64."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if ends.size else 0
    return np.arange(total) + np.repeat(starts - (ends - lengths), lengths)


def joined(parts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Ragged:
    """Join pieces into sequences: the i-th sequence joins the i-th piece of every part.

    Args:
        parts: for each part, an array, the starts of its pieces, and the lengths of its pieces.
    """
    lengths = np.sum([part[2] for part in parts], axis=0)
    at = np.cumsum(lengths) - lengths
    flat = np.empty(int(lengths.sum()), np.int32)
    for source, starts, sizes in parts:
        flat[ranges(at, sizes)] = source[ranges(starts, sizes)]
        at = at + sizes
    return Ragged(flat, lengths)
