"""What a conversion table is made of: rows that say where a tensor of a source lives in our model.

Both directions are read off a table: `load` and `store` are the two columns of one row.
"""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
from flax import nnx
from numpy.typing import DTypeLike

Path = tuple[str, ...]

_CONSTANTS = ("attn_mask", "text.attn_mask", "input_resolution", "context_length", "vocab_size")


@dataclasses.dataclass(frozen=True)
class Row:
    """One tensor of the source.

    Fields:
        key: its name there.
        shape: its shape there.
        path: our parameter.
        index: the part of our parameter it fills: () for all of it.
        load: source layout to ours.
        store: ours to source layout.
    """

    key: str
    shape: tuple[int, ...]
    path: Path
    index: tuple[int | slice, ...] = ()
    load: Callable[[np.ndarray], np.ndarray] = lambda x: x
    store: Callable[[np.ndarray], np.ndarray] = lambda x: x


def host_params(model: nnx.Module) -> dict[Path, np.ndarray]:
    """Fetch a model's parameters by path."""
    flat = nnx.to_flat_state(nnx.state(model))
    return {tuple(map(str, path)): np.asarray(v[...]) for path, v in flat}


def source_tensor(params: dict[Path, np.ndarray], row: Row, dtype: DTypeLike) -> np.ndarray:
    """Give one tensor of the source from our parameters, contiguous; a scalar stays one."""
    return np.array(row.store(params[row.path][row.index]), dtype, order="C")


def ignored_key(key: str) -> bool:
    """Whether a tensor is a constant that the source, or old versions of it, saves with weights."""
    return key.endswith(("embeddings.position_ids", ".num_batches_tracked")) or key in _CONSTANTS


def norm(name: str, width: int, path: Path, index: tuple[int, ...] = ()) -> Iterable[Row]:
    """List scale and bias of a normalisation."""
    yield Row(f"{name}.weight", (width,), (*path, "scale"), index)
    yield Row(f"{name}.bias", (width,), (*path, "bias"), index)


def linear(key: str, din: int, dout: int, path: Path, index: tuple[int, ...] = ()) -> Row:
    """Give the row of a matrix that the source keeps as [out, in]."""
    return Row(key, (dout, din), path, index, load=np.transpose, store=np.transpose)
