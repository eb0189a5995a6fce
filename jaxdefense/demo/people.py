"""Drawn people: identity traits that stay, and photos in which all else varies.

A head is drawn in head units. The origin lies between the eyes and the top of the mouth, with x to
the right and y down. The chin is near y = 1 and the top of the skull near y = -1. Features of the
face are bent over a round head before the head is turned, so that turning the head shifts them.
"""

import dataclasses
import math

import numpy as np

from jaxdefense.demo import scenery
from jaxdefense.demo.scenery import (
    Sketch,
    box,
    clear,
    darker,
    ellipse,
    lighter,
    mix,
    ribbon,
    smooth,
)

SKINS = {
    "porcelain": (250, 220, 202),
    "fair": (252, 211, 182),
    "light": (242, 190, 150),
    "olive": (222, 174, 126),
    "tan": (204, 146, 102),
    "honey": (180, 118, 76),
    "brown": (148, 92, 60),
    "deep": (114, 70, 48),
    "dark": (86, 54, 42),
}
HAIR_COLOURS = {
    "black": (44, 38, 46),
    "brown": (104, 66, 42),
    "auburn": (134, 54, 36),
    "ginger": (222, 110, 40),
    "blond": (238, 196, 104),
    "grey": (158, 160, 168),
    "white": (238, 236, 232),
    "red": (196, 40, 44),
    "pink": (242, 122, 170),
    "blue": (66, 112, 214),
    "teal": (38, 160, 158),
    "purple": (128, 74, 172),
}
_HAIR_ODDS = (5, 5, 3, 4, 5, 3, 2, 2, 1.5, 1.2, 1.2, 1.2)
_NUM_NATURAL = 7  # the hair colours before "red" are not dyed
EYE_COLOURS = {
    "brown": (104, 58, 28),
    "blue": (52, 128, 220),
    "green": (62, 150, 76),
    "grey": (124, 142, 156),
    "amber": (196, 128, 30),
}
THING_COLOURS = {
    "black": (40, 38, 46),
    "red": (214, 48, 52),
    "blue": (44, 96, 206),
    "green": (40, 148, 84),
    "yellow": (248, 202, 56),
    "pink": (244, 116, 168),
    "purple": (126, 72, 176),
    "white": (244, 244, 240),
    "orange": (244, 132, 38),
    "teal": (34, 162, 166),
}
_FEMALE_HAIR = {
    "long straight": 4, "long wavy": 4, "bob": 3, "ponytail": 2.5, "bun": 3, "pigtails": 2,
    "pixie": 2, "afro": 2, "curly": 3, "braided": 2,
}  # fmt: skip
_MALE_HAIR = {
    "short": 3, "parted": 3, "quiff": 2.5, "spiky": 2.5, "curly": 2.5, "afro": 1.5,
    "bald": 2, "balding": 2, "long": 2, "buzzed": 2, "mohawk": 1.2,
}  # fmt: skip
_FRINGES = ("none", "parted", "straight", "swept")
_NOSES = ("button", "straight", "broad", "pointed")
_BEARDS = {"none": 4, "stubble": 1, "moustache": 2, "goatee": 2, "full": 2.5, "long": 1.2}
_GLASSES = {"none": 5, "round": 1.5, "square": 1.5, "cat-eye": 0.8}
_MARKS = {"none": 4, "freckles": 1.5, "mole": 1.2, "scar": 0.8, "rosy": 0.8}
_EARRINGS = {"none": 3, "hoop": 1.5, "stud": 1, "drop": 1.2}
_FEMALE_HEADWEAR = {"none": 6, "headband": 1.2, "beanie": 0.7, "flower": 0.8, "bow": 0.8,
                    "headscarf": 0.9}  # fmt: skip
_MALE_HEADWEAR = {"none": 6, "cap": 1.1, "beanie": 0.9, "hat": 0.7, "headband": 0.4, "turban": 0.5}
_COVERING = ("beanie", "headscarf", "hat", "cap", "turban")
_TALL_HAIR = ("afro", "bun", "mohawk", "quiff", "spiky", "curly")

_ON_FACE = 1.0
_BEHIND = -0.3
_NUM_CANDIDATES = 32
_FAR_ENOUGH = 0.8  # part of the best candidate's distance


@dataclasses.dataclass(frozen=True)
class Person:
    """All that makes one person look like that person; lengths are in head units."""

    sex: str  # "female" or "male"
    skin: str
    face_width: float
    jaw: float  # width of the jaw, as a part of the face's width
    chin: float  # how far down the chin reaches
    ear_size: float
    hair_style: str
    hair_colour: str
    fringe: str
    eye_colour: str
    eye_size: float
    eye_shape: float  # height over width
    eye_spacing: float
    eye_tilt: float  # how far the outer corner is raised
    brow_weight: float
    brow_tilt: float  # above 0 the outer end is raised: stern
    brow_height: float
    nose_shape: str
    nose_width: float
    nose_length: float
    mouth_width: float
    lip_fullness: float
    lip_redness: float
    beard: str
    glasses: str
    glasses_colour: str
    mark: str
    earrings: str
    earring_colour: str
    headwear: str
    headwear_colour: str

    def describe(self) -> str:
        """Describe what is visible: `woman with long wavy red hair and round glasses`."""
        parts = [self._describe_hair()]
        if self.glasses != "none":
            parts.append(f"{self.glasses} glasses")
        if self.beard != "none":
            parts.append(
                self.beard if self.beard in ("stubble", "moustache", "goatee")
                else f"{self.beard} beard"
            )  # fmt: skip
        if self.headwear not in ("none", "headscarf", "turban"):
            parts.append(f"{self.headwear_colour} {self.headwear}")
        if self.mark in ("freckles", "mole", "scar"):
            parts.append(self.mark)
        if self.earrings != "none":
            parts.append(f"{self.earrings} earrings")
        text = ""
        for count in range(1, len(parts) + 1):
            listed = " and ".join(p for p in (", ".join(parts[: count - 1]), parts[count - 1]) if p)
            longer = f"{'woman' if self.sex == 'female' else 'man'} with {listed}"
            if len(longer.split()) > 9:
                break
            text = longer
        return text

    def _describe_hair(self) -> str:
        if self.headwear in ("headscarf", "turban"):
            return f"{self.headwear_colour} {self.headwear}"
        if self.hair_style == "bald":
            return "bald head"
        if self.hair_style in ("ponytail", "bun", "pigtails", "afro", "quiff", "mohawk"):
            return f"{self.hair_colour} {self.hair_style}"
        style = {"bob": "bobbed", "pixie": "short"}.get(self.hair_style, self.hair_style)
        return f"{style} {self.hair_colour} hair"


def _choose(rng: np.random.Generator, odds: dict[str, float]) -> str:
    weights = np.cumsum(list(odds.values()))
    return list(odds)[int(np.searchsorted(weights, rng.random() * weights[-1], "right"))]


