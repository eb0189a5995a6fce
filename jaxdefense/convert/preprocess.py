"""How a photo is prepared before a model sees it, as the files beside the model say.

jaxdefense reads every field as the model's own library does, or refuses it by name. Absent fields
have the library's defaults.

Source: transformers `image_processing_base.py` (which file counts), `image_processing_utils.py` and
`image_processing_backends.py` (fields), `models/{clip,siglip}/image_processing_pil_*.py`
(defaults); open_clip `transform.py`.
Parity: tests/test_preprocess.py, pixels equal to those of both libraries.
"""

import dataclasses
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from jaxdefense.convert.directory import HF, OPENCLIP, Layout, find_layout
from jaxdefense.errors import InputError
from jaxdefense.files import read_json

logger = logging.getLogger(__name__)

PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"  # transformers 5 writes only this file
_NESTED = "image_processor"

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_HALF = (0.5, 0.5, 0.5)
_SQUARE = {"height": 224, "width": 224}
_EVERY = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "default_to_square": False,
}
_CLIP = "CLIPImageProcessor"
_SIGLIP = "SiglipImageProcessor"
_DEFAULTS: dict[str, dict[str, Any]] = {
    _CLIP: _EVERY
    | {"size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": _SQUARE}
    | {"image_mean": _MEAN, "image_std": _STD},
    _SIGLIP: _EVERY | {"size": _SQUARE, "image_mean": _HALF, "image_std": _HALF},
}
# Steps of the source's processors for other families, and of one for an older model.
_NO_STEPS = ("do_pad", "use_square_size")
_INTERPOLATION = {"bicubic": 3, "bilinear": 2}  # Pillow's numbers


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """The resize, crop and normalisation of a model.

    Fields:
        resize: pixels of the shorter side; (height, width), whatever the shape; None for no resize.
        crop: pixels of a side of the result.
        resample: Pillow's number of a filter.
        scale: divisor of the levels of 0-255, before `mean` and `std`.
        library: the library to follow. The two differ in where a crop begins, and in colours:
            transformers puts transparency on white and converts to RGB first; open_clip drops
            transparency and converts last.
        fill: level around the photo with open_clip's `longest`, which shrinks the longer side to
            fit; None without.
    """

    resize: int | tuple[int, int] | None
    crop: int
    resample: int = Image.Resampling.BICUBIC
    mean: tuple[float, ...] = _MEAN
    std: tuple[float, ...] = _STD
    scale: float = 255.0
    library: Literal["transformers", "open_clip"] = "transformers"
    fill: int | None = None


def read_preprocess(
    directory: str | Path,
    image_size: int,
    siglip: bool = False,
    note: Callable[[str], object] = logger.info,
    layout: Layout | None = None,
) -> Preprocess:
    """Read how a model directory says that photos are prepared.

    Args:
        directory: directory of the model.
        image_size: image size of the tower, pixels.
        siglip: whether SigLIP's defaults hold, rather than CLIP's, where no file names a family.
        note: called with a line if there is no file or section, so that defaults hold.
        layout: the layout whose files are read; None for that of the directory.

    Raises:
        InputError: the files name another family's steps, the result does not have the tower's
            image size, or the library itself would refuse them.
    """
    path = Path(directory)
    openclip = (layout or find_layout(path)) is OPENCLIP
    file, raw = (path / OPENCLIP.config, None) if openclip else _hf_section(path)
    try:
        if openclip:
            found = from_openclip((section := read_json(file).get("preprocess_cfg")), image_size)
            missing = None if section else f"`{file}` has no `preprocess_cfg`"
        elif raw is None:
            square = (image_size, image_size)
            found = Preprocess(square if siglip else image_size, image_size)
            if siglip:
                found = dataclasses.replace(found, mean=_HALF, std=_HALF)
            missing = f"`{path}` has neither {PREPROCESSOR} nor {PROCESSOR}"
        else:
            kind = _SIGLIP if siglip else _CLIP
            found, missing = from_hf(_with_type(raw, path, kind), image_size), None
    except InputError as error:
        raise InputError(f"`{file}`: {error}") from error
    if missing:
        family = "OpenCLIP" if openclip else "SigLIP" if siglip else "CLIP"
        note(f"{missing}: photos are prepared as {family}'s default says: {describe(found)}")
    return found


def _hf_section(path: Path) -> tuple[Path, dict[str, Any] | None]:
    """Find the fields that transformers reads, and their file; nested fields come first."""
    if (file := path / PROCESSOR).exists():
        nested = read_json(file).get(_NESTED)
        if nested is not None:
            if not isinstance(nested, dict):
                raise InputError(f"`{file}`: `{_NESTED}` must be a JSON object.")
            return file, nested
    file = path / PREPROCESSOR
    return file, read_json(file) if file.exists() else None


