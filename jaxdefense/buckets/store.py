"""Objects of a bucket, through fsspec: listed, fetched, uploaded, deleted.

Whatever a library raises becomes one line: `InputError` for what a user can mend, `Unreachable` for
a fault of the network or the service.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from jaxdefense.errors import InputError, RunError

T = TypeVar("T")

# By scheme: fsspec's package, and our extra that installs it.
_PACKAGES = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "az": ("adlfs", "azure")}
_PAUSES = (1.0, 3.0, 10.0)  # seconds before each further attempt
# Names of exceptions that say that there are no credentials, or none that count.
_NO_CREDENTIALS = {
    *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"),  # botocore
    *("ProfileNotFound", "TokenRetrievalError", "UnauthorizedSSOTokenError"),
    *("DefaultCredentialsError", "RefreshError"),  # google.auth
    *("ClientAuthenticationError", "CredentialUnavailableError"),  # azure
}
_WHERE_CREDENTIALS_ARE = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws or the role of the machine",
    "gs": "`gcloud auth application-default login` or GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME with a key",
}


class Unreachable(RunError):
    """A bucket does not answer, or answers with a fault of its own."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """An object of a bucket.

    Fields:
        address: of it.
        size: bytes.
        version: changes whenever its contents do.
    """

    address: str
    size: int
    version: str


@functools.cache
def _connect(scheme: str) -> Any:
    """Open the file system of a scheme.

    Raises:
        InputError: its package is missing.
    """
    package, extra = _PACKAGES[scheme]
    if importlib.util.find_spec(package) is None:
        raise InputError(
            f"{scheme}:// needs the package {package}: `pip install 'jaxdefense[{extra}]'`."
        )
    import fsspec

    # These log a traceback for each error, which then becomes a line of ours.
    for library in (package, "fsspec", "botocore", "aiobotocore", "google", "azure"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    return fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False)


def _split(address: str) -> tuple[Any, str]:
    scheme, _, path = address.partition("://")
    return _connect(scheme), path


@contextlib.contextmanager
def _told(address: str, doing: str) -> Iterator[None]:
    """Turn what a library raises into one line."""
    try:
        yield
    except (InputError, RunError, FileExistsError, TypeError, AttributeError):
        raise
    except Exception as error:  # the libraries have no common base class
        raise _as_line(address, doing, error) from error


def _as_line(address: str, doing: str, error: Exception) -> Exception:
    names = {kind.__name__ for kind in type(error).__mro__}
    said = " ".join(str(error).split()) or type(error).__name__
    scheme, _, path = address.partition("://")
    code = str(getattr(error, "code", None) or getattr(error, "status_code", ""))
    if names & _NO_CREDENTIALS or code == "401":
        where = _WHERE_CREDENTIALS_ARE[scheme]
        return InputError(f"`{address}` cannot be {doing}: no credentials ({said}); give {where}.")
    if isinstance(error, FileNotFoundError) or code == "404" or "ResourceNotFoundError" in names:
        bucket = f"{scheme}://{path.split('/')[0]}"
        return InputError(
            f"`{address}` cannot be {doing}: there is no such object or bucket; check `{bucket}` "
            "and the name in it."
        )
    if isinstance(error, PermissionError) or code == "403" or "Forbidden" in said:
        return InputError(
            f"`{address}` cannot be {doing}: {said.rstrip('.')}; the credentials must allow to "
            "list, read, write and delete there."
        )
    if "ParamValidationError" in names or "is not valid" in said:
        return InputError(f"`{address}` cannot be {doing}: {said.rstrip('.')}; correct the name.")
    return Unreachable(f"`{address}` cannot be {doing}: {said.rstrip('.')}; try again.")


def _patiently(act: Callable[[], T], address: str, doing: str) -> T:
    """Act, and again after a pause if the bucket does not answer."""
    for pause in _PAUSES:
        try:
            with _told(address, doing):
                return act()
        except Unreachable:
            time.sleep(pause)
    with _told(address, doing):
        return act()


def listing(address: str) -> dict[str, Stored]:
    """List an object, or all objects below an address, by address; empty if there is none.

    Raises:
        InputError: there is no such bucket, or it may not be listed.
        Unreachable: it does not answer.
    """
    fs, path = _split(address)
    scheme = address.partition("://")[0]

    def look() -> dict[str, dict[str, Any]]:
        fs.invalidate_cache()
        try:
            found = fs.find(path, detail=True)
            # Azure's gives the name alone of a single object.
            return found if isinstance(found, dict) else {name: fs.info(name) for name in found}
        except FileNotFoundError:
            bucket = path.split("/")[0]
            if bucket != path and fs.exists(bucket):  # nothing there, rather than no bucket
                return {}
            raise

    found = _patiently(look, address, "listed")
    return {
        f"{scheme}://{name}": Stored(f"{scheme}://{name}", int(info["size"] or 0), _version(info))
        for name, info in found.items()
        if info.get("type") != "directory" and not name.endswith("/")  # a folder of a web console
    }


def _version(info: dict[str, Any]) -> str:
    """Give what changes with an object's contents: its hash or number, by service; else its time.

    The entry of an object's hash has a name of its own in each service.
    """
    for key in ("ETag", "etag", "generation", "md5Hash", "content_md5"):
        if info.get(key):
            return str(info[key])
    times = (info[key] for key in ("LastModified", "last_modified", "updated") if key in info)
    return str(next(times, ""))


def fetch(stored: Stored, path: Path) -> None:
    """Fetch an object into a file, which appears whole or not at all.

    Raises:
        InputError: it is gone, or may not be read.
        Unreachable: it cannot be read, or was changed meanwhile.
    """
    fs, name = _split(stored.address)
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        _patiently(lambda: fs.get_file(name, str(tmp)), stored.address, "read")
        if (size := tmp.stat().st_size) != stored.size:
            raise Unreachable(
                f"`{stored.address}` has {stored.size} bytes, and {size} came: it was changed "
                "meanwhile, or the connection broke off; try again."
            )
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


def upload(path: Path, address: str) -> Stored:
    """Upload a file as one object, which appears whole or not at all.

    Raises:
        InputError: there is no such bucket, or it may not be written.
        Unreachable: it does not answer.
        FileNotFoundError: the file is gone.
    """
    fs, name = _split(address)
    size = path.stat().st_size
    _patiently(lambda: fs.put_file(str(path), name), address, "written")
    stored = _patiently(lambda: _info(fs, name), address, "looked at")
    if stored["size"] != size:
        raise Unreachable(f"`{address}` has {stored['size']} bytes after upload, not {size}.")
    return Stored(address, size, _version(stored))


def _info(fs: Any, name: str) -> dict[str, Any]:
    fs.invalidate_cache()
    return fs.info(name)


def delete(address: str) -> None:
    """Delete an object, if it is there.

    Raises:
        InputError: it may not be deleted.
        Unreachable: the bucket does not answer.
    """
    fs, name = _split(address)

    def act() -> None:
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(name)

    _patiently(act, address, "deleted")


def read(address: str) -> bytes | None:
    """Read a small object; None if it is not there.

    Raises:
        InputError: it may not be read.
        Unreachable: the bucket does not answer.
    """
    fs, name = _split(address)

    def act() -> bytes | None:
        try:
            return fs.cat_file(name)
        except FileNotFoundError:
            return None

    return _patiently(act, address, "read")


def write(address: str, data: bytes) -> None:
    """Write a small object; see `upload`."""
    fs, name = _split(address)
    _patiently(lambda: fs.pipe_file(name, data), address, "written")


def create(address: str, data: bytes) -> bool:
    """Write a small object unless it exists; tell whether that was done.

    Where the service has no conditional upload, two processes may both be told so.

    Raises:
        InputError: there is no such bucket, or it may not be written.
        Unreachable: it does not answer.
    """
    fs, name = _split(address)
    try:
        _patiently(lambda: fs.pipe_file(name, data, mode="create"), address, "written")
    except FileExistsError:
        return False
    return True
