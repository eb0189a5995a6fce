"""Drawn people: the traits that make one person look like that person; lengths in head units."""

import dataclasses
import math

import numpy as np

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


def _hair_odds(skin: str, hair_style: str, beard: str) -> dict[str, float]:
    # Beards and thin hair must not look like skin, and a dyed beard hardly looks like a beard.
    bare = beard != "none" or hair_style in ("balding", "buzzed", "mohawk")
    natural = len(_HAIR_ODDS) if beard == "none" else _NUM_NATURAL
    return {
        name: odds
        for name, odds in list(zip(HAIR_COLOURS, _HAIR_ODDS, strict=True))[:natural]
        if math.dist(HAIR_COLOURS[name], SKINS[skin]) > (75 if bare else 40)
    }


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
    hair_odds = _hair_odds(skin, hair_style, beard)
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
