"""Photos: CLIP's own preprocessing, and folders that say what is wrong with them."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxdefense.data.images import Folder, ImageProcessor, read_folders, read_processor

MODES = ["RGB", "L", "P", "RGBA", "LA", "CMYK", "1", "YCbCr"]
NORMALISED = 1e-5


def draw(width, height, mode="RGB", seed=0):
    """A photo with edges and noise, in a mode."""
    rng = np.random.default_rng((seed, width, height))
    coarse = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)
    noise = rng.integers(-40, 40, (height, width, 3))
    pixels = np.clip(np.asarray(image).astype(int) + noise, 0, 255).astype(np.uint8)
    image = Image.fromarray(pixels)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(pixels[..., 0]))
    return image.convert(mode)


def reference(resize, crop, **change):
    """The processor of transformers, its Pillow version, which needs no torch."""
    module = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    return module.CLIPImageProcessorPil(
        size={"shortest_edge": resize}, crop_size={"height": crop, "width": crop}, **change
    )


def theirs(image, resize, crop, **change):
    out = reference(resize, crop, **change)(image, return_tensors="np")["pixel_values"]
    return np.asarray(out)[0].transpose(1, 2, 0)


def assert_equal_to_transformers(image, resize, crop):
    processor = ImageProcessor(resize, crop)
    ours = processor(image)
    assert ours.dtype == np.uint8 and ours.shape == (crop, crop, 3)
    raw = theirs(image, resize, crop, do_rescale=False, do_normalize=False)
    np.testing.assert_array_equal(ours, raw)
    whole = theirs(image, resize, crop)
    normalised = processor.normalise(jnp.asarray(ours[None]))
    assert normalised.dtype == jnp.float32
    np.testing.assert_allclose(normalised[0], whole, rtol=0, atol=NORMALISED)


# The processor


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(97, 61), (61, 97), (64, 64), (40, 30)])
def test_processor_equals_transformers_on_every_mode(mode, size):
    assert_equal_to_transformers(draw(size[0], size[1], mode), 48, 48)


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_processor_shows_a_transparent_colour_on_white_as_transformers_does(mode):
    stored = io.BytesIO()
    image = draw(97, 61, mode)
    colour = image.getpixel((50, 30))
    # A palette's transparency may be a value for each of its colours.
    transparency = bytes(range(0, 250, 10)) if mode == "P" else colour
    image.save(stored, "PNG", transparency=transparency)
    with Image.open(stored) as image:
        assert image.mode == mode
        assert_equal_to_transformers(image, 48, 48)
        plain = Image.fromarray(np.asarray(image.convert("RGBA"))[..., :3].copy())
        assert not np.array_equal(ImageProcessor(61, 61)(image), ImageProcessor(61, 61)(plain))


@pytest.mark.parametrize("size", [(900, 31), (31, 900), (48, 700), (1, 5), (7, 1), (48, 48)])
def test_processor_equals_transformers_on_tall_wide_and_tiny_photos(size):
    assert_equal_to_transformers(draw(*size), 48, 48)


@pytest.mark.parametrize("resize, crop", [(60, 48), (48, 60), (47, 60), (224, 224)])
@pytest.mark.parametrize("size", [(97, 61), (60, 81)])
def test_processor_equals_transformers_when_crop_and_resize_differ(resize, crop, size):
    assert_equal_to_transformers(draw(*size), resize, crop)


@settings(max_examples=60)
@given(st.integers(2, 160), st.integers(2, 160), st.integers(8, 50), st.integers(8, 50))
def test_processor_equals_transformers_on_any_size(width, height, resize, crop):
    assert_equal_to_transformers(draw(width, height), resize, crop)


def test_processor_equals_transformers_on_real_photos(shared_data):
    files = sorted((shared_data / "coco_pairs/images").iterdir())[:12]
    files += sorted((shared_data / "orl/s1").glob("*.pgm"))[:2]
    loaded = ImageProcessor(224, 224).load(files)
    for file, ours in zip(files, loaded, strict=True):
        with Image.open(file) as image:
            raw = theirs(image, 224, 224, do_rescale=False, do_normalize=False)
        np.testing.assert_array_equal(ours, raw)


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.NEAREST])
def test_parity_fails_with_another_filter(resample):
    image = draw(97, 61)
    raw = theirs(image, 48, 48, do_rescale=False, do_normalize=False)
    assert np.abs(ImageProcessor(48, 48, resample)(image).astype(int) - raw).max() > 5


def test_photo_is_turned_upright_as_its_exif_says():
    """A departure from transformers, which leaves it lying."""
    upright, stored = draw(60, 40), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    upright.rotate(90, expand=True).save(stored, "PNG", exif=exif)
    with Image.open(stored) as image:
        assert image.size == (40, 60)
        np.testing.assert_array_equal(
            ImageProcessor(32, 32)(image), ImageProcessor(32, 32)(upright)
        )


def test_normalise_takes_the_processors_mean_and_std():
    processor = ImageProcessor(8, 8, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
    image = np.full((2, 8, 8, 3), 255, np.uint8)
    out = jax.jit(processor.normalise)(image)
    np.testing.assert_allclose(out, np.broadcast_to([1.0, 3.0, 1.0], image.shape), rtol=1e-6)


# Files


@pytest.fixture
def faces(tmp_path):
    """Two people's folders, two photos each, among files that are no photos."""
    for i, folder in enumerate(("Bo_Ek", "Ann__Lee_")):
        path = tmp_path / "faces" / folder
        (path / "deeper").mkdir(parents=True)
        draw(20 + i, 30).save(path / "1.png")
        draw(30, 20 + i, "L").save(path / "deeper/2.JPG", "JPEG")
        (path / "notes.txt").write_text("taken in May")
    (tmp_path / "faces/README.md").write_text("# Faces")
    (tmp_path / "faces/.cache").mkdir()
    return tmp_path / "faces"


