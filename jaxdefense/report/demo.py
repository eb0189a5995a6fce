"""The demo's page."""

import dataclasses
import math
from pathlib import Path

from jaxdefense.errors import InputError
from jaxdefense.files import write_text
from jaxdefense.report import before_after, frame
from jaxdefense.report.cards import photos
from jaxdefense.report.headline import headline, proof_tiles
from jaxdefense.report.outcomes import outcomes_of
from jaxdefense.report.proof import Proof
from jaxdefense.report.training import losses


@dataclasses.dataclass(frozen=True)
class DemoReport(Proof):
    """What the demo measured.

    Fields:
        nonmember_fpr: part of the people unknown to the model whom the attack recognised.
        seconds: duration of the demo.
        losses: rows of `metrics.jsonl`; a step no later than the one before starts another run.
        settings: values by name.
    """

    nonmember_fpr: float
    seconds: float
    losses: list[dict[str, float]]
    settings: dict[str, object]


def write_demo_report(report: DemoReport, path: Path) -> None:
    """Write the report of the demo; a reader finds all of the file or none.

    Args:
        report: what the demo measured.
        path: HTML file to write.

    Raises:
        InputError: there is no stage.
    """
    if not report.stages:
        raise InputError("`stages` is empty; give at least the measurements of one stage.")
    tiles = list(proof_tiles(report))
    if math.isfinite(report.nonmember_fpr):
        label = "of people the model never saw, recognised by mistake"
        tiles.append((f"{report.nonmember_fpr:.1%}", "", label))
    limits = frame.render(
        "limits", proof=report, unattacked=False, seconds=report.seconds, notes=[], missing=[]
    )
    sections = [
        frame.tiles(tiles),
        frame.section(
            "Before and after", before_after.stages(report), before_after.measures(report)
        ),
        frame.section("What the model calls people", photos(report)),
        frame.section("What became of each person", outcomes_of(report)),
        frame.section("Training", losses(report.losses, ["cosine"])),
        frame.section("Method and limits", frame.render("method"), limits),
        frame.settings(report.settings),
    ]
    title = "Removing people from a CLIP model"
    write_text(path, frame.page(title, headline(report), sections))
