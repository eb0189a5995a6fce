"""Clean captions: read, freed of listed names, tokenised once.

The tokens lie in one flat array, with the bounds of every word, so that any word of any caption
can be cut out and another put in its place without text ever being touched again. Those of a large
file lie on disk, mapped into memory: however many there are, they take no more of it.
"""

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from jaxdefense.clip.ragged import Ragged, joined, ragged, ranges
from jaxdefense.clip.tokenizer import Tokenizer
from jaxdefense.data.lines import check_captions, lines, read_lines
from jaxdefense.data.sources import TFDS_PREFIX, tfds_captions
from jaxdefense.data.words import name_finder, shortened
from jaxdefense.errors import InputError
from jaxdefense.paths import check_writable
from jaxdefense.run_directory import cache_directory, digest, locked, write_arrays

_CHUNK = 50_000  # captions worked on at a time
_MAPPED = 16 * 2**20  # bytes of a captions file, some 300,000 lines, from which tokens are kept
_LAYOUT = "3"  # of the kept files, and how names are found
_KEPT = 4  # files whose tokens are kept, those used last
_NUM_EXAMPLES = 3  # of captions that are dropped
_COMPARED = 256  # captions of those worked on at a time
_DAY = 24 * 60 * 60  # seconds


@dataclasses.dataclass(frozen=True)
class Captions:
    """Tokenised captions.

    Fields:
        tokens: uint16 or int32 [num_tokens], content tokens of all captions, without begin and end
            of text; a caption longer than the context is cut to it.
        word_ends: int64 [num_words + 1], `tokens[word_ends[w]:word_ends[w + 1]]` is word w.
        caption_ends: int64 [num_kept + 1], the same for captions, in words.
        before: int64 [num_kept - num_captions], of kept captions that do not count, in order: how
            many that do come before each. Numbers of captions are of those that count.
    """

    tokens: np.ndarray
    word_ends: np.ndarray
    caption_ends: np.ndarray
    before: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.caption_ends) - 1 - len(self.before)

    def words(self, captions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Give the number of the first word of each caption, and of the one after its last.

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


@dataclasses.dataclass(frozen=True)
class CleanCaptions:
    """Captions to train on.

    Fields:
        captions: those without a listed name.
        dropped: how many others there were.
        examples: the first of those, shortened.
        sha256: tells whether they are the same: of the texts, one a line; of a large file of its
            contents and which captions of it were dropped.
    """

    captions: Captions
    dropped: int
    examples: tuple[str, ...]
    sha256: str


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
        raise _empty(source)
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
        raise _none_left(source, len(texts))
    return clean, dropped


def describe_dropped(num: int, examples: Sequence[str]) -> str:
    """Say how many captions were dropped, and show the first, so that too many can be seen."""
    shown = [repr(shortened(text)) for text in examples[:_NUM_EXAMPLES]]
    return f"captions dropped, as they hold a listed name: {num}{': ' * bool(shown)}" + (
        ", ".join(shown) + ", ..." * (num > len(shown))
    )


def _empty(source: str) -> InputError:
    return InputError(f"captions `{source}`: holds no caption; give one a line.")


def _none_left(source: str, num: int) -> InputError:
    return InputError(
        f"captions `{source}`: all {num} hold a listed name, none is left; give captions that "
        "name other things too."
    )


def read_training_captions(
    source: str, tfds_dir: str, names: Iterable[str], tokenizer: Tokenizer, console: Console
) -> CleanCaptions:
    """Read captions, drop those with a listed name, and tokenise the others.

    A large file is tokenised once, names and all: the tokens are kept in
    ~/.cache/jaxdefense/captions by contents of the file and tokenizer, for this run and later ones
    to map, and with them which captions hold a name, by list of names.

    Raises:
        InputError: none is left, or the source cannot be read.
        OSError: the tokens could not be kept.
    """
    names = sorted(set(names))
    if source.startswith(TFDS_PREFIX) or not _is_large(source):
        texts, dropped = read_clean_captions(source, tfds_dir, names)
        examples = tuple(map(shortened, dropped[:_NUM_EXAMPLES]))
        captions = tokenize_captions(texts, tokenizer)
        return CleanCaptions(captions, len(dropped), examples, digest(texts))
    try:
        state = _state(source)
        with open(source, "rb") as file:
            contents = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"captions file `{source}` cannot be read: {error.strerror}.") from error
    kept = cache_directory() / "captions" / digest([_LAYOUT, contents, tokenizer.digest()])
    if not kept.is_dir():
        check_writable(kept.parent)
        kept.parent.mkdir(parents=True, exist_ok=True)
        waiting = f"another process is tokenising {source}: waiting for it"
        with locked(kept.with_suffix(".lock"), lambda: console.print(waiting, markup=False)):
            if not kept.is_dir():
                _tokenize(source, tokenizer, kept, state, console)
                _clear_old(kept.parent)
    with contextlib.suppress(OSError):  # it may lie where this run cannot write
        os.utime(kept)
    files = _files(tokenizer)
    captions = Captions(*(np.memmap(kept / name, files[name], mode="r") for name in files))
    dropped, examples = _dropped(source, names, kept, state, len(captions), console)
    sha256 = hashlib.sha256(contents.encode() + dropped.tobytes()).hexdigest()
    captions = dataclasses.replace(captions, before=dropped - np.arange(len(dropped)))
    return CleanCaptions(captions, len(dropped), examples, sha256)


def _is_large(source: str) -> bool:
    try:
        return os.stat(source).st_size >= _MAPPED
    except OSError:  # said by who reads it
        return False


def _state(source: str) -> tuple[int, int]:
    """Tell whether a file is being written meanwhile: its size, and when it was last."""
    found = os.stat(source)
    return found.st_size, found.st_mtime_ns


