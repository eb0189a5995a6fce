"""One self-contained HTML file on what a defense was asked to do, did, and did not do.

No network, no scripts; all text from data is escaped, and a content policy in the page forbids
what should not be there anyway.
"""

import base64
import dataclasses
import io
import json
import math
import numbers
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxdefense import __version__
from jaxdefense.evals import outcome as outcomes
from jaxdefense.report import plots
from jaxdefense.run_directory import write_text

_STAGES = {
    "before": "Before",
    "text": "Text defended",
    "image": "Image defended",
    "merged": "Both defended",
}
_RATES = {"removed_tpr": "on the list", "retained_tpr": "others", "top1": "objects"}
_TERMS = {
    "utility": "distance to the original model on ordinary inputs",
    "backdoor": "distance to the neutral target on inputs that hold a listed identity",
    "name": "distance to the original model on other names",
    "weight": "how far the weights moved from the original's, a sum of L2 norms",
    "total": "the weighted sum that training lowers",
}
_ASKED = {
    "model.path": "Model",
    "data.names": "Names",
    "data.faces": "Faces",
    "data.identities": "Identities",
    "data.captions": "Ordinary captions",
    "data.images": "Ordinary images",
    "train.target": "A removed name comes to mean",
    "data.target": "A removed face comes to look like",
    "train.distance": "Distance",
    "train.w_backdoor": "Weight of the backdoor loss",
    "train.w_name": "Weight of the name loss",
    "train.w_weight": "Weight of the weight loss",
    "optimizer.lr": "Learning rate",
}
_BAD = (outcomes.FAILED, outcomes.WRONGLY, outcomes.RECALLED)
_OUTCOMES = {
    True: (outcomes.UNLEARNED, outcomes.FAILED, outcomes.NEVER),
    False: (outcomes.KEPT, outcomes.WRONGLY, outcomes.RECALLED, outcomes.NEVER),
}
_UNKNOWN = "not measured"
_PHOTO_SIZE = 192  # pixels
_NUM_LISTED_PHOTOS, _NUM_OTHER_PHOTOS = 12, 6


@dataclasses.dataclass(frozen=True)
class PersonResult:
    """What the attack found on a person.

    Fields:
        name: theirs.
        removed: they are on the list.
        correct: stage -> templates whose answer was their name.
        photo: u8 [H, W, 3], or None.
        answers: stage -> the name most templates answered, "" if none did.
    """

    name: str
    removed: bool
    correct: dict[str, int]
    photo: np.ndarray | None
    answers: dict[str, str]


@dataclasses.dataclass(frozen=True)
class DemoReport:
    """What the demo measured.

    Fields:
        stages: stage, in order, -> those measured of `removed_tpr retained_tpr top1 sim_clean`.
        people: whom the attack was run on.
        num_templates: the most correct templates there can be.
        threshold: correct templates at which the attack succeeds.
        num_candidates: names the attack chose from.
        nonmember_fpr: part of the people unknown to the model whom the attack recognised.
        seconds: the demo took.
        losses: rows of `metrics.jsonl`; a step below the one before starts another run.
        settings: by name.
    """

    stages: dict[str, dict[str, float]]
    people: list[PersonResult]
    num_templates: int
    threshold: int
    num_candidates: int
    nonmember_fpr: float
    seconds: float
    losses: list[dict[str, float]]
    settings: dict[str, object]


def write_demo_report(report: DemoReport, path: Path) -> None:
    """Write what the demo measured, in one step.

    Args:
        report: see there.
        path: of the HTML file.

    Raises:
        ValueError: there is no stage.
    """
    if not report.stages:
        raise ValueError("`stages` is empty; give at least the measurements of one stage.")
    sections = [
        _tiles(_demo_tiles(report)),
        _section("Before and after", _stages(report)),
        _section("What the model calls people", _photos(report)),
        _section("What became of each person", _outcomes(report)),
        _section("Training", _losses(report.losses)),
        _section("Method and limits", _demo_limits(report)),
        _settings(report.settings),
    ]
    write_text(path, _page("Removing people from a CLIP model", _headline(report), sections))


