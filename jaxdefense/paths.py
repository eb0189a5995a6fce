"""Paths that a user gives, checked before anything is read: local ones, and an output that fits."""

import errno
import os
import re
from pathlib import Path, PurePath

from jaxdefense.buckets.places import SCHEMES, as_given, is_address
from jaxdefense.errors import InputError

_LONGEST = 255  # bytes of a name, on nearly every file system
# A path turned into one by `pathlib` has one slash left. A drive of Windows has one letter.
_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:/")


def check_given(value: str, name: str) -> None:
    """Raise InputError if a setting is an address of no bucket, or a path that cannot be examined.

    Whoever reads a missing path reports it; the value may be no path at all.
    """
    if is_address(value):
        return
    if _ADDRESS.match(value):
        raise InputError(
            f"`{name}` (={value}) is an address; only local paths and {', '.join(SCHEMES)} "
            "addresses are read and written: copy the files, and give the path."
        )
    try:
        os.stat(value)
    except (OSError, ValueError) as error:
        why = getattr(error, "errno", errno.EINVAL)
        if why in (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EINVAL) and (
            "," not in value
        ):
            said = getattr(error, "strerror", None) or error
            raise InputError(f"`{name}` (={value}) cannot be looked at: {said}.") from error


def is_word(value: str, word: str, name: str) -> bool:
    """Tell whether a setting is a word that stands in place of a file.

    Raises:
        InputError: it is, and a file is called so too.
    """
    if value != word:
        return False
    if os.path.isfile(value):
        raise InputError(
            f"`{name}` (={value}) is a word, and a file too; give `./{value}` for the file, or "
            "rename it."
        )
    return True


def check_new(path: Path) -> None:
    """Raise InputError if a path exists or cannot be created."""
    if os.path.lexists(path):
        raise InputError(f"`{path}` already exists; give a directory that does not.")
    check_writable(path)


def check_writable(path: Path) -> None:
    """Raise InputError if a file or directory cannot be created, or an existing one not written."""
    there = next(x for x in (path, *path.absolute().parents) if os.path.lexists(x))
    longest = max(len(os.fsencode(part)) for part in path.absolute().parts)
    if longest > _LONGEST:
        why = f"a name in it has {longest} bytes, more than {_LONGEST}"
    elif there != path and not there.is_dir():
        why = f"`{there}` is no directory"
    elif not os.access(there, os.W_OK):
        why = f"`{there}` may not be written"
    else:
        return
    raise InputError(f"`{path}` cannot be written: {why}; give another place.")


def check_outside(path: Path, model: Path, name: str = "out") -> None:
    """Raise InputError if an output lies in the model directory that it comes from."""
    # What is read from a bucket and what goes to one have places apart, but one address.
    where, inside = (PurePath(as_given(str(x.resolve()))) for x in (path, model))
    if where.is_relative_to(inside):
        raise InputError(f"`{name}` (={path}) lies in the model directory; give one outside it.")
