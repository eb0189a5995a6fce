"""Several processes over loopback: one result, one writer, and an end in bounded time.

Real processes with simulated devices, on one machine. A run of eight devices in one process, of two
times four, of four times two and of one device give the same losses; one that is killed, stopped,
spoilt or moved to another mesh goes on to the same result.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from factories import (
    CAPTIONS,
    PAPER_IMAGE_FLAGS,
    PAPER_TEXT_FLAGS,
    write_faces,
    write_model_directory,
    write_photos,
)
from safetensors.numpy import load_file

from jaxdefense import cli, distributed
from jaxdefense.config import DistributedConfig
from jaxdefense.distributed import find
from jaxdefense.sharding import ShardingRules, batch_sharding, local_rows, make_mesh

STEPS, SEEN = 12, 5  # of a run, and before it is broken off
ONE_DEVICE, EIGHT, TWO_BY_FOUR, FOUR_BY_TWO = (1, 1), (1, 8), (2, 4), (4, 2)
HEARTBEAT = 10
# Eight devices cut these, and every size differs.
TEXT = {"hidden_size": 12, "intermediate_size": 20, "num_attention_heads": 2}
VISION = {"hidden_size": 8, "intermediate_size": 28, "num_attention_heads": 2}

pytestmark = pytest.mark.skipif(jax.default_backend() != "cpu", reason="processes of CPU devices")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    path = tmp_path_factory.mktemp("processes")
    write_model_directory(path / "model", text=TEXT, vision=VISION)
    (path / "names.txt").write_text("Joe Cool\nAda King\tAda Noel\n")
    (path / "captions.txt").write_text("\n".join(CAPTIONS) + "\n")
    write_photos(path / "images", 11)
    write_faces(path / "faces", ["Joe Cool", "Ada King", "Zoe"], 4)
    write_faces(path / "attacked", ["Joe Cool", "Ada King", "Zoe", "Ada Ek", "Bo Li"], 5)
    (path / "attacked" / "Zoe" / "3.png").write_bytes(b"broken")
    return path


class Processes:
    """The processes of one command, each with its devices; what they say is kept."""

    def __init__(self, inputs, shape, command, *each):
        """Start them in a directory, or each in its own; `each` are arguments of single ones."""
        num, devices = shape
        env = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONUNBUFFERED": "1",
        }
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.started = time.monotonic()
        self.running, self.said = [], [[] for _ in range(num)]
        for i in range(num):
            flags = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", str(num)]
            flags += ["--process-id", str(i), "--set", f"distributed.heartbeat={HEARTBEAT}"]
            own = each[i] if i < len(each) else []
            process = subprocess.Popen(
                [sys.executable, "-m", "jaxdefense.cli", *command, *flags, *own],
                cwd=inputs[i] if isinstance(inputs, tuple) else inputs,
                env=env,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
            self.running.append(process)
            threading.Thread(target=self._listen, args=(i,), daemon=True).start()

    def _listen(self, i):
        with self.running[i].stderr as said:
            for line in said:
                self.said[i].append(line)

    def wait_for(self, file: Path, num: int):
        """Until a file has so many lines."""
        deadline = time.monotonic() + 180
        while not (file.exists() and file.read_text().count("\n") >= num):
            assert all(p.poll() is None for p in self.running), self.text()
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.01)

    def finish(self, timeout=240):
        """Wait for all; exit codes."""
        deadline = time.monotonic() + timeout
        try:
            codes = [p.wait(max(0.1, deadline - time.monotonic())) for p in self.running]
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s\n{self.text()}") from None
        finally:
            for p in self.running:
                with contextlib.suppress(ProcessLookupError):
                    p.kill()
        time.sleep(0.2)  # for the last lines
        return codes

    def text(self, i=None):
        parts = self.said if i is None else [self.said[i]]
        return "\n".join("".join(part) for part in parts)


def text_command(out, *settings):
    sizes = ["train.num_clean=8", "train.num_poisoned=8", f"train.steps={STEPS}"]
    sizes += PAPER_TEXT_FLAGS
    sets = [x for s in (*sizes, "train.save_every=4", *settings) for x in ("--set", s)]
    flags = ["--model", "model", "--names", "names.txt", "--captions", "captions.txt"]
    return ["defend", "text", *flags, *sets, "--out", out]


def both_command(out):
    sets = []
    for half, paper in (("text", PAPER_TEXT_FLAGS), ("image", PAPER_IMAGE_FLAGS)):
        sets += [f"{half}.{setting}" for setting in paper]
        sets += [f"{half}.train.num_clean=8", f"{half}.train.num_poisoned=8"]
        sets += [f"{half}.train.steps={STEPS}", f"{half}.train.save_every={STEPS}"]
    sets += ["text.train.target=human", f"image.data.cache_dir={out}-cache"]
    flags = ["--model", "model", "--names", "names.txt", "--captions", "captions.txt"]
    flags += ["--faces", "faces", "--images", "images"]
    return ["defend", "both", *flags, *(x for s in sets for x in ("--set", s)), "--out", out]


def attack_command(out, *settings):
    sets = ["num_candidates=40", "candidate_block=16", "batch=16", "max_corrupt=1", *settings]
    flags = ["--model", "model", "--faces", "attacked", "--variants", "last,grey"]
    return ["attack", *flags, *(x for s in sets for x in ("--set", s)), "--out", str(out)]


def evaluate_command(model, out, *settings):
    sets = ["batch=16", "max_corrupt=1", "target=human", *settings]
    flags = ["--model", str(model), "--teacher", "model", "--captions", "captions.txt"]
    flags += ["--names", "names.txt", "--images", "images", "--zeroshot", "attacked"]
    flags += ["--faces", "attacked", "--image-target", "faces", "--collateral", "others.txt"]
    return ["evaluate", *flags, *(x for s in sets for x in ("--set", s)), "--out", str(out)]


def answers(out):
    return (out / "results.csv").read_text(), json.loads((out / "summary.json").read_text())


def alone(inputs, devices, command):
    """Run a command in this process, on some of its devices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(inputs)
        chosen = jax.devices()[:devices]
        patch.setattr(jax, "devices", lambda: chosen)
        assert cli.main(command) == 0


