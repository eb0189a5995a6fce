"""`jaxdefense bench profile`: which operations the time of a step goes into, from a trace."""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax

from jaxdefense.bench.idia import JaxPrompts
from jaxdefense.bench.image import JaxImageSteps, image_work
from jaxdefense.bench.machine import JaxImplementation
from jaxdefense.bench.models import write_random_model
from jaxdefense.bench.side_by_side import check_counts
from jaxdefense.bench.text import JaxTextSteps, text_work
from jaxdefense.data.names import random_names
from jaxdefense.errors import InputError
from jaxdefense.idia.prompts import fill
from jaxdefense.paths import check_writable

_NUM_SHOWN, _NUM_PEOPLE = 12, 64
_OUTER = re.compile(r"(while|call|conditional)(\.\d+)*$")  # their parts are events of their own


def bench_profile(step: str, size: str, num: int, calls: int, out: str) -> dict[str, Any]:
    """Trace a few steps on one batch, and sum the time of each operation.

    Args:
        step: `text` or `image`, of a defense; `prompts`, of the attack.
        size: architecture of the encoder, with random weights.
        num: clean captions or photos a step, and as many poisoned; names put into all prompts.
        calls: steps that are traced.
        out: directory of the trace, for TensorBoard or Perfetto; it may hold earlier ones.

    Returns:
        the machine, seconds a step, and `operations`: of those that take most, the part of the
        devices' busy time, and seconds a step. Operations of one name count together, whatever
        number XLA put behind it.

    Raises:
        InputError: a parameter is out of range, or the directory cannot be written.
    """
    check_counts(num=num, calls=calls)
    check_writable(Path(out))
    if step not in _STEPS:
        raise InputError(f"`--step` (={step}) must be one of {', '.join(_STEPS)}.")
    with _STEPS[step](size, num) as run:
        run(2)
        with jax.profiler.trace(out):
            start = time.perf_counter()
            run(calls)
            seconds = (time.perf_counter() - start) / calls
    newest = max(Path(out).rglob("*.xplane.pb"), key=lambda file: file.stat().st_mtime)
    spent = operations(jax.profiler.ProfileData.from_file(str(newest)))
    busy = sum(spent.values())
    return JaxImplementation().machine() | {
        "step": step,
        "size": size,
        "num": num,
        "seconds_a_step": float(f"{seconds:.4g}"),
        "operations": {
            name: {
                "part": round(nanoseconds / busy, 3),
                "seconds": float(f"{nanoseconds / calls / 1e9:.3g}"),
            }
            for name, nanoseconds in spent.most_common(_NUM_SHOWN)
        },
    }


def operations(profile: Any) -> Counter[str]:
    """Sum the nanoseconds of each operation over all devices, without the numbers behind names.

    Args:
        profile: a `jax.profiler.ProfileData`. A CPU's operations are events of the host's threads.
    """
    spent, planes = Counter[str](), list(profile.planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    for plane in devices or planes:
        for event in (event for line in plane.lines for event in line.events):
            name = str(dict(event.stats).get("hlo_op") or "")
            # On the host other events bear the operation that they belong to.
            if name and (devices or name == event.name) and not _OUTER.match(name):
                spent[re.sub(r"(\.\d+)+$", "", name)] += round(event.duration_ns)
    return spent


@contextmanager
def _text(size: str, num: int) -> Iterator[Callable[[int], None]]:
    work = text_work(size, num, _NUM_PEOPLE, "", "")
    yield JaxTextSteps(size, work).steps_on_fixed_batch


@contextmanager
def _image(size: str, num: int) -> Iterator[Callable[[int], None]]:
    with image_work(size, num, "", "") as work:
        yield JaxImageSteps(size, work).steps_on_fixed_batch


@contextmanager
def _prompts(size: str, num: int) -> Iterator[Callable[[int], None]]:
    from jaxdefense.demo.run import shipped_model

    with TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        write_random_model(size, shipped_model(), model, vision=False)
        yield JaxPrompts(model, fill(random_names(num, 0))).embed


_STEPS = {"text": _text, "image": _image, "prompts": _prompts}
