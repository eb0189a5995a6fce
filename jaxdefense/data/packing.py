"""Laying captions of different lengths into rows of one fixed length.

A slot is the room of one caption. Best fit, longest first: the classic that fills bins best among
those without search; tests hold its fill, and that no caption is lost or cut.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxdefense.clip.text import SHARED, Text


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

    Args:
        lengths: int [n], tokens each, all <= row_length.
        row_length: T.
        num_slots: S, the most captions a row may hold.
    """
    assert lengths.size == 0 or lengths.max() <= row_length
    row_n, slot_n, start_n = (np.zeros(len(lengths), np.int32) for _ in range(3))
    used: list[int] = []
    count: list[int] = []
    by_room: list[list[int]] = [
        [] for _ in range(row_length + 1)
    ]  # open rows by what they have left
    for i in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[i])
        room = next((r for r in range(length, row_length + 1) if by_room[r]), -1)
        if room < 0:
            row, room = len(used), row_length
            used.append(0)
            count.append(0)
        else:
            row = by_room[room].pop()
        row_n[i], slot_n[i], start_n[i] = row, count[row], used[row]
        used[row] += length
        count[row] += 1
        if count[row] < num_slots:
            by_room[room - length].append(row)
    return Layout(row_n, slot_n, start_n, len(used))


def slots_for(lengths: np.ndarray, row_length: int) -> int:
    """Choose S for captions like these: enough that slots never run out before tokens do."""
    shortest = max(1, int(np.quantile(lengths, 0.05)))
    return max(1, -(-row_length // shortest))


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
    layout: Layout, captions: list[np.ndarray], num_rows: int, row_length: int, pad: int = 0
) -> np.ndarray:
    """Write the captions' tokens where the layout says; int32 [num_rows, row_length]."""
    tokens = np.full((num_rows, row_length), pad, np.int32)
    lengths = np.array([len(caption) for caption in captions], np.int64)
    _, at = _token_index(layout, lengths, row_length)
    tokens.reshape(-1)[at] = np.concatenate(captions) if captions else 0
    return tokens


def place_slots(layout: Layout, value_n: np.ndarray, num_rows: int, num_slots: int) -> np.ndarray:
    """Write one value a caption into its slot; [num_rows, num_slots], 0 where there is none."""
    out = np.zeros((num_rows, num_slots), value_n.dtype)
    out[layout.row_n, layout.slot_n] = value_n
    return out


def readouts(
    layout: Layout, captions: list[np.ndarray], num_rows: int, num_slots: int
) -> np.ndarray:
    """Index in the row of each caption's last token; int32 [num_rows, num_slots]."""
    last = np.array([len(caption) - 1 for caption in captions], np.int32)
    return place_slots(layout, layout.start_n + last, num_rows, num_slots)


def pack_text(
    captions: list[np.ndarray], row_length: int, num_rows: int = 0, num_slots: int = 0
) -> tuple[Text, Layout]:
    """Pack captions that are read as they are.

    Args:
        captions: int32 tokens each, both ends included.
        row_length: T.
        num_rows: R, or 0 for as many as it takes.
        num_slots: S, or 0 for `slots_for` these captions.
    """
    lengths = np.array([len(caption) for caption in captions], np.int64)
    num_slots = num_slots or slots_for(lengths, row_length)
    layout = pack(lengths, row_length, num_slots)
    num_rows = num_rows or layout.num_rows
    segments, positions = segments_and_positions(layout, lengths, num_rows, row_length)
    tokens = place(layout, captions, num_rows, row_length)
    return Text(
        tokens, segments, positions, readouts(layout, captions, num_rows, num_slots)
    ), layout


def pack_prompts(
    groups: Sequence[Sequence[np.ndarray]], row_length: int, num_slots: int = 0
) -> tuple[Text, Layout]:
    """Pack captions that begin alike group by group; the beginning stands once in each row.

    Args:
        groups: captions as of `pack_text`; a row holds such of one group alone.
        row_length: T.
        num_slots: S, or 0 for as many as names of people may take, whichever they are.
    """
    num_slots = num_slots or row_length // 3  # first and last name and the end of text, or more
    texts, layouts, num_rows = [], [], 0
    for captions in groups:
        shared = _beginning(captions)
        size = len(shared)
        text, layout = pack_text([c[size:] for c in captions], row_length - size, 0, num_slots)
        begin = np.broadcast_to(shared, (layout.num_rows, size))
        texts.append(
            Text(
                np.concatenate([begin, text.tokens_RT], 1),
                np.concatenate([np.full_like(begin, SHARED), text.segments_RT], 1),
                np.concatenate(
                    [np.broadcast_to(np.arange(size), begin.shape), text.positions_RT + size], 1
                ).astype(np.int32),
                text.readout_RS + size,
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
    return -(-context_length // 16) * 16


def _token_index(
    layout: Layout, lengths: np.ndarray, row_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Offset of each token in its caption, and its flat index in the rows."""
    ends = np.cumsum(lengths)
    offset = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)
    first = layout.row_n.astype(np.int64) * row_length + layout.start_n
    return offset, np.repeat(first, lengths) + offset
