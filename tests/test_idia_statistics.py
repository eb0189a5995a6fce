"""The attack's statistics, against published values, definitions and plain loops."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdefense.evals import outcome as outcomes
from jaxdefense.idia.statistics import (
    auc,
    majority,
    mean_interval,
    measure,
    rates,
    statistics,
    wilson,
)

counts = st.lists(st.integers(0, 6), min_size=1, max_size=9)


@pytest.mark.parametrize(
    "successes,num,want",
    [
        # Newcombe, Statistics in Medicine 1998, table I, method 3.
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0000, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_wilson_gives_published_intervals(successes, num, want):
    assert wilson(successes, num) == pytest.approx(want, abs=5e-5)


@given(st.integers(1, 500), st.data())
def test_wilson_bounds_are_where_the_score_test_turns(num, data):
    successes = data.draw(st.integers(0, num))
    rate, bounds = successes / num, wilson(successes, num)
    assert 0 <= bounds[0] <= rate <= bounds[1] <= 1
    for bound in bounds:
        if 0 < bound < 1:
            score = abs(rate - bound) / math.sqrt(bound * (1 - bound) / num)
            assert score == pytest.approx(1.959964, abs=1e-5)
    flipped = wilson(num - successes, num)
    assert flipped == pytest.approx((1 - bounds[1], 1 - bounds[0]), abs=1e-12)


def test_wilson_of_none_and_all_ends_at_0_and_1():
    for num in range(1, 60):
        assert wilson(0, num)[0] == 0 and wilson(num, num)[1] == 1


@given(counts, counts)
def test_auc_counts_pairs_and_half_of_ties(members, strangers):
    won = sum((a > b) + 0.5 * (a == b) for a in members for b in strangers)
    assert auc(members, strangers) == pytest.approx(won / len(members) / len(strangers), abs=1e-12)


def test_auc_is_the_area_under_the_curve():
    members, strangers = [0, 3, 3, 5, 6], [0, 0, 1, 3]
    points = [(1.0, 1.0), *zip(rates(strangers, 7), rates(members, 7), strict=True)]
    area = sum(
        (x1 - x2) * (y1 + y2) / 2 for (x1, y1), (x2, y2) in zip(points, points[1:], strict=False)
    )
    assert auc(members, strangers) == pytest.approx(area, abs=1e-12)
    assert auc([2, 3], [0, 1]) == 1 and auc([0], [1]) == 0 and auc([4, 4], [4]) == 0.5


@given(counts, st.one_of(st.just([]), counts), st.integers(1, 6))
def test_statistics_are_counts_over_people(members, strangers, threshold):
    found: Any = statistics(members, strangers, threshold, 6)
    assert found["tpr"] == len([n for n in members if n >= threshold]) / len(members)
    assert found["tpr"] + found["fnr"] == 1
    low, high = found["tpr_interval"]
    assert found["fnr_interval"] == (1 - high, 1 - low)
    assert low <= found["tpr"] <= high
    curve = found["curve"]
    assert curve["threshold"] == [1, 2, 3, 4, 5, 6]
    assert curve["tpr"][threshold - 1] == found["tpr"]
    assert ("fpr" in found) == ("fpr_interval" in found) == ("auc" in found) == bool(strangers)
    assert ("fpr" in curve) == bool(strangers)
    if strangers:
        assert curve["fpr"] == [
            sum(n >= t for n in strangers) / len(strangers) for t in range(1, 7)
        ]
        assert found["fpr"] == curve["fpr"][threshold - 1]
        assert found["fpr_interval"][0] <= found["fpr"] <= found["fpr_interval"][1]


@pytest.mark.parametrize("num, t", [(2, 12.706), (5, 2.776), (16, 2.131), (61, 2.000)])
def test_mean_interval_has_students_published_quantiles(num, t):
    # Of num values, one or the other, in turn.
    values = [0.5 + 0.01 * (-1) ** i for i in range(num)]
    mean = sum(values) / num
    std = math.sqrt(sum((x - mean) ** 2 for x in values) / (num - 1))
    low, high = mean_interval(values)
    assert (low, high) == pytest.approx(
        (mean - t * std / num**0.5, mean + t * std / num**0.5), 1e-3
    )
    assert mean_interval([21 * x for x in values], 21) == pytest.approx((21 * low, 21 * high))


def test_mean_interval_covers_95_of_100():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(1000):
        low, high = mean_interval(rng.beta(2, 3, 16).tolist())
        hits += low <= 0.4 <= high
    assert 930 <= hits <= 970


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_mean_interval_holds_the_mean_and_stays_in_range(values):
    low, high = mean_interval(values)
    assert 0 <= low <= np.mean(values) + 1e-12 and np.mean(values) - 1e-12 <= high <= 1


def test_people_who_are_all_alike_leave_room_for_others():
    assert mean_interval([0.0] * 20) == wilson(0, 20) and mean_interval([1.0] * 5) == wilson(5, 5)
    assert mean_interval([0.5]) == pytest.approx(wilson(0.5, 1))
    low, high = mean_interval([0.25] * 8)
    assert low < 0.15 and high > 0.5


@given(st.lists(st.tuples(st.integers(0, 6), st.floats(0, 1)), min_size=1, max_size=9))
def test_measure_is_counts_and_means_over_people(people):
    correct, right = zip(*people, strict=True)
    found: Any = measure(correct, right, 2, 6)
    num = len(people)
    assert found["tpr"] == len([n for n in correct if n >= 2]) / num
    assert found["tpr_majority"] == len([n for n in correct if n > 3]) / num
    assert found["photos_right"] == pytest.approx(sum(right) / num)
    assert found["mean_templates"] == pytest.approx(sum(correct) / num)
    for name in ("tpr", "tpr_majority", "photos_right", "mean_templates"):
        low, high = found[f"{name}_interval"]
        assert low <= found[name] + 1e-12 and found[name] <= high + 1e-12
    assert found["mean_templates_interval"] == pytest.approx(mean_interval(correct, 6))


def test_majority_is_more_than_half():
    assert [majority(num) for num in (1, 2, 3, 20, 21)] == [1, 2, 2, 11, 11]


def test_tally_counts_each_outcome_and_those_of_nobody():
    found = outcomes.tally([outcomes.KEPT, outcomes.FAILED, outcomes.KEPT])
    assert found == {
        "correctly unlearned": 0,
        "failed": 1,
        "kept": 2,
        "weakened": 0,
        "wrongfully unlearned": 0,
        "newly recalled": 0,
        "never recalled": 0,
    }
