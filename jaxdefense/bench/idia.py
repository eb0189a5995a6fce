"""`jaxdefense bench idia`: the attack's two halves, each beside the same in plain PyTorch.

Prompts: every candidate in every template through the text encoder. Ours is the attack's own
function: prompts packed, their common beginnings but once a row. PyTorch pads each to the context.
Both have the same weights, and must come to the same embeddings.

Matching: the nearest candidate of every photo, template by template. Ours is the attack's own;
PyTorch makes the matrix of cosines in pieces.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from flax import nnx
from rich.console import Console

from jaxdefense.bench.flops import product_flops
from jaxdefense.bench.models import write_random_model
from jaxdefense.bench.ours import Contestant, share
from jaxdefense.bench.process import elsewhere
from jaxdefense.bench.side_by_side import (
    OURS,
    TORCH,
    Field,
    check_counts,
    rounded,
    side_by_side,
    with_torch,
)
from jaxdefense.bench.theirs_attack import Matching, TheirMatching, TheirPrompts
from jaxdefense.clip.presets import preset
from jaxdefense.config import AttackConfig, ModelConfig
from jaxdefense.data import packing
from jaxdefense.data.names import random_names
from jaxdefense.evals.embed import Embedder
from jaxdefense.idia.nearest import Nearest
from jaxdefense.idia.prompts import TEMPLATES, fill
from jaxdefense.sharding import make_mesh

_NUM_COMPARED = 2  # names whose embeddings are held against each other
_LEAST_COSINE = {"float32": 0.9999, "bfloat16": 0.99}


def bench_idia(
    size: str,
    names: int,
    photos: int,
    candidates: int,
    rounds: int,
    tokenizer: str,
    console: Console,
) -> dict[str, Any]:
    """Time prompts and matching.

    Args:
        size: of the encoders, one of `PRESETS`, with random weights.
        names: random ones, in 21 templates each.
        photos, candidates: that are matched; random embeddings.
        rounds: see `side_by_side`; each embeds and matches everything once.
        tokenizer: directory of one; "" for the demo's, whose words are of more tokens than CLIP's.
        console: for progress.

    Returns:
        machine; `prompts` and `matching` as of `Timing.summary`, with `share` and
        `peak_memory_mb`. A sample is a prompt, or a photo held against a candidate in a template.
        Of prompts also tokens/s, shared beginnings counted in each and padding in none, the tokens
        computed a prompt, and the least cosine between our embeddings and PyTorch's.

    Raises:
        InputError: a flag is out of range, or the tokenizer cannot be read.
        RuntimeError: the two come to other embeddings, or to other candidates.
    """
    from jaxdefense.demo.run import shipped_model

    check_counts(names=names, photos=photos, candidates=candidates, rounds=rounds)
    text, directory = preset(size).text, Path(tokenizer) if tokenizer else shipped_model()
    assert text
    texts = fill(random_names(names, 0))
    with TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        elsewhere(partial(write_random_model, size, directory, model, vision=False))
        ours, theirs = partial(OurPrompts, model, texts), partial(TheirPrompts, model, texts)
        with Field(with_torch({OURS: ours}, {TORCH: theirs}, console), console) as field:
            machine = field[OURS]("machine")
            top, num = field[OURS]("matmul_rate"), names * len(TEMPLATES)
            console.print(f"timing {num} prompts")
            alike = _compare(field, machine["dtype"])
            field[OURS]("embed", 1)  # compiles; PyTorch has had its warm-up
            timing = side_by_side(field.does("embed"), num, rounds, 1, console, warm=False)
            rates, tokens = timing.rates(), field.ask("tokens_per_sample")
            prompts = timing.summary() | {
                "tokens_per_second": rounded({name: rates[name] * tokens[name] for name in rates}),
                "tokens_computed_a_prompt": rounded(field.ask("computed")),
                **alike,
                **share(rates[OURS], field[OURS]("flops") / num, top),
                "peak_memory_mb": field.peak_memory_mb(),
            }
    work = Matching(photos, candidates, len(TEMPLATES), text.embed)
    makes = {OURS: partial(OurMatching, work)}, {TORCH: partial(TheirMatching, work)}
    with Field(with_torch(*makes, console), console) as field:
        console.print(f"timing {photos} photos x {candidates} candidates x {len(TEMPLATES)}")
        num = photos * candidates * len(TEMPLATES)
        timing = side_by_side(field.does("match"), num, rounds, 1, console)
        first, *others = field.ask("answers").values()
        differ = max((float(np.mean(first != x)) for x in map(np.asarray, others)), default=0.0)
        if differ > 1e-3:  # candidates as near as one another to the last digit may change places
            raise RuntimeError(f"{differ:.1%} of the photos are nearest to other candidates.")
        matching = timing.summary()  # no share: it is f32 everywhere, the product measured is not
        matching["peak_memory_mb"] = field.peak_memory_mb()
    sizes = {"size": size, "names": names, "photos": photos, "candidates": candidates}
    return machine | sizes | {"prompts": prompts, "matching": matching}


def _compare(field: Field, dtype: str) -> dict[str, float]:
    """Hold the embeddings of some prompts against each other."""
    ours, *others = field.ask("sample").values()
    if not others:
        return {}
    cosine = float(min((ours * theirs).sum(-1).min() for theirs in others))
    if cosine < _LEAST_COSINE[dtype]:
        raise RuntimeError(f"the two come to other embeddings: cosine {cosine}.")
    return {"least_cosine": round(cosine, 6)}


class OurPrompts(Contestant):
    """The attack's prompts through a model, as the attack has them."""

    def __init__(self, model: Path, texts: Sequence[Sequence[str]]):
        console, batch = Console(quiet=True), AttackConfig("", ModelConfig(""), "").batch
        self._model, self._texts = Embedder(ModelConfig(str(model)), batch, console), texts

    def embed(self, num: int) -> None:
        """Embed all of them."""
        for _ in range(num):
            self._model.prompts(self._texts)

    def sample(self) -> np.ndarray:
        """Embed the prompts of the first few names."""
        return self._model.prompts([texts[:_NUM_COMPARED] for texts in self._texts])

    def _packed(self) -> Any:
        tokens = [self._model.tokenizer.encode(texts) for texts in self._texts]
        text = self._model.directory.cfg.text
        assert text
        length = packing.default_row_length(text.context_length)
        return tokens, packing.pack_prompts(tokens, text, length)[0]

    def tokens_per_sample(self) -> float:
        """Give the tokens of a prompt on average."""
        return float(np.mean([len(x) for group in self._packed()[0] for x in group]))

    def computed(self) -> float:
        """Give the tokens that are computed, for each prompt."""
        return self._packed()[1].tokens_RT.size / sum(map(len, self._texts))

    def flops(self) -> int:
        """Count the operations of the matrix products of all prompts."""
        tower = self._model.directory.load().text
        assert tower
        graphdef, params = nnx.split(tower)
        return product_flops(
            lambda p, text: nnx.merge(graphdef, p)(text), params, self._packed()[1]
        )


class OurMatching(Contestant):
    """Photos and candidates as the attack matches them."""

    def __init__(self, work: Matching):
        (self._image_PE, self._text_QME), self._mesh = work.draw(), make_mesh()
        self._block = min(AttackConfig("", ModelConfig(""), "").candidate_block, work.candidates)
        self._answers = np.empty(0)

    def match(self, num: int) -> None:
        """Find each photo's nearest candidates."""
        text_QME, groups = self._text_QME, np.zeros(len(self._image_PE), np.int64)
        for _ in range(num):
            nearest = Nearest(self._image_PE, groups, len(text_QME), self._block, self._mesh)
            for start in range(0, text_QME.shape[1], self._block):
                block_QME = text_QME[:, start : start + self._block]
                nearest.add(block_QME, np.zeros(block_QME.shape[1], np.int64))
            self._answers = nearest.answers()

    def answers(self) -> np.ndarray:
        """Give the candidates found; int [Q, P]."""
        return self._answers