def _with_type(raw: dict[str, Any], path: Path, kind: str) -> dict[str, Any]:
    """Add the family that transformers assumes if the fields name none."""
    if raw.get("image_processor_type") is None and raw.get("feature_extractor_type") is None:
        config = read_json(path / HF.config) if (path / HF.config).exists() else {}
        kind = config.get("image_processor_type") or kind
        return raw | {"image_processor_type": kind}
    return raw


def write_preprocessor(directory: Path, fields: dict[str, Any]) -> None:
    """Write `preprocessor_config.json`, and drop fields of other files that would override it."""
    (directory / PREPROCESSOR).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    if (file := directory / PROCESSOR).exists() and _NESTED in (other := read_json(file)):
        del other[_NESTED]
        file.write_text(json.dumps(other, indent=2) + "\n", encoding="utf-8")


def describe(p: Preprocess) -> str:
    """Describe in words how a photo is prepared."""
    if isinstance(p.resize, tuple):
        size = f"resized to {p.resize[1]} x {p.resize[0]}"
    else:
        size = f"shorter side to {p.resize}" if p.resize else "not resized"
    name = Image.Resampling(p.resample).name.lower()
    mean, std = (", ".join(f"{x:.3g}" for x in values) for values in (p.mean, p.std))
    return f"{size} ({name}), crop {p.crop}, mean ({mean}), std ({std})"


def from_hf(raw: dict[str, Any], image_size: int) -> Preprocess:
    """Read the fields of a processor of transformers.

    Raises:
        InputError: see `read_preprocess`.
    """
    fields = _DEFAULTS[_family(raw)] | raw
    for step in _NO_STEPS:
        if fields.get(step):
            raise InputError(f"`{step}` (={fields[step]!r}) must be absent or false.")
    resize = resample = None
    if fields["do_resize"]:
        resize, resample = _size(fields["size"], fields["default_to_square"]), fields["resample"]
        if type(resample) is not int or resample not in list(Image.Resampling):
            raise InputError(f"`resample` (={resample!r}) must be a number of Pillow's filters.")
    square = (image_size, image_size)
    if fields.get("do_center_crop"):
        crop = _size(fields.get("crop_size"), True, "crop_size")
        if crop != square:
            absent = "" if "crop_size" in raw else ", as it is where the field is absent"
            raise InputError(
                f"`crop_size` (={_shown(crop)}{absent}) must be the image size of the model "
                f"(={image_size})."
            )
    elif resize != square:
        raise InputError(
            f"`size` (={_shown(resize)}) must be the image size of the model, "
            f"{{'height': {image_size}, 'width': {image_size}}}, where `do_center_crop` is false."
        )
    scale = 1.0
    if fields["do_rescale"]:
        factor = fields["rescale_factor"]
        if not _is_number(factor) or factor <= 0:
            raise InputError(f"`rescale_factor` (={factor!r}) must be a number above 0.")
        scale = 1 / factor
    mean, std = (0.0,) * 3, (1.0,) * 3
    if fields["do_normalize"]:
        mean, std = _statistic(fields, "image_mean"), _statistic(fields, "image_std")
    return Preprocess(resize, image_size, 3 if resample is None else resample, mean, std, scale)


def _family(raw: dict[str, Any]) -> str:
    """Find the class of transformers by any name that its versions have given it."""
    name = raw.get("image_processor_type")
    if name is None and isinstance(old := raw.get("feature_extractor_type"), str):
        name = old.replace("FeatureExtractor", "ImageProcessor")
    family = str(name).removesuffix("Fast").removesuffix("Pil")
    if family not in _DEFAULTS:
        raise InputError(
            f"`image_processor_type` (={name!r}) must be {' or '.join(_DEFAULTS)}; jaxdefense "
            "prepares photos as these do."
        )
    return family


def _size(value: Any, default_to_square: bool, name: str = "size") -> int | tuple[int, int]:
    """Read a size in the source's form: shorter side, or (height, width)."""
    if type(value) is int:
        value = [value, value] if default_to_square else {"shortest_edge": value}
    if isinstance(value, list | tuple) and len(value) == 2:
        value = dict(zip(("height", "width"), value, strict=True))
    if isinstance(value, dict) and all(type(x) is int and x > 0 for x in value.values()):
        if set(value) == {"height", "width"}:
            return value["height"], value["width"]
        if set(value) == {"shortest_edge"} and name == "size":
            return value["shortest_edge"]
    forms = "{'height': pixels, 'width': pixels}"
    forms = f"{{'shortest_edge': pixels}} or {forms}" if name == "size" else forms
    raise InputError(f"`{name}` (={value!r}) must be {forms}.")


