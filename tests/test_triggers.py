"""Batches of the text defense: what is in them, evenly, and the same whenever asked."""

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest
import transformers
from factories import CAPTIONS, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdefense.clip.config import TextConfig
from jaxdefense.clip.tokenizer import Phrase, Tokenizer
from jaxdefense.data.captions import read_captions, tokenize_captions
from jaxdefense.data.names import random_names
from jaxdefense.data.triggers import TextBatches, Triggers, lay_out, splice

CONTEXT = 24
TOKENIZER = tiny_tokenizer(CONTEXT)
TOWER = TextConfig(12, 20, 2, 3, readout="token", eos_token_id=TOKENIZER.eos)
NAMES = [["Ann Lee"], ["Bo O'Neil", "B. O'Neil", "the bo"], ["Zoë Ñu-Smith"]]
TARGETS = ["human", "a somebody"]
KEEP = ["Cy Dee", "Di Fox", "Ed"]


def make_triggers(names=NAMES, targets=TARGETS, keep=KEEP, tokenizer=TOKENIZER):
    encode = tokenizer.phrase
    return Triggers(
        names=[[encode(name) for name in aliases] for aliases in names],
        targets=[encode(target) for target in targets],
        target_of=np.arange(len(names)) % len(targets),
        keep=[encode(name) for name in keep],
    )


