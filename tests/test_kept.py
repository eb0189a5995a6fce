"""The teacher's embeddings that are kept: the same losses as without, from fewer products."""

import dataclasses
import functools
import json
import re
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
import test_image_step
import test_loop
import test_step
from factories import CAPTIONS, logged, write_faces, write_model_directory, write_photos
from flax import nnx
from test_image_step import PROCESSOR, run_steps, worst
from test_loop import assert_same_run

from jaxdefense.bench.flops import product_flops
from jaxdefense.clip.config import VisionConfig
from jaxdefense.clip.presets import preset
from jaxdefense.clip.text import TextTower
from jaxdefense.clip.tokenizer import Tokenizer
from jaxdefense.clip.vision import VisionTower
from jaxdefense.config import (
    PAPER_IMAGE,
    PAPER_IMAGE_OPTIMIZER,
    PAPER_TEXT,
    DefendImageConfig,
    ImageDataConfig,
    ImageTrainConfig,
    ModelConfig,
    TextTrainConfig,
)
from jaxdefense.convert.directory import read_model_directory
from jaxdefense.data.captions import tokenize_captions
from jaxdefense.data.faces import ImageBatch
from jaxdefense.data.identities import Identity
from jaxdefense.data.images import ImageProcessor
from jaxdefense.data.names import random_names
from jaxdefense.data.people import read_people
from jaxdefense.data.triggers import Carriers, TextBatches, Triggers
from jaxdefense.defense import text as text_defense
from jaxdefense.defense.carriers import CARRIERS
from jaxdefense.defense.defend import run
from jaxdefense.defense.image import image_objective, plan_image
from jaxdefense.defense.kept import PHOTO_ROUNDS, Teacher, keep_photos, keep_texts, num_to_keep
from jaxdefense.defense.own import NONE, OwnLoss
from jaxdefense.defense.step import StepConfig, init_state, make_optimizer, split_tower, train_step
from jaxdefense.defense.text import make_triggers, plan_text, text_objective
from jaxdefense.demo import world
from jaxdefense.demo.run import shipped_model
from jaxdefense.errors import InputError
from jaxdefense.sharding import AXES, ShardingRules, sharding_tree

STEPS = 6
VISION = VisionConfig(12, 20, 3, 2, embed=10, image_size=16, patch_size=4)


def on_devices(cfg, teacher, shape=(1, 1, 1)):
    """The teacher on a mesh of this shape."""
    devices = np.array(jax.devices()[: np.prod(shape)]).reshape(shape)
    mesh, rules = jax.sharding.Mesh(devices, AXES), ShardingRules()
    placed = jax.device_put(teacher, sharding_tree(teacher, mesh, rules))
    return Teacher(cfg.graphdef, placed, mesh, rules)


def step_config(objective, tower, accumulate=1):
    graphdef, teacher = split_tower(tower)
    # AdamW's first steps turn rounding of gradients near 0 into whole steps; so the rate is low and
    # epsilon high.
    tx = make_optimizer(
        1e-4, warmup=2, milestones=(0.5,), gamma=0.3, weight_decay=0.0,
        b1=0.9, b2=0.999, eps=1e-5, steps=STEPS,
    )  # fmt: skip
    return StepConfig(graphdef, objective, tx, accumulate), teacher


def flops(cfg, teacher, batch):
    """Operations of the products of a step."""
    step = partial(train_step, cfg=cfg)
    state = jax.eval_shape(partial(init_state, cfg=cfg), teacher)
    return product_flops(step, state, teacher, batch, jax.random.key(0))


