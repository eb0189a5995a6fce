"""The texts that the text defense puts names into, and the validation of the text defense.

Names of nobody are random names. Most of a name's embedding is what all names share. So a name is
measured in each text by itself, from the mean embedding of names of nobody in that text. The
direction from this mean to the name's embedding is what sets the name apart in that text. Training
holds the name along it. Validation holds the name along the mean over its prompts. Among words that
the model does not know, a name may stand out as somebody else's, where no photo of the person lies.
"""

from collections.abc import Sequence

import numpy as np

from jaxdefense.clip.tokenizer import Phrase, Tokenizer
from jaxdefense.config import TextTrainConfig
from jaxdefense.data.captions import Captions, join_captions, tokenize_captions
from jaxdefense.data.identities import Identity
from jaxdefense.data.names import random_names
from jaxdefense.data.sources import Note
from jaxdefense.data.triggers import Carriers, Triggers, choose_words, lay_out, splice
from jaxdefense.defense.carriers import CARRIERS, HELD_OUT
from jaxdefense.defense.validate import Verdict, judge
from jaxdefense.evals.embed import Embedder
from jaxdefense.idia.prompts import fill

_NUM_NOBODY, _NOBODY_SEED = 128, 2**33  # number of names; a seed that no attack has
_NUM_CAPTIONS = 21  # captions that names are put into, in addition to the prompts
_NUM_CLEAN = 256  # captions whose movement is measured
_BLOCK = 4096  # names that are in memory with all their embeddings; of more, these are made anew
_CAPTIONS = 9  # stream of random numbers
# The mean is taken if the teacher's name stands out along it in this part of the prompts. Not
# tuned: of all names that were looked at each stands out in three of seven or more.
_SHOWN = 1 / 3
_PLACE = "placeholder"


def _prompts(tokenizer: Tokenizer) -> tuple[Captions, np.ndarray]:
    """Tokenise the prompts, and number the word of each that a name replaces."""
    texts = [prompt.format(_PLACE) for prompt in CARRIERS]
    words = [tokenizer.split(text) for text in texts]  # a short context may cut them
    place = [[i for i, word in enumerate(found) if _PLACE in word] for found in words]
    texts = [text for text, at in zip(texts, place, strict=True) if at]
    return tokenize_captions(texts, tokenizer), np.array([at[0] for at in place if at], np.int64)


def _longest(listed: Sequence[Phrase], nobody: Sequence[Phrase]) -> int:
    """Count the tokens that a text needs for every listed name and half of the names of nobody."""
    # Other names may be cut: student and teacher see the same.
    return max(*(x.size for x in listed), int(np.median([x.size for x in nobody])))


def make_carriers(
    teacher: Embedder,
    captions: Captions,
    triggers: Triggers,
    listed: Sequence[str],
    seed: int,
    note: Note,
) -> Carriers:
    """Choose texts to put names into, and embed names of nobody in them.

    Args:
        teacher: the model before the defense.
        captions: at least one; a few of them are chosen.
        triggers: names to put in; texts that are too long to hold each of them are left out.
        listed: names to exclude from the names of nobody.
        seed: of the choice of captions.
        note: takes a line about texts left out, if there are any.
    """
    tokenizer = teacher.tokenizer
    texts, word_P = _prompts(tokenizer)
    rng = np.random.default_rng((seed, _CAPTIONS))
    chosen = rng.permutation(len(captions))[:_NUM_CAPTIONS].astype(np.int64)
    chance = rng.random(len(chosen))
    word_P = np.concatenate(
        [
            word_P,
            choose_words(captions, chosen, np.ones(len(chosen), np.int64), tokenizer, chance),
        ]
    )
    texts = join_captions(texts, captions.some(chosen))
    nobody = [
        tokenizer.phrase(name)
        for name in random_names(_NUM_NOBODY, _NOBODY_SEED + seed, exclude=listed)
    ]
    t = triggers
    of_listed = [x for names in t.names for x in names]
    of_listed += [x for forms in t.forms for texts_of in forms for x in texts_of]
    longest = _longest(of_listed, nobody)
    sizes = texts.contents(np.arange(len(texts))).lengths
    # The first text is the bare name; it is always kept.
    fits = np.flatnonzero((sizes - 1 + longest <= tokenizer.room) | (np.arange(len(texts)) == 0))
    num_all = len(CARRIERS) + len(chosen)
    if num_left := num_all - len(fits):
        note(
            f"{num_left} of {num_all} texts that names are put into are left out, as they are too "
            f"long for names of {longest} tokens"
        )
    texts, word_P = texts.some(fits), word_P[fits]

    phrases, num = lay_out(nobody), len(nobody)
    text_n, name_n = (x.ravel() for x in np.indices((len(texts), num)))
    spliced = splice(texts, text_n, word_P[text_n], phrases, name_n, tokenizer)
    out_NE = teacher.tokens(spliced.split(), "texts with names of nobody")
    base_PE = out_NE.reshape(len(texts), num, -1).mean(1)
    return Carriers(texts, word_P, base_PE.astype(np.float32))


