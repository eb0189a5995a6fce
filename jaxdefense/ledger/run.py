"""`jaxdefense ledger`: reads the ledger of a model, and adds to it what attacks found."""

import datetime
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from jaxdefense.config import LedgerConfig
from jaxdefense.convert.directory import model_of_run, read_model_directory, run_of_model
from jaxdefense.errors import InputError
from jaxdefense.ledger.card import proved, sentence, write_card
from jaxdefense.ledger.entries import LEDGER, Ledger, Proved, read_ledger, shown, write_ledger
from jaxdefense.results import (
    DEFENDED,
    REMOVED,
    SUMMARY,
    AttackSummary,
    LedgerSummary,
    ProofSummary,
    Summary,
    read_summary,
)
from jaxdefense.typed_json import Json, plain

_ATTACK, _PROOF = "attack", "proof"


def ledger(cfg: LedgerConfig) -> LedgerSummary:
    """Read and check a model's ledger; with results of attacks, record what they found in it.

    Args:
        cfg: see `LedgerConfig`.

    Returns:
        the entries, oldest first.

    Raises:
        InputError: there is no ledger, it does not hold together, or it is of other weights; or a
            result is no attack on this model.
    """
    model = model_of_run(Path(cfg.model))
    digest = read_model_directory(model).digest()
    if (found := read_ledger(model, digest)) is None:
        raise InputError(
            f"`{model}` has no {LEDGER}: it is no model that a defense wrote, or the file was left "
            "behind; give the directory of the run, or of its model."
        )
    if cfg.results:
        found = _with(found, [_proved(Path(path), digest) for path in cfg.results])
        run = run_of_model(model)
        for directory in [model, *([run] if run and (run / LEDGER).exists() else [])]:
            write_ledger(directory, found)
        write_card(model, found)
    said = [sentence(entry) for entry in found.entries] + [proved(x) for x in found.last.proved]
    runs = cast(list[dict[str, Json]], [plain(entry) for entry in found.entries])
    return LedgerSummary(said=said, runs=runs, model_sha256=digest)


def _with(found: Ledger, proved: Sequence[Proved]) -> Ledger:
    """Add what attacks found to the last entry; each result once."""
    known = {x["summary_sha256"]: x for x in [*found.last.proved, *proved]}
    return found.with_proved(list(known.values()))


def _proved(path: Path, digest: str) -> Proved:
    """Read what an attack found of those removed.

    Raises:
        InputError: it is no attack, or of another model, or does not say who was removed.
    """
    summary = read_summary(path, Summary)
    made = getattr(summary, "model_sha256", "")
    if not isinstance(summary, AttackSummary | ProofSummary):
        raise InputError(f"`{path}` is no attack and no proof; give the directory of one.")
    if made != digest:
        raise InputError(
            f"`{path}` attacked the model {shown(made)}, and this one is {shown(digest)}; attack "
            "this model."
        )
    common = {
        "recorded": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "summary_sha256": hashlib.sha256((path / SUMMARY).read_bytes()).hexdigest(),
    }
    if isinstance(summary, AttackSummary):
        return _of_attack(path, summary, common)
    return _of_proof(path, summary, common)


def _of_attack(path: Path, found: AttackSummary, common: dict[str, str]) -> Proved:
    if found.removed is None:
        raise InputError(
            f"`{path}` does not say who was removed; attack with `--before` and `--names`."
        )
    right = found.per_identity_photos_right or {}
    shares = [right.get(name, 0.0) for name in found.removed]
    return Proved(
        kind=_ATTACK,
        people=len(found.removed),
        found=sum(found.per_identity[name] >= found.threshold for name in found.removed),
        photos_right=sum(shares) / max(1, len(shares)),
        names=found.num_candidates,
        prompts=found.num_templates,
        **common,  # pyright: ignore[reportArgumentType]
    )


def _of_proof(path: Path, found: ProofSummary, common: dict[str, str]) -> Proved:
    figures = found.parts["known"]["figures"] if "known" in found.parts else {}
    try:
        recognised = figures["recognised"][DEFENDED][REMOVED]
        right = figures["photos_right"][DEFENDED][REMOVED]
    except KeyError:
        raise InputError(
            f"`{path}` lacks the part `known`, which says whom the model still knows; run it too."
        ) from None
    return Proved(
        kind=_PROOF,
        people=recognised["num"],
        found=round(recognised["mean"] * recognised["num"]),
        photos_right=right["mean"],
        **common,  # pyright: ignore[reportArgumentType]
    )
