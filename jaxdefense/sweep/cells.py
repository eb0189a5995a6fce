"""The cells of a sweep: whom each removes, and with what settings.

The people of a seed are nested: those removed in a cell are also removed in every larger one.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jaxdefense.config import (
    AttackConfig,
    CellsConfig,
    DefendImageConfig,
    DefendTextConfig,
    EvaluateConfig,
    ModelConfig,
    SweepImageConfig,
    SweepTextConfig,
)

SweepConfig = SweepTextConfig | SweepImageConfig
T = TypeVar("T")

CELLS, BEFORE = "cells", "before"  # in the directory of a sweep
NAMES, DEFENSE, ATTACK, EVALUATION = "names.txt", "defense", "attack", "evaluation"  # of a cell


@dataclasses.dataclass(frozen=True)
class Cell:
    """One defense.

    Fields:
        num: number of people removed.
        seed: seed of the choice of people, and of the training.
        w_weight: weight of the weight loss.
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


def faces(cfg: SweepConfig) -> str:
    """Return the source of the photos that everybody is attacked with."""
    if cfg.attack.faces or isinstance(cfg, SweepTextConfig):
        return cfg.attack.faces
    return cfg.data.faces


def clean(cfg: SweepConfig) -> str:
    """Return the source of the captions or photos that must keep their embeddings."""
    if cfg.evaluate.clean:
        return cfg.evaluate.clean
    return cfg.data.captions if isinstance(cfg, SweepTextConfig) else cfg.data.images


def defense_config(
    cfg: SweepConfig, cell: Cell, directory: Path
) -> DefendTextConfig | DefendImageConfig:
    """Return the settings of a cell's defense.

    Args:
        cfg: settings of the sweep.
        cell: the cell.
        directory: directory of the cell.
    """
    out, names = str(directory / DEFENSE), str(directory / NAMES)
    how = {"mesh": cfg.mesh, "cache": cfg.cache}
    if isinstance(cfg, SweepTextConfig):
        data = dataclasses.replace(cfg.data, names=names)
        train = dataclasses.replace(cfg.train, seed=cell.seed, w_weight=cell.w_weight)
        return DefendTextConfig(out, cfg.model, data, train, cfg.optimizer, **how)
    data = dataclasses.replace(cfg.data, names=names)
    train = dataclasses.replace(cfg.train, seed=cell.seed, w_weight=cell.w_weight)
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
        if isinstance(cfg, SweepImageConfig):
            unseen_by = str(directory / DEFENSE)
    given: dict[str, Any] = vars(cfg.attack) | {"faces": faces(cfg)}
    return AttackConfig(
        out=str(directory / ATTACK),
        model=model,
        unseen_by=unseen_by,
        tfds_dir=cfg.data.tfds_dir,
        mesh=cfg.mesh,
        **given,
    )


def evaluate_config(cfg: SweepConfig, directory: Path, defended: bool) -> EvaluateConfig:
    """Return the settings of an evaluation; see `attack_config`."""
    model, e = _measured(cfg), cfg.evaluate
    if defended:
        model = dataclasses.replace(model, path=str(directory / DEFENSE / "model"))
    what = {}
    if isinstance(cfg, SweepTextConfig):
        what = {"captions": clean(cfg), "num_captions": e.num_clean}
        if defended:
            what["names"] = str(directory / NAMES)
    else:
        what = {"images": clean(cfg), "num_images": e.num_clean}
    return EvaluateConfig(
        out=str(directory / EVALUATION),
        model=model,
        teacher=cfg.model.path,
        zeroshot=e.zeroshot,
        class_names=e.class_names,
        templates=e.templates,
        tfds_dir=cfg.data.tfds_dir,
        max_corrupt=e.max_corrupt,
        batch=e.batch,
        seed=e.seed,
        mesh=cfg.mesh,
        **what,
    )
