"""Paths that a user gives, checked before anything is read: local ones, and an output that fits."""

import argparse
import re
from pathlib import Path

from jaxdefense.errors import InputError

# A path turned into one by `pathlib` has one slash left. A drive of Windows has one letter.
_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:/")


def refuse_address(value: str, name: str) -> None:
    """Raise InputError if a setting is the address of a bucket or the like, `gs://…`."""
    if _ADDRESS.match(value):
        raise InputError(
            f"`{name}` (={value}) is an address; only local paths are read and written: copy the "
            "files, or mount the bucket, and give the path."
        )


def refuse_addresses(args: argparse.Namespace) -> None:
    """Raise InputError if a flag or argument of a command is an address."""
    for name, given in vars(args).items():
        for value in given if isinstance(given, list) else [given]:
            if isinstance(value, str | Path):
                key, equals, text = str(value).partition("=")
                assigned = name == "set" and equals
                refuse_address(
                    text if assigned else str(value), key if assigned else name.removeprefix("cfg:")
                )