def _random_person(rng: np.random.Generator, sex: str) -> Person:
    female = sex == "female"
    headwear = _choose(rng, _FEMALE_HEADWEAR if female else _MALE_HEADWEAR)
    hair_style = _choose(rng, _FEMALE_HAIR if female else _MALE_HAIR)
    if headwear in _COVERING and hair_style in _TALL_HAIR:
        hair_style = "long straight" if female else "short"
    if headwear in ("flower", "bow", "headband") and hair_style in ("bald", "mohawk"):
        headwear = "none"
    fringe = _FRINGES[rng.integers(4)] if female else "none"
    earrings = _choose(rng, _EARRINGS)
    if headwear == "headscarf" or (not female and earrings == "drop"):
        earrings = "none"
    if not female and rng.random() < 0.7:
        earrings = "none"
    face = rng.random(16)

    def span(index: int, low: float, high: float) -> float:
        return round(low + (high - low) * float(face[index]), 3)

    names = list(THING_COLOURS)
    beard = "none" if female else _choose(rng, _BEARDS)
    skin = list(SKINS)[rng.integers(len(SKINS))]
    # Beards and thin hair must not look like skin, and a dyed beard hardly looks like a beard.
    bare = beard != "none" or hair_style in ("balding", "buzzed", "mohawk")
    natural = len(_HAIR_ODDS) if beard == "none" else _NUM_NATURAL
    hair_odds = {
        name: odds
        for name, odds in list(zip(HAIR_COLOURS, _HAIR_ODDS, strict=True))[:natural]
        if math.dist(HAIR_COLOURS[name], SKINS[skin]) > (75 if bare else 40)
    }
    return Person(
        sex=sex,
        skin=skin,
        face_width=span(0, 0.7, 0.9),
        jaw=span(1, 0.62, 0.8) if female else span(1, 0.7, 0.96),
        chin=span(2, 0.9, 1.04) if female else span(2, 0.94, 1.12),
        ear_size=span(3, 0.12, 0.22),
        hair_style=hair_style,
        hair_colour=_choose(rng, hair_odds),
        fringe=fringe,
        eye_colour=list(EYE_COLOURS)[rng.integers(len(EYE_COLOURS))],
        eye_size=span(4, 0.19, 0.26) if female else span(4, 0.16, 0.23),
        eye_shape=span(5, 0.62, 0.95),
        eye_spacing=span(6, 0.33, 0.43),
        eye_tilt=span(7, -0.16, 0.24),
        brow_weight=span(8, 0.05, 0.1) if female else span(8, 0.08, 0.17),
        brow_tilt=span(9, -0.08, 0.12),
        brow_height=span(10, 0.27, 0.36),
        nose_shape=_NOSES[rng.integers(4)],
        nose_width=span(11, 0.11, 0.2),
        nose_length=span(12, 0.24, 0.38),
        mouth_width=span(13, 0.22, 0.36),
        lip_fullness=span(14, 0.6, 1.3) if female else span(14, 0.3, 0.8),
        lip_redness=span(15, 0.25, 1.0) if female else span(15, 0.0, 0.25),
        beard=beard,
        glasses=_choose(rng, _GLASSES),
        glasses_colour=names[rng.integers(len(names))],
        mark=_choose(rng, _MARKS),
        earrings=earrings,
        earring_colour=["yellow", "white", "red", "teal"][rng.integers(4)],
        headwear=headwear,
        headwear_colour=names[rng.integers(len(names))],
    )


def _trait_vector(person: Person) -> np.ndarray:
    """Return a vector whose L1 distances measure how different two people look."""
    skin = np.array(SKINS[person.skin]) / 255
    hair = np.array(HAIR_COLOURS[person.hair_colour]) / 255
    style = np.zeros(len(_FEMALE_HAIR | _MALE_HAIR))
    covered = person.headwear in ("headscarf", "turban")
    if person.hair_style == "bald" or covered:
        hair = skin
    if not covered:
        style[list(_FEMALE_HAIR | _MALE_HAIR).index(person.hair_style)] = 0.6

    def kind(value: str, values, weight: float) -> np.ndarray:
        return weight * np.array([value == name for name in values if name != "none"], float)

    def tint(present: bool, colour: str, weight: float) -> np.ndarray:
        return weight * present * np.array(THING_COLOURS[colour]) / 255

    numbers = np.array(
        [
            2 * person.face_width, person.jaw, person.chin, 6 * person.eye_size, person.eye_shape,
            4 * person.eye_spacing, person.eye_tilt, 5 * person.brow_weight, 2 * person.brow_tilt,
            2 * person.nose_width, person.nose_length, 2 * person.mouth_width,
            0.5 * person.lip_fullness, 0.5 * person.lip_redness,
        ]
    )  # fmt: skip
    return np.concatenate(
        [
            1.2 * skin, hair, style, numbers,
            kind(person.eye_colour, EYE_COLOURS, 0.15), kind(person.fringe, _FRINGES, 0.15),
            kind(person.beard, _BEARDS, 0.5), kind(person.glasses, _GLASSES, 0.3),
            tint(person.glasses != "none", person.glasses_colour, 0.15),
            kind(person.mark, _MARKS, 0.2), kind(person.nose_shape, _NOSES, 0.1),
            kind(person.headwear, _FEMALE_HEADWEAR | _MALE_HEADWEAR, 0.25),
            tint(person.headwear != "none", person.headwear_colour, 0.4),
            kind(person.earrings, _EARRINGS, 0.15),
        ]
    )  # fmt: skip


def cast(num_people: int, seed: int) -> list[Person]:
    """Make people who all look different, women and men in turn.

    Each person is chosen, out of many random ones, for looking unlike the people chosen before. So
    a shorter cast of the same seed is the start of a longer one.
    """
    rng = np.random.default_rng(seed)
    people: list[Person] = []
    chosen = np.zeros((0, 0))
    for index in range(num_people):
        sex = "male" if index % 2 else "female"
        pool = [_random_person(rng, sex) for _ in range(_NUM_CANDIDATES)]
        vectors = np.stack([_trait_vector(person) for person in pool])
        best = 0
        if index:
            distances = np.abs(vectors[:, None] - chosen[None]).sum(-1).min(1)
            # The first that is far enough: always taking the farthest would give nearly
            # everyone glasses and a hat.
            best = int((distances >= _FAR_ENOUGH * distances.max()).argmax())
        people.append(pool[best])
        chosen = np.concatenate([chosen.reshape(-1, vectors.shape[1]), vectors[best : best + 1]])
    return people


# ---- one photo


@dataclasses.dataclass(frozen=True)
class _Pose:
    """All that changes from photo to photo, except the scenery."""

    x: float
    y: float
    scale: float
    tilt: float
    yaw: float
    pitch: float
    mirror: bool
    light: float  # -1 left to 1 right, before mirroring
    smile: float
    mouth_open: float
    brow_raise: float
    lids: float  # 0 closed to 1 open
    gaze: tuple[float, float]


def _random_pose(rng: np.random.Generator) -> _Pose:
    mouth = rng.random()
    mouth_open = 0.0 if mouth < 0.6 else rng.uniform(0.35, 1.0)
    smile = rng.uniform(-0.1, 1.0) if mouth < 0.6 else rng.uniform(0.2, 1.0)
    lids = 0.0 if rng.random() < 0.04 else rng.uniform(0.72, 1.0)
    return _Pose(
        x=0.5 + rng.uniform(-0.06, 0.06),
        y=0.49 + rng.uniform(-0.04, 0.04),
        scale=rng.uniform(0.265, 0.325),
        tilt=float(np.clip(rng.normal(0, 0.1), -0.21, 0.21)),
        yaw=float(np.clip(rng.normal(0, 0.22), -0.38, 0.38)),
        pitch=float(np.clip(rng.normal(0, 0.06), -0.12, 0.12)),
        mirror=bool(rng.random() < 0.5),
        light=rng.uniform(-1, 1),
        smile=smile,
        mouth_open=mouth_open,
        brow_raise=rng.uniform(-0.02, 0.06),
        lids=lids,
        gaze=(rng.uniform(-0.25, 0.25), rng.uniform(-0.1, 0.15)),
    )


