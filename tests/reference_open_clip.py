"""Where open_clip, the reference of OpenAI's own layout, comes from."""

import warnings
from typing import Any

import mend_torchvision
import pytest


def import_open_clip() -> Any:
    """Import open_clip; skip the test where it or torch is not installed."""
    pytest.importorskip("torch")
    # What its import warns of is not ours; pytest makes errors of warnings.
    with warnings.catch_warnings(action="ignore"):
        mend_torchvision.mend()
        return pytest.importorskip("open_clip")
