"""The results of a sweep's cells, in one table."""

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

from jaxdefense.data.identities import read_identities
from jaxdefense.files import write_json, write_text
from jaxdefense.results import (
    SUMMARY,
    AttackSummary,
    CellSummary,
    UndefendedSummary,
    read_summary,
    values,
)
from jaxdefense.sweep.cells import ATTACK, BEFORE, CELLS, NAMES
from jaxdefense.typed_json import Json
from jaxdefense.words import folded_words

RESULTS, TABLE = "sweep.json", "sweep.csv"
RATES = ("removed_tpr", "removed_fnr", "others_tpr", "top1", "top5", "sim_clean", "image_sim_clean")
# Of those removed and of others.
MEASURES = ("tpr_majority", "photos_right", "mean_templates", "known_tpr")
GROUPS = (
    *(f"{who}_{what}" for who in ("removed", "others") for what in MEASURES),
    *(f"{who}_{what}" for who in ("namesakes", "crossed") for what in ("tpr", "photos_right")),
)


@dataclasses.dataclass(frozen=True)
class Finished:
    """The finished part of a sweep.

    Fields:
        before: results of the undefended model; None if they are not finished.
        cells: results of the finished cells, sorted.
    """

    before: UndefendedSummary | None
    cells: list[CellSummary]

    def as_json(self) -> dict[str, Json]:
        """Return the results as JSON values."""
        cells: list[Json] = [values(cell) for cell in self.cells]
        return {"before": values(self.before) if self.before else None, "cells": cells}


def collect(sweep: Path) -> Finished:
    """Read the finished part of a sweep.

    Raises:
        InputError: a summary cannot be read.
    """
    found = [file.parent for file in sorted((sweep / CELLS).glob(f"*/{SUMMARY}"))]
    before, undefended, attack = sweep / BEFORE, None, None
    if (before / SUMMARY).exists():
        undefended = read_summary(before, UndefendedSummary)
    if (before / ATTACK / SUMMARY).exists():
        attack = read_summary(before / ATTACK, AttackSummary)
    cells = [_with_known(read_summary(cell, CellSummary), cell, attack) for cell in found]
    cells.sort(key=lambda cell: (cell.w_weight, cell.n, cell.seed))
    return Finished(undefended, cells)


def _with_known(cell: CellSummary, directory: Path, before: AttackSummary | None) -> CellSummary:
    """Add who is still recognised of those whom the attack on the undefended model recognised.

    That attack may end after a cell, so the cell's own summary cannot hold it.
    """
    if before is None or not (directory / ATTACK / SUMMARY).exists():
        return cell
    after = read_summary(directory / ATTACK, AttackSummary)
    people = read_identities(str(directory / NAMES))
    listed = {folded_words(name) for person in people for name in person.names}
    found = dict[str, float | None]()
    for group, removed in (("removed", True), ("others", False)):
        known = [
            name
            for name, correct in before.per_identity.items()
            if correct >= before.threshold
            and (folded_words(name) in listed) == removed
            and name in after.per_identity
        ]
        still = sum(after.per_identity[name] >= after.threshold for name in known)
        found[f"{group}_num_known"] = len(known)
        found[f"{group}_known_tpr"] = still / len(known) if known else None
    return dataclasses.replace(cell, **found)  # pyright: ignore[reportArgumentType]


def write_results(sweep: Path) -> Finished:
    """Write `sweep.json` and `sweep.csv` into the directory of a sweep; see `collect`.

    If several processes write at once, the last to write has seen all that is finished.
    """
    found, written = collect(sweep), None
    while found != written:
        write_json(sweep / RESULTS, found.as_json())
        write_text(sweep / TABLE, table(found.cells))
        found, written = collect(sweep), found
    return found


def table(cells: Sequence[CellSummary]) -> str:
    """Write a line a cell, as CSV; a field is empty where nothing was measured."""
    file = io.StringIO()
    write = csv.writer(file, lineterminator="\n").writerow
    columns = [field.name for field in dataclasses.fields(CellSummary)]
    write(columns)
    for cell in cells:
        write(["" if (x := getattr(cell, name)) is None else x for name in columns])
    return file.getvalue()
