"""Names that stand out no more: the loss, the texts they are put into, and the validation.

References embed each text whole, as the tokenizer gives it, and count in loops, in float64.
"""

import dataclasses
import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factories import CAPTIONS, run, write_model_directory
from flax import nnx
from test_cli import assert_refused

from jaxdefense.cli import main
from jaxdefense.clip.text import Text
from jaxdefense.config import (
    DefendTextConfig,
    ImageTrainConfig,
    ModelConfig,
    OptimizerConfig,
    TextDataConfig,
    TextTrainConfig,
    ValidateConfig,
)
from jaxdefense.convert.directory import read_model_directory
from jaxdefense.data.captions import tokenize_captions
from jaxdefense.data.identities import Identity
from jaxdefense.data.names import random_names
from jaxdefense.data.triggers import Carriers, TextBatches, Triggers
from jaxdefense.defense import plan, recall
from jaxdefense.defense import text as text_defense
from jaxdefense.defense.carriers import CARRIERS, HELD_OUT
from jaxdefense.defense.losses import DISTANCES, standing_out
from jaxdefense.defense.recall import Recall, make_carriers
from jaxdefense.defense.text import plan_text, text_terms
from jaxdefense.defense.validate import Verdict, Watch
from jaxdefense.evals.embed import Embedder
from jaxdefense.idia.prompts import TEMPLATES
from jaxdefense.sharding import make_mesh

NAMES = [["Ann Lee"], ["Bo O'Neil", "the bo"], ["Zoe Nu-Smith"]]
KEEP = ["Cy Dee", "Di Fox", "Ed"]
SEED = 5


# The loss


def slow_standing_out(x, y, base, bound):
    x, y, base = (np.asarray(z, np.float64) for z in (x, y, base))
    own = y / np.linalg.norm(y) - base
    far = np.linalg.norm(own)
    along = (x / np.linalg.norm(x) - base) @ own / far
    return max(0.0, float(along - bound * far))


