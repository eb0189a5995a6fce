"""Fields of a library's config: none unseen, none with another default or precedence than there."""

import copy
import dataclasses
import inspect
import json
from typing import Any

import pytest
from factories import hf_config, siglip_config
from reference import hf, open_clip
from test_openclip import RESNET, model_config

from jaxdefense.convert import fields
from jaxdefense.convert.huggingface import config_from_hf
from jaxdefense.convert.openclip import config_from_openclip
from jaxdefense.errors import InputError

# Of open_clip 3.3.0, with their defaults; compared with what is installed.
_BLOCK = dict(
    ls_init_value=None, final_ln_after_pool=False, output_tokens=False, act_kwargs=None,
    norm_kwargs=None, block_type=None, qk_norm=False, scaled_cosine_attn=False, scale_heads=False,
    scale_attn_inner=False, scale_attn=False, scale_fc=False, mlp_ratio=4.0, layers=12,
)  # fmt: skip
VISION = dict(
    **_BLOCK, width=768, head_width=64, patch_size=16, image_size=224, patch_dropout=0.0,
    attentional_pool=False, attn_pooler_queries=256, attn_pooler_heads=8, no_ln_pre=False,
    pos_embed_type="learnable", pool_type="tok", timm_model_name=None, timm_model_pretrained=False,
    timm_pool="avg", timm_proj="linear", timm_proj_bias=False, timm_drop=0.0, timm_drop_path=None,
)  # fmt: skip
TEXT = dict(
    **_BLOCK, context_length=77, vocab_size=49408, hf_tokenizer_name=None, tokenizer_mode=None,
    tokenizer_kwargs=None, width=512, heads=8, embed_cls=False, pad_id=0, eos_id=2,
    no_causal_mask=False, pool_type="argmax", proj_bias=False, proj_type="linear",
    hf_model_name=None, hf_model_pretrained=True, hf_proj_type="mlp",
    hf_pooler_type="mean_pooler",
)  # fmt: skip
MODEL = dict(
    quick_gelu=False, init_logit_bias=None, nonscalar_logit_scale=False, output_dict=False,
)  # fmt: skip
OPENCLIP = [
    (fields.OPENCLIP_VISION, VISION, "CLIPVisionCfg"),
    (fields.OPENCLIP_TEXT, TEXT, "CLIPTextCfg"),
]


@pytest.mark.parametrize("table, known, name", OPENCLIP)
def test_every_field_of_open_clip_is_read_refused_or_harmless(table, known, name):
    assert table.all == known.keys()
    assert {key: known[key] for key in table.must_be} == table.must_be


@pytest.mark.torch("open_clip")
@pytest.mark.parametrize("table, known, name", OPENCLIP)
def test_installed_open_clip_has_the_fields_that_are_known(table, known, name):
    found = dataclasses.fields(getattr(open_clip.model, name))
    assert {field.name: field.default for field in found} == known


@pytest.mark.torch("open_clip")
def test_installed_open_clip_takes_the_arguments_that_are_known():
    found = inspect.signature(open_clip.model.CLIP).parameters
    # One switches between two classes, one makes another model; a config cannot hold a dtype.
    extra = {"custom_text", "multimodal_cfg"}
    assert fields.OPENCLIP_MODEL.all - extra == found.keys() - {"cast_dtype"}
    assert {key: found[key].default for key in MODEL} == MODEL


@pytest.mark.parametrize(
    "table, name",
    [
        (fields.HF_MODEL, "CLIPConfig"),
        (fields.HF_TEXT, "CLIPTextConfig"),
        (fields.HF_VISION, "CLIPVisionConfig"),
        (fields.SIGLIP_MODEL, "SiglipConfig"),
        (fields.SIGLIP_TEXT, "SiglipTextConfig"),
        (fields.SIGLIP_VISION, "SiglipVisionConfig"),
    ],
)
def test_every_field_of_transformers_is_read_refused_or_harmless(table, name):
    found = {field.name: field.default for field in dataclasses.fields(getattr(hf, name))}
    of_any = {field.name for field in dataclasses.fields(hf.PreTrainedConfig)}
    must_be = {key: table.must_be[key] for key in table.must_be.keys() & found.keys()}
    assert table.all - {"quantization_config", "per_layer_config"} == found.keys() - of_any
    assert {key: found[key] for key in must_be} == must_be


@pytest.mark.parametrize("section", ["vision_cfg", "text_cfg", ""])
def test_switch_of_open_clip_is_refused_by_name(section):
    table = {
        "vision_cfg": fields.OPENCLIP_VISION,
        "text_cfg": fields.OPENCLIP_TEXT,
        "": fields.OPENCLIP_MODEL,
    }[section]
    for name in [*table.must_be, "a_new_one"]:
        raw = copy.deepcopy(model_config())
        config_from_openclip(raw)
        (raw[section] if section else raw)[name] = "other"
        with pytest.raises(InputError, match=f"`{section}.?{name}`"):
            config_from_openclip(raw)


@pytest.mark.parametrize("make", [hf_config, lambda **sizes: siglip_config("SiglipModel", **sizes)])
def test_switch_of_transformers_is_refused_by_name(make):
    for section, field, value in (
        ("vision_config", "num_channels", 1),
        ("vision_config", "per_layer_config", {"0": {"hidden_act": "gelu"}}),
        ("text_config", "per_layer_config", {"0": {"hidden_act": "gelu"}}),
        ("", "quantization_config", {"quant_method": "bitsandbytes"}),
    ):
        raw = make(vocab_size=50)
        (raw[section] if section else raw)[field] = value
        with pytest.raises(InputError, match=f"`{section}.?{field}`"):
            config_from_hf(raw)


