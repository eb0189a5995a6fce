"""How many names can be removed? After the paper's figure on the text encoder.

That figure, as the paper's code draws it: TPR and FNR of the attack, and accuracies on ImageNet-V2,
against 1 to 64 removed names, with weight regularisation and without; means of ten seeds. Whoever
may be removed is recognised in the model as it is, which the first two commands find out. Everybody
in FaceScrub is attacked with whole photos. `removed_known_tpr` in sweep/sweep.csv is the paper's
TPR, and 1 less it the FNR.

The code leaves out people with fewer than 20 photos, and those whom LAION-400M has more than 300
times or never.

Paper: Hintersdorf et al., Defending Our Privacy With Backdoors, ECAI 2024, section 4.
Run:   jaxdefense attack --model clip-vit-base-patch32 --faces facescrub --whole-photos --out known
       awk -F, '$3 == 1 {print $1}' known/results.csv > names.txt
       jaxdefense sweep text --config configs/paper/names.py --model clip-vit-base-patch32 \
           --names names.txt --captions captions.txt --faces facescrub --zeroshot imagenetv2 \
           --out sweep
       jaxdefense report sweep --out sweep.html
"""

from ml_collections import ConfigDict

from jaxdefense.config import PAPER_TEXT, PAPER_TEXT_OPTIMIZER
from jaxdefense.settings import difference


def get_config() -> ConfigDict:
    """The paper's settings that are not the defaults."""
    return ConfigDict(
        {
            "train": difference(PAPER_TEXT),
            "optimizer": difference(PAPER_TEXT_OPTIMIZER),
            "sweep": {"seeds": tuple(range(10)), "w_weight": (0.0, PAPER_TEXT.w_weight)},
            "attack": {"whole_photos": True},
            "evaluate": {"templates": "openai80"},
        }
    )
