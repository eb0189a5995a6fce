"""Files: written in one step, read, hashed, locked.

Reads JSON, arrays, and lines of text that people write. Unpacks gzip and Zstandard, removes
invisible characters from lines, and refuses files of another kind.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import logging
import os
import re
import socket
import sys
import time
import uuid
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxdefense.buckets.places import as_given
from jaxdefense.errors import InputError
from jaxdefense.words import without_clutter

logger = logging.getLogger(__name__)

_HEAD = 4096  # bytes looked at
_BUFFER = 2**17  # bytes unpacked at a time
_UNPACK = "unpack it: `{} FILE > FILE.txt`"
# How files begin that are unpacked, and the codec.
_PACKED = ((b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"))
_COLUMN = "write its column as text, a line each"
PARQUET_MAGIC, TAR_MAGIC = rb"PAR1[\x00-\x1f\x80-\xff]", rb"(?s:.{257})ustar"
# How files of other kinds begin, their kind, and the remedy.
_MAGIC = (
    (rb"\xff\xfe\0\0|\0\0\xfe\xff", "UTF-32", "convert it: `iconv -f UTF-32 -t UTF-8`"),
    (rb"\xff\xfe|\xfe\xff", "UTF-16", "convert it: `iconv -f UTF-16 -t UTF-8`"),
    (rb"\xfd7zXZ\0", "xz", _UNPACK.format("xz -dc")),
    (rb"BZh[1-9]1AY&SY", "bzip2", _UNPACK.format("bunzip2 -c")),
    (rb"7z\xbc\xaf\x27\x1c", "7z", "unpack it"),
    (rb"PK(\x03\x04|\x05\x06)", "a zip archive, or a sheet of Excel", "unpack it, or save as text"),
    (PARQUET_MAGIC, "Parquet", _COLUMN),
    (rb"ARROW1\0", "Arrow", _COLUMN),
    (rb"\x89HDF", "HDF5", _COLUMN),
    (rb"SQLite format 3\0", "SQLite", _COLUMN),
    (TAR_MAGIC, "a tar archive", "unpack it"),
    (rb"%PDF-", "PDF", "save it as plain text"),
    (rb"\{\\rtf", "rich text", "save it as plain text"),
    (rb"\xd0\xcf\x11\xe0", "a file of Office", "save it as plain text"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP", "a photo", "give a text file"),
)
_ZEROS = {
    "UTF-32LE": (0, 1, 1, 1),
    "UTF-32BE": (1, 1, 1, 0),
    "UTF-16LE": (0, 1),
    "UTF-16BE": (1, 0),
}


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one step; see `write_text`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file in one step, so that a reader finds all of it or none.

    What lies in a bucket is named by its address, and not by where it is on this machine.
    """
    # Names from file names may hold what UTF-8 cannot.
    write_bytes(path, as_given(text).encode("utf-8", errors="backslashreplace"))


