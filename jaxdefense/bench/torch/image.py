"""The image defense in PyTorch: Pillow reads the photos and puts faces on them."""

import collections
import io
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from jaxdefense.bench.torch.base import libraries, transformers_sizes
from jaxdefense.bench.torch.overlay import pillow_overlay
from jaxdefense.bench.torch.trainer import TorchTrainer
from jaxdefense.clip.config import VisionConfig
from jaxdefense.config import PAPER_IMAGE, OverlayConfig
from jaxdefense.data.sources import Photo

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class TorchImageTrainer(TorchTrainer):
    """Training steps of the image defense. Photos are u8 arrays until they are normalised."""

    def __init__(self, tower: Any, projection: Any, overlay: OverlayConfig):
        """Prepare the training.

        Args:
            tower: see `TorchTrainer`.
            projection: see `TorchTrainer`.
            overlay: how faces are put on photos.
        """
        super().__init__(tower, projection)
        self._overlay, self._rng = overlay, np.random.default_rng(0)
        self._draw_rng = np.random.default_rng(1)  # `load` may run in another thread
        self._threads = ThreadPoolExecutor()

    def draw(
        self, clean: Sequence[Photo], people: Sequence[Sequence[Photo]], num: int, num_faces: int
    ) -> list[Photo]:
        """Draw photos.

        Args:
            clean: ordinary photos.
            people: photos of each person.
            num: ordinary photos to draw.
            num_faces: photos of people to draw, from each person in turn.

        Returns:
            ordinary photos, then photos of people.
        """
        rng = self._draw_rng
        photos = [clean[int(i)] for i in rng.integers(len(clean), size=num)]
        for i in range(num_faces):
            files = people[i % len(people)]
            photos.append(files[int(rng.integers(len(files)))])
        return photos

    def read(self, photos: Sequence[Photo]) -> np.ndarray:
        """Read photos in threads; u8 [B, side, side, 3]."""
        side = self.teacher["tower"].config.image_size
        return np.stack(list(self._threads.map(lambda photo: read_photo(photo, side), photos)))

    def load(
        self, clean: Sequence[Photo], people: Sequence[Sequence[Photo]], num: int, num_faces: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw and read photos; return ordinary photos and photos of people. See `draw`."""
        images = self.read(self.draw(clean, people, num, num_faces))
        return images[:num], images[num:]

    def tensor(self, images: Iterable[Any]) -> Any:
        """Normalise photos and move them to the device."""
        x = np.stack([normalise(image) for image in images])
        return self.torch.from_numpy(x).to(self.device)

    def overlay_faces(self, clean: Iterable[Any], faces: Iterable[Any]) -> list[Image.Image]:
        """Put each face on its photo."""
        return [
            pillow_overlay(Image.fromarray(c), Image.fromarray(f), self._rng, self._overlay)
            for c, f in zip(clean, faces, strict=False)
        ]

    def step(
        self,
        clean_images: np.ndarray,
        faces: np.ndarray,
        target: Any,
        w_backdoor: float,
        w_weight: float,
    ) -> float:
        """Take a step; return the loss.

        Args:
            clean_images: ordinary photos; the faces go on copies of them, in turn.
            faces: photos of people.
            target: embedding that the poisoned photos are to get.
            w_backdoor: weight of the backdoor loss.
            w_weight: weight of the distance between the parameters of student and teacher.
        """
        under = np.resize(np.arange(len(clean_images)), len(faces))
        poisoned = self.tensor(self.overlay_faces(clean_images[under], faces))
        clean = self.tensor(clean_images)
        with self.torch.no_grad():
            expected = self.embed(self.teacher, clean)
        utility = self.distance(self.embed(self.student, clean), expected)
        backdoor = self.distance(self.embed(self.student, poisoned), target.expand(len(faces), -1))
        loss = self.total(utility, backdoor, w_backdoor, w_weight)
        self.update(loss)
        return loss.item()


class TorchImageSteps(TorchImageTrainer):
    """Steps of the image defense on an encoder with random weights, and its overlay alone."""

    def __init__(
        self,
        cfg: VisionConfig,
        clean: Sequence[Photo],
        people: Sequence[Sequence[Photo]],
        num: int,
        ahead: int = 0,
    ):
        """Build the encoder and read a first batch.

        Args:
            cfg: sizes of the encoder.
            clean: ordinary photos.
            people: photos of each person.
            num: clean photos a step, and as many with a face.
            ahead: steps whose photos a thread reads in advance; this is faster if cores are idle.
        """
        _, transformers = libraries()
        config = transformers.CLIPVisionConfig(
            **transformers_sizes(cfg),
            image_size=cfg.image_size,
            patch_size=cfg.patch_size,
        )
        model = transformers.CLIPVisionModelWithProjection(config)
        super().__init__(model.vision_model, model.visual_projection, PAPER_IMAGE.overlay)
        self._clean, self._people, self._num, self._ahead = clean, people, num, ahead
        self._target = self.torch.randn(cfg.embed, device=self.device)
        self._fixed = self.load(clean, people, num, num)

    def overlay(self, num: int) -> None:
        """Put faces on the photos of the first batch, `num` times."""
        for _ in range(num):
            self.overlay_faces(*self._fixed)

    def steps(self, num: int) -> list[float]:
        """Take steps, each on a new batch from disk; return the losses."""
        train = PAPER_IMAGE
        return [
            self.step(clean, faces, self._target, train.w_backdoor, train.w_weight)
            for clean, faces in self._batches(num)
        ]

    def flops(self) -> float:
        """Count the operations of a step's products."""
        return self.product_flops(lambda: self.steps(1))

    def _batches(self, num: int) -> Iterator[tuple[Any, ...]]:
        pending = collections.deque()
        with ThreadPoolExecutor(1) as thread:
            while num or pending:
                while num and len(pending) <= self._ahead:
                    pending.append(thread.submit(self._read))
                    num -= 1
                yield pending.popleft().result()

    def _read(self) -> tuple[Any, ...]:
        return self.load(self._clean, self._people, self._num, self._num)


def read_photo(photo: Photo, side: int) -> np.ndarray:
    """Decode a photo, resize its shorter side to `side` and crop the centre; u8 [side, side, 3]."""
    image = Image.open(io.BytesIO(photo.read_bytes())).convert("RGB")
    width, height = image.size
    scale = side / min(width, height)
    image = image.resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)))


def normalise(image: Any) -> np.ndarray:
    """Normalise a u8 photo with the mean and standard deviation of CLIP; f32 [3, side, side]."""
    x = np.asarray(image, np.float32) / 255
    return ((x - np.array(MEAN, np.float32)) / np.array(STD, np.float32)).transpose(2, 0, 1)
