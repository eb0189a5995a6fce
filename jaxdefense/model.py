"""A model to call from Python: it embeds plain arrays, under `jax.jit` and `jax.grad` too.

Parity: tests/test_model.py, get_text_features and get_image_features of transformers, 1e-4.
"""

import dataclasses
import functools
import os
from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer

from jaxdefense.clip.model import CLIP
from jaxdefense.clip.text import plain_text, readout_of
from jaxdefense.clip.tokenizer import Tokenizer
from jaxdefense.config import ModelConfig
from jaxdefense.convert.directory import ModelDirectory, read_model_directory, resolve_dtype
from jaxdefense.data.by_value import PhotoLike, as_photo
from jaxdefense.data.images import ImageProcessor
from jaxdefense.errors import InputError
from jaxdefense.evals.embed import processor_of, to_compute
from jaxdefense.paths import check_given

Array = jax.Array | np.ndarray


def load(model: str | os.PathLike[str] | ModelConfig) -> "Model":
    """Load a model onto the default device.

    Args:
        model: what `--model` takes, a model or run directory, to compute in float32; or settings,
            for another dtype or tokenizer.

    Raises:
        InputError: the model cannot be read, or is given as something else.
    """
    if not isinstance(model, str | os.PathLike | ModelConfig):
        what = type(model).__name__
        raise InputError(f"`model` must be a path, an id or a `ModelConfig`, not {what}.")
    cfg = to_compute(model)
    check_given(cfg.path, "model")
    directory = read_model_directory(cfg.path)
    graphdef, params = nnx.split(directory.load(cfg.dtype, cfg.remat))
    return Model(cfg, directory, graphdef, jax.device_put(params))


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A CLIP or SigLIP model, its tokenizer and its image processor.

    `embed_tokens` and `embed_pixels` are pure functions of arrays. Both take other parameters of
    the same structure as a second argument, such as those that `jax.grad` differentiates by.

    Fields:
        cfg: the settings that it was loaded with.
        directory: that it was loaded from; `directory.save` writes a model like it.
        graphdef: structure of the Flax NNX module.
        params: its parameters, f32.
    """

    cfg: ModelConfig
    directory: ModelDirectory
    graphdef: nnx.GraphDef
    params: nnx.State

    @property
    def clip(self) -> CLIP:
        """The Flax NNX module, with the towers `text` and `vision`."""
        return nnx.merge(self.graphdef, self.params)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            InputError: the model has no text encoder, or no tokenizer that can be read.
        """
        return self.directory.tokenizer(self.cfg.tokenizer)

    @functools.cached_property
    def processor(self) -> ImageProcessor:
        """The image processor.

        Raises:
            InputError: the model has no image encoder, or its files ask for other steps.
        """
        return processor_of(self.directory)

    def tokenize(self, texts: Iterable[str]) -> np.ndarray:
        """Encode texts; each is cut and padded to the context length, as transformers pads it.

        Returns:
            int32 [B, T].

        Raises:
            InputError: see `tokenizer` and `Tokenizer.encode`; or they are no texts.
        """
        texts = _listed("texts", texts)
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"`texts`[{i}] (={text!r}) must be a text.")
        tokenizer = self.tokenizer
        out_BT = np.full((len(texts), tokenizer.context_length), tokenizer.pad or 0, np.int32)
        for out, tokens in zip(out_BT, tokenizer.encode(texts), strict=True):
            out[: len(tokens)] = tokens
        return out_BT

    def preprocess(self, photos: Iterable[PhotoLike] | np.ndarray) -> jax.Array:
        """Resize, crop and normalise photos as the model's own library does.

        Args:
            photos: paths, Pillow images, or uint8 arrays [height, width, 3].

        Returns:
            f32 [B, H, W, 3], normalised.

        Raises:
            InputError: see `processor`; or a photo cannot be read.
        """
        listed = _listed("photos", photos)
        read = [as_photo(photo, f"photo {i}") for i, photo in enumerate(listed)]
        return self.processor.normalise(jnp.asarray(self.processor.load(read)))

    def embed_tokens(self, tokens_BT: Array, params: nnx.State | None = None) -> jax.Array:
        """Embed captions, as transformers' `get_text_features`.

        Args:
            tokens_BT: int [B, T], begin and end of text included, then padding; a SigLIP's padding
                is read too, so pad to the context length, as `tokenize` does.
            params: parameters to compute with; None for the model's own.

        Returns:
            f32 [B, E], not of unit length. An encoder without projection gives [B, D].

        Raises:
            InputError: the model has no text encoder, or the array is of another kind.
        """
        cfg = self.directory.cfg.text
        if cfg is None:
            raise InputError(f"`{self.directory.path}` has no text encoder.")
        shape, dtype = np.shape(tokens_BT), getattr(tokens_BT, "dtype", np.dtype(object))
        fits = len(shape) == 2 and 0 < shape[1] <= cfg.context_length
        if not fits or not np.issubdtype(dtype, np.integer):
            raise InputError(
                f"`tokens` must be integers [B, T], T at most {cfg.context_length}, as `tokenize` "
                f"gives them, not {dtype} {list(shape)}."
            )
        _check_ids(tokens_BT, cfg.vocab_size)
        return _embed_text(self.graphdef, self._exactly, params or self.params, tokens_BT)

    def embed_pixels(self, pixels_BHWC: Array, params: nnx.State | None = None) -> jax.Array:
        """Embed photos, as transformers' `get_image_features`.

        Args:
            pixels_BHWC: float [B, H, W, 3] of the model's size, normalised, not 0-255.
            params: parameters to compute with; None for the model's own.

        Returns:
            f32 [B, E], not of unit length.

        Raises:
            InputError: the model has no image encoder, or the array is of another kind.
        """
        cfg = self.directory.cfg.vision
        if cfg is None:
            raise InputError(f"`{self.directory.path}` has no image encoder.")
        shape, dtype = np.shape(pixels_BHWC), getattr(pixels_BHWC, "dtype", np.dtype(object))
        wanted = (cfg.image_size, cfg.image_size, 3)
        if len(shape) != 4 or shape[1:] != wanted or not jnp.issubdtype(dtype, np.floating):
            raise InputError(
                f"`pixels` must be normalised floats [B, {', '.join(map(str, wanted))}], as "
                f"`preprocess` gives them, not {dtype} {list(shape)}."
            )
        return _embed_image(self.graphdef, self._exactly, params or self.params, pixels_BHWC)

    def embed_texts(self, texts: Iterable[str]) -> jax.Array:
        """Embed texts at once; f32 [B, E]. See `tokenize` and `embed_tokens`."""
        return self.embed_tokens(self.tokenize(texts))

    def embed_photos(self, photos: Iterable[PhotoLike] | np.ndarray) -> jax.Array:
        """Embed photos at once; f32 [B, E]. See `preprocess` and `embed_pixels`."""
        return self.embed_pixels(self.preprocess(photos))

    @property
    def _exactly(self) -> str | None:
        """Precision of products: accelerators multiply float32 with fewer bits unless told."""
        return "highest" if resolve_dtype(self.cfg.dtype) == "float32" else None


