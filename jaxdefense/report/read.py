"""What directories of defenses, attacks and evaluations hold, put together for one report.

A directory's kind is told by its content. What does not belong together is refused; where that
cannot be known, the report says so.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jaxdefense.config import VARIANTS
from jaxdefense.errors import InputError
from jaxdefense.idia.conditions import difference
from jaxdefense.idia.kept import Embeddings, read_embeddings, read_thumbnails
from jaxdefense.report.embedding_map import EmbeddingMap, make_map
from jaxdefense.report.frame import flatten
from jaxdefense.report.proof import PersonResult, Proof
from jaxdefense.words import folded_words, some

BEFORE, AFTER, ALONE = "before", "after", "attacked"
_ALIKE = ("threshold", "num_templates", "num_candidates")  # of attacks that are compared
_CHOSEN = ("faces", "candidates", "sexes", "templates", "num_photos", "unseen_by", "seed")

_Part = TypeVar("_Part")


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished defense of one encoder.

    Fields:
        path: its directory.
        encoder: text or image.
        settings: nested.
        summary: as in `summary.json`.
        rows: of `metrics.jsonl`.
    """

    path: Path
    encoder: str
    settings: dict[str, Any]
    summary: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def source(self) -> str:
        """Digest of the model that was defended, "" if it was not recorded."""
        return self.settings.get("resolved", {}).get("model_sha256", "")

    @property
    def defended(self) -> str:
        """Digest of the model that came out, "" if it was not recorded."""
        return self.summary.get("defended_sha256", "")

    @property
    def names(self) -> list[list[str]]:
        """All names of each person on its list, if they were recorded."""
        return self.summary.get("names", [])


@dataclasses.dataclass(frozen=True)
class Measured:
    """Results of an attack or an evaluation: directory, nested settings, `summary.json`."""

    path: Path
    settings: dict[str, Any]
    summary: dict[str, Any]

    @property
    def model(self) -> str:
        """Digest of the model it was run on, "" if that was not recorded."""
        return self.summary.get("model_sha256", "")


@dataclasses.dataclass(frozen=True)
class Findings:
    """All that is known for a report.

    Fields:
        runs: defenses.
        merged: digest of the model that two of them were merged into, "" if not known.
        attacks: stage -> results.
        evaluations: results.
        proof: people attacked, and those on the list who were not; None without an attack.
        listed: all names of each person on the list; empty if no list is known.
        utility: what the evaluations measured, collateral apart.
        collateral: its part of a summary.
        maps: of photos and of names.
        notes: what could not be known, or is to be borne in mind.
        not_measured: what nobody looked at.
    """

    runs: list[Run]
    merged: str
    attacks: dict[str, Measured]
    evaluations: list[Measured]
    proof: Proof | None
    listed: list[list[str]]
    utility: dict[str, float]
    collateral: dict[str, Any]
    maps: dict[str, EmbeddingMap]
    notes: list[str]
    not_measured: list[str]


def read_findings(paths: Sequence[Path]) -> Findings:
    """Read directories of runs and results.

    Args:
        paths: runs of `defend text`, `image` or `both`, results of `attack` and of `evaluate`, in
            any order.

    Raises:
        InputError: a directory is none of these, or not finished, or they do not belong together.
    """
    runs, attacks, evaluations, merged = list[Run](), list[Measured](), list[Measured](), ""
    for path in paths:
        config = _read_object(path / "config.json")
        summary = _read_object(path / "summary.json")
        if "teacher" in config:
            evaluations.append(Measured(path, config, summary))
        elif "faces" in config and "num_candidates" in config:
            _check_attack(path, summary)
            attacks.append(Measured(path, config, summary))
        elif "text" in config and "image" in config:
            runs += [_read_run(path / half) for half in ("text", "image")]
            merged = summary.get("defended_sha256", "")
        elif "train" in config:
            runs.append(_read_run(path))
        else:
            raise InputError(
                f"`{path}` holds no defense, attack or evaluation; give the directory of one."
            )
    for encoder in ("text", "image"):
        if len(same := [run.path for run in runs if run.encoder == encoder]) > 1:
            raise InputError(
                f"{some(map(str, same))} both defended the {encoder} encoder; give one."
            )
    notes = list[str]()
    source, defended = _models(runs, evaluations, merged)
    staged = _stages(runs, attacks, source, defended, notes)
    listed = _listed(runs, notes)
    utility, collateral = _evaluated(evaluations)
    proof = _proof(staged, listed, utility) if staged else None
    missing = list(_not_measured(runs, staged, proof, utility, collateral))
    maps = _maps(staged, proof, missing) if proof else {}
    if proof and staged and not any(person.photo for person in proof.people):
        missing.append("Photos of people: the attack kept none.")
    return Findings(
        runs, merged, staged, evaluations, proof, listed, utility, collateral, maps, notes, missing
    )


