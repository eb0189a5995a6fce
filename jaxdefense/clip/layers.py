"""The transformer of both towers, with layers stacked and scanned.

A parameter is declared once, by `param`: shape, dtype, logical dims and initialiser together. The
variable keeps its dims as metadata, from which `sharding.py` derives its sharding. With
`stack=(L,)` a module declares the parameters of L copies of itself; their first dim is `layers`.

Source: transformers `models/clip/modeling_clip.py`.
Parity: tests/test_parity.py, leaves <= 1e-5, towers <= 1e-4, f32.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdefense.clip.config import Remat, TowerConfig
from jaxdefense.sharding import gathered, gathers

# Dims that stack separate tensors of a checkpoint in one array. The weight loss takes one norm per
# checkpoint tensor, so it does not sum over these dims. A layout that keeps query, key and value in
# one tensor has fewer such dims: `Layout.stacked_dims`.
STACKED_DIMS = ("layers", "qkv")

# Operations that gather or split a parameter. The backward pass keeps none of their results.
_NOT_KEPT = {"sharding_constraint", "convert_element_type", "reshape", "slice", "squeeze"}


class FrozenParam(nnx.Param):
    """A parameter that backdoor distillation leaves alone: norm layers and the logit scale."""


def param(
    rngs: nnx.Rngs,
    shape: tuple[int, ...],
    dims: tuple[str, ...],
    init: Callable[..., jax.Array],
    kind: type[nnx.Param] = nnx.Param,
    dtype: jnp.dtype = jnp.float32,
) -> nnx.Param:
    """Declare one parameter; `dims` names each dim of `shape`."""
    assert len(shape) == len(dims), (shape, dims)
    return kind(init(rngs.params(), shape, dtype), dims=dims)


class Declare:
    """Declares the parameters of `stack` copies of a module."""

    def __init__(self, rngs: nnx.Rngs, stack: tuple[int, ...]):
        self.rngs, self.stack = rngs, stack

    def __call__(
        self,
        shape: tuple[int, ...],
        dims: tuple[str, ...],
        init: Callable[..., jax.Array],
        kind: type[nnx.Param] = nnx.Param,
    ) -> nnx.Param:
        """Declare one parameter; `shape` and `dims` are those of a single copy."""
        layers = ("layers",) * len(self.stack)
        return param(self.rngs, self.stack + shape, layers + dims, init, kind)


def normal(std: float) -> Callable[..., jax.Array]:
    """Give the initialiser of CLIP's matrices; each has its own `std`."""
    return nnx.initializers.normal(std)


ZEROS, ONES = nnx.initializers.zeros, nnx.initializers.ones


