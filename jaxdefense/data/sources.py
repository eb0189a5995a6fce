"""Where photos come from: folders, tar shards, Parquet, TensorFlow Datasets.

A source of images is an index; bytes are read when a photo is, so memory does not grow with the
data. TensorFlow Datasets are read without TensorFlow through `tfds.data_source`.
"""

import abc
import contextlib
import dataclasses
import functools
import hashlib
import importlib
import itertools
import logging
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol, overload

import numpy as np
from PIL import Image

from jaxdefense.data.forms import files_of, split_column
from jaxdefense.errors import InputError, missing

logger = logging.getLogger(__name__)

TFDS_PREFIX = "tfds:"
_TAR, _PARQUET = ".tar", ".parquet"
_EXAMPLES = ".jpg, .png, .webp, .tif and whatever else Pillow opens"

# Formats that Pillow opens, or seems to, but that are no photos: vector drawings, icons, films, and
# scientific arrays. Some need another program.
_NO_PHOTOS = {
    *("EPS", "PDF", "WMF", "ICO", "CUR", "ICNS", "MPEG", "FLI"),
    *("BUFR", "FITS", "GRIB", "HDF5", "IPTC"),
}
# Photos for which Pillow needs a plugin: package, and what registers it.
_HEIF = "pillow-heif", "pillow_heif", "register_heif_opener"
_PLUGINS = {
    **dict.fromkeys((".heic", ".heif", ".hif"), _HEIF),
    ".jxl": ("pillow-jxl-plugin", "pillow_jxl", ""),
}
_RAW = {
    *(".3fr", ".arw", ".cr2", ".cr3", ".dng", ".erf", ".iiq", ".nef", ".nrw", ".orf", ".pef"),
    *(".raf", ".raw", ".rw2", ".srw", ".x3f"),
}


Note = Callable[[str], object]  # takes a line to log


class Photo(Protocol):
    """An encoded photo; its `str` shows where it is. `pathlib.Path` is one."""

    def read_bytes(self) -> bytes:
        """Read the file; OSError if that cannot be."""
        ...


@functools.cache
def photo_formats() -> tuple[str, ...]:
    """List the formats of photos that Pillow, and its plugins if installed, can open.

    Leaves out formats that are no photos; see `_NO_PHOTOS`. Pillow may open no other, whatever the
    suffix says: for some it runs a program.
    """
    for _, module, register in set(_PLUGINS.values()):
        with contextlib.suppress(ImportError):
            plugin = importlib.import_module(module)
            if register:
                getattr(plugin, register)()
    Image.init()
    return tuple(form for form in Image.ID if form not in _NO_PHOTOS)


@functools.cache
def photo_suffixes() -> tuple[str, ...]:
    """List the suffixes of photos; see `photo_formats`."""
    # Of .mpo, two JPEGs in one file, the opener is JPEG's.
    opened = {*photo_formats(), "MPO"}
    found = Image.registered_extensions()
    return tuple(sorted(suffix for suffix, form in found.items() if form in opened))


def remedy(suffix: str) -> str:
    """Say what to do with photos of a suffix that Pillow does not open; "" if it is of no photo."""
    if suffix in _PLUGINS:
        return f"which needs a plugin: `pip install {_PLUGINS[suffix][0]}`"
    return "raw data of a camera: save as JPEG or TIFF" if suffix in _RAW else ""


class Skipped:
    """Unused files among photos: how many of each kind, and the first."""

    def __init__(self, root: str | Path):
        """Start with none. `root`: names are shown relative to it."""
        self._root = str(root)
        self._kinds: dict[str, list[Any]] = {}

    def __str__(self) -> str:
        """Name every kind; "" if there is none."""
        told = []
        # Formats that a plugin could read come first.
        kinds = sorted(self._kinds.items(), key=lambda item: (not remedy(item[0]), -item[1][0]))
        for kind, (num, first) in kinds:
            first = first.removeprefix(self._root).lstrip("/")
            what = f", {remedy(kind)}" if remedy(kind) else ""
            told.append(f"{num:,} {kind} (first `{first}`{what})")
        return f"not used: {', '.join(told)}" if told else ""

    def add(self, name: str, kind: str = "") -> None:
        """Count a file; its kind is its suffix unless given."""
        kind = kind or os.path.splitext(name)[1].lower() or "without a suffix"
        self._kinds.setdefault(kind, [0, name])[0] += 1

    def join(self, other: "Skipped") -> None:
        """Count what another counted."""
        for kind, (num, name) in other._kinds.items():
            self._kinds.setdefault(kind, [0, name])[0] += num

    def check(self, photos: Sized, what: str, sought: str, note: Note) -> None:
        """Say what is not used.

        Raises:
            InputError: there is no photo besides.
        """
        if not photos:
            rest = f"; {self}" if self._kinds else ""
            raise InputError(f"{what} holds no photo ({sought}){rest}.")
        if self._kinds:
            note(f"{what}: {self}")


