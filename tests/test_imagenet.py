"""ImageNet: names of its classes, which folders are recognised as its, and which are refused."""

import pytest
from reference import open_clip
from test_people import error_of, listed, put

from jaxdefense.data.imagenet import imagenet_names
from jaxdefense.data.people import read_labelled
from jaxdefense.evals.zeroshot import TEMPLATES, class_templates, openai_templates


@pytest.mark.torch("open_clip")
def test_names_are_open_clips_in_order():
    assert list(imagenet_names().values()) == list(open_clip.IMAGENET_CLASSNAMES)


def test_wnids_are_sorted_as_their_numbers_are():
    wnids = list(imagenet_names())
    assert len(wnids) == 1000 and wnids == sorted(wnids)
    # Numbers that torchvision's and Keras's lists have, throughout the range.
    known = {0: "n01440764", 207: "n02099601", 504: "n03063599", 745: "n04009552"}
    known |= {817: "n04285008", 999: "n15075141"}
    assert {i: wnids[i] for i in known} == known


def test_folders_of_wnids_are_recognised_and_said(tmp_path):
    put(tmp_path, "n02099601/a.png", "n01440764/b.png", "n01440764/c.png")
    lines = []
    found = read_labelled(str(tmp_path), "", "class", note=lines.append)
    assert listed(found, tmp_path) == {
        "Golden Retriever": ["n02099601/a.png"],
        "tench": ["n01440764/b.png", "n01440764/c.png"],
    }
    assert lines == [f"class `{tmp_path}`: 2 classes of ImageNet, by OpenAI's names"]


@pytest.mark.parametrize("form", ["{}", "{:03}"])
def test_folders_of_all_numbers_are_recognised_and_classes_of_one_name_joined(tmp_path, form):
    put(tmp_path, *(f"{form.format(i)}/{i}.png" for i in range(1000)))
    lines = []
    found = listed(read_labelled(str(tmp_path), "", "class", note=lines.append), tmp_path)
    names = list(imagenet_names().values())
    assert found.keys() == set(names)
    for name, files in found.items():
        wanted = {f"{form.format(i)}/{i}.png" for i in range(1000) if names[i] == name}
        assert set(files) == wanted
    assert [name for name, files in found.items() if len(files) > 1] == ["missile", "sunglasses"]
    assert "1000 classes of ImageNet" in lines[0] and "`missile`, `sunglasses`" in lines[0]


def test_some_numbers_are_refused_unless_said_to_be_imagenets(tmp_path):
    put(tmp_path, *(f"{i}/{i}.png" for i in range(10)))
    message = error_of(read_labelled, str(tmp_path), "", "class")
    for words in ("`0`", "6 more are numbers, not names", "`class_names`", "`imagenet`"):
        assert words in message
    found = read_labelled(str(tmp_path), "", "class", "imagenet")
    assert listed(found, tmp_path)["tench"] == ["0/0.png"] and len(found) == 10


@pytest.mark.parametrize(
    "folders, names, words",
    [
        (["n00000001", "n01440764"], "", ["not among ImageNet's 1,000 classes: `n00000001`;"]),
        (["n01440764", "bus"], "", ["classes: `bus`;", "`class_names`"]),
        (["1000", "1"], "imagenet", ["classes: `1000`;"]),
        (["bus", "cat"], "imagenet", ["classes: `bus`, `cat`;"]),
        (["1", "01"], "imagenet", ["`01`, `1` are one number"]),
    ],
)
def test_other_keys_are_refused(tmp_path, folders, names, words):
    put(tmp_path, *(f"{folder}/x.png" for folder in folders))
    message = error_of(read_labelled, str(tmp_path), "", "class", names)
    assert all(word in message for word in words)


def test_names_with_digits_stay_names(tmp_path):
    put(tmp_path, "747/x.png", "DC-10/x.png")
    assert [c.name for c in read_labelled(str(tmp_path), "", "class")] == ["747", "DC-10"]


def test_words_are_not_taken_for_files_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert class_templates("openai80") == openai_templates() and class_templates("") == TEMPLATES
    put(tmp_path, "classes/0/x.png")
    (tmp_path / "openai80").write_text("a drawing of a {}\n")
    (tmp_path / "imagenet").write_text("0\tcat\n")
    assert "./openai80" in error_of(class_templates, "openai80")
    assert class_templates("./openai80") == ("a drawing of a {0}",)
    assert "./imagenet" in error_of(read_labelled, "classes", "", "class", "imagenet")
    assert [c.name for c in read_labelled("classes", "", "class", "./imagenet")] == ["cat"]
