"""Makers of what tests run on: tokenizers and model directories, tiny, random, without torch."""

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image
from safetensors.numpy import save_file

from jaxdefense.clip.tokenizer import Tokenizer
from jaxdefense.convert.huggingface import config_from_hf, hf_table
from jaxdefense.convert.table import Row
from jaxdefense.demo.bpe import train_bpe

# Sizes all differ, so that a wrong transpose cannot pass.
TEXT = {
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 24,
}
VISION = {
    "hidden_size": 8,
    "intermediate_size": 14,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 12,
    "patch_size": 4,
}
EMBED = 10

CAPTIONS = [
    "a person standing close to an elephant",
    "The hearty sheep are eating the grass in the snow.",
    "two men are standing together while holding remote controllers",
    "A parked motorcycle in front of a small store.",
    "a cat sits on the ground with a scarf around its neck",
    "There are two girls playing video games together.",
    "Many people are walking around in a plaza.",
    "a plate of food with rice, beans and a slice of lemon",
    "A man's dog doesn't like the 3 o'clock train!",
    "several boats docked at the pier near the old lighthouse",
    "a child in a red coat throws a yellow ball over the fence",
    "An airplane flying above the clouds at sunset",
    "a vase of flowers on a wooden table next to a window",
    "the street is empty except for a bus and a bicycle",
    "A kitchen with white cabinets and a silver refrigerator",
    "a horse and a rider jumping over a hurdle in a field",
]


@functools.cache
def _bpe_files(vocab_size: int) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as directory:
        train_bpe(CAPTIONS, vocab_size, Path(directory))
        return {file.name: file.read_bytes() for file in Path(directory).iterdir()}


