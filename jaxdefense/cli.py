"""The command line: finds the command, fills its settings, and says in one line what is wrong."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from jaxdefense.buckets.places import as_given
from jaxdefense.commands import COMMANDS
from jaxdefense.errors import InputError, Interrupted, NotReached, RunError
from jaxdefense.huge_pages import ask_for_huge_pages
from jaxdefense.log import shown

_ABOUT = "Remove people's names and faces from CLIP models."


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 done; 2 an input or setting is wrong, and the same command would fail again; 1 a fault
        of the run, the machine or this package; 128 + n after signal n.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # torch is not missed
    code, failed = 0, None
    try:
        _run(sys.argv[1:] if argv is None else argv)
    except (KeyboardInterrupt, Exception) as error:
        code, failed = _explain(error), error
    if "jaxdefense.distributed" in sys.modules:
        from jaxdefense import distributed

        together = isinstance(failed, Interrupted | NotReached)  # all processes end so
        distributed.end(code, None if together else failed)
    return code


def _run(argv: Sequence[str]) -> None:
    words = [arg for arg in argv[:2] if not arg.startswith("-")]
    name = next((x for x in (" ".join(words), *words[:1]) if x in COMMANDS), "")
    if not name:
        _overview(argv, words)
        return
    command = COMMANDS[name]
    with shown(name):
        command(command.read(argv[len(name.split()) :], f"jaxdefense {name}"))


def _overview(argv: Sequence[str], words: Sequence[str]) -> None:
    """Print the version, a shell's completion or the commands; of a group, those of the group."""
    from jaxdefense import __version__

    if "--version" in argv:
        print(__version__)
        return
    if argv[:1] == ["--completion"]:
        from jaxdefense.completion import script

        print(script(" ".join(argv[1:])), end="")
        return
    group = words[0] if words and any(name.startswith(f"{words[0]} ") for name in COMMANDS) else ""
    if not {"-h", "--help"} & set(argv):
        given = " ".join(words) or "nothing"
        names = [name.removeprefix(group).strip() for name in COMMANDS if name.startswith(group)]
        raise InputError(f"{given!r} is no command; give {group} one of {', '.join(names)}.")
    print(f"usage: jaxdefense {group or 'COMMAND'} ...\n\n{_ABOUT}\n")
    for name, command in COMMANDS.items():
        if name.startswith(group):
            print(f"  {name:<15} {command.about}")
    if not group:
        print("\n`jaxdefense --completion bash`, zsh or fish prints what completes them on TAB.")


def _explain(error: BaseException) -> int:
    """Say what ended a command; its exit code."""
    console = Console(stderr=True, soft_wrap=True)
    said = as_given(" ".join(str(error).split()))
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, Interrupted):
        console.print(f"jaxdefense: {said}", markup=False, highlight=False)
        return 128 + error.signum
    if not isinstance(error, InputError | RunError) or os.environ.get("JAXDEFENSE_TRACEBACK"):
        console.print_exception()
    if isinstance(error, InputError | RunError):
        console.print(f"jaxdefense: error: {said}", markup=False, highlight=False)
    return 2 if isinstance(error, InputError) else 1


def script() -> None:
    """Run as the installed program."""
    ask_for_huge_pages(Path("/sys/kernel/mm/transparent_hugepage/enabled"))
    sys.exit(main())


if __name__ == "__main__":
    script()
