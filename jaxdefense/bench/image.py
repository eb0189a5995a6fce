"""`jaxdefense bench image`: the step of the image defense, timed beside PyTorch.

Both implementations read the same photos from disk, put the same number of faces on them, and train
an encoder of the same size. jaxdefense puts the faces on in its compiled step, which runs the
student once. PyTorch follows the paper; `jaxdefense.bench.torch.image` has its step.
"""

import dataclasses
import logging
from collections.abc import Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxdefense.bench.jax_steps import AHEAD, JaxSteps, num_parts, preset_in_run_dtype
from jaxdefense.bench.side_by_side import (
    COMPILED,
    JAXDEFENSE,
    TORCH,
    Processes,
    check_counts,
    rounded,
    shares,
    side_by_side,
    with_kept,
    with_torch,
)
from jaxdefense.bench.torch.compiled import CompiledImageSteps
from jaxdefense.bench.torch.image import TorchImageSteps
from jaxdefense.clip.config import VisionConfig
from jaxdefense.clip.presets import preset
from jaxdefense.clip.vision import VisionTower
from jaxdefense.config import PAPER_IMAGE, ImageTrainConfig
from jaxdefense.data.faces import Bounds, ImageBatches
from jaxdefense.data.images import ImageProcessor, Loader, Photos, read_folders
from jaxdefense.data.overlay import overlay
from jaxdefense.data.sources import Photo, read_images
from jaxdefense.defense.image import image_objective
from jaxdefense.defense.kept import keep_photos
from jaxdefense.errors import InputError

logger = logging.getLogger(__name__)

_PAPER = "paper"
_PROMPTS = 16  # prompts a person, as many as a step of the default loss takes


@dataclasses.dataclass(frozen=True)
class ImageWork:
    """The work of a step, the same for both implementations.

    Fields:
        cfg: sizes of the encoder; its weights are random.
        clean: ordinary photos.
        people: people whose faces are put on them.
        num: number of clean photos a step, and as many with a face.
    """

    cfg: VisionConfig
    clean: Sequence[Photo]
    people: Sequence[Photos]
    num: int

    def files(self) -> list[Sequence[Photo]]:
        """Return the photos of each person."""
        return [person.files for person in self.people]

    def on_torch(
        self, ahead: int = 0, kind: type[TorchImageSteps] = TorchImageSteps
    ) -> partial[TorchImageSteps]:
        """Return a constructor of a PyTorch implementation; it reads `ahead` steps ahead."""
        return partial(kind, self.cfg, self.clean, self.files(), self.num, ahead)


@contextmanager
def image_work(size: str, num: int, images: str, faces: str):
    """Read or draw the inputs of `bench_image`, which explains the parameters.

    Drawn photos are deleted at the end of the context.

    Raises:
        InputError: a parameter is out of range, or a directory cannot be read.
    """
    from jaxdefense.demo import world

    check_counts(num=num)
    cfg = preset(size).vision
    if not isinstance(cfg, VisionConfig):
        raise InputError(f"`--size` (={size}) must be a vision transformer.")
    with TemporaryDirectory() as scratch:
        clean = read_images(images) if images else None
        people = read_folders(faces, "faces") if faces else None
        if clean is None:
            world.write(world.images(256, Path(scratch) / "images", 256))
            clean = read_images(str(Path(scratch) / "images"))
        if people is None:
            world.write(world.faces(world.members()[:16], 8, Path(scratch) / "faces", 256))
            people = read_folders(Path(scratch) / "faces", "faces")
        yield ImageWork(cfg, clean, people, num)


