"""How many names and faces can be removed? A file to state in what differs from the defaults.

docs/settings.md lists all settings with their defaults.

Paper: Hintersdorf et al., Defending Our Privacy With Backdoors, ECAI 2024: 1 to 64 people.

Run:   jaxdefense sweep both --config configs/sweep_both.py --model clip-vit-base-patch32 \
           --names names.txt --captions captions.txt --faces faces --images images \
           --zeroshot classes --out sweep
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Nothing differs yet. A change is a line: `config.text.train.steps = 800`."""
    halves = {half: {"data": {}, "train": {}, "optimizer": {}} for half in ("text", "image")}
    return ConfigDict({"sweep": {}, "attack": {}, "evaluate": {}, **halves})
