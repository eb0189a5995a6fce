"""Shapes, backgrounds and lighting shared by the demo's drawings.

A drawing is a list of filled polygons in its own units. It is painted at `SUPERSAMPLE` times the
wanted size and then reduced, so that edges are antialiased. Random values are in units of the
picture, never in pixels, so the same generator gives the same picture at every size.
"""

import colorsys
import functools
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SUPERSAMPLE = 4
BACKGROUND_SIZE = 96  # fixed: backgrounds are out of focus, so no size needs more

Colour = tuple[int, ...]  # RGB or RGBA, 0-255
Points = np.ndarray  # f64 [num_points, 2], x to the right and y down
Place = Callable[[Points, np.ndarray, np.ndarray], Points]


def mix(first: Colour, second: Colour, amount: float) -> Colour:
    """Blend two colours; `amount` 0 is the first, 1 the second."""
    return tuple(
        int(a + (b - a) * amount + 0.5) for a, b in zip(first[:3], second[:3], strict=True)
    )


def darker(colour: Colour, amount: float) -> Colour:
    """Blend a colour towards a warm black, which looks less dirty than grey."""
    return mix(colour, (30, 14, 28), amount)


def lighter(colour: Colour, amount: float) -> Colour:
    """Blend a colour towards a warm white."""
    return mix(colour, (255, 250, 240), amount)


