"""Photos with captions: what is read, what is refused, what is dropped."""

import json
from pathlib import Path

import pytest
from factories import write_photos

from jaxdefense.data.images import Photos
from jaxdefense.data.pairs import Pairs, describe_without, pairs_of, read_pairs, without
from jaxdefense.errors import InputError


@pytest.fixture
def write(tmp_path):
    """Function that writes a directory of three photos with a `captions.json`."""

    def write(captions, inside="images"):
        write_photos(tmp_path / "pairs" / inside, 3)
        text = captions if isinstance(captions, str) else json.dumps(captions)
        (tmp_path / "pairs" / "captions.json").write_text(text)
        return str(tmp_path / "pairs")

    return write


def coco(*captions, images=((7, "000.png"), (9, "001.png"))):
    """COCO's form, with fields that nothing reads."""
    return {
        "info": {"year": 2017},
        "images": [{"id": i, "file_name": name, "width": 20} for i, name in images],
        "annotations": [{"id": 1, "image_id": i, "caption": text} for i, text in captions],
    }


@pytest.mark.parametrize("inside", ["images", "."])
def test_pairs_are_read_by_name_wherever_the_photos_lie(write, inside):
    path = write({"001.png": ["a  cat\n", "two dogs"], "000.png": "a boat"}, inside)
    notes = []
    pairs = read_pairs(path, notes.append)
    folder = Path(path) / inside
    assert pairs.photos == (folder / "001.png", folder / "000.png")
    assert pairs.captions == (("a cat", "two dogs"), ("a boat",))
    assert pairs.num_captions() == 3 and pairs.owners().tolist() == [0, 1]
    assert len(notes) == 1 and "left out: 1 (`002.png`)" in notes[0]


def test_pairs_are_read_in_cocos_form(write):
    path = write(coco((9, "a boat"), (7, "a cat"), (9, "a ship ")))
    notes = []
    pairs = read_pairs(path, notes.append)
    assert [photo.name for photo in map(Path, map(str, pairs.photos))] == ["000.png", "001.png"]
    assert pairs.captions == (("a cat",), ("a boat", "a ship"))
    assert "`002.png`" in notes[0]


def test_photos_without_captions_are_left_out_and_counted(write):
    notes = []
    read = read_pairs(write(coco((9, "a boat"))), notes.append)
    assert len(read) == 1 and "left out: 2 (`000.png`, `002.png`)" in notes[0]


def test_nothing_is_said_if_every_photo_has_a_caption(write):
    notes = []
    path = write({"000.png": "a", "001.png": ["b"], "002.png": ["c"]})
    assert len(read_pairs(path, notes.append)) == 3 and not notes


def test_pairs_read_the_real_ones(shared_data):
    pairs = read_pairs(str(shared_data / "coco_pairs"))
    raw = json.loads((shared_data / "coco_pairs/captions.json").read_text())
    assert len(pairs) == len(raw) and pairs.num_captions() == sum(map(len, raw.values()))


WRONG = {
    "not JSON": ("{", "is not JSON"),
    "an array": (["a"], "JSON array; must be an object"),
    "a number": ("3", "JSON number; must be an object"),
    "captions of a wrong type": ({"000.png": 3}, "captions of `000.png` are a JSON number"),
    "a caption of a wrong type": ({"000.png": [3]}, "a caption of `000.png` is a JSON number"),
    "an empty caption": ({"000.png": ["a", " \n"]}, "a caption of `000.png` is empty"),
    "nothing": ({}, "holds no caption"),
    "no captions": ({"000.png": []}, "holds no caption"),
    "no photo": (
        {f"{i}.jpg": "a" for i in range(6)},
        "6 photos that .*images` does not hold: `0.jpg`, `1.jpg`, `2.jpg`, `3.jpg` and 2 more",
    ),
    "COCO without lists": ({"images": 3, "annotations": []}, "`images` is a JSON number"),
    "COCO without names": ({"images": [{"id": 3}], "annotations": []}, r"images\[0\]` must be"),
    "COCO's names": (
        {"images": [{"id": 3, "file_name": 4}], "annotations": []},
        r"`file_name` \(=4\)",
    ),
    "COCO's ids": (
        {"images": [{"id": [], "file_name": "a"}], "annotations": []},
        r"`id` \(=\[\]\) must be",
    ),
    "COCO's ids twice": (coco(images=[(1, "000.png"), (1, "001.png")]), "two images have the `id`"),
    "COCO's unknown image": (coco((8, "a cat")), "`image_id` 8, but no image"),
    "COCO's empty caption": (coco((7, "")), "a caption of `000.png` is empty"),
    "COCO's captions": (coco((7, None)), "a caption of `000.png` is a JSON null"),
    "COCO without captions": (coco(), "holds no caption"),
}


@pytest.mark.parametrize("captions, message", WRONG.values(), ids=WRONG.keys())
def test_pairs_refuse_with_one_line(write, captions, message):
    with pytest.raises(InputError, match=message) as caught:
        read_pairs(write(captions))
    assert "\n" not in str(caught.value)


def test_pairs_refuse_what_is_missing(tmp_path):
    with pytest.raises(InputError, match="no` does not exist"):
        read_pairs(str(tmp_path / "no"))
    with pytest.raises(InputError, match=r"captions.json` does not exist; it holds the captions"):
        read_pairs(str(tmp_path))


PAIRS = Pairs(
    tuple(Path(f"{i}.png") for i in range(3)),
    (("a cat", "Adam Smith's cat"), ("Smith, Adam", "adam-smith"), ("Adam and a smith",)),
    (4, 4, 8),
)


def test_without_drops_captions_with_a_name_and_photos_that_lose_all():
    left = without(PAIRS, ["Adam Smith"])
    assert left.photos == (Path("0.png"), Path("2.png")) and left.owner == (4, 8)
    assert left.captions == (("a cat",), ("Adam and a smith",))
    said = describe_without(PAIRS, left)
    assert "name: 3: \"Adam Smith's cat\", 'Smith, Adam'" in said
    assert said.endswith("photos dropped with all their own: 1")
    assert without(PAIRS, ["Eve"]) == PAIRS


def test_without_refuses_if_nothing_is_left():
    with pytest.raises(InputError, match="all 5 captions hold a listed name"):
        without(PAIRS, ["cat", "Adam"])


def test_pairs_of_people_have_their_names_and_owners():
    people = [
        Photos("Ada King", (Path("a"), Path("b"))),
        Photos("Joe", (Path("c"),)),
    ]
    pairs = pairs_of(people, ["a photo of {0}", "{0}"])
    assert pairs.photos == (Path("a"), Path("b"), Path("c"))
    assert pairs.captions[1] == ("a photo of Ada King", "Ada King")
    assert pairs.captions[2] == ("a photo of Joe", "Joe")
    assert pairs.owners().tolist() == [0, 0, 1]
