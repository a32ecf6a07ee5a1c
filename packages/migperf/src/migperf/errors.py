"""Exception classes, one per exit code of the command line."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "Infeasible",
    "InputError",
    "InstanceInUse",
    "MigperfError",
    "NoisyHost",
    "PermissionDenied",
    "ResetRequired",
    "WorkloadOutOfMemory",
]


class MigperfError(Exception):
    """Base of every error that this package raises on purpose.

    Attributes
    ----------
    exit_code : int
        What the command line exits with when the error reaches it.
    """

    exit_code = 1


class InputError(MigperfError, ValueError):
    """An argument, a file or an option is not what it must be (exit code 2)."""

    exit_code = 2

    @classmethod
    def of(cls, name: str, value: object, allowed: str) -> InputError:
        """Build the one-line message: argument, value, what is allowed.

        Examples
        --------
        >>> str(InputError.of("batch", 0, "an integer >= 1"))
        'batch: 0 is not allowed; allowed: an integer >= 1'
        """
        return cls(f"{name}: {value!r} is not allowed; allowed: {allowed}")


class Infeasible(MigperfError):  # noqa: N818 - the public name
    """The computation says no: a layout that cannot be placed, a demand that cannot be met.

    Attributes
    ----------
    reason : str
        Why, in one line.
    culprits : tuple of str
        A smallest set of entries that conflict (empty where none was isolated).
    """

    exit_code = 3

    def __init__(self, reason: str, culprits: Iterable[str] = ()) -> None:
        super().__init__(reason)
        self.reason = reason
        self.culprits = tuple(culprits)


class PermissionDenied(MigperfError):  # noqa: N818 - the public name
    """The driver or the operating system refuses the operation to this user (exit code 4)."""

    exit_code = 4


class InstanceInUse(MigperfError):  # noqa: N818 - the public name
    """A process runs on what would have to be destroyed (exit code 5).

    Attributes
    ----------
    pids : tuple of int
        Processes that hold the instance, as far as the driver names them.
    """

    exit_code = 5

    def __init__(self, message: str, pids: Iterable[int] = ()) -> None:
        super().__init__(message)
        self.pids = tuple(pids)


class ResetRequired(MigperfError):  # noqa: N818 - the public name
    """A mode change is pending until the GPU is reset or the machine rebooted (exit code 6)."""

    exit_code = 6


class NoisyHost(MigperfError):  # noqa: N818 - the public name
    """Other work disturbs the machine too much for the measurement to be valid (exit code 7)."""

    exit_code = 7


class WorkloadOutOfMemory(MigperfError):  # noqa: N818 - the public name
    """A workload did not fit into the memory of its partition (exit code 8)."""

    exit_code = 8
