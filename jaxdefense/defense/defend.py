"""One encoder from its checkpoint to the defended model directory, the same for names and faces."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import jax
from flax import nnx
from jax.sharding import Mesh
from rich.console import Console

from jaxdefense.config import DefendImageConfig, DefendTextConfig, ImageTrainConfig, TextTrainConfig
from jaxdefense.convert.directory import ModelDirectory, check_companions, read_model_directory
from jaxdefense.defense.loop import LoopConfig, run
from jaxdefense.defense.step import (
    Objective,
    StepConfig,
    TeacherParams,
    init_state,
    make_optimizer,
    make_train_step,
    merge_student,
    split_tower,
)
from jaxdefense.defense.validate import Mine, Verdict, Watch, describe_left, smallest_step
from jaxdefense.distributed import on_first
from jaxdefense.errors import InputError
from jaxdefense.evals.embed import Embedder
from jaxdefense.paths import check_outside, check_writable
from jaxdefense.run_directory import RunDirectory
from jaxdefense.sharding import ShardingRules, batch_sharding, fetch, put, replicated

_ROUNDS = 10

Config = DefendTextConfig | DefendImageConfig
Validation = tuple[Embedder, Callable[[Embedder], Verdict]]


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
        advice: str,
    ):
        """Load the model and lay the step out on the mesh; nothing is written.

        Args:
            cfg: of the run.
            directory: of the model, which has this encoder.
            which: encoder.
            objective: of the encoder.
            mesh, rules: where arrays live.
            advice: what helps if people are still recognised.

        Raises:
            InputError: the mesh does not divide the encoder's sizes.
        """
        self.cfg, self._directory, self._rules = cfg, directory, rules
        self._which: Literal["text", "vision"] = which
        self._mesh, self._advice = mesh, advice
        self._model = directory.load(cfg.model.dtype, cfg.model.remat)
        graphdef, self._teacher = split_tower(getattr(self._model, which))
        tx = make_optimizer(**vars(cfg.optimizer), steps=cfg.train.steps)
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
        validation: Validation | None = None,
        mine: Mine = lambda mined: None,
    ) -> dict:
        """Train, write the defended model directory and the summary.

        Args:
            batches: `batches[step]`, on the host.
            samples: a step.
            run_directory: opened.
            console: for progress.
            also: gives what else goes into the summary, once trained.
            validation: the model on the run's mesh, in float32, and what judges it with the
                student's encoder; None to train all steps and take what comes.
            mine: see `Watch`.

        Returns:
            the summary, as written to `summary.json`.

        Raises:
            Interrupted, Diverged: see `loop.run`.
        """
        t, mesh = self.cfg.train, self._mesh
        teacher, whole = put(self._teacher, self._teacher_sharding), replicated(mesh)
        init = jax.jit(partial(init_state, cfg=self._step_cfg), out_shardings=self._state_sharding)
        watch = None
        if validation:
            looked_at = partial(self._validate, teacher, validation)
            watch = Watch(looked_at, t.validate, t.steps, run_directory.path, mine)
        else:
            console.print("not validated, as `train.validate.every` is 0: attack what comes out")
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
            watch,
        )
        params, found = outcome.state.params, dict[str, Any]()
        if watch:
            step, params, alpha, verdict = self._best(watch, teacher, console)
            found = {
                "reached": verdict.reached,
                "stopped_at_step": step,
                "alpha": alpha,
                "validation": {
                    "before": watch.found[0][1].summary(),
                    "after": verdict.summary(),
                },
            }
            if not verdict.reached:
                console.print(describe_left(verdict, self._advice), markup=False)
        params, teacher = fetch(params), fetch(teacher)
        student = merge_student(self._step_cfg.graphdef, params, teacher)
        setattr(self._model, self._which, student)
        left_out = on_first(lambda: self._directory.save(self._model, run_directory.model))
        if left_out:
            console.print(
                f"left out, as they may hold the undefended weights: {', '.join(left_out)}"
            )
        summary = {
            "steps": t.steps,
            **found,
            "seconds": round(outcome.seconds, 3),
            "samples_per_second": round(outcome.samples_per_second, 3),
            **also(),
            "final": {name: x for name, x in outcome.metrics.items() if name != "grad_norm"},
            "defended_sha256": model_digest(run_directory.model),
        }
        run_directory.finish(summary)
        console.print(f"defended model: {run_directory.model}")
        return summary

    def _validate(
        self, teacher: TeacherParams, validation: Validation, params: nnx.State
    ) -> Verdict:
        """Validate trained parameters; the first process judges for all."""
        embedder, judge = validation
        tower = merge_student(self._step_cfg.graphdef, params, teacher)
        verdict = judge(embedder.with_encoder(self._which, tower))
        return Verdict(**on_first(lambda: dataclasses.asdict(verdict)))

    def _best(
        self,
        watch: Watch,
        teacher: TeacherParams,
        console: Console,
    ) -> tuple[int, nnx.State, float, Verdict]:
        """Give the best state of a run, no further from the teacher than needed.

        Returns:
            after how many steps it was, its parameters, the part of the way to them, its verdict.
        """
        abstract = jax.eval_shape(partial(init_state, cfg=self._step_cfg), teacher)
        step, state, verdict = watch.best(abstract, self._state_sharding, console)
        watch.close()
        alpha, params = 1.0, state.params
        if verdict.reached:
            alpha, params, verdict = smallest_step(
                teacher.trained, params, verdict, watch.validation, self.cfg.train.validate
            )
        console.print(f"state of step {step}, {alpha:.0%} of the way to it: {verdict}")
        return step, params, alpha, verdict
