"""Drawn objects with names, in photos that vary in all but the object.

An object fills the square from -1 to 1, x to the right and y down.
"""

from collections.abc import Callable

import numpy as np

from jaxdefense.demo import scenery
from jaxdefense.demo.scenery import (
    Colour,
    Sketch,
    box,
    clear,
    darker,
    ellipse,
    frame,
    lighter,
    ribbon,
    smooth,
)
from jaxdefense.errors import InputError

COLOURS = {
    "red": (218, 52, 50),
    "orange": (242, 136, 40),
    "yellow": (248, 206, 62),
    "green": (64, 162, 80),
    "teal": (40, 160, 164),
    "blue": (52, 104, 210),
    "purple": (132, 78, 180),
    "pink": (240, 122, 168),
    "white": (240, 238, 232),
    "brown": (140, 90, 54),
}
_INK = (44, 40, 50)
_WOOD = (150, 98, 56)
_STEEL = (176, 184, 194)
_GLASS = (190, 226, 244)
_WHITE = (250, 248, 244)


def _pick(rng: np.random.Generator, *names: str) -> Colour:
    """Pick one of the named colours, or of all colours, and vary it a little."""
    names = names or tuple(COLOURS)
    colour = np.array(COLOURS[names[rng.integers(len(names))]])
    return tuple(int(v) for v in np.clip(colour + rng.integers(-14, 15, 3), 0, 255))


def _line(sketch: Sketch, points, width, colour: Colour) -> None:
    sketch.add(ribbon(points, width), colour)


def _curve(sketch: Sketch, points, width, colour: Colour) -> None:
    sketch.add(ribbon(smooth(points, closed=False), width), colour)


def _apple(sketch, rng):
    skin = _pick(rng, "red", "red", "green", "yellow")
    body = [(0, -0.42), (0.42, -0.62), (0.85, -0.3), (0.82, 0.3), (0.48, 0.82), (0.12, 0.78),
            (-0.12, 0.78), (-0.48, 0.82), (-0.82, 0.3), (-0.85, -0.3), (-0.42, -0.62)]  # fmt: skip
    sketch.add(smooth(body), darker(skin, 0.22))
    sketch.add(smooth(np.array(body) * 0.92 + (-0.04, -0.02)), skin)
    sketch.add(smooth([(-0.55, -0.4), (-0.3, -0.48), (-0.5, 0.2), (-0.68, 0.1)]),
               clear(lighter(skin, 0.7), 0.6))  # fmt: skip
    _curve(sketch, [(0, -0.38), (0.02, -0.7), (0.14, -0.98)], 0.11, darker(_WOOD, 0.3))
    sketch.add(smooth([(0.08, -0.66), (0.35, -0.98), (0.72, -0.92), (0.45, -0.66)]), (86, 160, 62))


def _banana(sketch, rng):
    peel = _pick(rng, "yellow")
    outline = [(-0.86, -0.66), (-0.7, -0.74), (-0.4, -0.1), (0.1, 0.2), (0.72, 0.12), (0.94, 0.22),
               (0.9, 0.4), (0.4, 0.7), (-0.2, 0.62), (-0.68, 0.2), (-0.86, -0.3)]  # fmt: skip
    sketch.add(smooth(outline), darker(peel, 0.16))
    _curve(sketch, [(-0.74, -0.5), (-0.5, 0.04), (-0.05, 0.38), (0.5, 0.42), (0.86, 0.3)],
           0.24, peel)  # fmt: skip
    _curve(sketch, [(-0.66, -0.35), (-0.4, 0.08), (0.05, 0.32), (0.6, 0.3)], 0.06,
           lighter(peel, 0.5))  # fmt: skip
    sketch.add(
        smooth([(-0.9, -0.9), (-0.74, -0.92), (-0.68, -0.64), (-0.88, -0.62)]), (120, 96, 40)
    )
    sketch.add(ellipse(0.92, 0.3, 0.07, 0.1, 12), (92, 70, 40))


def _wheel(sketch, x, y, r):
    sketch.add(ellipse(x, y, r), _INK)
    sketch.add(ellipse(x, y, 0.52 * r), _STEEL)
    sketch.add(ellipse(x, y, 0.2 * r), darker(_STEEL, 0.4))


