"""Reads a .pt or .bin file of tensors, with torch; nothing else that is read needs torch."""

import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np

from jaxdefense.errors import InputError

_WRAPPED = "module."


def read_torch_file(file: Path) -> dict[str, np.ndarray]:
    """Read the tensors of a state dict, or of a training checkpoint that holds one.

    Nothing but tensors is unpickled. Names lose the prefix `module.` of distributed training.

    Raises:
        InputError: torch is not installed, or the file does not hold tensors by name alone.
    """
    try:
        import torch
    except ImportError:
        raise InputError(
            f"`{file}`: reading it needs torch, as nothing else reads pickles safely; install "
            "torch, or give the model as safetensors."
        ) from None
    try:
        new = zipfile.is_zipfile(file)  # others, of torch before 1.6, cannot be mapped
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=new)
    except Exception as error:  # the library raises nearly anything on a broken or wrong file
        why = " ".join(str(error).split())[:200]
        raise InputError(f"`{file}` is not a file of tensors alone: {why}.") from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict):
        raise InputError(f"`{file}` holds no tensors by name.")
    tensors = {key: value for key, value in found.items() if isinstance(value, torch.Tensor)}
    if not tensors or len(tensors) < len(found):
        raise InputError(f"`{file}` holds no tensors by name, or other things beside them.")
    if all(key.startswith(_WRAPPED) for key in tensors):
        tensors = {key.removeprefix(_WRAPPED): value for key, value in tensors.items()}
    out = {}
    for key, value in tensors.items():
        if value.dtype == torch.bfloat16:  # which NumPy lacks
            out[key] = value.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        else:
            out[key] = value.contiguous().numpy()
    return out
