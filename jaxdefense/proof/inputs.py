"""The inputs of `jaxdefense prove`, read and checked before anything is embedded."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxdefense.config import AttackConfig
from jaxdefense.convert.directory import read_model_directory, run_of_model
from jaxdefense.data.identities import Identity, read_identities
from jaxdefense.data.images import Photos
from jaxdefense.data.pairs import Pairs, describe_without, read_pairs, without
from jaxdefense.data.people import read_labelled
from jaxdefense.errors import InputError
from jaxdefense.files import read_json
from jaxdefense.hub import is_pinned
from jaxdefense.idia.candidates import Candidates
from jaxdefense.idia.inputs import read_inputs
from jaxdefense.proof.config import ProveConfig
from jaxdefense.proof.neighbours import read_labels
from jaxdefense.report.frame import flatten
from jaxdefense.results import (
    KEPT,
    NEVER_SHOWN,
    OTHERS,
    REMOVED,
    STRANGERS,
    Conditions,
    DefenseSummary,
    ImageDefenseSummary,
    TextDefenseSummary,
    halves_of,
    read_settings,
    read_summary,
    teacher_digest,
)
from jaxdefense.run_directory import TRAINED_ON
from jaxdefense.words import folded_words, some

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Told:
    """What is known of the defense, from settings or from the directory of its run.

    Fields:
        teacher: directory of the model before.
        teacher_sha256: its digest, "" if no run says it.
        identities: people on the list.
        kept: names of people the defense was told to keep; None if that is not known.
        unseen_by: run directory of an image defense, "" for none.
    """

    teacher: str
    teacher_sha256: str
    identities: list[Identity]
    kept: frozenset[str] | None
    unseen_by: str


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The inputs of a proof.

    Fields:
        told: what is known of the defense.
        people: people with the photos they are attacked with: members first, then strangers.
        num_members: number of members.
        groups: numbers of people by group, of `PROOF_GROUPS`; none is empty.
        absent: people on the list without photos that no defense saw.
        candidates, templates: names and prompts of the attack.
        conditions: what the attack depends on besides the model, digests of the photos among it.
        pairs: ordinary photos with captions that name nobody on the list; None without.
        classes: photos of objects, by class; empty without.
        labels: folded name -> label; empty without.
    """

    told: Told
    people: list[Photos]
    num_members: int
    groups: dict[str, list[int]]
    absent: list[str]
    candidates: Candidates
    templates: Sequence[str]
    conditions: Conditions
    pairs: Pairs | None
    classes: list[Photos]
    labels: Mapping[tuple[str, ...], str]

    def names(self, group: str) -> list[str]:
        """List the people of a group."""
        return [self.people[i].name for i in self.groups.get(group, [])]

    def staying(self) -> list[int]:
        """List the numbers of the members who are not on the list."""
        return [i for group in (OTHERS, KEPT, NEVER_SHOWN) for i in self.groups.get(group, [])]


def read_told(cfg: ProveConfig) -> Told:
    """Join what the settings say with what the directory of a run says.

    Raises:
        InputError: neither says what the teacher is, or whom the defense removed.
    """
    run = run_of_model(cfg.model.path)
    found = _of_run(run) if run else Told("", "", [], None, "")
    teacher = cfg.teacher or found.teacher
    identities = read_identities(cfg.names) if cfg.names else found.identities
    if cfg.names and run:
        _check_whole(cfg, identities, run)
    for name, value in (("teacher", teacher), ("names", identities)):
        if not value:
            raise InputError(
                f"`{name}` is missing: `model.path` (={cfg.model.path}) is not in the directory of "
                "a run, which would say it; give it."
            )
    if not (is_pinned(teacher) or Path(teacher).is_dir()):
        raise InputError(
            f"`teacher` (={teacher}) is no directory; give the model as it was before the defense, "
            "also where a run names it by a path from elsewhere."
        )
    kept = found.kept
    if cfg.keep_names:
        kept = frozenset(_all_names(cfg.keep_names))
    unseen_by = cfg.unseen_by or found.unseen_by
    return Told(teacher, found.teacher_sha256, identities, kept, unseen_by)


def _check_whole(cfg: ProveConfig, identities: Sequence[Identity], run: Path) -> None:
    """Raise InputError if the list lacks somebody whom the run removed: they do not stay."""
    given = {folded_words(name) for identity in identities for name in identity.names}
    removed = {x[0]: x for half in halves_of(run) for x in read_summary(half, DefenseSummary).names}
    if lacking := [x for x, names in removed.items() if not given & set(map(folded_words, names))]:
        raise InputError(
            f"`names` (={cfg.names}) lacks {some(lacking)}, whom the run of `model.path` "
            f"(={cfg.model.path}) removed; give the whole list, or leave `names` out."
        )


def _all_names(file: str) -> list[str]:
    """Read all names of people from a names file."""
    return [name for identity in read_identities(file) for name in identity.names]