def linear(spec: str, x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """Multiply by a kernel and add a bias, in the dtype of `x`.

    Gradients of kernel and bias are sums over examples, and so over devices. They are summed in the
    dtype of the parameter, so that no device rounds its part first.

    Args:
        spec: of einsum; every letter of `x` must also be in the kernel or in the result.
        x: of any dtype.
        kernel: f32.
        bias: f32, of the last dims of the result.
    """
    return (_linear if x.dtype == kernel.dtype else _rounded_linear)(spec, x, kernel, bias)


def _linear(spec: str, x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    out = jnp.einsum(spec, x, kernel.astype(x.dtype))
    return out if bias is None else out + bias.astype(x.dtype)


_rounded_linear = jax.custom_vjp(_linear, nondiff_argnums=(0,))


def _linear_forward(spec: str, x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> Any:
    # This calls `_linear`: the custom function would hide its products from the `remat` policy.
    return _linear(spec, x, kernel, bias), (x, kernel, bias)


def _linear_backward(spec: str, kept: tuple, slope: jax.Array) -> Any:
    x, kernel, bias = kept
    of_x, of_kernel, of_out = spec.replace("->", ",").split(",")
    dx = jnp.einsum(f"{of_out},{of_kernel}->{of_x}", slope, kernel.astype(x.dtype))
    dkernel = jnp.einsum(
        f"{of_x},{of_out}->{of_kernel}", x, slope, preferred_element_type=kernel.dtype
    )
    if bias is None:
        return dx, dkernel, None
    return dx, dkernel, slope.sum(tuple(range(slope.ndim - bias.ndim)), dtype=bias.dtype)


_rounded_linear.defvjp(_linear_forward, _linear_backward)


class LayerNorm(nnx.Module):
    """Layer normalisation, in f32 whatever the tower computes in."""

    def __init__(self, width: int, eps: float, rngs: nnx.Rngs, stack: tuple[int, ...] = ()):
        declare = Declare(rngs, stack)
        self.scale = declare((width,), ("norm",), ONES, FrozenParam)
        self.bias = declare((width,), ("norm",), ZEROS, FrozenParam)
        self.eps = eps

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Normalise the last dim, with f32 statistics; the result has the input's dtype."""
        x = x_BTD.astype(jnp.float32)
        mean = x.mean(-1, keepdims=True)
        var = jnp.square(x - mean).mean(-1, keepdims=True)
        x = (x - mean) * jax.lax.rsqrt(var + self.eps)
        x = x * self.scale[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)
        return x.astype(x_BTD.dtype)


class Attention(nnx.Module):
    """Multi-head self-attention, with the three input projections in one matrix product."""

    def __init__(
        self,
        cfg: TowerConfig,
        rngs: nnx.Rngs,
        stack: tuple[int, ...] = (),
        parts: str = "qkv",
    ):
        """Declare the parameters; `parts` names the dim of query, key and value."""
        declare = Declare(rngs, stack)
        d, n, k = cfg.width, cfg.num_heads, cfg.head_width
        in_std = d**-0.5 * (2 * cfg.depth) ** -0.5
        heads = (parts, "heads", "head_width")
        self.qkv_kernel = declare((d, 3, n, k), ("embed", *heads), normal(in_std))
        self.qkv_bias = declare((3, n, k), heads, ZEROS)
        self.out_kernel = declare((n, k, d), ("heads", "head_width", "embed"), normal(d**-0.5))
        self.out_bias = declare((d,), ("embed",), ZEROS)

    def __call__(
        self, x_BTD: jax.Array, mask_BTT: jax.Array | None, query_BSD: jax.Array | None = None
    ) -> jax.Array:
        """Attend where the mask is True, or everywhere if the mask is None.

        Args:
            x_BTD: tokens for keys and values.
            mask_BTT: bool [B, T, T], or [B, S, T] with `query_BSD`.
            query_BSD: tokens for queries; None for all of `x_BTD`.
        """
        d, _, n, k = self.qkv_kernel.shape
        kernel, bias = self.qkv_kernel[...], self.qkv_bias[...]

        def project(x_BTD: jax.Array, part: slice) -> list[jax.Array]:
            # Heads keep their own dim: merging it would gather what the tensor axis shards.
            x_BTXNK = linear("btd,dxnk->btxnk", x_BTD, kernel[:, part], bias[part])
            return [x_BTXNK[..., i, :, :] for i in range(x_BTXNK.shape[-3])]

        if query_BSD is None:
            query_BSD = x_BTD
            q_BSNK, k_BTNK, v_BTNK = project(x_BTD, slice(0, 3))
        else:
            (q_BSNK,), (k_BTNK, v_BTNK) = project(query_BSD, slice(1)), project(x_BTD, slice(1, 3))
        mask = None if mask_BTT is None else mask_BTT[:, None]
        x_BSNK = jax.nn.dot_product_attention(q_BSNK, k_BTNK, v_BTNK, mask=mask)
        out_kernel = self.out_kernel[...].reshape(n * k, d)
        out = linear("bd,df->bf", x_BSNK.reshape(-1, n * k), out_kernel, self.out_bias[...])
        return out.reshape(query_BSD.shape)


def elementwise(function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """Compute an elementwise function in f32, and keep only its slope for the gradient.

    By itself JAX would keep what every operation in it needs, for GELU three times as much.
    """

    @jax.custom_jvp
    def computed(x: jax.Array) -> jax.Array:
        return function(x.astype(jnp.float32)).astype(x.dtype)

    @computed.defjvp
    def _(at: tuple[jax.Array], along: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
        x = at[0].astype(jnp.float32)
        y, slope = (z.astype(at[0].dtype) for z in jax.jvp(function, (x,), (jnp.ones_like(x),)))
        return y, slope * along[0]

    return computed


# GELU is computed as in torch. `jax.nn.gelu` computes 1 - erf(-x) for 1 + erf(x). That takes twice
# the time on CPU, and it differs only where both are nearly 0.
ACTIVATIONS = {
    "gelu": elementwise(lambda x: x * (0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5))),
    "gelu_tanh": elementwise(partial(jax.nn.gelu, approximate=True)),
    "quick_gelu": elementwise(lambda x: x * jax.nn.sigmoid(1.702 * x)),
}


class MLP(nnx.Module):
    """Two linear layers with the tower's activation between them."""

    def __init__(self, cfg: TowerConfig, rngs: nnx.Rngs, stack: tuple[int, ...] = ()):
        declare = Declare(rngs, stack)
        d, f = cfg.width, cfg.mlp_width
        fc2_std = d**-0.5 * (2 * cfg.depth) ** -0.5
        self.fc1_kernel = declare((d, f), ("embed", "mlp"), normal((2 * d) ** -0.5))
        self.fc1_bias = declare((f,), ("mlp",), ZEROS)
        self.fc2_kernel = declare((f, d), ("mlp", "embed"), normal(fc2_std))
        self.fc2_bias = declare((d,), ("embed",), ZEROS)
        self.activation = cfg.activation

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Apply the layers to every token."""
        # Tokens are flattened to one list, which halves the time of the gradient on CPU.
        x = x_BTD.reshape(-1, x_BTD.shape[-1])
        x = linear("bd,df->bf", x, self.fc1_kernel[...], self.fc1_bias[...])
        x = ACTIVATIONS[self.activation](x)
        x = linear("bf,fd->bd", x, self.fc2_kernel[...], self.fc2_bias[...])
        return x.reshape(x_BTD.shape)


class Block(nnx.Module):
    """One pre-norm transformer layer; sub-modules keep the source's names."""

    def __init__(self, cfg: TowerConfig, rngs: nnx.Rngs, stack: tuple[int, ...] = ()):
        self.layer_norm1 = LayerNorm(cfg.width, cfg.norm_eps, rngs, stack)
        self.self_attn = Attention(cfg, rngs, stack)
        self.layer_norm2 = LayerNorm(cfg.width, cfg.norm_eps, rngs, stack)
        self.mlp = MLP(cfg, rngs, stack)

    def __call__(
        self,
        x_BTD: jax.Array,
        mask_BTT: jax.Array | None,
        readout_BS: jax.Array | None = None,
    ) -> jax.Array:
        """Apply attention and MLP, and add each to its input.

        With `readout_BS` (int, in 0..T-1) compute only the tokens at these indices: [B, S, D].
        """
        normed_BTD = self.layer_norm1(x_BTD)
        if readout_BS is None:
            x_BTD = x_BTD + self.self_attn(normed_BTD, mask_BTT)
        else:
            at_BS1 = readout_BS[:, :, None]
            if mask_BTT is not None:
                mask_BTT = jnp.take_along_axis(mask_BTT, at_BS1, axis=1)
            query_BSD = jnp.take_along_axis(normed_BTD, at_BS1, axis=1)
            x_BTD = jnp.take_along_axis(x_BTD, at_BS1, axis=1)
            x_BTD = x_BTD + self.self_attn(normed_BTD, mask_BTT, query_BSD)
        return x_BTD + self.mlp(self.layer_norm2(x_BTD))


class Encoder(nnx.Module):
    """`depth` blocks, compiled once and scanned over."""

    def __init__(self, cfg: TowerConfig, rngs: nnx.Rngs):
        self.layers = Block(cfg, rngs, stack=(cfg.depth,))
        self.remat: Remat = cfg.remat

    def __call__(
        self,
        x_BTD: jax.Array,
        mask_BTT: jax.Array | None = None,
        readout_BS: jax.Array | None = None,
    ) -> jax.Array:
        """Run all blocks.

        Args:
            x_BTD: embedded tokens.
            mask_BTT: see `Attention`.
            readout_BS: int [B, S], indices of the tokens to return. The last block computes only
                these tokens, with the same result. This saves a fifth of the tower at 4 layers, and
                a thirtieth at 24.

        Returns:
            [B, T, D], or [B, S, D] with `readout_BS`.
        """
        graphdef, params = nnx.split(self.layers)
        if readout_BS is None:
            return self._scan(graphdef, params, x_BTD, mask_BTT)

        def last(x_BTD, params):
            params = gathered(params, x_BTD.dtype)
            return nnx.merge(graphdef, params)(x_BTD, mask_BTT, readout_BS)

        params, last_params = _without_last(params)
        x_BTD = self._scan(graphdef, params, x_BTD, mask_BTT)
        return rematerialised(last, self.remat, scanned=False)(x_BTD, last_params)

    def all_but_last(self, x_BTD: jax.Array, mask_BTT: jax.Array | None = None) -> jax.Array:
        """Run all blocks but the last; see `__call__`."""
        graphdef, params = nnx.split(self.layers)
        return self._scan(graphdef, _without_last(params)[0], x_BTD, mask_BTT)

    def _scan(
        self,
        graphdef: nnx.GraphDef,
        params: nnx.State,
        x_BTD: jax.Array,
        mask_BTT: jax.Array | None,
    ) -> jax.Array:
        def block(x_BTD, params):
            params = gathered(params, x_BTD.dtype)
            return nnx.merge(graphdef, params)(x_BTD, mask_BTT)

        block = rematerialised(block, self.remat)
        return jax.lax.scan(lambda x, params: (block(x, params), None), x_BTD, params)[0]


def _without_last(params: nnx.State) -> tuple[nnx.State, nnx.State]:
    """Split stacked layers into all but the last, and the last."""
    # One operation, so that gradients are concatenated rather than padded and added.
    leaves, treedef = jax.tree.flatten(params)
    pairs = [jax.lax.split(x, (len(x) - 1, 1)) for x in leaves]
    rest, last = ([pair[i] for pair in pairs] for i in (0, 1))
    return treedef.unflatten(rest), treedef.unflatten([x[0] for x in last])


def rematerialised(
    function: Callable[..., jax.Array],
    remat: Remat,
    *,
    scanned: bool = True,
    dots: Callable[..., Any] = jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
) -> Callable[..., jax.Array]:
    """Make the backward pass recompute what `remat` does not keep.

    The backward pass never keeps gathered parameters. It gathers them again, as otherwise every
    device would hold all of them whole.

    Args:
        function: of arrays.
        remat: see `TowerConfig`.
        scanned: whether the function is the body of a scan. There the compiler cannot merge the
            forward pass and the recomputation; elsewhere a barrier keeps them apart.
        dots: the policy for remat `dots`.
    """
    if remat == "none" and not gathers():
        return function

    def all_but_gathered(primitive: Any, *_: Any, **__: Any) -> bool:
        return primitive.name not in _NOT_KEPT

    policy = {"none": all_but_gathered, "dots": dots, "full": None}[remat]
    return jax.checkpoint(function, policy=policy, prevent_cse=not scanned)
