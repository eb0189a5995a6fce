"""`jaxdefense find`: photos whose captions name a listed person, a folder a person.

A name is not a person: namesakes are among the photos, so a human looks through them. The captions
lie beside the photos, and a contact sheet shows all of a person.
"""

import hashlib
import io
import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypedDict, cast

from PIL import Image

from jaxdefense.buckets.places import as_given
from jaxdefense.contact_sheet import TILE, contact_sheet
from jaxdefense.data.forms import files_of, split_column
from jaxdefense.data.identities import Identity, describe_listed, read_identities
from jaxdefense.data.sources import Photo, photo_formats, photo_suffixes, reason
from jaxdefense.errors import InputError
from jaxdefense.files import digest, write_bytes, write_text
from jaxdefense.find.config import FindConfig
from jaxdefense.find.shards import Captioned, read_shard
from jaxdefense.log import Progress
from jaxdefense.results import FindSummary
from jaxdefense.run_directory import RunDirectory
from jaxdefense.words import name_lister

logger = logging.getLogger(__name__)

FOUND = "found.jsonl"  # a line a shard that was looked through
_WHAT = "shards"
_CHECKED = 3  # shards, for mistakes in the settings
_COLUMNS = 8  # of a contact sheet
_STEM = 12  # characters of a photo's name, from its digest
_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "JPEG2000": ".jp2"}  # where it is not the format's name
_LONGEST = 250  # bytes of a folder's name


class Looked(TypedDict):
    """What was found in a shard.

    Fields:
        shard: its path.
        captions: that were read.
        unreadable: photos that could not be.
        unreadable_captions: captions that could not be.
        damaged: why the rest of the shard was left out; "" if it was read to its end.
        photos: name of a person -> file in their folder -> where it comes from.
    """

    shard: str
    captions: int
    unreadable: int
    unreadable_captions: int
    damaged: str
    photos: dict[str, dict[str, str]]


def find(cfg: FindConfig) -> FindSummary:
    """Collect the photos, or go on where this was broken off.

    Raises:
        InputError: names or shards cannot be read, or the directory holds something else.
    """
    identities = read_identities(cfg.names)
    pattern, column = split_column(cfg.shards)
    shards = files_of(pattern, _WHAT)
    if missing := [path for path in shards if not os.path.isfile(path)]:
        raise InputError(f"{_WHAT}: `{missing[0]}` does not exist; give those that do.")
    listed = {"names_sha256": digest("\t".join(who.names) for who in identities)}
    run = RunDirectory(Path(cfg.out), FindSummary)
    run.check(cfg, listed)
    logger.info(f"looking for {describe_listed(identities)}")
    folders = Folders(run.path, identities, cfg.num_photos)
    _check_settings(shards, column, cfg.photo_column)
    run.open(cfg, listed)
    done = folders.resume()
    if done:
        logger.info(f"shards looked through before: {len(done)}")
    left = [path for path in shards if as_given(path) not in done]
    with Progress("looking through shards", len(shards), len(shards) - len(left)) as progress:
        for number, path in enumerate(left, len(shards) - len(left) + 1):
            if folders.full():
                logger.info(f"everybody has {cfg.num_photos} photos: other shards are left out")
                break
            folders.look_through(as_given(path), read_shard(path, column, cfg.photo_column, _WHAT))
            progress.update(number, f"photos: {folders.num_photos():,}")
    folders.draw_sheets()
    summary = folders.summary(len(shards))
    run.finish(summary)
    return summary


def _check_settings(shards: Sequence[str], column: str, photo_column: str) -> None:
    """Raise InputError before anything is written if none of the first shards can be read.

    Another form or column is a mistake in the settings, which shows in each; a single shard may be
    damaged.
    """
    errors = []
    for path in shards[:_CHECKED]:
        try:
            next(read_shard(path, column, photo_column, _WHAT), None)
            return
        except InputError as error:
            errors.append(error)
    raise errors[0]


