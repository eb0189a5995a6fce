"""`jaxdefense sweep`: defends, attacks and evaluates every cell, and resumes after a stop.

A cell is a directory with a defense, an attack and an evaluation, each as its own command writes
it. Cells share nothing but their parent directory, so any number of processes can run a part each.
"""

import logging
import shutil
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import jax

from jaxdefense.cache import ArrayCache
from jaxdefense.config import (
    DefendBothConfig,
    DefendTextConfig,
    ImageDataConfig,
    ImageTrainConfig,
    TextDataConfig,
    TextTrainConfig,
)
from jaxdefense.convert.directory import (
    ModelDirectory,
    check_companions,
    read_model_directory,
    resolve_dtype,
)
from jaxdefense.data.captions import read_captions
from jaxdefense.data.identities import Identity, check_fits, read_identities
from jaxdefense.data.images import Photos
from jaxdefense.data.people import (
    choose_people,
    describe_people,
    read_faces,
    read_labelled,
    read_people,
)
from jaxdefense.data.sources import describe_images, quiet, read_images
from jaxdefense.data.templates import read_templates
from jaxdefense.defense.both import defend_both
from jaxdefense.defense.defend import run
from jaxdefense.defense.image import plan_image
from jaxdefense.defense.plan import check_all_come_up, stretched
from jaxdefense.defense.text import kept_names, plan_text
from jaxdefense.errors import InputError
from jaxdefense.evals.embed import POOLED, Embedder
from jaxdefense.evals.run import run_evaluate
from jaxdefense.evals.zeroshot import class_templates
from jaxdefense.files import digest, locked, write_text
from jaxdefense.idia.attack import check_threshold
from jaxdefense.idia.candidates import candidate_names
from jaxdefense.idia.prompts import TEMPLATES
from jaxdefense.idia.run import run_attack
from jaxdefense.idia.statistics import measure
from jaxdefense.paths import check_writable
from jaxdefense.results import (
    AttackSummary,
    BothDefenseSummary,
    CellSummary,
    DefenseSummary,
    EvaluationSummary,
    Measures,
    SweepSummary,
    UndefendedSummary,
)
from jaxdefense.run_directory import RunDirectory, claimed, once
from jaxdefense.sharding import make_mesh
from jaxdefense.sweep.cells import (
    BEFORE,
    CELLS,
    DEFENSE,
    NAMES,
    Cell,
    SweepConfig,
    attack_config,
    cells,
    choose,
    clean_captions,
    clean_images,
    defense_config,
    evaluate_config,
    faces,
    halves,
    tfds_dir,
)
from jaxdefense.sweep.results import write_results
from jaxdefense.words import folded_words

logger = logging.getLogger(__name__)


def run_sweep(cfg: SweepConfig) -> SweepSummary:
    """Run a part of a sweep's cells, or all of them, and skip what is finished.

    The first part also attacks and evaluates the undefended model, in `before`.

    Returns:
        how much of the whole sweep is finished, by any process.

    Raises:
        InputError: an input is wrong, and nothing was written; or another process runs this part.
        Interrupted, Diverged: see `loop.run`.
    """
    people, resolved = _read_inputs(cfg)
    out = RunDirectory(Path(cfg.out), SweepSummary)
    out.open(cfg, resolved)
    part, num_parts = cfg.sweep.share()

    def refuse() -> None:
        raise InputError(
            f"`{out.path}`: another process is running part {part + 1}/{num_parts} of this sweep; "
            "wait until it ends, or give another `--part`."
        )

    with locked(out.path / f".part-{part + 1}-of-{num_parts}.lock", refuse):
        return _run_part(cfg, out.path, people, part, num_parts)


