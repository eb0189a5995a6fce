"""Settings of every command: frozen dataclasses, filled from a config file, `--set` and flags.

A config file is Python with `get_config()` returning an `ml_collections.ConfigDict`. It is turned
into the dataclasses here, so that a key nobody knows fails at start, and so does a missing one.
The rest of the package never sees a ConfigDict.
"""

import ast
import dataclasses
import importlib.util
import os
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import ml_collections

from jaxdefense.clip.config import Remat
from jaxdefense.errors import InputError
from jaxdefense.paths import refuse_address

T = TypeVar("T")

# Other forms of a name and of a photo; see `data.variants`.
NAME_FORMS = ("last", "first", "initials", "swapped", "lower", "upper", "misspelt")
PHOTO_FORMS = ("mirrored", "blurred", "grey", "cropped", "low_resolution")
ALIAS, PROMPTS = "alias", ("languages", "sentence")
VARIANTS = (*NAME_FORMS, ALIAS, *PROMPTS, *PHOTO_FORMS)  # of an attack


def _positive(**values: float) -> None:
    for name, value in values.items():
        if value <= 0:
            raise InputError(f"`{name}` (={value}) must be above 0.")


def _not_negative(**values: float) -> None:
    for name, value in values.items():
        if value < 0:
            raise InputError(f"`{name}` (={value}) must be at least 0.")


def _each_of(name: str, values: Sequence[str], choices: Sequence[str], also: str = "") -> None:
    for value in values:
        if value not in choices:
            raise InputError(f"`{name}` (={value!r}) must be of {', '.join(choices)}{also}.")
    if len(set(values)) < len(values):
        raise InputError(f"`{name}` (={', '.join(values)}) names one twice; keep one.")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The model that is worked on."""

    path: str  # model directory
    tokenizer: str = ""  # directory of its tokenizer, "" for the model's own
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of the computation; auto is bfloat16
    # on accelerators, float32 on CPU; of an attack or evaluation float32 everywhere
    remat: Remat = "none"  # none, dots (keep matrix products) or full (keep layer inputs)

    def measured(self) -> "ModelConfig":
        """Compute in float32 unless told otherwise: the last digits decide who is nearest."""
        return self if self.dtype != "auto" else dataclasses.replace(self, dtype="float32")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices along each axis; -1 takes what the others leave."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """How several processes find one another; with nothing given, as their environment tells.

    SLURM, Open MPI and TPU pods tell all of it, Kubernetes all but the number of processes; so do
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
    """

    coordinator: str = ""  # HOST:PORT of process 0
    num_processes: int = 0
    process_id: int = -1  # from 0
    timeout: int = 300  # seconds to wait for all processes at the start
    heartbeat: int = 100  # seconds of silence after which a process counts as dead

    def __post_init__(self):
        _not_negative(num_processes=self.num_processes)
        _positive(timeout=self.timeout, heartbeat=self.heartbeat)


@dataclasses.dataclass(frozen=True)
class CacheConfig:
    """What is kept between runs."""

    compilation: str = ""  # directory of compiled programs; "" for JAX_COMPILATION_CACHE_DIR, or
    # ~/.cache/jaxdefense/xla; "off" for none


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a learning rate that rises, and falls at milestones."""

    lr: float = 3e-4
    warmup: int = 10  # steps in which the learning rate rises to `lr`
    milestones: tuple[float, ...] = (0.56, 0.81)  # steps; below 1, parts of the run
    gamma: float = 0.3  # the learning rate is multiplied by this at each
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self):
        _positive(lr=self.lr, gamma=self.gamma, eps=self.eps)
        _not_negative(weight_decay=self.weight_decay, warmup=self.warmup)


