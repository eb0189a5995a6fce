"""Attackers who optimise: against loops in NumPy, with people known and unknown to the model."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factories import run, write_model_directory
from flax import nnx
from test_idia import MESHES, assert_memory_is_of_pieces, compare_in_pieces, one_device_mesh

from jaxdefense.clip.model import CLIP
from jaxdefense.config import ModelConfig
from jaxdefense.data.images import Photos, read_folders
from jaxdefense.data.names import RandomNames
from jaxdefense.demo import world
from jaxdefense.demo.run import shipped_model
from jaxdefense.errors import InputError
from jaxdefense.evals.embed import Embedder, unit
from jaxdefense.idia.attack import Evidence, gather
from jaxdefense.idia.nearest import lengths
from jaxdefense.proof import soft_prompts as soft
from jaxdefense.proof.pgd import Pixels, climbed, noise, pgd
from jaxdefense.proof.search import Ranks, _compiled, ranked, search
from jaxdefense.proof.soft_prompts import interpolated, soft_prompts
from jaxdefense.sharding import put, replicated

NUM, PHOTOS = 8, 6
PROMPT = "a photo of {0}"
TINY = ["Adam Sandler", "Beyonce", "Li Wei"]  # of different numbers of tokens
TOWERS = {
    "token": {},
    "largest": {"eos_token_id": 2},
    "siglip": {"architecture": "SiglipModel", "tokenizer": "bpe"},  # the first word differs
}


def load(path, mesh):
    """Load a model; few rows at a time, so that texts of any number share a program."""
    return Embedder(ModelConfig(str(path), dtype="float32"), batch=2, mesh=mesh)


class Case(NamedTuple):
    model: Embedder
    people: dict[str, list[Photos]]
    evidence: dict[str, Evidence]


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """The demo's model, people whom it knows, and as many strangers."""
    out, model = tmp_path_factory.mktemp("faces"), load(shipped_model(), MESHES["one"]())
    people = {}
    for group, who in (("members", world.members()), ("strangers", world.strangers())):
        world.write(world.faces(who[:NUM], PHOTOS, out / group, 48))
        people[group] = read_folders(out / group, "faces")
    return Case(model, people, {group: gather(model, who) for group, who in people.items()})


def drawn(names, num_photos, embed, seed=0):
    """Evidence of random directions."""
    rng = np.random.default_rng(seed)
    image_PE = unit(rng.standard_normal((len(names) * num_photos, embed))).astype(np.float32)
    return Evidence(names, image_PE, np.repeat(np.arange(len(names)), num_photos), names)


# Prompts of free tokens


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """Tiny models by how their text is read out."""
    out = tmp_path_factory.mktemp("towers")
    paths = {name: write_model_directory(out / name, **how) for name, how in TOWERS.items()}
    return {name: load(path, MESHES["one"]()) for name, path in paths.items()}


@pytest.mark.parametrize(
    "tower", [x if x == "token" else pytest.param(x, marks=pytest.mark.slow) for x in TOWERS]
)
def test_rows_are_embedded_as_the_tower_embeds_their_tokens(towers, tower):
    model, texts = towers[tower], [f"the {name} at a gala" for name in TINY]
    prompts = soft.fill_in(model, TINY, "the {0} at a gala")
    x_ITD = soft.token_rows(model, prompts.tokens_IT)
    ours, theirs = soft.embed_rows(model, x_ITD, prompts.readout_I), model.texts(texts)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    # A vocabulary with another row says the same as another row in the prompts.
    token = prompts.tokens_IT[0][prompts.free_IT[0]][0]
    row_D = np.random.default_rng(0).standard_normal(x_ITD.shape[-1]).astype(np.float32)
    flat = dict(nnx.to_flat_state(model.params))
    table = flat["text", "token_embedding"]
    flat["text", "token_embedding"] = table.replace(table[...].at[int(token)].set(row_D))
    changed = model.with_params(nnx.from_flat_state(flat)).texts(texts)
    x_ITD[prompts.tokens_IT == token] = row_D
    ours = soft.embed_rows(model, x_ITD, prompts.readout_I)
    np.testing.assert_allclose(ours, changed, rtol=0, atol=1e-5)
    assert np.abs(ours[0] - theirs[0]).max() > 1e-2


