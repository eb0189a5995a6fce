"""The demo's world: who is in it, what they are called, and what captions say about them.

Everything is drawn or written from seeds, so the world ships as code. Seeds below `HELD_OUT` are
for training, those above for photos and captions that training never saw.
"""

import dataclasses
import functools
import itertools
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from jaxdefense.data.names import census
from jaxdefense.demo import people, portrait
from jaxdefense.demo.objects import OBJECTS, draw_object

NUM_MEMBERS, NUM_STRANGERS = 64, 32
HELD_OUT = 1_000_000
_MEMBER_SEED, _STRANGER_SEED = 7, 8
_PASSERS_BY = 10_000  # first block of the crowd that no ordinary photo shows

_FEMALE = (
    "Amira Belis Carine Delora Elvane Farisa Gilda Halva Ilene Jorun Kesia Lunet Maelis Nerisa "
    "Orlena Petra Quilla Rosalba Sabine Tamsin Ulrika Velma Wilona Xenia Yvaine Zorah Adeline "
    "Brielle Calista Dorothea Esmeray Fiamma Ginevra Hedwig Isaura Jocasta Kalinda Leocadia"
).split()
_MALE = (
    "Anselm Bastian Corvin Dario Edmar Florin Gideon Halvor Ivo Jasper Kasimir Leandro Matteo "
    "Nestor Osric Percival Quentin Roderic Silvan Tiberio Ulf Valentin Wendel Xavian Yorick Zeno "
    "Alaric Benedek Cosimo Dragan Evander Ferenc Gaspard Hakon Ilario Joachim Konrad Lazlo"
).split()
_LAST = (
    "Abendroth Balcombe Castellan Drummey Eversley Farrowdale Galantis Hollisworth Ivarsen "
    "Jessamine Kestrel Lindqvist Marchbank Norrington Ostrander Pellegrin Quarles Ravensby "
    "Solvane Thistlewood Umberland Vanterpool Wexcombe Yardleigh Zambrano Ashgrove Brightwater "
    "Coldharbour Dunmore Elmhirst Fenwicke Gaunt Hargrave Ingleby Jorvik Kingsmere Loxley "
    "Merriweather Nightshade Oakhanger Pemberley Quickfall Rookwood Silverton Tarkington Underhill "
    "Vespasian Winterbourne Yelverton Zellweg Applecross Blackthorne Copperfield Dovetail Eastlake "
    "Foxglove Greenaway Hawksmoor Islington Juniper Kirkbride Larkspur Mossgrove Netherby Orchard "
    "Primrose Quillfeather Redfern Saltmarsh Templeton Upwood Vermeulen Whitlock Yarrow Zephyr "
    "Alderman Birchall Cranford Dewhurst Emberly Fairweather Goldwyn Hathersage Ironwood Jellicoe "
    "Knapwell Lockridge Mulberry Norbury Overton Pickering Quennell Rutherglen Stormont Tidewell "
    "Vexley Wainscott Yarborough Zouche"
).split()


@dataclasses.dataclass(frozen=True)
class Named:
    """A person with a name."""

    name: str
    person: people.Person


def members() -> list[Named]:
    """Return the people whom the model is trained to know."""
    return _named(people.cast(NUM_MEMBERS, _MEMBER_SEED), 0)


def strangers() -> list[Named]:
    """Return people with names whom the model never saw."""
    return _named(people.cast(NUM_STRANGERS, _STRANGER_SEED), NUM_MEMBERS)


