"""The attack, against a slow loop in NumPy that follows its definition, ties included."""

import csv
import json
import subprocess
import sys
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factories import attacked, logged, write_model_directory
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh
from PIL import Image
from test_collectives import collectives

from jaxdefense.config import AttackConfig, MeshConfig, ModelConfig
from jaxdefense.data.images import ImageProcessor, read_folders
from jaxdefense.data.names import census
from jaxdefense.evals import embed
from jaxdefense.evals.embed import Embedder, check_embeddings
from jaxdefense.idia.attack import attack, infer
from jaxdefense.idia.candidates import candidate_names, read_sexes
from jaxdefense.idia.nearest import Nearest, _compiled
from jaxdefense.idia.prompts import TEMPLATES, fill
from jaxdefense.idia.statistics import wilson
from jaxdefense.idia.votes import NO_ANSWER, majority
from jaxdefense.sharding import AXES, make_mesh
from jaxdefense.words import folded_words

MESHES = {
    "one": lambda: one_device_mesh(),
    "data": lambda: make_mesh(),
    "tensor": lambda: make_mesh(data=1, tensor=-1),
    "all": lambda: make_mesh(data=2, fsdp=2, tensor=2),
}


def one_device_mesh():
    return Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES)


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def slow_majority(votes):
    """The name with strictly the most votes, else none."""
    ranked = Counter(votes).most_common()
    if len(ranked) > 1 and ranked[0][1] == ranked[1][1]:
        return NO_ANSWER
    return ranked[0][0]


def slow_attack(image_PE, owner_P, text_QME, num_people, group_M=None):
    """One person, one template, one photo, one candidate at a time."""
    if group_M is None:
        group_M = [0] * text_QME.shape[1]
    correct, answers, right = [], [], []
    for person in range(num_people):
        given_answers, all_votes = [], []
        for text_ME in text_QME:
            votes = []
            for image_E, owner in zip(image_PE, owner_P, strict=True):
                if owner == person:
                    cosines = [
                        float(np.dot(image_E, text_E)) if group == group_M[person] else -np.inf
                        for text_E, group in zip(text_ME, group_M, strict=True)
                    ]
                    votes.append(cosines.index(max(cosines)))
            given_answers.append(slow_majority(votes))
            all_votes += votes
        correct.append(sum(answer == person for answer in given_answers))
        answers.append(given_answers)
        right.append(sum(vote == person for vote in all_votes) / len(all_votes))
    return np.array(correct), np.array(answers).T, np.array(right)


def run_infer(image, owner, text, num_people, *, block, mesh=None, group=None):
    """The attack on embeddings that come in blocks."""
    num = text.shape[1]
    blocks = (text[:, start : start + block] for start in range(0, num, block))
    group = np.zeros(num, np.int32) if group is None else group
    return infer(image, owner, blocks, group, num_people, block, mesh or make_mesh())


@st.composite
def attacks(draw):
    """Embeddings, blocks and a mesh; cosines are exact and few, so that candidates often tie."""
    num_people, num_templates = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    num = num_people + draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    counts = rng.integers(1, 6, num_people)
    owner = rng.permutation(np.repeat(np.arange(num_people), counts))
    image = rng.integers(-1, 2, (len(owner), 4)).astype(np.float32)
    text = rng.integers(-1, 2, (num_templates, num, 4)).astype(np.float32)
    group = rng.integers(0, draw(st.integers(1, 2)), num)
    return image, owner, text, num_people, draw(st.integers(1, num + 2)), group


def compare_in_pieces(patch, num):
    """Let each device compare this many of its photos at a time."""
    for limit in ("_MOST_COSINES", "_MOST_ON_CPU"):
        patch.setattr(f"jaxdefense.idia.nearest.{limit}", 1)
    patch.setattr("jaxdefense.idia.nearest._LEAST_PIECE", num)


