"""Arrays kept on disk under a key that names what they were computed from.

A file is a `.npy` with the SHA-256 of its bytes behind it, so truncated or damaged files are
ignored.
"""

import hashlib
import io
import logging
import math
from collections.abc import Collection
from pathlib import Path

import numpy as np

from jaxdefense.files import cache_directory, write_bytes

logger = logging.getLogger(__name__)

OFF = "none"
_ROOM = 4 * 2**30  # bytes a run may leave in the default directory
_DIGEST = hashlib.sha256().digest_size


class ArrayCache:
    """A directory of f32 arrays; it keeps none if it cannot be written or is off."""

    def __init__(self, directory: str, encoders: Collection[str] = ()):
        """Name it; nothing is touched.

        Args:
            directory: "" for ~/.cache/jaxdefense, "none" to keep nothing.
            encoders: digests of those whose embeddings are kept; of any if none is named.
        """
        self._path, self._encoders = None, encoders
        self._room, self._full = math.inf if directory else _ROOM, False
        if directory != OFF:
            self._path = Path(directory) if directory else cache_directory()

    @property
    def on(self) -> bool:
        """Whether anything is kept."""
        return self._path is not None

    def keeps(self, encoder: str) -> bool:
        """Whether the embeddings of the encoder with this digest are kept."""
        return self.on and (not self._encoders or encoder in self._encoders)

    def get(self, key: str) -> np.ndarray | None:
        """Give an array, if it is there and whole."""
        if self._path is None:
            return None
        try:
            data = (self._path / f"{key}.npy").read_bytes()
        except OSError:
            return None
        if hashlib.sha256(memoryview(data)[:-_DIGEST]).digest() != data[-_DIGEST:]:
            return None
        return np.load(io.BytesIO(data), allow_pickle=False)

    def put(self, key: str, array: np.ndarray) -> None:
        """Keep an array if possible; nothing depends on it."""
        if self._path is None or self._full:
            return
        buffer = io.BytesIO()
        np.save(buffer, array.astype(np.float32, copy=False))
        buffer.write(hashlib.sha256(buffer.getbuffer()).digest())
        self._room -= buffer.tell()
        if self._room < 0:
            self._full = True  # what is there already is still read
            text = f"not cached: over {_ROOM >> 30} GiB; give `cache_dir` to keep all"
            logger.warning(text)
            return
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            write_bytes(self._path / f"{key}.npy", buffer.getbuffer())
        except OSError as error:
            logger.warning(f"not cached: {error}")
            self._path = None
