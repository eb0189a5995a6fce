"""The PyTorch beside jaxdefense: compiled as plain, and products counted on either side.

Sums over the layers are the reference of the counts.
"""

import json

import numpy as np
import pytest
from factories import write_faces, write_model_directory, write_photos
from reference import torch

from jaxdefense.bench.idia import JaxMatching
from jaxdefense.bench.image import ImageWork
from jaxdefense.bench.matching import MatchingWork
from jaxdefense.bench.text import JaxTextSteps, TextWork
from jaxdefense.bench.torch.attack import TorchMatching, TorchPrompts
from jaxdefense.bench.torch.compiled import (
    NUM_BATCHES,
    CompiledImageSteps,
    CompiledPrompts,
    CompiledTextSteps,
)
from jaxdefense.cli import main
from jaxdefense.clip.config import CLIPConfig, TextConfig, VisionConfig
from jaxdefense.clip.presets import PRESETS
from jaxdefense.data.images import read_folders
from jaxdefense.data.sources import read_images
from jaxdefense.demo import world
from jaxdefense.demo.run import shipped_model

pytestmark = pytest.mark.usefixtures("one_thread")
NUM = 6
TEXT = TextConfig(16, 40, 2, 2, vocab_size=2048, embed=8, readout="token", eos_token_id=2047)
NAMES = ["Joe Cool", "Ada King Noel", "Zoe Zed"]


@pytest.fixture
def text():
    return TextWork(TEXT, shipped_model(), world.captions(50, 0), NAMES, NUM)


@pytest.fixture
def image(tmp_path):
    images = write_photos(tmp_path / "images", 9, side=30)
    faces = write_faces(tmp_path / "faces", NAMES, 4)
    cfg = VisionConfig(16, 40, 2, 2, image_size=24, patch_size=8, embed=8)
    return ImageWork(cfg, read_images(str(images)), read_folders(faces, "faces"), NUM)


def seeded(constructor):
    torch.manual_seed(0)
    return constructor()


def compiled(implementation, backend="eager"):
    torch.compiler.reset()
    assert implementation.compile(backend) == ""
    return implementation


def compare_gradients(peer):
    """Compare what inductor computes with the eager step.

    Losses of later steps would differ: AdamW makes full steps of gradients that are rounding alone.
    """
    compiled(peer, "inductor")
    peer.steps(1)  # at the start student and teacher agree
    for inputs in peer._batches(2):
        found = []
        for stance in ("default", "force_eager"):
            with torch.compiler.set_stance(stance):
                loss = peer.loss(*inputs)
            trained = [p for p in peer.student.parameters() if p.requires_grad]
            gradients = torch.autograd.grad(loss, trained)
            found.append((loss.item(), torch.cat([x.flatten() for x in gradients]).numpy()))
        (loss, gradient), (wanted, wanted_gradient) = found
        np.testing.assert_allclose(loss, wanted, rtol=1e-4)
        scale = np.abs(wanted_gradient).max()
        np.testing.assert_allclose(gradient, wanted_gradient, atol=1e-4 * scale)
        assert scale > 0


def compare_text(text, backend):
    plain, peer = seeded(text.on_torch()), seeded(text.on_torch(CompiledTextSteps))
    compiled(peer, backend)
    theirs = peer.steps(NUM_BATCHES)
    np.testing.assert_allclose(theirs, plain.steps(NUM_BATCHES), rtol=1e-4)
    assert np.ptp(theirs) > 1e-2
    assert peer.tokens_per_sample() == plain.tokens_per_sample()


def compare_images(image, backend):
    plain, peer = seeded(image.on_torch()), seeded(image.on_torch(2, CompiledImageSteps))
    compiled(peer, backend)
    peer._rng = np.random.default_rng(0)  # compiling drew from it
    theirs = peer.steps(NUM_BATCHES)
    np.testing.assert_allclose(theirs, plain.steps(NUM_BATCHES), rtol=1e-4)
    assert np.ptp(theirs) > 1e-2


def compare_prompts(tmp_path, backend):
    model = write_model_directory(
        tmp_path / "model",
        architecture="CLIPTextModelWithProjection",
        text={"max_position_embeddings": 77},
    )
    prompts = [[f"a photo of {name}" for name in NAMES], NAMES]
    plain, peer = (kind(model, prompts) for kind in (TorchPrompts, CompiledPrompts))
    compiled(peer, backend)
    np.testing.assert_allclose(peer.sample(), plain.sample(), atol=1e-5)
    assert peer.computed() < plain.computed()


