"""Who must stay: names like those removed, people of all kinds, and each as often as another."""

from collections import Counter

import numpy as np
import pytest
from factories import write_faces, write_photos
from hypothesis import given
from hypothesis import strategies as st

from jaxdefense.config import (
    DefendImageConfig,
    ImageDataConfig,
    ImageTrainConfig,
    ModelConfig,
    TextDataConfig,
    TextTrainConfig,
    ValidateConfig,
)
from jaxdefense.data.identities import Identity
from jaxdefense.data.names import census, crossings, namesakes, random_names
from jaxdefense.data.people import read_faces, read_people
from jaxdefense.data.sampling import evened
from jaxdefense.defense import people as people_defense
from jaxdefense.defense import text as text_defense
from jaxdefense.defense.text import kept_names
from jaxdefense.errors import InputError
from jaxdefense.words import folded_words

# Each group as often


@given(st.lists(st.integers(0, 9) | st.integers(0, 3000), max_size=6))
def test_groups_come_up_each_as_often_and_nothing_is_lost(sizes):
    groups = [[(i, j) for j in range(size)] for i, size in enumerate(sizes)]
    found = Counter(evened(groups))
    assert found.keys() == {x for group in groups for x in group}
    for group in groups:
        times = [found[x] for x in group]
        assert sum(times) == (max(sizes) if group else 0)
        assert not times or max(times) - min(times) <= 1  # those of a group each as often


def test_groups_of_other_sizes_by_hand():
    assert evened([]) == [] and evened([[], []]) == []
    assert evened([["a", "b"], [], ["c"]]) == ["a", "b", "c", "c"]
    assert evened([(1, 2, 3), (4, 5, 6, 7, 8)]) == [1, 2, 3, 1, 2, 4, 5, 6, 7, 8]


# Namesakes


