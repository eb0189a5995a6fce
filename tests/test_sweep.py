"""Sweeps: which cells there are, who does them, going on with them, what their report says."""

import csv
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import (
    CAPTIONS,
    PAPER_IMAGE_FLAGS,
    PAPER_TEXT_FLAGS,
    write_faces,
    write_model_directory,
    write_photos,
    write_result,
)
from PIL import Image
from test_cli import assert_refused

from jaxdefense.cli import main
from jaxdefense.config import (
    CellsConfig,
    DefendBothConfig,
    ImagePart,
    ImagePartDataConfig,
    ModelConfig,
    SweepBothConfig,
    TextDataConfig,
    TextPart,
)
from jaxdefense.evals import embed
from jaxdefense.files import write_json
from jaxdefense.idia.statistics import measure, statistics
from jaxdefense.report import plots
from jaxdefense.report.sweep import _cells, _points, average, write_sweep_report
from jaxdefense.results import (
    AttackSummary,
    CellSummary,
    SweepSummary,
    UndefendedSummary,
)
from jaxdefense.run_directory import RunDirectory
from jaxdefense.sweep import results
from jaxdefense.sweep import run as sweeps
from jaxdefense.sweep.cells import (
    Cell,
    attack_config,
    cells,
    choose,
    defense_config,
    evaluate_config,
)

NAMES = ["Joe Cool", "Ada King", "Zoe", "Bo Ek"]
SMALL = ["train.num_clean=8", "train.num_poisoned=8", "train.steps=3", "train.save_every=3"]
SMALL += ["attack.num_candidates=9", "attack.num_photos=2", "sweep.seeds=(0,)"]
SMALL += ["sweep.num_identities=(1,4)", "sweep.w_weight=(0.01,)"]
PAPER = {
    tower: [setting for setting in flags if not setting.startswith("train.w_weight")]
    for tower, flags in (("text", PAPER_TEXT_FLAGS), ("image", PAPER_IMAGE_FLAGS))
}
# Each half has settings of its own; the cells and the attack are one.
SMALL_BOTH = [x.replace("sweep.w_weight=(0.01,)", "sweep.w_weight=(1,)") for x in SMALL]
SMALL_BOTH = [x for x in SMALL_BOTH if not x.startswith("train.")] + [
    f"{half}.{x}"
    for half, flags in PAPER.items()
    for x in (*flags, *(x for x in SMALL if x.startswith("train.")))
]
FLAGS = {
    "text": ["--names", "names.txt", "--captions", "captions.txt", "--faces", "faces"],
    "image": ["--faces", "faces", "--images", "images"],
}
FLAGS["both"] = [*FLAGS["text"], "--images", "images"]


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model_directory(tmp_path / "model")
    write_photos(tmp_path / "images", 9)
    write_faces(tmp_path / "faces", NAMES, 4)
    write_faces(tmp_path / "classes", ["bus", "cup", "dog", "hat", "key", "map"], 2)
    (tmp_path / "names.txt").write_text("Joe Cool\nAda King\tAda Noel\nZoe\nBo Ek\n")
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS) + "\n")
    return tmp_path


def sweep(tower, *settings, out="sweep", flags=()):
    every = [*SMALL, *PAPER[tower]] if tower != "both" else SMALL_BOTH
    sets = [x for setting in (*every, *settings) for x in ("--set", setting)]
    given = ["--model", "model", "--out", out, *FLAGS[tower], "--zeroshot", "classes"]
    return main(["sweep", tower, *given, *sets, *flags])


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def cell_directory(inputs, cell, out="sweep"):
    return inputs / out / "cells" / cell.name


def without_seconds(path):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows(path)]


def summary(cell, **values):
    """What a cell came to; a half where nothing else is given."""
    rates = dict.fromkeys((*results.RATES, *results.GROUPS, "seconds"), 0.5)
    given: dict = rates | {"tower": "text", "num_others": 3, "reached": None} | values
    return CellSummary(n=cell.num, seed=cell.seed, w_weight=cell.w_weight, **given)


@pytest.fixture
def no_training(monkeypatch):
    """Cells that are done at once; those that were."""
    done = []

    def run_cell(cfg, cell, directory, *_):
        done.append(cell)
        directory.open(cell)
        directory.finish(summary(cell))

    monkeypatch.setattr(sweeps, "_run_cell", run_cell)
    monkeypatch.setattr(sweeps, "_attack_before", lambda *_: done.append("before"))
    return done


