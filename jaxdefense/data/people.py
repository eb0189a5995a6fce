"""People and classes by name: their photos, who is listed, and which photos are for training."""

import difflib
import glob
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxdefense.data import facescrub, imagenet
from jaxdefense.data.forms import expand_ranges, split_column
from jaxdefense.data.identities import Identity
from jaxdefense.data.imagenet import IMAGENET
from jaxdefense.data.images import Photos, spaced
from jaxdefense.data.sources import (
    TFDS_PREFIX,
    Note,
    Photo,
    TfdsImages,
    list_folders,
    photo_digest,
    read_images,
)
from jaxdefense.errors import InputError
from jaxdefense.files import read_lines
from jaxdefense.paths import is_word
from jaxdefense.words import folded_words, some

logger = logging.getLogger(__name__)

_MOST_NAMED = 20  # people without photos, in a line
_MOST_COMPARED = 100  # of them, with the names of folders, which takes a while
_ALIKE = 0.75  # of difflib: from here on a folder's name may be a person's, with a slip


def read_people(
    source: str,
    tfds_dir: str = "",
    what: str = "faces",
    note: Note = logger.info,
    whole_photos: bool = False,
) -> list[Photos]:
    """List people's photos, sorted by name.

    Args:
        source: a directory with one folder a person; FaceScrub's, or one in it, whose cropped faces
            are taken and four misspelt names corrected as in the source; or
            `tfds:NAME[/CONFIG][:SPLIT]`, grouped by label.
        tfds_dir: see `sources.open_tfds`.
        what: what to call it in an error.
        note: takes a line on files that are not used, if there are any.
        whole_photos: take FaceScrub's whole photos instead of the faces.

    Raises:
        InputError: the source cannot be read, a folder holds no photo, or two are of one name; or
            whole photos are asked for, and it is not FaceScrub's.
    """
    parts = facescrub.directories(source, whole_photos)
    if not parts:
        photos = _photos(source, tfds_dir, what, note)
        return _named(photos, {key: spaced(key) for key in photos}, f"{what} `{source}`")
    photos, names = {}, {}
    for part in parts:
        for key, files in list_folders(part, what, note).items():
            photos[folder := str(part / key)] = files
            names[folder] = facescrub.MISSPELT.get(spaced(key), spaced(key))
    return _named(photos, names, f"{what} `{source}`")


def read_faces(source: str, tfds_dir: str, what: str, note: Note = logger.info) -> list[Photos]:
    """List people's photos, whoever they are.

    Args:
        source: as of `read_people`; or photos without folders, as of `read_images`: one a person,
            whose name is then "".
        tfds_dir, what, note: see `read_people`.

    Raises:
        InputError: the source cannot be read, or holds no photo.
    """
    if source.startswith(TFDS_PREFIX) or _has_folders(source):
        return read_people(source, tfds_dir, what, note)
    return [Photos("", (photo,)) for photo in read_images(source, tfds_dir, note)]


def _has_folders(source: str) -> bool:
    try:
        return any(x.is_dir() for x in Path(source).iterdir() if not x.name.startswith("."))
    except OSError:
        pattern, column = split_column(source)
        files = column or glob.has_magic(pattern) or len(expand_ranges(pattern, "faces")) > 1
        return not files and not Path(source).exists()


def read_labelled(
    source: str, tfds_dir: str, what: str, class_names: str = "", note: Note = logger.info
) -> list[Photos]:
    """List the photos of classes, sorted by name.

    Args:
        source: a directory with one folder a class, or `tfds:NAME[/CONFIG][:SPLIT]`.
        tfds_dir: see `sources.open_tfds`.
        what: what to call it in an error.
        class_names: a file of lines of folder or label, a tab, and the name of the class; or
            `imagenet`; "" if folders and labels are the names, or are recognised as ImageNet's.
        note: takes a line on files that are not used, if there are any, and on ImageNet.

    Raises:
        InputError: as of `read_people`; the folders or labels are numbers or wnids of other
            classes; or the file does not name just these classes.
    """
    photos, where = _photos(source, tfds_dir, what, note), f"{what} `{source}`"
    if is_word(class_names, IMAGENET, "class_names"):
        return _imagenet(photos, imagenet.chosen(photos, where), where, note)
    if class_names:
        return _named(photos, _read_class_names(class_names, photos, where), where)
    if names := imagenet.recognised(photos, where):
        return _imagenet(photos, names, where, note)
    return _named(photos, {key: spaced(key) for key in photos}, where)


