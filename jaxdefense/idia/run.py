"""`jaxdefense attack`: the attack on a model directory, and its results in a directory."""

import csv
import dataclasses
import hashlib
import io
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdefense.cache import ArrayCache
from jaxdefense.config import PHOTO_FORMS, AttackConfig
from jaxdefense.convert.directory import read_model_directory, resolve_dtype
from jaxdefense.data.identities import read_identities
from jaxdefense.data.images import Folder
from jaxdefense.data.people import choose_people, describe_people, read_people
from jaxdefense.data.sources import photo_digest
from jaxdefense.data.templates import read_templates
from jaxdefense.distributed import agree, on_first, several
from jaxdefense.errors import InputError
from jaxdefense.evals.embed import Embedder, processor_of
from jaxdefense.evals.outcome import BAD, Seen, outcome, tally
from jaxdefense.files import digest, read_json, read_lines, write_text
from jaxdefense.idia.attack import AttackResult, attack_with, check_threshold, gather
from jaxdefense.idia.candidates import candidate_names, read_sexes
from jaxdefense.idia.conditions import (
    difference,
    draw,
    named_in,
    photos_digest,
    random_targets,
    read_excluded,
)
from jaxdefense.idia.kept import embeddings_of, keep
from jaxdefense.idia.prompts import TEMPLATES
from jaxdefense.idia.statistics import majority, measure, statistics
from jaxdefense.idia.variants import attack_names, read_aliases
from jaxdefense.paths import check_outside
from jaxdefense.run_directory import TRAINED_ON, RunDirectory
from jaxdefense.sharding import make_mesh
from jaxdefense.words import some

logger = logging.getLogger(__name__)

RESULTS = "results.csv"


def run_attack(cfg: AttackConfig, cache: ArrayCache | None = None) -> dict:
    """Attack a model; write `config.json`, `results.csv`, what a report needs, `summary.json`.

    Args:
        cfg: see there.
        cache: of embeddings; None for the one in `cfg.cache_dir`.

    Returns:
        the summary.

    Raises:
        InputError: an input is wrong.
    """
    results = RunDirectory(Path(cfg.out))
    results.check(cfg)
    members = read_people(cfg.faces, cfg.tfds_dir, note=logger.info)
    strangers: list[Folder] = []
    if cfg.strangers:
        strangers = read_people(cfg.strangers, cfg.tfds_dir, "strangers", logger.info)
    if cfg.unseen_by:
        members = _unseen(members, Path(cfg.unseen_by), logger.info)
    people = draw(members + strangers, cfg.num_photos, cfg.seed)
    names = [person.name for person in people]
    excluded = _excluded(cfg, names)
    candidates = candidate_names(
        names,
        cfg.candidates,
        cfg.num_candidates,
        cfg.seed,
        read_sexes(cfg.sexes) if cfg.sexes else None,
        excluded,
    )
    templates = read_templates(cfg.templates) if cfg.templates else TEMPLATES
    check_threshold(cfg.threshold, templates)
    aliases = read_aliases(cfg.aliases, members) if cfg.aliases else {}
    before: dict[str, Seen] = {}
    listed: set[str] = set()
    model_cfg = cfg.model.measured()
    directory = read_model_directory(model_cfg.path)
    check_outside(Path(cfg.out), directory.path)
    conditions: dict[str, Any] = {
        "threshold": cfg.threshold,
        "num_candidates": len(candidates),
        "num_templates": len(templates),
        "seed": cfg.seed,
        "num_photos": cfg.num_photos,
        "dtype": resolve_dtype(model_cfg.dtype),
        "preprocessing": str(processor_of(directory)),
        "photos_sha256": on_first(lambda: {x.name: photos_digest(x) for x in people}),
        "sexes_sha256": hashlib.sha256(candidates.group_M.tobytes()).hexdigest(),
        "templates_sha256": digest(templates),
        "candidates_sha256": digest(candidates.block(0, len(candidates))),
    }
    if cfg.before:
        before = _read_before(cfg, members, conditions)
        where = f"names file `{cfg.names}`"
        chosen = choose_people(members, read_identities(cfg.names), where)
        listed = {folder.name for _, folder in chosen}
    cache = cache or ArrayCache(cfg.cache_dir)
    mesh = make_mesh(**vars(cfg.mesh), devices=jax.devices())
    model = Embedder(model_cfg, cfg.batch, mesh, cache)
    if several():
        agree(
            {
                "model_sha256": model.directory.digest(),
                "conditions": conditions,
                "people_sha256": describe_people(people),
                "aliases": aliases,
                "before": before,
                "names": sorted(listed),
            }
        )
    forms = ("", *(name for name in cfg.tried() if name in PHOTO_FORMS))
    evidence = gather(model, people, max_corrupt=cfg.max_corrupt, forms=forms)
    num = len(people)
    plain = evidence.of(range(num))
    every = attack_with(  # photos in all forms against texts embedded once
        model,
        evidence,
        candidates,
        threshold=cfg.threshold,
        templates=templates,
        block=cfg.candidate_block,
        own_I=np.tile(np.arange(num), len(forms)),
    )
    found = every[:num]
    variants: dict[str, AttackResult | None] = {}
    for name in cfg.tried():
        if name in forms:
            at = forms.index(name) * num
            variants[name] = every[at : at + num]
        else:
            variants[name] = attack_names(model, plain, candidates, name, aliases, templates, cfg)
    for note in _notes(cfg, found, candidates.added):
        logger.info(note)
    seen, unseen = found[: len(members)], found[len(members) :]
    summary = summarise(seen, unseen)
    if variants:
        summary["variants"] = {
            name: summarise_variant(result, seen, unseen) for name, result in variants.items()
        }
        for name, result in summary["variants"].items():
            if result["skipped"]:
                logger.info(
                    f"variant `{name}`: {some(result['skipped'])} left out, as they have none"
                )
    outcomes: dict[str, str] = {}
    if cfg.before:
        after = seen.by_name()
        outcomes = {
            name: outcome(name in listed, before[name], after[name], cfg.threshold)
            for name in after
        }
        summary["outcomes"] = tally(outcomes.values())
        summary["removed"] = [name for name in seen.names if name in listed]
        summary["groups"] = _groups(seen, before, listed)
    summary["conditions"] = conditions
    summary["model_sha256"] = model.directory.digest()
    embeddings = embeddings_of(model, plain)
    results.open(cfg)
    rows = table(seen, unseen, outcomes, listed, variants)
    on_first(lambda: write_text(results.path / RESULTS, rows))
    # Photos of whom went wrong first, then of those removed.
    order = sorted(range(num), key=lambda i: _interest(people[i].name, outcomes, listed))
    on_first(lambda: keep(results.path, embeddings, plain, order))
    results.finish(summary)
    return summary


