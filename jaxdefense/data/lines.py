"""Text files of lines: read, freed of what cannot be seen, refused if they are something else."""

import functools
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from jaxdefense.data.words import folded_words, without_clutter
from jaxdefense.errors import InputError

_HEAD = 4096  # bytes looked at
_UNPACK = "unpack it: `{} FILE > FILE.txt`"
_COLUMN = "write its column as text, a line each"
# What a file of other contents begins with, what that is, and what to do.
_MAGIC = (
    (rb"\xff\xfe\0\0|\0\0\xfe\xff", "UTF-32", "convert it: `iconv -f UTF-32 -t UTF-8`"),
    (rb"\xff\xfe|\xfe\xff", "UTF-16", "convert it: `iconv -f UTF-16 -t UTF-8`"),
    (rb"\x1f\x8b", "gzip", _UNPACK.format("gunzip -c")),
    (rb"\x28\xb5\x2f\xfd", "Zstandard", _UNPACK.format("zstd -dc")),
    (rb"\xfd7zXZ\0", "xz", _UNPACK.format("xz -dc")),
    (rb"BZh[1-9]1AY&SY", "bzip2", _UNPACK.format("bunzip2 -c")),
    (rb"7z\xbc\xaf\x27\x1c", "7z", "unpack it"),
    (rb"PK(\x03\x04|\x05\x06)", "a zip archive, or a sheet of Excel", "unpack it, or save as text"),
    (rb"PAR1[\x00-\x1f\x80-\xff]", "Parquet", _COLUMN),
    (rb"ARROW1\0", "Arrow", _COLUMN),
    (rb"\x89HDF", "HDF5", _COLUMN),
    (rb"SQLite format 3\0", "SQLite", _COLUMN),
    (rb"(?s:.{257})ustar", "a tar archive", "unpack it"),
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
_COLUMNS = {
    "caption", "captions", "text", "texts", "comment", "sentence", "sentences", "title", "alt",
    "alt text", "description", "prompt", "raw", "label", "url", "image", "images", "image id",
    "image name", "image url", "imageid", "filename", "file name", "file", "filepath", "file path",
    "path", "id", "key", "index", "caption id", "caption number", "comment number", "split",
    "width", "height", "nsfw", "similarity", "hash", "img", "img id", "imgid", "license",
}  # fmt: skip
_OBJECT = re.compile(r'\{\s*"[^"]*"\s*:|\{$|\[\s*\{\s*"|\[$|\[\{$')
_LOOKED_AT = 100  # lines
_LONGEST_COLUMN = 3  # words of its name


def read_lines(path: str | Path, what: str) -> list[str]:
    """Read the lines of a UTF-8 file that hold anything, stripped; see `lines`.

    Raises:
        InputError: no such file, or not UTF-8 text: says what it is, or on which line.
    """
    return list(lines(path, what))


def lines(
    path: str | Path, what: str, read: Callable[[int], object] = lambda size: None
) -> Iterator[str]:
    """Give the lines of a UTF-8 file that hold anything, one after the other, stripped.

    Removes characters that cannot be seen, and says how many.

    Args:
        path: of the file.
        what: it holds, for messages.
        read: told the bytes of each line.

    Raises:
        InputError: as of `read_lines`.
    """
    number = removed = first = 0
    where = f"{what} file `{path}`"
    try:
        with open(path, "rb") as file:
            _check_text(file.peek(_HEAD)[:_HEAD], where)
            for data in file:
                read(len(data))
                for line in data.splitlines():  # it may end in a lone carriage return too
                    number += 1
                    if b"\0" in line:
                        raise _with_zeros(f"{where}, line {number}")
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                    text, num = without_clutter(text)
                    removed, first = removed + num, first or number * bool(num)
                    if text := text.strip():
                        yield text
    except FileNotFoundError:
        raise InputError(f"{where} does not exist.") from None
    except UnicodeDecodeError:
        raise InputError(f"{where}, line {number} is not UTF-8; save the file as UTF-8.") from None
    except OSError as error:
        raise InputError(f"{where} cannot be read: {error.strerror}.") from error
    if removed:
        _say(f"{where}: {removed} invisible characters removed, the first in line {first}")


@functools.cache  # a file is read for several purposes: once is enough
def _say(message: str) -> None:
    print(message, file=sys.stderr)


def _check_text(head: bytes, where: str) -> None:
    """Raise InputError if a file that begins so holds no text."""
    for pattern, kind, remedy in _MAGIC:
        if re.match(pattern, head):
            raise InputError(f"{where} is {kind}, not text in UTF-8; {remedy}.")
    if b"\0" not in head:
        return
    # UTF-16 and UTF-32 of Latin letters show in where the zeros are.
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


def check_captions(head: Sequence[str], path: str | Path) -> None:
    """Raise InputError if a file that begins with these lines is JSON or a table."""
    if kind := structure(head[:_LOOKED_AT]):
        raise InputError(
            f"captions file `{path}` is {kind}, of which each line would be a caption; give a "
            "text file with one caption a line and nothing else."
        )


def structure(head: Sequence[str]) -> str:
    """Tell what structured text the first lines are of; "" if they are plain captions."""
    if not head:
        return ""
    if kind := json_kind(head):
        return kind
    for delimiter, name in (("\t", "tab-separated"), (",", "CSV"), (";", "CSV"), ("|", "CSV")):
        fields = [" ".join(folded_words(field)) for field in head[0].split(delimiter)]
        known = [not field or field in _COLUMNS for field in fields]
        constant = len(head) > 1 and len({text.count(delimiter) for text in head}) == 1
        # Prose holds no tabs. It may hold a comma a line, but no names of columns in the first.
        if len(fields) > 1 and (
            all(known) or constant and (delimiter == "\t" or any(known) and _are_names(fields))
        ):
            return f"a table ({name})"
    return ""


def _are_names(fields: Sequence[str]) -> bool:
    return all(len(field.split()) <= _LONGEST_COLUMN for field in fields)


def json_kind(head: Sequence[str]) -> str:
    """Tell JSON and JSON Lines by the first lines; "" if they are neither."""
    text = head[0]
    if not text.startswith(("{", "[")):
        return ""
    if not _OBJECT.match(text):
        try:  # a list of strings; a caption may well begin with a bracket
            found = json.loads(text)
        except (ValueError, RecursionError):
            return ""
        return "JSON" if any(isinstance(x, (str, list, dict)) for x in found) else ""
    return "JSON Lines" if len(head) > 1 and text.endswith("}") and head[1][0] == "{" else "JSON"
