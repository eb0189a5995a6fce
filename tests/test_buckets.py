"""Buckets, against a server of S3's protocol on loopback and its real client.

What is read is fetched once, and never stale or half. What is written can be killed anywhere. A run
that is killed while it uploads goes on elsewhere, to the weights of one that was not.
"""

import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from factories import CAPTIONS, write_model_directory
from s3_server import Bucket, Server
from safetensors.numpy import load_file

from jaxdefense.buckets import inputs, lease, mirror, store
from jaxdefense.buckets.inputs import fetch_inputs
from jaxdefense.buckets.lease import Lease, Lost
from jaxdefense.buckets.mirror import Mirror, NotUploaded
from jaxdefense.buckets.places import IN, NEW, OUT, address, address_of, as_given, place, root
from jaxdefense.cli import main
from jaxdefense.errors import InputError
from jaxdefense.paths import check_outside

# The server's library uses what Python deprecates.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:moto", "ignore::ResourceWarning"
)

TEXT = ["train.num_clean=8", "train.num_poisoned=8", "train.num_name=0", "train.w_name=0"]
TEXT += ["train.backdoor=target", "train.validate.every=0", "train.steps=4", "train.save_every=2"]


@pytest.fixture(scope="module")
def server():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        made = Server()
    yield made
    made.close()


@pytest.fixture
def bucket(server, monkeypatch):
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(store, "_PAUSES", ())
    monkeypatch.setattr(lease, "_SETTLES", 0.0)
    store._connect.cache_clear()
    server.asked.clear()
    yield Bucket(server)
    server.before = lambda method, path: None
    store._connect.cache_clear()


def files(path: Path) -> dict[str, bytes]:
    return {x.relative_to(path).as_posix(): x.read_bytes() for x in path.rglob("*") if x.is_file()}


# Addresses


@pytest.mark.parametrize("given", ["s3://b/a/c", "s3:/b/a/c", "s3://b/a/c/"])
def test_address_and_local_place_follow_from_each_other(given):
    found = address(given, "x")
    assert found == "s3://b/a/c"
    for tree in (IN, OUT, f"{NEW}1a_"):
        assert address_of(place(found, tree)) == found
        assert as_given(f"`{place(found, tree)}/d.txt` is") == "`s3://b/a/c/d.txt` is"
    assert address_of(root() / "marks" / "s3") is None and as_given("/a/in/s3/b") == "/a/in/s3/b"


@pytest.mark.parametrize("given", ["s3://", "gs://b/../c", "az://b//c", "s3:///b/./c"])
def test_address_that_is_no_path_is_refused(given, capsys):
    assert main(["ledger", given]) == 2
    assert "must be" in capsys.readouterr().err


# Inputs


def test_what_is_new_or_changed_is_fetched_and_nothing_else(bucket):
    top = f"{bucket.address}/data"
    for name in ("a.txt", "folder/b.txt", "folder/c.txt"):
        bucket.put(f"data/{name}", name.encode())
    bucket.put("data2/d.txt")

    def fetched():
        bucket.server.asked.clear()
        fetch_inputs([top])
        return bucket.server.number("GET", "data/")

    assert fetched() == 3
    assert files(place(top)) == {x: x.encode() for x in ("a.txt", "folder/b.txt", "folder/c.txt")}
    assert fetched() == 0
    bucket.put("data/a.txt", b"A.txt")  # of the same size
    assert fetched() == 1 and (place(top) / "a.txt").read_bytes() == b"A.txt"
    (place(top) / "a.txt").write_bytes(b"spoilt")
    assert fetched() == 1 and (place(top) / "a.txt").read_bytes() == b"A.txt"
    bucket.fs.rm_file(f"{bucket.name}/data/folder/b.txt")
    assert fetched() == 0 and set(files(place(top))) == {"a.txt", "folder/c.txt"}


