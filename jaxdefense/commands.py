"""What each command does with its settings.

Commands import what they need when they run: help must not wait for JAX.
"""

import contextlib
import dataclasses
import importlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from jaxdefense.buckets.places import as_given
from jaxdefense.errors import NotReached
from jaxdefense.log import write_to

if TYPE_CHECKING:
    from jaxdefense.results import Result

logger = logging.getLogger(__name__)

# A function that takes the settings; a command's returns a `Result`.
Run = Callable[[Any], Any]
R = TypeVar("R")
C = TypeVar("C")


@dataclasses.dataclass(frozen=True)
class Command:
    """A command.

    Fields:
        about: what it does, in one sentence.
        settings: `module:dataclass`.
        run: `module:function` that takes them; see `Run`.
        around: what is done before and after; tells the result.
        presets: `module:dict` of settings by name, for `--preset`; "" for none.
        below: `module:function` that gives settings below all others; see `settings.parse`.
    """

    about: str
    settings: str
    run: str
    around: Callable[[Run, Any], None]
    presets: str = ""
    below: str = ""

    def kind(self) -> type:
        """Give the dataclass of its settings."""
        return _find(self.settings)

    def named_settings(self) -> Mapping[str, Mapping[str, Any]]:
        """Give its presets by name."""
        return _find(self.presets) if self.presets else {}

    def read(self, args: Sequence[str], prog: str = "jaxdefense") -> Any:
        """Fill its settings from flags, over those of a preset if one is named.

        Raises:
            InputError: see `settings.parse`; or there is no such preset.
        """
        from jaxdefense.settings import parse

        presets = self.named_settings()
        also = "A setting may also be given by --set KEY=VALUE, or by --config FILE: Python with "
        also += "get_config(). docs/settings.md lists all settings."
        if presets:
            also += " --preset NAME gives those of a run that docs/scaling.md lists."
        helps = {"-h", "--help"} & set(args)  # what lies below needs JAX
        below = {"below": _find(self.below)} if self.below and not helps else {}
        return parse(self.kind(), args, prog, f"{self.about} {also}", presets, **below)

    def __call__(self, cfg: Any) -> None:
        """Run it; see `prepared`."""
        with prepared(cfg) as here:
            self.around(_find(self.run), here)


@contextlib.contextmanager
def prepared(cfg: C) -> Iterator[C]:
    """Join the other processes, and give the settings as the function of a command takes them.

    A model's id gets the commit that it means now, and a bucket's address is a local path.

    Args:
        cfg: dataclass of settings.

    Raises:
        InputError: the package of a tracker is missing, the processes do not agree, or a model or
            an address is wrong; see `on_local_paths`.
    """
    from jaxdefense.buckets.local import on_local_paths
    from jaxdefense.hub import pinned
    from jaxdefense.settings import with_models

    if log := getattr(cfg, "log", None):
        from jaxdefense.trackers import check

        check(log)  # before inputs are read, which may take minutes
    cfg, together = with_models(cfg, pinned), hasattr(cfg, "distributed")
    if together:
        _join(cfg)
    with on_local_paths(cfg) as here:
        if together:
            _log_aside(here)
        yield here


def _find(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(f"jaxdefense.{module}"), name)


def _tell(result: "Result", cfg: Any, out: str) -> None:
    """Print what a command found on standard output: a few sentences, or JSON alone."""
    from jaxdefense.results import as_json

    lines = [json.dumps(as_json(result), indent=2)] if cfg.json else result.sentences(out)
    for line in map(as_given, lines):
        encoding = sys.stdout.encoding or "utf-8"  # which may not have all characters of a name
        print(line.encode(encoding, "backslashreplace").decode(encoding))


def _tell_once(result: "Result", cfg: Any) -> None:
    """Print what several processes found together, on the first of them."""
    from jaxdefense.distributed import first

    if first():
        _tell(result, cfg, cfg.out)
    else:
        logger.info("done")  # what its log kept in memory is written with it


def _plain(run: Run, cfg: Any) -> None:
    _tell(run(cfg), cfg, cfg.out)


def together(run: Callable[[Any], R], cfg: Any) -> R:
    """Run on all processes, in a directory that no other command writes."""
    from jaxdefense.run_directory import claimed

    with claimed(Path(cfg.out)):
        return run(cfg)


def defended(run: Callable[[Any], R], cfg: Any) -> R:
    """Run a defense as `together`, and write its reports."""
    from jaxdefense.distributed import on_first

    def reported(cfg: Any) -> R:
        summary = run(cfg)
        runs = [half.out for half in cfg.halves()] if hasattr(cfg, "halves") else []
        on_first(partial(_write_reports, [*runs, cfg.out]))
        return summary

    return together(reported, cfg)


