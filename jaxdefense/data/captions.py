"""Clean captions: read, freed of listed names, tokenised once.

The tokens lie in one flat array, with the bounds of every word, so that any word of any caption
can be cut out and another put in its place without text ever being touched again.
"""

import dataclasses
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from jaxdefense.clip.ragged import Ragged, joined
from jaxdefense.clip.tokenizer import Tokenizer
from jaxdefense.data.sources import TFDS_PREFIX, tfds_captions

_WORD = re.compile(r"\w+")


@dataclasses.dataclass(frozen=True)
class Captions:
    """Tokenised captions.

    Fields:
        tokens: uint16 or int32 [num_tokens], content tokens of all captions, without begin and end
            of text; a caption longer than the context is cut to it.
        word_ends: int64 [num_words + 1], `tokens[word_ends[w]:word_ends[w + 1]]` is word w.
        caption_ends: int64 [num_captions + 1], the same for captions, in words.
    """

    tokens: np.ndarray
    word_ends: np.ndarray
    caption_ends: np.ndarray

    def __len__(self) -> int:
        return len(self.caption_ends) - 1

    def contents(self, captions: np.ndarray) -> Ragged:
        """Tokens of these captions without begin and end of text.

        Args:
            captions: int [n], their numbers.
        """
        starts = self.word_ends[self.caption_ends[captions]]
        ends = self.word_ends[self.caption_ends[captions + 1]]
        return joined([(self.tokens, starts, ends - starts)])


def read_lines(path: str | Path, what: str) -> list[str]:
    """Read the lines of a UTF-8 file that hold anything, stripped.

    Raises:
        ValueError: no such file, or not UTF-8: says on which line.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{what} file `{path}` does not exist.") from None
    except OSError as error:
        raise ValueError(f"{what} file `{path}` cannot be read: {error.strerror}.") from error
    lines = []
    for number, line in enumerate(data.splitlines(), 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError:
            raise ValueError(
                f"{what} file `{path}`, line {number} is not UTF-8; save the file as UTF-8."
            ) from None
        if text:
            lines.append(text)
    return lines


def read_captions(source: str, tfds_dir: str = "") -> list[str]:
    """Read captions, one a line, or from `tfds:NAME[/CONFIG][:SPLIT]`.

    Raises:
        ValueError: the source is missing, unreadable or empty.
    """
    if source.startswith(TFDS_PREFIX):
        captions = tfds_captions(source, tfds_dir)
    else:
        captions = read_lines(source, "captions")
    if not captions:
        raise ValueError(f"captions `{source}`: holds no caption; give one a line.")
    return captions


def read_clean_captions(source: str, tfds_dir: str, names: Iterable[str]) -> tuple[list[str], int]:
    """Read captions and drop those with a listed name.

    Returns:
        the clean captions, and how many were dropped.

    Raises:
        ValueError: none is left, or the source cannot be read.
    """
    texts = read_captions(source, tfds_dir)
    clean = without_names(texts, names)
    if not clean:
        raise ValueError(
            f"captions `{source}`: all {len(texts)} hold a listed name, none is left; give "
            "captions that name other things too."
        )
    return clean, len(texts) - len(clean)


def folded_words(text: str) -> tuple[str, ...]:
    """Split into words regardless of case and punctuation, for matching names."""
    return tuple(_WORD.findall(unicodedata.normalize("NFC", text).casefold()))


def without_names(captions: Iterable[str], names: Iterable[str]) -> list[str]:
    """Keep the captions that contain no listed name.

    A name matches whole words in any case. Looked up by its first word, so that the cost does not
    grow with the number of names.
    """
    by_first: dict[str, set[tuple[str, ...]]] = {}
    for name in names:
        if words := folded_words(name):
            by_first.setdefault(words[0], set()).add(words)

    def clean(caption: str) -> bool:
        words = folded_words(caption)
        return not any(
            words[i : i + len(name)] == name
            for i, word in enumerate(words)
            for name in by_first.get(word, ())
        )

    return [caption for caption in captions if clean(caption)]


def tokenize_captions(texts: Sequence[str], tokenizer: Tokenizer) -> Captions:
    """Tokenise captions, each distinct word once."""
    split = [tokenizer.split(text) for text in texts]
    later = dict.fromkeys(word for words in split for word in words[1:])
    first = dict.fromkeys(words[0] for words in split if words)
    vocabulary = tokenizer.encode_words(later) + tokenizer.encode_words(first, first=True)
    later = {word: i for i, word in enumerate(later)}
    first = {word: i for i, word in enumerate(first, len(later))}
    ids = [(later if i else first)[word] for words in split for i, word in enumerate(words)]
    sizes = np.array([len(tokens) for tokens in vocabulary], np.int64)
    words_n = np.array(ids, np.int64)

    counts = np.array([len(words) for words in split], np.int64)
    caption_ends = np.concatenate([[0], np.cumsum(counts)])
    word_ends = np.concatenate([[0], np.cumsum(sizes[words_n])])
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32
    flat = np.concatenate([np.empty(0, np.int32), *vocabulary]).astype(dtype)
    first = np.concatenate([[0], np.cumsum(sizes)])[words_n]
    offset = np.arange(word_ends[-1]) - np.repeat(word_ends[:-1], sizes[words_n])
    tokens = flat[np.repeat(first, sizes[words_n]) + offset]
    return Captions(tokens, word_ends, caption_ends)
