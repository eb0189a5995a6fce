"""The directory of one run: what was asked, how it went, what came out.

`summary.json` is written last: a directory that has one is finished.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from jaxdefense.config import to_dict


class RunDirectory:
    """A run directory."""

    def __init__(self, path: Path):
        """Name it; nothing is touched."""
        self.path = path
        self.model = path / "model"
        self._config, self._summary = path / "config.json", path / "summary.json"

    def open(self, cfg: Any) -> None:
        """Start the run, or go on with it if it was broken off.

        Args:
            cfg: dataclass; the same as when the run was started.

        Raises:
            ValueError: the directory holds another run, a finished one, or something else.
        """
        wanted = json.loads(json.dumps(to_dict(cfg)))
        if self._config.exists():
            if self._summary.exists():
                raise ValueError(f"`{self.path}` holds a finished run; give another directory.")
            try:
                found = json.loads(self._config.read_text())
            except json.JSONDecodeError:
                found = None
            if found != wanted:
                raise ValueError(
                    f"`{self.path}` holds another run ({_difference(found, wanted)}); give another "
                    "directory, or the same settings to go on with it."
                )
            shutil.rmtree(self.model, ignore_errors=True)  # broken off between model and summary
            return
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise ValueError(f"`{self.path}` exists and holds no run; give an empty directory.")
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self._config, wanted)

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the summary."""
        write_json(self._summary, summary)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one step: a reader finds all of it, or none."""
    tmp = path.with_name(f".{path.name}.tmp")
    with open(tmp, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(tmp, path)


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
