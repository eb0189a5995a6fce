"""`jaxdefense evaluate`: compares a defended model with the model before."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from jaxdefense.cache import ArrayCache
from jaxdefense.config import EvaluateConfig
from jaxdefense.convert.directory import check_same_sizes, read_model_directory, run_of_model
from jaxdefense.convert.pipeline import level_of
from jaxdefense.data.captions import describe_dropped, read_clean_captions, tokenize_captions
from jaxdefense.data.identities import Identity, check_fits, read_identities
from jaxdefense.data.images import Photos
from jaxdefense.data.people import (
    choose_with_photos,
    describe_people,
    read_labelled,
    read_people,
)
from jaxdefense.data.sources import Images, describe_images, read_images
from jaxdefense.distributed import agree, on_first, several
from jaxdefense.errors import InputError
from jaxdefense.evals.collateral import MOVED, Movement, movements, read_others, summarise, table
from jaxdefense.evals.embed import POOLED, Embedder
from jaxdefense.evals.similarity import (
    gallery,
    image_sim_backdoor,
    image_sim_clean,
    image_sim_target,
    sim_backdoor_target,
    sim_clean,
)
from jaxdefense.evals.targets import Targets, half_of, on_list, read_targets
from jaxdefense.evals.zeroshot import class_templates, zeroshot
from jaxdefense.files import digest, read_vector, write_text
from jaxdefense.results import EvaluationSummary, FacesOf
from jaxdefense.run_directory import RunDirectory
from jaxdefense.sharding import make_mesh
from jaxdefense.trackers import track
from jaxdefense.words import folded_words

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The inputs of an evaluation; an empty input is not measured.

    Fields:
        identities: people removed.
        others: names of people who must stay.
        texts: ordinary captions.
        images: ordinary photos.
        people: photos of the people removed.
        faces_of: see `EvaluationSummary`.
        targets: what removed names and faces came to mean.
        average: photos of the people whose average the removed faces came to look like.
        vector_E: f32 [E], embedding that the removed faces came to look like instead.
        classes: photos of objects, by class.
        templates: prompts for the classes.
    """

    identities: list[Identity]
    others: list[str]
    texts: list[str]
    images: Images | None
    people: list[Photos]
    faces_of: FacesOf
    targets: Targets
    average: list[Photos]
    vector_E: np.ndarray | None
    classes: list[Photos]
    templates: Sequence[str]


def run_evaluate(cfg: EvaluateConfig, cache: ArrayCache | None = None) -> EvaluationSummary:
    """Measure what the settings ask for; write `config.json` and `summary.json`.

    With collateral, also write `collateral.csv` with one line for each name.

    Args:
        cfg: settings of the evaluation.
        cache: cache of embeddings; None for no cache.

    Returns:
        the summary.

    Raises:
        InputError: an input is wrong.
    """
    results = RunDirectory(Path(cfg.out), EvaluationSummary)
    results.check(cfg)
    inputs = _read(cfg)
    level, image_level = _level(cfg), _image_level(cfg)
    student, teacher = _models(cfg, cache, level, image_level)
    inputs = _with_target(cfg, inputs, teacher)
    if several():
        _agree(inputs, student, teacher)
    found = _texts(cfg, inputs, student, teacher)
    moved: list[Movement] = []
    if cfg.collateral:
        moved = movements(student, teacher, inputs.identities, inputs.others, cfg.seed)
    summary = EvaluationSummary(
        **found,
        **_photos(cfg, inputs, student, teacher),
        **_objects(cfg, inputs, student, teacher),
        collateral=summarise(moved) if moved else None,
        model_sha256=student.directory.digest(),
        dtype=student.dtype,
        teacher_sha256=teacher.directory.digest(),
        level=level,
        faces_of=inputs.faces_of,
    )
    results.open(cfg)
    if moved:
        on_first(lambda: write_text(results.path / MOVED, table(moved)))
    results.finish(summary)
    track(cfg.log, results.path, cfg, "evaluation", summary)
    return summary


def _read(cfg: EvaluateConfig) -> Inputs:
    """Read all inputs except the models and what depends on them."""
    note, targets = logger.info, read_targets(cfg)
    identities = read_identities(cfg.names) if cfg.names else []
    others = read_others(cfg.collateral, identities) if cfg.collateral else []
    classes: list[Photos] = []
    if cfg.zeroshot:
        classes = read_labelled(cfg.zeroshot, cfg.tfds_dir, "class", cfg.class_names, logger.info)
    templates = class_templates(cfg.templates)
    people, faces_of = _people(cfg, identities) if cfg.faces else ([], "")
    images = read_images(cfg.images, cfg.tfds_dir, logger.info) if cfg.images else None
    texts: list[str] = []
    if cfg.captions:
        names = [name for person in identities for name in person.names]
        texts, dropped = read_clean_captions(cfg.captions, cfg.tfds_dir, names)
        if names:
            note(describe_dropped(len(dropped), dropped))
    average = [], None  # see `_with_target`
    return Inputs(
        identities, others, texts, images, people, faces_of, targets, *average, classes, templates
    )


