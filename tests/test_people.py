"""People and classes: layouts of their photos, whom a list means, and the split for the attack."""

import hashlib
import io
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from factories import write_tfds
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from jaxdefense.data.identities import Identity
from jaxdefense.data.images import Photos
from jaxdefense.data.people import (
    choose_people,
    read_faces,
    read_labelled,
    read_people,
    shared_photos,
    split_photos,
)


def put(root, *names):
    """Write files of which each has a content of its own, and a size by its name's length."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(hashlib.sha256(name.encode()).digest() + name.encode())


def listed(folders, root):
    """Names, and photos relative to the root."""
    return {f.name: [str(Path(str(p)).relative_to(root)) for p in f.files] for f in folders}


def error_of(call, *args):
    """The message of the ValueError, which must be of one line."""
    with pytest.raises(ValueError) as info:
        call(*args)
    message = str(info.value)
    assert "\n" not in message and message.endswith(".")
    return message


# Layouts


@pytest.mark.parametrize("source", ["*.parquet", "x.parquet::face", "{1..2}.parquet::face"])
def test_photos_without_folders_come_from_globs_ranges_and_columns(tmp_path, source):
    other = {} if "*" in source else {"other": [b"2"]}
    for name in ("x", "1", "2"):
        pq.write_table(pa.table({"face": [b"1"], **other}), tmp_path / f"{name}.parquet")
    found = read_faces(f"{tmp_path}/{source}", "", "keep")
    assert {photo.read_bytes() for person in found for photo in person.files} == {b"1"}
    assert error_of(read_faces, f"{tmp_path}/none", "", "keep").endswith("does not exist.")


def test_people_of_a_folder_each_come_sorted_by_name(tmp_path):
    put(tmp_path, "s10/1.pgm", "s2/2.pgm", "s2/1.pgm", "Zoe_B/x.png", "a_b/y.png", "README.txt")
    put(tmp_path, "s2/notes.txt", ".hidden/x.png", "s2/.x.png")
    assert listed(read_people(str(tmp_path)), tmp_path) == {
        "Zoe B": ["Zoe_B/x.png"],
        "a b": ["a_b/y.png"],
        "s10": ["s10/1.pgm"],
        "s2": ["s2/1.pgm", "s2/2.pgm"],
    }


def test_people_of_lfw_are_read(tmp_path):
    put(tmp_path, *(f"Aaron_Eckhart/Aaron_Eckhart_{i:04}.jpg" for i in (1, 2)))
    put(tmp_path, "Abdel_Nasser_Assidi/Abdel_Nasser_Assidi_0001.jpg")
    people = read_people(str(tmp_path))
    assert [p.name for p in people] == ["Aaron Eckhart", "Abdel Nasser Assidi"]
    assert [len(p.files) for p in people] == [2, 1]


def test_people_of_orl_are_read(shared_data):
    people = read_people(str(shared_data / "orl"))
    assert len(people) == 40 and {len(p.files) for p in people} == {10}
    assert [p.name for p in people] == sorted(f"s{i}" for i in range(1, 41))


@pytest.fixture
def facescrub(tmp_path):
    """FaceScrub's layout, with photos cropped and whole."""
    root = tmp_path / "facescrub"
    for kind in ("faces", "images"):
        actors = "Robert_Di_Niro", "Leslie_Neilsen", "Freddy_Prinze_Jr.", "Al_Pacino"
        put(root / "actors" / kind, *(f"{name}/{kind}1.jpeg" for name in actors))
        put(root / "actresses" / kind, *(f"{n}/{kind}1.jpeg" for n in ("Tatyana_M._Ali", "Zoe_B")))
    put(root, "facescrub_actors.txt", "actors/faces/README.txt")
    return root


ACTORS = ["Al Pacino", "Freddie Prinze Jr", "Leslie Nielsen", "Robert De Niro"]


def test_people_of_facescrub_are_its_cropped_faces_with_names_put_right(facescrub):
    people = read_people(str(facescrub))
    assert [p.name for p in people] == [*ACTORS, "Tatyana Ali", "Zoe B"]
    assert listed(people, facescrub)["Robert De Niro"] == [
        "actors/faces/Robert_Di_Niro/faces1.jpeg"
    ]
    assert all("/faces/" in str(photo) for p in people for photo in p.files)


