"""The tokenizers of CLIP and SigLIP, word by word.

CLIP's byte-pair encoding never crosses white space: the tokens of a text are those of its words,
one after the other. So each distinct word is encoded once, and texts are joined from words.

SigLIP's (SentencePiece; SigLIP 2: Gemma's) mark the space before a word as `▁` in its first piece,
so there the first word of a text may have other tokens than the same word further on. Which kind
one is, and that its pieces keep to words, is found out when it is loaded.

Departures from the source, for SigLIP: texts are lower-cased as in training (transformers leaves
it to the caller for SigLIP 2), and white space counts as one space, whatever it is.

Parity: tests/test_tokenizer.py, equal to transformers' CLIPTokenizer on every caption;
tests/test_siglip.py, equal to encoding the whole text.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdefense.clip.ragged import Ragged, joined, ragged
from jaxdefense.errors import InputError

_ANCHOR = "a"  # any word that has tokens
_SPACE = "\u2581"  # SentencePiece's
_REMEMBERED = 2**18  # words, some 80 MB, before more are added
_CROSSING = re.compile(rf"[^\s{_SPACE}][\s{_SPACE}]")


class Phrase(NamedTuple):
    """A phrase in tokens, int32, without both ends.

    Fields:
        first: as a text begins with it.
        later: as it follows other words.
    """

    first: np.ndarray
    later: np.ndarray

    @property
    def size(self) -> int:
        """Tokens it takes at most."""
        return max(self.first.size, self.later.size)


class Tokenizer:
    """Encodes words and texts; remembers the words it has seen, until they are very many."""

    def __init__(self, directory: str | Path, context_length: int, padded: bool = False):
        """Load from a model directory.

        Args:
            directory: holds `tokenizer.json`, or CLIP's `vocab.json` and `merges.txt`.
            context_length: T, the longest text in tokens, both ends counted.
            padded: SigLIP's kind: every text is filled up to the context, as padding counts.

        Raises:
            InputError: the directory holds no tokenizer, or one that cannot be read; or its tokens
                cross white space.
        """
        directory = Path(directory)
        files = ("tokenizer.json",) if padded else ("tokenizer.json", "vocab.json")
        if not any((directory / file).exists() for file in files):
            raise InputError(
                f"`{directory}` holds no tokenizer ({' or '.join(files)}); copy it from the "
                "model's source."
            )
        import transformers  # takes a second: not for runs without text

        # SigLIP's own class would want sentencepiece; what it does is in the file.
        kind = transformers.PreTrainedTokenizerFast if padded else transformers.CLIPTokenizer
        try:
            hf: Any = kind.from_pretrained(str(directory), local_files_only=True)
            self._encode_batch = hf.backend_tokenizer.encode_batch
            self._describe = hf.backend_tokenizer.to_str
            whole, content = (self._ids(_ANCHOR, ends) for ends in (True, False))
        except Exception as error:  # the library raises bare Exception on a broken file
            raise InputError(f"`{directory}`: its tokenizer cannot be read: {error}.") from error
        self.bos, self.eos, self.pad = hf.bos_token_id, hf.eos_token_id, hf.pad_token_id
        self.vocab_size = len(hf)
        self.context_length, self.padded, self._directory = context_length, padded, directory
        starts = range(len(whole) - len(content) + 1)
        start = next((i for i in starts if whole[i : i + len(content)] == content), None)
        if not content or start is None:
            raise InputError(f"`{directory}`: its tokenizer does not encode {_ANCHOR!r}.")
        self._begin = np.array(whole[:start], np.int32)
        self._end = np.array(whole[start + len(content) :], np.int32)
        self.room = context_length - self._begin.size - self._end.size  # tokens of a text at most
        # Words are told apart by their place where a word that follows another differs from itself.
        twice = self._ids(f"{_ANCHOR} {_ANCHOR}")
        self._anchor = content if twice != content * 2 else []
        self._first: dict[str, np.ndarray] = {}
        self._later: dict[str, np.ndarray] = {} if self._anchor else self._first
        if padded:
            self._check_sentence_piece(hf)

    def _ids(self, text: str, ends: bool = False) -> list[int]:
        return self._encode_batch([text], add_special_tokens=ends)[0].ids

    def _check_sentence_piece(self, hf: Any) -> None:
        """Raise InputError if texts cannot be joined from words, or are not padded at the right."""
        if hf.padding_side != "right" or self.pad is None:
            raise InputError(
                f"`{self._directory}`: its tokenizer must pad on the right with a "
                "`pad_token`, as SigLIP was trained; set both in tokenizer_config.json."
            )
        pieces = filter(_CROSSING.search, hf.get_vocab())
        texts = [piece.replace(_SPACE, " ") for piece in pieces]
        for text in ["a photo of a cat", "cat - dog", "- cat", "cat -", *texts]:
            words = " ".join(self.split(text))
            joined = self.encode_phrase(words).tolist()
            # Within other words too: what begins with a space is a piece only there.
            if joined != self._ids(words) or (
                self.encode_phrase(f"{_ANCHOR} {words} {_ANCHOR}").tolist()
                != self._ids(f"{_ANCHOR} {words} {_ANCHOR}")
            ):
                raise self._crosses(words)

    def _crosses(self, words: str) -> InputError:
        return InputError(
            f"`{self._directory}`: its tokenizer has tokens across white space (see {words!r}), so "
            "that words cannot be replaced by names; no SigLIP comes with such a one."
        )

    @property
    def token_dtype(self) -> np.dtype:
        """The smallest that holds every token: uint16 or int32."""
        return np.dtype(np.uint16 if self.vocab_size <= 2**16 else np.int32)

    def digest(self) -> str:
        """Hash all that tokens hang on: vocabulary, merges, normalising, context; in hex."""
        about = f"{self._describe()}\n{self.context_length}\n{self.padded}"
        return hashlib.sha256(about.encode()).hexdigest()

    def split(self, text: str) -> list[str]:
        """Split a text into words, of a long one as many as the context may hold."""
        if not self.padded:
            return text.split()[: self.room]  # a word has at least one token
        return text.replace(_SPACE, " ").lower().split()  # one of symbols alone may have none

    def encode_words(self, words: Iterable[str], first: bool = False) -> list[np.ndarray]:
        """Encode words without white space in them.

        Args:
            words: as `split` gives them.
            first: as the first of a text rather than after others.

        Returns:
            int32 [num_tokens] for each, without begin and end of text.

        Raises:
            InputError: what follows a word changes its tokens, or the place of words matters and
                one has none.
        """
        words = list(words)
        known = self._first if first else self._later
        anchor = self._anchor if known is self._later else []
        if len(known) > _REMEMBERED:
            known.clear()
        if new := [word for word in dict.fromkeys(words) if word not in known]:
            texts = [f"{_ANCHOR} {word}" for word in new] if anchor else new
            encoded = self._encode_batch(texts, add_special_tokens=False)
            for word, tokens in zip(new, encoded, strict=True):
                before, own = tokens.ids[: len(anchor)], tokens.ids[len(anchor) :]
                if before != anchor:
                    raise self._crosses(word)
                if self._anchor and not own:
                    raise InputError(
                        f"`{self._directory}`: its tokenizer has no token for {word!r}, but others "
                        "for a word by its place; no SigLIP comes with such a one."
                    )
                known[word] = np.array(own, np.int32)
        return [known[word] for word in words]

    def encode_phrase(self, phrase: str, first: bool = True) -> np.ndarray:
        """Encode words separated by white space; int32 [num_tokens] without both ends."""
        return np.concatenate([np.empty(0, np.int32), *self._encode(self.split(phrase), first)])

    def phrase(self, phrase: str) -> Phrase:
        """Encode words for both places in a text they may take."""
        return Phrase(self.encode_phrase(phrase), self.encode_phrase(phrase, first=False))

    def _encode(self, words: Sequence[str], first: bool = True) -> list[np.ndarray]:
        return self.encode_words(words[:1], first) + self.encode_words(words[1:])

    def encode(self, texts: Iterable[str]) -> list[np.ndarray]:
        """Encode texts with begin and end of text, cut to the context length.

        Returns:
            int32 [num_tokens <= T] for each; [T] if `padded`.
        """
        split = [self.split(text) for text in texts]
        self.encode_words(dict.fromkeys(word for words in split for word in words[1:]))
        self.encode_words(dict.fromkeys(word for words in split for word in words[:1]), first=True)
        contents = [np.concatenate([np.empty(0, np.int32), *self._encode(x)]) for x in split]
        return self.with_ends(ragged(contents)).split()

    def with_ends(self, content: Ragged) -> Ragged:
        """Cut texts to the context, put begin and end of text around them, and pad if `padded`.

        Args:
            content: int32, texts without both ends.
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
