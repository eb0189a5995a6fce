"""A model's tokenizer, word by word.

CLIP's byte-pair encoding never crosses white space: the tokens of a text are those of its words,
one after the other. So each distinct word is encoded once, and texts are joined from words.

Other tokenizers (SigLIP's SentencePiece, RoBERTa's) mark the space before a word in its first
piece. There the first word of a text may have other tokens than the same word further on. Loading
finds out which kind a tokenizer is, and which characters it counts as white space.

The rule: a text joined from words has the same tokens as the whole text in the model's own library
(`library`). Loading compares some hundred texts with the library. Later, names, targets, prompts
and some captions are compared. A difference is an error that shows the text and both token lists.

Parity: tests/test_tokenizer.py, tests/test_siglip_data.py: equal to the library on any text, or
refused.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxdefense.clip.library import SPACE, OpenClip, load_library
from jaxdefense.clip.probes import TEXTS, WORDS
from jaxdefense.clip.ragged import Ragged, joined, ragged
from jaxdefense.errors import InputError

_ANCHOR = "a"  # any word that has tokens
_REMEMBERED = 2**18  # most words kept, some 80 MB; a fuller memory is cleared before more are added
# So many first texts are all compared with the library; of later ones, one in this many.
_COMPARED, _THEN = 2**15, 64
_PYTHONS_WHITE = [chr(i) for i in range(0x3001) if chr(i).isspace()]
_CROSSING = re.compile(rf"[^\s{SPACE}\u0120][\s{SPACE}\u0120]")  # \u0120: byte-level BPE's space


class Phrase(NamedTuple):
    """The tokens of a phrase, int32, without begin and end of text.

    Fields:
        first: if the phrase begins a text.
        later: if the phrase follows other words.
    """

    first: np.ndarray
    later: np.ndarray

    @property
    def size(self) -> int:
        """Give the larger number of tokens of the two."""
        return max(self.first.size, self.later.size)


class Tokenizer:
    """Encodes words and texts; remembers the words it has seen, up to a limit."""

    def __init__(
        self,
        directory: str | Path,
        context_length: int,
        padded: bool = False,
        reading: OpenClip | None = None,
    ):
        """Load from a model directory.

        Args:
            directory: holds `tokenizer.json`, or CLIP's `vocab.json` and `merges.txt`.
            context_length: T, the longest text in tokens, including begin and end of text.
            padded: whether every text is padded to the context, as SigLIP's are.
            reading: what OpenCLIP's config says about texts; None for Hugging Face's layout.

        Raises:
            InputError: the directory holds no tokenizer that can be read, or the tokens of a text
                are not those of its words.
        """
        self._directory = directory = Path(directory)
        self._library = library = load_library(directory, padded, reading)
        self.context_length, self.padded = context_length, padded
        try:
            begin, end = library.ends(_ANCHOR)
            content, twice = library.content([_ANCHOR, f"{_ANCHOR} {_ANCHOR}"])
            between = library.content([f"{_ANCHOR}{c}{_ANCHOR}" for c in _PYTHONS_WHITE])
        except Exception as error:  # the library raises bare Exception if it cannot encode
            raise InputError(f"`{directory}`: its tokenizer cannot be read: {error}.") from error
        self.vocab_size = max(library.vocabulary.values()) + 1
        self.bos, self.pad = library.bos, library.pad
        if not end:
            raise InputError(
                f"`{directory}`: its tokenizer puts no token after a text, but the text is read "
                "out there; give the model's own, with the `post_processor` of its tokenizer.json."
            )
        self.eos = end[-1]
        self._begin, self._end = np.array(begin, np.int32), np.array(end, np.int32)
        self.room = context_length - self._begin.size - self._end.size  # most tokens of a text
        self._most = self.room if library.none_vanishes else None  # most words that a text may need
        pairs = zip(_PYTHONS_WHITE, between, strict=True)
        white = "".join(re.escape(c) for c, tokens in pairs if tokens == twice)
        self._white = re.compile(f"[{white}]+")
        # If a word has other tokens after another word, words are encoded for each place.
        self._anchor = content if twice != content * 2 else []
        self._first: dict[str, np.ndarray] = {}
        self._later: dict[str, np.ndarray] = {} if self._anchor else self._first
        self._num_compared = 0
        if padded and self.pad is None:
            raise InputError(
                f"`{directory}`: its tokenizer must pad with a `pad_token`, as SigLIP was trained; "
                "set it in tokenizer_config.json."
            )
        self._probe()

    def _probe(self) -> None:
        """Raise InputError if any of the probe texts cannot be joined from words."""
        words, spaces = [*WORDS, *self._library.added], f"{SPACE}\u0120"
        # The vocabulary shows pieces that cross words, so the probes need not contain them.
        pieces = filter(_CROSSING.search, self._library.vocabulary)
        words += (re.sub(f"[{spaces}]", " ", piece) for piece in pieces)
        # Words are also probed between others: a piece that begins with a space occurs only there.
        pairs = zip(words, words[1:], strict=False)
        self.check(
            [
                *TEXTS,
                *words,
                *(f"{_ANCHOR} {word} {_ANCHOR}" for word in words),
                *(f"{word} {other}" for word, other in pairs),
                " ".join(WORDS),
            ]
        )
        self.check_phrases(WORDS[:20])

    def check(self, texts: Iterable[str]) -> None:
        """Compare texts joined from words with the library's tokens of the whole texts.

        Raises:
            InputError: a text differs; the message shows it and both token lists.
        """
        texts = list(dict.fromkeys(texts))
        self._compare(texts, self._joined(texts))

    def check_phrases(self, phrases: Iterable[str]) -> None:
        """Compare phrases as in `check`, alone and between other words."""
        phrases = list(dict.fromkeys(phrases))
        first, later = (self.encode_phrase(_ANCHOR, first) for first in (True, False))
        found = [self.phrase(phrase) for phrase in phrases]
        alone = [phrase.first for phrase in found]
        within = [np.concatenate([first, phrase.later, later]) for phrase in found]
        texts = [*phrases, *(f"{_ANCHOR} {phrase} {_ANCHOR}" for phrase in phrases)]
        self._compare(texts, self.with_ends(ragged([*alone, *within])).split())

    def _compare(self, texts: Sequence[str], ours: Sequence[np.ndarray]) -> None:
        whole = self._library.whole(texts, self.context_length)
        for text, tokens, theirs in zip(texts, ours, whole, strict=True):
            if tokens.tolist() != theirs:
                raise self._differs(text, f"{_shown(theirs)}, {_shown(tokens.tolist())}")

    def _differs(self, text: str, tokens: str) -> InputError:
        shown = text if len(text) <= 60 else text[:57] + "..."
        return InputError(
            f"`{self._directory}`: its tokenizer ({self._library.name}) does not keep to words, so "
            f"no word can be replaced by a name: {shown!r} is {tokens} joined from words; give a "
            "tokenizer that does, like CLIP's or SigLIP's."
        )

    @property
    def token_dtype(self) -> np.dtype:
        """Give the smallest dtype that holds every token: uint16 or int32."""
        return np.dtype(np.uint16 if self.vocab_size <= 2**16 else np.int32)

    def digest(self) -> str:
        """Hash all that the tokens depend on: vocabulary, merges, cleaning, context; in hex."""
        about = f"{self._library.describe()}\n{self._white.pattern}\n{self.context_length}"
        return hashlib.sha256(f"{about}\n{self.padded}".encode()).hexdigest()

    def clean(self, text: str) -> str:
        """Clean a raw text as the library does before encoding."""
        return self._library.clean(text)

    def split(self, text: str) -> list[str]:
        """Clean a text and split it into words; keep about as many words as the context holds.

        Raises:
            InputError: the text is not Unicode.
        """
        text = self.clean(text)
        if text.isprintable():  # its only white space is " "
            return text.split()[: self._most]
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"{text!r} is no Unicode text (such as a file name that is not UTF-8); rewrite it."
            ) from None
        return [word for word in self._white.split(text) if word][: self._most]

    def encode_words(self, words: Iterable[str], first: bool = False) -> list[np.ndarray]:
        """Encode words; none may contain white space.

        Args:
            words: as `split` gives them.
            first: whether the words begin a text rather than follow other words.

        Returns:
            int32 [num_tokens] for each, without begin and end of text.

        Raises:
            InputError: a word changes the tokens of the word before it; or words are encoded for
                each place and a word has no token.
        """
        words = list(words)
        known = self._first if first else self._later
        anchor = self._anchor if known is self._later else []
        if len(known) > _REMEMBERED:
            known.clear()
        if new := [word for word in dict.fromkeys(words) if word not in known]:
            texts = [f"{_ANCHOR} {word}" for word in new] if anchor else new
            for word, tokens in zip(new, self._library.content(texts), strict=True):
                before, own = tokens[: len(anchor)], tokens[len(anchor) :]
                if before != anchor:
                    raise self._differs(f"{_ANCHOR} {word}", f"{tokens}, {anchor} and more")
                if self._anchor and not own:
                    raise InputError(
                        f"`{self._directory}`: its tokenizer has no token for {word!r} by "
                        "itself, so it is unclear whether the next word is the first of a text; "
                        "give another word."
                    )
                known[word] = np.array(own, np.int32)
        return [known[word] for word in words]

    def encode_phrase(self, phrase: str, first: bool = True) -> np.ndarray:
        """Encode words separated by white space; int32 [num_tokens], no begin or end of text."""
        return np.concatenate([np.empty(0, np.int32), *self._encode(self.split(phrase), first)])

    def phrase(self, phrase: str) -> Phrase:
        """Encode words for both places that they may have in a text."""
        return Phrase(self.encode_phrase(phrase), self.encode_phrase(phrase, first=False))

    def _encode(self, words: Sequence[str], first: bool = True) -> list[np.ndarray]:
        return self.encode_words(words[:1], first) + self.encode_words(words[1:])

    def encode(self, texts: Iterable[str]) -> list[np.ndarray]:
        """Encode texts with begin and end of text, cut to the context length.

        The first 32,768 texts that a tokenizer encodes are compared with the library, then one in
        64. Comparing all of a million candidates would take too long.

        Returns:
            int32 [num_tokens <= T] for each; [T] if `padded`.

        Raises:
            InputError: a text differs; see `check`.
        """
        texts = list(texts)
        out = self._joined(texts)
        rest = max(0, _COMPARED - self._num_compared)
        which = [*range(min(rest, len(texts))), *range(rest, len(texts), _THEN)]
        self._num_compared += len(which)
        self._compare([texts[i] for i in which], [out[i] for i in which])
        return out

    def _joined(self, texts: Sequence[str]) -> list[np.ndarray]:
        split = [self.split(text) for text in texts]
        self.encode_words(dict.fromkeys(word for words in split for word in words[1:]))
        self.encode_words(dict.fromkeys(word for words in split for word in words[:1]), first=True)
        contents = [np.concatenate([np.empty(0, np.int32), *self._encode(x)]) for x in split]
        return self.with_ends(ragged(contents)).split()

    def with_ends(self, content: Ragged) -> Ragged:
        """Cut texts to the context, add begin and end of text, and pad them if `padded`.

        Args:
            content: int32, texts without begin and end of text.
        """
        n, begin, end = len(content.lengths), self._begin, self._end
        sizes = np.minimum(content.lengths, self.room)
        starts = np.cumsum(content.lengths) - content.lengths
        nothing = np.zeros(n, np.int64)
        padding = (self.room - sizes) * self.padded
        return joined(
            [
                (begin, nothing, nothing + begin.size),
                (content.flat, starts, sizes),
                (end, nothing, nothing + end.size),
                (np.full(self.room, self.pad or 0, np.int32), nothing, padding),
            ]
        )


def _shown(tokens: list[int]) -> str:
    return str(tokens) if len(tokens) <= 12 else f"[{', '.join(map(str, tokens[:12]))}, ...]"
