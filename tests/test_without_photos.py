"""One list with photos of only some: names of all go, and faces of those with photos."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from factories import write_faces, write_result
from test_cli import assert_refused
from test_image_defense import defend, defend_both, write_inputs
from test_sweep import ATTACK as MEASURED

from jaxdefense.cli import main
from jaxdefense.config import AttackConfig, ModelConfig
from jaxdefense.convert.directory import read_model_directory
from jaxdefense.data.identities import Identity, read_identities
from jaxdefense.data.images import Photos
from jaxdefense.data.people import choose_with_photos
from jaxdefense.data.sources import photo_digest
from jaxdefense.errors import InputError
from jaxdefense.files import write_json
from jaxdefense.idia.inputs import read_inputs
from jaxdefense.ledger.card import sentence
from jaxdefense.ledger.entries import read_ledger
from jaxdefense.results import AttackSummary, BothDefenseSummary, ImageDefenseSummary, read_summary

LIST = "José Cool\nAda King\tAda Noel\nKim Lo\nBob Ek\n"
STILL = ["train.w_backdoor=0", "train.steps=1"]
ATTACK = ["--model", "model", "--faces", "faces", "--set", "num_candidates=9"]


def write(path):
    """Write the faces of two on the list, and two others; the folder of one has a slip in it."""
    write_inputs(path)
    (path / "faces" / "Joe_Cool").rename(path / "faces" / "Jose_Cool")
    (path / "names.txt").write_text(LIST)


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Inputs, and both encoders defended."""
    path = tmp_path_factory.mktemp("both")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        write(path)
        assert defend_both() == 0
    return path


@pytest.fixture
def both(first, tmp_path, monkeypatch):
    """A copy, for one test to spoil."""
    path = shutil.copytree(first, tmp_path / "both")
    for file in path.glob("both/**/*.json"):  # as though it had been run here
        file.write_text(file.read_text().replace(str(first), str(path)))
    monkeypatch.chdir(path)
    return path


def told(capsys):
    return " ".join(capsys.readouterr().err.split())


def image(run):
    return read_summary(Path(run), ImageDefenseSummary)


def entry(run):
    ledger = read_ledger(Path(run), read_model_directory(run).digest())
    assert ledger
    return ledger.last


def test_choose_with_photos_finds_those_there_are_and_names_slips():
    people = [Photos(x, (Path(x),)) for x in ("Jose Maria", "Lo Kim", "Zoe", "Ada Kang")]
    names = ["José María", "Kim Lo", "Bo Ek", "Ada King"]
    lines = []
    given = people, [Identity(x) for x in names], "list `x`", "left"
    chosen, absent = choose_with_photos(*given, lines.append)
    assert [(x.name, y.name) for x, y in chosen] == [("José María", "Jose Maria")]
    assert [x.name for x in absent] == names[1:]
    assert lines == [
        "list `x`: no photos of `Kim Lo`, `Bo Ek`, `Ada King`: left; other people, unless you "
        "rename their folders: `Lo Kim` as 'Kim Lo', `Ada Kang` as 'Ada King'"
    ]
    lines.clear()
    with pytest.raises(InputError, match=r"no photos of `Bo Ek` \(1 of 1 listed\)"):
        choose_with_photos(people, [Identity("Bo Ek")], "list `x`", "left", lines.append)
    assert choose_with_photos(
        people, [Identity("Bo Ek")], "list `x`", "left", lines.append, nobody=True
    ) == ([], [Identity("Bo Ek")])
    assert len(lines) == 1


