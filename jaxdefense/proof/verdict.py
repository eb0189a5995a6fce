"""A proof in a few sentences, for whoever reads nothing else."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from jaxdefense.evals.outcome import KEPT, KEPT_SHARE, NEVER, RECALLED, Seen, outcome
from jaxdefense.figures import count, percent
from jaxdefense.proof import after, optimise
from jaxdefense.proof.config import FINETUNE, FINETUNE_PEOPLE, MERGE
from jaxdefense.proof.known import FEW
from jaxdefense.report.labels import LEAST_PEOPLE
from jaxdefense.results import (
    ABOVE,
    BEFORE,
    BELOW,
    DEFENDED,
    REMOVED,
    STRANGERS,
    Groups,
    Mean,
    ProofPart,
)
from jaxdefense.words import some

_NAMED = 6  # people named in a sentence, at most


class Subjects(NamedTuple):
    """Who was tested.

    Fields:
        num_listed: people on the list.
        removed, staying, absent: names of those of them with photos, of those who stay, and of
            those on the list without photos that no defense saw.
        num_strangers: strangers attacked.
        threshold: prompts that must name a person who stays for them to count as known.
    """

    num_listed: int
    removed: list[str]
    staying: list[str]
    absent: list[str]
    num_strangers: int
    threshold: int


def verdict(tested: Subjects, parts: Mapping[str, ProofPart]) -> list[str]:
    """Say what the parts found: the list, the others, photos alone, afterwards, attackers."""
    said = list[str]()
    if "known" in parts:
        said += [_of_list(tested, parts["known"]), _of_others(tested, parts["known"])]
    more = [*_without_names(parts), *_afterwards(parts), *_attackers(parts)]
    if not more and parts.keys() - {"known", "others"}:
        more = ["Too few people were tested for other percentages: see the tables."]
    return [*said, *more] or ["Nothing that a verdict could be based on was tested."]


def _of_list(tested: Subjects, part: ProofPart) -> str:
    """Say what became of the people on the list; one prompt is enough to be found."""
    people, names = part["people"], tested.removed
    known = [name for name in names if people[name][f"correct.{BEFORE}"] >= 1]
    found = [name for name in names if people[name][f"correct.{DEFENDED}"] >= 1]
    placed = tested.num_strangers >= FEW
    place = {name: people[name].get(f"percentile.{DEFENDED}", 0.5) for name in names}
    gone = [name for name in known if name not in found]
    near = [name for name in gone if placed and place[name] > ABOVE]
    far = [name for name in gone if placed and place[name] < BELOW]
    as_strangers = len(gone) - len(near) - len(far)
    said = [f"{tested.num_listed} on the list: {_were(len(known))} known"]
    if known:
        what = "as unknown as strangers" if placed else "found by no prompt"
        said[0] += f"; of these {_are(as_strangers)} now {what}"
    for who, what in (
        (found, "found by a prompt or more"),
        (near, "found by no prompt, but still closer to the name than nearly all strangers"),
        (far, "found by no prompt, and pushed further from the name than nearly all strangers"),
        ([name for name in names if name not in known and name not in found], "never known"),
        (tested.absent, "not tested, without photos that no defense saw"),
    ):
        if who:
            said.append(f"{len(who)} {what}: {some(who, _NAMED)}")
    return "; ".join(said) + "."


def _of_others(tested: Subjects, part: ProofPart) -> str:
    """Say what became of the people who stay."""
    people, became = part["people"], dict[str, list[str]]()
    if not tested.staying:
        return "Nobody who stays was tested: give their photos in `faces` too."
    for name in tested.staying:
        before, now = (
            Seen(round(people[name][f"correct.{x}"]), people[name][f"photos_right.{x}"])
            for x in (BEFORE, DEFENDED)
        )
        became.setdefault(outcome(False, before, now, tested.threshold), []).append(name)
    known = len(tested.staying) - sum(len(became.get(x, [])) for x in (NEVER, RECALLED))
    said = [
        f"Of {count(known, 'other')} known before, {len(became.get(KEPT, []))} still have "
        f"{KEPT_SHARE:.0%} or more of their photos named right that were"
    ]
    for what, who in became.items():
        if what not in (KEPT, NEVER):
            said.append(f"{what}: {some(who, _NAMED)}")
    return "; ".join(said) + "."


def _without_names(parts: Mapping[str, ProofPart]) -> Iterator[str]:
    """Say how well photos alone find one another."""
    models = parts["gallery"]["figures"].get("map", {}) if "gallery" in parts else {}
    now = _share(models.get(DEFENDED, {}).get(REMOVED))
    if now:
        levels = {
            "before": _share(models[BEFORE].get(REMOVED)),
            "strangers": _share(models[DEFENDED].get(STRANGERS)),
        }
        yield (
            "Without names, photos of someone removed find one another with a mean average "
            f"precision of {now}{_levels(levels)}."
        )


def _afterwards(parts: Mapping[str, ProofPart]) -> Iterator[str]:
    """Say what training on, rounding and averaging bring back, each at its worst."""
    said, now = list[str](), dict[str, str]()
    for name, text in (
        (FINETUNE, "after {at:g} steps of fine-tuning on ordinary photos"),
        (FINETUNE_PEOPLE, "after {at:g} steps of fine-tuning on other people"),
        ("rounding", "rounded to {at:g} bits"),
        (MERGE, "with {at:.0%} of the original averaged in"),
    ):
        if name not in parts:
            continue
        at, found = after.worst(parts[name], REMOVED)
        if share := _share(found):
            said.append(f"{text.format(at=at)} {share}")
            as_it_is = after.as_it_is(parts[name])
            now = {key: _share(as_it_is.get(key)) for key in (REMOVED, STRANGERS)}
    if said:
        levels = {"as it is": now[REMOVED], "strangers": now[STRANGERS]}
        yield (
            "Of the photos of those removed the model names right, at worst: "
            f"{', '.join(said)}{_levels(levels)}."
        )


def _attackers(parts: Mapping[str, ProofPart]) -> Iterator[str]:
    """Say how much more attackers who optimise find of those removed than of strangers."""
    said = list[str]()
    for name, text in (
        ("soft_prompts", "prompts learned for one person in {at:g} steps"),
        ("interpolation", "names mixed with others"),
        ("pgd", "photos changed by {at:g} of 255"),
    ):
        now = optimise.gain(parts[name], DEFENDED) if name in parts else None
        if now and _both(now.groups):
            removed, strangers = (percent(now.groups[x]["mean"]) for x in (REMOVED, STRANGERS))
            said.append(f"{text.format(at=now.at or 0)} find {removed}, of strangers {strangers}")
    groups = parts["search"]["figures"]["nearer"].get(DEFENDED, {}) if "search" in parts else {}
    if _both(groups):
        removed, strangers = (percent(groups[x]["mean"]) for x in (REMOVED, STRANGERS))
        said.append(
            f"of random names {removed} lie nearer to the photos than the own, of strangers "
            f"{strangers}"
        )
    if said:
        yield f"Attackers who optimise, where they gain most: {'; '.join(said)}."


def _both(groups: Groups) -> bool:
    """Tell whether there are enough people for percentages of both groups."""
    return all(_share(groups.get(group)) for group in (REMOVED, STRANGERS))


def _share(found: Mean | None) -> str:
    """Write a share; "" if it is of too few people."""
    return percent(found["mean"]) if found and found["num"] >= LEAST_PEOPLE else ""


def _levels(levels: Mapping[str, str]) -> str:
    """Write what to compare a share with, in brackets."""
    text = ", ".join(f"{name} {value}" for name, value in levels.items() if value)
    return f" ({text})" if text else ""


def _were(num: int) -> str:
    return f"{num} {'was' if num == 1 else 'were'}"


def _are(num: int) -> str:
    return f"{num} {'is' if num == 1 else 'are'}"
