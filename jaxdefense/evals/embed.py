"""Embedding many texts and photos with a model: packed, in blocks of one shape, on the mesh.

Every measurement uses the forward pass that training runs. On a mesh of several processes, each
process decodes the photos of its own devices, and all processes get all embeddings.
Parity: tests/test_idia.py, equal to embedding one text at a time, 1e-5.
"""

import copy
import functools
import hashlib
import logging
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jaxdefense.cache import OFF, ArrayCache
from jaxdefense.clip.config import TextConfig, VisionConfig
from jaxdefense.clip.model import CLIP
from jaxdefense.clip.text import Text, plain_text
from jaxdefense.clip.tokenizer import Tokenizer
from jaxdefense.clip.vision import VisionTower, mean_patch
from jaxdefense.config import ModelConfig
from jaxdefense.convert.directory import ModelDirectory, read_model_directory, resolve_dtype
from jaxdefense.data import packing
from jaxdefense.data.images import ImageProcessor, Loader, read_processor
from jaxdefense.data.sources import Photo, photo_digest
from jaxdefense.data.variants import photo_form
from jaxdefense.distributed import first, on_first
from jaxdefense.errors import InputError
from jaxdefense.log import Progress
from jaxdefense.sharding import (
    ShardingRules,
    batch_sharding,
    from_first,
    gathered,
    local_rows,
    make_mesh,
    num_batch_parts,
    on_mesh,
    put,
    replicated,
    sharding_tree,
)
from jaxdefense.words import some

logger = logging.getLogger(__name__)

POOLED = "pooled"
# By default, accelerators multiply float32 with fewer bits.
_WHOLE_DIGITS = partial(jax.default_matmul_precision, "highest")


@partial(jax.jit, static_argnums=(0, 1))
def _embed_text(mesh: Mesh, graphdef: nnx.GraphDef, params: nnx.State, text: Text) -> jax.Array:
    with on_mesh(mesh, ShardingRules()), _WHOLE_DIGITS():
        model: CLIP = nnx.merge(graphdef, gathered(params))
        assert model.text
        return jax.lax.with_sharding_constraint(model.text(text), replicated(mesh))


# What is read of photos: the embedding; of the patches before the last layer the mean, or all.
Level = Literal["pooled", "penultimate", "patches"]


@partial(jax.jit, static_argnums=(0, 1, 3, 5))
def _embed_image(
    mesh: Mesh,
    graphdef: nnx.GraphDef,
    params: nnx.State,
    processor: ImageProcessor,
    photos: tuple[jax.Array, jax.Array],
    level: Level = "pooled",
) -> tuple[jax.Array, jax.Array]:
    """Embed photos; also return to every process which of them could be read."""
    image_BHWC, read_B = photos
    with on_mesh(mesh, ShardingRules()), _WHOLE_DIGITS():
        model: CLIP = nnx.merge(graphdef, gathered(params))
        assert model.vision
        image_BHWC = processor.normalise(image_BHWC)
        if level == "pooled":
            out_BE = model.vision(image_BHWC)
        else:
            assert isinstance(model.vision, VisionTower)
            out_BE = model.vision.penultimate(image_BHWC)
            if level == "penultimate":
                out_BE = mean_patch(out_BE)
        return jax.lax.with_sharding_constraint((out_BE, read_B), replicated(mesh))


@partial(jax.jit, static_argnums=(0, 1, 4))
def _text_states(
    mesh: Mesh, graphdef: nnx.GraphDef, params: nnx.State, text: Text, level: str
) -> jax.Array:
    """Encode all positions of captions, one a row; see `defense.text.text_terms` for the level."""
    with on_mesh(mesh, ShardingRules()), _WHOLE_DIGITS():
        model: CLIP = nnx.merge(graphdef, gathered(params))
        assert model.text
        states = model.text.hidden if level == "hidden" else model.text.penultimate
        return jax.lax.with_sharding_constraint(states(text), replicated(mesh))