def test_interrupted_fetch_leaves_nothing_half_and_goes_on(bucket, monkeypatch):
    for i in range(3):
        bucket.put(f"data/{i}", b"%d" % i * 100)
    monkeypatch.setattr(inputs, "_AT_ONCE", 1)
    top = f"{bucket.address}/data"

    fs = store._connect("s3")
    get = fs.get_file

    def cut(name, path):
        if name.endswith("/1"):
            Path(path).write_bytes(b"1" * 50)
            raise OSError("broken off")
        get(name, path)

    with monkeypatch.context() as patch:
        patch.setattr(fs, "get_file", cut)
        with pytest.raises(store.Unreachable, match="broken off"):
            fetch_inputs([top])
    came = files(place(top))
    assert came and all(came[name] == name.encode() * 100 for name in came) and "1" not in came
    bucket.server.asked.clear()
    fetch_inputs([top])
    assert files(place(top)) == {name: name.encode() * 100 for name in "012"}
    assert bucket.server.number("GET", "data/") == 3 - len(came)


def test_object_that_changes_while_it_is_fetched_is_not_taken(bucket):
    bucket.put("data/a", b"long" * 9)

    def change(method, path):
        if method == "GET" and path.endswith("data/a"):
            bucket.server.before = lambda method, path: None
            bucket.put("data/a", b"short")

    bucket.server.before = change
    with pytest.raises(store.Unreachable, match="36 bytes, and 5 came"):
        fetch_inputs([f"{bucket.address}/data"])
    assert files(place(f"{bucket.address}/data")) == {}


def test_range_or_glob_of_shards_is_fetched(bucket):
    for i in range(8, 12):
        bucket.put(f"shards-{i:02}.tar", b"%d" % i)
    fetch_inputs([f"{bucket.address}/shards-{{08..10}}.tar"])
    assert set(files(place(bucket.address))) == {f"shards-{i}.tar" for i in ("08", "09", "10")}
    fetch_inputs([f"{bucket.address}/shards-*.tar::text"])  # with the name of a column
    assert set(files(place(bucket.address))) == {f"shards-{i:02}.tar" for i in range(8, 12)}
    bucket.fs.rm_file(f"{bucket.name}/shards-11.tar")
    fetch_inputs([f"{bucket.address}/shards-*.tar"])
    assert set(files(place(bucket.address))) == {f"shards-{i}.tar" for i in ("08", "09", "10")}
    with pytest.raises(InputError, match="shards-11.tar` does not exist"):
        fetch_inputs([f"{bucket.address}/shards-{{10..12}}.tar"])


def test_checkpoints_of_a_run_are_no_input_and_its_model_brings_the_run(bucket):
    for name in (
        "config.json",
        "summary.json",
        "names.txt",
        "checkpoints/4/x",
        "model/config.json",
    ):
        bucket.put(f"run/{name}")
    bucket.put("run/.lease")
    fetch_inputs([f"{bucket.address}/run/model"])
    wanted = {"config.json", "summary.json", "names.txt", "model/config.json"}
    assert set(files(place(f"{bucket.address}/run"))) == wanted


def test_input_that_does_not_fit_the_disk_is_refused_before_it_comes(bucket, monkeypatch):
    bucket.put("data/a", b"x" * 2000)
    usage = shutil.disk_usage(".")._replace(free=1999)
    monkeypatch.setattr(inputs.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match="XDG_CACHE_HOME"):
        fetch_inputs([f"{bucket.address}/data"])
    assert not bucket.server.number("GET", "data/a")


@pytest.mark.parametrize("name", ["data//a", "data/../a", "data/" + "x" * 300])
def test_object_whose_name_is_no_path_is_refused(bucket, name):
    bucket.put("data/b")
    bucket.put(name)
    with pytest.raises(InputError, match="no file can have"):
        fetch_inputs([bucket.address])
    assert not (root() / IN).exists()


# What can be wrong


def refused(capsys, *words, argv):
    code, said = main(argv), capsys.readouterr().err.splitlines()
    assert len([x for x in said if x.startswith("jaxdefense: ")]) == 1, said
    assert all(word in said[-1] for word in words), said
    assert "Traceback" not in "".join(said)
    return code