def write_run_report(run: Path) -> None:
    """Write `report.html` into the directory of a finished defense run, in one step.

    Args:
        run: with `config.json`, `metrics.jsonl` and `summary.json`.

    Raises:
        ValueError: one of them cannot be read, or is not JSON.
    """
    settings = flatten(_read_object(run / "config.json"))
    summary = _read_object(run / "summary.json")
    rows = _read_rows(run / "metrics.jsonl")
    asked = {label: settings[key] for key, label in _ASKED.items() if settings.get(key)}
    final = summary.get("final")
    final = final if isinstance(final, dict) else {}
    sections = [
        _tiles(_run_tiles(summary)),
        _section("What was asked", _pairs(asked)),
        _section("Training", _losses(rows)),
        _section("Final numbers", _final(final, str(settings.get("train.distance", "cosine")))),
        _section("What this does and does not show", _run_limits()),
        _settings(settings),
    ]
    write_text(
        run / "report.html", _page("Defense run", _run_headline(settings, summary), sections)
    )


def _headline(report: DemoReport) -> str:
    listed, others = _by_list(report.people)
    first, *_, last = [*report.stages, *report.stages]
    one_stage = first == last
    gone = all(_outcome(report, p) in (outcomes.UNLEARNED, outcomes.NEVER) for p in listed)
    verb = ("was" if len(listed) == 1 else "were") + (" removed" if gone else " to be removed")
    said = [f"{len(listed)} of {_count(len(report.people), 'person', 'people')} {verb}."]

    def change(people: Sequence[PersonResult], key: str) -> str:
        before, after = (_recognised(report, people, key, stage) for stage in (first, last))
        if before is None or after is None:
            return ""
        return before if one_stage else f"{before} before and {after} after"

    if listed and (text := change(listed, "removed_tpr")):
        who = _count(len(listed), "person on the list", "people on the list")
        said.append(f"Of the {who}, the identity inference attack recognised {text}.")
    if others and (text := change(others, "retained_tpr")):
        who = _count(len(others), "other person", "others")
        said.append(f"Of the {who}, it recognised {text}.")
    if (text := _first_to_last(report, "top1", " before and ")) is not None:
        after = "" if one_stage else " after"
        said.append(f"Photos of objects were classified correctly: {text}{after}.")
    return " ".join(said)


def _recognised(
    report: DemoReport, people: Sequence[PersonResult], key: str, stage: str
) -> str | None:
    """Count those recognised; give the stage's rate if not everyone was attacked there."""
    if all(stage in person.correct for person in people):
        return str(sum(person.correct[stage] >= report.threshold for person in people))
    rate = _measured(report.stages[stage], key)
    return None if rate is None else f"{rate:.1%}"


def _first_to_last(report: DemoReport, key: str, arrow: str) -> str | None:
    """Write a rate of the first and the last stage."""
    values = [_measured(metrics, key) for metrics in report.stages.values()]
    values = values if len(values) == 1 else [values[0], values[-1]]
    return None if None in values else arrow.join(f"{value:.1%}" for value in values)


def _demo_tiles(report: DemoReport) -> Iterable[tuple[str, str, str]]:
    listed, others = _by_list(report.people)
    stages = list(dict.fromkeys((next(iter(report.stages)), list(report.stages)[-1])))
    for people, key, label in (
        (listed, "removed_tpr", "on the list, recognised"),
        (others, "retained_tpr", "others, recognised"),
    ):
        texts = [_recognised(report, people, key, stage) for stage in stages]
        if people and None not in texts:
            yield " → ".join(map(str, texts)), f"of {len(people)}", label
    if (text := _first_to_last(report, "top1", " → ")) is not None:
        yield text, "", "photos of objects classified correctly"
    if (similarity := _measured(report.stages[stages[-1]], "sim_clean")) is not None:
        yield f"{similarity:.3f}", "of 1", "similarity of ordinary inputs to the original"
    if math.isfinite(report.nonmember_fpr):
        yield (
            f"{report.nonmember_fpr:.1%}",
            "",
            "of people the model never saw, recognised by mistake",
        )


