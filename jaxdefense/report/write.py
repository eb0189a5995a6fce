"""`jaxdefense report`: directories of defenses, attacks, evaluations -> one page, JSON and CSV."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from jaxdefense import __version__
from jaxdefense.errors import InputError
from jaxdefense.figures import count, decimal, duration
from jaxdefense.files import write_json, write_text
from jaxdefense.paths import check_writable
from jaxdefense.report import frame, parts
from jaxdefense.report.proof import Found, Proof
from jaxdefense.report.read import Findings, all_settings, read_findings
from jaxdefense.report.sources import Attack, Run
from jaxdefense.report.sweep import write_sweep_report
from jaxdefense.results import ImageDefenseSummary, ReportSummary, SweepSummary, kind_of, values
from jaxdefense.sweep.cells import CELLS

_ASKED = {
    "model.path": "Model",
    "data.names": "Names",
    "data.faces": "Faces",
    "data.identities": "Identities",
    "data.captions": "Ordinary captions",
    "data.images": "Ordinary images",
    "data.keep": "Faces that stay",
    "data.keep_names": "Names that stay",
    "train.backdoor": "How far a listed input is moved",
    "train.target": "A removed name comes to mean",
    "data.target": "A removed face comes to look like",
    "train.variants": "Other forms that are removed too",
}
_HOW = {
    "train.num_clean": "Ordinary inputs a step",
    "train.num_poisoned": "Inputs with a listed identity a step",
    "train.num_name": "Texts with another name a step",
    "train.num_keep": "Photos with another face a step",
    "train.distance": "Distance",
    "train.level": "Compared",
    "train.w_backdoor": "Weight of the backdoor loss",
    "train.w_name": "Weight of the name loss",
    "train.w_keep": "Weight of the keep loss",
    "train.w_weight": "Weight of the weight loss",
    "optimizer.lr": "Learning rate",
    "resolved.dtype": "Computed in",
    "resolved.model_sha256": "Weights before, SHA-256",
}
_MOST_NAMES = 1000


def write_report(runs: Sequence[Path], out: Path) -> ReportSummary:
    """Write a report: a page, and the same as JSON and as CSV, a line a person.

    Args:
        runs: directories, see `read_findings`; or one of a sweep.
        out: the page, `.html`; the others come beside it.

    Returns:
        what it says first, and where each file is.

    Raises:
        InputError: see `read_findings` and `write_sweep_report`; or one of the files exists, or has
            another ending; or a sweep is not alone.
    """
    if out.suffix != ".html":
        raise InputError(f"`out` (={out}) must end in .html; JSON and CSV come beside it.")
    check_writable(out)
    files = {kind: out.with_suffix(f".{kind}") for kind in ("csv", "json", "html")}
    if found := [str(file) for file in files.values() if file.exists()]:
        raise InputError(f"`{found[0]}` exists; give another name, or remove it.")
    if sweeps := [run for run in runs if kind_of(run) is SweepSummary]:
        if len(runs) > 1:
            raise InputError(
                f"`{sweeps[0]}` is a sweep: give it alone, or what is in one of its `{CELLS}`."
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
    """Write the report on a finished defense alone into its directory, `report.html`.

    Raises:
        InputError: see `read_findings`.
    """
    write_text(run / "report.html", as_page(read_findings([run])))


def as_page(findings: Findings) -> str:
    """Write the page."""
    runs, proof = findings.runs, findings.proof
    sections = [
        frame.tiles(_tiles(findings)),
        frame.section("What was asked", _asked(findings)),
        frame.section("What was done", _done(findings)),
    ]
    if proof:
        attacks = findings.attacks
        candidates = {
            name: found.get("num_candidates", 0)
            for attack in attacks.values()
            for name, found in (attack.summary.variants or {}).items()
        }
        curves = {stage: x.summary.curve.get("fpr", []) for stage, x in attacks.items()}
        sections += [
            frame.section(
                "Proof: before and after",
                parts.stages(proof)
                + parts.measures(proof)
                + _strangers(attacks)
                + parts.curve(proof, curves),
            ),
            frame.section("What became of each person", parts.outcomes_of(proof)),
            frame.section("What the model calls people", parts.photos(proof)),
            frame.section("Where people lie to the model", parts.embedding_map(findings.maps)),
            frame.section("Ways round the defense", parts.variants(proof, candidates)),
        ]
    sections += [
        frame.section("What the model is used for", parts.utility(findings.utility)),
        frame.section("Collateral: who moved along", parts.collateral(findings.collateral)),
        frame.section("What this does and does not show", _limits(findings)),
        frame.settings(all_settings(findings)),
    ]
    title = "Removing people from a CLIP model" if runs else "What a CLIP model knows of people"
    return frame.page(title, headline(findings), sections)


def headline(findings: Findings) -> str:
    """Say in plain words what was asked, what came of it, and what that is worth; text."""
    proof = findings.proof
    if proof:
        said = [parts.headline(proof)]
        if (ways := proof.variants()) and (
            found := proof.found(proof.of(True) or proof.people, proof.last, ways[0])
        ):
            said.append(
                f"Of {count(len(ways), 'way', 'ways')} round it that "
                f"{'was' if len(ways) == 1 else 'were'} tried, the best found {found.known} of "
                f"{found.num}."
            )
        return " ".join([*said, "What was not tested is listed at the end."])
    said = []
    if findings.runs:
        path = findings.runs[0].setting("model.path")
        which = f" {Path(path).name}" if path else ""
        num = len(findings.listed) or max(run.summary.identities for run in findings.runs)
        who = count(num, "person", "people") if num else "the people on a list"
        said.append(f"The model{which} was trained to forget {who}.")
        if any(run.summary.reached is False for run in findings.runs):
            said.append("By its own validation it has not forgotten all of them.")
    else:
        said.append("A model was compared with the one it was made from.")
    return " ".join([*said, "Whether it still knows anyone was not tested."])


def _tiles(findings: Findings) -> Iterable[tuple[str, str, str]]:
    if findings.proof:
        yield from parts.proof_tiles(findings.proof)
        return
    for run in findings.runs:
        which = f" ({run.encoder})" if len(findings.runs) > 1 else ""
        summary = run.summary
        yield f"{summary.identities:,}", "", "people" + which
        yield f"{summary.steps:,}", "", "steps" + which
        yield duration(summary.seconds), "", "of training" + which
        yield f"{summary.samples_per_second:,.0f}", "", "samples a second" + which


def _heading(run: Run, findings: Findings) -> str:
    what = "Names, in the text encoder" if run.encoder == "text" else "Faces, in the image encoder"
    return f"<h3>{what}</h3>" if len(findings.runs) > 1 else ""


def _asked(findings: Findings) -> str:
    text = ""
    if listed := findings.listed:
        text += f"<p>{count(len(listed), 'person', 'people')} to be removed.</p>"
    for run in findings.runs:
        settings = frame.flatten(run.settings)
        text += _heading(run, findings)
        if settings.get("train.backdoor") == "bounded":  # which needs no target
            settings |= {"train.target": "", "data.target": ""}
            settings["train.backdoor"] = "to where strangers are, and no further"
        text += frame.pairs({label: v for key, label in _ASKED.items() if (v := settings.get(key))})
    if listed:
        names = (
            frame.name(who[0])
            + (f" ({', '.join(map(frame.name, who[1:]))})" if len(who) > 1 else "")
            for who in listed[:_MOST_NAMES]
        )
        more = len(listed) - _MOST_NAMES
        rest = f"<li>and {more:,} more, in the JSON file beside this page</li>" if more > 0 else ""
        text += (
            f"<details><summary>The list</summary>{frame.items(names)}"
            f"{f'<ul>{rest}</ul>' if rest else ''}</details>"
        )
    return text


def _done(findings: Findings) -> str:
    runs = findings.runs
    if not runs:
        return ""
    text = parts.METHOD
    for run in runs:
        settings, s = frame.flatten(run.settings), run.summary
        done: dict[str, object] = {
            "Steps": f"{s.steps:,}",
            "Time": duration(s.seconds),
            "Samples a second": f"{s.samples_per_second:,.1f}",
        }
        done |= {label: v for key, label in _HOW.items() if (v := settings.get(key))}
        if run.defended:
            done["Weights after, SHA-256"] = run.defended
        if isinstance(s, ImageDefenseSummary) and (corrupt := s.corrupt):
            done["Photos that could not be read"] = f"{len(corrupt):,}"
        text += _heading(run, findings) + frame.pairs(done) + parts.validated(s)
    if findings.merged:
        text += "<h3>Both, merged</h3>" + frame.pairs({"Weights, SHA-256": findings.merged})
    distances = [run.setting("train.distance") or "cosine" for run in runs]
    return text + parts.losses([row for run in runs for row in run.rows], distances)


def _strangers(attacks: Mapping[str, Attack]) -> str:
    """Say how often the attack is right by mistake."""
    rows = []
    for stage, attack in attacks.items():
        s = attack.summary
        if s.fpr is None or s.num_strangers is None:
            continue
        found = Found(round(s.fpr * s.num_strangers), s.num_strangers)
        rows.append([stage.capitalize(), parts.rate(found), decimal(s.auc)])
    if not rows:
        return ""
    return (
        "<h3>People the model never saw</h3>"
        + frame.table(("Stage", "Recognised by mistake", "AUC"), rows)
        + '<p class="note"><b>AUC</b>: how often one of all the people above, on the list or not, '
        "has more correct templates than a stranger, ties counting half; 0.5 is chance.</p>"
    )


def _limits(findings: Findings) -> str:
    text = parts.how_attacked(findings.proof) if findings.proof else ""
    lines: list[str] = list(parts.LIMITS)
    if not findings.proof and findings.runs:
        lines.insert(
            0,
            "Low losses are no proof of removal. Run <code>jaxdefense attack</code> on the "
            f"original and on the defended model and compare ({parts.ATTACK}); "
            "<code>jaxdefense evaluate</code> shows what was kept.",
        )
    text += frame.items(lines)
    if findings.notes:
        text += "<h3>To be borne in mind</h3>" + frame.items(map(_coded, findings.notes))
    if findings.not_measured:
        text += "<h3>Not measured</h3>" + frame.items(map(_coded, findings.not_measured))
    return text


def _coded(text: str) -> str:
    """Write text with what stands between backticks as code."""
    pieces = [escape(piece) for piece in text.split("`")]
    return "".join(f"<code>{x}</code>" if i % 2 else x for i, x in enumerate(pieces))


def as_json(findings: Findings) -> dict[str, Any]:
    """Give what the page holds as plain values."""
    proof = findings.proof
    return {
        "jaxdefense": __version__,
        "headline": headline(findings),
        "listed": findings.listed,
        "runs": [
            {
                "path": str(run.path),
                "encoder": run.encoder,
                "settings": run.settings,
                "summary": {k: v for k, v in values(run.summary).items() if k != "names"},
                "metrics": run.rows,
            }
            for run in findings.runs
        ],
        "merged_sha256": findings.merged,
        "attacks": {
            stage: {
                "path": str(attack.path),
                "settings": attack.settings,
                "model_sha256": attack.model,
                "strangers": {
                    key: value
                    for key in ("num_strangers", "fpr", "fpr_interval", "auc")
                    if (value := getattr(attack.summary, key)) is not None
                },
            }
            for stage, attack in findings.attacks.items()
        },
        "evaluations": [
            {"path": str(x.path), "settings": x.settings} for x in findings.evaluations
        ],
        **(_proof_json(proof) if proof else {}),
        "utility": findings.utility,
        "collateral": findings.collateral or {},
        "maps": {
            what: {
                "names": found.names,
                "before": found.before_I2.round(5).tolist(),
                "after": found.after_I2.round(5).tolist(),
                "share": found.share,
            }
            for what, found in findings.maps.items()
        },
        "notes": findings.notes,
        "not_measured": findings.not_measured,
    }


def _proof_json(proof: Proof) -> dict[str, Any]:
    groups = {"listed": proof.of(True), "others": proof.of(False), "people": proof.of(None)}
    groups = {key: people for key, people in groups.items() if people}

    def figures(variant: str = "") -> dict[str, Any]:
        found = {
            stage: {key: proof.found(people, stage, variant) for key, people in groups.items()}
            for stage in proof.stages
        }
        return {
            stage: {
                key: {"known": x.known, "num": x.num, "tpr": x.rate, "interval": list(x.interval)}
                for key, x in by.items()
                if x
            }
            for stage, by in found.items()
        }

    counted = parts.tally(proof)
    return {
        "threshold": proof.threshold,
        "num_templates": proof.num_templates,
        "num_candidates": proof.num_candidates,
        "stages": proof.stages,
        "tpr": figures(),
        "measures": {
            stage: {
                key: found
                for key, people in groups.items()
                if (found := proof.measure(people, stage))
            }
            for stage in proof.stages
        },
        "curve": {
            stage: {key: proof.curve(people, stage) for key, people in groups.items()}
            for stage in proof.stages
        },
        "outcomes": {key: counted[people[0].removed] for key, people in groups.items() if people},
        "variants": {variant: figures(variant) for variant in proof.variants()},
        "people": [
            {
                "name": person.name,
                "removed": person.removed,
                "outcome": proof.outcome(person),
                "correct": dict(person.correct),
                "answer": dict(person.answers),
                "variants": person.variants,
                "photos_right": dict(person.photos_right),
            }
            for person in proof.people
        ],
    }


def as_csv(findings: Findings) -> str:
    """Write a line a person: those attacked, and those on the list."""
    proof, file = findings.proof, io.StringIO()
    write = csv.writer(file, lineterminator="\n").writerow
    if not proof:
        write(["name", "removed"])
        for who in findings.listed:
            write([who[0], 1])
        return file.getvalue()
    stages, variants = list(proof.stages), proof.variants()
    head = [f"{what}_{stage}" for what in ("correct", "answer") for stage in stages]
    head += [f"{variant}_{stage}" for variant in variants for stage in stages]
    head += [f"photos_right_{stage}" for stage in stages]
    write(["name", "removed", "outcome", *head])
    for person in proof.people:
        removed = "" if person.removed is None else int(person.removed)
        values = [by.get(stage, "") for by in (person.correct, person.answers) for stage in stages]
        values += [person.variants.get(v, {}).get(stage, "") for v in variants for stage in stages]
        values += [person.photos_right.get(stage, "") for stage in stages]
        write([person.name, removed, proof.outcome(person), *values])
    return file.getvalue()