def _together(run: Run, cfg: Any) -> None:
    _tell_once(together(run, cfg), cfg)


def _defend(run: Run, cfg: Any) -> None:
    from jaxdefense.config import REMOVED
    from jaxdefense.results import BothDefenseSummary

    summary = defended(run, cfg)
    _tell_once(summary, cfg)
    both = isinstance(summary, BothDefenseSummary)
    halves = {REMOVED["text"]: summary.text, REMOVED["image"]: summary.image} if both else {}
    found = halves or {"": summary}
    failed = {what: x.validation["after"] for what, x in found.items() if x.reached is False}
    left = {name for verdict in failed.values() for name in verdict["left"]}
    if failed:
        which = f" ({' and '.join(failed)})" if halves else ""
        raise NotReached(
            f"not reached{which}: of those to remove, {len(left)} did not pass validation; the "
            f"model was written all the same, and the report in `{cfg.out}` says who is left."
        )


def _write_reports(runs: Sequence[str]) -> None:
    from jaxdefense.report.write import write_run_report  # brings Matplotlib

    for run in runs:
        write_run_report(Path(run))


def _sweep(run: Run, cfg: Any) -> None:
    _keep_compiled(cfg.cache.compilation)
    _plain(run, cfg)


def _show(run: Run, cfg: Any) -> None:
    from jaxdefense.bench.show import show

    settings = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(cfg) if f.name != "json"}
    show(run(**settings), cfg.json)  # pyright: ignore[reportCallIssue]


def _show_aot(run: Run, cfg: Any) -> None:
    from jaxdefense.bench.show import show

    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing runs: leave chips to others
    show(run(cfg), cfg.json)


def _join(cfg: Any) -> None:
    """Join the other processes, if any, and see that all do the same."""
    from jaxdefense import distributed
    from jaxdefense.settings import to_dict

    _keep_compiled(cfg.cache.compilation)
    distributed.initialize(cfg.distributed)
    if not distributed.several():
        return
    settings = to_dict(cfg)
    for own in ("cache", "profile"):
        settings.pop(own, None)
    del settings["distributed"]["process_id"]
    distributed.agree(settings | distributed.program())


def _log_aside(cfg: Any) -> None:
    """Let processes that do not write the run go on showing what they do in a file."""
    from jaxdefense import distributed

    if not distributed.first():
        write_to(distributed.Log(Path(cfg.out)))


def _keep_compiled(directory: str) -> None:
    """Keep compiled programs there; see `CacheConfig`."""
    import jax

    from jaxdefense.files import cache_directory

    if directory == "off":
        jax.config.update("jax_enable_compilation_cache", False)
    elif directory or not jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", directory or str(cache_directory() / "xla"))


def _alone(run: Run, cfg: Any) -> None:
    """Run in one process, in a directory that no other command writes."""
    from jaxdefense.run_directory import claimed

    with claimed(Path(cfg.out)):
        result = run(cfg)
    _tell(result, cfg, cfg.out)


def _report(run: Any, cfg: Any) -> None:
    _tell(run([Path(path) for path in cfg.runs], Path(cfg.out)), cfg, cfg.out)


def _ledger(run: Run, cfg: Any) -> None:
    _tell(run(cfg), cfg, cfg.model)


def _convert(run: Any, cfg: Any) -> None:
    how = {"layout": cfg.layout, "activation": cfg.activation}
    _tell(run(Path(cfg.src), Path(cfg.dst), cfg.to, **how), cfg, cfg.dst)


def reference() -> str:
    """Write the page of all settings, as Markdown."""
    from jaxdefense.settings import settings_of

    def usual(key: str) -> str:
        return f"--{key.replace('_', '-')}"

    page = [
        "# Settings of every command",
        "",
        "Each setting is a flag, as in `--train.steps 800`, a key of `--set KEY=VALUE`, and a key "
        "of a config file: `--config FILE`, Python with `get_config()` that returns an "
        "`ml_collections.ConfigDict`. Flags win over `--set`, which wins over the file. A word in "
        "capitals is an argument without a flag.",
        "",
        "A run that was broken off resumes with the same settings. Those marked * may have another "
        "value: they say how a run is computed, or where its inputs are, whose contents must be "
        "the same. A path may be an address in a bucket, but for caches and traces: "
        "[runs.md](runs.md#buckets) has more. This page is written by `python -m "
        "jaxdefense.commands`.",
    ]
    for name, command in COMMANDS.items():
        page += ["", f"## `jaxdefense {name}`", "", command.about, ""]
        page += ["| setting | other flag | is | default | |", "|---|---|---|---|---|"]
        for setting in settings_of(command.kind()):
            short = ", ".join(f"`{flag}`" for flag in setting.flags if flag != usual(setting.key))
            default = "**required**" if setting.default is None else f"`{setting.default}`"
            default = "" if default == "``" else default
            star = "" if setting.result else " *"
            row = [f"`{setting.key}`{star}", short, setting.type, default, setting.help]
            page.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |")
    return "\n".join(page) + "\n"


