"""The demo's page."""

import dataclasses
import math
from pathlib import Path

from jaxdefense.errors import InputError
from jaxdefense.figures import duration
from jaxdefense.files import write_text
from jaxdefense.report import frame, parts
from jaxdefense.report.proof import Proof


@dataclasses.dataclass(frozen=True)
class DemoReport(Proof):
    """What the demo measured.

    Fields:
        nonmember_fpr: part of the people unknown to the model whom the attack recognised.
        seconds: the demo took.
        losses: rows of `metrics.jsonl`; a step below the one before starts another run.
        settings: by name.
    """

    nonmember_fpr: float
    seconds: float
    losses: list[dict[str, float]]
    settings: dict[str, object]


def write_demo_report(report: DemoReport, path: Path) -> None:
    """Write what the demo measured, in one step.

    Args:
        report: see there.
        path: of the HTML file.

    Raises:
        InputError: there is no stage.
    """
    if not report.stages:
        raise InputError("`stages` is empty; give at least the measurements of one stage.")
    tiles = list(parts.proof_tiles(report))
    if math.isfinite(report.nonmember_fpr):
        label = "of people the model never saw, recognised by mistake"
        tiles.append((f"{report.nonmember_fpr:.1%}", "", label))
    how = f"{parts.how_attacked(report)}<p>The demo took {duration(report.seconds)}.</p>"
    drawn = (
        "The people in this demo are drawn and the model is small. It shows that the method works "
        "and how it is checked, not how well it will do on another model."
    )
    sections = [
        frame.tiles(tiles),
        frame.section("Before and after", parts.stages(report) + parts.measures(report)),
        frame.section("What the model calls people", parts.photos(report)),
        frame.section("What became of each person", parts.outcomes_of(report)),
        frame.section("Training", parts.losses(report.losses, ["cosine"])),
        frame.section(
            "Method and limits",
            parts.METHOD + how + frame.items([*parts.LIMITS[:-1], drawn, parts.LIMITS[-1]]),
        ),
        frame.settings(report.settings),
    ]
    title = "Removing people from a CLIP model"
    write_text(path, frame.page(title, parts.headline(report), sections))
