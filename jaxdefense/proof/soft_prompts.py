"""Attackers who optimise the name: free token embeddings, or a mixture with other names.

A prompt keeps its words, but the tokens of the name need not be tokens of the vocabulary. Half of
each person's photos choose what stands in their place, the other half tests it. The text tower
itself runs, on a token table that holds a row for each position of each prompt.

Source: Lester et al., The Power of Scale for Parameter-Efficient Prompt Tuning, EMNLP 2021 (free
token embeddings); Zhou et al., Learning to Prompt for Vision-Language Models, IJCV 2022 (of CLIP).
Parity: tests/test_optimising.py, equal to the tower on real texts, 1e-5, and to loops in NumPy.
"""

import itertools
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from jaxdefense.clip.model import CLIP
from jaxdefense.clip.ragged import ragged
from jaxdefense.clip.text import Text, plain_text
from jaxdefense.data.names import random_names
from jaxdefense.data.packing import default_row_length, readout_at
from jaxdefense.errors import InputError
from jaxdefense.evals.embed import Embedder, padded
from jaxdefense.idia.attack import Evidence
from jaxdefense.log import Progress
from jaxdefense.proof.found import per_person
from jaxdefense.sharding import (
    ShardingRules,
    batch_sharding,
    fetch,
    gathered,
    num_batch_parts,
    on_mesh,
    put,
    replicated,
)
from jaxdefense.words import some

_STEPS = 10  # a call of the compiled program, between two signs of progress
_PHOTOS = 64  # photos come in a multiple of this many, so that groups share a program
_ROWS = 256  # and tokens that are looked up
_TABLE, _SCALE = ("text", "token_embedding"), ("logit_scale",)
_WHOLE_DIGITS = partial(jax.default_matmul_precision, "highest")


class Prompts(NamedTuple):
    """A prompt filled with names.

    Fields:
        tokens_IT: int32 [I, T], token ids, 0 behind the text.
        readout_I: int [I], position at which the tower reads the text.
        free_IT: bool [I, T], tokens of the name.
    """

    tokens_IT: np.ndarray
    readout_I: np.ndarray
    free_IT: np.ndarray


class _Shown(NamedTuple):
    """Photos to optimise on; [P, E] and [P]."""

    image_PE: jax.Array | np.ndarray
    owner_P: jax.Array | np.ndarray
    weight_P: jax.Array | np.ndarray  # f32, 1, or 0 of padding


def fill_in(model: Embedder, names: Sequence[str], prompt: str) -> Prompts:
    """Tokenise a prompt for each name, and mark the tokens of the name.

    Args:
        model: a model with a text encoder.
        names: the names of the I people.
        prompt: holds `{0}` once, between spaces.

    Raises:
        InputError: the prompt holds `{0}` otherwise; or leaves a name no token that is read.
    """
    cfg, tokenizer = model.directory.cfg.text, model.tokenizer
    assert cfg
    before, found, after = prompt.partition("{0}")
    start = tokenizer.encode_phrase(before)
    content, marked = [], []
    for name in names:
        name_K = tokenizer.encode_phrase(name, first=not before.strip())
        end = tokenizer.encode_phrase(after, first=False)
        content.append(np.concatenate([start, name_K, end]))
        parts = np.zeros_like(start), np.full_like(name_K, -1), np.zeros_like(end)
        marked.append(np.concatenate(parts))
    texts = tokenizer.encode([prompt.format(name) for name in names])
    joined = tokenizer.with_ends(ragged(content)).split()
    if not found or "{0}" in after or any(map(_differ, texts, joined)):
        raise InputError(
            f"`prompt` (={prompt!r}) must hold {{0}} once, between spaces, as 'a photo of {{0}}'."
        )
    readout_I = readout_at(ragged(texts), cfg)
    longest = min(default_row_length(max(map(len, texts))), cfg.context_length)
    tokens_IT, mark_IT = (
        np.stack([padded(x, longest) for x in rows])
        for rows in (texts, tokenizer.with_ends(ragged(marked)).split())
    )
    free_IT = mark_IT == -1
    if cfg.causal:  # what stands behind the read-out changes nothing
        free_IT &= np.arange(longest) <= readout_I[:, None]
    if missing := [name for name, free_T in zip(names, free_IT, strict=True) if not free_T.any()]:
        raise InputError(f"`prompt` (={prompt!r}) leaves no room for {some(missing)}; shorten it.")
    return Prompts(tokens_IT, readout_I, free_IT)


def _differ(tokens: np.ndarray, others: np.ndarray) -> bool:
    return tokens.tolist() != others.tolist()


