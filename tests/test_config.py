"""Settings: files, strings and dataclasses agree."""

import dataclasses
from pathlib import Path

import pytest

from jaxdefense.config import (
    AttackConfig,
    DefendBothConfig,
    DefendImageConfig,
    DefendTextConfig,
    EvaluateConfig,
    OptimizerConfig,
    OverlayConfig,
    SweepImageConfig,
    SweepTextConfig,
    build,
    load_config_file,
    merge,
    parse_assignments,
    to_dict,
)

CONFIGS = Path(__file__).parents[1] / "configs"
KINDS = {"text": DefendTextConfig, "image": DefendImageConfig}
REQUIRED = {"out": "run", "model": {"path": "m"}, "data": {"names": "n", "captions": "c"}}
NEEDED = {"text": REQUIRED, "image": REQUIRED | {"data": {"faces": "f", "images": "i"}}}
WHICH = {
    "sweep_text": (SweepTextConfig, NEEDED["text"] | {"attack": {"faces": "f"}}),
    "sweep_image": (SweepImageConfig, NEEDED["image"]),
    **{which: (kind, NEEDED[which]) for which, kind in KINDS.items()},
}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_config_file_builds_and_survives_a_round_trip(path):
    kind, needed = next(x for which, x in WHICH.items() if path.stem.startswith(which))
    config = build(kind, merge(needed, load_config_file(str(path))))
    assert build(kind, to_dict(config)) == config


@pytest.mark.parametrize("which", ["text", "image"])
def test_full_config_file_names_every_setting_at_its_default(which):
    path = str(CONFIGS / f"{which}_vit_b32.py")
    config = build(KINDS[which], merge(NEEDED[which], load_config_file(path)))
    assert config == build(KINDS[which], NEEDED[which])
    given = load_config_file(path)
    for section in ("train", "optimizer", "mesh"):
        assert set(given[section]) == set(to_dict(config)[section])


@pytest.mark.parametrize("which", ["sweep_text", "sweep_image"])
def test_sweep_config_file_names_every_setting_of_its_own_at_its_default(which):
    given = load_config_file(str(CONFIGS / f"{which}.py"))
    kind, needed = WHICH[which]
    config, default = build(kind, merge(needed, given)), build(kind, needed)
    assert config == default
    sections = {"sweep", "attack", "evaluate"}
    assert given.keys() == sections
    wanted = {section: set(to_dict(default)[section]) for section in sections}
    wanted["attack"] -= {"faces"}
    assert {section: set(given[section]) for section in sections} == wanted


def test_sections_given_in_part_keep_the_defaults_of_their_defense():
    config = build(DefendImageConfig, merge(NEEDED["image"], {"optimizer": {"lr": 0.5}}))
    assert config.optimizer == OptimizerConfig(lr=0.5, milestones=(25, 50), gamma=0.1)
    both = {"out": "o", "model": {"path": "m"}}
    both |= {half: {"data": needed["data"]} for half, needed in NEEDED.items()}
    config = build(DefendBothConfig, merge(both, {"image": {"train": {"overlay": {"hue": 0.2}}}}))
    text, image = config.halves()
    assert image.train.overlay == OverlayConfig(hue=0.2) and image.train.steps == 100
    assert image.optimizer.gamma == 0.1 and text.optimizer.gamma == 0.5
    assert image.data.identities == "n"  # those on the names file
    given = merge(both, {"image": {"data": {"identities": "other"}}})
    assert build(DefendBothConfig, given).halves()[1].data.identities == "other"


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


@pytest.mark.parametrize(
    "kind", [DefendTextConfig, DefendImageConfig, AttackConfig, EvaluateConfig]
)
def test_every_setting_has_a_plain_default_or_is_required(kind):
    for field in dataclasses.fields(kind):
        assert field.default is not None
