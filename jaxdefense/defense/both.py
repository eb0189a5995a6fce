"""Names and faces out of a model: the two defenses one after the other, and their merger."""

from pathlib import Path

from jaxdefense.config import DefendBothConfig, MergeConfig
from jaxdefense.defense.defend import model_digest, run
from jaxdefense.defense.image import plan_image
from jaxdefense.defense.merge import merge
from jaxdefense.defense.text import plan_text
from jaxdefense.distributed import on_first
from jaxdefense.run_directory import RunDirectory


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
    plans = {"text": plan_text(text), "image": plan_image(image)}
    out.open(cfg)
    summary: dict = {name: run(plan, resume=True) for name, plan in plans.items()}
    on_first(lambda: merge(MergeConfig(str(out.model), text.out, image.out)))
    summary["defended_sha256"] = model_digest(out.model)
    out.finish(summary)
    return summary
