"""The command line: flags over `--set` over the config file; one clear line on a wrong input."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

# Commands import what they need when they run: `--help` must not wait for JAX.


def _defend_text(args: argparse.Namespace, console: Console) -> None:
    from jaxdefense.config import DefendTextConfig
    from jaxdefense.defense.text import defend_text
    from jaxdefense.report.html import write_run_report

    cfg = _config(DefendTextConfig, args)
    summary = defend_text(cfg, console)
    write_run_report(Path(cfg.out))
    console.print_json(data=summary)


def _attack(args: argparse.Namespace, console: Console) -> None:
    from jaxdefense.config import AttackConfig
    from jaxdefense.idia.run import run_attack

    console.print_json(data=run_attack(_config(AttackConfig, args), console))


def _evaluate(args: argparse.Namespace, console: Console) -> None:
    from jaxdefense.config import EvaluateConfig
    from jaxdefense.evals.run import run_evaluate

    console.print_json(data=run_evaluate(_config(EvaluateConfig, args), console))


def _demo(args: argparse.Namespace, console: Console) -> None:
    from jaxdefense.demo.run import run_demo

    console.print_json(data=run_demo(Path(args.out), console))


def _config(kind: type, args: argparse.Namespace) -> Any:
    from jaxdefense.config import build, load_config_file, merge, nest, parse_assignments

    file = load_config_file(args.config) if args.config else {}
    # A flag's name is the setting's path: `--model` is stored as `model.path`.
    flags = {
        name.removeprefix("cfg:"): value
        for name, value in vars(args).items()
        if name.startswith("cfg:") and value is not None
    }
    return build(kind, merge(file, parse_assignments(args.set), nest(flags.items())))


def _parser() -> argparse.ArgumentParser:
    from jaxdefense import __version__

    parser = argparse.ArgumentParser(
        prog="jaxdefense", description="Remove people's names and faces from CLIP models."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        under: Any, name: str, run: Callable[[argparse.Namespace, Console], None], text: str,
        **flags: tuple[str, str],
    ) -> argparse.ArgumentParser:  # fmt: skip
        sub = under.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        for flag, (setting, help_text) in flags.items():
            meta = "FILE" if "file" in help_text else "DIR"
            sub.add_argument(
                f"--{flag.replace('_', '-')}", dest=f"cfg:{setting}", metavar=meta, help=help_text
            )
        if flags:
            sub.add_argument("--config", metavar="FILE", help="Python file with get_config()")
            sub.add_argument(
                "--set", action="append", default=[], metavar="KEY=VALUE", help="one setting"
            )
        return sub

    demo = command(commands, "demo", _demo, "Show it all on a small model that ships with this.")
    demo.add_argument("--out", default="jaxdefense-demo", metavar="DIR", help="results")

    defend = commands.add_parser("defend", help="Remove people from a model.")
    towers = defend.add_subparsers(required=True, metavar="TOWER")
    out = ("out", "run directory")
    command(
        towers, "text", _defend_text, "Remove names from the text encoder.",
        model=("model.path", "model directory"),
        names=("data.names", "names file: one person a line, aliases after tabs"),
        captions=("data.captions", "captions file, one a line, or tfds:NAME[/CONFIG][:SPLIT]"),
        tfds_dir=("data.tfds_dir", "where TFDS datasets are prepared"),
        out=out,
    )  # fmt: skip
    command(
        commands, "attack", _attack, "Infer identities: whom does the model know?",
        model=("model.path", "model directory"),
        faces=("faces", "directory with a folder of photos a person"),
        candidates=("candidates", "file of further candidate names; random ones without"),
        out=("out", "directory of the results"),
    )  # fmt: skip
    command(
        commands, "evaluate", _evaluate, "Measure what a defense changed and kept.",
        model=("model.path", "defended model directory"),
        teacher=("teacher", "model directory before the defense"),
        captions=("captions", "captions file, one a line, or tfds:NAME[/CONFIG][:SPLIT]"),
        names=("names", "names file of the people removed"),
        zeroshot=("zeroshot", "directory with a folder of photos a class"),
        tfds_dir=("tfds_dir", "where TFDS datasets are prepared"),
        out=("out", "directory of the results"),
    )  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 done; 2 an input or setting is wrong; 1 anything else; 128 + n after signal n.
    """
    args = _parser().parse_args(argv)
    console = Console(stderr=True, soft_wrap=True)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a model directory is local, always
    try:
        args.run(args, console)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return _explain(error, console)
    return 0


def _explain(error: Exception, console: Console) -> int:
    signum = getattr(error, "signum", 0)
    if signum:
        console.print(f"jaxdefense: {error}", markup=False, highlight=False)
        return 128 + signum
    if os.environ.get("JAXDEFENSE_TRACEBACK"):
        console.print_exception()
    if isinstance(error, ValueError | OSError):
        line = " ".join(str(error).split())
        console.print(f"jaxdefense: error: {line}", markup=False, highlight=False)
        return 2
    if type(error).__name__ == "Diverged":
        console.print(f"jaxdefense: {error}", markup=False, highlight=False)
        return 1
    console.print_exception()
    return 1


def script() -> None:
    """Run as the installed program."""
    sys.exit(main())


if __name__ == "__main__":
    script()
