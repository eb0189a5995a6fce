"""Names out of a text encoder: a file to copy and to state in what differs from the defaults.

docs/settings.md lists all settings with their defaults.

Run:   jaxdefense defend text --config configs/defend_text.py --model clip-vit-base-patch32 \
           --names names.txt --captions captions.txt --out run
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Nothing differs yet. A change is a line: `config.train.steps = 800`."""
    return ConfigDict({"train": {"validate": {}}, "optimizer": {}})
