"""`jaxdefense bench cold`: where the time goes before the second step of a run.

Two processes, one after the other, share a directory of compiled programs. The first finds it
empty, the second finds all programs in it.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from typing import Any

from jaxdefense.errors import InputError

logger = logging.getLogger(__name__)


def bench_cold(model: str, num: int) -> dict[str, Any]:
    """Time the parts of a cold start of the image defense, in seconds.

    Args:
        model: model directory with a vision transformer; "" for the demo's model.
        num: number of clean photos a step, and as many with a face.

    Returns:
        the seconds of each part, for the `first` process and the second one, `again`.

    Raises:
        InputError: a parameter is out of range, or the directory cannot be read.
    """
    from jaxdefense.bench.side_by_side import check_counts
    from jaxdefense.clip.config import VisionConfig
    from jaxdefense.convert.directory import read_model_directory
    from jaxdefense.demo.run import shipped_model

    check_counts(num=num)
    model = model or str(shipped_model())
    if not isinstance(read_model_directory(model).cfg.vision, VisionConfig):
        raise InputError(f"`--model` (={model}) has no vision transformer.")
    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as cache:
        for name in ("first", "again"):
            logger.info(f"starting, {name}")
            environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
            command = [sys.executable, "-m", "jaxdefense.bench.cold", model, str(num)]
            start = time.time()
            done = subprocess.run(
                [*command, str(start)], env=environment, capture_output=True, text=True
            )
            if done.returncode:
                raise RuntimeError(done.stderr.strip())
            out[name] = json.loads(done.stdout)
    return out


def _image_steps(tower: Any, num: int) -> Any:
    """Prepare steps of the image defense on random photos."""
    import numpy as np

    from jaxdefense.bench.jax_steps import JaxSteps, num_parts
    from jaxdefense.config import PAPER_IMAGE
    from jaxdefense.data.faces import ImageBatch
    from jaxdefense.data.images import ImageProcessor
    from jaxdefense.defense.image import image_objective

    cfg, rng = tower.cfg, np.random.default_rng(0)
    photos = rng.integers(256, size=(2, num, cfg.image_size, cfg.image_size, 3), dtype=np.uint8)
    even = np.full(num, 1 / num, np.float32)
    target_BE = rng.standard_normal((num, cfg.embed), dtype=np.float32)
    processor = ImageProcessor(cfg.image_size, cfg.image_size)
    objective = image_objective(PAPER_IMAGE, processor, num_parts())
    batches = [ImageBatch(photos[0], photos[1], even, even, target_BE)] * 4
    return JaxSteps(tower, objective, batches)


def _main(model: str, num: int, started: float) -> None:
    """Take two steps and print the seconds of each part as JSON.

    Args:
        model: model directory.
        num: number of clean photos a step.
        started: time at which the parent started this process, seconds since the epoch.
    """
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
    from flax import nnx  # noqa: F401

    lap("import flax")
    import jaxdefense.checkpoint  # noqa: F401

    lap("import orbax")
    import jaxdefense.defense.image  # noqa: F401
    from jaxdefense.convert.directory import read_model_directory

    lap("import the rest")
    tower = read_model_directory(model).load().vision
    lap("read the model")
    steps = _image_steps(tower, num)
    lap("first state")
    spent: dict[str, float] = defaultdict(float)
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration_secs, **_: spent.update({event: spent[event] + duration_secs})
    )
    steps.steps(1)
    lap("first step")
    compiling = {
        "trace": ("jaxpr_trace_duration", "jaxpr_to_mlir_module_duration"),
        "compile": ("backend_compile_duration",),  # or reading the compiled program
    }
    for name, events in compiling.items():
        seconds = sum(spent[f"/jax/core/compile/{event}"] for event in events)
        parts[name] = round(seconds, 2)
        parts["first step"] = round(parts["first step"] - seconds, 2)
    steps.steps(1)
    lap("second step")
    print(json.dumps(parts | {"in all": round(last - started, 2)}))


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
