"""Photos: folders of people or classes, and their pixels as a model's own library prepares them.

Like the libraries, it ignores the orientation that EXIF records.

Source: transformers `image_transforms.py`, `models/clip/image_processing_pil_clip.py`,
`models/siglip/image_processing_pil_siglip.py` (Pillow versions); open_clip `transform.py`.
Parity: tests/test_preprocess.py, tests/test_images.py, tests/test_siglip_data.py: pixels equal.
"""

import dataclasses
import functools
import io
import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxdefense.convert.directory import Layout
from jaxdefense.convert.preprocess import Preprocess, read_preprocess
from jaxdefense.data.sources import Photo, list_folders, photo_formats, reason, remedy
from jaxdefense.errors import InputError
from jaxdefense.words import some

logger = logging.getLogger(__name__)

_LONGEST = 256  # times the shorter side

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True)
class Photos:
    """The photos of one person, or of one class."""

    name: str
    files: tuple[Photo, ...]


def read_folders(path: str | Path, what: str) -> list[Photos]:
    """List the photos of a directory with one folder a person or class.

    Args:
        path: the directory; underscores in folder names read as spaces.
        what: what to call it in an error, `faces` for one.

    Raises:
        InputError: it does not exist, holds no folder, or one without a photo.
    """
    return [Photos(spaced(key), files) for key, files in list_folders(path, what).items()]


def spaced(key: str) -> str:
    """Read underscores as spaces."""
    return " ".join(key.replace("_", " ").split())


class ImageProcessor(Preprocess):
    """The preprocessing of CLIP or SigLIP, on photos. See `Preprocess` for the fields."""

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Resize and crop; u8 [crop, crop, 3]."""
        image.load()
        if self.library == "transformers":
            image = _on_white(image)
        image = self._cropped(self._resized(image))
        if image.mode != "RGB":
            image.info.pop("transparency", None)  # dropped anyway; of some, Pillow would warn
            image = image.convert("RGB")
        return np.asarray(image)

    def _resized(self, image: Image.Image) -> Image.Image:
        if self.resize is None:
            return image
        resample, (width, height) = Image.Resampling(self.resample), image.size
        if isinstance(self.resize, tuple):
            return image.resize((self.resize[1], self.resize[0]), resample)
        if self.fill is not None:
            ratio = max(width / self.resize, height / self.resize)
            return image.resize((round(width / ratio), round(height / ratio)), resample)
        size = (
            self.resize if width <= height else int(self.resize * width / height),
            self.resize if height <= width else int(self.resize * height / width),
        )
        if self.resize == min(width, height):
            return image
        # Only the middle of a long strip is resized: the whole could take gigabytes.
        whole, longest = size, _LONGEST * max(self.resize, self.crop)
        size = (
            size[0] if size[0] <= longest else self.crop,
            size[1] if size[1] <= longest else self.crop,
        )
        (left, right), (top, bottom) = map(_middle, image.size, whole, size)
        return image.resize(size, resample, (left, top, right, bottom))

    def _cropped(self, image: Image.Image) -> Image.Image:
        if self.fill is not None:
            rest = [self.crop - length for length in image.size]
            border = *(n // 2 for n in rest), *(-(-n // 2) for n in rest)
            colour = (
                self.fill if len(image.getbands()) == 1 else (self.fill,) * len(image.getbands())
            )
            return ImageOps.expand(image, border, colour)
        left, top = (self._first(length) for length in image.size)
        # A crop beyond the border is filled with black, as the source does.
        return image.crop((left, top, left + self.crop, top + self.crop))

    def _first(self, length: int) -> int:
        """Find the first of a side's pixels that the crop keeps."""
        rest = length - self.crop
        return round(rest / 2) if self.library == "open_clip" else rest // 2

    def try_decode(self, photo: Photo) -> np.ndarray | str:
        """Decode, resize and crop a photo; of an animation, the first picture.

        Returns:
            u8 [crop, crop, 3]; or why it cannot be read.
        """
        data = b""
        try:
            data = photo.read_bytes()
            with Image.open(io.BytesIO(data), formats=photo_formats()) as image:
                if why := _lost(image):
                    return f"{why}; save it with 8 bits"
                return self(image)
        except UnidentifiedImageError:
            if data[4:8] == b"ftyp":
                return f"it is HEIF, {remedy('.heic')}"
            return "it has no format of a photo" if data else "it is empty"
        except Exception as error:  # broken files make Pillow raise nearly anything
            return reason(error)

    def load(self, files: Sequence[Photo]) -> np.ndarray:
        """Decode photos in threads; u8 [len(files), crop, crop, 3].

        Raises:
            InputError: a file is no photo, or a broken one; names it.
        """

        def decode(file: Photo) -> np.ndarray:
            if isinstance(found := self.try_decode(file), str):
                raise InputError(f"`{file}` is not a photo that can be read: {found}.")
            return found

        return self.stack(_in_threads(decode, files))

    def stack(self, pixels: Sequence[np.ndarray | None]) -> np.ndarray:
        """Put photos together, black for None; u8 [len(pixels), crop, crop, 3]."""
        out_BHWC = np.zeros((len(pixels), self.crop, self.crop, 3), np.uint8)
        for out, one in zip(out_BHWC, pixels, strict=True):
            if one is not None:
                out[:] = one
        return out_BHWC

    def normalise(self, image_BHWC: jax.Array) -> jax.Array:
        """Turn u8 [B, H, W, 3] into what the tower takes, f32, on the device."""
        mean = jnp.asarray(self.mean, jnp.float32)
        std = jnp.asarray(self.std, jnp.float32)
        return (image_BHWC.astype(jnp.float32) / self.scale - mean) / std