def _run_part(
    cfg: SweepConfig,
    out: Path,
    people: Sequence[Identity],
    part: int,
    num_parts: int,
) -> SweepSummary:
    """Run the cells of a part; see `run_sweep`."""
    every = cells(cfg.sweep)
    mine = every[part::num_parts]
    mesh = make_mesh(**vars(cfg.mesh), devices=jax.devices())
    as_it_is = attack_config(cfg, out, False).model
    undefended = Embedder(as_it_is, cfg.attack.batch, mesh)
    # Every cell needs the undefended model's embeddings; nothing needs a defended encoder's again.
    encoders = {undefended.digest("text"), undefended.digest("vision")}
    cache = ArrayCache(cfg.attack.cache_dir, encoders)
    del undefended
    if part == 0:
        with claimed(out / BEFORE):
            _attack_before(cfg, out / BEFORE, cache)
    started, done = time.monotonic(), 0
    todo = sum(not _cell_directory(out, cell).finished(cell) for cell in mine)
    for number, cell in enumerate(mine, 1):
        directory = _cell_directory(out, cell)
        if not directory.finished(cell):
            each = (time.monotonic() - started) / max(1, done)
            left = f", {_minutes(each * (todo - done))} left" if done else ""
            logger.info(f"cell {number} of {len(mine)}: {cell}{left}")
            with claimed(directory.path):
                _run_cell(cfg, cell, directory, people, cache)
            done += 1
        if not cfg.sweep.keep_models:
            for half in ("", "text", "image"):
                for heavy in ("checkpoints", "best", "model"):
                    shutil.rmtree(directory.path / DEFENSE / half / heavy, ignore_errors=True)
        write_results(out)
    finished = [_cell_directory(out, cell).finished(cell) for cell in every]
    return SweepSummary(cells=len(every), finished=sum(map(bool, finished)))


def _cell_directory(out: Path, cell: Cell) -> RunDirectory[CellSummary]:
    return RunDirectory(out / CELLS / cell.name, CellSummary)


def _read_inputs(cfg: SweepConfig) -> tuple[list[Identity], dict[str, str]]:
    """Read and check what all cells share: who may be removed, and digests of the inputs."""
    check_writable(Path(cfg.out))
    attack_config(cfg, Path(cfg.out), False)  # raises if settings are wrong
    evaluate_config(cfg, Path(cfg.out), False)
    class_templates(cfg.evaluate.templates)
    directory = read_model_directory(cfg.model.path)
    directory.check_outside(Path(cfg.out))
    check_companions(directory.path, directory.weight_files)
    if not (directory.cfg.text and directory.cfg.vision):
        raise InputError(f"`{directory.source}` has one encoder only; an attack needs both.")
    people, where, trained_on = _read_trained_on(cfg, directory)
    if odd := [name for person in people for name in person.names if "#" in name or "\t" in name]:
        raise InputError(f"{where}: {odd[0]!r} does not fit a names file; rename it.")
    if (most := max(cfg.sweep.num_identities)) > len(people):
        raise InputError(
            f"`sweep.num_identities` holds {most}, but {where} holds {len(people)} people; give "
            "smaller numbers, or more people."
        )
    for half in filter(None, halves(cfg)):
        check_all_come_up(most, stretched(half.train, most)[0])
        train = half.train
        if cfg.evaluate.zeroshot and isinstance(train, ImageTrainConfig) and train.level != POOLED:
            raise InputError(
                f"`evaluate.zeroshot` is of embeddings, and `train.level` (={train.level}) defends "
                "patches; leave `evaluate.zeroshot` out, or set `train.level` to pooled."
            )
    attacked = _attacked(cfg)
    choose_people(attacked, people, where)
    names = [person.name for person in attacked]
    a, e = cfg.attack, cfg.evaluate
    candidate_names(names, a.candidates, a.num_candidates, a.seed)
    check_threshold(a.threshold, read_templates(a.templates) if a.templates else TEMPLATES)
    if e.zeroshot:
        read_labelled(e.zeroshot, tfds_dir(cfg), "class", e.class_names, quiet)
    return people, {
        "model_sha256": directory.digest(),
        "people_sha256": digest("\t".join(person.names) for person in people),
        "attacked_sha256": describe_people(attacked),
        "trained_on_sha256": trained_on,
        "dtype": resolve_dtype(cfg.model.dtype),
    }


