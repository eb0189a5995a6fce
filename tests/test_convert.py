"""Model directories: what comes in goes out again, and what is wrong is named."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from factories import hf_config, run, write_weights
from flax import nnx
from reference import torch
from safetensors.numpy import load_file, save_file

from jaxdefense.clip.config import VisionConfig
from jaxdefense.clip.text import plain_text
from jaxdefense.convert import directory as directory_module
from jaxdefense.convert.directory import read_model_directory
from jaxdefense.convert.huggingface import config_from_hf, hf_table
from jaxdefense.errors import InputError

Q_PROJ = "text_model.encoder.layers.1.self_attn.q_proj.weight"


def files_in(path):
    """Every file below a directory, by name, with its bytes."""
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file()
    }


def tensors_in(path):
    return {k: v for file in path.glob("*.safetensors") for k, v in load_file(file).items()}


def edit_tensors(path, edit, num_shards=1):
    """Rewrite a directory's weights after `edit` changed the dict of them."""
    tensors = tensors_in(path)
    edit(tensors)
    for file in path.glob("*.safetensors*"):
        file.unlink()
    write_weights(path, tensors, num_shards)


def edit_json(file, **change):
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


def changed(model, tower, add=0.25):
    """A copy with every parameter of one tower changed."""
    model = nnx.clone(model)
    graphdef, state = nnx.split(getattr(model, tower))
    state = jax.tree.map(lambda x: np.asarray(x + np.float32(add)), state)
    setattr(model, tower, nnx.merge(graphdef, state))
    return model


# Round trips


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_round_trip_gives_back_every_file_bit_for_bit(tiny_dir, tmp_path, dtype, num_shards):
    path = tiny_dir(dtype=dtype, num_shards=num_shards, position_ids=True)
    (path / "README.md").write_text("# A card\n")
    (path / "nested/deeper").mkdir(parents=True)
    (path / "nested/deeper/notes.txt").write_bytes(b"\x00\xff")
    directory = read_model_directory(path)
    assert directory.save(directory.load(), tmp_path / "out") == []
    before, after = files_in(path), files_in(tmp_path / "out")
    assert {"README.md", "nested/deeper/notes.txt", "merges.txt", "config.json"} <= after.keys()
    assert after == before


@pytest.mark.parametrize(
    "architecture, bare_text",
    [
        ("CLIPTextModel", True),
        ("CLIPTextModel", False),
        ("CLIPTextModelWithProjection", False),
        ("CLIPVisionModel", True),
        ("CLIPVisionModel", False),
        ("CLIPVisionModelWithProjection", False),
    ],
)
def test_round_trip_of_one_tower_is_bit_for_bit(tiny_dir, tmp_path, architecture, bare_text):
    path = tiny_dir(architecture=architecture, bare_text=bare_text)
    directory = read_model_directory(path)
    directory.save(directory.load(), tmp_path / "out")
    assert files_in(tmp_path / "out") == files_in(path)


def test_position_ids_stay_int64(tiny_dir, tmp_path):
    path = tiny_dir(position_ids=True)
    directory = read_model_directory(path)
    directory.save(changed(directory.load(), "text"), tmp_path / "out")
    key = "text_model.embeddings.position_ids"
    kept = tensors_in(tmp_path / "out")[key]
    assert kept.dtype == np.int64
    np.testing.assert_array_equal(kept, tensors_in(path)[key])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("tower, other", [("text", "vision"), ("vision", "text")])
def test_changing_one_tower_leaves_the_other_bit_for_bit(tiny_dir, tmp_path, tower, other, dtype):
    path = tiny_dir(dtype=dtype)
    directory = read_model_directory(path)
    directory.save(changed(directory.load(), tower), tmp_path / "out")
    before, after = tensors_in(path), tensors_in(tmp_path / "out")
    assert before.keys() == after.keys()
    own = {"text": ("text_model.", "text_projection."), "vision": ("vision_model.", "visual_")}
    for key, old in before.items():
        assert (after[key].dtype, after[key].shape) == (old.dtype, old.shape), key
        if key.startswith(own[tower]):
            wanted = (old.astype(np.float32) + np.float32(0.25)).astype(old.dtype)
            np.testing.assert_array_equal(after[key], wanted, err_msg=key)
        else:
            assert key.startswith(own[other]) or key == "logit_scale"
            assert after[key].tobytes() == old.tobytes(), key


