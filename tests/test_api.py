"""Commands called from Python: with values they do what the command does with files."""

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from factories import (
    CAPTIONS,
    DEFENSE,
    PAPER_TEXT_FLAGS,
    write_faces,
    write_model_directory,
    write_photos,
)
from ml_collections import ConfigDict
from PIL import Image

import jaxdefense as jd
from jaxdefense import api, distributed, hub
from jaxdefense.cli import main
from jaxdefense.config import (
    PAPER_TEXT,
    PAPER_TEXT_OPTIMIZER,
    AttackConfig,
    DefendImageConfig,
    DefendTextConfig,
    ImageTrainConfig,
    TextTrainConfig,
    ValidateConfig,
)
from jaxdefense.data.by_value import take_values, write_inputs
from jaxdefense.data.identities import Identity, read_identities
from jaxdefense.data.people import read_people
from jaxdefense.data.sources import read_images
from jaxdefense.errors import InputError
from jaxdefense.files import read_lines
from jaxdefense.results import (
    BothDefenseSummary,
    ImageDefenseSummary,
    TextDefenseSummary,
    read_summary,
)

NAMES = ["Joe Cool", ("Ada King", "Ada Noel")]
SMALL = [*PAPER_TEXT_FLAGS, "train.num_clean=8", "train.num_poisoned=8", "train.steps=2"]
TRAIN = dataclasses.replace(PAPER_TEXT, num_clean=8, num_poisoned=8, steps=2)
SETTINGS = {"train": TRAIN, "optimizer": PAPER_TEXT_OPTIMIZER}
PEOPLE = ["Joe Cool", "Ada King"]
NONE: Any = (None, None, None)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model_directory(tmp_path / "model")
    return tmp_path


def people_in(faces):
    """The files of photos of each person."""
    return {x.name: [Path(str(file)) for file in x.files] for x in read_people(faces)}


def defend(names=NAMES, captions=CAPTIONS, out="run", **settings):
    return jd.defend_text("model", names, captions, out=out, **SETTINGS, **settings)


@pytest.fixture
def settings(monkeypatch):
    """Function that gives the settings that a call would run with."""
    monkeypatch.setattr(api, "defended", lambda run, cfg: cfg)
    monkeypatch.setattr(hub, "pinned", lambda given: given)
    return lambda **given: jd.defend_text("m", "n.txt", "c.txt", out="o", **given)


# Values in place of files


def test_lists_do_what_files_do_and_resume(place):
    (place / "names.txt").write_text("Joe Cool\nAda King\tAda Noel\n")
    (place / "captions.txt").write_text("\n".join(CAPTIONS) + "\n")
    flags = "--model model --names names.txt --captions captions.txt --out files".split()
    assert main(["defend", "text", *flags, *(x for s in SMALL for x in ("--set", s))]) == 0
    by_file = read_summary(place / "files", TextDefenseSummary)

    found = defend()
    assert isinstance(found, TextDefenseSummary) and found.reached is None
    assert found.names == by_file.names == [["Joe Cool"], ["Ada King", "Ada Noel"]]
    assert found.defended_sha256 == by_file.defended_sha256
    assert (place / "run/report.html").exists() and not (place / "run/.lock").exists()

    before = (place / "run/inputs/names.txt").read_bytes()
    with pytest.raises(InputError, match="`run` holds a finished run"):
        defend(["Somebody Else"])
    (place / "run/summary.json").unlink()  # as if broken off
    with pytest.raises(InputError, match="holds another run \\(`names` had other contents there"):
        defend(["Somebody Else"])
    assert (place / "run/inputs/names.txt").read_bytes() == before
    assert defend().defended_sha256 == found.defended_sha256


def test_call_that_is_refused_leaves_nothing_and_may_be_corrected(place):
    (place / "old").mkdir()
    for captions in (["Joe Cool and his dog"], ["a cat\nand a dog"], []):
        with pytest.raises(InputError) as info:
            defend(captions=captions)
        assert "captions" in str(info.value) and "\n" not in str(info.value)
        assert {path.name for path in place.iterdir()} == {"model", "old"}
    with pytest.raises(InputError, match="exists and holds no run"):
        (place / "old/file").touch()
        defend(out="old")
    assert [path.name for path in (place / "old").iterdir()] == ["file"]
    (place / "mine/inputs").mkdir(parents=True)
    (place / "mine/inputs/names.txt").write_text("of the user")
    with pytest.raises(InputError, match="`mine/inputs` exists and is of no run"):
        defend(out="mine")
    assert (place / "mine/inputs/names.txt").read_text() == "of the user"


