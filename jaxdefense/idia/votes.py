"""Counting the attack's votes, for all people at once.

Source: Hintersdorf et al., Does CLIP Know My Face?, JAIR 2024, section 4.2.
Parity: tests/test_idia.py, identical to a loop in NumPy, ties included.
"""

import jax
import jax.numpy as jnp
import numpy as np

NO_ANSWER = -1


def vote(answer_QP: np.ndarray, owner_P: np.ndarray, num_people: int) -> np.ndarray:
    """Count the votes of each person's photos.

    Args:
        answer_QP: i32 [Q, P], the candidate nearest to each photo.
        owner_P: int [P], the person in each photo.
        num_people: I; each person has at least one photo.

    Returns:
        i32 [Q, I]; see `majority`.
    """
    counts = np.bincount(owner_P, minlength=num_people)
    index_IJ = np.zeros((num_people, counts.max()), np.int64)
    mask_IJ = np.arange(counts.max()) < counts[:, None]
    index_IJ[mask_IJ] = np.argsort(owner_P, kind="stable")
    return np.asarray(jax.device_get(majority(answer_QP[:, index_IJ], mask_IJ)))


@jax.jit
def majority(answer_QIJ: jax.Array | np.ndarray, mask_IJ: jax.Array | np.ndarray) -> jax.Array:
    """Find the name with strictly the most votes over a person's photos.

    Args:
        answer_QIJ: i32 [Q, I, J], a candidate for each template, person and photo, >= 0.
        mask_IJ: bool [I, J], which photos there are.

    Returns:
        i32 [Q, I], or NO_ANSWER where several names have the most votes.
    """

    def one(answer_IJ: jax.Array) -> jax.Array:
        # J votes name at most J candidates: counting equal pairs needs no room for all M.
        equal_IJJ = (answer_IJ[:, :, None] == answer_IJ[:, None, :]) & mask_IJ[:, None, :]
        count_IJ = equal_IJJ.sum(-1) * mask_IJ
        top_IJ = (count_IJ == count_IJ.max(-1, keepdims=True)) & mask_IJ
        winner_I = jnp.where(top_IJ, answer_IJ, -1).max(-1)
        unique_I = (~top_IJ | (answer_IJ == winner_I[:, None])).all(-1)
        return jnp.where(unique_I, winner_I, NO_ANSWER)

    return jax.lax.map(one, answer_QIJ)
