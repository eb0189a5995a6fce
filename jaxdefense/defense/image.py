"""Remove faces from an image encoder: the terms of the loss, and the whole run."""

import dataclasses
import functools
import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdefense.clip.config import ResNetConfig, VisionConfig
from jaxdefense.clip.vision import VisionTower
from jaxdefense.config import DefendImageConfig, ImageTrainConfig, OverlayConfig
from jaxdefense.convert.directory import ModelDirectory, resolve_dtype
from jaxdefense.data.faces import Bounds, ImageBatch, ImageBatches
from jaxdefense.data.identities import describe_listed
from jaxdefense.data.images import ImageProcessor, Loader, Photos
from jaxdefense.data.overlay import Overlay, draw_overlay, paste
from jaxdefense.data.sampling import evened
from jaxdefense.data.sources import Images, describe_images, photo_digest, read_images
from jaxdefense.defense.defend import run
from jaxdefense.defense.earlier import (
    Earlier,
    both_trained_on,
    check_kind,
    read_earlier,
    to_follow,
)
from jaxdefense.defense.kept import PHOTO_ROUNDS, keep_photos, num_to_keep
from jaxdefense.defense.losses import DISTANCES, Distance, beyond
from jaxdefense.defense.own import NONE, OwnLoss
from jaxdefense.defense.people import (
    People,
    describe_held_out,
    describe_kept,
    gather_people,
    read_stand_ins,
    trained_on,
)
from jaxdefense.defense.plan import (
    Encoder,
    Plan,
    Validation,
    check_low_rank,
    describe_stretch,
    lay_out,
    read_undefended,
    resolved_length,
)
from jaxdefense.defense.recognise import Faces, Recognition
from jaxdefense.defense.step import Objective
from jaxdefense.defense.target import read_target
from jaxdefense.defense.validate import Draw, Verdict
from jaxdefense.distributed import agree
from jaxdefense.errors import InputError
from jaxdefense.evals.embed import Embedder, processor_of
from jaxdefense.files import digest
from jaxdefense.log import Progress
from jaxdefense.results import ImageDefenseSummary
from jaxdefense.run_directory import HELD_OUT, TARGET, TRAINED_ON
from jaxdefense.sharding import (
    ShardingRules,
    batch_sharding,
    check_parts,
    local_rows,
    make_mesh,
    num_batch_parts,
)
from jaxdefense.words import some

logger = logging.getLogger(__name__)

_BATCH = 64  # photos, or rows of text, that are embedded at a time for a validation
_ADVICE = (
    "what may help: more photos of them, more `train.steps`, a higher `train.w_backdoor` or "
    "`optimizer.lr`, a larger `train.overlay.whole`"
)


def draw_faces(batch: ImageBatch, key: jax.Array, *, cfg: OverlayConfig) -> tuple:
    """Draw how each face of a batch lies on its photo.

    The draw does not depend on how the mesh will cut the batch.

    Returns:
        the batch; the overlay of the listed faces; and the overlay of the faces that must stay, if
        the batch has any.
    """
    how = draw_overlay(key, len(batch.face_BHWC), batch.face_BHWC.shape[1], cfg)
    if batch.keep_BHWC is None:
        return batch, how
    key = jax.random.fold_in(key, 1)
    return batch, how, draw_overlay(key, len(batch.keep_BHWC), batch.keep_BHWC.shape[1], cfg)


