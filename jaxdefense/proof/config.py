"""Settings of `jaxdefense prove`."""

import dataclasses
from typing import NamedTuple

from jaxdefense.config import (
    CacheConfig,
    DistributedConfig,
    LogConfig,
    MeshConfig,
    ModelConfig,
)
from jaxdefense.errors import InputError
from jaxdefense.settings import (
    Model,
    Names,
    OwnPlace,
    Place,
    RunPlace,
    check_each_of,
    check_not_negative,
    check_positive,
    how,
    told,
)

PARTS = ("known", "gallery", "after", "optimise", "others")
FINETUNE, FINETUNE_PEOPLE, MERGE = "finetune", "finetune_people", "merge"
_MOST_NAMES = 1_890_000  # of `RandomNames`, less some that people here may have
_BITS = {"int8": 8, "int4": 4}


class After(NamedTuple):
    """What happens to the model afterwards: steps of training, bits, or a part of the original."""

    kind: str
    amount: float


@dataclasses.dataclass(frozen=True)
class ProveConfig:
    """`jaxdefense prove`: attacks on a defended model, and on what may become of it.

    What a run directory in `model.path` says of itself need not be given: `teacher`, `names`,
    `keep_names` and `unseen_by`.
    """

    out: RunPlace
    """Directory of the results."""
    model: ModelConfig
    faces: Place
    """Directory with a folder of photos a person, or tfds:NAME[/CONFIG][:SPLIT]."""
    teacher: Model = ""
    """Model before the defense: directory or id."""
    names: Place = ""
    """Names file of the people removed."""
    keep_names: Place = ""
    """Names file of people the defense was told to keep; they are told from the other others."""
    reference: Model = ""
    """Model of the same training without the people removed, directory or id, if there is one."""
    strangers: Place = ""
    """As `faces`, of people no model here ever saw: the level that removal is to reach."""
    unseen_by: Place = ""
    """Run directory of an image defense; the attacks skip the photos it trained on."""
    pairs: Place = ""
    """Directory of ordinary photos and captions.json: for fine-tuning and retrieval."""
    zeroshot: Place = ""
    """Directory with a folder of photos a class, or a tfds: source."""
    class_names: Place = ""
    """File of lines KEY<tab>NAME, for folders that are named by keys; or imagenet, whose wnids, and
    whose numbers 0 to 999, are recognised without."""
    labels: Place = ""
    """File of lines NAME<tab>LABEL, such as a job: those who share it with someone removed."""
    candidates: Place = ""
    """File of further candidate names; without it, random ones."""
    templates: Place = ""
    """File of prompts with {0} for the name; without it, the paper's 21."""
    parts: Names = PARTS
    """Parts of the proof: known, gallery, after, optimise, others."""
    after: Names = (
        "finetune:200",
        "finetune_people:200",
        "int8",
        "int4",
        "merge:0.25",
        "merge:0.5",
        "merge:0.75",
    )
    """What happens afterwards: finetune:STEPS, finetune_people:STEPS, int8, int4, merge:ALPHA."""
    finetune_lr: float = 1e-5
    """Constant learning rate of fine-tuning; small models move little at the default."""
    finetune_batch: int = 64
    """Pairs in a step of fine-tuning, at most."""
    num_candidates: int = 1000
    """Candidate names in all, the people's own included."""
    num_photos: int = 20
    """Photos a person, at most."""
    threshold: int = 1
    """Templates that must name the person for the attack to succeed."""
    num_search: int = 100_000
    """Random names among which the nearest to a person's photos is searched; at most 1,890,000."""
    num_optimised: int = 16
    """People of a group that attackers optimise for, at most."""
    draws: int = 20
    """Draws of equal galleries, over which a gallery's figures are averaged."""
    tfds_dir: Place = how("")
    """Directory of prepared TFDS datasets; without it, the library's default."""
    max_corrupt: int = how(0)
    """Photos that may be broken; the command names and skips each."""
    batch: int = how(256)
    """Photos or text rows embedded at a time."""
    candidate_block: int = how(4096)
    """Candidates on the device at a time."""
    cache_dir: OwnPlace = how("")
    """Directory of kept embeddings, "none" for none; without it, ~/.cache/jaxdefense."""
    seed: int = 0
    """Seed of all that is drawn."""
    mesh: MeshConfig = MeshConfig()
    distributed: DistributedConfig = DistributedConfig()
    cache: CacheConfig = CacheConfig()
    log: LogConfig = LogConfig()
    json: bool = told(False)
    """Print the result as one JSON object."""

    def __post_init__(self):
        check_not_negative(max_corrupt=self.max_corrupt, seed=self.seed)
        check_positive(
            finetune_lr=self.finetune_lr,
            num_candidates=self.num_candidates,
            num_photos=self.num_photos,
            threshold=self.threshold,
            num_search=self.num_search,
            draws=self.draws,
            batch=self.batch,
            candidate_block=self.candidate_block,
        )
        if self.num_search > _MOST_NAMES:
            raise InputError(
                f"`num_search` (={self.num_search}) must be at most {_MOST_NAMES:,}: there are no "
                "more random names."
            )
        if not self.parts:
            raise InputError(f"`parts` is empty; give some of {', '.join(PARTS)}.")
        check_each_of("parts", self.parts, PARTS)
        if self.finetune_batch < 2:
            raise InputError(
                f"`finetune_batch` (={self.finetune_batch}) must be at least 2: a batch compares "
                "its pairs."
            )
        if self.num_optimised < 2:
            raise InputError(
                f"`num_optimised` (={self.num_optimised}) must be at least 2: attackers tell "
                "people apart."
            )
        if self.class_names and not self.zeroshot:
            raise InputError("`class_names` has an effect only with `zeroshot`; give both.")
        if self.labels and "others" not in self.parts:
            raise InputError("`labels` has an effect only with the part `others`; give both.")
        self.afterwards()

    def afterwards(self) -> list[After]:
        """List what happens to the model afterwards.

        Raises:
            InputError: one is unknown, out of range, or given twice.
        """
        found = [_after(text) for text in self.after]
        kinds = [x.kind if x.kind in (FINETUNE, FINETUNE_PEOPLE) else x for x in found]
        if len(set(kinds)) < len(kinds):
            raise InputError(
                f"`after` (={', '.join(self.after)}) names one twice; keep one, and of each "
                "fine-tuning the longest, which shows the steps before it."
            )
        return found


def _after(text: str) -> After:
    """Read what happens to the model from a setting, such as merge:0.5."""
    if text in _BITS:
        return After("rounding", _BITS[text])
    kind, _, amount = text.partition(":")
    wrong = InputError(
        f"`after` (={text!r}) must be of finetune:STEPS, finetune_people:STEPS, int8, int4 and "
        "merge:ALPHA, with steps from 1 and a part of the original between 0 and 1; such as "
        "finetune:200 or merge:0.5."
    )
    try:
        number = float(amount)
    except ValueError as error:
        raise wrong from error
    if kind in (FINETUNE, FINETUNE_PEOPLE) and number >= 1 and number.is_integer():
        return After(kind, number)
    if kind == MERGE and 0 < number < 1:
        return After(kind, number)
    raise wrong