def _check_unchanged(source: str, state: tuple[int, int]) -> None:
    """Raise InputError if what was read may not be what was hashed."""
    if _state(source) != state:
        raise InputError(f"captions `{source}` changed while they were read; run again.")


def _files(tokenizer: Tokenizer) -> dict[str, np.dtype]:
    """List the arrays kept of a file, in the order `Captions` takes them."""
    ends = np.dtype(np.int64)
    return {"tokens": tokenizer.token_dtype, "word_ends": ends, "caption_ends": ends}


def _tokenize(
    source: str, tokenizer: Tokenizer, kept: Path, state: tuple[int, int], console: Console
) -> None:
    """Write a directory of tokens in one step."""
    made = kept.with_name(f".{kept.name[:8]}.{uuid.uuid4().hex[:8]}")
    made.mkdir()
    num = num_tokens = num_words = 0
    console.print(f"tokenising {source}: {os.stat(source).st_size >> 20} MiB, once", markup=False)
    try:
        with contextlib.ExitStack() as stack:
            tokens, word_ends, caption_ends = (
                stack.enter_context(open(made / name, "wb")) for name in _files(tokenizer)
            )
            for ends in (word_ends, caption_ends):
                ends.write(np.int64(0).tobytes())
            for texts in _chunks(source, "tokenising captions", console):
                if not num:
                    check_captions(texts, source)
                new = tokenize_captions(texts, tokenizer)
                tokens.write(new.tokens.tobytes())
                word_ends.write((new.word_ends[1:] + num_tokens).tobytes())
                caption_ends.write((new.caption_ends[1:] + num_words).tobytes())
                num += len(texts)
                num_tokens += len(new.tokens)
                num_words += len(new.word_ends) - 1
        if not num:
            raise _empty(source)
        for path in made.iterdir():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
        _check_unchanged(source, state)
        os.utime(made)  # used now, however long ago it was begun
        try:
            made.rename(kept)
        except OSError:
            if not kept.is_dir():  # else another process was first, where files cannot be locked
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _clear_old(directory: Path) -> None:
    """Remove the tokens used longest ago; a process that has them mapped goes on with them."""
    used, old = list[tuple[float, Path]](), list[Path]()
    for path in directory.iterdir():
        with contextlib.suppress(OSError):  # another process may be doing the same
            if path.name.startswith("."):  # being written, or broken off
                if max(x.stat().st_mtime for x in (path, *path.iterdir())) < time.time() - _DAY:
                    old.append(path)
            elif path.is_dir():
                used.append((path.stat().st_mtime, path))
    old += [path for _, path in sorted(used)[:-_KEPT]]
    # Out of sight in one step: none is found half removed.
    with tempfile.TemporaryDirectory(prefix=".", dir=directory, ignore_cleanup_errors=True) as gone:
        for path in old:
            with contextlib.suppress(OSError):
                path.rename(Path(gone) / path.name)
                path.with_suffix(".lock").unlink(missing_ok=True)


def _dropped(
    source: str,
    names: Sequence[str],
    kept: Path,
    state: tuple[int, int],
    num: int,
    console: Console,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Find the captions with a listed name, in the text or as found before.

    Returns:
        their numbers, int64, sorted; and the first of them, shortened.
    """
    file = kept / f"dropped-{digest(names)}.npz"
    if file.exists():
        with np.load(file, allow_pickle=False) as arrays:
            return arrays["numbers"], tuple(arrays["examples"].tolist())
    holds, start, found, examples = name_finder(names), 0, list[int](), list[str]()
    for texts in _chunks(source, "looking for names in captions", console):
        new = [i for i, text in enumerate(texts) if holds(text)]
        found += (start + i for i in new)
        examples += (shortened(texts[i]) for i in new[: _NUM_EXAMPLES - len(examples)])
        start += len(texts)
    if len(found) == num:
        raise _none_left(source, num)
    dropped = np.array(found, np.int64)
    _check_unchanged(source, state)
    with contextlib.suppress(OSError):  # see above
        write_arrays(file, numbers=dropped, examples=np.array(examples, str))
    return dropped, tuple(examples)


def _chunks(source: str, doing: str, console: Console) -> Iterator[list[str]]:
    """Give the lines of a captions file, many at a time, and show how far it is."""
    sizes: list[int] = []
    texts = lines(source, "captions", sizes.append)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(doing, total=os.stat(source).st_size)
        while chunk := list(itertools.islice(texts, _CHUNK)):
            yield chunk
            progress.advance(task, sum(sizes))
            sizes.clear()


def without_names(captions: Iterable[str], names: Iterable[str]) -> list[str]:
    """Keep the captions that contain no listed name; see `name_finder`."""
    holds = name_finder(names)
    return [caption for caption in captions if not holds(caption)]


def tokenize_captions(texts: Sequence[str], tokenizer: Tokenizer) -> Captions:
    """Tokenise captions, each distinct word once.

    Raises:
        InputError: one of the first has other tokens to the model's own library.
    """
    tokenizer.check(texts[:_COMPARED])
    words, counts = list[str](), list[int]()
    for text in texts:  # many small lists that stay would be looked through for garbage
        words += (new := tokenizer.split(text))
        counts.append(len(new))
    caption_ends = _ends(np.array(counts, np.int64))
    # Words are numbered as they come up: a dict that is asked for a new one counts on.
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
    """Join captions that all count, one after the other."""
    assert not len(first.before) and not len(second.before)
    return Captions(
        np.concatenate([first.tokens, second.tokens]),
        np.concatenate([first.word_ends, first.word_ends[-1] + second.word_ends[1:]]),
        np.concatenate([first.caption_ends, first.caption_ends[-1] + second.caption_ends[1:]]),
    )


def _ends(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)])