def image_terms(
    student: VisionTower,
    teacher: VisionTower,
    batch: tuple,
    *,
    distance: Distance,
    processor: ImageProcessor,
    cfg: OverlayConfig,
    parts: int,
    level: str = "pooled",
) -> dict[str, jax.Array]:
    """Give the terms of the image loss, each the weighted sum over its photos.

    The student embeds all photos in one forward pass. The teacher embeds only the photos that must
    stay: the clean ones, and those with the face of a person who is not listed. It embeds no clean
    ones if the batch has the embeddings. Faces are pasted on the step's clean photos, spread evenly
    over them, as in the source. Faces that must stay go on the same photos.

    The average person's embedding is no target for patches: it would wipe out the photo around the
    face. There the teacher gives the target, of the same photo with another person's face in the
    same place. As that person is drawn anew in each step, the student learns their average.

    Args:
        student, teacher: towers of one structure.
        batch: photos, and how the faces lie on them; see `draw_faces`.
        distance: over the last dim.
        processor: normalises the photos.
        cfg: the settings of the overlay.
        parts: number of parts that the mesh cuts a batch into; a photo stays in its part.
        level: what is compared: the `pooled` embeddings; or the `penultimate` states of all
            patches, whose distances are averaged over the photo.
    """
    given, *overlays = batch
    photos = {name: jnp.asarray(x) for name, x in given._asdict().items() if x is not None}
    shown = _shown(photos, overlays, cfg, parts)
    embed = partial(_embedded, processor=processor, level=level)
    of_student = embed(student, {name: x for name, x in shown.items() if name != "target"})
    kept = {"clean": photos["teacher_clean_BE"]} if "teacher_clean_BE" in photos else {}
    unread = {"face", *kept}
    of_teacher = kept | embed(teacher, {name: x for name, x in shown.items() if name not in unread})

    def apart(x: jax.Array, y: jax.Array) -> jax.Array:
        return distance(x, y).reshape(len(x), -1).mean(-1)

    face = of_student["face"]
    if "limit_BP" in photos:
        near_BP = beyond(face[:, None], photos["target_BE"], photos["limit_BP"])
        apart_B = near_BP.mean(-1)
    else:
        target = of_teacher["target"] if "target" in shown else photos["target_BE"]
        apart_B = apart(face, target)
    terms = {
        "utility": (photos["utility_B"] * apart(of_student["clean"], of_teacher["clean"])).sum(),
        "backdoor": (photos["backdoor_B"] * apart_B).sum(),
    }
    if "keep" in shown:
        terms["keep"] = (photos["keep_B"] * apart(of_student["keep"], of_teacher["keep"])).sum()
    return terms


def _cut(x: jax.Array, parts: int) -> jax.Array:
    """Cut the samples of a batch into parts, as the mesh does."""
    return x.reshape(parts, -1, *x.shape[1:])


def _joined(x: jax.Array) -> jax.Array:
    """Undo `_cut`."""
    return x.reshape(-1, *x.shape[2:])


def _shown(
    photos: Mapping[str, jax.Array], overlays: Sequence[Overlay], cfg: OverlayConfig, parts: int
) -> dict[str, jax.Array]:
    """Give photos, cut: clean, and with faces by kind: `face`, `keep`, and `target`."""
    clean = _cut(photos["clean_BHWC"], parts)
    shown = {"clean": clean.astype(jnp.float32)}
    kinds = ("face", "keep")  # "keep" only if some must stay
    how_of: dict[str, Overlay] = dict(zip(kinds, overlays, strict=False))
    how_of["target"] = how_of["face"]  # whoever stands in for a face lies where it does
    for kind, how in how_of.items():
        if (face_BHWC := photos.get(f"{kind}_BHWC")) is None:
            continue
        num = len(face_BHWC) // parts
        under = jnp.arange(num) * clean.shape[1] // num  # the pairs do not depend on the cut
        max_size = cfg.max_side(clean.shape[2])
        shown[kind] = _cut(paste(_joined(clean[:, under]), face_BHWC, how, max_size), parts)
    return shown


def _embedded(
    tower: VisionTower, shown: Mapping[str, jax.Array], *, processor: ImageProcessor, level: str
) -> dict[str, jax.Array]:
    """Embed several kinds of cut photos in one forward pass; join each kind again."""
    if not shown:
        return {}
    at = [0, *np.cumsum([x.shape[1] for x in shown.values()]).tolist()]
    read = tower if level == "pooled" else tower.penultimate
    whole = read(processor.normalise(_joined(jnp.concatenate([*shown.values()], axis=1))))
    cut = _cut(whole, len(next(iter(shown.values()))))
    parts = zip(shown, itertools.pairwise(at), strict=True)
    return {kind: _joined(cut[:, start:stop]) for kind, (start, stop) in parts}