@given(attacks(), st.sampled_from(list(MESHES)), st.sampled_from([1, 2, 3, 99]))
@pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 devices")
def test_infer_matches_slow_loop(case, mesh, piece):
    image, owner, text, num_people, block, group = case
    with pytest.MonkeyPatch.context() as patch:
        compare_in_pieces(patch, piece)
        ours = run_infer(
            image, owner, text, num_people, block=block, mesh=MESHES[mesh](), group=group
        )
    want = slow_attack(image, owner, text, num_people, group)
    np.testing.assert_array_equal(ours[0], want[0])
    np.testing.assert_array_equal(ours[1], want[1])
    np.testing.assert_allclose(ours[2], want[2], rtol=1e-12)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("block,piece", [(1, 99), (4, 1), (7, 2), (13, 3), (20, 99)])
def test_infer_matches_slow_loop_on_unit_vectors(block, piece, mesh, monkeypatch):
    if mesh != "one" and jax.device_count() != 8:
        pytest.skip("needs 8 devices")
    compare_in_pieces(monkeypatch, piece)
    rng = np.random.default_rng(block)
    owner = rng.permutation(np.repeat(np.arange(5), [3, 1, 6, 2, 5]))
    image, text = unit(rng.standard_normal((17, 8))), unit(rng.standard_normal((3, 13, 8)))
    ours = run_infer(image, owner, text, 5, block=block, mesh=MESHES[mesh]())
    want = slow_attack(image, owner, text, 5)
    np.testing.assert_array_equal(ours[1], want[1])
    np.testing.assert_allclose(ours[2], want[2], rtol=1e-12)
    assert 0 < want[2].sum() < 5


@pytest.mark.parametrize("block", [1, 4, 11])
def test_photos_right_counts_candidates_of_one_person_as_one(block):
    rng = np.random.default_rng(block)
    owner = rng.permutation(np.repeat(np.arange(4), [3, 1, 5, 2]))
    image, text = unit(rng.standard_normal((11, 6))), unit(rng.standard_normal((3, 10, 6)))
    group = np.array([0, 0, 1, 1, 0, 0, 1, 1, 0, 1])
    own, same = np.array([0, 2, 4, 6]), np.array([0, 0, 2, 2, 4, 4, 6, 6, 8, 9])
    blocks = (text[:, start : start + block] for start in range(0, 10, block))
    right = infer(image, owner, blocks, group, 4, block, make_mesh(), own, same)[2]
    for person in range(4):
        hits = []
        for image_E in image[owner == person]:
            for text_ME in text:
                cosines = np.where(group == group[own[person]], text_ME @ image_E, -np.inf)
                hits.append(cosines.argmax() in (own[person], own[person] + 1))
        assert right[person] == pytest.approx(np.mean(hits))
    assert 0 < right.sum() < 4


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("block,piece", [(1, 1), (2, 99), (3, 2), (8, 1)])
def test_of_equal_cosines_the_first_candidate_wins(block, piece, mesh, monkeypatch):
    if mesh != "one" and jax.device_count() != 8:
        pytest.skip("needs 8 devices")
    compare_in_pieces(monkeypatch, piece)
    image = np.eye(4, dtype=np.float32)[[0, 1, 2]]
    # Candidates 1, 3 and 6 are the first photo's, 2 and 7 the second's; the third has but -0.
    text = np.eye(4, dtype=np.float32)[[3, 0, 1, 0, 3, 3, 0, 1]][None]
    nearest = Nearest(image, np.zeros(3, np.int32), 1, block, MESHES[mesh]())
    for start in range(0, 8, block):
        part = text[:, start : start + block]
        nearest.add(part, np.zeros(part.shape[1], np.int32))
    assert nearest.answers().tolist() == [[1, 2, 0]]


def test_a_block_filled_up_holds_no_further_candidate():
    # Cosines are negative: a row of zeros would win if it counted.
    image = np.array([[1, 0]], np.float32)
    nearest = Nearest(image, np.zeros(1, np.int32), 1, 8, make_mesh())
    nearest.add(np.array([[[-1, 0], [-0.5, 0]]], np.float32), np.zeros(2, np.int32))
    assert nearest.answers().tolist() == [[1]]


