"""Inputs given by value: lists, arrays and photos in memory, where a command takes files.

They are written into the directory of results, so that a run given by value is like any other: it
resumes, it is recorded, and other commands read the same files.
"""

import dataclasses
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxdefense.data.sources import Photo, photo_suffixes, reason
from jaxdefense.errors import InputError
from jaxdefense.files import write_array, write_json, write_text
from jaxdefense.results import SETTINGS, SUMMARY, read_object
from jaxdefense.run_directory import INPUTS
from jaxdefense.settings import PATH, settings_of

PhotoLike = str | os.PathLike[str] | Image.Image | np.ndarray

# Last parts of the settings that take such values. Of names, a tab and `#` mean something.
_NAMES = {
    *("names", "keep_names", "restore", "exclude", "aliases", "collateral"),
    *("sexes", "labels", "class_names"),
}
_LINES = {*_NAMES, "captions", "candidates", "templates"}
_PHOTOS = {"faces", "images", "keep", "strangers", "zeroshot", "target", "image_target"}
BY_VALUE = frozenset(_LINES | _PHOTOS)
_MANIFEST = "inputs.json"  # setting -> digest of what was given


@dataclasses.dataclass(frozen=True)
class InMemory:
    """A photo in memory, as PNG, which loses nothing."""

    png: bytes
    where: str

    def read_bytes(self) -> bytes:
        """Give the PNG."""
        return self.png

    def __str__(self) -> str:
        return self.where


@dataclasses.dataclass(frozen=True)
class Given:
    """An input given by value.

    Fields:
        name: of its file or folder.
        digest: of its contents.
        write: writes it to a path that does not exist.
    """

    name: str
    digest: str
    write: Callable[[Path], object]


def as_photo(photo: Any, where: str) -> Photo:
    """Make a photo of a path, a Pillow image or a uint8 array [height, width, 3].

    Args:
        photo: see above.
        where: name of the photo in messages.

    Raises:
        InputError: it is something else.
    """
    if isinstance(photo, str | os.PathLike):
        return Path(photo)
    if not isinstance(photo, Image.Image):
        array = np.asarray(photo)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3 or not array.size:
            raise InputError(
                f"{where} must be a path, a Pillow image or a uint8 array [height, width, 3], not "
                f"{array.dtype} {list(array.shape)}."
            )
        photo = Image.fromarray(array)
    buffer = io.BytesIO()
    try:
        photo.save(buffer, "PNG")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{where} is a Pillow image that PNG cannot hold ({reason(error)}); convert it to RGB."
        ) from error
    return InMemory(buffer.getvalue(), where)


def take_values(
    settings: Mapping[str, Any], out: Path, kind: type
) -> tuple[dict[str, Any], dict[str, Given]]:
    """Replace inputs given by value with the paths that they will have.

    Args:
        settings: by name, short or full; `config.` may come before it.
        out: directory of results.
        kind: dataclass of the settings.

    Returns:
        the settings, with paths; and the inputs to write with `write_inputs`, by setting.

    Raises:
        InputError: a file could not hold an input.
    """
    paths, given = dict[str, Any](), dict[str, Given]()
    flags = {flag for x in settings_of(kind) if x.type == PATH for flag in (*x.flags, f"--{x.key}")}
    for key, value in settings.items():
        last, flag = key.rpartition(".")[2], f"--{key.removeprefix('config.').replace('_', '-')}"
        by_value = last in BY_VALUE and flag in flags
        if not by_value or isinstance(value, str | os.PathLike):
            paths[key] = value
            continue
        if last in _LINES:
            given[key] = _lines(key, value, last in _NAMES)
        elif isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind == "f":
            given[key] = _vector(key, value)
        else:
            given[key] = _photos(key, value)
        paths[key] = str(out / INPUTS / given[key].name)
    return paths, given


def write_inputs(given: Mapping[str, Given], out: Path) -> None:
    """Write inputs into a directory of results; those that lie there already stay.

    Args:
        given: by setting.
        out: directory of results.

    Raises:
        InputError: it holds a finished run, an unfinished one whose inputs were others, or inputs
            that no run wrote.
    """
    if not given:
        return
    if (out / SUMMARY).exists():
        raise InputError(f"`{out}` holds a finished run; give another directory.")
    folder = out / INPUTS
    manifest = folder / _MANIFEST
    found = read_object(manifest) if manifest.exists() else {}
    if (out / SETTINGS).exists():
        for key, one in given.items():
            if key in found and found[key] != one.digest:
                raise InputError(
                    f"`{out}` holds another run (`{key}` had other contents there); give another "
                    "directory, or the same inputs to resume it."
                )
    if folder.exists() and not manifest.exists():
        raise InputError(f"`{folder}` exists and is of no run; give another directory.")
    folder.mkdir(exist_ok=True)
    write_json(manifest, found)  # first: what it lies beside is ours
    for key, one in given.items():
        if found.get(key) != one.digest:
            found.pop(key, None)  # a call that is killed now leaves no digest of other contents
            write_json(manifest, found)
            _replace(folder / one.name, one.write)
            found[key] = one.digest
            write_json(manifest, found)


