"""Results: a directory here that a command writes, and its copy in a bucket.

An object store has no rename, so nothing there appears in one step but a single object. The order
of the uploads takes the place of the rename:

- `config.json` of a run goes first: what is beside it belongs to that run.
- Then everything else, several files at a time.
- Then `_CHECKPOINT_METADATA` of each checkpoint. A checkpoint without it is not whole: a run that
  resumes does not fetch it, and deletes it. The best state goes before the newest checkpoint, which
  depends on it.
- Then the config of a model: without it, no command reads the directory as a model.
- `summary.json` goes last: a directory that has one is finished.

Deletions come after all uploads, in the opposite order, so that a checkpoint is unmarked before its
parts go. Killed anywhere, a run leaves a bucket with a state that it can resume from, or with none.

A second process must not write the same place; see `lease`. The bucket decides what a run resumes
from, with one exception: if it holds exactly what this machine last put there, what this machine
has besides is newer, and is kept.
"""

import contextlib
import itertools
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jaxdefense.buckets.inputs import BEST, LEASE, MODEL, STATES, bring, marked
from jaxdefense.buckets.lease import Lease
from jaxdefense.buckets.marks import Look, Marks, look
from jaxdefense.buckets.places import IN, NEW, OUT, address_of, bucket_of, place, root
from jaxdefense.buckets.store import Stored, Unreachable, delete, listing, upload
from jaxdefense.convert.directory import LAYOUTS
from jaxdefense.convert.orbax import MANIFEST
from jaxdefense.errors import InputError, RunError
from jaxdefense.figures import count
from jaxdefense.log import Progress
from jaxdefense.results import SETTINGS, SUMMARY

logger = logging.getLogger(__name__)

_WHOLE = "_CHECKPOINT_METADATA"  # Orbax writes it into each checkpoint
_BEING_WRITTEN = ".orbax-checkpoint-tmp"  # in the names of Orbax' folders until they are whole
_CONFIGS = {layout.config for layout in LAYOUTS.values()}
_WEIGHTS = {name for layout in LAYOUTS.values() for name in (layout.weights, layout.index)}
_AT_ONCE = 8  # files uploaded at a time
_PARTS = 1  # rank of what goes in no order; see `_in_order`


class NotUploaded(RunError):
    """Results could not be uploaded; they are whole on this machine."""


class Mirror:
    """A run directory in a bucket, and the local directory that a run works in."""

    def __init__(self, address: str):
        """Name it; nothing is touched."""
        self.address, self.path = address, place(address, OUT)
        self._lease = Lease(f"{address}/{LEASE}", address)

    def open(self) -> None:
        """Take the lease, and bring the local directory to the state of the bucket.

        Raises:
            InputError: another process writes it, or it cannot be written.
            Unreachable: the bucket does not answer.
        """
        self._lease.take()
        try:
            self._restore()
        except BaseException:
            self._lease.release()
            raise

    def _restore(self) -> None:
        there = listing(self.address)
        there.pop(f"{self.address}/{LEASE}", None)
        if self.address in there:
            raise InputError(f"`{self.address}` is an object; give the address of a run directory.")
        self._marks = Marks(self.address, OUT)
        here = self.path.is_dir() and any(self.path.iterdir())  # else someone cleared the cache
        if here and {name: x.version for name, x in there.items()} == self._marks.versions():
            return
        torn = {name for name in there if (whole := _mark_of(name)) and whole not in there}
        bring({self.address: {k: x for k, x in there.items() if k not in torn}}, OUT, self.address)
        self._marks = Marks(self.address, OUT)
        for name in self._marks.versions().keys() - there.keys():
            self._marks.forget(name)
        for name in torn:  # no file is here, so the next upload deletes them
            self._marks.set(there[name])
        self.path.mkdir(parents=True, exist_ok=True)

    def upload(self) -> None:
        """Upload what is new or changed, and delete what is gone, in the order given above.

        Raises:
            NotUploaded: the bucket cannot be written.
            Lost: another process writes it.
        """
        files = dict[str, Path]()
        for file in self.path.rglob("*"):
            inside = file.relative_to(self.path)
            if not _passing(inside) and file.is_file():
                files[f"{self.address}/{inside.as_posix()}"] = file
        try:
            self._lease.check()
            changed = {name: x for name, x in files.items() if not self._marks.unchanged(name)}
            _upload_all(self.address, changed, files, self._marks.set)
            gone = self._marks.versions().keys() - files.keys()
            for _, name in reversed(_in_order(gone, self._marks.versions())):
                delete(name)
                self._marks.forget(name)
        except (InputError, Unreachable) as error:
            advice = "run the same command here to upload it and go on"
            raise _not_uploaded(self.address, self.path, error, advice) from error

    def close(self, upload: bool = True) -> None:
        """Upload what is left, unless told not to, and release the lease; see `upload`."""
        try:
            if upload:
                self.upload()
        finally:
            with contextlib.suppress(InputError, RunError):
                self._lease.release()