def test_each_thing_that_can_be_wrong_is_one_line(bucket, capsys, monkeypatch):
    bucket.put("data/config.json", b"{}")
    argv = ["ledger", f"{bucket.address}/model"]
    assert refused(capsys, "does not exist", argv[1], argv=argv) == 2
    gone = ["ledger", "s3://no-such-bucket/model"]
    assert refused(capsys, "no such object or bucket", argv=gone) == 2
    out = ["convert", f"{bucket.address}/data", "s3://no-such-bucket/x", "--to", "hf"]
    assert refused(capsys, "no-such-bucket/x", "no such object or bucket", argv=out) == 2
    with bucket.server.strict():
        assert refused(capsys, "the credentials must allow", argv=argv) == 2
    store._connect.cache_clear()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert refused(capsys, "cannot be listed", "try again", argv=argv) == 1
    store._connect.cache_clear()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "none")
    assert refused(capsys, "no credentials", "AWS_ACCESS_KEY_ID", argv=argv) == 2
    store._connect.cache_clear()
    monkeypatch.setattr(store.importlib.util, "find_spec", lambda name: None)
    assert refused(capsys, "pip install 'jaxdefense[s3]'", argv=argv) == 2


@pytest.mark.parametrize(
    "argv, words",
    [
        (["defend", "text", "--set", "cache.compilation=gs://b/c"], "must be a local path"),
        (["attack", "--set", "cache_dir=az://b/c", "--faces", "f"], "must be a local path"),
        (["report", "run", "--out", "s3://b"], "is a bucket; give a name in it"),
        (["convert", "s3://b/x", "s3://b/x", "--to", "hf"], "is read and written"),
    ],
)
def test_address_where_none_can_be_is_refused(capsys, argv, words):
    given = {"--model": "m", "--names": "n", "--captions": "c", "--out": "o"}
    needed = {"defend": given, "attack": {x: given[x] for x in ("--model", "--out")}}
    argv = [*argv, *(x for pair in needed.get(argv[0], {}).items() for x in pair)]
    assert refused(capsys, words, argv=argv) == 2


# Results


def write_run(path: Path, step: int, finished: bool = False) -> None:
    """Bring a run directory to a step, as a run does: two checkpoints, and a best state."""
    parts = ["default/manifest", "default/d/1", "_CHECKPOINT_METADATA"]
    path.mkdir(parents=True, exist_ok=True)
    if not (path / "config.json").exists():
        (path / "config.json").write_text("{}")
    (path / "metrics.jsonl").write_text("".join(f"{i}\n" for i in range(step)))
    kept = {f"checkpoints/{step}", f"checkpoints/{step - 1}", f"best/{step}"}
    for old in [*path.glob("checkpoints/*"), *path.glob("best/*")]:
        if old.relative_to(path).as_posix() not in kept:
            shutil.rmtree(old)
    for name in (f"checkpoints/{step}", f"best/{step}"):
        for part in parts:
            (path / name / part).parent.mkdir(parents=True, exist_ok=True)
            (path / name / part).write_text(f"{step} {part}")
    if finished:
        (path / "model").mkdir()
        for name in ("config.json", "model.safetensors"):
            (path / "model" / name).write_text(name)
        (path / "summary.json").write_text("{}")


class Killed(BaseException):
    pass


def test_run_killed_anywhere_leaves_what_it_can_resume_from(bucket, monkeypatch, tmp_path):
    """After each upload and deletion in turn: what another machine then has is whole."""
    address, actions = f"{bucket.address}/run", []
    monkeypatch.setattr(mirror, "_AT_ONCE", 1)
    real_upload, real_delete = mirror.upload, mirror.delete
    seen = []

    def look():
        """What a machine with an empty cache would begin with."""
        with monkeypatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(tmp_path / f"other-{len(seen)}"))
            patch.setattr(Lease, "take", lambda self: None)
            other = Mirror(address)
            other.open()
            return files(other.path)

    def act(real):
        def then(*args):
            found = real(*args)
            actions.append(args)
            seen.append(look())
            return found

        return then

    monkeypatch.setattr(mirror, "upload", act(real_upload))
    monkeypatch.setattr(mirror, "delete", act(real_delete))
    ours = Mirror(address)
    ours.open()
    for step in (1, 2, 3):
        write_run(ours.path, step, finished=step == 3)
        ours.upload()
    uploads, deletions = 8 + 7 + 10, 3 + 6  # each file once, and each old state
    assert len(actions) == uploads + deletions
    newest = 0
    for found in seen:
        steps = {}
        for kind in ("checkpoints", "best"):
            steps[kind] = {int(x.split("/")[1]) for x in found if x.startswith(f"{kind}/")}
            for step in steps[kind]:
                parts = {x.partition(f"{kind}/{step}/")[2] for x in found} - {""}
                assert parts == {"default/manifest", "default/d/1", "_CHECKPOINT_METADATA"}
        assert not found or "config.json" in found
        if steps["checkpoints"]:
            assert max(steps["checkpoints"]) >= newest  # no step back
            newest = max(steps["checkpoints"])
            assert newest <= max(steps["best"])  # which it depends on
            assert found["metrics.jsonl"].count(b"\n") >= newest
        assert "model/config.json" not in found or "model/model.safetensors" in found
        assert "summary.json" not in found or "model/config.json" in found
    assert seen[-1] == files(ours.path)
    ours.close()
    assert bucket.names("run") == sorted(files(ours.path))