def _car(sketch, rng):
    paint = _pick(rng)
    cabin = [(-0.55, -0.02), (-0.4, -0.42), (-0.1, -0.5), (0.25, -0.46), (0.58, -0.02)]
    sketch.add(smooth([*cabin, (0.3, 0.1), (-0.3, 0.1)]), darker(paint, 0.12))
    sketch.add(np.array([(-0.42, -0.05), (-0.3, -0.36), (-0.03, -0.4), (-0.03, -0.05)]), _GLASS)
    sketch.add(np.array([(0.05, -0.05), (0.05, -0.4), (0.22, -0.36), (0.45, -0.05)]), _GLASS)
    body = [(-0.95, 0.1), (-0.85, -0.05), (0, -0.1), (0.7, -0.05), (0.97, 0.12), (0.97, 0.36),
            (0.6, 0.42), (-0.6, 0.42), (-0.97, 0.36)]  # fmt: skip
    sketch.add(smooth(body), paint)
    sketch.add(box(-0.93, 0.26, 0.94, 0.4), darker(paint, 0.25))
    _curve(sketch, [(-0.8, 0.04), (0, 0.0), (0.7, 0.04)], 0.05, clear(lighter(paint, 0.6), 0.7))
    sketch.add(ellipse(0.86, 0.14, 0.1, 0.08, 14), (255, 240, 170))
    sketch.add(ellipse(-0.9, 0.14, 0.06, 0.08, 14), (220, 50, 40))
    for x in (-0.52, 0.54):
        _wheel(sketch, x, 0.4, 0.24)


def _bus(sketch, rng):
    paint = _pick(rng, "red", "yellow", "green", "blue", "orange")
    sketch.add(smooth([(-0.98, -0.55), (-0.9, -0.66), (0.9, -0.66), (0.98, -0.55), (0.98, 0.5),
                       (0.92, 0.56), (-0.92, 0.56), (-0.98, 0.5)]), paint)  # fmt: skip
    sketch.add(box(-0.95, 0.34, 0.95, 0.54), darker(paint, 0.28))
    sketch.add(box(-0.97, 0.1, 0.97, 0.2), _WHITE)
    for x in (-0.84, -0.46, -0.08, 0.3):
        sketch.add(box(x, -0.46, x + 0.3, -0.04), _GLASS)
        _line(sketch, [(x + 0.06, -0.1), (x + 0.22, -0.42)], 0.05, clear(_WHITE, 0.6))
    sketch.add(box(0.68, -0.46, 0.94, 0.34), lighter(_GLASS, 0.3))
    _line(sketch, [(0.81, -0.46), (0.81, 0.34)], 0.04, darker(paint, 0.3))
    for x in (-0.55, 0.45):
        _wheel(sketch, x, 0.56, 0.23)


def _bicycle(sketch, rng):
    paint = _pick(rng, "red", "blue", "green", "orange", "teal", "pink")
    for x in (-0.56, 0.56):
        sketch.add(frame(ellipse(x, 0.28, 0.34), 0.1), _INK)
        for angle in (0.3, 1.35, 2.4):
            spoke = 0.34 * np.array([np.cos(angle), np.sin(angle)])
            _line(sketch, [(x, 0.28) - spoke, (x, 0.28) + spoke], 0.025, _STEEL)
    for line in (
        [(-0.56, 0.28), (-0.22, -0.3)], [(-0.22, -0.3), (0.38, -0.28)],
        [(-0.56, 0.28), (0.0, 0.3)], [(-0.26, -0.46), (0.0, 0.3)],
        [(0.0, 0.3), (0.38, -0.28)], [(0.34, -0.55), (0.56, 0.28)],
    ):  # fmt: skip
        _line(sketch, line, 0.1, paint)
    _curve(sketch, [(-0.48, -0.5), (-0.26, -0.54), (-0.06, -0.48)], 0.13, _INK)
    _curve(sketch, [(0.16, -0.58), (0.34, -0.62), (0.5, -0.56), (0.5, -0.42)], 0.09, _INK)
    sketch.add(ellipse(0.0, 0.3, 0.11, num_points=14), darker(_STEEL, 0.3))


