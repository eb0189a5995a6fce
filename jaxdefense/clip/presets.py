"""Architectures by their usual names, spelt as in OpenCLIP.

Source: open_clip `model_configs/*.json`.
Parity: tests/test_presets.py, sizes equal to open_clip's, numbers of parameters as published.
"""

from jaxdefense.clip.config import CLIPConfig, ResNetConfig, TextConfig, VisionConfig
from jaxdefense.errors import InputError


def _text(width: int, depth: int, embed: int) -> TextConfig:
    heads = width // 64
    return TextConfig(width, 4 * width, depth, heads, activation="gelu", embed=embed)


def _vit(
    patch_size: int,
    width: int,
    depth: int,
    embed: int,
    text: TextConfig,
    *,
    head_width: int = 64,
    mlp_width: int = 0,
    image_size: int = 224,
) -> CLIPConfig:
    vision = VisionConfig(
        width,
        mlp_width or 4 * width,
        depth,
        width // head_width,
        activation="gelu",
        image_size=image_size,
        patch_size=patch_size,
        embed=embed,
    )
    return CLIPConfig(text, vision)


def _resnet(
    depths: tuple[int, int, int, int], width: int, image_size: int, embed: int, text: TextConfig
) -> CLIPConfig:
    return CLIPConfig(text, ResNetConfig(width, depths, width // 2, image_size, embed))


# OpenAI's weights need QuickGELU instead of GELU; this changes no size.
PRESETS: dict[str, CLIPConfig] = {
    "RN50": _resnet((3, 4, 6, 3), 64, 224, 1024, _text(512, 12, 1024)),
    "RN101": _resnet((3, 4, 23, 3), 64, 224, 512, _text(512, 12, 512)),
    "RN50x4": _resnet((4, 6, 10, 6), 80, 288, 640, _text(640, 12, 640)),
    "RN50x16": _resnet((6, 8, 18, 8), 96, 384, 768, _text(768, 12, 768)),
    "RN50x64": _resnet((3, 15, 36, 10), 128, 448, 1024, _text(1024, 12, 1024)),
    "ViT-B-32": _vit(32, 768, 12, 512, _text(512, 12, 512)),
    "ViT-B-16": _vit(16, 768, 12, 512, _text(512, 12, 512)),
    "ViT-L-14": _vit(14, 1024, 24, 768, _text(768, 12, 768)),
    "ViT-L-14-336": _vit(14, 1024, 24, 768, _text(768, 12, 768), image_size=336),
    "ViT-H-14": _vit(14, 1280, 32, 1024, _text(1024, 24, 1024), head_width=80),
    "ViT-g-14": _vit(14, 1408, 40, 1024, _text(1024, 24, 1024), head_width=88, mlp_width=6144),
    "ViT-bigG-14": _vit(
        14, 1664, 48, 1280, _text(1280, 32, 1280), head_width=104, mlp_width=8192
    ),
    # The model that ships with the demo.
    "demo": CLIPConfig(
        TextConfig(128, 512, 3, 4, vocab_size=2048, embed=128, readout="token", eos_token_id=2047),
        VisionConfig(128, 512, 4, 4, image_size=48, patch_size=8, embed=128),
    ),
}  # fmt: skip


def preset(name: str) -> CLIPConfig:
    """Give an architecture by name.

    Raises:
        InputError: no architecture has this name.
    """
    if name not in PRESETS:
        raise InputError(f"architecture {name!r} must be one of {', '.join(PRESETS)}.")
    return PRESETS[name]
