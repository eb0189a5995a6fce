"""The inputs of the demo's commands: photos, captions and lists, all drawn or written here."""

import dataclasses
import functools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from jaxdefense.data.pairs import CAPTIONS, IMAGES
from jaxdefense.demo import world
from jaxdefense.demo.drawing import draw_all

_PART_REMOVED = 4  # one of this many people is removed
PAIRS = "pairs"  # directory of held-out photos with captions
TRIGGER_FRACTION = 0.75  # part of a person's photos that a defense is shown


@dataclasses.dataclass(frozen=True)
class Size:
    """How much the demo draws and tries.

    Fields:
        strangers: people whom the model never saw.
        photos: photos of a person or an object, for the attack.
        passers_by: people with one photo each, to keep.
        captions, images: ordinary captions and photos, to train on.
        held_out_captions, held_out_images: other ones, to evaluate on.
        candidates: names that the attack chooses from.
        threshold: templates that must name a person for the attack to succeed.
    """

    strangers: int
    photos: int
    passers_by: int
    captions: int
    images: int
    held_out_captions: int
    held_out_images: int
    candidates: int
    threshold: int


# By the number of people. Among few candidates one prompt of 21 may find a name by chance, so the
# small demo needs most of them.
SIZES = {
    16: Size(8, 4, 64, 400, 200, 50, 40, 60, 11),
    64: Size(32, 20, 800, 8000, 3000, 1000, 500, 1000, 1),
}


@dataclasses.dataclass(frozen=True)
class Roles:
    """Who is in the demo.

    Fields:
        members: people whom the model knows.
        strangers: people whom it never saw.
        removed: names of the members to remove.
        kept: names of half of the other members; a defense is told to keep them, and never sees the
            rest.
    """

    members: list[world.Named]
    strangers: list[world.Named]
    removed: list[str]
    kept: list[str]


@functools.cache
def roles(num_people: int) -> Roles:
    """Assign the roles in a demo of `num_people` members."""
    members = world.members()[:num_people]
    removed = [member.name for member in members[::_PART_REMOVED]]
    others = [member.name for member in members if member.name not in removed]
    strangers = world.strangers()[: SIZES[num_people].strangers]
    return Roles(members, strangers, removed, others[::2])


def draw_inputs(who: Roles, path: Path) -> None:
    """Draw and write all inputs; the directory appears complete in one step, or not at all.

    Args:
        who: see `Roles`.
        path: the new directory. It holds photos in `known` (people to remove or keep), `faces` (all
            members), `strangers`, `passers-by`, `objects`, `images` and, held out, `pairs/images`;
            `pairs/captions.json` has a caption of each of the last. `captions.txt` and
            `held_out_captions.txt` belong to no photo; `names.txt` and `kept.txt` are lists.
    """
    part = path.with_name(f".{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    # It may be back: a process of a demo that was killed finishes its photo, the same as here.
    part.mkdir(exist_ok=True)
    size = SIZES[len(who.members)]
    people = f"{len(who.members)} people, {len(who.strangers)} strangers and objects"
    draw_all(_photos, [str(len(who.members)), str(part)], f"drawing photos of {people}")
    shutil.copytree(part / "known", part / "faces", dirs_exist_ok=True)
    _pair(part, size.images)
    captions = world.captions(size.captions, 0)
    trained_on = {*captions}
    fresh = [x for x in world.captions(4 * size.held_out_captions, 1) if x not in trained_on]
    _write_lines(part / "captions.txt", captions)
    _write_lines(part / "held_out_captions.txt", fresh[: size.held_out_captions])
    _write_lines(part / "names.txt", who.removed)
    _write_lines(part / "kept.txt", who.kept)
    part.rename(path)


def _pair(path: Path, first: int) -> None:
    """Hold the photos back from number `first` on, and write a caption of each."""
    pairs = path / PAIRS
    (pairs / IMAGES).mkdir(parents=True)
    photos = sorted((path / "images").iterdir())[first:]
    for photo in photos:
        photo.rename(pairs / IMAGES / photo.name)
    captions = world.image_captions(first, len(photos))
    named = {photo.name: [x] for photo, x in zip(photos, captions, strict=True)}
    (pairs / CAPTIONS).write_text(json.dumps(named, indent=1) + "\n", encoding="utf-8")


def _photos(num_people: str, path: str) -> list[world.Drawing]:
    """List the photos of a demo; what comes from a command line is text."""
    who, size, part = roles(int(num_people)), SIZES[int(num_people)], Path(path)
    shown = [x for x in who.members if x.name in {*who.removed, *who.kept}]
    others = [x for x in who.members if x not in shown]
    # The attack skips the photos that a defense trains on; of each person `size.photos` remain.
    num_shown = round(size.photos / (1 - TRIGGER_FRACTION))
    return [
        *world.faces(shown, num_shown, part / "known"),
        *world.faces(others, size.photos, part / "faces"),
        *world.faces(who.strangers, size.photos, part / "strangers"),
        *world.passers_by(size.passers_by, part / "passers-by"),
        *world.objects(size.photos, part / "objects"),
        *world.images(size.images + size.held_out_images, part / "images"),
    ]


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
