"""The defense before: its settings, the people it removed, their photos, and what it led to.

A run after another one removes the people of both. Their list comes first and in its order, so that
the same photos are held out of both runs. Photos of the people of before are those that the run
before was trained on, wherever they lie now.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from flax import nnx

from jaxdefense.config import EarlierConfig
from jaxdefense.convert.directory import ModelDirectory, read_model_directory
from jaxdefense.data.identities import Identity, check_distinct, read_identities
from jaxdefense.data.images import Photos
from jaxdefense.data.sources import Note, Photo
from jaxdefense.defense.step import split_tower
from jaxdefense.errors import InputError
from jaxdefense.files import read_json
from jaxdefense.ledger.entries import NAMES, Ledger, shown
from jaxdefense.ledger.runs import Followed, follow, has_ledger, ledger_of_run
from jaxdefense.log import Progress
from jaxdefense.results import (
    BothDefenseSummary,
    DefenseSummary,
    EarlierRun,
    Summary,
    halves_of,
    kind_of,
    read_summary,
)
from jaxdefense.run_directory import HELD_OUT, TRAINED_ON, place_from
from jaxdefense.words import folded_words, some

logger = logging.getLogger(__name__)

Which = Literal["text", "vision"]
_HALF: dict[Which, str] = {"text": "text", "vision": "image"}


class Held(NamedTuple):
    """What a run held out of training, as `held_out.json` has it.

    Fields:
        photos: of the people to remove, SHA-256 by name.
        people: SHA-256 of the photos of people who must stay.
        names: that must stay.
    """

    photos: dict[str, list[str]]
    people: list[str]
    names: list[str]


@dataclasses.dataclass(frozen=True)
class Earlier:
    """A finished defense that another one follows.

    Fields:
        path: its directory.
        half: that of the same encoder in it.
        how: see `ledger.entries.How`.
        ledger: of its model.
        identities: people it removed who are still on the list.
        absent: people on its list without photos, whose faces it left, who are still on the list.
        restored: those who came off it.
        teacher_sha256: digest of the model to defend.
        teacher_is_original: whether that is the model before all removals.
    """

    path: Path
    half: Path
    how: Literal["replay", "fresh", "restore", "rebase"]
    ledger: Ledger
    identities: list[Identity]
    absent: list[Identity]
    restored: list[Identity]
    teacher_sha256: str
    teacher_is_original: bool

    def starts_there(self) -> bool:
        """Whether training starts from its weights, and these are not the teacher's."""
        return self.how == "replay" and self.teacher_sha256 != self.ledger.last.model_sha256

    def start(self, which: Which) -> nnx.State:
        """Load the weights that training starts from, on the host."""
        with Progress(f"loading {self.path}"):
            model = read_model_directory(self.path).load("float32")
        _, params = split_tower(getattr(model, which))
        return params.trained

    def added(self, names: str) -> list[Identity]:
        """Read a names file; leave out whoever came off the list if this run wrote the file."""
        found, own = read_identities(names), self.half / NAMES
        if not (own.is_file() and own.samefile(names)):
            return found
        gone = self._off()
        return [x for x in found if gone.isdisjoint(map(folded_words, x.names))]

    def _off(self) -> set[tuple[str, ...]]:
        return {folded_words(name) for x in self.restored for name in x.names}

    def joined(self, new: Sequence[Identity], where: str) -> list[Identity]:
        """List everyone to remove: those of before, in their order, then those who are new.

        Whoever had no photos comes after those whom the run before removed.

        Someone on both lists keeps the names of both.

        Raises:
            InputError: two people have one name, somebody is to be removed and restored, or nobody
                is left.
        """
        gone = self._off()
        out, place = [*self.identities, *self.absent], dict[tuple[str, ...], int]()
        for i, identity in enumerate(out):
            place |= {folded_words(name): i for name in identity.names}
        for identity in new:
            keys = [folded_words(name) for name in identity.names]
            if both := [x for x, key in zip(identity.names, keys, strict=True) if key in gone]:
                raise InputError(
                    f"{where} lists {both[0]!r}, who is to come off the list; delete the name "
                    "from one of the two files."
                )
            found = {place[key] for key in keys if key in place}
            if len(found) != 1:
                out.append(identity)
                continue
            old = out[i := found.pop()]
            more = tuple(x for x in identity.names if x not in old.names)
            out[i] = Identity(old.name, (*old.aliases, *more))
        if not out:
            raise InputError(
                f"nobody is left on the list of `{self.path}`: the original model is what you want."
            )
        check_distinct(out, f"{where} and the list of `{self.path}`")
        return out

    def lines(self, num: int) -> list[str]:
        """Say what is taken over; `num` people are to be removed now."""
        old = len(self.identities)
        said = [
            f"{old} of the {num} to remove are those that `{self.path}` removed, and are removed "
            f"again; {num - old} are new"
        ]
        if self.restored:
            said.append(f"off the list: {some(x.name for x in self.restored)}")
        if not self.teacher_is_original:
            said.append(
                "the teacher is a defended model, not the one before all removals: what it has "
                "lost of the people removed before cannot be measured"
            )
        return said

    def summary(self) -> EarlierRun:
        """Give what the summary says of it."""
        return {
            "run": str(self.path),
            "how": self.how,
            "model_sha256": self.ledger.last.model_sha256,
            "people": len(self.identities),
            "restored": [x.name for x in self.restored],
            "teacher_is_original": self.teacher_is_original,
        }

    def trained_on(self) -> dict[str, dict[str, str]]:
        """Give the photos it was trained on: name -> SHA-256 -> photo.

        Raises:
            InputError: it does not say.
        """
        if not (file := self.half / TRAINED_ON).is_file():
            raise InputError(
                f"`{file}` does not exist, so nobody knows which photos that run was trained on; "
                "start anew, with the names of everybody."
            )
        found = read_json(file)
        if not all(isinstance(photos, dict) for photos in found.values()):
            raise InputError(f"`{file}` does not hold photos by name.")
        return found

    def held_out(self, note: Note) -> Held | None:
        """Read what it held out; None if its weights are not those that training starts from.

        Args:
            note: takes a line if it held nothing out or does not say, though training starts there.

        Raises:
            InputError: what it says cannot be read.
        """
        if self.how != "replay":
            return None
        file, found = self.half / HELD_OUT, Held({}, [], [])
        if file.is_file():
            told = read_json(file)
            found = Held(*(told.get(name, usual) for name, usual in found._asdict().items()))
            usual = Held({}, [], [])
            if any(type(x) is not type(y) for x, y in zip(found, usual, strict=True)):
                raise InputError(f"`{file}` does not hold photos, people and names.")
        if not any(found):
            note(
                f"`{self.path}` held nothing out, or does not say what: validation may look at "
                "what that run was trained on, and pass too early"
            )
            return None
        return found


