"""Words of a text, folded to match names: the same for lists, folders and captions.

Two spellings fold to the same words if they differ in case, accents, HTML entities, invisible
characters, compatibility forms (full width), or in what stands between words: spaces, underscores,
apostrophes and dashes. In scripts written without spaces, and in Korean, whose particles cling to
names, every character is a word.
"""

import html
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import unquote

# All of Unicode's Cf, of Cc what is no white space, and the default ignorable rest.
INVISIBLE = (
    "\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2"
    "\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
# Invisible characters that separate words.
_BLANK = re.compile("[\x1c-\x1f\u2800]")
_INVISIBLE = re.compile(f"[{INVISIBLE}]+")
# Joiners within words of Arabic and Indic scripts change letters; others make one emoji of two.
_SHAPING = (
    "(?<=[\u0620-\u1cff])[\u200c\u200d](?=[\u0620-\u1cff])"
    "|(?<=[\u2100-\u2bff\U0001f000-\U0001faff])[\u200d\ufe0e\ufe0f]+"
)
_CLUTTER = re.compile(f"({_SHAPING})|[{INVISIBLE}]")

# Accents, vowel points of Hebrew and Arabic, tatweel; not kana's voicing.
_MARKS = re.compile(
    "[\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a"
    "\u0640\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff"
    "\ufe20-\ufe2f]"
)
_PLAIN_LETTERS = {
    "ß": "ss", "ẞ": "SS", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "ð": "d",
    "Ð": "D", "þ": "th", "Þ": "Th", "æ": "ae", "Æ": "Ae", "œ": "oe", "Œ": "Oe", "ı": "i",
    "ħ": "h", "Ħ": "H", "ŧ": "t", "Ŧ": "T",
}  # fmt: skip
_TRANSCRIBED = {
    "ä": "ae", "Ä": "Ae", "ö": "oe", "Ö": "Oe", "ü": "ue", "Ü": "Ue", "å": "aa", "Å": "Aa",
    "ø": "oe", "Ø": "Oe",
}  # fmt: skip
_APOSTROPHES = "'`\xb4\u02b9-\u02bf\u02c8\u02ca\u02cb\u055a\u05f3\u2018-\u201b\u2032\ua78c\uff07"
_DASHES = "\\-\u058a\u05be\u2010-\u2015\u2212\ufe58\ufe63\uff0d"
APOSTROPHE, DASH = re.compile(f"[{_APOSTROPHES}]"), re.compile(f"[{_DASHES}]")
JOINER = re.compile("[\u200c\u200d]")
_LETTERS = str.maketrans(_PLAIN_LETTERS)
_WITH_E = str.maketrans(_TRANSCRIBED)

# Thai and Lao, Burmese, Khmer, Hangul, Han and kana: one character a word.
_UNSPACED = (
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e50-\u0e59\u0e81-\u0edf\u1000-\u1049\u1050-\u109f\u1100-\u11ff"
    "\u1780-\u17d3\u17e0-\u17e9\u2e80-\u2fdf\u3005-\u3007\u3041-\u3096\u3099\u309a\u309d-\u309f"
    "\u30a1-\u30fa\u30fc-\u30ff\u3105-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
# Vowel signs are marks, but part of the word.
_SIGNED = "\u0780-\u07b1\u0900-\u0963\u0966-\u0dff"
_WORD = re.compile(rf"[{_UNSPACED}]|(?:[^\W\d_{_UNSPACED}]|[{_SIGNED}])+|\d+")
_ASCII_WORD = re.compile("[a-z]+|[0-9]+")  # the same in ASCII, faster
_LETTERS_ALONE = bytes(i if chr(i).isalpha() else ord(" ") for i in range(128)) + bytes(128)
_PERCENT = re.compile("%[0-9A-Fa-f]{2}")

_UPPER = "A-Z\xc0-\xd6\xd8-\xde"
_CAMEL = f"(?<=[^\\W\\d_{_UPPER}])(?=[{_UPPER}])"
# Where a word may end without visible sign.
_SEAM = re.compile(f"[{INVISIBLE}]+|</?[a-zA-Z][^<>]*>|{_CAMEL}")
_SHOWN = 60  # characters of an example

Words = tuple[str, ...]


def without_clutter(text: str) -> tuple[str, int]:
    """Remove invisible characters, except those that shape Arabic, Indic scripts or an emoji.

    Returns:
        the text, and how many were removed.
    """
    if text.isascii() and text.isprintable():
        return text, 0
    cleaned = _CLUTTER.sub(lambda found: found[1] or "", text)
    spaced, num_blank = _BLANK.subn(" ", cleaned)
    return spaced, len(text) - len(cleaned) + num_blank


def without_accents(text: str) -> str:
    """Write letters without their accents; ss for ß, o for ø, l for ł, ae for æ and so on."""
    if text.isascii():
        return text
    bare = _MARKS.sub("", unicodedata.normalize("NFD", text)).translate(_LETTERS)
    return unicodedata.normalize("NFC", bare)


def transcribed(text: str) -> str:
    """Write ae, oe, ue, aa for ä, ö and ø, ü, å, and other letters without accents."""
    if text.isascii():
        return text
    return without_accents(unicodedata.normalize("NFC", text).translate(_WITH_E))


def _unescaped(text: str) -> str:
    """Resolve HTML entities, even if escaped twice, and percent signs of addresses."""
    for _ in range(2):
        if "&" in text:
            text = html.unescape(text)
    if _PERCENT.search(text):
        text = unquote(text)
    return text if text.isascii() else unicodedata.normalize("NFKC", text)


def _folded(text: str) -> str:
    """Fold case, accents and compatibility forms; remove invisible characters."""
    if text.isascii() and text.isprintable():
        return text.lower()
    text = unicodedata.normalize("NFKD", _INVISIBLE.sub("", text)).casefold()
    # Hangul and kana are composed again.
    return unicodedata.normalize("NFKC", without_accents(APOSTROPHE.sub("'", text)))


def _words(folded: str) -> list[str]:
    return (_ASCII_WORD if folded.isascii() else _WORD).findall(folded)


def folded_words(text: str) -> Words:
    """Split into words regardless of how they are written, for matching names; see the module."""
    return tuple(_words(_folded(_unescaped(text))))


def _is_plain(text: str) -> bool:
    """Whether a text has one reading and folds by case alone, as most captions do."""
    return (
        text.isascii()
        and text[1:].islower()
        and text.isprintable()
        and "&" not in text
        and "%" not in text
        and "<" not in text
    )


def _readings(text: str) -> Iterator[str]:
    """Give the ways to read a text: unchanged, split at every seam, transcribed."""
    text = _unescaped(text)
    yield text
    if (apart := _SEAM.sub(" ", text)) != text:
        yield apart
    if (plain := transcribed(text)) != without_accents(text):
        yield plain


def _patterns(name: str) -> Iterator[tuple[Words, int]]:
    """Give the words by which a caption holds a name, and before which a comma must stand, or 0."""
    texts = dict.fromkeys((name, transcribed(name)))
    for text in [*texts]:
        solid = APOSTROPHE.sub("", text)
        texts |= dict.fromkeys((solid, DASH.sub("", solid)))
    for words in dict.fromkeys(map(folded_words, texts)):
        if not words:
            continue
        yield words, 0
        if len(words) == 1:
            continue
        yield (*words[:-1], words[-1] + "s"), 0  # a genitive
        if min(map(len, words)) > 1:
            yield ("".join(words),), 0  # as in #AdamSmith
        for i in range(1, len(words)):  # as in Smith, Adam
            yield words[i:] + words[:i], len(words) - i


def name_finder(names: Iterable[str]) -> Callable[[str], bool]:
    """Give a function that tells whether a caption contains a listed name.

    A name matches whole words however both are written (see the module), its words run together
    or with a genitive s, and the last name first if a comma follows it. When in doubt it matches.
    It looks names up by first word and length, so the cost does not grow with their number.
    """
    found = _name_search(names)
    return lambda caption: next(found(caption), None) is not None


def name_lister(names: Iterable[str]) -> Callable[[str], set[str]]:
    """Give a function that gives the listed names in a caption; see `name_finder`."""
    found = _name_search(names)
    return lambda caption: set(found(caption))


def _name_search(names: Iterable[str]) -> Callable[[str], Iterator[str]]:
    """Do the same as `name_lister`, name by name, some of them several times."""
    listed: dict[Words, list[tuple[str, int]]] = {}
    lengths: dict[str, set[int]] = {}
    for name in names:
        for words, comma in _patterns(name):
            listed.setdefault(words, []).append((name, comma))
            lengths.setdefault(words[0], set()).add(len(words))
    firsts = lengths.keys()
    # Bytes are faster to search, but do not show which words numbers are next to.
    letters_first = not any(map(str.isdigit, firsts))
    firsts_bytes = {first.encode() for first in firsts}

    def among(folded: str) -> list[str]:
        """Split into words; gives none if no name begins with one of them."""
        if letters_first and folded.isascii():
            if firsts_bytes.isdisjoint(folded.encode().translate(_LETTERS_ALONE).split()):
                return []
        words = _words(folded)
        return [] if firsts.isdisjoint(words) else words

    def found(caption: str) -> Iterator[str]:
        plain = _is_plain(caption)
        for folded in (caption.lower(),) if plain else map(_folded, _readings(caption)):
            words = among(folded)
            for i, word in enumerate(words):
                for length in lengths.get(word, ()):
                    for name, comma in listed.get(tuple(words[i : i + length]), ()):
                        if not comma or _comma_before(folded, i + comma):
                            yield name

    return found


def _comma_before(folded: str, number: int) -> bool:
    """Whether only a comma and spaces stand before this word."""
    bounds = [match.span() for match in _WORD.finditer(folded)]
    return folded[bounds[number - 1][1] : bounds[number][0]].strip() == ","


def shortened(text: str) -> str:
    """Shorten a text for a message."""
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def some(names: Iterable[str], limit: int = 4) -> str:
    """Name the first few, and count the others."""
    names = list(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(f"`{name}`" for name in names[:limit]) + rest
