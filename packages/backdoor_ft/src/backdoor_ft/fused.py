"""Crop, flip, trigger and normalise of a batch of bytes: one compiled pass, or torch.

Both give the same bits: integers up to the byte, and a table from byte to normalised value.
"""

from __future__ import annotations

import os
import warnings
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from backdoor_ft.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Float, Int, UInt8

try:
    import backdoor_ft._native as _native
except ImportError:  # a source tree that was not built, or a platform without a compiler
    _native = None  # type: ignore[assignment]

VARIABLE = "BACKDOOR_FT_INSTRUCTIONS"
INSTRUCTION_SETS = ("avx512", "avx2", "portable", "torch")


@cache
def _warn_once() -> None:
    warnings.warn(
        "backdoor_ft runs without its compiled part, through torch: results agree, speed does"
        " not; install it with a C++17 compiler at hand",
        RuntimeWarning,
        stacklevel=4,
    )


def instruction_set() -> str:
    """Name what runs here; the variable BACKDOOR_FT_INSTRUCTIONS forces one.

    Raises
    ------
    InputError
        The variable names a set that is not there.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted and wanted not in INSTRUCTION_SETS:
        raise InputError(f"{VARIABLE}={wanted!r} is not allowed: {', '.join(INSTRUCTION_SETS)}")
    if wanted == "torch":
        return wanted
    if _native is None:
        if wanted:
            raise InputError(f"{VARIABLE}={wanted!r} needs the compiled part: it is not built")
        _warn_once()
        return "torch"
    if wanted and not _native.available(wanted):
        raise InputError(f"{VARIABLE}={wanted!r} is not available on this processor")
    return wanted or next(name for name in INSTRUCTION_SETS if _native.available(name))


def byte_table(mean: Float[Tensor, " c"], std: Float[Tensor, " c"]) -> Float[Tensor, "c 256"]:
    """Return (byte / 255 - mean) / std for every byte and channel."""
    scale = torch.arange(256, dtype=torch.float64) / 255
    values = (scale[None] - mean.double()[:, None]) / std.double()[:, None]
    return values.float().contiguous()


def fused_reference(
    images: UInt8[Tensor, "n h w c"],
    draws: Int[Tensor, "n 3"],
    stamped: Tensor,
    pattern: UInt8[Tensor, "h w c"],
    alpha: Int[Tensor, "h w c"],
    table: Float[Tensor, "c 256"],
    pad: int,
) -> Float[Tensor, "n c h w"]:
    """Do the same with torch, on any device."""
    n, h, w, c = images.shape
    padded = torch.nn.functional.pad(images, (0, 0, pad, pad, pad, pad))
    rows = draws[:, :1] + torch.arange(h, device=images.device)
    columns = torch.arange(w, device=images.device).expand(n, w)
    columns = torch.where(draws[:, 2:] != 0, w - 1 - columns, columns) + draws[:, 1:2]
    samples = torch.arange(n, device=images.device)[:, None, None]
    window = padded[samples, rows[:, :, None], columns[:, None, :]].int()
    mixed = (window * (256 - alpha) + pattern.int() * alpha + 128) >> 8
    value = torch.where(stamped.bool()[:, None, None, None], mixed, window).long()
    channels = torch.arange(c, device=images.device)
    return table[channels, value].permute(0, 3, 1, 2).contiguous()


@torch.library.custom_op("backdoor_ft::fused", mutates_args=())
def _fused(
    images: Tensor,
    draws: Tensor,
    stamped: Tensor,
    pattern: Tensor,
    alpha: Tensor,
    table: Tensor,
    pad: int,
) -> Tensor:
    name = "torch" if images.device.type != "cpu" else instruction_set()
    if name == "torch":
        return fused_reference(images, draws, stamped, pattern, alpha, table, pad)
    n, h, w, c = images.shape
    out = torch.empty(n, c, h, w)
    _native.fused(
        images.contiguous().numpy(),
        draws.contiguous().numpy(),
        stamped.to(torch.uint8).contiguous().numpy(),
        pattern.contiguous().numpy(),
        alpha.to(torch.int32).contiguous().numpy(),
        table.contiguous().numpy(),
        out.numpy(),
        pad,
        torch.get_num_threads(),
        name,
    )
    return out


@_fused.register_fake
def _(
    images: Tensor,
    draws: Tensor,
    stamped: Tensor,
    pattern: Tensor,
    alpha: Tensor,
    table: Tensor,
    pad: int,
) -> Tensor:
    n, h, w, c = images.shape
    return table.new_empty(n, c, h, w)


def fused(
    images: UInt8[Tensor, "n h w c"],
    draws: Int[Tensor, "n 3"],
    stamped: Tensor,
    pattern: UInt8[Tensor, "h w c"],
    alpha: Int[Tensor, "h w c"],
    table: Float[Tensor, "c 256"],
    pad: int,
) -> Float[Tensor, "n c h w"]:
    """Crop, flip, stamp and normalise a batch of bytes.

    Parameters
    ----------
    images : bytes, channels last
    draws : row and column of the window in the padded image, 0 ... 2 pad, and whether to mirror;
        :func:`backdoor_ft.augment.draw_crops` draws them
    stamped : which samples carry the trigger, after the crop
    pattern, alpha : the trigger as (byte (256 - alpha) + pattern alpha + 128) >> 8, alpha 0 ... 256
    table : normalised value of each byte, from :func:`byte_table`
    pad : zeros around the image

    Raises
    ------
    InputError
        A shape or type is not allowed.
    """
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise InputError(
            f"images is {images.dtype} {tuple(images.shape)}: uint8 [N, H, W, C] is needed"
        )
    n, h, w, c = images.shape
    if pattern.shape != (h, w, c) or pattern.dtype != torch.uint8 or alpha.shape != (h, w, c):
        raise InputError(f"pattern and alpha must be [{h}, {w}, {c}], the pattern uint8")
    if draws.shape != (n, 3) or draws.dtype != torch.int64 or stamped.shape != (n,):
        raise InputError(f"draws must be int64 [{n}, 3], stamped [{n}]")
    if table.shape != (c, 256) or table.dtype != torch.float32 or pad < 0:
        raise InputError(f"table must be float32 [{c}, 256] and pad at least 0")
    if int(draws[:, :2].min()) < 0 or int(draws[:, :2].max()) > 2 * pad:
        raise InputError(f"draws is out of range: 0 ... {2 * pad} for pad={pad}")
    if int(alpha.min()) < 0 or int(alpha.max()) > 256:
        raise InputError("alpha is out of range: 0 ... 256")
    found: Tensor = _fused(images, draws, stamped, pattern, alpha, table, pad)
    return found
