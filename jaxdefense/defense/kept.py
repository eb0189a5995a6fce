"""The teacher's embeddings of what several steps of a run show, computed before the first step.

Neither the teacher nor a clean photo or caption changes, so a step need not embed them again. They
are computed in blocks in which each always has the same place, so a run that resumes has the same
numbers. All processes compute together, and each has all of them.

Parity: tests/test_kept.py, the losses of steps with and without, 1e-5.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jaxdefense.clip.config import ResNetConfig, TextConfig, VisionConfig
from jaxdefense.clip.text import Text
from jaxdefense.config import ImageTrainConfig, TextTrainConfig
from jaxdefense.data.faces import ImageBatches
from jaxdefense.data.images import ImageProcessor
from jaxdefense.data.triggers import TextBatches
from jaxdefense.defense.own import NONE, OwnLoss
from jaxdefense.defense.step import TeacherParams
from jaxdefense.evals.embed import in_blocks, padded
from jaxdefense.sharding import (
    ShardingRules,
    batch_sharding,
    gathered,
    num_batch_parts,
    on_mesh,
    put,
    replicated,
)

logger = logging.getLogger(__name__)

_PACKED = 2**16  # captions that are packed at a time
_BATCH = 64  # photos, or rows of text, that are embedded at a time
_SMOOTH = ("cosine", "mse")  # distances
# It pays to embed all before if steps save so many times as much: photos are decoded once more.
PHOTO_ROUNDS, TEXT_ROUNDS = 3, 2


class Teacher(NamedTuple):
    """The teacher as the step has it, on the devices."""

    graphdef: nnx.GraphDef
    params: TeacherParams
    mesh: Mesh
    rules: ShardingRules


def num_to_keep(
    groups: Sequence[tuple[int, float]],
    rounds: int,
    t: TextTrainConfig | ImageTrainConfig,
    tower: TextConfig | VisionConfig | ResNetConfig,
    own: OwnLoss = NONE,
) -> int:
    """Count the inputs whose embeddings a run keeps.

    Groups are kept one after the other, each only with those before it: if it pays, and if it fits
    the memory that the settings give. Nothing is kept with a loss of the user's own, which reads
    the teacher as it likes; at other levels than embeddings, which are large; or with a distance
    that has a kink where student and teacher are equal, as both are at first: there rounding would
    decide which way the student goes. So what is kept changes no result but by rounding.

    Args:
        groups: of inputs, how many there are, and how many a step the teacher then need not read.
        rounds: it pays if all steps together save so many times the group.
        t: the training settings of the run.
        tower: of the teacher.
        own: loss in place of the one that the settings name.
    """
    if own != NONE or t.level != "pooled" or t.distance not in _SMOOTH:
        return 0
    room, num = t.keep_teacher_mb * 2**20 // (4 * (tower.embed or tower.width)), 0
    for size, saved in groups:
        if not size or t.steps * saved < rounds * size or num + size > room:
            break
        num += size
    return num


def keep_photos(batches: ImageBatches, processor: ImageProcessor, teacher: Teacher) -> None:
    """Embed all clean photos, and give the embeddings to the batches."""

    def read(tower: Any, image_BHWC: jax.Array) -> jax.Array:
        return tower(processor.normalise(image_BHWC))

    num = batches.num_images
    blocks = _blocks(_reader(teacher, read), teacher, batches.photos, num, "clean photos", num)
    batches.keep(_kept(np.concatenate(blocks)[:num], "clean photos"))


def keep_texts(batches: TextBatches, num: int, teacher: Teacher) -> None:
    """Embed the first `num` captions that may be kept, and give the embeddings to the batches."""
    embed = _reader(teacher, lambda tower, text: tower(text))
    found = []
    for start in range(0, num, _PACKED):
        text, layout = batches.texts(start, min(start + _PACKED, num))

        def make(first: int, rows: int, text: Text = text) -> Text:
            return Text(*(padded(x[first : first + rows], rows) for x in text))

        num_texts = len(layout.row_n)
        blocks = _blocks(embed, teacher, make, layout.num_rows, "captions", num_texts)
        found.append(np.concatenate(blocks)[layout.row_n, layout.slot_n])
    batches.keep(_kept(np.concatenate(found), "captions"))


def _reader(teacher: Teacher, read: Callable[[Any, Any], jax.Array]) -> Callable[[Any], jax.Array]:
    """Compile what the teacher makes of a block; every process gets the result."""
    whole = replicated(teacher.mesh)

    @jax.jit
    def embed(params: TeacherParams, block: Any) -> jax.Array:
        with on_mesh(teacher.mesh, teacher.rules):
            tower = nnx.merge(teacher.graphdef, *gathered(params))
            return jax.lax.with_sharding_constraint(read(tower, block), whole)

    return partial(embed, teacher.params)


def _blocks(
    embed: Callable[[Any], jax.Array],
    teacher: Teacher,
    make: Callable[[int, int], Any],
    num: int,
    what: str,
    num_inputs: int,
) -> list[np.ndarray]:
    """Embed blocks; `make` takes the first row of a block and its size. See `in_blocks`."""
    mesh, rules = teacher.mesh, teacher.rules
    place, parts = batch_sharding(mesh, rules), num_batch_parts(mesh, rules)

    def dispatch(start: int, batch: int) -> jax.Array:
        return embed(put(make(start, batch), place))

    return list(in_blocks(dispatch, num, what, num_inputs, _BATCH, parts))


def _kept(teacher_NE: np.ndarray, what: str) -> np.ndarray:
    """Say what is kept."""
    size = teacher_NE.nbytes / 2**20
    logger.info(f"the original's embeddings of {len(teacher_NE)} {what} are kept: {size:.1f} MiB")
    return teacher_NE