@pytest.mark.parametrize("name", ["James Smith", "Zoë Ñu", "Ann Lee Jones", "james SMITH"])
@pytest.mark.parametrize("num", [4, 64])
def test_namesakes_share_the_first_or_the_last_word(name, num):
    found = namesakes(name, num, 3)
    assert len(found) == num == len(set(found))
    first, last = name.split()[0], name.split()[-1]
    shared = Counter()
    for other in found:
        one, *_, two = other.split()
        assert len(other.split()) == 2 and (one == first) != (two == last)
        assert two in census("last") or one in {*census("female"), *census("male")}
        shared[one == first] += 1
    assert abs(shared[True] - shared[False]) <= max(1, num // 8)  # each about as often


def test_namesakes_are_a_function_of_name_and_seed():
    assert namesakes("Ann Lee", 9, 0) == namesakes("Ann Lee", 9, 0)
    assert namesakes("Ann Lee", 9, 0) == namesakes("Ann Lee", 64, 0)[:9]
    assert namesakes("Ann Lee", 9, 0) != namesakes("Ann Lee", 9, 1)
    firsts = [
        {x.split()[-1] for x in namesakes(name, 64, 0) if x.startswith("Ann ")}
        for name in ("Ann Lee", "Ann Fox")
    ]
    assert firsts[0] != firsts[1]  # other people have others


def test_no_namesake_is_excluded_and_of_one_word_there_are_none():
    assert namesakes("Zoe", 9, 0) == [] == namesakes("", 9, 0)
    many = namesakes("Ann Lee", 64, 0)
    exclude = [many[0].upper(), f"  {many[1].lower()} ", many[2]]
    found = namesakes("Ann Lee", 64, 0, exclude)
    out = {folded_words(x) for x in exclude}
    assert not out & {folded_words(x) for x in found}
    assert len(found) == 64 and found[:5] == many[3:8]
    assert "Ann Lee" not in namesakes("Ann Lee", 3000, 0)


def test_namesakes_of_many_words_are_not_the_same_person_shortened():
    # Both words at once would be the person themselves, without their middle name.
    assert "James Smith" not in namesakes("James Quincy Smith", 3000, 0)


# Crossings


def test_crossings_have_the_words_of_two_people():
    names = ["Ann Lee", "Bo Quincy Fox", "Zoe", "Una Ek"]
    all_of_them = {"Ann Fox", "Ann Ek", "Bo Lee", "Bo Ek", "Una Lee", "Una Fox"}
    found = crossings(names, 99, 0)
    assert {*found} == all_of_them and len(found) == 6
    assert {*crossings(names, 99, 0, ["BO LEE", "Una Maria Fox"])} == all_of_them - {
        "Bo Lee",
        "Una Fox",  # a listed person without their middle name
    }
    assert crossings(names, 2, 0) == crossings(names, 2, 0)
    assert crossings(["Zoe", "Ann Lee", ""], 9, 0) == [] == crossings([], 9, 0)
    # What namesakes have crossed may be one of them, or the same again.
    assert crossings(["Ann Lee", "Ann Fox", "Bo Lee", "ann lee"], 9, 0) == ["Bo Fox"]


@pytest.mark.parametrize(
    "names, crossed",
    [
        (["Ann-Marie Lee", "Bo O'Neil"], ["Ann-Marie O'Neil", "Bo Lee"]),
        (["Kim Min-jun", "Lee Ann"], ["Kim Ann", "Lee Min-jun"]),
        (["王 小明", "李 大伟"], ["李 小明", "王 大伟"]),
        (["김 민준", "박 서연"], ["김 서연", "박 민준"]),
        (["Éva Kis", "eva NAGY", "Bo Ek"], ["Éva Ek", "Bo Kis", "Bo NAGY"]),
    ],
)
def test_nobody_listed_is_a_crossing_in_any_script(names, crossed):
    found = crossings(names, 99, 0)
    assert len(found) == len(crossed)
    assert {*map(folded_words, found)} == {*map(folded_words, crossed)}


@given(st.integers(2, 300), st.integers(0, 400), st.integers(0, 9))
def test_crossings_are_as_many_as_asked_none_listed(num_names, num, seed):
    names = random_names(num_names, 3)
    found = crossings(names, num, seed)
    first, last = ({name.split()[i] for name in names} for i in (0, 1))
    assert all({*x.split()[:1]} <= first and {*x.split()[1:]} <= last for x in found)
    assert len({*found}) == len(found) <= num and not {*found} & {*names}
    if 20 * num < num_names**2:
        assert len(found) == num  # so few are excluded or drawn twice


@pytest.mark.parametrize("num, kept_too", [(2, False), (71, False), (72, True)])
def test_crossings_are_kept_of_many_people(num, kept_too):
    names = [f"{first} {last}" for first, last in zip(census("male"), census("last"), strict=False)]
    names = names[:num]
    groups, _ = kept([Identity(name) for name in names], names, every=0)
    crossed = {*crossings(names, 10_000, 0)}
    assert len(crossed) == num * (num - 1) and len(groups) == 2 + kept_too
    assert ({*groups[1]} == crossed) is kept_too


# Names that stay


def kept(who, listed, num_name=8, keep="", part=0.125, every=50):
    data = TextDataConfig("names.txt", "captions.txt", keep_names=keep)
    validate = ValidateConfig(every=every, kept=part)
    t = TextTrainConfig(num_name=num_name, w_name=float(num_name > 0), validate=validate)
    return kept_names(who, listed, data, t)


WHO = [Identity("Ann Lee", ("A. Lee",)), Identity("Bo Fox"), Identity("Zoe")]
LISTED = ["Ann Lee", "A. Lee", "Bo Fox", "Zoe"]


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(text_defense, "_NUM_KEPT_NAMES", 120)
    monkeypatch.setattr(text_defense, "_LEAST_CROSSINGS", 1)


def test_kept_names_are_namesakes_random_ones_and_the_users_own(few, tmp_path):
    (tmp_path / "keep.txt").write_text("Una Ek\nMax Or\tMaximilian Or\n# none\nKim\n")
    asked: dict = {"keep": str(tmp_path / "keep.txt"), "part": 0.5}
    (alike, crossed, rest, own), held = kept(WHO, LISTED, **asked)
    each = 120 // 3
    of_kinds = [
        [x for name in ("Ann Lee", "Bo Fox") for x in namesakes(name, each, 0, LISTED)],
        ["Ann Fox", "Bo Lee"],
        random_names(120, 2**34, exclude=LISTED),
        ["Una Ek", "Max Or", "Maximilian Or", "Kim"],
    ]
    groups = [alike, crossed, rest, own]
    for group, whole in zip(groups, of_kinds, strict=True):
        assert {*group} < {*whole} and not {*group} & {*held}
        assert {*whole} - {*group} <= {*held}
        assert len(whole) - len(group) == len({*held} & {*whole}) == min(len(whole) // 2, 64)
    assert len(held) == 40 + 1 + 60 + 2
    assert not {*map(folded_words, LISTED)} & {folded_words(x) for group in groups for x in group}
    assert kept(WHO, LISTED, **asked) == (groups, held)


def test_kept_names_are_all_trained_on_without_validation(few):
    groups, held = kept(WHO, LISTED, every=0)
    assert [len(group) for group in groups] == [80, 2, 120] and held == []
    assert kept(WHO, LISTED, num_name=0) == ([], [])
    alone, _ = kept([Identity("Zoe")], ["Zoe"])
    assert len(alone) == 1  # of one word there are no namesakes


def test_namesakes_of_many_people_are_those_of_some(few, monkeypatch):
    monkeypatch.setattr(text_defense, "_MOST_NAMESAKES", 80)
    names = random_names(60, 7)
    (alike, crossed, _), _ = kept([Identity(name) for name in names], names, every=0)
    assert 70 < len(alike) <= 80  # four each of twenty, some of whom may share one
    shared = {word for name in alike for word in name.split()}
    of_whom = [name for name in names if set(name.split()) & shared]
    assert len(of_whom) < 60
    assert len(crossed) == 120  # of everybody
    assert len({x.split()[0] for x in crossed}) > 40
    assert kept([Identity(name) for name in names], names, every=0)[0][:2] == [alike, crossed]


def test_name_to_validate_on_is_trained_on_in_no_group(few, tmp_path):
    # The user may name people who come up among the others too.
    (tmp_path / "keep.txt").write_text("\n".join(random_names(40, 2**34, exclude=LISTED)))
    groups, held = kept(WHO, LISTED, keep=str(tmp_path / "keep.txt"), part=0.5)
    assert not {*held} & {name for group in groups for name in group}


def test_name_that_is_kept_and_removed_is_refused(few, tmp_path):
    path = tmp_path / "keep.txt"
    path.write_text("Una Ek\na. LEE\n")
    with pytest.raises(InputError, match="keeps 'a. LEE', which is to be removed"):
        kept(WHO, LISTED, keep=str(path))
    with pytest.raises(InputError, match="train.num_name"):
        kept(WHO, LISTED, num_name=0, keep=str(path))


# Faces that stay


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos")
    write_faces(path / "people", ["Ann Lee", "Bo Fox", "Una Ek"], 3)
    write_photos(path / "flat", 5)
    (path / "flat" / ".cache").mkdir()
    return path


def test_photos_without_folders_are_a_person_each(photos):
    found = read_faces(str(photos / "flat"), "", "keep")
    assert [person.name for person in found] == [""] * 5
    assert [len(person.files) for person in found] == [1] * 5
    names = sorted(str(person.files[0]) for person in found)
    assert names == sorted(map(str, (photos / "flat").glob("*.png")))


def test_folders_are_people(photos):
    found = read_faces(str(photos / "people"), "", "keep")
    assert found == read_people(str(photos / "people"))
    assert [(x.name, len(x.files)) for x in found] == [("Ann Lee", 3), ("Bo Fox", 3), ("Una Ek", 3)]


@pytest.mark.parametrize("make", [False, True])
def test_directory_without_faces_is_refused_in_one_line(tmp_path, make):
    if make:
        (tmp_path / "gone").mkdir()
    with pytest.raises(InputError) as caught:
        read_faces(str(tmp_path / "gone"), "", "keep")
    assert str(tmp_path / "gone") in str(caught.value) and "\n" not in str(caught.value)
    assert ("no photo" if make else "not exist") in str(caught.value)


def kept_people(photos, listed, keep="", num_keep=8):
    cfg = DefendImageConfig(
        "out",
        ModelConfig("model"),
        ImageDataConfig(str(photos / "people"), "images", keep=keep),
        ImageTrainConfig(200, num_keep=num_keep, w_keep=float(num_keep > 0)),
    )
    said = []
    people = read_people(str(photos / "people"))
    groups = people_defense.kept_people(cfg, people, listed, {}, said.append)
    return groups, [line for line in said if "hidden" not in line]


def names_of(groups):
    return [[person.name for person in group] for group in groups]


def test_people_who_stay_are_those_not_listed_by_any_name(photos):
    listed = [Identity("Ann Leigh", ("ann LEE",))]
    groups, said = kept_people(photos, listed)
    assert names_of(groups) == [["Bo Fox", "Una Ek"]] and not said
    groups, said = kept_people(photos, listed, keep=str(photos / "flat"))
    assert names_of(groups) == [["Bo Fox", "Una Ek"], [""] * 5] and not said
    groups, said = kept_people(photos, listed, keep=str(photos / "people"))
    assert names_of(groups) == [["Bo Fox", "Una Ek"]] * 2
    assert len(said) == 1 and "1 left out" in said[0]
    everyone = [Identity(name) for name in ("Ann Lee", "Bo Fox", "Una Ek")]
    groups, _ = kept_people(photos, everyone, keep=str(photos / "flat"))
    assert names_of(groups) == [[""] * 5]
    assert kept_people(photos, everyone, num_keep=0)[0] == []


def test_nobody_to_keep_is_refused(photos):
    everyone = [Identity(name) for name in ("Ann Lee", "Bo Fox", "Una Ek")]
    for keep in ("", str(photos / "people")):
        with pytest.raises(InputError, match="nobody else.*data.keep.*train.num_keep"):
            kept_people(photos, everyone, keep=keep)
    with pytest.raises(InputError, match="data.keep.*train.num_keep"):
        kept_people(photos, everyone, keep=str(photos / "flat"), num_keep=0)


def test_evened_people_of_each_kind_are_drawn_as_often(photos):
    groups, _ = kept_people(photos, [Identity("Ann Lee")], keep=str(photos / "flat"))
    counts = Counter(person.name == "" for person in evened(groups))
    assert counts == {True: 5, False: 5}
    assert np.ptp(list(counts.values())) <= min(counts.values())
