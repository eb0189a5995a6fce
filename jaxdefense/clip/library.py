"""The tokenizer of a model's own library: that of transformers, or that of open_clip.

The model's files say which one. It encodes whole texts; `tokenizer` compares the texts that it
joins from words with the library's tokens.

Departures from the source, for SigLIP: texts are lower-cased as in training, which transformers
leaves to the caller for SigLIP 2. A run of any white space counts as one space. SigLIP's own class
would need sentencepiece; `tokenizer.json` holds the same tokenizer.

Source: transformers `AutoTokenizer`; open_clip `tokenizer.py` (SimpleTokenizer, HFTokenizer).
Parity: tests/test_tokenizer.py, live against both, every token equal.
"""

import hashlib
import html
import json
import re
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxdefense.errors import InputError

SPACE = "\u2581"  # SentencePiece's
_WHITE = re.compile(r"[^\S\x1c-\x1f]+")  # only Python counts these four as white space
# open_clip carries its own vocabulary. This is the hash of CLIP's tokens by id, one a line.
_CLIP_SIZE = 49408
_CLIP_SHA256 = "7cccc44d334555d1ff3c0ac5f0246b428fab2918383e77ee745cf30d41010b78"


class OpenClip(NamedTuple):
    """What an `open_clip_config.json` says about texts.

    Fields:
        clean: how a text is cleaned before it is encoded, a key of `CLEANINGS`.
        named: the transformers tokenizer whose files are in the directory; "" for open_clip's own
            tokenizer, which is CLIP's.
    """

    clean: str = "lower"
    named: str = ""


def _basic(text: str) -> str:
    if text.isascii() and text.isprintable() and "&" not in text:
        return text  # nothing to fix, and ftfy takes 100 times as long
    import ftfy  # takes a tenth of a second, which runs without such texts save

    return html.unescape(html.unescape(ftfy.fix_text(text)))


def _spaced(text: str) -> str:
    return " ".join(_basic(text).split())


def _lower(text: str) -> str:
    return _spaced(text).lower()


_NO_PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))


def _canonical(text: str) -> str:
    return " ".join(_basic(text).translate(_NO_PUNCTUATION).lower().split())


CLEANINGS = {"lower": _lower, "whitespace": _spaced, "canonicalize": _canonical}


def _as_is(text: str) -> str:
    return text


def _siglip(text: str) -> str:
    return " ".join(filter(None, _WHITE.split(text.replace(SPACE, " ").lower())))


class Transformers:
    """The transformers tokenizer that the files of a directory name."""

    def __init__(self, directory: Path, padded: bool, clean: Callable[[str], str] | None = None):
        """Load the tokenizer, without any state that an earlier call left in its files.

        Args:
            directory: holds the tokenizer's files.
            padded: whether texts are padded to the context.
            clean: cleans a text before it is encoded; None for SigLIP's cleaning if `padded`, and
                for no cleaning otherwise.

        Raises:
            InputError: see `Tokenizer`.
        """
        self.clean = clean or (_siglip if padded else _as_is)
        self._padding = "max_length" if padded else False
        hf = self._hf = _load(directory, padded)
        self.name = type(hf).__name__
        self.none_vanishes = self.name == "CLIPTokenizer"  # every word has a token
        self._backend = hf.backend_tokenizer
        self._reset()
        if side := next((x for x in ("truncation", "padding") if _side(hf, x) != "right"), ""):
            raise InputError(
                f"`{directory}`: its tokenizer does its {side} on the {_side(hf, side)}, but a "
                f"text must begin with its first word. Set `{side}_side` to 'right' in "
                f"tokenizer_config.json, and `{side}` to null in tokenizer.json."
            )
        if getattr(self._backend.model, "dropout", None):
            raise InputError(
                f"`{directory}/tokenizer.json`: `dropout` draws tokens at random; set it to null."
            )
        self.bos, self.pad = hf.bos_token_id, hf.pad_token_id
        self.vocabulary: dict[str, int] = hf.get_vocab()
        self.added = [token.content for token in self._backend.get_added_tokens_decoder().values()]

    def _reset(self) -> None:
        """Reset truncation and padding, which a call would leave set for the next call."""
        self._backend.no_truncation()
        self._backend.no_padding()

    def content(self, words: Sequence[str]) -> list[list[int]]:
        """Encode cleaned texts of any length, without begin and end of text."""
        encoded = self._backend.encode_batch(list(words), add_special_tokens=False)
        return [x.ids for x in encoded]

    def ends(self, text: str) -> tuple[list[int], list[int]]:
        """Give the tokens that are put before and after a text."""
        whole, (content,) = self._hf([text])["input_ids"][0], self.content([text])
        starts = range(len(whole) - len(content) + 1)
        start = next((i for i in starts if whole[i : i + len(content)] == content), None)
        if not content or start is None:
            raise InputError(f"its tokenizer does not encode {text!r}")
        return whole[:start], whole[start + len(content) :]

    def whole(self, texts: Sequence[str], length: int) -> list[list[int]]:
        """Encode whole texts as the library does."""
        if not texts:
            return []
        try:
            return self._hf(
                [self.clean(text) for text in texts],
                padding=self._padding,
                truncation=True,
                max_length=length,
                return_attention_mask=False,
            )["input_ids"]
        finally:
            self._reset()

    def describe(self) -> str:
        """Describe everything that the tokens depend on."""
        return f"{self.name} {self.clean.__name__} {self._backend.to_str()}"


