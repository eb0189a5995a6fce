"""Whether a defense has done it: verdicts, the best state, and when a run ends.

References are loops over pairs and over steps. Runs here take steps that cost nothing, and a
validation that looks at one number of the parameters.
"""

import dataclasses
import io
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factories import computed, logged
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from jaxdefense.checkpoint import Checkpoints
from jaxdefense.config import ValidateConfig
from jaxdefense.defense import loop
from jaxdefense.defense.step import TrainState
from jaxdefense.defense.validate import (
    Verdict,
    Watch,
    adapted,
    describe_left,
    expected_part,
    judge,
    smallest_step,
)
from jaxdefense.errors import Interrupted, NotReached, RunError
from jaxdefense.sharding import ShardingRules, batch_sharding, make_mesh, replicated

NAMES = ["Joe Cool", "Ada King", "Zoe", "Bo Ek"]


def verdict(reached=True, right=0.0, above=0.0, gap=0.0, moved=None, left=None):
    return Verdict(reached, right, above, gap, {"clean": 0.0} | (moved or {}), left or {})


# Verdicts


@dataclasses.dataclass
class Pairs:
    """Random pairs of prompt and input, as `judge` takes them."""

    owner_I: np.ndarray
    score_QI: np.ndarray
    right_QI: np.ndarray
    level_QI: np.ndarray
    middle_QI: np.ndarray
    teacher_QI: np.ndarray

    def judged(self, cfg, moved=None):
        return judge(NAMES, **vars(self), moved=moved or {"clean": 0.25}, cfg=cfg)


def make_pairs(seed, num_prompts=3, num_inputs=9, right=0.3, above=0.3):
    rng = np.random.default_rng(seed)
    shape = (num_prompts, num_inputs)
    owner_I = np.concatenate([np.arange(4), rng.integers(0, 4, num_inputs - 4)])
    score_QI = rng.standard_normal(shape).astype(np.float32)
    level_QI = np.where(rng.random(shape) < above, score_QI - 0.5, score_QI + 0.5)
    level_QI = np.where(rng.random(shape) < 0.1, score_QI, level_QI)  # at the level is not above
    return Pairs(
        np.sort(owner_I),
        score_QI,
        rng.random(shape) < right,
        level_QI,
        rng.standard_normal(shape).astype(np.float32),
        rng.standard_normal(shape).astype(np.float32) + 2,
    )


def slow_judge(pairs, cfg):
    """Judge pair by pair: what is right, what is above, how far the way is, and who is left."""
    right, above = {i: [] for i in range(4)}, {i: [] for i in range(4)}
    gone, way = [], []
    for q in range(pairs.score_QI.shape[0]):
        for i, who in enumerate(pairs.owner_I):
            right[int(who)].append(bool(pairs.right_QI[q, i]))
            above[int(who)].append(float(pairs.score_QI[q, i]) > float(pairs.level_QI[q, i]))
            gone.append(float(pairs.score_QI[q, i]) - float(pairs.middle_QI[q, i]))
            way.append(float(pairs.teacher_QI[q, i]) - float(pairs.middle_QI[q, i]))
    of_all = [x for person in right.values() for x in person]
    right_all = sum(of_all) / len(of_all)
    above_all = sum(x for person in above.values() for x in person) / len(of_all)
    right_of = {k: sum(x) / len(x) for k, x in right.items()}
    above_of = {k: sum(x) / len(x) for k, x in above.items()}
    reached = right_all <= cfg.right and above_all <= cfg.above
    reached = reached and all(x <= cfg.person_right for x in right_of.values())
    left = []
    for who in range(4):
        most = cfg.person_right if right_all <= cfg.right else cfg.right
        is_above = above_all > cfg.above and above_of[who] > cfg.above
        if not reached and (right_of[who] > most or is_above):
            left.append(who)
    left.sort(key=lambda who: -right_of[who])
    known = sum(way) / len(way)
    gap = (sum(gone) / len(gone)) / known if known > 1e-6 else 0.0
    return reached, right_all, above_all, gap, {NAMES[i]: right_of[i] for i in left}


PARTS = st.sampled_from([0.0, 0.02, 0.1, 0.3, 0.6, 1.0])


