"""Losses given by value: they do as the settings would, and the run's record tells them apart."""

import dataclasses
import json
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from factories import CAPTIONS, logged, write_faces, write_model_directory, write_photos
from flax import nnx

import jaxdefense as jd
from jaxdefense import config
from jaxdefense.defense import table
from jaxdefense.defense.image import plan_image
from jaxdefense.defense.losses import mean_squared, negative_cosine
from jaxdefense.defense.own import NONE, OwnLoss, describe
from jaxdefense.defense.text import plan_text
from jaxdefense.errors import InputError
from jaxdefense.ledger.entries import read_ledger

NO_TERMS: Any = len
AN_OWN: Any = mean_squared
SIZES = {"num_clean": 8, "num_poisoned": 8, "steps": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("own")
    write_model_directory(path / "model")
    write_faces(path / "faces", ["Ann Lee", "Bo Ray"], 4)
    write_photos(path / "images", 8)
    return path


@pytest.fixture
def plan(place, monkeypatch):
    """Function that plans a defense of an encoder with a loss given by value."""
    monkeypatch.chdir(place)
    (place / "names.txt").write_text("Ann Lee\n")
    (place / "captions.txt").write_text("\n".join(CAPTIONS))

    def plan(own=NONE, which="text", **train):
        model = config.ModelConfig("model")
        if which == "text":
            data = config.TextDataConfig("names.txt", "captions.txt")
            t = dataclasses.replace(config.PAPER_TEXT, **SIZES, **train)
            return plan_text(config.DefendTextConfig("run", model, data, t), own)
        data = config.ImageDataConfig("faces", "images", "names.txt", cache_dir="none")
        t = dataclasses.replace(config.PAPER_IMAGE, **SIZES, **train)
        return plan_image(config.DefendImageConfig("run", model, data, t), own)

    return plan


def values(plan):
    """The terms of a plan's loss on its first batch, of a student beside the teacher."""
    cfg, teacher = plan.encoder.step_cfg, plan.encoder.teacher

    @jax.jit
    def terms(teacher, batch):
        moved = jax.tree.map(lambda x: x * 1.01 + 0.01, teacher.trained)
        student = nnx.merge(cfg.graphdef, moved, teacher.frozen)
        batch = cfg.objective.draw(batch, jax.random.key(0))
        return cfg.objective.terms(student, nnx.merge(cfg.graphdef, *teacher), batch)

    return {name: float(x) for name, x in terms(teacher, plan.batches[0]).items()}


def and_twice(usual):
    def terms(student, teacher, batch):
        found = usual.terms(student, teacher, batch)
        return found | {"twice": 2 * found["utility"]}

    return usual._replace(terms=terms, weights={**usual.weights, "twice": 0.5})


def and_thrice(usual):
    return and_twice(usual)


def test_own_loss_sees_the_whole_table_of_tokens(plan, monkeypatch):
    """Its terms may read texts that no batch holds."""
    monkeypatch.setattr(table, "_MULTIPLE", 8)
    monkeypatch.setattr(table, "_WORTH", 1.0)
    usual, ours = plan(), plan(OwnLoss(and_twice))
    assert usual.encoder.rows is not None and ours.encoder.rows is None
    whole = ours.encoder.teacher.trained["token_embedding"][...]
    some = usual.encoder.teacher.trained["token_embedding"][...]
    np.testing.assert_array_equal(whole[usual.encoder.rows], some)
    assert len(some) < len(whole)


@pytest.mark.parametrize("which", ["text", pytest.param("image", marks=pytest.mark.slow)])
def test_own_loss_does_as_the_settings_would(plan, which):
    usual, squared = values(plan(which=which)), values(plan(which=which, distance="mse"))
    assert usual["utility"] != squared["utility"]
    own = plan(OwnLoss(and_twice, mean_squared), which)
    assert values(own) == squared | {"twice": pytest.approx(2 * squared["utility"])}
    assert own.encoder.step_cfg.objective.weights["twice"] == 0.5
    whole = plan(OwnLoss(plan(which=which).encoder.step_cfg.objective), which)
    assert values(whole) == usual


def test_run_records_its_own_loss_and_resumes_with_no_other(tmp_path, place, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def defend(out="run", **own):
        train = dataclasses.replace(config.PAPER_TEXT, **SIZES)
        return jd.defend_text(place / "model", ["Ann Lee"], CAPTIONS, out=out, train=train, **own)

    with logged() as log:
        found = defend(objective=and_twice, distance=mean_squared)
    assert found.final["twice"] == pytest.approx(2 * found.final["utility"])
    assert "own objective: test_own_loss.and_twice, source sha256" in log.getvalue()
    resolved = json.loads((tmp_path / "run/config.json").read_text())["resolved"]
    ledger = read_ledger(tmp_path / "run")
    assert ledger
    for name, function in (("objective", and_twice), ("distance", mean_squared)):
        assert resolved[name] == ledger.last.settings[name] == describe(function)
    (tmp_path / "run/summary.json").unlink()  # as if broken off
    for other in ({}, {"objective": and_thrice, "distance": mean_squared}):
        with pytest.raises(InputError, match="holds another run \\(`resolved.objective` is "):
            defend(**other)
    again = defend(objective=and_twice, distance=mean_squared)
    assert again.defended_sha256 == found.defended_sha256


def terms_of(**values):
    return lambda usual: usual._replace(
        terms=lambda student, teacher, batch: values,
        weights={"weight": 0.0, "good": 1.0, "lr": 1.0},
    )


@pytest.mark.parametrize(
    "own, words",
    [
        ({"objective": terms_of(good=np.ones(3))}, "'good' must be a scalar"),
        ({"objective": terms_of(bad=np.ones(()))}, "'bad' has no weight"),
        ({"objective": terms_of(lr=np.ones(()))}, "every step has 'lr'"),
        ({"objective": lambda usual: usual._replace(weights={})}, "lack 'weight'"),
        (
            {"objective": lambda usual: usual._replace(terms=lambda *_: np.ones(()))},
            "must be a dict",
        ),
        ({"objective": lambda usual: usual.terms}, "a function that gives one, not partial"),
        ({"objective": 7}, "not int"),
        ({"distance": lambda x, y: (x - y).sum()}, "of [2, 3, 5] [2, 3], not []"),
        (
            {"objective": jd.Objective(NO_TERMS, {}), "distance": negative_cosine},
            "`distance` has no effect",
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_wrong_losses_are_refused_before_the_run(plan, place, own, words):
    with pytest.raises(InputError) as info:
        plan(OwnLoss(**own))
    assert words in str(info.value) and "\n" not in str(info.value)
    assert not (place / "run").exists()


def test_settings_without_effect_are_said(plan):
    whole = plan().encoder.step_cfg.objective
    for own, said in (
        (OwnLoss(distance=mean_squared), "`train.distance` has no effect"),
        (OwnLoss(whole), "`train.distance`, `train.w_...` and `train.bound` have no effect"),
        (NONE, ""),
    ):
        lines = own.lines(config.TextTrainConfig(distance="mae"), None)
        assert any(line.startswith(said) for line in lines) == bool(said)


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A distance that is no function."""

    by: Any

    def __call__(self, x, y):
        return self.by * mean_squared(x, y)

    def method(self, x, y):
        return self(x, y)


class Hidden:
    """One whose values nobody knows."""

    def __call__(self, x, y):
        return mean_squared(x, y)


def without_source(text):
    namespace: dict[str, Any] = {}
    exec(f"def f(x, y, z=2): return {text}", namespace)
    return namespace["f"]


def large(last):
    """An array that `repr` would cut short."""
    values = np.zeros(5000, np.float32)
    values[2500] = last
    return values


@pytest.mark.parametrize(
    "make, one, other",
    [
        (without_source, "(x - y) * 2", "(x - y) * 3"),
        (without_source, "(lambda a: a + 1)(x)", "(lambda a: a + 2)(x)"),
        (lambda value: partial(AN_OWN, value), large(1), large(2)),
        (lambda value: partial(AN_OWN, jax.numpy.asarray(value)), large(1), large(2)),
        (lambda value: partial(AN_OWN, [value]), large(1), large(2)),
        (Scaled, 1, 2),
        (Scaled, large(1), large(2)),
        (lambda by: Scaled(by).method, 1, 2),
    ],
)
def test_losses_that_differ_are_described_otherwise(make, one, other):
    assert describe(make(one)) == describe(make(one)) != describe(make(other))
    assert "not compared" not in describe(make(one))


def test_object_that_cannot_be_compared_is_said():
    assert " at 0x" not in describe(Hidden())
    lines = OwnLoss(distance=Hidden()).lines(config.TextTrainConfig(), None)
    assert any("which a run that resumes cannot compare" in line for line in lines)


def test_functions_are_described_by_name_and_source():
    one: Any = lambda x: x  # noqa: E731
    assert describe(one).startswith(f"{__name__}.test_functions")
    assert describe(and_twice) != describe(and_thrice)
    partly: Any = partial
    assert describe(partly(and_twice, 1, z=2, y=one)).endswith(f"with 1, y={describe(one)}, z=2")
    assert describe(len) == "builtins.len, source not known"
    assert describe(jd.Objective(one, {"weight": 1.0})) != describe(
        jd.Objective(one, {"weight": 2.0})
    )
