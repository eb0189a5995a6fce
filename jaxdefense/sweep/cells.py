"""The cells of a sweep: whom each removes, and with what settings.

The people of a seed are nested: those removed in a cell are also removed in every larger one.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from jaxdefense.config import (
    AttackConfig,
    CellsConfig,
    DefendBothConfig,
    DefendImageConfig,
    DefendTextConfig,
    EvaluateConfig,
    ImageDataConfig,
    ImageTrainConfig,
    ModelConfig,
    SweepBothConfig,
    SweepBothEvaluate,
    SweepImageConfig,
    SweepTextConfig,
    TextDataConfig,
    TextTrainConfig,
)

SweepConfig = SweepTextConfig | SweepImageConfig | SweepBothConfig
T = TypeVar("T")

CELLS, BEFORE = "cells", "before"  # in the directory of a sweep
NAMES, DEFENSE, ATTACK, EVALUATION = "names.txt", "defense", "attack", "evaluation"  # of a cell


@dataclasses.dataclass(frozen=True)
class Cell:
    """One defense.

    Fields:
        num: number of people removed.
        seed: seed of the choice of people, and of the training.
        w_weight: weight of the weight loss; of both encoders, a factor of the weights of each.
    """

    num: int
    seed: int
    w_weight: float

    @property
    def name(self) -> str:
        """Name of the cell's directory."""
        return f"n{self.num:04}_seed{self.seed}_weight{self.w_weight!r}"

    def __str__(self) -> str:
        people = "person" if self.num == 1 else "people"
        return f"{self.num} {people}, seed {self.seed}, w_weight {self.w_weight:g}"


def cells(cfg: CellsConfig) -> list[Cell]:
    """List all cells, grouped by seed."""
    return [
        Cell(num, seed, w_weight)
        for seed in cfg.seeds
        for num in cfg.num_identities
        for w_weight in cfg.w_weight
    ]


def choose(people: Sequence[T], cell: Cell) -> list[T]:
    """Choose the people whom a cell removes, among all who may be removed."""
    order = np.random.default_rng(cell.seed).permutation(len(people))
    return [people[i] for i in order[: cell.num]]


class TextHalf(NamedTuple):
    """What the text defense reads, and how it trains."""

    data: TextDataConfig
    train: TextTrainConfig


class ImageHalf(NamedTuple):
    """What the image defense reads, and how it trains."""

    data: ImageDataConfig
    train: ImageTrainConfig


def halves(cfg: SweepConfig) -> tuple[TextHalf | None, ImageHalf | None]:
    """Return what a cell defends: the text encoder, the image encoder or both."""
    if isinstance(cfg, SweepTextConfig):
        return TextHalf(cfg.data, cfg.train), None
    if isinstance(cfg, SweepImageConfig):
        return None, ImageHalf(cfg.data, cfg.train)
    # The faces removed are those of the people whose names are.
    data = ImageDataConfig(**{**vars(cfg.image.data), "names": cfg.text.data.names})
    return TextHalf(cfg.text.data, cfg.text.train), ImageHalf(data, cfg.image.train)


def tfds_dir(cfg: SweepConfig) -> str:
    """Return the directory of prepared datasets."""
    return cfg.text.data.tfds_dir if isinstance(cfg, SweepBothConfig) else cfg.data.tfds_dir


def faces(cfg: SweepConfig) -> str:
    """Return the source of the photos that everybody is attacked with."""
    _, image = halves(cfg)
    return cfg.attack.faces or (image.data.faces if image else "")


def clean_captions(cfg: SweepConfig) -> str:
    """Return the source of the captions that must keep their embeddings; "" if there is none."""
    text, _ = halves(cfg)
    return (cfg.evaluate.clean or text.data.captions) if text else ""


def clean_images(cfg: SweepConfig) -> str:
    """Return the source of the photos that must keep their embeddings; "" if there is none."""
    (_, image), e = halves(cfg), cfg.evaluate
    clean = e.clean_images if isinstance(e, SweepBothEvaluate) else e.clean
    return (clean or image.data.images) if image else ""