def _place_head(person: Person, pose: _Pose) -> scenery.Place:
    neck = 1.0

    def place(points, depths, bends):
        x, y = points[:, 0], points[:, 1]
        inside = 1 - (x / (1.08 * person.face_width)) ** 2 - (y / 1.2) ** 2
        depth = depths + bends * 0.75 * np.sqrt(np.maximum(inside, 0))
        turned = x * np.cos(pose.yaw) + depth * np.sin(pose.yaw)
        if pose.mirror:
            turned = -turned
        below = y + depth * np.sin(pose.pitch) - neck
        cos, sin = np.cos(pose.tilt), np.sin(pose.tilt)
        return np.stack(
            [
                pose.x + pose.scale * (turned * cos - below * sin),
                pose.y + pose.scale * (turned * sin + below * cos + neck),
            ],
            1,
        )

    return place


def _both(right) -> np.ndarray:
    """Mirror a right half, listed from top to bottom, into a closed outline."""
    right = np.asarray(right, float)
    return np.concatenate([right, right[::-1] * (-1, 1)])


def _face_outline(person: Person) -> np.ndarray:
    w, jaw, chin = person.face_width, person.jaw, person.chin
    right = [
        (0.3 * w, -1.0), (0.78 * w, -0.74), (0.98 * w, -0.3), (w, 0.1),
        ((0.4 + 0.6 * jaw) * w, 0.48), (0.96 * jaw * w, 0.62 + 0.12 * (chin - 1)),
        (0.62 * jaw * w, 0.85 * chin), (0.25 * jaw * w, 0.99 * chin),
    ]  # fmt: skip
    return smooth(_both(right))


def _cap(w: float, side: float, top: float, low: float = 0.12, num_points: int = 9) -> np.ndarray:
    """Return the outer edge of hair, from the left ear over the top to the right one."""
    angle = np.linspace(np.pi, 0, num_points)
    points = np.stack([-np.cos(np.pi - angle), -np.sin(angle)], 1)
    points = points * (w + side, 0.95 + top) + (0, -0.08)
    ends = np.array([(-(w + side * 0.6), low), (w + side * 0.6, low)])
    return np.concatenate([ends[:1], points, ends[1:]])


_HAIRLINES = {  # from the right temple to the left one; x in face widths
    "none": [(0.96, 0.1), (0.86, -0.25), (0.74, -0.52), (0.4, -0.68), (0, -0.7),
             (-0.4, -0.68), (-0.74, -0.52), (-0.86, -0.25), (-0.96, 0.1)],
    "parted": [(0.97, 0.3), (0.9, -0.1), (0.66, -0.42), (0.3, -0.66), (0.03, -0.86),
               (-0.3, -0.66), (-0.66, -0.42), (-0.9, -0.1), (-0.97, 0.3)],
    "straight": [(0.97, 0.3), (0.88, -0.05), (0.84, -0.38), (0.45, -0.43), (0, -0.45),
                 (-0.45, -0.43), (-0.84, -0.38), (-0.88, -0.05), (-0.97, 0.3)],
    "swept": [(0.97, 0.3), (0.9, -0.2), (0.74, -0.55), (0.5, -0.82), (0.1, -0.62),
              (-0.35, -0.46), (-0.8, -0.34), (-0.92, -0.1), (-0.97, 0.3)],
    "high": [(0.98, 0.12), (0.9, -0.25), (0.78, -0.6), (0.45, -0.84), (0, -0.8),
             (-0.45, -0.84), (-0.78, -0.6), (-0.9, -0.25), (-0.98, 0.12)],
}  # fmt: skip


def _tuft(points, count: int, out: float) -> np.ndarray:
    """Return the centres of curls along a curve."""
    curve = smooth(points, closed=False, steps=8)
    picks = np.linspace(0, len(curve) - 1, count).astype(int)
    return curve[picks] * (1 + out)


def _mane(person: Person, bottom: float, spread: float, wave: float) -> np.ndarray:
    """Return the outline of hair that hangs behind the head down to `bottom`."""
    w = person.face_width
    down = np.linspace(0.2, bottom, 6)
    edge = w + 0.16 + spread * (down / bottom) ** 0.8 + wave * np.sin(np.arange(6) * 2.4)
    right = [(0.25 * w, -1.1), (0.8 * w + 0.1, -0.84), (w + 0.16, -0.35)]
    right += list(zip(edge, down, strict=True)) + [(w * 0.7, bottom + 0.06)]
    return smooth(_both(right))


def _hair_behind(person: Person, sketch: Sketch) -> None:
    style, w = person.hair_style, person.face_width
    hair = HAIR_COLOURS[person.hair_colour]
    shade = darker(hair, 0.3)
    if person.headwear in ("headscarf", "turban") or style in ("bald", "short", "buzzed"):
        return
    if style in ("long straight", "long", "braided"):
        bottom = 1.65 if style == "long straight" else 1.2
        sketch.add(_mane(person, bottom, 0.08, 0.0), shade, _BEHIND)
    elif style == "long wavy":
        sketch.add(_mane(person, 1.55, 0.25, 0.07), shade, _BEHIND)
    elif style == "bob":
        sketch.add(_mane(person, 0.8, 0.2, 0.0), shade, _BEHIND)
    elif style == "afro":
        sketch.add(ellipse(0, -0.42, w + 0.52, 1.02), shade, _BEHIND)
        for angle in np.linspace(-0.55, np.pi + 0.55, 17):
            x, y = (w + 0.42) * np.cos(angle), -0.42 - 0.94 * np.sin(angle)
            sketch.add(ellipse(x, y, 0.17, num_points=12), shade, _BEHIND)
    elif style == "curly" and person.sex == "female":
        sketch.add(_mane(person, 0.9, 0.1, 0.0), shade, _BEHIND)
        for y in np.linspace(-0.6, 1.05, 7):
            for side in (-1, 1):
                x = side * (w + 0.22 + 0.14 * np.sin(1.7 * (y + 0.6)))
                sketch.add(ellipse(x, y, 0.21, num_points=14), shade, _BEHIND)
    elif style == "ponytail":
        tail = [(0.3, -0.75), (w + 0.5, -0.6), (w + 0.66, 0.1), (w + 0.5, 0.95), (w + 0.3, 0.5),
                (w + 0.2, -0.1)]  # fmt: skip
        sketch.add(smooth(tail), shade, _BEHIND)
        sketch.add(smooth(np.array(tail) * (0.97, 0.9)), hair, _BEHIND)
    elif style == "bun":
        sketch.add(ellipse(0, -1.22, 0.42, 0.36), shade, _BEHIND)
        sketch.add(ellipse(-0.04, -1.25, 0.36, 0.3), hair, _BEHIND)
        sketch.add(ellipse(-0.1, -1.33, 0.18, 0.1), clear(lighter(hair, 0.4), 0.6), _BEHIND)
    elif style == "pigtails":
        for side in (-1, 1):
            tail = [(0.9 * w, -0.5), (w + 0.42, -0.52), (w + 0.62, 0.0), (w + 0.5, 0.7),
                    (w + 0.3, 0.98), (w + 0.2, 0.4), (w + 0.12, -0.1)]  # fmt: skip
            tail = np.array(tail) * (side, 1)
            sketch.add(smooth(tail), shade, _BEHIND)
            sketch.add(smooth(tail * (0.97, 0.93)), hair, _BEHIND)
            sketch.add(ellipse(side * (w + 0.14), -0.46, 0.12), (236, 84, 120), _BEHIND)


