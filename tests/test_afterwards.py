"""What may happen to a model afterwards: rounding, averaging and fine-tuning.

References: torch's fake quantisation, tensor by tensor, and a loop in NumPy; a torch loop that
fine-tunes transformers' model on the same batches, first 5 losses, 3e-5 relative. Controls break
one detail and must fail.
"""

import dataclasses
import itertools
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factories import CAPTIONS, logged, write_model_directory, write_photos
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from reference import hf, torch
from safetensors.numpy import load_file
from test_openclip import RESNET, VISION, write_openclip

from jaxdefense.config import ModelConfig
from jaxdefense.convert.table import source_tensor
from jaxdefense.data.images import Photos
from jaxdefense.data.pairs import Pairs, pairs_of
from jaxdefense.errors import InputError, RunError
from jaxdefense.evals.embed import Embedder
from jaxdefense.proof import finetune as module
from jaxdefense.proof.afterwards import averaged, round_channels, rounded
from jaxdefense.proof.finetune import (
    PairBatches,
    clip_loss,
    finetune,
    siglip_loss,
    start,
    train_step,
)
from jaxdefense.sharding import ShardingRules, batch_sharding, make_mesh, put

STEPS, BATCH, LR = 5, 6, 2e-3
TOLERANCE = 3e-5  # so small that a wrong decay shows


def write(path, **options) -> Path:
    """Write a tiny model whose sizes a mesh of 2 x 2 x 2 divides."""
    return write_model_directory(path, text={"num_attention_heads": 2}, **options)


def load(path, mesh=None) -> Embedder:
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    return Embedder(ModelConfig(str(path), dtype="float32"), batch=8, mesh=mesh)


def host(model) -> dict[Any, np.ndarray]:
    return {path: np.asarray(v[...]) for path, v in nnx.to_flat_state(model.params)}


def tensors(model) -> dict[str, np.ndarray]:
    """Lay a model's parameters out as its checkpoint does."""
    params = host(model)
    return {row.key: source_tensor(params, row, np.float32) for row in model.directory.rows}


def written(tmp_path, kind):
    """Write a tiny model; its directory and its weight file."""
    if kind in ("openclip", "resnet"):
        vision = RESNET if kind == "resnet" else VISION
        path = write_openclip(tmp_path / kind, vision_cfg=vision)
        return path, path / "open_clip_model.safetensors"
    path = write(tmp_path / kind, architecture="SiglipModel" if kind == "siglip" else "CLIPModel")
    return path, path / "model.safetensors"


# Rounding


def reference_rounded(tensor: np.ndarray, bits: int, dim: int) -> np.ndarray:
    """Round value by value, in f32."""
    most, out = np.float32(2 ** (bits - 1) - 1), np.zeros_like(tensor)
    for i in range(tensor.shape[dim]):
        channel, target = (np.moveaxis(x, dim, 0)[i] for x in (tensor, out))
        largest = np.abs(channel).max()
        scale = largest / most if largest else np.float32(1)
        levels = [round(x) for x in (channel * (1 / scale)).ravel().tolist()]
        target[...] = scale * np.array(levels, np.float32).clip(-most, most).reshape(channel.shape)
    return out


# By the source's definition of each module: these two are parameters that multiply from the right.
OUT_LAST = ("text_projection", "visual.proj")


@pytest.mark.parametrize("kind, bits", [("hf", 8), ("siglip", 4), ("openclip", 4), ("resnet", 8)])
def test_rounded_is_a_loop_over_the_checkpoints_tensors(tmp_path, kind, bits):
    path, file = written(tmp_path, kind)
    found, num = tensors(rounded(load(path), bits)), 0
    for key, tensor in load_file(file).items():
        if tensor.ndim > 1:
            wanted = reference_rounded(tensor, bits, 1 if key in OUT_LAST else 0)
            np.testing.assert_array_equal(found[key], wanted, key)
            assert not np.array_equal(found[key], tensor), key
            num += 1
        else:
            np.testing.assert_array_equal(found[key], tensor, key)
    assert num > 20


