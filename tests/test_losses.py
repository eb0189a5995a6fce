"""Distances and the weight distance, against torch where it is installed and against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from reference import torch

from jaxdefense.defense.losses import DISTANCES, poincare, weight_distance

B, E = 4, 8


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    return rng.standard_normal((2, B, E), np.float32)


def torch_distance(name, x, y):
    x, y = torch.tensor(x), torch.tensor(y)
    match name:
        case "cosine":
            return -torch.nn.functional.cosine_similarity(x, y, dim=-1)
        case "mse":
            return torch.nn.functional.mse_loss(x, y, reduction="none").mean(-1)
        case "mae":
            return torch.nn.functional.l1_loss(x, y, reduction="none").mean(-1)
        case _:
            u, v = x / x.norm(p=1, dim=-1, keepdim=True), y / y.norm(p=1, dim=-1, keepdim=True)
            room = (1 - u.norm(dim=-1) ** 2) * (1 - v.norm(dim=-1) ** 2) + 1e-10
            return torch.arccosh(1 + 2 * (u - v).norm(dim=-1) ** 2 / room)


@pytest.mark.torch
@pytest.mark.parametrize("name", DISTANCES)
def test_distance_matches_torch(name, pair):
    ours = np.array(DISTANCES[name](jnp.array(pair[0]), jnp.array(pair[1])))
    np.testing.assert_allclose(ours, torch_distance(name, *pair).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("other", DISTANCES)
def test_distances_differ_from_each_other(name, other, pair):
    x, y = jnp.array(pair[0]), jnp.array(pair[1])
    close = np.allclose(DISTANCES[name](x, y), DISTANCES[other](x, y), atol=1e-3)
    assert close == (name == other)


@pytest.mark.parametrize("name", DISTANCES)
def test_distance_gradient_is_finite_where_both_are_equal(name, pair):
    x = jnp.array(pair[0])
    grad = jax.grad(lambda x, y: DISTANCES[name](x, y).sum())(x, x)
    assert np.isfinite(grad).all()


def test_poincare_keeps_small_distances():
    # 1 + delta rounds to 1 in f32 here; the plain formula gives 0.
    x = jnp.ones((1, E), jnp.float32)
    y = x.at[0, 0].add(1e-4)
    u, v = np.float64(x) / E, np.float64(y) / np.abs(np.float64(y)).sum()
    room = (1 - (u**2).sum()) * (1 - (v**2).sum())
    want = np.arccosh(1 + 2 * ((u - v) ** 2).sum() / room)
    np.testing.assert_allclose(float(poincare(x, y)[0]), want, rtol=1e-2)


def tree(seed):
    rng = np.random.default_rng(seed)
    dims = {
        "stacked": (("layers", "embed", "qkv", "heads", "head_width"), (2, 6, 3, 2, 3)),
        "plain": (("embed", "mlp"), (6, 10)),
    }
    return nnx.State(
        {
            name: nnx.Param(jnp.array(rng.standard_normal(shape, np.float32)), dims=dims)
            for name, (dims, shape) in dims.items()
        }
    )


def test_weight_distance_takes_one_norm_a_checkpoint_tensor():
    a, b = tree(0), tree(1)
    want = np.linalg.norm(np.array(a["plain"][...]) - np.array(b["plain"][...]))
    for layer in range(2):
        for part in range(3):
            x, y = (np.array(t["stacked"][...])[layer, :, part] for t in (a, b))
            want += np.linalg.norm(x - y)
    np.testing.assert_allclose(float(weight_distance(a, b)), want, rtol=1e-6)
    whole = sum(np.linalg.norm(np.array(a[k][...]) - np.array(b[k][...])) for k in a)
    assert abs(want - whole) > 1  # one norm a parameter of ours would be another number


def test_weight_distance_gradient_at_zero_is_zero():
    a = tree(0)
    grads = jax.grad(lambda s: weight_distance(s, a))(a)
    assert all((np.array(g) == 0).all() for g in jax.tree.leaves(grads))
    grads = jax.grad(lambda s: weight_distance(s, a))(tree(1))
    assert all((np.array(g) != 0).any() for g in jax.tree.leaves(grads))
