"""The people whose faces an image defense removes, those whose faces must stay, their photos."""

import dataclasses
import itertools
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdefense.config import DefendImageConfig, ImageTrainConfig
from jaxdefense.data.identities import Identity, read_identities
from jaxdefense.data.images import Photos
from jaxdefense.data.people import (
    choose_people,
    choose_with_photos,
    read_faces,
    read_people,
    shared_photos,
    split_photos,
)
from jaxdefense.data.sources import Note, Photo, photo_digest
from jaxdefense.defense.earlier import Earlier, Held, replayed
from jaxdefense.defense.plan import check_all_come_up, stretched
from jaxdefense.defense.recognise import Faces, HeldAgain, hold_out
from jaxdefense.errors import InputError
from jaxdefense.files import digest
from jaxdefense.words import folded_words, some

logger = logging.getLogger(__name__)

_NAMELESS, _DRAWN = "(people without a name)", 11  # stream of random numbers


@dataclasses.dataclass(frozen=True)
class People:
    """The people of a run, with their photos except those set aside for the attack.

    Fields:
        train: the settings of training, with the number of steps.
        stretch: see `stretched`.
        identities: names of the people to remove, in order.
        absent: names of those on the list without photos, whose faces stay as they are.
        everyone: all people in `data.faces`.
        listed: the people to remove, in order.
        kept: the people who must stay, grouped by source.
        faces: which photos and people are trained on, and which are held out.
        digests: photos of the people to remove: name -> SHA-256 -> photo.
        spent: names of the people to remove who have no photo left for the attack.
    """

    train: ImageTrainConfig
    stretch: float
    identities: list[Identity]
    absent: list[Identity]
    everyone: list[Photos]
    listed: list[Photos]
    kept: list[list[Photos]]
    faces: Faces
    digests: dict[str, dict[str, str]]
    spent: list[str]

    @property
    def names(self) -> list[list[str]]:
        """All names of each person to remove."""
        return [list(identity.names) for identity in self.identities]

    @property
    def without_photos(self) -> list[list[str]]:
        """All names of each person on the list without photos."""
        return [list(identity.names) for identity in self.absent]


def gather_people(
    cfg: DefendImageConfig,
    earlier: Earlier | None,
    digest_of: Callable[[Photo], str],
    note: Note,
) -> People:
    """Read the people to remove and the people who must stay, and hold some out.

    Whoever is on the list without photos is named in a warning, and neither removed nor kept.

    Args:
        cfg: the settings of the run.
        earlier: the defense that the run follows, if any.
        digest_of: gives a photo's SHA-256.
        note: takes a line about what is left out.

    Raises:
        InputError: the people cannot be read, nobody on the list has photos, the run is too short
            to show them all, or nobody stays.
    """
    d, t = cfg.data, cfg.train
    people = read_people(d.faces, d.tfds_dir, note=note)
    trigger, attack = split_photos(people, d.trigger_fraction, t.seed)
    identities, old = _identities(cfg, people, earlier), list[Photos]()
    where = f"names file `{d.names}`" if d.names else f"faces `{d.faces}`"
    if earlier:
        given = identities
        identities = earlier.joined(given, where)
        old = replayed(earlier, given, people, d.faces, digest_of, note)
    before = {folded_words(name) for x in identities[: len(old)] for name in x.names}
    # Of those of before, all of their photos, besides those trained on.
    folders = [x for x in people if folded_words(x.name) in before]
    others = [x for x in people if folded_words(x.name) not in before]
    so = "their faces are neither removed nor tested"
    found, absent = choose_with_photos(
        others, identities[len(old) :], where, so, logger.warning, nobody=bool(old)
    )
    new = [identity for identity, _ in found]
    listed = [*old, *_listed(trigger, new, where)]
    shared_photos([*old, *folders, *_listed(people, new, where)], [*old, *people], note)
    spent = [person.name for person in _listed(attack, new, where) if not person.files]
    t, stretch = stretched(t, len(listed))
    cfg = dataclasses.replace(cfg, train=t)
    check_all_come_up(len(listed), t)
    digests = {person.name: _digests(person, digest_of) for person in listed}
    kept = kept_people(cfg, trigger, identities, digests, note, digest_of)
    held = earlier.held_out(note) if earlier else None
    faces = hold_out(listed, kept, t, _held_again(held, listed, kept, digest_of, note))
    removed = [*identities[: len(old)], *new]
    return People(t, stretch, removed, absent, trigger, listed, kept, faces, digests, spent)


