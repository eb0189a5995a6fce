"""Laying captions of different lengths into rows of one fixed length.

A slot is the room of one caption. Tests check how full the rows are, and that no caption is lost or
cut.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxdefense.clip.config import TextConfig
from jaxdefense.clip.ragged import Ragged, ragged, ranges
from jaxdefense.clip.text import SHARED, Text

_LANES = 16
_TPU_LANES = 128
_PARTS = (1, 2, 4)  # into which a mesh may cut the rows


class Layout(NamedTuple):
    """Where each of n captions lies.

    Fields:
        row_n, slot_n, start_n: int32 [n], row, number of the slot in it, index of its first token.
        num_rows: rows in use.
    """

    row_n: np.ndarray
    slot_n: np.ndarray
    start_n: np.ndarray
    num_rows: int


def pack(lengths: np.ndarray, row_length: int, num_slots: int) -> Layout:
    """Lay out captions.

    Fills row by row: long captions first, then the most common length, so that all lengths last to
    the end. The last two of a row are the pair that fills it best.

    Args:
        lengths: int [n], tokens each, above 0, all <= row_length.
        row_length: T.
        num_slots: S, the most captions a row may hold.
    """
    assert lengths.size == 0 or lengths.max() <= row_length
    row_n, slot_n, start_n = (np.zeros(len(lengths), np.int32) for _ in range(3))
    waiting: list[list[int]] = [[] for _ in range(row_length + 1)]  # captions by length
    for i in range(len(lengths) - 1, -1, -1):
        waiting[lengths[i]].append(i)
    count = [len(captions) for captions in waiting]
    left, num_rows = len(lengths), 0
    shortest, longest = 0, row_length
    while left:
        room, slot = row_length, 0
        while left and slot < num_slots:
            while not count[shortest]:
                shortest += 1
            while not count[longest]:
                longest -= 1
            if room < shortest:
                break
            if room < 3 * shortest or slot == num_slots - 2:
                chosen = _best_pair(count, shortest, min(longest, room), room)
            else:
                chosen = [_longest_or_common(count, shortest, min(longest, room), row_length)]
            for length in chosen[: num_slots - slot]:
                i = waiting[length].pop()
                row_n[i], slot_n[i], start_n[i] = num_rows, slot, row_length - room
                room, slot = room - length, slot + 1
                count[length] -= 1
                left -= 1
        num_rows += 1
    return Layout(row_n, slot_n, start_n, num_rows)


def _longest_or_common(count: list[int], shortest: int, longest: int, row_length: int) -> int:
    """Choose the longest that fits if it is long, else the most common length."""
    while not count[longest]:
        longest -= 1
    if 2 * longest >= row_length:
        return longest
    return max(range(shortest, longest + 1), key=count.__getitem__)


def _best_pair(count: list[int], shortest: int, longest: int, room: int) -> list[int]:
    """Choose the one or two lengths that together fill the room best, the longer first."""
    best: list[int] = []
    for first in range(longest, shortest - 1, -1):
        if not count[first]:
            continue
        if sum(best) == room:
            break
        second = min(room - first, first)
        while second >= shortest and count[second] <= (second == first):
            second -= 1
        pair = [first, second] if second >= shortest else [first]
        best = max(best, pair, key=sum)
    return best


def slots_for(lengths: np.ndarray, row_length: int) -> int:
    """Choose S for captions like these, so that slots never run out before tokens do."""
    shortest = max(1, int(np.quantile(lengths, 0.05)))
    return max(1, -(-row_length // shortest))


class Shape(NamedTuple):
    """Of all batches of a run.

    Fields:
        row_length, num_rows, num_slots: T, R and S.
    """

    row_length: int
    num_rows: int
    num_slots: int


def choose_shape(draws: Sequence[np.ndarray], row_lengths: Sequence[int]) -> Shape:
    """Choose the shape with the fewest tokens that holds all these batches and similar ones.

    The fewest on average over meshes that cut the rows into 1, 2 and 4 parts: neither the shape nor
    what fits it may depend on the mesh.

    Args:
        draws: int [n] each, tokens of the captions of one batch.
        row_lengths: T to choose from, each no less than any caption.
    """
    most = max(int(lengths.sum()) for lengths in draws)
    found = []
    for length in row_lengths:
        slots = slots_for(np.concatenate(draws), length)
        rows = max(pack(lengths, length, slots).num_rows for lengths in draws)
        # Another draw of the same size may pack a little worse.
        rows = max(rows, math.ceil(1.01 * most / length))
        found.append(Shape(length, rows, slots))

    def tokens(shape: Shape) -> int:
        return sum(-(-shape.num_rows // parts) * parts for parts in _PARTS) * shape.row_length

    return min(found, key=tokens)


def segments_and_positions(
    layout: Layout, lengths: np.ndarray, num_rows: int, row_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Number the tokens of a layout.

    Returns:
        segments_RT and positions_RT: int32 [num_rows, row_length], as `clip.text.Text` has them.
    """
    segments, positions = (np.zeros((num_rows, row_length), np.int32) for _ in range(2))
    offset, at = _token_index(layout, lengths, row_length)
    segments.reshape(-1)[at] = np.repeat(layout.slot_n + 1, lengths)
    positions.reshape(-1)[at] = offset
    return segments, positions


def place(
    layout: Layout, captions: Ragged, num_rows: int, row_length: int, pad: int = 0
) -> np.ndarray:
    """Write the captions' tokens where the layout says; int32 [num_rows, row_length]."""
    tokens = np.full((num_rows, row_length), pad, np.int32)
    _, at = _token_index(layout, captions.lengths, row_length)
    tokens.reshape(-1)[at] = captions.flat
    return tokens


