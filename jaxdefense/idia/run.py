"""`jaxdefense attack`: the attack on a model directory, and its results in a directory."""

from pathlib import Path

from rich.console import Console

from jaxdefense.config import AttackConfig
from jaxdefense.data.images import read_folders
from jaxdefense.evals.embed import Embedder
from jaxdefense.idia.attack import attack, candidate_names
from jaxdefense.run_directory import RunDirectory


def run_attack(cfg: AttackConfig, console: Console) -> dict:
    """Attack a model; write `config.json` and `summary.json`.

    Returns:
        the summary.

    Raises:
        ValueError: an input is wrong.
    """
    results = RunDirectory(Path(cfg.out))
    results.check(cfg)
    people = read_folders(cfg.faces, "faces")
    candidates = candidate_names(
        [person.name for person in people], cfg.candidates, cfg.num_candidates, cfg.seed
    )
    model = Embedder(cfg.model, cfg.batch, console)
    found = attack(
        model,
        people,
        candidates,
        num_photos=cfg.num_photos,
        threshold=cfg.threshold,
        seed=cfg.seed,
    )
    summary = found.summary()
    results.open(cfg)
    results.finish(summary)
    return summary