def write_array(path: Path, array: np.ndarray) -> None:
    """Write a `.npy` file in one step; see `write_text`."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_bytes(path, buffer.getvalue())


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write a `.npz` file in one step; see `write_text`."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    write_bytes(path, buffer.getbuffer())


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a file in one step; see `write_text`."""
    tmp = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")  # others may write it too
    try:
        with open(tmp, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


def read_json(path: Path) -> dict:
    """Read a JSON object.

    Raises:
        InputError: it is missing or not one.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"`{path}` does not exist; a model directory holds one.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"`{path}` is not a JSON file that can be read: {error}.") from error
    if not isinstance(value, dict):
        raise InputError(f"`{path}` must hold one JSON object.")
    return value


def read_arrays(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Read a `.npz` file of finite numbers.

    Raises:
        InputError: it cannot be read, or lacks one of the arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in names}
        if all(x.dtype.kind == "f" and np.isfinite(x).all() for x in found.values()):
            return found
        error = "numbers are not finite"
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as caught:
        error = caught
    raise InputError(f"`{path}` is not an .npz file that can be read: {error}.")


def read_vector(path: Path, size: int) -> np.ndarray:
    """Read a vector from a `.npy` file; f32 [size].

    Raises:
        InputError: it is missing, or not a finite vector of this size other than 0.
    """
    try:
        vector = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"vector `{path}` is not a .npy file that can be read: {error}."
        ) from error
    if vector.shape != (size,) or vector.dtype.kind != "f":
        raise InputError(
            f"vector `{path}` has shape {vector.shape} and dtype {vector.dtype}; the model's "
            f"embeddings are ({size},) of floats."
        )
    if not np.isfinite(vector).all() or not vector.any():
        raise InputError(f"vector `{path}` must be finite and not 0.")
    return vector.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Opened:
    """An open file.

    Fields:
        data: its bytes, unpacked.
        packed: its bytes as they lie on disk.
    """

    data: io.BufferedReader
    packed: io.BufferedReader

    def far(self) -> int:
        """Give how many bytes of the file on disk were read."""
        return self.packed.tell()


def read_lines(path: str | Path, what: str) -> list[str]:
    """Read the non-empty lines of a UTF-8 file, stripped; see `plain_lines`.

    Raises:
        InputError: there is no such file, or it is not UTF-8 text; names its kind, or the line.
    """
    return [text for _, text in numbered_lines(path, what)]


def numbered_lines(path: str | Path, what: str) -> Iterator[tuple[int, str]]:
    """Yield the non-empty lines of a UTF-8 file, stripped, each with its number from 1.

    Args:
        path: of the file.
        what: it holds, for messages.

    Raises:
        InputError: as of `read_lines`.
    """
    where = f"{what} file `{path}`"
    with unpacked(path, where) as file:
        yield from plain_lines(file, where)


@contextlib.contextmanager
def unpacked(path: str | Path, where: str) -> Iterator[Opened]:
    """Open a file to read it; one that begins as gzip or Zstandard does is unpacked.

    Args:
        path: of the file.
        where: what to call it in an error.

    Raises:
        InputError: it is missing or cannot be read, also while it is open.
    """
    try:
        with open(path, "rb") as file:
            head = file.peek(_HEAD)
            codec = next((codec for magic, codec in _PACKED if head.startswith(magic)), "")
            if not codec:
                yield Opened(file, file)
                return
            import pyarrow as pa

            stream = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), codec)
            # It has all that a raw stream needs, but is none to the type checker.
            yield Opened(io.BufferedReader(stream, _BUFFER), file)  # pyright: ignore
    except FileNotFoundError:
        raise InputError(f"{where} does not exist.") from None
    except OSError as error:  # of pyarrow's, without a number
        raise InputError(f"{where} cannot be read: {error.strerror or error}.") from error


def decoded(file: Opened, where: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a UTF-8 file, each with its number from 1 and its end.

    Raises:
        InputError: it is not UTF-8 text; names its kind, or the line.
    """
    number = 0
    _check_text(file.data.peek(_HEAD)[:_HEAD], where)
    try:
        for data in file.data:
            for line in data.splitlines(keepends=True):  # it may end in a lone carriage return too
                number += 1
                if b"\0" in line:
                    raise _with_zeros(f"{where}, line {number}")
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{where}, line {number} is not UTF-8; save the file as UTF-8.") from None


def plain_lines(file: Opened, where: str) -> Iterator[tuple[int, str]]:
    """Yield the non-empty lines of an open UTF-8 file, stripped, each with its number from 1.

    Removes invisible characters, and says how many.

    Raises:
        InputError: as of `decoded`.
    """
    removed = first = 0
    for number, line in decoded(file, where):
        text, num = without_clutter(line.rstrip("\r\n"))  # quick for what is printable
        removed, first = removed + num, first or number * bool(num)
        if text := text.strip():
            yield number, text
    if removed:
        say_once(f"{where}: {removed} invisible characters removed, the first in line {first}")


@functools.cache  # a file is read for several purposes: once is enough
def say_once(message: str, level: int = logging.WARNING) -> None:
    """Log a line unless the same was logged before."""
    logger.log(level, message)


def _check_text(head: bytes, where: str) -> None:
    """Raise InputError if the beginning of a file shows that it is not text."""
    for pattern, kind, remedy in _MAGIC:
        if re.match(pattern, head):
            raise InputError(f"{where} is {kind}, not text in UTF-8; {remedy}.")
    if b"\0" not in head:
        return
    # In UTF-16 and UTF-32, Latin letters leave zeros in certain places.
    for name, zeros in _ZEROS.items():
        parts = [(head[i :: len(zeros)], zero) for i, zero in enumerate(zeros)]
        shares = [(part.count(0) / max(1, len(part)), zero) for part, zero in parts]
        if all(share > 0.5 if zero else share < 0.1 for share, zero in shares):
            raise InputError(
                f"{where} is {name}, not text in UTF-8; convert it: `iconv -f {name} -t UTF-8`."
            )
    raise _with_zeros(where)


def _with_zeros(where: str) -> InputError:
    return InputError(f"{where} holds zero bytes, so it is no text in UTF-8; save it as that.")


def digest(lines: Iterable[str]) -> str:
    """Hash lines of text, to recognise the same input later; SHA-256, in hex."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@contextlib.contextmanager
def locked(path: Path, held: Callable[[], object]) -> Iterator[None]:
    """Let one process in at a time; the next enters when it ends in whatever way.

    Without locks in the file system or the operating system, all enter.

    Args:
        path: of a file to lock, which is made, empty.
        held: called if another process is in; unless it raises, this one then waits.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    while True:
        with open(path, "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held()
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:
                pass
            # The process before may have removed the file that this one waited for.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                yield
                return


def this_process() -> str:
    """Say which process this is, for others that want what it has."""
    return (
        f"`{Path(sys.argv[0]).name} {' '.join(sys.argv[1:3])}`, process {os.getpid()} on "
        f"{socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"
    )


def cache_directory() -> Path:
    """Directory where this machine keeps what it can make again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jaxdefense"