JUNK = (None, "x", "", -1, 0, 1.5, float("nan"), [], [1, 2], [[]], {}, {"eps": "x"}, True)


def spoilt(raw):
    """Give a config with each of its fields, at any depth, spoilt in each way."""
    for key, value in raw.items():
        for junk in JUNK:
            yield raw | {key: junk}
        if isinstance(value, dict):
            yield from (raw | {key: inner} for inner in spoilt(value))


FULL = {"mlp_ratio": 4.0, "norm_kwargs": {"eps": 1e-5}, "pool_type": "eos", "eos_id": 5}


@pytest.mark.parametrize(
    "read, raw",
    [
        (config_from_hf, hf_config(vocab_size=50)),
        (config_from_hf, {**hf_config(vocab_size=50), "text_config_dict": {"hidden_size": 512}}),
        (config_from_hf, hf_config("CLIPTextModel", vocab_size=50)),
        (config_from_hf, siglip_config("SiglipModel", vocab_size=50)),
        (config_from_openclip, model_config(quick_gelu=True)),
        (config_from_openclip, model_config(text_cfg={**model_config()["text_cfg"], **FULL})),
        (config_from_openclip, model_config(vision_cfg=RESNET)),
    ],
)
def test_config_with_a_field_that_makes_no_sense_is_read_or_refused(read, raw):
    refused = 0
    for changed in spoilt(raw):
        try:
            read(changed)
        except InputError:  # and no other error: it would count as a fault of ours
            refused += 1
    assert refused > 100


# Which of two sections of one tower counts

NEW = {"hidden_size": 24, "num_attention_heads": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-6}
OLD = {"hidden_size": 36, "num_attention_heads": 3, "eos_token_id": 2}
TWICE = {
    "one section": {"text_config": NEW, "vision_config": {**NEW, "patch_size": 8}},
    "neither": {},
    "null": {"text_config": None, "vision_config": None, "text_config_dict": None},
    "old alone": {"text_config_dict": OLD, "vision_config_dict": {"hidden_size": 36}},
    "old lacks what new has": {
        "text_config": NEW,
        "text_config_dict": OLD,
        "vision_config": NEW,
        "vision_config_dict": {"patch_size": 16},
    },
    "old is empty": {
        "text_config": NEW,
        "text_config_dict": {},
        "vision_config": NEW,
        "vision_config_dict": {},
    },
    "old is null": {"text_config": NEW, "text_config_dict": None, "vision_config_dict": None},
    "projections": {"projection_dim": 7, "text_config": {**NEW, "projection_dim": 9}},
}


def ours(cfg):
    return [
        None
        if t is None
        else (t.width, t.mlp_width, t.depth, t.num_heads, t.activation, t.norm_eps)
        for t in (cfg.text, cfg.vision)
    ]


def theirs(*configs):
    return [
        c
        and (
            c.hidden_size,
            c.intermediate_size,
            c.num_hidden_layers,
            c.num_attention_heads,
            {"gelu_pytorch_tanh": "gelu_tanh"}.get(c.hidden_act, c.hidden_act),
            c.layer_norm_eps,
        )
        for c in configs
    ]


@pytest.mark.parametrize("case", TWICE)
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_section_that_counts_is_the_one_of_transformers(kind, case):
    raw = json.loads(json.dumps(TWICE[case]))  # no section is another's
    siglip = kind == "siglip"
    if siglip:  # its embeddings are of one size
        raw = {
            k: {"hidden_size": 24, "num_attention_heads": 2, **v} if v and "_config" in k else v
            for k, v in raw.items()
        }
        raw: dict[str, Any] = {"text_config": None, "vision_config": None} | raw
        for tower in ("text", "vision"):
            raw[f"{tower}_config"] = (raw[f"{tower}_config"] or {}) | {"hidden_size": 24}
            raw[f"{tower}_config"]["num_attention_heads"] = 2
    cls = hf.SiglipConfig if siglip else hf.CLIPConfig
    them = cls(**json.loads(json.dumps(raw)))
    found = config_from_hf({"model_type": kind, **raw})
    assert ours(found) == theirs(them.text_config, them.vision_config)
    text = them.text_config
    assert found.text and found.vision
    assert found.text.vocab_size == text.vocab_size
    assert found.text.context_length == text.max_position_embeddings
    assert found.vision.image_size == them.vision_config.image_size
    assert found.vision.patch_size == them.vision_config.patch_size  # pyright: ignore[reportAttributeAccessIssue]
    if not siglip:
        assert found.text.embed == found.vision.embed == them.projection_dim
        assert (found.text.eos_token_id or 2) == text.eos_token_id


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("kind", ["CLIPTextModelWithProjection", "CLIPVisionModelWithProjection"])
def test_one_tower_reads_the_section_that_transformers_reads(tmp_path, kind, nested):
    raw = hf_config(kind, vocab_size=50, activation="gelu")
    section = "text_config" if "Text" in kind else "vision_config"
    if nested:
        own = raw | {"architectures": None}
        raw = {"architectures": [kind], "model_type": "clip", "projection_dim": 99, section: own}
        raw[f"{section}_dict"] = {"hidden_act": "quick_gelu"}
    cls = hf.CLIPTextConfig if "Text" in kind else hf.CLIPVisionConfig
    (tmp_path / "config.json").write_text(json.dumps(raw))
    them = cls.from_pretrained(tmp_path)
    found = config_from_hf(raw)
    one = [them, None] if "Text" in kind else [None, them]
    assert ours(found) == theirs(*one)
    tower = found.text or found.vision
    assert tower and tower.embed == them.projection_dim
