"""One step of backdoor distillation, the same for names and faces.

`loss = utility + w_backdoor * backdoor + w_name * name + w_keep * keep + w_weight * weight`

`name` is of texts with names that must stay, `keep` of photos with faces that must.

What is defended comes in as `terms`: it runs student and teacher over a batch and gives the terms
of the loss. The student's frozen tensors (norms) are the teacher's own, so they are neither in the
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
from jaxdefense.sharding import (
    ShardingRules,
    batch_sharding,
    gathered,
    micro_batches,
    on_mesh,
    replicated,
    sharding_tree,
)

# draw(batch, key) -> batch, with all that is random about it drawn, for every sample at once
Draw = Callable[[Any, jax.Array], Any]
# terms(student, teacher, batch) -> terms of the loss by name, scalars: sums over samples whose
# weights sum to 1 over the global batch, so that those of micro-batches add up
Terms = Callable[[Any, Any, Any], dict[str, jax.Array]]
Metrics = dict[str, jax.Array]


class TrainState(NamedTuple):
    """What a step changes; and `rate` and `push`, which a validation changes.

    Fields:
        step: its number.
        params: those trained.
        opt_state: the optimizer's memory.
        rate: f32, what the optimizer's step is multiplied by.
        push: f32, what the weight of the backdoor loss is multiplied by.
    """

    step: jax.Array
    params: nnx.State
    opt_state: optax.OptState
    rate: jax.Array
    push: jax.Array


class TeacherParams(NamedTuple):
    """The given encoder: the values training starts from, and the tensors it leaves alone."""

    trained: nnx.State
    frozen: nnx.State


class Objective(NamedTuple):
    """What a step makes smaller.

    Fields:
        terms: of the loss.
        weights: of each term in the loss; `weight` is the weight distance.
        draw: draws on the device what is random in a batch; without, nothing is.
    """

    terms: Terms
    weights: Mapping[str, float]
    draw: Draw = lambda batch, key: batch


class Optimizer(NamedTuple):
    """A gradient transformation of Optax, and its learning rate, a function of the steps taken."""

    init: optax.TransformInitFn
    update: optax.TransformUpdateFn
    lr: optax.Schedule


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """What a step is made of.

    Fields:
        graphdef: of the tower.
        objective: what it makes smaller.
        tx: the optimizer.
        accumulate: micro-batches whose gradients are added up, one in memory at a time.
        stacked_dims: see `weight_distance`.
    """

    graphdef: nnx.GraphDef
    objective: Objective
    tx: Optimizer
    accumulate: int = 1
    stacked_dims: tuple[str, ...] = STACKED_DIMS


def split_tower(tower: nnx.Module) -> tuple[nnx.GraphDef, TeacherParams]:
    """Split a tower into its structure, what is trained and what is frozen."""
    trained = nnx.All(nnx.Param, nnx.Not(FrozenParam))
    graphdef, params, frozen = nnx.split(tower, trained, FrozenParam)
    return graphdef, TeacherParams(params, frozen)


def merge_student(graphdef: nnx.GraphDef, params: nnx.State, teacher: TeacherParams) -> Any:
    """Put a trained tower together."""
    return nnx.merge(graphdef, params, teacher.frozen)


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
    """AdamW whose learning rate rises and then falls.

    Args:
        lr: what it rises to, in `warmup` steps, the first at lr / warmup.
        warmup: 0 for none.
        milestones: steps from which on it is multiplied by `gamma`; below 1, parts of the run.
        gamma: see there.
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
        batch: what `cfg.objective` takes, before anything is drawn.
        key: of the run; the step's own is folded in.
        cfg: static.

    Returns:
        the next state, and metrics: each term of the loss, `total`, the gradient's norm, and the
        learning rate `lr`, times the state's own rate; losses are means over the global batch,
        those of the parameters before the step.
    """
    terms, given, draw = cfg.objective
    weights = {name: w * state.push if name == "backdoor" else w for name, w in given.items()}
    batch = draw(batch, jax.random.fold_in(key, state.step))
    teacher = jax.lax.stop_gradient(teacher)
    teacher_tower = nnx.merge(cfg.graphdef, *gathered(teacher))

    def loss(params: nnx.State, batch: Any) -> tuple[jax.Array, Metrics]:
        student_tower = merge_student(cfg.graphdef, gathered(params), gathered(teacher))
        values = terms(student_tower, teacher_tower, batch)
        return sum((weights[name] * value for name, value in values.items()), jnp.zeros(())), values

    def weight_loss(params: nnx.State) -> tuple[jax.Array, jax.Array]:
        value = weight_distance(params, teacher.trained, cfg.stacked_dims)
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
        the jitted `train_step(state, teacher, batch, key)`, the shardings of a state and of the
        teacher.
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
