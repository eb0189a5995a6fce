"""The run: killed, interrupted and resumed; metrics; what stops it."""

import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factories import CAPTIONS, PAPER_TEXT_FLAGS, computed, logged, write_model_directory
from safetensors.numpy import load_file

from jaxdefense.checkpoint import Checkpoints
from jaxdefense.cli import main
from jaxdefense.config import (
    PAPER_TEXT,
    PAPER_TEXT_OPTIMIZER,
    DefendTextConfig,
    MeshConfig,
    ModelConfig,
    TextDataConfig,
)
from jaxdefense.convert.directory import ModelDirectory
from jaxdefense.data.names import random_names
from jaxdefense.defense import loop
from jaxdefense.defense.defend import run
from jaxdefense.defense.loop import Diverged
from jaxdefense.defense.step import TrainState, make_optimizer
from jaxdefense.defense.text import defend_text, plan_text
from jaxdefense.errors import InputError
from jaxdefense.results import as_json
from jaxdefense.sharding import ShardingRules, batch_sharding, make_mesh, replicated
from jaxdefense.trackers import Tracker

STEPS, SAVE_EVERY = 40, 8  # enough to be stopped twice


def write_inputs(path):
    write_model_directory(path / "model")
    (path / "names.txt").write_text("Joe Cool\nAda King\tAda Noel\n")
    (path / "captions.txt").write_text("\n".join(CAPTIONS) + "\n")
    return path


