"""One encoder from its checkpoint to the defended model directory, the same for names and faces."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import jax
from jax.sharding import Mesh
from rich.console import Console

from jaxdefense.config import DefendImageConfig, DefendTextConfig, ImageTrainConfig, TextTrainConfig
from jaxdefense.convert.directory import ModelDirectory, check_companions, read_model_directory
from jaxdefense.defense.loop import LoopConfig, run
from jaxdefense.defense.step import (
    Objective,
    StepConfig,
    init_state,
    make_optimizer,
    make_train_step,
    merge_student,
    split_tower,
)
from jaxdefense.distributed import on_first
from jaxdefense.errors import InputError
from jaxdefense.paths import check_outside, check_writable
from jaxdefense.run_directory import RunDirectory
from jaxdefense.sharding import ShardingRules, batch_sharding, fetch, put, replicated

_ROUNDS = 10

Config = DefendTextConfig | DefendImageConfig


def read_undefended(cfg: Config, console: Console) -> ModelDirectory:
    """Read the model directory to defend.

    Raises:
        InputError: it is wrong, or the run would be written into it.
    """
    note = partial(console.print, markup=False)
    directory = read_model_directory(cfg.model.path, note=note)
    check_outside(Path(cfg.out), directory.path)
    if cfg.profile:
        check_writable(Path(cfg.profile))
    check_companions(directory.path, directory.weight_files)
    return directory


def model_digest(path: Path) -> str:
    """Tell what weights were written, as `ModelDirectory.digest` does; one process reads them."""
    return on_first(lambda: read_model_directory(path).digest())


def check_all_come_up(num_identities: int, t: TextTrainConfig | ImageTrainConfig) -> None:
    """Raise InputError if a run is too short to train on every person."""
    if t.steps * t.num_poisoned < num_identities:
        raise InputError(
            f"{num_identities} people do not all come up in `train.steps` (={t.steps}) x "
            f"`train.num_poisoned` (={t.num_poisoned}) samples; take at least "
            f"{-(-num_identities // t.num_poisoned)} steps, better {_ROUNDS} times as many."
        )


class Prepared(Protocol):
    """A defense whose inputs are read and found good."""

    def __call__(self, go_on: bool = False) -> dict:
        """Run it; `go_on`: if the run is finished already, give its summary rather than raise."""
        ...


class Defense:
    """An encoder with everything its training takes but the batches."""

    def __init__(
        self,
        cfg: Config,
        directory: ModelDirectory,
        which: Literal["text", "vision"],
        objective: Objective,
        mesh: Mesh,
        rules: ShardingRules,
    ):
        """Load the model and lay the step out on the mesh; nothing is written.

        Args:
            cfg: of the run.
            directory: of the model, which has this encoder.
            which: encoder.
            objective: of the encoder.
            mesh, rules: where arrays live.

        Raises:
            InputError: the mesh does not divide the encoder's sizes.
        """
        self.cfg, self._directory, self._which, self._rules = cfg, directory, which, rules
        self._mesh = mesh
        self._model = directory.load(cfg.model.dtype, cfg.model.remat)
        graphdef, self._teacher = split_tower(getattr(self._model, which))
        tx = make_optimizer(**vars(cfg.optimizer))
        self._step_cfg = StepConfig(
            graphdef, objective, tx, cfg.train.accumulate, directory.layout.stacked_dims
        )
        self._step, self._state_sharding, self._teacher_sharding = make_train_step(
            self._step_cfg, mesh, rules, self._teacher
        )

    def run(
        self,
        batches: Any,
        samples: int,
        run_directory: RunDirectory,
        console: Console,
        also: Callable[[], Mapping[str, Any]],
    ) -> dict:
        """Train, write the defended model directory and the summary.

        Args:
            batches: `batches[step]`, on the host.
            samples: a step.
            run_directory: opened.
            console: for progress.
            also: gives what else goes into the summary, once trained.

        Returns:
            the summary, as written to `summary.json`.

        Raises:
            Interrupted, Diverged: see `loop.run`.
        """
        t, mesh = self.cfg.train, self._mesh
        teacher, whole = put(self._teacher, self._teacher_sharding), replicated(mesh)
        init = jax.jit(partial(init_state, cfg=self._step_cfg), out_shardings=self._state_sharding)
        outcome = run(
            self._step,
            partial(init, teacher),
            self._state_sharding,
            teacher,
            batches,
            batch_sharding(mesh, self._rules),
            jax.jit(partial(jax.random.key, t.seed), out_shardings=whole)(),
            LoopConfig(
                t.steps, t.save_every, t.keep, self.cfg.data.prefetch, samples, self.cfg.profile
            ),
            run_directory.path,
            console,
        )
        params, teacher = fetch(outcome.state.params), fetch(teacher)
        student = merge_student(self._step_cfg.graphdef, params, teacher)
        setattr(self._model, self._which, student)
        left_out = on_first(lambda: self._directory.save(self._model, run_directory.model))
        if left_out:
            console.print(
                f"left out, as they may hold the undefended weights: {', '.join(left_out)}"
            )
        summary = {
            "steps": t.steps,
            "seconds": round(outcome.seconds, 3),
            "samples_per_second": round(outcome.samples_per_second, 3),
            **also(),
            "final": {k: outcome.metrics[k] for k in ("utility", "backdoor", "weight", "total")},
            "defended_sha256": model_digest(run_directory.model),
        }
        run_directory.finish(summary)
        console.print(f"defended model: {run_directory.model}")
        return summary