def _hair_in_front(person: Person, sketch: Sketch) -> None:
    style, w, fringe = person.hair_style, person.face_width, person.fringe
    hair = HAIR_COLOURS[person.hair_colour]
    if person.headwear in ("headscarf", "turban") or style == "bald":
        if style == "bald" and person.headwear == "none":
            sketch.add(ellipse(-0.25, -0.78, 0.24, 0.1), clear((255, 255, 255), 0.28), 0, _ON_FACE)
        return
    light, shade = lighter(hair, 0.32), darker(hair, 0.28)
    side, top, low, hairline = 0.12, 0.16, 0.2, fringe
    if style in ("short", "spiky", "curly", "afro", "quiff") and person.sex == "male":
        side, top, low, hairline = 0.06, 0.13, 0.1, "none"
    elif style == "buzzed":
        side, top, low, hairline = 0.02, 0.05, 0.08, "none"
    elif style == "parted":
        side, top, low, hairline = 0.08, 0.2, 0.1, "swept"
    elif style == "pixie":
        side, top, low = 0.09, 0.16, 0.12
        hairline = "swept" if fringe in ("none", "parted") else fringe
    elif style in ("bun", "ponytail") and fringe == "straight":
        hairline = "straight"
    elif style == "long":
        hairline = "parted"
    elif style in ("mohawk", "balding"):
        hairline = "high"

    line = smooth(np.array(_HAIRLINES[hairline]) * (w, 1), closed=False)
    if style in ("long straight", "long wavy", "long", "bob", "curly") and person.sex == "female":
        low = 0.45
    if style == "balding":
        for sign in (-1, 1):
            patch = [(0.78 * w, -0.52), (w + 0.1, -0.45), (w + 0.17, -0.1), (w + 0.05, 0.22),
                     (0.95 * w, 0.1), (0.9 * w, -0.2)]  # fmt: skip
            sketch.add(smooth(np.array(patch) * (sign, 1)), hair)
        sketch.add(ellipse(-0.2, -0.76, 0.24, 0.1), clear((255, 255, 255), 0.28), 0, _ON_FACE)
        return
    if style == "mohawk":
        crest = [(-0.24, -0.62), (-0.3, -1.1), (-0.22, -1.5), (0, -1.62), (0.22, -1.5),
                 (0.3, -1.1), (0.24, -0.62), (0, -0.55)]  # fmt: skip
        cap = np.concatenate([smooth(_cap(w, 0.01, 0.04, 0.05), closed=False), line])
        sketch.add(cap, clear(darker(hair, 0.2), 0.35), 0, _ON_FACE)
        sketch.add(smooth(crest), shade, 0.12, _ON_FACE)
        sketch.add(smooth(np.array(crest) * (0.75, 0.97)), hair, 0.12, _ON_FACE)
        return

    # Hair shades the forehead below it.
    sketch.add(ribbon(line + (0, 0.05), 0.12), clear((60, 20, 20), 0.16), 0, _ON_FACE)
    outer = smooth(_cap(w, side, top, low), closed=False)
    cap = np.concatenate([outer, line])
    if style == "buzzed":
        sketch.add(cap, clear(hair, 0.72), 0, _ON_FACE)
        return
    sketch.add(cap, hair, 0, _ON_FACE)
    if style == "spiky":
        angle = np.linspace(np.pi * 0.98, np.pi * 0.02, 15)
        reach = np.where(np.arange(15) % 2, 0.34, 0.04)
        spikes = np.stack([(w + reach) * np.cos(angle), -0.2 - (0.84 + reach) * np.sin(angle)], 1)
        sketch.add(spikes, hair, 0, 0)
        zigzag = [(0.8 * w, -0.62), (0.55 * w, -0.45), (0.35 * w, -0.66), (0.08 * w, -0.44),
                  (-0.15 * w, -0.66), (-0.45 * w, -0.46), (-0.8 * w, -0.62),
                  (0, -0.95)]  # fmt: skip
        sketch.add(np.array(zigzag), hair, 0, _ON_FACE)
    elif style == "quiff":
        roll = [(-0.8 * w, -0.55), (-0.85 * w, -1.0), (-0.4 * w, -1.38), (0.3 * w, -1.45),
                (0.85 * w, -1.2), (0.9 * w, -0.8), (0.6 * w, -0.62), (0, -0.68)]  # fmt: skip
        sketch.add(smooth(roll), hair, 0.05, _ON_FACE)
        gleam = [(-0.5 * w, -0.95), (-0.1, -1.2), (0.5 * w, -1.2)]
        stroke = smooth(gleam, closed=False)
        sketch.add(ribbon(stroke, 0.08), clear(light, 0.6), 0.05, _ON_FACE)
    elif style in ("curly", "afro"):
        radius = 0.2 if person.sex == "female" or style == "afro" else 0.17
        rim = _cap(w, side - 0.04, top - 0.02, 0.1)
        for count, (x, y) in enumerate(_tuft(rim, 11, 0.02)):
            tone = hair if count % 2 else mix(hair, light, 0.16)
            sketch.add(ellipse(x, y, radius, num_points=14), tone, 0, _ON_FACE)
        inner = np.array([(-0.72 * w, -0.6), (-0.3 * w, -0.76), (0.3 * w, -0.76), (0.72 * w, -0.6)])
        for count, (x, y) in enumerate(_tuft(inner, 6, 0.0)):
            tone = mix(hair, light, 0.12) if count % 2 else hair
            sketch.add(ellipse(x, y, radius * 0.9, num_points=14), tone, 0, _ON_FACE)
        for x, y in ((-0.5 * w, -0.92), (0.05, -1.02), (0.45 * w, -0.86)):
            sketch.add(ellipse(x, y, 0.09, 0.05, 12), clear(light, 0.55), 0, _ON_FACE)
        return
    # A band of light and a few strands.
    arc = np.array([(-0.82 * w, -0.62), (-0.45 * w, -0.93), (0.1 * w, -1.0), (0.62 * w, -0.8)])
    taper = np.sin(np.linspace(0.1, np.pi - 0.1, 19)) * 0.12
    sketch.add(ribbon(smooth(arc, closed=False), taper), clear(light, 0.5), 0, _ON_FACE)
    root = {"parted": 0.03, "swept": 0.5}.get(hairline, 0.1) * w
    for x, y in ((-0.75 * w, -0.5), (-0.4 * w, -0.66), (0.72 * w, -0.52)):
        strand = smooth([(root, -1.02), ((root + x) / 2 * 1.15, -0.88), (x, y)], closed=False)
        sketch.add(ribbon(strand, 0.03), clear(shade, 0.5), 0, _ON_FACE)
    if style == "long straight" or style == "long wavy" or style == "long":
        reach = {"long straight": 1.5, "long wavy": 1.4, "long": 1.1}[style]
        wave = 0.08 if style == "long wavy" else 0.0
        for sign in (-1, 1):
            y = np.linspace(-0.3, reach, 7)
            middle = w + 0.06 + wave * np.sin(np.arange(7) * 2.2) + 0.05 * np.maximum(y, 0)
            lock = smooth(np.stack([sign * middle, y], 1), closed=False)
            width = np.linspace(0.2, 0.26, len(lock))
            width *= np.sqrt(np.clip((1.02 - np.linspace(0, 1, len(lock))) / 0.35, 0, 1))
            sketch.add(ribbon(lock, width), hair)
            sketch.add(ribbon(lock + (sign * 0.03, 0), width * 0.2), clear(light, 0.45))
    elif style == "bob":
        for sign in (-1, 1):
            lock = [(w - 0.02, -0.3), (w + 0.22, 0.0), (w + 0.24, 0.5), (w + 0.1, 0.82),
                    (w - 0.16, 0.84), (w - 0.08, 0.5), (w - 0.02, 0.1)]  # fmt: skip
            sketch.add(smooth(np.array(lock) * (sign, 1)), hair)
    elif style == "braided":
        for sign in (-1, 1):
            for count, y in enumerate(np.linspace(0.3, 1.55, 7)):
                tone = hair if count % 2 else mix(hair, light, 0.3)
                sketch.add(ellipse(sign * (w + 0.1), y, 0.15, 0.14, 14), tone)
            sketch.add(ellipse(sign * (w + 0.1), 1.66, 0.1, 0.07, 10), (236, 84, 120))