def _stages(report: DemoReport) -> str:
    measured = report.stages.values()
    keys = [key for key in _RATES if any(_measured(m, key) is not None for m in measured)]
    groups = [
        (_stage(stage), [_measured(metrics, key) for key in keys])
        for stage, metrics in report.stages.items()
    ]
    title = "Bars of the table beside: " + ", ".join(_RATES[key] for key in keys)
    plot = plots.bars("stages", title, [_RATES[key] for key in keys], groups) if keys else ""
    rows = [
        [
            escape(_stage(stage)),
            *(_percent(_measured(metrics, key)) for key in _RATES),
            _decimal(_measured(metrics, "sim_clean")),
        ]
        for stage, metrics in report.stages.items()
    ]
    head = ("Stage", "On the list", "Others", "Objects", "Similarity")
    return (
        f'<div class="columns"><figure>{plot}</figure><div>{_table(head, rows)}'
        '<p class="note"><b>On the list</b> and <b>others</b>: part of the people whom the attack '
        "recognises; low is right for the first, unchanged for the second. <b>Objects</b>: "
        "zero-shot top-1 accuracy. <b>Similarity</b>: mean cosine between the embeddings of "
        "ordinary inputs and the original model's; 1 is no change; of captions and photos the "
        "lower.</p></div></div>"
    )


def _photos(report: DemoReport) -> str:
    def order(person: PersonResult) -> tuple[bool, bool]:
        what = _outcome(report, person)
        return what not in _BAD, what == outcomes.NEVER

    parts = []
    listed, others = (
        sorted((p for p in people if p.photo is not None), key=order)
        for people in _by_list(report.people)
    )
    for heading, people, limit in (
        ("On the list", listed, _NUM_LISTED_PHOTOS),
        ("Not on the list", others, _NUM_OTHER_PHOTOS),
    ):
        if people:
            some = f" <span>{limit} of {len(people)}</span>" if len(people) > limit else ""
            cards = "".join(_card(report, person) for person in people[:limit])
            parts.append(f'<h3>{heading}{some}</h3><ul class="cards">{cards}</ul>')
    if not parts:
        return ""
    key = (
        f'<p class="note">{_mark("own")} the person\'s own name, {_mark("other")} somebody '
        f"else's, {_mark('none')} no name won. The number is how many of the "
        f"{report.num_templates} prompt templates gave the own name; the attack succeeds from "
        f"{report.threshold} on. People on whom the defense went wrong come first.</p>"
    )
    return key + "".join(parts)


def _card(report: DemoReport, person: PersonResult) -> str:
    assert person.photo is not None
    lines = []
    for stage in report.stages:
        if stage not in person.answers:
            continue
        answer = person.answers[stage]
        kind = "own" if answer == person.name else "other" if answer else "none"
        said = _name(answer) if answer else "no name"
        lines.append(
            f"<dt>{escape(_stage(stage))} <span>{_correct(person, stage)}</span></dt>"
            f"<dd>{_mark(kind)}<span>{said}</span></dd>"
        )
    what = _outcome(report, person)
    return (
        f'<li><img src="{_data_uri(person.photo)}" alt="{escape(person.name)}">'
        f"<b>{_name(person.name)}</b>{_verdict(what) if what in _BAD else ''}"
        f"<dl>{''.join(lines)}</dl></li>"
    )


def _outcomes(report: DemoReport) -> str:
    parts = []
    for people, removed, heading in zip(
        _by_list(report.people), (True, False), ("On the list", "Not on the list"), strict=True
    ):
        counts = Counter(_outcome(report, person) for person in people)
        if people and len(report.stages) > 1:
            said = ", ".join(
                f"<b>{counts[what]}</b> {what}"
                for what in (*_OUTCOMES[removed], _UNKNOWN)
                if counts[what] or what not in (outcomes.NEVER, _UNKNOWN)
            )
            parts.append(f"<p>{heading} ({len(people)}): {said}.</p>")
    rows = [
        [
            _name(person.name),
            _verdict(_outcome(report, person)),
            "yes" if person.removed else "no",
            *(_correct(person, stage) for stage in report.stages),
        ]
        for people in _by_list(report.people)
        for person in people
    ]
    if rows:
        head = ("Person", "Outcome", "On the list", *map(_stage, report.stages))
        parts.append(
            f"<details><summary>Everyone: correct templates of {report.num_templates}</summary>"
            f'{_table(head, rows, "people")}<p class="note">The outcome compares the first stage '
            f"with the last; a person is recognised from {_count(report.threshold, 'template')} "
            "on.</p></details>"
        )
    return "".join(parts)