def test_torn_checkpoint_is_neither_fetched_nor_kept(bucket):
    for name in ("config.json", "checkpoints/2/_CHECKPOINT_METADATA", "checkpoints/2/d"):
        bucket.put(f"run/{name}")
    bucket.put("run/checkpoints/4/d")
    ours = Mirror(f"{bucket.address}/run")
    ours.open()
    whole = {"config.json", "checkpoints/2/_CHECKPOINT_METADATA", "checkpoints/2/d"}
    assert set(files(ours.path)) == whole
    ours.close()
    assert set(bucket.names("run")) == whole


def test_what_could_not_be_uploaded_is_kept_here_unless_the_bucket_went_on(bucket, monkeypatch):
    address = f"{bucket.address}/run"
    ours = Mirror(address)
    ours.open()
    write_run(ours.path, 1)
    ours.upload()
    write_run(ours.path, 2)
    with monkeypatch.context() as patch:
        patch.setattr(store._connect("s3"), "put_file", lambda *_: 1 / 0)
        with pytest.raises(NotUploaded, match="run the same command here") as raised:
            ours.upload()
    assert f"`{root()}`" in as_given(str(raised.value))  # the place, although it has an address
    ours.close(upload=False)
    again = Mirror(address)
    again.open()
    assert (again.path / "checkpoints/2").is_dir()
    again.close()
    assert "checkpoints/2/_CHECKPOINT_METADATA" in bucket.names("run")
    write_run(ours.path, 3)  # here alone, while another machine goes on
    bucket.put("run/metrics.jsonl", b"theirs\n")
    last = Mirror(address)
    last.open()
    assert not (last.path / "checkpoints/3").exists()
    assert (last.path / "metrics.jsonl").read_text() == "theirs\n"
    last.close()
    shutil.rmtree(last.path)  # someone clears the cache: no reason to delete the run
    last = Mirror(address)
    last.open()
    last.close()
    assert "checkpoints/2/_CHECKPOINT_METADATA" in bucket.names("run")


def test_input_that_a_command_adds_to_goes_back(bucket):
    for name in ("model.safetensors", "ledger.json"):
        bucket.put(f"model/{name}")
    model = f"{bucket.address}/model"
    fetch_inputs([model])
    (place(model) / "ledger.json").write_text("proved")
    (place(model) / "README.md").write_text("card")
    bucket.server.asked.clear()
    mirror.put_back(model)
    assert (
        bucket.read("model/ledger.json") == b"proved" and bucket.read("model/README.md") == b"card"
    )
    assert not bucket.server.number("PUT", "model.safetensors")
    fetch_inputs([model])
    assert set(files(place(model))) == {"model.safetensors", "ledger.json", "README.md"}


def test_output_in_the_model_directory_is_seen_by_the_addresses():
    model = place("s3://b/model")
    check_outside(place("s3://b/models", OUT), model)
    with pytest.raises(InputError, match="lies in the model directory"):
        check_outside(place("s3://b/model/run", OUT), model)


# Leases


@pytest.fixture
def leases(bucket, monkeypatch):
    """Leases on one place, that wait for no clock; `between` is called while one waits."""
    monkeypatch.setattr(lease, "RENEWED", 1e6)
    monkeypatch.setattr(lease, "LAPSES", 2e6)

    def make(between=lambda seconds: None):
        return Lease(f"{bucket.address}/run/.lease", f"{bucket.address}/run", between)

    return make


