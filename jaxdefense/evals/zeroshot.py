"""Zero-shot classification, which measures the model's other abilities.

Source: Radford et al. 2021, section 3.1.4 (normalise each prompt, mean, normalise); OpenAI's 80
prompts, `imagenet_templates` of CLIP's notebook Prompt_Engineering_for_ImageNet; CLIP_benchmark
(LAION-AI), `clip_benchmark/metrics/zeroshot_classification.py`.
"""

from collections.abc import Sequence
from functools import cache
from importlib import resources

import numpy as np

from jaxdefense.data.images import Photos
from jaxdefense.data.templates import read_templates
from jaxdefense.evals.embed import Embedder, unit
from jaxdefense.evals.retrieval import ranks
from jaxdefense.log import Progress
from jaxdefense.paths import is_word

TEMPLATES = ("a photo of a {}", "a picture of a {}", "a close up of a {}", "a small {}")
OPENAI80 = "openai80"  # in place of a file of prompts
_NUM_PROMPTS = 8192  # embeddings of prompts held at a time


@cache
def openai_templates() -> tuple[str, ...]:
    """Read OpenAI's 80 prompts for ImageNet, with `{}` for the class."""
    file = resources.files("jaxdefense.evals") / "templates80.txt"
    return tuple(file.read_text(encoding="utf-8").splitlines())


def class_templates(given: str) -> Sequence[str]:
    """Give the prompts that a setting names, with `{}` or `{0}` for the class.

    Args:
        given: a file of prompts; `openai80` for OpenAI's; "" for four plain ones.

    Raises:
        InputError: the file cannot be read, or is called `openai80`; see `read_templates`.
    """
    if is_word(given, OPENAI80, "templates"):
        return openai_templates()
    return read_templates(given) if given else TEMPLATES


def zeroshot(
    model: Embedder,
    classes: Sequence[Photos],
    templates: Sequence[str] = TEMPLATES,
    max_corrupt: int = 0,
) -> dict[str, float]:
    """Classify photos by the nearest class name.

    Returns:
        top1 and, with more than 5 classes, top5: shares of the photos, in [0, 1].
    """
    _, (rank_B,) = predictions(model, classes, [templates], max_corrupt)
    top = {"top1": float((rank_B < 1).mean())}
    return top | {"top5": float((rank_B < 5).mean())} if len(classes) > 5 else top


def predictions(
    model: Embedder,
    classes: Sequence[Photos],
    sets: Sequence[Sequence[str]],
    max_corrupt: int = 0,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Rank each photo's class among all classes, with several sets of prompts.

    Args:
        model: a model with both encoders.
        classes: photos by class.
        sets: sets of prompts, each with `{}` for the class; the photos are embedded once for all.
        max_corrupt: at most this many photos may be broken; they are skipped.

    Returns:
        int [B], the class of each photo; for each set int [B], the classes nearer than its own, or
        as near, so a tie counts against the model.

    Raises:
        InputError: more photos are broken; or the embeddings are not finite, or all equal.
    """
    image_BE, label_B = labelled(model, classes, max_corrupt)
    return label_B, class_ranks(model, classes, sets, image_BE, label_B)


def labelled(
    model: Embedder, classes: Sequence[Photos], max_corrupt: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Embed the photos of classes, see `predictions`; f32 [B, E], and int [B], their classes."""
    photos = [photo for c in classes for photo in c.files]
    image_BE, read_B = model.readable_photos(photos, max_corrupt, "labelled photos")
    return image_BE, np.repeat(np.arange(len(classes)), [len(c.files) for c in classes])[read_B]


def class_ranks(
    model: Embedder,
    classes: Sequence[Photos],
    sets: Sequence[Sequence[str]],
    image_BE: np.ndarray,
    label_B: np.ndarray,
) -> list[np.ndarray]:
    """Rank the class of each embedded photo with several sets of prompts, see `predictions`."""
    names, own_C = [c.name for c in classes], np.arange(len(classes))
    means = (_class_means(model, names, templates) for templates in sets)
    return [ranks(image_BE, label_B, mean_CE, own_C) for mean_CE in means]


def accuracies(label_B: np.ndarray, rank_B: np.ndarray, num_classes: int) -> dict[str, np.ndarray]:
    """Sum up predictions as CLIP_benchmark names it; its figures are the means of these.

    Args:
        label_B: int [B], the class of each photo.
        rank_B: int [B], see `predictions`.
        num_classes: number of all classes.

    Returns:
        acc1: f64 [B], 1 if a photo is named right; acc5, with more than 5 classes: f64 [B], 1 if
        its class is among the nearest 5; mean_per_class_recall: f64, the share of photos named
        right of each class that has photos.

    Source: `evaluate`; its mean_per_class_recall is scikit-learn's balanced_accuracy_score.
    """
    acc1_B = (rank_B < 1).astype(np.float64)
    found = {"acc1": acc1_B}
    if num_classes > 5:
        found["acc5"] = (rank_B < 5).astype(np.float64)
    num_C = np.bincount(label_B, minlength=num_classes)
    right_C = np.bincount(label_B, acc1_B, minlength=num_classes)
    return found | {"mean_per_class_recall": right_C[num_C > 0] / num_C[num_C > 0]}


def _class_means(model: Embedder, names: Sequence[str], templates: Sequence[str]) -> np.ndarray:
    """Embed the prompts of each class and average them; f32 [C, E], unit length."""
    means, num = [], max(1, _NUM_PROMPTS // len(templates))  # classes at a time
    with Progress("embedding classes", len(names)) as progress:
        for part in np.array_split(np.arange(len(names)), -(-len(names) // num)):
            prompts = [template.format(names[i]) for i in part for template in templates]
            text_NE = model.texts(prompts, "class prompts")
            means.append(unit(text_NE.reshape(len(part), len(templates), -1).mean(1)))
            progress.advance(len(part))
    return np.concatenate(means)
