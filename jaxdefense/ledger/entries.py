"""The entries of a ledger: one a run, oldest first, each sealed by its digest.

`ledger.json` lies in the directory of a run and beside the model's weights. An entry names the
entries it follows by their digests, so that none can be changed, dropped or exchanged unseen. What
attacks found is added later, each with a digest of its own.

People's names are no part of it unless asked for. `names.txt` in the run directory has them. It
begins with random digits: the digest of the file, which the ledger holds, tells nobody who is
listed, and shows later that the file is the one.
"""

import dataclasses
import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

from jaxdefense.errors import InputError
from jaxdefense.files import write_json, write_text
from jaxdefense.results import parse_object, read_text
from jaxdefense.typed_json import fields_of, plain

LEDGER, NAMES = "ledger.json", "names.txt"
SCHEMA = 1
_SALT = 16  # bytes
_SHORT = 12  # digits of a digest that are shown

# How a model came to be: from a model without a ledger; from one whose people were not removed
# again; with the people of the entry before, from its weights, or from those of its teacher, all of
# them or all but some; with its people, from another model; from two models; in another layout.
How = Literal["first", "on top", "replay", "fresh", "restore", "rebase", "merge", "convert"]
_SAME_TEACHER = ("replay", "fresh", "restore")
_FROM_BEFORE = ("on top", "replay", "convert")


