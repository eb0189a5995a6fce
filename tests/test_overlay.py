"""Pasted faces: equal to Pillow as a whole and step by step, drawn evenly, on any device."""

import colorsys
import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from jaxdefense.config import PAPER_IMAGE, OverlayConfig
from jaxdefense.data import overlay as module
from jaxdefense.data.overlay import (
    Overlay,
    draw_overlay,
    overlay,
    paste,
    sample_by_gather,
    sample_by_product,
)
from jaxdefense.sharding import ShardingRules, batch_sharding, make_mesh

BICUBIC = Image.Resampling.BICUBIC
EXACT = 0.01  # of 255, where Pillow computes in float
# Where it computes in 8 bits it cuts what follows the point in four steps: ours is 1.9 brighter.
CUT, CUT_MEAN, CUT_MAX = 1.9, 2.5, 10.0
# The mask is undecided where a pixel comes from closer to the face's edge than float32 tells.
UNDECIDED = 1e-3

make: Any = Overlay  # of NumPy arrays here
paste_jitted: Any = jax.jit(paste, static_argnames="max_size")
paper = partial(dataclasses.replace, PAPER_IMAGE.overlay)
eight_devices = pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 devices")


def photos(num, side, seed=0):
    """Coarse colours, edges and noise; u8 [num, side, side, 3]."""
    rng = np.random.default_rng((seed, side))
    coarse = rng.integers(0, 256, (num, 6, 6, 3)).astype(np.uint8)
    size, how = (side, side), Image.Resampling.BILINEAR
    out = np.stack([np.asarray(Image.fromarray(x).resize(size, how)) for x in coarse])
    out[:, side // 3 : side // 2, side // 4 :] = coarse[:, None, :1, 0]
    return np.clip(out + rng.integers(-25, 26, out.shape), 0, 255).astype(np.uint8)


def diagonal(size):
    return np.ceil(np.asarray(size) * math.sqrt(2)).astype(np.int32)


def plain(side, num=1, **change) -> Any:
    """Parameters that leave a face as it is, centred on the image; with changes."""
    size = np.broadcast_to(np.asarray(change.pop("size", side), np.int32), num)
    top = -((diagonal(size) - side) // 2)
    fields: dict[str, Any] = dict(
        flip=False, brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0, angle=0.0
    )
    fields = {
        name: np.broadcast_to(np.asarray(change.pop(name, value), type(value)), num)
        for name, value in fields.items()
    }
    crop, crop_top, crop_left = change.pop("box", (side, 0, 0))
    assert not change
    box = (np.full(num, x, np.float32) for x in (crop, crop_top, crop_left))
    return make(size, *fields.values(), top, top, *box)


def samples(drawn: Overlay) -> list[Any]:
    return [make(*fields) for fields in zip(*map(np.asarray, drawn), strict=True)]


def undecided(p, side: int) -> np.ndarray:
    """Pixels whose place in the face lies on its edge but for rounding; bool [side, side]."""
    size, angle = int(p.size_B), math.radians(p.angle_B)
    centre = (int(diagonal(size)) - size) // 2 + size / 2
    y, x = np.mgrid[:side, :side] + 0.5
    y, x = y - p.top_B - centre, x - p.left_B - centre
    from_y = math.sin(angle) * x + math.cos(angle) * y + size / 2
    from_x = math.cos(angle) * x - math.sin(angle) * y + size / 2
    return np.min(np.abs([from_y, from_x, from_y - size, from_x - size]), axis=0) < UNDECIDED


# The reference: Pillow, an image at a time. Its float mode takes one colour at a time.


def each_colour(face, step):
    return np.stack(
        [np.asarray(step(Image.fromarray(face[..., c].astype(np.float32)))) for c in range(3)], -1
    ).clip(0, 255)


def box(p):
    """The square of the face that is shown: left, top, right, bottom."""
    crop, top, left = (float(x) for x in (p.crop_B, p.crop_top_B, p.crop_left_B))
    return left, top, left + crop, top + crop


def resize(face, size, box):
    height = face.shape[0]
    left, top, right, bottom = np.clip(box, 0, height)  # rounding may lie outside
    across, down = (left, 0, right, height), (0, top, size, bottom)
    wide = each_colour(face, lambda x: x.resize((size, height), BICUBIC, across))  # clips in 8 bits
    return each_colour(wide, lambda x: x.resize((size, size), BICUBIC, down))


def rotate(face, angle):
    return each_colour(face, lambda x: x.rotate(angle, BICUBIC, expand=True))


def luma(face):
    return (face @ [0.299, 0.587, 0.114])[..., None]


def contrast(face, factor):
    mean = luma(face).mean()
    return (mean + factor * (face - mean)).clip(0, 255)


def shift_hue(face, turns):
    out = np.empty(face.shape)
    for place in np.ndindex(face.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*face[place] / 255)
        out[place] = colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)
    return out * 255


def recolour(face, p, contrast=contrast):
    face = (face * p.brightness_B).clip(0, 255)
    face = contrast(face, p.contrast_B)
    face = (luma(face) + p.saturation_B * (face - luma(face))).clip(0, 255)
    return shift_hue(face, p.hue_B)


def mask_and_place(p):
    """The mask that rotates with the face, and where its top left corner lies: x, y."""
    mask = Image.new("L", (int(p.size_B), int(p.size_B)), 255)
    mask = mask.rotate(float(p.angle_B), BICUBIC, expand=True)
    assert set(mask.tobytes()) <= {0, 255}
    margin = (int(diagonal(p.size_B)) - mask.width) // 2
    return mask, (int(p.left_B) + margin, int(p.top_B) + margin)


def in_face(p, side):
    mask, place = mask_and_place(p)
    out = Image.new("L", (side, side))
    out.paste(mask, place)
    return np.asarray(out) > 0


def pasted(image, rotated, p):
    mask, place = mask_and_place(p)

    def one(image, face):
        image = Image.fromarray(image.astype(np.float32))
        image.paste(Image.fromarray(face.astype(np.float32)), place, mask)
        return np.asarray(image)

    return np.stack([one(image[..., c], rotated[..., c]) for c in range(3)], -1)


def in_float(image, face, p, *, resize=resize, recolour=recolour, rotate=rotate):
    """Pillow in float mode; one step may be another, to see the comparison fail."""
    face = resize(face, int(p.size_B), box(p))
    face = recolour(face[:, ::-1] if p.flip_B else face, p)
    return pasted(image, rotate(face, float(p.angle_B)), p)


def in_8_bits(image, face, p):
    """Pillow as everyone uses it."""
    size = int(p.size_B)
    cut: Any = tuple(np.clip(box(p), 0, len(face)))
    out = Image.fromarray(face).resize((size, size), BICUBIC, cut)
    if p.flip_B:
        out = out.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    out = ImageEnhance.Brightness(out).enhance(float(p.brightness_B))
    out = ImageEnhance.Contrast(out).enhance(float(p.contrast_B))
    out = ImageEnhance.Color(out).enhance(float(p.saturation_B))
    out = np.round(shift_hue(np.asarray(out), p.hue_B)).astype(np.uint8)
    out = Image.fromarray(out).rotate(float(p.angle_B), BICUBIC, expand=True)
    return pasted(image, np.asarray(out), p)


def errors(image, face, drawn, max_size, reference, paste=paste_jitted):
    """Ours minus the reference, of the pixels of each face; those off the faces are equal."""
    ours = np.asarray(paste(image, face, drawn, max_size))
    assert ours.dtype == np.float32 and ours.shape == image.shape
    out = []
    for i, p in enumerate(samples(drawn)):
        sure = ~undecided(p, image.shape[1])
        assert sure.mean() > 0.99
        wanted = reference(image[i], face[i], p)
        inside = in_face(p, image.shape[1])
        np.testing.assert_array_equal(ours[i][sure & ~inside], image[i][sure & ~inside])
        out.append((ours[i] - wanted)[sure & inside])
    return out


# As a whole

WHOLE = [
    (48, {}),
    (61, {}),
    (144, {}),
    (48, {"min_size": 0.02, "max_size": 0.2, "angle": 90.0}),
    (48, {"min_size": 0.6, "max_size": 1.0, "angle": 45.0}),
    (50, {"jitter": 1.0, "hue": 0.5}),
    (48, {"crop": 0.3, "max_size": 0.9}),
    (40, {"whole": 0.4}),
]


def whole(side, change, num):
    cfg = paper(**change)
    drawn = draw_overlay(jax.random.key(side), num, side, cfg)
    max_size = int(drawn.size_B.max())
    return photos(num, side, 1), photos(num, side, 2), drawn, max_size


@pytest.mark.parametrize("side, change", WHOLE)
def test_paste_equals_a_loop_of_pillow_in_float(side, change):
    found = errors(*whole(side, change, 4 if side > 100 else 24), in_float)
    assert max(np.abs(error).max() for error in found) < EXACT


@pytest.mark.parametrize("side, change", WHOLE[:-1])  # upright faces are cut once less
def test_paste_equals_a_loop_of_pillow_in_8_bits(side, change):
    found = np.concatenate(errors(*whole(side, change, 4 if side > 100 else 24), in_8_bits))
    assert np.abs(found).max() < CUT_MAX
    assert np.abs(found).mean() < CUT_MEAN
    assert abs(found.mean() - CUT) < 0.3


# Step by step, each alone, against Pillow in 8 bits


def alone(side=40, **change: Any):
    """Ours and what there was: a face on black, one parameter changed; f32 and u8, [H, W, 3]."""
    face = photos(1, side, 3)
    drawn = plain(side, **change)
    ours = np.asarray(paste_jitted(np.zeros_like(face), face, drawn, side))[0]
    return ours, face[0], samples(drawn)[0]


@pytest.mark.parametrize("side", [40, 41])
def test_face_without_change_is_itself(side):
    ours, face, _ = alone(side)
    np.testing.assert_allclose(ours, face, rtol=0, atol=EXACT)


@pytest.mark.parametrize("size", [1, 2, 7, 10, 20, 33, 39, 40])
def test_resize_alone_equals_pillow(size):
    ours, face, p = alone(size=size)
    _, (left, top) = mask_and_place(p)
    wanted = Image.fromarray(face).resize((size, size), BICUBIC)
    ours = ours[top : top + size, left : left + size]
    assert np.abs(ours - np.asarray(wanted)).max() < 1.2  # two passes, each rounded


@pytest.mark.parametrize("size", [5, 17, 40])
@pytest.mark.parametrize("cut", [(20, 0, 0), (20, 20, 20), (30.5, 9.5, 1.25), (8, 3, 31)])
def test_crop_alone_equals_pillow(size, cut):
    ours, face, p = alone(size=size, box=cut)
    _, (left, top) = mask_and_place(p)
    wanted = Image.fromarray(face).resize((size, size), BICUBIC, box(p))
    ours = ours[top : top + size, left : left + size]
    assert np.abs(ours - np.asarray(wanted)).max() < 1.2  # two passes, each rounded


@pytest.mark.parametrize("size", [13, 40])
def test_flip_alone_equals_pillow(size):
    flipped, face, p = alone(size=size, flip=True)
    straight, _, _ = alone(size=size)
    inside = in_face(p, 40)
    wanted = straight[inside].reshape(size, size, 3)[:, ::-1]
    flat = flipped[inside].reshape(size, size, 3)
    np.testing.assert_allclose(flat, wanted, rtol=0, atol=EXACT)
    assert np.abs(flipped - straight).max() > 50
    if size == 40:
        image = Image.fromarray(face).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        np.testing.assert_allclose(flipped, np.asarray(image), rtol=0, atol=EXACT)


@pytest.mark.parametrize("factor", [0.0, 0.5, 0.83, 1.0, 1.21, 1.5, 2.0])
@pytest.mark.parametrize("name", ["Brightness", "Contrast", "Color"])
def test_colour_step_alone_equals_pillow(name, factor):
    change: dict[str, Any] = {"saturation" if name == "Color" else name.lower(): factor}
    ours, face, _ = alone(**change)
    wanted = np.asarray(getattr(ImageEnhance, name)(Image.fromarray(face)).enhance(factor))
    # Pillow cuts what follows the point, and rounds luma, or its mean.
    luma = 0 if name == "Brightness" else 0.51 * abs(1 - factor)
    error = ours - wanted
    assert error.min() > -luma - 1e-3 and error.max() < 1 + luma


@pytest.mark.parametrize("turns", [-0.5, -0.1, 0.0, 0.04, 0.1, 1 / 3, 0.5])
def test_hue_alone_equals_colorsys(turns):
    ours, face, _ = alone(hue=turns)
    np.testing.assert_allclose(ours, shift_hue(face, turns), rtol=0, atol=EXACT)


@pytest.mark.parametrize("turns", [-25 / 255, 18 / 255, 64 / 255])
def test_hue_alone_is_near_pillows_of_8_bits(turns):
    ours, face, _ = alone(hue=turns)
    hue, saturation, value = Image.fromarray(face).convert("HSV").split()
    hue = Image.fromarray(np.asarray(hue) + np.int32(round(turns * 255)).astype(np.uint8))
    wanted = np.asarray(Image.merge("HSV", (hue, saturation, value)).convert("RGB"))
    assert np.abs(ours - wanted).max() < 12 and np.abs(ours - wanted).mean() < 1


def test_hue_leaves_grey_and_turns_red_to_green():
    face = np.zeros((1, 16, 16, 3), np.uint8)
    face[:, :8], face[:, 8:, :, 0] = 77, 200
    ours = np.asarray(paste_jitted(face, face, plain(16, hue=1 / 3), 16))[0]
    np.testing.assert_allclose(ours[:8], 77, atol=EXACT)
    np.testing.assert_allclose(ours[8:], [[[0, 200, 0]] * 16] * 8, atol=EXACT)


@pytest.mark.parametrize("angle", [-90.0, -30.0, -7.3, 0.0, 1.0, 30.0, 45.0, 61.8, 90.0])
@pytest.mark.parametrize("side", [40, 41])
def test_rotation_alone_equals_pillow(side, angle):
    ours, face, p = alone(side, angle=angle)
    rotated = np.asarray(Image.fromarray(face).rotate(angle, BICUBIC, expand=True))
    wanted = pasted(np.zeros(face.shape), rotated, p)
    error = (ours - wanted)[~undecided(p, side)]
    assert error.min() > -1e-2 and error.max() < 1 + 1e-2  # Pillow cuts what follows the point


@settings(max_examples=30)
@given(st.integers(1, 48), st.floats(-90, 90, width=32), st.integers(0, 2**31))
def test_mask_alone_equals_pillows(size, angle, seed):
    top, left = np.random.default_rng(seed).integers(-20, 40, 2).astype(np.int32)
    drawn = plain(48, size=size, angle=angle)._replace(top_B=top[None], left_B=left[None])
    p = samples(drawn)[0]
    white, black = (np.full((1, 48, 48, 3), value, np.uint8) for value in (255, 0))
    ours = np.asarray(paste_jitted(black, white, drawn, 48))[0] > 0
    sure = ~undecided(p, 48)
    np.testing.assert_array_equal(ours[sure], np.repeat(in_face(p, 48)[sure][:, None], 3, 1))


# Controls: a wrong step is seen


def without_antialias(face, size, box):
    scale = face.shape[0] / size
    data = (scale, 0, 0, 0, scale, 0)
    transform = partial(
        Image.Image.transform, size=(size, size), method=Image.Transform.AFFINE, data=data
    )
    return each_colour(face, lambda x: transform(x, resample=BICUBIC))


def canvas_contrast(face, factor):
    mean = luma(face).sum() / 24**2
    return (mean + factor * (face - mean)).clip(0, 255)


def hue_first(face, p):
    return recolour(shift_hue(face, p.hue_B), p._replace(hue_B=0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"resize": without_antialias},
        {"recolour": partial(recolour, contrast=canvas_contrast)},
        {"recolour": hue_first},
        {"rotate": lambda face, angle: rotate(face, -angle)},
        {"resize": lambda face, size, box: resize(face, size, (box[1], box[0], box[3], box[2]))},
    ],
)
def test_parity_fails_with_a_wrong_step(wrong):
    found = errors(*whole(48, {"crop": 0.5}, 4), partial(in_float, **wrong))
    assert max(np.abs(error).max() for error in found) > 1000 * EXACT


