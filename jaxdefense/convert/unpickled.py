"""Models whose weights are torch's pickles: copied once as safetensors, which are then read."""

import json
import logging
from pathlib import Path

from safetensors.numpy import save_file

from jaxdefense.convert.directory import (
    Layout,
    copy_companions,
    digest_of,
    text_companions,
    write_directory,
)
from jaxdefense.convert.torch_file import read_torch_file
from jaxdefense.convert.weights import Weights, as_safetensors
from jaxdefense.files import cache_directory, locked, read_json
from jaxdefense.log import Progress

logger = logging.getLogger(__name__)


def unpickled(path: Path, layout: Layout, weights: Weights) -> Path:
    """Give the directory of a model with safetensors in place of pickles.

    The copy stays in the cache, under the digest of all that it was made of. torch reads tensors
    alone, and runs no code.

    Args:
        path: directory of the model.
        layout: of the directory.
        weights: its pickles, all of them.

    Raises:
        InputError: torch is not installed, or the files do not hold tensors by name alone.
    """
    texts = text_companions(path, weights.files)
    made_of = [*(path / name for name in weights.files), *texts.values()]
    copy = cache_directory() / "unpickled" / digest_of(made_of)[:32]
    copy.parent.mkdir(parents=True, exist_ok=True)
    lock = copy.with_suffix(".lock")
    with locked(lock, lambda: None):  # of several processes one writes
        if not copy.exists():
            with Progress(f"copying {path} as safetensors"):
                write_directory(copy, lambda tmp: _fill(path, layout, weights, tmp))
            logger.info(f"`{path}` holds pickles: its copy in safetensors is `{copy}`")
    return copy


def _fill(path: Path, layout: Layout, weights: Weights, out: Path) -> None:
    copy_companions(path, out, weights=weights.files)
    names = {name: as_safetensors(name, layout.pickle, layout.weights) for name in weights.files}
    for name, new in names.items():
        save_file(read_torch_file(path / name), out / new, metadata={"format": "pt"})
        (out / new).chmod(0o644)  # the library writes for the owner alone
    if weights.index:
        index = read_json(path / weights.index)
        index["weight_map"] = {
            key: names.get(file, file) for key, file in index.get("weight_map", {}).items()
        }
        new = as_safetensors(weights.index, layout.pickle, layout.weights)
        (out / new).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