def image_objective(
    t: ImageTrainConfig, processor: ImageProcessor, parts: int, distance: Distance | None = None
) -> Objective:
    """Give the image loss that a run's settings ask for, if need be with another distance.

    See `image_terms` for the arguments.
    """
    terms = partial(
        image_terms,
        distance=distance or DISTANCES[t.distance],
        processor=processor,
        cfg=t.overlay,
        parts=parts,
        level=t.level,
    )
    weights = {
        "utility": 1.0,
        "backdoor": t.w_backdoor,
        "keep": t.w_keep,
        "weight": t.w_weight,
    }
    return Objective(terms, weights, partial(draw_faces, cfg=t.overlay))


def defend_image(cfg: DefendImageConfig, own: OwnLoss = NONE) -> ImageDefenseSummary:
    """Remove faces from an image encoder and write the run directory.

    The run directory gets two more files than other runs. `trained_on.json` lists the photos of
    people that were trained on, including people who must stay. With `train.backdoor` target,
    `target.npy` holds the target embedding, f32 [E].

    Args:
        cfg: the settings of the run.
        own: loss in place of the one that the settings name.

    Returns:
        the summary, as written to `summary.json`.

    Raises:
        InputError: an input is wrong; nothing was written.
        Interrupted, Diverged: see `loop.run`.
    """
    check_kind(cfg.earlier.path, cfg.earlier.setting, ImageDefenseSummary)
    return run(plan_image(cfg, own))


