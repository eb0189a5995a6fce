"""Summaries: read as they were written, told in words, and refused if they are something else."""

import dataclasses
import json
import logging
from typing import Any

import pytest
from factories import DEFENSE, write_result
from test_cli import assert_refused

from jaxdefense import results
from jaxdefense.cli import main
from jaxdefense.commands import COMMANDS
from jaxdefense.errors import InputError
from jaxdefense.files import write_json
from jaxdefense.idia.statistics import measure, statistics
from jaxdefense.results import (
    AttackSummary,
    BothDefenseSummary,
    CellSummary,
    DefenseSummary,
    EvaluationSummary,
    ImageDefenseSummary,
    Result,
    Summary,
    TextDefenseSummary,
    as_json,
    kind_of,
    read_settings,
    read_summary,
    write_summary,
)

FOUND: dict[str, Any] = {
    "reached": False, "right": 0.25, "above": 0.5, "gap": 0.125, "moved": {"clean": 0.0},
    "left": {"Ann": 0.5},
}  # fmt: skip
VALIDATED: dict[str, Any] = {
    "reached": False, "stopped_at_step": 2, "alpha": 1.0,
    "validation": {"before": FOUND, "after": FOUND},
}  # fmt: skip
TEXT = TextDefenseSummary(**DEFENSE, **VALIDATED, names=[["Ann", "Anna"]], targets={"Ann": "x"})
IMAGE = ImageDefenseSummary(**DEFENSE, names=[["Ann"]], corrupt={"a.png": "broken"})
CELL = CellSummary(
    tower="text", n=1, seed=0, w_weight=0.5, seconds=1.5, num_others=0, reached=None,
    **dict.fromkeys(("removed_tpr", "removed_fnr", "removed_tpr_majority"), 0.5),
    **dict.fromkeys(("removed_photos_right", "removed_mean_templates", "sim_clean"), 0.5),
    **dict.fromkeys(("others_tpr", "others_tpr_majority", "others_photos_right"), None),
    **dict.fromkeys(("others_mean_templates", "top1", "top5"), None),
)  # fmt: skip


def attack(of_strangers=(0,), **more: Any) -> AttackSummary:
    correct, right = [3, 0, 5], [0.5, 0.0, 0.25]
    rates: dict[str, Any] = {**statistics(correct, of_strangers, 2, 5)}
    rates |= measure(correct, right, 2, 5)
    return AttackSummary(
        **rates,
        num_identities=3,
        threshold=2,
        num_candidates=9,
        num_templates=5,
        photos_per_identity={"min": 1, "max": 2},
        no_answer=0,
        majority=3,
        per_identity=dict(zip(("Ann", "Bob", "Cy"), correct, strict=True)),
        **more,
    )


GROUP: Any = {
    "num": 4,
    "before": measure([5] * 4, [1.0] * 4, 2, 5),
    "after": measure([0] * 4, [0.0] * 4, 2, 5),
}
MOVED: Any = {"groups": {"random": {"mean": 0.5, "least": 0.25, "num": 2}}, "most_moved": [
    {"name": "Una Ek", "group": "random", "cosine": 0.25}
]}  # fmt: skip
ALL = [
    TEXT,
    IMAGE,
    BothDefenseSummary(text=TEXT, image=IMAGE, defended_sha256="d"),
    attack(num_strangers=1, strangers={"Una": 0}, groups={"removed": GROUP}),
    EvaluationSummary(sim_clean=1.0, top1=0.75, collateral=MOVED, dtype="float32"),
    CELL,
]


@pytest.mark.parametrize("summary", ALL, ids=lambda summary: summary.kind)
def test_summary_is_read_as_it_was_written(tmp_path, summary):
    write_summary(tmp_path, summary)
    assert read_summary(tmp_path, Summary) == read_summary(tmp_path, type(summary)) == summary
    written = json.loads((tmp_path / "summary.json").read_text())
    assert (written["kind"], written["schema"]) == (summary.kind, results.SCHEMA)


def test_what_was_not_measured_leaves_no_trace_but_in_a_table():
    assert not {"reached", "validation", "stopped_at_step"} & as_json(IMAGE).keys()
    assert {"top1", "others_tpr", "reached"} <= as_json(CELL).keys() and not as_json(CELL)["top1"]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"kind": "dream"}, "is of the kind 'dream', which this version of jaxdefense does not"),
        ({"kind": 3}, "is of the kind 3, which"),
        ({"schema": 2}, "has the schema 2, this version of jaxdefense reads up to 1"),
        ({"schema": None}, "has the schema None"),
        ({"kind": "attack"}, "is of the kind attack, not defense_text or defense_image"),
        ({"steps": "many"}, "`steps` (='many') is not what this kind of result holds"),
        ({"steps": True}, "`steps` (=True)"),
        ({"steps": None}, "`steps` (=None)"),
        ({"seconds": float("nan")}, "`seconds` (=nan)"),
        ({"names": [["Ann", 3]]}, "`names[0][1]` (=3)"),
        ({"validation": {"before": FOUND}}, "`validation.after` is missing"),
        ({"final": {"total": []}}, "`final.total` (=[])"),
    ],
)
def test_summary_that_is_something_else_is_refused_in_one_line(tmp_path, change, words):
    (tmp_path / "summary.json").write_text(json.dumps(as_json(TEXT) | change))
    with pytest.raises(InputError) as error:
        read_summary(tmp_path, DefenseSummary)
    said = str(error.value)
    assert said.startswith(f"`{tmp_path / 'summary.json'}`") and words in said and "\n" not in said


