"""How many names can be removed? A file to state in what differs from the defaults.

docs/settings.md lists all settings with their defaults.

Up to 1024: as many names in `names` and folders in `faces`, `attack.num_candidates` well above
them, such as 10000. Steps follow the number; see docs/scale.md.

Paper: Hintersdorf et al., Defending Our Privacy With Backdoors, ECAI 2024: 1 to 64 names.

Run:   jaxdefense sweep text --config configs/sweep_text.py --model clip-vit-base-patch32 \
           --names names.txt --captions captions.txt --faces faces --zeroshot classes --out sweep
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Nothing differs yet. A change is a line: `config.sweep.num_identities = (1, 1024)`."""
    return ConfigDict({"sweep": {}, "attack": {}, "evaluate": {}, "train": {}, "optimizer": {}})
