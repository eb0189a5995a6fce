"""A script that completes the commands, their settings and choices on TAB, for a shell."""

import contextlib
import dataclasses
import io
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import tyro

from jaxdefense.commands import COMMANDS, Command
from jaxdefense.errors import InputError

SHELLS = ("bash", "zsh", "fish")


def script(shell: str) -> str:
    """Write the script, which knows the commands as they are now and starts nothing of them.

    Args:
        shell: of `SHELLS`.

    Raises:
        InputError: it is another.
    """
    if shell not in SHELLS:
        raise InputError(f"`--completion` (={shell}) must be one of {', '.join(SHELLS)}.")
    groups = dict[str, dict[str, Any]]()
    for name, command in COMMANDS.items():
        group, _, within = name.partition(" ")
        groups.setdefault(group, {})[within] = _settings(command)
    found = {name: group.get("", _either(group)) for name, group in groups.items()}
    args = ["--tyro-print-completion", shell]
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        tyro.cli(_either(found), prog="jaxdefense", args=args)
    # Where it knows nothing better, as for an argument without a flag, files are meant.
    return said.getvalue().replace("complete -F", "complete -o default -F")


def _settings(command: Command) -> type:
    """Give the dataclass of a command's settings, with the flags that are no settings."""
    own: list[Any] = [("config", Path, Path()), ("set", str, "")]
    if presets := command.named_settings():
        own.append(("preset", Literal[tuple(presets)], next(iter(presets))))
    kind = command.kind()
    return dataclasses.make_dataclass(kind.__name__, own, bases=(kind,), frozen=True, kw_only=True)


def _either(kinds: dict[str, Any]) -> Any:
    """Give a choice of commands by name."""
    named = (
        Annotated[kind, tyro.conf.subcommand(name, prefix_name=False)]
        for name, kind in kinds.items()
    )
    return Union[tuple(named)]  # noqa: UP007 - of a number that is not known here