def _listed(name: str, values: Any) -> list[Any]:
    """Raise InputError unless there are several: a lone text would be read as its characters."""
    if isinstance(values, str | bytes | os.PathLike) or not isinstance(values, Iterable):
        raise InputError(f"`{name}` (={values!r}) must be a list of {name}.")
    return list(values)


def _check_ids(tokens_BT: Array, vocab_size: int) -> None:
    """Raise InputError if a token is none of the model's; while JAX traces, it is not known."""
    if isinstance(tokens_BT, Tracer) or not tokens_BT.size:
        return
    ids = jax.device_get(tokens_BT)
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise InputError(
            f"`tokens` must be in [0, {vocab_size}), as the model has so many, not in "
            f"[{ids.min()}, {ids.max()}]."
        )


# Compiled here, so that the parameters are arguments: inside a caller's `jax.jit` alone they would
# be constants of each program.


@partial(jax.jit, static_argnums=(0, 1))
def _embed_text(
    graphdef: nnx.GraphDef, precision: str | None, params: nnx.State, tokens_BT: jax.Array
) -> jax.Array:
    with jax.default_matmul_precision(precision):
        tower = nnx.merge(graphdef, params).text
        return tower(plain_text(tokens_BT, readout_of(tokens_BT, tower.cfg)))[:, 0]


@partial(jax.jit, static_argnums=(0, 1))
def _embed_image(
    graphdef: nnx.GraphDef, precision: str | None, params: nnx.State, pixels_BHWC: jax.Array
) -> jax.Array:
    with jax.default_matmul_precision(precision):
        return nnx.merge(graphdef, params).vision(pixels_BHWC)