def test_read_folders_lists_people_and_their_photos(faces):
    assert read_folders(faces, "faces") == [
        Folder("Ann Lee", (faces / "Ann__Lee_/1.png", faces / "Ann__Lee_/deeper/2.JPG")),
        Folder("Bo Ek", (faces / "Bo_Ek/1.png", faces / "Bo_Ek/deeper/2.JPG")),
    ]


def test_read_folders_names_a_missing_directory(tmp_path):
    with pytest.raises(ValueError, match=rf"faces directory `{tmp_path}/x` does not exist"):
        read_folders(tmp_path / "x", "faces")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=rf"`{tmp_path}/file` does not exist"):
        read_folders(tmp_path / "file", "faces")


def test_read_folders_names_an_empty_folder(faces):
    (faces / "Cy_Dee").mkdir()
    (faces / "Cy_Dee/notes.txt").write_text("no photo yet")
    with pytest.raises(ValueError, match=r"folder `Cy_Dee` holds no photo \(.png, .jpg"):
        read_folders(faces, "faces")


def test_read_folders_without_folders_raises(tmp_path):
    draw(20, 30).save(tmp_path / "1.png")
    with pytest.raises(ValueError, match=rf"faces directory `{tmp_path}` holds no folder"):
        read_folders(tmp_path, "faces")


def test_load_gives_photos_in_order_at_one_size(faces):
    files = [file for folder in read_folders(faces, "faces") for file in folder.files]
    processor = ImageProcessor(16, 16)
    loaded = processor.load(files * 5)
    assert loaded.shape == (20, 16, 16, 3) and loaded.dtype == np.uint8
    for file, ours in zip(files * 5, loaded, strict=True):
        with Image.open(file) as image:
            np.testing.assert_array_equal(ours, processor(image))


@pytest.mark.parametrize("broken", ["cut", "text", "empty", "missing"])
def test_load_names_the_photo_that_cannot_be_read(faces, broken):
    good = faces / "Bo_Ek/1.png"
    bad = faces / "Bo_Ek/broken.png"
    data = {"cut": good.read_bytes()[:-300], "text": b"no photo", "empty": b""}
    if broken in data:
        bad.write_bytes(data[broken])
    with pytest.raises(ValueError, match=rf"`{bad}` is not a photo that can be read"):
        ImageProcessor(16, 16).load([good, bad, good])


# preprocessor_config.json


@pytest.mark.parametrize(
    "raw, wanted",
    [
        ({}, ImageProcessor(48, 48)),
        ({"size": 60, "crop_size": 48}, ImageProcessor(60, 48)),
        (
            {"size": {"shortest_edge": 60}, "crop_size": {"height": 48, "width": 48}},
            ImageProcessor(60, 48),
        ),
        (
            {"resample": 2, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.1, 0.2, 0.3]},
            ImageProcessor(48, 48, 2, (0.5, 0.5, 0.5), (0.1, 0.2, 0.3)),
        ),
    ],
)
def test_read_processor_takes_old_and_new_fields(tmp_path, raw, wanted):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(raw))
    assert read_processor(tmp_path, 48) == wanted


def test_read_processor_without_a_file_is_clips_own(tmp_path):
    assert read_processor(tmp_path, 48) == ImageProcessor(48, 48)
    mean, std = ImageProcessor(48, 48).mean, ImageProcessor(48, 48).std
    processor = reference(48, 48)
    assert list(mean) == list(processor.image_mean) and list(std) == list(processor.image_std)


def test_read_processor_of_another_size_than_the_model_raises(tiny_dir):
    path = tiny_dir()
    assert read_processor(path, 12) == ImageProcessor(12, 12)
    with pytest.raises(ValueError, match=r"`crop_size` \(=12\) must be.*of the model \(=16\)"):
        read_processor(path, 16)


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_read_processor_names_a_broken_file(tmp_path, content):
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"preprocessor_config.json"):
        read_processor(tmp_path, 48)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"do_normalize": False}, "do_normalize"),
        ({"size": {"height": 12, "width": 12}}, "shortest_edge"),
        ({"size": {"longest_edge": 12}}, "shortest_edge"),
        ({"crop_size": {"height": 13, "width": 13}}, "image size of the model"),
    ],
)
def test_processor_refuses_steps_that_are_not_clips(tiny_dir, change, message):
    path = tiny_dir()
    file = path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        read_processor(path, 12)
