"""Names out of the text encoder of a Stable Diffusion 1.x or 2.x model.

The diffusion model reads the hidden states of all 77 positions, so these are what is compared.
SDXL reads those before the last layer, of both its encoders: defend each, `text_encoder` with
`tokenizer` and `text_encoder_2` with `tokenizer_2`, with `--set train.level=penultimate`.
Run:   jaxdefense defend text --config configs/text_stable_diffusion.py \
           --model stable-diffusion/text_encoder --set model.tokenizer=stable-diffusion/tokenizer \
           --names names.txt --captions captions.txt --out run
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """What differs from the defaults."""
    config = ConfigDict()
    config.train = ConfigDict()
    config.train.level = "hidden"
    config.train.target = "a person"
    return config
