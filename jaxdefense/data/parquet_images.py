"""Photos in a column of Parquet files: bytes, or Hugging Face's objects with `bytes`.

Parquet is read by groups of rows. The group of a photo is decoded as a whole and kept for the next
photos, a few at a time, so memory does not grow with the data.
"""

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from jaxdefense.data.forms import NAME_ONE, choose_column
from jaxdefense.data.sources import Images, Photo, reason
from jaxdefense.errors import InputError

logger = logging.getLogger(__name__)

_COLUMNS = (
    {"image", "images", "img", "photo", "picture", "image bytes", "img bytes"},
    {"jpg", "jpeg", "png", "webp", "bytes"},
)
_KEPT = 4  # groups of rows
_LARGE = 64 * 2**20  # bytes of a group, more of which make reading in random order slow
_ROW = np.dtype([("file", "i4"), ("group", "i4"), ("row", "i4")])


@dataclasses.dataclass(frozen=True, slots=True)
class ParquetPhoto:
    """A photo in a Parquet file.

    Fields:
        images: it belongs to.
        file, group, row: where it is; the row counts from the first of the group.
    """

    images: "ParquetImages"
    file: int
    group: int
    row: int

    def read_bytes(self) -> bytes:
        """Read the bytes of the photo."""
        return self.images.group(self.file, self.group)[self.row].as_py()

    def __str__(self) -> str:
        return self.images.name(self.file, self.group, self.row)


class ParquetImages(Images):
    """The photos of Parquet files; holds an array of where they lie."""

    def __init__(self, files: list[str], column: str, what: str):
        """Index them.

        Args:
            files: paths.
            column: of the photos; "" to go by its name.
            what: to call them in an error.

        Raises:
            InputError: a file cannot be read, or does not show which of its columns is meant.
        """
        self._files = files
        with ThreadPoolExecutor(16) as pool:
            self._columns = list(pool.map(lambda x: PhotoColumn(x, column, what), files))
        # Threads ask for groups at the same time; each may decode one of its own.
        self.group = functools.lru_cache(_KEPT)(lambda file, n: self._columns[file].group(n))
        found = (
            (file, group, row)
            for file, photos in enumerate(self._columns)
            for group in range(photos.num_groups())
            for row in photos.rows(group)
        )
        self._index = np.fromiter(found, _ROW)
        largest = max((x.largest() for x in self._columns), default=0)
        if largest > _LARGE:
            logger.warning(
                f"{what}: a group of rows has {largest / 2**20:,.0f} MiB, all of which is decoded "
                "for one photo; write the file with groups of some 100 rows, or as tar shards."
            )

    def __len__(self) -> int:
        return len(self._index)

    def _photo(self, index: int) -> Photo:
        return ParquetPhoto(self, *self._index[index].item())

    def name(self, file: int, group: int, row: int) -> str:
        """Say where a photo is."""
        return f"{self._files[file]}, row {self._columns[file].first_row(group) + row + 1}"

    def contents(self) -> Iterator[tuple[str, int]]:
        """Give the digest of each file's sizes, and how many rows it has."""
        return (photos.contents() for photos in self._columns)


class PhotoColumn:
    """The column of photos of one Parquet file."""

    def __init__(self, path: str, column: str, what: str, remedy: str = NAME_ONE):
        """Read what the file says of itself; see `ParquetImages`, and `choose_column`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._path, self._where = path, f"{what}: `{path}`"
        try:
            with pq.ParquetFile(path) as file:
                self._about, schema = file.metadata, file.schema_arrow
        except FileNotFoundError:
            raise InputError(f"{self._where} does not exist.") from None
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{self._where} is not a whole Parquet file ({reason(error)}); replace it."
            ) from error
        fitting = [field.name for field in schema if _leaf(field) is not None]
        if not fitting:
            addresses = [name for name in schema.names if "url" in name.lower()]
            say = ", only their addresses: download them, by img2dataset for one" * bool(addresses)
            raise InputError(f"{self._where} has no column with the bytes of photos{say}.")
        if len(fitting) == 1 and not column:
            column = fitting[0]
        column = choose_column(fitting, _COLUMNS, column, self._where, "photos", remedy)
        self._leaf = _leaf(schema.field(column)) or column
        paths = [self._about.schema.column(i).path for i in range(self._about.num_columns)]
        self._number = paths.index(self._leaf)

    def num_groups(self) -> int:
        """Count the groups of rows."""
        return self._about.num_row_groups

    def _chunk(self, group: int) -> Any:
        return self._about.row_group(group).column(self._number)

    def largest(self) -> int:
        """Give the size of the largest group, bytes."""
        return max(
            (self._chunk(i).total_uncompressed_size for i in range(self.num_groups())), default=0
        )

    def first_row(self, group: int) -> int:
        """Number the first row of a group, from 0."""
        return sum(self._about.row_group(i).num_rows for i in range(group))

    def rows(self, group: int) -> Sequence[int]:
        """List the rows of a group with a photo; decodes the group only if some have none.

        Raises:
            InputError: it cannot be decoded.
        """
        num, statistics = self._about.row_group(group).num_rows, self._chunk(group).statistics
        if statistics is not None and statistics.has_null_count:
            if statistics.null_count in (0, num):
                return range(0 if statistics.null_count else num)
        try:
            return np.flatnonzero(self.group(group).is_valid().to_numpy()).tolist()
        except OSError as error:
            raise InputError(f"{self._where}: {error}; replace the file.") from error

    def contents(self) -> tuple[str, int]:
        """Give a digest of the sizes of all groups, and the number of rows."""
        digest = hashlib.sha256()
        for i in range(self.num_groups()):
            digest.update(b"%d\0" % self._chunk(i).total_uncompressed_size)
        return digest.hexdigest(), self._about.num_rows

    def group(self, number: int) -> Any:
        """Decode a group.

        Returns:
            a chunked array of pyarrow, of bytes and nulls.

        Raises:
            OSError: it cannot be read.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            # Opened each time, so that threads share nothing.
            with pq.ParquetFile(self._path, metadata=self._about) as file:
                found = file.read_row_group(number, columns=[self._leaf]).column(0)
        except (pa.ArrowException, OSError) as error:
            raise OSError(f"group {number} of rows cannot be read ({reason(error)})") from error
        return found.flatten()[0] if pa.types.is_struct(found.type) else found


def _leaf(field: Any) -> str | None:
    """Give the path of the bytes in a column; None if it holds none."""
    import pyarrow as pa

    def binary(kind: Any) -> bool:
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    if binary(field.type):
        return field.name
    if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
        return f"{field.name}.bytes" if binary(field.type.field("bytes").type) else None
    return None