def quiet(line: str) -> None:
    """Take a line that is printed where the same is read again."""


def reason(error: Exception) -> str:
    """Describe an error of the system or of a library in one line."""
    why = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return why.splitlines()[0]


def photo_digest(photo: Photo) -> str:
    """Give the SHA-256 of a photo's bytes, in hex.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return hashlib.sha256(photo.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"`{photo}` cannot be read: {reason(error)}.") from error


class Images(Sequence[Photo]):
    """The photos of a source, found by index."""

    @overload
    def __getitem__(self, index: int) -> Photo: ...
    @overload
    def __getitem__(self, index: slice) -> list[Photo]: ...
    def __getitem__(self, index: int | slice) -> Photo | list[Photo]:
        if isinstance(index, slice):
            return [self._photo(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"{index} of {len(self)} photos")
        return self._photo(int(index) % len(self))

    @abc.abstractmethod
    def _photo(self, index: int) -> Photo: ...

    @abc.abstractmethod
    def contents(self) -> Iterator[tuple[str, int]]:
        """Name what the source holds, with sizes, wherever it lies; reads no photo."""


def describe_images(images: Images) -> str:
    """Identify a set of photos by their names and sizes, without reading any.

    Returns:
        SHA-256, in hex; the same for a copy of the source elsewhere.
    """
    digest = hashlib.sha256()
    for name, size in images.contents():
        digest.update(b"%s\0%d\0" % (os.fsencode(name), size))
    return digest.hexdigest()


def read_images(source: str, tfds_dir: str = "", note: Note = logger.info) -> Images:
    """Index the photos of a source.

    Args:
        source: a folder of photos, at any depth; a folder of tar shards, or of Parquet files; a
            `.tar` or `.parquet` file, or a range or glob of such; or `tfds:NAME[/CONFIG][:SPLIT]`.
        tfds_dir: see `open_tfds`.
        note: takes a line that counts what is no photo, if there is any.

    Raises:
        InputError: the source is missing, holds no photo, or cannot be read; see `open_tfds`.
    """
    what, skipped = f"images `{source}`", Skipped(source)
    if source.startswith(TFDS_PREFIX):
        images = TfdsImages(source, tfds_dir)
    elif os.path.isdir(source):
        names = list(_walk(source, what, (*photo_suffixes(), _TAR, _PARQUET), skipped))
        tars, tables = (
            [name for name in names if name.lower().endswith(suffix)] for suffix in (_TAR, _PARQUET)
        )
        photos = [name for name in names if not name.lower().endswith((_TAR, _PARQUET))]
        shards = tars
        if not tars and not photos:
            shards = tables
        else:
            for name in tables:  # img2dataset writes one beside each tar
                skipped.add(os.path.join(source, name))
        if shards and photos:
            raise InputError(
                f"{what}: holds tar shards (`{shards[0]}`) and photos beside them; give a folder "
                "with only one kind."
            )
        if shards:
            images = _of_shards([os.path.join(source, x) for x in shards], "", what, skipped)
        else:
            images = _FolderImages(source, photos)
    else:
        pattern, column = split_column(source)
        images = _of_shards(files_of(pattern, what), column, what, skipped)
    skipped.check(images, what, f"{_EXAMPLES}, or {_TAR} with such", note)
    return images


def _of_shards(shards: list[str], column: str, what: str, skipped: Skipped) -> Images:
    """Index tar shards, or files of Parquet."""
    tables = [name for name in shards if name.lower().endswith(_PARQUET)]
    if not tables and not column:
        return _TarImages(shards, what, skipped)
    if len(tables) < len(shards):
        raise InputError(f"{what}: give .tar files or Parquet, and `::COLUMN` with Parquet alone.")
    from jaxdefense.data.parquet_images import ParquetImages

    return ParquetImages(tables, column, what)


# Folders


def list_folders(
    path: str | Path, what: str, note: Note = logger.info
) -> dict[str, tuple[Photo, ...]]:
    """List the photos of a directory with one folder a person or class, by folder, in order.

    Args:
        path: the directory; hidden folders and files are left out.
        what: what to call it in an error, `faces` for one.
        note: takes a line that counts what is no photo, or in no folder, if there is any.

    Raises:
        InputError: it does not exist, cannot be listed, holds no folder, or one without a photo.
    """
    path, what = Path(path), f"{what} directory `{path}`"
    if not path.is_dir():
        raise InputError(f"{what} does not exist.")
    folders, skipped = {}, Skipped(path)
    names, beside, _ = _list(path, what, skipped)
    for file in sorted(beside):
        skipped.add(file, "beside the folders")
    for name in sorted(names):
        found = Skipped(path)
        root = path / name
        photos = tuple(root / file for file in _walk(str(root), what, photo_suffixes(), found))
        found.check(photos, f"{what}: folder `{name}`", _EXAMPLES, quiet)
        skipped.join(found)
        folders[name] = photos
    if not folders:
        raise InputError(f"{what} holds no folder; each person or class has one.")
    skipped.check(folders, what, _EXAMPLES, note)
    return folders


def _list(
    directory: str | Path, what: str, skipped: Skipped
) -> tuple[set[str], list[str], tuple[int, int]]:
    """List a directory but for hidden entries: folders, the others, and its identity."""
    folders, files = set(), []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    skipped.add(entry.path, "hidden")
                    continue
                # A link that leads nowhere, or round, is no error to `os.path`.
                if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                    folders.add(entry.name)
                else:
                    files.append(entry.name)
        status = os.stat(directory)
    except OSError as error:
        raise InputError(f"{what}: `{directory}` cannot be listed: {reason(error)}.") from error
    return folders, files, (status.st_dev, status.st_ino)


def _walk(root: str, what: str, suffixes: tuple[str, ...], skipped: Skipped) -> Iterator[str]:
    """Find files at any depth, sorted as paths are; names relative to the root.

    Follows links to directories, each directory once, so that a loop ends.
    """
    seen = set()

    def walk(prefix: str) -> Iterator[str]:
        folders, files, which = _list(os.path.join(root, prefix), what, skipped)
        if which in seen:
            return
        seen.add(which)
        for name in sorted([*folders, *files]):
            if name in folders:
                yield from walk(f"{prefix}{name}/")
            elif name.lower().endswith(suffixes):
                yield prefix + name
            else:
                skipped.add(os.path.join(root, prefix + name))

    return walk("")


class _FolderImages(Images):
    """Photos in a folder; holds their names."""

    def __init__(self, root: str, names: list[str]):
        self._root, self._names = root, names

    def __len__(self) -> int:
        return len(self._names)

    def _photo(self, index: int) -> Photo:
        return Path(self._root, self._names[index])

    def contents(self) -> Iterator[tuple[str, int]]:
        for name in self._names:
            try:
                yield name, os.stat(os.path.join(self._root, name)).st_size
            except OSError:  # a dead link; whoever reads it will say so
                yield name, -1


# Tar shards

_INDEX = np.dtype([("shard", "i4"), ("header", "i8"), ("start", "i8"), ("size", "i8")])
HIDDEN = re.compile(r"(^|/)\.[^/]")


@dataclasses.dataclass(frozen=True, slots=True)
class TarPhoto:
    """A photo in a tar.

    Fields:
        shard: the tar.
        header, start, size: bytes; where its header and its data start, and of the data.
    """

    shard: str
    header: int
    start: int
    size: int

    def read_bytes(self) -> bytes:
        """Read the member; opens the shard each time, so that threads share nothing."""
        with open(self.shard, "rb") as file:
            file.seek(self.start)
            data = file.read(self.size)
        if len(data) < self.size:
            raise OSError(f"the shard ends after {len(data)} of {self.size} bytes")
        return data

    def __str__(self) -> str:
        try:
            with open(self.shard, "rb") as file:
                file.seek(self.header)
                with tarfile.open(fileobj=file, mode="r:") as archive:
                    if member := archive.next():
                        return f"{self.shard}/{member.name}"
        except (OSError, tarfile.TarError):
            pass
        return f"{self.shard}, byte {self.start}"


class _TarImages(Images):
    """Photos in tar shards, as webdataset writes them; holds an array of where they lie."""

    def __init__(self, shards: list[str], what: str, skipped: Skipped):
        suffixes = photo_suffixes()

        def index(number: int) -> tuple[np.ndarray, str, Skipped]:
            names, others = hashlib.sha256(), Skipped("")

            def rows() -> Iterator[tuple[int, int, int, int]]:
                for name, header, start, size in scan_tar(shards[number], what):
                    if HIDDEN.search(name):
                        others.add(f"{shards[number]}/{name}", "hidden")
                    elif name.lower().endswith(suffixes):
                        names.update(b"%s\0%d\0" % (os.fsencode(name), size))
                        yield number, header, start, size
                    else:
                        others.add(f"{shards[number]}/{name}")

            return np.fromiter(rows(), _INDEX), names.hexdigest(), others

        with ThreadPoolExecutor(16) as pool:  # they wait for the disk, or the network
            found = list(pool.map(index, range(len(shards))))
        self._shards, self._index = shards, np.concatenate([rows for rows, _, _ in found])
        self._contents = [(names, len(rows)) for rows, names, _ in found]
        for _, _, others in found:
            skipped.join(others)

    def __len__(self) -> int:
        return len(self._index)

    def _photo(self, index: int) -> Photo:
        shard, *where = self._index[index].item()
        return TarPhoto(self._shards[shard], *where)

    def contents(self) -> Iterator[tuple[str, int]]:
        return iter(self._contents)


def scan_tar(shard: str, what: str) -> Iterator[tuple[str, int, int, int]]:
    """List the files in a tar; name, where header and data start, and size of the data.

    Reads none of the data.
    """
    try:
        with tarfile.open(shard, "r:") as archive:
            length = os.path.getsize(shard)
            while (member := archive.next()) is not None:
                archive.members = []  # pyright: ignore  # or it would keep them all
                if archive.offset > length:
                    raise tarfile.ReadError(f"it ends in the middle of `{member.name}`")
                if member.isreg() and not member.issparse():
                    yield member.name, member.offset, member.offset_data, member.size
        # The library takes a damaged header for the end.
        with open(shard, "rb") as file:
            file.seek(archive.offset)
            if file.read(512).strip(b"\0"):
                raise tarfile.ReadError(f"no header at byte {archive.offset}")
    except FileNotFoundError:
        raise InputError(f"{what}: `{shard}` does not exist.") from None
    except (OSError, tarfile.TarError) as error:
        raise InputError(
            f"{what}: `{shard}` is not a whole, uncompressed tar ({reason(error)}); replace it, or "
            "give a folder of photos."
        ) from error


class Member(NamedTuple):
    """A file in a tar.

    Fields:
        name, header, start, size: as of `scan_tar`.
        suffix: what follows the first dot of the base name, in lower case.
    """

    name: str
    suffix: str
    header: int
    start: int
    size: int

    def is_photo(self) -> bool:
        """Whether its suffix is a photo's."""
        return f".{self.suffix}" in photo_suffixes()