def _side(hf: Any, what: str) -> str:
    return getattr(hf, f"{what}_side")


def _load(directory: Path, padded: bool) -> Any:
    file = directory / "tokenizer_config.json"
    config = _read(file) if file.exists() else {}
    if config.get("auto_map"):
        raise InputError(
            f"`{file}`: `auto_map` names the model's own tokenizer code, which is never run; "
            "give a tokenizer of transformers."
        )
    import transformers  # takes a second, which runs without text save

    name = str(config.get("tokenizer_class") or "").removesuffix("Fast")
    if name == "CLIPTokenizer" or not (name or padded):
        _check_clips(directory)
        kind: Any = transformers.CLIPTokenizer
    elif name in ("", "SiglipTokenizer", "PreTrainedTokenizer", "TokenizersBackend"):
        kind = transformers.PreTrainedTokenizerFast
    else:
        kind = transformers.AutoTokenizer  # takes another second
    try:
        hf = kind.from_pretrained(str(directory), local_files_only=True)
    except Exception as error:  # the library raises bare Exception on a broken file
        raise _unreadable(directory, error) from error
    if not isinstance(hf, transformers.PreTrainedTokenizerFast):
        raise InputError(
            f"`{directory}`: its tokenizer (`tokenizer_class` {type(hf).__name__}) is not one "
            "that tokenizer.json can hold; give the model's tokenizer as a tokenizer.json."
        )
    return hf


