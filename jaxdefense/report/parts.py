"""The sections of the pages, each made in one way from what was measured."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import numpy as np

from jaxdefense.evals import outcome as outcomes
from jaxdefense.evals.outcome import UNKNOWN
from jaxdefense.figures import count, decimal, measured, percent
from jaxdefense.idia.statistics import majority
from jaxdefense.report import plots
from jaxdefense.report.embedding_map import EmbeddingMap
from jaxdefense.report.frame import jpeg, name, table
from jaxdefense.report.proof import Found, PersonResult, Proof
from jaxdefense.results import Collateral, DefenseSummary, Measures

_STAGES = {
    "before": "Before",
    "after": "After",
    "text": "Text defended",
    "image": "Image defended",
    "merged": "Both defended",
    "attacked": "This model",
}
_SHORT = {True: "on the list", False: "others", None: "people"}
_COLOURS = {True: 0, False: 1, None: 2}
_TERMS = {
    "utility": "distance to the original model on ordinary inputs",
    "backdoor": "how near inputs that hold a listed identity come to it, above strangers; or, with "
    "a target, their distance to that",
    "name": "distance to the original model on other names",
    "keep": "distance to the original model on photos with other people's faces",
    "weight": "how far the weights moved from the original's, a sum of L2 norms",
    "total": "the weighted sum that training lowers",
}
_OUTCOMES = {
    True: (outcomes.UNLEARNED, outcomes.FAILED, outcomes.NEVER),
    False: (
        outcomes.KEPT,
        outcomes.WEAKENED,
        outcomes.WRONGLY,
        outcomes.RECALLED,
        outcomes.NEVER,
    ),
    None: (),
}
_VARIANTS = {
    "first": "the first name alone",
    "last": "the last name alone",
    "initials": "J. Smith for John Smith",
    "swapped": "Smith John for John Smith",
    "lower": "the name in small letters",
    "upper": "the name in capitals",
    "misspelt": "the name with one letter wrong",
    "alias": "other names the person goes by",
    "languages": "prompts in seven other languages",
    "sentence": "the prompts in longer sentences",
    "mirrored": "the photo mirrored",
    "blurred": "the photo blurred",
    "grey": "the photo without colours",
    "cropped": "the middle of the photo",
    "low_resolution": "the photo at a quarter of its resolution",
}
_UTILITY = {
    "sim_clean": ("Ordinary captions", "cosine to the original's embedding"),
    "sim_target": ("Captions with the neutral word", "cosine to the original's embedding"),
    "sim_backdoor": ("Captions with a removed name", "cosine to the same with the neutral word"),
    "image_sim_clean": ("Ordinary photos", "cosine to the original's embedding"),
    "image_sim_target": ("The average person", "cosine to the original's embedding"),
    "image_sim_backdoor": ("Photos of removed people", "cosine to the average person"),
    "top1": ("Objects, the best guess is right", "zero-shot top-1"),
    "top5": ("Objects, one of five guesses is right", "zero-shot top-5"),
}
_GROUPS = {
    "same first name": "share a first name with someone removed; made up",
    "same last name": "share a last name with someone removed; made up",
    "similar": "single names that the original model puts closest to a removed one",
    "named": "the people named as those who must stay",
    "random": "random names, to compare with",
    "removed": "the names removed: these are to move",
}
_NUM_LISTED_PHOTOS, _NUM_OTHER_PHOTOS = 12, 6
_MOST_ROWS, _MOST_POINTS = 1000, 400
LEAST_PEOPLE = 5  # of whom a percentage is given: of fewer it says nothing

PAPER = (
    'Hintersdorf et al., <a href="https://arxiv.org/abs/2310.08320">Defending Our Privacy With '
    "Backdoors</a>, ECAI 2024, arXiv 2310.08320"
)
ATTACK = (
    'Hintersdorf et al., <a href="https://arxiv.org/abs/2209.07341">Does CLIP Know My Face?</a>, '
    "JAIR 2024, arXiv 2209.07341"
)
METHOD = (
    "<p>A copy of each encoder was trained so that a name or a face on the list leads to its "
    "person no more than a stranger's does, or to a neutral embedding, while ordinary inputs, "
    f"other names and other faces keep the embeddings they had in the original model ({PAPER}).</p>"
)
LIMITS = (
    "What is removed is the link between name and face in this model's embeddings. Training data, "
    "other models and copies made earlier are untouched.",
    "The attack is one measurement: one threshold, one list of candidates, these photos. A person "
    "it no longer recognises may be found by other means, such as another spelling of the name, an "
    "image search with a photo, or somebody who trains the model further.",
    "A report on real people names those who asked to be forgotten: keep it as confidential as "
    "the list itself.",
)


def validated(found: DefenseSummary) -> str:
    """Show what a defense found of itself on what it was not trained on; "" if it did not look.

    Args:
        found: its summary.
    """
    if found.validation is None:
        return ""
    verdicts = {"before": found.validation["before"], "after": found.validation["after"]}
    left = verdicts["after"]["left"]
    rows = [
        [
            stage.capitalize(),
            percent(verdict["right"]),
            percent(verdict["above"]),
            *(decimal(1 - verdict["moved"][kind]) if kind in verdict["moved"] else ""
              for kind in ("kept", "clean")),
        ]
        for stage, verdict in verdicts.items()
    ]  # fmt: skip
    head = (
        "Stage",
        "Still lead to the person",
        "Above strangers",
        "Others, cosine to the original",
        "Ordinary inputs, the same",
    )
    said = (
        "The run took what it holds out for proof enough: validation passed."
        if found.reached
        else f"<b>Not reached:</b> validation still finds {count(len(left), 'person', 'people')}: "
        + ", ".join(f"{name(who)} ({percent(right)})" for who, right in list(left.items())[:20])
        + (" and others." if len(left) > 20 else ".")
    )
    return (
        f"<h3>Validation</h3><p>{said} The state of step {found.stopped_at_step:,} was taken, "
        f"{percent(found.alpha)} of the way to it.</p>" + table(head, rows)
    )


def how_attacked(proof: Proof) -> str:
    """Explain the attack and how its figures are to be read."""
    return (
        f"<p>The identity inference attack ({ATTACK}) shows the model photos of a person and asks "
        f"which of {proof.num_candidates:,} candidate names fits best, in {proof.num_templates} "
        "prompt templates. Per template, the name with the most votes over the photos is the "
        "answer; a tie is no answer. The person counts as recognised if at least "
        f"{count(proof.threshold, 'template')} gave the own name. <b>Photos named right</b> takes "
        "no vote: in how many of all pairs of a photo and a template the own name fits best.</p>"
    )


def headline(proof: Proof) -> str:
    """Say in plain words what was asked, and whom the model still recognises; text."""
    listed, others, unknown = proof.of(True), proof.of(False), proof.of(None)
    if not listed and not others:
        named = _named(proof, unknown, "person", "people")
        return f"{named} Whose removal was asked for is not known."
    fine = (outcomes.UNLEARNED, outcomes.NEVER)
    gone = bool(listed) and all(proof.outcome(person) in fine for person in listed)
    verb = ("was" if len(listed) == 1 else "were") + (" removed" if gone else " to be removed")
    said = [f"{len(listed)} of {count(len(proof.people), 'person', 'people')} {verb}."]
    for people, one, many in (
        (listed, "person on the list", "people on the list"),
        (others, "other person", "others"),
    ):
        if people:
            said.append(_named(proof, people, one, many))
    first, last = proof.stages[proof.first], proof.stages[proof.last]
    rates = [measured(metrics, "top1") for metrics in (first, last)]
    if None not in rates:
        before, after = map(percent, rates)
        text = before if proof.first == proof.last else f"{before} before and {after} after"
        said.append(f"Photos of objects were classified correctly: {text}.")
    return " ".join(said)


def _named(proof: Proof, people: Sequence[PersonResult], one: str, many: str) -> str:
    """Say of how many people the model gave the name, before and after."""
    found = [proof.found(people, stage) for stage in dict.fromkeys((proof.first, proof.last))]
    tested = [x for x in found if x]
    if not tested:
        return f"None of {count(len(people), one, many)} was tested."
    who = count(tested[-1].num, one, many)
    untested = len(people) - tested[-1].num
    less = f" who could be tested, {untested} could not" if untested else ""
    if len(tested) < 2:
        when = "" if len(found) < 2 else " before" if found[0] else " after"
        text = f"{tested[0].known}{when}"
    else:
        text = f"{tested[0].known} before and {tested[1].known} after"
    said = f"Shown photos of the {who}{less}, the model gave the right name of {text}"
    if right := _named_right(proof, people):
        said += f", and of {right} of their photos"
    if people[0].removed is False or tested[-1].num < LEAST_PEOPLE:
        return f"{said}."
    low, high = tested[-1].interval
    like = f"between {low:.0%} and {high:.0%} of people like them, with 95% confidence"
    return f"{said}; that is {like}."


def _named_right(proof: Proof, people: Sequence[PersonResult], by: str = " and ") -> str:
    """Say what part of people's photos is named right, before and after; "" if that is too few."""
    ends = list(dict.fromkeys((proof.first, proof.last)))
    found = [proof.measure(people, stage) for stage in ends]
    counts = [len(proof.counts(people, stage)) for stage in ends]
    if None in found or min(counts) < LEAST_PEOPLE:
        return ""
    return by.join(percent(x["photos_right"]) for x in found if x)


