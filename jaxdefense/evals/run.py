"""`jaxdefense evaluate`: a defended model against the one before."""

import dataclasses
from pathlib import Path

from rich.console import Console

from jaxdefense.config import EvaluateConfig
from jaxdefense.data.captions import read_clean_captions, tokenize_captions
from jaxdefense.data.identities import Identity, check_fits, read_identities
from jaxdefense.data.images import read_folders
from jaxdefense.evals.embed import Embedder
from jaxdefense.evals.similarity import sim_backdoor_target, sim_clean
from jaxdefense.evals.zeroshot import zeroshot
from jaxdefense.run_directory import RunDirectory


def run_evaluate(cfg: EvaluateConfig, console: Console) -> dict:
    """Measure what the settings ask for; write `config.json` and `summary.json`.

    Returns:
        the summary: those of sim_clean, sim_target, sim_backdoor, top1, top5 that apply.

    Raises:
        ValueError: an input is wrong.
    """
    results = RunDirectory(Path(cfg.out))
    results.check(cfg)
    identities = read_identities(cfg.names) if cfg.names else []
    classes = read_folders(cfg.zeroshot, "class") if cfg.zeroshot else []
    texts: list[str] = []
    if cfg.captions:
        names = [name for person in identities for name in person.names]
        texts, _ = read_clean_captions(cfg.captions, cfg.tfds_dir, names)
    student = Embedder(cfg.model, cfg.batch, console)
    teacher = Embedder(dataclasses.replace(cfg.model, path=cfg.teacher), cfg.batch, console)
    if student.directory.cfg != teacher.directory.cfg:
        raise ValueError(
            f"`teacher` (={cfg.teacher}) has other sizes than `model.path` (={cfg.model.path}); "
            "give the model it was made from."
        )
    summary: dict[str, float] = {}
    if texts:
        tokenizer = student.tokenizer
        check_fits(identities, tokenizer, f"names file `{cfg.names}`")
        check_fits([Identity(cfg.target)], tokenizer, "`target`")
        captions = tokenize_captions(texts[: cfg.num_captions], tokenizer)
        summary["sim_clean"] = sim_clean(student, teacher, captions)
        if identities:
            summary |= sim_backdoor_target(
                student, teacher, captions, identities, cfg.target, cfg.seed
            )
    if classes:
        summary |= zeroshot(student, classes)
    results.open(cfg)
    results.finish(summary)
    return summary