def read_earlier(
    cfg: EarlierConfig, directory: ModelDirectory, which: Which, given: str
) -> Earlier | None:
    """Read the defense that a run follows, and check that it can.

    Args:
        cfg: which one, and how.
        directory: of the model to defend.
        which: encoder of it to defend.
        given: path of the model, as the user gave it.

    Returns:
        the defense; None without any.

    Raises:
        InputError: it is no finished defense of this encoder, its ledger does not hold together, it
            is of another model, it does not say whom it removed, or somebody to restore is not on
            its list.
    """
    if not (path := cfg.path):
        return None
    run, half = Path(path), Path(path)
    if kind_of(run) is BothDefenseSummary:
        half = run / _HALF[which]
    summary = _summary_of(half)
    ledger = ledger_of_run(run)
    digest, original = directory.digest(), True
    if cfg.after:
        if digest not in ledger.teachers() | {ledger.last.model_sha256}:
            raise InputError(
                f"`model.path` (={given}) is {shown(digest)}, and `{cfg.setting}` (={path}) is a "
                f"defense of {shown(ledger.original())}: give that model; or, to remove its people "
                "from this one, give `--ledger` instead."
            )
        if cfg.restore and digest != ledger.original():
            raise InputError(
                f"`model.path` (={given}) is a defended model, and those whom `restore` "
                f"(={cfg.restore}) names are lost to it; give the model {shown(ledger.original())}."
            )
        original = digest == ledger.original() and ledger.began_undefended()
    elif has_ledger(directory.path):
        original = False
    everybody = [x for each in halves_of(run) for x in _people(_summary_of(each).listed)]
    restored = _restored(cfg, everybody)
    off = {folded_words(name) for x in restored for name in x.names}
    identities, absent = (
        [x for x in _people(names) if off.isdisjoint(map(folded_words, x.names))]
        for names in (summary.names, summary.without_photos)
    )
    return Earlier(run, half, cfg.how(), ledger, identities, absent, restored, digest, original)


def _people(names: Sequence[Sequence[str]]) -> list[Identity]:
    return [Identity(known[0], tuple(known[1:])) for known in names]


def _summary_of(half: Path) -> DefenseSummary:
    """Read what a run says of itself.

    Raises:
        InputError: it does not say whom it removed, as runs of long ago.
    """
    found = read_summary(half, DefenseSummary)
    if len(found.names) != found.identities:
        raise InputError(
            f"`{half}` does not say whom it removed; start anew, with the names of everybody."
        )
    return found