def _shown(size: int | tuple[int, int] | None) -> str:
    return "x".join(map(str, size)) if isinstance(size, tuple) else str(size)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _statistic(fields: dict[str, Any], name: str) -> tuple[float, ...]:
    """Read a mean or a deviation: one number, or one for each colour."""
    value = fields.get(name)
    numbers: Any = [value] * 3 if _is_number(value) else value
    good = isinstance(numbers, list | tuple) and len(numbers) == 3 and all(map(_is_number, numbers))
    if not good or "std" in name and 0 in numbers:
        other = ", none of them 0" if "std" in name else ""
        raise InputError(f"`{name}` (={value!r}) must be a number, or three{other}.")
    return tuple(map(float, numbers))


def from_openclip(raw: Any, image_size: int) -> Preprocess:
    """Read OpenCLIP's `preprocess_cfg`.

    `size` is ignored: the library uses the model's image size instead.

    Raises:
        InputError: see `read_preprocess`.
    """
    if not isinstance(raw or {}, dict):
        raise InputError("`preprocess_cfg` must be a JSON object.")
    given = {key: value for key, value in (raw or {}).items() if value is not None}
    if (mode := given.get("mode", "RGB")) != "RGB":
        raise InputError(f"`preprocess_cfg.mode` (={mode!r}) must be 'RGB'.")
    interpolation = given.get("interpolation") or "bicubic"
    if interpolation == "random":  # in training alone
        interpolation = "bicubic"
    if interpolation not in _INTERPOLATION:
        raise InputError(
            f"`preprocess_cfg.interpolation` (={interpolation!r}) must be one of "
            f"{', '.join(_INTERPOLATION)}, random."
        )
    fill, resize = None, image_size
    if (how := given.get("resize_mode") or "shortest") == "squash":
        resize = image_size, image_size
    elif how == "longest":
        fill = given.get("fill_color", 0)
        if type(fill) is not int or not 0 <= fill <= 255:
            raise InputError(f"`preprocess_cfg.fill_color` (={fill!r}) must be from 0 to 255.")
    elif how != "shortest":
        raise InputError(
            f"`preprocess_cfg.resize_mode` (={how!r}) must be shortest, longest or squash."
        )
    given = {"mean": given.get("mean") or _MEAN, "std": given.get("std") or _STD}
    mean, std = _statistic(given, "mean"), _statistic(given, "std")
    return Preprocess(
        resize, image_size, _INTERPOLATION[interpolation], mean, std, 255.0, "open_clip", fill
    )


def to_openclip(p: Preprocess) -> dict[str, Any]:
    """Write OpenCLIP's `preprocess_cfg` for a `p` read from transformers' fields.

    Raises:
        InputError: OpenCLIP cannot express it.
    """
    names = {number: name for name, number in _INTERPOLATION.items()}
    modes = {p.crop: "shortest", (p.crop, p.crop): "squash"}
    if p.resize not in modes or p.resample not in names or abs(p.scale - 255) > 1e-9:
        raise InputError(
            f"OpenCLIP cannot prepare photos so: {describe(p)}, levels divided by {p.scale:g}; it "
            "resizes to the size it crops to, bicubic or bilinear, and divides by 255."
        )
    raw: dict[str, Any] = {"interpolation": names[p.resample]}
    if (mode := modes[p.resize]) != "shortest":
        raw["resize_mode"] = mode
    return raw | {"mean": list(p.mean), "std": list(p.std)}


def to_hf(p: Preprocess) -> dict[str, Any]:
    """Write transformers' `preprocessor_config.json` for a `p` read from OpenCLIP's fields.

    Raises:
        InputError: transformers' CLIP cannot express it.
    """
    if p.fill is not None:
        raise InputError(
            "`preprocess_cfg.resize_mode` (='longest') has no equivalent in transformers' CLIP."
        )
    square = {"height": p.crop, "width": p.crop}
    straight = isinstance(p.resize, tuple)
    return {
        "image_processor_type": _CLIP,
        "do_resize": True,
        "size": square if straight else {"shortest_edge": p.resize},
        "resample": int(p.resample),
        "do_center_crop": not straight,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(p.mean),
        "image_std": list(p.std),
        "do_convert_rgb": True,
    }
