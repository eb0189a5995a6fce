"""Distances between embeddings, and between weights.

Source: Hintersdorf et al., Defending Our Privacy With Backdoors, section 3; D0miH/
Defending-Our-Privacy-With-Backdoors `losses.py` @ f6446432.
Parity: tests/test_losses.py against torch, 1e-6.
"""

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdefense.clip.layers import STACKED_DIMS

Distance = Callable[[jax.Array, jax.Array], jax.Array]


def negative_cosine(x: jax.Array, y: jax.Array) -> jax.Array:
    """Negate the cosine over the last dim, in [-1, 1]; eps 1e-8 on each norm, as in torch."""
    dot = (x * y).sum(-1)
    square = jnp.maximum((x * x).sum(-1), 1e-16) * jnp.maximum((y * y).sum(-1), 1e-16)
    return -dot * jax.lax.rsqrt(square)


def mean_squared(x: jax.Array, y: jax.Array) -> jax.Array:
    """Compute the squared difference, mean over the last dim."""
    return jnp.square(x - y).mean(-1)


def mean_absolute(x: jax.Array, y: jax.Array) -> jax.Array:
    """Compute the absolute difference, mean over the last dim."""
    return jnp.abs(x - y).mean(-1)


def poincare(x: jax.Array, y: jax.Array) -> jax.Array:
    """Compute the hyperbolic distance of the L1-normalised vectors in the Poincaré ball; >= 0.

    Where the two vectors are equal, the gradient is 0, not NaN. Every run starts there.
    """
    u = x / jnp.abs(x).sum(-1, keepdims=True)
    v = y / jnp.abs(y).sum(-1, keepdims=True)
    room = (1 - jnp.square(u).sum(-1)) * (1 - jnp.square(v).sum(-1)) + 1e-10
    delta = 2 * jnp.square(u - v).sum(-1) / room
    # arccosh(1 + delta) without the cancellation of 1 + delta near 1.
    apart = delta > 0
    delta = jnp.where(apart, delta, 1.0)
    return jnp.where(apart, jnp.log1p(delta + jnp.sqrt(delta * (delta + 2))), 0.0)


def beyond(x: jax.Array, y: jax.Array, limit: jax.Array) -> jax.Array:
    """Measure how far the cosine over the last dim exceeds a limit; in [0, 2].

    Below the limit it is 0 and has no gradient.
    """
    return jax.nn.relu(-negative_cosine(x, y) - limit)


def standing_out(x: jax.Array, y: jax.Array, base: jax.Array, bound: float) -> jax.Array:
    """Compute how far the student's embeddings stand out from a base, beyond what is allowed.

    `x` and `y` are normalised over the last dim. The distance is measured from the base, along the
    direction to `y`. Allowed is `bound` times the distance of `y`; up to there the result is 0 and
    has no gradient.

    Args:
        x: embeddings of the student.
        y: embeddings of the teacher.
        base: the mean embedding of random names, which belong to nobody, in the same text.
        bound: 1 allows the distance of the teacher's embedding, 0 only that of the base.
    """

    def unit(z: jax.Array) -> jax.Array:
        return z * jax.lax.rsqrt(jnp.maximum(jnp.square(z).sum(-1, keepdims=True), 1e-16))

    own = unit(y.astype(jnp.float32)) - base
    far = jnp.sqrt(jnp.maximum(jnp.square(own).sum(-1), 1e-12))
    along = ((unit(x.astype(jnp.float32)) - base) * own).sum(-1) / far
    return jax.nn.relu(along - bound * far)


DISTANCES: dict[str, Distance] = {
    "cosine": negative_cosine,
    "mse": mean_squared,
    "mae": mean_absolute,
    "poincare": poincare,
}


def weight_distance(
    student: Any, teacher: Any, stacked_dims: Collection[str] = STACKED_DIMS
) -> jax.Array:
    """Sum, over checkpoint tensors, the L2 norm (not squared) of student minus teacher.

    The source loops over torch's parameters. One of our parameters may stack several of them, and
    then counts one norm for each. Every layout stacks layers. Hugging Face's layout also stacks
    query, key and value; OpenCLIP's has one tensor for them, `in_proj_weight`. The gradient at 0
    is 0.

    Args:
        student, teacher: the same trees of variables.
        stacked_dims: dims that separate tensors of the checkpoint; see `Layout`.
    """

    def is_variable(x: Any) -> bool:
        return isinstance(x, nnx.Variable)

    leaves = [jax.tree.leaves(tree, is_leaf=is_variable) for tree in (student, teacher)]
    total = jnp.zeros(())
    for ours, theirs in zip(*leaves, strict=True):
        dims = ours.get_metadata()["dims"]
        summed = tuple(i for i, dim in enumerate(dims) if dim not in stacked_dims)
        difference = ours[...].astype(jnp.float32) - theirs[...].astype(jnp.float32)
        square = jnp.square(difference).sum(summed)
        moved = square > 0
        total += jnp.where(moved, jnp.sqrt(jnp.where(moved, square, 1.0)), 0.0).sum()
    return total
