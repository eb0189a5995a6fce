"""Validation: whether a defense has removed its people, and which state of a run is the best.

A validation uses photos, prompts and people that are never trained on. It compares removed people
with *strangers*, people or names that the model does not know. Once a removed person is no nearer
to their name than strangers are, nothing is left to remove.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from scipy.special import stdtr

from jaxdefense.checkpoint import Checkpoints
from jaxdefense.config import ValidateConfig
from jaxdefense.defense.step import TrainState
from jaxdefense.distributed import first, on_first
from jaxdefense.files import write_bytes
from jaxdefense.results import Found, rates_of
from jaxdefense.sharding import put

# Training is far from done if the gap is above `_FAR`, and slow if the gap shrank by less than
# `_SLOW` since the validation before; then the rate is raised. The push is raised from the part
# `_EARLY` of the run on; `adapted` says when it stays, with at most `_FEW_RIGHT` of all pairs named
# right. Neither is raised above `_MOST`. `_FEW_RIGHT` was chosen on half of 1,024 people, of an
# encoder of 1.4 million parameters (docs/scale.md), with names held along each prompt's own
# direction.
_FAR, _SLOW, _EARLY, _MOST = 0.5, 0.1, 0.25, 8.0
_FEW_RIGHT = 0.125
_NO_WAY = 1e-6  # a cosine; below it the teacher knows none of the people
# If at least `_COUNTED` held-out photos may lead to their person, counting is enough. If fewer may,
# a t distribution with at least `_FREEDOM` degrees of freedom predicts the rate of new photos.
_COUNTED, _FREEDOM = 2, 4
_NUM_NAMED = 10

Draw = Callable[["Verdict"], bool]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The result of a validation.

    A pair is a held-out photo (or text) of a person to remove, and a prompt.

    Fields:
        reached: whether the people to remove count as removed.
        right: part of the pairs that still lead to their person.
        above: part of the pairs that score above the asked quantile of strangers.
        gap: distance left to strangers: 1 at the teacher, 0 at their middle; a mean over pairs.
        moved: 1 - cosine to the teacher for what must stay, by kind; 0 is best.
        left: `right` of each person who does not count as removed, the worst first.
        expected: part of the pairs with new photos that is expected to lead to their person, if too
            few photos are held out to count; else 0.
        mined: numbers of the people who must stay, are trained on and moved most.
    """

    reached: bool
    right: float
    above: float
    gap: float
    moved: dict[str, float]
    left: dict[str, float]
    expected: float = 0.0
    mined: list[int] = dataclasses.field(default_factory=list)

    @property
    def badness(self) -> float:
        """Rank the verdict, lower is better: first by `reached`, then by what is left and moved."""
        worst = 3.0  # the most that right and moved can add up to
        right = max(self.right, self.expected)
        return right + max(self.moved.values()) + (0 if self.reached else worst + self.above)

    def summary(self) -> Found:
        """Give all fields except `mined`, which only the run itself needs."""
        found = dataclasses.asdict(self)
        del found["mined"]
        return cast(Found, found)

    def rates(self) -> dict[str, float]:
        """Give what can be plotted; see `results.rates_of`."""
        return rates_of(self.summary())

    def __str__(self) -> str:
        moved = ", ".join(f"{name} {value:.3f}" for name, value in self.moved.items())
        done = "reached" if self.reached else f"{len(self.left)} left"
        expected = f" ({self.expected:.1%} expected of new photos)" if self.expected else ""
        return (
            f"{done}; named right {self.right:.2%}{expected}, above strangers {self.above:.1%}; "
            f"moved: {moved}"
        )


def judge(
    names: Sequence[str],
    owner_I: np.ndarray,
    score_QI: np.ndarray,
    right_QI: np.ndarray,
    *,
    level_QI: np.ndarray,
    middle_QI: np.ndarray,
    teacher_QI: np.ndarray,
    moved: Mapping[str, float],
    cfg: ValidateConfig,
    lead_QI: np.ndarray | None = None,
    num: int = 0,
) -> Verdict:
    """Judge the pairs of a prompt and a held-out input.

    Args:
        names: of the people to remove.
        owner_I: int [I], number of the person whom each input belongs to.
        score_QI: f32 [Q, I], how near a pair is to its person.
        right_QI: bool [Q, I], whether a pair leads to its person.
        level_QI, middle_QI: f32 [Q, I], scores of strangers: the asked quantile, and the middle.
        teacher_QI: f32 [Q, I], `score_QI` before the defense.
        moved: see `Verdict`.
        cfg: when people count as removed.
        lead_QI: f32 [Q, I], how much nearer a pair is to its person than to all others. If `num`
            is too small to count, it gives `Verdict.expected`.
        num: number of inputs that are not forms of one another.
    """
    way = float((teacher_QI - middle_QI).mean())
    above_QI = score_QI > level_QI
    num_K = np.maximum(np.bincount(owner_I, minlength=len(names)), 1) * len(score_QI)
    right_K, above_K = (
        np.bincount(owner_I, x.sum(0), len(names)) / num_K for x in (right_QI, above_QI)
    )
    right, above = float(right_QI.mean()), float(above_QI.mean())
    expected = 0.0
    if lead_QI is not None and 0 < num * cfg.right < _COUNTED:
        expected = expected_part(lead_QI, num)
    reached = right <= cfg.right and above <= cfg.above and right_K.max() <= cfg.person_right
    reached = reached and expected <= cfg.right
    # If the overall rate is too high, people above it are named too, though within their own limit.
    most = cfg.person_right if right <= cfg.right else cfg.right
    stays_K = (right_K > most) | ((above_K > cfg.above) & (above > cfg.above))
    left = [] if reached else [int(i) for i in np.argsort(-right_K, kind="stable") if stays_K[i]]
    if lead_QI is not None and not reached and not left:  # who came nearest to it
        left = [int(owner_I[lead_QI.max(0).argmax()])]
    return Verdict(
        bool(reached),
        right,
        above,
        float((score_QI - middle_QI).mean()) / way if way > _NO_WAY else 0.0,
        {name: float(value) for name, value in moved.items()},
        {names[i]: round(float(right_K[i]), 4) for i in left},
        expected,
    )


