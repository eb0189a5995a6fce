"""The image tower of RN50 and its like: a residual network pooled by attention.

C is a feature map's channels. Batch norms are frozen: training uses the checkpoint's statistics
too, so an embedding does not depend on the rest of its batch.

Source: openai/CLIP `clip/model.py` (ModifiedResNet), as in open_clip `modified_resnet.py` 3.3.0.
Parity: tests/test_resnet.py, leaves <= 1e-5, towers <= 1e-4, f32.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxdefense.clip.config import Remat, ResNetConfig
from jaxdefense.clip.layers import (
    ONES,
    ZEROS,
    Declare,
    FrozenParam,
    normal,
    param,
    rematerialised,
)

EXPANSION = 4  # channels out of a block, in those of its inner convolution

# Remat `dots` keeps only these products. Keeping every product would take more memory than no remat
# at all: behind a frozen norm the backward pass needs little more than inputs and signs.
NARROW = "narrow product"

_POINT = ("channels_in", "channels_out")
_SQUARE = ("kernel_height", "kernel_width", *_POINT)


class BatchNorm(nnx.Module):
    """Batch normalisation with the checkpoint's statistics, always computed in f32."""

    def __init__(self, width: int, eps: float, rngs: nnx.Rngs, stack: tuple[int, ...] = ()):
        declare = Declare(rngs, stack)
        self.scale = declare((width,), ("norm",), ONES, FrozenParam)
        self.bias = declare((width,), ("norm",), ZEROS, FrozenParam)
        self.mean = declare((width,), ("norm",), ZEROS, FrozenParam)
        self.var = declare((width,), ("norm",), ONES, FrozenParam)
        self.eps = eps

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        """Normalise each channel; the result has the input's dtype."""
        scale_C, bias_C, mean_C, var_C = (
            v[...].astype(jnp.float32) for v in (self.scale, self.bias, self.mean, self.var)
        )
        # Scale and shift are two vectors, so one pass over the feature map applies both.
        scale_C = scale_C * jax.lax.rsqrt(var_C + self.eps)
        shift_C = bias_C - mean_C * scale_C
        return (x_BHWC.astype(jnp.float32) * scale_C + shift_C).astype(x_BHWC.dtype)


class Bottleneck(nnx.Module):
    """Three convolutions, added to their input; strides are average pools, not skipped pixels."""

    def __init__(
        self,
        width_in: int,
        width: int,
        stride: int,
        eps: float,
        rngs: nnx.Rngs,
        stack: tuple[int, ...] = (),
    ):
        declare = Declare(rngs, stack)
        wide = EXPANSION * width
        self.conv1 = declare((width_in, width), _POINT, _init(width_in))
        self.bn1 = BatchNorm(width, eps, rngs, stack)
        self.conv2 = declare((3, 3, width, width), _SQUARE, _init(9 * width))
        self.bn2 = BatchNorm(width, eps, rngs, stack)
        self.conv3 = declare((width, wide), _POINT, _init(width))
        self.bn3 = BatchNorm(wide, eps, rngs, stack)
        self.stride, changes = stride, stride > 1 or width_in != wide
        self.downsample = declare((width_in, wide), _POINT, _init(width_in)) if changes else None
        self.downsample_bn = BatchNorm(wide, eps, rngs, stack) if changes else None

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        """Apply the block; H and W of the result are divided by the stride."""
        out_BHWC = checkpoint_name(_convolve(x_BHWC, self.conv1), NARROW)
        out_BHWC = jax.nn.relu(self.bn1(out_BHWC))
        out_BHWC = checkpoint_name(_convolve(out_BHWC, self.conv2), NARROW)
        out_BHWC = jax.nn.relu(self.bn2(out_BHWC))
        out_BHWC = self.bn3(_convolve(_average(out_BHWC, self.stride), self.conv3))
        if self.downsample is not None:
            assert self.downsample_bn is not None
            x_BHWC = _convolve(_average(x_BHWC, self.stride), self.downsample)
            x_BHWC = self.downsample_bn(x_BHWC)
        return jax.nn.relu(out_BHWC + x_BHWC)


