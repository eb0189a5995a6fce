"""Photos: CLIP's own preprocessing, and folders that say what is wrong with them."""

import functools
import io
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxdefense.data import images, sources
from jaxdefense.data.images import (
    ImageProcessor,
    Loader,
    Photos,
    read_folders,
    read_processor,
)

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


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "PNG, changed"])
def test_broken_photo_is_none_whatever_its_exif_says(form):
    """Pillow reports a broken stream once, and then gives what it has."""
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = encoded(draw(60, 40), form.split(",")[0], exif=exif)
    middle = len(photo.data) * 2 // 3
    rest = photo.data[middle + 60 :] if "changed" in form else b""
    photo.data = photo.data[:middle] + (bytes(60) + rest if rest else b"")
    with pytest.raises(ValueError, match="`photo` is not a photo that can be read"):
        ImageProcessor(32, 32).load([photo])


# Other kinds of photos


class Bytes:
    """A photo in memory; counts how often it is read."""

    def __init__(self, data, name="photo"):
        self.data, self.name, self.reads = data, name, 0

    def read_bytes(self):
        self.reads += 1
        return self.data

    def __str__(self):
        return self.name


def encoded(image, form, **options):
    out = io.BytesIO()
    image.save(out, form, **options)
    return Bytes(out.getvalue())


@pytest.mark.parametrize(
    "form, options, loss",
    [
        ("PNG", {}, 0),
        ("PPM", {}, 0),
        ("BMP", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 100}, 15),
        ("JPEG", {"quality": 100, "subsampling": 0}, 2),
        ("GIF", {}, 20),  # of 256 colours
    ],
)
def test_photo_of_every_format_is_read(form, options, loss):
    photo, processor = draw(60, 40), ImageProcessor(32, 32)
    (found,) = processor.load([encoded(photo, form, **options)])
    assert np.abs(found.astype(int) - processor(photo)).mean() <= loss


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "LA", "CMYK"])
def test_photo_of_every_mode_is_read_from_a_file_as_transformers_does(mode):
    form = "JPEG" if mode == "CMYK" else "PNG"
    photo = encoded(draw(60, 40, mode), form)
    with Image.open(io.BytesIO(photo.data)) as image:
        assert image.mode == mode
        raw = theirs(image, 32, 32, do_rescale=False, do_normalize=False)
    np.testing.assert_array_equal(ImageProcessor(32, 32).load([photo])[0], raw)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_animation_gives_its_first_picture(form):
    first, second = draw(60, 40).quantize(64), draw(60, 40, seed=1).quantize(64)
    if form != "GIF":
        first, second = first.convert("RGB"), second.convert("RGB")
    options = {"lossless": True} if form == "WEBP" else {}
    photo = encoded(first, form, save_all=True, append_images=[second], **options)
    with Image.open(io.BytesIO(photo.data)) as image:
        image.seek(1)
    found = ImageProcessor(32, 32).load([photo])[0]
    np.testing.assert_array_equal(found, ImageProcessor(32, 32)(first))


@pytest.mark.parametrize(
    "kind, peak, words",
    [
        ("u2", 256, "go up to 256, and the model's library makes white"),
        ("u2", 255, ""),
        ("i4", 70_000, "go up to 70000, and"),
        ("f4", 1, "go from 0 to 1, and the model's library makes black"),
        ("f4", 255, ""),
        ("f4", 0, ""),
    ],
)
def test_photo_that_the_library_makes_white_or_black_is_named(kind, peak, words):
    pixels = (np.linspace(0, peak, 40 * 60).reshape(40, 60)).astype(kind)
    photo, processor = encoded(Image.fromarray(pixels), "TIFF"), ImageProcessor(32, 32)
    if words:
        with pytest.raises(ValueError, match=f"`photo` is not.* {words}.*; save it with 8 bits"):
            processor.load([photo])
    with Image.open(io.BytesIO(photo.data)) as image:
        raw = theirs(image, 32, 32, do_rescale=False, do_normalize=False)
        np.testing.assert_array_equal(processor(image), raw)
    if not words:
        np.testing.assert_array_equal(processor.load([photo])[0], raw)


