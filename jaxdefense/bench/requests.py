"""`jaxdefense bench requests`: people who ask to be removed one after another, not all at once.

Three ways to serve each request are compared. `replay` goes on from the defended model and removes
everybody again who asked before. `fresh` removes everybody who asked so far from the original.
`none` takes the defended model for the original, and removes only those who are new.

An interrupted run resumes: each defense, attack and evaluation has a directory of its own.
"""

import dataclasses
import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdefense.cache import ArrayCache
from jaxdefense.config import (
    AttackConfig,
    DefendBothConfig,
    DemoConfig,
    EarlierConfig,
    EvaluateConfig,
    ModelConfig,
)
from jaxdefense.data.pairs import IMAGES
from jaxdefense.data.people import read_people, split_photos
from jaxdefense.defense.both import defend_both
from jaxdefense.demo.inputs import PAIRS, SIZES, TRIGGER_FRACTION, Roles, draw_inputs, roles
from jaxdefense.demo.run import defense_config, shipped_model
from jaxdefense.errors import InputError
from jaxdefense.evals.run import run_evaluate
from jaxdefense.files import write_json, write_text
from jaxdefense.idia.run import run_attack
from jaxdefense.log import Progress
from jaxdefense.results import AttackSummary, BothDefenseSummary, EvaluationSummary
from jaxdefense.run_directory import once
from jaxdefense.words import folded_words

logger = logging.getLogger(__name__)

MODES = ("replay", "fresh", "none")
_WORLD, _CACHE, _FIGURES, _TABLE, _PLOT = (
    "world",
    "cache",
    "requests.json",
    "requests.csv",
    "requests.png",
)
# What is measured after each request: of people, parts recognised and of photos named right.
FIGURES = {
    "removed_tpr": "removed so far, recognised",
    "removed_photos_right": "photos named right of those removed so far",
    "kept_photos_right": "photos named right of those kept",
    "unseen_photos_right": "photos named right of those never shown",
    "others_tpr": "others, recognised",
    "top1": "objects, zero-shot top-1",
    "sim_clean": "cosine to the original, least of captions and photos",
}


def bench_requests(
    out: str, people: int, requests: int, each: int, seeds: str, modes: str
) -> dict[str, Any]:
    """Serve requests one after another in the demo's world, in several ways, and measure.

    Args:
        out: directory of everything.
        people: of the demo, 16 or 64.
        requests: how many come.
        each: people a request.
        seeds: with commas between; a seed draws who asks when, and all that a defense draws.
        modes: some of `MODES`, with commas between. `fresh` is measured after 1, 2, 4, 8 ...
            requests and after the last.

    Returns:
        by mode and number of requests, the mean of each figure of `FIGURES` over the seeds, its
        least and most, and seconds of training. `requests.json`, `.csv` and `.png` in `out` have
        each seed's.

    Raises:
        InputError: a mode or a seed is unknown, or there are fewer people to remove.
    """
    chosen, numbers = modes.split(","), seeds.split(",")
    if not set(chosen) <= set(MODES) or not all(x.isdecimal() for x in numbers):
        raise InputError(
            f"`modes` (={modes}) must be some of {', '.join(MODES)}, and `seeds` (={seeds}) "
            "numbers, with commas between."
        )
    who, path = roles(people), Path(out)
    if requests < 1 or each < 1 or requests * each > len(who.removed):
        raise InputError(
            f"`requests` (={requests}) x `each` (={each}) must be from 1 to {len(who.removed)}, "
            "the people to remove."
        )
    path.mkdir(parents=True, exist_ok=True)
    if not (path / _WORLD).exists():
        draw_inputs(who, path / _WORLD)
    rows = list[dict[str, Any]]()
    with Progress("serving requests", len(numbers) * len(chosen) * requests) as progress:
        for seed in map(int, numbers):
            order = random.Random(seed).sample(who.removed, requests * each)
            for mode in chosen:
                case = _Case(path, people, mode, seed, order, each)
                for request in range(1, requests + 1):
                    if mode != "fresh" or request == requests or not request & (request - 1):
                        rows.append(case.serve(request))
                        write_json(path / _FIGURES, rows)
                    progress.advance()
    columns = ["mode", "seed", "requests", *FIGURES, "seconds"]
    lines = [",".join(columns), *(",".join(str(row[x]) for x in columns) for row in rows)]
    write_text(path / _TABLE, "\n".join(lines) + "\n")
    draw(rows, path / _PLOT)
    return _means(rows)


