"""The content of a page, as plain JSON values and as CSV."""

import csv
import io
from collections.abc import Callable
from functools import partial
from typing import Any

from jaxdefense import __version__
from jaxdefense.report.outcomes import tally
from jaxdefense.report.page import headline
from jaxdefense.report.people import removed_by
from jaxdefense.report.proof import Found, PersonResult, Proof
from jaxdefense.report.read import Findings
from jaxdefense.results import values


def as_json(findings: Findings) -> dict[str, Any]:
    """Return the content of the page as plain JSON values."""
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

    def figures(count: Callable[[list[PersonResult], str], Found | None]) -> dict[str, Any]:
        found = {
            stage: {key: count(people, stage) for key, people in groups.items()}
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

    counted = tally(proof)
    return {
        "threshold": proof.threshold,
        "num_templates": proof.num_templates,
        "num_candidates": proof.num_candidates,
        "stages": proof.stages,
        "tpr": figures(proof.found),
        "known_before": figures(proof.still),
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
        "variants": {
            variant: figures(partial(proof.found, variant=variant)) for variant in proof.variants()
        },
        "people": [
            {
                "name": person.name,
                "removed": _told(person),
                "outcome": proof.outcome(person),
                "correct": dict(person.correct),
                "answer": dict(person.answers),
                "variants": person.variants,
                "photos_right": dict(person.photos_right),
            }
            for person in proof.people
        ],
    }


def _told(person: PersonResult) -> bool | None:
    """Tell whether a person was removed; None if it is not known, or nothing of them was tested."""
    return person.removed if person.correct else None


def as_csv(findings: Findings) -> str:
    """Write one line of CSV for each person who was attacked or is on the list."""
    proof, file = findings.proof, io.StringIO()
    write = csv.writer(file, lineterminator="\n").writerow
    if not proof:
        write(["name", "removed"])
        removed = removed_by(findings.runs, findings.listed)
        for who in findings.listed:
            write([who[0], 1 if who in removed else ""])
        return file.getvalue()
    stages, variants = list(proof.stages), proof.variants()
    head = [f"{what}_{stage}" for what in ("correct", "answer") for stage in stages]
    head += [f"{variant}_{stage}" for variant in variants for stage in stages]
    head += [f"photos_right_{stage}" for stage in stages]
    write(["name", "removed", "outcome", *head])
    for person in proof.people:
        removed = "" if (told := _told(person)) is None else int(told)
        values = [by.get(stage, "") for by in (person.correct, person.answers) for stage in stages]
        values += [person.variants.get(v, {}).get(stage, "") for v in variants for stage in stages]
        values += [person.photos_right.get(stage, "") for stage in stages]
        write([person.name, removed, proof.outcome(person), *values])
    return file.getvalue()
