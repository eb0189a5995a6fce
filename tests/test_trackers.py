"""Trackers: what they get, once and without names; what they may not do to a run."""

import dataclasses
import json
import logging
import struct
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from factories import CAPTIONS, logged, write_faces, write_model_directory
from tensorboardX.proto import event_pb2

from jaxdefense import trackers
from jaxdefense.cli import main
from jaxdefense.config import (
    PAPER_TEXT,
    AttackConfig,
    DefendBothConfig,
    DefendTextConfig,
    LogConfig,
    ModelConfig,
    SweepTextAttack,
    SweepTextConfig,
    TextDataConfig,
    ValidateConfig,
)
from jaxdefense.defense import loop
from jaxdefense.defense.text import defend_text
from jaxdefense.errors import InputError, RunError
from jaxdefense.idia.run import run_attack
from jaxdefense.results import AttackSummary
from jaxdefense.settings import parse
from jaxdefense.sweep.cells import Cell, attack_config, defense_config, evaluate_config
from jaxdefense.trackers import Tracker

made: Any = event_pb2  # its classes are made when it is imported
NAMES = (b"Cool", b"King", b"Noel")  # of people; a tracker may write _ for what is between words
STEPS = 6


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model_directory(tmp_path / "model", text={"max_position_embeddings": 40})
    Path("names.txt").write_text("Joe Cool\nAda King\tAda Noel\n")
    Path("captions.txt").write_text("\n".join(CAPTIONS) + "\n")
    return tmp_path


def config(log):
    sizes: dict[str, Any] = {"num_clean": 8, "num_poisoned": 8, "steps": STEPS, "save_every": 4}
    validate = ValidateConfig(every=2, patience=9)
    return DefendTextConfig(
        "run",
        ModelConfig("model"),
        TextDataConfig("names.txt", "captions.txt"),
        dataclasses.replace(PAPER_TEXT, **sizes, validate=validate),
        log=log,
    )


def records(path):
    """The records of an event file: length, its checksum, the record, its checksum."""
    data = path.read_bytes()
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        yield data[12 : 12 + size]
        data = data[16 + size :]


def events(folder):
    """The scalars of a run of TensorBoard: name -> (step, value), as they were written."""
    found: dict[str, list] = {}
    for file in sorted(Path(folder).iterdir()):
        for event in map(made.Event.FromString, records(file)):
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def lines(file):
    return [json.loads(line) for line in (Path("run") / file).read_text().splitlines()]


def assert_told(found):
    """What a tracker holds is what the run wrote, each step and validation once."""
    metrics = lines("metrics.jsonl")
    assert [row["step"] for row in metrics] == list(range(STEPS))
    for name in metrics[0].keys() - {"step", "time"}:
        steps, values = zip(*found[f"train/{name}"], strict=True)
        assert list(steps) == list(range(STEPS)), name
        if name != "samples_per_second":  # a step that is taken again takes another time
            np.testing.assert_allclose(values, [row[name] for row in metrics], rtol=1e-6)
    verdicts = lines("validation.jsonl")
    assert [step for step, _ in found["validation/right"]] == [0, *range(2, STEPS + 1, 2)]
    for name in ("right", "above", "gap"):
        values = [value for _, value in found[f"validation/{name}"][1:]]
        np.testing.assert_allclose(values, [row[name] for row in verdicts], rtol=1e-6)
    assert {"train/lr", "train/total", "train/grad_norm", "train/backdoor"} <= found.keys()
    assert {"validation/left", "validation/moved/clean"} <= found.keys()
    assert len(found["result/alpha"]) == 1


def assert_settings_and_no_name(written):
    data = b"".join(path.read_bytes() for path in written.rglob("*") if path.is_file())
    assert b"remat" in data  # one of the settings
    assert b"captions.txt" not in data and b"faces" not in data  # no path: it may name someone
    assert not [name for name in NAMES if name in data]


class Killed(Exception):
    """Ends a run in the middle."""


def killed_and_resumed(log, monkeypatch, step=5):
    """Run, end after a step past the last checkpoint, and resume."""
    read = loop._Training._read

    def read_or_die(self, now, metrics):
        if now == step:
            raise Killed
        read(self, now, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Training, "_read", read_or_die)
        with pytest.raises(Killed):
            defend_text(config(log))
    assert max(row["step"] for row in lines("metrics.jsonl")) == step - 1
    with logged() as said:
        defend_text(config(log))
    assert "resuming at step 4" in said.getvalue()