@pytest.mark.torch
@pytest.mark.parametrize("kind, bits", [("hf", 8), ("hf", 4), ("openclip", 8), ("openclip", 4)])
def test_rounded_matches_torch_tensor_by_tensor(tmp_path, kind, bits):
    path, file = written(tmp_path, kind)
    found, most = tensors(rounded(load(path), bits)), 2 ** (bits - 1) - 1
    for key, tensor in load_file(file).items():
        if tensor.ndim < 2:
            continue
        x, dim = torch.from_numpy(tensor), 1 if key in OUT_LAST else 0
        scale = x.abs().amax([i for i in range(x.ndim) if i != dim]) / most
        zero = torch.zeros(len(scale), dtype=torch.int32)
        wanted = torch.fake_quantize_per_channel_affine(x, scale, zero, dim, -most, most)
        np.testing.assert_array_equal(found[key], wanted.numpy(), key)


@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=12, max_size=12),
    bits=st.integers(2, 9),
    dim=st.integers(0, 2),
)
def test_rounding_has_few_levels_and_is_idempotent(values, bits, dim):
    tensor = np.array(values, np.float32).reshape(2, 3, 2)
    once = round_channels(tensor, bits, dim)
    channels = (np.moveaxis(x, dim, 0) for x in (once, tensor))
    for channel, given_channel in zip(*channels, strict=True):
        assert len(np.unique(channel)) <= 2**bits - 1
        step = np.abs(given_channel).max() / (2 ** (bits - 1) - 1)
        assert np.abs(channel - given_channel).max() <= step * 0.5001
    np.testing.assert_allclose(round_channels(once, bits, dim), once, rtol=1e-6)


def test_rounding_takes_halves_to_even_and_leaves_a_channel_of_zeros():
    tensor = np.array([[0.5, 1.5, 2.5, -0.5, -1.5, 127], [0] * 6], np.float32)
    wanted = [[0, 2, 2, 0, -2, 127], [0] * 6]
    np.testing.assert_array_equal(round_channels(tensor, 8, 0), wanted)


def test_rounded_and_averaged_lie_on_the_mesh_as_before(tmp_path):
    model = load(write(tmp_path / "m"), make_mesh(2, 2, 2))
    before = host(model)
    for other in (rounded(model, 8), averaged(model, rounded(model, 4), 0.5)):
        pairs = zip(*(nnx.to_flat_state(x.params) for x in (model, other)), strict=True)
        for (path, old), (_, new) in pairs:
            assert old[...].sharding == new[...].sharding, path
        differences = [np.abs(value - before[path]).max() for path, value in host(other).items()]
        assert 0 < max(differences) < 0.5
    for path, value in host(model).items():
        np.testing.assert_array_equal(value, before[path])


def test_rounded_refuses_one_bit(tmp_path):
    with pytest.raises(InputError, match=r"`bits` \(=1\) must be from 2"):
        rounded(load(write(tmp_path / "m")), 1)


# Averaging


@pytest.mark.slow
def test_averaged_goes_from_one_model_to_the_other(tmp_path):
    one, two = (load(write(tmp_path / str(i), seed=i)) for i in (1, 2))
    first, second = host(one), host(two)
    for path in first:
        np.testing.assert_array_equal(host(averaged(one, two, 0))[path], first[path])
        np.testing.assert_array_equal(host(averaged(one, two, 1))[path], second[path])
    for path, value in host(averaged(one, two, 0.25)).items():
        np.testing.assert_allclose(value, 0.75 * first[path] + 0.25 * second[path], atol=1e-6)


def test_averaged_refuses_models_of_other_sizes_and_other_parts(tmp_path):
    one = load(write(tmp_path / "1"))
    two = load(write(tmp_path / "2", embed=6))
    with pytest.raises(InputError, match="models of different sizes"):
        averaged(one, two, 0.5)
    with pytest.raises(InputError, match=r"`alpha` \(=1.5\) must be from 0 to 1"):
        averaged(one, one, 1.5)


