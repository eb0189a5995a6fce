"""One step of backdoor distillation, the same for names and faces.

    loss = w_utility * utility + w_backdoor * backdoor + w_name * name + w_keep * keep
           + w_weight * weight

Of photos `w_utility` is 1. The term `name` is for texts with names that must stay, `keep` for
photos with faces that must stay.

The function `terms` depends on the encoder. It runs student and teacher on a batch and gives the
terms of the loss. Student and teacher share the frozen tensors (norms), so these are neither in the
optimizer state nor in a checkpoint.

Source: Hintersdorf et al., section 3, equations 1 to 4.
Parity: tests/test_step.py, first 20 losses against a torch loop, 1e-3 relative.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from jaxdefense.clip.layers import STACKED_DIMS, FrozenParam
from jaxdefense.defense.losses import weight_distance
from jaxdefense.defense.low_rank import init_factors, with_products
from jaxdefense.sharding import (
    ShardingRules,
    batch_sharding,
    gathered,
    micro_batches,
    on_mesh,
    replicated,
    sharding_tree,
)

# draw(batch, key) -> batch, with its random values drawn, for all samples at once
Draw = Callable[[Any, jax.Array], Any]
# terms(student, teacher, batch) -> terms of the loss by name, scalars. Each is a weighted sum over
# samples. The weights sum to 1 over the global batch, so terms of micro-batches add up.
Terms = Callable[[Any, Any, Any], dict[str, jax.Array]]
# read(teacher, batch, num) -> batch, with what the terms need of the teacher, from num passes
Read = Callable[[Any, Any, int], Any]
Metrics = dict[str, jax.Array]


class TrainState(NamedTuple):
    """What a step changes, and `rate` and `push`, which a validation changes.

    Fields:
        step: number of steps taken.
        params: the trained parameters.
        opt_state: the optimizer's state.
        rate: f32, multiplies the optimizer's update.
        push: f32, multiplies the weight of the backdoor loss.
    """

    step: jax.Array
    params: nnx.State
    opt_state: optax.OptState
    rate: jax.Array
    push: jax.Array


class TeacherParams(NamedTuple):
    """The undefended encoder: the values that training starts from, and its frozen tensors."""

    trained: nnx.State
    frozen: nnx.State


class Objective(NamedTuple):
    """The loss that a step minimises.

    Fields:
        terms: computes the terms of the loss.
        weights: of each term in the loss; `weight` is the weight distance.
        draw: draws the random values of a batch, on the device; by default there are none.
        read: has the teacher read a batch before it is split into micro-batches; by default the
            terms do.
    """

    terms: Terms
    weights: Mapping[str, float]
    draw: Draw = lambda batch, key: batch
    read: Read | None = None


class Optimizer(NamedTuple):
    """A gradient transformation of Optax, and its learning rate as a function of steps taken."""

    init: optax.TransformInitFn
    update: optax.TransformUpdateFn
    lr: optax.Schedule


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """The parts of a step.

    Fields:
        graphdef: structure of the tower.
        objective: the loss.
        tx: the optimizer.
        accumulate: number of micro-batches whose gradients are summed; one is in memory at a time.
        stacked_dims: see `weight_distance`.
        rank: of what the student may differ by, see `low_rank`; 0 for anything.
        seed: of the draws that a student of low rank begins with.
    """

    graphdef: nnx.GraphDef
    objective: Objective
    tx: Optimizer
    accumulate: int = 1
    stacked_dims: tuple[str, ...] = STACKED_DIMS
    rank: int = 0
    seed: int = 0


def split_tower(tower: nnx.Module) -> tuple[nnx.GraphDef, TeacherParams]:
    """Split a tower into its structure, its trained and its frozen parameters."""
    trained = nnx.All(nnx.Param, nnx.Not(FrozenParam))
    graphdef, params, frozen = nnx.split(tower, trained, FrozenParam)
    return graphdef, TeacherParams(params, frozen)


def merge_student(graphdef: nnx.GraphDef, params: nnx.State, teacher: TeacherParams) -> Any:
    """Build the student's tower from trained parameters and the teacher's frozen ones."""
    return nnx.merge(graphdef, params, teacher.frozen)


def whole(params: nnx.State, teacher: TeacherParams, cfg: StepConfig) -> nnx.State:
    """Give a student's weights from its trained parameters, which are factors if `cfg.rank` is."""
    return with_products(params, teacher.trained) if cfg.rank else params