@pytest.mark.parametrize(
    "part, names",
    [
        ("actors", ACTORS),
        ("actors/", ACTORS),
        ("actors/faces", ACTORS),
        ("actors/images", ACTORS),
        ("actresses", ["Tatyana Ali", "Zoe B"]),
        ("actors/faces/../../actresses/faces", ["Tatyana Ali", "Zoe B"]),
    ],
)
def test_parts_of_facescrub_are_read(facescrub, part, names):
    people = read_people(f"{facescrub}/{part}")
    assert [p.name for p in people] == names
    kind = "images" if "images" in part else "faces"
    assert all(f"/{kind}/" in str(photo) for p in people for photo in p.files)


def test_part_of_facescrub_is_known_from_within(facescrub, monkeypatch):
    monkeypatch.chdir(facescrub / "actors/faces")
    people = read_people(".")
    assert [p.name for p in people] == ACTORS
    assert str(people[0].files[0]) == "Al_Pacino/faces1.jpeg"


def test_facescrub_with_whole_photos_or_one_half_alone_is_read(facescrub):
    (facescrub / "actors/faces").rename(facescrub.parent / "away")
    people = read_people(str(facescrub))
    assert [p.name for p in people] == [*ACTORS, "Tatyana Ali", "Zoe B"]
    assert Counter("/images/" in str(p.files[0]) for p in people) == {True: 4, False: 2}
    (facescrub / "actresses").rename(facescrub.parent / "gone")
    assert [p.name for p in read_people(str(facescrub))] == ACTORS


def test_facescrub_with_people_right_below_one_half_is_read(facescrub):
    (facescrub / "actresses/faces").rename(facescrub / "people")
    for kept in (facescrub / "actresses/images").iterdir():
        kept.rename(facescrub / "actresses" / kept.name)
    (facescrub / "actresses/images").rmdir()
    people = read_people(str(facescrub))
    assert [p.name for p in people] == [*ACTORS, "Tatyana Ali", "Zoe B"]


def test_names_are_put_right_in_facescrub_alone(tmp_path):
    put(tmp_path, "Robert_Di_Niro/1.png", "actors/1.png")
    assert [p.name for p in read_people(str(tmp_path))] == ["Robert Di Niro", "actors"]


def test_one_person_in_both_halves_of_facescrub_is_named(facescrub):
    put(facescrub, "actresses/faces/Al_Pacino/1.png")
    message = error_of(read_people, str(facescrub))
    assert f"faces `{facescrub}`: `{facescrub}/actors/faces/Al_Pacino` and " in message
    assert message.endswith("are of one name, 'Al Pacino'; join them.")


def test_folders_of_one_name_are_named(tmp_path):
    put(tmp_path, "Ann_Lee/1.png", "ann lee/1.png", "Bo/1.png")
    message = error_of(read_people, str(tmp_path), "", "strangers")
    assert message.startswith(f"strangers `{tmp_path}`: `Ann_Lee` and `ann lee` are of one name")
    (tmp_path / "ann lee").rename(tmp_path / "...")
    (tmp_path / "...").rename(tmp_path / "-_-")
    assert "`-_-` has no letter or digit in its name" in error_of(read_people, str(tmp_path))


def test_folder_without_photos_is_named(tmp_path):
    put(tmp_path, "Ann/1.png", "Bo/notes.txt")
    message = error_of(read_people, str(tmp_path), "", "target")
    assert message.startswith(f"target directory `{tmp_path}`: folder `Bo` holds no photo (.jpg,")
    assert "does not exist" in error_of(read_people, str(tmp_path / "x"))
    assert "holds no folder" in error_of(read_people, str(tmp_path / "Ann"))


def test_folder_that_links_to_itself_is_read(tmp_path):
    put(tmp_path, "Ann/1.png", "Ann/more/2.png")
    (tmp_path / "Ann/more/again").symlink_to(tmp_path / "Ann")
    (tmp_path / "Ann/all").symlink_to(tmp_path)
    (tmp_path / "round").symlink_to("round")
    assert listed(read_people(str(tmp_path)), tmp_path) == {"Ann": ["Ann/1.png", "Ann/more/2.png"]}


