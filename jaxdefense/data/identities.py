"""The people to remove: names files."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from jaxdefense.clip.tokenizer import Tokenizer
from jaxdefense.data.captions import folded_words, read_lines
from jaxdefense.errors import InputError


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
        InputError: the file is missing, empty or not UTF-8, or gives one name to two people.
    """
    identities = []
    for line in read_lines(path, "names"):
        parts = [" ".join(part.split()) for part in line.partition("#")[0].split("\t")]
        if parts := [part for part in parts if part]:
            identities.append(Identity(parts[0], tuple(parts[1:])))
    if not identities:
        raise InputError(f"names file `{path}` names nobody; give one person a line.")
    check_distinct(identities, f"names file `{path}`")
    return identities


def check_distinct(identities: Sequence[Identity], where: str) -> None:
    """Raise InputError if a name stands for two people, or twice for one."""
    seen: dict[tuple[str, ...], str] = {}
    for identity in identities:
        for name in identity.names:
            key = folded_words(name)
            if not key:
                raise InputError(f"{where}: {name!r} has no letter or digit; give a name.")
            if key in seen:
                raise InputError(
                    f"{where}: {name!r} is there twice ({seen[key]!r}, {identity.name!r}); "
                    "keep one."
                )
            seen[key] = identity.name


def check_fits(identities: Sequence[Identity], tokenizer: Tokenizer, where: str) -> None:
    """Raise InputError if a name has no token, or more than a caption can hold.

    Or if, in a text, it has other tokens to the model's own library.
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
