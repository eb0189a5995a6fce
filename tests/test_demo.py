"""The demo keeps its promises, on the model that ships with the package."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import drawings
import numpy as np
import pytest
import transformers
from PIL import Image
from reference import torch
from test_cli import assert_refused

from jaxdefense.cli import main
from jaxdefense.convert.directory import read_model_directory
from jaxdefense.data.captions import without_names
from jaxdefense.data.identities import Identity
from jaxdefense.data.sources import photo_digest
from jaxdefense.demo import pretrain, world
from jaxdefense.demo.drawing import draw_all
from jaxdefense.demo.run import measured, shipped_model
from jaxdefense.errors import InputError


def test_world_names_everyone_differently():
    everyone = world.members() + world.strangers()
    assert len(world.members()) == 64 and len(world.strangers()) == 32
    assert len({named.name for named in everyone}) == 96
    assert len({named.person for named in everyone}) == 96
    lasts = [named.name.split()[1] for named in everyone]
    assert len(set(lasts)) == 96


def test_stages_tell_those_kept_from_those_never_shown():
    correct = {"Gone": 0, "Gone Too": 3, "Kept": 2, "Unseen": 0, "Unseen Too": 1}
    right = dict(zip(correct, (0.0, 0.25, 0.5, 0.75, 0.25), strict=True))
    found: Any = SimpleNamespace(threshold=1, per_identity=correct, per_identity_photos_right=right)
    removed, rest = ["Gone", "Gone Too"], (0.9, 0.8)
    same = {"removed_tpr": 0.5, "retained_tpr": 2 / 3, "removed_photos_right": 0.125}
    same |= {"top1": 0.9, "sim_clean": 0.8}
    assert measured(found, removed, ["Kept"], *rest) == {
        **same, "retained_photos_right": 0.5, "unseen_photos_right": 0.5
    }  # fmt: skip
    assert measured(found, removed, [], *rest) == {
        **same, "retained_photos_right": None, "unseen_photos_right": 0.5
    }  # fmt: skip
    found.threshold = 3
    assert measured(found, removed, [], *rest)["retained_tpr"] == 0


def test_world_captions_name_nobody_and_repeat_by_seed():
    captions = world.captions(500, 0)
    names = [named.name for named in world.members() + world.strangers()]
    assert without_names(captions, names) == captions
    assert captions == world.captions(500, 0) != world.captions(500, 1)
    assert all("{" not in caption and "a apple" not in caption for caption in captions)


def test_person_captions_name_them():
    rng = np.random.default_rng(0)
    for named in world.members()[:8]:
        for _ in range(20):
            caption = world.person_caption(named, rng)
            assert named.name in caption and "{" not in caption
            anonymous = world.anonymous_caption(named.person, rng)
            assert named.name not in anonymous and "{" not in anonymous


def test_shipped_model_is_small_and_whole():
    files = list(shipped_model().iterdir())
    assert sum(file.stat().st_size for file in files) <= 6_000_000
    directory = read_model_directory(shipped_model())
    assert directory.cfg == pretrain.model_config()
    assert directory.tokenizer().vocab_size == pretrain.VOCAB


def test_photos_drawn_in_several_processes_are_those_drawn_one_by_one(tmp_path, capfd):
    alone = drawings.objects(tmp_path / "alone")
    world.write(alone)
    draw_all(drawings.objects, [str(tmp_path / "together")], "drawing")
    files = [drawing.file for drawing in alone]
    assert len({file.read_bytes() for file in files}) == len(files) == 60
    for file in files:
        other = tmp_path / "together" / file.relative_to(tmp_path / "alone")
        assert other.read_bytes() == file.read_bytes()
    with pytest.raises(RuntimeError, match="a process failed"):
        draw_all(drawings.a_photo_that_fails, [str(tmp_path / "wrong")], "drawing")
    assert "no ink" in capfd.readouterr().err


# The demo of 16 people; .ci/run runs the one of 64, and holds its figures


def demo(out, until=None, signum=0):
    """Run a demo, or send it a signal once something holds; gives its code and what it said."""
    command = [sys.executable, "-m", "jaxdefense.cli", "demo", "--people", "16", "--out", str(out)]
    # Its steps are large enough for some optimisation to pay.
    flags = os.environ.get("XLA_FLAGS", "").replace("level=0", "level=1")
    env = os.environ | {"XLA_FLAGS": flags}
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env
    )
    while until and not until():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    if until:
        process.send_signal(signum)
    _, err = process.communicate(timeout=900)
    return process.returncode, err


def read(path):
    return json.loads(path.read_text())


@pytest.mark.slow
def test_demo_that_was_killed_goes_on_and_removes_4_of_16_people(tmp_path, capsys):
    out = tmp_path / "demo"
    assert demo(out, (out / "world").exists, signal.SIGKILL)[0] == -signal.SIGKILL
    drawn = (out / "world").stat().st_ino
    assert_refused(capsys, main(["demo", "--out", str(out)]), "`people` is 16 there, 64 here")
    code, err = demo(out)
    assert code == 0 and "drawing" not in err, err
    assert (out / "world").stat().st_ino == drawn
    check_figures(out)
    check_inputs(out)
    assert_refused(capsys, main(["demo", "--people", "16", "--out", str(out)]), "finished run")


@pytest.mark.slow
def test_demo_that_is_broken_off_ends_as_one_without_a_break(tmp_path):
    out = tmp_path / "demo"

    def in_the_image_defense():
        metrics = out / "run" / "image" / "metrics.jsonl"
        return metrics.exists() and metrics.read_text().count("\n") > 5

    code, err = demo(out, in_the_image_defense, signal.SIGTERM)
    assert code == 128 + signal.SIGTERM and "run the same command again" in err
    code, err = demo(out)
    assert code == 0 and "drawing" not in err and "resuming at step" in err, err
    assert err.count("defended model: ") == 1  # of the faces
    check_figures(out)
    check_inputs(out)
    broken_off = read(out / "run" / "summary.json")
    summary = read(out / "summary.json")
    # Once more, without a break. What has finished is not done again.
    for done in (out / "summary.json", out / "run" / "summary.json"):
        done.unlink()
    for done in ("run/image", "run/model", "evaluation/merged"):
        shutil.rmtree(out / done)
    done = ("run/text", "attack", "evaluation")
    files = [x for directory in done for x in (out / directory).rglob("*") if x.is_file()]
    times = [x.stat().st_mtime_ns for x in files]
    code, err = demo(out)
    assert code == 0 and "resuming" not in err, err
    assert [x.stat().st_mtime_ns for x in files] == times
    whole = read(out / "run" / "summary.json")
    assert whole["defended_sha256"] == broken_off["defended_sha256"]
    assert whole["image"]["defended_sha256"] == broken_off["image"]["defended_sha256"]
    assert read(out / "summary.json") | {"seconds": 0} == summary | {"seconds": 0}


def check_figures(out):
    """It has forgotten the 4, and little else; the pages say so."""
    summary = read(out / "summary.json")
    before, text, image, merged = (summary[x] for x in ("before", "text", "image", "merged"))
    assert before["removed_tpr"] == before["retained_tpr"] == 1 and before["top1"] >= 0.9
    assert before["removed_photos_right"] >= 0.95 and before["sim_clean"] == 1
    for after in (text, image, merged):
        assert after.keys() == before.keys()
        assert after["removed_photos_right"] <= 0.1 and after["retained_tpr"] >= 0.75
        assert after["retained_photos_right"] >= 0.85 and after["unseen_photos_right"] >= 0.6
        assert after["top1"] >= 0.8 and 0.85 < after["sim_clean"] < 1
    assert merged["sim_clean"] <= min(text["sim_clean"], image["sim_clean"])
    assert summary["nonmember_fpr"] <= 0.25 and summary["seconds"] > 0
    report = (out / "report.html").read_text()
    assert all(member.name in report for member in world.members()[:16])
    # What `report` writes of the model before and the merged one.
    found = read(out / "report" / "report.json")
    right = [found["measures"][x]["listed"]["photos_right"] for x in ("before", "after")]
    assert right == [before["removed_photos_right"], merged["removed_photos_right"]]
    assert found["utility"]["top1"] == merged["top1"]


def check_inputs(out):
    """Each half was shown whom it should be, and the attacks took other photos, all the same."""
    removed, kept = (
        (out / "world" / x).read_text().splitlines() for x in ("names.txt", "kept.txt")
    )
    assert (len(removed), len(kept)) == (4, 6)
    members = {member.name for member in world.members()[:16]}
    known, faces = (
        {folder.name.replace("_", " ") for folder in (out / "world" / x).iterdir()}
        for x in ("known", "faces")
    )
    assert known == {*removed, *kept} and faces == members
    run = read(out / "run" / "summary.json")
    for half in ("text", "image"):
        assert {names[0] for names in run[half]["names"]} == {*removed}
    trained_on = read(out / "run" / "image" / "trained_on.json")
    digests = {digest for photos in trained_on.values() for digest in photos}
    attacks = [read(out / "attack" / x / "summary.json") for x in ("before", "merged")]
    assert attacks[0]["conditions"] == attacks[1]["conditions"]
    assert set(attacks[0]["per_identity"]) == members
    assert set(attacks[0]["photos_per_identity"].values()) == {4}
    for folder in (out / "world" / "faces").iterdir():
        assert sum(photo_digest(x) not in digests for x in folder.iterdir()) == 4


def test_demo_refuses_a_directory_that_holds_something_else(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert_refused(capsys, main(["demo", "--out", str(tmp_path)]), "holds no run")
    assert [x.name for x in tmp_path.iterdir()] == ["mine.txt"]
    assert_refused(capsys, main(["demo", "--people", "20"]), "people", "16", "64")


@pytest.mark.slow
def test_pretrain_learns_from_a_folder_of_photos(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for name in ("Joe_Cool", "Ada_King"):
        (tmp_path / "faces" / name).mkdir(parents=True)
        for i in range(4):
            image = Image.fromarray(rng.integers(0, 255, (30, 24), np.uint8))
            image.save(tmp_path / "faces" / name / f"{i}.pgm")
    flags = ["--faces", "faces", "--held-out", "held", "--out", "model", "--steps", "2"]
    sizes = ["--batch", "12", "--object-photos", "2", "--anonymous", "100"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["pretrain", *flags, *sizes])
    pretrain.main()
    # Every second photo is kept from training, for the attack.
    assert sorted(p.name for p in (tmp_path / "held" / "Joe_Cool").iterdir()) == ["1.pgm", "3.pgm"]
    model = read_model_directory(tmp_path / "model").load()
    assert model.text and model.vision


def test_pretrain_leaves_people_out_and_draws_the_others_the_same(tmp_path):
    members, where = world.members()[:3], tmp_path / "names.txt"
    alone = pretrain._without(members, [Identity("X", (members[0].name.upper(),))], where)
    assert alone == members[1:]
    opts = pretrain.Options(photos=2, anonymous=1)
    every, some = (pretrain._drawn_album(who, opts)[0] for who in (members, members[2:]))
    np.testing.assert_array_equal(every.image_nHWC[every.label_n == 2], some.image_nHWC)
    with pytest.raises(InputError, match="there is no `Nobody Here` to leave out"):
        pretrain._without(members, [Identity("Nobody Here")], where)
    with pytest.raises(InputError, match="leaves nobody to train on"):
        pretrain._without(members, [Identity(x.name) for x in members], where)


@pytest.mark.torch
def test_pretrained_model_loads_in_transformers():
    model = transformers.CLIPModel.from_pretrained(shipped_model(), dtype=torch.float32).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(shipped_model())
    caption = "a photo of Amira Abendroth"
    inputs = tokenizer([caption], padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        hidden = model.text_model(**inputs).pooler_output
        want = model.text_projection(hidden)[0].numpy()
    directory = read_model_directory(shipped_model())
    tower, tokens = directory.load().text, directory.tokenizer().encode([caption])[0]
    from jaxdefense.clip.text import plain_text

    assert tower
    ours = tower(plain_text(tokens[None], np.array([len(tokens) - 1])))
    np.testing.assert_allclose(np.asarray(ours)[0, 0], want, atol=1e-4)