def _restored(cfg: EarlierConfig, listed: Sequence[Identity]) -> list[Identity]:
    """List those who come off the list, each once."""
    if not cfg.restore:
        return []
    off = {
        folded_words(name): identity.name
        for identity in read_identities(cfg.restore)
        for name in identity.names
    }
    gone = [x for x in listed if any(folded_words(name) in off for name in x.names)]
    names = {folded_words(name) for x in gone for name in x.names}
    if unknown := dict.fromkeys(name for key, name in off.items() if key not in names):
        raise InputError(
            f"names file `{cfg.restore}` names {some(unknown)}, not on the list of `{cfg.path}`; "
            "give names of its list."
        )
    return list({folded_words(x.name): x for x in gone}.values())


def to_follow(earlier: Earlier | None, directory: ModelDirectory, with_names: bool) -> Followed:
    """Find the ledgers that a run goes on from; see `ledger.runs.follow`.

    Says if the model was defended before, and these people are not removed again; and if an earlier
    ledger holds names, though none are recorded (`with_names`) now.
    """
    ledger, how = (earlier.ledger, earlier.how) if earlier else (None, "first")
    found = follow(ledger, how, directory)
    if found.how == "on top" or len(found.ledgers) > 1:
        logger.warning(
            f"`{directory.source}` was defended before, and the people of its ledger are not "
            "removed again: they may come back. `--after` with the directory of that run removes "
            "them too"
        )
    if not with_names and any(x.names for ledger in found.ledgers for x in ledger.entries):
        logger.warning(
            "the ledger of before holds people's names, which go with this model too: they were "
            "recorded by `--ledger-names`"
        )
    return found


def check_kind(path: str, setting: str, kind: type[Summary]) -> None:
    """Raise InputError unless the run that another follows defended the same encoders."""
    if not path or (found := kind_of(Path(path))) is kind:
        return
    if found is None or not issubclass(found, DefenseSummary | BothDefenseSummary):
        raise InputError(f"`{setting}` (={path}) is no run of a defense; give its directory.")
    raise InputError(
        f"`{setting}` (={path}) is a {found.kind}, and this would be a {kind.kind}: give a run of "
        "the same command."
    )


def replayed(
    earlier: Earlier,
    new: Sequence[Identity],
    people: Sequence[Photos],
    faces: str,
    digest_of: Callable[[Photo], str],
    note: Note,
) -> list[Photos]:
    """Find the photos of the people of before: those that the run before was trained on.

    Args:
        earlier: the run before.
        new: people of the names file.
        people: in `data.faces`.
        faces: `data.faces`, for an error.
        digest_of: gives a photo's SHA-256.
        note: takes a line on photos that are gone.

    Returns:
        a person each, in the order of its list.

    Raises:
        InputError: all photos of somebody are gone.
    """
    seen, folder = earlier.trained_on(), {folded_words(x.name): x for x in people}
    out, lost, fewer = list[Photos](), list[str](), list[str]()
    for identity in earlier.identities:
        wanted = next((seen[name] for name in identity.names if name in seen), {})
        here = {
            digest_of(photo): photo
            for name in identity.names
            for photo in getattr(folder.get(folded_words(name)), "files", ())
        }
        found = [
            photo
            for sha, place in wanted.items()
            if (photo := here.get(sha) or _same(place, sha, earlier.half, digest_of))
        ]
        if not found:
            lost.append(identity.name)
        elif len(found) < len(wanted):
            fewer.append(f"{identity.name} ({len(wanted) - len(found)} of {len(wanted)})")
        out.append(Photos(identity.name, tuple(found)))
    if lost:
        raise InputError(
            f"photos of {some(lost)} are gone, whom `{earlier.path}` removed: they are neither in "
            f"faces `{faces}` nor where that run found them; bring them back, or take these people "
            "off the list with `--restore`."
        )
    if fewer:
        note(f"photos that `{earlier.path}` was trained on are gone: of {some(fewer)}")
    if again := _listed_again(earlier, new):
        note(
            f"{some(again)}: listed again; trained on are the photos of before, others are left to "
            "the attack"
        )
    return out


def _listed_again(earlier: Earlier, new: Sequence[Identity]) -> list[str]:
    names = {folded_words(name) for x in new for name in x.names}
    return [x.name for x in earlier.identities if not names.isdisjoint(map(folded_words, x.names))]


def _same(place: str, sha: str, run: Path, digest_of: Callable[[Photo], str]) -> Path | None:
    """Find a photo where it lay, if it is still the same."""
    path = place_from(run, place)
    if not path.is_file():
        return None
    return path if digest_of(path) == sha else None


def both_trained_on(
    earlier: Mapping[str, Mapping[str, str]], own: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, str]]:
    """Join the photos that two runs were trained on, those of this one first."""
    found = {name: dict(photos) for name, photos in own.items()}
    for name, photos in earlier.items():
        mine = found.setdefault(name, {})
        mine |= {sha: place for sha, place in photos.items() if sha not in mine}
    return found