def losses(path, steps=STEPS):
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(steps))
    return np.array([[row["total"], row["utility"], row["backdoor"]] for row in rows])


def weights(path):
    return load_file(path / "model" / "model.safetensors")


def worst(a, b):
    return np.max(np.abs(a - b) / np.abs(b))


@pytest.fixture(scope="module")
def whole(inputs):
    """Runs of both defenses that nothing disturbs, by shape; each made once."""
    made = {}

    def run(shape):
        if shape not in made:
            out = f"whole-{shape[0]}x{shape[1]}"
            if shape[0] > 1:
                processes = Processes(inputs, shape, both_command(out))
                assert processes.finish() == [0] * shape[0], processes.text()
            else:
                alone(inputs, shape[1], both_command(out))
            made[shape] = inputs / out
        return made[shape]

    return run


@pytest.mark.parametrize(
    "shape",
    [TWO_BY_FOUR, *(pytest.param(shape, marks=pytest.mark.slow) for shape in (EIGHT, FOUR_BY_TWO))],
)
@pytest.mark.parametrize("half", ["text", "image"])
def test_losses_are_those_of_one_device(whole, shape, half):
    apart = worst(losses(whole(shape) / half), losses(whole(ONE_DEVICE) / half))
    print(f"{half} {shape}: {apart:.1e}")
    assert apart < 1e-5