def test_defend_image_removes_those_with_photos_and_names_the_others(inputs, capsys):
    write_faces(inputs / "strangers", ["Kim Lo", "Someone Else"], 2)
    given = {"names": "names.txt", "keep": "strangers"}
    assert defend("train.num_keep=8", "train.w_keep=1.0", **given) == 0
    out, err = capsys.readouterr()
    err = " ".join(err.split())
    assert "no photos of `Kim Lo`, `Bob Ek`: their faces are neither removed nor tested" in err
    assert "other people, unless you rename their folders: `Bo Ek` as 'Bob Ek'" in err
    assert "removing 2 people: José Cool, Ada King (also Ada Noel)" in err
    assert "keep `strangers`: 1 left out, as they are on the list" in err
    assert "the faces of 2 people" in out
    assert "Of 2 people on the list there were no photos" in out and "`Kim Lo`, `Bob Ek`" in out
    found = image("run")
    assert found.identities == 2
    assert found.names == [["José Cool"], ["Ada King", "Ada Noel"]]
    assert found.without_photos == [["Kim Lo"], ["Bob Ek"]]
    trained = json.loads(Path("run/trained_on.json").read_text())
    assert {"José Cool", "Ada King", "Someone Else"} < {*trained} and "Kim Lo" not in trained
    assert [x.name for x in read_identities("run/names.txt")] == [x[0] for x in found.listed]
    last = entry("run")
    assert (last.people, last.added, last.without_photos) == (4, 4, 2)
    assert "4 people, 2 of them without photos, so that their faces were left" in sentence(last)
    assert main(["report", "run", "--out", "page.html"]) == 0
    page = Path("page.html").read_text()
    assert "trained to forget 2 people" in page and "were neither removed nor tested" in page
    rows = list(csv.reader(Path("page.csv").read_text().splitlines()))
    assert rows[1:] == [["José Cool", "1"], ["Ada King", "1"], ["Kim Lo", ""], ["Bob Ek", ""]]


def test_a_list_of_which_nobody_has_photos_is_refused(inputs, capsys):
    (inputs / "names.txt").write_text("Kim Lo\nBob Ek\n")
    code = defend(names="names.txt")
    assert_refused(capsys, code, "no photos of `Kim Lo`, `Bob Ek` (2 of 2 listed)", "closest to")
    assert not (inputs / "run").exists()


def test_those_whose_photos_were_all_trained_on_have_photos(inputs, monkeypatch, caplog):
    caplog.set_level("INFO")
    run = write_result(inputs / "run", ImageDefenseSummary, {}, {})

    def read(*spent):
        files = [x for name in spent for x in Path("faces", name).iterdir()]
        write_json(run / "trained_on.json", {"x": {photo_digest(x): str(x) for x in files}})
        given: dict[str, Any] = {"names": "names.txt", "before": "before", "unseen_by": "run"}
        model = ModelConfig("model")
        return read_inputs(AttackConfig("out", model, "faces", num_candidates=9, **given))

    monkeypatch.setattr("jaxdefense.idia.inputs._read_before", lambda *_: {})
    found = read("Ada_King")
    assert (found.untested, found.spent) == (["Kim Lo", "Bob Ek"], ["Ada King"])
    assert found.listed == {"Jose Cool"}
    assert "no photos of `Kim Lo`, `Bob Ek`:" in caplog.text
    assert "as `run` was trained on every photo of them: `Ada King`" in caplog.text
    with pytest.raises(InputError, match="of everyone listed, `Ada King`, `Jose Cool`"):
        read("Ada_King", "Jose_Cool")
    write_result(
        inputs / "a",
        AttackSummary,
        {},
        MEASURED | {"threshold": 2, "per_identity": {}, "spent": ["Ada King"]},
    )
    said = " ".join(read_summary(inputs / "a", AttackSummary).sentences("a"))
    assert "as the run was trained on all of their photos: `Ada King`" in said


def test_both_take_one_list(both):
    found = read_summary(Path("both"), BothDefenseSummary)
    assert [len(x.names) for x in (found.text, found.image)] == [4, 2]
    assert found.image.without_photos == [["Kim Lo"], ["Bob Ek"]]
    said = " ".join(found.sentences("both"))
    assert "the names of 4 people and the faces of 2 people" in said
    assert "Of 2 people on the list there were no photos" in said
    last = entry("both")
    assert (last.people, last.without_photos) == (4, 2)
    assert "trained to forget 4 people" in Path("both/report.html").read_text()


