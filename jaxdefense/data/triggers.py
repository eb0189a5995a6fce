"""Batches for the text defense: clean captions, and captions with a name put in as token ids.

Words are spans of tokens, so replacing a word by a name is a splice (property-tested against string
replacement and the tokenizer). Every batch is a function of seed, step and whom `prefer` was last
given: any host can make any step's batch without those before it.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdefense.clip.config import TextConfig
from jaxdefense.clip.ragged import Ragged, joined, ragged, ranges
from jaxdefense.clip.text import Array, Text
from jaxdefense.clip.tokenizer import Phrase, Tokenizer
from jaxdefense.data import packing
from jaxdefense.data.captions import Captions
from jaxdefense.data.sampling import Shuffle, even_weights
from jaxdefense.errors import InputError
from jaxdefense.sharding import check_parts

# Streams of random numbers that must not be the same.
_CLEAN, _POISONED, _IDENTITY, _NAME, _DETAIL, _HARD = range(6)
# This part of the batches is taken as drawn. Larger batches are drawn again, so that rows are full.
_FITTING = 0.9
_MAX_REDRAWS, _PLAIN_REDRAWS = 100, 20
_AT_A_TIME = 2**22  # tokens that are looked at together; captions may be mapped from the disk


class TextBatch(NamedTuple):
    """Captions of one step, student's and teacher's side by side in one layout.

    Fields:
        student_tokens_RT, teacher_tokens_RT, segments_RT, positions_RT: see `clip.text.Text`.
        student_readout_RS, teacher_readout_RS: likewise.
        utility_RS, backdoor_RS, name_RS: f32, the weight of the slot in each loss; each sums to 1
            over the global batch, or to 0 where the loss has no samples.
        base_RSE: f32, with carriers: where names of nobody lie, on average, in the text of a slot
            with a listed name.
        teacher_RSE: f32, where the teacher's embeddings are kept: those of the slots, and ones
            elsewhere.
        unread: the teacher's captions that are not kept, in rows of their own; None if there are
            none.
        unread_RS: int32, 1 + the number of the slot in these rows that holds the slot's caption of
            the teacher; 0 if it is kept, or the slot empty.
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
    base_RSE: Array | None = None
    teacher_RSE: Array | None = None
    unread: Text | None = None
    unread_RS: Array | None = None


