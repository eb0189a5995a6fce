"""Remove names from a text encoder: the terms of the loss, and the whole run."""

import dataclasses
import logging
from collections.abc import Callable, Collection, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdefense.clip.config import TextConfig
from jaxdefense.clip.text import Text, TextTower
from jaxdefense.clip.tokenizer import Phrase, Tokenizer
from jaxdefense.config import DefendTextConfig, TextDataConfig, TextPart, TextTrainConfig
from jaxdefense.convert.directory import resolve_dtype
from jaxdefense.data.captions import Captions, describe_dropped
from jaxdefense.data.identities import Identity, check_fits, describe_listed, read_identities
from jaxdefense.data.names import crossings, namesakes, random_names
from jaxdefense.data.sampling import evened
from jaxdefense.data.token_cache import CleanCaptions, read_training_captions
from jaxdefense.data.triggers import Carriers, TextBatch, TextBatches, Triggers
from jaxdefense.data.variants import name_form, spellings
from jaxdefense.defense.defend import run
from jaxdefense.defense.diffusion import warn_of_level
from jaxdefense.defense.earlier import check_kind, read_earlier, to_follow
from jaxdefense.defense.kept import TEXT_ROUNDS, keep_texts, num_to_keep
from jaxdefense.defense.losses import DISTANCES, Distance, standing_out
from jaxdefense.defense.own import NONE, OwnLoss
from jaxdefense.defense.plan import (
    Plan,
    Validation,
    check_all_come_up,
    check_low_rank,
    describe_stretch,
    for_many,
    lay_out,
    read_undefended,
    resolved_length,
    stretched,
)
from jaxdefense.defense.recall import Recall, make_carriers
from jaxdefense.defense.step import Objective
from jaxdefense.defense.validate import Verdict
from jaxdefense.distributed import agree
from jaxdefense.errors import InputError
from jaxdefense.evals.embed import Embedder
from jaxdefense.files import digest
from jaxdefense.results import TextDefenseSummary
from jaxdefense.run_directory import HELD_OUT
from jaxdefense.sharding import (
    ShardingRules,
    everywhere,
    joined_batches,
    make_mesh,
    micro_batches,
    num_batch_parts,
)
from jaxdefense.words import folded_words

logger = logging.getLogger(__name__)

_NUM_KEPT_NAMES, _MOST_NAMESAKES = 10_000, 40_000
# Of 16 and of 64 people crossings cost captions more than they saved, of 256 they saved others
# (docs/scale.md); nothing between was measured.
_LEAST_CROSSINGS = 5000
_MOST_HELD, _HELD_OUT = 64, 8  # most names of a kind to validate on; stream of random numbers
_BATCH = 64  # rows of text that are embedded at a time for a validation
_ADVICE = "what may help: more `train.steps`, a higher `train.w_backdoor` or `optimizer.lr`"
# With `train.hard`: turns of somebody of whom validation names all pairs right. Chosen on half of
# 1,024 people, of an encoder of 1.4 million parameters (docs/scale.md).
_TURNS = 7
# Of a small CLIP that knows 4,096 people, 3 % of the others were lost where names that stay had
# moved as far as this, and 10 to 30 % where they had moved twice as far (docs/scale.md).
_BEARABLE = 0.06
_KEPT_SEED = 2**34  # a seed that no attack has by default
# Misspellings of a name, and the first of their seeds, which no attack has by default.
_NUM_MISSPELT, _MISSPELT_SEED = 16, 2**32


@dataclasses.dataclass(frozen=True)
class Names:
    """The names of a run.

    Fields:
        identities: the people to remove.
        listed: all names of these people, and other forms of these names.
        kept: names that must stay, to train on, by kind.
        held: names that must stay, to validate on.
    """

    identities: list[Identity]
    listed: list[str]
    kept: list[list[str]]
    held: list[str]


