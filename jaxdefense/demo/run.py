"""`jaxdefense demo`: removes a quarter of the people whom a small model knows by name.

The demo runs what a user would run: `defend both`, `attack` before and after, `evaluate`, `report`
and three parts of `prove`, each in a directory of its own. An interrupted demo resumes and skips
finished commands.
"""

import json
import logging
import time
from collections.abc import Collection, Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from jaxdefense.cache import ArrayCache
from jaxdefense.config import (
    AttackConfig,
    DefendBothConfig,
    DemoConfig,
    EvaluateConfig,
    ImagePart,
    ImagePartDataConfig,
    ImageTrainConfig,
    ModelConfig,
    OptimizerConfig,
    TextDataConfig,
    TextPart,
    TextTrainConfig,
)
from jaxdefense.data.images import thumbnail
from jaxdefense.data.pairs import IMAGES
from jaxdefense.defense.both import defend_both
from jaxdefense.defense.loop import METRICS
from jaxdefense.demo import world
from jaxdefense.demo.inputs import PAIRS, SIZES, TRIGGER_FRACTION, Roles, draw_inputs, roles
from jaxdefense.evals.run import run_evaluate
from jaxdefense.idia.run import run_attack
from jaxdefense.proof.config import ProveConfig
from jaxdefense.proof.run import prove
from jaxdefense.report.demo import DemoReport, write_demo_report
from jaxdefense.report.frame import flatten
from jaxdefense.report.proof import PersonResult
from jaxdefense.report.write import write_report
from jaxdefense.results import (
    AttackSummary,
    BothDefenseSummary,
    DemoStage,
    DemoSummary,
    EvaluationSummary,
    ProofSummary,
    read_settings,
)
from jaxdefense.run_directory import RunDirectory, once

logger = logging.getLogger(__name__)

BEFORE, AFTER = "before", ("text", "image", "merged")  # stages
_WORLD, _DEFENSE, _ATTACK, _EVALUATION = "world", "run", "attack", "evaluation"  # directories
_CACHE, _REPORT, _PROOF, _PAGE = "cache", "report", "proof", "report.html"
# Parts of the proof that take seconds, by the number of people.
_SHOWN = {16: ("known", "gallery"), 64: ("known", "gallery", "others")}


def shipped_model() -> Path:
    """Return the model directory that ships with the package: a small CLIP that knows 64 people.

    `python -m jaxdefense.demo.pretrain --out jaxdefense/demo/model` makes this model.
    """
    return Path(str(resources.files("jaxdefense.demo") / "model"))


def run_demo(cfg: DemoConfig) -> DemoSummary:
    """Draw the world, defend the model, attack it before and after; write reports and a summary.

    Args:
        cfg: see `DemoConfig`.

    Returns:
        the summary; after a resume, its seconds count from the resume on.

    Raises:
        InputError: `out` holds another demo, a finished one, or something else.
        Interrupted: see `loop.run`.
    """
    started, out = time.monotonic(), Path(cfg.out)
    directory, who = RunDirectory(out, DemoSummary), roles(cfg.people)
    directory.open(cfg)
    if not (out / _WORLD).exists():
        draw_inputs(who, out / _WORLD)
    once(defend_both, defense_config(cfg), BothDefenseSummary)
    attacks, evaluations = {}, {}
    # Each encoder belongs to two of the four models, so the cache saves embedding its inputs twice.
    cache = ArrayCache(str(out / _CACHE))
    for stage in (BEFORE, *AFTER):
        logger.info(f"attacking the model: {stage}")
        attacks[stage] = once(run_attack, attack_config(cfg, stage), AttackSummary, cache)
    for stage in AFTER:
        logger.info(f"evaluating the model: {stage}")
        how = evaluate_config(cfg, stage)
        evaluations[stage] = once(run_evaluate, how, EvaluationSummary, cache)
    logger.info("proving the removal from the model: merged")
    once(prove, prove_config(cfg), ProofSummary, cache)
    kept = {BEFORE: (evaluations[AFTER[-1]].teacher_top1, 1.0)}
    for stage, found in evaluations.items():
        kept[stage] = found.top1, min(found.sim_clean, found.image_sim_clean)
    stages = {
        stage: measured(found, who.removed, who.kept, *kept[stage])
        for stage, found in attacks.items()
    }
    summary = DemoSummary(
        **stages,
        nonmember_fpr=attacks[BEFORE].fpr,
        seconds=round(time.monotonic() - started, 1),
    )
    _write_reports(cfg, who, attacks, stages, summary)
    directory.finish(summary)
    logger.info(f"report: {out / _PAGE}")
    return summary


