"""Ordinary fine-tuning of a model on photos with captions, as whoever receives it may do.

Both encoders are trained, norms too. The loss is that of the model's training: CLIP's symmetric
cross-entropy, or SigLIP's sigmoid loss. The model's own logit scale and bias stay as they are, and
so do the statistics of batch norms. AdamW runs at one rate, without warmup: so the weights after n
steps do not depend on how many steps follow.

Source: Radford et al., ICML 2021, section 2.3; Zhai et al., ICCV 2023, section 3; open_clip
`training/params.py` (betas, eps, weight decay of ViT) and `training/main.py` (no decay of gains and
biases).
Parity: tests/test_afterwards.py, first 5 losses against a torch loop, 3e-5 relative; losses on any
mesh equal to those of one device, 1e-4.
"""

import dataclasses
import logging
import math
from collections.abc import Generator, Iterable, Sequence
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from jaxdefense.clip.config import TextConfig
from jaxdefense.clip.model import CLIP
from jaxdefense.clip.text import Text
from jaxdefense.convert.table import Path
from jaxdefense.data.images import ImageProcessor, Loader
from jaxdefense.data.packing import default_row_length, pack, pack_text, slots_for
from jaxdefense.data.pairs import Pairs
from jaxdefense.data.sources import Photo
from jaxdefense.errors import InputError, RunError
from jaxdefense.evals.embed import Embedder
from jaxdefense.log import Progress
from jaxdefense.sharding import (
    ShardingRules,
    batch_sharding,
    gathered,
    local_rows,
    num_batch_parts,
    on_mesh,
    put,
    replicated,
    sharding_tree,
)
from jaxdefense.words import some

logger = logging.getLogger(__name__)

B1, B2, EPS, WEIGHT_DECAY = 0.9, 0.98, 1e-6, 0.2
_KEPT = 2**31  # bytes of decoded photos
_SAMPLED = 64  # steps, from which the number of packed rows is chosen
_FAR = -1e9  # logit of a pair that does not count
_FROZEN = ("logit_scale", "logit_bias", "mean", "var")  # the last two are batch norms' statistics


class Batch(NamedTuple):
    """A batch of pairs.

    Fields:
        text: captions, packed.
        slot_B: int, the place of each caption among all slots of the rows.
        image_BHWC: u8, their photos.
        shown_B: bool; False for photos that cannot be read, and for rows that pad the batch.
    """

    text: Text
    slot_B: jax.Array | np.ndarray
    image_BHWC: jax.Array | np.ndarray
    shown_B: jax.Array | np.ndarray


