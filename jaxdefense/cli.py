"""The command line: flags over `--set` over the config file; one clear line on a wrong input."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxdefense.errors import InputError, Interrupted, NotReached, RunError
from jaxdefense.paths import check_given

_RESTARTED = "JAXDEFENSE_RESTARTED"

# Commands import what they need when they run: `--help` must not wait for JAX.


def _defend_text(args: argparse.Namespace, console: Console) -> None:
    from jaxdefense.config import DefendTextConfig
    from jaxdefense.defense.text import defend_text

    _defend(DefendTextConfig, defend_text, args, console)


def _defend_image(args: argparse.Namespace, console: Console) -> None:
    from jaxdefense.config import DefendImageConfig
    from jaxdefense.defense.image import defend_image

    _defend(DefendImageConfig, defend_image, args, console)


def _defend_both(args: argparse.Namespace, console: Console) -> None:
    from jaxdefense.config import DefendBothConfig
    from jaxdefense.defense.both import defend_both

    _defend(DefendBothConfig, defend_both, args, console)


def _defend(
    kind: type, run: Callable[[Any, Console], dict], args: argparse.Namespace, console: Console
) -> None:
    from jaxdefense.distributed import on_first
    from jaxdefense.run_directory import claimed

    cfg, console = _join(_config(kind, args), console)
    with claimed(Path(cfg.out)):
        summary = run(cfg, console)
        halves = [half.out for half in cfg.halves()] if hasattr(cfg, "halves") else []
        on_first(partial(_write_reports, [*halves, cfg.out]))
    console.print_json(data=summary)
    parts = [summary[name] for name in ("text", "image") if name in summary] or [summary]
    if failed := [part for part in parts if part.get("reached") is False]:
        left = dict.fromkeys(
            name for part in failed for name in part["validation"]["after"]["left"]
        )
        raise NotReached(
            f"not reached: of those to remove, {len(left)} are still recognised in validation; the "
            f"model was written all the same, and the report in `{cfg.out}` says who is left."
        )


def _write_reports(runs: Sequence[str]) -> None:
    from jaxdefense.report.write import write_run_report  # brings Matplotlib

    for run in runs:
        write_run_report(Path(run))


def _merge(args: argparse.Namespace, console: Console) -> None:
    from jaxdefense.config import MergeConfig
    from jaxdefense.defense.merge import merge

    console.print_json(data=merge(_config(MergeConfig, args), console))


def _attack(args: argparse.Namespace, console: Console) -> None:
    from jaxdefense.config import AttackConfig
    from jaxdefense.idia.run import run_attack
    from jaxdefense.run_directory import claimed

    cfg, console = _join(_config(AttackConfig, args), console)
    with claimed(Path(cfg.out)):
        console.print_json(data=run_attack(cfg, console))


def _evaluate(args: argparse.Namespace, console: Console) -> None:
    from jaxdefense.config import EvaluateConfig
    from jaxdefense.evals.run import run_evaluate
    from jaxdefense.run_directory import claimed

    cfg, console = _join(_config(EvaluateConfig, args), console)
    with claimed(Path(cfg.out)):
        console.print_json(data=run_evaluate(cfg, console))


def _report(args: argparse.Namespace, console: Console) -> None:
    from jaxdefense.report.write import write_report

    console.print_json(data=write_report([Path(run) for run in args.runs], Path(args.out)))


def _sweep_text(args: argparse.Namespace, console: Console) -> None:
    from jaxdefense.config import SweepTextConfig

    _sweep(SweepTextConfig, args, console)


def _sweep_image(args: argparse.Namespace, console: Console) -> None:
    from jaxdefense.config import SweepImageConfig

    _sweep(SweepImageConfig, args, console)


def _sweep(kind: type, args: argparse.Namespace, console: Console) -> None:
    from jaxdefense.sweep.run import run_sweep

    cfg = _config(kind, args)
    _keep_compiled(cfg.cache.compilation)
    console.print_json(data=run_sweep(cfg, console))


def _demo(args: argparse.Namespace, console: Console) -> None:
    from jaxdefense.demo.run import run_demo

    console.print_json(data=run_demo(Path(args.out), console))


def _convert(args: argparse.Namespace, console: Console) -> None:
    from jaxdefense.convert.run import convert

    found = convert(
        Path(args.src),
        Path(args.dst),
        args.to,
        console,
        layout=args.layout,
        activation=args.activation,
    )
    console.print_json(data=found)


def _bench(args: argparse.Namespace, console: Console) -> None:
    """Run a benchmark: its function takes the flags by their names."""
    import importlib
    import inspect

    from jaxdefense.bench.show import show

    bench = getattr(importlib.import_module(f"jaxdefense.bench.{args.kind}"), f"bench_{args.kind}")
    names = [name for name in inspect.signature(bench).parameters if name != "console"]
    show(bench(**{name: getattr(args, name) for name in names}, console=console), args.json)


def _bench_aot(args: argparse.Namespace, console: Console) -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing runs: leave chips to others
    from jaxdefense.bench.aot import bench_aot, run_settings
    from jaxdefense.bench.show import show
    from jaxdefense.config import AotConfig

    base = run_settings(args.preset) if args.preset else {}
    show(bench_aot(_config(AotConfig, args, base), console), args.json)


def _sizes(text: str) -> dict[str, int]:
    """Read `data=2,fsdp=4`; argparse refuses with the ValueError of what is no number."""
    pairs = [part.partition("=") for part in text.split(",")]
    return {name: int(size) for name, _, size in pairs}


def _config(kind: type, args: argparse.Namespace, base: Mapping[str, Any] | None = None) -> Any:
    from jaxdefense.config import build, load_config_file, merge, nest, parse_assignments

    file = load_config_file(args.config) if args.config else {}
    # A flag's name is the setting's path: `--model` is stored as `model.path`.
    flags = {
        name.removeprefix("cfg:"): value
        for name, value in vars(args).items()
        if name.startswith("cfg:") and value is not None
    }
    return build(kind, merge(base or {}, file, parse_assignments(args.set), nest(flags.items())))


def _join(cfg: Any, console: Console) -> tuple[Any, Console]:
    """Join the other processes, if any, and see that all do the same.

    Returns:
        the config, and the console: of those that do not write the run, a file.
    """
    from jaxdefense import distributed
    from jaxdefense.config import to_dict

    _keep_compiled(cfg.cache.compilation)
    distributed.initialize(cfg.distributed)
    if not distributed.several():
        return cfg, console
    settings = to_dict(cfg)
    for own in ("cache", "profile"):
        settings.pop(own, None)
    del settings["distributed"]["process_id"]
    distributed.agree(settings | distributed.program())
    if not distributed.first():
        console = Console(file=distributed.Log(Path(cfg.out)), soft_wrap=True)  # pyright: ignore[reportArgumentType]
    return cfg, console


def _keep_compiled(directory: str) -> None:
    """Keep compiled programs there; see `CacheConfig`."""
    import jax

    from jaxdefense.files import cache_directory

    if directory == "off":
        jax.config.update("jax_enable_compilation_cache", False)
    elif directory or not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", directory or str(cache_directory() / "xla"))


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
            meta = setting.upper() if run is _bench_aot else meta
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
    keep = "people who must stay, beside the others in --faces: as --faces, or one photo a person"
    keep_names = "names file of those who must stay, beside namesakes and random names"
    images = "ordinary photos: directory, .tar shards or tfds:NAME[/CONFIG][:SPLIT]"
    target = "what faces come to look like, with train.backdoor target: people, or .npy vector"
    classes = "directory with a folder of photos a class, or tfds: source"
    tfds_dir = "where TFDS datasets are prepared"
    photos = {
        "images": ("data.images", images),
        "target": ("data.target", target + "; without, the average of all in --faces"),
    }
    text = command(
        towers, "text", _defend_text, "Remove names from the text encoder.",
        model=model,
        names=("data.names", names),
        keep_names=("data.keep_names", keep_names),
        captions=("data.captions", captions),
        tfds_dir=("data.tfds_dir", tfds_dir),
        out=("out", "run directory"),
    )  # fmt: skip
    image = command(
        towers, "image", _defend_image, "Remove faces from the image encoder.",
        model=model,
        faces=("data.faces", faces),
        identities=("data.identities", "names file of those to remove; without, everyone"),
        keep=("data.keep", keep),
        **photos,
        tfds_dir=("data.tfds_dir", tfds_dir),
        out=("out", "run directory"),
    )  # fmt: skip
    both = command(
        towers, "both", _defend_both, "Remove names and faces: both encoders, merged.",
        model=model,
        names=("text.data.names", names + "; for the faces too"),
        captions=("text.data.captions", captions),
        faces=("image.data.faces", faces),
        keep=("image.data.keep", keep),
        keep_names=("text.data.keep_names", keep_names),
        images=("image.data.images", images),
        target=("image.data.target", target + "; without, the average of all in --faces"),
        out=("out", "directory of both runs and the merged model"),
    )  # fmt: skip
    for sub in (text, image, both):
        sub.add_argument(
            "--profile", dest="cfg:profile", metavar="DIR", help="trace of a few steps, for XProf"
        )
    command(
        commands, "merge", _merge, "Make a defended text and a defended image encoder one model.",
        text=("text", "run or model directory of the text encoder"),
        image=("image", "run or model directory of the image encoder"),
        out=("out", "model directory to write"),
    )  # fmt: skip
    attack = command(
        commands, "attack", _attack, "Infer identities: whom does the model know?",
        model=model,
        faces=("faces", faces),
        strangers=("strangers", "the same of people the model never saw: false positives"),
        unseen_by=("unseen_by", "run directory: photos it trained on are left out"),
        candidates=("candidates", "file of further candidate names; random ones without"),
        exclude=("exclude", "names file, or run directory, of names that are no candidates"),
        sexes=("sexes", "file of lines NAME<tab>f or m: compare people with their own sex alone"),
        templates=("templates", "file of prompts with {0} for the name; the paper's without"),
        before=("before", "directory of the results before the defense; with --names"),
        names=("names", "names file of the people removed: what became of each"),
        variants=("variants", "ways round a defense to try too, with commas between; or all"),
        aliases=("aliases", "names file whose aliases the variant `alias` tries"),
        tfds_dir=("tfds_dir", tfds_dir),
        out=("out", "directory of the results"),
    )  # fmt: skip
    evaluate = command(
        commands, "evaluate", _evaluate, "Measure what a defense changed and kept.",
        model=("model.path", "defended model directory"),
        teacher=("teacher", "model directory before the defense"),
        captions=("captions", captions),
        names=("names", "names file of the people removed"),
        images=("images", images),
        faces=("faces", "directory of photos of the people removed"),
        image_target=("image_target", "what their faces came to look like: people or .npy file"),
        zeroshot=("zeroshot", classes),
        collateral=("collateral", "file of people who must stay: who moved; with --names"),
        class_names=("class_names", "file of lines KEY<tab>NAME, if classes go by keys"),
        tfds_dir=("tfds_dir", tfds_dir),
        out=("out", "directory of the results"),
    )  # fmt: skip
    for sub in (text, image, both, attack, evaluate):
        for flag, setting, kind, meta, help_text in (
            ("coordinator", "coordinator", str, "HOST:PORT", "of several processes, the first"),
            ("num-processes", "num_processes", int, "N", "of several processes, how many"),
            ("process-id", "process_id", int, "I", "of several processes, which, from 0"),
        ):
            sub.add_argument(
                f"--{flag}", dest=f"cfg:distributed.{setting}", type=kind, metavar=meta,
                help=help_text,
            )  # fmt: skip
    report = command(
        commands, "report", _report, "Write what was asked, done and found on one page."
    )
    report.add_argument(
        "runs", nargs="+", metavar="RUN", help="directories of defend, attack, evaluate; or a sweep"
    )
    report.add_argument(
        "--out", required=True, metavar="FILE.html", help="page to write, JSON and CSV beside it"
    )
    sweep = commands.add_parser("sweep", help="Defend, attack and evaluate for many numbers.")
    swept = sweep.add_subparsers(required=True, metavar="TOWER")
    names_sweep = command(
        swept, "text", _sweep_text, "How many names can be removed, and at what cost?",
        model=model,
        names=("data.names", "names file of all who may be removed"),
        captions=("data.captions", captions),
        faces=("attack.faces", faces),
        clean=("evaluate.clean", "captions file for sim_clean; those trained on without"),
        zeroshot=("evaluate.zeroshot", classes),
        tfds_dir=("data.tfds_dir", tfds_dir),
        out=("out", "directory of the sweep"),
    )  # fmt: skip
    faces_sweep = command(
        swept, "image", _sweep_image, "How many faces can be removed, and at what cost?",
        model=model,
        faces=("data.faces", faces),
        identities=("data.identities", "names file of all who may be removed; without, everyone"),
        **photos,
        clean=("evaluate.clean", "photos for sim_clean; those trained on without"),
        zeroshot=("evaluate.zeroshot", classes),
        tfds_dir=("data.tfds_dir", tfds_dir),
        out=("out", "directory of the sweep"),
    )  # fmt: skip
    for sub in (names_sweep, faces_sweep):
        sub.add_argument(
            "--part", dest="cfg:sweep.part", metavar="I/N",
            help="of N processes that share the cells, this is the I-th, from 1",
        )  # fmt: skip
    convert = command(
        commands, "convert", _convert, "Write a checkpoint in another library's layout, losslessly."
    )
    convert.add_argument("src", metavar="SRC", help="model directory, or .pt file")
    convert.add_argument("dst", metavar="DST", help="directory to write")
    convert.add_argument("--to", required=True, help="hf, openclip or orbax")
    convert.add_argument(
        "--from", dest="layout", default="", help="hf or openclip, where SRC has both"
    )
    convert.add_argument(
        "--activation", default="", help="gelu or quick_gelu, of a .pt file without config"
    )
    benches = commands.add_parser("bench", help="Measure speed, beside PyTorch if installed.")
    kinds = benches.add_subparsers(required=True, metavar="WHAT")
    _add_benches(kinds, command)
    aot = command(
        kinds, "aot", _bench_aot, "Compile a step for a TPU topology, without the TPU.",
        topology=("topology", "v5e:16x16, v5p:4x4x4 …"),
        arch=("arch", "ViT-B-32, ViT-L-14, ViT-bigG-14 …"),
        tower=("tower", "text or image"),
        remat=("remat", "what is kept for the gradient: none, dots or full"),
        dtype=("dtype", "of the computation: bfloat16 or float32"),
    )  # fmt: skip
    aot.add_argument("--preset", default="", metavar="RUN", help="ViT-L-14/image/v5e:4x4 …")
    aot.add_argument(
        "--mesh", dest="cfg:mesh", type=_sizes, metavar="AXES", help="data=4,fsdp=4,tensor=1"
    )
    aot.add_argument(
        "--batch", dest="cfg:batch", type=int, metavar="N",
        help="clean samples a step, and as many poisoned",
    )  # fmt: skip
    for kind in kinds.choices.values():
        kind.add_argument("--json", action="store_true", help="figures as one JSON object")
    return parser


def _add_benches(kinds: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add what is timed here; a flag is an argument of the kind's function."""
    flags: dict[str, tuple[Any, str, str]] = {
        "size": ("demo", "", "of the encoders: demo, ViT-B-32, ViT-L-14 …"),
        "num": (32, "", "clean captions or photos a step, and poisoned ones as many"),
        "rounds": (5, "", "of each contestant, in turn"),
        "calls": (12, "", "steps a round"),
        "people": (64, "", "whose names are put in"),
        "captions": ("", "FILE", "without, the demo's"),
        "tokenizer": ("", "DIR", "without, the demo's"),
        "images": ("", "DIR", "photos; without, drawn ones"),
        "faces": ("", "DIR", "photos, a folder a person; without, drawn ones"),
        "tower": ("text", "text|image", "encoder that is defended"),
        "steps": (50, "", "of the whole run"),
        "names": (32, "", "candidates whose prompts are embedded"),
        "photos": (200, "", "that are matched"),
        "candidates": (4096, "", "that they are matched with"),
        "model": ("", "DIR", "model directory; without, the demo's"),
        "axis": ("", "", "what grows: identities, captions, candidates, batch or size"),
        "sizes": ("", "N,N", "of what grows; without, some that suit it. Of size: demo,ViT-B-32 …"),
        "plot": ("", "FILE.png", "draw it there too"),
        "workers": (0, "", "processes of PyTorch's DataLoader; 0 for as many as there are cores"),
    }
    timed, text, image = ("size", "rounds"), ("captions", "tokenizer"), ("images", "faces")
    both = ("num", "calls", "people", *text, *image)
    for kind, about, names, own in (
        ("text", "The step of the text defense.", (*timed, "num", "calls", "people", *text), {}),
        ("image", "Overlay and step of the image defense.", (*timed, "num", "calls", *image), {}),
        (
            "idia",
            "The attack: prompts embedded, and photos matched with them.",
            (*timed, "names", "photos", "candidates", "tokenizer"),
            {"size": "ViT-B-32", "rounds": 3},
        ),
        (
            "pipeline",
            "What the host makes a second, and what the device takes.",
            (*timed, *both, "workers"),
            {},
        ),
        (
            "end2end",
            "A whole defense, from files to the defended model, in a fresh process.",
            (*timed, "tower", "steps", "num", "people", *text, *image),
            {"num": 128, "rounds": 2, "people": 16},
        ),
        (
            "scale",
            "What grows with the size of the work, and how.",
            ("axis", "sizes", "captions", "plot"),
            {},
        ),
        ("cold", "From start to the second step of a run.", ("model", "num"), {"num": 16}),
    ):
        sub = command(kinds, kind, _bench, about)
        sub.set_defaults(kind=kind)
        for name in names:
            default, meta, help_text = flags[name]
            default = own.get(name, default)
            sub.add_argument(
                name if name == "axis" else f"--{name}", default=default, metavar=meta or None,
                type=type(default), help=help_text,
            )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 done; 2 an input or setting is wrong, and the same command would fail again; 1 a fault
        of the run, the machine or this package; 128 + n after signal n.
    """
    args = _parser().parse_args(argv)
    console = Console(stderr=True, soft_wrap=True)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a model directory is local, always
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # torch is not missed
    code, failed = 0, None
    try:
        check_given(args)
        args.run(args, console)
    except (KeyboardInterrupt, Exception) as error:
        code, failed = _explain(error, console), error
    if "jaxdefense.distributed" in sys.modules:
        from jaxdefense import distributed

        together = isinstance(failed, Interrupted | NotReached)  # all processes end so
        distributed.end(code, None if together else failed)
    return code


def _explain(error: BaseException, console: Console) -> int:
    """Say what ended a command; its exit code."""
    said = " ".join(str(error).split())
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


def ask_for_huge_pages(setting: Path) -> None:
    """Start the program again with a glibc that asks for huge pages, which reads that but once.

    On a CPU the memory of a step is mapped anew each time, gigabytes of it: in pages of 4 KiB that
    takes a sixth of the step.

    Args:
        setting: the kernel's file that says when it gives them; nothing is done unless on request.
    """
    tunables, tunable = os.environ.get("GLIBC_TUNABLES", ""), "glibc.malloc.hugetlb"
    try:
        on_request = "[madvise]" in setting.read_text()
    except OSError:  # not Linux
        return
    # A loader that takes the variable away leaves the other: never twice.
    if on_request and tunable not in tunables and not os.environ.get(_RESTARTED):
        os.environ["GLIBC_TUNABLES"] = f"{tunables}:{tunable}=1".lstrip(":")
        os.environ[_RESTARTED] = "1"
        with contextlib.suppress(OSError):  # it runs without them too
            os.execv(sys.executable, sys.orig_argv)


if __name__ == "__main__":
    script()
