"""Photos with captions: read from a directory, freed of listed names, made of people's photos."""

import dataclasses
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxdefense.data.captions import describe_dropped
from jaxdefense.data.images import Photos
from jaxdefense.data.records import json_objects, json_type
from jaxdefense.data.sources import Note, Photo, photo_suffixes, reason
from jaxdefense.errors import InputError
from jaxdefense.words import name_finder, some

logger = logging.getLogger(__name__)

CAPTIONS, IMAGES = "captions.json", "images"
_COCO = ("images", "annotations")  # of COCO's form, the lists that are read


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Photos with their captions.

    Fields:
        photos: the photos, at least one.
        captions: of each photo, at least one.
        owner: of each photo, whom or what it shows; photos of one owner fit each other's captions.
            () if every photo shows something else.
    """

    photos: tuple[Photo, ...]
    captions: tuple[tuple[str, ...], ...]
    owner: tuple[int, ...] = ()

    def __post_init__(self):
        assert len(self.photos) == len(self.captions) and all(self.captions)
        assert len(self.owner) in (0, len(self.photos))

    def __len__(self) -> int:
        return len(self.photos)

    def owners(self) -> np.ndarray:
        """Number the owners of the photos from 0; int64 [len(photos)]."""
        if not self.owner:
            return np.arange(len(self.photos))
        return np.unique(self.owner, return_inverse=True)[1]

    def num_captions(self) -> int:
        """Count the captions of all photos."""
        return sum(map(len, self.captions))


def read_pairs(path: str, note: Note = logger.info) -> Pairs:
    """Read a directory of photos with captions.

    Args:
        path: holds `captions.json`, and the photos in `images`, or beside the file if there is no
            such folder. The file maps the name of each photo to its captions or its one caption;
            or it has COCO's form, an object with the lists `images` and `annotations`.
        note: takes a line on photos without captions, which are left out.

    Raises:
        InputError: the directory, the file or a photo is missing; the file is in no such form; it
            holds no caption, or an empty one.

    Source: COCO's form is the one of https://cocodataset.org/#format-data, section 5.
    """
    root = Path(path)
    if not root.is_dir():
        raise InputError(f"pairs directory `{path}` does not exist.")
    file, folder = root / CAPTIONS, root / IMAGES
    folder = folder if folder.is_dir() else root
    raw = _read_object(file)
    found = _coco(raw, file) if all(name in raw for name in _COCO) else _named(raw, file)
    kept = {name: captions for name, captions in found.items() if captions}
    if not kept:
        raise InputError(f"`{file}` holds no caption; give each photo at least one.")
    if missing := [name for name in kept if not (folder / name).is_file()]:
        raise InputError(
            f"`{file}` has captions of {len(missing)} photos that `{folder}` does not hold: "
            f"{some(missing)}; put them there, or remove their captions."
        )
    # Names may lead into folders; only the photos of this one are looked through.
    bare = [name for name in found if name not in kept]
    bare += sorted(name for name in _photos_in(folder) if name not in found)
    if bare:
        note(f"pairs `{path}`: photos without captions are left out: {len(bare)} ({some(bare)})")
    return Pairs(tuple(folder / name for name in kept), tuple(kept.values()))


def without(pairs: Pairs, names: Iterable[str]) -> Pairs:
    """Drop the captions that hold a listed name, and the photos that have no other.

    Raises:
        InputError: no caption is left.
    """
    holds = name_finder(names)
    clean = [tuple(text for text in captions if not holds(text)) for captions in pairs.captions]
    kept = [i for i, captions in enumerate(clean) if captions]
    if not kept:
        raise InputError(
            f"pairs: all {pairs.num_captions()} captions hold a listed name, none is left; give "
            "photos of other things too."
        )
    return Pairs(
        tuple(pairs.photos[i] for i in kept),
        tuple(clean[i] for i in kept),
        tuple(pairs.owner[i] for i in kept) if pairs.owner else (),
    )


def describe_without(before: Pairs, after: Pairs) -> str:
    """Say how many captions and photos `without` dropped, and show the first captions."""
    left = dict(zip(after.photos, after.captions, strict=True))
    dropped = [
        text
        for photo, captions in zip(before.photos, before.captions, strict=True)
        for text in captions
        if text not in left.get(photo, ())
    ]
    num = len(before) - len(after)
    return f"{describe_dropped(len(dropped), dropped)}; photos dropped with all their own: {num}"


def pairs_of(people: Sequence[Photos], templates: Sequence[str]) -> Pairs:
    """Give each photo of a person captions with the name.

    Args:
        people: with at least one photo each.
        templates: captions with `{0}` for the name.
    """
    photos = tuple(photo for person in people for photo in person.files)
    owner = np.repeat(np.arange(len(people)), [len(person.files) for person in people])
    captions = [tuple(template.format(person.name) for template in templates) for person in people]
    return Pairs(photos, tuple(captions[i] for i in owner), tuple(owner.tolist()))


def _read_object(file: Path) -> dict[str, object]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"`{file}` does not exist; it holds the captions of the photos.") from None
    except OSError as error:
        raise InputError(f"`{file}` cannot be read: {reason(error)}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"`{file}` is not JSON: {reason(error)}.") from error
    if not isinstance(value, dict):
        raise InputError(
            f"`{file}` holds a JSON {json_type(value)}; must be an object of photo and captions, "
            "or COCO's."
        )
    return value


def _named(raw: Mapping[str, object], file: Path) -> dict[str, tuple[str, ...]]:
    """Read captions by the name of the photo."""
    found = {}
    for name, value in raw.items():
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list):
            raise InputError(
                f"`{file}`: captions of `{name}` are a JSON {json_type(value)}; must be a list of "
                "strings, or one string."
            )
        found[name] = tuple(_caption(text, f"`{file}`: a caption of `{name}`") for text in texts)
    return found


def _coco(raw: Mapping[str, object], file: Path) -> dict[str, tuple[str, ...]]:
    """Read captions as COCO's annotations have them, by the name of the photo."""
    names: dict[int | str, str] = {}
    for image in json_objects(raw["images"], "images", ("id", "file_name"), f"`{file}`"):
        number, name = image["id"], image["file_name"]
        if not isinstance(name, str) or not name:
            raise InputError(f"`{file}`: `file_name` (={name!r}) of an image must be a string.")
        if _number(number, "id", file) in names:
            raise InputError(f"`{file}`: two images have the `id` {number!r}; each has its own.")
        names[_number(number, "id", file)] = name
    found: dict[str, list[str]] = {name: [] for name in names.values()}
    fields = "image_id", "caption"
    for annotation in json_objects(raw["annotations"], "annotations", fields, f"`{file}`"):
        number = _number(annotation["image_id"], "image_id", file)
        if number not in names:
            raise InputError(f"`{file}`: an annotation has `image_id` {number!r}, but no image it.")
        where = f"`{file}`: a caption of `{names[number]}`"
        found[names[number]].append(_caption(annotation["caption"], where))
    return {name: tuple(captions) for name, captions in found.items()}


def _number(value: object, what: str, file: Path) -> int | str:
    if not isinstance(value, int | str):
        raise InputError(f"`{file}`: `{what}` (={value!r}) must be a whole number, or a string.")
    return value


def _caption(text: object, where: str) -> str:
    if not isinstance(text, str):
        raise InputError(f"{where} is a JSON {json_type(text)}; must be a string.")
    if not (text := " ".join(text.split())):
        raise InputError(f"{where} is empty; write one, or remove it.")
    return text


def _photos_in(folder: Path) -> list[str]:
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise InputError(f"`{folder}` cannot be listed: {reason(error)}.") from error
    suffixes = photo_suffixes()
    return [x for x in names if x.lower().endswith(suffixes) and not x.startswith(".")]
