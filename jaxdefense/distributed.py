"""Several processes that work as one: how they join, agree and end.

Processes exchange messages through the key-value store of JAX's coordination service. It needs no
device, so it works before the first step, and when processes run different programs. JAX offers it
to its own libraries alone; only this module uses the private client.

That service notices a dead process by its missing heartbeats, ends all others, and names the index.
A process that ends with an error tells the others itself.
"""

import hashlib
import io
import itertools
import json
import os
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax._src import distributed as _jax_distributed
from jax._src.clusters import ClusterEnv

import jaxdefense
from jaxdefense.buckets.places import as_given
from jaxdefense.config import DistributedConfig
from jaxdefense.errors import InputError, RunError

_PORT = 8476
_GRACE = 3.0  # seconds for a process to report its own error before another's error ends it
_FAILED = "jaxdefense/failed"
_calls = itertools.count()
_ending = threading.Lock()
_heartbeat = 0  # seconds


def initialize(cfg: DistributedConfig) -> None:
    """Join the other processes, if there are any; end this one if they do not join in time.

    A process that has joined, for an earlier command or by its own program, stays as it is.

    Raises:
        InputError: the settings say only part of how to join, or are wrong.
    """
    global _heartbeat
    if _client() is not None or (how := find(cfg, os.environ)) is None:
        return
    _heartbeat = cfg.heartbeat
    jax.config.update("jax_enable_preemption_service", False)  # it would catch SIGTERM
    # JAX would also end the process, but with a stack trace and without saying what it waited for.
    clock = threading.Timer(cfg.timeout, _give_up, (how, cfg.timeout))
    clock.daemon = True
    clock.start()
    try:
        jax.distributed.initialize(
            **how,
            initialization_timeout=cfg.timeout + 60,
            heartbeat_timeout_seconds=cfg.heartbeat,
        )
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        raise InputError(f"cannot join the other processes ({_describe(how)}): {error}") from error
    finally:
        clock.cancel()
    threading.Thread(target=_watch, daemon=True).start()


def find(cfg: DistributedConfig, environ: Mapping[str, str]) -> dict[str, Any] | None:
    """Find how to join: arguments of `jax.distributed.initialize`, or None for a single process.

    The settings come first; then JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID;
    then what JAX finds from SLURM, Open MPI and TPU pods. In an indexed job or a JobSet of
    Kubernetes only the number must be given: a pod's name holds the rest.

    Raises:
        InputError: part of it is given, and the rest cannot be found.
    """
    coordinator = cfg.coordinator or environ.get("JAX_COORDINATOR_ADDRESS", "")
    num = cfg.num_processes or _number(environ, "JAX_NUM_PROCESSES", 0)
    index = cfg.process_id if cfg.process_id >= 0 else _number(environ, "JAX_PROCESS_ID", -1)
    pod = environ.get("JOB_COMPLETION_INDEX", "")
    if num == 1:
        return None
    if pod and num:
        index = index if index >= 0 else int(pod)
        coordinator = coordinator or f"{_first_pod(pod, socket.getfqdn())}:{_PORT}"
    if coordinator and num and index >= 0:
        if index >= num:
            raise InputError(
                f"`distributed.process_id` (={index}) must be below `distributed.num_processes` "
                f"(={num})."
            )
        if not coordinator.rpartition(":")[2].isdigit():
            raise InputError(f"`distributed.coordinator` (={coordinator}) must be HOST:PORT.")
        return {"coordinator_address": coordinator, "num_processes": num, "process_id": index}
    for cluster in ClusterEnv._cluster_types:
        if cluster.opt_in_only_method or (cluster.name == "k8s" and not pod):
            continue
        if cluster.name == "slurm" and environ.get("SLURM_NTASKS") == "1":
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from a library that Kubernetes no longer needs
            if cluster.is_env_present():
                given = {
                    "coordinator_address": coordinator or None,
                    "num_processes": num or None,
                    "process_id": index if index >= 0 else None,
                }
                given = {name: value for name, value in given.items() if value is not None}
                return given | {"cluster_detection_method": cluster.name}
    if coordinator or num or index >= 0:
        raise InputError(
            "`distributed.coordinator`, `distributed.num_processes` and `distributed.process_id` "
            f"go together (={coordinator!r}, {num}, {index}); give all three."
        )
    return None


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    try:
        return int(environ.get(name, default))
    except ValueError:
        raise InputError(f"{name} (={environ[name]!r}) must be a whole number.") from None


