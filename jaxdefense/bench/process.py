"""Contestants in processes of their own: memory and threads of one are not those of another.

Who waits for their turn sleeps in a read from a pipe, so that the machine is whoever's turn it is.
"""

import multiprocessing
import os
import re
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from jaxdefense.errors import InputError


class Process:
    """A process that makes an object and calls its methods."""

    def __init__(self, make: Callable[[], Any]):
        """Start it; the object is made meanwhile.

        Args:
            make: called there; what it needs must be picklable.
        """
        spawn = multiprocessing.get_context("spawn")  # a copy would take memory and threads along
        self._pipe, there = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(there, make))
        self._process.start()
        there.close()
        self._made = False

    def __call__(self, method: str, *args: Any) -> Any:
        """Call a method and wait for what it returns.

        Raises:
            InputError: as there.
            RuntimeError: anything else went wrong there, or the process died.
        """
        if not self._made:
            self._made = True
            self._answer()
        return self._answer(method, args)

    def does(self, method: str) -> Callable[..., Any]:
        """Give a method as a function."""
        return partial(self, method)

    def _answer(self, *question: Any) -> Any:
        try:
            if question:
                self._pipe.send(question)
            error, value = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            raise RuntimeError(
                f"a process of the benchmark died (exit code {self._process.exitcode}; -9 is often "
                "memory that ran out)."
            ) from None
        if error:
            raise error(value)
        return value

    def end(self) -> None:
        """End it; whatever it does, it has a few seconds to finish."""
        self._pipe.close()  # tells it
        self._process.join(5)
        self._process.terminate()
        self._process.join()


def _serve(pipe: Connection, make: Callable[[], Any]) -> None:
    os.dup2(2, 1)  # standard output is for the figures
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started this ends it
    # Contestants share a GPU: none may take all of its memory in advance.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    contestant: Any = None
    try:
        while True:
            try:
                if contestant is None:
                    contestant, value = make(), None
                else:
                    method, args = pipe.recv()
                    value = getattr(contestant, method)(*args)
                pipe.send((None, value))
            except (EOFError, BrokenPipeError):
                raise
            except InputError as error:
                pipe.send((InputError, str(error)))
            except Exception as error:
                traceback.print_exc()
                pipe.send((RuntimeError, f"{type(error).__name__}: {error}"))
    except (EOFError, BrokenPipeError):
        pass


def peak_memory() -> int:
    """Give the most memory this process has taken so far, bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # elsewhere counted from before the program was loaded
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found:
            return 1024 * int(found[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


class _Once:
    def __init__(self, function: Callable[[], Any]):
        self.run = function


def elsewhere(function: Callable[[], Any]) -> Any:
    """Call a function in a process of its own, which then ends; see `Process`."""
    process = Process(partial(_Once, function))
    try:
        return process("run")
    finally:
        process.end()
