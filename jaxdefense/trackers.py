"""Trackers: TensorBoard, Weights & Biases and MLflow get the figures of a run while it goes on.

A tracker changes no result and holds up no step: a thread sends what the run tells, and a tracker
that fails is left out from there on, with one warning. No figure holds a person's name, and neither
does a setting that is sent. Of several processes the first alone tells.
"""

import functools
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from jaxdefense.config import LogConfig
from jaxdefense.distributed import first, on_first
from jaxdefense.errors import InputError, RunError, missing
from jaxdefense.files import write_json
from jaxdefense.results import Result
from jaxdefense.settings import PATH, settings_of

logger = logging.getLogger(__name__)

TRACKERS = "trackers.json"  # in a run directory: what each tracker calls the run
_Told = dict[str, dict[str, int]]  # tracker -> part of a run -> last step told
_PATIENCE = 30.0  # seconds that the end of a run waits for trackers
_BATCH = 1000, 100  # metrics and parameters that MLflow takes at a time


class Line(NamedTuple):
    """Figures of a step of a part, by name, and when they were read, in s since the epoch."""

    part: str
    step: int
    time: float
    values: dict[str, float]


class _Writer(Protocol):
    """Takes the figures of one run; `run` is what the tracker calls it: an id, or a folder."""

    run: str

    def write(self, lines: list[Line]) -> None:
        """Send figures."""
        ...

    def close(self, failed: bool) -> None:
        """Send the rest, and say how the run ended."""
        ...


class _TensorBoard:
    title, package = "TensorBoard", "tensorboardX"

    def __init__(self, directory: str, name: str, run: str, settings: Mapping[str, Any]):
        from tensorboardX import SummaryWriter

        self.run = run or _new_folder(Path(directory) / name)
        self.place = self.run
        # Files are named by the second, and a second one of the same name would empty the first.
        self._writer = SummaryWriter(self.run, filename_suffix=f".{time.time_ns()}")
        if not run:
            text = json.dumps(settings, indent=2, ensure_ascii=False)
            self._writer.add_text("settings", f"```json\n{text}\n```")

    @staticmethod
    def is_wrong(error: Exception) -> bool:
        return isinstance(error, OSError)

    def write(self, lines: list[Line]) -> None:
        for line in lines:
            for name, value in line.values.items():
                self._writer.add_scalar(name, value, line.step, line.time)
        self._writer.flush()

    def close(self, failed: bool) -> None:
        self._writer.close()


def _new_folder(wanted: Path) -> str:
    """Create a folder for a run; another run of the same name keeps its own."""
    for number in count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return str(folder.absolute())
    raise AssertionError


class _Wandb:
    title, package = "Weights & Biases", "wandb"

    def __init__(self, project: str, name: str, run: str, settings: Mapping[str, Any]):
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        # What the command prints may name people: it stays here, as the code does.
        own = wandb.Settings(console="off", disable_code=True, disable_git=True, silent=True)
        self._run = wandb.init(
            project=project,
            name=name,
            group=name.rpartition("/")[0] or None,
            id=run or None,
            resume="allow",
            config=dict(settings),
            settings=own,
        )
        self.run = self._run.id
        self.place = self._run.settings.sync_dir if self._run.offline else self._run.url

    @staticmethod
    def is_wrong(error: Exception) -> bool:
        from wandb.errors import UsageError

        return isinstance(error, UsageError)

    def write(self, lines: list[Line]) -> None:
        for line in lines:
            self._run.log(line.values, step=line.step)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _Mlflow:
    title, package = "MLflow", "mlflow"

    def __init__(self, uri: str, name: str, run: str, settings: Mapping[str, Any]):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # 7 would take minutes
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        from jaxdefense.report.frame import flatten

        self._metric, self._client = Metric, MlflowClient(tracking_uri=uri)
        if run:
            self._client.update_run(run, status="RUNNING")
        else:
            run = self._client.create_run(self._experiment(), run_name=name).info.run_id
            params = [Param(key, str(value)) for key, value in flatten(settings).items()]
            for some in _parts(params, _BATCH[1]):
                self._client.log_batch(run, params=some)
        self.run, self.place = run, f"run {run} of {uri}"

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "jaxdefense")
        found = self._client.get_experiment_by_name(name)
        return found.experiment_id if found else self._client.create_experiment(name)

    @staticmethod
    def is_wrong(error: Exception) -> bool:
        return "API request" not in str(error)  # a server that does not answer may do so later

    def write(self, lines: list[Line]) -> None:
        metrics = [
            self._metric(name, value, int(1000 * line.time), line.step)
            for line in lines
            for name, value in line.values.items()
        ]
        for some in _parts(metrics, _BATCH[0]):
            self._client.log_batch(self.run, metrics=some)

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self.run, "FAILED" if failed else "FINISHED")


