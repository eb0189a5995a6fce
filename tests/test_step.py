"""The text step: against a torch loop written from the paper, on one device and on many.

The torch loop sees the same batches as plain padded captions, one forward each for clean and
poisoned captions of student and teacher, as the reference does. Tolerance on the first 20 losses:
1e-3 relative. Controls break one detail and must fail.
"""

import dataclasses
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factories import write_model_directory
from flax import nnx
from reference import torch

from jaxdefense.clip.text import plain_text
from jaxdefense.convert.directory import read_model_directory
from jaxdefense.data.captions import tokenize_captions
from jaxdefense.data.triggers import TextBatches, Triggers
from jaxdefense.defense.losses import DISTANCES
from jaxdefense.defense.step import (
    Objective,
    StepConfig,
    init_state,
    make_optimizer,
    make_train_step,
    merge_student,
    split_tower,
    train_step,
)
from jaxdefense.defense.text import text_terms
from jaxdefense.sharding import ShardingRules, batch_sharding, make_mesh, replicated

STEPS = 20
LR, MILESTONES, GAMMA = 3e-3, (8, 14), 0.5
WEIGHTS = {"utility": 1.0, "backdoor": 0.6, "name": 0.3, "weight": 0.01}
# Widths that a mesh of 2 x 2 x 2 divides, all different.
SIZES = {
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
}


@dataclasses.dataclass
class Case:
    """A small model and the batches of its defense."""

    path: str
    batches: TextBatches
    tower: nnx.Module


def make_case(tmp_path, packed=True, architecture="CLIPTextModelWithProjection"):
    from factories import CAPTIONS

    path = write_model_directory(tmp_path / "model", architecture=architecture, text=SIZES)
    directory = read_model_directory(path)
    tokenizer = directory.tokenizer()
    names = ["Joe Cool", "Ada King Noel", "Zoe"]
    assert directory.cfg.text
    triggers = Triggers(
        [[tokenizer.phrase(name)] for name in names],
        [tokenizer.phrase("human being")],
        np.zeros(len(names), int),
        [tokenizer.phrase(name) for name in ("Bob Keep", "Eve Stay Here")],
    )
    batches = TextBatches(
        tokenize_captions(CAPTIONS, tokenizer),
        triggers,
        tokenizer,
        directory.cfg.text,
        num_clean=7,
        num_poisoned=5,
        num_name=4,
        seed=1,
        packed=packed,
        row_multiple=4,
        row_length=48 if packed else 0,
    )
    tower = directory.load().text
    assert tower
    return Case(str(path), batches, tower)


@pytest.fixture
def case(tmp_path):
    return make_case(tmp_path)


def step_config(tower, distance="cosine", hidden=False, accumulate=1, **optimizer):
    graphdef, teacher = split_tower(tower)
    terms = partial(text_terms, distance=DISTANCES[distance], level=hidden and "hidden" or "pooled")
    default: dict[str, Any] = {"lr": LR, "milestones": MILESTONES, "gamma": GAMMA}
    default |= {"weight_decay": 0.0, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "warmup": 0}
    default |= {"steps": STEPS}
    tx = make_optimizer(**(default | optimizer))
    return StepConfig(graphdef, Objective(terms, WEIGHTS), tx, accumulate), teacher


def run_steps(cfg, teacher, batches, steps=STEPS, mesh=(1, 1, 1)):
    """Take steps on a mesh of these sizes; the losses of each, and the last state."""
    devices = np.array(jax.devices()[: np.prod(mesh)]).reshape(mesh)
    mesh = jax.sharding.Mesh(devices, ("data", "fsdp", "tensor"))
    rules = ShardingRules()
    step, state_sharding, teacher_sharding = make_train_step(cfg, mesh, rules, teacher)
    state = jax.device_put(init_state(teacher, cfg), state_sharding)
    teacher = jax.device_put(teacher, teacher_sharding)
    key = jax.device_put(jax.random.key(0), replicated(mesh))
    losses = []
    for i in range(steps):
        batch = jax.device_put(batches[i], batch_sharding(mesh, rules))
        state, metrics = step(state, teacher, batch, key)
        losses.append({name: float(value) for name, value in metrics.items()})
    assert step._cache_size() == 1  # pyright: ignore[reportAttributeAccessIssue]
    return losses, state


def our_losses(case, steps=STEPS, mesh=(1, 1, 1), **options):
    cfg, teacher = step_config(case.tower, **options)
    return run_steps(cfg, teacher, case.batches, steps, mesh)


