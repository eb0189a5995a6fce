"""Collateral: who is looked at, and how far each moved, against plain loops."""

import csv
import json

import numpy as np
import pytest
from factories import write_model_directory

from jaxdefense.cli import main
from jaxdefense.config import ModelConfig
from jaxdefense.data.identities import Identity
from jaxdefense.data.names import census
from jaxdefense.evals.collateral import movements, namesakes, similar_names, summarise
from jaxdefense.evals.embed import Embedder

REMOVED = [Identity("Joe Cool", ("JC",)), Identity("Ada King"), Identity("Zoe")]
FAMOUS = ["Max Power", "Ida Noether"]


@pytest.fixture
def models(tmp_path):
    for seed in (0, 1):
        write_model_directory(tmp_path / f"model{seed}", seed=seed)
    return [Embedder(ModelConfig(str(tmp_path / f"model{i}")), 64) for i in (0, 1)]


def test_namesakes_share_one_name_and_are_nobody_removed():
    last, first = census("last"), {*census("female"), *census("male")}
    surnames = {*last}
    everyone = [Identity(f"Joe {name}") for name in last[:-2]] + [Identity("Ada King Lee")]
    for removed in (REMOVED, everyone):
        names = {who.name for who in removed}
        firsts, lasts = ({n.split()[i] for n in names if " " in n} for i in (0, -1))
        groups = namesakes(removed, 0)
        for name in groups["same first name"]:
            one, *rest = name.split()
            assert one in firsts and " ".join(rest) in surnames
        for name in groups["same last name"]:
            *rest, one = name.split()
            assert one in lasts and " ".join(rest) in first
        assert not names & {name for group in groups.values() for name in group}
    assert [len(group) for group in namesakes(REMOVED, 0).values()] == [8, 8]
    assert namesakes(REMOVED, 0) == namesakes(REMOVED, 0) != namesakes(REMOVED, 1)
    assert list(namesakes([Identity("Zoe")], 0).values()) == [[], []]


def test_similar_names_are_the_nearest_to_the_teacher(models):
    teacher = models[1]
    own = {"joe", "cool", "ada", "king", "zoe"}
    words = dict.fromkeys((*census("female"), *census("male"), *census("last")))
    words = [word for word in words if word.casefold() not in own]
    word_ME = teacher.texts([f"a photo of {word}" for word in words])
    want = set()
    for who in REMOVED:
        name_E = teacher.texts([f"a photo of {who.name}"])[0]
        want |= {
            words[i] for i in sorted(range(len(words)), key=lambda i: -word_ME[i] @ name_E)[:5]
        }
    assert set(similar_names(teacher, REMOVED)) == want


def test_collateral_matches_a_plain_loop(models):
    student, teacher = models
    found = summarise(movements(student, teacher, REMOVED, FAMOUS, 0))

    def cosine(name):
        text = f"a photo of {name}"
        return float(student.texts([text])[0] @ teacher.texts([text])[0])

    groups = found["groups"]
    assert list(groups) == [
        "same first name", "same last name", "similar", "named", "random", "removed",
    ]  # fmt: skip
    for group, names in (
        namesakes(REMOVED, 0) | {"named": FAMOUS, "removed": ["Joe Cool", "JC", "Ada King", "Zoe"]}
    ).items():
        got, want = groups[group], [cosine(name) for name in names]
        assert got["num"] == len(want)
        assert got["mean"] == pytest.approx(np.mean(want), abs=1e-5)
        assert got["least"] == pytest.approx(min(want), abs=1e-5)
    moved = found["most_moved"]
    assert len(moved) == 20 == len({x["name"] for x in moved})
    assert [x["cosine"] for x in moved] == sorted(x["cosine"] for x in moved)
    for x in moved:
        assert x["cosine"] == pytest.approx(cosine(x["name"]), abs=1e-5)
        assert x["group"] in groups and x["group"] != "removed"
    others = [groups[group]["least"] for group in groups if group != "removed"]
    assert moved[0]["cosine"] == min(others)


def test_nothing_moved_is_1(models):
    found = summarise(movements(models[0], models[0], REMOVED, FAMOUS, 0))
    assert all(x["mean"] == pytest.approx(1, abs=1e-6) for x in found["groups"].values())


@pytest.fixture
def inputs(tmp_path, models, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").write_text("Joe Cool\tJC\nAda King\nZoe\n")
    (tmp_path / "famous.txt").write_text("Max Power\nIda Noether\n")
    return tmp_path


EVALUATE = [
    "evaluate",
    "--model",
    "model0",
    "--teacher",
    "model1",
    "--out",
    "out",
    "--set",
    "batch=64",
]


def test_evaluate_writes_it_to_its_summary(inputs, models):
    assert main([*EVALUATE, "--names", "names.txt", "--collateral", "famous.txt"]) == 0
    got = json.loads((inputs / "out" / "summary.json").read_text())
    moved = movements(models[0], models[1], REMOVED, FAMOUS, 0)
    assert got == {
        "kind": "evaluation",
        "schema": 1,
        "collateral": summarise(moved),
        "model_sha256": models[0].directory.digest(),
        "teacher_sha256": models[1].directory.digest(),
        "dtype": "float32",
    }
    rows = list(csv.DictReader((inputs / "out" / "collateral.csv").read_text().splitlines()))
    assert [(row["name"], row["group"], float(row["cosine"])) for row in rows] == moved


@pytest.mark.parametrize(
    "text,flags,message",
    [
        ("Max Power\n", [], "`collateral` has an effect only with `names`"),
        ("Max Power\njoe  COOL\n", ["--names", "names.txt"], "`joe COOL` is to be removed"),
        ("jc\n", ["--names", "names.txt"], "`jc` is to be removed"),
        ("", ["--names", "names.txt"], "must hold names"),
        ("--\n", ["--names", "names.txt"], "has no letter or digit"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(inputs, capsys, text, flags, message):
    (inputs / "famous.txt").write_text(text)
    code = main([*EVALUATE, "--collateral", "famous.txt", *flags])
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1 and message in err
    assert not (inputs / "out").exists()
