"""Attackers who optimise: prompts, photos and names made for one person at a time.

An attacker who may choose anything finds something for anybody. So each attack is also run on as
many strangers, and what counts is how much more it finds of those removed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxdefense.data.images import Photos
from jaxdefense.evals.embed import Embedder
from jaxdefense.idia.attack import Evidence
from jaxdefense.proof.found import means, new_part
from jaxdefense.proof.pgd import pgd
from jaxdefense.proof.search import search
from jaxdefense.proof.soft_prompts import interpolated, soft_prompts
from jaxdefense.proof.world import World
from jaxdefense.results import (
    DEFENDED,
    PROOF_RATES,
    REMOVED,
    STRANGERS,
    Groups,
    ProofCurve,
    ProofPart,
)

PROMPT = "a photo of {0}"
EPS = (2.0, 4.0, 8.0)  # of 255
_PHOTOS, _CANDIDATES = 4, 1000  # of a person, and in all, for PGD
# Of soft prompts: a step is a hundredth of the root mean square of the names' token embeddings.
_STEPS, _LR = (0, 2, 5, 10, 20, 50), 1e-2


def chosen(world: World) -> dict[str, list[int]]:
    """Choose as many of those removed as of strangers, each with two photos."""
    num_I = np.bincount(world.evidence(DEFENDED).owner_P)
    able = {
        group: [i for i in world.inputs.groups.get(group, []) if num_I[i] > 1]
        for group in (REMOVED, STRANGERS)
    }
    able = {group: who for group, who in able.items() if len(who) > 1}
    num = min([world.cfg.num_optimised, *map(len, able.values())])
    rng = np.random.default_rng(world.cfg.seed)
    return {group: sorted(rng.permutation(who)[:num].tolist()) for group, who in able.items()}


def jobs(world: World) -> tuple[dict[str, Callable[[World], ProofPart]], list[str]]:
    """List the attacks, and what cannot be tested, with the reason."""
    who = chosen(world)
    if REMOVED not in who:
        return {}, [
            "Attackers who optimise: of those removed, fewer than two have two photos that no "
            "defense saw."
        ]
    missing = []
    if STRANGERS not in who:
        missing.append(
            "What attackers who optimise gain over strangers: fewer than two of them have two "
            "photos."
        )
    return {
        "soft_prompts": _soft_prompts,
        "interpolation": _interpolation,
        "pgd": _pgd,
        "search": _search,
    }, missing


def _part(world: World, notes: list[str]) -> ProofPart:
    num = len(next(iter(chosen(world).values())))
    return new_part(notes=[f"{num} people of each group, drawn.", *notes])


def _each(
    world: World, attack: Callable[[Embedder, Evidence], np.ndarray]
) -> dict[str, dict[str, np.ndarray]]:
    """Attack each group of each model; model -> group -> what was found."""
    return {
        name: {
            group: attack(model, world.evidence(name).of(who))
            for group, who in chosen(world).items()
        }
        for name, model in world.models.items()
    }


def _soft_prompts(world: World) -> ProofPart:
    """Learn prompts, and test them after few steps and after many."""
    part = _part(
        world,
        [
            f"Adam on the token embeddings of each name in {PROMPT!r}, with half of a person's "
            "photos; tested on the other half. After many steps a prompt finds anybody, strangers "
            "too: the difference is in the first ones."
        ],
    )
    found = _each(
        world,
        lambda model, evidence: soft_prompts(
            model, evidence, prompt=PROMPT, steps=_STEPS, lr=_LR, seed=world.cfg.seed
        ),
    )
    part["curves"]["found"] = _curve("steps", _STEPS, found)
    return part


def _curve(
    unit: str, places: Sequence[float], found: Mapping[str, Mapping[str, np.ndarray]]
) -> ProofCurve:
    """Make a curve of shares [places, I] by model and group."""
    return {
        "unit": unit,
        "models": {
            name: [
                {"at": float(at), "groups": means({group: x[i] for group, x in groups.items()})}
                for i, at in enumerate(places)
            ]
            for name, groups in found.items()
        },
    }


def _interpolation(world: World) -> ProofPart:
    part = _part(world, ["The best of 41 mixtures of a person's name with eight other names."])
    found = _each(
        world,
        lambda model, evidence: interpolated(model, evidence, prompt=PROMPT, seed=world.cfg.seed),
    )
    part["figures"]["found"] = {name: means(groups) for name, groups in found.items()}
    return part


def _search(world: World) -> ProofPart:
    cfg = world.cfg
    part = _part(
        world,
        [f"Among {cfg.num_search:,} random names; .5 is where a name of nobody would lie."],
    )
    figures: dict[str, dict[str, Groups]] = {"nearer": {}, "shares_word": {}}
    groups = chosen(world)
    for name, model in world.models.items():
        everybody = [i for who in groups.values() for i in who]
        found = search(
            model,
            world.evidence(name).of(everybody),
            cfg.num_search,
            prompt=PROMPT,
            seed=cfg.seed,
            block=cfg.candidate_block,
        )
        values = {"nearer": found.nearer_I, "shares_word": np.minimum(1, found.shared_I)}
        for figure, value_I in values.items():
            by_group = dict(zip(groups, np.split(value_I, len(groups)), strict=True))
            figures[figure][name] = means(by_group, figure in PROOF_RATES)
    part["figures"] = figures
    return part


def _pgd(world: World) -> ProofPart:
    cfg = world.cfg
    part = _part(
        world,
        [
            f"At most {_PHOTOS} photos a person. The attacker knows the weights, changes pixels "
            f"by at most eps, and seeks the person's name in {PROMPT!r} among the candidates."
        ],
    )
    # The people are the first candidates, and each must be among them.
    names = world.inputs.candidates.block(0, max(_CANDIDATES, len(world.inputs.people)))
    found = dict[str, dict[str, np.ndarray]]()
    for name, model in world.models.items():
        text_ME = model.prompts([[PROMPT.format(x) for x in names]], "candidates")[0]
        for group, who in chosen(world).items():
            people: list[Photos] = [world.inputs.people[i] for i in who]
            own_I = np.array(who)  # the first candidates are the people's names
            found.setdefault(name, {})[group] = pgd(
                model, people, text_ME, own_I, eps=EPS, photos=_PHOTOS, seed=cfg.seed
            )
    part["curves"]["photos_right"] = _curve("of 255", (0.0, *EPS), found)
    return part


class Gain(NamedTuple):
    """How much more an attack finds of those removed than of strangers, and where it finds most.

    Fields:
        gain: in [-1, 1].
        at: steps or eps; None for an attack without a curve.
        groups: what is found there.
    """

    gain: float
    at: float | None
    groups: Groups


def gain(part: ProofPart, model: str) -> Gain | None:
    """Find the place at which an attack gains most; None without strangers.

    The model as it is, at 0, is no attack and does not count.
    """
    found: list[tuple[float | None, Groups]] = [
        (point["at"], point["groups"])
        for curve in part["curves"].values()
        for point in curve["models"].get(model, [])
        if point["at"]
    ]
    if figure := part["figures"].get("found"):
        found.append((None, figure.get(model, {})))
    gains = [
        Gain(groups[REMOVED]["mean"] - groups[STRANGERS]["mean"], at, groups)
        for at, groups in found
        if {REMOVED, STRANGERS} <= groups.keys()
    ]
    return max(gains, key=lambda x: x.gain, default=None)
