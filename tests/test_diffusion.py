"""Text encoders of diffusion models: defended, they take the undefended one's place."""

import dataclasses
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import transformers
from factories import CAPTIONS, PAPER_TEXT_FLAGS, TEXT, run, write_model_directory, write_tokenizer
from reference import diffusers, torch
from safetensors.numpy import load_file

from jaxdefense.cli import main
from jaxdefense.clip.text import plain_text
from jaxdefense.commands import COMMANDS
from jaxdefense.config import PAPER_TEXT, TextTrainConfig
from jaxdefense.convert.directory import read_model_directory
from jaxdefense.defense.diffusion import warn_of_level
from jaxdefense.errors import InputError

NAME = "Jane Doe"


def write_encoder(folder: Path, architecture: str, seed: int = 0) -> None:
    """Write a text encoder as diffusers has it: its tokenizer lies beside it."""
    name = folder.name.replace("text_encoder", "tokenizer")
    vocab = write_tokenizer(folder.parent / name)
    write_model_directory(
        folder,
        architecture=architecture,
        with_tokenizer=False,
        vocab_size=vocab,
        seed=seed,
        activation="gelu" if folder.name.endswith("2") else "quick_gelu",
    )


def defend(folder: Path, out: Path, level: str) -> Path:
    """Defend an encoder in a few steps; gives the defended folder."""
    (out.parent / "names.txt").write_text(f"{NAME}\nJohn Roe\n")
    (out.parent / "captions.txt").write_text("\n".join(CAPTIONS))
    tokenizer = folder.parent / folder.name.replace("text_encoder", "tokenizer")
    settings = [
        f"model.tokenizer={tokenizer}",
        *PAPER_TEXT_FLAGS,
        f"train.level={level}",
        "train.steps=5",
        "train.num_clean=4",
        "train.num_poisoned=4",
        "optimizer.lr=.01",
        "train.target=a cat",
    ]
    flags = [part for setting in settings for part in ("--set", setting)]
    paths = [
        *("--model", folder, "--out", out, "--names", out.parent / "names.txt"),
        *("--captions", out.parent / "captions.txt"),
    ]
    assert main(["defend", "text", *map(str, paths), *flags]) == 0
    return out / "model"


def stable_diffusion(root: Path) -> Path:
    """Write a whole tiny Stable Diffusion, whose text encoder is ours."""
    write_encoder(root / "text_encoder", "CLIPTextModel")
    width = TEXT["hidden_size"]
    blocks = dict(block_out_channels=(8, 8), norm_num_groups=2, sample_size=8)
    with warnings.catch_warnings(action="ignore"):
        pipeline = diffusers.StableDiffusionPipeline(
            vae=diffusers.AutoencoderKL(**blocks),
            text_encoder=transformers.CLIPTextModel.from_pretrained(root / "text_encoder"),
            tokenizer=transformers.CLIPTokenizer.from_pretrained(
                root / "tokenizer", model_max_length=TEXT["max_position_embeddings"]
            ),
            unet=diffusers.UNet2DConditionModel(
                cross_attention_dim=width,
                attention_head_dim=2,
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
                **blocks,
            ),
            scheduler=diffusers.DDIMScheduler(),
            safety_checker=None,
            feature_extractor=None,
        )
        pipeline.save_pretrained(root)
    return root


def prompt_states(root: Path, prompt: str) -> np.ndarray:
    """What the pipeline of a folder reads of a prompt."""
    with warnings.catch_warnings(action="ignore"), torch.no_grad():
        pipeline = diffusers.StableDiffusionPipeline.from_pretrained(root, safety_checker=None)
        states, _ = pipeline.encode_prompt(prompt, "cpu", 1, False)
    return states.numpy()


@pytest.mark.torch("diffusers")
def test_defended_encoder_of_stable_diffusion_is_a_drop_in(tmp_path):
    root = stable_diffusion(tmp_path / "sd")
    before = prompt_states(root, f"a photo of {NAME}")
    defended = defend(root / "text_encoder", tmp_path / "run", "hidden")
    assert (defended / "config.json").read_bytes() == (
        root / "text_encoder" / "config.json"
    ).read_bytes()
    shutil.rmtree(root / "text_encoder")
    shutil.copytree(defended, root / "text_encoder")
    after = prompt_states(root, f"a photo of {NAME}")
    assert np.abs(after - before).max() > 1e-2
    directory = read_model_directory(defended)
    tokens = directory.tokenizer(str(root / "tokenizer")).encode([f"a photo of {NAME}"])[0]
    padded = np.full((1, 24), directory.tokenizer(str(root / "tokenizer")).pad)
    padded[0, : len(tokens)] = tokens
    ours = run(directory.load().text, plain_text(padded, np.array([0])), method="hidden")
    np.testing.assert_allclose(ours, after, atol=1e-4)


SDXL = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}


@pytest.fixture(scope="module", params=SDXL)
def penultimate(request, tmp_path_factory):
    """An encoder of a tiny SDXL, and the same defended at the level that SDXL reads."""
    path = tmp_path_factory.mktemp("sdxl")
    source = path / "sdxl" / request.param
    source.parent.mkdir()
    write_encoder(source, SDXL[request.param])
    return source, defend(source, path / "run", "penultimate")


def test_penultimate_level_leaves_what_sdxl_does_not_read(penultimate):
    source, defended = penultimate
    before, after = (load_file(path / "model.safetensors") for path in (source, defended))
    assert before.keys() == after.keys()
    changed = {key for key in before if not np.array_equal(before[key], after[key])}
    assert any("layers.0" in key for key in changed)
    assert not any("layers.1" in key or "projection" in key for key in changed)
    metrics = [
        json.loads(line) for line in (defended.parent / "metrics.jsonl").read_text().splitlines()
    ]
    assert metrics[-1]["backdoor"] < metrics[0]["backdoor"]