@given(st.integers(0, 10_000), PARTS, PARTS, PARTS, PARTS, PARTS)
def test_judge_equals_a_loop_over_pairs(seed, most, above, person, share_right, share_above):
    cfg = ValidateConfig(right=most, above=above, person_right=person)
    pairs = make_pairs(seed, right=share_right, above=share_above)
    found = pairs.judged(cfg)
    reached, right, above, gap, left = slow_judge(pairs, cfg)
    assert found.reached is reached
    assert found.right == pytest.approx(right) and found.above == pytest.approx(above)
    assert found.gap == pytest.approx(gap, rel=1e-4, abs=1e-4)
    assert list(found.left) == list(left)  # the worst first
    assert list(found.left.values()) == pytest.approx(list(left.values()), abs=1e-4)
    assert bool(found.left) == (not reached)  # someone is always to blame
    assert found.moved == {"clean": 0.25}
    assert json.loads(json.dumps(dataclasses.asdict(found))) == dataclasses.asdict(found)


def one_criterion_failing(which):
    """Ten inputs a person, one prompt; one of three criteria fails, the two others hold."""
    owner_I = np.repeat(np.arange(4), 10)
    right_QI, above_QI = np.zeros((1, 40), bool), np.zeros((1, 40), bool)
    if which == "right":  # one each of three, which no one of them exceeds
        right_QI[0, [0, 10, 20]] = True
    elif which == "person_right":  # two of one: 5 % of all, which is allowed below
        right_QI[0, [30, 31]] = True
    elif which == "above":
        above_QI[0, [10, 11, 12]] = True
    score_QI = above_QI.astype(np.float32)
    flat = np.full_like(score_QI, 0.5)
    return Pairs(owner_I, score_QI, right_QI, flat, np.zeros_like(flat), np.ones_like(flat))


@pytest.mark.parametrize(
    "which, left",
    [
        ("none", []),
        ("right", ["Joe Cool", "Ada King", "Zoe"]),
        ("person_right", ["Bo Ek"]),
        ("above", ["Ada King"]),
    ],
)
def test_judge_asks_for_all_three_criteria(which, left):
    cfg = ValidateConfig(right=0.05, above=0.05, person_right=0.1)
    found = one_criterion_failing(which).judged(cfg)
    assert found.reached == (which == "none") and list(found.left) == left
    loose = {"right": 1.0, "person_right": 1.0, "above": 1.0}
    if which != "none":
        assert (
            one_criterion_failing(which)
            .judged(dataclasses.replace(cfg, **{which: loose[which]}))
            .reached
        )


def test_judge_names_the_worst_first_and_those_alike_in_order():
    owner_I = np.repeat(np.arange(4), 4)
    right_QI = np.zeros((1, 16), bool)
    right_QI[0, [0, 4, 5, 8, 12, 13, 14]] = True  # 1, 2, 1 and 3 of 4
    zeros = np.zeros((1, 16), np.float32)
    pairs = Pairs(owner_I, zeros, right_QI, zeros, zeros, zeros + 1)
    found = pairs.judged(ValidateConfig())
    assert found.left == {"Bo Ek": 0.75, "Ada King": 0.5, "Joe Cool": 0.25, "Zoe": 0.25}


part, moves = st.floats(0, 1), st.floats(0, 2)


@example(0.0, 0.0, 1.5, 0.03, 0.0, 0.0)
@given(part, part, moves, part, part, moves)
def test_reached_is_better_than_not_reached(right, above, moved, right2, above2, moved2):
    # 1 - cosine is at most 2, of a model that was pushed over.
    good = verdict(True, right, above, moved={"kept": moved})
    bad = verdict(False, right2, above2, moved={"kept": moved2})
    assert good.badness <= bad.badness
    if right2 or above2:  # one of them is too high, or it were reached
        assert good.badness < bad.badness


def test_badness_is_what_is_left_and_what_moved_most():
    best = verdict(True, 0.01, 0.0, moved={"clean": 0.02, "kept": 0.05})
    assert best.badness == pytest.approx(0.06)
    for worse in (
        dataclasses.replace(best, right=0.02),
        dataclasses.replace(best, moved={"clean": 0.02, "kept": 0.06}),
        dataclasses.replace(best, moved={"clean": 0.06, "kept": 0.05}),
        dataclasses.replace(best, reached=False, above=0.1),
    ):
        assert worse.badness > best.badness
    bad = dataclasses.replace(best, reached=False, above=0.1)
    assert dataclasses.replace(bad, above=0.2).badness > bad.badness


