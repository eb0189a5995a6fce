"""`jaxdefense bench pipeline`: whether the host makes batches faster than the device takes them.

The host makes batches as in a run, reading ahead. The device takes steps on a batch that it already
has. Both are timed alone, in turn. PyTorch's DataLoader makes batches from the same files; its
worker processes tokenise captions and read photos one by one. The figures leave out the overlay of
faces, which jaxdefense's step does on the device.
"""

import logging
from functools import partial
from typing import Any

from jaxdefense.bench.image import ImageWork, JaxImageSteps, image_work
from jaxdefense.bench.side_by_side import (
    JAXDEFENSE,
    TORCH,
    Processes,
    check_counts,
    rounded,
    side_by_side,
    with_torch,
)
from jaxdefense.bench.text import JaxTextSteps, TextWork, text_work
from jaxdefense.bench.torch.loader import ImageLoader, TextLoader
from jaxdefense.config import PAPER_TEXT
from jaxdefense.cores import num_cores
from jaxdefense.errors import InputError

logger = logging.getLogger(__name__)

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
) -> dict[str, Any]:
    """Time the host making batches and the device taking steps.

    Args:
        size: architecture of the encoders: demo, ViT-B-32 or another of `PRESETS`, with random
            weights.
        num: number of clean samples a batch, and as many poisoned.
        people: number of people whose names are put into captions.
        rounds: number of rounds; each implementation is timed once a round.
        calls: number of batches and of steps that are timed together in a round.
        captions: captions file, one a line; "" for the demo's captions.
        tokenizer: tokenizer directory; "" for the demo's, which has more tokens a word than CLIP's.
        images: directory of ordinary photos; "" for drawn ones.
        faces: directory with a folder of photos a person; "" for drawn ones.
        workers: number of worker processes of the DataLoader; 0 for one a core.

    Returns:
        the machine, `text` and `image`. Both have the samples/s that the host makes and the device
        takes. `made_per_taken` and `made_per_torch` are ratios of these rates: medians over the
        rounds, with minimum and maximum. `peak_memory_mb` of torch excludes its workers.

    Raises:
        InputError: a parameter is out of range, or a file cannot be read.
    """
    check_counts(rounds=rounds, calls=calls)
    if workers < 0:
        raise InputError(f"`--workers` (={workers}) must be at least 0.")
    workers = workers or num_cores()
    text = text_work(size, num, people, captions, tokenizer)
    out: dict[str, Any] = {}
    with image_work(size, num, images, faces) as image:
        implementations = {
            "text": (partial(JaxTextSteps, size, text), _text_loader(text, workers)),
            "image": (partial(JaxImageSteps, size, image), _image_loader(image, workers)),
        }
        for what, (on_jax, on_torch) in implementations.items():
            constructors = with_torch({JAXDEFENSE: on_jax}, {TORCH: on_torch})
            with Processes(constructors) as processes:
                out = processes[JAXDEFENSE]("machine") | out
                logger.info(f"timing {what}")
                out[what] = _time(processes, 2 * num, rounds, calls)
    return {"size": size, "clean": num, "poisoned": num, "workers": workers, **out}


def _text_loader(work: TextWork, workers: int) -> partial[TextLoader]:
    """Return a constructor of the DataLoader for captions."""
    given = work.texts, work.names, PAPER_TEXT.target, work.tokenizer
    return partial(TextLoader, work.num, workers, *given, work.cfg.context_length)


def _image_loader(work: ImageWork, workers: int) -> partial[ImageLoader]:
    """Return a constructor of the DataLoader for photos."""
    return partial(ImageLoader, work.num, workers, work.clean, work.files(), work.cfg.image_size)


def _time(processes: Processes, samples: int, rounds: int, calls: int) -> dict[str, Any]:
    """Time one encoder's batches and steps; return the figures."""
    makers = processes.methods("make_batches")
    device = {_DEVICE: processes[JAXDEFENSE].method("steps_on_fixed_batch")}
    timing = side_by_side(makers | device, samples, rounds, calls)
    out: dict[str, Any] = {"samples_per_second": rounded(timing.rates())}
    for name in (_DEVICE, *(name for name in makers if name != JAXDEFENSE)):
        what = "made_per_taken" if name == _DEVICE else f"made_per_{name}"
        out[what], *out[f"{what}_range"] = timing.ratio(JAXDEFENSE, name)
    return out | {"peak_memory_mb": processes.peak_memory_mb()}