class Folders:
    """The folders of people, and what was found for them."""

    def __init__(self, root: Path, identities: Sequence[Identity], most: int):
        """Start with no photo.

        Args:
            root: directory of the folders.
            identities: people to look for.
            most: photos a person.

        Raises:
            InputError: a name is too long for a folder.
        """
        self._root, self._most = root, most
        self._owner = {name: who.name for who in identities for name in who.names}
        self._names = name_lister(self._owner)
        self._folders = {who.name: root / folder_name(who.name) for who in identities}
        self._files: dict[str, set[str]] = {who.name: set() for who in identities}
        self._looked: list[Looked] = []

    def resume(self) -> set[str]:
        """Read what was found before; give the shards that were looked through."""
        path = self._root / FOUND
        if not path.exists():
            return set()
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:  # the last line was being written
            write_bytes(path, whole)
        for line in whole.splitlines():
            looked = cast(Looked, json.loads(line))
            self._looked.append(looked)
            for who, files in looked["photos"].items():
                self._files[who] |= files.keys()
        return {looked["shard"] for looked in self._looked}

    def full(self) -> bool:
        """Whether everybody has all photos that they may have."""
        return all(len(files) >= self._most for files in self._files.values())

    def num_photos(self) -> int:
        """Count the photos of all."""
        return sum(map(len, self._files.values()))

    def look_through(self, shard: str, photos: Iterable[Captioned]) -> None:
        """Keep the photos of a shard whose captions name somebody, and note that it is done.

        The photos of a damaged shard are those before the damage.
        """
        looked: Looked = {
            "shard": shard, "captions": 0, "unreadable": 0, "unreadable_captions": 0,
            "damaged": "", "photos": {},
        }  # fmt: skip
        try:
            for captioned in photos:
                self._look_at(captioned, looked)
        except InputError as error:
            looked["damaged"] = str(error)
            logger.warning(f"the rest of a shard is left out: {error}")
        with open(self._root / FOUND, "a", encoding="utf-8") as file:
            file.write(as_given(json.dumps(looked, ensure_ascii=True)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._looked.append(looked)

    def _look_at(self, captioned: Captioned, looked: Looked) -> None:
        """Keep a photo for those whom its captions name, unless they have enough."""
        if captioned.why:
            looked["unreadable_captions"] += 1
            logger.warning(f"a caption is skipped: {captioned.why}")
        looked["captions"] += len(captioned.captions)
        named = {self._owner[x] for text in captioned.captions for x in self._names(text)}
        wanted = [who for who in sorted(named) if len(self._files[who]) < self._most]
        if wanted:
            self._keep(captioned, wanted, looked)

    def _keep(self, captioned: Captioned, people: Sequence[str], looked: Looked) -> None:
        """Write a photo and its captions into the folders of people, unless it is there."""
        try:
            name, data = _checked(captioned.photo)
        except Exception as error:  # broken files make Pillow raise nearly anything
            looked["unreadable"] += 1
            logger.warning(f"`{captioned.photo}` is no photo that can be read: {reason(error)}")
            return
        for who in people:
            if name in self._files[who]:  # shards from the web hold photos many times
                continue
            folder = self._folders[who]
            folder.mkdir(exist_ok=True)
            # A photo is never without its captions, whenever this is broken off.
            write_text((folder / name).with_suffix(".txt"), "\n".join(captioned.captions) + "\n")
            write_bytes(folder / name, data)
            self._files[who].add(name)
            looked["photos"].setdefault(who, {})[name] = str(captioned.photo)

    def draw_sheets(self) -> None:
        """Draw a contact sheet of each person beside their folder; each photo above its name."""
        for who, folder in self._folders.items():
            files = [file for x in self._looked for file in x["photos"].get(who, ())]
            paths = [path for file in files if (path := folder / file).exists()]
            if paths:
                sheet = contact_sheet(
                    [_small(path) for path in paths], _COLUMNS, [path.name for path in paths]
                )
                out = io.BytesIO()
                sheet.save(out, "JPEG", quality=88)
                write_bytes(folder.with_name(f"{folder.name}.jpg"), out.getbuffer())

    def summary(self, num_shards: int) -> FindSummary:
        """Sum up.

        Args:
            num_shards: that were given.
        """
        return FindSummary(
            shards=num_shards,
            looked_through=len(self._looked),
            captions=sum(looked["captions"] for looked in self._looked),
            unreadable=sum(looked["unreadable"] for looked in self._looked),
            unreadable_captions=sum(looked["unreadable_captions"] for looked in self._looked),
            damaged=[looked["shard"] for looked in self._looked if looked["damaged"]],
            photos={who: len(files) for who, files in self._files.items()},
        )


def folder_name(name: str) -> str:
    """Give the folder of a person, by which `data.people` finds them again.

    Raises:
        InputError: it would be too long.
    """
    folder = name.replace("/", " ").lstrip(". ")
    if len(os.fsencode(folder)) > _LONGEST:
        raise InputError(f"the name {name!r} is too long for a folder; shorten it.")
    return folder


def _checked(photo: Photo) -> tuple[str, bytes]:
    """Read a photo, and name it by its contents and format; raises whatever it is broken for."""
    data = photo.read_bytes()
    with Image.open(io.BytesIO(data), formats=photo_formats()) as image:
        image.load()
        suffix = _SUFFIXES.get(image.format or "", f".{image.format}".lower())
    if suffix not in photo_suffixes():
        raise OSError(f"{suffix} is no suffix of photos")
    return hashlib.sha256(data).hexdigest()[:_STEM] + suffix, data


def _small(path: Path) -> Image.Image:
    with Image.open(path, formats=photo_formats()) as image:
        image.draft("RGB", (2 * TILE, 2 * TILE))
        small = image.convert("RGB")
    small.thumbnail((2 * TILE, 2 * TILE))
    return small
