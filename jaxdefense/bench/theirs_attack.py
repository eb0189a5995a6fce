"""The attack in plain PyTorch, for the benchmarks; see `theirs`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdefense.bench.theirs import Plain, libraries, padded_tokens, read_tokenizer

_BATCH, _PIECE = 64, 1024


class Matching(NamedTuple):
    """How much is matched.

    Fields:
        photos, candidates, templates: P, M and Q.
        embed: E.
    """

    photos: int
    candidates: int
    templates: int
    embed: int

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        """Draw embeddings of unit length; f32 [P, E] and [Q, M, E]."""
        rng = np.random.default_rng(0)
        shapes = (self.photos,), (self.templates, self.candidates)
        drawn = [rng.standard_normal((*shape, self.embed), np.float32) for shape in shapes]
        image_PE, text_QME = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in drawn)
        return image_PE, text_QME


class TheirPrompts(Plain):
    """The attack's prompts through a model, in batches of strings, all padded."""

    def __init__(self, model: Path, texts: Sequence[Sequence[str]]):
        super().__init__()
        kind = libraries()[1].CLIPTextModelWithProjection
        self._model = kind.from_pretrained(
            str(model), local_files_only=True, dtype=self.torch.float32
        )
        self._model = self._model.eval().to(self.device)
        self._tokenizer = read_tokenizer(model)
        self._length = self._model.config.max_position_embeddings
        self._texts = texts
        self._num_tokens = self._num = 0

    def embed(self, num: int) -> None:
        """Embed all of them."""
        for _ in range(num):
            self._embed([text for texts in self._texts for text in texts])

    def sample(self) -> np.ndarray:
        """Embed the prompts of the first two names; f32 [Q, 2, E]."""
        some = [texts[:2] for texts in self._texts]
        x = self._embed([text for texts in some for text in texts])
        return x.reshape(len(some), -1, x.shape[-1]).cpu().numpy()

    def tokens_per_sample(self) -> float:
        """Give the tokens of a prompt without padding, on average."""
        return self._num_tokens / self._num

    def computed(self) -> float:
        """Give the tokens that are computed, for each prompt."""
        return self._length

    def _embed(self, texts: list[str]) -> Any:
        torch, out = self.torch, []
        for start in range(0, len(texts), _BATCH):
            tokens = padded_tokens(self._tokenizer, texts[start : start + _BATCH], self._length)
            self._num_tokens += int(tokens.attention_mask.sum())
            self._num += len(tokens.attention_mask)
            with (
                torch.inference_mode(),
                torch.autocast(self.device, torch.bfloat16, enabled=self.cuda),
            ):
                out.append(self._model(tokens.input_ids.to(self.device)).text_embeds.float())
        if self.cuda:
            torch.cuda.synchronize()
        return torch.nn.functional.normalize(torch.cat(out), dim=-1)


class TheirMatching(Plain):
    """The matrix of cosines of photos and candidates, in pieces, and each row's largest."""

    def __init__(self, work: Matching):
        super().__init__()
        self._image_PE, self._text_QME = map(self.torch.from_numpy, work.draw())
        self._answers: Any = None

    def match(self, num: int) -> None:
        """Find each photo's nearest candidates."""
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
        """Give the candidates found; int [Q, P]."""
        return self._answers.numpy()
