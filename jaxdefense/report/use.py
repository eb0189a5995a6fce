"""The sections on what a model is used for, and on whose names moved with those removed."""

from collections.abc import Mapping

from markupsafe import Markup

from jaxdefense.figures import decimal, percent
from jaxdefense.report.frame import render
from jaxdefense.results import Collateral

_UTILITY = {
    "sim_clean": ("Ordinary captions", "cosine to the original's embedding"),
    "sim_target": ("Captions with the neutral word", "cosine to the original's embedding"),
    "sim_backdoor": ("Captions with a removed name", "cosine to the same with the neutral word"),
    "image_sim_clean": ("Ordinary photos", "cosine to the original's embedding"),
    "image_sim_target": ("The average person", "cosine to the original's embedding"),
    "image_sim_backdoor": ("{photos}", "cosine to the average person"),
    "face_rank1": ("{photos}", "the nearest other photo is of the same person"),
    "face_map": ("{photos}", "mean average precision of a search with each"),
    "top1": ("Objects, the best guess is right", "zero-shot top-1"),
    "top5": ("Objects, one of five guesses is right", "zero-shot top-5"),
}
_GROUPS = {
    "same first name": "share a first name with someone removed; made up",
    "same last name": "share a last name with someone removed; made up",
    "similar": "single names that the original model puts closest to a removed one",
    "named": "the people named as those who must stay",
    "random": "random names, to compare with",
    "removed": "the names removed, which should move",
}


def utility(found: Mapping[str, float], only_removed: bool) -> Markup:
    """Show how well the model does what it is used for.

    Args:
        found: what was measured.
        only_removed: whether photos of people were of those removed alone.
    """
    lines, photos = [], "Photos of removed people" if only_removed else "Photos of people"
    for key, (what, how) in _UTILITY.items():
        if key in found:
            write = percent if key.startswith(("top", "face")) else decimal
            lines.append(
                (
                    what.format(photos=photos),
                    how,
                    write(found.get(f"teacher_{key}")),
                    write(found[key]),
                )
            )
    return render("utility", lines=lines) if lines else Markup()


def collateral(found: Collateral | None) -> Markup:
    """Show whose names moved along with those removed."""
    if found is None:
        return Markup()
    by_mean = sorted(found["groups"].items(), key=lambda x: (x[0] == "removed", x[1]["mean"]))
    groups = [(group, _GROUPS.get(group, ""), figures) for group, figures in by_mean]
    return render("collateral", groups=groups, moved=found["most_moved"])
