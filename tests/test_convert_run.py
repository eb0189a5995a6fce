"""`jaxdefense convert`: every direction, bit for bit, and everything that is refused."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import transformers
from factories import run
from reference import open_clip, torch
from safetensors.numpy import load_file
from test_openclip import RESNET, TEXT, tokens_and_images, write_openclip

from jaxdefense.cli import main
from jaxdefense.clip.text import plain_text
from jaxdefense.convert import run as convert_run
from jaxdefense.convert.directory import read_model_directory
from jaxdefense.data.images import read_processor


def convert(*args) -> int:
    return main(["convert", *map(str, args)])


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    return {k: v for file in path.glob("*.safetensors") for k, v in load_file(file).items()}


def assert_same_tensors(a: Path, b: Path) -> None:
    first, second = tensors_of(a), tensors_of(b)
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert value.dtype == second[key].dtype and value.shape == second[key].shape, key
        assert value.tobytes() == second[key].tobytes(), key


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("between", [["openclip"], ["orbax"], ["openclip", "orbax"]])
def test_hf_comes_back_bit_for_bit(tiny_dir, tmp_path, dtype, num_shards, between):
    first = path = tiny_dir(dtype=dtype, num_shards=num_shards)
    for i, to in enumerate([*between, "hf"]):
        assert convert(path, tmp_path / f"{i}", "--to", to) == 0
        path = tmp_path / f"{i}"
    assert_same_tensors(first, path)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        assert (first / name).read_bytes() == (path / name).read_bytes()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("between", [["hf"], ["orbax"], ["orbax", "hf", "orbax"]])
def test_openclip_comes_back_bit_for_bit(tmp_path, dtype, between):
    first = path = write_openclip(tmp_path / "first", dtype, quick_gelu=True)
    for i, to in enumerate([*between, "openclip"]):
        assert convert(path, tmp_path / f"{i}", "--to", to) == 0
        path = tmp_path / f"{i}"
    assert_same_tensors(first, path)
    config = json.loads((path / "open_clip_config.json").read_text())
    assert config["preprocess_cfg"]["mean"] == [0.5, 0.5, 0.5]
    assert read_model_directory(path).cfg == read_model_directory(first).cfg


def test_residual_network_comes_back_from_orbax_with_its_counts(tmp_path):
    counts = {"visual.bn1.num_batches_tracked": np.array(7)}
    first = write_openclip(tmp_path / "first", vision_cfg=RESNET, extra=counts)
    assert convert(first, tmp_path / "orbax", "--to", "orbax") == 0
    assert convert(tmp_path / "orbax", tmp_path / "again", "--to", "openclip") == 0
    assert_same_tensors(first, tmp_path / "again")


def test_mixed_dtypes_come_back_from_orbax(tiny_dir, tmp_path):
    first = tiny_dir(dtype="float16", position_ids=True)
    tensors = load_file(first / "model.safetensors")
    key = next(key for key in tensors if key.endswith("q_proj.weight"))
    tensors[key] = tensors[key].astype(np.float32) / 3
    convert_run.save_file(tensors, first / "model.safetensors")
    assert convert(first, tmp_path / "orbax", "--to", "orbax") == 0
    assert convert(tmp_path / "orbax", tmp_path / "again", "--to", "hf") == 0
    assert_same_tensors(first, tmp_path / "again")


def test_mixed_dtypes_that_would_be_joined_are_refused(tiny_dir, tmp_path, capsys):
    first = tiny_dir()
    tensors = load_file(first / "model.safetensors")
    key = next(key for key in tensors if key.endswith("q_proj.weight"))
    tensors[key] = tensors[key].astype(np.float16)
    convert_run.save_file(tensors, first / "model.safetensors")
    assert convert(first, tmp_path / "out", "--to", "openclip") == 2
    assert key in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert {path.name for path in tmp_path.iterdir()} == {first.name}


@pytest.mark.torch("open_clip")
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_converted_models_embed_alike(tiny_dir, tmp_path, activation):
    path = tiny_dir(activation=activation)
    assert convert(path, tmp_path / "openclip", "--to", "openclip") == 0
    model, _, preprocess = open_clip.create_model_and_transforms(
        f"local-dir:{tmp_path / 'openclip'}"
    )
    ours = read_model_directory(path).load()
    tokens, ends, images = tokens_and_images(ours.cfg, np.random.default_rng(1))
    with torch.no_grad():
        text = model.eval().encode_text(torch.from_numpy(tokens)).numpy()
        image = model.encode_image(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    ours_text = np.asarray(run(ours.text, plain_text(tokens, ends)))[:, 0]
    np.testing.assert_allclose(ours_text, text, atol=1e-4)
    np.testing.assert_allclose(np.asarray(run(ours.vision, images)), image, atol=1e-4)
    assert list(preprocess.transforms[-1].std) == [0.26862954, 0.26130258, 0.27577711]


@pytest.mark.torch
def test_converted_openclip_model_loads_in_transformers(tmp_path):
    path = write_openclip(tmp_path / "openclip")
    assert convert(path, tmp_path / "hf", "--to", "hf") == 0
    model = transformers.CLIPModel.from_pretrained(tmp_path / "hf").eval()
    ours = read_model_directory(path).load()
    tokens, ends, images = tokens_and_images(ours.cfg, np.random.default_rng(1))
    with torch.no_grad():
        out = model(
            input_ids=torch.from_numpy(tokens),
            pixel_values=torch.from_numpy(images.transpose(0, 3, 1, 2)),
        )
    ours_text = np.asarray(run(ours.text, plain_text(tokens, ends)))[:, 0]
    ours_text = ours_text / np.linalg.norm(ours_text, axis=-1, keepdims=True)
    ours_image = np.asarray(run(ours.vision, images))
    ours_image = ours_image / np.linalg.norm(ours_image, axis=-1, keepdims=True)
    np.testing.assert_allclose(ours_text, out.text_embeds.numpy(), atol=1e-4)
    np.testing.assert_allclose(ours_image, out.image_embeds.numpy(), atol=1e-4)
    processor = json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())
    assert processor["image_std"] == [0.2, 0.3, 0.4] and processor["crop_size"]["width"] == 18


@pytest.mark.torch
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("vision", ["vit", "resnet"])
def test_torch_file_is_read(tmp_path, wrapped, vision):
    # Told from shapes alone, heads are 64 wide and MLPs four times the tower.
    if vision == "vit":
        image = {"image_size": 18, "patch_size": 6, "width": 64, "layers": 2}
    else:
        image = {**RESNET, "width": 4, "head_width": 64}
    text = {"context_length": 24, "width": 64, "heads": 1, "layers": 3, "vocab_size": 600}
    changes = {"vision_cfg": image, "text_cfg": text, "quick_gelu": True}
    path = write_openclip(tmp_path / "m", "float16", **changes)
    tensors = {k: torch.from_numpy(v) for k, v in tensors_of(path).items()}
    tensors = {k: v.to(torch.bfloat16) if "ln" in k else v for k, v in tensors.items()}
    state = {f"module.{k}": v for k, v in tensors.items()} if wrapped else tensors
    torch.save({"state_dict": state, "epoch": 3} if wrapped else state, tmp_path / "model.pt")
    assert convert(tmp_path / "model.pt", tmp_path / "out", "--to", "openclip") == 0
    back = tensors_of(tmp_path / "out")
    assert back.keys() == tensors.keys()
    for key, value in tensors.items():
        same = value.view(torch.int16) if value.dtype == torch.bfloat16 else value
        assert back[key].tobytes() == same.numpy().tobytes(), key
    assert read_model_directory(tmp_path / "out").cfg == read_model_directory(path).cfg


@pytest.mark.torch
@pytest.mark.parametrize("content", ["text", "object", "list", "mixed"])
def test_torch_file_of_something_else_is_refused(tmp_path, capsys, content):
    file = tmp_path / "model.pt"
    values = {
        "object": {"a": Path("x")},
        "list": [torch.ones(2)],
        "mixed": {"a": torch.ones(2), "b": 3},
    }
    if content == "text":
        file.write_text("nothing of torch's")
    else:
        torch.save(values[content], file)
    assert convert(file, tmp_path / "out", "--to", "openclip") == 2
    err = capsys.readouterr().err
    assert str(file) in err and len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_torch_file_without_torch_says_so(tmp_path, capsys, monkeypatch):
    (tmp_path / "model.pt").write_bytes(b"PK")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert convert(tmp_path / "model.pt", tmp_path / "out", "--to", "hf") == 2
    assert "needs torch" in capsys.readouterr().err


@pytest.mark.parametrize(
    "args, words",
    [
        (["--to", "onnx"], "`--to` (=onnx) must be one of hf, openclip, orbax"),
        (["--to", "hf", "--from", "flax"], "`--from` (=flax) must be one of hf, openclip"),
        (["--to", "openclip", "--from", "openclip"], "open_clip_config.json` does not exist"),
    ],
)
def test_flags_are_checked(tiny_dir, tmp_path, capsys, args, words):
    assert convert(tiny_dir(), tmp_path / "out", *args) == 2
    assert words in capsys.readouterr().err


def test_existing_target_is_left_alone(tiny_dir, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    assert convert(tiny_dir(), tmp_path / "out", "--to", "orbax") == 2
    assert "already exists" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    "architecture", ["CLIPTextModel", "CLIPVisionModel", "CLIPVisionModelWithProjection"]
)
def test_one_encoder_has_no_openclip_layout(tiny_dir, tmp_path, capsys, architecture):
    path = tiny_dir(architecture=architecture)
    assert convert(path, tmp_path / "out", "--to", "openclip") == 2
    assert "keeps both encoders in one model" in capsys.readouterr().err
    assert convert(path, tmp_path / "orbax", "--to", "orbax") == 0
    assert convert(tmp_path / "orbax", tmp_path / "again", "--to", "hf") == 0
    assert_same_tensors(path, tmp_path / "again")


@pytest.mark.parametrize("architecture", ["SiglipModel", "SiglipTextModel", "SiglipVisionModel"])
def test_siglip_comes_back_from_orbax_and_has_no_openclip_layout(
    tiny_dir, tmp_path, capsys, architecture
):
    path = tiny_dir(architecture=architecture)
    assert convert(path, tmp_path / "orbax", "--to", "orbax") == 0
    assert convert(tmp_path / "orbax", tmp_path / "again", "--to", "hf") == 0
    assert_same_tensors(path, tmp_path / "again")
    assert convert(path, tmp_path / "out", "--to", "openclip") == 2
    assert "OpenCLIP keeps" in capsys.readouterr().err


def test_residual_network_has_no_transformers_layout(tmp_path, capsys):
    path = write_openclip(tmp_path / "m", vision_cfg=RESNET)
    assert convert(path, tmp_path / "out", "--to", "hf") == 2
    assert "no residual network" in capsys.readouterr().err


@pytest.mark.parametrize("pool", [{}, {"pool_type": "eos", "eos_id": 599}])
def test_readout_is_the_same_in_both_layouts(tmp_path, pool):
    first = write_openclip(tmp_path / "m", text_cfg={**TEXT, "vocab_size": 600, **pool})
    assert convert(first, tmp_path / "hf", "--to", "hf") == 0
    text = json.loads((tmp_path / "hf" / "config.json").read_text())["text_config"]
    assert text["eos_token_id"] == (599 if pool else 2)  # of transformers 2 is the largest
    assert convert(tmp_path / "hf", tmp_path / "again", "--to", "openclip") == 0
    again = json.loads((tmp_path / "again" / "open_clip_config.json").read_text())
    assert {k: again["model_cfg"]["text_cfg"].get(k) for k in pool} == pool
    assert read_model_directory(first).cfg == read_model_directory(tmp_path / "hf").cfg


def test_readout_that_transformers_cannot_say_is_refused(tmp_path, capsys):
    pool = {"pool_type": "eos", "eos_id": 2}
    first = write_openclip(tmp_path / "m", text_cfg={**TEXT, "vocab_size": 600, **pool})
    assert convert(first, tmp_path / "hf", "--to", "hf") == 2
    assert "means the largest token id there" in capsys.readouterr().err
    assert not (tmp_path / "hf").exists()


def test_directory_of_both_layouts_is_read_as_asked(tiny_dir, tmp_path):
    path = tiny_dir()
    assert convert(path, tmp_path / "openclip", "--to", "openclip") == 0
    for name in ("open_clip_config.json", "open_clip_model.safetensors"):
        (path / name).write_bytes((tmp_path / "openclip" / name).read_bytes())
    assert read_model_directory(path).layout.name == "hf"
    assert convert(path, tmp_path / "a", "--to", "openclip", "--from", "openclip") == 0
    assert_same_tensors(tmp_path / "openclip", tmp_path / "a")
    assert {file.name for file in (tmp_path / "a").glob("*config.json")} == {
        "open_clip_config.json", "preprocessor_config.json", "tokenizer_config.json",
    }  # fmt: skip


@pytest.mark.parametrize("broken", ["manifest", "arrays", "missing"])
def test_broken_orbax_checkpoint_is_refused(tiny_dir, tmp_path, capsys, broken):
    out = tmp_path / "orbax"
    assert convert(tiny_dir(), out, "--to", "orbax") == 0
    manifest = out / "jaxdefense_orbax.json"
    if broken == "manifest":
        manifest.write_text("{}")
    elif broken == "arrays":
        for file in (out / "params").rglob("*"):
            if file.is_file():
                file.write_bytes(file.read_bytes()[:10])
    else:
        config = json.loads((out / "config.json").read_text())
        config["text_config"]["num_hidden_layers"] = 5
        (out / "config.json").write_text(json.dumps(config))
    assert convert(out, tmp_path / "again", "--to", "hf") == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(out) in err and not (tmp_path / "again").exists()


def test_large_checkpoints_are_cut_into_shards(tiny_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(convert_run, "_SHARD_BYTES", 6000)
    path = tiny_dir()
    assert convert(path, tmp_path / "out", "--to", "hf") == 0
    files = sorted(file.name for file in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2 and files[0].startswith("model-00001-of-")
    assert_same_tensors(path, tmp_path / "out")
    assert read_model_directory(tmp_path / "out").cfg == read_model_directory(path).cfg


# How photos are prepared


def test_settings_of_transformers_5_reach_open_clip_and_come_back(tiny_dir, tmp_path):
    path = tiny_dir()
    raw = json.loads((path / "preprocessor_config.json").read_text())
    raw |= {"size": {"height": 12, "width": 12}, "do_center_crop": False, "resample": 2}
    raw |= {"image_mean": [0.1, 0.2, 0.3]}
    (path / "preprocessor_config.json").unlink()
    (path / "processor_config.json").write_text(json.dumps({"image_processor": raw, "x": 1}))
    assert convert(path, tmp_path / "openclip", "--to", "openclip") == 0
    config = json.loads((tmp_path / "openclip/open_clip_config.json").read_text())
    section = config["preprocess_cfg"]
    assert section["resize_mode"] == "squash" and section["interpolation"] == "bilinear"
    assert section["mean"] == [0.1, 0.2, 0.3]
    section["mean"] = [0.5, 0.6, 0.7]
    (tmp_path / "openclip/open_clip_config.json").write_text(json.dumps(config))
    # Of the first layout's file, which still lies there, nothing may come back.
    assert convert(tmp_path / "openclip", tmp_path / "again", "--to", "hf") == 0
    found = read_processor(tmp_path / "again", 12)
    assert found.mean == (0.5, 0.6, 0.7) and found.resize == (12, 12) and found.resample == 2
    other = json.loads((tmp_path / "again/processor_config.json").read_text())
    assert other == {"x": 1}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"size": {"shortest_edge": 15}}, "shorter side to 15"),
        ({"resample": 1}, "lanczos"),
        ({"rescale_factor": 1.0}, "levels divided by 1;"),
    ],
)
def test_settings_that_open_clip_cannot_say_are_refused(tiny_dir, tmp_path, capsys, change, words):
    path = tiny_dir()
    raw = json.loads((path / "preprocessor_config.json").read_text())
    (path / "preprocessor_config.json").write_text(json.dumps(raw | change))
    assert convert(path, tmp_path / "out", "--to", "openclip") == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert "OpenCLIP cannot prepare photos so: " in err and words in err
    assert not (tmp_path / "out").exists()


def test_defaults_that_are_written_are_told(tiny_dir, tmp_path, capsys):
    path = tiny_dir()
    (path / "preprocessor_config.json").unlink()
    assert convert(path, tmp_path / "out", "--to", "openclip") == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "neither preprocessor_config.json nor processor_config.json" in told
