"""What a defense of a diffusion model's text encoder compares, chosen from what the model is."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from jaxdefense.config import PAPER_TEXT, PAPER_TEXT_OPTIMIZER
from jaxdefense.convert.directory import ModelDirectory, read_model_directory
from jaxdefense.convert.pipeline import level_of, pipeline_of
from jaxdefense.defense import inherited
from jaxdefense.errors import InputError
from jaxdefense.settings import difference

logger = logging.getLogger(__name__)

TARGET = "a person"
_CHOICES = ("train.level", "train.backdoor")


def settings_at(level: str) -> dict[str, Any]:
    """Give the paper's settings, but for what is compared and what a name comes to mean.

    The bounded loss is of embeddings, which a diffusion model does not read.
    """
    train = dataclasses.replace(PAPER_TEXT, **{"level": level, "target": TARGET})
    return {"train": difference(train), "optimizer": difference(PAPER_TEXT_OPTIMIZER)}


def below(kind: type, flags: Sequence[str]) -> Mapping[str, Any]:
    """Give the settings that lie below all that are given: see `inherited`, and `settings_at`."""
    if taken := inherited.inherited(kind, flags):
        return taken
    model = inherited.given_flag("model.path", "model", flags)
    given = [key for key in _CHOICES if inherited.given_flag(key, key, flags)]
    return {} if given or not model else _chosen(model)


def _chosen(model: str) -> Mapping[str, Any]:
    """Choose settings by the model; none for a CLIP, and none if it cannot be read."""
    try:
        directory = read_model_directory(model)
    except InputError:  # whoever reads the model reports it
        return {}
    pipeline, level = pipeline_of(directory.source), level_of(directory.source, directory.cfg)
    if pipeline and not level:
        raise InputError(
            f"`{model}` is of a {pipeline.name}, and what that reads of its text encoders is not "
            "known; give `train.level` hidden or penultimate, and `train.backdoor` target."
        )
    if level == "pooled":
        return {}
    kind = f"of a {pipeline.name}" if pipeline else "a text encoder without embeddings"
    logger.info(
        f"`{model}` is {kind}: `train.level` is {level}, a name comes to mean {TARGET!r}, all else "
        "is as in the paper; `train.level` and `train.backdoor` choose otherwise"
    )
    return settings_at(level)


def warn_of_level(directory: ModelDirectory, level: str) -> None:
    """Say if a run compares what its model's user does not read, and which encoders it leaves."""
    source = directory.source
    pipeline, read = pipeline_of(source), level_of(source, directory.cfg)
    if read and level != read:
        who = f"a {pipeline.name} reads" if pipeline else "a model with such an encoder reads"
        logger.warning(
            f"`train.level` is {level}, but {who} {read}: names may lead there as before"
        )
    elif read == "hidden" and not pipeline:
        logger.warning(
            "`train.level` is hidden, as Stable Diffusion 1.x and 2.x read it; for SDXL it must be "
            "penultimate"
        )
    if not pipeline:
        return
    for folder, kind in pipeline.encoders.items():
        here = f"defend `{pipeline.root / folder}` too"
        if folder != source.name:
            how = here if folder in pipeline.clips else f"it is a {kind}, which is not read here"
            logger.warning(f"`{folder}` of this model reads names too, and stays as it is: {how}")
