"""A Hugging Face hub on loopback, which serves files that a test wrote to the real client."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_test"


class Hub:
    """What a hub holds, and what it was asked for.

    Fields:
        url: of its endpoint.
        repos: OWNER/NAME -> revision -> folder; a folder's commit is made of what it holds.
        gated: repositories that take the token.
        asked: paths of the files fetched, without their repository.
        broken: whether it answers all with an error of its own.
    """

    def __init__(self) -> None:
        self.url = ""
        self.repos: dict[str, dict[str, Path]] = {}
        self.gated: set[str] = set()
        self.asked: list[str] = []
        self.broken = False

    def add(self, repo: str, folder: Path, revision: str = "main") -> str:
        """Serve a folder; returns its commit."""
        self.repos.setdefault(repo, {})[revision] = folder
        return commit(folder)

    def find(self, repo: str, revision: str) -> Path | None:
        folders = self.repos[repo]
        found = [x for name, x in folders.items() if revision in (name, commit(x))]
        return found[0] if found else None


def commit(folder: Path) -> str:
    """Name the state of a folder."""
    total = hashlib.sha1(usedforsecurity=False)
    for file in files(folder):
        total.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return total.hexdigest()


def files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        owner, name, verb, revision, *rest = [*parts[2 * api :], "", ""]
        repo = f"{owner}/{name}"
        if self.hub.broken:
            return self._send(503, b"busy")
        if repo not in self.hub.repos:
            return self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repo in self.hub.gated and not known and not api:  # whoever asks sees what there is
            return self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        if (folder := self.hub.find(repo, revision or "main")) is None:
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if api:
            return self._send_json(verb, folder)
        file = folder / "/".join(filter(None, rest))
        if self.command == "GET":
            self.hub.asked.append(file.relative_to(folder).as_posix())
        data = file.read_bytes()
        etag = hashlib.sha256(data).hexdigest()
        return self._send(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": commit(folder)})

    def _send_json(self, verb: str, folder: Path) -> None:
        names = [file.relative_to(folder).as_posix() for file in files(folder)]
        if verb == "tree":
            sizes = [(folder / name).stat().st_size for name in names]
            value: object = [
                {"type": "file", "path": name, "size": size, "oid": "0" * 40}
                for name, size in zip(names, sizes, strict=True)
            ]
        else:
            siblings = [{"rfilename": name} for name in names]
            value = {"id": "x/y", "sha": commit(folder), "siblings": siblings}
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """Serve a hub, empty at first, on a free port of loopback."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield hub
        server.shutdown()
        thread.join()