# Fine-tuning


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = write_photos(tmp_path_factory.mktemp("photos") / "p", 16)
    texts = [(text, f"a photo of {text}") for text in CAPTIONS]
    return Pairs(tuple(sorted(folder.iterdir())), tuple(texts))


def captions_in(batch) -> list[np.ndarray]:
    """Take the captions of a batch out of their rows, in the order of the photos."""
    found, slots = [], batch.text.readout_RS.shape[1]
    for at in batch.slot_B[batch.shown_B]:
        row, slot = divmod(int(at), slots)
        found.append(batch.text.tokens_RT[row][batch.text.segments_RT[row] == slot + 1])
    return found


def our_losses(model, batches, steps=STEPS, lr=LR):
    cfg, state, frozen = start(model)
    place, losses = batch_sharding(model.mesh, ShardingRules()), []
    for i in range(steps):
        state, metrics = train_step(state, frozen, put(batches[i], place), np.float32(lr), cfg=cfg)
        losses.append(float(metrics.loss))
    return np.array(losses)


def torch_losses(path, model, batches, siglip=False, broken=""):
    """Fine-tune as one would with transformers."""
    kind = hf.SiglipModel if siglip else hf.CLIPModel
    theirs = kind.from_pretrained(path, attn_implementation="eager").eval()
    if broken == "activation":
        for layer in theirs.vision_model.encoder.layers:
            layer.mlp.activation_fn = torch.nn.ReLU()
    rest = ("logit_scale", "logit_bias")
    named = [(k, p) for k, p in theirs.named_parameters() if k not in rest]
    decay = {"no decay": (0.0, 0.0), "all decay": (0.2, 0.2)}.get(broken, (0.2, 0.0))
    groups = [
        {"params": [p for _, p in named if (p.ndim > 1) == matrix], "weight_decay": rate}
        for matrix, rate in zip((True, False), decay, strict=True)
    ]
    b2 = 0.1 if broken == "b2" else 0.98
    lr = 2 * LR if broken == "lr" else LR
    optimizer, losses = torch.optim.AdamW(groups, lr, (0.9, b2), eps=1e-6), []
    for i in range(STEPS):
        batch, length = batches[i], model.tokenizer.context_length
        captions = captions_in(batch)
        tokens = np.stack([np.pad(caption, (0, length - len(caption))) for caption in captions])
        image_BHWC = np.asarray(model.processor.normalise(jnp.asarray(batch.image_BHWC)))
        logits = theirs(
            input_ids=torch.from_numpy(tokens).long(),
            pixel_values=torch.from_numpy(image_BHWC.transpose(0, 3, 1, 2).copy()),
        ).logits_per_image
        if siglip:
            sign = 2 * torch.eye(len(logits)) - 1
            loss = -torch.nn.functional.logsigmoid(sign * logits).sum(-1).mean()
        else:
            entropy, which = torch.nn.functional.cross_entropy, torch.arange(len(logits))
            loss = (entropy(logits, which) + entropy(logits.T, which)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses)


def worst(ours, theirs):
    return np.max(np.abs(ours - theirs) / np.abs(theirs))


