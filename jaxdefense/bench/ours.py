"""Our side of the benchmarks: a run's step on random weights, and the machine's rate."""

import platform
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxdefense.bench.flops import product_flops
from jaxdefense.bench.process import peak_memory
from jaxdefense.bench.side_by_side import num_cores
from jaxdefense.clip.config import CLIPConfig
from jaxdefense.clip.presets import preset
from jaxdefense.config import PAPER_TEXT, PAPER_TEXT_OPTIMIZER
from jaxdefense.convert.directory import resolve_dtype
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
from jaxdefense.sharding import (
    ShardingRules,
    batch_sharding,
    make_mesh,
    num_batch_parts,
    replicated,
)

AHEAD = 4  # batches


class Contestant:
    """What every contestant of ours can be asked."""

    def peak_memory(self) -> int:
        """Give the most memory taken: of the accelerator where there is one, else the process's."""
        stats = [device.memory_stats() or {} for device in jax.local_devices()]
        return sum(found.get("peak_bytes_in_use", 0) for found in stats) or peak_memory()

    def machine(self) -> dict[str, str]:
        """Name what the figures are measured on."""
        return {
            "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "processor": f"{platform.machine()}, {num_cores()} cores",
            "jax": jax.__version__,
            "dtype": resolve_dtype("auto"),
        }

    def matmul_rate(self) -> float:
        """Measure the FLOP/s of one large matrix product in the dtype models compute in here.

        Of all devices, as if each did what one does; simulated ones share a processor.
        """
        dtype = resolve_dtype("auto")
        side = 2048 if dtype == "float32" else 8192
        a = jnp.ones((side, side), dtype)
        product = jax.jit(lambda a: a @ a)
        product(a).block_until_ready()
        seconds = []
        for _ in range(10):
            start = time.perf_counter()
            product(a).block_until_ready()
            seconds.append(time.perf_counter() - start)
        num = 1 if jax.default_backend() == "cpu" else jax.device_count()
        return num * 2 * side**3 / float(np.median(seconds))


def share(samples_per_second: float, flops_per_sample: float, top: float) -> dict[str, float]:
    """Give the rate something computes at, and its share of that of one large matrix product."""
    rate = samples_per_second * flops_per_sample
    return {
        "gflop_per_second": round(rate / 1e9, 1),
        "gflop_per_second_of_a_product": round(top / 1e9, 1),
        "share": round(rate / top, 3),
    }


def sizes(name: str) -> CLIPConfig:
    """Give a preset, computed as a run does here: in bfloat16 on accelerators."""
    return preset(name).with_compute(resolve_dtype("auto"))


def num_parts() -> int:
    """Count the parts that the mesh of all devices, as `Ours` has it, cuts a batch into."""
    return num_batch_parts(make_mesh(), ShardingRules())


class Ours(Contestant):
    """Batches from the host to updated weights, read ahead as in a run."""

    def __init__(self, tower: nnx.Module, objective: Objective, batches: Any):
        """Lay it out on all devices.

        Args:
            tower: teacher, and student at the start.
            objective: of the step.
            batches: `batches[step]`, on the host.
        """
        mesh, rules = make_mesh(), ShardingRules()
        graphdef, teacher = split_tower(tower)
        tx = make_optimizer(**vars(PAPER_TEXT_OPTIMIZER), steps=PAPER_TEXT.steps)
        self._cfg = StepConfig(graphdef, objective, tx)
        self._step, state_sharding, teacher_sharding = make_train_step(
            self._cfg, mesh, rules, teacher
        )
        self._teacher = jax.device_put(teacher, teacher_sharding)
        init = jax.jit(partial(init_state, cfg=self._cfg), out_shardings=state_sharding)
        self._state = jax.block_until_ready(init(self._teacher))
        self._place = batch_sharding(mesh, rules)
        self.key = jax.device_put(jax.random.key(0), replicated(mesh))
        self._batches, self._number = batches, 0
        self.fixed = jax.device_put(batches[0], self._place)

    def steps(self, num: int) -> None:
        """Take steps, each with its batch from the host."""
        metrics = None
        for batch in self._read(num):
            metrics = self._take(jax.device_put(batch, self._place))
        jax.block_until_ready(metrics)

    def makes(self, num: int) -> None:
        """Make batches on the host, as for steps."""
        for _ in self._read(num):
            pass

    def consumes(self, num: int) -> None:
        """Take steps with a batch that lies on the device."""
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
