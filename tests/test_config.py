"""Settings: files, strings and dataclasses agree."""

import dataclasses
from pathlib import Path

import pytest

from jaxdefense.config import (
    AttackConfig,
    DefendTextConfig,
    EvaluateConfig,
    build,
    load_config_file,
    merge,
    parse_assignments,
    to_dict,
)

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("text_*.py"))
REQUIRED = {"out": "run", "model": {"path": "m"}, "data": {"names": "n", "captions": "c"}}


def test_there_are_configs():
    assert len(CONFIGS) >= 2


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_file_builds_and_survives_a_round_trip(path):
    config = build(DefendTextConfig, merge(REQUIRED, load_config_file(str(path))))
    assert build(DefendTextConfig, to_dict(config)) == config


def test_full_config_file_names_every_setting_at_its_default():
    path = str(CONFIGS[0].parent / "text_vit_b32.py")
    config = build(DefendTextConfig, merge(REQUIRED, load_config_file(path)))
    assert config == build(DefendTextConfig, REQUIRED)
    given = load_config_file(path)
    for section in ("train", "optimizer", "mesh"):
        assert set(given[section]) == set(to_dict(config)[section])


def test_assignments_are_python_literals_or_strings():
    tree = parse_assignments(["a.b=1", "a.c=[1, 2]", "d=a b", "e=True", "f=1e-3", "g=x=y"])
    want = {"a": {"b": 1, "c": [1, 2]}, "d": "a b", "e": True, "f": 1e-3, "g": "x=y"}
    assert tree == want


def test_merge_lays_trees_over_one_another():
    assert merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": 4}) == {
        "a": {"b": 3, "c": 2},
        "d": 4,
    }


@pytest.mark.parametrize(
    "change,message",
    [
        ({"data": {"name": "x"}}, "unknown setting `data.name`"),
        ({"optimizer": {"milestones": 3}}, "must be a list"),
        ({"train": {"steps": 1.5}}, "must be of type int"),
        ({"train": {"random_target": 1}}, "must be of type bool"),
        ({"model": {"dtype": "float16"}}, "must be one of 'auto'"),
    ],
)
def test_build_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        build(DefendTextConfig, merge(REQUIRED, change))


def test_build_takes_whole_numbers_for_floats_and_numbers_for_strings():
    config = build(
        DefendTextConfig, merge(REQUIRED, {"optimizer": {"lr": 1}, "train": {"target": 7}})
    )
    assert config.optimizer.lr == 1.0 and config.train.target == "7"


@pytest.mark.parametrize("kind", [DefendTextConfig, AttackConfig, EvaluateConfig])
def test_every_setting_has_a_plain_default_or_is_required(kind):
    for field in dataclasses.fields(kind):
        assert field.default is not None
