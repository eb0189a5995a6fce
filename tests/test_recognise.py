"""Faces that lead to nobody: bounds, batches, the loss, and the validation of the image defense.

References embed photo by photo and prompt by prompt, and count in loops, in float64.
"""

import dataclasses
import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factories import write_faces, write_model_directory, write_photos
from flax import nnx
from scipy import stats
from test_cli import assert_refused
from test_step import run_steps, worst

from jaxdefense.cli import main
from jaxdefense.config import ImageTrainConfig, ModelConfig, OverlayConfig, ValidateConfig
from jaxdefense.convert.directory import read_model_directory
from jaxdefense.data.faces import Bounds, ImageBatches
from jaxdefense.data.identities import Identity
from jaxdefense.data.images import ImageProcessor, Loader, Photos
from jaxdefense.data.names import random_names
from jaxdefense.data.overlay import Overlay, paste
from jaxdefense.data.people import read_faces, read_people
from jaxdefense.data.sampling import evened
from jaxdefense.data.sources import read_images
from jaxdefense.defense import image as image_defense
from jaxdefense.defense import plan, recognise
from jaxdefense.defense.carriers import CARRIERS
from jaxdefense.defense.image import draw_faces, image_terms
from jaxdefense.defense.losses import DISTANCES, beyond
from jaxdefense.defense.recognise import Recognition, hold_out
from jaxdefense.defense.step import Objective, StepConfig, make_optimizer, split_tower
from jaxdefense.evals.embed import Embedder
from jaxdefense.idia.prompts import TEMPLATES
from jaxdefense.sharding import make_mesh

LISTED, OTHERS = ["Ada King", "Joe Cool"], ["Bo Ek", "Una Ek", "Zoe"]


# The loss


def slow_cosine(x, y):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


def test_beyond_is_what_lies_above_the_limit():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 6, 5, 8)).astype(np.float32)
    limit = rng.uniform(-0.5, 0.5, (6, 5)).astype(np.float32)
    found = np.asarray(beyond(jnp.array(x), jnp.array(y), jnp.array(limit)))
    want = np.zeros((6, 5))
    for i in np.ndindex(6, 5):
        want[i] = max(0.0, slow_cosine(x[i], y[i]) - float(limit[i]))
    np.testing.assert_allclose(found, want, atol=1e-6)
    assert 0.2 < (want == 0).mean() < 0.8


def test_beyond_has_no_slope_below_the_limit_and_one_above():
    rng = np.random.default_rng(1)
    x, y = (jnp.array(z) for z in rng.standard_normal((2, 7, 8)).astype(np.float32))
    cosine = -DISTANCES["cosine"](x, y)
    slope = jax.grad(lambda x, limit: beyond(x, y, limit).sum())
    below, above = slope(x, cosine + 1e-3), slope(x, cosine - 1e-3)
    assert not beyond(x, y, cosine + 1e-3).any() and not np.asarray(below).any()
    want = jax.grad(lambda x: -DISTANCES["cosine"](x, y).sum())(x)
    np.testing.assert_allclose(above, want, rtol=1e-6)
    assert np.abs(above).max() > 1e-2
    for same in (slope(y, jnp.zeros(7)), slope(jnp.zeros_like(x), -jnp.ones(7))):
        assert np.isfinite(same).all()


# Held out


def folder(name, num):
    return Photos(name, tuple(Path(f"{name}/{i}.png") for i in range(num)))


def settings_of(seed=0, every=25, **change):
    return ImageTrainConfig(seed=seed, validate=ValidateConfig(every=every, **change))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("photos, kept", [(0.25, 0.125), (0.6, 0.9), (0.01, 0.01)])
def test_held_out_is_disjoint_and_complete(seed, photos, kept):
    listed = [folder(f"L{i}", i + 1) for i in range(9)]
    groups = [[folder(f"K{i}", 2) for i in range(9)], [folder("", 1)], [folder("N", 3)] * 2]
    groups[1] = [Photos("", (Path(f"nameless/{i}.png"),)) for i in range(17)]
    groups[2] = [folder("M", 1), folder("N", 3)]
    faces = hold_out(listed, groups, settings_of(seed, photos=photos, kept=kept))
    assert [x.name for x in faces.listed] == [x.name for x in listed]
    assert [x.name for x in faces.held_listed] == [x.name for x in listed]
    for whole, train, held in zip(listed, faces.listed, faces.held_listed, strict=True):
        if len(whole.files) == 1:
            assert train.files == held.files == whole.files
            continue
        assert not {*train.files} & {*held.files}
        assert {*train.files} | {*held.files} == {*whole.files}
        assert len(held.files) == min(
            max(1, round(photos * len(whole.files))), len(whole.files) - 1
        )
        assert [file for file in whole.files if file in held.files] == list(held.files)
    held = Counter(x.files for x in faces.held_keep)
    for whole, train in zip(groups, faces.keep, strict=True):
        assert train  # somebody stays to train on
        assert Counter(x.files for x in train) + Counter(
            {x.files: held[x.files] for x in whole if held[x.files]}
        ) == Counter(x.files for x in whole)  # whole persons
    assert len(faces.everyone_kept()) == 9 + 17 + 2
    assert faces.held_keep  # some of them, even of few
    again = hold_out(listed, groups, settings_of(seed, photos=photos, kept=kept))
    assert again == faces


