"""What a command says while it works: notes, through `logging`, and the progress of long work.

The package logs under its own name and sets nothing up by itself: a program that uses it decides
what is shown, and without a decision sees warnings alone. The command line shows all of it, see
`shown`.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import IO, Any, cast

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from jaxdefense.buckets.places import as_given

EVERY = 10.0  # seconds between lines on a phase, at most
_SOON = 2.0  # seconds into a phase from which on its end is foretold as soon as that is possible
_LOOK = 0.5  # seconds between looks at whether a line is due

logger = logging.getLogger(__name__)
_package = logging.getLogger("jaxdefense")
_running: list["Progress"] = []  # outermost first


class _Output:
    """Where a command shows what it does.

    Fields:
        command: name that its lines begin with.
        console: of a terminal's messages and bars.
        bars: of a terminal; None elsewhere.
    """

    def __init__(self, command: str, file: IO[str] | None = None):
        """Write to a file, or to standard error."""
        self.command = command
        isatty = getattr(file or sys.stderr, "isatty", bool)
        # FORCE_COLOR and its like would make a terminal of a log, and bars of its lines.
        self.console = Console(
            file=file,
            stderr=file is None,
            soft_wrap=True,
            force_terminal=None if isatty() else False,
        )
        self.bars = _bars(self.console) if self.console.is_terminal else None

    def handler(self) -> logging.Handler:
        """Make what shows records: as they are on a terminal, elsewhere with time and command."""
        if self.bars:
            handler = _on_terminal(self.console)
        else:
            handler = logging.StreamHandler(self.console.file)
            handler.setFormatter(_Line(self.command))
        handler.addFilter(_as_given)
        return handler


def _as_given(record: logging.LogRecord) -> bool:
    """Name what lies in a bucket by its address; show all records."""
    record.msg, record.args = as_given(record.getMessage()), None
    return True


_output: _Output | None = None


@contextmanager
def shown(command: str) -> Iterator[None]:
    """Show on standard error what a command logs, until it ends.

    Args:
        command: its name.
    """
    global _output
    handlers, level, propagate = _package.handlers[:], _package.level, _package.propagate
    _package.setLevel(logging.INFO)
    _package.propagate = False  # else a library that sets up the root logger would print it too
    try:
        _show_on(_Output(command))
        yield
    finally:
        _output = None
        _package.handlers[:], _package.propagate = handlers, propagate
        _package.setLevel(level)


def write_to(file: Any) -> None:
    """Go on showing in a file, a line at a time, what `shown` shows on standard error.

    Outside of `shown`, the program that uses the package decides what is shown.
    """
    if _output:
        _show_on(_Output(_output.command, cast(IO[str], file)))


def _show_on(output: _Output) -> None:
    global _output
    _output, _package.handlers[:] = output, [output.handler()]


class _Line(logging.Formatter):
    """A line with the time and the command; a warning says that it is one."""

    def __init__(self, command: str):
        super().__init__(f"%(asctime)s {command}: %(message)s", "%Y-%m-%d %H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        if record.levelno >= logging.WARNING:
            record.message = f"{record.levelname.lower()}: {record.message}"
        return super().formatMessage(record)


def _on_terminal(console: Console) -> logging.Handler:
    from rich.logging import RichHandler
    from rich.text import Text

    class Handler(RichHandler):
        """Messages alone; names and paths with [brackets] as they are, warnings in yellow."""

        def render_message(self, record: logging.LogRecord, message: str) -> Text:
            text = cast(Text, super().render_message(record, message))
            if record.levelno >= logging.WARNING:
                text.stylize("yellow")
            return text

        def render(self, *, record: Any, traceback: Any, message_renderable: Any) -> Any:
            return message_renderable  # not in columns, which would break lines and so paths

    return Handler(console=console, markup=False, keywords=[])


def _bars(console: Console) -> Bars:
    return Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[far]}", markup=False),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


class Progress:
    """A phase of long work, and how far it is: a bar on a terminal, elsewhere lines in the log.

    Without a terminal a line says that the phase begins. Another one says how long it will take, as
    soon as that is known. One every 10 s says how far it is, even while a single part takes longer.
    Of a phase within another both are said in one line, and its beginning is not.

        with Progress("embedding photos", len(photos)) as progress:
            for block in blocks:
                ...
                progress.advance(len(block))
    """

    def __init__(
        self,
        doing: str,
        total: float | None = None,
        done: float = 0,
        unit: str = "",
        note: str = "",
        clock: Callable[[], float] = time.monotonic,
    ):
        """Name the phase.

        Args:
            doing: what is done, as "embedding photos".
            total: parts there are; None if that is not known.
            done: of these, done before.
            unit: of the parts, as "MiB"; "" for none.
            note: what else there is to say at first; see `update`.
            clock: seconds.
        """
        self._doing, self._total, self._unit, self._clock = doing, total, unit, clock
        self._begun = self._told = clock()
        self._first: tuple[float, float] | None = None  # seconds and parts
        self._last = self._begun, float(done)
        self._note, self._foretold, self._ended = note, False, threading.Event()
        self._task: Any = None

    def __enter__(self) -> "Progress":
        outermost = not _running
        _running.append(self)
        if _output and (bars := _output.bars):
            if outermost:
                bars.start()
            self._task = bars.add_task(
                self._doing, total=self._total, completed=int(self._last[1]), far=self._far()
            )
        elif outermost and logger.isEnabledFor(logging.INFO):
            logger.info(self._doing + (f": {self._count(self._total)}" if self._total else ""))
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        _running.remove(self)
        if _output and _output.bars and self._task is not None:
            _output.bars.remove_task(self._task)
            if not _running:
                _output.bars.stop()
        took = self._clock() - self._begun
        if error is None and not _running and took >= _SOON:
            logger.info(f"{self._doing}: done in {_duration(took)}")

    def advance(self, num: float = 1) -> None:
        """Count parts that are done."""
        self.update(self._last[1] + num)

    def update(self, done: float, note: str = "") -> None:
        """Say how many parts are done in all.

        Args:
            done: see above.
            note: what else there is to say, as the loss.
        """
        # The first part compiles, opens and fills caches: those after it tell how long one takes.
        self._first = self._first or (self._clock(), done)
        self._last, self._note = (self._clock(), done), note
        if _output and _output.bars and self._task is not None:
            _output.bars.update(self._task, completed=done, far=self._far())

    def line(self) -> str:
        """Say how far it is: parts of all, parts a second, time left."""
        said = [f"{self._doing} {self._far()}".rstrip()]
        rate = self._rate()
        if rate:
            said.append(_pace(rate, self._unit))
        if rate and self._total is not None:
            ahead = (self._total - self._last[1]) / rate - (self._clock() - self._last[0])
            said.append(f"{_duration(max(0.0, ahead))} left")
        if not rate:
            said.append(f"{_duration(self._clock() - self._begun)} so far")
        return ", ".join(said)

    def _far(self) -> str:
        """Give the parts done of all, and the note."""
        if self._total is None:
            return self._note
        far = f"{self._last[1]:,.0f} of {self._count(self._total)}"
        return f"{far}, {self._note}" if self._note else far

    def _count(self, parts: float) -> str:
        return f"{parts:,.0f} {self._unit}".rstrip()

    def _rate(self) -> float:
        """Give the parts a second, those of the first update left out; 0 while it is not known."""
        if self._first is None:
            return 0.0
        seconds, parts = (last - then for last, then in zip(self._last, self._first, strict=True))
        return parts / seconds if seconds > 0 else 0.0

    def tell(self) -> None:
        """Log a line, if one is due; with it how far the innermost phase within this one is."""
        now = self._clock()
        soon = not self._foretold and now - self._begun >= _SOON and self._rate() > 0
        if not soon and now - self._told < EVERY:
            return
        inner = [phase for phase in _running[-1:] if phase is not self]
        logger.info("; ".join(phase.line() for phase in (self, *inner)))
        self._told, self._foretold = now, self._foretold or self._rate() > 0

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK):
            self.tell()


def _pace(rate: float, unit: str) -> str:
    """Say how fast it goes: parts a second, or seconds a part."""
    if rate < 0.95:
        return f"{_duration(1 / rate)} each"
    unit = f" {unit}" if unit else ""
    return f"{rate:,.0f}{unit}/s" if rate >= 10 else f"{rate:.1f}{unit}/s"


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
