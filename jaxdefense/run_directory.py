"""The directory of one run: what was asked, how it went, what came out.

Of several processes the first alone looks at it and writes it; the others hear what it found.
`summary.json` is written last: a directory that has one is finished. What it and the settings say
of their kind is in `results`.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic

from jaxdefense import distributed
from jaxdefense.buckets.local import upload_results
from jaxdefense.buckets.places import address, as_given, is_address, place
from jaxdefense.errors import InputError
from jaxdefense.files import locked, this_process, write_json
from jaxdefense.hub import is_pinned
from jaxdefense.results import (
    GIVEN_IN,
    SETTINGS,
    SUMMARY,
    S,
    as_json,
    from_json,
    read_summary,
    write_summary,
)
from jaxdefense.settings import identity, to_dict
from jaxdefense.typed_json import Json

# Of a run of the image defense: the photos it trained on, name -> SHA-256 -> photo; and what faces
# were led to, f32 [E].
TRAINED_ON, TARGET = "trained_on.json", "target.npy"
HELD_OUT = "held_out.json"  # what a run's validation looks at, and it is not trained on
INPUTS = "inputs"  # folder of the inputs that were given by value, from Python
_LOCK = ".lock"


class RunDirectory(Generic[S]):
    """A run directory."""

    def __init__(self, path: Path, kind: type[S]):
        """Name it, and say what it is to hold; nothing is touched."""
        self.path = path
        self.model = path / "model"
        self._kind = kind
        self._config, self._summary = path / SETTINGS, path / SUMMARY

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
        found, wanted = self._identity(cfg, found), self._identity(cfg, self._record(cfg, resolved))
        if found != wanted:
            raise InputError(
                f"`{self.path}` holds another run ({_difference(found, wanted)}); give another "
                "directory, or the same settings to resume it."
            )
        return True

    def _others(self) -> list[Path]:
        """List what is there besides inputs, the lock, and a config that is, or was, written."""
        own = (f".{self._config.name}.*.tmp", INPUTS, _LOCK)
        return [x for x in self.path.iterdir() if not any(x.match(name) for name in own)]

    def finished(self, cfg: Any, resolved: dict[str, Any] | None = None) -> S | None:
        """Give the summary if the directory holds this very run, finished; else None.

        Raises:
            InputError: it does, and the summary cannot be read.
        """

        def look() -> dict[str, Json] | None:
            try:
                found = json.loads(self._config.read_text())
            except (OSError, ValueError):
                return None
            if resolved is None and isinstance(found, dict):  # whoever asks has not read the inputs
                found.pop("resolved", None)
            wanted = self._identity(cfg, self._record(cfg, resolved))
            if self._identity(cfg, found) != wanted or not self._summary.exists():
                return None
            return as_json(read_summary(self.path, self._kind))

        found = distributed.on_first(look)
        return from_json(found, self._kind, f"`{self._summary}`") if found else None

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
        own = {"kind": self._kind.kind, GIVEN_IN: os.getcwd()}
        write_json(self._config, own | self._record(cfg, resolved))

    def finish(self, summary: S) -> None:
        """Write the summary."""
        distributed.on_first(lambda: write_summary(self.path, summary))
        upload_results(self.path)

    def _record(self, cfg: Any, resolved: dict[str, Any] | None) -> dict[str, Any]:
        record = to_dict(cfg) | ({"resolved": resolved} if resolved else {})
        return json.loads(as_given(json.dumps(record, ensure_ascii=False)))

    def _identity(self, cfg: Any, settings: Any) -> Any:
        """Give what must be the same in a run to resume; `kind` came with settings later."""
        found = identity(type(cfg), settings)
        if not isinstance(found, dict):
            return found
        found.pop(GIVEN_IN, None)
        return found | {"kind": found.get("kind", self._kind.kind)}


def place_from(run: Path, path: str) -> Path:
    """Find what a path in a run's files leads to, which may count from where the run was started.

    Args:
        run: directory of the run.
        path: as the run has it. The id of a model stays as it is; of an address, its local place is
            given, to which nothing is fetched.
    """
    if is_pinned(path):
        return Path(path)
    if is_address(path):
        return place(address(path, str(run)))
    try:
        began = json.loads((run / SETTINGS).read_text(encoding="utf-8")).get(GIVEN_IN, "")
    except (OSError, ValueError):
        began = ""
    return Path(os.path.normpath(Path(began) / path))


def once(do: Callable[..., S], cfg: Any, kind: type[S], *args: Any) -> S:
    """Carry out a run, unless its directory holds it finished.

    Args:
        do: takes the settings and `args`; gives the summary.
        cfg: settings with the directory in `out`.
        kind: of the summary.

    Returns:
        the summary.
    """
    return RunDirectory(Path(cfg.out), kind).finished(cfg) or do(cfg, *args)


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
        lock.write_text(f"{this_process()}\n", encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"`{path}` cannot be written: {error.strerror}; give another directory."
        ) from error


def _remove_if_empty(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.rmdir()


def _difference(found: Any, wanted: dict[str, Any], at: str = "") -> str:
    if not isinstance(found, dict):
        return "its config.json cannot be read"
    for key in dict.fromkeys([*wanted, *found]):
        old, new = found.get(key), wanted.get(key)
        if old != new:
            if isinstance(old, dict) and isinstance(new, dict):
                return _difference(old, new, f"{at}{key}.")
            # A run of another version may lack a setting, or have one more.
            there, here = (repr(x[key]) if key in x else "unknown" for x in (found, wanted))
            return f"`{at}{key}` is {there} there, {here} here"
    return "no difference"