def test_blocks_share_one_compiled_program():
    rng = np.random.default_rng(0)
    text = unit(rng.standard_normal((2, 37, 16)))
    owner = np.repeat(np.arange(3), 4)
    program: Any = _compiled(make_mesh(), 1)[0]
    before = program._cache_size()
    run_infer(unit(rng.standard_normal((12, 16))), owner, text, 3, block=8)
    assert program._cache_size() == before + 1


def test_memory_grows_with_photos_only_as_they_do():
    def compiled(num):
        image, group = np.zeros((num, 4), np.float32), np.zeros(num, np.int32)
        return compiled_update(Nearest(image, group, 2, 4096, one_device_mesh()), 4096)

    assert_memory_is_of_pieces(compiled)


def assert_memory_is_of_pieces(compiled):
    """`compiled(num)` is the program that compares `num` photos with a block of 4,096."""

    def temporary(num):
        analysis: Any = compiled(num).memory_analysis()
        return analysis.temp_size_in_bytes

    num = 2**14
    few, many = temporary(num), temporary(4 * num)
    assert many < 2**28  # cosines of all with a block would take a GiB
    assert many - few < 64 * 3 * num  # bytes a photo


@pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 devices")
@pytest.mark.parametrize("mesh", ["data", "tensor", "all"])
def test_photos_in_pieces_stay_on_their_devices(mesh, monkeypatch):
    compare_in_pieces(monkeypatch, 3)
    image, group = np.zeros((120, 4), np.float32), np.zeros(120, np.int32)
    hlo = compiled_update(Nearest(image, group, 2, 16, MESHES[mesh]()), 16).as_text()
    # What the parts of a block found is joined: the largest cosine and the first index.
    assert collectives(hlo) == ({} if mesh == "data" else {"all-reduce": 2})


def compiled_update(nearest, block):
    """The program that compares the photos with a block of candidates."""
    text = jax.ShapeDtypeStruct(
        (len(nearest._best.index_QP), block, nearest._image_PE.shape[1]),
        jnp.float32,
        sharding=nearest._place_text,
    )
    group = jax.ShapeDtypeStruct((block,), jnp.int32, sharding=nearest._place_group)
    photos = nearest._best, nearest._image_PE, nearest._group_P
    return nearest._update.lower(*photos, text, group, np.int32(0)).compile()


def test_slow_loop_meets_ties():
    # The comparison above says nothing on ties unless there are some.
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(3), 4)
    image, text = unit(rng.standard_normal((12, 8))), unit(rng.standard_normal((9, 5, 8)))
    assert (slow_attack(image, owner, text, 3)[1] == NO_ANSWER).any()


@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=7), min_size=1, max_size=5))
def test_majority_matches_counter(votes):
    longest = max(map(len, votes))
    answer = np.zeros((1, len(votes), longest), np.int32)
    mask = np.zeros((len(votes), longest), bool)
    for i, row in enumerate(votes):
        answer[0, i, : len(row)], mask[i, : len(row)] = row, True
    got = np.asarray(majority(jnp.asarray(answer), jnp.asarray(mask)))[0]
    assert got.tolist() == [slow_majority(row) for row in votes]


def test_majority_ignores_masked_votes_and_counts_ties_as_none():
    answer = jnp.array([[[3, 3, 5, 5], [3, 3, 5, 5], [0, 0, 0, 0]]])
    mask = jnp.array([[True] * 4, [True, True, True, False], [True, False, False, False]])
    assert majority(answer, mask).tolist() == [[NO_ANSWER, 3, 0]]


def test_templates_are_the_papers():
    assert len(TEMPLATES) == len(set(TEMPLATES)) == 21
    assert all(template.count("{0}") == 1 for template in TEMPLATES)
    assert fill(["A", "B"], ("{0}", "x {0}")) == [["A", "B"], ["x A", "x B"]]


def write_faces(path, people=(("Joe_Cool", 3), ("Ada_King", 2), ("Zoe", 1))):
    rng = np.random.default_rng(len(people))
    for name, count in people:
        (path / name).mkdir(parents=True)
        for i in range(count):
            image = Image.fromarray(rng.integers(0, 255, (14, 17, 3), np.uint8))
            image.save(path / name / f"{i}.png")