_KEY = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")


def samples(shard: str, what: str) -> Iterator[list[Member]]:
    """Group the files of a tar as webdataset does; see `scan_tar`.

    A group follows each other, with one name up to the first dot of the base name. Leaves out
    hidden files, and those without a suffix.
    """
    named = ((_KEY.fullmatch(member[0]), member) for member in scan_tar(shard, what))
    found = (
        (match[1], Member(name, match[2].lower(), header, start, size))
        for match, (name, header, start, size) in named
        if match and not HIDDEN.search(name)
    )
    for _, group in itertools.groupby(found, lambda pair: pair[0]):
        yield [member for _, member in group]


# TensorFlow Datasets


def open_tfds(source: str, tfds_dir: str) -> Any:
    """Open a prepared dataset for random access.

    Args:
        source: `tfds:NAME[/CONFIG][:SPLIT]`; SPLIT defaults to `train`.
        tfds_dir: where datasets are prepared; "" for the library's default.

    Returns:
        a sequence of dicts of feature values; images are left as they are stored, encoded.

    Raises:
        InputError: not prepared there, in a format that needs TensorFlow, or without that split;
            or the library is not installed.
    """
    try:
        import tensorflow_datasets as tfds
    except ModuleNotFoundError as error:
        raise missing(f"`{source}`", "tensorflow_datasets", "tfds") from error

    name, split = _name_and_split(source)
    where = f" in `{tfds_dir}`" if tfds_dir else ""
    unprepared = InputError(
        f"`{source}`: not prepared{where}; run `tfds build {name} "
        "--file_format=array_record` on a machine with TensorFlow."
    )
    try:
        builder = tfds.builder(name, data_dir=tfds_dir or None, try_gcs=False)
    except Exception as error:  # the library has no common base class
        raise unprepared from error
    if not builder.info.splits:  # it knows the dataset, and found no files
        raise unprepared
    # Not those in sequences: there the library cannot skip without TensorFlow.
    images = _features(builder.info, tfds.features.Image)
    skip = {name: tfds.decode.SkipDecoding() for name in images}
    try:
        return builder.as_data_source(split=split, decoders=skip or None)  # pyright: ignore[reportCallIssue]
    except Exception as error:
        splits = ", ".join(builder.info.splits)
        raise InputError(
            f"`{source}`: cannot be read{where} ({reason(error)}); it must be "
            "prepared with --file_format=array_record or parquet, "
            f"and SPLIT be one of: {splits}."
        ) from error


