"""One torch thread: the results do not depend on it, the machine is small."""

from __future__ import annotations

import matplotlib as mpl
import torch

mpl.use("Agg")
torch.set_num_threads(1)
