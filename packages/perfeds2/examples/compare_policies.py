"""Length of one round under four policies."""

import numpy as np
from perfeds2 import allocate, equal_split, exact_round, greedy

g = np.random.default_rng(0)
offset, snr = g.uniform(0.1, 5.0, 20), 1e8 * g.exponential(1.0, 20)
first = greedy(offset, snr, 640_000, 1e6, 5)
print("all 20, equal shares:   ", round(equal_split(offset, snr, 640_000, 1e6).finish_s, 2), "s")
print("all 20, optimal shares: ", round(allocate(offset, snr, 640_000, 1e6).finish_s, 2), "s")
print("greedy 5, optimal:      ",
      round(allocate(offset[first], snr[first], 640_000, 1e6).finish_s, 2), "s")  # fmt: skip
print("joint optimum, 5:       ", round(exact_round(offset, snr, 640_000, 1e6, 5).finish_s, 2), "s")
