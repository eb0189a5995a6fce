"""Architectures by name, and what is counted of them."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from reference import open_clip

from jaxdefense.bench.flops import product_flops, tower_sizes
from jaxdefense.clip.config import CLIPConfig, ResNetConfig
from jaxdefense.clip.presets import PRESETS, preset
from jaxdefense.convert.directory import read_model_directory
from jaxdefense.convert.openclip import config_from_openclip
from jaxdefense.demo.run import shipped_model

NAMES = [name for name in PRESETS if name != "demo"]


@pytest.mark.torch("open_clip")
@pytest.mark.parametrize("name", NAMES)
def test_preset_is_open_clips(name):
    raw = open_clip.get_model_config(name)
    assert config_from_openclip(raw | {"quick_gelu": False}) == PRESETS[name]


def test_demo_preset_is_the_model_that_ships():
    shipped = read_model_directory(shipped_model()).cfg
    assert shipped.text and shipped.vision
    text = dataclasses.replace(shipped.text, embed=128)
    assert CLIPConfig(text, shipped.vision) == PRESETS["demo"]


# Millions of parameters of both towers and the logit scale, as OpenCLIP's model_profile.csv has.
@pytest.mark.parametrize(
    "name, millions",
    [("RN50", 102.01), ("ViT-B-32", 151.28), ("ViT-L-14", 427.62), ("ViT-bigG-14", 2539.57)],
)
def test_parameters_are_as_published(name, millions):
    # Batch statistics are buffers there, and parameters that stay here.
    counts = tower_sizes(PRESETS[name])
    found = sum(count["million_parameters"] for count in counts.values())
    vision = PRESETS[name].vision
    buffers = 0.053120 if isinstance(vision, ResNetConfig) else 0
    assert found - buffers == pytest.approx(millions, abs=0.006)


def test_flops_of_a_tower_are_those_of_its_layers():
    text, vision = (tower_sizes(PRESETS["ViT-B-32"])[name]["gflop"] for name in ("text", "vision"))
    d, f, t = 768, 3072, 50
    layer = 2 * t * (4 * d * d + 2 * d * f) + 4 * t * t * d
    last = 2 * (t * 2 * d * d + 2 * d * d + 2 * d * f) + 4 * t * d
    patches = 2 * 49 * 32 * 32 * 3 * d
    assert vision * 1e9 == 11 * layer + last + patches + 2 * d * 512
    d, f, t = 512, 2048, 77
    layer = 2 * t * (4 * d * d + 2 * d * f) + 4 * t * t * d
    last = 2 * (t * 2 * d * d + 2 * d * d + 2 * d * f) + 4 * t * d
    assert text * 1e9 == 11 * layer + last + 2 * d * 512


def test_flops_count_scans_gradients_and_convolutions():
    x, w = jnp.ones((3, 4)), jnp.ones((5, 4, 4))

    def chain(x, w):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0].sum()

    assert product_flops(chain, x, w) == 5 * 2 * 3 * 4 * 4
    assert product_flops(jax.grad(chain, (0, 1)), x, w) == 3 * 5 * 2 * 3 * 4 * 4
    image, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 7))

    def conv(image, kernel):
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(image, kernel, (2, 2), "SAME", dimension_numbers=dims)

    assert product_flops(conv, image, kernel) == 2 * (2 * 4 * 4 * 7) * 3 * 3 * 3


def test_unknown_name_is_refused():
    with pytest.raises(ValueError, match="'ViT-Z' must be one of RN50, .*ViT-B-32"):
        preset("ViT-Z")