def measured(
    attack: AttackSummary,
    removed: Collection[str],
    kept: Collection[str],
    top1: float,
    sim_clean: float,
) -> DemoStage:
    """Sum up an attack on the people the model knows.

    Args:
        attack: its summary.
        removed: the listed people.
        kept: the other people whose faces the defense is told to keep.
        top1, sim_clean: results of the evaluation.

    Returns:
        top1 and sim_clean; removed_tpr and retained_tpr, the part of the listed people and of all
        others whom the attack recognises; removed_photos_right, retained_photos_right and
        unseen_photos_right, the mean share of photos named right of the listed people, of the kept
        people, and of those whom no defense was shown. A mean over nobody is None.
    """
    correct, right = attack.per_identity, attack.per_identity_photos_right
    assert right
    known = {name: num >= attack.threshold for name, num in correct.items()}

    def mean(values: Mapping[str, float], names: Iterable[str]) -> float | None:
        of = [values[name] for name in names]
        return float(np.mean(of)) if of else None

    others = [name for name in correct if name not in removed]
    return {
        "removed_tpr": mean(known, removed),
        "retained_tpr": mean(known, others),
        "removed_photos_right": mean(right, removed),
        "retained_photos_right": mean(right, [name for name in others if name in kept]),
        "unseen_photos_right": mean(right, [name for name in others if name not in kept]),
        "top1": top1,
        "sim_clean": sim_clean,
    }


def defense_config(cfg: DemoConfig) -> DefendBothConfig:
    """Return the settings of the defense: fewer and smaller steps than the defaults, for a CPU.

    The tiny text encoder moves less in a step than a full one, so its learning rate is higher.
    """
    out, drawn = Path(cfg.out), Path(cfg.out) / _WORLD
    text = TextTrainConfig(steps=300, num_clean=32, num_poisoned=48, num_name=96)
    image = ImageTrainConfig(steps=120, num_clean=32, num_poisoned=32, num_keep=64)
    lr = 1e-3
    if cfg.people < world.NUM_MEMBERS:
        # So few steps remove people only if other people's names are held less firmly in place.
        text = TextTrainConfig(steps=50, num_clean=16, num_poisoned=32, num_name=32, w_name=5.0)
        image = ImageTrainConfig(steps=30, num_clean=16, num_poisoned=16, num_keep=32)
        lr = 2e-3
    return DefendBothConfig(
        out=str(out / _DEFENSE),
        model=ModelConfig(str(shipped_model())),
        text=TextPart(
            TextDataConfig(
                names=str(drawn / "names.txt"),
                captions=str(drawn / "captions.txt"),
                keep_names=str(drawn / "kept.txt"),
            ),
            text,
            OptimizerConfig(lr=lr),
        ),
        image=ImagePart(
            ImagePartDataConfig(
                faces=str(drawn / "known"),
                images=str(drawn / "images"),
                keep=str(drawn / "passers-by"),
                trigger_fraction=TRIGGER_FRACTION,
                cache_dir=str(out / _CACHE),
            ),
            image,
        ),
    )


def _model(cfg: DemoConfig, stage: str) -> ModelConfig:
    """Return the model of a stage."""
    run = Path(cfg.out) / _DEFENSE
    paths = {BEFORE: shipped_model(), "merged": run / "model"}
    return ModelConfig(str(paths.get(stage, run / stage / "model")))


