"""Settings that a run takes over from the one it follows: those that are not given."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxdefense.buckets.inputs import fetched
from jaxdefense.buckets.places import address, is_address, place
from jaxdefense.config import DefendBothConfig, DefendImageConfig, DefendTextConfig
from jaxdefense.data.sources import TFDS_PREFIX
from jaxdefense.defense.earlier import check_kind
from jaxdefense.errors import InputError
from jaxdefense.hub import is_pinned
from jaxdefense.ledger.entries import NAMES
from jaxdefense.results import (
    BothDefenseSummary,
    ImageDefenseSummary,
    Summary,
    TextDefenseSummary,
    read_settings,
)
from jaxdefense.run_directory import place_from
from jaxdefense.settings import PATH, as_text, settings_of

logger = logging.getLogger(__name__)

_FOLLOWS = ("after", "ledger")
# Of each run its own: where it writes, whom it adds, and which run it follows.
_OWN = {"out", "profile", "compilation", "cache_dir", "names"}  # last parts of their names
_OWN_SECTIONS = ("earlier", "log")
# Of each model its own: another has other tokens, and another space of embeddings.
_OF_A_MODEL = {"model.path", "model.tokenizer", "data.target", "image.data.target"}
_SUMMARIES: dict[type, type[Summary]] = {
    DefendTextConfig: TextDefenseSummary,
    DefendImageConfig: ImageDefenseSummary,
    DefendBothConfig: BothDefenseSummary,
}


def inherited(kind: type, flags: Sequence[str]) -> Mapping[str, Any]:
    """Give the settings of the run that one follows, as `--after` or `--ledger` names it.

    Without a names file, its list is that of the run it follows.

    Args:
        kind: dataclass of the settings.
        flags: all that are given.

    Returns:
        settings by their full names; none without such a flag.

    Raises:
        InputError: it is no run of this command, its settings cannot be read, or its model is gone.
    """
    followed = [(name, given_flag(f"earlier.{name}", name, flags)) for name in _FOLLOWS]
    which, path = next((x for x in followed if x[1]), ("", ""))
    if not path:
        return {}
    run, out = _here(path), dict[str, Any]()
    check_kind(str(run), f"earlier.{which}", _SUMMARIES[kind])
    tree, settings = read_settings(run), settings_of(kind)
    own = _OWN | (_OF_A_MODEL if which == "ledger" else set())
    for setting in settings:
        section, _, last = setting.key.rpartition(".")
        value = _found(tree, setting.key)
        if last in own or setting.key in own or section in _OWN_SECTIONS or value is None:
            continue
        if not (setting.result or setting.type == PATH):
            continue
        if isinstance(value, list):
            value = tuple(value)
        elsewhere = str(value).startswith(TFDS_PREFIX) or is_address(str(value))
        if setting.type == PATH and value and not elsewhere:
            value = str(place_from(run, str(value)))
        if as_text(value) != setting.default:
            out[setting.key] = value
    given = {_spelt(flag) for flag in flags}
    names = {x.key: {*map(_spelt, x.flags), _spelt(x.key)} for x in settings}
    _check_model(out, run, not names["model.path"] & given)
    if not any(_is_names(flag) for flag in flags):
        out |= _list_of(kind, run, tree)
    taken = [f"{key}={value}" for key, value in out.items() if not names[key] & given]
    logger.info(f"settings of `{run}`, taken over: {', '.join(taken)}")
    return out


def _here(path: str) -> Path:
    """Fetch a run that is in a bucket; give where it is on this machine."""
    return fetched(place(address(path, "earlier"))) if is_address(path) else Path(path)


def _check_model(out: Mapping[str, Any], run: Path, taken: bool) -> None:
    """Raise InputError if the model that a run defended is gone, and none is given."""
    path = out.get("model.path")
    elsewhere = path and (is_pinned(path) or is_address(path))
    if path and taken and not elsewhere and not Path(path).is_dir():
        raise InputError(
            f"`{path}`, which `{run}` defended, does not exist. Give it by `--model`; or, if the "
            f"original is gone for good, `--model {run}`: the defended model is then the teacher."
        )


def given_flag(key: str, alias: str, flags: Sequence[str]) -> str:
    """Read a setting from flags; the last one wins."""
    value, flags = "", list(flags)
    for i, flag in enumerate(flags):
        name, equals, given = flag.partition("=")
        if name in (f"--{key}", f"--{alias}"):
            value = given if equals else (flags[i + 1] if i + 1 < len(flags) else "")
    return value


def _found(tree: Mapping[str, Any], key: str) -> Any:
    """Find a nested setting; None if there is none."""
    value: Any = tree
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _is_names(flag: str) -> bool:
    name = flag.partition("=")[0]
    return name == "--names" or name.endswith(".names")


def _spelt(flag: str) -> str:
    """Spell the name of a flag in one way."""
    return flag.partition("=")[0].removeprefix("--").replace("-", "_")


def _list_of(kind: type, run: Path, tree: Mapping[str, Any]) -> dict[str, str]:
    """Give the names file, or files, that a run wrote; none if it removed everyone in its faces.

    Raises:
        InputError: it wrote none.
    """
    if kind is DefendImageConfig and not _found(tree, "data.names"):
        return {}
    places = {"data.names": run / NAMES}
    if kind is DefendBothConfig:
        places = {f"{half}.data.names": run / half / NAMES for half in ("text", "image")}
    if missing := [str(file) for file in places.values() if not file.is_file()]:
        raise InputError(
            f"`{missing[0]}` does not exist: that run ended before it wrote its list; give "
            "`--names` with all people to remove."
        )
    return {key: str(file) for key, file in places.items()}
