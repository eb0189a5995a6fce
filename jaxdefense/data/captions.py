"""Clean captions: read, freed of listed names, tokenised once.

One flat array holds the tokens, with the bounds of every word. So any word of any caption can be
replaced without tokenising again.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from jaxdefense.clip.ragged import Ragged, joined, ragged, ranges
from jaxdefense.clip.tokenizer import Tokenizer
from jaxdefense.data.forms import (
    CAPTION_COLUMNS,
    NAME_ONE,
    NAME_OR_NUMBER,
    TABLE,
    TEXT,
    Form,
    choose_column,
    files_of,
    form_of,
    split_column,
)
from jaxdefense.data.records import ROW, json_type, read_column
from jaxdefense.data.sources import TFDS_PREFIX, tfds_captions
from jaxdefense.errors import InputError
from jaxdefense.files import plain_lines, say_once, unpacked
from jaxdefense.words import name_finder, shortened, without_clutter

NUM_EXAMPLES = 3  # of captions that are dropped
_COMPARED = 256  # captions of those worked on at a time


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


class CaptionFiles:
    """The captions in files of any form, read one after another, as often as asked.

    Fields:
        files: paths.
        size: of all, bytes.
    """

    def __init__(self, source: str):
        """Find the files; `source` is as of `read_captions`.

        Raises:
            InputError: see `files_of`.
        """
        self._what = "captions"
        self.source = source
        pattern, self._column = split_column(source)
        self.files = files_of(pattern, self._what)
        self.size = sum(size for size, _ in self.state())
        self._before, self._open = 0, None

    def state(self) -> list[tuple[int, int]]:
        """Give size and time of the last change of each file, to notice writes meanwhile."""
        found = []
        for path in self.files:
            with contextlib.suppress(OSError):  # said by who reads it
                status = os.stat(path)
                found.append((status.st_size, status.st_mtime_ns))
        return found

    def far(self) -> int:
        """Say how many bytes were read, while the captions are."""
        return self._before + (self._open.far() if self._open else 0)

    def is_plain(self) -> bool:
        """Whether it is a single file of text that is not packed."""
        if len(self.files) > 1 or self._column:
            return False
        where = self._where(self.files[0])
        with unpacked(self.files[0], where) as file:
            return file.data is file.packed and form_of(self.files[0], where).name == TEXT

    def __iter__(self) -> Iterator[str]:
        """Give the captions.

        Raises:
            InputError: a file cannot be read, or holds something else; names it, and the row.
        """
        self._before = num = none = removed = 0
        for path in self.files:
            where = self._where(path)
            form = form_of(path, where)
            with unpacked(path, where) as self._open:
                if form.name == TEXT:
                    if self._column:
                        raise InputError(f"{where} is plain text, without columns; name none.")
                    for _, text in plain_lines(self._open, where):
                        num += 1
                        yield text
                else:
                    choose = functools.partial(self._choose, where, form)
                    tell = functools.partial(self._tell, form)
                    column = read_column(self._open, form, where, choose, self._column, tell)
                    for row, value in column:
                        at, texts = f"{where}, {ROW[form.name]} {row}", 0
                        for text, cut in caption_texts(value, at):
                            removed, texts, num = removed + cut, texts + 1, num + 1
                            yield text
                        none += not texts
                self._before += self._open.far()
                self._open = None
        if none:
            say_once(f"captions `{self.source}`: rows without a caption are skipped: {none}")
        if removed:
            say_once(f"captions `{self.source}`: {removed} invisible characters removed")
        if not num:
            raise InputError(f"captions `{self.source}`: holds no caption; give one a line.")

    def _where(self, path: str) -> str:
        return f"{self._what} file `{path}`"

    def _choose(self, where: str, form: Form, columns: Sequence[str]) -> str:
        remedy = NAME_OR_NUMBER if form.name == TABLE else NAME_ONE
        column = choose_column(columns, CAPTION_COLUMNS, self._column, where, self._what, remedy)
        self._tell(form, f"column `{column}`")
        return column

    def _tell(self, form: Form, what: str) -> None:
        say_once(f"captions `{self.source}`: read as {form}, {what}", logging.INFO)


def caption_texts(value: object, where: str) -> Iterator[tuple[str, int]]:
    """Give the captions in a value of a column, and how many invisible characters each held.

    Args:
        value: text, in UTF-8 if it is bytes; a list of such; or None, which gives none.
        where: it lies, for an error.

    Raises:
        InputError: it is something else.
    """
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, bytes):
            try:
                text = text.decode()
            except UnicodeDecodeError:
                raise InputError(f"{where} is not UTF-8; write it anew, or leave it out.") from None
        if text is None:
            continue
        if not isinstance(text, str):
            raise InputError(
                f"{where}: a caption is a JSON {json_type(text)}; must be a string, or a list of "
                "strings; name another column."
            )
        text, removed = without_clutter(text)
        if text := " ".join(text.split()):
            yield text, removed


def read_captions(source: str, tfds_dir: str = "") -> list[str]:
    """Read captions.

    Args:
        source: a file of any form that `forms` knows, a glob or a range of such, or
            `tfds:NAME[/CONFIG][:SPLIT]`.
        tfds_dir: see `sources.open_tfds`.

    Raises:
        InputError: the source is missing, unreadable or empty.
    """
    if not source.startswith(TFDS_PREFIX):
        return list(CaptionFiles(source))
    if not (captions := tfds_captions(source, tfds_dir)):
        raise InputError(f"captions `{source}`: holds no caption; give another split.")
    return captions


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