def _read_run(path: Path) -> Run:
    config, summary = _read_object(path / "config.json"), _read_object(path / "summary.json")
    encoder = "image" if "faces" in config.get("data", {}) else "text"
    return Run(path, encoder, config, summary, _read_rows(path / "metrics.jsonl"))


def _check_attack(path: Path, summary: Mapping[str, Any]) -> None:
    """Raise InputError if results of an attack lack what everything here rests on."""
    numbers = [summary.get(key) for key in _ALIKE]
    people = summary.get("per_identity")
    counts = people.values() if isinstance(people, dict) else [None]
    if not people or not all(isinstance(x, int) for x in (*numbers, *counts)):
        raise InputError(
            f"`{path / 'summary.json'}` is not of a whole attack: it needs "
            f"{', '.join(f'`{key}`' for key in (*_ALIKE, 'per_identity'))}."
        )


def _models(runs: Sequence[Run], evaluations: Sequence[Measured], merged: str) -> tuple[str, str]:
    """Give the digests of the model before and after, "" if they are not known.

    Raises:
        InputError: runs or evaluations are of different models.
    """
    origins = {run.path: run.source for run in runs}
    origins |= {x.path: x.summary.get("teacher_sha256", "") for x in evaluations}
    source = _one(origins, "begin with different models")
    results = {x.path: x.model for x in evaluations}
    if merged or len(runs) == 1:
        results |= {run.path: merged or run.defended for run in runs}
    defended = _one(results, "are of different defended models")
    if len(runs) == 2 and not merged and (x := _half(runs, defended)):
        raise InputError(
            f"`{x.path}` is one of two defenses, and {some(str(e.path) for e in evaluations)} "
            "evaluated its model alone; evaluate the merged one, or leave the other defense out."
        )
    return source, defended


def _half(runs: Sequence[Run], model: str) -> Run | None:
    """Find the run that a model comes from, of two whose models were merged."""
    return next((run for run in runs if model and run.defended == model), None)


def _one(digests: Mapping[Path, str], what: str) -> str:
    known = {path: digest for path, digest in digests.items() if digest}
    different = {digest: str(path) for path, digest in reversed(known.items())}
    if len(different) > 1:
        raise InputError(f"{some(different.values())} {what}; give what belongs to one defense.")
    return next(iter(different), "")


