"""The two halves of the attack in PyTorch: embedding prompts, and matching photos."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdefense.bench.matching import MatchingWork
from jaxdefense.bench.torch.base import TorchImplementation, libraries
from jaxdefense.bench.torch.text import padded_tokens, read_tokenizer

_BATCH, _PIECE = 64, 1024  # prompts embedded at a time; candidates compared at a time


class TorchPrompts(TorchImplementation):
    """A text encoder that embeds prompts in batches, each padded to the context."""

    def __init__(self, model: Path, texts: Sequence[Sequence[str]]):
        """Read the model.

        Args:
            model: model directory.
            texts: prompts, a sequence a template.
        """
        super().__init__()
        kind = libraries()[1].CLIPTextModelWithProjection
        self._model = kind.from_pretrained(
            str(model), local_files_only=True, dtype=self.torch.float32
        )
        self._model = self._model.eval().to(self.device)
        self._tokenizer = read_tokenizer(model)
        self._length = self._model.config.max_position_embeddings
        self._texts = texts
        self._num_tokens = self._num_prompts = self._num_computed = 0

    def embed(self, num: int) -> None:
        """Embed all prompts, `num` times."""
        for _ in range(num):
            self._embed([text for texts in self._texts for text in texts])

    def sample(self) -> np.ndarray:
        """Embed the prompts of the first two names; f32 [Q, 2, E]."""
        some = [texts[:2] for texts in self._texts]
        x = self._embed([text for texts in some for text in texts])
        return x.reshape(len(some), -1, x.shape[-1]).cpu().numpy()

    def tokens_per_sample(self) -> float:
        """Return the mean number of tokens of a prompt, padding excluded."""
        return self._num_tokens / self._num_prompts

    def computed(self) -> float:
        """Return the number of tokens that the encoder computes for each prompt."""
        return self._num_computed / self._num_prompts

    def flops(self) -> int:
        """Count the operations of the products for all prompts."""
        return self.product_flops(lambda: self.embed(1))

    def tokenise(self, texts: list[str]) -> Any:
        """Tokenise prompts and pad them to the context."""
        return padded_tokens(self._tokenizer, texts, self._length)

    def _embed(self, texts: list[str]) -> Any:
        torch, out = self.torch, []
        for start in range(0, len(texts), _BATCH):
            tokens = self.tokenise(texts[start : start + _BATCH])
            self._num_tokens += int(tokens.attention_mask.sum())
            self._num_prompts += len(tokens.attention_mask)
            self._num_computed += tokens.input_ids.numel()
            with (
                torch.inference_mode(),
                torch.autocast(self.device, torch.bfloat16, enabled=self.cuda),
            ):
                out.append(self._model(tokens.input_ids.to(self.device)).text_embeds.float())
        if self.cuda:
            torch.cuda.synchronize()
        return torch.nn.functional.normalize(torch.cat(out), dim=-1)


class TorchMatching(TorchImplementation):
    """A matching that computes the cosines with a block of candidates at a time."""

    def __init__(self, work: MatchingWork):
        super().__init__()
        self._image_PE, self._text_QME = map(self.torch.from_numpy, work.draw())
        self._answers: Any = None

    def flops(self) -> int:
        """Count the operations of the products."""
        return self.product_flops(lambda: self.match(1))

    def match(self, num: int) -> None:
        """Find the nearest candidate of each photo in each template, `num` times."""
        torch = self.torch
        for _ in range(num):
            image_PE, found = self._image_PE.to(self.device), []
            for text_ME in self._text_QME:
                best, answer = torch.tensor(-2.0), torch.tensor(-1)
                best, answer = best.to(self.device), answer.to(self.device)
                for start in range(0, len(text_ME), _PIECE):
                    piece = text_ME[start : start + _PIECE].to(self.device)
                    top, at = (image_PE @ piece.T).max(-1)
                    answer = torch.where(top > best, start + at, answer)
                    best = torch.maximum(top, best)
                found.append(answer)
            self._answers = torch.stack(found).cpu()

    def answers(self) -> np.ndarray:
        """Return the indices of the candidates found; int [Q, P]."""
        return self._answers.numpy()
