"""The commands as functions: settings are keywords, lists and arrays may stand for files.

Each does what the command of the same name does, and returns the summary instead of printing it.
Its keywords are the command's settings, under the names of docs/settings.md: short ones, sections
(`train={"steps": 100}`, or a dataclass of `config`), or full ones (`**{"train.steps": 100}`).
`config` takes a config file, a ConfigDict or nested dicts, which lie below all of these.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from ml_collections import ConfigDict

from jaxdefense.buckets.places import is_address
from jaxdefense.commands import COMMANDS, defended, prepared, together
from jaxdefense.config import ModelConfig
from jaxdefense.data.by_value import (
    BY_VALUE,
    PhotoLike,
    remove_inputs,
    take_values,
    write_inputs,
)
from jaxdefense.defense import both, image, text
from jaxdefense.defense.losses import Distance
from jaxdefense.defense.own import OwnLoss
from jaxdefense.defense.step import Objective
from jaxdefense.distributed import first, on_first
from jaxdefense.errors import InputError
from jaxdefense.evals.run import run_evaluate
from jaxdefense.idia.run import run_attack
from jaxdefense.model import Model
from jaxdefense.proof.run import prove as run_prove
from jaxdefense.results import (
    AttackSummary,
    BothDefenseSummary,
    EvaluationSummary,
    ImageDefenseSummary,
    ProofSummary,
    TextDefenseSummary,
)
from jaxdefense.settings import as_flags, as_text, settings_of
from jaxdefense.words import some

R = TypeVar("R")
_BELOW = "config."  # begins the names of settings that lie below the others

PathLike = str | os.PathLike[str]
ModelLike = PathLike | ModelConfig
Lines = PathLike | Iterable[str]
Names = PathLike | Iterable[str | Sequence[str]]  # a person's further names follow the first
Photos = PathLike | Sequence[PhotoLike] | np.ndarray  # an array is uint8 [B, H, W, 3]
People = PathLike | Mapping[str, Photos]
Loss = Objective | Callable[[Objective], Objective]


def defend_text(
    model: ModelLike | None = None,
    names: Names | None = None,
    captions: Lines | None = None,
    *,
    out: PathLike,
    keep_names: Names | None = None,
    objective: Loss | None = None,
    distance: Distance | None = None,
    **settings: Any,
) -> TextDefenseSummary:
    """Remove names from a text encoder, as `jaxdefense defend text`.

    Args:
        model: directory of the model, or its settings.
        names: people to remove: a names file, or a list.
        captions: ordinary captions: a file, or a list.
        out: run directory; the same call resumes a run that was interrupted.
        keep_names: people who must stay, as `names`.
        objective: a loss of one's own; or a function that makes it from the one of the settings.
        distance: between embeddings, over the last dim, in place of `train.distance`.
        settings: all others; see the module.

    Returns:
        the summary. If validation still recognises people, its `reached` is False, and the log
        warns of it; no exception is raised.

    Raises:
        InputError: an input or a setting is wrong.
        Interrupted, Diverged: see `defense.loop.run`.
    """
    given = dict(model=model, names=names, captions=captions, keep_names=keep_names)
    run = partial(text.defend_text, own=OwnLoss(objective, distance))
    return _carry_out("defend text", defended, run, out, given, settings)


def defend_image(
    model: ModelLike | None = None,
    faces: People | None = None,
    images: Photos | None = None,
    *,
    out: PathLike,
    names: Names | None = None,
    keep: People | Photos | None = None,
    objective: Loss | None = None,
    distance: Distance | None = None,
    **settings: Any,
) -> ImageDefenseSummary:
    """Remove faces from an image encoder, as `jaxdefense defend image`.

    Args:
        model: directory of the model, or its settings.
        faces: a folder with a folder of photos a person, or photos by name.
        images: ordinary photos: a folder, or a list.
        out: run directory; the same call resumes a run that was interrupted.
        names: people to remove: a names file, or a list; without it, everyone in `faces`.
        keep: faces of people who must stay, as `faces`, or one photo a person.
        objective, distance: see `defend_text`.
        settings: all others; see the module.

    Returns:
        the summary; see `defend_text`.

    Raises:
        InputError, Interrupted, Diverged: see `defend_text`.
    """
    given = dict(model=model, faces=faces, images=images, names=names, keep=keep)
    run = partial(image.defend_image, own=OwnLoss(objective, distance))
    return _carry_out("defend image", defended, run, out, given, settings)


def defend_both(
    model: ModelLike | None = None,
    names: Names | None = None,
    captions: Lines | None = None,
    faces: People | None = None,
    images: Photos | None = None,
    *,
    out: PathLike,
    keep_names: Names | None = None,
    keep: People | Photos | None = None,
    text_objective: Loss | None = None,
    image_objective: Loss | None = None,
    text_distance: Distance | None = None,
    image_distance: Distance | None = None,
    **settings: Any,
) -> BothDefenseSummary:
    """Remove names and faces from a model, as `jaxdefense defend both`.

    Args:
        model, names, captions, keep_names: see `defend_text`.
        faces, images, keep: see `defend_image`.
        out: directory of both runs; the same call resumes runs that were interrupted.
        text_objective, image_objective: see `objective` of `defend_text`.
        text_distance, image_distance: see `distance` of `defend_text`.
        settings: all others; see the module.

    Returns:
        the summary; see `defend_text`.

    Raises:
        InputError, Interrupted, Diverged: see `defend_text`.
    """
    given = dict(model=model, names=names, captions=captions, keep_names=keep_names)
    given |= dict(faces=faces, images=images, keep=keep)
    own_text = OwnLoss(text_objective, text_distance)
    own_image = OwnLoss(image_objective, image_distance)
    run = partial(both.defend_both, own_text=own_text, own_image=own_image)
    return _carry_out("defend both", defended, run, out, given, settings)


def attack(
    model: ModelLike,
    faces: People,
    *,
    out: PathLike,
    strangers: People | None = None,
    names: Names | None = None,
    **settings: Any,
) -> AttackSummary:
    """Infer whom a model knows, as `jaxdefense attack`.

    Args:
        model: directory of the model or of a run, or settings of the model.
        faces: a folder with a folder of photos a person, or photos by name. With `unseen_by`, give
            them as the defense had them: photos that it trained on are recognised by their bytes.
        out: directory of the results.
        strangers: people whom the model never saw, as `faces`.
        names: the people removed: a names file, or a list; with `before`.
        settings: all others; see the module.

    Returns:
        the summary.

    Raises:
        InputError: an input or a setting is wrong.
    """
    given = dict(model=model, faces=faces, strangers=strangers, names=names)
    return _carry_out("attack", together, run_attack, out, given, settings)


def evaluate(
    model: ModelLike,
    teacher: PathLike,
    *,
    out: PathLike,
    captions: Lines | None = None,
    images: Photos | None = None,
    zeroshot: People | None = None,
    names: Names | None = None,
    **settings: Any,
) -> EvaluationSummary:
    """Measure what a defense changed and kept, as `jaxdefense evaluate`.

    Args:
        model: directory of the defended model or of its run, or settings of the model.
        teacher: directory of the model before the defense.
        out: directory of the results.
        captions: ordinary captions: a file, or a list.
        images: ordinary photos: a folder, or a list.
        zeroshot: a folder with a folder of photos a class, or photos by class.
        names: the people removed: a names file, or a list.
        settings: all others; see the module.

    Returns:
        the summary.

    Raises:
        InputError: an input or a setting is wrong.
    """
    given = dict(model=model, teacher=teacher, captions=captions, images=images)
    given |= dict(zeroshot=zeroshot, names=names)
    return _carry_out("evaluate", together, run_evaluate, out, given, settings)


def prove(
    model: ModelLike,
    faces: People,
    *,
    out: PathLike,
    strangers: People | None = None,
    zeroshot: People | None = None,
    **settings: Any,
) -> ProofSummary:
    """Put a defended model to attackers who know the method, as `jaxdefense prove`.

    Args:
        model: run directory of a defense, which says most of the rest; or the model's directory or
            settings.
        faces: a folder with a folder of photos a person, or photos by name; see `attack`.
        out: directory of the results; the same call goes on with the next part.
        strangers: people whom no model saw, as `faces`.
        zeroshot: a folder with a folder of photos a class, or photos by class.
        settings: all others; see the module.

    Returns:
        the summary.

    Raises:
        InputError: an input or a setting is wrong.
        RunError: fine-tuning diverges.
    """
    given = dict(model=model, faces=faces, strangers=strangers, zeroshot=zeroshot)
    return _carry_out("prove", together, run_prove, out, given, settings)


def _carry_out(
    command: str,
    around: Callable[[Callable[[Any], R], Any], R],
    run: Callable[[Any], R],
    out: PathLike,
    given: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> R:
    """Fill a command's settings and run it; inputs given by value are written in between."""
    if not isinstance(out, str | os.PathLike):
        raise InputError(f"`out` (={out!r}) must be a path.")
    place, kind = Path(out), COMMANDS[command].kind()
    paths, inputs = take_values(_by_name({**given, **settings}, kind), place, kind)
    below = {key: paths.pop(key) for key in list(paths) if key.startswith(_BELOW)}
    lowest = {key.removeprefix(_BELOW): value for key, value in below.items()}
    if inputs and is_address(os.fspath(out)):
        raise InputError(
            f"`out` (={out}) is an address, and {some(inputs)} are given by value, which are kept "
            "there: give a local directory, or files."
        )
    flags = [*as_flags(lowest), *as_flags({**paths, "out": os.fspath(out)})]
    cfg = COMMANDS[command].read(flags, f"jaxdefense {command}")

    def with_inputs(cfg: Any) -> R:
        try:
            on_first(partial(write_inputs, inputs, place))
            return run(cfg)
        except BaseException:
            if inputs and first():
                remove_inputs(place)
            raise

    with prepared(cfg) as here:
        return around(with_inputs, here)