@pytest.mark.torch
@pytest.mark.parametrize(
    "architecture", ["CLIPModel", pytest.param("SiglipModel", marks=pytest.mark.slow)]
)
def test_first_losses_match_torch_and_do_not_with_a_detail_broken(tmp_path, pairs, architecture):
    path = write(tmp_path / "m", architecture=architecture)
    model, siglip = load(path), architecture == "SiglipModel"
    batches = PairBatches(model, pairs, BATCH, seed=1)
    ours = our_losses(model, batches)
    assert worst(ours, torch_losses(path, model, batches, siglip)) < TOLERANCE
    assert np.ptp(ours) > 0.02  # they do move
    for broken in ("activation", "b2", "lr", "no decay", "all decay"):
        assert worst(ours, torch_losses(path, model, batches, siglip, broken)) > TOLERANCE, broken


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)])
def test_losses_are_those_of_one_device_on_any_mesh(tmp_path, pairs, sizes):
    path = write(tmp_path / "m")
    losses = []
    for mesh in (make_mesh(devices=jax.devices()[:1]), make_mesh(*sizes)):
        model = load(path, mesh)
        losses.append(our_losses(model, PairBatches(model, pairs, BATCH, seed=1), lr=1e-4))
    assert worst(*losses) < 1e-4
    assert len(set(losses[0])) == STEPS


@pytest.mark.slow
def test_batch_that_the_mesh_does_not_divide_is_padded_and_no_loss_sees_it(tmp_path, pairs):
    model = load(write(tmp_path / "m"), make_mesh(devices=jax.devices()[:4]))
    batch = PairBatches(model, pairs, BATCH, seed=1)[0]
    assert batch.image_BHWC.shape[0] == 8 and batch.shown_B.tolist() == [True] * 6 + [False] * 2
    shown_B = jnp.asarray(batch.shown_B)
    noise_BB = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    for loss in (clip_loss, siglip_loss):
        whole = float(loss(jnp.asarray(noise_BB[:6, :6]), jnp.ones(6, bool)))
        np.testing.assert_allclose(float(loss(jnp.asarray(noise_BB), shown_B)), whole, 1e-6)
        assert abs(float(loss(jnp.asarray(noise_BB), jnp.ones(8, bool))) - whole) > 1e-2


def test_losses_match_a_loop(pairs):
    rng = np.random.default_rng(3)
    logits_BB = rng.normal(size=(4, 4)) * 3
    clip = siglip = 0.0
    for i, j in itertools.product(range(4), range(4)):
        sign = 1 if i == j else -1
        siglip += np.log1p(np.exp(-sign * logits_BB[i, j])) / 4
        if i == j:
            row, column = np.exp(logits_BB[i]), np.exp(logits_BB[:, j])
            clip -= np.log(row[j] / row.sum()) / 8 + np.log(column[i] / column.sum()) / 8
    given_BB, shown_B = jnp.asarray(logits_BB, jnp.float32), jnp.ones(4, bool)
    np.testing.assert_allclose(float(clip_loss(given_BB, shown_B)), clip, 1e-5)
    np.testing.assert_allclose(float(siglip_loss(given_BB, shown_B)), siglip, 1e-5)


def tune(model, pairs, at, **options) -> list[tuple[int, Embedder]]:
    default: dict[str, Any] = {"steps": max(at), "batch": BATCH, "lr": LR, "seed": 1}
    return list(finetune(model, pairs, at=at, **(default | options)))


RESNET_TOO = ["hf", *(pytest.param(x, marks=pytest.mark.slow) for x in ("siglip", "resnet"))]


@pytest.mark.parametrize("kind", RESNET_TOO)
def test_finetune_fits_the_pairs_and_gives_the_model_on_the_way(tmp_path, pairs, kind):
    model, steps = load(written(tmp_path, kind)[0]), 60
    before = host(model)
    few = Pairs(pairs.photos[:BATCH], pairs.captions[:BATCH])
    found = tune(model, few, [steps, 0, 2])
    assert [step for step, _ in found] == [0, 2, steps] and found[0][1] is model
    losses = [our_losses(x, PairBatches(x, few, BATCH, seed=7), steps=1)[0] for _, x in found]
    assert losses[2] < 0.75 * losses[0] and losses[2] < losses[1]
    weights = [host(x) for _, x in found]
    for path, value in before.items():
        np.testing.assert_array_equal(value, weights[0][path])  # the model stays as it was
        same = [np.array_equal(weights[i][path], weights[j][path]) for i, j in ((0, 1), (1, 2))]
        # The keys' bias of the residual network has no gradient.
        assert same == [path[-1] in (*module._FROZEN, "k_bias")] * 2, path


