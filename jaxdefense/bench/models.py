"""Model directories with random weights, which all implementations read."""

import dataclasses
import shutil
from pathlib import Path

from flax import nnx

from jaxdefense.clip.model import CLIP
from jaxdefense.clip.presets import preset
from jaxdefense.clip.tokenizer import Tokenizer
from jaxdefense.convert.directory import write_new
from jaxdefense.errors import InputError

_TOKENIZER = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json")


def write_random_model(size: str, tokenizer: Path, out: Path, vision: bool = True) -> None:
    """Write a model directory.

    Args:
        size: architecture, one of `PRESETS`.
        tokenizer: directory of the tokenizer, which is copied.
        out: model directory to write; must not exist.
        vision: whether the model has an image encoder.

    Raises:
        InputError: the tokenizer cannot be read, or its vocabulary is larger than the model's.
    """
    cfg = preset(size)
    assert cfg.text
    found = Tokenizer(tokenizer, cfg.text.context_length)
    if found.vocab_size > cfg.text.vocab_size:
        raise InputError(
            f"`--tokenizer` (={tokenizer}) has {found.vocab_size} tokens, {size} "
            f"{cfg.text.vocab_size}; give one that fits."
        )
    text = dataclasses.replace(cfg.text, readout="token", eos_token_id=found.eos)
    cfg = dataclasses.replace(cfg, text=text, vision=cfg.vision if vision else None)
    out.mkdir(parents=True)
    write_new(CLIP(cfg, nnx.Rngs(0)), out)
    for name in _TOKENIZER:
        if (tokenizer / name).exists():
            shutil.copyfile(tokenizer / name, out / name)
