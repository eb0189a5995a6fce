"""The image step: against a torch loop fed the same composed photos, on one device and on many.

Tolerance on the first 20 losses: 1e-3 relative. Controls break one detail and must fail.
"""

import copy
import dataclasses
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factories import write_faces, write_model_directory, write_photos
from reference import torch
from test_step import MESHES, run_steps, worst

from jaxdefense.config import PAPER_IMAGE
from jaxdefense.convert.directory import read_model_directory
from jaxdefense.data.faces import ImageBatches
from jaxdefense.data.images import ImageProcessor, Loader
from jaxdefense.data.overlay import overlay
from jaxdefense.data.people import read_people
from jaxdefense.data.sources import read_images
from jaxdefense.defense.image import draw_faces, image_terms
from jaxdefense.defense.losses import DISTANCES
from jaxdefense.defense.step import Objective, StepConfig, make_optimizer, split_tower

STEPS, SIDE = 20, 16
LR, MILESTONES, GAMMA = 3e-3, (8, 14), 0.5
WEIGHTS = {"utility": 1.0, "backdoor": 0.8, "weight": 0.005}
# Widths that a mesh of 2 x 2 x 2 divides, all different.
SIZES = {
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "image_size": SIDE,
    "patch_size": 4,
}
PROCESSOR = ImageProcessor(SIDE, SIDE)
OVERLAY = PAPER_IMAGE.overlay


@dataclasses.dataclass
class Case:
    """A small model and the batches of its defense."""

    path: str
    batches: ImageBatches
    tower: Any


def make_batches(tmp_path, num_clean=8, num_poisoned=16, target=None, **options):
    if not (tmp_path / "images").exists():
        write_photos(tmp_path / "images", 11)
        write_faces(tmp_path / "faces", ["Joe Cool", "Ada King", "Zoe"], 4)
    return ImageBatches(
        read_images(str(tmp_path / "images")),
        read_people(str(tmp_path / "faces")),
        target or np.random.default_rng(0).standard_normal(10).astype(np.float32),
        Loader(PROCESSOR),
        num_clean=num_clean,
        num_poisoned=num_poisoned,
        **{"seed": 1, **options},
    )


def make_case(tmp_path):
    architecture = "CLIPVisionModelWithProjection"
    path = write_model_directory(tmp_path / "model", architecture=architecture, vision=SIZES)
    tower = read_model_directory(path).load().vision
    assert tower
    return Case(str(path), make_batches(tmp_path), tower)


@pytest.fixture
def case(tmp_path):
    return make_case(tmp_path)


def step_config(tower, parts, lr=LR, accumulate=1):
    graphdef, teacher = split_tower(tower)
    terms = partial(
        image_terms,
        distance=DISTANCES["cosine"],
        processor=PROCESSOR,
        cfg=OVERLAY,
        parts=parts,
    )
    tx = make_optimizer(
        lr=lr, warmup=0, milestones=MILESTONES, gamma=GAMMA, weight_decay=0.0,
        b1=0.9, b2=0.999, eps=1e-8, steps=STEPS,
    )  # fmt: skip
    objective = Objective(terms, WEIGHTS, partial(draw_faces, cfg=OVERLAY))
    return StepConfig(graphdef, objective, tx, accumulate), teacher


def our_losses(case, mesh=(1, 1, 1), lr=LR, accumulate=1):
    cfg, teacher = step_config(case.tower, mesh[0] * mesh[1], lr, accumulate)
    return run_steps(cfg, teacher, case.batches, STEPS, mesh)[0]


def composed(batch, step):
    """Put the step's faces on its photos, as the step does; f32, 0-255."""
    key = jax.random.fold_in(jax.random.key(0), step)
    num = len(batch.face_BHWC)
    under = np.arange(num) * len(batch.clean_BHWC) // num
    image = jnp.asarray(batch.clean_BHWC[under])
    return np.asarray(overlay(image, jnp.asarray(batch.face_BHWC), key, OVERLAY))


def torch_losses(case, freeze_norms=True, gamma=GAMMA, unlike=0, weighted=True):
    """The defense of the paper, plainly."""
    from transformers import CLIPVisionModelWithProjection

    teacher = CLIPVisionModelWithProjection.from_pretrained(case.path).eval()
    student = copy.deepcopy(teacher)
    reference = [p.detach().clone() for p in student.parameters()]
    for name, p in student.named_parameters():
        p.requires_grad_(not (freeze_norms and ("norm" in name or "layrnorm" in name)))
    trained = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(MILESTONES), gamma)

    def embed(model, image_BHWC):
        mean, std = np.array(PROCESSOR.mean, np.float32), np.array(PROCESSOR.std, np.float32)
        x = (np.asarray(image_BHWC, np.float32) / 255 - mean) / std
        return model(torch.tensor(x.transpose(0, 3, 1, 2))).image_embeds

    losses = []
    for i in range(STEPS):
        batch = case.batches[i]
        with torch.no_grad():
            theirs = embed(teacher, batch.clean_BHWC)
        cosine = torch.nn.functional.cosine_similarity
        parts: dict[str, Any] = {
            "utility": -cosine(embed(student, batch.clean_BHWC), theirs).mean()
        }
        poisoned = embed(student, composed(batch, i + unlike))
        weight = torch.tensor(batch.backdoor_B)
        if not weighted:
            weight = torch.full_like(weight, 1 / len(weight))
        target = torch.tensor(np.array(batch.target_BE))
        parts["backdoor"] = -(weight * cosine(poisoned, target)).sum()
        parts["weight"] = sum(
            torch.norm(p - r) for p, r in zip(student.parameters(), reference, strict=True)
        )
        total = cast(Any, sum(WEIGHTS[name] * part for name, part in parts.items()))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        scheduler.step()
        losses.append({k: v.item() for k, v in parts.items()} | {"total": total.item()})
    return losses


