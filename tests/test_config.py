"""Settings: files, strings and dataclasses agree."""

import ast
import dataclasses
import io
import json
import re
import shlex
from pathlib import Path

import pytest

from jaxdefense.commands import COMMANDS, reference
from jaxdefense.config import (
    PAPER_IMAGE,
    PAPER_IMAGE_OPTIMIZER,
    PAPER_TEXT,
    PAPER_TEXT_OPTIMIZER,
    AttackConfig,
    ConvertConfig,
    DefendBothConfig,
    DefendImageConfig,
    DefendTextConfig,
    EvaluateConfig,
    ImageDataConfig,
    OptimizerConfig,
    OverlayConfig,
    SweepBothConfig,
    SweepImageConfig,
    SweepTextConfig,
    TextTrainConfig,
    ValidateConfig,
)
from jaxdefense.errors import InputError
from jaxdefense.settings import as_flags, identity, load_config_file, parse, settings_of, to_dict

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
    "sweep_both": (SweepBothConfig, BOTH),
    "crowd": (SweepTextConfig, NEEDED["text"] | {"attack": {"faces": "f"}}),
    "paper/names": (SweepTextConfig, NEEDED["text"] | {"attack": {"faces": "f"}}),
    "paper/faces": (SweepImageConfig, NEEDED["image"]),
    "paper/names_and_faces": (SweepBothConfig, BOTH),
    "defend_both": (DefendBothConfig, BOTH),
    **{f"defend_{which}": (kind, NEEDED[which]) for which, kind in KINDS.items()},
    **{f"paper/{which}": (kind, NEEDED[which]) for which, kind in KINDS.items()},
    "text_stable_diffusion": (DefendTextConfig, NEEDED["text"]),
}


def build(kind, *trees):
    """Fill settings from nested dicts, later ones on top."""
    return parse(kind, [flag for tree in trees for flag in as_flags(tree)])


def load(which):
    return load_config_file(str(CONFIGS / f"{which}.py"))


