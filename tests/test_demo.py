"""The demo keeps its promises, on the model that ships with the package."""

import json
from dataclasses import replace

import numpy as np
import pytest
import transformers
from PIL import Image
from reference import torch

from jaxdefense.cli import main
from jaxdefense.convert.directory import read_model_directory
from jaxdefense.data.captions import without_names
from jaxdefense.defense import recall, recognise
from jaxdefense.demo import pretrain, world
from jaxdefense.demo import run as demo
from jaxdefense.demo.run import measured, shipped_model
from jaxdefense.idia.attack import AttackResult


def test_world_names_everyone_differently():
    everyone = world.members() + world.strangers()
    assert len(world.members()) == 64 and len(world.strangers()) == 32
    assert len({named.name for named in everyone}) == 96
    assert len({named.person for named in everyone}) == 96
    lasts = [named.name.split()[1] for named in everyone]
    assert len(set(lasts)) == 96


def test_stages_tell_those_kept_from_those_never_shown():
    people = ["Gone", "Gone Too", "Kept", "Unseen", "Unseen Too"]
    correct, right = [0, 3, 2, 0, 1], [0.0, 0.25, 0.5, 0.75, 0.25]
    found = AttackResult(people, correct, [0] * 5, [""] * 5, [9] * 5, right, 1, 50, 21)
    removed = ["Gone", "Gone Too"]
    same = {"removed_tpr": 0.5, "retained_tpr": 2 / 3, "removed_photos_right": 0.125}
    assert measured(found, removed, ["Kept"]) == {
        **same, "retained_photos_right": 0.5, "unseen_photos_right": 0.5
    }  # fmt: skip
    assert measured(found, removed, []) == {
        **same, "retained_photos_right": None, "unseen_photos_right": 0.5
    }  # fmt: skip


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


@pytest.fixture
def small(monkeypatch):
    """A demo of 16 people in few steps; .ci/run runs the whole one and holds its figures."""
    members, strangers = world.members()[::4], world.strangers()[:4]
    monkeypatch.setattr(world, "members", lambda: members)
    monkeypatch.setattr(world, "strangers", lambda: strangers)
    sizes = {"NUM_REMOVED": 4, "NUM_PHOTOS": 4, "NUM_CANDIDATES": 60, "_NUM_CAPTIONS": 400}
    sizes |= {"_NUM_HELD_OUT_CAPTIONS": 50, "_NUM_IMAGES": 100, "_NUM_HELD_OUT_IMAGES": 20}
    # Of so few candidates, one prompt of 21 finds a name by chance: it takes most of them here.
    sizes |= {"_NUM_PASSERS_BY": 24, "THRESHOLD": 11}
    for name, value in sizes.items():
        monkeypatch.setattr(demo, name, value)
    monkeypatch.setattr(recall, "_NUM_NOBODY", 24)
    monkeypatch.setattr(recognise, "_NUM_NAMES", 40)
    whole = demo.demo_config

    def config(out):
        cfg = whole(out)
        few = {"steps": 50, "num_clean": 16, "num_poisoned": 32, "num_name": 32}
        # So few steps reach it only where less holds the other names in place.
        text = replace(cfg.text, train=replace(cfg.text.train, **few, w_name=5.0))
        text = replace(text, optimizer=replace(text.optimizer, lr=2e-3))
        few = {"steps": 3, "num_clean": 8, "num_poisoned": 8, "num_keep": 8}
        image = replace(cfg.image, train=replace(cfg.image.train, **few))
        return replace(
            cfg, text=text, image=replace(image, optimizer=replace(text.optimizer, lr=1e-5))
        )

    monkeypatch.setattr(demo, "demo_config", config)
    return [member.name for member in members]


def test_demo_removes_4_of_16_people_and_reports_it(tmp_path, capsys, small):
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    before, text, image, merged = (summary[x] for x in ("before", "text", "image", "merged"))
    # The model as shipped leaks; with the names defended it has forgotten the 4 and nothing else.
    assert before["removed_tpr"] == before["retained_tpr"] == 1 and before["top1"] >= 0.9
    assert text["removed_tpr"] == 0 and text["retained_tpr"] >= 0.9 and text["top1"] >= 0.85
    assert before["removed_photos_right"] >= 0.95 and text["removed_photos_right"] <= 0.1
    assert min(text["retained_photos_right"], text["unseen_photos_right"]) >= 0.85
    # Three steps at a low rate leave the image encoder almost as it was.
    assert image["removed_tpr"] == 1 and 0.99 < image["sim_clean"] < 1
    assert merged["removed_tpr"] == 0 and merged["sim_clean"] <= min(
        text["sim_clean"], image["sim_clean"]
    )
    # What each half was shown: those to remove and half of the others, and passers-by.
    out = tmp_path / "demo"
    removed, kept = ((out / f).read_text().splitlines() for f in ("names.txt", "kept.txt"))
    assert (len(removed), len(kept)) == (4, 6)
    known, unseen = (
        {folder.name.replace("_", " ") for folder in (out / f).iterdir()}
        for f in ("known", "unseen")
    )
    assert known == {*removed, *kept} and unseen == {*small} - known
    assert len(list((out / "passers-by").iterdir())) == 24
    runs = json.loads((out / "run" / "summary.json").read_text())
    assert runs["text"]["reached"] and not runs["image"]["reached"]
    assert set(runs["image"]["validation"]["after"]["left"]) == {*removed}
    report = (out / "report.html").read_text()
    assert all(name in report for name in small)
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 2
    assert "not empty" in capsys.readouterr().err


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