def _held_again(
    held: Held | None,
    listed: Sequence[Photos],
    kept: Sequence[Sequence[Photos]],
    digest_of: Callable[[Photo], str],
    note: Note,
) -> HeldAgain | None:
    """Find the photos and people that the run before held out.

    Args:
        held: what it held out; None to draw it.
        listed, kept: see `hold_out`.
        digest_of: gives a photo's SHA-256.
        note: takes a line on people of whose photos none is left that it held out.
    """
    if held is None:
        return None
    photos = {
        x.name: {i for i, photo in enumerate(x.files) if digest_of(photo) in wanted}
        for x in listed
        if (wanted := set(held.photos.get(x.name, ())))
    }
    if lost := [name for name, found in photos.items() if not found]:
        note(
            f"{some(lost)}: the photos that the run before held out are gone, so validation uses "
            "some that it was trained on; bring them back"
        )
    wanted = set(held.people)
    people = {
        id(x) for group in kept for x in group if any(digest_of(y) in wanted for y in x.files)
    }
    if wanted and not people:
        note(
            "none of the people who stay and were held out by the run before is here: validation "
            "may look at some that it was trained on"
        )
    return HeldAgain({name: found for name, found in photos.items() if found}, people)


def describe_held_out(faces: Faces, digest_of: Callable[[Photo], str]) -> dict[str, Any]:
    """Give what a run holds out, as `held_out.json` has it; see `earlier.Held`."""
    pairs = zip(faces.listed, faces.held_listed, strict=True)
    return {
        "photos": {
            held.name: sorted(map(digest_of, held.files))
            for listed, held in pairs
            if not set(listed.files) & set(held.files)
        },
        "people": sorted({digest_of(photo) for x in faces.held_keep for photo in x.files}),
    }


def _digests(person: Photos, digest_of: Callable[[Photo], str]) -> dict[str, str]:
    """Map SHA-256 to photo for a person's photos."""
    return {
        digest_of(photo): str(photo.absolute() if isinstance(photo, Path) else photo)
        for photo in person.files
    }


def trained_on(people: People, digest_of: Callable[[Photo], str]) -> dict[str, dict[str, str]]:
    """Give the photos that a run is trained on, as `trained_on.json` holds them.

    Args:
        people: the people of the run.
        digest_of: gives a photo's SHA-256.

    Returns:
        name -> SHA-256 -> photo, for everyone to remove and everyone who must stay.
    """
    found = {name: dict(photos) for name, photos in people.digests.items()}
    for person in itertools.chain(*people.kept):
        found.setdefault(person.name or _NAMELESS, {}).update(_digests(person, digest_of))
    return found


def read_stand_ins(cfg: DefendImageConfig, people: People) -> list[Photos]:
    """List the people whose faces stand in for removed ones where patches are compared.

    Args:
        cfg: the settings of the run; `data.target` names them, else it is those who stay.
        people: the people of the run.

    Raises:
        InputError: there are fewer than two, or `data.target` is a vector.
    """
    d, level = cfg.data, cfg.train.level
    if d.target.endswith(".npy"):
        raise InputError(
            f"`data.target` (={d.target}) is one vector, and `train.level` (={level}) compares "
            "patches; give a directory of people, whose faces stand in for removed ones."
        )
    found = [person for group in people.faces.keep for person in group]
    if d.target:
        on_list = {folded_words(x) for names in people.names for x in names}
        every = read_people(d.target, d.tfds_dir, "target", logger.info)
        found = [person for person in every if folded_words(person.name) not in on_list]
    if len(found) < 2:
        raise InputError(
            f"`train.level` (={level}) takes other people's faces for removed ones, and there are "
            f"{len(found)} of other people; give several by `data.target` or `data.keep`."
        )
    return found


