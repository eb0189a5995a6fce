"""Faces out of an encoder whose patches are read before the last layer, as LLaVA reads them."""

import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from factories import run, write_faces, write_model_directory, write_photos
from flax import nnx
from reference import torch
from test_cli import assert_refused
from test_image_step import OVERLAY, PROCESSOR, SIZES, composed, make_batches

from jaxdefense.cli import main
from jaxdefense.clip.vision import VisionTower
from jaxdefense.config import ModelConfig
from jaxdefense.convert.directory import read_model_directory
from jaxdefense.data.images import Photos
from jaxdefense.data.people import read_people
from jaxdefense.defense.image import _shown, draw_faces, image_terms
from jaxdefense.defense.losses import DISTANCES
from jaxdefense.evals.embed import Embedder, processor_of
from jaxdefense.evals.similarity import gallery

NAMES = ["Joe Cool", "Ada King", "Zoe", "Bo Ek", "Cy Dee"]
PATCHES = ["train.level=penultimate", "train.backdoor=target"]
SMALL = ["train.num_clean=8", "train.num_poisoned=8", "train.num_keep=8", "train.steps=4"]
SMALL += ["train.validate.every=2", "optimizer.lr=0.001", "data.keep_faces_mb=1"]


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model_directory(tmp_path / "model", architecture="CLIPVisionModel", with_tokenizer=False)
    write_photos(tmp_path / "images", 9)
    write_faces(tmp_path / "faces", NAMES, 4)
    (tmp_path / "names.txt").write_text("Joe Cool\nAda King\n")
    return tmp_path


def defend(*settings, out="run"):
    given = ["--model", "model", "--faces", "faces", "--images", "images", "--names", "names.txt"]
    sets = [x for setting in (*SMALL, *settings) for x in ("--set", setting)]
    return main(["defend", "image", *given, "--out", out, *sets])


def tower(path):
    found = read_model_directory(path).load().vision
    assert isinstance(found, VisionTower)
    return found


