"""Known or not: the attack on everybody, and how near photos lie to their names.

A model that never saw a person still puts their photos somewhere and their name somewhere. So the
cosine of the two says nothing by itself. It is placed among the same cosines of strangers: above
nearly all of them the person is not forgotten, below nearly all of them the defense pushed too far.
Parity: tests/test_prove.py, percentiles equal to a loop.
"""

from collections.abc import Sequence

import numpy as np

from jaxdefense.evals.embed import Embedder
from jaxdefense.idia.attack import Evidence
from jaxdefense.idia.prompts import fill
from jaxdefense.proof.found import new_part, per_person
from jaxdefense.proof.world import World, rates
from jaxdefense.results import ABOVE, BELOW, DEFENDED, REMOVED, STRANGERS, Groups, ProofPart
from jaxdefense.words import some

FEW = 39  # strangers; above all of fewer lies more than one unknown person in 40


def known(world: World) -> ProofPart:
    """Attack each model, and place the cosines of photos and names among strangers'."""
    figures = dict[str, dict[str, Groups]]()
    people: dict[str, dict[str, float]] = {person.name: {} for person in world.inputs.people}
    names = [person.name for person in world.inputs.people]
    notes = list[str]()
    for name, model in world.models.items():
        found = world.found(name)
        values = rates(found) | _places(world, model, world.evidence(name))
        for figure, value_I in values.items():
            figures.setdefault(figure, {})[name] = world.means(figure, value_I)
        told = {
            "correct": np.asarray(found.correct, np.float64),
            "photos_right": values["photos_right"],
        }
        if "percentile" in values:
            told["percentile"] = values["percentile"]
        for figure, value_I in told.items():
            for person, value in zip(names, value_I.tolist(), strict=True):
                people[person][f"{figure}.{name}"] = value
    num = len(world.inputs.groups.get(STRANGERS, []))
    if not num:
        notes.append("Without strangers, nothing says what level is right.")
    elif num < FEW:
        notes.append(
            f"Of {num} strangers nobody can be said to lie outside of 95 %; with {FEW} or more the "
            "page says it of each person."
        )
    else:
        notes += _outside(world, people)
    return new_part(figures, people=people, notes=notes)


def _outside(world: World, people: dict[str, dict[str, float]]) -> list[str]:
    """Name the removed people who lie outside of nearly all strangers."""
    place = {name: people[name][f"percentile.{DEFENDED}"] for name in world.inputs.names(REMOVED)}
    sides = {
        "Photos still closer to the name than those of 97.5 % of strangers": [
            name for name, at in place.items() if at > ABOVE
        ],
        "Photos pushed further from the name than those of 97.5 % of strangers": [
            name for name, at in place.items() if at < BELOW
        ],
    }
    return [
        f"{what}: {some(who, len(who)) if who else 'of nobody removed'}."
        for what, who in sides.items()
    ]


def _places(world: World, model: Embedder, evidence: Evidence) -> dict[str, np.ndarray]:
    """Place each person among strangers; nothing without strangers."""
    who = world.inputs.groups.get(STRANGERS, [])
    if not who:
        return {}
    cosine_I = own_cosines(model, evidence, world.inputs.templates)
    place_I = percentiles(cosine_I, np.array(who))
    found = {"percentile": place_I}
    if len(who) >= FEW:
        found["above"] = (place_I > ABOVE).astype(np.float64)
        found["below"] = (place_I < BELOW).astype(np.float64)
    return found


def own_cosines(model: Embedder, evidence: Evidence, templates: Sequence[str]) -> np.ndarray:
    """Give the mean cosine of each person's photos to their name in all templates; f64 [I]."""
    name_QIE = model.prompts(fill(evidence.names, templates), "people's names")
    name_IE = name_QIE.mean(0, dtype=np.float64)  # of unit vectors: cosines are linear in it
    cosine_P = np.einsum("pe,pe->p", evidence.image_PE, name_IE[evidence.owner_P])
    return per_person(cosine_P, evidence.owner_P)


def percentiles(value_I: np.ndarray, strangers: np.ndarray) -> np.ndarray:
    """Place values among those of strangers.

    Args:
        value_I: of each person.
        strangers: numbers of strangers among them; a stranger is placed among the others.

    Returns:
        f64 [I], the share of strangers with a lower value, in [0, 1]; an equal one counts half.
    """
    among_S = value_I[strangers]
    below_IS = (among_S < value_I[:, None]) + 0.5 * (among_S == value_I[:, None])
    num_I = np.full(len(value_I), float(len(strangers)))
    sum_I = below_IS.sum(-1)
    sum_I[strangers] -= 0.5  # not among themselves
    num_I[strangers] = max(1, len(strangers) - 1)
    return sum_I / num_I