def _imagenet(
    photos: Mapping[str, tuple[Photo, ...]], names: Mapping[str, str], where: str, note: Note
) -> list[Photos]:
    """Put ImageNet's names to photos; classes of one name become one, as no prompt differs."""
    joined: dict[str, list[Photo]] = {}
    for key, files in photos.items():
        joined.setdefault(names[key], []).extend(files)
    found = [Photos(name, tuple(files)) for name, files in joined.items()]
    twice = [name for name, num in Counter(names.values()).items() if num > 1]
    same = f"; {some(twice)}: two classes of one name each, taken as one" if twice else ""
    note(f"{where}: {len(photos)} classes of ImageNet, by OpenAI's names{same}")
    return sorted(found, key=lambda c: c.name)


def _photos(source: str, tfds_dir: str, what: str, note: Note) -> dict[str, tuple[Photo, ...]]:
    """List photos by the folder they lie in, or their label."""
    if not source.startswith(TFDS_PREFIX):
        return list_folders(source, what, note)
    found: dict[str, list[Photo]] = {}
    images = TfdsImages(source, tfds_dir)
    for photo, label in zip(images, images.labels(), strict=True):
        found.setdefault(label, []).append(photo)
    if not found:
        raise InputError(f"{what} `{source}`: holds no photo; give another split.")
    return {label: tuple(photos) for label, photos in found.items()}


def _named(
    photos: Mapping[str, tuple[Photo, ...]], names: Mapping[str, str], where: str
) -> list[Photos]:
    """Put names to photos; sorted, each name once."""
    seen: dict[tuple[str, ...], str] = {}
    for key in photos:
        if not (words := folded_words(names[key])):
            raise InputError(f"{where}: `{key}` has no letter or digit in its name; rename it.")
        if words in seen:
            raise InputError(
                f"{where}: `{seen[words]}` and `{key}` are of one name, {names[key]!r}; join them."
            )
        seen[words] = key
    named = [Photos(names[key], files) for key, files in photos.items()]
    return sorted(named, key=lambda person: person.name)


def _read_class_names(file: str, photos: Collection[str], where: str) -> dict[str, str]:
    """Read the names of classes from a file, which must name each and no other."""
    names: dict[str, str] = {}
    for line in read_lines(file, "class names"):
        key, tab, name = (part.strip() for part in line.partition("\t"))
        if not (key and name) or key in names:
            raise InputError(
                f"class names file `{file}`: {line!r} must be a folder or label not named before, "
                "a tab, and a name."
            )
        names[key] = name
    unnamed = [key for key in photos if key not in names]
    unknown = [key for key in names if key not in photos]
    if unnamed or unknown:
        differ = f"; no line for {some(unnamed)}" if unnamed else ""
        differ += f"; no photo of {some(unknown)}" if unknown else ""
        raise InputError(
            f"class names file `{file}` must name the classes of {where}, each and no "
            f"other{differ}."
        )
    return names


def choose_people(
    people: Sequence[Photos], identities: Sequence[Identity], where: str
) -> list[tuple[Identity, Photos]]:
    """Find the photos of each listed person, by any of their names.

    Args:
        people: each name once.
        identities: those listed.
        where: the list, for an error.

    Raises:
        InputError: a person has no photos, or photos under two names.
    """
    chosen, absent = _find(people, identities, where)
    if absent:
        raise _no_photos(people, absent, len(identities), where)
    return chosen


