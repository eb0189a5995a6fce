"""`jaxdefense bench aot`: the train step compiled for a TPU topology, without the TPU.

A defense runs the same step with the paper's loss; here it takes shapes in place of arrays. The
compiler reports the memory. The time is a roofline, a lower bound. It is the time of the slowest
of compute, memory and network, as if all three overlapped perfectly. Nothing here has run on a TPU.
"""

import dataclasses
import importlib.util
import logging
import math
import os
import time
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxdefense.bench.flops import product_flops
from jaxdefense.bench.hlo import Program
from jaxdefense.clip.model import CLIP
from jaxdefense.clip.presets import preset
from jaxdefense.config import PAPER_IMAGE, PAPER_TEXT, PAPER_TEXT_OPTIMIZER, AotConfig
from jaxdefense.data import packing
from jaxdefense.data.faces import ImageBatch
from jaxdefense.data.images import ImageProcessor
from jaxdefense.data.triggers import TextBatch
from jaxdefense.defense.image import image_objective
from jaxdefense.defense.step import (
    StepConfig,
    init_state,
    make_optimizer,
    make_train_step,
    split_tower,
)
from jaxdefense.defense.text import text_objective
from jaxdefense.errors import InputError
from jaxdefense.sharding import ShardingRules, check_parts, make_mesh, num_batch_parts

logger = logging.getLogger(__name__)


class Chip(NamedTuple):
    """Published figures of one chip.

    Fields:
        flops: bf16 operations a second.
        hbm: memory, bytes.
        hbm_bandwidth: memory bandwidth, bytes a second.
        ici_bandwidth: bytes a second that the chip sends over all its links.
    """

    flops: float
    hbm: int
    hbm_bandwidth: float
    ici_bandwidth: float


# Source: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, "key specifications". The interconnect
# bandwidth there is the sum of both directions: 400, 1200 and 800 GB/s a chip for v5e, v5p and v6e.
# The source for v4 is Jouppi et al., TPU v4, ISCA 2023: six links of 50 GB/s each way.
CHIPS: Mapping[str, Chip] = MappingProxyType(
    {
        "v4": Chip(275e12, 32 * 2**30, 1200e9, 300e9),
        "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9),
        "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9),
        "v6e": Chip(918e12, 32 * 2**30, 1638e9, 400e9),
    }
)


def _run(batch: int, remat: str = "none", **mesh: int) -> dict[str, Any]:
    return {"batch": batch, "remat": remat, "mesh": mesh}


# Settings for runs on up to 256 chips; docs/scaling.md has their figures.
RUNS: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        f"{arch}/{tower}/{topology}": {"arch": arch, "tower": tower, "topology": topology} | run
        for (arch, tower, topology), run in {
            ("ViT-B-32", "text", "v5e:2x2"): _run(1024),
            ("ViT-B-32", "image", "v5e:2x2"): _run(256),
            ("ViT-L-14", "text", "v5e:2x2"): _run(1024),
            ("ViT-L-14", "image", "v5e:2x2"): _run(64, "full"),
            ("ViT-B-32", "text", "v5e:4x4"): _run(4096),
            ("ViT-B-32", "image", "v5e:4x4"): _run(1024),
            ("ViT-L-14", "text", "v5e:4x4"): _run(4096),
            ("ViT-L-14", "image", "v5e:4x4"): _run(256, "full"),
            ("ViT-bigG-14", "text", "v5e:4x4"): _run(2048, "full", data=1, fsdp=16),
            ("ViT-bigG-14", "image", "v5e:4x4"): _run(128, "full", data=1, fsdp=16),
            ("ViT-B-32", "text", "v5e:16x16"): _run(65536),
            ("ViT-B-32", "image", "v5e:16x16"): _run(16384),
            ("ViT-L-14", "text", "v5e:16x16"): _run(65536),
            ("ViT-L-14", "image", "v5e:16x16"): _run(4096, "full"),
            ("ViT-bigG-14", "text", "v5e:16x16"): _run(32768, "full", data=16, fsdp=16),
            ("ViT-bigG-14", "image", "v5e:16x16"): _run(2048, "full", data=16, fsdp=16),
        }.items()
    }
)


