"""The plan of a defense: all that a run needs, read and checked before anything is written.

`plan_text` and `plan_image` make a plan, and `defend.run` carries it out.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jaxdefense.clip.config import ResNetConfig
from jaxdefense.clip.model import CLIP
from jaxdefense.config import (
    DefendImageConfig,
    DefendTextConfig,
    ImageTrainConfig,
    OptimizerConfig,
    TextTrainConfig,
)
from jaxdefense.convert.directory import (
    HF,
    ModelDirectory,
    check_companions,
    read_model_directory,
)
from jaxdefense.data.images import Loader
from jaxdefense.defense.earlier import Earlier, Which
from jaxdefense.defense.kept import Teacher
from jaxdefense.defense.step import (
    Objective,
    StepConfig,
    TeacherParams,
    make_optimizer,
    make_train_step,
    split_tower,
)
from jaxdefense.defense.table import only_rows, rows_to_train
from jaxdefense.defense.validate import Draw, Verdict
from jaxdefense.errors import InputError
from jaxdefense.evals.embed import Embedder
from jaxdefense.ledger.runs import Followed
from jaxdefense.log import Progress
from jaxdefense.paths import check_writable
from jaxdefense.results import DefenseSummary
from jaxdefense.sharding import ShardingRules

logger = logging.getLogger(__name__)

_ROUNDS = 10
# Of a run whose steps are not given: the least, and how often each person is shown.
_STEPS = {TextTrainConfig: 400, ImageTrainConfig: 200}
_SHOWN = {TextTrainConfig: 560, ImageTrainConfig: 400}
# Of captions, in a text run of more people; chosen on 128 and on 256 of 1,024 (docs/scale.md).
_W_UTILITY = 4.0

Config = DefendTextConfig | DefendImageConfig
TrainConfig = TextTrainConfig | ImageTrainConfig
T = TypeVar("T", TextTrainConfig, ImageTrainConfig, TrainConfig)
D = TypeVar("D", bound=DefenseSummary)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """An encoder to defend, with its step compiled for a mesh.

    Fields:
        directory: of the model.
        model: the whole model, on the host; a run puts the student into it.
        which: encoder of the model.
        teacher: parameters of the undefended encoder, on the host.
        start: loads those that training starts from, on the host; None for the teacher's.
        mesh, rules: how arrays are sharded.
        step_cfg: the parts of a step.
        step, state_sharding, teacher_sharding: see `make_train_step`.
        rows: of a text encoder, the tokens whose embeddings the parameters above have; see `table`.
    """

    directory: ModelDirectory
    model: CLIP
    which: Literal["text", "vision"]
    teacher: TeacherParams
    start: Callable[[], nnx.State] | None
    mesh: Mesh
    rules: ShardingRules
    step_cfg: StepConfig
    step: Callable[..., Any]
    state_sharding: Any
    teacher_sharding: Any
    rows: np.ndarray | None = None


class Validation(NamedTuple):
    """How a run is validated.

    Fields:
        teacher: the undefended model on the run's mesh, in float32.
        judge: judges this model with the student's encoder in it.
        moved_most: gives `Verdict.mined`, the people who must stay and moved most.
    """

    teacher: Embedder
    judge: Callable[[Embedder], Verdict]
    moved_most: Callable[[Embedder], list[int]] = lambda student: []


@dataclasses.dataclass(frozen=True)
class Plan(Generic[D]):
    """A defense whose inputs were read and passed all checks.

    Fields:
        cfg: the settings of the run, as given.
        train: those of training, with the number of steps.
        kind: type of the summary.
        encoder: the encoder to train.
        batches: `batches[step]`, on the host.
        samples: number of samples in a batch.
        resolved: values resolved from the settings and inputs; the same on all processes.
        lines: log lines for the start of the run.
        summary: makes the summary from the values that the run adds.
        advice: says what may help if people are still recognised.
        bearable: how far those who stay may move, see `Verdict.moved`, before a line warns.
        validation: how to validate; None to train all steps and take the last state.
        draw: see `Watch`.
        keep: embeds what several steps show, before the first one; None to keep nothing.
        files: files to write at the start, by name: an array, or a value for JSON.
        loader: decodes the batches' photos; the summary lists those it could not read.
        follows: the ledgers that the run goes on from.
        earlier: the defense that this one follows, if any.
        beside: gives the plan of an image encoder that will be shipped with the text encoder of the
            model in a directory.
    """

    cfg: Config
    train: TrainConfig
    kind: type[D]
    encoder: Encoder
    batches: Any
    samples: int
    resolved: dict[str, Any]
    lines: Sequence[str]
    summary: Callable[..., D]
    advice: str
    follows: Followed
    bearable: float = math.inf
    validation: Validation | None = None
    draw: Draw = lambda verdict: False
    keep: Callable[[Teacher], None] | None = None
    files: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    loader: Loader | None = None
    earlier: Earlier | None = None
    beside: Callable[[Path], "Plan[D]"] | None = None


def read_undefended(cfg: Config) -> ModelDirectory:
    """Read the model directory to defend.

    Args:
        cfg: the settings of the run.

    Raises:
        InputError: the directory is wrong, or the run would be written into it.
    """
    directory = read_model_directory(cfg.model.path, note=logger.info)
    directory.check_outside(Path(cfg.out))
    if cfg.profile:
        check_writable(Path(cfg.profile))
    check_companions(directory.path, directory.weight_files)
    return directory


def stretched(t: T, num: int) -> tuple[T, float]:
    """Give a defense as many steps as its people need, if `steps` is 0.

    A run of many people is that of few, stretched: it has as many validations unless their distance
    differs from the default, and each person is shown `_SHOWN` times on average. Validations raise
    the rate and the push, so between them each person must come up often enough to show what the
    steps did.

    Args:
        t: the settings of training, as given.
        num: of people.

    Returns:
        the settings with a number of steps, and how many times as long the run is as a short one.
    """
    if t.steps:
        return t, 1.0
    kind, every = type(t), t.validate.every
    stretch = max(1.0, _SHOWN[kind] * num / (_STEPS[kind] * t.num_poisoned))
    if every == kind().validate.every:
        every = math.ceil(stretch * every)
    validate = dataclasses.replace(t.validate, every=every)
    steps = math.ceil(stretch * _STEPS[kind])
    return dataclasses.replace(t, steps=steps, validate=validate), stretch


def for_many(
    t: TextTrainConfig, optimizer: OptimizerConfig, stretch: float, weighs: bool = True
) -> tuple[TextTrainConfig, OptimizerConfig]:
    """Give a stretched text defense a lower rate and captions more weight, unless they are given.

    The rate falls with the root of the stretch. At a high rate people are lost who must stay:
    docs/scale.md has rates and what they cost, if not for every stretch. That of faces stays, as by
    the same page 256 people were not removed at a lower one. By the same page captions of more
    weight move less, at no cost that was measured, if with the bounded loss alone.

    Args:
        t, optimizer: the settings of the run; a rate that differs from the default is given.
        stretch: see `stretched`; 1 changes nothing.
        weighs: whether the weight of captions has an effect.
    """
    if stretch == 1:
        return t, optimizer
    if optimizer.lr == OptimizerConfig.lr:
        optimizer = dataclasses.replace(optimizer, lr=optimizer.lr / math.sqrt(stretch))
    if not t.w_utility and weighs and t.backdoor == "bounded":
        t = dataclasses.replace(t, w_utility=_W_UTILITY)
    return t, optimizer


def resolved_length(t: TrainConfig) -> dict[str, int]:
    """Give how long a run is, as the run directory records it."""
    return {"steps": t.steps, "validate_every": t.validate.every}


def describe_stretch(asked: Config, cfg: Config, num: int, stretch: float) -> list[str]:
    """Say what a run of many people has in place of the defaults.

    Args:
        asked, cfg: the settings as given, and as the run has them.
        num: of people.
        stretch: see `stretched`.
    """
    if stretch == 1:
        return []
    steps, shown = cfg.train.steps, _SHOWN[type(cfg.train)]
    said = [f"`train.steps` is {steps:,}, to show each of {num:,} people {shown} times on average"]
    if cfg.train.validate.every != asked.train.validate.every:
        said.append(f"`train.validate.every` is {cfg.train.validate.every:,}")
    if cfg.optimizer.lr != asked.optimizer.lr:
        said.append(f"`optimizer.lr` is {cfg.optimizer.lr:.3g}")
    if (weight := getattr(cfg.train, "w_utility", None)) != getattr(asked.train, "w_utility", None):
        said.append(f"`train.w_utility` is {weight:g}")
    lines = ["; ".join(said) + "; give `train.steps` to keep the settings as they are"]
    if fixed := [x for x in cfg.optimizer.milestones if x >= 1]:
        lines.append(
            f"`optimizer.milestones` {fixed} are steps and stay where they are; values below 1 are "
            "parts of the run"
        )
    return lines


def check_all_come_up(num_identities: int, t: TrainConfig) -> None:
    """Raise InputError if a run is too short to train on every person."""
    if t.steps * t.num_poisoned < num_identities:
        raise InputError(
            f"{num_identities} people do not all fit into `train.steps` (={t.steps}) x "
            f"`train.num_poisoned` (={t.num_poisoned}) samples; take at least "
            f"{-(-num_identities // t.num_poisoned)} steps, better {_ROUNDS} times as many."
        )


def lay_out(
    cfg: Config,
    directory: ModelDirectory,
    which: Literal["text", "vision"],
    objective: Objective,
    mesh: Mesh,
    rules: ShardingRules,
    earlier: Earlier | None = None,
    read: np.ndarray | None = None,
) -> Encoder:
    """Load the model, and compile an encoder's step for the mesh.

    Args:
        cfg: the settings of the run.
        directory: of a model that has this encoder.
        which: encoder.
        objective: of the encoder.
        mesh, rules: how arrays are sharded.
        earlier: the defense that the run follows, whose weights it may start from.
        read: of a text encoder, the token ids that its texts hold; None for any.

    Raises:
        InputError: the mesh does not divide the encoder's sizes.
    """
    with Progress(f"loading {directory.source}"):
        model = directory.load(cfg.model.dtype, cfg.model.remat)
    tower, rows = getattr(model, which), None
    graphdef, teacher = split_tower(tower)
    tx, t = make_optimizer(**vars(cfg.optimizer), steps=cfg.train.steps), cfg.train
    step_cfg = StepConfig(
        graphdef, objective, tx, t.accumulate, directory.layout.stacked_dims, t.lora_rank, t.seed
    )
    start = partial(earlier.start, which) if earlier and earlier.starts_there() else None
    # Weight decay moves all rows, and where a run before moved some, the weight loss does.
    if read is not None and start is None and not cfg.optimizer.weight_decay:
        rows = rows_to_train(read, tower.cfg.vocab_size)
        teacher = teacher._replace(trained=only_rows(teacher.trained, rows))
    laid_out = make_train_step(step_cfg, mesh, rules, teacher)
    return Encoder(directory, model, which, teacher, start, mesh, rules, step_cfg, *laid_out, rows)


def check_low_rank(
    cfg: Config, directory: ModelDirectory, which: Which, earlier: Earlier | None
) -> None:
    """Raise InputError if a student of low rank cannot begin, or its model has no such matrices.

    Says if no adapter will be written.

    Args:
        cfg: the settings of the run.
        directory: of the model.
        which: encoder to defend.
        earlier: the defense that the run follows, if any.
    """
    if not (rank := cfg.train.lora_rank):
        return
    if earlier and earlier.starts_there():
        raise InputError(
            f"`train.lora_rank` (={rank}) begins with the model's own weights, and "
            "`earlier.start` replay with those of the run before, whose settings are taken over: "
            "set `earlier.start` to fresh, or `train.lora_rank` to 0."
        )
    if directory.cfg.siglip or isinstance(getattr(directory.cfg, which), ResNetConfig):
        raise InputError(
            f"`train.lora_rank` (={rank}) is for the transformers of CLIP, and "
            f"`{directory.source}` is another model; set it to 0."
        )
    if not has_adapter(directory):
        logger.info("no adapter is written: PEFT and this model have no names in common")


def has_adapter(directory: ModelDirectory) -> bool:
    """Whether an adapter can name the tensors of a model.

    The modules of a lone encoder without projection have other names than its tensors.
    """
    towers = directory.cfg.text, directory.cfg.vision
    return directory.layout is HF and all(tower.embed for tower in towers if tower)
