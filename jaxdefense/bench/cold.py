"""`jaxdefense bench cold`: what a run waits for before its second step.

Two processes, one after the other, share a directory of compiled programs: the first finds it
empty, the second finds everything there.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from typing import Any

from rich.console import Console

from jaxdefense.bench.side_by_side import check_counts


def bench_cold(size: str, num: int, console: Console) -> dict[str, Any]:
    """Time the parts of a cold start of the image defense, in seconds.

    Args:
        size: of the encoder, one of `PRESETS`, with random weights.
        num: clean photos a step, and as many with a face.
        console: for progress.

    Returns:
        parts of the time by name, for the `first` process and the one that comes `again`.

    Raises:
        ValueError: a flag is out of range.
    """
    from jaxdefense.clip.presets import preset

    preset(size)
    check_counts(num=num)
    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as cache:
        for name in ("first", "again"):
            console.print(f"starting, {name}")
            environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
            command = [sys.executable, "-m", "jaxdefense.bench.cold", size, str(num)]
            start = time.time()
            done = subprocess.run(
                [*command, str(start)], env=environment, capture_output=True, text=True
            )
            if done.returncode:
                raise RuntimeError(done.stderr.strip())
            out[name] = json.loads(done.stdout)
    return out


def _main(size: str, num: int, started: float) -> None:
    parts: dict[str, float] = {}
    last = started

    def lap(name: str) -> None:
        nonlocal last
        now = time.time()
        parts[name] = round(now - last, 2)
        last = now

    lap("python, command line")
    import jax

    lap("import jax")
    from flax import nnx

    lap("import flax")
    import jaxdefense.checkpoint  # noqa: F401

    lap("import orbax")
    from jaxdefense.bench.image import image_step

    import jaxdefense.defense.image  # noqa: F401

    lap("import the rest")
    step, state, teacher, batch, key = image_step(size, num)
    jax.block_until_ready(state)
    lap("weights")
    lowered = step.lower(state, teacher, batch, key)
    lap("trace")
    compiled = lowered.compile()
    lap("compile")
    state, metrics = compiled(state, teacher, batch, key)
    jax.block_until_ready(metrics)
    lap("first step")
    jax.block_until_ready(compiled(state, teacher, batch, key))
    lap("second step")
    print(json.dumps(parts | {"in all": round(last - started, 2)}))


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
