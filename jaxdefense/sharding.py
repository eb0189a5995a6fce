"""Where arrays live: mesh axes, and the one table from logical dims to them.

No other file writes a PartitionSpec. Parameters declare their logical dims (`clip/layers.py`);
batches name theirs here.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from jaxdefense.errors import InputError

DATA, FSDP, TENSOR = AXES = ("data", "fsdp", "tensor")

Rule = str | tuple[str, ...] | None
Tree = TypeVar("Tree")

_DEFAULT: Mapping[str, Rule] = MappingProxyType(
    {
        "batch": (DATA, FSDP),  # examples and packed rows
        "embed": FSDP,
        "heads": TENSOR,
        "mlp": TENSOR,
        "vocab": TENSOR,
        "layers": None,
        "qkv": None,
        "qkv_fused": None,
        "head_width": None,
        "rank": None,  # of the factors of a student of low rank
        "shared": None,
        "position": None,
        "norm": None,
        "patch_height": None,
        "patch_width": None,
        "colour": None,
        # A convolution mixes all channels. With a sharded kernel the compiler would shard the
        # feature maps too and exchange those, which are larger. Whole kernels fit everywhere: 1.5
        # GB in the largest tower.
        "channels_in": None,
        "channels_out": None,
        "kernel_height": None,
        "kernel_width": None,
        "photos": (DATA, FSDP),  # of the attack, and the candidate texts they are compared with
        "candidates": TENSOR,
        "templates": None,
    }
)


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """Logical dim -> mesh axis, several axes, or None for a dim that is not cut."""

    rules: Mapping[str, Rule] = dataclasses.field(default_factory=lambda: _DEFAULT)

    def __post_init__(self):
        if unknown := set(self.rules) - set(_DEFAULT):
            raise ValueError(
                f"sharding rules for dims that no array has: {sorted(unknown)}; the dims are "
                f"{', '.join(_DEFAULT)}."
            )

    def spec(self, *dims: str) -> PartitionSpec:
        """Give the partition of an array with these dims.

        Raises:
            InputError: a dim has no rule, or two dims want one mesh axis.
        """
        axes = []
        for dim in dims:
            if dim not in self.rules:
                raise ValueError(f"logical dim `{dim}` has no sharding rule.")
            axes.append(self.rules[dim])
        flat = [a for axis in axes for a in ((axis,) if isinstance(axis, str) else axis or ())]
        if len(flat) != len(set(flat)):
            raise ValueError(f"dims {dims} put mesh axis {_repeated(flat)!r} on two of them.")
        return PartitionSpec(*axes)


def _repeated(names: list[str]) -> str:
    return next(name for name in names if names.count(name) > 1)


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """Lay devices out as a mesh; one axis may be -1 and takes what the others leave.

    Args:
        data, fsdp, tensor: sizes.
        devices: None for those of this process.

    Raises:
        InputError: the sizes do not multiply to the number of devices.
    """
    devices = jax.local_devices() if devices is None else devices
    sizes, num_devices = [data, fsdp, tensor], len(devices)
    text = f"mesh data={data} fsdp={fsdp} tensor={tensor}"
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise InputError(f"{text}: sizes must be positive, at most one of them -1.")
    if -1 in sizes:
        known = -math.prod(sizes)
        if num_devices % known:
            raise InputError(f"{text} does not fit {num_devices} devices; {known} must divide it.")
        sizes[sizes.index(-1)] = num_devices // known
    if math.prod(sizes) != num_devices:
        raise InputError(f"{text} takes {math.prod(sizes)} devices, there are {num_devices}.")
    return Mesh(mesh_utils.create_device_mesh(sizes, devices), AXES)


def sharding_tree(abstract: Any, mesh: Mesh, rules: ShardingRules) -> Any:
    """Return the sharding of every array of a tree.

    Args:
        abstract: parameters, or an optimizer state made from them: variables carry their dims,
            any bare leaf is replicated.

    Returns:
        the tree with a sharding in place of each variable or leaf.

    Raises:
        InputError: a variable has a dim without rule, or one its mesh axes do not divide.
    """

    def one(path: tuple, leaf: Any) -> NamedSharding:
        if not isinstance(leaf, nnx.Variable):
            return NamedSharding(mesh, PartitionSpec())
        dims = leaf.get_metadata()["dims"]
        sharding = NamedSharding(mesh, rules.spec(*dims))
        check_divides(jax.tree_util.keystr(path), dims, leaf.shape, sharding)
        return sharding

    return jax.tree_util.tree_map_with_path(one, abstract, is_leaf=_is_variable)


def _is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)


def check_divides(
    name: str, dims: tuple[str, ...], shape: tuple[int, ...], sharding: NamedSharding
) -> None:
    """Raise InputError if a mesh axis does not divide the dim that it shards."""
    for dim, size, axis in zip(dims, shape, sharding.spec, strict=True):
        axes = (axis,) if isinstance(axis, str) else axis or ()
        parts = math.prod(sharding.mesh.shape[a] for a in axes)
        if size % parts:
            # The model's size is fixed; only the mesh can change.
            fit = [str(n) for n in range(parts, 0, -1) if size % n == 0]
            raise InputError(
                f"`{name}`: dim `{dim}` (={size}) must be divisible by mesh axis "
                f"`{'*'.join(axes)}` (={parts}); make it {' or '.join(fit[:2])}."
            )


def batch_sharding(mesh: Mesh, rules: ShardingRules) -> NamedSharding:
    """Shard arrays of a batch by their first dim, examples or packed rows."""
    return NamedSharding(mesh, rules.spec("batch"))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def num_parts(mesh: Mesh, rules: ShardingRules, dim: str) -> int:
    """Number of parts into which the mesh shards a logical dim."""
    axes = rules.rules[dim]
    axes = (axes,) if isinstance(axes, str) else axes or ()
    return math.prod(mesh.shape[axis] for axis in axes)


def num_batch_parts(mesh: Mesh, rules: ShardingRules) -> int:
    """Number of parts into which the mesh shards a batch."""
    return num_parts(mesh, rules, "batch")


def check_parts(name: str, num: int, parts: int) -> None:
    """Raise InputError if the mesh cannot shard this number of samples evenly."""
    if num % parts:
        below = num // parts * parts
        raise InputError(
            f"`{name}` (={num}) must be divisible by the {parts} parts the mesh cuts a batch into; "
            f"use {f'{below} or ' if below else ''}{below + parts}."
        )


# Arrays of several processes


def put(tree: Tree, shardings: Any) -> Tree:
    """Place arrays of the host, the same on every process; each process places its devices' parts.

    Args:
        tree: arrays; of a sharded one, only this process's part is read.
        shardings: the same tree, or a prefix of it.
    """

    def one(sharding: NamedSharding, x: Any) -> jax.Array:
        if sharding.is_fully_addressable or isinstance(x, jax.Array):
            return jax.device_put(x, sharding)
        parts = sharding.addressable_devices_indices_map(x.shape).items()
        arrays = [jax.device_put(x[index], device) for device, index in parts]
        return jax.make_array_from_single_device_arrays(x.shape, sharding, arrays)

    return jax.tree.map(lambda to, part: jax.tree.map(lambda x: one(to, x), part), shardings, tree)


def local_rows(sharding: NamedSharding, num: int) -> np.ndarray:
    """Mark which of `num` rows lie on this process's devices; bool [num]."""
    here = np.zeros(num, bool)
    for index in sharding.addressable_devices_indices_map((num,)).values():
        here[index] = True
    return here


