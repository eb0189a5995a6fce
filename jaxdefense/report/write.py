"""`jaxdefense report`: directories of defenses, attacks, evaluations -> one page, JSON and CSV."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxdefense.errors import InputError
from jaxdefense.files import write_json, write_text
from jaxdefense.paths import check_writable
from jaxdefense.report.export import as_csv, as_json
from jaxdefense.report.frame import flatten
from jaxdefense.report.page import as_page, headline
from jaxdefense.report.proof_page import people_as_csv, write_proof_page
from jaxdefense.report.read import read_findings
from jaxdefense.report.sweep import write_sweep_report
from jaxdefense.results import (
    ProofSummary,
    ReportSummary,
    SweepSummary,
    kind_of,
    read_settings,
    read_summary,
)
from jaxdefense.results import as_json as as_json_of
from jaxdefense.sweep.cells import CELLS


def write_report(runs: Sequence[Path], out: Path) -> ReportSummary:
    """Write a report: a page, the same as JSON, and a CSV file with one line for each person.

    Args:
        runs: directories, see `read_findings`; or the directory of one sweep or one proof.
        out: `.html` file of the page; the other files are written beside it.

    Returns:
        the headline, and the path of each file.

    Raises:
        InputError: see `read_findings` and `write_sweep_report`; or one of the files exists, `out`
            does not end in `.html`, or a sweep or a proof is not given alone.
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
    if proofs := [run for run in runs if kind_of(run) is ProofSummary]:
        if len(runs) > 1:
            raise InputError(f"`{proofs[0]}` is a proof: give it alone, it has its own page.")
        return _written(_write_proof(proofs[0], files), files)
    findings = read_findings(runs)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(files["csv"], as_csv(findings))
    write_json(files["json"], as_json(findings))
    write_text(out, as_page(findings))
    return _written(headline(findings), files)


def _write_proof(proof: Path, files: Mapping[str, Path]) -> str:
    """Write the page of a proof, the same as JSON, and a line for each person; its headline."""
    summary = read_summary(proof, ProofSummary)
    files["html"].parent.mkdir(parents=True, exist_ok=True)
    write_text(files["csv"], people_as_csv(summary))
    write_json(files["json"], as_json_of(summary))
    write_proof_page(summary, flatten(read_settings(proof)), files["html"])
    return summary.verdict[0]


def _written(headline: str, files: Mapping[str, Path]) -> ReportSummary:
    return ReportSummary(headline=headline, **{kind: str(file) for kind, file in files.items()})


def write_run_report(run: Path) -> None:
    """Write the report on one finished defense, `report.html` in its directory.

    Raises:
        InputError: see `read_findings`.
    """
    write_text(run / "report.html", as_page(read_findings([run])))