@pytest.mark.slow
def test_a_run_that_follows_another_is_that_of_one_device(inputs):
    """From its weights, with its people."""
    alone(inputs, 1, text_command("first", "optimizer.lr=0.003"))
    (inputs / "new.txt").write_text("Zoe\n")

    def command(out):
        return ["defend", "text", "--after", "first", "--names", "new.txt", "--out", out]

    alone(inputs, 1, command("next-1x1"))
    processes = Processes(inputs, TWO_BY_FOUR, command("next-2x4"))
    assert processes.finish() == [0] * 2, processes.text()
    one, two = (inputs / f"next-{shape}" for shape in ("1x1", "2x4"))
    assert worst(losses(two), losses(one)) < 1e-5
    assert losses(one)[0, 1] > -1 + 1e-4  # the student does not begin as its teacher
    entries = [json.loads((x / "ledger.json").read_text())["runs"] for x in (one, two)]
    assert [[x["how"] for x in runs] for runs in entries] == [["first", "replay"]] * 2
    assert [x["people"] for x in entries[1]] == [2, 3]


def test_one_process_writes_and_the_others_keep_a_log(whole):
    out = whole(TWO_BY_FOUR)
    assert [file.name for file in (out / "logs").iterdir()] == ["process-1.log"]
    assert "defended model" in (out / "logs" / "process-1.log").read_text()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["text"]["steps"] == summary["image"]["steps"] == STEPS
    assert weights(out).keys() == load_file(out.parent / "model" / "model.safetensors").keys()


@pytest.mark.slow
@pytest.mark.parametrize("shape", [TWO_BY_FOUR, FOUR_BY_TWO])
def test_killed_process_ends_the_others_and_the_run_goes_on(inputs, whole, shape):
    out = f"killed-{shape[0]}"
    processes = Processes(inputs, shape, text_command(out))
    processes.wait_for(inputs / out / "metrics.jsonl", SEEN)
    last = shape[0] - 1
    processes.running[last].kill()
    killed = time.monotonic()
    codes = processes.finish(HEARTBEAT + 30)
    print(f"ended {time.monotonic() - killed:.1f} s after the kill: {codes}")
    assert codes[last] == -signal.SIGKILL and all(codes), codes
    for i in range(last):  # JAX's own words
        said = processes.text(i)
        assert re.search(rf"stopped sending heartbeats\):\s+\S*{last}\b", said), said
    assert not (inputs / out / "model").exists()
    # The kill may come before the first checkpoint is whole.
    saved = [x.name for x in (inputs / out / "checkpoints").iterdir() if x.name.isdecimal()]
    processes = Processes(inputs, shape, text_command(out))
    assert processes.finish() == [0] * shape[0], processes.text()
    assert ("resuming at step" in processes.text(0)) == bool(saved)
    ours, theirs = weights(inputs / out), weights(whole(shape) / "text")
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def stopped_at(processes, out):
    """The step that all saved when they were stopped, and what checkpoints there are."""
    assert set(processes.finish()) == {143}, processes.text()
    saved = sorted(int(path.name) for path in (out / "checkpoints").iterdir())
    for i in range(len(processes.running)):
        said = processes.text(i)
        assert f"SIGTERM after step {saved[-1]}, checkpoint saved" in said, processes.text()
    return saved


@pytest.mark.slow
@pytest.mark.parametrize("shape", [TWO_BY_FOUR, FOUR_BY_TWO])
def test_stopped_processes_save_one_step_and_go_on_elsewhere(inputs, shape):
    steps = f"train.steps={2 * STEPS}"  # enough for two stops
    unstopped, stopped = (f"{x}-{shape[0]}" for x in ("unstopped", "stopped"))
    alone(inputs, 1, text_command(unstopped, steps))
    out = inputs / stopped
    processes = Processes(inputs, TWO_BY_FOUR, text_command(stopped, steps))
    processes.wait_for(out / "metrics.jsonl", SEEN)
    processes.running[1].send_signal(signal.SIGTERM)  # to one; all hear of it
    *_, whole, torn = stopped_at(processes, out)
    # The newest is torn, and the run moves to another mesh, or to more processes too.
    for file in (out / "checkpoints" / str(torn)).rglob("d/*"):
        file.write_bytes(file.read_bytes()[:40])
    command = text_command(stopped, steps, "mesh.fsdp=2", "mesh.tensor=2")
    processes = Processes(inputs, shape, command)
    processes.wait_for(out / "metrics.jsonl", torn + 2)  # more than were there
    for process in processes.running:
        process.send_signal(signal.SIGTERM)
    assert stopped_at(processes, out)[-1] > torn
    assert f"checkpoint {torn} cannot be restored" in processes.text(0)
    assert f"resuming at step {whole}" in processes.text(0)
    # One process is enough for the rest.
    alone(inputs, 8, text_command(stopped, steps))
    assert worst(losses(out, 2 * STEPS), losses(inputs / unstopped, 2 * STEPS)) < 1e-5


