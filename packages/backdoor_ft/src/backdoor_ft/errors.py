"""The error classes of the package."""

from __future__ import annotations


class InputError(ValueError):
    """An argument or an input file that cannot be used.

    The message is one line that names the argument, its value, what is allowed and the next step.
    The command line prints it and exits with code 2.
    """


class DivergedError(RuntimeError):
    """Training gave a loss or a weight that is not finite."""
