"""Batches for the image defense: clean photos, and the faces that the device puts on them.

Photos are decoded here and go to the device in bytes. The device draws all that is random about a
face on a photo (`data/overlay.py`). Every batch is a function of seed and step alone.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxdefense.clip.text import Array
from jaxdefense.data.images import Loader, Photos
from jaxdefense.data.sampling import Shuffle, even_weights
from jaxdefense.data.sources import Photo
from jaxdefense.data.variants import photo_form

# Streams of random numbers that must not be the same.
_CLEAN, _IDENTITY, _DETAIL, _KEEP, _MINED, _STAND_IN = range(6)


class Bounds(NamedTuple):
    """What people must no longer be near: one or more texts of each person.

    Fields:
        of: int [K, 2], the first text of each person, and the one after their last.
        target_NPE: f32, each text in each prompt, embedded, unit length.
        limit_NP: f32, the cosine to it below which the loss is flat.
        num: prompts a step takes.
    """

    of: np.ndarray
    target_NPE: np.ndarray
    limit_NP: np.ndarray
    num: int


class ImageBatch(NamedTuple):
    """Photos of one step.

    Fields:
        clean_BHWC: u8, clean photos; faces are put on them too.
        face_BHWC: u8, photos of people to remove.
        utility_B: f32, the weight of each clean photo in the utility loss; sums to 1 over the
            global batch.
        backdoor_B: f32, the weight of each face in the backdoor loss; likewise.
        target_BE: f32, the embedding each face must lead to; with limits f32 [B, P, E], those it
            must not come near. None with other people's faces.
        limit_BP: f32, the cosines to those below which the loss is flat.
        keep_BHWC: u8, photos of people who must stay.
        keep_B: f32, the weight of each of these in the keep loss; sums to 1 likewise.
        target_BHWC: u8, the face of another person in place of each face, to which it must lead.
        teacher_clean_BE: f32, the teacher's embeddings of the clean photos, where these are kept.
    """

    clean_BHWC: Array
    face_BHWC: Array
    utility_B: Array
    backdoor_B: Array
    target_BE: Array | None
    limit_BP: Array | None = None
    keep_BHWC: Array | None = None
    keep_B: Array | None = None
    target_BHWC: Array | None = None
    teacher_clean_BE: Array | None = None


class ImageBatches:
    """All batches of a run, by step."""

    def __init__(
        self,
        images: Sequence[Photo],
        people: Sequence[Photos],
        target: np.ndarray | Bounds | Sequence[Photos],
        loader: Loader,
        *,
        num_clean: int,
        num_poisoned: int,
        seed: int,
        keep: Sequence[Photos] = (),
        num_keep: int = 0,
        num_mined: int = 0,
        local: Callable[[int], np.ndarray] = lambda num: np.ones(num, bool),
        forms: Sequence[str] = (),
    ):
        """Fix what is drawn.

        Args:
            images: clean photos, at least one.
            people: to remove, at least one, each with a photo.
            target: f32 [E], what they come to look like; or what they must not come near; or people
                of whom one stands in for each of them, drawn anew in each step.
            loader: decodes.
            num_clean, num_poisoned: photos a step.
            seed: of everything random here.
            keep: people who must stay, each with a photo; a person may be listed several times.
            num_keep: photos of them a step.
            num_mined: how many of these show the people last given to `mine`.
            local: for a number of photos, which of them this process decodes, bool; others stay
                black.
            forms: of PHOTO_FORMS; a face is unchanged or in one of them, each equally often.
        """
        self._forms = ("", *forms)
        self._images, self._people, self._loader, self._seed = images, people, loader, seed
        self._num_clean, self._num_poisoned = num_clean, num_poisoned
        self._keep, self._num_keep = keep, num_keep
        self._num_mined, self._mined = num_mined, np.zeros(0, np.int64)
        self._local, self._kept_NE = local, None
        self._clean_here, self._faces_here = local(num_clean), local(num_poisoned)
        self._keep_here = local(num_keep)
        self._clean = Shuffle(len(images), seed, _CLEAN)
        self._identity = Shuffle(len(people), seed, _IDENTITY)
        self._kept = Shuffle(len(keep), seed, _KEEP) if num_keep else None
        self._target, self._stand_ins = None, list[Photos]()
        if isinstance(target, np.ndarray | Bounds):
            self._target = target
        else:
            self._stand_ins = list(target)
            self._stands_in = Shuffle(len(target), seed, _STAND_IN)

    def mine(self, keep: Sequence[int]) -> None:
        """Draw part of the photos that must stay from these people of `keep` from now on.

        A resumed run gives the same people before the same step.
        """
        self._mined = np.array(keep, np.int64)

    @property
    def num_images(self) -> int:
        """Number of clean photos."""
        return len(self._images)

    def photos(self, start: int, num: int) -> np.ndarray:
        """Decode clean photos from number `start` on, as steps show them.

        Returns:
            u8 [num, crop, crop, 3]; black after the last, and where another process decodes.
        """
        chosen = range(start, min(start + num, len(self._images)))
        here = self._local(num) & (np.arange(num) < len(chosen))
        return self._load([starting_at(self._images, i) for i in chosen], here)

    def keep(self, teacher_NE: np.ndarray) -> None:
        """Give batches the teacher's embeddings of their clean photos from now on.

        Args:
            teacher_NE: f32, of all clean photos, not normalised.
        """
        self._kept_NE = teacher_NE

    def __getitem__(self, step: int) -> ImageBatch:
        """Make the batch of a step; it is always the same.

        Raises:
            InputError: more photos cannot be read than the loader allows.
        """
        rng = np.random.default_rng((self._seed, _DETAIL, step))
        clean = self._clean.take(step * self._num_clean, self._num_clean)
        who = self._identity.take(step * self._num_poisoned, self._num_poisoned)
        faces = []
        for person in who:
            files = self._people[person].files
            faces.append(starting_at(files, int(rng.integers(len(files)))))
        clean_BHWC = self._load([starting_at(self._images, i) for i in clean], self._clean_here)
        face_BHWC = self._load(faces, self._faces_here, keep=True)  # few, and each recurs
        self._put_in_forms(face_BHWC, rng)
        target, limit_BP = self._targets(who, rng)
        keep_BHWC = keep_B = None
        if self._kept:
            who_stays = self._kept.take(step * self._num_keep, self._num_keep)
            if len(self._mined) and self._num_mined:
                drawn = np.random.default_rng((self._seed, _MINED, step))
                who_stays[-self._num_mined :] = drawn.choice(self._mined, self._num_mined).tolist()
            stay = [self._keep[i].files for i in who_stays]
            choices = [starting_at(files, int(rng.integers(len(files)))) for files in stay]
            keep_BHWC = self._load(choices, self._keep_here, keep=True)
            self._put_in_forms(keep_BHWC, rng)
            keep_B = np.full(len(stay), 1 / len(stay), np.float32)
        target_BHWC = None
        if self._stand_ins:
            others = self._stands_in.take(step * self._num_poisoned, self._num_poisoned)
            files = [self._stand_ins[i].files for i in others]
            choices = [starting_at(x, int(rng.integers(len(x)))) for x in files]
            target_BHWC = self._load(choices, self._faces_here, keep=True)
        return ImageBatch(
            clean_BHWC,
            face_BHWC,
            np.full(len(clean), 1 / len(clean), np.float32),
            even_weights(np.array(who)).astype(np.float32),
            target,
            limit_BP,
            keep_BHWC,
            keep_B,
            target_BHWC,
            None if self._kept_NE is None else self._kept_NE[clean],
        )

    def _put_in_forms(self, face_BHWC: np.ndarray, rng: np.random.Generator) -> None:
        if len(self._forms) == 1:
            return
        chosen = rng.integers(len(self._forms), size=len(face_BHWC))
        for face_HWC, i in zip(face_BHWC, chosen, strict=True):
            if form := self._forms[i]:
                face_HWC[:] = photo_form(face_HWC, form)

    def _targets(
        self, who: Sequence[int], rng: np.random.Generator
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Give each face what it must lead to, or what it must not come near in some prompts."""
        bounds = self._target
        if bounds is None:
            return None, None
        if not isinstance(bounds, Bounds):
            return np.broadcast_to(bounds, (len(who), len(bounds))), None
        prompts = rng.permutation(bounds.limit_NP.shape[1])[: bounds.num]
        first, after = bounds.of[who].T
        texts = rng.integers(first, after)
        # Memory that is never written to costs none: a host fills only its own faces' rows.
        here = np.flatnonzero(self._faces_here)
        target_BPE = np.zeros((len(who), len(prompts), bounds.target_NPE.shape[2]), np.float32)
        target_BPE[here] = bounds.target_NPE[texts[here, None], prompts]
        return target_BPE, bounds.limit_NP[texts[:, None], prompts]

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


def starting_at(photos: Sequence[Photo], start: int) -> Iterator[Photo]:
    """Go through photos once, starting at one: the next replaces one that cannot be read."""
    return (photos[(start + i) % len(photos)] for i in range(len(photos)))
