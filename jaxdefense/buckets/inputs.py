"""Inputs: objects, fetched into the cache before a command reads them as files."""

import contextlib
import glob
import itertools
import logging
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jaxdefense.buckets.marks import Marks
from jaxdefense.buckets.places import IN, address_of, bucket_of, is_path, place, root
from jaxdefense.buckets.store import Stored, fetch, listing
from jaxdefense.data.forms import expand_ranges, split_column
from jaxdefense.errors import InputError
from jaxdefense.figures import count
from jaxdefense.files import locked
from jaxdefense.log import Progress
from jaxdefense.results import SETTINGS, SUMMARY

logger = logging.getLogger(__name__)

LEASE = ".lease"
_AT_ONCE = 8  # objects fetched at a time
# Of a run only the run itself reads these, and they are most of it.
CHECKPOINTS, BEST = "checkpoints", "best"
STATES = (CHECKPOINTS, BEST)
MODEL = "model"


def fetched(path: Path) -> Path:
    """Fetch what a local path stands for, if it stands for an address; return the path.

    Raises:
        InputError, Unreachable: see `fetch_inputs`.
    """
    if address := address_of(path):
        fetch_inputs([address])
    return path


def fetch_inputs(addresses: Iterable[str]) -> None:
    """Bring what stands for addresses up to date: fetches what is new or changed.

    Of a run directory, its checkpoints are left out. The model of a run brings the run along, as
    commands look there for what was removed.

    Args:
        addresses: each of an object or a folder; or a range or a glob, see `data.forms`.

    Raises:
        InputError: there is nothing at an address, it may not be read, or the disk is too small.
        Unreachable: a bucket does not answer; files that came before are kept.
    """
    files = [split_column(address)[0] for address in addresses]
    tops = [top for address in files for top in expand_ranges(address, "inputs")]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = dict(pool.map(_found, dict.fromkeys(tops)))
    for bucket in dict.fromkeys(map(bucket_of, found)):
        mine = {top: wanted for top, wanted in found.items() if bucket_of(top) == bucket}
        bring(mine, IN, bucket)


def _found(address: str) -> tuple[str, dict[str, Stored]]:
    """List what to fetch for an input, and the address that it is below."""
    found = listing(address)
    if not found and glob.has_magic(address):
        found = _matching(address)
    if not found:
        raise InputError(f"`{address}` does not exist: no object has this name, or is below it.")
    run = address.removesuffix(f"/{MODEL}")
    if run != address and _is_run(beside := listing(run), run):
        address, found = run, beside
    return address, {name: x for name, x in found.items() if not _left_out(name, found)}


def _matching(pattern: str) -> dict[str, Stored]:
    """List the objects that a glob matches."""
    from fsspec.utils import glob_translate

    folders = itertools.takewhile(lambda part: not glob.has_magic(part), pattern.split("/"))
    wanted = re.compile(glob_translate(pattern))
    return {name: x for name, x in listing("/".join(folders)).items() if wanted.match(name)}


def _is_run(found: Collection[str], address: str) -> bool:
    return f"{address}/{SETTINGS}" in found and f"{address}/{SUMMARY}" in found


def _left_out(name: str, found: Collection[str]) -> bool:
    """Tell whether an object is a lease, or part of a checkpoint of a run that is listed too."""
    *folders, last = name.split("/")
    runs = ("/".join(folders[:i]) for i, folder in enumerate(folders) if folder in STATES)
    return last == LEASE or any(f"{run}/{SETTINGS}" in found for run in runs)


@contextlib.contextmanager
def marked(top: str, tree: str) -> Iterator[Marks]:
    """Give the marks of what is below an address, to one process of this machine at a time."""
    lock = Marks(top, tree).path.with_suffix(".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock, lambda: logger.info(f"waiting: another process fetches from {top}")):
        yield Marks(top, tree)


def bring(tops: Mapping[str, Mapping[str, Stored]], tree: str, below: str) -> None:
    """Make local places hold these objects and no others.

    Args:
        tops: by an address, the objects there and below it to have; all of one bucket.
        tree: see `place`.
        below: address below which the marks are kept; see `Marks`.

    Raises:
        InputError, Unreachable: see `fetch_inputs`.
    """
    wanted = {name: x for found in tops.values() for name, x in found.items()}
    _check_names(wanted)
    here = {place(name, tree) for name in wanted}
    with marked(below, tree) as marks:
        for top in tops:
            path = place(top, tree)
            there = [path] if path.exists() else map(Path, glob.glob(str(path), recursive=True))
            for old in there:
                _remove_others(old, here)
        versions = marks.versions()
        missing = [
            x
            for name, x in wanted.items()
            if versions.get(name) != x.version or not marks.unchanged(name)
        ]
        if missing:
            _check_room(below, missing)
            _fetch_all(below, missing, tree, marks)


def _check_names(wanted: Mapping[str, Stored]) -> None:
    for name in wanted:
        if not is_path(name.partition("://")[2]):
            raise InputError(
                f"`{name}` has a name that no file can have: an empty part, `.` or `..`, or more "
                "than 255 bytes; rename the object."
            )
        parents = itertools.accumulate(name.split("/")[:-1], "{}/{}".format)
        if both := next((x for x in parents if x in wanted), None):
            raise InputError(f"`{both}` is an object and also a folder of others; rename one.")


def _remove_others(path: Path, wanted: Collection[Path]) -> None:
    """Delete files that stand for objects that are gone, and what is in the way of a folder."""
    if path.is_dir() and path in wanted:
        shutil.rmtree(path)
    if path.is_file() and path not in wanted:
        path.unlink()
    for file in [x for x in path.rglob("*") if x.is_symlink() or not x.is_dir()]:
        if file not in wanted:
            file.unlink()
    for parent in path.parents:
        if parent.is_file():
            parent.unlink()
    for folder in sorted((x for x in path.rglob("*") if x.is_dir()), reverse=True):
        if folder in wanted or not any(folder.iterdir()):
            shutil.rmtree(folder)


def _check_room(below: str, missing: Iterable[Stored]) -> None:
    need, free = sum(x.size for x in missing), shutil.disk_usage(root()).free
    if need > free:
        raise InputError(
            f"`{below}`: {need / 2**30:.1f} GiB are to be fetched, and `{root()}` has "
            f"{free / 2**30:.1f} GiB left; make room, or set XDG_CACHE_HOME to a larger disk."
        )


def _fetch_all(below: str, missing: list[Stored], tree: str, marks: Marks) -> None:
    def get(stored: Stored) -> Stored:
        fetch(stored, place(stored.address, tree))
        marks.set(stored)  # at once: what came before an error is not fetched again
        return stored

    size = sum(x.size for x in missing) / 2**20
    doing = f"fetching {count(len(missing), 'file')} from {below}"
    with (
        Progress(doing, max(size, 0.1), unit="MiB") as progress,
        ThreadPoolExecutor(_AT_ONCE) as pool,
    ):
        try:
            for stored in pool.map(get, missing):
                progress.advance(stored.size / 2**20)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