def test_person_whose_folder_is_a_link_is_read(tmp_path):
    put(tmp_path, "away/1.png", "faces/Bo/1.png")
    (tmp_path / "faces/Ann").symlink_to(tmp_path / "away")
    assert [p.name for p in read_people(str(tmp_path / "faces"))] == ["Ann", "Bo"]


# TensorFlow Datasets


def png(seed):
    out = io.BytesIO()
    Image.new("RGB", (3, 2), (seed, 0, 0)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    features = pytest.importorskip("tensorflow_datasets").features
    path, image = tmp_path_factory.mktemp("tfds"), features.Image()
    names = ["Bo_Ek", "Ann_Lee", "Bo_Ek", "Bo_Ek", "Ann_Lee"]
    # Undecoded, or what is no photo would be an error.
    rows = [{"label": name, "image": b"%d %s" % (i, name.encode())} for i, name in enumerate(names)]
    write_tfds(path, "people", {"label": features.Text(), "image": image}, {"train": rows})
    classes = features.ClassLabel(names=["n01", "n02", "none"])
    rows = [{"kind": i % 2, "photo": png(i), "n": 3} for i in range(5)]
    write_tfds(
        path,
        "classes",
        {"kind": classes, "photo": image, "n": np.int64},
        {"train": rows, "test": [{"kind": -1, "photo": png(0), "n": 0}]},
    )
    two = {"image": image, "who": features.Text(), "what": features.Text()}
    write_tfds(path, "two", two, {"train": [{"image": png(0), "who": "a", "what": "b"}]})
    return path


def test_people_of_a_dataset_are_grouped_by_label(tfds_dir):
    people = read_people("tfds:people", str(tfds_dir))
    assert [(p.name, len(p.files)) for p in people] == [("Ann Lee", 2), ("Bo Ek", 3)]
    for person in people:
        contents = [photo.read_bytes() for photo in person.files]
        assert len(set(contents)) == len(contents)
        assert all(c.endswith(person.name.replace(" ", "_").encode()) for c in contents)
    assert str(people[0].files[0]).startswith("tfds:people[")


def test_classes_of_a_dataset_are_named_by_its_labels_or_a_file(tfds_dir, tmp_path):
    file = tmp_path / "classes.txt"
    file.write_text("n02\tgoldfish\nn01\twhite shark\n")
    for names, wanted in (
        ("", [("n01", {0, 2, 4}), ("n02", {1, 3})]),
        (str(file), [("goldfish", {1, 3}), ("white shark", {0, 2, 4})]),
    ):
        found = []
        for c in read_labelled("tfds:classes", str(tfds_dir), "class", names):
            pixels = [Image.open(io.BytesIO(f.read_bytes())).getpixel((0, 0)) for f in c.files]
            found.append((c.name, {np.asarray(pixel)[0] for pixel in pixels}))
        assert found == wanted


def test_dataset_without_the_one_label_lists_the_features(tfds_dir):
    message = error_of(read_people, "tfds:two", str(tfds_dir))
    assert "must have a feature `label`, or one alone that is Text or ClassLabel" in message
    assert "image (Image)" in message and "who (Text)" in message


def test_photo_without_a_label_is_named(tfds_dir):
    message = error_of(read_people, "tfds:classes:test", str(tfds_dir))
    assert message.startswith("`tfds:classes:test[0]` has no `kind`")


def test_dataset_that_is_not_prepared_says_how(tfds_dir):
    assert "tfds build nowhere" in error_of(read_people, "tfds:nowhere", str(tfds_dir))


# Classes


@pytest.fixture
def classes(tmp_path):
    put(tmp_path / "classes", "n01/1.png", "n02_x/1.png", "n02_x/2.png")
    return str(tmp_path / "classes")


def named(classes, text, tmp_path):
    file = tmp_path / "names.tsv"
    file.write_text(text)
    return read_labelled(classes, "", "class", str(file))


def test_classes_are_named_by_their_folders(classes):
    found = read_labelled(classes, "", "class")
    assert listed(found, classes) == {
        "n01": ["n01/1.png"],
        "n02 x": ["n02_x/1.png", "n02_x/2.png"],
    }


def test_classes_are_named_by_a_file(classes, tmp_path):
    found = named(classes, "\ufeffn02_x\tzebra finch \r\n\nn01\t tench\n", tmp_path)
    assert listed(found, classes) == {
        "tench": ["n01/1.png"],
        "zebra finch": ["n02_x/1.png", "n02_x/2.png"],
    }


def test_actors_are_no_layout_of_classes(facescrub):
    names = [c.name for c in read_labelled(str(facescrub), "", "class")]
    assert names == ["actors", "actresses"]


@pytest.mark.parametrize(
    "text, words",
    [
        ("n02_x\tb\n", ["no line for `n01`."]),
        ("n02_x\tb\nn01\ta\nn03\tc\n", ["no photo of `n03`."]),
        ("n02 x\tb\nn01\ta\n", ["no line for `n02_x`", "no photo of `n02 x`."]),
        ("".join(f"n{i}\tb{i}\n" for i in range(900)), ["no line for", "and 896 more"]),
        ("n02_x\tb\nn01\tB\n", ["`n01` and `n02_x` are of one name"]),
        ("n02_x b\n", ["'n02_x b' must be a folder or label"]),
        ("n02_x\t\n", ["'n02_x' must be"]),
        ("n02_x\tb\nn02_x\tc\n", ["'n02_x\\tc' must be", "not named before"]),
    ],
)
def test_file_that_does_not_name_the_classes_is_refused(classes, tmp_path, text, words):
    message = error_of(named, classes, text, tmp_path)
    for word in (*words, classes if "one name" in message else "names.tsv"):
        assert word in message
    assert len(message) < 500


def test_missing_file_of_class_names_is_named(classes, tmp_path):
    message = error_of(read_labelled, classes, "", "class", f"{tmp_path}/x")
    assert message == f"class names file `{tmp_path}/x` does not exist."


# The listed


def folders(*names):
    return [Photos(name, (Path(name),)) for name in names]


def test_choose_people_finds_each_by_any_name():
    people = folders("Ann Lee", "Bo Ek", "Zoë K", "Cy Dee")
    identities = [Identity("zoë k"), Identity("Annie", ("A. Lee", "ANN-LEE")), Identity("Cy Dee")]
    chosen = choose_people(people, identities, "names")
    assert chosen == [
        (identities[0], people[2]),
        (identities[1], people[0]),
        (identities[2], people[3]),
    ]


def test_choose_people_finds_names_however_they_are_written():
    people = folders("Jose Maria", "Zoe\u0308 K", "Sean O'Neil", "山田太郎", "Weiss")
    names = ["José María", "Zoë K", "sean o’neil", "山田 太郎", "Weiß"]
    chosen = choose_people(people, [Identity(name) for name in names], "names")
    assert [folder.name for _, folder in chosen] == [person.name for person in people]


def test_folders_that_fold_to_one_name_are_named(tmp_path):
    put(tmp_path, "José_María/1.png", "Jose_Maria/1.png")
    message = error_of(read_people, str(tmp_path))
    assert "`Jose_Maria`" in message and "`José_María`" in message and "of one name" in message


def test_choose_people_names_the_missing_and_the_closest():
    people = folders("Ann Lee", "Bo Ek", "Robert De Niro")
    one = error_of(choose_people, people, [Identity("Bo Ek"), Identity("Bob de Niro")], "list `x`")
    assert one.startswith("list `x`: no photos of `Bob de Niro` (1 of 2 listed)")
    assert "closest to the first is 'Robert De Niro'." in one
    many = [Identity(f"Person {i}") for i in range(50)]
    message = error_of(choose_people, people, many, "list `x`")
    assert "`Person 0`, `Person 1`" in message and "(50 of 50 listed)" in message
    assert len(message) < 250


def test_choose_people_refuses_two_folders_of_one_person():
    people = folders("Ann Lee", "Annie Lee", "Bo")
    message = error_of(choose_people, people, [Identity("Ann Lee", ("Annie Lee",))], "list `x`")
    assert message == (
        "list `x`: 'Ann Lee' has the folders `Ann Lee`, `Annie Lee`; join them, or list two people."
    )


# The split


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """People with 1 to 24 photos, no two alike but all of a size."""
    root = tmp_path_factory.mktemp("crowd")
    people = []
    for n in range(1, 25):
        files = []
        for i in range(n):
            path = root / f"{n:02}-{i:02}.png"
            path.write_text(path.name)
            files.append(path)
        people.append(Photos(f"Person {n}", tuple(files)))
    return people


@pytest.mark.parametrize("fraction", [0, 0.1, 0.25, 0.5, 0.77, 0.99, 1])
def test_split_gives_each_part_its_share_of_everyone(crowd, fraction):
    trigger, attack = split_photos(crowd, fraction, 0)
    assert [p.name for p in trigger] == [p.name for p in attack] == [p.name for p in crowd]
    for person, one, other in zip(crowd, trigger, attack, strict=True):
        n = len(person.files)
        share = sorted((1, round(n * fraction + 1e-9), n if fraction == 1 or n == 1 else n - 1))[1]
        assert len(one.files) == share
        assert set(one.files) | set(other.files) == set(person.files)
        assert not set(one.files) & set(other.files)
        for part in (one.files, other.files):
            assert list(part) == [file for file in person.files if file in part]


def test_split_of_a_person_hangs_on_seed_and_name_alone(crowd):
    trigger, attack = split_photos(crowd, 0.5, 3)
    parts = dict(zip([p.name for p in crowd], zip(trigger, attack, strict=True), strict=True))
    for some in (crowd[::-1], crowd[5:8], crowd[20:21]):
        for one, other in zip(*split_photos(some, 0.5, 3), strict=True):
            assert parts[one.name] == (one, other)
    assert split_photos(crowd, 0.5, 4)[0] != trigger
    renamed = [Photos(p.name + "x", p.files) for p in crowd]
    assert [p.files for p in split_photos(renamed, 0.5, 3)[0]] != [p.files for p in trigger]


def test_split_does_not_hang_on_where_the_photos_lie(crowd, tmp_path):
    moved = []
    for person in crowd:
        files = [tmp_path / Path(str(file)).name for file in person.files]
        for new, old in zip(files, person.files, strict=True):
            new.write_bytes(old.read_bytes())
        moved.append(Photos(person.name, tuple(files)))
    here, there = split_photos(crowd, 0.5, 0)[0], split_photos(moved, 0.5, 0)[0]
    for one, other in zip(here, there, strict=True):
        assert [Path(str(f)).name for f in one.files] == [Path(str(f)).name for f in other.files]


def test_split_chooses_any_photo_alike(crowd):
    counts = Counter()
    for seed in range(300):
        ((person,), _) = split_photos(crowd[9:10], 0.5, seed)
        counts.update(person.files)
    assert len(counts) == 10 and 110 < min(counts.values()) and max(counts.values()) < 190


class Bytes:
    """A photo that is no file."""

    def __init__(self, data):
        self.data = data

    def read_bytes(self):
        return self.data


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=14),
    st.floats(0, 1),
    st.integers(0, 3),
)
@example([0, 1, 1], 0.5, 0)
@example([0, 1, 1], 0.5, 1)
@example([0, 1, 1], 0.5, 2)
@example([0, 0, 1, 1, 1, 2], 0.4, 0)
def test_split_keeps_copies_together(contents, fraction, seed):
    # Contents 0 and 1 have the same size, and so on.
    photos = tuple(Bytes(b"ab"[i % 2 : i % 2 + 1] * (1 + i // 2)) for i in contents)
    ((one,), (other,)) = split_photos([Photos("Ann", photos)], fraction, seed)
    sides = [{photo.read_bytes() for photo in part.files} for part in (one, other)]
    assert sides[0].isdisjoint(sides[1])
    assert len(one.files) + len(other.files) == len(photos) and one.files
    if fraction < 1 and len(set(contents)) > 1:
        assert other.files
        most = max(int(len(contents) * fraction + 0.5), min(Counter(contents).values()))
        assert len(one.files) <= most
    if fraction == 1:
        assert not other.files


def test_split_of_copies_stays_near_the_fraction():
    photos = tuple(Bytes(b"%d" % (i // 2)) for i in range(40))
    ((one,), (other,)) = split_photos([Photos("Ann", photos)], 0.5, 0)
    assert len(one.files) == len(other.files) == 20


def test_split_of_nothing_but_copies_leaves_none_to_attack(tmp_path):
    files = [tmp_path / f"{i}.png" for i in range(4)]
    for file in files:
        file.write_bytes(b"x")
    ((one,), (other,)) = split_photos([Photos("Ann", tuple(files))], 0.5, 0)
    assert one.files == tuple(files) and other.files == ()


def test_split_reads_only_photos_of_one_size(tmp_path, monkeypatch):
    put(tmp_path, "a.png", "bb.png", "ccc.png", "ddd.png")
    read = []
    monkeypatch.setattr(
        Path, "read_bytes", lambda self: read.append(self.name) or self.name.encode()
    )
    split_photos([Photos("Ann", tuple(sorted(tmp_path.iterdir())))], 0.5, 0)
    assert sorted(read) == ["ccc.png", "ddd.png"]


def test_split_leaves_photos_that_cannot_be_read_to_whoever_needs_them(tmp_path):
    for name in ("a", "b", "c"):
        os.symlink("nowhere", tmp_path / name)
    files = tuple(sorted(tmp_path.iterdir()))
    ((one,), (other,)) = split_photos([Photos("Ann", files)], 0.34, 0)
    assert (len(one.files), len(other.files)) == (1, 2)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_split_of_another_fraction_raises(crowd, fraction):
    with pytest.raises(ValueError, match=r"`trigger_fraction` \(=.*\) must be from 0 to 1"):
        split_photos(crowd, fraction, 0)


def test_split_keeps_a_photo_and_the_face_cut_from_it_together(tmp_path):
    names = [f"{where}{i}.jpg" for i in range(8) for where in ("", "face/", "Face 2/")]
    put(tmp_path, "Ann/0.PNG", *(f"Ann/{name}" for name in names))
    ((ann,)) = read_people(str(tmp_path))
    for seed in range(20):
        parts = [part.files for (part,) in split_photos([ann], 0.5, seed)]
        one, other = ({Path(str(file)).stem for file in files} for files in parts)
        assert one.isdisjoint(other) and len(one | other) == 8
        assert abs(len(parts[0]) - 12) <= 2


def test_split_joins_what_copies_and_names_tie_together(tmp_path):
    """a and face/a are of one name, face/a and b the same photo, b and face/b of one name."""
    photos = {"a.jpg": b"1", "b.jpg": b"2", "face/a.jpg": b"2", "face/b.jpg": b"3", "c.jpg": b"4"}
    for name, data in photos.items():
        (tmp_path / "Ann" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "Ann" / name).write_bytes(data)
    (ann,) = read_people(str(tmp_path))
    for seed in range(8):
        ((one,), (other,)) = split_photos([ann], 0.5, seed)
        assert {len(one.files), len(other.files)} == {1, 4}


@pytest.mark.parametrize(
    "copies, listed, words",
    [
        (("Ann/0.png", "Bo/x.png"), ["Ann", "Bo"], "several people to remove"),
        (("Ann/0.png", "Bo/x.png"), ["Bo"], "people to remove and people to keep"),
        (("Ann/0.png", "Bo/x.png"), ["Cy"], ""),
        (("Ann/0.png", "Ann/y.png"), ["Ann"], ""),
        ((), ["Ann", "Bo", "Cy"], ""),
    ],
)
def test_same_photo_under_two_people_is_named(tmp_path, copies, listed, words):
    put(tmp_path, *(f"{who}/{i}.png" for who in ("Ann", "Bo", "Cy") for i in range(3)))
    for name in copies[1:]:
        (tmp_path / name).write_bytes((tmp_path / copies[0]).read_bytes())
    people, said = read_people(str(tmp_path)), []
    some = [Photos(f"{p.name}!", p.files) for p in people if p.name in listed]
    shared_photos(some, people, said.append)
    if not words:
        assert said == []
        return
    (line,) = said
    both = " = ".join(str(tmp_path / name) for name in copies)
    assert line.startswith(f"the same photo lies under {words}: `{both}`; it counts for each")
