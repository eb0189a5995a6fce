"""Draw photos on all CPUs.

Drawing is Python's work, so it takes processes. Each runs this module alone; one that
`multiprocessing` starts would import the caller's program, which may not be made for that.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib import import_module

from jaxdefense.cores import num_cores
from jaxdefense.demo.world import Drawing
from jaxdefense.log import Progress

_CHUNK = 50  # photos that a process is given at a time
_MOST = 16  # processes


def draw_all(lister: Callable[..., Sequence[Drawing]], args: Sequence[str], doing: str) -> None:
    """Draw and write photos in several processes.

    Args:
        lister: a function of a module, which lists the photos; each process calls it.
        args: its arguments.
        doing: what to call the work.

    Raises:
        RuntimeError: a process failed; it says why on standard error.
    """
    num = len(lister(*args))
    starts, stop = iter(range(0, num, _CHUNK)), threading.Event()
    command = [sys.executable, "-P", "-m", __name__, lister.__module__, lister.__name__, *args]
    num_processes = min(num_cores(), _MOST, -(-num // _CHUNK))
    with Progress(doing, num) as progress, ThreadPoolExecutor(num_processes) as pool:

        def work() -> None:
            for start in _drawn(command, starts, stop):
                progress.advance(min(_CHUNK, num - start))

        try:
            for one in as_completed([pool.submit(work) for _ in range(num_processes)]):
                one.result()
        except OSError as error:
            raise RuntimeError(f"{doing}: a process failed; see what it says above.") from error
        finally:
            stop.set()


def _drawn(command: Sequence[str], starts: Iterator[int], stop: threading.Event) -> Iterator[int]:
    """Let a process draw from the next of `starts` on, again and again; gives those done.

    Raises:
        OSError: the process ended.
    """
    path = os.pathsep.join(map(os.path.abspath, sys.path))
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        env=os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
    ) as process:
        assert process.stdin and process.stdout
        for start in starts:
            if stop.is_set():
                return
            process.stdin.write(f"{start}\n")
            if not process.stdout.readline():
                raise BrokenPipeError("no answer")
            yield start


def main() -> None:
    """Draw the photos from each number on that standard input gives, until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: whoever started this ends it
    parent = os.getppid()
    module, name, *args = sys.argv[1:]
    drawings = getattr(import_module(module), name)(*args)
    for line in sys.stdin:
        start = int(line)
        for drawing in drawings[start : start + _CHUNK]:
            if os.getppid() != parent:  # it was killed; another may have begun anew
                return
            drawing.write()
        print("done", flush=True)


if __name__ == "__main__":
    main()