@pytest.mark.parametrize(
    "name, value",
    [pytest.param("_ROTATE_A", -0.5, marks=pytest.mark.slow), ("_RESIZE_A", -1.0)],
)
def test_parity_fails_with_the_other_kernel(name, value, monkeypatch):
    monkeypatch.setattr(module, name, value)
    # Not the compiled one, which holds the right kernel.
    found = errors(*whole(48, {}, 4), in_float, paste=paste)
    assert max(np.abs(error).max() for error in found) > 1000 * EXACT


# Two ways to rotate


def test_product_equals_gather():
    rng = np.random.default_rng(0)
    face = rng.uniform(0, 255, (3, 15, 15, 3)).astype(np.float32)  # a size of 11, and edges
    y, x = rng.uniform(0, 10.999, (2, 3, 10, 14)).astype(np.float32)
    gathered, multiplied = (
        jax.jit(sample)(face, y, x) for sample in (sample_by_gather, sample_by_product)
    )
    assert gathered.shape == multiplied.shape == (3, 10, 14, 3)
    np.testing.assert_allclose(gathered, multiplied, rtol=0, atol=1e-3)


def test_tpu_multiplies_and_others_gather():
    image = jax.ShapeDtypeStruct((2, 24, 24, 3), jnp.uint8)
    traced = jax.jit(partial(overlay, cfg=paper())).trace(image, image, jax.random.key(0))
    lowered = {
        platform: traced.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("tpu", "cpu", "cuda")
    }
    assert {platform: "stablehlo.gather" in text for platform, text in lowered.items()} == {
        "tpu": False, "cpu": True, "cuda": True,
    }  # fmt: skip


