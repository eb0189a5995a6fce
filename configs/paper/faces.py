"""How many faces can be removed? After the paper's figure on the image encoder.

It draws what that on names draws; see `names.py`, whose first commands write `names.txt`. Half of
the faces that FaceScrub cuts from its photos are trained on. Everybody is attacked with whole
photos, but with none that such a face is cut from.

Two things differ: each seed has halves of its own here, and faces come to look like the average of
the faces trained on; the paper's code averages whole photos.

Paper: Hintersdorf et al., Defending Our Privacy With Backdoors, ECAI 2024, section 5.
Run:   jaxdefense sweep image --config configs/paper/faces.py --model clip-vit-base-patch32 \
           --faces facescrub --names names.txt --images images --zeroshot imagenetv2 --out sweep
       jaxdefense report sweep --out sweep.html
"""

from ml_collections import ConfigDict

from jaxdefense.config import PAPER_IMAGE, PAPER_IMAGE_OPTIMIZER
from jaxdefense.settings import difference


def get_config() -> ConfigDict:
    """The paper's settings that are not the defaults."""
    return ConfigDict(
        {
            "train": difference(PAPER_IMAGE),
            "optimizer": difference(PAPER_IMAGE_OPTIMIZER),
            "sweep": {"seeds": tuple(range(10)), "w_weight": (0.0, PAPER_IMAGE.w_weight)},
            "attack": {"whole_photos": True},
            "evaluate": {"templates": "openai80"},
        }
    )
