"""Which files a source has, in which form each of them is, and which of its columns is meant.

A source is a file, a glob, or a range such as `shards-{0000..0012}.tar`. `::COLUMN` at its end
names a column, where a well-known name does not show it.
"""

import contextlib
import dataclasses
import glob
import itertools
import json
import os
import re
from collections.abc import Sequence

from jaxdefense.errors import InputError
from jaxdefense.files import PARQUET_MAGIC, TAR_MAGIC, plain_lines, unpacked
from jaxdefense.words import folded_words, some

TEXT, TABLE, JSON, JSON_LINES = "text", "table", "JSON", "JSON Lines"
PARQUET, TAR = "Parquet", "tar"
TAB = "\t"

_MARK = "::"
NAME_ONE = f"name one at the end of the source, as in `FILE{_MARK}COLUMN`"
# The same of a table, whose first line may be a row as well.
NAME_OR_NUMBER = f"{NAME_ONE}, or its number, as in `FILE{_MARK}2`, if the first line names none"
_SHOWN = 30  # columns
_MAGIC = ((PARQUET_MAGIC, PARQUET), (TAR_MAGIC, TAR))
_SUFFIXES = {
    ".csv": TABLE, ".tsv": TABLE, ".tab": TABLE, ".json": JSON, ".jsonl": JSON_LINES,
    ".ndjson": JSON_LINES, ".parquet": PARQUET, ".tar": TAR,
}  # fmt: skip
# Names of columns with captions, folded; the second are looked for where none of the first is.
CAPTION_COLUMNS = (
    {"caption", "captions", "text", "texts"},
    {
        "sentence", "sentences", "comment", "comments", "description", "descriptions", "title",
        "alt", "alt text", "prompt",
    },
)  # fmt: skip
_OTHER_COLUMNS = {
    "raw", "label", "url", "image", "images", "image id", "image name", "image url", "imageid",
    "filename", "file name", "file", "filepath", "file path", "path", "id", "key", "index",
    "caption id", "caption number", "comment number", "split", "width", "height", "nsfw",
    "similarity", "hash", "img", "img id", "imgid", "license",
}  # fmt: skip
_COLUMNS = _OTHER_COLUMNS.union(*CAPTION_COLUMNS)
_OBJECT = re.compile(r'\{\s*"[^"]*"\s*:|\{$|\[\s*\{\s*"|\[$|\[\{$')
_LOOKED_AT = 100  # lines
_LONGEST_COLUMN = 3  # words of its name
_NEARLY_ALL = 0.9  # of the lines; with a tab, they are no prose


@dataclasses.dataclass(frozen=True)
class Form:
    """The form of a file: its name, and of a table what stands between the fields."""

    name: str
    delimiter: str = ""

    def __str__(self) -> str:
        if self.name != TABLE:
            return self.name
        return f"a table ({'tab-separated' if self.delimiter == TAB else 'CSV'})"


def split_column(source: str) -> tuple[str, str]:
    """Split a source into files, and the column that it names; "" if it names none."""
    files, mark, column = source.rpartition(_MARK)
    return (files, column) if mark and not os.path.lexists(source) else (source, "")


def files_of(pattern: str, what: str) -> list[str]:
    """List the files of a pattern: itself, or those of its ranges and globs, sorted.

    Raises:
        InputError: it is a directory, a range runs backwards, or a glob matches no file.
    """
    if os.path.isdir(pattern):
        raise InputError(f"{what} `{pattern}` is a directory; give its files: `{pattern}/*.tar`.")
    if os.path.lexists(pattern):
        return [pattern]
    found = list[str]()
    for name in expand_ranges(pattern, what):
        if glob.has_magic(name) and not os.path.lexists(name):
            matched = sorted(filter(os.path.isfile, glob.glob(name, recursive=True)))
            if not matched:
                raise InputError(f"{what} `{name}`: no file has such a name.")
            found += matched
        else:
            found.append(name)
    return found


def expand_ranges(name: str, what: str) -> list[str]:
    """Write out the ranges of a name: `a-{08..10}` is a-08, a-09, a-10.

    Raises:
        InputError: a range runs backwards.
    """
    found = re.search(r"\{(\d+)\.\.(\d+)\}", name)
    if not found:
        return [name]
    first, last = found.groups()
    if int(last) < int(first):
        raise InputError(f"{what}: the range {found[0]} must not run backwards.")
    before, after = name[: found.start()], name[found.end() :]
    numbers = (f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1))
    return [name for number in numbers for name in expand_ranges(f"{before}{number}{after}", what)]


