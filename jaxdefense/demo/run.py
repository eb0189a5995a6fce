"""`jaxdefense demo`: a model that knows 64 people by name, 16 of whom ask to be removed."""

import json
import time
from collections.abc import Collection, Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from jaxdefense.cache import ArrayCache
from jaxdefense.config import (
    DefendBothConfig,
    ImageDataConfig,
    ImagePart,
    ImageTrainConfig,
    ModelConfig,
    OptimizerConfig,
    TextDataConfig,
    TextPart,
    TextTrainConfig,
)
from jaxdefense.data.captions import Captions, tokenize_captions
from jaxdefense.data.images import Folder, read_folders, thumbnail
from jaxdefense.data.people import read_people, split_photos
from jaxdefense.defense.both import defend_both
from jaxdefense.defense.loop import METRICS
from jaxdefense.demo import world
from jaxdefense.errors import InputError
from jaxdefense.evals.embed import Embedder
from jaxdefense.evals.similarity import image_sim_clean, sim_clean
from jaxdefense.evals.zeroshot import zeroshot
from jaxdefense.idia.attack import AttackResult, attack
from jaxdefense.idia.candidates import candidate_names
from jaxdefense.paths import check_writable
from jaxdefense.report.demo import DemoReport, write_demo_report
from jaxdefense.report.frame import flatten
from jaxdefense.report.proof import PersonResult
from jaxdefense.results import DemoSummary, read_settings, write_summary

NUM_REMOVED, NUM_PHOTOS, NUM_CANDIDATES, THRESHOLD = 16, 20, 1000, 1
_NUM_CAPTIONS, _NUM_HELD_OUT_CAPTIONS = 8000, 1000
_NUM_PASSERS_BY = 800
_NUM_IMAGES, _NUM_HELD_OUT_IMAGES, _BATCH = 3000, 500, 256


def shipped_model() -> Path:
    """The model directory that ships with the package: a small CLIP that knows 64 people.

    Made by `python -m jaxdefense.demo.pretrain --out jaxdefense/demo/model`.
    """
    return Path(str(resources.files("jaxdefense.demo") / "model"))