def _house(sketch, rng):
    wall = _pick(rng, "white", "yellow", "pink", "blue", "orange")
    wall = lighter(wall, 0.3)
    roof = _pick(rng, "red", "brown", "teal", "purple")
    sketch.add(box(0.36, -0.92, 0.58, -0.4), darker(roof, 0.35))
    sketch.add(box(-0.7, -0.2, 0.7, 0.85), wall)
    sketch.add(box(0.35, -0.2, 0.7, 0.85), darker(wall, 0.1))
    sketch.add(np.array([(-0.98, -0.1), (0, -0.95), (0.98, -0.1)]), roof)
    sketch.add(np.array([(-0.98, -0.1), (-0.86, -0.2), (0.86, -0.2), (0.98, -0.1)]),
               darker(roof, 0.3))  # fmt: skip
    sketch.add(box(-0.16, 0.25, 0.2, 0.85), darker(roof, 0.4))
    sketch.add(ellipse(0.12, 0.56, 0.04, num_points=8), (250, 214, 90))
    for x in (-0.56, 0.32):
        sketch.add(box(x, 0.1, x + 0.28, 0.42), _WHITE)
        sketch.add(box(x + 0.03, 0.13, x + 0.25, 0.39), (130, 190, 226))
        sketch.add(box(x + 0.12, 0.1, x + 0.16, 0.42), _WHITE)
    sketch.add(ellipse(0, -0.46, 0.14, num_points=18), _WHITE)
    sketch.add(ellipse(0, -0.46, 0.1, num_points=18), (130, 190, 226))


def _tree(sketch, rng):
    leaf = _pick(rng, "green", "green", "green", "orange")
    _curve(
        sketch, [(0, 0.98), (0.02, 0.5), (0, 0)], np.linspace(0.36, 0.16, 13), darker(_WOOD, 0.2)
    )
    _line(sketch, [(0, 0.4), (0.34, 0.0)], 0.1, darker(_WOOD, 0.2))
    for x, y, r in ((-0.48, -0.05, 0.4), (0.48, -0.08, 0.4), (0, 0.02, 0.42), (0, -0.5, 0.5)):
        sketch.add(ellipse(x, y, r), darker(leaf, 0.25))
    for x, y, r in ((-0.5, -0.16, 0.33), (0.44, -0.18, 0.33), (-0.04, -0.56, 0.43), (0, -0.1, 0.3)):
        sketch.add(ellipse(x, y, r), leaf)
    for x, y in ((-0.2, -0.72), (-0.58, -0.28), (0.36, -0.34), (0.06, -0.36)):
        sketch.add(ellipse(x, y, 0.14, 0.1, 14), clear(lighter(leaf, 0.4), 0.7))


def _flower(sketch, rng):
    petal = _pick(rng, "red", "pink", "purple", "white", "orange", "blue")
    _curve(sketch, [(0, -0.2), (0.06, 0.4), (0, 1.0)], 0.11, (70, 150, 70))
    for sign, y in ((1, 0.62), (-1, 0.78)):
        leaf = [(0.02, 0.0), (0.24, -0.24), (0.6, -0.26), (0.36, 0.02)]
        sketch.add(smooth(np.array(leaf) * (sign, 1) + (0, y)), (82, 168, 78))
    for angle in np.arange(8) * (2 * np.pi / 8):
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        tone = petal if angle % 1.6 < 0.1 else darker(petal, 0.1)
        sketch.add(ellipse(0.42, 0, 0.26, 0.17, 18) @ turn + (0, -0.32), tone)
    sketch.add(ellipse(0, -0.32, 0.25), (240, 180, 40))
    sketch.add(ellipse(-0.04, -0.36, 0.16), (252, 210, 80))


def _cat(sketch, rng):
    fur = [(236, 150, 66), (70, 66, 76), (168, 164, 168), (226, 204, 170)][rng.integers(4)]
    dark = darker(fur, 0.3)
    _curve(sketch, [(0.35, 0.8), (0.8, 0.7), (0.86, 0.2), (0.68, -0.1)], 0.17, dark)
    sketch.add(smooth([(-0.3, 0.1), (0.3, 0.1), (0.5, 0.6), (0.46, 0.96), (-0.46, 0.96),
                       (-0.5, 0.6)]), fur)  # fmt: skip
    sketch.add(ellipse(0, 0.62, 0.2, 0.28), clear(_WHITE, 0.8))
    for sign in (-1, 1):
        sketch.add(np.array([(0.12, -0.6), (0.52, -0.98), (0.56, -0.3)]) * (sign, 1), fur)
        sketch.add(np.array([(0.26, -0.62), (0.46, -0.82), (0.48, -0.46)]) * (sign, 1),
                   (238, 160, 160))  # fmt: skip
        sketch.add(ellipse(sign * 0.18, 0.94, 0.15, 0.1, 16), lighter(fur, 0.35))
    sketch.add(ellipse(0, -0.28, 0.6, 0.48), fur)
    for x in (-0.14, 0.0, 0.14):
        _line(sketch, [(x, -0.74), (x * 0.8, -0.54)], 0.06, dark)
    for sign in (-1, 1):
        sketch.add(ellipse(sign * 0.24, -0.32, 0.13, 0.14, 18), (150, 210, 90))
        sketch.add(ellipse(sign * 0.24, -0.32, 0.055, 0.13, 12), _INK)
        for y in (-0.14, -0.04):
            _line(sketch, [(sign * 0.26, -0.1), (sign * 0.78, y - 0.06)], 0.03, _WHITE)
    sketch.add(ellipse(0, -0.08, 0.2, 0.13), lighter(fur, 0.6))
    sketch.add(np.array([(-0.08, -0.17), (0.08, -0.17), (0, -0.08)]), (220, 110, 120))