@dataclasses.dataclass(frozen=True)
class _Case:
    """One way to serve the requests, with one seed."""

    out: Path
    people: int
    mode: str
    seed: int
    order: Sequence[str]
    each: int

    def serve(self, request: int) -> dict[str, Any]:
        """Serve a request, the first being 1, and measure what the model then knows."""
        now = self.order[: request * self.each]
        new = now if self.mode == "fresh" else now[-self.each :]
        run = self._run(request)
        run.parent.mkdir(parents=True, exist_ok=True)
        names, faces = run.with_name(f"{run.name}.txt"), run.with_name(f"{run.name}.faces")
        write_text(names, "".join(f"{name}\n" for name in new))
        self._link(faces, new)
        defense = once(defend_both, self._defense(request, names, faces), BothDefenseSummary)
        cache = ArrayCache(str(self.out / _CACHE))
        attack = once(run_attack, self._attack(run), AttackSummary, cache)
        evaluation = once(run_evaluate, self._evaluate(run), EvaluationSummary, cache)
        found = _measured(attack, evaluation, now, roles(self.people))
        seconds = round(defense.text.seconds + defense.image.seconds, 1)
        about = {"mode": self.mode, "seed": self.seed, "requests": request}
        logger.info(f"{self.mode}, seed {self.seed}, request {request}: {found}")
        return about | found | {"seconds": seconds}

    def _run(self, request: int) -> Path:
        # The first request is the same in every mode.
        mode = self.mode if request > 1 else "first"
        return self.out / f"seed-{self.seed}" / mode / f"{request:03}"

    def _link(self, faces: Path, new: Sequence[str]) -> None:
        """Link the photos of the people to remove now, and of those who are kept."""
        faces.mkdir(exist_ok=True)
        known = self.out / _WORLD / "known"
        wanted = {folded_words(name) for name in [*new, *roles(self.people).kept]}
        for folder in known.iterdir():
            link = faces / folder.name
            if folded_words(folder.name) in wanted and not link.exists():
                link.symlink_to(folder.absolute())

    def _unseen(self) -> Path:
        """Link the photos that no defense with this seed trains on, whoever is removed when."""
        out, world = self.out / f"seed-{self.seed}" / "faces", self.out / _WORLD
        if out.exists():
            return out
        part = out.with_name(".faces.part")
        known = read_people(str(world / "known"))
        _, attack = split_photos(known, TRIGGER_FRACTION, self.seed)
        names = {person.name for person in known}
        others = [x for x in read_people(str(world / "faces")) if x.name not in names]
        for person in [*attack, *others]:
            folder = part / person.name.replace(" ", "_")
            folder.mkdir(parents=True, exist_ok=True)
            for photo in person.files:
                link = folder / Path(str(photo)).name
                link.unlink(missing_ok=True)
                link.symlink_to(Path(str(photo)).absolute())
        part.rename(out)
        return out

    def _defense(self, request: int, names: Path, faces: Path) -> DefendBothConfig:
        demo = defense_config(DemoConfig(str(self.out), people=self.people))  # pyright: ignore[reportArgumentType]
        run, before = self._run(request), str(self._run(request - 1))
        text, image = demo.text, demo.image
        data = dataclasses.replace(text.data, names=str(names))
        faces_of = dataclasses.replace(image.data, faces=str(faces))
        seeded = [dataclasses.replace(half.train, seed=self.seed) for half in (text, image)]
        follows = request > 1 and self.mode == "replay"
        model = before if request > 1 and self.mode == "none" else str(shipped_model())
        return dataclasses.replace(
            demo,
            out=str(run),
            model=ModelConfig(model),
            text=dataclasses.replace(text, data=data, train=seeded[0]),
            image=dataclasses.replace(image, data=faces_of, train=seeded[1]),
            earlier=EarlierConfig(after=before) if follows else EarlierConfig(),
        )

    def _attack(self, run: Path) -> AttackConfig:
        size = SIZES[self.people]
        return AttackConfig(
            out=str(run.with_name(f"{run.name}.attack")),
            model=ModelConfig(str(run)),
            faces=str(self._unseen()),
            num_candidates=size.candidates,
            threshold=size.threshold,
            cache_dir=str(self.out / _CACHE),
        )

    def _evaluate(self, run: Path) -> EvaluateConfig:
        world = self.out / _WORLD
        return EvaluateConfig(
            out=str(run.with_name(f"{run.name}.evaluation")),
            model=ModelConfig(str(run)),
            teacher=str(shipped_model()),
            captions=str(world / "held_out_captions.txt"),
            images=str(world / PAIRS / IMAGES),
            zeroshot=str(world / "objects"),
        )