@pytest.mark.parametrize("prompt", ["{0}", "a photo of {0}", "{0} at a gala"])
@pytest.mark.parametrize("tower", ["token", "siglip"])
def test_free_tokens_are_those_of_the_name(towers, tower, prompt):
    prompts = soft.fill_in(towers[tower], TINY, prompt)
    for i, name in enumerate(TINY):
        phrase = towers[tower].tokenizer.phrase(name)
        wanted = phrase.first if prompt.startswith("{0}") else phrase.later
        np.testing.assert_array_equal(prompts.tokens_IT[i][prompts.free_IT[i]], wanted)
        at = np.flatnonzero(prompts.free_IT[i])
        np.testing.assert_array_equal(at, at[0] + np.arange(len(at)))


@pytest.mark.parametrize("prompt", ["a photo", "x{0}", "{0} and {0}", "a " * 30 + "{0}"])
def test_prompt_that_does_not_fit_is_refused(towers, prompt):
    with pytest.raises(InputError, match="`prompt`"):
        soft.fill_in(towers["token"], TINY, prompt)


def test_a_persons_halves_depend_on_nobody_else():
    evidence = drawn(["A", "B", "C"], 5, 4)
    test_P = soft.tested(evidence, 0).reshape(3, 5)
    assert test_P.sum(1).tolist() == [2, 2, 2]
    some = evidence.of([2, 0])  # whose photos keep their order
    np.testing.assert_array_equal(soft.tested(some, 0), test_P[[0, 2]].reshape(-1))
    assert any((soft.tested(evidence, seed) != test_P.reshape(-1)).any() for seed in range(1, 4))
    with pytest.raises(InputError, match="`A`, `B`, `C` must have at least two"):
        soft.tested(drawn(["A", "B", "C"], 1, 4), 0)


def slow_adam(model, evidence, used_P, prompts, x_ITD, steps, lr):
    """Adam in NumPy, on a loss that runs the blocks of the tower without its token table."""
    whole: CLIP = nnx.merge(model.graphdef, model.params)
    tower, scale = whole.text, float(np.exp(whole.logit_scale[...]))
    assert tower and tower.projection is not None
    length, projection_DE = x_ITD.shape[1], tower.projection[...]
    mask_1TT = jnp.tri(length, dtype=bool)[None]
    images = list(zip(evidence.image_PE[used_P], evidence.owner_P[used_P].tolist(), strict=True))

    def text(x_TD, at):
        x_1TD = (x_TD + tower.position_embedding[...][:length])[None]
        out_E = tower.final_layer_norm(tower.encoder(x_1TD, mask_1TT))[0, at] @ projection_DE
        return out_E / jnp.sqrt((out_E**2).sum())

    def loss(x_ITD):
        text_IE, total = jax.vmap(text)(x_ITD, prompts.readout_I), 0.0
        for image_E, owner in images:
            logits_I = scale * (text_IE @ image_E)
            total += jnp.log(jnp.exp(logits_I - logits_I.max()).sum())
            total += logits_I.max() - logits_I[owner]
        return total / len(images)

    slope = jax.jit(jax.grad(loss))
    size = lr * np.sqrt(np.mean(x_ITD[prompts.free_IT] ** 2))
    first, second = np.zeros_like(x_ITD), np.zeros_like(x_ITD)
    for step in range(1, steps + 1):
        slope_ITD = np.asarray(slope(x_ITD)) * prompts.free_IT[..., None]
        first = 0.9 * first + 0.1 * slope_ITD
        second = 0.999 * second + 0.001 * slope_ITD**2
        root = np.sqrt(second / (1 - 0.999**step)) + 1e-8
        x_ITD = x_ITD - size * first / (1 - 0.9**step) / root
    return x_ITD


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny model's directory, evidence, and what `slow_adam` makes of it."""
    path = tmp_path_factory.mktemp("tiny") / "model"
    write_model_directory(path, text={"num_attention_heads": 2})
    model = load(path, MESHES["one"]())
    evidence = drawn(TINY, 4, model.embed)
    prompts = soft.fill_in(model, TINY, PROMPT)
    start_ITD = soft.token_rows(model, prompts.tokens_IT)
    used_P = ~soft.tested(evidence, 0)
    slow = slow_adam(model, evidence, used_P, prompts, start_ITD, 12, 0.1)
    return path, evidence, start_ITD, slow


