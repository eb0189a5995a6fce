"""Whether a defense has done it: what a validation finds, and which state of a run is the best.

A validation looks at photos, prompts and people that are never trained on. It holds the removed
against *strangers*, people or names that the model does not know: where strangers are, nothing is
left to remove.
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
from jaxdefense.results import Found
from jaxdefense.sharding import put

# A rate is raised while this part of the way is still to go, and a validation finds less than that
# part of it gone since the one before; a push from this part of the run on.
_FAR, _SLOW, _EARLY, _MOST = 0.5, 0.1, 0.25, 8.0
_NO_WAY = 1e-6  # a cosine: the teacher knows none of the people
# Counting says enough where so many photos are allowed to be wrong. Where fewer are, a t
# distribution says the rest, of so many degrees of freedom at least.
_COUNTED, _FREEDOM = 2, 4
_NUM_NAMED = 10

Mine = Callable[[Sequence[int]], object]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a validation finds.

    Fields:
        reached: whether the removed count as removed.
        right: part of their held-out photos (or texts) and prompts that still lead to them.
        above: part of these pairs that lie above strangers, at the level asked for.
        gap: the way left, 1 at the teacher and 0 at the middle of strangers; a mean over pairs.
        moved: 1 - cosine to the teacher of what must stay, by kind; 0 is best.
        left: `right` of each person who does not count as removed, the worst first.
        expected: part of the pairs with new photos that is expected to lead to them, where too
            few are held out to count it; else 0.
        mined: numbers of the people trained on who must stay and moved most.
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
        """The smaller, the better: reached before not reached, then what is left and what moved."""
        worst = 3.0  # of right and moved together
        right = max(self.right, self.expected)
        return right + max(self.moved.values()) + (0 if self.reached else worst + self.above)

    def summary(self) -> Found:
        """All but what only the run itself needs."""
        found = dataclasses.asdict(self)
        del found["mined"]
        return cast(Found, found)

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
        owner_I: int [I], whose input each is.
        score_QI: f32 [Q, I], how near it comes to its person; `teacher_QI` before the defense.
        right_QI: bool [Q, I], whether it leads to its person.
        level_QI, middle_QI: f32 [Q, I], where strangers are: the quantile asked for, the middle.
        moved: see `Verdict`.
        cfg: what is asked.
        lead_QI: f32 [Q, I], how much nearer it comes to its person than to all others; of new
            inputs is expected what it says, if `num` are too few.
        num: of inputs that are not forms of one another.
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
    # The one at the limit is named too, where it is the sum that is too high.
    most = cfg.person_right if right <= cfg.right else cfg.right
    stays_K = (right_K > most) | ((above_K > cfg.above) & (above > cfg.above))
    left = [] if reached else [int(i) for i in np.argsort(-right_K, kind="stable") if stays_K[i]]
    if lead_QI is not None and not reached and not left:  # whoever came nearest to it
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
    """Expect of new inputs that a part leads to its person, from how far some are from it.

    The prediction of one more value of a normal distribution, by Student's t.

    Args:
        lead_QI: f32 [Q, I], above 0 where one leads to its person.
        num: of inputs that are not forms of one another.
    """
    # Of one more: 1 + 1 / num times the sample's variance, which is num / (num - 1) times this one.
    spread = max(float(lead_QI.std()), 1e-9) * np.sqrt((num + 1) / max(num - 1, 1))
    return float(stdtr(max(num - 1, _FREEDOM), float(lead_QI.mean()) / spread))


def adapted(
    rate: float, push: float, before: Verdict, after: Verdict, part: float
) -> tuple[float, float]:
    """Give the rate and the push to go on with.

    Where the removed hardly move, the rate doubles. Where they come near strangers and some stay,
    held by those who must, the push grows by a half.

    Args:
        rate, push: of the state; see `TrainState`.
        before, after: verdicts of the validation before, and of this one.
        part: of the run that is done, in [0, 1].
    """
    if after.reached:
        return rate, push
    if after.gap > _FAR:
        slow = before.gap - after.gap < _SLOW
        return (min(2 * rate, _MOST) if slow else rate), push
    return rate, (min(1.5 * push, _MOST) if part >= _EARLY else push)


def describe_left(verdict: Verdict, advice: str, right: float) -> str:
    """Say in one line who is left, and what would help; `right` is what is allowed."""
    names = [f"{name} ({share:.0%})" for name, share in verdict.left.items()]
    more = f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else ""
    if verdict.expected > right and not any(verdict.left.values()):
        return (
            f"not reached: of new photos {verdict.expected:.1%} are expected to be recognised, "
            f"first of all those of {', '.join(verdict.left)}, though of the few held out none is; "
            f"{advice}."
        )
    return (
        f"not reached: {', '.join(names[:_NUM_NAMED])}{more} still recognised in validation "
        f"(named right {verdict.right:.2%}, above strangers {verdict.above:.1%}); {advice}."
    )


class Watch:
    """The validations of a run: when they are due, what they found, and the best state so far.

    They go into `validation.jsonl`, and the best state into a checkpoint of its own. Both are
    functions of the run alone, so that a run that is broken off and gone on with has the same.
    """

    def __init__(
        self,
        validation: Callable[[Any], Verdict],
        cfg: ValidateConfig,
        steps: int,
        directory: Path,
        moved_most: Callable[[Any], list[int]] = lambda params: [],
        mine: Mine = lambda mined: None,
    ):
        """Name the files; nothing is touched.

        Args:
            validation: of trained parameters, the same on every process.
            cfg: how often, and how long without a better one.
            steps: of the run.
            directory: of the run.
            moved_most: gives `mined` for trained parameters, the same on every process.
            mine: takes `mined` of each verdict that training goes on from.
        """
        self.validation, self._cfg, self._steps = validation, cfg, steps
        self._moved_most, self._mine = moved_most, mine
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
        """Give the best state instead of a checkpoint, if it is the newer of the two.

        The best before it is gone by then, so that there is no way back behind it.

        Args:
            start, state: of the newest checkpoint; 0 and None without.
            abstract, shardings: see `Checkpoints.restore_newest`.
        """
        if (self._best.latest or 0) <= start:
            return start, state
        return self._best.restore_newest(abstract, shardings)

    def begin(self, params: Any) -> None:
        """Look at the teacher, whose parameters these are."""
        self.found = [(0, self.validation(params))]

    def go_on(self, start: int) -> None:
        """Read what was found up to the step that is gone on from."""

        def read() -> str:
            return self._path.read_text() if start and self._path.exists() else ""

        for line in on_first(read).splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # the line a crash cut short
                break
            if entry["step"] > start:
                break
            self.found.append((entry.pop("step"), Verdict(**entry)))
        self._mine(self.found[-1][1].mined)
        self._write()

    def next_due(self, done: int) -> int:
        """After how many steps to look, of those after so many that are done."""
        return min(self._steps, (done // self._cfg.every + 1) * self._cfg.every)

    def due(self, done: int) -> bool:
        """Whether to look after so many steps."""
        return done == self.next_due(done - 1)

    def look(self, done: int, state: TrainState) -> TrainState:
        """Validate a state, and keep it if none was better; gives it with what to go on at."""
        mined = self._moved_most(state.params)
        verdict = dataclasses.replace(self.validation(state.params), mined=mined)
        if done < self._steps:
            rate, push = (float(x) for x in jax.device_get((state.rate, state.push)))
            part = done / self._steps
            rate, push = adapted(rate, push, self.found[-1][1], verdict, part)
            state = state._replace(
                rate=put(np.float32(rate), state.rate.sharding),
                push=put(np.float32(push), state.push.sharding),
            )
        better = all(verdict.badness < old.badness for _, old in self.found[1:])
        self.found.append((done, verdict))
        self._mine(verdict.mined)
        self._write()  # before the state that it is of
        if better:
            self._best.save(done, state, verdict.badness)
            self._best.wait()  # before the checkpoint that counts on it
        return state

    @property
    def finished(self) -> bool:
        """Whether the removed count as removed, and the last validations found nothing better."""
        done = self.found[1:]
        best = min(range(len(done)), key=lambda i: done[i][1].badness, default=0)
        return bool(done) and done[best][1].reached and len(done) - 1 - best >= self._cfg.patience

    def best(self, abstract: TrainState, shardings: Any) -> tuple[int, TrainState, Verdict]:
        """Give the best state: after how many steps, the state, and its verdict."""
        step, verdict = min(self.found[1:], key=lambda x: x[1].badness)
        saved, state = self._best.restore_newest(abstract, shardings)
        assert state is not None and saved == step
        return step, state, verdict

    def close(self) -> None:
        """Finish what is being written."""
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

    It passes with half of what is allowed: the smallest of many tries on the same photos would be
    the one that chance favours.

    Args:
        teacher, student: trees of weights; the student's pass, by `verdict`.
        verdict: of the student.
        validation: of a tree of weights.
        cfg: what is allowed.

    Returns:
        the part of the way, in tenths; the weights there; and their verdict.
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
