"""The nearest candidate of every photo, with the candidates in blocks and the photos in pieces.

A device holds its photos, one block of texts, the best candidate so far of each photo in each
template, and the cosines of one piece of its photos with the block. So its memory does not grow
with the number of candidates, and with the number of photos only as the photos themselves do.
Parity: tests/test_idia.py, identical to a loop in NumPy, on any mesh and in blocks of any size.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxdefense.evals.embed import padded
from jaxdefense.sharding import (
    ShardingRules,
    fetch,
    joined_batches,
    micro_batches,
    num_parts,
    on_mesh,
    put,
    replicated,
)

_NO_INDEX = np.iinfo(np.int32).max
_NOBODY = -1  # group of the rows that pad a block
_NO_CANDIDATE = -2  # own candidate of the photos that pad a part
# Cosines that a device computes at a time. As few as on CPUs stay in the cache there, which makes
# everything 1.5 to 4 times as fast. The number for accelerators was not measured.
_MOST_COSINES, _MOST_ON_CPU = 2**24, 2**20
_LEAST_PIECE = 64  # photos; fewer would not be worth reading the texts of a large block again

T = TypeVar("T")
U = TypeVar("U")


class _Best(NamedTuple):
    value_QP: jax.Array | np.ndarray  # f32, its cosine
    index_QP: jax.Array | np.ndarray  # i32, the candidate


class Nearest:
    """Photos on the mesh, and the nearest candidate seen so far of each, in each template."""

    def __init__(
        self, image_PE: np.ndarray, group_P: np.ndarray, num_templates: int, block: int, mesh: Mesh
    ):
        """Lay the photos out on the mesh.

        Args:
            image_PE: f32 [P, E], unit length.
            group_P: int [P], >= 0; a photo is compared only with the candidates of its group.
            num_templates: Q.
            block: at most this many candidates at a time, rounded up to fit the mesh's parts.
            mesh: photos lie along its data axes, the candidates of a block along its tensor axis.
        """
        self._block, num, num_pieces = lengths(len(image_PE), block, mesh)
        self._num_photos, self._num_seen = len(image_PE), 0
        self._update, place = _compiled(mesh, num_pieces)
        self._place_text, self._place_group = place["text"], place["group"]
        self._image_PE = put(padded(image_PE, num), place["image"])
        self._mesh, self._place_photo = mesh, place["owner"]
        self._group_P = put(padded(group_P, num, _NOBODY - 1), self._place_photo)
        shape = (num_templates, num)
        best = _Best(np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int32))
        self._best = put(best, place["best"])

    def add(self, text_QME: np.ndarray, group_M: np.ndarray) -> None:
        """Compare the photos with the next candidates.

        Args:
            text_QME: f32 [Q, M, E], unit length; M is at most the block.
            group_M: int [M], groups, >= 0.
        """
        short = self._block - len(group_M)
        if short:
            text_QME = np.pad(text_QME, ((0, 0), (0, short), (0, 0)))
        # The host makes the next block while the device works on one, but then waits here: a queue
        # of blocks would fill the memory.
        jax.block_until_ready(self._best)
        self._best = self._update(
            self._best,
            self._image_PE,
            self._group_P,
            put(text_QME, self._place_text),
            put(padded(group_M, self._block, _NOBODY), self._place_group),
            np.int32(self._num_seen),
        )
        self._num_seen += len(group_M)

    def answers(self) -> np.ndarray:
        """Return the nearest candidates; i32 [Q, P], the first of equal cosines, -1 for none."""
        return np.asarray(fetch(self._best.index_QP))[:, : self._num_photos]

    def times_right(self, own_P: np.ndarray, same_M: np.ndarray | None = None) -> np.ndarray:
        """Count the templates in which a photo's nearest candidate is the person it shows.

        Args:
            own_P: int [P], the candidate that is this person.
            same_M: int [M], the candidate that each one counts as; None for itself.

        Returns:
            i32 [P].
        """
        num, mesh = self._best.index_QP.shape[1], self._mesh
        own_P = put(padded(own_P.astype(np.int32), num, _NO_CANDIDATE), self._place_photo)
        if same_M is not None:
            same_M = put(same_M.astype(np.int32), replicated(mesh))
        right_P = _times_right(mesh, self._best.index_QP, own_P, same_M)
        return np.asarray(fetch(right_P))[: self._num_photos]


def lengths(num_photos: int, block: int, mesh: Mesh) -> tuple[int, int, int]:
    """Give the sizes of a comparison that fits the mesh.

    Args:
        num_photos: number of photos, or of whatever else has its best candidate.
        block: at most this many candidates at a time.
        mesh: see `Nearest`.

    Returns:
        `block` and `num_photos`, rounded up; and into how many pieces each device cuts its photos.
    """
    rules = ShardingRules()
    parts, parts_of_block = (num_parts(mesh, rules, dim) for dim in ("photos", "candidates"))
    block = _up(block, parts_of_block)
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    most = (_MOST_ON_CPU if on_cpu else _MOST_COSINES) // (block // parts_of_block)
    num_pieces = max(1, -(-num_photos // (parts * max(most, _LEAST_PIECE))))
    return block, _up(num_photos, parts * num_pieces), num_pieces


def in_pieces(compare: Callable[[T], U], photos: T, num_pieces: int) -> U:
    """Compare the photos of each device piece by piece; to be traced within `on_mesh`.

    Args:
        compare: gives what a piece's comparison finds; row by row, like its argument.
        photos: arrays whose first dim is photos.
        num_pieces: see `lengths`.
    """
    if num_pieces == 1:
        return compare(photos)
    found = jax.lax.map(compare, micro_batches(photos, num_pieces))
    return jax.tree.map(joined_batches, found)


def _update(
    num_pieces: int,
    best: _Best,
    image_PE: jax.Array,
    group_P: jax.Array,
    text_QME: jax.Array,
    group_M: jax.Array,
    num_seen: jax.Array,
) -> _Best:
    def one(args: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        value_P, index_P, text_ME = args
        better = partial(_better, text_ME, group_M, num_seen)
        return in_pieces(better, (value_P, index_P, image_PE, group_P), num_pieces)

    return _Best(*jax.lax.map(one, (*best, text_QME)))


def _better(
    text_ME: jax.Array,
    group_M: jax.Array,
    num_seen: jax.Array,
    photos: tuple[jax.Array, jax.Array, jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    value_P, index_P, image_PE, group_P = photos
    # Full f32: on accelerators the default would round the very differences that decide.
    cosine_PM = jnp.matmul(image_PE, text_ME.T, precision=jax.lax.Precision.HIGHEST)
    cosine_PM = jnp.where(group_P[:, None] == group_M, cosine_PM, -jnp.inf)
    top_P = cosine_PM.max(-1)
    # The first of the nearest. With `argmax`, everything would take twice as long on CPUs.
    first_P = jnp.where(cosine_PM == top_P[:, None], jnp.arange(len(group_M)), _NO_INDEX)
    first_P = first_P.min(-1)
    better_P = top_P > value_P  # of equal cosines the earlier one stays
    index_P = jnp.where(better_P, num_seen + first_P, index_P)
    return jnp.where(better_P, top_P, value_P), index_P


@partial(jax.jit, static_argnums=0)
def _times_right(
    mesh: Mesh, index_QP: jax.Array, own_P: jax.Array, same_M: jax.Array | None
) -> jax.Array:
    answer_QP = index_QP if same_M is None else same_M[index_QP]
    right_P = (answer_QP == own_P).sum(0, dtype=jnp.int32)
    return jax.lax.with_sharding_constraint(right_P, replicated(mesh))


@cache
def _compiled(mesh: Mesh, num_pieces: int):
    rules = ShardingRules()
    place = {
        "image": ("photos", "shared"),
        "owner": ("photos",),
        "text": ("templates", "candidates", "shared"),
        "group": ("candidates",),
        "best": ("templates", "photos"),
    }
    place = {name: NamedSharding(mesh, rules.spec(*dims)) for name, dims in place.items()}

    def update(*args: Any) -> _Best:
        with on_mesh(mesh, rules):
            return _update(num_pieces, *args)

    return jax.jit(update, out_shardings=place["best"], donate_argnums=0), place


def _up(num: int, parts: int) -> int:
    return -(-num // parts) * parts
