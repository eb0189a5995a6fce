"""The directory of one run: what was asked, how it went, what came out.

Of several processes the first alone looks at it and writes it; the others hear what it found.
`summary.json` is written last: a directory that has one is finished.
"""

import contextlib
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxdefense import distributed
from jaxdefense.errors import InputError
from jaxdefense.files import locked, write_json
from jaxdefense.settings import identity, to_dict

# Of a run of the image defense: the photos it trained on, name -> SHA-256 -> photo; and what faces
# were led to, f32 [E].
TRAINED_ON, TARGET = "trained_on.json", "target.npy"
_LOCK = ".lock"


class RunDirectory:
    """A run directory."""

    def __init__(self, path: Path):
        """Name it; nothing is touched."""
        self.path = path
        self.model = path / "model"
        self._config, self._summary = path / "config.json", path / "summary.json"

    def check(self, cfg: Any, resolved: dict[str, Any] | None = None) -> bool:
        """Check that the directory can hold the run; writes nothing.

        Args:
            cfg: dataclass; to resume a run, the same as at its start.
            resolved: what the settings resolve to (contents of files, dtypes), likewise the same.

        Returns:
            whether it holds this run already, unfinished.

        Raises:
            InputError: the directory holds another run, a finished one, or something else.
        """
        return distributed.on_first(lambda: self._check(cfg, resolved))

    def _check(self, cfg: Any, resolved: dict[str, Any] | None) -> bool:
        if not self._config.exists():
            if self.path.exists() and (not self.path.is_dir() or self._others()):
                if self._config.exists():  # another part of a sweep has just written it
                    return self._check(cfg, resolved)
                raise InputError(f"`{self.path}` exists and holds no run; give an empty directory.")
            return False
        if self._summary.exists():
            raise InputError(f"`{self.path}` holds a finished run; give another directory.")
        try:
            found = json.loads(self._config.read_text())
        except (OSError, ValueError):
            found = None
        wanted = _record(cfg, resolved)
        found, wanted = identity(type(cfg), found), identity(type(cfg), wanted)
        if found != wanted:
            raise InputError(
                f"`{self.path}` holds another run ({_difference(found, wanted)}); give another "
                "directory, or the same settings to resume it."
            )
        return True

    def _others(self) -> list[Path]:
        """List what is there besides a config that is, or was, being written, and the lock."""
        own = (f".{self._config.name}.*.tmp", _LOCK)
        return [x for x in self.path.iterdir() if not any(x.match(name) for name in own)]

    def finished(self, cfg: Any, resolved: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """Give the summary if the directory holds this very run, finished; else None."""

        def look() -> dict[str, Any] | None:
            try:
                found = json.loads(self._config.read_text())
                summary = json.loads(self._summary.read_text())
            except (OSError, ValueError):
                return None
            wanted = _record(cfg, resolved)
            same = identity(type(cfg), found) == identity(type(cfg), wanted)
            return summary if same else None

        return distributed.on_first(look)

    def open(self, cfg: Any, resolved: dict[str, Any] | None = None) -> None:
        """Start the run, or resume it if it is unfinished; see `check`."""
        distributed.on_first(lambda: self._open(cfg, resolved))

    def _open(self, cfg: Any, resolved: dict[str, Any] | None) -> None:
        if self._check(cfg, resolved):
            # Broken off between model and summary, or while the model was written.
            for leftover in (self.model, *self.path.glob(".model.*")):
                shutil.rmtree(leftover, ignore_errors=True)
            return
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self._config, _record(cfg, resolved))

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the summary."""
        distributed.on_first(lambda: write_json(self._summary, summary))


def once(do: Callable[..., dict[str, Any]], cfg: Any, *args: Any) -> dict[str, Any]:
    """Carry out a run, unless its directory holds it finished.

    Args:
        do: takes the settings and `args`; gives the summary.
        cfg: settings with the directory in `out`.

    Returns:
        the summary.
    """
    return RunDirectory(Path(cfg.out)).finished(cfg) or do(cfg, *args)


def run_settings(path: Path) -> dict[str, Any]:
    """Read the settings of a directory that one of the commands wrote; none of any other."""
    try:
        found = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    ours = isinstance(found, dict) and isinstance(found.get("model"), dict) and "out" in found
    return found if ours else {}


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Create a directory of results if there is none, and lock it against other processes.

    Directories that it created and that stay empty are removed again. A killed process leaves the
    lock's file behind, but no lock. Of several processes the first holds the lock for all.

    Raises:
        InputError: another process has the directory, or it cannot be written.
    """
    with contextlib.ExitStack() as held:
        distributed.on_first(lambda: _claim(path, held))
        yield


def _claim(path: Path, held: contextlib.ExitStack) -> None:
    lock = path / _LOCK

    def refuse() -> None:
        who = ""
        with contextlib.suppress(OSError):  # it has just left
            who = lock.read_text(encoding="utf-8", errors="replace").strip()
        raise InputError(
            f"`{path}` is in use by {who or 'another process'}; wait until it ends, or give "
            "another directory."
        )

    def leave() -> None:
        lock.unlink(missing_ok=True)

    try:
        missing = [x for x in (path, *path.parents) if not os.path.lexists(x)]
        for made in reversed(missing):
            made.mkdir(exist_ok=True)
            held.callback(_remove_if_empty, made)
        held.enter_context(locked(lock, refuse))
        held.callback(leave)
        lock.write_text(
            f"`{Path(sys.argv[0]).name} {' '.join(sys.argv[1:3])}`, process {os.getpid()} on "
            f"{socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n",
            encoding="utf-8",
        )
    except OSError as error:
        raise InputError(
            f"`{path}` cannot be written: {error.strerror}; give another directory."
        ) from error


def _remove_if_empty(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.rmdir()


def _record(cfg: Any, resolved: dict[str, Any] | None) -> dict[str, Any]:
    return json.loads(json.dumps(to_dict(cfg) | ({"resolved": resolved} if resolved else {})))


def _difference(found: Any, wanted: dict[str, Any], at: str = "") -> str:
    if not isinstance(found, dict):
        return "its config.json cannot be read"
    for key in wanted.keys() | found.keys():
        old, new = found.get(key), wanted.get(key)
        if old != new:
            if isinstance(old, dict) and isinstance(new, dict):
                return _difference(old, new, f"{at}{key}.")
            return f"`{at}{key}` is {old!r} there, {new!r} here"
    return "no difference"
