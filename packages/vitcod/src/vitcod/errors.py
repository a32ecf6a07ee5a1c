"""The one error class of the package."""

from __future__ import annotations


class InputError(ValueError):
    """An argument or an input file that cannot be used.

    The message is one line that names the argument, its value, what is allowed and the next step.
    The command line prints it and exits with code 2.

    Examples
    --------
    >>> import numpy as np, vitcod
    >>> vitcod.LayerPlan.from_mask(np.zeros((1, 2, 2), bool))
    Traceback (most recent call last):
        ...
    vitcod.errors.InputError: mask keeps no key in row 0 of head 0: every query needs a key
    """