# Which cells


def test_cells_are_all_combinations():
    found = cells(CellsConfig(num_identities=(1, 4), seeds=(3, 5, 6), w_weight=(0.0, 0.1)))
    assert len(found) == len(set(found)) == len({cell.name for cell in found}) == 12
    assert {(c.num, c.seed, c.w_weight) for c in found} == {
        (n, seed, w) for n in (1, 4) for seed in (3, 5, 6) for w in (0.0, 0.1)
    }


def test_people_of_a_seed_are_nested_and_of_another_seed_others():
    people = list(range(50))
    chosen = {
        (seed, n): choose(people, Cell(n, seed, 0.0)) for seed in (0, 1) for n in (1, 2, 8, 50)
    }
    for (seed, n), who in chosen.items():
        assert len(set(who)) == len(who) == n
        assert who == chosen[seed, 50][:n]
        assert who == choose(people, Cell(n, seed, 0.5))
    assert chosen[0, 8] != chosen[1, 8] and sorted(chosen[0, 50]) == people


def test_parts_are_disjoint_and_together_everything(inputs, no_training):
    many = ["sweep.seeds=(0,1,2)", "sweep.w_weight=(0,0.01)"]
    assert sweep("text", *many, out="whole") == 0
    whole, no_training[:] = list(no_training), []
    for part in ("3/4", "1/4", "2/4", "4/4"):
        assert sweep("text", *many, flags=["--part", part]) == 0
    assert len(no_training) == len(whole) == 13 and set(no_training) == set(whole)
    assert (inputs / "sweep/sweep.csv").read_text() == (inputs / "whole/sweep.csv").read_text()


def test_sweep_goes_on_with_more_cells(inputs, no_training):
    assert sweep("text") == 0
    before = list(no_training)
    assert sweep("text", "sweep.seeds=(0,1)", "sweep.num_identities=(2,4)") == 0
    assert no_training[len(before) :] == [
        "before",
        Cell(2, 0, 0.01),
        Cell(2, 1, 0.01),
        Cell(4, 1, 0.01),
    ]
    assert [(row["n"], row["seed"]) for row in rows(inputs / "sweep/sweep.csv")] == [
        *(("1", "0"), ("2", "0"), ("2", "1"), ("4", "0"), ("4", "1"))
    ]


def test_sweep_starts_beside_a_process_that_is_about_to(inputs, no_training):
    (inputs / "sweep").mkdir()
    (inputs / "sweep/.config.json.1234abcd.tmp").write_text("{")
    assert sweep("text") == 0 and len(no_training) == 3


HOLDER = """
import sys
import time
from pathlib import Path

from jaxdefense.run_directory import locked

with locked(Path(sys.argv[1]), lambda: sys.exit("held")):
    print("in", flush=True)
    time.sleep(600)
"""


def test_part_that_another_process_is_doing_is_refused_until_that_ends(inputs, no_training, capsys):
    assert sweep("text", flags=["--part", "1/2"]) == 0
    (lock,) = inputs.glob("sweep/.part*")
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    code = [sys.executable, "-c", HOLDER, str(lock)]
    other = subprocess.Popen(code, stdout=subprocess.PIPE, env=os.environ | path)
    with other:
        try:
            assert other.stdout and other.stdout.readline() == b"in\n"
            capsys.readouterr()
            refused = sweep("text", flags=["--part", "1/2"])
            assert_refused(capsys, refused, "sweep", "another process", "part 1/2", "--part")
            done = len(no_training)
            assert sweep("text", flags=["--part", "2/2"]) == 0 and len(no_training) == done + 1
        finally:
            other.kill()
    assert sweep("text", flags=["--part", "1/2"]) == 0


# What is refused


