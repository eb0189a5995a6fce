"""Which version of an object each local file is, so that nothing is fetched or uploaded twice."""

import hashlib
import json
from pathlib import Path

from jaxdefense.buckets.places import place, root
from jaxdefense.buckets.store import Stored

Look = tuple[int, int]  # size of a file, and when it was written


class Marks:
    """The marks of the objects below an address, in a file that only grows.

    One process at a time has it: whoever opens it holds a lock, or the lease of a run.
    """

    def __init__(self, top: str, tree: str):
        """Read the marks of what is below an address; `tree` as for `place`."""
        self._tree, self._found = tree, dict[str, tuple[str, int, int]]()
        digest = hashlib.sha256(f"{tree} {top}".encode()).hexdigest()[:16]
        self.path = root() / "marks" / digest
        text = self.path.read_text(encoding="utf-8") if self.path.is_file() else ""
        for line in text.splitlines():
            try:
                name, version, size, written = json.loads(line)
            except ValueError:  # a crash cut the line short
                continue
            self._found[name] = version, size, written

    def versions(self) -> dict[str, str]:
        """Give the version of each object, by address."""
        return {name: version for name, (version, *_) in self._found.items() if version}

    def unchanged(self, address: str) -> bool:
        """Tell whether the local file of an object is as it was marked."""
        version, *then = self._found.get(address, ("", 0, 0))
        return version != "" and tuple(then) == look(place(address, self._tree))

    def set(self, stored: Stored, then: Look | None = None) -> None:
        """Mark the local file as of this version; `then` is how it looked if it may change."""
        size, written = then or look(place(stored.address, self._tree))
        self._add(stored.address, stored.version, size, written)

    def forget(self, address: str) -> None:
        """Forget an object that is deleted."""
        self._add(address, "", 0, 0)

    def _add(self, name: str, *mark: str | int) -> None:
        line = json.dumps([name, *mark])
        self._found[name] = tuple(json.loads(line)[1:])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")


def look(path: Path) -> Look:
    """Give the size of a file and when it was written; those of none if there is none."""
    try:
        status = path.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns
