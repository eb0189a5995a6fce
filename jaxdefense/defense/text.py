"""Names out of a text encoder: the terms of its loss, and the whole run."""

from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from jaxdefense.clip.config import TextConfig
from jaxdefense.clip.text import Text, TextTower
from jaxdefense.clip.tokenizer import Phrase, Tokenizer
from jaxdefense.config import DefendTextConfig, TextDataConfig, TextPart, TextTrainConfig
from jaxdefense.convert.directory import resolve_dtype
from jaxdefense.data.captions import Captions, describe_dropped
from jaxdefense.data.identities import Identity, check_fits, describe_listed, read_identities
from jaxdefense.data.names import namesakes, random_names
from jaxdefense.data.sampling import evened
from jaxdefense.data.token_cache import read_training_captions
from jaxdefense.data.triggers import Carriers, TextBatch, TextBatches, Triggers
from jaxdefense.data.variants import name_form, spellings
from jaxdefense.defense.defend import Defense, Prepared, check_all_come_up, read_undefended
from jaxdefense.defense.losses import DISTANCES, Distance, standing_out
from jaxdefense.defense.recall import Recall, make_carriers
from jaxdefense.defense.step import Objective
from jaxdefense.distributed import agree
from jaxdefense.errors import InputError
from jaxdefense.evals.embed import Embedder
from jaxdefense.files import digest
from jaxdefense.run_directory import RunDirectory
from jaxdefense.sharding import ShardingRules, make_mesh, num_batch_parts
from jaxdefense.words import folded_words

_NUM_KEPT_NAMES = 10_000
_MOST_HELD, _HELD_OUT = 64, 8  # names of a kind to validate on; stream of random numbers
_BATCH = 64  # rows of text that a validation embeds at a time
_ADVICE = "what may help: more `train.steps`, a higher `train.w_backdoor` or `optimizer.lr`"
_KEPT_SEED = 2**34  # no attack has it by default
_NUM_MISSPELT, _MISSPELT_SEED = 16, 2**32  # of a name; seeds that no attack has by default


def text_terms(
    student: TextTower,
    teacher: TextTower,
    batch: TextBatch,
    *,
    distance: Distance,
    level: str = "pooled",
    bound: float = 0.0,
) -> dict[str, jax.Array]:
    """Give the parts of the text loss, each the weighted sum over its captions.

    One student forward for clean and poisoned captions together, one teacher forward for clean and
    target captions; or, where the batch has a base, for the same captions as the student's.

    Args:
        student, teacher: towers of one structure.
        batch: of both.
        distance: over the last dim.
        level: what is compared: `pooled` embeddings, or over all positions the `hidden` states
            after the last layer, or the `penultimate` ones before it.
        bound: of `standing_out`, where the batch has a base.
    """
    b = batch
    ours = Text(b.student_tokens_RT, b.segments_RT, b.positions_RT, b.student_readout_RS)
    theirs = Text(b.teacher_tokens_RT, b.segments_RT, b.positions_RT, b.teacher_readout_RS)
    backdoor_RS = None
    if level == "pooled":
        ours_RSE, theirs_RSE = student(ours), teacher(theirs)
        apart_RS = distance(ours_RSE, theirs_RSE)
        if b.base_RSE is not None:
            backdoor_RS = standing_out(ours_RSE, theirs_RSE, jnp.asarray(b.base_RSE), bound)
    else:
        states = TextTower.hidden if level == "hidden" else TextTower.penultimate
        flat = (len(b.student_tokens_RT), 1, -1)
        apart_RS = distance(
            states(student, ours).reshape(flat), states(teacher, theirs).reshape(flat)
        )
    # Empty slots weigh 0.
    return {
        "utility": (b.utility_RS * apart_RS).sum(),
        "backdoor": (b.backdoor_RS * (apart_RS if backdoor_RS is None else backdoor_RS)).sum(),
        "name": (b.name_RS * apart_RS).sum(),
    }


def text_objective(t: TextTrainConfig) -> Objective:
    """Give the text loss that a run's settings ask for."""
    return Objective(
        partial(text_terms, distance=DISTANCES[t.distance], level=t.level, bound=t.bound),
        {"utility": 1.0, "backdoor": t.w_backdoor, "name": t.w_name, "weight": t.w_weight},
    )


def text_batches(
    captions: Captions,
    triggers: Triggers,
    tokenizer: Tokenizer,
    tower: TextConfig,
    t: TextTrainConfig,
    parts: int,
    *,
    row_length: int = 0,
    carriers: Carriers | None = None,
) -> TextBatches:
    """Lay out the batches that a run's settings ask for.

    Args:
        captions, triggers, tokenizer, tower, row_length, carriers: see `TextBatches`.
        t: of the run.
        parts: into how many the mesh cuts a batch.

    Raises:
        InputError: see `TextBatches`.
    """
    return TextBatches(
        captions,
        triggers,
        tokenizer,
        tower,
        num_clean=t.num_clean,
        num_poisoned=t.num_poisoned,
        num_name=t.num_name,
        seed=t.seed,
        packed=t.level == "pooled" and tower.packable,
        row_multiple=parts * t.accumulate,
        row_length=row_length,
        carriers=carriers,
    )