def _attacked(cfg: SweepConfig) -> list[Photos]:
    """List the people who are attacked, with all their photos."""
    how = {"note": quiet, "whole_photos": cfg.attack.whole_photos}
    return read_people(faces(cfg), tfds_dir(cfg), **how)


def _read_trained_on(
    cfg: SweepConfig, directory: ModelDirectory
) -> tuple[list[Identity], str, str]:
    """Read who may be removed, their source, and a digest of what else is trained on."""
    of_text, of_image = halves(cfg)
    found = [_read_text(cfg, *of_text, directory)] if of_text else []
    found += [_read_image(cfg, *of_image)] if of_image else []
    (people, where, trained_on), *others = found
    return people, where, digest([trained_on, *(x[2] for x in others)]) if others else trained_on


def _read_text(
    cfg: SweepConfig, d: TextDataConfig, train: TextTrainConfig, directory: ModelDirectory
) -> tuple[list[Identity], str, str]:
    """Read what the text defenses train on; see `_read_trained_on`."""
    people, where = read_identities(d.names), f"names file `{d.names}`"
    check_fits(people, directory.tokenizer(cfg.model.tokenizer), where)
    listed = [name for person in people for name in person.names]
    groups, held = kept_names(people, listed, d, train)
    read_captions(clean_captions(cfg), d.tfds_dir)
    kept = [name for group in (*groups, held) for name in group]
    return people, where, digest([*read_captions(d.captions, d.tfds_dir), *kept])


def _read_image(
    cfg: SweepConfig, d: ImageDataConfig, train: ImageTrainConfig
) -> tuple[list[Identity], str, str]:
    """Read what the image defenses train on; see `_read_trained_on`."""
    photographed, where = read_people(d.faces, d.tfds_dir, note=quiet), f"faces `{d.faces}`"
    people = [Identity(person.name) for person in photographed]
    if d.names:
        people, where = read_identities(d.names), f"names file `{d.names}`"
        choose_people(photographed, people, where)
    most = max(cfg.sweep.num_identities)
    if train.num_keep and not d.keep and most >= len(photographed):
        raise InputError(
            f"`sweep.num_identities` holds {most}, {where} {len(photographed)} people: nobody "
            "would be left to keep; give smaller numbers, or `data.keep`."
        )
    read_images(clean_images(cfg), d.tfds_dir, quiet)
    kept = read_faces(d.keep, d.tfds_dir, "keep", quiet) if d.keep else []
    images = describe_images(read_images(d.images, d.tfds_dir, quiet))
    return people, where, digest([images, describe_people(photographed), describe_people(kept)])


def _attack_before(cfg: SweepConfig, path: Path, cache: ArrayCache) -> None:
    """Attack and evaluate the undefended model, unless that is done."""
    directory = RunDirectory(path, UndefendedSummary)
    how = attack_config(cfg, path, False), evaluate_config(cfg, path, False)
    if directory.finished(how[0]):
        return
    logger.info("attacking and evaluating the undefended model")
    directory.open(how[0])
    attack = once(run_attack, how[0], AttackSummary, cache)
    evaluation = once(run_evaluate, how[1], EvaluationSummary, cache)
    directory.finish(
        UndefendedSummary(
            tpr=attack.tpr,
            fnr=attack.fnr,
            num_identities=attack.num_identities,
            tpr_majority=attack.tpr_majority,
            photos_right=attack.photos_right,
            mean_templates=attack.mean_templates,
            top1=evaluation.top1,
            top5=evaluation.top5,
        )
    )