def _stages(
    runs: Sequence[Run],
    attacks: Sequence[Measured],
    source: str,
    defended: str,
    notes: list[str],
) -> dict[str, Measured]:
    """Tell the attack before from that after.

    Raises:
        InputError: an attack is of another model, there are two of one kind, or nothing tells.
    """
    stages: dict[str, Measured] = {}
    for attack in attacks:
        stage = _stage(attack, attacks, runs, source, defended, notes)
        if (other := stages.get(stage)) is not None:
            which = f"the model {stage} the defense" if stage != ALONE else "one model, or two"
            why = (
                f"are both of {which}; give one of them"
                if stage != ALONE
                else "may come in either order; give the defense too, or attack with `--before`"
            )
            raise InputError(f"`{other.path}` and `{attack.path}` {why}.")
        stages[stage] = attack
    if ALONE in stages and len(stages) > 1:
        raise InputError(
            f"nothing tells whether `{stages[ALONE].path}` is of the model before or after; give "
            "the defense too."
        )
    stages = {stage: stages[stage] for stage in (BEFORE, AFTER, ALONE) if stage in stages}
    if len(stages) > 1:
        before, after = stages[BEFORE], stages[AFTER]
        for key in _ALIKE:
            if before.summary[key] != after.summary[key]:
                raise InputError(
                    f"`{before.path}` has `{key}` {before.summary[key]}, `{after.path}` "
                    f"{after.summary[key]}; the two attacks must be alike but for the model."
                )
        if lost := [x for x in after.summary["per_identity"] if x not in _people(before)]:
            raise InputError(
                f"`{before.path}` lacks {some(lost)}, whom `{after.path}` has; attack the same "
                "people."
            )
        for key in _CHOSEN:
            old, new = before.settings.get(key), after.settings.get(key)
            if old != new:
                notes.append(f"The two attacks differ in `{key}`: {old!r} before, {new!r} after.")
        old, new = (x.summary.get("conditions") for x in (before, after))
        if old and new and (differ := difference(old, new)):
            notes.append(f"`{before.path}` is not like `{after.path}`: {differ}.")
    image = next((run for run in runs if run.encoder == "image"), None)
    after = stages.get(AFTER)
    if image and after and not after.settings.get("unseen_by"):
        notes.append(
            "The attack did not leave out the photos that faces were removed with "
            "(`--unseen-by`): on other photos of a person the model may do less well."
        )
    return stages


def _stage(
    attack: Measured,
    attacks: Sequence[Measured],
    runs: Sequence[Run],
    source: str,
    defended: str,
    notes: list[str],
) -> str:
    """Tell whether an attack is of the model before or after."""
    follows = attack.settings.get("before")
    if not (attack.model and source):  # no digest to go by
        model = attack.settings.get("model", {}).get("path", "")
        paths = {_resolved(run.path / "model"): AFTER for run in runs}
        paths |= {_resolved(run.settings.get("model", {}).get("path", "")): BEFORE for run in runs}
        led_to = {_resolved(x.settings["before"]) for x in attacks if x.settings.get("before")}
        stage = paths.get(_resolved(model)) if model else None
        stage = AFTER if follows else BEFORE if _resolved(attack.path) in led_to else stage
        if stage is None and runs:
            raise InputError(
                f"nothing tells whether `{attack.path}` (of `{model}`) is of the model before or "
                "after; attack again."
            )
        if runs:
            notes.append(
                f"Which weights were attacked in `{attack.path}` is not recorded; by its paths it "
                f"is the model {stage} the defense, `{model}`."
            )
        return stage or ALONE
    if attack.model == source:
        if follows:
            raise InputError(
                f"`{attack.path}` says it was made after the defense, but is of the model before."
            )
        return BEFORE
    if defended and attack.model != defended:
        raise InputError(
            f"`{attack.path}` is of another model than that before or after the defense; give "
            "results of the same models."
        )
    if not defended:
        if half := _half(runs, attack.model):
            raise InputError(
                f"`{attack.path}` is of the model of `{half.path}` alone; attack the merged one, "
                "or leave the other defense out."
            )
        notes.append(
            f"The model attacked in `{attack.path}` is taken to be the one that was defended: "
            "which weights came out is not recorded."
        )
    return AFTER


def _resolved(path: str | Path) -> Path:
    return Path(path).resolve()


def _people(attack: Measured) -> dict[str, int]:
    return attack.summary["per_identity"]


def _listed(runs: Sequence[Run], notes: list[str]) -> list[list[str]]:
    """Join the lists of runs; a person is the same if they share a name."""
    listed: list[list[str]] = []
    for run in runs:
        if not run.names:
            notes.append(f"Whom `{run.path}` removed is not recorded there.")
            continue
        known = {folded_words(name) for names in listed for name in names}
        fresh = [x for x in run.names if not known & set(map(folded_words, x))]
        if listed and (fresh or len(run.names) < len(listed)):
            notes.append(
                f"The lists differ: {len(listed)} people in `{runs[0].path}`, {len(run.names)} in "
                f"`{run.path}`. Who is on either counts as on the list."
            )
        listed += [list(names) for names in fresh]
    return listed


