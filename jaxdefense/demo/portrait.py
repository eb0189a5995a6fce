"""Draws a person's photo, in which all but their traits varies.

A head is drawn in head units. The origin lies between the eyes and the top of the mouth, with x to
the right and y down. The chin is near y = 1 and the top of the skull near y = -1. Features of the
face are bent over a round head before the head is turned, so that turning the head shifts them.
"""

import dataclasses

import numpy as np

from jaxdefense.demo import scenery
from jaxdefense.demo.people import EYE_COLOURS, HAIR_COLOURS, SKINS, THING_COLOURS, Person
from jaxdefense.demo.scenery import (
    Colour,
    Points,
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

_ON_FACE = 1.0
_BEHIND = -0.3


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
    style, w = person.hair_style, person.face_width
    hair = HAIR_COLOURS[person.hair_colour]
    if person.headwear in ("headscarf", "turban") or style == "bald":
        if style == "bald" and person.headwear == "none":
            sketch.add(ellipse(-0.25, -0.78, 0.24, 0.1), clear((255, 255, 255), 0.28), 0, _ON_FACE)
        return
    side, top, low, hairline = _hair_edge(person)
    line = smooth(np.array(_HAIRLINES[hairline]) * (w, 1), closed=False)
    if style == "balding":
        _balding(w, hair, sketch)
        return
    if style == "mohawk":
        _mohawk(w, hair, line, sketch)
        return
    # Hair shades the forehead below it.
    sketch.add(ribbon(line + (0, 0.05), 0.12), clear((60, 20, 20), 0.16), 0, _ON_FACE)
    outer = smooth(_cap(w, side, top, low), closed=False)
    cap = np.concatenate([outer, line])
    if style == "buzzed":
        sketch.add(cap, clear(hair, 0.72), 0, _ON_FACE)
        return
    sketch.add(cap, hair, 0, _ON_FACE)
    if style in ("curly", "afro"):
        _curls(person, hair, _cap(w, side - 0.04, top - 0.02, 0.1), sketch)
        return
    if style == "spiky":
        _spikes(w, hair, sketch)
    elif style == "quiff":
        _quiff(w, hair, sketch)
    _strands(w, hair, {"parted": 0.03, "swept": 0.5}.get(hairline, 0.1) * w, sketch)
    if style in ("long straight", "long wavy", "long"):
        _long_hair(style, w, hair, sketch)
    elif style == "bob":
        _bob(w, hair, sketch)
    elif style == "braided":
        _braids(w, hair, sketch)


def _hair_edge(person: Person) -> tuple[float, float, float, str]:
    """Give how far hair stands off at the side and the top and reaches down, and its hairline."""
    style, fringe = person.hair_style, person.fringe
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
    if style in ("long straight", "long wavy", "long", "bob", "curly") and person.sex == "female":
        low = 0.45
    return side, top, low, hairline


def _balding(w: float, hair: Colour, sketch: Sketch) -> None:
    for sign in (-1, 1):
        patch = [(0.78 * w, -0.52), (w + 0.1, -0.45), (w + 0.17, -0.1), (w + 0.05, 0.22),
                 (0.95 * w, 0.1), (0.9 * w, -0.2)]  # fmt: skip
        sketch.add(smooth(np.array(patch) * (sign, 1)), hair)
    sketch.add(ellipse(-0.2, -0.76, 0.24, 0.1), clear((255, 255, 255), 0.28), 0, _ON_FACE)


def _mohawk(w: float, hair: Colour, line: Points, sketch: Sketch) -> None:
    shade = darker(hair, 0.28)
    crest = [(-0.24, -0.62), (-0.3, -1.1), (-0.22, -1.5), (0, -1.62), (0.22, -1.5),
             (0.3, -1.1), (0.24, -0.62), (0, -0.55)]  # fmt: skip
    cap = np.concatenate([smooth(_cap(w, 0.01, 0.04, 0.05), closed=False), line])
    sketch.add(cap, clear(darker(hair, 0.2), 0.35), 0, _ON_FACE)
    sketch.add(smooth(crest), shade, 0.12, _ON_FACE)
    sketch.add(smooth(np.array(crest) * (0.75, 0.97)), hair, 0.12, _ON_FACE)


def _spikes(w: float, hair: Colour, sketch: Sketch) -> None:
    angle = np.linspace(np.pi * 0.98, np.pi * 0.02, 15)
    reach = np.where(np.arange(15) % 2, 0.34, 0.04)
    spikes = np.stack([(w + reach) * np.cos(angle), -0.2 - (0.84 + reach) * np.sin(angle)], 1)
    sketch.add(spikes, hair, 0, 0)
    zigzag = [(0.8 * w, -0.62), (0.55 * w, -0.45), (0.35 * w, -0.66), (0.08 * w, -0.44),
              (-0.15 * w, -0.66), (-0.45 * w, -0.46), (-0.8 * w, -0.62),
              (0, -0.95)]  # fmt: skip
    sketch.add(np.array(zigzag), hair, 0, _ON_FACE)


def _quiff(w: float, hair: Colour, sketch: Sketch) -> None:
    light = lighter(hair, 0.32)
    roll = [(-0.8 * w, -0.55), (-0.85 * w, -1.0), (-0.4 * w, -1.38), (0.3 * w, -1.45),
            (0.85 * w, -1.2), (0.9 * w, -0.8), (0.6 * w, -0.62), (0, -0.68)]  # fmt: skip
    sketch.add(smooth(roll), hair, 0.05, _ON_FACE)
    gleam = [(-0.5 * w, -0.95), (-0.1, -1.2), (0.5 * w, -1.2)]
    stroke = smooth(gleam, closed=False)
    sketch.add(ribbon(stroke, 0.08), clear(light, 0.6), 0.05, _ON_FACE)


def _curls(person: Person, hair: Colour, rim: Points, sketch: Sketch) -> None:
    w, light = person.face_width, lighter(hair, 0.32)
    radius = 0.2 if person.sex == "female" or person.hair_style == "afro" else 0.17
    for count, (x, y) in enumerate(_tuft(rim, 11, 0.02)):
        tone = hair if count % 2 else mix(hair, light, 0.16)
        sketch.add(ellipse(x, y, radius, num_points=14), tone, 0, _ON_FACE)
    inner = np.array([(-0.72 * w, -0.6), (-0.3 * w, -0.76), (0.3 * w, -0.76), (0.72 * w, -0.6)])
    for count, (x, y) in enumerate(_tuft(inner, 6, 0.0)):
        tone = mix(hair, light, 0.12) if count % 2 else hair
        sketch.add(ellipse(x, y, radius * 0.9, num_points=14), tone, 0, _ON_FACE)
    for x, y in ((-0.5 * w, -0.92), (0.05, -1.02), (0.45 * w, -0.86)):
        sketch.add(ellipse(x, y, 0.09, 0.05, 12), clear(light, 0.55), 0, _ON_FACE)


def _strands(w: float, hair: Colour, root: float, sketch: Sketch) -> None:
    light, shade = lighter(hair, 0.32), darker(hair, 0.28)
    # A band of light and a few strands.
    arc = np.array([(-0.82 * w, -0.62), (-0.45 * w, -0.93), (0.1 * w, -1.0), (0.62 * w, -0.8)])
    taper = np.sin(np.linspace(0.1, np.pi - 0.1, 19)) * 0.12
    sketch.add(ribbon(smooth(arc, closed=False), taper), clear(light, 0.5), 0, _ON_FACE)
    for x, y in ((-0.75 * w, -0.5), (-0.4 * w, -0.66), (0.72 * w, -0.52)):
        strand = smooth([(root, -1.02), ((root + x) / 2 * 1.15, -0.88), (x, y)], closed=False)
        sketch.add(ribbon(strand, 0.03), clear(shade, 0.5), 0, _ON_FACE)


def _long_hair(style: str, w: float, hair: Colour, sketch: Sketch) -> None:
    light = lighter(hair, 0.32)
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


def _bob(w: float, hair: Colour, sketch: Sketch) -> None:
    for sign in (-1, 1):
        lock = [(w - 0.02, -0.3), (w + 0.22, 0.0), (w + 0.24, 0.5), (w + 0.1, 0.82),
                (w - 0.16, 0.84), (w - 0.08, 0.5), (w - 0.02, 0.1)]  # fmt: skip
        sketch.add(smooth(np.array(lock) * (sign, 1)), hair)


def _braids(w: float, hair: Colour, sketch: Sketch) -> None:
    light = lighter(hair, 0.32)
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


def _wear_headband(w: float, tone: Colour, sketch: Sketch) -> None:
    light = lighter(tone, 0.3)
    arc = [(-w - 0.13, -0.2), (-0.8 * w, -0.72), (0, -0.98), (0.8 * w, -0.72), (w + 0.13, -0.2)]
    curve = smooth(arc, closed=False)
    sketch.add(ribbon(curve, 0.2), tone, 0, _ON_FACE)
    sketch.add(ribbon(curve - (0, 0.03), 0.05), clear(light, 0.7), 0, _ON_FACE)


def _wear_beanie(w: float, tone: Colour, sketch: Sketch) -> None:
    light, dark = lighter(tone, 0.3), darker(tone, 0.3)
    dome = smooth(_cap(w, 0.16, 0.32, -0.3), closed=False)
    sketch.add(dome, tone, 0, _ON_FACE)
    for x in (-0.5, 0.0, 0.5):
        rib = smooth([(x * 0.5, -1.25), (x * 1.2 * w, -0.9), (x * 1.35 * w, -0.5)], closed=False)
        sketch.add(ribbon(rib, 0.05), clear(dark, 0.45), 0, _ON_FACE)
    brim = [(-w - 0.16, -0.34), (0, -0.5), (w + 0.16, -0.34)]
    sketch.add(ribbon(smooth(brim, closed=False), 0.26), light, 0.05, _ON_FACE)
    sketch.add(ellipse(0, -1.34, 0.2), light)
    sketch.add(ellipse(-0.04, -1.38, 0.1), lighter(light, 0.4))


def _wear_cap(w: float, tone: Colour, sketch: Sketch) -> None:
    light, dark = lighter(tone, 0.3), darker(tone, 0.3)
    sketch.add(smooth(_cap(w, 0.12, 0.24, -0.38), closed=False), tone, 0, _ON_FACE)
    sketch.add(ellipse(-0.3, -0.95, 0.2, 0.1), clear(light, 0.6), 0, _ON_FACE)
    bill = [(-w - 0.05, -0.46), (0, -0.64), (w + 0.05, -0.46), (w + 0.14, -0.3), (0, -0.36),
            (-w - 0.14, -0.3)]  # fmt: skip
    sketch.add(smooth(bill), dark, 0.3, _ON_FACE)


def _wear_hat(w: float, tone: Colour, sketch: Sketch) -> None:
    light, dark = lighter(tone, 0.3), darker(tone, 0.3)
    crown = [(-0.78 * w, -0.5), (-0.74 * w, -1.3), (-0.2, -1.42), (0.2, -1.42),
             (0.74 * w, -1.3), (0.78 * w, -0.5)]  # fmt: skip
    sketch.add(smooth(crown), tone, 0, 0.5)
    sketch.add(box(-0.8 * w, -0.86, 0.8 * w, -0.66), dark, 0, 0.5)
    sketch.add(ellipse(0, -0.6, w + 0.52, 0.17), tone, 0, 0)
    sketch.add(ellipse(0, -0.64, w + 0.4, 0.08), clear(light, 0.5), 0, 0)


def _wear_flower(w: float, tone: Colour, sketch: Sketch) -> None:
    dark = darker(tone, 0.3)
    x, y = 0.66 * w, -0.74
    for angle in np.arange(5) * 1.2566:
        petal = ellipse(x + 0.16 * np.cos(angle), y + 0.16 * np.sin(angle), 0.14, num_points=14)
        sketch.add(petal, tone, 0.1, _ON_FACE)
    sketch.add(ellipse(x, y, 0.09, num_points=12), (252, 214, 80) if tone[1] < 190 else dark,
               0.1, _ON_FACE)  # fmt: skip


def _wear_bow(w: float, tone: Colour, sketch: Sketch) -> None:
    dark = darker(tone, 0.3)
    for sign in (-1, 1):
        loop = np.array([(0.0, 0.0), (0.22, -0.22), (0.42, -0.2), (0.42, 0.2), (0.22, 0.2)])
        sketch.add(smooth(loop * (sign, 1) + (0.2, -1.08)), tone, 0.05, _ON_FACE)
        sketch.add(ellipse(0.2 + sign * 0.26, -1.08, 0.08, 0.1, 12), clear(dark, 0.5), 0.05, 1)
    sketch.add(ellipse(0.2, -1.08, 0.1, num_points=12), dark, 0.05, _ON_FACE)


def _wear_headscarf(w: float, tone: Colour, sketch: Sketch) -> None:
    light, dark = lighter(tone, 0.3), darker(tone, 0.3)
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


def _wear_turban(w: float, tone: Colour, sketch: Sketch) -> None:
    light, dark = lighter(tone, 0.3), darker(tone, 0.3)
    dome = [(0.3 * w, -1.42), (0.95 * w, -1.2), (w + 0.2, -0.7), (w + 0.06, -0.24),
            (0.5 * w, -0.46), (0.1 * w, -0.62)]  # fmt: skip
    sketch.add(smooth(_both(dome)), tone, 0, 0.6)
    for sign, reach in ((1, 0.9), (-1, 0.9), (1, 0.45), (-1, 0.45)):
        fold = [(0, -0.66 - 0.3 * (0.9 - reach)), (sign * 0.5 * w, -0.8 - 0.4 * (0.9 - reach)),
                (sign * (w + 0.16), -0.55 - 0.5 * (0.9 - reach))]  # fmt: skip
        sketch.add(ribbon(smooth(fold, closed=False), 0.045), clear(dark, 0.6), 0, 0.6)
    sketch.add(ellipse(0, -0.84, 0.09, 0.12, 14), light, 0.05, 0.6)


_HEADWEAR = {
    "headband": _wear_headband,
    "beanie": _wear_beanie,
    "cap": _wear_cap,
    "hat": _wear_hat,
    "flower": _wear_flower,
    "bow": _wear_bow,
    "headscarf": _wear_headscarf,
    "turban": _wear_turban,
}


def _headwear(person: Person, sketch: Sketch) -> None:
    if person.headwear != "none":
        tone = THING_COLOURS[person.headwear_colour]
        _HEADWEAR[person.headwear](person.face_width, tone, sketch)


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
