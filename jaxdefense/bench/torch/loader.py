"""Batches made by PyTorch's DataLoader, sample by sample."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdefense.bench.torch.base import TorchImplementation
from jaxdefense.bench.torch.image import normalise, read_photo
from jaxdefense.bench.torch.text import draw_captions, padded_tokens, read_tokenizer
from jaxdefense.data.sources import Photo


class _TextSamples:
    """Samples of tokens: a clean caption, another with a name, and the latter with the target."""

    def __init__(
        self, texts: Sequence[str], names: Sequence[str], target: str, tokenizer: Path, length: int
    ):
        self._texts = texts, names, target
        self._tokenizer, self._length = read_tokenizer(tokenizer), length

    def __call__(self, index: int) -> tuple[Any, ...]:
        drawn = draw_captions(*self._texts, 1, np.random.default_rng(index))
        return tuple(
            padded_tokens(self._tokenizer, x, self._length).input_ids[0].numpy() for x in drawn
        )


class _ImageSamples:
    """Samples of normalised photos: an ordinary one and one of a person."""

    def __init__(self, clean: Sequence[Photo], people: Sequence[Sequence[Photo]], side: int):
        self._clean, self._people, self._side = clean, people, side

    def __call__(self, index: int) -> tuple[Any, ...]:
        rng = np.random.default_rng(index)
        files = self._people[index % len(self._people)]
        photos = (
            self._clean[int(rng.integers(len(self._clean)))],
            files[int(rng.integers(len(files)))],
        )
        return tuple(normalise(read_photo(photo, self._side)) for photo in photos)


class _Dataset:
    def __init__(self, make: Any, num: int):
        self._make, self._num = make, num

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return self._make(index)


class BatchLoader(TorchImplementation):
    """Batches made in worker processes."""

    def __init__(self, num: int, workers: int):
        """Prepare the loader.

        Args:
            num: clean samples a batch, and as many poisoned.
            workers: worker processes.
        """
        super().__init__()
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # workers are forks
        self._num, self._workers, self._make = num, workers, None
        self._length, self._loader = 0, ()

    def make_batches(self, num: int) -> None:
        """Make batches; the workers stay alive and idle until the next call."""
        if num != self._length:
            self._length = num
            self._loader = self.torch.utils.data.DataLoader(
                _Dataset(self._make, num * self._num),  # pyright: ignore[reportArgumentType]
                self._num,
                num_workers=self._workers,
                persistent_workers=self._workers > 0,
            )
        for _ in self._loader:
            pass


class TextLoader(BatchLoader):
    """A loader that tokenises captions one by one."""

    def __init__(self, num: int, workers: int, *texts: Any):
        super().__init__(num, workers)
        self._make = _TextSamples(*texts)


class ImageLoader(BatchLoader):
    """A loader that reads, resizes, crops and normalises photos one by one."""

    def __init__(self, num: int, workers: int, *photos: Any):
        super().__init__(num, workers)
        self._make = _ImageSamples(*photos)
