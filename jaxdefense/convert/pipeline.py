"""The text encoders of a pipeline of diffusers, and what it reads of them."""

import dataclasses
from pathlib import Path

from jaxdefense.clip.config import CLIPConfig
from jaxdefense.errors import InputError
from jaxdefense.files import read_json
from jaxdefense.hub import PIPELINE

_ENCODER, _TOKENIZER = "text_encoder", "tokenizer"
# Of these CLIP's; beginnings of the names of pipelines, the longest first, and what they read.
_CLIPS = ("CLIPTextModel", "CLIPTextModelWithProjection")
_LEVELS = {
    "StableDiffusionXL": "penultimate",
    "StableDiffusion3": "",  # reads both the embedding and the states
    "StableDiffusion": "hidden",
}


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A diffusion pipeline.

    Fields:
        root: its directory.
        name: its class in diffusers.
        encoders: folders of its text encoders, and the class of each.
    """

    root: Path
    name: str
    encoders: dict[str, str]

    @property
    def clips(self) -> list[str]:
        """The folders of the text encoders that are CLIP's."""
        return [folder for folder, kind in self.encoders.items() if kind in _CLIPS]

    @property
    def level(self) -> str:
        """What it reads of its text encoders; "" if that is not known."""
        return next((x for name, x in _LEVELS.items() if self.name.startswith(name)), "")

    def tokenizer_of(self, encoder: str) -> Path:
        """Give the directory of an encoder's tokenizer."""
        return self.root / encoder.replace(_ENCODER, _TOKENIZER)


def read_pipeline(root: Path) -> Pipeline | None:
    """Read what a directory says of its pipeline; None if it is none."""
    if not (root / PIPELINE).is_file():
        return None
    index = read_json(root / PIPELINE)
    encoders = {
        name: part[1]
        for name, part in sorted(index.items())
        if name.startswith(_ENCODER) and isinstance(part, list) and len(part) == 2 and part[1]
    }
    return Pipeline(root, str(index.get("_class_name", "")), encoders)


def pipeline_of(encoder: Path) -> Pipeline | None:
    """Find the pipeline that a directory is a text encoder of; None if it is of none."""
    encoder = encoder.absolute()
    found = read_pipeline(encoder.parent) if encoder.name.startswith(_ENCODER) else None
    return found if found and encoder.name in found.encoders else None


def level_of(encoder: Path, cfg: CLIPConfig) -> str:
    """Tell what a model's user reads of its text encoder; "" if that is not known.

    Args:
        encoder: directory of the model.
        cfg: its sizes.

    Returns:
        see `TextTrainConfig.level`.
    """
    if pipeline := pipeline_of(encoder):
        return pipeline.level
    lone = cfg.vision is None and cfg.text is not None and not cfg.text.embed
    return "hidden" if lone else "pooled"


def encoder_of(path: Path, given: str = "") -> Path:
    """Give the first text encoder of a pipeline's directory; any other path as it is.

    Args:
        path: a directory.
        given: what the user calls it; "" for its path.

    Raises:
        InputError: the pipeline has no text encoder that is CLIP's.
    """
    if (pipeline := read_pipeline(path)) is None:
        return path
    if not pipeline.clips:
        raise InputError(
            f"`{given or path}` is a {pipeline.name} without a text encoder that is CLIP's; "
            "give another."
        )
    return path / pipeline.clips[0]