def test_table_fills_every_parameter_from_distinct_tensors(tiny_dir):
    """Every tensor of a checkpoint lands in our model once: its values all come up."""
    directory = read_model_directory(tiny_dir())
    model = directory.load()
    ours = np.concatenate([np.ravel(v[...]) for _, v in nnx.to_flat_state(nnx.state(model))])
    theirs = np.concatenate([v.ravel() for v in tensors_in(directory.path).values()])
    np.testing.assert_array_equal(np.sort(ours), np.sort(theirs))
    assert len(np.unique(theirs)) > 0.99 * len(theirs)  # random: a value tells its tensor


def test_other_formats_of_the_weights_are_left_out_and_reported(tiny_dir, tmp_path):
    path = tiny_dir(num_shards=2)
    others = [
        "flax_model.msgpack",
        "nested/model.onnx",
        "other.safetensors",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "tf_model.h5",
    ]
    (path / "nested").mkdir()
    for name in others:
        (path / name).write_bytes(b"undefended")
    directory = read_model_directory(path)
    assert sorted(directory.save(directory.load(), tmp_path / "out")) == others
    assert files_in(tmp_path / "out").keys() == files_in(path).keys() - set(others)


def test_hidden_files_stay_behind(tiny_dir, tmp_path):
    path = tiny_dir()
    wanted = files_in(path)
    (path / ".git/objects").mkdir(parents=True)
    (path / ".git/objects/model.safetensors").write_bytes(b"undefended")
    (path / ".gitattributes").write_text("*.safetensors filter=lfs")
    directory = read_model_directory(path)
    assert directory.save(directory.load(), tmp_path / "out") == []
    assert files_in(tmp_path / "out") == wanted


@pytest.mark.torch
def test_saved_directory_gives_transformers_our_embeddings(tiny_dir, tmp_path):
    directory = read_model_directory(tiny_dir(num_shards=2))
    model = changed(changed(directory.load(), "text", 0.05), "vision", 0.05)
    directory.save(model, tmp_path / "out")
    theirs = transformers.CLIPModel.from_pretrained(tmp_path / "out").eval()
    rng = np.random.default_rng(0)
    assert directory.cfg.text
    size = directory.cfg.text.vocab_size
    tokens_BT = rng.integers(0, size - 1, (3, 24), np.int32)
    tokens_BT[:, -1] = size - 1
    image_BHWC = rng.standard_normal((3, 12, 12, 3), np.float32)
    with torch.no_grad():
        out = theirs(
            input_ids=torch.from_numpy(tokens_BT).long(),
            pixel_values=torch.from_numpy(image_BHWC.transpose(0, 3, 1, 2).copy()),
        )

    def unit(x_BE):
        return x_BE / jnp.linalg.norm(x_BE, axis=-1, keepdims=True)

    def largest_error(model):
        text_BE = unit(run(model.text, plain_text(tokens_BT, np.full(3, 23)))[:, 0])
        image_BE = unit(run(model.vision, image_BHWC))
        return [
            float(np.abs(text_BE - out.text_embeds.numpy()).max()),
            float(np.abs(image_BE - out.image_embeds.numpy()).max()),
        ]

    assert max(largest_error(model)) <= 1e-4
    assert min(largest_error(directory.load())) > 1e-3  # the weights before the change


# Saving all or nothing