def _measured(
    attack: AttackSummary,
    evaluation: EvaluationSummary,
    removed: Sequence[str],
    who: Roles,
) -> dict[str, float]:
    """Give the figures of `FIGURES`; people who will ask later count nowhere."""
    right = attack.per_identity_photos_right or {}
    others = [x.name for x in who.members if x.name not in who.removed]

    def known(names: Sequence[str]) -> float:
        return float(np.mean([attack.per_identity[x] >= attack.threshold for x in names]))

    def share(names: Sequence[str]) -> float:
        return float(np.mean([right[name] for name in names]))

    sims = [x for x in (evaluation.sim_clean, evaluation.image_sim_clean) if x is not None]
    found = {
        "removed_tpr": known(removed),
        "removed_photos_right": share(removed),
        "kept_photos_right": share(who.kept),
        "unseen_photos_right": share([x for x in others if x not in who.kept]),
        "others_tpr": known(others),
        "top1": evaluation.top1 or 0.0,
        "sim_clean": min(sims),
    }
    return {name: round(value, 4) for name, value in found.items()}


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Give mean, least and most over the seeds, by mode and number of requests."""
    out = dict[str, dict[str, dict[str, Any]]]()
    for mode in dict.fromkeys(row["mode"] for row in rows):
        for at in sorted({row["requests"] for row in rows if row["mode"] == mode}):
            of = [row for row in rows if (row["mode"], row["requests"]) == (mode, at)]
            out.setdefault(mode, {})[str(at)] = {
                name: _text([row[name] for row in of]) for name in (*FIGURES, "seconds")
            }
    return out


def _text(values: Sequence[float]) -> str:
    mean = f"{np.mean(values):.3f}"
    return mean if len(values) < 2 else f"{mean} ({min(values):.3f} to {max(values):.3f})"


def draw(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Plot the figures over the number of requests: the mean of the seeds, and each seed."""
    from matplotlib.figure import Figure

    shown = ("removed_photos_right", "kept_photos_right", "unseen_photos_right", "top1")
    figure = Figure(figsize=(10, 6), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True).ravel()
    for panel, name in zip(panels, shown, strict=True):
        for mode, colour in zip(MODES, ("C0", "C1", "C3"), strict=True):
            points = [x for x in rows if x["mode"] == mode]
            at = sorted({row["requests"] for row in points})
            means = [np.mean([x[name] for x in points if x["requests"] == i]) for i in at]
            panel.plot(at, means, color=colour, label=mode, marker="o", markersize=3)
            for row in points:
                panel.plot(row["requests"], row[name], ".", color=colour, alpha=0.3)
        panel.set_title(FIGURES[name], fontsize=10)
        panel.set_ylim(-0.03, 1.03)
    for panel in panels[2:]:
        panel.set_xlabel("requests served")
    panels[0].legend()
    figure.savefig(out, dpi=150)