def test_photo_of_heif_says_which_plugin_reads_it():
    photo = Bytes(b"\0\0\0\x18ftypheic" + bytes(40), "x.jpg")
    with pytest.raises(ValueError, match="`x.jpg` is not.* HEIF, .*pip install pillow-heif"):
        ImageProcessor(8, 8).load([photo])


def test_photo_too_large_to_be_one_is_named(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="`photo` is not .*2400 pixels.*bomb") as info:
        ImageProcessor(8, 8).load([encoded(draw(60, 40), "PNG")])
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3), (3, 1)])
def test_photo_smaller_than_a_patch_is_read(size):
    photo = draw(*size)
    found = ImageProcessor(32, 32).load([encoded(photo, "PNG")])[0]
    np.testing.assert_array_equal(
        found, theirs(photo, 32, 32, do_rescale=False, do_normalize=False)
    )


@pytest.mark.parametrize("size", [(12_000, 7), (7, 12_000), (9_001, 5), (1, 3_000)])
@pytest.mark.parametrize("resize, crop", [(32, 32), (40, 32), (32, 44)])
def test_middle_of_a_long_strip_is_as_if_all_were_resized(size, resize, crop):
    photo = draw(*size)
    found = ImageProcessor(resize, crop)(photo).astype(int)
    raw = theirs(photo, resize, crop, do_rescale=False, do_normalize=False)
    assert np.abs(found - raw).max() <= 2


def test_very_long_strip_takes_little_memory():
    photo = Image.new("L", (1, 2_000_000), 99)  # resized whole, it would take 400 GB
    assert (ImageProcessor(224, 224)(photo) == 99).all()


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
        Photos("Ann Lee", (faces / "Ann__Lee_/1.png", faces / "Ann__Lee_/deeper/2.JPG")),
        Photos("Bo Ek", (faces / "Bo_Ek/1.png", faces / "Bo_Ek/deeper/2.JPG")),
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
    with pytest.raises(ValueError, match=r"folder `Cy_Dee` holds no photo \(.jpg, .png"):
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
        with Image.open(str(file)) as image:
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


@pytest.mark.parametrize("data", [b"", b"no photo", b"GIF89a"])
def test_load_tells_why_a_photo_cannot_be_read(data):
    with pytest.raises(ValueError) as info:
        ImageProcessor(16, 16).load([Bytes(data, "x.gif")])
    message = str(info.value)
    assert message.startswith("`x.gif` is not a photo that can be read: ") and len(message) < 120
    assert "\n" not in message and " at 0x" not in message


def test_what_is_no_photo_is_not_opened_whatever_it_is_called():
    drawing = io.BytesIO()
    draw(20, 30).save(drawing, "EPS")
    photo = Bytes(drawing.getvalue(), "x.jpg")
    assert ImageProcessor(16, 16).try_decode(photo) == "it has no format of a photo"


def test_plugins_are_there_when_a_photo_without_suffix_is_read(monkeypatch):
    loaded = []
    formats = functools.cache(sources.photo_formats.__wrapped__)
    monkeypatch.setattr(images, "photo_formats", formats)
    monkeypatch.setattr(sources.importlib, "import_module", lambda name: loaded.append(name) or sys)
    monkeypatch.setattr(sys, "register_heif_opener", lambda: None, raising=False)
    ImageProcessor(16, 16).try_decode(Bytes(b"", "row 1"))
    assert "pillow_heif" in loaded


def test_load_of_nothing_is_empty():
    assert ImageProcessor(16, 16).load([]).shape == (0, 16, 16, 3)


class Seen(Bytes):
    """Notes the thread that reads it."""

    threads: set[int] = set()

    def read_bytes(self):
        self.threads.add(threading.get_ident())
        return super().read_bytes()


