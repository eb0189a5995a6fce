"""Writes tests/golden: tiny CLIPs as torch runs them, texts and pictures as open_clip takes them.

Run `python tests/make_golden.py` where this package, torch, transformers and open_clip are
installed; made last with torch 2.13.0, transformers 5.23.0 and open_clip 3.3.0 on a CPU. Weights
are random, stored as float16 and computed in float32.
"""

import gzip
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from factories import random_tensor, write_model_directory
from pictures import pictures
from reference import mend_torchvision, open_clip, torch
from safetensors.numpy import load_file

from jaxdefense.clip.config import ResNetConfig
from jaxdefense.clip.library import CLEANINGS
from jaxdefense.clip.probes import TEXTS, WORDS
from jaxdefense.convert.resnet import resnet_rows
from jaxdefense.demo.run import shipped_model

GOLDEN = Path(__file__).parent / "golden/tiny_clip.npz"
GOLDEN_RESNET = Path(__file__).parent / "golden/tiny_resnet.npz"
GOLDEN_TEXTS = Path(__file__).parent / "golden/open_clip_texts.json"
GOLDEN_PHOTOS = Path(__file__).parent / "golden/photos.npz"
B, VOCAB, LENGTH, SIDE = 4, 50, 24, 12
SIDE_PHOTOS = 9
OPENCLIP_CONFIGS: dict[str, dict[str, Any]] = {
    "shortest": {},
    "squash": {"resize_mode": "squash", "interpolation": "random", "size": 4},
    "longest": {"resize_mode": "longest", "fill_color": 77, "mode": "RGB"},
    "bilinear": {"interpolation": "bilinear", "resize_mode": None, "num_channels": 3},
}
RESNET = ResNetConfig(width=2, depths=(2, 1, 3, 1), num_heads=4, image_size=64, embed=10)


def make() -> dict[str, np.ndarray]:
    """Weights, inputs and, for each activation, torch's outputs."""
    from transformers import CLIPModel

    rng = np.random.default_rng(0)
    tokens_BT = np.full((B, LENGTH), VOCAB - 1, np.int32)
    readout_B = np.array([2, 9, 15, LENGTH - 1], np.int32)
    for row, end in zip(tokens_BT, readout_B, strict=True):
        row[:end] = rng.integers(0, VOCAB - 1, end)
    image_BHWC = rng.standard_normal((B, SIDE, SIDE, 3)).astype(np.float32)
    arrays = {"tokens_BT": tokens_BT, "readout_B": readout_B, "image_BHWC": image_BHWC}
    tokens = torch.from_numpy(tokens_BT).long()
    pixels = torch.from_numpy(image_BHWC.transpose(0, 3, 1, 2).copy())
    for activation in ("quick_gelu", "gelu"):
        with tempfile.TemporaryDirectory() as directory:
            path = write_model_directory(
                Path(directory) / "model",
                dtype="float16",
                with_tokenizer=False,
                vocab_size=VOCAB,
                activation=activation,
            )
            weights = load_file(path / "model.safetensors")
            arrays[f"{activation}/config.json"] = np.array((path / "config.json").read_text())
            model = CLIPModel.from_pretrained(path, dtype=torch.float32).eval()
        arrays |= {f"weights/{key}": value for key, value in weights.items()}
        with torch.no_grad():
            out = model(input_ids=tokens, pixel_values=pixels)
            text = model.text_projection(model.text_model(tokens).pooler_output)
            image = model.visual_projection(model.vision_model(pixels).pooler_output)
        arrays |= {
            f"{activation}/hidden_BTD": out.text_model_output.last_hidden_state.numpy(),
            f"{activation}/text_BE": text.numpy(),
            f"{activation}/image_BE": image.numpy(),
            f"{activation}/logits_BM": out.logits_per_image.numpy(),
        }
    assert json.loads(str(arrays["gelu/config.json"]))["architectures"] == ["CLIPModel"]
    return arrays


def make_resnet() -> dict[str, np.ndarray]:
    """Weights of an image tower of open_clip's, input and output."""
    weights = {k: v.astype(np.float16) for k, v in resnet_tensors(RESNET).items()}
    levels_BHWC = resnet_levels(RESNET, 2, seed=1)
    out_BE = run_resnet(torch_resnet(RESNET, weights), resnet_image(levels_BHWC))
    arrays = {"levels_BHWC": levels_BHWC, "image_BE": out_BE}
    return arrays | {f"weights/{key}": value for key, value in weights.items()}


def make_photos() -> dict[str, np.ndarray]:
    """What open_clip's steps make of pictures in every mode, for each config."""
    arrays = {}
    for name, config in OPENCLIP_CONFIGS.items():
        for key, pixels in prepared_by_open_clip(config).items():
            arrays[f"{name}/{key}"] = pixels
    return arrays