def attack_config(cfg: DemoConfig, stage: str) -> AttackConfig:
    """Return the settings of an attack, which are the same at every stage except for the model."""
    out, drawn = Path(cfg.out), Path(cfg.out) / _WORLD
    return AttackConfig(
        out=str(out / _ATTACK / stage),
        model=_model(cfg, stage),
        faces=str(drawn / "faces"),
        strangers=str(drawn / "strangers"),
        unseen_by=str(out / _DEFENSE / "image"),
        num_candidates=SIZES[cfg.people].candidates,
        threshold=SIZES[cfg.people].threshold,
        cache_dir=str(out / _CACHE),
    )


def evaluate_config(cfg: DemoConfig, stage: str) -> EvaluateConfig:
    """Return the settings of the evaluation of a defended model, on data unseen by any defense."""
    out, drawn = Path(cfg.out), Path(cfg.out) / _WORLD
    return EvaluateConfig(
        out=str(out / _EVALUATION / stage),
        model=_model(cfg, stage),
        teacher=str(shipped_model()),
        captions=str(drawn / "held_out_captions.txt"),
        images=str(drawn / PAIRS / IMAGES),
        zeroshot=str(drawn / "objects"),
    )


def prove_config(cfg: DemoConfig) -> ProveConfig:
    """Return the settings of the proof of the merged model; the directory of its run says more."""
    out, drawn = Path(cfg.out), Path(cfg.out) / _WORLD
    return ProveConfig(
        out=str(out / _PROOF),
        model=ModelConfig(str(out / _DEFENSE)),
        faces=str(drawn / "faces"),
        strangers=str(drawn / "strangers"),
        pairs=str(drawn / PAIRS),
        zeroshot=str(drawn / "objects"),
        parts=_SHOWN[cfg.people],
        num_candidates=SIZES[cfg.people].candidates,
        threshold=SIZES[cfg.people].threshold,
        cache_dir=str(out / _CACHE),
    )


def _write_reports(
    cfg: DemoConfig,
    who: Roles,
    attacks: Mapping[str, AttackSummary],
    stages: Mapping[str, DemoStage],
    summary: DemoSummary,
) -> None:
    """Write the demo's page on all stages, and the output of `report` on the merged model."""
    out = Path(cfg.out)
    results = [out / _DEFENSE, *(out / _ATTACK / stage for stage in (BEFORE, AFTER[-1]))]
    page = out / _REPORT / _PAGE
    for kind in (".csv", ".json", ".html"):  # may remain from an interrupted demo
        page.with_suffix(kind).unlink(missing_ok=True)
    write_report([*results, out / _EVALUATION / AFTER[-1]], page)
    before, runs = attacks[BEFORE], [Path(half.out) for half in defense_config(cfg).halves()]
    report = DemoReport(
        stages={
            stage: {name: x for name, x in found.items() if isinstance(x, float)}
            for stage, found in stages.items()
        },
        people=_people(who, attacks),
        num_templates=before.num_templates,
        threshold=before.threshold,
        num_candidates=before.num_candidates,
        nonmember_fpr=summary.nonmember_fpr,
        seconds=summary.seconds,
        losses=[json.loads(x) for run in runs for x in (run / METRICS).read_text().splitlines()],
        settings=flatten(read_settings(out / _DEFENSE)),
    )
    write_demo_report(report, out / _PAGE)


def _people(who: Roles, attacks: Mapping[str, AttackSummary]) -> list[PersonResult]:
    def of(name: str, what: str) -> dict[str, Any]:
        return {stage: getattr(found, what)[name] for stage, found in attacks.items()}

    return [
        PersonResult(
            name=member.name,
            removed=member.name in who.removed,
            correct=of(member.name, "per_identity"),
            photo=thumbnail(world.draw_photo(member, 0, 192)),
            answers=of(member.name, "answers"),
            photos_right=of(member.name, "per_identity_photos_right"),
            kept=member.name in who.kept,
        )
        for member in who.members
    ]
