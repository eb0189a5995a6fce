"""The residual image tower against open_clip's torch one, its table, its training and its layout.

Every comparison has a control: the same comparison with one detail broken must fail.
Tolerances, maximum absolute error: 1e-5 on leaves, 1e-4 on towers.
"""

import collections
import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factories import random_tensor, run
from flax import nnx
from make_golden import (
    GOLDEN_RESNET,
    RESNET,
    make_resnet,
    resnet_image,
    resnet_levels,
    resnet_tensors,
    run_resnet,
    torch_resnet,
)
from reference import open_clip, torch
from test_step import run_steps

from jaxdefense.clip import resnet
from jaxdefense.clip.config import CLIPConfig, ResNetConfig, VisionConfig
from jaxdefense.clip.model import CLIP
from jaxdefense.clip.resnet import AttentionPool, BatchNorm, Bottleneck, ResNetTower, Stage
from jaxdefense.clip.vision import VisionTower
from jaxdefense.convert.resnet import resnet_rows
from jaxdefense.convert.table import host_params, ignored_key, source_tensor
from jaxdefense.defense.losses import mean_squared, weight_distance
from jaxdefense.defense.step import (
    Objective,
    StepConfig,
    make_optimizer,
    merge_student,
    split_tower,
)
from jaxdefense.sharding import FSDP, ShardingRules, batch_sharding, make_mesh, sharding_tree

LEAF, WHOLE = 1e-5, 1e-4
PRESETS = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64")
# 10 tokens, and a stage of one block alone.
SMALL = ResNetConfig(width=12, depths=(2, 1, 4, 3), num_heads=8, image_size=96, embed=14)
# For training: what a mesh of 2 x 2 x 2 divides.
TINY = ResNetConfig(width=4, depths=(2, 1, 3, 1), num_heads=2, image_size=64, embed=10)

eight_devices = pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 devices")


def images(cfg, num=3, seed=1):
    return resnet_image(resnet_levels(cfg, num, seed))


def random_tensors(cfg, prefix="", seed=0):
    rng = np.random.default_rng(seed)
    return {row.key: np.asarray(random_tensor(row, rng)) for row in resnet_rows(cfg, prefix)}


def our_clip(cfg, tensors) -> Any:
    """A model of these tensors, placed by the table."""
    abstract = nnx.eval_shape(lambda: CLIP(CLIPConfig(None, cfg), nnx.Rngs(0)))
    graphdef, state = nnx.split(abstract)
    flat = dict(nnx.to_flat_state(state))
    arrays = {path: np.full(v.shape, np.nan, np.float32) for path, v in flat.items()}
    for row in resnet_rows(cfg, ""):
        assert tensors[row.key].shape == row.shape
        # Once: nothing else was there.
        assert np.isnan(arrays[row.path][row.index]).all(), row.key
        arrays[row.path][row.index] = row.load(tensors[row.key])
    assert not any(np.isnan(array).any() for array in arrays.values())
    state = nnx.from_flat_state([(path, v.replace(arrays[path])) for path, v in flat.items()])
    return nnx.merge(graphdef, state)


def our_tower(cfg, tensors=None) -> Any:
    return our_clip(cfg, random_tensors(cfg) if tensors is None else tensors).vision


def error(ours, theirs):
    theirs = theirs if isinstance(theirs, np.ndarray) else theirs.detach().numpy()
    assert ours.shape == theirs.shape
    return float(np.abs(np.asarray(ours) - theirs).max())


def skipped_pixels(x_BHWC, stride):
    """A stride as other residual networks have it."""
    return x_BHWC[:, ::stride, ::stride]


def without_mean_token(parts, axis):
    """The first pixel in the place of the mean."""
    mean, pixels = parts
    assert mean.shape[axis] == 1
    return jax.lax.concatenate([pixels[:, :1], pixels], axis)


# Leaves, each filled by hand rather than by the conversion table.


