"""Checks which model each attack and evaluation is of, and that they belong together.

Results that do not belong together are refused. Where that cannot be known, a note says so.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxdefense.errors import InputError
from jaxdefense.idia.conditions import difference
from jaxdefense.report.sources import Attack, Run, Sources
from jaxdefense.words import some

BEFORE, AFTER, ALONE = "before", "after", "attacked"
_CHOSEN = ("faces", "candidates", "sexes", "templates", "num_photos", "unseen_by", "seed")


def find_models(sources: Sources) -> tuple[str, str]:
    """Return the digests of the models before and after the defense, "" if they are not known.

    Raises:
        InputError: runs or evaluations are of different models.
    """
    runs, evaluations, merged = sources.runs, sources.evaluations, sources.merged
    origins = {run.path: run.source for run in runs}
    origins |= {x.path: x.summary.teacher_sha256 for x in evaluations}
    source = _one(origins, "begin with different models")
    results = {x.path: x.model for x in evaluations}
    if merged or len(runs) == 1:
        results |= {run.path: merged or run.defended for run in runs}
    defended = _one(results, "are of different defended models")
    if len(runs) == 2 and not merged and (x := _half(runs, defended)):
        raise InputError(
            f"`{x.path}` is one of two defenses, and {some(str(e.path) for e in evaluations)} "
            "evaluated its model alone; evaluate the merged model, or leave the other defense out."
        )
    return source, defended


def _half(runs: Sequence[Run], model: str) -> Run | None:
    """Find the run whose defended model this is; None if there is none."""
    return next((run for run in runs if model and run.defended == model), None)


def _one(digests: Mapping[Path, str], what: str) -> str:
    known = {path: digest for path, digest in digests.items() if digest}
    different = {digest: str(path) for path, digest in reversed(known.items())}
    if len(different) > 1:
        raise InputError(f"{some(different.values())} {what}; give what belongs to one defense.")
    return next(iter(different), "")


def tell_stages(
    runs: Sequence[Run],
    attacks: Sequence[Attack],
    source: str,
    defended: str,
    notes: list[str],
) -> dict[str, Attack]:
    """Tell the attack before the defense from the one after it.

    Raises:
        InputError: an attack is of another model, two are of one stage, or a stage cannot be told.
    """
    stages: dict[str, Attack] = {}
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
            f"cannot tell whether `{stages[ALONE].path}` is of the model before or after; give "
            "the defense too."
        )
    stages = {stage: stages[stage] for stage in (BEFORE, AFTER, ALONE) if stage in stages}
    if len(stages) > 1:
        _check_alike(stages[BEFORE], stages[AFTER], notes)
    after = stages.get(AFTER)
    if any(x.encoder == "image" for x in runs) and after and not after.setting("unseen_by"):
        notes.append(
            "The attack may use photos that the defense was trained on, as `--unseen-by` was not "
            "given. On other photos of a person the removal may work less well."
        )
    return stages


def _check_alike(before: Attack, after: Attack, notes: list[str]) -> None:
    """Raise InputError if two attacks cannot be compared; note what else differs."""
    for key in ("threshold", "num_templates", "num_candidates"):
        if (old := getattr(before.summary, key)) != (new := getattr(after.summary, key)):
            raise InputError(
                f"`{before.path}` has `{key}` {old}, `{after.path}` {new}; the two attacks must be "
                "alike except for the model."
            )
    known = before.summary.per_identity
    if lost := [x for x in after.summary.per_identity if x not in known]:
        raise InputError(
            f"`{before.path}` lacks {some(lost)}, whom `{after.path}` has; attack the same people."
        )
    for key in _CHOSEN:
        old, new = before.settings.get(key), after.settings.get(key)
        if old != new:
            notes.append(f"The two attacks differ in `{key}`: {old!r} before, {new!r} after.")
    old, new = before.summary.conditions, after.summary.conditions
    if old and new and (differ := difference(old, new)):
        notes.append(f"`{before.path}` differs from `{after.path}`: {differ}.")


def _stage(
    attack: Attack,
    attacks: Sequence[Attack],
    runs: Sequence[Run],
    source: str,
    defended: str,
    notes: list[str],
) -> str:
    """Return the stage of an attack, before or after."""
    follows = attack.setting("before")
    if not (attack.model and source):
        return _stage_by_paths(attack, attacks, runs, notes)
    if attack.model == source:
        if follows:
            raise InputError(
                f"`{attack.path}` says it was made after the defense, but is of the model before."
            )
        return BEFORE
    if defended and attack.model != defended:
        raise InputError(
            f"`{attack.path}` is of another model than those before and after the defense; give "
            "results of these models."
        )
    if not defended:
        if half := _half(runs, attack.model):
            raise InputError(
                f"`{attack.path}` is of the model of `{half.path}` alone; attack the merged "
                "model, or leave the other defense out."
            )
        notes.append(
            f"The model attacked in `{attack.path}` is taken to be the defended model, whose "
            "weights are not recorded."
        )
    return AFTER


def _stage_by_paths(
    attack: Attack, attacks: Sequence[Attack], runs: Sequence[Run], notes: list[str]
) -> str:
    """Return the stage of an attack by its paths, where a digest is missing."""
    model = attack.setting("model.path")
    paths = {_resolved(run.path / "model"): AFTER for run in runs}
    paths |= {_resolved(run.setting("model.path")): BEFORE for run in runs}
    led_to = {_resolved(before) for x in attacks if (before := x.setting("before"))}
    stage = paths.get(_resolved(model)) if model else None
    if attack.setting("before"):
        stage = AFTER
    elif _resolved(attack.path) in led_to:
        stage = BEFORE
    if stage is None and runs:
        raise InputError(
            f"cannot tell whether `{attack.path}` (of `{model}`) is of the model before or "
            "after; attack again."
        )
    if runs:
        notes.append(
            f"`{attack.path}` does not record which weights it attacked. By its paths it is of "
            f"the model {stage} the defense, `{model}`."
        )
    return stage or ALONE


def _resolved(path: str | Path) -> Path:
    return Path(path).resolve()
