"""Settings of the benchmarks; the fields of each are the parameters of its function."""

import dataclasses
from typing import Annotated, Literal

import tyro

from jaxdefense.settings import OwnPlace, Place


@dataclasses.dataclass(frozen=True)
class _Timed:
    size: str = "demo"
    """Architecture of the encoders: demo, ViT-B-32, ViT-L-14 or another preset."""
    rounds: int = 5
    """Rounds, in each of which every implementation is timed once, in turn."""
    json: bool = False
    """Print the figures as one JSON object."""


@dataclasses.dataclass(frozen=True)
class _Steps:
    num: int = 32
    """Clean captions or photos in a step; it has as many poisoned ones."""
    calls: int = 12
    """Steps in a round."""


@dataclasses.dataclass(frozen=True)
class _Peers:
    compiled: bool = True
    """Time PyTorch with torch.compile too, where that finds a compiler; it compiles for minutes."""


@dataclasses.dataclass(frozen=True)
class _Texts:
    people: int = 64
    """People whose names are put into captions."""
    captions: Place = ""
    """Captions file; if empty, the demo's captions."""
    tokenizer: Place = ""
    """Directory of a tokenizer; if empty, the demo's tokenizer."""


@dataclasses.dataclass(frozen=True)
class _Photos:
    images: Place = ""
    """Directory of ordinary photos; if empty, drawn photos."""
    faces: Place = ""
    """Directory with a folder of photos for each person; if empty, drawn photos."""


@dataclasses.dataclass(frozen=True)
class TextConfig(_Texts, _Peers, _Steps, _Timed):
    """`jaxdefense bench text`."""


@dataclasses.dataclass(frozen=True)
class ImageConfig(_Photos, _Peers, _Steps, _Timed):
    """`jaxdefense bench image`."""


@dataclasses.dataclass(frozen=True)
class IdiaConfig(_Peers, _Timed):
    """`jaxdefense bench idia`."""

    size: str = "ViT-B-32"
    """Architecture of the encoders: demo, ViT-B-32, ViT-L-14 or another preset."""
    rounds: int = 3
    """Rounds, in each of which every implementation is timed once, in turn."""
    names: int = 32
    """Candidates whose prompts are embedded."""
    photos: int = 200
    """Photos that are matched."""
    candidates: int = 4096
    """Candidates that photos are matched with."""
    tokenizer: Place = ""
    """Directory of a tokenizer; if empty, the demo's tokenizer."""


@dataclasses.dataclass(frozen=True)
class PipelineConfig(_Photos, _Texts, _Steps, _Timed):
    """`jaxdefense bench pipeline`."""

    workers: int = 0
    """Worker processes of PyTorch's DataLoader; 0 for one per core."""


@dataclasses.dataclass(frozen=True)
class End2endConfig(_Photos, _Texts, _Timed):
    """`jaxdefense bench end2end`."""

    rounds: int = 2
    """Rounds, in each of which every implementation is timed once, in turn."""
    tower: Literal["text", "image"] = "text"
    """Encoder that is defended."""
    steps: int = 50
    """Training steps of a run."""
    num: int = 128
    """Clean captions or photos in a step; it has as many poisoned ones."""
    people: int = 16
    """People to remove."""


@dataclasses.dataclass(frozen=True)
class ScaleConfig:
    """`jaxdefense bench scale`."""

    axis: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="AXIS")]
    """What grows: identities, captions, candidates, batch or size."""
    sizes: str = ""
    """Growing sizes, or presets for size, separated by commas; if empty, defaults of the axis."""
    captions: Place = ""
    """Captions file; if empty, the demo's captions."""
    plot: OwnPlace = ""
    """PNG file for a plot of the figures; if empty, none."""
    json: bool = False
    """Print the figures as one JSON object."""


@dataclasses.dataclass(frozen=True)
class RequestsConfig:
    """`jaxdefense bench requests`."""

    out: OwnPlace
    """Directory of all runs and figures; the same command goes on where it ended."""
    people: Literal[16, 64] = 64
    """People of the demo."""
    requests: int = 8
    """Requests that come, one after another."""
    each: int = 2
    """People a request."""
    seeds: str = "0,1,2"
    """Seeds, with commas between."""
    modes: str = "replay,fresh,none"
    """Ways to serve a request, with commas between; none: without those removed before."""
    json: bool = False
    """Print the figures as one JSON object."""


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """`jaxdefense bench profile`."""

    out: OwnPlace
    """Directory of the traces, for TensorBoard or Perfetto."""
    step: Literal["text", "image", "prompts"] = "text"
    """Of which step: text or image, of a defense; prompts, of the attack."""
    size: str = "demo"
    """Architecture of the encoder: demo, ViT-B-32, ViT-L-14 or another preset."""
    num: int = 32
    """Clean captions or photos in a step, and as many poisoned; names of the prompts."""
    calls: int = 5
    """Steps that are traced."""
    json: bool = False
    """Print the figures as one JSON object."""


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """`jaxdefense bench attention`."""

    num: int = 64
    """Photos, or rows of captions."""
    rounds: int = 3
    """Rounds, in each of which every implementation is timed once, in turn."""
    calls: int = 10
    """How many times each is computed in a round."""
    json: bool = False
    """Print the figures as one JSON object."""


@dataclasses.dataclass(frozen=True)
class DtypesConfig:
    """`jaxdefense bench dtypes`."""

    steps: int = 100
    """Training steps."""
    photos: int = 10
    """Photos of each person, for the attack."""
    json: bool = False
    """Print the figures as one JSON object."""


@dataclasses.dataclass(frozen=True)
class AllConfig:
    """`jaxdefense bench all`."""

    out: OwnPlace
    """Directory of the figures and of the page; the same command goes on where it ended."""
    minutes: float = 9.0
    """Time for all of it; what does not fit is named."""
    rehearse: bool = False
    """At the smallest sizes, to see that it all runs; the default on a CPU is the demo's sizes."""
    json: bool = False
    """Print the figures as one JSON object."""


@dataclasses.dataclass(frozen=True)
class ColdConfig:
    """`jaxdefense bench cold`."""

    model: Place = ""
    """Model directory; if empty, the demo's model."""
    num: int = 16
    """Clean photos in a step; it has as many photos with a face."""
    json: bool = False
    """Print the figures as one JSON object."""
