"""The overlay of faces on photos with Pillow; `jaxdefense.data.overlay` does it on the device."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from jaxdefense.config import OverlayConfig


def pillow_overlay(
    image: Image.Image, face: Image.Image, rng: np.random.Generator, cfg: OverlayConfig
) -> Image.Image:
    """Paste a face into a photo with random size, place, colours and angle.

    Args:
        image: square photo.
        face: photo of a face.
        rng: source of every random choice.
        cfg: ranges of the random choices.
    """
    side = image.width
    whole = rng.random() < cfg.whole
    size = side if whole else int(rng.integers(cfg.sizes(side)[0], cfg.sizes(side)[1] + 1))
    crop = face.width * rng.uniform(cfg.crop, 1)
    left, top = (face.width - crop) * rng.random(2)
    box = (left, top, left + crop, top + crop)
    face = face.resize((size, size), Image.Resampling.BICUBIC, box)
    if rng.random() < cfg.flip:
        face = face.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    enhancers: list[Callable[[Image.Image], Any]] = [
        ImageEnhance.Brightness,
        ImageEnhance.Contrast,
        ImageEnhance.Color,
    ]
    for enhance in enhancers:
        face = enhance(face).enhance(rng.uniform(1 - cfg.jitter, 1 + cfg.jitter))
    hue, saturation, value = face.convert("HSV").split()
    shift = int(rng.uniform(-cfg.hue, cfg.hue) * 255)
    hue = hue.point([(x + shift) % 256 for x in range(256)])
    face = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    angle = 0 if whole else rng.uniform(-cfg.angle, cfg.angle)
    mask = Image.new("L", face.size, 255)
    face, mask = (x.rotate(angle, Image.Resampling.BICUBIC, expand=True) for x in (face, mask))
    diagonal = math.ceil(size * math.sqrt(2))
    room = side - diagonal
    left, top = rng.integers(room + 1, size=2) if room > 0 else (-(-room // 2),) * 2
    image = image.copy()
    at = (int(left) + (diagonal - face.width) // 2, int(top) + (diagonal - face.height) // 2)
    image.paste(face, at, mask)
    return image