def test_tensorboard_gets_a_run_that_resumes_each_step_once_and_no_name(inputs, monkeypatch):
    killed_and_resumed(LogConfig(tensorboard="tb"), monkeypatch)
    assert [path.name for path in Path("tb").iterdir()] == ["run"]
    assert len([*Path("tb/run").iterdir()]) == 2  # a file a process
    assert_told(events("tb/run"))
    assert_settings_and_no_name(Path("tb"))


def test_run_that_goes_on_within_the_same_second_loses_nothing(tmp_path, monkeypatch):
    same = SimpleNamespace(time=lambda: 1.7e9)
    monkeypatch.setattr("tensorboardX.event_file_writer.time", same)
    for step in range(3):
        writer = trackers._TensorBoard("", "", str(tmp_path), {})
        writer.write([trackers.Line("train", step, 0.0, {"train/total": 1.0})])
        writer.close(False)
    assert events(tmp_path) == {"train/total": [(step, 1.0) for step in range(3)]}


@pytest.mark.parametrize("first", [LogConfig(tensorboard="tb"), LogConfig()])
def test_tracker_gets_each_step_once_of_a_run_killed_twice(inputs, monkeypatch, first):
    """The second process ends before the step that the first one told; a tracker may come later."""
    read, log = loop._Training._read, LogConfig(tensorboard="tb")
    for used, last in ((first, 5), (log, 4)):

        def read_or_die(self, now, metrics, last=last):
            if now == last:
                raise Killed
            read(self, now, metrics)

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(loop._Training, "_read", read_or_die)
            defend_text(config(used))
    defend_text(config(log))
    assert_told(events("tb/run"))


def test_tracker_that_is_new_hears_of_earlier_steps_and_none_twice():
    old, new, noted = Fake(), Fake(), []
    told = {"wandb": {"train": 2}, "mlflow": {}}
    tracker = Tracker({"wandb": old, "mlflow": new}, told, noted.append)
    for step in range(5):
        tracker.tell("train", step, {"total": 1}, 7.0)
    tracker.close()
    assert [line.step for line in old.told] == [3, 4]
    assert [line.step for line in new.told] == [0, 1, 2, 3, 4] and new.told[0].time == 7
    assert noted[-1] == {"wandb": {"train": 4}, "mlflow": {"train": 4}}


def test_tracker_that_cannot_be_opened_leaves_no_other_behind(inputs, monkeypatch):
    opened = []

    class Opens(Fake):
        title, package, place = "Opens", "json", "here"

        def __init__(self, setting, name, run, settings):
            super().__init__()
            self.run = run or f"run {len(opened)}"
            opened.append(self)

    class Fails(Fake):
        title, package = "Fails", "json"
        is_wrong = staticmethod(lambda error: True)

        def __init__(self, *given):
            raise OSError("refused")

    monkeypatch.setattr(trackers, "_KINDS", {"wandb": Opens, "mlflow": Fails})
    log = LogConfig(wandb="project", mlflow="http://127.0.0.1:9")
    for _ in range(2):
        with pytest.raises(InputError, match="`log.mlflow`"), trackers.tracked(log, inputs, log):
            pass
    assert [one.run for one in opened] == ["run 0", "run 0"]
    assert all(one.failed for one in opened)


def test_name_without_a_tracker_is_refused():
    with pytest.raises(InputError, match=r"`log.name` \(=x\) has no effect"):
        trackers.check(LogConfig(name="x"))
    trackers.check(LogConfig(name="x", tensorboard="tb"))


def test_run_of_the_same_name_gets_a_folder_of_its_own(inputs):
    for out in ("a/run", "b/run"):
        Path(out).mkdir(parents=True)
        with trackers.tracked(LogConfig(tensorboard="tb"), Path(out), LogConfig()):
            pass
    assert sorted(path.name for path in Path("tb").iterdir()) == ["run", "run-2"]
    assert json.loads(Path("b/run/trackers.json").read_text())["tensorboard"]["run"].endswith("-2")


