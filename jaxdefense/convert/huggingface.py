"""CLIP as transformers saves it: `config.json`, and the parameter for each tensor.

Both entry points pass SigLIP on to `convert/siglip.py`.

Source: transformers `models/clip/configuration_clip.py` (defaults of absent fields),
`models/clip/modeling_clip.py` (parameter names).
Parity: tests/test_convert.py, round trip bit for bit; tests/test_parity.py builds the torch model
from the same `config.json`.
"""

from collections.abc import Collection, Iterable
from typing import Any

from jaxdefense.clip.config import CLIPConfig, TextConfig, TowerConfig, VisionConfig
from jaxdefense.convert import siglip
from jaxdefense.convert.fields import HF_MODEL, HF_TEXT, HF_VISION, tower_fields
from jaxdefense.convert.table import Row, layers, linear, norm, patches, text_tower
from jaxdefense.errors import InputError

_LARGEST = 2  # an `eos_token_id` that means the largest token id
_ARCHITECTURES = {
    "CLIPModel": ("text", "vision"),
    "CLIPTextModel": ("text",),
    "CLIPTextModelWithProjection": ("text",),
    "CLIPVisionModel": ("vision",),
    "CLIPVisionModelWithProjection": ("vision",),
}


def config_from_hf(raw: dict[str, Any]) -> CLIPConfig:
    """Read the fields of a Hugging Face CLIP or SigLIP `config.json`.

    Args:
        raw: the parsed file of a CLIPModel, or of a CLIPTextModel or CLIPVisionModel with or
            without projection; or of a model type that begins with `siglip`.

    Raises:
        InputError: the file is of another family, or a field is out of range.

    Source: transformers `configuration_clip.py`.
    """
    if str(raw.get("model_type")).startswith("siglip"):
        return siglip.config_from_siglip(raw)
    architecture = raw.get("architectures") or ["CLIPModel"]
    architecture = architecture[0] if isinstance(architecture, list) else architecture
    towers = _ARCHITECTURES.get(str(architecture))
    if towers is None:
        raise InputError(
            f"`architectures` (={architecture!r}) must be one of {', '.join(_ARCHITECTURES)}; "
            "this is not a CLIP model that jaxdefense reads."
        )
    if raw.get("model_type", "clip") not in ("clip", "clip_text_model", "clip_vision_model"):
        raise InputError(
            f"`model_type` (={raw['model_type']!r}) must be 'clip', 'clip_text_model' or "
            "'clip_vision_model'; this is not a CLIP model."
        )
    HF_MODEL.check(raw, "", closed=False)
    text = vision = None
    nested = len(towers) > 1
    if "text" in towers:
        fields = tower_fields(raw, "text", towers, twice=True)
        HF_TEXT.check(fields, "text_config.", closed=False)
        embed = (raw if nested else fields).get("projection_dim", 512)
        text = TextConfig(
            **_shared_fields(fields, width=512, mlp_width=2048, depth=12, num_heads=8),
            vocab_size=fields.get("vocab_size", 49408),
            context_length=fields.get("max_position_embeddings", 77),
            embed=0 if architecture == "CLIPTextModel" else embed,
            **_readout(fields.get("eos_token_id", 49407)),
        )
    if "vision" in towers:
        fields = tower_fields(raw, "vision", towers, twice=True)
        HF_VISION.check(fields, "vision_config.", closed=False)
        embed = (raw if nested else fields).get("projection_dim", 512)
        vision = VisionConfig(
            **_shared_fields(fields, width=768, mlp_width=3072, depth=12, num_heads=12),
            image_size=fields.get("image_size", 224),
            patch_size=fields.get("patch_size", 32),
            embed=0 if architecture == "CLIPVisionModel" else embed,
        )
    return CLIPConfig(text, vision)


