"""Clean captions: read, freed of listed names, tokenised once.

One flat array holds the tokens, with the bounds of every word. So any word of any caption can be
replaced without tokenising again.
"""

import collections
import dataclasses
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from jaxdefense.clip.ragged import Ragged, joined, ragged, ranges
from jaxdefense.clip.tokenizer import Tokenizer
from jaxdefense.data.sources import TFDS_PREFIX, tfds_captions
from jaxdefense.errors import InputError
from jaxdefense.files import read_lines
from jaxdefense.words import folded_words, name_finder, shortened

NUM_EXAMPLES = 3  # of captions that are dropped
_COMPARED = 256  # captions of those worked on at a time

_COLUMNS = {
    "caption", "captions", "text", "texts", "comment", "sentence", "sentences", "title", "alt",
    "alt text", "description", "prompt", "raw", "label", "url", "image", "images", "image id",
    "image name", "image url", "imageid", "filename", "file name", "file", "filepath", "file path",
    "path", "id", "key", "index", "caption id", "caption number", "comment number", "split",
    "width", "height", "nsfw", "similarity", "hash", "img", "img id", "imgid", "license",
}  # fmt: skip
_OBJECT = re.compile(r'\{\s*"[^"]*"\s*:|\{$|\[\s*\{\s*"|\[$|\[\{$')
_LOOKED_AT = 100  # lines
_LONGEST_COLUMN = 3  # words of its name


