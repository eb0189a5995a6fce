"""The image tower: a vision transformer read out at its class token, or by attention.

Source: transformers `models/clip/modeling_clip.py` (CLIPVisionTransformer),
`models/siglip/modeling_siglip.py` (SiglipVisionModel).
Parity: tests/test_parity.py, tests/test_siglip.py <= 1e-4, f32.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdefense.clip.config import VisionConfig
from jaxdefense.clip.layers import MLP, ZEROS, Attention, Encoder, LayerNorm, linear, normal, param


class AttentionPool(nnx.Module):
    """SigLIP's read-out: a learned query attends to all tokens; an MLP follows."""

    def __init__(self, cfg: VisionConfig, rngs: nnx.Rngs):
        self.probe = param(rngs, (cfg.width,), ("embed",), normal(1.0))
        # The checkpoint keeps query, key and value of this layer in one tensor.
        self.attention = Attention(cfg, rngs, parts="qkv_fused")
        self.layernorm = LayerNorm(cfg.width, cfg.norm_eps, rngs)
        self.mlp = MLP(cfg, rngs)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Pool all tokens into one; [B, D]."""
        # The probe is broadcast in f32, because its gradient is summed over examples.
        probe_B1D = jnp.broadcast_to(self.probe[...], x_BTD[:, :1].shape).astype(x_BTD.dtype)
        x_B1D = self.attention(x_BTD, None, probe_B1D)
        return (x_B1D + self.mlp(self.layernorm(x_B1D)))[:, 0]


def mean_patch(x_BTD: jax.Array) -> jax.Array:
    """Average patches, each scaled to unit length, as a few are far longer than all others.

    Returns:
        [B, D].
    """
    square = jnp.square(x_BTD).sum(-1, keepdims=True)
    return (x_BTD * jax.lax.rsqrt(jnp.maximum(square, 1e-16))).mean(-2)


class VisionTower(nnx.Module):
    """CLIP's vision transformer, or SigLIP's."""

    def __init__(self, cfg: VisionConfig, rngs: nnx.Rngs):
        self.cfg = cfg
        d, p = cfg.width, cfg.patch_size
        num_positions = (cfg.image_size // p) ** 2 + (cfg.pool == "class")
        patch_dims = ("patch_height", "patch_width", "colour", "embed")
        self.patch_embedding = param(rngs, (p, p, 3, d), patch_dims, normal(0.02))
        self.position_embedding = param(
            rngs, (num_positions, d), ("position", "embed"), normal(0.02)
        )
        self.encoder = Encoder(cfg, rngs)
        self.post_layernorm = LayerNorm(d, cfg.norm_eps, rngs)
        if cfg.pool == "attention":
            self.patch_bias = param(rngs, (d,), ("embed",), ZEROS)
            self.head = AttentionPool(cfg, rngs)
        else:
            self.class_embedding = param(rngs, (d,), ("embed",), normal(d**-0.5))
            self.pre_layernorm = LayerNorm(d, cfg.norm_eps, rngs)
            shape, dims = (d, cfg.embed), ("embed", "shared")
            self.projection = param(rngs, shape, dims, normal(d**-0.5)) if cfg.embed else None

    def _embed(self, image_BHWC: jax.Array) -> jax.Array:
        """Embed patches, after the class token if there is one; [B, T, D], the encoder's input."""
        p, d = self.cfg.patch_size, self.cfg.width
        side = self.cfg.image_size // p
        dtype = self.cfg.dtype
        image = image_BHWC[:, : side * p, : side * p].astype(dtype)  # as a convolution does
        # Patches do not overlap, so their convolution is a matrix product.
        image = image.reshape(-1, side, p, side, p, 3).swapaxes(2, 3)
        patches_BTX = image.reshape(-1, side * side, p * p * 3)
        x_BTD = linear("btx,xd->btd", patches_BTX, self.patch_embedding[...].reshape(-1, d))
        # Embeddings are added in f32, as their gradients are summed over examples in this dtype.
        x_BTD = x_BTD.astype(jnp.float32)
        if self.cfg.pool == "attention":
            x_BTD = x_BTD + self.patch_bias[...] + self.position_embedding[...]
            return x_BTD.astype(dtype)
        first = jnp.broadcast_to(self.class_embedding[...], (x_BTD.shape[0], 1, d))
        x_BTD = jnp.concatenate([first, x_BTD], axis=1) + self.position_embedding[...]
        return self.pre_layernorm(x_BTD.astype(dtype))

    def penultimate(self, image_BHWC: jax.Array) -> jax.Array:
        """Encode every patch, with all blocks but the last.

        Args:
            image_BHWC: see `__call__`.

        Returns:
            f32 [B, T, D], without the class token and without norm, as LLaVA reads it.
        """
        x_BTD = self.encoder.all_but_last(self._embed(image_BHWC))
        return x_BTD[:, self.cfg.pool == "class" :].astype(jnp.float32)

    def __call__(self, image_BHWC: jax.Array) -> jax.Array:
        """Embed images.

        Args:
            image_BHWC: float [B, image_size, image_size, 3], normalised, not 0-255.

        Returns:
            f32 [B, E], not normalised. A tower without a projection gives [B, D], the last norm's
            output at the class token.
        """
        x_BTD = self._embed(image_BHWC)
        if self.cfg.pool == "attention":
            return self.head(self.post_layernorm(self.encoder(x_BTD))).astype(jnp.float32)
        first_B1 = jnp.zeros((x_BTD.shape[0], 1), jnp.int32)
        x_BD = self.post_layernorm(self.encoder(x_BTD, None, first_B1)[:, 0]).astype(jnp.float32)
        return x_BD if self.projection is None else x_BD @ self.projection[...]
