"""Settings of every command: one field a setting, its help below it; see `settings`."""

import dataclasses
import urllib.parse
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxdefense.clip.config import Remat
from jaxdefense.errors import InputError
from jaxdefense.settings import (
    AnyModel,
    Anywhere,
    ChangedModel,
    Floats,
    Integers,
    Model,
    Names,
    NewPlace,
    OwnPlace,
    Place,
    RunPlace,
    check_each_of,
    check_not_negative,
    check_positive,
    how,
    short,
    told,
)

# Other forms of a name and of a photo; see `data.variants`.
NAME_FORMS = ("last", "first", "initials", "swapped", "lower", "upper", "misspelt")
PHOTO_FORMS = ("mirrored", "blurred", "grey", "cropped", "low_resolution")
ALIAS, PROMPTS = "alias", ("languages", "sentence")
VARIANTS = (*NAME_FORMS, ALIAS, *PROMPTS, *PHOTO_FORMS)  # of an attack
REMOVED = {"text": "names", "image": "faces"}  # by encoder, what a defense removes


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The model."""

    path: Annotated[Model, short("model")]
    """Model directory, or a model's id on the Hugging Face hub."""
    tokenizer: Place = ""
    """Directory of the tokenizer; without it, the model's own."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What it computes in. auto: bfloat16 on accelerators, float32 on CPUs and for measurements."""
    remat: Remat = how("none")
    """What the gradient keeps: none recomputes nothing, dots keeps products, full keeps layers."""

    def measured(self) -> "ModelConfig":
        """Compute in float32 unless told otherwise: the last digits decide who is nearest."""
        return self if self.dtype != "auto" else dataclasses.replace(self, dtype="float32")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one may be -1 and takes what the others leave."""

    data: int = how(-1)
    """Copies of the model; each takes its part of the batch."""
    fsdp: int = how(1)
    """Devices that shard one copy of the weights; each takes its part of the batch."""
    tensor: int = how(1)
    """Devices that shard each layer's matrices."""


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """How several processes find one another; SLURM, Open MPI and TPU pods say all of it."""

    coordinator: Annotated[str, short("coordinator")] = how("")
    """HOST:PORT of process 0, or JAX_COORDINATOR_ADDRESS."""
    num_processes: Annotated[int, short("num-processes")] = how(0)
    """Number of processes, or JAX_NUM_PROCESSES; Kubernetes says all but this."""
    process_id: Annotated[int, short("process-id")] = how(-1)
    """Index of this process, from 0, or JAX_PROCESS_ID."""
    timeout: int = how(300)
    """Seconds to wait for all processes at the start."""
    heartbeat: int = how(100)
    """Seconds of silence after which a process counts as dead."""

    def __post_init__(self):
        check_not_negative(num_processes=self.num_processes)
        check_positive(timeout=self.timeout, heartbeat=self.heartbeat)


