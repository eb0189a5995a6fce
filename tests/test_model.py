"""A model loaded in Python: its embeddings against transformers, under jit and grad."""

import ast
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, assert_type, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from PIL import Image
from reference import hf, torch

import jaxdefense as jd
from jaxdefense.clip.config import TextConfig
from jaxdefense.clip.ragged import ragged
from jaxdefense.clip.text import readout_of
from jaxdefense.data.packing import readout_at
from jaxdefense.demo.run import shipped_model
from jaxdefense.evals.embed import unit
from jaxdefense.results import TextDefenseSummary

TEXTS = ["a photo of an elephant", "Two girls are playing", "a cat"]
PACKAGE = Path(jd.__file__).parent


@pytest.fixture(scope="module")
def model():
    return jd.load(shipped_model())


@pytest.fixture(scope="module")
def photos():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (60, side, 3), np.uint8)) for side in (50, 48)]


# The package


def test_import_brings_nothing_heavy():
    code = (
        "import sys, jaxdefense as jd; assert {'load', 'defend_text'} <= set(dir(jd));"
        "assert not {'jax', 'numpy', 'flax', 'tyro', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_are_there_at_run_time_and_for_type_checkers():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (typed,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in typed.body if isinstance(node, ast.ImportFrom)]
    found = {str(alias.asname): f"{node.module}" for node in imports for alias in node.names}
    assert found == {name: f"jaxdefense.{where}" for name, where in jd._WHERE.items()}
    for name, module in found.items():
        assert getattr(jd, name) is getattr(sys.modules[module], name)
        assert name in dir(jd)
        assert not (PACKAGE / name).exists()  # whose import would take its place
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        jd.nothing  # noqa: B018
    assert (PACKAGE / "py.typed").exists()


# Embeddings


def test_tokens_are_padded_as_transformers_pads(model):
    theirs = transformers.AutoTokenizer.from_pretrained(shipped_model())(
        [*TEXTS, "long " * 100], padding="max_length", truncation=True, max_length=77
    )["input_ids"]
    assert model.tokenize([*TEXTS, "long " * 100]).tolist() == theirs
    assert model.tokenize(text for text in TEXTS).tolist() == theirs[:-1]


@pytest.mark.torch
@pytest.mark.parametrize(
    "architecture, config",
    [("CLIPModel", {}), ("CLIPModel", {"eos_token_id": 2}), ("SiglipModel", {})],
    ids=["token", "largest", "last"],
)
def test_features_are_those_of_transformers(tiny_dir, photos, architecture, config):
    path = tiny_dir(architecture=architecture, **config)
    ours = jd.load(path)
    theirs = getattr(hf, architecture).from_pretrained(path).eval()
    tokens, pixels = ours.tokenize(TEXTS), np.array(ours.preprocess(photos))
    with torch.no_grad():
        text = theirs.get_text_features(input_ids=torch.from_numpy(tokens).long())
        image = theirs.get_image_features(
            pixel_values=torch.from_numpy(pixels.transpose(0, 3, 1, 2))
        )
    for mine, features in (
        (ours.embed_tokens(tokens), text),
        (ours.embed_pixels(pixels), image),
        (ours.embed_texts(TEXTS), text),
        (ours.embed_photos(photos), image),
    ):
        np.testing.assert_allclose(mine, features.pooler_output.numpy(), atol=1e-4)


def test_embeddings_are_those_of_commands(model, photos):
    embedder = jd.Embedder(shipped_model())
    np.testing.assert_allclose(
        unit(np.asarray(model.embed_texts(TEXTS))), embedder.texts(TEXTS), atol=1e-5
    )
    pixels = embedder.pixels(np.stack([model.processor(photo) for photo in photos]))
    np.testing.assert_allclose(unit(np.asarray(model.embed_photos(photos))), pixels, atol=1e-5)


@pytest.mark.parametrize("readout", ["largest", "token", "last"])
def test_readout_is_found_as_on_the_host(readout):
    cfg = TextConfig(
        width=12, mlp_width=20, depth=1, num_heads=3, vocab_size=9, context_length=8,
        readout=readout, eos_token_id=7 if readout == "token" else None,
    )  # fmt: skip
    tokens_BT = np.array([[1, 7, 7, 0], [8, 7, 8, 7], [1, 2, 3, 4]])
    found = readout_of(jnp.asarray(tokens_BT), cfg)
    assert found.tolist() == readout_at(ragged([*tokens_BT]), cfg).tolist()


def test_types_are_known():
    """Here basedpyright is what tests: without `py.typed` or the types, all of these are Any."""
    typed = jd.load(shipped_model())
    assert_type(typed, jd.Model)
    assert_type(typed.embed_texts(TEXTS), jax.Array)
    assert_type(typed.tokenize(TEXTS), np.ndarray)
    call = partial(jd.defend_text, "model", ["Ann", ("Bo", "Bob")], ["a cat"], out="run")
    assert_type(call, partial[TextDefenseSummary])


def test_embeddings_under_jit_and_grad(model, photos):
    tokens_BT, pixels_BHWC = model.tokenize(TEXTS), model.preprocess(photos)
    text_BE = jax.jit(model.embed_tokens)(tokens_BT)
    np.testing.assert_allclose(text_BE, model.embed_tokens(tokens_BT), atol=1e-5)

    def score(pixels_BHWC, params=None):
        return (model.embed_pixels(pixels_BHWC, params) @ text_BE[0]).sum()

    slope = jax.jit(jax.grad(score))(pixels_BHWC)
    step = np.zeros_like(slope)
    step[0, 5, 6, 1] = 0.05  # a central difference, at one value of one photo
    rise = (score(pixels_BHWC + step) - score(pixels_BHWC - step)) / 0.1
    np.testing.assert_allclose(slope[0, 5, 6, 1], rise, rtol=0.05, atol=1e-3)

    slopes = jax.grad(lambda p: score(pixels_BHWC, p))(model.params)
    assert jax.tree.structure(slopes) == jax.tree.structure(model.params)
    vision = jax.tree.leaves(slopes["vision"])
    assert all(np.abs(x).max() > 0 for x in vision)
    assert not any(np.abs(x).max() for x in jax.tree.leaves(slopes["text"]))
    moved = jax.tree.map(lambda p, slope: p + 1e-4 * slope, model.params, slopes)
    assert score(pixels_BHWC, moved) > score(pixels_BHWC)


def test_wrong_arrays_are_refused_in_one_line(model, photos, tiny_dir):
    tokens_BT, pixels_BHWC = model.tokenize(TEXTS), model.preprocess(photos)
    nothing, number = cast(Any, (None, 5))
    for call, words in (
        (lambda: model.embed_tokens(np.zeros((1, 78), int)), "T at most 77"),
        (lambda: model.embed_tokens(tokens_BT[0]), "not int32 [77]"),
        (lambda: model.embed_tokens(tokens_BT.astype(float)), "not float64"),
        (lambda: model.embed_tokens(TEXTS), "must be integers"),
        (lambda: model.embed_pixels(pixels_BHWC[:, :40]), "not float32 [2, 40, 48, 3]"),
        (lambda: model.embed_pixels(np.zeros((1, 48, 48, 3), np.uint8)), "not uint8"),
        (lambda: model.tokenize("a cat"), "must be a list of texts"),
        (lambda: model.preprocess([np.zeros((4, 4, 3))]), "photo 0 must be a path"),
        (lambda: model.preprocess(["none.png"]), "none.png"),
        (lambda: model.embed_tokens(np.full((1, 5), -1)), "not in [-1, -1]"),
        (lambda: model.embed_tokens(jnp.full((1, 5), 10**6)), "not in [1000000, 1000000]"),
        (lambda: model.tokenize(None), "`texts` (=None) must be a list"),
        (lambda: model.tokenize(["a cat", 1]), "`texts`[1] (=1) must be a text"),
        (lambda: model.embed_photos(None), "`photos` (=None) must be a list"),
        (lambda: model.embed_photos("x.png"), "`photos` (='x.png') must be a list"),
        (lambda: model.embed_photos(photos[0]), "must be a list of photos"),
        (lambda: jd.load("nowhere"), "nowhere"),
        (lambda: jd.load(nothing), "not NoneType"),
        (lambda: jd.load(number), "not int"),
        (lambda: jd.load("https://host/model"), "is an address"),
    ):
        with pytest.raises(jd.InputError) as info:
            call()
        assert words in str(info.value) and "\n" not in str(info.value)
    lone = jd.load(tiny_dir(architecture="CLIPTextModelWithProjection"))
    with pytest.raises(jd.InputError, match="no image encoder"):
        lone.embed_pixels(pixels_BHWC)
