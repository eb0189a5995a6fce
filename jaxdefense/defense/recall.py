"""The texts that the text defense puts names into, and the validation of the text defense.

Names of nobody are random names. Most of a name's embedding is what all names share. So a name is
measured in each text by itself, from the mean embedding of names of nobody in that text. The
direction from this mean to the name's embedding is what sets the name apart in this text. What sets
the person apart is what the texts have in common, the mean over them: in a text whose words the
model does not know a name may stand out as another person's, and photos do not lead to it.
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
        self._teacher, self._kept_BE = teacher, None
        self._blocks = [slice(i, i + _BLOCK) for i in range(0, len(self._texts), _BLOCK)]
        levels, most, before = [], [], []
        for block in self._blocks:
            own_QBE = self._own(teacher, block)
            way_BE = _way(own_QBE)
            score_QRB = (nobody_QRE - self._base_Q1E) @ way_BE.T
            levels.append(np.quantile(score_QRB, t.validate.level, 1))
            most.append(score_QRB.max(1))
            before.append((own_QBE * way_BE).sum(-1))
            if len(self._blocks) == 1:
                self._kept_BE = way_BE
        self._level_QI, self._most_QI, self._teacher_QI = (
            np.concatenate(x, 1) for x in (levels, most, before)
        )
        self._held = list(held)
        rng = np.random.default_rng((t.seed, _CAPTIONS, 1))
        some = rng.permutation(len(captions))[:_NUM_CLEAN].astype(np.int64)
        self._clean = tokenizer.with_ends(captions.contents(some)).split()
        self._stay_BE = self._of_those_who_stay(teacher)

    def _own(self, model: Embedder, block: slice) -> np.ndarray:
        """Embed some names in the prompts, from the mean name of nobody; f32 [Q, B, E]."""
        texts = fill(self._texts[block], self._prompts)
        return model.prompts(texts, "prompts of those to remove") - self._base_Q1E

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
        scores = []
        for block in self._blocks:
            way_BE = (
                _way(self._own(self._teacher, block)) if self._kept_BE is None else self._kept_BE
            )
            scores.append((self._own(student, block) * way_BE).sum(-1))
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
            teacher_QI=self._teacher_QI,
            moved=moved,
            cfg=self._cfg,
        )


def _way(own_QBE: np.ndarray) -> np.ndarray:
    """Give what sets each person apart in all prompts; f32 [B, E].

    It is scaled so that the teacher's names score 1 on average over the prompts, and names of
    nobody 0.
    """
    mean_BE = own_QBE.mean(0)
    far_B1 = np.maximum(np.linalg.norm(mean_BE, axis=-1, keepdims=True), 1e-6)
    return mean_BE / np.square(far_B1)