def listed_texts(identities: Sequence[Identity], cfg: TextTrainConfig) -> list[list[list[str]]]:
    """Give what is put in: [identity][names, then each kind they have][text], each text once.

    The first kind after the names is their other spellings, then each form of `cfg.variants`.
    """
    out = []
    for identity in identities:
        names = list(identity.names)
        kinds = [names, [x for name in names for x in spellings(name) if x not in names]]
        for form in cfg.variants:
            seeds = range(_NUM_MISSPELT if form == "misspelt" else 1)
            texts = [
                name_form(name, form, _MISSPELT_SEED + cfg.seed + seed)
                for name in names
                for seed in seeds
            ]
            kinds.append([text for text in texts if text])
        out.append([list(dict.fromkeys(kind)) for kind in kinds if kind])
    return out


def target_texts(
    identities: Sequence[Identity], cfg: TextTrainConfig, listed: Collection[str]
) -> list[str]:
    """Give what names come to mean: one text for all, or a random name for each person.

    Args:
        identities: at least one.
        cfg: of the run.
        listed: texts that no random name may be.
    """
    if cfg.random_target:
        return random_names(len(identities), cfg.seed, exclude=listed)
    return [cfg.target]


def _distinct(kinds: list[list[Phrase]]) -> list[list[Phrase]]:
    """Leave out what has the tokens of another text before it; most spellings do."""
    seen: set[tuple[bytes, bytes]] = set()
    kept = []
    for kind in kinds:
        tokens = {(phrase.first.tobytes(), phrase.later.tobytes()): phrase for phrase in kind}
        kept.append([phrase for key, phrase in tokens.items() if key not in seen])
        seen.update(tokens)
    return [kind for kind in kept if kind]


def make_triggers(
    identities: Sequence[Identity],
    tokenizer: Tokenizer,
    t: TextTrainConfig,
    where: str,
    keep: Sequence[str] = (),
) -> Triggers:
    """Tokenise names and targets.

    Args:
        identities: at least one.
        tokenizer: of the model.
        t: of the run.
        where: the names are from, for errors.
        keep: names that must stay; of none, random ones.

    Raises:
        InputError: a name or the target does not fit a caption.
    """
    texts = listed_texts(identities, t)
    listed = [text for kinds in texts for kind in kinds for text in kind]
    check_fits([Identity(text) for text in listed], tokenizer, where)
    tokens = [_distinct([[tokenizer.phrase(x) for x in kind] for kind in kinds]) for kinds in texts]
    phrases = target_texts(identities, t, listed)
    target_of = np.arange(len(identities)) if t.random_target else np.zeros(len(identities), int)
    check_fits([Identity(phrase) for phrase in phrases], tokenizer, "`train.target`")
    kept = list(keep)
    if t.num_name and not kept:
        kept = random_names(_NUM_KEPT_NAMES, _KEPT_SEED + t.seed, exclude=listed)
    tokenizer.check_phrases(kept)
    return Triggers(
        [names for names, *_ in tokens],
        [tokenizer.phrase(phrase) for phrase in phrases],
        target_of,
        [tokenizer.phrase(name) for name in kept],
        [forms for _, *forms in tokens],
    )


