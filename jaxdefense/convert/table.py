"""The rows of a conversion table, each of which maps a tensor of a source to a parameter.

A table serves both directions: `load` and `store` are two columns of one row.
"""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
from flax import nnx
from numpy.typing import DTypeLike

from jaxdefense.clip.config import TextConfig, TowerConfig

Path = tuple[str, ...]

_CONSTANTS = ("attn_mask", "text.attn_mask", "input_resolution", "context_length", "vocab_size")


@dataclasses.dataclass(frozen=True)
class Row:
    """One tensor of the source.

    Fields:
        key: its name in the source.
        shape: its shape in the source.
        path: path of our parameter.
        index: the part of the parameter that it fills; () for all of it.
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
    """Make one tensor of the source from the parameters, contiguous; a scalar stays a scalar."""
    return np.array(row.store(params[row.path][row.index]), dtype, order="C")


def ignored_key(key: str) -> bool:
    """Tell whether a tensor is a constant that some version of the source saves with weights."""
    return key.endswith(("embeddings.position_ids", ".num_batches_tracked")) or key in _CONSTANTS


def norm(name: str, width: int, path: Path, index: tuple[int, ...] = ()) -> Iterable[Row]:
    """List scale and bias of a normalisation."""
    yield Row(f"{name}.weight", (width,), (*path, "scale"), index)
    yield Row(f"{name}.bias", (width,), (*path, "bias"), index)


def linear(key: str, din: int, dout: int, path: Path, index: tuple[int, ...] = ()) -> Row:
    """Return the row of a matrix that the source keeps as [out, in]."""
    return Row(key, (dout, din), path, index, load=np.transpose, store=np.transpose)


def patches(key: str, width: int, size: int, path: Path) -> Row:
    """Return the row of the filter that embeds patches, whose side is `size`."""
    return Row(
        key,
        (width, 3, size, size),
        path,
        load=lambda x: x.transpose(2, 3, 1, 0),
        store=lambda x: x.transpose(3, 2, 0, 1),
    )


def fused_attention(
    cfg: TowerConfig, prefix: str, path: Path, index: tuple[int, ...] = ()
) -> Iterable[Row]:
    """List the tensors of an attention with one tensor for its input projections, as in torch."""
    d, n, k = cfg.width, cfg.num_heads, cfg.head_width
    yield Row(
        f"{prefix}in_proj_weight",
        (3 * d, d),
        (*path, "qkv_kernel"),
        index,
        load=lambda x: x.T.reshape(d, 3, n, k),
        store=lambda x: x.reshape(d, 3 * d).T,
    )
    yield Row(
        f"{prefix}in_proj_bias",
        (3 * d,),
        (*path, "qkv_bias"),
        index,
        load=lambda x: x.reshape(3, n, k),
        store=lambda x: x.reshape(3 * d),
    )
    yield from _attention_out(cfg, prefix, path, index)


def _attention_out(
    cfg: TowerConfig, prefix: str, path: Path, index: tuple[int, ...]
) -> Iterable[Row]:
    d, n, k = cfg.width, cfg.num_heads, cfg.head_width
    yield Row(
        f"{prefix}out_proj.weight",
        (d, d),
        (*path, "out_kernel"),
        index,
        load=lambda x: x.T.reshape(n, k, d),
        store=lambda x: x.reshape(d, d).T,
    )
    yield Row(f"{prefix}out_proj.bias", (d,), (*path, "out_bias"), index)


def text_tower(t: TextConfig, prefix: str) -> Iterable[Row]:
    """List a text tower's tensors up to its projection; CLIP and SigLIP name them alike."""
    d, at, embeddings = t.width, ("text",), f"{prefix}embeddings."
    yield Row(f"{embeddings}token_embedding.weight", (t.vocab_size, d), (*at, "token_embedding"))
    yield Row(
        f"{embeddings}position_embedding.weight",
        (t.context_length, d),
        (*at, "position_embedding"),
    )
    yield from layers(t, f"{prefix}encoder.layers.", at)
    yield from norm(f"{prefix}final_layer_norm", d, (*at, "final_layer_norm"))


def layers(cfg: TowerConfig, prefix: str, at: Path) -> Iterable[Row]:
    """List the tensors of a tower's transformer layers; CLIP and SigLIP name them alike."""
    d, n, k = cfg.width, cfg.num_heads, cfg.head_width
    at = (*at, "encoder", "layers")
    for i in range(cfg.depth):
        layer = f"{prefix}{i}."
        for name in ("layer_norm1", "layer_norm2"):
            yield from norm(f"{layer}{name}", d, (*at, name), (i,))
        attn = (*at, "self_attn")
        for j, name in enumerate(("q_proj", "k_proj", "v_proj")):
            yield Row(
                f"{layer}self_attn.{name}.weight",
                (d, d),
                (*attn, "qkv_kernel"),
                (i, slice(None), j),
                load=lambda x: x.T.reshape(d, n, k),
                store=lambda x: x.reshape(d, d).T,
            )
            yield Row(
                f"{layer}self_attn.{name}.bias",
                (d,),
                (*attn, "qkv_bias"),
                (i, j),
                load=lambda x: x.reshape(n, k),
                store=lambda x: x.reshape(d),
            )
        yield from _attention_out(cfg, f"{layer}self_attn.", attn, (i,))
        for name, din, dout in (("fc1", d, cfg.mlp_width), ("fc2", cfg.mlp_width, d)):
            mlp = (*at, "mlp")
            yield linear(f"{layer}mlp.{name}.weight", din, dout, (*mlp, f"{name}_kernel"), (i,))
            yield Row(f"{layer}mlp.{name}.bias", (dout,), (*mlp, f"{name}_bias"), (i,))