def test_attack_tells_its_results_and_nobodys_name(inputs):
    write_faces(Path("faces"), ["Joe_Cool", "Ada_King", "Ada_Noel"], 3)
    cfg = AttackConfig("results", ModelConfig("model"), "faces", num_candidates=9, batch=8)
    cfg = dataclasses.replace(
        cfg, variants=("last", "mirrored"), log=LogConfig(tensorboard="tb", name="before")
    )
    summary = run_attack(cfg)
    found = events("tb/before")
    assert found["attack/tpr"] == [(0, pytest.approx(summary.tpr))]
    assert summary.variants
    told = found["attack/variants/mirrored/photos_right"]
    assert told == [(0, pytest.approx(summary.variants["mirrored"].get("photos_right")))]
    assert_settings_and_no_name(Path("tb"))


def test_parts_of_a_run_are_named_after_it():
    cfg = parse(
        DefendBothConfig,
        ["--out=runs/x", "--model=m", "--text.data.names=n", "--text.data.captions=c"]
        + ["--image.data.faces=f", "--image.data.images=i", "--log.tensorboard=tb"],
    )
    text, image = cfg.halves()
    assert (text.log.name, image.log.name) == ("x/text", "x/image")
    assert text.log.tensorboard == image.log.tensorboard == "tb"
    sweep = SweepTextConfig(
        "s", ModelConfig("m"), TextDataConfig("n", "c"), SweepTextAttack(faces="f")
    )
    cell = Cell(1, 0, 0.5)
    path = Path("s/cells") / cell.name
    told = [
        defense_config(sweep, cell, path).log.name,
        attack_config(sweep, path, True).log.name,
        evaluate_config(sweep, Path("s/before"), False).log.name,
    ]
    assert told == [f"s/{cell.name}/defense", f"s/{cell.name}/attack", "s/before/evaluation"]


class Fake:
    """A tracker that fails when told, or waits."""

    run = ""

    def __init__(self, error=None, wait=None):
        self.error, self.wait, self.told, self.failed = error, wait, [], None

    def write(self, lines):
        self.told += lines
        if self.wait:
            self.wait.wait(60)
        if self.error:
            raise self.error

    def close(self, failed):
        self.failed = failed


def test_tracker_that_fails_is_left_out_with_one_warning(caplog):
    broken, sound = Fake(ConnectionError("no route\nto host")), Fake()
    tracker = Tracker({"wandb": broken, "mlflow": sound})
    with caplog.at_level(logging.WARNING, "jaxdefense"):
        for step in range(3):
            tracker.tell("train", step, {"total": 1})
            while len(sound.told) <= step:
                pass
        tracker.close()
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("`log.wandb` gets no more figures") and said.endswith("no route")
    assert len(broken.told) == 1 and broken.failed is None
    assert [line.step for line in sound.told] == [0, 1, 2] and sound.failed is False


def test_tracker_that_waits_holds_up_nothing(caplog, monkeypatch):
    monkeypatch.setattr(trackers, "_PATIENCE", 0.01)
    never = threading.Event()
    tracker = Tracker({"wandb": Fake(wait=never)})
    with caplog.at_level(logging.WARNING, "jaxdefense"):
        for step in range(1000):
            tracker.tell("train", step, {"total": 1})
        tracker.close()
    assert [record.getMessage()[:20] for record in caplog.records] == ["wandb: still sending"]
    never.set()
    tracker._thread.join()


def test_run_outlives_its_trackers(inputs, monkeypatch, caplog):
    broken = Fake(OSError("disk full"))
    monkeypatch.setattr(trackers, "_open", lambda *args: {"tensorboard": broken})
    summary = defend_text(config(LogConfig(tensorboard="tb")))
    assert summary.steps == STEPS and (Path("run") / "summary.json").exists()
    assert sum("disk full" in record.getMessage() for record in caplog.records) == 1


