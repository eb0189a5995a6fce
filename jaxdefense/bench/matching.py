"""The photos and candidates that the matching of the attack is timed on."""

from typing import NamedTuple

import numpy as np


class MatchingWork(NamedTuple):
    """The sizes of a matching.

    Fields:
        photos: number of photos, P.
        candidates: number of candidates, M.
        templates: number of templates, Q.
        embed: width of an embedding, E.
    """

    photos: int
    candidates: int
    templates: int
    embed: int

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        """Draw random embeddings of unit length; f32 [P, E] and [Q, M, E]."""
        rng = np.random.default_rng(0)
        shapes = (self.photos,), (self.templates, self.candidates)
        drawn = [rng.standard_normal((*shape, self.embed), np.float32) for shape in shapes]
        image_PE, text_QME = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in drawn)
        return image_PE, text_QME
