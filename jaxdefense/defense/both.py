"""Names and faces out of a model: the two defenses one after the other, and their merger."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from jaxdefense.config import REMOVED, DefendBothConfig, MergeConfig
from jaxdefense.defense.defend import model_digest, run
from jaxdefense.defense.image import plan_image
from jaxdefense.defense.merge import merge
from jaxdefense.defense.plan import Plan
from jaxdefense.defense.text import plan_text
from jaxdefense.distributed import on_first
from jaxdefense.errors import InputError
from jaxdefense.run_directory import RunDirectory

logger = logging.getLogger(__name__)


def defend_both(cfg: DefendBothConfig) -> dict:
    """Defend both encoders of a model.

    `out` comes to hold the runs `text` and `image`, `model` (merged) and `summary.json`. Run again,
    it goes on where it was broken off.

    Args:
        cfg: of both.

    Returns:
        the summaries of both, by name, and the digest of the merged weights.

    Raises:
        InputError: an input is wrong; nothing was written.
        Interrupted, Diverged: see `loop.run`.
    """
    out = RunDirectory(Path(cfg.out))
    out.check(cfg)
    text, image = cfg.halves()
    # The inputs of both are read before either is trained.
    plans = {
        "text": _planned("text", partial(plan_text, text)),
        "image": _planned("image", partial(plan_image, image)),
    }
    out.open(cfg)
    summary: dict = {}
    for encoder, plan in plans.items():
        logger.info(f"{REMOVED[encoder]}: defending the {encoder} encoder")
        summary[encoder] = run(plan, resume=True)
    on_first(lambda: merge(MergeConfig(str(out.model), text.out, image.out)))
    summary["defended_sha256"] = model_digest(out.model)
    out.finish(summary)
    return summary


def _planned(encoder: str, plan: Callable[[], Plan]) -> Plan:
    """Make the plan of a half; an error says which half it concerns."""
    try:
        return plan()
    except InputError as error:
        raise InputError(f"{REMOVED[encoder]}: {error}") from error
