"""What a model knows of faces without names, against slow loops, by properties, at equal sizes."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp

from jaxdefense.config import ModelConfig
from jaxdefense.demo import world
from jaxdefense.demo.run import shipped_model
from jaxdefense.errors import InputError
from jaxdefense.evals.embed import Embedder, unit
from jaxdefense.idia.attack import Evidence
from jaxdefense.proof import gallery
from jaxdefense.proof.gallery import MOST_PEOPLE, MOST_PHOTOS, chance, compare, prototypes
from jaxdefense.proof.gallery import retrieval as search
from jaxdefense.proof.probe import linear_probe
from jaxdefense.sharding import make_mesh

FIGURES = ["rank1", "map", "one_shot", "five_shot", "probe"]


def evidence(owner_P, image_PE):
    """Photos of people with names of their own."""
    names = [f"person {i}" for i in range(max(owner_P) + 1)]
    return Evidence(names, unit(image_PE).astype(np.float32), np.array(owner_P), [])


def people(nums, noise, seed=0, embed=12):
    """People with so many photos each: a direction of each person's own, and noise."""
    rng = np.random.default_rng(seed)
    owner_P = np.repeat(np.arange(len(nums)), nums)
    own_IE = rng.standard_normal((len(nums), embed))
    own_IE *= noise < np.inf
    image_PE = own_IE[owner_P] + min(noise, 1e3) * rng.standard_normal((len(owner_P), embed))
    shuffled = rng.permutation(len(owner_P))
    return evidence(owner_P[shuffled], image_PE[shuffled])


def cosine(a, b):
    return np.float32(sum(float(x) * float(y) for x, y in zip(a, b, strict=True)))


def slow_retrieval(image_PE, owner_P):
    """One query at a time; the ranks of all photos in one list, other people first of equals."""
    first, precision = {}, {}
    for query, owner in enumerate(owner_P):
        others = [p for p in range(len(owner_P)) if p != query]
        ranked = sorted(
            others, key=lambda p: (-cosine(image_PE[query], image_PE[p]), owner_P[p] == owner)
        )
        found, precisions = 0, []
        for place, p in enumerate(ranked, 1):
            if owner_P[p] == owner:
                found += 1
                precisions.append(found / place)
        first.setdefault(owner, []).append(owner_P[ranked[0]] == owner)
        precision.setdefault(owner, []).append(np.mean(precisions))
    return tuple(np.array([np.mean(of[i]) for i in sorted(of)]) for of in (first, precision))


def slow_prototypes(image_PE, owner_P, shots, key_P):
    """The photos with the least keys make a person's prototype; the others are compared."""
    means, rest = [], []
    for person in range(max(owner_P) + 1):
        own = sorted((p for p in range(len(owner_P)) if owner_P[p] == person), key=key_P.item)
        mean_E = sum(image_PE[p].astype(float) for p in own[:shots]) / shots
        means.append(mean_E / np.linalg.norm(mean_E))
        rest.append(own[shots:])
    out = []
    for person, own in enumerate(rest):
        right = 0
        for p in own:
            near = [cosine(image_PE[p], mean_E) for mean_E in means]
            right += near[person] > max(near[:person] + near[person + 1 :])
        out.append(right / len(own))
    return np.array(out)


def in_few_directions(nums):
    """Photos of which many are equal, so that cosines tie."""
    rng = np.random.default_rng(3)
    owner_P = rng.permutation(np.repeat(np.arange(len(nums)), nums))
    direction_ME = rng.standard_normal((5, 6))
    which_P = np.where(rng.random(len(owner_P)) < 0.5, owner_P % 5, rng.integers(0, 5, sum(nums)))
    return evidence(owner_P, direction_ME[which_P])