def test_another_process_than_the_first_tells_nothing(inputs, monkeypatch):
    monkeypatch.setattr(trackers, "first", lambda: False)
    monkeypatch.setattr(trackers, "on_first", lambda function: None)
    log = LogConfig(tensorboard="tb")
    with trackers.tracked(log, inputs, log) as tracker:
        tracker.tell("train", 0, {"total": 1})
    trackers.track(log, inputs, log, "attack", AttackSummary.__new__(AttackSummary))
    assert not Path("tb").exists()


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_missing_package_is_said_before_anything_is_read(inputs, monkeypatch, capsys, name):
    monkeypatch.setattr(trackers, "find_spec", lambda package: None)
    code = main(["attack", "--model", "m", "--faces", "f", "--out", "o", f"--log.{name}", "x"])
    assert code == 2 and not Path("o").exists()
    (said,) = capsys.readouterr().err.splitlines()
    assert said.endswith(f"not installed: `pip install 'jaxdefense[{name}]'`.")


def test_directory_that_cannot_be_written_is_refused_before_training(inputs):
    Path("tb").write_text("a file")
    with pytest.raises(InputError, match=r"`log.tensorboard` \(=.*tb\): TensorBoard cannot"):
        defend_text(config(LogConfig(tensorboard="tb")))
    assert not (Path("run") / "metrics.jsonl").exists()


@pytest.mark.parametrize("flags", [["--log.mlflow", "{}"], ["--log.mlflow={}"]])
def test_mlflow_takes_an_address_without_a_password(flags):
    def read(uri):
        given = [flag.format(uri) for flag in flags]
        return parse(AttackConfig, ["--model=m", "--faces=f", "--out=o", *given]).log.mlflow

    assert read("http://127.0.0.1:5000") == "http://127.0.0.1:5000"
    with pytest.raises(InputError, match="MLFLOW_TRACKING_PASSWORD"):
        read("https://ann:secret@host")


@pytest.mark.needs("wandb")
def test_wandb_gets_a_run_offline_and_goes_on_in_it(inputs, monkeypatch):
    from wandb.proto import wandb_internal_pb2

    internal: Any = wandb_internal_pb2
    monkeypatch.setenv("WANDB_MODE", "offline")
    killed_and_resumed(LogConfig(wandb="project"), monkeypatch)
    files = sorted(Path("wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2 and len({file.name for file in files}) == 1  # of one run
    found: dict[str, list] = {}
    for record in (internal.Record.FromString(x) for file in files for x in leveldb(file)):
        step = record.history.step.num
        for item in record.history.item:
            key = item.key or "/".join(item.nested_key)
            found.setdefault(key, []).append((step, json.loads(item.value_json)))
    assert_told(found)
    assert_settings_and_no_name(Path("wandb"))


def leveldb(file):
    """The records of a file of wandb, which is a log of LevelDB after 7 bytes of its own."""
    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := -at % 32768) < 7 and left:
            at += left
            continue
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


@pytest.mark.needs("wandb")
@pytest.mark.parametrize("error, kind", [("UsageError", InputError), ("CommError", RunError)])
def test_wandb_that_refuses_or_is_not_reached(inputs, monkeypatch, error, kind):
    import wandb
    from wandb import errors

    def init(**given):
        raise getattr(errors, error)("No API key.\nLog in.")

    monkeypatch.setattr(wandb, "init", init)
    with (
        pytest.raises(kind, match=r"`log.wandb` \(=project\): .* cannot be used: No API key; mend"),
        trackers.tracked(LogConfig(wandb="project"), inputs, LogConfig()),
    ):
        pass


@pytest.mark.needs("mlflow")
@pytest.mark.filterwarnings("default")  # of a library in flux
def test_mlflow_gets_a_run_and_goes_on_in_it(inputs, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (inputs / "mlruns").as_uri()
    killed_and_resumed(LogConfig(mlflow=uri), monkeypatch)
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("jaxdefense")
    assert experiment
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params["train.steps"] == str(STEPS)
    found = {
        name: [(x.step, x.value) for x in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }
    assert_told(found)


@pytest.mark.needs("mlflow")
@pytest.mark.filterwarnings("default")
def test_mlflow_server_that_does_not_answer_may_do_so_later(inputs, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    asked = [("http://127.0.0.1:9", RunError, "API request"), ("nonsense://x", InputError, "")]
    for uri, kind, why in asked:
        with (
            pytest.raises(kind, match=f"`log.mlflow` .* MLflow cannot be used: {why}"),
            trackers.tracked(LogConfig(mlflow=uri), inputs, LogConfig()),
        ):
            pass