def clear(colour: Colour, opacity: float) -> Colour:
    """Make a colour translucent; `opacity` is from 0 to 1."""
    return (*colour[:3], int(255 * opacity))


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """Return the RGB colour of a hue, saturation and value, each from 0 to 1."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return int(255 * red), int(255 * green), int(255 * blue)


@functools.cache
def _spline(num_points: int, closed: bool, steps: int) -> np.ndarray:
    """Return the matrix from control points to points on a Catmull-Rom curve."""
    t = np.arange(steps)[:, None] / steps
    weights = 0.5 * np.concatenate(
        [-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2], 1
    )
    num_spans = num_points if closed else num_points - 1
    matrix = np.zeros((num_spans * steps + (not closed), num_points))
    for span in range(num_spans):
        for k in range(4):
            index = span + k - 1
            index = index % num_points if closed else min(max(index, 0), num_points - 1)
            matrix[span * steps : (span + 1) * steps, index] += weights[:, k]
    if not closed:
        matrix[-1, -1] = 1.0
    return matrix


def smooth(points: Sequence | Points, *, closed: bool = True, steps: int = 6) -> Points:
    """Return a smooth curve through the points."""
    points = np.asarray(points, float)
    return _spline(len(points), closed, steps) @ points


@functools.cache
def _circle(num_points: int) -> Points:
    angle = np.arange(num_points) * (2 * np.pi / num_points)
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def ellipse(x: float, y: float, rx: float, ry: float | None = None, num_points: int = 28) -> Points:
    """Return an ellipse, or a circle where `ry` is left out."""
    return _circle(num_points) * (rx, rx if ry is None else ry) + (x, y)


def box(x0: float, y0: float, x1: float, y1: float) -> Points:
    """Return an upright rectangle."""
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float)


def ribbon(points: Sequence | Points, width: float | np.ndarray) -> Points:
    """Return the outline of a line of some width, which may vary along the line."""
    points = np.asarray(points, float)
    step = points[1:] - points[:-1]
    tangent = np.concatenate([step[:1], step[1:] + step[:-1], step[-1:]])
    normal = tangent[:, ::-1] * (-0.5, 0.5)
    normal /= np.sqrt((tangent**2).sum(1, keepdims=True)) + 1e-9
    normal *= np.reshape(width, (-1, 1))
    return np.concatenate([points + normal, (points - normal)[::-1]])


def frame(outline: Points, width: float) -> Points:
    """Return a band of some width along the outside of a closed outline."""
    centre = outline.mean(0)
    radius = np.sqrt(((outline - centre) ** 2).sum(1, keepdims=True))
    outer = centre + (outline - centre) * (1 + width / radius)
    return np.concatenate([outline, outline[:1], outer[:1], outer[::-1]])


class Sketch:
    """A list of filled polygons, painted in the order in which they were added."""

    def __init__(self):
        """Start empty."""
        self._points, self._fills, self._depths, self._bends = [], [], [], []

    def add(self, points: Points, fill: Colour, depth: float = 0.0, bend: float = 0.0) -> None:
        """Add a polygon.

        Args:
            points: the polygon in the sketch's own units.
            fill: RGB, or RGBA to let what lies below shine through.
            depth: how far in front of the sketch's plane it lies; used by `place`.
            bend: how much it follows a round surface, 0 or 1; used by `place`.
        """
        self._points.append(points)
        self._fills.append(fill)
        self._depths.append(depth)
        self._bends.append(bend)

    def paint(self, image: Image.Image, place: Place) -> None:
        """Paint the polygons on an RGB image.

        Args:
            image: square, changed in place.
            place: maps (points, depths, bends) to points of the picture, 0 to 1.
        """
        if not self._points:
            return
        counts = [len(points) for points in self._points]
        depths, bends = np.repeat(self._depths, counts), np.repeat(self._bends, counts)
        placed = place(np.concatenate(self._points), depths, bends) * image.width - 0.5
        flat = placed.ravel().tolist()
        draw = ImageDraw.Draw(image, "RGBA")
        start = 0
        for count, fill in zip(counts, self._fills, strict=True):
            draw.polygon(flat[start : start + 2 * count], fill=fill)
            start += 2 * count


def flat_place(x: float, y: float, scale: float, tilt: float = 0.0, mirror: bool = False) -> Place:
    """Return a placement that turns (in radians), scales and moves a flat sketch."""
    cos, sin = np.cos(tilt) * scale, np.sin(tilt) * scale
    turn = np.array([[cos, sin], [-sin, cos]])
    if mirror:
        turn = np.diag([-1.0, 1.0]) @ turn

    def place(points: Points, depths: np.ndarray, bends: np.ndarray) -> Points:
        del depths, bends
        return points @ turn + (x, y)

    return place


# ---- backgrounds: each paints a sketch in units of the picture over a top-to-bottom blend


def _tint(rng: np.random.Generator, saturation=(0.1, 0.6), value=(0.35, 0.95)) -> Colour:
    return hsv(rng.random(), rng.uniform(*saturation), rng.uniform(*value))


def _plain(rng, sketch):
    colour = _tint(rng)
    return colour, colour


def _blend(rng, sketch):
    return _tint(rng), _tint(rng)


def _bokeh(rng, sketch):
    hue = rng.random()
    for x, y, radius, shift in rng.random((12, 4)):
        colour = hsv(hue + 0.2 * shift, 0.5, 1.0)
        sketch.add(ellipse(x, y, 0.04 + 0.1 * radius), clear(colour, 0.25 + 0.3 * shift))
    return hsv(hue, 0.6, rng.uniform(0.2, 0.5)), hsv(hue + 0.1, 0.5, rng.uniform(0.3, 0.7))


def _stripes(rng, sketch):
    colour = _tint(rng)
    other = mix(colour, _tint(rng), 0.6)
    step, slant = rng.uniform(0.14, 0.3), rng.uniform(-0.6, 0.6)
    for left in np.arange(-0.8, 1.8, step):
        right = left + step / 2
        corners = [(left, 0), (right, 0), (right + slant, 1), (left + slant, 1)]
        sketch.add(np.array(corners), other)
    return colour, colour


def _dots(rng, sketch):
    colour = _tint(rng)
    other = mix(colour, _tint(rng), 0.7)
    step, radius = rng.uniform(0.15, 0.25), rng.uniform(0.03, 0.06)
    for row, y in enumerate(np.arange(0.02, 1.1, step)):
        for x in np.arange(0.02 + (row % 2) * step / 2, 1.1, step):
            sketch.add(ellipse(x, y, radius, num_points=12), other)
    return colour, colour


def _hills(rng, sketch):
    sky = hsv(rng.uniform(0.5, 0.66), rng.uniform(0.2, 0.6), rng.uniform(0.7, 1.0))
    if rng.random() < 0.25:
        sky = hsv(rng.uniform(0.02, 0.1), 0.5, 0.95)
    x, y = rng.uniform(0, 1), rng.uniform(0.05, 0.4)
    sketch.add(ellipse(x, y, 0.08), clear((255, 246, 214), 0.9))
    green = hsv(rng.uniform(0.2, 0.4), rng.uniform(0.3, 0.6), rng.uniform(0.4, 0.75))
    for layer in range(3):
        tops = rng.uniform(-0.08, 0.08, 6) + 0.5 + 0.17 * layer
        curve = smooth(np.stack([np.linspace(-0.1, 1.1, 6), tops], 1), closed=False)
        hill = np.concatenate([curve, [(1.1, 1.1), (-0.1, 1.1)]])
        sketch.add(hill, mix(green, sky, 0.5 - 0.25 * layer))
    return sky, lighter(sky, 0.6)


def _skyline(rng, sketch):
    sky = hsv(rng.choice([0.58, 0.62, 0.75, 0.05]), rng.uniform(0.2, 0.5), rng.uniform(0.4, 1.0))
    lit = rng.random() < 0.5
    left = -0.05
    for width, height, tone in rng.random((9, 3)):
        right, top = left + 0.1 + 0.1 * width, 0.25 + 0.45 * height
        wall = mix(darker(sky, 0.6), (120, 120, 140), 0.5 * tone)
        sketch.add(box(left, top, right, 1.1), wall)
        pane = (250, 220, 140) if lit else lighter(wall, 0.35)
        for y in np.arange(top + 0.05, 1.0, 0.1):
            for x in np.arange(left + 0.02, right - 0.03, 0.055):
                sketch.add(box(x, y, x + 0.03, y + 0.045), pane)
        left = right
    return sky, lighter(sky, 0.5)


def _room(rng, sketch):
    wall = _tint(rng, (0.08, 0.35), (0.6, 0.95))
    floor = rng.uniform(0.68, 0.85)
    sketch.add(box(-0.1, floor, 1.1, 1.1), hsv(0.07, rng.uniform(0.3, 0.6), rng.uniform(0.3, 0.6)))
    sketch.add(box(-0.1, floor - 0.03, 1.1, floor), lighter(wall, 0.6))
    x, y, width, height = rng.uniform((-0.1, 0.05, 0.2, 0.2), (0.7, 0.2, 0.4, 0.4))
    sketch.add(box(x - 0.02, y - 0.02, x + width + 0.02, y + height + 0.02), lighter(wall, 0.75))
    sketch.add(box(x, y, x + width, y + height), _tint(rng, (0.2, 0.6), (0.5, 0.95)))
    return wall, darker(wall, 0.12)


def _leaves(rng, sketch):
    green = hsv(rng.uniform(0.2, 0.42), rng.uniform(0.4, 0.7), rng.uniform(0.3, 0.6))
    if rng.random() < 0.25:
        green = hsv(rng.uniform(0.03, 0.12), 0.7, 0.7)
    for x, y, radius, tone in rng.random((26, 4)):
        leaf = lighter(green, 0.4 * tone) if tone > 0.5 else darker(green, 0.5 * tone)
        sketch.add(ellipse(x, y, 0.05 + 0.08 * radius, num_points=12), clear(leaf, 0.8))
    return lighter(green, 0.15), darker(green, 0.4)


def _beach(rng, sketch):
    sky = hsv(rng.uniform(0.5, 0.6), rng.uniform(0.2, 0.45), rng.uniform(0.85, 1.0))
    sea, sand = rng.uniform(0.4, 0.55), rng.uniform(0.65, 0.8)
    sketch.add(box(-0.1, sea, 1.1, 1.1), hsv(rng.uniform(0.48, 0.6), 0.7, rng.uniform(0.5, 0.8)))
    shore = rng.uniform(-0.03, 0.03, 5) + sand
    curve = smooth(np.stack([np.linspace(-0.1, 1.1, 5), shore], 1), closed=False)
    sketch.add(ribbon(curve, 0.05), (240, 246, 250))
    sketch.add(np.concatenate([curve, [(1.1, 1.1), (-0.1, 1.1)]]), hsv(0.11, 0.35, 0.92))
    return sky, lighter(sky, 0.5)


_BACKGROUNDS = (
    _plain, _blend, _blend, _bokeh, _stripes, _dots, _hills, _skyline, _room, _leaves, _beach,
)  # fmt: skip


def background(rng: np.random.Generator, size: int) -> Image.Image:
    """Draw a random, out-of-focus background.

    Args:
        rng: used in the same way at every size.
        size: side of the wanted photo, pixels.

    Returns:
        An RGB image, `SUPERSAMPLE` times `size` on a side, to paint on.
    """
    sketch = Sketch()
    top, bottom = _BACKGROUNDS[rng.integers(len(_BACKGROUNDS))](rng, sketch)
    blur = rng.uniform(0.8, 2.0)
    ramp = np.linspace(top, bottom, BACKGROUND_SIZE)[:, None, :].round().astype(np.uint8)
    image = Image.fromarray(np.repeat(ramp, BACKGROUND_SIZE, 1))
    sketch.paint(image, lambda points, depths, bends: points)
    image = image.filter(ImageFilter.BoxBlur(blur))
    side = size * SUPERSAMPLE
    return image.resize((side, side), Image.Resampling.BILINEAR)


def expose(image: Image.Image, rng: np.random.Generator, light: float = 0.0) -> np.ndarray:
    """Turn a painted scene into a photo with lighting, contrast, slight blur and noise.

    Args:
        image: RGB, `SUPERSAMPLE` times the wanted size on a side.
        rng: used in the same way at every size.
        light: where the light comes from, -1 left to 1 right.

    Returns:
        u8 [size, size, 3].
    """
    brightness, contrast = rng.uniform(0.87, 1.12), rng.uniform(0.88, 1.12)
    warmth, green, slope, fall = rng.normal(0, (0.05, 0.02, 0.06, 0.06))
    vignette = max(0.0, rng.uniform(-0.15, 0.2))
    blur = max(0.0, rng.uniform(-0.012, 0.006))
    noise = max(0.0, rng.uniform(-0.01, 0.012))
    # The number of noise values depends on the size, so noise has a generator of its own.
    noise_rng = np.random.default_rng(rng.integers(2**63))

    size = image.width // SUPERSAMPLE
    image = image.reduce(SUPERSAMPLE)
    if blur > 0:
        image = image.filter(ImageFilter.BoxBlur(blur * size))
    photo_HWC = np.asarray(image, np.float32) / 255
    at = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = at[None, :], at[:, None]
    gain_HW = (1 + (slope + 0.1 * light) * x + (fall - 0.04) * y) * (1 - vignette * (x**2 + y**2))
    cast = np.array([1 + warmth, 1 + green, 1 - warmth], np.float32) * brightness
    photo_HWC = (photo_HWC * cast * gain_HW[..., None] - 0.5) * np.float32(contrast) + 0.5
    if noise > 0:
        photo_HWC += noise_rng.normal(0, noise, (size, size, 1)).astype(np.float32)
    return (photo_HWC.clip(0, 1) * 255 + 0.5).astype(np.uint8)
