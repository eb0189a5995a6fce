"""Names and faces out of a model: the two defenses one after the other, and their merger."""

from pathlib import Path

from rich.console import Console

from jaxdefense.config import DefendBothConfig, MergeConfig
from jaxdefense.defense.defend import model_digest, run
from jaxdefense.defense.image import plan_image
from jaxdefense.defense.merge import merge
from jaxdefense.defense.text import plan_text
from jaxdefense.distributed import on_first
from jaxdefense.results import BothDefenseSummary, values
from jaxdefense.run_directory import RunDirectory


def defend_both(cfg: DefendBothConfig, console: Console) -> BothDefenseSummary:
    """Defend both encoders of a model.

    `out` comes to hold the runs `text` and `image`, `model` (merged) and `summary.json`. Run again,
    it goes on where it was broken off.

    Args:
        cfg: of both.
        console: for progress.

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
    plans = plan_text(text, console), plan_image(image, console)
    out.open(cfg)
    of_text = run(plans[0], console, resume=True)
    of_image = run(plans[1], console, resume=True)
    on_first(lambda: values(merge(MergeConfig(str(out.model), text.out, image.out), console)))
    digest = model_digest(out.model)
    summary = BothDefenseSummary(text=of_text, image=of_image, defended_sha256=digest)
    out.finish(summary)
    return summary
