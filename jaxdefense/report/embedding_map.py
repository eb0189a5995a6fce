"""A plane that shows where a model embeds people's photos and names, before and after."""

import dataclasses

import numpy as np

_LEAST = 3  # people; fewer do not span a plane
_MOVED = 2e-3  # change of a number in a unit vector stored as f16; less is rounding


@dataclasses.dataclass(frozen=True)
class EmbeddingMap:
    """The points of people on the plane.

    Fields:
        names: names of the I people.
        removed: whether each person is on the list; None if that is not known.
        before_I2, after_I2: f64 [I, 2], coordinates in the units of the embeddings.
        share: share of the variance before the defense that the plane shows, in [0, 1].
        moved: whether any embedding moved.
    """

    names: list[str]
    removed: list[bool | None]
    before_I2: np.ndarray
    after_I2: np.ndarray
    share: float
    moved: bool


def make_map(
    names: list[str], removed: list[bool | None], before_IE: np.ndarray, after_IE: np.ndarray
) -> EmbeddingMap | None:
    """Project embeddings onto the principal plane of those before; None for too few people."""
    if len(names) < _LEAST:
        return None
    before_IE, after_IE = (x.astype(np.float64) for x in (before_IE, after_IE))
    mean_E, axis_E2, share = principal_plane(before_IE)
    return EmbeddingMap(
        names,
        removed,
        (before_IE - mean_E) @ axis_E2,
        (after_IE - mean_E) @ axis_E2,
        share,
        bool(np.abs(after_IE - before_IE).max() > _MOVED),
    )


def principal_plane(x_IE: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Fit the first two principal components.

    Args:
        x_IE: f64 [I, E].

    Returns:
        mean f64 [E]; axes f64 [E, 2], of unit length, signed so that the coordinate of largest
        magnitude is positive; the share of the variance along them, in [0, 1].
    """
    mean_E = x_IE.mean(0)
    centred_IE = x_IE - mean_E
    variance_E, axis_EE = np.linalg.eigh(centred_IE.T @ centred_IE)  # ascending
    axis_E2 = axis_EE[:, :-3:-1]
    largest = axis_E2[np.abs(axis_E2).argmax(0), np.arange(axis_E2.shape[1])]
    total = variance_E.sum()
    share = variance_E[:-3:-1].sum() / total if total > 0 else 0.0
    return mean_E, axis_E2 * np.sign(largest), float(share)