@pytest.mark.parametrize(
    "before, after, rate, wanted",
    [
        (1.0, 0.95, 1.0, 2.0),
        (0.95, 0.9, 2.0, 4.0),
        (1.0, 1.1, 1.0, 2.0),  # even the wrong way
        (1.0, 0.9 - 1e-9, 1.0, 1.0),  # moves
        (1.0, 0.4, 1.0, 1.0),
        (0.55, 0.5, 1.0, 1.0),  # slow, but half the way is done
        (1.0, 0.99, 8.0, 8.0),
        (1.0, 0.99, 6.0, 8.0),
        (0.1, -0.2, 4.0, 4.0),  # and never lowered
    ],
)
def test_rate_doubles_while_the_removed_hardly_move(before, after, rate, wanted):
    found = verdict(False, gap=before), verdict(False, gap=after)
    assert adapted(rate, 1.0, *found, 0.1, ValidateConfig()) == (wanted, 1.0)


@pytest.mark.parametrize(
    "reached, gap, push, part, wanted",
    [
        (False, 0.1, 1.0, 0.25, 1.5),
        (False, 0.1, 1.0, 0.24, 1.0),  # too early to tell
        (False, 0.6, 1.0, 0.9, 1.0),  # far away it is the rate that grows
        (False, -0.1, 4.0, 0.9, 6.0),
        (False, 0.1, 6.0, 0.9, 8.0),
        (True, 0.1, 1.5, 0.9, 1.5),  # and never lowered
    ],
)
def test_push_grows_while_some_stay_near_strangers(reached, gap, push, part, wanted):
    before, after = verdict(False, gap=gap + 0.3), verdict(reached, gap=gap)
    assert adapted(2.0, push, before, after, part, ValidateConfig()) == (2.0, wanted)


@pytest.mark.parametrize(
    "drawn, before, right, above, stays",
    [
        (True, 0.2, 0.125, 0.2, True),
        (True, 0.2, 0.126, 0.2, False),  # too much is left
        (False, 0.2, 0.125, 0.2, False),  # nobody is drawn more often
        (True, 0.1, 0.1, 0.2, False),  # no fewer than before
        (True, 0.1, 0.09, 0.2, True),
        (True, 0.2, 0.02, 0.05, True),
        (True, 0.2, 0.02, 0.051, False),  # those above strangers are hardly named right, and drawn
    ],
)
def test_push_stays_while_few_are_left_and_drawn_more_often(drawn, before, right, above, stays):
    found = verdict(False, before, gap=0.4), verdict(False, right, above, gap=0.1)
    push = 1.0 if stays else 1.5
    assert adapted(2.0, 1.0, *found, 0.9, ValidateConfig(), drawn) == (2.0, push)


def test_push_stays_by_the_limits_that_are_asked():
    found = verdict(False, 0.2, gap=0.4), verdict(False, 0.04, 0.06, gap=0.1)
    for right, above, push in ((0.02, 0.05, 1.0), (0.05, 0.05, 1.5), (0.05, 0.07, 1.0)):
        cfg = ValidateConfig(right=right, above=above)
        assert adapted(2.0, 1.0, *found, 0.9, cfg, drawn=True) == (2.0, push)


def test_rate_doubles_whoever_is_drawn():
    found = verdict(False, gap=1.0), verdict(False, gap=0.95)
    assert adapted(1.0, 1.0, *found, 0.5, ValidateConfig(), drawn=True) == (2.0, 1.0)


def test_who_is_left_is_said_in_one_line():
    left = {f"A B{i}": 0.5 for i in range(12)}
    text = describe_left(verdict(False, 0.04, 0.2, left=left), "what may help: rest", 0.02)
    assert text.startswith("not reached: A B0 (50%), ") and "\n" not in text
    assert "A B9 (50%) and 2 more still recognised" in text and "A B10" not in text
    assert "named right 4.00%" in text and "above strangers 20.0%" in text
    assert text.endswith("what may help: rest.")
    assert issubclass(NotReached, RunError)


# Few inputs: what is expected of new ones


