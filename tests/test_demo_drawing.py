"""The demo's drawings: the same seed gives the same photo, and who or what it is shows."""

import dataclasses
from functools import partial

import numpy as np
import pytest
from PIL import Image

from jaxdefense.demo import objects, people, portrait


def _photos(person, seeds, size=48):
    return np.stack([portrait.draw_person(person, np.random.default_rng(s), size) for s in seeds])


def _shrink(image_HWC, size):
    return np.asarray(Image.fromarray(image_HWC).resize((size, size), Image.Resampling.BOX))


def _nearest_centroid_accuracy(image_groups):
    """Returns how often a photo's nearest class mean, of other photos, is its own class's."""
    features = np.stack(
        [[_shrink(image, 16).ravel() / 255.0 for image in group] for group in image_groups]
    )
    half = features.shape[1] // 2
    centroids = features[:, :half].mean(1)
    distances = ((features[:, half:, None] - centroids) ** 2).sum(-1)
    return (distances.argmin(-1) == np.arange(len(image_groups))[:, None]).mean()


def test_draw_person_same_seed_same_photo():
    person = people.cast(1, seed=3)[0]
    first, again, other = _photos(person, [[5, 1], [5, 1], [5, 2]])
    assert first.shape == (48, 48, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 5


def test_draw_object_same_seed_same_photo():
    first, again, other = (
        objects.draw_object("cup", np.random.default_rng(seed)) for seed in (4, 4, 5)
    )
    assert first.shape == (48, 48, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 5


@pytest.mark.parametrize("seed", range(6))
def test_drawings_other_size_same_photo(seed):
    person = people.cast(6, seed=1)[seed]
    name = objects.OBJECTS[seed]
    for draw in (partial(portrait.draw_person, person), partial(objects.draw_object, name)):
        small = draw(np.random.default_rng(seed), 48).astype(float)
        large = _shrink(draw(np.random.default_rng(seed), 144), 48).astype(float)
        other = draw(np.random.default_rng(seed + 100), 48).astype(float)
        assert np.abs(small - large).mean() < 6  # noise differs, nothing else
        assert np.abs(small - other).mean() > 12


def test_drawing_takes_as_much_of_the_rng_at_every_size():
    person = people.cast(2, seed=0)[1]
    for draw in (partial(portrait.draw_person, person), partial(objects.draw_object, "bus")):
        after = []
        for size in (32, 96):
            rng = np.random.default_rng(9)
            draw(rng, size)
            after.append(rng.random())
        assert after[0] == after[1]


def test_cast_is_deterministic_and_a_prefix_of_a_longer_one():
    longer = people.cast(9, seed=2)
    assert people.cast(5, seed=2) == longer[:5]
    assert people.cast(5, seed=4) != longer[:5]
    assert [person.sex for person in longer[:4]] == ["female", "male", "female", "male"]


def test_cast_has_no_look_alikes():
    chosen = people.cast(40, seed=0) + people.cast(10, seed=1)
    assert len(set(chosen)) == 50
    portraits = np.stack([_photos(person, [7])[0] for person in chosen]).astype(float)
    gaps = np.abs(portraits[:, None] - portraits[None]).mean((-1, -2, -3))
    assert gaps[~np.eye(50, dtype=bool)].min() > 4


def test_people_are_told_apart_from_photos():
    groups = [
        _photos(person, [[index, photo] for photo in range(16)])
        for index, person in enumerate(people.cast(12, seed=5))
    ]
    assert _nearest_centroid_accuracy(groups) > 4 / 12


def test_objects_are_told_apart_from_photos():
    groups = [
        [objects.draw_object(name, np.random.default_rng([index, photo])) for photo in range(16)]
        for index, name in enumerate(objects.OBJECTS[:12])
    ]
    assert _nearest_centroid_accuracy(groups) > 2 / 12


def test_describe_says_what_shows():
    for person in people.cast(150, seed=6):
        text = person.describe()
        words = text.split()
        assert text == text.lower() and 3 <= len(words) <= 9, text
        assert words[0] == ("woman" if person.sex == "female" else "man")
        assert ("glasses" in text) == (person.glasses != "none")
        if person.headwear in ("headscarf", "turban"):
            assert f"{person.headwear_colour} {person.headwear}" in text
        else:
            assert ("bald head" in text) == (person.hair_style == "bald")
            assert person.hair_style == "bald" or person.hair_colour in words
        if "beard" in words:
            assert person.beard in ("full", "long")
        for word in ("freckles", "mole", "scar"):
            assert word not in words or person.mark == word
        for word in ("hoop", "stud", "drop"):
            assert word not in words or person.earrings == word


def test_glasses_show():
    person = dataclasses.replace(people.cast(1, seed=0)[0], glasses="none", headwear="none")
    bare = _photos(person, [1, 2, 3]).astype(float)
    worn = _photos(dataclasses.replace(person, glasses="round"), [1, 2, 3]).astype(float)
    assert (np.abs(bare - worn).max((1, 2, 3)) > 60).all()


def test_every_object_and_every_trait_draws():
    assert len(objects.OBJECTS) == len(set(objects.OBJECTS)) == 24
    for name in objects.OBJECTS:
        assert objects.draw_object(name, np.random.default_rng(0), 24).std() > 8
    for person in people.cast(80, seed=8):
        assert portrait.draw_person(person, np.random.default_rng(0), 24).std() > 8


def test_draw_object_raises_for_unknown_name():
    with pytest.raises(ValueError, match="unicorn"):
        objects.draw_object("unicorn", np.random.default_rng(0))