@pytest.mark.parametrize(
    "given", [people([2, 5, 3, 9], 1.0), people([7, 2], 3.0), in_few_directions([4, 2, 7, 3])]
)
def test_retrieval_matches_slow_loop(given, monkeypatch):
    monkeypatch.setattr(gallery, "_BLOCK", 4)  # several blocks, the last not full
    values = search(given.image_PE, given.owner_P)
    expected = slow_retrieval(given.image_PE, given.owner_P)
    for value_I, expected_I in zip(values, expected, strict=True):
        assert value_I.dtype == np.float64 and 0 < expected_I.mean() < 1
        np.testing.assert_allclose(value_I, expected_I, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shots", [1, 3])
@pytest.mark.parametrize("given", [people([4, 9, 5], 3.0), in_few_directions([4, 5, 7, 4])])
def test_prototypes_match_slow_loop(given, shots):
    rng = np.random.default_rng(7)
    value_I = prototypes(given.image_PE, given.owner_P, shots, rng)
    key_P = np.random.default_rng(7).random(len(given.owner_P))
    expected_I = slow_prototypes(given.image_PE, given.owner_P, shots, key_P)
    assert 0 < expected_I.mean() < 1
    np.testing.assert_allclose(value_I, expected_I, rtol=0, atol=1e-12)


def test_equal_photos_of_a_person_are_all_found():
    figures, sizes = compare({"a": people([6, 8, 7], 0.0)}, draws=2, seed=0)
    assert list(figures) == FIGURES and sizes[:2] == (3, 6)
    for value in figures.values():
        assert value["a"].tolist() == [1, 1, 1]


def test_a_model_that_embeds_everybody_alike_finds_nobody():
    alike = evidence(np.repeat(np.arange(3), 6), np.ones((18, 7)))
    figures, _ = compare({"a": alike}, draws=2, seed=0)
    assert {name: value["a"].max() for name, value in figures.items() if name != "map"} == {
        name: 0 for name in FIGURES if name != "map"
    }
    # All 12 photos of others come first, then the 5 of the person.
    expected = np.mean([n / (12 + n) for n in range(1, 6)])
    np.testing.assert_allclose(figures["map"]["a"], expected)


def test_order_of_photos_and_people_makes_no_difference():
    given = people([3, 5, 4, 6], 1.0)
    rng = np.random.default_rng(1)
    photo_P, person_I = rng.permutation(len(given.owner_P)), rng.permutation(4)
    image_PE, owner_P = given.image_PE[photo_P], person_I[given.owner_P[photo_P]]
    before, after = search(given.image_PE, given.owner_P), search(image_PE, owner_P)
    for one_I, other_I in zip(before, after, strict=True):
        np.testing.assert_allclose(other_I[person_I], one_I, rtol=0, atol=1e-12)
    test_QE = rng.standard_normal((5, 12))
    one_QI = linear_probe(given.image_PE, given.owner_P, test_QE, 4)
    other_QI = linear_probe(image_PE, owner_P, test_QE, 4)
    np.testing.assert_allclose(other_QI[:, person_I], one_QI, rtol=0, atol=0.02)


def test_chance_is_what_random_rankings_give():
    rng, photos, others = np.random.default_rng(0), 4, 19
    first, precision = [], []
    for _ in range(4000):
        right = np.sort(rng.permutation(others)[: photos - 1]) + 1
        first.append(right[0] == 1)
        precision.append(np.mean(np.arange(1, photos) / right))
    expected = chance(5, photos)
    assert list(expected) == ["rank1", "map", "one_shot", "probe"]
    assert expected["one_shot"] == expected["probe"] == 1 / 5
    assert abs(expected["rank1"] - np.mean(first)) < 0.02
    assert abs(expected["map"] - np.mean(precision)) < 0.01


def test_large_group_cut_to_a_small_one_has_its_chance_level():
    large, small = people([9] * 30, np.inf), people([8] * 5, np.inf, seed=1)
    figures, sizes = compare({"large": large, "small": small}, draws=60, seed=0)
    assert sizes[:2] == (5, 8)
    for name, expected in chance(5, 8).items():
        value_I = figures[name]["large"]
        error = value_I.std() / np.sqrt(len(value_I))
        assert error < 0.03 and abs(value_I.mean() - expected) < 3 * error, name
    # Without cutting, the large group would seem to be known less.
    uncut_I, _ = search(large.image_PE, large.owner_P)
    assert uncut_I.mean() < 0.06 < chance(5, 8)["rank1"] - 0.1


def test_people_of_a_large_group_are_easier_to_tell_apart_once_it_is_cut():
    large, small = people([12] * 40, 1.2), people([6] * 6, 1.2, seed=1)
    whole, _ = compare({"large": large}, draws=2, seed=0)
    cut, _ = compare({"large": large, "small": small}, draws=15, seed=0)
    assert cut["one_shot"]["large"].mean() > whole["one_shot"]["large"].mean() + 0.1


def test_probe_trains_on_one_half_and_is_put_to_the_other():
    given = people([7] * 3, 0.1)
    image_IJE = given.image_PE[np.argsort(given.owner_P, kind="stable")].reshape(3, 7, -1)
    assert gallery._probe(image_IJE).tolist() == [1, 1, 1]
    image_IJE[[0, 1], 3:] = image_IJE[[1, 0], 3:]
    assert gallery._probe(image_IJE).tolist() == [0, 0, 1]
    image_IJE[2, 3:5] = image_IJE[0, :2]
    assert gallery._probe(image_IJE).tolist() == [0, 0, 0.5]


def test_draws_depend_on_seed_and_sizes_alone():
    a, b, c = people([7] * 9, 1.0), people([6] * 4, 1.0, seed=1), people([6] * 4, 2.0, seed=2)
    one, sizes = compare({"a": a, "b": b}, draws=3, seed=5)
    other, _ = compare({"c": c, "a": a}, draws=3, seed=5)
    third, _ = compare({"a": a, "b": b}, draws=3, seed=6)
    assert sizes[:2] == (4, 6)
    for name in FIGURES:
        assert one[name]["a"].tolist() == other[name]["a"].tolist()
    assert one["map"]["a"].tolist() != third["map"]["a"].tolist()
    # A person's value is the mean over their draws, so more draws go on from the first.
    first, few = compare({"a": a, "b": b}, draws=1, seed=5)
    assert len(few.names["a"]) == 4 and set(few.names["a"]) <= set(sizes.names["a"])
    assert len(first["map"]["a"]) == 4 and len(one["map"]["a"]) == len(sizes.names["a"])


def test_two_models_are_given_the_same_photos():
    rng = np.random.default_rng(0)
    a = people([7] * 9, 1.0)
    turned = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    turned = Evidence(a.names, (a.image_PE @ turned).astype(np.float32), a.owner_P, [])
    (one, names), (other, same) = (
        compare({"x": x, "b": people([6] * 4, 1.0)}, draws=3, seed=0) for x in (a, turned)
    )
    assert names == same
    for name in FIGURES:  # a rotation leaves all cosines as they are
        np.testing.assert_allclose(one[name]["x"], other[name]["x"], rtol=0, atol=1e-6)


def test_search_in_a_whole_group_is_done_once(monkeypatch):
    calls = []

    def counted(image_PE, owner_P):
        calls.append(len(owner_P))
        return search(image_PE, owner_P)

    monkeypatch.setattr(gallery, "retrieval", counted)
    compare({"whole": people([4] * 3, 1.0)}, draws=5, seed=0)
    assert calls == [12]
    compare({"more": people([4] * 4, 1.0), "whole": people([4] * 3, 1.0)}, draws=5, seed=0)
    assert calls == [12] * 7


@pytest.mark.parametrize(
    ("nums", "expected"),
    [
        ([[20] * 16], (16, 20)),
        ([[20] * 15 + [2]], (15, 20)),  # one person does not drag everybody down,
        ([[20] * 15 + [19]], (16, 19)),  # but is not left out for one photo more
        ([[20] * 10 + [5] * 6], (16, 5)),  # nor are many people
        ([[9, 9, 2]], (2, 9)),
        ([[9, 2]], (2, 2)),  # two people stay
        ([[9, 9, 1]], (2, 9)),
        ([[20] * 8, [6] * 50], (8, 6)),
        ([[500] * 300], (MOST_PEOPLE, MOST_PHOTOS)),
        ([], (0, 0)),
    ],
)
def test_sizes_have_the_most_photos_without_leaving_out_many(nums, expected):
    assert gallery._sizes([np.array(num_I) for num_I in nums]) == expected


def test_who_is_left_out_is_said():
    groups = {
        "few": people([5, 5, 1, 3, 5], 1.0),
        "many": people([3] + [6] * 10, 1.0),
        "single": people([1, 1, 9], 1.0),
    }
    figures, sizes = compare(groups, draws=1, seed=0)
    assert sizes == (
        3,
        5,
        {"few": ["person 0", "person 1", "person 4"], "many": sizes.names["many"]},
        {
            "few": ["person 2", "person 3"],
            "many": ["person 0"],
            "single": ["person 0", "person 1", "person 2"],
        },
        ["single"],
    )
    assert list(figures) == ["rank1", "map", "one_shot", "probe"]  # 5 photos are too few for more
    assert all(list(value) == ["few", "many"] for value in figures.values())
    for value in figures.values():
        assert [len(value[group]) for group in sizes.names] == [3, 3]


def test_nobody_to_compare():
    assert compare({"a": people([1, 9], 1.0)}, draws=1, seed=0) == (
        {},
        (0, 0, {}, {"a": ["person 0", "person 1"]}, ["a"]),
    )
    with pytest.raises(InputError, match=r"`draws` \(=0\)"):
        compare({}, draws=0, seed=0)


def reference_probe(train_PE, label_P, test_QE, num_classes, weight_decay):
    """L-BFGS in float64 on the objective as it is written."""
    mean_E = train_PE.mean(0)
    size = np.sqrt(((train_PE - mean_E) ** 2).mean())
    x_PE, x_QE = (train_PE - mean_E) / size, (test_QE - mean_E) / size
    right_PC = np.eye(num_classes)[label_P]

    def objective(flat):
        w_EC, b_C = np.split(flat.reshape(-1, num_classes), [-1])
        logits_PC = x_PE @ w_EC + b_C
        log_PC = logits_PC - logsumexp(logits_PC, axis=-1, keepdims=True)
        error_PC = np.exp(log_PC) - right_PC
        value = -(right_PC * log_PC).sum() + weight_decay / 2 * (w_EC**2).sum()
        slope = np.concatenate([x_PE.T @ error_PC + weight_decay * w_EC, error_PC.sum(0)[None]])
        return value, slope.ravel()

    start = np.zeros((x_PE.shape[1] + 1) * num_classes)
    options = {"gtol": 1e-8, "ftol": 0, "maxiter": 10_000, "maxfun": 20_000}
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    w_EC, b_C = np.split(found.x.reshape(-1, num_classes), [-1])
    return x_QE @ w_EC + b_C


@pytest.mark.parametrize(
    ("num", "embed", "weight_decay"), [(40, 6, 3.0), (40, 6, 0.1), (14, 24, 3.0), (14, 24, 0.3)]
)
def test_linear_probe_matches_lbfgs_in_float64(num, embed, weight_decay):
    rng = np.random.default_rng(0)
    label_P = np.concatenate([[0, 1, 2, 3], rng.integers(0, 4, num - 4)])
    class_CE = rng.standard_normal((4, embed))
    # Of a narrow cone, as the embeddings of CLIP are, and one twice.
    x_PE = unit(3 + class_CE[label_P] + rng.standard_normal((num, embed)))
    x_PE[5], label_P[5] = x_PE[4], label_P[4]
    test_QE = unit(3 + rng.standard_normal((9, embed)))
    logits_QC = linear_probe(x_PE, label_P, test_QE, 4, weight_decay=weight_decay)
    expected_QC = reference_probe(x_PE, label_P, test_QE, 4, weight_decay)
    assert logits_QC.dtype == np.float32 and np.abs(expected_QC).max() > 1
    np.testing.assert_allclose(logits_QC, expected_QC, rtol=0, atol=0.02)
    again_QC = linear_probe(x_PE, label_P, test_QE, 4, weight_decay=weight_decay)
    assert logits_QC.tolist() == again_QC.tolist()


def test_linear_probe_is_not_misled_by_a_narrow_cone():
    given = people([8] * 4, 1.0)
    test_QE = given.image_PE[::3] + 0.1
    wide_QI = linear_probe(given.image_PE, given.owner_P, test_QE, 4)
    narrow_QI = linear_probe(5 + given.image_PE / 50, given.owner_P, 5 + test_QE / 50, 4)
    np.testing.assert_allclose(narrow_QI, wide_QI, rtol=0, atol=0.05)


def test_linear_probe_says_if_it_does_not_converge(monkeypatch, caplog):
    from jaxdefense.proof import probe

    given = people([5] * 3, 1.0)
    monkeypatch.setattr(probe, "_MOST_STEPS", 2)
    linear_probe(given.image_PE[:11], given.owner_P[:11], given.image_PE, 3)  # a shape of its own
    assert "has not converged after 2 steps" in caplog.text


def test_demo_model_knows_the_faces_of_members():
    members, size = world.members()[:5], 48
    image_BHWC = np.stack([world.draw_photo(m, j, size) for m in members for j in range(6)])
    model = Embedder(ModelConfig(str(shipped_model()), dtype="float32"), 64, mesh=make_mesh())
    owner_P = np.repeat(np.arange(5), 6)
    image_PE = model.pixels(image_BHWC)
    mixed_P = np.random.default_rng(0).permutation(owner_P)
    groups = {"members": evidence(owner_P, image_PE), "mixed": evidence(mixed_P, image_PE)}
    figures, _ = compare(groups, draws=5, seed=0)
    for name, expected in chance(5, 6).items():
        assert figures[name]["members"].mean() > 0.9
        assert figures[name]["mixed"].mean() < expected + 0.15, name