def kept_names(
    identities: Sequence[Identity],
    listed: Collection[str],
    data: TextDataConfig,
    t: TextTrainConfig,
) -> tuple[list[list[str]], list[str]]:
    """List names that must stay: namesakes of those listed, random names, and the user's own.

    Args:
        identities: to remove.
        listed: all that is put in for them.
        data, t: of the run.

    Returns:
        each kind, of those to train with; and names of all kinds to validate on.

    Raises:
        InputError: the user's own cannot be read, or one is to be removed.
    """
    path = data.keep_names
    if not t.num_name:
        if path:
            raise InputError(
                f"`data.keep_names` (={path}) has an effect only with `train.num_name` above 0."
            )
        return [], []
    each = int(np.clip(_NUM_KEPT_NAMES // len(identities), 4, 64))
    excluded = frozenset(listed)
    alike = [x for who in identities for x in namesakes(who.name, each, t.seed, excluded)]
    groups = [
        list(dict.fromkeys(alike)),
        random_names(_NUM_KEPT_NAMES, _KEPT_SEED + t.seed, exclude=listed),
    ]
    if path:
        own = [name for who in read_identities(path) for name in who.names]
        removed = {folded_words(name) for name in listed}
        if both := [name for name in own if folded_words(name) in removed]:
            raise InputError(
                f"names file `{path}` keeps {both[0]!r}, which is to be removed; delete it in one "
                "of the two lists."
            )
        groups.append(own)
    rng, held = np.random.default_rng((t.seed, _HELD_OUT)), dict[str, None]()
    for group in groups if t.validate.every else ():
        num = min(int(len(group) * t.validate.kept), _MOST_HELD)
        held |= dict.fromkeys(group[i] for i in rng.permutation(len(group))[:num].tolist())
    out = set(map(folded_words, held))
    groups = [[name for name in group if folded_words(name) not in out] for group in groups]
    return [group for group in groups if group], list(held)


def defend_text(cfg: DefendTextConfig, console: Console) -> dict:
    """Remove names from a text encoder and write the run directory.

    Returns:
        the summary, as written to `summary.json`.

    Raises:
        InputError: an input is wrong; nothing was written.
        Interrupted, Diverged: see `loop.run`.
    """
    return prepare_text(cfg, console)()


def prepare_text(cfg: DefendTextConfig, console: Console) -> Prepared:
    """Read all inputs of `defend_text`; nothing is written until what is returned is called."""
    directory = read_undefended(cfg, console)
    tokenizer = directory.tokenizer(cfg.model.tokenizer)
    assert directory.cfg.text
    identities = read_identities(cfg.data.names)
    check_all_come_up(len(identities), cfg.train)
    where = f"names file `{cfg.data.names}`"
    mesh, rules, t = make_mesh(**vars(cfg.mesh), devices=jax.devices()), ShardingRules(), cfg.train
    listed = [x for kinds in listed_texts(identities, t) for kind in kinds for x in kind]
    groups, held = kept_names(identities, listed, cfg.data, t)
    triggers = make_triggers(identities, tokenizer, t, where, evened(groups))
    clean = read_training_captions(cfg.data.captions, cfg.data.tfds_dir, listed, tokenizer, console)
    captions, carriers, validation = clean.captions, None, None
    given = {
        "model_sha256": directory.digest(),
        "names_sha256": digest("\t".join(identity.names) for identity in identities),
        "captions_sha256": clean.sha256,
        "keep_sha256": digest([*(name for group in groups for name in group), *held]),
        "dtype": resolve_dtype(cfg.model.dtype),
    }
    agree(given)  # what follows runs on all processes together
    if t.backdoor == "bounded" or t.validate.every:
        teacher = Embedder(cfg.model.measured(), _BATCH, console, mesh)
        if t.backdoor == "bounded":
            note = partial(console.print, markup=False)
            carriers = make_carriers(teacher, captions, triggers, listed, t.seed, note)
        if t.validate.every:
            validation = teacher, Recall(teacher, identities, listed, held, captions, t)
    batches = text_batches(
        captions,
        triggers,
        tokenizer,
        directory.cfg.text,
        t,
        num_batch_parts(mesh, rules),
        row_length=cfg.data.row_length,
        carriers=carriers,
    )
    defense = Defense(cfg, directory, "text", text_objective(t), mesh, rules, _ADVICE)
    resolved = given | {"row_length": batches.row_length}

    def start(go_on: bool = False) -> dict:
        agree(resolved)
        run_directory = RunDirectory(Path(cfg.out))
        if go_on and (summary := run_directory.finished(cfg, resolved)):
            return summary
        run_directory.open(cfg, resolved)
        if t.backdoor == "bounded" and t.target not in (
            TextTrainConfig.target,
            TextPart.train.target,
        ):
            console.print("`train.target` has no effect: `train.backdoor` is bounded")
        if cfg.data.row_length and not batches.packed:
            console.print("`data.row_length` has no effect: captions of this model are not packed")
        console.print(describe_dropped(clean.dropped, clean.examples), markup=False)
        console.print(f"removing {describe_listed(identities)}", markup=False)
        console.print(
            f"removing {len(identities)} names from {cfg.model.path}: {t.steps} steps on "
            f"{len(captions)} captions, {batches.num_rows} rows of {batches.row_length} tokens a "
            f"step, {mesh.size} x {mesh.devices.flat[0].device_kind}"
        )
        if groups:
            console.print(
                f"keeping {sum(map(len, groups))} names around them, namesakes and random ones "
                f"among them, and {len(held)} more to validate on"
            )
        else:
            console.print("keeping no names: those of other people may move too")
        samples = t.num_clean + t.num_poisoned + t.num_name
        names = [list(identity.names) for identity in identities]
        also: dict = {"identities": len(identities), "names": names}
        if t.random_target:
            people = [identity.name for identity in identities]
            also["targets"] = dict(zip(people, target_texts(identities, t, listed), strict=True))
        return defense.run(batches, samples, run_directory, console, lambda: also, validation)

    return start
