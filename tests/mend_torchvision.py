"""Lets a torchvision that was built for CUDA be imported beside a torch built for CPUs.

Of such a pair the first import fails, where it registers the shapes of operators that could not be
loaded. transformers and open_clip import torchvision wherever it is installed; neither needs those
operators for what is compared here.
"""

import contextlib
import importlib.util
import warnings
from unittest import mock


def mend() -> None:
    """Import torchvision, if it is installed, without its operators."""
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