def thumbnail(image_HWC: np.ndarray) -> bytes:
    """Write a small picture, u8 [H, W, 3], as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def _on_white(image: Image.Image) -> Image.Image:
    """Convert to RGB as transformers does: it puts transparency on white."""
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _lost(image: Image.Image) -> str:
    """Say why the libraries' 8 bits of a photo of more would show nothing; "" if they do.

    The libraries cut off levels above 255, and scale nothing.
    """
    if image.mode[0] not in "IF":
        return ""
    peak = np.nanmax(np.asarray(image), initial=0)
    if peak > 255:
        return f"its levels go up to {peak:g}, and the model's library makes white of all above 255"
    if image.mode == "F" and 0 < peak <= 1:
        return "its levels go from 0 to 1, and the model's library makes black of them"
    return ""


def _middle(length: int, num: int, part: int) -> tuple[float, float]:
    """Find where the middle `part` of `num` resized pixels lies on a side of `length`."""
    first = (num - part) // 2
    return first * length / num, (first + part) * length / num


class Loader:
    """Decodes photos in parallel; names and replaces corrupt ones, up to a limit.

    Several threads may use it, but not those that decode.

    Fields:
        corrupt: photo -> why it cannot be read, in the order found.
    """

    def __init__(self, processor: ImageProcessor, max_corrupt: int = 0, keep_bytes: int = 0):
        """Start with no corrupt photo known.

        Args:
            processor: decodes.
            max_corrupt: distinct photos that may be corrupt; one more is an error.
            keep_bytes: memory for photos to keep; photos beyond it are decoded each time.
        """
        self.corrupt: dict[str, str] = {}
        self._processor, self._max_corrupt = processor, max_corrupt
        self._room = keep_bytes // (3 * processor.crop**2)
        self._kept: dict[Photo, np.ndarray] = {}
        self._known: dict[Photo, str] = {}  # the same by photo; its name may have to be looked up
        self._lock = threading.Lock()

    def load(self, choices: Sequence[Iterable[Photo]], keep: bool = False) -> np.ndarray:
        """Decode, for each sample, the first of its choices that can be read.

        Args:
            choices: of each sample.
            keep: whether to keep these photos in memory, as they will be needed again.

        Returns:
            u8 [len(choices), crop, crop, 3].

        Raises:
            InputError: no choice of a sample can be read, or too many photos are corrupt.
        """
        read = self._keep if keep else self._read
        first = functools.partial(self._first, read=read)
        return self._processor.stack(_in_threads(first, choices))

    def load_all(self, photos: Sequence[Photo]) -> tuple[np.ndarray, np.ndarray]:
        """Decode photos.

        Returns:
            u8 [len(photos), crop, crop, 3], black where corrupt;
            bool [len(photos)], which could be read.

        Raises:
            InputError: too many photos are corrupt.
        """
        found = _in_threads(self._read, photos)
        return self._processor.stack(found), np.array([x is not None for x in found], bool)

    def _first(
        self, choices: Iterable[Photo], read: Callable[[Photo], np.ndarray | None]
    ) -> np.ndarray:
        tried = []
        for photo in choices:
            if (found := read(photo)) is not None:
                return found
            tried.append(photo)
        raise InputError(
            f"of {len(tried)} photos to choose from none can be read: {some(map(str, tried))}; "
            "replace them."
        )

    def _keep(self, photo: Photo) -> np.ndarray | None:
        if (found := self._kept.get(photo)) is not None:
            return found
        # A full store stays as it is: the photos needed first were put in first.
        if (found := self._read(photo)) is not None and len(self._kept) < self._room:
            self._kept[photo] = found
        return found

    def _read(self, photo: Photo) -> np.ndarray | None:
        """Decode a photo; None if it is corrupt, and the limit not passed."""
        if photo not in self._known:
            found = self._processor.try_decode(photo)
            if not isinstance(found, str):
                return found
            with self._lock:
                self._known[photo] = self.corrupt[str(photo)] = found
        if len(self._known) <= self._max_corrupt:
            return None
        if not self._max_corrupt:
            raise InputError(
                f"`{photo}` is not a photo that can be read: {self._known[photo]}; replace it, or "
                "raise `data.max_corrupt` (=0) to do without."
            )
        with self._lock:
            listed = [f"{name}: {why}" for name, why in self.corrupt.items()]
        raise InputError(
            f"{len(listed)} photos cannot be read, more than `data.max_corrupt` "
            f"(={self._max_corrupt}): {some(listed)}; replace them, or raise it."
        )


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Make the threads that decode: one pool a process, as a fork does not inherit threads."""
    return ThreadPoolExecutor(max(2, os.cpu_count() or 2), f"decode-{process}")


def _in_threads(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    return list(_pool(os.getpid()).map(function, items))


def read_processor(
    directory: str | Path,
    image_size: int,
    siglip: bool = False,
    note: Callable[[str], object] = logger.info,
    layout: Layout | None = None,
) -> ImageProcessor:
    """Read how a model directory says that photos are prepared; see `read_preprocess`."""
    return ImageProcessor(**vars(read_preprocess(directory, image_size, siglip, note, layout)))
