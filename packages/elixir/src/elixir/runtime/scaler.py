"""Dynamic loss scaling for float16 (section 1.8: 32768, doubled per 1000 good steps, halved)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class LossScaler:
    """Multiplies the loss; the optimizer divides it out and skips steps that overflow.

    Attributes
    ----------
    scale
        Present factor.
    growth_interval
        Good steps after which it doubles.
    hysteresis
        Overflows in a row that are skipped before it halves.
    """

    scale: float = 32768.0
    growth_interval: int = 1000
    hysteresis: int = 2
    minimum: float = 1.0
    _good: int = 0
    _bad: int = 0

    def __post_init__(self) -> None:
        if self.scale <= 0 or self.growth_interval < 1 or self.hysteresis < 1:
            raise ValueError("LossScaler: scale, growth_interval and hysteresis must be positive")

    def __call__(self, loss: Tensor) -> Tensor:
        """Return the scaled loss."""
        return loss * self.scale

    def update(self, overflow: bool) -> None:
        """Adapt the scale to the outcome of a step."""
        if overflow:
            self._good, self._bad = 0, self._bad + 1
            if self._bad >= self.hysteresis:
                self.scale, self._bad = max(self.scale / 2, self.minimum), 0
            return
        self._bad, self._good = 0, self._good + 1
        if self._good == self.growth_interval:
            self.scale, self._good = self.scale * 2, 0
