"""Huge pages for the memory of a step on a CPU."""

import contextlib
import os
import sys
from pathlib import Path

_RESTARTED = "JAXDEFENSE_RESTARTED"


def ask_for_huge_pages(setting: Path) -> None:
    """Re-execute the program with huge pages, as glibc reads that setting only at its start.

    On a CPU every step maps gigabytes of memory anew; in pages of 4 KiB that takes a sixth of the
    step.

    Args:
        setting: the kernel's file that says when it gives huge pages; only `madvise`, on request,
        has an effect.
    """
    tunables, tunable = os.environ.get("GLIBC_TUNABLES", ""), "glibc.malloc.hugetlb"
    try:
        on_request = "[madvise]" in setting.read_text()
    except OSError:  # not Linux
        return
    # A loader that removes the first variable leaves the second, so this happens only once.
    if on_request and tunable not in tunables and not os.environ.get(_RESTARTED):
        os.environ["GLIBC_TUNABLES"] = f"{tunables}:{tunable}=1".lstrip(":")
        os.environ[_RESTARTED] = "1"
        with contextlib.suppress(OSError):  # it runs without them too
            os.execv(sys.executable, sys.orig_argv)
