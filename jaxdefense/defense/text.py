"""Names out of a text encoder: the terms of its loss, and the whole run."""

import hashlib
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from jaxdefense.clip.text import Text, TextTower
from jaxdefense.clip.tokenizer import Tokenizer
from jaxdefense.config import DefendTextConfig
from jaxdefense.convert.directory import read_model_directory, resolve_dtype
from jaxdefense.data.captions import read_clean_captions, tokenize_captions
from jaxdefense.data.identities import Identity, check_fits, read_identities
from jaxdefense.data.names import random_names
from jaxdefense.data.triggers import TextBatch, TextBatches, Triggers
from jaxdefense.defense.loop import LoopConfig, run
from jaxdefense.defense.losses import DISTANCES, Distance
from jaxdefense.defense.step import (
    StepConfig,
    init_state,
    make_optimizer,
    make_train_step,
    merge_student,
    split_tower,
)
from jaxdefense.run_directory import RunDirectory
from jaxdefense.sharding import (
    ShardingRules,
    batch_sharding,
    make_mesh,
    num_batch_parts,
    replicated,
)

_NUM_KEPT_NAMES = 10_000


def text_terms(
    student: TextTower,
    teacher: TextTower,
    batch: TextBatch,
    key: jax.Array,
    *,
    distance: Distance,
    hidden: bool,
) -> dict[str, jax.Array]:
    """Give the parts of the text loss, each the mean over its captions.

    One student forward for clean and poisoned captions together, one teacher forward for clean and
    target captions.

    Args:
        student, teacher: towers of one structure.
        batch: of both.
        key: unused, the batch holds all that is random.
        distance: over the last dim.
        hidden: compare the last hidden states over all positions, not the pooled embeddings.
    """
    del key
    b = batch
    ours = Text(b.student_tokens_RT, b.segments_RT, b.positions_RT, b.student_readout_RS)
    theirs = Text(b.teacher_tokens_RT, b.segments_RT, b.positions_RT, b.teacher_readout_RS)
    if hidden:
        flat = (len(b.student_tokens_RT), 1, -1)
        apart_RS = distance(
            student.hidden(ours).reshape(flat), teacher.hidden(theirs).reshape(flat)
        )
    else:
        apart_RS = distance(student(ours), teacher(theirs))
    # Empty slots weigh 0.
    weights = {"utility": b.utility_RS, "backdoor": b.backdoor_RS, "name": b.name_RS}
    return {name: (weight * apart_RS).sum() for name, weight in weights.items()}


def make_triggers(
    identities: list[Identity], tokenizer: Tokenizer, cfg: DefendTextConfig
) -> Triggers:
    """Tokenise names and targets.

    Raises:
        ValueError: a name or the target does not fit a caption.
    """
    check_fits(identities, tokenizer, f"names file `{cfg.data.names}`")
    t = cfg.train
    listed = [name for identity in identities for name in identity.names]
    if t.random_target:
        phrases = random_names(len(identities), t.seed, exclude=listed)
        target_of = np.arange(len(identities))
    else:
        phrases, target_of = [t.target], np.zeros(len(identities), np.int64)
    check_fits([Identity(phrase) for phrase in phrases], tokenizer, "`train.target`")
    kept = random_names(_NUM_KEPT_NAMES, t.seed + 1, exclude=listed) if t.num_name else []
    return Triggers(
        [[tokenizer.encode_phrase(name) for name in identity.names] for identity in identities],
        [tokenizer.encode_phrase(phrase) for phrase in phrases],
        target_of,
        [tokenizer.encode_phrase(name) for name in kept],
    )


def _digest(lines: Iterable[str]) -> str:
    """Hash lines of text; SHA-256, in hex."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def defend_text(cfg: DefendTextConfig, console: Console) -> dict:
    """Remove names from a text encoder and write the run directory.

    Returns:
        the summary, as written to `summary.json`.

    Raises:
        ValueError: an input is wrong; nothing was written.
        Interrupted, Diverged: see `loop.run`.
    """
    directory = read_model_directory(cfg.model.path)
    run_directory = RunDirectory(Path(cfg.out))
    if run_directory.path.resolve().is_relative_to(directory.path.resolve()):
        raise ValueError(f"`out` (={cfg.out}) lies in the model directory; give one outside it.")
    tokenizer = directory.tokenizer(cfg.model.tokenizer)
    identities = read_identities(cfg.data.names)
    triggers = make_triggers(identities, tokenizer, cfg)
    listed = [name for identity in identities for name in identity.names]
    texts, dropped = read_clean_captions(cfg.data.captions, cfg.data.tfds_dir, listed)
    captions = tokenize_captions(texts, tokenizer)
    mesh, rules, t = make_mesh(**vars(cfg.mesh)), ShardingRules(), cfg.train
    hidden = t.level == "hidden"
    batches = TextBatches(
        captions,
        triggers,
        tokenizer,
        num_clean=t.num_clean,
        num_poisoned=t.num_poisoned,
        num_name=t.num_name,
        seed=t.seed,
        packed=not hidden,
        row_multiple=num_batch_parts(mesh, rules),
        row_length=cfg.data.row_length,
    )
    model = directory.load(cfg.model.dtype, cfg.model.remat)
    assert model.text, "the tokenizer was found, so there is a text encoder"
    graphdef, teacher = split_tower(model.text)
    step_cfg = StepConfig(
        graphdef,
        partial(text_terms, distance=DISTANCES[t.distance], hidden=hidden),
        {"utility": 1.0, "backdoor": t.w_backdoor, "name": t.w_name, "weight": t.w_weight},
        make_optimizer(**vars(cfg.optimizer)),
    )
    step, state_sharding, teacher_sharding = make_train_step(step_cfg, mesh, rules, teacher)
    # All inputs are good: from here on something is written.
    run_directory.open(
        cfg,
        {
            "model_sha256": directory.digest(),
            "names_sha256": _digest("\t".join(identity.names) for identity in identities),
            "captions_sha256": _digest(texts),
            "dtype": resolve_dtype(cfg.model.dtype),
            "row_length": batches.row_length,
        },
    )
    if dropped:
        console.print(f"{dropped} captions hold a listed name: dropped")
    console.print(
        f"removing {len(identities)} names from {cfg.model.path}: {t.steps} steps on "
        f"{len(captions)} captions, {batches.num_rows} rows of {batches.row_length} tokens a step, "
        f"{mesh.size} x {jax.devices()[0].device_kind}"
    )
    teacher = jax.device_put(teacher, teacher_sharding)
    init = jax.jit(partial(init_state, cfg=step_cfg), out_shardings=state_sharding)
    samples = t.num_clean + t.num_poisoned + t.num_name
    outcome = run(
        step,
        partial(init, teacher),
        state_sharding,
        teacher,
        batches,
        batch_sharding(mesh, rules),
        jax.device_put(jax.random.key(t.seed), replicated(mesh)),
        LoopConfig(t.steps, t.save_every, t.keep, cfg.data.prefetch, samples),
        run_directory.path,
        console,
    )
    model.text = merge_student(graphdef, outcome.state.params, teacher)
    left_out = directory.save(model, run_directory.model)
    if left_out:
        console.print(f"left out, as they may hold the undefended weights: {', '.join(left_out)}")
    summary = {
        "steps": t.steps,
        "seconds": round(outcome.seconds, 3),
        "samples_per_second": round(outcome.samples_per_second, 3),
        "identities": len(identities),
        "final": {k: outcome.metrics[k] for k in ("utility", "backdoor", "weight", "total")},
    }
    run_directory.finish(summary)
    console.print(f"defended model: {run_directory.model}")
    return summary