@pytest.fixture
def inputs(tmp_path):
    write_model_directory(tmp_path / "model", text={"max_position_embeddings": 40})
    write_faces(tmp_path / "faces")
    return tmp_path


def config(inputs, **change):
    values: dict[str, Any] = {"num_candidates": 9, "num_photos": 4, "batch": 8} | change
    where: dict[str, Any] = {"out": str(inputs / "results"), "faces": str(inputs / "faces")}
    return AttackConfig(model=ModelConfig(str(inputs / "model")), **(where | values))


def test_attack_matches_slow_loop_end_to_end(inputs):
    model = Embedder(ModelConfig(str(inputs / "model")), 8)
    people = read_folders(inputs / "faces", "faces")
    names = [person.name for person in people]
    candidates = candidate_names(names, "", 9, 0)
    found = attack(model, people, candidates, num_photos=9, threshold=1, seed=0)
    files = [file for person in people for file in person.files]
    image = np.stack([model.photos([file])[0] for file in files])
    text = np.stack(
        [[model.texts([t.format(n)])[0] for n in candidates.block(0, 9)] for t in TEMPLATES]
    )
    owner = np.repeat(np.arange(3), [len(person.files) for person in people])
    correct, _, right = slow_attack(image, owner, text, 3)
    assert found.correct == correct.tolist()
    np.testing.assert_allclose(found.photos_right, right, rtol=1e-12)
    assert 0 < right.sum() < 3


def test_embedding_many_equals_embedding_one_at_a_time(inputs):
    model = Embedder(ModelConfig(str(inputs / "model")), 8)
    texts = [f"a photo of {'very ' * (i % 9)}nice Joe Cool {i}" for i in range(45)]
    many = model.texts(texts)
    one = np.concatenate([model.texts([text]) for text in texts])
    np.testing.assert_allclose(many, one, atol=1e-5)
    assert np.ptp(many, axis=0).max() > 1e-2
    np.testing.assert_allclose(np.linalg.norm(many, axis=-1), 1, atol=1e-6)
    groups = [[f"a photo of Joe {i}" for i in range(45)], [f"{'x' * i} yes" for i in range(45)]]
    many = model.prompts([*groups, ["the same"] * 45])
    one = np.stack([[model.texts([text])[0] for text in group] for group in groups])
    np.testing.assert_allclose(many[:2], one, atol=1e-5)
    np.testing.assert_allclose(many[2], np.tile(model.texts(["the same"]), (45, 1)), atol=1e-5)
    files = [f for person in read_folders(inputs / "faces", "faces") for f in person.files] * 3
    many = model.photos(files)
    one = np.concatenate([model.photos([file]) for file in files])
    np.testing.assert_allclose(many, one, atol=1e-5)


def test_attack_writes_its_summary(inputs):
    summary = attacked(config(inputs))
    assert json.loads((inputs / "results" / "summary.json").read_text()) == summary
    wanted = {"tpr", "fnr", "num_identities", "threshold", "num_candidates", "per_identity"}
    assert wanted <= set(summary)
    assert summary["num_candidates"] == 9 and summary["num_identities"] == 3
    assert summary["tpr"] + summary["fnr"] == 1
    counts = [*summary["per_identity"].values()]
    assert summary["tpr"] == np.mean([n >= 1 for n in counts])
    assert summary["majority"] == 11
    assert summary["tpr_majority"] == np.mean([n >= 11 for n in counts])
    assert summary["mean_templates"] == np.mean(counts)
    right = summary["per_identity_photos_right"]
    assert right.keys() == summary["per_identity"].keys()
    assert summary["photos_right"] == np.mean([*right.values()])
    rows = rows_of(inputs / "results" / "results.csv")
    assert {row["name"]: float(row["photos_right"]) for row in rows} == right
    assert summary["conditions"]["dtype"] == "float32"


