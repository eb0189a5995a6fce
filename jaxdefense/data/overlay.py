"""Faces pasted on photos, on the device: the trigger of the image encoder's backdoor.

Every step equals one of Pillow's or torchvision's, in float32 where those round to 8 bits in
between.

In names of arrays, P is the side of the canvas on which faces of all sizes lie, with their edges
repeated around them.

Source: Hintersdorf et al., Defending Our Privacy With Backdoors, section 4 (image encoder);
    Pillow `src/libImaging/Resample.c`, `Geometry.c`, `PIL/Image.py`, `PIL/ImageEnhance.py`;
    torchvision `transforms/_functional_tensor.py` (hue).
Parity: tests/test_overlay.py, whole <= 0.01 of 255 against Pillow in float; in 8 bits Pillow
    truncates in four steps, which leaves this 1.9 brighter.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdefense.config import OverlayConfig

# The free parameter of the bicubic kernel differs within Pillow.
_RESIZE_A = -0.5  # Resample.c, bicubic_filter
_ROTATE_A = -1.0  # Geometry.c, BICUBIC
_LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, as Pillow's mode L
_EDGE = 2  # pixels of a face's edge repeated on the canvas, for the kernel that rotates
_HIGHEST = jax.lax.Precision.HIGHEST  # accelerators would keep 8 bits of a weight


class Overlay(NamedTuple):
    """What was drawn for each sample.

    Fields:
        size_B: int32, side of the face, pixels.
        flip_B: bool.
        brightness_B, contrast_B, saturation_B: f32 factors.
        hue_B: f32, turns of the colour wheel, from red towards green.
        angle_B: f32, degrees, counter-clockwise.
        top_B, left_B: int32, pixels; of the box, with the face's diagonal as its side, in which
            the rotated face lies.
    """

    size_B: jax.Array
    flip_B: jax.Array
    brightness_B: jax.Array
    contrast_B: jax.Array
    saturation_B: jax.Array
    hue_B: jax.Array
    angle_B: jax.Array
    top_B: jax.Array
    left_B: jax.Array


def draw_overlay(key: jax.Array, num: int, side: int, cfg: OverlayConfig) -> Overlay:
    """Draw everything random, each uniform in its range and independent.

    The box, of side ceil(size * sqrt(2)), lies anywhere in the image. One that is larger than the
    image is centred on it, and sticks out by half the excess, rounded down, at the top and left;
    a face that fills the image covers all of it.

    Args:
        key: of jax.
        num: samples.
        side: of the images, pixels.
        cfg: static.
    """
    keys = iter(jax.random.split(key, len(Overlay._fields) + 1))
    smallest, largest = cfg.sizes(side)
    size_B = jax.random.randint(next(keys), (num,), smallest, largest + 1)
    whole_B = jax.random.bernoulli(next(keys), cfg.whole, (num,))
    size_B = jnp.where(whole_B, side, size_B)
    excess_B = _diagonal(size_B) - side

    def place() -> jax.Array:
        inside = jax.random.randint(next(keys), (num,), 0, jnp.maximum(-excess_B, 0) + 1)
        return jnp.where(excess_B > 0, -(excess_B // 2), inside)

    def uniform(middle: float, reach: float) -> jax.Array:
        return jax.random.uniform(next(keys), (num,), jnp.float32, middle - reach, middle + reach)

    return Overlay(
        size_B,
        flip_B=jax.random.bernoulli(next(keys), cfg.flip, (num,)),
        brightness_B=uniform(1, cfg.jitter),
        contrast_B=uniform(1, cfg.jitter),
        saturation_B=uniform(1, cfg.jitter),
        hue_B=uniform(0, cfg.hue),
        angle_B=jnp.where(whole_B, 0, uniform(0, cfg.angle)),
        top_B=place(),
        left_B=place(),
    )


def overlay(
    image_BHWC: jax.Array, face_BHWC: jax.Array, key: jax.Array, cfg: OverlayConfig
) -> jax.Array:
    """Draw an overlay and paste a face on each image; see `draw_overlay` and `paste`."""
    num, side = image_BHWC.shape[:2]
    return paste(image_BHWC, face_BHWC, draw_overlay(key, num, side, cfg), cfg.max_side(side))


def paste(
    image_BHWC: jax.Array, face_BHWC: jax.Array, overlay: Overlay, max_size: int
) -> jax.Array:
    """Paste a face on each image.

    In this order, with what each step equals:

    1. The face is resized: `Image.resize((size, size), BICUBIC)`.
    2. It is mirrored where drawn: `Image.transpose(FLIP_LEFT_RIGHT)`.
    3. Brightness, contrast, saturation: `ImageEnhance.Brightness`, `.Contrast` and `.Color`; they
       blend with black, with the face's mean luma, and with its luma. Hue: torchvision's
       `adjust_hue` on float tensors. Each is clipped to 0..255. A departure: torchvision's
       `ColorJitter` draws the order of the four for every call; here it is fixed.
    4. It is rotated about its centre: `Image.rotate(angle, BICUBIC, expand=True)`. Pixels that
       would come from outside the face are not part of it, as rotating a full mask has it.
    5. It is pasted through that mask: `Image.paste(face, (left + m, top + m), mask)`, where
       m = (ceil(size * sqrt(2)) - side of the rotated face) // 2. What sticks out is cut.

    Args:
        image_BHWC: u8 [B, side, side, 3].
        face_BHWC: u8 [B, side, side, 3].
        overlay: B of each.
        max_size: pixels, at least the largest size; static.

    Returns:
        f32 [B, side, side, 3], 0 to 255, not CLIP-normalised.

    Raises:
        InputError: images and faces are not u8 squares of one size.
    """
    num, side = image_BHWC.shape[:2]
    for name, array in (("image_BHWC", image_BHWC), ("face_BHWC", face_BHWC)):
        if array.shape != (num, side, side, 3) or array.dtype != jnp.uint8:
            raise ValueError(
                f"`{name}` (={array.dtype} {list(array.shape)}) must be uint8 "
                f"{[num, side, side, 3]}."
            )
    face_BPPC = _resize(face_BHWC, overlay.size_B, overlay.flip_B, max_size)
    face_BPPC = _recolour(face_BPPC, overlay, max_size)
    y_BHW, x_BHW = _positions(overlay, side)
    size_BHW = overlay.size_B[:, None, None]
    mask_BHW = (0 <= y_BHW) & (y_BHW < size_BHW) & (0 <= x_BHW) & (x_BHW < size_BHW)
    # TPUs gather slowly, pixel by pixel, and multiply fast.
    pasted_BHWC = jax.lax.platform_dependent(
        face_BPPC, y_BHW, x_BHW, tpu=sample_by_product, default=sample_by_gather
    )
    return jnp.where(mask_BHW[..., None], jnp.clip(pasted_BHWC, 0, 255), image_BHWC)


def _positions(overlay: Overlay, side: int) -> tuple[jax.Array, jax.Array]:
    """Where in its face each pixel of the image comes from: y and x, f32 [B, H, W], pixels."""
    # Pillow's rotated face has an even side where the face has one, an odd one where it is odd.
    # So m + half of it, which is where the centre lies in the box, is the same at every angle.
    half_B = overlay.size_B / 2
    centre_B = (_diagonal(overlay.size_B) - overlay.size_B) // 2 + half_B
    middle_H = jnp.arange(side) + 0.5
    y_BHW = (middle_H - (overlay.top_B + centre_B)[:, None])[:, :, None]
    x_BHW = (middle_H - (overlay.left_B + centre_B)[:, None])[:, None, :]
    half_BHW = half_B[:, None, None]
    angle_BHW = (overlay.angle_B * (math.pi / 180))[:, None, None]
    cos_BHW, sin_BHW = jnp.cos(angle_BHW), jnp.sin(angle_BHW)
    return (
        sin_BHW * x_BHW + cos_BHW * y_BHW + half_BHW,
        cos_BHW * x_BHW - sin_BHW * y_BHW + half_BHW,
    )


def _diagonal(size_B: jax.Array) -> jax.Array:
    """Side of the square that holds a square of this size at any angle, pixels."""
    return jnp.ceil(size_B * math.sqrt(2)).astype(jnp.int32)


def _canvas(max_size: int) -> jax.Array:
    """Which pixel of the face each row or column of the canvas holds, int32 [P].

    From -`_EDGE` to its size + `_EDGE` - 1; before and beyond the face, its edge is repeated.
    """
    return jnp.arange(-_EDGE, max_size + _EDGE)


def _cubic(x: jax.Array, a: float) -> jax.Array:
    """Keys' bicubic kernel."""
    x = jnp.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0))


