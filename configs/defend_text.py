"""Names out of a text encoder: the settings to change first, each at its default.

Run:   jaxdefense defend text --config configs/defend_text.py --model clip-vit-base-patch32 \
           --names names.txt --captions captions.txt --out run
"""

from ml_collections import ConfigDict

from jaxdefense.config import OptimizerConfig, TextTrainConfig


def get_config() -> ConfigDict:
    """Change a value here, or leave it out: all other settings have their defaults too."""
    train, optimizer = TextTrainConfig(), OptimizerConfig()
    config = ConfigDict()

    config.train = ConfigDict()
    config.train.steps = train.steps  # at most; it stops once validation finds nothing better
    config.train.num_clean = train.num_clean  # captions a step
    config.train.num_poisoned = train.num_poisoned  # texts a step with a listed name
    config.train.num_name = train.num_name  # texts a step with a name that must stay
    config.train.w_backdoor = train.w_backdoor  # higher: names go sooner, and more goes with them
    config.train.w_name = train.w_name  # higher: other people's names move less
    config.train.w_weight = train.w_weight  # higher: all weights move less
    config.train.variants = train.variants  # forms of the names put in too: last, initials, ...
    config.train.seed = train.seed

    config.train.validate = ConfigDict()
    config.train.validate.every = train.validate.every  # steps between validations; 0: none

    config.optimizer = ConfigDict()
    config.optimizer.lr = optimizer.lr  # higher if names hardly move

    return config