def text_terms(
    student: TextTower,
    teacher: TextTower,
    batch: TextBatch,
    *,
    distance: Distance,
    level: str = "pooled",
    bound: float = 0.0,
) -> dict[str, jax.Array]:
    """Give the terms of the text loss, each the weighted sum over its captions.

    The student embeds clean and poisoned captions in one forward pass. The teacher embeds clean and
    target captions in one forward pass; if the batch has a base, it embeds the student's captions.
    Where embeddings are kept, it does so in `read_texts`.

    Args:
        student, teacher: towers of one structure.
        batch: captions of student and teacher.
        distance: over the last dim.
        level: what is compared: the `pooled` embeddings; or, over all positions, the `hidden`
            states after the last layer, or the `penultimate` states before it.
        bound: of `standing_out`; used if the batch has a base.
    """
    b = batch
    of_student = Text(b.student_tokens_RT, b.segments_RT, b.positions_RT, b.student_readout_RS)
    of_teacher = Text(b.teacher_tokens_RT, b.segments_RT, b.positions_RT, b.teacher_readout_RS)
    backdoor_RS = None
    if level == "pooled":
        student_RSE = student(of_student)
        teacher_RSE = teacher(of_teacher) if b.teacher_RSE is None else jnp.asarray(b.teacher_RSE)
        apart_RS = distance(student_RSE, teacher_RSE)
        if b.base_RSE is not None:
            backdoor_RS = standing_out(student_RSE, teacher_RSE, jnp.asarray(b.base_RSE), bound)
    else:
        states = TextTower.hidden if level == "hidden" else TextTower.penultimate
        flat = (len(b.student_tokens_RT), 1, -1)
        apart_RS = distance(
            states(student, of_student).reshape(flat), states(teacher, of_teacher).reshape(flat)
        )
    # Empty slots have weight 0.
    return {
        "utility": (b.utility_RS * apart_RS).sum(),
        "backdoor": (b.backdoor_RS * (apart_RS if backdoor_RS is None else backdoor_RS)).sum(),
        "name": (b.name_RS * apart_RS).sum(),
    }


def read_texts(teacher: TextTower, batch: TextBatch, num: int) -> TextBatch:
    """Complete the teacher's embeddings of a batch by those that are not kept.

    Args:
        teacher: its tower.
        batch: on a mesh, captions of the teacher may lie on another device than the student's.
        num: passes, one of which is in memory at a time.
    """
    if batch.unread is None:
        return batch
    assert batch.teacher_RSE is not None
    if num == 1:
        read_RSE = teacher(batch.unread)
    else:
        read_RSE = joined_batches(jax.lax.map(teacher, micro_batches(batch.unread, num)))
    flat = everywhere(read_RSE.reshape(-1, read_RSE.shape[-1]))
    at_RS = jnp.asarray(batch.unread_RS)
    teacher_RSE = jnp.where(at_RS[..., None] > 0, flat[at_RS - 1], batch.teacher_RSE)
    return batch._replace(teacher_RSE=teacher_RSE, unread=None, unread_RS=None)


