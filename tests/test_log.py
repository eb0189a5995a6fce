"""What a command says while it works, on a terminal and without one."""

import io
import logging
import re
import subprocess
import sys
import time

import pytest
from factories import CAPTIONS, logged, write_faces, write_model_directory
from rich.console import Console

from jaxdefense import log
from jaxdefense.cli import main
from jaxdefense.evals import embed
from jaxdefense.log import Progress

TIMED = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "
logger = logging.getLogger("jaxdefense.test")


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def by_hand(monkeypatch):
    """No thread says how far a phase is: the test does."""
    monkeypatch.setattr(log, "_LOOK", 1e6)


@pytest.fixture
def terminal(monkeypatch):
    """What a terminal shows."""
    file = io.StringIO()

    def console(**_):
        return Console(file=file, force_terminal=True, width=60, soft_wrap=True, color_system=None)

    monkeypatch.setattr(log, "Console", console)
    return file


def lines(said):
    return said.getvalue().splitlines()


# Progress without a terminal


def test_phase_says_what_it_does_how_long_it_takes_and_how_far_it_is(by_hand):
    clock = Clock()
    with logged() as said, Progress("embedding photos", 10_000, clock=clock) as progress:
        clock.now += 1
        progress.update(400)  # the first part compiles
        progress.tell()
        assert lines(said) == ["embedding photos: 10,000"]
        clock.now += 2
        progress.update(1200)
        progress.tell()
        assert lines(said)[1:] == ["embedding photos 1,200 of 10,000, 400/s, 22 s left"]
        told = []
        for _ in range(205):  # 20.5 s
            clock.now += 0.1
            progress.advance(41)
            before = len(lines(said))
            progress.tell()
            told += [clock.now] * (len(lines(said)) - before)
        assert [round(x) for x in told] == [113, 123]
        pattern = r"embedding photos 5,\d{3} of 10,000, 40\d/s, 1\d s left"
        assert re.fullmatch(pattern, lines(said)[2])
    assert lines(said)[-1] == "embedding photos: done in 23 s"


def test_phase_whose_part_takes_long_is_told_of_all_the_same(by_hand):
    clock = Clock()
    with logged() as said, Progress("defending", 300, 30, "steps", "compiling", clock) as progress:
        for _ in range(45):
            clock.now += 1
            progress.tell()
        progress.update(31, "loss 0.5")
        clock.now += 5
        progress.update(32, "loss 0.25")
        clock.now += 1
        progress.tell()
    assert lines(said)[:-1] == [
        "defending: 300 steps",
        "defending 30 of 300 steps, compiling, 10 s so far",
        "defending 30 of 300 steps, compiling, 20 s so far",
        "defending 30 of 300 steps, compiling, 30 s so far",
        "defending 30 of 300 steps, compiling, 40 s so far",
        "defending 32 of 300 steps, loss 0.25, 5.0 s each, 22 min left",
    ]


def test_phase_within_another_is_told_of_with_it(by_hand):
    clock = Clock()
    with logged() as said, Progress("validating", clock=clock) as outer:
        clock.now += 8
        with Progress("embedding photos", 64, clock=clock) as inner:
            clock.now += 4
            inner.update(16)
            outer.tell()
            clock.now += 10
            inner.update(56)
            outer.tell()
    assert lines(said) == [
        "validating",
        "validating, 12 s so far; embedding photos 16 of 64, 4.0 s so far",
        "validating, 22 s so far; embedding photos 56 of 64, 4.0/s, 2.0 s left",
        "validating: done in 22 s",
    ]


def test_lines_come_from_a_thread_while_the_work_goes_on(monkeypatch):
    monkeypatch.setattr(log, "_LOOK", 0.01)
    monkeypatch.setattr(log, "EVERY", 0.05)
    with logged() as said, Progress("reading"):
        until = time.monotonic() + 30
        while len(lines(said)) < 4 and time.monotonic() < until:
            time.sleep(0.01)
    assert lines(said)[0] == "reading"
    assert all(re.fullmatch(r"reading, [\d.]+ s so far", line) for line in lines(said)[1:4])


def test_phase_that_fails_is_not_said_to_be_done_and_leaves_nothing_running(by_hand):
    clock = Clock()
    with logged() as said:
        with pytest.raises(KeyError), Progress("reading", clock=clock):
            clock.now += 100
            raise KeyError
        with Progress("writing"):
            pass
    assert lines(said) == ["reading", "writing"]