def randomise(module, seed=0):
    """Draw every parameter and statistic anew, so large that a wrong detail shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in (*module.named_parameters(), *module.named_buffers()):
            if name.endswith("num_batches_tracked"):
                continue
            noise = torch.randn(p.shape, generator=generator)
            if name.endswith("running_var"):
                p.copy_(torch.exp(noise / 2))
            elif p.ndim == 1:
                p.copy_(noise * 0.3 + (1 if name.endswith("weight") else 0))
            else:
                p.copy_(noise / np.sqrt(np.prod(p.shape[1:])))
    return module.eval()


def fill(module, **arrays):
    for name, value in arrays.items():
        variable = getattr(module, name)
        assert variable.shape == value.shape, name
        variable[...] = jnp.asarray(value.detach().numpy())
    return module


def fill_norm(module, source):
    fill(module, scale=source.weight, bias=source.bias)
    return fill(module, mean=source.running_mean, var=source.running_var)


def torch_feature_map(x_BHWC):
    return torch.from_numpy(x_BHWC.transpose(0, 3, 1, 2).copy())


def feature_map(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def our_bottleneck(source, width_in, width, stride, eps=1e-5):
    module = Bottleneck(width_in, width, stride, eps, nnx.Rngs(0))
    for i in (1, 3):
        kernel = getattr(source, f"conv{i}").weight[:, :, 0, 0].T
        fill(module, **{f"conv{i}": kernel})
    fill(module, conv2=source.conv2.weight.permute(2, 3, 1, 0))
    for i in (1, 2, 3):
        fill_norm(getattr(module, f"bn{i}"), getattr(source, f"bn{i}"))
    if source.downsample is not None:
        fill(module, downsample=source.downsample[1].weight[:, :, 0, 0].T)
        fill_norm(module.downsample_bn, source.downsample[2])
    else:
        assert module.downsample is None and module.downsample_bn is None
    return module


BOTTLENECKS = [(20, 1), (14, 1), (14, 2), (20, 2)]


@pytest.mark.torch("open_clip")
@pytest.mark.parametrize(
    "width_in, stride, broken",
    [(*sizes, broken) for sizes in BOTTLENECKS for broken in ("", "eps")]
    + [(*sizes, "skipped pixels") for sizes in BOTTLENECKS if sizes[1] > 1],
)
def test_bottleneck_matches_torch_and_fails_broken(width_in, stride, broken, monkeypatch):
    source = randomise(open_clip.modified_resnet.Bottleneck(width_in, 5, stride))
    assert (source.downsample is None) == ((width_in, stride) == (20, 1))
    module = our_bottleneck(source, width_in, 5, stride, 1e-3 if broken == "eps" else 1e-5)
    if broken == "skipped pixels":
        monkeypatch.setattr(resnet, "_average", skipped_pixels)
    x_BHWC = feature_map(3, 8, 6, width_in)
    theirs = source(torch_feature_map(x_BHWC)).permute(0, 2, 3, 1)
    found = error(run(module, x_BHWC), theirs)
    assert found > 100 * LEAF if broken else found <= LEAF


@pytest.mark.torch("open_clip")
@pytest.mark.parametrize("broken", ["", "mean", "positions", "q and k", "heads"])
def test_attention_pool_matches_torch_and_fails_broken(broken, monkeypatch):
    cfg = dataclasses.replace(SMALL, width=2, num_heads=4)
    d, n, k = cfg.pool_width, cfg.num_heads, cfg.head_width
    pool = open_clip.modified_resnet.AttentionPool2d(3, d, n, cfg.embed)
    source = randomise(pool)
    q, key = ("k", "q") if broken == "q and k" else ("q", "k")
    module = AttentionPool(cfg, nnx.Rngs(0))
    for ours, name in zip("qkv", (q, key, "v"), strict=True):
        proj = getattr(source, f"{name}_proj")
        kernel, bias = proj.weight.T.reshape(d, n, k), proj.bias.reshape(n, k)
        if broken == "heads" and ours == "v":
            kernel = proj.weight.T.reshape(d, k, n).transpose(1, 2)
        fill(module, **{f"{ours}_kernel": kernel, f"{ours}_bias": bias})
    fill(module, c_kernel=source.c_proj.weight.T.reshape(n, k, -1), c_bias=source.c_proj.bias)
    positions = source.positional_embedding
    fill(module, positional_embedding=positions.roll(1, 0) if broken == "positions" else positions)
    if broken == "mean":
        monkeypatch.setattr(jnp, "concatenate", without_mean_token)
    x_BHWC = 2 * feature_map(5, 3, 3, d)
    found = error(run(module, x_BHWC), source(torch_feature_map(x_BHWC)))
    assert found > 100 * LEAF if broken else found <= LEAF


def test_attention_pool_makes_neither_keys_nor_values():
    b, t, d = 5, 10, SMALL.pool_width
    module = AttentionPool(SMALL, nnx.Rngs(0))
    cost: Any = jax.jit(module).lower(jnp.zeros((b, 3, 3, d))).compile().cost_analysis()
    assert 6 * b * d * d < cost["flops"] < 2 * b * t * d * d  # of the keys alone


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_batch_norm_is_computed_in_f32_whatever_comes_in(dtype):
    # A mean so large that its scaled difference would be lost in bfloat16.
    module = BatchNorm(6, 1e-5, nnx.Rngs(0))
    module.mean[...] = jnp.full(6, 100.3)
    module.var[...] = jnp.linspace(0.5, 2, 6)
    x_BHWC = jnp.asarray(100 + feature_map(2, 4, 4, 6), dtype)
    found = run(module, x_BHWC)
    assert found.dtype == x_BHWC.dtype
    x = np.asarray(x_BHWC, np.float64)
    wanted = (x - 100.3) / np.sqrt(np.linspace(0.5, 2, 6) + 1e-5)
    tolerance = 2**-8 if dtype == "bfloat16" else 1e-4
    np.testing.assert_allclose(np.asarray(found, np.float64), wanted, tolerance, 1e-4)


# Towers, filled by the table.


def tower_error(cfg, tensors, image_BHWC=None, tower=None):
    """Ours against torch's; `image_BHWC` and `tower` break ours."""
    image = images(cfg)
    theirs = run_resnet(torch_resnet(cfg, tensors), image)
    assert np.abs(theirs[0] - theirs[1]).max() > 0.5  # it looks at the image
    ours = run(tower or our_tower(cfg, tensors), image if image_BHWC is None else image_BHWC)
    return error(ours, theirs)