@pytest.mark.slow
def test_optimised_on_a_mesh_matches_slow_adam(tiny):
    mesh = "all" if jax.device_count() == 8 else "one"
    path, evidence, start_ITD, slow = tiny
    model = load(path, MESHES[mesh]())
    prompts = soft.fill_in(model, TINY, PROMPT)
    np.testing.assert_array_equal(soft.token_rows(model, prompts.tokens_IT), start_ITD)
    used_P = ~soft.tested(evidence, 0)
    (ours,) = soft.optimised(model, evidence, used_P, prompts, start_ITD, steps=[12], lr=0.1)
    np.testing.assert_allclose(ours, slow, rtol=0, atol=1e-4)
    np.testing.assert_array_equal((ours != start_ITD).any(-1), prompts.free_IT)


def test_soft_prompts_find_members_at_once_and_strangers_by_their_photos(case):
    members = case.evidence["members"]
    known_I, same_I = soft_prompts(case.model, members, steps=[0, 0], lr=0.05, seed=0)
    assert known_I.mean() > 0.95
    np.testing.assert_array_equal(known_I, same_I)
    evidence = case.evidence["strangers"]
    found = soft_prompts(case.model, evidence, steps=[0, 5, 12], lr=0.1, seed=0)
    start_I, _, found_I = found
    assert start_I.mean() < 0.4
    assert found_I.mean() > start_I.mean() + 0.4
    again = soft_prompts(case.model, evidence, steps=[0, 5, 12], lr=0.1, seed=0)
    np.testing.assert_array_equal(found, again)
    # A test on the way changes nothing.
    (straight_I,) = soft_prompts(case.model, evidence, steps=[12], lr=0.1, seed=0)
    np.testing.assert_array_equal(straight_I, found_I)
    # By hand, with the real names.
    text_IE = case.model.texts([f"a photo of {name}" for name in evidence.names])
    right = [list[bool]() for _ in evidence.names]
    for i in np.flatnonzero(soft.tested(evidence, 0)).tolist():
        owner = int(evidence.owner_P[i])
        right[owner].append(np.argmax([evidence.image_PE[i] @ x for x in text_IE]) == owner)
    np.testing.assert_allclose(start_I, [np.mean(x) for x in right])


# Mixtures of names