def _dog(sketch, rng):
    fur = [(178, 122, 70), (232, 200, 150), (110, 74, 50), (240, 234, 224)][rng.integers(4)]
    dark = darker(fur, 0.42)
    sketch.add(smooth([(-0.3, 0.3), (0.3, 0.3), (0.52, 0.98), (-0.52, 0.98)]), darker(fur, 0.12))
    sketch.add(ellipse(0, -0.2, 0.62, 0.6), fur)
    for sign in (-1, 1):
        ear = [(0.36, -0.74), (0.66, -0.74), (0.92, -0.3), (0.9, 0.26), (0.66, 0.3), (0.54, -0.2)]
        sketch.add(smooth(np.array(ear) * (sign, 1)), dark)
    sketch.add(ellipse(0.26, -0.34, 0.22, 0.24), clear(dark, 0.5))
    sketch.add(ellipse(0, 0.16, 0.38, 0.3), lighter(fur, 0.6))
    for sign in (-1, 1):
        sketch.add(ellipse(sign * 0.25, -0.3, 0.11, 0.13, 16), (40, 26, 24))
        sketch.add(ellipse(sign * 0.25 - 0.03, -0.35, 0.04, num_points=8), _WHITE)
    sketch.add(smooth([(-0.12, 0.3), (0.12, 0.3), (0.1, 0.58), (-0.1, 0.58)]), (238, 110, 130))
    sketch.add(smooth([(-0.17, -0.02), (0.17, -0.02), (0.0, 0.14)]), _INK)
    _curve(sketch, [(-0.24, 0.22), (-0.1, 0.3), (0, 0.14), (0.1, 0.3), (0.24, 0.22)], 0.05, _INK)
    _line(sketch, [(-0.36, 0.52), (0.36, 0.52)], 0.12, (214, 52, 52))
    sketch.add(ellipse(0, 0.62, 0.1, num_points=14), (250, 206, 70))


def _fish(sketch, rng):
    scale = _pick(rng, "orange", "blue", "teal", "yellow", "pink", "purple")
    fin = darker(scale, 0.25)
    sketch.add(smooth([(0.4, 0), (0.94, -0.52), (0.86, 0), (0.94, 0.52)]), fin)
    sketch.add(smooth([(-0.3, -0.4), (0.0, -0.78), (0.4, -0.6), (0.3, -0.3)]), fin)
    sketch.add(smooth([(-0.1, 0.4), (0.1, 0.74), (0.35, 0.62), (0.2, 0.3)]), fin)
    body = [(-0.95, 0.02), (-0.62, -0.36), (-0.1, -0.48), (0.38, -0.26), (0.6, 0), (0.38, 0.26),
            (-0.1, 0.46), (-0.62, 0.36)]  # fmt: skip
    sketch.add(smooth(body), scale)
    belly = [(-0.9, 0.1), (-0.3, 0.2), (0.4, 0.14), (0.2, 0.34), (-0.1, 0.42), (-0.6, 0.34)]
    sketch.add(smooth(belly), clear(lighter(scale, 0.6), 0.8))
    for x in (-0.2, 0.06, 0.3):
        _curve(
            sketch, [(x - 0.04, -0.3), (x + 0.05, 0), (x - 0.04, 0.28)], 0.07, clear(_WHITE, 0.65)
        )
    sketch.add(ellipse(-0.58, -0.1, 0.14), _WHITE)
    sketch.add(ellipse(-0.6, -0.1, 0.08, num_points=14), _INK)
    _curve(sketch, [(-0.9, 0.1), (-0.78, 0.14), (-0.7, 0.1)], 0.05, darker(scale, 0.5))