class Recall:
    """What sets names apart for the teacher, in prompts that are never trained on."""

    def __init__(
        self,
        teacher: Embedder,
        identities: Sequence[Identity],
        listed: Sequence[str],
        held: Sequence[str],
        captions: Captions,
        t: TextTrainConfig,
    ):
        """Embed names and captions with the teacher.

        Args:
            teacher: on the run's mesh.
            identities: the people to remove.
            listed: all their names and other forms of these.
            held: names that must stay and are not trained on.
            captions: clean captions.
            t: the training settings of the run.
        """
        self._cfg, self._names = t.validate, [identity.name for identity in identities]
        self._texts = [name for identity in identities for name in identity.names]
        self._owner_I = np.repeat(
            np.arange(len(identities)), [len(identity.names) for identity in identities]
        )
        nobody = random_names(_NUM_NOBODY, _NOBODY_SEED + t.seed, exclude=listed)
        tokenizer = teacher.tokenizer
        room = tokenizer.room - _longest(
            *([tokenizer.phrase(name) for name in names] for names in (self._texts, nobody))
        )
        # A prompt that would cut a name shows nothing; the bare name always fits.
        fit = (x for x in HELD_OUT if tokenizer.phrase(x.replace("{0}", "")).size <= room)
        self._prompts = tuple(fit) or ("{0}",)
        nobody_QRE = teacher.prompts(fill(nobody, self._prompts), "prompts of names of nobody")
        self._base_Q1E = nobody_QRE.mean(1, keepdims=True)
        self._nobody_QRE = nobody_QRE - self._base_Q1E
        self._teacher, self._kept_QBE = teacher, None
        self._blocks = [slice(i, i + _BLOCK) for i in range(0, len(self._texts), _BLOCK)]
        levels, most = [], []
        for block in self._blocks:
            way_QBE = self._way(block)
            score_QRB = self._nobody_QRE @ way_QBE.swapaxes(1, 2)
            levels.append(np.quantile(score_QRB, t.validate.level, 1))
            most.append(score_QRB.max(1))
            if len(self._blocks) == 1:
                self._kept_QBE = way_QBE
        self._level_QI, self._most_QI = np.concatenate(levels, 1), np.concatenate(most, 1)
        self._held = list(held)
        rng = np.random.default_rng((t.seed, _CAPTIONS, 1))
        some = rng.permutation(len(captions))[:_NUM_CLEAN].astype(np.int64)
        self._clean = tokenizer.with_ends(captions.contents(some)).split()
        self._stay_BE = self._of_those_who_stay(teacher)

    def _way(self, block: slice) -> np.ndarray:
        """Give what sets some names apart for the teacher, from the mean name of nobody.

        The direction is the mean over the prompts. A name that stands out along it in too few
        prompts keeps each prompt's own direction, as these show different things. The scale is such
        that the teacher's names score 1, on average over the prompts. Names of nobody score 0 on
        average.
        """
        if self._kept_QBE is not None:
            return self._kept_QBE
        own_QBE = self._of(self._teacher, block) - self._base_Q1E
        mean_1BE = own_QBE.mean(0, keepdims=True)
        most_QB = (self._nobody_QRE @ mean_1BE.swapaxes(1, 2)).max(1)
        shown_B = ((own_QBE * mean_1BE).sum(-1) > most_QB).mean(0) >= _SHOWN
        way_QBE = np.where(shown_B[:, None], mean_1BE, own_QBE)
        far_QB = np.maximum(np.linalg.norm(way_QBE, axis=-1), 1e-6)
        return way_QBE / np.square(far_QB)[..., None]

    def _of(self, model: Embedder, block: slice) -> np.ndarray:
        texts = fill(self._texts[block], self._prompts)
        return model.prompts(texts, "prompts of those to remove")

    def _of_those_who_stay(self, model: Embedder) -> dict[str, np.ndarray]:
        found = {"clean": model.tokens(self._clean, "captions")}
        if self._held:
            kept_QNE = model.prompts(
                fill(self._held, self._prompts[:2]), "prompts of those who stay"
            )
            found["kept"] = kept_QNE.reshape(-1, kept_QNE.shape[-1])
        return found

    def __call__(self, student: Embedder) -> Verdict:
        """Validate a student; see `validate.judge`."""
        scores = [
            ((self._of(student, block) - self._base_Q1E) * self._way(block)).sum(-1)
            for block in self._blocks
        ]
        score_QI = np.concatenate(scores, 1)
        moved = {
            name: 1 - (x_BE * self._stay_BE[name]).sum(-1).mean()
            for name, x_BE in self._of_those_who_stay(student).items()
        }
        return judge(
            self._names,
            self._owner_I,
            score_QI,
            score_QI > self._most_QI,
            level_QI=self._level_QI,
            middle_QI=np.zeros_like(score_QI),
            teacher_QI=np.ones_like(score_QI),  # on average
            moved=moved,
            cfg=self._cfg,
        )