def test_mixtures_reach_the_other_name(case):
    model, (one, other) = case.model, ("Xenia Hollisworth", "Yvaine Quickfall")
    prompts = soft.fill_in(model, [one], PROMPT)
    phrase = model.tokenizer.encode_phrase(other, first=False)
    num = int(prompts.free_IT.sum())
    fitted = [phrase[i % len(phrase)] for i in range(num)]
    places = [(0, 0.0), (0, 1.0), (0, 0.25)]
    own_TD, moved_TD, mixed_TD = soft.mixtures(model, prompts, [phrase], places)
    np.testing.assert_array_equal(own_TD, soft.token_rows(model, prompts.tokens_IT[0]))
    free_T = prompts.free_IT[0]
    np.testing.assert_array_equal(moved_TD[free_T], soft.token_rows(model, np.array(fitted)))
    np.testing.assert_array_equal(moved_TD[~free_T], own_TD[~free_T])
    np.testing.assert_allclose(mixed_TD, 0.75 * own_TD + 0.25 * moved_TD, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_interpolated_matches_slow_loop(case):
    model = case.model
    evidence = drawn(case.evidence["strangers"].names[:3], 7, model.embed)
    test_P, parts, towards = soft.tested(evidence, 3), (0.2, 0.6), 3
    prompts = soft.fill_in(model, evidence.names, PROMPT)
    others = list(RandomNames(towards, 3, exclude=evidence.names))
    phrases = [model.tokenizer.encode_phrase(name, first=False) for name in others]
    places = [(0, 0.0), *((w, part) for w in range(towards) for part in parts)]
    x = np.stack([*soft.mixtures(model, prompts, phrases, places)])
    text = soft.embed_rows(model, x, np.repeat(prompts.readout_I, len(places)))
    text_ICE = text.reshape(3, len(places), -1)
    names_IE = model.texts([f"a photo of {name}" for name in evidence.names])
    wanted = []
    for i in range(3):

        def margin(candidate_E, photo, i=i):
            image_E = evidence.image_PE[photo]
            return candidate_E @ image_E - max(names_IE[j] @ image_E for j in range(3) if j != i)

        of = [np.flatnonzero((evidence.owner_P == i) & (test_P == test)) for test in (0, 1)]
        means = [np.mean([margin(x, photo) for photo in of[0]]) for x in text_ICE[i]]
        best_E = text_ICE[i, int(np.argmax(means))]
        wanted.append(np.mean([margin(best_E, photo) > 0 for photo in of[1]]))
    for block in (8, 256):
        found = interpolated(model, evidence, parts=parts, towards=towards, seed=3, block=block)
        np.testing.assert_allclose(found, wanted)


def test_best_mixture_is_kept_and_counted():
    """On embeddings for which both halves of the attack change the answer."""
    rng = np.random.default_rng(0)
    text_ICE, image_PE = rng.standard_normal((3, 5, 4)), rng.standard_normal((12, 4))
    owner_P = np.repeat(np.arange(3), 4)
    kept_IE = soft.kept(text_ICE, image_PE, owner_P)
    for i in range(3):
        means = [np.mean([x @ image_PE[p] for p in range(4 * i, 4 * i + 4)]) for x in text_ICE[i]]
        np.testing.assert_array_equal(kept_IE[i], text_ICE[i, np.argmax(means)])
    share_I = soft.nearer(kept_IE, text_ICE[:, 0], image_PE, owner_P)
    for i in range(3):
        others = [text_ICE[j, 0] for j in range(3) if j != i]
        photos = image_PE[4 * i : 4 * i + 4]
        assert share_I[i] == np.mean([all(kept_IE[i] @ x > y @ x for y in others) for x in photos])
    assert 0 < share_I.mean() < 1


def test_interpolated_finds_members_and_not_strangers(case):
    how: dict[str, Any] = dict(parts=(0.1, 0.3), towards=2, seed=0, block=20)
    found = {group: interpolated(case.model, x, **how) for group, x in case.evidence.items()}
    assert found["members"].mean() > 0.95
    assert found["strangers"].mean() < 0.5


# Changed photos


def candidates(case):
    """Embedded candidates: both groups' names, and random ones."""
    names = [person.name for group in case.people.values() for person in group]
    names += RandomNames(40, 0, exclude=names)
    return case.model.texts([PROMPT.format(name) for name in names])


def pixels_of(case, group, num=8):
    files = [file for person in case.people[group] for file in person.files[:1]][:num]
    image_BHWC = case.model.processor.load(files)
    own_B = np.arange(num, dtype=np.int32) + NUM * (group == "strangers")
    return Pixels(image_BHWC, noise(image_BHWC.shape, np.arange(num), 0), own_B)


def test_changed_photos_stay_in_the_ball_and_approach_the_name(case):
    text_ME, pixels = candidates(case), pixels_of(case, "strangers")
    text = put(text_ME, replicated(case.model.mesh))
    model: CLIP = nnx.merge(case.model.graphdef, case.model.params)
    scale, eps = float(np.exp(model.logit_scale[...])), 6.0
    image_BHWC = np.asarray(pixels.image_BHWC, np.float32)
    for steps in (0, 4):
        x, found = climbed(case.model, pixels, text, eps, steps)
        x_BHWC = np.asarray(x)
        assert np.abs(x_BHWC - image_BHWC).max() <= eps
        assert x_BHWC.min() >= 0 and x_BHWC.max() <= 255
        if not steps:
            start = np.clip(image_BHWC + eps * pixels.noise_BHWC, 0, 255)
            np.testing.assert_allclose(x_BHWC, start, rtol=0, atol=1e-4)
    both = jnp.concatenate([image_BHWC, x_BHWC])
    image_BE = unit(np.asarray(run(model.vision, case.model.processor.normalise(both))))
    logits_BM = scale * image_BE.astype(np.float64) @ text_ME.T
    chance_BM = logits_BM - np.log(np.exp(logits_BM).sum(1, keepdims=True))
    own_B = np.tile(pixels.own_B, 2)
    before_B, after_B = chance_BM[np.arange(16), own_B].reshape(2, 8)
    assert (after_B > before_B + 1).all()
    unchanged_B, found_B = (logits_BM.argmax(1) == own_B).reshape(2, 8)
    assert np.asarray(found)[found_B].all() and not unchanged_B.any()
    one = np.asarray(climbed(case.model, pixels, text, eps, 1)[0])
    edge = np.minimum(np.abs(one - image_BHWC), np.minimum(one, 255 - one))
    # A step of 2.5 radii ends on the border of the ball or of the range, whatever the start.
    assert ((np.abs(np.abs(one - image_BHWC) - eps) < 1e-3) | (edge < 1e-3)).mean() > 0.99


def test_pgd_finds_members_unchanged_and_strangers_not(case):
    text_ME = candidates(case)
    arguments, found = dict(steps=4, photos=2, seed=0, block=8), {}
    for group, people in case.people.items():
        own_I = np.arange(NUM) + NUM * (group == "strangers")
        found[group] = pgd(case.model, people, text_ME, own_I, eps=(4.0, 1.0), **arguments)
    assert found["members"][0].mean() > 0.9
    assert found["strangers"][0].mean() < 0.1
    for at in found.values():  # radii come in the caller's order
        assert at.shape == (3, NUM)
        assert (at[1] >= at[2]).all() and (at[2] >= at[0]).all()
    assert found["strangers"][1].mean() > found["strangers"][0].mean()
    some = case.people["strangers"][:4]
    again = pgd(case.model, some, text_ME, NUM + np.arange(4), eps=(1.0, 4.0), **arguments)
    np.testing.assert_array_equal(again, found["strangers"][[0, 2, 1], :4])


@pytest.mark.slow
def test_changed_photos_are_the_same_on_a_mesh(tiny):
    if jax.device_count() != 8:
        pytest.skip("needs 8 devices")
    rng, found = np.random.default_rng(0), []
    image_BHWC = rng.integers(0, 256, (8, 12, 12, 3), np.uint8)
    own_B = rng.integers(0, 5, 8).astype(np.int32)
    pixels = Pixels(image_BHWC, noise(image_BHWC.shape, np.arange(8), 0), own_B)
    for name in ("one", "all"):
        model = load(tiny[0], MESHES[name]())
        text_ME = unit(np.random.default_rng(1).standard_normal((5, model.embed)))
        text = put(text_ME.astype(np.float32), replicated(model.mesh))
        found.append(jax.device_get(climbed(model, pixels, text, 8.0, 3)))
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=0, atol=1e-3)  # of 255
    np.testing.assert_array_equal(found[1][1], found[0][1])
    assert 0 < found[0][1].mean() < 1