def _read(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("it must hold one JSON object")
    except (OSError, ValueError) as error:
        raise _unreadable(file.parent, f"{file.name}: {error}") from error
    return value


def _unreadable(directory: Path, why: object) -> InputError:
    return InputError(f"`{directory}`: its tokenizer cannot be read: {why}.")


def _check_clips(directory: Path) -> None:
    """Raise InputError if CLIP's class would read another kind of vocabulary."""
    file = directory / "tokenizer.json"
    model = _read(file).get("model") if file.exists() else None
    if isinstance(model, dict) and model.get("end_of_word_suffix") != "</w>":
        raise InputError(
            f"`{file}`: its tokenizer is of another kind ({model.get('type')}) than "
            "CLIPTokenizer, which would read it; name its own class as `tokenizer_class` in "
            "tokenizer_config.json."
        )


# Printable Latin letters stand for themselves. All other bytes become characters from 256
# on, so that none is white space.
_PLAIN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_REST = [byte for byte in range(256) if byte not in _PLAIN]
_BYTES = {**{b: chr(b) for b in _PLAIN}, **{b: chr(256 + i) for i, b in enumerate(_REST)}}


class OpenClips:
    """open_clip's own tokenizer, on the files of a directory.

    It is rewritten without torch; the byte-pair encoding comes from transformers' backend.
    """

    name = "open_clip's SimpleTokenizer"
    added: list[str] = []
    pad = 0
    none_vanishes = True

    def __init__(self, directory: Path, clean: Callable[[str], str]):
        """Load CLIP's vocabulary.

        Raises:
            InputError: the vocabulary cannot be read, or is not open_clip's own.
        """
        import regex  # the split pattern needs Unicode classes

        _check_clips(directory)
        import transformers

        try:
            hf: Any = transformers.CLIPTokenizer.from_pretrained(
                str(directory), local_files_only=True
            )
        except Exception as error:  # bare Exception, as in `_load`
            raise _unreadable(directory, error) from error
        self.clean = clean
        self._backend = hf.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._model = self._backend.model
        self.vocabulary: dict[str, int] = self._backend.get_vocab()
        marks = ("<|startoftext|>", "<|endoftext|>")
        if missing := [mark for mark in marks if mark not in self.vocabulary]:
            raise InputError(f"`{directory}`: its tokenizer has no {missing[0]}; give CLIP's.")
        self.bos, self._eos = (self.vocabulary[mark] for mark in marks)
        if len(self.vocabulary) == _CLIP_SIZE:
            tokens = "\n".join(sorted(self.vocabulary, key=self.vocabulary.__getitem__))
            if hashlib.sha256(tokens.encode()).hexdigest() != _CLIP_SHA256:
                raise InputError(
                    f"`{directory}`: its tokenizer has another vocabulary than CLIP's, but "
                    "open_clip always uses CLIP's; name this tokenizer as "
                    "`text_cfg.hf_tokenizer_name`."
                )
        self._marks = {"<start_of_text>": self.bos, "<end_of_text>": self._eos}
        self._split = regex.compile(
            r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d"
            r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
            regex.IGNORECASE,
        )

    def content(self, words: Sequence[str]) -> list[list[int]]:
        """Encode cleaned texts of any length, without begin and end of text."""
        return [self._ids(word) for word in words]

    def _ids(self, text: str) -> list[int]:
        ids = list[int]()
        for part in self._split.findall(text):
            if (mark := self._marks.get(part)) is not None:
                ids.append(mark)
                continue
            letters = part.encode().decode("latin-1").translate(_BYTES)
            ids += (token.id for token in self._model.tokenize(letters))
        return ids

    def ends(self, text: str) -> tuple[list[int], list[int]]:
        """Give the tokens that are put before and after a text."""
        return [self.bos], [self._eos]

    def whole(self, texts: Sequence[str], length: int) -> list[list[int]]:
        """Encode whole texts as the library does."""
        made = [[self.bos, *self._ids(self.clean(text)), self._eos] for text in texts]
        return [x if len(x) <= length else [*x[: length - 1], self._eos] for x in made]

    def describe(self) -> str:
        """Describe everything that the tokens depend on."""
        import ftfy

        about = f"{self.name} {self.clean.__name__} {ftfy.__version__}"
        return f"{about} {self._backend.to_str()}"


def load_library(directory: Path, padded: bool, reading: OpenClip | None) -> Any:
    """Load the tokenizer that a model's library would load: a `Transformers` or an `OpenClips`.

    Args:
        directory: holds the tokenizer's files.
        padded: whether texts are padded to the context, as in SigLIP.
        reading: what OpenCLIP's config says about texts; None for Hugging Face's layout.

    Raises:
        InputError: see `Tokenizer`.
    """
    own = reading is not None and not reading.named
    files = (
        ("tokenizer.json",) if padded or not own and reading else ("tokenizer.json", "vocab.json")
    )
    if not any((directory / file).exists() for file in files):
        whose = f"that of {reading.named}" if reading and reading.named else "it"
        raise InputError(
            f"`{directory}` holds no tokenizer ({' or '.join(files)}); copy {whose} from the "
            "model's source."
        )
    if reading is None:
        return Transformers(directory, padded)
    clean = CLEANINGS[reading.clean]
    return OpenClips(directory, clean) if own else Transformers(directory, padded, clean)
