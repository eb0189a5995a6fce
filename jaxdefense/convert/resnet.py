"""The parameter for each tensor of a CLIP residual network.

Source: openai/CLIP `clip/model.py` (parameter names), the same in open_clip 3.3.0.
Parity: tests/test_resnet.py, round trip bit for bit.
"""

from collections.abc import Iterable

from jaxdefense.clip.config import ResNetConfig
from jaxdefense.clip.resnet import EXPANSION
from jaxdefense.convert.table import Path, Row


def resnet_rows(cfg: ResNetConfig, prefix: str = "visual.") -> Iterable[Row]:
    """List every tensor of the image tower, except the counts `num_batches_tracked`.

    Args:
        cfg: the tower.
        prefix: prefix of its keys.
    """
    w, at = cfg.width, ("vision",)
    for i, (din, dout) in enumerate(((3, w // 2), (w // 2, w // 2), (w // 2, w)), start=1):
        yield _square(f"{prefix}conv{i}", din, dout, (*at, f"conv{i}"))
        yield from _norm(f"{prefix}bn{i}", dout, (*at, f"bn{i}"))
    din = w
    for stage, depth in enumerate(cfg.depths):
        inner, name = w * 2**stage, f"layer{stage + 1}"
        for i in range(depth):
            path, index = ((*at, name, "rest"), (i - 1,)) if i else ((*at, name, "first"), ())
            yield from _block(f"{prefix}{name}.{i}.", din, inner, path, index)
            din = EXPANSION * inner
    yield from _pool(cfg, f"{prefix}attnpool.", (*at, "attnpool"))


def _block(prefix: str, din: int, inner: int, path: Path, index: tuple[int, ...]) -> Iterable[Row]:
    wide = EXPANSION * inner
    yield _point(f"{prefix}conv1", din, inner, (*path, "conv1"), index)
    yield from _norm(f"{prefix}bn1", inner, (*path, "bn1"), index)
    yield _square(f"{prefix}conv2", inner, inner, (*path, "conv2"), index)
    yield from _norm(f"{prefix}bn2", inner, (*path, "bn2"), index)
    yield _point(f"{prefix}conv3", inner, wide, (*path, "conv3"), index)
    yield from _norm(f"{prefix}bn3", wide, (*path, "bn3"), index)
    if path[-1] == "first":
        yield _point(f"{prefix}downsample.0", din, wide, (*path, "downsample"))
        yield from _norm(f"{prefix}downsample.1", wide, (*path, "downsample_bn"))


def _pool(cfg: ResNetConfig, prefix: str, path: Path) -> Iterable[Row]:
    d, n, k, e = cfg.pool_width, cfg.num_heads, cfg.head_width, cfg.embed
    num_positions = (cfg.image_size // 32) ** 2 + 1
    yield Row(f"{prefix}positional_embedding", (num_positions, d), (*path, "positional_embedding"))
    for name in "qkv":
        yield Row(
            f"{prefix}{name}_proj.weight",
            (d, d),
            (*path, f"{name}_kernel"),
            load=lambda x: x.T.reshape(d, n, k),
            store=lambda x: x.reshape(d, d).T,
        )
        yield Row(
            f"{prefix}{name}_proj.bias",
            (d,),
            (*path, f"{name}_bias"),
            load=lambda x: x.reshape(n, k),
            store=lambda x: x.reshape(d),
        )
    yield Row(
        f"{prefix}c_proj.weight",
        (e, d),
        (*path, "c_kernel"),
        load=lambda x: x.T.reshape(n, k, e),
        store=lambda x: x.reshape(d, e).T,
    )
    yield Row(f"{prefix}c_proj.bias", (e,), (*path, "c_bias"))


def _square(name: str, din: int, dout: int, path: Path, index: tuple[int, ...] = ()) -> Row:
    return Row(
        f"{name}.weight",
        (dout, din, 3, 3),
        path,
        index,
        load=lambda x: x.transpose(2, 3, 1, 0),
        store=lambda x: x.transpose(3, 2, 0, 1),
    )


def _point(name: str, din: int, dout: int, path: Path, index: tuple[int, ...] = ()) -> Row:
    return Row(
        f"{name}.weight",
        (dout, din, 1, 1),
        path,
        index,
        load=lambda x: x[:, :, 0, 0].T,
        store=lambda x: x.T[:, :, None, None],
    )


def _norm(name: str, width: int, path: Path, index: tuple[int, ...] = ()) -> Iterable[Row]:
    for key, ours in (
        ("weight", "scale"),
        ("bias", "bias"),
        ("running_mean", "mean"),
        ("running_var", "var"),
    ):
        yield Row(f"{name}.{key}", (width,), (*path, ours), index)
