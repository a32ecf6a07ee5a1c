"""What can go wrong, by name. All budget faults are raised before the first step."""


class InfeasiblePlanError(ValueError):
    """No plan fits the budget; the message names the least budget that does.

    Attributes
    ----------
    least_budget : int
        Bytes of device memory with which a plan exists.
    """

    def __init__(self, message: str, least_budget: int) -> None:
        super().__init__(message)
        self.least_budget = least_budget


class BudgetExceededError(RuntimeError):
    """An allocation would have passed the device budget; nothing was allocated."""


class UnsupportedOptimizerError(ValueError):
    """The optimizer cannot run on parameters that live in chunks."""


class StalePlanError(ValueError):
    """The plan was made for another model."""


class CorruptCheckpointError(ValueError):
    """A checkpoint is incomplete, damaged, or of another model."""