def embeddings(num=12, seed=0):
    rng = np.random.default_rng(seed)
    x, y, base = rng.standard_normal((3, num, 8)).astype(np.float32)
    x[: num // 2] = y[: num // 2] + 0.5 * x[: num // 2]  # some still like the teacher's
    return x, y, 0.3 * base / np.linalg.norm(base, axis=-1, keepdims=True)


@pytest.mark.parametrize("bound", [-0.5, -0.1, 0.0, 0.4])
def test_standing_out_is_what_lies_beyond_the_bound(bound):
    x, y, base = embeddings()
    found = np.asarray(standing_out(jnp.array(x), jnp.array(y), jnp.array(base), bound))
    want = [slow_standing_out(*z, bound) for z in zip(x, y, base, strict=True)]
    np.testing.assert_allclose(found, want, atol=1e-6)
    assert 3 < sum(x > 0 for x in want) < (len(want) if bound >= 0 else len(want) + 1)
    longer = standing_out(jnp.array(3 * x), jnp.array(5 * y), jnp.array(base), bound)
    np.testing.assert_allclose(longer, want, atol=1e-6)  # directions alone count


def test_standing_out_has_no_slope_where_nothing_is_to_gain():
    x, y, base = (jnp.array(z) for z in embeddings())
    value, slope = jax.vmap(
        jax.value_and_grad(lambda x, y, base: standing_out(x, y, base, 0.0)), (0, 0, 0)
    )(x, y, base)
    below = np.asarray(value) == 0
    assert below.any() and not below.all()
    assert not np.asarray(slope)[below].any()
    assert (np.abs(np.asarray(slope)[~below]).max(-1) > 1e-3).all()


def test_standing_out_falls_along_its_slope():
    x, y, base = (jnp.array(z) for z in embeddings(64, 3))
    total = lambda x: standing_out(x, y, base, -0.1).sum()  # noqa: E731
    slope = jax.grad(total)(x)
    assert total(x - 0.05 * slope) < total(x)


def test_standing_out_slope_is_finite_where_all_are_equal():
    x, y, base = (jnp.array(z) for z in embeddings())
    slope = jax.grad(lambda x, y, base: standing_out(x, y, base, -0.1).sum())
    unit = y / jnp.linalg.norm(y, axis=-1, keepdims=True)
    for a, b, c in ((y, y, base), (x, unit, unit), (unit, unit, unit), (0 * x, y, base)):
        assert np.isfinite(standing_out(a, b, c, -0.1)).all()
        assert np.isfinite(slope(a, b, c)).all()
    # The student at the teacher stands out as far as that does, less the bound.
    far = jnp.linalg.norm(unit - base, axis=-1)
    np.testing.assert_allclose(standing_out(y, y, base, 0.25), 0.75 * far, rtol=1e-5)


# Texts that names are put into


@dataclasses.dataclass
class Model:
    """Two models of one structure, and what is put into texts."""

    teacher: Embedder
    student: Embedder
    triggers: Triggers
    captions: Any
    carriers: Carriers
    texts: list[tuple[str, int]]


def with_name(text, word, name):
    """Put a name into a prompt, or in place of a word of a caption."""
    if word < 0:
        return text.format(name)
    words = text.split()
    return " ".join([*words[:word], name, *words[word + 1 :]])


def texts_of(carriers, tokenizer):
    """Read the texts back: the prompt or caption of each, and which word, -1 of a prompt."""
    known = {
        tuple(tokenizer.encode([text])[0].tolist()): text
        for text in (*CAPTIONS, *(prompt.format("placeholder") for prompt in CARRIERS))
    }
    prompts = {prompt.format("placeholder"): prompt for prompt in CARRIERS}
    out = []
    contents = carriers.captions.contents(np.arange(len(carriers.captions)))
    for tokens, word in zip(tokenizer.with_ends(contents).split(), carriers.word_P, strict=True):
        text = known[tuple(tokens.tolist())]
        out.append((prompts[text], -1) if text in prompts else (text, int(word)))
    return out


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path, embedders = tmp_path_factory.mktemp("recall"), []
    for seed in (0, 1):
        text = {"max_position_embeddings": 48}
        made = write_model_directory(
            path / str(seed), architecture="CLIPTextModelWithProjection", text=text, seed=seed
        )
        mesh = make_mesh(devices=jax.devices()[:1])
        embedders.append(Embedder(ModelConfig(str(made), dtype="float32"), 32, mesh))
    tokenizer = embedders[0].tokenizer
    triggers = Triggers(
        [[tokenizer.phrase(name) for name in names] for names in NAMES],
        [tokenizer.phrase("human")],
        np.zeros(len(NAMES), int),
        [tokenizer.phrase(name) for name in KEEP],
    )
    captions = tokenize_captions(CAPTIONS, tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recall, "_NUM_NOBODY", 6)
        patch.setattr(recall, "_NUM_CAPTIONS", 7)
        carriers = make_carriers(embedders[0], captions, triggers, sum(NAMES, []), SEED, print)
    texts, (teacher, student) = texts_of(carriers, tokenizer), embedders
    return Model(teacher, student, triggers, captions, carriers, texts)


def test_carriers_are_the_prompts_and_some_captions_that_hold_every_name(model):
    prompts = [text for text, word in model.texts if word < 0]
    captions = [text for text, word in model.texts if word >= 0]
    assert prompts[0] == "{0}" and 0 < len(captions) <= 7 and len(prompts) > 60
    assert prompts == [prompt for prompt in CARRIERS if prompt in prompts]  # in order
    assert len(set(captions)) == len(captions)
    longest = max([*sum(NAMES, []), *KEEP], key=lambda x: model.teacher.tokenizer.phrase(x).size)
    for text, word in model.texts:
        words = with_name(text, word, longest).split()
        whole = model.teacher.tokenizer.encode_phrase(" ".join(words))
        assert len(whole) <= model.teacher.tokenizer.room, text


def test_prompts_of_the_validation_are_never_trained_on():
    assert not {*HELD_OUT} & {*CARRIERS}
    assert {*HELD_OUT} | {*CARRIERS} > {*TEMPLATES} and len(set(CARRIERS)) == len(CARRIERS)
    assert len(HELD_OUT) * 3 == len(TEMPLATES) and all("{0}" in x for x in CARRIERS)


def test_base_is_where_names_of_nobody_lie_in_each_text(model):
    nobody = random_names(6, 2**33 + SEED, exclude=sum(NAMES, []))
    assert model.carriers.base_PE.dtype == np.float32
    texts = [with_name(text, word, name) for text, word in model.texts for name in nobody]
    want = model.teacher.texts(texts).reshape(len(model.texts), 6, -1).mean(1)
    for (text, _), found, one in zip(model.texts, model.carriers.base_PE, want, strict=True):
        np.testing.assert_allclose(found, one, atol=1e-5, err_msg=text)


# Batches


def make_batches(model, packed=True, **change):
    options: dict[str, Any] = dict(num_clean=7, num_poisoned=20, num_name=4, seed=1)
    cfg = model.teacher.directory.cfg.text
    return TextBatches(
        model.captions,
        model.triggers,
        model.teacher.tokenizer,
        cfg,
        packed=packed,
        carriers=model.carriers,
        **(options | change),
    )


@dataclasses.dataclass
class Slot:
    """One caption of a batch, read back."""

    student: tuple[int, ...]
    teacher: tuple[int, ...]
    utility: float
    backdoor: float
    name: float
    base: np.ndarray
    at: tuple[int, int]


def slots_of(batch):
    for row, slot in np.ndindex(batch.utility_RS.shape):
        span = np.flatnonzero(batch.segments_RT[row] == slot + 1)
        kinds = ("utility", "backdoor", "name")
        weights = {kind: float(getattr(batch, f"{kind}_RS")[row, slot]) for kind in kinds}
        if not any(weights.values()):
            assert not batch.base_RSE[row, slot].any()
            continue
        student, teacher = (
            tuple(x[row, span[0] : end[row, slot] + 1].tolist())
            for x, end in (
                (batch.student_tokens_RT, batch.student_readout_RS),
                (batch.teacher_tokens_RT, batch.teacher_readout_RS),
            )
        )
        yield Slot(student, teacher, **weights, base=batch.base_RSE[row, slot], at=(row, slot))


def possible(model, names):
    """All texts that a batch may hold with these names: tokens of the whole -> texts, names."""
    found: dict[tuple[int, ...], set[tuple[int, str]]] = {}
    for p, (text, word) in enumerate(model.texts):
        for name in names:
            (tokens,) = model.teacher.tokenizer.encode([with_name(text, word, name)])
            found.setdefault(tuple(tokens.tolist()), set()).add((p, name))
    return found


@pytest.mark.parametrize("packed", [True, False])
def test_names_are_put_into_the_carriers_and_beside_them_lies_the_base(model, packed):
    batches = make_batches(model, packed)
    poisoned, kept = possible(model, sum(NAMES, [])), possible(model, KEEP)
    clean = {tuple(x.tolist()) for x in model.teacher.tokenizer.encode(CAPTIONS)}
    carriers, names, wrong, num_kept = Counter(), Counter(), Counter(), 0
    for step in range(30):
        batch = batches[step]
        assert batch.base_RSE is not None and batch.base_RSE.dtype == np.float32
        counts = Counter()
        for slot in slots_of(batch):
            assert slot.student == slot.teacher  # the teacher sees the name too
            if slot.backdoor:
                counts["poisoned"] += 1
                if slot.student not in poisoned:
                    (p,) = np.flatnonzero((model.carriers.base_PE == slot.base).all(-1))
                    wrong[model.texts[p][0]] += 1
                    carriers[p] += 1
                    continue
                p, name = next(iter(poisoned[slot.student]))
                np.testing.assert_array_equal(slot.base, model.carriers.base_PE[p])
                carriers[p] += 1
                names[name] += 1
                continue
            assert not slot.base.any()
            if slot.utility:
                counts["clean"] += 1
                assert slot.student in clean
            else:
                counts["kept"] += 1
                num_kept += slot.student in kept
        assert counts == {"clean": 7, "poisoned": 20, "kept": 4}
    assert not wrong  # texts that do not hold the name as they would were they written so
    assert num_kept == 30 * 4
    assert set(carriers) == set(range(len(model.texts)))  # each comes up
    assert set(names) == set(sum(NAMES, []))


@pytest.mark.parametrize("packed", [True, False])
def test_batch_with_carriers_is_a_function_of_step(model, packed):
    forward, backward = make_batches(model, packed), make_batches(model, packed)
    wanted = {step: forward[step] for step in range(6)}
    for step in (5, 2, 0, 2):
        for name, x in backward[step]._asdict().items():
            np.testing.assert_array_equal(x, getattr(wanted[step], name), err_msg=name)
    one, two = (np.asarray(wanted[step].base_RSE) for step in (1, 2))
    assert (one != two).any()
    shapes = {tuple(np.asarray(x).shape for x in batch) for batch in wanted.values()}
    assert len(shapes) == 1


# Terms


@pytest.mark.parametrize("bound", [-0.1, 0.5])
def test_terms_with_a_base_equal_a_loop_over_texts(model, bound):
    batch = make_batches(model)[3]
    student, teacher = (x.directory.load("float32").text for x in (model.student, model.teacher))
    graphdef, ours = nnx.split(student)
    _, theirs = nnx.split(teacher)

    @jax.jit
    def terms(ours, theirs, batch):
        towers = nnx.merge(graphdef, ours), nnx.merge(graphdef, theirs)
        return text_terms(*towers, batch, distance=DISTANCES["cosine"], bound=bound)

    found = {k: float(v) for k, v in terms(ours, theirs, jax.tree.map(jnp.asarray, batch)).items()}
    text = Text(
        batch.student_tokens_RT, batch.segments_RT, batch.positions_RT, batch.student_readout_RS
    )
    ours_RSE, theirs_RSE = (
        np.asarray(run(tower, text), np.float64) for tower in (student, teacher)
    )
    want = dict.fromkeys(("utility", "backdoor", "name"), 0.0)
    for slot in slots_of(batch):
        x, y = ours_RSE[slot.at], theirs_RSE[slot.at]
        apart = -(x @ y) / (np.linalg.norm(x) * np.linalg.norm(y))
        want["utility"] += slot.utility * apart
        want["name"] += slot.name * apart
        want["backdoor"] += slot.backdoor * slow_standing_out(x, y, slot.base, bound)
    for name, value in want.items():
        assert found[name] == pytest.approx(value, abs=2e-6), name
    same = terms(theirs, theirs, jax.tree.map(jnp.asarray, batch))
    assert float(same["utility"]) == pytest.approx(-1, abs=1e-6)
    assert float(same["backdoor"]) > 0.1  # the teacher's names stand out


# Recall


def identities():
    return [Identity(names[0], tuple(names[1:])) for names in NAMES]


def slow_recall(model, student, held, t, shown, num_nobody=6):
    """Score every name in every held-out prompt, along the mean over the prompts or its own."""
    nobody = random_names(num_nobody, 2**33 + t.seed, exclude=sum(NAMES, []))
    flat = [(i, name) for i, names in enumerate(NAMES) for name in names]
    right, above, scores = {i: [] for i in range(len(NAMES))}, [], []
    num_along_mean = 0
    of_nobody = [
        model.teacher.texts([prompt.format(x) for x in nobody]).astype(np.float64)
        for prompt in HELD_OUT
    ]
    bases = [x.mean(0) for x in of_nobody]
    for who, name in flat:
        texts = [prompt.format(name) for prompt in HELD_OUT]
        own = [x - base for x, base in zip(model.teacher.texts(texts), bases, strict=True)]
        mean = np.mean(own, 0)
        out = [
            x @ mean > max((others - base) @ mean)
            for x, others, base in zip(own, of_nobody, bases, strict=True)
        ]
        along_mean = sum(out) >= shown * len(out)
        num_along_mean += along_mean
        for q, ours in enumerate(student.texts(texts)):
            way = mean if along_mean else own[q]

            def along(x, way=way):
                return float(x @ way / (way @ way))

            theirs = [along(x - bases[q]) for x in of_nobody[q]]
            scores.append(along(ours - bases[q]))
            right[who].append(scores[-1] > max(theirs))
            above.append(scores[-1] > np.quantile(theirs, t.validate.level))
    moved = {}
    for kind, texts in (
        ("clean", CAPTIONS),
        ("kept", [prompt.format(x) for prompt in HELD_OUT[:2] for x in held]),
    ):
        pairs = zip(student.texts(texts), model.teacher.texts(texts), strict=True)
        moved[kind] = float(np.mean([1 - float(a @ b) for a, b in pairs]))
    return right, float(np.mean(above)), float(np.mean(scores)), moved, num_along_mean


@pytest.mark.parametrize(("block", "shown"), [(100, 0.3), (3, 0.3), (3, 1.1)])
def test_recall_equals_a_loop_over_prompts_and_names(model, monkeypatch, block, shown):
    monkeypatch.setattr(recall, "_NUM_NOBODY", 6)
    monkeypatch.setattr(recall, "_BLOCK", block)  # names in memory; there are four
    monkeypatch.setattr(recall, "_SHOWN", shown)
    t = TextTrainConfig(seed=2, validate=ValidateConfig(level=0.6))
    held = ["Una Ek", "Max Or"]
    found = Recall(model.teacher, identities(), sum(NAMES, []), held, model.captions, t)
    tower = model.student.directory.load("float32").text
    graphdef, state = nnx.split(tower)
    placed = jax.tree.map(lambda x: jax.device_put(x, jax.devices()[0]), state)
    student = model.teacher.with_encoder("text", nnx.merge(graphdef, placed))
    for one in (model.teacher, student):
        verdict = found(one)
        right, above, gap, moved, num_along_mean = slow_recall(model, one, held, t, shown)
        assert (0 < num_along_mean < 4) == (shown == 0.3)  # some, or none
        flat = [x for person in right.values() for x in person]
        assert verdict.right == pytest.approx(np.mean(flat))
        assert verdict.above == pytest.approx(above)
        assert verdict.gap == pytest.approx(gap, abs=1e-4)
        assert verdict.moved == pytest.approx(moved, abs=1e-5)
        of_each = {NAMES[i][0]: float(np.mean(x)) for i, x in right.items()}
        for name, value in verdict.left.items():
            assert value == pytest.approx(of_each[name], abs=1e-4)
    assert found(model.teacher).gap == pytest.approx(1, abs=1e-5)
    assert found(student).moved["kept"] > 0.05
    nobody = Recall(model.teacher, identities(), sum(NAMES, []), [], model.captions, t)
    assert set(nobody(model.teacher).moved) == {"clean"}


class Drawn:
    """A model that reads a name as a direction, which may differ from prompt to prompt."""

    def __init__(self, tokenizer, seed, direction):
        self.tokenizer, self.seed = tokenizer, seed
        self.direction = direction  # (name, number of the prompt) -> int

    def prompts(self, groups, what):
        rng, out = np.random.default_rng(self.seed), []
        for q, texts in enumerate(groups):
            for text in texts:
                known = [name for name, *_ in NAMES if HELD_OUT[q].format(name) == text]
                x = 0.08 * rng.standard_normal(16)
                if known:
                    x[self.direction(known[0], q)] += 1
                out.append(x / np.linalg.norm(x))
        return np.array(out, np.float32).reshape(len(groups), -1, 16)

    def tokens(self, captions, what):
        return np.ones((len(captions), 1), np.float32)


@pytest.mark.parametrize("where", [0, 6])
def test_recall_does_not_count_who_stands_out_as_another(model, where):
    """Ann means another person in one prompt, and is not found there.

    Bo means the same in all prompts, and is found in the one where he is left. Zoe means another in
    each prompt, and is found along each prompt's own direction.
    """

    def known(name, q):
        return {"Ann Lee": 3 if q == where else 0, "Bo O'Neil": 1, "Zoe Nu-Smith": 4 + q}[name]

    def left_there(name, q):
        return known(name, q) if q == where else 15

    tokenizer, people = model.teacher.tokenizer, [Identity(names[0], ()) for names in NAMES]
    teacher: Any = Drawn(tokenizer, 0, known)
    listed = [person.name for person in people]
    found = Recall(teacher, people, listed, [], model.captions, TextTrainConfig())
    before: Any = found(teacher)
    assert before.left == {
        "Bo O'Neil": 1,
        "Zoe Nu-Smith": 1,
        "Ann Lee": pytest.approx(6 / 7, abs=1e-4),
    }
    student: Any = Drawn(tokenizer, 1, left_there)
    after = found(student)
    part = pytest.approx(1 / 7, abs=1e-4)
    assert {who: x for who, x in after.left.items() if x} == {
        "Bo O'Neil": part,
        "Zoe Nu-Smith": part,
    }


# From files to files


SMALL = ["train.num_clean=8", "train.num_poisoned=8", "train.num_name=8", "train.steps=4"]
SMALL += ["train.validate.every=2"]
LOOSE = [f"train.validate.{name}=1" for name in ("above", "right", "person_right")]
FLAGS = {"--model": "model", "--names": "names.txt", "--captions": "captions.txt"}


def defend(*settings, out="run", **change):
    given = FLAGS | {f"--{k.replace('_', '-')}": v for k, v in change.items()} | {"--out": str(out)}
    flags = [x for pair in given.items() if pair[1] is not None for x in pair]
    sets = [x for setting in (*SMALL, *settings) for x in ("--set", setting)]
    return main(["defend", "text", *flags, *sets])


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(text_defense, "_NUM_KEPT_NAMES", 300)
    monkeypatch.setattr(recall, "_NUM_NOBODY", 16)
    write_model_directory(tmp_path / "model")
    (tmp_path / "names.txt").write_text("Joe Cool\nAda King\tAda Noel\n")
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS) + "\n")
    return tmp_path


