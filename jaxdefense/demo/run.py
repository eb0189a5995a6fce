"""`jaxdefense demo`: a model that knows 64 people by name, 16 of whom ask to be removed."""

import json
import time
from importlib import resources
from pathlib import Path

import numpy as np
from rich.console import Console

from jaxdefense.config import (
    DefendTextConfig,
    ModelConfig,
    OptimizerConfig,
    TextDataConfig,
    TextTrainConfig,
)
from jaxdefense.data.captions import Captions, tokenize_captions
from jaxdefense.data.images import Folder, read_folders
from jaxdefense.defense.loop import METRICS
from jaxdefense.defense.text import defend_text
from jaxdefense.demo import world
from jaxdefense.evals.embed import Embedder
from jaxdefense.evals.similarity import sim_clean
from jaxdefense.evals.zeroshot import zeroshot
from jaxdefense.idia.attack import AttackResult, attack, candidate_names
from jaxdefense.report.html import DemoReport, PersonResult, flatten, write_demo_report
from jaxdefense.run_directory import write_json

NUM_REMOVED, NUM_PHOTOS, NUM_CANDIDATES, THRESHOLD = 16, 20, 1000, 1
_NUM_CAPTIONS, _NUM_HELD_OUT_CAPTIONS, _BATCH = 8000, 1000, 256


def shipped_model() -> Path:
    """The model directory that ships with the package: a small CLIP that knows 64 people.

    Made by `python -m jaxdefense.demo.pretrain --out jaxdefense/demo/model`.
    """
    return Path(str(resources.files("jaxdefense.demo") / "model"))


def run_demo(out: Path, console: Console) -> dict:
    """Draw the world, attack the model, defend it, attack again; write report and summary.

    Args:
        out: a directory that does not exist or is empty.
        console: for progress.

    Returns:
        the summary.

    Raises:
        ValueError: `out` holds something.
    """
    started = time.monotonic()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"`{out}` exists and is not empty; give another directory with --out.")
    members, strangers = world.members(), world.strangers()
    removed = [member.name for member in members[:: len(members) // NUM_REMOVED]]
    with console.status(f"drawing {len(members)} people, {len(strangers)} strangers and objects"):
        world.write_faces(members, NUM_PHOTOS, out / "members")
        world.write_faces(strangers, NUM_PHOTOS, out / "strangers")
        world.write_objects(NUM_PHOTOS, out / "objects")
        captions = world.captions(_NUM_CAPTIONS, 0)
        _write_lines(out / "captions.txt", captions)
        _write_lines(out / "names.txt", removed)
    people = _by_name(read_folders(out / "members", "faces"), members)
    people += _by_name(read_folders(out / "strangers", "faces"), strangers)
    names = [person.name for person in people]
    candidates = candidate_names(names, "", NUM_CANDIDATES, 0)
    classes = read_folders(out / "objects", "classes")

    def examine(model: Embedder) -> tuple[AttackResult, dict[str, float]]:
        found = attack(
            model, people, candidates, num_photos=NUM_PHOTOS, threshold=THRESHOLD, seed=0
        )
        known = dict(zip(names, [n >= THRESHOLD for n in found.correct], strict=True))
        kept = [member.name for member in members if member.name not in removed]
        return found, {
            "removed_tpr": float(np.mean([known[name] for name in removed])),
            "retained_tpr": float(np.mean([known[name] for name in kept])),
            "top1": zeroshot(model, classes)["top1"],
        }

    console.print("attacking the model as it is")
    teacher = Embedder(ModelConfig(str(shipped_model())), _BATCH, console)
    before, stage_before = examine(teacher)
    stage_before["sim_clean"] = 1.0
    nonmember_fpr = float(np.mean([n >= THRESHOLD for n in before.correct[len(members) :]]))

    # A small model moves less a step than a full one, and its weights must move further: not the
    # paper's rate and hold on the weights.
    cfg = DefendTextConfig(
        out=str(out / "text"),
        model=ModelConfig(str(shipped_model())),
        data=TextDataConfig(names=str(out / "names.txt"), captions=str(out / "captions.txt")),
        train=TextTrainConfig(steps=200, w_weight=0.001),
        optimizer=OptimizerConfig(lr=1e-3, milestones=(100, 150)),
    )
    defend_text(cfg, console)

    console.print("attacking the defended model")
    student = Embedder(ModelConfig(str(out / "text" / "model")), _BATCH, console)
    after, stage_text = examine(student)
    held_out = _held_out_captions(captions, student)
    stage_text["sim_clean"] = sim_clean(student, teacher, held_out)

    summary = {
        "before": stage_before,
        "text": stage_text,
        "nonmember_fpr": nonmember_fpr,
        "seconds": round(time.monotonic() - started, 1),
    }
    metrics = (out / "text" / METRICS).read_text().splitlines()
    report = DemoReport(
        stages={"before": stage_before, "text": stage_text},
        people=_people(members, removed, {"before": before, "text": after}),
        num_templates=before.num_templates,
        threshold=THRESHOLD,
        num_candidates=len(candidates),
        nonmember_fpr=nonmember_fpr,
        seconds=summary["seconds"],
        losses=[json.loads(line) for line in metrics],
        settings=flatten(json.loads((out / "text" / "config.json").read_text())),
    )
    write_demo_report(report, out / "report.html")
    write_json(out / "summary.json", summary)
    console.print(f"report: {out / 'report.html'}")
    return summary


def _held_out_captions(trained_on: list[str], model: Embedder) -> Captions:
    seen = set(trained_on)
    fresh = [c for c in world.captions(4 * _NUM_HELD_OUT_CAPTIONS, 1) if c not in seen]
    return tokenize_captions(fresh[:_NUM_HELD_OUT_CAPTIONS], model.tokenizer)


def _by_name(folders: list[Folder], who: list[world.Named]) -> list[Folder]:
    """Put folders in the order of the people, rather than of the alphabet."""
    found = {folder.name: folder for folder in folders}
    return [found[named.name] for named in who]


def _people(
    members: list[world.Named], removed: list[str], stages: dict[str, AttackResult]
) -> list[PersonResult]:
    return [
        PersonResult(
            name=member.name,
            removed=member.name in removed,
            correct={stage: found.correct[i] for stage, found in stages.items()},
            photo=world.draw_photo(member, 0, 192),
            answers={stage: found.answers[i] for stage, found in stages.items()},
        )
        for i, member in enumerate(members)
    ]


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
