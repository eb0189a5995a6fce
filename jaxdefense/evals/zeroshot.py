"""Zero-shot classification, which measures the model's other abilities.

Source: Radford et al. 2021, section 3.1.4 (normalise each prompt, mean, normalise).
"""

from collections.abc import Sequence

import numpy as np

from jaxdefense.data.images import Photos
from jaxdefense.evals.embed import Embedder, unit

TEMPLATES = ("a photo of a {}", "a picture of a {}", "a close up of a {}", "a small {}")


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
    prompts = [template.format(c.name) for c in classes for template in templates]
    text_CQE = model.texts(prompts, "class prompts").reshape(len(classes), len(templates), -1)
    mean_CE = unit(text_CQE.mean(1))
    photos = [photo for c in classes for photo in c.files]
    image_BE, read_B = model.readable_photos(photos, max_corrupt, "labelled photos")
    label_B = np.repeat(np.arange(len(classes)), [len(c.files) for c in classes])[read_B]
    logits_BC = image_BE @ mean_CE.T
    own_B = logits_BC[np.arange(len(label_B)), label_B]
    rank_B = (logits_BC >= own_B[:, None]).sum(-1) - 1  # a tie counts against the model
    top = {"top1": float((rank_B < 1).mean())}
    return top | {"top5": float((rank_B < 5).mean())} if len(classes) > 5 else top