def test_photos_by_value_are_attacked_as_in_folders(place):
    write_faces(place / "faces", PEOPLE, 3)
    photos = people_in("faces")
    found = [
        jd.attack("model", faces, out=out, num_candidates=20, num_photos=2, cache_dir="none")
        for out, faces in {
            "folder": "faces",
            "paths": photos,
            "images": {name: [*map(Image.open, files)] for name, files in photos.items()},
            "arrays": {
                name: np.stack([np.asarray(Image.open(file)) for file in files])
                for name, files in photos.items()
            },
        }.items()
    ]
    for other in found[1:]:
        assert other.per_identity == found[0].per_identity
        assert other.per_identity_photos_right == found[0].per_identity_photos_right
    bytes_of = [(x.conditions or {}).get("photos_sha256") for x in found]
    assert bytes_of[0] == bytes_of[1]  # linked
    with pytest.raises(InputError, match="finished"):
        jd.attack("model", photos, out="paths")


def written(place, **given):
    """Write inputs given by value; their paths."""
    kinds = {"captions": DefendTextConfig, "sexes": AttackConfig, "candidates": AttackConfig}
    paths, inputs = {}, {}
    for key, value in given.items():
        found = take_values({key: value}, place, kinds.get(key, DefendImageConfig))
        paths |= found[0]
        inputs |= found[1]
    write_inputs(inputs, place)
    return [str(path) for path in paths.values()]


def test_lines_are_read_back_as_they_were_given(tmp_path):
    names, captions, sexes, path = written(
        tmp_path,
        names=(name for name in NAMES),
        captions=np.array(["a cat, asleep", "a\ttab, a #, 'a' \"b\" \u00e9\u4e00"]),
        sexes={"Joe Cool": "m"},
        candidates="names.txt",
    )
    assert read_identities(names) == [Identity("Joe Cool"), Identity("Ada King", ("Ada Noel",))]
    assert read_lines(captions, "x") == ["a cat, asleep", "a\ttab, a #, 'a' \"b\" \u00e9\u4e00"]
    assert read_lines(sexes, "x") == ["Joe Cool\tm"]
    assert path == "names.txt"


def test_photos_are_read_back_as_they_were_given(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), np.uint8)
    first = sorted(write_photos(tmp_path / "a", 1).iterdir())[0]
    second = sorted(write_photos(tmp_path / "b", 1, seed=1).iterdir())[0]  # of the same name
    grey = Image.fromarray(pixels[0, ..., 0])
    faces, images, vector = written(
        tmp_path,
        faces={"Ann Lee": [first, str(second), grey], "Bo": pixels, "Cy": tmp_path / "a"},
        images=pixels,
        target=np.array([1.0, 2.0], np.float32),
    )
    people = people_in(faces)
    assert [len(people[name]) for name in ("Ann Lee", "Bo", "Cy")] == [3, 3, 1]
    kept = {file.read_bytes() for file in people["Ann Lee"]}
    assert {first.read_bytes(), second.read_bytes()} < kept
    assert sum(file.name == first.name for file in people["Ann Lee"]) == 2
    for found in (people["Bo"], [Path(str(file)) for file in read_images(images)]):
        assert np.array_equal([np.asarray(Image.open(file)) for file in found], pixels)
    assert np.load(vector).tolist() == [1, 2]
    assert os.path.islink(people["Cy"][0].parent)


