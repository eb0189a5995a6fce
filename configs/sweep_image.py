"""How many faces can be removed? A file to state in what differs from the defaults.

docs/settings.md lists all settings with their defaults.

Paper: Hintersdorf et al., Defending Our Privacy With Backdoors, ECAI 2024: 1 to 64 faces.

Run:   jaxdefense sweep image --config configs/sweep_image.py --model clip-vit-base-patch32 \
           --faces faces --images images --zeroshot classes --out sweep
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Nothing differs yet. A change is a line: `config.sweep.seeds = (0,)`."""
    return ConfigDict({"sweep": {}, "attack": {}, "evaluate": {}, "train": {}, "optimizer": {}})
