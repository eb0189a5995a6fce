"""The text tower: one code path for rows of packed captions and for single padded captions.

CLIP's tower is causal and is read out at the end-of-text token. What follows that token changes
nothing and need not be computed, so several captions share a row. `segments_RT` numbers the
captions of a row, and `positions_RT` restarts at 0 in each. A token sees only its own caption's
past.

SigLIP's tower is not causal: every position sees the whole caption. It is read out at the last
position, which is mostly padding. So its captions are padded to the context length, and the padding
is a part of them.

Source: transformers `models/clip/modeling_clip.py` (CLIPTextTransformer),
`models/siglip/modeling_siglip.py` (SiglipTextModel).
Parity: tests/test_parity.py, tests/test_siglip.py <= 1e-4; packed = padded, tests/test_packing.py
<= 1e-5.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxdefense.clip.config import TextConfig
from jaxdefense.clip.layers import ZEROS, Encoder, LayerNorm, normal, param
from jaxdefense.sharding import look_up

Array = jax.Array | np.ndarray

SHARED = -1


class Text(NamedTuple):
    """Rows of tokens, and the positions at which their captions are read out.

    Fields:
        tokens_RT: int [R, T], token ids, any value outside the captions.
        segments_RT: int [R, T], number of the caption in its row, from 1. 0 is padding. SHARED
            marks the beginning that all captions of the row have in common; the row holds it once.
        positions_RT: int [R, T], position of the token in its caption, from 0.
        readout_RS: int [R, S], index in the row of each slot's end-of-text token; 0 if empty.
    """

    tokens_RT: Array
    segments_RT: Array
    positions_RT: Array
    readout_RS: Array


def plain_text(tokens_BT: Array, readout_B: Array) -> Text:
    """Make the tower's input from padded captions, one a row.

    As in the source, all T positions belong to the caption. Padding after the end of text is
    computed, since level `hidden` reads it. In a causal tower it cannot change what is before it.
    """
    ones = np.ones(tokens_BT.shape, np.int32)
    positions = np.broadcast_to(np.arange(tokens_BT.shape[1], dtype=np.int32), tokens_BT.shape)
    return Text(tokens_BT, ones, positions, readout_B[:, None].astype(np.int32))


def readout_of(tokens_BT: jax.Array, cfg: TextConfig) -> jax.Array:
    """Find the position at which a tower reads each padded caption out; int32 [B].

    As `packing.readout_at` does on the host, for captions of any length.
    """
    if cfg.readout == "last":
        return jnp.full(len(tokens_BT), tokens_BT.shape[1] - 1, jnp.int32)
    if cfg.readout == "largest":
        return tokens_BT.argmax(-1)
    return (tokens_BT == cfg.eos_token_id).argmax(-1)


class TextTower(nnx.Module):
    """CLIP's text transformer, or SigLIP's."""

    def __init__(self, cfg: TextConfig, rngs: nnx.Rngs):
        self.cfg = cfg
        d = cfg.width
        vocab, positions = (cfg.vocab_size, d), (cfg.context_length, d)
        self.token_embedding = param(rngs, vocab, ("vocab", "embed"), normal(0.02))
        self.position_embedding = param(rngs, positions, ("position", "embed"), normal(0.02))
        self.encoder = Encoder(cfg, rngs)
        self.final_layer_norm = LayerNorm(d, cfg.norm_eps, rngs)
        self.projection = (
            param(rngs, (d, cfg.embed), ("embed", "shared"), normal(d**-0.5)) if cfg.embed else None
        )
        if cfg.projection_bias:
            self.projection_bias = param(rngs, (cfg.embed,), ("shared",), ZEROS)

    def _embed(self, text: Text) -> tuple[jax.Array, jax.Array]:
        """Embed tokens; give x_RTD, and the mask of which tokens see which."""
        length = text.tokens_RT.shape[-1]
        segments_RT = jnp.asarray(text.segments_RT)
        mask_RTT = segments_RT[:, :, None] == segments_RT[:, None, :]
        if self.cfg.causal:
            mask_RTT |= segments_RT[:, None, :] == SHARED
            mask_RTT &= jnp.tri(length, dtype=bool)
        x_RTD = look_up(self.token_embedding[...], text.tokens_RT)
        x_RTD = x_RTD + self.position_embedding[...][text.positions_RT]
        return x_RTD.astype(self.cfg.dtype), mask_RTT

    def hidden(self, text: Text) -> jax.Array:
        """Encode every position.

        Returns:
            f32 [R, T, D], after the final norm, as Stable Diffusion 1.x and 2.x read it.
        """
        return self.final_layer_norm(self.encoder(*self._embed(text))).astype(jnp.float32)

    def penultimate(self, text: Text) -> jax.Array:
        """Encode every position, with all blocks but the last.

        Returns:
            f32 [R, T, D], without the final norm, as SDXL reads it from both its encoders.
        """
        return self.encoder.all_but_last(*self._embed(text)).astype(jnp.float32)

    def __call__(self, text: Text) -> jax.Array:
        """Embed every caption.

        Returns:
            f32 [R, S, E], not normalised; empty slots hold meaningless numbers. A tower without a
            projection gives [R, S, D], the final norm's output at the read-out position.
        """
        readout_RS = jnp.asarray(text.readout_RS)
        x_RSD = self.final_layer_norm(self.encoder(*self._embed(text), readout_RS))
        if self.projection is None:
            return x_RSD.astype(jnp.float32)
        x_RSE = x_RSD.astype(jnp.float32) @ self.projection[...]
        return x_RSE + self.projection_bias[...] if self.cfg.projection_bias else x_RSE