@pytest.fixture(scope="module")
def tensors():
    return resnet_tensors(SMALL)


@pytest.mark.torch("open_clip")
def test_tower_matches_torch(tensors):
    assert tower_error(SMALL, tensors) <= WHOLE


@pytest.mark.torch("open_clip")
@pytest.mark.slow
def test_tower_matches_torch_at_the_size_of_rn50():
    cfg = ResNetConfig(64, (3, 4, 6, 3), 32, 224, 1024)
    tensors = resnet_tensors(cfg)
    assert tower_error(cfg, tensors) <= WHOLE
    # The control: rounding has not grown so large that a wrong eps would hide in it.
    wrong = our_tower(dataclasses.replace(cfg, norm_eps=1e-4), tensors)
    assert tower_error(cfg, tensors, tower=wrong) > WHOLE


@pytest.mark.torch("open_clip")
def test_parity_fails_with_other_eps(tensors):
    wrong = our_tower(dataclasses.replace(SMALL, norm_eps=1e-3), tensors)
    assert tower_error(SMALL, tensors, tower=wrong) > 10 * WHOLE


@pytest.mark.torch("open_clip")
def test_parity_fails_with_skipped_pixels(tensors, monkeypatch):
    monkeypatch.setattr(resnet, "_average", skipped_pixels)
    assert tower_error(SMALL, tensors) > 10 * WHOLE


@pytest.mark.torch("open_clip")
def test_parity_fails_without_mean_token(tensors, monkeypatch):
    monkeypatch.setattr(jnp, "concatenate", without_mean_token)
    assert tower_error(SMALL, tensors) > 10 * WHOLE


@pytest.mark.torch("open_clip")
def test_parity_fails_with_padding_same(tensors, monkeypatch):
    convolve = jax.lax.conv_general_dilated
    same = lambda *args, **options: convolve(*args, **options | {"padding": "SAME"})  # noqa: E731
    monkeypatch.setattr(jax.lax, "conv_general_dilated", same)
    assert tower_error(SMALL, tensors) > 10 * WHOLE


@pytest.mark.torch("open_clip")
def test_parity_fails_with_blocks_in_another_order(tensors):
    tower = our_tower(SMALL, tensors)
    graphdef, params = nnx.split(tower.layer3.rest)
    tower.layer3.rest = nnx.merge(graphdef, jax.tree.map(lambda x: np.roll(x, 1, 0), params))
    assert tower_error(SMALL, tensors, tower=tower) > 10 * WHOLE


