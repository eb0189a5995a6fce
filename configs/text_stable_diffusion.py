"""Names out of the text encoder of a Stable Diffusion 1.x or 2.x model.

The diffusion model reads the hidden states of all 77 positions, so these are what is compared. The
bounded loss is of embeddings; so with the paper's settings, a name comes to mean "a person".
SDXL reads those before the last layer, of both its encoders: defend each, `text_encoder` with
`tokenizer` and `text_encoder_2` with `tokenizer_2`, with `--set train.level=penultimate`.
Run:   jaxdefense defend text --config configs/text_stable_diffusion.py \
           --model stable-diffusion/text_encoder --set model.tokenizer=stable-diffusion/tokenizer \
           --names names.txt --captions captions.txt --out run
"""

from ml_collections import ConfigDict

from jaxdefense.defense.diffusion import settings_at


def get_config() -> ConfigDict:
    """The paper's settings, but for what is compared and what a name comes to mean."""
    return ConfigDict(settings_at("hidden"))
