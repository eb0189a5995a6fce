"""Combines directories of defenses, attacks and evaluations for one report."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from jaxdefense.errors import InputError
from jaxdefense.report.embedding_map import EmbeddingMap
from jaxdefense.report.frame import flatten
from jaxdefense.report.match import find_models, tell_stages
from jaxdefense.report.missing import not_measured
from jaxdefense.report.people import join_lists, make_maps, put_together
from jaxdefense.report.proof import Proof
from jaxdefense.report.sources import Attack, Evaluation, Run, read_sources
from jaxdefense.results import Collateral, said_of, said_of_absent


@dataclasses.dataclass(frozen=True)
class Findings:
    """Everything that is known for a report.

    Fields:
        runs: defenses, at most one of each encoder.
        merged: digest of the model that two of them were merged into, "" if not known.
        attacks: stage -> results of the attack.
        evaluations: results of each evaluation.
        proof: people attacked, and those on the list who were not; None without an attack.
        listed: all names of each person on the list; empty if no list is known.
        utility: what the evaluations measured, except collateral.
        collateral: how far the names of other people moved, if that was measured.
        maps: maps of photos and of names.
        notes: what could not be known, and what the reader should keep in mind.
        not_measured: what was not measured.
    """

    runs: list[Run]
    merged: str
    attacks: dict[str, Attack]
    evaluations: list[Evaluation]
    proof: Proof | None
    listed: list[list[str]]
    utility: dict[str, float]
    collateral: Collateral | None
    maps: dict[str, EmbeddingMap]
    notes: list[str]
    not_measured: list[str]


def read_findings(paths: Sequence[Path]) -> Findings:
    """Read directories of runs and results.

    Args:
        paths: runs of `defend text`, `image` or `both`, results of `attack` and of `evaluate`, in
            any order.

    Raises:
        InputError: a directory is none of these or not finished, or they do not belong together.
    """
    sources = read_sources(paths)
    runs, notes = sources.runs, list[str]()
    source, defended = find_models(sources)
    attacks = tell_stages(runs, sources.attacks, source, defended, notes)
    notes += dict.fromkeys(x for run in runs for x in said_of(run.summary.earlier))
    notes += [x for run in runs for x in said_of_absent(run.summary.without_photos)]
    listed = join_lists(runs, notes)
    utility, collateral = _evaluated(sources.evaluations)
    proof = put_together(attacks, listed, utility) if attacks else None
    missing = list(not_measured(runs, attacks, proof, utility, collateral))
    maps = make_maps(attacks, proof, missing) if proof else {}
    if proof and not any(person.photo for person in proof.people):
        missing.append("Photos of people: the attack kept none.")
    return Findings(
        runs,
        sources.merged,
        attacks,
        sources.evaluations,
        proof,
        listed,
        utility,
        collateral,
        maps,
        notes,
        missing,
    )


def _evaluated(
    evaluations: Sequence[Evaluation],
) -> tuple[dict[str, float], Collateral | None]:
    """Join the measurements; raise InputError if two evaluations measured the same."""
    utility, collateral, where = dict[str, float](), None, dict[str, Path]()
    for evaluation in evaluations:
        found = evaluation.summary.utility()
        moved = evaluation.summary.collateral
        for key in [*found, *["collateral"] * (moved is not None)]:
            if key in where:
                raise InputError(
                    f"`{where[key]}` and `{evaluation.path}` both have `{key}`; give one of them."
                )
            where[key] = evaluation.path
        utility |= found
        collateral = moved or collateral
    return utility, collateral


def all_settings(findings: Findings) -> dict[str, object]:
    """Flatten the settings of all directories; of several, each key begins with its directory."""
    given = [*findings.runs, *findings.attacks.values(), *findings.evaluations]
    if len(given) == 1:
        return flatten(given[0].settings)
    return {
        f"{part.path}: {key}": value
        for part in given
        for key, value in flatten(part.settings).items()
    }