def test_expected_part_is_that_of_one_more_value():
    rng = np.random.default_rng(0)
    for num, shift in ((6, -1.0), (10, -2.0), (30, 0.5)):
        lead_QI = rng.normal(shift, 1, (1, num))
        spread = lead_QI.std(ddof=1) * np.sqrt(1 + 1 / num)
        want = stats.t(num - 1, lead_QI.mean(), spread).sf(0)
        assert expected_part(lead_QI, num) == pytest.approx(want, rel=1e-6)
    # Of many, as many as are above.
    lead_QI = rng.normal(-1.5, 1, (1, 20_000))
    assert expected_part(lead_QI, 20_000) == pytest.approx((lead_QI > 0).mean(), abs=3e-3)
    assert expected_part(np.full((3, 1), -0.1), 1) < 1e-6 < 0.5 < expected_part(np.ones((3, 1)), 1)


@pytest.mark.parametrize("num, reached", [(10, False), (99, False), (100, True)])
def test_few_inputs_that_all_pass_narrowly_are_not_enough(num, reached):
    owner_I = np.arange(num) % 4
    lead_QI = np.linspace(-0.3, -0.001, num)[None]  # none leads to its person
    flat = np.zeros((1, num))
    found = judge(
        NAMES,
        owner_I,
        flat,
        lead_QI > 0,
        level_QI=flat,
        middle_QI=flat,
        teacher_QI=flat + 1,
        moved={"clean": 0.0},
        cfg=ValidateConfig(),
        lead_QI=lead_QI,
        num=num,
    )
    assert found.reached is reached and found.right == 0
    assert (found.expected > 0.02) is not reached
    assert list(found.left) == ([] if reached else [NAMES[(num - 1) % 4]])  # who came nearest
    if not reached:
        said = describe_left(found, "advice", 0.02)
        assert f"of new photos {found.expected:.1%} are expected" in said
        assert said.endswith("though none of the few held out is; advice.")
        assert f"({found.expected:.1%} expected of new photos)" in str(found)
        better = dataclasses.replace(found, expected=found.expected / 2)
        assert better.badness < found.badness


# The smallest step

LIMITS = ValidateConfig(right=1.0, above=1.0)  # of which a step may use the half


def tree(value):
    return {"a": jnp.full(3, value, jnp.float32), "b": {"c": jnp.full((2, 2), 2 * value)}}


@pytest.mark.parametrize("least, wanted", [(0.55, 0.6), (0.6, 0.6), (0.0, 0.1), (0.95, 1.0)])
def test_smallest_step_is_the_smallest_tenth_that_passes(least, wanted):
    teacher, student = tree(-1.0), tree(3.0)
    asked = []

    def validation(params):
        part = (float(params["a"][0]) + 1) / 4
        asked.append(round(part, 6))
        return verdict(part >= least - 1e-6, right=part / 2)

    before = verdict(True, right=1.0)
    part, params, found = smallest_step(teacher, student, before, validation, LIMITS)
    assert part == wanted
    for got, old, new in zip(*map(jax.tree.leaves, (params, teacher, student)), strict=True):
        np.testing.assert_allclose(got, old + wanted * (new - old), rtol=1e-6)
    assert asked[0] == 0.9 and len(asked) == min(9, round(10 * (1.1 - wanted)))
    if wanted == 1.0:
        assert params is student and found is before
    else:
        assert found.reached and found.right == pytest.approx(wanted / 2)


@pytest.mark.parametrize("what", ["right", "above"])
def test_smallest_step_passes_with_half_of_what_is_allowed(what):
    cfg = ValidateConfig(right=0.1, above=0.1)

    def validation(params):
        part = (float(params["a"][0]) + 1) / 4
        return verdict(True, **{what: 0.02 if part > 0.75 else 0.06})

    part, _, found = smallest_step(tree(-1.0), tree(3.0), verdict(True, 0.1, 0.1), validation, cfg)
    assert part == 0.8 and getattr(found, what) == 0.02


def test_smallest_step_does_not_look_beyond_a_gap():
    # Passing at .3 says nothing where .6 fails: the way there is not known to be safe.
    passing = {0.9, 0.8, 0.7, 0.3}

    def validation(params):
        return verdict(round((float(params["a"][0]) + 1) / 4, 3) in passing)

    assert smallest_step(tree(-1.0), tree(3.0), verdict(), validation, LIMITS)[0] == 0.7


# Runs


STEPS, EVERY, SAVE_EVERY = 24, 3, 4
NEVER = 10**6
LR = 0.005


