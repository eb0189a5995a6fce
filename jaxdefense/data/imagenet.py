"""ImageNet's 1,000 classes: their names by wnid, and by number.

Source: OpenAI's names, in open_clip's `IMAGENET_CLASSNAMES`; wnids of ILSVRC2012, sorted.
Parity: tests/test_imagenet.py, equal.
"""

import re
from collections.abc import Collection
from functools import cache
from importlib import resources

from jaxdefense.errors import InputError
from jaxdefense.words import some

IMAGENET = "imagenet"  # in place of a file of class names
_WNID = re.compile(r"n\d{8}")
_REMEDY = "a file of lines KEY<tab>NAME"


@cache
def imagenet_names() -> dict[str, str]:
    """Read the names of ImageNet's classes by wnid, in the order of their numbers.

    Two names stand for two classes each: missile and sunglasses.
    """
    file = resources.files("jaxdefense.data") / "imagenet.tsv"
    pairs = (line.split("\t") for line in file.read_text(encoding="utf-8").splitlines())
    return {wnid: name for wnid, name in pairs}


def recognised(keys: Collection[str], where: str) -> dict[str, str] | None:
    """Name classes whose folders or labels are ImageNet's wnids, or all of its numbers.

    Args:
        keys: all folders or labels.
        where: the source, for an error.

    Returns:
        name by key; None if the keys are names.

    Raises:
        InputError: they are wnids or numbers, but not ImageNet's.
    """
    if any(_WNID.fullmatch(key) for key in keys):
        return _named(keys, imagenet_names(), where)
    if not all(key.isdecimal() for key in keys):
        return None
    if {int(key) for key in keys} == set(range(1000)):
        return chosen(keys, where)
    numbers = some(sorted(keys, key=int))
    raise InputError(
        f"{where}: {numbers} are numbers, not names; give `class_names`: {_REMEDY}, or "
        f"`{IMAGENET}` if they are numbers of ImageNet's 1,000 classes, from 0."
    )


def chosen(keys: Collection[str], where: str) -> dict[str, str]:
    """Name classes whose folders or labels are some of ImageNet's wnids, or of its numbers.

    Raises:
        InputError: one is neither; or two have one number.
    """
    names = imagenet_names()
    if not all(key.isdecimal() for key in keys):
        return _named(keys, names, where)
    by_number = dict(enumerate(names.values()))
    if len({int(key) for key in keys}) < len(keys):
        raise InputError(f"{where}: two of {some(sorted(keys))} are one number; keep one.")
    return _named(keys, {key: by_number.get(int(key), "") for key in keys}, where)


def _named(keys: Collection[str], names: dict[str, str], where: str) -> dict[str, str]:
    if unknown := sorted(key for key in keys if not names.get(key)):
        raise InputError(
            f"{where}: not among ImageNet's 1,000 classes: {some(unknown)}; give `class_names`: "
            f"{_REMEDY}."
        )
    return {key: names[key] for key in keys}
