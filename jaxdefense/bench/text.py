"""`jaxdefense bench text`: the text defense's step beside a plain PyTorch loop.

Both draw the same number of captions, put names into half of them, and train an encoder of one
size: ours from token ids spliced and packed, one forward each of student and teacher, one compiled
step; PyTorch as the paper's procedure is written, see `theirs`.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from rich.console import Console

from jaxdefense.bench.ours import Ours, num_parts, share, sizes
from jaxdefense.bench.side_by_side import (
    OURS,
    TORCH,
    Field,
    check_counts,
    rounded,
    side_by_side,
    with_torch,
)
from jaxdefense.bench.theirs import TextSteps
from jaxdefense.clip.config import TextConfig
from jaxdefense.clip.presets import preset
from jaxdefense.clip.text import TextTower
from jaxdefense.clip.tokenizer import Tokenizer
from jaxdefense.config import PAPER_TEXT
from jaxdefense.data.captions import read_captions, tokenize_captions
from jaxdefense.data.identities import Identity
from jaxdefense.data.names import random_names
from jaxdefense.defense.text import make_triggers, text_batches, text_objective

_NUM_CAPTIONS = 10_000


@dataclasses.dataclass(frozen=True)
class TextWork:
    """What a step of both sides is made of.

    Fields:
        cfg: sizes of the encoder, whose weights are random.
        tokenizer: directory of one.
        texts: clean captions.
        names: that are put in.
        num: clean captions a step, and as many with a name.
    """

    cfg: TextConfig
    tokenizer: Path
    texts: Sequence[str]
    names: Sequence[str]
    num: int

    def theirs(self) -> partial[TextSteps]:
        """Give what makes PyTorch's side."""
        target = PAPER_TEXT.target
        return partial(
            TextSteps, self.cfg, self.tokenizer, self.texts, self.names, target, self.num
        )


def text_work(size: str, num: int, people: int, captions: str, tokenizer: str) -> TextWork:
    """Read what `bench_text` is given; see there.

    Raises:
        InputError: a flag is out of range, or a file cannot be read.
    """
    from jaxdefense.demo import world
    from jaxdefense.demo.run import shipped_model

    check_counts(num=num, people=people)
    cfg = preset(size).text
    assert cfg
    texts = read_captions(captions) if captions else world.captions(_NUM_CAPTIONS, seed=0)
    directory = Path(tokenizer) if tokenizer else shipped_model()
    return TextWork(cfg, directory, texts, random_names(people, 0), num)


def bench_text(
    size: str,
    num: int,
    people: int,
    rounds: int,
    calls: int,
    captions: str,
    tokenizer: str,
    console: Console,
) -> dict[str, Any]:
    """Time the whole step.

    Args:
        size: of the encoder, one of `PRESETS`, with random weights.
        num: clean captions a step, and as many with a name.
        people: whose names are put in.
        rounds, calls: see `side_by_side`.
        captions: file, one a line; "" for the demo's.
        tokenizer: directory of one; "" for the demo's, whose words are of more tokens than CLIP's.
        console: for progress.

    Returns:
        machine, how full the packed rows are, and `step`: as of `Timing.summary`, tokens/s of the
        captions the student sees, padding not counted, `share` and `peak_memory_mb`.

    Raises:
        InputError: a flag is out of range, or a file cannot be read.
    """
    check_counts(rounds=rounds, calls=calls)
    work = text_work(size, num, people, captions, tokenizer)
    makes = with_torch({OURS: partial(OurText, size, work)}, {TORCH: work.theirs()}, console)
    with Field(makes, console) as field:
        ours = field[OURS]
        out: dict[str, Any] = ours("machine") | {"size": size, "clean": num, "poisoned": num}
        out |= ours("rows")
        timing = side_by_side(field.does("steps"), 2 * num, rounds, calls, console)
        tokens, rates = field.ask("tokens_per_sample"), timing.rates()
        step = timing.summary()
        step["tokens_per_second"] = rounded({k: rates[k] * tokens[k] for k in rates})
        step |= share(rates[OURS], ours("flops") / (2 * num), ours("matmul_rate"))
        step["peak_memory_mb"] = field.peak_memory_mb()
    return out | {"step": step}


class OurText(Ours):
    """Our step, token ids to updated weights."""

    def __init__(self, size: str, work: TextWork):
        cfg, num = sizes(size).text, work.num
        assert cfg
        train = dataclasses.replace(PAPER_TEXT, num_clean=num, num_poisoned=num)
        tokenizer = Tokenizer(work.tokenizer, cfg.context_length)
        people = [Identity(name) for name in work.names]
        triggers = make_triggers(people, tokenizer, train, "names")
        self._samples = 2 * num
        captions = tokenize_captions(work.texts, tokenizer)
        self._text = text_batches(captions, triggers, tokenizer, cfg, train, num_parts())
        super().__init__(TextTower(cfg, nnx.Rngs(0)), text_objective(train), self._text)

    def rows(self) -> dict[str, float]:
        """Say how captions lie in rows."""
        rows, length = self._text.num_rows, self._text.row_length
        filled = np.mean([(self._text[i].segments_RT > 0).mean() for i in range(16)])
        return {"rows": rows, "row_length": length, "filled": round(float(filled), 3)}

    def tokens_per_sample(self) -> float:
        """Give the tokens of a caption that the student sees, on average."""
        num = 0
        for i in range(16):
            batch = self._text[i]
            at_RS = np.asarray(batch.student_readout_RS)
            taken_RS = np.asarray(batch.utility_RS) + np.asarray(batch.backdoor_RS) > 0
            positions_RS = np.take_along_axis(np.asarray(batch.positions_RT), at_RS, 1)
            num += int((positions_RS + 1)[taken_RS].sum())  # the last token's position
        return num / (16 * self._samples)