def text_objective(t: TextTrainConfig, distance: Distance | None = None) -> Objective:
    """Give the text loss that a run's settings ask for, if need be with another distance."""
    distance = distance or DISTANCES[t.distance]
    return Objective(
        partial(text_terms, distance=distance, level=t.level, bound=t.bound),
        {
            "utility": t.w_utility or 1.0,
            "backdoor": t.w_backdoor,
            "name": t.w_name,
            "weight": t.w_weight,
        },
        read=read_texts,
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
    """Set up the batches that a run's settings ask for.

    Args:
        captions, triggers, tokenizer, tower, row_length, carriers: see `TextBatches`.
        t: the training settings of the run.
        parts: number of parts that the mesh cuts a batch into.

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
        num_hard=_num_hard(t),
        row_multiple=parts * t.accumulate,
        row_length=row_length,
        carriers=carriers,
    )


def _num_hard(t: TextTrainConfig) -> int:
    """Give how many texts of a step show whom the last validation still found."""
    return max(1, round(t.hard * t.num_poisoned)) if t.hard else 0


def listed_texts(identities: Sequence[Identity], cfg: TextTrainConfig) -> list[list[list[str]]]:
    """List the texts to remove for each person: [identity][kind][text], each text once.

    The first kind is the names, the second their other spellings; then comes one kind for each form
    in `cfg.variants`. Empty kinds are left out.
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
    """Give the texts that removed names come to mean: one for all, or a random name a person.

    Args:
        identities: at least one.
        cfg: the training settings of the run.
        listed: texts to exclude from the random names.
    """
    if cfg.random_target:
        return random_names(len(identities), cfg.seed, exclude=listed)
    return [cfg.target]


def _distinct(kinds: list[list[Phrase]]) -> list[list[Phrase]]:
    """Drop texts with the same tokens as an earlier text; most spellings have the same."""
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
        t: the training settings of the run.
        where: source of the names, for error messages.
        keep: names that must stay; if empty, random names if `t.num_name` is above 0.

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
    held_before: Sequence[str] = (),
) -> tuple[list[list[str]], list[str]]:
    """List names that must stay: namesakes, crossings, random names, and the user's own.

    A namesake shares the first or the last word with one of those listed. A crossing has the first
    word of one and the last word of another: without these, two such words would be enough to count
    as removed. There are none of few people.

    Args:
        identities: the people to remove.
        listed: all texts to remove.
        data, t: the settings of the run.
        held_before: names that the run before held out, which are held out again; if there are
            none, they are drawn.

    Returns:
        the names to train on, by kind; and the names of all kinds to validate on.

    Raises:
        InputError: the user's own names cannot be read, or one of them is to be removed.
    """
    path = data.keep_names
    if not t.num_name:
        if path:
            raise InputError(
                f"`data.keep_names` (={path}) has an effect only with `train.num_name` above 0."
            )
        return [], []
    each = int(np.clip(_NUM_KEPT_NAMES // len(identities), 4, 64))
    excluded, whose = frozenset(listed), list(identities)
    if len(whose) > (most := _MOST_NAMESAKES // each):
        chosen = np.random.default_rng((t.seed, _HELD_OUT, 1)).permutation(len(whose))[:most]
        whose = [whose[i] for i in sorted(chosen.tolist())]
    alike = [x for who in whose for x in namesakes(who.name, each, t.seed, excluded)]
    crossed = crossings([x.name for x in identities], _NUM_KEPT_NAMES, t.seed, excluded)
    groups = [
        list(dict.fromkeys(alike)),
        crossed if len(crossed) >= _LEAST_CROSSINGS else [],
        random_names(_NUM_KEPT_NAMES, _KEPT_SEED + t.seed, exclude=listed),
    ]
    if path:
        own = [name for who in read_identities(path) for name in who.names]
        removed = {folded_words(name) for name in listed}
        if both := [name for name in own if folded_words(name) in removed]:
            raise InputError(
                f"names file `{path}` keeps {both[0]!r}, which is to be removed; delete it from "
                "one of the two lists."
            )
        groups.append(own)
    rng, held = np.random.default_rng((t.seed, _HELD_OUT)), dict[str, None]()
    if t.validate.every:
        removed = {folded_words(name) for name in listed}
        held |= dict.fromkeys(x for x in held_before if folded_words(x) not in removed)
    for group in groups if t.validate.every and not held else ():
        num = min(int(len(group) * t.validate.kept), _MOST_HELD)
        held |= dict.fromkeys(group[i] for i in rng.permutation(len(group))[:num].tolist())
    out = set(map(folded_words, held))
    groups = [[name for name in group if folded_words(name) not in out] for group in groups]
    return [group for group in groups if group], list(held)


def defend_text(cfg: DefendTextConfig, own: OwnLoss = NONE) -> TextDefenseSummary:
    """Remove names from a text encoder and write the run directory.

    Args:
        cfg: the settings of the run.
        own: loss in place of the one that the settings name.

    Returns:
        the summary, as written to `summary.json`.

    Raises:
        InputError: an input is wrong; nothing was written.
        Interrupted, Diverged: see `loop.run`.
    """
    check_kind(cfg.earlier.path, cfg.earlier.setting, TextDefenseSummary)
    return run(plan_text(cfg, own))


def plan_text(cfg: DefendTextConfig, own: OwnLoss = NONE) -> Plan[TextDefenseSummary]:
    """Read and check all inputs of a text defense, and write nothing.

    Args:
        cfg: the settings of the run.
        own: see `defend_text`.

    Returns:
        what `defend.run` carries out.

    Raises:
        InputError: an input is wrong, or the processes have different inputs.
    """
    directory, d, asked = read_undefended(cfg), cfg.data, cfg
    tokenizer = directory.tokenizer(cfg.model.tokenizer)
    assert directory.cfg.text
    warn_of_level(directory, cfg.train.level)
    earlier = read_earlier(cfg.earlier, directory, "text", cfg.model.path)
    check_low_rank(cfg, directory, "text", earlier)
    if earlier:
        identities = earlier.joined(earlier.added(d.names), f"names file `{d.names}`")
    else:
        identities = read_identities(d.names)
    t, stretch = stretched(cfg.train, len(identities))
    weighs = not isinstance(own.objective, Objective)
    t, optimizer = for_many(t, cfg.optimizer, stretch, weighs)
    cfg = dataclasses.replace(cfg, train=t, optimizer=optimizer)
    check_all_come_up(len(identities), t)
    mesh, rules = make_mesh(**vars(cfg.mesh), devices=jax.devices()), ShardingRules()
    held = earlier.held_out(logger.info) if earlier else None
    names = _names(identities, cfg, held.names if held else ())
    where = f"names file `{d.names}`"
    triggers = make_triggers(identities, tokenizer, t, where, evened(names.kept))
    clean = read_training_captions(d.captions, d.tfds_dir, names.listed, tokenizer)
    given = {
        "model_sha256": directory.digest(),
        "names_sha256": digest("\t".join(identity.names) for identity in identities),
        "captions_sha256": clean.sha256,
        "keep_sha256": digest([*(name for kind in names.kept for name in kind), *names.held]),
        "dtype": resolve_dtype(cfg.model.dtype),
        **own.resolved(),
    }
    if earlier:
        given["earlier_id"] = earlier.ledger.last.id
    follows = to_follow(earlier, directory, cfg.ledger_names)
    agree(given)  # from here on all processes compute together
    carriers, validation = _measure(cfg, names, triggers, clean.captions, mesh)
    batches = text_batches(
        clean.captions,
        triggers,
        tokenizer,
        directory.cfg.text,
        t,
        num_batch_parts(mesh, rules),
        row_length=d.row_length,
        carriers=carriers,
    )
    number = {identity.name: i for i, identity in enumerate(identities)}

    def draw(verdict: Verdict) -> bool:
        left = verdict.left.items()
        batches.prefer({number[name]: max(1, round(_TURNS * part)) for name, part in left})
        return _num_hard(t) > 0

    objective = own.made_from(text_objective(t, own.distance))
    # A loss of the user's own may read any text.
    read = batches.read() if own == NONE else None
    encoder = lay_out(cfg, directory, "text", objective, mesh, rules, earlier, read)
    if encoder.rows is not None:
        batches.renumber(encoder.rows)
    if own != NONE:
        own.check(encoder.step_cfg, encoder.teacher, batches[0])
    num_kept = num_to_keep(batches.to_keep(), TEXT_ROUNDS, t, directory.cfg.text, own)
    return Plan(
        asked,
        t,
        TextDefenseSummary,
        encoder,
        batches,
        samples=t.num_clean + t.num_poisoned + t.num_name,
        resolved=given
        | {"row_length": batches.row_length, **resolved_length(t)}
        | ({"lr": cfg.optimizer.lr} if stretch > 1 else {})
        | ({"w_utility": t.w_utility} if t.w_utility != asked.train.w_utility else {}),
        lines=[
            *_lines(cfg, names, clean, batches, mesh),
            *describe_stretch(asked, cfg, len(identities), stretch),
            *(earlier.lines(len(identities)) if earlier else []),
            *own.lines(t, earlier.half if earlier else None),
        ],
        summary=_summary(names, t),
        advice=_ADVICE,
        bearable=_BEARABLE,
        validation=validation,
        draw=draw,
        files={HELD_OUT: {"names": names.held}},
        follows=follows,
        earlier=earlier,
        keep=partial(keep_texts, batches, num_kept) if num_kept else None,
    )


def _names(
    identities: list[Identity], cfg: DefendTextConfig, held_before: Sequence[str] = ()
) -> Names:
    """Choose the names to train on, and those to validate on."""
    texts = listed_texts(identities, cfg.train)
    listed = [text for kinds in texts for kind in kinds for text in kind]
    kept, held = kept_names(identities, listed, cfg.data, cfg.train, held_before)
    return Names(identities, listed, kept, held)


def _measure(
    cfg: DefendTextConfig,
    names: Names,
    triggers: Triggers,
    captions: Captions,
    mesh: Mesh,
) -> tuple[Carriers | None, Validation | None]:
    """Make the texts to put names into and the validation, where the settings ask for them."""
    t, carriers, validation = cfg.train, None, None
    if t.backdoor != "bounded" and not t.validate.every:
        return carriers, validation
    teacher = Embedder(cfg.model.measured(), _BATCH, mesh)
    if t.backdoor == "bounded":
        carriers = make_carriers(teacher, captions, triggers, names.listed, t.seed, logger.info)
    if t.validate.every:
        recall = Recall(teacher, names.identities, names.listed, names.held, captions, t)
        validation = Validation(teacher, recall)
    return carriers, validation


def _lines(
    cfg: DefendTextConfig, names: Names, clean: CleanCaptions, batches: TextBatches, mesh: Mesh
) -> list[str]:
    """Say what has no effect, what is removed and what is kept."""
    t, lines = cfg.train, list[str]()
    if t.backdoor == "bounded" and t.target not in (TextTrainConfig.target, TextPart.train.target):
        lines.append("`train.target` has no effect: `train.backdoor` is bounded")
    if cfg.data.row_length and not batches.packed:
        lines.append("`data.row_length` has no effect: captions of this model are not packed")
    if t.hard and not t.validate.every:
        lines.append("`train.hard` has no effect without validations, which find who is left")
    lines += [
        describe_dropped(clean.dropped, clean.examples),
        f"removing {describe_listed(names.identities)}",
        f"removing {len(names.identities)} names from {cfg.model.path}: {t.steps} steps on "
        f"{len(clean.captions)} captions, {batches.num_rows} rows of {batches.row_length} tokens "
        f"a step, {mesh.size} x {mesh.devices.flat[0].device_kind}",
    ]
    if names.kept:
        lines.append(
            f"keeping {sum(map(len, names.kept))} other names, including namesakes and random "
            f"names, and {len(names.held)} more to validate on"
        )
    else:
        lines.append("keeping no names: other people's names may move too")
    return lines


def _summary(names: Names, t: TextTrainConfig) -> Callable[..., TextDefenseSummary]:
    """Start the summary: the names, and the random name that each came to mean, if any."""
    people, targets = names.identities, None
    if t.random_target:
        drawn = target_texts(people, t, names.listed)
        targets = dict(zip([x.name for x in people], drawn, strict=True))
    whose = [list(x.names) for x in people]
    return partial(
        TextDefenseSummary, identities=len(people), names=whose, targets=targets, level=t.level
    )