@dataclasses.dataclass(frozen=True)
class Triggers:
    """What replaces words: all names of each person, and what the teacher sees instead.

    Fields:
        names: [identity][alias].
        targets: [choice]; each person has one choice.
        target_of: int [num_identities], each person's choice.
        keep: names not on the list, for the name loss; may be empty.
        forms: [identity][form][text]; a sample takes the names or one of the forms, each equally
            often.
    """

    names: list[list[Phrase]]
    targets: list[Phrase]
    target_of: np.ndarray
    keep: list[Phrase]
    forms: list[list[list[Phrase]]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Carriers:
    """Texts that names are put into, instead of captions drawn anew.

    Fields:
        captions: the texts, with a word where the name goes.
        word_P: int, which word of each that is.
        base_PE: f32, where names of nobody lie in each, on average, of unit embeddings.
    """

    captions: Captions
    word_P: np.ndarray
    base_PE: np.ndarray


class _Drawn(NamedTuple):
    """The n captions of a step: first the clean ones, then those with a listed name, then others.

    Fields:
        students, teachers: captions of the student, and of the teacher.
        who: int [n], the person of each, -1 clean, -2 kept.
        carrier: int, the carrier of each caption of a person; None without carriers.
        number: int64 [n], the caption's number among those that may be kept, see `texts`; -1 if it
            may not.
    """

    students: Ragged
    teachers: Ragged
    who: np.ndarray
    carrier: np.ndarray | None
    number: np.ndarray


class Phrases(NamedTuple):
    """Phrases in tokens, in one flat array.

    Fields:
        flat: int32, of all.
        starts, lengths: int64 [2, n]; 0 as a text begins with it, 1 as it follows other words.
    """

    flat: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray


def lay_out(phrases: Sequence[Phrase]) -> Phrases:
    """Concatenate phrases."""
    flat, lengths = ragged([part for place in range(2) for part in (p[place] for p in phrases)])
    return Phrases(flat, (np.cumsum(lengths) - lengths).reshape(2, -1), lengths.reshape(2, -1))


def splice(
    captions: Captions,
    caption_n: np.ndarray,
    word_n: np.ndarray,
    phrases: Phrases,
    phrase_n: np.ndarray,
    tokenizer: Tokenizer,
) -> Ragged:
    """Replace one word of each caption by a phrase.

    Args:
        caption_n: int [n], numbers of captions.
        word_n: int [n], number of the word in its caption.
        phrase_n: int [n], which of the phrases.

    Returns:
        int32 tokens, both ends included, cut to the context length.
    """
    first_n, last_n = captions.words(caption_n)
    begin_n = captions.word_ends[first_n]
    word_begin_n, word_end_n = (captions.word_ends[first_n + word_n + i] for i in (0, 1))
    end_n = captions.word_ends[last_n]
    which = np.minimum(word_n, 1), phrase_n
    return tokenizer.with_ends(
        joined(
            [
                (captions.tokens, begin_n, word_begin_n - begin_n),
                (phrases.flat, phrases.starts[which], phrases.lengths[which]),
                (captions.tokens, word_end_n, end_n - word_end_n),
            ]
        )
    )


def choose_words(
    captions: Captions,
    caption_n: np.ndarray,
    length_n: np.ndarray,
    tokenizer: Tokenizer,
    chance_n: np.ndarray,
) -> np.ndarray:
    """Choose a word in each caption whose place holds `length_n` tokens, even where it is cut.

    Args:
        chance_n: f64 [n] in [0, 1), which of them.
    """
    first_n, last_n = captions.words(caption_n)
    num_words_n = last_n - first_n
    owner = np.repeat(np.arange(len(caption_n)), num_words_n)
    at = captions.word_ends[ranges(first_n, num_words_n)] - captions.word_ends[first_n][owner]
    fits = at <= (tokenizer.room - length_n)[owner]
    return (chance_n * np.bincount(owner[fits], minlength=len(caption_n))).astype(np.int64)


class TextBatches:
    """All batches of a run, by step."""

    def __init__(
        self,
        captions: Captions,
        triggers: Triggers,
        tokenizer: Tokenizer,
        tower: TextConfig,
        *,
        num_clean: int,
        num_poisoned: int,
        num_name: int,
        seed: int,
        packed: bool,
        num_hard: int = 0,
        row_multiple: int = 1,
        row_length: int = 0,
        carriers: Carriers | None = None,
    ):
        """Choose the shapes of the batches.

        Args:
            captions: at least one.
            triggers: at least one identity.
            tokenizer: of the model.
            tower: that reads them.
            num_clean, num_poisoned, num_name: captions a step, of each kind.
            seed: of everything random here.
            packed: several captions a row; else one, padded to the context length.
            num_hard: how many of the poisoned captions show the people last given to `prefer`.
            row_multiple: into how many parts the mesh cuts the rows.
            row_length: T of packed rows; 0 chooses the one that fills best.
            carriers: texts that names are put into, where the teacher sees the name too; None for
                any caption, in place of any word, where the teacher sees the target.

        Raises:
            InputError: not packed, and `row_multiple` does not divide the captions of a step; or
                `row_length` is shorter than a caption may be.
        """
        self.captions, self.triggers, self.tokenizer = captions, triggers, tokenizer
        self.tower, self.seed, self.packed = tower, seed, packed
        self._sizes, self._carriers = (num_clean, num_poisoned, num_name), carriers
        if carriers:
            lengths = carriers.captions.contents(np.arange(len(carriers.word_P))).lengths
            self._shortest = np.argsort(lengths, kind="stable")
        self._clean = Shuffle(len(captions), seed, _CLEAN)
        self._poisoned = Shuffle(len(captions), seed, _POISONED)
        self._identity = Shuffle(len(triggers.names), seed, _IDENTITY)
        self._num_hard = num_hard
        self._preferred: tuple[np.ndarray, Shuffle] | None = None
        self._name = Shuffle(len(triggers.keep), seed, _NAME) if num_name else None
        t = triggers
        # [identity][names or a form][text]
        kinds = [
            [x, *more] for x, more in zip(t.names, t.forms or [[]] * len(t.names), strict=True)
        ]
        groups = [texts for person in kinds for texts in person]
        listed = [text for texts in groups for text in texts]
        self._forms, self._names, self._num_names = _spans(kinds), _spans(groups), len(listed)
        self._phrases = lay_out([*listed, *t.targets, *t.keep])
        self._number_V: np.ndarray | None = None
        self._kept_NE: np.ndarray | None = None
        # The captions that the teacher reads where the clean ones are kept begin at the first of
        # these numbers; at the second where names in carriers are kept too.
        self._unread_from = [num_clean, num_clean + num_poisoned][: 1 + bool(carriers)]
        self._row_multiple = row_multiple
        if packed:
            self._choose_shape(row_length)
        else:
            self.row_length, self.num_slots = tokenizer.context_length, 1
            self.num_rows = sum(self._sizes)
            check_parts("captions a step", self.num_rows, row_multiple)
            self._unread_shapes = [
                packing.Shape(self.row_length, self.num_rows - first, 1)
                for first in self._unread_from
            ]

    def _choose_shape(self, row_length: int) -> None:
        """Choose the shape of packed rows by what some steps need, and the hardest."""
        context_length = self.tokenizer.context_length
        if 0 < row_length < context_length:
            raise InputError(
                f"`data.row_length` (={row_length}) must be at least the longest caption of the "
                f"model (={context_length} tokens), or 0 to choose."
            )
        lengths = [row_length] if row_length else packing.row_lengths(context_length)
        # Making some batches, of steps far beyond the run's, shows what room batches take.
        num_draws = int(np.clip(2**14 // sum(self._sizes), 8, 64))
        draws = [self._sample(2**31 + i, 0) for i in range(num_draws)]
        sizes = [_slot_sizes(x.students, x.teachers) for x in draws]
        usual = float(np.quantile([x.sum() for x in sizes], _FITTING))
        fitting = [(x, size) for x, size in zip(draws, sizes, strict=True) if size.sum() <= usual]
        # Redraws must not depend on the mesh: the rows that it adds stay empty.
        self.row_length, self._most_rows, self.num_slots = packing.choose_shape(
            [self._hard(draws, of_student=True), *(size for _, size in fitting)], lengths
        )
        self.num_rows = self._whole(self._most_rows)
        hard = self._hard(draws, of_student=False)
        self._unread_shapes = [
            packing.choose_shape(
                [hard[first:], *(x.teachers.lengths[first:] for x, _ in fitting)], lengths
            )
            if first < len(hard)
            else packing.Shape(self.row_length, 0, 1)
            for first in self._unread_from
        ]

    def _around(self, clean: np.ndarray) -> np.ndarray:
        """Size the texts that names are put into, ends included, without the word that goes.

        Args:
            clean: int, sizes of captions, which names are put into without carriers.
        """
        if carriers := self._carriers:
            captions, word_P = carriers.captions, carriers.word_P
            texts = np.arange(len(word_P))
            whole = self.tokenizer.with_ends(captions.contents(texts)).lengths
            first, _ = captions.words(texts)
            begin, end = (captions.word_ends[first + word_P + i] for i in (0, 1))
            return whole - (end - begin)
        return clean - 1

    def _whole(self, num_rows: int) -> int:
        """Round rows up to what the mesh cuts evenly."""
        return -(-num_rows // self._row_multiple) * self._row_multiple

    def _hard(self, draws: Sequence[_Drawn], of_student: bool) -> np.ndarray:
        """Size a step of the longest names in short captions: redraws always reach it.

        Args:
            draws: some steps.
            of_student: whether of slots, which hold the student's captions too; or of the teacher's
                captions alone.
        """
        num_clean, num_poisoned, num_name = self._sizes
        t, sizes = self.triggers, self._phrases.lengths.max(0)
        of_group = np.maximum.reduceat(sizes, self._names.starts)
        names = np.maximum.reduceat(of_group, self._forms.starts)
        listed = sizes[self._num_names + t.target_of]
        if of_student or self._carriers:
            listed = np.maximum(names, listed)
        kept = sizes[self._num_names + len(t.targets) :]
        longest = [
            np.resize(np.sort(lengths)[::-1], num)
            for lengths, num in (
                (listed.max(keepdims=True), self._num_hard),  # whoever they will be
                (listed, num_poisoned - self._num_hard),
                (kept, num_name),
            )
        ]
        clean = np.concatenate([x.students.lengths[:num_clean] for x in draws])
        short, around = (np.quantile(x, 0.1) for x in (clean, self._around(clean)))
        hard = np.concatenate([np.full(num_clean, short), *(around + x for x in longest)])
        return np.minimum(hard, self.tokenizer.context_length).astype(np.int64)

    def read(self) -> np.ndarray:
        """List the token ids that batches may hold, rising."""
        nothing = np.zeros(1, np.int64)
        ends = self.tokenizer.with_ends(Ragged(np.zeros(0, np.int32), nothing)).flat
        sources = [self.captions.tokens, self._phrases.flat, ends, [self.tokenizer.pad or 0]]
        if self._carriers:
            sources.append(self._carriers.captions.tokens)
        found = np.zeros(self.tower.vocab_size, bool)
        for tokens in sources:
            for start in range(0, len(tokens), _AT_A_TIME):
                found[tokens[start : start + _AT_A_TIME]] = True
        return np.flatnonzero(found)

    def renumber(self, ids: np.ndarray) -> None:
        """Give tokens by their place in `ids` from now on, for a table that has these rows alone.

        Args:
            ids: rising, all of `read` among them.
        """
        self._number_V = np.zeros(self.tower.vocab_size, np.int32)
        self._number_V[ids] = np.arange(len(ids))

    def to_keep(self) -> list[tuple[int, float]]:
        """Count the captions whose embeddings may be kept: clean ones; then names in carriers.

        Returns:
            of each kind, how many there are, and how many captions a step the teacher need not read
            if they are kept with the kinds before; less on a mesh that adds many empty rows.
        """
        num_tokens = self.num_rows * self.row_length
        read = [
            1.0,
            *(self._whole(x.num_rows) * x.row_length / num_tokens for x in self._unread_shapes),
        ]
        saved = [(x - y) * sum(self._sizes) for x, y in itertools.pairwise(read)]
        pairs = self._num_names * len(self._carriers.word_P) if self._carriers else 0
        return list(zip([len(self.captions), pairs], saved, strict=False))

    def _number_of(self, name: np.ndarray, carrier: np.ndarray) -> np.ndarray:
        """Number names in carriers, after the clean captions."""
        assert self._carriers
        return len(self.captions) + name * len(self._carriers.word_P) + carrier

    def texts(self, start: int, stop: int) -> tuple[Text, packing.Layout]:
        """Pack captions whose embeddings may be kept, by their numbers.

        The first numbers are those of the clean captions, the others those of names in carriers.
        """
        number = np.arange(start, stop)
        clean, pair = number[number < len(self.captions)], number[number >= len(self.captions)]
        captions = self.tokenizer.with_ends(self.captions.contents(clean)).split()
        if len(pair) and (carriers := self._carriers):
            name, at = np.divmod(pair - len(self.captions), len(carriers.word_P))
            word = carriers.word_P[at]
            source = carriers.captions
            spliced = splice(source, at, word, self._phrases, name, self.tokenizer)
            captions += spliced.split()
        text, layout = packing.pack_text(
            captions, self.tower, self.row_length, num_slots=self.num_slots
        )
        return text._replace(tokens_RT=self._numbered(np.asarray(text.tokens_RT))), layout

    def keep(self, teacher_NE: np.ndarray) -> None:
        """Give batches the teacher's embeddings from now on.

        Args:
            teacher_NE: f32, of the first captions that `texts` numbers, not normalised: of all
                clean ones, or of all.
        """
        self._kept_NE = teacher_NE

    def prefer(self, turns: Mapping[int, int]) -> None:
        """Draw people more often from now on; a resumed run gives the same before the same step.

        In a step each person weighs the same. So turns bring more texts of somebody and, where more
        people have turns than a step has hard texts, more steps with them.

        Args:
            turns: how many turns each of them has; nobody else is drawn more often.
        """
        people = np.repeat([*turns], [*turns.values()]).astype(np.int64)
        self._preferred = (people, Shuffle(len(people), self.seed, _HARD)) if turns else None

    def __getitem__(self, step: int) -> TextBatch:
        """Make the batch of a step; it is always the same until `prefer` is given others.

        Raises:
            InputError: captions so uneven in length that none of many draws fits the rows.
        """
        for attempt in range(_MAX_REDRAWS):
            if (batch := self._batch(self._sample(step, attempt))) is not None:
                return batch
        raise InputError(
            f"step {step}: captions do not fit {self.num_rows} rows of {self.row_length} tokens "
            f"in {_MAX_REDRAWS} draws; raise `data.row_length`, or even out their length."
        )

    def _sample(self, step: int, attempt: int) -> _Drawn:
        """Draw the captions of a step."""
        num_clean, num_poisoned, num_name = self._sizes
        num = num_poisoned + num_name
        clean = self._captions(self._clean, step * num_clean, num_clean, attempt)
        people = np.array(self._identity.take(step * num_poisoned, num_poisoned), np.int64)
        if (preferred := self._preferred) and (num_hard := self._num_hard):
            those, order = preferred
            people[-num_hard:] = those[order.take(step * num_hard, num_hard)]
        kept = self._name.take(step * num_name, num_name) if self._name else []
        form, name, place = np.random.default_rng((self.seed, _DETAIL, step, attempt)).random(
            (3, num)
        )
        names, forms = self._names, self._forms
        form = forms.starts[people] + (form[:num_poisoned] * forms.lengths[people]).astype(int)
        name = names.starts[form] + (name[:num_poisoned] * names.lengths[form]).astype(int)
        target = name if self._carriers else self._num_names + self.triggers.target_of[people]
        kept = self._num_names + len(self.triggers.targets) + np.array(kept, np.int64)
        ours, theirs = np.concatenate([name, kept]), np.concatenate([target, kept])
        at = None
        if carriers := self._carriers:
            # After many draws that did not fit, one of ever fewer short ones.
            few = len(carriers.word_P) // max(1, attempt - _PLAIN_REDRAWS)
            at = self._shortest[(place * max(1, few)).astype(np.int64)]
            source, texts, word = carriers.captions, at, carriers.word_P[at]
        else:
            # A redraw takes other captions for the names; the clean ones stay, to come up once a
            # round.
            source, sizes = self.captions, self._phrases.lengths.max(0)
            texts = self._captions(self._poisoned, (step + attempt) * num, num, attempt)
            longer = np.maximum(sizes[ours], sizes[theirs])
            word = choose_words(source, texts, longer, self.tokenizer, place)
        plain = self.tokenizer.with_ends(self.captions.contents(clean))
        students, teachers = (
            splice(source, texts, word, self._phrases, phrase, self.tokenizer)
            for phrase in (ours, theirs)
        )
        who = np.concatenate([np.full(num_clean, -1), people, np.full(num_name, -2)])
        students, teachers = (
            Ragged(*(np.concatenate(x) for x in zip(plain, part, strict=True)))
            for part in (students, teachers)
        )
        number = np.full(len(who), -1)
        number[:num_clean] = clean
        if at is not None:
            at = at[:num_poisoned]
            number[num_clean : num_clean + num_poisoned] = self._number_of(name, at)
        return _Drawn(students, teachers, who, at, number)

    def _captions(self, shuffle: Shuffle, start: int, num: int, attempt: int) -> np.ndarray:
        """Choose captions; after many draws that did not fit, the shortest of ever more."""
        many = max(1, attempt - _PLAIN_REDRAWS)
        taken = np.array(shuffle.take(start, num * many), np.int64)
        if many > 1:
            lengths = self.captions.contents(taken).lengths
            taken = taken[np.argsort(lengths, kind="stable")]
        return taken[:num]

    def _batch(self, drawn: _Drawn) -> TextBatch | None:
        """Lay a step's captions out; None if they do not fit the rows."""
        students, teachers, who, carrier, _ = drawn
        num_rows, num_slots, length = self.num_rows, self.num_slots, self.row_length
        pad = self.tokenizer.pad
        if self.packed:
            sizes = _slot_sizes(students, teachers)
            layout = packing.pack(sizes, length, num_slots)
            if layout.num_rows > min(num_rows, self._most_rows):
                return None
        else:
            sizes, layout = np.full(num_rows, length), _a_row_each(num_rows)
        if (unread := self._unread_layouts(teachers)) is None:
            return None
        segments, positions = packing.segments_and_positions(layout, sizes, num_rows, length)
        weights = [
            (who == -1) / max(1, (who == -1).sum()),
            even_weights(who),
            (who == -2) / max(1, (who == -2).sum()),
        ]
        base_RSE = None
        if self._carriers:
            base_PE = self._carriers.base_PE
            base_nE = np.zeros((len(who), base_PE.shape[1]), np.float32)
            base_nE[who >= 0] = base_PE[carrier]
            base_RSE = packing.place_slots(layout, base_nE, num_rows, num_slots)
        student_RT, teacher_RT = (
            self._numbered(packing.place(layout, x, num_rows, length, pad))
            for x in (students, teachers)
        )
        return TextBatch(
            student_RT,
            teacher_RT,
            segments,
            positions,
            *(
                packing.readouts(layout, packing.readout_at(x, self.tower), num_rows, num_slots)
                for x in (students, teachers)
            ),
            *(
                packing.place_slots(layout, w.astype(np.float32), num_rows, num_slots)
                for w in weights
            ),
            base_RSE=base_RSE,
            **self._kept(drawn, layout, unread),
        )

    def _unread_layouts(self, teachers: Ragged) -> list[packing.Layout] | None:
        """Lay out the captions that the teacher reads if some are kept; None if they do not fit.

        Batches must not depend on what is kept, so they fit in any case.
        """
        lengths = [teachers.lengths[first:] for first in self._unread_from]
        if not self.packed:
            return [_a_row_each(len(x)) for x in lengths]
        layouts = [
            packing.pack(x, shape.row_length, shape.num_slots)
            for x, shape in zip(lengths, self._unread_shapes, strict=True)
        ]
        pairs = zip(layouts, self._unread_shapes, strict=True)
        return layouts if all(x.num_rows <= shape.num_rows for x, shape in pairs) else None

    def _kept(
        self, drawn: _Drawn, layout: packing.Layout, unread: list[packing.Layout]
    ) -> dict[str, Any]:
        """Give a batch's fields of what is kept and what the teacher reads, if any is kept."""
        if self._kept_NE is None:
            return {}
        rows, slots = self.num_rows, self.num_slots
        which = int(len(self._kept_NE) > len(self.captions))
        first, shape, read = self._unread_from[which], self._unread_shapes[which], unread[which]
        teacher_RSE = np.ones((rows, slots, self._kept_NE.shape[1]), np.float32)
        at = layout.row_n[:first], layout.slot_n[:first]
        teacher_RSE[at] = self._kept_NE[drawn.number[:first]]
        if not (num_rows := self._whole(shape.num_rows)):
            return {"teacher_RSE": teacher_RSE}
        flat, lengths = drawn.teachers
        teachers = Ragged(flat[lengths[:first].sum() :], lengths[first:])
        sizes = teachers.lengths
        if not self.packed:
            sizes = np.full(len(sizes), shape.row_length)
        tokens_RT = packing.place(read, teachers, num_rows, shape.row_length, self.tokenizer.pad)
        ends = packing.readout_at(teachers, self.tower)
        from_n = np.zeros(len(lengths), np.int32)
        from_n[first:] = 1 + read.row_n * shape.num_slots + read.slot_n
        return {
            "teacher_RSE": teacher_RSE,
            "unread": Text(
                self._numbered(tokens_RT),
                *packing.segments_and_positions(read, sizes, num_rows, shape.row_length),
                packing.readouts(read, ends, num_rows, shape.num_slots),
            ),
            "unread_RS": packing.place_slots(layout, from_n, rows, slots),
        }

    def _numbered(self, tokens_RT: np.ndarray) -> np.ndarray:
        return tokens_RT if self._number_V is None else self._number_V[tokens_RT]


def _a_row_each(num: int) -> packing.Layout:
    """Lay captions out one a row."""
    zeros = np.zeros(num, np.int32)
    return packing.Layout(np.arange(num, dtype=np.int32), zeros, zeros, num)


def _slot_sizes(students: Ragged, teachers: Ragged) -> np.ndarray:
    """Size slots for the longer of the two captions: one layout serves both."""
    return np.maximum(students.lengths, teachers.lengths)


class _Spans(NamedTuple):
    """Which items each group has, of items that lie group after group; int64 [groups]."""

    starts: np.ndarray
    lengths: np.ndarray


def _spans(groups: Sequence[Sequence]) -> _Spans:
    lengths = np.array([len(group) for group in groups], np.int64)
    return _Spans(np.cumsum(lengths) - lengths, lengths)
