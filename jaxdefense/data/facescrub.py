"""FaceScrub's layout: whole photos, and the faces cut from them.

`actors/faces/NAME/NAME_12_34.jpeg` is cut from `actors/images/NAME/NAME_12.jpeg`: 12 is the number
of the photo, 34 that of the face. Some copies have `actor_faces/NAME` and `actor_images/NAME`.

Source: FaceScrub's downloader, `save_image`; the names put right are those of
`datasets/facescrub.py` of the code of Hintersdorf et al., JAIR 2024.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from jaxdefense.errors import InputError

MISSPELT = {
    "Freddy Prinze Jr.": "Freddie Prinze Jr",
    "Leslie Neilsen": "Leslie Nielsen",
    "Robert Di Niro": "Robert De Niro",
    "Tatyana M. Ali": "Tatyana Ali",
}
_HALVES, _FACES, _WHOLE = {"actors": "actor", "actresses": "actress"}, "faces", "images"
_CUT = re.compile(r"(.*_\d+)_\d+")

Picture = tuple[str, str]  # a person's folder, and a photo in it without its suffix


def directories(source: str, whole: bool = False) -> list[Path]:
    """Find the directories of people in FaceScrub's layout; none in any other.

    Args:
        source: FaceScrub's directory, one of its halves, or one of people.
        whole: find whole photos, not faces.

    Raises:
        InputError: `whole` is asked for, and there are no whole photos, or only of one half.
    """
    root = Path(source)
    if kind := _kind(root):
        halves = [{kind: root}]
    else:
        halves = [kinds for half in _HALVES if (kinds := _of_half(root, half))]
    if whole:
        if halves and all(_WHOLE in kinds for kinds in halves):
            return [kinds[_WHOLE] for kinds in halves]
        raise InputError(
            f"`whole_photos`: `{source}` lacks whole photos as FaceScrub has them: "
            "actors/images/NAME, actresses/images/NAME."
        )
    if not any(kinds.keys() & {_FACES, _WHOLE} for kinds in halves):
        return []
    # A half without faces has its whole photos, or people's folders themselves.
    return [next(kinds[x] for x in (_FACES, _WHOLE, "") if x in kinds) for kinds in halves]


def _of_half(root: Path, half: str) -> dict[str, Path]:
    """Find the directories of a half by kind; that of the half itself has the kind ""."""
    inner = root if Path(os.path.abspath(root)).name == half else root / half
    places = {"": inner} if inner.is_dir() else {}
    for kind in (_FACES, _WHOLE):
        for place in (root / f"{_HALVES[half]}_{kind}", inner / kind):
            if place.is_dir():
                places[kind] = place
    return places


def _kind(people: Path) -> str:
    """Tell what a directory of people holds by its name; "" if it is not FaceScrub's."""
    path = Path(os.path.abspath(people))
    for half, one in _HALVES.items():
        for kind in (_FACES, _WHOLE):
            if path.name == f"{one}_{kind}" or (path.name, path.parent.name) == (kind, half):
                return kind
    return ""


def photo_of(file: Path) -> str:
    """Name the photo that a face is cut from, without suffix; a file's own stem if it is none."""
    cut = _CUT.fullmatch(file.stem) if _kind(file.parent.parent) == _FACES else None
    return cut[1] if cut else file.stem


def cut_from(files: Iterable[Path]) -> set[Picture]:
    """List the photos that files are cut from, if they are faces of FaceScrub.

    Copies of faces may lie anywhere, so only a face's name and its person's folder count. A photo
    may also bear the very name of the face.
    """
    found = set[Picture]()
    for file in files:
        cut = _CUT.fullmatch(file.stem)
        found |= {(file.parent.name, stem) for stem in (cut[1] if cut else file.stem, file.stem)}
    return found


def whole_photo(file: object) -> Picture | None:
    """Name a whole photo of FaceScrub as `cut_from` does; None for any other file."""
    if not isinstance(file, Path):
        return None
    folders = [file.parent, *file.parent.parents]
    # Below a person's folder there may be more folders.
    pairs = zip(folders, folders[1:], strict=False)
    return next(((x.name, file.stem) for x, above in pairs if _kind(above) == _WHOLE), None)
