"""The one error class of the package."""

from __future__ import annotations


class InputError(ValueError):
    """An argument or an input file that cannot be used.

    The message is one line that names the argument, its value, what is allowed and the next step.
    The command line prints it and exits with code 2.

    Examples
    --------
    >>> import noiser
    >>> noiser.train(steps=0)
    Traceback (most recent call last):
        ...
    noiser.errors.InputError: steps=0 is not allowed: an integer of at least 1
    """