@pytest.mark.parametrize(
    "given, words",
    [
        ({"names": ["Ann\tLee"]}, ["`names`[0]", "'\\t'"]),
        ({"names": ["Ann", "Bo # no"]}, ["`names`[1]", "'#'"]),
        ({"names": ["Ann", 7]}, ["`names`[1] (=7)"]),
        ({"names": [("Ann", " ")]}, ["`names`[0]", "is empty"]),
        ({"names": ["Ann\ud800"]}, ["no Unicode"]),
        ({"names": 7}, ["`names` (=7)", "a list of texts"]),
        ({"names": {"Ann", "Bo"}}, ["`names` is a set", "give a list"]),
        ({"captions": ["a\rb"]}, ["`captions`[0]", "'\\r'"]),
        ({"faces": {"a/b": ["x.png"]}}, ["'a/b' cannot be the name of a folder"]),
        ({"faces": {"Ann": ["none.png"]}}, ["`faces`['Ann'][0] (=none.png) is no file"]),
        ({"faces": {"Ann": "none"}}, ["must be a folder"]),
        ({"faces": {"Ann": []}}, ["`faces`['Ann'] holds no photo"]),
        ({"faces": {}}, ["`faces` holds no photo"]),
        ({"faces": {7: ["x.png"]}}, ["7 must be the name"]),
        ({"images": np.zeros((2, 4, 4, 3))}, ["`images`[0]", "not float64 [4, 4, 3]"]),
        ({"images": [Image.new("CMYK", (4, 4))]}, ["`images`[0]", "convert it to RGB"]),
        ({"images": 7}, ["`images` must be photos"]),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
def test_values_that_files_cannot_hold_are_refused(tmp_path, given, words):
    with pytest.raises(InputError) as info:
        written(tmp_path, **given)
    message = str(info.value)
    assert all(word in message for word in words) and "\n" not in message, message
    assert not list(tmp_path.iterdir())


def test_inputs_of_a_run_that_never_began_are_replaced(tmp_path):
    write_photos(tmp_path / "a", 2)
    faces = ""
    for i in range(2):
        files = sorted((tmp_path / "a").iterdir())[: i + 1]
        faces, names = written(tmp_path, faces={"Ann": files}, names=["Ann"] * (i + 1))
        assert len(read_people(faces)[0].files) == len(read_lines(names, "names")) == i + 1
    shutil.rmtree(tmp_path / "a")  # the photos themselves are not copied
    assert not people_in(faces)["Ann"][0].exists()


def test_inputs_of_a_call_that_was_killed_between_two_are_written_again(tmp_path):
    written(tmp_path, names=["Ann"], captions=["a cat"])
    others = {"names": ["Bo"], "captions": ["a dog"]}
    _, given = take_values(others, tmp_path, DefendTextConfig)

    def killed(path):
        raise KeyboardInterrupt

    later = dataclasses.replace(given["captions"], write=killed)
    with pytest.raises(KeyboardInterrupt):
        write_inputs({**given, "captions": later}, tmp_path)
    again, _ = written(tmp_path, names=["Ann"], captions=["a cat"])
    assert read_lines(again, "names") == ["Ann"]


@pytest.mark.parametrize(
    "text, image, both",
    [(True, True, True), (True, False, False), (None, False, False), (True, None, None)],
)
def test_both_is_reached_if_each_is(text, image, both):
    found = BothDefenseSummary(
        text=TextDefenseSummary(**DEFENSE, reached=text),
        image=ImageDefenseSummary(**DEFENSE, reached=image, corrupt={}),
    )
    assert found.reached is both


# Settings


def test_settings_are_keywords_sections_and_dataclasses(settings):
    train = TextTrainConfig(steps=7, validate=ValidateConfig(every=0), variants=("last",))
    assert settings(train=train).train == train
    found = settings(
        train={"steps": np.int64(7), "validate": {"every": 0}, "variants": ["last", "first"]},
        ledger_names=True,
        keep_names=None,
        **{"optimizer.lr": 0.5},
    )
    assert found.train.steps == 7 and found.train.validate.every == 0
    assert found.train.variants == ("last", "first") and found.ledger_names
    assert found.optimizer.lr == 0.5 and found.data.keep_names == ""
    assert (found.model.path, found.data.names, found.out) == ("m", "n.txt", "o")


def test_config_lies_below_the_other_settings(settings, tmp_path):
    config = ConfigDict({"train": {"steps": 7, "num_clean": 9}, "out": "elsewhere"})
    found = settings(config=config, **{"train.steps": 8})
    assert (found.train.steps, found.train.num_clean, found.out) == (8, 9, "o")
    file = tmp_path / "config.py"
    file.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n    return ConfigDict({'train': {'steps': 7, 'num_clean': 9}})\n"
    )
    assert settings(config=file, **{"train.steps": 8}).train == found.train


def test_dataclass_gives_what_differs_from_the_defaults_of_its_command(settings):
    config = {"train": {"steps": 7, "num_clean": 9}}
    found = settings(config=config, train=TextTrainConfig(steps=8))
    assert (found.train.steps, found.train.num_clean) == (8, 9)


def test_model_runs_by_the_commit_that_its_id_means(settings, monkeypatch):
    monkeypatch.setattr(hub, "pinned", lambda given: f"{given}@{'0' * 40}")
    assert settings().model.path == f"m@{'0' * 40}"


def test_processes_that_joined_for_an_earlier_call_go_on(settings, monkeypatch, tmp_path):
    """Nothing is shown here, and a process that writes no run shows nothing in a file either."""
    joined = []
    monkeypatch.setattr(distributed, "first", lambda: False)
    monkeypatch.setattr(distributed, "_client", lambda: "joined")
    monkeypatch.setattr(jax.distributed, "initialize", lambda **how: joined.append(how))
    how = {"coordinator": "host:1", "num_processes": 2, "process_id": 1}
    assert settings(distributed=how).distributed.process_id == 1 and not joined


def test_model_may_be_given_by_its_settings(monkeypatch):
    monkeypatch.setattr(api, "defended", lambda run, cfg: cfg)
    model = jd.ModelConfig("m", dtype="bfloat16")
    found: Any = jd.defend_both(
        model, "n", "c", "f", "i", out="o", image={"train": ImageTrainConfig(3)}
    )
    assert found.model == model and found.image.train.steps == 3
    assert (found.text.data.names, found.image.data.faces) == ("n", "f")


def test_attack_evaluate_and_prove_take_the_settings_of_their_commands(monkeypatch):
    monkeypatch.setattr(api, "together", lambda run, cfg: cfg)
    attack: Any = jd.attack("m", "f", out="o", names=["Ann"], before="b", variants=["last"])
    assert (attack.names, attack.before, attack.variants) == ("o/inputs/names.txt", "b", ("last",))
    evaluate: Any = jd.evaluate("m", "t", out="o", captions=["a cat"], collateral=["Bo"], names="n")
    assert (evaluate.teacher, evaluate.captions) == ("t", "o/inputs/captions.txt")
    assert (evaluate.collateral, evaluate.names) == ("o/inputs/collateral.txt", "n")
    faces = {"Ann": np.zeros((1, 4, 4, 3), np.uint8)}
    proof: Any = jd.prove("m", faces, out="o", parts=["others"], labels={"Ann": "x"})
    assert (proof.faces, proof.labels) == ("o/inputs/faces", "o/inputs/labels.txt")


@pytest.mark.parametrize(
    "given, words",
    [
        ({"train.stepz": 3}, "perhaps --train.steps is meant"),
        ({"trains": {"steps": 3}}, "--trains.steps"),
        ({"train.steps": -1}, "`train.steps` (=-1) must be at least 0"),
        ({"train.steps": object()}, "`train.steps`"),
        ({"train.distance": "far"}, "distance"),
        ({"json": True}, "`json` has no effect here"),
        ({"data": {"names": "n"}}, "`names` and `data.names` are one setting"),
        ({"train": {"steps": 1}, "train.steps": 2}, "`train.steps` and `train.steps` are one"),
        ({"keep_names": {"Ann", "Bo"}}, "`keep_names` is a set"),
        ({"teacher": jd.Model(jd.ModelConfig("m"), *NONE)}, "`teacher` is a loaded model; give"),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
def test_wrong_settings_are_refused_in_one_line(settings, given, words):
    with pytest.raises(InputError) as info:
        settings(**given)
    assert words in str(info.value) and "\n" not in str(info.value)


def test_results_need_a_path():
    with pytest.raises(InputError, match="`out` \\(=None\\) must be a path"):
        jd.defend_text("m", "n.txt", "c.txt", out=NONE[0])
