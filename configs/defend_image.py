"""Faces out of an image encoder: the settings to change first, each at its default.

`faces` holds people who are not listed too, or `--keep` gives others: they must stay.

Run:   jaxdefense defend image --config configs/defend_image.py --model clip-vit-base-patch32 \
           --faces faces --identities names.txt --images images --out run
"""

from ml_collections import ConfigDict

from jaxdefense.config import ImageDataConfig, ImageTrainConfig, OptimizerConfig


def get_config() -> ConfigDict:
    """Change a value here, or leave it out: all other settings have their defaults too."""
    train, optimizer = ImageTrainConfig(), OptimizerConfig()
    config = ConfigDict()

    config.data = ConfigDict()
    # Of a person's photos, part to train on; the others are for the attack.
    config.data.trigger_fraction = ImageDataConfig.trigger_fraction

    config.train = ConfigDict()
    config.train.steps = train.steps  # at most; it stops once validation finds nothing better
    config.train.num_clean = train.num_clean  # photos a step
    config.train.num_poisoned = train.num_poisoned  # photos a step with the face of a listed person
    config.train.num_keep = train.num_keep  # photos a step with a face that must stay
    config.train.w_backdoor = train.w_backdoor  # higher: faces go sooner, and more goes with them
    config.train.w_keep = train.w_keep  # higher: other people's faces move less
    config.train.w_weight = train.w_weight  # higher: all weights move less
    config.train.variants = train.variants  # forms of the faces put in too: mirrored, blurred, ...
    config.train.seed = train.seed

    config.train.validate = ConfigDict()
    config.train.validate.every = train.validate.every  # steps between validations; 0: none

    config.optimizer = ConfigDict()
    config.optimizer.lr = optimizer.lr  # higher if faces hardly move

    return config
