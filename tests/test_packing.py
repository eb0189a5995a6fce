"""Packed rows: no caption lost, overlapped or cut, and embeddings as if each had its own row."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factories import write_model_directory
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdefense.clip.config import TextConfig
from jaxdefense.clip.ragged import ragged
from jaxdefense.clip.text import SHARED, plain_text
from jaxdefense.convert.directory import read_model_directory
from jaxdefense.data import packing

LENGTH, VOCAB = 24, 50
LAST = TextConfig(12, 20, 2, 3, readout="last")
MAX_CAPTIONS = 12

lengths = st.lists(st.integers(2, LENGTH), min_size=1, max_size=MAX_CAPTIONS)


def make_captions(sizes, seed=0):
    """Captions of these lengths whose tokens are all different, so that none can stand in."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCAB, size).astype(np.int32) for size in sizes]


def coco_lengths(num, seed=0):
    """Token counts with the mean (13.6) and spread of COCO captions."""
    rng = np.random.default_rng(seed)
    return np.clip(np.round(rng.gamma(3.2, 1.75, num) + 8), 7, 77).astype(np.int64)


# The layout


@given(lengths, st.integers(1, 8), st.integers(0, 9))
def test_pack_loses_overlaps_and_cuts_no_caption(sizes, num_slots, extra):
    sizes = np.array(sizes)
    row_length = int(sizes.max()) + extra
    layout = packing.pack(sizes, row_length, num_slots)
    taken = np.zeros((layout.num_rows, row_length), int)
    for row, start, size in zip(layout.row_n, layout.start_n, sizes, strict=True):
        assert start + size <= row_length
        taken[row, start : start + size] += 1
    assert taken.max() == 1 and taken.sum() == sizes.sum()
    slots = list(zip(layout.row_n.tolist(), layout.slot_n.tolist(), strict=True))
    assert len(set(slots)) == len(sizes)
    assert layout.slot_n.max() < num_slots
    assert set(layout.row_n.tolist()) == set(range(layout.num_rows))


@given(st.lists(st.tuples(st.integers(0, 5), lengths), min_size=1, max_size=4), st.integers(1, 8))
def test_prompts_are_a_beginning_that_stands_once_and_the_rest(groups, num_slots):
    captions, number = [], 0
    for begin, sizes in groups:
        shared = make_captions([begin], seed=number)[0]
        rest = make_captions([max(1, size - begin) for size in sizes], seed=number + 1)
        captions.append([np.concatenate([shared, caption]) for caption in rest])
        number += 2
    text, layout = packing.pack_prompts(captions, LAST, LENGTH, num_slots)
    owner = np.repeat(np.arange(len(captions)), [len(group) for group in captions])
    covered = 0
    for i, caption in enumerate(caption for group in captions for caption in group):
        row, slot = layout.row_n[i], layout.slot_n[i]
        shared, own = text.segments_RT[row] == SHARED, text.segments_RT[row] == slot + 1
        covered += own.sum()
        assert own.any() and shared.sum() >= min(groups[owner[i]][0], len(caption) - 1)
        here = shared | own
        np.testing.assert_array_equal(text.tokens_RT[row][here], caption)
        np.testing.assert_array_equal(text.positions_RT[row][here], np.arange(len(caption)))
        assert text.readout_RS[row, slot] == np.flatnonzero(own)[-1]
        assert len(set(owner[layout.row_n == row])) == 1
    assert covered == (text.segments_RT > 0).sum()
    assert text.readout_RS.shape == (layout.num_rows, num_slots)


@given(lengths, st.integers(1, 8))
def test_packed_text_spells_every_caption(sizes, num_slots):
    captions = make_captions(sizes)
    text, layout = packing.pack_text(captions, LAST, LENGTH, num_slots=num_slots)
    assert text.readout_RS.shape == (layout.num_rows, num_slots)
    covered = 0
    for i, caption in enumerate(captions):
        row, slot = layout.row_n[i], layout.slot_n[i]
        here = text.segments_RT[row] == slot + 1
        covered += here.sum()
        np.testing.assert_array_equal(text.tokens_RT[row][here], caption)
        np.testing.assert_array_equal(text.positions_RT[row][here], np.arange(len(caption)))
        assert text.readout_RS[row, slot] == np.flatnonzero(here)[-1]
    assert (text.segments_RT > 0).sum() == covered


def test_rows_beyond_those_in_use_are_padding():
    captions = make_captions([5, 9])
    text, layout = packing.pack_text(captions, LAST, LENGTH, num_rows=4, num_slots=3)
    assert layout.num_rows == 1
    assert text.tokens_RT.shape == (4, LENGTH) and text.readout_RS.shape == (4, 3)
    assert not text.segments_RT[1:].any() and not text.readout_RS[1:].any()


