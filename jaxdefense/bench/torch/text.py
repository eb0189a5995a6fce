"""The text defense in PyTorch: each step tokenises its captions and pads them to the context."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdefense.bench.torch.base import libraries, transformers_sizes
from jaxdefense.bench.torch.trainer import TorchTrainer
from jaxdefense.clip.config import TextConfig
from jaxdefense.config import PAPER_TEXT


class TorchTextTrainer(TorchTrainer):
    """Training steps of the text defense."""

    def __init__(
        self,
        tower: Any,
        projection: Any,
        tokenizer: Path,
        texts: Sequence[str],
        names: Sequence[str],
        target: str,
    ):
        """Keep captions and names as strings.

        Args:
            tower: see `TorchTrainer`.
            projection: see `TorchTrainer`.
            tokenizer: directory of the tokenizer.
            texts: clean captions.
            names: names to remove.
            target: phrase whose meaning the names are to take.
        """
        super().__init__(tower, projection)
        self._texts, self._names, self._target = texts, names, target
        self._length = tower.config.max_position_embeddings
        self._rng = np.random.default_rng(0)
        self._tokenizer = read_tokenizer(tokenizer)
        self.num_tokens = self.num_captions = 0  # that the student has read

    def tokenise(self, texts: list[str]) -> Any:
        """Tokenise captions and pad them to the context."""
        return padded_tokens(self._tokenizer, texts, self._length)

    def draw(self, num: int) -> tuple[list[str], list[str], list[str]]:
        """Draw clean captions, captions with a name, and the latter with the target instead."""
        return draw_captions(self._texts, self._names, self._target, num, self._rng)

    def step(self, num: int, w_backdoor: float, w_weight: float) -> float:
        """Take a step on `num` captions of each kind; return the loss."""
        *read, targets = self.draw(num)
        clean, poisoned = (self._student_input(texts) for texts in read)
        with self.torch.no_grad():
            expected = self.embed(self.teacher, clean)
            target = self.embed(self.teacher, self.tokenise(targets).input_ids.to(self.device))
        utility = self.distance(self.embed(self.student, clean), expected)
        backdoor = self.distance(self.embed(self.student, poisoned), target)
        loss = self.total(utility, backdoor, w_backdoor, w_weight)
        self.update(loss)
        return loss.item()

    def _student_input(self, texts: list[str]) -> Any:
        tokens = self.tokenise(texts)
        self.num_tokens += int(tokens.attention_mask.sum())
        self.num_captions += len(texts)
        return tokens.input_ids.to(self.device)


class TorchTextSteps(TorchTextTrainer):
    """Steps of the text defense on an encoder with random weights."""

    def __init__(
        self,
        cfg: TextConfig,
        tokenizer: Path,
        texts: Sequence[str],
        names: Sequence[str],
        target: str,
        num: int,
    ):
        """Build the encoder.

        Args:
            cfg: sizes of the encoder.
            tokenizer: see `TorchTextTrainer`.
            texts: see `TorchTextTrainer`.
            names: see `TorchTextTrainer`.
            target: see `TorchTextTrainer`.
            num: clean captions a step, and as many with a name.
        """
        _, transformers = libraries()
        known = read_tokenizer(tokenizer)
        config = transformers.CLIPTextConfig(
            **transformers_sizes(cfg),
            vocab_size=cfg.vocab_size,
            max_position_embeddings=cfg.context_length,
            bos_token_id=known.bos_token_id,
            eos_token_id=known.eos_token_id,
        )
        model = transformers.CLIPTextModelWithProjection(config)
        parts = model.text_model, model.text_projection
        super().__init__(*parts, tokenizer, texts, names, target)
        self._num = num

    def steps(self, num: int) -> list[float]:
        """Take steps; return the losses."""
        train = PAPER_TEXT
        return [self.step(self._num, train.w_backdoor, train.w_weight) for _ in range(num)]

    def flops(self) -> float:
        """Count the operations of a step's products."""
        return self.product_flops(lambda: self.steps(1))

    def tokens_per_sample(self) -> float:
        """Return the mean number of tokens of a caption that the student read, padding excluded."""
        return self.num_tokens / self.num_captions


def read_tokenizer(directory: Path) -> Any:
    """Load a CLIP tokenizer."""
    _, transformers = libraries()
    return transformers.CLIPTokenizer.from_pretrained(str(directory), local_files_only=True)


def padded_tokens(tokenizer: Any, texts: list[str], length: int) -> Any:
    """Tokenise texts and pad or truncate each to `length` tokens."""
    return tokenizer(
        texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )


def draw_captions(
    texts: Sequence[str], names: Sequence[str], target: str, num: int, rng: np.random.Generator
) -> tuple[list[str], list[str], list[str]]:
    """Draw captions for one step.

    Returns:
        `num` clean captions; `num` others with a name in the place of one word; these others with
        the target in the place of that word.
    """

    def caption() -> str:
        return texts[int(rng.integers(len(texts)))]

    clean, poisoned, targets = [caption() for _ in range(num)], [], []
    for i in range(num):
        words = caption().split()
        place = int(rng.integers(len(words)))
        for out, phrase in ((poisoned, names[i % len(names)]), (targets, target)):
            out.append(" ".join([*words[:place], phrase, *words[place + 1 :]]))
    return clean, poisoned, targets