def _body(person: Person, sketch: Sketch, rng: np.random.Generator) -> None:
    """Draw neck, shoulders and clothes; the clothes are not part of the identity."""
    skin = SKINS[person.skin]
    female = person.sex == "female"
    neck = 0.36 if female else 0.46
    shoulder = 1.2 if female else 1.42
    cloth = scenery.hsv(rng.random(), rng.uniform(0.1, 0.8), rng.uniform(0.25, 0.95))
    second = scenery.hsv(rng.random(), rng.uniform(0.1, 0.8), rng.uniform(0.3, 0.95))
    style = ("crew", "vee", "collar", "turtle", "stripes", "hood", "jacket")[rng.integers(7)]

    outline = [(neck + 0.02, 1.1), (neck + 0.25, 1.24), (shoulder * 0.85, 1.38),
               (shoulder * 1.08, 1.75), (shoulder * 1.15, 2.6)]  # fmt: skip
    if style == "hood":
        hood = [(0.3, 0.95), (neck + 0.3, 0.98), (neck + 0.42, 1.25), (0.5, 1.7)]
        sketch.add(smooth(_both(hood)), darker(cloth, 0.35))
    column = np.array(
        [(-neck, 0.5), (neck, 0.5), (neck + 0.04, 1.25), (0, 1.65), (-neck - 0.04, 1.25)]
    )
    torso = smooth(_both(outline))
    sketch.add(torso, cloth)
    if style == "stripes":
        for y in (1.5, 1.75, 2.0):
            reach = shoulder * (1.0 if y < 1.6 else 1.09)
            sketch.add(box(-reach + 0.06, y, reach - 0.06, y + 0.11), second)
    sketch.add(column, mix(skin, darker(skin, 0.5), 0.25))
    throat = [(-neck, 0.6), (neck, 0.6), (neck, 1.02), (0, 1.24), (-neck, 1.02)]
    sketch.add(np.array(throat), clear((70, 20, 20), 0.25))
    if style == "vee":
        for sign in (-1, 1):
            sketch.add(ribbon([(sign * (neck + 0.05), 1.14), (0, 1.72)], 0.1), darker(cloth, 0.2))
    elif style == "collar" or style == "jacket":
        if style == "jacket":
            sketch.add(np.array([(-0.28, 1.3), (0.28, 1.3), (0.2, 2.6), (-0.2, 2.6)]), second)
        fill = lighter(cloth, 0.25) if style == "collar" else darker(cloth, 0.25)
        for sign in (-1, 1):
            flap = [(neck * 0.9, 1.02), (neck + 0.2, 1.2), (0.42, 1.62), (0.02, 1.42)]
            sketch.add(np.array(flap) * (sign, 1), fill)
    elif style == "turtle":
        roll = [(neck * 0.6, 0.96), (neck + 0.08, 0.98), (neck + 0.1, 1.28), (0.2, 1.36)]
        sketch.add(smooth(_both(roll)), lighter(cloth, 0.12))
    else:
        curve = smooth([(-neck - 0.06, 1.13), (0, 1.42), (neck + 0.06, 1.13)], closed=False)
        low = np.array([(neck + 0.06, 1.4), (0.2, 1.7), (-0.2, 1.7), (-neck - 0.06, 1.4)])
        sketch.add(np.concatenate([curve, low]), cloth)
        sketch.add(ribbon(curve, 0.09), darker(cloth, 0.22))
    for sign, tone in ((-1, 0.12), (1, 0.22)):
        fold = [(sign * shoulder * 0.72, 1.9), (sign * shoulder * 0.78, 2.6)]
        sketch.add(ribbon(fold, 0.06), clear((20, 10, 20), tone))


def _face(person: Person, sketch: Sketch, pose: _Pose) -> None:
    skin = SKINS[person.skin]
    shade = mix(darker(skin, 0.28), (150, 50, 40), 0.14)
    w = person.face_width
    for sign in (-1, 1):
        r = person.ear_size
        sketch.add(
            ellipse(sign * (w + 0.3 * r), 0.1, 0.75 * r, 1.15 * r, 18), mix(skin, shade, 0.4)
        )
        sketch.add(ellipse(sign * (w + 0.35 * r), 0.1, 0.4 * r, 0.7 * r, 14), mix(skin, shade, 0.9))
    outline = _face_outline(person)
    sketch.add(outline, shade)
    # Lit layers recede from the dark side, each a little further.
    away = np.maximum(0, -np.sign(pose.light) * outline[:, :1] / w) ** 2
    strength = 0.4 + 0.6 * abs(pose.light)
    for step, blend in ((0.05, 0.4), (0.11, 0.7), (0.18, 1.0)):
        pull = step * strength * away * np.sign(pose.light)
        rise = step * 0.35 * np.maximum(0, outline[:, 1:] - 0.3)
        sketch.add(outline + np.concatenate([pull, -rise], 1), mix(shade, skin, blend))
    # A lit cheekbone and forehead.
    gleam = lighter(skin, 0.5)
    glow = np.sign(pose.light) * 0.3 * w
    sketch.add(ellipse(glow, -0.5, 0.36, 0.22), clear(gleam, 0.22), 0, _ON_FACE)
    rosy = 0.5 if person.mark == "rosy" else 0.2
    for sign in (-1, 1):
        x = sign * 0.58 * w
        sketch.add(ellipse(x, 0.36, 0.2, 0.15), clear((232, 70, 70), 0.5 * rosy), 0, _ON_FACE)
        sketch.add(ellipse(x, 0.36, 0.13, 0.09), clear((232, 70, 70), 0.5 * rosy), 0, _ON_FACE)


def _marks(person: Person, sketch: Sketch) -> None:
    skin, w = SKINS[person.skin], person.face_width
    if person.mark == "freckles":
        spot = clear(mix(darker(skin, 0.45), (150, 60, 20), 0.4), 0.75)
        for x, y in ((0.2, 0.3), (0.33, 0.25), (0.45, 0.31), (0.57, 0.26), (0.28, 0.4),
                     (0.4, 0.42), (0.54, 0.4)):  # fmt: skip
            for sign in (-1, 1):
                sketch.add(ellipse(sign * x * w * 1.15, y, 0.032, num_points=8), spot, 0, _ON_FACE)
    elif person.mark == "mole":
        sketch.add(ellipse(0.44 * w, 0.46, 0.055, num_points=12), (64, 34, 30), 0, _ON_FACE)
    elif person.mark == "scar":
        tone = lighter(skin, 0.45) if sum(skin) < 480 else mix(skin, (196, 70, 76), 0.75)
        line = [(-0.62 * w, 0.16), (-0.5 * w, 0.34), (-0.46 * w, 0.54)]
        sketch.add(ribbon(line, 0.05), tone, 0, _ON_FACE)
        for x, y in ((-0.57 * w, 0.26), (-0.48 * w, 0.42)):
            sketch.add(
                ribbon([(x - 0.08, y + 0.03), (x + 0.08, y - 0.03)], 0.035), tone, 0, _ON_FACE
            )


