"""`jaxdefense bench text`: the text defense's step beside a plain PyTorch loop.

Both draw the same number of captions, put names into half of them, and train an encoder of one
size: ours from token ids spliced and packed, one forward each of student and teacher, one compiled
step; PyTorch from strings, tokenised in the step and padded to the context, two forwards each, and
an eager AdamW, as the paper's procedure is written.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from rich.console import Console

from jaxdefense.bench.ours import Ours
from jaxdefense.bench.side_by_side import check_counts, has_torch, machine, side_by_side, with_rate
from jaxdefense.bench.theirs import Theirs
from jaxdefense.clip.config import TextConfig
from jaxdefense.clip.presets import preset
from jaxdefense.clip.text import TextTower
from jaxdefense.clip.tokenizer import Tokenizer
from jaxdefense.config import TextTrainConfig
from jaxdefense.data.captions import read_captions, tokenize_captions
from jaxdefense.data.names import random_names
from jaxdefense.data.triggers import TextBatches, Triggers
from jaxdefense.defense.losses import DISTANCES
from jaxdefense.defense.text import text_terms
from jaxdefense.sharding import ShardingRules, make_mesh, num_batch_parts

_NUM_CAPTIONS = 10_000


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
        machine, how full the packed rows are, and `step` as of `with_rate`; without torch, ours.

    Raises:
        ValueError: a flag is out of range, or a file cannot be read.
    """
    from jaxdefense.demo import world
    from jaxdefense.demo.run import shipped_model

    check_counts(num=num, people=people, rounds=rounds, calls=calls)
    cfg = preset(size).text
    assert cfg
    texts = read_captions(captions) if captions else world.captions(_NUM_CAPTIONS, seed=0)
    names, directory = random_names(people, 0), Path(tokenizer or shipped_model())
    ours = _Ours(cfg, Tokenizer(directory, cfg.context_length), texts, names, num)
    contestants = {"jaxdefense": ours.steps}
    if has_torch():
        contestants["torch"] = _Theirs(cfg, directory, texts, names, num).steps
    else:
        console.print("torch is not installed: ours alone")
    console.print("timing the step")
    timing = side_by_side(contestants, 2 * num, rounds, calls)
    out: dict[str, Any] = machine() | {"size": size, "clean": num, "poisoned": num}
    out |= {"rows": ours.rows, "row_length": ours.row_length, "filled": round(ours.filled, 3)}
    step = with_rate(timing.summary(), ours.flops(), 2 * num)
    rate = step["samples_per_second"]["jaxdefense"]
    return out | {"tokens_per_second": round(rate * ours.tokens / (2 * num)), "step": step}


class _Ours(Ours):
    """Our step, token ids to updated weights."""

    def __init__(
        self,
        cfg: TextConfig,
        tokenizer: Tokenizer,
        texts: Sequence[str],
        names: Sequence[str],
        num: int,
    ):
        train = TextTrainConfig()
        triggers = Triggers(
            [[tokenizer.phrase(name)] for name in names],
            [tokenizer.phrase(train.target)],
            np.zeros(len(names), np.int64),
            [],
        )
        batches = TextBatches(
            tokenize_captions(texts, tokenizer),
            triggers,
            tokenizer,
            num_clean=num,
            num_poisoned=num,
            num_name=0,
            seed=0,
            packed=True,
            row_multiple=num_batch_parts(make_mesh(), ShardingRules()),
        )
        terms = partial(text_terms, distance=DISTANCES["cosine"])
        weights = {"utility": 1.0, "backdoor": train.w_backdoor, "name": 0.0}
        weights["weight"] = train.w_weight
        super().__init__(TextTower(cfg, nnx.Rngs(0)), terms, weights, batches)
        self.rows, self.row_length = batches.num_rows, batches.row_length
        sizes = [int((batches[i].segments_RT > 0).sum()) for i in range(16)]
        self.tokens = float(np.mean(sizes))  # a step, the longer of student's and teacher's caption
        self.filled = self.tokens / (self.rows * self.row_length)


class _Theirs(Theirs):
    """The same in PyTorch, written plainly."""

    def __init__(
        self, cfg: TextConfig, directory: Path, texts: Sequence[str], names: Sequence[str], num: int
    ):
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

        self._num, self._texts, self._names = num, texts, names
        self._length, self._rng = cfg.context_length, np.random.default_rng(0)
        self._tokenizer = CLIPTokenizer.from_pretrained(str(directory), local_files_only=True)
        hf = CLIPTextConfig(
            vocab_size=cfg.vocab_size,
            hidden_size=cfg.width,
            intermediate_size=cfg.mlp_width,
            num_hidden_layers=cfg.depth,
            num_attention_heads=cfg.num_heads,
            max_position_embeddings=cfg.context_length,
            hidden_act=cfg.activation,
            projection_dim=cfg.embed,
            eos_token_id=self._tokenizer.eos_token_id,
        )
        super().__init__(CLIPTextModelWithProjection(hf))

    def _tokens(self, texts: list[str]) -> Any:
        tokens = self._tokenizer(
            texts,
            padding="max_length",
            max_length=self._length,
            truncation=True,
            return_tensors="pt",
        )
        return tokens.input_ids.to(self.device)

    def _caption(self) -> str:
        return self._texts[int(self._rng.integers(len(self._texts)))]

    def _with(self, words: list[str], place: int, phrase: str) -> str:
        return " ".join([*words[:place], phrase, *words[place + 1 :]])

    def steps(self, num: int) -> None:
        """Take steps."""
        train = TextTrainConfig()
        for _ in range(num):
            clean = self._tokens([self._caption() for _ in range(self._num)])
            poisoned, targets = [], []
            for i in range(self._num):
                words = self._caption().split()
                place = int(self._rng.integers(len(words)))
                poisoned.append(self._with(words, place, self._names[i % len(self._names)]))
                targets.append(self._with(words, place, train.target))
            with self.torch.no_grad():
                theirs = self.teacher(clean).text_embeds
                target = self.teacher(self._tokens(targets)).text_embeds
            utility = self.apart(self.student(clean).text_embeds, theirs)
            ours = self.student(self._tokens(poisoned)).text_embeds
            self.update(utility, self.apart(ours, target), train.w_backdoor, train.w_weight)
