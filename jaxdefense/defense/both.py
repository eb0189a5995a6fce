"""Names and faces out of a model: the two defenses one after the other, and their merger."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from jaxdefense.config import REMOVED, DefendBothConfig, MergeConfig
from jaxdefense.defense.defend import model_digest, run
from jaxdefense.defense.image import plan_image
from jaxdefense.defense.merge import merge
from jaxdefense.defense.plan import D, Plan
from jaxdefense.defense.text import plan_text
from jaxdefense.distributed import on_first
from jaxdefense.errors import InputError
from jaxdefense.results import BothDefenseSummary, values
from jaxdefense.run_directory import RunDirectory

logger = logging.getLogger(__name__)


def defend_both(cfg: DefendBothConfig) -> BothDefenseSummary:
    """Defend both encoders of a model.

    `out` comes to hold the runs `text` and `image`, `model` (merged) and `summary.json`. Run again,
    it goes on where it was broken off.

    Args:
        cfg: of both.

    Returns:
        the summaries of both, and the digest of the merged weights.

    Raises:
        InputError: an input is wrong; nothing was written.
        Interrupted, Diverged: see `loop.run`.
    """
    out = RunDirectory(Path(cfg.out), BothDefenseSummary)
    out.check(cfg)
    text, image = cfg.halves()
    # The inputs of both are read before either is trained.
    plan_of_text = _planned("text", partial(plan_text, text))
    plan_of_image = _planned("image", partial(plan_image, image))
    out.open(cfg)
    logger.info(f"{REMOVED['text']}: defending the text encoder")
    of_text = run(plan_of_text, resume=True)
    logger.info(f"{REMOVED['image']}: defending the image encoder")
    of_image = run(plan_of_image, resume=True)
    on_first(lambda: values(merge(MergeConfig(str(out.model), text.out, image.out))))
    digest = model_digest(out.model)
    summary = BothDefenseSummary(text=of_text, image=of_image, defended_sha256=digest)
    out.finish(summary)
    return summary


def _planned(encoder: str, plan: Callable[[], Plan[D]]) -> Plan[D]:
    """Make the plan of a half; an error says which half it concerns."""
    try:
        return plan()
    except InputError as error:
        raise InputError(f"{REMOVED[encoder]}: {error}") from error
