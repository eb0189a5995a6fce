"""SigLIP's encoders against transformers' torch ones, and its model directories.

Every comparison has a control: the same comparison with one detail broken must fail.
Tolerances, maximum absolute error: 1e-5 on leaves, 1e-4 on towers.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from factories import SIGLIP_TEXT, SIGLIP_VISION, run
from flax import nnx
from reference import hf, torch
from reference import modeling_siglip as modeling
from safetensors.numpy import load_file, save_file
from test_convert import changed, edit_json, fails, files_in, tensors_in
from test_parity import (
    LEAF,
    WHOLE,
    B,
    Case,
    T,
    error,
    fill,
    inputs,
    our_block,
    our_mlp,
    our_norm,
    pixels,
    randomise,
    text_error,
    vision_error,
    with_param,
    with_settings,
)

from jaxdefense.clip.config import TowerConfig, VisionConfig
from jaxdefense.clip.layers import FrozenParam
from jaxdefense.clip.text import plain_text
from jaxdefense.clip.vision import AttentionPool
from jaxdefense.convert.directory import read_model_directory
from jaxdefense.convert.huggingface import config_from_hf, hf_table
from jaxdefense.defense.losses import weight_distance

LENGTH, VOCAB = SIGLIP_TEXT["max_position_embeddings"], 50
ENDS = dict(pad_token_id=1, bos_token_id=None, eos_token_id=1)
BASE_TEXT = dict(hidden_size=768, max_position_embeddings=64, vocab_size=1000, **ENDS)
SIZES = {
    "tiny": (dict(SIGLIP_TEXT, vocab_size=VOCAB, **ENDS), SIGLIP_VISION),
    "base-patch16-224": (BASE_TEXT, {}),  # but for the vocabulary, 32000
}


# Leaves, each filled by hand rather than by the conversion table.


def tower_cfg(**change: Any):
    change = {"activation": "gelu_tanh", "norm_eps": 1e-6, **change}
    return TowerConfig(width=12, mlp_width=20, depth=2, num_heads=3, **change)


def torch_cfg(**change):
    cfg = hf.SiglipTextConfig(**SIZES["tiny"][0], **change)
    cfg._attn_implementation = "eager"
    return cfg


@pytest.mark.torch
@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu", "quick_gelu"])
def test_mlp_matches_torch_and_fails_with_another_gelu(activation):
    source = randomise(modeling.SiglipMLP(torch_cfg()))
    x_BTD = inputs(B, T, 12)
    module = our_mlp(source, tower_cfg(activation=activation))
    found = error(run(module, x_BTD), source(torch.from_numpy(x_BTD)))
    assert found <= LEAF if activation == "gelu_tanh" else found > 10 * LEAF


@pytest.mark.torch
@pytest.mark.parametrize("eps", [1e-6, 1e-5])
def test_layer_norm_matches_torch_and_fails_with_clips_eps(eps):
    source = randomise(torch.nn.LayerNorm(12, eps=1e-6))
    x_BTD = inputs(B, T, 12, scale=0.01)
    found = error(run(our_norm(source, eps), x_BTD), source(torch.from_numpy(x_BTD)))
    assert found <= LEAF if eps == 1e-6 else found > 100 * LEAF


@pytest.mark.torch
@pytest.mark.parametrize("change", [{}, {"activation": "gelu"}, {"norm_eps": 1e-5}])
def test_block_matches_torch_and_fails_with_other_settings(change):
    source = randomise(modeling.SiglipEncoderLayer(torch_cfg()))
    x_BTD = inputs(B, T, 12, scale=0.05)
    block = our_block(source, tower_cfg(**change))
    found = error(run(block, x_BTD, None), source(torch.from_numpy(x_BTD), None))
    assert found > 10 * LEAF if change else found <= LEAF


@pytest.mark.torch
@pytest.mark.parametrize("broken", ["", "q and k swapped", "no residual", "first token"])
def test_attention_pool_matches_torch_and_fails_broken(broken):
    cfg = hf.SiglipVisionConfig(**SIGLIP_VISION)
    source = randomise(modeling.SiglipMultiheadAttentionPoolingHead(cfg))
    ours = VisionConfig(10, 14, 3, 2, "gelu_tanh", 1e-6, pool="attention", embed=10)
    pool = AttentionPool(ours, nnx.Rngs(0))
    fill(pool, probe=source.probe.reshape(10))
    weights = [x.reshape(2, 5, 10) for x in source.attention.in_proj_weight.chunk(3)]
    biases = [x.reshape(2, 5) for x in source.attention.in_proj_bias.chunk(3)]
    order = [1, 0, 2] if broken.startswith("q") else [0, 1, 2]
    fill(
        pool.attention,
        qkv_kernel=torch.stack([weights[i].permute(2, 0, 1) for i in order], dim=1),
        qkv_bias=torch.stack([biases[i] for i in order]),
        out_kernel=source.attention.out_proj.weight.T.reshape(2, 5, 10),
        out_bias=source.attention.out_proj.bias,
    )
    pool.layernorm = our_norm(source.layernorm, 1e-6, width=10)
    pool.mlp = our_mlp(source.mlp, ours)
    x_BTD = inputs(B, T, 10)
    wanted = source(torch.from_numpy(x_BTD))
    if broken == "no residual":
        wanted = source.mlp(source.layernorm(wanted))
    found = error(run(pool, x_BTD[:, :1] if broken == "first token" else x_BTD), wanted)
    assert found > 100 * LEAF if broken else found <= LEAF


# Towers, through a model directory that transformers saved.


def make_case(size, path, embedding_scale=1.0):
    text, vision = SIZES[size]
    theirs = randomise(hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=vision)))
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if "embedding" in name:
                p *= embedding_scale
    theirs.save_pretrained(path)
    ours = read_model_directory(path).load()
    assert ours.cfg.text and ours.cfg.vision
    length, side = ours.cfg.text.context_length, ours.cfg.vision.image_size
    tokens_BT = make_tokens(3, length, text["vocab_size"])
    return Case(theirs, ours, tokens_BT, np.full(3, length - 1), inputs(2, side, side, 3))


def make_tokens(num, length, vocab, seed=2):
    """Captions of random length with SigLIP's end of text and padding."""
    rng = np.random.default_rng(seed)
    tokens_BT = np.ones((num, length), np.int32)
    for row in tokens_BT:
        end = rng.integers(2, length - 1)
        row[:end] = rng.integers(2, vocab, end)
    return tokens_BT


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_case("tiny", tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def faint(tmp_path_factory):
    """With embeddings so small that the norms' eps counts, as it does in patches of one colour."""
    return make_case("tiny", tmp_path_factory.mktemp("faint"), 0.02)


@pytest.mark.torch
def test_towers_match_torch(tiny, faint):
    for case in (tiny, faint):
        assert text_error(case) <= WHOLE
        assert vision_error(case) <= WHOLE


@pytest.mark.torch
def test_hidden_level_matches_torch(tiny):
    text = plain_text(tiny.tokens_BT, tiny.readout_B)
    with torch.no_grad():
        theirs = tiny.theirs.text_model(torch.from_numpy(tiny.tokens_BT).long()).last_hidden_state
    assert error(run(tiny.ours.text, text, method="hidden"), theirs) <= WHOLE
    causal = with_settings(tiny.ours, "text", causal=True)
    assert error(run(causal.text, text, method="hidden"), theirs) > 10 * WHOLE


@pytest.mark.torch
def test_text_parity_fails_with_causal_mask(tiny):
    # At the last position the mask changes what is read out from the second layer on.
    assert text_error(tiny, with_settings(tiny.ours, "text", causal=True)) > 10 * WHOLE


@pytest.mark.torch
@pytest.mark.parametrize("readout", [0, LENGTH - 2])
def test_text_parity_fails_with_another_readout(tiny, readout):
    text = plain_text(tiny.tokens_BT, np.full(3, readout))
    assert text_error(tiny, text=text) > 10 * WHOLE


@pytest.mark.torch
def test_text_parity_fails_with_padding_masked(tiny):
    text = plain_text(tiny.tokens_BT, tiny.readout_B)
    seen = tiny.tokens_BT != 1
    seen[:, -1] = True
    text = text._replace(segments_RT=seen.astype(np.int32))
    assert text_error(tiny, text=text) > 10 * WHOLE


@pytest.mark.torch
def test_text_parity_fails_without_bias_of_the_head(tiny):
    model = nnx.clone(tiny.ours)
    model.text = with_param(model.text, "projection_bias", jnp.zeros_like)
    assert text_error(tiny, model) > 10 * WHOLE


@pytest.mark.torch
@pytest.mark.parametrize("tower, found", [("text", text_error), ("vision", vision_error)])
def test_parity_fails_with_exact_gelu(tiny, tower, found):
    model = with_settings(tiny.ours, tower, activation="gelu")
    assert found(tiny, model if tower == "text" else model.vision) > WHOLE


@pytest.mark.torch
@pytest.mark.parametrize("tower, found", [("text", text_error), ("vision", vision_error)])
def test_parity_fails_with_clips_eps(faint, tower, found):
    model = with_settings(faint.ours, tower, norm_eps=1e-5)
    assert found(faint, model if tower == "text" else model.vision) > 10 * WHOLE


@pytest.mark.torch
def test_vision_parity_fails_pooled_at_the_first_token(tiny, monkeypatch):
    monkeypatch.setattr(AttentionPool, "__call__", lambda self, x_BTD: x_BTD[:, 0])
    assert vision_error(tiny) > 10 * WHOLE


@pytest.mark.torch
def test_vision_parity_fails_without_patch_bias(tiny):
    assert vision_error(tiny, with_param(tiny.ours.vision, "patch_bias", jnp.zeros_like)) > WHOLE


@pytest.mark.torch
def test_vision_parity_fails_with_height_and_width_swapped(tiny):
    assert vision_error(tiny, image_BHWC=tiny.image_BHWC.swapaxes(1, 2)) > 10 * WHOLE


@pytest.mark.torch
@pytest.mark.parametrize("biased", [True, False])
def test_logits_match_torch_and_fail_without_bias(tiny, biased):
    with torch.no_grad():
        tokens = torch.from_numpy(tiny.tokens_BT).long()
        theirs = tiny.theirs(input_ids=tokens, pixel_values=pixels(tiny.image_BHWC))
    text_BE = run(tiny.ours.text, plain_text(tiny.tokens_BT, tiny.readout_B))[:, 0]
    image_BE = run(tiny.ours.vision, tiny.image_BHWC)
    text_BE /= jnp.linalg.norm(text_BE, axis=-1, keepdims=True)
    image_BE /= jnp.linalg.norm(image_BE, axis=-1, keepdims=True)
    bias = tiny.ours.logit_bias[...] if biased else 0
    logits = jnp.exp(tiny.ours.logit_scale[...]) * image_BE @ text_BE.T + bias
    found = error(logits, theirs.logits_per_image)
    assert found <= WHOLE if biased else found > 10 * WHOLE


@pytest.mark.torch
@pytest.mark.slow
def test_towers_match_torch_at_the_size_of_siglip_base(tmp_path):
    base = make_case("base-patch16-224", tmp_path / "model")
    assert base.ours.cfg.vision == VisionConfig(
        768, 3072, 12, 12, "gelu_tanh", 1e-6, image_size=224, patch_size=16, embed=768,
        pool="attention",
    )  # fmt: skip
    assert text_error(base) <= WHOLE
    assert vision_error(base) <= WHOLE
    # The control: rounding has not grown so large that a wrong detail would hide in it.
    assert text_error(base, with_settings(base.ours, "text", norm_eps=1e-3)) > WHOLE
    assert vision_error(base, with_settings(base.ours, "vision", activation="gelu").vision) > WHOLE


@pytest.mark.torch
@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_text_model_directory_agrees(tmp_path, prefix):
    theirs = randomise(hf.SiglipTextModel(hf.SiglipTextConfig(**SIZES["tiny"][0])))
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({prefix + key: value for key, value in load_file(file).items()}, file)
    ours = read_model_directory(tmp_path).load()
    assert ours.vision is None and not hasattr(ours, "logit_bias")
    tokens_BT = make_tokens(B, LENGTH, VOCAB)
    with torch.no_grad():
        out = theirs(torch.from_numpy(tokens_BT).long()).pooler_output
    text = plain_text(tokens_BT, np.full(B, LENGTH - 1))
    assert error(run(ours.text, text)[:, 0], out) <= WHOLE
    assert error(run(ours.text, text._replace(tokens_RT=tokens_BT[::-1]))[:, 0], out) > WHOLE


@pytest.mark.torch
@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_vision_model_directory_agrees(tmp_path, prefix):
    theirs = randomise(hf.SiglipVisionModel(hf.SiglipVisionConfig(**SIGLIP_VISION)))
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({prefix + key: value for key, value in load_file(file).items()}, file)
    ours = read_model_directory(tmp_path).load()
    assert ours.text is None
    image_BHWC = inputs(B, 12, 12, 3)
    with torch.no_grad():
        out = theirs(pixels(image_BHWC)).pooler_output
    assert error(run(ours.vision, image_BHWC), out) <= WHOLE
    assert error(run(ours.vision, image_BHWC[:, ::-1]), out) > WHOLE


# Model directories


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    "architecture, bare",
    [
        ("SiglipModel", False),
        ("SiglipTextModel", True),
        ("SiglipTextModel", False),
        ("SiglipVisionModel", True),
        ("SiglipVisionModel", False),
    ],
)
def test_round_trip_is_bit_for_bit(tiny_dir, tmp_path, architecture, bare, dtype):
    path = tiny_dir(architecture=architecture, bare_text=bare, dtype=dtype, num_shards=2)
    directory = read_model_directory(path)
    directory.save(directory.load(), tmp_path / "out")
    assert files_in(tmp_path / "out") == files_in(path)


