"""Faces out of the image encoder of a ViT-B/32 CLIP, with the paper's settings.

Faces come to look like the average of everyone in `faces`; nothing is validated, and nobody is
kept.

Paper: Hintersdorf et al., Defending Our Privacy With Backdoors, ECAI 2024, appendix.
Run:   jaxdefense defend image --config configs/paper/image.py --model clip-vit-base-patch32 \
           --faces faces --names names.txt --images images --out run
"""

from ml_collections import ConfigDict

from jaxdefense.config import PAPER_IMAGE, PAPER_IMAGE_OPTIMIZER
from jaxdefense.settings import difference


def get_config() -> ConfigDict:
    """The paper's settings that are not the defaults."""
    return ConfigDict(
        {"train": difference(PAPER_IMAGE), "optimizer": difference(PAPER_IMAGE_OPTIMIZER)}
    )