# Photos


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photos, faces, a model, and the run that nothing is kept of."""
    path = tmp_path_factory.mktemp("photos")
    write_model_directory(
        path / "model", architecture="CLIPVisionModelWithProjection", vision=test_image_step.SIZES
    )
    write_faces(path / "others", ["Bo Ek", "Cy Li"], 3)
    test_image_step.make_batches(path)  # writes the photos
    return path


def image_case(path, t, mesh=(1, 1, 1), kept=True, accumulate=1):
    """The parts of an image step, with the terms that these settings ask for."""
    keep: Any = read_people(str(path / "others")) if t.num_keep else ()
    batches = test_image_step.make_batches(
        path, t.num_clean, t.num_poisoned, keep=keep, num_keep=t.num_keep
    )
    tower = read_model_directory(path / "model").load().vision
    objective = image_objective(t, PROCESSOR, mesh[0] * mesh[1])
    cfg, teacher = step_config(objective, tower, accumulate)
    if kept:
        keep_photos(batches, PROCESSOR, on_devices(cfg, teacher, mesh))
    return cfg, teacher, batches


KEEPING = dataclasses.replace(
    PAPER_IMAGE, num_clean=8, num_poisoned=16, num_keep=8, w_keep=3.0, steps=STEPS
)


def image_losses(path, t, mesh=(1, 1, 1), **options):
    return run_steps(*image_case(path, t, mesh, **options), STEPS, mesh)[0]


@pytest.mark.parametrize(
    "num_keep, accumulate, mesh", [(8, 1, (1, 1, 1)), (8, 2, (2, 2, 2)), (0, 2, (2, 2, 2))]
)
def test_image_losses_are_those_without(photos, num_keep, accumulate, mesh):
    t = dataclasses.replace(KEEPING, num_keep=num_keep, w_keep=3.0 * bool(num_keep))
    ours = image_losses(photos, t, mesh, accumulate=accumulate)
    theirs = image_losses(photos, t, kept=False)
    for name in ["utility", "backdoor", "total"] + ["keep"] * bool(num_keep):
        assert worst(ours, theirs, name) < 1e-5, name
    assert ours[-1]["weight"] > 0.01  # the student did move


def test_image_losses_are_others_with_the_embeddings_of_other_photos(photos):
    cfg, teacher, batches = image_case(photos, KEEPING)
    assert batches._kept_NE is not None
    batches.keep(np.roll(batches._kept_NE, 1, 0))
    theirs = image_losses(photos, KEEPING, kept=False)
    assert worst(run_steps(cfg, teacher, batches, STEPS)[0], theirs, "utility") > 1e-3


def shapes_of_photos(t, cfg, kept):
    """A batch of shapes alone, with the terms that these settings ask for."""
    shape = jax.ShapeDtypeStruct

    def photos(num):
        return shape((num, cfg.image_size, cfg.image_size, 3), np.uint8)

    def floats(*shape_of):
        return shape(shape_of, np.float32)

    bounded = t.backdoor == "bounded"
    batch: Any = {
        "clean_BHWC": photos(t.num_clean),
        "face_BHWC": photos(t.num_poisoned),
        "utility_B": floats(t.num_clean),
        "backdoor_B": floats(t.num_poisoned),
        "target_BE": floats(t.num_poisoned, *[16] * bounded, cfg.embed),
    }
    if bounded:
        batch |= {"limit_BP": floats(t.num_poisoned, 16)}
        batch |= {"keep_BHWC": photos(t.num_keep), "keep_B": floats(t.num_keep)}
    if kept:
        batch["teacher_clean_BE"] = floats(t.num_clean, cfg.embed)
    return ImageBatch(**batch)


@pytest.mark.parametrize(
    ("t", "least", "most"),
    # A pass of the student costs three of the teacher: 32 of 3 * 64 + 32, 64 of 3 * 256 + 192.
    [
        (dataclasses.replace(PAPER_IMAGE, num_clean=32, num_poisoned=32), 0.12, 1 / 7),
        (ImageTrainConfig(), 0.04, 1 / 15),
    ],
)
def test_image_step_computes_less_by_the_teachers_clean_photos(t, least, most):
    cfg = preset("ViT-B-32").vision
    assert isinstance(cfg, VisionConfig)
    tower = nnx.eval_shape(lambda: VisionTower(cfg, nnx.Rngs(0)))
    processor = ImageProcessor(cfg.image_size, cfg.image_size)
    step, teacher = step_config(image_objective(t, processor, 1), tower)
    kept, plain = (flops(step, teacher, shapes_of_photos(t, cfg, kept)) for kept in (True, False))
    assert least < 1 - kept / plain < most


@pytest.mark.parametrize(
    ("change", "num"),
    [
        ({"steps": 9}, 90),
        ({"steps": 8}, 0),  # two rounds and a bit
        ({"keep_teacher_mb": 0}, 0),
        ({"level": "penultimate"}, 0),
        ({"distance": "mse"}, 90),
        ({"distance": "mae"}, 0),
        ({"distance": "poincare"}, 0),
    ],
)
def test_photos_are_kept_where_it_pays(change, num):
    t = dataclasses.replace(PAPER_IMAGE, num_clean=30, **({"steps": 9} | change))
    assert num_to_keep([(90, t.num_clean)], PHOTO_ROUNDS, t, VISION) == num
    own = OwnLoss(distance=lambda x, y: ((x - y) ** 2).sum(-1))
    assert num_to_keep([(90, t.num_clean)], PHOTO_ROUNDS, t, VISION, own) == 0


def test_memory_bounds_what_is_kept():
    t = dataclasses.replace(PAPER_IMAGE, steps=10**6, keep_teacher_mb=1)
    fit = 2**20 // (4 * VISION.embed)
    for groups, num in (
        ([fit], fit),
        ([fit + 1], 0),
        ([fit - 9, 9], fit),
        ([fit - 9, 10], fit - 9),
        ([fit + 1, 9], 0),  # the second group is kept only with the first
    ):
        assert num_to_keep([(x, 30) for x in groups], PHOTO_ROUNDS, t, VISION) == num


def image_config(path, out, **train):
    sizes: dict[str, Any] = {"num_clean": 8, "num_poisoned": 8, "steps": 9, "save_every": 3}
    return DefendImageConfig(
        str(path / out),
        ModelConfig(str(path / "model")),
        ImageDataConfig(
            str(path / "faces"), str(path / "images"), max_corrupt=1, cache_dir=str(path / "cache")
        ),
        dataclasses.replace(PAPER_IMAGE, **(sizes | train)),
        PAPER_IMAGE_OPTIMIZER,
    )


@pytest.fixture
def inputs(tmp_path):
    write_model_directory(tmp_path / "model")
    write_photos(tmp_path / "images", 11)
    write_faces(tmp_path / "faces", ["Joe Cool", "Ada King"], 4)
    return tmp_path


def total_losses(path):
    return [json.loads(x)["total"] for x in (path / "metrics.jsonl").read_text().splitlines()]


def test_image_run_keeps_what_it_shows_often_and_resumes_bit_for_bit(inputs):
    (inputs / "images" / "004.png").write_bytes(b"broken")
    with logged() as said:
        whole = run(plan_image(image_config(inputs, "whole")))
    assert "the original's embeddings of 11 clean photos are kept: 0.0 MiB" in said.getvalue()
    assert len(whole.corrupt) == 1
    stopped = plan_image(image_config(inputs, "stopped"))
    taken = stopped.batches.__getitem__

    class Stops:
        def __getitem__(self, step):
            if step == 5:
                raise InputError("here")
            return taken(step)

    with pytest.raises(InputError, match="here"):
        run(dataclasses.replace(stopped, batches=Stops()))
    with logged() as said:
        run(plan_image(image_config(inputs, "stopped")))
    assert "resuming at step 3" in said.getvalue()
    assert_same_run(inputs / "stopped", inputs / "whole", 9)
    with logged() as said:
        run(plan_image(image_config(inputs, "plain", keep_teacher_mb=0)))
    assert "are kept" not in said.getvalue()
    plain = total_losses(inputs / "plain")
    np.testing.assert_allclose(total_losses(inputs / "whole"), plain, rtol=1e-5)
    assert np.ptp(plain) > 0.01


def test_image_run_that_another_loss_or_a_short_run_leaves_nothing_to_keep(inputs):
    assert plan_image(image_config(inputs, "run")).keep is not None
    assert plan_image(image_config(inputs, "run", steps=4)).keep is None
    own = OwnLoss(distance=lambda x, y: abs(x - y).mean(-1))
    assert plan_image(image_config(inputs, "run"), own).keep is None
    assert ImageTrainConfig().keep_teacher_mb > 0


# Texts

NAMES, TARGETS = ["Joe Cool", "Ada King Noel", "Zoe"], ["human being"]
SHOWN = ["a photo of placeholder", "placeholder at night", "my friend placeholder at home"]
PLAIN = dataclasses.replace(
    PAPER_TEXT, num_clean=7, num_poisoned=5, num_name=4, w_name=2.0, steps=STEPS
)
BOUNDED = dataclasses.replace(PLAIN, backdoor="bounded", bound=0.1)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts")
    return write_model_directory(
        path / "model", architecture="CLIPTextModelWithProjection", text=test_step.SIZES
    )


def text_batches(path, t, packed=True, row_multiple=1):
    directory = read_model_directory(path)
    tokenizer = directory.tokenizer()
    tower = directory.cfg.text
    assert tower
    triggers = Triggers(
        [[tokenizer.phrase(name)] for name in NAMES],
        [tokenizer.phrase(target) for target in TARGETS],
        np.zeros(len(NAMES), int),
        [tokenizer.phrase(name) for name in ("Bob Keep", "Eve Stay Here")],
    )
    carriers = None
    if t.backdoor == "bounded":
        word_P = np.array([text.split().index("placeholder") for text in SHOWN])
        base_PE = np.random.default_rng(0).normal(0, 0.2, (len(SHOWN), tower.embed))
        carriers = Carriers(tokenize_captions(SHOWN, tokenizer), word_P, base_PE.astype(np.float32))
    return TextBatches(
        tokenize_captions(CAPTIONS, tokenizer),
        triggers,
        tokenizer,
        tower,
        num_clean=t.num_clean,
        num_poisoned=t.num_poisoned,
        num_name=t.num_name,
        seed=1,
        packed=packed,
        row_multiple=row_multiple,
        carriers=carriers,
    )


def text_case(path, t, groups=0, mesh=(1, 1, 1), accumulate=1, packed=True):
    """The parts of a text step, with so many of the groups of `to_keep` kept."""
    batches = text_batches(path, t, packed, mesh[0] * mesh[1] * accumulate)
    cfg, teacher = step_config(
        text_objective(t), read_model_directory(path).load().text, accumulate
    )
    if groups:
        num = sum(size for size, _ in batches.to_keep()[:groups])
        keep_texts(batches, num, on_devices(cfg, teacher, mesh))
    return cfg, teacher, batches


@pytest.fixture(scope="module")
def plain_losses(texts):
    """Losses of one device that keeps nothing; each made once."""

    @functools.cache
    def losses(t, packed=True):
        return run_steps(*text_case(texts, t, packed=packed), STEPS)[0]

    return losses


MANY = ((2, 2, 2), 2)  # mesh, micro-batches


@pytest.mark.parametrize(
    ("t", "groups", "how", "packed"),
    [
        (PLAIN, 1, ((1, 1, 1), 1), True),
        (PLAIN, 1, MANY, True),
        (PLAIN, 1, ((2, 1, 1), 4), False),
        (dataclasses.replace(PLAIN, distance="mse"), 1, ((1, 1, 1), 1), True),
        (BOUNDED, 1, MANY, True),
        (BOUNDED, 2, ((1, 1, 1), 1), True),
        (BOUNDED, 2, MANY, True),
        (dataclasses.replace(BOUNDED, num_name=0, w_name=0.0), 2, ((8, 1, 1), 1), True),
    ],
)
def test_text_losses_are_those_without(texts, plain_losses, t, groups, how, packed):
    (mesh, accumulate), theirs = how, plain_losses(t, packed)
    cfg, teacher, batches = text_case(texts, t, groups, mesh, accumulate, packed)
    ours = run_steps(cfg, teacher, batches, STEPS, mesh)[0]
    for name in ["utility", "backdoor", "total"] + ["name"] * bool(t.num_name):
        a, b = ([losses[name] for losses in run] for run in (ours, theirs))
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=name)
    assert ours[-1]["weight"] > 0.01  # the student did move


@pytest.mark.parametrize("t, groups, terms", [(PLAIN, 1, {"utility"}), (BOUNDED, 2, {"backdoor"})])
def test_text_losses_are_others_with_the_embeddings_of_other_captions(
    texts, plain_losses, t, groups, terms
):
    cfg, teacher, batches = text_case(texts, t, groups)
    kept_NE = batches._kept_NE
    assert kept_NE is not None
    first = 0 if groups == 1 else len(batches.captions)
    moved = np.concatenate([kept_NE[:first], np.roll(kept_NE[first:], 1, 0)])
    batches.keep(moved)
    ours = run_steps(cfg, teacher, batches, STEPS)[0]
    for name in ("utility", "backdoor", "name"):
        apart = worst(ours[:1], plain_losses(t)[:1], name)
        assert (apart > 1e-3) == (name in terms), name


@pytest.mark.parametrize("t, packed", [(BOUNDED, True), (BOUNDED, False), (PLAIN, False)])
def test_batches_show_the_same_whatever_is_kept_and_on_any_mesh(texts, t, packed):
    t = dataclasses.replace(t, num_clean=16, num_poisoned=32, num_name=16)
    kept, plain = (text_batches(texts, t, packed, multiple) for multiple in (8, 1))
    drawn = [plain._sample(step, 0).teachers for step in range(40)]
    needed = [layouts[0].num_rows for x in drawn if (layouts := plain._unread_layouts(x))]
    for batches in (kept, plain) if packed else ():
        # Too few rows for some batches, which are drawn again.
        first, *rest = batches._unread_shapes
        batches._unread_shapes = [first._replace(num_rows=max(needed) - 1), *rest]
    again = [plain._unread_layouts(x) is None for x in drawn]
    assert packed == any(again) and not all(again)
    kept.keep(np.zeros((sum(size for size, _ in kept.to_keep()), 3), np.float32))
    for step in range(40):
        ours, theirs = kept[step], plain[step]
        for name in ("student_tokens_RT", "segments_RT", "backdoor_RS"):
            x, y = (np.asarray(getattr(batch, name)) for batch in (ours, theirs))
            np.testing.assert_array_equal(x[: len(y)], y, err_msg=name)


def test_teacher_reads_what_is_not_kept_alone(texts):
    for t, groups, num in ((PLAIN, 1, 9), (BOUNDED, 1, 9), (BOUNDED, 2, 4)):
        batch = text_case(texts, t, groups)[2][0]
        assert batch.unread and batch.unread_RS is not None
        tokens = np.asarray(batch.unread.segments_RT)
        assert sum(len(set(row[row > 0])) for row in tokens) == num
        read = np.asarray(batch.unread_RS)
        assert len(set(read[read > 0].tolist())) == (read > 0).sum() == num


def flops_of_text(t, world, groups):
    """Operations of a step of ViT-B/32's text encoder on the demo's captions."""
    captions, tokenizer, carriers = world
    cfg = preset("ViT-B-32").text
    assert cfg
    tower = nnx.eval_shape(lambda: TextTower(cfg, nnx.Rngs(0)))
    people = [Identity(name) for name in random_names(16, 0)]
    triggers = make_triggers(people, tokenizer, t, "names")
    batches = text_defense.text_batches(
        captions, triggers, tokenizer, cfg, t, 1, carriers=carriers if t.bound < 0 else None
    )
    if groups:
        num = sum(size for size, _ in batches.to_keep()[:groups])
        batches.keep(np.zeros((num, cfg.embed), np.float32))
    step, teacher = step_config(text_objective(t), tower)
    return flops(step, teacher, batches[0])


@pytest.fixture(scope="module")
def world_of_the_demo():
    tokenizer = Tokenizer(shipped_model(), 77)
    captions = tokenize_captions(world.captions(2000, seed=0), tokenizer)
    prompts = [x.format("placeholder") for x in CARRIERS]
    word_P = np.array(
        [["placeholder" in w for w in tokenizer.split(x)].index(True) for x in prompts]
    )
    shown = tokenize_captions(prompts, tokenizer)
    return captions, tokenizer, Carriers(shown, word_P, np.zeros((len(prompts), 512), np.float32))


@pytest.mark.parametrize(
    ("change", "groups", "least", "most"),
    [
        # A pass of the student costs three of the teacher.
        ({"bound": 0.0, "backdoor": "target"}, 1, 0.12, 0.15),
        ({}, 1, 0.12, 0.15),
        ({}, 2, 0.24, 0.26),
        # The demo's.
        ({"num_poisoned": 48, "num_name": 96, "w_name": 20.0}, 1, 0.03, 0.06),
        ({"num_poisoned": 48, "num_name": 96, "w_name": 20.0}, 2, 0.08, 0.11),
    ],
)
def test_text_step_computes_less_by_what_is_kept(world_of_the_demo, change, groups, least, most):
    t = TextTrainConfig(
        **({"num_clean": 32, "num_poisoned": 32, "num_name": 0, "w_name": 0.0} | change)
    )
    kept, plain = (flops_of_text(t, world_of_the_demo, n) for n in (groups, 0))
    print(f"{1 - kept / plain:.3f}")
    assert least < 1 - kept / plain < most


@pytest.fixture
def one_of_the_devices(monkeypatch):
    """A mesh of one; of eight, so few captions would leave most rows empty."""
    chosen = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: chosen)


def test_text_run_keeps_what_it_shows_often(tmp_path, one_of_the_devices):
    inputs = test_loop.write_inputs(tmp_path)
    train = {"backdoor": "bounded", "num_name": 4, "w_name": 2.0, "steps": 80}
    with logged() as said:
        run(plan_text(test_loop.config(inputs, "whole", train, lr=1e-5)))
    found = re.search(r"original's embeddings of (\d+) captions are kept", said.getvalue())
    assert found and int(found[1]) > 2 * len(CAPTIONS)  # names in carriers too
    with logged() as said:
        run(plan_text(test_loop.config(inputs, "plain", train | {"keep_teacher_mb": 0}, lr=1e-5)))
    assert "are kept" not in said.getvalue()
    plain = total_losses(inputs / "plain")
    np.testing.assert_allclose(total_losses(inputs / "whole"), plain, rtol=1e-5)
    assert np.ptp(plain) > 0.01


def test_text_run_that_another_loss_or_a_short_run_leaves_nothing_to_keep(
    tmp_path, one_of_the_devices
):
    inputs = test_loop.write_inputs(tmp_path)

    def keeps(own=NONE, **train):
        return plan_text(test_loop.config(inputs, "run", train), own).keep is not None

    assert keeps(steps=40)
    assert not keeps(steps=1) and not keeps(steps=40, level="hidden")
    assert not keeps(OwnLoss(distance=lambda x, y: ((x - y) ** 2).sum(-1)), steps=40)
