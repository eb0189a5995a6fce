"""The one table that says where each Hugging Face CLIP tensor lives in our model.

Both directions are read off it: `load` and `store` are the two columns of one row.

Source: transformers `models/clip/modeling_clip.py` (parameter names).
Parity: tests/test_convert.py, round trip bit for bit; tests/test_parity.py.
"""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
from flax import nnx
from numpy.typing import DTypeLike

from jaxdefense.clip.config import CLIPConfig, TowerConfig

Path = tuple[str, ...]


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


def hf_table(cfg: CLIPConfig, bare_text: bool = False) -> list[Row]:
    """List every tensor of a Hugging Face CLIP of this config.

    Args:
        cfg: the model.
        bare_text: the text tower's keys lack the prefix `text_model.`, as recent versions of the
            source save a CLIPTextModel.
    """
    rows: list[Row] = []
    if cfg.text:
        rows += _text(cfg, "" if bare_text else "text_model.")
    if cfg.vision:
        rows += _vision(cfg)
    if cfg.text and cfg.vision:
        rows.append(Row("logit_scale", (), ("logit_scale",)))
    return rows


def host_params(model: nnx.Module) -> dict[Path, np.ndarray]:
    """Fetch a model's parameters by path."""
    flat = nnx.to_flat_state(nnx.state(model))
    return {tuple(map(str, path)): np.asarray(v[...]) for path, v in flat}


def source_tensor(params: dict[Path, np.ndarray], row: Row, dtype: DTypeLike) -> np.ndarray:
    """Give one tensor of the source from our parameters, contiguous; a scalar stays one."""
    return np.array(row.store(params[row.path][row.index]), dtype, order="C")


def ignored_key(key: str) -> bool:
    """Whether a tensor is a constant that old versions of the source saved beside the weights."""
    return key.endswith("embeddings.position_ids")


def _text(cfg: CLIPConfig, prefix: str) -> Iterable[Row]:
    t = cfg.text
    assert t
    d, at = t.width, ("text",)
    embeddings = f"{prefix}embeddings."
    yield Row(f"{embeddings}token_embedding.weight", (t.vocab_size, d), (*at, "token_embedding"))
    yield Row(
        f"{embeddings}position_embedding.weight",
        (t.context_length, d),
        (*at, "position_embedding"),
    )
    yield from _layers(t, f"{prefix}encoder.layers.", at)
    yield from _norm(f"{prefix}final_layer_norm", d, (*at, "final_layer_norm"))
    if t.embed:
        yield _linear("text_projection.weight", d, t.embed, (*at, "projection"))


def _vision(cfg: CLIPConfig) -> Iterable[Row]:
    v = cfg.vision
    assert v
    d, p, at = v.width, v.patch_size, ("vision",)
    embeddings = "vision_model.embeddings."
    num_positions = (v.image_size // p) ** 2 + 1
    yield Row(f"{embeddings}class_embedding", (d,), (*at, "class_embedding"))
    yield Row(
        f"{embeddings}patch_embedding.weight",
        (d, 3, p, p),
        (*at, "patch_embedding"),
        load=lambda x: x.transpose(2, 3, 1, 0),
        store=lambda x: x.transpose(3, 2, 0, 1),
    )
    yield Row(
        f"{embeddings}position_embedding.weight", (num_positions, d), (*at, "position_embedding")
    )
    yield from _norm("vision_model.pre_layrnorm", d, (*at, "pre_layernorm"))  # the source's typo
    yield from _layers(v, "vision_model.encoder.layers.", at)
    yield from _norm("vision_model.post_layernorm", d, (*at, "post_layernorm"))
    yield _linear("visual_projection.weight", d, v.embed, (*at, "projection"))


def _layers(cfg: TowerConfig, prefix: str, at: Path) -> Iterable[Row]:
    d, n, k = cfg.width, cfg.num_heads, cfg.head_width
    at = (*at, "encoder", "layers")
    for i in range(cfg.depth):
        layer = f"{prefix}{i}."
        for norm in ("layer_norm1", "layer_norm2"):
            yield from _norm(f"{layer}{norm}", d, (*at, norm), (i,))
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
        yield Row(
            f"{layer}self_attn.out_proj.weight",
            (d, d),
            (*attn, "out_kernel"),
            (i,),
            load=lambda x: x.T.reshape(n, k, d),
            store=lambda x: x.reshape(d, d).T,
        )
        yield Row(f"{layer}self_attn.out_proj.bias", (d,), (*attn, "out_bias"), (i,))
        for name, din, dout in (("fc1", d, cfg.mlp_width), ("fc2", cfg.mlp_width, d)):
            mlp = (*at, "mlp")
            yield _linear(f"{layer}mlp.{name}.weight", din, dout, (*mlp, f"{name}_kernel"), (i,))
            yield Row(f"{layer}mlp.{name}.bias", (dout,), (*mlp, f"{name}_bias"), (i,))


def _norm(name: str, width: int, path: Path, index: tuple[int, ...] = ()) -> Iterable[Row]:
    yield Row(f"{name}.weight", (width,), (*path, "scale"), index)
    yield Row(f"{name}.bias", (width,), (*path, "bias"), index)


def _linear(key: str, din: int, dout: int, path: Path, index: tuple[int, ...] = ()) -> Row:
    return Row(key, (dout, din), path, index, load=np.transpose, store=np.transpose)
