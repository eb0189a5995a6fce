"""Retrieval: whether a text finds its photo among all photos, and a photo one of its texts.

Source: CLIP_benchmark (LAION-AI, commit 082089f), `clip_benchmark/metrics/zeroshot_retrieval.py`.
Parity: tests/test_everybody_else.py, equal to its definition with whole rows sorted.
"""

from collections.abc import Sequence

import numpy as np

from jaxdefense.log import Progress

_BLOCK = 2**22  # cosines held at a time, 16 MB
# The same caption in two packed rows comes out this much apart, in f32.
_ROUNDING = 1e-6


def recalls(
    text_TE: np.ndarray, image_PE: np.ndarray, image_T: np.ndarray, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, np.ndarray]:
    """Say which texts find their photo, and which photos find a text of theirs.

    A tie counts against the model, also one within 1e-6; the source leaves its order open.

    Args:
        text_TE: f32 [T, E], texts, unit length.
        image_PE: f32 [P, E], photos, unit length.
        image_T: int [T], the photo of each text.
        ks: how many of the nearest count.

    Returns:
        `image_retrieval_recall@k`: f64 [T], 1 if a text's photo is among its k nearest photos;
        `text_retrieval_recall@k`: f64 [P], 1 if at least one text of a photo is among its k nearest
        texts, 0 for a photo without texts. A k above the number of photos or texts is left out.

    Source: `evaluate` and `recall_at_k`; they average these.
    """
    num_texts, num_photos = len(text_TE), len(image_PE)
    assert len(image_T) == num_texts and image_T.min() >= 0 and image_T.max() < num_photos
    own_P = np.arange(num_photos)
    with Progress("comparing texts with photos"):
        rank_T = ranks(text_TE, image_T, image_PE, own_P, _ROUNDING)
        rank_P = ranks(image_PE, own_P, text_TE, image_T, _ROUNDING)
    found = dict[str, np.ndarray]()
    for k in ks:
        if k <= num_photos:
            found[f"image_retrieval_recall@{k}"] = (rank_T < k).astype(np.float64)
        if k <= num_texts:
            found[f"text_retrieval_recall@{k}"] = (rank_P < k).astype(np.float64)
    return found


def ranks(
    query_BE: np.ndarray,
    group_B: np.ndarray,
    key_ME: np.ndarray,
    group_M: np.ndarray,
    rounding: float = 0.0,
) -> np.ndarray:
    """Count the keys that stand before the nearest key of a query's own group.

    Args:
        query_BE: f32 [B, E], unit length.
        group_B: int [B], the group of each query.
        key_ME: f32 [M, E], unit length.
        group_M: int [M], the group of each key.
        rounding: cosines this much apart are a tie; in a tie the other groups stand before.

    Returns:
        int [B], 0 for a query whose nearest key is of its own group; M if no key is.
    """
    rows = max(1, _BLOCK // len(key_ME))
    rank_B = np.empty(len(query_BE), np.int64)
    for start in range(0, len(query_BE), rows):
        block = slice(start, start + rows)
        cosine_BM = query_BE[block] @ key_ME.T
        own_BM = group_B[block, None] == group_M
        best_B = np.where(own_BM, cosine_BM, -np.inf).max(-1, keepdims=True)
        before_BM = (cosine_BM >= best_B - rounding) & ~own_BM
        rank_B[block] = np.count_nonzero(before_BM, axis=-1)
    return rank_B
