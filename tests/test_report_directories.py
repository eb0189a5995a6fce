"""Reports on directories: every number as it was measured, wrong company refused, in a browser."""

import csv
import json
import re
import shutil
import subprocess
from collections import Counter
from html import escape
from pathlib import Path

import numpy as np
import pytest
from factories import (
    CAPTIONS,
    DEFENSE,
    PAPER_TEXT_FLAGS,
    write_faces,
    write_model_directory,
    write_result,
)
from test_cli import assert_refused
from test_report import _NASTY, PHOTO, _Page

from jaxdefense.cli import main
from jaxdefense.evals.collateral import Movement, summarise
from jaxdefense.idia.statistics import mean_interval, measure, statistics, wilson
from jaxdefense.report.embedding_map import make_map, principal_plane
from jaxdefense.report.write import write_report, write_run_report
from jaxdefense.results import (
    AttackSummary,
    BothDefenseSummary,
    EvaluationSummary,
    ImageDefenseSummary,
    TextDefenseSummary,
)

NAMES = [f"Person {chr(65 + i)}" for i in range(12)]
LISTED = NAMES[::3]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)


def run(path, encoder="text", names=LISTED, source="S", defended="D", **summary):
    data = {"captions": "c.txt"} if encoder == "text" else {"faces": "f", "images": "i"}
    config = {"model": {"path": "models/tiny"}, "data": data, "train": {"distance": "cosine"}}
    config["resolved"] = {"model_sha256": source}
    found = DEFENSE | {"identities": len(names), "names": [[name] for name in names]}
    found |= {"defended_sha256": defended} | summary
    if encoder == "text":
        write_result(path, TextDefenseSummary, config, found)
    else:
        write_result(path, ImageDefenseSummary, config, found | {"corrupt": {}})
    rows = [{"step": i, "utility": -0.9, "backdoor": -i / 3, "total": -1.0} for i in range(3)]
    (path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return path


def attack(path, correct, model="S", settings=None, **summary):
    config = {"faces": "f", "num_candidates": 50, "model": {"path": "m"}, **(settings or {})}
    found = {"threshold": 2, "num_templates": 21, "num_candidates": 50, "model_sha256": model}
    found |= {"per_identity": correct, "answers": {name: name for name in correct}}
    found["per_identity_photos_right"] = {name: num / 21 for name, num in correct.items()}
    numbers, shares = [*correct.values()], [num / 21 for num in correct.values()]
    found |= {**statistics(numbers, [], 2, 21), **measure(numbers, shares, 2, 21)}
    found |= {"photos_per_identity": {"min": 1, "max": 1}, "no_answer": 0, "majority": 11}
    found["num_identities"] = len(correct)
    return write_result(path, AttackSummary, config, found | summary)


def form(correct):
    """What an attack by a way round found."""
    return {"num_identities": len(correct), "skipped": [], "per_identity": correct}


def evaluation(path, model="D", teacher="S", **summary):
    digests = {"model_sha256": model, "teacher_sha256": teacher}
    return write_result(path, EvaluationSummary, {"teacher": "m"}, summary | digests)


def report(tmp_path, *runs):
    write_report(runs, tmp_path / "page" / "out.html")
    text = (tmp_path / "page" / "out.html").read_text()
    found = json.loads((tmp_path / "page" / "out.json").read_text())
    rows = list(csv.DictReader((tmp_path / "page" / "out.csv").read_text().splitlines()))
    return _Page(text), found, rows


def counts(seed, high=5):
    rng = np.random.default_rng(seed)
    return dict(zip(NAMES, rng.integers(0, high, len(NAMES)).tolist(), strict=True))


def outcome(listed, before, after):
    """What became of someone with so many correct templates, and as many of 21 photos right."""
    if listed:
        return "failed" if after else "correctly unlearned" if before else "never recalled"
    if before >= 2:
        kept = "kept" if 4 * after >= 3 * before else "weakened"
        return kept if after >= 2 else "wrongfully unlearned"
    return "newly recalled" if after >= 2 else "never recalled"


def test_numbers_are_those_of_the_inputs(tmp_path):
    before, after = counts(0, 8), counts(11, 4)
    last = dict(list(counts(2).items())[1:])  # one has no such form
    forms = {"last": form(last) | {"num_candidates": 31, "num_templates": 21}}
    answers = {name: NAMES[-1 - i] if i % 3 else "" for i, name in enumerate(NAMES)}
    strangers = {"num_strangers": 4, "fpr": 0.25, "fpr_interval": [0.0, 1.0], "auc": 0.625}
    moved = [("Una Ek", "random", -0.25), ("Ivo", "named", 0.5), ("Joe", "named", 0.75)]
    collateral = summarise([Movement(*x) for x in moved])
    page, found, rows = report(
        tmp_path,
        attack(tmp_path / "b", after, "D", answers=answers, variants=forms),
        evaluation(tmp_path / "e1", sim_clean=1.0, image_sim_clean=0.9375, collateral=collateral),
        attack(tmp_path / "a", before, **strangers),
        run(tmp_path / "r"),
        evaluation(tmp_path / "e2", top1=0.8125, teacher_top1=0.875),
    )
    what = {n: outcome(n in LISTED, before[n], after[n]) for n in NAMES}
    assert len(set(what.values())) == 7, what  # every outcome comes up
    # A line a person.
    assert [row["name"] for row in rows] == NAMES == [p["name"] for p in found["people"]]
    for row, person in zip(rows, found["people"], strict=True):
        name = row["name"]
        assert row["removed"] == str(int(name in LISTED)) and row["outcome"] == what[name]
        assert row["correct_before"] == str(before[name])
        assert row["correct_after"] == str(after[name])
        assert row["answer_before"] == name and row["answer_after"] == answers[name]
        assert row["last_before"] == "" and row["last_after"] == str(last.get(name, ""))
        assert person["outcome"] == what[name] and person["removed"] == (name in LISTED)
        assert person["correct"] == {"before": before[name], "after": after[name]}
        assert person["variants"] == ({"last": {"after": last[name]}} if name in last else {})
        listed = "yes" if name in LISTED else "no"
        fine = ("kept", "correctly unlearned", "never recalled")
        shares = [f"{num}{num / 21:.0%}" for num in (before[name], after[name])]
        bad = "! " * (what[name] not in fine)
        assert f"{name}{bad}{what[name]}{listed}{''.join(shares)}" in page.words
        assert float(row["photos_right_before"]) == before[name] / 21
        assert person["photos_right"] == {"before": before[name] / 21, "after": after[name] / 21}
    # In sum.
    for key, who in (("listed", LISTED), ("others", [n for n in NAMES if n not in LISTED])):
        tally = Counter(what[name] for name in who)
        assert {k: v for k, v in found["outcomes"][key].items() if v} == tally
        for out, num in tally.items():
            assert f"{num} {out}" in page.words
        for stage, correct in (("before", before), ("after", after)):
            known = sum(correct[name] >= 2 for name in who)
            low, high = wilson(known, len(who))
            got = found["tpr"][stage][key]
            assert got == {
                "known": known,
                "num": len(who),
                "tpr": known / len(who),
                "interval": [low, high],
            }
            text = f"{known} of {len(who)}"
            if len(who) > 4:  # of fewer no rate
                text += f" · {known / len(who):.1%}{100 * low:.1f} – {100 * high:.1f}"
            assert text in page.words
            shares = [correct[name] / 21 for name in who]
            measured = found["measures"][stage][key]
            want = measure([correct[name] for name in who], shares, 2, 21)
            assert measured == json.loads(json.dumps(want))
            if len(who) > 4:
                low, high = (100 * x for x in mean_interval(shares))
                assert f"{np.mean(shares):.1%}{low:.1f} – {high:.1f}" in page.words
            curve = [np.mean([correct[name] >= k for name in who]) for k in range(1, 22)]
            np.testing.assert_allclose(found["curve"][stage][key], curve)
        tried = [last[name] >= 2 for name in who if name in last]
        got = found["variants"]["last"]
        assert got["before"] == {}
        assert (got["after"][key]["known"], got["after"][key]["num"]) == (sum(tried), len(tried))
        rate = f" · {np.mean(tried):.1%}" if len(tried) > 4 else ""
        assert f"{sum(tried)} of {len(tried)}{rate}" in page.words
    assert "the last name alone; among 31 names" in page.words
    # The rest.
    assert found["attacks"]["before"]["strangers"] == strangers
    assert "1 of 4" in page.words and "0.625" in page.words
    assert found["utility"] == {
        "sim_clean": 1.0, "image_sim_clean": 0.9375, "top1": 0.8125, "teacher_top1": 0.875
    }  # fmt: skip
    assert "0.938" in page.words and "87.5%81.2%" in page.words
    assert found["collateral"] == collateral
    assert "compare with1−0.25−0.25" in page.words and "must stay20.620.50" in page.words
    assert "Una Ekrandom−0.25Ivonamed0.50Joenamed0.75" in page.words
    assert found["stages"] == {
        "before": {"top1": 0.875, "sim_clean": 1.0},
        "after": {"top1": 0.8125, "sim_clean": 0.9375},
    }
    assert [r["metrics"][2]["backdoor"] for r in found["runs"]] == [-2 / 3]
    for text in ("S", "D", "40.0", "2.5 s"):
        assert text in page.words
    known = sum(after[name] >= 2 for name in LISTED)
    assert f"people on the list, the model gave the right name for {known} " not in page.words
    assert f"before and {known} after. Shown photos of the 8 others" in found["headline"]
    assert found["headline"] in page.words


def test_ways_round_come_worst_first(tmp_path):
    nums = {"last": 1, "grey": 3, "first": 0, "swapped": 2}
    forms = {
        name: form({n: 2 * (i < num) for i, n in enumerate(LISTED)}) for name, num in nums.items()
    }
    page, found, _ = report(
        tmp_path,
        run(tmp_path / "r"),
        attack(tmp_path / "a", counts(0)),
        attack(tmp_path / "b", counts(1), "D", variants=forms),
    )
    assert list(found["variants"]) == ["grey", "swapped", "last", "first"]
    assert (
        "Of 4 ways round the defense that were tried, the best found 3 of 4." in found["headline"]
    )
    where = [page.words.index(f"{name}the ") for name in ("grey", "last", "first")]
    assert where == sorted(where)
    assert "misspelt" in " ".join(found["not_measured"])


def test_what_was_not_measured_is_named(tmp_path):
    _, found, rows = report(tmp_path, run(tmp_path / "r"))
    text = " ".join(found["not_measured"])
    for command in ("attack", "--captions", "--zeroshot", "--collateral"):
        assert command in text
    assert "--images" not in text  # of the text encoder alone
    assert rows == [{"name": name, "removed": "1"} for name in LISTED]
    assert found["headline"].endswith("Whether it still knows anyone was not tested.")
    shutil.rmtree(tmp_path / "page")
    after = {name: 3 for name in NAMES if name != "Person A"}
    settings = {"before": "earlier", "names": "n.txt"}
    page, found, rows = report(
        tmp_path,
        run(tmp_path / "r2"),
        attack(tmp_path / "b", after, "D", settings, removed=LISTED[1:]),
    )
    text = " ".join(found["not_measured"])
    assert "give `earlier` too" in text and "--strangers" in text and "kept none" in text
    assert "1 on the list of whom the attack had no photos: Person A." in text
    assert rows[-1]["outcome"] == "not tested: no photos" and rows[-1]["correct_after"] == ""
    assert rows[-1]["removed"] == ""  # nothing shows that they were
    assert "the 3 people on the list who could be tested (1 could not), the model" in page.words


def test_what_cannot_be_known_is_said(tmp_path):
    halves = [
        run(tmp_path / "t", defended="T"),
        run(tmp_path / "i", "image", ["Person A", "Nobody Else"], defended="I"),
    ]
    _, found, _ = report(
        tmp_path,
        *halves,
        attack(tmp_path / "a", counts(0)),
        attack(tmp_path / "b", counts(1), "M", {"num_photos": 3}),
    )
    text = " ".join(found["notes"])
    assert "is taken to be the defended model" in text
    assert "The lists differ: 4 people" in text and "--unseen-by" in text
    assert "differ in `num_photos`: None before, 3 after" in text
    assert [who[0] for who in found["listed"]] == [*LISTED, "Nobody Else"]
    shutil.rmtree(tmp_path / "page")
    old = run(tmp_path / "old", source="")
    model = {"model": {"path": str(old / "model")}}
    _, found, _ = report(tmp_path, old, attack(tmp_path / "c", counts(1), "", model))
    assert list(found["attacks"]) == ["after"] and "does not record" in " ".join(found["notes"])


def test_attacks_that_were_not_alike_are_said(tmp_path):
    photos = {name: "x" for name in NAMES}
    _, found, _ = report(
        tmp_path,
        run(tmp_path / "r"),
        attack(tmp_path / "a", counts(0), conditions={"seed": 0, "photos_sha256": photos}),
        attack(tmp_path / "b", counts(1), "D", conditions={
            "seed": 0, "photos_sha256": photos | {"Person C": "y"}
        }),
    )  # fmt: skip
    assert "made with other photos of `Person C`" in " ".join(found["notes"])


def test_results_that_do_not_count_photos_call_nobody_kept(tmp_path):
    paths = [attack(tmp_path / "a", counts(0)), attack(tmp_path / "b", counts(1), "D")]
    for path in paths:
        summary = json.loads((path / "summary.json").read_text())
        del summary["per_identity_photos_right"]
        (path / "summary.json").write_text(json.dumps(summary))
    _, found, rows = report(tmp_path, run(tmp_path / "r"), *paths)
    assert "photos is named right: attack again" in " ".join(found["not_measured"])
    both = [n for n in NAMES if n not in LISTED and min(counts(0)[n], counts(1)[n]) >= 2]
    assert both and {r["outcome"] for r in rows if r["name"] in both} == {"not measured"}
    assert found["measures"] == {"before": {}, "after": {}}


def test_a_defense_of_both_encoders_is_two_runs_and_their_merger(tmp_path):
    halves = {"text": DEFENSE, "image": DEFENSE | {"corrupt": {}}, "defended_sha256": "M"}
    both = write_result(tmp_path / "both", BothDefenseSummary, {}, halves)
    run(both / "text", defended="T")
    run(both / "image", "image", defended="I")
    after = attack(tmp_path / "b", counts(1), "M", {"unseen_by": "both"})
    page, found, _ = report(tmp_path, both, attack(tmp_path / "a", counts(0)), after)
    assert [x["encoder"] for x in found["runs"]] == ["text", "image"]
    assert found["merged_sha256"] == "M" and list(found["attacks"]) == ["before", "after"]
    assert len(found["notes"]) == 1 and "differ in `unseen_by`" in found["notes"][0]
    assert "last: −0.9000 · −0.9000" in page.words and "2 runs: the first is solid" in page.words


def test_an_attack_alone_and_two_that_tell_their_order(tmp_path):
    page, found, _ = report(tmp_path, attack(tmp_path / "a", counts(0)))
    assert list(found["attacks"]) == ["attacked"] and "is not known" in found["headline"]
    assert found["people"][0]["removed"] is None and page.words.count("not measured") >= 12
    shutil.rmtree(tmp_path / "page")
    settings = {"before": str(tmp_path / "a"), "names": "n.txt"}
    after = attack(tmp_path / "b", counts(1), "D", settings, removed=LISTED)
    _, found, rows = report(tmp_path, after, tmp_path / "a")
    assert list(found["attacks"]) == ["before", "after"]
    assert sum(row["removed"] == "1" for row in rows) == len(LISTED)


def test_people_are_matched_by_any_of_their_names(tmp_path):
    path = run(tmp_path / "r")
    summary = json.loads((path / "summary.json").read_text())
    summary["names"] = [["Joseph Cool", "person  a"], ["Person D"]]
    (path / "summary.json").write_text(json.dumps(summary))
    _, found, _ = report(tmp_path, path, attack(tmp_path / "a", counts(0)))
    assert [p["name"] for p in found["people"] if p["removed"]] == ["Person A", "Person D"]


def _wrong(tmp_path):
    """What is refused, with words of why."""
    good = run(tmp_path / "r")
    before, after = attack(tmp_path / "a", counts(0)), attack(tmp_path / "b", counts(1), "D")

    def other(name, *args, **kwargs):
        return attack(tmp_path / name, *args, **kwargs)

    unknown, part = tmp_path / "x", other("y", {"Ann": 3})
    unknown.mkdir()
    (unknown / "config.json").write_text('{"topology": "v5e"}')
    found = json.loads((part / "summary.json").read_text())
    del found["num_candidates"]
    (part / "summary.json").write_text(json.dumps(found))
    empty = tmp_path / "empty"
    empty.mkdir()
    broken = other("broken", counts(1), "D")
    np.savez(broken / "embeddings.npz", photo_IE=np.ones((2, 3)), name_IE=np.ones((2, 3)))
    kept = other("kept", counts(0))
    np.savez(kept / "embeddings.npz", photo_IE=np.ones((12, 3)), name_IE=np.ones((12, 3)))
    fewer = other("fewer", {"Person A": 3})
    half = write_result(tmp_path / "half", TextDefenseSummary, {}, None)
    return {
        "nothing there": ([empty], ["config.json` cannot be read"]),
        "not finished": ([half], ["summary.json` cannot be read", "finished"]),
        "neither": ([unknown], ["no defense, attack or"]),
        "no whole attack": ([part], ["y/summary.json`", "`num_candidates` is missing"]),
        "two after": ([good, after, other("b2", counts(1), "D")], ["both of the model after"]),
        "two before": ([good, before, other("a2", counts(1))], ["both of the model before"]),
        "the same twice": ([good, before, before], ["both of the model before"]),
        "another model": ([good, other("z", counts(1), "Z")], ["z` is of another model"]),
        "another defense": ([good, run(tmp_path / "i", "image", source="Q")], ["different models"]),
        "two of one encoder": ([good, run(tmp_path / "r2")], ["both defended the text encoder"]),
        "evaluation of another": (
            [good, evaluation(tmp_path / "e", model="Z", top1=1.0)],
            ["different defended models"],
        ),
        "measured twice": (
            [evaluation(tmp_path / "e1", top1=1.0), evaluation(tmp_path / "e2", top1=0.5)],
            ["both have `top1`"],
        ),
        "half of a defense": (
            [good, run(tmp_path / "i2", "image", defended="I"), other("b3", counts(1), "I")],
            ["is of the model of", "alone"],
        ),
        "which came first": ([before, after], ["may come in either order"]),
        "after, of the model before": (
            [good, other("c", counts(1), settings={"before": "a"})],
            ["says it was made after the defense"],
        ),
        "another threshold": (
            [good, before, other("d", counts(1), "D", threshold=3)],
            ["`threshold` 2", "3; the two attacks must be alike"],
        ),
        "other people": ([good, fewer, after], ["lacks `Person B`", "attack the same people"]),
        "another list": (
            [good, other("l", counts(1), "D", {"names": "n"}, removed=["Person A"])],
            ["used another list", "`Person D`"],
        ),
        "embeddings of others": ([good, kept, broken], ["is not of the 12 people"]),
        "model not recorded": ([good, other("n", counts(1), "")], ["cannot tell whether"]),
    }  # fmt: skip


def test_what_does_not_belong_together_is_refused(tmp_path, capsys):
    for runs, words in _wrong(tmp_path).values():
        code = main(["report", *map(str, runs), "--out", str(tmp_path / "page.html")])
        assert_refused(capsys, code, *words)
        assert not list(tmp_path.glob("page*"))


def test_files_are_not_written_over(tmp_path, capsys):
    run(tmp_path / "r")
    for out, words in (("r/config.html", ["config.json` exists"]), ("page", ["must end in .html"])):
        code = main(["report", str(tmp_path / "r"), "--out", str(tmp_path / out)])
        assert_refused(capsys, code, *words)
    assert not list(tmp_path.rglob("*.html"))


def test_a_run_alone_has_the_page_of_its_directory(tmp_path):
    path = run(tmp_path / "r")
    report(tmp_path, path)
    write_run_report(path)
    assert (path / "report.html").read_text() == (tmp_path / "page" / "out.html").read_text()


def test_all_text_is_escaped(tmp_path):
    people = {_NASTY: 5, "Bob": 5, "<b>Eve": 5}
    listed = [_NASTY, "<i>Absent"]
    made = run(tmp_path / "r <u>", names=listed)
    settings = {"names": _NASTY, "before": "a", "faces": _NASTY, "model": {"path": _NASTY}}
    collateral = {
        "groups": {_NASTY: {"mean": 0.5, "least": -0.25, "num": 7}},
        "most_moved": [{"name": _NASTY, "group": _NASTY, "cosine": -0.25}],
    }
    variants = {_NASTY: form(people)}
    before = attack(tmp_path / "a", people)
    after = attack(
        tmp_path / "b", dict.fromkeys(people, 0), "D", settings, removed=[_NASTY],
        answers=dict.fromkeys(people, _NASTY), variants=variants,
    )  # fmt: skip
    for path in (before, after):
        np.savez(path / "embeddings.npz", **dict.fromkeys(("photo_IE", "name_IE"), np.eye(3)))
        (path / "thumbnails").mkdir()
        (path / "thumbnails" / "00000.jpg").write_bytes(PHOTO)
    page, *_ = report(
        tmp_path, made, before, after, evaluation(tmp_path / "e", collateral=collateral)
    )
    assert not {"script", "i", "u"} & page.tags.keys() and ("img", "alt", _NASTY) in page.attrs
    assert not [attr for attr in page.attrs if attr[1].startswith("on")]
    assert page.words.count("<script>alert(") >= 10


# Map


@pytest.mark.parametrize("shape", [(30, 7), (5, 40), (3, 4)])
def test_plane_is_that_of_an_svd(shape):
    rng = np.random.default_rng(0)
    x_IE = rng.standard_normal(shape) * np.linspace(1, 3, shape[1]) + 5
    mean_E, axis_E2, share = principal_plane(x_IE)
    _, size, right = np.linalg.svd(x_IE - x_IE.mean(0), full_matrices=False)
    np.testing.assert_allclose(mean_E, x_IE.mean(0))
    for axis_E, want_E in zip(axis_E2.T, right, strict=False):
        want_E = want_E * np.sign(want_E[np.abs(want_E).argmax()])
        np.testing.assert_allclose(axis_E, want_E, atol=1e-6)
        assert axis_E[np.abs(axis_E).argmax()] > 0
    assert share == pytest.approx((size[:2] ** 2).sum() / (size**2).sum())


def test_map_lays_both_stages_on_the_plane_before(tmp_path):
    rng = np.random.default_rng(1)
    x = {stage: rng.standard_normal((14, 6)).astype(np.float16) for stage in "ab"}
    strangers = {"strangers": {"Una": 0, "Ivo": 0}}  # behind the others, and not on the map
    paths = [run(tmp_path / "r")]
    order = dict(reversed(counts(1).items()))  # another order of people after
    for stage, correct, model in (("a", counts(0), "S"), ("b", order, "D")):
        paths.append(attack(tmp_path / stage, correct, model, **strangers))
        np.savez(paths[-1] / "embeddings.npz", photo_IE=x["a"], name_IE=x[stage])
    page, found, _ = report(tmp_path, *paths)
    names = found["maps"]["People's names"]
    assert names["names"] == NAMES and "photos did not move" not in page.words
    before, after = x["a"][:12].astype(float), x["b"][11::-1].astype(float)
    _, _, right = np.linalg.svd(before - before.mean(0))
    axis = right[:2] * np.sign(right[[0, 1], np.abs(right[:2]).argmax(1)])[:, None]
    for key, points in (("before", before), ("after", after)):
        np.testing.assert_allclose(names[key], (points - before.mean(0)) @ axis.T, atol=1e-4)


def test_map_of_what_did_not_move_or_of_too_few():
    x = np.random.default_rng(0).standard_normal((4, 6))
    still = make_map(list("abcd"), [True] * 4, x, x + 1e-4)
    assert still and not still.moved
    assert make_map(["a", "b"], [True] * 2, x[:2], x[:2]) is None


# Many


def test_ten_thousand_people_fit_a_page(tmp_path):
    names = [f"Person Number {i}" for i in range(10_000)]
    correct = {name: 5 for name in names}
    paths = [run(tmp_path / "r", names=names[::4])]
    rng = np.random.default_rng(0)
    for stage, model in (("a", "S"), ("b", "D")):
        path = attack(tmp_path / stage, correct, model)
        x = rng.standard_normal((10_000, 8)).astype(np.float16)
        np.savez(path / "embeddings.npz", photo_IE=x, name_IE=x)
        (path / "thumbnails").mkdir()
        for i in range(40):
            (path / "thumbnails" / f"{i:05}.jpg").write_bytes(PHOTO)
        paths.append(path)
    page, found, rows = report(tmp_path, *paths)
    assert (tmp_path / "page" / "out.html").stat().st_size < 3e6
    assert len(rows) == len(found["people"]) == 10_000
    assert page.tags["img"] <= 12 + 6 and page.tags["tr"] < 1100 and page.tags["use"] < 2000
    assert "9,000 more are in the CSV file" in page.words and "and 1,500 more" in page.words
    assert "400 of 10000 people" in page.words


# The real thing


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model_directory(tmp_path / "model", text={"max_position_embeddings": 40})
    write_faces(tmp_path / "faces", ["Joe Cool", "Ada Noel", "Bo Ek", "Zoe Ray"], 3)
    write_faces(tmp_path / "strangers", ["Una Ek"], 2)
    (tmp_path / "names.txt").write_text("Joe Cool\nAda King\tAda Noel\n")
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS) + "\n")
    return tmp_path