@pytest.fixture
def inputs(tmp_path):
    return write_inputs(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed, in a process of its own."""
    path = write_inputs(tmp_path_factory.mktemp("whole"))
    code, err = finish(path, command("run"))
    assert code == 0, err
    return path / "run"


def command(out, *settings):
    """The arguments of a text defense."""
    flags = ["--model", "model", "--names", "names.txt", "--captions", "captions.txt"]
    sizes = [
        "train.num_clean=8",
        "train.num_poisoned=8",
        f"train.steps={STEPS}",
        f"train.save_every={SAVE_EVERY}",
        *PAPER_TEXT_FLAGS,
    ]
    sets = [x for setting in (*sizes, *settings) for x in ("--set", setting)]
    return ["defend", "text", *flags, *sets, "--out", out]


def start(inputs, command):
    return subprocess.Popen(
        [sys.executable, "-m", "jaxdefense.cli", *command],
        cwd=inputs,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def finish(inputs, command):
    process = start(inputs, command)
    _, err = process.communicate(timeout=300)
    return process.returncode, err


def stop_at(inputs, command, step, signum):
    """Start a run and send it a signal once it has written the metrics of a step."""
    process = start(inputs, command)
    metrics = inputs / command[command.index("--out") + 1] / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (metrics.exists() and metrics.read_text().count("\n") > step):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signum)
    _, err = process.communicate(timeout=300)
    return process.returncode, err


def weights(path):
    return load_file(path / "model" / "model.safetensors")


def assert_same_run(a, b, steps=STEPS):
    ours, theirs = weights(a), weights(b)
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    rows = [computed(path / "metrics.jsonl") for path in (a, b)]
    assert rows[0] == rows[1]
    assert [row["step"] for row in rows[0]] == list(range(steps))


def config(inputs, out, train=None, **optimizer):
    sizes: dict[str, Any] = {"num_clean": 8, "num_poisoned": 8, "steps": 5}
    return DefendTextConfig(
        str(inputs / out),
        ModelConfig(str(inputs / "model")),
        TextDataConfig(str(inputs / "names.txt"), str(inputs / "captions.txt")),
        dataclasses.replace(PAPER_TEXT, **(sizes | (train or {}))),
        dataclasses.replace(PAPER_TEXT_OPTIMIZER, **optimizer),
    )


def test_plan_writes_nothing_until_it_is_run(inputs):
    before = sorted(inputs.rglob("*"))
    plan = plan_text(config(inputs, "run"))
    assert sorted(inputs.rglob("*")) == before
    with logged() as said:
        summary = run(plan)
    assert said.getvalue().splitlines()[: len(plan.lines)] == plan.lines
    assert as_json(summary) == json.loads((inputs / "run" / "summary.json").read_text())
    assert summary.names == [["Joe Cool"], ["Ada King", "Ada Noel"]]
    recorded = json.loads((inputs / "run" / "config.json").read_text())
    assert recorded["resolved"] == plan.resolved
    with pytest.raises(InputError, match="finished run"):
        run(plan)
    assert run(plan, resume=True) == summary


def test_run_stopped_and_killed_and_resumed_ends_with_the_same_weights_bit_for_bit(inputs, whole):
    out = inputs / "run"
    code, err = stop_at(inputs, command("run"), 2, signal.SIGINT)
    assert code == 128 + signal.SIGINT
    assert "checkpoint saved" in err and "resuming" not in err
    saved = max(int(path.name) for path in (out / "checkpoints").iterdir())
    assert saved > 2
    code, _ = stop_at(inputs, command("run"), saved + SAVE_EVERY + 4, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert not (out / "model").exists()
    # What a crash in mid-write leaves: half a line.
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"step": 11, "ut')
    code, err = finish(inputs, command("run"))
    assert code == 0, err
    found = re.search(r"resuming at step (\d+)", err)
    assert found and int(found[1]) > saved, err
    assert_same_run(out, whole)
    # The model did change, so equality says something.
    before = load_file(inputs / "model" / "model.safetensors")
    key = "text_projection.weight"
    assert np.abs(weights(whole)[key] - before[key]).max() > 1e-4


def test_run_resumes_after_its_last_step(tmp_path, whole, monkeypatch):
    inputs = shutil.copytree(whole.parent, tmp_path / "inputs")
    want = weights(whole)
    (inputs / "run" / "summary.json").unlink()  # killed between the model and the summary
    monkeypatch.chdir(inputs)
    assert main(command("run")) == 0
    for name, value in weights(inputs / "run").items():
        np.testing.assert_array_equal(value, want[name])
    summary = json.loads((inputs / "run" / "summary.json").read_text())
    assert set(summary["final"]) == {"utility", "backdoor", "name", "weight", "total"}


def test_run_writes_what_it_promises(inputs):
    summary = defend_text(config(inputs, "run"))
    out = inputs / "run"
    assert json.loads((out / "summary.json").read_text()) == as_json(summary)
    assert summary.steps == 5 and summary.identities == 2
    assert json.loads((out / "config.json").read_text())["train"]["num_clean"] == 8
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert rows[-1]["total"] == summary.final["total"]
    times = [row["time"] for row in rows]
    assert times == sorted(times) and 0 <= time.time() - times[-1] < 600
    assert all(row["samples_per_second"] > 0 for row in rows)
    schedule = make_optimizer(**vars(PAPER_TEXT_OPTIMIZER), steps=5).lr
    wanted = [np.asarray(schedule(step)) for step in range(5)]
    np.testing.assert_allclose([row["lr"] for row in rows], wanted, rtol=1e-6)
    # At step 0 the student is the teacher.
    np.testing.assert_allclose([rows[0]["utility"], rows[0]["weight"]], [-1, 0], atol=1e-6)


def test_throughput_of_a_line_is_since_the_line_before_and_leaves_validations_out(
    tmp_path, monkeypatch
):
    now = [10.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    metrics: Any = {"total": np.float32(1)}
    with loop._Log(tmp_path / "metrics.jsonl", 0, 64, Tracker({})) as log:
        now[0] += 8  # compiles
        log.write(0, metrics)
        now[0] += 2
        log.write(1, metrics)
        now[0] += 100
        log.leave_out(99)
        log.write(2, metrics)
    again = loop._Log(tmp_path / "metrics.jsonl", 2, 64, Tracker({}))
    assert again.last == {"total": 1}  # what no step computed is none of its metrics
    with again:
        now[0] += 4
        again.write(2, metrics)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["samples_per_second"]) for row in rows] == [(0, 8), (1, 32), (2, 16)]


def test_run_stops_on_a_number_that_is_none(inputs):
    with pytest.raises(Diverged, match=r"step \d+: `\w+` is"):
        defend_text(config(inputs, "run", {"distance": "mse"}, lr=1e30))
    saved = list((inputs / "run" / "checkpoints").iterdir())
    assert not saved  # a broken state is not saved
    assert not (inputs / "run" / "model").exists()


def test_run_stops_on_parameters_that_are_none(inputs, monkeypatch):
    # The metrics of a step are those before it: the last step's result never shows in them.
    assert loop._all_finite({"a": jnp.ones(3), "b": jnp.ones(2)})
    assert not loop._all_finite({"a": jnp.ones(3), "b": jnp.array([1, jnp.inf])})
    monkeypatch.setattr(loop, "_all_finite", lambda tree: np.array(False))
    with pytest.raises(Diverged, match="step 0: made parameters"):
        defend_text(config(inputs, "run", {"steps": 1}))
    assert not (inputs / "run" / "model").exists()


def test_run_counts_name_captions_in_the_loss(inputs):
    train = {"num_name": 4, "w_name": 0.5}
    defend_text(config(inputs, "run", train))
    rows = (inputs / "run" / "metrics.jsonl").read_text().splitlines()
    row = json.loads(rows[-1])
    want = row["utility"] + 0.6 * row["backdoor"] + 0.5 * row["name"] + 0.01 * row["weight"]
    np.testing.assert_allclose(row["total"], want, rtol=1e-5)
    assert row["name"] < -0.9


@pytest.mark.parametrize("option", [{"random_target": True}, {"target": "a person"}])
def test_run_takes_other_targets(inputs, option):
    summary = defend_text(config(inputs, "run", option))
    assert summary.steps == 5
    names = [people[0] for people in summary.names]
    wanted = dict(zip(names, random_names(2, 0, exclude=names), strict=True))
    assert summary.targets == (wanted if "random_target" in option else None)


def test_run_at_hidden_level(inputs):
    summary = defend_text(config(inputs, "run", {"level": "hidden"}))
    assert summary.final["utility"] < -0.9


# Checkpoints


def checkpoints(path, *steps, keep=2, losses=()):
    """Saves of one array that counts the steps."""
    saved = Checkpoints(path, keep)
    for step, loss in zip(steps, losses or [0.0] * len(steps), strict=True):
        saved.save(step, {"x": jnp.full(6, step, jnp.float32)}, loss)
    saved.close()
    return {int(file.name) for file in path.iterdir()}


def newest(path):
    saved = Checkpoints(path, 2)
    abstract = {"x": jax.ShapeDtypeStruct((6,), jnp.float32)}
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    step, found = saved.restore_newest(abstract, device)
    saved.close()
    return step, found and float(found["x"][0])


def test_checkpoints_keep_the_newest_and_the_best(tmp_path):
    kept = checkpoints(tmp_path, 1, 2, 3, 4, 5, losses=[0.3, -0.9, 0.2, 0.1, 0.0])
    assert kept == {2, 4, 5}
    assert newest(tmp_path) == (5, 5.0)


def test_checkpoint_that_is_torn_falls_back_to_the_one_before(tmp_path):
    checkpoints(tmp_path, 1, 2)
    torn = [file for file in (tmp_path / "2").rglob("d/*") if file.is_file()]
    assert torn
    for file in torn:
        file.write_bytes(file.read_bytes()[:30])
    with logged() as said:
        assert newest(tmp_path) == (1, 1.0)
    assert "checkpoint 2 cannot be restored" in said.getvalue()
    assert checkpoints(tmp_path, 2) == {1, 2} and newest(tmp_path) == (2, 2.0)  # saved again


def test_no_checkpoint_that_can_be_restored_raises(tmp_path):
    path = tmp_path / "checkpoints"
    assert newest(path) == (0, None)
    checkpoints(path, 1)
    for file in (path / "1").rglob("d/*"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"checkpoint 1 in .* is broken, or of another model"):
        newest(path)


def test_disk_that_is_full_leaves_the_last_checkpoint(inputs, monkeypatch):
    save = loop.Checkpoints.save

    def full(self, step, state, loss):
        if step == 4:
            monkeypatch.setattr(self._manager, "save", no_room)
        save(self, step, state, loss)

    def no_room(*_args, **_kwargs):
        raise ValueError("RESOURCE_EXHAUSTED: [OS error 28: No space left on device]")

    monkeypatch.setattr(loop.Checkpoints, "save", full)
    with pytest.raises(OSError, match="No space left on device; the one of step 2 is whole"):
        defend_text(config(inputs, "run", {"save_every": 2}))
    assert [file.name for file in (inputs / "run" / "checkpoints").iterdir()] == ["2"]


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of Orbax's loop
@pytest.mark.parametrize("where", ["checkpoint", "model"])
def test_file_that_cannot_grow_leaves_the_last_good_one(inputs, monkeypatch, where):
    """The system itself refuses to write on, as it does on a full disk."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    owner, name = (loop.Checkpoints, "save") if where == "checkpoint" else (ModelDirectory, "save")
    save = getattr(owner, name)

    def full(self, *args):
        if where == "checkpoint" and args[0] == 4:
            self._manager.wait_until_finished()
        if where == "model" or args[0] == 4:
            # Metrics still fit, arrays do not.
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
        return save(self, *args)

    monkeypatch.setattr(owner, name, full)
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            defend_text(config(inputs, "run", {"save_every": 2}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    last, wanted = {
        "checkpoint": ("2", "File too large; the one of step 2 is whole"),
        "model": ("5", "was not written"),
    }[where]
    assert wanted in str(caught.value)
    monkeypatch.setattr(owner, name, save)
    assert not (inputs / "run" / "model").exists()
    kept = {file.name for file in (inputs / "run" / "checkpoints").iterdir()}
    assert last in kept and (where == "model" or "4" not in kept)
    defend_text(config(inputs, "run", {"save_every": 2}))  # room was made
    assert (inputs / "run" / "summary.json").exists()


# Memory and time


def test_step_that_does_not_fit_says_what_helps():
    @jax.jit
    def step(x):
        return x + 1

    with pytest.raises(loop.OutOfMemory, match="train.accumulate") as caught:
        with loop._out_of_memory(step, jnp.ones(1 << 20)):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory: 5 GiB.\nmore")
    assert "arguments 4 MiB" in str(caught.value) and "(Out of memory: 5 GiB.)" in str(caught.value)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        with loop._out_of_memory(step, jnp.ones(1)):
            raise jax.errors.JaxRuntimeError("INTERNAL: broken")


@pytest.mark.parametrize("last", [8, 9])
def test_run_asserts_that_no_step_after_the_first_compiles(tmp_path, last):
    mesh, rules = make_mesh(devices=jax.devices()[:1]), ShardingRules()
    place, whole = batch_sharding(mesh, rules), replicated(mesh)

    def step(state, teacher, batch, key):
        total = (batch * teacher).sum()
        return state._replace(step=state.step + 1), {"total": total}

    params: Any = {"x": jnp.ones(3)}
    state = TrainState(jnp.int32(0), params, (), jnp.ones(()), jnp.ones(()))

    def run():
        return loop.run(
            jax.jit(step, donate_argnums=0),
            lambda: jax.device_put(state, whole),
            jax.tree.map(lambda _: whole, state),
            jax.device_put(2.0, whole),
            [np.ones(size, np.float32) for size in (8, 8, 8, last)],
            place,
            jax.device_put(jax.random.key(0), whole),
            loop.LoopConfig(4, 4, 1, 1, 8),
            tmp_path,
        )  # fmt: skip

    if last == 8:
        assert run().metrics["total"] == 16
    else:
        with pytest.raises(AssertionError, match=r"step 3 was compiled anew.*float32\[9\]"):
            run()


def test_profile_traces_a_few_steps(inputs):
    cfg = dataclasses.replace(config(inputs, "run", {"steps": 6}), profile=str(inputs / "trace"))
    defend_text(cfg)
    assert list((inputs / "trace").rglob("*.xplane.pb"))


def test_run_goes_on_on_another_mesh_and_in_other_parts(inputs):
    defend_text(config(inputs, "whole", {"steps": 6, "save_every": 3}))
    cfg = config(inputs, "run", {"steps": 6, "save_every": 3})
    defend_text(cfg)
    shutil.rmtree(inputs / "run" / "checkpoints" / "6")
    (inputs / "run" / "summary.json").unlink()
    cfg = config(inputs, "run", {"steps": 6, "save_every": 3, "accumulate": 2})
    mesh = MeshConfig(data=-1, fsdp=2)
    defend_text(dataclasses.replace(cfg, mesh=mesh))
    rows = []
    for out in ("run", "whole"):
        lines = (inputs / out / "metrics.jsonl").read_text().splitlines()
        rows.append([json.loads(line)["total"] for line in lines])
    np.testing.assert_allclose(*rows, rtol=1e-5)