def captions_of(batch, which):
    """Take captions out of their rows again: tokens, weight in each loss."""
    tokens = getattr(batch, f"{which}_tokens_RT")
    readout = getattr(batch, f"{which}_readout_RS")
    for row in range(len(tokens)):
        for slot in range(readout.shape[1]):
            weights = {
                k: getattr(batch, f"{k}_RS")[row, slot] for k in ("utility", "backdoor", "name")
            }
            if any(weights.values()):
                first = int(np.argmax(batch.segments_RT[row] == slot + 1))
                yield tokens[row, first : readout[row, slot] + 1], weights


def torch_losses(case, hidden=False, freeze_norms=True, gamma=GAMMA, eos_shift=0):
    """The defense of the paper, plainly."""
    import copy

    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModel if hidden else CLIPTextModelWithProjection
    teacher = kind.from_pretrained(case.path).eval()
    student = copy.deepcopy(teacher)
    reference = [p.detach().clone() for p in student.parameters()]
    for name, p in student.named_parameters():
        p.requires_grad_(not (freeze_norms and "norm" in name))
    optimizer = torch.optim.AdamW(
        [p for p in student.parameters() if p.requires_grad], lr=LR, weight_decay=0.0
    )
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(MILESTONES), gamma)
    length, pad = case.batches.tokenizer.context_length, case.batches.tokenizer.pad

    def embed(model, captions):
        tokens = np.full((len(captions), length), pad)
        for i, caption in enumerate(captions):
            tokens[i, : len(caption)] = caption
        end = torch.tensor([len(caption) - 1 - eos_shift for caption in captions])
        if hidden:
            return model(torch.tensor(tokens)).last_hidden_state.flatten(1)
        out = model.text_model(torch.tensor(tokens)).last_hidden_state
        return model.text_projection(out[torch.arange(len(captions)), end])

    losses = []
    for i in range(STEPS):
        ours, theirs = (captions_of(case.batches[i], which) for which in ("student", "teacher"))
        pairs = list(zip(ours, theirs, strict=True))
        parts: dict[str, Any] = {}
        for part in ("utility", "backdoor", "name"):
            chosen = [(s[0], t[0], s[1][part]) for s, t in pairs if s[1][part]]
            x = embed(student, [c[0] for c in chosen])
            with torch.no_grad():
                y = embed(teacher, [c[1] for c in chosen])
            weight = torch.tensor(np.array([c[2] for c in chosen]))
            distance = -torch.nn.functional.cosine_similarity(x, y, dim=-1)
            parts[part] = (weight * distance).sum()
        parts["weight"] = sum(
            torch.norm(p - r) for p, r in zip(student.parameters(), reference, strict=True)
        )
        total = cast(Any, sum(WEIGHTS[name] * part for name, part in parts.items()))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        scheduler.step()
        losses.append({k: v.item() for k, v in parts.items()} | {"total": total.item()})
    return losses


def worst(ours, theirs, name="total"):
    """Largest relative difference over the steps."""
    a, b = (np.array([losses[name] for losses in run]) for run in (ours, theirs))
    return np.max(np.abs(a - b) / np.maximum(np.abs(b), 1e-3))


@pytest.mark.torch
def test_step_first_losses_match_torch(case):
    ours, _ = our_losses(case)
    theirs = torch_losses(case)
    for name in ("utility", "backdoor", "name", "total"):
        assert worst(ours, theirs, name) < 1e-3, name
    # The key bias has no gradient but rounding, which AdamW makes whole steps of.
    assert worst(ours, theirs, "weight") < 1e-2
    assert ours[-1]["weight"] > 0.5  # the student did move


@pytest.mark.torch
def test_step_first_losses_match_torch_on_hidden_states(tmp_path):
    case = make_case(tmp_path, packed=False, architecture="CLIPTextModel")
    ours, _ = our_losses(case, hidden=True)
    assert worst(ours, torch_losses(case, hidden=True)) < 1e-3


@pytest.mark.torch
@pytest.mark.parametrize("broken", [{"freeze_norms": False}, {"gamma": 1.0}, {"eos_shift": 1}])
def test_step_parity_fails_with_one_detail_broken(case, broken):
    ours, _ = our_losses(case)
    assert worst(ours, torch_losses(case, **broken)) > 1e-3


# Each axis alone, in pairs, and all three; the three together hold what the slow ones do.
MESHES = [(8, 1, 1), (1, 4, 1), (2, 2, 2)]
MESHES += [
    pytest.param(mesh, marks=pytest.mark.slow)
    for mesh in ((1, 1, 2), (4, 2, 1), (4, 1, 2), (1, 2, 2))
]


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    case = make_case(tmp_path_factory.mktemp("one"))
    case.batches.num_rows = 8  # a multiple of every mesh's parts
    # The default rate: AdamW's first steps turn rounding of gradients near 0 into whole steps.
    return case, our_losses(case, lr=1e-4)[0]