def place_slots(layout: Layout, value_n: np.ndarray, num_rows: int, num_slots: int) -> np.ndarray:
    """Write a value, or row, a caption into its slot; [num_rows, num_slots, ...], 0 elsewhere."""
    out = np.zeros((num_rows, num_slots, *value_n.shape[1:]), value_n.dtype)
    out[layout.row_n, layout.slot_n] = value_n
    return out


def readout_at(captions: Ragged, cfg: TextConfig) -> np.ndarray:
    """Find the position in each caption at which a tower reads it out; int64 [n].

    Args:
        captions: at least one token each, both ends included.
        cfg: of the tower.

    Source: transformers `modeling_clip.py` (CLIPTextTransformer.forward), `modeling_siglip.py`;
    open_clip `transformer.py` (`text_global_pool`). A caption that lacks the token is read out at
    its first one.
    """
    flat, lengths = captions
    if cfg.readout == "last" or not lengths.size:
        return lengths - 1
    starts = np.cumsum(lengths) - lengths
    if cfg.readout == "largest":
        found = flat == np.repeat(np.maximum.reduceat(flat, starts), lengths)
    else:
        found = flat == cfg.eos_token_id
    offset = ranges(np.zeros_like(starts), lengths)
    first = np.minimum.reduceat(np.where(found, offset, len(flat)), starts)
    return np.where(first < lengths, first, 0)


def readouts(layout: Layout, at_n: np.ndarray, num_rows: int, num_slots: int) -> np.ndarray:
    """Index in the row of each caption's read-out; int32 [num_rows, num_slots].

    Args:
        layout: of the captions.
        at_n: of each, as of `readout_at`.
        num_rows, num_slots: R and S.
    """
    return place_slots(layout, (layout.start_n + at_n).astype(np.int32), num_rows, num_slots)


def pack_text(
    captions: list[np.ndarray],
    cfg: TextConfig,
    row_length: int,
    num_rows: int = 0,
    num_slots: int = 0,
) -> tuple[Text, Layout]:
    """Pack captions that are read as they are.

    Args:
        captions: int32 tokens each, both ends included.
        cfg: of the tower that reads them.
        row_length: T.
        num_rows: R, or 0 for as many as it takes.
        num_slots: S, or 0 for `slots_for` these captions.
    """
    texts = ragged(captions)
    lengths = texts.lengths
    num_slots = num_slots or slots_for(lengths, row_length)
    layout = pack(lengths, row_length, num_slots)
    num_rows = num_rows or layout.num_rows
    segments, positions = segments_and_positions(layout, lengths, num_rows, row_length)
    tokens = place(layout, texts, num_rows, row_length)
    at = readouts(layout, readout_at(texts, cfg), num_rows, num_slots)
    return Text(tokens, segments, positions, at), layout


def pack_prompts(
    groups: Sequence[Sequence[np.ndarray]], cfg: TextConfig, row_length: int, num_slots: int = 0
) -> tuple[Text, Layout]:
    """Pack captions that begin alike group by group; the beginning stands once in each row.

    Args:
        groups: captions as for `pack_text`; a row holds captions of one group alone.
        cfg: of the tower that reads them.
        row_length: T.
        num_slots: S, or 0 for enough for any names of people.
    """
    num_slots = num_slots or row_length // 3  # first and last name and the end of text, or more
    texts, layouts, num_rows = [], [], 0
    for captions in groups:
        shared = _beginning(captions)
        size = len(shared)
        ends = [c[size:] for c in captions]
        text, layout = pack_text(ends, cfg, row_length - size, 0, num_slots)
        at = readout_at(ragged(captions), cfg)
        # Row and beginning start at one index.
        at = np.where(at < size, at, layout.start_n + at).astype(np.int32)
        begin = np.broadcast_to(shared, (layout.num_rows, size))
        texts.append(
            Text(
                np.concatenate([begin, text.tokens_RT], 1),
                np.concatenate([np.full_like(begin, SHARED), text.segments_RT], 1),
                np.concatenate(
                    [np.broadcast_to(np.arange(size), begin.shape), text.positions_RT + size], 1
                ).astype(np.int32),
                place_slots(layout, at, layout.num_rows, num_slots),
            )
        )
        layouts.append(
            layout._replace(row_n=layout.row_n + num_rows, start_n=layout.start_n + size)
        )
        num_rows += layout.num_rows
    row_n, slot_n, start_n = (np.concatenate(x) for x in list(zip(*layouts, strict=True))[:3])
    text = Text(*map(np.concatenate, zip(*texts, strict=True)))
    return text, Layout(row_n, slot_n, start_n, num_rows)


def _beginning(captions: Sequence[np.ndarray]) -> np.ndarray:
    """Tokens all captions begin with; at least one is left of each."""
    shortest = min(map(len, captions)) - 1
    start = np.stack([caption[:shortest] for caption in captions])
    differ = (start != start[0]).any(0)
    return start[0, : differ.argmax() if differ.any() else shortest]


def default_row_length(context_length: int) -> int:
    """T of packed rows: room for the longest caption, rounded up to full vector lanes."""
    return -(-context_length // _LANES) * _LANES


def row_lengths(context_length: int) -> list[int]:
    """T to choose from: up to twice the default, within whole registers of a TPU.

    With ViT-B/32 a v5e moves nearly as many bytes a token at 80 as at 128, and a fifth more at 144.
    """
    shortest = default_row_length(context_length)
    longest = min(2 * shortest, -(-shortest // _TPU_LANES) * _TPU_LANES)
    return list(range(shortest, longest + 1, _LANES))


def _token_index(
    layout: Layout, lengths: np.ndarray, row_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Offset of each token in its caption, and its flat index in the rows."""
    first = layout.row_n.astype(np.int64) * row_length + layout.start_n
    return ranges(np.zeros_like(first), lengths), ranges(first, lengths)