@pytest.mark.slow
def test_all_processes_stopped_at_once_save_one_step_and_go_on(inputs, whole):
    out = inputs / "all-stopped"
    processes = Processes(inputs, TWO_BY_FOUR, text_command("all-stopped"))
    processes.wait_for(out / "metrics.jsonl", SEEN)
    for process in processes.running:
        process.send_signal(signal.SIGTERM)
    saved = stopped_at(processes, out)
    processes = Processes(inputs, TWO_BY_FOUR, text_command("all-stopped"))
    assert processes.finish() == [0, 0], processes.text()
    assert f"resuming at step {saved[-1]}" in processes.text(0)
    ours, theirs = weights(out), weights(whole(TWO_BY_FOUR) / "text")
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.fixture(scope="module")
def wanted(inputs):
    """What the attack on one device finds."""
    alone(inputs, 1, attack_command("attack-1", "cache_dir=none"))
    found = answers(inputs / "attack-1")
    assert found[1]["photos_per_identity"] == {"min": 4, "max": 5}
    return found


def test_attack_gives_the_answers_of_one_device(inputs, wanted, tmp_path):
    alone(inputs, 8, attack_command("attack-8", "cache_dir=cache", "mesh.fsdp=2", "mesh.tensor=2"))
    assert answers(inputs / "attack-8") == wanted
    # Half of one host's cache is lost, and the other host has none.
    kept = sorted((inputs / "cache").iterdir())
    for file in kept[::2]:
        file.unlink()
    assert len(kept) > 4
    for name in ("model", "attacked"):
        (tmp_path / name).symlink_to(inputs / name)
    command = attack_command(inputs / "attack-2x4", "cache_dir=cache")
    processes = Processes((inputs, tmp_path), TWO_BY_FOUR, command)
    assert processes.finish() == [0, 0], processes.text()
    assert answers(inputs / "attack-2x4") == wanted
    assert sorted((inputs / "cache").iterdir()) == kept and not (tmp_path / "cache").exists()
    assert "3.png" in processes.text(0)
    assert "3.png" in (inputs / "attack-2x4" / "logs" / "process-1.log").read_text()


@pytest.mark.slow
def test_attack_on_another_mesh_gives_the_answers_of_one_device(inputs, wanted):
    command = attack_command("attack-4x2", "cache_dir=none", "mesh.fsdp=2", "mesh.tensor=2")
    processes = Processes(inputs, FOUR_BY_TWO, command)
    assert processes.finish() == [0] * 4, processes.text()
    assert answers(inputs / "attack-4x2") == wanted


@pytest.mark.slow
def test_evaluate_measures_what_one_device_does(inputs, whole):
    (inputs / "others.txt").write_text("Ada Ek\nBo Li\n")
    model = whole(ONE_DEVICE) / "model"
    alone(inputs, 1, evaluate_command(model, "evaluate-1"))
    command = evaluate_command(model, "evaluate-2x4", "mesh.fsdp=2", "mesh.tensor=2")
    processes = Processes(inputs, TWO_BY_FOUR, command)
    assert processes.finish() == [0, 0], processes.text()
    found = [
        jax.tree.leaves_with_path(json.loads((inputs / out / "summary.json").read_text()))
        for out in ("evaluate-1", "evaluate-2x4")
    ]
    for (path, one), (same, other) in zip(*found, strict=True):
        assert path == same
        assert one == (pytest.approx(other, rel=1e-5) if isinstance(other, float) else other), path