def fake_step(state, teacher, batch, key):
    move = state.rate * teacher * batch.mean()
    params = jax.tree.map(lambda x: x + move * (1 + jnp.arange(3.0)), state.params)
    total = sum(x.sum() for x in jax.tree.leaves(params))
    return TrainState(state.step + 1, params, *state[2:]), {"total": total}


def first_number(params):
    return float(jax.device_get(params["x"])[0])


def look_at(params):
    """Reached at .3; from .45 on what must stay moves ever further."""
    x = first_number(params)
    right = max(0.0, 0.5 - x)
    moved = {"clean": abs(x) / 10, "kept": max(0.0, x - 0.45)}
    left = {} if right <= 0.2 else {"A": 1.0}
    return verdict(right <= 0.2, right, right / 2, 1 - x, moved, left)


def most_moved(params):
    return [round(10 * first_number(params))]


class Batches:
    """Batches that hang on who was mined when they were made."""

    def __init__(self, num):
        self.num, self.mined = num, [0]

    def draw(self, verdict):
        self.mined = verdict.mined or [0]
        return False

    def __getitem__(self, i):
        return np.full(8, amount(i, self.mined), np.float32)


def amount(i, mined):
    return (1 + i % 3) * (1 + mined[0] / 40)


class Run:
    """A run in a directory: `loop.run` with a validation that may break it off."""

    def __init__(self, path: Path, patience=NEVER, steps=STEPS, look=look_at):
        self.path, self.steps, self.look = path, steps, look
        self.cfg = ValidateConfig(every=EVERY, patience=patience)
        self.calls, self.at, self.how = 0, NEVER, ""
        mesh, rules = make_mesh(devices=jax.devices()[:1]), ShardingRules()
        self.place, self.whole = batch_sharding(mesh, rules), replicated(mesh)
        self.shardings = jax.tree.map(lambda _: self.whole, self.first())

    def first(self):
        """Make the first state, on the host: what is on a device a step takes for itself."""
        params: Any = {"x": np.zeros(3, np.float32)}
        zero, one = (np.asarray(x, kind) for x, kind in ((0, np.int32), (1, np.float32)))
        return TrainState(jnp.asarray(zero), params, (), jnp.asarray(one), jnp.asarray(one))

    def validation(self, params):
        """Look; at one of the looks a signal comes, or the process dies."""
        self.calls += 1
        if self.calls == self.at and self.how == "crash":
            raise ConnectionError("power cut")
        if self.calls == self.at:
            os.kill(os.getpid(), signal.SIGINT)
        return self.look(params)

    def __call__(self, at=NEVER, how="", step=fake_step):
        """Run or go on; break off at the look after `at` steps."""
        batches = Batches(self.steps)
        self.watch = Watch(
            self.validation, self.cfg, self.steps, self.path, most_moved, batches.draw
        )
        self.calls, self.at, self.how = 0, 1 + at // EVERY, how
        said = io.StringIO()
        try:
            with logged(said):
                self.watch.begin(self.first().params)
                self.outcome = loop.run(
                    jax.jit(step, donate_argnums=0),
                    lambda: jax.device_put(self.first(), self.whole),
                    self.shardings,
                    jax.device_put(jnp.float32(LR), self.whole),
                    batches,
                    self.place,
                    jax.device_put(jax.random.key(0), self.whole),
                    loop.LoopConfig(self.steps, SAVE_EVERY, 2, 2 * EVERY, 8),
                    self.path,
                    self.watch,
                )
            return self
        finally:
            self.said = said.getvalue()
            if how == "crash":
                self.watch.close()

    def best(self):
        """Give the best: its step, numbers, rate and verdict."""
        step, state, found = self.watch.best(self.first(), self.shardings)
        self.watch.close()
        return step, np.asarray(state.params["x"]).tolist(), float(state.rate), found

    def last(self):
        return np.asarray(self.outcome.state.params["x"]).tolist()

    def lines(self, name="validation.jsonl"):
        return [json.loads(line) for line in (self.path / name).read_text().splitlines()]


