"""Merge a defended text encoder and a defended image encoder into one model."""

import logging
from pathlib import Path

import numpy as np
from flax import nnx

from jaxdefense.clip.layers import FrozenParam
from jaxdefense.clip.model import CLIP
from jaxdefense.config import MergeConfig
from jaxdefense.convert.directory import ModelDirectory, check_companions, read_model_directory
from jaxdefense.errors import InputError
from jaxdefense.idia.conditions import random_targets
from jaxdefense.ledger.runs import join_ledgers, ledger_of_model
from jaxdefense.paths import check_new
from jaxdefense.results import DefenseSummary, MergeSummary, kind_of
from jaxdefense.words import some

logger = logging.getLogger(__name__)


def merge(cfg: MergeConfig) -> MergeSummary:
    """Write a model directory with the text encoder of one model and the image encoder of another.

    The layout and all other files come from the text model, or from the image model if the text
    model has no image encoder.

    Returns:
        the paths of both models and of the merged model.

    Raises:
        InputError: one of them is neither a finished run nor a model; they were made from different
            models; or `out` exists.
    """
    check_new(Path(cfg.out))
    text, image = _read(cfg.text, "text"), _read(cfg.image, "image")
    for model in (text, image):
        model.check_outside(Path(cfg.out))
    if text.cfg.text is None or image.cfg.vision is None:
        wrong, encoder = (text, "text") if text.cfg.text is None else (image, "image")
        raise InputError(f"`{wrong.source}` has no {encoder} encoder.")
    base = text if text.cfg.vision else image
    if base.cfg.text is None:
        raise InputError(
            f"neither `{text.source}` nor `{image.source}` has both encoders; there is no model "
            "to merge them into."
        )
    if (text.cfg.text, image.cfg.vision) != (base.cfg.text, base.cfg.vision):
        raise InputError(
            f"`{text.source}` and `{image.source}` have encoders of different sizes; both must be "
            "made from one model."
        )
    check_companions(base.path, base.weight_files)
    with_text, with_image = text.load("float32"), image.load("float32")
    _check_origin(cfg, with_text, with_image)
    model = with_text if base is text else with_image
    model.text, model.vision = with_text.text, with_image.vision
    ledgers = [ledger_of_model(directory) for directory in (text, image)]
    left_out = base.save(model, Path(cfg.out), lambda made: join_ledgers(made, "merge", *ledgers))
    if left_out:
        logger.info(f"not copied, as they may hold undefended weights: {some(left_out)}")
    logger.info(f"merged model: {cfg.out}")
    if random_targets(cfg.text):
        logger.info(
            "removed names now mean random names: attack the merged model with "
            f"`--set exclude={cfg.text}`, so that the random names are not candidates"
        )
    return MergeSummary(text=str(text.source), image=str(image.source), model=cfg.out)


def _read(path: str, wanted: str) -> ModelDirectory:
    """Read a model directory or a finished run's; refuse a run that defended the other encoder."""
    directory = read_model_directory(path)
    run = directory.path.parent
    kind = kind_of(run) if directory.path.name == "model" else None
    if kind and issubclass(kind, DefenseSummary) and kind.encoder != wanted:
        raise InputError(
            f"`{wanted}` (={path}) comes from a run that defended the {kind.encoder} encoder; give "
            f"it as `{kind.encoder}`."
        )
    return directory


def _check_origin(cfg: MergeConfig, with_text: CLIP, with_image: CLIP) -> None:
    """Raise InputError unless both were made from one model, and each encoder was defended."""
    # A defense does not change the norms, so equal norms mean one origin.
    for name in ("text", "vision"):
        ours, theirs = getattr(with_text, name), getattr(with_image, name)
        if not (ours and theirs):
            continue
        if not _same(nnx.state(ours, FrozenParam), nnx.state(theirs, FrozenParam)):
            raise InputError(
                f"`{cfg.text}` and `{cfg.image}` were made from different models: the norms of "
                f"their {name} encoders differ. Give two defenses of one model."
            )
        if _same(nnx.state(ours), nnx.state(theirs)):
            path = cfg.text if name == "text" else cfg.image
            raise InputError(
                f"the {name} encoder of `{path}` is undefended: the other model has the same one. "
                "Give the text defense as `text`, the image defense as `image`."
            )


def _same(ours: nnx.State, theirs: nnx.State) -> bool:
    pairs = zip(nnx.to_flat_state(ours), nnx.to_flat_state(theirs), strict=True)
    return all(np.array_equal(a[...], b[...]) for (_, a), (_, b) in pairs)