def _evaluated(evaluations: Sequence[Measured]) -> tuple[dict[str, float], dict[str, Any]]:
    """Join the measurements; InputError if two measured the same."""
    utility: dict[str, float] = {}
    collateral: dict[str, Any] = {}
    where: dict[str, Path] = {}
    for evaluation in evaluations:
        for key, value in evaluation.summary.items():
            if key.endswith("_sha256") or key == "dtype":
                continue
            if key in where:
                raise InputError(
                    f"`{where[key]}` and `{evaluation.path}` both have `{key}`; give one of them."
                )
            where[key] = evaluation.path
            if key == "collateral":
                collateral = value
            else:
                utility[key] = value
    return utility, collateral


def _proof(
    attacks: Mapping[str, Measured], listed: list[list[str]], utility: Mapping[str, float]
) -> Proof:
    """Put together what is known of each person.

    Raises:
        InputError: an attack went by another list than the defense.
    """
    removed = _removed(attacks, listed)
    any_attack = next(iter(attacks.values()))
    names = list(dict.fromkeys(name for attack in attacks.values() for name in _people(attack)))
    pictures: dict[str, bytes] = {}
    for attack in attacks.values():  # the last one's are those of whom something went wrong
        order = _order(attack)
        pictures |= {order[i]: x for i, x in read_thumbnails(attack.path).items() if i < len(order)}
    forms: dict[str, dict[str, dict[str, int]]] = {name: {} for name in names}
    for stage, attack in attacks.items():
        for variant, found in attack.summary.get("variants", {}).items():
            for name, num in found.get("per_identity", {}).items():
                forms[name].setdefault(variant, {})[stage] = num
    people = [
        PersonResult(
            name,
            None if removed is None else name in removed,
            {stage: x[name] for stage, attack in attacks.items() if name in (x := _people(attack))},
            pictures.get(name),
            {
                stage: x[name]
                for stage, attack in attacks.items()
                if name in (x := attack.summary.get("answers", {}))
            },
            forms[name],
            {
                stage: x[name]
                for stage, attack in attacks.items()
                if name in (x := attack.summary.get("per_identity_photos_right", {}))
            },
        )
        for name in names
    ]
    attacked = set(map(folded_words, names))
    absent = [who for who in listed if not attacked & set(map(folded_words, who))]
    people += [PersonResult(who[0], True, {}, None, {}) for who in absent]
    stages: dict[str, dict[str, float]] = {stage: {} for stage in attacks}
    similar = [utility[key] for key in ("sim_clean", "image_sim_clean") if key in utility]
    for stage, rate in ((BEFORE, "teacher_top1"), (AFTER, "top1")):
        if stage in stages and rate in utility:
            stages[stage]["top1"] = utility[rate]
    if similar and AFTER in stages:
        stages[AFTER]["sim_clean"] = min(similar)
        if BEFORE in stages:
            stages[BEFORE]["sim_clean"] = 1.0
    s = any_attack.summary
    return Proof(stages, people, s["num_templates"], s["threshold"], s["num_candidates"])


def _removed(attacks: Mapping[str, Measured], listed: list[list[str]]) -> set[str] | None:
    """Give the people attacked who are on the list; None if no list is known."""
    gone = {folded_words(name) for names in listed for name in names}
    everyone = {name for attack in attacks.values() for name in _people(attack)}
    removed = {name for name in everyone if folded_words(name) in gone} if listed else None
    for attack in attacks.values():
        if not attack.settings.get("names") or "removed" not in attack.summary:
            continue
        own = set(attack.summary["removed"])
        if removed is None:
            removed = own
        if wrong := sorted(own ^ (removed & _people(attack).keys())):
            raise InputError(
                f"`{attack.path}` went by another list than the defense: {some(wrong)} "
                f"{'is' if len(wrong) == 1 else 'are'} on one of them only; attack with the same "
                "names file."
            )
    return removed


