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
    """Minus the cosine over the last dim, in [-1, 1]; eps 1e-8 on each norm, as torch has it."""
    dot = (x * y).sum(-1)
    square = jnp.maximum((x * x).sum(-1), 1e-16) * jnp.maximum((y * y).sum(-1), 1e-16)
    return -dot * jax.lax.rsqrt(square)


def mean_squared(x: jax.Array, y: jax.Array) -> jax.Array:
    """Squared difference, mean over the last dim."""
    return jnp.square(x - y).mean(-1)


def mean_absolute(x: jax.Array, y: jax.Array) -> jax.Array:
    """Absolute difference, mean over the last dim."""
    return jnp.abs(x - y).mean(-1)


def poincare(x: jax.Array, y: jax.Array) -> jax.Array:
    """Hyperbolic distance of the L1-normalised vectors, in the Poincaré ball; >= 0.

    Its gradient where the two are equal is 0, not NaN: the first step of every run is there.
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
    """How far the cosine over the last dim lies above a limit, in [0, 2]: 0 below, and no slope."""
    return jax.nn.relu(-negative_cosine(x, y) - limit)


def standing_out(x: jax.Array, y: jax.Array, base: jax.Array, bound: float) -> jax.Array:
    """How far embeddings stand out from a base, the way that others do, beyond a part of theirs.

    The direction is that from the base to `y`, all of unit length over the last dim; 0 where `x`
    goes no further along it than `bound` times as far as `y`, and no slope.

    Args:
        x: of the student.
        y: of the teacher.
        base: where names of nobody lie in the same text, on average.
        bound: 1 is as far as the teacher's, 0 as the base.
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
    """Sum over checkpoint tensors of the L2 norm (not squared) of student minus teacher.

    As the source has it, a loop over torch's parameters. A parameter of ours that stacks several of
    them counts one norm for each: layers in every layout; query, key and value in Hugging Face's,
    not in OpenCLIP's, where they are the one tensor `in_proj_weight`. The gradient at 0 is 0.

    Args:
        student, teacher: the same trees of variables.
        stacked_dims: those that count tensors of the checkpoint; see `Layout`.
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