@pytest.mark.parametrize(
    "tower, setting, words",
    [
        ("text", "sweep.num_identities=(1,5)", ["num_identities", "5", "names.txt", "4 people"]),
        ("image", "sweep.num_identities=(1,5)", ["num_identities", "5", "faces", "4 people"]),
        ("text", "sweep.num_identities=()", ["sweep.num_identities"]),
        ("text", "sweep.seeds=(1,1)", ["sweep.seeds", "twice"]),
        ("text", "sweep.seeds=(-1,)", ["sweep.seeds", "-1"]),
        ("text", "sweep.part=5/4", ["sweep.part", "'5/4'"]),
        ("text", "sweep.part=0/4", ["sweep.part", "'0/4'"]),
        ("text", "train.seed=1", ["train.seed", "sweep.seeds"]),
        ("image", "train.w_weight=1.0", ["train.w_weight", "sweep.w_weight"]),
        ("both", "sweep.num_identities=(1,5)", ["num_identities", "5", "names.txt", "4 people"]),
        ("both", "image.train.seed=1", ["image.train.seed", "sweep.seeds"]),
        ("both", "image.data.names=names.txt", ["image.data.names", "same people"]),
        ("both", "text.data.tfds_dir=t", ["tfds_dir", "(=t)"]),
        ("both", "evaluate.clean_images=missing", ["missing"]),
        ("text", "attack.num_candidates=4", ["num_candidates"]),
        ("text", "attack.threshold=22", ["threshold", "21"]),
        ("text", "attack.faces=classes", ["no photos of"]),
        ("text", "evaluate.clean=missing.txt", ["missing.txt"]),
        ("text", "evaluate.zeroshot=missing", ["missing"]),
        ("text", "out=model/sweep", ["model directory"]),
    ],
)
def test_sweep_refuses(inputs, capsys, tower, setting, words):
    flags = ["--set", setting] if not setting.startswith(("attack.f", "evaluate", "out")) else []
    names = {"attack.faces": "--faces", "evaluate.clean": "--clean"}
    names |= {"evaluate.zeroshot": "--zeroshot", "out": "--out"}
    names |= {"evaluate.clean_images": "--clean-images"}
    key, _, value = setting.partition("=")
    assert_refused(capsys, sweep(tower, flags=flags or [names[key], value]), *words)
    assert not (inputs / "sweep").exists() and not (inputs / "model/sweep").exists()


def test_sweep_is_not_gone_on_with_other_settings_or_inputs(inputs, capsys, no_training):
    assert sweep("text") == 0
    capsys.readouterr()
    assert_refused(capsys, sweep("text", "train.steps=4"), "train.steps")
    assert_refused(capsys, sweep("text", "attack.threshold=2"), "attack.threshold")
    code = sweep("image", "train.level=penultimate", "train.backdoor=target")
    assert_refused(capsys, code, "`evaluate.zeroshot` is of embeddings", "(=penultimate)")
    (inputs / "captions.txt").write_text("\n".join(CAPTIONS[1:]) + "\n")
    assert_refused(capsys, sweep("text"), "trained_on_sha256")


# Cells as they are


