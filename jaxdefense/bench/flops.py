"""Counts of parameters, and of floating-point operations in matrix products and convolutions.

Both counts come from the traced function, so they follow its code. The body of a scan counts once
for each iteration.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr

from jaxdefense.clip.config import CLIPConfig
from jaxdefense.clip.model import CLIP
from jaxdefense.clip.text import Text


def product_flops(function: Callable[..., Any], *args: Any) -> int:
    """Count the operations of products; a multiplication and an addition count as two.

    Args:
        function: function of arrays.
        args: its arguments: arrays, or shapes with dtypes.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: Jaxpr) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        params: dict[str, Any] = eqn.params
        shapes: list[tuple[int, ...]] = [getattr(x.aval, "shape", ()) for x in eqn.invars]
        num_out = math.prod(getattr(eqn.outvars[0].aval, "shape", ())) if eqn.outvars else 0
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            total += 2 * num_out * math.prod(shapes[0][i] for i in contracted)
        elif eqn.primitive.name == "conv_general_dilated":
            out_dim = params["dimension_numbers"].rhs_spec[0]
            a_number = math.prod(shapes[1]) // shapes[1][out_dim]
            # The gradient of a strided convolution inserts rows of zeros; they do not count.
            total += 2 * num_out * a_number // math.prod(params["lhs_dilation"])
        times = params["length"] if eqn.primitive.name == "scan" else 1
        for inner in jax.tree.leaves(list(params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                total += times * _count(getattr(inner, "jaxpr", inner))
    return total


def _is_jaxpr(x: Any) -> bool:
    return isinstance(x, ClosedJaxpr | Jaxpr)


def num_params(module: nnx.Module) -> int:
    """Count the parameters of a module, which may hold shapes in place of arrays."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(module)))


def tower_sizes(cfg: CLIPConfig) -> dict[str, dict[str, float]]:
    """Count parameters and operations of each tower of a model.

    Returns:
        for `text` and `vision`, if present: `million_parameters`, and the `gflop` of embedding one
        photo or one caption of the maximum length.
    """
    model = nnx.eval_shape(lambda: CLIP(cfg, nnx.Rngs(0)))
    one: dict[str, Any] = {}
    if cfg.text:
        row = jax.ShapeDtypeStruct((1, cfg.text.context_length), jnp.int32)
        one["text"] = Text(row, row, row, jax.ShapeDtypeStruct((1, 1), jnp.int32))  # pyright: ignore[reportArgumentType]
    if cfg.vision:
        side = cfg.vision.image_size
        one["vision"] = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    out = {}
    for name, x in one.items():
        tower = getattr(model, name)
        graphdef, params = nnx.split(tower)
        flops = product_flops(lambda p, x, g=graphdef: nnx.merge(g, p)(x), params, x)
        out[name] = {"million_parameters": num_params(tower) / 1e6, "gflop": flops / 1e9}
    return out
