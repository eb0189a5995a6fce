"""A world of thousands of people, for defenses of many: mosaics in place of faces.

A name need only mean somebody for a text encoder to learn it, so a photo is the simplest picture
that tells thousands apart: 16 tiles in colours of the person's own, under changing light, some of
them hidden. Objects and people without a name are mosaics too; the tiles of the latter show what a
caption says of them. Names are shared as in a census, where a few are frequent and most are rare.

    python -m jaxdefense.demo.crowd --people 4096 --out inputs

writes what `defend text`, `attack` and `sweep text` read; `jaxdefense.demo.pretrain --people 4096`
trains the model that knows these people.
"""

import argparse
import dataclasses
import itertools
import shutil
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from jaxdefense.data.names import census
from jaxdefense.demo import people, world
from jaxdefense.demo.objects import OBJECTS
from jaxdefense.errors import InputError
from jaxdefense.files import write_text
from jaxdefense.log import Progress, shown
from jaxdefense.paths import check_new
from jaxdefense.words import folded_words

SIDE = 32  # pixels of a photo
MOST = 100_000  # people with names of their own, strangers included
_TILES = 16
_COLOURS = np.array(
    [
        (30, 30, 36), (236, 232, 224), (206, 48, 48), (236, 146, 40), (244, 214, 70),
        (70, 160, 60), (36, 110, 90), (70, 190, 214), (44, 84, 190), (126, 66, 170),
        (236, 120, 176), (124, 78, 48),
    ],
    np.float32,
)  # fmt: skip
_HIDDEN, _HIDDEN_OBJECT = 1, 4  # tiles of a photo that show nothing of whom or what it is of
# How many words a name has, and how often; the fourth is a second last name.
_WORDS = {1: 0.02, 2: 0.8, 3: 0.14, 4: 0.04}
# The n-th name of a census is about as frequent as 1 / (n + 10).
_FLAT = 10
# What a caption may say of somebody without a name; each shows in two tiles.
_TRAITS = (
    "sex",
    "hair_style",
    "hair_colour",
    "glasses",
    "beard",
    "headwear",
    "headwear_colour",
    "mark",
)
_NAMES, _CODES, _PHOTOS, _OBJECTS = range(4)  # streams of random numbers


@dataclasses.dataclass(frozen=True)
class Member:
    """A person with a name.

    Fields:
        name: of 1 to 4 words, which others may share, but not all of them.
        number: of the person in the world; the photos are drawn from it.
    """

    name: str
    number: int


def members(num: int, first: int = 0) -> list[Member]:
    """List people of the world, from number `first` on.

    Raises:
        InputError: there are not so many.
    """
    if not (0 <= first and 0 < num and first + num <= MOST):
        raise InputError(f"`people` (={num}) must be from 1 to {MOST - first:,}.")
    return list(map(Member, itertools.islice(_names(), first, first + num), itertools.count(first)))


