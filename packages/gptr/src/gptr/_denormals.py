"""Denormal floats as zeros: a distant cell's weight exp(-90) must not cost hundreds of cycles."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_depth = 0


@contextmanager
def flush_denormals() -> Iterator[None]:
    """Treat denormal floats as zeros within the block, on processors that can."""
    global _depth
    if _depth == 0:
        torch.set_flush_denormal(True)
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if _depth == 0:
            torch.set_flush_denormal(False)
