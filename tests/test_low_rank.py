"""Students of low rank: against a loop over tensors, and as an adapter in transformers."""

import json
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factories import CAPTIONS, write_faces, write_model_directory, write_photos
from flax import nnx
from safetensors.numpy import load_file
from test_cli import assert_refused
from test_earlier import IMAGE, TEXT, sets

from jaxdefense.cli import main
from jaxdefense.clip.layers import STACKED_DIMS
from jaxdefense.convert.directory import read_model_directory
from jaxdefense.convert.table import host_params, source_tensor
from jaxdefense.defense.losses import weight_distance
from jaxdefense.defense.low_rank import ADAPTER, init_factors, with_products, write_adapter
from jaxdefense.defense.plan import has_adapter
from jaxdefense.defense.step import split_tower

RANK = 3


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model_directory(tmp_path / "model")
    write_photos(tmp_path / "images", 9)
    write_faces(tmp_path / "faces", ["Joe Cool", "Ada King"], 4)
    (tmp_path / "names.txt").write_text("Joe Cool\nAda King\n")
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS) + "\n")
    return tmp_path


def drawn(factors):
    """Factors that are not 0."""
    leaves, tree = jax.tree.flatten(factors)
    rng = np.random.default_rng(0)
    return tree.unflatten([jnp.asarray(rng.standard_normal(x.shape), jnp.float32) for x in leaves])


@pytest.mark.parametrize("which", ["text", "vision"])
def test_products_are_those_of_the_adapter_tensor_by_tensor(inputs, which):
    directory = read_model_directory("model")
    model = directory.load("float32")
    graphdef, teacher = split_tower(getattr(model, which))
    factors = init_factors(teacher.trained, RANK, seed=1)
    before = host_params(model)
    write_adapter(inputs / "out", part := drawn(factors), 0.5, directory.rows, which, RANK)
    half = jax.tree_util.tree_map_with_path(
        lambda path, x: x / 2 if "b" in jax.tree_util.keystr(path[-2:]) else x, part
    )
    trained = with_products(half, teacher.trained)
    setattr(model, which, nnx.merge(graphdef, trained, teacher.frozen))
    after, adapter = host_params(model), load_file(inputs / "out" / "adapter_model.safetensors")
    moved = 0
    for row in directory.rows:
        old, new = (source_tensor(x, row, np.float32) for x in (before, after))
        name = f"base_model.model.{row.key.removesuffix('.weight')}.lora_"
        if f"{name}A.weight" in adapter:
            a, b = (adapter[f"{name}{x}.weight"].astype(np.float64) for x in "AB")
            assert a.shape == (RANK, old.shape[1]) and b.shape == (old.shape[0], RANK)
            np.testing.assert_allclose(new, old + b @ a, rtol=0, atol=1e-5, err_msg=row.key)
            moved += 1
        else:
            np.testing.assert_array_equal(new, old, err_msg=row.key)
    depth = {"text": 2, "vision": 3}[which]
    assert moved == depth * 6 + 1 and len(adapter) == 2 * moved


def test_a_student_begins_as_its_teacher_and_draws_by_its_seed(inputs):
    _, teacher = split_tower(cast(Any, read_model_directory("model").load("float32").text))
    one, same, other = (init_factors(teacher.trained, RANK, seed) for seed in (1, 1, 2))
    begun = with_products(one, teacher.trained)
    assert float(weight_distance(begun, teacher.trained, STACKED_DIMS)) == 0
    first, again, another = (
        [np.asarray(x) for x in jax.tree.leaves(y)] for y in (one, same, other)
    )
    assert all(map(np.array_equal, first, again)) and not all(map(np.array_equal, first, another))
    draws = np.concatenate([x.ravel() for x in first if x.any()])
    assert draws.var() == pytest.approx(1 / RANK, rel=0.2)


def text(*flags, settings=()):
    given = ["--names", "names.txt", "--captions", "captions.txt"]
    return main(["defend", "text", *given, *flags, *sets([*TEXT, *settings])])


