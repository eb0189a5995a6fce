"""CLIP in OpenAI's names, as OpenCLIP saves it: the config, and the parameter for each tensor.

Source: open_clip `model.py` (CLIPVisionCfg, CLIPTextCfg, CLIP, CustomTextCLIP), `transformer.py`;
OpenAI CLIP `model.py` (`build_model`: sizes from the shapes of tensors).
Parity: tests/test_openclip.py, live against open_clip; round trip bit for bit.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from jaxdefense.clip.config import CLIPConfig, ResNetConfig, TextConfig, TowerConfig, VisionConfig
from jaxdefense.clip.library import CLEANINGS, OpenClip
from jaxdefense.convert.fields import OPENCLIP_MODEL, OPENCLIP_TEXT, OPENCLIP_VISION
from jaxdefense.convert.resnet import resnet_rows
from jaxdefense.convert.table import Path, Row, fused_attention, linear, norm, patches
from jaxdefense.errors import InputError

_POOLS: Mapping[str, Any] = {"argmax": "largest", "eos": "token"}  # `TextConfig.readout`


def config_from_openclip(raw: dict[str, Any]) -> CLIPConfig:
    """Read the fields of an `open_clip_config.json`, or of its `model_cfg`.

    Raises:
        InputError: the model is not a CLIP that jaxdefense reads, or a field is out of range.
    """
    raw = raw.get("model_cfg", raw)
    OPENCLIP_MODEL.check(raw, "")
    sections = []
    for name, fields in (("vision_cfg", OPENCLIP_VISION), ("text_cfg", OPENCLIP_TEXT)):
        section = raw.get(name)
        if not isinstance(section, dict):
            raise InputError(f"`{name}` must be a JSON object; this is not a config of OpenCLIP.")
        fields.check(section, f"{name}.")
        sections.append(section)
    vision, text = sections
    pool = str(text.get("pool_type", "argmax"))
    if pool not in _POOLS:
        raise InputError(f"`text_cfg.pool_type` (={pool!r}) must be {' or '.join(_POOLS)}.")
    if type(embed := raw.get("embed_dim")) is not int:
        raise InputError(f"`embed_dim` (={embed!r}) must be a whole number above 0.")
    activation = "quick_gelu" if raw.get("quick_gelu") else "gelu"
    width, layers = text.get("width", 512), text.get("layers", 12)
    return CLIPConfig(
        TextConfig(
            width=width,
            mlp_width=_mlp_width(width, text),
            depth=layers,
            num_heads=text.get("heads", 8),
            activation=activation,
            norm_eps=_norm_eps(text),
            vocab_size=text.get("vocab_size", 49408),
            context_length=text.get("context_length", 77),
            embed=embed,
            readout=_POOLS[pool],
            eos_token_id=text.get("eos_id", 2) if pool == "eos" else None,
        ),
        _vision_config(vision, embed, activation),
    )


def _vision_config(
    vision: dict[str, Any], embed: int, activation: Any
) -> VisionConfig | ResNetConfig:
    width, sides = vision.get("width", 768), vision.get("image_size", 224)
    square = isinstance(sides, list | tuple) and len(sides) == 2 and sides[0] == sides[1]
    size: Any = sides[0] if square else sides
    layers, head_width = vision.get("layers", 12), vision.get("head_width", 64)
    is_resnet = isinstance(layers, list | tuple)
    if type(head_width) is not int or type(width) is not int or head_width < 1:
        raise InputError(
            f"`vision_cfg.width` (={width!r}) and `vision_cfg.head_width` (={head_width!r}) must "
            "be whole numbers above 0."
        )
    heads_width = 32 * width if is_resnet else width  # a residual network pools by attention
    if heads_width % head_width:
        raise InputError(
            f"`vision_cfg.head_width` (={head_width}) must divide the width (={heads_width})."
        )
    num_heads = heads_width // head_width
    if is_resnet:
        return ResNetConfig(width, tuple(layers), num_heads, size, embed)  # pyright: ignore[reportArgumentType]
    return VisionConfig(
        width=width,
        mlp_width=_mlp_width(width, vision),
        depth=layers,
        num_heads=num_heads,
        activation=activation,
        norm_eps=_norm_eps(vision),
        image_size=size,
        patch_size=vision.get("patch_size", 16),
        embed=embed,
    )


def _mlp_width(width: int, section: dict[str, Any]) -> int:
    ratio = section.get("mlp_ratio", 4.0)
    if type(ratio) not in (int, float) or not 0 < ratio < math.inf:
        raise InputError(f"`mlp_ratio` (={ratio!r}) must be a number above 0.")
    if type(width) is not int:
        raise InputError(f"`width` (={width!r}) must be a whole number above 0.")
    return int(width * ratio)


def _norm_eps(section: dict[str, Any]) -> float:
    kwargs = section.get("norm_kwargs") or {}
    eps = kwargs.get("eps", 1e-5) if isinstance(kwargs, dict) else None
    if not isinstance(eps, float) or set(kwargs) - {"eps"}:
        raise InputError(f"`norm_kwargs` (={kwargs!r}) must hold `eps` alone, a number.")
    return eps


def openclip_reading(raw: dict[str, Any]) -> OpenClip:
    """Read how texts become tokens from an `open_clip_config.json`, or from its `model_cfg`.

    Raises:
        InputError: the config asks for what jaxdefense does not do.

    Source: open_clip `factory.py` (get_tokenizer), for `local-dir:`.
    """
    text = raw.get("model_cfg", raw).get("text_cfg") or {}
    kwargs, named = text.get("tokenizer_kwargs") or {}, text.get("hf_tokenizer_name") or ""
    if not isinstance(kwargs, dict) or not isinstance(named, str):
        raise InputError("`hf_tokenizer_name` must be a string, `tokenizer_kwargs` a JSON object.")
    clean = kwargs.get("clean", "whitespace" if named else "lower")
    if clean not in CLEANINGS:
        raise InputError(
            f"`tokenizer_kwargs.clean` (={clean!r}) must be one of {', '.join(CLEANINGS)}."
        )
    others = {f"tokenizer_kwargs.{k}": v for k, v in kwargs.items() if k != "clean"}
    others["tokenizer_mode"] = text.get("tokenizer_mode") if named else None
    if set_ := [name for name, value in others.items() if value]:
        raise InputError(
            f"`text_cfg.{set_[0]}` (={others[set_[0]]!r}) must not be set; jaxdefense cleans, "
            "encodes and cuts texts, and no more."
        )
    return OpenClip(clean, named)


def openclip_config(cfg: CLIPConfig) -> dict[str, Any]:
    """Write a model's sizes as OpenCLIP's `model_cfg`.

    Raises:
        InputError: OpenCLIP has no model of these sizes.
    """
    text, vision = cfg.text, cfg.vision
    if text is None or vision is None:
        raise InputError("OpenCLIP keeps both encoders in one model; this model has only one.")
    if cfg.siglip:
        raise InputError("OpenCLIP keeps SigLIP's image encoder as timm does, in other tensors.")
    if isinstance(vision, VisionConfig) and text.activation != vision.activation:
        raise InputError("OpenCLIP has one activation for both encoders; this model has two.")
    if not (text.embed and vision.embed):
        raise InputError("OpenCLIP has no encoder without a projection.")
    raw: dict[str, Any] = {
        "embed_dim": text.embed,
        "vision_cfg": _vision_fields(vision),
        "text_cfg": {
            "context_length": text.context_length,
            "vocab_size": text.vocab_size,
            "heads": text.num_heads,
            **_tower_fields(text),
        },
    }
    if text.readout == "token":
        raw["text_cfg"] |= {"pool_type": "eos", "eos_id": text.eos_token_id}
    if text.activation == "quick_gelu":
        raw["quick_gelu"] = True
    return raw


def _vision_fields(vision: VisionConfig | ResNetConfig) -> dict[str, Any]:
    if isinstance(vision, ResNetConfig):
        return {
            "image_size": vision.image_size,
            "layers": list(vision.depths),
            "width": vision.width,
            "head_width": vision.head_width,
            "patch_size": None,
        }
    return {
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "head_width": vision.head_width,
        **_tower_fields(vision),
    }


def _tower_fields(tower: TowerConfig) -> dict[str, Any]:
    fields: dict[str, Any] = {"width": tower.width, "layers": tower.depth}
    ratio = tower.mlp_width / tower.width
    # The source rounds down, so rounding must not make the ratio too small.
    while int(tower.width * ratio) < tower.mlp_width:
        ratio = math.nextafter(ratio, math.inf)
    if ratio != 4:
        fields["mlp_ratio"] = ratio
    if tower.norm_eps != 1e-5:
        fields["norm_kwargs"] = {"eps": tower.norm_eps}
    return fields


def config_from_shapes(shapes: Mapping[str, tuple[int, ...]], activation: str) -> CLIPConfig:
    """Derive a model's sizes from its tensors, as OpenAI's checkpoints have no config.

    Args:
        shapes: shapes of all tensors, by OpenAI's names.
        activation: the activation, which tensors do not show.

    Raises:
        InputError: a tensor of CLIP is missing, or has a shape that CLIP's cannot have.
    """
    keys = ("text_projection", "positional_embedding", "token_embedding.weight")
    if missing := [key for key in keys if len(shapes.get(key, ())) != 2]:
        raise InputError(f"no matrix `{missing[0]}`; this is not a CLIP in OpenAI's names.")
    width, embed = shapes["text_projection"]

    def depth(prefix: str) -> int:
        return len(
            {key.removeprefix(prefix).split(".")[0] for key in shapes if key.startswith(prefix)}
        )

    text = {
        "context_length": shapes["positional_embedding"][0],
        "vocab_size": shapes["token_embedding.weight"][0],
        "width": width,
        "heads": width // 64,
        "layers": depth("transformer.resblocks."),
    }
    first = "visual.conv1.weight"
    if len(shapes.get(first, ())) != 4:
        raise InputError(f"no filter `{first}`; this is not a CLIP in OpenAI's names.")
    if "visual.proj" in shapes:
        patch = shapes[first][-1]
        vision: dict[str, Any] = {
            "width": shapes[first][0],
            "patch_size": patch,
            "image_size": patch * math.isqrt(shapes["visual.positional_embedding"][0] - 1),
            "layers": depth("visual.transformer.resblocks."),
        }
    else:
        vision = {
            "width": shapes["visual.layer1.0.conv1.weight"][0],
            "layers": [depth(f"visual.layer{i}.") for i in (1, 2, 3, 4)],
            "image_size": 32 * math.isqrt(shapes["visual.attnpool.positional_embedding"][0] - 1),
        }
    raw = {"embed_dim": embed, "vision_cfg": vision, "text_cfg": text}
    return config_from_openclip(raw | {"quick_gelu": activation == "quick_gelu"})


def openclip_table(cfg: CLIPConfig, keys: Collection[str]) -> list[Row]:
    """List every tensor of an OpenCLIP model of this config.

    Args:
        cfg: a model with both encoders.
        keys: keys of the checkpoint; a separate text encoder's begin with `text.`.
    """
    assert cfg.text and cfg.vision
    prefix = "text." if any(key.startswith("text.") for key in keys) else ""
    t, v = cfg.text, cfg.vision
    vocab, position = (t.vocab_size, t.width), (t.context_length, t.width)
    return [
        Row(f"{prefix}positional_embedding", position, ("text", "position_embedding")),
        Row(f"{prefix}text_projection", (t.width, t.embed), ("text", "projection")),
        Row(f"{prefix}token_embedding.weight", vocab, ("text", "token_embedding")),
        *_layers(t, f"{prefix}transformer.resblocks.", ("text",)),
        *norm(f"{prefix}ln_final", t.width, ("text", "final_layer_norm")),
        *(resnet_rows(v) if isinstance(v, ResNetConfig) else _vision(v)),
        Row("logit_scale", (), ("logit_scale",)),
    ]


def _vision(v: VisionConfig) -> Iterable[Row]:
    d, p, at = v.width, v.patch_size, ("vision",)
    num_positions = (v.image_size // p) ** 2 + 1
    yield Row("visual.class_embedding", (d,), (*at, "class_embedding"))
    yield Row("visual.positional_embedding", (num_positions, d), (*at, "position_embedding"))
    yield Row("visual.proj", (d, v.embed), (*at, "projection"))
    yield patches("visual.conv1.weight", d, p, (*at, "patch_embedding"))
    yield from norm("visual.ln_pre", d, (*at, "pre_layernorm"))
    yield from _layers(v, "visual.transformer.resblocks.", at)
    yield from norm("visual.ln_post", d, (*at, "post_layernorm"))


def _layers(cfg: TowerConfig, prefix: str, at: Path) -> Iterable[Row]:
    d, at = cfg.width, (*at, "encoder", "layers")
    mlp = (*at, "mlp")
    for i in range(cfg.depth):
        layer = f"{prefix}{i}."
        yield from norm(f"{layer}ln_1", d, (*at, "layer_norm1"), (i,))
        yield from fused_attention(cfg, f"{layer}attn.", (*at, "self_attn"), (i,))
        yield from norm(f"{layer}ln_2", d, (*at, "layer_norm2"), (i,))
        for name, ours, din, dout in (
            ("c_fc", "fc1", d, cfg.mlp_width),
            ("c_proj", "fc2", cfg.mlp_width, d),
        ):
            yield linear(f"{layer}mlp.{name}.weight", din, dout, (*mlp, f"{ours}_kernel"), (i,))
            yield Row(f"{layer}mlp.{name}.bias", (dout,), (*mlp, f"{ours}_bias"), (i,))