def summarise(seen: AttackResult, unseen: AttackResult) -> dict:
    """Give what goes into `summary.json`, of the people attacked and of strangers, if any."""
    found = statistics(seen.correct, unseen.correct, seen.threshold, seen.num_templates)
    found |= measure(seen.correct, seen.photos_right, seen.threshold, seen.num_templates)
    photos = seen.num_photos + unseen.num_photos
    unanswered = seen.unanswered + unseen.unanswered
    found |= {
        "num_identities": len(seen.names),
        "threshold": seen.threshold,
        "num_candidates": seen.num_candidates,
        "num_templates": seen.num_templates,
        "photos_per_identity": {"min": min(photos), "max": max(photos)},
        "no_answer": sum(n == seen.num_templates for n in unanswered),
        "majority": majority(seen.num_templates),
        "per_identity": dict(zip(seen.names, seen.correct, strict=True)),
        "per_identity_photos_right": dict(zip(seen.names, seen.photos_right, strict=True)),
        "answers": dict(zip(seen.names, seen.answers, strict=True)),
    }
    if unseen.names:
        found["num_strangers"] = len(unseen.names)
        found["strangers"] = dict(zip(unseen.names, unseen.correct, strict=True))
        found["strangers_photos_right"] = float(np.mean(unseen.photos_right))
    return found


def summarise_variant(found: AttackResult | None, seen: AttackResult, unseen: AttackResult) -> dict:
    """Give what goes into `summary.json` of a variant: rates, and on whom it was not tried."""
    correct = dict(zip(found.names, found.correct, strict=True)) if found else {}
    ours, theirs = ({n: correct[n] for n in part.names if n in correct} for part in (seen, unseen))
    summary: dict = {"num_identities": len(ours)}
    summary["skipped"] = [name for name in seen.names + unseen.names if name not in correct]
    if found and ours:
        counts = list(ours.values()), list(theirs.values())
        right = dict(zip(found.names, found.photos_right, strict=True))
        shares = [right[name] for name in ours]
        summary |= statistics(*counts, found.threshold, found.num_templates)
        summary |= measure(counts[0], shares, found.threshold, found.num_templates)
        del summary["curve"]
        summary |= {
            "num_candidates": found.num_candidates,
            "num_templates": found.num_templates,
            "per_identity": ours,
        }
    return summary


