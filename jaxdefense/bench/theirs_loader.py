"""Batches by PyTorch's DataLoader, for the benchmarks; see `theirs`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdefense.bench.theirs import (
    Plain,
    draw_captions,
    normalised,
    padded_tokens,
    read_photo,
    read_tokenizer,
)
from jaxdefense.data.sources import Photo


class _Texts:
    """A sample: a clean caption, and another with a name and with the target, as tokens."""

    def __init__(
        self, texts: Sequence[str], names: Sequence[str], target: str, tokenizer: Path, length: int
    ):
        self._given = texts, names, target
        self._tokenizer, self._length = read_tokenizer(tokenizer), length

    def __call__(self, index: int) -> tuple[Any, ...]:
        drawn = draw_captions(*self._given, 1, np.random.default_rng(index))
        return tuple(
            padded_tokens(self._tokenizer, x, self._length).input_ids[0].numpy() for x in drawn
        )


class _Photos:
    """A sample: a clean photo and one of a face, normalised."""

    def __init__(self, clean: Sequence[Photo], people: Sequence[Sequence[Photo]], side: int):
        self._clean, self._people, self._side = clean, people, side

    def __call__(self, index: int) -> tuple[Any, ...]:
        rng = np.random.default_rng(index)
        files = self._people[index % len(self._people)]
        photos = (
            self._clean[int(rng.integers(len(self._clean)))],
            files[int(rng.integers(len(files)))],
        )
        return tuple(normalised(read_photo(photo, self._side)) for photo in photos)


class _Samples:
    def __init__(self, make: Any, num: int):
        self._make, self._num = make, num

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return self._make(index)


class TheirLoader(Plain):
    """Batches made in worker processes."""

    def __init__(self, num: int, workers: int):
        """Make `num` clean and as many poisoned samples a batch."""
        super().__init__()
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # workers are forks
        self._num, self._workers, self._make = num, workers, None
        self._length, self._loader = 0, ()

    def makes(self, num: int) -> None:
        """Make batches; the workers stay for the next time, and have nothing to do until then."""
        if num != self._length:
            self._length = num
            self._loader = self.torch.utils.data.DataLoader(
                _Samples(self._make, num * self._num),  # pyright: ignore[reportArgumentType]
                self._num,
                num_workers=self._workers,
                persistent_workers=self._workers > 0,
            )
        for _ in self._loader:
            pass


class TextLoader(TheirLoader):
    """Captions as strings, tokenised one by one."""

    def __init__(self, num: int, workers: int, *texts: Any):
        super().__init__(num, workers)
        self._make = _Texts(*texts)


class ImageLoader(TheirLoader):
    """Photos read, resized, cropped and normalised one by one."""

    def __init__(self, num: int, workers: int, *photos: Any):
        super().__init__(num, workers)
        self._make = _Photos(*photos)
