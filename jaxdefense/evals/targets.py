"""What removed names and faces came to mean, as the run says that made the model.

A run with `train.backdoor` bounded leads them nowhere, so nothing is measured then.
"""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdefense.config import EvaluateConfig
from jaxdefense.convert.directory import run_of_model
from jaxdefense.data.identities import Identity
from jaxdefense.data.sources import TFDS_PREFIX
from jaxdefense.errors import InputError
from jaxdefense.evals.embed import POOLED
from jaxdefense.results import (
    BothDefenseSummary,
    ImageDefenseSummary,
    TextDefenseSummary,
    kind_of,
    read_settings,
    read_summary,
)
from jaxdefense.run_directory import TARGET, place_from

logger = logging.getLogger(__name__)

_USUAL = "human"  # the default of a run, for a model that is from none


class Targets(NamedTuple):
    """What names came to mean, and faces to look like; "" where there is none to measure.

    Fields:
        text: a word.
        image: a source of people, or a .npy vector.
    """

    text: str
    image: str


class RunHalf(NamedTuple):
    """The half of a run that defended one encoder: its directory, and its settings."""

    path: Path
    data: dict[str, Any]
    train: dict[str, Any]


def read_targets(cfg: EvaluateConfig) -> Targets:
    """Find the targets: those of the run that the model is from, or those given for another model.

    Raises:
        InputError: a target is given that is not the run's.
    """
    return Targets(_text(cfg), _image(cfg))


def _text(cfg: EvaluateConfig) -> str:
    given, used = " ".join(cfg.target.split()), bool(cfg.names and cfg.captions)
    run = half_of(cfg.model.path, "text")
    if run is None:
        if used and not given:
            logger.warning(f"`{cfg.model.path}` is from no run of ours: `target` is `{_USUAL}`")
        return given or _USUAL
    train, what = run.train, ""
    if train.get("backdoor") == "bounded":
        what = "led names to no target: it was bounded"
    elif train.get("random_target"):
        what = "led each name to a random name"
    if what:
        if given:
            raise InputError(f"`target` (={given}): `{run.path}` {what}; leave it out.")
        if used:
            logger.warning(f"`{run.path}` {what}; sim_target and sim_backdoor are left out")
        return ""
    target = " ".join(str(train.get("target", _USUAL)).split())
    if given and given != target:
        raise InputError(
            f"`target` (={given}): `{run.path}` led names to `{target}`; leave `target` out."
        )
    return target


def _image(cfg: EvaluateConfig) -> str:
    run, given = half_of(cfg.model.path, "image"), cfg.image_target
    if run is None:
        if cfg.faces and not given:
            logger.warning(
                f"`{cfg.model.path}` is from no run that says what faces came to look like: "
                "image_sim_backdoor is left out; `image_target` gives it"
            )
        return given
    if run.train.get("backdoor") == "bounded":
        if given:
            raise InputError(
                f"`image_target` (={given}): `{run.path}` led faces to no target: it was bounded; "
                "leave it out."
            )
        if cfg.faces:
            logger.warning(
                f"`{run.path}` led faces to no target, as it was bounded: image_sim_backdoor is "
                "left out; `attack` says whom the model still knows"
            )
        return ""
    if run.train.get("level", POOLED) != POOLED:
        return _stand_ins(cfg, run)
    vector = run.path / TARGET
    if not given and cfg.image_level not in ("", POOLED):
        logger.warning(
            f"`{run.path}` led faces to one vector, and patches are compared (`image_level` "
            f"{cfg.image_level}): image_sim_backdoor is left out"
        )
        return ""
    if given and not _same(given, run, vector):
        led = run.data.get("target") or f"the average of those in {run.data.get('faces')}"
        raise InputError(
            f"`image_target` (={given}): `{run.path}` led faces to another target, {led}; leave "
            "`image_target` out."
        )
    return given or str(vector)


def _stand_ins(cfg: EvaluateConfig, run: RunHalf) -> str:
    """Name the source of the people who stood in for removed ones, where patches were compared."""
    given, target = cfg.image_target, str(run.data.get("target") or "")
    sources = [target] if target else [str(run.data.get(x) or "") for x in ("faces", "keep")]
    sources = [x for x in sources if x]
    if given and not any(_named(given, run, source) for source in sources):
        raise InputError(
            f"`image_target` (={given}): `{run.path}` led faces to those of other people, of "
            f"{' and '.join(f'`{x}`' for x in sources)}; give that, or leave `image_target` out."
        )
    if given or not cfg.faces:
        return given
    if target.startswith(TFDS_PREFIX):
        return target
    if target and (place := place_from(run.path, target)).exists():
        return str(place)
    why = f"`{target}`, which is not there" if target else "those who stay, of several sources"
    logger.warning(
        f"`{run.path}` led faces to {why}: image_sim_backdoor is left out; `image_target` gives it"
    )
    return ""


def on_list(model: str) -> tuple[Path, list[Identity]] | None:
    """List those whose faces the model's run removed, and name the run; None for another model.

    Raises:
        InputError: the summary of the run cannot be read.
    """
    if (run := half_of(model, "image")) is None:
        return None
    names = read_summary(run.path, ImageDefenseSummary).names
    return run.path, [Identity(first, tuple(more)) for first, *more in names]


def _named(given: str, run: RunHalf, source: str) -> bool:
    """Tell whether a source is the one that the run's settings name."""
    return source == given or place_from(run.path, source) == Path(given).absolute()


def _same(given: str, run: RunHalf, vector: Path) -> bool:
    """Tell whether a target is the run's: the source that it names, or a vector of this value."""
    if _named(given, run, str(run.data.get("target") or run.data.get("faces"))):
        return True
    try:
        return given.endswith(".npy") and np.array_equal(np.load(given), np.load(vector))
    except (OSError, ValueError):
        return False


def half_of(model: str, encoder: str) -> RunHalf | None:
    """Find the half of the model's run that defended an encoder; None if there is none."""
    run = run_of_model(model)
    kind = kind_of(run) if run else None
    wanted = TextDefenseSummary if encoder == "text" else ImageDefenseSummary
    if run is None or kind not in (wanted, BothDefenseSummary):
        return None
    if kind is BothDefenseSummary:
        run = run / encoder
    tree: Any = read_settings(run)
    return RunHalf(run, tree.get("data", {}), tree.get("train", {}))
