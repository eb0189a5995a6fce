"""FaceScrub: its layouts, and faces paired with the whole photos that they are cut from."""

import json

import pytest
from factories import write_result
from test_people import ACTORS, error_of, facescrub, put

from jaxdefense.data.people import read_people, split_photos
from jaxdefense.data.sources import photo_digest
from jaxdefense.idia.inputs import _unseen
from jaxdefense.results import ImageDefenseSummary

__all__ = ["facescrub"]  # a fixture
HALVES = {"actors": "Al_Pacino", "actresses": "Zoe_B"}


@pytest.fixture(params=["{half}/{kind}", "{one}_{kind}"])
def published(request, tmp_path):
    """FaceScrub as its downloader leaves it, and as copies have it: 4 photos, 5 faces a person."""
    root = tmp_path / "facescrub"
    for half, name in HALVES.items():
        one = half.removesuffix("s") if half == "actors" else "actress"
        faces, images = (
            request.param.format(half=half, one=one, kind=x) for x in ("faces", "images")
        )
        put(root, *(f"{faces}/{name}/{name}_{i}_{10 + i}.jpeg" for i in range(4)))
        put(root, f"{faces}/{name}/{name}_0_19.jpeg")
        put(root, *(f"{images}/{name}/{name}_{i}.png" for i in range(4)))
    return root


def trained(root, people):
    """A run that trained on people's photos."""
    run = write_result(root / "run", ImageDefenseSummary, {}, {})
    found = {x.name: {photo_digest(p): str(p) for p in x.files} for x in people}
    (run / "trained_on.json").write_text(json.dumps(found))
    return run


def numbers(person):
    """The photos that files of a person show, by their numbers."""
    return {str(photo).rpartition("/")[2].split(".")[0].split("_")[2] for photo in person.files}


def skipped(people, run) -> list:
    return _unseen(people, run, lambda line: None)[0]


def test_both_halves_are_one_set_of_people_in_either_layout(published):
    assert [x.name for x in read_people(str(published))] == ["Al Pacino", "Zoe B"]
    for whole, num in ((False, 5), (True, 4)):
        people = read_people(str(published), whole_photos=whole)
        assert [len(x.files) for x in people] == [num, num]
        assert all(("images" in str(p)) == whole for x in people for p in x.files)


@pytest.mark.parametrize("seed", range(4))
def test_no_photo_is_on_both_sides(published, tmp_path, seed):
    crops, _ = split_photos(read_people(str(published)), 0.5, seed)
    attacked = skipped(read_people(str(published), whole_photos=True), trained(tmp_path, crops))
    assert len(attacked) == 2
    for ours, theirs in zip(crops, attacked, strict=True):
        assert numbers(ours) and numbers(theirs)
        assert numbers(ours) | numbers(theirs) == {"0", "1", "2", "3"}
        assert not numbers(ours) & numbers(theirs)


def test_faces_of_one_photo_stay_together(published):
    for seed in range(8):
        crops, left = split_photos(read_people(str(published)), 0.5, seed)
        for ours, theirs in zip(crops, left, strict=True):
            assert not numbers(ours) & numbers(theirs)


def test_photos_called_as_their_faces_are_skipped_too(tmp_path):
    put(tmp_path, *(f"actors/{kind}/A_B/{i}.jpeg" for kind in ("faces", "images") for i in "12"))
    people = read_people(str(tmp_path))
    run = trained(tmp_path, [type(people[0])("A B", people[0].files[:1])])
    (person,) = skipped(read_people(str(tmp_path), whole_photos=True), run)
    assert [str(x).rpartition("/")[2] for x in person.files] == ["2.jpeg"]


def test_names_that_do_not_pair_are_refused(facescrub, tmp_path):
    run = trained(tmp_path, read_people(str(facescrub)))
    message = error_of(skipped, read_people(str(facescrub), whole_photos=True), run)
    assert "no whole photo of 'Al Pacino'" in message and "NAME_12_34.jpeg" in message


def test_faces_trained_on_from_a_folder_of_any_name_are_skipped(published, tmp_path):
    whole = read_people(str(published), whole_photos=True)
    faces = [f"subset/Al_Pacino/Al_Pacino_{i}_{10 + i}.jpeg" for i in range(3)]
    put(tmp_path, *faces)
    run = trained(tmp_path, read_people(str(tmp_path / "subset")))
    al, zoe = skipped(whole, run)
    assert numbers(al) == {"3"} and len(zoe.files) == 4
    put(tmp_path, "more/Zoe_B/face.jpeg")
    both = [*read_people(str(tmp_path / "subset")), *read_people(str(tmp_path / "more"))]
    message = error_of(skipped, whole, trained(tmp_path, both))
    assert "no whole photo of 'Zoe B'" in message
    put(tmp_path, "strange/Someone/Al_Pacino_1_11.jpeg")
    run = trained(tmp_path, read_people(str(tmp_path / "strange")))
    assert "no whole photo of anybody" in error_of(skipped, whole, run)


def test_whole_photos_in_folders_of_a_person_are_told_too(tmp_path):
    put(tmp_path, "actors/images/A_B/old/A_B_1.jpeg", "actors/images/A_B/A_B_2.jpeg")
    put(tmp_path, "faces/A_B/A_B_1_7.jpeg")
    run = trained(tmp_path, read_people(str(tmp_path / "faces")))
    (person,) = skipped(read_people(str(tmp_path), whole_photos=True), run)
    assert numbers(person) == {"2"}


def test_other_folders_are_told_by_content_alone(tmp_path):
    put(tmp_path, "train/A_B/1.png", "attack/A_B/1.png", "attack/A_B/2.png")
    run = trained(tmp_path, read_people(str(tmp_path / "train")))
    (person,) = skipped(read_people(str(tmp_path / "attack")), run)
    assert len(person.files) == 2


@pytest.mark.parametrize("part", ["", "actors/faces", "other"])
def test_whole_photos_must_be_there(facescrub, part):
    put(facescrub, "other/A_B/1.png")
    (facescrub / "actresses/images").rename(facescrub / "away")
    message = error_of(lambda: read_people(str(facescrub / part), whole_photos=True))
    assert "lacks whole photos" in message and "actors/images/NAME" in message
    names = [x.name for x in read_people(str(facescrub / "actors/images"), whole_photos=True)]
    assert names == ACTORS