def test_report_on_real_runs(world):
    defend = "defend text --model model --names names.txt --captions captions.txt --out text"
    sizes = " ".join(f"--set train.{x}=8" for x in ("num_clean", "num_poisoned", "steps"))
    sizes = " ".join([sizes, *(f"--set {x.replace(' ', '')}" for x in PAPER_TEXT_FLAGS)])
    attack = "attack --faces faces --strangers strangers --variants last --set num_candidates=30"
    for line in (
        f"{defend} {sizes}",
        f"{attack} --model model --out before",
        f"{attack} --model text/model --before before --names names.txt --out after",
        "evaluate --model text/model --teacher model --captions captions.txt --names names.txt "
        "--out evaluation",
        "report text before after evaluation --out report.html",
    ):
        assert main(line.split()) == 0
    found = json.loads((world / "report.json").read_text())
    after = json.loads((world / "after" / "summary.json").read_text())
    rows = list(csv.DictReader((world / "report.csv").read_text().splitlines()))
    direct = list(csv.DictReader((world / "after" / "results.csv").read_text().splitlines()))
    assert found["notes"] == [] and list(found["attacks"]) == ["before", "after"]
    for row, own in zip(rows, direct, strict=False):  # strangers come behind
        assert (row["name"], row["removed"]) == (own["name"], own["removed"])
        assert (row["outcome"], row["correct_after"]) == (own["outcome"], own["correct"])
        assert row["last_after"] == own["correct_last"]
    outcomes = Counter(found["outcomes"]["listed"]) + Counter(found["outcomes"]["others"])
    assert outcomes == {what: num for what, num in after["outcomes"].items() if num}
    assert set(found["maps"]) == {"People's photos", "People's names"}
    text = (world / "report.html").read_text()
    page = _Page(text)
    assert page.tags["img"] == 4 and "photos did not move" in page.words
    if not CHROMIUM:
        pytest.skip("needs a Chromium")
    text = text.replace("<details", "<details open")  # tables and settings too
    for width in (400, 1400):
        assert widths(world, text, width) == (width, width, [])
    # What would be wrong is seen.
    text = text.replace("<main>", '<main><img src="missing.png"><div style="width:2000px">x</div>')
    inner, _, errors = widths(world, text, 400)
    assert inner >= 2000 and errors


def widths(tmp_path: Path, page: str, width: int) -> tuple[int, int, list[str]]:
    """Open a page in a frame of a width: how wide it becomes, the frame, and console messages."""
    (tmp_path / "frame.html").write_text(
        f'<iframe id="f" width="{width}" height="600" style="border:0" scrolling="no" '
        f'srcdoc="{escape(page)}"></iframe><script>'
        "onload = () => { const d = document.getElementById('f').contentDocument.documentElement;"
        "document.title = `${d.scrollWidth} ${d.clientWidth}`; }</script>"
    )
    assert CHROMIUM
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "frame.html").as_uri()]
    done = subprocess.run([CHROMIUM, *flags], capture_output=True, text=True, timeout=120)
    inner, outer = re.findall(r"<title>(\d+) (\d+)</title>", done.stdout)[0]
    errors = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return int(inner), int(outer), errors