def _by_name(tree: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Give settings by the names that they were given by, long or short, each of them once.

    A dataclass gives what differs from the defaults of the command: the rest may come from below.
    """
    known = settings_of(kind)
    keys = {flag: x.key for x in known for flag in (*x.flags, _flag(x.key))}
    usual = {x.key: x.default for x in known}
    out, names = dict[str, Any](), dict[str, str]()
    for name, value, chosen in _flat(tree):
        below, bare = name.startswith(_BELOW), name.removeprefix(_BELOW)
        key = keys.get(_flag(bare), bare)
        if not chosen and usual.get(key) == as_text(value):
            continue
        if key == "json" and not below:
            raise InputError("`json` has no effect here: the summary is returned; leave it out.")
        before = names.setdefault(below * _BELOW + key, name)
        if name in out or before != name:
            raise InputError(f"`{before}` and `{name}` are one setting; give it once.")
        out[name] = value
    return out


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _flat(
    tree: Mapping[str, Any], at: str = "", chosen: bool = True
) -> Iterator[tuple[str, Any, bool]]:
    """Give settings by name, and whether each was chosen; what is None counts as not given."""
    for name, value in tree.items():
        key, these = at + name, chosen
        if isinstance(value, Model):
            raise InputError(f"`{key}` is a loaded model; give its path: {value.cfg.path}.")
        if dataclasses.is_dataclass(value):
            value = {x.name: getattr(value, x.name) for x in dataclasses.fields(value)}
            these = False
        elif isinstance(value, ConfigDict):
            value = value.to_dict()
        if isinstance(value, Mapping) and name.rpartition(".")[2] not in BY_VALUE:
            yield from _flat(value, f"{key}.", these)
        elif value is not None:
            yield key, value.item() if isinstance(value, np.generic) else value, these