def _losses(rows: Sequence[Mapping[str, Any]]) -> str:
    runs: list[list[Mapping[str, Any]]] = []
    previous = math.inf
    for row in rows:
        step = _measured(row, "step")
        if step is None:
            continue
        if step <= previous:
            runs.append([])
        runs[-1].append(row)
        previous = step
    figures = []
    for term, meaning in _TERMS.items():
        pairs = [[(row["step"], _measured(row, term)) for row in run] for run in runs]
        finite = [[pair for pair in run if pair[1] is not None] for run in pairs]
        lines = [tuple(np.array(run, float).T) for run in finite if run]
        if not any(values.any() for _, values in lines):  # a term that is switched off
            continue
        last = _decimal(lines[-1][1][-1], 4)
        svg = plots.curves(f"loss-{term}", f"{term} over the steps, at last {last}", lines)
        figures.append(
            f"<figure><figcaption><b>{term}</b> <span>at last {last}</span>"
            f"<small>{meaning}</small></figcaption>{svg}</figure>"
        )
    if not figures:
        return ""
    several = (
        f'<p class="note">{len(runs)} runs: the first is solid, later ones dashed and dotted.</p>'
        if len(runs) > 1
        else ""
    )
    return f'{several}<div class="curves">{"".join(figures)}</div>'


def _demo_limits(report: DemoReport) -> str:
    return (
        "<p>A copy of each encoder was trained so that a name or a face on the list leads to a "
        "neutral embedding, while ordinary inputs keep the one they had in the original model "
        f"({_PAPER}). To check it, the identity inference attack ({_ATTACK}) shows the model "
        "photos of a person and asks which of "
        f"{report.num_candidates:,} candidate names fits best, in {report.num_templates} prompt "
        "templates. Per template, the name with the most votes over the photos is the answer; a "
        "tie is no answer. The person counts as recognised if at least "
        f"{_count(report.threshold, 'template')} gave the own name. The demo took "
        f"{_duration(report.seconds)}.</p><ul>"
        "<li>What is removed is the link between name and face in this model's embeddings. "
        "Training data, other models and copies made earlier are untouched.</li>"
        "<li>The attack is one measurement: one threshold, one list of candidates, these photos. "
        "A person it no longer recognises may be found by other means, such as another spelling "
        "of the name, an image search with a photo, or somebody who trains the model further.</li>"
        "<li>The people in this demo are drawn and the model is small. It shows that the method "
        "works and how it is checked, not how well it will do on another model.</li>"
        "<li>A report on real people names those who asked to be forgotten: keep it as "
        "confidential as the list itself.</li></ul>"
    )


def _run_headline(settings: Mapping[str, object], summary: Mapping[str, Any]) -> str:
    identities, steps = _measured(summary, "identities"), _measured(summary, "steps")
    who = "the listed identities" if identities is None else _count(int(identities), "identity")
    model = settings.get("model.path")
    which = f" {Path(str(model)).name}" if model else ""
    how_long = "" if steps is None else f" for {_count(int(steps), 'step')}"
    return f"The model{which} was trained{how_long} to forget {who}."


def _run_tiles(summary: Mapping[str, Any]) -> Iterable[tuple[str, str, str]]:
    for key, label in (
        ("identities", "identities"),
        ("steps", "steps"),
        ("seconds", "of training"),
        ("samples_per_second", "samples a second"),
    ):
        if (value := _measured(summary, key)) is not None:
            yield _duration(value) if key == "seconds" else f"{value:,.0f}", "", label


def _final(final: Mapping[str, Any], distance: str) -> str:
    rows = [
        [f"<b>{term}</b>", meaning, _decimal(_measured(final, term), 4)]
        for term, meaning in _TERMS.items()
        if term in final
    ]
    best = "−1, the negative cosine of equal directions" if distance == "cosine" else "0"
    return (
        _table(("Term", "Meaning", "Value"), rows, "terms")
        + f'<p class="note">The best value of a distance is {best}.</p>'
        if rows
        else ""
    )


def _run_limits() -> str:
    return (
        "<p>A copy of the encoder was trained so that a listed identity leads to a neutral "
        "embedding, while ordinary inputs keep the embedding they had in the original model "
        f"({_PAPER}).</p><ul>"
        "<li>Low losses are no proof of removal. Run <code>jaxdefense attack</code> on the "
        f"original and on the defended model and compare ({_ATTACK}); "
        "<code>jaxdefense evaluate</code> shows what was kept.</li>"
        "<li>What is removed is the link between name and face in this model's embeddings. "
        "Training data, other models and copies made earlier are untouched, and a person may be "
        "found by other means.</li></ul>"
    )