def test_save_to_an_existing_path_raises_and_leaves_it(tiny_dir, tmp_path):
    directory = read_model_directory(tiny_dir())
    model = directory.load()
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=rf"`{re.escape(str(out))}` already exists"):
        directory.save(model, out)
    assert files_in(out) == {"mine.txt": b"mine"}
    with pytest.raises(ValueError, match="already exists"):
        directory.save(model, out / "mine.txt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "out"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("fails_at", [1, 2])
def test_save_that_fails_midway_leaves_nothing(tiny_dir, tmp_path, monkeypatch, fails_at, error):
    directory = read_model_directory(tiny_dir(num_shards=3))
    model = directory.load()
    calls = []

    def failing(tensors, path, metadata):
        calls.append(path)
        save_file(tensors, path, metadata)
        if len(calls) == fails_at:
            raise error

    monkeypatch.setattr(directory_module, "save_file", failing)
    with pytest.raises(type(error)):
        directory.save(model, tmp_path / "out")
    assert len(calls) == fails_at
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_save_into_the_source_directory_does_not_copy_itself(tiny_dir):
    path = tiny_dir()
    before = files_in(path)
    directory = read_model_directory(path)
    directory.save(directory.load(), path / "defended")
    assert files_in(path / "defended") == before


# What is wrong is named


def fails(path, *words, load=False):
    """Reading raises a ValueError that holds all these words."""
    with pytest.raises(ValueError) as info:
        directory = read_model_directory(path)
        if load:
            directory.load()
    for word in (str(path), *words):
        assert word in str(info.value)
    assert "\n" not in str(info.value)


def test_unmapped_tensor_is_named(tiny_dir):
    path = tiny_dir()
    edit_tensors(path, lambda t: t.update({"text_model.adapter.weight": np.zeros(3, np.float32)}))
    fails(path, "does not have", "`text_model.adapter.weight`")


def test_missing_tensor_is_named(tiny_dir):
    path = tiny_dir()
    edit_tensors(path, lambda t: t.pop(Q_PROJ))
    fails(path, "missing", f"`{Q_PROJ}`")


def test_many_missing_tensors_are_counted(tiny_dir):
    path = tiny_dir()
    edit_tensors(path, lambda t: [t.pop(k) for k in list(t) if k.startswith("vision_model.")])
    fails(path, "`vision_model.embeddings.class_embedding`", "and 51 more")


def test_tensor_in_two_shards_is_named(tiny_dir):
    path = tiny_dir(num_shards=2)
    first, second = sorted(path.glob("*.safetensors"))
    tensors = load_file(second)
    key, value = next(iter(load_file(first).items()))
    save_file(tensors | {key: value}, second)
    fails(path, "repeated", f"`{key}`", second.name)


def test_wrong_shape_is_named_with_both_shapes(tiny_dir):
    path = tiny_dir()
    edit_tensors(path, lambda t: t.update({Q_PROJ: np.zeros((12, 9), np.float32)}))
    fails(path, f"`{Q_PROJ}`", "(12, 9)", "(12, 12)")


@pytest.mark.parametrize("num_shards", [1, 2])
@pytest.mark.parametrize("keep", [0, 5, -100])
def test_truncated_weights_are_named(tiny_dir, keep, num_shards):
    path = tiny_dir(num_shards=num_shards)
    file = sorted(path.glob("*.safetensors"))[-1]
    file.write_bytes(file.read_bytes()[:keep])
    fails(path, file.name, "not a whole safetensors file")


@pytest.mark.parametrize("dtype, name", [("float64", "F64"), ("int8", "I8"), ("int32", "I32")])
def test_weights_of_another_dtype_are_named(tiny_dir, dtype, name):
    path = tiny_dir()
    edit_tensors(path, lambda t: t.update({Q_PROJ: t[Q_PROJ].astype(dtype)}))
    fails(path, f"`{Q_PROJ}` is {name}", "must be one of F32, F16, BF16")


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod."])
def test_prefix_of_a_wrapper_is_named(tiny_dir, prefix):
    path = tiny_dir()
    tensors = load_file(path / "model.safetensors")
    save_file({prefix + k: v for k, v in tensors.items()}, path / "model.safetensors")
    fails(path, f"{len(tensors)} tensors begin with `{prefix}`", "save it unwrapped")
    # On some of them alone it is no wrapper's, but named all the same.
    mixed = {(prefix if "vision" in k else "") + k: v for k, v in tensors.items()}
    save_file(mixed, path / "model.safetensors")
    fails(path, f"tensors begin with `{prefix}`", "`vision_model.")


@pytest.mark.parametrize(
    "magic", [b"PK\x03\x04" + bytes(40), b"\x80\x02}q\x00(X\x05\x00\x00weight"]
)
@pytest.mark.parametrize("num_shards", [1, 2])
def test_pickle_in_the_place_of_safetensors_is_named(tiny_dir, magic, num_shards):
    path = tiny_dir(num_shards=num_shards)
    file = sorted(path.glob("*.safetensors"))[-1]
    file.write_bytes(magic)
    fails(path, file.name, "is a pickle, which is never loaded")


@pytest.mark.parametrize("num_shards", [1, 2])
def test_link_out_of_the_directory_is_named(tiny_dir, tmp_path, num_shards):
    path = tiny_dir(num_shards=num_shards)
    file = sorted(path.glob("*.safetensors"))[-1]
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    fails(path, file.name, "is a link out of the directory", "elsewhere")


def test_link_within_the_directory_or_into_the_hubs_blobs_is_followed(tiny_dir, tmp_path):
    path = tiny_dir()
    (path / "model.safetensors").rename(path / "weights.safetensors")
    (path / "model.safetensors").symlink_to("weights.safetensors")
    read_model_directory(path)
    snapshot = tmp_path / "models--a--clip" / "snapshots" / "0123"
    (tmp_path / "models--a--clip" / "blobs").mkdir(parents=True)
    shutil.copytree(path, snapshot, symlinks=True)
    (snapshot / "model.safetensors").unlink()
    (snapshot / "weights.safetensors").rename(tmp_path / "models--a--clip" / "blobs" / "abc")
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    directory = read_model_directory(snapshot)
    assert directory.save(directory.load(), tmp_path / "out") == []
    assert not (tmp_path / "out" / "model.safetensors").is_symlink()


def test_missing_shard_is_named(tiny_dir):
    path = tiny_dir(num_shards=3)
    (path / "model-00002-of-00003.safetensors").unlink()
    fails(path, "lacks `model-00002-of-00003.safetensors`")


@pytest.mark.parametrize("index", [b"{", b"[]", b"{}"])
def test_broken_index_is_named(tiny_dir, index):
    path = tiny_dir(num_shards=2)
    (path / "model.safetensors.index.json").write_bytes(index)
    fails(path, "model.safetensors.index.json")


def test_directory_without_weights_says_what_it_should_hold(tiny_dir):
    path = tiny_dir()
    (path / "model.safetensors").rename(path / "weights.bin")
    fails(path, "neither model.safetensors nor", "`weights.bin` is a pickle")


def test_missing_directory_and_missing_config_are_named(tiny_dir, tmp_path):
    fails(tmp_path / "nowhere", "config.json", "does not exist")
    path = tiny_dir()
    (path / "config.json").unlink()
    fails(path, "config.json", "does not exist")


@pytest.mark.parametrize("content", [b"", b'{"model_type": "clip"', b"\xff\xfe", b'["clip"]', b"3"])
def test_config_that_is_no_json_object_is_named(tiny_dir, content):
    path = tiny_dir()
    (path / "config.json").write_bytes(content)
    fails(path, "config.json", "JSON")


@pytest.mark.parametrize(
    "change, word",
    [
        ({"architectures": ["BertModel"], "model_type": "bert"}, "'BertModel'"),
        ({"architectures": None, "model_type": "bert"}, "'bert'"),
        ({"model_type": "siglip"}, "'siglip'"),
    ],
)
def test_config_of_another_family_is_named(tiny_dir, change, word):
    path = tiny_dir()
    edit_json(path / "config.json", **change)
    fails(path, "config.json", word, "not a CLIP model")


@pytest.mark.parametrize(
    "tower, change, word",
    [
        ("text", {"num_attention_heads": 5}, "`num_attention_heads` (=5)"),
        ("text", {"hidden_act": "relu"}, "`hidden_act` (='relu')"),
        ("vision", {"patch_size": 13}, "`patch_size` (=13)"),
    ],
)
def test_config_field_out_of_range_is_named(tiny_dir, tower, change, word):
    path = tiny_dir()
    raw = json.loads((path / "config.json").read_text())
    edit_json(path / "config.json", **{f"{tower}_config": raw[f"{tower}_config"] | change})
    fails(path, "config.json", word)


def test_config_that_disagrees_with_the_weights_is_told_by_shape(tiny_dir):
    path = tiny_dir()
    raw = json.loads((path / "config.json").read_text())
    edit_json(path / "config.json", vision_config=raw["vision_config"] | {"patch_size": 3})
    fails(path, "`vision_model.embeddings.patch_embedding.weight`", "(8, 3, 4, 4)", "(8, 3, 3, 3)")


# config.json itself


def test_config_fills_absent_fields_with_those_of_vit_b_32():
    cfg = config_from_hf({"architectures": ["CLIPModel"]})
    assert cfg.text and isinstance(cfg.vision, VisionConfig)
    text, vision = cfg.text, cfg.vision
    assert (text.width, text.mlp_width, text.depth, text.num_heads) == (512, 2048, 12, 8)
    assert (text.vocab_size, text.context_length, text.embed) == (49408, 77, 512)
    assert (vision.width, vision.mlp_width, vision.depth, vision.num_heads) == (768, 3072, 12, 12)
    assert (vision.image_size, vision.patch_size, vision.embed) == (224, 32, 512)
    # Of the published model: 151,277,313 parameters.
    assert sum(int(np.prod(row.shape)) for row in hf_table(cfg)) == 151_277_313


@pytest.mark.parametrize(
    "architecture, text, vision",
    [
        ("CLIPModel", 10, 10),
        ("CLIPTextModel", 0, None),
        ("CLIPTextModelWithProjection", 10, None),
        ("CLIPVisionModel", None, 0),
        ("CLIPVisionModelWithProjection", None, 10),
    ],
)
def test_config_gives_each_architecture_its_towers_and_projections(architecture, text, vision):
    cfg = config_from_hf(hf_config(architecture, vocab_size=50))
    assert (cfg.text and cfg.text.embed, cfg.vision and cfg.vision.embed) == (text, vision)


@pytest.mark.parametrize("eos, words", [(3, "every text is read out at its first"), (2, "pads")])
def test_tokenizer_whose_texts_are_not_read_out_at_their_end_is_refused(tiny_dir, eos, words):
    path = tiny_dir(eos_token_id=eos, vocab_size=700)
    if eos == 2:
        file = path / "tokenizer_config.json"
        edit_json(file, pad_token="<pad>")  # added: above the end of text
    with pytest.raises(InputError, match=words):
        read_model_directory(path).tokenizer()


def test_config_keeps_what_only_the_source_knows():
    raw = hf_config(vocab_size=50, activation="gelu", eos_token_id=2)
    cfg = config_from_hf(raw)
    assert cfg.text and isinstance(cfg.vision, VisionConfig)
    assert (cfg.text.readout, cfg.text.eos_token_id) == ("largest", None)
    changed = cfg.with_compute("bfloat16")
    assert cfg.text.activation == cfg.vision.activation == "gelu"
    assert all(t and t.dtype == "bfloat16" for t in (changed.text, changed.vision))


@pytest.mark.parametrize(
    "section,field,value",
    [
        ("text_config", "hidden_size", "12"),
        ("text_config", "num_attention_heads", 0),
        ("vision_config", "image_size", [12, 12]),
        ("vision_config", "num_hidden_layers", -1),
    ],
)
def test_config_refuses_sizes_that_are_none(section, field, value):
    raw = hf_config(vocab_size=50)
    raw[section][field] = value
    with pytest.raises(ValueError, match="must be a whole number above 0"):
        config_from_hf(raw)


def test_index_may_not_point_out_of_its_directory(tiny_dir):
    path = tiny_dir(num_shards=2)
    index = path / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00002", "../model-00002"))
    with pytest.raises(ValueError, match="beside its index"):
        read_model_directory(path)


def test_saved_weights_keep_the_mode_of_their_file(tiny_dir, tmp_path):
    path = tiny_dir()
    (path / "model.safetensors").chmod(0o644)
    directory = read_model_directory(path)
    directory.save(directory.load(), tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode & 0o777 == 0o644