@pytest.mark.torch("open_clip")
def test_parity_fails_with_height_and_width_swapped(tensors):
    assert tower_error(SMALL, tensors, images(SMALL).swapaxes(1, 2)) > 10 * WHOLE


@pytest.mark.torch("open_clip")
def test_parity_fails_with_colours_reversed(tensors):
    assert tower_error(SMALL, tensors, images(SMALL)[..., ::-1]) > 10 * WHOLE


# Torch's recorded output, where torch is not installed.


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN_RESNET) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_output_matches_recorded_torch_and_fails_with_other_eps(golden, eps):
    prefix = "weights/"
    weights = {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)}
    tower = our_tower(dataclasses.replace(RESNET, norm_eps=eps), weights)
    found = error(run(tower, resnet_image(golden["levels_BHWC"])), golden["image_BE"])
    assert found <= WHOLE if eps == 1e-5 else found > 10 * WHOLE
    assert np.abs(golden["image_BE"][0] - golden["image_BE"][1]).max() > 0.5


@pytest.mark.torch("open_clip")
def test_recording_is_what_torch_says_today(golden):
    made = make_resnet()
    assert made.keys() == golden.keys()
    for name, value in made.items():
        np.testing.assert_allclose(value, golden[name], rtol=0, atol=1e-5, err_msg=name)


def test_recording_is_small():
    assert GOLDEN_RESNET.stat().st_size < 100_000


# The table


@pytest.mark.torch("open_clip")
@pytest.mark.parametrize("name", PRESETS)
def test_table_lists_every_tensor_of_open_clip_once(name):
    sizes = open_clip.get_model_config(name)
    with torch.device("meta"):
        visual = open_clip.model._build_vision_tower(sizes["embed_dim"], sizes["vision_cfg"])
    cfg = ResNetConfig(
        width=sizes["vision_cfg"]["width"],
        depths=tuple(sizes["vision_cfg"]["layers"]),
        num_heads=visual.attnpool.num_heads,
        image_size=sizes["vision_cfg"]["image_size"],
        embed=sizes["embed_dim"],
    )
    theirs = {f"visual.{key}": tuple(value.shape) for key, value in visual.state_dict().items()}
    rows = list(resnet_rows(cfg))
    ours = {row.key: row.shape for row in rows}
    assert len(ours) == len(rows)
    counts = {key for key in theirs if ignored_key(key)}
    assert counts == {key for key in theirs if key.endswith(".num_batches_tracked")}
    assert ours == {key: shape for key, shape in theirs.items() if key not in counts}
    # And they are as many numbers as each of our parameters has.
    filled = collections.Counter()
    for row in rows:
        filled[row.path] += np.prod(row.shape, dtype=int)
    model = nnx.eval_shape(lambda: CLIP(CLIPConfig(None, cfg), nnx.Rngs(0)))
    sizes = {path: v.size for path, v in nnx.to_flat_state(nnx.state(model))}
    assert filled == sizes


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_round_trip_gives_back_every_tensor_bit_for_bit(dtype):
    tensors = {key: value.astype(dtype) for key, value in random_tensors(SMALL).items()}
    params = host_params(our_clip(SMALL, tensors))
    for row in resnet_rows(SMALL, ""):
        back = source_tensor(params, row, dtype)
        assert (back.shape, back.dtype) == (row.shape, np.dtype(dtype)), row.key
        assert back.flags.c_contiguous
        assert back.tobytes() == tensors[row.key].tobytes(), row.key


def test_rows_take_another_prefix():
    assert {row.key for row in resnet_rows(TINY, "module.visual.")} == {
        f"module.{row.key}" for row in resnet_rows(TINY)
    }


# Training


def terms(student, teacher, batch):
    """The student is to see the mirror image of what the teacher sees."""
    there = jax.lax.stop_gradient(teacher(batch[:, :, ::-1]))
    return {"utility": mean_squared(student(batch), there).mean()}


