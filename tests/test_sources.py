"""Sources of photos: what is found in folders, tars and datasets, and what is told of bad ones."""

import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
import time
import tracemalloc
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import logged, write_tfds
from PIL import Image, features

from jaxdefense.data.captions import read_captions
from jaxdefense.data.images import ImageProcessor, Loader
from jaxdefense.data.sources import (
    describe_images,
    list_folders,
    photo_digest,
    photo_formats,
    photo_suffixes,
    read_images,
)


def png(seed=0, side=6):
    """A photo of noise, encoded."""
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def put(path, data=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def write_tar(path, members, **options):
    """Write a tar of `name -> bytes`, or of `TarInfo`s without data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members.items():
            if isinstance(data, tarfile.TarInfo):
                tar.addfile(data)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def names_of(images, root):
    return [str(Path(str(photo)).relative_to(root)) for photo in images]


def error_of(call, *args):
    """The message of the ValueError, which must be of one line."""
    with pytest.raises(ValueError) as info:
        call(*args)
    message = str(info.value)
    assert "\n" not in message and message.endswith(".")
    return message


# Folders


@pytest.fixture
def photos(tmp_path):
    """Photos at several depths, among what is none."""
    root = tmp_path / "photos"
    kept = ["b.png", "a/2.JPG", "a/10.jpeg", "a.png", "a/b/c/x.webp", "a-b/1.gif", "z.bmp", "é.ppm"]
    for i, name in enumerate(kept):
        put(root / name, png(i))
    for name in ("notes.txt", "a/x.json", ".hidden.png", "._b.png", ".git/x.png", "a/.x/1.png"):
        put(root / name, b"no photo")
    (root / "empty").mkdir()
    return root


def test_folder_gives_photos_at_any_depth_in_order_of_path(photos):
    images = read_images(str(photos))
    wanted = sorted(
        file
        for file in photos.rglob("*")
        if file.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".ppm")
        and not any(part.startswith(".") for part in file.relative_to(photos).parts)
    )
    assert list(images) == wanted and len(images) == 8
    assert [photo.read_bytes() for photo in images] == [file.read_bytes() for file in wanted]


def test_images_are_indexed_as_lists_are(photos):
    images = read_images(str(photos))
    listed = list(images)
    for i in (0, 3, -1, -8):
        assert images[i] == listed[i]
    assert images[np.int64(2)] == listed[2]  # pyright: ignore
    for part in (slice(2, 5), slice(None, None, -3), slice(5, 100), slice(9, 9)):
        assert images[part] == listed[part]
    for i in (8, -9):
        with pytest.raises(IndexError):
            images[i]


def test_folder_may_be_given_relative_and_in_links(photos, monkeypatch):
    (photos.parent / "link").symlink_to(photos)
    monkeypatch.chdir(photos.parent)
    assert str(read_images("photos")[1]) == "photos/a/2.JPG"
    assert names_of(read_images("link"), "link") == names_of(read_images("photos"), "photos")


def test_folder_follows_links_but_not_round_and_round(photos, tmp_path):
    put(tmp_path / "elsewhere/far.png", png(9))
    before = names_of(read_images(str(photos)), photos)
    (photos / "a/up").symlink_to(photos)
    (photos / "a/here").symlink_to(photos / "a")
    (photos / "round").symlink_to(photos / "round")
    (photos / "y").symlink_to(tmp_path / "elsewhere")
    assert names_of(read_images(str(photos)), photos) == [
        *before[:-2],
        "y/far.png",
        *before[-2:],
    ]


def test_dead_link_is_a_photo_that_cannot_be_read(photos):
    for name, target in (("dead.png", "nowhere.png"), ("round.png", "round.png")):
        (photos / name).symlink_to(photos / target)
    images = read_images(str(photos))
    assert len(images) == 10
    for name in ("dead.png", "round.png"):
        dead = next(photo for photo in images if str(photo).endswith(name))
        assert str(photos / name) in error_of(ImageProcessor(4, 4).load, [dead])


def test_folder_that_cannot_be_listed_is_named(photos, monkeypatch):
    listing = os.scandir

    def scandir(path):
        if str(path).rstrip("/").endswith("photos/a"):
            raise PermissionError(13, "Permission denied", str(path))
        return listing(path)

    monkeypatch.setattr(os, "scandir", scandir)
    message = error_of(read_images, str(photos))
    assert f"images `{photos}`: `{photos}/a/` cannot be listed: Permission denied." == message
    assert "Permission denied" in error_of(list_folders, photos, "faces")


@pytest.mark.parametrize("make", ["empty", "texts", "hidden"])
def test_folder_without_photos_says_what_it_looked_for(tmp_path, make):
    root = tmp_path / "x"
    root.mkdir()
    if make != "empty":
        put(root / {"texts": "a/notes.txt", "hidden": ".x/a.png"}[make], b"x")
    message = error_of(read_images, str(root))
    assert message.startswith(f"images `{root}` holds no photo (.jpg, .png")
    assert ("not used: 1 .txt (first `a/notes.txt`)." in message) == (make == "texts")
    assert ("not used: 1 hidden (first `.x`)." in message) == (make == "hidden")


def test_missing_source_is_named(tmp_path):
    path = tmp_path / "nowhere"
    assert error_of(read_images, str(path)) == f"images `{path}`: `{path}` does not exist."


def test_file_that_is_no_tar_is_named(tmp_path):
    for data in (png(), b"a caption\n", b"", b"\0", b"x" * 5000):
        path = put(tmp_path / "x.png", data)
        if data != b"\0":
            message = error_of(read_images, str(path))
            assert f"`{path}` is not a whole, uncompressed tar" in message
    assert "holds no photo" in error_of(read_images, str(put(path, bytes(10240))))


# Tars


def by_tarfile(path):
    """What `tarfile` finds: the reference."""
    found = []
    with tarfile.open(path) as tar:
        for member in tar:
            parts = [part for part in member.name.split("/") if part != "."]
            hidden = any(part.startswith(".") for part in parts)
            if member.isreg() and member.name.lower().endswith((".jpg", ".png")) and not hidden:
                data = tar.extractfile(member)
                assert data
                found.append((f"{path}/{member.name}", data.read()))
    return found


def assert_equal_to_tarfile(path):
    images = read_images(str(path))
    found = [(str(photo), photo.read_bytes()) for photo in images]
    assert found == by_tarfile(path)
    return images


MEMBERS = {
    "000.jpg": png(1),
    "000.txt": b"a caption",
    "000.json": b"{}",
    "./001.PNG": b"x" * 512,
    "deep/er/002.png": b"x" * 513,
    "._002.png": b"x" * 99,
    ".git/003.png": b"x",
    "d/.x/004.png": b"x",
    "zero.png": b"",
    "n" * 96 + ".png": b"of exactly 100 bytes",
    "d" * 70 + "/" + "n" * 60 + ".png": b"with a prefix",
    "." + "d" * 70 + "/" + "n" * 60 + ".png": b"with a hidden prefix",
    "é東.jpg": b"not ASCII",
    "last.jpg": png(2, 30),
}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_of_any_form_gives_what_tarfile_finds(tmp_path, form):
    members = dict(MEMBERS)
    if form != tarfile.USTAR_FORMAT:
        members |= {"n" * 300 + ".jpg": b"a long name", "after.jpg": b"that"}
    images = assert_equal_to_tarfile(write_tar(tmp_path / "x.tar", members, format=form))
    assert len(images) == (8 if form == tarfile.USTAR_FORMAT else 10)


def test_tar_as_webdataset_writes_it_is_read(tmp_path):
    """Its times are fractions, so that an extended header is before each member."""
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w|") as tar:
        for i in range(5):
            for suffix, data in (("jpg", png(i)), ("txt", b"a cat"), ("json", b"{}")):
                info = tarfile.TarInfo(f"{i:09}.{suffix}")
                info.size, info.mtime, info.uname = len(data), time.time(), "bigdata"
                tar.addfile(info, io.BytesIO(data))
    assert path.read_bytes().count(b" mtime=") == 15
    assert len(assert_equal_to_tarfile(path)) == 5


def test_tar_with_directories_links_and_extended_headers_is_read(tmp_path):
    def info(name, kind, **fields):
        made = tarfile.TarInfo(name)
        made.type = kind
        for key, value in fields.items():
            setattr(made, key, value)
        return made

    renamed = info("short.txt", tarfile.REGTYPE, pax_headers={"path": "renamed.jpg", "mtime": "1"})
    members = {
        "dir": info("dir.jpg", tarfile.DIRTYPE),
        "a.jpg": b"x" * 700,
        "link": info("link.jpg", tarfile.SYMTYPE, linkname="a.jpg"),
        "hard": info("hard.jpg", tarfile.LNKTYPE, linkname="a.jpg"),
        "fifo": info("fifo.jpg", tarfile.FIFOTYPE),
        "renamed": renamed,
        "old.jpg": info("old.jpg", tarfile.AREGTYPE),
        "b.jpg": b"y" * 30,
    }
    path = write_tar(tmp_path / "x.tar", members, pax_headers={"comment": "of all"})
    images = assert_equal_to_tarfile(path)
    names = [Path(str(photo)).name for photo in images]
    assert names == ["a.jpg", "renamed.jpg", "old.jpg", "b.jpg"]


def test_tar_without_an_end_is_read(tmp_path):
    path = write_tar(tmp_path / "x.tar", {"a.jpg": b"x" * 512, "b.jpg": b"y" * 512})
    path.write_bytes(path.read_bytes()[:2048])
    assert len(assert_equal_to_tarfile(path)) == 2


def shards(root, num=13):
    """Tar shards of two photos each."""
    for i in range(num):
        members = {
            f"{i}-{j}.{s}": f"{i} {j} {s}".encode() for j in range(2) for s in ("jpg", "txt")
        }
        write_tar(root / f"part-{i:04}.tar", members)
    return [f"{i} {j} jpg".encode() for i in range(num) for j in range(2)]


@pytest.mark.parametrize("source", ["", "/part-{0000..0012}.tar"])
def test_shards_are_read_in_order(tmp_path, source):
    wanted = shards(tmp_path / "s")
    put(tmp_path / "s/part-0000.json", b"{}")
    put(tmp_path / "s/part-0000.parquet")
    images = read_images(f"{tmp_path}/s{source}")
    assert [photo.read_bytes() for photo in images] == wanted
    assert str(images[5]) == f"{tmp_path}/s/part-0002.tar/2-1.jpg"


@pytest.mark.parametrize(
    "source, wanted",
    [
        ("part-{0003..0004}.tar", [6, 7, 8, 9]),
        ("part-{0007..0007}.tar", [14, 15]),
        ("part-00{0..1}{0..1}.tar", [0, 1, 2, 3, 20, 21, 22, 23]),
        ("part-{0009..0010}.tar", [18, 19, 20, 21]),
        ("part-0012.tar", [24, 25]),
    ],
)
def test_range_of_shards_is_written_out(tmp_path, source, wanted):
    data = shards(tmp_path)
    images = read_images(f"{tmp_path}/{source}")
    assert [photo.read_bytes() for photo in images] == [data[i] for i in wanted]


def test_range_without_leading_zeros_counts(tmp_path):
    for i in (8, 9, 10):
        write_tar(tmp_path / f"{i}.tar", {f"{i}.jpg": b"x"})
    assert len(read_images(f"{tmp_path}/{{8..10}}.tar")) == 3


def test_range_with_a_missing_shard_names_it(tmp_path):
    shards(tmp_path)
    (tmp_path / "part-0007.tar").unlink()
    source = f"{tmp_path}/part-{{0000..0012}}.tar"
    message = error_of(read_images, source)
    assert message == f"images `{source}`: `{tmp_path}/part-0007.tar` does not exist."


def test_range_that_runs_backwards_is_refused(tmp_path):
    assert "{3..1} must not run backwards" in error_of(read_images, f"{tmp_path}/{{3..1}}.tar")


def test_braces_in_a_name_that_exists_are_its_own(tmp_path):
    path = write_tar(tmp_path / "{0..1}.tar", {"a.jpg": b"x"})
    assert len(read_images(str(path))) == 1


def test_shards_beside_photos_are_refused(photos):
    write_tar(photos / "a/x.tar", {"a.jpg": b"x"})
    assert "(`a/x.tar`) and photos beside them" in error_of(read_images, str(photos))


@pytest.mark.parametrize("how", ["gz", "xz", "data", "header", "name", "middle", "text", "empty"])
def test_broken_tar_is_named_in_one_line(tmp_path, how):
    shards(tmp_path, 3)
    path = tmp_path / "part-0001.tar"
    data = path.read_bytes()
    if how in ("gz", "xz"):
        write_tar(tmp_path / "x", {"a.jpg": b"x"})
        with tarfile.open(path, f"w:{how}") as tar:  # pyright: ignore
            tar.add(tmp_path / "x")
    else:
        path.write_bytes(
            {
                "data": data[: 512 + 5],
                "header": data[: 1024 + 77],
                "name": data[:1024] + b"?" + data[1025:],
                "middle": data[:1024] + b"!" * 512 + data[1536:],
                "text": b"a caption\n" * 300,
                "empty": b"",
            }[how]
        )
    for source in (tmp_path, path):
        message = error_of(read_images, str(source))
        assert f"images `{source}`: `{path}` is not a whole, uncompressed tar" in message


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz"])
def test_compressed_tar_is_refused(tmp_path, name):
    path = write_tar(tmp_path / "plain", {"a.jpg": b"x"})
    with tarfile.open(tmp_path / name, "w:gz") as tar:
        tar.add(path)
    assert "uncompressed tar" in error_of(read_images, str(tmp_path / name))
    path.unlink()
    assert "holds no photo" in error_of(read_images, str(tmp_path))


def test_tar_without_photos_says_so(tmp_path):
    path = write_tar(tmp_path / "x.tar", {"a.txt": b"x"})
    for source in (path, tmp_path):
        assert f"images `{source}` holds no photo" in error_of(read_images, str(source))


def test_shard_that_shrinks_after_it_was_indexed_is_named(tmp_path):
    path = write_tar(tmp_path / "x.tar", {"a.jpg": png(1), "b.jpg": png(2)})
    first, last = read_images(str(path))
    path.write_bytes(path.read_bytes()[:1600])
    assert first.read_bytes() == png(1)
    with pytest.raises(OSError, match="ends after"):
        last.read_bytes()
    assert f"`{path}/b.jpg`" in error_of(ImageProcessor(4, 4).load, [first, last])
    path.unlink()
    assert f"`{path}, byte 1536`" in error_of(ImageProcessor(4, 4).load, [last])


def test_shard_may_be_read_from_many_threads(tmp_path):
    members = {f"{i}.jpg": os.urandom(3000 + i) for i in range(40)}
    images = read_images(str(write_tar(tmp_path / "x.tar", members)))
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            found = pool.map(lambda photo: photo.read_bytes(), images)
            assert list(found) == list(members.values())


# TensorFlow Datasets


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    features = pytest.importorskip("tensorflow_datasets").features
    path = tmp_path_factory.mktemp("tfds")
    image, label = features.Image(), features.ClassLabel(names=["a", "b"])
    rows = [{"image": png(i), "mask": b"no photo", "label": i % 2} for i in range(7)]
    write_tfds(
        path,
        "several",
        {"image": image, "mask": image, "label": label},
        {"train": rows, "test": rows[:2]},
    )
    write_tfds(path, "alone", {"photo": image, "n": np.int64}, {"train": [{"photo": b"x", "n": 1}]})
    pair = {"left": image, "right": image}
    write_tfds(path, "pair", pair, {"train": [{"left": b"x", "right": b"x"}]})
    write_tfds(path, "blind", {"label": label}, {"train": [{"label": 1}]})
    told = {"image": image, "caption": features.Text()}
    write_tfds(path, "told", told, {"train": [{"image": b"no photo", "caption": "a cat"}]})
    return path


def test_tfds_gives_the_bytes_it_stores(tfds_dir):
    images = read_images("tfds:several", str(tfds_dir))
    assert len(images) == 7
    assert sorted(photo.read_bytes() for photo in images) == sorted(map(png, range(7)))
    assert str(images[3]) == "tfds:several[3]" and images[3].read_bytes() == images[3].read_bytes()
    assert read_images("tfds:alone", str(tfds_dir))[0].read_bytes() == b"x"
    assert len(read_images("tfds:several:train[:3]+test", str(tfds_dir))) == 5
    assert "tensorflow" not in sys.modules


def test_tfds_photos_are_decoded_by_pillow(tfds_dir):
    images = read_images("tfds:several", str(tfds_dir))
    wanted = [Image.open(io.BytesIO(photo.read_bytes())) for photo in images]
    processor = ImageProcessor(4, 4)
    np.testing.assert_array_equal(processor.load(images), [processor(image) for image in wanted])


def test_tfds_captions_leave_images_undecoded(tfds_dir):
    assert read_captions("tfds:told", str(tfds_dir)) == ["a cat"]


def test_tfds_without_the_one_image_lists_the_features(tfds_dir):
    for name, has in (
        ("pair", "left (Image), right (Image)"),
        ("blind", "label (ClassLabel)"),
    ):
        message = error_of(read_images, f"tfds:{name}", str(tfds_dir))
        assert message.startswith(f"`tfds:{name}`: must have a feature `image`")
        assert message.endswith(f"has {has}.")


def test_tfds_in_tfrecord_says_how_to_prepare_it(tfds_dir, tmp_path):
    shutil.copytree(tfds_dir / "several", tmp_path / "several")
    (info,) = tmp_path.glob("several/*/dataset_info.json")
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    message = error_of(read_images, "tfds:several", str(tmp_path))
    assert "`tfds:several`" in message and "--file_format=array_record" in message


def test_tfds_that_is_not_prepared_or_has_no_such_split_is_named(tfds_dir):
    for name in ("nowhere", "lfw"):  # the library knows one of them
        message = error_of(read_images, f"tfds:{name}", str(tfds_dir))
        assert f"`tfds:{name}`: not prepared in `{tfds_dir}`; run `tfds build {name} " in message
    assert "SPLIT be one of" in error_of(read_images, "tfds:several:validation", str(tfds_dir))


def test_tfds_dataset_that_the_library_knows_is_read_by_its_features(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    builder = tfds.builder("lfw", data_dir=str(tmp_path / "none"))
    assert set(builder.info.features) == {"image", "label"}
    features = {"label": tfds.features.Text(), "image": tfds.features.Image(shape=(250, 250, 3))}
    write_tfds(tmp_path, "lfw", features, {"train": [{"label": "Ann_Lee", "image": png(1)}]})
    (path,) = (tmp_path / "lfw").iterdir()
    path = path.rename(path.with_name(str(builder.version)))
    info = json.loads((path / "dataset_info.json").read_text())
    (path / "dataset_info.json").write_text(json.dumps(info | {"version": path.name}))
    (photo,) = read_images("tfds:lfw", str(tmp_path))
    assert photo.read_bytes() == png(1)


def test_tfds_with_a_lost_file_names_the_record(tfds_dir, tmp_path):
    shutil.copytree(tfds_dir / "several", tmp_path / "several")
    (file,) = tmp_path.glob("several/*/several-train.array_record*")
    file.unlink()
    images = read_images("tfds:several", str(tmp_path))
    message = error_of(ImageProcessor(4, 4).load, images[:1])
    assert "`tfds:several[0]`" in message and "record cannot be read" in message
    assert "record cannot be read" in error_of(photo_digest, images[0])


# Digests


def test_photo_digest_is_sha_256_of_the_bytes(tmp_path, tfds_dir):
    path = put(tmp_path / "a.png", png(1))
    tar = write_tar(tmp_path / "x.tar", {"a.png": png(1)})
    sources = [path, read_images(str(tar))[0], *read_images("tfds:several", str(tfds_dir))]
    wanted = hashlib.sha256(png(1)).hexdigest()
    assert [photo_digest(photo) for photo in sources].count(wanted) == 3
    assert photo_digest(put(path, b"")) == hashlib.sha256().hexdigest()


def test_photo_digest_names_a_photo_that_cannot_be_read(tmp_path):
    message = error_of(photo_digest, tmp_path / "a.png")
    assert message == f"`{tmp_path}/a.png` cannot be read: No such file or directory."


def test_description_of_a_folder_is_of_names_and_sizes(photos, tmp_path):
    def describe(path=photos):
        return describe_images(read_images(str(path)))

    first = describe()
    assert describe(shutil.copytree(photos, tmp_path / "copy")) == first
    put(photos / "notes.txt", b"more notes")
    assert describe() == first
    seen = {first}
    (photos / "b.png").rename(photos / "c.png")
    seen.add(describe())
    put(photos / "c.png", png(0) + b"x")
    seen.add(describe())
    put(photos / "new.png", png(3))
    seen.add(describe())
    (photos / "new.png").unlink()
    (photos / "new.png").symlink_to("nowhere")
    seen.add(describe())
    assert len(seen) == 5


def test_description_does_not_read_photos(photos, monkeypatch):
    def read(self):
        raise AssertionError(self)

    monkeypatch.setattr(Path, "read_bytes", read)
    monkeypatch.setattr("jaxdefense.data.sources.TarPhoto.read_bytes", read)
    shards(photos.parent / "s")
    for source in (photos, photos.parent / "s"):
        assert len(describe_images(read_images(str(source)))) == 64


def test_description_of_shards_is_of_members_and_sizes(tmp_path):
    def describe(*shards):
        shutil.rmtree(tmp_path / "s", ignore_errors=True)
        for i, members in enumerate(shards):
            write_tar(tmp_path / f"s/{i}.tar", members)
        return describe_images(read_images(str(tmp_path / "s")))

    first = describe({"a.jpg": b"1", "a.txt": b"1"}, {"b.jpg": b"22"})
    assert describe({"a.jpg": b"3", "a.txt": b"333"}, {"b.jpg": b"44"}) == first
    others = [
        describe({"c.jpg": b"1"}, {"b.jpg": b"22"}),
        describe({"a.jpg": b"11"}, {"b.jpg": b"22"}),
        describe({"b.jpg": b"22"}, {"a.jpg": b"1"}),
        describe({"a.jpg": b"1"}, {"b.jpg": b"22", "c.jpg": b""}),
        describe({"a.jpg": b"1"}),
    ]
    assert len({first, *others}) == 6


def test_description_of_a_dataset_is_of_name_split_and_count(tfds_dir):
    def describe(source):
        return describe_images(read_images(source, str(tfds_dir)))

    assert describe("tfds:several") == describe("tfds:several:train")
    sources = ["several", "several:test", "several:train[:2]", "alone"]
    assert len({describe(f"tfds:{source}") for source in sources}) == 4


# Memory


def peak_of(read):
    tracemalloc.start()
    try:
        read()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_memory_does_not_grow_with_the_photos(tmp_path, kind):
    """Ten times the photos, the same peak but for the index; held, they would be ten times it."""
    data, peaks = png(0, 64), {}
    for num in (40, 400):
        if kind == "tar":
            write_tar(tmp_path / f"{num}/x.tar", {f"{i:05}.png": data for i in range(num)})
        else:
            for i in range(num):
                put(tmp_path / f"{num}/{i:05}.png", data)

        def read(num=num):
            images, loader = read_images(str(tmp_path / str(num))), Loader(ImageProcessor(32, 32))
            for start in range(0, num, 20):
                assert loader.load([[photo] for photo in images[start : start + 20]]).any()

        read()  # what is made once is made before
        peaks[num] = peak_of(read)
    index = 360 * 200
    assert peaks[400] < 1.15 * peaks[40] + index < peaks[40] + 360 * len(data)


def test_index_of_shards_takes_few_bytes_a_photo(tmp_path):
    num = 5000
    write_tar(tmp_path / "x.tar", {f"{i:09}.jpg": b"x" for i in range(num)})
    held = []
    read_images(str(tmp_path))
    tracemalloc.start()
    held.append(read_images(str(tmp_path)))
    size, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 40 * num and peak < 80 * num


# What is used, and what is not

FORMATS = {
    **dict.fromkeys((".jpg", ".JPEG", ".jpe", ".jfif", ".mpo"), "JPEG"),
    **dict.fromkeys((".tif", ".TIFF"), "TIFF"),
    **dict.fromkeys((".jp2", ".j2k"), "JPEG2000"),
    **{".png": "PNG", ".apng": "PNG", ".webp": "WEBP", ".gif": "GIF", ".bmp": "BMP"},
    **{".pgm": "PPM", ".pbm": "PPM", ".tga": "TGA", ".pcx": "PCX", ".dds": "DDS", ".qoi": "QOI"},
    **({".avif": "AVIF"} if features.check("avif") else {}),
}
OTHERS = {
    **{"a.heic": "pillow-heif", "b.HEIF": "pillow-heif", "c.dng": "raw data", "d.CR2": "raw data"},
    **{"e.txt": "", "f.json": "", "g.ico": "", "h.pdf": "", "i.svg": "", "j": "", ".k.png": ""},
    **{"l.eps": "", "m.mp4": ""},
}


def write_every_kind(root):
    for i, (suffix, form) in enumerate(FORMATS.items()):
        out = io.BytesIO()
        Image.new("L" if suffix == ".pgm" else "RGB", (16, 16), 9 * i).save(out, form)
        put(root / f"{i:02}{suffix}", out.getvalue())
    for name in OTHERS:
        put(root / name, b"x")


def assert_told(line, num=1):
    """Every kind once, with the number and the first, and what to do."""
    kinds = line.split("not used: ")[1].split("), ")
    assert len(kinds) == len({Path(name).suffix.lower() for name in OTHERS if name[0] != "."}) + 1
    for name, words in OTHERS.items():
        kind = "hidden" if name[0] == "." else Path(name).suffix.lower() or "without a suffix"
        (told,) = [x for x in kinds if f" {kind} (" in x]
        assert told.startswith(f"{num} {kind} (first `") and f"{name}`" in told and words in told
    assert kinds[0].split()[1] in (".heic", ".heif", ".dng", ".cr2")  # of use, so first


@pytest.mark.parametrize("kind", ["folder", "tar", "people"])
def test_all_that_pillow_opens_is_used_and_the_rest_counted(tmp_path, kind):
    root = tmp_path / "photos"
    said: list[str] = []
    for who in ("Ann", "Bo") if kind == "people" else ("",):
        write_every_kind(root / who)
    if kind == "people":
        photos = [p for files in list_folders(root, "faces", said.append).values() for p in files]
    elif kind == "folder":
        photos = list(read_images(str(root), note=said.append))
    else:
        members = {file.name: file.read_bytes() for file in sorted(root.iterdir())}
        tar = write_tar(tmp_path / "x.tar", members)
        photos = list(read_images(str(tar), note=said.append))
    num = 2 if kind == "people" else 1
    assert len(photos) == num * len(FORMATS)
    pixels = ImageProcessor(4, 4).load(photos)
    assert [int(x[0, 0, 0]) // 9 for x in pixels[: len(FORMATS)]] == pytest.approx(
        range(len(FORMATS)), abs=1
    )
    (line,) = said
    assert "\n" not in line and str(tmp_path) in line.split(":")[0]
    assert_told(line, num)


def test_photos_alone_are_read_without_a_word(tmp_path):
    put(tmp_path / "a/Ann/1.png", png())
    with logged() as said:
        assert len(read_images(str(tmp_path))) == len(list_folders(tmp_path / "a", "faces")) == 1
    assert said.getvalue() == ""


def test_photos_beside_the_folders_are_told(tmp_path):
    for name in ("Ann/1.png", "2.png", "3.png"):
        put(tmp_path / name, png())
    said: list[str] = []
    list_folders(tmp_path, "faces", said.append)
    assert said == [f"faces directory `{tmp_path}`: not used: 2 beside the folders (first `2.png`)"]


def test_plugin_that_is_installed_is_used(tmp_path, monkeypatch):
    plugin: Any = types.ModuleType("pillow_heif")

    def register():
        Image.init()
        Image.register_extension("PNG", ".heic")

    plugin.register_heif_opener = register
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    monkeypatch.setattr(Image, "EXTENSION", dict(Image.EXTENSION))
    photo_formats.cache_clear()
    photo_suffixes.cache_clear()
    try:
        put(tmp_path / "a.HEIC", png())
        assert len(read_images(str(tmp_path))) == 1
    finally:
        photo_formats.cache_clear()
        photo_suffixes.cache_clear()