def test_photos_are_decoded_by_one_set_of_threads():
    photo = encoded(draw(30, 20), "PNG")
    processor, photos = ImageProcessor(16, 16), [Seen(photo.data) for _ in range(16)]
    loader = Loader(processor)

    def load(i):
        return processor.load(photos) if i % 2 else loader.load([[p] for p in photos])

    Seen.threads.clear()
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(load, range(40)))) == 40
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    assert 2 <= len(Seen.threads) == len([n for n in names.values() if n.startswith("decode-")])
    assert all(names[ident].startswith("decode-") for ident in Seen.threads)


def test_photos_are_decoded_in_a_forked_process_too(faces):
    script = f"""
import os, signal
from pathlib import Path
from jaxdefense.data.images import ImageProcessor
files = sorted(Path({str(faces)!r}).rglob("*.png"))
ImageProcessor(8, 8).load(files)
if child := os.fork():
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
else:
    signal.alarm(20)
    os._exit(int(ImageProcessor(8, 8).load(files).shape != (2, 8, 8, 3)))
"""
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.stdout == "0\n", done.stderr


# The loader


@pytest.fixture
def good():
    """Photos that can be read, and what they are."""
    images = [draw(30, 20, seed=i) for i in range(6)]
    return [encoded(image, "PNG") for image in images], [ImageProcessor(16, 16)(i) for i in images]


def broken(num):
    return [Bytes(b"no photo", f"broken{i}.png") for i in range(num)]


def test_loader_gives_each_sample_its_first_choice_that_can_be_read(good):
    photos, pixels = good
    bad = broken(3)
    loader = Loader(ImageProcessor(16, 16), max_corrupt=3)
    loaded = loader.load(
        [[photos[0], photos[1]], [bad[0], photos[2]], [bad[1], bad[0], bad[2], photos[3]]]
    )
    assert loaded.dtype == np.uint8
    np.testing.assert_array_equal(loaded, [pixels[0], pixels[2], pixels[3]])
    assert photos[1].reads == 0
    assert set(loader.corrupt) == {bad[0].name, bad[1].name, bad[2].name}
    assert all(isinstance(why, str) and why for why in loader.corrupt.values())


def test_loader_looks_at_no_more_choices_than_it_needs(good):
    photos, pixels = good
    (bad,) = broken(1)
    asked = []

    def choices(*given):
        for photo in given:
            asked.append(photo)
            yield photo

    loader = Loader(ImageProcessor(16, 16), max_corrupt=1)
    loaded = loader.load([choices(photos[0], photos[1]), choices(bad, photos[2], photos[3])])
    np.testing.assert_array_equal(loaded, [pixels[0], pixels[2]])
    assert set(asked) == {photos[0], bad, photos[2]}


def test_loader_reads_a_photo_known_to_be_corrupt_no_more(good):
    photos, pixels = good
    (bad,) = broken(1)
    loader = Loader(ImageProcessor(16, 16), max_corrupt=1)
    for _ in range(5):
        np.testing.assert_array_equal(loader.load([[bad, photos[4]]])[0], pixels[4])
        assert not loader.load_all([bad])[1].any()
    assert bad.reads == 1 and list(loader.corrupt) == [bad.name]


def test_loader_notes_corrupt_photos_in_the_order_found():
    bad = broken(5)[::-1]
    loader = Loader(ImageProcessor(16, 16), max_corrupt=5)
    for photo in bad:
        loader.load_all([photo])
    assert list(loader.corrupt) == [photo.name for photo in bad]


def test_loader_load_all_tells_which_could_be_read(good):
    photos, pixels = good
    (bad,) = broken(1)
    loader = Loader(ImageProcessor(16, 16), max_corrupt=1)
    loaded, readable = loader.load_all([photos[0], bad, photos[1]])
    assert readable.dtype == bool and readable.tolist() == [True, False, True]
    np.testing.assert_array_equal(loaded, [pixels[0], np.zeros_like(pixels[0]), pixels[1]])
    loaded, readable = loader.load_all([])
    assert loaded.shape == (0, 16, 16, 3) and readable.shape == (0,)