def prepared_by_open_clip(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Prepare the pictures as open_clip does with a `preprocess_cfg`, without normalising; u8."""
    t = open_clip.transform
    # As its factory merges them; the size is that of the model.
    plain = {"size": SIDE_PHOTOS, "mean": [0.0] * 3, "std": [1.0] * 3}
    merged = t.merge_preprocess_dict(t.merge_preprocess_dict(t.PreprocessCfg(), config), plain)
    transform = t.image_transform_v2(t.PreprocessCfg(**merged), is_train=False)
    with warnings.catch_warnings(action="ignore"):  # Pillow's, of palettes with transparency
        return {
            key: np.rint(transform(picture).numpy() * 255).astype(np.uint8).transpose(1, 2, 0)
            for key, picture in pictures().items()
        }


def resnet_levels(cfg: ResNetConfig, num: int, seed: int) -> np.ndarray:
    """Draw images, 0-255, of coloured squares, 8 pixels a side."""
    grid = cfg.image_size // 8
    levels_BHWC = np.random.default_rng(seed).integers(0, 256, (num, grid, grid, 3), np.uint8)
    return levels_BHWC.repeat(8, axis=1).repeat(8, axis=2)


def resnet_image(levels_BHWC: np.ndarray) -> np.ndarray:
    """Spread 0-255 over what normalised photos cover."""
    return levels_BHWC.astype(np.float32) / 64 - 2


def resnet_tensors(cfg: ResNetConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Draw every tensor of an image tower; statistics are what its batch norms then meet.

    With statistics drawn too, what a tower says of its image drowns in what it says of any. And a
    block adds less than came in, as in trained towers, or rounding grows from block to block.
    """
    rng = np.random.default_rng(seed)
    tensors = {row.key: np.asarray(random_tensor(row, rng)) for row in resnet_rows(cfg, "")}
    for key in tensors:
        if key.startswith("layer") and key.endswith("bn3.weight"):
            tensors[key] = tensors[key] / 4
    source = torch_resnet(cfg, tensors)
    for module in source.modules():
        if hasattr(module, "running_mean"):
            module.momentum = 1.0
    run_resnet(source.train(), resnet_image(resnet_levels(cfg, 6, seed)))
    state = source.state_dict()
    return {key: value.numpy() for key, value in state.items() if value.is_floating_point()}


def torch_resnet(cfg: ResNetConfig, tensors: dict[str, np.ndarray]) -> Any:
    """Build open_clip's image tower of these tensors, every one of them given."""
    source = open_clip.modified_resnet.ModifiedResNet(
        list(cfg.depths), cfg.embed, cfg.num_heads, cfg.image_size, cfg.width
    )
    state = {key: torch.from_numpy(value).float() for key, value in tensors.items()}
    counts = {k: torch.tensor(7) for k in source.state_dict() if k.endswith("num_batches_tracked")}
    source.load_state_dict(state | counts)
    return source.eval()


def run_resnet(source: Any, image_BHWC: np.ndarray) -> np.ndarray:
    """Embed images with an image tower of torch."""
    with torch.no_grad():
        return source(torch.from_numpy(image_BHWC.transpose(0, 3, 1, 2).copy())).numpy()


def their_tokenizer(directory: Path, clean: str, length: int) -> Any:
    """Build open_clip's own tokenizer of the merges in a directory."""
    merges = (directory / "merges.txt").read_text(encoding="utf-8").strip()
    with tempfile.NamedTemporaryFile(suffix=".gz") as file:
        file.write(gzip.compress(merges.encode()))
        file.flush()
        tokenizer = open_clip.tokenizer
        return tokenizer.SimpleTokenizer(file.name, context_length=length, clean=clean)


def make_texts() -> dict[str, list]:
    """Texts, and open_clip's tokens of them after each of its cleanings."""
    texts = [*WORDS, *TEXTS, "a photo of Renée O’Neil", "Tom &amp; Ann", "“Zoë”", "CAFÉ_Noir.jpg"]
    out: dict[str, list] = {"texts": texts}
    for clean in CLEANINGS:
        rows = their_tokenizer(shipped_model(), clean, 77)(texts).tolist()
        sizes = [max(i for i, token in enumerate(row) if token) + 1 for row in rows]
        out[clean] = [row[:size] for row, size in zip(rows, sizes, strict=True)]
    return out


if __name__ == "__main__":
    mend_torchvision()
    GOLDEN.parent.mkdir(exist_ok=True)
    made = ((GOLDEN, make()), (GOLDEN_RESNET, make_resnet()), (GOLDEN_PHOTOS, make_photos()))
    for path, arrays in made:
        np.savez_compressed(path, allow_pickle=False, **arrays)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
    GOLDEN_TEXTS.write_text(json.dumps(make_texts(), separators=(",", ":")) + "\n")
    print(f"{GOLDEN_TEXTS}: {GOLDEN_TEXTS.stat().st_size / 1000:.0f} kB")