def _of_run(run: Path) -> Told:
    """Read what a run says of itself."""
    names, sha256 = dict[str, list[str]](), teacher_digest(run)
    kept, image = set[str](), ""
    for half in halves_of(run):
        summary, of_half = read_summary(half, DefenseSummary), flatten(read_settings(half))
        for known in summary.listed:
            names.setdefault(known[0], known)
        file = str(of_half.get("data.keep_names", "") or "")
        if isinstance(summary, TextDefenseSummary) and file:
            if Path(file).is_file():
                kept |= set(_all_names(file))
            else:
                logger.warning(
                    f"`{half}` was told to keep the names in `{file}`, which is not here: give "
                    "`keep_names`, or these people count as never shown"
                )
        if isinstance(summary, ImageDefenseSummary) and (half / TRAINED_ON).exists():
            image = str(half)
            kept |= set(read_json(half / TRAINED_ON))
    gone = {folded_words(name) for known in names.values() for name in known}
    staying = frozenset(name for name in kept if folded_words(name) not in gone)
    identities = [Identity(known[0], tuple(known[1:])) for known in names.values()]
    teacher = str(flatten(read_settings(run)).get("model.path", ""))
    return Told(teacher, sha256, identities, staying or None, image)


def read(cfg: ProveConfig) -> Inputs:
    """Read and check all inputs except the weights; write nothing.

    Raises:
        InputError: an input is wrong.
    """
    told = read_told(cfg)
    attack = read_inputs(attack_config(cfg, told))
    for name, path in (("teacher", told.teacher), ("reference", cfg.reference)):
        if path:
            read_model_directory(path).check_outside(Path(cfg.out), name)
    members = attack.people[: attack.num_members]
    removed, absent = _on_list(told.identities, members)
    strangers, _ = _on_list(told.identities, attack.people[attack.num_members :])
    if strangers:
        both = [attack.people[attack.num_members + i].name for i in strangers]
        raise InputError(
            f"`strangers` (={cfg.strangers}) holds {some(both)}, who are on the list; give people "
            "whom no model here ever saw."
        )
    if not removed:
        raise InputError(
            f"faces `{cfg.faces}` has no photos of anybody on the list ({some(absent)}) that no "
            "defense saw; give photos in folders by their names."
        )
    groups = _groups(attack.people, attack.num_members, removed, told.kept)
    classes: list[Photos] = []
    if cfg.zeroshot and "others" in cfg.parts:
        classes = read_labelled(cfg.zeroshot, cfg.tfds_dir, "class", cfg.class_names, logger.info)
    return Inputs(
        told=told,
        people=attack.people,
        num_members=attack.num_members,
        groups=groups,
        absent=absent,
        candidates=attack.candidates,
        templates=attack.templates,
        conditions=attack.conditions,
        pairs=_pairs(cfg, told.identities),
        classes=classes,
        labels=read_labels(cfg.labels) if cfg.labels else {},
    )


def attack_config(cfg: ProveConfig, told: Told) -> AttackConfig:
    """Return the settings of the attack that the proof repeats."""
    return AttackConfig(
        out=cfg.out,
        model=cfg.model,
        faces=cfg.faces,
        strangers=cfg.strangers,
        unseen_by=told.unseen_by,
        candidates=cfg.candidates,
        templates=cfg.templates,
        num_candidates=cfg.num_candidates,
        num_photos=cfg.num_photos,
        threshold=cfg.threshold,
        tfds_dir=cfg.tfds_dir,
        max_corrupt=cfg.max_corrupt,
        batch=cfg.batch,
        candidate_block=cfg.candidate_block,
        cache_dir=cfg.cache_dir,
        seed=cfg.seed,
        mesh=cfg.mesh,
    )


def _on_list(
    identities: Sequence[Identity], members: Sequence[Photos]
) -> tuple[list[int], list[str]]:
    """Find who of the members is on the list; also list who of it has no photos."""
    number = {folded_words(person.name): i for i, person in enumerate(members)}
    found, absent = dict[int, None](), list[str]()
    for identity in identities:
        here = [number[key] for key in map(folded_words, identity.names) if key in number]
        found |= dict.fromkeys(here)
        if not here:
            absent.append(identity.name)
    return sorted(found), absent


def _groups(
    people: Sequence[Photos], num_members: int, removed: Sequence[int], kept: frozenset[str] | None
) -> dict[str, list[int]]:
    """Put each person into a group."""
    staying = [i for i in range(num_members) if i not in set(removed)]
    groups = {REMOVED: list(removed)}
    if kept is None:
        groups[OTHERS] = staying
    else:
        known = set(map(folded_words, kept))
        groups[KEPT] = [i for i in staying if folded_words(people[i].name) in known]
        groups[NEVER_SHOWN] = [i for i in staying if folded_words(people[i].name) not in known]
    groups[STRANGERS] = list(range(num_members, len(people)))
    return {group: who for group, who in groups.items() if who}


def _pairs(cfg: ProveConfig, identities: Sequence[Identity]) -> Pairs | None:
    """Read ordinary pairs, without captions that name somebody on the list."""
    if not cfg.pairs:
        return None
    every = read_pairs(cfg.pairs, logger.info)
    names = [name for identity in identities for name in identity.names]
    pairs = without(every, names)
    logger.info(describe_without(every, pairs))
    return pairs