def _bird(sketch, rng):
    coat = _pick(rng, "blue", "red", "yellow", "teal", "pink")
    dark = darker(coat, 0.3)
    sketch.add(smooth([(0.4, 0.1), (0.96, -0.1), (0.98, 0.12), (0.5, 0.46)]), dark)
    for x in (-0.1, 0.12):
        _line(sketch, [(x, 0.5), (x - 0.02, 0.92)], 0.06, (236, 150, 40))
        _line(sketch, [(x - 0.18, 0.94), (x + 0.12, 0.94)], 0.06, (236, 150, 40))
    body = [(-0.7, -0.4), (-0.42, -0.72), (-0.1, -0.56), (0.2, -0.14), (0.6, 0.16), (0.3, 0.56),
            (-0.2, 0.62), (-0.56, 0.3), (-0.66, -0.1)]  # fmt: skip
    sketch.add(smooth(body), coat)
    sketch.add(smooth([(-0.6, 0.0), (-0.3, 0.1), (0.0, 0.48), (-0.2, 0.58), (-0.5, 0.3)]),
               clear(_WHITE, 0.75))  # fmt: skip
    sketch.add(smooth([(-0.2, -0.14), (0.2, -0.1), (0.66, 0.22), (0.3, 0.4), (-0.08, 0.22)]), dark)
    _curve(sketch, [(0.0, 0.1), (0.24, 0.26), (0.5, 0.24)], 0.05, clear(lighter(coat, 0.4), 0.8))
    sketch.add(np.array([(-0.66, -0.5), (-0.98, -0.34), (-0.64, -0.28)]), (246, 166, 40))
    sketch.add(ellipse(-0.44, -0.44, 0.1, num_points=16), _WHITE)
    sketch.add(ellipse(-0.46, -0.44, 0.06, num_points=12), _INK)


def _boat(sketch, rng):
    hull, sail = _pick(rng, "red", "blue", "brown", "green"), _pick(rng, "white", "yellow", "pink")
    _line(sketch, [(0, -0.95), (0, 0.4)], 0.08, darker(_WOOD, 0.3))
    sketch.add(smooth([(0.08, -0.86), (0.5, -0.3), (0.74, 0.26), (0.08, 0.26)], steps=3), sail)
    sketch.add(np.array([(-0.08, -0.7), (-0.6, 0.24), (-0.08, 0.24)]), darker(sail, 0.1))
    sketch.add(np.array([(0, -0.98), (0.32, -0.9), (0, -0.8)]), (220, 50, 50))
    deck = np.array([(-0.94, 0.38), (0.94, 0.38), (0.62, 0.84), (-0.6, 0.84)])
    sketch.add(deck, hull)
    sketch.add(np.array([(-0.94, 0.38), (0.94, 0.38), (0.88, 0.48), (-0.87, 0.48)]), _WHITE)
    wave = [
        (-1.15, 0.9),
        (-0.8, 0.78),
        (-0.4, 0.9),
        (0, 0.78),
        (0.4, 0.9),
        (0.8, 0.78),
        (1.15, 0.9),
    ]
    _curve(sketch, wave, 0.22, (60, 130, 200))
    _curve(sketch, np.array(wave) - (0, 0.06), 0.05, (220, 238, 250))


def _cup(sketch, rng):
    glaze = _pick(rng)
    sketch.add(frame(ellipse(0.55, 0.1, 0.24, 0.28), 0.16), darker(glaze, 0.22))
    sketch.add(smooth([(-0.7, -0.42), (0.56, -0.42), (0.5, 0.5), (0.36, 0.82), (-0.5, 0.82),
                       (-0.64, 0.5)]), glaze)  # fmt: skip
    sketch.add(smooth([(0.3, -0.4), (0.55, -0.42), (0.48, 0.5), (0.34, 0.78), (0.16, 0.8)]),
               clear(darker(glaze, 0.4), 0.5))  # fmt: skip
    sketch.add(ellipse(-0.07, -0.42, 0.65, 0.17), lighter(glaze, 0.35))
    sketch.add(ellipse(-0.07, -0.4, 0.55, 0.12), (92, 56, 36))
    _curve(sketch, [(-0.52, -0.16), (-0.5, 0.2), (-0.42, 0.56)], 0.1, clear(_WHITE, 0.5))
    for x in (-0.28, 0.1):
        steam = [(x, -0.6), (x + 0.1, -0.72), (x - 0.04, -0.84), (x + 0.06, -0.98)]
        _curve(sketch, steam, 0.07, clear(_WHITE, 0.7))


