"""How sure the attack's figures are, and how well the attack tells members from strangers.

A rate has Wilson's interval. A mean over people has Student's interval: with few
people a percentile bootstrap is too narrow (Hesterberg, The American Statistician 2015, table 1).

Source: Wilson, Probable Inference, JASA 1927; Student, The Probable Error of a Mean, Biometrika
1908; Mann and Whitney, Annals of Math. Statistics 1947.
Parity: tests/test_idia_statistics.py, published values and plain loops.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from jaxdefense.results import Curve, Measures, Rates

Z95 = 1.959963984540054  # 95 % of a normal distribution lies within this many deviations


def wilson(successes: float, num: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a rate after `successes` in `num` trials."""
    rate, z2 = successes / num, Z95**2
    middle = (rate + z2 / (2 * num)) / (1 + z2 / num)
    half = Z95 / (1 + z2 / num) * math.sqrt(rate * (1 - rate) / num + z2 / (4 * num**2))
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    # Without successes 0 is an exact bound, with all of them 1; rounding must not miss these.
    return (low if successes else 0.0), (high if successes < num else 1.0)


def mean_interval(values: Sequence[float], most: float = 1.0) -> tuple[float, float]:
    """Return the 95 % interval of the mean over people like these, within 0 and `most`.

    The interval is Student's. For one person its width is unknown, and for equal values it is 0. In
    both cases the interval is Wilson's instead, which is wide enough for any possible spread.
    """
    share_N, num = np.asarray(values, np.float64) / most, len(values)
    mean = float(share_N.mean())
    if num == 1 or not np.ptp(share_N):
        low, high = wilson(mean * num, num)
    else:
        half = float(stdtrit(num - 1, 0.975) * share_N.std(ddof=1) / math.sqrt(num))
        low, high = max(0.0, mean - half), min(1.0, mean + half)
    return low * most, high * most


def majority(num_templates: int) -> int:
    """Return the smallest number of templates that is more than half of them."""
    return num_templates // 2 + 1


def measure(
    correct: Sequence[int], photos_right: Sequence[float], threshold: int, num_templates: int
) -> Measures:
    """Sum up how well the model knows people.

    Args:
        correct: templates with the right answer, for each person; at least one person.
        photos_right: share of each person's photos named right.
        threshold: the attack succeeds on people with at least this many correct templates.
        num_templates: Q.

    Returns:
        tpr, the part of the people on whom the attack succeeds; tpr_majority, the same if it takes
        more than half of the templates; photos_right and mean_templates, means over people; and
        the `_interval` of each.
    """
    num = len(correct)
    hits, most = (
        sum(n >= least for n in correct) for least in (threshold, majority(num_templates))
    )
    return {
        "tpr": hits / num,
        "tpr_interval": wilson(hits, num),
        "tpr_majority": most / num,
        "tpr_majority_interval": wilson(most, num),
        "photos_right": float(np.mean(photos_right)),
        "photos_right_interval": mean_interval(photos_right),
        "mean_templates": float(np.mean(correct)),
        "mean_templates_interval": mean_interval(correct, float(num_templates)),
    }


def auc(members: Sequence[int], strangers: Sequence[int]) -> float:
    """Return the probability that a member has more correct templates than a stranger.

    Ties count half. This is the area under the ROC curve, computed from Mann and Whitney's U.
    """
    size = max(*members, *strangers) + 1
    members_N = np.bincount(members, minlength=size)  # number of people by correct templates
    strangers_N = np.bincount(strangers, minlength=size)
    below_N = np.cumsum(strangers_N) - strangers_N
    pairs = len(members) * len(strangers)
    return float((members_N * (2 * below_N + strangers_N)).sum() / (2 * pairs))


def rates(correct: Sequence[int], num_templates: int) -> list[float]:
    """Return the part of the people with at least 1, 2, ... `num_templates` correct templates."""
    return [float(np.mean(np.asarray(correct) >= n)) for n in range(1, num_templates + 1)]


def statistics(
    members: Sequence[int], strangers: Sequence[int], threshold: int, num_templates: int
) -> Rates:
    """Sum up people's correct templates.

    Args:
        members: correct templates of each person whom the model may have seen.
        strangers: correct templates of each person whom it never saw; may be empty.
        threshold: the attack succeeds on people with at least this many correct templates.
        num_templates: Q.

    Returns:
        tpr, fnr and their 95 % intervals; the curve over all thresholds; with strangers also fpr,
        its interval and auc.
    """
    hits = sum(n >= threshold for n in members)
    tpr, (low, high) = hits / len(members), wilson(hits, len(members))
    curve: Curve = {
        "threshold": list(range(1, num_templates + 1)),
        "tpr": rates(members, num_templates),
    }
    found: Rates = {
        "tpr": tpr,
        "tpr_interval": (low, high),
        "fnr": 1 - tpr,
        "fnr_interval": (1 - high, 1 - low),
        "curve": curve,
    }
    if strangers:
        hits = sum(n >= threshold for n in strangers)
        curve["fpr"] = rates(strangers, num_templates)
        found["fpr"] = hits / len(strangers)
        found["fpr_interval"] = wilson(hits, len(strangers))
        found["auc"] = auc(members, strangers)
    return found
