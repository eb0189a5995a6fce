"""Embedding many texts and photos with a model: packed, in blocks of one shape, on the mesh.

One forward serves everything that is measured; it is the one training runs.
Parity: tests/test_idia.py, equal to embedding one text at a time, 1e-5.
"""

import collections
import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import Progress

from jaxdefense.cache import OFF, ArrayCache
from jaxdefense.clip.model import CLIP
from jaxdefense.clip.text import Text
from jaxdefense.clip.tokenizer import Tokenizer
from jaxdefense.config import ModelConfig
from jaxdefense.convert.directory import ModelDirectory, read_model_directory, resolve_dtype, some
from jaxdefense.data import packing
from jaxdefense.data.images import ImageProcessor, Loader, read_processor
from jaxdefense.data.sources import Photo, photo_digest
from jaxdefense.data.variants import photo_form
from jaxdefense.sharding import (
    ShardingRules,
    batch_sharding,
    make_mesh,
    num_batch_parts,
    sharding_tree,
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

    def __init__(
        self,
        cfg: ModelConfig,
        batch: int,
        console: Console,
        mesh: Mesh | None = None,
        cache: ArrayCache | None = None,
    ):
        """Load the model.

        Args:
            cfg: which.
            batch: photos, or packed text rows, at a time; made a multiple of the mesh's parts.
            console: for progress.
            mesh: of devices, all of them along `data` if None.
            cache: where embeddings are kept and looked up, if anywhere.

        Raises:
            ValueError: the model directory is wrong; the mesh does not divide the model's sizes; or
                it has no such tower, once it is used.
        """
        self.directory: ModelDirectory = read_model_directory(cfg.path)
        self._cfg, self._console = cfg, console
        self.mesh, rules = mesh or make_mesh(), ShardingRules()
        self._cache = cache or ArrayCache(OFF, console)
        self._parts = num_batch_parts(self.mesh, rules)
        self._batch = batch
        self._place = batch_sharding(self.mesh, rules)
        model = self.directory.load(cfg.dtype)
        self._graphdef, params = nnx.split(model)
        self._params = jax.device_put(params, sharding_tree(params, self.mesh, rules))
        self._digests: dict[str, str] = {}
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

    def digest(self, tower: Literal["text", "vision"]) -> str:
        """Hash an encoder and how it is computed, whatever model it is part of."""
        if tower not in self._digests:
            cfg = getattr(self.directory.cfg.with_compute(resolve_dtype(self._cfg.dtype)), tower)
            total = hashlib.sha256(f"{cfg} {jax.default_backend()}".encode())
            for path, value in sorted(nnx.to_flat_state(self._params), key=lambda x: str(x[0])):
                if path[0] == tower:
                    total.update(f"{path} {value.shape}".encode())
                    total.update(np.asarray(jax.device_get(value[...])).tobytes())
            self._digests[tower] = total.hexdigest()
        return self._digests[tower]

    def tokens(self, captions: Sequence[np.ndarray], what: str = "texts") -> np.ndarray:
        """Embed tokenised captions; f32 [len(captions), E], unit length."""
        return self._packed(captions, what, partial(packing.pack_text, list(captions)))

    def texts(self, texts: Sequence[str], what: str = "texts") -> np.ndarray:
        """Embed texts; f32 [len(texts), E], unit length."""
        return self.tokens(self.tokenizer.encode(texts), what)

    def prompts(self, groups: Sequence[Sequence[str]], what: str = "prompts") -> np.ndarray:
        """Embed groups of texts that begin alike, the beginning but once a row.

        The device program is the same for any of them, so that they may come in many calls.

        Args:
            groups: all of one size.
            what: to call them.

        Returns:
            f32 [len(groups), texts in a group, E], unit length.
        """
        tokens = [self.tokenizer.encode(texts) for texts in groups]
        flat = [caption for group in tokens for caption in group]
        assert self.directory.cfg.text
        if not self.directory.cfg.text.packable:
            return self.tokens(flat, what).reshape(len(groups), -1, self.embed)

        out_NE = self._packed(flat, what, partial(packing.pack_prompts, tokens))
        return out_NE.reshape(len(groups), -1, out_NE.shape[-1])

    def _packed(
        self,
        captions: Sequence[np.ndarray],
        what: str,
        pack: Callable[[int], tuple[Text, packing.Layout]],
    ) -> np.ndarray:
        """Embed captions that `pack` lays into rows of a length, unless they were before."""
        cfg = self.directory.cfg.text
        assert cfg
        key = self._text_key(captions)
        if key and (cached := self._cache.get(key)) is not None:
            return cached
        # Captions of a tower that cannot pack come padded: each is a row.
        row_length = cfg.context_length
        if cfg.packable:
            row_length = packing.default_row_length(row_length)
        text, layout = pack(row_length)
        num_slots = text.readout_RS.shape[1]

        def dispatch(start: int, batch: int) -> jax.Array:
            block = Text(*(padded(x[start : start + batch], batch) for x in text))
            return _embed_text(self._graphdef, self._params, jax.device_put(block, self._place))

        blocks = self._blocks(dispatch, layout.num_rows, f"{len(captions)} {what}")
        block_RSE = np.concatenate(list(blocks))
        flat = block_RSE.reshape(-1, block_RSE.shape[-1])
        out_NE = unit(flat[layout.row_n * num_slots + layout.slot_n])
        check_embeddings(out_NE, what)
        if key:
            self._cache.put(key, out_NE)
        return out_NE

    def _text_key(self, captions: Sequence[np.ndarray]) -> str:
        """Name these captions' embeddings in the cache; "" if they are not kept."""
        if not self._cache.on or not self._cache.keeps(self.digest("text")):
            return ""
        total = hashlib.sha256(self.digest("text").encode())
        total.update(np.array([len(tokens) for tokens in captions], np.int32).tobytes())
        total.update(np.concatenate(captions).astype(np.int32).tobytes())
        return f"texts-{total.hexdigest()}"

    def photos(self, photos: Sequence[Photo], what: str = "photos") -> np.ndarray:
        """Decode and embed photos; f32 [len(photos), E], unit length.

        Raises:
            ValueError: the model has no image encoder; or a photo cannot be read.
        """
        return self.readable_photos(photos, 0, what)[0]

    def readable_photos(
        self, photos: Sequence[Photo], max_corrupt: int, what: str = "photos", form: str = ""
    ) -> tuple[np.ndarray, np.ndarray]:
        """Decode and embed those photos that can be read.

        Args:
            photos: at least one.
            max_corrupt: how many may be broken; they are named on the console.
            what: to call them.
            form: of `PHOTO_FORMS`, which they are put in first; "" for as they are.

        Returns:
            f32 [those read, E], unit length; bool [len(photos)], which those are.

        Raises:
            ValueError: see `photos`; or more are broken, or all.
        """
        key = self._photo_key(photos, form)
        if key and (cached := self._cache.get(key)) is not None:
            return cached, np.ones(len(photos), bool)
        blocks = list(self._photo_blocks(photos, max_corrupt, what, form))
        out_BE = unit(np.concatenate([block_BE for block_BE, _ in blocks]))
        check_embeddings(out_BE, what)
        read_B = np.concatenate([read_B for _, read_B in blocks])
        if key and read_B.all():
            self._cache.put(key, out_BE)
        return out_BE, read_B

    def _photo_key(self, photos: Sequence[Photo], form: str) -> str:
        """Name these photos' embeddings in the cache; "" if they are not kept."""
        if not self._cache.on or self.directory.cfg.vision is None:
            return ""
        if not self._cache.keeps(self.digest("vision")):
            return ""
        total = hashlib.sha256(self.digest("vision").encode())
        siglip, side = self.directory.cfg.siglip, self.directory.cfg.vision.image_size
        processor = read_processor(self.directory.path, side, siglip)
        total.update(f"{processor}{form}".encode())
        try:
            for photo in photos:
                total.update(photo_digest(photo).encode())
        except ValueError:  # whoever reads the photo says so
            return ""
        return f"photos-{total.hexdigest()}"

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
        self, photos: Sequence[Photo], max_corrupt: int, what: str, form: str = ""
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
            if form:
                image_BHWC = np.stack([photo_form(image_HWC, form) for image_HWC in image_BHWC])
            image_BHWC = jax.device_put(padded(image_BHWC, batch), self._place)
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


def padded(x: jax.Array | np.ndarray, num: int, value: float = 0) -> np.ndarray:
    """Fill the first dim up to `num` with a value."""
    return np.concatenate([x, np.full((num - len(x), *x.shape[1:]), value, x.dtype)])