def test_attack_keeps_embeddings_and_small_photos(inputs):
    write_faces(inputs / "strangers", [("Una_Ek", 2)])
    where = {"strangers": str(inputs / "strangers"), "variants": ("grey", "misspelt", "first")}
    found = attacked(config(inputs, num_candidates=40, **where))
    rows = rows_of(inputs / "results" / "results.csv")
    names = [row["name"] for row in rows]
    assert names == ["Ada King", "Joe Cool", "Zoe", "Una Ek"]
    for form, of in found["variants"].items():
        for row in rows[:3]:
            assert row[f"correct_{form}"] == str(of["per_identity"].get(row["name"], ""))
    assert rows[2]["correct_first"] == ""  # a name of one word has none
    model = Embedder(ModelConfig(str(inputs / "model")), 8)
    folders = [inputs / "faces" / name for name in ("Ada_King", "Joe_Cool", "Zoe")]
    folders.append(inputs / "strangers" / "Una_Ek")
    kept = np.load(inputs / "results" / "embeddings.npz")
    assert set(kept) == {"photo_IE", "name_IE"} and kept["name_IE"].dtype == np.float16
    for i, (name, folder) in enumerate(zip(names, folders, strict=True)):
        files = sorted(folder.iterdir())
        photo_E = np.mean([model.photos([file])[0] for file in files], axis=0)
        np.testing.assert_allclose(kept["photo_IE"][i], photo_E, atol=1e-3)
        name_E = model.texts([f"a photo of {name}"])[0]
        np.testing.assert_allclose(kept["name_IE"][i], name_E, atol=1e-3)
        with Image.open(inputs / "results" / "thumbnails" / f"{i:05}.jpg") as small:
            want = ImageProcessor(128, 128).load(files[:1])[0].astype(int)
            assert small.size == (128, 128) and abs(np.asarray(small) - want).mean() < 12


def test_photos_are_kept_of_those_on_whom_it_went_wrong_first(inputs, monkeypatch):
    monkeypatch.setattr("jaxdefense.idia.kept._MOST", 2)
    first = attacked(config(inputs))
    path = inputs / "results" / "summary.json"
    threes = dict.fromkeys(first["per_identity"], 3)
    halves = dict.fromkeys(threes, 0.5)
    # Say before: all were known. Say now: Joe and Zoe are, and Joe's photos as well as before.
    said = {"per_identity": threes, "per_identity_photos_right": halves}
    path.write_text(json.dumps(first | said))
    (inputs / "names.txt").write_text("Zoe\nAda King\n")
    change = dict(before=str(inputs / "results"), names=str(inputs / "names.txt"))

    def known(image_PE, owner_P, blocks, *args):
        assert list(blocks)
        return np.array([0, 1, 1]), np.full((21, 3), NO_ANSWER), np.array([0, 0.4, 0.5])

    monkeypatch.setattr("jaxdefense.idia.attack.infer", known)
    found = attacked(config(inputs, out=str(inputs / "after"), **change))
    assert found["removed"] == ["Ada King", "Zoe"]
    kept = sorted(file.name for file in (inputs / "after" / "thumbnails").iterdir())
    assert kept == ["00000.jpg", "00002.jpg"]  # Zoe, who failed, and Ada, who is on the list
    rows = rows_of(inputs / "after" / "results.csv")
    assert [row["removed"] for row in rows] == ["1", "0", "1"]


def rows_of(file):
    return list(csv.DictReader(file.read_text().splitlines()))


def test_attack_in_blocks_on_a_mesh_finds_the_same(inputs):
    want = attacked(config(inputs))
    change = {"candidate_block": 4, "cache_dir": "none"}
    if jax.device_count() == 8:
        change["mesh"] = MeshConfig(data=2, fsdp=4)
    got = attacked(config(inputs, out=str(inputs / "blocks"), **change))
    assert got == want


