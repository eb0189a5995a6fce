"""`jaxdefense prove`: runs the parts of a proof one after the other, and writes its page.

A finished part is kept in `parts/NAME.json`, so that a proof that was broken off goes on with the
next one.
"""

import datetime
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

from jaxdefense.cache import ArrayCache
from jaxdefense.distributed import agree, on_first, several
from jaxdefense.files import write_json
from jaxdefense.log import Progress
from jaxdefense.proof import after, optimise, others
from jaxdefense.proof.config import ProveConfig
from jaxdefense.proof.inputs import Inputs, read
from jaxdefense.proof.known import known
from jaxdefense.proof.verdict import Subjects, verdict
from jaxdefense.proof.without_names import without_names
from jaxdefense.proof.world import World, load, shared
from jaxdefense.report.frame import flatten
from jaxdefense.report.proof_page import write_proof_page
from jaxdefense.results import (
    BEFORE,
    DEFENDED,
    REMOVED,
    RETRAINED,
    STRANGERS,
    ProofPart,
    ProofSummary,
    read_object,
    read_settings,
)
from jaxdefense.run_directory import RunDirectory
from jaxdefense.trackers import track
from jaxdefense.typed_json import fields_of, plain

logger = logging.getLogger(__name__)

_PARTS, PAGE = "parts", "report.html"
_ALWAYS = (
    "Other forms of names, prompts and photos: `jaxdefense attack --variants all` tries them.",
    "Other ways of training on, of rounding and of optimising than those listed here.",
    "What other models, indexes and stored embeddings know.",
)


def prove(cfg: ProveConfig, cache: ArrayCache | None = None) -> ProofSummary:
    """Put a defended model to the attacks that the settings name.

    Writes `config.json`, a file a part, `summary.json` and the page `report.html`.

    Args:
        cfg: settings.
        cache: of embeddings; None for the one in `cfg.cache_dir`.

    Returns:
        the summary.

    Raises:
        InputError: an input is wrong.
        RunError: fine-tuning diverges.
    """
    results = RunDirectory(Path(cfg.out), ProofSummary)
    inputs = read(cfg)
    world = load(cfg, inputs, cache)
    digests = world.digests
    resolved = {"models": digests, **shared(inputs)}
    if several():
        agree(resolved)
    results.check(cfg, resolved)
    results.open(cfg, resolved)
    jobs, missing = jobs_of(world)
    on_first(lambda: (results.path / _PARTS).mkdir(exist_ok=True))
    parts = dict[str, ProofPart]()
    with Progress("proving") as progress:
        for i, (name, job) in enumerate(jobs.items(), 1):
            # Parts take from seconds to minutes: how many are done does not say how long it takes.
            progress.update(0, f"part {i} of {len(jobs)}, {name}")
            parts[name] = _once(results.path / _PARTS / f"{name}.json", name, job, world)
    summary = ProofSummary(
        verdict=verdict(_subjects(cfg, inputs), parts),
        not_tested=[*missing, *_ALWAYS],
        groups={group: inputs.names(group) for group in inputs.groups},
        absent=inputs.absent,
        parts=parts,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        model_sha256=digests[DEFENDED],
        teacher_sha256=digests[BEFORE],
        reference_sha256=digests.get(RETRAINED, ""),
        dtype=world.models[DEFENDED].dtype,
    )
    on_first(lambda: _write_page(summary, results.path))
    results.finish(summary)
    track(cfg.log, results.path, cfg, "proof", summary)
    return summary


def _subjects(cfg: ProveConfig, inputs: Inputs) -> Subjects:
    return Subjects(
        num_listed=len(inputs.told.identities),
        removed=inputs.names(REMOVED),
        staying=[inputs.people[i].name for i in inputs.staying()],
        absent=inputs.absent,
        num_strangers=len(inputs.groups.get(STRANGERS, [])),
        threshold=cfg.threshold,
    )


def _write_page(summary: ProofSummary, path: Path) -> None:
    write_proof_page(summary, flatten(read_settings(path)), path / PAGE)


def jobs_of(world: World) -> tuple[dict[str, Callable[[World], ProofPart]], list[str]]:
    """List the parts that the settings ask for, and what cannot be tested, with the reason."""
    cfg, missing = world.cfg, list[str]()
    jobs = dict[str, Callable[[World], ProofPart]]()
    if "known" in cfg.parts:
        jobs["known"] = known
    if "gallery" in cfg.parts:
        jobs["gallery"] = without_names
    for part, of in (("after", after), ("optimise", optimise)):
        if part in cfg.parts:
            found, lacking = of.jobs(world)
            jobs |= found
            missing += lacking
    if "others" in cfg.parts:
        jobs["others"] = others.everybody_else
        missing += others.missing(world)
    missing += _missing(world)
    return jobs, missing


def _missing(world: World) -> Iterator[str]:
    asked = {
        "known": "Whether the attack names people's photos",
        "gallery": "Whether photos still match one another, without names",
        "after": "What training on, rounding or averaging brings back",
        "optimise": "Attackers who optimise",
        "others": "Everybody else, and what the model is used for",
    }
    for part, text in asked.items():
        if part not in world.cfg.parts:
            yield f"{text}: the part `{part}` was not asked for."
    if RETRAINED not in world.models:
        yield (
            "The same model trained without the people removed: no `reference` was given; where "
            "the training can be repeated, it says what is right."
        )
    if STRANGERS not in world.inputs.groups:
        yield "The level of people whom the model never saw: no `strangers` were given."


def _once(file: Path, name: str, job: Callable[[World], ProofPart], world: World) -> ProofPart:
    """Carry out a part, unless its file holds it."""

    def look() -> ProofPart | None:
        if not file.exists():
            return None
        return cast(ProofPart, fields_of(ProofPart, read_object(file), f"`{file}`"))

    if found := on_first(look):
        logger.info(f"part {name}: done before")
        return found
    begun = time.monotonic()
    part = job(world)
    part["seconds"] = round(time.monotonic() - begun, 1)
    on_first(lambda: write_json(file, plain(part)))
    return part
