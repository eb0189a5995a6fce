"""Photos with their captions, one shard after another: tars of webdataset, or Parquet."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

from jaxdefense.data.captions import caption_texts
from jaxdefense.data.forms import CAPTION_COLUMNS, PARQUET, TAR, choose_column, form_of
from jaxdefense.data.parquet_images import PhotoColumn
from jaxdefense.data.sources import Photo, TarPhoto, reason, samples
from jaxdefense.errors import InputError
from jaxdefense.files import unpacked


@dataclasses.dataclass(frozen=True)
class Captioned:
    """A photo with its captions.

    Fields:
        photo: not read.
        captions: none if they cannot be read.
        why: they cannot.
    """

    photo: Photo
    captions: tuple[str, ...]
    why: str = ""


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
        found = _of_parquet(shard, column, photo_column, what)
    elif form != TAR:
        raise InputError(f"{where} is {form}; must be a .tar of photos and captions, or Parquet.")
    elif photo_column:
        raise InputError(f"{where} is a tar, which has no `photo_column`; leave that out.")
    else:
        found = _of_tar(shard, (column or "txt").lower(), what)
    yield from found


def _of_tar(shard: str, suffix: str, what: str) -> Iterator[Captioned]:
    where = f"{what} `{shard}`"
    num_photos = num_captions = num_pairs = 0
    with unpacked(shard, where) as file:
        for sample in samples(shard, what):
            photo = next((member for member in sample if member.is_photo()), None)
            caption = next((member for member in sample if member.suffix == suffix), None)
            num_photos, num_captions = num_photos + bool(photo), num_captions + bool(caption)
            if photo and caption:
                num_pairs += 1
                file.packed.seek(caption.start)
                place = TarPhoto(shard, photo.header, photo.start, photo.size)
                at = f"{where}, member {caption.name}"
                found = _captioned(place, file.packed.read(caption.size), at)
                if found:
                    yield found
    if not num_pairs:
        raise InputError(
            f"{where} has {num_photos} photos and {num_captions} .{suffix} files, but none of one "
            "name that follow each other; webdataset writes them so."
        )


def _captioned(photo: Photo, value: object, where: str) -> Captioned | None:
    """Put the captions in a value to their photo; None if it holds none."""
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return Captioned(photo, (), f"{where} is not UTF-8")
    texts = tuple(text for text, _ in caption_texts(value, where))
    return Captioned(photo, texts) if texts else None


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
            if not any(len(photos.rows(number)) for number in range(photos.num_groups())):
                raise InputError(f"{where} has no row with a photo; give another shard.")
            found = False
            for number in range(photos.num_groups()):
                values = file.read_row_group(number, columns=[named]).column(0).to_pylist()
                for row, value in enumerate(values):
                    at = f"row {first + row}"
                    photo = _Row(f"{shard}, {at}", group, number, row)
                    if captioned := _captioned(photo, value, f"{where}, {at}"):
                        found = True
                        yield captioned
                first += len(values)
            if not found:
                raise InputError(f"{where} has no row with a caption in `{named}`; name another.")
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{where} cannot be read: {reason(error)}; replace it.") from error
