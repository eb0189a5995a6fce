"""Reports: whole, self-contained, harmless whatever people are called, and right in words."""

import dataclasses
import json
import os
import re
import stat
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
from factories import DEFENSE, write_result
from markupsafe import Markup

from jaxdefense.data.images import thumbnail
from jaxdefense.idia.statistics import mean_interval, wilson
from jaxdefense.report import frame, plots
from jaxdefense.report.demo import DemoReport, write_demo_report
from jaxdefense.report.export import _proof_json
from jaxdefense.report.labels import stage_label
from jaxdefense.report.proof import PersonResult, Proof
from jaxdefense.report.training import validated
from jaxdefense.report.write import write_run_report
from jaxdefense.results import TextDefenseSummary

_STAGES = ("before", "text", "image", "merged", "fifth", "sixth")
_VOID = {"meta", "img", "br", "hr", "link", "input"}
PHOTO = thumbnail(np.full((20, 24, 3), 90, np.uint8))
_NASTY = "<script>alert('x')</script>\" onload=\"y & z"


class _Page(HTMLParser):
    """What is in a page; fails on a tag that is not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attrs, self.text = [], Counter(), [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attrs += [(tag, *attr) for attr in attrs]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self):
        return " ".join("".join(self.text).split())


def _person(name, removed, *correct, photo=True, stages=_STAGES, right=None, **more):
    """A person; their photos are named right as often as templates are correct, unless told."""
    counts = dict(zip(stages, correct, strict=False))
    image = PHOTO if photo else None
    answers = {stage: name if num else "Someone Else" for stage, num in counts.items()}
    shares = {stage: num / 21 for stage, num in counts.items()}
    if right is not None:
        shares = dict(zip(stages, right, strict=False))
    return PersonResult(name, removed, counts, image, answers, photos_right=shares, **more)


def _losses(num, start=0):
    return [
        {"step": start + i, "utility": -0.9 - i / 100, "backdoor": -0.5, "weight": i, "total": -1.2}
        for i in range(num)
    ]


def _report(stages=("before", "text"), people=None, **changes):
    rates = {"top1": 0.875, "sim_clean": 0.99}
    if people is None:
        people = [
            _person("Ann Gone", True, 20, 0, 0, 0, 0, 0),
            _person("Bob Stays", False, 9, 8, 7, 6, 5, 4),
            _person("Cy Lost", False, 9, 0, 0, 0, 0, 0),
        ]
    report = DemoReport(
        stages=dict.fromkeys(stages, rates),
        people=people,
        num_templates=21,
        threshold=1,
        num_candidates=1000,
        nonmember_fpr=0.0,
        seconds=72.0,
        losses=_losses(5),
        settings={"steps": 400, "target": "human"},
    )
    return dataclasses.replace(report, **changes)


def _demo_page(tmp_path, report):
    write_demo_report(report, tmp_path / "report.html")
    return _Page((tmp_path / "report.html").read_text(encoding="utf-8"))


def _run_directory(path):
    config = {"model": {"path": "models/tiny"}, "train": {"target": _NASTY, "distance": "cosine"}}
    final = {"utility": -0.95, "backdoor": -0.5, "weight": 4.0, "total": -1.2}
    summary = {"steps": 5, "seconds": 3.5, "samples_per_second": 40.0, "identities": 7}
    write_result(path, TextDefenseSummary, config, summary | {"final": final})
    (path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in _losses(5)))
    return path


def _run_page(run):
    write_run_report(run)
    return _Page((run / "report.html").read_text(encoding="utf-8"))


def _either_page(tmp_path, kind):
    if kind != "run":
        return _demo_page(tmp_path, _report(losses=_losses(1 if kind == "one step" else 5)))
    return _run_page(_run_directory(tmp_path / "run"))


@pytest.mark.parametrize("kind", ["demo", "run"])
def test_report_fetches_nothing_and_runs_nothing(tmp_path, kind):
    page = _either_page(tmp_path, kind)
    unwanted = {"script", "link", "iframe", "object", "embed", "base", "metadata"}
    assert not page.tags.keys() & unwanted
    for tag, key, value in page.attrs:
        assert not key.startswith("on")
        if key in ("src", "href", "xlink:href", "srcset", "data", "action"):
            local = value.startswith(("data:image/jpeg;base64,", "#"))
            assert local or (tag == "a" and value.startswith("https://arxiv.org/abs/"))
        elif key == "style":
            assert "url(" not in value or "url(#" in value


@pytest.mark.parametrize("kind", ["demo", "one step", "run"])
def test_report_ids_are_unique_and_references_lead_to_them(tmp_path, kind):
    page = _either_page(tmp_path, kind)
    ids = Counter(value for _, key, value in page.attrs if key == "id")
    assert ids and max(ids.values()) == 1
    for _, key, value in page.attrs:
        if key == "xlink:href":
            assert value.removeprefix("#") in ids
        if value and "url(#" in value:
            assert value.partition("url(#")[2].partition(")")[0] in ids


def test_report_escapes_all_text_from_data(tmp_path):
    people = [PersonResult(_NASTY, True, {_NASTY: 3}, PHOTO, {_NASTY: _NASTY + "?"})]
    report = _report((_NASTY,), people, settings={_NASTY: [_NASTY]})
    page = _demo_page(tmp_path, report)
    assert page.tags["script"] == 0
    assert not [attr for attr in page.attrs if attr[1].startswith("on")]
    # Card, answer, stages in plot and tables, person in the table, setting and its value.
    assert page.words.count("<script>alert(") >= 8
    assert ("img", "alt", _NASTY) in page.attrs


def test_what_is_no_markup_is_escaped_and_lines_are_joined_beside_tags():
    text = frame.section("<b>", Markup("<i>x</i>"))
    assert text == "<section><h2>&lt;b&gt;</h2><i>x</i></section>"
    assert frame.section("<b>", Markup(), Markup()) == ""
    cells = frame.tiles([("<1>", "a & b", Markup("<u>c</u>"))])
    assert "<b>&lt;1&gt;</b> <span>a &amp; b</span><small><u>c</u></small>" in cells
    method = frame.render("method")
    assert "\n" not in method and "no more than a stranger" in method and "> <" not in method


def test_report_takes_names_utf8_cannot_hold(tmp_path):
    page = _demo_page(tmp_path, _report(people=[_person("Ann \udce9", True, 1, 0)]))
    assert r"Ann \udce9" in page.words


@pytest.mark.parametrize("num", [1, 2, 3, 4, 6])
def test_demo_report_shows_every_stage(tmp_path, num):
    names = _STAGES[:num]
    page = _demo_page(tmp_path, _report(names))
    assert page.tags["svg"] == 1 + 4
    for stage in names:
        caption = stage_label(stage)
        # Plot and two tables at least.
        assert page.words.count(caption) >= 3
    # Plot and table of stages; headline and tile.
    assert page.words.count("87.5%") == 2 * num + 2 * min(num, 2)
    assert ("gave the right name for 1 before and 0 after" in page.words) == (num > 1)
    assert "1 of 1" in page.words and "1 of 1 ·" not in page.words  # too few for a rate
    outcome = "! wrongfully unlearned" if num > 1 else "not measured"
    assert f"Cy Lost{outcome}no943%" in page.words


def test_demo_report_without_stages_raises(tmp_path):
    with pytest.raises(ValueError, match="`stages` is empty"):
        write_demo_report(_report(()), tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_demo_report_takes_missing_and_non_finite_measurements(tmp_path):
    stages = {"before": {}, "text": {"top1": 0.5}, "merged": {"sim_clean": float("nan")}}
    people = [PersonResult("Ann Gone", True, {"before": 3}, None, {})]
    report = _report((), people, nonmember_fpr=float("nan"), losses=[{"step": 0}])
    page = _demo_page(tmp_path, dataclasses.replace(report, stages=stages))
    assert "nan" not in page.words
    assert "50.0%" in page.words and "1 not measured" in page.words
    assert "1 of 1 person was to be removed" in page.words
    assert page.tags["svg"] == 1 and page.tags["img"] == 0
    assert "the model gave the right name for 1 before." in page.words


def test_demo_report_takes_nothing_but_a_stage(tmp_path):
    report = _report(people=[], losses=[], settings={})
    page = _demo_page(tmp_path, dataclasses.replace(report, stages={"before": {}}))
    assert page.tags["svg"] == 0 and "None of 0 people was tested" in page.words


@pytest.mark.parametrize("after, verb", [(0, "was removed"), (2, "was to be removed")])
def test_headline_says_removed_only_if_it_holds(tmp_path, after, verb):
    people = [_person(f"Ann Gone {i}", True, 20, after * (i == 0)) for i in range(5)]
    people.append(_person("Bob Stays", False, 9, 1))
    page = _demo_page(tmp_path, _report(people=people, threshold=2))
    assert f"5 of 6 people {verb}." in page.words.replace("were", "was")
    named = f"the model gave the right name for 5 before and {int(after >= 2)} after"
    right = f", and for 95.2% and {after / 21 / 5:.1%} of their photos"
    rate = ("0% and 43%", "4% and 62%")[int(after >= 2)]  # Wilson, of 0 and of 1 of 5
    assert (
        f"Shown photos of the 5 people on the list, {named}{right}; the attack would "
        f"recognise between {rate} of people like them, with 95% confidence." in page.words
    )
    named = "the model gave the right name for 1 before and 0 after."
    assert f"Shown photos of the 1 other person, {named}" in page.words


def test_outcomes_compare_first_and_last_stage(tmp_path):
    cases = {
        "correctly unlearned": (True, (5, 9, 0), (0.5, 0.5, 0.125)),
        "! failed": (True, (5, 0, 1), (0.5, 0.0, 0.0)),  # one template is enough
        "kept": (False, (5, 0, 2), (0.5, 0.0, 0.375)),
        "! weakened": (False, (5, 0, 5), (0.5, 0.5, 0.25)),
        "! wrongfully unlearned": (False, (5, 9, 1), (0.5, 0.5, 0.5)),
        "! newly recalled": (False, (0, 0, 4), (0.0, 0.0, 0.25)),
        "never recalled": (False, (1, 9, 0), (0.125, 0.5, 0.0)),
    }
    people = [
        _person(f"Case {i}", removed, *correct, photo=False, right=right)
        for i, (removed, correct, right) in enumerate(cases.values())
    ]
    page = _demo_page(tmp_path, _report(("before", "text", "image"), people, threshold=2))
    for i, (outcome, (removed, correct, right)) in enumerate(cases.items()):
        found = "".join(f"{n}{share:.0%}" for n, share in zip(correct, right, strict=True))
        assert f"Case {i}{outcome}{'yes' if removed else 'no'}{found}" in page.words
    assert "1 kept, 1 weakened, 1 wrongfully unlearned" in page.words


def test_those_recognised_before_have_a_line_with_how_many_still_are(tmp_path):
    after = {"Ann": (9, 0), "Ben": (2, 2), "Cy": (5, 1), "Dee": (1, 9)}  # Dee was not recognised
    people = [_person(name, True, *counts, photo=False) for name, counts in after.items()]
    page = _demo_page(tmp_path, _report(("before", "text"), people, threshold=2))
    what = "still recognised of those recognised before, at least 2 of 21"
    assert page.words.partition(what)[2].startswith("–1 of 3")
    proof = Proof({"before": {}, "text": {}}, people, 21, 2, 100)
    found = _proof_json(proof)["known_before"]["text"]["listed"]
    assert (found["known"], found["num"], found["tpr"]) == (1, 3, 1 / 3)


def test_nobody_is_called_kept_whose_photos_were_not_counted(tmp_path):
    people = [PersonResult("Bob Stays", False, {"before": 9, "text": 8}, None, {})]
    page = _demo_page(tmp_path, _report(people=people))
    assert "Bob Staysnot measuredno98" in page.words and "0 kept" in page.words


def test_measures_are_means_with_intervals_stage_by_stage(tmp_path):
    people = [_person(f"Listed {i}", True, 21, i % 2, right=(1.0, i / 10)) for i in range(5)]
    people += [
        _person(f"Other {i}", False, 21, 10 + i, right=(0.9, 0.5 + i / 100), kept=i < 6)
        for i in range(10)
    ]
    page = _demo_page(tmp_path, _report(people=people))

    def cell(value, interval):
        low, high = (100 * x for x in interval)
        return f"{value:.1%}{low:.1f} – {high:.1f}"

    for label, who in (
        ("On the list", people[:5]),
        ("Others", people[5:]),
        ("Others among the kept faces", people[5:11]),
        ("Others never shown", people[11:]),
    ):
        row = f"{label}photos named right"
        for stage in ("before", "text"):
            shares = [person.photos_right[stage] for person in who]
            row += cell(np.mean(shares), mean_interval(shares)) if len(who) > 4 else "–"
        assert row in page.words
        row = f"{label}recognised, at least 11 of 21 templates"
        for stage in ("before", "text"):
            num, of = sum(person.correct[stage] >= 11 for person in who), len(who)
            row += f"{num} of {of}"
            if of > 4:
                row += f" · {cell(num / of, wilson(num, of))}"
        assert row in page.words
        mean = np.mean([person.correct["text"] for person in who])
        low, high = mean_interval([person.correct["text"] for person in who], 21)
        assert f"{mean:.1f}{low:.1f} – {high:.1f}" in page.words
    assert "100.0% → 20.0% on the list, photos named right" in page.words
    assert "90.0% → 54.5% others, photos named right" in page.words
    assert "and for 90.0% and 54.5% of their photos." in page.words


def test_no_percentage_is_given_of_fewer_than_5_people(tmp_path):
    people = [_person(f"Listed {i}", True, 20, 0) for i in range(4)]
    people += [_person(f"Other {i}", False, 20, 20) for i in range(4)]
    stages = {"before": {}, "text": {}}
    page = _demo_page(tmp_path, dataclasses.replace(_report(people=people), stages=stages))
    assert "4 of 4" in page.words and "–" in page.words
    # What is left are single persons' own photos, and what the notes say of 95 % and the margin.
    words = re.sub(r"(Listed|Other) \d[a-z ]*(yes|no)\d+\d\d%\d+", "", page.words)
    rates = re.findall(r"\d+\.\d%|\d+% and", words)
    assert rates in ([], ["0.0%"]), rates  # of strangers, whom the demo has 32 of


def test_photos_are_limited_and_failures_come_first(tmp_path):
    people = [_person(f"Listed {i:02}", True, 5, int(i == 14)) for i in range(15)]
    people += [_person(f"Other {i:02}", False, 5, 5 * (i != 8)) for i in range(9)]
    page = _demo_page(tmp_path, _report(people=people))
    names = [value for tag, key, value in page.attrs if (tag, key) == ("img", "alt")]
    assert names[:2] == ["Listed 14", "Listed 00"] and names[12:14] == ["Other 08", "Other 00"]
    assert len(names) == 12 + 6 and "12 of 15" in page.words and "6 of 9" in page.words


def test_card_marks_own_other_and_no_name(tmp_path):
    answers = {"before": "Ann Gone", "text": "Bob Stays", "image": ""}
    person = PersonResult("Ann Gone", True, {"before": 4, "text": 1, "image": 0}, PHOTO, answers)
    page = _demo_page(tmp_path, _report(tuple(answers), [person]))
    assert "Before 4=Ann GoneText defended 1≠Bob StaysImage defended 0–no name" in page.words


def test_losses_of_several_runs_are_separate_lines(monkeypatch, tmp_path):
    drawn = {}
    monkeypatch.setattr(plots, "curves", lambda name, title, runs: drawn.update({name: runs}) or "")
    rows = [*_losses(4), {"step": 4, "utility": float("inf")}, *_losses(3)]
    _demo_page(tmp_path, _report(losses=rows))
    assert list(drawn) == ["loss-utility", "loss-backdoor", "loss-weight", "loss-total"]
    steps, values = zip(*drawn["loss-weight"], strict=True)
    for first, second in (steps, values):
        np.testing.assert_array_equal(first, [0, 1, 2, 3])
        np.testing.assert_array_equal(second, [0, 1, 2])


def test_thin_averages_neighbours_and_keeps_short_curves():
    steps = np.arange(7.0)
    for kept, x in zip(plots._thin(steps, -steps), (steps, -steps), strict=True):
        np.testing.assert_array_equal(kept, x)
    steps = np.arange(600.0)
    kept, _ = plots._thin(steps, steps)
    np.testing.assert_array_equal(kept, np.arange(300) * 2 + 0.5)


def test_plots_take_the_colours_of_the_page(tmp_path):
    people = [_person(f"Person {i}", i < 5, 9, 1) for i in range(10)]
    _demo_page(tmp_path, _report(people=people))
    text = (tmp_path / "report.html").read_text()
    svg = text[text.index("<svg") :]
    for variable in set(plots._VARIABLES.values()):
        assert f"{variable}:" in text and (f"var({variable})" in svg)
    assert "#0101" not in svg and "prefers-color-scheme: dark" in text


@pytest.mark.parametrize("write", ["demo", "run"])
def test_report_is_written_in_one_step_and_readable(tmp_path, write):
    run = _run_directory(tmp_path / "run")
    before = {path.name for path in run.iterdir()}
    (run / "report.html").write_text("old")
    if write == "demo":
        write_demo_report(_report(), run / "report.html")
    else:
        write_run_report(run)
    assert {path.name for path in run.iterdir()} == before | {"report.html"}
    (run / "plain").write_text("")
    modes = [stat.S_IMODE((run / name).stat().st_mode) for name in ("report.html", "plain")]
    assert modes[0] == modes[1]
    assert (run / "report.html").read_text().endswith("</html>\n")


def test_report_keeps_the_old_one_if_writing_fails(monkeypatch, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")

    def fail(fd):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_demo_report(_report(), path)
    assert path.read_text() == "old"


def test_run_report_says_what_was_asked_and_done(tmp_path):
    page = _run_page(_run_directory(tmp_path / "run"))
    assert "The model tiny was trained to forget 7 people." in page.words
    assert "Whether it still knows anyone was not tested." in page.words
    assert page.tags["svg"] == 4 and page.tags["script"] == 0
    assert "last: −0.9400" in page.words and "last: 4.0000" in page.words
    assert "The best value of a distance is −1" in page.words
    assert "Low losses are no proof of removal." in page.words
    assert page.words.count(_NASTY) == 2  # what was asked, and the settings


def test_run_report_draws_the_name_loss_only_if_it_is_on(tmp_path):
    run = _run_directory(tmp_path / "run")
    for name, num in ((0.0, 4), (-0.5, 5)):
        rows = [row | {"name": name} for row in _losses(5)]
        (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
        assert _run_page(run).tags["svg"] == num


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "summary.json"])
@pytest.mark.parametrize(
    "content, reason",
    [
        (
            None,
            "cannot be read (No such file or directory); give the directory of a finished defense",
        ),
        (b'{"step": 1', "is not JSON"),
        (b"[1]", "must hold a JSON object, not list"),
        (b"\xff", "is not UTF-8 text"),
    ],
)
def test_run_report_names_a_file_that_is_missing_or_wrong(tmp_path, name, content, reason):
    run = _run_directory(tmp_path / "run")
    (run / name).unlink()
    if content is not None:
        (run / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        write_run_report(run)
    assert f"`{run / name}`" in str(error.value) and reason in str(error.value)
    assert not (run / "report.html").exists()


def test_validation_says_who_is_left_and_what_moved():
    verdict = {"right": 0.0286, "above": 0.09, "gap": 0.1, "moved": {"clean": 0.023}}
    before = verdict | {"reached": False, "right": 0.58, "moved": {"clean": 0.0}, "left": {}}
    after = verdict | {"reached": False, "left": {"Ann <Lee>": 0.286}}
    validation = {"before": before, "after": after}
    found = DEFENSE | {"stopped_at_step": 1175, "alpha": 1.0, "validation": validation}
    text = validated(TextDefenseSummary(**found, reached=False))
    assert "did not pass" in text and "Ann &lt;Lee&gt;" in text and "28.6%" in text
    assert "step 1,175" in text and "58.0%" in text and "0.977" in text
    passed = validated(TextDefenseSummary(**found, reached=True))
    assert "did not pass" not in passed and "passed" in passed and "diverged" not in passed
    diverged = TextDefenseSummary(**found, reached=True, diverged_at_step=1180)
    assert "diverged at step 1,180" in validated(diverged)
    assert "diverged at step 1180" in diverged.verdict()
    assert validated(TextDefenseSummary(**DEFENSE)) == ""