def test_text_sweep_attacks_and_evaluates_every_cell(inputs, monkeypatch):
    embedded, in_cells, run_cell = [], [], sweeps._run_cell

    def embed_image(*args):
        embedded.append(1)
        return old(*args)

    def noted(*args):
        before = len(embedded)
        run_cell(*args)
        in_cells.append(len(embedded) - before)

    old = embed._embed_image
    monkeypatch.setattr(embed, "_embed_image", embed_image)
    monkeypatch.setattr(sweeps, "_run_cell", noted)
    assert sweep("text") == 0
    assert embedded and in_cells == [0, 0], "photos are embedded once, before all cells"
    one, all_four = rows(inputs / "sweep/sweep.csv")
    for row, cell in ((one, Cell(1, 0, 0.01)), (all_four, Cell(4, 0, 0.01))):
        directory = cell_directory(inputs, cell)
        listed = (directory / "names.txt").read_text().splitlines()
        removed = {line.split("\t")[0] for line in listed}
        attacked = rows(directory / "attack/results.csv")
        known = {person["name"]: int(person["known"]) for person in attacked}
        assert known.keys() == set(NAMES) and len(removed) == cell.num
        rate = np.mean([known[name] for name in removed])
        assert float(row["removed_tpr"]) == rate and float(row["removed_fnr"]) == 1 - rate
        others = [known[name] for name in known if name not in removed]
        assert row["others_tpr"] == ("" if not others else f"{np.mean(others)}")
        evaluated = json.loads((directory / "evaluation/summary.json").read_text())
        for group, who in (
            ("removed", [*removed]),
            ("others", [n for n in known if n not in removed]),
        ):
            people = [person for person in attacked if person["name"] in who]
            wanted = {
                "tpr_majority": [int(person["correct"]) >= 11 for person in people],
                "photos_right": [float(person["photos_right"]) for person in people],
                "mean_templates": [int(person["correct"]) for person in people],
            }
            for name, values in wanted.items():
                got = row[f"{group}_{name}"]
                assert got == "" if not values else float(got) == pytest.approx(np.mean(values))
        assert row["num_others"] == str(len(others))
        assert (row["num_namesakes"], row["namesakes_tpr"]) == ("0", "")
        assert (row["num_crossed"], row["crossed_tpr"], row["steps"]) == ("0", "", "3")
        for key in ("top1", "top5", "sim_clean"):
            assert float(row[key]) == evaluated[key]
        assert evaluated["sim_clean"] < 1, "the model attacked is the defended one"
        steps = (directory / "defense/metrics.jsonl").read_text().splitlines()
        assert len(steps) == 3
        assert not (directory / "defense/model").exists()
        assert not (directory / "defense/checkpoints").exists()
    found = json.loads((inputs / "sweep/sweep.json").read_text())
    assert found["before"]["num_identities"] == 4 and len(found["cells"]) == 2
    assert {"photos_right", "tpr_majority", "mean_templates"} <= found["before"].keys()
    texts = [*(inputs / ".cache/jaxdefense").glob("texts-*")]
    assert sum(file.stat().st_size for file in texts) < 60_000, "of the model as it is alone"
    # Nothing is done twice.
    monkeypatch.setattr(sweeps, "run_attack", lambda *_: pytest.fail("attacked again"))
    assert sweep("text") == 0


@pytest.mark.slow
def test_image_sweep_goes_on_after_a_stop_to_the_same_results(inputs, monkeypatch):
    keep = "sweep.keep_models=True"
    assert sweep("image", out="whole") == 0
    evaluate, calls = sweeps.run_evaluate, []

    def stopped(*args):
        calls.append(args[0].out)
        if len(calls) == 3:  # of the second cell, its attack behind it
            raise KeyboardInterrupt
        return evaluate(*args)

    monkeypatch.setattr(sweeps, "run_evaluate", stopped)
    assert sweep("image", keep) == 130
    assert len(rows(inputs / "sweep/sweep.csv")) == 1
    assert sweep("image", keep) == 0
    assert len(calls) == 4 and calls[2] == calls[3], "what was finished is not done again"
    whole = without_seconds(inputs / "whole/sweep.csv")
    assert without_seconds(inputs / "sweep/sweep.csv") == whole and len(whole) == 2
    trained = cell_directory(inputs, Cell(4, 0, 0.01)) / "defense"
    assert (trained / "model/model.safetensors").exists(), "kept, as asked"
    photos = json.loads((trained / "trained_on.json").read_text())
    assert photos.keys() == set(NAMES)
    attack = json.loads((trained.parent / "attack/summary.json").read_text())
    assert attack["photos_per_identity"] == {"min": 2, "max": 2}
    # Once models are not to be kept, those of finished cells go too.
    assert sweep("image") == 0 and not (trained / "model").exists()


def test_both_sweep_gives_each_encoder_its_own_weight_and_the_same_people(inputs):
    text = TextPart(TextDataConfig("names.txt", "c"))
    image = ImagePart(ImagePartDataConfig("faces", "i"))
    cfg = SweepBothConfig("sweep", ModelConfig("model"), text, image)
    assert {cell.w_weight for cell in cells(cfg.sweep)} == {0, 1}
    for factor in (0.0, 1.0, 0.5):
        found = defense_config(cfg, Cell(2, 3, factor), Path("cell"))
        assert isinstance(found, DefendBothConfig)
        for half, usual in zip(found.halves(), (text.train, image.train), strict=True):
            assert half.train.w_weight == factor * usual.w_weight and usual.w_weight
            assert half.train.seed == 3 and half.data.names == "cell/names.txt"
        assert found.text.train.target == "object"
    attack = attack_config(cfg, Path("cell"), True)
    assert (attack.model.path, attack.unseen_by) == ("cell/defense/model", "cell/defense")
    assert attack.faces == "faces"
    evaluation = evaluate_config(cfg, Path("cell"), True)
    assert (evaluation.captions, evaluation.images) == ("c", "i")
    assert evaluation.names == "cell/names.txt"


