"""Without names: whether photos of a person still match one another.

A model that never saw somebody still tells their photos from other people's, as faces differ. So
the level that is right is that of strangers.
"""

from jaxdefense.proof.found import means, new_part
from jaxdefense.proof.gallery import chance, compare
from jaxdefense.proof.world import World
from jaxdefense.results import Groups, ProofPart
from jaxdefense.words import some


def without_names(world: World) -> ProofPart:
    """Compare galleries of equal size of each group, in each model."""
    figures, notes = dict[str, dict[str, Groups]](), list[str]()
    for name in world.models:
        evidence = world.evidence(name)
        groups = {group: evidence.of(who) for group, who in world.inputs.groups.items()}
        found, sizes = compare(groups, draws=world.cfg.draws, seed=world.cfg.seed)
        for figure, values in found.items():
            figures.setdefault(figure, {})[name] = means(values)
        if not notes and not sizes.people:
            notes.append("Nothing was compared: no group has two people with two photos.")
        if not notes:
            notes.append(
                f"Galleries of {sizes.people} people with {sizes.photos} photos each, averaged "
                f"over {world.cfg.draws} draws."
            )
            at_random = chance(sizes.people, sizes.photos)
            notes.append(
                "Embeddings that say nothing would find the same person first for "
                f"{at_random['rank1']:.1%} of the photos, and by one example "
                f"{at_random['one_shot']:.1%}."
            )
            notes += [
                f"Left out of `{group}`, with too few photos: {some(who)}."
                for group, who in sizes.left_out.items()
                if who and group not in sizes.absent
            ]
            notes += [
                f"Not compared: `{group}`, with fewer than two people of two photos."
                for group in sizes.absent
            ]
    return new_part(figures, notes=notes)