_EYE_TOP = np.array([(-1.0, 0.18), (-0.55, -0.62), (0.1, -0.98), (0.7, -0.66), (1.0, 0.0)])
_EYE_BOTTOM = np.array([(1.0, 0.0), (0.6, 0.6), (-0.05, 0.82), (-0.65, 0.62), (-1.0, 0.18)])


def _eyes(person: Person, sketch: Sketch, pose: _Pose) -> None:
    skin = SKINS[person.skin]
    iris = EYE_COLOURS[person.eye_colour]
    lash = (38, 22, 24)
    wide, high = person.eye_size, person.eye_size * person.eye_shape
    lids = pose.lids
    female = person.sex == "female"
    for sign in (-1, 1):
        centre = np.array([sign * person.eye_spacing, 0.02])

        def at(points, sign=sign, centre=centre):
            x = points[:, 0]
            raised = points[:, 1] - person.eye_tilt * wide * x
            return np.stack([sign * wide * x, raised], 1) + centre

        if lids == 0:
            closed = smooth(_EYE_BOTTOM * (1, 0.45 * high), closed=False)
            sketch.add(ribbon(at(closed), 0.075), lash, 0, _ON_FACE)
            continue
        top = smooth(_EYE_TOP * (1, high * lids), closed=False)
        bottom = smooth(_EYE_BOTTOM * (1, high), closed=False)
        crease = clear(mix(darker(skin, 0.4), (120, 40, 60), 0.3), 0.55)
        sketch.add(ribbon(at(top * (1.05, 1) - (0, 0.05)), 0.1), crease, 0, _ON_FACE)
        sketch.add(at(np.concatenate([top, bottom])), (252, 250, 248), 0, _ON_FACE)
        ball = ellipse(0.06 + sign * pose.gaze[0], pose.gaze[1] * high, 0.86 * high / wide,
                       0.86 * high, 20)  # fmt: skip

        def inside(points, top=top, bottom=bottom):
            low = np.interp(points[:, 0], bottom[::-1, 0], bottom[::-1, 1])
            up = np.interp(points[:, 0], top[:, 0], top[:, 1])
            return np.stack([points[:, 0], np.clip(points[:, 1], up, low)], 1)

        middle = ball.mean(0)
        sketch.add(at(inside(ball)), darker(iris, 0.45), 0, _ON_FACE)
        sketch.add(at(inside(middle + 0.84 * (ball - middle))), iris, 0, _ON_FACE)
        sketch.add(at(inside(middle + 0.42 * (ball - middle))), (18, 12, 16), 0, _ON_FACE)
        gleam = at(middle[None] + (-0.22 * sign, -0.34 * high))[0]
        sketch.add(
            ellipse(gleam[0], gleam[1], 0.24 * high, num_points=10), (255, 255, 255), 0, _ON_FACE
        )
        taper = np.linspace(0.035, 0.08 if female else 0.06, len(top))
        sketch.add(ribbon(at(top), taper), lash, 0, _ON_FACE)
        if female:
            for x, y in ((1.0, 0.0), (0.82, -0.5 * high)):
                tip = [(x - 0.1, y), (x + 0.34, y - 0.36 * high)]
                sketch.add(ribbon(at(np.array(tip)), np.array([0.055, 0.015])), lash, 0, _ON_FACE)


def _brows(person: Person, sketch: Sketch, pose: _Pose) -> None:
    hair = HAIR_COLOURS[person.hair_colour]
    tone = darker(hair, 0.35) if sum(hair) < 560 else darker(hair, 0.22)
    y = -person.brow_height - pose.brow_raise
    for sign in (-1, 1):
        x = person.eye_spacing
        line = [(x - 0.21, y + 0.3 * person.brow_tilt), (x + 0.02, y - 0.07),
                (x + 0.24, y + 0.02 - person.brow_tilt)]  # fmt: skip
        curve = smooth(np.array(line) * (sign, 1), closed=False)
        taper = person.brow_weight * np.linspace(1.1, 0.45, len(curve))
        sketch.add(ribbon(curve, taper), tone, 0, _ON_FACE)


def _nose(person: Person, sketch: Sketch, pose: _Pose) -> None:
    skin = SKINS[person.skin]
    shade = mix(darker(skin, 0.3), (150, 40, 30), 0.16)
    width, tip = person.nose_width, 0.04 + person.nose_length
    dark = np.sign(pose.light) * -1
    raised = 0.16
    if person.nose_shape == "button":
        sketch.add(ellipse(0, tip, width, 0.75 * width, 20), shade, raised, _ON_FACE)
        sketch.add(ellipse(0, tip - 0.025, 0.9 * width, 0.66 * width, 20), mix(skin, shade, 0.15),
                   raised, _ON_FACE)  # fmt: skip
    elif person.nose_shape == "pointed":
        wedge = [(0.0, 0.0), (0.03, tip * 0.5), (dark * width * 1.25, tip + 0.03), (0, tip + 0.08),
                 (-dark * 0.06, tip)]  # fmt: skip
        sketch.add(np.array(wedge), shade, raised, _ON_FACE)
    else:
        bridge = [(dark * 0.07, 0.0), (dark * 0.055, tip * 0.55), (dark * 0.8 * width, tip)]
        line = smooth(bridge, closed=False)
        sketch.add(ribbon(line, np.linspace(0.02, 0.07, len(line))), clear(shade, 0.8), raised, 1)
        broad = 1.35 if person.nose_shape == "broad" else 0.85
        base = [(-broad * width, tip - 0.02), (-0.5 * broad * width, tip + 0.07), (0, tip + 0.09),
                (0.5 * broad * width, tip + 0.07), (broad * width, tip - 0.02)]  # fmt: skip
        thick = np.array([0.04, 0.07, 0.06, 0.07, 0.04])
        sketch.add(ribbon(base, thick), shade, raised, _ON_FACE)
        if person.nose_shape == "broad":
            for sign in (-1, 1):
                nostril = ellipse(sign * 0.55 * broad * width, tip + 0.04, 0.05, 0.03, 10)
                sketch.add(nostril, darker(shade, 0.4), raised, _ON_FACE)
    sketch.add(ellipse(-dark * 0.03, tip - 0.06, 0.35 * width, 0.25 * width, 12),
               clear(lighter(skin, 0.7), 0.6), raised, _ON_FACE)  # fmt: skip


_MOUTH_Y = 0.6