def _bench(name: str, about: str) -> Command:
    settings = f"bench.config:{name.capitalize()}Config"
    return Command(about, settings, f"bench.{name}:bench_{name}", _show)


COMMANDS = {
    "demo": Command(
        "Show it all on a small model that ships with this.",
        "config:DemoConfig",
        "demo.run:run_demo",
        _alone,
    ),
    "defend text": Command(
        "Remove names from the text encoder.",
        "config:DefendTextConfig",
        "defense.text:defend_text",
        _defend,
        below="defense.diffusion:below",
    ),
    "defend image": Command(
        "Remove faces from the image encoder.",
        "config:DefendImageConfig",
        "defense.image:defend_image",
        _defend,
        below="defense.inherited:inherited",
    ),
    "defend both": Command(
        "Remove names and faces: both encoders, merged.",
        "config:DefendBothConfig",
        "defense.both:defend_both",
        _defend,
        below="defense.inherited:inherited",
    ),
    "find": Command(
        "Collect photos whose captions name people, to look through.",
        "find.config:FindConfig",
        "find.run:find",
        _alone,
    ),
    "ledger": Command(
        "Say what was removed from a model, and what proved it.",
        "config:LedgerConfig",
        "ledger.run:ledger",
        _ledger,
    ),
    "delta": Command(
        "Write what a defense changed, instead of the whole model.",
        "config:DeltaConfig",
        "convert.delta:delta",
        _plain,
    ),
    "apply": Command(
        "Make the defended model from the original and such a patch.",
        "config:ApplyConfig",
        "convert.delta:apply",
        _plain,
    ),
    "merge": Command(
        "Make a defended text and a defended image encoder one model.",
        "config:MergeConfig",
        "defense.merge:merge",
        _plain,
    ),
    "attack": Command(
        "Infer identities: whom does the model know?",
        "config:AttackConfig",
        "idia.run:run_attack",
        _together,
    ),
    "evaluate": Command(
        "Measure what a defense changed and kept.",
        "config:EvaluateConfig",
        "evals.run:run_evaluate",
        _together,
    ),
    "prove": Command(
        "Put a defended model to attacks, and to what may come after.",
        "proof.config:ProveConfig",
        "proof.run:prove",
        _together,
    ),
    "report": Command(
        "Write what was asked, done and found on one page.",
        "config:ReportConfig",
        "report.write:write_report",
        _report,
    ),
    "sweep text": Command(
        "How many names can be removed, and at what cost?",
        "config:SweepTextConfig",
        "sweep.run:run_sweep",
        _sweep,
    ),
    "sweep image": Command(
        "How many faces can be removed, and at what cost?",
        "config:SweepImageConfig",
        "sweep.run:run_sweep",
        _sweep,
    ),
    "sweep both": Command(
        "How many names and faces can be removed, and at what cost?",
        "config:SweepBothConfig",
        "sweep.run:run_sweep",
        _sweep,
    ),
    "convert": Command(
        "Write a checkpoint in another library's layout, losslessly.",
        "config:ConvertConfig",
        "convert.run:convert",
        _convert,
    ),
    "bench text": _bench("text", "The step of the text defense."),
    "bench image": _bench("image", "Overlay and step of the image defense."),
    "bench idia": _bench("idia", "The attack: prompts embedded, and photos matched with them."),
    "bench pipeline": _bench("pipeline", "What the host makes a second, and the device takes."),
    "bench end2end": _bench("end2end", "A whole defense, in a fresh process."),
    "bench scale": _bench("scale", "What grows with the size of the work, and how."),
    "bench requests": _bench("requests", "People who ask to be removed one after another."),
    "bench profile": _bench("profile", "What the time of a step goes into."),
    "bench attention": _bench("attention", "XLA's attention beside cuDNN's."),
    "bench dtypes": _bench("dtypes", "A defense in bfloat16 beside one in float32."),
    "bench all": _bench("all", "All of it within a few minutes, on one page."),
    "bench cold": _bench("cold", "From start to the second step of a run."),
    "bench aot": Command(
        "Compile a step for a TPU topology, without the TPU.",
        "config:AotConfig",
        "bench.aot:bench_aot",
        _show_aot,
        "bench.aot:RUNS",
    ),
}


if __name__ == "__main__":
    print(reference(), end="")