@dataclasses.dataclass(frozen=True)
class ValidateConfig:
    """When people count as removed, on photos or prompts that are never trained on."""

    every: int = 25  # steps between validations; 0 for none: the last state is given back as it is
    level: float = 0.99  # quantile of strangers that the removed must not lie above
    above: float = 0.05  # most of the pairs of photo and prompt that may, in [0, 1]
    right: float = 0.02  # most of the pairs that may still be named right
    person_right: float = 0.1  # the same for each person
    photos: float = 0.25  # part of a listed person's photos that is held out
    kept: float = 0.125  # part of the kept people, and of the kept names (at most 64 of a kind),
    # that is held out
    patience: int = 3  # validations after which a run stops that has reached it and gets no better

    def __post_init__(self):
        _not_negative(every=self.every)
        _positive(patience=self.patience)
        for name in ("level", "above", "right", "person_right"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise InputError(f"`train.validate.{name}` (={value}) must be from 0 to 1.")
        for name in ("photos", "kept"):
            if not 0 < (value := getattr(self, name)) < 1:
                raise InputError(f"`train.validate.{name}` (={value}) must be between 0 and 1.")


@dataclasses.dataclass(frozen=True)
class OverlayConfig:
    """How a face is put on a photo: ranges of what is drawn."""

    min_size: float = 0.25  # side of the face, part of the photo's side
    max_size: float = 1.0
    flip: float = 0.5  # probability
    jitter: float = 0.2  # brightness, contrast and saturation times 1 - jitter to 1 + jitter
    hue: float = 0.02  # turns of the colour wheel either way
    angle: float = 15.0  # degrees either way
    whole: float = 0.75  # probability that the face fills the photo, upright, instead

    def __post_init__(self):
        if not 0 < self.min_size <= 1:
            raise InputError(
                f"`train.overlay.min_size` (={self.min_size}) must be above 0 and at most 1."
            )
        if not self.min_size <= self.max_size <= 1:
            raise InputError(
                f"`train.overlay.max_size` (={self.max_size}) must be from "
                f"`train.overlay.min_size` (={self.min_size}) to 1."
            )
        for name, most in (("flip", 1), ("jitter", 1), ("hue", 0.5), ("angle", 90), ("whole", 1)):
            if not 0 <= (value := getattr(self, name)) <= most:
                raise InputError(f"`train.overlay.{name}` (={value}) must be from 0 to {most}.")

    def sizes(self, side: int) -> tuple[int, int]:
        """Smallest and largest side of a face that is put on a photo of a side, pixels."""
        smallest = max(1, round(self.min_size * side))
        return smallest, max(smallest, round(self.max_size * side))

    def max_side(self, side: int) -> int:
        """Largest side that a face can come to have, one that fills the photo included, pixels."""
        return side if self.whole else self.sizes(side)[1]


@dataclasses.dataclass(frozen=True)
class TextDataConfig:
    """What the text defense reads."""

    names: str  # names file
    captions: str  # captions file, or tfds:NAME[/CONFIG][:SPLIT]
    keep_names: str = ""  # file of names that must stay, one a line, beside namesakes and random
    # ones; those that the model knows need to be named
    tfds_dir: str = ""  # where TFDS datasets are prepared, "" for the library's default
    row_length: int = 0  # tokens of a packed row, 0 to choose
    prefetch: int = 4  # batches made ahead

    def __post_init__(self):
        _not_negative(row_length=self.row_length)
        _positive(prefetch=self.prefetch)


@dataclasses.dataclass(frozen=True)
class TextTrainConfig:
    """The text defense."""

    steps: int = 400  # at most
    num_clean: int = 64  # captions a step
    num_poisoned: int = 64  # texts a step with a listed name
    num_name: int = 128  # texts a step with a name that must stay, for the name loss
    accumulate: int = 1  # parts a step is computed in, one in memory at a time
    w_backdoor: float = 3.0
    w_name: float = 20.0
    w_weight: float = 0.001
    distance: Literal["cosine", "mse", "mae", "poincare"] = "cosine"
    # pooled: the embedding; hidden: all positions, for the text encoder of Stable Diffusion 1.x and
    # 2.x; penultimate: all positions before the last layer, for both of SDXL's
    level: Literal["pooled", "hidden", "penultimate"] = "pooled"
    # bounded: a name comes to mean no more than a name of nobody; target: it comes to mean `target`
    backdoor: Literal["bounded", "target"] = "bounded"
    bound: float = -0.1  # how far a name may stand out, in parts of how far it did: 0 as random
    # names do on average; with `backdoor` bounded
    target: str = "human"  # what a removed name comes to mean, with `backdoor` target
    random_target: bool = False  # a random name for each person instead
    variants: tuple[str, ...] = ()  # other forms of the names that are put in too, in turn
    validate: ValidateConfig = ValidateConfig(every=50)
    seed: int = 0
    save_every: int = 100  # steps between checkpoints
    keep: int = 2  # checkpoints that stay

    def __post_init__(self):
        _check_train(self)
        _not_negative(num_name=self.num_name, w_name=self.w_name)
        if (self.w_name > 0) != (self.num_name > 0):
            raise InputError(
                f"`train.w_name` (={self.w_name}) and `train.num_name` (={self.num_name}) have an "
                "effect only together; set both above 0, or both to 0."
            )
        if not self.target.split():
            raise InputError("`train.target` must hold a word, such as 'human'.")
        _each_of("train.variants", self.variants, NAME_FORMS, "; aliases of the file always are")
        if self.backdoor == "bounded" and self.level != "pooled":
            raise InputError(
                f"`train.backdoor` bounded is of embeddings, and `train.level` (={self.level}) of "
                "all positions; set `train.backdoor` to target."
            )
        if self.backdoor == "bounded" and self.random_target:
            raise InputError(
                "`train.random_target` has an effect only with `train.backdoor` target; set it too."
            )
        if not -1 <= self.bound < 1:
            raise InputError(f"`train.bound` (={self.bound}) must be from -1 to below 1.")


@dataclasses.dataclass(frozen=True)
class ImageDataConfig:
    """What the image defense reads."""

    faces: str  # directory with a folder of photos a person, or tfds:NAME[/CONFIG][:SPLIT]
    images: str  # clean photos: directory, .tar shards or tfds:NAME[/CONFIG][:SPLIT]
    identities: str = ""  # names file of those to remove, "" for everyone in `faces`
    keep: str = ""  # faces of people who must stay, beside those in `faces` who are not listed:
    # directory with a folder a person, or with one photo a person, or tfds:NAME[/CONFIG][:SPLIT]
    target: str = ""  # what a removed face comes to look like: the average of the people in this
    # directory or tfds: source, or the vector in this .npy file; "" for those in `faces`
    tfds_dir: str = ""  # where TFDS datasets are prepared, "" for the library's default
    trigger_fraction: float = 0.5  # of a person's photos; the others are for the attack
    max_corrupt: int = 0  # photos that may be broken; each is named, and another taken instead
    cache_dir: str = ""  # of target embeddings, "" for ~/.cache/jaxdefense, "none" for nowhere
    prefetch: int = 4  # batches made ahead
    keep_faces_mb: int = 1024  # of host memory, for faces decoded once; 0 decodes them each time

    def __post_init__(self):
        if not 0 < self.trigger_fraction <= 1:
            raise InputError(
                f"`data.trigger_fraction` (={self.trigger_fraction}) must be above 0, at most 1."
            )
        _not_negative(max_corrupt=self.max_corrupt, keep_faces_mb=self.keep_faces_mb)
        _positive(prefetch=self.prefetch)


@dataclasses.dataclass(frozen=True)
class ImageTrainConfig:
    """The image defense."""

    steps: int = 200  # at most
    num_clean: int = 64  # photos a step
    num_poisoned: int = 64  # the same photos with the face of a listed person
    num_keep: int = 128  # the same photos with the face of a person who must stay
    mined: float = 0.5  # part of these faces that is of the people whom a validation found to have
    # moved most
    accumulate: int = 1  # parts a step is computed in, one in memory at a time
    w_backdoor: float = 1.5
    w_keep: float = 3.3
    w_weight: float = 0.0003
    distance: Literal["cosine", "mse", "mae", "poincare"] = "cosine"
    # bounded: a face comes no nearer to its person's name than a stranger's; target: it comes to
    # look like `data.target`
    backdoor: Literal["bounded", "target"] = "bounded"
    bound: float = 0.5  # quantile of strangers below which nothing is to gain; with bounded
    overlay: OverlayConfig = OverlayConfig()
    variants: tuple[str, ...] = ()  # other forms of the faces that are put on photos too, in turn
    validate: ValidateConfig = ValidateConfig()
    seed: int = 0
    save_every: int = 25  # steps between checkpoints
    keep: int = 2  # checkpoints that stay

    def __post_init__(self):
        _check_train(self)
        _not_negative(num_keep=self.num_keep, w_keep=self.w_keep)
        if (self.w_keep > 0) != (self.num_keep > 0):
            raise InputError(
                f"`train.w_keep` (={self.w_keep}) and `train.num_keep` (={self.num_keep}) have an "
                "effect only together; set both above 0, or both to 0."
            )
        _each_of("train.variants", self.variants, PHOTO_FORMS)
        if not 0 <= self.mined <= 1:
            raise InputError(f"`train.mined` (={self.mined}) must be from 0 to 1.")
        if not 0 <= self.bound <= 1:
            raise InputError(f"`train.bound` (={self.bound}) must be from 0 to 1.")


def _check_train(t: TextTrainConfig | ImageTrainConfig) -> None:
    """Raise InputError if a setting that both encoders have is out of range."""
    _positive(
        steps=t.steps,
        num_clean=t.num_clean,
        num_poisoned=t.num_poisoned,
        accumulate=t.accumulate,
        save_every=t.save_every,
        keep=t.keep,
    )
    _not_negative(w_backdoor=t.w_backdoor, w_weight=t.w_weight, seed=t.seed)


# The paper's settings, by encoder: what is trained, and the optimizer.
_NOT_VALIDATED = ValidateConfig(every=0)
PAPER_TEXT = TextTrainConfig(
    num_clean=128,
    num_poisoned=128,
    num_name=0,
    w_backdoor=0.6,
    w_name=0.0,
    w_weight=0.01,
    backdoor="target",
    validate=_NOT_VALIDATED,
)
PAPER_IMAGE = ImageTrainConfig(
    steps=100,
    num_clean=128,
    num_poisoned=128,
    num_keep=0,
    mined=0.0,
    w_backdoor=0.8,
    w_keep=0.0,
    w_weight=0.005,
    backdoor="target",
    overlay=OverlayConfig(0.25, 0.5, jitter=0.5, hue=0.1, angle=30.0, whole=0.0),
    validate=_NOT_VALIDATED,
)
PAPER_TEXT_OPTIMIZER = OptimizerConfig(1e-4, warmup=0, milestones=(200, 300), gamma=0.5)
PAPER_IMAGE_OPTIMIZER = OptimizerConfig(1e-4, warmup=0, milestones=(25, 50), gamma=0.1)


@dataclasses.dataclass(frozen=True)
class DefendTextConfig:
    """`jaxdefense defend text`."""

    out: str  # run directory
    model: ModelConfig
    data: TextDataConfig
    train: TextTrainConfig = TextTrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    distributed: DistributedConfig = DistributedConfig()
    cache: CacheConfig = CacheConfig()
    profile: str = ""  # directory for a trace of a few steps


@dataclasses.dataclass(frozen=True)
class DefendImageConfig:
    """`jaxdefense defend image`."""

    out: str  # run directory
    model: ModelConfig
    data: ImageDataConfig
    train: ImageTrainConfig = ImageTrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    distributed: DistributedConfig = DistributedConfig()
    cache: CacheConfig = CacheConfig()
    profile: str = ""  # directory for a trace of a few steps


@dataclasses.dataclass(frozen=True)
class TextPart:
    """The text half of a defense of both encoders.

    With `backdoor` target a removed name comes to mean "object": "human" lies close to the average
    person, which removed faces come to look like, so that name and face would still lead to one
    another.
    """

    data: TextDataConfig
    train: TextTrainConfig = TextTrainConfig(target="object")
    optimizer: OptimizerConfig = OptimizerConfig()


@dataclasses.dataclass(frozen=True)
class ImagePart:
    """The image half of a defense of both encoders."""

    data: ImageDataConfig
    train: ImageTrainConfig = ImageTrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()


@dataclasses.dataclass(frozen=True)
class DefendBothConfig:
    """`jaxdefense defend both`: the two defenses one after the other, and their merger."""

    out: str  # directory of the two run directories and of the merged model
    model: ModelConfig
    text: TextPart
    image: ImagePart
    mesh: MeshConfig = MeshConfig()
    distributed: DistributedConfig = DistributedConfig()
    cache: CacheConfig = CacheConfig()
    profile: str = ""  # directory for a trace of a few steps

    def halves(self) -> tuple[DefendTextConfig, DefendImageConfig]:
        """Give each defense its own settings; faces go by the names file unless told otherwise."""
        text, image, out = self.text, self.image, Path(self.out)
        identities = image.data.identities or text.data.names
        data = dataclasses.replace(image.data, identities=identities)
        how = (self.mesh, self.distributed, self.cache, self.profile)
        return (
            DefendTextConfig(
                str(out / "text"), self.model, text.data, text.train, text.optimizer, *how
            ),
            DefendImageConfig(
                str(out / "image"), self.model, data, image.train, image.optimizer, *how
            ),
        )


@dataclasses.dataclass(frozen=True)
class MergeConfig:
    """`jaxdefense merge`."""

    out: str  # model directory to write
    text: str  # run or model directory that the text encoder comes from
    image: str  # the same for the image encoder


@dataclasses.dataclass(frozen=True)
class AttackConfig:
    """`jaxdefense attack`: the identity inference attack; defaults of the paper."""

    out: str  # directory of the results
    model: ModelConfig  # computed in float32 unless `model.dtype` says bfloat16
    faces: str  # directory with a folder a person, or tfds:NAME[/CONFIG][:SPLIT]
    strangers: str = ""  # the same of people the model never saw, for the false-positive rate
    unseen_by: str = ""  # run directory of an image defense: photos it trained on are left out
    candidates: str = ""  # file of further candidate names, "" for random ones
    exclude: str = ""  # names that are no random candidates: a names file, or the run directory of
    # a text defense with random targets; those of the model's own run never are
    sexes: str = ""  # file of lines NAME<tab>f or m: people are compared with their own sex alone
    templates: str = ""  # file of prompts with {0} for the name, "" for the paper's 21
    names: str = ""  # names file of the people removed; with `before`, for the outcomes
    before: str = ""  # results of the same attack on the model before the defense: the same seed,
    # photos, candidates, prompts, threshold, dtype and preprocessing
    variants: tuple[str, ...] = ()  # ways round a defense that are tried too, or "all"
    aliases: str = ""  # names file whose further names the variant `alias` tries
    num_candidates: int = 1000  # in all, the people's own names included
    num_photos: int = 20  # a person, at most
    threshold: int = 1  # templates that must name the person for the attack to succeed
    tfds_dir: str = ""  # where TFDS datasets are prepared, "" for the library's default
    max_corrupt: int = 0  # photos that may be broken; each is named and left out
    batch: int = 256  # photos or text rows embedded at a time
    candidate_block: int = 4096  # candidates on the device at a time
    cache_dir: str = ""  # of embeddings, "" for ~/.cache/jaxdefense (4 GiB at most a run), "none"
    # for nowhere
    seed: int = 0
    mesh: MeshConfig = MeshConfig()
    distributed: DistributedConfig = DistributedConfig()
    cache: CacheConfig = CacheConfig()

    def __post_init__(self):
        _not_negative(max_corrupt=self.max_corrupt, seed=self.seed)
        _positive(
            num_candidates=self.num_candidates,
            num_photos=self.num_photos,
            threshold=self.threshold,
            batch=self.batch,
            candidate_block=self.candidate_block,
        )
        if self.variants != ("all",):
            _each_of("variants", self.variants, VARIANTS, "; or 'all'")
            if (ALIAS in self.variants) != bool(self.aliases):
                raise InputError(
                    "`aliases` and the variant `alias` have an effect only together; give both."
                )
        if bool(self.names) != bool(self.before):
            raise InputError("`names` and `before` have an effect only together; give both.")

    def tried(self) -> tuple[str, ...]:
        """Name the variants to try; of all, `alias` with a file of them alone."""
        if self.variants != ("all",):
            return self.variants
        return tuple(name for name in VARIANTS if self.aliases or name != ALIAS)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """`jaxdefense evaluate`: what the defense changed, and what it kept."""

    out: str
    model: ModelConfig  # computed in float32 unless `model.dtype` says bfloat16
    teacher: str  # the model directory before the defense
    captions: str = ""  # for sim_clean, and with names for sim_target and sim_backdoor
    names: str = ""  # names file of the people removed
    target: str = "human"  # what their names came to mean
    images: str = ""  # clean photos: directory, .tar shards or tfds:; for image_sim_clean
    faces: str = ""  # photos of the people removed, for image_sim_backdoor; with image_target
    image_target: str = ""  # what they came to look like: people or .npy, as in `data.target`;
    # with people also for image_sim_target
    zeroshot: str = ""  # directory with a folder of photos a class, or a tfds: source
    class_names: str = ""  # file of lines KEY<tab>NAME, for folders or labels named by a key
    templates: str = ""  # file of prompts with {} for the class, "" for four plain ones
    collateral: str = ""  # file of people who must stay: how far they moved, and how far
    # namesakes of those in `names` and similar names did
    tfds_dir: str = ""  # where TFDS datasets are prepared, "" for the library's default
    num_captions: int = 10_000  # at most
    num_images: int = 10_000  # at most
    max_corrupt: int = 0  # photos that may be broken; each is named and left out
    batch: int = 256
    seed: int = 0
    mesh: MeshConfig = MeshConfig()
    distributed: DistributedConfig = DistributedConfig()
    cache: CacheConfig = CacheConfig()

    def __post_init__(self):
        _positive(num_captions=self.num_captions, num_images=self.num_images, batch=self.batch)
        _not_negative(max_corrupt=self.max_corrupt, seed=self.seed)
        if not (self.captions or self.images or self.faces or self.zeroshot or self.collateral):
            raise InputError(
                "nothing to evaluate: give `captions`, `images`, `faces`, `zeroshot` or "
                "`collateral`."
            )
        if self.names and not (self.captions or self.collateral):
            raise InputError("`names` has an effect only with `captions` or `collateral`.")
        if self.collateral and not self.names:
            raise InputError("`collateral` has an effect only with `names`; give both.")
        if bool(self.faces) != bool(self.image_target):
            raise InputError("`faces` and `image_target` have an effect only together; give both.")
        for name in ("class_names", "templates"):
            if getattr(self, name) and not self.zeroshot:
                raise InputError(f"`{name}` has an effect only with `zeroshot`; give both.")
        if not self.target.split():
            raise InputError("`target` must hold a word, such as 'human'.")


@dataclasses.dataclass(frozen=True)
class CellsConfig:
    """Which cells a sweep has: every number of people, with every seed and every `w_weight`.

    A sweep may be gone on with for more of each: what is there already stays.
    """

    num_identities: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    seeds: tuple[int, ...] = (0, 1, 2)  # of who is removed, and of the training
    w_weight: tuple[float, ...] = (0.001, 0.01)
    part: str = ""  # I/N, from 1: of N processes that share the cells, this is the I-th; "" for all
    keep_models: bool = False  # the defended model of every cell, and its checkpoints

    def __post_init__(self):
        for name in ("num_identities", "seeds", "w_weight"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise InputError(
                    f"`sweep.{name}` (={values}) must hold a value, and none of them twice."
                )
        _positive(**{"sweep.num_identities": min(self.num_identities)})
        _not_negative(**{"sweep.seeds": min(self.seeds), "sweep.w_weight": min(self.w_weight)})
        self.share()

    def share(self) -> tuple[int, int]:
        """Give which part of how many this is, from 0."""
        if not self.part:
            return 0, 1
        which, _, num = self.part.partition("/")
        if not (which.isdecimal() and num.isdecimal() and 1 <= int(which) <= int(num)):
            raise InputError(
                f"`sweep.part` (={self.part!r}) must be I/N, with I from 1 to N, such as 1/4."
            )
        return int(which) - 1, int(num)


@dataclasses.dataclass(frozen=True)
class SweepAttack:
    """The attack on every model of a sweep; see `AttackConfig`."""

    faces: str = ""  # of the people who may be removed, and others; "" for those trained on
    candidates: str = ""
    templates: str = ""
    num_candidates: int = 1000
    num_photos: int = 20
    threshold: int = 1
    max_corrupt: int = 0
    batch: int = 256
    seed: int = 0
    cache_dir: str = ""


@dataclasses.dataclass(frozen=True)
class SweepEvaluate:
    """What is measured of every model of a sweep; see `EvaluateConfig`."""

    clean: str = ""  # captions or photos that training does not see; "" for those it does
    zeroshot: str = ""
    class_names: str = ""
    templates: str = ""
    num_clean: int = 10_000
    max_corrupt: int = 0
    batch: int = 256
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class SweepTextConfig:
    """`jaxdefense sweep text`: defenses of one model, each attacked and evaluated."""

    out: str  # directory of the sweep
    model: ModelConfig  # `model.dtype` is of the training; what is measured is float32
    data: TextDataConfig  # names: of all who may be removed
    train: TextTrainConfig = TextTrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    attack: SweepAttack = SweepAttack()
    evaluate: SweepEvaluate = SweepEvaluate()
    sweep: CellsConfig = CellsConfig()
    mesh: MeshConfig = MeshConfig()
    cache: CacheConfig = CacheConfig()

    def __post_init__(self):
        _check_sweep(self)
        if not self.attack.faces:
            raise InputError("setting `attack.faces` is missing; give it by --faces, say.")


@dataclasses.dataclass(frozen=True)
class SweepImageConfig:
    """`jaxdefense sweep image`: defenses of one model, each attacked and evaluated."""

    out: str  # directory of the sweep
    model: ModelConfig  # `model.dtype` is of the training; what is measured is float32
    data: ImageDataConfig  # identities: of all who may be removed, "" for everyone in `faces`
    train: ImageTrainConfig = ImageTrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    attack: SweepAttack = SweepAttack()
    evaluate: SweepEvaluate = SweepEvaluate()
    sweep: CellsConfig = CellsConfig(w_weight=(0.0003, 0.005))
    mesh: MeshConfig = MeshConfig()
    cache: CacheConfig = CacheConfig()

    def __post_init__(self):
        _check_sweep(self)


def _check_sweep(cfg: SweepTextConfig | SweepImageConfig) -> None:
    """Raise InputError if a setting is given that every cell has its own value of."""
    paper = PAPER_TEXT if isinstance(cfg, SweepTextConfig) else PAPER_IMAGE
    for name, instead in (("seed", "seeds"), ("w_weight", "w_weight")):
        # That of the paper comes with its config file.
        fine = [getattr(x, name) for x in (type(cfg.train)(), paper)]
        if (value := getattr(cfg.train, name)) not in fine:
            raise InputError(
                f"`train.{name}` (={value}) has no effect in a sweep; set `sweep.{instead}`."
            )


@dataclasses.dataclass(frozen=True)
class AotConfig:
    """`jaxdefense bench aot`: the step of a defense, compiled for a TPU topology."""

    topology: str  # generation and shape: v5e:16x16, v5p:4x4x4
    arch: str  # one of `clip.presets.PRESETS`
    tower: Literal["text", "image"]
    batch: int = 128  # clean samples a step, and as many poisoned
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the computation
    remat: Remat = "none"
    caption_tokens: float = 13.6  # on average, both ends included; text alone. 13.6 is COCO's
    accumulate: int = 1  # parts a step is computed in, one in memory at a time
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self):
        _positive(batch=self.batch, accumulate=self.accumulate)
        if self.caption_tokens < 3:
            raise InputError(
                f"`caption_tokens` (={self.caption_tokens}) must be at least 3: a word, both ends."
            )


def load_config_file(path: str) -> dict[str, Any]:
    """Run a config file's `get_config()`.

    Returns:
        its values as plain nested dicts.

    Raises:
        InputError: no such file, it fails, or returns no ConfigDict.
    """
    spec = importlib.util.spec_from_file_location("jaxdefense_config", path)
    if spec is None or spec.loader is None or not os.path.isfile(path):
        raise InputError(f"config file `{path}` does not exist, or is not a .py file.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except (Exception, SystemExit) as error:  # whatever the user's file raises
        raise InputError(f"config file `{path}`: {type(error).__name__}: {error}.") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise InputError(f"config file `{path}`: get_config() must return a ConfigDict.")
    return config.to_dict()


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """Turn `a.b=1` strings into nested dicts; a value that is no Python literal is a string."""
    pairs = []
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise InputError(f"`--set {assignment}` must have the form key=value.")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        pairs.append((key, value))
    return nest(pairs)


def nest(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Turn dotted keys and their values into nested dicts.

    Raises:
        InputError: a key lies below one that has a value.
    """
    tree: dict[str, Any] = {}
    for key, value in pairs:
        at = tree
        *parents, last = key.split(".")
        for parent in parents:
            at = at.setdefault(parent, {})
            if not isinstance(at, dict):
                raise InputError(f"`{key}`: `{parent}` has been set to a value.")
        at[last] = value
    return tree


def merge(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """Lay nested dicts over one another, later ones on top."""
    out: dict[str, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            old = out.get(key)
            both = isinstance(old, Mapping) and isinstance(value, Mapping)
            out[key] = merge(old, value) if both else value  # pyright: ignore[reportArgumentType]
    return out


def build(kind: type[T], tree: Mapping[str, Any], at: str = "", default: T | None = None) -> T:
    """Fill a dataclass from nested dicts.

    Args:
        kind: of dataclass.
        tree: values by field.
        at: path of the section, for errors.
        default: where values come from that `tree` lacks, or None for the fields' own defaults.

    Raises:
        InputError: a key is unknown or missing, or a value of another type than its field.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    if unknown := [key for key in tree if key not in fields]:
        raise InputError(
            f"unknown setting `{at}{unknown[0]}`; {f'`{at[:-1]}` has' if at else 'there are'} "
            f"{', '.join(fields)}."
        )
    hints = typing.get_type_hints(kind)
    values = {}
    for name, field in fields.items():
        key, hint = at + name, hints[name]
        if dataclasses.is_dataclass(hint):
            part = tree.get(name, {})
            if not isinstance(part, Mapping):
                raise InputError(f"`{key}` (={part!r}) must be a section of settings.")
            whole = field.default if default is None else getattr(default, name)
            whole = None if whole is dataclasses.MISSING else whole
            values[name] = build(typing.cast(type, hint), part, key + ".", whole)
        elif name in tree:
            values[name] = _typed(tree[name], hint, key)
        elif default is not None:
            values[name] = getattr(default, name)
        elif field.default is dataclasses.MISSING:
            raise InputError(f"setting `{key}` is missing; give it by flag, --set or config file.")
    return kind(**values)


def _typed(value: Any, hint: Any, key: str) -> Any:
    if isinstance(hint, types.GenericAlias):  # tuple[int, ...]
        if isinstance(value, str) and hint.__args__[0] is str:  # by flag: a,b
            value = [part.strip() for part in value.split(",") if part.strip()]
        if not isinstance(value, list | tuple):
            raise InputError(f"`{key}` (={value!r}) must be a list.")
        return tuple(_typed(item, hint.__args__[0], key) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, Path):
        value = str(value)
    if hint is str and isinstance(value, int | float):  # a target that reads as a number
        return str(value)
    if typing.get_origin(hint) is typing.Literal:
        if value not in typing.get_args(hint):
            choices = ", ".join(map(repr, typing.get_args(hint)))
            raise InputError(f"`{key}` (={value!r}) must be one of {choices}.")
        return value
    if type(value) is not hint:
        raise InputError(f"`{key}` (={value!r}) must be of type {hint.__name__}.")
    if isinstance(value, str):
        refuse_address(value, key)
    return value


def to_dict(config: Any) -> dict[str, Any]:
    """Write a config as nested dicts of JSON values."""
    return dataclasses.asdict(config)


# Where and how a run is computed, not what: its results are the same but for rounding.
# Which cells a sweep has says nothing of what is in one.
_HOW = {"mesh", "distributed", "cache", "profile", "accumulate", "remat", "prefetch", "sweep"}


def what_is_computed(tree: Any) -> Any:
    """Leave out of a config, as nested dicts, what a run may be gone on with otherwise."""
    if not isinstance(tree, Mapping):
        return tree
    return {key: what_is_computed(value) for key, value in tree.items() if key not in _HOW}