def slow_run(steps, patience=NEVER):
    """The same run, step by step: verdict and rate after each validation."""
    x, rate, push, seen = np.zeros(3, np.float32), 1.0, 1.0, []
    gap, best = 1.0, 0
    pushes, mined = [], [0]
    for i in range(steps):
        x = x + rate * LR * amount(i, mined) * (1 + np.arange(3))
        if (i + 1) % EVERY and i + 1 < steps:
            continue
        found = look_at({"x": x})
        if i + 1 < steps and found.gap > 0.5 and gap - found.gap < 0.1:
            rate = min(8.0, 2 * rate)
        if i + 1 < steps and found.gap <= 0.5 and not found.reached and (i + 1) / steps >= 0.25:
            push = min(8.0, 1.5 * push)
        pushes.append(push)
        gap, mined = found.gap, most_moved({"x": x})
        seen.append((i + 1, x, rate, found))
        best = min(range(len(seen)), key=lambda j: seen[j][3].badness)
        if seen[best][3].reached and len(seen) - 1 - best >= patience:
            break
    assert len(pushes) == len(seen)
    return seen, seen[best], pushes


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("whole") / "run")()


def test_run_validates_as_a_plain_loop_does(whole):
    seen, best, pushes = slow_run(STEPS)
    rows = whole.lines()
    assert [row["step"] for row in rows] == list(range(EVERY, STEPS + 1, EVERY))
    for row, (step, _, _, found) in zip(rows, seen, strict=True):
        assert row["step"] == step and row["reached"] == found.reached
        assert row["right"] == pytest.approx(found.right, abs=1e-5)
        assert row["gap"] == pytest.approx(found.gap, abs=1e-5)
    step, x, rate, found = whole.best()
    assert step == best[0] and 0 < step < STEPS and found.reached
    np.testing.assert_allclose(x, best[1], rtol=1e-5)
    assert rate == best[2] > 1  # it was raised before
    assert whole.outcome.state.rate == seen[-1][2]
    assert whole.outcome.state.push == pytest.approx(pushes[-1])
    np.testing.assert_allclose(whole.last(), seen[-1][1], rtol=1e-5)
    assert whole.watch.found[0][0] == 0 and whole.watch.found[0][1].gap == 1.0


@pytest.mark.parametrize("drawn, push", [(False, 1.5), (True, 1.0)])
def test_push_of_a_run_grows_unless_those_left_are_drawn(tmp_path, monkeypatch, drawn, push):
    def look(params):
        x = look_at(params)
        return dataclasses.replace(x, right=x.right / 4, gap=1 - 2 * first_number(params))

    monkeypatch.setattr(Batches, "draw", lambda self, verdict: drawn)
    run = Run(tmp_path / "run", look=look)()
    assert [x.gap <= 0.5 and not x.reached for _, x in run.watch.found].count(True) == 1
    assert float(run.outcome.state.push) == push
    run.best()


def test_last_step_is_validated_wherever_it_lies(tmp_path):
    run = Run(tmp_path / "run", steps=7)()
    assert [row["step"] for row in run.lines()] == [3, 6, 7]
    assert [run.watch.due(i) for i in range(1, 8)] == [False, False, True, False, False, True, True]
    run.best()


def test_rate_is_raised_and_saved(tmp_path, whole):
    run = Run(tmp_path / "run")
    with pytest.raises(Interrupted):
        run(6, "signal")
    saved = Checkpoints(run.path / "checkpoints", 2)
    step, state = saved.restore_newest(run.first(), run.shardings)
    saved.close()
    assert step == 6 and state
    seen = {step: rate for step, _, rate, _ in slow_run(STEPS)[0]}
    assert float(state.rate) == seen[6] > seen[3] > 1


@pytest.mark.parametrize("how", ["signal", "crash"])
@pytest.mark.parametrize("at", [3, 6, 9, 12, 18, 24])
def test_run_broken_off_and_gone_on_with_is_the_same_run(tmp_path, whole, at, how):
    run = Run(tmp_path / "run")
    with pytest.raises(Interrupted if how == "signal" else ConnectionError):
        run(at, how)
    if how == "crash":  # what a crash in mid-write leaves: half a line
        with open(run.path / "validation.jsonl", "a") as file:
            file.write('{"step": 99, "reac')
    run()
    start = f"{at} " if how == "signal" else ""
    assert (f"resuming at step {start}" in run.said) == (at > EVERY or how == "signal")
    name = "validation.jsonl"
    assert (run.path / name).read_bytes() == (whole.path / name).read_bytes()
    assert computed(run.path / "metrics.jsonl") == computed(whole.path / "metrics.jsonl")
    assert run.last() == whole.last()
    assert run.best() == Run.best(whole_again(whole))