def test_every_config_file_is_tested():
    found = {path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.py")}
    assert found == set(WHICH)


@pytest.mark.parametrize("which", WHICH)
def test_config_file_builds_and_survives_a_round_trip(which):
    kind, needed = WHICH[which]
    config = build(kind, needed, load(which))
    assert build(kind, to_dict(config)) == config
    assert f"--config configs/{which}.py" in (CONFIGS / f"{which}.py").read_text()


@pytest.mark.parametrize("which", WHICH)
def test_commands_in_the_head_of_a_config_file_parse(which, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    head = ast.get_docstring(ast.parse((CONFIGS / f"{which}.py").read_text()))
    found = re.findall(r"\bjaxdefense .*", head or "")
    assert any(f"--config configs/{which}.py" in line for line in found)
    for line in found:
        words = shlex.split(line)[1:]
        name = next(x for x in (" ".join(words[:2]), words[0]) if x in COMMANDS)
        config = COMMANDS[name].read(words[len(name.split()) :])
        if f"configs/{which}.py" in line:
            assert type(config) is WHICH[which][0]


def test_papers_figures_compare_its_settings_with_and_without_weight_regularisation():
    both = build(*WHICH["paper/names_and_faces"], load("paper/names_and_faces"))
    assert both.sweep.w_weight == (0, 1)
    for which, half in (("names", "text"), ("faces", "image")):
        config, part = build(*WHICH[f"paper/{which}"], load(f"paper/{which}")), getattr(both, half)
        assert (config.train, config.optimizer) == (part.train, part.optimizer) == PAPER[half]
        assert config.sweep.w_weight == (0, config.train.w_weight)
        for cfg in (config, both):
            assert cfg.sweep.num_identities == (1, 2, 4, 8, 16, 32, 64)
            assert cfg.sweep.seeds == tuple(range(10)) and cfg.attack.whole_photos
            assert cfg.evaluate.templates == "openai80"


def test_config_file_of_the_package_goes_by_its_name_anywhere(tmp_path, monkeypatch):
    by_path = load("paper/text")
    monkeypatch.chdir(tmp_path)
    assert load_config_file("paper/text") == by_path
    with pytest.raises(InputError, match="`paper/txt` does not exist.* by name .*paper/image, pap"):
        load_config_file("paper/txt")


@pytest.mark.parametrize("which", ["text", "image"])
def test_paper_config_file_gives_the_papers_settings(which):
    given = load(f"paper/{which}")
    config = build(KINDS[which], NEEDED[which], given)
    assert (config.train, config.optimizer) == PAPER[which]
    assert given.keys() == {"train", "optimizer"}


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
    assert PAPER_IMAGE.overlay == OverlayConfig(0.25, 0.5, 0.5, 0.5, 0.1, 30.0, 0.0, 1.0)
    assert (PAPER_TEXT_OPTIMIZER.milestones, PAPER_TEXT_OPTIMIZER.gamma) == ((200, 300), 0.5)
    assert (PAPER_IMAGE_OPTIMIZER.milestones, PAPER_IMAGE_OPTIMIZER.gamma) == ((25, 50), 0.1)


@pytest.mark.parametrize("which", WHICH)
def test_config_file_holds_only_what_differs_from_the_defaults(which):
    kind, needed = WHICH[which]
    given = load(which)
    default = to_dict(build(kind, needed))

    def leaves(tree, at=()):
        for name, value in tree.items():
            yield from leaves(value, (*at, name)) if isinstance(value, dict) else [(*at, name)]

    def value(tree, path):
        for name in path:
            tree = tree[name]
        return tree

    for path in leaves(given):
        assert value(given, path) != value(default, path), path
    copied = which.startswith(("defend", "sweep"))
    assert copied is not any(leaves(given))


def test_stable_diffusion_is_defended_over_all_positions():
    config = build(DefendTextConfig, REQUIRED, load("text_stable_diffusion"))
    wanted = dataclasses.replace(PAPER_TEXT, level="hidden", target="a person")
    assert (config.train, config.optimizer) == (wanted, PAPER_TEXT_OPTIMIZER)


@pytest.mark.parametrize("which", ["sweep_text", "sweep_image"])
def test_sweep_has_the_weights_of_a_defense_and_of_the_paper(which):
    default = build(*WHICH[which])
    paper, _ = PAPER[which.removeprefix("sweep_")]
    assert default.sweep.w_weight == (default.train.w_weight, paper.w_weight)


def test_sections_given_in_part_keep_the_defaults_of_their_defense():
    config = build(DefendImageConfig, NEEDED["image"], {"optimizer": {"lr": 0.5}})
    assert config.optimizer == OptimizerConfig(lr=0.5)
    given = {"text": {"train": {"steps": 9, "validate": {"patience": 1}}}}
    given |= {"image": {"train": {"overlay": {"hue": 0.2}, "validate": {"level": 0.9}}}}
    config = build(DefendBothConfig, BOTH, given)
    text, image = config.halves()
    assert image.train.overlay == OverlayConfig(hue=0.2) and image.train.num_keep == 128
    assert text.train.steps == 9 and text.train.target == "object"  # unlike one encoder's alone
    assert TextTrainConfig().target == "human"
    # Names are validated half as often as faces, given or not.
    assert text.train.validate == ValidateConfig(every=50, patience=1)
    assert image.train.validate == ValidateConfig(every=25, level=0.9)
    assert type(image.data) is ImageDataConfig and image.data.names == text.data.names == "n"
    other = {"image": {"data": {"names": "other"}}}
    assert build(DefendBothConfig, BOTH, other).halves()[1].data.names == "other"


@pytest.mark.parametrize(
    ("kind", "args"),
    [
        (DefendImageConfig, ["--identities", "n"]),
        (DefendImageConfig, ["--set", "data.identities=n"]),
        (DefendBothConfig, ["--identities=n"]),
        (DefendBothConfig, ["--image.data.identities", "n"]),
        (SweepImageConfig, ["--config", "old.py"]),
    ],
)
def test_former_name_of_a_setting_is_refused_with_todays(tmp_path, monkeypatch, kind, args):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.py").write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    return ConfigDict({'data': {'identities': 'n'}})\n"
    )
    with pytest.raises(InputError, match=r"identities` is called `[a-z.]*names` now"):
        parse(kind, [*as_flags(BOTH if kind is DefendBothConfig else NEEDED["image"]), *args])


def test_flags_win_over_assignments_and_these_over_the_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    train = dict(steps=5, num_clean=6, num_name=7, variants=('last', 'lower'))\n"
        "    return ConfigDict(dict(train=train, optimizer=dict(milestones=[1, 2])))\n"
    )
    args = ["--train.num-clean", "9", "--config", str(file), "--set", "train.num_name=8"]
    args += ["--set=train.num_clean=1", "--set", "train.random_target=True", "--set"]
    args += ["train.backdoor='target'", "--set", "train.bound=-0.5", "--set", "train.target=x=y"]
    found = parse(DefendTextConfig, [*as_flags(REQUIRED), *args])
    t = found.train
    assert (t.steps, t.num_clean, t.num_name, t.bound) == (5, 9, 8, -0.5)
    assert t.variants == ("last", "lower") and t.random_target and t.target == "x=y"
    assert found.optimizer.milestones == (1.0, 2.0)
    for text in ("first,upper", "('first', 'upper')", '["first", "upper"]'):
        args = [*as_flags(REQUIRED), "--set", f"train.variants={text}"]
        assert parse(DefendTextConfig, args).train.variants == ("first", "upper")