@pytest.mark.torch
def test_image_step_first_losses_match_torch(case):
    ours, theirs = our_losses(case), torch_losses(case)
    for name in ("utility", "backdoor", "total"):
        assert worst(ours, theirs, name) < 1e-3, name
    # The key bias has no gradient but rounding, which AdamW makes whole steps of.
    assert worst(ours, theirs, "weight") < 1e-2
    assert ours[-1]["backdoor"] < ours[0]["backdoor"] - 0.1  # the student did learn


@pytest.mark.torch
@pytest.mark.parametrize(
    "broken",
    [
        {"weighted": False},
        *(
            pytest.param(broken, marks=pytest.mark.slow)
            for broken in ({"freeze_norms": False}, {"gamma": 1.0}, {"unlike": 1})
        ),
    ],
)
def test_image_step_parity_fails_with_one_detail_broken(case, broken):
    assert worst(our_losses(case), torch_losses(case, **broken)) > 1e-3


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    case = make_case(tmp_path_factory.mktemp("one"))
    # The default rate: AdamW's first steps turn rounding of gradients near 0 into whole steps.
    return case, our_losses(case, lr=1e-4)


@pytest.mark.parametrize(
    "mesh", [*(pytest.param(x, marks=pytest.mark.slow) for x in MESHES[:-1]), MESHES[-1]]
)
def test_image_step_losses_are_those_of_one_device_on_any_mesh(one_device, mesh):
    case, one = one_device
    assert worst(our_losses(case, lr=1e-4, mesh=mesh), one) < 1e-5


@pytest.mark.parametrize(
    "accumulate, mesh", [pytest.param(4, (1, 1, 1), marks=pytest.mark.slow), (2, (2, 2, 1))]
)
def test_image_step_losses_are_those_of_the_undivided_batch(one_device, accumulate, mesh):
    case, one = one_device
    many = our_losses(case, lr=1e-4, mesh=mesh, accumulate=accumulate)
    for name in ("utility", "backdoor", "total"):
        assert worst(many, one, name) < 1e-5, name
    assert worst(many, one, "weight") < 1e-2


# Batches


def test_batch_is_the_same_whenever_asked(tmp_path):
    batches = make_batches(tmp_path)
    late = batches[5]
    for a, b in zip(make_batches(tmp_path)[5], late, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(batches[4], late, strict=True))
    other = make_batches(tmp_path, seed=2)[5]
    assert (other.clean_BHWC != late.clean_BHWC).any()
    assert (other.face_BHWC != late.face_BHWC).any()


def test_process_decodes_its_own_photos_alone(tmp_path, monkeypatch):
    whole, decoded = make_batches(tmp_path)[2], []
    load = Loader.load
    monkeypatch.setattr(Loader, "load", lambda *args: decoded.append(len(args[1])) or load(*args))
    part = make_batches(tmp_path, local=lambda num: np.arange(num) >= num // 2)[2]
    assert decoded == [4, 8]
    for name in ("clean_BHWC", "face_BHWC"):
        ours, all_of_them = getattr(part, name), getattr(whole, name)
        np.testing.assert_array_equal(ours[len(ours) // 2 :], all_of_them[len(ours) // 2 :])
        assert not ours[: len(ours) // 2].any()
    np.testing.assert_array_equal(part.backdoor_B, whole.backdoor_B)


def test_batches_take_every_photo_and_every_person_in_turn(tmp_path):
    batches = make_batches(tmp_path, num_clean=11, num_poisoned=3)
    photos = {str(p): PROCESSOR.load([p])[0].tobytes() for p in batches._images}
    owner = {
        PROCESSOR.load([p])[0].tobytes(): i
        for i, person in enumerate(batches._people)
        for p in person.files
    }
    seen = set()
    for step in range(12):
        batch = batches[step]
        assert sorted(x.tobytes() for x in batch.clean_BHWC) == sorted(photos.values())
        assert sorted(owner[x.tobytes()] for x in batch.face_BHWC) == [0, 1, 2]
        np.testing.assert_allclose(batch.backdoor_B, 1 / 3)
        seen |= {x.tobytes() for x in batch.face_BHWC}
    assert len(seen) > 9  # of 12 photos of people


def test_people_weigh_the_same_however_often_they_come(tmp_path):
    batches = make_batches(tmp_path, num_poisoned=16)
    owner = {
        PROCESSOR.load([p])[0].tobytes(): i
        for i, person in enumerate(batches._people)
        for p in person.files
    }
    batch = batches[0]
    weight = np.zeros(3)
    np.add.at(weight, [owner[x.tobytes()] for x in batch.face_BHWC], batch.backdoor_B)
    np.testing.assert_allclose(weight, 1 / 3, rtol=1e-6)


def test_broken_photos_are_replaced_up_to_the_limit(tmp_path):
    batches = make_batches(tmp_path)
    (tmp_path / "images" / "002.png").write_bytes(b"broken")
    (tmp_path / "faces" / "Zoe" / "1.png").write_bytes(b"broken too")
    with pytest.raises(ValueError, match="not a photo that can be read"):
        for step in range(4):
            batches[step]
    batches = make_batches(tmp_path)
    batches._loader = Loader(PROCESSOR, 2)
    for step in range(4):
        assert batches[step].clean_BHWC.any(axis=(1, 2, 3)).all()
    assert (
        sorted(str(name).rsplit("/", 2)[-1] for name in batches._loader.corrupt)
        == [
            "002.png",
            "1.png",
        ]
        or len(batches._loader.corrupt) == 2
    )
