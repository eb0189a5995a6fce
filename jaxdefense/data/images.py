"""Photos: folders of people or classes, and the resize, crop and normalisation of CLIP and SigLIP.

Source: transformers `models/clip/image_processing_pil_clip.py`,
`models/siglip/image_processing_pil_siglip.py` (Pillow versions).
Parity: tests/test_images.py, tests/test_siglip.py, equal to Pillow's steps and to the processor of
transformers, but for photos that lie on their side, and those of more than 8 bits, which come out
white there.
"""

import dataclasses
import functools
import io
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from jaxdefense.convert.directory import HF, OPENCLIP, read_json, some
from jaxdefense.convert.huggingface import PREPROCESSOR
from jaxdefense.convert.openclip import hf_preprocessor
from jaxdefense.data.sources import Photo, list_folders, reason
from jaxdefense.errors import InputError

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_SIGLIP_MEAN = _SIGLIP_STD = (0.5, 0.5, 0.5)
_LONGEST = 256  # times the shorter side

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True)
class Folder:
    """The photos of one person, or of one class."""

    name: str
    files: tuple[Photo, ...]


def read_folders(path: str | Path, what: str) -> list[Folder]:
    """List the photos of a directory with one folder a person or class.

    Args:
        path: the directory; underscores in folder names read as spaces.
        what: what to call it in an error, `faces` for one.

    Raises:
        InputError: it does not exist, holds no folder, or one without a photo.
    """
    return [Folder(spaced(key), files) for key, files in list_folders(path, what).items()]


def spaced(key: str) -> str:
    """Read underscores as spaces."""
    return " ".join(key.replace("_", " ").split())


@dataclasses.dataclass(frozen=True)
class ImageProcessor:
    """CLIP's preprocessing: shorter side to `resize`, centre crop to `crop`, normalise.

    Fields:
        resize: 0 for SigLIP's, which resizes to `crop` by `crop` whatever the shape, and cuts
            nothing off.
    """

    resize: int
    crop: int
    resample: int = Image.Resampling.BICUBIC
    mean: tuple[float, ...] = _CLIP_MEAN
    std: tuple[float, ...] = _CLIP_STD
    rounds_half_even: bool = False  # where the crop begins, as torchvision does; else down

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Resize and crop; u8 [crop, crop, 3]."""
        image.load()
        image = _upright(image)
        if image.mode[0] in "IF":
            image = _in_8_bits(image)
        if image.has_transparency_data:  # shown on white, as the source does
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        if image.mode != "RGB":
            image = image.convert("RGB")
        if not self.resize:
            square = self.crop, self.crop
            return np.asarray(image.resize(square, Image.Resampling(self.resample)))
        width, height = image.size
        size = (
            self.resize if width <= height else int(self.resize * width / height),
            self.resize if height <= width else int(self.resize * height / width),
        )
        if self.resize != min(width, height):
            # Of a long strip only the middle is made: all of it could take gigabytes.
            whole, longest = size, _LONGEST * max(self.resize, self.crop)
            size = (
                size[0] if size[0] <= longest else self.crop,
                size[1] if size[1] <= longest else self.crop,
            )
            (left, right), (top, bottom) = map(_middle, image.size, whole, size)
            box = left, top, right, bottom
            image = image.resize(size, Image.Resampling(self.resample), box)
        left, top = (self._first(length) for length in size)
        # A crop beyond the border is filled with black, as the source does.
        return np.asarray(image.crop((left, top, left + self.crop, top + self.crop)))

    def _first(self, length: int) -> int:
        """Find the first of a side's pixels that the crop keeps."""
        rest = length - self.crop
        return round(rest / 2) if self.rounds_half_even else rest // 2

    def try_decode(self, photo: Photo) -> np.ndarray | str:
        """Decode, resize and crop a photo, of an animation the first picture.

        Returns:
            u8 [crop, crop, 3]; or why it cannot be read.
        """
        try:
            with Image.open(io.BytesIO(photo.read_bytes())) as image:
                return self(image)
        except UnidentifiedImageError:
            return "its format is none of a photo"
        except Exception as error:  # broken files make Pillow raise nearly anything
            return reason(error)

    def load(self, files: Sequence[Photo]) -> np.ndarray:
        """Decode photos in threads; u8 [len(files), crop, crop, 3].

        Raises:
            InputError: a file is no photo, or a broken one: says which.
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
        return (image_BHWC.astype(jnp.float32) / 255 - mean) / std


def thumbnail(image_HWC: np.ndarray) -> bytes:
    """Write a small picture, u8 [H, W, 3], as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def _upright(image: Image.Image) -> Image.Image:
    """Turn a photo as its EXIF says. A departure from the source, which leaves it lying."""
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:  # broken EXIF on whole pixels, which Pillow meets with nearly any error
        return image


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Bring a photo of 16 or 32 bits, or of floats, to 8.

    A departure from the source, where whatever is above 255 comes out white. Floats may be of
    range [0, 1], [0, 255] or [0, 65535]: the smallest that holds them all.
    """
    pixels = np.nan_to_num(np.asarray(image))
    peak, tops = pixels.max(), (1, 255, 65535) if image.mode == "F" else (65535,)
    top = next((top for top in tops if peak <= top), peak)
    return Image.fromarray(np.rint(np.maximum(pixels, 0) / top * 255).astype(np.uint8))


def _middle(length: int, num: int, part: int) -> tuple[float, float]:
    """Find the ends, on a side of `length`, of the middle `part` of the `num` pixels it becomes."""
    first = (num - part) // 2
    return first * length / num, (first + part) * length / num


class Loader:
    """Decodes photos in parallel; a corrupt one is named and replaced, up to a limit.

    May be used from several threads, but not from those that decode.

    Fields:
        corrupt: photo -> why it cannot be read, in the order found.
    """

    def __init__(self, processor: ImageProcessor, max_corrupt: int = 0, keep_bytes: int = 0):
        """Begin with no corrupt photo known.

        Args:
            processor: decodes.
            max_corrupt: distinct photos that may be corrupt; one more is an error.
            keep_bytes: memory for photos asked to be kept; beyond it they are decoded each time.
        """
        self.corrupt: dict[str, str] = {}
        self._processor, self._max_corrupt = processor, max_corrupt
        self._room = keep_bytes // (3 * processor.crop**2)
        self._kept: dict[Photo, np.ndarray] = {}
        self._known: dict[Photo, str] = {}  # the same; a photo's name may have to be looked up
        self._lock = threading.Lock()

    def load(self, choices: Sequence[Iterable[Photo]], keep: bool = False) -> np.ndarray:
        """Decode, for each sample, the first of its choices that can be read.

        Args:
            choices: of each sample.
            keep: whether these photos will be asked for again and are to stay in memory.

        Returns:
            u8 [len(choices), crop, crop, 3].

        Raises:
            InputError: of a sample no choice can be read, or too many photos are corrupt.
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
        # Full, it stays as it is: people come up evenly, so no photo is worth more than another.
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
    """Make the threads that decode: one pool a process, as a fork takes no threads along."""
    return ThreadPoolExecutor(max(2, os.cpu_count() or 2), f"decode-{process}")


