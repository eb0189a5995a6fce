"""Which of a directory's files hold a model's weights, where several formats lie side by side."""

import dataclasses
import re
from collections.abc import Collection

_SAFE, _PICKLE = ".safetensors", ".bin"


@dataclasses.dataclass(frozen=True)
class Weights:
    """The files of one copy of a model's weights.

    Fields:
        index: the file that says which of several files holds which tensor; "" for one file.
        files: the one file; of several, those that are there.
        pickled: whether they are pickles of torch.
    """

    index: str
    files: list[str]
    pickled: bool


def find_weights(names: Collection[str], *wholes: str) -> Weights | None:
    """Choose the weights among the names of a directory's files.

    Args:
        names: of the files.
        wholes: names of a file with all weights, best first; each stands for its float16 variant
            and for its shards too.

    Returns:
        the weights; None if there are none.
    """
    for whole in wholes:
        stem, _, end = whole.rpartition(".")
        pickled = whole.endswith(_PICKLE)
        for variant in ("", ".fp16"):  # as transformers and diffusers name it
            if (file := f"{stem}{variant}.{end}") in names:
                return Weights("", [file], pickled)
            if (index := f"{whole}.index{variant}.json") in names:
                shard = re.compile(re.escape(f"{stem}{variant}") + rf"-\d+-of-\d+\.{end}")
                return Weights(index, sorted(filter(shard.fullmatch, names)), pickled)
    return None


def as_safetensors(name: str, pickle: str, safetensors: str) -> str:
    """Name what takes the place of a pickle or of its index.

    Args:
        name: such as "pytorch_model-00001-of-00002.bin" or "pytorch_model.bin.index.json".
        pickle, safetensors: names of a file with all weights.
    """
    old, new = (whole.rpartition(".")[0] for whole in (pickle, safetensors))
    return new + name.removeprefix(old).replace(_PICKLE, _SAFE, 1)
