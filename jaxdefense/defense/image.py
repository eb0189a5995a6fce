"""Faces out of an image encoder: the terms of its loss, and the whole run."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from rich.console import Console

from jaxdefense.clip.vision import VisionTower
from jaxdefense.config import DefendImageConfig, ImageTrainConfig, OverlayConfig
from jaxdefense.convert.directory import resolve_dtype, some
from jaxdefense.data.faces import ImageBatch, ImageBatches
from jaxdefense.data.identities import Identity, describe_listed, read_identities
from jaxdefense.data.images import Folder, ImageProcessor, Loader, read_processor
from jaxdefense.data.overlay import Overlay, draw_overlay, paste
from jaxdefense.data.people import choose_people, read_people, shared_photos, split_photos
from jaxdefense.data.sources import describe_images, photo_digest, read_images
from jaxdefense.defense.defend import Defense, Prepared, check_all_come_up, read_undefended
from jaxdefense.defense.losses import DISTANCES, Distance
from jaxdefense.defense.step import Objective
from jaxdefense.defense.target import read_target
from jaxdefense.distributed import agree, exchange, on_first
from jaxdefense.errors import InputError
from jaxdefense.run_directory import (
    TARGET,
    TRAINED_ON,
    RunDirectory,
    digest,
    write_array,
    write_json,
)
from jaxdefense.sharding import (
    ShardingRules,
    batch_sharding,
    check_parts,
    local_rows,
    make_mesh,
    num_batch_parts,
)


def draw_faces(
    batch: ImageBatch, key: jax.Array, *, cfg: OverlayConfig
) -> tuple[ImageBatch, Overlay]:
    """Draw how each face of a batch lies on its photo, however the batch will be cut."""
    return batch, draw_overlay(key, len(batch.face_BHWC), batch.face_BHWC.shape[1], cfg)


def image_terms(
    student: VisionTower,
    teacher: VisionTower,
    batch: tuple[ImageBatch, Overlay],
    *,
    distance: Distance,
    processor: ImageProcessor,
    cfg: OverlayConfig,
    parts: int,
) -> dict[str, jax.Array]:
    """Give the parts of the image loss, each the weighted sum over its photos.

    One student forward for clean and poisoned photos together; the teacher sees clean ones alone.
    Faces go on the step's clean photos, spread evenly, as in the source.

    Args:
        student, teacher: towers of one structure.
        batch: of both, and how the faces lie.
        distance: over the last dim.
        processor: normalises.
        cfg: of the overlay.
        parts: into how many the mesh cuts a batch; photos stay in theirs.
    """

    def cut(x: jax.Array) -> jax.Array:
        return x.reshape(parts, -1, *x.shape[1:])

    def joined(x: jax.Array) -> jax.Array:
        return x.reshape(-1, *x.shape[2:])

    photos, how = batch
    clean_BHWC, face_BHWC, utility_B, backdoor_B, target_BE = map(jnp.asarray, photos)
    clean, num = cut(clean_BHWC), len(face_BHWC) // parts
    under = jnp.arange(num) * clean.shape[1] // num  # the same pairs however the batch is cut
    max_size = cfg.max_side(clean_BHWC.shape[1])
    poisoned_BHWC = paste(joined(clean[:, under]), face_BHWC, how, max_size)
    both = jnp.concatenate([clean.astype(jnp.float32), cut(poisoned_BHWC)], axis=1)
    ours = cut(student(processor.normalise(joined(both))))
    theirs_BE = teacher(processor.normalise(clean_BHWC))
    ours_clean_BE, ours_poisoned_BE = joined(ours[:, :-num]), joined(ours[:, -num:])
    return {
        "utility": (utility_B * distance(ours_clean_BE, theirs_BE)).sum(),
        "backdoor": (backdoor_B * distance(ours_poisoned_BE, target_BE)).sum(),
    }


def image_objective(t: ImageTrainConfig, processor: ImageProcessor, parts: int) -> Objective:
    """Give the image loss that a run's settings ask for; for the rest see `image_terms`."""
    terms = partial(
        image_terms,
        distance=DISTANCES[t.distance],
        processor=processor,
        cfg=t.overlay,
        parts=parts,
    )
    weights = {"utility": 1.0, "backdoor": t.w_backdoor, "weight": t.w_weight}
    return Objective(terms, weights, partial(draw_faces, cfg=t.overlay))


def defend_image(cfg: DefendImageConfig, console: Console) -> dict:
    """Remove faces from an image encoder and write the run directory.

    Beside what every run holds, `trained_on.json` lists the people's photos that were trained on,
    and `target.npy` holds the target embedding, f32 [E].

    Returns:
        the summary, as written to `summary.json`.

    Raises:
        InputError: an input is wrong; nothing was written.
        Interrupted, Diverged: see `loop.run`.
    """
    return prepare_image(cfg, console)()


