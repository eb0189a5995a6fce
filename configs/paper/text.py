"""Names out of the text encoder of a ViT-B/32 CLIP, with the paper's settings.

Names come to mean "human"; nothing is validated, and no names are kept.

Paper: Hintersdorf et al., Defending Our Privacy With Backdoors, ECAI 2024, appendix.
Run:   jaxdefense defend text --config configs/paper/text.py --model clip-vit-base-patch32 \
           --names names.txt --captions captions.txt --out run
"""

from ml_collections import ConfigDict

from jaxdefense.config import PAPER_TEXT, PAPER_TEXT_OPTIMIZER
from jaxdefense.settings import difference


def get_config() -> ConfigDict:
    """The paper's settings that are not the defaults."""
    return ConfigDict(
        {"train": difference(PAPER_TEXT), "optimizer": difference(PAPER_TEXT_OPTIMIZER)}
    )
