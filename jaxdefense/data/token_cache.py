"""Captions to train on, tokenised once; the tokens of a large file are kept on disk and mapped.

Mapped tokens take the same memory however many there are.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path

import numpy as np

from jaxdefense.clip.tokenizer import Tokenizer
from jaxdefense.data.captions import (
    NUM_EXAMPLES,
    CaptionFiles,
    Captions,
    none_left,
    read_clean_captions,
    tokenize_captions,
)
from jaxdefense.data.sources import TFDS_PREFIX
from jaxdefense.errors import InputError
from jaxdefense.files import cache_directory, digest, locked, unpacked, write_arrays
from jaxdefense.log import Progress
from jaxdefense.paths import check_writable
from jaxdefense.words import name_finder, shortened

logger = logging.getLogger(__name__)

_CHUNK = 50_000  # captions worked on at a time
_MAPPED = 16 * 2**20  # bytes of a captions file, some 300,000 lines, from which tokens are kept
_LAYOUT = "3"  # of the kept files, and how names are found
_KEPT = 4  # files whose tokens are kept, those used last
_DAY = 24 * 60 * 60  # seconds


@dataclasses.dataclass(frozen=True)
class CleanCaptions:
    """Captions to train on.

    Fields:
        captions: those without a listed name.
        dropped: how many others there were.
        examples: the first of those, shortened.
        sha256: identifies them: hash of the texts, one a line; of large files, hash of their
            contents and of which captions were dropped.
    """

    captions: Captions
    dropped: int
    examples: tuple[str, ...]
    sha256: str


def read_training_captions(
    source: str, tfds_dir: str, names: Iterable[str], tokenizer: Tokenizer
) -> CleanCaptions:
    """Read captions, drop those with a listed name, and tokenise the others.

    Tokenises files of 16 MiB or more once per tokenizer, captions with names too.
    ~/.cache/jaxdefense/captions keeps the tokens of the last four sources, by contents and
    tokenizer, for runs to map. It also keeps which captions hold a name, by list of names.

    Raises:
        InputError: none is left, or the source cannot be read.
        OSError: the tokens could not be kept.
    """
    names = sorted(set(names))
    files = None if source.startswith(TFDS_PREFIX) else CaptionFiles(source)
    if files is None or files.size < _MAPPED:
        texts, dropped = read_clean_captions(source, tfds_dir, names)
        examples = tuple(map(shortened, dropped[:NUM_EXAMPLES]))
        captions = tokenize_captions(texts, tokenizer)
        return CleanCaptions(captions, len(dropped), examples, digest(texts))
    state, contents = files.state(), _contents(files)
    kept = cache_directory() / "captions" / digest([_LAYOUT, contents, tokenizer.digest()])
    if not kept.is_dir():
        check_writable(kept.parent)
        kept.parent.mkdir(parents=True, exist_ok=True)
        waiting = f"another process is tokenising {source}: waiting for it"
        with locked(kept.with_suffix(".lock"), lambda: logger.info(waiting)):
            if not kept.is_dir():
                _tokenize(files, tokenizer, kept, state)
                _clear_old(kept.parent)
    with contextlib.suppress(OSError):  # it may lie where this run cannot write
        os.utime(kept)
    arrays = _arrays(tokenizer)
    captions = Captions(*(np.memmap(kept / name, arrays[name], mode="r") for name in arrays))
    dropped, examples = _dropped(files, names, kept, state, len(captions))
    sha256 = hashlib.sha256(contents.encode() + dropped.tobytes()).hexdigest()
    captions = dataclasses.replace(captions, before=dropped - np.arange(len(dropped)))
    return CleanCaptions(captions, len(dropped), examples, sha256)


def _contents(files: CaptionFiles) -> str:
    """Hash the bytes of a file of plain text, and otherwise the captions; SHA-256, in hex."""
    if files.is_plain():
        with unpacked(files.files[0], f"captions file `{files.source}`") as file:
            return hashlib.file_digest(file.data, "sha256").hexdigest()
    hashed = hashlib.sha256()
    with contextlib.closing(_chunks(files, f"hashing {files.source}")) as chunks:
        for texts in chunks:
            hashed.update("".join(f"{text}\n" for text in texts).encode())
    return hashed.hexdigest()


def _check_unchanged(files: CaptionFiles, state: list[tuple[int, int]]) -> None:
    """Raise InputError if a file changed since it was hashed."""
    if files.state() != state:
        raise InputError(f"captions `{files.source}` changed while they were read; run again.")


def _arrays(tokenizer: Tokenizer) -> dict[str, np.dtype]:
    """List the arrays kept of a file, in the order `Captions` takes them."""
    ends = np.dtype(np.int64)
    return {"tokens": tokenizer.token_dtype, "word_ends": ends, "caption_ends": ends}


def _tokenize(
    files: CaptionFiles, tokenizer: Tokenizer, kept: Path, state: list[tuple[int, int]]
) -> None:
    """Write a directory of tokens in one step."""
    made = kept.with_name(f".{kept.name[:8]}.{uuid.uuid4().hex[:8]}")
    made.mkdir()
    num_tokens = num_words = 0
    try:
        with contextlib.ExitStack() as stack:
            tokens, word_ends, caption_ends = (
                stack.enter_context(open(made / name, "wb")) for name in _arrays(tokenizer)
            )
            for ends in (word_ends, caption_ends):
                ends.write(np.int64(0).tobytes())
            chunks = _chunks(files, f"tokenising {files.source}, once")
            stack.enter_context(contextlib.closing(chunks))
            for texts in chunks:
                new = tokenize_captions(texts, tokenizer)
                tokens.write(new.tokens.tobytes())
                word_ends.write((new.word_ends[1:] + num_tokens).tobytes())
                caption_ends.write((new.caption_ends[1:] + num_words).tobytes())
                num_tokens += len(new.tokens)
                num_words += len(new.word_ends) - 1
        for path in made.iterdir():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
        _check_unchanged(files, state)
        os.utime(made)  # used now, however long ago it was begun
        try:
            made.rename(kept)
        except OSError:
            if not kept.is_dir():  # else another was first, as no lock holds here
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _clear_old(directory: Path) -> None:
    """Remove the tokens used longest ago; a process that has mapped them keeps them."""
    used, old = list[tuple[float, Path]](), list[Path]()
    for path in directory.iterdir():
        with contextlib.suppress(OSError):  # another process may be doing the same
            if path.name.startswith("."):  # being written, or left by an interrupted process
                if max(x.stat().st_mtime for x in (path, *path.iterdir())) < time.time() - _DAY:
                    old.append(path)
            elif path.is_dir():
                used.append((path.stat().st_mtime, path))
    old += [path for _, path in sorted(used)[:-_KEPT]]
    # Renamed first, so that nobody finds a half-removed directory.
    with tempfile.TemporaryDirectory(prefix=".", dir=directory, ignore_cleanup_errors=True) as gone:
        for path in old:
            with contextlib.suppress(OSError):
                path.rename(Path(gone) / path.name)
                path.with_suffix(".lock").unlink(missing_ok=True)


def _dropped(
    files: CaptionFiles,
    names: Sequence[str],
    kept: Path,
    state: list[tuple[int, int]],
    num: int,
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
    for texts in _chunks(files, f"looking for names in {files.source}"):
        new = [i for i, text in enumerate(texts) if holds(text)]
        found += (start + i for i in new)
        examples += (shortened(texts[i]) for i in new[: NUM_EXAMPLES - len(examples)])
        start += len(texts)
    if len(found) == num:
        raise none_left(files.source, num)
    dropped = np.array(found, np.int64)
    _check_unchanged(files, state)
    with contextlib.suppress(OSError):  # see above
        write_arrays(file, numbers=dropped, examples=np.array(examples, str))
    return dropped, tuple(examples)


def _chunks(files: CaptionFiles, doing: str) -> Generator[list[str]]:
    """Give captions, many at a time, and show how far it is."""
    texts = iter(files)
    with Progress(doing, files.size / 2**20, unit="MiB") as progress:
        while chunk := list(itertools.islice(texts, _CHUNK)):
            yield chunk
            progress.update(files.far() / 2**20)