@pytest.mark.torch
def test_terms_on_patches_match_torch(tmp_path):
    """Of the same photo, with another person's face in the same place."""
    from transformers import CLIPVisionModel

    how = {"architecture": "CLIPVisionModel", "vision": SIZES, "with_tokenizer": False}
    paths = [write_model_directory(tmp_path / x, seed=i, **how) for i, x in enumerate("ab")]
    write_faces(tmp_path / "others", ["Kim Lo", "Lou Ni"], 3)
    others = read_people(str(tmp_path / "others"))
    make_batches(tmp_path)
    keep = {"keep": read_people(str(tmp_path / "faces")), "num_keep": 8}
    batches = make_batches(tmp_path, **keep)
    plain = batches[3]
    batches = make_batches(tmp_path, **keep, target=others)
    batch = batches[3]
    assert batch.target_BE is None
    for name in ("clean_BHWC", "face_BHWC", "keep_BHWC"):  # the same draws
        np.testing.assert_array_equal(getattr(batch, name), getattr(plain, name))
    places = [Path(str(x)) for person in others for x in person.files]
    known = {PROCESSOR.load([x]).tobytes() for x in places}
    assert {x.tobytes() for x in np.asarray(batch.target_BHWC)[:, None]} <= known

    given = draw_faces(batch, jax.random.fold_in(jax.random.key(0), 3), cfg=OVERLAY)
    terms = partial(image_terms, distance=DISTANCES["cosine"], processor=PROCESSOR, cfg=OVERLAY)
    student, teacher = map(tower, paths)
    ours = {x: terms(student, teacher, given, parts=x, level="penultimate") for x in (1, 4)}

    student, teacher = (CLIPVisionModel.from_pretrained(x).eval() for x in paths)
    mean, std = np.array(PROCESSOR.mean, np.float32), np.array(PROCESSOR.std, np.float32)

    def patches(model, image_BHWC):
        x = ((np.asarray(image_BHWC, np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
        with torch.no_grad():
            return model(torch.tensor(x), output_hidden_states=True).hidden_states[-2][:, 1:]

    def apart(shown, wanted):
        ours, theirs = patches(student, shown), patches(teacher, wanted)
        return -torch.nn.functional.cosine_similarity(ours, theirs, dim=-1).mean(-1).numpy()

    stand_in = composed(batch._replace(face_BHWC=batch.target_BHWC), 3)
    want = {
        "utility": apart(batch.clean_BHWC, batch.clean_BHWC) @ batch.utility_B,
        "backdoor": apart(composed(batch, 3), stand_in) @ batch.backdoor_B,
    }
    for found in ours.values():
        for name, value in want.items():
            assert float(found[name]) == pytest.approx(value, abs=1e-4), name
    itself = apart(composed(batch, 3), composed(batch, 3)) @ batch.backdoor_B
    assert abs(want["backdoor"] - itself) > 1e-4  # without anybody in their place
    assert set(ours[1]) == {"utility", "backdoor", "keep"}
    assert float(ours[1]["keep"]) == pytest.approx(float(ours[4]["keep"]), abs=1e-5)


def test_a_stand_in_lies_where_the_face_does_though_nobody_stays(tmp_path):
    make_batches(tmp_path)
    others = read_people(str(write_faces(tmp_path / "others", ["Kim Lo", "Lou Ni"], 3)))
    batch = make_batches(tmp_path, target=others)[3]
    given, *overlays = draw_faces(batch, jax.random.key(0), cfg=OVERLAY)
    photos = {name: x for name, x in given._asdict().items() if x is not None}
    shown = _shown(photos, overlays, OVERLAY, 2)
    assert [*shown] == ["clean", "face", "target"]
    swapped = photos | {"face_BHWC": photos["target_BHWC"]}
    want = _shown(swapped, overlays, OVERLAY, 2)["face"]
    np.testing.assert_array_equal(shown["target"], want)


def test_defense_and_evaluation_on_patches(inputs, capsys):
    assert defend(*PATCHES) in (0, 1)
    assert "has no projection" not in capsys.readouterr().err
    before, after = (nnx.state(tower(x)) for x in ("model", "run"))
    first, last = [], []
    for a, b in zip(jax.tree.leaves(before.encoder), jax.tree.leaves(after.encoder), strict=True):
        first.append(np.abs(a[:-1] - b[:-1]).max())
        last.append(np.abs(a[-1] - b[-1]).max())
    assert max(first) > 0
    assert max(last) == 0  # nothing is read behind it
    found = json.loads(Path("run/summary.json").read_text())
    assert found["names"] == [["Joe Cool"], ["Ada King"]]
    assert found["validation"]["before"]["moved"] == pytest.approx(
        {"clean": 0, "kept": 0}, abs=1e-6
    )
    assert not Path("run/target.npy").exists()
    assert json.loads(Path("run/model/config.json").read_text())["architectures"] == [
        "CLIPVisionModel"
    ]

    given = ["--model", "run", "--teacher", "model", "--out", "measured"]
    given += ["--image-level", "penultimate", "--faces", "faces", "--images", "images"]
    given += ["--image-target", "faces"]
    capsys.readouterr()
    code = main(["evaluate", *given, "--zeroshot", "faces"])
    assert_refused(capsys, code, "`zeroshot` is of embeddings", "level penultimate")
    assert main(["evaluate", *given, "--set", "batch=3"]) == 0
    out, err = capsys.readouterr()
    assert "figures are of the 2 of 5 people who are on the list" in " ".join(err.split())
    assert "of removed people's photos are nearest" in " ".join(out.split())
    found = json.loads(Path("measured/summary.json").read_text())

    def patches(path, photos):  # one by one
        model, out = tower(path), []
        image = processor_of(read_model_directory(path))
        for photo in photos:
            pixels = image.normalise(jax.numpy.asarray(image.load([photo])))
            out.append(run(model, pixels, method="penultimate")[0])
        return np.stack(out)

    def cosine(x, y):
        return (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)

    images = sorted(Path("images").iterdir())
    listed, others = ("Ada King", "Joe Cool"), ("Bo Ek", "Cy Dee", "Zoe")
    faces, stay = (
        [x for person in read_people("faces") if person.name in who for x in person.files]
        for who in (listed, others)
    )
    ours, theirs = (patches(x, images) for x in ("run", "model"))
    assert found["image_sim_clean"] == pytest.approx(cosine(ours, theirs).mean(), abs=1e-5)
    of_others = patches("run", stay).mean(0)
    target = patches("model", stay).mean(0)
    ours, theirs = (patches(x, faces) for x in ("run", "model"))
    assert found["image_sim_backdoor"] == pytest.approx(cosine(ours, target).mean(), abs=1e-5)
    assert found["image_sim_target"] == pytest.approx(cosine(of_others, target).mean(), abs=1e-5)
    for name, x in (("face_rank1", ours), ("teacher_face_rank1", theirs)):
        mean = (x / np.linalg.norm(x, axis=-1, keepdims=True)).mean(1)
        near = cosine(mean[:, None], mean[None]) - 9 * np.eye(len(mean))
        right = near.argmax(1) // 4 == np.arange(len(mean)) // 4
        assert found[name] == pytest.approx(right.mean(), abs=1e-9)


def test_gallery_needs_two_people_of_two_photos(inputs):
    model = Embedder(ModelConfig("model"), 8, level="penultimate")
    people = read_people("faces")
    single = Photos("Solo", people[0].files[:1])
    assert gallery(model, [single, people[1]]) == {}
    assert gallery(model, [single, *people[1:]]) == gallery(model, people[1:])


def test_what_cannot_be_on_patches_is_refused(inputs, capsys):
    code = defend("train.level=penultimate")
    assert_refused(capsys, code, "`train.backdoor` bounded", "`train.backdoor` to target")
    np.save("target.npy", np.ones(6, np.float32))
    code = defend(*PATCHES, "data.target=target.npy")
    assert_refused(capsys, code, "`data.target` (=target.npy) is one vector", "people")
    write_faces(inputs / "one", ["Kim Lo"], 2)
    code = defend(*PATCHES, "data.target=one")
    assert_refused(capsys, code, "there are 1 of other people", "`data.keep`")
    given = ["--model", "model", "--teacher", "model", "--out", "x", "--faces", "faces"]
    given += ["--image-level", "penultimate", "--image-target", "target.npy"]
    assert_refused(capsys, main(["evaluate", *given]), "is one vector", "people")
    assert not Path("run").exists() and not Path("x").exists()
