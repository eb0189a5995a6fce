"""How many names and faces can be removed? After the paper's figure on both encoders together.

It draws what those on names and on faces draw, of models merged from both; see `names.py`, whose
first commands write `names.txt`, and `faces.py`. In sweep/sweep.csv, w_weight 0 is without weight
regularisation, and 1 with it.

Paper: Hintersdorf et al., Defending Our Privacy With Backdoors, ECAI 2024.
Run:   jaxdefense sweep both --config configs/paper/names_and_faces.py \
           --model clip-vit-base-patch32 --names names.txt --captions captions.txt \
           --faces facescrub --images images --zeroshot imagenetv2 --out sweep
       jaxdefense report sweep --out sweep.html
"""

from ml_collections import ConfigDict

from jaxdefense.config import (
    PAPER_IMAGE,
    PAPER_IMAGE_OPTIMIZER,
    PAPER_TEXT,
    PAPER_TEXT_OPTIMIZER,
    TextPart,
)
from jaxdefense.settings import difference


def get_config() -> ConfigDict:
    """The paper's settings that are not the defaults."""
    usual = TextPart.train  # the defaults of a defense of both encoders
    return ConfigDict(
        {
            "text": {
                "train": difference(PAPER_TEXT, usual),
                "optimizer": difference(PAPER_TEXT_OPTIMIZER),
            },
            "image": {
                "train": difference(PAPER_IMAGE),
                "optimizer": difference(PAPER_IMAGE_OPTIMIZER),
            },
            "sweep": {"seeds": tuple(range(10))},
            "attack": {"whole_photos": True},
            "evaluate": {"templates": "openai80"},
        }
    )
