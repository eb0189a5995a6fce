"""What a run may end with: what a user can mend, told apart from faults of ours or the machine's.

The command line prints the first three kinds as one line. Every other exception, any other
ValueError and OSError too, is a fault of this package or of the machine: exit 1, with a traceback.
"""

import signal


class InputError(ValueError):
    """An input, a setting or a file is wrong: the message says what, where, and what is right.

    The command line exits with 2: the same command would fail again.
    """


class RunError(Exception):
    """A run cannot go on, for a reason that one line tells whole; the command line exits with 1."""


class NotReached(RunError):
    """A defense wrote its model, and by its own validation people are still recognised."""


class Interrupted(Exception):
    """A signal stopped the run; its checkpoint is saved. The command line exits with 128 + n."""

    def __init__(self, signum: int, step: int):
        super().__init__(
            f"stopped by {signal.Signals(signum).name} after step {step}, checkpoint saved; "
            "run the same command again to go on."
        )
        self.signum = signum
