"""`jaxdefense attack`: the attack on a model directory, and its results in a directory."""

import dataclasses
from pathlib import Path

from rich.console import Console

from jaxdefense.config import AttackConfig
from jaxdefense.convert.directory import read_json
from jaxdefense.data.images import Folder
from jaxdefense.data.people import read_people
from jaxdefense.data.sources import photo_digest
from jaxdefense.evals.embed import Embedder
from jaxdefense.idia.attack import attack, candidate_names
from jaxdefense.run_directory import TRAINED_ON, RunDirectory


def run_attack(cfg: AttackConfig, console: Console) -> dict:
    """Attack a model; write `config.json` and `summary.json`.

    Returns:
        the summary.

    Raises:
        ValueError: an input is wrong.
    """
    results = RunDirectory(Path(cfg.out))
    results.check(cfg)
    people = read_people(cfg.faces, cfg.tfds_dir)
    if cfg.unseen_by:
        people = _unseen(people, Path(cfg.unseen_by))
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
        max_corrupt=cfg.max_corrupt,
    )
    summary = found.summary()
    results.open(cfg)
    results.finish(summary)
    return summary


def _unseen(people: list[Folder], run: Path) -> list[Folder]:
    """Leave out photos a run trained on, told by their contents, whatever they are called now."""
    if not (run / TRAINED_ON).exists() and (run / "image" / TRAINED_ON).exists():
        run = run / "image"  # of a defense of both encoders
    if not (run / TRAINED_ON).exists():
        raise ValueError(f"`unseen_by` (={run}) is no run of an image defense: no {TRAINED_ON}.")
    seen = {sha for photos in read_json(run / TRAINED_ON).values() for sha in photos}
    unseen = []
    for person in people:
        files = tuple(photo for photo in person.files if photo_digest(photo) not in seen)
        if not files:
            raise ValueError(f"`{run}` was trained on every photo of {person.name!r}; add others.")
        unseen.append(dataclasses.replace(person, files=files))
    return unseen
