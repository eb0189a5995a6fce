"""A defense that follows another: whom it removes, from which weights, with whose photos."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from factories import (
    CAPTIONS,
    PAPER_IMAGE_FLAGS,
    PAPER_TEXT_FLAGS,
    computed,
    write_faces,
    write_model_directory,
    write_photos,
)
from safetensors.numpy import load_file
from test_cli import assert_refused

from jaxdefense.cli import main
from jaxdefense.convert.directory import read_model_directory
from jaxdefense.data.identities import read_identities
from jaxdefense.ledger.entries import read_ledger
from jaxdefense.results import DefenseSummary, read_summary

TEXT = ["train.num_clean=8", "train.num_poisoned=8", "train.steps=3", *PAPER_TEXT_FLAGS]
TEXT += ["optimizer.lr=0.01", "train.seed=5"]
IMAGE = ["train.num_clean=8", "train.num_poisoned=8", "train.steps=2", *PAPER_IMAGE_FLAGS]
IMAGE += ["data.cache_dir=none", "train.seed=5"]
STILL = ["optimizer.lr=1e-30", "train.steps=1"]  # nothing moves
PEOPLE = ["Joe Cool", "Ada King", "Zoe", "Bo Ek"]


def sets(settings):
    return [x for setting in settings for x in ("--set", setting)]


def text(*flags, settings=()):
    return main(["defend", "text", *flags, *sets(settings)])


def image(*flags, settings=()):
    return main(["defend", "image", *flags, *sets(settings)])


def summary(run):
    return read_summary(Path(run), DefenseSummary)


def weights(path):
    return load_file(Path(path) / "model.safetensors")


def same_weights(a, b):
    ours, theirs = weights(a), weights(b)
    return all(np.array_equal(value, theirs[name]) for name, value in ours.items())


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Inputs, and a defense of each encoder against the first two people."""
    path = tmp_path_factory.mktemp("first")
    write_model_directory(path / "model")
    write_model_directory(path / "another", seed=1)
    write_photos(path / "images", 9)
    write_faces(path / "faces", PEOPLE[:2], 4)
    write_faces(path / "more", PEOPLE[2:], 4)
    (path / "old.txt").write_text("Joe Cool\nAda King\tAda Noel\n")
    (path / "new.txt").write_text("Zoe\n")
    (path / "captions.txt").write_text("\n".join(CAPTIONS) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        given = ["--model", "model", "--names", "old.txt"]
        assert text(*given, "--captions", "captions.txt", "--out", "text", settings=TEXT) == 0
        with_photos = ["--faces", "faces", "--images", "images", "--out", "image"]
        assert image(*given, *with_photos, settings=IMAGE) == 0
    return path


@pytest.fixture
def path(first, tmp_path, monkeypatch):
    """A copy, for one test to spoil."""
    path = shutil.copytree(first, tmp_path / "first")
    for name in ("text/config.json", "image/config.json", "image/trained_on.json"):
        file = path / name  # as though it had been run here
        file.write_text(file.read_text().replace(str(first), str(path)))
    monkeypatch.chdir(path)
    return path


# The list


def test_the_people_of_before_are_removed_again_and_come_first(path, capsys):
    (path / "new.txt").write_text("Zoe\nKing Ada\tAda King\n")
    assert text("--after", "text", "--names", "new.txt", "--out", "next") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "2 of the 3 to remove are those that `text` removed" in said and "1 are new" in said
    found = summary("next")
    assert found.names == [["Joe Cool"], ["Ada King", "Ada Noel", "King Ada"], ["Zoe"]]
    assert found.earlier == {
        "run": "text",
        "how": "replay",
        "model_sha256": summary("text").defended_sha256,
        "people": 2,
        "restored": [],
        "teacher_is_original": True,
    }
    # Its own list serves as a names file.
    assert [list(x.names) for x in read_identities(path / "next" / "names.txt")] == found.names


def test_settings_that_are_not_given_are_those_of_the_run_before(path, capsys, monkeypatch):
    (path / "elsewhere").mkdir()
    monkeypatch.chdir(path / "elsewhere")  # its paths count from where it was started
    assert text("--after", "../text", "--out", "../next", "--train.steps", "2") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"data.captions={path / 'captions.txt'}" in said
    ours, theirs = (json.loads((path / x / "config.json").read_text()) for x in ("next", "text"))
    assert ours["train"] == theirs["train"] | {"steps": 2}
    assert ours["optimizer"] == theirs["optimizer"]
    assert summary(path / "next").names == summary(path / "text").names


def test_the_same_run_by_hand(path):
    """Fresh, a run after another is the run of both lists."""
    (path / "both.txt").write_text("Joe Cool\nAda King\tAda Noel\nZoe\n")
    flags = ["--model", "model", "--captions", "captions.txt"]
    assert text(*flags, "--names", "both.txt", "--out", "whole", settings=TEXT) == 0
    assert text("--after", "text", "--names", "new.txt", "--start", "fresh", "--out", "next") == 0
    assert same_weights("next/model", "whole/model")
    assert computed(path / "next/metrics.jsonl") == computed(path / "whole/metrics.jsonl")


# The weights


@pytest.mark.parametrize("start, of", [("replay", "text/model"), ("fresh", "model")])
def test_training_starts_from_the_weights_it_should(path, start, of):
    given = ["--after", "text", "--names", "new.txt", "--start", start, "--out", "next"]
    assert text(*given, settings=STILL) == 0
    assert same_weights("next/model", of) and not same_weights("model", "text/model")
    # Compared with the original: the first loss is that of the start, seen from there.
    (row,) = computed(path / "next/metrics.jsonl")
    assert (row["utility"] > -1 + 1e-3) == (start == "replay")
    assert (row["weight"] > 1e-3) == (start == "replay")


def test_a_run_broken_off_goes_on_to_the_same_weights(path, capsys):
    given = ["--after", "text", "--names", "new.txt", "--train.save-every", "1", "--out", "next"]
    assert text(*given) == 0
    want = weights("next/model")
    (path / "next/summary.json").unlink()
    shutil.rmtree(path / "next/checkpoints/3")
    assert text(*given) == 0
    assert "resuming at step 2" in capsys.readouterr().err
    for name, value in weights("next/model").items():
        np.testing.assert_array_equal(value, want[name], err_msg=name)


def test_without_the_original_the_defended_model_is_the_teacher_and_it_is_said(path, capsys):
    given = ["--after", "text", "--names", "new.txt", "--out", "next"]
    assert text("--model", "text", *given, settings=STILL) == 0
    told = capsys.readouterr()
    assert "the teacher is a defended model" in " ".join(told.err.split())
    assert "could not be measured" in told.out
    assert "The teacher was a defended model" in (path / "next/report.html").read_text()
    found = summary("next")
    assert found.earlier and not found.earlier["teacher_is_original"]
    assert found.names == [["Joe Cool"], ["Ada King", "Ada Noel"], ["Zoe"]]
    # One more follows, with either as teacher.
    for out, model in (("a", "text"), ("b", "model")):
        more = ["--model", model, "--after", "next", "--out", out]
        assert text(*more, settings=STILL) == 0
        read_ledger(path / out, read_model_directory(out).digest())


def test_an_original_that_is_gone_is_named_with_the_way_out(path, capsys):
    (path / "model").rename(path / "moved")
    code = text("--after", "text", "--names", "new.txt", "--out", "next")
    assert_refused(capsys, code, "/model`, which `text` defended", "--model text", "the teacher")
    assert text("--after", "text", "--names", "new.txt", "--model", "moved", "--out", "next") == 0


def test_a_list_that_the_run_wrote_may_be_added_to(path):
    with open(path / "text/names.txt", "a") as file:
        file.write("Zoe\n")
    assert text("--after", "text", "--out", "next", settings=STILL) == 0
    assert [x[0] for x in summary("next").names] == ["Joe Cool", "Ada King", "Zoe"]


def test_a_run_that_does_not_say_whom_it_removed_is_not_followed(path, capsys):
    found = json.loads((path / "text/summary.json").read_text())
    del found["names"]
    (path / "text/summary.json").write_text(json.dumps(found))
    code = text("--after", "text", "--names", "new.txt", "--out", "next")
    assert_refused(capsys, code, "`text` does not say whom it removed", "start anew")


# Those who come off


def test_whoever_is_restored_is_known_again(path):
    (path / "off.txt").write_text("ada noel\n")  # by any of the names
    assert text("--after", "text", "--restore", "off.txt", "--out", "next", settings=STILL) == 0
    found = summary("next")
    assert found.names == [["Joe Cool"]]
    assert found.earlier and found.earlier["restored"] == ["Ada King"]
    ledger = read_ledger(path / "next", found.defended_sha256)
    assert ledger and (ledger.last.people, ledger.last.added, ledger.last.restored) == (1, 0, 1)
    assert same_weights("next/model", "model")  # training began anew


@pytest.mark.parametrize(
    "flags, words",
    [
        (
            ["--after", "text", "--restore", "new.txt"],
            ["new.txt", "`Zoe`", "not on the list of"],
        ),
        (
            ["--after", "text", "--restore", "new.txt", "--model", "text"],
            ["model.path", "defended model", "give the model"],
        ),
        (
            ["--after", "text", "--restore", "joe.txt", "--names", "joe.txt"],
            ["'Joe Cool'", "come off the list", "one of the two files"],
        ),
        (["--after", "text", "--restore", "old.txt"], ["nobody is left", "original model"]),
        (["--after", "text", "--ledger", "text"], ["earlier.after", "exclude"]),
        (["--after", "image"], ["earlier.after", "defense_image", "defense_text"]),
        (["--after", "model"], ["earlier.after", "is no run"]),
        (["--after", "gone"], ["`earlier.after` (=gone) is no run"]),
        (["--after", "text", "--model", "another"], ["is a defense of", "--ledger"]),
        (["--ledger", "text"], ["missing", "model"]),
        (
            ["--model", "model", "--names", "new.txt", "--restore", "joe.txt"],
            ["earlier.restore", "only with"],
        ),
        (["--model", "model", "--start", "fresh"], ["earlier.start", "only with"]),
    ],
)
def test_what_cannot_be_is_refused(path, capsys, flags, words):
    (path / "joe.txt").write_text("Joe Cool\n")
    given = ["--names", "new.txt"] * ("--names" not in flags and "--restore" not in flags)
    captions = ["--captions", "captions.txt"]
    code = text(*flags, *given, *captions, "--out", "next")
    assert_refused(capsys, code, *words)
    assert not (path / "next").exists()


# Another model


def test_the_same_list_goes_out_of_another_model(path):
    assert text("--ledger", "text", "--model", "another", "--out", "next") == 0
    found = summary("next")
    assert found.names == summary("text").names and found.earlier
    assert found.earlier["how"] == "rebase" and found.earlier["teacher_is_original"]
    # As a run of the same list and settings without a run before.
    flags = ["--model", "another", "--names", "old.txt", "--captions", "captions.txt"]
    assert text(*flags, "--out", "plain", settings=TEXT) == 0
    assert same_weights("next/model", "plain/model")


def test_what_the_run_before_needed_and_is_gone_is_named(path, capsys):
    (path / "captions.txt").unlink()
    code = text("--ledger", "text", "--model", "another", "--out", "next")
    assert_refused(capsys, code, "captions.txt", "does not exist")
    (path / "faces" / "Joe_Cool").rename(path / "faces" / "Joe_Coal")
    for photo in (path / "faces" / "Joe_Coal").iterdir():
        photo.write_bytes(photo.read_bytes() + b"x")
    code = image("--ledger", "image", "--model", "another", "--out", "next")
    assert_refused(capsys, code, "photos of `Joe Cool` are gone", "`image`", "--restore")
    assert not (path / "next").exists()


# Photos


def trained_on(run):
    return json.loads((Path(run) / "trained_on.json").read_text())


def test_photos_of_before_are_trained_on_again_wherever_they_lie(path, capsys):
    before = trained_on("image")
    given = ["--after", "image", "--names", "new.txt", "--faces", "more"]
    assert image(*given, "--out", "next") == 0
    found = trained_on("next")
    assert list(found) == ["Joe Cool", "Ada King", "Zoe"]
    for name, photos in before.items():  # and none that the attack needs
        assert found[name] == photos
    assert len(found["Zoe"]) == 2
    # Moved, they are found by what they are.
    (path / "faces" / "Ada_King").rename(path / "more" / "Ada_Noel")
    for i, photo in enumerate(sorted((path / "more" / "Ada_Noel").iterdir())):
        photo.rename(photo.with_name(f"moved-{i}.png"))
    assert image(*given, "--out", "moved") == 0
    assert {x: {*y} for x, y in trained_on("moved").items()} == {x: {*y} for x, y in found.items()}
    # One is lost: it is said.
    photo = next(iter(before["Joe Cool"].values()))
    Path(photo).write_bytes(Path(photo).read_bytes() + b"x")
    capsys.readouterr()
    assert image(*given, "--out", "fewer") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "photos that `image` was trained on are gone: of `Joe Cool (1 of 2)`" in said


@pytest.mark.slow
def test_both_encoders_follow_both(path, capsys):
    half = {"text": TEXT, "image": IMAGE}
    settings = [f"{x}.{setting}" for x, given in half.items() for setting in given]
    flags = ["--model", "model", "--names", "old.txt", "--captions", "captions.txt"]
    flags += ["--faces", "faces", "--images", "images", "--out", "both"]
    assert main(["defend", "both", *flags, *sets(settings)]) == 0
    given = ["--names", "new.txt", "--faces", "more"]
    assert main(["defend", "both", "--after", "both", *given, "--out", "next"]) == 0
    assert summary("next/text").names == summary("next/image").names
    assert [x[0] for x in summary("next/text").names] == ["Joe Cool", "Ada King", "Zoe"]
    assert summary("next/image").earlier == summary("next/text").earlier
    ledger = read_ledger(path / "next" / "model", read_model_directory("next").digest())
    assert ledger and [x.how for x in ledger.entries] == ["first", "replay"]
    assert [x.kind for x in ledger.entries] == ["defense_both"] * 2
    assert [(x.people, x.added) for x in ledger.entries] == [(2, 2), (3, 1)]
    # A half alone would give the other half back.
    capsys.readouterr()
    code = text("--after", "both", "--names", "new.txt", "--captions", "captions.txt",
                "--model", "model", "--out", "half")  # fmt: skip
    assert_refused(capsys, code, "earlier.after", "defense_both", "defense_text")
    # Without the original.
    without = ["--model", "both", "--after", "both", *given, "--out", "gone"]
    assert main(["defend", "both", *without]) == 0
    found = summary("gone/image").earlier
    assert found and not found["teacher_is_original"]


# What is held out


def test_what_was_held_out_is_held_out_again(path, monkeypatch):
    """Whoever is listed besides, and though photos are lost: the weights have seen the rest."""
    from jaxdefense.defense import people
    from jaxdefense.defense import text as text_defense

    write_faces(path / "crowd", [f"Kept {x}" for x in "abcdefgh"], 2)
    write_faces(path / "faces-2", ["Kim Lo", "Lou Ni"], 4)
    faces, names = [], []
    hold_out, kept_names = people.hold_out, text_defense.kept_names
    monkeypatch.setattr(
        people, "hold_out", lambda *args: faces.append(hold_out(*args)) or faces[-1]
    )
    monkeypatch.setattr(
        text_defense, "kept_names", lambda *args: names.append(kept_names(*args)) or names[-1]
    )
    some = ["train.validate.every=1", "train.num_keep=8", "train.w_keep=1.0", *STILL]
    all_of = ["data.trigger_fraction=1.0", "train.validate.photos=0.5"]
    given = ["--model", "model", "--names", "old.txt", "--faces", "faces", "--images", "images"]
    given += ["--keep", "crowd", "--out", "a"]
    assert image(*given, settings=[*IMAGE, *some, *all_of]) in (0, 1)
    (path / "two.txt").write_text("Kim Lo\nLou Ni\n")
    held = json.loads((path / "a/held_out.json").read_text())
    lost = next(x for x in trained_on("a")["Joe Cool"].items() if x[0] not in str(held))
    Path(lost[1]).unlink()  # every draw after it would be another
    assert image("--after", "a", "--names", "two.txt", "--faces", "faces-2", "--out", "b") in (0, 1)
    was, now = faces
    for before, after in zip(was.held_listed, now.held_listed, strict=False):
        assert {x.name for x in after.files} == {x.name for x in before.files}
        assert len(before.files) == 2
    stays = [sorted(x.name for x in y.held_keep) for y in faces]
    assert stays[0] == stays[1] and stays[0]
    assert not {x.name for group in now.keep for x in group} & set(stays[0])

    flags = ["--model", "model", "--names", "old.txt", "--captions", "captions.txt", "--out", "c"]
    named = ["train.validate.every=1", "train.num_name=8", "train.w_name=1.0", *STILL]
    assert text(*flags, settings=[*TEXT, *named]) in (0, 1)
    assert text("--after", "c", "--names", "two.txt", "--out", "d") in (0, 1)
    (_, before), (groups, after) = names
    assert before == after and len(before) > 8
    assert not {x for group in groups for x in group} & set(after)
    # A run that began with the original's weights draws anew.
    assert text("--after", "c", "--names", "two.txt", "--start", "fresh", "--out", "e") in (0, 1)
    assert names[-1][1] != before


def test_a_run_that_does_not_say_what_it_held_out_is_followed_and_it_is_said(path, capsys):
    (path / "text/held_out.json").unlink()
    assert text("--after", "text", "--names", "new.txt", "--out", "next", settings=STILL) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "`text` held nothing out, or does not say what: validation may look at" in said
    (path / "text/held_out.json").write_text('{"names": "Joe"}')
    code = text("--after", "text", "--names", "new.txt", "--out", "more", settings=STILL)
    assert_refused(capsys, code, "held_out.json` does not hold")