class Stage(nnx.Module):
    """Blocks of one resolution: the first reaches it; the rest are equal, stacked and scanned."""

    def __init__(
        self, width_in: int, width: int, depth: int, stride: int, cfg: ResNetConfig, rngs: nnx.Rngs
    ):
        wide, rest = EXPANSION * width, (depth - 1,)
        self.first = Bottleneck(width_in, width, stride, cfg.norm_eps, rngs)
        self.rest = Bottleneck(wide, width, 1, cfg.norm_eps, rngs, rest) if depth > 1 else None
        self.remat: Remat = cfg.remat

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        """Run all blocks."""
        dots = jax.checkpoint_policies.save_only_these_names(NARROW)
        x_BHWC = rematerialised(self.first, self.remat, scanned=False, dots=dots)(x_BHWC)
        if self.rest is None:
            return x_BHWC
        graphdef, params = nnx.split(self.rest)

        def block(x_BHWC, params):
            return nnx.merge(graphdef, params)(x_BHWC)

        block = rematerialised(block, self.remat, dots=dots)
        return jax.lax.scan(lambda x, params: (block(x, params), None), x_BHWC, params)[0]


class AttentionPool(nnx.Module):
    """Attention over all pixels, with their mean as the only query."""

    def __init__(self, cfg: ResNetConfig, rngs: nnx.Rngs):
        d, n, k, e = cfg.pool_width, cfg.num_heads, cfg.head_width, cfg.embed
        num_positions = (cfg.image_size // 32) ** 2 + 1
        init, heads = normal(d**-0.5), ("heads", "head_width")
        self.positional_embedding = param(rngs, (num_positions, d), ("position", "embed"), init)
        self.q_kernel, self.k_kernel, self.v_kernel = (
            param(rngs, (d, n, k), ("embed", *heads), init) for _ in range(3)
        )
        self.q_bias, self.k_bias, self.v_bias = (
            param(rngs, (n, k), heads, ZEROS) for _ in range(3)
        )
        self.c_kernel = param(rngs, (n, k, e), (*heads, "shared"), init)
        self.c_bias = param(rngs, (e,), ("shared",), ZEROS)

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        """Pool all pixels into one embedding.

        Departure from the source: keys and values are not computed. With one query it is cheaper to
        apply the key matrix to the query, and the value matrix to each head's mean of the pixels.
        The keys' bias adds one number to all scores of a head, and the softmax cancels this number.
        So the bias has no gradient and exists only for the checkpoint.

        Returns:
            f32 [B, E].
        """
        dtype = x_BHWC.dtype

        def cast(variable: nnx.Param) -> jax.Array:
            return variable[...].astype(dtype)

        x_BTD = x_BHWC.reshape(x_BHWC.shape[0], -1, x_BHWC.shape[-1])
        x_BTD = jnp.concatenate([x_BTD.mean(1, keepdims=True), x_BTD], axis=1)
        x_BTD = x_BTD + cast(self.positional_embedding)
        q_BNK = jnp.einsum("bd,dnk->bnk", x_BTD[:, 0], cast(self.q_kernel)) + cast(self.q_bias)
        q_BNK = q_BNK * q_BNK.shape[-1] ** -0.5
        q_BND = jnp.einsum("bnk,dnk->bnd", q_BNK, cast(self.k_kernel))
        scores_BNT = jnp.einsum("bnd,btd->bnt", q_BND, x_BTD, preferred_element_type=jnp.float32)
        share_BNT = jax.nn.softmax(scores_BNT).astype(dtype)
        x_BND = jnp.einsum("bnt,btd->bnd", share_BNT, x_BTD)
        x_BNK = jnp.einsum("bnd,dnk->bnk", x_BND, cast(self.v_kernel)) + cast(self.v_bias)
        x_BE = jnp.einsum(
            "bnk,nke->be", x_BNK, cast(self.c_kernel), preferred_element_type=jnp.float32
        )
        return x_BE + self.c_bias[...].astype(jnp.float32)


class ResNetTower(nnx.Module):
    """CLIP's residual network; sub-modules keep the source's names."""

    def __init__(self, cfg: ResNetConfig, rngs: nnx.Rngs):
        self.cfg = cfg
        c, eps, first = cfg.width, cfg.norm_eps, (*_SQUARE[:2], "colour", "channels_out")
        self.conv1 = param(rngs, (3, 3, 3, c // 2), first, _init(9 * 3))
        self.bn1 = BatchNorm(c // 2, eps, rngs)
        self.conv2 = param(rngs, (3, 3, c // 2, c // 2), _SQUARE, _init(9 * c // 2))
        self.bn2 = BatchNorm(c // 2, eps, rngs)
        self.conv3 = param(rngs, (3, 3, c // 2, c), _SQUARE, _init(9 * c // 2))
        self.bn3 = BatchNorm(c, eps, rngs)
        self.layer1 = Stage(c, c, cfg.depths[0], 1, cfg, rngs)
        self.layer2 = Stage(EXPANSION * c, 2 * c, cfg.depths[1], 2, cfg, rngs)
        self.layer3 = Stage(EXPANSION * 2 * c, 4 * c, cfg.depths[2], 2, cfg, rngs)
        self.layer4 = Stage(EXPANSION * 4 * c, 8 * c, cfg.depths[3], 2, cfg, rngs)
        self.attnpool = AttentionPool(cfg, rngs)

    def _stem(self, x_BHWC: jax.Array) -> jax.Array:
        x_BHWC = jax.nn.relu(self.bn1(_convolve(x_BHWC, self.conv1, stride=2)))
        x_BHWC = jax.nn.relu(self.bn2(_convolve(x_BHWC, self.conv2)))
        x_BHWC = jax.nn.relu(self.bn3(_convolve(x_BHWC, self.conv3)))
        return _average(x_BHWC, 2)

    def __call__(self, image_BHWC: jax.Array) -> jax.Array:
        """Embed images.

        Args:
            image_BHWC: float [B, image_size, image_size, 3], CLIP-normalised, not 0-255.

        Returns:
            f32 [B, E], not normalised.
        """
        # The stem has the largest feature maps and few products, so `dots` keeps nothing of it.
        dots = jax.checkpoint_policies.nothing_saveable
        stem = rematerialised(self._stem, self.cfg.remat, scanned=False, dots=dots)
        x_BHWC = stem(image_BHWC.astype(self.cfg.dtype))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x_BHWC = stage(x_BHWC)
        return self.attnpool(x_BHWC)


def _init(fan_in: int) -> Callable[..., jax.Array]:
    return normal((3 * fan_in) ** -0.5)  # the standard deviation of torch's initial convolutions


def _convolve(x_BHWC: jax.Array, kernel: nnx.Param, stride: int = 1) -> jax.Array:
    """Convolve with a kernel of one pixel [I, O], or of 3 x 3 [3, 3, I, O] with a border of 1."""
    value = kernel[...].astype(x_BHWC.dtype)
    if value.ndim == 2:
        return x_BHWC @ value
    # With a stride, "SAME" would leave out the border at the top and on the left.
    return jax.lax.conv_general_dilated(
        x_BHWC,
        value,
        window_strides=(stride, stride),
        padding=((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _average(x_BHWC: jax.Array, stride: int) -> jax.Array:
    """Average squares whose side is `stride` pixels."""
    if stride == 1:
        return x_BHWC
    b, h, w, c = x_BHWC.shape
    return x_BHWC.reshape(b, h // stride, stride, w // stride, stride, c).mean((2, 4))