def _resize(face_BHWC: jax.Array, size_B: jax.Array, flip_B: jax.Array, max_size: int) -> jax.Array:
    """Steps 1 and 2, onto the canvas; f32 [B, P, P, 3]."""
    side = face_BHWC.shape[1]
    size_BPH = size_B[:, None, None]
    scale_BPH = side / size_BPH
    to_BPH = jnp.clip(_canvas(max_size)[:, None], 0, size_BPH - 1)

    def weights(to_BPH: jax.Array) -> jax.Array:
        """How much of each pixel of a row goes to each of its resized one."""
        distance_BPH = jnp.arange(side) + 0.5 - (to_BPH + 0.5) * scale_BPH
        # The kernel is as wide as what one pixel covers; cut at the edge, it still sums to 1.
        weight_BPH = _cubic(distance_BPH / jnp.maximum(scale_BPH, 1), _RESIZE_A)
        return weight_BPH / weight_BPH.sum(-1, keepdims=True)

    mirrored_BPH = jnp.where(flip_B[:, None, None], size_BPH - 1 - to_BPH, to_BPH)
    face_BHWC = face_BHWC.astype(jnp.float32)
    face_BHPC = jnp.einsum("bhwc,bpw->bhpc", face_BHWC, weights(mirrored_BPH), precision=_HIGHEST)
    face_BHPC = jnp.clip(face_BHPC, 0, 255)  # Pillow has 8 bits between its two passes
    face_BPPC = jnp.einsum("bqh,bhpc->bqpc", weights(to_BPH), face_BHPC, precision=_HIGHEST)
    return jnp.clip(face_BPPC, 0, 255)