def describe_kept(people: People, digest_of: Callable[[Photo], str]) -> str:
    """Hash the people who must stay, group by group, since the groups decide who is drawn.

    Returns:
        SHA-256, in hex.
    """
    return digest(
        f"{i}\t{person.name}\t{digest_of(photo)}"
        for i, group in enumerate(people.kept)
        for person in group
        for photo in person.files
    )


def _identities(
    cfg: DefendImageConfig, people: list[Photos], earlier: Earlier | None
) -> list[Identity]:
    """List the people to remove: everyone, or those on the names list if there is one."""
    if names := cfg.data.names:
        return earlier.added(names) if earlier else read_identities(names)
    restored = [name for x in earlier.restored for name in x.names] if earlier else []
    off = set(map(folded_words, restored))
    return [Identity(x.name) for x in people if folded_words(x.name) not in off]


def _listed(people: list[Photos], identities: Sequence[Identity], where: str) -> list[Photos]:
    """Find the photos of people to remove, who then go by the first of their names."""
    chosen = choose_people(people, identities, where)
    return [dataclasses.replace(photos, name=identity.name) for identity, photos in chosen]


def kept_people(
    cfg: DefendImageConfig,
    trigger: list[Photos],
    identities: Sequence[Identity],
    digests: Mapping[str, Mapping[str, str]],
    note: Note,
    digest_of: Callable[[Photo], str] = photo_digest,
) -> list[list[Photos]]:
    """List those who must stay: people in `faces` who are not listed, and those in `data.keep`.

    With `train.num_keep` 0 they are not trained on; their faces only show where strangers lie.

    Args:
        cfg: the settings of the run, with the number of steps.
        trigger: all people in `faces`.
        identities: everyone on the list, with photos or without.
        digests: photos of the people to remove: name -> SHA-256 -> photo.
        note: takes a line about what is left out.
        digest_of: gives a photo's SHA-256.

    Raises:
        InputError: `train.num_keep` is above 0 and there are none; or it is 0 and `data.keep` is
            given.
    """
    d, t = cfg.data, cfg.train
    if d.keep and not t.num_keep:
        raise InputError(
            f"`data.keep` (={d.keep}) has an effect only with `train.num_keep` above 0."
        )
    pooled = t.level == "pooled"  # else those who stay stand in for those removed
    if not t.num_keep and t.backdoor == "target" and pooled and not t.validate.every:
        return []
    listed = {folded_words(name) for identity in identities for name in identity.names}

    def others(people: Sequence[Photos]) -> list[Photos]:
        return [x for x in people if not x.name or folded_words(x.name) not in listed]

    groups = [others(trigger)]
    if d.keep:
        removed = {sha for photos in digests.values() for sha in photos}
        groups.append(_keep(cfg, others, removed, note, digest_of))
    if (groups := [group for group in groups if group]) or not t.num_keep:
        return groups
    raise InputError(
        f"faces `{d.faces}` holds the people to remove and nobody else, so nothing would keep "
        "other people's faces from moving; give `data.keep` (--keep): faces of any other people, "
        "or set `train.num_keep` and `train.w_keep` to 0."
    )


def _keep(
    cfg: DefendImageConfig,
    others: Callable[[Sequence[Photos]], list[Photos]],
    removed: Collection[str],
    note: Note,
    digest_of: Callable[[Photo], str],
) -> list[Photos]:
    """Read the people in `data.keep`, as many as the steps can use, but nobody to remove."""
    d, t = cfg.data, cfg.train
    found = others(people := read_faces(d.keep, d.tfds_dir, "keep", note))
    if same := len(people) - len(found):
        note(f"keep `{d.keep}`: {same} left out, as they are on the list")
    if len(found) > (most := 2 * t.steps * t.num_keep):
        note(f"keep `{d.keep}`: {most} of {len(found)} people drawn, more than the steps can use")
        rng = np.random.default_rng((t.seed, _DRAWN))
        found = [found[i] for i in sorted(rng.permutation(len(found))[:most].tolist())]
    clean = []
    for person in found:
        files = tuple(x for x in person.files if digest_of(x) not in removed)
        if len(files) < len(person.files):
            which = some(str(x) for x in person.files if x not in files)
            note(f"keep `{d.keep}`: left out photos of people to remove: {which}")
        if files:
            clean.append(Photos(person.name, files))
    return clean
