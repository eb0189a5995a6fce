"""Run the defense of one encoder, from its plan to the defended model directory.

Names and faces share this code.
"""

import dataclasses
import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from jaxdefense.convert.directory import read_model_directory
from jaxdefense.data.images import Loader
from jaxdefense.defense import loop
from jaxdefense.defense.kept import Teacher
from jaxdefense.defense.low_rank import ADAPTER, write_adapter
from jaxdefense.defense.own import described
from jaxdefense.defense.plan import D, Encoder, Plan, Validation, has_adapter
from jaxdefense.defense.step import TeacherParams, TrainState, init_state, merge_student, whole
from jaxdefense.defense.table import all_rows
from jaxdefense.defense.validate import Verdict, Watch, describe_left, smallest_step
from jaxdefense.distributed import agree, exchange, on_first
from jaxdefense.evals.embed import Embedder
from jaxdefense.files import write_array, write_json
from jaxdefense.ledger.runs import keep_ledger
from jaxdefense.log import Progress
from jaxdefense.results import Validated
from jaxdefense.run_directory import RunDirectory
from jaxdefense.sharding import batch_sharding, fetch, put, replicated
from jaxdefense.trackers import Tracker, tracked
from jaxdefense.words import some

logger = logging.getLogger(__name__)

_OF_THE_STEP = ("grad_norm", "lr")  # metrics that are not losses


def run(plan: Plan[D], resume: bool = False) -> D:
    """Carry out a plan: train, validate, write the defended model directory and the summary.

    An interrupted run resumes.

    Args:
        plan: of the run.
        resume: whether to return the summary of a run that is finished; else such a run is refused.

    Returns:
        the summary, as written to `summary.json`.

    Raises:
        InputError: the processes do not agree, or the directory holds another run.
        Interrupted, Diverged: see `loop.run`.
    """
    agree(plan.resolved)
    directory = RunDirectory(Path(plan.cfg.out), plan.kind)
    if resume and (summary := directory.finished(plan.cfg, plan.resolved)):
        return summary
    directory.open(plan.cfg, plan.resolved)
    for name, content in plan.files.items():
        write = write_array if isinstance(content, np.ndarray) else write_json
        on_first(partial(write, directory.path / name, content))
    for line in plan.lines:
        logger.info(line)
    with tracked(plan.cfg.log, directory.path, plan.cfg) as tracker:
        summary = _carry_out(plan, directory, tracker)
        tracker.tell("result", plan.train.steps, summary.figures())
    return summary


def _carry_out(plan: Plan[D], directory: RunDirectory[D], tracker: Tracker) -> D:
    """Train, validate and write, in an open directory; see `run`."""
    teacher = put(plan.encoder.teacher, plan.encoder.teacher_sharding)
    watch = _watch(plan, teacher, directory.path)
    if watch is None:
        then = ": attack the defended model" if plan.encoder.directory.cfg.vision else ""
        logger.warning(f"not validated, as `train.validate.every` is 0{then}")
    outcome = _train(plan, teacher, watch, directory.path, tracker)
    taken, found = outcome.state.params, None
    if watch:
        params, taken, found = _best(plan, watch, teacher)
    else:
        params = _whole(plan.encoder)(taken, teacher)
    _save(plan.encoder, params, teacher, directory.model)
    if plan.train.lora_rank:
        _save_adapter(plan, taken, found.alpha if found else 1.0, directory.path)
    corrupt = {"corrupt": _corrupt(plan.loader)} if plan.loader else {}
    earlier = plan.earlier
    summary = plan.summary(
        steps=plan.train.steps,
        diverged_at_step=outcome.diverged_at_step,
        seconds=round(outcome.seconds, 3),
        samples_per_second=round(outcome.samples_per_second, 3),
        final={name: x for name, x in outcome.metrics.items() if name not in _OF_THE_STEP},
        earlier=earlier.summary() if earlier else None,
        defended_sha256=model_digest(directory.model),
        **corrupt,
        **(found._asdict() if found else {}),
    )
    own = described(plan.resolved)
    ledger = partial(keep_ledger, directory.path, plan.cfg, summary, [summary], own=own)
    on_first(partial(ledger, plan.resolved["model_sha256"], plan.follows))
    directory.finish(summary)
    logger.info(f"defended model: {directory.model}")
    if plan.loader and (own := plan.loader.corrupt):
        logger.warning(f"skipped photos that cannot be read: {some(own)}")
    return summary


def model_digest(path: Path) -> str:
    """Hash the weights that were written; see `ModelDirectory.digest`. One process reads them."""
    return on_first(lambda: read_model_directory(path).digest())


def _watch(plan: Plan, teacher: TeacherParams, path: Path) -> Watch | None:
    """Set up the validations of a run, if there are any."""
    if plan.validation is None:
        return None
    t, whole_of, validation = plan.train, _whole(plan.encoder), plan.validation
    encoder = plan.encoder

    def validate(params: nnx.State) -> Verdict:
        return _validate(encoder, validation, teacher, whole_of(params, teacher))

    def moved_most(params: nnx.State) -> list[int]:
        return _moved_most(encoder, validation, teacher, whole_of(params, teacher))

    return Watch(validate, t.validate, t.steps, path, moved_most, plan.draw)


def _whole(encoder: Encoder) -> Callable[[nnx.State, TeacherParams], nnx.State]:
    """Make what gives a student's weights, sharded as the teacher's; see `step.whole`.

    Weights are returned as they are: the teacher's, and those between it and a student.
    """
    cfg, sharding = encoder.step_cfg, encoder.teacher_sharding.trained
    of_factors = jax.jit(partial(whole, cfg=cfg), out_shardings=sharding)

    def weights(params: nnx.State, teacher: TeacherParams) -> nnx.State:
        same = jax.tree.structure(params) == jax.tree.structure(teacher.trained)
        return params if same else of_factors(params, teacher)

    return weights


