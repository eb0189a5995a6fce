"""Draw photos on all CPUs.

Drawing is Python's work, so it takes processes. Each runs this module alone; one that
`multiprocessing` starts would import the caller's program, which may not be made for that.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

from jaxdefense.demo.world import Drawing
from jaxdefense.log import Progress

_CHUNK = 50  # photos that a process is given at a time


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
    starts, failed = iter(range(0, num, _CHUNK)), threading.Event()
    path = os.pathsep.join(map(os.path.abspath, sys.path))
    command = [sys.executable, "-P", "-m", __name__, lister.__module__, lister.__name__, *args]

    def work(progress: Progress) -> None:
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=os.environ | {"PYTHONPATH": path},
        ) as process:
            assert process.stdin and process.stdout
            for start in starts:
                if failed.is_set():
                    break
                process.stdin.write(f"{start}\n")
                if not process.stdout.readline():
                    failed.set()
                    raise RuntimeError(f"{doing}: a process failed; see what it says above.")
                progress.advance(min(_CHUNK, num - start))

    num_processes = min(getattr(os, "process_cpu_count", os.cpu_count)() or 1, -(-num // _CHUNK))
    with Progress(doing, num) as progress, ThreadPoolExecutor(num_processes) as pool:
        try:
            done = [pool.submit(work, progress) for _ in range(num_processes)]
            for one in done:
                one.result()
        except BaseException:
            failed.set()
            raise


def main() -> None:
    """Draw the photos from each number on that standard input gives, until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: whoever started this ends it
    module, name, *args = sys.argv[1:]
    drawings = getattr(import_module(module), name)(*args)
    for line in sys.stdin:
        start = int(line)
        for drawing in drawings[start : start + _CHUNK]:
            drawing.write()
        print("done", flush=True)


if __name__ == "__main__":
    main()