def proof_tiles(proof: Proof) -> Iterable[tuple[str, str, str]]:
    """Give the attack's figures, and what was kept."""
    stages = list(dict.fromkeys((proof.first, proof.last)))
    for removed, label in ((True, "on the list"), (False, "others"), (None, "people")):
        found = [proof.found(proof.of(removed), stage) for stage in stages]
        if (last := found[-1]) is None:
            continue
        text = " → ".join("?" if x is None else str(x.known) for x in found)
        yield text, f"of {last.num}", f"{label}, recognised"
        if right := _named_right(proof, proof.of(removed), " → "):
            yield right, "", f"{label}, photos named right"
        if removed is not False and last.num >= LEAST_PEOPLE:
            low, high = last.interval
            yield f"{low:.1%} – {high:.1%}", "", f"{label}: 95 % interval of the rate"
    rates = [measured(proof.stages[stage], "top1") for stage in stages]
    if None not in rates:
        yield " → ".join(map(percent, rates)), "", "photos of objects classified correctly"
    if (similarity := measured(proof.stages[proof.last], "sim_clean")) is not None:
        yield f"{similarity:.3f}", "of 1", "similarity of ordinary inputs to the original"


def stages(proof: Proof) -> str:
    """Compare the stages: whom the attack recognises, and what was kept."""
    groups = {removed: people for removed in (True, False, None) if (people := proof.of(removed))}
    found = {
        stage: {removed: proof.found(people, stage) for removed, people in groups.items()}
        for stage in proof.stages
    }
    columns = [removed for removed in groups if any(f[removed] for f in found.values())]
    extra = {"top1": ("objects", percent), "sim_clean": ("similarity", decimal)}
    extra = {
        key: value
        for key, value in extra.items()
        if any(measured(metrics, key) is not None for metrics in proof.stages.values())
    }
    if not columns and not extra:
        return ""
    drawn = [_SHORT[removed] for removed in columns] + ["objects"] * ("top1" in extra)
    bars, rows = [], []
    for stage, metrics in proof.stages.items():
        rates = [_drawn(found[stage][removed]) for removed in columns]
        rates += [measured(metrics, "top1")] * ("top1" in extra)
        bars.append((_stage(stage), rates))
        cells = [rate(found[stage][removed]) for removed in columns]
        cells += [write(measured(metrics, key)) for key, (_, write) in extra.items()]
        rows.append([escape(_stage(stage)), *cells])
    title = "Bars of the table beside: " + ", ".join(drawn)
    plot = plots.bars("stages", title, drawn, bars) if drawn else ""
    head = ["Stage", *(_SHORT[removed] for removed in columns), *(x for x, _ in extra.values())]
    notes = {
        True: "<b>on the list</b> and <b>others</b>: how many the attack recognises, the rate, and "
        "where it lies with 95 % confidence for people like them (Wilson); low is right for the "
        "first, unchanged for the second.",
        "top1": "<b>objects</b>: zero-shot top-1 accuracy.",
        "sim_clean": "<b>similarity</b>: mean cosine between the embeddings of ordinary inputs and "
        "the original model's; 1 is no change; of captions and photos the lower.",
    }
    note = " ".join(text for key, text in notes.items() if key in extra or key in columns)
    return (
        f'<div class="columns"><figure>{plot}</figure><div>'
        f'{table([text.capitalize() for text in head], rows)}<p class="note">{note}</p></div></div>'
    )