def test_fields_that_are_unknown_are_passed_over(tmp_path):
    write_json(tmp_path / "summary.json", as_json(TEXT) | {"new": 1})
    assert read_summary(tmp_path, DefenseSummary) == TEXT


MODEL: dict[str, Any] = {"out": "o", "model": {"path": "m"}}


@pytest.mark.parametrize(
    "settings, summary",
    [
        ({"data": {"names": "n"}, "train": {}}, TEXT),
        ({"data": {"faces": "f"}, "train": {}}, IMAGE),
        ({"text": {}, "image": {}}, ALL[2]),
        ({"faces": "f", "num_candidates": 9}, ALL[3]),
        ({"teacher": "t", "faces": "f"}, ALL[4]),
    ],
)
def test_directory_of_before_kinds_is_told_by_its_settings(tmp_path, settings, summary):
    write_json(tmp_path / "config.json", MODEL | settings)
    write_json(tmp_path / "summary.json", results.values(summary))
    assert kind_of(tmp_path) is type(summary)
    assert read_summary(tmp_path, Summary) == summary
    write_json(tmp_path / "config.json", settings)  # of somebody else
    assert kind_of(tmp_path) is None
    with pytest.raises(InputError, match="is of no kind"):
        read_summary(tmp_path, Summary)


def test_kind_is_known_before_the_end_and_is_no_setting(tmp_path):
    path = write_result(tmp_path / "run", TextDefenseSummary, MODEL, None)
    assert kind_of(path) is TextDefenseSummary and read_settings(path) == MODEL
    assert kind_of(tmp_path) is kind_of(tmp_path / "nowhere") is None
    write_json(path / "config.json", MODEL | {"kind": "dream"})
    assert kind_of(path) is None


@pytest.mark.parametrize("summary", [x for x in ALL if isinstance(x, Result)], ids=lambda x: x.kind)
def test_sentences_tell_figures_and_where_the_results_lie(summary):
    said = summary.sentences("the/run")
    assert 2 <= len(said) <= 3 and all(x.endswith(".") and "\n" not in x for x in said)
    assert "`the/run`" in said[-1] and any(x.isdigit() for x in "".join(said))


def test_sentences_say_what_was_not_reached_or_not_looked_at():
    assert TEXT.sentences("run")[1].startswith("Validation did not pass: 25.0% of the held-out")
    assert TEXT.sentences("run")[1].endswith("it still finds 1 person.")
    passed = dataclasses.replace(TEXT, reached=True)
    assert "Validation passed: 25.0%" in passed.sentences("run")[1]
    assert "Nothing was validated" in IMAGE.sentences("run")[1]


def test_sentences_of_an_attack_compare_before_and_after():
    first, second, _ = ALL[3].sentences("a")  # type: ignore[attr-defined]
    assert "recognised 2 of 3 people (66.7%, with 95% confidence" in first and "25.0%" in first
    assert second == "Of 4 to be removed it knew 4 before the defense and 0 now."
    known = {"num": 4, "recognised": 1, "tpr": 0.25, "tpr_interval": (0.1, 0.7)}
    said = attack(groups={"removed": GROUP | {"known_before": known}}).sentences("a")
    assert said[1] == (
        "Of 4 to be removed it knew 4 before the defense and 0 now; of the 4 to be removed whom it "
        "knew before it still knows 1 (25.0%)."
    )
    said = attack([0, 4, 0, 0], num_strangers=4).sentences("a")
    assert said[1] == "Of 4 strangers it took 25.0% for known."


def test_json_goes_to_standard_output_alone_if_asked(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(cfg):
        logging.getLogger("jaxdefense.defense.merge").info("progress")
        return TEXT

    command = COMMANDS["merge"]
    monkeypatch.setattr("jaxdefense.defense.merge.merge", run)
    flags = ["merge", "--text", "t", "--image", "i", "--out", "o"]
    assert main([*flags, "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out) == as_json(TEXT) and "progress" in told.err
    assert main(flags) == 0
    assert capsys.readouterr().out.splitlines() == TEXT.sentences("o")
    assert command.read(flags[1:]).json is False


def test_every_command_has_the_flag():
    assert all(hasattr(command.kind(), "json") for command in COMMANDS.values())


def test_a_newer_result_is_refused_by_a_command(tmp_path, capsys):
    write_result(tmp_path / "run", TextDefenseSummary, MODEL, results.values(TEXT))
    write_json(tmp_path / "run/summary.json", as_json(TEXT) | {"schema": 9})
    (tmp_path / "run/metrics.jsonl").touch()
    code = main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "page.html")])
    assert_refused(capsys, code, "has the schema 9")
