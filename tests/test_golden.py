"""Our encoders against torch's recorded outputs, where torch is not installed.

The recording is made by `make_golden.py`; tolerance 1e-4, maximum absolute error, f32.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from factories import run, write_weights
from make_golden import GOLDEN, make

from jaxdefense.clip.text import plain_text
from jaxdefense.convert.directory import read_model_directory

WHOLE = 1e-4
OTHER = {"quick_gelu": "gelu", "gelu": "quick_gelu"}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def outputs(golden, activation, path):
    """What our model makes of the recorded weights and inputs."""
    (path / "config.json").write_text(str(golden[f"{activation}/config.json"]))
    prefix = "weights/"
    write_weights(
        path, {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)}
    )
    model = read_model_directory(path).load()
    text = plain_text(golden["tokens_BT"], golden["readout_B"])
    text_BE = run(model.text, text)[:, 0]
    image_BE = run(model.vision, golden["image_BHWC"])
    unit = [x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (image_BE, text_BE)]
    return {
        "hidden_BTD": run(model.text, text, method="hidden"),
        "text_BE": text_BE,
        "image_BE": image_BE,
        "logits_BM": jnp.exp(model.logit_scale[...]) * unit[0] @ unit[1].T,
    }


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_outputs_match_recorded_torch_and_not_those_of_the_other_gelu(golden, activation, tmp_path):
    for name, ours in outputs(golden, activation, tmp_path).items():
        theirs = golden[f"{activation}/{name}"]
        assert ours.shape == theirs.shape and np.abs(theirs).max() > 0.5
        assert np.abs(ours - theirs).max() <= WHOLE, name
        assert np.abs(ours - golden[f"{OTHER[activation]}/{name}"]).max() > 10 * WHOLE, name


@pytest.mark.torch
def test_recording_is_what_torch_says_today(golden):
    made = make()
    assert made.keys() == golden.keys()
    for name, value in made.items():
        if value.dtype.kind == "f":
            np.testing.assert_allclose(value, golden[name], rtol=0, atol=1e-5, err_msg=name)
        else:
            assert np.array_equal(value, golden[name]), name


def test_recording_is_small():
    assert GOLDEN.stat().st_size < 100_000