def tested(evidence: Evidence, seed: int) -> np.ndarray:
    """Split each person's photos into halves; the smaller one tests.

    Args:
        evidence: the embedded photos.
        seed: seed of the choice, which depends on a person's name and number of photos alone.

    Returns:
        bool [P], whether the photo tests.

    Raises:
        InputError: a person has fewer than two photos.
    """
    test_P = np.zeros(len(evidence.owner_P), bool)
    short = list[str]()
    for name, at in zip(evidence.names, evidence.photos_of(), strict=True):
        if len(at) < 2:
            short.append(name)
        rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
        test_P[rng.permutation(at)[: len(at) // 2]] = True
    if short:
        raise InputError(
            f"{some(short)} must have at least two photos, one to optimise on and one to test."
        )
    return test_P


def token_rows(model: Embedder, tokens: np.ndarray) -> np.ndarray:
    """Look tokens up in the model's table; f32 [*tokens.shape, D]."""
    used_U, at = np.unique(tokens, return_inverse=True)
    used_U = padded(used_U.astype(np.int32), -(-len(used_U) // _ROWS) * _ROWS)
    table_VD = dict(nnx.to_flat_state(model.params))[_TABLE][...]
    return np.asarray(fetch(_rows(model.mesh, table_VD, used_U)))[at.reshape(tokens.shape)]


@partial(jax.jit, static_argnums=0)
def _rows(mesh: Mesh, table_VD: jax.Array, used_U: jax.Array) -> jax.Array:
    return jax.lax.with_sharding_constraint(table_VD[used_U], replicated(mesh))


def embed_rows(model: Embedder, x_BTD: np.ndarray, readout_B: np.ndarray) -> np.ndarray:
    """Embed texts whose tokens are rows of numbers.

    Args:
        model: a model with a text encoder.
        x_BTD: f32 [B, T, D], what the token table would hold for each token.
        readout_B: int [B], position at which the tower reads the text.

    Returns:
        f32 [B, E], unit length.
    """
    num = -(-len(x_BTD) // _parts(model)) * _parts(model)
    text = _numbered(model, padded(readout_B, num), x_BTD.shape[1])
    x_BTD = put(padded(x_BTD, num), replicated(model.mesh))
    text_BE = _embed_rows(model.mesh, model.graphdef, model.params, x_BTD, text)
    return np.asarray(fetch(text_BE))[: len(readout_B)]


def _parts(model: Embedder) -> int:
    return num_batch_parts(model.mesh, ShardingRules())


def _numbered(model: Embedder, readout_B: np.ndarray, length: int) -> Text:
    """Make the tower's input: token ids are row numbers, one of each position of each text."""
    ids_BT = np.arange(len(readout_B) * length, dtype=np.int32).reshape(-1, length)
    text = plain_text(ids_BT, readout_B)
    return put(text, batch_sharding(model.mesh, ShardingRules()))


@partial(jax.jit, static_argnums=(0, 1))
def _embed_rows(
    mesh: Mesh, graphdef: nnx.GraphDef, params: nnx.State, x_BTD: jax.Array, text: Text
) -> jax.Array:
    with on_mesh(mesh, ShardingRules()), _WHOLE_DIGITS():
        text_BE = _read(graphdef, params, x_BTD, text)
        return jax.lax.with_sharding_constraint(text_BE, replicated(mesh))


def _read(graphdef: nnx.GraphDef, params: nnx.State, x_BTD: jax.Array, text: Text) -> jax.Array:
    """Run the text tower with these rows as its token table; f32 [B, E], unit length."""
    flat = dict(nnx.to_flat_state(params))
    flat[_TABLE] = flat[_TABLE].replace(x_BTD.reshape(-1, x_BTD.shape[-1]))
    model: CLIP = nnx.merge(graphdef, gathered(nnx.from_flat_state(flat)))
    assert model.text
    out_BE = model.text(text)[:, 0]
    return out_BE / jnp.linalg.norm(out_BE, axis=-1, keepdims=True)


def soft_prompts(
    model: Embedder,
    evidence: Evidence,
    *,
    prompt: str = "a photo of {0}",
    steps: Sequence[int],
    lr: float,
    seed: int,
) -> np.ndarray:
    """Optimise the token embeddings of all names of a group together.

    Adam lowers the mean cross-entropy between half of the photos and the group's prompts, from the
    real names on. The logits are cosines times the model's logit scale. By chance, 1 in I photos is
    nearest to the right prompt.

    Args:
        model: a model with both encoders.
        evidence: the photos of the group's I people, embedded by this model, at least two each.
        prompt: holds `{0}` once, between spaces.
        steps: steps of Adam, rising, after each of which the prompts are tested; 0 for the real
            names.
        lr: learning rate, as a part of the root mean square of the names' token embeddings.
        seed: seed of the halves, see `tested`.

    Returns:
        f64 [len(steps), I], in [0, 1], share of a person's test photos whose nearest prompt of the
        group is their own.

    Raises:
        InputError: a person has fewer than two photos, or the prompt does not fit.
    """
    test_P = tested(evidence, seed)
    prompts = fill_in(model, evidence.names, prompt)
    start_ITD = token_rows(model, prompts.tokens_IT)
    found = optimised(model, evidence, ~test_P, prompts, start_ITD, steps=steps, lr=lr)

    def share(x_ITD: np.ndarray) -> np.ndarray:
        text_IE = embed_rows(model, x_ITD, prompts.readout_I)
        owner_P = evidence.owner_P[test_P]
        right_P = (evidence.image_PE[test_P] @ text_IE.T).argmax(1) == owner_P
        return per_person(right_P, owner_P)

    return np.stack([share(x_ITD) for x_ITD in found])


def optimised(
    model: Embedder,
    evidence: Evidence,
    used_P: np.ndarray,
    prompts: Prompts,
    start_ITD: np.ndarray,
    *,
    steps: Sequence[int],
    lr: float,
) -> Iterator[np.ndarray]:
    """Take the steps of `soft_prompts`.

    Args:
        model, evidence, steps, lr: see `soft_prompts`.
        used_P: bool [P], photos to optimise on.
        prompts: of the I people.
        start_ITD: f32 [I, T, D], the rows of all tokens; only those of the names change.

    Yields:
        f32 [I, T, D], after each of `steps`.
    """
    mesh, num_people = model.mesh, len(start_ITD)
    parts, whole = _parts(model), replicated(mesh)
    batch = -(-num_people // parts) * parts
    text = _numbered(model, padded(prompts.readout_I, batch), start_ITD.shape[1])
    image_PE, owner_P = evidence.image_PE[used_P], evidence.owner_P[used_P].astype(np.int32)
    num = -(-len(image_PE) // (_PHOTOS * parts)) * _PHOTOS * parts
    shown = _Shown(image_PE, owner_P, np.ones(len(image_PE), np.float32))
    shown = put(_Shown(*(padded(x, num) for x in shown)), batch_sharding(mesh, ShardingRules()))
    free_BT = put(padded(prompts.free_IT, batch), whole)
    x_BTD = padded(start_ITD, batch)
    empty = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(_ADAM.init, x_BTD))
    x_BTD, state = put((x_BTD, empty), whole)
    size = np.float32(lr * np.sqrt(np.square(start_ITD[prompts.free_IT]).mean()))
    sizes = size, np.int32(num_people)
    done = 0
    with Progress("optimising prompts", max(steps)) as progress:
        for stop in steps:
            while done < stop:
                some_steps = min(_STEPS, stop - done)
                x_BTD, state = _descend(
                    mesh,
                    model.graphdef,
                    model.params,
                    (x_BTD, state),
                    (text, free_BT, shown),
                    (*sizes, np.int32(some_steps)),
                )
                jax.block_until_ready(x_BTD)
                done += some_steps
                progress.update(done)
            yield np.asarray(fetch(x_BTD))[:num_people]


_ADAM = optax.scale_by_adam()


@partial(jax.jit, static_argnums=(0, 1))
def _descend(
    mesh: Mesh,
    graphdef: nnx.GraphDef,
    params: nnx.State,
    carry: tuple[jax.Array, optax.OptState],
    given: tuple[Text, jax.Array, _Shown],
    sizes: tuple[jax.Array, jax.Array, jax.Array],
) -> tuple[jax.Array, optax.OptState]:
    """Take some steps; `sizes` are a step's, the number of people, and the number of steps."""
    (text, free_BT, shown), (size, num_people, steps) = given, sizes

    def step(_: Any, carry: tuple[jax.Array, optax.OptState]) -> tuple[jax.Array, Any]:
        x_BTD, state = carry
        slope_BTD = jax.grad(loss)(x_BTD)
        slope_BTD = jnp.where(free_BT[..., None], slope_BTD, 0.0)
        change_BTD, state = _ADAM.update(slope_BTD, state)
        assert isinstance(change_BTD, jax.Array)
        return x_BTD - size * change_BTD, state

    def loss(x_BTD: jax.Array) -> jax.Array:
        text_BE = _read(graphdef, params, x_BTD, text)
        scale = jnp.exp(dict(nnx.to_flat_state(params))[_SCALE][...])
        logits_PB = scale * (shown.image_PE @ text_BE.T)
        real_B = jnp.arange(text_BE.shape[0]) < num_people
        logits_PB = jnp.where(real_B[None], logits_PB, -jnp.inf)
        loss_P = optax.softmax_cross_entropy_with_integer_labels(logits_PB, shown.owner_P)
        return (loss_P * shown.weight_P).sum() / shown.weight_P.sum()

    with on_mesh(mesh, ShardingRules()), _WHOLE_DIGITS():
        carry = jax.lax.fori_loop(0, steps, step, carry)
        return jax.lax.with_sharding_constraint(carry, replicated(mesh))


def interpolated(
    model: Embedder,
    evidence: Evidence,
    *,
    prompt: str = "a photo of {0}",
    parts: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5),
    towards: int = 8,
    seed: int,
    block: int = 256,
) -> np.ndarray:
    """Move the token embeddings of a name towards random names, and keep the best place.

    Candidates of a person are the name itself and, for each random name and part, the mixture of
    the two names' token embeddings. A random name is cut or repeated to the person's number of
    tokens. The attacker keeps the candidate with the largest mean margin on half of the photos: its
    cosine less the largest of the names of the group's other people, which do not move.

    Args:
        model: a model with both encoders.
        evidence: see `soft_prompts`.
        prompt: holds `{0}` once, between spaces.
        parts: of the random name, in [0, 1].
        towards: number of random names, the same for all people.
        seed: seed of these names and of the halves, see `tested`.
        block: at most this many texts at a time.

    Returns:
        f64 [I], in [0, 1], share of a person's test photos that are nearer to the kept candidate
        than to any other person's name.

    Raises:
        InputError: see `soft_prompts`.
    """
    test_P, owner_P = tested(evidence, seed), evidence.owner_P
    prompts = fill_in(model, evidence.names, prompt)
    others = random_names(towards, seed, exclude=evidence.names)
    first = not prompt.partition("{0}")[0].strip()
    phrases = [model.tokenizer.encode_phrase(name, first) for name in others]
    place_C = [(0, 0.0), *((w, part) for w in range(towards) for part in parts)]
    mixed = mixtures(model, prompts, phrases, place_C)
    num = len(evidence.names) * len(place_C)
    readout_N = np.repeat(prompts.readout_I, len(place_C))
    blocks = list[np.ndarray]()
    with Progress("mixing names", num) as progress:
        for start in range(0, num, block):
            x_BTD = np.stack([*itertools.islice(mixed, block)])
            readout_B, size = readout_N[start : start + block], len(x_BTD)
            whole = min(block, num)
            found_BE = embed_rows(model, padded(x_BTD, whole), padded(readout_B, whole))
            blocks.append(found_BE[:size])
            progress.advance(size)
    text_ICE = np.concatenate(blocks).reshape(-1, len(place_C), model.embed)
    kept_IE = kept(text_ICE, evidence.image_PE[~test_P], owner_P[~test_P])
    return nearer(kept_IE, text_ICE[:, 0], evidence.image_PE[test_P], evidence.owner_P[test_P])


def mixtures(
    model: Embedder,
    prompts: Prompts,
    phrases: Sequence[np.ndarray],
    place_C: Sequence[tuple[int, float]],
) -> Iterator[np.ndarray]:
    """Mix names with others, person by person.

    Args:
        model: a model with a text encoder.
        prompts: of the people.
        phrases: int32 [tokens] each, the other names, cut or repeated to a person's tokens.
        place_C: the other name and its part in [0, 1], of each candidate.

    Yields:
        f32 [T, D], what the token table would hold for the tokens of a candidate's prompt.
    """
    for tokens_T, free_T in zip(prompts.tokens_IT, prompts.free_IT, strict=True):
        x_TD = token_rows(model, tokens_T)
        name_KD = x_TD[free_T]
        fitted_WK = np.stack([np.resize(phrase_K, len(name_KD)) for phrase_K in phrases])
        other_WKD = token_rows(model, fitted_WK)
        for other, part in place_C:
            mixed_TD = x_TD.copy()
            mixed_TD[free_T] = (1 - part) * name_KD + part * other_WKD[other]
            yield mixed_TD


def kept(text_ICE: np.ndarray, image_PE: np.ndarray, owner_P: np.ndarray) -> np.ndarray:
    """Keep each person's candidate with the largest mean margin; f32 [I, E].

    The names of the others are the same for all candidates, so the largest margin is the largest
    cosine, and the mean cosine is that with the mean photo.
    """
    at_I = np.arange(len(text_ICE))
    mean_IE = np.stack([image_PE[owner_P == i].mean(0) for i in at_I])
    return text_ICE[at_I, np.einsum("ice,ie->ic", text_ICE, mean_IE).argmax(1)]


def nearer(
    kept_IE: np.ndarray, name_IE: np.ndarray, image_PE: np.ndarray, owner_P: np.ndarray
) -> np.ndarray:
    """Share of a person's photos nearer to their candidate than to all others' names; f64 [I]."""
    other_PI = image_PE @ name_IE.T
    other_PI[np.arange(len(owner_P)), owner_P] = -np.inf
    own_P = (image_PE * kept_IE[owner_P]).sum(1)
    return per_person(own_P > other_PI.max(1), owner_P)