def train(steps, mesh=(1, 1, 1), cfg=TINY):
    """Take steps; the teacher, the student and the losses."""
    graphdef, teacher = split_tower(our_tower(cfg))
    tx = make_optimizer(
        1e-3, warmup=0, milestones=(), gamma=1.0, weight_decay=0.0,
        b1=0.9, b2=0.999, eps=1e-8, steps=steps,
    )  # fmt: skip
    step = StepConfig(graphdef, Objective(terms, {"utility": 1.0, "weight": 0.01}), tx)
    batches = [images(cfg, 8, seed) for seed in range(steps)]
    losses, state = run_steps(step, teacher, batches, steps, mesh)
    student = merge_student(graphdef, state.params, teacher)
    return nnx.merge(graphdef, *teacher), student, losses


@pytest.fixture(scope="module")
def trained():
    return train(2)


def by_key(tower, cfg=TINY):
    """A tower's tensors by their names in the checkpoint."""
    params = {("vision", *path): value for path, value in host_params(tower).items()}
    return {row.key: source_tensor(params, row, np.float32) for row in resnet_rows(cfg, "")}


def is_norm(key):
    return bool(re.search(r"bn\d\.|downsample\.1\.", key))


def test_step_leaves_batch_norms_alone_and_moves_all_else(trained):
    before, after = by_key(trained[0]), by_key(trained[1])
    norms = {key for key in before if is_norm(key)}
    assert {key.rsplit(".", 1)[1] for key in norms} == {
        "weight",
        "bias",
        "running_mean",
        "running_var",
    }
    assert len(norms) == 4 * (3 + sum(3 * depth + 1 for depth in TINY.depths))
    for key in before:
        # All scores of a head shift alike by the keys' bias.
        still = is_norm(key) or key == "attnpool.k_proj.bias"
        assert np.array_equal(before[key], after[key]) == still, key


def test_batch_does_not_change_what_an_image_embeds_as():
    tower, image = our_tower(TINY), images(TINY, 4)
    alone = run(tower, image[:1])
    image[1:] *= 5
    np.testing.assert_allclose(run(tower, image)[:1], alone, rtol=0, atol=1e-5)


def test_weight_term_is_a_sum_over_tensors_of_the_checkpoint(trained):
    teacher, student, _ = trained
    before, after = by_key(teacher), by_key(student)
    moved = [np.linalg.norm(after[key].astype(float) - before[key]) for key in before]
    distance = weight_distance(*(split_tower(tower)[1].trained for tower in (student, teacher)))
    np.testing.assert_allclose(distance, np.sum(moved), rtol=1e-5)
    # The control: a norm for each of our arrays would be another number.
    ours, theirs = host_params(student), host_params(teacher)
    arrays = [np.linalg.norm(ours[path].astype(float) - theirs[path]) for path in ours]
    assert np.sum(arrays) < 0.98 * np.sum(moved)


@eight_devices
@pytest.mark.parametrize("mesh", [(8, 1, 1), (2, 2, 2)])
def test_step_losses_are_those_of_one_device_on_any_mesh(mesh, trained):
    (first, second), (first_1, second_1) = train(2, mesh)[2], trained[2]
    # The norm of a residual network's gradient sums over batch norms in another order: 1e-5 is its
    # rounding.
    for name, rtol in (("utility", 1e-5), ("total", 1e-5), ("grad_norm", 3e-5)):
        np.testing.assert_allclose(first[name], first_1[name], rtol=rtol, err_msg=name)
    # AdamW's first step turns rounding of gradients near 0 into whole steps.
    for name, rtol in (("utility", 1e-3), ("total", 1e-3), ("weight", 1e-2)):
        np.testing.assert_allclose(second[name], second_1[name], rtol=rtol, err_msg=name)


def test_remat_changes_neither_output_nor_gradient():
    image = images(TINY, 2)
    found, recomputed = {}, []
    for remat in ("none", "dots", "full"):
        tower = our_tower(dataclasses.replace(TINY, remat=remat))
        graphdef, (params, frozen) = split_tower(tower)
        loss = lambda params: jnp.sin(nnx.merge(graphdef, params, frozen)(image)).sum()  # noqa: B023, E731
        jaxpr = str(jax.make_jaxpr(jax.grad(loss))(params))
        recomputed.append(jaxpr.count("conv_general_dilated["))
        # Fenced off where no scan does that: the stem, and the first block of each stage.
        assert jaxpr.count("prevent_cse=True") == (0 if remat == "none" else 5)
        found[remat] = jax.tree.leaves(jax.jit(jax.value_and_grad(loss))(params))
    none, dots, full = recomputed
    # Of `dots` the stem alone; of `full`, also every block of 3 x 3: 4 first ones and 2 scanned.
    assert (dots - none, full - none) == (3, 9)
    for remat in ("dots", "full"):
        for a, b in zip(found[remat], found["none"], strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1, np.abs(b).max()))


