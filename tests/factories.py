"""Makers of what tests run on: tokenizers and model directories, tiny, random, without torch."""

import contextlib
import dataclasses
import functools
import io
import json
import logging
import re
import string
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from flax import nnx
from PIL import Image
from safetensors.numpy import save_file
from tokenizers import Regex, models, normalizers, pre_tokenizers, processors, trainers

from jaxdefense.clip.tokenizer import Tokenizer
from jaxdefense.config import (
    PAPER_IMAGE,
    PAPER_IMAGE_OPTIMIZER,
    PAPER_TEXT,
    PAPER_TEXT_OPTIMIZER,
    OptimizerConfig,
)
from jaxdefense.convert.huggingface import config_from_hf, hf_table
from jaxdefense.convert.table import Row
from jaxdefense.demo.bpe import train_bpe
from jaxdefense.files import write_json
from jaxdefense.idia.run import run_attack
from jaxdefense.results import SCHEMA, Summary, as_json

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
SIGLIP_TEXT = {**TEXT, "projection_size": 10}
SIGLIP_VISION = {**VISION, "hidden_size": 10}  # its embeddings are as wide as the tower

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


def _settings(given: dict, default: dict, at: str) -> list[str]:
    """Write what differs from a default as `--set` takes it; tests choose the sizes of a step."""
    out = []
    for name, value in given.items():
        if isinstance(value, dict):
            out += _settings(value, default[name], f"{at}.{name}")
        elif value != default[name] and name not in ("steps", "num_clean", "num_poisoned"):
            out.append(f"{at}.{name}={value!r}")
    return out


def _paper(train: Any, optimizer: OptimizerConfig) -> list[str]:
    given, default = map(dataclasses.asdict, (train, type(train)()))
    rates, usual = map(dataclasses.asdict, (optimizer, OptimizerConfig()))
    return [*_settings(given, default, "train"), *_settings(rates, usual, "optimizer")]


# The paper's loss, weights and rates, without validation, for `--set`: nobody is kept, and all
# steps are taken.
PAPER_TEXT_FLAGS = _paper(PAPER_TEXT, PAPER_TEXT_OPTIMIZER)
PAPER_IMAGE_FLAGS = _paper(PAPER_IMAGE, PAPER_IMAGE_OPTIMIZER)


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


_PUNCTUATION = Regex(r"[" + re.escape(string.punctuation) + "]")
_SPACE = "\u2581"


@functools.cache
def sentence_piece(kind: str) -> str:
    """Learn a small tokenizer of a kind from CAPTIONS; its `tokenizer.json`.

    Args:
        kind: `unigram` as SigLIP has it, `bpe` as SigLIP 2 has it (Gemma's), or `crossing`: bpe
            that learns pieces across spaces.
    """
    if kind == "unigram":
        made = tokenizers.Tokenizer(models.Unigram())
        made.normalizer = normalizers.Sequence(
            [
                normalizers.Lowercase(),
                normalizers.Replace(_PUNCTUATION, ""),
                normalizers.Replace(Regex(r"\s+"), " "),
                normalizers.Strip(),
            ]
        )
        made.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always")
        special = ["<pad>", "</s>", "<unk>"]
        trainer = trainers.UnigramTrainer(
            vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False
        )
        made.train_from_iterator(CAPTIONS, trainer)
        eos = "</s>"
    else:
        model = models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
        made = tokenizers.Tokenizer(model)
        made.normalizer = normalizers.Replace(" ", _SPACE)
        if kind == "bpe":  # as SentencePiece learns: within words
            made.pre_tokenizer = pre_tokenizers.Split(_SPACE, "merged_with_next")
        special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
        special += (f"<0x{i:02X}>" for i in range(256))
        trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False)
        made.train_from_iterator([caption.lower() for caption in CAPTIONS], trainer)
        made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")  # of no effect
        eos = "<eos>"
    made.post_processor = processors.TemplateProcessing(
        single=f"$A {eos}", special_tokens=[(eos, made.token_to_id(eos))]
    )
    return made.to_str()