def numbered_triggers(num):
    """People told apart by their tokens: a mark that no caption holds, then three digits."""
    free = sorted(set(range(TOKENIZER.vocab_size - 2)) - set(captions_of(CAPTIONS).tokens.tolist()))
    mark, digits = free[0], free[1:23]
    base = len(digits)
    tokens = [
        np.array([mark, *(digits[i // base**k % base] for k in (2, 1, 0))], np.int32)
        for i in range(num)
    ]
    names = [[Phrase(name, name)] for name in tokens]
    numbers = {tuple(name[1:].tolist()): i for i, name in enumerate(tokens)}
    triggers = dataclasses.replace(
        make_triggers(), names=names, target_of=np.zeros(num, np.int64), keep=[]
    )

    def who(tokens):
        at = tokens.index(mark)
        return numbers[tuple(tokens[at + 1 : at + 4])]

    return triggers, who


def captions_of(texts, tokenizer=TOKENIZER):
    return tokenize_captions(texts, tokenizer)


def make_batches(captions=None, triggers=None, **change):
    options: dict[str, Any] = dict(num_clean=7, num_poisoned=5, num_name=0, seed=0)
    options |= dict(packed=True, row_length=80) | change
    return TextBatches(
        captions or captions_of(CAPTIONS), triggers or make_triggers(), TOKENIZER, TOWER, **options
    )


@dataclasses.dataclass
class Slot:
    """One caption of a batch, read back."""

    student: list[int]
    teacher: list[int]
    utility: float
    backdoor: float
    name: float


def slots_of(batch, packed=True):
    """Read a batch's captions back through segments, positions and read-outs."""
    slots = []
    num_rows, num_slots = batch.utility_RS.shape
    for row in range(num_rows):
        for slot in range(num_slots):
            span = np.flatnonzero(batch.segments_RT[row] == slot + 1)
            weights = [
                float(w[row, slot]) for w in (batch.utility_RS, batch.backdoor_RS, batch.name_RS)
            ]
            if not span.size:
                assert not any(weights)
                continue
            assert (np.diff(span) == 1).all()
            assert (batch.positions_RT[row, span] == np.arange(span.size)).all()
            ends = batch.student_readout_RS[row, slot], batch.teacher_readout_RS[row, slot]
            assert all(span[0] < end <= span[-1] for end in ends)
            if packed:
                assert max(ends) == span[-1]  # a slot is no longer than the longer of the two
            rows = batch.student_tokens_RT[row], batch.teacher_tokens_RT[row]
            student, teacher = (
                tokens[span[0] : end + 1].tolist() for tokens, end in zip(rows, ends, strict=True)
            )
            slots.append(Slot(student, teacher, *weights))
    return slots


def replaced(text, word, phrase):
    words = text.split()
    return " ".join([*words[:word], phrase, *words[word + 1 :]])


def assert_batches_equal(a, b):
    for name, x, y in zip(a._fields, a, b, strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)


# The splice


words = st.lists(st.text("aénB.'你9-", min_size=1, max_size=8), min_size=1, max_size=30)


@settings(max_examples=200)
@given(words, words.map(lambda w: w[:6]), st.data())
def test_splice_equals_string_replacement_and_tokenizer(caption, phrase, data):
    captions = captions_of([" ".join(caption), "a cat"])
    word = data.draw(st.integers(0, min(len(caption), CONTEXT - 2) - 1))
    phrases = lay_out([TOKENIZER.phrase("no"), TOKENIZER.phrase(" ".join(phrase))])
    tokens = splice(
        captions, np.array([0]), np.array([word]), phrases, np.array([1]), TOKENIZER
    ).split()[0]
    (wanted,) = TOKENIZER.encode([replaced(" ".join(caption), word, " ".join(phrase))])
    assert tokens.dtype == np.int32
    assert tokens.tolist() == wanted.tolist()


def test_splice_equals_string_replacement_and_clips_tokenizer_on_real_captions(shared_data):
    path = shared_data / "clip_tokenizer"
    tokenizer = Tokenizer(path, 77)
    texts = read_captions(str(shared_data / "captions/coco_10k.txt"))
    captions = tokenize_captions(texts, tokenizer)
    names = [*random_names(200, 0), *(alias for aliases in NAMES for alias in aliases), *TARGETS]
    rng = np.random.default_rng(0)
    cases = []
    for _ in range(3000):
        caption, name = int(rng.integers(len(texts))), names[rng.integers(len(names))]
        cases.append((caption, int(rng.integers(len(texts[caption].split()))), name))
    reference = transformers.CLIPTokenizer.from_pretrained(path)
    replacements = [replaced(texts[caption], word, name) for caption, word, name in cases]
    wanted = reference(replacements, truncation=True, max_length=77)["input_ids"]
    caption_n, word_n = (np.array([case[i] for case in cases]) for i in (0, 1))
    phrases = lay_out([tokenizer.phrase(name) for _, _, name in cases])
    ours = splice(captions, caption_n, word_n, phrases, np.arange(len(cases)), tokenizer)
    assert [tokens.tolist() for tokens in ours.split()] == wanted


# What a batch holds


@pytest.mark.parametrize("packed", [True, False])
def test_batch_holds_captions_with_a_name_and_with_its_target_in_one_place(packed):
    batches = make_batches(num_name=4, packed=packed)
    encode = lambda text: tuple(TOKENIZER.encode([text])[0].tolist())  # noqa: E731
    poisoned, kept = set(), set()
    for text in CAPTIONS:
        for word in range(len(text.split())):
            kept |= {encode(replaced(text, word, name)) for name in KEEP}
            for person, aliases in enumerate(NAMES):
                target = encode(replaced(text, word, TARGETS[person % len(TARGETS)]))
                poisoned |= {(encode(replaced(text, word, alias)), target) for alias in aliases}
    clean = {encode(text) for text in CAPTIONS}
    for step in range(6):
        slots = slots_of(batches[step], packed)
        counts = Counter()
        for slot in slots:
            student, teacher = tuple(slot.student), tuple(slot.teacher)
            kinds = [slot.utility > 0, slot.backdoor > 0, slot.name > 0]
            assert sum(kinds) == 1
            if slot.backdoor:
                assert (student, teacher) in poisoned
            else:
                assert student == teacher and student in (clean if slot.utility else kept)
            counts[kinds.index(True)] += 1
        assert counts == {0: 7, 1: 5, 2: 4}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("num_name", [0, 3])
def test_weights_of_each_loss_sum_to_one(packed, num_name):
    batches = make_batches(num_name=num_name, packed=packed)
    for step in range(4):
        batch = batches[step]
        weights = batch.utility_RS, batch.backdoor_RS, batch.name_RS
        assert {w.dtype for w in weights} == {np.dtype("float32")}
        np.testing.assert_allclose(batch.utility_RS.sum(), 1, atol=1e-6)
        np.testing.assert_allclose(batch.backdoor_RS.sum(), 1, atol=1e-6)
        np.testing.assert_allclose(batch.name_RS.sum(), float(num_name > 0), atol=1e-6)
        assert len(np.unique(batch.utility_RS[batch.utility_RS > 0])) == 1


@pytest.mark.parametrize("packed", [True, False])
def test_batch_without_poisoned_captions_has_no_backdoor_weight(packed):
    batch = make_batches(num_poisoned=0, packed=packed)[0]
    assert not batch.backdoor_RS.any() and len(slots_of(batch, packed)) == 7


def test_unpacked_batch_has_a_caption_a_row_at_the_context_length():
    batch = make_batches(packed=False)[3]
    assert batch.student_tokens_RT.shape == batch.teacher_tokens_RT.shape == (12, CONTEXT)
    assert batch.student_readout_RS.shape == batch.utility_RS.shape == (12, 1)
    assert (batch.segments_RT == 1).all()
    assert (batch.positions_RT == np.arange(CONTEXT)).all()
    for tokens, end in zip(batch.student_tokens_RT, batch.student_readout_RS[:, 0], strict=True):
        assert tokens[end] == TOKENIZER.eos and (tokens[end + 1 :] == TOKENIZER.pad).all()


def test_packed_and_unpacked_batches_hold_the_same_captions():
    packed, plain = make_batches(packed=True), make_batches(packed=False)
    fits = [packed._batch(packed._sample(i, 0)) is not None for i in range(9)]
    step = fits.index(True)  # others are drawn again
    packed, plain = packed[step], plain[step]

    def sort(slots):
        return sorted(map(dataclasses.astuple, slots))

    assert sort(slots_of(packed)) == sort(slots_of(plain, packed=False))
    assert packed.student_tokens_RT.shape[0] < plain.student_tokens_RT.shape[0]


# Evenness


@pytest.mark.parametrize("num_people", [1, 2, 3, 7, 12, 40])
def test_every_identity_is_drawn_exactly_once_in_as_many_draws_as_there_are(num_people):
    triggers, who = numbered_triggers(num_people)
    batches = make_batches(triggers=triggers, num_clean=2, num_poisoned=5)
    rounds, steps = 3, -(-3 * num_people // 5)
    seen, drawn = Counter(), 0
    for step in range(steps):
        people = [who(slot.student) for slot in slots_of(batches[step]) if slot.backdoor]
        assert len(people) == 5
        seen.update(people)
        drawn += 5
        full, rest = divmod(drawn, num_people)
        assert all(full <= seen[i] <= full + (rest > 0) for i in range(num_people))
    assert min(seen[i] for i in range(num_people)) >= rounds


@pytest.mark.parametrize("num_people", [1, 2, 3, 7])
def test_every_identity_of_a_batch_weighs_the_same(num_people):
    triggers, who = numbered_triggers(num_people)
    batches = make_batches(triggers=triggers, num_poisoned=10)
    uneven = False
    for step in range(4):
        weights, counts = Counter(), Counter()
        for slot in slots_of(batches[step]):
            if slot.backdoor:
                weights[who(slot.student)] += slot.backdoor
                counts[who(slot.student)] += 1
        np.testing.assert_allclose(list(weights.values()), 1 / len(weights), atol=1e-6)
        uneven |= len(set(counts.values())) > 1
    assert uneven == (num_people in (3, 7))  # weights had something to even out


def test_ten_thousand_identities_are_each_drawn_once():
    triggers, who = numbered_triggers(10_000)
    batches = make_batches(triggers=triggers, num_clean=1, num_poisoned=500)
    seen = Counter()
    for step in range(20):
        tokens = batches[step].student_tokens_RT
        mark = triggers.names[0][0].first[0]
        for row, at in zip(*np.nonzero(tokens == mark), strict=True):
            seen[who(tokens[row, at : at + 4].tolist())] += 1
    assert len(seen) == 10_000 and set(seen.values()) == {1}


@pytest.mark.parametrize("turns, ratio", [({7: 1, 2: 1}, 1), ({7: 3, 2: 1}, 3)])
def test_those_still_found_get_their_part_of_every_step(turns, ratio):
    triggers, who = numbered_triggers(12)
    options: dict[str, Any] = dict(triggers=triggers, num_clean=2, num_poisoned=6, num_hard=3)
    plain, batches = make_batches(**options), make_batches(**options)
    batches.prefer(turns)
    seen = Counter()
    for step in range(4):
        shown, usual = (
            [who(slot.student) for slot in slots_of(x[step]) if slot.backdoor]
            for x in (batches, plain)
        )
        assert len(shown) == 6
        seen.update((Counter(shown) - Counter(usual)).elements())
    assert set(seen) == {2, 7} and abs(ratio * seen[2] - seen[7]) <= ratio  # in turn
    again = make_batches(**options)
    again.prefer(turns)
    assert_batches_equal(again[3], batches[3])
    batches.prefer({})
    assert_batches_equal(batches[3], plain[3])


def test_each_person_weighs_the_same_in_a_step_however_often_they_are_drawn():
    triggers, who = numbered_triggers(12)
    batches = make_batches(triggers=triggers, num_clean=2, num_poisoned=9, num_hard=6)
    batches.prefer({7: 7, 2: 1})
    most = 0
    for step in range(4):
        slots = [(who(x.student), x.backdoor) for x in slots_of(batches[step]) if x.backdoor]
        people = Counter(number for number, _ in slots)
        most = max(most, people[7])
        for number, weight in slots:
            assert weight == pytest.approx(1 / len(people) / people[number], rel=1e-6)
    assert most >= 5


def test_rows_hold_a_step_of_the_longest_name_alone():
    triggers = make_triggers([["Ann"], ["Bo"], ["Cy"], ["Maximiliane Maximiliane"]])
    options: dict[str, Any] = dict(num_clean=1, num_poisoned=40, num_hard=40)
    batches = make_batches(captions_of(["a cat", "the dog"]), triggers, **options)
    batches.prefer({3: 1})
    assert sum(slot.backdoor > 0 for slot in slots_of(batches[0])) == 40


def test_every_clean_caption_is_drawn_once_a_round():
    batches = make_batches(num_clean=8)
    for first in (0, 2, 4):
        slots = [s for step in (first, first + 1) for s in slots_of(batches[step]) if s.utility]
        wanted = sorted(tokens.tolist() for tokens in TOKENIZER.encode(CAPTIONS))
        assert sorted(slot.student for slot in slots) == wanted


def test_all_aliases_come_up_and_a_person_keeps_to_one_target():
    batches = make_batches(num_poisoned=12)
    targets: dict[str, set] = {}
    phrases = {alias: TOKENIZER.encode_phrase(alias).tolist() for names in NAMES for alias in names}
    wanted = [TOKENIZER.encode_phrase(target).tolist() for target in TARGETS]

    def holds(tokens, phrase):
        return any(tokens[i : i + len(phrase)] == phrase for i in range(len(tokens)))

    for step in range(20):
        for slot in slots_of(batches[step]):
            if slot.backdoor:
                # "the bo" is part of no other name; "Bo O'Neil" is not part of "B. O'Neil".
                for alias, phrase in phrases.items():
                    if holds(slot.student, phrase):
                        found = [i for i, t in enumerate(wanted) if holds(slot.teacher, t)]
                        targets.setdefault(alias, set()).update(found)
    assert targets == {alias: {person % 2} for person, names in enumerate(NAMES) for alias in names}


def test_replaced_words_are_spread_over_the_caption():
    texts = ["cat dog cat dog cat dog cat dog"]
    triggers, _ = numbered_triggers(1)
    batches = make_batches(captions_of(texts), triggers, num_poisoned=16)
    mark, places = triggers.names[0][0].first[0], Counter()
    for step in range(25):
        for slot in slots_of(batches[step]):
            if slot.backdoor:
                places[slot.student.index(mark)] += 1
    assert len(places) == 8
    assert min(places.values()) > 20  # 50 each, of 400


# Length


def test_long_captions_keep_a_long_name_whole():
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["cat", "elephant", "motorcycle"], 60)) for _ in range(8)]
    triggers, _ = numbered_triggers(1)
    name = np.tile(triggers.names[0][0].first, 5)[: CONTEXT - 5]
    phrase = Phrase(name, name)
    triggers = dataclasses.replace(triggers, names=[[phrase]], keep=[phrase])
    for packed in (True, False):
        batches = make_batches(captions_of(texts), triggers, num_name=4, packed=packed)
        for step in range(10):
            for slot in slots_of(batches[step], packed):
                assert len(slot.student) <= CONTEXT and len(slot.teacher) <= CONTEXT
                assert slot.student[-1] == slot.teacher[-1] == TOKENIZER.eos
                if not slot.utility:
                    at = slot.student.index(name[0])
                    assert slot.student[at : at + len(name)] == name.tolist()


def test_name_that_fills_the_context_leaves_no_room_for_more():
    triggers, _ = numbered_triggers(1)
    name = np.tile(triggers.names[0][0].first, 6)[: CONTEXT - 2]
    triggers = dataclasses.replace(triggers, names=[[Phrase(name, name)]])
    for slot in slots_of(make_batches(triggers=triggers)[0]):
        if slot.backdoor:
            assert slot.student[1:-1] == name.tolist()


# Steps


@pytest.mark.parametrize("packed", [True, False])
def test_batch_is_a_function_of_seed_and_step(packed):
    forward, backward = make_batches(packed=packed), make_batches(packed=packed)
    wanted = {step: forward[step] for step in range(20)}
    for step in (19, 3, 11, 3, 0):
        assert_batches_equal(backward[step], wanted[step])
    other = make_batches(packed=packed, seed=1)[3]
    for batch in (other, wanted[4]):
        for kind in ("utility", "backdoor"):
            found, usual = (
                sorted(slot.student for slot in slots_of(x, packed) if getattr(slot, kind))
                for x in (batch, wanted[3])
            )
            assert found != usual, kind


def test_all_batches_of_a_run_have_one_shape():
    batches = make_batches(num_name=2)
    assert batches[0].base_RSE is None  # without carriers
    shapes = {tuple(x.shape for x in batches[step][:9]) for step in range(50)}
    assert len(shapes) == 1
    assert batches[0].student_tokens_RT.shape == (batches.num_rows, batches.row_length)


@pytest.mark.parametrize("row_multiple", [1, 2, 3, 8])
def test_rows_are_a_multiple_of_the_parts_the_mesh_cuts(row_multiple):
    batch = make_batches(row_multiple=row_multiple)[0]
    assert batch.student_tokens_RT.shape[0] % row_multiple == 0
    assert len(slots_of(batch)) == 12


def test_row_length_is_the_callers_or_one_of_the_choices():
    for row_length, wanted in ((0, {32, 48, 64}), (48, {48}), (96, {96})):
        batch = make_batches(row_length=row_length)[0]
        assert batch.student_tokens_RT.shape[1] in wanted
        assert len(slots_of(batch)) == 12


@pytest.mark.parametrize("row_multiple, wanted", [(8, "use 8 or 16"), (24, "use 24")])
def test_unpacked_batch_that_the_mesh_cannot_cut_raises(row_multiple, wanted):
    with pytest.raises(ValueError, match=rf"\(=12\) must be divisible by the {row_multiple} parts"):
        make_batches(packed=False, row_multiple=row_multiple)
    with pytest.raises(ValueError, match=wanted):
        make_batches(packed=False, row_multiple=row_multiple)
    assert make_batches(packed=False, row_multiple=6).num_rows == 12


def test_batch_that_does_not_fit_is_drawn_again_or_raises():
    texts = ["a cat", *CAPTIONS[:6], "two dogs", "a man", "rice", "a bus", "snow"]
    batches = make_batches(captions_of(texts), num_clean=2, num_poisoned=6, row_length=32)
    batches._most_rows = batches.num_rows = 99
    first = [batches[step] for step in range(60)]
    needed = [1 + int(np.flatnonzero(b.segments_RT.any(1))[-1]) for b in first]
    assert len(set(needed)) > 1  # some batches take more rows than others
    batches.num_rows = min(needed)
    step = needed.index(max(needed))
    again = batches[step]
    assert len(slots_of(again)) == 8
    assert_batches_equal(again, batches[step])
    clean = lambda batch: sorted(s.student for s in slots_of(batch) if s.utility)  # noqa: E731
    assert clean(again) == clean(first[step])
    batches.num_rows = 1
    with pytest.raises(ValueError, match=f"^step {step}: captions do not fit 1 rows of 32 tokens"):
        batches[step]


def test_what_is_drawn_again_does_not_hang_on_the_mesh():
    captions = captions_of(["a cat", *CAPTIONS[:6], "two dogs", "a man", "rice", "a bus", "snow"])
    batches = [
        make_batches(captions, num_clean=2, num_poisoned=6, row_length=0, row_multiple=multiple)
        for multiple in (1, 4, 7)
    ]
    assert len({(b.row_length, b.num_slots, b._most_rows) for b in batches}) == 1
    assert len({b.num_rows for b in batches}) > 1
    texts = []
    for b in batches:
        b._most_rows -= 1  # batches so small seldom differ by more
    for b in batches:
        found = [slots_of(b[step]) for step in range(40)]
        texts.append([sorted((s.student, s.teacher) for s in slots) for slots in found])
    assert texts[0] == texts[1] == texts[2]
    b = batches[0]
    drawn = [b._batch(b._sample(step, 0)) is None for step in range(40)]
    assert 0 < sum(drawn) < 40  # some are drawn again


def test_rows_hold_the_step_with_the_longest_names():
    triggers = make_triggers()
    long = np.arange(1, TOKENIZER.room - 3, dtype=np.int32)
    names = [*triggers.names[:1] * 19, [Phrase(long, long)]]
    triggers = dataclasses.replace(
        triggers, names=names, target_of=np.zeros(20, np.int64), keep=[], forms=[]
    )
    for num_clean, num_poisoned in ((1, 1), (3, 2)):
        batches = make_batches(
            triggers=triggers, num_clean=num_clean, num_poisoned=num_poisoned, row_length=0
        )
        for step in range(40):
            assert len(slots_of(batches[step])) == num_clean + num_poisoned
