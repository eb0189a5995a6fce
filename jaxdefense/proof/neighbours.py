"""Who pays for a removal: people who stay and resemble someone removed, in face, name or kind.

Source: Suzuki et al., Centering Similarity Measures to Reduce Hubs, EMNLP 2013; Bonett and Wright,
Sample Size Requirements for Estimating Pearson, Kendall and Spearman Correlations, Psychometrika
2000, equation 1 (the interval of Spearman's correlation).
Parity: tests/test_everybody_else.py, plain loops and SciPy.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxdefense.data.identities import Identity
from jaxdefense.data.variants import name_form
from jaxdefense.errors import InputError
from jaxdefense.evals.embed import unit
from jaxdefense.files import read_lines
from jaxdefense.idia.statistics import Z95, mean_interval
from jaxdefense.proof.found import mean_of
from jaxdefense.results import Mean, Point
from jaxdefense.words import Words, folded_words, shortened

Labels = Mapping[Words, str]  # folded name -> label


def nearest_removed(
    photo_IE: np.ndarray, removed: Sequence[int], others: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Find for each person who stays the person removed whose face is most like theirs.

    The cosine is between mean photos from which the mean over all people is taken. What all faces
    have in common makes raw cosines high and alike. Without it, one person's photos lie further
    from other people's: 1.7 standard deviations instead of 1.2, for 40 people new to the model.

    Args:
        photo_IE: f32 [I, E], each person's mean photo in the model before, unit length.
        removed: people removed; at least one.
        others: people who stay.

    Returns:
        f64 [J], cosine of each who stays to the nearest one removed; int [J], who that is, as a
        row of `photo_IE`.
    """
    photo_IE = photo_IE.astype(np.float64)
    photo_IE = unit(photo_IE - photo_IE.mean(0))
    cosine_JI = photo_IE[list(others)] @ photo_IE[list(removed)].T
    who_J = np.asarray(removed)[cosine_JI.argmax(-1)]
    return cosine_JI.max(-1), who_J


class BySimilarity(NamedTuple):
    """What people who stay lost, by how much they resemble someone removed.

    Fields:
        part_J: int [J], the part each person is in, 0 for those most alike.
        parts: those most alike first; `at` is the mean similarity, and the groups are `before`,
            `after` and `loss`, which may be negative.
        correlation: Spearman's, of similarity and loss; above 0 if those most alike lose most. None
            for fewer than 3 people, or if all are alike or lose the same.
    """

    part_J: np.ndarray
    parts: list[Point]
    correlation: Mean | None


def by_similarity(
    similarity_J: np.ndarray, before_J: np.ndarray, after_J: np.ndarray, parts: int = 4
) -> BySimilarity:
    """Part the people who stay by similarity, and sum up what each part lost.

    Args:
        similarity_J: f64 [J], see `nearest_removed`.
        before_J, after_J: f64 [J], the share of each person's photos named right, in [0, 1].
        parts: number of parts of one size; one part if any had fewer than 2 people.
    """
    num = len(similarity_J)
    parts = parts if num >= 2 * parts else min(num, 1)
    order = np.argsort(-similarity_J, kind="stable")
    part_J, points, loss_J = np.zeros(num, np.int64), list[Point](), before_J - after_J
    for part, who in enumerate(np.array_split(order, parts) if parts else []):
        part_J[who] = part
        groups = {"before": mean_of(before_J[who]), "after": mean_of(after_J[who])}
        groups["loss"] = _mean_change(loss_J[who])
        points.append({"at": float(similarity_J[who].mean()), "groups": groups})
    # Losses that differ by rounding are equal.
    return BySimilarity(part_J, points, _spearman(similarity_J, loss_J.round(12)))


def _mean_change(change_J: np.ndarray) -> Mean:
    """Average values in [-1, 1]; see `mean_of`."""
    low, high = mean_interval(((change_J + 1) / 2).tolist())
    interval = (2 * low - 1, 2 * high - 1)
    return {"mean": float(change_J.mean()), "interval": interval, "num": len(change_J)}


def _spearman(x_J: np.ndarray, y_J: np.ndarray) -> Mean | None:
    """Correlate ranks; its 95 % interval holds everything for 3 people."""
    num = len(x_J)
    if num < 3 or not np.ptp(x_J) or not np.ptp(y_J):
        return None
    rho = float(np.corrcoef(_mean_ranks(x_J), _mean_ranks(y_J))[0, 1])
    # The order of people like these is less sure than a perfect one, whose interval has no width:
    # two neighbours may change places.
    most = 1 - 12 / (num * (num**2 - 1))
    inner = max(-most, min(rho, most))
    half = Z95 * math.sqrt((1 + inner**2 / 2) / (num - 3)) if num > 3 else math.inf
    low, high = (math.tanh(math.atanh(inner) + step) for step in (-half, half))
    return {"mean": rho, "interval": (min(low, rho), max(high, rho)), "num": num}


def _mean_ranks(x_J: np.ndarray) -> np.ndarray:
    """Rank values from 1; equal ones have the mean of their ranks."""
    _, index_J, num = np.unique(x_J, return_inverse=True, return_counts=True)
    return (np.cumsum(num) - (num - 1) / 2)[index_J]


def sharing_names(removed: Sequence[Identity], others: Sequence[str]) -> list[str]:
    """List the people who stay and share a first or last name with someone removed.

    A word may be the first name of one and the last name of the other, as the text encoder reads
    the same word. Other names of people removed count too; initials, and Jr. and the like do not.
    """
    gone = {part for identity in removed for name in identity.names for part in _ends(name)}
    return [name for name in others if not gone.isdisjoint(_ends(name))]


def _ends(name: str) -> set[Words]:
    """Return the folded first and last name; of a single word, that word."""
    name = " ".join(name.split())
    ends = {folded_words(name_form(name, form) or name) for form in ("first", "last")}
    return {words for words in ends if len("".join(words)) > 1 or not "".join(words).isascii()}


def read_labels(path: str | Path) -> Labels:
    """Read a file whose lines are a name, a tab and a label, such as a job.

    Labels that differ only in case are the same, written as it comes first.

    Raises:
        InputError: the file cannot be read or is empty, a line has another form, or a name comes up
            twice.
    """
    labels, spelt = dict[Words, str](), dict[str, str]()
    for line in read_lines(path, "labels"):
        name, label, *more = (" ".join(part.split()) for part in (line + "\t").split("\t"))
        key = folded_words(name)
        if not key or not label or any(more) or key in labels:
            raise InputError(
                f"labels file `{path}`: {shortened(line)!r} must be a name not named before, a "
                "tab, and a label."
            )
        labels[key] = spelt.setdefault(label.casefold(), label)
    if not labels:
        raise InputError(f"labels file `{path}` is empty; give a name, a tab and a label a line.")
    return labels


def by_label(
    labels: Labels, removed: Sequence[Identity], others: Sequence[str]
) -> dict[str, list[str]]:
    """Group the people who stay by label; only labels that someone removed has too.

    Args:
        labels: see `read_labels`; people without a label are in no group.
        removed: people removed, found by any of their names.
        others: names of people who stay.

    Returns:
        names by label, in the order of `others`; no label that nobody who stays has.
    """
    gone = {labels.get(folded_words(name)) for identity in removed for name in identity.names}
    groups: dict[str, list[str]] = {}
    for name in others:
        label = labels.get(folded_words(name))
        if label is not None and label in gone:
            groups.setdefault(label, []).append(name)
    return groups