def _parts(items: list, num: int) -> Iterator[list]:
    for start in range(0, len(items), num):
        yield items[start : start + num]


_KINDS = {"tensorboard": _TensorBoard, "wandb": _Wandb, "mlflow": _Mlflow}


class Tracker:
    """The trackers of one run, behind one call that returns at once."""

    def __init__(
        self,
        writers: Mapping[str, _Writer],
        told: _Told | None = None,
        note: Callable[[_Told], None] = lambda told: None,
    ):
        """Start the thread that sends, if there is anything to send to; see `tracked`.

        Args:
            writers: by name.
            told: what each was told before; it is not told again.
            note: takes what each was told, before it is sent.
        """
        self._writers, self._queue = dict(writers), queue.SimpleQueue()
        self._told, self._note = {name: dict((told or {}).get(name, {})) for name in writers}, note
        self._failed = False
        self._thread = threading.Thread(target=self._send, name="trackers", daemon=True)
        if writers:
            self._thread.start()

    def tell(
        self, part: str, step: int, values: Mapping[str, float], read: float | None = None
    ) -> None:
        """Tell figures to each tracker that was not told of this step before.

        Args:
            part: of the run, as train or validation; the figures are named PART/NAME.
            step: of the run; steps never fall.
            values: figures by name.
            read: when, in seconds since the epoch; None for now.
        """
        if self._writers:
            named = {f"{part}/{name}": float(value) for name, value in values.items()}
            self._queue.put(Line(part, step, read or time.time(), named))

    def close(self, failed: bool = False) -> None:
        """Send the rest and end the thread, or give up after a while."""
        if not self._thread.is_alive():
            return
        self._failed = failed
        self._queue.put(None)
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            logger.warning(
                f"{', '.join(self._writers)}: still sending after {_PATIENCE:.0f} s; the run goes "
                "on without, and its last figures may be missing there"
            )

    def _send(self) -> None:
        """Send what is told until the end; of each tracker all that waits goes at once."""
        ended = False
        while not ended:
            lines = [self._queue.get()]
            while not self._queue.empty():
                lines.append(self._queue.get())
            ended = lines[-1] is None
            new = self._new([line for line in lines if line is not None])
            for name, writer in [*self._writers.items()]:
                try:
                    if new[name]:
                        writer.write(new[name])
                    if ended:
                        writer.close(self._failed)
                except Exception as error:  # whatever a library raises: the run goes on
                    del self._writers[name]
                    logger.warning(
                        f"`log.{name}` gets no more figures of this run, which goes on: "
                        f"{_line(error)}"
                    )

    def _new(self, lines: list[Line]) -> dict[str, list[Line]]:
        """Give what each tracker was not told before, and note that it is told now."""
        new = {
            name: [line for line in lines if line.step > self._told[name].get(line.part, -1)]
            for name in self._writers
        }
        for name, some in new.items():
            self._told[name] |= {line.part: line.step for line in some}
        if any(new.values()):
            try:
                self._note(self._told)
            except OSError as error:
                logger.warning(f"`{TRACKERS}` cannot be written; a step may be told twice: {error}")
        return new