def plan_image(cfg: DefendImageConfig, own: OwnLoss = NONE) -> Plan[ImageDefenseSummary]:
    """Read and check all inputs of an image defense, and write nothing.

    Args:
        cfg: the settings of the run.
        own: see `defend_image`.

    Returns:
        what `defend.run` carries out.

    Raises:
        InputError: an input is wrong, or the processes have different inputs.
    """
    directory, d, asked = read_undefended(cfg), cfg.data, cfg
    vision = directory.cfg.vision
    if vision is None:
        raise InputError(f"`{directory.source}` has no image encoder.")
    _check_level(cfg, vision)
    processor = processor_of(directory, logger.info)
    digest_of = functools.cache(photo_digest)  # the people who stay are hashed twice
    earlier = read_earlier(cfg.earlier, directory, "vision", cfg.model.path)
    check_low_rank(cfg, directory, "vision", earlier)
    people = gather_people(cfg, earlier, digest_of, logger.info)
    t = people.train
    cfg = dataclasses.replace(cfg, train=t)
    images = read_images(d.images, d.tfds_dir, logger.info)
    encoder = _encoder(cfg, directory, processor, earlier, own)
    photos = trained_on(people, digest_of)
    model_sha256 = directory.digest()
    resolved = {
        "model_sha256": model_sha256,
        "faces_sha256": digest(f"{name}\t{sha}" for name in photos for sha in photos[name]),
        "names_sha256": digest("\t".join(x) for x in (*people.names, *people.without_photos)),
        "kept_sha256": describe_kept(people, digest_of),
        "images_sha256": describe_images(images),
        "dtype": resolve_dtype(cfg.model.dtype),
        **resolved_length(t),
        **own.resolved(),
    }
    held_out = describe_held_out(people.faces, digest_of) if t.validate.every else {}
    if earlier:
        resolved["earlier_id"] = earlier.ledger.last.id
        resolved["held_out_sha256"] = digest([json.dumps(held_out, sort_keys=True)])
        if earlier.how == "replay" or not earlier.teacher_is_original:
            # Its photos led to the weights that training starts from.
            photos = both_trained_on(earlier.trained_on(), photos)
    follows = to_follow(earlier, directory, cfg.ledger_names)
    agree(resolved)  # from here on all processes compute together
    loader = Loader(processor, d.max_corrupt, d.keep_faces_mb * 2**20)
    target = _target(cfg, directory, model_sha256, people)
    recognition, validation = _recognition(cfg, people, images, loader, encoder.mesh)

    def batches_now() -> ImageBatches:
        towards = recognition.bounds if recognition and target is None else target
        assert towards is not None
        return _batches(t, images, people.faces, towards, loader, encoder)

    def mining(batches: ImageBatches) -> Draw:
        def draw(verdict: Verdict) -> bool:
            batches.mine(verdict.mined)
            return False  # nobody to remove is drawn more often

        return draw

    batches = batches_now()
    if own != NONE:
        own.check(encoder.step_cfg, encoder.teacher, batches[0])
    keeps = bool(num_to_keep([(len(images), t.num_clean)], PHOTO_ROUNDS, t, vision, own))
    files: dict[str, Any] = {TRAINED_ON: photos, HELD_OUT: held_out}
    if isinstance(target, np.ndarray):
        files[TARGET] = target
        resolved["target_sha256"] = digest(map(float.hex, target.tolist()))
    elif target is not None:
        photos_of = ((x.name, photo) for x in target for photo in x.files)
        resolved["target_sha256"] = digest(f"{name}\t{digest_of(x)}" for name, x in photos_of)
    plan = Plan(
        asked,
        t,
        ImageDefenseSummary,
        encoder,
        batches,
        samples=t.num_clean + t.num_poisoned + t.num_keep,
        resolved=resolved,
        lines=[
            *_lines(cfg, people, len(images), encoder.mesh),
            *describe_stretch(asked, cfg, len(people.listed), people.stretch),
            *(earlier.lines(len(people.listed)) if earlier else []),
            *own.lines(t, earlier.half if earlier else None),
        ],
        summary=partial(
            ImageDefenseSummary,
            identities=len(people.listed),
            names=people.names,
            without_photos=people.without_photos,
        ),
        advice=_ADVICE,
        validation=validation,
        draw=mining(batches),
        files=files,
        loader=loader,
        follows=follows,
        earlier=earlier,
        keep=partial(keep_photos, batches, processor) if keeps else None,
    )

    def beside(model: Path) -> Plan[ImageDefenseSummary]:
        if recognition is None or t.level != "pooled":
            return plan
        shipped = dataclasses.replace(cfg.model, path=str(model))
        defended = Embedder(shipped.measured(), _BATCH, encoder.mesh)
        recognition.read_again(defended)
        batches = batches_now()
        text = {"text_sha256": defended.directory.digest()}
        return dataclasses.replace(
            plan,
            batches=batches,
            draw=mining(batches),
            resolved=resolved | text,
            beside=None,
            keep=partial(keep_photos, batches, processor) if keeps else None,
        )

    return dataclasses.replace(plan, beside=beside)


def _check_level(cfg: DefendImageConfig, vision: VisionConfig | ResNetConfig) -> None:
    """Raise InputError if the encoder has no patches; warn if it has no embedding to compare."""
    if isinstance(vision, ResNetConfig):
        if cfg.train.level != "pooled":
            raise InputError(
                f"`train.level` (={cfg.train.level}) is of patches, and `{cfg.model.path}` is a "
                "residual network, without any; set it to pooled."
            )
    elif not vision.embed and cfg.train.level == "pooled":
        logger.warning(
            f"`{cfg.model.path}` has no projection: models with such an encoder mostly read its "
            "patches, as LLaVA does, and the defense compares the class token; for patches "
            "`--set train.level=penultimate --set train.backdoor=target`"
        )


def _encoder(
    cfg: DefendImageConfig,
    directory: ModelDirectory,
    processor: ImageProcessor,
    earlier: Earlier | None,
    own: OwnLoss,
) -> Encoder:
    """Check that the mesh cuts a batch evenly, and lay out the encoder's step on the mesh."""
    t = cfg.train
    mesh, rules = make_mesh(**vars(cfg.mesh), devices=jax.devices()), ShardingRules()
    parts = num_batch_parts(mesh, rules)
    for name in ("num_clean", "num_poisoned", "num_keep"):
        if num := getattr(t, name):
            check_parts(f"train.{name}", num, parts * t.accumulate)
    objective = own.made_from(image_objective(t, processor, parts, own.distance))
    return lay_out(cfg, directory, "vision", objective, mesh, rules, earlier)