def expected_part(lead_QI: np.ndarray, num: int) -> float:
    """Predict the part of new inputs that lead to their person, from the leads of held-out ones.

    Leads are taken as normally distributed. Student's t then predicts one more value.

    Args:
        lead_QI: f32 [Q, I], above 0 where an input leads to its person.
        num: number of inputs that are not forms of one another.
    """
    # The variance of one more value is 1 + 1 / num times the sample's unbiased variance, which is
    # num / (num - 1) times the variance below.
    spread = max(float(lead_QI.std()), 1e-9) * np.sqrt((num + 1) / max(num - 1, 1))
    return float(stdtr(max(num - 1, _FREEDOM), float(lead_QI.mean()) / spread))


def adapted(
    rate: float,
    push: float,
    before: Verdict,
    after: Verdict,
    part: float,
    cfg: ValidateConfig,
    drawn: bool = False,
) -> tuple[float, float]:
    """Give the rate and the push to continue with.

    If the removed people are far from strangers and hardly move, the rate doubles. If they are near
    strangers and some are still left, the push grows by half: those who must stay hold them back.
    The push stays while those left are drawn more often, few pairs are named right, and fewer than
    before: others then lose less. It grows all the same if few enough pairs are named right and
    strangers' level is missed, as who is above it and not named right is hardly drawn.

    Args:
        rate, push: of the state; see `TrainState`.
        before, after: verdicts of the previous validation and of this one.
        part: part of the run that is done, in [0, 1].
        cfg: when people count as removed.
        drawn: whether those left are drawn more often.
    """
    if after.reached:
        return rate, push
    if after.gap > _FAR:
        slow = before.gap - after.gap < _SLOW
        return (min(2 * rate, _MOST) if slow else rate), push
    only_above = after.right <= cfg.right and after.above > cfg.above
    enough = drawn and after.right <= _FEW_RIGHT and after.right < before.right and not only_above
    if part < _EARLY or enough:
        return rate, push
    return rate, min(1.5 * push, _MOST)


def describe_left(verdict: Verdict, advice: str, right: float) -> str:
    """Say in one line who is left and what may help; `right` is the part allowed to be right."""
    names = [f"{name} ({share:.0%})" for name, share in verdict.left.items()]
    more = f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else ""
    if verdict.expected > right and not any(verdict.left.values()):
        return (
            f"not reached: of new photos {verdict.expected:.1%} are expected to be recognised, "
            f"most likely those of {', '.join(verdict.left)}, though none of the few held out is; "
            f"{advice}."
        )
    return (
        f"not reached: {', '.join(names[:_NUM_NAMED])}{more} still recognised in validation "
        f"(named right {verdict.right:.2%}, above strangers {verdict.above:.1%}); {advice}."
    )