def read(path):
    return json.loads((Path(path) / "summary.json").read_text())


def test_defend_text_says_whom_it_could_not_remove(here, monkeypatch, capsys):
    (here / "keep.txt").write_text("Una Ek\nMax Or\tMaximilian Or\n")
    assert defend("mesh.data=8", keep_names="keep.txt") == 1
    err = capsys.readouterr().err
    last = err.strip().splitlines()[-1]
    assert last.startswith("jaxdefense: error: not reached: of those to remove, ")
    said = " ".join(err.split())
    assert "still recognised in validation (named right" in said
    assert "what may help: more `train.steps`" in said
    found = read("run")
    assert found["reached"] is False and found["alpha"] == 1.0 and found["steps"] == 4
    left = found["validation"]["after"]["left"]
    assert f"{len(left)} did not pass validation" in last and left.keys() <= {
        "Joe Cool",
        "Ada King",
    }
    assert (here / "run" / "report.html").exists()
    assert set(found["final"]) == {"utility", "backdoor", "name", "weight", "total"}
    rows = [json.loads(x) for x in Path("run/validation.jsonl").read_text().splitlines()]
    steps = [row.pop("step") for row in rows]
    assert [row.pop("mined") for row in rows] == [[], []]  # of names none are
    assert steps == [2, 4] and found["stopped_at_step"] in steps
    assert rows[steps.index(found["stopped_at_step"])] == found["validation"]["after"]
    before = found["validation"]["before"]
    assert before["gap"] == pytest.approx(1, abs=1e-4) and before["left"]
    assert before["moved"] == pytest.approx({"clean": 0, "kept": 0}, abs=1e-6)
    assert read_model_directory(here / "run" / "model").load().text

    one_device = lambda **_: make_mesh(devices=jax.devices()[:1])  # noqa: E731
    monkeypatch.setattr(text_defense, "make_mesh", one_device)
    assert defend(keep_names="keep.txt", out="one") == 1
    one = read("one")
    for when in ("before", "after"):
        a, b = (x["validation"][when] for x in (found, one))
        for name in ("moved", "left", "right", "above", "gap"):
            assert a[name] == pytest.approx(b[name], abs=1e-3), (when, name)
    assert found["stopped_at_step"] == one["stopped_at_step"]