def test_what_pgd_finds_in_a_ball_counts_in_a_larger_one(case):
    """A random start far off loses what the unchanged photo shows."""
    people, how = case.people["members"][:4], dict(steps=0, photos=2, seed=0, block=8)
    found = pgd(case.model, people, candidates(case), np.arange(4), eps=(250.0,), **how)
    assert found[0].mean() > 0.9
    np.testing.assert_array_equal(found[0], found[1])


def test_pgd_at_no_radius_matches_slow_loop(case):
    text_ME, rows = candidates(case), []
    people = case.people["members"][:3]
    own_I = np.array([0, 5, 2])  # of one person another's name
    for person, own in zip(people, own_I.tolist(), strict=True):
        image_PE = case.model.photos(person.files)
        rows.append(np.mean([np.argmax([x @ t for t in text_ME]) == own for x in image_PE]))
    found = pgd(case.model, people, text_ME, own_I, eps=(), photos=PHOTOS, seed=0, block=8)
    np.testing.assert_allclose(found, [rows])


def test_pgd_skips_photos_that_cannot_be_read(case, tmp_path):
    (broken := tmp_path / "broken.png").write_bytes(b"no photo")
    text_ME, (one, two) = candidates(case), case.people["members"][:2]
    partly = dataclasses.replace(one, files=(broken, *one.files))
    arguments: dict[str, Any] = dict(eps=(), photos=PHOTOS + 1, seed=0, block=8)
    found = pgd(case.model, [partly, two], text_ME, np.arange(2), **arguments)
    assert found.shape == (1, 2) and found.min() > 0.9
    wholly = dataclasses.replace(one, files=(broken,))
    with pytest.raises(InputError, match="no photo of '.*' can be read"):
        pgd(case.model, [wholly, two], text_ME, np.arange(2), **arguments)


