"""Faces out of an image encoder: a file to copy and to state in what differs from the defaults.

docs/settings.md lists all settings with their defaults.

Run:   jaxdefense defend image --config configs/defend_image.py --model clip-vit-base-patch32 \
           --faces faces --names names.txt --images images --out run
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Nothing differs yet. A change is a line: `config.data.trigger_fraction = 0.75`."""
    return ConfigDict({"data": {}, "train": {"overlay": {}, "validate": {}}, "optimizer": {}})
