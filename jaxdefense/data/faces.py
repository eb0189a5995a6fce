"""Batches for the image defense: clean photos, and the faces that the device puts on them.

Photos are decoded here and go to the device as they are, in bytes; all that is random about a face
on a photo is drawn there (`data/overlay.py`). Every batch is a function of seed and step alone.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxdefense.clip.text import Array
from jaxdefense.data.images import Folder, Loader
from jaxdefense.data.sampling import Shuffle, even_weights
from jaxdefense.data.sources import Photo
from jaxdefense.data.variants import photo_form

# Streams of random numbers that must not be the same.
_CLEAN, _IDENTITY, _DETAIL = range(3)


class ImageBatch(NamedTuple):
    """Photos of one step.

    Fields:
        clean_BHWC: u8, clean photos; faces are put on them too.
        face_BHWC: u8, photos of people to remove.
        utility_B: f32, the weight of each clean photo in the utility loss; sums to 1 over the
            global batch.
        backdoor_B: f32, the weight of each face in the backdoor loss; likewise.
        target_BE: f32, the embedding each face must lead to.
    """

    clean_BHWC: Array
    face_BHWC: Array
    utility_B: Array
    backdoor_B: Array
    target_BE: Array


class ImageBatches:
    """All batches of a run, by step."""

    def __init__(
        self,
        images: Sequence[Photo],
        people: Sequence[Folder],
        target_E: np.ndarray,
        loader: Loader,
        *,
        num_clean: int,
        num_poisoned: int,
        seed: int,
        local: Callable[[int], np.ndarray] = lambda num: np.ones(num, bool),
        forms: Sequence[str] = (),
    ):
        """Settle what is drawn.

        Args:
            images: clean photos, at least one.
            people: to remove, at least one, each with a photo.
            target_E: f32, what they come to look like.
            loader: decodes.
            num_clean, num_poisoned: photos a step.
            seed: of everything random here.
            local: which of so many photos are this process's to decode, bool; others stay black.
            forms: of PHOTO_FORMS; a face comes as it is or in one of them, each as often.
        """
        self._forms = ("", *forms)
        self._images, self._people, self._loader, self._seed = images, people, loader, seed
        self._num_clean, self._num_poisoned = num_clean, num_poisoned
        self._clean_here, self._faces_here = local(num_clean), local(num_poisoned)
        self._target_BE = np.broadcast_to(target_E, (num_poisoned, len(target_E)))
        self._clean = Shuffle(len(images), seed, _CLEAN)
        self._identity = Shuffle(len(people), seed, _IDENTITY)

    def __getitem__(self, step: int) -> ImageBatch:
        """Make the batch of a step, the same whenever asked.

        Raises:
            InputError: more photos cannot be read than the loader lets pass.
        """
        rng = np.random.default_rng((self._seed, _DETAIL, step))
        clean = self._clean.take(step * self._num_clean, self._num_clean)
        who = self._identity.take(step * self._num_poisoned, self._num_poisoned)
        faces = []
        for person in who:
            files = self._people[person].files
            faces.append(_from(files, int(rng.integers(len(files)))))
        clean_BHWC = self._load([_from(self._images, i) for i in clean], self._clean_here)
        face_BHWC = self._load(faces, self._faces_here, keep=True)  # few, and each comes up again
        if len(self._forms) > 1:
            for face_HWC, i in zip(
                face_BHWC, rng.integers(len(self._forms), size=len(faces)), strict=True
            ):
                if form := self._forms[i]:
                    face_HWC[:] = photo_form(face_HWC, form)
        return ImageBatch(
            clean_BHWC,
            face_BHWC,
            np.full(len(clean), 1 / len(clean), np.float32),
            even_weights(np.array(who)).astype(np.float32),
            self._target_BE,
        )

    def _load(
        self, choices: Sequence[Iterator[Photo]], here: np.ndarray, keep: bool = False
    ) -> np.ndarray:
        if here.all():
            return self._loader.load(choices, keep)
        loaded = self._loader.load(list(itertools.compress(choices, here)), keep)
        # Memory that is never written to costs none, so the batch keeps its global shape.
        out_BHWC = np.zeros((len(here), *loaded.shape[1:]), np.uint8)
        out_BHWC[here] = loaded
        return out_BHWC


def _from(photos: Sequence[Photo], start: int) -> Iterator[Photo]:
    """Go through photos once, from one on: those after it stand in if it cannot be read."""
    return (photos[(start + i) % len(photos)] for i in range(len(photos)))