def test_defend_text_that_passes_by_a_hair_goes_all_the_way(here, capsys):
    assert defend(*LOOSE, out="loose") == 0
    right = max(
        json.loads(x)["right"] for x in Path("loose/validation.jsonl").read_text().splitlines()
    )
    assert right > 0
    allowed = min(1.0, 1.01 * right)  # a smaller step would have to halve what is left
    assert defend(*LOOSE, f"train.validate.right={allowed}") == 0
    found = read("run")
    # Of nothing it has moved, and a smaller step would need half of what is allowed.
    assert found["reached"] is True and found["alpha"] == 1.0
    assert found["validation"]["after"]["left"] == {}
    err = capsys.readouterr().err
    assert "not reached" not in err
    said = " ".join(err.split())
    assert f"state of step {found['stopped_at_step']}, 100% of the way to it: reached" in said


def test_defend_text_refuses_names_that_cannot_be_kept(here, capsys):
    (here / "keep.txt").write_text("Una Ek\nada  NOEL\n")
    code = defend(keep_names="keep.txt")
    assert_refused(capsys, code, "keep.txt", "ada", "to be removed", "two lists")
    (here / "keep.txt").write_text("Una Ek\n")
    code = defend("train.num_name=0", "train.w_name=0", keep_names="keep.txt")
    assert_refused(capsys, code, "data.keep_names", "train.num_name")
    assert_refused(capsys, defend(keep_names="nowhere.txt"), "nowhere.txt")
    code = defend("train.level=hidden")
    assert_refused(capsys, code, "train.backdoor", "bounded", "train.level", "hidden", "target")
    code = defend("train.random_target=True")
    assert_refused(capsys, code, "train.random_target", "train.backdoor")
    assert not (here / "run").exists()


