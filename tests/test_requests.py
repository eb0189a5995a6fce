"""`bench requests`: requests served one after another, and what is told of them."""

import json

import pytest
from test_cli import assert_refused

from jaxdefense.bench.requests import FIGURES, _means, draw
from jaxdefense.cli import main


def row(mode, seed, requests, value):
    about = {"mode": mode, "seed": seed, "requests": requests, "seconds": 10 * value}
    return about | dict.fromkeys(FIGURES, value)


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--modes", "replay,again"], ["`modes` (=replay,again)", "replay, fresh, none"]),
        (["--seeds", "1,x"], ["`seeds` (=1,x)", "numbers"]),
        (["--each", "3"], ["`each` (=3)", "from 1 to 16"]),
        (["--requests", "0"], ["`requests` (=0)"]),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_drawn(tmp_path, capsys, flags, words):
    code = main(["bench", "requests", "--out", str(tmp_path / "out"), *flags])
    assert_refused(capsys, code, *words)
    assert not (tmp_path / "out").exists()


def test_figures_are_means_with_their_range(tmp_path):
    rows = [row("replay", 0, 1, 0.25), row("replay", 1, 1, 0.75), row("fresh", 0, 2, 0.5)]
    found = _means(rows)
    assert found["replay"]["1"]["top1"] == "0.500 (0.250 to 0.750)"
    assert found["fresh"]["2"] == dict.fromkeys(FIGURES, "0.500") | {"seconds": "5.000"}
    draw(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


@pytest.mark.slow
def test_requests_are_served_and_gone_on_with(tmp_path, capsys):
    out = tmp_path / "out"
    given = ["bench", "requests", "--out", str(out), "--people", "16", "--requests", "2"]
    given += ["--seeds", "0", "--json"]
    assert main(given) == 0
    found = json.loads(capsys.readouterr().out)
    assert {mode: list(points) for mode, points in found.items()} == (
        {"replay": ["1", "2"], "fresh": ["1", "2"], "none": ["1", "2"]}
    )
    rows = json.loads((out / "requests.json").read_text())
    for x in rows:
        assert x["removed_photos_right"] <= 0.1 and x["others_tpr"] >= 0.75, x
        assert x["kept_photos_right"] >= 0.85 and x["top1"] >= 0.75, x
    first = [x for x in rows if x["requests"] == 1]
    assert all({**x, "mode": ""} == {**first[0], "mode": ""} for x in first)
    ledger = json.loads((out / "seed-0/replay/002/ledger.json").read_text())
    assert [(x["how"], x["people"]) for x in ledger["runs"]] == [("first", 2), ("replay", 4)]
    # Once more: nothing is done again.
    assert main(given) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == found and "defended model" not in said.err