def test_table_fills_every_parameter_from_distinct_tensors(tiny_dir):
    directory = read_model_directory(tiny_dir(architecture="SiglipModel"))
    state = nnx.to_flat_state(nnx.state(directory.load()))
    ours = np.concatenate([np.ravel(v[...]) for _, v in state])
    theirs = np.concatenate([v.ravel() for v in tensors_in(directory.path).values()])
    np.testing.assert_array_equal(np.sort(ours), np.sort(theirs))


def test_norms_and_what_scales_logits_are_frozen_and_nothing_else(tiny_dir):
    model = read_model_directory(tiny_dir(architecture="SiglipModel")).load()
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        name = "/".join(map(str, path))
        frozen = "norm" in name or name.startswith("logit_")
        assert isinstance(variable, FrozenParam) == frozen, name


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_weight_distance_takes_one_norm_a_checkpoint_tensor(tiny_dir, tower):
    """Query, key and value of the attention pool are one tensor there, unlike the layers'."""
    directory = read_model_directory(tiny_dir(architecture="SiglipModel"))
    model = directory.load()
    other = changed(model, tower)
    found = weight_distance(*(nnx.state(getattr(m, tower)) for m in (other, model)))
    shapes = [row.shape for row in directory.rows if row.key.startswith(f"{tower}_model.")]
    wanted = sum(0.25 * np.sqrt(np.prod(shape)) for shape in shapes)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_config_defaults_are_those_of_transformers():
    ours = config_from_hf({"model_type": "siglip", "architectures": ["SiglipModel"]})
    theirs = hf.SiglipConfig()
    assert ours.text and isinstance(ours.vision, VisionConfig)
    for tower, source in ((ours.text, theirs.text_config), (ours.vision, theirs.vision_config)):
        assert (tower.width, tower.mlp_width) == (source.hidden_size, source.intermediate_size)
        assert tower.depth == source.num_hidden_layers
        assert tower.num_heads == source.num_attention_heads
        assert tower.norm_eps == source.layer_norm_eps
        assert source.hidden_act == "gelu_pytorch_tanh" and tower.activation == "gelu_tanh"
    assert ours.text.context_length == theirs.text_config.max_position_embeddings
    assert ours.text.vocab_size == theirs.text_config.vocab_size
    assert ours.text.embed == theirs.text_config.projection_size
    assert ours.vision.image_size == theirs.vision_config.image_size
    assert ours.vision.patch_size == theirs.vision_config.patch_size