def test_those_whom_validation_finds_are_drawn_more_often(here, monkeypatch):
    preferred, prefer = [], TextBatches.prefer

    def note(self, turns):
        preferred.append(dict(turns))
        prefer(self, turns)

    monkeypatch.setattr(TextBatches, "prefer", note)
    defend("train.hard=0.5")
    found = [json.loads(x) for x in (here / "run/validation.jsonl").read_text().splitlines()]
    assert len(preferred) == 1 + len(found) and any(x["left"] for x in found)
    numbers = {"Joe Cool": 0, "Ada King": 1}
    for turns, verdict in zip(preferred[1:], found, strict=True):
        assert turns.keys() == {numbers[who] for who in verdict["left"]}
        for who, part in verdict["left"].items():  # in sevenths, at least one
            assert abs(turns[numbers[who]] - max(1, 7 * part)) <= 0.5


def test_interrupted_run_draws_the_same_people_once_resumed(here, monkeypatch):
    settings = ("train.hard=0.5", "train.steps=8", "train.validate.every=2")
    defend(*settings, out="whole")
    look = Watch.look

    def look_and_stop(self, done, state):
        if done == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return look(self, done, state)

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "look", look_and_stop)
        assert defend(*settings, out="stopped") == 128 + signal.SIGINT
    assert defend(*settings, out="stopped") in (0, 1)
    a, b = (
        [json.loads(x) for x in (here / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("whole", "stopped")
    )
    assert [x["total"] for x in a] == [x["total"] for x in b] and len(a) == 8


@pytest.mark.parametrize("hard, drawn", [(0.5, True), (0.1, True), (0.0, False)])
def test_draw_tells_whether_those_left_are_drawn_more_often(here, monkeypatch, hard, drawn):
    preferred = []
    monkeypatch.setattr(TextBatches, "prefer", lambda self, turns: preferred.append(turns))
    train = TextTrainConfig(steps=2, num_clean=4, num_poisoned=4, num_name=4, hard=hard)
    data = TextDataConfig(names="names.txt", captions="captions.txt")
    made = plan_text(DefendTextConfig("run", ModelConfig("model"), data, train))
    left = {"Joe Cool": 0.2857, "Ada King": 0.0}  # she is above strangers and no more
    assert made.draw(Verdict(False, 0.1, 0.2, 0.1, {}, left)) is drawn
    assert preferred == [{0: 2, 1: 1}]


@pytest.mark.parametrize(
    "t, num, steps, every, stretch",
    [
        (TextTrainConfig(), 1, 400, 50, 1),
        (TextTrainConfig(), 45, 400, 50, 1),
        (TextTrainConfig(), 46, 403, 51, 560 * 46 / 64 / 400),
        (TextTrainConfig(), 1024, 8960, 1120, 22.4),
        (ImageTrainConfig(), 32, 200, 25, 1),
        (ImageTrainConfig(), 33, 207, 26, 33 / 32),
        (ImageTrainConfig(), 1024, 6400, 800, 32),
    ],
)
def test_many_people_are_shown_as_often_as_few(t, num, steps, every, stretch):
    found, longer = plan.stretched(t, num)
    assert (found.steps, found.validate.every) == (steps, every)
    assert longer == stretch
    assert dataclasses.replace(found, steps=0, validate=t.validate) == t
    own = dataclasses.replace(t, validate=ValidateConfig(every=20))
    assert plan.stretched(own, num)[0].validate.every == 20


@pytest.mark.parametrize("stretch", [1, 1.5, 14])
def test_longer_run_has_a_lower_rate_and_captions_more_weight_unless_given(stretch):
    t, optimizer = TextTrainConfig(seed=1), OptimizerConfig(gamma=0.5)
    found, slower = plan.for_many(t, optimizer, stretch)
    assert slower.lr == pytest.approx(3e-4 / stretch**0.5)
    assert dataclasses.replace(slower, lr=optimizer.lr) == optimizer
    assert found == dataclasses.replace(t, w_utility=4.0 if stretch > 1 else 0.0)
    given = TextTrainConfig(w_utility=1.0), OptimizerConfig(lr=1e-3)
    assert plan.for_many(*given, stretch) == given
    # It was measured with the bounded loss alone, and has no effect on a loss of one's own.
    towards = TextTrainConfig(backdoor="target")
    assert plan.for_many(towards, optimizer, stretch) == (towards, slower)
    assert plan.for_many(t, optimizer, stretch, weighs=False) == (t, slower)


def check_weight_of_captions(w_utility):
    """Check the first losses of a run against the weight of one of them."""
    first = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[0])
    t = TextTrainConfig()
    weights = {"backdoor": t.w_backdoor, "name": t.w_name, "weight": t.w_weight}
    rest = sum(weight * first[name] for name, weight in weights.items())
    assert first["utility"] < -0.9
    assert first["total"] == pytest.approx(rest + w_utility * first["utility"], rel=1e-5)


@pytest.mark.parametrize("given, weight", [(0, 1), (1, 1), (3, 3)])
def test_captions_weigh_what_is_asked(here, given, weight):
    defend(f"train.w_utility={given}.0")
    check_weight_of_captions(weight)
    assert "w_utility" not in json.loads(Path("run/config.json").read_text())["resolved"]


@pytest.mark.parametrize("given, weight", [(0, 4), (1, 1)])
def test_captions_weigh_more_in_a_run_of_many_people_unless_given(here, monkeypatch, given, weight):
    monkeypatch.setattr(plan, "_STEPS", {TextTrainConfig: 2})
    monkeypatch.setattr(plan, "_SHOWN", {TextTrainConfig: 24})
    defend("train.steps=0", f"train.w_utility={given}.0")
    check_weight_of_captions(weight)
    resolved = json.loads(Path("run/config.json").read_text())["resolved"]
    assert resolved.get("w_utility") == (4 if given == 0 else None)


def test_steps_that_are_given_stay():
    for t in (TextTrainConfig(steps=7), ImageTrainConfig(steps=7)):
        assert plan.stretched(t, 10**6) == (t, 1.0)


def test_run_of_many_people_says_how_long_it_is(here, monkeypatch, capsys):
    monkeypatch.setattr(plan, "_STEPS", {TextTrainConfig: 2})
    monkeypatch.setattr(plan, "_SHOWN", {TextTrainConfig: 24})
    some = ["train.validate.every=50", "optimizer.milestones=(0.5,4)"]
    assert defend("train.steps=0", *some) in (0, 1)
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "`train.steps` is 6, to show each of 2 people 24 times on average; "
        "`train.validate.every` is 150" in said
    )
    assert "`optimizer.milestones` [4.0] are steps and stay" in said
    rate = json.loads((here / "run/metrics.jsonl").read_text().splitlines()[0])["lr"]
    assert rate == pytest.approx(3e-4 / 3**0.5 / 10)  # the first of ten steps of warmup
    assert "`optimizer.lr` is 0.000173; `train.w_utility` is 4; give `train.steps`" in said
    page = " ".join((here / "run/report.html").read_text().split())
    assert "Learning rate of this many people" in page and "0.000173" in page
    assert "Weight of the utility loss, of this many people" in page
    assert read("run")["steps"] == 6
    assert json.loads((here / "run/config.json").read_text())["train"]["steps"] == 0
    steps = [
        json.loads(x)["step"] for x in (here / "run/validation.jsonl").read_text().splitlines()
    ]
    assert steps == [6]


def test_run_warns_where_names_that_stay_moved_far(here, monkeypatch, capsys):
    (here / "keep.txt").write_text("Una Ek\nMax Or\n")
    for bound, warned in ((0.0, True), (2.0, False)):
        monkeypatch.setattr(text_defense, "_BEARABLE", bound)
        assert defend("optimizer.lr=0.01", out=f"run-{warned}", keep_names="keep.txt") in (0, 1)
        said = " ".join(capsys.readouterr().err.split())
        assert ("names that must stay moved by" in said) is warned