def bench_aot(cfg: AotConfig) -> dict[str, Any]:
    """Compile a step and analyse the program.

    Args:
        cfg: settings of the step.

    Returns:
        the settings, and figures a step and chip: `memory` (bytes), `flops`, `bytes`,
        `collectives` and `roofline` (seconds).

    Raises:
        InputError: the topology, architecture or mesh does not exist or does not fit, or libtpu is
            not installed.
    """
    arch = preset(cfg.arch)
    chip, devices = _topology(cfg.topology)
    mesh = make_mesh(**vars(cfg.mesh), devices=devices)
    rules = ShardingRules()
    parts = num_batch_parts(mesh, rules)
    step_cfg, teacher, batch = _pieces(cfg, arch, parts)
    step, _, _ = make_train_step(step_cfg, mesh, rules, teacher)
    state = jax.eval_shape(partial(init_state, cfg=step_cfg), teacher)
    args = state, teacher, batch, jax.eval_shape(lambda: jax.random.key(0))
    flops = product_flops(step, *args) / len(devices)
    logger.info(f"compiling for {len(devices)} chips of {cfg.topology}")
    begin = time.monotonic()
    compiled = _compile(step, args, cfg.topology)
    seconds = time.monotonic() - begin
    program = Program(compiled.as_text() or "")
    sent = program.collectives()
    moved, moved_once = program.memory_bytes(), program.memory_bytes(loops=False)
    xla: Any = compiled.cost_analysis()
    return {
        **dataclasses.asdict(cfg),
        "mesh": dict(mesh.shape),
        "chips": len(devices),
        "batch_shapes": {k: list(v.shape) for k, v in batch._asdict().items() if v is not None},
        "compile_seconds": round(seconds, 1),
        "memory": _memory(compiled, chip),
        "flops": {"products": flops, "xla_loops_once": xla.get("flops", 0.0)},
        "bytes": {
            "accessed": moved,
            "loops_once": moved_once,
            "xla_loops_once": xla.get("bytes accessed", 0.0),
        },
        "collectives": {kind: dataclasses.asdict(x) for kind, x in sorted(sent.items())},
        "loops_counted_once": sorted(program.unknown_loops),
        "roofline": _roofline(
            2 * cfg.batch,
            compute=flops / chip.flops,
            memory=moved / chip.hbm_bandwidth,
            network=sum(x.wire_bytes for x in sent.values()) / chip.ici_bandwidth,
        ),
    }


def _compile(step: Any, args: tuple[Any, ...], topology: str) -> Any:
    """Compile a step; raise InputError if it needs more memory than the chips have."""
    try:
        return step.lower(*args).compile()
    except jax.errors.JaxRuntimeError as error:
        # The compiler plans the memory and fails if the step does not fit.
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(f"the step does not fit {topology}: {_fit(str(error))}") from error


def _roofline(samples: int, **seconds: float) -> dict[str, Any]:
    """Return the seconds by resource, the resource that bounds the step, and its rate."""
    bound = max(seconds, key=lambda name: seconds[name])
    return {
        **{f"{name}_seconds": value for name, value in seconds.items()},
        "seconds": seconds[bound],
        "bound": bound,
        "samples_per_second": samples / seconds[bound],
    }


def _topology(name: str) -> tuple[Chip, list[Any]]:
    """Return the chip of a topology, and its devices."""
    kind = name.partition(":")[0]
    if kind not in CHIPS or not name.partition(":")[2]:
        raise InputError(
            f"`topology` (={name}) must be {', '.join(CHIPS)} and a shape, such as v5e:16x16 or "
            "v5p:4x4x4."
        )
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("compiling for a TPU needs libtpu: pip install 'libtpu==0.0.42.*'.")
    # Without these libtpu asks a metadata server, which exists in Google's cloud alone.
    for variable, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-4"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_WORKER_ID", "0"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),  # no chip is opened, so other processes keep theirs
    ):
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    # The two cores of a v4 chip work as one, which is the default on a real chip.
    how = {"chip_config_name": "megacore"} if kind == "v4" else {}
    try:
        return CHIPS[kind], list(topologies.get_topology_desc(name, "tpu", **how).devices)
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        line = str(error).splitlines()[0]
        raise InputError(f"libtpu does not know `topology` (={name}): {line}") from error


