"""Paths that a user gives, checked before anything is read: local ones, and an output that fits."""

import argparse
import errno
import os
import re
from pathlib import Path

from jaxdefense.errors import InputError

_LONGEST = 255  # bytes of a name, on nearly every file system
# A path turned into one by `pathlib` has one slash left. A drive of Windows has one letter.
_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:/")


def refuse_address(value: str, name: str) -> None:
    """Raise InputError if a setting is the address of a bucket or the like, `gs://…`."""
    if _ADDRESS.match(value):
        raise InputError(
            f"`{name}` (={value}) is an address; only local paths are read and written: copy the "
            "files, or mount the bucket, and give the path."
        )


def check_given(args: argparse.Namespace) -> None:
    """Raise InputError if a flag or argument is an address, or no path that can be looked at."""
    for name, given in vars(args).items():
        for value in given if isinstance(given, list) else [given]:
            if isinstance(value, str | Path):
                key, equals, text = str(value).partition("=")
                if not (name == "set" and equals):
                    key, text = name.removeprefix("cfg:"), str(value)
                refuse_address(text, key)
                try:
                    os.stat(text)
                except OSError as error:
                    # What is missing is told by who reads it, and may be no path at all.
                    if error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES) and (
                        "," not in text
                    ):
                        raise InputError(
                            f"`{key}` (={text}) cannot be looked at: {error.strerror}."
                        ) from error


def check_new(path: Path) -> None:
    """Raise InputError if a path exists, or could not be made."""
    if os.path.lexists(path):
        raise InputError(f"`{path}` already exists; give a directory that does not.")
    check_writable(path)


def check_writable(path: Path) -> None:
    """Raise InputError if a file or directory could not be made, or be written into if there is."""
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
    """Raise InputError if an output lies in the model directory that it is made from."""
    if path.resolve().is_relative_to(model.resolve()):
        raise InputError(f"`{name}` (={path}) lies in the model directory; give one outside it.")
