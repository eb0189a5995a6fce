"""`jaxdefense bench image`: the image defense's step beside a plain PyTorch loop.

Both read the same photos from disk, put the same number of faces on them, and train an encoder of
one size: ours with the overlay on the device, one student forward and one compiled step; PyTorch as
the paper's procedure is written, see `theirs`.
"""

import dataclasses
from collections.abc import Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np
from flax import nnx
from rich.console import Console

from jaxdefense.bench.ours import AHEAD, Ours, num_parts, share, sizes
from jaxdefense.bench.side_by_side import (
    OURS,
    TORCH,
    Field,
    check_counts,
    rounded,
    side_by_side,
    with_torch,
)
from jaxdefense.bench.theirs import ImageSteps
from jaxdefense.clip.config import VisionConfig
from jaxdefense.clip.presets import preset
from jaxdefense.clip.vision import VisionTower
from jaxdefense.config import PAPER_IMAGE, ImageTrainConfig
from jaxdefense.data.faces import Bounds, ImageBatches
from jaxdefense.data.images import Folder, ImageProcessor, Loader, read_folders
from jaxdefense.data.overlay import overlay
from jaxdefense.data.sources import Photo, read_images
from jaxdefense.defense.image import image_objective
from jaxdefense.errors import InputError

_PAPER, _PROMPTS = "paper", 16  # as many as a step of the default loss takes


@dataclasses.dataclass(frozen=True)
class ImageWork:
    """What a step of both sides is made of.

    Fields:
        cfg: sizes of the encoder, whose weights are random.
        clean: ordinary photos.
        people: whose faces are put on them.
        num: clean photos a step, and as many with a face.
    """

    cfg: VisionConfig
    clean: Sequence[Photo]
    people: Sequence[Folder]
    num: int

    def files(self) -> list[Sequence[Photo]]:
        """List the photos of each person."""
        return [person.files for person in self.people]

    def theirs(self, ahead: int = 0) -> partial[ImageSteps]:
        """Give what makes PyTorch's side."""
        return partial(ImageSteps, self.cfg, self.clean, self.files(), self.num, ahead)


@contextmanager
def image_work(size: str, num: int, images: str, faces: str):
    """Give what `bench_image` is given; see there. Drawn photos lie on disk for so long.

    Raises:
        InputError: a flag is out of range, or a directory cannot be read.
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
            world.write_images(256, Path(scratch) / "images", 256)
            clean = read_images(str(Path(scratch) / "images"))
        if people is None:
            world.write_faces(world.members()[:16], 8, Path(scratch) / "faces", 256)
            people = read_folders(Path(scratch) / "faces", "faces")
        yield ImageWork(cfg, clean, people, num)


def bench_image(
    size: str, num: int, rounds: int, calls: int, images: str, faces: str, console: Console
) -> dict[str, Any]:
    """Time overlay and whole step.

    Args:
        size: of the encoder, one of `PRESETS`, with random weights.
        num: clean photos a step, and as many with a face.
        rounds, calls: see `side_by_side`.
        images, faces: directories; "" for drawn ones.
        console: for progress.

    Returns:
        machine, and `overlay` and `step` as of `Timing.summary`; of the step also `share` and
        `peak_memory_mb`. A sample is a photo. `default_loss`: ours with the default terms, twice as
        many faces that stay beside them, and with the paper's: samples/s of each, how often as long
        a step takes, and how often as many products it has.

    Raises:
        InputError: a flag is out of range, or a directory cannot be read.
    """
    check_counts(rounds=rounds, calls=calls)
    with image_work(size, num, images, faces) as work:
        theirs = {TORCH: work.theirs(), f"{TORCH}_reading_ahead": work.theirs(AHEAD)}
        makes = with_torch({OURS: partial(OurImage, size, work)}, theirs, console)
        with Field(makes, console) as field:
            ours = field[OURS]
            out: dict[str, Any] = ours("machine") | {"size": size, "clean": num, "poisoned": num}
            console.print("timing the overlay")
            overlays = {name: field[name].does("overlay") for name in makes if "_" not in name}
            out["overlay"] = side_by_side(overlays, num, rounds, calls, console).summary()
            console.print("timing the step")
            timing = side_by_side(field.does("steps"), 2 * num, rounds, calls, console)
            step = timing.summary()
            flops = ours("flops") / (2 * num)
            step |= share(timing.rates()[OURS], flops, ours("matmul_rate"))
            step["peak_memory_mb"] = field.peak_memory_mb()
        out |= {"step": step, "default_loss": _default_loss(size, work, rounds, calls, console)}
    return out


def _default_loss(
    size: str, work: ImageWork, rounds: int, calls: int, console: Console
) -> dict[str, Any]:
    """Time our step with the default terms beside that with the paper's."""
    console.print("timing the step with the default terms")
    makes = {OURS: partial(OurDefault, size, work), _PAPER: partial(OurImage, size, work)}
    photos = {OURS: 4 * work.num, _PAPER: 2 * work.num}
    with Field(makes, console) as field:
        timing = side_by_side(field.does("steps"), 1, rounds, calls, console)
        flops = field.ask("flops")
    ratio, *spread = timing.ratio(_PAPER, OURS)
    return {
        "samples_per_second": rounded({k: photos[k] * x for k, x in timing.rates().items()}),
        "time_a_step": ratio,
        "time_a_step_range": spread,
        "products_a_step": round(flops[OURS] / flops[_PAPER], 2),
    }


class OurImage(Ours):
    """Our step, photos from disk to updated weights, and its overlay alone."""

    def __init__(self, size: str, work: ImageWork, default: bool = False):
        cfg, num, train = sizes(size).vision, work.num, PAPER_IMAGE
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
        super().__init__(VisionTower(cfg, nnx.Rngs(0)), objective, batches)
        self._overlay = jax.jit(partial(overlay, cfg=train.overlay))

    def overlay(self, num: int) -> None:
        """Put faces on photos that are in memory."""
        fixed = self.fixed
        for _ in range(num):
            self._overlay(fixed.clean_BHWC, fixed.face_BHWC, self.key).block_until_ready()


OurDefault = partial(OurImage, default=True)