@pytest.mark.torch
def test_compiled_text_steps_have_the_losses_of_the_plain_ones(text):
    compare_text(text, "eager")


@pytest.mark.torch
def test_compiled_image_steps_have_the_losses_of_the_plain_ones(image):
    compare_images(image, "eager")


@pytest.mark.torch
def test_compiled_prompts_have_the_embeddings_of_the_plain_ones(tmp_path):
    compare_prompts(tmp_path, "eager")


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, of itself
def test_inductor_keeps_losses_gradients_and_embeddings(tmp_path, monkeypatch, text, image):
    # A run that was killed may have left half a file in the cache that all share.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setattr("jaxdefense.bench.torch.compiled.NUM_BATCHES", 2)  # fewer shapes
    compare_gradients(text.on_torch(CompiledTextSteps)())
    compare_gradients(image.on_torch(2, CompiledImageSteps)())
    compare_prompts(tmp_path, "inductor")


@pytest.mark.torch
def test_what_cannot_be_compiled_says_why_in_one_line(text):
    peer = text.on_torch(CompiledTextSteps)()

    def fail(*_):
        raise RuntimeError("no C++ compiler\n\nand much more")

    torch.compiler.reset()
    why = peer.compile(fail)
    assert "no C++ compiler" in why and "\n" not in why


def forward(length, read_out, last_is_whole):
    """Operations of a text encoder's products on a row that holds so many captions."""
    d, f, t = TEXT.width, TEXT.mlp_width, length
    layer = 2 * t * (4 * d * d + 2 * d * f) + 4 * t * t * d
    # Of the last block only keys and values are needed at all positions.
    of_read_out = read_out * (2 * (2 * d * d + 2 * d * f) + 4 * t * d)
    last = layer if last_is_whole else 2 * t * 2 * d * d + of_read_out
    return (TEXT.depth - 1) * layer + last + read_out * 2 * d * TEXT.embed


def test_products_of_our_text_step_are_those_of_its_layers(text, monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", CLIPConfig(TEXT, None))
    ours = JaxTextSteps("tiny", text)
    rows, slots = ours.fixed.student_readout_RS.shape
    length = ours.fixed.student_tokens_RT.shape[1]
    # The student's forward and backward, which is twice as much; the teacher's forward.
    assert ours.flops() == (3 + 1) * rows * forward(length, slots, False)


@pytest.mark.torch
def test_products_of_torchs_text_steps_are_those_of_its_layers(text):
    plain, peer = text.on_torch()(), compiled(text.on_torch(CompiledTextSteps)())
    assert plain.flops() == 2 * NUM * (3 + 1) * forward(TEXT.context_length, 1, True)
    drawn, counts = seeded(text.on_torch()), []
    for _ in range(NUM_BATCHES):
        clean, poisoned, targets = drawn.draw(NUM)
        student, teacher = (
            -(-max(len(drawn._tokenizer(x).input_ids) for x in texts) // 8) * 8
            for texts in (clean + poisoned, targets)
        )
        counts.append(NUM * (2 * 3 * forward(student, 1, True) + forward(teacher, 1, True)))
    assert peer.flops() == np.mean(counts)
    assert len(set(counts)) > 1


@pytest.mark.parametrize(
    "kind", [JaxMatching, pytest.param(TorchMatching, marks=pytest.mark.torch)]
)
def test_products_of_the_matching_are_one_a_sample(kind):
    work = MatchingWork(photos=16, candidates=24, templates=3, embed=8)
    assert kind(work).flops() == 16 * 24 * 3 * 2 * 8


@pytest.mark.torch
@pytest.mark.slow
def test_bench_times_compiled_torch(capfd):
    assert main(["bench", "text", "--num", "8", "--calls", "1", "--rounds", "1", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)["step"]
    assert list(found["samples_per_second"])[-1] == "torch_compiled"
    assert found["ratio_to_compiled"] > 0 and found["share"]["torch_compiled"] > 0
    gflop = found["gflop_a_sample"]
    assert gflop["torch_compiled"] < gflop["torch"]
