"""An attacker who searches for the name: of many names, how many are nearer to the person's photos.

Names come in blocks and people in pieces, as in `idia.nearest`, so memory grows neither with the
number of names nor with its product with the number of people. The rank of an unknown person's name
is uniform.

Parity: tests/test_optimising.py, identical to a loop in NumPy, in blocks and pieces of any size.
"""

from collections.abc import Generator
from contextlib import closing
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxdefense.data.names import RandomNames
from jaxdefense.evals.embed import Embedder, padded
from jaxdefense.idia.attack import Evidence
from jaxdefense.idia.nearest import in_pieces, lengths
from jaxdefense.log import Progress
from jaxdefense.sharding import ShardingRules, fetch, on_mesh, put
from jaxdefense.words import folded_words


class Searched(NamedTuple):
    """What a search among random names finds.

    Fields:
        rank_I: int [I], names nearer to the person's mean photo than the person's own; 0 if the own
            name is the nearest.
        nearer_I: f64 [I], in [0, 1], the same as a share of all names; .5 on average of a name
            unknown to the model.
        nearest: the nearest of the random names, of each person.
        shared_I: int [I], words of that name that are also words of the own name.
    """

    rank_I: np.ndarray
    nearer_I: np.ndarray
    nearest: list[str]
    shared_I: np.ndarray


class Ranks(NamedTuple):
    """Counts and the best so far; [I]."""

    count_I: jax.Array | np.ndarray  # i32, names nearer than the own
    value_I: jax.Array | np.ndarray  # f32, the largest cosine
    index_I: jax.Array | np.ndarray  # i32, the name that has it


def search(
    model: Embedder,
    evidence: Evidence,
    num_names: int,
    *,
    prompt: str = "a photo of {0}",
    seed: int,
    block: int = 4096,
) -> Searched:
    """Compare each person's mean photo with random names.

    Args:
        model: a model with both encoders.
        evidence: the photos of the I people, embedded by this model.
        num_names: number of random names, at least 1; none of them is a name of the I people.
        prompt: holds `{0}` for the name.
        seed: seed of the names.
        block: at most this many names at a time.

    Raises:
        InputError: there are not so many names.
    """
    names = RandomNames(num_names, seed, exclude=evidence.names)
    own_IE = model.texts([prompt.format(name) for name in evidence.names])
    mean_IE = evidence.mean_photos().astype(np.float32)
    with closing(_embedded(model, names, prompt, block)) as blocks:
        found = ranked(mean_IE, own_IE, blocks, min(block, num_names), model.mesh)
    nearest = [names[i] for i in found.index_I.tolist()]
    pairs = zip(nearest, evidence.names, strict=True)
    shared = [len({*folded_words(name)} & {*folded_words(own)}) for name, own in pairs]
    rank_I = np.asarray(found.count_I, np.int64)
    return Searched(rank_I, rank_I / num_names, nearest, np.array(shared))


def _embedded(
    model: Embedder, names: RandomNames, prompt: str, block: int
) -> Generator[np.ndarray]:
    """Embed the names in blocks; f32 [up to `block`, E]."""
    with Progress("searching names", len(names)) as progress:
        for start in range(0, len(names), block):
            some_names = [names[i] for i in range(start, min(start + block, len(names)))]
            size = len(some_names)
            # The last block is filled up, so that no other program is compiled for it.
            some_names += some_names[:1] * (min(block, len(names)) - size)
            yield model.prompts([[prompt.format(name) for name in some_names]])[0, :size]
            progress.advance(size)


def ranked(
    mean_IE: np.ndarray,
    own_IE: np.ndarray,
    blocks: Generator[np.ndarray],
    block: int,
    mesh: Mesh,
) -> Ranks:
    """Count the candidates that are nearer to each photo than its own text.

    Args:
        mean_IE: f32 [I, E], photos; their length changes nothing.
        own_IE: f32 [I, E], own texts, unit length.
        blocks: f32 [up to `block`, E] each, candidates, unit length.
        block: at most this many candidates at a time.
        mesh: the mesh of devices.
    """
    num_people = len(mean_IE)
    size, num, num_pieces = lengths(num_people, block, mesh)
    update, place = _compiled(mesh, num_pieces)
    image_IE, own_IE = put((padded(mean_IE, num), padded(own_IE, num)), place["image"])
    zeros_I = np.zeros(num, np.int32)
    found = put(Ranks(zeros_I, np.full(num, -np.inf, np.float32), zeros_I), place["people"])
    start = 0
    for text_ME in blocks:
        jax.block_until_ready(found)  # a queue of blocks would fill the memory
        text = put(padded(text_ME, size), place["text"])
        found = update(found, image_IE, own_IE, text, (np.int32(start), np.int32(len(text_ME))))
        start += len(text_ME)
    return Ranks(*(np.asarray(x)[:num_people] for x in fetch(found)))


def _counted(
    text_ME: jax.Array,
    given: tuple[jax.Array, jax.Array],
    people: tuple[Ranks, jax.Array, jax.Array],
) -> Ranks:
    (start, num), (found, image_IE, own_IE) = given, people
    exact = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    own_I = exact("ie,ie->i", image_IE, own_IE)
    cosine_IM = exact("ie,me->im", image_IE, text_ME)
    cosine_IM = jnp.where(jnp.arange(len(text_ME))[None] < num, cosine_IM, -jnp.inf)
    count_I = found.count_I + (cosine_IM > own_I[:, None]).sum(1, dtype=jnp.int32)
    top_I, first_I = cosine_IM.max(1), cosine_IM.argmax(1).astype(jnp.int32)
    better_I = top_I > found.value_I  # of equal cosines the earlier one stays
    index_I = jnp.where(better_I, start + first_I, found.index_I)
    return Ranks(count_I, jnp.where(better_I, top_I, found.value_I), index_I)


@cache
def _compiled(mesh: Mesh, num_pieces: int):
    rules = ShardingRules()
    place = {"image": ("photos", "shared"), "text": ("candidates", "shared"), "people": ("photos",)}
    place = {name: NamedSharding(mesh, rules.spec(*dims)) for name, dims in place.items()}

    def update(
        found: Ranks, image_IE: jax.Array, own_IE: jax.Array, text_ME: jax.Array, given: tuple
    ) -> Ranks:
        with on_mesh(mesh, rules):
            compare = partial(_counted, text_ME, given)
            return in_pieces(compare, (found, image_IE, own_IE), num_pieces)

    return jax.jit(update, out_shardings=place["people"], donate_argnums=0), place