# On the image


def test_overlay_of_a_key_is_the_same_again():
    num, cfg = 8, paper()
    image, face = photos(num, 32, 1), photos(num, 32, 2)
    run = jax.jit(partial(overlay, cfg=cfg))
    first, again, other = (np.asarray(run(image, face, jax.random.key(k))) for k in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert (np.abs(first - other).max((1, 2, 3)) > 20).all()
    drawn = draw_overlay(jax.random.key(5), num, 32, cfg)
    np.testing.assert_allclose(first, paste_jitted(image, face, drawn, 16), rtol=0, atol=EXACT)


@eight_devices
@pytest.mark.parametrize("sizes", [{}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_overlay_on_many_devices_equals_that_on_one(sizes):
    image, face, key = photos(16, 32, 1), photos(16, 32, 2), jax.random.key(3)
    run = jax.jit(partial(overlay, cfg=paper()))
    sharding = batch_sharding(make_mesh(**sizes), ShardingRules())
    placed = (*jax.device_put((image, face), sharding), key)
    found = run(*placed)
    assert found.sharding.is_equivalent_to(sharding, 4)
    np.testing.assert_allclose(found, run(image, face, key), rtol=0, atol=EXACT)
    hlo = str(run.lower(*placed).compile().as_text())
    assert "all-" not in hlo and "collective-" not in hlo  # no device waits for another


def test_overlay_needs_little_memory():
    image = jax.ShapeDtypeStruct((8, 64, 64, 3), jnp.uint8)
    compiled = jax.jit(partial(overlay, cfg=paper())).lower(
        image, image, jax.random.key(0)
    ).compile()  # fmt: skip
    memory = compiled.memory_analysis()
    if memory is None or jax.default_backend() != "cpu":
        pytest.skip("the compiler of this device does not say, or plans otherwise")
    # Sixteen taps for every pixel would be sixteen times the output.
    assert memory.temp_size_in_bytes < 3 * memory.output_size_in_bytes


@pytest.mark.parametrize("side, size", [(40, 40), (41, 41), (40, 39), (41, 40)])
def test_face_as_large_as_the_image_is_centred(side, size):
    cfg = paper(min_size=size / side, max_size=size / side, angle=0.0)
    drawn = draw_overlay(jax.random.key(0), 1, side, cfg)
    assert drawn.size_B[0] == size and diagonal(size) > side
    image = np.zeros((1, side, side, 3), np.uint8)
    ours = np.asarray(paste_jitted(image, image + 255, drawn, side))[..., 0] > 0
    rows, columns = np.flatnonzero(ours[0].any(1)), np.flatnonzero(ours[0].any(0))
    assert ours.sum() == size**2 and len(rows) == len(columns) == size
    assert rows[0] == columns[0] and rows[0] in ((side - size) // 2, (side - size + 1) // 2)


def test_paste_refuses_other_arrays():
    image, drawn = jnp.asarray(photos(2, 16)), plain(16, 2)
    run = partial(jax.eval_shape, partial(paste, max_size=16))
    assert run(image, image, drawn).shape == image.shape
    for wrong in (image[:1], image[:, :8, :8], image.astype(jnp.float32), image[..., :1]):
        with pytest.raises(ValueError, match=r"`face_BHWC` .* must be uint8 \[2, 16, 16, 3\]"):
            run(image, wrong, drawn)
    with pytest.raises(ValueError, match=r"`image_BHWC` .* must be uint8 \[2, 8, 8, 3\]"):
        run(image[:, :8], image, drawn)


# What is drawn


NUM = 20_000


def drawn_evenly(values, low, high):
    """Kolmogorov and Smirnov's distance to even, at a one in a million level."""
    values = np.sort((np.asarray(values, np.float64) - low) / (high - low))
    assert values[0] >= 0 and values[-1] <= 1
    even = np.arange(1, len(values) + 1) / len(values)
    return np.abs(values - even).max() < 2.7 / math.sqrt(len(values))


def correlation(x, y):
    return abs(np.corrcoef(np.asarray(x, float), np.asarray(y, float))[0, 1])


@pytest.fixture(scope="module")
def many():
    drawn = draw_overlay(jax.random.key(11), NUM, 224, paper(crop=0.4))
    kinds = ["int32", "bool", *["float32"] * 5, *["int32"] * 2, *["float32"] * 3]
    assert [x.dtype.name for x in drawn] == kinds
    return make(*map(np.asarray, drawn))


def test_draw_sizes_evenly_both_ends_included(many):
    sizes, counts = np.unique(many.size_B, return_counts=True)
    assert sizes.tolist() == list(range(56, 113))  # as the paper has it
    expected = NUM / len(sizes)
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert chi2 < 57 + 5 * math.sqrt(2 * 57)


def test_draw_colours_and_angles_evenly(many):
    for factor in (many.brightness_B, many.contrast_B, many.saturation_B):
        assert drawn_evenly(factor, 0.5, 1.5)
        assert not drawn_evenly(0.5 + (factor - 0.5) ** 1.1, 0.5, 1.5)
    assert drawn_evenly(many.hue_B, -0.1, 0.1)
    assert drawn_evenly(many.angle_B, -30, 30)
    assert abs(many.flip_B.mean() - 0.5) < 5 * 0.5 / math.sqrt(NUM)


def test_draw_places_evenly_where_the_box_fits(many):
    room = 224 - diagonal(many.size_B)
    for place in (many.top_B, many.left_B):
        assert (place >= 0).all() and (place <= room).all()
        # A whole number, made even in between by as even a draw.
        within = np.random.default_rng(0).uniform(0, 1, NUM)
        assert drawn_evenly((place + within) / (room + 1), 0, 1)
        assert (place == 0).any() and (place == room).any()


def test_draw_crops_evenly_all_within_the_face(many):
    assert drawn_evenly(many.crop_B, 0.4 * 224, 224)
    for start in (many.crop_top_B, many.crop_left_B):
        assert drawn_evenly(start / (224 - many.crop_B), 0, 1)


def test_draw_everything_independently(many):
    room = 224 - diagonal(many.size_B) + 1
    places = [many.top_B / room, many.left_B / room]
    crops = [x / (224 - many.crop_B) for x in (many.crop_top_B, many.crop_left_B)]
    columns = [*many[:7], *places, many.crop_B, *crops]
    for i, x in enumerate(columns):
        for y in columns[:i]:
            assert correlation(x, y) < 5 / math.sqrt(NUM)
        assert correlation(x[1:], x[:-1]) < 5 / math.sqrt(NUM)


@pytest.mark.parametrize("flip", [0.0, 0.2, 1.0])
def test_draw_flips_as_often_as_told(flip):
    drawn = draw_overlay(jax.random.key(1), NUM, 48, paper(flip=flip))
    assert abs(np.mean(drawn.flip_B) - flip) <= 5 * math.sqrt(flip * (1 - flip) / NUM)


@pytest.mark.parametrize("whole", [0.0, 0.2, 1.0])
def test_draw_fills_the_photo_as_often_as_told(whole):
    drawn = draw_overlay(jax.random.key(1), NUM, 48, paper(whole=whole))
    fills = np.asarray(drawn.size_B == 48)
    assert abs(fills.mean() - whole) <= 5 * math.sqrt(whole * (1 - whole) / NUM)
    assert np.isin(drawn.size_B[~fills], np.arange(12, 25)).all()
    assert (drawn.angle_B[fills] == 0).all() and (drawn.angle_B[~fills] != 0).all()
    assert len(np.unique(drawn.top_B[fills])) == len(np.unique(drawn.left_B[fills])) <= 1


def test_face_that_fills_the_photo_is_all_there_is():
    image, face = jnp.asarray(photos(4, 40, 1)), jnp.asarray(photos(4, 40, 2))
    cfg = paper(flip=0.0, jitter=0.0, hue=0.0, whole=1.0)
    ours = jax.jit(partial(overlay, cfg=cfg))(image, face, jax.random.key(4))
    np.testing.assert_allclose(ours, face, rtol=0, atol=EXACT)


def test_draw_of_no_range_changes_nothing():
    cfg = paper(min_size=0.5, max_size=0.5, flip=0.0, jitter=0.0, hue=0.0, angle=0.0)
    drawn = draw_overlay(jax.random.key(1), 5, 30, cfg)
    assert (drawn.size_B == 15).all() and not drawn.flip_B.any()
    for factor in (drawn.brightness_B, drawn.contrast_B, drawn.saturation_B):
        assert (factor == 1).all()
    assert (drawn.hue_B == 0).all() and (drawn.angle_B == 0).all()
    assert (drawn.crop_B == 30).all() and not drawn.crop_top_B.any() and not drawn.crop_left_B.any()


def test_box_of_every_size_is_the_diagonal():
    sizes = np.arange(1, 1025)
    assert [int(d) for d in module._diagonal(jnp.asarray(sizes))] == [
        math.isqrt(2 * size * size) + 1 for size in sizes.tolist()
    ]


# Settings


def test_sizes_are_parts_of_a_side():
    assert paper().sizes(224) == (56, 112) and paper().max_side(224) == 112  # the paper's
    assert OverlayConfig().sizes(224) == (56, 224) and OverlayConfig().max_side(48) == 48
    assert OverlayConfig(min_size=0.001, max_size=0.002).sizes(48) == (1, 1)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"min_size": 0.0}, r"`train.overlay.min_size` \(=0.0\) must be above 0 and at most 1"),
        ({"min_size": 1.2}, r"`train.overlay.min_size` \(=1.2\)"),
        (
            {"max_size": 0.2},
            r"`train.overlay.max_size` \(=0.2\) must be from .*min_size` \(=0.25\)",
        ),
        ({"max_size": 1.01}, r"`train.overlay.max_size` \(=1.01\) must be .* to 1"),
        ({"flip": -0.1}, r"`train.overlay.flip` \(=-0.1\) must be from 0 to 1"),
        ({"flip": 1.1}, r"`train.overlay.flip`"),
        ({"jitter": 1.5}, r"`train.overlay.jitter` \(=1.5\) must be from 0 to 1"),
        ({"jitter": math.nan}, r"`train.overlay.jitter` \(=nan\)"),
        ({"hue": 0.6}, r"`train.overlay.hue` \(=0.6\) must be from 0 to 0.5"),
        ({"angle": 91.0}, r"`train.overlay.angle` \(=91.0\) must be from 0 to 90"),
        ({"angle": -1.0}, r"`train.overlay.angle`"),
        ({"whole": 1.1}, r"`train.overlay.whole` \(=1.1\) must be from 0 to 1"),
    ],
)
def test_setting_out_of_its_range_raises(change, message):
    with pytest.raises(ValueError, match=message):
        OverlayConfig(**change)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(OverlayConfig(), **change)


@pytest.mark.parametrize("change", [{"min_size": 1.0, "max_size": 1.0}, {"hue": 0.5, "angle": 90}])
def test_setting_at_the_end_of_its_range_is_taken(change):
    OverlayConfig(**change)
