"""The token table of a text encoder in training: only the rows that a run reads.

A row that no text of a run holds has no gradient, so AdamW without weight decay leaves it as it is,
and it adds nothing to any term of the loss. A step on the other rows alone is therefore the same
step, with fewer numbers to update, to compare with the teacher's and to save.

Parity: tests/test_table.py, a whole run with and without, 1e-6.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxdefense.sharding import put, replicated

_TABLE = "token_embedding"
_MULTIPLE = 1024  # of the rows, so that meshes which divide the whole table mostly divide them too
_WORTH = 0.75  # part of the table; with more rows than that, all are trained


def rows_to_train(read_n: np.ndarray, vocab_size: int) -> np.ndarray | None:
    """Choose the rows of a table that a step works on.

    Args:
        read_n: int, distinct token ids that the texts of the run hold.
        vocab_size: rows of the whole table.

    Returns:
        these ids and others to fill up, rising; None if nearly all of the table is read.
    """
    num = -(-len(read_n) // _MULTIPLE) * _MULTIPLE
    if num > _WORTH * vocab_size:
        return None
    others = np.setdiff1d(np.arange(vocab_size), read_n)[: num - len(read_n)]
    return np.sort(np.concatenate([read_n, others]))


def only_rows(params: nnx.State, rows_n: np.ndarray | None) -> nnx.State:
    """Keep these rows of the table, or all if there is no choice."""
    if rows_n is None:
        return params
    return _with_table(params, lambda table: table[rows_n])


def all_rows(params: nnx.State, rows_n: np.ndarray | None, undefended: nnx.State) -> nnx.State:
    """Put trained rows into the whole table.

    Args:
        params: of a student, on the host or on devices.
        rows_n: see `only_rows`.
        undefended: of the encoder, with the whole table, in the same place.
    """
    if rows_n is None:
        return params
    some_ND, whole_VD = _table(params), _table(undefended)
    if isinstance(some_ND, np.ndarray):
        joined_VD = np.array(whole_VD)
        joined_VD[rows_n] = some_ND
    else:
        where = whole_VD.sharding
        rows = put(rows_n.astype(np.int32), replicated(where.mesh))
        joined_VD = _putting(where)(whole_VD, some_ND, rows)
    return _with_table(params, lambda _: joined_VD)


@cache
def _putting(sharding: jax.sharding.Sharding) -> Callable[..., jax.Array]:
    """Make what puts rows into a table; each table is compiled for once."""
    return jax.jit(lambda whole, some, rows: whole.at[rows].set(some), out_shardings=sharding)


def _table(params: nnx.State) -> Any:
    (table,) = (x for path, x in nnx.to_flat_state(params) if path[-1] == _TABLE)
    return table[...]


def _with_table(params: nnx.State, change: Callable[[Any], Any]) -> nnx.State:
    return nnx.from_flat_state(
        (path, x.replace(change(x[...])) if path[-1] == _TABLE else x)
        for path, x in nnx.to_flat_state(params)
    )
