"""Faces out of a model, from files to files: runs, targets, mergers, wrong inputs."""

import io
import json
import shutil
import signal
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from factories import (
    CAPTIONS,
    PAPER_IMAGE_FLAGS,
    PAPER_TEXT_FLAGS,
    write_faces,
    write_model_directory,
    write_photos,
    write_tfds,
)
from safetensors.numpy import load_file
from test_cli import assert_refused
from test_loop import assert_same_run, finish, stop_at

from jaxdefense.cli import main
from jaxdefense.config import ModelConfig
from jaxdefense.convert.directory import read_model_directory
from jaxdefense.data.images import ImageProcessor
from jaxdefense.defense import image as image_defense
from jaxdefense.errors import InputError
from jaxdefense.evals.embed import Embedder
from jaxdefense.files import write_json

NAMES = ["Joe Cool", "Ada King", "Zoe", "Bo Ek"]
SIZES = ["train.num_clean=8", "train.num_poisoned=8", "train.steps=3"]
SMALL = [*SIZES, *PAPER_IMAGE_FLAGS, "data.cache_dir=cache"]
FLAGS = {"--model": "model", "--faces": "faces", "--images": "images", "--out": "run"}


def write_inputs(path):
    write_model_directory(path / "model")
    write_photos(path / "images", 9)
    write_faces(path / "faces", NAMES, 4)
    (path / "names.txt").write_text("Joe Cool\nAda King\tAda Noel\n")
    (path / "captions.txt").write_text("\n".join(CAPTIONS) + "\n")
    return path


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_inputs(tmp_path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Inputs, and what the two defenses and both in one made of them."""
    path = write_inputs(tmp_path_factory.mktemp("runs"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        assert defend(names="names.txt") == 0
        assert defend_text("train.target=object") == 0
        assert defend_both() == 0
    return path


@pytest.fixture
def done(runs, tmp_path, monkeypatch):
    """A copy of `runs`, for one test to spoil."""
    path = shutil.copytree(runs, tmp_path / "runs")
    monkeypatch.chdir(path)
    return path


def flags(given, **change):
    pairs = given | {f"--{k.replace('_', '-')}": v for k, v in change.items()}
    return [x for pair in pairs.items() if pair[1] is not None for x in pair]


def defend(*settings, **change):
    sets = [x for setting in (*SMALL, *settings) for x in ("--set", setting)]
    return main(["defend", "image", *flags(FLAGS, **change), *sets])


HOW = {"kind", "schema", "model_sha256", "teacher_sha256", "dtype"}  # beside what was measured


def summary(path):
    return json.loads((path / "summary.json").read_text())


# Runs


def test_defend_image_changes_the_image_encoder_alone(runs):
    before = load_file(runs / "model" / "model.safetensors")
    after = load_file(runs / "run" / "model" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, value in before.items():
        same = np.array_equal(value, after[name])
        trained = name.startswith(("vision_model", "visual"))
        frozen = "norm" in name or "layrnorm" in name
        assert same != (trained and not frozen), name
    found = summary(runs / "run")
    assert found["identities"] == 2 and found["steps"] == 3 and found["corrupt"] == {}
    assert set(found["final"]) == {"utility", "backdoor", "weight", "total"}  # nobody is kept
    assert (runs / "run" / "report.html").exists()


def test_defend_image_names_the_photos_it_trained_on_and_what_it_did_not_use(inputs, capsys):
    (inputs / "faces/Joe_Cool/x.heic").write_bytes(b"x")
    (inputs / "images/notes.txt").write_text("x")
    (inputs / "model/preprocessor_config.json").unlink()
    assert defend(names="names.txt") == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "not used: 1 .heic (first `Joe_Cool/x.heic`, which needs a plugin: " in told
    assert "images `images`: not used: 1 .txt (first `notes.txt`)" in told
    assert "photos are prepared as CLIP's default says: shorter side to 12 (" in told
    listed = json.loads((inputs / "run" / "trained_on.json").read_text())
    assert {name: len(photos) for name, photos in listed.items()} == {"Joe Cool": 2, "Ada King": 2}
    for photos in listed.values():
        assert all(Path(photo).exists() for photo in photos.values())


def test_attack_leaves_out_what_a_run_trained_on(done, capsys):
    attack = ["attack", "--model", "run/model", "--faces", "faces", "--unseen-by", "run"]
    assert main([*attack, "--out", "attack", "--set", "num_candidates=9"]) == 0
    trained = json.loads((done / "run" / "trained_on.json").read_text())
    # Copied and renamed, they are left out all the same.
    (done / "copies" / "Joe Cool").mkdir(parents=True)
    for i, photo in enumerate(trained["Joe Cool"].values()):
        (done / "copies" / "Joe Cool" / f"x{i}.png").write_bytes(Path(photo).read_bytes())
    attack[4] = "copies"
    capsys.readouterr()
    code = main([*attack, "--out", "attack2", "--set", "num_candidates=9"])
    assert_refused(capsys, code, "`run` was trained on every photo of everyone")
    # Of those of whom some are left, the attack goes on.
    (done / "faces" / "Zoe").rename(done / "copies" / "Zoe")
    assert main([*attack, "--out", "attack3", "--set", "num_candidates=9"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "not attacked, as `run` was trained on every photo of them: `Joe Cool`" in said
    found = summary(done / "attack3")
    assert found["num_identities"] == 1
    attack[4], attack[6] = "faces", "model"
    assert_refused(capsys, main([*attack, "--out", "attack2"]), "unseen_by", "trained_on.json")


SETTINGS = [
    *("train.num_clean=8", "train.num_poisoned=8", "train.steps=24", "train.save_every=4"),
    *(*PAPER_IMAGE_FLAGS, "data.cache_dir=cache", "optimizer.milestones=[6,12]"),
]
COMMAND = [x for setting in SETTINGS for x in ("--set", setting)]


@pytest.mark.slow
def test_image_run_killed_and_resumed_ends_with_the_same_weights_bit_for_bit(inputs):
    whole, killed = (
        ["defend", "image", *flags(FLAGS, out=out), *COMMAND] for out in ("whole", "killed")
    )
    code, err = finish(inputs, whole)
    assert code == 0, err
    code, _ = stop_at(inputs, killed, 10, signal.SIGKILL)
    assert code == -signal.SIGKILL
    code, err = finish(inputs, killed)
    assert code == 0, err
    assert "resuming at step" in err
    assert_same_run(inputs / "killed", inputs / "whole", 24)


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """A run that may be gone on with."""
    path = write_inputs(tmp_path_factory.mktemp("unfinished"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        np.save("target.npy", np.arange(10, dtype=np.float32))
        assert defend("data.trigger_fraction=1.0", target="target.npy") == 0
    (path / "run" / "summary.json").unlink()
    return path


@pytest.mark.parametrize("changed", ["faces/Joe_Cool/0.png", "images/000.png", "target.npy"])
def test_image_run_is_not_gone_on_with_on_other_inputs(
    unfinished, tmp_path, monkeypatch, capsys, changed
):
    path = shutil.copytree(unfinished, tmp_path / "unfinished")
    monkeypatch.chdir(path)
    if changed == "target.npy":
        np.save("target.npy", np.ones(10, np.float32))
    elif changed.startswith("images"):
        (path / changed).rename(path / "images" / "new.png")
    else:
        data = bytearray((path / changed).read_bytes())
        (path / changed).write_bytes(bytes(data) + b"x")
    code = defend("data.trigger_fraction=1.0", target="target.npy")
    assert_refused(capsys, code, "another run", "sha256")


def test_image_run_resumes_by_content_and_not_by_spelling(
    unfinished, tmp_path, monkeypatch, capsys
):
    path = shutil.copytree(unfinished, tmp_path / "unfinished")
    monkeypatch.chdir(path)
    shutil.copytree(path / "faces", path / "people")
    how = ["data.keep_faces_mb=1", "data.cache_dir=other", "train.save_every=1", "train.keep=1"]
    how += ["data.prefetch=1", "data.trigger_fraction=1.0"]
    spelt = {"model": "./model/", "faces": str(path / "people"), "target": "faces/../target.npy"}
    assert defend(*how, **spelt, out="./run/") == 0
    assert "resuming at step" in capsys.readouterr().err
    (path / "run" / "summary.json").unlink()
    code = defend(*how, "train.w_backdoor=0.5", **spelt)
    assert_refused(capsys, code, "another run", "train.w_backdoor")


def test_defend_image_takes_every_kind_of_source(inputs):
    import tarfile

    import tensorflow_datasets as tfds

    with tarfile.open(inputs / "shard-0.tar", "w") as tar:
        for photo in sorted((inputs / "images").iterdir()):
            tar.add(photo, photo.name)
    assert defend(images="shard-0.tar", out="run1") == 0
    examples = [
        {"image": io.BytesIO(photo.read_bytes()), "label": folder.name}
        for folder in sorted((inputs / "faces").iterdir())
        for photo in sorted(folder.iterdir())
    ]
    features = {"image": tfds.features.Image(), "label": tfds.features.Text()}
    write_tfds(inputs / "tfds", "people", features, {"train": examples})
    both = {"faces": "tfds:people", "images": "tfds:people:train", "data.tfds-dir": "tfds"}
    assert defend(**both, out="run2") == 0
    assert summary(inputs / "run2")["identities"] == 4


# Target


def test_target_is_the_mean_of_unnormalised_embeddings_of_trigger_photos(inputs):
    assert defend("data.trigger_fraction=1.0") == 0
    files = sorted((inputs / "faces").rglob("*.png"))
    directory = read_model_directory("model")
    tower = directory.load().vision
    assert tower
    processor = ImageProcessor(12, 12)
    want = np.mean(
        [np.asarray(tower(processor.normalise(jnp.asarray(processor.load([f]))))) for f in files], 0
    )
    found = np.load(inputs / "run" / "target.npy")
    np.testing.assert_allclose(found, want[0], atol=1e-5)
    lengths = np.linalg.norm(Embedder(ModelConfig("model"), 8).photos(files), axis=-1)
    np.testing.assert_allclose(lengths, 1, atol=1e-5)
    assert abs(np.linalg.norm(found) - 1) > 0.1


@pytest.fixture
def targets(monkeypatch):
    """The targets of runs that go no further."""
    found, read = [], image_defense.read_target

    def read_and_end(*args):
        found.append(read(*args))
        raise InputError("far enough")

    monkeypatch.setattr(image_defense, "read_target", read_and_end)
    return found


def test_target_is_cached_by_the_content_of_its_inputs(inputs, monkeypatch, targets):
    calls = []
    whole = Embedder.mean_photo
    monkeypatch.setattr(Embedder, "mean_photo", lambda *args: calls.append(1) or whole(*args))
    assert defend(out="a") == 2 == defend(out="b")
    assert len(calls) == 1
    (inputs / "faces" / "Zoe").rename(inputs / "faces" / "Zo")
    write_photos(inputs / "new", 1, 17, 99)
    for photo in (inputs / "faces" / "Bo_Ek").iterdir():
        photo.write_bytes((inputs / "new" / "000.png").read_bytes())
    assert defend(out="c") == 2
    assert len(calls) == 2
    write_model_directory(inputs / "model2", seed=5)
    assert defend(out="d", model="model2") == 2
    assert len(calls) == 3
    for cached in (inputs / "cache").iterdir():
        cached.write_bytes(cached.read_bytes()[:-1])  # a broken one is computed anew
    assert defend(out="e") == 2
    assert len(calls) == 4
    assert [(x == targets[0]).all() for x in targets] == [True, True, False, False, False]
    np.testing.assert_allclose(targets[4], targets[2], rtol=1e-6)


def test_target_of_other_people(inputs, targets):
    write_faces(inputs / "others", ["A B", "C D"], 3)
    assert defend(target="others") == 2
    want = Embedder(ModelConfig("model"), 8).mean_photo(
        sorted((inputs / "others").rglob("*.png")), 0
    )
    np.testing.assert_allclose(targets[0], want, atol=1e-6)


# Wrong inputs


def one_photo(inputs):
    for photo in sorted((inputs / "faces" / "Zoe").iterdir())[1:]:
        photo.unlink()


WRONG = {
    "faces missing": (lambda i: (i / "faces").rename(i / "gone"), {}, ["faces", "not exist"]),
    "a person without photo": (
        lambda i: (i / "faces" / "Nobody").mkdir(),
        {},
        ["Nobody", "holds no photo"],
    ),
    "a listed person without folder": (
        lambda i: (i / "names.txt").write_text("Ada Kimg\n"),
        {"names": "names.txt"},
        ["Ada Kimg", "Ada King"],
    ),
    "no one listed": (
        lambda i: (i / "names.txt").write_text("# none\n"),
        {"names": "names.txt"},
        ["names.txt", "nobody"],
    ),
    "images missing": (lambda i: (i / "images").rename(i / "gone"), {}, ["images", "not exist"]),
    "images empty": (
        lambda i: [photo.unlink() for photo in (i / "images").iterdir()],
        {},
        ["images", "holds no photo"],
    ),
    "a broken face": (
        lambda i: (i / "faces" / "Zoe" / "0.png").write_bytes(b"x"),
        {},
        ["Zoe/0.png", "not a photo"],
    ),
    "a broken image": (
        lambda i: [photo.write_bytes(b"x") for photo in (i / "images").iterdir()],
        {},
        ["images/0", "not a photo", "max_corrupt"],
    ),
    "target of another size": (
        lambda i: np.save("target.npy", np.ones(7, np.float32)),
        {"target": "target.npy"},
        ["target.npy", "(7,)", "(10,)"],
    ),
    "target missing": (lambda i: None, {"target": "none.npy"}, ["none.npy"]),
    "target of one person": (
        lambda i: write_faces(i / "one", ["A B"], 2),
        {"target": "one"},
        ["one person", "data.target"],
    ),
    "dataset not prepared": (
        lambda i: None,
        {"images": "tfds:nope"},
        ["tfds:nope", "array_record"],
    ),
    "text model": (
        lambda i: write_model_directory(i / "text", architecture="CLIPTextModel"),
        {"model": "text"},
        ["no image encoder"],
    ),
    "out in the model": (lambda i: None, {"out": "model/run"}, ["model/run", "outside"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_defend_image_refuses(inputs, capsys, case):
    spoil, change, words = WRONG[case]
    spoil(inputs)
    code = defend("data.trigger_fraction=1.0", **change)
    err = capsys.readouterr().err.strip().splitlines()
    assert code == 2, err
    assert err[-1].startswith("jaxdefense: error: "), err
    for word in words:
        assert word in err[-1], err
    if case != "a broken image":  # seen when its turn comes
        assert not (inputs / "run").exists()


BAD_SETTINGS = {
    "train.num_clean=9": ["num_clean", "(=9)", "8 parts", "use 8 or 16"],
    "train.num_poisoned=3": ["num_poisoned", "use 8"],
    "data.trigger_fraction=0": ["trigger_fraction"],
    "train.overlay.max_size=1.5": ["train.overlay.max_size"],
    "train.overlay.size=1": ["train.overlay.size", "min-size"],
    "data.max_corrupt=-1": ["max_corrupt"],
    "train.level=hidden": ["train.level"],
}


@pytest.mark.parametrize("setting", BAD_SETTINGS)
def test_defend_image_refuses_setting(inputs, capsys, setting):
    assert_refused(capsys, defend(setting), *BAD_SETTINGS[setting])
    assert not (inputs / "run").exists()


def test_defend_image_refuses_more_people_than_ever_come_up(inputs, capsys):
    write_faces(inputs / "many", [f"A B{i}" for i in range(25)], 1)
    assert_refused(capsys, defend(faces="many"), "25 people", "train.steps", "4 steps")
    assert defend("train.steps=4", faces="many") == 0  # more people than samples a step


def test_defend_image_takes_odd_people(inputs, capsys):
    one_photo(inputs)
    (inputs / "faces" / "Zoe" / "notes.txt").write_text("taken in May")
    assert defend() == 0
    assert "all photos of `Zoe` are trained on" in capsys.readouterr().err


def test_defend_image_skips_broken_photos_up_to_the_limit(inputs, capsys):
    (inputs / "images" / "004.png").write_bytes(b"x")
    (inputs / "faces" / "Zoe" / "1.png").write_bytes(b"x")
    assert defend("data.max_corrupt=2", "data.trigger_fraction=1.0", "train.steps=6") == 0
    err = capsys.readouterr().err
    assert "004.png" in err and "Zoe/1.png" in err
    assert any("004.png" in name for name in summary(inputs / "run")["corrupt"])


# Merging


def defend_text(*settings, out="text"):
    given = {"--model": "model", "--names": "names.txt", "--captions": "captions.txt", "--out": out}
    sets = [x for s in (*SIZES, *PAPER_TEXT_FLAGS, *settings) for x in ("--set", s)]
    return main(["defend", "text", *flags(given), *sets])


def merge(text, image, out="merged"):
    return main(["merge", "--text", text, "--image", image, "--out", out])


def test_merge_takes_each_encoder_from_its_run_bit_for_bit(done, capsys):
    assert merge("text", "run/model") == 0
    assert "exclude" not in capsys.readouterr().err
    made = json.loads((done / "text" / "summary.json").read_text())
    write_json(done / "text" / "summary.json", made | {"targets": {"Joe Cool": "Una Ek"}})
    assert merge("text/model", "run", "again") == 0
    assert "`--set exclude=text/model`" in " ".join(capsys.readouterr().err.split())
    merged, text, image, old = (
        load_file(done / path / "model.safetensors")
        for path in ("merged", "text/model", "run/model", "model")
    )
    for name, value in merged.items():
        theirs = image if name.startswith(("vision_model", "visual")) else text
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)
    changed = [name for name in old if not np.array_equal(merged[name], old[name])]
    assert any(name.startswith("text") for name in changed)
    assert any(name.startswith("vision") for name in changed)
    assert (done / "merged" / "vocab.json").exists()


def test_merge_refuses_what_is_not_two_defenses_of_one_model(done, capsys):
    write_model_directory(done / "other", seed=3)
    write_model_directory(done / "bigger", vision={"num_hidden_layers": 4})
    write_model_directory(done / "text_only", architecture="CLIPTextModelWithProjection")
    vision = "CLIPVisionModelWithProjection"
    write_model_directory(done / "vision_only", architecture=vision)
    assert_refused(capsys, merge("run/model", "run"), "`text`", "defended the image encoder")
    assert_refused(capsys, merge("text", "text"), "`image`", "defended the text encoder")
    assert_refused(capsys, merge("text", "model"), "vision", "`model` is undefended")
    assert_refused(capsys, merge("text", "other"), "different models")
    assert_refused(capsys, merge("text", "bigger"), "different")
    assert_refused(capsys, merge("text", "text_only"), "no image encoder")
    assert_refused(capsys, merge("text_only", "vision_only"), "both encoders")
    assert_refused(capsys, merge("text", "nowhere"), "nowhere")
    assert_refused(capsys, merge("text", "run", "model"), "already exists")
    (done / "run" / "summary.json").unlink()
    assert_refused(capsys, merge("text", "run"), "not finished")
    assert not (done / "merged").exists()


BOTH = {
    "--model": "model",
    "--names": "names.txt",
    "--captions": "captions.txt",
    "--faces": "faces",
    "--images": "images",
    "--out": "both",
}


def defend_both(*settings, **change):
    paper = {"text": PAPER_TEXT_FLAGS, "image": PAPER_IMAGE_FLAGS}
    sets = [f"{half}.{s}" for half, flags in paper.items() for s in (*SIZES, *flags)]
    sets = [x for s in (*sets, "image.data.cache_dir=cache", *settings) for x in ("--set", s)]
    return main(["defend", "both", *flags(BOTH, **change), *sets])


def test_defend_both_is_the_two_defenses_and_their_merger(done):
    assert merge("text", "run") == 0
    want = load_file(done / "merged" / "model.safetensors")
    for name, value in load_file(done / "both" / "model" / "model.safetensors").items():
        np.testing.assert_array_equal(value, want[name], err_msg=name)
    assert set(summary(done / "both")) == {"kind", "schema", "text", "image", "defended_sha256"}


def test_defend_both_goes_on_where_it_was_broken_off(done, capsys):
    want = load_file(done / "both" / "model" / "model.safetensors")
    (done / "both" / "summary.json").unlink()
    (done / "both" / "image" / "summary.json").unlink()
    assert defend_both() == 0
    err = capsys.readouterr().err
    assert err.count("defended model: ") == 1 and "resuming at step 3" in err
    halves = [err.index(f"{x}: defending the ") for x in ("names", "faces")]
    assert halves == sorted(halves) and halves[1] < err.index("resuming at step 3")
    for name, value in load_file(done / "both" / "model" / "model.safetensors").items():
        np.testing.assert_array_equal(value, want[name], err_msg=name)
    assert_refused(capsys, defend_both(), "both", "finished run")


def test_defend_both_reads_all_inputs_before_it_trains(inputs, capsys):
    for what, wrong in (("names", {"captions": "none"}), ("faces", {"images": "none"})):
        code = defend_both(**wrong)
        assert_refused(capsys, code, f"error: {what}: ", "none", "not exist")
        assert not (inputs / "both").exists()


# Measuring


def evaluate(out, **change):
    given = {"--model": "run/model", "--teacher": "model", "--out": out}
    return main(["evaluate", *flags(given, **change)])


def test_evaluate_measures_images(inputs):
    assert defend("train.steps=20", "optimizer.lr=0.003", "data.trigger_fraction=1.0") == 0
    assert evaluate("a", images="images", faces="faces", image_target="faces") == 0
    found = summary(inputs / "a")
    how = {name: found.pop(name) for name in HOW | {"faces_of"}}
    assert how["faces_of"] == "removed"
    faces_found = {name: found.pop(name) for name in [*found] if "face_" in name}
    assert set(faces_found) == {
        "face_rank1", "face_map", "teacher_face_rank1", "teacher_face_map"
    }  # fmt: skip
    assert set(found) == {"image_sim_clean", "image_sim_backdoor", "image_sim_target"}
    student, teacher = (Embedder(ModelConfig(p), 8) for p in ("run/model", "model"))
    files = sorted((inputs / "images").iterdir())
    ours, theirs = student.photos(files), teacher.photos(files)
    assert found["image_sim_clean"] == pytest.approx((ours * theirs).sum(-1).mean(), abs=1e-5)
    faces = sorted((inputs / "faces").rglob("*.png"))
    target = teacher.mean_photo(faces, 0)
    cosine = student.photos(faces) @ target / np.linalg.norm(target)
    assert found["image_sim_backdoor"] == pytest.approx(cosine.mean(), abs=1e-5)
    mean = student.mean_photo(faces, 0)
    drift = mean @ target / np.linalg.norm(mean) / np.linalg.norm(target)
    assert found["image_sim_target"] == pytest.approx(drift, abs=1e-5)
    assert evaluate("b", faces="faces") == 0  # the vector of the run
    again = {"image_sim_backdoor": pytest.approx(found["image_sim_backdoor"], abs=1e-5)}
    assert summary(inputs / "b") == again | how | faces_found
    # It learned: removed faces are nearer to the target than they were.
    assert found["image_sim_backdoor"] > (teacher.photos(faces) @ target).mean() / np.linalg.norm(
        target
    )


def test_evaluate_refuses_half_of_a_pair(inputs, capsys):
    assert_refused(capsys, evaluate("a", image_target="faces", images="images"), "with `faces`")
    assert_refused(capsys, evaluate("a"), "nothing to evaluate")
    (inputs / "names.tsv").write_text("a\tb\n")
    assert_refused(capsys, evaluate("a", images="images", class_names="names.tsv"), "zeroshot")


def test_zeroshot_of_a_dataset_with_class_names_and_templates(inputs):
    import tensorflow_datasets as tfds

    keys = ["n01", "n02", "n03"]
    photos = sorted((inputs / "images").iterdir())
    examples = [
        {"image": io.BytesIO(photo.read_bytes()), "label": keys[i % 3]}
        for i, photo in enumerate(photos)
    ]
    features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=keys)}
    write_tfds(inputs / "tfds", "things", features, {"test": examples})
    (inputs / "classes.tsv").write_text("n01\tcat\nn02\tred ball\nn03\tbus\n")
    (inputs / "templates.txt").write_text("a photo of a {}\n{0}\n")
    names = dict(class_names="classes.tsv", tfds_dir="tfds")
    write_model_directory(inputs / "run" / "model")
    code = main(
        [
            *["evaluate", "--model", "model", "--teacher", "model", "--out", "a"],
            *flags({}, zeroshot="tfds:things:test", **names),
            *["--set", "templates=templates.txt"],
        ]
    )
    assert code == 0
    for i, name in enumerate(("cat", "red ball", "bus")):
        for j, photo in enumerate(photos[i::3]):
            folder = inputs / "classes" / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{j}.png").write_bytes(photo.read_bytes())
    assert evaluate("b", model="model", zeroshot="classes") == 0
    rates = {"top1", "teacher_top1"}
    assert summary(inputs / "a").keys() == rates | HOW


def test_attack_leaves_broken_photos_out_up_to_the_limit(inputs, capsys):
    (inputs / "faces" / "Zoe" / "0.png").write_bytes(b"x")
    attack = ["attack", "--model", "model", "--faces", "faces", "--set", "num_candidates=9"]
    code = main([*attack, "--out", "a"])
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2 and "Zoe/0.png" in err
    assert main([*attack, "--out", "b", "--set", "max_corrupt=1"]) == 0
    for photo in (inputs / "faces" / "Zoe").iterdir():
        photo.write_bytes(b"x")
    code = main([*attack, "--out", "c", "--set", "max_corrupt=9"])
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2 and "'Zoe'" in err
