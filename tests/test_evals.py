"""Similarity, zero-shot and outcomes, each against a plain loop."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from factories import CAPTIONS, write_faces, write_model_directory
from PIL import Image

from jaxdefense.config import EvaluateConfig, ModelConfig
from jaxdefense.data.captions import tokenize_captions
from jaxdefense.data.identities import Identity
from jaxdefense.data.images import Photos, read_folders
from jaxdefense.evals import outcome as outcomes
from jaxdefense.evals.embed import Embedder, _embed_image, _embed_text
from jaxdefense.evals.run import run_evaluate
from jaxdefense.evals.similarity import gallery, sim_backdoor_target, sim_clean
from jaxdefense.evals.zeroshot import TEMPLATES, zeroshot
from jaxdefense.report.use import utility
from jaxdefense.results import values


@pytest.fixture
def models(tmp_path):
    paths = [write_model_directory(tmp_path / f"model{seed}", seed=seed) for seed in (0, 1)]
    return [Embedder(ModelConfig(str(path)), 8) for path in paths]


@pytest.fixture
def classes(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("bus", "cat", "red_ball", "house", "tree", "cup", "dog"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        for i in range(3):
            image = Image.fromarray(rng.integers(0, 255, (12, 12, 3), np.uint8))
            image.save(tmp_path / "classes" / name / f"{i}.png")
    return tmp_path / "classes"


def test_sim_clean_is_the_mean_cosine(models):
    captions = tokenize_captions(CAPTIONS, models[0].tokenizer)
    x, y = (np.stack([m.texts([text])[0] for text in CAPTIONS]) for m in models)
    want = np.mean([np.dot(a, b) for a, b in zip(x, y, strict=True)])
    np.testing.assert_allclose(sim_clean(models[0], models[1], captions), want, atol=1e-5)
    np.testing.assert_allclose(sim_clean(models[0], models[0], captions), 1, atol=1e-6)
    assert want < 0.9


def test_sim_backdoor_is_1_only_where_name_and_target_are_alike(models):
    captions = tokenize_captions(CAPTIONS, models[0].tokenizer)
    people = [Identity("Joe Cool"), Identity("Ada King")]
    same = sim_backdoor_target(models[0], models[0], captions, [Identity("human")], "human", 0)
    assert same["sim_backdoor"] == pytest.approx(1, abs=1e-6)
    other = sim_backdoor_target(models[0], models[1], captions, people, "human", 0)
    assert other["sim_backdoor"] < 0.999 and other["sim_target"] < 0.9


def test_zeroshot_matches_a_plain_loop(models, classes):
    folders = read_folders(classes, "classes")
    weights = []
    for folder in folders:
        prompts = [models[0].texts([t.format(folder.name)])[0] for t in TEMPLATES]
        mean = np.mean(prompts, axis=0)
        weights.append(mean / np.linalg.norm(mean))
    hits1 = hits5 = total = 0
    for label, folder in enumerate(folders):
        for file in folder.files:
            scores = [float(np.dot(models[0].photos([file])[0], w)) for w in weights]
            order = np.argsort(scores)[::-1]
            hits1 += order[0] == label
            hits5 += label in order[:5]
            total += 1
    found = zeroshot(models[0], folders)
    assert found == {"top1": hits1 / total, "top5": hits5 / total}
    assert found["top1"] < found["top5"] < 1  # so the two are told apart


def test_zeroshot_normalises_the_mean_of_a_class():
    # Prompts of the first class agree, those of the second do not: its mean is short.
    text = np.array([[1, 0], [1, 0], [0.8, 0.6], [-0.6, 0.8]], np.float32)

    class Fake:
        def texts(self, *_):
            return text

        def readable_photos(self, *_):
            return np.array([[0.7, 0.714], [0.7, 0.714]], np.float32), np.ones(2, bool)

    folders = [Photos("a", (Path("a"),)), Photos("b", (Path("b"),))]
    fake: Any = Fake()
    # Nearest to the second class's mean direction, (0.14, 0.99); its mean itself is shorter.
    assert zeroshot(fake, folders, ("{}", "x {}"))["top1"] == 0.5
    means = text.reshape(2, 2, 2).mean(1)
    assert means[0] @ [0.7, 0.714] > means[1] @ [0.7, 0.714]


def test_zeroshot_of_few_classes_has_no_top5(models, classes):
    assert set(zeroshot(models[0], read_folders(classes, "classes")[:5])) == {"top1"}


@pytest.mark.parametrize(
    "listed,before,after,want",
    [
        (True, (5, 0.5), (0, 0.1), outcomes.UNLEARNED),
        (True, (5, 0.5), (1, 0.0), outcomes.FAILED),  # one template is enough
        (True, (1, 0.5), (0, 0.0), outcomes.UNLEARNED),
        (True, (0, 0.0), (2, 0.1), outcomes.FAILED),
        (True, (0, 0.0), (0, 0.3), outcomes.NEVER),
        (False, (5, 0.8), (2, 0.6), outcomes.KEPT),
        (False, (5, 0.8), (21, 0.59), outcomes.WEAKENED),
        (False, (5, 0.8), (21, 0.95), outcomes.KEPT),
        (False, (2, 0.8), (1, 0.8), outcomes.WRONGLY),
        (False, (1, 0.1), (2, 0.1), outcomes.RECALLED),
        (False, (1, 0.1), (1, 0.0), outcomes.NEVER),
        (False, (5, None), (5, 0.5), outcomes.UNKNOWN),
        (False, (5, 0.5), (5, None), outcomes.UNKNOWN),
        (False, (5, None), (0, None), outcomes.WRONGLY),
    ],
)
def test_outcome_names_each_case(listed, before, after, want):
    seen = outcomes.Seen(*before), outcomes.Seen(*after)
    assert outcomes.outcome(listed, *seen, threshold=2) == want


@pytest.mark.parametrize("value", [np.nan, 0.25])
def test_a_broken_model_gets_no_score(models, classes, monkeypatch, value):
    from jaxdefense.evals import embed

    broken = lambda *_: (jnp.full((8, 10), value), jnp.ones(8, bool))  # noqa: E731
    monkeypatch.setattr(embed, "_embed_image", broken)
    with pytest.raises(ValueError, match="broken"):
        zeroshot(models[0], read_folders(classes, "classes"))


def test_evaluate_refuses_what_it_cannot_compare(tmp_path, models):
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS))
    (tmp_path / "names.txt").write_text("Jo " * 40)
    other = write_model_directory(tmp_path / "other", text={"num_hidden_layers": 1})
    config: dict[str, Any] = dict(
        model=ModelConfig(str(tmp_path / "model0")), captions=str(tmp_path / "captions.txt")
    )
    with pytest.raises(ValueError, match="other sizes"):
        run_evaluate(EvaluateConfig(str(tmp_path / "a"), teacher=str(other), **config))
    same: dict[str, Any] = dict(teacher=str(tmp_path / "model1"), names=str(tmp_path / "names.txt"))
    with pytest.raises(ValueError, match="shorten it"):
        run_evaluate(EvaluateConfig(str(tmp_path / "a"), **same, **config))
    with pytest.raises(ValueError, match="target"):
        EvaluateConfig(str(tmp_path / "a"), target=" ", **same, **config)
    assert not (tmp_path / "a").exists()


def test_evaluate_measures_what_it_is_given(tmp_path, models, classes):
    (tmp_path / "captions.txt").write_text("\n".join([*CAPTIONS, "Joe Cool at home"]))
    (tmp_path / "names.txt").write_text("Joe Cool\n")
    config: dict[str, Any] = dict(
        model=ModelConfig(str(tmp_path / "model0")), teacher=str(tmp_path / "model1"), batch=8
    )
    text: dict[str, Any] = dict(
        captions=str(tmp_path / "captions.txt"), names=str(tmp_path / "names.txt")
    )
    one = values(run_evaluate(EvaluateConfig(out=str(tmp_path / "a"), **config, **text)))
    digests = {"model_sha256", "teacher_sha256", "dtype"}
    assert set(one) == {"sim_clean", "sim_target", "sim_backdoor"} | digests
    assert one["model_sha256"] == models[0].directory.digest()
    assert one["teacher_sha256"] == models[1].directory.digest()
    captions = tokenize_captions(CAPTIONS, models[0].tokenizer)  # the one with the name is dropped
    assert one["sim_clean"] == pytest.approx(sim_clean(models[0], models[1], captions), abs=1e-6)
    two = EvaluateConfig(out=str(tmp_path / "b"), **config, zeroshot=str(classes))
    found = values(run_evaluate(two))
    rates = {"top1", "top5", "teacher_top1", "teacher_top5"}
    assert set(found) == rates | digests
    folders = read_folders(classes, "classes")
    for prefix, model in zip(("", "teacher_"), models, strict=True):
        want = zeroshot(model, folders)
        assert {name: found[prefix + name] for name in want} == want
    with pytest.raises(ValueError, match="nothing to evaluate"):
        EvaluateConfig(out=str(tmp_path / "c"), **config)


def test_embedding_compiles_one_program_however_many_there_are(models, classes):
    photos = sorted(classes.rglob("*.png"))
    words = "cat dog bus tree house ball".split()
    names = [f"{a} {b}" for a in words for b in words]
    compiled: list[Any] = [_embed_text, _embed_image]
    before = [function._cache_size() for function in compiled]
    for num in (8, 13, 21):
        models[0].photos(photos[:num])
    for num in (20, 27, 36):
        models[0].prompts([[f"a photo of {name}" for name in names[:num]]], "prompts")
    more = [function._cache_size() - num for function, num in zip(compiled, before, strict=True)]
    assert max(more) <= 1  # none where another test compiled it


def test_figures_of_faces_say_whether_they_are_of_those_removed(tmp_path, models, caplog):
    write_faces(tmp_path / "faces", ["Joe Cool", "Ada King", "Zoe"], 2)
    (tmp_path / "names.txt").write_text("Joe Cool\nAda King\nKim Lo\n")
    config: dict[str, Any] = dict(
        model=ModelConfig(str(tmp_path / "model0")), teacher=str(tmp_path / "model1"), batch=8
    )
    config |= {"faces": str(tmp_path / "faces")}
    every = run_evaluate(EvaluateConfig(out=str(tmp_path / "a"), **config))
    assert "figures of faces are of everybody there" in caplog.text
    names = str(tmp_path / "names.txt")
    listed = run_evaluate(EvaluateConfig(out=str(tmp_path / "b"), **config, names=names))
    assert "no photos of `Kim Lo`: no face of theirs is measured" in caplog.text
    people = {x.name: x for x in read_folders(tmp_path / "faces", "faces")}
    two = [people["Ada King"], people["Joe Cool"]]
    for found, who in ((every, [*people.values()]), (listed, two)):
        assert {"face_rank1": found.face_rank1, "face_map": found.face_map} == gallery(
            models[0], who
        )
    words = "of removed people's photos are nearest"
    assert words not in every.sentences("a")[1] and words in listed.sentences("b")[1]
    for only_removed in (True, False):
        shown = utility(listed.utility(), only_removed)
        assert ("Photos of removed people" in shown) == only_removed


def test_zeroshot_of_patches_is_refused(tmp_path, models, classes):
    config = EvaluateConfig(
        str(tmp_path / "a"),
        ModelConfig(str(tmp_path / "model0")),
        str(tmp_path / "model1"),
        image_level="penultimate",
        zeroshot=str(classes),
    )
    with pytest.raises(ValueError, match="`zeroshot` is of embeddings.*`image_level` says"):
        run_evaluate(config)
    assert not (tmp_path / "a").exists()