def test_a_run_of_low_rank_moves_that_alone_and_resumes(inputs, capsys):
    low = [f"train.lora_rank={RANK}", "train.save_every=1"]
    assert text("--model", "model", "--out", "run", settings=low) == 0
    assert "adapter for PEFT: run/adapter" in capsys.readouterr().err
    before, after = (load_file(Path(x) / "model.safetensors") for x in ("model", "run/model"))
    for name, old in before.items():
        change = (after[name] - old).astype(np.float64)
        matrix = old.ndim == 2 and "embedding" not in name and name.startswith("text")
        assert (np.abs(change).max() > 1e-4) == matrix, name
        if matrix:
            assert np.linalg.svd(change, compute_uv=False)[RANK:].max(initial=0) < 1e-5, name
    (inputs / "run/summary.json").unlink()
    for done in (inputs / "run/checkpoints").iterdir():
        if done.name == "3":
            for file in sorted(done.rglob("*"), reverse=True):
                file.rmdir() if file.is_dir() else file.unlink()
            done.rmdir()
    assert text("--model", "model", "--out", "run", settings=low) == 0
    assert "resuming at step 2" in capsys.readouterr().err
    for name, value in load_file(inputs / "run/model/model.safetensors").items():
        np.testing.assert_array_equal(value, after[name], err_msg=name)


def test_the_smallest_step_is_the_adapters_too(inputs):
    """What validation goes back towards the teacher, the adapter goes back too."""
    settings = ["train.validate.every=1", "train.validate.right=1.0", "train.validate.above=1.0",
                "train.validate.person_right=1.0", f"train.lora_rank={RANK}"]  # fmt: skip
    assert text("--model", "model", "--out", "run", settings=settings) == 0
    assert json.loads(Path("run/summary.json").read_text())["alpha"] < 1
    before, after = (load_file(Path(x) / "model.safetensors") for x in ("model", "run/model"))
    adapter = load_file(Path("run") / ADAPTER / "adapter_model.safetensors")
    name = "text_model.encoder.layers.1.mlp.fc1"
    a, b = (adapter[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
    change = after[f"{name}.weight"] - before[f"{name}.weight"]
    assert np.abs(change).max() > 1e-4
    np.testing.assert_allclose(b @ a, change, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "make, flags, words",
    [
        ({"architecture": "SiglipModel"}, [], ["train.lora_rank", "another model", "set it to 0"]),
        ({}, ["--after", "run"], ["train.lora_rank", "earlier.start", "fresh"]),
    ],
)
def test_what_has_no_low_rank_is_refused(inputs, capsys, make, flags, words):
    write_model_directory(inputs / "made", **make)
    if flags:
        assert text("--model", "made", "--out", "run") == 0
    code = text("--model", "made", *flags, "--out", "next", settings=["train.lora_rank=2"])
    assert_refused(capsys, code, *words)


@pytest.mark.parametrize(
    "architecture, named",
    [
        ("CLIPModel", True),
        ("CLIPTextModelWithProjection", True),
        ("CLIPVisionModelWithProjection", True),
        ("CLIPTextModel", False),  # transformers names its modules otherwise than its tensors
    ],
)
def test_adapters_are_written_where_peft_finds_the_names(tmp_path, architecture, named):
    path = write_model_directory(tmp_path / "model", architecture=architecture)
    assert has_adapter(read_model_directory(path)) == named


@pytest.mark.torch("peft")
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_loads_in_transformers_with_peft(inputs):
    import peft
    import torch
    import transformers

    low = [f"train.lora_rank={RANK}"]
    assert text("--model", "model", "--out", "text", settings=low) == 0
    flags = ["--model", "model", "--names", "names.txt", "--faces", "faces", "--images", "images"]
    settings = sets([*IMAGE, "optimizer.lr=0.01", *low])
    assert main(["defend", "image", *flags, "--out", "image", *settings]) == 0
    rng = np.random.default_rng(0)
    tokens = torch.tensor(rng.integers(0, 50, (3, 9)))
    pixels = torch.tensor(rng.standard_normal((3, 3, 12, 12)), dtype=torch.float32)

    def embedded(model, half):
        with torch.no_grad():
            if half == "text":
                return model.get_text_features(input_ids=tokens).pooler_output.numpy()
            return model.get_image_features(pixel_values=pixels).pooler_output.numpy()

    for half in ("text", "image"):
        original = transformers.CLIPModel.from_pretrained("model")
        before = embedded(original, half)
        adapted = peft.PeftModel.from_pretrained(original, Path(half) / ADAPTER)
        ours = embedded(transformers.CLIPModel.from_pretrained(Path(half) / "model"), half)
        np.testing.assert_allclose(embedded(adapted, half), ours, rtol=0, atol=1e-5)
        assert np.abs(before - ours).max() > 1e-3