def fetch(tree: Tree) -> Tree:
    """Gather whole arrays on the host of every process, one at a time."""

    def one(x: jax.Array) -> np.ndarray:
        if x.is_fully_addressable or x.is_fully_replicated:
            return jax.device_get(x)
        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(one, tree)


def from_first(x: np.ndarray) -> np.ndarray:
    """Give every process the first one's array; on the others, `x` is any array of its shape."""
    return x if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(x)


# Inside a compiled function

_MESH: ContextVar[tuple[Mesh, ShardingRules] | None] = ContextVar("mesh", default=None)


@contextmanager
def on_mesh(mesh: Mesh, rules: ShardingRules) -> Iterator[None]:
    """Trace a function for a mesh; outside, `gathered` and `look_up` do nothing special."""
    token = _MESH.set((mesh, rules))
    try:
        yield
    finally:
        _MESH.reset(token)


def gathers() -> bool:
    """Whether `gathered` does anything here."""
    return bool(where := _MESH.get()) and where[0].shape[FSDP] > 1


def gathered(params: Tree, dtype: DTypeLike | None = None) -> Tree:
    """Gather parameters that `fsdp` shards, so that inside the step it shards only the batch.

    Otherwise the compiler may gather the activations instead. A layer's gradients are sharded again
    where they are summed, so that a device sums only the part it keeps. Two kinds stay sharded:
    layers in a stack, which are gathered one by one, and the token table, which is never gathered
    (`look_up`).

    Args:
        params: tree of variables.
        dtype: to gather in, None for their own; the results have their own dtype, with rounded
        values.
    """
    if not gathers():
        return params
    where = _MESH.get()
    assert where
    mesh, rules = where

    def one(variable: nnx.Variable) -> nnx.Variable:
        value, dims = variable[...], variable.get_metadata()["dims"]
        stacked = value.ndim == len(dims) and "layers" in dims
        axes = list(rules.spec(*dims[len(dims) - value.ndim :]))
        if stacked or "vocab" in dims or FSDP not in axes:
            return variable
        cut, whole = (
            NamedSharding(mesh, PartitionSpec(*spec))
            for spec in (axes, (None if axis == FSDP else axis for axis in axes))
        )
        # Outside the stack parameters are few and small. For some, summing in parts would exchange
        # more: positions, and those that `tensor` does not shard.
        slope = cut if "layers" in dims else whole
        return variable.replace(_gather_there(value, dtype or value.dtype, whole, slope))

    return jax.tree.map(one, params, is_leaf=_is_variable)


