"""OpenCLIP's layout: parity with open_clip, run live, and everything that is refused."""

import dataclasses
import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from factories import CAPTIONS, PAPER_TEXT_FLAGS, random_tensor, run, write_tokenizer
from PIL import Image
from reference import open_clip, torch
from safetensors.numpy import load_file, save_file

from jaxdefense.cli import main
from jaxdefense.clip.text import plain_text
from jaxdefense.convert.directory import read_model_directory
from jaxdefense.convert.openclip import (
    config_from_openclip,
    config_from_shapes,
    openclip_config,
    openclip_table,
)
from jaxdefense.data.images import read_processor
from jaxdefense.data.packing import pack_text

PRESETS = [
    "ViT-B-32",
    "ViT-B-32-quickgelu",
    "ViT-B-16",
    "ViT-L-14",
    "ViT-L-14-336",
    "ViT-H-14",
    "ViT-g-14",
    "ViT-bigG-14",
    "RN50",
    "RN101",
    "RN50x4",
    "RN50x16",
    "RN50x64",
]
VISION: dict[str, Any] = {
    "image_size": 18, "patch_size": 6, "width": 8, "head_width": 4, "layers": 3, "mlp_ratio": 1.75,
}  # fmt: skip
RESNET: dict[str, Any] = {"image_size": 64, "width": 4, "head_width": 32, "layers": [1, 2, 3, 1]}
TEXT = {"context_length": 24, "width": 12, "heads": 3, "layers": 2, "mlp_ratio": 1.6667}


def model_config(vocab_size: int = 600, **changes: Any) -> dict[str, Any]:
    text = {**TEXT, "vocab_size": vocab_size}
    return {"embed_dim": 10, "vision_cfg": VISION, "text_cfg": text, **changes}


def write_openclip(out, dtype="float32", prefix="", seed=0, extra=None, **changes):
    """Write an OpenCLIP directory with random weights, without torch."""
    vocab = write_tokenizer(out)
    raw = model_config(vocab, **changes)
    config = {"model_cfg": raw, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.3, 0.4]}}
    (out / "open_clip_config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(seed)
    rows = openclip_table(config_from_openclip(config), ["text."] if prefix else [])
    tensors = {r.key: np.asarray(random_tensor(r, rng)).astype(np.dtype(dtype)) for r in rows}
    if prefix:
        tensors["text.attn_mask"] = np.triu(np.full((24, 24), -np.inf, np.float32), 1)
    save_file(tensors | (extra or {}), out / "open_clip_model.safetensors")
    return out


def their_model(raw: dict[str, Any], tensors: dict[str, np.ndarray]) -> Any:
    model = open_clip.CLIP(**raw).eval()
    model.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in tensors.items()}, False)
    return model


def tokens_and_images(cfg, rng):
    tokens = rng.integers(1, cfg.text.vocab_size - 1, (5, cfg.text.context_length))
    ends = np.array([3, 7, 23, 11, 5])
    for row, end in zip(tokens, ends, strict=True):
        row[end] = cfg.text.vocab_size - 1
        row[end + 1 :] = 0
    side = cfg.vision.image_size
    return tokens, ends, rng.standard_normal((4, side, side, 3)).astype(np.float32)