def test_short_flags_are_the_long_ones():
    args = ["--model", "m", "--names", "n", "--captions", "c", "--out", "run"]
    assert parse(DefendTextConfig, args) == build(DefendTextConfig, REQUIRED)
    args += ["--faces", "f", "--images", "i"]
    assert parse(DefendBothConfig, args) == build(DefendBothConfig, BOTH, {"out": "run"})


@pytest.mark.parametrize(
    "change,message",
    [
        ({"data": {"name": "x"}}, "unknown: --data.name=x; perhaps --names is meant; see"),
        ({"train": {"steps": 1.5}}, "--train.steps.*'1.5'"),
        ({"train": {"random_target": 1}}, "`train.random_target` .=1. must be True or False"),
        ({"train": {"seed": None}}, "`train.seed` .=None. must be a number"),
        ({"model": {"dtype": "float16"}}, "'float16'.*--model.dtype.*'auto'"),
        ({"optimizer": {"milestones": "a"}}, "--optimizer.milestones"),
        ({"optimizer": {"lr": "nan"}}, "`optimizer.lr` .=nan. must be finite"),
        ({"train": {"steps": -1}}, "^`train.steps` .=-1. must be at least 0.$"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_parse_refuses(change, message, encoding, monkeypatch):
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    with pytest.raises(InputError, match=message) as info:
        build(DefendTextConfig, REQUIRED, change)
    said = str(info.value)
    assert "\n" not in said and "─" not in said and "---" not in said and "helptext" not in said


@pytest.mark.parametrize(
    "tree, message",
    [
        ({"trian": {}}, "unknown section `trian`; there are model, data, train"),
        ({"train": {"validat": {}}}, "unknown section `train.validat`; there are validate"),
        ({"train": {"steps": {}}}, "unknown section `train.steps`"),
    ],
)
def test_sections_of_a_config_file_must_exist_though_they_are_empty(tmp_path, tree, message):
    file = tmp_path / "mine.py"
    file.write_text(
        f"from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({tree})\n"
    )
    with pytest.raises(InputError, match=message):
        parse(DefendTextConfig, [*as_flags(REQUIRED), "--config", str(file)])


def test_setting_out_of_range_is_named_as_it_was_given():
    for given, named in (
        ({"image": {"train": {"num_keep": -1}}}, "image.train.num_keep"),
        ({"text": {"train": {"w_name": 0.0}}}, "text.train.w_name"),
        ({"text": {"train": {"validate": {"level": 2.0}}}}, "text.train.validate.level"),
    ):
        with pytest.raises(InputError, match=f"^`{named}` "):
            build(DefendBothConfig, BOTH, {"out": "run"}, given)
    # Of two settings with that name it cannot tell which.
    both = {"text": {"train": {"keep": 0}}, "image": {"train": {"keep": 5}}}
    with pytest.raises(InputError, match="^`keep` .=0. must be above 0"):
        build(DefendBothConfig, BOTH, {"out": "run"}, both)
    args = [*as_flags(REQUIRED), "--train.save-every", "0"]
    with pytest.raises(InputError, match="^`train.save_every` .=0. must be above 0"):
        parse(DefendTextConfig, args)


def test_texts_that_read_as_something_else_stay_texts():
    for text in ("True", "False", "7", "-1", "a b,c", "'True'"):
        given = [*as_flags(REQUIRED), "--set", f"train.target={text}"]
        assert parse(DefendTextConfig, given).train.target == text.strip("'")
    for flag in ("--train.random-target", "--train.random_target=True"):
        given = [*as_flags(REQUIRED), flag, "--train.backdoor", "target"]
        assert parse(DefendTextConfig, given).train.random_target is True


def test_what_a_dataclass_refuses_is_said_whole():
    path = "x" * 30 + "-" * 30 + "y" * 90
    with pytest.raises(InputError, match=f"^`train.variants` .='{path}'. must be of last, "):
        build(DefendTextConfig, REQUIRED, {"train": {"variants": (path,)}})
    with pytest.raises(InputError, match="^nothing to evaluate: give `captions`"):
        build(EvaluateConfig, {"out": "o", "model": {"path": "m"}, "teacher": "t"})
    with pytest.raises(InputError, match="^missing: DST"):
        parse(ConvertConfig, ["m", "--to", "hf"])


def test_what_is_missing_is_named():
    with pytest.raises(InputError, match="^missing: --out, --captions; see `x --help`.$"):
        parse(DefendTextConfig, ["--model", "m", "--names", "n"], "x")
    for args in (["--set"], ["--set", "=3"], ["--set", "steps"], ["--config"]):
        with pytest.raises(InputError, match="key=value|takes a value"):
            parse(DefendTextConfig, args)


def test_build_takes_whole_numbers_for_floats_and_numbers_for_strings():
    config = build(DefendTextConfig, REQUIRED, {"optimizer": {"lr": 1}, "train": {"target": 7}})
    assert config.optimizer.lr == 1.0 and config.train.target == "7"


@pytest.mark.parametrize(
    "kind", [DefendTextConfig, DefendImageConfig, AttackConfig, EvaluateConfig]
)
def test_every_setting_has_a_plain_default_or_is_required(kind):
    for field in dataclasses.fields(kind):
        assert field.default is not None


def changed(value):
    """Give another value of the same kind that a setting may take, or None."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return value + 1 if isinstance(value, int) else value + "x"


@pytest.mark.parametrize("kind,needed", [WHICH["defend_text"], WHICH["defend_image"]])
def test_run_is_the_same_whatever_says_how_it_is_computed(kind, needed):
    given = json.loads(json.dumps(to_dict(build(kind, needed))))
    base = identity(kind, given)
    assert base == identity(kind, dict(given))
    same = {setting.key for setting in settings_of(kind) if not setting.result}
    for setting in settings_of(kind):
        tree = json.loads(json.dumps(given))
        *sections, last = setting.key.split(".")
        at = tree
        for section in sections:
            at = at[section]
        if (other := changed(at.get(last))) is not None:
            at[last] = other
            assert (identity(kind, tree) == base) is (setting.key in same), setting.key
    assert {"out", "cache.compilation", "data.prefetch", "train.save_every"} <= same
    assert not {"train.steps", "train.seed", "optimizer.lr", "train.bound"} & same


def test_two_spellings_of_a_path_are_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    needed = {"out": "o", "faces": "f"}
    spelt = [
        build(AttackConfig, needed, {"model": {"path": path}})
        for path in ("m", "m/", "./m", "x/../m", str(tmp_path / "m"))
    ]
    assert len({json.dumps(identity(AttackConfig, to_dict(cfg))) for cfg in spelt}) == 1
    other = build(AttackConfig, needed, {"model": {"path": "n"}})
    assert identity(AttackConfig, to_dict(other)) != identity(AttackConfig, to_dict(spelt[0]))


def test_every_setting_has_a_sentence_of_help():
    for command in COMMANDS.values():
        for setting in settings_of(command.kind()):
            assert setting.help.endswith("."), setting


def test_reference_page_is_that_of_the_settings():
    page = (CONFIGS.parent / "docs" / "settings.md").read_text()
    assert page == reference(), "run `python -m jaxdefense.commands > docs/settings.md`"
