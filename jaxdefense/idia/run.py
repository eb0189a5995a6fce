"""`jaxdefense attack`: attacks a model directory and writes the results into a directory."""

import csv
import dataclasses
import io
import logging
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np

from jaxdefense.cache import ArrayCache
from jaxdefense.config import PHOTO_FORMS, AttackConfig
from jaxdefense.data.people import describe_people
from jaxdefense.distributed import agree, on_first, several
from jaxdefense.evals.embed import Embedder
from jaxdefense.evals.outcome import BAD, Seen, outcome, tally
from jaxdefense.files import write_text
from jaxdefense.idia.attack import AttackResult, Evidence, attack_with, gather
from jaxdefense.idia.inputs import Inputs, read_inputs
from jaxdefense.idia.kept import embeddings_of, keep
from jaxdefense.idia.statistics import majority, measure, statistics, wilson
from jaxdefense.idia.variants import attack_names
from jaxdefense.results import AttackSummary, Group, Measures, VariantSummary
from jaxdefense.run_directory import RunDirectory
from jaxdefense.sharding import make_mesh
from jaxdefense.trackers import track
from jaxdefense.words import some

logger = logging.getLogger(__name__)

RESULTS = "results.csv"


@dataclasses.dataclass(frozen=True)
class Measured:
    """What an attack found.

    Fields:
        evidence: the photos as they are, embedded.
        seen: the result on members.
        unseen: the result on strangers.
        variants: the results on both, by variant; None where nobody has such a form.
        outcomes: what became of each member, by name; empty without an attack before the defense.
    """

    evidence: Evidence
    seen: AttackResult
    unseen: AttackResult
    variants: Mapping[str, AttackResult | None]
    outcomes: Mapping[str, str]


def run_attack(cfg: AttackConfig, cache: ArrayCache | None = None) -> AttackSummary:
    """Attack a model; write `config.json`, `results.csv`, `summary.json` and a report's inputs.

    Args:
        cfg: see `AttackConfig`.
        cache: cache of embeddings; None for the one in `cfg.cache_dir`.

    Returns:
        the summary.

    Raises:
        InputError: an input is wrong.
    """
    results = RunDirectory(Path(cfg.out), AttackSummary)
    results.check(cfg)
    inputs = read_inputs(cfg)
    cache = cache or ArrayCache(cfg.cache_dir)
    mesh = make_mesh(**vars(cfg.mesh), devices=jax.devices())
    model = Embedder(cfg.model.measured(), cfg.batch, mesh, cache)
    if several():
        _agree(inputs, model)
    found = _measure(cfg, inputs, model)
    summary = _summary(inputs, found, model.directory.digest())
    for line in _notes(cfg, inputs, found, summary):
        logger.info(line)
    _write(cfg, results, inputs, found, model)
    results.finish(summary)
    track(cfg.log, results.path, cfg, "attack", summary)
    return summary


def _agree(inputs: Inputs, model: Embedder) -> None:
    """Check that all processes attack the same model in the same way."""
    agree(
        {
            "model_sha256": model.directory.digest(),
            "conditions": inputs.conditions,
            "people_sha256": describe_people(inputs.people),
            "aliases": inputs.aliases,
            "before": inputs.before,
            "names": sorted(inputs.listed),
            "untested": inputs.untested,
            "spent": inputs.spent,
        }
    )


def _measure(cfg: AttackConfig, inputs: Inputs, model: Embedder) -> Measured:
    """Attack with the inputs as they are, and in each variant."""
    forms = ("", *(name for name in cfg.tried() if name in PHOTO_FORMS))
    evidence = gather(model, inputs.people, max_corrupt=cfg.max_corrupt, forms=forms)
    num = len(inputs.people)
    plain = evidence.of(range(num))
    every = attack_with(  # compares photos in all forms with texts embedded once
        model,
        evidence,
        inputs.candidates,
        threshold=cfg.threshold,
        templates=inputs.templates,
        block=cfg.candidate_block,
        own_I=np.tile(np.arange(num), len(forms)),
    )
    variants: dict[str, AttackResult | None] = {}
    for name in cfg.tried():
        if name in forms:
            at = forms.index(name) * num
            variants[name] = every[at : at + num]
        else:
            how = inputs.candidates, name, inputs.aliases, inputs.templates, cfg
            variants[name] = attack_names(model, plain, *how)
    seen, unseen = every[: inputs.num_members], every[inputs.num_members : num]
    return Measured(plain, seen, unseen, variants, _outcomes(inputs, seen))