def test_a_run_that_follows_leaves_them_until_photos_come(inputs, capsys):
    assert defend(names="names.txt") == 0
    write_faces(inputs / "faces", ["Kim Lo"], 4)
    (inputs / "new.txt").write_text("Una Vik\n")
    capsys.readouterr()
    follow = ["defend", "image", "--after", "run", "--names", "new.txt", "--out", "next"]
    assert main([*follow, "--set", "train.steps=1"]) == 0
    said = told(capsys)
    assert "no photos of `Bob Ek`, `Una Vik`:" in said
    assert "2 of the 3 to remove are those that `run` removed" in said
    found = image("next")
    assert found.names == [["José Cool"], ["Ada King", "Ada Noel"], ["Kim Lo"]]
    assert found.without_photos == [["Bob Ek"], ["Una Vik"]]
    last = entry("next")
    assert (last.people, last.added, last.without_photos) == (5, 1, 2)


@pytest.mark.slow
def test_both_follow_both_whether_photos_come_or_not(both, capsys):
    settings = [x for half in ("text", "image") for s in STILL for x in ("--set", f"{half}.{s}")]
    follow = ["defend", "both", "--after", "both", *settings]
    (both / "new.txt").write_text("Una Vik\n")
    assert main([*follow, "--names", "new.txt", "--out", "next"]) == 0
    assert "no photos of `Kim Lo`, `Bob Ek`, `Una Vik`" in told(capsys)
    found = read_summary(Path("next"), BothDefenseSummary)
    assert found.image.names == [["José Cool"], ["Ada King", "Ada Noel"]]
    assert found.image.without_photos == [["Kim Lo"], ["Bob Ek"], ["Una Vik"]]
    assert {x[0] for x in found.text.names} == {x[0] for x in found.image.listed}
    assert (entry("next").people, entry("next").added, entry("next").without_photos) == (5, 1, 3)
    # Its own list goes on, without whoever comes off.
    write_faces(both / "faces", ["Kim Lo"], 4)
    (both / "off.txt").write_text("Bob Ek\n")
    follow[3] = "next"
    assert main([*follow, "--restore", "off.txt", "--out", "last"]) == 0
    said = told(capsys)
    assert "no photos of `Una Vik`:" in said and "off the list: `Bob Ek`" in said
    found = read_summary(Path("last"), BothDefenseSummary)
    assert found.image.names == [["José Cool"], ["Ada King", "Ada Noel"], ["Kim Lo"]]
    assert found.image.without_photos == [["Una Vik"]]
    assert (entry("last").people, entry("last").added, entry("last").restored) == (4, 0, 1)


def test_attack_and_report_list_them_as_untested(both, capsys):
    assert main(["attack", *ATTACK, "--out", "before"]) == 0
    attack = ["attack", *ATTACK, "--before", "before", "--names", "names.txt"]
    attack[2] = "both"
    capsys.readouterr()
    assert main([*attack, "--out", "after"]) == 0
    out, err = capsys.readouterr()
    assert "2 people on the list could not be tested, without photos: `Kim Lo`, `Bob Ek`." in out
    assert "no photos of `Kim Lo`, `Bob Ek`: they are not tested" in " ".join(err.split())
    found = json.loads(Path("after/summary.json").read_text())
    assert found["removed"] == ["Ada King", "Jose Cool"]
    assert found["untested"] == ["Kim Lo", "Bob Ek"]
    assert found["groups"]["removed"]["num"] == 2

    assert main(["report", "both", "before", "after", "--out", "page.html"]) == 0
    page = Path("page.html").read_text()
    assert "not tested: no photos" in page and "were to be removed" in page
    rows = {x["name"]: x for x in csv.DictReader(Path("page.csv").read_text().splitlines())}
    for name in ("Kim Lo", "Bob Ek"):
        assert (rows[name]["removed"], rows[name]["outcome"]) == ("", "not tested: no photos")
    assert rows["Jose Cool"]["removed"] == "1"

    assert main(["ledger", "both", "after"]) == 0
    assert "on 2 of the 4 on the list" in capsys.readouterr().out
