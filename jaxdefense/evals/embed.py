"""Embedding many texts and photos with a model: packed, in blocks of one shape, on the mesh.

One forward serves everything that is measured; it is the one training runs.
Parity: tests/test_idia.py, equal to embedding one text at a time, 1e-5.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.progress import Progress

from jaxdefense.clip.model import CLIP
from jaxdefense.clip.text import Text
from jaxdefense.clip.tokenizer import Tokenizer
from jaxdefense.config import ModelConfig
from jaxdefense.convert.directory import ModelDirectory, read_model_directory
from jaxdefense.data import packing
from jaxdefense.data.images import ImageProcessor, read_processor
from jaxdefense.sharding import (
    ShardingRules,
    batch_sharding,
    make_mesh,
    num_batch_parts,
    replicated,
)


def unit(x: jax.Array) -> jax.Array:
    """Scale the last dim to length 1."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


@partial(jax.jit, static_argnums=0)
def _embed_text(graphdef: nnx.GraphDef, params: nnx.State, text: Text) -> jax.Array:
    model: CLIP = nnx.merge(graphdef, params)
    assert model.text
    return unit(model.text(text))


@partial(jax.jit, static_argnums=(0, 2))
def _embed_image(
    graphdef: nnx.GraphDef, params: nnx.State, processor: ImageProcessor, image_BHWC: jax.Array
) -> jax.Array:
    model: CLIP = nnx.merge(graphdef, params)
    assert model.vision
    return unit(model.vision(processor.normalise(image_BHWC)))


class Embedder:
    """A model, its tokenizer and its image processor, ready to embed."""

    def __init__(self, cfg: ModelConfig, batch: int, console: Console):
        """Load the model.

        Args:
            cfg: which.
            batch: photos, or packed text rows, at a time; made a multiple of the mesh's parts.
            console: for progress.

        Raises:
            ValueError: the model directory is wrong; or it has no such tower, once it is used.
        """
        self.directory: ModelDirectory = read_model_directory(cfg.path)
        self._cfg, self._console = cfg, console
        mesh, rules = make_mesh(), ShardingRules()
        self._parts = num_batch_parts(mesh, rules)
        self._batch = batch
        self._place = batch_sharding(mesh, rules)
        model = self.directory.load(cfg.dtype)
        self._graphdef, params = nnx.split(model)
        self._params = jax.device_put(params, replicated(mesh))
        self._tokenizer: Tokenizer | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        if self._tokenizer is None:
            self._tokenizer = self.directory.tokenizer(self._cfg.tokenizer)
        return self._tokenizer

    def tokens(self, captions: Sequence[np.ndarray], what: str = "texts") -> np.ndarray:
        """Embed tokenised captions; f32 [len(captions), E], unit length."""
        assert self.directory.cfg.text
        row_length = packing.default_row_length(self.directory.cfg.text.context_length)
        text, layout = packing.pack_text(list(captions), row_length)
        num_slots = text.readout_RS.shape[1]

        def dispatch(start: int, batch: int) -> jax.Array:
            block = Text(*(_padded(x[start : start + batch], batch) for x in text))
            return _embed_text(self._graphdef, self._params, jax.device_put(block, self._place))

        blocks = self._blocks(dispatch, layout.num_rows, f"{len(captions)} {what}")
        out_NE = blocks.reshape(-1, blocks.shape[-1])[layout.row_n * num_slots + layout.slot_n]
        check_embeddings(out_NE, what)
        return out_NE

    def texts(self, texts: Sequence[str], what: str = "texts") -> np.ndarray:
        """Embed texts; f32 [len(texts), E], unit length."""
        return self.tokens(self.tokenizer.encode(texts), what)

    def photos(self, files: Sequence[Path], what: str = "photos") -> np.ndarray:
        """Decode and embed photos; f32 [len(files), E], unit length.

        Raises:
            ValueError: the model has no image encoder; or a file is no photo.
        """
        vision = self.directory.cfg.vision
        if vision is None:
            raise ValueError(f"`{self.directory.path}` has no image encoder.")
        processor = read_processor(self.directory.path, vision.image_size)

        def dispatch(start: int, batch: int) -> jax.Array:
            image_BHWC = _padded(processor.load(files[start : start + batch]), batch)
            image_BHWC = jax.device_put(image_BHWC, self._place)
            return _embed_image(self._graphdef, self._params, processor, image_BHWC)

        out_BE = self._blocks(dispatch, len(files), f"{len(files)} {what}")[: len(files)]
        check_embeddings(out_BE, what)
        return out_BE

    def _blocks(self, dispatch: Callable[[int, int], jax.Array], num: int, what: str) -> np.ndarray:
        """Run over `num` rows in blocks; the device computes one while the host makes the next."""
        batch = min(self._batch, num)
        batch = -(-batch // self._parts) * self._parts
        blocks: list[np.ndarray] = []
        pending: jax.Array | None = None
        with self._progress() as progress:
            task = progress.add_task(f"embedding {what}", total=num)
            for start in range(0, num, batch):
                block = dispatch(start, batch)
                if pending is not None:
                    blocks.append(np.asarray(jax.device_get(pending)))
                pending = block
                progress.update(task, completed=min(start + batch, num))
            assert pending is not None, "nothing to embed"
            blocks.append(np.asarray(jax.device_get(pending)))
        return np.concatenate(blocks)

    def _progress(self) -> Progress:
        quiet = not self._console.is_terminal
        return Progress(console=self._console, transient=True, disable=quiet)


def check_embeddings(x_BE: np.ndarray, what: str) -> None:
    """Raise ValueError if embeddings are such that nothing measured on them means anything."""
    if not np.isfinite(x_BE).all():
        raise ValueError(
            f"the model's embeddings of {what} are not finite; the checkpoint is broken."
        )
    if len(x_BE) > 1 and np.ptp(x_BE, axis=0).max() < 1e-6:
        raise ValueError(f"the model embeds all {what} alike; the checkpoint is broken.")


def _padded(x: jax.Array | np.ndarray, num: int) -> np.ndarray:
    """Fill the first dim up with zeros."""
    return np.concatenate([x, np.zeros((num - len(x), *x.shape[1:]), x.dtype)])
