"""The page of a proof: every figure at its place, whole when printed, harmless."""

import copy
import functools
import json
import math
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from test_report import _Page

from jaxdefense.figures import percent
from jaxdefense.proof.found import mean_of
from jaxdefense.report import plots
from jaxdefense.report.proof_labels import PARTS, figure_label, group_label
from jaxdefense.report.proof_page import proof_page, write_proof_page
from jaxdefense.results import Mean, ProofPart, ProofSummary, as_json, from_json

SETTINGS = {
    "out": "proof",
    "model": {"path": "defended", "dtype": "float32"},
    "parts": ["known", "after"],
    "labels": "",
    "num_search": 100_000,
}
NASTY = [
    "<script>alert('x')</script>",
    '" onload="y & z',
    "\u05e0\u05d5\u05e2\u05d4 \u05dc\u05d5\u05d9",
]
STAYING = ("kept", "never shown")
MODELS = ("before", "defended", "retrained")
MODEL_LABELS = {"before": "Before", "defended": "Defended", "retrained": "Retrained"}


class Drawn:
    """Figures and people of a proof, drawn from a seed."""

    def __init__(self, num, num_strangers, reference, strangers):
        self.rng = np.random.default_rng(0)
        self.nums = {"removed": num, "kept": 9, "never shown": 17}
        if strangers:
            self.nums["strangers"] = num_strangers
        self.models = MODELS if reference else MODELS[:2]

    def mean(self, level, num, rate=False) -> Mean:
        value_N = self.rng.beta(8 * level + 0.2, 8 * (1 - level) + 0.2, num)
        return mean_of(np.round(value_N) if rate else value_N, rate)

    def level(self, group, model):
        known = group in STAYING or (group == "removed" and model == "before")
        return 0.95 if known else 0.03

    def groups(self, model, rate=False, level=None):
        return {
            group: self.mean(self.level(group, model) if level is None else level, num, rate)
            for group, num in reversed(self.nums.items())  # the page puts them in order
        }

    def figures(self, *names, rates=(), level=None):
        return {
            name: {model: self.groups(model, name in rates, level) for model in self.models}
            for name in names
        }

    def curve(self, unit, at, models):
        return {
            "unit": unit,
            "models": {
                model: [{"at": float(x), "groups": self.groups(model)} for x in at]
                for model in models
            },
        }

    def curves(self, unit, at, models=("defended",)):
        return {name: self.curve(unit, at, models) for name in ("photos_right", "recognised")}

    def people(self, names):
        def values(group, model):
            level = self.level(group, model)
            return {
                f"photos_right.{model}": float(
                    self.rng.beta(8 * level + 0.2, 8 * (1 - level) + 0.2)
                ),
                f"correct.{model}": float(self.rng.binomial(21, level)),
                f"percentile.{model}": float(self.rng.random()),
            }

        return {
            name: {k: v for model in self.models for k, v in values(group, model).items()}
            for group, some in names.items()
            for name in some
        }

    def everybody_else(self):
        def told(num, **groups):
            return {m: {k: self.mean(x, num) for k, x in groups.items()} for m in self.models}

        quarters = {"nearest quarter": 0.8, "2nd quarter": 0.85, "3rd quarter": 0.9}
        quarters |= {"furthest quarter": 0.92, "sharing a name": 0.85, "label: actor": 0.9}
        return {
            "image_retrieval_recall@1": told(500, captions=0.4),
            "text_retrieval_recall@5": told(400, photos=0.6),
            "acc1, 4 prompts": told(1000, photos=0.7),
            "acc1, 80 prompts": told(1000, photos=0.75),
            "mean_per_class_recall, 80 prompts": told(7, classes=0.74),
            "probe_acc1": told(1000, photos=0.8),
            "photos_right": told(6, **quarters),
            "cosine to before": {"defended": {"names, similar": self.mean(0.9, 8)}},
        }


def part(seconds, figures=None, curves=None, people=None, notes=()) -> ProofPart:
    return {
        "seconds": seconds, "figures": figures or {}, "curves": curves or {},
        "people": people or {}, "notes": list(notes),
    }  # fmt: skip