def choose_with_photos(
    people: Sequence[Photos],
    identities: Sequence[Identity],
    where: str,
    so: str,
    note: Note,
    nobody: bool = False,
) -> tuple[list[tuple[Identity, Photos]], list[Identity]]:
    """Find the photos of those on a list who have some, by any of their names.

    Args:
        people: each name once.
        identities: those listed.
        where: the list, for an error or a note.
        so: what follows for those without photos.
        note: takes a line that names them, if there are any. It also names folders that may be
            theirs but for a slip in the name.
        nobody: whether all may be without photos.

    Returns:
        those who have photos, with them; and those who have none.

    Raises:
        InputError: a person has photos under two names, or nobody has photos.
    """
    chosen, absent = _find(people, identities, where)
    if absent and not chosen and not nobody:
        raise _no_photos(people, absent, len(identities), where)
    if absent:
        who = some((x.name for x in absent), _MOST_NAMED)
        note(f"{where}: no photos of {who}: {so}{_slips(people, absent, identities)}")
    return chosen, absent


def _find(
    people: Sequence[Photos], identities: Sequence[Identity], where: str
) -> tuple[list[tuple[Identity, Photos]], list[Identity]]:
    """Find the photos of listed people, and who has none."""
    by_name = {folded_words(person.name): person for person in people}
    chosen, absent = list[tuple[Identity, Photos]](), list[Identity]()
    for identity in identities:
        words = dict.fromkeys(map(folded_words, identity.names))
        found = [by_name[name] for name in words if name in by_name]
        if len(found) > 1:
            raise InputError(
                f"{where}: {identity.name!r} has the folders {some(f.name for f in found)}; "
                "join them, or list two people."
            )
        if found:
            chosen.append((identity, found[0]))
        else:
            absent.append(identity)
    return chosen, absent


def _no_photos(
    people: Sequence[Photos], absent: Sequence[Identity], num: int, where: str
) -> InputError:
    """Give the error that some of the `num` people on a list have no photos."""
    names = [person.name for person in people]
    closest = difflib.get_close_matches(absent[0].name, names, 1, 0)
    return InputError(
        f"{where}: no photos of {some(x.name for x in absent)} ({len(absent)} of {num} listed); "
        f"closest to the first is {closest[0]!r}."
    )


def _slips(
    people: Sequence[Photos], absent: Sequence[Identity], identities: Sequence[Identity]
) -> str:
    """Name folders of nobody on the list that may be of somebody without photos; "" for none."""
    listed = {folded_words(name) for identity in identities for name in identity.names}
    free = {_in_order(x.name): x.name for x in people if folded_words(x.name) not in listed}
    alike = [
        f"`{free[found[0]]}` as {identity.name!r}"
        for identity in absent[:_MOST_COMPARED]
        if (found := difflib.get_close_matches(_in_order(identity.name), free, 1, _ALIKE))
    ]
    if not alike:
        return ""
    return f"; other people, unless you rename their folders: {', '.join(alike[:_MOST_NAMED])}"


def _in_order(name: str) -> str:
    """Write the words of a name in alphabetical order, as folders may have the last name first."""
    return " ".join(sorted(folded_words(name)))


def split_photos(
    people: Sequence[Photos], fraction: float, seed: int
) -> tuple[list[Photos], list[Photos]]:
    """Split each person's photos into those to train on, and those to attack with.

    A person's split depends on the seed, their name and their photos alone. Copies of a photo stay
    together, and so do files whose names differ only in folder and suffix, such as a photo and the
    face cut from it in `PERSON/x.jpg` and `PERSON/face/x.jpg`, and faces of one photo of FaceScrub.

    Args:
        people: with a photo each.
        fraction: of the photos to train on, in [0, 1]; rounded to the nearest number of photos.
            Unless it is 1, each side gets a photo if there are two.
        seed: of the choice.

    Returns:
        trigger photos and attack photos, each of all people in order; attack photos may be none.

    Raises:
        InputError: `fraction` is out of range.
    """
    if not 0 <= fraction <= 1:
        raise InputError(f"`trigger_fraction` (={fraction}) must be from 0 to 1.")
    trigger, attack = [], []
    for person in people:
        chosen = _choose(person, fraction, seed)
        for part, wanted in ((trigger, True), (attack, False)):
            files = tuple(f for i, f in enumerate(person.files) if (i in chosen) == wanted)
            part.append(Photos(person.name, files))
    return trigger, attack


