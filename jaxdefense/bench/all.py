"""`jaxdefense bench all`: every benchmark within a budget of time, on one page.

Each is a command in a process of its own, with a limit, and its figures are written as soon as they
are there. So a run that is stopped, or runs out of time, keeps what it has, and the same command
does the rest.
"""

import contextlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from rich.console import Console

from jaxdefense.bench.process import elsewhere
from jaxdefense.bench.show import show
from jaxdefense.errors import InputError
from jaxdefense.files import read_json, write_json, write_text
from jaxdefense.log import Progress
from jaxdefense.paths import check_writable
from jaxdefense.report import frame

logger = logging.getLogger(__name__)

FIGURES, PAGE, TRACES, LOG = "figures.json", "index.html", "traces", "log.txt"
_LEAST = 15.0  # seconds that are left, below which no benchmark begins
_GRACE = 5.0  # seconds to end in
_WIDTH = 110  # characters of a table
_OF_MACHINE = ("device", "processor", "jax", "dtype")


class Part(NamedTuple):
    """One benchmark.

    Fields:
        name: on the page.
        command: of `jaxdefense bench`.
        seconds: most that it may take.
    """

    name: str
    command: str
    seconds: int


# What only an accelerator shows comes first. PyTorch is not compiled, which takes minutes.
ACCELERATOR = [
    Part("Step, names", "text --size ViT-B-32 --num 512 --rounds 3 --calls 10 --no-compiled", 120),
    Part("Step, faces", "image --size ViT-B-32 --num 128 --rounds 3 --calls 5 --no-compiled", 150),
    Part("The attack", "idia --names 512 --photos 2000 --candidates 65536 --no-compiled", 75),
    Part("Attention", "attention --num 256 --calls 20", 45),
    Part("Profile, names", "profile --step text --size ViT-B-32 --num 512", 45),
    Part("Profile, faces", "profile --step image --size ViT-B-32 --num 128", 45),
    Part("Profile, prompts", "profile --step prompts --size ViT-B-32 --num 512", 45),
    Part("float32 and bfloat16", "dtypes", 120),
    Part("Host and device", "pipeline --size ViT-B-32 --num 128 --rounds 2", 60),
    Part("Names, from files", "end2end --size ViT-B-32 --steps 50 --rounds 1", 120),
    Part("Faces, from files", "end2end --size ViT-B-32 --tower image --steps 50 --rounds 1", 120),
    Part("Cold start", "cold", 45),
    Part("Cost over captions a step", "scale batch", 60),
]
PROCESSOR = [
    Part("Step, names", "text --no-compiled", 150),
    Part("Step, faces", "image --no-compiled", 200),
    Part("The attack", "idia --size demo --no-compiled", 60),
    Part("Attention", "attention --num 4 --calls 3", 60),
    Part("Profile, names", "profile --step text", 60),
    Part("Profile, faces", "profile --step image", 60),
    Part("Profile, prompts", "profile --step prompts", 60),
    Part("Host and device", "pipeline --rounds 2", 90),
    Part("Names, from files", "end2end --steps 40 --rounds 1", 120),
    Part("Faces, from files", "end2end --tower image --steps 40 --rounds 1", 150),
    Part("Cold start", "cold", 60),
    Part("float32 and bfloat16", "dtypes", 240),
]
REHEARSAL = [
    Part("Step, names", "text --num 4 --rounds 1 --calls 1 --people 4 --no-compiled", 240),
    Part("Step, faces", "image --num 4 --rounds 1 --calls 1 --no-compiled", 240),
    Part(
        "The attack",
        "idia --size demo --names 4 --photos 8 --candidates 64 --rounds 1 --no-compiled",
        240,
    ),
    Part("Attention", "attention --num 1 --rounds 1 --calls 1", 240),
    Part("Profile, names", "profile --step text --num 4 --calls 1", 240),
    Part("Profile, faces", "profile --step image --num 4 --calls 1", 240),
    Part("Profile, prompts", "profile --step prompts --num 4 --calls 1", 240),
    Part("float32 and bfloat16", "dtypes --steps 2 --photos 2", 240),
    Part("Host and device", "pipeline --num 4 --rounds 1 --calls 1 --people 4", 240),
    Part("Names, from files", "end2end --steps 2 --num 4 --people 2 --rounds 1", 240),
    Part("Cold start", "cold --num 2", 240),
]