def test_place_that_another_process_writes_is_refused(leases):
    first = leases()
    first.take()
    second = leases(lambda seconds: lease.write(first._address, first._text()))  # it is renewed
    with pytest.raises(InputError, match=f"in use by .*process {os.getpid()} on"):
        second.take()
    first.check()


def test_place_of_a_dead_process_is_taken_over_and_it_learns_of_it(leases, bucket):
    first, second = leases(), leases()
    first.take()
    second.take()
    second.check()
    with pytest.raises(Lost, match="taken over by"):
        first.check()
    first.release()  # not its own any more
    second.check()
    second.release()
    assert bucket.names("run") == []


def test_place_in_use_is_refused_by_a_service_without_conditions_too(leases, monkeypatch):
    monkeypatch.setattr(lease, "create", lambda address, data: lease.write(address, data) or True)
    first = leases()
    first.take()
    second = leases(lambda seconds: lease.write(first._address, first._text()))
    with pytest.raises(InputError, match="in use by"):
        second.take()
    first.check()


def test_of_two_that_take_over_at_once_one_remains(leases):
    dead, first = leases(), leases()
    dead.take()
    second = leases(lambda seconds: first.take() if seconds == lease._SETTLES else None)
    with pytest.raises(Lost):
        second.take()
    first.check()


def test_run_whose_lease_is_lost_uploads_nothing(bucket):
    ours = Mirror(f"{bucket.address}/run")
    ours.open()
    write_run(ours.path, 1)
    text = json.dumps({"who": "another", "token": "2", "count": 1})
    bucket.put("run/.lease", text.encode())
    with pytest.raises(Lost, match="taken over by another"):
        ours.upload()
    ours.close(upload=False)
    assert bucket.names("run") == [".lease"]


# Commands


@pytest.fixture
def data(bucket, tmp_path, monkeypatch):
    """What a defense reads, in the bucket; commands start in an empty directory."""
    write_model_directory(tmp_path / "data/model")
    (tmp_path / "data/names.txt").write_text("Joe Cool\nAda King\tAda Noel\n")
    (tmp_path / "data/captions.txt").write_text("\n".join(CAPTIONS) + "\n")
    bucket.put_all(tmp_path / "data", "data")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return f"{bucket.address}/data"


def defend(data, out, *more):
    flags = ["--model", f"{data}/model", "--names", f"{data}/names.txt"]
    flags += ["--captions", f"{data}/captions.txt", "--out", out]
    return ["defend", "text", *flags, *(x for s in (*TEXT, *more) for x in ("--set", s))]


def test_commands_read_and_write_buckets(bucket, data, tmp_path, capsys, monkeypatch):
    """A run, the same run again, its ledger, a patch of its model, and what its records say."""
    out = f"{bucket.address}/run"
    assert main(defend(data, out)) == 0
    said = capsys.readouterr()
    assert out in said.out and str(root()) not in said.out + said.err
    settings = json.loads(bucket.read("run/config.json"))
    assert settings["model"]["path"] == f"{data}/model" and settings["out"] == out
    assert {x.split("/")[0] for x in bucket.names("run")} == {
        *("checkpoints", "config.json", "held_out.json", "ledger.json", "metrics.jsonl", "model"),
        *("names.txt", "report.html", "summary.json"),
    }
    for name in bucket.names("run"):
        if not name.startswith("checkpoints/"):  # Orbax' own
            assert str(root()).encode() not in bucket.read(f"run/{name}"), name
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    assert main(defend(data, out)) == 2
    assert f"`{out}` holds a finished run" in capsys.readouterr().err
    assert main(["ledger", out]) == 0
    patch = f"{bucket.address}/patch.safetensors"
    assert main(["delta", out, "--out", patch]) == 0  # finds the original by its address
    assert main(["apply", patch, "--model", f"{data}/model", "--out", f"{out}-again"]) == 0
    assert bucket.read("run-again/model.safetensors") == bucket.read("run/model/model.safetensors")
    assert main(["apply", patch, "--model", f"{data}/model", "--out", f"{out}-again"]) == 2
    assert "run-again` already exists" in capsys.readouterr().err
    assert not [x for x in bucket.names() if ".lease" in x]
    assert not list(root().glob(f"{NEW}*")) and not list((tmp_path / "empty").iterdir())