def write_sentence_piece(directory: Path, kind: str = "unigram") -> int:
    """Write the files of `sentence_piece`; returns the size of its vocabulary."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(sentence_piece(kind), encoding="utf-8")
    fields = {
        "tokenizer_class": "SiglipTokenizer",
        "pad_token": "</s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_input_names": ["input_ids"],
    }
    if kind != "unigram":
        fields = {
            "tokenizer_class": "GemmaTokenizer",
            "pad_token": "<pad>",
            "eos_token": "<eos>",
            "bos_token": "<bos>",
            "unk_token": "<unk>",
            "padding_side": "right",
        }
    (directory / "tokenizer_config.json").write_text(json.dumps(fields))
    return tokenizers.Tokenizer.from_str(sentence_piece(kind)).get_vocab_size()


def siglip_config(
    architecture: str, *, vocab_size: int, text: dict | None = None, vision: dict | None = None
) -> dict:
    """Fields of a SigLIP's `config.json`; `text` and `vision` change single fields."""
    shared = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
    ends = {"pad_token_id": 1, "bos_token_id": None, "eos_token_id": 1}
    text_fields = {"model_type": "siglip_text_model", **SIGLIP_TEXT, **shared, **ends}
    text_fields |= {"vocab_size": vocab_size, **(text or {})}
    vision_fields = {"model_type": "siglip_vision_model", **SIGLIP_VISION, **shared}
    vision_fields |= vision or {}
    if architecture == "SiglipModel":
        fields = {
            "model_type": "siglip",
            "text_config": text_fields,
            "vision_config": vision_fields,
        }
    else:
        fields = vision_fields if architecture == "SiglipVisionModel" else text_fields
    return {"architectures": [architecture], **fields}


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
    if architecture.startswith("Siglip"):
        return siglip_config(architecture, vocab_size=vocab_size, text=text, vision=vision)
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
    if row.key.startswith("logit_"):
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
    tokenizer: str = "unigram",
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
        bare_text: text keys without the prefix `text_model.`; of a SigLIP encoder, either's.
        position_ids: with the int64 constants that old files hold beside the weights.
        with_tokenizer: with tokenizer files.
        tokenizer: of a SigLIP, see `sentence_piece`.
        vocab_size: 0 for the tokenizer's own.
        config: see `hf_config`.
    """
    out.mkdir(parents=True)
    siglip = architecture.startswith("Siglip")
    size = 50
    if with_tokenizer:
        size = write_sentence_piece(out, tokenizer) if siglip else write_tokenizer(out)
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
        if siglip:
            processor = {
                "image_processor_type": "SiglipImageProcessor",
                "size": {"height": side, "width": side},
                "resample": 3,
                "image_mean": [0.5, 0.5, 0.5],
                "image_std": [0.5, 0.5, 0.5],
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


@contextlib.contextmanager
def logged(file=None):
    """Gather what the package logs meanwhile, a line each, in a file that holds text."""
    file = io.StringIO() if file is None else file
    logger, handler = logging.getLogger("jaxdefense"), logging.StreamHandler(file)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield file
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def computed(path):
    """The lines of a run's metrics, without those that tell how long it took."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in x.items() if k not in ("time", "samples_per_second")} for x in rows]


def attacked(*args: Any) -> dict[str, Any]:
    """Attack as `run_attack` does; the summary, as JSON holds it."""
    return json.loads(json.dumps(as_json(run_attack(*args))))


def write_result(
    path: Path, kind: type[Summary], settings: dict[str, Any], summary: dict[str, Any] | None
) -> Path:
    """Write a directory of results, or of a run that is not finished if there is no summary."""
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / "config.json", {"kind": kind.kind} | settings)
    if summary is not None:
        write_json(path / "summary.json", {"kind": kind.kind, "schema": SCHEMA} | summary)
    return path


# Of a defense of either encoder, what its summary must hold.
DEFENSE: dict[str, Any] = {
    "steps": 3, "seconds": 2.5, "samples_per_second": 40.0, "identities": 2, "final": {"total": 0.5}
}  # fmt: skip