def _drawn(found: Found | None) -> float | None:
    return found.rate if found and found.num >= LEAST_PEOPLE else None


def measures(proof: Proof) -> str:
    """Say how well people are known at each stage, by four figures."""
    groups = {}
    for removed in (True, False, None):
        people = proof.of(removed)
        groups[_SHORT[removed]] = people
        if removed is False and any(person.kept for person in people):
            groups["others among the kept faces"] = [p for p in people if p.kept]
            groups["others never shown"] = [p for p in people if not p.kept]
    num, rows = proof.num_templates, []
    for label, people in groups.items():
        if not any(proof.counts(people, stage) for stage in proof.stages):
            continue
        label = label.capitalize()
        for least in sorted({1, proof.threshold, majority(num)}):
            cells = [rate(proof.at_least(least, people, stage)) for stage in proof.stages]
            rows.append([_about(label, f"recognised, at least {least} of {num} templates"), *cells])
        found = [proof.measure(people, stage) for stage in proof.stages]
        sizes = [len(proof.counts(people, stage)) for stage in proof.stages]
        right = [_right(*x) for x in zip(found, sizes, strict=True)]
        rows.append([_about(label, "photos named right"), *right])
        rows.append([_about(label, f"mean templates, of {num}"), *map(_mean, found)])
    if not rows:
        return ""
    kept = f"{outcomes.KEPT_SHARE:.0%}"
    return (
        f"<h3>How well people are known</h3>{table(['', *map(_stage, proof.stages)], rows, 'wide')}"
        '<p class="note">Below each figure, where it lies with 95 % confidence for people like '
        "them: of a rate Wilson's interval, of a mean over people Student's. Somebody not on the "
        f"list counts as kept only if recognised and at least {kept} of the photos named right "
        f"before still are. No percentage is given of fewer than {LEAST_PEOPLE} people.</p>"
    )


