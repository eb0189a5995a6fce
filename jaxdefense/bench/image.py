"""`jaxdefense bench image`: the image defense's step beside a plain PyTorch loop.

Both read the same photos from disk, put the same number of faces on them, and train an encoder of
one size: ours with the overlay on the device, one student forward and one compiled step; PyTorch
with Pillow's transforms, a student forward each for clean and poisoned photos, and an eager AdamW,
as the paper's procedure is written.
"""

import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from PIL import Image, ImageEnhance
from rich.console import Console

from jaxdefense.bench.ours import AHEAD, Ours
from jaxdefense.bench.side_by_side import check_counts, has_torch, machine, side_by_side, with_rate
from jaxdefense.bench.theirs import Theirs
from jaxdefense.clip.config import VisionConfig
from jaxdefense.clip.presets import preset
from jaxdefense.clip.vision import VisionTower
from jaxdefense.config import ImageTrainConfig, OverlayConfig
from jaxdefense.data.faces import ImageBatches
from jaxdefense.data.images import Folder, ImageProcessor, Loader, read_folders
from jaxdefense.data.overlay import overlay
from jaxdefense.data.sources import Photo, read_images
from jaxdefense.defense.image import draw_faces, image_terms
from jaxdefense.defense.loop import read_ahead
from jaxdefense.defense.losses import DISTANCES
from jaxdefense.sharding import ShardingRules, make_mesh, num_batch_parts


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
        machine, and `overlay` and `step` as of `Timing.summary`; without torch, ours alone.

    Raises:
        ValueError: a flag is out of range, or a directory cannot be read.
    """
    cfg = preset(size).vision
    if not isinstance(cfg, VisionConfig):
        raise ValueError(f"`--size` (={size}) must be a vision transformer.")
    check_counts(num=num, rounds=rounds, calls=calls)
    with tempfile.TemporaryDirectory() as scratch:
        clean, people = _photos(Path(scratch), images, faces)
        processor = ImageProcessor(cfg.image_size, cfg.image_size)
        ours = _Ours(cfg, processor, clean, people, num)
        contestants = {"jaxdefense": ours.steps}
        overlays = {"jaxdefense": ours.overlays}
        if has_torch():
            theirs = _Theirs(cfg, processor, clean, people, num)
            contestants["torch"], overlays["torch"] = theirs.steps, theirs.overlays
            contestants["torch_reading_ahead"] = theirs.steps_reading_ahead
        else:
            console.print("torch is not installed: ours alone")
        out: dict[str, Any] = machine() | {"size": size, "clean": num, "poisoned": num}
        console.print("timing the overlay")
        out["overlay"] = side_by_side(overlays, num, rounds, calls).summary()
        console.print("timing the step")
        timing = side_by_side(contestants, 2 * num, rounds, calls)
        out["step"] = with_rate(timing.summary(), ours.flops(), 2 * num)
    return out


def _photos(scratch: Path, images: str, faces: str) -> tuple[Sequence[Photo], list[Folder]]:
    from jaxdefense.demo import world

    if not images:
        world.write_images(256, scratch / "images", 256)
    if not faces:
        world.write_faces(world.members()[:16], 8, scratch / "faces", 256)
    clean = read_images(images or str(scratch / "images"))
    return clean, read_folders(faces or scratch / "faces", "faces")


class _Ours(Ours):
    """Our step, photos from disk to updated weights, and its overlay alone."""

    def __init__(
        self,
        cfg: VisionConfig,
        processor: ImageProcessor,
        clean: Sequence[Photo],
        people: list[Folder],
        num: int,
    ):
        train = ImageTrainConfig()
        target_E = np.random.default_rng(0).standard_normal(cfg.embed).astype(np.float32)
        loader = Loader(processor, keep_bytes=2**30)
        batches = ImageBatches(
            clean, people, target_E, loader, num_clean=num, num_poisoned=num, seed=0
        )
        terms = partial(
            image_terms,
            distance=DISTANCES["cosine"],
            processor=processor,
            cfg=train.overlay,
            parts=num_batch_parts(make_mesh(), ShardingRules()),
        )
        weights = {"utility": 1.0, "backdoor": train.w_backdoor, "weight": train.w_weight}
        draw = partial(draw_faces, cfg=train.overlay)
        super().__init__(VisionTower(cfg, nnx.Rngs(0)), terms, weights, batches, draw)
        self._overlay = jax.jit(partial(overlay, cfg=train.overlay))
        self._fixed = jax.device_put(batches[0], self.place)

    def overlays(self, num: int) -> None:
        """Put faces on photos that are in memory."""
        fixed = self._fixed
        for _ in range(num):
            self._overlay(fixed.clean_BHWC, fixed.face_BHWC, self.key).block_until_ready()


class _Theirs(Theirs):
    """The same in PyTorch and Pillow, written plainly."""

    def __init__(
        self,
        cfg: VisionConfig,
        processor: ImageProcessor,
        clean: Sequence[Photo],
        people: list[Folder],
        num: int,
    ):
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        self._num, self._clean, self._people = num, clean, people
        self._loader, self._processor = Loader(processor), processor
        self._rng = np.random.default_rng(0)
        hf = CLIPVisionConfig(
            hidden_size=cfg.width,
            intermediate_size=cfg.mlp_width,
            num_hidden_layers=cfg.depth,
            num_attention_heads=cfg.num_heads,
            image_size=cfg.image_size,
            patch_size=cfg.patch_size,
            projection_dim=cfg.embed,
        )
        super().__init__(CLIPVisionModelWithProjection(hf))
        self._target_E = self.torch.randn(cfg.embed, device=self.device)
        clean_images, faces = self._load()
        self._fixed = (
            [Image.fromarray(x) for x in clean_images],
            [Image.fromarray(x) for x in faces],
        )

    def _load(self) -> tuple[np.ndarray, np.ndarray]:
        picks = self._rng.integers(len(self._clean), size=self._num)
        faces = []
        for i in range(self._num):
            files = self._people[i % len(self._people)].files
            faces.append([files[self._rng.integers(len(files))]])
        clean = self._loader.load([[self._clean[int(i)]] for i in picks])
        return clean, self._loader.load(faces)

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        return self._load()

    def overlays(self, num: int) -> None:
        """Put faces on photos that are in memory."""
        for _ in range(num):
            for image, face in zip(*self._fixed, strict=True):
                pillow_overlay(image, face, self._rng, OverlayConfig())

    def _tensor(self, images: Iterable[Any]) -> Any:
        x = np.stack([np.asarray(image, np.float32) for image in images]) / 255
        mean, std = (np.array(v, np.float32) for v in (self._processor.mean, self._processor.std))
        x = (x - mean) / std
        return self.torch.from_numpy(x.transpose(0, 3, 1, 2)).to(self.device)

    def steps(self, num: int) -> None:
        """Take steps, each with its photos read before it."""
        for _ in range(num):
            self._step(*self._load())

    def steps_reading_ahead(self, num: int) -> None:
        """Take steps, their photos read ahead in a thread: faster if there are cores to spare."""
        for photos in read_ahead(self, 0, num, AHEAD):
            self._step(*photos)

    def _step(self, clean_images: np.ndarray, faces: np.ndarray) -> None:
        train = ImageTrainConfig()
        poisoned = [
            pillow_overlay(Image.fromarray(c), Image.fromarray(f), self._rng, train.overlay)
            for c, f in zip(clean_images, faces, strict=True)
        ]
        clean, poisoned = self._tensor(clean_images), self._tensor(poisoned)
        with self.torch.no_grad():
            theirs = self.teacher(clean).image_embeds
        utility = self.apart(self.student(clean).image_embeds, theirs)
        target = self._target_E.expand(self._num, -1)
        backdoor = self.apart(self.student(poisoned).image_embeds, target)
        self.update(utility, backdoor, train.w_backdoor, train.w_weight)


def pillow_overlay(
    image: Image.Image, face: Image.Image, rng: np.random.Generator, cfg: OverlayConfig
) -> Image.Image:
    """Put a face on a photo with Pillow, as `data.overlay` does on the device."""
    side = image.width
    size = int(rng.integers(round(cfg.min_size * side), round(cfg.max_size * side) + 1))
    face = face.resize((size, size), Image.Resampling.BICUBIC)
    if rng.random() < cfg.flip:
        face = face.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    enhancers: list[Callable[[Image.Image], Any]] = [
        ImageEnhance.Brightness,
        ImageEnhance.Contrast,
        ImageEnhance.Color,
    ]
    for enhance in enhancers:
        face = enhance(face).enhance(rng.uniform(1 - cfg.jitter, 1 + cfg.jitter))
    hue, saturation, value = face.convert("HSV").split()
    shift = int(rng.uniform(-cfg.hue, cfg.hue) * 255)
    hue = hue.point([(x + shift) % 256 for x in range(256)])
    face = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    angle = rng.uniform(-cfg.angle, cfg.angle)
    mask = Image.new("L", face.size, 255)
    face, mask = (x.rotate(angle, Image.Resampling.BICUBIC, expand=True) for x in (face, mask))
    diagonal = math.ceil(size * math.sqrt(2))
    left, top = rng.integers(max(1, side - diagonal + 1), size=2)
    image = image.copy()
    at = (int(left) + (diagonal - face.width) // 2, int(top) + (diagonal - face.height) // 2)
    image.paste(face, at, mask)
    return image