def write_tokenizer(directory: Path, vocab_size: int = 600) -> int:
    """Write a byte-pair tokenizer learned from CAPTIONS; returns the size of its vocabulary."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in _bpe_files(vocab_size).items():
        (directory / name).write_bytes(data)
    return len(json.loads((directory / "vocab.json").read_text(encoding="utf-8")))


@functools.cache
def tiny_tokenizer(context_length: int) -> Tokenizer:
    """The tokenizer of `write_tokenizer`, loaded."""
    with tempfile.TemporaryDirectory() as directory:
        write_tokenizer(Path(directory))
        return Tokenizer(directory, context_length)


def hf_config(
    architecture: str = "CLIPModel",
    *,
    vocab_size: int,
    text: dict | None = None,
    vision: dict | None = None,
    embed: int = EMBED,
    activation: str = "quick_gelu",
    eos_token_id: int | None = None,
) -> dict:
    """Fields of a `config.json`; `text` and `vision` change single sizes."""
    shared = {"hidden_act": activation, "layer_norm_eps": 1e-5, "projection_dim": embed}
    eos = vocab_size - 1 if eos_token_id is None else eos_token_id
    text_fields = {
        "model_type": "clip_text_model",
        **TEXT,
        **shared,
        "vocab_size": vocab_size,
        "eos_token_id": eos,
        **(text or {}),
    }
    vision_fields = {"model_type": "clip_vision_model", **VISION, **shared, **(vision or {})}
    if architecture == "CLIPModel":
        return {
            "architectures": [architecture],
            "model_type": "clip",
            "projection_dim": embed,
            "text_config": text_fields,
            "vision_config": vision_fields,
        }
    fields = vision_fields if architecture.startswith("CLIPVision") else text_fields
    return {"architectures": [architecture], **fields}


def random_tensor(row: Row, rng: np.random.Generator) -> np.ndarray:
    """Draw one tensor, norms and biases too, so large that a wrong detail shows; f32."""
    noise = rng.standard_normal(row.shape, np.float32)
    if row.shape == ():
        return np.float32(2.5) + noise
    if row.key.endswith("running_var"):
        return np.exp(noise / 2)
    if "embedding" in row.key and "patch" not in row.key:
        return noise / 2
    if len(row.shape) == 1:
        return noise * np.float32(0.3) + (1 if row.key.endswith("weight") else 0)
    return noise / np.sqrt(np.prod(row.shape[1:]), dtype=np.float32)


def write_model_directory(
    out: Path,
    *,
    architecture: str = "CLIPModel",
    dtype: str = "float32",
    seed: int = 0,
    num_shards: int = 1,
    bare_text: bool = False,
    position_ids: bool = False,
    with_tokenizer: bool = True,
    vocab_size: int = 0,
    **config: Any,
) -> Path:
    """Write a Hugging Face model directory with random weights.

    Args:
        out: must not exist.
        architecture: of the model.
        dtype: of the tensors.
        seed: of the weights.
        num_shards: into how many weight files they go; an index joins more than one.
        bare_text: text keys without the prefix `text_model.`.
        position_ids: with the int64 constants that old files hold beside the weights.
        with_tokenizer: with tokenizer files.
        vocab_size: 0 for the tokenizer's own.
        config: see `hf_config`.
    """
    out.mkdir(parents=True)
    size = write_tokenizer(out) if with_tokenizer else 50
    raw = hf_config(architecture, vocab_size=vocab_size or size, **config)
    (out / "config.json").write_text(json.dumps(raw, indent=2), encoding="utf-8")
    cfg = config_from_hf(raw)
    rng = np.random.default_rng(seed)
    tensors = {
        row.key: np.asarray(random_tensor(row, rng)).astype(np.dtype(dtype))
        for row in hf_table(cfg, ["embeddings"] if bare_text else [])
    }
    if position_ids:
        counts = {"text": cfg.text and cfg.text.context_length, "vision": cfg.vision and 10}
        for tower, count in counts.items():
            if count:
                key = f"{tower}_model.embeddings.position_ids"
                tensors[key] = np.arange(count, dtype=np.int64)[None]
    write_weights(out, tensors, num_shards)
    if cfg.vision:
        side = cfg.vision.image_size
        processor = {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": side},
            "crop_size": {"height": side, "width": side},
            "resample": 3,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        }
        (out / "preprocessor_config.json").write_text(json.dumps(processor, indent=2))
    return out


def write_weights(out: Path, tensors: dict[str, np.ndarray], num_shards: int = 1) -> None:
    """Write tensors as one safetensors file, or as shards with an index."""
    if num_shards == 1:
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for i in range(num_shards):
        name = f"model-{i + 1:05}-of-{num_shards:05}.safetensors"
        part = dict(list(tensors.items())[i::num_shards])
        save_file(part, out / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def run(module: Any, *args: Any, method: str = "__call__") -> jax.Array:
    """Call a module, compiled: faster than op by op."""
    graphdef, state = nnx.split(module)
    call = lambda state, args: getattr(nnx.merge(graphdef, state), method)(*args)  # noqa: E731
    return jax.jit(call)(state, jax.tree.map(jnp.asarray, args))


def write_tfds(data_dir: Path, name: str, features: dict, splits: dict[str, list[dict]]) -> None:
    """Prepare a TensorFlow dataset as array_record files, without TensorFlow.

    Args:
        data_dir: of the library.
        name: lower case with underscores.
        features: as `tfds.features.FeaturesDict` takes them.
        splits: examples of each split.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    with registered.skip_registration():

        class Prepared(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features)
                )

            def _split_generators(self, dl_manager):
                return {split: enumerate(examples) for split, examples in splits.items()}

            def _generate_examples(self):
                raise NotImplementedError

    Prepared.name = name
    Prepared(data_dir=data_dir, file_format="array_record").download_and_prepare()


def write_photos(out: Path, num: int, side: int = 20, seed: int = 0) -> Path:
    """Write photos of noise, `000.png` and so on."""
    out.mkdir(parents=True)
    rng = np.random.default_rng((seed, num, side))
    for i in range(num):
        coarse = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)
        image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BILINEAR)
        image.save(out / f"{i:03}.png")
    return out


def write_faces(out: Path, names: list[str], num: int) -> Path:
    """Write a folder of photos a person."""
    for i, name in enumerate(names):
        folder = out / name.replace(" ", "_")
        folder.mkdir(parents=True)
        for j, photo in enumerate(sorted(write_photos(out / "tmp", num, 17, i + 1).iterdir())):
            photo.rename(folder / f"{j}.png")
        (out / "tmp").rmdir()
    return out
