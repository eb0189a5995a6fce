"""`jaxdefense bench dtypes`: whether a defense in bfloat16 ends as one in float32.

Names are removed from the demo's model twice, once computed in each dtype, and each model is
attacked in its own. Parameters and optimizer are float32 in both.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jaxdefense.bench.machine import JaxImplementation
from jaxdefense.bench.side_by_side import check_counts
from jaxdefense.config import (
    PAPER_TEXT,
    AttackConfig,
    DefendTextConfig,
    EvaluateConfig,
    ModelConfig,
    OptimizerConfig,
    TextDataConfig,
)
from jaxdefense.defense.text import defend_text
from jaxdefense.evals.run import run_evaluate
from jaxdefense.files import write_text
from jaxdefense.idia.run import run_attack

logger = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16")


def bench_dtypes(steps: int, photos: int) -> dict[str, Any]:
    """Defend, attack and evaluate in float32 and in bfloat16.

    Args:
        steps: of training.
        photos: of each person, for the attack.

    Returns:
        the machine, `differ`, the people of whom the attack succeeds in one dtype alone, and by
        dtype: the parts recognised of those removed and of the others, the cosine of unseen
        captions to the model before, and the last loss.

    Raises:
        InputError: a parameter is out of range.
    """
    from jaxdefense.demo import world
    from jaxdefense.demo.inputs import roles

    check_counts(steps=steps, photos=photos)
    who = roles(64)
    found, known = dict[str, dict[str, float]](), dict[str, set[str]]()
    with TemporaryDirectory() as scratch:
        path = Path(scratch)
        world.write(world.faces(who.members, photos, path / "faces"))
        _write(path / "names.txt", who.removed)
        _write(path / "captions.txt", world.captions(8000, 0))
        _write(path / "held_out.txt", world.captions(1000, 1))
        for dtype in DTYPES:
            logger.info(f"defending, attacking and evaluating in {dtype}")
            found[dtype], known[dtype] = _measure(path, dtype, steps, photos, who.removed)
    differ = sorted(known["float32"] ^ known["bfloat16"])
    return JaxImplementation().machine() | {"steps": steps, "differ": differ, **found}


def _measure(
    path: Path, dtype: Any, steps: int, photos: int, removed: Sequence[str]
) -> tuple[dict[str, float], set[str]]:
    """Measure one dtype; gives the figures, and whom the attack recognises."""
    from jaxdefense.demo.run import shipped_model

    model, out = ModelConfig(str(shipped_model()), dtype=dtype), path / dtype
    train = dataclasses.replace(PAPER_TEXT, steps=steps, w_weight=0.001, target="object")
    optimizer = OptimizerConfig(1e-3, warmup=0, milestones=(0.5, 0.75), gamma=0.5)
    data = TextDataConfig(str(path / "names.txt"), str(path / "captions.txt"))
    defense = defend_text(DefendTextConfig(str(out), model, data, train, optimizer))
    defended = dataclasses.replace(model, path=f"{out}/model")
    faces = str(path / "faces")
    attack = run_attack(AttackConfig(f"{out}-attack", defended, faces, num_photos=photos))
    captions = str(path / "held_out.txt")
    evaluation = run_evaluate(
        EvaluateConfig(f"{out}-evaluation", defended, model.path, captions=captions)
    )
    known = {name for name, num in attack.per_identity.items() if num >= attack.threshold}
    others = attack.per_identity.keys() - set(removed)
    figures = {
        "removed_recognised": len(known & set(removed)) / len(removed),
        "others_recognised": len(known & others) / len(others),
        "cosine": evaluation.sim_clean or 0.0,
        "last_loss": defense.final["total"],
    }
    return {name: round(value, 5) for name, value in figures.items()}, known


def _write(path: Path, lines: Sequence[str]) -> None:
    write_text(path, "".join(f"{line}\n" for line in lines))