def _name_and_split(source: str) -> tuple[str, str]:
    name, _, split = source.removeprefix(TFDS_PREFIX).partition(":")
    return name, split or "train"


def _features(info: Any, *kinds: type) -> dict[str, Any]:
    """Find the features of these kinds by name."""
    return {name: f for name, f in (info.features or {}).items() if isinstance(f, kinds)}


@dataclasses.dataclass(frozen=True, slots=True)
class TfdsPhoto:
    """A photo in a TensorFlow dataset."""

    images: "TfdsImages"
    index: int

    def read_bytes(self) -> bytes:
        """Read the record; Pillow decodes what the dataset stores."""
        return self.images.read(self.index)

    def __str__(self) -> str:
        return f"{self.images.source}[{self.index}]"


class TfdsImages(Images):
    """The photos of a TensorFlow dataset.

    Records of array_record files are read one by one; the library holds those of parquet in memory.
    """

    def __init__(self, source: str, tfds_dir: str):
        """Open the dataset.

        Raises:
            InputError: see `open_tfds`; or its features do not show which is the image.
        """
        import tensorflow_datasets as tfds

        photo_suffixes()  # registers plugins: a dataset's photos may be of any format
        self.source, self._data = source, open_tfds(source, tfds_dir)
        self._image = self._choose("image", tfds.features.Image)

    def __len__(self) -> int:
        return len(self._data)

    def _photo(self, index: int) -> Photo:
        return TfdsPhoto(self, index)

    def read(self, index: int) -> bytes:
        """Read the encoded image of a record."""
        return self._record(index)[self._image]

    def contents(self) -> Iterator[tuple[str, int]]:
        """Name the dataset, with version and split, and how many photos it has."""
        _, split = _name_and_split(self.source)
        yield f"{self._data.dataset_info.full_name}:{split}", len(self)

    def labels(self) -> Iterator[str]:
        """Read the label of each photo.

        Raises:
            InputError: the features do not show which is the label, or a photo has none.
        """
        import tensorflow_datasets as tfds

        kinds = tfds.features.Text, tfds.features.ClassLabel
        name = self._choose("label", *kinds)
        feature = self._data.dataset_info.features[name]
        for i in range(len(self)):
            try:
                value = self._record(i)[name]
            except OSError as error:
                raise InputError(f"`{self[i]}`: {error}.") from error
            if isinstance(value, bytes):
                value = value.decode("utf-8", "replace")
            elif value >= 0:
                value = feature.int2str(value)
            else:  # as test splits have it
                raise InputError(f"`{self[i]}` has no `{name}`; give a split with labels.")
            yield value

    def _record(self, index: int) -> dict[str, Any]:
        try:
            return self._data[index]
        except Exception as error:  # the library has no common base class
            raise OSError(f"the record cannot be read: {reason(error)}") from error

    def _choose(self, name: str, *kinds: type) -> str:
        """Choose the feature of this name, or the only one of these kinds."""
        info = self._data.dataset_info
        found = _features(info, *kinds)
        if name not in found and len(found) != 1:
            features = sorted(info.features.items())
            has = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in features)
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise InputError(
                f"`{self.source}`: must have a feature `{name}`, or one alone that is {wanted}; "
                f"has {has}."
            )
        return name if name in found else next(iter(found))


def tfds_captions(source: str, tfds_dir: str) -> list[str]:
    """Read the captions of a dataset: its feature `caption`, `captions` or `text`.

    Raises:
        InputError: see `open_tfds`; or it has no such feature.
    """
    captions = []
    for example in open_tfds(source, tfds_dir):
        found = _caption_values(example)
        if found is None:
            raise InputError(
                f"`{source}`: has no feature named caption, captions or text, but "
                f"{', '.join(map(str, example))}."
            )
        captions += [" ".join(text.split()) for text in found if text.strip()]
    return captions


def _caption_values(example: dict[str, Any]) -> list[str] | None:
    for name in ("captions", "caption", "text"):
        if name in example:
            value = example[name]
            if isinstance(value, dict):  # a sequence of {"text": ...}, as COCO has it
                value = value["text"]
            values = [value] if isinstance(value, str | bytes) else list(value)
            values = [v["text"] if isinstance(v, dict) else v for v in values]
            return [v.decode() if isinstance(v, bytes) else str(v) for v in values]
    return None
