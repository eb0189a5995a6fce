"""The defense before: its settings, the people it removed, their photos, and what it led to.

A run after another one removes the people of both. Their list comes first and in its order, so that
the same photos are held out of both runs. Photos of the people of before are those that the run
before was trained on, wherever they lie now.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from flax import nnx

from jaxdefense.config import DefendBothConfig, DefendImageConfig, DefendTextConfig, EarlierConfig
from jaxdefense.convert.directory import ModelDirectory, read_model_directory
from jaxdefense.data.identities import Identity, check_distinct, read_identities
from jaxdefense.data.images import Photos
from jaxdefense.data.sources import Note, Photo
from jaxdefense.defense.step import split_tower
from jaxdefense.errors import InputError
from jaxdefense.files import read_json
from jaxdefense.ledger.entries import NAMES, Ledger, shown
from jaxdefense.ledger.runs import Followed, followed, ledger_of_run
from jaxdefense.log import Progress
from jaxdefense.results import BothDefenseSummary, DefenseSummary, EarlierRun, kind_of, read_summary
from jaxdefense.run_directory import TRAINED_ON, place_from
from jaxdefense.words import folded_words, some

logger = logging.getLogger(__name__)

Which = Literal["text", "vision"]
_HALF: dict[Which, str] = {"text": "text", "vision": "image"}


@dataclasses.dataclass(frozen=True)
class Earlier:
    """A finished defense that another one follows.

    Fields:
        path: its directory.
        half: that of the same encoder in it.
        how: see `ledger.entries.How`.
        ledger: of its model.
        identities: people it removed who are still on the list.
        restored: names of those who came off it.
        teacher_sha256: digest of the model to defend.
        teacher_is_original: whether that is the model its chain of removals began with.
    """

    path: Path
    half: Path
    how: Literal["replay", "fresh", "restore", "rebase"]
    ledger: Ledger
    identities: list[Identity]
    restored: list[str]
    teacher_sha256: str
    teacher_is_original: bool

    def start(self, which: Which) -> nnx.State | None:
        """Load the weights that training starts from, on the host; None for the teacher's own."""
        if self.how != "replay" or self.teacher_sha256 == self.ledger.last.model_sha256:
            return None
        with Progress(f"loading {self.path}"):
            model = read_model_directory(self.path).load("float32")
        _, params = split_tower(getattr(model, which))
        return params.trained

    def added(self, names: str) -> list[Identity]:
        """Read a names file; nobody of it is new if it is the one that this run wrote."""
        own = self.half / NAMES
        if own.is_file() and Path(names).is_file() and own.samefile(names):
            return []
        return read_identities(names)

    def joined(self, new: Sequence[Identity], where: str) -> list[Identity]:
        """List everyone to remove: those of before, in their order, then those who are new.

        Someone on both lists keeps the names of both.

        Raises:
            InputError: two people have one name, or somebody is to be removed and restored.
        """
        gone = {folded_words(name) for name in self.restored}
        out, place = list(self.identities), dict[tuple[str, ...], int]()
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
        check_distinct(out, f"{where} and the list of `{self.path}`")
        return out

    def lines(self, num: int) -> list[str]:
        """Say what is taken over; `num` people are on the list now."""
        old = len(self.identities)
        said = [
            f"{old} of the {num} on the list are those that `{self.path}` removed, and are removed "
            f"again; {num - old} are new"
        ]
        if self.restored:
            said.append(f"off the list: {some(self.restored)}")
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
            "restored": self.restored,
            "teacher_is_original": self.teacher_is_original,
        }

    def trained_on(self) -> dict[str, dict[str, str]]:
        """Give the photos it was trained on: name -> SHA-256 -> photo.

        Raises:
            InputError: it does not say.
        """
        found = read_json(self.half / TRAINED_ON)
        if not all(isinstance(photos, dict) for photos in found.values()):
            raise InputError(f"`{self.half / TRAINED_ON}` does not hold photos by name.")
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
            is of another model, or somebody to restore is not on its list.
    """
    if not (path := cfg.path):
        return None
    run, half = Path(path), Path(path)
    if kind_of(run) is BothDefenseSummary:
        half = run / _HALF[which]
    listed = [
        Identity(names[0], tuple(names[1:])) for names in read_summary(half, DefenseSummary).names
    ]
    ledger = ledger_of_run(run)
    digest, original = directory.digest(), True
    if cfg.after:
        if digest not in ledger.teachers() | {ledger.last.model_sha256}:
            raise InputError(
                f"`model.path` (={given}) is {shown(digest)}, and `{cfg.setting}` (={path}) is a "
                f"defense of {shown(ledger.original())}: give that model; or, to remove its people "
                "from this one, give `--ledger` instead."
            )
        original = digest == ledger.original()
        if cfg.restore and not original:
            raise InputError(
                f"`model.path` (={given}) is a defended model, and those whom `restore` "
                f"(={cfg.restore}) names are lost to it; give the model {shown(ledger.original())}."
            )
    identities, restored = _without_restored(cfg, listed)
    return Earlier(run, half, cfg.how(), ledger, identities, restored, digest, original)


def _without_restored(
    cfg: EarlierConfig, listed: Sequence[Identity]
) -> tuple[list[Identity], list[str]]:
    """Take people off the list; give those who stay on it, and all names of the others."""
    if not cfg.restore:
        return list(listed), []
    off = {
        folded_words(name): identity.name
        for identity in read_identities(cfg.restore)
        for name in identity.names
    }
    gone = [x for x in listed if any(folded_words(name) in off for name in x.names)]
    names = {folded_words(name) for x in gone for name in x.names}
    if unknown := dict.fromkeys(name for key, name in off.items() if key not in names):
        raise InputError(
            f"names file `{cfg.restore}` names {some(unknown)}, whom `{cfg.path}` did not remove; "
            "give names of its list."
        )
    return [x for x in listed if x not in gone], [name for x in gone for name in x.names]


def to_follow(earlier: Earlier | None, directory: ModelDirectory, digest: str) -> Followed:
    """Find the ledgers that a run goes on from; see `followed`."""
    if earlier:
        return followed(earlier.ledger, earlier.how, directory.path, digest)
    found = followed(None, "first", directory.path, digest)
    if found.ledgers:
        logger.warning(
            f"`{directory.path}` was defended before, and the people of its ledger are not removed "
            "again: they may come back. `--after` with the directory of that run removes them too"
        )
    return found


def check_kind(cfg: DefendTextConfig | DefendImageConfig | DefendBothConfig, kind: type) -> None:
    """Raise InputError unless the run that another follows defended the same encoders."""
    if not (path := cfg.earlier.path):
        return
    if (found := kind_of(Path(path))) is not kind:
        what = f"a {found.kind}" if found else "no run"
        raise InputError(
            f"`{cfg.earlier.setting}` (={path}) holds {what}; give the directory of a finished "
            f"{kind.kind}, as this is one."  # pyright: ignore[reportAttributeAccessIssue]
        )


def replayed(
    earlier: Earlier,
    people: Sequence[Photos],
    faces: str,
    digest_of: Callable[[Photo], str],
    note: Note,
) -> list[Photos]:
    """Find the photos of the people of before: those that the run before was trained on.

    Args:
        earlier: the run before.
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
    return out


def _same(place: str, sha: str, run: Path, digest_of: Callable[[Photo], str]) -> Path | None:
    """Find a photo where it lay, if it is still the same."""
    path = place_from(run, place)
    if not path.is_file():
        return None
    return path if digest_of(path) == sha else None


def both_trained_on(
    earlier: Mapping[str, Mapping[str, str]], own: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """Join the photos that two runs were trained on, those of this one first."""
    found = {name: dict(photos) for name, photos in own.items()}
    for name, photos in earlier.items():
        mine = found.setdefault(name, {})
        mine |= {sha: place for sha, place in photos.items() if sha not in mine}
    return found