READOUTS = {
    "largest": TextConfig(12, 20, 2, 3),
    "token": TextConfig(12, 20, 2, 3, readout="token", eos_token_id=3),
    "last": LAST,
}


def position(caption, readout):
    """Where the libraries read a caption out, by their own expressions."""
    if readout == "largest":  # transformers with `eos_token_id` 2, open_clip with `argmax`
        return int(caption.argmax(-1))
    if readout == "token":  # both; 0 where it is missing
        return int((caption == 3).astype(int).argmax(-1))
    return len(caption) - 1


few_tokens = st.lists(st.integers(0, 6), min_size=1, max_size=8)  # so that they come up again


@pytest.mark.parametrize("readout", READOUTS)
@given(begin=few_tokens, ends=st.lists(few_tokens, min_size=1, max_size=9))
def test_captions_are_read_out_where_the_libraries_read_them(readout, begin, ends):
    captions = [np.array([*begin, *end], np.int32) for end in ends]
    cfg = READOUTS[readout]
    wanted = [position(caption, readout) for caption in captions]
    assert packing.readout_at(ragged(captions), cfg).tolist() == wanted
    for text, layout in (
        packing.pack_text(captions, cfg, LENGTH),
        packing.pack_prompts([captions], cfg, LENGTH),
    ):
        at = text.readout_RS[layout.row_n, layout.slot_n]
        assert text.positions_RT[layout.row_n, at].tolist() == wanted
        found = text.segments_RT[layout.row_n, at]
        assert all(
            own in (SHARED, slot + 1) for own, slot in zip(found, layout.slot_n, strict=True)
        )


def test_pack_of_nothing_takes_no_row():
    assert packing.pack(np.zeros(0, np.int64), LENGTH, 4).num_rows == 0


def test_captions_of_full_length_take_a_row_each():
    layout = packing.pack(np.full(5, LENGTH), LENGTH, 4)
    assert layout.num_rows == 5 and not layout.start_n.any()


def test_long_captions_are_laid_out_before_short_ones_can_take_their_rows():
    sizes = np.array([4] * 6 + [20] * 6)
    assert packing.pack(sizes, LENGTH, 8).num_rows == 6


def best_fit_rows(sizes, row_length):
    """Rows of the classic: longest first, each where the least room is left."""
    rooms = []
    for size in sorted(sizes.tolist(), reverse=True):
        fits = [i for i, room in enumerate(rooms) if room >= size]
        if fits:
            rooms[min(fits, key=lambda i: rooms[i])] -= size
        else:
            rooms.append(row_length - size)
    return len(rooms)


