"""Faces out of an image encoder: the terms of its loss, and the whole run."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from jaxdefense.clip.vision import VisionTower
from jaxdefense.config import DefendImageConfig, ImageTrainConfig, OverlayConfig
from jaxdefense.convert.directory import resolve_dtype
from jaxdefense.data.faces import Bounds, ImageBatch, ImageBatches
from jaxdefense.data.identities import Identity, describe_listed, read_identities
from jaxdefense.data.images import Folder, ImageProcessor, Loader, read_processor
from jaxdefense.data.overlay import Overlay, draw_overlay, paste
from jaxdefense.data.people import (
    choose_people,
    read_faces,
    read_people,
    shared_photos,
    split_photos,
)
from jaxdefense.data.sampling import evened
from jaxdefense.data.sources import Photo, describe_images, photo_digest, read_images
from jaxdefense.defense.defend import Defense, Prepared, check_all_come_up, read_undefended
from jaxdefense.defense.losses import DISTANCES, Distance, beyond
from jaxdefense.defense.recognise import Recognition, hold_out
from jaxdefense.defense.step import Objective
from jaxdefense.defense.target import read_target
from jaxdefense.distributed import agree, exchange, on_first
from jaxdefense.errors import InputError
from jaxdefense.evals.embed import Embedder
from jaxdefense.files import digest, write_array, write_json
from jaxdefense.run_directory import TARGET, TRAINED_ON, RunDirectory
from jaxdefense.sharding import (
    ShardingRules,
    batch_sharding,
    check_parts,
    local_rows,
    make_mesh,
    num_batch_parts,
)
from jaxdefense.words import folded_words, some

_BATCH = 64  # photos, or rows of text, that a validation embeds at a time
_NAMELESS, _DRAWN = "(people without a name)", 11  # stream of random numbers
_ADVICE = (
    "what may help: more photos of them, more `train.steps`, a higher `train.w_backdoor` or "
    "`optimizer.lr`, a larger `train.overlay.whole`"
)


def draw_faces(batch: ImageBatch, key: jax.Array, *, cfg: OverlayConfig) -> tuple:
    """Draw how each face of a batch lies on its photo, however the batch will be cut.

    Returns:
        the batch; the overlay of listed faces; and, if there are any, of those that must stay.
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
) -> dict[str, jax.Array]:
    """Give the parts of the image loss, each the weighted sum over its photos.

    One student forward for all photos together; the teacher sees those that must stay: the clean
    ones, and those with the face of a person who is not listed. Faces go on the step's clean
    photos, spread evenly, as in the source; those that must stay go on the same photos.

    Args:
        student, teacher: towers of one structure.
        batch: of both, and how the faces lie; see `draw_faces`.
        distance: over the last dim.
        processor: normalises.
        cfg: of the overlay.
        parts: into how many the mesh cuts a batch; photos stay in theirs.
    """

    def cut(x: jax.Array) -> jax.Array:
        return x.reshape(parts, -1, *x.shape[1:])

    def joined(x: jax.Array) -> jax.Array:
        return x.reshape(-1, *x.shape[2:])

    given, *overlays = batch
    photos = {name: jnp.asarray(x) for name, x in given._asdict().items() if x is not None}
    clean = cut(photos["clean_BHWC"])

    def pasted(face_BHWC: jax.Array, how: Overlay) -> jax.Array:
        num = len(face_BHWC) // parts
        under = jnp.arange(num) * clean.shape[1] // num  # the same pairs however the batch is cut
        max_size = cfg.max_side(clean.shape[2])
        return cut(paste(joined(clean[:, under]), face_BHWC, how, max_size))

    faces = [pasted(photos["face_BHWC"], overlays[0])]
    if "keep_BHWC" in photos:
        faces.append(pasted(photos["keep_BHWC"], overlays[1]))
    sizes = [clean.shape[1], *(part.shape[1] for part in faces)]
    shown = jnp.concatenate([clean.astype(jnp.float32), *faces], axis=1)
    ours = cut(student(processor.normalise(joined(shown))))
    at = [0, *np.cumsum(sizes).tolist()]
    ours = [joined(ours[:, start:stop]) for start, stop in itertools.pairwise(at)]
    stays = clean.astype(jnp.float32)
    if len(faces) > 1:
        stays = jnp.concatenate([stays, faces[1]], axis=1)
    theirs = cut(teacher(processor.normalise(joined(stays))))
    theirs_clean_BE = joined(theirs[:, : sizes[0]])
    if "limit_BP" not in photos:
        apart_B = distance(ours[1], photos["target_BE"])
    else:
        apart_B = beyond(ours[1][:, None], photos["target_BE"], photos["limit_BP"]).mean(-1)
    terms = {
        "utility": (photos["utility_B"] * distance(ours[0], theirs_clean_BE)).sum(),
        "backdoor": (photos["backdoor_B"] * apart_B).sum(),
    }
    if len(faces) > 1:
        theirs_keep_BE = joined(theirs[:, sizes[0] :])
        terms["keep"] = (photos["keep_B"] * distance(ours[2], theirs_keep_BE)).sum()
    return terms


