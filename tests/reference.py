"""The libraries that tests compare with, imported when a test first uses one.

A test that uses one is marked `torch`; `conftest.py` skips it where the library is missing.
"""

import contextlib
import importlib
import importlib.util
import sys
import warnings
from typing import Any
from unittest import mock


class _Later:
    """A module that is imported at the first look into it."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if self._name not in sys.modules:
            # What an import warns of is not ours; pytest makes errors of warnings.
            with warnings.catch_warnings(action="ignore"):
                mend_torchvision()
                importlib.import_module(self._name)
        return getattr(sys.modules[self._name], attribute)


torch: Any = _Later("torch")
open_clip: Any = _Later("open_clip")
diffusers: Any = _Later("diffusers")
hf: Any = _Later("transformers")  # untyped: its signatures are not its callers'
modeling_clip: Any = _Later("transformers.models.clip.modeling_clip")
modeling_siglip: Any = _Later("transformers.models.siglip.modeling_siglip")


def mend_torchvision() -> None:
    """Import a torchvision that was built for CUDA beside a torch that was built for CPUs.

    Of such a pair the first import fails, where it registers the shapes of operators that could
    not be loaded. transformers and open_clip import torchvision wherever it is installed; neither
    needs those operators for what is compared here.
    """
    if not (importlib.util.find_spec("torchvision") and importlib.util.find_spec("torch")):
        return
    import torch  # noqa: F401

    ignored = mock.patch("torch.library.register_fake", lambda *args, **kwargs: lambda f: f)
    with warnings.catch_warnings(action="ignore"):
        try:
            import torchvision  # noqa: F401
        except RuntimeError:
            with contextlib.suppress(ImportError), ignored:
                import torchvision  # noqa: F401
