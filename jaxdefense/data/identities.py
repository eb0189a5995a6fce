"""The people to remove: names files."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from jaxdefense.clip.tokenizer import Tokenizer
from jaxdefense.errors import InputError
from jaxdefense.files import read_lines
from jaxdefense.words import folded_words, shortened

_NUM_SHOWN = 10
_NO_NAME = (*',;"@{}[]|', "://")
_TITLES = {
    "name", "names", "person", "people", "persons", "identity", "identities", "full name",
    "fullname", "first name", "firstname", "last name", "lastname", "surname", "given name",
    "family name", "email", "e mail", "mail", "id", "person id", "personid", "user id", "userid",
    "no", "nr", "number", "alias", "aliases", "gender", "sex", "date of birth", "birthday",
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

    Raises:
        InputError: the file is missing, empty, not UTF-8 text or of another format, or gives two
            people one name.
    """
    identities, where = list[Identity](), f"names file `{path}`"
    for line in read_lines(path, "names"):
        parts = [" ".join(part.split()) for part in line.partition("#")[0].split("\t")]
        if parts := [part for part in parts if part]:
            if not identities:
                _check_no_header(line, where)
            for part in parts:
                check_name(part, where)
            identities.append(Identity(parts[0], tuple(parts[1:])))
    if not identities:
        raise InputError(f"{where} names nobody; give one person a line.")
    check_distinct(identities, where)
    return identities


def read_names(path: str | Path, what: str) -> list[str]:
    """Read names, one a line, as they stand.

    Raises:
        InputError: the file cannot be read, or a line is no name.
    """
    names, where = read_lines(path, what), f"{what} file `{path}`"
    if names:
        _check_no_header(names[0], where)
    for name in names:
        check_name(name, where)
    return names


def _check_no_header(line: str, where: str) -> None:
    """Raise InputError if the first line names columns rather than a person."""
    titles = [" ".join(folded_words(part)) for part in re.split("[\t,;|]", line)]
    if not _TITLES.isdisjoint(titles):
        raise InputError(
            f"{where} begins with a header, {shortened(line)!r}; give one person a line, further "
            "names after tabs, and no other columns."
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
