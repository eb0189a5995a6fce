"""The results of a sweep's cells, in one table."""

import csv
import io
from pathlib import Path
from typing import Any

from jaxdefense.files import read_json, write_json, write_text
from jaxdefense.sweep.cells import BEFORE, CELLS

RESULTS, TABLE, SUMMARY = "sweep.json", "sweep.csv", "summary.json"
RATES = ("removed_tpr", "removed_fnr", "others_tpr", "top1", "top5", "sim_clean")
MEASURES = ("tpr_majority", "photos_right", "mean_templates")  # of those removed and of others
GROUPS = tuple(f"{who}_{what}" for who in ("removed", "others") for what in MEASURES)
COLUMNS = ("tower", "n", "seed", "w_weight", *RATES, "seconds", "num_others", *GROUPS, "reached")


def collect(sweep: Path) -> dict[str, Any]:
    """Read what is finished of a sweep.

    Args:
        sweep: its directory.

    Returns:
        before: of the model as it is, `tpr`, `fnr`, `num_identities`, MEASURES of everybody, and
            those measured of `top1 top5`; None if it was not attacked yet.
        cells: a dict of COLUMNS each, sorted; None where there is nothing to measure, such as the
            rate of others where everyone was removed.

    Raises:
        InputError: a summary cannot be read.
    """
    found = sorted((sweep / CELLS).glob(f"*/{SUMMARY}"))
    cells = [{column: read_json(file).get(column) for column in COLUMNS} for file in found]
    cells.sort(key=lambda cell: (cell["w_weight"], cell["n"], cell["seed"]))
    before = sweep / BEFORE / SUMMARY
    return {"before": read_json(before) if before.exists() else None, "cells": cells}


def write_results(sweep: Path) -> dict[str, Any]:
    """Write `sweep.json` and `sweep.csv` into the directory of a sweep; see `collect`.

    Of several processes at it, the last to write has seen all that is finished.
    """
    found, written = collect(sweep), None
    while found != written:
        write_json(sweep / RESULTS, found)
        write_text(sweep / TABLE, table(found["cells"]))
        found, written = collect(sweep), found
    return found


def table(cells: list[dict[str, Any]]) -> str:
    """Write a line a cell, as CSV; nothing where nothing was measured."""
    file = io.StringIO()
    write = csv.writer(file, lineterminator="\n").writerow
    write(COLUMNS)
    for cell in cells:
        write(["" if cell[column] is None else cell[column] for column in COLUMNS])
    return file.getvalue()
