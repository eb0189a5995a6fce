"""The weight distance is a loop over torch's parameters, in either layout of a checkpoint."""

import warnings
from functools import partial

import jax
import numpy as np
import pytest
from factories import write_model_directory
from flax import nnx
from reference import hf, open_clip, torch
from safetensors.numpy import load_file
from test_openclip import model_config, write_openclip

from jaxdefense.config import DefendTextConfig, ModelConfig, TextDataConfig
from jaxdefense.convert.directory import read_model_directory
from jaxdefense.defense.losses import weight_distance
from jaxdefense.defense.plan import lay_out
from jaxdefense.defense.step import Objective, init_state, train_step
from jaxdefense.sharding import ShardingRules, make_mesh

WRITE = {"hf": write_model_directory, "openclip": write_openclip}


@pytest.fixture(params=WRITE)
def two(request, tmp_path):
    """Two models of one kind and layout, and the tensors of each."""
    paths = [WRITE[request.param](tmp_path / f"model{seed}", seed=seed) for seed in (0, 1)]
    directories = [read_model_directory(path) for path in paths]
    return directories, [load_file(d.path / d.layout.weights) for d in directories]


def ours(directories):
    first, second = (nnx.state(directory.load()) for directory in directories)
    return float(weight_distance(first, second, directories[0].layout.stacked_dims))


def test_it_is_a_sum_over_the_tensors_of_the_files(two):
    directories, (first, second) = two
    norms = {key: np.linalg.norm(np.float64(first[key]) - second[key]) for key in first}
    np.testing.assert_allclose(ours(directories), sum(norms.values()), rtol=1e-5)
    # The other layout's way comes to another number.
    other = ("layers",) if "qkv" in directories[0].layout.stacked_dims else ("layers", "qkv")
    one, two_ = (nnx.state(directory.load()) for directory in directories)
    assert abs(float(weight_distance(one, two_, other)) / sum(norms.values()) - 1) > 0.02


@pytest.mark.torch("open_clip")
def test_it_is_the_loop_over_torchs_parameters(two):
    directories, tensors = two
    if directories[0].layout.name == "hf":
        models = [hf.CLIPModel.from_pretrained(directory.path) for directory in directories]
    else:
        models = []
        for values in tensors:
            raw = model_config(len(values["token_embedding.weight"]))
            with warnings.catch_warnings(action="ignore"):
                models.append(open_clip.CLIP(**raw))
            models[-1].load_state_dict({k: torch.from_numpy(v) for k, v in values.items()}, False)
    pairs = zip(*(model.named_parameters() for model in models), strict=True)
    theirs = sum(torch.norm(a.detach() - b.detach(), p=2) for (_, a), (_, b) in pairs)
    np.testing.assert_allclose(ours(directories), float(theirs), rtol=1e-5)


def test_a_defense_goes_by_the_layout_of_its_model(tmp_path):
    path = write_openclip(tmp_path / "model")
    directory = read_model_directory(path)
    cfg = DefendTextConfig("run", ModelConfig(str(path)), TextDataConfig("names", "captions"))
    objective = Objective(lambda *_: {}, {"weight": 1.0})
    encoder = lay_out(cfg, directory, "text", objective, make_mesh(), ShardingRules())
    assert encoder.step_cfg.stacked_dims == directory.layout.stacked_dims
    state = jax.jit(partial(init_state, cfg=encoder.step_cfg))(encoder.teacher)
    moved = jax.tree.map(lambda x: np.asarray(x) + np.float32(0.25), state.params)
    step = jax.jit(partial(train_step, cfg=encoder.step_cfg))
    _, metrics = step(state._replace(params=moved), encoder.teacher, {}, jax.random.key(0))
    tensors = load_file(path / directory.layout.weights)
    trained = {path[1:] for path, _ in nnx.to_flat_state(nnx.State({"text": moved}))}
    sizes = [
        tensors[row.key].size
        for row in directory.rows
        if row.path[0] == "text" and row.path[1:] in trained
    ]
    np.testing.assert_allclose(metrics["weight"], 0.25 * np.sqrt(sizes).sum(), rtol=1e-5)