def make_optimizer(
    lr: float,
    *,
    warmup: int,
    milestones: tuple[float, ...],
    gamma: float,
    weight_decay: float,
    b1: float,
    b2: float,
    eps: float,
    steps: int,
) -> Optimizer:
    """Make AdamW with a learning rate that rises and then falls.

    Args:
        lr: the rate after the warmup; it rises linearly, from lr / warmup at the first step.
        warmup: steps of the warmup; 0 for none.
        milestones: steps from which the rate is multiplied by `gamma`; values below 1 are parts of
            the run.
        gamma: factor at each milestone.
        weight_decay, b1, b2, eps: of AdamW.
        steps: of the run.
    """
    at = [round(steps * x) if x < 1 else int(x) for x in milestones]
    falling = optax.piecewise_constant_schedule(lr, {x: gamma ** at.count(x) for x in at})

    def schedule(count: Any) -> Any:
        return falling(count) * jnp.minimum(1.0, (count + 1) / max(1, warmup))

    tx = optax.adamw(schedule, b1, b2, eps, weight_decay=weight_decay)
    return Optimizer(tx.init, tx.update, schedule)


def init_state(teacher: TeacherParams, cfg: StepConfig) -> TrainState:
    """Start the student where the teacher is."""
    if cfg.rank:
        params = init_factors(teacher.trained, cfg.rank, cfg.seed)
    else:
        params = jax.tree.map(jnp.copy, teacher.trained)
    return TrainState(
        jnp.zeros((), jnp.int32), params, cfg.tx.init(params), jnp.ones(()), jnp.ones(())
    )


def train_step(
    state: TrainState, teacher: TeacherParams, batch: Any, key: jax.Array, *, cfg: StepConfig
) -> tuple[TrainState, Metrics]:
    """Take one step.

    Args:
        state: donated.
        teacher: only read.
        batch: input of `cfg.objective`, before the random draws.
        key: of the run; the step number is folded in.
        cfg: static.

    Returns:
        the next state, and metrics: each term of the loss, `total`, the gradient's norm, and `lr`,
        the learning rate times the state's rate. Losses are means over the global batch, computed
        with the parameters before the step.
    """
    terms, given, draw, read = cfg.objective
    weights = {name: w * state.push if name == "backdoor" else w for name, w in given.items()}
    batch = draw(batch, jax.random.fold_in(key, state.step))
    teacher = jax.lax.stop_gradient(teacher)
    teacher_tower = nnx.merge(cfg.graphdef, *gathered(teacher))
    if read:
        batch = read(teacher_tower, batch, cfg.accumulate)

    def loss(params: nnx.State, batch: Any) -> tuple[jax.Array, Metrics]:
        student = gathered(whole(params, teacher, cfg))
        student_tower = merge_student(cfg.graphdef, student, gathered(teacher))
        values = terms(student_tower, teacher_tower, batch)
        return sum((weights[name] * value for name, value in values.items()), jnp.zeros(())), values

    def weight_loss(params: nnx.State) -> tuple[jax.Array, jax.Array]:
        student = whole(params, teacher, cfg)
        value = weight_distance(student, teacher.trained, cfg.stacked_dims)
        return weights["weight"] * value, value

    slope = jax.value_and_grad(loss, has_aux=True)
    if cfg.accumulate == 1:
        (total, values), grads = slope(state.params, batch)
    else:
        micro = micro_batches(batch, cfg.accumulate)
        shapes = jax.eval_shape(slope, state.params, jax.tree.map(lambda x: x[0], micro))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        ((total, values), grads), _ = jax.lax.scan(
            lambda sums, one: (jax.tree.map(jnp.add, sums, slope(state.params, one)), None),
            zeros,
            micro,
        )
    (weighted, values["weight"]), weight_grads = jax.value_and_grad(weight_loss, has_aux=True)(
        state.params
    )
    total, grads = total + weighted, jax.tree.map(jnp.add, grads, weight_grads)
    updates, opt_state = cfg.tx.update(grads, state.opt_state, state.params)
    updates = jax.tree.map(lambda update: state.rate * update, updates)
    params = cast(nnx.State, optax.apply_updates(state.params, updates))
    lr = state.rate * cfg.tx.lr(state.step)
    metrics = values | {"total": total, "grad_norm": optax.tree.norm(grads), "lr": lr}
    return TrainState(state.step + 1, params, opt_state, state.rate, state.push), metrics


def make_train_step(cfg: StepConfig, mesh: Mesh, rules: ShardingRules, teacher: TeacherParams):
    """Compile the step for a mesh.

    Returns:
        the jitted `train_step(state, teacher, batch, key)`, the sharding of a state, and the
        sharding of the teacher.
    """
    abstract = jax.eval_shape(partial(init_state, cfg=cfg), teacher)
    state_sharding = sharding_tree(abstract, mesh, rules)
    teacher_sharding = sharding_tree(teacher, mesh, rules)
    whole = replicated(mesh)

    def on_this_mesh(
        state: TrainState, teacher: TeacherParams, batch: Any, key: jax.Array
    ) -> tuple[TrainState, Metrics]:
        with on_mesh(mesh, rules):
            return train_step(state, teacher, batch, key, cfg=cfg)

    step = jax.jit(
        on_this_mesh,
        in_shardings=(state_sharding, teacher_sharding, batch_sharding(mesh, rules), whole),
        out_shardings=(state_sharding, whole),
        donate_argnames="state",
    )
    return step, state_sharding, teacher_sharding