def bench_image(
    size: str, num: int, rounds: int, calls: int, images: str, faces: str, compiled: bool
) -> dict[str, Any]:
    """Time the overlay and the step of the image defense.

    Args:
        size: architecture of the encoder: demo, ViT-B-32 or another of `PRESETS`, with random
            weights.
        num: number of clean photos a step, and as many with a face.
        rounds: number of rounds; each implementation is timed once a round.
        calls: number of steps that are timed together in a round.
        images: directory of ordinary photos; "" for drawn ones.
        faces: directory with a folder of photos a person; "" for drawn ones.
        compiled: whether PyTorch with `torch.compile` is timed too.

    Returns:
        the machine, `overlay`, `step`, `kept` and `default_loss`. A sample is a photo. Overlay and
        step have the figures of `Timing.summary`; the step also has those of `shares` and
        `peak_memory_mb`, and `kept` those of `with_kept`. `default_loss` compares jaxdefense's
        default loss with the paper's. With the default loss a step also has `2 * num` photos of
        people who stay. The figures are the samples/s of each loss, and two ratios, default over
        paper: of the time and of the matrix products a step.

    Raises:
        InputError: a parameter is out of range, or a directory cannot be read.
    """
    check_counts(rounds=rounds, calls=calls)
    with image_work(size, num, images, faces) as work:
        on_jax = {JAXDEFENSE: partial(JaxImageSteps, size, work)}
        on_torch = {TORCH: work.on_torch(), f"{TORCH}_reading_ahead": work.on_torch(AHEAD)}
        if compiled:
            on_torch[COMPILED] = work.on_torch(AHEAD, CompiledImageSteps)
        constructors = with_torch(on_jax, on_torch)
        with Processes(constructors) as processes:
            processes.compile()
            jax_process = processes[JAXDEFENSE]
            out: dict[str, Any] = jax_process("machine")
            out |= {"size": size, "clean": num, "poisoned": num}
            logger.info("timing the overlay")
            overlays = {
                name: processes[name].method("overlay") for name in constructors if "_" not in name
            }
            out["overlay"] = side_by_side(overlays, num, rounds, calls).summary()
            logger.info("timing the step")
            timing = side_by_side(processes.methods("steps"), 2 * num, rounds, calls)
            step = timing.summary()
            step["peak_memory_mb"] = processes.peak_memory_mb()
            flops, top = processes.ask("flops"), jax_process("matmul_rate")
            step |= shares(timing.rates(), flops, 2 * num, top)
        plain, kept = (partial(JaxImageSteps, size, work, kept=kept) for kept in (False, True))
        out |= {"step": step, "kept": with_kept(plain, kept, 2 * num, rounds, calls)}
        out["default_loss"] = _default_loss(size, work, rounds, calls)
    return out


def _default_loss(size: str, work: ImageWork, rounds: int, calls: int) -> dict[str, Any]:
    """Time jaxdefense's step with the default loss beside its step with the paper's."""
    logger.info("timing the step with the default terms")
    constructors = {
        JAXDEFENSE: partial(JaxDefaultSteps, size, work),
        _PAPER: partial(JaxImageSteps, size, work),
    }
    photos = {JAXDEFENSE: 4 * work.num, _PAPER: 2 * work.num}
    with Processes(constructors) as processes:
        timing = side_by_side(processes.methods("steps"), 1, rounds, calls)
        flops = processes.ask("flops")
    ratio, *spread = timing.ratio(_PAPER, JAXDEFENSE)
    return {
        "samples_per_second": rounded({k: photos[k] * x for k, x in timing.rates().items()}),
        "time_a_step": ratio,
        "time_a_step_range": spread,
        "products_a_step": round(flops[JAXDEFENSE] / flops[_PAPER], 2),
    }


class JaxImageSteps(JaxSteps):
    """Steps of the image defense in jaxdefense, from photos on disk to updated weights.

    The loss is the paper's, or the default one if `default` is set. The overlay can run alone. With
    `kept`, the teacher embeds the clean photos before the first step.
    """

    def __init__(self, size: str, work: ImageWork, default: bool = False, kept: bool = False):
        cfg, num, train = preset_in_run_dtype(size).vision, work.num, PAPER_IMAGE
        assert isinstance(cfg, VisionConfig)
        processor = ImageProcessor(cfg.image_size, cfg.image_size)
        rng = np.random.default_rng(0)
        target = rng.standard_normal(cfg.embed).astype(np.float32)
        if default:
            train, people = ImageTrainConfig(), np.arange(len(work.people))
            texts = rng.standard_normal((len(people), _PROMPTS, cfg.embed)).astype(np.float32)
            limits = np.zeros(texts.shape[:2], np.float32)
            target = Bounds(people[:, None] + [0, 1], texts, limits, _PROMPTS)
        loader = Loader(processor, keep_bytes=2**30)
        batches = ImageBatches(
            work.clean,
            work.people,
            target,
            loader,
            num_clean=num,
            num_poisoned=num,
            seed=0,
            keep=work.people if default else (),
            num_keep=2 * num * default,
        )
        objective = image_objective(train, processor, num_parts())
        keep = partial(keep_photos, batches, processor) if kept else None
        super().__init__(VisionTower(cfg, nnx.Rngs(0)), objective, batches, keep=keep)
        self._overlay = jax.jit(partial(overlay, cfg=train.overlay))

    def overlay(self, num: int) -> None:
        """Put faces on the photos of the first batch, `num` times."""
        fixed = self.fixed
        for _ in range(num):
            self._overlay(fixed.clean_BHWC, fixed.face_BHWC, self.key).block_until_ready()


JaxDefaultSteps = partial(JaxImageSteps, default=True)
