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


def _defend_image(args: argparse.Namespace, console: Console) -> None:
    from jaxdefense.config import DefendImageConfig
    from jaxdefense.defense.image import defend_image
    from jaxdefense.report.html import write_run_report

    cfg = _config(DefendImageConfig, args)
    summary = defend_image(cfg, console)
    write_run_report(Path(cfg.out))
    console.print_json(data=summary)


def _defend_both(args: argparse.Namespace, console: Console) -> None:
    from jaxdefense.config import DefendBothConfig
    from jaxdefense.defense.both import defend_both
    from jaxdefense.report.html import write_run_report

    cfg = _config(DefendBothConfig, args)
    summary = defend_both(cfg, console)
    for half in cfg.halves():
        write_run_report(Path(half.out))
    console.print_json(data=summary)


def _merge(args: argparse.Namespace, console: Console) -> None:
    from jaxdefense.config import MergeConfig
    from jaxdefense.defense.merge import merge

    console.print_json(data=merge(_config(MergeConfig, args), console))


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


def _bench_image(args: argparse.Namespace, console: Console) -> None:
    from jaxdefense.bench.image import bench_image

    figures = bench_image(
        args.size, args.num, args.rounds, args.calls, args.images, args.faces, console
    )
    console.print_json(data=figures)


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
        under: Any, name: str, run: Callable[[argparse.Namespace, Console], None], text: str, /,
        **flags: tuple[str, str],
    ) -> argparse.ArgumentParser:  # fmt: skip
        sub = under.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        for flag, (setting, help_text) in flags.items():
            meta = "FILE" if "file" in help_text else "A,B" if "commas" in help_text else "DIR"
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
    model = ("model.path", "model directory")
    captions = "captions file, one a line, or tfds:NAME[/CONFIG][:SPLIT]"
    names = "names file: one person a line, aliases after tabs"
    faces = "directory with a folder of photos a person, or tfds:NAME[/CONFIG][:SPLIT]"
    images = "ordinary photos: directory, .tar shards or tfds:NAME[/CONFIG][:SPLIT]"
    target = "what faces come to look like: directory of people, or .npy vector"
    tfds_dir = "where TFDS datasets are prepared"
    command(
        towers, "text", _defend_text, "Remove names from the text encoder.",
        model=model,
        names=("data.names", names),
        captions=("data.captions", captions),
        tfds_dir=("data.tfds_dir", tfds_dir),
        out=("out", "run directory"),
    )  # fmt: skip
    command(
        towers, "image", _defend_image, "Remove faces from the image encoder.",
        model=model,
        faces=("data.faces", faces),
        identities=("data.identities", "names file of those to remove; without, everyone"),
        images=("data.images", images),
        target=("data.target", target + "; without, the average of all in --faces"),
        tfds_dir=("data.tfds_dir", tfds_dir),
        out=("out", "run directory"),
    )  # fmt: skip
    command(
        towers, "both", _defend_both, "Remove names and faces: both encoders, merged.",
        model=model,
        names=("text.data.names", names + "; for the faces too"),
        captions=("text.data.captions", captions),
        faces=("image.data.faces", faces),
        images=("image.data.images", images),
        target=("image.data.target", target + "; without, the average of all in --faces"),
        out=("out", "directory of both runs and the merged model"),
    )  # fmt: skip
    command(
        commands, "merge", _merge, "Make a defended text and a defended image encoder one model.",
        text=("text", "run or model directory of the text encoder"),
        image=("image", "run or model directory of the image encoder"),
        out=("out", "model directory to write"),
    )  # fmt: skip
    command(
        commands, "attack", _attack, "Infer identities: whom does the model know?",
        model=model,
        faces=("faces", faces),
        strangers=("strangers", "the same of people the model never saw: false positives"),
        unseen_by=("unseen_by", "run directory: photos it trained on are left out"),
        candidates=("candidates", "file of further candidate names; random ones without"),
        sexes=("sexes", "file of lines NAME<tab>f or m: compare people with their own sex alone"),
        templates=("templates", "file of prompts with {0} for the name; the paper's without"),
        before=("before", "directory of the results before the defense; with --names"),
        names=("names", "names file of the people removed: what became of each"),
        variants=("variants", "ways round a defense to try too, with commas between; or all"),
        aliases=("aliases", "names file whose aliases the variant `alias` tries"),
        tfds_dir=("tfds_dir", tfds_dir),
        out=("out", "directory of the results"),
    )  # fmt: skip
    command(
        commands, "evaluate", _evaluate, "Measure what a defense changed and kept.",
        model=("model.path", "defended model directory"),
        teacher=("teacher", "model directory before the defense"),
        captions=("captions", captions),
        names=("names", "names file of the people removed"),
        images=("images", images),
        faces=("faces", "directory of photos of the people removed"),
        image_target=("image_target", "what their faces came to look like: people or .npy file"),
        zeroshot=("zeroshot", "directory with a folder of photos a class, or tfds: source"),
        collateral=("collateral", "file of people who must stay: who moved; with --names"),
        class_names=("class_names", "file of lines KEY<tab>NAME, if classes go by keys"),
        tfds_dir=("tfds_dir", tfds_dir),
        out=("out", "directory of the results"),
    )  # fmt: skip
    benches = commands.add_parser("bench", help="Measure speed, beside PyTorch if installed.")
    kinds = benches.add_subparsers(required=True, metavar="WHAT")
    image = command(kinds, "image", _bench_image, "Overlay and step of the image defense.")
    image.add_argument("--size", default="demo", help="demo, vit_b32, vit_b16 or vit_l14")
    for flag, default, text in (
        ("num", 32, "clean photos a step, and as many with a face"),
        ("rounds", 5, "of each contestant, in turn"),
        ("calls", 3, "a round"),
    ):
        image.add_argument(f"--{flag}", type=int, default=default, help=text)
    image.add_argument("--images", default="", metavar="DIR", help="photos; without, drawn ones")
    image.add_argument("--faces", default="", metavar="DIR", help="the same of people")
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