@pytest.mark.slow
def test_both_sweep_of_facescrub_attacks_whole_photos_of_no_face_trained_on(inputs, capsys):
    for i, (half, who) in enumerate((("actors", NAMES[:2]), ("actresses", NAMES[2:]))):
        for kind, size in (("faces", 17), ("images", 23)):
            write_faces(inputs / "fs" / half / kind, who, 4)
            for photo in sorted((inputs / "fs" / half / kind).rglob("*.png")):
                name, number = photo.parent.name, photo.stem
                stem = f"{name}_{number}" + f"_{number}{i}" * (kind == "faces")
                Image.open(photo).resize((size, size)).save(photo.with_name(f"{stem}.png"))
                photo.unlink()
    whole = ["--faces", "fs", "--attack.whole-photos"]
    assert sweep("both", flags=whole) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "8 whole photos skipped" in told
    one, all_four = rows(inputs / "sweep/sweep.csv")
    before = json.loads((inputs / "sweep/before/attack/summary.json").read_text())
    for row, cell in ((one, Cell(1, 0, 1.0)), (all_four, Cell(4, 0, 1.0))):
        assert row["tower"] == "both"
        directory = cell_directory(inputs, cell)
        evaluated = json.loads((directory / "evaluation/summary.json").read_text())
        for key in ("top1", "top5", "sim_clean", "image_sim_clean"):
            assert float(row[key]) == evaluated[key]
        after = json.loads((directory / "attack/summary.json").read_text())
        removed = (directory / "names.txt").read_text().splitlines()
        removed = {line.split("\t")[0] for line in removed}
        known = {x for x in removed if before["per_identity"][x]}
        assert row["removed_num_known"] == f"{len(known)}"
        still = [after["per_identity"][x] >= 1 for x in known]
        assert row["removed_known_tpr"] == (f"{np.mean(still)}" if known else "")
        assert not [*(directory / "defense").rglob("*.safetensors")]
    assert sweep("both", flags=whole) == 0  # finished
    assert main(["report", "sweep", "--out", "sweep.html"]) == 0
    assert "removing the names and faces of up to 4 people" in (inputs / "sweep.html").read_text()


# Results and report


# What the summary of an attack must hold besides.
ATTACK: dict[str, Any] = {
    **measure([1], [0.5], 2, 21), **statistics([1], [], 2, 21),
    "num_identities": 5, "num_candidates": 9, "num_templates": 21, "no_answer": 0, "majority": 11,
    "photos_per_identity": {"min": 1, "max": 2},
}  # fmt: skip


def write_cells(path, num=(1, 2, 64), seeds=(0, 1, 2), weights=(0.0, 0.001), known: int | None = 9):
    rng = np.random.default_rng(0)
    for cell in cells(CellsConfig(num_identities=num, seeds=seeds, w_weight=weights)):
        rates = (*results.RATES, *results.GROUPS)
        values: dict = {rate: float(rng.random()) for rate in rates} | {"num_others": 64 - cell.num}
        values |= {"removed_num_known": known, "others_num_known": known}
        values |= {"num_namesakes": 30, "num_crossed": 20}
        if cell.num == 64:
            values |= {key: None for key in values if key.startswith("others_")}
        directory = RunDirectory(path / "cells" / cell.name, CellSummary)
        directory.open(cell)
        directory.finish(summary(cell, **values, seconds=1.5))
    write_result(path, SweepSummary, {"out": "<i>x</i>", "model": {"path": "m"}}, None)
    before = {"tpr": 0.75, "fnr": 0.25, "num_identities": 64, "top1": 0.9, "top5": 1.0}
    before |= {"photos_right": 0.6}
    write_result(path / "before", UndefendedSummary, {}, before)
    results.write_results(path)
    return path


def test_namesakes_share_the_first_or_the_last_word():
    others = ["Ann King", "Joe Lee", "Joe", "Max Joe", "ada Noel king", "Lee Joe", "Una Ek"]
    others.append("joe X King")
    named, both = sweeps._namesakes(others, ["Ada King", "Joe Cool"])
    assert named == ["Ann King", "Joe Lee", "ada Noel king", "joe X King"]
    assert both == ["ada Noel king", "joe X King"]  # as one removed person, and as two
    # Of one word, nobody is a namesake.
    assert sweeps._namesakes(others, ["Zoe", "Ek"]) == ([], [])