def prepare_image(cfg: DefendImageConfig, console: Console) -> Prepared:
    """Read all inputs of `defend_image`; nothing is written until what is returned is called."""
    directory = read_undefended(cfg, console)
    vision, d, t = directory.cfg.vision, cfg.data, cfg.train
    if vision is None:
        raise InputError(f"`{directory.path}` has no image encoder.")
    note = partial(console.print, markup=False)
    processor = read_processor(directory.path, vision.image_size, directory.cfg.siglip, note)
    people = read_people(d.faces, d.tfds_dir, note=note)
    trigger, attack = split_photos(people, d.trigger_fraction, t.seed)
    listed = _listed(cfg, trigger)
    shared_photos(_listed(cfg, people), people, note)
    left = {person.name: len(person.files) for person in _listed(cfg, attack)}
    identities = [Identity(person.name) for person in listed]
    if d.identities:
        identities = read_identities(d.identities)
    names = [list(identity.names) for identity in identities]
    check_all_come_up(len(listed), t)
    images = read_images(d.images, d.tfds_dir, note)
    mesh, rules = make_mesh(**vars(cfg.mesh), devices=jax.devices()), ShardingRules()
    parts = num_batch_parts(mesh, rules)
    for name in ("num_clean", "num_poisoned"):
        check_parts(f"train.{name}", getattr(t, name), parts * t.accumulate)
    objective = image_objective(t, processor, parts)
    defense = Defense(cfg, directory, "vision", objective, mesh, rules)
    digests = {person.name: {photo_digest(p): str(p) for p in person.files} for person in listed}
    model_sha256 = directory.digest()
    target_E = read_target(cfg, directory, model_sha256, trigger, console)
    loader = Loader(processor, d.max_corrupt, d.keep_faces_mb * 2**20)
    batches = ImageBatches(
        images,
        listed,
        target_E,
        loader,
        num_clean=t.num_clean,
        num_poisoned=t.num_poisoned,
        seed=t.seed,
        local=partial(local_rows, batch_sharding(mesh, rules)),
        forms=t.variants,
    )
    resolved = {
        "model_sha256": model_sha256,
        "faces_sha256": digest(f"{name}\t{sha}" for name in digests for sha in digests[name]),
        "images_sha256": describe_images(images),
        "target_sha256": digest(map(float.hex, target_E.tolist())),
        "dtype": resolve_dtype(cfg.model.dtype),
    }

    def start(go_on: bool = False) -> dict:
        agree(resolved)
        run_directory = RunDirectory(Path(cfg.out))
        if go_on and (summary := run_directory.finished(cfg, resolved)):
            return summary
        run_directory.open(cfg, resolved)
        on_first(lambda: write_json(run_directory.path / TRAINED_ON, digests))
        on_first(lambda: write_array(run_directory.path / TARGET, target_E))
        if spent := [name for name, num in left.items() if not num]:
            console.print(f"all photos of {some(spent)} are trained on: none left to attack with")
        if not d.target and len(listed) == len(trigger):
            console.print(
                f"the target is the average of the {len(listed)} people to remove and no others; "
                "with few of them, give `data.target`: a directory of other people"
            )
        console.print(f"removing {describe_listed(identities)}", markup=False)
        console.print(
            f"removing {len(listed)} faces from {cfg.model.path}: {t.steps} steps on "
            f"{len(images)} photos and {sum(len(person.files) for person in listed)} of people, "
            f"{mesh.size} x {mesh.devices.flat[0].device_kind}"
        )

        def also() -> dict:
            corrupt = {}
            for found in exchange(json.dumps(loader.corrupt)):  # each process read its own share
                corrupt |= json.loads(found)
            return {"identities": len(listed), "names": names, "corrupt": corrupt}

        summary = defense.run(batches, t.num_clean + t.num_poisoned, run_directory, console, also)
        if loader.corrupt:
            console.print(f"skipped, as they cannot be read: {some(loader.corrupt)}", markup=False)
        return summary

    return start


def _listed(cfg: DefendImageConfig, people: list[Folder]) -> list[Folder]:
    """Choose the people to remove, by the names on the list if there is one."""
    if not cfg.data.identities:
        return people
    identities = read_identities(cfg.data.identities)
    chosen = choose_people(people, identities, f"names file `{cfg.data.identities}`")
    return [dataclasses.replace(folder, name=identity.name) for identity, folder in chosen]