@contextmanager
def tracked(log: LogConfig, run: Path, cfg: Any) -> Iterator[Tracker]:
    """Open the trackers that the settings ask for, and close them however the run ends.

    A run that resumes goes on in the runs that its trackers know; `trackers.json` names these.

    Args:
        log: settings.
        run: its directory, which exists.
        cfg: settings of the command, to be shown.

    Raises:
        InputError: a package is missing, or a tracker refuses the setting.
        RunError: a tracker cannot be reached.
    """
    writers, file = dict[str, _Writer](), run / TRACKERS
    on_first(lambda: writers.update(_open(log, run, cfg)))
    told = {name: one.get("told", {}) for name, one in _read(file).items()} if writers else {}

    def note(told: _Told) -> None:
        kept = _read(file)
        write_json(file, kept | {name: {**kept.get(name, {}), "told": told[name]} for name in told})

    tracker, failed = Tracker(writers, told, note), True
    try:
        yield tracker
        failed = False
    finally:
        tracker.close(failed)


def track(log: LogConfig, run: Path, cfg: Any, part: str, result: Result) -> None:
    """Tell the figures of a result that is written already; a tracker that fails is a warning.

    Args:
        log, run, cfg: see `tracked`.
        part: what the figures are of, as attack.
        result: what was found.
    """
    if not (_asked(log) and first()):
        return
    try:
        tracker = Tracker(_open(log, run, cfg))
    except (InputError, RunError) as error:
        logger.warning(f"{error} The results are in `{run}`.")
        return
    tracker.tell(part, 0, result.figures())
    tracker.close()


def _asked(log: LogConfig) -> dict[str, str]:
    """Give the trackers asked for, and what the setting of each says."""
    asked = {name: getattr(log, name) for name in _KINDS}
    asked["tensorboard"] = log.tensorboard and os.path.abspath(log.tensorboard)
    return {name: value for name, value in asked.items() if value}


def check(log: LogConfig) -> None:
    """Raise InputError if a tracker's package is missing, or a name is given without tracker."""
    if log.name and not _asked(log):
        raise InputError(
            f"`log.name` (={log.name}) has no effect without a tracker; give `log.tensorboard`, "
            "`log.wandb` or `log.mlflow`, or leave it out."
        )
    for name in _asked(log):
        if find_spec(_KINDS[name].package) is None:
            raise missing(f"`log.{name}`", _KINDS[name].package, name)


def _open(log: LogConfig, run: Path, cfg: Any) -> dict[str, _Writer]:
    """Open the trackers, and note what each calls the run."""
    if _asked(log):
        check(log)
    file, writers = run / TRACKERS, dict[str, _Writer]()
    kept = _read(file)
    for name, value in _asked(log).items():
        kind, known = _KINDS[name], kept.get(name, {})
        before = known["run"] if known.get("setting") == value else ""
        told = known.get("told", {}) if before else {}
        try:
            writer = kind(value, log.name_of(str(run)), before, _sent(cfg))
        except Exception as error:  # whatever a library raises
            for opened in writers.values():
                with suppress(Exception):
                    opened.close(failed=True)
            wrong = InputError if kind.is_wrong(error) else RunError
            raise wrong(
                f"`log.{name}` (={value}): {kind.title} cannot be used: {_line(error)}; mend it, "
                "or leave the setting out."
            ) from error
        writers[name] = writer
        kept[name] = {"setting": value, "run": writer.run, "told": told}
        write_json(file, kept)  # at once: if the next one fails, a retry goes on in this run
        logger.info(f"{kind.title}: {writer.place}")
    return writers


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _sent(cfg: Any) -> dict[str, Any]:
    """Give the settings to send: no path and no free text, which may name people."""
    sent = {}
    for setting in settings_of(type(cfg)):
        if setting.type not in (PATH, "text"):
            sent[setting.key] = functools.reduce(getattr, setting.key.split("."), cfg)
    return sent


def _line(error: Exception) -> str:
    """Give the first line of what an error says."""
    said = str(error).strip().partition("\n")[0].rstrip(".")
    return said or type(error).__name__
