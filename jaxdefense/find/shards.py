"""Photos with their captions, one shard after another: tars of webdataset, or Parquet."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

from jaxdefense.data.captions import caption_texts
from jaxdefense.data.forms import CAPTION_COLUMNS, PARQUET, TAR, choose_column, form_of
from jaxdefense.data.parquet_images import PhotoColumn
from jaxdefense.data.sources import HIDDEN, Photo, TarPhoto, photo_suffixes, reason, scan_tar
from jaxdefense.errors import InputError
from jaxdefense.files import unpacked

_MEMBER = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)")  # key and suffix, as webdataset has it


@dataclasses.dataclass(frozen=True)
class Captioned:
    """A photo with its captions."""

    photo: Photo
    captions: tuple[str, ...]


def read_shard(shard: str, column: str, photo_column: str, what: str) -> Iterator[Captioned]:
    """Give the photos of a shard that have a caption; reads no photo.

    Args:
        shard: path of a tar, or of a Parquet file.
        column: of the captions, or the suffix of their members; "" to go by the name.
        photo_column: the same for photos, of Parquet alone.
        what: to call the shard in an error.

    Raises:
        InputError: it is neither, is damaged, or holds no photo with a caption.
    """
    where = f"{what} `{shard}`"
    form = form_of(shard, where).name
    if form == PARQUET:
        return _of_parquet(shard, column, photo_column, what)
    if form != TAR:
        raise InputError(f"{where} is {form}; must be a .tar of photos and captions, or Parquet.")
    if photo_column:
        raise InputError(f"{where} is a tar, which has no `photo_column`; leave that out.")
    return _of_tar(shard, column or "txt", what)


def _of_tar(shard: str, suffix: str, what: str) -> Iterator[Captioned]:
    suffixes, seen = photo_suffixes(), {"photos": 0, "captions": 0, "pairs": 0}
    with unpacked(shard, f"{what} `{shard}`") as file:
        key, photo, captions = "", None, ()
        for name, header, start, size in scan_tar(shard, what):
            found = _MEMBER.fullmatch(name)
            if not found or HIDDEN.search(name):
                continue
            if found[1] != key:
                if photo and captions:
                    seen["pairs"] += 1
                    yield Captioned(photo, captions)
                key, photo, captions = found[1], None, ()
            if found[2].lower() == suffix:
                file.packed.seek(start)
                captions = _texts(file.packed.read(size), f"{what} `{shard}`, member {name}")
                seen["captions"] += 1
            elif not photo and name.lower().endswith(suffixes):
                photo = TarPhoto(shard, header, start, size)
                seen["photos"] += 1
        if photo and captions:
            seen["pairs"] += 1
            yield Captioned(photo, captions)
    if not seen["pairs"] and (seen["photos"] or seen["captions"]):
        raise InputError(
            f"{what} `{shard}` has {seen['photos']} photos and {seen['captions']} .{suffix} files, "
            "but none of one name that follow each other; webdataset writes them so."
        )


def _texts(value: object, where: str) -> tuple[str, ...]:
    return tuple(text for text, _ in caption_texts(value, where))


@dataclasses.dataclass(frozen=True)
class _Row:
    """A photo in a group of rows of Parquet."""

    where: str
    group: Callable[[int], Any]
    number: int
    row: int

    def read_bytes(self) -> bytes:
        if (data := self.group(self.number)[self.row].as_py()) is None:
            raise OSError("its row holds no photo")
        return data

    def __str__(self) -> str:
        return self.where


def _of_parquet(shard: str, column: str, photo_column: str, what: str) -> Iterator[Captioned]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    photos = PhotoColumn(shard, photo_column, what, "give `photo_column`")
    group, where, first = functools.lru_cache(1)(photos.group), f"{what} `{shard}`", 1
    try:
        with pq.ParquetFile(shard) as file:
            named = choose_column(
                file.schema_arrow.names, CAPTION_COLUMNS, column, where, "captions"
            )
            for number in range(photos.num_groups()):
                values = file.read_row_group(number, columns=[named]).column(0).to_pylist()
                for row, value in enumerate(values):
                    at = f"row {first + row}"
                    if texts := _texts(value, f"{where}, {at}"):
                        yield Captioned(_Row(f"{shard}, {at}", group, number, row), texts)
                first += len(values)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{where} cannot be read: {reason(error)}; replace it.") from error
