"""Embedding many texts and photos with a model: packed, in blocks of one shape, on the mesh.

One forward serves everything that is measured; it is the one training runs.
Parity: tests/test_idia.py, equal to embedding one text at a time, 1e-5.
"""

import collections
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import numpy as np
from flax import nnx
from rich.console import Console
from rich.progress import Progress

from jaxdefense.clip.model import CLIP
from jaxdefense.clip.text import Text
from jaxdefense.clip.tokenizer import Tokenizer
from jaxdefense.config import ModelConfig
from jaxdefense.convert.directory import ModelDirectory, read_model_directory, some
from jaxdefense.data import packing
from jaxdefense.data.images import ImageProcessor, Loader, read_processor
from jaxdefense.data.sources import Photo
from jaxdefense.sharding import (
    ShardingRules,
    batch_sharding,
    make_mesh,
    num_batch_parts,
    replicated,
)


@partial(jax.jit, static_argnums=0)
def _embed_text(graphdef: nnx.GraphDef, params: nnx.State, text: Text) -> jax.Array:
    model: CLIP = nnx.merge(graphdef, params)
    assert model.text
    return model.text(text)


@partial(jax.jit, static_argnums=(0, 2))
def _embed_image(
    graphdef: nnx.GraphDef, params: nnx.State, processor: ImageProcessor, image_BHWC: jax.Array
) -> jax.Array:
    model: CLIP = nnx.merge(graphdef, params)
    assert model.vision
    return model.vision(processor.normalise(image_BHWC))


def unit(x: np.ndarray) -> np.ndarray:
    """Scale the last dim to length 1."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


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

    @property
    def embed(self) -> int:
        """Size of the model's embeddings."""
        tower = self.directory.cfg.vision or self.directory.cfg.text
        assert tower
        return tower.embed

    def tokens(self, captions: Sequence[np.ndarray], what: str = "texts") -> np.ndarray:
        """Embed tokenised captions; f32 [len(captions), E], unit length."""
        cfg = self.directory.cfg.text
        assert cfg
        # Captions of a tower that cannot pack come padded: each is a row.
        row_length = cfg.context_length
        if cfg.packable:
            row_length = packing.default_row_length(row_length)
        text, layout = packing.pack_text(list(captions), row_length)
        num_slots = text.readout_RS.shape[1]

        def dispatch(start: int, batch: int) -> jax.Array:
            block = Text(*(_padded(x[start : start + batch], batch) for x in text))
            return _embed_text(self._graphdef, self._params, jax.device_put(block, self._place))

        blocks = self._blocks(dispatch, layout.num_rows, f"{len(captions)} {what}")
        block_RSE = np.concatenate(list(blocks))
        flat = block_RSE.reshape(-1, block_RSE.shape[-1])
        out_NE = unit(flat[layout.row_n * num_slots + layout.slot_n])
        check_embeddings(out_NE, what)
        return out_NE

    def texts(self, texts: Sequence[str], what: str = "texts") -> np.ndarray:
        """Embed texts; f32 [len(texts), E], unit length."""
        return self.tokens(self.tokenizer.encode(texts), what)

    def photos(self, photos: Sequence[Photo], what: str = "photos") -> np.ndarray:
        """Decode and embed photos; f32 [len(photos), E], unit length.

        Raises:
            ValueError: the model has no image encoder; or a photo cannot be read.
        """
        return self.readable_photos(photos, 0, what)[0]

    def readable_photos(
        self, photos: Sequence[Photo], max_corrupt: int, what: str = "photos"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Decode and embed those photos that can be read.

        Args:
            photos: at least one.
            max_corrupt: how many may be broken; they are named on the console.
            what: to call them.

        Returns:
            f32 [those read, E], unit length; bool [len(photos)], which those are.

        Raises:
            ValueError: see `photos`; or more are broken, or all.
        """
        blocks = list(self._photo_blocks(photos, max_corrupt, what))
        out_BE = unit(np.concatenate([block_BE for block_BE, _ in blocks]))
        check_embeddings(out_BE, what)
        return out_BE, np.concatenate([read_B for _, read_B in blocks])

    def mean_photo(self, photos: Sequence[Photo], max_corrupt: int) -> np.ndarray:
        """Average the embeddings of photos, not normalised; f32 [E]. See `readable_photos`."""
        total_E, num, some_BE = np.zeros(1), 0, np.empty((0, 1))
        for some_BE, _ in self._photo_blocks(photos, max_corrupt, "photos of people"):
            total_E = total_E + some_BE.sum(0, dtype=np.float64)
            num += len(some_BE)
        check_embeddings(some_BE, "photos of people")
        mean_E = (total_E / num).astype(np.float32)
        check_embeddings(mean_E[None], "people, on average")
        return mean_E

    def _photo_blocks(
        self, photos: Sequence[Photo], max_corrupt: int, what: str
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Embed photos in blocks: those that could be read, and which they are."""
        vision = self.directory.cfg.vision
        if vision is None:
            raise ValueError(f"`{self.directory.path}` has no image encoder.")
        siglip = self.directory.cfg.siglip
        processor = read_processor(self.directory.path, vision.image_size, siglip)
        loader, reads = Loader(processor, max_corrupt), collections.deque()

        def dispatch(start: int, batch: int) -> jax.Array:
            image_BHWC, read_B = loader.load_all(photos[start : start + batch])
            reads.append(read_B)
            image_BHWC = jax.device_put(_padded(image_BHWC, batch), self._place)
            return _embed_image(self._graphdef, self._params, processor, image_BHWC)

        for block_BE in self._blocks(dispatch, len(photos), f"{len(photos)} {what}"):
            read_B = reads.popleft()
            yield block_BE[: len(read_B)][read_B], read_B
        if loader.corrupt:
            self._console.print(
                f"skipped, as they cannot be read: {some(loader.corrupt)}", markup=False
            )
        if len(loader.corrupt) == len(photos):
            raise ValueError(f"none of {len(photos)} {what} can be read.")

    def _blocks(
        self, dispatch: Callable[[int, int], jax.Array], num: int, what: str
    ) -> Iterator[np.ndarray]:
        """Run over `num` rows in blocks; the device computes one while the host makes the next."""
        assert num, "nothing to embed"
        batch = min(self._batch, num)
        batch = -(-batch // self._parts) * self._parts
        pending: jax.Array | None = None
        with self._progress() as progress:
            task = progress.add_task(f"embedding {what}", total=num)
            for start in range(0, num, batch):
                block = dispatch(start, batch)
                if pending is not None:
                    yield np.asarray(jax.device_get(pending))
                pending = block
                progress.update(task, completed=min(start + batch, num))
            assert pending is not None
            yield np.asarray(jax.device_get(pending))

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
