"""A stronger PyTorch: the same steps and prompts, compiled, and with nothing computed twice.

Steps take a few batches in turn, which are drawn ahead. Their captions are tokenised once and cut
to the longest of the batch, and the teacher embeds their clean samples once. The student embeds
clean and poisoned samples in one forward, and AdamW is fused.
Parity: tests/test_bench.py, the losses of the plain steps, <= 1e-4 relative.
"""

from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import Any

import numpy as np

from jaxdefense.bench.torch.attack import TorchPrompts
from jaxdefense.bench.torch.image import TorchImageSteps
from jaxdefense.bench.torch.text import TorchTextSteps
from jaxdefense.bench.torch.trainer import TorchTrainer
from jaxdefense.config import PAPER_IMAGE, PAPER_TEXT, ImageTrainConfig, TextTrainConfig

NUM_BATCHES = 8


class _CompiledSteps(TorchTrainer):
    """The step of either defense, as one loss of inputs that are ready."""

    fused = True
    train: TextTrainConfig | ImageTrainConfig
    _batches: Callable[[int], Iterator[tuple[Any, ...]]]  # yields arguments of `loss`

    def compile(self, backend: str = "inductor") -> str:
        """Compile the step for the shapes of all batches.

        Args:
            backend: of `torch.compile`.

        Returns:
            why it cannot be compiled, in one line; "" if it is.
        """

        def work() -> None:
            self.loss, self.teach = (
                self.torch.compile(function, backend=backend, dynamic=False)
                for function in (self.loss, self.teach)
            )
            for inputs in self._batches(NUM_BATCHES):
                self.loss(*inputs).backward()

        return _why_not(work)

    def loss(self, x: Any, expected: Any, target: Any) -> Any:
        """Return the loss.

        Args:
            x: inputs of the student: clean samples, and then as many poisoned ones.
            expected: the teacher's embeddings of the clean samples.
            target: embeddings that the poisoned samples are to get.
        """
        clean, poisoned = self.embed(self.student, x).chunk(2)
        utility, backdoor = self.distance(clean, expected), self.distance(poisoned, target)
        return self.total(utility, backdoor, self.train.w_backdoor, self.train.w_weight)

    def teach(self, x: Any) -> Any:
        """Return the teacher's embeddings."""
        with self.torch.no_grad():
            return self.embed(self.teacher, x)

    def steps(self, num: int) -> list[float]:
        """Take steps; return the losses."""
        losses = []
        for inputs in self._batches(num):
            losses.append(self.loss(*inputs))
            self.update(losses[-1])
        return [loss.item() for loss in losses]


class CompiledTextSteps(_CompiledSteps, TorchTextSteps):
    """Compiled steps of the text defense."""

    train = PAPER_TEXT

    def __init__(self, *args: Any):
        """Draw the batches; for the parameters see `TorchTextSteps`."""
        super().__init__(*args)
        self._drawn = cycle([self._draw() for _ in range(NUM_BATCHES)])

    def tokenise(self, texts: list[str]) -> Any:
        """Tokenise captions and cut them to the longest."""
        return _cut(super().tokenise(texts))

    def flops(self) -> float:
        """Count the operations of a step's products; the mean, as batches differ in length."""
        return self.product_flops(lambda: self.steps(NUM_BATCHES)) / NUM_BATCHES

    def _draw(self) -> tuple[Any, Any, Any]:
        clean, poisoned, targets = self.draw(self._num)
        ids = [self.tokenise(texts).input_ids.to(self.device) for texts in (clean, targets)]
        return self._student_input(clean + poisoned), self.teach(ids[0]), ids[1]

    def _batches(self, num: int) -> Iterator[tuple[Any, ...]]:
        for x, expected, targets in islice(self._drawn, num):
            yield x, expected, self.teach(targets)


class CompiledImageSteps(_CompiledSteps, TorchImageSteps):
    """Compiled steps of the image defense; photos are read and faces put on them in a thread."""

    train = PAPER_IMAGE

    def __init__(self, *args: Any):
        """Draw the batches; for the parameters see `TorchImageSteps`."""
        super().__init__(*args)
        self._drawn = cycle([self._draw() for _ in range(NUM_BATCHES)])

    def _draw(self) -> tuple[Any, Any]:
        photos = self.draw(self._clean, self._people, self._num, self._num)
        return photos, self.teach(self.tensor(self.read(photos[: self._num])))

    def _read(self) -> tuple[Any, ...]:
        photos, expected = next(self._drawn)
        clean, faces = np.split(self.read(photos), 2)
        x = self.tensor([*clean, *self.overlay_faces(clean, faces)])
        return x, expected, self._target.expand_as(expected)


class CompiledPrompts(TorchPrompts):
    """A compiled text encoder that embeds prompts in batches, each cut to its longest."""

    def compile(self, backend: str = "inductor") -> str:
        """Compile the encoder for the shapes of all prompts; see `CompiledTextSteps`."""

        def work() -> None:
            self._model = self.torch.compile(self._model, backend=backend, dynamic=False)
            self.embed(1)

        return _why_not(work)

    def tokenise(self, texts: list[str]) -> Any:
        """Tokenise prompts and cut them to the longest."""
        return _cut(super().tokenise(texts))


def _cut(tokens: Any) -> Any:
    """Cut padding that all texts have; lengths are multiples of 8, so that few are compiled."""
    length = -(-int(tokens.attention_mask.sum(-1).max()) // 8) * 8
    tokens["input_ids"] = tokens.input_ids[:, :length].contiguous()
    return tokens


def _why_not(work: Callable[[], Any]) -> str:
    """Say why `work` fails, in one line; "" if it does not."""
    try:
        work()
    except Exception as error:  # inductor raises what its many parts do
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return ""