def run_demo(out: Path, console: Console) -> DemoSummary:
    """Draw the world, attack the model, defend it, attack again; write report and summary.

    Args:
        out: a directory that does not exist or is empty.
        console: for progress.

    Returns:
        the summary.

    Raises:
        InputError: `out` holds something.
    """
    started = time.monotonic()
    check_writable(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"`{out}` exists and is not empty; give another directory with --out.")
    members, strangers = world.members(), world.strangers()
    removed = [member.name for member in members[:: len(members) // NUM_REMOVED]]
    # Half of the others are known to the defense as people who must stay; it never sees the rest.
    kept = [member.name for member in members if member.name not in removed][::2]
    with console.status(f"drawing {len(members)} people, {len(strangers)} strangers and objects"):
        # Three quarters of a person's photos may be trained on, the others are for the attack.
        shown = [x for x in members if x.name in {*removed, *kept}]
        world.write_faces(shown, 4 * NUM_PHOTOS, out / "known")
        unseen = [x for x in members if x not in shown]
        world.write_faces(unseen, NUM_PHOTOS, out / "unseen")
        world.write_passers_by(_NUM_PASSERS_BY, out / "passers-by")
        world.write_faces(strangers, NUM_PHOTOS, out / "strangers")
        world.write_objects(NUM_PHOTOS, out / "objects")
        world.write_images(_NUM_IMAGES + _NUM_HELD_OUT_IMAGES, out / "images")
        captions = world.captions(_NUM_CAPTIONS, 0)
        _write_lines(out / "captions.txt", captions)
        _write_lines(out / "names.txt", removed)
        _write_lines(out / "kept.txt", kept)
        held_out = _held_out(out)
    cfg = demo_config(out)
    data, train = cfg.image.data, cfg.image.train
    known = read_people(str(out / "known"))
    _, attacked = split_photos(known, data.trigger_fraction, train.seed)
    people = _by_name(attacked + read_people(str(out / "unseen")), members)
    people += _by_name(read_people(str(out / "strangers")), strangers)
    names = [person.name for person in people]
    candidates = candidate_names(names, "", NUM_CANDIDATES, 0)
    classes = read_folders(out / "objects", "classes")

    def examine(model: Embedder) -> tuple[AttackResult, dict[str, Any]]:
        found = attack(
            model, people, candidates, num_photos=NUM_PHOTOS, threshold=THRESHOLD, seed=0
        )
        figures = measured(found[: len(members)], removed, kept)
        return found, figures | {"top1": zeroshot(model, classes)["top1"]}

    console.print("attacking the model as it is")
    # Of four models attacked, two have the first one's names, and two its faces: embedded once.
    cache = ArrayCache(str(out / "cache"), console)
    shipped = ModelConfig(str(shipped_model())).measured()
    teacher = Embedder(shipped, _BATCH, console, cache=cache)
    found, stages = {}, {}
    found["before"], stages["before"] = examine(teacher)
    stages["before"]["sim_clean"] = 1.0
    defend_both(cfg, console)
    text, image = (Path(half.out) / "model" for half in cfg.halves())
    for stage, path in (("text", text), ("image", image), ("merged", out / "run" / "model")):
        console.print(f"attacking the model, defended: {stage}")
        student = Embedder(ModelConfig(str(path)).measured(), _BATCH, console, cache=cache)
        found[stage], stages[stage] = examine(student)
        similar = []
        if stage != "image":
            similar.append(sim_clean(student, teacher, _held_out_captions(captions, student)))
        if stage != "text":
            similar.append(image_sim_clean(student, teacher, held_out))
        stages[stage]["sim_clean"] = min(similar)

    strangers_known = list(found["before"][len(members) :].known().values())
    summary = DemoSummary(
        **stages,
        nonmember_fpr=float(np.mean(strangers_known)),
        seconds=round(time.monotonic() - started, 1),
    )
    runs = [Path(half.out) for half in cfg.halves()]
    report = DemoReport(
        stages=stages,
        people=_people(members, removed, kept, found),
        num_templates=found["before"].num_templates,
        threshold=THRESHOLD,
        num_candidates=len(candidates),
        nonmember_fpr=summary.nonmember_fpr,
        seconds=summary.seconds,
        losses=[json.loads(x) for run in runs for x in (run / METRICS).read_text().splitlines()],
        settings=flatten(read_settings(out / "run")),
    )
    write_demo_report(report, out / "report.html")
    write_summary(out, summary)
    console.print(f"report: {out / 'report.html'}")
    return summary


def measured(
    found: AttackResult, removed: Collection[str], kept: Collection[str]
) -> dict[str, float | None]:
    """Sum up an attack on the people the model knows.

    Args:
        found: of all of them.
        removed: those on the list.
        kept: of the others, those among the faces that the defense is told to keep.

    Returns:
        removed_tpr, retained_tpr: part of those on the list, and of all others, whom the attack
        recognises; removed_photos_right, retained_photos_right, unseen_photos_right: mean share of
        photos named right of those on the list, of those among the kept faces, and of those whom no
        defense was shown. None of nobody.
    """
    known = found.known()
    right = dict(zip(found.names, found.photos_right, strict=True))

    def mean(values: Mapping[str, float], names: Iterable[str]) -> float | None:
        of = [values[name] for name in names]
        return float(np.mean(of)) if of else None

    others = [name for name in found.names if name not in removed]
    return {
        "removed_tpr": mean(known, removed),
        "retained_tpr": mean(known, others),
        "removed_photos_right": mean(right, removed),
        "retained_photos_right": mean(right, [name for name in others if name in kept]),
        "unseen_photos_right": mean(right, [name for name in others if name not in kept]),
    }


def demo_config(out: Path) -> DefendBothConfig:
    """Settings of the demo: fewer and smaller steps than the defaults, for a small model on a CPU.

    The tiny text encoder moves less a step than a full one, so its learning rate is higher.
    """
    return DefendBothConfig(
        out=str(out / "run"),
        model=ModelConfig(str(shipped_model())),
        text=TextPart(
            TextDataConfig(
                names=str(out / "names.txt"),
                captions=str(out / "captions.txt"),
                keep_names=str(out / "kept.txt"),
            ),
            TextTrainConfig(steps=300, num_clean=32, num_poisoned=48, num_name=96),
            OptimizerConfig(lr=1e-3),
        ),
        image=ImagePart(
            ImageDataConfig(
                faces=str(out / "known"),
                images=str(out / "images"),
                keep=str(out / "passers-by"),
                trigger_fraction=0.75,
                cache_dir=str(out / "cache"),
            ),
            ImageTrainConfig(steps=120, num_clean=32, num_poisoned=32, num_keep=64),
        ),
    )


def _held_out(out: Path) -> list[Path]:
    """Move photos that no training may see out of the ordinary ones."""
    photos = []
    (out / "held_out").mkdir()
    for photo in sorted((out / "images").iterdir())[_NUM_IMAGES:]:
        photos.append(photo.rename(out / "held_out" / photo.name))
    return photos


def _held_out_captions(trained_on: list[str], model: Embedder) -> Captions:
    seen = set(trained_on)
    fresh = [c for c in world.captions(4 * _NUM_HELD_OUT_CAPTIONS, 1) if c not in seen]
    return tokenize_captions(fresh[:_NUM_HELD_OUT_CAPTIONS], model.tokenizer)


def _by_name(folders: list[Folder], who: list[world.Named]) -> list[Folder]:
    """Put folders in the order of the people, rather than of the alphabet."""
    found = {folder.name: folder for folder in folders}
    return [found[named.name] for named in who]


def _people(
    members: list[world.Named],
    removed: list[str],
    kept: Collection[str],
    stages: dict[str, AttackResult],
) -> list[PersonResult]:
    return [
        PersonResult(
            name=member.name,
            removed=member.name in removed,
            correct={stage: found.correct[i] for stage, found in stages.items()},
            photo=thumbnail(world.draw_photo(member, 0, 192)),
            answers={stage: found.answers[i] for stage, found in stages.items()},
            photos_right={stage: found.photos_right[i] for stage, found in stages.items()},
            kept=member.name in kept,
        )
        for i, member in enumerate(members)
    ]


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
