"""A CLIP or SigLIP model: two towers, logit scale and logit bias; one tower may be absent."""

from flax import nnx

from jaxdefense.clip.config import CLIPConfig, ResNetConfig, VisionConfig
from jaxdefense.clip.layers import FrozenParam, param
from jaxdefense.clip.resnet import ResNetTower
from jaxdefense.clip.text import TextTower
from jaxdefense.clip.vision import VisionTower


class CLIP(nnx.Module):
    """The encoders of a CLIP or SigLIP model; an absent encoder is None."""

    def __init__(self, cfg: CLIPConfig, rngs: nnx.Rngs):
        self.cfg = cfg
        self.text = TextTower(cfg.text, rngs) if cfg.text else None
        self.vision = _vision(cfg.vision, rngs) if cfg.vision else None
        if cfg.text and cfg.vision:
            init = nnx.initializers.constant(2.6592)  # log(1 / 0.07), the start value of the source
            self.logit_scale = param(rngs, (), (), init, FrozenParam)
        if cfg.logit_bias:
            init = nnx.initializers.constant(-10.0)  # as big_vision starts: most pairs do not match
            self.logit_bias = param(rngs, (), (), init, FrozenParam)


def _vision(cfg: VisionConfig | ResNetConfig, rngs: nnx.Rngs) -> VisionTower | ResNetTower:
    return ResNetTower(cfg, rngs) if isinstance(cfg, ResNetConfig) else VisionTower(cfg, rngs)