def test_bfloat16_compute_stays_near_f32_and_returns_f32():
    image = images(SMALL)
    tensors = random_tensors(SMALL)
    exact = run(our_tower(SMALL, tensors), image)
    rounded = our_tower(dataclasses.replace(SMALL, dtype="bfloat16"), tensors)
    assert {v.dtype for v in jax.tree.leaves(nnx.state(rounded))} == {np.dtype("float32")}
    rounded = run(rounded, image)
    assert rounded.dtype == np.float32
    norms = jnp.linalg.norm(exact, axis=-1) * jnp.linalg.norm(rounded, axis=-1)
    assert ((exact * rounded).sum(-1) / norms).min() > 0.999
    assert jnp.abs(exact - rounded).max() > WHOLE  # it did compute in fewer bits


def test_deeper_stages_compile_to_no_more():
    def num_steps(depths):
        cfg = dataclasses.replace(TINY, depths=depths)
        tower = nnx.eval_shape(lambda: ResNetTower(cfg, nnx.Rngs(0)))
        return str(jax.make_jaxpr(lambda tower, x: tower(x))(tower, images(cfg))).count(" = ")

    assert num_steps((3, 15, 36, 10)) == num_steps((2, 2, 2, 2)) > num_steps((2, 1, 2, 2)) > 100


@eight_devices
@pytest.mark.parametrize("change", [{}, {"channels_out": FSDP}])
def test_convolutions_send_nothing_around_and_do_if_they_are_cut(change):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    rules = ShardingRules({**ShardingRules().rules, **change})
    graphdef, params = nnx.split(Stage(8, 4, 3, 2, TINY, nnx.Rngs(0)))
    forward = jax.jit(
        lambda params, x: nnx.merge(graphdef, params)(x),
        in_shardings=(sharding_tree(params, mesh, rules), batch_sharding(mesh, rules)),
        out_shardings=batch_sharding(mesh, rules),
    )
    hlo = str(forward.lower(params, jnp.ones((8, 4, 4, 8))).compile().as_text())
    assert bool(re.search(r"all-gather|all-reduce|all-to-all|permute\(", hlo)) == bool(change)


# Config


def test_config_decides_which_tower_a_model_gets():
    vit = VisionConfig(width=8, mlp_width=14, depth=1, num_heads=2, image_size=8, patch_size=4)
    for cfg, kind in ((vit, VisionTower), (TINY, ResNetTower), (None, type(None))):
        model = nnx.eval_shape(lambda cfg=cfg: CLIP(CLIPConfig(None, cfg), nnx.Rngs(0)))
        assert type(model.vision) is kind


def test_config_with_compute_keeps_the_sizes():
    cfg = CLIPConfig(None, TINY).with_compute("bfloat16", "dots")
    assert cfg == CLIPConfig(None, dataclasses.replace(TINY, dtype="bfloat16", remat="dots"))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"width": 0}, "`width` (=0) must be a whole number above 0."),
        ({"embed": 1.5}, "`embed` (=1.5) must be a whole number above 0."),
        ({"num_heads": True}, "`num_heads` (=True) must be a whole number above 0."),
        ({"width": 5}, "`width` (=5) must be even; the stem starts with half."),
        ({"depths": (1, 2, 3)}, "`depths` (=(1, 2, 3)) must be a tuple of 4 whole numbers"),
        ({"depths": (1, 2, 3, 0)}, "`depths` (=(1, 2, 3, 0)) must be a tuple of 4 whole numbers"),
        ({"depths": 4}, "`depths` (=4) must be a tuple of 4 whole numbers"),
        ({"num_heads": 3}, "32 times `width` (=128) must be divisible by `num_heads` (=3)."),
        ({"image_size": 50}, "`image_size` (=50) must be divisible by 32"),
        ({"remat": "some"}, "`remat` (='some') must be 'none', 'dots' or 'full'."),
    ],
)
def test_config_of_impossible_sizes_raises(change, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as raised:
        dataclasses.replace(TINY, **change)
    assert "\n" not in str(raised.value)