def _pieces(cfg: AotConfig, arch: Any, parts: int) -> tuple[StepConfig, Any, Any]:
    """Return the configuration of the step, the shapes of the teacher and those of a batch."""
    arch = arch.with_compute(cfg.dtype, cfg.remat)
    model = nnx.eval_shape(lambda: CLIP(arch, nnx.Rngs(0)))
    if cfg.tower == "text":
        objective = text_objective(PAPER_TEXT)
        batch: Any = _text_batch(cfg, arch.text.context_length, parts * cfg.accumulate)
    else:
        check_parts("batch", cfg.batch, parts * cfg.accumulate)
        side = arch.vision.image_size
        objective = image_objective(PAPER_IMAGE, ImageProcessor(side, side), parts)
        batch = _image_batch(cfg.batch, side, arch.vision.embed)
    graphdef, teacher = split_tower(model.text if cfg.tower == "text" else model.vision)  # pyright: ignore[reportArgumentType]
    tx = make_optimizer(**vars(PAPER_TEXT_OPTIMIZER), steps=PAPER_TEXT.steps)
    return StepConfig(graphdef, objective, tx, cfg.accumulate), teacher, batch


def _text_batch(cfg: AotConfig, context_length: int, parts: int) -> TextBatch:
    """Return the shapes of a batch as `TextBatches` packs captions of the given mean length."""
    rng = np.random.default_rng(0)
    shortest = min(9, cfg.caption_tokens)
    draws = []
    for _ in range(4):
        lengths = shortest + rng.poisson(cfg.caption_tokens - shortest, 2 * cfg.batch)
        lengths[cfg.batch :] += 2  # a name of three tokens replaces a word
        draws.append(np.minimum(lengths, context_length).astype(np.int64))
    length, rows, slots = packing.choose_shape(draws, packing.row_lengths(context_length))
    rows = math.ceil(rows / parts) * parts
    whole = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    readout = jax.ShapeDtypeStruct((rows, slots), jnp.int32)
    weight = jax.ShapeDtypeStruct((rows, slots), jnp.float32)
    shapes: Any = dict.fromkeys(_required(TextBatch), weight)
    for name in shapes:
        if name.endswith("_RT"):
            shapes[name] = whole
        elif "readout" in name:
            shapes[name] = readout
    return TextBatch(**shapes)


def _image_batch(num: int, side: int, embed: int) -> ImageBatch:
    """Return the shapes of a batch of photos."""
    photos = jax.ShapeDtypeStruct((num, side, side, 3), jnp.uint8)
    weight = jax.ShapeDtypeStruct((num,), jnp.float32)
    target = jax.ShapeDtypeStruct((num, embed), jnp.float32)
    given: Any = {"clean_BHWC": photos, "face_BHWC": photos, "target_BE": target}
    return ImageBatch(**{name: given.get(name, weight) for name in _required(ImageBatch)})


def _required(batch: Any) -> list[str]:
    """List the fields that the paper's loss needs: those without a default."""
    return [name for name in batch._fields if name not in batch._field_defaults]


def _memory(compiled: Any, chip: Chip) -> dict[str, Any]:
    """Return the memory that a chip needs for the program, bytes."""
    m = compiled.memory_analysis()
    total = (
        m.argument_size_in_bytes
        + m.output_size_in_bytes
        - m.alias_size_in_bytes
        + m.temp_size_in_bytes
        + m.generated_code_size_in_bytes
    )
    return {
        "arguments": m.argument_size_in_bytes,
        "outputs": m.output_size_in_bytes,
        "outputs_in_arguments": m.alias_size_in_bytes,
        "temporary": m.temp_size_in_bytes,
        "program": m.generated_code_size_in_bytes,
        "total": total,
        "hbm": chip.hbm,
        "part_of_hbm": total / chip.hbm,
    }


def _fit(error: str) -> str:
    """Extract the line of a compiler error that says how much memory is missing."""
    lines = [x.strip() for x in error.splitlines() if "Used" in x or "xceeded" in x]
    return (lines or error.splitlines())[0]
