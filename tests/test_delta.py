"""A patch and the original give the defended directory, byte for byte."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import DEFENSE, write_model_directory, write_result
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from test_cli import assert_refused

from jaxdefense.cli import main
from jaxdefense.convert.delta import _changed, _difference
from jaxdefense.convert.directory import read_model_directory
from jaxdefense.results import TextDefenseSummary

ROWS = ".moved_rows"


def files(path):
    return {
        str(file.relative_to(path)): (file.read_bytes(), file.stat().st_mode)
        for file in path.rglob("*")
        if file.is_file()
    }


def moved(key, value):
    """What a defense might make of a tensor: some move, and of the token table a few rows."""
    if "norm" in key or value.dtype.kind not in "fV":
        return value
    rng, out = np.random.default_rng(len(key)), value.copy()
    if "token_embedding" in key:
        out[[3, 7]] += np.asarray(rng.standard_normal((2, value.shape[1])), value.dtype)
        return out
    noise = np.asarray(rng.standard_normal(value.shape) / 50, value.dtype)
    return value + noise if "text" in key else value


@pytest.fixture(params=[{}, {"dtype": "float16", "num_shards": 3, "position_ids": True}])
def run(request, tmp_path, monkeypatch):
    """An original, and a run that defended it."""
    monkeypatch.chdir(tmp_path)
    original = write_model_directory(tmp_path / "model", **request.param)
    (original / "README.md").write_text("# A card\n")
    (original / "flax_model.msgpack").write_bytes(b"\0\1\2")  # which no defense copies
    directory = read_model_directory(original)

    def then(made):
        (made / "ledger.json").write_text('{"schema": 1}\n')
        (made / "README.md").write_bytes("# A card\r\n\nmore ü".encode())

    directory.rewrite(moved, tmp_path / "run" / "model", then)
    digest = read_model_directory(tmp_path / "run" / "model").digest()
    found = DEFENSE | {"defended_sha256": digest}
    settings: dict[str, Any] = {"model": {"path": "model"}, "directory": str(tmp_path)}
    settings["resolved"] = {"model_sha256": directory.digest()}
    write_result(tmp_path / "run", TextDefenseSummary, settings, found)
    return tmp_path / "run"


def test_a_patch_and_the_original_give_the_defended_directory(run, capsys, monkeypatch):
    (run.parent / "elsewhere").mkdir()
    monkeypatch.chdir(run.parent / "elsewhere")
    assert main(["delta", "../run", "--out", "d.safetensors", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert main(["apply", "d.safetensors", "--model", "../model", "--out", "made"]) == 0
    assert files(Path("made")) == files(run / "model")
    assert told["to_sha256"] == read_model_directory("made").digest()
    original = read_model_directory("../model")
    keys = [key for names in original.weight_files.values() for key in names]
    change = [
        x for x in keys if not np.array_equal(moved(x, original.tensor(x)), original.tensor(x))
    ]
    with safe_open("d.safetensors", framework="numpy") as patch:
        held = {key: patch.get_tensor(key) for key in patch.keys()}  # noqa: SIM118
    assert {x for x in held if not x.endswith(ROWS)} == set(change) and change
    table = next(x for x in change if "token_embedding" in x)
    assert len(held[table]) == 2 and held[table + ROWS].tolist() == [3, 7]
    assert told["tensors"] == len(change) and told["of_tensors"] == len(keys)
    assert told["parameters"] == sum(x.size for y, x in held.items() if not y.endswith(ROWS))


@given(
    hnp.arrays(np.uint16, hnp.array_shapes(min_dims=0, max_dims=3, max_side=5)),
    st.data(),
)
def test_any_bits_come_back(bits, data):
    """Not a number, infinities and both zeros too."""
    old = bits.view(np.float16)
    new = np.asarray(data.draw(hnp.arrays(np.uint16, bits.shape)).view(np.float16))
    if bits.ndim > 1 and data.draw(st.booleans()):
        new = old.copy()
        new[:1] = 1
    found = _difference(old, new)
    if found is not None:
        assert all(type(x) is np.ndarray for x in found if x is not None)  # as a file takes it
    back = old if found is None else _changed(old, *found)
    assert back.tobytes() == new.tobytes() and back.dtype == new.dtype


def test_a_patch_fits_its_original_alone_and_is_whole(run, capsys):
    assert main(["delta", "run", "--out", "d.safetensors"]) == 0
    write_model_directory(Path("other"), seed=1)
    apply = ["apply", "d.safetensors", "--model", "model", "--out", "made"]
    code = main(["apply", "d.safetensors", "--model", "other", "--out", "made"])
    assert_refused(capsys, code, "is of the original", "give that model")
    with safe_open("d.safetensors", framework="numpy") as patch:
        told = patch.metadata()
    held = load_file("d.safetensors")
    name = next(x for x in held if not x.endswith(ROWS))
    held[name] = held[name] + np.ones((), held[name].dtype)
    save_file(held, "broken.safetensors", metadata=told)
    apply[1] = "broken.safetensors"
    assert_refused(capsys, main(apply), "made the model", "is broken")
    Path("short.safetensors").write_bytes(Path("d.safetensors").read_bytes()[:-9])
    apply[1] = "short.safetensors"
    assert_refused(capsys, main(apply), "no patch that can be read")
    apply[1] = str(next((run / "model").glob("*.safetensors")))
    assert_refused(capsys, main(apply), "no patch of `jaxdefense delta`")
    apply[1] = "d.safetensors"
    (Path("model") / "vocab.json").write_text("{}")
    assert_refused(capsys, main(apply), "other texts", "`vocab.json`", "give that model")
    (Path("model") / "more.txt").write_text("x")
    assert_refused(capsys, main(apply), "`more.txt`, `vocab.json`")
    assert not Path("made").exists() and not list(Path().glob(".made*"))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"texts": {"../../evil.txt": "x"}}, ["would write `../../evil.txt`", "distrust"]),
        ({"texts": {"/tmp/evil.txt": "x"}}, ["would write `/tmp/evil.txt`"]),
        ({"texts": {".hidden/x.txt": "x"}}, ["would write `.hidden/x.txt`"]),
        ({"texts": {"a\\b.txt": "x"}}, ["would write"]),
        ({"heads": {"../model/x": "{}"}}, ["would write `../model/x`"]),
        ({"heads": {"vocab.json": "{}"}}, ["other weight files"]),
        ({"texts": {"vocab.json/x.txt": "x"}}, ["does not fit the model"]),
        ({"texts": ["x"]}, ["not whole"]),
        ({"texts": {"x": 1}}, ["not whole"]),
        ({"from_sha256": None}, ["not whole"]),
    ],
)
def test_a_patch_writes_beside_the_weights_alone(run, capsys, change, words):
    assert main(["delta", "run", "--out", "d.safetensors"]) == 0
    with safe_open("d.safetensors", framework="numpy") as patch:
        told = patch.metadata() | {x: json.dumps(y) for x, y in change.items()}
    told = {name: value for name, value in told.items() if value != "null"}
    save_file(load_file("d.safetensors"), "d.safetensors", metadata=told)
    before = {file for file in run.parent.rglob("*")}
    code = main(["apply", "d.safetensors", "--model", "model", "--out", "made"])
    assert_refused(capsys, code, *words)
    assert {file for file in run.parent.rglob("*")} == before
    assert not Path("/tmp/evil.txt").exists()


def test_weights_with_several_notes_come_back_in_their_order(tmp_path, monkeypatch):
    """The library writes notes in an order of its own each time."""
    monkeypatch.chdir(tmp_path)
    path = write_model_directory(tmp_path / "model") / "model.safetensors"
    save_file(load_file(path), path, metadata={x: x for x in ("format", "a", "b", "c", "d", "e")})
    directory = read_model_directory("model")
    directory.rewrite(moved, tmp_path / "defended")
    given = ["delta", "defended", "--model", "model", "--out", "d.safetensors"]
    assert main(given) == 0
    for i in range(3):
        assert main(["apply", "d.safetensors", "--model", "model", "--out", f"made-{i}"]) == 0
        assert files(Path(f"made-{i}")) == files(Path("defended"))


def test_what_has_no_patch_is_refused(run, capsys):
    like: dict[str, Any] = {}
    if len(list((run / "model").glob("*.safetensors"))) > 1:
        like = {"num_shards": 3, "dtype": "float16", "position_ids": True}
    write_model_directory(Path("other"), num_shards=2)
    write_model_directory(Path("wide"), embed=12, **like)
    shutil.copytree(run / "model", "alone")
    for flags, words in (
        (["run", "--out", "d.bin"], ["d.bin", ".safetensors"]),
        (["model", "--out", "d.safetensors"], ["`model` is not the directory of a", "--model"]),
        (["alone", "--model", "alone", "--out", "d.safetensors"], ["same weights"]),
        (["run", "--model", "other", "--out", "d.safetensors"], ["same tensors"]),
        (["run", "--model", "wide", "--out", "d.safetensors"], ["float", "that was defended"]),
        (["alone", "--model", "wide", "--out", "d.safetensors"], ["float", "that was defended"]),
        (["run", "--out", "run/model/d.safetensors"], ["lies in the model directory"]),
    ):
        assert_refused(capsys, main(["delta", *flags]), *words)
    Path("model").rename("moved")
    write_model_directory(Path("model"), seed=7, **like)
    code = main(["delta", "run", "--out", "d.safetensors"])
    assert_refused(capsys, code, "run` defended", "--model")
    # Between two defended models, for whoever has the first.
    assert main(["delta", "run", "--model", "model", "--out", "two.safetensors"]) == 0
    Path("model").rename("seed")
    code = main(["delta", "run", "--out", "d.safetensors"])
    assert_refused(capsys, code, "which `run` defended, does not exist", "--model")
    assert not Path("d.safetensors").exists()
