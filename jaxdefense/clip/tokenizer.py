"""CLIP's tokenizer, word by word.

CLIP's byte-pair encoding never crosses white space: the tokens of a text are those of its words,
one after the other. So each distinct word is encoded once, and texts are joined from words.

Parity: tests/test_tokenizer.py, equal to transformers' CLIPTokenizer on every caption.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import transformers


class Tokenizer:
    """Encodes words and texts; remembers every word it has seen."""

    def __init__(self, directory: str | Path, context_length: int):
        """Load from a model directory.

        Args:
            directory: holds `tokenizer.json`, or `vocab.json` and `merges.txt`.
            context_length: T, the longest text in tokens, both ends counted.

        Raises:
            ValueError: the directory holds no tokenizer, or one that cannot be read.
        """
        directory = Path(directory)
        files = ("tokenizer.json", "vocab.json")
        if not any((directory / file).exists() for file in files):
            raise ValueError(
                f"`{directory}` holds no tokenizer ({' or '.join(files)}); copy it from the "
                "model's source."
            )
        try:
            hf = transformers.CLIPTokenizer.from_pretrained(str(directory), local_files_only=True)
        except Exception as error:  # the library raises bare Exception on a broken file
            raise ValueError(f"`{directory}`: its tokenizer cannot be read: {error}.") from error
        self._encode_batch = hf.backend_tokenizer.encode_batch
        self.bos, self.eos, self.pad = hf.bos_token_id, hf.eos_token_id, hf.pad_token_id
        self.vocab_size = len(hf)
        self.context_length = context_length
        self._words: dict[str, np.ndarray] = {}

    def encode_words(self, words: Iterable[str]) -> list[np.ndarray]:
        """Encode words without white space in them.

        Returns:
            int32 [num_tokens] for each, without begin and end of text.
        """
        words = list(words)
        if new := [word for word in dict.fromkeys(words) if word not in self._words]:
            encoded = self._encode_batch(new, add_special_tokens=False)
            for word, tokens in zip(new, encoded, strict=True):
                self._words[word] = np.array(tokens.ids, np.int32)
        return [self._words[word] for word in words]

    def encode_phrase(self, phrase: str) -> np.ndarray:
        """Encode words separated by white space; int32 [num_tokens] without both ends."""
        parts = self.encode_words(phrase.split())
        return np.concatenate([np.empty(0, np.int32), *parts])

    def encode(self, texts: Iterable[str]) -> list[np.ndarray]:
        """Encode texts with begin and end of text, cut to the context length.

        Returns:
            int32 [num_tokens <= T] for each.
        """
        split = [text.split() for text in texts]
        self.encode_words(dict.fromkeys(word for words in split for word in words))
        room = self.context_length - 2  # a word has at least one token
        return [self.with_ends([self._words[w] for w in words[:room]]) for words in split]

    def with_ends(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Join tokens, cut them to the context, and put begin and end of text around them."""
        bos, eos = np.array([self.bos], np.int32), np.array([self.eos], np.int32)
        content = np.concatenate([bos, *parts])[: self.context_length - 1]
        return np.concatenate([content, eos]).astype(np.int32)
