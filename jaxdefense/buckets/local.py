"""A command's settings with local paths in place of addresses, and what that takes.

In Python:

    with on_local_paths(cfg) as cfg:
        summary = defend_text(cfg)
"""

import contextlib
import logging
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from jaxdefense.buckets.places import IN, address, is_address, place, root
from jaxdefense.errors import InputError, RunError
from jaxdefense.settings import Kind, change_texts

if TYPE_CHECKING:
    from jaxdefense.buckets.mirror import Mirror

logger = logging.getLogger(__name__)

T = TypeVar("T")

_open = list["Mirror"]()  # run directories that this command writes


@contextlib.contextmanager
def on_local_paths(cfg: T) -> Iterator[T]:
    """Give settings whose addresses are local paths; fetch inputs before, upload results after.

    Of several processes each fetches the inputs. The first has the run directory, which all must
    reach; see `_check_shared`.

    Args:
        cfg: dataclass of settings.

    Raises:
        InputError: an address is wrong, nothing is there, or it may not be read or written.
        Unreachable: a bucket does not answer.
        NotUploaded: results could not be uploaded.
    """
    found = _addresses(cfg)
    if not found:
        yield cfg
        return
    # These bring Orbax and JAX, which help and most commands do without.
    from jaxdefense.buckets import mirror
    from jaxdefense.buckets.inputs import fetch_inputs

    with contextlib.ExitStack() as held:
        here = _outputs(found, held)  # first: that takes seconds, and inputs may take hours
        inputs = [x for x, kind in found.items() if kind in ("input", "changed")]
        fetch_inputs(inputs)
        here |= {x: place(x, IN) for x in inputs}
        yield change_texts(
            cfg, lambda name, text, _: str(here[address(text, name)]) if is_address(text) else text
        )
        for given in (x for x, kind in found.items() if kind == "changed"):
            mirror.put_back(given)


def _addresses(cfg: object) -> dict[str, Kind]:
    """List the addresses in settings, with what each is.

    Raises:
        InputError: one is both an input and an output.
    """
    found = dict[str, Kind]()

    def note(name: str, text: str, kind: Kind) -> str:
        if is_address(text):
            given = address(text, name)
            if found.setdefault(given, kind) != kind:
                raise InputError(f"`{name}` (={text}) is read and written; give two addresses.")
        return text

    change_texts(cfg, note)
    return found


def _outputs(found: dict[str, Kind], held: contextlib.ExitStack) -> dict[str, Path]:
    from jaxdefense.buckets import mirror

    here = dict[str, Path]()
    for given, kind in found.items():
        if kind == "run":
            here[given] = held.enter_context(_mirrored(given))
        elif kind == "new":
            here[given] = held.enter_context(mirror.new(given))
    return here


@contextlib.contextmanager
def _mirrored(given: str) -> Iterator[Path]:
    """Open a run directory on the process that writes it; upload at the end, whatever happens."""
    from jaxdefense.buckets.mirror import Mirror
    from jaxdefense.distributed import first, on_first

    mirror = Mirror(given)
    on_first(mirror.open)
    try:
        _check_shared(mirror.path)
        _open.append(mirror)
        yield mirror.path
    except BaseException as error:
        if first():
            _close_after(mirror, error)
        raise
    else:
        on_first(mirror.close)
    finally:
        if mirror in _open:
            _open.remove(mirror)


def _close_after(mirror: "Mirror", error: BaseException) -> None:
    """Upload what there is of a run that failed; its own error is the one to tell."""
    from jaxdefense.buckets.lease import Lost
    from jaxdefense.buckets.mirror import NotUploaded

    try:
        mirror.close(upload=not isinstance(error, NotUploaded | Lost))
    except RunError as further:
        logger.warning(str(further))


def _check_shared(path: Path) -> None:
    """Raise InputError unless all processes reach the directory in which the run is written."""
    from jaxdefense.distributed import exchange, on_first, several

    if not several():
        return
    token, file = uuid.uuid4().hex, path.with_name(f".{path.name}.shared")

    def show() -> str:
        file.write_text(token)
        return token

    token = on_first(show)
    seen = exchange(str(file.is_file() and file.read_text() == token))
    if "False" in seen:
        raise InputError(
            f"process {seen.index('False')} does not reach the directory in which process 0 writes "
            "a run before it is uploaded: set XDG_CACHE_HOME to a directory that all hosts share "
            f"(`{root()}` here)."
        )


def is_mirrored(path: Path) -> bool:
    """Tell whether a directory goes to a bucket."""
    return any(path.absolute().is_relative_to(mirror.path) for mirror in _open)


def upload_results(path: Path) -> None:
    """Upload what is new in the results that a directory belongs to, if they go to a bucket.

    Of several processes all call this, and the first uploads.

    Raises:
        NotUploaded, Lost: see `Mirror.upload`.
    """
    from jaxdefense.distributed import on_first

    for mirror in _open:
        if path.absolute().is_relative_to(mirror.path):
            on_first(mirror.upload)