def _validate(
    encoder: Encoder, validation: Validation, teacher: TeacherParams, params: nnx.State
) -> Verdict:
    """Validate trained parameters; all processes take the verdict of the first."""
    verdict = validation.judge(_student(encoder, validation, teacher, params))
    return Verdict(**on_first(lambda: dataclasses.asdict(verdict)))


def _moved_most(
    encoder: Encoder, validation: Validation, teacher: TeacherParams, params: nnx.State
) -> list[int]:
    """Find who must stay and moved most; all processes take the answer of the first."""
    mined = validation.moved_most(_student(encoder, validation, teacher, params))
    return on_first(lambda: mined)


def _student(
    encoder: Encoder, validation: Validation, teacher: TeacherParams, params: nnx.State
) -> Embedder:
    """Put trained parameters into the model to validate."""
    undefended = validation.teacher.params[encoder.which]
    params = all_rows(params, encoder.rows, undefended)
    student = merge_student(encoder.step_cfg.graphdef, params, teacher)
    return validation.teacher.with_encoder(encoder.which, student)


def _train(
    plan: Plan, teacher: TeacherParams, watch: Watch | None, path: Path, tracker: Tracker
) -> loop.Outcome:
    """Train as planned; see `loop.run`."""
    encoder, t = plan.encoder, plan.train
    make = jax.jit(partial(init_state, cfg=encoder.step_cfg), out_shardings=encoder.state_sharding)
    everywhere = replicated(encoder.mesh)
    if watch:  # first, while no other state is in memory
        with Progress("validating the undefended model"):
            watch.begin(teacher.trained)
    if plan.keep:
        plan.keep(Teacher(encoder.step_cfg.graphdef, teacher, encoder.mesh, encoder.rules))

    def init() -> TrainState:
        if encoder.start is None:
            return make(teacher)
        start = encoder.teacher._replace(trained=encoder.start())
        return make(put(start, encoder.teacher_sharding))

    return loop.run(
        encoder.step,
        init,
        encoder.state_sharding,
        teacher,
        plan.batches,
        batch_sharding(encoder.mesh, encoder.rules),
        jax.jit(partial(jax.random.key, t.seed), out_shardings=everywhere)(),
        loop.LoopConfig(
            t.steps, t.save_every, t.keep, plan.cfg.data.prefetch, plan.samples, plan.cfg.profile
        ),
        path,
        watch,
        jax.eval_shape(make, teacher),
        tracker,
    )


class _Chosen(NamedTuple):
    """What the summary says of the chosen state; see `DefenseSummary`."""

    reached: bool
    stopped_at_step: int
    alpha: float
    validation: Validated


def _best(plan: Plan, watch: Watch, teacher: TeacherParams) -> tuple[nnx.State, nnx.State, _Chosen]:
    """Choose the best state, and move no further from the teacher to it than needed.

    Returns:
        the weights there, the parameters of the state, and what the summary says of it.
    """
    encoder = plan.encoder
    abstract = jax.eval_shape(partial(init_state, cfg=encoder.step_cfg), teacher)
    step, state, verdict = watch.best(abstract, encoder.state_sharding)
    watch.close()
    alpha, params = 1.0, _whole(encoder)(state.params, teacher)
    if verdict.reached:
        with Progress("looking for the smallest step that removes them"):
            alpha, params, verdict = smallest_step(
                teacher.trained, params, verdict, watch.validation, plan.train.validate
            )
    logger.info(f"state of step {step}, {alpha:.0%} of the way to it: {verdict}")
    if (moved := verdict.moved.get("kept", 0.0)) > plan.bearable:
        logger.warning(
            f"names that must stay moved by {moved:.2f} (1 - cosine): others may be lost whom "
            "nothing validates; attack people who stay. What may help: a lower `optimizer.lr` with "
            "more `train.steps`, and `data.keep_names`."
        )
    if not verdict.reached:
        most = plan.train.validate.right
        logger.warning(describe_left(verdict, plan.advice, most))
    validation: Validated = {
        "before": watch.found[0][1].summary(),
        "after": verdict.summary(),
    }
    return params, state.params, _Chosen(verdict.reached, step, alpha, validation)


def _save(encoder: Encoder, params: nnx.State, teacher: TeacherParams, out: Path) -> None:
    """Write the model directory with the student in place of the teacher."""
    params, teacher = fetch(params), fetch(teacher)
    undefended = nnx.split(getattr(encoder.model, encoder.which))[1]
    params = all_rows(params, encoder.rows, undefended)
    student = merge_student(encoder.step_cfg.graphdef, params, teacher)
    setattr(encoder.model, encoder.which, student)
    with Progress("writing the defended model"):
        left_out = on_first(lambda: encoder.directory.save(encoder.model, out))
    if left_out:
        logger.info(f"not copied, as they may hold the undefended weights: {', '.join(left_out)}")


def _save_adapter(plan: Plan, factors: nnx.State, alpha: float, run: Path) -> None:
    """Write the adapter of a student of low rank into the run, if PEFT knows the layout."""
    encoder = plan.encoder
    if not has_adapter(encoder.directory):
        return
    factors, rows, rank = fetch(factors), encoder.directory.rows, plan.train.lora_rank
    on_first(lambda: write_adapter(run / ADAPTER, factors, alpha, rows, encoder.which, rank))
    logger.info(f"adapter for PEFT: {run / ADAPTER}")


def _corrupt(loader: Loader) -> dict[str, str]:
    """Gather the photos that cannot be read; each process read its own share."""
    found = {}
    for told in exchange(json.dumps(loader.corrupt)):
        found |= json.loads(told)
    return found
