"""Students that differ from their teacher by matrices of low rank, and the adapter they make.

Each matrix of the transformer, and the projection, is the teacher's plus a product of two factors,
`a` and `b`; nothing else moves. `a` begins with draws of variance 1 / rank, `b` with 0, so that the
student begins as the teacher, and a step moves each entry of a matrix about as far as without.

Source: Hu et al., LoRA, ICLR 2022; names and scale of the adapter as PEFT has them.
Parity: tests/test_low_rank.py, embeddings of transformers with PEFT, 1e-5.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from jaxdefense.clip.layers import STACKED_DIMS
from jaxdefense.convert.table import Row
from jaxdefense.files import write_json

ADAPTER = "adapter"  # directory in that of a run
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # as PEFT calls them
# Dims that a matrix multiplies; the others are those of its result.
_INPUTS = {
    "qkv_kernel": ("embed",),
    "out_kernel": ("heads", "head_width"),
    "fc1_kernel": ("embed",),
    "fc2_kernel": ("mlp",),
    "projection": ("embed",),
}
_RANK = "rank"


def _dims(name: str, dims: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Give the dims of the two factors of a matrix."""
    stacked = tuple(dim for dim in dims if dim in STACKED_DIMS)
    inputs = _INPUTS[name]
    outputs = tuple(dim for dim in dims if dim not in (*stacked, *inputs))
    return (*stacked, *inputs, _RANK), (*stacked, _RANK, *outputs)


def _matrices(params: nnx.State) -> dict[tuple[Any, ...], nnx.Variable]:
    """List the matrices of a tower by path."""
    flat = nnx.to_flat_state(params)
    return {path: variable for path, variable in flat if path[-1] in _INPUTS}


def init_factors(params: nnx.State, rank: int, seed: int) -> nnx.State:
    """Make the factors of a student that is its teacher.

    Args:
        params: trained parameters of the teacher.
        rank: of the products.
        seed: of the draws.
    """
    key, out = jax.random.key(seed), list[tuple[Any, nnx.Variable]]()
    for i, (path, matrix) in enumerate(_matrices(params).items()):
        dims = matrix.get_metadata()["dims"]
        sizes = dict(zip(dims, matrix.shape, strict=True)) | {_RANK: rank}
        of_a, of_b = _dims(str(path[-1]), dims)
        shapes = [tuple(sizes[dim] for dim in each) for each in (of_a, of_b)]
        a = jax.random.normal(jax.random.fold_in(key, i), shapes[0]) / math.sqrt(rank)
        out += [
            ((*path, "a"), nnx.Param(a, dims=of_a)),
            ((*path, "b"), nnx.Param(jnp.zeros(shapes[1]), dims=of_b)),
        ]
    return nnx.from_flat_state(out)


def with_products(factors: nnx.State, params: nnx.State) -> nnx.State:
    """Add the products of factors to the teacher's matrices.

    Args:
        factors: see `init_factors`.
        params: trained parameters of the teacher.
    """
    pairs, matrices = dict(nnx.to_flat_state(factors)), _matrices(params)
    out = list[tuple[Any, nnx.Variable]]()
    for path, variable in nnx.to_flat_state(params):
        if path in matrices:
            dims = variable.get_metadata()["dims"]
            letters = {dim: chr(ord("a") + i) for i, dim in enumerate((*dims, _RANK))}
            of_a, of_b, whole = (
                "".join(letters[dim] for dim in each)
                for each in (*_dims(str(path[-1]), dims), dims)
            )
            a, b = (pairs[*path, name][...] for name in ("a", "b"))
            product = jnp.einsum(f"{of_a},{of_b}->{whole}", a, b)
            variable = variable.replace(variable[...] + product)
        out.append((path, variable))
    return nnx.from_flat_state(out)


def write_adapter(
    out: Path, factors: nnx.State, part: float, rows: Sequence[Row], encoder: str, rank: int
) -> None:
    """Write factors as an adapter that PEFT loads on the original model.

    Args:
        out: a new directory.
        factors: see `init_factors`; on the host.
        part: of the way to them, in (0, 1]; the second factor is multiplied by it.
        rows: conversion table of the model, in Hugging Face's layout.
        encoder: `text` or `vision`, whose factors they are.
        rank: of the products.
    """
    flat = {tuple(map(str, path)): np.asarray(x[...]) for path, x in nnx.to_flat_state(factors)}
    tensors, modules = dict[str, np.ndarray](), list[str]()
    for row in rows:
        tower, *path = row.path
        if tower != encoder or (*path, "a") not in flat:
            continue
        index = tuple(i for i in row.index if isinstance(i, int))
        a, b = flat[*path, "a"][index], flat[*path, "b"][index] * np.float32(part)
        module = row.key.removesuffix(".weight")
        modules.append(module)
        prefix = f"base_model.model.{module}.lora_"
        tensors[f"{prefix}A.weight"] = np.ascontiguousarray(a.reshape(-1, rank).T)
        tensors[f"{prefix}B.weight"] = np.ascontiguousarray(b.reshape(rank, -1).T)
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / WEIGHTS, metadata={"format": "pt"})
    (out / WEIGHTS).chmod(0o644)
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": modules,
        "base_model_name_or_path": None,
        "task_type": None,
    }
    write_json(out / CONFIG, config)