def proof(num=12, num_strangers=40, reference=True, strangers=True, odd=False, **changes):
    """A proof with all parts."""
    d = Drawn(num, num_strangers, reference, strangers)
    names = {
        group: [f"{group.title()} {chr(65 + i // 26)}{chr(97 + i % 26)}" for i in range(num)]
        for group, num in d.nums.items()
    }
    if odd:
        names["removed"][:3] = NASTY
    rates = ("recognised", "recognised_majority", "above", "below", "shares_word")
    known = d.figures(*rates[:2], "photos_right", "templates", rates=rates)
    if strangers:
        known |= d.figures("percentile", level=0.5) | d.figures(*rates[2:], rates=rates, level=0.03)
    steps, over = (0, 50, 100, 200), d.figures("start", "found", level=0.5)
    parts = {
        "others": part(9.5, d.everybody_else()),
        "known": part(12, known, people=d.people(names), notes=["Left out: `Some One`."]),
        "gallery": part(7, d.figures("rank1", "map", "one_shot", "five_shot", "probe", level=0.4)),
        "finetune": part(100, curves=d.curves("steps", steps)),
        "finetune_people": part(90, curves=d.curves("steps", steps)),
        "rounding": part(20, curves=d.curves("bits", (4, 8, 32), ("before", "defended"))),
        "merge": part(30, curves=d.curves("part of the original", (0, 0.25, 0.5, 0.75, 1))),
        "soft_prompts": part(300, over),
        "interpolation": part(80, d.figures("found", level=0.3)),
        "search": part(60, d.figures("nearer", "shares_word", level=0.5)),
        "pgd": part(70, curves={"photos_right": d.curve("of 255", (0, 2, 4, 8), d.models)}),
    }
    given: dict[str, Any] = {
        "verdict": [f"{num} on the list: `Ann Lee` was known.", "Of others `Ann Lee` was lost."],
        "not_tested": ["What other models know.", "Variants: `jaxdefense attack --variants all`."],
        "groups": names,
        "absent": ["Nora Nowhere", *(NASTY[:1] if odd else ())],
        "parts": parts,
        "date": "2025-03-01T10:20:30+00:00",
        "model_sha256": "a1" * 32,
        "teacher_sha256": "b2" * 32,
        "reference_sha256": "c3" * 32 if reference else "",
        "dtype": "float32",
    }
    return ProofSummary(**(given | changes))


KINDS = {
    "all": {},
    "no reference": {"reference": False},
    "no strangers": {"strangers": False},
    "few": {"num": 3},
    "odd": {"odd": True},
}


class _Tables(HTMLParser):
    """The cells of a page's tables: (section, heading, block, row, column) -> text."""

    def __init__(self, text):
        super().__init__()
        self.cells, self.rows = {}, []
        self.section = self.heading = self.block = ""
        self.head, self.row, self.into = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag in ("h2", "h3", "th", "td"):
            self.into = []
            self.scope = dict(attrs).get("scope")
        elif tag == "table":
            self.head, self.block = [], ""
        elif tag == "tr":
            self.row = []
        elif tag == "small" and self.into is not None:
            self.into.append("\n")

    def handle_data(self, data):
        if self.into is not None:
            self.into.append(data)

    def handle_endtag(self, tag):
        if tag in ("h2", "h3", "th", "td") and self.into is not None:
            text, self.into = "".join(self.into).strip(), None
            if tag == "h2":
                self.section, self.heading = text, ""
            elif tag == "h3":
                self.heading = text
            elif self.scope == "col":
                self.head.append(text)
            elif self.scope == "rowgroup":
                self.block = text.split("\n")[0]
            else:
                self.row.append(text)
        elif tag == "tr" and len(self.row) > 1:
            label = self.row[0].split("\n")[0]
            self.rows.append((self.section, self.heading, self.block, label))
            assert len(self.row) == len(self.head)
            for column, text in zip(self.head[1:], self.row[1:], strict=True):
                key = (self.section, self.heading, self.block, label, column)
                assert key not in self.cells
                self.cells[key] = text

    def of(self, section):
        return {key[1:]: text for key, text in self.cells.items() if key[0] == section}


@functools.cache
def page_of(kind):
    return proof_page(proof(**KINDS[kind]), SETTINGS)


def written(mean, figure):
    """How the page shows a mean, its interval below it."""
    if mean["num"] < 5:
        rate = figure in ("recognised", "recognised_majority", "above", "below", "shares_word")
        return f"{round(mean['mean'] * mean['num'])} of {mean['num']}" if rate else "–"
    low, high = mean["interval"]
    if figure == "cosine to before":
        return f"{mean['mean']:.2f}\n{low:.2f} to {high:.2f}"
    return f"{percent(mean['mean'])}\n{100 * low:.1f} – {100 * high:.1f}"


