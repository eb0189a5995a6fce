"""What a removal does to all else: retrieval, zero-shot with 80 prompts, and people who stay."""

import math
import tracemalloc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import write_model_directory
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from reference import open_clip
from scipy import stats

from jaxdefense.config import ModelConfig
from jaxdefense.data.identities import Identity
from jaxdefense.data.images import Photos, read_folders
from jaxdefense.demo import world
from jaxdefense.demo.run import shipped_model
from jaxdefense.errors import InputError
from jaxdefense.evals import retrieval, zeroshot
from jaxdefense.evals.embed import Embedder, unit
from jaxdefense.evals.retrieval import recalls
from jaxdefense.proof.neighbours import (
    by_label,
    by_similarity,
    nearest_removed,
    read_labels,
    sharing_names,
)
from jaxdefense.sharding import make_mesh

# Retrieval


def pairs(
    num_texts: int, num_photos: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Texts near their photos, in random order; with few texts some photos have none."""
    rng = np.random.default_rng(seed)
    image_PE = unit(rng.standard_normal((num_photos, 7), np.float32))
    image_T = rng.integers(0, num_photos, num_texts)
    noise_TE = unit(rng.standard_normal((num_texts, 7), np.float32))
    return unit(image_PE[image_T] + noise_TE), image_PE, image_T


def sorted_recalls(text_TE, image_PE, image_T, k: int) -> tuple[list[float], list[float]]:
    """The definition: sort everything, look at the first k."""
    score_TP = text_TE.astype(np.float64) @ image_PE.T.astype(np.float64)
    per_text = [
        float(int(image_T[t]) in np.argsort(-score_TP[t])[:k].tolist()) for t in range(len(text_TE))
    ]
    per_photo = []
    for p in range(len(image_PE)):
        nearest = np.argsort(-score_TP[:, p])[:k]
        per_photo.append(float(any(image_T[t] == p for t in nearest)))
    return per_text, per_photo


@pytest.mark.parametrize("block", [1, 50, 2**22])
@pytest.mark.parametrize("num_texts, num_photos", [(60, 23), (11, 31), (13, 13)])
def test_recalls_match_the_definition(monkeypatch, block, num_texts, num_photos):
    monkeypatch.setattr(retrieval, "_BLOCK", block)
    inputs = pairs(num_texts, num_photos)
    found = recalls(*inputs, ks=(1, 2, 5, 10))
    shares = []
    for k in (1, 2, 5, 10):
        per_text, per_photo = sorted_recalls(*inputs, k)
        assert found[f"image_retrieval_recall@{k}"].tolist() == per_text
        assert found[f"text_retrieval_recall@{k}"].tolist() == per_photo
        shares += [np.mean(per_text), np.mean(per_photo)]
    assert len(found) == 8 and 0 < min(shares) and len(set(shares)) > 3


def test_recalls_leave_out_what_is_more_than_there_are():
    found = recalls(*pairs(9, 6), ks=(1, 6, 7, 9, 10))
    ks = {"image": (1, 6), "text": (1, 6, 7, 9)}
    assert set(found) == {f"{way}_retrieval_recall@{k}" for way in ks for k in ks[way]}
    assert found["image_retrieval_recall@6"].all()
    with_texts = np.isin(np.arange(6), pairs(9, 6)[2])
    assert found["text_retrieval_recall@9"].tolist() == with_texts.tolist()
    assert set(recalls(*pairs(9, 6))) == {
        "image_retrieval_recall@1",
        "image_retrieval_recall@5",
        "text_retrieval_recall@1",
        "text_retrieval_recall@5",
    }


@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_ties_count_against_the_model(noise):
    axes = np.eye(3, dtype=np.float32)
    # The first two photos have one embedding, and so have texts 0 and 1. Photo 2 has texts 2 and 3,
    # which do not stand in each other's way.
    text_TE, image_PE, image_T = axes[[0, 0, 1, 1]], axes[[0, 0, 1]], np.array([0, 1, 2, 2])
    text_TE = text_TE + noise * np.arange(4, dtype=np.float32)[:, None]
    found = recalls(text_TE, image_PE, image_T, ks=(1, 2))
    assert found["image_retrieval_recall@1"].tolist() == [0, 0, 1, 1]
    assert found["image_retrieval_recall@2"].tolist() == [1, 1, 1, 1]
    assert found["text_retrieval_recall@1"].tolist() == [0, 0, 1]
    assert found["text_retrieval_recall@2"].tolist() == [1, 1, 1]


def test_a_model_that_embeds_all_alike_finds_nothing():
    one = unit(np.ones((8, 5), np.float32))
    found = recalls(one, one, np.arange(8))
    assert set(found) and not any(share.any() for share in found.values())


@given(st.integers(0, 1000))
def test_recalls_do_not_depend_on_order(seed):
    rng = np.random.default_rng(seed)
    text_TE, image_PE, image_T = pairs(int(rng.integers(3, 20)), int(rng.integers(3, 20)), seed)
    texts, photos = rng.permutation(len(text_TE)), rng.permutation(len(image_PE))
    turned = recalls(text_TE[texts], image_PE[photos], np.argsort(photos)[image_T[texts]])
    for name, value in recalls(text_TE, image_PE, image_T).items():
        order = texts if name.startswith("image") else photos
        assert value[order].tolist() == turned[name].tolist()


def test_recalls_hold_one_block(monkeypatch):
    monkeypatch.setattr(retrieval, "_BLOCK", 2**15)
    inputs = pairs(1500, 1000)
    tracemalloc.start()
    recalls(*inputs)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1500 * 1000  # bytes; all cosines would take 6 MB


# Zero-shot


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = write_model_directory(tmp_path_factory.mktemp("model") / "a")
    return Embedder(ModelConfig(str(path)), 8, make_mesh())


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("classes"), np.random.default_rng(0)
    for num, name in enumerate(("bus", "cat", "red_ball", "house", "tree", "cup", "dog")):
        (root / name).mkdir()
        for i in range(1 + num % 4):
            Image.fromarray(rng.integers(0, 255, (12, 12, 3), np.uint8)).save(
                root / name / f"{i}.png"
            )
    return read_folders(root, "classes")


@pytest.mark.torch("open_clip")
def test_the_80_prompts_are_openais():
    wanted = open_clip.OPENAI_IMAGENET_TEMPLATES
    found = zeroshot.openai_templates()
    assert [template.format("tench") for template in found] == [make("tench") for make in wanted]


def test_the_80_prompts_hold_a_class_once():
    found = zeroshot.openai_templates()
    assert len(found) == len(set(found)) == 80
    assert all(template.count("{}") == 1 and template == template.strip() for template in found)


@dataclass
class Counted:
    """A model that notes how it is asked."""

    model: Embedder
    prompts: list[int] = field(default_factory=list)
    photos: list[int] = field(default_factory=list)

    def texts(self, texts, what):
        self.prompts.append(len(texts))
        return self.model.texts(texts, what)

    def readable_photos(self, photos, max_corrupt, what):
        self.photos.append(len(photos))
        return self.model.readable_photos(photos, max_corrupt, what)


@pytest.mark.parametrize(
    "limit, most", [pytest.param(8192, 560, marks=pytest.mark.slow), (200, 160), (7, 80)]
)
def test_predictions_match_a_plain_loop(monkeypatch, model, classes, limit, most):
    monkeypatch.setattr(zeroshot, "_NUM_PROMPTS", limit)
    sets = [zeroshot.TEMPLATES, zeroshot.openai_templates()]
    counted: Any = Counted(model)
    label_B, ranks = zeroshot.predictions(counted, classes, sets)
    assert label_B.tolist() == [i for i, c in enumerate(classes) for _ in c.files]
    assert counted.photos == [len(label_B)] and max(counted.prompts) == most
    assert sum(counted.prompts) == 7 * 84
    photos = model.photos([file for c in classes for file in c.files])
    for templates, rank_B in zip(sets, ranks, strict=True):
        means = [unit(model.texts([t.format(c.name) for t in templates]).mean(0)) for c in classes]
        for photo_E, label, rank in zip(photos, label_B, rank_B, strict=True):
            order = np.argsort([-float(photo_E @ mean_E) for mean_E in means]).tolist()
            assert order.index(label) == rank
    assert ranks[0].tolist() != ranks[1].tolist()


def test_zeroshot_is_the_mean_of_the_accuracies(model, classes):
    label_B, (rank_B,) = zeroshot.predictions(model, classes, [zeroshot.TEMPLATES])
    found = zeroshot.accuracies(label_B, rank_B, len(classes))
    old = zeroshot.zeroshot(model, classes)
    assert old == {"top1": found["acc1"].mean(), "top5": found["acc5"].mean()}
    assert 0 < old["top1"] < old["top5"] < 1


def test_accuracies_match_a_plain_loop():
    rng = np.random.default_rng(1)
    label_B = rng.choice([0, 1, 2, 4, 6], 40)  # nobody shows classes 3 and 5
    rank_B = rng.integers(0, 7, 40)
    found = zeroshot.accuracies(label_B, rank_B, 7)
    shares = []
    for c in (0, 1, 2, 4, 6):
        own = [int(rank == 0) for rank, label in zip(rank_B, label_B, strict=True) if label == c]
        shares.append(sum(own) / len(own))
    assert found["mean_per_class_recall"].tolist() == shares
    assert found["acc1"].tolist() == [float(rank == 0) for rank in rank_B]
    assert found["acc5"].tolist() == [float(rank < 5) for rank in rank_B]
    assert abs(np.mean(shares) - found["acc1"].mean()) > 0.005
    assert set(zeroshot.accuracies(label_B % 5, rank_B, 5)) == {"acc1", "mean_per_class_recall"}


def test_a_broken_photo_takes_its_class_along(tmp_path, model, classes):
    (tmp_path / "broken.png").write_bytes(b"no photo")
    broken = Photos(classes[1].name, (tmp_path / "broken.png", *classes[1].files))
    several = [classes[0], broken, *classes[2:]]
    want_B, (want,) = zeroshot.predictions(model, classes, [zeroshot.TEMPLATES])
    label_B, (rank_B,) = zeroshot.predictions(model, several, [zeroshot.TEMPLATES], 1)
    assert (label_B.tolist(), rank_B.tolist()) == (want_B.tolist(), want.tolist())
    with pytest.raises(InputError, match="broken.png"):
        zeroshot.predictions(model, several, [zeroshot.TEMPLATES])


# People like those removed


def test_nearest_removed_matches_a_plain_loop():
    rng = np.random.default_rng(2)
    photo_IE = unit(rng.standard_normal((12, 6)) + 2).astype(np.float32)
    removed, others = [7, 2, 9], [11, 0, 3, 5]
    mean_E = photo_IE.astype(np.float64).mean(0)
    similarity_J, who_J = nearest_removed(photo_IE, removed, others)
    raw = []
    for j, other in enumerate(others):
        a = photo_IE[other] - mean_E
        cosines = {}
        for gone in removed:
            b = photo_IE[gone] - mean_E
            cosines[gone] = float(a @ b / np.sqrt((a @ a) * (b @ b)))
        who = max(cosines, key=lambda gone: cosines[gone])
        assert who_J[j] == who
        assert similarity_J[j] == pytest.approx(cosines[who], abs=1e-6)
        raw.append(max(photo_IE[other] @ photo_IE[gone] for gone in removed))
    assert np.ptp(similarity_J) > 2 * np.ptp(raw)  # raw cosines are high and alike


@given(st.integers(0, 1000), st.floats(-5, 5))
def test_what_all_photos_share_does_not_count(seed, shift):
    photo_IE = np.random.default_rng(seed).standard_normal((9, 4))
    found = [nearest_removed(x, [0, 4], [1, 3, 8]) for x in (photo_IE, photo_IE + shift)]
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-9)
    assert found[0][1].tolist() == found[1][1].tolist()


@pytest.mark.slow
def test_other_photos_of_those_removed_are_nearest_to_themselves():
    known = Embedder(ModelConfig(str(shipped_model()), dtype="float32"), 72, make_mesh())
    people = [*world.members()[:6], *world.strangers()[:6]]
    first = world.HELD_OUT
    photos = [
        np.stack([world.draw_photo(who, first + 4 * half + i, 48) for i in range(4)])
        for half in (0, 1)
        for who in people[: None if half == 0 else 6]
    ]
    out_BE = known.pixels(np.concatenate(photos))
    photo_IE = unit(out_BE.reshape(len(photos), 4, -1).mean(1))
    similarity_J, who_J = nearest_removed(photo_IE, range(6), range(6, 18))
    assert who_J[6:].tolist() == list(range(6))  # the second halves
    assert similarity_J[6:].min() > similarity_J[:6].max()


def random_people(num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Similarities, and shares of photos named right, those most alike losing more."""
    rng = np.random.default_rng(seed)
    similarity_J = rng.uniform(-0.3, 0.9, num)
    before_J = rng.integers(4, 11, num) / 10
    lost_J = rng.uniform(0, 1, num) < (similarity_J + 0.3) / 1.2
    return similarity_J, before_J, before_J - 0.3 * lost_J


@pytest.mark.parametrize("num, sizes", [(8, [2] * 4), (11, [3, 3, 3, 2]), (7, [7]), (1, [1])])
def test_parts_hold_those_most_alike_first(num, sizes):
    similarity_J, before_J, after_J = random_people(num)
    found = by_similarity(similarity_J, before_J, after_J)
    assert (
        np.bincount(found.part_J).tolist()
        == sizes
        == [point["groups"]["loss"]["num"] for point in found.parts]
    )
    ranked = sorted(range(num), key=lambda j: -similarity_J[j])
    for point, size in zip(found.parts, sizes, strict=True):
        who, ranked = ranked[:size], ranked[size:]
        assert {found.part_J[j] for j in who} == {found.parts.index(point)}
        assert point["at"] == pytest.approx(np.mean([similarity_J[j] for j in who]))
        groups = {name: value["mean"] for name, value in point["groups"].items()}
        before, after = (np.mean([x[j] for j in who]) for x in (before_J, after_J))
        assert groups == pytest.approx({"before": before, "after": after, "loss": before - after})
        for mean in point["groups"].values():
            assert mean["interval"][0] <= mean["mean"] <= mean["interval"][1]


def test_nobody_who_stays_is_in_no_part():
    nobody = np.zeros(0)
    found = by_similarity(nobody, nobody, nobody)
    assert found.parts == [] and found.correlation is None and len(found.part_J) == 0


def test_the_interval_of_a_loss_is_students():
    _, before_J, after_J = random_people(7)
    gain_J = after_J - before_J  # a gain: below 0, where a share could not be
    assert gain_J.max() == 0 > gain_J.min()
    (point,) = by_similarity(np.arange(7.0), after_J, before_J).parts
    want = stats.t.interval(0.95, 6, gain_J.mean(), stats.sem(gain_J))
    assert point["groups"]["loss"]["interval"] == pytest.approx(want) and want[0] < -0.1


@pytest.mark.parametrize("num", [3, 9, 40])
def test_correlation_is_scipys(num):
    similarity_J, before_J, after_J = random_people(num, num + 1)
    found = by_similarity(similarity_J, before_J, after_J).correlation
    loss_J = (before_J - after_J).round(6)
    assert found and len(set(loss_J.tolist())) < num  # with ties
    want, _ = stats.spearmanr(similarity_J, loss_J)
    assert found["mean"] == pytest.approx(want, abs=1e-12) and found["num"] == num


def test_a_correlation_of_nothing_is_none():
    rising, flat = np.arange(9.0), np.full(9, 0.5)
    assert by_similarity(rising, flat, flat - 0.1).correlation is None
    assert by_similarity(flat, rising / 9, flat).correlation is None
    assert by_similarity(rising[:2], rising[:2] / 9, flat[:2]).correlation is None
    # 0.3 - 0.1 and 0.9 - 0.7 differ by rounding.
    before_J, after_J = np.tile([0.3, 0.9], 3), np.tile([0.1, 0.7], 3)
    assert len(set((before_J - after_J).tolist())) == 2
    assert by_similarity(rising[:6], before_J, after_J).correlation is None


@pytest.mark.parametrize("sign", [1, -1])
def test_a_perfect_order_is_not_certain(sign):
    rising = np.arange(6.0)
    found = by_similarity(sign * rising, rising / 6, np.zeros(6)).correlation
    assert found and found["mean"] == pytest.approx(sign)
    low, high = sorted(sign * x for x in found["interval"])
    assert high == pytest.approx(1) and 0 < low < 0.8
    few = by_similarity(sign * rising[:3], rising[:3] / 6, np.zeros(3)).correlation
    assert few and few["interval"] == (-1, 1)


def test_intervals_of_correlations_hold_the_true_one():
    rng, true, hits = np.random.default_rng(5), 0.5, 0
    wanted = 6 / math.pi * math.asin(true / 2)  # Spearman's correlation of a normal distribution
    for x, y in rng.multivariate_normal([0, 0], [[1, true], [true, 1]], (400, 20)).swapaxes(1, 2):
        found = by_similarity(x, 0.5 + y / 20, np.zeros(20), parts=1).correlation
        assert found
        hits += found["interval"][0] <= wanted <= found["interval"][1]
    assert 0.92 < hits / 400 < 0.98


@pytest.mark.parametrize(
    "other, shares",
    [
        ("Tom Hanks", True),  # the same first name
        ("CONAN O’BRIEN", True),  # the same last name, written otherwise
        ("Carlos Estevez", False),
        ("Martin Cruise", False),  # an alias counts
        ("Martin Estévez", True),
        ("Cary Holland Grant", False),  # neither first nor last
        ("Cary Holland", True),  # her first name
        ("Robert Downey Sr.", True),
        ("Sammy Davis Jr", False),
        ("J. Smith", False),
        ("T. Smith", False),  # an initial
        ("Madonna", True),
        ("Tomas Fey", False),
        ("王 力宏", False),
        ("王 伟", True),
    ],
)
def test_sharing_names(other, shares):
    if other == "Martin Cruise":  # shares only what is left out below
        removed = [Identity("Charlie Sheen", ("Carlos Irwin Estevez",))]
        assert sharing_names(removed, [other, "Martin Estevez"]) == ["Martin Estevez"]
        return
    removed = [
        Identity("Tom Selleck"),
        Identity("Kate O'Brien"),
        Identity("Charlie Sheen", ("Emilio Estevez",)) if "Martin" in other else Identity("A Bc"),
        Identity("Holland Taylor"),
        Identity("Robert Downey Jr."),
        Identity("J. Doe"),
        Identity("T. Roe"),
        Identity("Madonna Ciccone"),
        Identity("李 伟"),
    ]
    assert sharing_names(removed, ["Uma Nobody", other]) == [other] * shares


# Labels


def write(tmp_path: Path, text: str) -> Path:
    (tmp_path / "labels.tsv").write_text(text, encoding="utf-8")
    return tmp_path / "labels.tsv"


def test_labels_are_read_by_folded_name(tmp_path):
    text = "Zoë Ray\tfilm  actor\n\n  ADA KING \t Singer\r\nBo Lee\tsinger\n"
    assert read_labels(write(tmp_path, text)) == {
        ("zoe", "ray"): "film actor",
        ("ada", "king"): "Singer",
        ("bo", "lee"): "Singer",  # as it comes first
    }


@pytest.mark.parametrize(
    "line",
    [
        "Bo Lee",  # no tab
        "Bo Lee  actor",
        "Bo Lee\t",  # no label
        "Bo Lee\t \t",
        "\tactor",  # no name
        "--\tactor",
        "Bo Lee\tactor\tsinger",  # two labels
        "Bo Lee\t\tactor",
        "Ada King\tactor",  # named before
        "ÁDA_KING\tsinger",
    ],
)
def test_read_labels_refuses_a_line(tmp_path, line):
    path = write(tmp_path, f"Ada King\tsinger\n{line}\nCy Moe\tactor\n")
    with pytest.raises(InputError) as error:
        read_labels(path)
    assert str(error.value) == (
        f"labels file `{path}`: {line.strip()!r} must be a name not named before, a tab, and a "
        "label."
    )


def test_read_labels_refuses_an_empty_or_missing_file(tmp_path):
    with pytest.raises(InputError, match="is empty; give a name, a tab and a label a line"):
        read_labels(write(tmp_path, " \n\n"))
    with pytest.raises(InputError, match="labels file .* does not exist"):
        read_labels(tmp_path / "missing.tsv")


def test_by_label_groups_those_who_stay():
    labels = {
        ("ada", "king"): "singer",
        ("bo", "lee"): "actor",
        ("cy", "moe"): "singer",
        ("di", "roe"): "judge",
        ("ed", "fox"): "actor",
        ("flo", "may"): "chef",
    }
    removed = [Identity("Unlisted", ("ADA King",)), Identity("Flo May"), Identity("Nobody")]
    others = ["Di Roe", "Cy Moe", "Somebody", "Bo Lee", "Ed Fox"]
    assert by_label(labels, removed, others) == {"singer": ["Cy Moe"]}
    assert by_label(labels, [*removed, Identity("Gus", ("Ed Fox",))], others[:-1]) == {
        "singer": ["Cy Moe"],
        "actor": ["Bo Lee"],
    }
    assert by_label({}, removed, others) == {}
