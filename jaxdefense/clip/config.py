"""Sizes and switches of a CLIP model, read from a Hugging Face `config.json`.

Source: transformers `models/clip/configuration_clip.py` (defaults of absent fields).
Parity: tests/test_parity.py builds the torch model from the same `config.json`.
"""

import dataclasses
from typing import Any, Literal

Activation = Literal["quick_gelu", "gelu"]
Remat = Literal["none", "dots", "full"]


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """What both transformers share; `width` is D, `mlp_width` F, `depth` L, `num_heads` N."""

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
            value = getattr(self, field.name)
            # `embed` may be 0; `eos_token_id` is of no account here.
            if field.name == "eos_token_id":
                continue
            if field.type in ("int", int) and (
                type(value) is not int or value < (field.name != "embed")
            ):
                raise ValueError(f"`{field.name}` (={value!r}) must be a whole number above 0.")
        if self.width % self.num_heads:
            raise ValueError(
                f"`hidden_size` (={self.width}) must be divisible by "
                f"`num_attention_heads` (={self.num_heads})."
            )
        if self.activation not in ("quick_gelu", "gelu"):
            raise ValueError(
                f"`hidden_act` (={self.activation!r}) must be 'quick_gelu' or 'gelu'; "
                "no other activation is known in CLIP."
            )
        if self.remat not in ("none", "dots", "full"):
            raise ValueError(f"`remat` (={self.remat!r}) must be 'none', 'dots' or 'full'.")

    @property
    def head_width(self) -> int:
        """K."""
        return self.width // self.num_heads


@dataclasses.dataclass(frozen=True)
class TextConfig(TowerConfig):
    """The text tower. `embed` is E, or 0 for a tower without a projection."""

    vocab_size: int = 49408
    context_length: int = 77
    embed: int = 512
    eos_token_id: int = 49407  # 2 in old files: there, the end of text is the largest token id


@dataclasses.dataclass(frozen=True)
class VisionConfig(TowerConfig):
    """The image tower. `embed` is E, or 0 for a tower without a projection."""

    image_size: int = 224
    patch_size: int = 32
    embed: int = 512

    def __post_init__(self):
        super().__post_init__()
        if self.patch_size > self.image_size:
            raise ValueError(
                f"`patch_size` (={self.patch_size}) must be at most `image_size` "
                f"(={self.image_size})."
            )


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """A model of two towers, or of one with the other None."""

    text: TextConfig | None
    vision: VisionConfig | None

    def with_compute(self, dtype: str, remat: Remat = "none") -> "CLIPConfig":
        """The same model, computed in another dtype and with another remat policy."""
        change = dict(dtype=dtype, remat=remat)
        return CLIPConfig(
            self.text and dataclasses.replace(self.text, **change),  # pyright: ignore[reportArgumentType]
            self.vision and dataclasses.replace(self.vision, **change),  # pyright: ignore[reportArgumentType]
        )


_ARCHITECTURES = {
    "CLIPModel": ("text", "vision"),
    "CLIPTextModel": ("text",),
    "CLIPTextModelWithProjection": ("text",),
    "CLIPVisionModelWithProjection": ("vision",),
}


def config_from_hf(raw: dict[str, Any]) -> CLIPConfig:
    """Read the fields of a Hugging Face CLIP `config.json`.

    Args:
        raw: the parsed file of a CLIPModel, CLIPTextModel, CLIPTextModelWithProjection or
            CLIPVisionModelWithProjection.

    Raises:
        ValueError: the file is of another family, or a field is out of range.

    Source: transformers `configuration_clip.py`.
    """
    architecture = raw.get("architectures") or ["CLIPModel"]
    architecture = architecture[0] if isinstance(architecture, list) else architecture
    for section in ("text_config", "vision_config", "text_config_dict", "vision_config_dict"):
        if not isinstance(raw.get(section) or {}, dict):
            raise ValueError(f"`{section}` must be a JSON object.")
    towers = _ARCHITECTURES.get(architecture)
    if towers is None:
        raise ValueError(
            f"`architectures` (={architecture!r}) must be one of {', '.join(_ARCHITECTURES)}; "
            "this is not a CLIP model that jaxdefense reads."
        )
    if raw.get("model_type", "clip") not in ("clip", "clip_text_model", "clip_vision_model"):
        raise ValueError(
            f"`model_type` (={raw['model_type']!r}) must be 'clip', 'clip_text_model' or "
            "'clip_vision_model'; this is not a CLIP model."
        )
    text = vision = None
    if "text" in towers:
        # A CLIPModel nests its towers' fields (twice, in old files: the `_dict` one wins).
        nested = architecture == "CLIPModel"
        fields = (raw.get("text_config") or {}) | (raw.get("text_config_dict") or {})
        fields = fields if nested else raw
        embed = (raw if nested else fields).get("projection_dim", 512)
        text = TextConfig(
            **_shared_fields(fields, width=512, mlp_width=2048, depth=12, num_heads=8),
            vocab_size=fields.get("vocab_size", 49408),
            context_length=fields.get("max_position_embeddings", 77),
            embed=0 if architecture == "CLIPTextModel" else embed,
            eos_token_id=fields.get("eos_token_id", 49407),
        )
    if "vision" in towers:
        nested = architecture == "CLIPModel"
        fields = (raw.get("vision_config") or {}) | (raw.get("vision_config_dict") or {})
        fields = fields if nested else raw
        vision = VisionConfig(
            **_shared_fields(fields, width=768, mlp_width=3072, depth=12, num_heads=12),
            image_size=fields.get("image_size", 224),
            patch_size=fields.get("patch_size", 32),
            embed=(raw if nested else fields).get("projection_dim", 512),
        )
    return CLIPConfig(text, vision)


def _shared_fields(
    fields: dict[str, Any], width: int, mlp_width: int, depth: int, num_heads: int
) -> dict[str, Any]:
    return dict(
        width=fields.get("hidden_size", width),
        mlp_width=fields.get("intermediate_size", mlp_width),
        depth=fields.get("num_hidden_layers", depth),
        num_heads=fields.get("num_attention_heads", num_heads),
        activation=fields.get("hidden_act", "quick_gelu"),
        norm_eps=fields.get("layer_norm_eps", 1e-5),
    )
