"""AdamW kernels and the optimizer made of them."""

from elixir.optim.adamw import AdamW
from elixir.optim.kernels import adamw8_, adamw_, square_sum
from elixir.optim.ops import adamw_op, square_sum_op

__all__ = ["AdamW", "adamw8_", "adamw_", "adamw_op", "square_sum", "square_sum_op"]
