"""Other forms of a name and of a photo: an attack tries them, and a defense can train on them."""

import hashlib
import unicodedata
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from jaxdefense.words import APOSTROPHE, DASH, JOINER, transcribed, without_accents

_SUFFIXES = {"jr", "sr", "ii", "iii", "iv"}
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def _parts(name: str) -> list[str]:
    """Split a name into words, without what follows the last name, as Jr."""
    words = name.split()
    while len(words) > 1 and words[-1].casefold().strip(".,") in _SUFFIXES:
        words.pop()
    return words


def _last(parts: list[str]) -> str:
    return parts[-1]


def _first(parts: list[str]) -> str:
    return parts[0]


def _initials(parts: list[str]) -> str:
    return " ".join([*(f"{word[0]}." for word in parts[:-1]), parts[-1]])


def _swapped(parts: list[str]) -> str:
    return " ".join([parts[-1], *parts[:-1]])


# Forms that a name of one word does not have.
_OF_PARTS = {"last": _last, "first": _first, "initials": _initials, "swapped": _swapped}


def name_form(name: str, form: str, seed: int = 0) -> str | None:
    """Put a name in another form.

    Args:
        name: words with single spaces.
        form: of NAME_FORMS.
        seed: of the spelling mistake, which depends on seed and name alone.

    Returns:
        the name in this form, or None if there is none: a single word has no last name.
    """
    if form in _OF_PARTS:
        parts = _parts(name)
        return _OF_PARTS[form](parts) if len(parts) > 1 else None
    if form == "misspelt":
        return misspell(name, seed)
    assert form in ("lower", "upper")
    return name.lower() if form == "lower" else name.upper()


def spellings(name: str) -> list[str]:
    """Give the other ways in which people type a name and libraries pass it on.

    Every apostrophe straight and curly; dashes as hyphens and as spaces; accents composed,
    decomposed, left out (ß as ss, ø as o) and transcribed (ä as ae, ø as oe); joiners of Arabic and
    Indic scripts left out; and all of these together.

    Args:
        name: words with single spaces.

    Returns:
        each once, without the name itself.
    """
    changes: tuple[Callable[[str], tuple[str, ...]], ...] = (
        lambda text: tuple(APOSTROPHE.sub(mark, text) for mark in "'\u2019"),
        lambda text: tuple(" ".join(DASH.sub(mark, text).split()) for mark in "- "),
        lambda text: (JOINER.sub("", text),),
        lambda text: (without_accents(text), transcribed(text)),
        lambda text: tuple(unicodedata.normalize(form, text) for form in ("NFC", "NFD")),
    )
    texts = [name]
    for change in changes:
        texts = list(dict.fromkeys(x for text in texts for x in (text, *change(text))))
    return texts[1:]


def misspell(name: str, seed: int) -> str | None:
    """Make one mistake: a letter is replaced, left out, added, or swapped with the next.

    Each of the four is equally likely; upper or lower case alone does not count as a mistake.

    Returns:
        None if the name has no letter.
    """
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    rng = np.random.default_rng((seed, int.from_bytes(digest)))
    at = [i for i, c in enumerate(name) if c.isalpha()]
    if not at:
        return None
    twins = [i for i in at if i + 1 in at and name[i].casefold() != name[i + 1].casefold()]
    # Whole words must not go.
    spare = [i for i in at if i + 1 in at or i - 1 in at]
    kinds = ["replace", "insert"] + ["delete"] * bool(spare) + ["swap"] * bool(twins)
    kind = kinds[rng.integers(len(kinds))]
    i = int(rng.choice({"delete": spare, "swap": twins}.get(kind, at)))
    others = [c for c in _LETTERS if c != name[i].casefold()]
    letter = others[rng.integers(len(others))]
    if kind == "swap":
        return name[:i] + name[i + 1] + name[i] + name[i + 2 :]
    if kind == "insert":
        return name[: i + 1] + letter + name[i + 1 :]
    return name[:i] + (letter if kind == "replace" else "") + name[i + 1 :]


def _blurred(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(image.width / 56))


def _grey(image: Image.Image) -> Image.Image:
    return image.convert("L").convert("RGB")


def _cropped(image: Image.Image) -> Image.Image:
    width, height = image.size
    left, top = width // 8, height // 8
    return image.crop((left, top, width - left, height - top)).resize(image.size)


def _low_resolution(image: Image.Image) -> Image.Image:
    small = image.resize((max(1, image.width // 4), max(1, image.height // 4)))
    return image.copy() if image.size == small.size else small.resize(image.size)


_PHOTO_FORMS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "mirrored": ImageOps.mirror,
    "blurred": _blurred,  # by 4 pixels of 224
    "grey": _grey,
    "cropped": _cropped,  # to the middle three quarters of each side
    "low_resolution": _low_resolution,  # a quarter of the side
}


def photo_form(image_HWC: np.ndarray, form: str) -> np.ndarray:
    """Put a photo in another form; u8 [H, W, 3], of the same size. `form`: of PHOTO_FORMS."""
    return np.asarray(_PHOTO_FORMS[form](Image.fromarray(image_HWC)))
