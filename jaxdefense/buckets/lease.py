"""A lease: an object that says which process writes a place in a bucket.

The process that has it writes it anew every few seconds, with another count. One that ended
properly deletes it. Another process that finds it watches it: if it changes, its owner is alive,
and the place is refused; if it stays the same for long enough, its owner is dead, and the lease is
taken over. No clocks are compared.

The first lease is taken by an upload that fails if the object exists. Some services ignore this
condition, and two processes may take over at once. Either way one object is left: each process
reads it back after a moment, and the one whose token is not in it has lost. An owner that was
suspended, and meanwhile lost its lease, learns of it before its next upload. What it uploads in the
seconds after that look is not guarded.
"""

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from jaxdefense.buckets.store import Unreachable, create, delete, read, write
from jaxdefense.errors import InputError, RunError
from jaxdefense.files import this_process

logger = logging.getLogger(__name__)

RENEWED = 10.0  # seconds between two writes of a lease
LAPSES = 45.0  # seconds without a change, after which its owner counts as dead
_SETTLES = 1.0  # seconds after which two processes that took it at once see the same


class Lost(RunError):
    """Another process has taken over what this one was writing."""


class Lease:
    """The lease on a place in a bucket."""

    def __init__(self, address: str, of: str, sleep: Callable[[float], Any] = time.sleep):
        """Name its object, and the place it is of; nothing is written.

        Args:
            address: of the object.
            of: address of the place, for messages.
            sleep: waits for seconds.
        """
        self._address, self._of, self._sleep = address, of, sleep
        self._token, self._count = uuid.uuid4().hex, 0
        self._ended = threading.Event()

    def take(self) -> None:
        """Take it, and keep it until `release`.

        Raises:
            InputError: another process has it; or the place cannot be written.
            Unreachable: the bucket does not answer.
        """
        if _read(self._address) or not create(self._address, self._text()):
            self._wait()
            write(self._address, self._text())
        self._sleep(_SETTLES)
        self.check()
        threading.Thread(target=self._renew, daemon=True).start()

    def _wait(self) -> None:
        """Return once the lease that is there is not renewed any more."""
        there = _read(self._address)
        if not there or there["token"] == self._token:  # an answer of the service was lost
            return
        logger.info(
            f"`{self._of}` was left by {there['who']}, or is in use: looking for "
            f"{LAPSES:.0f} s whether it still is"
        )
        waited = 0.0
        while waited < LAPSES:
            self._sleep(RENEWED / 2)
            waited += RENEWED / 2
            now = _read(self._address)
            if not now:
                return
            if now != there:
                raise InputError(
                    f"`{self._of}` is in use by {now['who']}; wait until it ends, or give another "
                    "address."
                )

    def check(self) -> None:
        """Check that this process still has it.

        Raises:
            Lost: another one has.
            Unreachable: the bucket does not answer.
        """
        there = _read(self._address)
        if not there and create(self._address, self._text()):  # someone cleared it away
            return
        if not there or there["token"] != self._token:
            who = there["who"] if there else "another process"
            raise Lost(f"`{self._of}` was taken over by {who}; this run ends.")

    def release(self) -> None:
        """Give it up."""
        self._ended.set()
        there = _read(self._address)
        if there and there["token"] == self._token:
            delete(self._address)

    def _renew(self) -> None:
        while not self._ended.wait(RENEWED):
            try:
                self.check()
                if not self._ended.is_set():
                    write(self._address, self._text())
            except Unreachable:
                continue  # the next upload says so if it lasts
            except (Lost, InputError):
                return  # likewise

    def _text(self) -> bytes:
        self._count += 1
        entry = {"who": this_process(), "token": self._token, "count": self._count}
        return json.dumps(entry, indent=2).encode()


def _read(address: str) -> dict[str, Any] | None:
    text = read(address)
    if text is None:
        return None
    try:
        found = json.loads(text)
        return {"who": str(found["who"]), "token": found["token"], "count": found["count"]}
    except (ValueError, KeyError, TypeError):  # not ours
        return {"who": "another program", "token": "", "count": text.hex()}