def test_the_last_to_write_has_seen_every_cell(tmp_path, monkeypatch):
    path = write_cells(tmp_path, seeds=(0, 1))
    write_text, meanwhile = results.write_text, iter([2])

    def slow(file, text):  # another process finishes a cell while this one writes
        for seed in meanwhile:
            cell = Cell(2, seed, 0.0)
            directory = RunDirectory(path / "cells" / cell.name, CellSummary)
            directory.open(cell)
            directory.finish(summary(cell))
        write_text(file, text)

    monkeypatch.setattr(results, "write_text", slow)
    results.write_results(path)
    assert len(rows(path / "sweep.csv")) == 13
    assert len(json.loads((path / "sweep.json").read_text())["cells"]) == 13


def test_table_says_who_of_those_known_before_still_is(tmp_path):
    path = write_cells(tmp_path, num=(2,), seeds=(0,), weights=(0.0,), known=None)
    (directory,) = path.glob("cells/*")
    (directory / "names.txt").write_text("Ann\tAnna\nBen\n")
    result = {"threshold": 2} | ATTACK
    counts = {"Anna": 2, "Ben": 1, "Cy": 9, "Dee": 3, "Eve": 0}
    write_result(path / "before/attack", AttackSummary, {}, result | {"per_identity": counts})
    assert rows(path / "sweep.csv")[0]["removed_num_known"] == ""  # as the cell's is not there
    counts = {"Anna": 1, "Ben": 9, "Cy": 2, "Dee": 0, "Eve": 5}
    write_result(directory / "attack", AttackSummary, {}, result | {"per_identity": counts})
    results.write_results(path)
    (row,) = rows(path / "sweep.csv")
    assert (row["removed_num_known"], row["removed_known_tpr"]) == ("1", "0.0")  # Ann
    assert (row["others_num_known"], row["others_known_tpr"]) == ("2", "0.5")  # Cy, not Dee


def test_those_known_before_weigh_alike_whatever_their_seed():
    def known(seed, num, rate):
        return summary(Cell(40, seed, 0.0), removed_num_known=num, removed_known_tpr=rate)

    (point,) = average([known(0, 1, 1.0), known(1, 39, 0.0), known(2, 0, None)])
    assert point.mean["removed_known_tpr"] == pytest.approx(1 / 40)
    assert "2.5%" in _points([point])
    few = [known(0, 1, 1.0), known(1, 2, 0.5)]  # of 80 removed, 3 were known before
    assert "2 of 3" in _points(average(few))
    assert "1 of 1" in _cells(few) and "1 of 2" in _cells(few)
    assert average([known(0, 0, None)])[0].mean["removed_known_tpr"] is None


def test_report_draws_means_and_deviations_of_the_table(tmp_path, monkeypatch):
    path, drawn = write_cells(tmp_path), {}
    spreads = plots.spreads

    def noted(name, title, xlabel, lines, before, limits):
        # Both figures of people call their lines alike.
        lines = [dataclasses.replace(line, label=f"{name}: {line.label}") for line in lines]
        drawn[name] = lines, before
        return spreads(name, title, xlabel, lines, before, limits)

    monkeypatch.setattr(plots, "spreads", noted)
    write_sweep_report(path, tmp_path / "report.html")
    table = rows(path / "sweep.csv")
    labels = {
        "people: removed, w = {}": "removed_tpr",
        "people: others, w = {}": "others_tpr",
        "namesakes: namesakes of the removed, w = {}": "namesakes_tpr",
        "namesakes: first and last name of removed, w = {}": "crossed_tpr",
        "photos: removed, w = {}": "removed_photos_right",
        "photos: others, w = {}": "others_photos_right",
        "objects: top-1, w = {}": "top1",
        "objects: top-5, w = {}": "top5",
        "similarity: w = {}": "sim_clean",
        "similarity: photos, w = {}": "image_sim_clean",
    }
    found = {line.label: line for lines, _ in drawn.values() for line in lines}
    assert len(found) == 20
    for label, rate in labels.items():
        for weight in ("0", "0.001"):
            line = found[label.format(weight)]
            for n, mean, std in zip(line.xs, line.means, line.stds, strict=True):
                values = [
                    float(row[rate])
                    for row in table
                    if row["n"] == str(n) and float(row["w_weight"]) == float(weight)
                ]
                assert len(values) == 3
                centre = sum(values) / 3
                np.testing.assert_allclose(mean, centre)
                spread = np.sqrt(sum((value - centre) ** 2 for value in values) / 2)
                np.testing.assert_allclose(std, spread)
            assert list(line.xs) == ([1, 2] if rate.startswith("others_") else [1, 2, 64])
    assert {name: before for name, (_, before) in drawn.items()} == {
        "people": 0.75,
        "namesakes": 0.75,
        "photos": 0.6,
        "objects": 0.9,
        "similarity": None,
    }
    points = rows(tmp_path / "report.csv")
    assert len(points) == 6
    for point, written in zip(
        json.loads((tmp_path / "report.json").read_text())["points"], points, strict=True
    ):
        assert {k: "" if v is None else str(v) for k, v in point.items()} == written
    last = points[2]
    assert last["n"] == "64" and last["others_tpr_mean"] == last["others_tpr_std"] == ""