def test_attack_of_strangers_gives_false_positives_and_a_line_for_everyone(inputs):
    write_faces(inputs / "strangers", [("Una_Ek", 2), ("Ivo", 1)])
    found = attacked(config(inputs, strangers=str(inputs / "strangers"), num_candidates=6))
    assert found["num_identities"] == 3 and found["num_strangers"] == 2
    assert set(found["strangers"]) == {"Ivo", "Una Ek"}
    assert set(found["per_identity"]) == {"Joe Cool", "Ada King", "Zoe"} == set(found["answers"])
    assert found["fpr"] == sum(n >= 1 for n in found["strangers"].values()) / 2
    assert found["photos_per_identity"] == {"min": 1, "max": 3}
    rows = rows_of(inputs / "results" / "results.csv")
    assert [row["name"] for row in rows] == ["Ada King", "Joe Cool", "Zoe", "Ivo", "Una Ek"]
    both = found["per_identity"] | found["strangers"]
    for row in rows:
        assert int(row["correct"]) == both[row["name"]]
        assert row["known"] == str(int(both[row["name"]] >= 1))
        assert row["stranger"] == str(int(row["name"] in found["strangers"]))
        assert row["answer"] == found["answers"].get(row["name"], row["answer"])
        assert "outcome" not in row
    # They are attacked as the others are: the model tells no difference.
    (inputs / "strangers" / "Ivo").rename(inputs / "faces" / "Ivo")
    (inputs / "strangers" / "Una_Ek").rename(inputs / "faces" / "Una_Ek")
    together = attacked(config(inputs, out=str(inputs / "b"), num_candidates=6))
    assert set(together["per_identity"]) == set(both)


def test_outcomes_compare_with_an_earlier_attack(inputs):
    first = attacked(config(inputs))
    (inputs / "names.txt").write_text("Joseph Cool\tJoe Cool\nZoe\n")
    path = inputs / "results" / "summary.json"
    # Say before: Joe and Ada were known, Zoe was not.
    said: dict[str, Any] = {"per_identity": {"Joe Cool": 3, "Ada King": 1, "Zoe": 0}}
    said["per_identity_photos_right"] = {"Joe Cool": 0.5, "Ada King": 0.25, "Zoe": 0.0}
    path.write_text(json.dumps(first | said))
    change = dict(
        before=str(inputs / "results"), names=str(inputs / "names.txt"), out=str(inputs / "after")
    )
    found = attacked(config(inputs, **change))
    known = {name: n >= 1 for name, n in found["per_identity"].items()}
    right = found["per_identity_photos_right"]
    kept = "kept" if right["Ada King"] >= 0.75 * 0.25 else "weakened"
    want = {
        "Joe Cool": "failed" if known["Joe Cool"] else "correctly unlearned",
        "Zoe": "failed" if known["Zoe"] else "never recalled",
        "Ada King": kept if known["Ada King"] else "wrongfully unlearned",
    }
    assert found["groups"]["removed"]["before"]["photos_right"] == 0.25
    assert found["groups"]["removed"]["after"]["photos_right"] == np.mean(
        [right["Joe Cool"], right["Zoe"]]
    )
    for group, name in (("removed", "Joe Cool"), ("others", "Ada King")):  # Zoe was not known
        still = int(known[name])
        assert found["groups"][group]["known_before"] == {
            "num": 1, "recognised": still, "tpr": still, "tpr_interval": list(wilson(still, 1))
        }  # fmt: skip
    assert found["groups"]["others"]["num"] == 1
    assert found["groups"]["others"]["before"]["mean_templates"] == 1
    rows = rows_of(inputs / "after" / "results.csv")
    assert {row["name"]: row["outcome"] for row in rows} == want
    assert {k: v for k, v in found["outcomes"].items() if v} == Counter(want.values())


def test_templates_come_from_a_file(inputs):
    (inputs / "templates.txt").write_text("{0} in a hat\nsee {}\n")
    found = attacked(config(inputs, templates=str(inputs / "templates.txt")))
    assert found["num_templates"] == 2 and len(found["curve"]["tpr"]) == 2
    model = Embedder(ModelConfig(str(inputs / "model")), 8)
    people = read_folders(inputs / "faces", "faces")
    names = candidate_names([person.name for person in people], "", 9, 0)
    templates = ("{0} in a hat", "see {0}")
    direct = attack(model, people, names, num_photos=4, threshold=1, seed=0, templates=templates)
    assert found["per_identity"] == dict(zip(direct.names, direct.correct, strict=True))