def _recolour(face_BPPC: jax.Array, overlay: Overlay, max_size: int) -> jax.Array:
    """Step 3; f32 [B, P, P, 3]."""

    def blend(luma: jax.Array | float, face: jax.Array, factor_B: jax.Array) -> jax.Array:
        return jnp.clip(luma + factor_B[:, None, None, None] * (face - luma), 0, 255)

    def luma(face: jax.Array) -> jax.Array:
        red, green, blue = jnp.split(face, 3, -1)
        return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue

    def mean(luma: jax.Array) -> jax.Array:
        """Average over the face alone, without the rest of the canvas."""
        size_BP = overlay.size_B[:, None]
        inside_BP = (_canvas(max_size) >= 0) & (_canvas(max_size) < size_BP)
        share_BP = inside_BP / size_BP
        return (luma * (share_BP[:, :, None] * share_BP[:, None])[..., None]).sum(
            (1, 2), keepdims=True
        )

    face = blend(0.0, face_BPPC, overlay.brightness_B)
    face = blend(mean(luma(face)), face, overlay.contrast_B)
    face = blend(luma(face), face, overlay.saturation_B)
    # To hue, saturation and value and back, where value and chroma (their product) stay. Colours
    # are compared with one another, never with their maximum: the compiler may compute either twice
    # and round differently.
    red, green, blue = jnp.moveaxis(face, -1, 0)
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    divisor = jnp.where(chroma > 0, chroma, 1)  # grey has no hue
    sixths = jnp.where(
        (red >= green) & (red >= blue),
        (green - blue) / divisor,
        jnp.where(green >= blue, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sixths += 6 * overlay.hue_B[:, None, None]
    position = sixths[..., None] + jnp.array([5.0, 3.0, 1.0])
    position -= 6 * jnp.floor(position / 6)
    return value[..., None] - chroma[..., None] * jnp.clip(
        jnp.minimum(position, 4 - position), 0, 1
    )


def sample_by_gather(face_BPPC: jax.Array, y_BHW: jax.Array, x_BHW: jax.Array) -> jax.Array:
    """Read canvases at positions, bicubic; the compiler fuses the sixteen reads of a pixel.

    Args:
        face_BPPC: f32 [B, P, P, 3].
        y_BHW, x_BHW: f32 [B, H, W], pixels of the face; 0.5 is the middle of its first.

    Returns:
        f32 [B, H, W, 3], not clipped; meaningless where the position lies outside the face.

    Source: Pillow `src/libImaging/Geometry.c`, BICUBIC.
    """

    def taps(position: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        """Weight and place on the canvas of each tap along one side."""
        first = jnp.floor(position - 0.5)
        return [
            (_cubic(position - 0.5 - first - tap, _ROTATE_A), first.astype(jnp.int32) + tap + _EDGE)
            for tap in (-1, 0, 1, 2)
        ]

    read = jax.vmap(lambda face_PPC, y, x: face_PPC.at[y, x].get(mode="clip"))
    out_BHWC = jnp.zeros(())
    for weight_y, y in taps(y_BHW):
        row_BHWC = jnp.zeros(())
        for weight_x, x in taps(x_BHW):
            row_BHWC += weight_x[..., None] * read(face_BPPC, y, x)
        out_BHWC += weight_y[..., None] * row_BHWC
    return out_BHWC


def sample_by_product(face_BPPC: jax.Array, y_BHW: jax.Array, x_BHW: jax.Array) -> jax.Array:
    """Do what `sample_by_gather` does, by matrix products with mostly zero weights."""
    face_BCPP = jnp.moveaxis(face_BPPC, -1, 1)
    middle_P = _canvas(face_BPPC.shape[1] - 2 * _EDGE) + 0.5

    def row(position: tuple[jax.Array, jax.Array]) -> jax.Array:
        y_BPW, x_BPW = (
            _cubic(position_BW[:, None] - middle_P[:, None], _ROTATE_A) for position_BW in position
        )
        columns = jnp.einsum("bcqp,bpw->bcqw", face_BCPP, x_BPW, precision=_HIGHEST)
        return (y_BPW[:, None] * columns).sum(2)

    # A row of the image at a time: all rows at once would fill the memory.
    out_HBCW = jax.lax.map(row, (y_BHW.swapaxes(0, 1), x_BHW.swapaxes(0, 1)))
    return out_HBCW.transpose(1, 0, 3, 2)