def largest_errors(path, raw) -> tuple[float, float]:
    """Compare both towers with open_clip's; the largest difference in either embedding."""
    model = read_model_directory(path).load()
    theirs = their_model(raw, load_file(path / "open_clip_model.safetensors"))
    tokens, ends, images = tokens_and_images(model.cfg, np.random.default_rng(1))
    with torch.no_grad():
        text = theirs.encode_text(torch.from_numpy(tokens)).numpy()
        image = theirs.encode_image(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    ours_text = np.asarray(run(model.text, plain_text(tokens, ends)))[:, 0]
    ours_image = np.asarray(run(model.vision, images))
    return np.abs(ours_text - text).max(), np.abs(ours_image - image).max()


@pytest.mark.torch("open_clip")
@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("vision", [VISION, RESNET], ids=["vit", "resnet"])
def test_towers_match_open_clip(tmp_path, quick_gelu, vision):
    path = write_openclip(tmp_path / "m", vision_cfg=vision, quick_gelu=quick_gelu)
    raw = json.loads((path / "open_clip_config.json").read_text())["model_cfg"]
    text, image = largest_errors(path, raw)
    assert text <= 1e-4 and image <= 1e-4


@pytest.mark.torch("open_clip")
@pytest.mark.parametrize("eos_id", [None, 2, 44])
def test_packed_texts_are_read_out_where_open_clip_reads_them(tmp_path, eos_id):
    pool = {} if eos_id is None else {"pool_type": "eos", "eos_id": eos_id}
    path = write_openclip(tmp_path / "m", text_cfg={**TEXT, "vocab_size": 600, **pool})
    raw = json.loads((path / "open_clip_config.json").read_text())["model_cfg"]
    tower: Any = read_model_directory(path).load().text
    theirs = their_model(raw, load_file(path / "open_clip_model.safetensors"))
    captions = [[43, 5, 48, 7, 44], [43, 2, 49, 2, 44], [43, 6, 44, 9, 44], [43, 8, 9, 10, 44]]
    tokens = np.zeros((len(captions), 24), np.int64)
    tokens[:, :5] = captions
    with torch.no_grad():
        wanted = theirs.encode_text(torch.from_numpy(tokens)).numpy()
    packed = [np.array(caption, np.int32) for caption in captions]
    text, layout = pack_text(packed, tower.cfg, 32)
    found = np.asarray(run(tower, text))[layout.row_n, layout.slot_n]
    np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.torch("open_clip")
@pytest.mark.parametrize("wrong", ["activation", "heads"])
def test_parity_fails_with_one_detail_wrong(tmp_path, wrong):
    path = write_openclip(tmp_path / "m")
    file = path / "open_clip_config.json"
    raw = json.loads(file.read_text())
    changed = json.loads(file.read_text())
    if wrong == "activation":
        changed["model_cfg"]["quick_gelu"] = True
    else:
        changed["model_cfg"]["vision_cfg"]["head_width"] = 2
        changed["model_cfg"]["text_cfg"]["heads"] = 2
    file.write_text(json.dumps(changed))
    text, image = largest_errors(path, raw["model_cfg"])
    assert text > 1e-3 and image > 1e-3


@pytest.mark.torch("open_clip")
@pytest.mark.slow
def test_vit_b_32_at_full_size_matches_open_clip(tmp_path):
    raw = open_clip.get_model_config("ViT-B-32")
    path = write_openclip(tmp_path / "m", **raw)
    raw["text_cfg"]["vocab_size"] = 49408
    config = {"model_cfg": raw}
    (path / "open_clip_config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    rows = openclip_table(config_from_openclip(config), [])
    save_file(
        {row.key: np.asarray(random_tensor(row, rng)) for row in rows},
        path / "open_clip_model.safetensors",
    )
    text, image = largest_errors(path, raw)
    assert text <= 1e-4 and image <= 1e-4


@pytest.mark.torch("open_clip")
@pytest.mark.parametrize("name", PRESETS)
def test_table_lists_every_tensor_of_a_preset(name):
    raw = open_clip.get_model_config(name)
    raw["quick_gelu"] = raw.get("quick_gelu", False)
    with torch.device("meta"):
        model = open_clip.CLIP(**raw)
    cfg = config_from_openclip(raw)
    assert cfg.text and cfg.text.activation == ("quick_gelu" if raw["quick_gelu"] else "gelu")
    wanted = {k: tuple(v.shape) for k, v in model.state_dict().items() if "num_batches" not in k}
    rows = openclip_table(cfg, wanted)
    assert {row.key: row.shape for row in rows} == wanted
    assert len(rows) == len(wanted)
    heads = model.transformer.resblocks[0].attn.num_heads
    assert cfg.text.num_heads == heads
    # Written and read again, and told from shapes alone, it is the same model.
    assert config_from_openclip(openclip_config(cfg)) == cfg
    if name.startswith(("ViT-B", "ViT-L", "RN")):  # OpenAI's heads are 64 wide
        assert config_from_shapes(wanted, cfg.text.activation) == cfg


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("prefix", ["", "text."])
def test_round_trip_is_bit_for_bit(tmp_path, dtype, prefix):
    extra = {"visual.bn1.num_batches_tracked": np.array(7)}
    path = write_openclip(tmp_path / "m", dtype, prefix, extra=extra)
    directory = read_model_directory(path)
    assert directory.save(directory.load(), tmp_path / "out") == []
    name = "open_clip_model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (path / name).read_bytes()


@pytest.mark.torch("open_clip")
def test_defended_directory_loads_in_open_clip(tmp_path):
    path = write_openclip(tmp_path / "m")
    (tmp_path / "names.txt").write_text("Jane Doe\nJohn Roe\n")
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS))
    out = tmp_path / "run"
    args = ["--model", path, "--names", "names.txt", "--captions", "captions.txt", "--out", out]
    args = [str(tmp_path / a if str(a).endswith(".txt") else a) for a in args]
    sizes = ["train.steps=3", "train.num_clean=4", "train.num_poisoned=4"]
    sizes += [*PAPER_TEXT_FLAGS, "optimizer.lr=.01"]
    sets = [part for size in sizes for part in ("--set", size)]
    assert main(["defend", "text", *args, *sets]) == 0
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{out / 'model'}")
    before = load_file(path / "open_clip_model.safetensors")
    after = {k: v.numpy() for k, v in model.state_dict().items()}
    assert all(np.array_equal(after[k], before[k]) for k in before if k.startswith("visual."))
    changed = [k for k in before if not np.array_equal(after[k], before[k])]
    assert "token_embedding.weight" in changed and not any("ln_" in k for k in changed)
    assert list(preprocess.transforms[-1].mean) == [0.5, 0.5, 0.5]
    tokens, ends, images = tokens_and_images(
        read_model_directory(path).cfg, np.random.default_rng(1)
    )
    ours = read_model_directory(out / "model").load()
    with torch.no_grad():
        text = model.eval().encode_text(torch.from_numpy(tokens)).numpy()
    np.testing.assert_allclose(
        np.asarray(run(ours.text, plain_text(tokens, ends)))[:, 0], text, atol=1e-4
    )


