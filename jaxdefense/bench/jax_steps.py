"""The training step of jaxdefense on random weights, as a run takes it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxdefense.bench.flops import product_flops
from jaxdefense.bench.machine import JaxImplementation
from jaxdefense.clip.config import CLIPConfig
from jaxdefense.clip.presets import preset
from jaxdefense.config import PAPER_TEXT, PAPER_TEXT_OPTIMIZER
from jaxdefense.convert.directory import resolve_dtype
from jaxdefense.defense.kept import Teacher
from jaxdefense.defense.loop import read_ahead
from jaxdefense.defense.step import (
    Objective,
    StepConfig,
    init_state,
    make_optimizer,
    make_train_step,
    split_tower,
    train_step,
)
from jaxdefense.defense.table import only_rows
from jaxdefense.sharding import (
    ShardingRules,
    batch_sharding,
    make_mesh,
    num_batch_parts,
    replicated,
)

AHEAD = 4  # batches


def preset_in_run_dtype(name: str) -> CLIPConfig:
    """Return a preset that computes in the dtype of a run here: bfloat16 on accelerators."""
    return preset(name).with_compute(resolve_dtype("auto"))


def num_parts() -> int:
    """Count the parts into which the mesh of `JaxSteps` divides a batch."""
    return num_batch_parts(make_mesh(), ShardingRules())


class JaxSteps(JaxImplementation):
    """Training steps from batches on the host to updated weights, read ahead as in a run."""

    def __init__(
        self,
        tower: nnx.Module,
        objective: Objective,
        batches: Any,
        rows: np.ndarray | None = None,
        keep: Callable[[Teacher], None] | None = None,
    ):
        """Place the state on a mesh of all devices.

        Args:
            tower: encoder of the teacher; the student starts as a copy.
            objective: loss of the step.
            batches: `batches[step]` is a batch on the host.
            rows: of the token table, those that the step works on; None for all.
            keep: has the teacher embed what several steps show; None to do so in each step.
        """
        mesh, rules = make_mesh(), ShardingRules()
        graphdef, teacher = split_tower(tower)
        teacher = teacher._replace(trained=only_rows(teacher.trained, rows))
        tx = make_optimizer(**vars(PAPER_TEXT_OPTIMIZER), steps=PAPER_TEXT.steps)
        self._cfg = StepConfig(graphdef, objective, tx)
        self._step, state_sharding, teacher_sharding = make_train_step(
            self._cfg, mesh, rules, teacher
        )
        self._teacher = jax.device_put(teacher, teacher_sharding)
        if keep:
            keep(Teacher(graphdef, self._teacher, mesh, rules))
        init = jax.jit(partial(init_state, cfg=self._cfg), out_shardings=state_sharding)
        self._state = jax.block_until_ready(init(self._teacher))
        self._place = batch_sharding(mesh, rules)
        self.key = jax.device_put(jax.random.key(0), replicated(mesh))
        self._batches, self._number = batches, 0
        self.fixed = jax.device_put(batches[0], self._place)

    def steps(self, num: int) -> None:
        """Take steps, each on a new batch from the host."""
        metrics = None
        for batch in self._read(num):
            metrics = self._take(jax.device_put(batch, self._place))
        jax.block_until_ready(metrics)

    def make_batches(self, num: int) -> None:
        """Make batches on the host as `steps` does, and take no step."""
        for _ in self._read(num):
            pass

    def steps_on_fixed_batch(self, num: int) -> None:
        """Take steps, all on one batch that is already on the devices."""
        metrics = None
        for _ in range(num):
            metrics = self._take(self.fixed)
        jax.block_until_ready(metrics)

    def _read(self, num: int) -> Any:
        start, self._number = self._number, self._number + num
        return read_ahead(self._batches, start, self._number, AHEAD)

    def _take(self, batch: Any) -> Any:
        self._state, metrics = self._step(self._state, self._teacher, batch, self.key)
        return metrics

    def flops(self) -> int:
        """Count the operations of a step's matrix products."""
        step = partial(train_step, cfg=self._cfg)
        return product_flops(step, self._state, self._teacher, self._batches[0], self.key)
