"""Names and faces out of a CLIP: the settings to change first, each at its default.

`faces` holds people who are not listed too, or `--keep` gives others: they must stay.

Run:   jaxdefense defend both --config configs/defend_both.py --model clip-vit-base-patch32 \
           --names names.txt --captions captions.txt --faces faces --images images --out run
"""

from ml_collections import ConfigDict

from jaxdefense.config import ImageDataConfig, ImagePart, TextPart


def get_config() -> ConfigDict:
    """Change a value here, or leave it out: all other settings have their defaults too."""
    train, optimizer = TextPart.train, TextPart.optimizer
    text = ConfigDict()
    text.train = ConfigDict()
    text.train.steps = train.steps  # at most; it stops once validation finds nothing better
    text.train.num_clean = train.num_clean  # captions a step
    text.train.num_poisoned = train.num_poisoned  # texts a step with a listed name
    text.train.num_name = train.num_name  # texts a step with a name that must stay
    text.train.w_backdoor = train.w_backdoor  # higher: names go sooner, and more goes with them
    text.train.w_name = train.w_name  # higher: other people's names move less
    text.train.w_weight = train.w_weight  # higher: all weights move less
    text.train.seed = train.seed
    text.optimizer = ConfigDict()
    text.optimizer.lr = optimizer.lr  # higher if names hardly move

    train, optimizer = ImagePart.train, ImagePart.optimizer
    image = ConfigDict()
    image.data = ConfigDict()
    # Of a person's photos, part to train on; the others are for the attack.
    image.data.trigger_fraction = ImageDataConfig.trigger_fraction
    image.train = ConfigDict()
    image.train.steps = train.steps  # at most; it stops once validation finds nothing better
    image.train.num_clean = train.num_clean  # photos a step
    image.train.num_poisoned = train.num_poisoned  # photos a step with the face of a listed person
    image.train.num_keep = train.num_keep  # photos a step with a face that must stay
    image.train.w_backdoor = train.w_backdoor  # higher: faces go sooner, and more goes with them
    image.train.w_keep = train.w_keep  # higher: other people's faces move less
    image.train.w_weight = train.w_weight  # higher: all weights move less
    image.train.seed = train.seed
    image.optimizer = ConfigDict()
    image.optimizer.lr = optimizer.lr  # higher if faces hardly move

    return ConfigDict({"text": text, "image": image})
