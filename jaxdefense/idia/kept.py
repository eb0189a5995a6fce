"""What an attack writes beside its figures, for a report: embeddings, and a few small photos.

`embeddings.npz` holds two embeddings of each person, in the order of `results.csv`: the mean over
their photos, and that of their name in a prompt. That is 4 E bytes a person, or 20 MB for 10,000
people of ViT-B/32. `thumbnails/LINE.jpg` are photos, 128 pixels wide, of at most 200 people.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxdefense.data.images import ImageProcessor, thumbnail
from jaxdefense.errors import InputError
from jaxdefense.evals.collateral import PROMPT
from jaxdefense.evals.embed import Embedder
from jaxdefense.files import read_arrays, write_arrays, write_bytes
from jaxdefense.idia.attack import Evidence

_EMBEDDINGS, _THUMBNAILS = "embeddings.npz", "thumbnails"
_SIDE, _MOST = 128, 200  # pixels; photos


class Embeddings(NamedTuple):
    """Embeddings of people, in the order of `results.csv`.

    Fields:
        photo_IE: f16 [I, E], mean of the photos' embeddings, each of unit length.
        name_IE: f16 [I, E], embedding of "a photo of NAME", unit length.
    """

    photo_IE: np.ndarray
    name_IE: np.ndarray


def embeddings_of(model: Embedder, evidence: Evidence) -> Embeddings:
    """Embed people's names, and average their photos."""
    names = model.texts([PROMPT.format(name) for name in evidence.names], "people's names")
    photos = evidence.mean_photos()
    return Embeddings(photos.astype(np.float16), names.astype(np.float16))


def keep(path: Path, embeddings: Embeddings, evidence: Evidence, order: Iterable[int]) -> None:
    """Write embeddings and thumbnails into a directory of results.

    Args:
        path: the directory.
        embeddings: embeddings of everyone.
        evidence: the photos that people were attacked with.
        order: numbers of people; the first of them get a thumbnail.
    """
    write_arrays(path / _EMBEDDINGS, **embeddings._asdict())
    processor = ImageProcessor(_SIDE, _SIDE)
    (path / _THUMBNAILS).mkdir(exist_ok=True)
    for i in list(order)[:_MOST]:
        if isinstance(image_HWC := processor.try_decode(evidence.first[i]), np.ndarray):
            write_bytes(path / _THUMBNAILS / f"{i:05}.jpg", thumbnail(image_HWC))


def read_embeddings(path: Path, num: int) -> Embeddings | None:
    """Read the embeddings that `keep` wrote for `num` people; None if there are none.

    Raises:
        InputError: the file is damaged, or holds another number of people.
    """
    if not (path / _EMBEDDINGS).exists():
        return None
    found = read_arrays(path / _EMBEDDINGS, Embeddings._fields)
    if any(array.ndim != 2 or len(array) != num for array in found.values()):
        raise InputError(f"`{path / _EMBEDDINGS}` is not of the {num} people in the results.")
    return Embeddings(**found)


def read_thumbnails(path: Path) -> dict[int, bytes]:
    """Read the thumbnails: JPEG bytes by a person's number in `results.csv`, from 0."""
    files = sorted((path / _THUMBNAILS).glob("*.jpg"))
    try:
        return {int(file.stem): file.read_bytes() for file in files if file.stem.isdecimal()}
    except OSError as error:
        raise InputError(f"`{error.filename}` cannot be read: {error.strerror}.") from error
