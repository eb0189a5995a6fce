"""The image tower: a vision transformer read out at its class token.

Source: transformers `models/clip/modeling_clip.py` (CLIPVisionTransformer).
Parity: tests/test_parity.py <= 1e-4, f32.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdefense.clip.config import VisionConfig
from jaxdefense.clip.layers import Encoder, LayerNorm, normal, param


class VisionTower(nnx.Module):
    """CLIP's vision transformer."""

    def __init__(self, cfg: VisionConfig, rngs: nnx.Rngs):
        self.cfg = cfg
        d, p = cfg.width, cfg.patch_size
        num_positions = (cfg.image_size // p) ** 2 + 1
        patch_dims = ("patch_height", "patch_width", "colour", "embed")
        self.patch_embedding = param(rngs, (p, p, 3, d), patch_dims, normal(0.02))
        self.class_embedding = param(rngs, (d,), ("embed",), normal(d**-0.5))
        self.position_embedding = param(
            rngs, (num_positions, d), ("position", "embed"), normal(0.02)
        )
        self.pre_layernorm = LayerNorm(d, cfg.norm_eps, rngs)
        self.encoder = Encoder(cfg, rngs)
        self.post_layernorm = LayerNorm(d, cfg.norm_eps, rngs)
        self.projection = param(rngs, (d, cfg.embed), ("embed", "shared"), normal(d**-0.5))

    def __call__(self, image_BHWC: jax.Array) -> jax.Array:
        """Embed images.

        Args:
            image_BHWC: float [B, image_size, image_size, 3], CLIP-normalised, not 0-255.

        Returns:
            f32 [B, E], not normalised.
        """
        p, d = self.cfg.patch_size, self.cfg.width
        side = self.cfg.image_size // p
        dtype = self.cfg.dtype
        image = image_BHWC[:, : side * p, : side * p].astype(dtype)  # a convolution drops the rest
        # Patches do not overlap: their convolution is a matrix product.
        image = image.reshape(-1, side, p, side, p, 3).swapaxes(2, 3)
        patches_BTX = image.reshape(-1, side * side, p * p * 3)
        x_BTD = patches_BTX @ self.patch_embedding[...].astype(dtype).reshape(-1, d)
        first = jnp.broadcast_to(self.class_embedding[...].astype(dtype), (x_BTD.shape[0], 1, d))
        x_BTD = jnp.concatenate([first, x_BTD], axis=1)
        x_BTD = x_BTD + self.position_embedding[...].astype(dtype)
        first_B1 = jnp.zeros((x_BTD.shape[0], 1), jnp.int32)
        x_BD = self.post_layernorm(self.encoder(self.pre_layernorm(x_BTD), None, first_B1)[:, 0])
        kernel = self.projection[...].astype(x_BD.dtype)
        return jnp.matmul(x_BD, kernel, preferred_element_type=jnp.float32)
