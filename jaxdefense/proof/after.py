"""What comes after: the attack on the defended model as it is trained, rounded or averaged on."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from jaxdefense.data.pairs import Pairs, pairs_of
from jaxdefense.idia.attack import AttackResult
from jaxdefense.proof.afterwards import averaged, rounded
from jaxdefense.proof.config import FINETUNE, FINETUNE_PEOPLE, MERGE
from jaxdefense.proof.finetune import finetune
from jaxdefense.proof.found import new_part
from jaxdefense.proof.world import World, rates
from jaxdefense.results import BEFORE, DEFENDED, Groups, Mean, Point, ProofCurve, ProofPart

FIGURES = ("photos_right", "recognised")
WHOLE = 32.0  # bits of a weight that is not rounded
STEPS, BITS, ORIGINAL = "steps", "bits", "part of the original"  # units of curves
# Where the defended model is as it is, and then where it is the original.
_ENDS = {STEPS: (0.0,), BITS: (WHOLE,), ORIGINAL: (0.0, 1.0)}
_PARTS = (0.25, 0.5)  # of the steps, after which the attack looks too


def fine_tuned(world: World, kind: str, steps: int) -> ProofPart:
    """Train the defended model on as its makers trained it, and attack it on the way."""
    pairs, note = _pairs(world, kind)
    cfg = world.cfg
    at = sorted({*(max(1, round(part * steps)) for part in _PARTS), steps})
    trained = finetune(
        world.models[DEFENDED],
        pairs,
        steps=steps,
        batch=cfg.finetune_batch,
        lr=cfg.finetune_lr,
        seed=cfg.seed,
        at=at,
        max_corrupt=cfg.max_corrupt,
    )
    points = ((float(step), world.attacked(model)) for step, model in trained)
    found = {DEFENDED: [(0.0, world.found(DEFENDED)), *points]}
    rate = (
        f"AdamW at a learning rate of {cfg.finetune_lr:g}, up to {cfg.finetune_batch} pairs a step."
    )
    return _part(world, STEPS, found, [note, rate])


def _pairs(world: World, kind: str) -> tuple[Pairs, str]:
    """Give what the model is trained on afterwards, and say what that is."""
    if kind == FINETUNE:
        pairs = world.inputs.pairs
        assert pairs
        return pairs, f"Trained on {len(pairs.photos):,} ordinary photos and their captions."
    people = [world.inputs.people[i] for i in world.inputs.staying()]
    return pairs_of(people, world.inputs.templates), (
        f"Trained on the photos and names of the {len(people)} people who stay. These photos are "
        "those they are attacked with, so their own figures rise by themselves."
    )


def rounding(world: World, bits: Iterable[int]) -> ProofPart:
    """Round the weights of both models, and attack each."""

    def points(name: str) -> Iterator[tuple[float, AttackResult]]:
        for num in sorted(bits):
            yield float(num), world.attacked(rounded(world.models[name], num))
        yield WHOLE, world.found(name)

    found = {name: list(points(name)) for name in (BEFORE, DEFENDED)}
    what = "Every matrix of the checkpoint is rounded, with one scale for each output channel."
    return _part(world, BITS, found, [what])


def merging(world: World, alphas: Iterable[float]) -> ProofPart:
    """Average the weights of the defended model and the one before, and attack that."""
    defended, before = world.models[DEFENDED], world.models[BEFORE]
    points = [(0.0, world.found(DEFENDED))]
    points += [(x, world.attacked(averaged(defended, before, x))) for x in sorted(alphas)]
    points.append((1.0, world.found(BEFORE)))
    return _part(world, ORIGINAL, {DEFENDED: points}, [])


def _part(
    world: World, unit: str, found: dict[str, list[tuple[float, AttackResult]]], notes: list[str]
) -> ProofPart:
    curves = {
        figure: ProofCurve(
            unit=unit,
            models={
                name: [
                    Point(at=at, groups=world.means(figure, rates(result)[figure]))
                    for at, result in points
                ]
                for name, points in found.items()
            },
        )
        for figure in FIGURES
    }
    return new_part(curves=curves, notes=notes)


def jobs(world: World) -> tuple[dict[str, Callable[[World], ProofPart]], list[str]]:
    """List what happens to the model afterwards, and what cannot, with the reason."""
    every, missing = world.cfg.afterwards(), list[str]()
    found = dict[str, Callable[[World], ProofPart]]()
    for kind, amount in every:
        if kind in (FINETUNE, FINETUNE_PEOPLE):
            if kind == FINETUNE and len(world.inputs.pairs or ()) < 2:
                missing.append(
                    "Fine-tuning on ordinary photos and captions: no two `pairs` were given."
                )
            elif kind == FINETUNE_PEOPLE and len(world.inputs.staying()) < 2:
                missing.append("Fine-tuning on other people: `faces` holds fewer than two of them.")
            else:
                found[kind] = partial(fine_tuned, kind=kind, steps=int(amount))
    bits = [int(x.amount) for x in every if x.kind == "rounding"]
    alphas = [x.amount for x in every if x.kind == MERGE]
    if bits:
        found["rounding"] = partial(rounding, bits=bits)
    if alphas:
        found["merge"] = partial(merging, alphas=alphas)
    if not every:
        missing.append("What comes after: `after` names nothing.")
    return found, missing


def worst(part: ProofPart, group: str) -> tuple[float, Mean | None]:
    """Find where in a part the most of a group's photos are named right, and how many are.

    The model as it is does not count, nor does the original.
    """
    curve = part["curves"]["photos_right"]
    ends = _ENDS[curve["unit"]]
    points = [
        (point["at"], point["groups"][group])
        for point in curve["models"][DEFENDED]
        if point["at"] not in ends and group in point["groups"]
    ]
    return max(points, key=lambda x: x[1]["mean"], default=(0.0, None))


def as_it_is(part: ProofPart) -> Groups:
    """Give the groups' photos named right by the defended model as it is."""
    curve = part["curves"]["photos_right"]
    at = _ENDS[curve["unit"]][0]
    return next((x["groups"] for x in curve["models"][DEFENDED] if x["at"] == at), {})