def _first_pod(index: str, name: str) -> str:
    """Turn the full name of a pod of an indexed job into that of the job's first pod."""
    pod, dot, domain = name.partition(".")
    return pod.removesuffix(index) + "0" + dot + domain


def _describe(how: Mapping[str, Any]) -> str:
    if "process_id" in how and "num_processes" in how:
        who = f"process {how['process_id']} of {how['num_processes']}"
        return f"{who}, coordinator {how.get('coordinator_address', 'found by JAX')}"
    return f"as {how['cluster_detection_method']} tells"


def _give_up(how: Mapping[str, Any], timeout: int) -> None:
    waited = (
        "the other processes did not all come"
        if how.get("process_id") == 0
        else "the coordinator does not answer"
    )
    print(
        f"jaxdefense: error: {_describe(how)}: {waited} within {timeout} s "
        "(`distributed.timeout`); start all of them, with one coordinator that they reach.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


def several() -> bool:
    """Whether there are other processes."""
    return _jax_distributed.global_state.client is not None and jax.process_count() > 1


def first() -> bool:
    """Whether this process is the one that writes."""
    return not several() or jax.process_index() == 0


def _client() -> Any:
    return _jax_distributed.global_state.client


def _who(index: int, host: str) -> str:
    return f"process {index} ({host})"


def _key() -> str:
    # All processes make the same calls in the same order.
    return f"jaxdefense/{next(_calls)}"


def _get(key: str) -> str:
    """Wait for a message; if its sender ends, this process ends too, see above."""
    while True:
        try:
            return _client().blocking_key_value_get(key, 60_000)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def exchange(value: str) -> list[str]:
    """Exchange one value a process; return all, in order of processes."""
    if not several():
        return [value]
    key = _key()
    _client().key_value_set(f"{key}/{jax.process_index()}", value)
    return [_get(f"{key}/{i}") for i in range(jax.process_count())]


def on_first(function: Callable[[], Any]) -> Any:
    """Call a function on the process that writes, and return its JSON value on all.

    Raises:
        InputError: on the other processes, if it raised one.
        RunError: on them, if it raised anything else.
    """
    if not several():
        return function()
    key = _key()
    if jax.process_index():
        answer = json.loads(_get(key))
        if "input" in answer:
            raise InputError(answer["input"])
        if "fault" in answer:
            raise RunError(answer["fault"])
        return answer["value"]
    try:
        value = function()
    except Exception as error:
        kind = "input" if isinstance(error, InputError) else "fault"
        _client().key_value_set(key, json.dumps({kind: f"on process 0: {_line(error)}"}))
        raise
    _client().key_value_set(key, json.dumps({"value": value}))
    return value


def agree(settings: Mapping[str, Any]) -> None:
    """Check that all processes have the same settings.

    Raises:
        InputError: on every process; names the settings that differ, and the processes.
    """
    flat = dict(_flat(settings))
    told = [json.loads(x) for x in exchange(json.dumps([socket.gethostname(), flat]))]
    (host, wanted), differences = told[0], []
    for i, (other, found) in enumerate(told):
        differences += [
            f"`{key}` is {found.get(key)!r} on {_who(i, other)}, {wanted.get(key)!r} on "
            f"{_who(0, host)}"
            for key in wanted.keys() | found.keys()
            if found.get(key) != wanted.get(key)
        ]
    if differences:
        raise InputError(f"the processes do not agree: {'; '.join(sorted(differences))}.")


def _flat(tree: Mapping[str, Any], at: str = "") -> Any:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{at}{key}.")
        else:
            yield at + key, json.loads(json.dumps(value))


def program() -> dict[str, str]:
    """Describe the program: versions, and the hash of the package's source."""
    package, digest = Path(jaxdefense.__file__).parent, hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    return {
        "jaxdefense": jaxdefense.__version__,
        "jaxdefense source": digest.hexdigest()[:16],
        "jax": jax.__version__,
    }


class Stop:
    """Agrees on the step after which all processes stop, once one of them got a signal.

    A process reads the metrics of a step only after every process began it, and one step late. So
    no process is more than two steps ahead of the one with the signal, and all learn of it in time.
    """

    def __init__(self, steps: int):
        """Start with no signal; the run has `steps`."""
        self._steps, self._key, self._told, self._at = steps, _key(), False, ""

    def __call__(self, done: int, signum: int, last: bool = False) -> int:
        """Return the signal to stop for after `done` steps, or 0; `signum` is this process's, or 0.

        Args:
            done, signum: see above.
            last: whether no step follows, although the run has more.
        """
        last = last or done == self._steps
        if not several():
            return signum
        client = _client()
        if signum and not self._told:
            self._told = True
            try:
                client.key_value_set(self._key, f"{done + 2} {signum}")
            except jax.errors.JaxRuntimeError as error:  # another process was first
                if "ALREADY_EXISTS" not in str(error):
                    raise
        if last:  # one process may get a signal after another's last look
            client.wait_at_barrier(f"{self._key}/last", 600_000)
        if not self._at:
            try:
                self._at = client.key_value_try_get(self._key)
            except jax.errors.JaxRuntimeError as error:
                if "NOT_FOUND" not in str(error):
                    raise
                return 0
        at, agreed = map(int, self._at.split())
        return agreed if done >= at or last else 0


class Log(io.TextIOBase):
    """The log of a process that does not write the run: a file in the run directory.

    It stays in memory until the writing process has created that directory.
    """

    def __init__(self, out: Path):
        """Name it after this process; nothing is written."""
        self._out, self._kept = out, ""
        self._path = out / "logs" / f"process-{jax.process_index()}.log"

    def write(self, text: str) -> int:
        """Write, or keep, text."""
        self._kept += text
        if (self._out / "config.json").exists():
            self._path.parent.mkdir(exist_ok=True)
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(self._kept)
            self._kept = ""
        return len(text)


def _line(error: BaseException) -> str:
    return as_given(" ".join(str(error).split())) or type(error).__name__


def _may_be_a_peers(error: BaseException | None) -> bool:
    """Whether another process's death may have caused an error: JAX raises such errors then."""
    if error is None or isinstance(error, InputError):
        return False
    if isinstance(error, jax.errors.JaxRuntimeError):
        return "RESOURCE_EXHAUSTED" not in str(error)
    return isinstance(error, ConnectionError) or _may_be_a_peers(
        error.__cause__ or error.__context__
    )


def end(code: int, error: BaseException | None = None) -> None:
    """Leave the other processes; return if the command succeeded or all were stopped.

    Args:
        code: exit code.
        error: why this process ends alone; None if all end here.
    """
    if _client() is None:
        return
    if error is None:
        if _ending.acquire(blocking=False):
            jax.distributed.shutdown()
        return
    if _may_be_a_peers(error):
        time.sleep(_heartbeat + 5)  # the service names the dead process, and ends this one
    if _ending.acquire(blocking=False):
        who = _who(jax.process_index(), socket.gethostname())
        try:
            _client().key_value_set(_FAILED, f"{who} ended: {_line(error)}")
        except jax.errors.JaxRuntimeError:  # another process was first, or the service is gone
            pass
        _exit(code)
    time.sleep(60)  # the watch is ending this process


def _exit(code: int) -> None:
    """End once all processes are about to, as the first one hosts the service."""
    sys.stderr.flush()
    try:
        _client().wait_at_barrier("jaxdefense/end", int(1000 * (_GRACE + 7)))
    except jax.errors.JaxRuntimeError:
        pass
    if jax.process_index() == 0:
        time.sleep(2)  # the others must pass the barrier before the service ends
    os._exit(code)


def _watch() -> None:
    """End this process if another ended with an error."""
    client = _client()
    while True:
        try:
            line = client.blocking_key_value_get(_FAILED, 3_600_000)
            break
        except Exception:
            if _ending.locked() or _client() is None:
                return
            time.sleep(1)
    time.sleep(_GRACE)
    if _ending.acquire(blocking=False):
        print(f"jaxdefense: {line}", file=sys.stderr, flush=True)
        _exit(1)
