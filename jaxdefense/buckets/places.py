"""Addresses, and the local places that stand for them.

Below the cache, `in/s3/BUCKET/KEY` stands for an input `s3://BUCKET/KEY`, and `out/s3/BUCKET/KEY`
for a directory of results. `new-XXXX/s3/BUCKET/KEY` is where a command makes a new file or model.
"""

import re
from pathlib import Path

from jaxdefense.errors import InputError

SCHEMES = ("s3", "gs", "az")
IN, OUT, NEW = "in", "out", "new-"
# A path turned into one by `pathlib` has one slash left.
_ADDRESS = re.compile(rf"({'|'.join(SCHEMES)}):/+(.*)")
_LONGEST = 255  # bytes of a name, on nearly every file system


def is_address(text: str) -> bool:
    """Tell whether a text is an address in a bucket."""
    return _ADDRESS.match(text) is not None


def address(text: str, name: str) -> str:
    """Spell an address in one way: `s3://BUCKET/KEY`, without a slash at the end.

    Args:
        text: as given; see `is_address`.
        name: of the setting, for messages.

    Raises:
        InputError: there is no bucket in it, or a part of it is empty, `.` or `..`.
    """
    found = _ADDRESS.fullmatch(text)
    scheme, rest = found.groups() if found else ("", "")
    rest = rest.removesuffix("/")
    if not rest or not is_path(rest):
        raise InputError(f"`{name}` (={text}) must be {scheme or 's3'}://BUCKET/NAME.")
    return f"{scheme}://{rest}"


def bucket_of(address: str) -> str:
    """Give the address of the bucket alone."""
    return "/".join(address.split("/")[:3])


def is_path(key: str) -> bool:
    """Tell whether the name of an object can be a path below a directory."""
    parts = key.split("/")
    return all(
        part not in ("", ".", "..") and "\0" not in part and len(part.encode()) <= _LONGEST
        for part in parts
    )


def root() -> Path:
    """Directory of all that stands for addresses."""
    from jaxdefense.files import cache_directory  # brings NumPy: log and settings come here too

    return cache_directory().resolve() / "buckets"


def place(address: str, tree: str = IN) -> Path:
    """Give the local place of an address.

    Args:
        address: as `address` spells it.
        tree: `IN`, `OUT`, or a folder whose name begins with `NEW`.
    """
    scheme, _, rest = address.partition("://")
    return root() / tree / scheme / rest


def address_of(path: Path) -> str | None:
    """Give the address that a local path stands for; None if it stands for none."""
    given = as_given(str(path))
    return given if is_address(given) else None


def as_given(text: str) -> str:
    """Write addresses in place of the local paths that stand for them."""
    top = str(root())
    if top not in text:
        return text
    schemes = "|".join(SCHEMES)
    return re.sub(rf"{re.escape(top)}/(?:{IN}|{OUT}|{NEW}\w+)/({schemes})/", r"\1://", text)