def _outcomes(inputs: Inputs, seen: AttackResult) -> dict[str, str]:
    """Name what became of each member; empty without an attack before the defense."""
    if not inputs.before:
        return {}
    return {
        name: outcome(name in inputs.listed, inputs.before[name], after, seen.threshold)
        for name, after in seen.by_name().items()
    }


def _summary(inputs: Inputs, found: Measured, model_sha256: str) -> AttackSummary:
    """Sum up what an attack found."""
    seen, unseen = found.seen, found.unseen
    photos = seen.num_photos + unseen.num_photos
    unanswered = seen.unanswered + unseen.unanswered
    rates = statistics(seen.correct, unseen.correct, seen.threshold, seen.num_templates)
    summary = AttackSummary(
        **measure(seen.correct, seen.photos_right, seen.threshold, seen.num_templates),
        fnr=rates["fnr"],
        fnr_interval=rates["fnr_interval"],
        curve=rates["curve"],
        fpr=rates.get("fpr"),
        fpr_interval=rates.get("fpr_interval"),
        auc=rates.get("auc"),
        num_identities=len(seen.names),
        threshold=seen.threshold,
        num_candidates=seen.num_candidates,
        num_templates=seen.num_templates,
        photos_per_identity={"min": min(photos), "max": max(photos)},
        no_answer=sum(n == seen.num_templates for n in unanswered),
        majority=majority(seen.num_templates),
        per_identity=dict(zip(seen.names, seen.correct, strict=True)),
        per_identity_photos_right=dict(zip(seen.names, seen.photos_right, strict=True)),
        answers=dict(zip(seen.names, seen.answers, strict=True)),
        conditions=inputs.conditions,
        model_sha256=model_sha256,
    )
    if unseen.names:
        summary = dataclasses.replace(
            summary,
            num_strangers=len(unseen.names),
            strangers=dict(zip(unseen.names, unseen.correct, strict=True)),
            strangers_photos_right=float(np.mean(unseen.photos_right)),
        )
    if found.variants:
        variants = {name: _variant(x, seen, unseen) for name, x in found.variants.items()}
        summary = dataclasses.replace(summary, variants=variants)
    if found.outcomes:
        summary = dataclasses.replace(
            summary,
            outcomes=tally(found.outcomes.values()),
            removed=[name for name in seen.names if name in inputs.listed],
            untested=inputs.untested,
            spent=inputs.spent,
            groups=_groups(seen, inputs.before, inputs.listed),
        )
    return summary


def _variant(
    found: AttackResult | None, seen: AttackResult, unseen: AttackResult
) -> VariantSummary:
    """Sum up a variant: rates, and the people it skipped."""
    correct = dict(zip(found.names, found.correct, strict=True)) if found else {}
    skipped = [name for name in seen.names + unseen.names if name not in correct]
    of_seen, of_unseen = (
        {name: correct[name] for name in part.names if name in correct} for part in (seen, unseen)
    )
    if not (found and of_seen):
        return {"num_identities": len(of_seen), "skipped": skipped}
    counts, num = [*of_seen.values()], found.num_templates
    right = dict(zip(found.names, found.photos_right, strict=True))
    rates = statistics(counts, [*of_unseen.values()], found.threshold, num)
    summary: VariantSummary = {
        "num_identities": len(of_seen),
        "skipped": skipped,
        "fnr": rates["fnr"],
        "fnr_interval": rates["fnr_interval"],
        **measure(counts, [right[name] for name in of_seen], found.threshold, num),
        "num_candidates": found.num_candidates,
        "num_templates": num,
        "per_identity": of_seen,
    }
    if "fpr" in rates and "fpr_interval" in rates and "auc" in rates:
        summary["fpr"], summary["auc"] = rates["fpr"], rates["auc"]
        summary["fpr_interval"] = rates["fpr_interval"]
    return summary


