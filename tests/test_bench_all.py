"""All benchmarks at once: what they find, what did not fit, and going on after a stop."""

import json
from types import SimpleNamespace

import pytest

from jaxdefense.bench import all as everything
from jaxdefense.bench.all import Part, bench_all
from jaxdefense.bench.attention import SHAPES
from jaxdefense.bench.config import AllConfig
from jaxdefense.bench.profile import operations
from jaxdefense.cli import main
from jaxdefense.commands import COMMANDS


def event(name, nanoseconds, op=None):
    return SimpleNamespace(
        name=name, duration_ns=nanoseconds, stats=[("hlo_op", op)] if op else [("other", 1)]
    )


def plane(name, *events):
    return SimpleNamespace(name=name, lines=[SimpleNamespace(events=list(events))])


def test_operations_of_one_name_count_together_and_loops_not_at_all():
    host = plane(
        "/host:CPU",
        event("dot.1", 10, "dot.1"),
        event("dot.2", 5, "dot.2"),
        event("copy.3.clone", 2, "copy.3.clone"),
        event("while.4", 100, "while.4"),
        event("wait", 50),
        event("region of dot.1", 50, "dot.1"),
    )
    found = operations(SimpleNamespace(planes=[plane("/host:metadata"), host]))
    assert found == {"dot": 15, "copy.3.clone": 2}
    # The kernels of a device have names of their own; what its host does is not its time.
    device = plane("/device:GPU:0", event("gemm_kernel", 7, "dot.9"), event("memcpy", 3))
    assert operations(SimpleNamespace(planes=[host, device])) == {"dot": 7}


@pytest.fixture
def parts(monkeypatch):
    """Benchmarks that take a second, fail, and take too long."""
    made = [
        Part("Attention", "attention --num 1 --rounds 1 --calls 1", 240),
        Part("Wrong", "scale nothing", 60),
        Part("Endless", "text --rounds 1000000", 1),
    ]
    monkeypatch.setattr(everything, "REHEARSAL", made)
    return made


def test_figures_stay_and_what_is_missing_is_named(tmp_path, parts, monkeypatch):
    out = tmp_path / "out"
    found = bench_all(str(out), 10, True)
    assert found["Attention"].endswith(" s") and found["platform"] == "cpu"
    assert found["Wrong"] == "exit code 2, see log.txt"
    assert found["Endless"] == "not done within 1 s"
    assert "AXIS" in (out / "log.txt").read_text() or "axis" in (out / "log.txt").read_text()
    told = json.loads((out / "figures.json").read_text())["parts"]
    assert set(SHAPES) <= told["Attention"]["figures"].keys()
    page = (out / "index.html").read_text()
    assert "<script" not in page
    for text in ("photos, ViT-L/14", "not done within 1 s", "jaxdefense bench scale nothing"):
        assert text in page

    # What is there is not measured again; the time is over for the rest.
    monkeypatch.setattr(everything, "_LEAST", 10_000.0)
    again = bench_all(str(out), 1, True)
    assert again["Attention"] == found["Attention"]
    assert again["Wrong"] == again["Endless"] == "no time was left"
    assert json.loads((out / "figures.json").read_text())["parts"]["Attention"] == told["Attention"]


def test_figures_of_another_machine_are_not_added_to(tmp_path, parts, capsys):
    about = {"machine": {"device": "8 x TPU"}, "parts": {}}
    (tmp_path / "figures.json").write_text(json.dumps(about))
    assert main(["bench", "all", "--out", str(tmp_path), "--rehearse"]) == 2
    assert "of another machine" in capsys.readouterr().err
    assert json.loads((tmp_path / "figures.json").read_text()) == about
    assert main(["bench", "all", "--out", str(tmp_path), "--minutes", "0"]) == 2
    assert "must be above 0" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["ACCELERATOR", "PROCESSOR", "REHEARSAL"])
def test_commands_are_what_the_program_takes(kind):
    parts = getattr(everything, kind)
    assert len({part.name for part in parts}) == len(parts)
    for part in parts:
        words = part.command.split()
        out = ["--out", "x"] if words[0] == "profile" else []
        COMMANDS[f"bench {words[0]}"].read([*words[1:], *out])
    assert AllConfig("x").minutes <= 9


@pytest.mark.slow
def test_rehearsal_runs_all(tmp_path):
    found = bench_all(str(tmp_path / "out"), 60, True)
    assert all(found[part.name].endswith(" s") for part in everything.REHEARSAL), found
    traces = {file.parts[-5] for file in (tmp_path / "out" / "traces").rglob("*.xplane.pb")}
    assert traces == {"text", "image", "prompts"}