@pytest.mark.parametrize("kind", KINDS)
def test_page_shows_every_figure_at_its_place(kind):
    summary = proof(**KINDS[kind])
    tables, seen = _Tables(page_of(kind)), 0
    for name, found in summary.parts.items():
        cells = tables.of(PARTS[name].question)
        for figure, models in found["figures"].items():
            label = figure_label(figure)[0]
            for model, groups in models.items():
                for group, mean in groups.items():
                    at = ("", label, group_label(group), MODEL_LABELS[model])
                    assert cells[at].startswith(written(mean, figure)), at
                    seen += 1
        for figure, curve in found["curves"].items():
            heading = figure_label(figure)[0]
            for model, points in curve["models"].items():
                for point in points:
                    for group, mean in point["groups"].items():
                        at = (heading, MODEL_LABELS[model], f"{point['at']:g}", group_label(group))
                        assert cells[at].startswith(written(mean, figure)), at
                        seen += 1
    assert seen > 250


@pytest.mark.parametrize("kind", KINDS)
def test_page_is_well_formed_whole_and_without_scripts(kind):
    text = page_of(kind)
    page = _Page(text)
    assert not page.tags["script"] and not page.tags["details"] and not page.tags["img"]
    assert not [x for x in page.attrs if x[1].startswith("on") or x[1] == "src"]
    links = {value for _, key, value in page.attrs if key in ("href", "xlink:href")}
    assert {x for x in links if not x.startswith("#")} == {"https://arxiv.org/abs/2209.07341"}
    ids = [value for _, key, value in page.attrs if key == "id"]
    assert len(ids) == len(set(ids)) and {x[1:] for x in links if x[0] == "#"} <= set(ids)
    assert "#0101" not in text and page.tags["svg"] == 9
    assert "default-src 'none'" in text


def test_page_says_what_is_not_in_tables():
    summary = proof()
    page = _Page(page_of("all"))
    assert page.words.startswith("Proof of a removalProof of a removal12 on the list: Ann Lee was")
    for sentence in (*summary.verdict, *summary.not_tested, "Left out: `Some One`."):
        assert sentence.replace("`", "") in page.words
    assert page.tags["code"] == 3
    assert "1 person on the list, without photos: Nora Nowhere." in page.words
    for fact in (summary.date, "a1" * 32, "b2" * 32, "c3" * 32, "float32", "model.pathdefended"):
        assert fact in page.words
    assert "partsknown, afterlabels–num_search100000" in page.words
    assert "This took 12.0 s." in page.words and "All parts12 min 58 s" in page.words


def test_page_puts_parts_and_groups_in_order():
    tables = _Tables(page_of("all"))
    sections = list(dict.fromkeys(row[0] for row in tables.rows))
    assert sections[1:-1] == [part.question for part in PARTS.values()]
    rows = [row[3] for row in tables.rows if row[0] == PARTS["gallery"].question]
    assert rows == ["Removed", "Kept", "Never shown", "Strangers"] * 5


def test_groups_are_counted_as_what_they_are():
    text = proof_page(proof(parts={"others": proof().parts["others"]}), {})
    for label, num in (
        ("Captions", "500 captions"),
        ("Photos", "400 photos"),
        ("Classes", "7 classes"),
        ("Names, similar", "8 names"),
        ("Furthest quarter", "6 people"),
        ("Label: actor", "6 people"),
    ):
        assert f"<bdi>{label}</bdi><small>{num}</small>" in text


def test_missing_parts_and_empty_ones_leave_no_trace():
    summary = proof(parts={}, verdict=[], not_tested=[], absent=[])
    page = _Page(proof_page(summary, {}))
    assert page.tags["h2"] == 3 and page.tags["table"] == 1  # who, limits, digests
    assert all(name in page.words for name in summary.groups["removed"])
    summary = proof(parts={"known": part(0.5, notes=["Nothing to see."])})
    assert "Nothing to see.This took 0.5 s." in _Page(proof_page(summary, {})).words