class Watch:
    """The validations of a run: when they are due, what they found, and the best state so far.

    Verdicts go into `validation.jsonl`, and the best state goes into a checkpoint of its own. Both
    depend on the run alone, so an interrupted and resumed run has the same.
    """

    def __init__(
        self,
        validation: Callable[[Any], Verdict],
        cfg: ValidateConfig,
        steps: int,
        directory: Path,
        moved_most: Callable[[Any], list[int]] = lambda params: [],
        draw: Draw = lambda verdict: False,
    ):
        """Set the paths of the files, and touch none of them.

        Args:
            validation: validates trained parameters; gives every process the same verdict.
            cfg: how often to validate, and how long to continue without a better verdict.
            steps: of the run.
            directory: of the run.
            moved_most: gives `mined` for trained parameters, the same on every process.
            draw: takes each verdict that training continues from, as who is drawn may hang on it;
                returns whether those left are drawn more often from now on.
        """
        self.validation, self._cfg, self._steps = validation, cfg, steps
        self._moved_most, self._draw = moved_most, draw
        self._path = directory / "validation.jsonl"
        self._best = Checkpoints(directory / "best", 1)
        self.found: list[tuple[int, Verdict]] = []

    def newer(
        self,
        start: int,
        state: TrainState | None,
        abstract: TrainState,
        shardings: Any,
    ) -> tuple[int, TrainState | None]:
        """Give the best state instead of the newest checkpoint's, if the best state is newer.

        By then the previous best state is deleted, so the run cannot resume from an earlier step.

        Args:
            start, state: of the newest checkpoint; 0 and None if there is none.
            abstract, shardings: see `Checkpoints.restore_newest`.
        """
        if (self._best.latest or 0) <= start:
            return start, state
        return self._best.restore_newest(abstract, shardings)

    def begin(self, params: Any) -> None:
        """Validate the teacher, whose parameters are given."""
        self.found = [(0, self.validation(params))]

    def go_on(self, start: int) -> None:
        """Read the verdicts up to the step that the run resumes from."""

        def read() -> str:
            return self._path.read_text() if self._path.exists() else ""

        for line in on_first(read).splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # a crash cut the line short
                break
            if (step := entry.pop("step")) <= start:
                self.found.append((step, Verdict(**entry)))
        self._draw(self.found[-1][1])
        self._write()

    def next_due(self, done: int) -> int:
        """Give the number of steps at which the next validation is due, after `done` steps."""
        return min(self._steps, (done // self._cfg.every + 1) * self._cfg.every)

    def due(self, done: int) -> bool:
        """Tell whether a validation is due after `done` steps."""
        return done == self.next_due(done - 1)

    def look(self, done: int, state: TrainState) -> TrainState:
        """Validate a state, save it if it is the best, and give it with its next rate and push."""
        mined = self._moved_most(state.params)
        verdict = dataclasses.replace(self.validation(state.params), mined=mined)
        drawn = self._draw(verdict)
        if done < self._steps:
            rate, push = (float(x) for x in jax.device_get((state.rate, state.push)))
            part = done / self._steps
            rate, push = adapted(rate, push, self.found[-1][1], verdict, part, self._cfg, drawn)
            state = state._replace(
                rate=put(np.float32(rate), state.rate.sharding),
                push=put(np.float32(push), state.push.sharding),
            )
        better = all(verdict.badness < old.badness for _, old in self.found[1:])
        self.found.append((done, verdict))
        self._write()  # before the state that the verdict is about
        if better:
            self._best.save(done, state, verdict.badness)
            self._best.wait()  # a later checkpoint depends on it
        return state

    @property
    def reached(self) -> bool:
        """Tell whether a state passed, other than the teacher."""
        return any(verdict.reached for _, verdict in self.found[1:])

    @property
    def finished(self) -> bool:
        """Tell whether the best state passed, with no better one in `patience` validations."""
        done = self.found[1:]
        best = min(range(len(done)), key=lambda i: done[i][1].badness, default=0)
        return bool(done) and done[best][1].reached and len(done) - 1 - best >= self._cfg.patience

    def best(self, abstract: TrainState, shardings: Any) -> tuple[int, TrainState, Verdict]:
        """Give the best state: its number of steps, the state, and its verdict."""
        step, verdict = min(self.found[1:], key=lambda x: x[1].badness)
        saved, state = self._best.restore_newest(abstract, shardings)
        assert state is not None and saved == step
        return step, state, verdict

    def close(self) -> None:
        """Finish writing."""
        self._best.close()

    def _write(self) -> None:
        if first():
            lines = [json.dumps({"step": n, **dataclasses.asdict(v)}) for n, v in self.found[1:]]
            write_bytes(self._path, "".join(line + "\n" for line in lines).encode())


def smallest_step(
    teacher: Any,
    student: Any,
    verdict: Verdict,
    validation: Callable[[Any], Verdict],
    cfg: ValidateConfig,
) -> tuple[float, Any, Verdict]:
    """Find the smallest step from the teacher's weights to the student's that still passes.

    A step passes with at most half of what is allowed. Several steps are tried on the same photos,
    and with the full allowance the smallest one might pass by chance.

    Args:
        teacher, student: trees of weights; the student's weights pass, by `verdict`.
        verdict: of the student.
        validation: validates a tree of weights.
        cfg: when people count as removed.

    Returns:
        the length of the step as a part of the way, a multiple of 0.1; the weights there; and their
        verdict.
    """
    part, best = 1.0, student
    for tenths in range(9, 0, -1):
        there = _between(teacher, student, tenths / 10)
        found = validation(there)
        right = max(found.right, found.expected)
        if not found.reached or right > cfg.right / 2 or found.above > cfg.above / 2:
            break
        part, best, verdict = tenths / 10, there, found
    return part, best, verdict


@jax.jit
def _between(teacher: Any, student: Any, part: float) -> Any:
    return jax.tree.map(lambda x, y: x + part * (y - x), teacher, student)