class Proved(TypedDict):
    """What an attack, or a proof, found of the people removed.

    Fields:
        id: digest of the model attacked and of all other fields.
        kind: of the result, attack or proof.
        recorded: the day it was recorded, as in ISO 8601.
        summary_sha256: digest of its `summary.json`.
        people: of the list, and attacked.
        listed: on the list; 0 if it was not at hand, so that nothing says who of them was on it.
        found: of these, those the attack recognises.
        photos_right: mean share of their photos named right, in [0, 1].
        names, prompts: candidates it chose from, and prompts.
    """

    id: str
    kind: str
    recorded: str
    summary_sha256: str
    people: int
    listed: int
    found: int
    photos_right: float
    names: NotRequired[int]
    prompts: NotRequired[int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A removal, or what was done to a model besides.

    Fields:
        id: digest of the fields between this and `proved`.
        follows: ids of the entries it follows.
        how: see `How`.
        kind: of the run, as in `results`; "" of none.
        date: of the end, as in ISO 8601.
        version: of jaxdefense.
        teacher_sha256: digest of the model that training compared with.
        start_sha256: of the weights that training began with.
        model_sha256: of those that came out.
        names_sha256: digest of `names.txt`; "" if it was not recorded.
        people: on the list, those of the entries before included.
        added: of these, how many were new.
        restored: people who came off the list.
        without_photos: of those on the list, how many faces were left, as there were no photos.
        reached: whether the run's own validation passed, by encoder; missing where none was made.
        settings: those that differ from the defaults, without paths.
        names: all names of each person on the list, where that was asked for.
        proved: what attacks found later.
    """

    id: str = ""
    follows: list[str]
    how: How
    kind: str
    date: str
    version: str
    teacher_sha256: str
    start_sha256: str
    model_sha256: str
    names_sha256: str = ""
    people: int = 0
    added: int = 0
    restored: int = 0
    without_photos: int = 0
    reached: dict[str, bool] = dataclasses.field(default_factory=dict)
    settings: dict[str, str] = dataclasses.field(default_factory=dict)
    names: list[list[str]] = dataclasses.field(default_factory=list)
    proved: list[Proved] = dataclasses.field(default_factory=list)

    def sealed(self) -> "Entry":
        """Give the entry with its id."""
        return dataclasses.replace(self, id=self.seal())

    def seal(self) -> str:
        """Hash what the entry says, except what was found later; SHA-256, in hex."""
        said = plain(dataclasses.replace(self, id="", proved=[]))
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Ledger:
    """The entries that led to a model, oldest first; the last one made it."""

    entries: list[Entry]

    @property
    def last(self) -> Entry:
        """The entry that made the model."""
        return self.entries[-1]

    def teachers(self) -> set[str]:
        """Digests of the models that the removals of the last entry may be compared with again."""
        return {entry.teacher_sha256 for entry in chain_of(self.entries)}

    def original(self) -> str:
        """Digest of the model that the last entry's chain of removals began with."""
        return chain_of(self.entries)[-1].teacher_sha256

    def began_undefended(self) -> bool:
        """Whether that model had no ledger, so that nobody had been removed from it."""
        begun = chain_of(self.entries)[-1]
        return begun.how == "first" or begun.how == "rebase" and len(begun.follows) == 1

    def with_proved(self, proved: list[Proved]) -> "Ledger":
        """Give the ledger with what attacks found of its model."""
        last = dataclasses.replace(self.last, proved=proved)
        return Ledger([*self.entries[:-1], last])


def chain_of(entries: Sequence[Entry]) -> list[Entry]:
    """List the last entry and those whose people it removed again, newest first."""
    by_id, chain = {entry.id: entry for entry in entries}, [entries[-1]]
    while chain[-1].how in _SAME_TEACHER:
        chain.append(by_id[chain[-1].follows[0]])
    return chain


def seal_of(proved: Mapping[str, object], model_sha256: str) -> str:
    """Hash what an attack on a model found; SHA-256, in hex."""
    said = {name: value for name, value in proved.items() if name != "id"} | {"of": model_sha256}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def with_entry(ledgers: Sequence[Ledger], entry: Entry) -> Ledger:
    """Join ledgers, each entry once, and add an entry that follows the last of each."""
    known = {x.id: x for ledger in ledgers for x in ledger.entries}
    follows = [ledger.last.id for ledger in ledgers]
    return Ledger([*known.values(), dataclasses.replace(entry, follows=follows).sealed()])


def read_ledger(directory: Path, model_sha256: str = "") -> Ledger | None:
    """Read and check the ledger in a directory of a run or of a model.

    Args:
        directory: of the run or the model.
        model_sha256: digest of the model's weights; "" if it is not to be checked.

    Returns:
        the ledger; None if there is none.

    Raises:
        InputError: it cannot be read, or does not hold together, or is another model's.
    """
    path = directory / LEDGER
    if not path.exists():
        return None
    where = f"`{path}`"
    found = parse_object(read_text(path), where)
    schema, runs = found.get("schema"), found.get("runs")
    if not isinstance(schema, int) or schema > SCHEMA or not isinstance(runs, list) or not runs:
        raise InputError(
            f"{where} is no ledger of schema {SCHEMA}: it must hold `schema` and a list `runs`."
        )
    entries = list[Entry]()
    for i, run in enumerate(runs):
        if not isinstance(run, dict):
            raise InputError(f"{where}: `runs[{i}]` must be an object.")
        entries.append(Entry(**fields_of(Entry, run, where, f"runs[{i}]")))  # pyright: ignore[reportArgumentType]
    _check(entries, where, model_sha256)
    return Ledger(entries)


def _check(entries: Sequence[Entry], where: str, model_sha256: str) -> None:
    """Raise InputError unless entries hold together and led to a model."""
    undo = "take the file from a copy of the model"
    every, before = {entry.id for entry in entries}, dict[str, Entry]()
    for i, entry in enumerate(entries):
        which = f"{where}: run {i + 1} of {len(entries)} ({shown(entry.id)})"
        for follows in entry.follows:
            if follows not in every:
                raise InputError(
                    f"{which} follows {shown(follows)}, which is missing from the ledger; {undo}."
                )
            if follows not in before:
                raise InputError(
                    f"{which} follows {shown(follows)}, which comes after it, in a circle; {undo}."
                )
        if entry.id in before:
            raise InputError(f"{which} is there twice; {undo}.")
        if entry.id != entry.seal():
            raise InputError(f"{which} was changed: its digest is {shown(entry.seal())}; {undo}.")
        if any(found["id"] != seal_of(found, entry.model_sha256) for found in entry.proved):
            raise InputError(f"{which}: what an attack on it found was changed; {undo}.")
        before[entry.id] = entry
        _check_models(entry, before, which)
    last = entries[-1]
    if model_sha256 and last.model_sha256 != model_sha256:
        raise InputError(
            f"{where} is of another model: its last run made {shown(last.model_sha256)}, and the "
            f"weights here are {shown(model_sha256)}; take the ledger that came with "
            "them, or remove this one if they were trained on since."
        )


def _check_models(entry: Entry, known: Mapping[str, Entry], which: str) -> None:
    """Raise InputError if an entry cannot follow those it says it follows."""
    before = [known[follows] for follows in entry.follows]
    if (entry.how == "first") == bool(before):
        raise InputError(f"{which} is {entry.how!r}, and yet follows {len(before)} runs.")
    made = {x.model_sha256 for x in before}
    if entry.how in _FROM_BEFORE and entry.start_sha256 not in made:
        raise InputError(
            f"{which} began with the model {shown(entry.start_sha256)}, which the run it follows "
            "did not make: it is of another model."
        )
    if entry.how not in _SAME_TEACHER:
        return
    earlier = chain_of([*known.values(), entry])[1:]
    if entry.teacher_sha256 not in made | {x.teacher_sha256 for x in earlier}:
        raise InputError(
            f"{which} has the teacher {shown(entry.teacher_sha256)}, which no run it follows had "
            "or made: it is of another model."
        )


def write_ledger(directory: Path, ledger: Ledger) -> None:
    """Write a ledger into a directory of a run or of a model, in one step."""
    runs = [plain(entry) for entry in ledger.entries]
    write_json(directory / LEDGER, {"schema": SCHEMA, "runs": runs})


def write_names(directory: Path, people: Sequence[Sequence[str]]) -> str:
    """Write `names.txt`, a names file, into a run directory, unless it is there.

    Args:
        directory: of the run.
        people: all names of each person.

    Returns:
        SHA-256 of the file, in hex.
    """
    path = directory / NAMES
    if not path.exists():
        salt = (
            f"# {secrets.token_hex(_SALT)}: so that the digest of this file tells nobody's name\n"
        )
        write_text(path, salt + "".join("\t".join(names) + "\n" for names in people))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def shown(sha256: str) -> str:
    """Shorten a digest."""
    return sha256[:_SHORT] or "unknown"
