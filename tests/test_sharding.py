"""The mesh, the rules from logical dims to its axes, and what they raise."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

import jaxdefense
from jaxdefense.clip.config import (
    CLIPConfig,
    ResNetConfig,
    TextConfig,
    TowerConfig,
    VisionConfig,
)
from jaxdefense.clip.layers import Attention
from jaxdefense.clip.model import CLIP
from jaxdefense.convert.huggingface import config_from_hf
from jaxdefense.data import packing
from jaxdefense.sharding import (
    AXES,
    DATA,
    FSDP,
    TENSOR,
    ShardingRules,
    batch_sharding,
    make_mesh,
    num_batch_parts,
    replicated,
    sharding_tree,
)

PACKAGE = Path(jaxdefense.__file__).parent
DEFAULT = dict(ShardingRules().rules)
eight_devices = pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 devices")


def abstract_clip(cfg):
    return nnx.split(nnx.eval_shape(lambda: CLIP(cfg, nnx.Rngs(0))))


def vit_b_32():
    return config_from_hf({"architectures": ["CLIPModel"]})


def siglip():
    return config_from_hf({"model_type": "siglip"})


def small():
    """Sizes all differ, and a mesh of 2 x 2 x 2 divides those that it cuts."""
    tower: dict[str, Any] = dict(width=12, num_heads=6)
    return CLIPConfig(
        TextConfig(**tower, mlp_width=20, depth=2, vocab_size=50, context_length=24, embed=10),
        VisionConfig(**tower, mlp_width=14, depth=3, image_size=12, patch_size=4, embed=10),
    )


def small_siglip():
    cfg = small()
    assert cfg.text and cfg.vision
    return CLIPConfig(
        dataclasses.replace(cfg.text, causal=False, projection_bias=True),
        dataclasses.replace(cfg.vision, pool="attention", embed=12),
        logit_bias=True,
    )


def test_no_other_file_writes_a_partition_spec():
    users = {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        if re.search(r"\bPartitionSpec\b|\bimport P\b|\bas P\b", file.read_text(encoding="utf-8"))
    }
    assert users == {"sharding.py"}


# Rules


def test_spec_lays_dims_on_their_axes():
    rules = ShardingRules()
    assert rules.spec("batch") == PartitionSpec((DATA, FSDP))
    assert rules.spec("layers", "embed", "mlp") == PartitionSpec(None, FSDP, TENSOR)
    assert rules.spec("vocab", "embed") == PartitionSpec(TENSOR, FSDP)
    assert rules.spec() == PartitionSpec()


def test_dim_without_a_rule_raises():
    with pytest.raises(ValueError, match="logical dim `colours` has no sharding rule"):
        ShardingRules().spec("embed", "colours")
    with pytest.raises(ValueError, match="logical dim `mlp` has no sharding rule"):
        ShardingRules({"embed": FSDP}).spec("embed", "mlp")


def test_rule_for_a_dim_that_no_array_has_raises():
    with pytest.raises(ValueError, match=r"dims that no array has: \['colours'\]"):
        ShardingRules({**DEFAULT, "colours": TENSOR})


@pytest.mark.parametrize(
    "change, dims, axis",
    [
        ({"mlp": FSDP}, ("embed", "mlp"), FSDP),
        ({}, ("heads", "mlp"), TENSOR),
        ({"layers": (DATA, FSDP)}, ("layers", "embed"), FSDP),
    ],
)
def test_two_dims_on_one_axis_raise(change, dims, axis):
    with pytest.raises(ValueError, match=f"mesh axis '{axis}' on two of them"):
        ShardingRules({**DEFAULT, **change}).spec(*dims)


def test_every_parameter_has_dims_and_a_rule_and_every_rule_is_used():
    used, rules = {"batch", "photos", "candidates", "templates", "rank"}, ShardingRules()
    resnet = CLIPConfig(None, ResNetConfig(64, (3, 4, 6, 3), 32))
    for cfg in (vit_b_32(), small(), siglip(), resnet):
        for path, variable in nnx.to_flat_state(abstract_clip(cfg)[1]):
            dims = variable.get_metadata()["dims"]
            assert len(dims) == len(variable.shape), path
            rules.spec(*dims)
            used |= set(dims)
    assert used == set(DEFAULT)


# The mesh


@eight_devices
@pytest.mark.parametrize(
    "sizes, shape",
    [
        ({}, (8, 1, 1)),
        ({"fsdp": 2}, (4, 2, 1)),
        ({"data": 1, "fsdp": -1, "tensor": 2}, (1, 4, 2)),
        ({"data": 2, "fsdp": 2, "tensor": -1}, (2, 2, 2)),
        ({"data": 4, "fsdp": 1, "tensor": 2}, (4, 1, 2)),
    ],
)
def test_mesh_takes_all_devices(sizes, shape):
    mesh = make_mesh(**sizes)
    assert mesh.axis_names == (DATA, FSDP, TENSOR)
    assert mesh.devices.shape == shape
    assert len(set(mesh.devices.flat)) == 8


@eight_devices
@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"data": -1, "fsdp": 3}, "data=-1 fsdp=3 tensor=1 does not fit 8 devices; 3 must divide"),
        ({"data": 2, "fsdp": 2}, "data=2 fsdp=2 tensor=1 takes 4 devices, there are 8"),
        ({"data": 16}, "takes 16 devices, there are 8"),
        ({"data": -1, "fsdp": -1}, "at most one of them -1"),
        ({"data": 0}, "must be positive"),
        ({"data": 8, "tensor": -2}, "must be positive"),
    ],
)
def test_mesh_of_impossible_sizes_raises(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(**sizes)


@eight_devices
def test_batch_is_cut_into_as_many_parts_as_its_axes_have():
    rules, mesh = ShardingRules(), make_mesh(data=2, fsdp=2, tensor=2)
    assert num_batch_parts(mesh, rules) == 4
    assert num_batch_parts(mesh, ShardingRules({**DEFAULT, "batch": DATA})) == 2
    assert num_batch_parts(mesh, ShardingRules({**DEFAULT, "batch": None})) == 1
    x = jax.device_put(np.zeros((12, 5)), batch_sharding(mesh, rules))
    assert {shard.data.shape for shard in x.addressable_shards} == {(3, 5)}
    x = jax.device_put(np.zeros((12, 5)), replicated(mesh))
    assert {shard.data.shape for shard in x.addressable_shards} == {(12, 5)}


# Trees


@eight_devices
def test_sharding_tree_follows_the_declared_dims():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    _, state = abstract_clip(vit_b_32())
    specs = {
        "/".join(map(str, path)): sharding.spec
        for path, sharding in nnx.to_flat_state(sharding_tree(state, mesh, ShardingRules()))
    }
    layers = "text/encoder/layers"
    wanted = {
        "text/token_embedding": (TENSOR, FSDP),
        "text/projection": (FSDP, None),
        f"{layers}/self_attn/qkv_kernel": (None, FSDP, None, TENSOR, None),
        f"{layers}/self_attn/out_kernel": (None, TENSOR, None, FSDP),
        f"{layers}/mlp/fc1_kernel": (None, FSDP, TENSOR),
        f"{layers}/mlp/fc2_kernel": (None, TENSOR, FSDP),
        f"{layers}/layer_norm1/scale": (None, None),
        "vision/patch_embedding": (None, None, None, FSDP),
        "logit_scale": (),
    }
    assert {name: tuple(specs[name]) for name in wanted} == wanted
    assert len(specs) == len(nnx.to_flat_state(state))


@eight_devices
def test_optimizer_state_lies_where_its_parameters_do():
    mesh, rules = make_mesh(data=2, fsdp=2, tensor=2), ShardingRules()
    _, params = abstract_clip(small())
    state = jax.eval_shape(optax.adamw(1e-3).init, params)
    tree = sharding_tree(state, mesh, rules)
    wanted = jax.tree.leaves(sharding_tree(params, mesh, rules))
    assert jax.tree.leaves(tree[0].mu) == jax.tree.leaves(tree[0].nu) == wanted
    assert tree[0].count == replicated(mesh)
    assert any(sharding != replicated(mesh) for sharding in wanted)


@eight_devices
@pytest.mark.parametrize(
    "sizes, message",
    [
        (
            {"tensor": 4},
            r"dim `heads` \(=6\) must be divisible by mesh axis `tensor` \(=4\); make it 3 or 2",
        ),
        (
            {"fsdp": 8},
            r"dim `embed` \(=12\) must be divisible by mesh axis `fsdp` \(=8\); make it 6 or 4",
        ),
    ],
)
def test_size_that_its_axis_does_not_divide_raises(sizes, message):
    _, state = abstract_clip(small())
    with pytest.raises(ValueError, match=message):
        sharding_tree(state, make_mesh(**sizes), ShardingRules())


@eight_devices
@pytest.mark.parametrize("sizes", [{}, {"fsdp": 2, "tensor": 2}])
@pytest.mark.parametrize("make", [small, small_siglip])
def test_sharded_towers_equal_those_on_one_device(make, sizes):
    mesh, rules, cfg = make_mesh(**sizes), ShardingRules(), make()
    graphdef, state = abstract_clip(cfg)
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32) / 3, state)
    captions = [rng.integers(0, 50, size).astype(np.int32) for size in rng.integers(2, 24, 24)]
    text, _ = packing.pack_text(captions, cfg.text, 24, num_rows=24, num_slots=3)
    image_BHWC = rng.standard_normal((8, 12, 12, 3), np.float32)

    @jax.jit
    def embed(state, text, image_BHWC):
        model: Any = nnx.merge(graphdef, state)
        return model.text(text), model.vision(image_BHWC)

    inputs = jax.tree.map(jnp.asarray, (text, image_BHWC))
    wanted = embed(jax.tree.map(jnp.asarray, state), *inputs)
    shardings = sharding_tree(state, mesh, rules)
    # A sharding stands for a variable; the value below it takes it.
    placed = jax.tree.map(
        lambda sharding, part: jax.device_put(part, sharding),
        shardings,
        state,
        is_leaf=lambda x: isinstance(x, jax.sharding.Sharding),
    )
    found = embed(placed, *jax.device_put(inputs, batch_sharding(mesh, rules)))
    for ours, right in zip(found, wanted, strict=True):
        assert len(ours.sharding.device_set) == 8
        np.testing.assert_allclose(ours, right, rtol=0, atol=1e-5)


def test_tensor_axis_cuts_the_attention_without_gathering_it():
    mesh = Mesh(np.array(jax.devices()[:2]).reshape(1, 1, 2), AXES)
    cfg = TowerConfig(width=12, mlp_width=20, depth=1, num_heads=2)
    graphdef, params = nnx.split(Attention(cfg, nnx.Rngs(0)))
    place = sharding_tree(params, mesh, ShardingRules())
    run = jax.jit(
        lambda params, x: nnx.merge(graphdef, params)(x, None),
        in_shardings=(place, replicated(mesh)),
        out_shardings=replicated(mesh),
    )
    hlo = str(run.lower(params, jnp.ones((4, 5, 12))).compile().as_text())
    assert "all-reduce" in hlo  # of the output projection's parts
    assert "all-gather" not in hlo
