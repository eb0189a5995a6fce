"""Where arrays live: mesh axes, and the one table from logical dims to them.

No other file writes a PartitionSpec. Parameters declare their logical dims (`clip/layers.py`);
batches name theirs here.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DATA, FSDP, TENSOR = AXES = ("data", "fsdp", "tensor")

Rule = str | tuple[str, ...] | None

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
        "shared": None,
        "position": None,
        "norm": None,
        "patch_height": None,
        "patch_width": None,
        "colour": None,
        # A convolution mixes all channels, and where its kernel is cut the compiler cuts feature
        # maps along, which are larger: it sends those around instead. Kernels are few enough to be
        # whole everywhere: 1.5 GB in the largest tower.
        "channels_in": None,
        "channels_out": None,
        "kernel_height": None,
        "kernel_width": None,
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
            ValueError: a dim has no rule, or two dims want one mesh axis.
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
        devices: None for all there are.

    Raises:
        ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes, num_devices = [data, fsdp, tensor], len(devices)
    text = f"mesh data={data} fsdp={fsdp} tensor={tensor}"
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ValueError(f"{text}: sizes must be positive, at most one of them -1.")
    if -1 in sizes:
        known = -math.prod(sizes)
        if num_devices % known:
            raise ValueError(f"{text} does not fit {num_devices} devices; {known} must divide it.")
        sizes[sizes.index(-1)] = num_devices // known
    if math.prod(sizes) != num_devices:
        raise ValueError(f"{text} takes {math.prod(sizes)} devices, there are {num_devices}.")
    return Mesh(mesh_utils.create_device_mesh(sizes, devices), AXES)


def sharding_tree(abstract: Any, mesh: Mesh, rules: ShardingRules) -> Any:
    """Give every array of a tree its sharding.

    Args:
        abstract: parameters, or an optimizer state made from them: variables carry their dims,
            any bare leaf is replicated.

    Returns:
        the tree with a sharding in the place of each variable or leaf.

    Raises:
        ValueError: a variable has a dim without rule, or one its mesh axes do not divide.
    """

    def one(path: tuple, leaf: Any) -> NamedSharding:
        if not isinstance(leaf, nnx.Variable):
            return NamedSharding(mesh, PartitionSpec())
        dims = leaf.get_metadata()["dims"]
        sharding = NamedSharding(mesh, rules.spec(*dims))
        check_divides(jax.tree_util.keystr(path), dims, leaf.shape, sharding)
        return sharding

    def is_variable(x: Any) -> bool:
        return isinstance(x, nnx.Variable)

    return jax.tree_util.tree_map_with_path(one, abstract, is_leaf=is_variable)


def check_divides(
    name: str, dims: tuple[str, ...], shape: tuple[int, ...], sharding: NamedSharding
) -> None:
    """Raise ValueError if a mesh axis does not divide the dim that is laid on it."""
    for dim, size, axis in zip(dims, shape, sharding.spec, strict=True):
        axes = (axis,) if isinstance(axis, str) else axis or ()
        parts = math.prod(sharding.mesh.shape[a] for a in axes)
        if size % parts:
            # The model's size is given; only the mesh can give way.
            fit = [str(n) for n in range(parts, 0, -1) if size % n == 0]
            raise ValueError(
                f"`{name}`: dim `{dim}` (={size}) must be divisible by mesh axis "
                f"`{'*'.join(axes)}` (={parts}); make it {' or '.join(fit[:2])}."
            )


def batch_sharding(mesh: Mesh, rules: ShardingRules) -> NamedSharding:
    """Cut arrays of a batch by their first dim, examples or packed rows."""
    return NamedSharding(mesh, rules.spec("batch"))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def num_batch_parts(mesh: Mesh, rules: ShardingRules) -> int:
    """Into how many parts the mesh cuts a batch."""
    axes = rules.rules["batch"]
    axes = (axes,) if isinstance(axes, str) else axes or ()
    return math.prod(mesh.shape[axis] for axis in axes)


def check_parts(name: str, num: int, parts: int) -> None:
    """Raise ValueError if the mesh does not cut so many samples of a batch evenly."""
    if num % parts:
        below = num // parts * parts
        raise ValueError(
            f"`{name}` (={num}) must be divisible by the {parts} parts the mesh cuts a batch into; "
            f"use {f'{below} or ' if below else ''}{below + parts}."
        )