def _right(found: Measures | None, num: int) -> str:
    if found is None or num < LEAST_PEOPLE:
        return "–"
    low, high = found["photos_right_interval"]
    return f"{found['photos_right']:.1%}<small>{100 * low:.1f} – {100 * high:.1f}</small>"


def _mean(found: Measures | None) -> str:
    if found is None:
        return "–"
    low, high = found["mean_templates_interval"]
    return f"{found['mean_templates']:.1f}<small>{low:.1f} – {high:.1f}</small>"


def rate(found: Found | None) -> str:
    """Write how many were found, and, of enough people, the rate and how sure that is."""
    if found is None:
        return "–"
    if found.num < LEAST_PEOPLE:
        return f"{found.known} of {found.num}"
    low, high = found.interval
    return (
        f"{found.known} of {found.num} · {found.rate:.1%}"
        f"<small>{100 * low:.1f} – {100 * high:.1f}</small>"
    )


def curve(proof: Proof, strangers: Mapping[str, Sequence[float]]) -> str:
    """Draw the part recognised over the threshold, before and after, and of strangers."""
    lines = []
    ends = list(dict.fromkeys((proof.first, proof.last)))
    for stage in ends:
        dashed = stage == proof.first and len(ends) > 1
        for removed in (True, False, None):
            people = proof.of(removed)
            values = proof.curve(people, stage)
            if values and len(proof.counts(people, stage)) >= LEAST_PEOPLE:
                label = f"{_SHORT[removed]}, {_stage(stage).lower()}"
                lines.append((label, _COLOURS[removed], dashed, values))
        if values := strangers.get(stage):
            lines.append((f"strangers, {_stage(stage).lower()}", 2, dashed, list(values)))
    if not lines or proof.num_templates < 2:
        return ""
    plot = plots.thresholds(
        "thresholds", "Part of the people recognised over the number of correct templates", lines
    )
    return (
        "<h3>If more templates must agree</h3>"
        f'<div class="columns"><figure>{plot}</figure>'
        f'<p class="note">The attack calls a person recognised from {proof.threshold} of '
        f"{count(proof.num_templates, 'template')} on; the curves tell how many would be if more "
        "had to agree. Someone who is still recognised, but in fewer templates than before, shows "
        "in a curve that falls earlier.</p></div>"
    )


