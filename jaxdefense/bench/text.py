"""`jaxdefense bench text`: the step of the text defense, timed beside PyTorch.

Both implementations draw the same number of captions, put names into half of them, and train an
encoder of the same size. jaxdefense splices token ids and packs captions into rows. Its compiled
step runs student and teacher once each. PyTorch follows the paper; `jaxdefense.bench.torch.text`
has its step.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from jaxdefense.bench.jax_steps import JaxSteps, num_parts, preset_in_run_dtype
from jaxdefense.bench.side_by_side import (
    COMPILED,
    JAXDEFENSE,
    TORCH,
    Processes,
    check_counts,
    rounded,
    shares,
    side_by_side,
    with_kept,
    with_torch,
)
from jaxdefense.bench.torch.compiled import CompiledTextSteps
from jaxdefense.bench.torch.text import TorchTextSteps
from jaxdefense.clip.config import TextConfig
from jaxdefense.clip.presets import preset
from jaxdefense.clip.text import TextTower
from jaxdefense.clip.tokenizer import Tokenizer
from jaxdefense.config import PAPER_TEXT
from jaxdefense.data.captions import read_captions, tokenize_captions
from jaxdefense.data.identities import Identity
from jaxdefense.data.names import random_names
from jaxdefense.defense.kept import keep_texts
from jaxdefense.defense.table import rows_to_train
from jaxdefense.defense.text import make_triggers, text_batches, text_objective

_NUM_CAPTIONS = 10_000


@dataclasses.dataclass(frozen=True)
class TextWork:
    """The work of a step, the same for both implementations.

    Fields:
        cfg: sizes of the encoder; its weights are random.
        tokenizer: directory of the tokenizer.
        texts: clean captions.
        names: names that are put into captions.
        num: number of clean captions a step, and as many with a name.
    """

    cfg: TextConfig
    tokenizer: Path
    texts: Sequence[str]
    names: Sequence[str]
    num: int

    def on_torch(self, kind: type[TorchTextSteps] = TorchTextSteps) -> partial[TorchTextSteps]:
        """Return a constructor of a PyTorch implementation."""
        target = PAPER_TEXT.target
        return partial(kind, self.cfg, self.tokenizer, self.texts, self.names, target, self.num)


def text_work(size: str, num: int, people: int, captions: str, tokenizer: str) -> TextWork:
    """Read the inputs of `bench_text`, which explains the parameters.

    Raises:
        InputError: a parameter is out of range, or a file cannot be read.
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
    compiled: bool,
) -> dict[str, Any]:
    """Time the step of the text defense.

    Args:
        size: architecture of the encoder: demo, ViT-B-32 or another of `PRESETS`, with random
            weights.
        num: number of clean captions a step, and as many with a name.
        people: number of people whose names are put into captions.
        rounds: number of rounds; each implementation is timed once a round.
        calls: number of steps that are timed together in a round.
        captions: captions file, one a line; "" for the demo's captions.
        tokenizer: tokenizer directory; "" for the demo's, which has more tokens a word than CLIP's.
        compiled: whether PyTorch with `torch.compile` is timed too.

    Returns:
        the machine, the shape of the packed rows and how full they are, `step` and `kept`. The step
        has the figures of `Timing.summary` and `shares`, and `peak_memory_mb`. It also has the
        tokens/s of the captions that the student reads, padding excluded. `kept` has those of
        `with_kept`.

    Raises:
        InputError: a parameter is out of range, or a file cannot be read.
    """
    check_counts(rounds=rounds, calls=calls)
    work = text_work(size, num, people, captions, tokenizer)
    on_jax, on_torch = {JAXDEFENSE: partial(JaxTextSteps, size, work)}, {TORCH: work.on_torch()}
    if compiled:
        on_torch[COMPILED] = work.on_torch(CompiledTextSteps)
    with Processes(with_torch(on_jax, on_torch)) as processes:
        processes.compile()
        jax_process = processes[JAXDEFENSE]
        out: dict[str, Any] = jax_process("machine") | {"size": size, "clean": num, "poisoned": num}
        out |= jax_process("rows")
        timing = side_by_side(processes.methods("steps"), 2 * num, rounds, calls)
        tokens, rates = processes.ask("tokens_per_sample"), timing.rates()
        step = timing.summary()
        step["tokens_per_second"] = rounded({k: rates[k] * tokens[k] for k in rates})
        step["peak_memory_mb"] = processes.peak_memory_mb()
        step |= shares(rates, processes.ask("flops"), 2 * num, jax_process("matmul_rate"))
    plain, kept = (partial(JaxTextSteps, size, work, kept) for kept in (False, True))
    return out | {"step": step, "kept": with_kept(plain, kept, 2 * num, rounds, calls)}


class JaxTextSteps(JaxSteps):
    """Steps of the text defense in jaxdefense, from token ids to updated weights.

    With `kept`, the teacher embeds the clean captions before the first step.
    """

    def __init__(self, size: str, work: TextWork, kept: bool = False):
        cfg, num = preset_in_run_dtype(size).text, work.num
        assert cfg
        train = dataclasses.replace(PAPER_TEXT, num_clean=num, num_poisoned=num)
        tokenizer = Tokenizer(work.tokenizer, cfg.context_length)
        people = [Identity(name) for name in work.names]
        triggers = make_triggers(people, tokenizer, train, "names")
        self._samples = 2 * num
        captions = tokenize_captions(work.texts, tokenizer)
        self._text = text_batches(captions, triggers, tokenizer, cfg, train, num_parts())
        rows = rows_to_train(self._text.read(), cfg.vocab_size)
        if rows is not None:
            self._text.renumber(rows)
        keep = partial(keep_texts, self._text, len(captions)) if kept else None
        super().__init__(TextTower(cfg, nnx.Rngs(0)), text_objective(train), self._text, rows, keep)

    def rows(self) -> dict[str, float]:
        """Return the shape of the packed rows, and the share of positions that hold a token."""
        rows, length = self._text.num_rows, self._text.row_length
        filled = np.mean([(self._text[i].segments_RT > 0).mean() for i in range(16)])
        return {"rows": rows, "row_length": length, "filled": round(float(filled), 3)}

    def tokens_per_sample(self) -> float:
        """Return the mean number of tokens of a caption that the student reads."""
        num = 0
        for i in range(16):
            batch = self._text[i]
            at_RS = np.asarray(batch.student_readout_RS)
            taken_RS = np.asarray(batch.utility_RS) + np.asarray(batch.backdoor_RS) > 0
            positions_RS = np.take_along_axis(np.asarray(batch.positions_RT), at_RS, 1)
            num += int((positions_RS + 1)[taken_RS].sum())  # position of the last token
        return num / (16 * self._samples)
