"""What may happen to a model's weights without training: rounding to few bits, and averaging.

Source: Wu et al., Integer Quantization for Deep Learning Inference, 2020, section 3.1.2 (scale
quantisation); Wortsman et al., Model soups, ICML 2022, section 2.
Parity: tests/test_afterwards.py, each tensor identical to what torch makes of it with
`fake_quantize_per_channel_affine`.
"""

from collections.abc import Mapping

import jax
import numpy as np
from flax import nnx

from jaxdefense.convert.table import Path, source_tensor
from jaxdefense.errors import InputError
from jaxdefense.evals.embed import Embedder
from jaxdefense.sharding import ShardingRules, fetch, put, sharding_tree

# Matrices that OpenCLIP keeps as [in, out]; all others are [out, in].
_OUT_LAST = ("text_projection", "proj")


def round_channels(tensor: np.ndarray, bits: int, dim: int) -> np.ndarray:
    """Round a tensor to whole multiples of a scale, one scale a channel.

    The largest magnitude of a channel becomes the largest level. Halves round to even.

    Args:
        tensor: f32 [...].
        bits: of a level; levels are symmetric: -127 to 127 for 8, -7 to 7 for 4.
        dim: of the channels.

    Returns:
        f32 of the same shape; at most 2**bits - 1 values a channel.
    """
    most = 2 ** (bits - 1) - 1
    others = tuple(i for i in range(tensor.ndim) if i != dim)
    scale = np.abs(tensor).max(others, keepdims=True) / np.float32(most)
    scale = np.where(scale > np.finfo(np.float32).tiny, scale, np.float32(1)).astype(np.float32)
    # Torch multiplies by the inverse, in f32. A quotient would round some halves the other way.
    level = np.rint(tensor * (np.float32(1) / scale))
    return np.clip(level, -most, most).astype(np.float32) * scale


def output_dim(key: str) -> int:
    """Give the dim of the output channels of a tensor of a checkpoint.

    For a table of embeddings it is the dim of tokens or positions.

    Args:
        key: name of the tensor.
    """
    return 1 if key.rsplit(".", 1)[-1] in _OUT_LAST else 0


def rounded(model: Embedder, bits: int) -> Embedder:
    """Round a model's weights, as a library that stores them in few bits does.

    Every tensor of the checkpoint with two dims or more is rounded, as the checkpoint lays it out;
    see `round_channels`. Norms, biases and scalars stay, and so do activations.

    Args:
        model: stays as it is.
        bits: 8 or 4, for example.

    Raises:
        InputError: `bits` is below 2 or above 16.
    """
    if not 2 <= bits <= 16:
        raise InputError(f"`bits` (={bits}) must be from 2 to 16; 8 and 4 are usual.")
    flat = nnx.to_flat_state(model.params)
    params = {tuple(map(str, path)): np.array(fetch(v[...]), np.float32) for path, v in flat}
    for row in model.directory.rows:
        if len(row.shape) > 1:
            tensor = source_tensor(params, row, np.float32)
            tensor = round_channels(tensor, bits, output_dim(row.key))
            params[row.path][row.index] = row.load(tensor)
    return _with(model, params)


def averaged(defended: Embedder, original: Embedder, alpha: float) -> Embedder:
    """Average the weights of two models: (1 - alpha) * defended + alpha * original.

    Args:
        defended: a model.
        original: a model of the same sizes on the same mesh.
        alpha: in [0, 1]; 0 gives the first model, 1 the second.

    Raises:
        InputError: `alpha` is out of range, or the models differ in their parameters' shapes.
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"`alpha` (={alpha}) must be from 0 to 1.")
    assert defended.mesh == original.mesh
    ours, theirs = (dict(nnx.to_flat_state(x.params)) for x in (defended, original))
    if {k: v.shape for k, v in ours.items()} != {k: v.shape for k, v in theirs.items()}:
        raise InputError(
            f"`{defended.directory.source}` and `{original.directory.source}` are models of "
            "different sizes, which cannot be averaged; give a model and the one it was made of."
        )
    first, second = ([x[path][...] for path in ours] for x in (ours, theirs))
    mixed = _mixed(first, second, np.float32(alpha))
    paths = [tuple(map(str, path)) for path in ours]
    return _with(defended, dict(zip(paths, mixed, strict=True)))


@jax.jit
def _mixed(first: list[jax.Array], second: list[jax.Array], alpha: jax.Array) -> list[jax.Array]:
    return [(1 - alpha) * x + alpha * y for x, y in zip(first, second, strict=True)]


def _with(model: Embedder, params: Mapping[Path, object]) -> Embedder:
    """Give a model other parameters, placed on the mesh as its own."""
    flat = nnx.to_flat_state(model.params)
    state = nnx.from_flat_state([(p, v.replace(params[tuple(map(str, p))])) for p, v in flat])
    return model.with_params(put(state, sharding_tree(state, model.mesh, ShardingRules())))
