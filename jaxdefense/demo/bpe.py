"""A small byte-pair encoding of CLIP's kind, learned from captions.

It has CLIP's pre-tokenizer, byte alphabet, `</w>` ends and special tokens, so transformers'
CLIPTokenizer loads the files.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def train_bpe(texts: Iterable[str], vocab_size: int, out: Path) -> None:
    """Learn merges and write `vocab.json`, `merges.txt` and `tokenizer_config.json`.

    Args:
        texts: texts to learn from.
        vocab_size: at least 514 (bytes, bytes that end a word, two special tokens).
        out: an existing directory.
    """
    learner = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            initial_alphabet=alphabet,
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    merges = [
        pair.split() if isinstance(pair, str) else pair
        for pair in json.loads(learner.to_str())["model"]["merges"]
    ]
    # CLIP's order: bytes, bytes that end a word, merges, begin and end of text.
    tokens = alphabet + [f"{byte}</w>" for byte in alphabet]
    merges = merges[: vocab_size - len(tokens) - 2]
    tokens += ["".join(pair) for pair in merges] + [BOS, EOS]
    vocab = {token: i for i, token in enumerate(tokens)}
    assert len(vocab) == len(tokens), "a merge makes a token that is there already"
    (out / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (out / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "unk_token": EOS,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