def _clock(sketch, rng):
    case = _pick(rng)
    for sign in (-1, 1):
        _line(sketch, [(sign * 0.4, 0.6), (sign * 0.6, 0.96)], 0.14, darker(case, 0.4))
        sketch.add(ellipse(sign * 0.46, -0.76, 0.24, 0.2), darker(case, 0.2))
    sketch.add(ellipse(0, 0, 0.84), case)
    sketch.add(ellipse(0, 0, 0.68), _WHITE)
    for angle in np.arange(12) * (np.pi / 6):
        way = np.array([np.cos(angle), np.sin(angle)])
        _line(sketch, [0.54 * way, 0.63 * way], 0.06, _INK)
    for angle, reach, width in zip(
        rng.uniform(0, 2 * np.pi, 2), (0.34, 0.5), (0.1, 0.07), strict=True
    ):
        _line(sketch, [(0, 0), (reach * np.cos(angle), reach * np.sin(angle))], width, _INK)
    sketch.add(ellipse(0, 0, 0.08, num_points=12), (220, 50, 50))


def _chair(sketch, rng):
    wood = _pick(rng, "brown", "red", "white", "blue", "green")
    dark = darker(wood, 0.3)
    for x in (-0.36, 0.6):
        _line(sketch, [(x, 0.2), (x, 0.82)], 0.12, darker(wood, 0.45))
    _line(sketch, [(-0.5, -0.96), (-0.5, 0.98)], 0.14, dark)
    _line(sketch, [(0.42, 0.3), (0.42, 0.98)], 0.14, dark)
    _line(sketch, [(0.3, -0.96), (0.3, 0.1)], 0.14, dark)
    for y in (-0.8, -0.48, -0.16):
        sketch.add(box(-0.5, y - 0.09, 0.3, y + 0.09), wood)
    sketch.add(
        np.array([(-0.58, 0.3), (-0.38, 0.04), (0.72, 0.04), (0.5, 0.3)]), lighter(wood, 0.2)
    )
    sketch.add(box(-0.58, 0.3, 0.5, 0.42), wood)


def _umbrella(sketch, rng):
    cloth, other = _pick(rng), _pick(rng)
    _line(sketch, [(0, -0.9), (0, 0.72)], 0.08, _INK)
    _curve(sketch, [(0, 0.66), (0.02, 0.88), (0.2, 0.94), (0.32, 0.74)], 0.1, darker(_WOOD, 0.2))
    angle = np.linspace(np.pi, 0, 19)
    dome = np.stack([0.96 * np.cos(angle), 0.08 - 0.86 * np.sin(angle)], 1)
    edges = np.linspace(-0.96, 0.96, 5)
    scallop = []
    for right, left in zip(edges[:0:-1], edges[-2::-1], strict=True):
        scallop += [(right, 0.08), ((right + left) / 2, -0.08)]
    sketch.add(np.concatenate([dome, scallop]), cloth)
    for left, right in ((-0.96, -0.48), (0.0, 0.48)):
        rib = [(0, -0.78), (left * 0.75, -0.5), (left, 0.06), ((left + right) / 2, -0.08),
               (right, 0.06), (right * 0.75, -0.5)]  # fmt: skip
        sketch.add(np.array(rib), other)
    _curve(sketch, [(-0.66, -0.36), (-0.4, -0.6), (-0.15, -0.7)], 0.06, clear(_WHITE, 0.5))


def _guitar(sketch, rng):
    body = _pick(rng, "brown", "orange", "red", "blue")
    outline = [(0.0, -0.12), (0.34, -0.1), (0.4, 0.14), (0.34, 0.3), (0.54, 0.6), (0.36, 0.92),
               (0, 0.98), (-0.36, 0.92), (-0.54, 0.6), (-0.34, 0.3), (-0.4, 0.14),
               (-0.34, -0.1)]  # fmt: skip
    sketch.add(smooth(outline), darker(body, 0.35))
    sketch.add(smooth(np.array(outline) * 0.9 + (0, 0.045)), body)
    sketch.add(box(-0.08, -0.75, 0.08, 0.3), darker(_WOOD, 0.45))
    sketch.add(ellipse(0, 0.36, 0.18), (48, 28, 22))
    sketch.add(frame(ellipse(0, 0.36, 0.18), 0.04), lighter(body, 0.5))
    sketch.add(box(-0.2, 0.72, 0.2, 0.8), darker(_WOOD, 0.5))
    sketch.add(np.array([(-0.14, -0.98), (0.14, -0.98), (0.1, -0.7), (-0.1, -0.7)]), _WOOD)
    for y in (-0.9, -0.78):
        for sign in (-1, 1):
            sketch.add(ellipse(sign * 0.18, y, 0.05, num_points=8), _STEEL)
    for y in (-0.55, -0.35, -0.15):
        _line(sketch, [(-0.08, y), (0.08, y)], 0.025, _STEEL)
    for x in (-0.03, 0.03):
        _line(sketch, [(x, -0.9), (x, 0.74)], 0.016, lighter(_STEEL, 0.6))


