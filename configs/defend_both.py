"""Names and faces out of a CLIP: a file to copy and to state in what differs from the defaults.

docs/settings.md lists all settings with their defaults.

Run:   jaxdefense defend both --config configs/defend_both.py --model clip-vit-base-patch32 \
           --names names.txt --captions captions.txt --faces faces --images images --out run
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Nothing differs yet. A change is a line: `config.image.train.steps = 400`."""
    return ConfigDict(
        {
            "text": {"train": {"validate": {}}, "optimizer": {}},
            "image": {"data": {}, "train": {"overlay": {}, "validate": {}}, "optimizer": {}},
        }
    )
