"""Sizes and switches of a CLIP model."""

import dataclasses
from typing import Literal

from jaxdefense.errors import InputError

Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]
Remat = Literal["none", "dots", "full"]


def _check_remat(remat: str) -> None:
    if remat not in ("none", "dots", "full"):
        raise InputError(f"`remat` (={remat!r}) must be 'none', 'dots' or 'full'.")


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """Settings of both transformers; `width` is D, `mlp_width` F, `depth` L, `num_heads` N."""

    width: int
    mlp_width: int
    depth: int
    num_heads: int
    activation: Activation = "quick_gelu"
    norm_eps: float = 1e-5
    dtype: str = "float32"  # of the computation; parameters keep their own
    remat: Remat = "none"

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)  # `embed` may be 0
            if field.type in ("int", int) and (
                type(value) is not int or value < (field.name != "embed")
            ):
                raise InputError(f"`{field.name}` (={value!r}) must be a whole number above 0.")
        if self.width % self.num_heads:
            raise InputError(
                f"`hidden_size` (={self.width}) must be divisible by "
                f"`num_attention_heads` (={self.num_heads})."
            )
        if self.activation not in ("quick_gelu", "gelu", "gelu_tanh"):
            raise InputError(
                f"`hidden_act` (={self.activation!r}) must be 'quick_gelu', 'gelu' or "
                "'gelu_pytorch_tanh'; no other activation is known in CLIP and SigLIP."
            )
        if type(self.norm_eps) not in (int, float) or not 0 <= self.norm_eps < 1:
            raise InputError(f"`layer_norm_eps` (={self.norm_eps!r}) must be a number below 1.")
        _check_remat(self.remat)

    @property
    def head_width(self) -> int:
        """K."""
        return self.width // self.num_heads


@dataclasses.dataclass(frozen=True)
class TextConfig(TowerConfig):
    """The text tower. `embed` is E, or 0 for a tower without a projection.

    `readout` says at which position a text is read out: that of the `largest` token id, that of
    `eos_token_id` (`token`), or the `last`. If several positions qualify, the first counts.
    """

    vocab_size: int = 49408
    context_length: int = 77
    embed: int = 512
    readout: Literal["largest", "token", "last"] = "largest"
    eos_token_id: int | None = None  # for readout `token` only
    causal: bool = True  # False: every position sees all others, even padding, as in SigLIP
    projection_bias: bool = False

    def __post_init__(self):
        super().__post_init__()
        eos = self.eos_token_id
        if self.readout == "token" and (type(eos) is not int or eos < 0):
            raise InputError(f"`eos_token_id` (={eos!r}) must be a token id, from 0.")
        assert self.readout == "token" or eos is None

    @property
    def packable(self) -> bool:
        """Tell whether captions may share a row: later tokens must not change a caption."""
        return self.causal


@dataclasses.dataclass(frozen=True)
class VisionConfig(TowerConfig):
    """The image tower. `embed` is E, or 0 for a tower without a projection."""

    image_size: int = 224
    patch_size: int = 32
    embed: int = 512
    pool: Literal["class", "attention"] = "class"  # attention: SigLIP's, without a projection

    def __post_init__(self):
        super().__post_init__()
        if self.patch_size > self.image_size:
            raise InputError(
                f"`patch_size` (={self.patch_size}) must be at most `image_size` "
                f"(={self.image_size})."
            )


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """The image tower of RN50 and its like.

    Fields:
        width: channels out of the stem; the four stages put out 4, 8, 16 and 32 times as many.
        depths: blocks of each stage.
        num_heads: N, of the attention that pools the last stage.
        image_size: H and W.
        embed: E.
        norm_eps: of the batch norms.
        dtype, remat: see `TowerConfig`.
    """

    width: int
    depths: tuple[int, int, int, int]
    num_heads: int
    image_size: int = 224
    embed: int = 1024
    norm_eps: float = 1e-5
    dtype: str = "float32"
    remat: Remat = "none"

    def __post_init__(self):
        for name in ("width", "num_heads", "image_size", "embed"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InputError(f"`{name}` (={value!r}) must be a whole number above 0.")
        depths = self.depths
        if (
            type(depths) is not tuple
            or len(depths) != 4
            or any(type(depth) is not int or depth < 1 for depth in depths)
        ):
            raise InputError(f"`depths` (={depths!r}) must be a tuple of 4 whole numbers above 0.")
        if self.width % 2:
            raise InputError(f"`width` (={self.width}) must be even; the stem starts with half.")
        if self.pool_width % self.num_heads:
            raise InputError(
                f"32 times `width` (={self.pool_width}) must be divisible by `num_heads` "
                f"(={self.num_heads})."
            )
        if self.image_size % 32:
            raise InputError(
                f"`image_size` (={self.image_size}) must be divisible by 32, which the tower "
                "shrinks it by."
            )
        _check_remat(self.remat)

    @property
    def pool_width(self) -> int:
        """D: channels out of the last stage."""
        return 32 * self.width

    @property
    def head_width(self) -> int:
        """K."""
        return self.pool_width // self.num_heads


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """A model with two towers, or with one; the other is then None."""

    text: TextConfig | None
    vision: VisionConfig | ResNetConfig | None
    logit_bias: bool = False  # SigLIP's loss has one

    @property
    def siglip(self) -> bool:
        """Tell whether this is a SigLIP model, or one of its encoders."""
        if self.text:
            return not self.text.causal
        return isinstance(self.vision, VisionConfig) and self.vision.pool == "attention"

    def with_compute(self, dtype: str, remat: Remat = "none") -> "CLIPConfig":
        """Give the same model with another computation dtype and another remat policy."""
        change = dict(dtype=dtype, remat=remat)
        return dataclasses.replace(
            self,
            text=self.text and dataclasses.replace(self.text, **change),  # pyright: ignore[reportArgumentType]
            vision=self.vision and dataclasses.replace(self.vision, **change),  # pyright: ignore[reportArgumentType]
        )