def _groups(
    seen: AttackResult, before: Mapping[str, Seen], listed: Collection[str]
) -> dict[str, Group]:
    """Measure the listed people and the others, before and after; skip an empty group."""

    def measured(who: Mapping[str, Seen]) -> Measures:
        correct = [who[name].correct for name in names]
        right = [who[name].photos_right or 0.0 for name in names]
        return measure(correct, right, seen.threshold, seen.num_templates)

    after, found = seen.by_name(), dict[str, Group]()
    for group, removed in (("removed", True), ("others", False)):
        if names := [name for name in seen.names if (name in listed) == removed]:
            found[group] = {
                "num": len(names),
                "before": measured(before),
                "after": measured(after),
            }
            known = [name for name in names if before[name].correct >= seen.threshold]
            if known:
                still = sum(after[name].correct >= seen.threshold for name in known)
                found[group]["known_before"] = {
                    "num": len(known),
                    "recognised": still,
                    "tpr": still / len(known),
                    "tpr_interval": wilson(still, len(known)),
                }
    return found


def _notes(
    cfg: AttackConfig, inputs: Inputs, found: Measured, summary: AttackSummary
) -> Iterator[str]:
    """Say where the attack differs from the settings."""
    if added := inputs.candidates.added:
        yield (
            f"candidates file `{cfg.candidates}` lacks {some(added)}: added, as nobody can be "
            "recognised without their own name"
        )
    few = [
        f"{name}: {num}"
        for part in (found.seen, found.unseen)
        for name, num in zip(part.names, part.num_photos, strict=True)
        if num < cfg.num_photos
    ]
    if few:
        yield (
            f"fewer photos than `num_photos` (={cfg.num_photos}) of {some(few)}; attacked with "
            "those there are"
        )
    for name, variant in (summary.variants or {}).items():
        if variant["skipped"]:
            yield f"variant `{name}`: {some(variant['skipped'])} left out, having no such form"


def _write(
    cfg: AttackConfig,
    results: RunDirectory[AttackSummary],
    inputs: Inputs,
    found: Measured,
    model: Embedder,
) -> None:
    """Write all results of an attack except its summary."""
    embeddings = embeddings_of(model, found.evidence)
    results.open(cfg)
    rows = table(found.seen, found.unseen, found.outcomes, inputs.listed, found.variants)
    on_first(lambda: write_text(results.path / RESULTS, rows))
    names, outcomes = [person.name for person in inputs.people], found.outcomes
    # Photos of people with a bad outcome first, then of those removed.
    order = sorted(range(len(names)), key=lambda i: _interest(names[i], outcomes, inputs.listed))
    on_first(lambda: keep(results.path, embeddings, found.evidence, order))


def _interest(name: str, outcomes: Mapping[str, str], listed: Collection[str]) -> tuple[bool, bool]:
    return outcomes.get(name) not in BAD, name not in listed


def table(
    seen: AttackResult,
    unseen: AttackResult,
    outcomes: Mapping[str, str],
    listed: Collection[str],
    variants: Mapping[str, AttackResult | None],
) -> str:
    """Write a line a person, as CSV; a field is empty where a person has no such form."""
    file = io.StringIO()
    write = csv.writer(file, lineterminator="\n").writerow
    head = ["name", "stranger", "known", "correct", "unanswered", "answer", "photos"]
    head += ["outcome", "removed"] * bool(outcomes)
    write([*head, *(f"correct_{name}" for name in variants), "photos_right"])
    tried = [
        dict(zip(found.names, found.correct, strict=True)) if found else {}
        for found in variants.values()
    ]
    for found, stranger in ((seen, 0), (unseen, 1)):
        columns = found.correct, found.unanswered, found.answers, found.num_photos
        people = zip(found.known().items(), found.photos_right, *columns, strict=True)
        for (name, known), right, *row in people:
            what = [outcomes.get(name, ""), int(name in listed)] if outcomes else []
            others = [v.get(name, "") for v in tried]
            write([name, stranger, int(known), *row, *what, *others, right])
    return file.getvalue()
