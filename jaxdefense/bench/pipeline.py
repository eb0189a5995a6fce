"""`jaxdefense bench pipeline`: whether the host makes batches faster than the device takes them.

Batches are made as in a run, read ahead; the device takes steps with a batch that it has already.
Each has the machine for itself while it is timed. Beside it PyTorch's DataLoader makes the same
from the same files, strings tokenised and photos read one by one in worker processes. Faces are put
on photos by our step and by no DataLoader: here neither does it.
"""

from functools import partial
from typing import Any

from rich.console import Console

from jaxdefense.bench.image import OurImage, image_work
from jaxdefense.bench.side_by_side import (
    OURS,
    TORCH,
    Field,
    check_counts,
    num_cores,
    rounded,
    side_by_side,
    with_torch,
)
from jaxdefense.bench.text import OurText, text_work
from jaxdefense.bench.theirs_loader import ImageLoader, TextLoader
from jaxdefense.config import PAPER_TEXT
from jaxdefense.errors import InputError

_DEVICE = "device"


def bench_pipeline(
    size: str,
    num: int,
    people: int,
    rounds: int,
    calls: int,
    captions: str,
    tokenizer: str,
    images: str,
    faces: str,
    workers: int,
    console: Console,
) -> dict[str, Any]:
    """Time what makes batches and what takes them.

    Args:
        size: of the encoders, one of `PRESETS`, with random weights.
        num: clean samples a batch, and as many poisoned.
        people: whose names are put in.
        rounds, calls: see `side_by_side`.
        captions, tokenizer: see `bench_text`.
        images, faces: see `bench_image`.
        workers: of the DataLoader; 0 for as many as there are cores.
        console: for progress.

    Returns:
        machine, and for `text` and `image`: samples/s that the host makes and the device takes;
        `made_per_taken` and `made_per_torch`, medians over the rounds, with their ranges (least and
        most); `peak_memory_mb`, of torch without the workers'.

    Raises:
        InputError: a flag is out of range, or a file cannot be read.
    """
    check_counts(rounds=rounds, calls=calls)
    if workers < 0:
        raise InputError(f"`--workers` (={workers}) must be at least 0.")
    workers = workers or num_cores()
    text = text_work(size, num, people, captions, tokenizer)
    out: dict[str, Any] = {}
    with image_work(size, num, images, faces) as image:
        given = text.texts, text.names, PAPER_TEXT.target, text.tokenizer
        side = image.cfg.image_size
        for what, ours, theirs in (
            (
                "text",
                partial(OurText, size, text),
                partial(TextLoader, num, workers, *given, text.cfg.context_length),
            ),
            (
                "image",
                partial(OurImage, size, image),
                partial(ImageLoader, num, workers, image.clean, image.files(), side),
            ),
        ):
            with Field(with_torch({OURS: ours}, {TORCH: theirs}, console), console) as field:
                out = field[OURS]("machine") | out
                console.print(f"timing {what}")
                out[what] = _time(field, 2 * num, rounds, calls, console)
    return {"size": size, "clean": num, "poisoned": num, "workers": workers, **out}


def _time(field: Field, samples: int, rounds: int, calls: int, console: Console) -> dict[str, Any]:
    makes = field.does("makes")
    takes = {_DEVICE: field[OURS].does("consumes")}
    timing = side_by_side(makes | takes, samples, rounds, calls, console)
    out: dict[str, Any] = {"samples_per_second": rounded(timing.rates())}
    for name in (_DEVICE, *(name for name in makes if name != OURS)):
        what = "made_per_taken" if name == _DEVICE else f"made_per_{name}"
        out[what], *out[f"{what}_range"] = timing.ratio(OURS, name)
    return out | {"peak_memory_mb": field.peak_memory_mb()}