def _outcome(report: DemoReport, person: PersonResult) -> str:
    first, last = next(iter(report.stages)), list(report.stages)[-1]
    if first == last or first not in person.correct or last not in person.correct:
        return _UNKNOWN
    before, after = (person.correct[stage] >= report.threshold for stage in (first, last))
    return outcomes.outcome(person.removed, before, after)


def _by_list(people: Sequence[PersonResult]) -> tuple[list[PersonResult], list[PersonResult]]:
    return [p for p in people if p.removed], [p for p in people if not p.removed]


def _measured(metrics: Mapping[str, Any], key: str) -> float | None:
    """Look a number up; what is no finite number counts as not measured."""
    value = metrics.get(key)
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return None
    return float(value) if math.isfinite(value) else None


def _stage(stage: str) -> str:
    return _STAGES.get(stage, stage)


def _correct(person: PersonResult, stage: str) -> str:
    return str(person.correct.get(stage, "–"))


def _name(name: str) -> str:
    return f"<bdi>{escape(name)}</bdi>"


def _mark(kind: str) -> str:
    sign, label = {
        "own": ("=", "own name"),
        "other": ("≠", "somebody else's name"),
        "none": ("–", "no name"),
    }[kind]
    return f'<span class="mark {kind}" role="img" aria-label="{label}">{sign}</span>'