@pytest.mark.parametrize(
    "text,message",
    [
        ("a photo\n", "'a photo' must hold .0. once"),
        ("{0} and {0}\n", "must hold .0. once"),
        ("{1}\n", "must hold .0. once"),
        ("{0} x\n{}  x\n", "is there twice"),
        ("\n", "is empty"),
        ("{0} x\n", "`threshold` \\(=2\\) must be at most"),
    ],
)
def test_templates_that_are_wrong(inputs, text, message):
    (inputs / "templates.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        attacked(config(inputs, templates=str(inputs / "templates.txt"), threshold=2))
    assert not (inputs / "results").exists()


def test_few_photos_and_missing_names_are_said(inputs):
    (inputs / "candidates.txt").write_text("Joe Cool\nAda King\nBo Ek\nEve Stay\n")
    change = {"num_photos": 2, "candidates": str(inputs / "candidates.txt")}
    with logged() as said:
        found = attacked(config(inputs, **change))
    text = said.getvalue()
    assert "`num_photos` (=2) of `Zoe: 1`; attacked with" in text
    assert "lacks `Zoe`: added" in text and found["num_candidates"] == 5


def test_votes_that_tie_in_every_template_are_no_answer(inputs, monkeypatch):
    def tied(answer_QP, owner_P, num_people):
        answer_QI = np.tile(np.arange(num_people), (21, 1))
        answer_QI[:, 1] = NO_ANSWER
        answer_QI[:5, 2] = NO_ANSWER
        return answer_QI

    monkeypatch.setattr("jaxdefense.idia.attack.vote", tied)
    found = attacked(config(inputs))
    assert found["no_answer"] == 1
    assert found["per_identity"] == {"Ada King": 21, "Joe Cool": 0, "Zoe": 16}
    assert found["answers"] == {"Ada King": "Ada King", "Joe Cool": "", "Zoe": "Zoe"}
    rows = rows_of(inputs / "results" / "results.csv")
    assert [row["unanswered"] for row in rows] == ["0", "21", "5"]


@pytest.mark.parametrize("value", [np.nan, 0.25])
@pytest.mark.parametrize("tower", ["_embed_text", "_embed_image"])
def test_a_broken_model_gets_no_result(inputs, monkeypatch, tower, value):
    run = getattr(embed, tower)

    def broken(*args):
        return jax.tree.map(lambda x: x if x.dtype == bool else jnp.full_like(x, value), run(*args))

    monkeypatch.setattr(embed, tower, broken)
    with pytest.raises(ValueError, match="broken"):
        attacked(config(inputs))
    assert not (inputs / "results").exists()


def test_a_template_in_which_all_names_are_one_is_refused(inputs):
    (inputs / "templates.txt").write_text("see {0}\n" + "word " * 60 + "{0}\n")
    with pytest.raises(ValueError, match="embeds all names in .* alike"):
        attacked(config(inputs, templates=str(inputs / "templates.txt")))


@pytest.mark.parametrize(
    "change,message",
    [
        ({"num_candidates": 3}, "must be above the number of people"),
        ({"threshold": 22}, "must be at most the number of templates"),
        ({"candidate_block": 0}, "`candidate_block` .* above 0"),
        ({"strangers": "faces"}, "two folders"),
    ],
)
def test_attack_refuses_settings_that_mean_nothing(inputs, monkeypatch, change, message):
    monkeypatch.chdir(inputs)
    with pytest.raises(ValueError, match=message):
        attacked(config(inputs, **change))


_MEMORY = """
import resource, sys
import numpy as np
from jaxdefense.idia.attack import infer
from jaxdefense.sharding import make_mesh
num, block, rng = int(sys.argv[1]), 4096, np.random.default_rng(0)
owner = np.repeat(np.arange(20), 10)
def blocks():
    for start in range(0, num, block):
        yield rng.standard_normal((21, min(block, num - start), 64), np.float32)
image = rng.standard_normal((200, 64), np.float32)
infer(image, owner, blocks(), np.zeros(num, np.int8), 20, block, make_mesh())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_candidates():
    peaks = [
        int(subprocess.check_output([sys.executable, "-c", _MEMORY, str(num)]))
        for num in (20_000, 200_000)
    ]
    assert peaks[1] < 1.1 * peaks[0]


# Candidates


def all_of(candidates):
    return candidates.block(0, len(candidates))


def test_candidates_come_from_a_file(tmp_path):
    file = tmp_path / "candidates.txt"
    file.write_text("Bob Keep\njoe cool\nEve Stay\n")
    got = candidate_names(["Joe Cool", "Zoe"], str(file), 5, 0)
    assert all_of(got) == ["Joe Cool", "Zoe", "Bob Keep", "Eve Stay"]
    assert got.added == ["Zoe"]
    assert got.block(1, 2) == ["Zoe", "Bob Keep"] and got.block(3, 2) == ["Eve Stay"]


@pytest.mark.parametrize(
    "text,message",
    [
        ("Bob Keep\nbob  keep\n", "'bob  keep' is there twice"),
        ("Joe Cool\n", "no name besides"),
        ("Bob Keep\n--\n", "no letter"),
        ("\n \n", "is empty"),
    ],
)
def test_candidates_of_a_wrong_file(tmp_path, text, message):
    (tmp_path / "candidates.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        candidate_names(["Joe Cool"], str(tmp_path / "candidates.txt"), 5, 0)


def test_random_candidates_are_no_ones_own():
    people = ["Joe Cool", "Zoe"]
    first = candidate_names(people, "", 60, 0).block(2, 9)
    again = all_of(candidate_names([*people, first[4].upper()], "", 60, 0))
    assert len({folded_words(name) for name in again}) == 60
    with pytest.raises(ValueError, match="two folders"):
        candidate_names(["Joe Cool", "joe cool"], "", 5, 0)


def test_sexes_put_people_in_groups(tmp_path):
    (tmp_path / "sexes.txt").write_text("Joe Cool\tm\nZoe\tf\nBob Keep\tm\nEve Stay\tf\n")
    sexes = read_sexes(str(tmp_path / "sexes.txt"))
    got = candidate_names(["Joe Cool", "Zoe"], "", 300, 0, sexes)
    female = set(census("female"))
    for name, group in list(zip(all_of(got), got.group_M, strict=True))[2:]:
        assert group == (name.split()[0] not in female)
    assert got.group_M[:2].tolist() == [1, 0] and abs(got.group_M.mean() - 0.5) < 0.01
    (tmp_path / "candidates.txt").write_text("Bob Keep\nEve Stay\n")
    got = candidate_names(["Joe Cool", "Zoe"], str(tmp_path / "candidates.txt"), 5, 0, sexes)
    assert got.group_M.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    "text,message",
    [
        ("Zoe\tf\n", "no line for `Joe Cool`"),
        ("Zoe\tf\nJoe Cool\tx\n", "f or m"),
        ("Zoe\tf\nJoe Cool\tm\nzoe\tm\n", "named before"),
        ("Zoe f\n", "a tab"),
    ],
)
def test_sexes_that_are_wrong(tmp_path, text, message):
    (tmp_path / "sexes.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        candidate_names(["Joe Cool", "Zoe"], "", 9, 0, read_sexes(str(tmp_path / "sexes.txt")))


def test_a_sex_with_none_but_the_people_is_refused(tmp_path):
    (tmp_path / "candidates.txt").write_text("Eve Stay\n")
    sexes = {("joe", "cool"): "m", ("zoe",): "f", ("eve", "stay"): "f"}
    with pytest.raises(ValueError, match="sex of 'Joe Cool'"):
        candidate_names(["Joe Cool", "Zoe"], str(tmp_path / "candidates.txt"), 5, 0, sexes)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.25])
def test_embeddings_without_meaning_are_refused(value):
    with pytest.raises(ValueError, match="broken"):
        check_embeddings(np.full((4, 8), value, np.float32), "photos")
    check_embeddings(np.eye(4, 8, dtype=np.float32), "photos")