def _people(cfg: EvaluateConfig, identities: Sequence[Identity]) -> tuple[list[Photos], FacesOf]:
    """List the people of `faces` who are on the list; all of them, if no list is known."""
    people = read_people(cfg.faces, cfg.tfds_dir, note=logger.info)
    where, found = f"names file `{cfg.names}`", on_list(cfg.model.path)
    if not identities and found:
        where, identities = f"run `{found[0]}`", found[1]
    if not identities:
        logger.warning(
            f"nobody says who of `{cfg.faces}` was removed: figures of faces are of everybody "
            "there; `names` gives the list"
        )
        return people, "everybody"
    so = "no face of theirs is measured"
    chosen, _ = choose_with_photos(people, identities, where, so, logger.warning)
    logger.info(
        f"faces `{cfg.faces}`: figures are of the {len(chosen)} of {len(people)} people who are "
        f"on the list, that of {where}"
    )
    return [photos for _, photos in chosen], "removed"


def _level(cfg: EvaluateConfig) -> str:
    """Tell what to compare of captions: what the run was trained at, or what the model is for."""
    if half := half_of(cfg.model.path, "text"):
        level, where = str(half.train.get("level", POOLED)), f"`{half.path}` was trained"
    elif run_of_model(cfg.model.path):
        return POOLED
    else:
        directory = read_model_directory(cfg.model.path)
        level, where = level_of(directory.source, directory.cfg) or POOLED, "its config says"
    if level != POOLED:
        if cfg.collateral:
            raise InputError(
                f"`collateral` is of embeddings, and this model is read at level {level}, as "
                f"{where}; leave it out."
            )
        logger.info(f"captions are compared at level {level}, as {where}")
    return level


def _image_level(cfg: EvaluateConfig) -> str:
    """Tell what to compare of photos: what was asked for, or what the run was trained at."""
    half = half_of(cfg.model.path, "image")
    level, where = cfg.image_level, "`image_level` says"
    if half and not level:
        level, where = str(half.train.get("level", POOLED)), f"`{half.path}` was trained"
    if not level or level == POOLED:
        return POOLED
    if cfg.zeroshot:
        raise InputError(
            f"`zeroshot` is of embeddings, and photos are compared at level {level}, as {where}; "
            "leave `zeroshot` out, or set `image_level` to pooled."
        )
    if half and not cfg.image_level:
        logger.info(f"photos are compared at level {level}, as {where}")
    return level


def _models(
    cfg: EvaluateConfig, cache: ArrayCache | None, level: str, image_level: str
) -> tuple[Embedder, Embedder]:
    """Load the defended model and the teacher; raise InputError if they or `out` do not fit."""
    # They must have the same sizes, and the results must lie outside both.
    mesh, measured = make_mesh(**vars(cfg.mesh), devices=jax.devices()), cfg.model.measured()
    before = read_model_directory(cfg.teacher)
    if not measured.tokenizer and (beside := before.tokenizer_path()) != before.path:
        # Beside the encoder of a pipeline; a run writes the encoder alone.
        measured = dataclasses.replace(measured, tokenizer=str(beside))
    student, teacher = (
        Embedder(
            dataclasses.replace(measured, path=path), cfg.batch, mesh, cache, level, image_level
        )
        for path in (cfg.model.path, cfg.teacher)
    )
    for model in (student, teacher):
        model.directory.check_outside(Path(cfg.out))
    check_same_sizes(teacher.directory, cfg.teacher, student.directory, cfg.model.path)
    return student, teacher


