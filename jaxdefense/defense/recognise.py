"""Recognition of people by their faces: the bounds of the image defense, and its validation.

If the model has a text encoder, a face leads to its person's name, in any prompt. Otherwise, and
where patches are compared, it leads to the person's centroid, the mean of the teacher's embeddings
of their photos; a photo's embedding is then the mean of its patches.

If the faces will be shipped with a defended text encoder, that encoder reads the names too. Each
defense moves its own side of a match, and what both moved may match again.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxdefense.config import ImageTrainConfig
from jaxdefense.data.faces import Bounds, starting_at
from jaxdefense.data.identities import Identity
from jaxdefense.data.images import Loader, Photos
from jaxdefense.data.names import random_names
from jaxdefense.data.people import together
from jaxdefense.data.sampling import evened
from jaxdefense.data.sources import Images
from jaxdefense.data.variants import photo_form
from jaxdefense.defense.carriers import CARRIERS
from jaxdefense.defense.validate import Verdict, judge
from jaxdefense.evals.embed import Embedder, unit
from jaxdefense.idia.prompts import TEMPLATES, fill
from jaxdefense.words import folded_words

_NUM_PROMPTS = 16  # of CARRIERS, in a step
_NUM_STRANGERS = 512  # faces that show where strangers lie
_NUM_CLEAN, _NUM_KEPT = 128, 128  # clean photos, and kept faces, whose movement is measured
# Kept people in training whose movement is measured, and one in how many of them is mined.
_NUM_ASKED, _MINED = 512, 4
_NUM_NAMES, _NAMES_SEED = 256, 2**33  # number of random candidate names; a seed that no attack has
# Most held-out photos of all people together; the limit of each person is never below the second.
_MOST_PHOTOS, _LEAST_PHOTOS = 2048, 2
_MOST_KNOWN = 512  # kept people whose names are candidates
_HELD_OUT = 7  # stream of random numbers


@dataclasses.dataclass(frozen=True)
class Faces:
    """The photos and people to train on, and those that are held out.

    Fields:
        listed, held_listed: the people to remove, in order, with their photos to train on and
            their held-out photos. Someone with too few photos has the same in both.
        keep, held_keep: the people who must stay, to train on and held out; nobody is in both.
    """

    listed: list[Photos]
    held_listed: list[Photos]
    keep: list[list[Photos]]
    held_keep: list[Photos]

    def everyone_kept(self) -> list[Photos]:
        """List everyone who must stay, whether trained on or held out."""
        return [person for group in self.keep for person in group] + self.held_keep


class HeldAgain(NamedTuple):
    """What the run before held out.

    Fields:
        photos: of people to remove, numbers of their photos by name; nobody has none.
        people: `id` of the people who must stay.
    """

    photos: dict[str, set[int]]
    people: set[int]


def hold_out(
    listed: list[Photos],
    groups: list[list[Photos]],
    t: ImageTrainConfig,
    again: HeldAgain | None = None,
) -> Faces:
    """Hold out a part of the listed people's photos, and a part of the kept people.

    Copies of a photo stay together, and so do a photo and the face cut from it, as in
    `split_photos`. If all photos of a person belong together, validation uses the photos that are
    trained on. A kept person who is in several groups is held out of all of them.

    Args:
        listed: people to remove, with their photos except those set aside for the attack.
        groups: people who must stay, by source; at least one of them stays to train on.
        t: the training settings of the run.
        again: what is held out again instead of drawn: photos of the people it has, and, if it has
            any, the people who must stay.
    """
    rng = np.random.default_rng((t.seed, _HELD_OUT))
    v, train, held = t.validate, [], []
    most = max(_LEAST_PHOTOS, _MOST_PHOTOS // len(listed))
    for person in listed:
        files, out = person.files, set[int]()
        before = again.photos.get(person.name) if again else None
        alike = together(files) if v.every and not before else []
        if v.every and before and len(before) < len(files):
            out = before
        wanted = min(max(1, round(len(files) * v.photos)), most)
        for i in rng.permutation(len(alike))[1:] if len(alike) > 1 else ():
            if len(out) < wanted:
                out.update(alike[i])
        parts = [tuple(x for i, x in enumerate(files) if (i in out) == which) for which in (0, 1)]
        train.append(Photos(person.name, parts[0]))
        held.append(Photos(person.name, parts[1] or files[:most]))
    chosen, names = list[Photos](), set[tuple[str, ...]]()
    if v.every and again and again.people:
        chosen = [x for group in groups for x in group if id(x) in again.people]
        if len(chosen) == sum(map(len, groups)):  # somebody must be left to train on
            chosen = []
        names = {folded_words(x.name) for x in chosen if x.name}
    for group in groups if not chosen else ():
        num = min(int(np.ceil(len(group) * v.kept)), len(group) - 1) if v.every else 0
        # People held out of an earlier group count here too: small groups may share people.
        fresh = {i for i, x in enumerate(group) if folded_words(x.name) not in names}
        order = [i for i in rng.permutation(len(group)).tolist() if i in fresh]
        part = [group[i] for i in sorted(order[: max(0, num - len(group) + len(fresh))])]
        chosen += part
        names |= {folded_words(x.name) for x in part if x.name}
    out_of = {id(x) for x in chosen}
    keep = [
        [x for x in group if id(x) not in out_of and folded_words(x.name) not in names]
        for group in groups
    ]
    return Faces(train, held, [group for group in keep if group], chosen)


@dataclasses.dataclass(frozen=True)
class _Decoder:
    """Decodes photos, some of them chosen at random; the draws of a run come in one order.

    Fields:
        loader: decodes photos.
        images: clean photos.
        rng: draws which.
    """

    loader: Loader
    images: Images
    rng: np.random.Generator

    def one_each(self, people: Sequence[Photos], most: int) -> np.ndarray:
        """Decode one photo each of at most `most` people."""
        some = self.rng.permutation(len(people))[:most]
        return self.loader.load([people[i].files for i in some])

    def clean(self, most: int) -> np.ndarray:
        """Decode at most `most` clean photos."""
        some = self.rng.permutation(len(self.images))[:most].tolist()
        return self.loader.load([starting_at(self.images, i) for i in some])

    def all_of(self, people: Sequence[Photos]) -> np.ndarray:
        """Decode all photos of people, person by person."""
        files = [starting_at(x.files, i) for x in people for i in range(len(x.files))]
        return self.loader.load(files)


class Recognition:
    """Whom a face leads to, by the teacher's embeddings; bounds training and validates students."""

    def __init__(
        self,
        teacher: Embedder,
        faces: Faces,
        identities: Sequence[Identity],
        images: Images,
        loader: Loader,
        t: ImageTrainConfig,
    ):
        """Embed names and photos with the teacher.

        Args:
            teacher: on the run's mesh.
            faces: photos and people to train on, and those held out.
            identities: names of the listed people, in order.
            images: clean photos.
            loader: decodes photos.
            t: the training settings of the run.

        Raises:
            InputError: a photo cannot be read; see `Loader`.
        """
        self._cfg, self._names = t.validate, [identity.name for identity in identities]
        decoder = _Decoder(loader, images, np.random.default_rng((t.seed, _HELD_OUT, 1)))
        strangers = faces.everyone_kept()
        if strangers:
            stranger_BHWC = decoder.one_each(strangers, _NUM_STRANGERS)
        else:  # clean photos then show what is far from everybody
            stranger_BHWC = decoder.clean(_NUM_STRANGERS)
        stranger_SE = teacher.pixels(stranger_BHWC, "photos of strangers")
        known = [x for group in faces.keep for x in group if x.name][:_MOST_KNOWN]
        self._stranger_SE, self._read_again_QNE = stranger_SE, None
        if teacher.directory.cfg.text and t.level == "pooled":
            target_PNE = self._lead_to_names(teacher, identities, known, t.seed)
        else:
            photo_BE = teacher.pixels(decoder.all_of([*faces.listed, *known]), "people's photos")
            target_PNE = self._lead_to_photos(photo_BE, faces.listed, known, stranger_SE)
        self._bound = t.bound
        self.bounds = self._bounds(target_PNE)
        if t.validate.every:
            own_QKE = self._text_QNE[:, self._of[:, 0]]
            far = [np.quantile(stranger_SE @ x.T, (self._cfg.level, 0.5), 0) for x in own_QKE]
            self._level_QK, self._middle_QK = np.stack(far, 1)
            self._hold(faces, decoder, mine=bool(t.mined and t.num_keep))
            self._stay_BE = {name: teacher.pixels(x) for name, x in self._stay.items()}
            self._asked_KE = teacher.pixels(self._asked_BHWC) if len(self._asked_K) else None
            self._teacher_QI, _ = self._found(teacher)

    def read_again(self, defended: Embedder) -> None:
        """Let faces lead to names as a defended text encoder reads them too.

        `bounds` then bounds both readings; a photo leads to its person if it does by either.

        Args:
            defended: a model with this text encoder, on the run's mesh.
        """
        what = "prompts as the defended text encoder reads them"
        self._read_again_QNE = defended.prompts(fill(self._texts, TEMPLATES), what)
        listed = self._texts[: self._of[-1, 1]]
        again = self._bounds(defended.prompts(fill(listed, CARRIERS), what))
        self.bounds = Bounds(
            self._of,
            np.concatenate([self.bounds.target_NPE, again.target_NPE], 1),
            np.concatenate([self.bounds.limit_NP, again.limit_NP], 1),
            self.bounds.num,
        )

    def _bounds(self, target_PNE: np.ndarray) -> Bounds:
        """Bound faces by where strangers' faces lie."""
        near_PSN = [self._stranger_SE @ text_NE.T for text_NE in target_PNE]
        limit_PN = np.stack([np.quantile(x, self._bound, 0) for x in near_PSN])
        num = min(_NUM_PROMPTS, len(target_PNE))
        return Bounds(self._of, target_PNE.swapaxes(0, 1), limit_PN.T.astype(np.float32), num)

    def _lead_to_names(
        self, teacher: Embedder, identities: Sequence[Identity], known: Sequence[Photos], seed: int
    ) -> np.ndarray:
        """Let faces lead to names; gives what training bounds, [prompts, names listed, E]."""
        texts = [name for identity in identities for name in identity.names]
        others = [name for name in dict.fromkeys(x.name for x in known) if name not in texts]
        others += random_names(_NUM_NAMES, _NAMES_SEED + seed, exclude=[*texts, *others])
        what = "prompts of those to remove and others"
        self._texts = [*texts, *others]
        self._text_QNE = teacher.prompts(fill(self._texts, TEMPLATES), what)
        self._of = _from_to([len(identity.names) for identity in identities])
        return teacher.prompts(fill(texts, CARRIERS), "prompts of those to remove")

    def _lead_to_photos(
        self,
        photo_BE: np.ndarray,
        listed: Sequence[Photos],
        known: Sequence[Photos],
        stranger_SE: np.ndarray,
    ) -> np.ndarray:
        """Let faces lead to people's centroids; gives what training bounds, [1, listed, E]."""
        of_each = _from_to([len(person.files) for person in [*listed, *known]])
        mean_NE = unit(np.add.reduceat(photo_BE, of_each[:, 0]))
        # Strangers are candidates too: a face that is nearest to a stranger is not recognised.
        self._text_QNE = np.concatenate([mean_NE, stranger_SE])[None]
        self._of = _from_to([1] * len(listed))
        return self._text_QNE[:, : len(listed)]

    def _hold(self, faces: Faces, decoder: _Decoder, mine: bool) -> None:
        """Decode what validation looks at; with `mine`, also whom mining chooses from."""
        held_BHWC = decoder.all_of(faces.held_listed)
        self._num_held = len(held_BHWC)
        cropped = [photo_form(x, "cropped") for x in held_BHWC]  # what users do to a photo first
        self._held_BHWC = np.concatenate([held_BHWC, np.stack(cropped)])
        num_photos = [len(person.files) for person in faces.held_listed]
        self._owner_I = np.tile(np.repeat(np.arange(len(num_photos)), num_photos), 2)
        self._stay = {"clean": decoder.clean(_NUM_CLEAN)}
        if faces.held_keep:
            self._stay["kept"] = decoder.one_each(faces.held_keep, _NUM_KEPT)
        self._asked_K = np.zeros(0, np.int64)
        if mine:
            keep = evened(faces.keep)
            places = {id(person): i for i, person in reversed(list(enumerate(keep)))}
            self._asked_K = decoder.rng.permutation(sorted(places.values()))[:_NUM_ASKED]
            self._asked_BHWC = decoder.loader.load([keep[i].files for i in self._asked_K])

    def _found(self, student: Embedder) -> tuple[np.ndarray, np.ndarray]:
        """Score how near held-out photos are to their person, and their lead over all others."""
        image_IE = student.pixels(self._held_BHWC, "held-out photos")
        first_I, after_I = self._of[self._owner_I].T
        number_N = np.arange(self._text_QNE.shape[1])
        own_IN = (first_I[:, None] <= number_N) & (number_N < after_I[:, None])

        def lead_I(score_IN: np.ndarray) -> np.ndarray:
            own_I = np.where(own_IN, score_IN, -np.inf).max(-1)
            return own_I - np.where(own_IN, -np.inf, score_IN).max(-1)

        scores, leads = [], []
        for i, text_NE in enumerate(self._text_QNE):
            score_IN = image_IE @ text_NE.T
            scores.append(score_IN[np.arange(len(image_IE)), first_I])
            leads.append(lead_I(score_IN))
            if self._read_again_QNE is not None:
                again_I = lead_I(image_IE @ self._read_again_QNE[i].T)
                leads[-1] = np.maximum(leads[-1], again_I)
        return np.stack(scores), np.stack(leads)

    def __call__(self, student: Embedder) -> Verdict:
        """Validate a student; see `validate.judge`."""
        score_QI, lead_QI = self._found(student)
        moved = {
            name: 1 - (student.pixels(x) * self._stay_BE[name]).sum(-1).mean()
            for name, x in self._stay.items()
        }
        return judge(
            self._names,
            self._owner_I,
            score_QI,
            lead_QI > 0,
            level_QI=self._level_QK[:, self._owner_I],
            middle_QI=self._middle_QK[:, self._owner_I],
            teacher_QI=self._teacher_QI,
            moved=moved,
            cfg=self._cfg,
            lead_QI=lead_QI,
            num=self._num_held,
        )

    def moved_most(self, student: Embedder) -> list[int]:
        """Give the numbers of trained-on people who must stay and moved most, furthest first."""
        if not len(self._asked_K):
            return []
        near_K = (student.pixels(self._asked_BHWC) * self._asked_KE).sum(-1)
        furthest = np.argsort(near_K, kind="stable")[: -(-len(near_K) // _MINED)]
        return self._asked_K[furthest].tolist()


def _from_to(sizes: Sequence[int]) -> np.ndarray:
    """Number what lies in a row, some for each; i64 [len(sizes), 2], first and past the last."""
    ends = np.cumsum(sizes)
    return np.stack([ends - sizes, ends], 1)