def test_processes_that_disagree_say_so_and_end(inputs):
    own = [[], ["--set", "train.w_backdoor=0.7"]]
    processes = Processes(inputs, (2, 1), text_command("disagree"), *own)
    assert processes.finish(60) == [2, 2], processes.text()
    host = re.escape(socket.gethostname())
    for i in range(2):
        lines = [x for x in processes.said[i] if x.startswith("jaxdefense:")]
        assert len(lines) == 1, processes.text(i)
        assert re.search(
            rf"`train.w_backdoor` is 0.7 on process 1 \({host}\), 0.6 on process 0", lines[0]
        )
    assert not (inputs / "disagree").exists()


def test_error_of_one_process_ends_the_others(inputs, tmp_path):
    # The same settings, but the other host's disk has no captions.
    for name in ("model", "names.txt"):
        (tmp_path / name).symlink_to(inputs / name)
    processes = Processes((inputs, tmp_path), (2, 1), text_command("alone"))
    assert processes.finish(60) == [1, 2], processes.text()
    assert "captions.txt` does not exist" in processes.text(1)
    assert re.search(r"jaxdefense: process 1 \(.*\) ended: .*does not exist", processes.text(0))


def test_coordinator_that_does_not_answer_is_given_up(inputs):
    flags = ["--coordinator", "127.0.0.1:9", "--num-processes", "2", "--process-id", "1"]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "jaxdefense.cli", *text_command("none"), *flags]
        + ["--set", "distributed.timeout=3"],
        cwd=inputs,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 2, done.stderr
    lines = [x for x in done.stderr.splitlines() if x.startswith("jaxdefense:")]
    assert len(lines) == 1 and "127.0.0.1:9" in lines[0], done.stderr
    assert "does not answer within 3 s" in lines[0]
    assert time.monotonic() - started < 40


# How processes find one another


def joined(environ, **settings):
    return find(DistributedConfig(**settings), environ)


def test_process_is_alone_unless_told():
    assert joined({}) is None
    assert joined({"JAX_NUM_PROCESSES": "1"}) is None
    assert joined({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}) is None
    assert joined({}, num_processes=1, process_id=0, coordinator="a:1") is None


def test_settings_go_before_the_environment():
    wanted = {"coordinator_address": "a:1", "num_processes": 4, "process_id": 0}
    environ = {
        "JAX_COORDINATOR_ADDRESS": "b:2",
        "JAX_NUM_PROCESSES": "4",
        "JAX_PROCESS_ID": "3",
    }
    assert joined({}, coordinator="a:1", num_processes=4, process_id=0) == wanted
    assert joined(environ, coordinator="a:1", process_id=0) == wanted
    assert joined(environ) == {
        "coordinator_address": "b:2",
        "num_processes": 4,
        "process_id": 3,
    }


def test_indexed_job_names_its_first_pod(monkeypatch):
    monkeypatch.setattr(socket, "getfqdn", lambda: "train-3.svc.ns.svc.cluster.local")
    found = joined({"JOB_COMPLETION_INDEX": "3"}, num_processes=8)
    assert found == {
        "coordinator_address": "train-0.svc.ns.svc.cluster.local:8476",
        "num_processes": 8,
        "process_id": 3,
    }


def test_slurm_is_left_to_jax(monkeypatch):
    environ = {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "node[1-2]",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": "1",
        "SLURM_LOCALID": "0",
    }
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert joined(environ) == {"cluster_detection_method": "slurm"}
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert joined(environ | {"SLURM_NTASKS": "1"}) is None


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"coordinator": "a:1"}, "give all three"),
        ({"num_processes": 2, "process_id": 0}, "give all three"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 2}, r"\(=2\) must be below"),
        ({"coordinator": "a", "num_processes": 2, "process_id": 0}, "must be HOST:PORT"),
    ],
)
def test_half_said_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        joined({}, **settings)


def test_alone_every_word_is_its_own():
    assert distributed.exchange("x") == ["x"]
    assert distributed.on_first(lambda: 3) == 3
    distributed.agree({"a": 1})
    stop = distributed.Stop(5)
    assert stop(1, 0) == 0 and stop(2, 15) == 15
    assert local_rows(batch_sharding(make_mesh(), ShardingRules()), 16).all()
