"""The ledger of a run: made when it ends, from its settings and its summary."""

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxdefense import __version__
from jaxdefense.convert.directory import ModelDirectory, read_model_directory
from jaxdefense.errors import InputError
from jaxdefense.ledger.card import write_card
from jaxdefense.ledger.entries import (
    LEDGER,
    Entry,
    How,
    Ledger,
    read_ledger,
    with_entry,
    write_ledger,
    write_names,
)
from jaxdefense.results import (
    BothDefenseSummary,
    DefenseSummary,
    kind_of,
    read_summary,
    teacher_digest,
)
from jaxdefense.settings import chosen


class Followed(NamedTuple):
    """The ledgers that a run goes on from, and how; see `ledger.entries.How`."""

    ledgers: list[Ledger]
    how: How


def has_ledger(model: Path) -> bool:
    """Whether a directory has a ledger."""
    return (model / LEDGER).exists()


def ledger_of_model(directory: ModelDirectory) -> Ledger | None:
    """Read the ledger beside a model's weights; see `read_ledger`."""
    return read_ledger(directory.path, directory.digest()) if has_ledger(directory.path) else None


def follow(earlier: Ledger | None, how: How, directory: ModelDirectory) -> Followed:
    """Find the ledgers that a run goes on from.

    Args:
        earlier: of the run that it follows; None if it follows none.
        how: it does so.
        directory: of the model to defend, which may have a ledger of its own.

    Raises:
        InputError: the model's own ledger does not hold together, or is of other weights.
    """
    own = ledger_of_model(directory)
    if earlier is None:
        return Followed([own], "on top") if own else Followed([], "first")
    return Followed([earlier, own] if own and how == "rebase" else [earlier], how)


def entry_of_run(
    kind: str,
    summaries: Sequence[DefenseSummary],
    *,
    teacher_sha256: str,
    start_sha256: str,
    model_sha256: str,
    follows: Followed,
    names_sha256: str = "",
    settings: dict[str, str],
    date: str,
    with_names: bool = False,
) -> Entry:
    """Make the entry of a finished run, not sealed yet.

    Args:
        kind: of the run.
        summaries: of the encoders that it defended.
        teacher_sha256, start_sha256, model_sha256, names_sha256, settings, date: see `Entry`.
        follows: ledgers that it goes on from; of the first, the people are removed again.
        with_names: whether people's names are recorded.
    """
    names = {names[0]: names for summary in summaries for names in summary.listed}
    people, old = len(names) or summaries[0].identities, 0
    restored = {name for x in summaries if x.earlier for name in x.earlier["restored"]}
    if any(x.earlier for x in summaries):
        old = follows.ledgers[0].last.people - len(restored)
    reached = {x.encoder: x.reached for x in summaries}
    return Entry(
        follows=[],
        how=follows.how,
        kind=kind,
        date=date,
        version=__version__ if date else "",
        teacher_sha256=teacher_sha256,
        start_sha256=start_sha256,
        model_sha256=model_sha256,
        names_sha256=names_sha256,
        people=people,
        added=people - old,
        restored=len(restored),
        without_photos=sum(len(summary.without_photos) for summary in summaries),
        reached={name: passed for name, passed in reached.items() if passed is not None},
        settings=settings,
        names=list(names.values()) if with_names else [],
    )


def keep_ledger(
    run: Path,
    cfg: Any,
    summary: DefenseSummary | BothDefenseSummary,
    halves: Sequence[DefenseSummary],
    teacher_sha256: str,
    follows: Followed,
    own: Mapping[str, str],
) -> None:
    """Write the ledger of a run into its directory and beside its model; names and card too.

    Args:
        run: directory of the run, with its model.
        cfg: its settings.
        summary: of the run.
        halves: of each encoder that it defended.
        teacher_sha256: see `Entry`.
        follows: ledgers that it goes on from.
        own: what was given by value in place of settings, described.
    """
    people = {names[0]: names for half in halves for names in half.listed}
    replay = follows.how == "replay"
    entry = entry_of_run(
        summary.kind,
        halves,
        teacher_sha256=teacher_sha256,
        start_sha256=follows.ledgers[0].last.model_sha256 if replay else teacher_sha256,
        model_sha256=summary.defended_sha256,
        follows=follows,
        names_sha256=write_names(run, list(people.values())),
        settings={**chosen(cfg), **own},
        date=_now(),
        with_names=cfg.ledger_names,
    )
    ledger = with_entry(follows.ledgers, entry)
    write_ledger(run, ledger)
    _write_beside(run / "model", ledger)


def join_ledgers(model: Path, how: Literal["merge", "convert"], *ledgers: Ledger | None) -> None:
    """Write the ledger of a model that was made from others without training, and its card.

    Args:
        model: directory of the model; its weights are written.
        how: see `ledger.entries.How`.
        ledgers: of the models it was made from; if none has one, nothing is written.
    """
    if not (found := [ledger for ledger in ledgers if ledger]):
        return
    entry = Entry(
        follows=[],
        how=how,
        kind="",
        date=_now(),
        version=__version__,
        teacher_sha256="",
        start_sha256=found[0].last.model_sha256 if how == "convert" else "",
        model_sha256=read_model_directory(model).digest(),
    )
    _write_beside(model, with_entry(found, entry))


def _write_beside(model: Path, ledger: Ledger) -> None:
    write_ledger(model, ledger)
    write_card(model, ledger)


def ledger_of_run(run: Path) -> Ledger:
    """Read the ledger of a finished run; for a run of before ledgers were kept, make it.

    Raises:
        InputError: the run is not finished, or its ledger does not hold together, or its model is
            not the one that it wrote.
    """
    directory = read_model_directory(run)
    digest = directory.digest()
    if ledger := read_ledger(run, digest):
        return ledger
    if kind_of(run) is BothDefenseSummary:
        found = read_summary(run, BothDefenseSummary)
        made, halves = found.defended_sha256, [found.text, found.image]
    else:
        found = read_summary(run, DefenseSummary)
        made, halves = found.defended_sha256, [found]
    if made and made != digest:
        raise InputError(
            f"`{directory.source}` is not the model that `{run}` wrote; bring it back."
        )
    teacher = teacher_digest(run)
    entry = entry_of_run(
        found.kind,
        halves,
        teacher_sha256=teacher,
        start_sha256=teacher,
        model_sha256=digest,
        follows=Followed([], "first"),
        settings={},
        date="",  # not recorded; another would be another entry
    )
    return with_entry([], entry)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