def photos(proof: Proof) -> str:
    """Show people with what the model calls them; those on whom it went wrong first."""

    def order(person: PersonResult) -> tuple[bool, bool]:
        what = proof.outcome(person)
        return what not in outcomes.BAD, what == outcomes.NEVER

    parts = []
    for heading, everyone in proof.groups().items():
        limit = _NUM_OTHER_PHOTOS if everyone[0].removed is False else _NUM_LISTED_PHOTOS
        if people := sorted((p for p in everyone if p.photo is not None), key=order):
            cards = "".join(_card(proof, person) for person in people[:limit])
            some = len(people[:limit])
            few = f" <span>{some} of {len(everyone)}</span>" if some < len(everyone) else ""
            parts.append(f'<h3>{heading}{few}</h3><ul class="cards">{cards}</ul>')
    if not parts:
        return ""
    key = (
        f'<p class="note">{_mark("own")} the person\'s own name, {_mark("other")} somebody '
        f"else's, {_mark('none')} no name won. The number is how many of the "
        f"{proof.num_templates} prompt templates gave the own name; the attack succeeds from "
        f"{proof.threshold} on. People on whom the defense went wrong come first.</p>"
    )
    return key + "".join(parts)


def _card(proof: Proof, person: PersonResult) -> str:
    assert person.photo is not None
    lines = []
    for stage in proof.stages:
        if stage not in person.answers:
            continue
        answer = person.answers[stage]
        kind = "own" if answer == person.name else "other" if answer else "none"
        said = name(answer) if answer else "no name"
        lines.append(
            f"<dt>{escape(_stage(stage))} <span>{_correct(person, stage)}</span></dt>"
            f"<dd>{_mark(kind)}<span>{said}</span></dd>"
        )
    what = proof.outcome(person)
    return (
        f'<li><img src="{jpeg(person.photo)}" alt="{escape(person.name)}">'
        f"<b>{name(person.name)}</b>{_verdict(what) if what in outcomes.BAD else ''}"
        f"<dl>{''.join(lines)}</dl></li>"
    )


def tally(proof: Proof) -> dict[bool | None, dict[str, int]]:
    """Count outcomes, of those on the list and of others."""
    counted = {}
    for people in proof.groups().values():
        counts, removed = Counter(map(proof.outcome, people)), people[0].removed
        counted[removed] = {
            what: counts[what]
            for what in (*_OUTCOMES[removed], UNKNOWN)
            if counts[what] or what not in (outcomes.NEVER, UNKNOWN)
        }
    return counted