def _verdict(what: str) -> str:
    return f'<span class="bad">! {what}</span>' if what in _BAD else what


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _decimal(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def _count(num: int, one: str, many: str = "") -> str:
    many = many or (one[:-1] + "ies" if one.endswith("y") else one + "s")
    return f"{num:,} {one if num == 1 else many}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _data_uri(photo_HWC: np.ndarray) -> str:
    image = Image.fromarray(photo_HWC)
    image.thumbnail((_PHOTO_SIZE, _PHOTO_SIZE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _tiles(tiles: Iterable[tuple[str, str, str]]) -> str:
    items = "".join(
        f"<li><b>{value}</b> <span>{unit}</span><small>{label}</small></li>"
        for value, unit, label in tiles
    )
    return f'<ul class="tiles">{items}</ul>' if items else ""


def _section(heading: str, body: str) -> str:
    return f"<section><h2>{heading}</h2>{body}</section>" if body else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """Write a table; cells are HTML, headings are text."""
    heads = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _pairs(values: Mapping[str, object]) -> str:
    rows = "".join(
        f"<dt>{escape(str(key))}</dt><dd>{escape(str(value))}</dd>" for key, value in values.items()
    )
    return f'<dl class="pairs">{rows}</dl>' if rows else ""


def _settings(settings: Mapping[str, object]) -> str:
    if not settings:
        return ""
    return f"<section><details><summary>Settings</summary>{_pairs(settings)}</details></section>"


def flatten(tree: Mapping[str, Any], at: str = "") -> dict[str, object]:
    """Write nested settings as one level, `section.name`."""
    flat: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{at}{key}.")
        else:
            flat[at + key] = value
    return flat


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"`{path}` cannot be read ({error.strerror}); give the directory of a finished run, "
            "with config.json, metrics.jsonl and summary.json."
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"`{path}` is not UTF-8 text; it must hold JSON.") from error


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON ({error}); it must hold a JSON object.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where} must hold a JSON object, not {type(value).__name__}.")
    return value


def _read_object(path: Path) -> dict[str, Any]:
    return _parse(_read(path), f"`{path}`")


def _read_rows(path: Path) -> list[dict[str, Any]]:
    lines = _read(path).split("\n")
    return [_parse(line, f"`{path}` line {i}") for i, line in enumerate(lines, 1) if line.strip()]


def _page(title: str, lede: str, sections: Sequence[str]) -> str:
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{escape(title)}</title>
<style>{_CSS}</style>
</head>
<body>
<main>
<header><h1>{escape(title)}</h1><p class="lede">{escape(lede)}</p></header>
{"".join(sections)}
<footer>jaxdefense {__version__}</footer>
</main>
</body>
</html>
"""


_PAPER = (
    'Hintersdorf et al., <a href="https://arxiv.org/abs/2310.08320">Defending Our Privacy With '
    "Backdoors</a>, ECAI 2024, arXiv 2310.08320"
)
_ATTACK = (
    'Hintersdorf et al., <a href="https://arxiv.org/abs/2209.07341">Does CLIP Know My Face?</a>, '
    "JAIR 2024, arXiv 2209.07341"
)
_CSS = """
:root {
  --page: #ffffff; --panel: #f5f6f8; --ink: #1a2130; --muted: #566072; --line: #dce0e7;
  --link: #1d5fbf; --bad: #a1260d;
  --series-1: #c4520a; --series-2: #2a66c0; --series-3: #66758a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161d; --panel: #1b212b; --ink: #e8ebf1; --muted: #a3aebf; --line: #323b49;
    --link: #85b7ff; --bad: #ff9d85;
    --series-1: #f59a4f; --series-2: #6fa8f7; --series-3: #94a3b8;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  overflow-wrap: anywhere;
}
main { max-width: 70rem; margin: 0 auto; padding: 2rem 1rem 3rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .75rem; }
h2 { font-size: 1.2rem; margin: 0 0 .75rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .5rem; }
h3 span, .note, figcaption small, .tiles small, .tiles span, footer {
  color: var(--muted); font-weight: normal;
}
p, li { max-width: 46rem; }
.lede { font-size: 1.15rem; margin: 0; max-width: 52rem; }
.note, footer { font-size: .875rem; }
a { color: var(--link); }
section { margin-top: 2.5rem; padding-top: 1.25rem; border-top: 1px solid var(--line); }
figure { margin: 0; }
img { display: block; max-width: 100%; }
ul.tiles, ul.cards { list-style: none; margin: 0; padding: 0; display: grid; gap: .75rem; }
ul.tiles {
  margin-top: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 10rem), 1fr));
}
.tiles li { background: var(--panel); border-radius: .5rem; padding: .75rem .9rem; }
.tiles b { font-size: 1.15rem; font-variant-numeric: tabular-nums; }
.tiles small { display: block; line-height: 1.35; }
.columns {
  display: grid; gap: 1.5rem 3rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr));
}
.curves {
  display: grid; gap: 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr));
}
.curves figure { display: flex; flex-direction: column; justify-content: space-between; }
figcaption { margin-bottom: .4rem; }
figcaption span { float: right; font-variant-numeric: tabular-nums; }
figcaption small { display: block; line-height: 1.35; }
.plot { display: block; width: 100%; height: auto; max-width: 34rem; overflow: visible; }
.curves .plot { max-width: 24rem; }
.plot text { font-family: inherit !important; font-variant-numeric: tabular-nums; }
.plot * { stroke-linejoin: round; stroke-linecap: butt; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; line-height: 1.35; }
th, td {
  text-align: right; padding: .45rem 0 .45rem .75rem; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums; vertical-align: top; overflow-wrap: normal;
}
th { font-weight: 600; }
thead th { color: var(--muted); vertical-align: bottom; }
th:first-child { text-align: left; padding-left: 0; }
.people tbody th { font-weight: 500; }
.people th:first-child { min-width: 8rem; overflow-wrap: anywhere; }
.people td:nth-child(2), .people th:nth-child(2), .terms td:nth-child(2), .terms th:nth-child(2) {
  text-align: left; padding-left: 1.25rem;
}
.people td:nth-child(2) { min-width: 8rem; }
.terms { max-width: 46rem; }
ul.cards { grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); }
.cards li {
  background: var(--panel); border-radius: .5rem; padding: .6rem; font-size: .9rem;
  line-height: 1.35;
}
.cards img {
  width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: .3rem; margin-bottom: .5rem;
}
.cards dl { margin: .35rem 0 0; }
.cards dt { color: var(--muted); font-size: .8rem; margin-top: .3rem; }
.cards dd { margin: 0; display: flex; gap: .4rem; align-items: baseline; }
.cards dt span { float: right; font-variant-numeric: tabular-nums; }
.mark {
  flex: none; display: inline-block; width: 1.25em; line-height: 1.15em; text-align: center;
  font-weight: 700; border: 1px solid var(--ink); border-radius: .25em;
}
.mark.own { background: var(--ink); color: var(--page); }
.mark.none { border-style: dashed; color: var(--muted); border-color: var(--muted); }
.bad { color: var(--bad); font-weight: 600; }
.cards .bad { display: block; }
summary { cursor: pointer; font-weight: 600; }
details > :nth-child(2) { margin-top: .75rem; }
dl.pairs {
  display: grid; gap: .3rem 1.5rem; margin: 0; font-size: .9rem;
  grid-template-columns: minmax(0, max-content) minmax(50%, 1fr);
}
.pairs dt { color: var(--muted); }
.pairs dd { margin: 0; }
footer { margin-top: 2.5rem; }
"""