def test_names_and_keys_that_nobody_expects_are_escaped():
    parts = {"known": copy.deepcopy(proof(odd=True).parts["known"])}
    mean = mean_of([0.25, 0.5, 0.75, 0.5, 0.125])
    parts["known"]["figures"][NASTY[0]] = {NASTY[0]: {NASTY[0]: mean, "removed": mean}}
    parts["known"]["people"][NASTY[0]] |= {NASTY[1]: 0.5, f"odd.{NASTY[0]}": 0.123456}
    curve = {"unit": NASTY[0], "models": {NASTY[0]: [{"at": 0.5, "groups": {NASTY[0]: mean}}]}}
    parts[NASTY[0]] = part(3, curves={NASTY[0]: curve}, notes=NASTY)
    settings = {NASTY[0]: NASTY[1]}
    text = proof_page(proof(odd=True, parts=parts, verdict=NASTY, not_tested=NASTY), settings)
    page = _Page(text)
    assert not page.tags["script"] and not [x for x in page.attrs if x[1].startswith("on")]
    assert "<script" not in text.lower() and page.words.count(NASTY[0]) > 10
    tables = _Tables(text)
    figures = tables.of(PARTS["known"].question)
    assert figures["", NASTY[0], NASTY[0], NASTY[0]].startswith("42.5%\n")
    assert figures["", NASTY[0], NASTY[0], "Before"] == "–"
    assert tables.of(NASTY[0])[NASTY[0], NASTY[0], "0.5", NASTY[0]].startswith("42.5%\n")
    assert "odd 0.123" in page.words and f"<bdi>{NASTY[2]}</bdi>" in text


def one(removed, strangers, num=20):
    """A proof with one figure: the removed and the strangers have these means."""
    models = {
        model: {
            "removed": {"mean": removed, "interval": (removed - 0.1, removed + 0.1), "num": num},
            "strangers": {
                "mean": strangers,
                "interval": (strangers - 0.1, strangers + 0.1),
                "num": 9,
            },
        }
        for model in MODELS
    }
    curve = {
        "unit": "steps",
        "models": {model: [{"at": 7, "groups": groups}] for model, groups in models.items()},
    }
    found: Any = part(1, {"photos_right": models}, {"photos_right": curve})
    return proof(parts={"known": found})


@pytest.mark.parametrize(
    "removed, strangers, num, mark",
    [
        (0.7, 0.5, 20, "above"),
        (0.3, 0.5, 20, "below"),
        (0.55, 0.5, 20, ""),
        (0.45, 0.5, 20, ""),
        (0.7, 0.5, 4, ""),
    ],
)
def test_defended_removed_outside_of_strangers_are_marked(removed, strangers, num, mark):
    text = proof_page(one(removed, strangers, num), {})
    found = {key[1:]: x.split("\n")[-1] for key, x in _Tables(text).cells.items() if "!" in x}
    heading = "Photos named right"
    wanted = [
        ("", "Photos named right", "Removed", "Defended"),
        (heading, "Defended", "7", "Removed"),
    ]
    assert found == {key: f"! {mark} strangers" for key in wanted if mark}


def test_no_percentage_of_fewer_than_five():
    cells = _Tables(page_of("few")).of(PARTS["known"].question)
    assert re.fullmatch(r"\d of 3", cells["", "Recognised", "Removed", "Before"])
    assert cells["", "Photos named right", "Removed", "Before"] == "–"
    assert "%" in cells["", "Photos named right", "Kept", "Before"]
    # Lines of the plot too: those of the removed are left out.
    drawn = re.findall(r'aria-label="([^"]*)"', page_of("few"))
    assert drawn and not [x for x in drawn if "removed" in x]
    assert all("removed" in x for x in re.findall(r'aria-label="([^"]*)"', page_of("all")))


def test_gain_over_strangers_is_their_difference():
    summary, tables = proof(), _Tables(page_of("all"))
    for name, model in (("soft_prompts", "before"), ("search", "defended")):
        for figure, models in summary.parts[name]["figures"].items():
            x, y = models[model]["removed"], models[model]["strangers"]
            where = ("", figure_label(figure)[0], "Removed minus strangers", MODEL_LABELS[model])
            found = tables.of(PARTS[name].question)[where].replace("−", "-")
            gain, low, high = map(float, re.findall(r"[+-][\d.]+", found))
            assert gain == pytest.approx(100 * (x["mean"] - y["mean"]), abs=0.06)
            # Of intervals that are alike on both sides, variances add.
            (a, b), (c, d) = x["interval"], y["interval"]
            if min(a, c) > 0 and max(b, d) < 1:
                half = 50 * math.hypot(b - a, d - c)
                assert (low, high) == pytest.approx((gain - half, gain + half), abs=0.2)
    found = tables.of(PARTS["pgd"].question)
    heading, block = "Photos named right", "Removed minus strangers"
    points = summary.parts["pgd"]["curves"]["photos_right"]["models"]["retrained"]
    for point in points:
        gain = point["groups"]["removed"]["mean"] - point["groups"]["strangers"]["mean"]
        text = found[heading, block, f"{point['at']:g}", "Retrained"].replace("−", "-")
        assert float(text.split("\n")[0]) == pytest.approx(100 * gain, abs=0.06)
    without = _Tables(page_of("no strangers")).of(PARTS["search"].question)
    where = ("", figure_label("nearer")[0], "Removed minus strangers", "Before")
    assert without[where] == "–"