def _choose(person: Photos, fraction: float, seed: int) -> set[int]:
    """Choose the trigger photos of a person."""
    groups = together(person.files)
    wanted = int(len(person.files) * fraction + 0.5)
    if fraction < 1:
        wanted = min(wanted, len(person.files) - 1)
    digest = hashlib.sha256(person.name.encode("utf-8", "surrogateescape")).digest()
    order = np.random.default_rng((seed, int.from_bytes(digest))).permutation(len(groups))
    chosen: set[int] = set()
    for i in order:
        if len(chosen) + len(groups[i]) <= wanted:
            chosen.update(groups[i])
    return chosen or set(min((groups[i] for i in order), key=len))


def together(files: Sequence[Photo]) -> list[list[int]]:
    """Group photos of the same bytes, or of one photo by their names; see `split_photos`."""
    group_of = list(range(len(files)))  # the first of its group

    def first(i: int) -> int:
        while group_of[i] != i:
            i = group_of[i]
        return i

    stems: dict[object, list[int]] = {}
    for i, file in enumerate(files):
        key = facescrub.photo_of(file).casefold() if isinstance(file, Path) else i
        stems.setdefault(key, []).append(i)
    for group in (*stems.values(), *_copies(files)):
        lowest = min(map(first, group))
        for i in group:
            group_of[first(i)] = lowest
    groups: dict[int, list[int]] = {}
    for i in range(len(files)):
        groups.setdefault(first(i), []).append(i)
    return list(groups.values())


def _copies(files: Sequence[Photo]) -> list[list[int]]:
    """Group photos of the same bytes; reads only those of the same size."""
    by_size: dict[int, list[int]] = {}
    for i, file in enumerate(files):
        by_size.setdefault(_size(file), []).append(i)
    groups: dict[tuple[int, str], list[int]] = {}
    for size, group in by_size.items():
        for i in group:
            digest = _digest(files[i]) if len(group) > 1 else ""
            groups.setdefault((size, digest), []).append(i)
    return list(groups.values())


def shared_photos(listed: Sequence[Photos], people: Sequence[Photos], note: Note) -> None:
    """Report photos that lie both under a listed person and under another.

    This is no error, as a photo may show two people; but the other is then trained on too.

    Args:
        listed: some of the people, possibly by other names.
        people: all, the listed among them.
        note: takes a line of photos of listed people alone, and one of photos shared with others.
    """
    owner = {photo: person.name for person in people for photo in person.files}
    removed = {photo for person in listed for photo in person.files}
    sizes = {_size(photo) for photo in removed}
    files = [photo for photo in owner if _size(photo) in sizes]
    shared: dict[str, list[str]] = {}
    for group in _copies(files):
        copies = {owner[files[i]]: files[i] for i in group}
        ours = [files[i] in removed for i in group]
        if len(copies) > 1 and any(ours):
            who = "several people to remove" if all(ours) else "people to remove and people to keep"
            shared.setdefault(who, []).append(" = ".join(map(str, copies.values())))
    for who, found in shared.items():
        note(
            f"the same photo lies under {who}: {some(found)}; it counts for each of them: delete "
            "it where it does not belong"
        )


def describe_people(people: Sequence[Photos]) -> str:
    """Identify people's photos by their names and sizes, without reading any.

    Returns:
        SHA-256, in hex; the same for a copy elsewhere.
    """
    total = hashlib.sha256()
    for person in people:
        total.update(b"%s\0%d\0" % (os.fsencode(person.name), len(person.files)))
        for photo in person.files:
            if isinstance(photo, Path):
                total.update(b"%s\0%d\0" % (os.fsencode(photo.name), _size(photo)))
    return total.hexdigest()


def _size(photo: Photo) -> int:
    try:
        return photo.stat().st_size if isinstance(photo, Path) else len(photo.read_bytes())
    except OSError:  # whoever reads the photo will report it
        return -1


def _digest(photo: Photo) -> str:
    try:
        return photo_digest(photo)
    except ValueError:  # likewise; a copy of none
        return str(photo)
