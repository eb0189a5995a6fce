"""The inputs of `jaxdefense attack`, read and checked before anything is embedded."""

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from jaxdefense.config import AttackConfig
from jaxdefense.convert.directory import ModelDirectory, read_model_directory, resolve_dtype
from jaxdefense.data import facescrub
from jaxdefense.data.identities import read_identities
from jaxdefense.data.images import Photos
from jaxdefense.data.people import choose_with_photos, read_people
from jaxdefense.data.sources import photo_digest
from jaxdefense.data.templates import read_templates
from jaxdefense.distributed import on_first
from jaxdefense.errors import InputError
from jaxdefense.evals.embed import processor_of
from jaxdefense.evals.outcome import Seen
from jaxdefense.files import digest, read_json, read_lines
from jaxdefense.idia.attack import check_threshold
from jaxdefense.idia.candidates import Candidates, candidate_names, read_sexes
from jaxdefense.idia.conditions import (
    difference,
    draw,
    named_in,
    photos_digest,
    random_targets,
    read_excluded,
)
from jaxdefense.idia.prompts import TEMPLATES
from jaxdefense.idia.variants import Aliases, read_aliases
from jaxdefense.results import (
    SUMMARY,
    AttackSummary,
    BothDefenseSummary,
    Conditions,
    ImageDefenseSummary,
    kind_of,
    read_summary,
)
from jaxdefense.run_directory import TRAINED_ON
from jaxdefense.words import folded_words, some

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The inputs of an attack.

    Fields:
        people: people with the photos they are attacked with: members first, then strangers.
        num_members: number of members.
        candidates, templates: names and prompts.
        aliases: further names of people, for the variant that tries them.
        conditions: what another attack must have in common with this one.
        before: what the attack before the defense found, by name; empty without such an attack.
        listed: the attacked people who were to be removed.
        untested: names of those who were to be removed and are not attacked, without photos.
        spent: likewise, of those of whom the run had all photos.
    """

    people: list[Photos]
    num_members: int
    candidates: Candidates
    templates: Sequence[str]
    aliases: Aliases
    conditions: Conditions
    before: Mapping[str, Seen]
    listed: frozenset[str]
    untested: list[str]
    spent: list[str]


def read_inputs(cfg: AttackConfig) -> Inputs:
    """Read and check all inputs of an attack except the weights; write nothing.

    Raises:
        InputError: an input is wrong.
    """
    note = logger.info
    members = read_people(cfg.faces, cfg.tfds_dir, note=note, whole_photos=cfg.whole_photos)
    strangers: list[Photos] = []
    if cfg.strangers:
        strangers = read_people(cfg.strangers, cfg.tfds_dir, "strangers", note)
    # Before photos are skipped: those whose photos were all trained on have some.
    aliases = read_aliases(cfg.aliases, members) if cfg.aliases else {}
    listed, untested = frozenset[str](), list[str]()
    if cfg.before:
        listed, untested = _read_listed(cfg.names, members)
    spent = list[str]()
    if cfg.unseen_by:
        members, spent = _unseen(members, Path(cfg.unseen_by), note)
    spent = [name for name in spent if name in listed]
    listed -= {*spent}
    if cfg.before and not listed:
        raise InputError(
            f"names file `{cfg.names}`: `{cfg.unseen_by}` was trained on every photo of everyone "
            f"listed, {some(spent)}; add other photos of them."
        )
    people = draw(members + strangers, cfg.num_photos, cfg.seed)
    names = [person.name for person in people]
    candidates = candidate_names(
        names,
        cfg.candidates,
        cfg.num_candidates,
        cfg.seed,
        read_sexes(cfg.sexes) if cfg.sexes else None,
        _excluded(cfg, names),
    )
    templates = read_templates(cfg.templates) if cfg.templates else TEMPLATES
    check_threshold(cfg.threshold, templates)
    directory = read_model_directory(cfg.model.path)
    directory.check_outside(Path(cfg.out))
    conditions = _conditions(cfg, directory, people, candidates, templates)
    before = _read_before(cfg, members, conditions) if cfg.before else {}
    return Inputs(
        people,
        len(members),
        candidates,
        templates,
        aliases,
        conditions,
        before,
        listed,
        untested,
        spent,
    )


def _read_listed(names: str, members: Sequence[Photos]) -> tuple[frozenset[str], list[str]]:
    """Find who is on the list: those attacked, by their folders, and those without photos.

    Raises:
        InputError: nobody on it is attacked, or somebody has two folders.
    """
    identities, where = read_identities(names), f"names file `{names}`"
    so = "they are not tested"
    chosen, absent = choose_with_photos(members, identities, where, so, logger.warning)
    listed = frozenset(photos.name for _, photos in chosen)
    return listed, [identity.name for identity in absent]


def _conditions(
    cfg: AttackConfig,
    directory: ModelDirectory,
    people: Sequence[Photos],
    candidates: Candidates,
    templates: Sequence[str],
) -> Conditions:
    """List what another attack must have in common with this one."""
    return {
        "threshold": cfg.threshold,
        "num_candidates": len(candidates),
        "num_templates": len(templates),
        "seed": cfg.seed,
        "num_photos": cfg.num_photos,
        "dtype": resolve_dtype(cfg.model.measured().dtype),
        "preprocessing": str(processor_of(directory)),
        "photos_sha256": on_first(lambda: {x.name: photos_digest(x) for x in people}),
        "sexes_sha256": hashlib.sha256(candidates.group_M.tobytes()).hexdigest(),
        "templates_sha256": digest(templates),
        "candidates_sha256": digest(candidates.block(0, len(candidates))),
    }


def _excluded(cfg: AttackConfig, people: Sequence[str]) -> list[str]:
    """List the names that must not be random candidates; log them, and which come up anyway."""
    told = {cfg.model.path: random_targets(cfg.model.path)}
    if cfg.exclude:
        told[cfg.exclude] = read_excluded(cfg.exclude)
    excluded = list(dict.fromkeys(name for names in told.values() for name in names))
    for source, names in told.items():
        if names and not cfg.candidates:
            logger.info(f"{len(names)} names of `{source}` do not come up as random candidates")
    if cfg.candidates and (both := named_in(excluded, read_lines(cfg.candidates, "candidates"))):
        logger.info(
            f"candidates file `{cfg.candidates}` holds {some(both)}, which removed people's "
            "names came to mean: the attack may answer this for their photos"
        )
    if own := named_in(excluded, people):
        logger.info(f"{some(own)}: attacked, though a removed person's name came to mean this name")
    return excluded


def _read_before(
    cfg: AttackConfig, members: Sequence[Photos], conditions: Conditions
) -> dict[str, Seen]:
    """Read what an attack like this one found on each person before the defense."""
    found, path = read_summary(Path(cfg.before), AttackSummary), Path(cfg.before) / SUMMARY
    if differ := difference(found.conditions or {}, conditions):
        raise InputError(f"`before`: `{path}`: {differ}.")
    correct, right = found.per_identity, found.per_identity_photos_right or {}
    if missing := [person.name for person in members if person.name not in correct]:
        raise InputError(f"`before`: `{path}`: there {some(missing)} counted as a stranger.")
    return {name: Seen(correct[name], right.get(name)) for name in correct}


def _unseen(
    people: list[Photos], run: Path, note: Callable[[str], object]
) -> tuple[list[Photos], list[str]]:
    """Skip photos that a run trained on; note people who have no other photo.

    Content hashes tell them. Those of FaceScrub's whole photos differ from those of the faces cut
    from them, which the files' names tell instead.

    Returns:
        people with the photos that it did not train on; and names of those without any.
    """
    if (kind := kind_of(run)) is BothDefenseSummary:
        run, kind = run / "image", ImageDefenseSummary
    if kind is not ImageDefenseSummary or not (run / TRAINED_ON).exists():
        raise InputError(f"`unseen_by` (={run}) is not a run of an image defense: no {TRAINED_ON}.")
    trained = read_json(run / TRAINED_ON)
    seen = {sha for photos in trained.values() for sha in photos}
    cut = facescrub.cut_from(Path(file) for photos in trained.values() for file in photos.values())
    _check_paired(people, trained, cut, run)
    if num := sum(facescrub.whole_photo(photo) in cut for x in people for photo in x.files):
        note(f"{num} whole photos skipped, as `{run}` was trained on faces cut from them")
    unseen, spent = [], []
    for person in people:
        files = tuple(
            photo
            for photo in person.files
            if facescrub.whole_photo(photo) not in cut and photo_digest(photo) not in seen
        )
        if files:
            unseen.append(dataclasses.replace(person, files=files))
        else:
            spent.append(person.name)
    if not unseen:
        raise InputError(f"`{run}` was trained on every photo of everyone; add others.")
    if spent:
        note(f"not attacked, as `{run}` was trained on every photo of them: {some(spent)}")
    return unseen, spent


def _check_paired(
    people: Sequence[Photos], trained: Iterable[str], cut: set[facescrub.Picture], run: Path
) -> None:
    """Raise InputError if faces of a person were trained on, and no name leads to their photo.

    The same if no name leads to a photo of anybody: folders may be called otherwise.
    """
    by_person = [{x for x in map(facescrub.whole_photo, y.files) if x} for y in people]
    folders = {folder for folder, _ in cut}
    names = set(map(folded_words, trained))
    for person, whole in zip(people, by_person, strict=True):
        theirs = folded_words(person.name) in names or {x for x, _ in whole} & folders
        if whole and theirs and not whole & cut:
            raise _unpaired(repr(person.name), run)
    if any(by_person) and not any(whole & cut for whole in by_person):
        raise _unpaired("anybody", run)


def _unpaired(whose: str, run: Path) -> InputError:
    return InputError(
        f"no whole photo of {whose} has the name of a face that `{run}` trained on, so which of "
        "them it saw cannot be told; name photos and faces as FaceScrub's downloader does, "
        "images/NAME/NAME_12.jpeg and faces/NAME/NAME_12_34.jpeg."
    )