def only_known(**kind):
    return proof(**kind, parts={"known": proof(**kind).parts["known"]})


def test_people_removed_stand_one_a_line_and_those_outside_first():
    summary = only_known()
    people = summary.parts["known"]["people"]
    near, far, *rest = summary.groups["removed"]
    for name in rest:
        people[name]["percentile.defended"] = 0.975  # not outside yet
    people[near]["percentile.defended"], people[far]["percentile.defended"] = 0.98, 0.02
    tables = _Tables(proof_page(summary, {}))
    rows = [row[3] for row in tables.rows if row[1] == "Each person removed"]
    assert sorted(rows) == sorted(summary.groups["removed"]) and {*rows[:2]} == {near, far}
    cells = tables.of(PARTS["known"].question)
    for name, mark in ((near, "! still close"), (far, "! pushed further"), (rest[0], None)):
        text = cells["Each person removed", "", name, "Defended"].split("\n")
        values = people[name]
        assert text[:3] == [
            percent(values["photos_right.defended"]),
            f"prompts {values['correct.defended']:.0f}",
            f"place {percent(values['percentile.defended'])}",
        ]
        assert text[3:] == ([mark] if mark else [])
        assert "!" not in cells["Each person removed", "", name, "Before"]


def test_others_who_changed_most_are_shown():
    summary = only_known()
    people = summary.parts["known"]["people"]
    others = [name for group in STAYING for name in summary.groups[group]]
    for i, name in enumerate(others):
        people[name] |= {"photos_right.before": 0.5, "photos_right.defended": 0.5}
        if i < 12:  # gains and losses in turn, the last are largest
            people[name]["photos_right.defended"] += (-1) ** i * (i + 1) / 100
    tables = _Tables(proof_page(summary, {}))
    heading = f"Others who changed most: 10 of {len(others)}"
    rows = [row[3] for row in tables.rows if row[1] == heading]
    assert rows == [others[i] for i in (11, 9, 7, 5, 3, 2, 4, 6, 8, 10)]
    assert "−12.0 points" in proof_page(summary, {}) and "+11.0 points" in proof_page(summary, {})


def test_people_of_everybody_else_show_their_likeness():
    values = {"similarity": -0.25, "photos_right.before": 0.75, "photos_right.defended": 0.5}
    text = proof_page(proof(parts={"others": part(1, people={"Kept Aa": values})}), {})
    cells = _Tables(text).of(PARTS["others"].question)
    assert cells["Others who changed most: 1 of 1", "", "Kept Aa", "Defended"] == "50.0%"
    assert "<small>−25.0 points, likeness −0.25</small>" in text
    assert "Share of their photos named right; how much their face is like" in text


def test_many_people_are_cut_with_a_word():
    summary = only_known(num=203)
    text = proof_page(summary, {})
    rows = [row for row in _Tables(text).rows if row[1].startswith("Each person removed")]
    assert len(rows) == 200 and "Each person removed; 3 more are in summary.json" in text


def test_page_is_the_same_each_time_and_after_json(tmp_path):
    summary = proof(odd=True)
    again = from_json(json.loads(json.dumps(as_json(summary))), ProofSummary, "it")
    assert proof_page(again, SETTINGS) == page_of("odd")
    summary = proof(parts={"known": summary.parts["known"]})
    text = proof_page(summary, SETTINGS)
    write_proof_page(summary, SETTINGS, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == text


def test_print_shows_everything():
    text = page_of("all")
    printed = text[text.index("@media print") :]
    for rule in ("details-content { content-visibility: visible", ".scroll { overflow: visible"):
        assert rule in printed
    assert "@media screen and (prefers-color-scheme: dark)" in text  # so paper is light


def test_labels_of_lines_do_not_overlap():
    moved = plots._apart([1.0, 98.0, 2.0, 99.0, 100.0, 1.5], 8)
    assert [sorted(moved).index(x) for x in moved] == [0, 3, 2, 4, 5, 1]
    assert np.diff(sorted(moved)).min() >= 8 and max(moved) <= 103
    assert plots._apart([10.0, 90.0], 8) == [10.0, 90.0]