def _ball(sketch, rng):
    first = _pick(rng, "red", "blue", "green", "purple", "orange")
    second = _pick(rng, "white", "yellow")
    sketch.add(ellipse(0, 0, 0.88, num_points=40), second)
    for start in np.arange(3) * (2 * np.pi / 3):
        angle = start + np.linspace(0, np.pi / 3, 9)
        rim = 0.88 * np.stack([np.cos(angle), np.sin(angle)], 1)
        bow = 0.18 * np.array([np.cos(start + 1.6), np.sin(start + 1.6)])
        hub = np.array([(-0.12, -0.16)])
        sides = [(hub + end) / 2 + bow for end in (rim[:1], rim[-1:])]
        sketch.add(np.concatenate([hub, sides[0], rim, sides[1]]), first)
    angle = np.linspace(0.1, np.pi - 0.1, 17)
    dark = np.stack([0.8 * np.cos(angle), 0.8 * np.sin(angle)], 1)
    _line(sketch, dark, 0.16 * np.sin(angle), clear((30, 14, 28), 0.25))
    sketch.add(ellipse(-0.12, -0.16, 0.13, num_points=16), lighter(second, 0.3))
    sketch.add(ellipse(-0.4, -0.46, 0.16, 0.12, 16), clear(_WHITE, 0.75))


def _star(sketch, rng):
    gold = _pick(rng, "yellow", "yellow", "orange", "pink")
    angle = np.arange(10) * (np.pi / 5) - np.pi / 2
    reach = np.where(np.arange(10) % 2, 0.44, 0.98)
    points = np.stack([reach * np.cos(angle), reach * np.sin(angle)], 1)
    sketch.add(points, darker(gold, 0.2))
    for k in range(0, 10, 2):
        sketch.add(np.array([(0, 0), points[k], points[k - 1]]), gold)
        sketch.add(np.array([(0, 0), points[k], points[(k + 1) % 10]]), darker(gold, 0.14))
    _line(sketch, [(-0.1, -0.5), (-0.2, -0.24)], 0.08, clear(_WHITE, 0.7))


def _mushroom(sketch, rng):
    cap = _pick(rng, "red", "red", "brown", "orange", "purple")
    stem = (242, 230, 208)
    sketch.add(smooth([(-0.24, 0), (0.24, 0), (0.28, 0.6), (0.38, 0.92), (-0.38, 0.92),
                       (-0.28, 0.6)]), stem)  # fmt: skip
    sketch.add(smooth([(0.08, 0), (0.24, 0), (0.28, 0.6), (0.36, 0.9), (0.12, 0.9)]),
               darker(stem, 0.15))  # fmt: skip
    sketch.add(ellipse(0, 0.06, 0.8, 0.2), darker(stem, 0.25))
    dome = [(-0.94, 0.02), (-0.78, -0.5), (-0.3, -0.86), (0.3, -0.86), (0.78, -0.5), (0.94, 0.02),
            (0.5, 0.12), (-0.5, 0.12)]  # fmt: skip
    sketch.add(smooth(dome), cap)
    for x, y, r in (
        (-0.46, -0.28, 0.16),
        (0.1, -0.54, 0.18),
        (0.52, -0.2, 0.14),
        (-0.06, -0.08, 0.1),
    ):
        sketch.add(ellipse(x, y, r, 0.85 * r, 18), _WHITE)
    _curve(sketch, [(-0.74, -0.34), (-0.56, -0.6), (-0.3, -0.74)], 0.07, clear(_WHITE, 0.45))


def _cactus(sketch, rng):
    flesh, pot = _pick(rng, "green"), _pick(rng, "orange", "brown", "red", "white", "blue")
    for sign, y in ((-1, 0.1), (1, -0.12)):
        arm = [(0.1 * sign, y + 0.1), (0.5 * sign, y + 0.06), (0.56 * sign, y - 0.4)]
        _curve(sketch, arm, 0.26, darker(flesh, 0.12))
        sketch.add(ellipse(0.56 * sign, y - 0.4, 0.13), darker(flesh, 0.12))
    sketch.add(smooth([(-0.28, 0.6), (-0.3, -0.5), (-0.18, -0.82), (0.18, -0.82), (0.3, -0.5),
                       (0.28, 0.6)]), flesh)  # fmt: skip
    for x in (-0.14, 0.0, 0.14):
        _line(sketch, [(x, -0.68), (x, 0.4)], 0.035, darker(flesh, 0.35))
    for x, y in ((-0.2, -0.4), (0.07, -0.5), (-0.07, -0.1), (0.2, 0.0), (-0.2, 0.2), (0.07, 0.28)):
        sketch.add(ellipse(x, y, 0.035, num_points=6), _WHITE)
    sketch.add(ellipse(0, -0.86, 0.14, 0.11), (240, 110, 160))
    sketch.add(np.array([(-0.44, 0.5), (0.44, 0.5), (0.34, 0.98), (-0.34, 0.98)]), darker(pot, 0.1))
    sketch.add(box(-0.5, 0.4, 0.5, 0.58), pot)


