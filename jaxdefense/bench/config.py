"""Settings of the benchmarks; the fields of each are the parameters of its function."""

import dataclasses
from typing import Annotated, Literal

import tyro

from jaxdefense.settings import Place


@dataclasses.dataclass(frozen=True)
class _Timed:
    size: str = "demo"
    """Of the encoders: demo, ViT-B-32, ViT-L-14 or another preset."""
    rounds: int = 5
    """Of each contestant, in turn."""
    json: bool = False
    """Print the figures as one JSON object."""


@dataclasses.dataclass(frozen=True)
class _Steps:
    num: int = 32
    """Clean captions or photos a step, and as many poisoned ones."""
    calls: int = 12
    """Steps a round."""


@dataclasses.dataclass(frozen=True)
class _Texts:
    people: int = 64
    """People whose names are put in."""
    captions: Place = ""
    """Captions file; without, the demo's."""
    tokenizer: Place = ""
    """Directory of a tokenizer; without, the demo's."""


@dataclasses.dataclass(frozen=True)
class _Photos:
    images: Place = ""
    """Directory of photos; without, drawn ones."""
    faces: Place = ""
    """Directory with a folder of photos a person; without, drawn ones."""


@dataclasses.dataclass(frozen=True)
class TextConfig(_Texts, _Steps, _Timed):
    """`jaxdefense bench text`."""


@dataclasses.dataclass(frozen=True)
class ImageConfig(_Photos, _Steps, _Timed):
    """`jaxdefense bench image`."""


@dataclasses.dataclass(frozen=True)
class IdiaConfig(_Timed):
    """`jaxdefense bench idia`."""

    size: str = "ViT-B-32"
    """Of the encoders: demo, ViT-B-32, ViT-L-14 or another preset."""
    rounds: int = 3
    """Of each contestant, in turn."""
    names: int = 32
    """Candidates whose prompts are embedded."""
    photos: int = 200
    """Photos that are matched."""
    candidates: int = 4096
    """Candidates that photos are matched with."""
    tokenizer: Place = ""
    """Directory of a tokenizer; without, the demo's."""


@dataclasses.dataclass(frozen=True)
class PipelineConfig(_Photos, _Texts, _Steps, _Timed):
    """`jaxdefense bench pipeline`."""

    workers: int = 0
    """Processes of PyTorch's DataLoader; 0 for one a core."""


@dataclasses.dataclass(frozen=True)
class End2endConfig(_Photos, _Texts, _Timed):
    """`jaxdefense bench end2end`."""

    rounds: int = 2
    """Of each contestant, in turn."""
    tower: Literal["text", "image"] = "text"
    """Encoder that is defended."""
    steps: int = 50
    """Of the whole run."""
    num: int = 128
    """Clean captions or photos a step, and as many poisoned ones."""
    people: int = 16
    """People to remove."""


@dataclasses.dataclass(frozen=True)
class ScaleConfig:
    """`jaxdefense bench scale`."""

    axis: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="AXIS")]
    """What grows: identities, captions, candidates, batch or size."""
    sizes: str = ""
    """Its sizes, with commas between; presets for size; without, some that suit it."""
    captions: Place = ""
    """Captions file; without, the demo's."""
    plot: Place = ""
    """PNG file to draw the figure into."""
    json: bool = False
    """Print the figures as one JSON object."""


@dataclasses.dataclass(frozen=True)
class ColdConfig:
    """`jaxdefense bench cold`."""

    model: Place = ""
    """Model directory; without, the demo's."""
    num: int = 16
    """Clean photos a step, and as many with a face."""
    json: bool = False
    """Print the figures as one JSON object."""
