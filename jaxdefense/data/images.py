"""Photos: folders of people or classes, and CLIP's own resize, crop and normalisation.

Source: transformers `models/clip/image_processing_pil_clip.py` (Pillow version).
Parity: tests/test_images.py, equal to Pillow's steps and to the processor of transformers.
"""

import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageOps

from jaxdefense.convert.directory import read_json

SUFFIXES = (".png", ".jpg", ".jpeg", ".pgm", ".ppm", ".webp", ".gif", ".bmp")
PROCESSOR = "preprocessor_config.json"
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class Folder:
    """The photos of one person, or of one class."""

    name: str
    files: tuple[Path, ...]


def read_folders(path: str | Path, what: str) -> list[Folder]:
    """List the photos of a directory with one folder a person or class.

    Args:
        path: the directory; underscores in folder names read as spaces.
        what: what to call it in an error, `faces` for one.

    Raises:
        ValueError: it does not exist, holds no folder, or one without a photo.
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"{what} directory `{path}` does not exist.")
    folders = []
    for folder in sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")):
        files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES)
        if not files:
            raise ValueError(
                f"{what} directory `{path}`: folder `{folder.name}` holds no photo "
                f"({', '.join(SUFFIXES)})."
            )
        folders.append(Folder(" ".join(folder.name.replace("_", " ").split()), tuple(files)))
    if not folders:
        raise ValueError(
            f"{what} directory `{path}` holds no folder; each person or class has one."
        )
    return folders


@dataclasses.dataclass(frozen=True)
class ImageProcessor:
    """CLIP's preprocessing: shorter side to `resize`, centre crop to `crop`, normalise."""

    resize: int
    crop: int
    resample: int = Image.Resampling.BICUBIC
    mean: tuple[float, ...] = _CLIP_MEAN
    std: tuple[float, ...] = _CLIP_STD

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Resize and crop; u8 [crop, crop, 3]."""
        image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:  # shown on white, as the source does
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB")
        width, height = image.size
        scale = self.resize / min(width, height)
        size = (
            self.resize if width <= height else int(self.resize * width / height),
            self.resize if height <= width else int(self.resize * height / width),
        )
        if scale != 1:
            image = image.resize(size, Image.Resampling(self.resample))
        left, top = (size[0] - self.crop) // 2, (size[1] - self.crop) // 2
        # A crop beyond the border is filled with black, as the source does.
        return np.asarray(image.crop((left, top, left + self.crop, top + self.crop)))

    def load(self, files: Sequence[Path]) -> np.ndarray:
        """Decode photos in threads; u8 [len(files), crop, crop, 3].

        Raises:
            ValueError: a file is no photo, or a broken one: says which.
        """

        def one(file: Path) -> np.ndarray:
            try:
                with Image.open(file) as image:
                    return self(image)
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                raise ValueError(f"`{file}` is not a photo that can be read: {error}.") from error

        with ThreadPoolExecutor(max(2, os.cpu_count() or 2)) as pool:
            return np.stack(list(pool.map(one, files)))

    def normalise(self, image_BHWC: jax.Array) -> jax.Array:
        """Turn u8 [B, H, W, 3] into what the tower takes, f32, on the device."""
        mean = jnp.asarray(self.mean, jnp.float32)
        std = jnp.asarray(self.std, jnp.float32)
        return (image_BHWC.astype(jnp.float32) / 255 - mean) / std


def read_processor(directory: str | Path, image_size: int) -> ImageProcessor:
    """Read `preprocessor_config.json` of a model directory; CLIP's defaults if there is none.

    Raises:
        ValueError: a step is switched off, or of another kind than CLIP's; or the crop is not the
            image size of the tower.
    """
    file = Path(directory) / PROCESSOR
    raw = read_json(file) if file.exists() else {}
    for step in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
        if not raw.get(step, True):
            raise ValueError(f"`{file}`: `{step}` (=false) must be true, as CLIP has it.")
    resize, crop = raw.get("size", image_size), raw.get("crop_size", image_size)
    resize = resize.get("shortest_edge") if isinstance(resize, dict) else resize
    crop = crop.get("height") if isinstance(crop, dict) else crop
    resample = raw.get("resample", Image.Resampling.BICUBIC)
    if resample not in list(Image.Resampling):
        raise ValueError(f"`{file}`: `resample` (={resample!r}) must be one of Pillow's filters.")
    statistics = []
    for name, default in (("image_mean", _CLIP_MEAN), ("image_std", _CLIP_STD)):
        value = raw.get(name, default)
        if not (isinstance(value, list | tuple) and [type(x) for x in value] == [float] * 3):
            raise ValueError(f"`{file}`: `{name}` (={value!r}) must be three numbers below 1.")
        statistics.append(tuple(value))
    if abs(255 * raw.get("rescale_factor", 1 / 255) - 1) > 1e-6:
        raise ValueError(f"`{file}`: `rescale_factor` must be 1/255.")
    if type(resize) is not int or resize < 1:
        raise ValueError(f"`{file}`: `size` must be {{'shortest_edge': pixels}}, as CLIP has it.")
    if crop != image_size:
        raise ValueError(
            f"`{file}`: `crop_size` (={crop}) must be the image size of the model (={image_size})."
        )
    return ImageProcessor(
        resize,
        image_size,
        resample,
        *statistics,
    )
