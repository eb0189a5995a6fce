"""`jaxdefense evaluate`: a defended model against the one before."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdefense.cache import ArrayCache
from jaxdefense.config import EvaluateConfig
from jaxdefense.data.captions import describe_dropped, read_clean_captions, tokenize_captions
from jaxdefense.data.identities import Identity, check_fits, read_identities
from jaxdefense.data.images import Folder
from jaxdefense.data.people import describe_people, read_labelled, read_people
from jaxdefense.data.sources import describe_images, read_images
from jaxdefense.data.templates import read_templates
from jaxdefense.distributed import agree, on_first, several
from jaxdefense.errors import InputError
from jaxdefense.evals.collateral import MOVED, Movement, movements, read_others, summarise, table
from jaxdefense.evals.embed import Embedder
from jaxdefense.evals.similarity import (
    image_sim_backdoor,
    image_sim_clean,
    image_sim_target,
    sim_backdoor_target,
    sim_clean,
)
from jaxdefense.evals.zeroshot import TEMPLATES, zeroshot
from jaxdefense.files import digest, read_vector, write_text
from jaxdefense.paths import check_outside
from jaxdefense.run_directory import RunDirectory
from jaxdefense.sharding import make_mesh

logger = logging.getLogger(__name__)


def run_evaluate(cfg: EvaluateConfig, cache: ArrayCache | None = None) -> dict:
    """Measure what the settings ask for; write `config.json` and `summary.json`.

    With collateral also `collateral.csv`, a line a name.

    Args:
        cfg: see there.
        cache: of embeddings, if they are kept.

    Returns:
        the summary: those that apply of sim_clean, sim_target, sim_backdoor (text encoder),
        image_sim_clean, image_sim_target, image_sim_backdoor (image encoder), top1, top5 and
        those of the teacher, collateral; digests of both models, and the dtype they were
        computed in.

    Raises:
        InputError: an input is wrong.
    """
    results = RunDirectory(Path(cfg.out))
    results.check(cfg)
    identities = read_identities(cfg.names) if cfg.names else []
    others = read_others(cfg.collateral, identities) if cfg.collateral else []
    classes: list[Folder] = []
    if cfg.zeroshot:
        classes = read_labelled(cfg.zeroshot, cfg.tfds_dir, "class", cfg.class_names, logger.info)
    templates = read_templates(cfg.templates) if cfg.templates else TEMPLATES
    people = read_people(cfg.faces, cfg.tfds_dir, note=logger.info) if cfg.faces else []
    images = read_images(cfg.images, cfg.tfds_dir, logger.info) if cfg.images else None
    texts: list[str] = []
    if cfg.captions:
        names = [name for person in identities for name in person.names]
        texts, dropped = read_clean_captions(cfg.captions, cfg.tfds_dir, names)
        if names:
            logger.info(describe_dropped(len(dropped), dropped))
    mesh, measured = make_mesh(**vars(cfg.mesh), devices=jax.devices()), cfg.model.measured()
    student, teacher = (
        Embedder(dataclasses.replace(measured, path=path), cfg.batch, mesh, cache)
        for path in (cfg.model.path, cfg.teacher)
    )
    for model in (student, teacher):
        check_outside(Path(cfg.out), model.directory.path)
    if student.directory.cfg != teacher.directory.cfg:
        raise InputError(
            f"`teacher` (={cfg.teacher}) has other sizes than `model.path` (={cfg.model.path}); "
            "give the model it was made from."
        )
    vector_E, average = None, []
    if cfg.image_target.endswith(".npy"):
        vector_E = read_vector(Path(cfg.image_target), teacher.embed)
    elif cfg.image_target:
        average = read_people(cfg.image_target, cfg.tfds_dir, "image_target", logger.info)
    if several():
        agree(
            {
                "model_sha256": student.directory.digest(),
                "teacher_sha256": teacher.directory.digest(),
                "names_sha256": digest("\t".join(identity.names) for identity in identities),
                "collateral_sha256": digest(others),
                "templates_sha256": digest(templates),
                "captions_sha256": digest(texts),
                "images_sha256": describe_images(images) if images else "",
                "faces_sha256": describe_people(people),
                "classes_sha256": describe_people(classes),
                "average_sha256": describe_people(average),
                "vector": None if vector_E is None else vector_E.tolist(),
            }
        )
    summary: dict[str, Any] = {}
    moved: list[Movement] = []
    if texts:
        tokenizer = student.tokenizer
        check_fits(identities, tokenizer, f"names file `{cfg.names}`")
        check_fits([Identity(cfg.target)], tokenizer, "`target`")
        captions = tokenize_captions(texts[: cfg.num_captions], tokenizer)
        summary["sim_clean"] = sim_clean(student, teacher, captions)
        if identities:
            summary |= sim_backdoor_target(
                student, teacher, captions, identities, cfg.target, cfg.seed
            )
    if cfg.collateral:
        moved = movements(student, teacher, identities, others, cfg.seed)
        summary["collateral"] = summarise(moved)
    if images:
        order = np.random.default_rng(cfg.seed).permutation(len(images))[: cfg.num_images]
        chosen = [images[i] for i in sorted(order.tolist())]
        summary["image_sim_clean"] = image_sim_clean(student, teacher, chosen, cfg.max_corrupt)
    if people:
        summary |= _faces(cfg, student, teacher, people, average, vector_E)
    if classes:
        summary |= zeroshot(student, classes, templates, cfg.max_corrupt)
        before = zeroshot(teacher, classes, templates, cfg.max_corrupt)
        summary |= {f"teacher_{name}": value for name, value in before.items()}
    summary["model_sha256"] = student.directory.digest()
    summary["dtype"] = student.dtype
    summary["teacher_sha256"] = teacher.directory.digest()
    results.open(cfg)
    if moved:
        on_first(lambda: write_text(results.path / MOVED, table(moved)))
    results.finish(summary)
    return summary


def _faces(
    cfg: EvaluateConfig,
    student: Embedder,
    teacher: Embedder,
    people: list[Folder],
    average: list[Folder],
    vector_E: np.ndarray | None,
) -> dict[str, float]:
    """Measure where removed faces lead, and whether the target stayed where it was."""
    if vector_E is not None:
        return {
            "image_sim_backdoor": image_sim_backdoor(student, people, vector_E, cfg.max_corrupt)
        }
    photos = [photo for person in average for photo in person.files]
    target_E = teacher.mean_photo(photos, cfg.max_corrupt)
    return {
        "image_sim_backdoor": image_sim_backdoor(student, people, target_E, cfg.max_corrupt),
        "image_sim_target": image_sim_target(student, photos, target_E, cfg.max_corrupt),
    }
