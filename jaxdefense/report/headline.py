"""The headline of a page, and the large figures below it."""

from collections.abc import Iterable, Sequence

from jaxdefense.evals import outcome as outcomes
from jaxdefense.figures import count, measured, percent
from jaxdefense.report.labels import LEAST_PEOPLE
from jaxdefense.report.proof import PersonResult, Proof


def headline(proof: Proof) -> str:
    """Say in plain text what was asked, and whom the model still recognises."""
    listed, others, unknown = proof.of(True), proof.of(False), proof.of(None)
    if not listed and not others:
        named = _named(proof, unknown, "person", "people")
        return f"{named} The list of people to remove is not known."
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
    """Say for how many people the model gave the right name, before and after."""
    found = [proof.found(people, stage) for stage in dict.fromkeys((proof.first, proof.last))]
    tested = [x for x in found if x]
    if not tested:
        return f"None of {count(len(people), one, many)} was tested."
    who = count(tested[-1].num, one, many)
    untested = len(people) - tested[-1].num
    less = f" who could be tested ({untested} could not)" if untested else ""
    if len(tested) < 2:
        when = "" if len(found) < 2 else " before" if found[0] else " after"
        text = f"{tested[0].known}{when}"
    else:
        text = f"{tested[0].known} before and {tested[1].known} after"
    said = f"Shown photos of the {who}{less}, the model gave the right name for {text}"
    if right := _named_right(proof, people):
        said += f", and for {right} of their photos"
    if people[0].removed is False or tested[-1].num < LEAST_PEOPLE:
        return f"{said}."
    low, high = tested[-1].interval
    like = f"between {low:.0%} and {high:.0%} of people like them, with 95% confidence"
    return f"{said}; the attack would recognise {like}."


def _named_right(proof: Proof, people: Sequence[PersonResult], by: str = " and ") -> str:
    """Say what part of the photos is named right, before and after; "" for too few people."""
    ends = list(dict.fromkeys((proof.first, proof.last)))
    found = [proof.measure(people, stage) for stage in ends]
    counts = [len(proof.counts(people, stage)) for stage in ends]
    if None in found or min(counts) < LEAST_PEOPLE:
        return ""
    return by.join(percent(x["photos_right"]) for x in found if x)


def proof_tiles(proof: Proof) -> Iterable[tuple[str, str, str]]:
    """Yield the figures of the attack and of what was kept: value, unit and label."""
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
        yield f"{similarity:.3f}", "of 1", "similarity of ordinary inputs to the original model"
