"""Settings: files, strings and dataclasses agree."""

import dataclasses
from pathlib import Path

import pytest

from jaxdefense.config import (
    PAPER_IMAGE,
    PAPER_IMAGE_OPTIMIZER,
    PAPER_TEXT,
    PAPER_TEXT_OPTIMIZER,
    AttackConfig,
    DefendBothConfig,
    DefendImageConfig,
    DefendTextConfig,
    EvaluateConfig,
    OptimizerConfig,
    OverlayConfig,
    SweepImageConfig,
    SweepTextConfig,
    TextTrainConfig,
    ValidateConfig,
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
BOTH = {"out": "o", "model": {"path": "m"}}
BOTH |= {half: {"data": needed["data"]} for half, needed in NEEDED.items()}
PAPER = {
    "text": (PAPER_TEXT, PAPER_TEXT_OPTIMIZER),
    "image": (PAPER_IMAGE, PAPER_IMAGE_OPTIMIZER),
}
WHICH = {
    "sweep_text": (SweepTextConfig, NEEDED["text"] | {"attack": {"faces": "f"}}),
    "sweep_image": (SweepImageConfig, NEEDED["image"]),
    "defend_both": (DefendBothConfig, BOTH),
    **{f"defend_{which}": (kind, NEEDED[which]) for which, kind in KINDS.items()},
    **{f"paper/{which}": (kind, NEEDED[which]) for which, kind in KINDS.items()},
    "text_stable_diffusion": (DefendTextConfig, NEEDED["text"]),
}


def load(which):
    return load_config_file(str(CONFIGS / f"{which}.py"))


def test_every_config_file_is_tested():
    found = {path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.py")}
    assert found == set(WHICH)


@pytest.mark.parametrize("which", WHICH)
def test_config_file_builds_and_survives_a_round_trip(which):
    kind, needed = WHICH[which]
    config = build(kind, merge(needed, load(which)))
    assert build(kind, to_dict(config)) == config
    assert f"--config configs/{which}.py" in (CONFIGS / f"{which}.py").read_text()


@pytest.mark.parametrize("which", ["text", "image"])
def test_paper_config_file_names_every_setting_of_the_training_at_the_papers_value(which):
    given = load(f"paper/{which}")
    config = build(KINDS[which], merge(NEEDED[which], given))
    assert (config.train, config.optimizer) == PAPER[which]
    assert given.keys() == {"train", "optimizer"}
    for section in given:
        assert set(given[section]) == set(to_dict(config)[section])


def test_papers_settings_are_those_it_gives():
    for train, optimizer in PAPER.values():
        assert train.backdoor == "target" and train.distance == "cosine"
        assert (train.num_clean, train.num_poisoned) == (128, 128)
        assert train.validate.every == 0 and not train.variants
        assert optimizer.lr == 1e-4 and optimizer.warmup == optimizer.weight_decay == 0
    assert (PAPER_TEXT.steps, PAPER_IMAGE.steps) == (400, 100)
    assert (PAPER_TEXT.w_backdoor, PAPER_TEXT.w_weight, PAPER_TEXT.target) == (0.6, 0.01, "human")
    assert (PAPER_IMAGE.w_backdoor, PAPER_IMAGE.w_weight) == (0.8, 0.005)
    assert (
        PAPER_TEXT.num_name == PAPER_TEXT.w_name == PAPER_IMAGE.num_keep == PAPER_IMAGE.w_keep == 0
    )
    assert PAPER_IMAGE.overlay == OverlayConfig(0.25, 0.5, 0.5, 0.5, 0.1, 30.0, 0.0)
    assert (PAPER_TEXT_OPTIMIZER.milestones, PAPER_TEXT_OPTIMIZER.gamma) == ((200, 300), 0.5)
    assert (PAPER_IMAGE_OPTIMIZER.milestones, PAPER_IMAGE_OPTIMIZER.gamma) == ((25, 50), 0.1)


@pytest.mark.parametrize("which", ["defend_text", "defend_image", "defend_both"])
def test_defend_config_file_holds_settings_at_their_defaults(which):
    kind, needed = WHICH[which]
    given = load(which)
    assert build(kind, merge(needed, given)) == build(kind, needed)
    for half in [given["text"], given["image"]] if which == "defend_both" else [given]:
        assert {"steps", "seed", "w_backdoor"} <= half["train"].keys()
        assert half["optimizer"].keys() == {"lr"}


def test_stable_diffusion_is_defended_over_all_positions():
    config = build(DefendTextConfig, merge(REQUIRED, load("text_stable_diffusion")))
    wanted = dataclasses.replace(PAPER_TEXT, level="hidden", target="a person")
    assert (config.train, config.optimizer) == (wanted, PAPER_TEXT_OPTIMIZER)


@pytest.mark.parametrize("which", ["sweep_text", "sweep_image"])
def test_sweep_config_file_names_every_setting_of_its_own_at_its_default(which):
    given = load(which)
    kind, needed = WHICH[which]
    config, default = build(kind, merge(needed, given)), build(kind, needed)
    assert config == default
    sections = {"sweep", "attack", "evaluate"}
    assert given.keys() == sections
    wanted = {section: set(to_dict(default)[section]) for section in sections}
    wanted["attack"] -= {"faces"}
    assert {section: set(given[section]) for section in sections} == wanted
    # The value that a defense has, and the paper's.
    paper, _ = PAPER[which.removeprefix("sweep_")]
    assert given["sweep"]["w_weight"] == (default.train.w_weight, paper.w_weight)


def test_sections_given_in_part_keep_the_defaults_of_their_defense():
    config = build(DefendImageConfig, merge(NEEDED["image"], {"optimizer": {"lr": 0.5}}))
    assert config.optimizer == OptimizerConfig(lr=0.5)
    given = {"text": {"train": {"steps": 9, "validate": {"patience": 1}}}}
    given |= {"image": {"train": {"overlay": {"hue": 0.2}, "validate": {"level": 0.9}}}}
    config = build(DefendBothConfig, merge(BOTH, given))
    text, image = config.halves()
    assert image.train.overlay == OverlayConfig(hue=0.2) and image.train.steps == 200
    assert text.train.steps == 9 and text.train.target == "object"  # unlike one encoder's alone
    assert TextTrainConfig().target == "human"
    # Names are validated half as often as faces, given or not.
    assert text.train.validate == ValidateConfig(every=50, patience=1)
    assert image.train.validate == ValidateConfig(every=25, level=0.9)
    assert image.data.identities == "n"  # those on the names file
    given = merge(BOTH, {"image": {"data": {"identities": "other"}}})
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
