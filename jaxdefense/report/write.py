"""`jaxdefense report`: directories of defenses, attacks, evaluations -> one page, JSON and CSV."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxdefense.errors import InputError
from jaxdefense.files import write_json, write_text
from jaxdefense.paths import check_writable
from jaxdefense.report.export import as_csv, as_json
from jaxdefense.report.page import as_page, headline
from jaxdefense.report.read import read_findings
from jaxdefense.report.sweep import write_sweep_report
from jaxdefense.results import ReportSummary, SweepSummary, kind_of
from jaxdefense.sweep.cells import CELLS


def write_report(runs: Sequence[Path], out: Path) -> ReportSummary:
    """Write a report: a page, the same as JSON, and a CSV file with one line for each person.

    Args:
        runs: directories, see `read_findings`; or the directory of one sweep.
        out: `.html` file of the page; the other files are written beside it.

    Returns:
        the headline, and the path of each file.

    Raises:
        InputError: see `read_findings` and `write_sweep_report`; or one of the files exists, `out`
            does not end in `.html`, or a sweep is not given alone.
    """
    if out.suffix != ".html":
        raise InputError(f"`out` (={out}) must end in .html; JSON and CSV are written beside it.")
    check_writable(out)
    files = {kind: out.with_suffix(f".{kind}") for kind in ("csv", "json", "html")}
    if found := [str(file) for file in files.values() if file.exists()]:
        raise InputError(f"`{found[0]}` exists; give another name, or remove it.")
    if sweeps := [run for run in runs if kind_of(run) is SweepSummary]:
        if len(runs) > 1:
            raise InputError(
                f"`{sweeps[0]}` is a sweep: give it alone, or what one of its `{CELLS}` holds."
            )
        return _written(write_sweep_report(sweeps[0], out), files)
    findings = read_findings(runs)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(files["csv"], as_csv(findings))
    write_json(files["json"], as_json(findings))
    write_text(out, as_page(findings))
    return _written(headline(findings), files)


def _written(headline: str, files: Mapping[str, Path]) -> ReportSummary:
    return ReportSummary(headline=headline, **{kind: str(file) for kind, file in files.items()})


def write_run_report(run: Path) -> None:
    """Write the report on one finished defense, `report.html` in its directory.

    Raises:
        InputError: see `read_findings`.
    """
    write_text(run / "report.html", as_page(read_findings([run])))