def bench_all(out: str, minutes: float, rehearse: bool) -> dict[str, Any]:
    """Run the benchmarks that fit into the time, and write their figures and a page.

    Args:
        out: directory of `figures.json`, `index.html`, `log.txt` and, in `traces`, what the
            profiles saw. Benchmarks whose figures it holds are not run again.
        minutes: for all of it.
        rehearse: at the smallest sizes, rather than those that suit the device.

    Returns:
        the machine, seconds of each benchmark that ran, and why the others did not.

    Raises:
        InputError: a parameter is out of range, or the directory is of another machine or of other
            sizes.
    """
    if minutes <= 0:
        raise InputError(f"`--minutes` (={minutes}) must be above 0.")
    path, machine = Path(out), elsewhere(_machine)
    check_writable(path)
    parts = ACCELERATOR if machine["platform"] != "cpu" else PROCESSOR
    parts = REHEARSAL if rehearse else parts
    found: dict[str, Any] = {}
    if (path / FIGURES).exists():
        found = read_json(path / FIGURES)
        names = {part.name: part.command for part in parts}
        same = all(names.get(name) == x["command"] for name, x in found.get("parts", {}).items())
        if found.get("machine") != machine or not same:
            raise InputError(
                f"`{path}` holds the figures of another machine, or of other sizes; give another "
                "directory, or delete it."
            )
    path.mkdir(parents=True, exist_ok=True)
    found = {"machine": machine, "parts": found.get("parts", {})}
    deadline = time.monotonic() + 60 * minutes
    with Progress("measuring", len(parts)) as progress:
        for part in parts:
            if "figures" not in found["parts"].get(part.name, {}):
                found["parts"][part.name] = _measure(part, path, deadline)
                write_json(path / FIGURES, found)
                write_text(path / PAGE, _page(found))
            progress.advance()
    return machine | {
        name: f"{x['seconds']} s" if "figures" in x else x["why"]
        for name, x in found["parts"].items()
    }


def _machine() -> dict[str, str]:
    import jax

    from jaxdefense.bench.machine import JaxImplementation

    return JaxImplementation().machine() | {"platform": jax.default_backend()}


def _measure(part: Part, path: Path, deadline: float) -> dict[str, Any]:
    """Run a benchmark: its command, seconds and figures, or why there are none."""
    left, told = deadline - time.monotonic(), {"command": part.command}
    if left < _LEAST:
        return told | {"why": "no time was left"}
    words = [*part.command.split(), "--json"]
    if words[0] == "profile":
        words += ["--out", str(path / TRACES / words[words.index("--step") + 1])]
    limit, start = min(left, part.seconds), time.monotonic()
    logger.info(f"bench {' '.join(words)}")
    with (path / LOG).open("a") as log:
        code, said = _ended([sys.executable, "-m", "jaxdefense.cli", "bench", *words], log, limit)
    seconds = round(time.monotonic() - start, 1)
    if code == 0:
        return told | {"seconds": seconds, "figures": json.loads(said)}
    why = f"not done within {limit:.0f} s" if code is None else f"exit code {code}, see {LOG}"
    logger.warning(f"bench {part.command}: {why}")
    return told | {"seconds": seconds, "why": why}


def _ended(command: Sequence[str], log: Any, seconds: float) -> tuple[int | None, str]:
    """Run a command and all that it starts; give exit code and output.

    The code is None if it took longer than so many seconds, and was ended.
    """
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:
        try:
            said, _ = process.communicate(timeout=seconds)
        except BaseException as error:
            for how in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, how)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.communicate(timeout=_GRACE)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return None, ""
        return process.returncode, said


def _page(found: Mapping[str, Any]) -> str:
    """Write the page."""
    sections = []
    for name, x in found["parts"].items():
        about = {"why": x.get("why", ""), "seconds": x["seconds"] if "figures" in x else 0.0}
        command = f"jaxdefense bench {x['command']}"
        text = _text(x.get("figures", {}))
        sections.append(
            frame.section(name, frame.render("bench", command=command, text=text, **about))
        )
    lede = ", ".join(f"{name}: {value}" for name, value in found["machine"].items())
    return frame.page("Benchmarks", f"{lede}.", sections)


def _text(figures: Mapping[str, Any]) -> str:
    """Write figures as `jaxdefense bench` prints them, without the machine."""
    console = Console(file=io.StringIO(), width=_WIDTH)
    show({name: x for name, x in figures.items() if name not in _OF_MACHINE}, False, console)
    lines = cast(io.StringIO, console.file).getvalue().splitlines()
    return "\n".join(line.rstrip() for line in lines if line.strip())