def _run_cell(
    cfg: SweepConfig,
    cell: Cell,
    directory: RunDirectory[CellSummary],
    people: Sequence[Identity],
    cache: ArrayCache,
) -> None:
    """Run what is left to do in a cell."""
    started, path = time.monotonic(), directory.path
    directory.open(cell)
    removed = choose(people, cell)
    write_text(path / NAMES, "".join("\t".join(person.names) + "\n" for person in removed))
    settings = defense_config(cfg, cell, path)
    found: DefenseSummary | BothDefenseSummary
    if isinstance(settings, DefendBothConfig):
        found = once(defend_both, settings, BothDefenseSummary)
    elif isinstance(settings, DefendTextConfig):
        found = run(plan_text(settings), resume=True)
    else:
        found = run(plan_image(settings), resume=True)
    attack = once(run_attack, attack_config(cfg, path, True), AttackSummary, cache)
    evaluation = once(run_evaluate, evaluate_config(cfg, path, True), EvaluationSummary, cache)
    chosen = choose_people(_attacked(cfg), removed, str(path / NAMES))
    listed = {photos.name for _, photos in chosen}
    seconds = round(time.monotonic() - started, 1)
    directory.finish(_summary(cell, attack, evaluation, listed, found, seconds))


def _summary(
    cell: Cell,
    attack: AttackSummary,
    evaluation: EvaluationSummary,
    listed: Collection[str],
    found: DefenseSummary | BothDefenseSummary,
    seconds: float,
) -> CellSummary:
    """Sum up a cell."""
    gone = _measure(attack, [name for name in attack.per_identity if name in listed])
    rest = [name for name in attack.per_identity if name not in listed]
    others, (named, both_named) = _measure(attack, rest), _namesakes(rest, listed)
    namesakes, crossed = (_measure(attack, names) for names in (named, both_named))
    assert gone
    both = isinstance(found, BothDefenseSummary)
    tower = "both" if both else "text" if found.encoder == "text" else "image"
    return CellSummary(
        tower=tower,
        n=cell.num,
        seed=cell.seed,
        w_weight=cell.w_weight,
        removed_tpr=gone["tpr"],
        removed_fnr=1 - gone["tpr"],
        others_tpr=others and others["tpr"],
        top1=evaluation.top1,
        top5=evaluation.top5,
        sim_clean=evaluation.image_sim_clean if tower == "image" else evaluation.sim_clean,
        image_sim_clean=evaluation.image_sim_clean if both else None,
        seconds=seconds,
        num_others=len(rest),
        removed_tpr_majority=gone["tpr_majority"],
        removed_photos_right=gone["photos_right"],
        removed_mean_templates=gone["mean_templates"],
        others_tpr_majority=others and others["tpr_majority"],
        others_photos_right=others and others["photos_right"],
        others_mean_templates=others and others["mean_templates"],
        reached=found.reached,
        num_namesakes=len(named),
        namesakes_tpr=namesakes and namesakes["tpr"],
        namesakes_photos_right=namesakes and namesakes["photos_right"],
        num_crossed=len(both_named),
        crossed_tpr=crossed and crossed["tpr"],
        crossed_photos_right=crossed and crossed["photos_right"],
        steps=None if isinstance(found, BothDefenseSummary) else found.steps,
    )


def _namesakes(others: Sequence[str], removed: Collection[str]) -> tuple[list[str], list[str]]:
    """List the others who share words of their name with somebody removed.

    Returns:
        who shares the first or the last word; who shares both, be it with two people.
    """
    ends = [(words[0], words[-1]) for words in map(folded_words, removed) if len(words) > 1]
    first, last = ({pair[i] for pair in ends} for i in range(2))
    words_of = {name: folded_words(name) for name in others}
    shared = {
        name: (words[0] in first) + (words[-1] in last)
        for name, words in words_of.items()
        if len(words) > 1
    }
    return [name for name, num in shared.items() if num], [
        name for name, num in shared.items() if num == 2
    ]


def _measure(attack: AttackSummary, names: Sequence[str]) -> Measures | None:
    """Sum up what an attack found on some people; None for nobody."""
    if not names:
        return None
    assert attack.per_identity_photos_right
    correct = [attack.per_identity[name] for name in names]
    right = [attack.per_identity_photos_right[name] for name in names]
    return measure(correct, right, attack.threshold, attack.num_templates)


def _minutes(seconds: float) -> str:
    return f"about {seconds / 60:.0f} min" if seconds > 90 else f"about {seconds:.0f} s"