@dataclasses.dataclass(frozen=True)
class Captions:
    """Tokenised captions.

    Fields:
        tokens: uint16 or int32 [num_tokens], content tokens of all captions, without begin and end
            of text; a caption longer than the context is cut to it.
        word_ends: int64 [num_words + 1], `tokens[word_ends[w]:word_ends[w + 1]]` is word w.
        caption_ends: int64 [num_kept + 1], the same for captions, in words.
        before: int64 [num_kept - num_captions]: for each stored caption that is skipped, in order,
            how many used captions come before it. Caption numbers count only the used ones.
    """

    tokens: np.ndarray
    word_ends: np.ndarray
    caption_ends: np.ndarray
    before: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.caption_ends) - 1 - len(self.before)

    def words(self, captions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Number the first word of each caption, and the one after its last.

        Args:
            captions: int [n], their numbers.
        """
        kept = captions + np.searchsorted(self.before, captions, side="right")
        return self.caption_ends[kept], self.caption_ends[kept + 1]

    def contents(self, captions: np.ndarray) -> Ragged:
        """Tokens of these captions without begin and end of text.

        Args:
            captions: int [n], their numbers.
        """
        starts, ends = (self.word_ends[word_n] for word_n in self.words(captions))
        return joined([(self.tokens, starts, ends - starts)])

    def some(self, captions: np.ndarray) -> "Captions":
        """Take captions out.

        Args:
            captions: int [n], their numbers.
        """
        first_n, last_n = self.words(captions)
        word_n = ranges(first_n, last_n - first_n)
        sizes = self.word_ends[word_n + 1] - self.word_ends[word_n]
        return Captions(self.contents(captions).flat, _ends(sizes), _ends(last_n - first_n))


def read_captions(source: str, tfds_dir: str = "") -> list[str]:
    """Read captions, one a line, or from `tfds:NAME[/CONFIG][:SPLIT]`.

    Raises:
        InputError: the source is missing, unreadable or empty.
    """
    if source.startswith(TFDS_PREFIX):
        captions = tfds_captions(source, tfds_dir)
    else:
        captions = read_lines(source, "captions")
        check_captions(captions, source)
    if not captions:
        raise holds_none(source)
    return captions


def check_captions(head: Sequence[str], path: str | Path) -> None:
    """Raise InputError if a file that begins with these lines is JSON or a table."""
    if kind := structure(head[:_LOOKED_AT]):
        raise InputError(
            f"captions file `{path}` is {kind}, and each of its lines would become a caption; give "
            "a text file with one caption a line and nothing else."
        )


def structure(head: Sequence[str]) -> str:
    """Name the format of these first lines if it is structured text; "" for plain captions."""
    if not head:
        return ""
    if kind := json_kind(head):
        return kind
    for delimiter, name in (("\t", "tab-separated"), (",", "CSV"), (";", "CSV"), ("|", "CSV")):
        fields = [" ".join(folded_words(field)) for field in head[0].split(delimiter)]
        known = [not field or field in _COLUMNS for field in fields]
        constant = len(head) > 1 and len({text.count(delimiter) for text in head}) == 1
        # Prose holds no tabs. It may hold a comma a line, but no names of columns in the first.
        if len(fields) > 1 and (
            all(known) or constant and (delimiter == "\t" or any(known) and _are_names(fields))
        ):
            return f"a table ({name})"
    return ""


def _are_names(fields: Sequence[str]) -> bool:
    return all(len(field.split()) <= _LONGEST_COLUMN for field in fields)


def json_kind(head: Sequence[str]) -> str:
    """Recognise JSON and JSON Lines by the first lines; "" if they are neither."""
    text = head[0]
    if not text.startswith(("{", "[")):
        return ""
    if not _OBJECT.match(text):
        try:  # a list of strings; a caption may well begin with a bracket
            found = json.loads(text)
        except (ValueError, RecursionError):
            return ""
        return "JSON" if any(isinstance(x, (str, list, dict)) for x in found) else ""
    return "JSON Lines" if len(head) > 1 and text.endswith("}") and head[1][0] == "{" else "JSON"


def read_clean_captions(
    source: str, tfds_dir: str, names: Iterable[str]
) -> tuple[list[str], list[str]]:
    """Read captions and drop those with a listed name.

    Returns:
        the clean captions, and those dropped.

    Raises:
        InputError: none is left, or the source cannot be read.
    """
    texts = read_captions(source, tfds_dir)
    holds = name_finder(names)
    clean, dropped = list[str](), list[str]()
    for text in texts:
        (dropped if holds(text) else clean).append(text)
    if not clean:
        raise none_left(source, len(texts))
    return clean, dropped


def describe_dropped(num: int, examples: Sequence[str]) -> str:
    """Say how many captions were dropped, and show the first."""
    shown = [repr(shortened(text)) for text in examples[:NUM_EXAMPLES]]
    return f"captions dropped, as they hold a listed name: {num}{': ' * bool(shown)}" + (
        ", ".join(shown) + ", ..." * (num > len(shown))
    )


def holds_none(source: str) -> InputError:
    """Make the error of a source that holds no caption."""
    return InputError(f"captions `{source}`: holds no caption; give one a line.")


def none_left(source: str, num: int) -> InputError:
    """Make the error of a source whose captions all hold a listed name."""
    return InputError(
        f"captions `{source}`: all {num} hold a listed name, none is left; give captions that "
        "name other things too."
    )


def without_names(captions: Iterable[str], names: Iterable[str]) -> list[str]:
    """Keep the captions that contain no listed name; see `name_finder`."""
    holds = name_finder(names)
    return [caption for caption in captions if not holds(caption)]


def tokenize_captions(texts: Sequence[str], tokenizer: Tokenizer) -> Captions:
    """Tokenise captions, each distinct word once.

    Raises:
        InputError: the model's own library gives one of the first captions other tokens.
    """
    tokenizer.check(texts[:_COMPARED])
    words, counts = list[str](), list[int]()
    for text in texts:  # keeping many small lists would slow the garbage collector
        words += (new := tokenizer.split(text))
        counts.append(len(new))
    caption_ends = _ends(np.array(counts, np.int64))
    # The dict numbers words in the order in which they come up.
    numbers: dict[str, int] = collections.defaultdict(itertools.count().__next__)
    word_n = np.fromiter(map(numbers.__getitem__, words), np.int64, len(words))
    first_n = np.zeros(len(words), bool)  # a word may have other tokens at the beginning
    first_n[caption_ends[:-1][np.diff(caption_ends) > 0]] = True

    words = list(numbers)
    vocabulary: list[np.ndarray] = []
    for first in (False, True):
        which = first_n == first
        used = np.flatnonzero(np.bincount(word_n[which]))
        place = np.zeros(len(words), np.int64)
        place[used] = np.arange(len(used)) + len(vocabulary)
        word_n[which] = place[word_n[which]]
        vocabulary += tokenizer.encode_words([words[i] for i in used.tolist()], first)
    flat, sizes = ragged(vocabulary)
    size_n = sizes[word_n]
    at = ranges((np.cumsum(sizes) - sizes)[word_n], size_n)
    return Captions(flat.astype(tokenizer.token_dtype)[at], _ends(size_n), caption_ends)


def join_captions(first: Captions, second: Captions) -> Captions:
    """Concatenate captions, none of which are skipped."""
    assert not len(first.before) and not len(second.before)
    return Captions(
        np.concatenate([first.tokens, second.tokens]),
        np.concatenate([first.word_ends, first.word_ends[-1] + second.word_ends[1:]]),
        np.concatenate([first.caption_ends, first.caption_ends[-1] + second.caption_ends[1:]]),
    )


def _ends(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)])