# Searches for the name


@pytest.mark.parametrize("num,piece", [(3, 99), (37, 1), (37, 3)])
@pytest.mark.parametrize("mesh", MESHES)
def test_ranked_matches_slow_loop(mesh, num, piece, monkeypatch):
    if mesh != "one" and jax.device_count() != 8:
        pytest.skip("needs 8 devices")
    compare_in_pieces(monkeypatch, piece)
    rng = np.random.default_rng(0)  # of few values, so that cosines tie
    mean_IE, own_IE = (rng.integers(-1, 2, (num, 5)).astype(np.float32) for _ in range(2))
    text_ME = rng.integers(-1, 2, (23, 5)).astype(np.float32)
    own_IE[0] = -mean_IE[0]  # even rows of padding would be nearer
    blocks = (text_ME[i : i + 6] for i in range(0, 23, 6))
    found = ranked(mean_IE, own_IE, blocks, 6, MESHES[mesh]())
    assert len(found.count_I) == num
    for i in range(num):
        cosines = [mean_IE[i] @ text_E for text_E in text_ME]
        assert found.count_I[i] == sum(x > mean_IE[i] @ own_IE[i] for x in cosines)
        assert found.index_I[i] == cosines.index(max(cosines))


def test_memory_of_a_search_grows_with_people_only_as_they_do():
    def compiled(num):
        block, num, num_pieces = lengths(num, 4096, one_device_mesh())
        update, _ = _compiled(one_device_mesh(), num_pieces)
        found = Ranks(*(np.zeros(num, dtype) for dtype in (np.int32, np.float32, np.int32)))
        image_IE, text_ME = np.zeros((num, 4), np.float32), np.zeros((block, 4), np.float32)
        given = np.int32(0), np.int32(block)
        return update.lower(found, image_IE, image_IE, text_ME, given).compile()

    assert_memory_is_of_pieces(compiled)


@pytest.mark.slow
def test_search_matches_slow_loop(case):
    evidence, num = case.evidence["strangers"], 50
    names = list(RandomNames(num, 4, exclude=evidence.names))
    text_ME = case.model.texts([PROMPT.format(name) for name in names])
    own_IE = case.model.texts([PROMPT.format(name) for name in evidence.names])
    for block in (20, 4096):
        found = search(case.model, evidence, num, seed=4, block=block)
        for i in range(NUM):
            mean_E = evidence.image_PE[evidence.owner_P == i].mean(0)
            cosines = [mean_E @ text_E for text_E in text_ME]
            assert found.rank_I[i] == sum(x > mean_E @ own_IE[i] for x in cosines)
            assert found.nearest[i] == names[int(np.argmax(cosines))]
        np.testing.assert_array_equal(found.nearer_I, found.rank_I / num)
        assert found.shared_I.tolist() == [0] * NUM


def test_search_knows_a_leaked_word_and_never_tries_the_own_name(case):
    evidence = case.evidence["strangers"].of([0, 1])
    first, second = search(case.model, evidence, 50, seed=0).nearest
    names = [f"Zyx {first.split()[1].upper()}", second]
    found = search(case.model, dataclasses.replace(evidence, names=names), 50, seed=0)
    assert found.nearest[0] == first and found.shared_I[0] == 1
    assert found.nearest[1] != second


def test_search_ranks_members_first_and_strangers_anywhere(case):
    members, strangers = (
        search(case.model, case.evidence[group], 300, seed=0, block=50)
        for group in ("members", "strangers")
    )
    assert members.nearer_I.max() < 0.02
    assert 0.25 < strangers.nearer_I.mean() < 0.75
    assert np.ptp(strangers.nearer_I) > 0.3
