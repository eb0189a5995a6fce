"""`jaxdefense bench idia`: the two halves of the attack, each timed beside PyTorch.

Prompts: the text encoder embeds every candidate in every template. jaxdefense runs the attack's own
function, which packs prompts into rows and computes a common beginning once a row. PyTorch pads
each prompt to the context. Both have the same weights and must return the same embeddings.

Matching: each photo's nearest candidate is found, template by template. jaxdefense runs the
attack's own function. PyTorch computes the cosines with some candidates at a time.
"""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from flax import nnx

from jaxdefense.bench.flops import product_flops
from jaxdefense.bench.machine import JaxImplementation
from jaxdefense.bench.matching import MatchingWork
from jaxdefense.bench.models import write_random_model
from jaxdefense.bench.process import elsewhere
from jaxdefense.bench.side_by_side import (
    COMPILED,
    JAXDEFENSE,
    TORCH,
    Processes,
    check_counts,
    rounded,
    shares,
    side_by_side,
    with_torch,
)
from jaxdefense.bench.torch.attack import TorchMatching, TorchPrompts
from jaxdefense.bench.torch.compiled import CompiledPrompts
from jaxdefense.clip.presets import preset
from jaxdefense.config import AttackConfig, ModelConfig
from jaxdefense.data import packing
from jaxdefense.data.names import random_names
from jaxdefense.evals.embed import Embedder
from jaxdefense.idia.nearest import Nearest
from jaxdefense.idia.prompts import TEMPLATES, fill
from jaxdefense.sharding import make_mesh

logger = logging.getLogger(__name__)

_NUM_COMPARED = 2  # names whose embeddings are compared
_LEAST_COSINE = {"float32": 0.9999, "bfloat16": 0.99}


def bench_idia(
    size: str,
    names: int,
    photos: int,
    candidates: int,
    rounds: int,
    tokenizer: str,
    compiled: bool,
) -> dict[str, Any]:
    """Time the embedding of prompts and the matching of photos.

    Args:
        size: architecture of the text encoder: demo, ViT-B-32 or another of `PRESETS`, with random
            weights.
        names: number of random names, each put into 21 templates.
        photos: number of photos that are matched, given as random embeddings.
        candidates: number of candidates, also random embeddings, that photos are matched with.
        rounds: number of rounds; in each, every implementation embeds and matches everything once.
        tokenizer: tokenizer directory; "" for the demo's, which has more tokens a word than CLIP's.
        compiled: whether PyTorch with `torch.compile` embeds prompts too.

    Returns:
        the machine, `prompts` and `matching`. Both have the figures of `Timing.summary` and
        `peak_memory_mb`. A sample of `prompts` is a prompt; a sample of `matching` is a photo, a
        candidate and a template. Both have the figures of `shares`, the matching on accelerators
        without a share. `prompts` also has tokens/s, the tokens computed a prompt, and the least
        cosine between the embeddings of jaxdefense and of another implementation.
        Tokens/s count common beginnings in each prompt, and padding in none.

    Raises:
        InputError: a parameter is out of range, or the tokenizer cannot be read.
        RuntimeError: the implementations disagree about embeddings or nearest candidates.
    """
    from jaxdefense.demo.run import shipped_model

    check_counts(names=names, photos=photos, candidates=candidates, rounds=rounds)
    text, directory = preset(size).text, Path(tokenizer) if tokenizer else shipped_model()
    assert text
    with TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        elsewhere(partial(write_random_model, size, directory, model, vision=False))
        machine, prompts = _time_prompts(model, names, rounds, compiled)
    work = MatchingWork(photos, candidates, len(TEMPLATES), text.embed)
    matching = _time_matching(work, rounds)
    sizes = {"size": size, "names": names, "photos": photos, "candidates": candidates}
    return machine | sizes | {"prompts": prompts, "matching": matching}


def _time_prompts(
    model: Path, names: int, rounds: int, compiled: bool
) -> tuple[dict[str, str], dict[str, Any]]:
    """Time the embedding of prompts; return the machine and the figures."""
    texts = fill(random_names(names, 0))
    on_jax = {JAXDEFENSE: partial(JaxPrompts, model, texts)}
    on_torch = {TORCH: partial(TorchPrompts, model, texts)}
    if compiled:
        on_torch[COMPILED] = partial(CompiledPrompts, model, texts)
    with Processes(with_torch(on_jax, on_torch)) as processes:
        processes.compile()
        machine = processes[JAXDEFENSE]("machine")
        top, num = processes[JAXDEFENSE]("matmul_rate"), names * len(TEMPLATES)
        logger.info(f"timing {num} prompts")
        agreement = _compare(processes, machine["dtype"])
        processes[JAXDEFENSE]("embed", 1)  # compiles; `_compare` has warmed PyTorch up
        timing = side_by_side(processes.methods("embed"), num, rounds, 1, warm=False)
        rates, tokens = timing.rates(), processes.ask("tokens_per_sample")
        return machine, timing.summary() | {
            "tokens_per_second": rounded({name: rates[name] * tokens[name] for name in rates}),
            "tokens_computed_a_prompt": rounded(processes.ask("computed")),
            **agreement,
            "peak_memory_mb": processes.peak_memory_mb(),
            **shares(rates, processes.ask("flops"), num, top),
        }