@pytest.mark.parametrize(
    "section, field, value",
    [
        ("vision_cfg", "timm_model_name", "vit_base"),
        ("vision_cfg", "attentional_pool", True),
        ("vision_cfg", "ls_init_value", 0.1),
        ("vision_cfg", "pool_type", "avg"),
        ("vision_cfg", "qk_norm", True),
        ("vision_cfg", "head_width", 3),
        ("vision_cfg", "image_size", 0),
        ("vision_cfg", "layers", [1, 2]),
        ("vision_cfg", "mlp_ratio", "wide"),
        ("text_cfg", "hf_model_name", "roberta"),
        ("text_cfg", "no_causal_mask", True),
        ("text_cfg", "embed_cls", True),
        ("text_cfg", "pool_type", "last"),
        ("text_cfg", "norm_kwargs", {"elementwise_affine": False}),
        ("text_cfg", "heads", 5),
    ],
)
def test_other_models_of_open_clip_are_refused(tmp_path, section, field, value):
    path = write_openclip(tmp_path / "m")
    file = path / "open_clip_config.json"
    raw = json.loads(file.read_text())
    raw["model_cfg"][section][field] = value
    file.write_text(json.dumps(raw))
    words = {"heads": "num_attention_heads", "layers": "depths"}.get(field, field)
    with pytest.raises(ValueError, match=f"open_clip_config.json`: .*{words}"):
        read_model_directory(path)


def test_patch_dropout_is_read_over():
    raw = model_config()
    raw["vision_cfg"] = {**VISION, "patch_dropout": 0.5}
    assert config_from_openclip(raw) == config_from_openclip(model_config())


@pytest.mark.parametrize("change", ["absent", "text"])
def test_config_without_sections_is_refused(change):
    raw = model_config()
    del raw["embed_dim" if change == "absent" else "text_cfg"]
    with pytest.raises(ValueError, match="embed_dim|text_cfg"):
        config_from_openclip(raw)


@pytest.mark.torch("open_clip")
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_photos_are_prepared_as_open_clip_does(tmp_path, interpolation):
    path = write_openclip(tmp_path / "m")
    file = path / "open_clip_config.json"
    raw = json.loads(file.read_text())
    raw["preprocess_cfg"]["interpolation"] = interpolation
    file.write_text(json.dumps(raw))
    processor = read_processor(path, 18)
    _, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{path}")
    rng = np.random.default_rng(0)
    odd = 0
    for width, height in [(18, 18), (40, 31), (31, 40), (97, 20), (20, 99), (18, 21), (23, 18)]:
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        theirs = preprocess(image).numpy().transpose(1, 2, 0)
        ours = processor(image)
        normal = processor.normalise(jnp.asarray(ours[None]))[0]
        np.testing.assert_allclose(normal, theirs, atol=1e-6)
        rounds_down = dataclasses.replace(processor, library="transformers")
        odd += not np.array_equal(ours, rounds_down(image))
    assert odd  # the crop of transformers' processor is another
