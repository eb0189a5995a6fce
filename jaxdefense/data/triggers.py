"""Batches for the text defense: clean captions, and captions with a name put in as token ids.

Words are spans of tokens, so replacing a word by a name is a splice (property-tested against
string replacement and the tokenizer). Every batch is a function of seed and step alone: any step
can be made again, on any host, without those before it.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from jaxdefense.clip.text import Array
from jaxdefense.clip.tokenizer import Phrase, Tokenizer
from jaxdefense.data import packing
from jaxdefense.data.captions import Captions
from jaxdefense.data.sampling import Shuffle, even_weights
from jaxdefense.sharding import check_parts

# Streams of random numbers that must not be the same.
_CLEAN, _POISONED, _IDENTITY, _NAME, _DETAIL = range(5)
# This part of the batches is taken as drawn, larger ones are drawn again, so that rows are full.
_FITTING = 0.9
_MAX_REDRAWS, _PLAIN_REDRAWS = 100, 20


class TextBatch(NamedTuple):
    """Captions of one step, student's and teacher's side by side in one layout.

    Fields:
        student_tokens_RT, teacher_tokens_RT, segments_RT, positions_RT: see `clip.text.Text`.
        student_readout_RS, teacher_readout_RS: likewise.
        utility_RS, backdoor_RS, name_RS: f32, the weight of the slot in each loss; each sums to 1
            over the global batch, or to 0 where the loss has no samples.
    """

    student_tokens_RT: Array
    teacher_tokens_RT: Array
    segments_RT: Array
    positions_RT: Array
    student_readout_RS: Array
    teacher_readout_RS: Array
    utility_RS: Array
    backdoor_RS: Array
    name_RS: Array


@dataclasses.dataclass(frozen=True)
class Triggers:
    """What is put in: for each person all their names, and what the teacher sees instead.

    Fields:
        names: [identity][alias].
        targets: [choice]; a person keeps to one choice.
        target_of: int [num_identities], each person's choice.
        keep: names not on the list, for the name loss; may be empty.
        forms: [identity][form][text]; a sample takes the names, or one of the forms,
            each as often.
    """

    names: list[list[Phrase]]
    targets: list[Phrase]
    target_of: np.ndarray
    keep: list[Phrase]
    forms: list[list[list[Phrase]]] = dataclasses.field(default_factory=list)


def splice(
    captions: Captions, caption: int, word: int, phrase: Phrase, tokenizer: Tokenizer
) -> np.ndarray:
    """Replace one word of a caption by a phrase.

    Args:
        word: number of the word in the caption.
        phrase: one word or more.

    Returns:
        int32 tokens, both ends included, cut to the context length.
    """
    bounds = captions.word_bounds(caption)
    before = captions.tokens[bounds[0] : bounds[word]]
    after = captions.tokens[bounds[word + 1] : bounds[-1]]
    return tokenizer.with_ends([before, phrase.later if word else phrase.first, after])


def choose_word(
    captions: Captions,
    caption: int,
    length: int,
    tokenizer: Tokenizer,
    rng: np.random.Generator,
) -> int:
    """Choose a word whose place holds `length` tokens, even where the caption is cut."""
    bounds = captions.word_bounds(caption)
    room = tokenizer.room - length
    return int(rng.integers(np.searchsorted(bounds[:-1] - bounds[0], room, side="right")))


class TextBatches:
    """All batches of a run, by step."""

    def __init__(
        self,
        captions: Captions,
        triggers: Triggers,
        tokenizer: Tokenizer,
        *,
        num_clean: int,
        num_poisoned: int,
        num_name: int,
        seed: int,
        packed: bool,
        row_multiple: int = 1,
        row_length: int = 0,
    ):
        """Settle the shapes of the batches.

        Args:
            captions: at least one.
            triggers: at least one identity.
            tokenizer: of the model.
            num_clean, num_poisoned, num_name: captions a step, of each kind.
            seed: of everything random here.
            packed: several captions a row; else one, padded to the context length.
            row_multiple: into how many parts the mesh cuts the rows.
            row_length: T of packed rows, 0 to choose one that is filled best.

        Raises:
            ValueError: not packed, and `row_multiple` does not divide the captions of a step.
        """
        self.captions, self.triggers, self.tokenizer = captions, triggers, tokenizer
        self.seed, self.packed = seed, packed
        self._sizes = num_clean, num_poisoned, num_name
        self._clean = Shuffle(len(captions), seed, _CLEAN)
        self._poisoned = Shuffle(len(captions), seed, _POISONED)
        self._identity = Shuffle(len(triggers.names), seed, _IDENTITY)
        self._name = Shuffle(len(triggers.keep), seed, _NAME) if num_name else None
        if not packed:
            self.row_length, self.num_slots = tokenizer.context_length, 1
            self.num_rows = sum(self._sizes)
            check_parts("captions a step", self.num_rows, row_multiple)
            return
        if 0 < row_length < tokenizer.context_length:
            raise ValueError(
                f"`data.row_length` (={row_length}) must be at least the longest caption of the "
                f"model (={tokenizer.context_length} tokens), or 0 to choose."
            )
        # What batches take is seen by making some, far beyond the run's steps.
        num_draws = int(np.clip(2**14 // sum(self._sizes), 8, 64))
        draws = [_slot_sizes(*self._sample(2**31 + i, 0)[:2]) for i in range(num_draws)]
        hard = self._hard(draws)
        usual = float(np.quantile([lengths.sum() for lengths in draws], _FITTING))
        # Tokens, not rows, decide what is drawn again: that must not hang on the mesh.
        self._most = max(usual, float(hard.sum()))
        self.row_length, self.num_rows, self.num_slots = packing.choose_shape(
            [hard, *(lengths for lengths in draws if lengths.sum() <= self._most)],
            [row_length] if row_length else packing.row_lengths(tokenizer.context_length),
            row_multiple,
        )

    def _hard(self, draws: list[np.ndarray]) -> np.ndarray:
        """Size the step with the longest names, in short captions: redraws come down to it."""
        num_clean, num_poisoned, num_name = self._sizes
        t = self.triggers
        forms = t.forms or [[]] * len(t.names)
        listed = [
            max(t.targets[choice].size, *(name.size for kind in (names, *more) for name in kind))
            for names, more, choice in zip(t.names, forms, t.target_of, strict=True)
        ]
        kept = [name.size for name in t.keep]
        sizes = np.full(
            num_clean + num_poisoned + num_name, np.quantile(np.concatenate(draws), 0.1)
        )
        sizes[num_clean:] += np.concatenate(
            [
                np.resize(np.sort(lengths)[::-1], num)
                for lengths, num in ((listed, num_poisoned), (kept, num_name))
            ]
        )
        return np.minimum(sizes, self.tokenizer.context_length).astype(np.int64)

    def __getitem__(self, step: int) -> TextBatch:
        """Make the batch of a step, the same whenever asked.

        Raises:
            ValueError: captions so uneven in length that none of many draws fits the rows.
        """
        for attempt in range(_MAX_REDRAWS):
            if (batch := self._batch(*self._sample(step, attempt))) is not None:
                return batch
        raise ValueError(
            f"step {step}: captions do not fit {self.num_rows} rows of {self.row_length} tokens "
            f"in {_MAX_REDRAWS} draws; raise `data.row_length`, or even out their length."
        )

    def _sample(
        self, step: int, attempt: int
    ) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
        """Draw student and teacher captions, and which person each is of (-1 clean, -2 kept)."""
        num_clean, num_poisoned, num_name = self._sizes
        rng = np.random.default_rng((self.seed, _DETAIL, step, attempt))
        t, students, teachers, who = self.triggers, [], [], []
        for caption in self._captions(self._clean, step * num_clean, num_clean, attempt):
            tokens = self.tokenizer.with_ends([self.captions.content(caption)])
            students.append(tokens)
            teachers.append(tokens)
            who.append(-1)
        # A redraw takes other captions for the names; the clean ones come up once a round.
        num = num_poisoned + num_name
        captions = self._captions(self._poisoned, (step + attempt) * num, num, attempt)
        people = self._identity.take(step * num_poisoned, num_poisoned)
        for caption, identity in zip(captions, people, strict=False):
            names = t.names[identity]
            if t.forms and t.forms[identity]:
                choices = [names, *t.forms[identity]]
                names = choices[rng.integers(len(choices))]
            name = names[rng.integers(len(names))]
            target = t.targets[t.target_of[identity]]
            length = max(name.size, target.size)
            word = choose_word(self.captions, caption, length, self.tokenizer, rng)
            students.append(splice(self.captions, caption, word, name, self.tokenizer))
            teachers.append(splice(self.captions, caption, word, target, self.tokenizer))
            who.append(identity)
        kept = self._name.take(step * num_name, num_name) if self._name else []
        for caption, index in zip(captions[num_poisoned:], kept, strict=True):
            name = t.keep[index]
            word = choose_word(self.captions, caption, name.size, self.tokenizer, rng)
            tokens = splice(self.captions, caption, word, name, self.tokenizer)
            students.append(tokens)
            teachers.append(tokens)
            who.append(-2)
        return students, teachers, np.array(who)

    def _captions(self, shuffle: Shuffle, start: int, num: int, attempt: int) -> list[int]:
        """Choose captions; if many draws did not fit, the shortest of ever more."""
        many = max(1, attempt - _PLAIN_REDRAWS)
        taken = shuffle.take(start, num * many)
        if many > 1:
            taken.sort(key=lambda caption: self.captions.content(caption).size)
        return taken[:num]

    def _batch(
        self, students: list[np.ndarray], teachers: list[np.ndarray], who: np.ndarray
    ) -> TextBatch | None:
        num_rows, num_slots, length = self.num_rows, self.num_slots, self.row_length
        pad = self.tokenizer.pad
        if self.packed:
            sizes = _slot_sizes(students, teachers)
            if sizes.sum() > self._most:
                return None
            layout = packing.pack(sizes, length, num_slots)
            if layout.num_rows > num_rows:
                return None
        else:
            sizes = np.full(len(students), length)
            rows, zeros = np.arange(num_rows, dtype=np.int32), np.zeros(num_rows, np.int32)
            layout = packing.Layout(rows, zeros, zeros, num_rows)
        segments, positions = packing.segments_and_positions(layout, sizes, num_rows, length)
        weights = [
            (who == -1) / max(1, (who == -1).sum()),
            even_weights(who),
            (who == -2) / max(1, (who == -2).sum()),
        ]
        return TextBatch(
            packing.place(layout, students, num_rows, length, pad),
            packing.place(layout, teachers, num_rows, length, pad),
            segments,
            positions,
            packing.readouts(layout, students, num_rows, num_slots),
            packing.readouts(layout, teachers, num_rows, num_slots),
            *(
                packing.place_slots(layout, w.astype(np.float32), num_rows, num_slots)
                for w in weights
            ),
        )


def _slot_sizes(students: list[np.ndarray], teachers: list[np.ndarray]) -> np.ndarray:
    """Size slots for the longer of the two captions: one layout serves both."""
    return np.array([max(len(s), len(t)) for s, t in zip(students, teachers, strict=True)])