def choose_column(
    columns: Sequence[str],
    known: Sequence[set[str]],
    named: str,
    where: str,
    what: str,
    remedy: str = NAME_ONE,
) -> str:
    """Choose the column that is named, or else the only one with a well-known name.

    Args:
        columns: of the file.
        known: folded names; those of a later set count if there is none of an earlier one.
        named: by the source; "" for none.
        where: to say of which file.
        what: the column holds, as "captions".
        remedy: how to name one.

    Raises:
        InputError: there is no such column, or several; lists them.
    """
    if columns.count(named) > 1:
        raise InputError(f"{where} has several columns `{named}`; rename all but one.")
    if named in columns:
        return named
    shown = f"its columns are {some(columns, _SHOWN)}" if columns else "it has no column"
    if named:
        raise InputError(f"{where} has no column `{named}`; {shown}.")
    for names in known:
        found = [name for name in columns if " ".join(folded_words(name)) in names]
        if len(found) == 1:
            return found[0]
        if found:
            break
    raise InputError(f"{where} does not show which column holds the {what}: {shown}; {remedy}.")


def form_of(path: str, where: str) -> Form:
    """Recognise the form of a file by its first bytes, its suffix or its first lines.

    Raises:
        InputError: it cannot be read, or is of no form that is.
    """
    bare = re.sub(r"\.(gz|zst)$", "", path.lower())
    suffix = _SUFFIXES.get(os.path.splitext(bare)[1], "")
    with unpacked(path, where) as file:
        head = file.data.peek()
        begins = next((name for magic, name in _MAGIC if re.match(magic, head)), "")
        packed = file.data is not file.packed
        if packed and (begins or suffix in (PARQUET, TAR)):
            raise InputError(f"{where} is a packed {begins or suffix} file; unpack it.")
        if begins or suffix == TAR:  # a tar of no file is all zeros
            return Form(begins or suffix)
        if suffix == PARQUET:
            raise InputError(f"{where} is no Parquet file: it does not begin as such; replace it.")
        lines = [text for _, text in itertools.islice(plain_lines(file, where), _LOOKED_AT)]
    if suffix == TABLE:
        tabs = bare.endswith((".tsv", ".tab"))
        return Form(TABLE, TAB if tabs else delimiter_of(lines[0] if lines else ""))
    if suffix == JSON and json_kind(lines) != JSON_LINES:
        return Form(JSON)
    if suffix == JSON_LINES:
        return Form(suffix)
    form, tabs = structure(lines), [text.count(TAB) for text in lines]
    if form.name == TEXT and len(lines) > 1 and sum(map(bool, tabs)) > _NEARLY_ALL * len(lines):
        odd = next(i for i, num in enumerate(tabs, 1) if num != tabs[0])
        raise InputError(
            f"{where} seems to be a table, as nearly all lines hold a tab, but its row {odd} holds "
            f"{tabs[odd - 1]} tabs, the first {tabs[0]}; mend that row, or remove the tabs."
        )
    return form


def delimiter_of(header: str) -> str:
    """Find what stands between the fields of a table's first line."""
    return max(",;\t|", key=header.count)


def structure(head: Sequence[str]) -> Form:
    """Recognise structured text by its first lines."""
    if not head:
        return Form(TEXT)
    if kind := json_kind(head):
        return Form(kind)
    for delimiter in (TAB, ",", ";", "|"):
        fields = [" ".join(folded_words(field)) for field in head[0].split(delimiter)]
        known = [not field or field in _COLUMNS for field in fields]
        constant = len(head) > 1 and len({text.count(delimiter) for text in head}) == 1
        # Prose holds no tabs. It may hold a comma a line, but no names of columns in the first.
        if len(fields) > 1 and (
            all(known) or constant and (delimiter == TAB or any(known) and _are_names(fields))
        ):
            return Form(TABLE, delimiter)
    return Form(TEXT)


def _are_names(fields: Sequence[str]) -> bool:
    return all(len(field.split()) <= _LONGEST_COLUMN for field in fields)


def json_kind(head: Sequence[str]) -> str:
    """Recognise JSON and JSON Lines by the first lines; "" if they are neither."""
    text = head[0] if head else ""
    if not text.startswith(("{", "[")):
        return ""
    if not _OBJECT.match(text):
        # A list of strings, on one line or several; a caption may well begin with a bracket.
        for whole in (text, text.rstrip(", ") + "]"):
            with contextlib.suppress(ValueError, RecursionError):
                found = json.loads(whole)
                return JSON if any(isinstance(x, (str, list, dict)) for x in found) else ""
        return ""
    return JSON_LINES if len(head) > 1 and text.endswith("}") and head[1][0] == "{" else JSON