@pytest.mark.parametrize("num", [64, 256, 1024])
@pytest.mark.parametrize("row_length", [80, 112, 160])
def test_rows_are_all_but_full_on_coco_lengths(num, row_length):
    wasted = 0
    for seed in range(5):
        sizes = coco_lengths(num, seed)
        assert abs(sizes.mean() - 13.6) < 1
        layout = packing.pack(sizes, row_length, packing.slots_for(sizes, row_length))
        wasted += layout.num_rows - -(-sizes.sum() // row_length)
        # The control: slots that run out before tokens do waste rows.
        few = packing.pack(sizes, row_length, 3)
        assert sizes.sum() / (few.num_rows * row_length) < 0.9
    assert wasted <= 0.01 * 5 * num * 13.6 / row_length + 2  # rows more than can be told apart


@given(lengths, st.integers(0, 9))
def test_rows_are_at_most_one_more_than_those_of_best_fit(sizes, extra):
    sizes = np.array(sizes * 4)
    row_length = int(sizes.max()) + extra
    found = packing.pack(sizes, row_length, len(sizes)).num_rows
    assert found <= best_fit_rows(sizes, row_length) * 1.1 + 1


def rows_by_hand(draws, row_length, slots):
    return max(packing.pack(lengths, row_length, slots).num_rows for lengths in draws)


@pytest.mark.parametrize("num", [64, 256])
def test_shape_holds_all_draws_in_the_fewest_tokens(num):
    draws = [coco_lengths(num, seed) for seed in range(16)]
    choices = packing.row_lengths(77)
    shape = packing.choose_shape(draws, choices)
    assert shape.row_length in choices
    assert rows_by_hand(draws, shape.row_length, shape.num_slots) <= shape.num_rows
    most = max(lengths.sum() for lengths in draws)
    assert shape.row_length * shape.num_rows >= 1.01 * most  # room for a draw that packs worse
    for length in choices:
        slots = packing.slots_for(np.concatenate(draws), length)
        rows = max(rows_by_hand(draws, length, slots), int(np.ceil(1.01 * most / length)))
        ours, other = (
            sum(int(np.ceil(r / parts)) * parts for parts in (1, 2, 4))
            for r in (shape.num_rows, rows)
        )
        assert other * length >= ours * shape.row_length


@pytest.mark.parametrize(
    "context, lengths", [(77, [80, 96, 112, 128]), (24, [32, 48, 64]), (120, [128])]
)
def test_row_lengths_are_whole_lanes_from_the_longest_caption_on(context, lengths):
    assert packing.row_lengths(context) == lengths


@pytest.mark.parametrize("context, row", [(77, 80), (24, 32), (16, 16), (80, 80)])
def test_default_row_holds_the_longest_caption_in_whole_lanes(context, row):
    assert packing.default_row_length(context) == row


def test_place_slots_puts_values_where_their_captions_are():
    sizes = np.array([3, 9, 4, 20])
    layout = packing.pack(sizes, LENGTH, 2)
    value_RS = packing.place_slots(
        layout, np.array([1, 2, 3, 4], np.float32), layout.num_rows + 1, 2
    )
    assert value_RS.dtype == np.float32
    for i, value in enumerate([1, 2, 3, 4]):
        assert value_RS[layout.row_n[i], layout.slot_n[i]] == value
    assert value_RS.sum() == 10


# Embeddings


@pytest.fixture(scope="module")
def embed(tmp_path_factory):
    """Compiled text tower, by pooled embedding; shapes are fixed so that it compiles twice."""
    path = tmp_path_factory.mktemp("packing") / "model"
    write_model_directory(path, with_tokenizer=False, vocab_size=VOCAB)
    tower: Any = read_model_directory(path).load().text
    graphdef, state = nnx.split(tower)
    state = jax.tree.map(jnp.asarray, state)
    call = jax.jit(lambda text: nnx.merge(graphdef, state)(text))
    return lambda text: np.asarray(call(jax.tree.map(jnp.asarray, text)))


def padded_embeddings(embed, captions):
    tokens_BT = np.zeros((MAX_CAPTIONS, LENGTH), np.int32)
    readout_B = np.zeros(MAX_CAPTIONS, np.int32)
    for i, caption in enumerate(captions):
        tokens_BT[i, : len(caption)] = caption
        readout_B[i] = len(caption) - 1
    return embed(plain_text(tokens_BT, readout_B))[: len(captions), 0]


def packed_embeddings(embed, captions, edit=lambda text: text):
    row_length = 40  # longer than the context: a row is not a caption
    text, layout = packing.pack_text(captions, LAST, row_length, num_rows=MAX_CAPTIONS, num_slots=6)
    return embed(edit(text))[layout.row_n, layout.slot_n]


@settings(max_examples=30)
@given(lengths, st.integers(0, 99))
def test_packed_embeddings_equal_padded_ones(embed, sizes, seed):
    captions = make_captions(sizes, seed)
    packed, padded = packed_embeddings(embed, captions), padded_embeddings(embed, captions)
    np.testing.assert_allclose(packed, padded, rtol=0, atol=1e-5)


def one_segment(text):
    return text._replace(segments_RT=np.ones_like(text.segments_RT))


def running_positions(text):
    rows, length = text.positions_RT.shape
    return text._replace(
        positions_RT=np.broadcast_to(np.arange(length) % LENGTH, (rows, length)).astype(np.int32)
    )


def next_readout(text):
    return text._replace(readout_RS=text.readout_RS + 1)


@pytest.mark.parametrize("edit", [one_segment, running_positions, next_readout])
def test_packed_embeddings_differ_when_the_layout_is_wrong(embed, edit):
    captions = make_captions([5, 6, 7, 8, 9])
    padded = padded_embeddings(embed, captions)
    np.testing.assert_allclose(packed_embeddings(embed, captions), padded, rtol=0, atol=1e-5)
    assert np.abs(packed_embeddings(embed, captions, edit) - padded).max() > 1e-2


def test_what_lies_in_padding_changes_nothing(embed):
    captions = make_captions([5, 9, 20])

    def scribble(text):
        return text._replace(
            tokens_RT=np.where(text.segments_RT == 0, VOCAB - 1, text.tokens_RT),
            positions_RT=np.where(text.segments_RT == 0, 7, text.positions_RT),
        )

    np.testing.assert_array_equal(
        packed_embeddings(embed, captions, scribble), packed_embeddings(embed, captions)
    )