def _target(
    cfg: DefendImageConfig,
    directory: ModelDirectory,
    model_sha256: str,
    people: People,
) -> np.ndarray | list[Photos] | None:
    """Give what removed faces move to, if the settings ask for it.

    Returns:
        the embedding, f32 [E]; or, where patches are compared, people who stand in for them.
    """
    if cfg.train.level != "pooled":
        return read_stand_ins(cfg, people)
    if cfg.train.backdoor == "target":
        return read_target(cfg, directory, model_sha256, people.everyone)
    if cfg.data.target:
        logger.warning("`data.target` has no effect: `train.backdoor` is bounded, without a target")
    return None


def _recognition(
    cfg: DefendImageConfig,
    people: People,
    images: Images,
    loader: Loader,
    mesh: Mesh,
) -> tuple[Recognition | None, Validation | None]:
    """Embed whom faces lead to, and make the validation, where the settings ask for them."""
    t = cfg.train
    if t.backdoor != "bounded" and not t.validate.every:
        return None, None
    teacher = Embedder(cfg.model.measured(), _BATCH, mesh, image_level=t.level)
    with Progress("embedding the people to remove and those who stay"):
        recognition = Recognition(teacher, people.faces, people.identities, images, loader, t)
    validation = None
    if t.validate.every:
        validation = Validation(teacher, recognition, recognition.moved_most)
    return recognition, validation


def _batches(
    t: ImageTrainConfig,
    images: Images,
    faces: Faces,
    target: np.ndarray | Bounds | list[Photos],
    loader: Loader,
    encoder: Encoder,
) -> ImageBatches:
    """Set up the batches that a run's settings ask for."""
    return ImageBatches(
        images,
        faces.listed,
        target,
        loader,
        num_clean=t.num_clean,
        num_poisoned=t.num_poisoned,
        seed=t.seed,
        keep=evened(faces.keep) if t.num_keep else [],
        num_keep=t.num_keep,
        num_mined=round(t.mined * t.num_keep),
        local=partial(local_rows, batch_sharding(encoder.mesh, encoder.rules)),
        forms=t.variants,
    )


def _lines(cfg: DefendImageConfig, people: People, num_images: int, mesh: Mesh) -> list[str]:
    """Say whose faces are removed, whose are kept, and what may go wrong."""
    d, t, faces, lines = cfg.data, cfg.train, people.faces, list[str]()
    num = len(people.listed)
    if people.spent:
        lines.append(f"all photos of {some(people.spent)} are trained on: none is left to attack")
    pooled = t.level == "pooled"
    if t.backdoor == "target" and pooled and not d.target and num == len(people.everyone):
        lines.append(
            f"the target is the average of the {num} people to remove and nobody else; "
            "if they are few, give `data.target`: a directory of other people"
        )
    lines += [
        f"removing {describe_listed(people.identities)}",
        f"removing {num} faces from {cfg.model.path}: {t.steps} steps on {num_images} photos and "
        f"{sum(len(person.files) for person in people.listed)} of people, "
        f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
    ]
    if t.num_keep and faces.keep:
        lines.append(
            f"keeping {sum(map(len, faces.keep))} other people, and "
            f"{len(faces.held_keep)} more to validate on"
        )
    else:
        lines.append("keeping nobody: other people's faces will move too")
    if t.mined and t.num_keep and not t.validate.every:
        lines.append("`train.mined` has no effect without validations, which find who moved")
    if t.validate.every and not people.kept:
        lines.append("ordinary photos stand in for strangers: there are no faces of other people")
    pairs = zip(faces.listed, faces.held_listed, strict=True) if t.validate.every else ()
    if same := [x.name for x, held in pairs if set(x.files) & set(held.files)]:
        lines.append(
            f"{some(same)}: too few photos to hold any out, so validation uses those trained on; "
            "add others"
        )
    return lines
