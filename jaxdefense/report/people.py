"""The people of a report, listed or attacked, and what was found about each."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from jaxdefense.errors import InputError
from jaxdefense.idia.kept import Embeddings, read_embeddings, read_thumbnails
from jaxdefense.report.embedding_map import EmbeddingMap, make_map
from jaxdefense.report.match import AFTER, BEFORE
from jaxdefense.report.proof import PersonResult, Proof
from jaxdefense.report.sources import Attack, Run
from jaxdefense.words import folded_words, some

T = TypeVar("T")


def join_lists(runs: Sequence[Run], notes: list[str]) -> list[list[str]]:
    """Join the lists of runs; entries that share a name are one person."""
    listed: list[list[str]] = []
    for run in runs:
        if not run.names:
            notes.append(f"`{run.path}` does not record whom it removed.")
            continue
        known = {folded_words(name) for names in listed for name in names}
        fresh = [x for x in run.names if not known & set(map(folded_words, x))]
        if listed and (fresh or len(run.names) < len(listed)):
            notes.append(
                f"The lists differ: {len(listed)} people in `{runs[0].path}`, {len(run.names)} in "
                f"`{run.path}`. Whoever is on either counts as on the list."
            )
        listed += [list(names) for names in fresh]
    return listed


def removed_by(runs: Sequence[Run], listed: Sequence[list[str]]) -> list[list[str]]:
    """List those on the list whose name or face a run removed: not who had no photos for it."""
    known = {folded_words(x) for run in runs for names in run.summary.names for x in names}
    return [names for names in listed if not known.isdisjoint(map(folded_words, names))]


def put_together(
    attacks: Mapping[str, Attack], listed: list[list[str]], utility: Mapping[str, float]
) -> Proof:
    """Combine what is known about each person.

    Raises:
        InputError: an attack used another list than the defense.
    """
    removed = _removed(attacks, listed)
    names = list(dict.fromkeys(name for x in attacks.values() for name in x.summary.per_identity))
    photos, forms = _photos(attacks), _forms(attacks)
    summaries = {stage: attack.summary for stage, attack in attacks.items()}
    people = [
        PersonResult(
            name,
            None if removed is None else name in removed,
            _by_stage(name, {stage: s.per_identity for stage, s in summaries.items()}),
            photos.get(name),
            _by_stage(name, {stage: s.answers for stage, s in summaries.items()}),
            forms.get(name, {}),
            _by_stage(
                name, {stage: s.per_identity_photos_right or {} for stage, s in summaries.items()}
            ),
        )
        for name in names
    ]
    attacked = set(map(folded_words, names))
    absent = [who for who in listed if not attacked & set(map(folded_words, who))]
    people += [PersonResult(who[0], True, {}, None, {}) for who in absent]
    s = next(iter(summaries.values()))
    stages = _stages(attacks, utility)
    return Proof(stages, people, s.num_templates, s.threshold, s.num_candidates)


def _by_stage(name: str, found: Mapping[str, Mapping[str, T]]) -> dict[str, T]:
    return {stage: who[name] for stage, who in found.items() if name in who}


def _photos(attacks: Mapping[str, Attack]) -> dict[str, bytes]:
    """Read one photo of each person; some people have none."""
    photos: dict[str, bytes] = {}
    for attack in attacks.values():  # the last attack keeps those for whom something went wrong
        order = _order(attack)
        photos |= {order[i]: x for i, x in read_thumbnails(attack.path).items() if i < len(order)}
    return photos


def _forms(attacks: Mapping[str, Attack]) -> dict[str, dict[str, dict[str, int]]]:
    """Return person -> variant -> stage -> number of correct templates."""
    forms: dict[str, dict[str, dict[str, int]]] = {}
    for stage, attack in attacks.items():
        for variant, found in (attack.summary.variants or {}).items():
            for name, num in found.get("per_identity", {}).items():
                forms.setdefault(name, {}).setdefault(variant, {})[stage] = num
    return forms


def _stages(
    attacks: Mapping[str, Attack], utility: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """Return stage -> what was measured of `top1` and `sim_clean`."""
    stages: dict[str, dict[str, float]] = {stage: {} for stage in attacks}
    similar = [utility[key] for key in ("sim_clean", "image_sim_clean") if key in utility]
    for stage, rate in ((BEFORE, "teacher_top1"), (AFTER, "top1")):
        if stage in stages and rate in utility:
            stages[stage]["top1"] = utility[rate]
    if similar and AFTER in stages:
        stages[AFTER]["sim_clean"] = min(similar)
        if BEFORE in stages:
            stages[BEFORE]["sim_clean"] = 1.0
    return stages


def _removed(attacks: Mapping[str, Attack], listed: list[list[str]]) -> set[str] | None:
    """Return the people attacked who are on the list; None if no list is known."""
    gone = {folded_words(name) for names in listed for name in names}
    everyone = {name for attack in attacks.values() for name in attack.summary.per_identity}
    removed = {name for name in everyone if folded_words(name) in gone} if listed else None
    for attack in attacks.values():
        if not attack.setting("names") or attack.summary.removed is None:
            continue
        own = set(attack.summary.removed)
        if removed is None:
            removed = own
        if wrong := sorted(own ^ (removed & attack.summary.per_identity.keys())):
            raise InputError(
                f"`{attack.path}` used another list than the defense: {some(wrong)} "
                f"{'is' if len(wrong) == 1 else 'are'} on only one of them; attack with the same "
                "names file."
            )
    return removed


def _order(attack: Attack) -> list[str]:
    """List the people in the order of `results.csv`."""
    return [*attack.summary.per_identity, *(attack.summary.strangers or {})]


def make_maps(
    attacks: Mapping[str, Attack], proof: Proof, missing: list[str]
) -> dict[str, EmbeddingMap]:
    """Project embeddings before and after onto one plane; add to `missing` why there is none."""
    if not {BEFORE, AFTER} <= attacks.keys():
        return {}
    found: dict[str, Embeddings] = {}
    rows: dict[str, dict[str, int]] = {}
    for stage, attack in attacks.items():
        order = _order(attack)
        if (kept := read_embeddings(attack.path, len(order))) is None:
            missing.append(f"The map of embeddings: `{attack.path}` kept none.")
            return {}
        found[stage], rows[stage] = kept, {name: i for i, name in enumerate(order)}
    sizes = {kept.photo_IE.shape[1] for kept in found.values()}
    if len(sizes) > 1:
        raise InputError(
            f"`{attacks[BEFORE].path}` and `{attacks[AFTER].path}` kept embeddings of different "
            "sizes; attack models of the same origin."
        )
    both = [p for p in proof.people if {BEFORE, AFTER} <= p.correct.keys()]
    names, removed = [p.name for p in both], [p.removed for p in both]
    maps = {}
    for what, field in (("People's photos", "photo_IE"), ("People's names", "name_IE")):
        before, after = (
            getattr(found[stage], field)[[rows[stage][name] for name in names]]
            for stage in (BEFORE, AFTER)
        )
        if made := make_map(names, removed, before, after):
            maps[what] = made
    if not maps:
        missing.append("The map of embeddings: there are too few people.")
    return maps