def table(
    seen: AttackResult,
    unseen: AttackResult,
    outcomes: Mapping[str, str],
    listed: Collection[str],
    variants: Mapping[str, AttackResult | None],
) -> str:
    """Write a line a person, as CSV; of a variant that a person has no form of, nothing."""
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


def _interest(name: str, outcomes: Mapping[str, str], listed: Collection[str]) -> tuple[bool, bool]:
    return outcomes.get(name) not in BAD, name not in listed


def _groups(
    seen: AttackResult, before: Mapping[str, Seen], listed: Collection[str]
) -> dict[str, dict]:
    """Measure those to be removed and the others, before and after; nothing of nobody."""
    after, found = seen.by_name(), {}
    for group, removed in (("removed", True), ("others", False)):
        if names := [name for name in seen.names if (name in listed) == removed]:
            found[group] = {"num": len(names)} | {
                when: measure(
                    [who[name].correct for name in names],
                    [who[name].photos_right or 0.0 for name in names],
                    seen.threshold,
                    seen.num_templates,
                )
                for when, who in (("before", before), ("after", after))
            }
    return found


def _excluded(cfg: AttackConfig, people: Sequence[str]) -> list[str]:
    """List the names that are no random candidates, and say so, and of which that cannot be."""
    told = {cfg.model.path: random_targets(cfg.model.path)}
    if cfg.exclude:
        told[cfg.exclude] = read_excluded(cfg.exclude)
    excluded = list(dict.fromkeys(name for names in told.values() for name in names))
    for source, names in told.items():
        if names and not cfg.candidates:
            logger.info(f"{len(names)} names of `{source}` do not come up as random candidates")
    if cfg.candidates and (both := named_in(excluded, read_lines(cfg.candidates, "candidates"))):
        logger.warning(
            f"candidates file `{cfg.candidates}` holds {some(both)}, who removed people came to "
            "mean: their photos may lead there"
        )
    if own := named_in(excluded, people):
        logger.warning(f"{some(own)}: attacked, though removed people came to mean the name")
    return excluded


def _read_before(
    cfg: AttackConfig, members: Sequence[Folder], conditions: Mapping[str, Any]
) -> dict[str, Seen]:
    """Read what an attack like this one found on each person before the defense."""
    path = Path(cfg.before) / "summary.json"
    found = read_json(path)
    if differ := difference(found.get("conditions", {}), conditions):
        raise InputError(f"`before`: `{path}`: {differ}.")
    correct, right = found["per_identity"], found["per_identity_photos_right"]
    if missing := [person.name for person in members if person.name not in correct]:
        raise InputError(f"`before`: `{path}`: there {some(missing)} counted as a stranger.")
    return {name: Seen(correct[name], right[name]) for name in correct}


def _notes(cfg: AttackConfig, found: AttackResult, added: list[str]) -> Iterator[str]:
    """Say what was not as asked."""
    if added:
        yield (
            f"candidates file `{cfg.candidates}` lacks {some(added)}: added, as without their own "
            "name no one can be recognised"
        )
    photos = zip(found.names, found.num_photos, strict=True)
    if few := [f"{name}: {num}" for name, num in photos if num < cfg.num_photos]:
        yield (
            f"fewer photos than `num_photos` (={cfg.num_photos}) of {some(few)}; attacked with "
            "what there is"
        )


def _unseen(people: list[Folder], run: Path, note: Callable[[str], object]) -> list[Folder]:
    """Leave out photos a run trained on, told by their contents, whatever they are called now.

    And people of whom none is then left, which `note` takes a line on.
    """
    if not (run / TRAINED_ON).exists() and (run / "image" / TRAINED_ON).exists():
        run = run / "image"  # of a defense of both encoders
    if not (run / TRAINED_ON).exists():
        raise InputError(f"`unseen_by` (={run}) is no run of an image defense: no {TRAINED_ON}.")
    seen = {sha for photos in read_json(run / TRAINED_ON).values() for sha in photos}
    unseen, spent = [], []
    for person in people:
        files = tuple(photo for photo in person.files if photo_digest(photo) not in seen)
        if files:
            unseen.append(dataclasses.replace(person, files=files))
        else:
            spent.append(person.name)
    if not unseen:
        raise InputError(f"`{run}` was trained on every photo of everyone; add others.")
    if spent:
        note(f"not attacked, as `{run}` was trained on every photo of them: {some(spent)}")
    return unseen
