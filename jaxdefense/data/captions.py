"""Clean captions: read, freed of listed names, tokenised once.

The tokens lie in one flat array, with the bounds of every word, so that any word of any caption
can be cut out and another put in its place without text ever being touched again. Those of a large
file lie on disk, mapped into memory: however many there are, they take no more of it.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from jaxdefense.clip.ragged import Ragged, joined
from jaxdefense.clip.tokenizer import Tokenizer
from jaxdefense.data.sources import TFDS_PREFIX, tfds_captions
from jaxdefense.run_directory import cache_directory

_WORD = re.compile(r"\w+")
_CHUNK = 50_000  # captions worked on at a time
_MAPPED = 16 * 2**20  # bytes of a captions file, some 300,000 lines, from which tokens are kept
_LAYOUT = "1"  # of the kept files


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


@dataclasses.dataclass(frozen=True)
class CleanCaptions:
    """Captions to train on.

    Fields:
        captions: those without a listed name.
        dropped: how many others there were.
        sha256: of the texts, one a line.
    """

    captions: Captions
    dropped: int
    sha256: str


def read_lines(path: str | Path, what: str) -> list[str]:
    """Read the lines of a UTF-8 file that hold anything, stripped.

    Raises:
        ValueError: no such file, or not UTF-8: says on which line.
    """
    return list(_lines(path, what))


def _lines(
    path: str | Path, what: str, read: Callable[[int], object] = lambda size: None
) -> Iterator[str]:
    """Give the lines one after the other; `read` is told the bytes of each."""
    number = 0
    try:
        with open(path, "rb") as file:
            for data in file:
                read(len(data))
                for line in data.splitlines():  # it may end in a lone carriage return too
                    number += 1
                    if text := line.decode("utf-8-sig" if number == 1 else "utf-8").strip():
                        yield text
    except FileNotFoundError:
        raise ValueError(f"{what} file `{path}` does not exist.") from None
    except UnicodeDecodeError:
        raise ValueError(
            f"{what} file `{path}`, line {number} is not UTF-8; save the file as UTF-8."
        ) from None
    except OSError as error:
        raise ValueError(f"{what} file `{path}` cannot be read: {error.strerror}.") from error


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
        raise _none_left(source, len(texts))
    return clean, len(texts) - len(clean)


def _none_left(source: str, num: int) -> ValueError:
    return ValueError(
        f"captions `{source}`: all {num} hold a listed name, none is left; give captions that "
        "name other things too."
    )


def read_training_captions(
    source: str, tfds_dir: str, names: Iterable[str], tokenizer: Tokenizer, console: Console
) -> CleanCaptions:
    """Read captions, drop those with a listed name, and tokenise the others.

    Of a large file this is done once: the tokens are kept in ~/.cache/jaxdefense/captions by
    contents of the file, tokenizer and names, for this run and later ones to map.

    Raises:
        ValueError: none is left, or the source cannot be read.
        OSError: the tokens could not be kept.
    """
    names = sorted(set(names))
    if source.startswith(TFDS_PREFIX) or not _is_large(source):
        texts, dropped = read_clean_captions(source, tfds_dir, names)
        sha256 = hashlib.sha256("\n".join(texts).encode()).hexdigest()
        return CleanCaptions(tokenize_captions(texts, tokenizer), dropped, sha256)
    with open(source, "rb") as file:
        contents = hashlib.file_digest(file, "sha256").hexdigest()
    made_of = [_LAYOUT, contents, tokenizer.digest(), *names]
    kept = cache_directory() / "captions" / hashlib.sha256("\n".join(made_of).encode()).hexdigest()
    if not kept.is_dir():
        _keep(source, names, tokenizer, kept, console)
    return _kept(kept)


def _is_large(source: str) -> bool:
    try:
        return os.stat(source).st_size >= _MAPPED
    except OSError:  # said by who reads it
        return False


def _keep(
    source: str, names: Sequence[str], tokenizer: Tokenizer, kept: Path, console: Console
) -> None:
    """Write a directory of tokens in one step; of two that do, one is in time."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{kept.name[:8]}.", dir=kept.parent))
    num = left = num_tokens = num_words = 0
    sha256 = hashlib.sha256()
    console.print(f"tokenising {source}: {os.stat(source).st_size >> 20} MiB, once")
    try:
        with (
            Progress(console=console, disable=not console.is_terminal) as progress,
            open(made / "tokens", "wb") as tokens,
            open(made / "word_ends", "wb") as word_ends,
            open(made / "caption_ends", "wb") as caption_ends,
        ):
            task = progress.add_task("tokenising captions", total=os.stat(source).st_size)
            for ends in (word_ends, caption_ends):
                ends.write(np.int64(0).tobytes())
            lines = _lines(source, "captions", lambda size: progress.advance(task, size))
            while chunk := list(itertools.islice(lines, _CHUNK)):
                texts = without_names(chunk, names)
                num += len(chunk)
                if not texts:
                    continue
                sha256.update(("\n" * bool(left) + "\n".join(texts)).encode())
                new = tokenize_captions(texts, tokenizer)
                tokens.write(new.tokens.tobytes())
                word_ends.write((new.word_ends[1:] + num_tokens).tobytes())
                caption_ends.write((new.caption_ends[1:] + num_words).tobytes())
                left += len(texts)
                num_tokens += len(new.tokens)
                num_words += len(new.word_ends) - 1
        if not left:
            raise _none_left(source, num)
        about = {
            "dropped": num - left,
            "sha256": sha256.hexdigest(),
            "dtype": tokenizer.token_dtype.name,
        }
        (made / "about.json").write_text(json.dumps(about))
        for path in made.iterdir():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
        try:
            made.rename(kept)
        except OSError:
            if not kept.is_dir():  # else another process was first, with the same
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _kept(directory: Path) -> CleanCaptions:
    about = json.loads((directory / "about.json").read_text())

    def mapped(name: str, dtype: str) -> np.ndarray:
        return np.memmap(directory / name, dtype, mode="r")

    captions = Captions(
        mapped("tokens", about["dtype"]),
        mapped("word_ends", "int64"),
        mapped("caption_ends", "int64"),
    )
    return CleanCaptions(captions, about["dropped"], about["sha256"])


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
    flat = np.concatenate([np.empty(0, np.int32), *vocabulary]).astype(tokenizer.token_dtype)
    first = np.concatenate([[0], np.cumsum(sizes)])[words_n]
    offset = np.arange(word_ends[-1]) - np.repeat(word_ends[:-1], sizes[words_n])
    tokens = flat[np.repeat(first, sizes[words_n]) + offset]
    return Captions(tokens, word_ends, caption_ends)
