"""The people to remove: names files."""

import dataclasses
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxdefense.clip.tokenizer import Tokenizer
from jaxdefense.data.forms import TAB, choose_column, delimiter_of
from jaxdefense.data.records import table_rows
from jaxdefense.errors import InputError
from jaxdefense.files import numbered_lines, say_once, unpacked
from jaxdefense.words import folded_words, shortened, some, without_clutter

_NUM_SHOWN = 10
_NO_NAME = (*',;"@{}[]|', "://")
# Columns of a table, folded. Beside one with a part of a name, only `full name` is surely whole.
_FULL_NAME = {"full name", "fullname"}
_NAME_COLUMNS = (_FULL_NAME, {"name", "names"})
_PART_OF_NAME = {
    *("first", "first name", "firstname", "given name", "givenname", "forename", "middle name"),
    *("last", "last name", "lastname", "surname", "family name", "familyname", "second name"),
}
_ALIAS_COLUMN = {"alias", "aliases", "also known as", "aka", "other names"}
_ALIASES = re.compile("[;|]")  # what stands between aliases in a table
_COMMENT = "#"
_TITLES = {
    "name", "names", "person", "people", "persons", "identity", "identities", "full name",
    "fullname", "email", "e mail", "mail", "id", "person id", "personid", "user id", "userid",
    "no", "nr", "number", "alias", "aliases", "gender", "sex", "date of birth", "birthday",
    *(_PART_OF_NAME - {"first", "last"}),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Identity:
    """A person: a name, and others they go by."""

    name: str
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All of the person's names."""
        return (self.name, *self.aliases)


def read_identities(path: str | Path) -> list[Identity]:
    """Read a names file: one person a line, aliases after tabs, `#` starts a comment.

    Or a table (CSV) whose first line names a column `name`; its column `aliases`, if there is one,
    holds further names with `;` or `|` between. Other columns are not read, and named.

    Raises:
        InputError: the file is missing, empty, not UTF-8 text or of another format, or gives two
            people one name.
    """
    identities, where = list[Identity](), f"names file `{path}`"
    for number, names in _rows(path, "names", comments=True):
        for name in names:
            check_name(name, f"{where}, line {number}")
        identities.append(Identity(names[0], tuple(names[1:])))
    if not identities:
        raise InputError(f"{where} names nobody; give one person a line.")
    check_distinct(identities, where)
    return identities


def read_names(path: str | Path, what: str) -> list[str]:
    """Read names, one a line, as they stand; or the column `name` of a table.

    Raises:
        InputError: the file cannot be read, or a line is no name.
    """
    found = []
    for number, names in _rows(path, what, comments=False):
        check_name(names[0], f"{what} file `{path}`, line {number}")
        found.append(names[0])
    return found


def _rows(path: str | Path, what: str, comments: bool) -> Iterator[tuple[int, list[str]]]:
    """Give the names of each person with the number of the line, of lines or of a table."""
    where, first = f"{what} file `{path}`", True
    for number, line in numbered_lines(path, what):
        names = [line]
        if comments:
            names = line.partition(_COMMENT)[0].split(TAB)
            names = [" ".join(x.split()) for x in names if x.strip()]
        if not names:
            continue
        if first and not set().union(*_NAME_COLUMNS).isdisjoint(_titles(line)):
            yield from _table(path, delimiter_of(line), where)
            return
        if first:
            _check_no_header(line, where)
        first = False
        yield number, names


def _table(path: str | Path, delimiter: str, where: str) -> Iterator[tuple[int, list[str]]]:
    """Give the names of each row of a table."""
    with unpacked(path, where) as file:
        rows = table_rows(file, delimiter, where, _COMMENT)
        _, header = next(rows)
        name = choose_column(header, _NAME_COLUMNS, "", where, "names", "call one `full name`")
        titles = {x: " ".join(folded_words(x)) for x in header}
        parts = [x for x in header if titles[x] in _PART_OF_NAME]
        if parts and titles[name] not in _FULL_NAME:
            raise InputError(
                f"{where} has {some(parts)} beside `{name}`, so a name may be cut in parts; put "
                "whole names into a column `full name`."
            )
        alias = [x for x in header if titles[x] in _ALIAS_COLUMN]
        read = [header.index(x) for x in (name, *alias)]
        removed = 0
        rest = [title for i, title in enumerate(header) if i not in read]
        said = f"{where}: a table; names are read from {some(header[i] for i in read)}"
        say_once(said + (f", and not from {some(rest)}" if rest else ""), logging.INFO)
        for number, row in rows:
            names = [row[read[0]], *(x for i in read[1:] for x in _ALIASES.split(row[i]))]
            if any(TAB in name for name in names):
                raise InputError(
                    f"{where}, line {number} has a tab in a name; give further names in a column "
                    "`aliases`, or a file without header."
                )
            if any(_COMMENT in name for name in names):
                raise InputError(
                    f"{where}, line {number} has `{_COMMENT}` in a name; in a table a comment "
                    "takes a line of its own."
                )
            cleaned = [without_clutter(" ".join(name.split())) for name in names]
            names = [name.strip() for name, _ in cleaned]
            removed += sum(num for _, num in cleaned)
            if not names[0]:
                raise InputError(f"{where}, line {number} has no `{name}`; give one, or remove it.")
            yield number, [name for name in names if name]
    if removed:
        say_once(f"{where}: {removed} invisible characters removed")


def _titles(line: str) -> list[str]:
    return [" ".join(folded_words(part)) for part in re.split("[\t,;|]", line)]


def _check_no_header(line: str, where: str) -> None:
    """Raise InputError if the first line names columns rather than a person."""
    if not _TITLES.isdisjoint(_titles(line)):
        raise InputError(
            f"{where} begins with a header, {shortened(line)!r}, without a column `name`; give one "
            "person a line, further names after tabs, or such a column."
        )


def check_name(name: str, where: str) -> None:
    """Raise InputError if a name looks like a line of a table, JSON or a number."""
    if found := next((mark for mark in _NO_NAME if mark in name), ""):
        right = "give one person a line, further names after tabs"
        if found == ",":
            right += ", the first name first"
        elif found == "@":
            right += ", no e-mail address"
        raise InputError(f"{where}: {shortened(name)!r} is no name, it holds `{found}`; {right}.")
    if not any(map(str.isalpha, name)):
        what = "is a number" if any(map(str.isalnum, name)) else "has no letter or digit"
        raise InputError(f"{where}: {shortened(name)!r} {what}; give a name.")


def check_distinct(identities: Sequence[Identity], where: str) -> None:
    """Raise InputError if two people have one name, or one person has a name twice.

    Names that differ only in case, accents or marks are the same; a person may have both spellings.
    """
    seen: dict[tuple[str, ...], Identity] = {}
    for identity in identities:
        for i, name in enumerate(identity.names):
            key = folded_words(name)
            if not key:
                raise InputError(f"{where}: {name!r} has no letter or digit; give a name.")
            first = seen.setdefault(key, identity)
            if first is not identity or name in identity.names[:i]:
                raise InputError(
                    f"{where}: {name!r} is there twice ({first.name!r}, {identity.name!r}); "
                    "keep one."
                )


def describe_listed(identities: Sequence[Identity]) -> str:
    """List people as the file was understood, the first few by name."""
    shown = [
        shortened(who.name) + f" (also {shortened(', '.join(who.aliases))})" * bool(who.aliases)
        for who in identities[:_NUM_SHOWN]
    ]
    more = len(identities) - len(shown)
    noun = "person" if len(identities) == 1 else "people"
    return f"{len(identities)} {noun}: {', '.join(shown)}" + f" and {more} more" * bool(more)


def check_fits(identities: Sequence[Identity], tokenizer: Tokenizer, where: str) -> None:
    """Raise InputError if a name has no token, or more than a caption can hold.

    Also if the model's own library gives it other tokens in a text.
    """
    room = tokenizer.room
    for identity in identities:
        for name in identity.names:
            if not (size := tokenizer.phrase(name).size):
                raise InputError(f"{where}: {name!r} has no token in this model; give another.")
            if size > room:
                shown = name if len(name) <= 60 else name[:57] + "..."
                raise InputError(
                    f"{where}: {shown!r} has {size} tokens, a caption of this model holds "
                    f"{room}; shorten it."
                )
    tokenizer.check_phrases(name for identity in identities for name in identity.names)