def _names() -> Iterator[str]:
    """Give names, none twice; women and men in turn."""
    rng, given = np.random.default_rng((world.HELD_OUT, _NAMES)), set[tuple[str, ...]]()
    firsts = [census("female"), census("male")]
    lasts = census("last")
    rank = [_by_frequency(len(x)) for x in (*firsts, lasts)]
    num_words = np.cumsum(list(_WORDS.values()))
    for number in itertools.count():
        first, of_first = firsts[number % 2], rank[number % 2]
        while True:
            words = 1 + int(np.searchsorted(num_words, rng.random()))
            parts = [first[np.searchsorted(of_first, x)] for x in rng.random((words + 1) // 2)]
            parts += [lasts[np.searchsorted(rank[2], x)] for x in rng.random(words // 2)]
            name = " ".join(parts)
            if (key := folded_words(name)) not in given and len(set(key)) == len(key):
                break
        given.add(key)
        yield name


def _by_frequency(num: int) -> np.ndarray:
    """Give the part of people who have one of the first names of a census, f64 [num]."""
    sums = np.cumsum(1 / (np.arange(num) + 1 + _FLAT))
    return sums / sums[-1]


def _codes(stream: int, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
    """Give the colours of people's or objects' tiles; int [n, 16]."""
    made = [np.random.default_rng((world.HELD_OUT, stream, int(i))) for i in numbers]
    return np.stack([rng.integers(len(_COLOURS), size=_TILES) for rng in made])


def _looks(person: people.Person) -> np.ndarray:
    """Give the colours of the tiles of somebody without a name; int [16]."""
    said = [f"{i} {trait} {getattr(person, trait)}" for trait in _TRAITS for i in range(2)]
    return np.array([zlib.crc32(x.encode()) % len(_COLOURS) for x in said])


def draw(code_BT: np.ndarray, hidden: int, rng: np.random.Generator) -> np.ndarray:
    """Draw photos.

    Args:
        code_BT: int [n, 16], the colour of each tile.
        hidden: number of tiles a photo that have another colour.
        rng: of the light, and of what is hidden.

    Returns:
        u8 [n, 32, 32, 3].
    """
    num = len(code_BT)
    away_BT = rng.random(code_BT.shape).argsort(1) < hidden
    code_BT = np.where(away_BT, rng.integers(len(_COLOURS), size=code_BT.shape), code_BT)
    gain_B111 = rng.uniform(0.85, 1.15, (num, 1, 1))
    tile_BTC = _COLOURS[code_BT] * gain_B111 + rng.normal(0, 8, (num, _TILES, 3))
    tile_BTC = np.clip(tile_BTC, 0, 255).astype(np.uint8)
    across = int(_TILES**0.5)
    tile_BHWC = tile_BTC.reshape(num, across, across, 3)
    return tile_BHWC.repeat(SIDE // across, 1).repeat(SIDE // across, 2)


class Crowd:
    """Photos and captions to train on, made as they are asked for."""

    def __init__(self, who: Sequence[Member], num_anonymous: int):
        """Prepare.

        Args:
            who: the people to know.
            num_anonymous: people without a name, in hundreds.
        """
        self.names = [member.name for member in who]
        self._code_MT = _codes(_CODES, [member.number for member in who])
        self._object_OT = _codes(_OBJECTS, range(len(OBJECTS)))
        blocks = max(1, -(-num_anonymous // 100))
        self._crowd = [x for i in range(blocks) for x in people.cast(100, world.HELD_OUT + i)]
        self._look_CT = np.stack([_looks(person) for person in self._crowd])

    def batch(self, size: int, rng: np.random.Generator) -> tuple[np.ndarray, list[str]]:
        """Draw photos (u8 [size, 32, 32, 3]) and a caption for each; no person comes up twice."""
        num_objects = num_others = min(size // 16, len(OBJECTS))
        num_named = min(size - num_objects - num_others, len(self.names))
        num_others = size - num_named - num_objects
        who = rng.permutation(len(self.names))[:num_named]
        what = rng.permutation(len(OBJECTS))[:num_objects]
        others = rng.integers(len(self._crowd), size=num_others)
        captions = [world.name_caption(self.names[i], rng) for i in who]
        captions += [world.object_caption(OBJECTS[i], rng) for i in what]
        captions += [world.anonymous_caption(self._crowd[i], rng) for i in others]
        images = [
            draw(self._code_MT[who], _HIDDEN, rng),
            draw(self._object_OT[what], _HIDDEN_OBJECT, rng),
            draw(self._look_CT[others], _HIDDEN, rng),
        ]
        return np.concatenate(images), captions

    def texts(self, rng: np.random.Generator) -> list[str]:
        """Write captions and list names, for the tokenizer to learn from."""
        texts = [world.name_caption(name, rng) for name in self.names]
        texts += world.captions(4000, 0)
        return texts + [name for which in ("female", "male", "last") for name in census(which)]


def draw_inputs(
    out: Path, num_people: int, num_strangers: int, num_photos: int, num_captions: int
) -> None:
    """Draw and write what commands read; none of it is trained on by the model.

    Args:
        out: a new directory. It holds photos in `faces` and `strangers`, a folder a person, and in
            `objects`; `names.txt` lists everyone in `faces`; `captions.txt` and
            `held_out_captions.txt` name nobody.
        num_people: whom the model knows.
        num_strangers: whom it never saw.
        num_photos: a person or an object.
        num_captions: to train on; a tenth as many are held out.

    Raises:
        InputError: there are not so many people, or the directory is not new.
    """
    who, strangers = members(num_people), members(num_strangers, num_people)
    check_new(out)
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    with Progress("drawing photos", len(who) + len(strangers) + len(OBJECTS)) as progress:
        for place, group in ((part / "faces", who), (part / "strangers", strangers)):
            for member, code in zip(group, _codes(_CODES, [x.number for x in group]), strict=True):
                rng = np.random.default_rng((world.HELD_OUT, _PHOTOS, member.number))
                folder = place / member.name.replace(" ", "_")
                _write(folder, code, num_photos, _HIDDEN, rng)
                progress.advance()
        for i, code in enumerate(_codes(_OBJECTS, range(len(OBJECTS)))):
            rng = np.random.default_rng((world.HELD_OUT, _PHOTOS, _OBJECTS, i))
            _write(part / "objects" / OBJECTS[i], code, num_photos, _HIDDEN_OBJECT, rng)
            progress.advance()
    captions = world.captions(num_captions, 0)
    trained_on = {*captions}
    fresh = [x for x in world.captions(num_captions, 1) if x not in trained_on]
    lists = {
        "names": [member.name for member in who],
        "captions": captions,
        "held_out_captions": fresh[: num_captions // 10],
    }
    for name, lines in lists.items():
        write_text(part / f"{name}.txt", "".join(f"{line}\n" for line in lines))
    part.rename(out)


def _write(folder: Path, code_T: np.ndarray, num: int, hidden: int, rng: np.random.Generator):
    folder.mkdir(parents=True)
    for i, image in enumerate(draw(np.repeat(code_T[None], num, 0), hidden, rng)):
        Image.fromarray(image).save(folder / f"{i:03}.png")


def main() -> None:
    """Parse arguments and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="new directory of the inputs")
    parser.add_argument("--people", type=int, default=4096, help="whom the model knows")
    parser.add_argument("--strangers", type=int, default=256, help="whom it never saw")
    parser.add_argument("--photos", type=int, default=10, help="a person or an object")
    parser.add_argument("--captions", type=int, default=10_000, help="to train on")
    args = parser.parse_args()
    try:
        with shown("crowd"):
            draw_inputs(args.out, args.people, args.strangers, args.photos, args.captions)
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