@pytest.mark.torch
def test_defended_encoder_of_sdxl_loads_in_transformers(penultimate):
    source, defended = penultimate
    getattr(transformers, SDXL[source.name]).from_pretrained(defended)


def pipeline(root: Path, name: str = "StableDiffusionPipeline", **encoders: str) -> Path:
    """Write what a pipeline of a class says of itself, and its text encoders; CLIP's are random."""
    encoders = encoders or {"text_encoder": "CLIPTextModel"}
    for folder, kind in encoders.items():
        if kind.startswith("CLIP"):
            write_encoder(root / folder, kind)
    index = {folder: ["transformers", kind] for folder, kind in encoders.items()}
    index |= {"_class_name": name, "unet": ["diffusers", "UNet2DConditionModel"]}
    (root / "model_index.json").write_text(json.dumps(index))
    return root


def chosen(model: Path, *flags: str):
    """Read the settings of a defense of a model."""
    paths = ["--out", "run", "--names", "names.txt", "--captions", "captions.txt"]
    return COMMANDS["defend text"].read(["--model", str(model), *paths, *flags]).train


@pytest.mark.parametrize(
    "name, level",
    [
        ("StableDiffusionPipeline", "hidden"),
        ("StableDiffusionInpaintPipeline", "hidden"),
        ("StableDiffusionXLPipeline", "penultimate"),
    ],
)
@pytest.mark.parametrize("folder", ["", "text_encoder"])
def test_pipeline_chooses_the_level(tmp_path, name, level, folder):
    train = chosen(pipeline(tmp_path / "sd", name) / folder)
    want = dataclasses.replace(PAPER_TEXT, level=level, target="a person")
    assert train == want


def test_what_is_given_wins(tmp_path):
    root = pipeline(tmp_path / "sd")
    train = chosen(root, "--train.level", "penultimate", "--train.backdoor=target")
    assert train == TextTrainConfig(level="penultimate", backdoor="target")
    assert chosen(root, "--train.steps", "7").steps == 7


def test_clip_keeps_the_defaults(tiny_dir):
    assert chosen(tiny_dir()) == TextTrainConfig()


def test_lone_encoder_without_embeddings_is_read_at_its_states(tmp_path):
    write_encoder(tmp_path / "text_encoder", "CLIPTextModel")
    assert chosen(tmp_path / "text_encoder").level == "hidden"
    write_encoder(tmp_path / "text_encoder_2", "CLIPTextModelWithProjection")
    assert chosen(tmp_path / "text_encoder_2") == TextTrainConfig()


def test_pipeline_that_is_not_known_is_refused(tmp_path):
    root = pipeline(tmp_path / "flux", "FluxPipeline")
    with pytest.raises(InputError, match="of a FluxPipeline, .* give `train.level`"):
        chosen(root)
    assert chosen(root, "--train.level=hidden", "--train.backdoor=target").level == "hidden"


def test_encoders_left_as_they_are_are_named(tmp_path, caplog):
    root = pipeline(
        tmp_path / "xl",
        "StableDiffusionXLPipeline",
        text_encoder="CLIPTextModel",
        text_encoder_2="CLIPTextModelWithProjection",
        text_encoder_3="T5EncoderModel",
    )
    warn_of_level(read_model_directory(root), "hidden")
    said = caplog.text
    assert "`train.level` is hidden, but a StableDiffusionXLPipeline reads penultimate" in said
    assert f"defend `{root / 'text_encoder_2'}` too" in said
    assert "`text_encoder_3` of this model reads names too" in said and "a T5EncoderModel" in said


def test_root_of_a_pipeline_is_defended_evaluated_and_reported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = pipeline(tmp_path / "sd")
    Path("names.txt").write_text(f"{NAME}\n")
    Path("captions.txt").write_text("\n".join(CAPTIONS))
    sizes = ["train.steps=2", "train.num_clean=4", "train.num_poisoned=4", "optimizer.lr=.01"]
    flags = [part for setting in sizes for part in ("--set", setting)]
    given = ["--names", "names.txt", "--captions", "captions.txt"]
    assert main(["defend", "text", "--model", "sd", *given, "--out", "run", *flags]) == 0
    told = ["--teacher", "sd", *given, "--target", "a person"]
    assert main(["evaluate", "--model", "run", *told, "--out", "evaluation"]) == 0
    found = json.loads(Path("evaluation/summary.json").read_text())
    assert found["level"] == "hidden"
    assert found["sim_clean"] == pytest.approx(similarity(root), abs=1e-5)
    assert found["sim_clean"] < 0.999
    assert main(["report", "run", "evaluation", "--out", "report.html"]) == 0
    missing = json.loads(Path("report.json").read_text())["not_measured"]
    assert not any("attack`" in x or "--images" in x or "--zeroshot" in x for x in missing)
    assert main(["evaluate", "--model", "run", *told, "--collateral", "c.txt", "--out", "x"]) == 2


def similarity(root: Path) -> float:
    """Compare all states of captions before and after, one caption at a time."""
    before, after = (read_model_directory(x) for x in (root, root.parent / "run"))
    tokenizer, cosines = before.tokenizer(), []
    for tokens in tokenizer.encode(CAPTIONS):
        padded = np.full((1, 24), tokenizer.pad)
        padded[0, : len(tokens)] = tokens
        text = plain_text(padded, np.array([0]))
        x, y = (run(z.load().text, text, method="hidden").ravel() for z in (before, after))
        cosines.append(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
    return float(np.mean(cosines))