def defense_config(
    cfg: SweepConfig, cell: Cell, directory: Path
) -> DefendTextConfig | DefendImageConfig | DefendBothConfig:
    """Return the settings of a cell's defense.

    Args:
        cfg: settings of the sweep.
        cell: the cell.
        directory: directory of the cell.
    """
    out, names = str(directory / DEFENSE), str(directory / NAMES)
    log = cfg.log.part(cfg.out, f"{cell.name}/{DEFENSE}")
    how = {"mesh": cfg.mesh, "cache": cfg.cache, "log": log}
    replace = dataclasses.replace
    if isinstance(cfg, SweepBothConfig):
        of_text, of_image = (
            replace(train, seed=cell.seed, w_weight=cell.w_weight * train.w_weight)
            for train in (cfg.text.train, cfg.image.train)
        )
        text = replace(cfg.text, data=replace(cfg.text.data, names=names), train=of_text)
        return DefendBothConfig(out, cfg.model, text, replace(cfg.image, train=of_image), **how)
    if isinstance(cfg, SweepTextConfig):
        data = replace(cfg.data, names=names)
        train = replace(cfg.train, seed=cell.seed, w_weight=cell.w_weight)
        return DefendTextConfig(out, cfg.model, data, train, cfg.optimizer, **how)
    data = replace(cfg.data, names=names)
    train = replace(cfg.train, seed=cell.seed, w_weight=cell.w_weight)
    return DefendImageConfig(out, cfg.model, data, train, cfg.optimizer, **how)


def _measured(cfg: SweepConfig) -> ModelConfig:
    """Return the model as attacked and evaluated: in float32, whatever dtype it is trained in."""
    return dataclasses.replace(cfg.model, dtype="float32")


def attack_config(cfg: SweepConfig, directory: Path, defended: bool) -> AttackConfig:
    """Return the settings of an attack on everybody.

    Args:
        cfg: settings of the sweep.
        directory: directory of the cell, or of the undefended model's results.
        defended: whether to attack the cell's model, skipping photos it trained on.
    """
    model, unseen_by = _measured(cfg), ""
    if defended:
        model = dataclasses.replace(model, path=str(directory / DEFENSE / "model"))
        if halves(cfg)[1]:
            unseen_by = str(directory / DEFENSE)
    given: dict[str, Any] = vars(cfg.attack) | {"faces": faces(cfg)}
    return AttackConfig(
        out=str(directory / ATTACK),
        model=model,
        unseen_by=unseen_by,
        tfds_dir=tfds_dir(cfg),
        mesh=cfg.mesh,
        log=cfg.log.part(cfg.out, f"{directory.name}/{ATTACK}"),
        **given,
    )


def evaluate_config(cfg: SweepConfig, directory: Path, defended: bool) -> EvaluateConfig:
    """Return the settings of an evaluation; see `attack_config`."""
    model, e = _measured(cfg), cfg.evaluate
    if defended:
        model = dataclasses.replace(model, path=str(directory / DEFENSE / "model"))
    what: dict[str, Any] = {}
    if captions := clean_captions(cfg):
        what |= {"captions": captions, "num_captions": e.num_clean}
        what |= {"names": str(directory / NAMES)} if defended else {}
    if images := clean_images(cfg):
        what |= {"images": images, "num_images": e.num_clean}
    return EvaluateConfig(
        out=str(directory / EVALUATION),
        model=model,
        teacher=cfg.model.path,
        zeroshot=e.zeroshot,
        class_names=e.class_names,
        templates=e.templates,
        tfds_dir=tfds_dir(cfg),
        max_corrupt=e.max_corrupt,
        batch=e.batch,
        seed=e.seed,
        mesh=cfg.mesh,
        log=cfg.log.part(cfg.out, f"{directory.name}/{EVALUATION}"),
        **what,
    )