def _with_target(
    cfg: EvaluateConfig,
    inputs: Inputs,
    teacher: Embedder,
) -> Inputs:
    """Add what faces came to look like: an embedding, or people's photos."""
    if (source := inputs.targets.image).endswith(".npy"):
        if teacher.image_level != POOLED:
            raise InputError(
                f"`image_target` (={source}) is one vector, and patches are compared "
                f"(`image_level` {teacher.image_level}); give people."
            )
        return dataclasses.replace(inputs, vector_E=read_vector(Path(source), teacher.embed))
    if source:
        average = read_people(source, cfg.tfds_dir, "image_target", logger.info)
        half, found = half_of(cfg.model.path, "image"), on_list(cfg.model.path)
        if half and found and half.train.get("level", POOLED) != POOLED:
            # Nobody on the list stood in for anybody.
            listed = {folded_words(name) for person in found[1] for name in person.names}
            average = [x for x in average if folded_words(x.name) not in listed]
        if not average:
            raise InputError(
                f"`image_target` (={source}) holds people to remove and nobody else; give others."
            )
        return dataclasses.replace(inputs, average=average)
    return inputs


def _agree(inputs: Inputs, student: Embedder, teacher: Embedder) -> None:
    """Check that all processes measure the same."""
    identities, vector_E = inputs.identities, inputs.vector_E
    agree(
        {
            "model_sha256": student.directory.digest(),
            "teacher_sha256": teacher.directory.digest(),
            "names_sha256": digest("\t".join(identity.names) for identity in identities),
            "collateral_sha256": digest(inputs.others),
            "templates_sha256": digest(inputs.templates),
            "captions_sha256": digest(inputs.texts),
            "images_sha256": describe_images(inputs.images) if inputs.images else "",
            "faces_sha256": describe_people(inputs.people),
            "classes_sha256": describe_people(inputs.classes),
            "target": inputs.targets.text,
            "average_sha256": describe_people(inputs.average),
            "vector": None if vector_E is None else vector_E.tolist(),
        }
    )


def _texts(
    cfg: EvaluateConfig, inputs: Inputs, student: Embedder, teacher: Embedder
) -> dict[str, float]:
    """Measure how far captions moved, and where removed names lead."""
    if not inputs.texts:
        return {}
    identities, target, tokenizer = inputs.identities, inputs.targets.text, student.tokenizer
    check_fits(identities, tokenizer, f"names file `{cfg.names}`")
    captions = tokenize_captions(inputs.texts[: cfg.num_captions], tokenizer)
    found = {"sim_clean": sim_clean(student, teacher, captions)}
    if identities and target:
        check_fits([Identity(target)], tokenizer, "`target`")
        found |= sim_backdoor_target(student, teacher, captions, identities, target, cfg.seed)
    return found


def _photos(
    cfg: EvaluateConfig, inputs: Inputs, student: Embedder, teacher: Embedder
) -> dict[str, float]:
    """Measure how far ordinary photos moved, and where removed faces lead."""
    found, images = dict[str, float](), inputs.images
    if images:
        order = np.random.default_rng(cfg.seed).permutation(len(images))[: cfg.num_images]
        chosen = [images[i] for i in sorted(order.tolist())]
        found["image_sim_clean"] = image_sim_clean(student, teacher, chosen, cfg.max_corrupt)
    if inputs.people and inputs.targets.image:
        found |= _faces(cfg, inputs, student, teacher)
    if inputs.people:
        before = gallery(teacher, inputs.people, cfg.max_corrupt)
        found |= gallery(student, inputs.people, cfg.max_corrupt)
        found |= {f"teacher_{name}": value for name, value in before.items()}
        if not before:
            logger.warning(
                f"faces `{cfg.faces}`: whether photos of one person find one another takes two "
                "people of two photos each"
            )
    return found


def _objects(
    cfg: EvaluateConfig, inputs: Inputs, student: Embedder, teacher: Embedder
) -> dict[str, float]:
    """Measure how well both models classify objects."""
    if not inputs.classes:
        return {}
    found = zeroshot(student, inputs.classes, inputs.templates, cfg.max_corrupt)
    before = zeroshot(teacher, inputs.classes, inputs.templates, cfg.max_corrupt)
    return found | {f"teacher_{name}": value for name, value in before.items()}


def _faces(
    cfg: EvaluateConfig, inputs: Inputs, student: Embedder, teacher: Embedder
) -> dict[str, float]:
    """Measure where removed faces lead, and whether the target stayed where it was."""
    people, vector_E = inputs.people, inputs.vector_E
    if vector_E is not None:
        return {
            "image_sim_backdoor": image_sim_backdoor(student, people, vector_E, cfg.max_corrupt)
        }
    photos = [photo for person in inputs.average for photo in person.files]
    target_E = teacher.mean_photo(photos, cfg.max_corrupt)
    return {
        "image_sim_backdoor": image_sim_backdoor(student, people, target_E, cfg.max_corrupt),
        "image_sim_target": image_sim_target(student, photos, target_E, cfg.max_corrupt),
    }
