"""`jaxdefense bench attention`: XLA's own attention beside cuDNN's, forward and backward.

The encoders use XLA's everywhere. cuDNN's is for NVIDIA GPUs; elsewhere XLA's is timed alone.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdefense.bench.machine import JaxImplementation
from jaxdefense.bench.side_by_side import check_counts, side_by_side
from jaxdefense.convert.directory import resolve_dtype

logger = logging.getLogger(__name__)

_ROW = 80  # tokens of a row of packed captions


class _Shape(NamedTuple):
    """Of one attention: positions, heads, width of a head, and captions a row, 0 for a photo."""

    length: int
    heads: int
    width: int
    captions: int


# Of the encoders; captions are packed, so what a token sees is a mask.
SHAPES = {
    "photos, ViT-B/32": _Shape(50, 12, 64, 0),
    "photos, ViT-L/14": _Shape(257, 16, 64, 0),
    "captions, ViT-B/32": _Shape(_ROW, 8, 64, 5),
    "captions, ViT-L/14": _Shape(_ROW, 12, 64, 5),
}


def bench_attention(num: int, rounds: int, calls: int) -> dict[str, Any]:
    """Time attention at the encoders' shapes, with its gradient.

    Args:
        num: photos, or rows of captions.
        rounds: number of rounds; each implementation is timed once a round.
        calls: how many times each is computed in a round.

    Returns:
        the machine, and by shape the figures of `Timing.summary`, samples being photos or rows, and
        the largest difference between the results. If cuDNN cannot compute a shape, `cudnn` says
        why instead.

    Raises:
        InputError: a parameter is out of range.
    """
    check_counts(num=num, rounds=rounds, calls=calls)
    out: dict[str, Any] = JaxImplementation().machine() | {"num": num}
    for name, shape in SHAPES.items():
        logger.info(f"timing attention: {name}")
        out[name] = _time(shape, num, rounds, calls)
    return out


def _time(shape: _Shape, num: int, rounds: int, calls: int) -> dict[str, Any]:
    """Time one shape."""
    dtype, (length, heads, width, captions) = resolve_dtype("auto"), shape
    keys = jax.random.split(jax.random.key(0), 3)
    q_k_v = [jax.random.normal(key, (num, length, heads, width), dtype) for key in keys]
    mask = None
    if captions:
        caption_T = np.arange(length) * captions // length
        mask = jnp.asarray(np.tril(caption_T[:, None] == caption_T))[None, None]

    def attend(implementation: Any, *inputs: jax.Array) -> jax.Array:
        out = jax.nn.dot_product_attention(*inputs, mask=mask, implementation=implementation)
        return jnp.square(out.astype(jnp.float32)).mean()

    works, slopes, why = dict[str, Callable[[int], None]](), dict[str, Any](), dict[str, str]()
    for name in ("xla", "cudnn") if jax.default_backend() == "gpu" else ("xla",):
        slope = jax.jit(jax.grad(partial(attend, name), argnums=(0, 1, 2)))
        try:
            slopes[name] = jax.block_until_ready(slope(*q_k_v))
        except Exception as error:  # each version of cuDNN computes other shapes
            why[name] = str(error).strip().splitlines()[0]
            continue
        works[name] = partial(_repeat, slope, q_k_v)
    first, *others = slopes.values()
    apart = [float(jnp.abs(x - y).max()) for z in others for x, y in zip(first, z, strict=True)]
    found = side_by_side(works, num, rounds, calls).summary()
    return found | ({"largest_difference": max(apart)} if apart else {}) | why


def _repeat(slope: Callable[..., Any], inputs: list[jax.Array], num: int) -> None:
    out = None
    for _ in range(num):
        out = slope(*inputs)
    jax.block_until_ready(out)
