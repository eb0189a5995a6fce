"""Writes tests/golden/tiny_clip.npz: a tiny CLIP and what torch makes of it.

Run `python tests/make_golden.py` where this package, torch and transformers are installed; made
last with torch 2.13.0 and transformers 5.23.0 on a CPU. Weights are random, stored as float16 and
computed in float32.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
from factories import write_model_directory
from safetensors.numpy import load_file

GOLDEN = Path(__file__).parent / "golden/tiny_clip.npz"
B, VOCAB, LENGTH, SIDE = 4, 50, 24, 12


def make() -> dict[str, np.ndarray]:
    """Weights, inputs and, for each activation, torch's outputs."""
    import torch
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


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN, allow_pickle=False, **make())
    print(f"{GOLDEN}: {GOLDEN.stat().st_size / 1000:.0f} kB")
