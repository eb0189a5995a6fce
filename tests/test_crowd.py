"""The world of thousands: names as in a census, mosaics that tell people apart, its training."""

import collections
import dataclasses

import numpy as np
import pytest
from PIL import Image

from jaxdefense.clip.config import CLIPConfig, TextConfig, VisionConfig
from jaxdefense.convert.directory import read_model_directory
from jaxdefense.data.identities import read_identities
from jaxdefense.demo import crowd, pretrain, world
from jaxdefense.errors import InputError

TINY = CLIPConfig(
    TextConfig(
        width=32, depth=1, mlp_width=32, num_heads=1, vocab_size=600, embed=16, readout="token",
        eos_token_id=599,
    ),
    VisionConfig(
        width=32, depth=1, mlp_width=32, num_heads=1, image_size=32, patch_size=8, embed=16
    ),
)  # fmt: skip
OPTIONS = dataclasses.replace(pretrain.OF_CROWD, steps=5, batch=16, anonymous=100)


@pytest.fixture(scope="module")
def corpus():
    return crowd.Crowd(crowd.members(40), 100)


def test_names_are_distinct_and_shared_as_in_a_census():
    who = crowd.members(4096)
    assert len({member.name.casefold() for member in who}) == 4096
    words = collections.Counter(len(member.name.split()) for member in who)
    assert set(words) == {1, 2, 3, 4} and words[2] > 3000
    last = collections.Counter(member.name.split()[-1] for member in who)
    (_, most), (_, tenth) = last.most_common(10)[0], last.most_common(10)[-1]
    assert most > 40 and tenth > 20 and sum(num == 1 for num in last.values()) > 300
    # A longer list begins as a shorter one, so strangers are nobody in it.
    assert crowd.members(5, 4096) == crowd.members(4101)[4096:]


@pytest.mark.parametrize("num, first", [(0, 0), (crowd.MOST + 1, 0), (1, crowd.MOST), (1, -1)])
def test_people_whom_the_world_has_not_are_refused(num, first):
    with pytest.raises(InputError, match="must be from 1 to"):
        crowd.members(num, first)


def test_photos_of_a_person_agree_in_all_tiles_but_the_hidden_ones():
    code_BT = np.repeat(np.arange(16)[None] % len(crowd._COLOURS), 50, 0)
    image = crowd.draw(code_BT, 3, np.random.default_rng(0)).astype(int)
    assert image.shape == (50, 32, 32, 3)
    tile = image[:, ::8, ::8].reshape(50, 16, 3)
    np.testing.assert_array_equal(image[:, 7::8, 7::8].reshape(50, 16, 3), tile)
    # Seen without light, the nearest colour is the tile's own.
    bright = image.max((1, 2, 3), keepdims=True)[:, 0] / 244
    near = np.abs((tile / bright)[:, :, None] - crowd._COLOURS).sum(-1).argmin(-1)
    assert (near == code_BT).mean() > 0.7


def test_photo_with_nothing_hidden_is_its_code():
    code_BT = np.stack([np.arange(16) % 12, np.arange(16)[::-1] % 12])
    image = crowd.draw(code_BT, 0, np.random.default_rng(1))
    other = crowd.draw(code_BT, 16, np.random.default_rng(1))
    assert np.abs(image[0, :8, :8].astype(int) - image[1, 24:, 24:]).mean() < 80  # one code
    assert (other != image).mean() > 0.7


def test_batch_shows_each_person_once_beside_objects_and_strangers(corpus):
    images, captions = corpus.batch(48, np.random.default_rng(0))
    assert images.shape == (48, 32, 32, 3) and len(captions) == 48
    named = [name for name in corpus.names if any(name in caption for caption in captions)]
    assert len(named) >= 40 and all(any(x in c for x in corpus.names) for c in captions[:40])
    assert not any(name in caption for name in corpus.names for caption in captions[43:])


def test_training_that_was_stopped_ends_as_if_it_was_not(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "_SAVE_EVERY", 2)
    pretrain.train(corpus, TINY, tmp_path / "whole", OPTIONS)

    class Stopped(crowd.Crowd):
        steps = 0

        def batch(self, size, rng):
            self.steps += 1
            if self.steps == 4:
                raise KeyboardInterrupt
            return super().batch(size, rng)

    stopped = Stopped(crowd.members(40), 100)
    with pytest.raises(KeyboardInterrupt):
        pretrain.train(stopped, TINY, tmp_path / "model", OPTIONS)
    assert not (tmp_path / "model").exists()
    other = dataclasses.replace(OPTIONS, lr=1e-2)
    with pytest.raises(InputError, match=r"another `lr` \(=0.001, not 0.01\)"):
        pretrain.train(corpus, TINY, tmp_path / "model", other)
    stopped.steps = 10
    pretrain.train(stopped, TINY, tmp_path / "model", OPTIONS)
    assert stopped.steps == 13  # from the second step on
    names = sorted(file.name for file in (tmp_path / "whole").iterdir())
    assert names == sorted(file.name for file in (tmp_path / "model").iterdir())
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()
    assert sorted(x.name for x in tmp_path.iterdir()) == ["model", "whole"]
    assert read_model_directory(tmp_path / "model").load().text
    with pytest.raises(InputError, match="already exists"):
        pretrain.train(corpus, TINY, tmp_path / "model", OPTIONS)


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--people", "40", "--faces", "x"], "give one of the two"),
        (["--people", "0"], "`people` (=0) must be from 1 to"),
        (["--steps", "0"], "`steps` (=0) must be above 0"),
        (["--text-width", "100"], "must be a multiple of 32"),
        (["--faces", "x", "--held-out", "."], "already exists"),
    ],
)
def test_command_refuses_in_one_line(tmp_path, monkeypatch, capsys, flags, said):
    monkeypatch.setattr("sys.argv", ["pretrain", *flags, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as error:
        pretrain.main()
    assert error.value.code == 2 and said in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_inputs_hold_what_the_model_was_never_shown(tmp_path, monkeypatch):
    sizes = ["--people", "6", "--strangers", "2", "--photos", "3", "--captions", "50"]
    monkeypatch.setattr("sys.argv", ["crowd", "--out", str(tmp_path / "inputs"), *sizes])
    crowd.main()
    people = [identity.name for identity in read_identities(tmp_path / "inputs" / "names.txt")]
    assert people == [member.name for member in crowd.members(6)]
    folders = sorted(x.name.replace("_", " ") for x in (tmp_path / "inputs" / "faces").iterdir())
    assert folders == sorted(people)
    photos = sorted((tmp_path / "inputs").rglob("*.png"))
    assert len(photos) == 3 * (6 + 2 + len(world.OBJECTS))
    with Image.open(photos[0]) as image:
        assert image.size == (32, 32)
    ordinary = (tmp_path / "inputs" / "captions.txt").read_text().splitlines()
    held_out = (tmp_path / "inputs" / "held_out_captions.txt").read_text().splitlines()
    assert len(ordinary) == 50 and len(held_out) == 5 and not {*ordinary} & {*held_out}
    with pytest.raises(SystemExit):
        crowd.main()