def image_objective(t: ImageTrainConfig, processor: ImageProcessor, parts: int) -> Objective:
    """Give the image loss that a run's settings ask for; for the rest see `image_terms`."""
    terms = partial(
        image_terms,
        distance=DISTANCES[t.distance],
        processor=processor,
        cfg=t.overlay,
        parts=parts,
    )
    weights = {
        "utility": 1.0,
        "backdoor": t.w_backdoor,
        "keep": t.w_keep,
        "weight": t.w_weight,
    }
    return Objective(terms, weights, partial(draw_faces, cfg=t.overlay))


def defend_image(cfg: DefendImageConfig, console: Console) -> dict:
    """Remove faces from an image encoder and write the run directory.

    Beside what every run holds, `trained_on.json` lists the people's photos that were trained on,
    of those who stay too; with `train.backdoor` target, `target.npy` holds the target embedding,
    f32 [E].

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
    digest_of = functools.cache(photo_digest)  # of those who stay it is asked twice

    def digests_of(person: Folder) -> dict[str, str]:
        return {digest_of(photo): str(photo) for photo in person.files}

    digests = {person.name: digests_of(person) for person in listed}
    groups = _kept(cfg, trigger, identities, digests, note, digest_of)
    faces = hold_out(listed, groups, t)
    images = read_images(d.images, d.tfds_dir, note)
    mesh, rules = make_mesh(**vars(cfg.mesh), devices=jax.devices()), ShardingRules()
    parts = num_batch_parts(mesh, rules)
    for name in ("num_clean", "num_poisoned", "num_keep"):
        if num := getattr(t, name):
            check_parts(f"train.{name}", num, parts * t.accumulate)
    objective = image_objective(t, processor, parts)
    defense = Defense(cfg, directory, "vision", objective, mesh, rules, _ADVICE)
    for person in itertools.chain(*groups):
        digests.setdefault(person.name or _NAMELESS, {}).update(digests_of(person))
    model_sha256 = directory.digest()
    resolved = {
        "model_sha256": model_sha256,
        "faces_sha256": digest(f"{name}\t{sha}" for name in digests for sha in digests[name]),
        "images_sha256": describe_images(images),
        "dtype": resolve_dtype(cfg.model.dtype),
    }
    agree(resolved)  # what follows runs on all processes together
    loader = Loader(processor, d.max_corrupt, d.keep_faces_mb * 2**20)
    target, validation = None, None
    if t.backdoor == "target":
        target = read_target(cfg, directory, model_sha256, trigger, console)
    elif d.target:
        note("`data.target` has no effect: `train.backdoor` is bounded, which needs none")
    if t.backdoor == "bounded" or t.validate.every:
        teacher = Embedder(cfg.model.measured(), _BATCH, console, mesh)
        recognition = Recognition(teacher, faces, identities, images, loader, t)
        if t.validate.every:
            validation = teacher, recognition
        if target is None:
            target = recognition.bounds
    assert target is not None
    keep = evened(faces.keep) if t.num_keep else []
    batches = ImageBatches(
        images,
        faces.listed,
        target,
        loader,
        num_clean=t.num_clean,
        num_poisoned=t.num_poisoned,
        seed=t.seed,
        keep=keep,
        num_keep=t.num_keep,
        num_mined=round(t.mined * t.num_keep),
        local=partial(local_rows, batch_sharding(mesh, rules)),
        forms=t.variants,
    )
    target_E = None if isinstance(target, Bounds) else target
    if target_E is not None:
        resolved["target_sha256"] = digest(map(float.hex, target_E.tolist()))

    def start(go_on: bool = False) -> dict:
        agree(resolved)
        run_directory = RunDirectory(Path(cfg.out))
        if go_on and (summary := run_directory.finished(cfg, resolved)):
            return summary
        run_directory.open(cfg, resolved)
        on_first(lambda: write_json(run_directory.path / TRAINED_ON, digests))
        if target_E is not None:
            on_first(partial(write_array, run_directory.path / TARGET, target_E))
        if spent := [name for name, num in left.items() if not num]:
            console.print(f"all photos of {some(spent)} are trained on: none left to attack with")
        if t.backdoor == "target" and not d.target and len(listed) == len(trigger):
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
        if keep:
            console.print(
                f"keeping {sum(map(len, faces.keep))} people around them, and "
                f"{len(faces.held_keep)} more to validate on"
            )
        else:
            console.print("keeping nobody: other people's faces will move too")
        if validation and not groups:
            console.print("ordinary photos say where strangers are: there is nobody else's face")
        pairs = zip(faces.listed, faces.held_listed, strict=True) if t.validate.every else ()
        if same := [x.name for x, held in pairs if set(x.files) & set(held.files)]:
            console.print(
                f"{some(same)}: too few photos to hold any out, so validated on those trained on; "
                "add others",
                markup=False,
            )

        def also() -> dict:
            corrupt = {}
            for found in exchange(json.dumps(loader.corrupt)):  # each process read its own share
                corrupt |= json.loads(found)
            return {"identities": len(listed), "names": names, "corrupt": corrupt}

        samples = t.num_clean + t.num_poisoned + t.num_keep
        summary = defense.run(
            batches, samples, run_directory, console, also, validation, batches.mine
        )
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


def _kept(
    cfg: DefendImageConfig,
    trigger: list[Folder],
    identities: Sequence[Identity],
    digests: Mapping[str, Mapping[str, str]],
    note: Callable[[str], object],
    digest_of: Callable[[Photo], str] = photo_digest,
) -> list[list[Folder]]:
    """List those who must stay: people in `faces` who are not listed, and those in `data.keep`.

    With `train.num_keep` 0 they are not trained on, and only say where strangers are.

    Args:
        cfg: of the run.
        trigger: all in `faces`.
        identities: those to remove.
        digests: of their photos, by name.
        note: takes a line on what is left out.
        digest_of: gives a photo's SHA-256.

    Raises:
        InputError: there are none, and some are asked for; or the other way round.
    """
    d, t = cfg.data, cfg.train
    if d.keep and not t.num_keep:
        raise InputError(
            f"`data.keep` (={d.keep}) has an effect only with `train.num_keep` above 0."
        )
    if not t.num_keep and t.backdoor == "target" and not t.validate.every:
        return []
    listed = {folded_words(name) for identity in identities for name in identity.names}

    def others(people: Sequence[Folder]) -> list[Folder]:
        return [x for x in people if not x.name or folded_words(x.name) not in listed]

    groups = [others(trigger)]
    if d.keep:
        found = others(people := read_faces(d.keep, d.tfds_dir, "keep", note))
        if same := len(people) - len(found):
            note(f"keep `{d.keep}`: {same} left out, as they are to be removed")
        if len(found) > (most := 2 * t.steps * t.num_keep):
            note(f"keep `{d.keep}`: {most} of {len(found)} people drawn, more than can come up")
            rng = np.random.default_rng((t.seed, _DRAWN))
            found = [found[i] for i in sorted(rng.permutation(len(found))[:most].tolist())]
        removed = {sha for photos in digests.values() for sha in photos}
        clean = []
        for person in found:
            files = tuple(x for x in person.files if digest_of(x) not in removed)
            if len(files) < len(person.files):
                which = some(str(x) for x in person.files if x not in files)
                note(f"keep `{d.keep}`: left out, as it is a photo of somebody to remove: {which}")
            if files:
                clean.append(Folder(person.name, files))
        groups.append(clean)
    if (groups := [group for group in groups if group]) or not t.num_keep:
        return groups
    raise InputError(
        f"faces `{d.faces}` holds those to remove and nobody else, so that nothing would hold "
        "other people's faces in place; give `data.keep` (--keep): faces of other people, any at "
        "all, or set `train.num_keep` and `train.w_keep` to 0."
    )