def _passing(inside: Path) -> bool:
    """Tell whether a file is not there to stay: locks, and what is being written."""
    return any(part.startswith(".") or _BEING_WRITTEN in part for part in inside.parts)


def _mark_of(name: str) -> str:
    """Name what says that a checkpoint is whole, given one of its objects; "" of any other."""
    parts = name.split("/")
    for i, part in enumerate(parts[:-2]):
        if part in STATES and parts[i + 1].isdigit():
            return "/".join([*parts[: i + 2], _WHOLE])
    return ""


def _in_order(names: Iterable[str], among: Iterable[str]) -> list[tuple[int, str]]:
    """Sort objects into the order in which they are uploaded, see above; each with its rank.

    Args:
        names: addresses of the objects.
        among: those of all objects that belong together, which show what is a model.
    """
    models = {folder for folder, _, last in (x.rpartition("/") for x in among) if last in _WEIGHTS}

    def rank(name: str) -> int:
        folder, _, last = name.rpartition("/")
        if last == _WHOLE:
            return 2 if f"/{BEST}/" in name else 3
        if last == MANIFEST or last in _CONFIGS and folder in models:
            return 4
        return {SETTINGS: 0, SUMMARY: 5}.get(last, _PARTS)

    # Of a run within another, the summary goes before that of the other.
    return sorted(((rank(x), x) for x in names), key=lambda x: (x[0], -x[1].count("/"), x[1]))


def _upload_all(
    address: str,
    files: Mapping[str, Path],
    among: Iterable[str],
    done: Callable[[Stored, Look], object],
) -> None:
    """Upload files by the addresses of their objects, in order; `done` hears of each."""
    if not files:
        return
    looks = {name: look(file) for name, file in files.items()}
    size = sum(size for size, _ in looks.values()) / 2**20
    doing = f"uploading {count(len(files), 'file')} to {address}"

    def put(ranked: tuple[int, str]) -> Stored:
        return upload(files[ranked[1]], ranked[1])

    with (
        Progress(doing, max(size, 0.1), unit="MiB") as progress,
        ThreadPoolExecutor(_AT_ONCE) as pool,
    ):
        for rank, ranked in itertools.groupby(_in_order(files, among), lambda x: x[0]):
            for stored in (pool.map if rank == _PARTS else map)(put, ranked):
                done(stored, looks[stored.address])
                progress.advance(stored.size / 2**20)


def _not_uploaded(address: str, path: Path, error: Exception, advice: str) -> NotUploaded:
    top = root()
    return NotUploaded(
        f"`{address}` is not uploaded: {error} All of it is on this machine, in "
        f"{path.relative_to(top)} of `{top}`; {advice}."
    )


@contextlib.contextmanager
def new(address: str) -> Iterator[Path]:
    """Give a local path for what is to appear at an address; upload it, and files beside it.

    Raises:
        InputError: there is something at the address, or it cannot be written.
        NotUploaded: it could not be uploaded.
    """
    _check_new(address)
    lease = Lease(f"{address}{LEASE}", address)
    lease.take()
    root().mkdir(parents=True, exist_ok=True)
    tree = Path(tempfile.mkdtemp(prefix=NEW, dir=root()))
    try:
        path = place(address, tree.name)
        path.parent.mkdir(parents=True)
        yield path
        found = {address_of(x) or "": x for x in tree.rglob("*") if x.is_file()}
        for name in found:
            _check_new(name)
        try:
            lease.check()
            _upload_all(address, found, found, lambda stored, then: None)
        except (InputError, Unreachable) as error:
            raise _not_uploaded(address, path, error, "upload it from there") from error
        shutil.rmtree(tree)
    except NotUploaded:
        raise
    except BaseException:
        shutil.rmtree(tree, ignore_errors=True)
        raise
    finally:
        with contextlib.suppress(InputError, RunError):
            lease.release()


def put_back(address: str) -> None:
    """Upload the files of an input that a command changed.

    Raises:
        NotUploaded: they could not be uploaded.
    """
    path = place(address, IN)
    if path.name == MODEL and (path.parent / SUMMARY).is_file():  # the run came along
        address, path = address.rpartition("/")[0], path.parent
    with marked(bucket_of(address), IN) as marks:
        files = {address_of(x) or "": x for x in path.rglob("*") if x.is_file()}
        changed = {name: file for name, file in files.items() if not marks.unchanged(name)}
        try:
            _upload_all(address, changed, files, marks.set)
        except (InputError, Unreachable) as error:
            advice = "run the same command again"
            raise _not_uploaded(address, path, error, advice) from error


def _check_new(address: str) -> None:
    if listing(address):
        raise InputError(f"`{address}` already exists; give another name.")