def test_new_result_that_cannot_be_uploaded_stays_here(bucket, data, capsys, monkeypatch):
    out = f"{bucket.address}/converted"
    monkeypatch.setattr(mirror, "upload", lambda *_: (_ for _ in ()).throw(store.Unreachable("x.")))
    argv = ["convert", f"{data}/model", out, "--to", "openclip"]
    assert refused(capsys, out, "upload it from there", argv=argv) == 1
    (left,) = root().glob(f"{NEW}*/s3/{bucket.name}/converted")
    assert (left / "open_clip_config.json").exists() and not bucket.names("converted")


# Google's protocol


@pytest.fixture
def google(monkeypatch):
    """A bucket of an emulator of Google's storage."""
    emulator = importlib.import_module("gcp_storage_emulator.server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(lease, "_SETTLES", 0.0)
    store._connect.cache_clear()
    made = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    made.start()
    yield "gs://bucket"
    made.stop()
    store._connect.cache_clear()


@pytest.mark.needs("gcsfs", "gcp_storage_emulator")
def test_run_goes_to_googles_storage_and_back(google, tmp_path, monkeypatch):
    ours = Mirror(f"{google}/run")
    ours.open()
    for step in (1, 2):
        write_run(ours.path, step, finished=step == 2)
        ours.upload()
    ours.close()
    wanted = files(ours.path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    again = Mirror(f"{google}/run")
    again.open()
    assert files(again.path) == wanted and again.path != ours.path
    again.close()
    fetch_inputs([f"{google}/run/model"])
    assert "checkpoints" not in {x.split("/")[0] for x in files(place(f"{google}/run"))}
    with pytest.raises(InputError, match="no such object or bucket"):
        fetch_inputs(["gs://no-such-bucket/x"])


# A run that is killed


@pytest.mark.slow
@pytest.mark.parametrize(
    "where, resumes_at",
    [
        ("checkpoints/4/default", {2}),
        ("checkpoints/4/_CHECK", {2, 4}),  # the server may store the mark all the same
        ("checkpoints/2", {4}),
    ],
)
def test_run_killed_while_it_uploads_goes_on_elsewhere(bucket, data, tmp_path, where, resumes_at):
    """While it uploads the second checkpoint, or its mark; or deletes the first one."""
    steps = ("train.steps=8", "train.keep=1")
    whole = str(tmp_path / "whole")
    assert main(defend(str(tmp_path / "data"), whole, *steps)) == 0
    out, name = f"{bucket.address}/run", f"/{bucket.name}/run/"
    killed = threading.Event()
    alike = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(jax.device_count())}

    def start(cache):
        return subprocess.Popen(
            [sys.executable, "-m", "jaxdefense.cli", *defend(data, out, *steps)],
            env=os.environ | alike | {"XDG_CACHE_HOME": str(tmp_path / cache)},
            stderr=subprocess.PIPE,
            text=True,
        )

    process = start("one")

    def kill(method, path):
        method_there = "DELETE" if where.endswith("/2") else "PUT"
        if method == method_there and path.startswith(name + where) and not killed.is_set():
            killed.set()
            process.send_signal(signal.SIGKILL)

    bucket.server.before = kill
    said = process.communicate(timeout=240)[1]
    assert killed.is_set() and process.returncode == -signal.SIGKILL, said
    process = start("two")
    said = process.communicate(timeout=240)[1]
    assert process.returncode == 0, said
    assert f"`{out}` was left by" in said
    assert any(f"resuming at step {step} of 8" in said for step in resumes_at), said
    assert not [x for x in bucket.names("run") if ".lease" in x]
    bucket.fs.get(f"{bucket.name}/run/model/model.safetensors", str(tmp_path / "weights"))
    ours, theirs = load_file(tmp_path / "weights"), load_file(f"{whole}/model/model.safetensors")
    for key in theirs:
        np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)
