"""Zero-shot classification: what else the model can do.

Source: Radford et al. 2021, section 3.1.4 (normalise each prompt, mean, normalise).
"""

from collections.abc import Sequence

import numpy as np

from jaxdefense.data.images import Folder
from jaxdefense.evals.embed import Embedder

TEMPLATES = ("a photo of a {0}", "a picture of a {0}", "a close up of a {0}", "a small {0}")


def zeroshot(
    model: Embedder, classes: Sequence[Folder], templates: Sequence[str] = TEMPLATES
) -> dict[str, float]:
    """Classify photos by the nearest class name.

    Returns:
        top1 and, with more than 5 classes, top5: parts of the photos, in [0, 1].
    """
    prompts = [template.format(c.name) for c in classes for template in templates]
    text_CQE = model.texts(prompts, "class prompts").reshape(len(classes), len(templates), -1)
    mean_CE = text_CQE.mean(1)
    mean_CE /= np.linalg.norm(mean_CE, axis=-1, keepdims=True)
    image_BE = model.photos([file for c in classes for file in c.files], "labelled photos")
    label_B = np.repeat(np.arange(len(classes)), [len(c.files) for c in classes])
    logits_BC = image_BE @ mean_CE.T
    own_B = logits_BC[np.arange(len(label_B)), label_B]
    rank_B = (logits_BC >= own_B[:, None]).sum(-1) - 1  # a tie counts against the model
    top = {"top1": float((rank_B < 1).mean())}
    return top | {"top5": float((rank_B < 5).mean())} if len(classes) > 5 else top