def outcomes_of(proof: Proof) -> str:
    """Say what became of each person, and of how many what."""
    parts, counted = [], tally(proof)
    for heading, people in proof.groups().items():
        counts = counted[people[0].removed]
        if len(proof.stages) > 1 and _OUTCOMES[people[0].removed]:
            said = ", ".join(f"<b>{num}</b> {what}" for what, num in counts.items())
            parts.append(f"<p>{heading} ({len(people)}): {said}.</p>")
    people = [
        person
        for group in proof.groups().values()
        for person in sorted(group, key=lambda p: proof.outcome(p) not in outcomes.BAD)
    ]
    rows = [
        [
            name(person.name),
            _verdict(proof.outcome(person)),
            {True: "yes", False: "no", None: "?"}[person.removed],
            *(_correct(person, stage) + _own_right(person, stage) for stage in proof.stages),
        ]
        for person in people[:_MOST_ROWS]
    ]
    if rows:
        more = len(people) - len(rows)
        left = f"{more:,} more are in the CSV file beside this page. " if more else ""
        head = ("Person", "Outcome", "On the list", *map(_stage, proof.stages))
        parts.append(
            f"<details><summary>Everyone: correct templates of {proof.num_templates}</summary>"
            f'{table(head, rows, "people")}<p class="note">{left}The outcome compares the first '
            "stage with the last; a person is recognised from "
            f"{count(proof.threshold, 'template')} on, one on the list from 1 on. In per cent: "
            "the photos named right.</p></details>"
        )
    return "".join(parts)


def variants(proof: Proof, candidates: Mapping[str, int]) -> str:
    """Give each way round a defense its own rate, the worst first.

    Args:
        proof: with variants.
        candidates: variant -> names the attack chose from.
    """
    names = proof.variants()
    if not names:
        return ""
    groups = [removed for removed in (True, False, None) if proof.of(removed)]
    ends = list(dict.fromkeys((proof.first, proof.last)))
    head = ["Way round"]
    head += [f"{_SHORT[g]}, {_stage(s).lower()}".capitalize() for g in groups for s in ends]
    rows = []
    for variant in ("", *names):
        cells = [rate(proof.found(proof.of(g), s, variant)) for g in groups for s in ends]
        what = _VARIANTS.get(variant, "") if variant else "the plain attack, to compare with"
        if (num := candidates.get(variant, 0)) and num < proof.num_candidates:
            what += f"; among {num:,} names"
        rows.append([_about(variant.replace("_", " ") or "none", what), *cells])
    return (
        f'{table(head, rows, "wide")}<p class="note">Each line is an attack of its own, sorted by '
        "how many on the list it finds at the end; its rate counts those who have such a form. "
        "Fewer names to choose from make a right answer by chance more likely. A way that finds "
        "many more than the plain attack is one the defense does not cover.</p>"
    )


def utility(found: Mapping[str, float]) -> str:
    """Say how the model does on what it is for."""
    rows = []
    for key, (what, how) in _UTILITY.items():
        if (value := measured(found, key)) is None:
            continue
        before = measured(found, f"teacher_{key}")
        write = percent if key.startswith("top") else decimal
        rows.append([_about(what, how), write(before), write(value)])
    if not rows:
        return ""
    return table(("Input", "Original", "Defended"), rows, "wide") + (
        '<p class="note">A cosine of 1 is no change; a removed name, or face, is to come near 1 '
        "to what stands for it. Objects are to be told as well as before.</p>"
    )


def collateral(found: Collateral | None) -> str:
    """Say whose names moved along with those removed."""
    if found is None:
        return ""
    groups, moved = found["groups"], found["most_moved"]
    order = sorted(groups, key=lambda group: (group == "removed", groups[group]["mean"]))
    rows = [
        [
            _about(group, _GROUPS.get(group, "")),
            f"{groups[group]['num']:,}",
            decimal(groups[group]["mean"], 2),
            decimal(groups[group]["least"], 2),
        ]
        for group in order
    ]
    most = [[name(x["name"]), escape(x["group"]), decimal(x["cosine"], 2)] for x in moved]
    text = table(("Names", "Number", "Mean cosine", "Least"), rows, "wide")
    if most:
        text += "<h3>Who moved most, those removed apart</h3>"
        text += table(("Name", "Group", "Cosine"), most, "people")
    return text + (
        '<p class="note">Cosine of the text encoder before and after on “a photo of NAME”: 1 is '
        "no change. All names are in <code>collateral.csv</code> of the evaluation.</p>"
    )


