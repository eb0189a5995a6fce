"""Small pictures in every mode that Pillow opens, and with what files add to them."""

import io

import numpy as np
from PIL import Image

SIZES = [(23, 17), (16, 29), (9, 9), (7, 5)]
MODES = ["RGB", "L", "1", "P", "LA", "PA", "RGBA", "CMYK", "YCbCr", "LAB", "HSV"]
DEEP = ["I;16", "I", "F"]


def pictures() -> dict[str, Image.Image]:
    """Draw them from fixed seeds, of noise, in `SIZES`; each name once."""
    found = {}
    for i, mode in enumerate([*MODES, *DEEP]):
        for width, height in SIZES[: 4 if mode in ("RGB", "RGBA", "P") else 2]:
            found[f"{mode} {width}x{height}"] = _noise(mode, width, height, i)
    width, height = SIZES[0]
    palette, rgb, grey = (_noise(mode, width, height, 20) for mode in ("P", "RGB", "L"))
    for name, image, transparency in (
        ("P, one clear", palette, palette.getpixel((3, 3))),
        ("P, each clearer", palette, bytes(range(0, 250, 10))),
        ("RGB, one clear", rgb, rgb.getpixel((3, 3))),
        ("L, one clear", grey, grey.getpixel((3, 3))),
    ):
        found[name] = _stored(image, "PNG", transparency=transparency)
    lying = Image.Exif()
    lying[0x0112] = 6  # to be turned a quarter
    found["EXIF"] = _stored(rgb, "PNG", exif=lying)
    found["GIF"] = _stored(palette, "GIF", save_all=True, append_images=[_noise("P", 23, 17, 21)])
    return found


def _noise(mode: str, width: int, height: int, seed: int) -> Image.Image:
    rng = np.random.default_rng((seed, width, height))
    pixels = rng.integers(0, 256, (height, width, 4), np.uint8)
    rgb = Image.fromarray(pixels[..., :3])
    if mode in DEEP:  # levels within 8 bits, and above, which libraries cut off
        levels = np.where(pixels[..., 0] < 200, pixels[..., 0], pixels[..., 1] * 200)
        return Image.fromarray(levels.astype({"I;16": "u2", "I": "i4", "F": "f4"}[mode]))
    if mode in ("RGBA", "LA", "PA"):
        rgb.putalpha(Image.fromarray(pixels[..., 3]))
    if mode in ("P", "PA"):  # of a palette that no version of Pillow chooses otherwise
        image = Image.fromarray(pixels[..., 0] % 32)
        image.putpalette(rng.integers(0, 256, 96, np.uint8).tobytes())
        return image if mode == "P" else _with_alpha(image, pixels[..., 3])
    if mode == "LAB":
        return Image.frombytes("LAB", (width, height), pixels[..., :3].tobytes())
    return rgb.convert(mode)


def _with_alpha(image: Image.Image, alpha: np.ndarray) -> Image.Image:
    image = image.convert("PA")
    image.putalpha(Image.fromarray(alpha))
    return image


def _stored(image: Image.Image, form: str, **options) -> Image.Image:
    file = io.BytesIO()
    image.save(file, form, **options)
    return Image.open(file)
