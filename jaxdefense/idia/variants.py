"""Attacks that look for a way round a defense: names, prompts and photos in another form.

Each variant is the plain attack on changed inputs. A form of names changes all candidates, so that
the task stays the same. If two candidates become one text, this text names both of them.
Parity: tests/test_variants.py, equal to the plain attack on inputs changed by hand.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxdefense.config import ALIAS, NAME_FORMS, PHOTO_FORMS, AttackConfig
from jaxdefense.data.identities import read_identities
from jaxdefense.data.images import Photos
from jaxdefense.data.people import choose_with_photos
from jaxdefense.data.variants import name_form
from jaxdefense.errors import InputError
from jaxdefense.evals.embed import Embedder
from jaxdefense.idia.attack import AttackResult, Evidence, attack_with, check_threshold
from jaxdefense.idia.candidates import Candidates
from jaxdefense.idia.prompts import LANGUAGES, in_sentence

logger = logging.getLogger(__name__)

Aliases = Mapping[str, tuple[str, ...]]  # by the name of the person's folder


class Game(NamedTuple):
    """Candidates in another form.

    Fields:
        candidates: each text once.
        who: numbers of the people who have such a form.
        own_I: int [I], the candidate that is each one's name.
        same_M: int [M], the one candidate that all texts of a person count as.
    """

    candidates: Candidates
    who: list[int]
    own_I: np.ndarray
    same_M: np.ndarray


def read_aliases(file: str, people: Sequence[Photos]) -> Aliases:
    """Read the other names of people from a names file; note those who have no photos.

    Raises:
        InputError: the file cannot be read, or gives nobody with photos another name.
    """
    identities, where = read_identities(file), f"aliases file `{file}`"
    so = "their other names are not tried"
    chosen, _ = choose_with_photos(people, identities, where, so, logger.info)
    found = {
        photos.name: tuple(name for name in identity.names if name != photos.name)
        for identity, photos in chosen
    }
    if not any(found.values()):
        raise InputError(
            f"{where} gives nobody with photos another name; put them on the line, after tabs."
        )
    return found


def change_names(
    candidates: Candidates, num_people: int, forms: Callable[[int, str], Sequence[str]], what: str
) -> Game:
    """Put all candidates in another form, and drop those without such a form.

    Args:
        candidates: all candidates, the people's names first.
        num_people: number of people.
        forms: returns the texts of a candidate, given its number and name.
        what: name of the form, for an error.

    Raises:
        InputError: no two candidates differ in this form.
    """
    index: dict[tuple[str, int], int] = {}  # text and group -> number
    same, own = list[int](), dict[int, int]()
    groups = candidates.group_M.tolist()
    for i, name in enumerate(candidates.block(0, len(candidates))):
        first = None
        for text in forms(i, name):
            key = text, groups[i]
            if key not in index:
                index[key] = len(index)
                same.append(len(same) if first is None else first)
            first = same[index[key]] if first is None else first
        if first is not None and i < num_people:
            own[i] = first
    if len(set(same)) < 2:
        raise InputError(f"variant `{what}`: no two candidates differ in it; give more.")
    changed = Candidates([text for text, _ in index], [])
    changed.group_M[:] = [group for _, group in index]
    return Game(changed, list(own), np.array(list(own.values()), int), np.array(same))


def attack_names(
    model: Embedder,
    evidence: Evidence,
    candidates: Candidates,
    variant: str,
    aliases: Aliases,
    templates: Sequence[str],
    cfg: AttackConfig,
) -> AttackResult | None:
    """Attack with names or prompts in another form.

    Args:
        model: a model with both encoders.
        evidence: the people's photos, as they are.
        candidates: the candidates of the plain attack.
        variant: any variant except those of photos.
        aliases: people's other names.
        templates: the prompts of the plain attack.
        cfg: all other settings.

    Returns:
        the result on the people who have such a form; None if nobody does.

    Raises:
        InputError: see `change_names` and `attack`.
    """
    assert variant not in PHOTO_FORMS
    names = evidence.names
    if variant == ALIAS or variant in NAME_FORMS:

        def forms(i: int, name: str) -> Sequence[str]:
            if variant == ALIAS:
                return (aliases.get(name) if i < len(names) else ()) or (name,)
            form = name_form(name, variant, cfg.seed)
            return () if form is None else (form,)

        game = change_names(candidates, len(names), forms, variant)
        who, own_I = game.who, game.own_I
        if variant == ALIAS:
            kept = [j for j, i in enumerate(who) if aliases.get(names[i])]
            who, own_I = [who[j] for j in kept], own_I[kept]
        if not who:
            return None
        evidence, candidates, same_M = evidence.of(who), game.candidates, game.same_M
    else:
        templates = LANGUAGES if variant == "languages" else in_sentence(templates)
        own_I = same_M = None
    check_threshold(cfg.threshold, templates)
    return attack_with(
        model,
        evidence,
        candidates,
        threshold=cfg.threshold,
        templates=templates,
        block=cfg.candidate_block,
        own_I=own_I,
        same_M=same_M,
    )
