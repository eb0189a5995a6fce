"""How many of thousands of names can be removed? The settings of docs/scale.md.

Few samples a step, for a CPU; steps, rate and the weight of captions by the number of people.

Run:   python -m jaxdefense.demo.crowd --people 4096 --photos 4 --out inputs
       python -m jaxdefense.demo.pretrain --people 4096 --out crowd
       jaxdefense sweep text --config configs/crowd.py --model crowd \
           --names inputs/names.txt --captions inputs/captions.txt --faces inputs/faces --out sweep
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """What differs from the defaults."""
    return ConfigDict(
        {
            "sweep": {"num_identities": (1, 4, 16, 64, 256, 1024), "w_weight": (0.001,)},
            "attack": {"num_candidates": 6000, "num_photos": 4},
            "train": {"num_clean": 32, "num_poisoned": 48, "num_name": 96},
        }
    )
