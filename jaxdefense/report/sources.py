"""The directories of a report: defenses, attacks and evaluations, recognised by their kind."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxdefense.errors import InputError
from jaxdefense.report.frame import flatten
from jaxdefense.results import (
    AttackSummary,
    BothDefenseSummary,
    DefenseSummary,
    EvaluationSummary,
    Summary,
    halves_of,
    kind_of,
    parse_object,
    read_settings,
    read_summary,
    read_text,
)
from jaxdefense.typed_json import Json
from jaxdefense.words import some


@dataclasses.dataclass(frozen=True)
class Source:
    """A directory of results.

    Fields:
        path: the directory.
        settings: nested settings.
    """

    path: Path
    settings: dict[str, Json]

    def setting(self, key: str) -> str:
        """Return a setting by its full name, as text; "" if there is none."""
        value = flatten(self.settings).get(key)
        return "" if value is None else str(value)


@dataclasses.dataclass(frozen=True)
class Run(Source):
    """A finished defense of one encoder.

    Fields:
        summary: result of the defense.
        rows: rows of `metrics.jsonl`.
    """

    summary: DefenseSummary
    rows: list[dict[str, Json]]

    @property
    def encoder(self) -> str:
        """The encoder that was defended, text or image."""
        return self.summary.encoder

    @property
    def source(self) -> str:
        """Digest of the model that was defended, "" if it was not recorded."""
        return self.setting("resolved.model_sha256")

    @property
    def defended(self) -> str:
        """Digest of the model that came out, "" if it was not recorded."""
        return self.summary.defended_sha256

    @property
    def names(self) -> list[list[str]]:
        """All names of each person on the list of the run, if they were recorded."""
        return self.summary.listed


@dataclasses.dataclass(frozen=True)
class Attack(Source):
    """Results of an attack."""

    summary: AttackSummary

    @property
    def model(self) -> str:
        """Digest of the model that was attacked, "" if it was not recorded."""
        return self.summary.model_sha256


@dataclasses.dataclass(frozen=True)
class Evaluation(Source):
    """Results of an evaluation."""

    summary: EvaluationSummary

    @property
    def model(self) -> str:
        """Digest of the defended model, "" if it was not recorded."""
        return self.summary.model_sha256


class Sources(NamedTuple):
    """The directories given, by kind.

    Fields:
        runs: at most one of each encoder.
        attacks, evaluations: in the order given.
        merged: digest of the model that two runs were merged into, "" if not known.
    """

    runs: list[Run]
    attacks: list[Attack]
    evaluations: list[Evaluation]
    merged: str


def read_sources(paths: Sequence[Path]) -> Sources:
    """Read directories of runs and results.

    Raises:
        InputError: a directory is neither or not finished, or two runs defended one encoder.
    """
    runs, attacks, evaluations, merged = list[Run](), list[Attack](), list[Evaluation](), ""
    for path in paths:
        settings, kind = read_settings(path), kind_of(path) or Summary
        if issubclass(kind, DefenseSummary):
            runs.append(_read_run(path))
        elif issubclass(kind, BothDefenseSummary):
            runs += map(_read_run, halves_of(path))
            merged = read_summary(path, BothDefenseSummary).defended_sha256
        elif issubclass(kind, AttackSummary):
            attacks.append(Attack(path, settings, read_summary(path, AttackSummary)))
        elif issubclass(kind, EvaluationSummary):
            evaluations.append(Evaluation(path, settings, read_summary(path, EvaluationSummary)))
        else:
            raise InputError(
                f"`{path}` holds no defense, attack or evaluation; give the directory of one."
            )
    for encoder in ("text", "image"):
        if len(same := [run.path for run in runs if run.encoder == encoder]) > 1:
            raise InputError(
                f"{some(map(str, same))} both defended the {encoder} encoder; give one."
            )
    return Sources(runs, attacks, evaluations, merged)


def _read_run(path: Path) -> Run:
    settings, summary = read_settings(path), read_summary(path, DefenseSummary)
    return Run(path, settings, summary, _read_rows(path / "metrics.jsonl"))


def _read_rows(path: Path) -> list[dict[str, Json]]:
    lines = read_text(path).split("\n")
    return [parse_object(x, f"`{path}` line {i}") for i, x in enumerate(lines, 1) if x.strip()]