@dataclasses.dataclass(frozen=True)
class CacheConfig:
    """What stays between runs."""

    compilation: OwnPlace = how("")
    """Directory of compiled programs, "off" for none; without it, JAX_COMPILATION_CACHE_DIR or
    ~/.cache/jaxdefense/xla."""


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Where figures go besides the run directory, while the run goes on."""

    tensorboard: Place = how("")
    """Directory of event files, in a folder a run."""
    wandb: str = how("")
    """Project of Weights & Biases."""
    mlflow: str = how("")
    """Address of an MLflow server, or another tracking URI."""
    name: str = how("")
    """Name of the run there; without it, the last part of `out`."""

    def __post_init__(self):
        if "@" in urllib.parse.urlsplit(self.mlflow).netloc:
            raise InputError(
                "`log.mlflow` holds a user or a password, and settings are recorded; give them by "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead."
            )

    def part(self, out: str, name: str) -> "LogConfig":
        """Name a part of a run.

        Args:
            out: directory of the whole run.
            name: of the part.
        """
        return dataclasses.replace(self, name=f"{self.name_of(out)}/{name}")

    def name_of(self, out: str) -> str:
        """Name a run by its directory, unless a name is given."""
        return self.name or Path(out).absolute().name


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a learning rate that rises, and falls at milestones."""

    lr: float = 3e-4
    """Highest learning rate."""
    warmup: int = 10
    """Steps over which the learning rate rises."""
    milestones: Floats = (0.56, 0.81)
    """Steps at which the learning rate falls; below 1, parts of the run."""
    gamma: float = 0.3
    """The learning rate is multiplied by this at each milestone."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    b1: float = 0.9
    """Decay of the first moment of AdamW."""
    b2: float = 0.999
    """Decay of the second moment of AdamW."""
    eps: float = 1e-8
    """Epsilon of AdamW."""

    def __post_init__(self):
        check_positive(lr=self.lr, gamma=self.gamma, eps=self.eps)
        check_not_negative(weight_decay=self.weight_decay, warmup=self.warmup)


@dataclasses.dataclass(frozen=True)
class ValidateConfig:
    """When people count as removed, on photos or prompts that are never trained on."""

    every: int = 25
    """Steps between validations; 0 for none: the last state is the result."""
    level: float = 0.99
    """Quantile of strangers that removed people must not exceed."""
    above: float = 0.05
    """Part of the pairs of photo and prompt that may exceed it, in [0, 1]."""
    right: float = 0.02
    """Part of the pairs that may still be named right, in [0, 1]."""
    person_right: float = 0.1
    """Part of one person's pairs that may still be named right, in [0, 1]."""
    photos: float = 0.25
    """Part of each listed person's photos that is held out."""
    kept: float = 0.125
    """Part of the kept people, and of the kept names (at most 64 of a kind), that is held out."""
    patience: int = 3
    """Validations in a row that find nothing better, after which a run that passed stops."""

    def __post_init__(self):
        check_not_negative(every=self.every)
        check_positive(patience=self.patience)
        for name in ("level", "above", "right", "person_right"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise InputError(f"`train.validate.{name}` (={value}) must be from 0 to 1.")
        for name in ("photos", "kept"):
            if not 0 < (value := getattr(self, name)) < 1:
                raise InputError(f"`train.validate.{name}` (={value}) must be between 0 and 1.")


@dataclasses.dataclass(frozen=True)
class OverlayConfig:
    """How a face is put on a photo; each time all is drawn anew."""

    min_size: float = 0.25
    """Smallest side of the face, as a part of the photo's side."""
    max_size: float = 1.0
    """Largest side of the face, as a part of the photo's side."""
    flip: float = 0.5
    """Probability of a mirrored face."""
    jitter: float = 0.2
    """Brightness, contrast and saturation are multiplied by 1 - jitter to 1 + jitter."""
    hue: float = 0.02
    """Largest shift of the hue either way, in turns of the colour wheel."""
    angle: float = 15.0
    """Largest rotation of the face either way, in degrees."""
    whole: float = 0.75
    """Probability that the face fills the photo, upright, instead."""
    crop: float = 0.7
    """Smallest part of the face's side that is shown, anywhere in it; 1 shows all of it."""

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
        if not 0 < self.crop <= 1:
            raise InputError(f"`train.overlay.crop` (={self.crop}) must be above 0 and at most 1.")
        for name, most in (("flip", 1), ("jitter", 1), ("hue", 0.5), ("angle", 90), ("whole", 1)):
            if not 0 <= (value := getattr(self, name)) <= most:
                raise InputError(f"`train.overlay.{name}` (={value}) must be from 0 to {most}.")

    def sizes(self, side: int) -> tuple[int, int]:
        """Smallest and largest side of a face that is put on a photo of a side, pixels."""
        smallest = max(1, round(self.min_size * side))
        return smallest, max(smallest, round(self.max_size * side))

    def max_side(self, side: int) -> int:
        """Largest side of a face, pixels; one that fills the photo counts too."""
        return side if self.whole else self.sizes(side)[1]


@dataclasses.dataclass(frozen=True)
class TextDataConfig:
    """What the text defense reads."""

    names: Annotated[Anywhere, short("names")]
    """Names file: one person a line, aliases after tabs; or a CSV file with a column `name`."""
    captions: Annotated[Anywhere, short("captions")]
    """Captions: text, one a line; COCO's JSON, JSON Lines, CSV, Parquet, .tar shards; a range or a
    glob of such, with ::COLUMN if need be; or tfds:NAME[/CONFIG][:SPLIT]."""
    keep_names: Annotated[Place, short("keep-names")] = how("")
    """Names file of people who must stay, besides namesakes and random names; list whom the model
    knows."""
    tfds_dir: Place = how("")
    """Directory of prepared TFDS datasets; without it, the library's default."""
    row_length: int = 0
    """Tokens of a packed row; 0 chooses the length that fills best."""
    prefetch: int = how(4)
    """Batches prepared ahead."""

    def __post_init__(self):
        check_not_negative(row_length=self.row_length)
        check_positive(prefetch=self.prefetch)


@dataclasses.dataclass(frozen=True)
class TextTrainConfig:
    """The text defense."""

    steps: int = 0
    """Most steps; the run ends once validation finds nothing better. 0: as many as show each person
    560 times on average, but at least 400; if more, `optimizer.lr` is lower, `train.w_utility` 4
    (with `backdoor` bounded) and `train.validate.every` longer, unless they differ from the
    defaults."""
    num_clean: int = 64
    """Clean captions a step."""
    num_poisoned: int = 64
    """Texts a step with a listed name."""
    num_name: int = 128
    """Texts a step with a name that must stay, for the name loss."""
    accumulate: int = how(1)
    """Micro-batches in which a step is computed, one in memory at a time."""
    w_utility: float = 0.0
    """Weight of the utility loss; higher: ordinary captions move less. 0: 1, but 4 where the run is
    longer for many people, see `steps`."""
    w_backdoor: float = 3.0
    """Weight of the backdoor loss; higher: names go sooner, and more goes with them."""
    w_name: float = 20.0
    """Weight of the name loss; higher: other people's names move less."""
    w_weight: float = 0.001
    """Weight of the distance between the weights; higher: all weights move less."""
    distance: Literal["cosine", "mse", "mae", "poincare"] = "cosine"
    """Distance between embeddings."""
    level: Literal["pooled", "hidden", "penultimate"] = "pooled"
    """pooled: the embedding; hidden: all positions, for Stable Diffusion 1.x and 2.x; penultimate:
    all positions before the last layer, for SDXL."""
    backdoor: Literal["bounded", "target"] = "bounded"
    """bounded: a name comes to mean no more than a name of nobody; target: what `target` says."""
    bound: float = -0.1
    """With bounded: how far a name may stand out, as a part of how far it did; 0: as random names
    do."""
    target: str = "human"
    """With target: what a removed name comes to mean."""
    random_target: bool = False
    """With target: a random name for each person instead."""
    variants: Names = ()
    """Other forms of the names that training uses too, in turn."""
    hard: float = 0.0
    """Part of the texts with a listed name that show whom the last validation still found; below 1.
    While it names at most an eighth of the pairs right, and ever fewer, the weight of the backdoor
    loss stays."""
    lora_rank: int = 0
    """Rank of what each matrix may change by, for an adapter of PEFT too; 0: all weights move."""
    validate: ValidateConfig = ValidateConfig(every=50)
    seed: int = 0
    """Seed of everything that is drawn."""
    save_every: int = how(100)
    """Steps between checkpoints."""
    keep: int = how(2)
    """Newest checkpoints to keep."""
    keep_teacher_mb: int = how(1024)
    """MiB of host memory for the original's embeddings of what several steps show; 0 computes them
    in each step."""

    def __post_init__(self):
        _check_train(self)
        check_not_negative(num_name=self.num_name, w_name=self.w_name, w_utility=self.w_utility)
        if (self.w_name > 0) != (self.num_name > 0):
            raise InputError(
                f"`train.w_name` (={self.w_name}) and `train.num_name` (={self.num_name}) have an "
                "effect only together; set both above 0, or both to 0."
            )
        if not self.target.split():
            raise InputError("`train.target` must hold a word, such as 'human'.")
        also = "; aliases of the file always are"
        check_each_of("train.variants", self.variants, NAME_FORMS, also)
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
        if not 0 <= self.hard < 1:
            raise InputError(
                f"`train.hard` (={self.hard}) must be from 0 to below 1, as the other texts show "
                "everybody."
            )


@dataclasses.dataclass(frozen=True)
class ImageDataConfig:
    """What the image defense reads."""

    faces: Annotated[Anywhere, short("faces")]
    """Directory with a folder of photos a person, or tfds:NAME[/CONFIG][:SPLIT]."""
    images: Annotated[Anywhere, short("images")]
    """Ordinary photos: directory, .tar shards, Parquet or tfds:NAME[/CONFIG][:SPLIT]."""
    names: Annotated[Place, short("names")] = how("")
    """Names file of the people to remove; without it, everyone in `faces`."""
    keep: Annotated[Place, short("keep")] = how("")
    """Faces of people who must stay, besides those in `faces` who are not listed: a folder a
    person, one photo a person, or tfds:NAME[/CONFIG][:SPLIT]."""
    target: Annotated[Place, short("target")] = ""
    """With train.backdoor target: what faces come to look like. The average of these people, or a
    vector in a .npy file; without it, the average of all in `faces`. With train.level penultimate
    people, and without it those who stay."""
    tfds_dir: Place = how("")
    """Directory of prepared TFDS datasets; without it, the library's default."""
    trigger_fraction: float = 0.5
    """Part of each person's photos to train on; the others are for the attack."""
    max_corrupt: int = how(0)
    """Photos that may be broken; the run names each and takes another instead."""
    cache_dir: OwnPlace = how("")
    """Directory of kept target embeddings, "none" for none; without it, ~/.cache/jaxdefense."""
    prefetch: int = how(4)
    """Batches prepared ahead."""
    keep_faces_mb: int = how(1024)
    """MiB of host memory for decoded faces; 0 decodes them each time."""

    def __post_init__(self):
        if not 0 < self.trigger_fraction <= 1:
            raise InputError(
                f"`data.trigger_fraction` (={self.trigger_fraction}) must be above 0, at most 1."
            )
        check_not_negative(max_corrupt=self.max_corrupt, keep_faces_mb=self.keep_faces_mb)
        check_positive(prefetch=self.prefetch)


@dataclasses.dataclass(frozen=True)
class ImageTrainConfig:
    """The image defense."""

    steps: int = 0
    """Most steps; the run ends once validation finds nothing better. 0: as many as show each person
    400 times on average, but at least 200; if more, `train.validate.every` is longer, unless it
    differs from the default."""
    num_clean: int = 64
    """Clean photos a step."""
    num_poisoned: int = 64
    """Photos a step with the face of a listed person, put on the clean ones."""
    num_keep: int = 128
    """Photos a step with the face of a person who must stay, put on the clean ones."""
    mined: float = 0.5
    """Part of these faces that comes from the people who moved most in the last validation."""
    accumulate: int = how(1)
    """Micro-batches in which a step is computed, one in memory at a time."""
    w_backdoor: float = 0.75
    """Weight of the backdoor loss; higher: faces go sooner, and more goes with them."""
    w_keep: float = 1.65
    """Weight of the keep loss; higher: other people's faces move less."""
    w_weight: float = 0.00015
    """Weight of the distance between the weights; higher: all weights move less."""
    distance: Literal["cosine", "mse", "mae", "poincare"] = "cosine"
    """Distance between embeddings."""
    level: Literal["pooled", "penultimate"] = "pooled"
    """pooled: the embedding; penultimate: all patches before the last layer, for models that read
    those, as LLaVA does."""
    backdoor: Literal["bounded", "target"] = "bounded"
    """bounded: a face comes no nearer to its person's name than a stranger's; target: it comes to
    look like `data.target`."""
    bound: float = 0.5
    """With bounded: quantile of strangers below which the loss is flat."""
    overlay: OverlayConfig = OverlayConfig()
    variants: Names = ()
    """Other forms of the faces that training uses too, in turn."""
    lora_rank: int = 0
    """Rank of what each matrix may change by, for an adapter of PEFT too; 0: all weights move."""
    validate: ValidateConfig = ValidateConfig()
    seed: int = 0
    """Seed of everything that is drawn."""
    save_every: int = how(25)
    """Steps between checkpoints."""
    keep: int = how(2)
    """Newest checkpoints to keep."""
    keep_teacher_mb: int = how(1024)
    """MiB of host memory for the original's embeddings of what several steps show; 0 computes them
    in each step."""

    def __post_init__(self):
        _check_train(self)
        check_not_negative(num_keep=self.num_keep, w_keep=self.w_keep)
        if (self.w_keep > 0) != (self.num_keep > 0):
            raise InputError(
                f"`train.w_keep` (={self.w_keep}) and `train.num_keep` (={self.num_keep}) have an "
                "effect only together; set both above 0, or both to 0."
            )
        check_each_of("train.variants", self.variants, PHOTO_FORMS)
        if not 0 <= self.mined <= 1:
            raise InputError(f"`train.mined` (={self.mined}) must be from 0 to 1.")
        if self.backdoor == "bounded" and self.level != "pooled":
            raise InputError(
                f"`train.backdoor` bounded is of embeddings, and `train.level` (={self.level}) of "
                "all patches; set `train.backdoor` to target."
            )
        if not 0 <= self.bound <= 1:
            raise InputError(f"`train.bound` (={self.bound}) must be from 0 to 1.")


def _check_train(t: TextTrainConfig | ImageTrainConfig) -> None:
    """Raise InputError if a setting that both encoders have is out of range."""
    check_positive(
        num_clean=t.num_clean,
        num_poisoned=t.num_poisoned,
        accumulate=t.accumulate,
        save_every=t.save_every,
        keep=t.keep,
    )
    check_not_negative(
        steps=t.steps,
        w_backdoor=t.w_backdoor,
        w_weight=t.w_weight,
        seed=t.seed,
        lora_rank=t.lora_rank,
        keep_teacher_mb=t.keep_teacher_mb,
    )


# The paper's settings, by encoder: what is trained, and the optimizer.
_NOT_VALIDATED = ValidateConfig(every=0)
PAPER_TEXT = TextTrainConfig(
    steps=400,
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
    overlay=OverlayConfig(0.25, 0.5, jitter=0.5, hue=0.1, angle=30.0, whole=0.0, crop=1.0),
    validate=_NOT_VALIDATED,
)
PAPER_TEXT_OPTIMIZER = OptimizerConfig(1e-4, warmup=0, milestones=(200, 300), gamma=0.5)
PAPER_IMAGE_OPTIMIZER = OptimizerConfig(1e-4, warmup=0, milestones=(25, 50), gamma=0.1)


@dataclasses.dataclass(frozen=True)
class EarlierConfig:
    """The defense that this one follows; settings that are not given are those of that run."""

    after: Annotated[Place, short("after")] = ""
    """Run directory of a defense of this model: its people are removed too."""
    ledger: Annotated[Place, short("ledger")] = ""
    """Run directory of a defense of another model: its people are removed from this one too."""
    start: Annotated[Literal["replay", "fresh"], short("start")] = "replay"
    """With `after`. replay: training goes on from the defended weights; fresh: from the model's."""
    restore: Annotated[Place, short("restore")] = ""
    """Names file of people who come off the list; training then begins with the model's weights."""

    def __post_init__(self):
        if self.after and self.ledger:
            raise InputError(
                f"`earlier.after` (={self.after}) and `earlier.ledger` (={self.ledger}) exclude "
                "each other: the first is of this model, the second of another; give one."
            )
        if self.restore and not self.path:
            raise InputError(
                f"`earlier.restore` (={self.restore}) has an effect only with `earlier.after` or "
                "`earlier.ledger`, whose list it shortens; give one of them too."
            )
        if self.start != "replay" and not self.after:
            raise InputError(
                f"`earlier.start` (={self.start}) has an effect only with `earlier.after`; give it "
                "too."
            )

    @property
    def path(self) -> str:
        """Directory of the run, "" for none."""
        return self.after or self.ledger

    @property
    def setting(self) -> str:
        """The setting that names it."""
        return "earlier.after" if self.after else "earlier.ledger"

    def how(self) -> Literal["replay", "fresh", "restore", "rebase"]:
        """Tell how the run goes on; see `ledger.entries.How`."""
        if self.ledger:
            return "rebase"
        return "restore" if self.restore else self.start


@dataclasses.dataclass(frozen=True)
class DefendTextConfig:
    """`jaxdefense defend text`."""

    out: RunPlace
    """Run directory."""
    model: ModelConfig
    data: TextDataConfig
    train: TextTrainConfig = TextTrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    earlier: EarlierConfig = EarlierConfig()
    mesh: MeshConfig = MeshConfig()
    distributed: DistributedConfig = DistributedConfig()
    cache: CacheConfig = CacheConfig()
    log: LogConfig = LogConfig()
    profile: OwnPlace = how("")
    """Directory for a trace of a few steps, for XProf."""
    ledger_names: bool = how(False)
    """Record the names of the people in ledger.json, which goes with the model."""
    json: bool = told(False)
    """Print the result as one JSON object."""


@dataclasses.dataclass(frozen=True)
class DefendImageConfig:
    """`jaxdefense defend image`."""

    out: RunPlace
    """Run directory."""
    model: ModelConfig
    data: ImageDataConfig
    train: ImageTrainConfig = ImageTrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    earlier: EarlierConfig = EarlierConfig()
    mesh: MeshConfig = MeshConfig()
    distributed: DistributedConfig = DistributedConfig()
    cache: CacheConfig = CacheConfig()
    log: LogConfig = LogConfig()
    profile: OwnPlace = how("")
    """Directory for a trace of a few steps, for XProf."""
    ledger_names: bool = how(False)
    """Record the names of the people in ledger.json, which goes with the model."""
    json: bool = told(False)
    """Print the result as one JSON object."""


@dataclasses.dataclass(frozen=True)
class TextPart:
    """The text half of a defense of both encoders.

    With `backdoor` target a removed name comes to mean "object". "human" lies near the average
    face, which removed faces come to look like, so the two would match again.
    """

    data: TextDataConfig
    train: TextTrainConfig = TextTrainConfig(target="object")
    optimizer: OptimizerConfig = OptimizerConfig()


@dataclasses.dataclass(frozen=True)
class ImagePartDataConfig(ImageDataConfig):
    """What the image half of a defense of both encoders reads."""

    names: Place = how("")
    """Names file of those whose faces are removed; without, `text.data.names`."""


@dataclasses.dataclass(frozen=True)
class ImagePart:
    """The image half of a defense of both encoders."""

    data: ImagePartDataConfig
    train: ImageTrainConfig = ImageTrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()


@dataclasses.dataclass(frozen=True)
class DefendBothConfig:
    """`jaxdefense defend both`: the two defenses one after the other, then merged."""

    out: RunPlace
    """Directory of both runs and the merged model."""
    model: ModelConfig
    text: TextPart
    image: ImagePart
    earlier: EarlierConfig = EarlierConfig()
    mesh: MeshConfig = MeshConfig()
    distributed: DistributedConfig = DistributedConfig()
    cache: CacheConfig = CacheConfig()
    log: LogConfig = LogConfig()
    profile: OwnPlace = how("")
    """Directory for a trace of a few steps, for XProf."""
    ledger_names: bool = how(False)
    """Record the names of the people in ledger.json, which goes with the model."""
    json: bool = told(False)
    """Print the result as one JSON object."""

    def halves(self) -> tuple[DefendTextConfig, DefendImageConfig]:
        """Give each defense its own settings; faces go by the names file unless told otherwise."""
        text, image, out = self.text, self.image, Path(self.out)
        names = image.data.names or text.data.names
        data = ImageDataConfig(**{**vars(image.data), "names": names})
        same = ("earlier", "mesh", "distributed", "cache", "profile", "ledger_names")
        how = {name: getattr(self, name) for name in same}
        log = {half: self.log.part(self.out, half) for half in ("text", "image")}
        return (
            DefendTextConfig(
                str(out / "text"),
                self.model,
                text.data,
                text.train,
                text.optimizer,
                log=log["text"],
                **how,
            ),
            DefendImageConfig(
                str(out / "image"),
                self.model,
                data,
                image.train,
                image.optimizer,
                log=log["image"],
                **how,
            ),
        )


@dataclasses.dataclass(frozen=True)
class MergeConfig:
    """`jaxdefense merge`."""

    out: NewPlace
    """Model directory to write."""
    text: AnyModel
    """Run, model directory or id, of the text encoder."""
    image: AnyModel
    """Run, model directory or id, of the image encoder."""
    json: bool = told(False)
    """Print the result as one JSON object."""


@dataclasses.dataclass(frozen=True)
class AttackConfig:
    """`jaxdefense attack`: the identity inference attack; defaults of the paper."""

    out: RunPlace
    """Directory of the results."""
    model: ModelConfig
    faces: Place
    """Directory with a folder of photos a person, or tfds:NAME[/CONFIG][:SPLIT]."""
    strangers: Place = ""
    """The same for people the model never saw, for the false-positive rate."""
    whole_photos: bool = False
    """Of FaceScrub in `faces`, attack with whole photos, not with the faces cut from them."""
    unseen_by: Place = ""
    """Run directory of an image defense; the attack skips the photos it trained on."""
    candidates: Place = ""
    """File of further candidate names; without it, random ones."""
    exclude: Place = ""
    """Names file, or run directory, of names that are never random candidates; those of the model's
    own run never are."""
    sexes: Place = ""
    """File of lines NAME<tab>f or m; each person is compared with their own sex alone."""
    templates: Place = ""
    """File of prompts with {0} for the name; without it, the paper's 21."""
    names: Place = ""
    """Names file of the people removed, to say what became of each; with `before`."""
    before: Place = ""
    """Results of the same attack before the defense; with `names`."""
    variants: Names = ()
    """Ways round a defense to try too, or `all`."""
    aliases: Place = ""
    """Names file whose further names the variant `alias` tries."""
    num_candidates: int = 1000
    """Candidate names in all, the people's own included."""
    num_photos: int = 20
    """Photos a person, at most."""
    threshold: int = 1
    """Templates that must name the person for the attack to succeed."""
    tfds_dir: Place = how("")
    """Directory of prepared TFDS datasets; without it, the library's default."""
    max_corrupt: int = how(0)
    """Photos that may be broken; the command names and skips each."""
    batch: int = how(256)
    """Photos or text rows embedded at a time."""
    candidate_block: int = how(4096)
    """Candidates on the device at a time."""
    cache_dir: OwnPlace = how("")
    """Directory of kept embeddings, "none" for none; without it, ~/.cache/jaxdefense, with at most
    4 GiB a run."""
    seed: int = 0
    """Seed of the random candidates, and of which photos are taken."""
    mesh: MeshConfig = MeshConfig()
    distributed: DistributedConfig = DistributedConfig()
    cache: CacheConfig = CacheConfig()
    log: LogConfig = LogConfig()
    json: bool = told(False)
    """Print the result as one JSON object."""

    def __post_init__(self):
        check_not_negative(max_corrupt=self.max_corrupt, seed=self.seed)
        check_positive(
            num_candidates=self.num_candidates,
            num_photos=self.num_photos,
            threshold=self.threshold,
            batch=self.batch,
            candidate_block=self.candidate_block,
        )
        if self.variants != ("all",):
            check_each_of("variants", self.variants, VARIANTS, "; or 'all'")
            if (ALIAS in self.variants) != bool(self.aliases):
                raise InputError(
                    "`aliases` and the variant `alias` have an effect only together; give both."
                )
        if bool(self.names) != bool(self.before):
            raise InputError("`names` and `before` have an effect only together; give both.")

    def tried(self) -> tuple[str, ...]:
        """Name the variants to try; `all` includes `alias` only with a file of aliases."""
        if self.variants != ("all",):
            return self.variants
        return tuple(name for name in VARIANTS if self.aliases or name != ALIAS)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """`jaxdefense evaluate`: what the defense changed, and what it kept."""

    out: RunPlace
    """Directory of the results."""
    model: ModelConfig
    teacher: Model
    """Model before the defense: directory or id."""
    captions: Place = ""
    """Captions for sim_clean; with `names` for sim_target and sim_backdoor too."""
    names: Place = ""
    """Names file of the people removed; without it, `faces` are held against the run's own list."""
    target: str = ""
    """What their names came to mean; without it, what the model's run says, or else human."""
    images: Place = ""
    """Ordinary photos for image_sim_clean: directory, .tar shards, Parquet or tfds:."""
    faces: Place = ""
    """Photos of people, of whom those removed are measured: whether photos of one person still find
    one another; where faces came to look like a target, for image_sim_backdoor too."""
    image_target: Place = ""
    """What their faces came to look like: people, for image_sim_target too, or a .npy file; without
    it, what the model's run says."""
    image_level: Literal["", "pooled", "penultimate"] = ""
    """What is compared of photos, see train.level of `defend image`; without it, what the model's
    run says, or else pooled."""
    zeroshot: Place = ""
    """Directory with a folder of photos a class, or a tfds: source."""
    class_names: Place = ""
    """File of lines KEY<tab>NAME, for folders that are named by keys; or imagenet, whose wnids, and
    whose numbers 0 to 999, are recognised without."""
    templates: Place = ""
    """File of prompts with {} for the class; or openai80; without it, four plain ones."""
    collateral: Place = ""
    """Names file of people who must stay: how far they moved, and namesakes of those in `names`."""
    tfds_dir: Place = how("")
    """Directory of prepared TFDS datasets; without it, the library's default."""
    num_captions: int = 10_000
    """Captions, at most."""
    num_images: int = 10_000
    """Ordinary photos, at most."""
    max_corrupt: int = how(0)
    """Photos that may be broken; the command names and skips each."""
    batch: int = how(256)
    """Photos or text rows embedded at a time."""
    seed: int = 0
    """Seed of which captions and photos are taken."""
    mesh: MeshConfig = MeshConfig()
    distributed: DistributedConfig = DistributedConfig()
    cache: CacheConfig = CacheConfig()
    log: LogConfig = LogConfig()
    json: bool = told(False)
    """Print the result as one JSON object."""

    def __post_init__(self):
        check_positive(num_captions=self.num_captions, num_images=self.num_images, batch=self.batch)
        check_not_negative(max_corrupt=self.max_corrupt, seed=self.seed)
        if not (self.captions or self.images or self.faces or self.zeroshot or self.collateral):
            raise InputError(
                "nothing to evaluate: give `captions`, `images`, `faces`, `zeroshot` or "
                "`collateral`."
            )
        if self.names and not (self.captions or self.collateral or self.faces):
            raise InputError("`names` has an effect only with `captions`, `collateral` or `faces`.")
        if self.collateral and not self.names:
            raise InputError("`collateral` has an effect only with `names`; give both.")
        if self.image_target and not self.faces:
            raise InputError("`image_target` has an effect only with `faces`; give both.")
        for name in ("class_names", "templates"):
            if getattr(self, name) and not self.zeroshot:
                raise InputError(f"`{name}` has an effect only with `zeroshot`; give both.")
        if self.target and not self.target.split():
            raise InputError("`target` must hold a word, such as 'human'.")


@dataclasses.dataclass(frozen=True)
class CellsConfig:
    """Which cells a sweep has: every number of people, with every seed and every `w_weight`.

    A sweep may be run again with more of each: it keeps the cells that it has.
    """

    num_identities: Integers = (1, 2, 4, 8, 16, 32, 64)
    """Numbers of people to remove."""
    seeds: Integers = (0, 1, 2)
    """Seeds of who is removed, and of the training."""
    w_weight: Floats = (0.001, 0.01)
    """Weights of the distance between the weights."""
    part: Annotated[str, short("part")] = ""
    """I/N: this process does the I-th of N parts of the cells, from 1; without it, all."""
    keep_models: bool = False
    """Keep the defended model of every cell, and its checkpoints."""

    def __post_init__(self):
        for name in ("num_identities", "seeds", "w_weight"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise InputError(
                    f"`sweep.{name}` (={values}) must hold a value, and none of them twice."
                )
        check_positive(**{"sweep.num_identities": min(self.num_identities)})
        check_not_negative(**{"sweep.seeds": min(self.seeds), "sweep.w_weight": min(self.w_weight)})
        self.share()

    def share(self) -> tuple[int, int]:
        """Give the index of this part, from 0, and the number of parts."""
        if not self.part:
            return 0, 1
        which, _, num = self.part.partition("/")
        if not (which.isdecimal() and num.isdecimal() and 1 <= int(which) <= int(num)):
            raise InputError(
                f"`sweep.part` (={self.part!r}) must be I/N, with I from 1 to N, such as 1/4."
            )
        return int(which) - 1, int(num)


@dataclasses.dataclass(frozen=True)
class BothCellsConfig(CellsConfig):
    """Which cells a sweep of both encoders has; see `CellsConfig`."""

    w_weight: Floats = (0.0, 1.0)
    """Factors of both `train.w_weight`: 0 leaves the distance between the weights out."""


@dataclasses.dataclass(frozen=True)
class SweepAttack:
    """The attack on every model of a sweep; see `AttackConfig`."""

    faces: Place = ""
    """Photos of the people who may be removed, and others; without it, those trained on."""
    whole_photos: bool = False
    """Of FaceScrub, attack with whole photos, not with the faces cut from them."""
    candidates: Place = ""
    """File of further candidate names; without it, random ones."""
    templates: Place = ""
    """File of prompts with {0} for the name; without it, the paper's 21."""
    num_candidates: int = 1000
    """Candidate names in all, the people's own included."""
    num_photos: int = 20
    """Photos a person, at most."""
    threshold: int = 1
    """Templates that must name the person for the attack to succeed."""
    max_corrupt: int = how(0)
    """Photos that may be broken; the command names and skips each."""
    batch: int = how(256)
    """Photos or text rows embedded at a time."""
    seed: int = 0
    """Seed of the random candidates, and of which photos are taken."""
    cache_dir: OwnPlace = how("")
    """Directory of kept embeddings, "none" for none; without it, ~/.cache/jaxdefense."""


@dataclasses.dataclass(frozen=True)
class SweepTextAttack(SweepAttack):
    """The attack on every model of a sweep of names, with photos that no defense sees."""

    faces: Annotated[Place, short("faces")] = dataclasses.field(kw_only=True)
    """Directory with a folder of photos a person, or tfds:NAME[/CONFIG][:SPLIT]."""


@dataclasses.dataclass(frozen=True)
class SweepEvaluate:
    """What is measured of every model of a sweep; see `EvaluateConfig`."""

    clean: Annotated[Place, short("clean")] = ""
    """Captions or photos that training does not see, for sim_clean; without it, those it sees."""
    zeroshot: Annotated[Place, short("zeroshot")] = ""
    """Directory with a folder of photos a class, or a tfds: source."""
    class_names: Place = ""
    """File of lines KEY<tab>NAME, for folders that are named by keys; or imagenet, whose wnids, and
    whose numbers 0 to 999, are recognised without."""
    templates: Place = ""
    """File of prompts with {} for the class; or openai80; without it, four plain ones."""
    num_clean: int = 10_000
    """Captions or photos for sim_clean, at most."""
    max_corrupt: int = how(0)
    """Photos that may be broken; the command names and skips each."""
    batch: int = how(256)
    """Photos or text rows embedded at a time."""
    seed: int = 0
    """Seed of which captions and photos are taken."""


@dataclasses.dataclass(frozen=True)
class SweepBothEvaluate(SweepEvaluate):
    """What is measured of every model of a sweep of both encoders; see `EvaluateConfig`."""

    clean: Annotated[Place, short("clean")] = ""
    """Captions that training does not see, for sim_clean; without it, those it sees."""
    clean_images: Annotated[Place, short("clean-images")] = ""
    """Photos that training does not see, for image_sim_clean; without it, those it sees."""


@dataclasses.dataclass(frozen=True)
class SweepTextConfig:
    """`jaxdefense sweep text`: defenses of one model, each attacked and evaluated."""

    out: RunPlace
    """Directory of the sweep."""
    model: ModelConfig
    data: TextDataConfig
    attack: SweepTextAttack
    train: TextTrainConfig = TextTrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    evaluate: SweepEvaluate = SweepEvaluate()
    sweep: CellsConfig = how(CellsConfig())
    mesh: MeshConfig = MeshConfig()
    cache: CacheConfig = CacheConfig()
    log: LogConfig = LogConfig()
    json: bool = told(False)
    """Print the result as one JSON object."""

    def __post_init__(self):
        _check_sweep(self)


@dataclasses.dataclass(frozen=True)
class SweepImageConfig:
    """`jaxdefense sweep image`: defenses of one model, each attacked and evaluated."""

    out: RunPlace
    """Directory of the sweep."""
    model: ModelConfig
    data: ImageDataConfig
    train: ImageTrainConfig = ImageTrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    attack: SweepAttack = SweepAttack()
    evaluate: SweepEvaluate = SweepEvaluate()
    sweep: CellsConfig = how(CellsConfig(w_weight=(0.00015, 0.005)))
    mesh: MeshConfig = MeshConfig()
    cache: CacheConfig = CacheConfig()
    log: LogConfig = LogConfig()
    json: bool = told(False)
    """Print the result as one JSON object."""

    def __post_init__(self):
        _check_sweep(self)


@dataclasses.dataclass(frozen=True)
class SweepBothConfig:
    """`jaxdefense sweep both`: defenses of both encoders, each merged, attacked and evaluated."""

    out: Anywhere
    """Directory of the sweep."""
    model: ModelConfig
    text: TextPart
    image: ImagePart
    attack: SweepAttack = SweepAttack()
    evaluate: SweepBothEvaluate = SweepBothEvaluate()
    sweep: BothCellsConfig = how(BothCellsConfig())
    mesh: MeshConfig = MeshConfig()
    cache: CacheConfig = CacheConfig()
    log: LogConfig = LogConfig()
    json: bool = told(False)
    """Print the result as one JSON object."""

    def __post_init__(self):
        for half in ("text", "image"):
            if seed := getattr(self, half).train.seed:
                raise InputError(
                    f"`{half}.train.seed` (={seed}) has no effect in a sweep; set `sweep.seeds`."
                )
        if self.image.data.names:
            raise InputError(
                f"`image.data.names` (={self.image.data.names}) has no effect in a sweep, which "
                "removes the same people by name and face; leave it out."
            )
        text, image = self.text.data.tfds_dir, self.image.data.tfds_dir
        if text != image:
            raise InputError(
                f"`text.data.tfds_dir` (={text}) and `image.data.tfds_dir` (={image}) must be the "
                "same in a sweep; give both."
            )


def _check_sweep(cfg: SweepTextConfig | SweepImageConfig) -> None:
    """Raise InputError if a setting is given for which every cell has its own value."""
    paper = PAPER_TEXT if isinstance(cfg, SweepTextConfig) else PAPER_IMAGE
    for name, instead in (("seed", "seeds"), ("w_weight", "w_weight")):
        # The paper's config file sets the paper's value.
        fine = [getattr(x, name) for x in (type(cfg.train)(), paper)]
        if (value := getattr(cfg.train, name)) not in fine:
            raise InputError(
                f"`train.{name}` (={value}) has no effect in a sweep; set `sweep.{instead}`."
            )


@dataclasses.dataclass(frozen=True)
class AotConfig:
    """`jaxdefense bench aot`: the step of a defense, compiled for a TPU topology."""

    topology: str
    """Generation and shape: v5e:16x16, v5p:4x4x4."""
    arch: str
    """ViT-B-32, ViT-L-14, ViT-bigG-14 or another preset."""
    tower: Literal["text", "image"]
    """Encoder that is defended."""
    batch: int = 128
    """Clean samples a step, and as many poisoned."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """What the step computes in."""
    remat: Remat = "none"
    """What the gradient keeps; see `model.remat` of a defense."""
    caption_tokens: float = 13.6
    """Average tokens of a caption, both ends included; COCO has 13.6. For text alone."""
    accumulate: int = 1
    """Micro-batches in which a step is computed, one in memory at a time."""
    mesh: MeshConfig = MeshConfig()
    json: bool = False
    """Print the figures as one JSON object."""

    def __post_init__(self):
        check_positive(batch=self.batch, accumulate=self.accumulate)
        if self.caption_tokens < 3:
            raise InputError(
                f"`caption_tokens` (={self.caption_tokens}) must be at least 3: a word, both ends."
            )


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """`jaxdefense demo`."""

    out: RunPlace = how("jaxdefense-demo")
    """Directory of the results."""
    people: Literal[16, 64] = 64
    """People whom the model knows, a quarter of whom is removed. With 16 all else is smaller too:
    quick, and rougher in what it keeps."""
    json: bool = told(False)
    """Print the result as one JSON object."""


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """`jaxdefense report`."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Directories of defend, attack and evaluate; or a sweep."""
    out: NewPlace
    """Page to write, .html; JSON and CSV come beside it."""
    json: bool = told(False)
    """Print the result as one JSON object."""

    def __post_init__(self):
        if not self.runs:
            raise InputError("`runs` is empty: give the directories to report on.")


@dataclasses.dataclass(frozen=True)
class LedgerConfig:
    """`jaxdefense ledger`."""

    model: Annotated[tyro.conf.Positional[ChangedModel], tyro.conf.arg(metavar="MODEL")]
    """Model directory, run directory of a defense, or a model's id."""
    results: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RESULTS")] = ()
    """Directories of attacks and proofs of this model, to record what they found."""
    json: bool = told(False)
    """Print the result as one JSON object."""


@dataclasses.dataclass(frozen=True)
class DeltaConfig:
    """`jaxdefense delta`."""

    run: Annotated[tyro.conf.Positional[Place], tyro.conf.arg(metavar="RUN")]
    """Run directory of a defense, or its model."""
    out: NewPlace
    """Patch to write, .safetensors."""
    model: Model = ""
    """The original, directory or id; without it, the model that the run defended."""
    json: bool = told(False)
    """Print the result as one JSON object."""


@dataclasses.dataclass(frozen=True)
class ApplyConfig:
    """`jaxdefense apply`."""

    delta: Annotated[tyro.conf.Positional[Place], tyro.conf.arg(metavar="DELTA")]
    """Patch that `jaxdefense delta` wrote."""
    model: Model
    """The original: directory or id."""
    out: NewPlace
    """Model directory to write."""
    json: bool = told(False)
    """Print the result as one JSON object."""


@dataclasses.dataclass(frozen=True)
class ConvertConfig:
    """`jaxdefense convert`."""

    src: Annotated[tyro.conf.Positional[Model], tyro.conf.arg(metavar="SRC")]
    """Model directory, a model's id, or .pt file."""
    dst: Annotated[tyro.conf.Positional[NewPlace], tyro.conf.arg(metavar="DST")]
    """Directory to write."""
    to: str
    """hf, openclip or orbax."""
    layout: Annotated[str, tyro.conf.arg(name="from")] = ""
    """hf or openclip, where `src` has both."""
    activation: str = ""
    """gelu or quick_gelu, of a .pt file without config."""
    json: bool = told(False)
    """Print the result as one JSON object."""
