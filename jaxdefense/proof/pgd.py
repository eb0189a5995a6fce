"""An attacker who changes the photo: how few levels of its pixels bring it to the person's name.

Projected gradient descent in the L-infinity ball around a photo, on the pixels that the image
encoder takes. Pixels stay fractions of levels; a file would round them.

Source: Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR 2018
(random start, signed steps, projection); steps of 2.5 radii / number of steps as there.
Parity: tests/test_optimising.py: in the ball, found again from the pixels, the same on any mesh.
"""

import logging
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jaxdefense.clip.model import CLIP
from jaxdefense.data.images import ImageProcessor, Loader, Photos
from jaxdefense.errors import InputError
from jaxdefense.evals.embed import Embedder, padded
from jaxdefense.idia.conditions import draw
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

logger = logging.getLogger(__name__)

_STEP = 2.5  # times the radius, over the number of steps


class Pixels(NamedTuple):
    """Photos to change.

    Fields:
        image_BHWC: u8, as the model's processor returns them.
        noise_BHWC: f32, in [-1, 1], where to start, in radii.
        own_B: int32, the candidate that is the name of the person in the photo.
    """

    image_BHWC: np.ndarray
    noise_BHWC: np.ndarray
    own_B: np.ndarray


def pgd(
    model: Embedder,
    people: Sequence[Photos],
    text_ME: np.ndarray,
    own_I: np.ndarray,
    *,
    eps: Sequence[float] = (2.0, 4.0, 8.0),
    steps: int = 10,
    photos: int = 4,
    seed: int,
    block: int = 32,
) -> np.ndarray:
    """Change photos until their nearest candidate is the person's own name.

    Each step raises the log-probability of the own name among the candidates; the logits are
    cosines times the model's logit scale. A photo counts from the smallest radius on at which any
    step finds the name: what lies in a ball also lies in every larger one.

    Args:
        model: a model with both encoders.
        people: the I people with their photos.
        text_ME: f32 [M, E], candidate names, unit length.
        own_I: int [I], the candidate that is each person's name.
        eps: radii, in levels of 0-255, above 0.
        steps: gradients a photo and radius.
        photos: at most this many photos a person; `conditions.draw` chooses among more.
        seed: seed of that choice and of the random start.
        block: photos at a time, rounded up to a multiple of the mesh's parts.

    Returns:
        f64 [1 + len(eps), I], in [0, 1], share of a person's photos whose nearest candidate is the
        own name: unchanged, and at each radius.

    Raises:
        InputError: none of a person's photos can be read.
    """
    image_PHWC, owner_P = _decoded(model.processor, draw(people, photos, seed))
    parts, num_photos = num_batch_parts(model.mesh, ShardingRules()), len(owner_P)
    block = -(-min(block, num_photos) // parts) * parts
    text_ME = put(text_ME, replicated(model.mesh))
    radii = sorted({0.0, *eps})
    found_P, found = np.zeros(num_photos, bool), dict[float, np.ndarray]()
    with Progress("changing photos", num_photos * len(radii)) as progress:
        for i, radius in enumerate(radii):
            left_P = np.flatnonzero(~found_P)
            for start in range(0, len(left_P), block):
                part_B = left_P[start : start + block]
                own_B = own_I[owner_P[part_B]].astype(np.int32)
                image_BHWC = image_PHWC[part_B]
                pixels = Pixels(image_BHWC, noise(image_BHWC.shape, part_B, seed), own_B)
                pixels = Pixels(*(padded(x, block) for x in pixels))
                found_B = fetch(climbed(model, pixels, text_ME, radius, steps)[1])
                found_P[part_B] = np.asarray(found_B)[: len(part_B)]
                progress.update(i * num_photos + int(part_B[-1]) + 1)
            found[radius] = per_person(found_P, owner_P)
    return np.stack([found[radius] for radius in (0.0, *eps)])


def noise(shape: Sequence[int], number_B: np.ndarray, seed: int) -> np.ndarray:
    """Draw where to start, in radii; f32 [*shape], in [-1, 1], each by the photo's number."""
    rngs = (np.random.default_rng((seed, number)) for number in number_B.tolist())
    return np.stack([2 * rng.random(shape[1:], np.float32) - 1 for rng in rngs])


def climbed(
    model: Embedder, pixels: Pixels, text_ME: jax.Array | np.ndarray, eps: float, steps: int
) -> tuple[jax.Array, jax.Array]:
    """Change photos within a radius.

    Args:
        model: a model with both encoders.
        pixels: as many as a multiple of the mesh's parts.
        text_ME: see `pgd`; a whole copy on every device.
        eps: the radius; 0 for the photos as they are.
        steps: of the gradient.

    Returns:
        f32 [B, H, W, C], 0-255, the photos after the last step;
        bool [B], whether the own name was the nearest candidate after any step, or before.
    """
    ball = np.float32(eps), np.int32(steps if eps else 0)
    pixels = put(pixels, batch_sharding(model.mesh, ShardingRules()))
    given = model.graphdef, model.params, model.processor
    return _climb(model.mesh, *given, pixels, text_ME, ball)


@partial(jax.jit, static_argnums=(0, 1, 3))
def _climb(
    mesh: Mesh,
    graphdef: nnx.GraphDef,
    params: nnx.State,
    processor: ImageProcessor,
    pixels: Pixels,
    text_ME: jax.Array,
    ball: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    eps, steps = ball
    image_BHWC = jnp.asarray(pixels.image_BHWC).astype(jnp.float32)
    low_BHWC, high_BHWC = jnp.maximum(image_BHWC - eps, 0.0), jnp.minimum(image_BHWC + eps, 255.0)

    def likely(x_BHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
        model: CLIP = nnx.merge(graphdef, gathered(params))
        assert model.vision
        out_BE = model.vision(processor.normalise(x_BHWC))
        out_BE = out_BE / jnp.linalg.norm(out_BE, axis=-1, keepdims=True)
        logits_BM = jnp.exp(model.logit_scale[...]) * (out_BE @ text_ME.T)
        own_B1 = jnp.asarray(pixels.own_B)[:, None]
        chance_BM = jax.nn.log_softmax(logits_BM)
        right_B = logits_BM.argmax(-1) == pixels.own_B
        return jnp.take_along_axis(chance_BM, own_B1, axis=1).sum(), right_B

    def step(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x_BHWC, found_B = carry
        slope_BHWC, right_B = jax.grad(likely, has_aux=True)(x_BHWC)
        size = jnp.where(i < steps, _STEP * eps / steps, 0.0)  # the last time only looks
        x_BHWC = jnp.clip(x_BHWC + size * jnp.sign(slope_BHWC), low_BHWC, high_BHWC)
        return x_BHWC, found_B | right_B

    with on_mesh(mesh, ShardingRules()), jax.default_matmul_precision("highest"):
        x_BHWC = jnp.clip(image_BHWC + eps * pixels.noise_BHWC, low_BHWC, high_BHWC)
        nothing_B = jnp.zeros(len(image_BHWC), bool)
        x_BHWC, found_B = jax.lax.fori_loop(0, steps + 1, step, (x_BHWC, nothing_B))
        x_BHWC = jax.lax.with_sharding_constraint(x_BHWC, batch_sharding(mesh, ShardingRules()))
        return x_BHWC, jax.lax.with_sharding_constraint(found_B, replicated(mesh))


def _decoded(processor: ImageProcessor, people: Sequence[Photos]) -> tuple[np.ndarray, np.ndarray]:
    """Decode the photos that can be read; u8 [P, H, W, C] and int [P], the person in each."""
    files = [file for person in people for file in person.files]
    owner_P = np.repeat(np.arange(len(people)), [len(person.files) for person in people])
    loader = Loader(processor, max_corrupt=len(files))
    image_PHWC, read_P = loader.load_all(files)
    if loader.corrupt:
        logger.warning(f"skipped, as they cannot be read: {some(loader.corrupt)}")
    if missing := np.setdiff1d(np.arange(len(people)), owner_P[read_P]).tolist():
        raise InputError(f"no photo of {people[missing[0]].name!r} can be read; give others.")
    return image_PHWC[read_P], owner_P[read_P]
