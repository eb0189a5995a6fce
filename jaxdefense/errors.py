"""How a run may fail: errors that a user can correct, and faults of this package or the machine.

The command line prints the first three kinds as one line. Every other exception, any other
ValueError and OSError too, is a fault of this package or of the machine: exit 1, with a traceback.
"""

import signal


class InputError(ValueError):
    """An input, a setting or a file is wrong: the message says what, where, and what is right.

    The command line exits with 2: the same command would fail again.
    """


class RunError(Exception):
    """A run cannot continue, for a reason that fits one line; the command line exits with 1."""


class NotReached(RunError):
    """A defense wrote its model, but its own validation still recognises people."""


class Interrupted(Exception):
    """A signal stopped the run; its checkpoint is saved. The command line exits with 128 + n."""

    def __init__(self, signum: int, step: int):
        super().__init__(
            f"stopped by {signal.Signals(signum).name} after step {step}, checkpoint saved; "
            "run the same command again to resume."
        )
        self.signum = signum


def missing(what: str, package: str, extra: str) -> InputError:
    """Say that a package is not installed, and how it is.

    Args:
        what: needs it, as a setting or a source.
        package: as Python imports it.
        extra: of jaxdefense, which brings it.
    """
    return InputError(
        f"{what} needs the package {package}, which is not installed: "
        f"`pip install 'jaxdefense[{extra}]'`."
    )
