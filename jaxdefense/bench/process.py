"""Processes for the implementations of a benchmark, so that each has its own memory and threads.

A process that waits for its turn sleeps in a read from a pipe and takes no processor time.
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
    """A process that creates an object and calls its methods."""

    def __init__(self, constructor: Callable[[], Any]):
        """Start the process without waiting for the object.

        Args:
            constructor: function that the process calls to create the object; must be picklable.
        """
        spawn = multiprocessing.get_context("spawn")  # a fork would copy memory and threads
        self._pipe, there = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(there, constructor))
        self._process.start()
        there.close()
        self._created = False

    def __call__(self, method: str, *args: Any) -> Any:
        """Call a method of the object and wait for its result.

        Raises:
            InputError: the method or the constructor raised it.
            RuntimeError: either raised another error, or the process died.
        """
        if not self._created:
            self._created = True
            self._answer()
        return self._answer(method, args)

    def method(self, method: str) -> Callable[..., Any]:
        """Return a method of the object as a function."""
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
        """End the process; it has five seconds to finish what it does."""
        self._pipe.close()  # tells the process to end
        self._process.join(5)
        self._process.terminate()
        self._process.join()


def _serve(pipe: Connection, constructor: Callable[[], Any]) -> None:
    """Create the object, then call the methods that come through the pipe until it closes."""
    os.dup2(2, 1)  # standard output is for the figures alone
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    # Implementations share a GPU, so none may reserve all of its memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    served: Any = None
    try:
        while True:
            try:
                if served is None:
                    served, value = constructor(), None
                else:
                    method, args = pipe.recv()
                    value = getattr(served, method)(*args)
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
    """Return the peak memory of this process so far, bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # other counters include the memory before exec
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found:
            return 1024 * int(found[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


class _Once:
    def __init__(self, function: Callable[[], Any]):
        self.run = function


def elsewhere(function: Callable[[], Any]) -> Any:
    """Call a function in a new process, which then ends; see `Process`."""
    process = Process(partial(_Once, function))
    try:
        return process("run")
    finally:
        process.end()