def test_finetune_takes_the_same_way_however_far_it_goes(tmp_path, pairs):
    model = load(write(tmp_path / "m"))
    (_, once), *_ = tune(model, pairs, [2])
    (_, again), *_ = tune(model, pairs, [2, 3], steps=9)
    (_, other), *_ = tune(model, pairs, [2], seed=2)
    for path, value in host(once).items():
        np.testing.assert_array_equal(value, host(again)[path])
    assert any((value != host(other)[path]).any() for path, value in host(once).items())


def test_steps_compile_once_whatever_the_rate_and_the_model(tmp_path, pairs):
    one, two = (load(write(tmp_path / str(i), seed=i)) for i in (1, 2))
    tune(one, pairs, [1])
    num = train_step._cache_size()  # pyright: ignore[reportAttributeAccessIssue]
    tuned = tune(two, pairs, [2], lr=1e-5)[0][1]
    tune(tuned, pairs, [3], seed=5)
    assert train_step._cache_size() == num  # pyright: ignore[reportAttributeAccessIssue]


def test_batches_take_one_photo_a_person_and_all_in_turn(tmp_path, pairs):
    model = load(write(tmp_path / "m"))
    sizes = itertools.accumulate((3, 1, 4, 2, 6), initial=0)
    cuts = list(itertools.pairwise(sizes))
    people = [Photos(f"Person {'abcde'[i]}", pairs.photos[a:b]) for i, (a, b) in enumerate(cuts)]
    named = pairs_of(people, ["a photo of {0}", "this is {0}"])
    with logged() as log:
        batches = PairBatches(model, named, 64, seed=0)
    assert "5 pairs a step, not 64" in log.getvalue() and batches.size == 5
    owner_P, seen = named.owners(), set()
    for step in range(80):
        photo_B, caption_B = batches.draw(step)
        assert sorted(owner_P[photo_B]) == list(range(5))
        assert (caption_B // 2 == photo_B).all()  # two captions a photo
        seen |= {*caption_B.tolist()}
    assert seen == set(range(32))
    two = PairBatches(model, named, 2, seed=0)
    for turn in range(4):
        owners = [*owner_P[two.draw(2 * turn)[0]], *owner_P[two.draw(2 * turn + 1)[0]]]
        assert len(set(owners)) == 4
    texts = [text for captions in named.captions for text in captions]
    batch, (_, caption_B) = batches[3], batches.draw(3)
    wanted = model.tokenizer.encode([texts[i] for i in caption_B])
    for found, tokens in zip(captions_in(batch), wanted, strict=True):
        np.testing.assert_array_equal(found, tokens)


def test_long_captions_are_cut_as_the_tokenizer_cuts_them(tmp_path, pairs):
    model = load(write(tmp_path / "m"))
    text = " ".join(CAPTIONS)
    long = dataclasses.replace(pairs, captions=tuple((text,) for _ in pairs.photos))
    wanted = model.tokenizer.encode([text])[0]
    assert len(wanted) == model.tokenizer.context_length
    for found in captions_in(PairBatches(model, long, 4, seed=0)[0]):
        np.testing.assert_array_equal(found, wanted)


def test_rows_of_captions_stay_as_many_until_a_batch_needs_more(tmp_path, pairs, monkeypatch):
    monkeypatch.setattr(module, "_SAMPLED", 1)
    model = load(write(tmp_path / "m"))
    one = dataclasses.replace(pairs, captions=tuple((x[0][:2],) for x in pairs.captions))
    mixed = dataclasses.replace(
        one, captions=tuple((x[0], y[0]) for x, y in zip(one.captions, pairs.captions, strict=True))
    )
    for given_pairs, num in ((one, 1), (mixed, 2)):
        batches = PairBatches(model, given_pairs, 16, seed=0)
        rows = [len(batches[step].text.tokens_RT) for step in range(12)]
        assert rows == sorted(rows) and len(set(rows)) >= num
        texts = [x for captions in given_pairs.captions for x in captions]
        wanted = model.tokenizer.encode([texts[i] for i in batches.draw(11)[1]])
        for found, tokens in zip(captions_in(batches[11]), wanted, strict=True):
            np.testing.assert_array_equal(found, tokens)


@pytest.mark.parametrize("room", [2**31, 3 * 12**2 * 2])
def test_photos_are_decoded_once_while_there_is_room(tmp_path, pairs, monkeypatch, room):
    monkeypatch.setattr(module, "_KEPT", room)
    model, read = load(write(tmp_path / "m")), []
    few = Pairs(pairs.photos[:4], pairs.captions[:4])
    batches, decode = PairBatches(model, few, 4, seed=0), type(model.processor).try_decode

    def counted(self, photo):
        read.append(photo)
        return decode(self, photo)

    monkeypatch.setattr(type(model.processor), "try_decode", counted)
    for step in range(3):
        photo_B, _ = batches.draw(step)
        wanted = model.processor.load([few.photos[i] for i in photo_B])
        del read[-4:]
        np.testing.assert_array_equal(batches[step].image_BHWC, wanted)
    assert len(read) == (4 if room > 10**6 else 4 + 2 + 2)


def with_broken(tmp_path, pairs, num):
    """Replace the first photos by files that are none."""
    broken = [tmp_path / f"broken{i}.png" for i in range(num)]
    for file in broken:
        file.write_bytes(b"no photo")
    return dataclasses.replace(pairs, photos=(*broken, *pairs.photos[num:]))


def test_batches_do_without_photos_that_cannot_be_read(tmp_path, pairs):
    model = load(write(tmp_path / "m"))
    few = Pairs(pairs.photos[:BATCH], pairs.captions[:BATCH])
    broken = with_broken(tmp_path, few, 1)
    batches = PairBatches(model, broken, BATCH, 0, 1)
    assert [batches[step].shown_B.sum() for step in range(2)] == [5, 5]
    with logged() as log:
        tune(model, broken, [2], max_corrupt=1)
    assert "skipped, as they cannot be read" in log.getvalue() and "broken0.png" in log.getvalue()
    with pytest.raises(InputError, match="is not a photo that can be read"):
        tune(model, broken, [2])
    with pytest.raises(InputError, match="1 photos of step 1 can be read"):
        tune(model, with_broken(tmp_path, few, 5), [2], max_corrupt=5)


def test_finetune_refuses_before_it_begins(tmp_path, pairs):
    def refused(model, pairs, message, **options):
        default: dict[str, Any] = {"steps": 3, "batch": 4, "lr": LR, "seed": 0, "at": [3]}
        with pytest.raises(InputError, match=message):
            finetune(model, pairs, **(default | options))

    model = load(write(tmp_path / "m"))
    refused(model, pairs, r"`batch` \(=1\)", batch=1)
    alone = pairs_of([Photos("Ada King", pairs.photos)], ["{0}"])
    refused(model, alone, r"different people or things \(=1\) must be at least 2")
    for architecture, lacks in (
        ("CLIPTextModelWithProjection", "no image encoder"),
        ("CLIPVisionModelWithProjection", "no text encoder"),
    ):
        path = write(tmp_path / architecture, architecture=architecture)
        refused(load(path), pairs, lacks)


def test_finetune_names_the_step_at_which_it_diverges(tmp_path, pairs):
    model = load(write(tmp_path / "m"))
    with pytest.raises(RunError, match=r"the (loss|gradient) is \w+ at step [2-9]; lower .*1e\+30"):
        tune(model, pairs, [0, 9], lr=1e30)
    tuned = finetune(model, pairs, steps=2, batch=BATCH, lr=1e30, seed=0, at=[1])
    with closing(tuned):
        assert next(tuned)[0] == 1  # its loss was that of the weights before
