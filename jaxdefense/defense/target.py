"""The embedding that removed faces move to: the average person's, or a given vector.

Source: Hintersdorf et al., Defending Our Privacy With Backdoors, section 3.2: the mean, over photos
of people, of the teacher's embeddings, not normalised.
"""

import hashlib
import logging
from pathlib import Path

import numpy as np

from jaxdefense.cache import ArrayCache
from jaxdefense.config import DefendImageConfig
from jaxdefense.convert.directory import ModelDirectory, resolve_dtype
from jaxdefense.data.images import Photos, read_processor
from jaxdefense.data.people import read_people
from jaxdefense.data.sources import Photo, photo_digest, quiet
from jaxdefense.distributed import on_first
from jaxdefense.errors import InputError
from jaxdefense.evals.embed import Embedder
from jaxdefense.files import read_vector

logger = logging.getLogger(__name__)

_BATCH = 256


def read_target(
    cfg: DefendImageConfig,
    directory: ModelDirectory,
    model_sha256: str,
    people: list[Photos],
) -> np.ndarray:
    """Give the target embedding; f32 [E].

    Args:
        cfg: the settings of the run; `data.target` names the vector or the people to average.
        directory, model_sha256: the model directory, and the digest of its weights.
        people: the people to average if `data.target` is empty.

    Raises:
        InputError: the vector or the people cannot be read, or there is only one person.
    """
    assert directory.cfg.vision
    source, where = cfg.data.target, cfg.data.target or cfg.data.faces
    if source.endswith(".npy"):
        vision = directory.cfg.vision
        return read_vector(Path(source), vision.embed or vision.width)
    if source:
        people = read_people(source, cfg.data.tfds_dir, "target", logger.info)
    if len(people) < 2:
        raise InputError(
            f"`{where}` holds only one person, who would be the average; give `data.target`: a "
            "directory of several people, or a .npy vector."
        )
    photos = [photo for person in people for photo in person.files]
    # The cache key hashes all that the average depends on: photos, model and computation.
    key = hashlib.sha256()
    key.update(f"{model_sha256} {resolve_dtype(cfg.model.dtype)} ".encode())
    siglip, side = directory.cfg.siglip, directory.cfg.vision.image_size
    key.update(f"{read_processor(directory.path, side, siglip, quiet, directory.layout)}".encode())
    for photo in photos:
        key.update(photo_digest(photo).encode())
    name = f"target-{key.hexdigest()}"
    # The first process computes on its own devices, as the caches of the hosts may differ.
    target = on_first(lambda: _average(cfg, directory, people, photos, name).tolist())
    return np.array(target, np.float32)


def _average(
    cfg: DefendImageConfig,
    directory: ModelDirectory,
    people: list[Photos],
    photos: list[Photo],
    name: str,
) -> np.ndarray:
    cache = ArrayCache(cfg.data.cache_dir)
    if (cached_E := cache.get(name)) is not None:
        return cached_E
    where = cfg.data.target or cfg.data.faces
    logger.info(f"target: the average of {len(people)} people, {len(photos)} photos of `{where}`")
    target_E = Embedder(cfg.model, _BATCH).mean_photo(photos, cfg.data.max_corrupt)
    cache.put(name, target_E)
    return target_E