def _in_threads(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    return list(_pool(os.getpid()).map(function, items))


def read_processor(directory: str | Path, image_size: int, siglip: bool = False) -> ImageProcessor:
    """Read `preprocessor_config.json` of a model directory; the model's defaults if there is none.

    Args:
        directory: of the model.
        image_size: of the tower.
        siglip: whose defaults absent fields have, SigLIP's or CLIP's.

    Of OpenCLIP's layout, `preprocess_cfg` in its config.

    Raises:
        InputError: a step is switched off, or of another kind than CLIP's or SigLIP's; or what
            comes out is not of the image size of the tower.
    """
    file, openclip = Path(directory) / PREPROCESSOR, Path(directory) / OPENCLIP.config
    if openclip.exists() and not (Path(directory) / HF.config).exists():
        file = openclip
        try:
            raw = hf_preprocessor(read_json(file).get("preprocess_cfg") or {}, image_size)
        except ValueError as error:
            raise InputError(f"`{file}`: {error}") from error
    else:
        raw = read_json(file) if file.exists() else {}
    square = {"height": image_size, "width": image_size}
    resize = raw.get("size", square if siglip else image_size)
    # SigLIP's: straight to a square. A crop changes nothing then, so that it must be left out.
    cropped = raw.get("do_center_crop", not siglip)
    straight = isinstance(resize, dict) and "height" in resize and not cropped
    steps = ("do_resize", "do_rescale", "do_normalize", *([] if straight else ["do_center_crop"]))
    for step in steps:
        if not raw.get(step, True):
            raise InputError(f"`{file}`: `{step}` (=false) must be true, as CLIP has it.")
    crop = raw.get("crop_size", image_size)
    if straight:
        if resize != square:
            raise InputError(f"`{file}`: `size` (={resize}) must be {square}, as the model has it.")
        resize, crop = 0, image_size
    resize = resize.get("shortest_edge") if isinstance(resize, dict) else resize
    crop = crop.get("height") if isinstance(crop, dict) else crop
    resample = raw.get("resample", Image.Resampling.BICUBIC)
    if resample not in list(Image.Resampling):
        raise InputError(f"`{file}`: `resample` (={resample!r}) must be one of Pillow's filters.")
    statistics = []
    mean, std = (_SIGLIP_MEAN, _SIGLIP_STD) if siglip else (_CLIP_MEAN, _CLIP_STD)
    for name, default in (("image_mean", mean), ("image_std", std)):
        value = raw.get(name, default)
        if not (isinstance(value, list | tuple) and [type(x) for x in value] == [float] * 3):
            raise InputError(f"`{file}`: `{name}` (={value!r}) must be three numbers below 1.")
        statistics.append(tuple(value))
    if abs(255 * raw.get("rescale_factor", 1 / 255) - 1) > 1e-6:
        raise InputError(f"`{file}`: `rescale_factor` must be 1/255.")
    if type(resize) is not int or resize < (not straight):
        raise InputError(f"`{file}`: `size` must be {{'shortest_edge': pixels}}, as CLIP has it.")
    if crop != image_size:
        raise InputError(
            f"`{file}`: `crop_size` (={crop}) must be the image size of the model (={image_size})."
        )
    return ImageProcessor(
        resize,
        image_size,
        resample,
        *statistics,
        rounds_half_even=file == openclip,
    )