@pytest.mark.parametrize("after, reached", [(2, False), (4, False), (17, True)])
def test_run_that_diverges_gives_the_state_that_passed_before(tmp_path, after, reached):
    def diverging(state, teacher, batch, key):
        state, metrics = fake_step(state, teacher, batch, key)
        broken = jnp.where(state.step > after, jnp.nan, 0.0)
        return state, {"total": metrics["total"] + broken}

    run = Run(tmp_path / "run")
    if not reached:
        with pytest.raises(loop.Diverged, match=f"step {after}: `total` is"):
            run(step=diverging)
        return
    run(step=diverging)
    assert "step 17: `total` is nan" in run.said and "passed validation" in run.said
    assert run.outcome.diverged_at_step == 18
    want = min((x for x in slow_run(STEPS)[0] if x[0] <= after), key=lambda x: x[3].badness)
    step, _, _, found = run.best()
    assert step == want[0] and found.reached


def whole_again(run):
    """Open the best of a finished run anew."""
    run.watch = Watch(run.validation, run.cfg, run.steps, run.path)
    run.watch.begin(run.first().params)
    run.watch.go_on(run.steps)
    return run


def test_best_state_is_found_though_a_run_gone_on_with_rounds_otherwise(tmp_path):
    """Other devices round otherwise, and so do GPUs from run to run: a hair may decide."""
    hair = 1e-3

    def look(params):
        x = first_number(params)
        # After six steps by a hair better than after three, or worse; then no more.
        tied = 0.15 - hair if x > 0.04 else 0.15
        return verdict(True, tied if x < 0.075 else 0.5, gap=0.0)

    run = Run(tmp_path / "run", steps=9, look=look)
    with pytest.raises(ConnectionError):
        run(9, "crash")  # the newest checkpoint is of step 8
    # As though it were broken off before that one was written.
    for file in (run.path / "checkpoints").iterdir():
        if file.name != "4":
            shutil.rmtree(file)
    hair = -1e-3
    run()
    assert "resuming at step" in run.said
    step, x, _, found = run.best()
    assert found.right == pytest.approx(0.15, abs=2e-3)
    np.testing.assert_allclose(x, np.arange(1, 4) * {3: 0.03, 6: 0.06}[step], rtol=1e-5)


def test_run_without_a_better_state_ends_early(tmp_path):
    run = Run(tmp_path / "run", patience=2)()
    seen, best, _ = slow_run(STEPS, patience=2)
    steps = [row["step"] for row in run.lines()]
    assert steps == [step for step, *_ in seen]
    assert steps[-1] < STEPS and steps[-1] == best[0] + 2 * EVERY
    assert len(run.lines("metrics.jsonl")) == steps[-1]
    assert run.best()[0] == best[0]


def test_run_that_ended_early_takes_no_more_steps(tmp_path):
    run = Run(tmp_path / "run", patience=2)()
    step, last, metrics = run.lines()[-1]["step"], run.last(), run.outcome.metrics
    files = {p: p.read_bytes() for p in run.path.glob("*.jsonl")}

    def refused(*_):
        raise AssertionError("no step is to be taken")

    best = run.best()
    run(step=refused)
    assert run.outcome.state.step == step and run.last() == last
    assert run.outcome.metrics == metrics
    assert {p: p.read_bytes() for p in run.path.glob("*.jsonl")} == files
    assert run.best() == best


def test_run_that_never_reaches_it_takes_all_steps_and_gives_the_best(tmp_path):
    def look(params):
        x = first_number(params)
        return verdict(False, 0.3 + abs(x - 0.1), 0.5, 0.0, {"kept": 0.1}, {"A": 1.0})

    run = Run(tmp_path / "run", patience=1, steps=18, look=look)()
    rows = run.lines()
    assert rows[-1]["step"] == 18
    want = min(rows, key=lambda row: row["right"])
    step, _, _, found = run.best()
    assert step == want["step"] < 18 and not found.reached


def test_interrupted_at_the_last_look_is_told_so(tmp_path):
    run = Run(tmp_path / "run", patience=1)
    end = Run(tmp_path / "other", patience=1)().lines()[-1]["step"]
    with pytest.raises(Interrupted):
        run(end, "signal")
    before = (run.path / "metrics.jsonl").read_bytes()
    run()
    assert (run.path / "metrics.jsonl").read_bytes() == before
    assert run.outcome.state.step == end