@pytest.mark.torch
def test_table_names_every_parameter_of_transformers():
    text, vision = SIZES["tiny"]
    theirs = hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=vision))
    cfg = config_from_hf({"model_type": "siglip", "text_config": text, "vision_config": vision})
    shapes = {name: tuple(p.shape) for name, p in theirs.named_parameters()}
    assert {row.key: row.shape for row in hf_table(cfg)} == shapes


@pytest.mark.parametrize("kind", ["siglip2", "siglip2_text_model", "siglip2_vision_model"])
def test_naflex_is_refused_by_name(tiny_dir, kind):
    path = tiny_dir(architecture="SiglipModel")
    edit_json(path / "config.json", model_type=kind, architectures=["Siglip2Model"])
    fails(path, "config.json", f"`model_type` (='{kind}')", "NaFlex", "fixed resolution")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"architectures": ["SiglipForImageClassification"]}, ["SiglipForImageClassification"]),
        ({"architectures": ["SiglipTextModel"]}, ["`model_type` (='siglip')"]),
        ({"text_config": 3}, ["`text_config`", "JSON object"]),
        ({"vision_config": {"vision_use_head": False}}, ["vision_use_head"]),
        ({"text_config": {"projection_size": 7}}, ["`projection_size` (=7)", "(=10)"]),
        ({"text_config": {"hidden_act": "relu"}}, ["`hidden_act` (='relu')"]),
        ({"vision_config": {"image_size": [224, 224]}}, ["image_size"]),
    ],
)
def test_config_that_is_wrong_is_named(tiny_dir, change, words):
    path = tiny_dir(architecture="SiglipModel")
    edit_json(path / "config.json", **change)
    fails(path, "config.json", *words)