class PairBatches:
    """Batches of a fine-tuning by step, all of one shape; the same on any mesh.

    A batch holds at most one photo an owner, so that no caption fits another photo of the batch.
    The owners are shuffled anew once all had their turn; a rest that fills no batch is left out.
    Each draws one of their photos, and each photo one of its captions.
    """

    def __init__(self, model: Embedder, pairs: Pairs, batch: int, seed: int, max_corrupt: int = 0):
        """Tokenise the captions.

        Args:
            model: a model with both encoders.
            pairs: of at least two owners.
            batch: pairs a step; cut to the number of owners.
            seed: of the draws.
            max_corrupt: largest number of photos that may be unreadable.

        Raises:
            InputError: the model lacks an encoder, or there are too few pairs.
        """
        owner_P = pairs.owners()
        num_owners = int(owner_P.max()) + 1
        self.size = min(batch, num_owners)
        if self.size < 2:
            raise InputError(
                f"fine-tuning compares the photos of a batch with each other's captions; `batch` "
                f"(={batch}) and the number of photos of different people or things "
                f"(={num_owners}) must be at least 2."
            )
        if self.size < batch:
            logger.info(f"fine-tuning: {self.size} pairs a step, not {batch}: there are no more")
        tokens = model.tokenizer.encode(text for texts in pairs.captions for text in texts)
        self._photos = _Photos(pairs.photos, model.processor, max_corrupt)
        self._seed = seed
        self._photo_ends = _ends(np.bincount(owner_P))  # of each owner, in the photos by owner
        self._by_owner_P = np.argsort(owner_P, kind="stable")
        self._caption_ends = _ends(np.array([len(texts) for texts in pairs.captions]))
        self._place = batch_sharding(model.mesh, ShardingRules())
        parts = num_batch_parts(model.mesh, ShardingRules())
        self._rows = -(-self.size // parts) * parts
        assert model.directory.cfg.text
        self._texts = _Texts(tokens, model.directory.cfg.text, parts)
        self._texts.make_room(self.draw(step)[1] for step in range(_SAMPLED))

    def draw(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw the photos and the captions of a step; int [size] each, their numbers."""
        num_owners = len(self._photo_ends) - 1
        turn, part = divmod(step, num_owners // self.size)
        order = np.random.default_rng((self._seed, 0, turn)).permutation(num_owners)
        rng = np.random.default_rng((self._seed, 1, step))
        owner_B = order[part * self.size : (part + 1) * self.size]
        photo_B = self._by_owner_P[_pick(self._photo_ends, owner_B, rng)]
        return photo_B, _pick(self._caption_ends, photo_B, rng)

    def __getitem__(self, step: int) -> Batch:
        """Make the batch of a step; of its photos, those of this process's devices."""
        photo_B, caption_B = self.draw(step)
        here = local_rows(self._place, self._rows)
        here[self.size :] = False
        image_BHWC, shown_B = self._photos.load(photo_B, here)
        text, slot_B = self._texts(caption_B)
        slot_B = np.pad(slot_B, (0, self._rows - self.size))
        return Batch(text, slot_B, image_BHWC, shown_B)

    def corrupt(self) -> list[str]:
        """Name the photos that could not be read so far."""
        return list(self._photos.loader.corrupt)


class _Texts:
    """Packs captions into rows; their number grows if a batch needs more, which compiles anew."""

    def __init__(self, tokens: Sequence[np.ndarray], cfg: TextConfig, parts: int):
        self._tokens, self._cfg, self._parts = tokens, cfg, parts
        # Captions of a tower that cannot pack are already padded, so each is a row.
        context = cfg.context_length
        self._length = default_row_length(context) if cfg.packable else context
        self._length_n = np.array([len(caption) for caption in tokens])
        self._slots, self._rows = slots_for(self._length_n, self._length), 0

    def make_room(self, batches: Iterable[np.ndarray]) -> None:
        """Take as many rows as each of these batches of captions needs."""
        for caption_B in batches:
            num = pack(self._length_n[caption_B], self._length, self._slots).num_rows
            self._rows = max(self._rows, -(-num // self._parts) * self._parts)

    def __call__(self, caption_B: np.ndarray) -> tuple[Text, np.ndarray]:
        """Pack captions; also tell the slot of each."""
        self.make_room([caption_B])
        captions = [self._tokens[i] for i in caption_B.tolist()]
        text, layout = pack_text(captions, self._cfg, self._length, self._rows, self._slots)
        return text, (layout.row_n * self._slots + layout.slot_n).astype(np.int32)


class _Photos:
    """Decodes photos, and keeps as many as fit `_KEPT`."""

    def __init__(self, photos: Sequence[Photo], processor: ImageProcessor, max_corrupt: int):
        self.loader = Loader(processor, max_corrupt)
        self._photos, self._side = photos, processor.crop
        self._room = _KEPT // (3 * processor.crop**2)
        self._kept: dict[int, np.ndarray] = {}

    def load(self, photo_B: np.ndarray, here: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decode the photos of the rows `here`; the others, and corrupt ones, are black.

        Returns:
            u8 [len(here), side, side, 3]; bool [len(here)], which are there.
        """
        image_BHWC = np.zeros((len(here), self._side, self._side, 3), np.uint8)
        shown_B, rows = np.zeros(len(here), bool), np.flatnonzero(here)
        which = {row: int(photo_B[row]) for row in rows.tolist()}
        new = [row for row, i in which.items() if i not in self._kept]
        image_BHWC[new], shown_B[new] = self.loader.load_all([self._photos[which[x]] for x in new])
        for row, i in which.items():
            if i in self._kept:
                image_BHWC[row], shown_B[row] = self._kept[i], True
            elif shown_B[row] and len(self._kept) < self._room:
                self._kept[i] = image_BHWC[row].copy()
        return image_BHWC, shown_B


def _ends(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)])


def _pick(ends: np.ndarray, which: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw one member of each of these groups."""
    return rng.integers(ends[which], ends[which + 1])


# Losses


def clip_loss(logits_BB: jax.Array, shown_B: jax.Array) -> jax.Array:
    """Compute CLIP's symmetric cross-entropy: mean over the pairs shown, in nats.

    Args:
        logits_BB: f32, scaled cosines of photos (rows) and captions.
        shown_B: bool, pairs that count.

    Source: Radford et al. 2021, section 2.3 and figure 3.
    """
    logits_BB = jnp.where(shown_B[:, None] & shown_B[None], logits_BB, _FAR)
    of = partial(optax.softmax_cross_entropy_with_integer_labels, labels=jnp.arange(len(logits_BB)))
    loss_B = (of(logits_BB) + of(logits_BB.T)) / 2
    return (loss_B * shown_B).sum() / jnp.maximum(shown_B.sum(), 1)


def siglip_loss(logits_BB: jax.Array, shown_B: jax.Array) -> jax.Array:
    """Compute SigLIP's loss: summed over pairs, over the number of photos shown, in nats.

    Args:
        logits_BB: f32, scaled cosines of photos (rows) and captions, plus the bias.
        shown_B: bool, pairs that count.

    Source: Zhai et al. 2023, equation in section 3.2 and algorithm 1.
    """
    sign_BB = 2 * jnp.eye(len(logits_BB)) - 1
    log_BB = jax.nn.log_sigmoid(sign_BB * logits_BB)
    counts_BB = shown_B[:, None] & shown_B[None]
    return -jnp.where(counts_BB, log_BB, 0).sum() / jnp.maximum(shown_B.sum(), 1)


# The step


class TrainState(NamedTuple):
    """What a step changes: the trained parameters, and the optimizer's state."""

    params: nnx.State
    opt_state: optax.OptState


class Metrics(NamedTuple):
    """Of a step, before its update: the loss, the norm of its gradient, and the pairs shown."""

    loss: jax.Array
    grad_norm: jax.Array
    shown: jax.Array


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """The parts of a step.

    Fields:
        mesh: it runs on.
        graphdef: structure of the model.
        processor: normalises photos.
        decayed: paths of the parameters that decay: those with tensors of two dims or more.
    """

    mesh: Mesh
    graphdef: nnx.GraphDef
    processor: ImageProcessor
    decayed: frozenset[Path]


def _optimizer(decayed: frozenset[Path]) -> optax.GradientTransformation:
    """Make AdamW without its rate, which `train_step` multiplies by."""

    def mask(params: nnx.State) -> nnx.State:
        flat = nnx.to_flat_state(params)
        return nnx.from_flat_state([(path, v.replace(path in decayed)) for path, v in flat])

    adam = optax.scale_by_adam(B1, B2, EPS)
    return optax.chain(adam, optax.add_decayed_weights(WEIGHT_DECAY, mask))


def _loss(params: nnx.State, frozen: nnx.State, batch: Batch, cfg: StepConfig) -> jax.Array:
    model: CLIP = nnx.merge(cfg.graphdef, gathered(params), gathered(frozen))
    assert model.text and model.vision
    text_RSE = model.text(batch.text)
    image_BE = model.vision(cfg.processor.normalise(jnp.asarray(batch.image_BHWC)))
    # Every device compares all photos with all captions.
    text_RSE, slot_B, image_BE, shown_B = jax.lax.with_sharding_constraint(
        (text_RSE, batch.slot_B, image_BE, batch.shown_B), replicated(cfg.mesh)
    )
    text_BE = text_RSE.reshape(-1, text_RSE.shape[-1])[slot_B]
    text_BE, image_BE = (
        x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (text_BE, image_BE)
    )
    cosine_BB = jnp.matmul(image_BE, text_BE.T, precision=jax.lax.Precision.HIGHEST)
    logits_BB = jnp.exp(model.logit_scale[...]) * cosine_BB
    if model.cfg.logit_bias:
        return siglip_loss(logits_BB + model.logit_bias[...], shown_B)
    return clip_loss(logits_BB, shown_B)


@partial(jax.jit, static_argnames="cfg", donate_argnames="state")
def train_step(
    state: TrainState, frozen: nnx.State, batch: Batch, lr: jax.Array, *, cfg: StepConfig
) -> tuple[TrainState, Metrics]:
    """Take one step of AdamW on the mesh.

    Args:
        state: donated.
        frozen: the other parameters, only read.
        batch: sharded by its rows.
        lr: f32, the learning rate.
        cfg: static.

    Returns:
        the next state, sharded as the given one, and metrics of the global batch.
    """
    with on_mesh(cfg.mesh, ShardingRules()):
        loss, grads = jax.value_and_grad(_loss)(state.params, frozen, batch, cfg)
        updates, opt_state = _optimizer(cfg.decayed).update(grads, state.opt_state, state.params)
        updates = jax.tree.map(lambda update: -lr * update, updates)
        params = cast(nnx.State, optax.apply_updates(state.params, updates))
        after = TrainState(params, opt_state)
        after = jax.lax.with_sharding_constraint(
            after, sharding_tree(after, cfg.mesh, ShardingRules())
        )
        metrics = Metrics(loss, optax.tree.norm(grads), batch.shown_B.sum())
        return after, jax.lax.with_sharding_constraint(metrics, replicated(cfg.mesh))


def start(model: Embedder) -> tuple[StepConfig, TrainState, nnx.State]:
    """Start the fine-tuning of a model, which stays as it is.

    Returns:
        the step's parts, the first state, and the frozen parameters.
    """
    flat = list(nnx.to_flat_state(model.params))
    trained, frozen = (
        nnx.from_flat_state([(path, v) for path, v in flat if (path[-1] in _FROZEN) == which])
        for which in (False, True)
    )
    decayed = frozenset(row.path for row in model.directory.rows if len(row.shape) > 1)
    cfg = StepConfig(model.mesh, model.graphdef, model.processor, decayed)

    def init(params: nnx.State) -> TrainState:
        params = jax.tree.map(jnp.copy, params)
        return TrainState(params, _optimizer(decayed).init(params))

    place = sharding_tree(jax.eval_shape(init, trained), model.mesh, ShardingRules())
    return cfg, jax.jit(init, out_shardings=place)(trained), frozen


def finetune(
    model: Embedder,
    pairs: Pairs,
    *,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    at: Sequence[int],
    max_corrupt: int = 0,
) -> Generator[tuple[int, Embedder]]:
    """Fine-tune a model on pairs, and give its states on the way.

    Args:
        model: a model with both encoders; stays as it is.
        pairs: photos with captions; see `PairBatches` for how they are drawn.
        steps: of the fine-tuning; it ends before if `at` does.
        batch: pairs a step; cut to the number of photos, or of people.
        lr: rate of AdamW.
        seed: of the draws.
        at: steps, 0 to `steps`, after which the model is given; 0 gives the model itself.
        max_corrupt: largest number of photos that may be unreadable; their batches do without.

    Returns:
        step and model, by rising step.

    Raises:
        InputError: the model lacks an encoder, or there are too few pairs; later, if photos cannot
            be read.
        RunError: later, if the loss or its gradient is not finite.
    """
    assert all(0 <= step <= steps for step in at) and lr > 0
    batches = PairBatches(model, pairs, batch, seed, max_corrupt)
    return _run(model, batches, lr, sorted(set(at)))


def _run(
    model: Embedder, batches: PairBatches, lr: float, at: Sequence[int]
) -> Generator[tuple[int, Embedder]]:
    if 0 in at:
        yield 0, model
    last = max(at, default=0)
    if not last:
        return
    cfg, state, frozen = start(model)
    place = batch_sharding(model.mesh, ShardingRules())
    before: tuple[int, Metrics] | None = None
    with Progress("fine-tuning", last) as progress:
        for step in range(1, last + 1):
            given = put(batches[step - 1], place)
            state, metrics = train_step(state, frozen, given, np.float32(lr), cfg=cfg)
            # Metrics are read one step late: the host makes a batch while the device computes.
            if before:
                progress.update(step - 1, _checked(*before, lr))
            before = step, metrics
            if step in at:
                progress.update(step, _checked(*before, lr))
                yield step, _with_trained(model, state.params)
    if corrupt := batches.corrupt():
        logger.warning(f"skipped, as they cannot be read: {some(corrupt)}")


def _checked(step: int, metrics: Metrics, lr: float) -> str:
    """Give the loss of a step for its line.

    Raises:
        RunError: the loss or its gradient is not finite.
        InputError: fewer than two photos of the batch could be read.
    """
    loss, norm, shown = (float(x) for x in jax.device_get(metrics))
    if shown < 2:
        raise InputError(
            f"fine-tuning: {shown:.0f} photos of step {step} can be read; give others."
        )
    for name, value in (("loss", loss), ("gradient", norm)):
        if not math.isfinite(value):
            raise RunError(
                f"fine-tuning: the {name} is {value} at step {step}; lower the learning rate "
                f"(={lr:g})."
            )
    return f"loss {loss:.3f}"


def _with_trained(model: Embedder, params: nnx.State) -> Embedder:
    """Give a model a copy of trained parameters; the next step takes the given ones."""
    flat = dict(nnx.to_flat_state(model.params))
    flat |= dict(nnx.to_flat_state(jax.tree.map(jnp.copy, params)))
    return model.with_params(nnx.from_flat_state(flat))
