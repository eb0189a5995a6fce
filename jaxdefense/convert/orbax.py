"""A model as an Orbax checkpoint of jaxdefense's parameters, for programs on JAX.

The manifest lies beside the arrays. It names the layout that the model came from and the dtype of
each tensor, so that the model can be converted back bit for bit.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from jaxdefense.convert.table import Path as ParamPath
from jaxdefense.errors import InputError
from jaxdefense.files import read_json, write_json

MANIFEST = "jaxdefense_orbax.json"
ARRAYS = "params"
_JOIN = "."
_NONE = np.empty((0, 0, 0, 0, 0, 0))


def write(
    out: Path,
    layout: str,
    dtypes: Mapping[str, str],
    params: Mapping[ParamPath, np.ndarray],
    extra: Mapping[str, np.ndarray],
) -> None:
    """Write arrays and manifest.

    Args:
        out: an empty directory, or one with other files.
        layout: the layout that the model came from.
        dtypes: dtypes of its tensors, by their names in that layout.
        params: parameters by path.
        extra: constants that lay beside the weights, by name.
    """
    tree: dict[str, Any] = {"params": {_JOIN.join(path): value for path, value in params.items()}}
    if extra:
        tree["extra"] = dict(extra)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((out / ARRAYS).absolute(), tree)
    write_json(out / MANIFEST, {"layout": layout, "dtypes": dict(dtypes)})


def read_manifest(src: Path) -> dict[str, Any]:
    """Read the manifest.

    Raises:
        InputError: the file is not a manifest.
    """
    manifest = read_json(src / MANIFEST)
    if not isinstance(manifest.get("layout"), str) or not isinstance(manifest.get("dtypes"), dict):
        raise InputError(f"`{src / MANIFEST}` must hold `layout` and `dtypes`.")
    return manifest


def read_arrays(
    src: Path, shapes: Mapping[ParamPath, tuple[int, ...]]
) -> tuple[dict[ParamPath, np.ndarray], dict[str, np.ndarray]]:
    """Read parameters by path, and the constants by name.

    Raises:
        InputError: arrays are missing, of other shapes, or cannot be read.
    """
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            tree = checkpointer.restore((src / ARRAYS).absolute())
    except Exception as error:  # the library raises nearly anything on a broken checkpoint
        why = " ".join(str(error).split())[:200]
        raise InputError(f"`{src / ARRAYS}` cannot be read: {why}; convert again.") from error
    found = {tuple(k.split(_JOIN)): np.asarray(v) for k, v in tree.get("params", {}).items()}
    if wrong := [path for path, shape in shapes.items() if found.get(path, _NONE).shape != shape]:
        raise InputError(f"`{src / ARRAYS}`: {'.'.join(wrong[0])} is missing or misshapen.")
    return found, {key: np.asarray(value) for key, value in tree.get("extra", {}).items()}