def _gather(x: jax.Array, dtype: DTypeLike, whole: NamedSharding, _: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(x.astype(dtype), whole).astype(x.dtype)


_gather_there = jax.custom_vjp(_gather, nondiff_argnums=(1, 2, 3))


def _gather_forward(x: jax.Array, *args: Any) -> tuple[jax.Array, None]:
    return _gather(x, *args), None


def _gather_backward(_: DTypeLike, whole: NamedSharding, cut: NamedSharding, __, slope) -> Any:
    return (jax.lax.with_sharding_constraint(slope, cut),)


_gather_there.defvjp(_gather_forward, _gather_backward)


def look_up(table_VD: jax.Array, tokens_RT: jax.Array | np.ndarray) -> jax.Array:
    """Read rows of a table; [R, T, D].

    On a mesh every device reads its own columns for all rows of its `fsdp` group, and the devices
    exchange the results: tokens and activations travel, the table stays.
    """
    if not gathers():
        return table_VD[tokens_RT]
    where = _MESH.get()
    assert where
    mesh, rules = where
    batch, columns = rules.spec("batch"), rules.spec("embed")
    group = PartitionSpec(tuple(axis for axis in batch[0] if axis != FSDP))

    def lie(x: Any, spec: PartitionSpec) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

    x_RTD = table_VD[lie(tokens_RT, group)]
    return lie(lie(x_RTD, PartitionSpec(*group, None, *columns)), batch)


def everywhere(x: jax.Array) -> jax.Array:
    """Give every device the whole array."""
    where = _MESH.get()
    return jax.lax.with_sharding_constraint(x, replicated(where[0])) if where else x


def micro_batches(batch: Tree, num: int) -> Tree:
    """Split a batch into micro-batches of neighbours; each device splits its own rows.

    Args:
        batch: arrays whose first dim is examples or packed rows.
        num: micro-batches.

    Returns:
        the same, with a first dim of `num`.
    """
    where = _MESH.get()
    parts = num_batch_parts(*where) if where else 1

    def one(x: jax.Array) -> jax.Array:
        x = x.reshape(parts, num, -1, *x.shape[1:]).swapaxes(0, 1)
        x = x.reshape(num, -1, *x.shape[3:])
        if where is None:
            return x
        mesh, rules = where
        place = NamedSharding(mesh, PartitionSpec(None, *rules.spec("batch")))
        return jax.lax.with_sharding_constraint(x, place)

    return jax.tree.map(one, batch)


def joined_batches(x: jax.Array) -> jax.Array:
    """Join what was made of micro-batches, in the order of the batch.

    Args:
        x: its first dim is micro-batches, its second examples or packed rows.
    """
    where = _MESH.get()
    parts = num_batch_parts(*where) if where else 1
    x = x.reshape(len(x), parts, -1, *x.shape[2:]).swapaxes(0, 1)
    return x.reshape(-1, *x.shape[3:])