def remove_inputs(out: Path) -> None:
    """Remove the inputs again, unless a run has begun with them; never what others wrote."""
    if (out / INPUTS / _MANIFEST).exists() and not (out / SETTINGS).exists():
        shutil.rmtree(out / INPUTS, ignore_errors=True)


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file or folder beside its place, then move it there."""
    tmp = Path(tempfile.mkdtemp(prefix=".", dir=path.parent))
    try:
        write(tmp / path.name)
        if path.is_dir():  # of a run that never began
            shutil.rmtree(path)
        os.replace(tmp / path.name, path)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


# Lines


def _lines(key: str, value: Any, names: bool) -> Given:
    """Make lines of texts; several texts of one line, such as a person's names, are in a tuple."""
    items = value.items() if isinstance(value, Mapping) else value
    if not isinstance(items, Iterable):
        raise InputError(f"`{key}` (={value!r}) must be a path, or a list of texts.")
    if isinstance(items, set | frozenset):
        raise InputError(f"`{key}` is a set, whose order is another in each process; give a list.")
    lines = [_line(f"`{key}`[{i}]", item, names) for i, item in enumerate(items)]
    if not lines:
        raise InputError(f"`{key}` is an empty list; give at least one.")
    text = "\n".join(lines) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Given(f"{key}.txt", digest, lambda path: write_text(path, text))


def _line(where: str, item: Any, names: bool) -> str:
    parts = [item] if isinstance(item, str) else item
    if not isinstance(parts, list | tuple) or not all(isinstance(x, str) for x in parts):
        raise InputError(f"{where} (={item!r}) must be a text, or a tuple of them.")
    for part in parts:
        marks = "\n\r\0" + "\t#" * (names or len(parts) > 1)
        if mark := next((x for x in marks if x in part), ""):
            raise InputError(f"{where} (={part!r}) holds {mark!r}, which a line cannot; remove it.")
        if not part.strip():
            raise InputError(f"{where} (={part!r}) is empty; leave it out.")
        try:
            part.encode()
        except UnicodeEncodeError:
            raise InputError(f"{where} (={part!r}) is no Unicode text; rewrite it.") from None
    return "\t".join(parts)


def _vector(key: str, value: np.ndarray) -> Given:
    digest = hashlib.sha256(f"{value.dtype} {value.shape}".encode() + value.tobytes()).hexdigest()
    return Given(f"{key}.npy", digest, lambda path: write_array(path, value))


# Photos


def _photos(key: str, value: Any) -> Given:
    """Make a folder of photos, or of a folder a person or class."""
    if isinstance(value, Mapping):
        places = _of_people(key, value)
    else:
        places = {
            f"{i:06d}{_suffix(photo)}": photo for i, photo in enumerate(_read(f"`{key}`", value))
        }
    if not places:
        raise InputError(f"`{key}` holds no photo; give at least one.")
    total = hashlib.sha256()
    for place, photo in places.items():
        # What lies behind a path is compared by the run itself, as if the path were its setting.
        data = os.fsencode(photo) if isinstance(photo, Path) else photo.read_bytes()
        total.update(b"%s\0%d\0" % (place.encode(), len(data)) + data)

    def write(folder: Path) -> None:
        folder.mkdir()
        for place, photo in places.items():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(photo, Path):
                (folder / place).symlink_to(photo)
            else:
                (folder / place).write_bytes(photo.read_bytes())

    return Given(key, total.hexdigest(), write)


def _of_people(key: str, people: Mapping[str, Any]) -> dict[str, Photo]:
    """Place the photos of each person or class in a folder; a path may be that of a folder.

    Files keep their names, as a person's photos whose names differ only in folder and suffix are
    never divided between training and attack.
    """
    places = dict[str, Photo]()
    for name, photos in people.items():
        _check_folder(key, name)
        where = f"`{key}`[{name!r}]"
        if isinstance(photos, str | os.PathLike):
            if not os.path.isdir(photos):
                raise InputError(f"{where} (={photos}) must be a folder of photos, or a list.")
            places[name] = Path(os.path.abspath(photos))
            continue
        found = _read(where, photos)
        if not found:
            raise InputError(f"{where} holds no photo; give one, or leave the person out.")
        for i, photo in enumerate(found):
            file = photo.name if isinstance(photo, Path) else f"{i:06d}{_suffix(photo)}"
            place = f"{name}/{file}"
            places[f"{name}/{i:06d}/{file}" if place in places else place] = photo
    return places


def _read(where: str, photos: Any) -> list[Photo]:
    if not isinstance(photos, Sequence | np.ndarray):
        raise InputError(f"{where} must be photos: a path, a list or a uint8 array [B, H, W, 3].")
    found = [as_photo(photo, f"{where}[{i}]") for i, photo in enumerate(photos)]
    for i, photo in enumerate(found):
        if not isinstance(photo, Path):
            continue
        if not photo.is_file() or not photo.name.lower().endswith(photo_suffixes()):
            raise InputError(f"{where}[{i}] (={photo}) is no file of a photo.")
        found[i] = Path(os.path.abspath(photo))
    return found


def _suffix(photo: Photo) -> str:
    return photo.suffix if isinstance(photo, Path) else ".png"


def _check_folder(key: str, name: Any) -> None:
    """Raise InputError if a person's name cannot be that of a folder."""
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"`{key}`: {name!r} must be the name of a person or class.")
    bad = "/" in name or "\0" in name or name.startswith(".") or len(os.fsencode(name)) > 255
    if bad:
        raise InputError(
            f"`{key}`: {name!r} cannot be the name of a folder; give it without `/`, not beginning "
            "with a dot, and in at most 255 bytes."
        )