def embedding_map(maps: Mapping[str, EmbeddingMap]) -> str:
    """Draw where photos and names of people lie, before and after."""
    figures, still = [], []
    for what, found in maps.items():
        if not found.moved:
            still.append(f"{escape(what)} lie where they lay: that encoder is as it was. ")
            continue
        colour_I = np.array([_COLOURS[removed] for removed in found.removed])
        shown = np.argsort(colour_I, kind="stable")[:_MOST_POINTS]
        groups = []
        for removed in (False, None, True):  # those on the list on top
            at = shown[colour_I[shown] == _COLOURS[removed]]
            if len(at):
                before, after = found.before_I2[at], found.after_I2[at]
                groups.append((_SHORT[removed], _COLOURS[removed], before, after))
        some = f", {len(shown)} of {len(colour_I)} people" if len(shown) < len(colour_I) else ""
        svg = plots.moves(
            f"map-{len(figures)}", f"{what}: where they lay before and lie after", groups
        )
        figures.append(
            f"<figure><figcaption><b>{escape(what)}</b><small>{found.share:.0%} of the variance "
            f"before{some}</small></figcaption>{svg}</figure>"
        )
    drawn = f'<div class="columns">{"".join(figures)}</div>' if figures else ""
    if figures:
        still.append(
            "Each person is a ring where they lay in the original model, and a dot where they lie "
            "now. The plane is that of the first two principal components before, so most of the "
            "embeddings' space is not to be seen: points that lie together here need not do so "
            "there."
        )
    return drawn + (f'<p class="note">{"".join(still)}</p>' if still else "")


def losses(rows: Sequence[Mapping[str, object]], distances: Iterable[str]) -> str:
    """Draw the training curves of one or several runs; a step below the last starts another.

    Args:
        rows: of `metrics.jsonl`.
        distances: what was lowered in each.
    """
    runs: list[list[Mapping[str, object]]] = []
    previous = math.inf
    for row in rows:
        step = measured(row, "step")
        if step is None:
            continue
        if step <= previous:
            runs.append([])
        runs[-1].append(row)
        previous = step
    figures = []
    for term, meaning in _TERMS.items():
        pairs = [[(row["step"], measured(row, term)) for row in run] for run in runs]
        finite = [[pair for pair in run if pair[1] is not None] for run in pairs]
        lines = [tuple(np.array(run, float).T) for run in finite if run]
        if not any(values.any() for _, values in lines):  # a term that is switched off
            continue
        last = " · ".join(decimal(values[-1], 4) for _, values in lines)
        svg = plots.curves(f"loss-{term}", f"{term} over the steps, at last {last}", lines)
        figures.append(
            f"<figure><figcaption><b>{term}</b> <span>at last {last}</span>"
            f"<small>{meaning}</small></figcaption>{svg}</figure>"
        )
    if not figures:
        return ""
    best = " or ".join(
        "−1, the negative cosine of equal directions" if distance == "cosine" else "0"
        for distance in dict.fromkeys(distances)
    )
    note = f"The best value of a distance is {best}."
    if len(runs) > 1:
        note = f"{len(runs)} runs: the first is solid, later ones dashed and dotted. {note}"
    return f'<div class="curves">{"".join(figures)}</div><p class="note">{note}</p>'


def _about(what: str, more: str) -> str:
    return f"<b>{escape(what)}</b><small>{escape(more)}</small>"


def _stage(stage: str) -> str:
    return _STAGES.get(stage, stage)


def _correct(person: PersonResult, stage: str) -> str:
    return str(person.correct.get(stage, "–"))


def _own_right(person: PersonResult, stage: str) -> str:
    right = person.photos_right.get(stage)
    return "" if right is None else f"<small>{right:.0%}</small>"


def _mark(kind: str) -> str:
    sign, label = {
        "own": ("=", "own name"),
        "other": ("≠", "somebody else's name"),
        "none": ("–", "no name"),
    }[kind]
    return f'<span class="mark {kind}" role="img" aria-label="{label}">{sign}</span>'


def _verdict(what: str) -> str:
    return f'<span class="bad">! {what}</span>' if what in outcomes.BAD else what