@pytest.mark.parametrize(
    "seconds, text",
    [(0.04, "0.0 s"), (9.9, "9.9 s"), (42.4, "42 s"), (125, "2 min"), (7260, "2 h 1 min")],
)
def test_durations(seconds, text):
    assert log._duration(seconds) == text


# Set-up


def test_library_says_nothing_but_warnings():
    code = "import logging, jaxdefense.log as log\n"
    code += "with log.Progress('reading', 3) as p:\n p.advance()\n"
    code += "logging.getLogger('jaxdefense.x').info('no')\n"
    code += "logging.getLogger('jaxdefense.x').warning('yes')\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "yes\n")


@pytest.mark.parametrize("force", ["", "1"])
def test_without_a_terminal_each_line_has_time_and_command(capsys, monkeypatch, force):
    monkeypatch.setenv("FORCE_COLOR", force)
    with log.shown("attack"):
        logger.info("`run/[red]x[/red]` 100% :smile:")
        logger.warning("not cached")
        logging.getLogger("other").warning("of a library")
    logger.info("after it")
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(TIMED + re.escape("attack: `run/[red]x[/red]` 100% :smile:"), first)
    assert re.fullmatch(TIMED + "attack: warning: not cached", second)


def test_on_a_terminal_messages_stand_alone_and_as_they_are(terminal):
    path = "/" + "long/" * 30 + "[red]x[/red] :smile:"
    with log.shown("attack"):
        logger.info(path)
        logger.warning("not [b]cached")
    assert lines(terminal) == [path, "not [b]cached"]


def test_on_a_terminal_phases_are_bars_that_give_way(terminal):
    with log.shown("attack"):
        with Progress("embedding [b]", 40) as outer:
            outer.advance(10)
            with Progress("validating"):
                logger.info("a note")
            outer.advance(30)
        with Progress("again"):
            pass
    said = terminal.getvalue()
    assert "embedding [b]" in said and "10 of 40" in said and "validating" in said
    assert "a note" in said and not log._running
    assert "embedding [b]: 40" not in said  # a bar needs no line


def test_processes_that_do_not_write_the_run_go_on_in_a_file(capsys):
    file = io.StringIO()
    with log.shown("defend text"):
        log.write_to(file)
        logger.info("skipped")
    (first,) = lines(file)
    assert re.fullmatch(TIMED + "defend text: skipped", first)
    assert capsys.readouterr().err == ""


def test_set_up_is_undone(capsys):
    package = logging.getLogger("jaxdefense")
    before = package.handlers[:], package.level, package.propagate
    with pytest.raises(KeyError), log.shown("attack"):
        raise KeyError
    assert before == (package.handlers, package.level, package.propagate)


# A whole command


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model_directory(tmp_path / "model")
    captions = [f"{caption} {i}" for i in range(5) for caption in CAPTIONS]
    (tmp_path / "captions.txt").write_text("\n".join(captions) + "\n")
    write_faces(tmp_path / "faces", ["Joe Cool", "Zoe"], 1)


SLOW = {  # the command, and what it says of how far it is
    "attack": (
        "attack --model model --faces faces --set num_candidates=6 --set batch=4 --out out",
        r"embedding prompts \d+ of 126, .+ left",
    ),
    "evaluate": (
        "evaluate --model model --teacher model --captions captions.txt --set batch=1 --out out",
        r"embedding captions \d+ of \d+, .+ left",
    ),
}


@pytest.mark.parametrize("command", SLOW)
def test_whole_command_without_a_terminal_says_how_far_it_is(command, inputs, capsys, monkeypatch):
    flags, far = SLOW[command]
    run = embed._embed_text
    monkeypatch.setattr(embed, "_embed_text", lambda *args: (time.sleep(0.05), run(*args))[1])
    for name, seconds in (("_LOOK", 0.02), ("_SOON", 0.05), ("EVERY", 0.1)):
        monkeypatch.setattr(log, name, seconds)
    assert main(flags.split()) == 0
    said = capsys.readouterr()
    told = said.err.splitlines()
    assert all(re.match(TIMED + f"{command}: ", line) for line in told)
    assert sum(bool(re.search(far, line)) for line in told) >= 2, said.err
    assert "\r" not in said.err and "\x1b" not in said.err
    assert 1 <= len(said.out.splitlines()) <= 4 and "{" not in said.out
