"""Remove names and faces from one model: run both defenses, then merge the two encoders."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from jaxdefense.config import REMOVED, DefendBothConfig, MergeConfig
from jaxdefense.defense.defend import model_digest, run
from jaxdefense.defense.earlier import check_kind
from jaxdefense.defense.image import plan_image
from jaxdefense.defense.merge import merge
from jaxdefense.defense.own import NONE, OwnLoss, described
from jaxdefense.defense.plan import D, Plan
from jaxdefense.defense.text import plan_text
from jaxdefense.distributed import on_first
from jaxdefense.errors import InputError
from jaxdefense.ledger.runs import keep_ledger
from jaxdefense.results import BothDefenseSummary, values
from jaxdefense.run_directory import RunDirectory

logger = logging.getLogger(__name__)


def defend_both(
    cfg: DefendBothConfig, own_text: OwnLoss = NONE, own_image: OwnLoss = NONE
) -> BothDefenseSummary:
    """Defend both encoders of a model.

    The directory `out` gets the runs `text` and `image`, the merged `model` and `summary.json`. An
    interrupted call resumes when it is called again.

    Args:
        cfg: the settings of both defenses.
        own_text, own_image: losses in place of those that the settings name.

    Returns:
        the summaries of both defenses, and the digest of the merged weights.

    Raises:
        InputError: an input is wrong; nothing was written.
        Interrupted, Diverged: see `loop.run`.
    """
    check_kind(cfg.earlier.path, cfg.earlier.setting, BothDefenseSummary)
    out = RunDirectory(Path(cfg.out), BothDefenseSummary)
    out.check(cfg)
    text, image = cfg.halves()
    # Both plans come first, so that a wrong input fails before any training.
    plan_of_text = _planned("text", partial(plan_text, text, own_text))
    plan_of_image = _planned("image", partial(plan_image, image, own_image))
    out.open(cfg)
    logger.info(f"{REMOVED['text']}: defending the text encoder")
    of_text = run(plan_of_text, resume=True)
    logger.info(f"{REMOVED['image']}: defending the image encoder")
    assert plan_of_image.beside
    of_image = run(plan_of_image.beside(Path(text.out) / "model"), resume=True)
    on_first(lambda: values(merge(MergeConfig(str(out.model), text.out, image.out))))
    digest = model_digest(out.model)
    summary = BothDefenseSummary(text=of_text, image=of_image, defended_sha256=digest)
    own = {
        f"{half}.{name}": what
        for half, plan in (("text", plan_of_text), ("image", plan_of_image))
        for name, what in described(plan.resolved).items()
    }
    ledger = partial(keep_ledger, out.path, cfg, summary, [of_text, of_image], own=own)
    on_first(partial(ledger, plan_of_text.resolved["model_sha256"], plan_of_text.follows))
    out.finish(summary)
    return summary


def _planned(encoder: str, plan: Callable[[], Plan[D]]) -> Plan[D]:
    """Make the plan of one encoder; an error names that encoder."""
    try:
        return plan()
    except InputError as error:
        raise InputError(f"{REMOVED[encoder]}: {error}") from error