def _mouth(person: Person, sketch: Sketch, pose: _Pose) -> None:
    skin = SKINS[person.skin]
    natural = mix(darker(skin, 0.22), (190, 60, 60), 0.4)
    lip = mix(natural, (206, 30, 62), person.lip_redness)
    t = np.linspace(-1, 1, 11)
    width = person.mouth_width * (1 + 0.14 * max(0, pose.smile))
    round_ = 1 - t**2
    middle = _MOUTH_Y + 0.03 - 0.11 * pose.smile * (t**2 - 0.3)
    gap = 0.24 * pose.mouth_open * round_
    full = person.lip_fullness
    bow = 0.075 * full * round_ * (1 - 0.35 * np.exp(-((t / 0.22) ** 2)))

    def curve(y):
        return np.stack([width * t, y], 1)

    upper, lower = curve(middle - bow - 0.012), curve(middle + gap + 0.1 * full * round_ + 0.012)
    sketch.add(np.concatenate([upper, lower[::-1]]), lip, 0, _ON_FACE)
    shine = curve(middle + gap + 0.055 * full * round_)[4:7]
    if pose.mouth_open:
        inner = 0.93 * width * t
        hole = [np.stack([inner, middle], 1), np.stack([inner, middle + gap], 1)[::-1]]
        sketch.add(np.concatenate(hole), (104, 26, 36), 0, _ON_FACE)
        teeth = np.minimum(gap, 0.085)
        bite = [np.stack([inner, middle], 1), np.stack([inner, middle + teeth], 1)[::-1]]
        sketch.add(np.concatenate(bite), (250, 248, 244), 0, _ON_FACE)
    else:
        line = curve(middle) * (1.04, 1)
        sketch.add(ribbon(line, 0.035), darker(lip, 0.55), 0, _ON_FACE)
    sketch.add(ribbon(shine, 0.03), clear(lighter(lip, 0.6), 0.6), 0, _ON_FACE)


def _beard(person: Person, sketch: Sketch) -> None:
    if person.beard == "none":
        return
    hair = HAIR_COLOURS[person.hair_colour]
    w, chin, jaw = person.face_width, person.chin, person.jaw
    mouth = person.mouth_width
    tone, opacity = darker(hair, 0.1), 1.0
    if person.beard == "stubble":
        tone, opacity = darker(hair, 0.4), 0.3
    if person.beard in ("full", "long", "stubble"):
        grow = {"full": 0.1, "long": 0.55, "stubble": 0.0}[person.beard]
        wide = 0.04 if person.beard != "stubble" else -0.01
        right = [
            (0.08, 0.46), (mouth + 0.02, 0.47), (mouth + 0.1, 0.58), (0.7 * w, 0.52),
            (0.88 * w, 0.2), (w + wide, 0.05), ((0.4 + 0.6 * jaw) * w + wide, 0.5),
            (0.9 * jaw * w + wide, 0.72 + 0.3 * grow), (0.55 * jaw * w, 0.9 * chin + grow),
            (0.15 * w, chin + grow),
        ]  # fmt: skip
        outline = smooth(_both(right))
        sketch.add(outline, clear(tone, opacity), 0.0, _ON_FACE)
        if person.beard != "stubble":
            hollow = ellipse(0, _MOUTH_Y + 0.2, 0.6 * mouth, 0.07, 16)
            sketch.add(hollow, clear(darker(tone, 0.5), 0.35), 0, _ON_FACE)
            for x in (-0.36, 0.0, 0.36):
                strand = [(x * w, 0.86), (x * w * 0.9, 0.92 * chin + 0.8 * grow)]
                sketch.add(ribbon(strand, 0.05), clear(lighter(tone, 0.3), 0.4), 0, _ON_FACE)
    if person.beard == "goatee":
        patch = [(0.12, 0.78), (0.24, 0.72), (0.27, 0.9), (0.16, chin + 0.12), (0.05, chin + 0.16)]
        sketch.add(smooth(_both(patch)), tone, 0, _ON_FACE)
    if person.beard in ("moustache", "goatee"):
        thick = 1.0 if person.beard == "moustache" else 0.6
        half = [(0.0, 0.43), (0.16, 0.41), (mouth + 0.02, 0.5), (mouth + 0.14, 0.62 * thick + 0.2),
                (mouth, 0.57), (0.12, 0.52), (0.0, 0.5)]  # fmt: skip
        for sign in (-1, 1):
            sketch.add(smooth(np.array(half) * (sign, 1)), tone, 0.08, _ON_FACE)


def _glasses(person: Person, sketch: Sketch) -> None:
    if person.glasses == "none":
        return
    tone = THING_COLOURS[person.glasses_colour]
    x, r = person.eye_spacing, min(0.3, person.eye_spacing - 0.05)
    depth, w = 0.12, person.face_width
    for sign in (-1, 1):
        if person.glasses == "round":
            lens = ellipse(sign * x, 0.04, r)
        elif person.glasses == "square":
            angle = np.arange(28) * (2 * np.pi / 28)
            corner = np.stack([np.cos(angle), np.sin(angle)], 1)
            corner = np.sign(corner) * np.abs(corner) ** 0.45
            lens = corner * (1.02 * r, 0.78 * r) + (sign * x, 0.04)
        else:
            lens = smooth([(-1.0, -0.35), (0.0, -0.62), (1.25, -0.95), (1.05, 0.2), (0.3, 0.8),
                           (-0.7, 0.6)]) * (sign * r, r) + (sign * x, 0.04)  # fmt: skip
        sketch.add(lens, clear((226, 240, 255), 0.16), depth, _ON_FACE)
        gleam = [(sign * x - 0.6 * r, 0.04 + 0.1 * r), (sign * x - 0.05 * r, 0.04 - 0.5 * r)]
        sketch.add(ribbon(gleam, 0.07), clear((255, 255, 255), 0.35), depth, _ON_FACE)
        sketch.add(scenery.frame(lens, 0.08), tone, depth, _ON_FACE)
        temple = [(sign * (x + r), -0.02), (sign * (w + 0.02), -0.04)]
        sketch.add(ribbon(temple, 0.08), tone, 0, _ON_FACE)
    bridge = smooth([(-x + r, 0.0), (0, -0.05), (x - r, 0.0)], closed=False)
    sketch.add(ribbon(bridge, 0.08), tone, depth, _ON_FACE)


def _earrings(person: Person, sketch: Sketch) -> None:
    if person.earrings == "none":
        return
    tone = THING_COLOURS[person.earring_colour]
    low = 0.1 + person.ear_size
    for sign in (-1, 1):
        x = sign * (person.face_width + 0.4 * person.ear_size)
        if person.earrings == "hoop":
            sketch.add(scenery.frame(ellipse(x, low + 0.18, 0.12, 0.15, 18), 0.06), tone)
        elif person.earrings == "stud":
            sketch.add(ellipse(x, low + 0.03, 0.075, num_points=12), tone)
        else:
            sketch.add(box(x - 0.02, low, x + 0.02, low + 0.2), tone)
            sketch.add(ellipse(x, low + 0.28, 0.1, 0.15, 16), tone)
            sketch.add(ellipse(x - 0.03, low + 0.24, 0.03, 0.05, 8), lighter(tone, 0.7))


