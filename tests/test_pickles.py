"""Models that torch pickled: read from a copy, named as the user did, and not written into."""

import dataclasses
import shutil
from pathlib import Path

import pytest
from factories import write_model_directory
from reference import torch
from test_cli import assert_refused
from test_hub import pickled, settings

from jaxdefense.cli import main
from jaxdefense.convert.directory import read_model_directory
from jaxdefense.defense.plan import read_undefended
from jaxdefense.errors import InputError
from jaxdefense.ledger.entries import LEDGER

pytestmark = pytest.mark.torch
INSIDE = "lies in the model directory"


def run(*args):
    return main(list(map(str, args)))


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A model of one pickle, `old`, and the same as safetensors, `new`."""
    monkeypatch.chdir(tmp_path)
    write_model_directory(tmp_path / "new")
    shutil.copytree("new", "old")
    pickled(Path("old"))
    return Path("old")


@pytest.mark.parametrize(
    "args",
    [
        ("convert", "old", "old/made", "--to", "openclip"),
        ("convert", "old", "old/made", "--to", "orbax"),
        ("merge", "--text", "old", "--image", "new", "--out", "old/made"),
        ("merge", "--text", "new", "--image", "old", "--out", "old/made"),
        ("delta", "old", "--model", "new", "--out", "old/made.safetensors"),
        ("delta", "new", "--model", "old", "--out", "old/made.safetensors"),
    ],
    ids=" ".join,
)
def test_nothing_is_written_into_a_model_that_was_copied(old, capsys, args):
    assert_refused(capsys, run(*args), INSIDE)
    assert sorted(old.glob("made*")) == []


def test_no_run_begins_in_a_model_that_was_copied(old):
    with pytest.raises(InputError, match=INSIDE):
        read_undefended(dataclasses.replace(settings("old"), out="old/run"))


def test_neither_the_copy_nor_what_it_was_made_of_takes_an_output(old):
    directory = read_model_directory(old)
    for place in (directory.path, old):
        with pytest.raises(InputError, match=INSIDE):
            directory.check_outside(place / "made")


def test_shards_that_are_missing_are_named_where_they_should_be(tmp_path, capsys):
    folder = write_model_directory(tmp_path / "shards", num_shards=3)
    pickled(folder)
    lost = sorted(folder.glob("*.bin"))[1]
    kept = lost.rename(tmp_path / "kept")
    code = run("convert", folder, tmp_path / "out", "--to", "openclip")
    assert_refused(capsys, code, f"`{folder}` lacks `{lost.name}`, which pytorch_model.bin.index")
    assert not list((tmp_path / ".cache").rglob("unpickled/*"))
    kept.rename(lost)
    assert len(read_model_directory(folder).weight_files) == 3


def test_wrong_pickle_is_named_as_the_user_did(old, capsys):
    tensors = torch.load(old / "pytorch_model.bin")
    wide = {key: value.double() for key, value in tensors.items()}
    torch.save(wide, old / "pytorch_model.bin")
    args = ("convert", "old", "out", "--to", "openclip")
    assert_refused(capsys, run(*args), "`old`, copied as safetensors:", "is F64")


def test_patch_of_pickles_names_them_as_the_user_did(old, capsys):
    args = ("delta", "new", "--model", "old", "--out", "made.safetensors")
    assert_refused(capsys, run(*args), "`new` and `old` have the same weights")


def test_results_are_not_recorded_in_the_copy_of_a_model(old, capsys):
    assert_refused(capsys, run("ledger", "old"), f"`old` has no {LEDGER}")
    assert_refused(capsys, run("ledger", "old", "attack"), "`old` holds pickles")
