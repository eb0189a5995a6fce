"""What names and faces came to mean: taken from the run, and refused where it says otherwise."""

from typing import Any

import numpy as np
import pytest
from factories import DEFENSE, write_result
from test_people import error_of

from jaxdefense.config import EvaluateConfig, ModelConfig
from jaxdefense.data.identities import Identity
from jaxdefense.evals.targets import on_list, read_targets
from jaxdefense.results import BothDefenseSummary, ImageDefenseSummary, TextDefenseSummary

TARGETED = {"backdoor": "target", "target": "object"}
BOUNDED = {"backdoor": "bounded", "target": "human"}


def text_run(path, **train):
    return write_result(path, TextDefenseSummary, {"train": {**TARGETED, **train}}, {})


def image_run(path, backdoor="target", target="", level="pooled", **summary):
    data = {"target": target, "faces": "faces", "keep": "keep"}
    settings = {"train": {"backdoor": backdoor, "level": level}, "data": data}
    settings |= {"directory": str(path.parent)}
    run = write_result(path, ImageDefenseSummary, settings, summary)
    np.save(run / "target.npy", np.arange(1, 4, dtype=np.float32))
    return run


def config(model, **given):
    usual: dict[str, Any] = {"captions": "captions.txt", "names": "names.txt"}
    return EvaluateConfig("out", ModelConfig(str(model)), "teacher", **(usual | given))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("place", ["", "model"])
def test_word_is_the_runs(tmp_path, place):
    run = text_run(tmp_path / "run")
    (run / "model").mkdir()
    assert read_targets(config(run / place)).text == "object"
    assert read_targets(config(run / place, target=" object ")).text == "object"
    message = error_of(read_targets, config(run / place, target="human"))
    assert "`target` (=human)" in message and "led names to `object`" in message


def test_model_of_no_run_takes_what_is_given_or_the_usual_which_is_said(tmp_path, caplog):
    assert read_targets(config(tmp_path / "model", target="dog")).text == "dog"
    assert not caplog.records
    assert read_targets(config(tmp_path / "model")).text == "human"
    assert "is from no run of ours: `target` is `human`" in caplog.text


@pytest.mark.parametrize(
    "train, words", [(BOUNDED, "it was bounded"), ({"random_target": True}, "to a random name")]
)
def test_run_without_one_word_measures_none_and_says_so(tmp_path, caplog, train, words):
    run = text_run(tmp_path / "run", **train)
    assert read_targets(config(run)).text == ""
    assert words in caplog.text and "sim_backdoor are left out" in caplog.text
    assert words in error_of(read_targets, config(run, target="human"))


def test_faces_go_to_the_runs_vector_or_to_the_same_people(tmp_path):
    run = image_run(tmp_path / "run", target="stars")
    assert read_targets(config(run, faces="f")).image == str(run / "target.npy")
    assert read_targets(config(run, faces="f", image_target="./stars")).image == "./stars"
    same = tmp_path / "same.npy"
    np.save(same, np.arange(1, 4, dtype=np.float32))
    assert read_targets(config(run, faces="f", image_target=str(same))).image == str(same)
    np.save(same, np.arange(2, 5, dtype=np.float32))
    for other in (str(same), "faces", "none.npy"):
        message = error_of(read_targets, config(run, faces="f", image_target=other))
        assert f"`image_target` (={other})" in message and "another target, stars" in message
    average = image_run(tmp_path / "average")
    assert read_targets(config(average, faces="f", image_target="faces")).image == "faces"


def test_faces_without_any_target_are_measured_by_no_target_and_said(tmp_path, caplog):
    for run, words in (
        (tmp_path / "model", "from no run"),
        (text_run(tmp_path / "text"), "from no run"),
        (image_run(tmp_path / "bounded", "bounded"), "it was bounded"),
    ):
        caplog.clear()
        assert read_targets(config(run, faces="f")).image == ""
        assert any(
            words in line and "image_sim_backdoor is left out" in line for line in caplog.messages
        )
    given = config(tmp_path / "bounded", faces="f", image_target="faces")
    assert "it was bounded" in error_of(read_targets, given)


def test_run_of_both_gives_each_encoders_target(tmp_path):
    run = write_result(tmp_path / "both", BothDefenseSummary, {}, {})
    text_run(run / "text")
    image_run(run / "image")
    wanted = "object", str(run / "image/target.npy")
    assert read_targets(config(run, faces="f")) == wanted


def test_patches_lead_to_the_people_that_the_run_names(tmp_path, monkeypatch, caplog):
    (tmp_path / "stars").mkdir()
    run = image_run(tmp_path / "run", target="stars", level="penultimate")
    monkeypatch.chdir("/")  # the run was started elsewhere
    assert read_targets(config(run, faces="f")).image == str(tmp_path / "stars")
    assert read_targets(config(run, faces="f", image_target="stars")).image == "stars"
    message = error_of(read_targets, config(run, faces="f", image_target="faces"))
    assert "`image_target` (=faces)" in message and "of other people, of `stars`" in message
    assert "image_" not in caplog.text
    (tmp_path / "stars").rmdir()
    assert read_targets(config(run, faces="f")).image == ""
    assert "which is not there: image_sim_backdoor is left out" in caplog.text


def test_patches_lead_to_those_who_stay_where_the_run_names_nobody(tmp_path, caplog):
    run = image_run(tmp_path / "run", level="penultimate")
    for source in ("faces", "keep"):
        assert read_targets(config(run, faces="f", image_target=source)).image == source
    message = error_of(read_targets, config(run, faces="f", image_target="x.npy"))
    assert "`faces` and `keep`" in message
    assert "image_" not in caplog.text
    assert read_targets(config(run, faces="f")).image == ""
    assert "those who stay" in caplog.text and "`image_target` gives it" in caplog.text


def test_one_vector_is_left_out_where_patches_are_compared(tmp_path, caplog):
    run = image_run(tmp_path / "run")
    assert read_targets(config(run, faces="f", image_level="penultimate")).image == ""
    assert "led faces to one vector" in caplog.text
    assert "image_sim_backdoor is left out" in caplog.text


def test_list_is_that_of_the_run_of_the_model(tmp_path):
    names = [["Joe Cool"], ["Ada King", "Ada Noel"]]
    run = image_run(tmp_path / "run", **DEFENSE, corrupt={}, names=names)
    assert on_list(str(run)) == (run, [Identity("Joe Cool"), Identity("Ada King", ("Ada Noel",))])
    assert on_list(str(tmp_path / "model")) is None
    assert on_list(str(text_run(tmp_path / "text"))) is None