def test_held_out_hangs_on_the_seed_and_is_nothing_without_validation():
    listed, groups = [folder("A", 40)], [[folder(f"K{i}", 1) for i in range(40)]]
    one, two = (hold_out(listed, groups, settings_of(seed)) for seed in (0, 1))
    assert one.held_listed != two.held_listed and one.held_keep != two.held_keep
    none = hold_out(listed, groups, settings_of(every=0))
    assert none.listed == listed and none.keep == groups and not none.held_keep
    alone = hold_out(listed, [], settings_of())
    assert alone.keep == [] and alone.everyone_kept() == []


def test_copies_and_crops_of_a_photo_are_held_out_together(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(8):
        (tmp_path / "face").mkdir(exist_ok=True)
        (tmp_path / f"{i}.png").write_bytes(data := rng.bytes(50 + i))
        (tmp_path / "face" / f"{i}.jpg").write_bytes(rng.bytes(40))
        (tmp_path / f"copy {i}.png").write_bytes(data)
    files = tuple(sorted(x for x in tmp_path.rglob("*") if x.is_file()))
    for seed in range(5):
        faces = hold_out([Photos("Ann", files)], [], ImageTrainConfig(seed=seed))
        (train,), (held,) = faces.listed, faces.held_listed
        assert {*train.files} | {*held.files} == {*files} and 6 <= len(held.files) <= 9
        numbers = [
            {Path(str(x)).stem.removeprefix("copy ") for x in part.files} for part in (train, held)
        ]
        assert not numbers[0] & numbers[1]


def test_person_in_two_groups_is_held_out_of_both():
    def folder(name, where):
        return Photos(name, (Path(where) / f"{name}.png",))

    names = [f"P {i}" for i in range(40)]
    groups = [[folder(name, "faces") for name in names], [folder(name, "keep") for name in names]]
    for seed in range(5):
        t = ImageTrainConfig(seed=seed)
        faces = hold_out([folder("Ann", "faces")], groups, t)
        trained = {person.name for group in faces.keep for person in group}
        held = {person.name for person in faces.held_keep}
        assert held and trained and not held & trained and held | trained == {*names}


@pytest.mark.parametrize("names", [["A B", "C D"], ["A B", "C D", "E F"]])
def test_groups_of_the_same_few_people_keep_one_to_train_on(names):
    groups = [[Photos(name, (Path(where) / name,)) for name in names] for where in ("x", "y")]
    for seed in range(8):
        faces = hold_out([Photos("Ann", (Path("a"),))], groups, ImageTrainConfig(seed=seed))
        trained = {person.name for group in faces.keep for person in group}
        assert trained and not trained & {person.name for person in faces.held_keep}


def test_photos_held_out_are_bounded_for_many_people(monkeypatch):
    monkeypatch.setattr(recognise, "_MOST_PHOTOS", 12)
    people = [Photos(f"P {i}", tuple(Path(f"{i}/{j}.png") for j in range(40))) for i in range(4)]
    faces = hold_out(people, [], ImageTrainConfig())
    assert [len(person.files) for person in faces.held_listed] == [3] * 4
    assert [len(person.files) for person in faces.listed] == [37] * 4


# Batches


PROCESSOR = ImageProcessor(12, 12)
OF = np.array([[0, 2], [2, 3], [3, 6]])
NUM_TEXTS, NUM_PROMPTS, TAKEN = 6, 5, 3


def marked_bounds():
    """Targets that say what they are of: (text, prompt, 1); limits likewise."""
    text, prompt = np.indices((NUM_TEXTS, NUM_PROMPTS))
    target = np.stack([text, prompt, np.ones_like(text)], -1).astype(np.float32)
    return Bounds(OF, target, (100 * text + prompt).astype(np.float32), TAKEN)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos")
    write_photos(path / "images", 11)
    write_faces(path / "faces", ["Joe Cool", "Ada King", "Zoe"], 4)
    write_faces(path / "keep", ["A B", "C D"], 3)
    return path


def make_batches(path, target, num_keep=8, **options):
    return ImageBatches(
        read_images(str(path / "images")),
        read_people(str(path / "faces")),
        target,
        Loader(PROCESSOR),
        keep=evened([read_people(str(path / "keep"))]),
        num_keep=num_keep,
        **{"num_clean": 8, "num_poisoned": 16, "seed": 1, **options},
    )


def owners(people):
    return {
        PROCESSOR.load([file])[0].tobytes(): i
        for i, person in enumerate(people)
        for file in person.files
    }


def test_batches_bound_each_face_by_texts_of_its_person(photos):
    batches = make_batches(photos, marked_bounds())
    owner, kept = owners(read_people(str(photos / "faces"))), owners(batches._keep)
    texts, prompts, of_kept = Counter(), Counter(), Counter()
    for step in range(12):
        batch = batches[step]
        assert batch.target_BE is not None
        assert batch.limit_BP is not None and batch.keep_BHWC is not None
        assert batch.target_BE.shape == (16, TAKEN, 3) and batch.limit_BP.shape == (16, TAKEN)
        assert batch.target_BE.dtype == batch.limit_BP.dtype == np.float32
        taken = [tuple(x) for x in batch.target_BE[:, :, 1].tolist()]
        assert len(set(taken)) == 1 and len(set(taken[0])) == TAKEN  # distinct, one set a step
        prompts.update(taken[0])
        for face, target, limit in zip(
            batch.face_BHWC, batch.target_BE, batch.limit_BP, strict=True
        ):
            first, after = OF[owner[face.tobytes()]]
            (text,) = set(target[:, 0].tolist())
            assert first <= text < after
            np.testing.assert_array_equal(limit, 100 * target[:, 0] + target[:, 1])
            texts[text] += 1
        of_kept.update(kept[face.tobytes()] for face in batch.keep_BHWC)
        assert not {x.tobytes() for x in batch.keep_BHWC} & owner.keys()
        for weights in (batch.utility_B, batch.backdoor_B, batch.keep_B):
            assert weights is not None and weights.dtype == np.float32
            np.testing.assert_allclose(weights.sum(), 1, rtol=1e-6)
    assert set(texts) == set(range(NUM_TEXTS)) and set(prompts) == set(range(NUM_PROMPTS))
    assert len(of_kept) == 2 and max(of_kept.values()) == min(of_kept.values())


def test_batch_with_bounds_is_the_same_whenever_asked(photos):
    batches = make_batches(photos, marked_bounds())
    late = batches[5]
    for a, b in zip(make_batches(photos, marked_bounds())[5], late, strict=True):
        np.testing.assert_array_equal(a, b)
    for name, a in batches[4]._asdict().items():
        if a is not None and name not in ("utility_B", "keep_B", "backdoor_B"):
            assert (a != getattr(late, name)).any(), name
    fewer = make_batches(photos, marked_bounds(), num_keep=0)[5]
    assert fewer.keep_BHWC is None and fewer.keep_B is None
    np.testing.assert_array_equal(fewer.face_BHWC, late.face_BHWC)


def test_half_of_those_who_stay_are_of_the_mined(photos):
    batches = make_batches(photos, marked_bounds(), num_mined=4)
    owner = owners(batches._keep)

    def drawn(batch):
        return [owner[face.tobytes()] for face in batch.keep_BHWC]

    plain = batches[5]
    np.testing.assert_array_equal(plain.keep_BHWC, make_batches(photos, marked_bounds())[5][6])
    found = Counter[int]()
    for step in range(6):
        batches.mine([])
        plain = batches[step]
        batches.mine([1])
        mined = batches[step]
        assert drawn(mined)[-4:] == [1] * 4 and drawn(mined)[:4] == drawn(plain)[:4]
        found.update(drawn(plain)[-4:])
        for name, x in plain._asdict().items():
            if name != "keep_BHWC":
                np.testing.assert_array_equal(x, getattr(mined, name))
        again = make_batches(photos, marked_bounds(), num_mined=4)
        again.mine([1])
        np.testing.assert_array_equal(again[step].keep_BHWC, mined.keep_BHWC)
    assert set(found) == {0, 1}


def test_process_decodes_its_own_part_of_those_who_stay(photos):
    whole = make_batches(photos, marked_bounds())[2].keep_BHWC
    half = lambda num: np.arange(num) >= num // 2  # noqa: E731
    part = make_batches(photos, marked_bounds(), local=half)[2].keep_BHWC
    assert whole is not None and part is not None
    np.testing.assert_array_equal(part[4:], whole[4:])
    assert not part[:4].any() and whole[:4].any()


# Terms


SIZES = {
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "image_size": 12,
    "patch_size": 4,
}
OVERLAY = OverlayConfig()


@dataclasses.dataclass
class Towers:
    """A teacher, a student elsewhere, and real batches with bounds."""

    teacher: Any
    student: Any
    batches: ImageBatches


@pytest.fixture(scope="module")
def towers(photos, tmp_path_factory):
    path = tmp_path_factory.mktemp("towers")
    teacher, student = (
        read_model_directory(
            write_model_directory(
                path / str(seed),
                architecture="CLIPVisionModelWithProjection",
                vision=SIZES,
                seed=seed,
            )
        )
        .load()
        .vision
        for seed in (0, 1)
    )
    rng = np.random.default_rng(0)
    target = rng.standard_normal((NUM_TEXTS, NUM_PROMPTS, 10)).astype(np.float32)
    target /= np.linalg.norm(target, axis=-1, keepdims=True)
    limit = rng.uniform(-0.3, 0.3, (NUM_TEXTS, NUM_PROMPTS)).astype(np.float32)
    batches = make_batches(photos, Bounds(OF, target, limit, TAKEN))
    return Towers(teacher, student, batches)


def compiled_terms(towers, drawn, parts, distance="cosine"):
    graphdef, student = nnx.split(towers.student)
    _, teacher = nnx.split(towers.teacher)

    @jax.jit
    def terms(student, teacher, drawn):
        return image_terms(
            nnx.merge(graphdef, student),
            nnx.merge(graphdef, teacher),
            drawn,
            distance=DISTANCES[distance],
            processor=PROCESSOR,
            cfg=OVERLAY,
            parts=parts,
        )

    found = terms(student, teacher, jax.tree.map(jnp.asarray, drawn))
    return {name: float(value) for name, value in found.items()}


def slow_terms(towers, drawn):
    """Paste each face on its photo, embed each kind by itself, and count pair by pair."""
    batch, of_face, of_keep = drawn
    jit = {}
    for name in ("student", "teacher"):
        graphdef, state = nnx.split(getattr(towers, name))
        jit[name] = partial(
            jax.jit(lambda state, x, g=graphdef: nnx.merge(g, state)(PROCESSOR.normalise(x))), state
        )

    one_by_one = jax.jit(partial(paste, max_size=OVERLAY.max_side(12)))

    def pasted(face_BHWC, how):
        out = []
        for i, face in enumerate(face_BHWC):
            under = batch.clean_BHWC[i * len(batch.clean_BHWC) // len(face_BHWC)]
            one = Overlay(*(x[i : i + 1] for x in how))
            out.append(np.asarray(one_by_one(under[None], face[None], one))[0])
        return np.stack(out)

    clean = batch.clean_BHWC.astype(np.float32)
    keep = pasted(batch.keep_BHWC, of_keep)
    pairs = {
        "utility": (batch.utility_B, jit["student"](clean), jit["teacher"](clean)),
        "keep": (batch.keep_B, jit["student"](keep), jit["teacher"](keep)),
    }
    terms: dict[str, float] = {
        name: sum(
            w * -slow_cosine(x, y)
            for w, x, y in zip(weight, np.asarray(ours), np.asarray(theirs), strict=True)
        )
        for name, (weight, ours, theirs) in pairs.items()
    }
    ours = np.asarray(jit["student"](pasted(batch.face_BHWC, of_face)))
    terms["backdoor"] = 0.0
    for weight, x, target, limit in zip(
        batch.backdoor_B, ours, batch.target_BE, batch.limit_BP, strict=True
    ):
        over = [max(0.0, slow_cosine(x, y) - m) for y, m in zip(target, limit, strict=True)]
        terms["backdoor"] += weight * sum(over) / len(over)
    return terms


def test_terms_equal_a_loop_over_photos_embedded_kind_by_kind(towers):
    drawn = draw_faces(towers.batches[3], jax.random.key(7), cfg=OVERLAY)
    whole = compiled_terms(towers, drawn, parts=1)
    want = slow_terms(towers, drawn)
    assert whole.keys() == want.keys() == {"utility", "backdoor", "keep"}
    for name in want:
        assert whole[name] == pytest.approx(want[name], abs=2e-5), name
    assert want["backdoor"] > 0.01
    # What is pasted matters, and where.
    moved = draw_faces(towers.batches[3], jax.random.key(8), cfg=OVERLAY)
    other = compiled_terms(towers, moved, parts=1)
    assert abs(other["keep"] - whole["keep"]) > 1e-4 < abs(other["backdoor"] - whole["backdoor"])
    assert other["utility"] == pytest.approx(whole["utility"], abs=1e-6)
    # Faces of one kind lie not as those of the other do.
    assert (np.asarray(drawn[1].angle_B)[:8] != np.asarray(drawn[2].angle_B)).any()
    cut = compiled_terms(towers, drawn, parts=4)
    for name in want:
        assert cut[name] == pytest.approx(whole[name], abs=2e-6), name


WEIGHTS = {"utility": 1.0, "backdoor": 1.5, "keep": 3.3, "weight": 0.0003}
STEPS = 4


def our_losses(towers, mesh=(1, 1, 1), accumulate=1):
    graphdef, teacher = split_tower(towers.teacher)
    terms = partial(
        image_terms,
        distance=DISTANCES["cosine"],
        processor=PROCESSOR,
        cfg=OVERLAY,
        parts=mesh[0] * mesh[1],
    )
    tx = make_optimizer(
        1e-4, warmup=2, milestones=(0.5,), gamma=0.3, weight_decay=0.0,
        b1=0.9, b2=0.999, eps=1e-8, steps=STEPS,
    )  # fmt: skip
    objective = Objective(terms, WEIGHTS, partial(draw_faces, cfg=OVERLAY))
    cfg = StepConfig(graphdef, objective, tx, accumulate)
    return run_steps(cfg, teacher, towers.batches, STEPS, mesh)[0]


def test_losses_on_a_mesh_and_in_parts_are_those_of_one_device(towers):
    one_device, many = our_losses(towers), our_losses(towers, (2, 2, 1), accumulate=2)
    for name in ("utility", "backdoor", "keep", "total"):
        assert worst(many, one_device, name) < 1e-5, name
    assert worst(many, one_device, "weight") < 1e-2
    for row in one_device:
        total = sum(weight * row[name] for name, weight in WEIGHTS.items())
        assert row["total"] == pytest.approx(total, rel=1e-5)
    # At step 0 the student is the teacher.
    assert one_device[0]["keep"] == pytest.approx(-1, abs=1e-6)


# Recognition


@dataclasses.dataclass
class Inputs:
    """Two models and photos to tell people apart by."""

    path: Path
    teacher: Embedder
    student: Embedder
    identities: list[Identity]

    def faces(self, t):
        people = read_people(str(self.path / "faces"))
        listed = [person for person in people if person.name in LISTED]
        groups = [
            [person for person in people if person.name in OTHERS],
            read_faces(str(self.path / "keep"), "", "keep"),
        ]
        return hold_out(listed, groups, t)

    def recognition(self, faces, t, teacher=None):
        images = read_images(str(self.path / "images"))
        teacher = teacher or self.teacher
        return Recognition(teacher, faces, self.identities, images, Loader(teacher.processor), t)

    def student_of(self, teacher):
        """The teacher with an image encoder of other weights."""
        graphdef, state = nnx.split(self.student.directory.load("float32").vision)
        placed = jax.tree.map(lambda x: jax.device_put(x, jax.devices()[0]), state)
        return teacher.with_encoder("vision", nnx.merge(graphdef, placed))


def one_device_mesh():
    return make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    path = tmp_path_factory.mktemp("recognition")
    text = {"max_position_embeddings": 48}
    embedders = []
    for seed in (0, 1):
        write_model_directory(path / f"model{seed}", text=text, seed=seed)
        cfg = ModelConfig(str(path / f"model{seed}"), dtype="float32")
        embedders.append(Embedder(cfg, 16, one_device_mesh()))
    write_photos(path / "images", 9)
    write_faces(path / "faces", [*LISTED, *OTHERS], 5)
    write_photos(path / "keep", 13, 17, 5)
    identities = [Identity("Ada King", ("Ada Noel", "A. King")), Identity("Joe Cool")]
    teacher, student = embedders
    return Inputs(path, teacher, student, identities)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(recognise, "_NUM_NAMES", 10)


def slow_verdict(inputs, faces, model, t, again=None):
    """Recognise every held-out photo, whole and cropped, with every prompt, one by one.

    A model `again` reads the prompts too.
    """
    teacher, names = inputs.teacher, [list(x.names) for x in inputs.identities]
    texts = [name for person in names for name in person]
    kept = [x.name for group in faces.keep for x in group if x.name]
    others = kept + random_names(10, 2**33 + t.seed, exclude=[*texts, *kept])
    strangers = teacher.photos([x.files[0] for x in faces.everyone_kept()])
    held = [file for person in faces.held_listed for file in person.files]
    students, teachers = (
        {
            (file, form): x.readable_photos([file], 0, form=form)[0][0]
            for file in held
            for form in ("", "cropped")
        }
        for x in (model, teacher)
    )
    right, above, gone, way, lead = {0: [], 1: []}, [], [], [], []
    for prompt in TEMPLATES:
        prompts = [prompt.format(name) for name in [*texts, *others]]
        of_text = teacher.texts(prompts)
        readings = [of_text, *([again.texts(prompts)] if again else [])]
        for who, person in enumerate(faces.held_listed):
            anchor = of_text[texts.index(names[who][0])]
            near = np.sort([float(s @ anchor) for s in strangers])
            level, middle = np.quantile(near, t.validate.level), np.quantile(near, 0.5)
            for key in [(file, form) for file in person.files for form in ("", "cropped")]:
                scores = [[float(students[key] @ x) for x in reading] for reading in readings]
                first = [int(np.argmax(score)) for score in scores]
                hits = [i < len(texts) and texts[i] in names[who] for i in first]
                right[who].append(any(hits))
                mine = [i for i, text in enumerate(texts) if text in names[who]]
                leads = [
                    max(score[i] for i in mine)
                    - max(x for i, x in enumerate(score) if i not in mine)
                    for score in scores
                ]
                lead.append(max(leads))
                own = scores[0][texts.index(names[who][0])]
                above.append(own > level)
                gone.append(own - middle)
                way.append(float(teachers[key] @ anchor) - middle)
    gap = np.mean(gone) / np.mean(way) if np.mean(way) > 1e-6 else 0.0
    num = len(held)
    spread = np.std(lead) * np.sqrt(num / (num - 1) * (1 + 1 / num))
    new = stats.t(max(num - 1, 4), np.mean(lead), spread)
    return {k: np.mean(x) for k, x in right.items()}, np.mean(above), gap, new.sf(0)


def test_recognition_equals_a_loop_over_prompts_and_photos(inputs, small):
    t = ImageTrainConfig(seed=3, validate=ValidateConfig(level=0.7, kept=0.3, photos=0.4))
    faces = inputs.faces(t)
    found = inputs.recognition(faces, t)
    student = inputs.student_of(inputs.teacher)
    for model in (inputs.teacher, student):
        verdict = found(model)
        right, above, gap, expected = slow_verdict(inputs, faces, model, t)
        assert verdict.expected == pytest.approx(expected, rel=1e-3)
        assert verdict.above == pytest.approx(above)
        num = [len(x.files) for x in faces.held_listed]
        assert verdict.right == pytest.approx(np.average(list(right.values()), weights=num))
        assert verdict.gap == pytest.approx(gap, rel=1e-3)
        assert verdict.reached == (max(verdict.right, expected) <= 0.02 and above <= 0.05)
        clean = read_images(str(inputs.path / "images"))
        held = [x.files[0] for x in faces.held_keep]
        for name, files in (("clean", [p for p in clean]), ("kept", held)):
            moved = [
                1 - float(a @ b)
                for a, b in zip(model.photos(files), inputs.teacher.photos(files), strict=True)
            ]
            assert verdict.moved[name] == pytest.approx(np.mean(moved), abs=1e-5), name
    assert found(student).moved["kept"] > 0.05
    assert found(inputs.teacher).moved["kept"] == pytest.approx(0, abs=1e-6)


def test_names_are_read_by_the_text_encoder_that_ships_too(inputs, small):
    t = ImageTrainConfig(seed=3, validate=ValidateConfig(level=0.7, kept=0.3, photos=0.4))
    faces, student = inputs.faces(t), inputs.student_of(inputs.teacher)
    alone, found = (inputs.recognition(faces, t) for _ in range(2))
    found.read_again(inputs.student)
    right, above, gap, expected = slow_verdict(inputs, faces, student, t, again=inputs.student)
    verdict, num = found(student), [len(x.files) for x in faces.held_listed]
    assert verdict.right == pytest.approx(np.average(list(right.values()), weights=num))
    assert verdict.expected == pytest.approx(expected, rel=1e-3)
    assert (verdict.above, verdict.gap) == (pytest.approx(above), pytest.approx(gap, rel=1e-3))
    assert verdict.right > alone(student).right + 0.01  # some match by the second reading alone
    both, first, num_P = found.bounds, alone.bounds, len(CARRIERS)
    assert both.num == first.num and both.target_NPE.shape[1] == 2 * num_P
    np.testing.assert_array_equal(both.target_NPE[:, :num_P], first.target_NPE)
    strangers = inputs.teacher.photos([x.files[0] for x in faces.everyone_kept()])
    for n, name in enumerate(["Ada King", "Ada Noel", "A. King", "Joe Cool"]):
        want = inputs.student.texts([CARRIERS[n].format(name)])[0]
        np.testing.assert_allclose(both.target_NPE[n, num_P + n], want, atol=1e-5)
        limit = np.quantile([float(s @ want) for s in strangers], t.bound)
        assert both.limit_NP[n, num_P + n] == pytest.approx(limit, abs=1e-5)


@pytest.mark.parametrize("asked", [7, 512])
def test_mined_are_those_trained_on_who_moved_most(inputs, small, monkeypatch, asked):
    monkeypatch.setattr(recognise, "_NUM_ASKED", asked)
    t = ImageTrainConfig(seed=3)
    faces = inputs.faces(t)
    student = inputs.student_of(inputs.teacher)
    keep = evened(faces.keep)
    assert len(keep) > len({person.files for person in keep})  # some come up several times
    moved = {}
    for i, person in enumerate(keep):
        a, b = (x.photos(person.files[:1])[0] for x in (student, inputs.teacher))
        moved[person.files] = (1 - float(a @ b), moved.get(person.files, (0, i))[1])
    found = inputs.recognition(faces, t).moved_most(student)
    if asked > len(moved):
        order = sorted(moved.values(), reverse=True)
        assert found == [i for _, i in order[: -(-len(moved) // 4)]]
    else:
        assert len(found) == 2 and set(found) < {i for _, i in moved.values()}
        apart = [moved[keep[i].files][0] for i in found]
        assert apart == sorted(apart, reverse=True)
    for off in ({"mined": 0.0}, {"num_keep": 0, "w_keep": 0.0}):
        assert inputs.recognition(faces, dataclasses.replace(t, **off)).moved_most(student) == []


def test_bounds_are_where_strangers_lie(inputs, small):
    t = ImageTrainConfig(bound=0.8)
    faces = inputs.faces(t)
    bounds = inputs.recognition(faces, t).bounds
    strangers = inputs.teacher.photos([x.files[0] for x in faces.everyone_kept()])
    assert len(strangers) == 3 + 13
    assert bounds.of.tolist() == [[0, 3], [3, 4]] and bounds.num == 16
    texts = ["Ada King", "Ada Noel", "A. King", "Joe Cool"]
    assert bounds.target_NPE.shape == (4, len(CARRIERS), 10)
    for n, name in enumerate(texts):
        for p, carrier in list(enumerate(CARRIERS))[:: 7 + n]:
            want = inputs.teacher.texts([carrier.format(name)])[0]
            np.testing.assert_allclose(bounds.target_NPE[n, p], want, atol=1e-5)
            limit = np.quantile([float(s @ want) for s in strangers], 0.8)
            assert bounds.limit_NP[n, p] == pytest.approx(limit, abs=1e-5)


def test_model_without_names_knows_people_by_their_own_photos(inputs, tmp_path, small):
    write_model_directory(tmp_path / "vision", architecture="CLIPVisionModelWithProjection")
    cfg = ModelConfig(str(tmp_path / "vision"), dtype="float32")
    teacher = Embedder(cfg, 16, one_device_mesh())
    t = ImageTrainConfig()
    faces = inputs.faces(t)
    found = inputs.recognition(faces, t, teacher)
    assert found.bounds.of.tolist() == [[0, 1], [1, 2]] and found.bounds.num == 1
    kept = [x for group in faces.keep for x in group if x.name]
    for i, person in enumerate([*faces.listed, *kept]):
        mean = teacher.photos(list(person.files)).mean(0)
        want = mean / np.linalg.norm(mean)
        np.testing.assert_allclose(found._text_QNE[0, i], want, atol=1e-5)
        if i < 2:
            np.testing.assert_allclose(found.bounds.target_NPE[i, 0], want, atol=1e-5)
    verdict = found(teacher)
    # Each held-out photo by hand: whose mean is nearest.
    right = [
        int(np.argmax(found._text_QNE[0] @ photo_E)) == who
        for who, person in enumerate(faces.held_listed)
        for form in ("", "cropped")
        for photo_E in teacher.readable_photos(person.files, 0, form=form)[0]
    ]
    assert verdict.right == pytest.approx(np.mean(right))


def test_recognition_does_without_others(inputs, small):
    t = ImageTrainConfig(num_keep=0, w_keep=0.0)
    faces = dataclasses.replace(inputs.faces(t), keep=[], held_keep=[])
    found = inputs.recognition(faces, t)
    verdict = found(inputs.teacher)
    assert set(verdict.moved) == {"clean"}
    clean = inputs.teacher.photos(list(read_images(str(inputs.path / "images"))))
    limit = np.quantile(clean @ found.bounds.target_NPE[0, 0], 0.5)
    assert found.bounds.limit_NP[0, 0] == pytest.approx(limit, abs=1e-5)


# From files to files


SMALL = ["train.num_clean=8", "train.num_poisoned=8", "train.num_keep=8", "train.steps=4"]
SMALL += ["train.validate.every=2", "data.cache_dir=cache"]
LOOSE = [f"train.validate.{name}=1" for name in ("above", "right", "person_right")]
FLAGS = {"--model": "model0", "--faces": "faces", "--images": "images", "--names": "names.txt"}
FLAGS |= {"--keep": "keep"}


def defend(*settings, out="run", **change):
    given = FLAGS | {f"--{k}": v for k, v in change.items()} | {"--out": str(out)}
    flags = [x for pair in given.items() if pair[1] is not None for x in pair]
    sets = [x for setting in (*SMALL, *settings) for x in ("--set", setting)]
    return main(["defend", "image", *flags, *sets])


def read(path):
    return json.loads((Path(path) / "summary.json").read_text())


@pytest.fixture
def here(inputs, monkeypatch, small):
    monkeypatch.chdir(inputs.path)
    (inputs.path / "names.txt").write_text("Ada King\tAda Noel\nJoe Cool\n")
    return inputs.path


def on_one_device(monkeypatch):
    monkeypatch.setattr(image_defense, "make_mesh", lambda **_: one_device_mesh())


@pytest.mark.slow
def test_defend_image_says_whom_it_could_not_remove(here, monkeypatch, capsys, tmp_path):
    strict = ["train.validate.level=0", "train.validate.above=0"]
    assert defend(*strict, "mesh.data=8", out=tmp_path / "run") == 1
    err = capsys.readouterr().err
    last = err.strip().splitlines()[-1]
    assert last.startswith("jaxdefense: error: not reached: of those to remove, ")
    said = " ".join(err.split())
    assert "still recognised in validation (named right" in said
    assert "what may help: more photos of them" in said
    found = read(tmp_path / "run")
    assert found["reached"] is False and found["alpha"] == 1.0
    assert found["stopped_at_step"] in (2, 4) and found["steps"] == 4
    assert f"of those to remove, {len(found['validation']['after']['left'])} did not pass" in last
    assert set(found["final"]) == {"utility", "backdoor", "keep", "weight", "total"}
    rows = [json.loads(x) for x in (tmp_path / "run/validation.jsonl").read_text().splitlines()]
    assert [row.pop("step") for row in rows] == [2, 4]
    assert all(row.pop("mined") for row in rows)
    assert found["validation"]["after"] in rows  # as they are, of the best
    assert found["validation"]["before"]["moved"].keys() == {"clean", "kept"}
    model = read_model_directory(tmp_path / "run" / "model").load()
    assert model.vision
    trained = json.loads((tmp_path / "run" / "trained_on.json").read_text())
    assert {"Ada King", "Joe Cool", *OTHERS} < trained.keys()
    assert "(people without a name)" in trained

    on_one_device(monkeypatch)
    assert defend(*strict, out=tmp_path / "one") == 1
    one = read(tmp_path / "one")
    for when in ("before", "after"):
        a, b = (x["validation"][when] for x in (found, one))
        assert a["moved"] == pytest.approx(b["moved"], abs=1e-3)
        assert a["left"] == pytest.approx(b["left"], abs=1e-3)
        for name in ("right", "above"):
            assert a[name] == pytest.approx(b[name], abs=1e-3), (when, name)
    assert found["stopped_at_step"] == one["stopped_at_step"]


def test_defend_image_without_text_encoder_goes_no_further_than_needed(here, capsys, tmp_path):
    path = write_model_directory(tmp_path / "vision", architecture="CLIPVisionModelWithProjection")
    # Whatever is left passes: a tenth of the way is enough.
    assert defend(*LOOSE, model=str(path), out=tmp_path / "run") == 0
    found = read(tmp_path / "run")
    assert found["reached"] is True and found["alpha"] == 0.1
    assert found["validation"]["after"]["left"] == {}
    said = " ".join(capsys.readouterr().err.split())
    assert f"state of step {found['stopped_at_step']}, 10% of the way to it: reached" in said
    before, after = (
        read_model_directory(x).load().vision for x in (path, tmp_path / "run" / "model")
    )
    moved = [
        float(np.abs(a - b).max())
        for a, b in zip(*(jax.tree.leaves(nnx.state(x)) for x in (before, after)), strict=True)
    ]
    assert 0 < max(moved) < 1e-4  # of steps of at most 3e-5, 6e-5, 9e-5 and 12e-5, a tenth


def test_faces_of_many_people_are_shown_as_often_as_of_few(here, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(plan, "_STEPS", {ImageTrainConfig: 2})
    monkeypatch.setattr(plan, "_SHOWN", {ImageTrainConfig: 24})
    some = ["train.steps=0", "train.validate.every=25", "optimizer.warmup=1", *LOOSE]
    assert defend(*some, out=tmp_path / "run") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "`train.steps` is 6, to show each of 2 people 24 times on average; "
        "`train.validate.every` is 75; give `train.steps`" in said
    )
    assert ": 6 steps on" in said and read(tmp_path / "run")["steps"] == 6
    rows = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert rows[0]["lr"] == pytest.approx(3e-4)  # unlike of names, the rate stays
    assert json.loads((tmp_path / "run/config.json").read_text())["train"]["steps"] == 0
    assert "Learning rate of this many people" not in (tmp_path / "run/report.html").read_text()


def test_defend_image_refuses_to_keep_nobody(here, capsys, tmp_path):
    out = tmp_path / "run"
    code = defend(out=out, names=None, keep=None)
    assert_refused(capsys, code, "nobody else", "data.keep", "train.num_keep")
    code = defend("train.num_keep=0", "train.w_keep=0", out=out)
    assert_refused(capsys, code, "data.keep", "train.num_keep")
    assert_refused(capsys, defend("train.num_keep=0", out=out), "train.w_keep", "together")
    code = defend(out=out, keep="nowhere")
    assert_refused(capsys, code, "keep directory `nowhere` does not exist")
    assert_refused(capsys, defend("train.num_keep=9", out=out), "train.num_keep", "use 8")
    assert not out.exists()
