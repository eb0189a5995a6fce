"""Our step on random weights, as a run takes it, for the benchmarks to time."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
from flax import nnx

from jaxdefense.bench.flops import product_flops
from jaxdefense.config import OptimizerConfig
from jaxdefense.defense.loop import read_ahead
from jaxdefense.defense.step import (
    Draw,
    StepConfig,
    Terms,
    init_state,
    make_optimizer,
    make_train_step,
    split_tower,
    train_step,
)
from jaxdefense.sharding import ShardingRules, batch_sharding, make_mesh, replicated

AHEAD = 4  # batches


class Ours:
    """Batches from the host to updated weights, read ahead as in a run."""

    def __init__(
        self,
        tower: nnx.Module,
        terms: Terms,
        weights: Mapping[str, float],
        batches: Any,
        draw: Draw = lambda batch, key: batch,
    ):
        """Lay it out on all devices.

        Args:
            tower: teacher, and student at the start.
            terms, weights, draw: see `StepConfig`.
            batches: `batches[step]`, on the host.
        """
        mesh, rules = make_mesh(), ShardingRules()
        graphdef, teacher = split_tower(tower)
        tx = make_optimizer(**vars(OptimizerConfig()))
        self._cfg = StepConfig(graphdef, terms, weights, tx, draw)
        self._step, state_sharding, teacher_sharding = make_train_step(
            self._cfg, mesh, rules, teacher
        )
        self._teacher = jax.device_put(teacher, teacher_sharding)
        init = jax.jit(partial(init_state, cfg=self._cfg), out_shardings=state_sharding)
        self._state = init(self._teacher)
        self.place = batch_sharding(mesh, rules)
        self.key = jax.device_put(jax.random.key(0), replicated(mesh))
        self._batches, self._number = batches, 0

    def steps(self, num: int) -> None:
        """Take steps."""
        metrics = None
        for batch in read_ahead(self._batches, self._number, self._number + num, AHEAD):
            batch = jax.device_put(batch, self.place)
            self._state, metrics = self._step(self._state, self._teacher, batch, self.key)
        jax.block_until_ready(metrics)
        self._number += num

    def flops(self) -> int:
        """Count the operations of a step's matrix products."""
        step = partial(train_step, cfg=self._cfg)
        return product_flops(step, self._state, self._teacher, self._batches[0], self.key)