def hf_config(cfg: CLIPConfig) -> dict[str, Any]:
    """Write a model's sizes as the fields of a `config.json`, defaults included.

    Raises:
        InputError: transformers has no model of these sizes.
    """
    if cfg.vision and not isinstance(cfg.vision, VisionConfig):
        raise InputError("transformers' CLIP has no residual network; keep OpenCLIP's layout.")
    text = cfg.text and _fields(cfg.text) | {
        "model_type": "clip_text_model",
        "vocab_size": cfg.text.vocab_size,
        "max_position_embeddings": cfg.text.context_length,
        **_ends(cfg.text),
        "projection_dim": cfg.text.embed,
    }
    vision = cfg.vision and _fields(cfg.vision) | {
        "model_type": "clip_vision_model",
        "image_size": cfg.vision.image_size,
        "patch_size": cfg.vision.patch_size,
        "projection_dim": cfg.vision.embed,
    }
    if text and vision:
        return {
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "projection_dim": text["projection_dim"],
            "text_config": text,
            "vision_config": vision,
        }
    if text:
        kind = "CLIPTextModelWithProjection" if text["projection_dim"] else "CLIPTextModel"
        return {"architectures": [kind], **text}
    assert vision
    kind = "CLIPVisionModelWithProjection" if vision["projection_dim"] else "CLIPVisionModel"
    return {"architectures": [kind], **vision}


def _readout(eos: Any) -> dict[str, Any]:
    """Find where texts are read out; files before transformers 4.31 say 2 for the largest."""
    if eos == _LARGEST:
        return {"readout": "largest"}
    return {"readout": "token", "eos_token_id": eos}


def _ends(text: TextConfig) -> dict[str, int]:
    eos = text.eos_token_id
    if eos is None:
        return {"bos_token_id": 0, "eos_token_id": _LARGEST}  # as OpenAI's own files have it
    if eos == _LARGEST:
        raise InputError(
            f"texts of this model are read out at token {eos}; transformers' CLIP cannot, as "
            f"`eos_token_id` {eos} means the largest token id there. Keep OpenCLIP's layout."
        )
    return {"bos_token_id": max(0, eos - 1), "eos_token_id": eos}


def _fields(tower: TowerConfig) -> dict[str, Any]:
    return {
        "hidden_size": tower.width,
        "intermediate_size": tower.mlp_width,
        "num_hidden_layers": tower.depth,
        "num_attention_heads": tower.num_heads,
        "hidden_act": tower.activation,
        "layer_norm_eps": tower.norm_eps,
    }


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


def hf_table(cfg: CLIPConfig, keys: Collection[str] = ()) -> list[Row]:
    """List every tensor of a Hugging Face CLIP or SigLIP of this config.

    Args:
        cfg: the model.
        keys: keys of the checkpoint, if there is one; recent versions of the source save a lone
            encoder without projection, and SigLIP's, without the prefix of the tower.
    """
    alone = bool(keys) and not (cfg.text and cfg.vision)
    bare = alone and not any("text_model." in key or "vision_model." in key for key in keys)
    if cfg.siglip:
        return siglip.siglip_table(cfg, bare)
    rows: list[Row] = []
    if cfg.text:
        rows += _text(cfg, "" if bare else "text_model.")
    if cfg.vision:
        rows += _vision(cfg, "" if bare else "vision_model.")
    if cfg.text and cfg.vision:
        rows.append(Row("logit_scale", (), ("logit_scale",)))
    return rows


def _text(cfg: CLIPConfig, prefix: str) -> Iterable[Row]:
    t = cfg.text
    assert t
    yield from text_tower(t, prefix)
    if t.embed:
        yield linear("text_projection.weight", t.width, t.embed, ("text", "projection"))


def _vision(cfg: CLIPConfig, prefix: str) -> Iterable[Row]:
    v = cfg.vision
    assert isinstance(v, VisionConfig)
    d, p, at = v.width, v.patch_size, ("vision",)
    embeddings = f"{prefix}embeddings."
    num_positions = (v.image_size // p) ** 2 + 1
    yield Row(f"{embeddings}class_embedding", (d,), (*at, "class_embedding"))
    yield patches(f"{embeddings}patch_embedding.weight", d, p, (*at, "patch_embedding"))
    yield Row(
        f"{embeddings}position_embedding.weight", (num_positions, d), (*at, "position_embedding")
    )
    yield from norm(f"{prefix}pre_layrnorm", d, (*at, "pre_layernorm"))  # the source's typo
    yield from layers(v, f"{prefix}encoder.layers.", at)
    yield from norm(f"{prefix}post_layernorm", d, (*at, "post_layernorm"))
    if v.embed:
        yield linear("visual_projection.weight", d, v.embed, (*at, "projection"))