def _headwear(person: Person, sketch: Sketch) -> None:
    kind, w = person.headwear, person.face_width
    if kind == "none":
        return
    tone = THING_COLOURS[person.headwear_colour]
    light, dark = lighter(tone, 0.3), darker(tone, 0.3)
    if kind == "headband":
        arc = [(-w - 0.13, -0.2), (-0.8 * w, -0.72), (0, -0.98), (0.8 * w, -0.72), (w + 0.13, -0.2)]
        curve = smooth(arc, closed=False)
        sketch.add(ribbon(curve, 0.2), tone, 0, _ON_FACE)
        sketch.add(ribbon(curve - (0, 0.03), 0.05), clear(light, 0.7), 0, _ON_FACE)
    elif kind == "beanie":
        dome = smooth(_cap(w, 0.16, 0.32, -0.3), closed=False)
        sketch.add(dome, tone, 0, _ON_FACE)
        for x in (-0.5, 0.0, 0.5):
            rib = smooth(
                [(x * 0.5, -1.25), (x * 1.2 * w, -0.9), (x * 1.35 * w, -0.5)], closed=False
            )
            sketch.add(ribbon(rib, 0.05), clear(dark, 0.45), 0, _ON_FACE)
        brim = [(-w - 0.16, -0.34), (0, -0.5), (w + 0.16, -0.34)]
        sketch.add(ribbon(smooth(brim, closed=False), 0.26), light, 0.05, _ON_FACE)
        sketch.add(ellipse(0, -1.34, 0.2), light)
        sketch.add(ellipse(-0.04, -1.38, 0.1), lighter(light, 0.4))
    elif kind == "cap":
        sketch.add(smooth(_cap(w, 0.12, 0.24, -0.38), closed=False), tone, 0, _ON_FACE)
        sketch.add(ellipse(-0.3, -0.95, 0.2, 0.1), clear(light, 0.6), 0, _ON_FACE)
        bill = [(-w - 0.05, -0.46), (0, -0.64), (w + 0.05, -0.46), (w + 0.14, -0.3), (0, -0.36),
                (-w - 0.14, -0.3)]  # fmt: skip
        sketch.add(smooth(bill), dark, 0.3, _ON_FACE)
    elif kind == "hat":
        crown = [(-0.78 * w, -0.5), (-0.74 * w, -1.3), (-0.2, -1.42), (0.2, -1.42),
                 (0.74 * w, -1.3), (0.78 * w, -0.5)]  # fmt: skip
        sketch.add(smooth(crown), tone, 0, 0.5)
        sketch.add(box(-0.8 * w, -0.86, 0.8 * w, -0.66), dark, 0, 0.5)
        sketch.add(ellipse(0, -0.6, w + 0.52, 0.17), tone, 0, 0)
        sketch.add(ellipse(0, -0.64, w + 0.4, 0.08), clear(light, 0.5), 0, 0)
    elif kind == "flower":
        x, y = 0.66 * w, -0.74
        for angle in np.arange(5) * 1.2566:
            petal = ellipse(x + 0.16 * np.cos(angle), y + 0.16 * np.sin(angle), 0.14, num_points=14)
            sketch.add(petal, tone, 0.1, _ON_FACE)
        sketch.add(ellipse(x, y, 0.09, num_points=12), (252, 214, 80) if tone[1] < 190 else dark,
                   0.1, _ON_FACE)  # fmt: skip
    elif kind == "bow":
        for sign in (-1, 1):
            loop = np.array([(0.0, 0.0), (0.22, -0.22), (0.42, -0.2), (0.42, 0.2), (0.22, 0.2)])
            sketch.add(smooth(loop * (sign, 1) + (0.2, -1.08)), tone, 0.05, _ON_FACE)
            sketch.add(ellipse(0.2 + sign * 0.26, -1.08, 0.08, 0.1, 12), clear(dark, 0.5), 0.05, 1)
        sketch.add(ellipse(0.2, -1.08, 0.1, num_points=12), dark, 0.05, _ON_FACE)
    elif kind == "headscarf":
        edge = [(0.3 * w, -0.72), (0.72 * w, -0.52), (0.93 * w, -0.1), (0.9 * w, 0.38),
                (0.68 * w, 0.78), (0.3 * w, 1.0)]  # fmt: skip
        inner = smooth(_both(edge))
        outer = [(0.35 * w, -1.2), (0.9 * w, -0.95), (w + 0.22, -0.3), (w + 0.2, 0.4),
                 (w + 0.12, 1.0), (0.95 * w, 1.4), (0.4 * w, 1.62)]  # fmt: skip
        rim = smooth(_both(outer))
        ring = np.concatenate([rim, rim[:1], inner[:1], inner[::-1]])
        sketch.add(ring, tone, 0, 0)
        sketch.add(scenery.frame(inner, 0.06), clear(dark, 0.7), 0, 0)
        for x, y in ((0.75, 1.1), (-0.6, 1.2)):
            fold = smooth([(x * w * 1.1, 0.6), (x * w * 0.6, y + 0.1), (0, y + 0.3)], closed=False)
            sketch.add(ribbon(fold, 0.05), clear(dark, 0.5))
        gleam = smooth([(-0.8 * w, -0.75), (-0.3 * w, -1.0), (0.3 * w, -1.02)], closed=False)
        sketch.add(ribbon(gleam, 0.09), clear(light, 0.55))
    elif kind == "turban":
        dome = [(0.3 * w, -1.42), (0.95 * w, -1.2), (w + 0.2, -0.7), (w + 0.06, -0.24),
                (0.5 * w, -0.46), (0.1 * w, -0.62)]  # fmt: skip
        sketch.add(smooth(_both(dome)), tone, 0, 0.6)
        for sign, reach in ((1, 0.9), (-1, 0.9), (1, 0.45), (-1, 0.45)):
            fold = [(0, -0.66 - 0.3 * (0.9 - reach)), (sign * 0.5 * w, -0.8 - 0.4 * (0.9 - reach)),
                    (sign * (w + 0.16), -0.55 - 0.5 * (0.9 - reach))]  # fmt: skip
            sketch.add(ribbon(smooth(fold, closed=False), 0.045), clear(dark, 0.6), 0, 0.6)
        sketch.add(ellipse(0, -0.84, 0.09, 0.12, 14), light, 0.05, 0.6)


def _occluder(rng: np.random.Generator, sketch: Sketch) -> None:
    """Cover a part of some photos with a plain shape, in units of the picture."""
    kind, x, y, size = rng.random(4)
    colour = scenery.hsv(rng.random(), rng.uniform(0.2, 0.7), rng.uniform(0.2, 0.9))
    if kind > 0.16:
        return
    left = x < 0.5
    if kind < 0.06:
        edge = 0.1 + 0.16 * size
        post = box(-0.1, -0.1, edge, 1.1) if left else box(1 - edge, -0.1, 1.1, 1.1)
        sketch.add(post, colour)
    elif kind < 0.11:
        sketch.add(box(-0.1, 0.8 - 0.08 * size, 1.1, 1.1), colour)
    else:
        for shift in (0.0, 0.09, 0.19):
            leaf = ellipse(0.08 + shift * size if left else 0.92 - shift * size, y + shift,
                           0.13 + 0.08 * size, 0.06)  # fmt: skip
            sketch.add(leaf, clear(scenery.hsv(0.3, 0.6, 0.3 + 0.4 * size), 0.9))


def draw_person(person: Person, rng: np.random.Generator, size: int = 48) -> np.ndarray:
    """Draw one photo of a person; all that is not identity comes from `rng`.

    Args:
        person: the person to draw.
        rng: the same state gives the same photo at every size.
        size: side of the photo, pixels.

    Returns:
        u8 [size, size, 3].
    """
    image = scenery.background(rng, size)
    pose = _random_pose(rng)
    head, body, front = _place_head(person, pose), Sketch(), Sketch()
    behind, face = Sketch(), Sketch()

    _body(person, body, rng)
    _occluder(rng, front)
    _hair_behind(person, behind)
    _face(person, face, pose)
    _marks(person, face)
    _beard(person, face)
    _nose(person, face, pose)
    _mouth(person, face, pose)
    _eyes(person, face, pose)
    _earrings(person, face)
    _hair_in_front(person, face)
    _brows(person, face, pose)
    _glasses(person, face)
    _headwear(person, face)

    behind.paint(image, head)
    body.paint(image, scenery.flat_place(pose.x, pose.y, pose.scale, 0.15 * pose.tilt, pose.mirror))
    face.paint(image, head)
    front.paint(image, scenery.flat_place(0.0, 0.0, 1.0))
    return scenery.expose(image, rng, -pose.light if pose.mirror else pose.light)