def _lamp(sketch, rng):
    shade, foot = _pick(rng), _pick(rng, "brown", "white", "teal")
    sketch.add(smooth([(-0.4, 0.86), (-0.2, 0.76), (0.2, 0.76), (0.4, 0.86), (0.3, 0.96),
                       (-0.3, 0.96)]), darker(foot, 0.2))  # fmt: skip
    _line(sketch, [(0, 0.0), (0, 0.82)], 0.12, foot)
    sketch.add(ellipse(0, 0.46, 0.19, 0.22), foot)
    sketch.add(ellipse(0, 0.12, 0.9, 0.24), clear((255, 240, 170), 0.45))
    sketch.add(np.array([(-0.36, -0.86), (0.36, -0.86), (0.76, 0.08), (-0.76, 0.08)]), shade)
    sketch.add(np.array([(-0.14, -0.86), (0.14, -0.86), (0.28, 0.08), (-0.28, 0.08)]),
               clear((255, 246, 200), 0.5))  # fmt: skip
    _line(sketch, [(-0.78, 0.06), (0.78, 0.06)], 0.08, darker(shade, 0.25))
    _line(sketch, [(-0.37, -0.86), (0.37, -0.86)], 0.07, darker(shade, 0.25))


def _key(sketch, rng):
    metal = [(232, 184, 64), (186, 192, 202), (200, 130, 80)][rng.integers(3)]
    dark = darker(metal, 0.3)
    for tone, shift in ((dark, 0.05), (metal, 0.0)):
        sketch.add(frame(ellipse(-0.52, shift, 0.2), 0.22), tone)
        _line(sketch, [(-0.14, shift), (0.96, shift)], 0.2, tone)
        for x, reach in ((0.52, 0.4), (0.72, 0.3), (0.9, 0.42)):
            sketch.add(box(x - 0.07, shift, x + 0.07, shift + reach), tone)
    _line(sketch, [(-0.1, -0.05), (0.9, -0.05)], 0.05, lighter(metal, 0.6))
    _curve(sketch, [(-0.84, -0.06), (-0.72, -0.26), (-0.5, -0.32)], 0.07, lighter(metal, 0.6))


_DRAW: dict[str, Callable[[Sketch, np.random.Generator], None]] = {
    "apple": _apple, "banana": _banana, "car": _car, "bus": _bus, "bicycle": _bicycle,
    "house": _house, "tree": _tree, "flower": _flower, "cat": _cat, "dog": _dog, "fish": _fish,
    "bird": _bird, "boat": _boat, "cup": _cup, "clock": _clock, "chair": _chair,
    "umbrella": _umbrella, "guitar": _guitar, "ball": _ball, "star": _star,
    "mushroom": _mushroom, "cactus": _cactus, "lamp": _lamp, "key": _key,
}  # fmt: skip
OBJECTS: tuple[str, ...] = tuple(_DRAW)


def draw_object(name: str, rng: np.random.Generator, size: int = 48) -> np.ndarray:
    """Draw one photo of an object; place, tilt, colour and scenery come from `rng`.

    Args:
        name: one of `OBJECTS`.
        rng: the same state gives the same photo at every size.
        size: side of the photo, pixels.

    Returns:
        u8 [size, size, 3].

    Raises:
        InputError: `name` is not one of `OBJECTS`.
    """
    if name not in _DRAW:
        raise InputError(f"`name` (={name!r}) must be one of {', '.join(OBJECTS)}.")
    image = scenery.background(rng, size)
    scale = rng.uniform(0.29, 0.42)
    x, y = 0.5 + rng.uniform(-0.08, 0.08, 2)
    tilt = float(np.clip(rng.normal(0, 0.13), -0.3, 0.3))
    mirror, light = bool(rng.random() < 0.5), rng.uniform(-1, 1)
    sketch = Sketch()
    _DRAW[name](sketch, rng)
    sketch.paint(image, scenery.flat_place(x, y, scale, tilt, mirror))
    return scenery.expose(image, rng, light)