def unit(x: np.ndarray) -> np.ndarray:
    """Scale the last dim to length 1."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def processor_of(
    directory: ModelDirectory, note: Callable[[str], object] = lambda _: None
) -> ImageProcessor:
    """Read the image processor of a model; see `read_processor`.

    Raises:
        InputError: the model has no image encoder, or its files ask for other steps.
    """
    cfg, path = directory.cfg, directory.path
    if cfg.vision is None:
        raise InputError(f"`{path}` has no image encoder.")
    return read_processor(path, cfg.vision.image_size, cfg.siglip, note, directory.layout)


def to_compute(model: str | os.PathLike[str] | ModelConfig) -> ModelConfig:
    """Give the settings of a model; one that is named alone computes in float32."""
    return model if isinstance(model, ModelConfig) else ModelConfig(os.fspath(model)).measured()


class Embedder:
    """A model, its tokenizer and its image processor, ready to embed."""

    def __init__(
        self,
        cfg: str | os.PathLike[str] | ModelConfig,
        batch: int = 256,
        mesh: Mesh | None = None,
        cache: ArrayCache | None = None,
        level: str = POOLED,
        image_level: str = POOLED,
    ):
        """Load the model.

        Args:
            cfg: model to load: its settings; or what `--model` takes, to compute in float32.
            batch: number of photos or packed text rows at a time; rounded up to a multiple of the
                mesh's parts.
            mesh: mesh of devices; None for all devices of this process along `data`. If it spans
                several processes, all of them must make the same calls.
            cache: cache of embeddings, which the first process reads and writes; None for no
                cache.
            level: what `tokens` gives of captions, see `TextTrainConfig`; all but embeddings are
                large, and kept by no cache.
            image_level: what is read of photos, see `ImageTrainConfig`; at penultimate a photo's
                embedding is the mean of its patches.

        Raises:
            InputError: the model directory is wrong, or the mesh does not divide the model's sizes.
                Methods raise it later if the model lacks a tower that they use.
        """
        self._cfg = cfg = to_compute(cfg)
        self.directory: ModelDirectory = read_model_directory(cfg.path, note=logger.info)
        self.level, self.image_level = level, image_level
        if image_level != POOLED and not isinstance(self.directory.cfg.vision, VisionConfig):
            raise InputError(f"`{cfg.path}` has no image encoder of patches to compare.")
        self.mesh, rules = mesh or make_mesh(), ShardingRules()
        self._cache = cache or ArrayCache(OFF)
        self._parts = num_batch_parts(self.mesh, rules)
        self._batch = batch
        self._place = batch_sharding(self.mesh, rules)
        with Progress(f"loading {self.directory.source}"):
            model = self.directory.load(cfg.dtype)
        self._graphdef, params = nnx.split(model)
        self._several = not self._place.is_fully_addressable
        self._digests: dict[str, str] = {}
        if self._cache.on and self._several and first():  # before the parameters are sharded
            self._digests = {tower: self._digest(params, tower) for tower in ("text", "vision")}
        self._params = put(params, sharding_tree(params, self.mesh, rules))
        self._tokenizer: Tokenizer | None = None

    def with_encoder(self, which: Literal["text", "vision"], tower: nnx.Module) -> "Embedder":
        """Return the same model with another encoder of the same structure.

        Args:
            which: encoder to replace.
            tower: new encoder, sharded as this model's is; the result uses no cache.
        """
        flat = dict(nnx.to_flat_state(self._params))
        for path, value in nnx.to_flat_state(nnx.split(tower)[1]):
            flat[which, *path] = value
        return self.with_params(nnx.from_flat_state(flat))

    @property
    def graphdef(self) -> nnx.GraphDef:
        """Structure of the model."""
        return self._graphdef

    @property
    def params(self) -> nnx.State:
        """Parameters of the model, f32, sharded over the mesh."""
        return self._params

    def with_params(self, params: nnx.State) -> "Embedder":
        """Return the same model with other parameters, laid out as `params`; it uses no cache."""
        other = copy.copy(self)
        other._params = params
        other._digests, other._cache = {}, ArrayCache(OFF)
        return other

    @functools.cached_property
    def processor(self) -> ImageProcessor:
        """The model's image processor.

        Raises:
            InputError: the model has no image encoder, or its files ask for other steps.
        """
        return processor_of(self.directory, logger.info)

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
        return tower.embed or tower.width

    @property
    def dtype(self) -> str:
        """Dtype that the model computes in."""
        return resolve_dtype(self._cfg.dtype)

    def digest(self, tower: Literal["text", "vision"]) -> str:
        """Hash an encoder and how it computes, independent of the model it belongs to."""
        if tower not in self._digests:
            self._digests[tower] = self._digest(self._params, tower)
        return self._digests[tower]

    def _digest(self, params: nnx.State, tower: Literal["text", "vision"]) -> str:
        cfg = getattr(self.directory.cfg.with_compute(self.dtype), tower)
        total = hashlib.sha256(f"{cfg} {jax.default_backend()}".encode())
        for path, value in sorted(nnx.to_flat_state(params), key=lambda x: str(x[0])):
            if path[0] == tower:
                total.update(f"{path} {value.shape}".encode())
                total.update(np.asarray(jax.device_get(value[...])).tobytes())
        return total.hexdigest()

    def _kept(
        self, name: Callable[[], str]
    ) -> tuple[np.ndarray | None, Callable[[np.ndarray], None]]:
        """Look up embeddings by the key from `name`; also return a function that keeps them."""
        # The first process uses the cache for all. The key is "" for embeddings that are not kept.
        key, found = "", None

        def look() -> list[int] | None:
            nonlocal key, found
            key = name() if self._cache.on else ""
            found = self._cache.get(key) if key else None
            return None if found is None else list(found.shape)

        shape = on_first(look) if self._several else look()

        def keep(x: np.ndarray) -> None:
            if key:  # set in the first process only
                self._cache.put(key, x)

        if shape is not None and self._several:
            found = from_first(np.zeros(shape, np.float32) if found is None else found)
        return found, keep

    def tokens(self, captions: Sequence[np.ndarray], what: str = "texts") -> np.ndarray:
        """Embed tokenised captions; f32 [len(captions), E], unit length.

        At another level than pooled, each is the states of all T positions: [len(captions), T * D].
        """
        if self.level != POOLED:
            return self._states(captions, what)
        return self._packed(captions, what, partial(packing.pack_text, list(captions)))

    def _states(self, captions: Sequence[np.ndarray], what: str) -> np.ndarray:
        """Encode captions, padded to the context as a diffusion model pads them."""
        assert self.directory.cfg.text
        shape = (len(captions), self.directory.cfg.text.context_length)
        tokens_BT = np.full(shape, self.tokenizer.pad or 0, np.int32)
        for row_T, caption in zip(tokens_BT, captions, strict=True):
            row_T[: len(caption)] = caption
        text = plain_text(tokens_BT, np.zeros(len(captions)))

        def dispatch(start: int, batch: int) -> jax.Array:
            block = Text(*(padded(x[start : start + batch], batch) for x in text))
            place = put(block, self._place)
            return _text_states(self.mesh, self._graphdef, self._params, place, self.level)

        blocks = self._blocks(dispatch, len(captions), what, len(captions))
        return unit(np.concatenate(list(blocks))[: len(captions)].reshape(len(captions), -1))

    def texts(self, texts: Sequence[str], what: str = "texts") -> np.ndarray:
        """Embed texts; f32 [len(texts), E], unit length."""
        return self.tokens(self.tokenizer.encode(texts), what)

    def prompts(self, groups: Sequence[Sequence[str]], what: str = "prompts") -> np.ndarray:
        """Embed groups of texts; each packed row holds the common beginning of its group once.

        One compiled program serves all groups, so many calls are cheap.

        Args:
            groups: groups of texts, all of one size.
            what: name of the texts in messages.

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
        pack: Callable[[TextConfig, int], tuple[Text, packing.Layout]],
    ) -> np.ndarray:
        """Embed captions that `pack` lays into rows of one length, unless the cache has them."""
        cfg = self.directory.cfg.text
        assert cfg
        found_NE, keep = self._kept(partial(self._text_key, captions))
        if found_NE is not None:
            return found_NE
        # Captions of a tower that cannot pack are already padded, so each is a row.
        row_length = cfg.context_length
        if cfg.packable:
            row_length = packing.default_row_length(row_length)
        text, layout = pack(cfg, row_length)
        num_slots = text.readout_RS.shape[1]

        def dispatch(start: int, batch: int) -> jax.Array:
            block = Text(*(padded(x[start : start + batch], batch) for x in text))
            return _embed_text(self.mesh, self._graphdef, self._params, put(block, self._place))

        blocks = self._blocks(dispatch, layout.num_rows, what, len(captions))
        block_RSE = np.concatenate(list(blocks))
        flat = block_RSE.reshape(-1, block_RSE.shape[-1])
        out_NE = unit(flat[layout.row_n * num_slots + layout.slot_n])
        check_embeddings(out_NE, what)
        keep(out_NE)
        return out_NE

    def _text_key(self, captions: Sequence[np.ndarray]) -> str:
        """Return the cache key of these captions' embeddings; "" if they are not kept."""
        if not self._cache.keeps(self.digest("text")):
            return ""
        total = hashlib.sha256(self.digest("text").encode())
        total.update(np.array([len(tokens) for tokens in captions], np.int32).tobytes())
        total.update(np.concatenate(captions).astype(np.int32).tobytes())
        return f"texts-{total.hexdigest()}"

    def photos(self, photos: Sequence[Photo], what: str = "photos") -> np.ndarray:
        """Decode and embed photos; f32 [len(photos), E], unit length.

        Raises:
            InputError: the model has no image encoder; or a photo cannot be read.
        """
        return self.readable_photos(photos, 0, what)[0]

    def readable_photos(
        self, photos: Sequence[Photo], max_corrupt: int, what: str = "photos", form: str = ""
    ) -> tuple[np.ndarray, np.ndarray]:
        """Decode and embed the photos that can be read.

        Args:
            photos: at least one.
            max_corrupt: largest number of photos that may be unreadable; the log names them.
            what: name of the photos in messages.
            form: one of `PHOTO_FORMS`, applied before embedding; "" for none.

        Returns:
            f32 [photos read, E], unit length; bool [len(photos)], whether each was read.

        Raises:
            InputError: the model has no image encoder; or more than `max_corrupt` photos, or all,
                cannot be read.
        """
        found_BE, keep = self._kept(partial(self._photo_key, photos, form))
        if found_BE is not None:
            return found_BE, np.ones(len(photos), bool)
        blocks = list(self._photo_blocks(photos, max_corrupt, what, form))
        out_BE = unit(np.concatenate([block_BE for block_BE, _ in blocks]))
        check_embeddings(out_BE, what)
        read_B = np.concatenate([read_B for _, read_B in blocks])
        if read_B.all():
            keep(out_BE)
        return out_BE, read_B

    def pixels(self, image_BHWC: np.ndarray, what: str = "photos") -> np.ndarray:
        """Embed decoded photos; f32 [B, E], unit length.

        Args:
            image_BHWC: u8, as `processor` returns them; at least one.
            what: name of the photos in messages.
        """

        def dispatch(start: int, batch: int) -> Any:
            block_BHWC = padded(image_BHWC[start : start + batch], batch)
            block = put((block_BHWC, np.ones(batch, bool)), self._place)
            model = self.mesh, self._graphdef, self._params, self.processor
            return _embed_image(*model, block, self.image_level)

        blocks = self._blocks(dispatch, len(image_BHWC), what, len(image_BHWC))
        out_BE = unit(np.concatenate([block_BE for block_BE, _ in blocks])[: len(image_BHWC)])
        check_embeddings(out_BE[:1], what)  # one row, as all may be copies of one photo
        return out_BE

    def _photo_key(self, photos: Sequence[Photo], form: str) -> str:
        """Return the cache key of these photos' embeddings; "" if they are not kept."""
        if self.directory.cfg.vision is None:
            return ""
        if not self._cache.keeps(self.digest("vision")):
            return ""
        total = hashlib.sha256(self.digest("vision").encode())
        level = "" if self.image_level == "pooled" else self.image_level
        total.update(f"{self.processor}{form}{level}".encode())
        try:
            for photo in photos:
                total.update(photo_digest(photo).encode())
        except ValueError:  # the code that reads the photo reports it
            return ""
        return f"photos-{total.hexdigest()}"

    def patches(
        self, photos: Sequence[Photo], max_corrupt: int, what: str = "photos"
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Decode and encode photos in blocks, which together would be too large.

        Args:
            photos, max_corrupt, what: see `readable_photos`.

        Yields:
            f32 [photos read, T, D], their patches before the last layer, unnormalised; and bool
            [photos], whether each was read.
        """
        yield from self._photo_blocks(photos, max_corrupt, what, level="patches")

    def mean_photo(self, photos: Sequence[Photo], max_corrupt: int) -> np.ndarray:
        """Average the embeddings of photos, unnormalised. See `readable_photos`.

        Returns:
            f32 [E]; at level penultimate f32 [T, D], the average of each patch.
        """
        total_E, num, some_BE = np.zeros(1), 0, np.empty((0, 1))
        level = "pooled" if self.image_level == "pooled" else "patches"
        for some_BE, _ in self._photo_blocks(photos, max_corrupt, "photos of people", level=level):
            total_E = total_E + some_BE.sum(0, dtype=np.float64)
            num += len(some_BE)
        check_embeddings(some_BE, "photos of people")
        mean_E = (total_E / num).astype(np.float32)
        check_embeddings(mean_E[None], "people, on average")
        return mean_E

    def _photo_blocks(
        self,
        photos: Sequence[Photo],
        max_corrupt: int,
        what: str,
        form: str = "",
        level: Level | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield for each block the embeddings of the photos read, and which photos those are."""
        processor = self.processor
        model = self.mesh, self._graphdef, self._params, processor
        loader, corrupt = Loader(processor, max_corrupt), dict[str, None]()

        def dispatch(start: int, batch: int) -> Any:
            image_BHWC = np.zeros((batch, processor.crop, processor.crop, 3), np.uint8)
            some_photos = photos[start : start + batch]
            read_B = local_rows(self._place, batch)  # each host decodes only its own rows
            read_B[len(some_photos) :] = False
            here = np.flatnonzero(read_B)
            image_BHWC[here], read_B[here] = loader.load_all(
                [some_photos[i] for i in here.tolist()]
            )
            if form:
                for i in here:
                    image_BHWC[i] = photo_form(image_BHWC[i], form)
            block = put((image_BHWC, read_B), self._place)
            return _embed_image(*model, block, level or self.image_level)

        num, total = 0, len(photos)
        with closing(self._blocks(dispatch, total, what, total)) as blocks:
            for block_BE, read_B in blocks:
                read_B = read_B[: total - num]
                missing = (num + np.flatnonzero(~read_B)).tolist()
                corrupt |= dict.fromkeys(str(photos[i]) for i in missing)
                if len(corrupt) > max_corrupt:  # over all processes; a loader counts its own
                    raise InputError(
                        f"{len(corrupt)} photos cannot be read, more than `max_corrupt` "
                        f"(={max_corrupt}): {some(corrupt)}; replace them, or raise it."
                    )
                num += len(read_B)
                yield block_BE[: len(read_B)][read_B], read_B
        if corrupt:
            logger.warning(f"skipped, as they cannot be read: {some(corrupt)}")
        if len(corrupt) == len(photos):
            raise InputError(f"none of {len(photos)} {what} can be read.")

    def _blocks(
        self, dispatch: Callable[[int, int], Any], num: int, what: str, num_inputs: int
    ) -> Generator[Any]:
        return in_blocks(dispatch, num, what, num_inputs, self._batch, self._parts)


def in_blocks(
    dispatch: Callable[[int, int], Any],
    num: int,
    what: str,
    num_inputs: int,
    batch: int,
    parts: int,
) -> Generator[Any]:
    """Run over rows in blocks; the device computes one while the host makes the next.

    Args:
        dispatch: takes the first row of a block and the size of all blocks; gives arrays.
        num: rows, above 0.
        what: name of the inputs in messages.
        num_inputs: inputs in these rows.
        batch: rows at a time; rounded up to a multiple of `parts`, down if there are fewer.
        parts: into which the mesh cuts a block.

    Yields:
        what `dispatch` gave, on the host.
    """
    assert num, "nothing to embed"
    batch = min(batch, _round_up(num))
    batch = -(-batch // parts) * parts
    pending: Any = None
    with Progress(f"embedding {what}", num_inputs) as progress:
        for start in range(0, num, batch):
            block = dispatch(start, batch)
            if pending is not None:
                yield jax.device_get(pending)
                progress.update(num_inputs * start // num)
            pending = block
        assert pending is not None
        yield jax.device_get(pending)


def check_embeddings(x_BE: np.ndarray, what: str) -> None:
    """Raise InputError if embeddings are not finite, or all alike."""
    if not np.isfinite(x_BE).all():
        raise InputError(
            f"the model's embeddings of {what} are not finite; the checkpoint is broken."
        )
    if len(x_BE) > 1 and np.ptp(x_BE, axis=0).max() < 1e-6:
        raise InputError(f"the model embeds all {what} alike; the checkpoint is broken.")


def _round_up(num: int) -> int:
    """Round up to 2**n or 3 * 2**n: small inputs of many sizes share a few compiled programs."""
    power = 1 << (num - 1).bit_length()
    return power * 3 // 4 if num <= power * 3 // 4 else power


def padded(x: jax.Array | np.ndarray, num: int, value: float = 0) -> np.ndarray:
    """Pad the first dim to `num` with a value."""
    return np.concatenate([x, np.full((num - len(x), *x.shape[1:]), value, x.dtype)])