def _time_matching(work: MatchingWork, rounds: int) -> dict[str, Any]:
    """Time the matching; return the figures."""
    on_jax = {JAXDEFENSE: partial(JaxMatching, work)}
    on_torch = {TORCH: partial(TorchMatching, work)}
    with Processes(with_torch(on_jax, on_torch)) as processes:
        sizes = f"{work.photos} photos x {work.candidates} candidates x {work.templates}"
        logger.info(f"timing {sizes}")
        num = work.photos * work.candidates * work.templates
        timing = side_by_side(processes.methods("match"), num, rounds, 1)
        first, *others = processes.ask("answers").values()
        differ = max((float(np.mean(first != x)) for x in map(np.asarray, others)), default=0.0)
        if differ > 1e-3:  # rounding may swap candidates that are equally near
            raise RuntimeError(f"the nearest candidates differ for {differ:.1%} of the photos.")
        found = timing.summary() | {"peak_memory_mb": processes.peak_memory_mb()}
        jax_process = processes[JAXDEFENSE]
        top = jax_process("matmul_rate")
        found |= shares(timing.rates(), processes.ask("flops"), num, top)
        if jax_process("machine")["dtype"] != "float32":
            del found["share"]  # the matching is f32 on every device, the large product is not
        return found


def _compare(processes: Processes, dtype: str) -> dict[str, float]:
    """Compare the embeddings of some prompts; return the least cosine if there are two."""
    first, *others = processes.ask("sample").values()
    if not others:
        return {}
    cosine = float(min((first * other).sum(-1).min() for other in others))
    if cosine < _LEAST_COSINE[dtype]:
        raise RuntimeError(f"the implementations return different embeddings: cosine {cosine}.")
    return {"least_cosine": round(cosine, 6)}


class JaxPrompts(JaxImplementation):
    """The attack's own embedding of prompts."""

    def __init__(self, model: Path, texts: Sequence[Sequence[str]]):
        batch = AttackConfig("", ModelConfig(""), "").batch
        self._model, self._texts = Embedder(ModelConfig(str(model)), batch), texts

    def embed(self, num: int) -> None:
        """Embed all prompts, `num` times."""
        for _ in range(num):
            self._model.prompts(self._texts)

    def sample(self) -> np.ndarray:
        """Embed the prompts of the first names; f32 [Q, names, E]."""
        return self._model.prompts([texts[:_NUM_COMPARED] for texts in self._texts])

    def _packed(self) -> Any:
        tokens = [self._model.tokenizer.encode(texts) for texts in self._texts]
        text = self._model.directory.cfg.text
        assert text
        length = packing.default_row_length(text.context_length)
        return tokens, packing.pack_prompts(tokens, text, length)[0]

    def tokens_per_sample(self) -> float:
        """Return the mean number of tokens of a prompt."""
        return float(np.mean([len(x) for group in self._packed()[0] for x in group]))

    def computed(self) -> float:
        """Return the number of tokens that the encoder computes for each prompt."""
        return self._packed()[1].tokens_RT.size / sum(map(len, self._texts))

    def flops(self) -> int:
        """Count the operations of the matrix products for all prompts."""
        tower = self._model.directory.load().text
        assert tower
        graphdef, params = nnx.split(tower)
        return product_flops(
            lambda p, text: nnx.merge(graphdef, p)(text), params, self._packed()[1]
        )


class JaxMatching(JaxImplementation):
    """The attack's own matching of photos with candidates."""

    def __init__(self, work: MatchingWork):
        (self._image_PE, self._text_QME), self._mesh = work.draw(), make_mesh()
        self._block = min(AttackConfig("", ModelConfig(""), "").candidate_block, work.candidates)
        self._answers = np.empty(0)

    def match(self, num: int) -> None:
        """Find the nearest candidate of each photo in each template, `num` times."""
        for _ in range(num):
            self._answers = self._nearest().answers()

    def answers(self) -> np.ndarray:
        """Return the indices of the candidates found; int [Q, P]."""
        return self._answers

    def flops(self) -> int:
        """Count the operations of the matrix products."""

        def work() -> None:
            self._nearest()

        return product_flops(work)

    def _nearest(self) -> Nearest:
        text_QME, groups = self._text_QME, np.zeros(len(self._image_PE), np.int64)
        nearest = Nearest(self._image_PE, groups, len(text_QME), self._block, self._mesh)
        for start in range(0, text_QME.shape[1], self._block):
            block_QME = text_QME[:, start : start + self._block]
            nearest.add(block_QME, np.zeros(block_QME.shape[1], np.int64))
        return nearest
