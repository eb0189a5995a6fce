"""Arrays kept on disk: given back whole, or not at all."""

import hashlib

import numpy as np
import pytest
from factories import logged, write_model_directory
from safetensors.numpy import load_file, save_file

from jaxdefense import cache as caches
from jaxdefense.cache import OFF, ArrayCache
from jaxdefense.config import ModelConfig
from jaxdefense.evals import embed
from jaxdefense.evals.embed import Embedder

TEXTS = ["Joe Cool", "a photo of Zoe", "a man named Bob"]


def test_what_was_put_in_comes_back(tmp_path):
    x = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    cache = ArrayCache(str(tmp_path / "cache"))
    assert cache.get("a") is None
    cache.put("a", x)
    found = ArrayCache(str(tmp_path / "cache")).get("a")
    np.testing.assert_array_equal(found, x)
    assert found is not None and found.dtype == np.float32
    assert cache.get("b") is None
    assert [file.name for file in (tmp_path / "cache").iterdir()] == ["a.npy"]
    np.testing.assert_array_equal(np.load(tmp_path / "cache" / "a.npy"), x)  # for others to read


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[:10],
        lambda data: data[:-40] + b"\1" + data[-39:],
        lambda data: data + b"\0",
    ],
)
def test_a_damaged_file_is_as_good_as_none(tmp_path, damage):
    cache = ArrayCache(str(tmp_path))
    x = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
    cache.put("a", x)
    file = tmp_path / "a.npy"
    file.write_bytes(damage(file.read_bytes()))
    assert cache.get("a") is None
    cache.put("a", x)
    np.testing.assert_array_equal(cache.get("a"), x)


def test_switched_off_it_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = ArrayCache(OFF)
    cache.put("a", np.ones(3))
    assert not cache.on and cache.get("a") is None and not list(tmp_path.iterdir())
    cache = ArrayCache("")
    cache.put("a", np.ones(3))
    assert (tmp_path / "jaxdefense" / "a.npy").exists()


def test_a_directory_that_cannot_be_written_is_said_once(tmp_path):
    (tmp_path / "file").write_text("")
    cache = ArrayCache(str(tmp_path / "file"))
    with logged() as said:
        for _ in range(2):
            cache.put("a", np.ones(3))
    assert said.getvalue().count("not cached") == 1 and not cache.on


def test_the_default_directory_takes_so_much_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(caches, "_ROOM", 2 * (128 + 400 + hashlib.sha256().digest_size))
    for directory, kept in (("", 2), (str(tmp_path / "given"), 3)):
        cache = ArrayCache(directory)
        for key in "abc":
            cache.put(key, np.ones(100, np.float32))
        path = tmp_path / "given" if directory else tmp_path / "jaxdefense"
        assert len(list(path.iterdir())) == kept


# Embeddings


@pytest.fixture
def count(monkeypatch):
    """Numbers of calls of the two encoders."""
    calls = {"text": 0, "image": 0}

    def counted(which, run):
        def call(*args):
            calls[which] += 1
            return run(*args)

        return call

    for which in calls:
        name = f"_embed_{which}"
        monkeypatch.setattr(embed, name, counted(which, getattr(embed, name)))
    return calls


def embedder(tmp_path, model="model", **change):
    cfg = ModelConfig(str(tmp_path / model), **change)
    return Embedder(cfg, 8, cache=ArrayCache(str(tmp_path / "cache")))


def test_texts_are_embedded_once_for_models_with_one_text_encoder(tmp_path, count):
    write_model_directory(tmp_path / "model")
    write_model_directory(tmp_path / "other", seed=1)
    # The same text encoder in another model: as a defense of the image encoder leaves it.
    write_model_directory(tmp_path / "faces")
    file = tmp_path / "faces" / "model.safetensors"
    tensors = load_file(file)
    tensors["visual_projection.weight"] += 1
    save_file(tensors, file)
    want = embedder(tmp_path).texts(TEXTS)
    assert count["text"] == 1
    for same in (embedder(tmp_path), embedder(tmp_path, "faces")):
        np.testing.assert_array_equal(same.texts(TEXTS), want)
    assert count["text"] == 1
    assert np.abs(embedder(tmp_path, "other").texts(TEXTS) - want).max() > 1e-2
    embedder(tmp_path, dtype="bfloat16").texts(TEXTS)
    embedder(tmp_path).texts(TEXTS[::-1])
    for ends in ((2, 5), (3, 5)):  # the same tokens, parted otherwise
        embedder(tmp_path).tokens(np.split(np.arange(7, dtype=np.int32), ends))
    assert count["text"] == 6
    Embedder(ModelConfig(str(tmp_path / "model")), 8).texts(TEXTS)
    assert count["text"] == 7


def test_photos_are_embedded_once_for_models_with_one_image_encoder(tmp_path, count):
    from test_idia import write_faces

    write_faces(tmp_path / "faces")
    write_model_directory(tmp_path / "model")
    write_model_directory(tmp_path / "names")
    file = tmp_path / "names" / "model.safetensors"
    tensors = load_file(file)
    tensors["text_projection.weight"] += 1
    save_file(tensors, file)
    files = sorted((tmp_path / "faces").rglob("*.png"))
    want = embedder(tmp_path).photos(files)
    np.testing.assert_array_equal(embedder(tmp_path, "names").photos(files), want)
    assert count["image"] == 1
    files[0].write_bytes(files[1].read_bytes())
    assert np.abs(embedder(tmp_path).photos(files)[0] - want[0]).max() > 1e-4
    assert count["image"] == 2
    files[0].write_bytes(b"broken")
    with pytest.raises(ValueError, match="is not a photo"):
        embedder(tmp_path).photos(files)
    _, read = embedder(tmp_path).readable_photos(files, 1)
    assert read.tolist() == [False, True, True, True, True, True]
    # Those not read are not kept: a photo may yet be put right.
    _, read = embedder(tmp_path).readable_photos(files, 1)
    assert count["image"] == 4 and not read[0]


def test_embeddings_of_encoders_that_are_not_named_are_not_kept(tmp_path, tiny_dir, monkeypatch):
    cfg, calls = ModelConfig(str(tiny_dir())), []
    digest = Embedder(cfg, 4).digest("text")
    embed_text = embed._embed_text
    monkeypatch.setattr(embed, "_embed_text", lambda *x: calls.append(1) or embed_text(*x))
    for encoders, num in (({"another"}, 2), ({"another", digest}, 1)):
        calls.clear()
        for _ in range(2):
            cache = ArrayCache(str(tmp_path / "cache"), encoders)
            Embedder(cfg, 4, cache=cache).texts(TEXTS)
        assert len(calls) == num
