"""Our encoders against transformers' torch ones, leaf to whole, f32.

Every comparison has a control: the same comparison with one detail broken must fail.
Tolerances, maximum absolute error: 1e-5 on leaves, 1e-4 on towers.
"""

import dataclasses
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factories import EMBED, TEXT, VISION, run
from flax import nnx
from reference import hf, torch
from reference import modeling_clip as modeling
from safetensors.numpy import load_file, save_file

from jaxdefense.clip.config import TowerConfig
from jaxdefense.clip.layers import ACTIVATIONS, MLP, Attention, Block, LayerNorm
from jaxdefense.clip.model import CLIP
from jaxdefense.clip.text import plain_text
from jaxdefense.convert.directory import read_model_directory
from jaxdefense.data.packing import pack_text

LEAF, WHOLE = 1e-5, 1e-4
B, T = 4, 5
BASE_TEXT = dict(  # ViT-B/32
    hidden_size=512,
    intermediate_size=2048,
    num_hidden_layers=12,
    num_attention_heads=8,
    max_position_embeddings=77,
    vocab_size=49408,
)
BASE_VISION = dict(
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    image_size=224,
    patch_size=32,
)


def randomise(module, seed=0):
    """Draw every parameter anew, norms and biases too, so large that a wrong detail shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim == 0:
                p.copy_(2.5 + noise)
            elif "embedding" in name and "patch" not in name:
                p.copy_(noise / 2)
            elif p.ndim == 1:
                p.copy_(noise * 0.3 + (1 if name.endswith("weight") else 0))
            else:
                p.copy_(noise / np.sqrt(np.prod(p.shape[1:])))
    return module.eval()


def inputs(*shape, scale=1.0, seed=1):
    return scale * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def error(ours, theirs):
    theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else theirs
    assert ours.shape == theirs.shape
    return float(np.abs(np.asarray(ours) - theirs).max())


# Leaves, each filled by hand rather than by the conversion table.


def tower_cfg(**change):
    return TowerConfig(width=12, mlp_width=20, depth=2, num_heads=3, **change)


def torch_cfg(activation="quick_gelu"):
    cfg = hf.CLIPTextConfig(**TEXT, vocab_size=50, hidden_act=activation)
    cfg._attn_implementation = "eager"
    return cfg


def fill(module, **arrays):
    for name, value in arrays.items():
        variable = getattr(module, name)
        assert variable.shape == value.shape, name
        variable[...] = jnp.asarray(value.detach().numpy())
    return module


def our_norm(source, eps=1e-5, width=12):
    module = LayerNorm(width, eps, nnx.Rngs(0))
    return fill(module, scale=source.weight, bias=source.bias)


def our_mlp(source, cfg):
    return fill(
        MLP(cfg, nnx.Rngs(0)),
        fc1_kernel=source.fc1.weight.T,
        fc1_bias=source.fc1.bias,
        fc2_kernel=source.fc2.weight.T,
        fc2_bias=source.fc2.bias,
    )


def our_attention(source, cfg, order="qkv"):
    parts = [getattr(source, f"{letter}_proj") for letter in order]
    n, k = cfg.num_heads, cfg.head_width
    return fill(
        Attention(cfg, nnx.Rngs(0)),
        qkv_kernel=torch.stack([p.weight.T.reshape(-1, n, k) for p in parts], dim=1),
        qkv_bias=torch.stack([p.bias.reshape(n, k) for p in parts]),
        out_kernel=source.out_proj.weight.T.reshape(n, k, -1),
        out_bias=source.out_proj.bias,
    )


def our_block(source, cfg):
    block = Block(cfg, nnx.Rngs(0))
    block.layer_norm1 = our_norm(source.layer_norm1, cfg.norm_eps)
    block.layer_norm2 = our_norm(source.layer_norm2, cfg.norm_eps)
    block.self_attn = our_attention(source.self_attn, cfg)
    block.mlp = our_mlp(source.mlp, cfg)
    return block


def causal_masks():
    """The same mask for us (True = may look) and for torch (added to the scores)."""
    ours = np.broadcast_to(np.tri(T, dtype=bool), (B, T, T))
    added = np.where(ours, 0, np.finfo(np.float32).min).astype(np.float32)
    return ours, torch.from_numpy(added)[:, None]


@pytest.mark.torch
@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_layer_norm_matches_torch_and_fails_with_other_eps(eps):
    source = randomise(torch.nn.LayerNorm(12, eps=1e-5))
    x_BTD = inputs(B, T, 12, scale=0.1)
    found = error(run(our_norm(source, eps), x_BTD), source(torch.from_numpy(x_BTD)))
    assert found <= LEAF if eps == 1e-5 else found > 100 * LEAF


@pytest.mark.torch
@pytest.mark.parametrize("theirs", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("ours", ["quick_gelu", "gelu"])
def test_mlp_matches_torch_and_fails_with_the_other_gelu(ours, theirs):
    source = randomise(modeling.CLIPMLP(torch_cfg(theirs)))
    x_BTD = inputs(B, T, 12)
    module = our_mlp(source, tower_cfg(activation=ours))
    found = error(run(module, x_BTD), source(torch.from_numpy(x_BTD)))
    assert found <= LEAF if ours == theirs else found > 100 * LEAF


@pytest.mark.torch
@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activation_has_torchs_slope_and_keeps_nothing_else(name):
    theirs = hf.activations.ACT2FN[{"gelu_tanh": "gelu_pytorch_tanh"}.get(name, name)]
    x = np.linspace(-9, 9, 1001, dtype=np.float32)
    x_torch = torch.from_numpy(x).requires_grad_()
    theirs(x_torch).sum().backward()
    y, back = jax.vjp(ACTIVATIONS[name], jnp.asarray(x))
    assert error(y, theirs(x_torch)) <= LEAF
    assert error(back(jnp.ones_like(x))[0], x_torch.grad) <= LEAF
    assert sum(kept.size for kept in jax.tree.leaves(back)) == x.size


@pytest.mark.torch
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("broken", ["", "mask", "q and k swapped"])
def test_attention_matches_torch_and_fails_broken(causal, broken):
    source = randomise(modeling.CLIPAttention(torch_cfg()))
    x_BTD = inputs(B, T, 12, scale=2)
    ours, theirs = causal_masks() if causal else (None, None)
    if broken == "mask":
        ours = None if causal else causal_masks()[0]
    module = our_attention(source, tower_cfg(), "kqv" if broken.startswith("q") else "qkv")
    found = error(run(module, x_BTD, ours), source(torch.from_numpy(x_BTD), theirs)[0])
    assert found > 100 * LEAF if broken else found <= LEAF


@pytest.mark.torch
@pytest.mark.parametrize("change", [{}, {"activation": "gelu"}, {"norm_eps": 1e-3}])
def test_block_matches_torch_and_fails_with_other_settings(change):
    source = randomise(modeling.CLIPEncoderLayer(torch_cfg()))
    x_BTD = inputs(B, T, 12, scale=0.3)
    ours, theirs = causal_masks()
    block = our_block(source, tower_cfg(**change))
    found = error(run(block, x_BTD, ours), source(torch.from_numpy(x_BTD), theirs))
    assert found > 10 * LEAF if change else found <= LEAF


# Towers, through a model directory that transformers saved.


@dataclasses.dataclass
class Case:
    """A torch model, ours read from the directory it saved, and inputs for both."""

    theirs: object
    ours: CLIP
    tokens_BT: np.ndarray
    readout_B: np.ndarray
    image_BHWC: np.ndarray


def make_tokens(num, length, vocab, seed=2):
    """Captions of random length, padded with the end of text, the largest token."""
    rng = np.random.default_rng(seed)
    tokens_BT = np.full((num, length), vocab - 1, np.int32)
    readout_B = rng.integers(2, length - 1, num)
    for row, end in zip(tokens_BT, readout_B, strict=True):
        row[:end] = rng.integers(0, vocab - 1, end)
    return tokens_BT, readout_B


def clip_config(text, vision, embed, **shared):
    text = dict(text, **shared)
    text.setdefault("vocab_size", 50)
    text.setdefault("eos_token_id", text["vocab_size"] - 1)
    return hf.CLIPConfig(
        text_config=dict(text, projection_dim=embed),
        vision_config=dict(vision, projection_dim=embed, **shared),
        projection_dim=embed,
    )


SIZES = {
    "tiny": lambda: clip_config(TEXT, VISION, EMBED),
    "tiny-gelu": lambda: clip_config(TEXT, VISION, EMBED, hidden_act="gelu"),
    "vit-b-32": lambda: clip_config(BASE_TEXT, BASE_VISION, 512),
}


@pytest.fixture(scope="module", params=["tiny", "tiny-gelu"])
def case(request, tmp_path_factory):
    return make_case(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_case("tiny", tmp_path_factory.mktemp("tiny"))


def make_case(size, path):
    cfg = SIZES[size]()
    theirs = randomise(hf.CLIPModel(cfg))
    theirs.save_pretrained(path)
    ours = read_model_directory(path).load()
    shutil.rmtree(path)
    text, side = cfg.text_config, cfg.vision_config.image_size
    tokens_BT, readout_B = make_tokens(3, text.max_position_embeddings, text.vocab_size)
    return Case(theirs, ours, tokens_BT, readout_B, inputs(2, side, side, 3))


def with_settings(model, tower, **change):
    """The same weights in a model of other settings."""
    _, state = nnx.split(model)
    cfg = dataclasses.replace(getattr(model.cfg, tower), **change)
    abstract = nnx.eval_shape(
        lambda: CLIP(dataclasses.replace(model.cfg, **{tower: cfg}), nnx.Rngs(0))
    )
    return nnx.merge(nnx.graphdef(abstract), state)


def with_param(module, name, change):
    """A copy of a module with one parameter changed."""
    module = nnx.clone(module)
    variable = getattr(module, name)
    setattr(module, name, variable.replace(change(jnp.asarray(variable[...]))))
    return module


def other_gelu(cfg):
    return "gelu" if cfg.activation == "quick_gelu" else "quick_gelu"


def pixels(image_BHWC):
    return torch.from_numpy(image_BHWC.transpose(0, 3, 1, 2).copy())


def embeds(features):
    """Output of `get_text_features`, a tensor in older versions of the source."""
    return features if isinstance(features, torch.Tensor) else features.pooler_output


def text_error(case, model=None, text=None):
    text = text or plain_text(case.tokens_BT, case.readout_B)
    tokens = torch.from_numpy(case.tokens_BT).long()
    ours = run((model or case.ours).text, text)[:, 0]
    with torch.no_grad():
        return error(ours, embeds(case.theirs.get_text_features(tokens)))


def hidden_error(case, model=None, text=None):
    text = text or plain_text(case.tokens_BT, case.readout_B)
    with torch.no_grad():
        theirs = case.theirs.text_model(torch.from_numpy(case.tokens_BT).long()).last_hidden_state
    return error(run((model or case.ours).text, text, method="hidden"), theirs)


def vision_error(case, tower=None, image_BHWC=None):
    image = case.image_BHWC if image_BHWC is None else image_BHWC
    ours = run(tower or case.ours.vision, image)
    with torch.no_grad():
        return error(ours, embeds(case.theirs.get_image_features(pixels(case.image_BHWC))))


@pytest.mark.torch
def test_text_tower_matches_torch(case):
    assert text_error(case) <= WHOLE
    assert hidden_error(case) <= WHOLE


@pytest.mark.torch
@pytest.mark.slow
def test_towers_match_torch_at_the_size_of_vit_b_32(tmp_path):
    base = make_case("vit-b-32", tmp_path / "model")
    assert text_error(base) <= WHOLE
    assert vision_error(base) <= WHOLE
    # The control: rounding has not grown so large that a wrong eps would hide in it.
    assert text_error(base, with_settings(base.ours, "text", norm_eps=1e-3)) > WHOLE
    assert vision_error(base, with_settings(base.ours, "vision", norm_eps=1e-3).vision) > WHOLE


@pytest.mark.torch
def test_text_parity_fails_with_the_other_gelu(case):
    model = with_settings(case.ours, "text", activation=other_gelu(case.ours.cfg.text))
    assert text_error(case, model) > 10 * WHOLE
    assert hidden_error(case, model) > 10 * WHOLE


@pytest.mark.torch
def test_text_parity_fails_with_other_eps(tiny):
    assert text_error(tiny, with_settings(tiny.ours, "text", norm_eps=1e-3)) > WHOLE


@pytest.mark.torch
def test_text_parity_fails_without_causal_mask(tiny, monkeypatch):
    monkeypatch.setattr(jnp, "tri", lambda n, dtype: jnp.ones((n, n), dtype))
    assert text_error(tiny) > 10 * WHOLE
    assert hidden_error(tiny) > 10 * WHOLE


@pytest.mark.torch
def test_text_parity_fails_with_positions_off_by_one(tiny):
    text = plain_text(tiny.tokens_BT, tiny.readout_B)
    last = tiny.tokens_BT.shape[1] - 1
    text = text._replace(positions_RT=np.minimum(text.positions_RT + 1, last))
    assert text_error(tiny, text=text) > 10 * WHOLE


@pytest.mark.torch
@pytest.mark.parametrize("shift", [-1, 1])
def test_text_parity_fails_with_readout_off_by_one(tiny, shift):
    text = plain_text(tiny.tokens_BT, tiny.readout_B + shift)
    assert text_error(tiny, text=text) > 10 * WHOLE


@pytest.mark.torch
def test_text_parity_fails_with_final_norm_left_out(tiny):
    model = nnx.clone(tiny.ours)
    model.text.final_layer_norm = with_param(model.text.final_layer_norm, "scale", jnp.ones_like)
    assert text_error(tiny, model) > 10 * WHOLE


@pytest.mark.torch
def test_vision_tower_matches_torch(case):
    assert vision_error(case) <= WHOLE


@pytest.mark.torch
def test_vision_parity_fails_with_the_other_gelu(case):
    model = with_settings(case.ours, "vision", activation=other_gelu(case.ours.cfg.vision))
    assert vision_error(case, model.vision) > 10 * WHOLE


@pytest.mark.torch
def test_vision_parity_fails_with_other_eps(tiny):
    assert vision_error(tiny, with_settings(tiny.ours, "vision", norm_eps=1e-3).vision) > WHOLE


@pytest.mark.torch
def test_vision_parity_fails_with_positions_off_by_one(tiny):
    roll = lambda x: jnp.roll(x, 1, axis=0)  # noqa: E731
    assert vision_error(tiny, with_param(tiny.ours.vision, "position_embedding", roll)) > 10 * WHOLE


@pytest.mark.torch
def test_vision_parity_fails_with_height_and_width_swapped(tiny):
    assert vision_error(tiny, image_BHWC=tiny.image_BHWC.swapaxes(1, 2)) > 10 * WHOLE


@pytest.mark.torch
def test_vision_parity_fails_with_colours_reversed(tiny):
    assert vision_error(tiny, image_BHWC=tiny.image_BHWC[..., ::-1]) > 10 * WHOLE


@pytest.mark.torch
@pytest.mark.parametrize("scaled", [True, False])
def test_logits_match_torch_and_fail_without_scale(tiny, scaled):
    with torch.no_grad():
        tokens = torch.from_numpy(tiny.tokens_BT).long()
        theirs = tiny.theirs(input_ids=tokens, pixel_values=pixels(tiny.image_BHWC))
    text_BE = run(tiny.ours.text, plain_text(tiny.tokens_BT, tiny.readout_B))[:, 0]
    image_BE = run(tiny.ours.vision, tiny.image_BHWC)
    text_BE /= jnp.linalg.norm(text_BE, axis=-1, keepdims=True)
    image_BE /= jnp.linalg.norm(image_BE, axis=-1, keepdims=True)
    assert error(text_BE, theirs.text_embeds) <= LEAF
    assert error(image_BE, theirs.image_embeds) <= LEAF
    scale = jnp.exp(tiny.ours.logit_scale[...]) if scaled else 1
    found = error(scale * image_BE @ text_BE.T, theirs.logits_per_image)
    assert found <= WHOLE if scaled else found > 10 * WHOLE


# Directories of every architecture, dtype and layout that transformers writes.


def text_config(**change):
    return hf.CLIPTextConfig(**{"vocab_size": 50, "eos_token_id": 49, **TEXT, **change})


def text_batch(cfg, seed=3):
    return make_tokens(B, cfg.max_position_embeddings, cfg.vocab_size, seed)


@pytest.mark.torch
def test_text_model_directory_agrees_at_hidden_level(tmp_path):
    theirs = randomise(hf.CLIPTextModel(text_config()))
    theirs.save_pretrained(tmp_path)
    ours = read_model_directory(tmp_path).load()
    assert ours.vision is None and not hasattr(ours, "logit_scale")
    tokens_BT, readout_B = text_batch(theirs.config)
    with torch.no_grad():
        out = theirs(torch.from_numpy(tokens_BT).long())
    text = plain_text(tokens_BT, readout_B)
    assert error(run(ours.text, text, method="hidden"), out.last_hidden_state) <= WHOLE
    assert error(run(ours.text, text)[:, 0], out.pooler_output) <= WHOLE
    assert (
        error(run(ours.text, plain_text(tokens_BT, readout_B - 1))[:, 0], out.pooler_output) > WHOLE
    )


@pytest.mark.torch
def test_text_model_directory_with_prefixed_keys_agrees(tmp_path):
    """As transformers wrote a CLIPTextModel before version 5."""
    theirs = randomise(hf.CLIPTextModel(text_config()))
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({f"text_model.{key}": value for key, value in load_file(file).items()}, file)
    ours = read_model_directory(tmp_path).load()
    tokens_BT, readout_B = text_batch(theirs.config)
    with torch.no_grad():
        out = theirs(torch.from_numpy(tokens_BT).long())
    assert (
        error(
            run(ours.text, plain_text(tokens_BT, readout_B), method="hidden"), out.last_hidden_state
        )
        <= WHOLE
    )


@pytest.mark.torch
def test_text_model_with_projection_directory_agrees(tmp_path):
    theirs = randomise(hf.CLIPTextModelWithProjection(text_config(projection_dim=EMBED)))
    theirs.save_pretrained(tmp_path)
    ours = read_model_directory(tmp_path).load()
    tokens_BT, readout_B = text_batch(theirs.config)
    with torch.no_grad():
        out = theirs(torch.from_numpy(tokens_BT).long(), output_hidden_states=True)
    text = plain_text(tokens_BT, readout_B)
    assert error(run(ours.text, text)[:, 0], out.text_embeds) <= WHOLE
    assert error(run(ours.text, text, method="hidden"), out.last_hidden_state) <= WHOLE
    assert error(run(ours.text, text, method="penultimate"), out.hidden_states[-2]) <= WHOLE
    assert error(run(ours.text, text, method="penultimate"), out.hidden_states[-1]) > WHOLE
    transposed = with_param(ours.text, "projection", lambda x: x[::-1])
    assert error(run(transposed, text)[:, 0], out.text_embeds) > WHOLE


@pytest.mark.torch
def test_vision_model_with_projection_directory_agrees(tmp_path):
    cfg = hf.CLIPVisionConfig(**VISION, projection_dim=EMBED)
    theirs = randomise(hf.CLIPVisionModelWithProjection(cfg))
    theirs.save_pretrained(tmp_path)
    ours = read_model_directory(tmp_path).load()
    assert ours.text is None
    image_BHWC = inputs(B, 12, 12, 3)
    with torch.no_grad():
        out = theirs(pixels(image_BHWC)).image_embeds
    assert error(run(ours.vision, image_BHWC), out) <= WHOLE
    assert error(run(ours.vision, image_BHWC[:, ::-1]), out) > WHOLE


@pytest.mark.torch
@pytest.mark.parametrize("prefixed", [False, True])
def test_vision_model_directory_agrees_at_each_level(tmp_path, prefixed):
    theirs = randomise(hf.CLIPVisionModel(hf.CLIPVisionConfig(**VISION)))
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    bare = {key.removeprefix("vision_model."): x for key, x in load_file(file).items()}
    save_file({f"vision_model.{key}" if prefixed else key: x for key, x in bare.items()}, file)
    ours = read_model_directory(tmp_path).load()
    assert ours.text is None and ours.cfg.vision and not ours.cfg.vision.embed
    image_BHWC = inputs(B, 12, 12, 3)
    with torch.no_grad():
        out = theirs(pixels(image_BHWC), output_hidden_states=True)
    assert error(run(ours.vision, image_BHWC), out.pooler_output) <= WHOLE
    found = run(ours.vision, image_BHWC, method="penultimate")
    assert error(found, out.hidden_states[-2][:, 1:]) <= WHOLE  # what LLaVA reads
    assert error(found, out.hidden_states[-1][:, 1:]) > WHOLE
    assert error(found, out.hidden_states[-2][:, :-1]) > WHOLE


@pytest.mark.torch
def test_vision_tower_drops_what_no_whole_patch_covers_as_torch_does(tmp_path):
    cfg = hf.CLIPVisionConfig(**{**VISION, "image_size": 14}, projection_dim=EMBED)
    theirs = randomise(hf.CLIPVisionModelWithProjection(cfg))
    theirs.save_pretrained(tmp_path)
    ours = read_model_directory(tmp_path).load()
    image_BHWC = inputs(B, 14, 14, 3)
    with torch.no_grad():
        out = theirs(pixels(image_BHWC)).image_embeds
    assert error(run(ours.vision, image_BHWC), out) <= WHOLE
    shifted = np.roll(image_BHWC, -2, axis=1)
    assert error(run(ours.vision, shifted), out) > WHOLE


@pytest.mark.torch
@pytest.mark.parametrize(
    "dtype, sharded", [("float32", True), ("float16", False), ("bfloat16", True)]
)
def test_clip_directory_of_any_dtype_and_layout_agrees(tmp_path, dtype, sharded):
    full = randomise(hf.CLIPModel(clip_config(TEXT, VISION, EMBED)))
    stored = full.to(getattr(torch, dtype))
    stored.save_pretrained(tmp_path, **({"max_shard_size": "8KB"} if sharded else {}))
    assert (tmp_path / "model.safetensors.index.json").exists() == sharded
    theirs = stored.float()  # the rounded weights, computed in f32 as ours
    ours = read_model_directory(tmp_path).load()
    tokens_BT, readout_B = make_tokens(3, 24, 50)
    case = Case(theirs, ours, tokens_BT, readout_B, inputs(2, 12, 12, 3))
    assert text_error(case) <= WHOLE
    assert vision_error(case) <= WHOLE
    assert error(ours.logit_scale[...], theirs.logit_scale) == 0
    if dtype != "float32":  # weights that were not rounded are told from those that were
        case.theirs = randomise(full.float())
        assert text_error(case) > WHOLE
        assert vision_error(case) > WHOLE


@pytest.mark.torch
@pytest.mark.parametrize("eos", [2, 44, 45])
def test_packed_texts_are_read_out_where_transformers_reads_them(tmp_path, eos):
    """Files with 2 mean the largest token id, others that token: the first, or position 0."""
    theirs = randomise(hf.CLIPTextModelWithProjection(text_config(eos_token_id=eos)))
    theirs.save_pretrained(tmp_path)
    ours: Any = read_model_directory(tmp_path).load()
    end = 44
    captions = [  # 48, 49: added later; the end of text twice; tokens up to it alone; number 2
        np.array(tokens, np.int32)
        for tokens in ([43, 5, 48, 7, end], [43, 49, 3, 49, end], [43, 6, end, 9, end],
                       [43, 8, 9, 10, end], [43, 2, 7, 2, end])
    ]  # fmt: skip
    tokens_BT = np.full((len(captions), 24), 1, np.int32)
    for row, tokens in zip(tokens_BT, captions, strict=True):
        row[: len(tokens)] = tokens
    with torch.no_grad():
        out = theirs(torch.from_numpy(tokens_BT).long()).text_embeds
    text, layout = pack_text(captions, ours.text.cfg, 32)
    found = run(ours.text, text)[layout.row_n, layout.slot_n]
    assert error(found, out) <= WHOLE
    last, _ = pack_text(
        captions, dataclasses.replace(ours.text.cfg, readout="last", eos_token_id=None), 32
    )
    assert error(run(ours.text, last)[layout.row_n, layout.slot_n], out) > WHOLE


# Settings that must not change what is computed.


def test_remat_changes_neither_output_nor_gradient(tiny_dir):
    directory = read_model_directory(tiny_dir())
    assert directory.cfg.text
    tokens_BT, readout_B = make_tokens(B, 24, directory.cfg.text.vocab_size)
    text = plain_text(tokens_BT, readout_B)

    def value_and_grads(remat):
        tower: Any = directory.load(remat=remat).text
        assert tower.encoder.remat == remat
        graphdef, params = nnx.split(tower)
        loss = lambda params: jnp.sin(nnx.merge(graphdef, params)(text)).sum()  # noqa: E731
        assert ("remat" in str(jax.make_jaxpr(loss)(params))) == (remat != "none")
        return jax.jit(jax.value_and_grad(loss))(params)

    wanted = jax.tree.leaves(value_and_grads("none"))
    for remat in ("dots", "full"):
        found = jax.tree.leaves(value_and_grads(remat))
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_bfloat16_compute_stays_near_f32_and_returns_f32(tiny_dir):
    directory = read_model_directory(tiny_dir())
    assert directory.cfg.text
    tokens_BT, readout_B = make_tokens(B, 24, directory.cfg.text.vocab_size)
    text, image_BHWC = plain_text(tokens_BT, readout_B), inputs(B, 12, 12, 3)
    exact, rounded = directory.load(), directory.load("bfloat16")
    assert {v.dtype for v in jax.tree.leaves(nnx.state(rounded))} == {np.dtype("float32")}
    for name, x in (("text", text), ("vision", image_BHWC)):
        a, b = run(getattr(exact, name), x), run(getattr(rounded, name), x)
        assert b.dtype == np.float32
        cosine = (a * b).sum(-1) / jnp.linalg.norm(a, axis=-1) / jnp.linalg.norm(b, axis=-1)
        assert cosine.min() > 0.999
        assert jnp.abs(a - b).max() > WHOLE  # it did compute in fewer bits