def test_text_model_of_wrong_sizes_is_named(tiny_dir):
    path = tiny_dir(architecture="SiglipTextModel", bare_text=True)
    edit_json(path / "config.json", projection_size=11)
    fails(path, "`head.weight` has shape (10, 12), but config.json makes it (11, 12)")
    edit_json(path / "config.json", projection_size=10, num_hidden_layers=3)
    fails(path, "missing", "encoder.layers.2.")
    edit_json(path / "config.json", num_hidden_layers=2, hidden_size=13)
    fails(path, "config.json", "`hidden_size` (=13)")


# Why captions of SigLIP do not share a row


@pytest.mark.parametrize("architecture, packable", [("CLIPModel", True), ("SiglipModel", False)])
def test_embedding_hangs_on_padding_where_captions_are_not_packable(
    tiny_dir, architecture, packable
):
    directory = read_model_directory(
        tiny_dir(architecture=architecture, with_tokenizer=False, vocab_size=VOCAB)
    )
    assert directory.cfg.text and directory.cfg.text.packable == packable
    tower = directory.load().text
    rng = np.random.default_rng(0)
    caption = rng.integers(2, VOCAB, 9)
    tokens_BT = rng.integers(2, VOCAB, (3, LENGTH))  # what follows it
    tokens_BT[:, :9] = caption
    tokens_BT[0, 9:] = 1
    at_end = plain_text(tokens_BT, np.full(3, 8))
    apart = np.ptp(np.asarray(run(tower, at_end)), axis=0).max()
    assert apart <= LEAF if packable else apart > 100 * LEAF
