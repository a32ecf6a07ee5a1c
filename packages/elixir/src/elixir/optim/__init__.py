"""AdamW kernels and the optimizer made of them."""

from elixir.optim.adamw import AdamW
from elixir.optim.kernels import adamw8_, adamw_, square_sum

__all__ = ["AdamW", "adamw8_", "adamw_", "square_sum"]