def test_loader_without_leave_names_the_first_corrupt_photo(good):
    photos, _ = good
    bad = broken(2)
    loader = Loader(ImageProcessor(16, 16))
    for _ in range(3):  # known by then, and no less an error
        with pytest.raises(ValueError) as info:
            loader.load([[photos[0]], [bad[0], photos[1]], [bad[1], photos[1]]])
        message = str(info.value)
        assert message.startswith("`broken0.png` is not a photo that can be read: ")
        assert "`data.max_corrupt` (=0)" in message and "\n" not in message
    with pytest.raises(ValueError, match="`broken1.png` is not a photo that can be read"):
        loader.load_all([photos[0], bad[1]])


def test_loader_beyond_its_limit_names_the_corrupt_photos(good):
    photos, pixels = good
    bad = broken(12)
    loader = Loader(ImageProcessor(16, 16), max_corrupt=11)
    loaded = loader.load([[photo, photos[0]] for photo in bad[:11] * 3])
    np.testing.assert_array_equal(loaded, [pixels[0]] * 33)
    for last in (bad[11], bad[0]):  # the limit stays passed
        with pytest.raises(ValueError) as info:
            loader.load([[last, photos[0]]])
        message = str(info.value)
        assert message.startswith("12 photos cannot be read, more than `data.max_corrupt` (=11): ")
        assert message.count("broken") == 4 and "8 more" in message and "\n" not in message
    np.testing.assert_array_equal(loader.load([[photos[2]]]), [pixels[2]])


@pytest.mark.parametrize("num", [0, 1, 9])
def test_loader_out_of_choices_says_so(good, num):
    loader = Loader(ImageProcessor(16, 16), max_corrupt=20)
    with pytest.raises(ValueError, match=f"of {num} photos to choose from none can be read"):
        loader.load([[good[0][0]], broken(num)])


def test_loader_takes_a_missing_file_as_corrupt(good, tmp_path):
    photos, pixels = good
    missing = [tmp_path / "gone.png", Path(tmp_path)]
    loader = Loader(ImageProcessor(16, 16), max_corrupt=2)
    loaded = loader.load([[*missing, photos[0]]])
    np.testing.assert_array_equal(loaded, [pixels[0]])
    assert loader.corrupt == {
        f"{tmp_path}/gone.png": "No such file or directory",
        f"{tmp_path}": "Is a directory",
    }


def test_loader_may_be_used_from_many_threads(good):
    photos, pixels = good
    bad = broken(30)
    loader = Loader(ImageProcessor(16, 16), max_corrupt=30)

    def load(i):
        order = np.random.default_rng(i).permutation(30)
        loaded = loader.load([[bad[j], photos[i % 6]] for j in order])
        return (loaded == pixels[i % 6]).all()

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(load, range(24)))
    assert set(loader.corrupt) == {photo.name for photo in bad}


# preprocessor_config.json


def test_read_processor_without_a_file_is_clips_own(tmp_path):
    assert read_processor(tmp_path, 48) == ImageProcessor(48, 48)
    mean, std = ImageProcessor(48, 48).mean, ImageProcessor(48, 48).std
    processor = reference(48, 48)
    assert list(mean) == list(processor.image_mean) and list(std) == list(processor.image_std)


def test_read_processor_of_another_size_than_the_model_raises(tiny_dir):
    path = tiny_dir()
    assert read_processor(path, 12) == ImageProcessor(12, 12)
    with pytest.raises(ValueError, match=r"`crop_size` \(=12x12\) must be.*of the model \(=16\)"):
        read_processor(path, 16)


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_read_processor_names_a_broken_file(tmp_path, content):
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"preprocessor_config.json"):
        read_processor(tmp_path, 48)
