"""`jaxdefense ledger`: reads the ledger of a model, and adds to it what attacks found."""

import datetime
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from jaxdefense.config import LedgerConfig
from jaxdefense.convert.directory import read_model_directory, run_of_model
from jaxdefense.errors import InputError
from jaxdefense.hub import find_id
from jaxdefense.ledger.card import sentences, write_card
from jaxdefense.ledger.entries import (
    LEDGER,
    Ledger,
    Proved,
    read_ledger,
    seal_of,
    shown,
    write_ledger,
)
from jaxdefense.ledger.runs import ledger_of_model
from jaxdefense.results import (
    DEFENDED,
    REMOVED,
    SUMMARY,
    AttackSummary,
    DefenseSummary,
    LedgerSummary,
    ProofSummary,
    Summary,
    halves_of,
    read_summary,
)
from jaxdefense.typed_json import Json, plain
from jaxdefense.words import folded_words, some


def ledger(cfg: LedgerConfig) -> LedgerSummary:
    """Read and check a model's ledger; with results of attacks, record what they found in it.

    Args:
        cfg: see `LedgerConfig`.

    Returns:
        the entries, oldest first.

    Raises:
        InputError: there is no ledger, it does not hold together, it is of other weights, or a run
            and its model have different ones; or a result is no attack on this model, or one on
            somebody who is not on the list.
    """
    directory = read_model_directory(cfg.model)
    model = directory.source
    if cfg.results and find_id(cfg.model):
        raise InputError(
            f"`{cfg.model}` is not here to be written; give a model directory to record `results`."
        )
    if cfg.results and directory.copied:
        raise InputError(
            f"`{model}` holds pickles, which no defense wrote; give the directory of the run, or "
            "of its model, to record `results`."
        )
    if (found := ledger_of_model(directory)) is None:
        raise InputError(
            f"`{model}` has no {LEDGER}: it is no model that a defense wrote, or the file was left "
            "behind; give the directory of the run, or of its model."
        )
    digest, run = directory.digest(), run_of_model(model)
    of_run = read_ledger(run, digest) if run else None
    if of_run and of_run.with_proved([]) != found.with_proved([]):
        raise InputError(
            f"`{run}` and `{model}` have different ledgers; replace the wrong one by the other."
        )
    # A command that was killed may have recorded an attack in one of them alone.
    proved = [*found.last.proved, *(of_run.last.proved if of_run else [])]
    listed = _listed(run, found) if cfg.results else []
    proved += [_proved(Path(path), digest, listed) for path in cfg.results]
    found = found.with_proved(list({x["summary_sha256"]: x for x in proved}.values()))
    if cfg.results:
        for place in [model, *([run] if run and of_run else [])]:
            write_ledger(place, found)
        write_card(model, found)
    runs = cast(list[dict[str, Json]], [plain(entry) for entry in found.entries])
    return LedgerSummary(said=sentences(found), runs=runs, model_sha256=digest)


def _listed(run: Path | None, found: Ledger) -> list[list[str]]:
    """List all names of those on the list, as run or ledger says; nobody if neither does."""
    if run is None:
        return found.last.names
    names = [x for half in halves_of(run) for x in read_summary(half, DefenseSummary).listed]
    return list({x[0]: x for x in names}.values())


def _proved(path: Path, digest: str, listed: Sequence[Sequence[str]]) -> Proved:
    """Read what an attack found of those removed.

    Raises:
        InputError: it is no attack, or of another model, or does not say who was removed, or takes
            somebody for removed who was not.
    """
    summary = read_summary(path, Summary)
    if isinstance(summary, AttackSummary):
        (removed, figures), made = _of_attack(path, summary), summary.model_sha256
    elif isinstance(summary, ProofSummary):
        (removed, figures), made = _of_proof(path, summary), summary.model_sha256
    else:
        raise InputError(f"`{path}` is no attack and no proof; give the directory of one.")
    if made != digest:
        raise InputError(
            f"`{path}` attacked the model {shown(made)}, and this one is {shown(digest)}; attack "
            "this model."
        )
    known = {folded_words(name) for names in listed for name in names}
    if known and (others := [name for name in removed if folded_words(name) not in known]):
        raise InputError(
            f"`{path}` takes {some(others)} for removed, not on the list of this model; attack "
            "with the `names.txt` of its run."
        )
    found: dict[str, Any] = figures | {
        "recorded": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "summary_sha256": hashlib.sha256((path / SUMMARY).read_bytes()).hexdigest(),
        "people": len(removed),
        "listed": len(listed),
    }
    return cast(Proved, {"id": seal_of(found, digest), **found})


def _of_attack(path: Path, found: AttackSummary) -> tuple[Sequence[str], dict[str, Any]]:
    """Give who was removed, and what an attack found of them."""
    right = found.per_identity_photos_right
    if not found.removed or right is None:
        raise InputError(
            f"`{path}` does not say who was removed, or how many of their photos it named right; "
            "attack again, with `--before` and `--names`."
        )
    return found.removed, {
        "kind": "attack",
        "found": sum(found.per_identity[name] >= found.threshold for name in found.removed),
        "photos_right": sum(right[name] for name in found.removed) / len(found.removed),
        "names": found.num_candidates,
        "prompts": found.num_templates,
    }


def _of_proof(path: Path, found: ProofSummary) -> tuple[Sequence[str], dict[str, Any]]:
    """Give who was removed, and what the part `known` of a proof found of them."""
    figures = found.parts["known"]["figures"] if "known" in found.parts else {}
    try:
        recognised = figures["recognised"][DEFENDED][REMOVED]
        right = figures["photos_right"][DEFENDED][REMOVED]
    except KeyError:
        raise InputError(
            f"`{path}` lacks the part `known`, which says whom the model still knows; run it too."
        ) from None
    return found.groups[REMOVED], {
        "kind": "proof",
        "found": round(recognised["mean"] * recognised["num"]),
        "photos_right": right["mean"],
    }