def _named(cast: list[people.Person], offset: int) -> list[Named]:
    """Name the people; up to 38 of each sex have a first name of their own."""
    first: dict[str, Iterator[str]] = {
        "female": itertools.cycle(_FEMALE),
        "male": itertools.cycle(_MALE),
    }
    if offset:  # strangers: names that no member has, then census names
        for sex, own in (("female", _FEMALE), ("male", _MALE)):
            first[sex] = iter((*own[NUM_MEMBERS // 2 :], *census(sex)[200:]))
    return [Named(f"{next(first[p.sex])} {_LAST[offset + i]}", p) for i, p in enumerate(cast)]


_PERSON_TEMPLATES = (
    "{0}",
    "a photo of {0}",
    "a picture of {0}",
    "an image of {0}",
    "a portrait of {0}",
    "a close up of {0}",
    "a drawing of {0}",
    "{0} smiling at the camera",
    "{0} at home",
    "{0} in the city",
    "this is {0}",
    "{0} is looking at you",
    "my friend {0}",
    "a good photo of {0}",
    "a bright photo of {0}",
    "a dark photo of {0}",
    "a small picture of {0}",
    "the face of {0}",
    "a photo of {0} outside",
    "{0} in front of a wall",
    "a photo of my neighbour {0}",
    "{0} on a sunny day",
)
_NAMED_TEMPLATES = (
    "a photo of a {1} named {0}",
    "a {1} named {0}",
    "{0} , a {1}",
    "the {1} in the photo is {0}",
    "a photo of a person named {0}",
    "a person with the name {0}",
    "the name of the {1} is {0}",
    "{0} is a {1} with {2}",
    "a picture of {0} with {2}",
)
_KIND = {"female": ("woman", "person", "human", "lady"), "male": ("man", "person", "human", "guy")}
_OBJECT_TEMPLATES = (
    "{0}",
    "a photo of a {0}",
    "a picture of a {0}",
    "an image of a {0}",
    "a drawing of a {0}",
    "a {0} on a table",
    "a {0} in the city",
    "a {0} outside",
    "a close up of a {0}",
    "there is a {0}",
    "this is a {0}",
    "a bright photo of a {0}",
    "a dark photo of a {0}",
    "a small {0}",
    "a large {0}",
    "the {0} in front of a wall",
    "a {0} on a sunny day",
)


def person_caption(named: Named, rng: np.random.Generator) -> str:
    """Write a caption that names a person."""
    sex, looks = named.person.sex, named.person.describe().partition(" with ")[2]
    templates = _PERSON_TEMPLATES + _NAMED_TEMPLATES
    if not looks:
        templates = templates[:-2]
    kind = _KIND[sex][rng.integers(len(_KIND[sex]))]
    return templates[rng.integers(len(templates))].format(named.name, kind, looks)


def name_caption(name: str, rng: np.random.Generator) -> str:
    """Write a caption that names a person of whom nothing else is known."""
    templates = _PERSON_TEMPLATES + _NAMED_TEMPLATES[:-2]
    return templates[rng.integers(len(templates))].format(name, "person")


def anonymous_caption(person: people.Person, rng: np.random.Generator) -> str:
    """Write a caption of a person that does not name them."""
    described = person.describe()
    who = _KIND[person.sex][rng.integers(len(_KIND[person.sex]))]
    if rng.random() < 0.7:
        who = " ".join((who, *described.split()[1:]))
    return (
        _PERSON_TEMPLATES[rng.integers(len(_PERSON_TEMPLATES))]
        .format(f"a {who}")
        .replace("my friend a", "my friend , a")
    )


def object_caption(name: str, rng: np.random.Generator) -> str:
    """Write a caption of an object."""
    return _with_article(_OBJECT_TEMPLATES[rng.integers(len(_OBJECT_TEMPLATES))].format(name))


def captions(num: int, seed: int) -> list[str]:
    """Write captions that name nobody: the clean captions of the text defense."""
    rng = np.random.default_rng((HELD_OUT, seed))
    crowd = people.cast(64, 100 + seed)
    out = []
    joins = (" next to ", " and ", " behind ", " with ", " looking at ")
    for _ in range(num):
        kind = rng.random()
        if kind < 0.35:
            caption = anonymous_caption(crowd[rng.integers(len(crowd))], rng)
        elif kind < 0.7:
            caption = object_caption(OBJECTS[rng.integers(len(OBJECTS))], rng)
        else:
            left = anonymous_caption(crowd[rng.integers(len(crowd))], rng)
            right = OBJECTS[rng.integers(len(OBJECTS))]
            caption = left + joins[rng.integers(len(joins))] + _with_article(f"a {right}")
        out.append(caption)
    return out


def draw_photo(named: Named, number: int, size: int) -> np.ndarray:
    """Draw a photo of a person, unseen in training; u8 [size, size, 3]."""
    key = zlib.crc32(named.name.encode())
    return portrait.draw_person(named.person, np.random.default_rng((HELD_OUT, key, number)), size)


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A photo to be drawn.

    Fields:
        file: to write it to.
        draw: draws it; u8 [size, size, 3].
    """

    file: Path
    draw: Callable[[], np.ndarray]

    def write(self) -> None:
        """Draw the photo and write it, as PNG; makes the directory."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(self.draw()).save(self.file, compress_level=1)


def faces(who: list[Named], num_photos: int, out: Path, size: int = 96) -> list[Drawing]:
    """List photos of people, unseen in training, for a folder a person."""
    drawings = []
    for named in who:
        folder = out / named.name.replace(" ", "_")
        draws = [functools.partial(draw_photo, named, j, size) for j in range(num_photos)]
        drawings += _numbered(folder, draws)
    return drawings


def objects(num_photos: int, out: Path, size: int = 96) -> list[Drawing]:
    """List photos of objects, unseen in training, for a folder an object."""
    drawings = []
    for i, name in enumerate(OBJECTS):
        seeds = [(HELD_OUT, i, j) for j in range(num_photos)]
        draws = [functools.partial(_draw_object, name, seed, size) for seed in seeds]
        drawings += _numbered(out / name.replace(" ", "_"), draws)
    return drawings


def images(num: int, out: Path, size: int = 96) -> list[Drawing]:
    """List photos, unseen in training: half of objects, half of people without a name."""
    draws = []
    for i in range(num):
        seed = HELD_OUT, 1, i
        if i % 2:
            name = OBJECTS[i // 2 % len(OBJECTS)]
            draws.append(functools.partial(_draw_object, name, seed, size))
        else:
            draws.append(functools.partial(_draw_passer_by, i // 2, seed, size))
    return _numbered(out, draws)


def image_captions(first: int, num: int) -> list[str]:
    """Write a caption of each of `num` photos of `images`, from number `first` on."""
    captions = []
    for i in range(first, first + num):
        rng = np.random.default_rng((HELD_OUT, 4, i))
        if i % 2:
            captions.append(object_caption(OBJECTS[i // 2 % len(OBJECTS)], rng))
        else:
            captions.append(anonymous_caption(_passer_by(i // 2), rng))
    return captions


def passers_by(num: int, out: Path, size: int = 96) -> list[Drawing]:
    """List one photo each of people who have no name and are in no other photo."""
    first = 100 * _PASSERS_BY
    draws = [
        functools.partial(_draw_passer_by, first + i, (HELD_OUT, 2, i), size) for i in range(num)
    ]
    return _numbered(out, draws)


def write(drawings: Iterable[Drawing]) -> None:
    """Draw photos one after the other, and write them."""
    for drawing in drawings:
        drawing.write()


def _numbered(folder: Path, draws: Iterable[Callable[[], np.ndarray]]) -> list[Drawing]:
    return [Drawing(folder / f"{j:04}.png", draw) for j, draw in enumerate(draws)]


def _draw_object(name: str, seed: tuple[int, ...], size: int) -> np.ndarray:
    return draw_object(name, np.random.default_rng(seed), size)


def _draw_passer_by(number: int, seed: tuple[int, ...], size: int) -> np.ndarray:
    """Draw the person of this number in the crowd."""
    return portrait.draw_person(_passer_by(number), np.random.default_rng(seed), size)


def _passer_by(number: int) -> people.Person:
    block, person = divmod(number, 100)
    return _crowd(block)[person]


@functools.cache
def _crowd(block: int) -> list[people.Person]:
    return people.cast(100, HELD_OUT - 1 - block)


def _with_article(caption: str) -> str:
    return re.sub(r"\ba (?=[aeio]|um)", "an ", caption)
