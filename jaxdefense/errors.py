"""The errors that a user can mend, told apart from faults of ours or of the machine."""


class InputError(ValueError):
    """An input, a setting or a file is wrong: the message says what, where, and what is right.

    The command line prints it as one line and exits with 2. Every other exception is a fault of
    this package or of the machine: exit 1, with a traceback.
    """