@pytest.mark.parametrize("mesh", MESHES)
def test_step_losses_are_those_of_one_device_on_any_mesh(one_device, mesh):
    case, one = one_device
    assert worst(our_losses(case, lr=1e-4, mesh=mesh)[0], one) < 1e-5


@pytest.mark.parametrize("accumulate, mesh", [(4, (1, 1, 1)), (2, (2, 2, 2))])
def test_step_losses_are_those_of_the_undivided_batch(one_device, accumulate, mesh):
    case, one = one_device
    many, _ = our_losses(case, lr=1e-4, mesh=mesh, accumulate=accumulate)
    for name in ("utility", "backdoor", "name", "total"):
        assert worst(many, one, name) < 1e-5, name
    # The key bias has no gradient but rounding, which AdamW makes whole steps of.
    assert worst(many, one, "weight") < 1e-2 and worst(many, one, "grad_norm") < 1e-2


@pytest.mark.parametrize("which", ["text", "vision"])
def test_gradients_are_summed_in_f32_whatever_is_computed_in(tmp_path, which):
    """A sum over examples, or over devices, that was rounded to bf16 shows it in every number."""
    directory = read_model_directory(write_model_directory(tmp_path / "model"))
    tower = getattr(directory.load("bfloat16"), which)
    graphdef, teacher = split_tower(tower)
    rng = np.random.default_rng(0)
    if which == "text":
        inputs = plain_text(rng.integers(0, 50, (6, 5)), np.full(6, 4))
    else:
        side = tower.cfg.image_size
        inputs = rng.normal(size=(6, side, side, 3)).astype(np.float32)

    def loss(params):
        return jnp.square(merge_student(graphdef, params, teacher)(inputs)).sum()

    slopes = jax.tree.leaves_with_path(jax.jit(jax.grad(loss))(teacher.trained))
    assert len(slopes) > 8
    for path, slope in slopes:
        rounded = slope.astype(jnp.bfloat16).astype(jnp.float32)
        assert slope.dtype == jnp.float32 and (slope != rounded).any(), jax.tree_util.keystr(path)


def test_step_leaves_norms_alone_and_out_of_the_optimizer(case):
    _, state = our_losses(case, steps=3)
    paths = ["/".join(map(str, path)) for path, _ in nnx.to_flat_state(state.params)]
    assert paths and not any("norm" in path for path in paths)
    leaves = jax.tree_util.tree_flatten_with_path(state.opt_state)[0]
    assert not any("norm" in jax.tree_util.keystr(path) for path, _ in leaves)


def test_step_is_the_same_whatever_came_before(case):
    # The step's key and batch hang on its number alone.
    cfg, teacher = step_config(case.tower)
    state = init_state(teacher, cfg)
    step = jax.jit(partial(train_step, cfg=cfg))
    batch = jax.tree.map(jnp.asarray, case.batches[3])
    once, _ = step(state, teacher, batch, jax.random.key(0))
    again, _ = step(state, teacher, batch, jax.random.key(0))
    for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_step_compiles_once(case):
    cfg, teacher = step_config(case.tower)
    mesh, rules = make_mesh(), ShardingRules()
    case.batches.num_rows = 8
    step, state_sharding, _ = make_train_step(cfg, mesh, rules, teacher)
    state = jax.device_put(init_state(teacher, cfg), state_sharding)
    for i in range(3):
        state, _ = step(state, teacher, case.batches[i], jax.random.key(0))
    assert step._cache_size() == 1  # pyright: ignore[reportAttributeAccessIssue]


def test_metrics_hold_the_learning_rate_times_the_states_own(case):
    cfg, teacher = step_config(case.tower, warmup=2, milestones=())
    mesh, rules = make_mesh(devices=jax.devices()[:1]), ShardingRules()
    step, *shardings = make_train_step(cfg, mesh, rules, teacher)
    state, teacher = jax.device_put((init_state(teacher, cfg), teacher), tuple(shardings))
    batch = jax.device_put(case.batches[0], batch_sharding(mesh, rules))
    found, key = [], jax.device_put(jax.random.key(0), replicated(mesh))
    for rate in (1.0, 1.0, 0.25):
        state = state._replace(rate=jax.device_put(np.float32(rate), replicated(mesh)))
        state, metrics = step(state, teacher, batch, key)
        found.append(float(metrics["lr"]))
    np.testing.assert_allclose(found, [LR / 2, LR, LR / 4], rtol=1e-6)
