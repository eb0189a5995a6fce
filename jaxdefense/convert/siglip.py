"""SigLIP as transformers saves it: `config.json`, and the parameter for each tensor.

SigLIP 2 of fixed resolution is the same model with another tokenizer; the NaFlex variant is another
model.

Source: transformers `models/siglip/configuration_siglip.py` (defaults of absent fields),
`models/siglip/modeling_siglip.py` (parameter names).
Parity: tests/test_siglip.py, round trip bit for bit, towers <= 1e-4.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from jaxdefense.clip.config import CLIPConfig, TextConfig, VisionConfig
from jaxdefense.convert.fields import SIGLIP_MODEL, SIGLIP_TEXT, SIGLIP_VISION, tower_fields
from jaxdefense.convert.table import (
    Path,
    Row,
    fused_attention,
    layers,
    linear,
    norm,
    patches,
    text_tower,
)
from jaxdefense.errors import InputError

_ARCHITECTURES = {
    "SiglipModel": ("siglip", ("text", "vision")),
    "SiglipTextModel": ("siglip_text_model", ("text",)),
    "SiglipVisionModel": ("siglip_vision_model", ("vision",)),
}
_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh"}  # the source's name for it


def config_from_siglip(raw: dict[str, Any]) -> CLIPConfig:
    """Read the fields of a Hugging Face SigLIP `config.json`.

    Args:
        raw: the parsed file of a SiglipModel, SiglipTextModel or SiglipVisionModel.

    Raises:
        InputError: the file is of another architecture, or a field is out of range.

    Source: transformers `configuration_siglip.py`.
    """
    model_type = raw["model_type"]
    if str(model_type).startswith("siglip2"):
        raise InputError(
            f"`model_type` (={model_type!r}) is a NaFlex model, whose images have any number of "
            "patches; take a SigLIP 2 of fixed resolution, such as siglip2-base-patch16-224."
        )
    by_type = {kind: architecture for architecture, (kind, _) in _ARCHITECTURES.items()}
    architecture = raw.get("architectures") or [by_type.get(model_type)]
    architecture = str(architecture[0] if isinstance(architecture, list) else architecture)
    kind, towers = _ARCHITECTURES.get(architecture, ("", ()))
    if kind != model_type:
        raise InputError(
            f"`architectures` (={architecture!r}) with `model_type` (={model_type!r}) must be one "
            f"of {', '.join(_ARCHITECTURES)} with its own; this is not a CLIP model, nor a SigLIP "
            "that jaxdefense reads."
        )
    SIGLIP_MODEL.check(raw, "", closed=False)
    text = _text_config(raw, towers) if "text" in towers else None
    vision = _vision_config(raw, towers) if "vision" in towers else None
    if text and vision and text.embed != vision.embed:
        raise InputError(
            f"`projection_size` (={text.embed}) of texts must be `hidden_size` (={vision.embed}) "
            "of images: their embeddings are compared."
        )
    return CLIPConfig(text, vision, logit_bias=len(towers) > 1)


def _text_config(raw: dict[str, Any], towers: Sequence[str]) -> TextConfig:
    fields = tower_fields(raw, "text", towers, twice=False)
    SIGLIP_TEXT.check(fields, "text_config.", closed=False)
    shared = _shared_fields(fields)
    embed = fields.get("projection_size")
    return TextConfig(
        **shared,
        vocab_size=fields.get("vocab_size", 32000),
        context_length=fields.get("max_position_embeddings", 64),
        embed=shared["width"] if embed is None else embed,
        readout="last",
        causal=False,
        projection_bias=True,
    )


def _vision_config(raw: dict[str, Any], towers: Sequence[str]) -> VisionConfig:
    fields = tower_fields(raw, "vision", towers, twice=False)
    SIGLIP_VISION.check(fields, "vision_config.", closed=False)
    shared = _shared_fields(fields)
    return VisionConfig(
        **shared,
        image_size=fields.get("image_size", 224),
        patch_size=fields.get("patch_size", 16),
        embed=shared["width"],
        pool="attention",
    )


def _shared_fields(fields: dict[str, Any]) -> dict[str, Any]:
    activation = fields.get("hidden_act", "gelu_pytorch_tanh")
    return dict(
        width=fields.get("hidden_size", 768),
        mlp_width=fields.get("intermediate_size", 3072),
        depth=fields.get("num_hidden_layers", 12),
        num_heads=fields.get("num_attention_heads", 12),
        activation=_ACTIVATIONS.get(str(activation), activation),
        norm_eps=fields.get("layer_norm_eps", 1e-6),
    )


def siglip_table(cfg: CLIPConfig, bare: bool = False) -> list[Row]:
    """List every tensor of a Hugging Face SigLIP of this config.

    Args:
        cfg: the model.
        bare: whether keys lack the prefix `text_model.` or `vision_model.`, as in a lone encoder
            saved by recent versions of the source.
    """
    rows: list[Row] = []
    if cfg.text:
        rows += _text(cfg.text, "" if bare else "text_model.")
    if isinstance(cfg.vision, VisionConfig):
        rows += _vision(cfg.vision, "" if bare else "vision_model.")
    if cfg.logit_bias:
        rows += [_scalar("logit_scale"), _scalar("logit_bias")]
    return rows


def _scalar(name: str) -> Row:
    return Row(name, (1,), (name,), load=lambda x: x.reshape(()), store=lambda x: x.reshape(1))


def _text(t: TextConfig, prefix: str) -> Iterable[Row]:
    d, at = t.width, ("text",)
    yield from text_tower(t, prefix)
    yield linear(f"{prefix}head.weight", d, t.embed, (*at, "projection"))
    yield Row(f"{prefix}head.bias", (t.embed,), (*at, "projection_bias"))


def _vision(v: VisionConfig, prefix: str) -> Iterable[Row]:
    d, p, at, embeddings = v.width, v.patch_size, ("vision",), f"{prefix}embeddings."
    yield patches(f"{embeddings}patch_embedding.weight", d, p, (*at, "patch_embedding"))
    yield Row(f"{embeddings}patch_embedding.bias", (d,), (*at, "patch_bias"))
    yield Row(
        f"{embeddings}position_embedding.weight",
        ((v.image_size // p) ** 2, d),
        (*at, "position_embedding"),
    )
    yield from layers(v, f"{prefix}encoder.layers.", at)
    yield from norm(f"{prefix}post_layernorm", d, (*at, "post_layernorm"))
    yield from _head(v, f"{prefix}head.", (*at, "head"))


def _head(v: VisionConfig, prefix: str, at: Path) -> Iterable[Row]:
    d = v.width
    yield Row(
        f"{prefix}probe",
        (1, 1, d),
        (*at, "probe"),
        load=lambda x: x.reshape(d),
        store=lambda x: x.reshape(1, 1, d),
    )
    yield from fused_attention(v, f"{prefix}attention.", (*at, "attention"))
    yield from norm(f"{prefix}layernorm", d, (*at, "layernorm"))
    for name, din, dout in (("fc1", d, v.mlp_width), ("fc2", v.mlp_width, d)):
        mlp = (*at, "mlp")
        yield linear(f"{prefix}mlp.{name}.weight", din, dout, (*mlp, f"{name}_kernel"))
        yield Row(f"{prefix}mlp.{name}.bias", (dout,), (*mlp, f"{name}_bias"))