def test_report_command_takes_one_sweep_alone(tmp_path, capsys):
    path, out = write_cells(tmp_path), tmp_path / "new" / "report.html"
    results.write_results(path)
    assert main(["report", str(path), str(path / "cells"), "--out", str(out)]) == 2
    assert f"`{path}` is a sweep: give it alone" in " ".join(capsys.readouterr().err.split())
    assert not out.parent.exists()
    assert main(["report", str(path), "--out", str(out)]) == 0
    assert "Sweep over the number of people" in out.read_text()
    assert out.with_suffix(".csv").exists() and out.with_suffix(".json").exists()


def test_report_is_self_contained_and_escaped(tmp_path):
    path = write_cells(tmp_path)
    write_sweep_report(path, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page and "<i>x</i>" not in page and "&lt;i&gt;x&lt;/i&gt;" in page
    assert not re.findall(r'(?:src|xlink:href|href)="(?!#|https://arxiv.org/)', page)
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids)) and page.count("<svg") == 5


def test_report_gives_no_percentage_of_fewer_than_5_removed(tmp_path):
    path = write_cells(tmp_path)
    write_sweep_report(path, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    page = re.sub(r"<[^>]*>", " ", html)
    lines = [re.sub(r"<[^>]*>", " ", x).split() for x in re.findall(r"(?s)<tr>.*?</tr>", html)]
    means = {(p["n"], p["w_weight"]): p for p in rows(tmp_path / "report.csv")}
    for n in ("1", "2", "64"):
        # Other points may have the same figure by chance.
        of_point = "  ".join(" ".join(x) for x in lines if x[:3] == [n, "0", "3"])
        assert of_point
        point = means[n, "0.0"]
        share = f"{float(point['removed_tpr_mean']):.1%} ±"
        assert (share in of_point) == (n != "1")
        share = f"{float(point['removed_photos_right_mean']):.1%} ±"
        assert (share in of_point) == (n != "1")
        assert f"{float(point['removed_mean_templates_mean']):.1f} ±" in page
    # Of one person a seed, three seeds: how many of the three.
    assert f"{round(3 * float(means['1', '0.0']['removed_tpr_mean']))} of 3" in page


def test_report_of_one_seed_without_classes_and_before(tmp_path):
    cell = Cell(2, 0, 0.0)
    directory = RunDirectory(tmp_path / "cells" / cell.name, CellSummary)
    directory.open(cell)
    values = dict.fromkeys((*results.RATES, *results.GROUPS)) | {"tower": "image"}
    rates = {"removed_tpr": 0.5, "removed_fnr": 0.5, "sim_clean": 0.75}
    directory.finish(summary(cell, **values | rates))
    write_json(tmp_path / "config.json", {})
    write_sweep_report(tmp_path, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert (
        page.count("<svg") == 2
        and "1 of 2" in page
        and "50.0%" not in page
        and "removing the faces of" in page
    )
    assert "±</" not in page and "nan" not in page


def test_report_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no finished cell"):
        write_sweep_report(tmp_path, tmp_path / "report.html")
    assert not [*tmp_path.iterdir()]