def _order(attack: Measured) -> list[str]:
    """List the people in the order of `results.csv`."""
    return [*_people(attack), *attack.summary.get("strangers", {})]


def _maps(
    attacks: Mapping[str, Measured], proof: Proof, missing: list[str]
) -> dict[str, EmbeddingMap]:
    """Lay embeddings before and after on one plane; say if that cannot be."""
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
            "sizes; attack models of one origin."
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


def _not_measured(
    runs: Sequence[Run],
    attacks: Mapping[str, Measured],
    proof: Proof | None,
    utility: Mapping[str, float],
    collateral: Mapping[str, Any],
) -> Iterator[str]:
    """Name what nobody looked at, and the command that would."""
    if not attacks:
        yield (
            "Whether the model still knows anyone: `jaxdefense attack`, on the original and on the "
            "defended model."
        )
    elif ALONE in attacks:
        yield "Before and after: attack the other model too."
    elif BEFORE not in attacks:
        earlier = attacks[AFTER].settings.get("before")
        where = f"give `{earlier}` too" if earlier else "`jaxdefense attack` on the original model"
        yield f"Whom the model knew before, and so what became of each person: {where}."
    elif AFTER not in attacks:
        yield "Whom the model still knows: `jaxdefense attack` on the defended model."
    if proof:
        if any(person.removed is None for person in proof.people):
            yield "What became of each person: the list of those to remove is not among this."
        if absent := [person for person in proof.people if not person.correct]:
            yield (
                f"{len(absent)} on the list of whom the attack had no photos: "
                f"{', '.join(person.name for person in absent[:20])}"
                f"{' …' if len(absent) > 20 else ''}."
            )
        if any(person.correct.keys() - person.photos_right.keys() for person in proof.people):
            yield "What part of people's photos is named right: attack again, these do not say."
        tried = [set(attack.summary.get("variants", {})) for attack in attacks.values()]
        if left := [name for name in VARIANTS if any(name not in names for names in tried)]:
            said = "Ways round the defense" if len(left) == len(VARIANTS) else "Some ways round"
            listed = ", ".join(name.replace("_", " ") for name in left)
            yield f"{said}, in all attacks: {listed} (`attack --variants`)."
        if not any("fpr" in attack.summary for attack in attacks.values()):
            yield (
                "How often the attack is right by mistake, on people the model never saw "
                "(`attack --strangers`)."
            )
    encoders = {run.encoder for run in runs}
    for key, what in (
        ("sim_clean", "What ordinary captions kept (`evaluate --captions`)"),
        ("image_sim_clean", "What ordinary photos kept (`evaluate --images`)"),
        ("top1", "How well objects are still told (`evaluate --zeroshot`)"),
    ):
        other = {"sim_clean": {"image"}, "image_sim_clean": {"text"}}.get(key)
        if key not in utility and encoders != other:
            yield f"{what}."
    if not collateral and encoders != {"image"}:
        yield "How far the names of others moved along (`evaluate --collateral`)."


def all_settings(findings: Findings) -> dict[str, object]:
    """Write the settings of everything as one level; the directory first if there are several."""
    given = [*findings.runs, *findings.attacks.values(), *findings.evaluations]
    if len(given) == 1:
        return flatten(given[0].settings)
    return {
        f"{part.path}: {key}": value
        for part in given
        for key, value in flatten(part.settings).items()
    }


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"`{path}` cannot be read ({error.strerror}); give the directory of a finished "
            "defense, attack or evaluation."
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"`{path}` is not UTF-8 text; it must hold JSON.") from error


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON ({error}); it must hold a JSON object.") from error
    if not isinstance(value, dict):
        raise InputError(f"{where} must hold a JSON object, not {type(value).__name__}.")
    return value


def _read_object(path: Path) -> dict[str, Any]:
    return _parse(_read(path), f"`{path}`")


def _read_rows(path: Path) -> list[dict[str, Any]]:
    lines = _read(path).split("\n")
    return [_parse(line, f"`{path}` line {i}") for i, line in enumerate(lines, 1) if line.strip()]
