"""The results of a sweep's cells, in one table."""

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

from jaxdefense.files import write_json, write_text
from jaxdefense.results import (
    SUMMARY,
    CellSummary,
    UndefendedSummary,
    read_summary,
    values,
)
from jaxdefense.sweep.cells import BEFORE, CELLS
from jaxdefense.typed_json import Json

RESULTS, TABLE = "sweep.json", "sweep.csv"
RATES = ("removed_tpr", "removed_fnr", "others_tpr", "top1", "top5", "sim_clean")
MEASURES = ("tpr_majority", "photos_right", "mean_templates")  # of those removed and of others
GROUPS = tuple(f"{who}_{what}" for who in ("removed", "others") for what in MEASURES)


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
    cells = [read_summary(cell, CellSummary) for cell in found]
    cells.sort(key=lambda cell: (cell.w_weight, cell.n, cell.seed))
    before = sweep / BEFORE
    undefended = None
    if (before / SUMMARY).exists():
        undefended = read_summary(before, UndefendedSummary)
    return Finished(undefended, cells)


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
    write([field.name for field in dataclasses.fields(CellSummary)])
    for cell in cells:
        write(["" if x is None else x for x in values(cell).values()])
    return file.getvalue()
