"""Everybody else: people like those removed, and all that the model is used for besides."""

import numpy as np

from jaxdefense.evals.collateral import movements
from jaxdefense.evals.embed import Embedder, unit
from jaxdefense.evals.retrieval import recalls
from jaxdefense.evals.zeroshot import (
    TEMPLATES,
    accuracies,
    class_ranks,
    labelled,
    openai_templates,
)
from jaxdefense.proof.found import mean_of, new_part
from jaxdefense.proof.neighbours import by_label, by_similarity, nearest_removed, sharing_names
from jaxdefense.proof.probe import linear_probe
from jaxdefense.proof.world import World
from jaxdefense.results import BEFORE, DEFENDED, REMOVED, Mean, ProofPart

QUARTERS = ("nearest quarter", "2nd quarter", "3rd quarter", "furthest quarter")
SHARING = "sharing a name"
_PROMPTS = {"4 prompts": TEMPLATES, "80 prompts": openai_templates()}


def everybody_else(world: World) -> ProofPart:
    """Measure what each model knows of people like those removed, and what else it can do."""
    part = new_part()
    if world.inputs.staying():
        _people(world, part)
    _names(world, part)
    for name, model in world.models.items():
        if world.inputs.pairs:
            _retrieval(world, name, model, part)
        if world.inputs.classes:
            _classes(world, name, model, part)
    return part


def missing(world: World) -> list[str]:
    """Say what of everybody else cannot be measured, and why."""
    found = []
    if not world.inputs.staying():
        found.append("People who stay: `faces` holds photos of nobody else.")
    if not world.inputs.pairs:
        found.append("Retrieval of photos and captions: no `pairs` were given.")
    if not world.inputs.classes:
        found.append("Objects, zero-shot and by a linear probe: no `zeroshot` was given.")
    if not world.inputs.labels:
        found.append("People of the same job, sex or the like: no `labels` were given.")
    return found


def _add(part: ProofPart, figure: str, model: str, group: str, found: Mean) -> None:
    part["figures"].setdefault(figure, {}).setdefault(model, {})[group] = found


def _people(world: World, part: ProofPart) -> None:
    """Sum up people who stay by their likeness to those removed, and by name and label."""
    staying, removed = world.inputs.staying(), world.inputs.groups[REMOVED]
    names = [world.inputs.people[i].name for i in staying]
    right = {name: np.asarray(world.found(name).photos_right)[staying] for name in world.models}
    similarity_J, who_J = nearest_removed(
        unit(world.evidence(BEFORE).mean_photos()), removed, staying
    )
    found = by_similarity(similarity_J, right[BEFORE], right[DEFENDED])
    groups = {
        (QUARTERS[i] if len(found.parts) > 1 else "everybody else"): np.flatnonzero(
            found.part_J == i
        )
        for i in range(len(found.parts))
    }
    number = {name: j for j, name in enumerate(names)}
    identities = world.inputs.told.identities
    alike = {SHARING: sharing_names(identities, names)}
    labelled = by_label(world.inputs.labels, identities, names)
    if world.inputs.labels and not labelled:
        part["notes"].append("`labels`: nobody who stays shares a label with someone removed.")
    for label, who in labelled.items():
        alike[f"label: {label}"] = who
    groups |= {group: np.array([number[x] for x in who]) for group, who in alike.items() if who}
    for group, who in groups.items():
        for name, right_J in right.items():
            _add(part, "photos_right", name, group, mean_of(right_J[who]))
    for j, name in enumerate(names):
        part["people"][name] = {
            "similarity": float(similarity_J[j]),
            "photos_right.before": float(right[BEFORE][j]),
            "photos_right.defended": float(right[DEFENDED][j]),
        }
    nearest = [
        f"{names[j]} (most like {world.inputs.people[who_J[j]].name})"
        for j in np.argsort(-similarity_J, kind="stable")[:3]
    ]
    part["notes"].append(f"The faces most like one removed: {', '.join(nearest)}.")
    if rho := found.correlation:
        low, high = rho["interval"]
        part["notes"].append(
            "Rank correlation (Spearman's) of likeness and what was lost: "
            f"{rho['mean']:.2f}, with 95 % confidence {low:.2f} to {high:.2f}; above 0, those most "
            "alike lose most."
        )


def _names(world: World, part: ProofPart) -> None:
    """Measure how far names moved that are like those removed."""
    identities = world.inputs.told.identities
    others = [world.inputs.people[i].name for i in world.inputs.staying()]
    models = world.models
    moved = movements(models[DEFENDED], models[BEFORE], identities, others, world.cfg.seed)
    for group in dict.fromkeys(x.group for x in moved if x.group != REMOVED):
        cosines = [min(1.0, max(0.0, x.cosine)) for x in moved if x.group == group]
        label = "names of people who stay" if group == "named" else f"names, {group}"
        _add(part, "cosine to before", DEFENDED, label, mean_of(cosines))


def _retrieval(world: World, name: str, model: Embedder, part: ProofPart) -> None:
    pairs = world.inputs.pairs
    assert pairs
    image_PE, read_P = model.readable_photos(pairs.photos, world.cfg.max_corrupt, "photos of pairs")
    captions = [x for x, read in zip(pairs.captions, read_P, strict=True) if read]
    text_TE = model.texts([text for texts in captions for text in texts], "captions of pairs")
    image_T = np.repeat(np.arange(len(captions)), [len(texts) for texts in captions])
    for figure, hit_N in recalls(text_TE, image_PE, image_T).items():
        group = "captions" if figure.startswith("image") else "photos"
        _add(part, figure, name, group, mean_of(hit_N, rate=True))


def _classes(world: World, name: str, model: Embedder, part: ProofPart) -> None:
    """Classify objects by their names, and by a linear probe."""
    classes = world.inputs.classes
    image_BE, label_B = labelled(model, classes, world.cfg.max_corrupt)
    ranks = class_ranks(model, classes, list(_PROMPTS.values()), image_BE, label_B)
    for prompts, rank_B in zip(_PROMPTS, ranks, strict=True):
        for figure, value_N in accuracies(label_B, rank_B, len(classes)).items():
            rate = figure != "mean_per_class_recall"
            group = "photos" if rate else "classes"
            _add(part, f"{figure}, {prompts}", name, group, mean_of(value_N, rate))
    if right_Q := probed(image_BE, label_B, len(classes)):
        _add(part, "probe_acc1", name, "photos", mean_of(right_Q, rate=True))
    elif name == BEFORE:
        part["notes"].append("No linear probe: a class has fewer than two photos.")


def probed(image_BE: np.ndarray, label_B: np.ndarray, num_classes: int) -> list[float]:
    """Fit a linear probe to every second photo of each class, and test it on the others.

    Args:
        image_BE: f32 [B, E], unit length.
        label_B: int [B], the class of each photo, in rising order.
        num_classes: of all photos.

    Returns:
        1 or 0 for each photo tested; nothing if a class has fewer than two photos.
    """
    first_B = np.searchsorted(label_B, label_B)  # where the photos of its class begin
    train_B = (np.arange(len(label_B)) - first_B) % 2 == 0
    if (np.bincount(label_B, minlength=num_classes) < 2).any():
        return []
    logits_QC = linear_probe(image_BE[train_B], label_B[train_B], image_BE[~train_B], num_classes)
    return (logits_QC.argmax(-1) == label_B[~train_B]).astype(float).tolist()
