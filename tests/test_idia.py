"""The attack, against a slow loop in NumPy that follows its definition, ties included."""

import json
from collections import Counter
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from factories import write_model_directory
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from jaxdefense.config import AttackConfig, ModelConfig
from jaxdefense.data.images import read_folders
from jaxdefense.evals.embed import Embedder, check_embeddings
from jaxdefense.idia.attack import attack, candidate_names, infer
from jaxdefense.idia.prompts import TEMPLATES, fill
from jaxdefense.idia.run import run_attack
from jaxdefense.idia.votes import NO_ANSWER, majority, nearest


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def slow_majority(votes):
    """The name with strictly the most votes, else none."""
    ranked = Counter(votes).most_common()
    if len(ranked) > 1 and ranked[0][1] == ranked[1][1]:
        return NO_ANSWER
    return ranked[0][0]


def slow_attack(image_PE, owner_P, text_QME, num_people):
    """One person, one template, one photo, one candidate at a time."""
    correct, answers = [], []
    for person in range(num_people):
        given_answers = []
        for text_ME in text_QME:
            votes = []
            for image_E, owner in zip(image_PE, owner_P, strict=True):
                if owner == person:
                    cosines = [float(np.dot(image_E, text_E)) for text_E in text_ME]
                    votes.append(cosines.index(max(cosines)))
            given_answers.append(slow_majority(votes))
        correct.append(sum(answer == person for answer in given_answers))
        answers.append(given_answers)
    return np.array(correct), np.array(answers).T


@pytest.mark.parametrize("num_people,num_photos,num_templates", [(3, 5, 4), (7, 1, 2), (1, 6, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_infer_matches_slow_loop(num_people, num_photos, num_templates, seed):
    rng = np.random.default_rng(seed)
    # People of unequal numbers of photos, in any order; few candidates, so that ties abound.
    counts = rng.integers(1, num_photos + 1, num_people)
    owner = rng.permutation(np.repeat(np.arange(num_people), counts))
    image = unit(rng.standard_normal((len(owner), 8)))
    text = unit(rng.standard_normal((num_templates, num_people + 2, 8)))
    ours = infer(image, owner, text, num_people)
    want = slow_attack(image, owner, text, num_people)
    np.testing.assert_array_equal(ours[0], want[0])
    np.testing.assert_array_equal(ours[1], want[1])


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


def test_nearest_takes_the_first_of_equal_cosines():
    image, text = jnp.eye(3)[:1], jnp.eye(3)[jnp.array([1, 0, 0])]
    assert nearest(image, text[None]).tolist() == [[1]]


def test_templates_are_the_papers():
    assert len(TEMPLATES) == len(set(TEMPLATES)) == 21
    assert all(template.count("{0}") == 1 for template in TEMPLATES)
    assert fill(["A", "B"], ("{0}", "x {0}")) == ["A", "B", "x A", "x B"]


@pytest.fixture
def inputs(tmp_path):
    write_model_directory(tmp_path / "model", text={"max_position_embeddings": 40})
    rng = np.random.default_rng(0)
    for name, count in (("Joe_Cool", 3), ("Ada_King", 2), ("Zoe", 1)):
        folder = tmp_path / "faces" / name
        folder.mkdir(parents=True)
        for i in range(count):
            image = Image.fromarray(rng.integers(0, 255, (14, 17, 3), np.uint8))
            image.save(folder / f"{i}.png")
    return tmp_path


def config(inputs, **change):
    values: dict[str, Any] = {"num_candidates": 9, "num_photos": 4, "batch": 8} | change
    return AttackConfig(
        str(inputs / "results"), ModelConfig(str(inputs / "model")), str(inputs / "faces"), **values
    )


def test_attack_matches_slow_loop_end_to_end(inputs):
    model = Embedder(ModelConfig(str(inputs / "model")), 8, Console(quiet=True))
    people = read_folders(inputs / "faces", "faces")
    names = [person.name for person in people]
    candidates = candidate_names(names, "", 9, 0)
    found = attack(model, people, candidates, num_photos=9, threshold=1, seed=0)
    files = [file for person in people for file in person.files]
    image = np.stack([model.photos([file])[0] for file in files])
    text = np.stack([[model.texts([t.format(n)])[0] for n in candidates] for t in TEMPLATES])
    owner = np.repeat(np.arange(3), [len(person.files) for person in people])
    assert found.correct == slow_attack(image, owner, text, 3)[0].tolist()


def test_embedding_many_equals_embedding_one_at_a_time(inputs):
    model = Embedder(ModelConfig(str(inputs / "model")), 8, Console(quiet=True))
    texts = [f"a photo of {'very ' * (i % 9)}nice Joe Cool {i}" for i in range(45)]
    many = model.texts(texts)
    one = np.concatenate([model.texts([text]) for text in texts])
    np.testing.assert_allclose(many, one, atol=1e-5)
    assert np.ptp(many, axis=0).max() > 1e-2
    np.testing.assert_allclose(np.linalg.norm(many, axis=-1), 1, atol=1e-6)
    files = [f for person in read_folders(inputs / "faces", "faces") for f in person.files] * 3
    many = model.photos(files)
    one = np.concatenate([model.photos([file]) for file in files])
    np.testing.assert_allclose(many, one, atol=1e-5)


def test_attack_writes_its_summary(inputs):
    summary = run_attack(config(inputs), Console(quiet=True))
    assert json.loads((inputs / "results" / "summary.json").read_text()) == summary
    wanted = {"tpr", "fnr", "num_identities", "threshold", "num_candidates", "per_identity"}
    assert wanted <= set(summary)
    assert summary["num_candidates"] == 9 and summary["num_identities"] == 3
    assert summary["tpr"] + summary["fnr"] == 1
    known = [n >= 1 for n in summary["per_identity"].values()]
    assert summary["tpr"] == np.mean(known)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"num_candidates": 3}, "must be above the number of people"),
        ({"threshold": 22}, "must be at most the number of templates"),
    ],
)
def test_attack_refuses_settings_that_mean_nothing(inputs, change, message):
    with pytest.raises(ValueError, match=message):
        run_attack(config(inputs, **change), Console(quiet=True))


def test_candidates_come_from_a_file(tmp_path):
    file = tmp_path / "candidates.txt"
    file.write_text("Bob Keep\njoe cool\nEve Stay\n")
    got = candidate_names(["Joe Cool", "Zoe"], str(file), 5, 0)
    assert got == ["Joe Cool", "Zoe", "Bob Keep", "Eve Stay"]
    file.write_text("Bob Keep\nbob  keep\n")
    with pytest.raises(ValueError, match="twice"):
        candidate_names(["Joe Cool"], str(file), 5, 0)
    file.write_text("Joe Cool\n")
    with pytest.raises(ValueError, match="no name besides"):
        candidate_names(["Joe Cool"], str(file), 5, 0)
    with pytest.raises(ValueError, match="two folders"):
        candidate_names(["Joe Cool", "joe cool"], "", 5, 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.25])
def test_embeddings_without_meaning_are_refused(value):
    with pytest.raises(ValueError, match="broken"):
        check_embeddings(np.full((4, 8), value, np.float32), "photos")
    check_embeddings(np.eye(4, 8, dtype=np.float32), "photos")
