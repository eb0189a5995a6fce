"""Counting the attack's votes, on the device, for all people at once.

Source: Hintersdorf et al., Does CLIP Know My Face?, JAIR 2024, section 4.2.
Parity: tests/test_idia.py, identical to a loop in NumPy, ties included.
"""

import jax
import jax.numpy as jnp

NO_ANSWER = -1


@jax.jit
def nearest(image_PE: jax.Array, text_QME: jax.Array) -> jax.Array:
    """Pick for each photo and template the candidate with the largest cosine.

    Args:
        image_PE: f32 [P, E], photos, unit length.
        text_QME: f32 [Q, M, E], candidates in each template, unit length.

    Returns:
        i32 [Q, P]; of equal cosines the first.
    """

    def one(text_ME: jax.Array) -> jax.Array:
        # Full f32: on accelerators the default would round the very differences that decide.
        logits_PM = jnp.matmul(image_PE, text_ME.T, precision=jax.lax.Precision.HIGHEST)
        return logits_PM.argmax(-1).astype(jnp.int32)

    return jax.lax.map(one, text_QME)


@jax.jit
def majority(answer_QIJ: jax.Array, mask_IJ: jax.Array) -> jax.Array:
    """Take the name with strictly the most votes over a person's photos.

    Args:
        answer_QIJ: i32 [Q, I, J], a candidate for each template, person and photo, >= 0.
        mask_IJ: bool [I, J], which photos there are.

    Returns:
        i32 [Q, I], or NO_ANSWER where several names have the most votes.
    """
    # J votes hold at most J names: counting equal pairs needs no room for M of them.
    equal_QIJJ = (answer_QIJ[..., :, None] == answer_QIJ[..., None, :]) & mask_IJ[:, None, :]
    count_QIJ = equal_QIJJ.sum(-1) * mask_IJ
    top_QIJ = (count_QIJ == count_QIJ.max(-1, keepdims=True)) & mask_IJ
    winner_QI = jnp.where(top_QIJ, answer_QIJ, -1).max(-1)
    unique_QI = (~top_QIJ | (answer_QIJ == winner_QI[..., None])).all(-1)
    return jnp.where(unique_QI, winner_QI, NO_ANSWER)
