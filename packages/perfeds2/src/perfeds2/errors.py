"""The errors of this package: one line that names the argument, the value and the remedy."""

from __future__ import annotations


class InputError(ValueError):
    """An argument or a file is not usable; the command line exits with code 2."""


class InfeasibleError(RuntimeError):
    """The computation says no (never delivers, not reached); the command line exits with code 3."""


class DivergedError(InfeasibleError):
    """A loss or an update is not finite.

    Parameters
    ----------
    ue : int
        UE whose update is not finite.
    round_index : int
        Server round in which it was to be aggregated.
    checkpoint : str or None
        File with the state before that round, when one was written.
    """

    def __init__(self, ue: int, round_index: int, checkpoint: str | None = None) -> None:
        self.ue = ue
        self.round_index = round_index
        self.checkpoint = checkpoint
        where = f"; state before the round: {checkpoint}" if checkpoint else ""
        super().__init__(
            f"update or loss of UE {ue} in round {round_index} is not finite: "
            f"lower server.step or method.alpha{where}"
        )


def require(condition: bool, name: str, value: object, allowed: str, remedy: str = "") -> None:
    """Raise `InputError` with the uniform one-line message unless `condition` holds.

    Examples
    --------
    >>> require(3 > 0, "participants", 3, "at least 1")
    >>> require(False, "participants", 0, "at least 1", "use 1 for asynchronous")
    Traceback (most recent call last):
        ...
    perfeds2.errors.InputError: participants = 0: allowed is at least 1; use 1 for asynchronous
    """
    if not condition:
        tail = f"; {remedy}" if remedy else ""
        raise InputError(f"{name} = {value!r}: allowed is {allowed}{tail}")
