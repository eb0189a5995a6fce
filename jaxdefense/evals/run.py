"""`jaxdefense evaluate`: a defended model against the one before."""

import dataclasses
from pathlib import Path

from rich.console import Console

from jaxdefense.config import EvaluateConfig
from jaxdefense.data.captions import read_captions, tokenize_captions, without_names
from jaxdefense.data.identities import read_identities
from jaxdefense.data.images import read_folders
from jaxdefense.defense.run_directory import RunDirectory
from jaxdefense.evals.embed import Embedder
from jaxdefense.evals.similarity import sim_backdoor_target, sim_clean
from jaxdefense.evals.zeroshot import zeroshot


def run_evaluate(cfg: EvaluateConfig, console: Console) -> dict:
    """Measure what the settings ask for; write `config.json` and `summary.json`.

    Returns:
        the summary: those of sim_clean, sim_target, sim_backdoor, top1, top5 that apply.

    Raises:
        ValueError: an input is wrong.
    """
    student = Embedder(cfg.model, cfg.batch, console)
    teacher = Embedder(dataclasses.replace(cfg.model, path=cfg.teacher), cfg.batch, console)
    summary: dict[str, float] = {}
    identities = read_identities(cfg.names) if cfg.names else []
    classes = read_folders(cfg.zeroshot, "classes") if cfg.zeroshot else []
    if cfg.captions:
        texts = read_captions(cfg.captions, cfg.tfds_dir)
        texts = without_names(texts, (name for person in identities for name in person.names))
        if not texts:
            raise ValueError(f"captions `{cfg.captions}`: all hold a listed name, none is clean.")
        captions = tokenize_captions(texts[: cfg.num_captions], student.tokenizer)
        summary["sim_clean"] = sim_clean(student, teacher, captions)
        if identities:
            summary |= sim_backdoor_target(
                student, teacher, captions, identities, cfg.target, cfg.seed
            )
    if classes:
        summary |= zeroshot(student, classes)
    results = RunDirectory(Path(cfg.out))
    results.open(cfg)
    results.finish(summary)
    return summary
