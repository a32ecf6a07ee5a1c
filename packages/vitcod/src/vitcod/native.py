"""The compiled kernels and the choice of instruction set.

Without the compiled extension everything still works, through torch and more slowly.
"""

from __future__ import annotations

import os
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitcod.errors import InputError

try:
    import vitcod._native as _native
except ImportError:  # a source tree that was not built, or a platform without a compiler
    _native = None  # type: ignore[assignment]

VARIABLE = "VITCOD_INSTRUCTIONS"
INSTRUCTION_SETS = ("avx512", "avx2", "portable", "torch")
MAX_HEAD_DIM = 1024
_NO_BIAS = (0, 0, 0, 0, 0)


@cache
def _warn_once() -> None:
    warnings.warn(
        "vitcod runs without its compiled part, through masked torch: results agree, speed does"
        " not; install it with a C++17 compiler at hand",
        RuntimeWarning,
        stacklevel=5,
    )


@cache
def _share_threads() -> bool:
    """Hand torch's OpenMP library to the kernels, so that both use one team of threads."""
    folder = Path(torch.__file__).parent
    for path in [*folder.glob("lib/libgomp*"), *folder.parent.glob("torch.libs/libgomp*")]:
        if _native.use_openmp(str(path)):
            return True
    return bool(_native.use_openmp("libgomp.so.1"))


@cache
def _resolve(wanted: str) -> str:
    if wanted and wanted not in INSTRUCTION_SETS:
        raise InputError(
            f"{VARIABLE}={wanted!r} is not allowed: one of {', '.join(INSTRUCTION_SETS)}"
        )
    if wanted == "torch":
        return wanted
    if _native is None:
        if wanted:
            raise InputError(
                f"{VARIABLE}={wanted!r} needs the compiled part: install with a C++17 compiler"
            )
        _warn_once()
        return "torch"
    found = str(_native.instructions(wanted))
    if not found:
        raise InputError(
            f"{VARIABLE}={wanted!r} is not available on this processor: avx2, portable or torch"
        )
    _share_threads()
    return found


def instruction_set() -> str:
    """Name the kernels that run here: "avx512", "avx2", "portable", or "torch" for none.

    The environment variable VITCOD_INSTRUCTIONS forces one of them.

    Raises
    ------
    InputError
        The variable names a set that this processor or installation does not have.
    """
    return _resolve(os.environ.get(VARIABLE, ""))


def make_layout(*arguments: Any) -> Any:
    """Build the kernels' form of a layer's plan (csrc/layout.hpp)."""
    return _native.Layout(*arguments)


def _four(x: Tensor) -> tuple[int, int, int, int]:
    b, h, n, _ = x.stride()
    return (x.data_ptr(), b, h, n)


def _five(bias: Tensor | None, q: Tensor, keys: int) -> tuple[int, int, int, int, int]:
    if bias is None:
        return _NO_BIAS
    b, h, n, m = bias.expand(*q.shape[:3], keys).stride()
    return (bias.data_ptr(), b, h, n, m)


def contiguous_channels(x: Tensor) -> Tensor:
    """Return x, copied only where its channels are not next to each other."""
    return x if x.stride(-1) == 1 else x.contiguous()


def forward(
    layout: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, want_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """Run the forward kernel; float32 on the CPU, shapes already checked."""
    q, k, v = contiguous_channels(q), contiguous_channels(k), contiguous_channels(v)
    batch, heads, queries, dim = q.shape
    value_dim = v.shape[-1]
    # (batch, query, head, channel) in memory: the output projection reads it without a copy.
    out = torch.empty((batch, queries, heads, value_dim), dtype=torch.float32).transpose(1, 2)
    lse = torch.empty((batch, heads, queries), dtype=torch.float32) if want_lse else None
    _native.forward(
        layout,
        batch,
        dim,
        value_dim,
        _four(q),
        _four(k),
        _four(v),
        _four(out),
        0 if lse is None else lse.data_ptr(),
        _five(bias, q, k.shape[2]),
        scale,
        torch.get_num_threads(),
        instruction_set(),
    )
    return out, lse


def backward(
    layout: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the backward kernels; the last result is the gradient of the kept scores (B, entries)."""
    q, k, v = contiguous_channels(q), contiguous_channels(k), contiguous_channels(v)
    grad_out, out, lse = contiguous_channels(grad_out), contiguous_channels(out), lse.contiguous()
    batch, _, _, dim = q.shape
    dq, dk, dv = (torch.empty(x.shape, dtype=torch.float32) for x in (q, k, v))
    probability = torch.empty((batch, layout.entries), dtype=torch.float32)
    score = torch.empty_like(probability)
    _native.backward(
        layout,
        batch,
        dim,
        v.shape[-1],
        _four(q),
        _four(k),
        _four(v),
        _four(out),
        lse.data_ptr(),
        _five(bias, q, k.shape[2]),
        _four(grad_out),
        _four(dq),
        _four(dk),
        _four(dv),
        probability.data_ptr(),
        score.data_ptr(),
        scale,
        torch.get_num_threads(),
        instruction_set(),
    )
    return dq, dk, dv, score
