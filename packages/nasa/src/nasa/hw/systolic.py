"""Cycles of a systolic array, equal to SCALE-Sim's, in closed form."""

from __future__ import annotations

from typing import Literal, get_args

from nasa.hw.layer import Layer

SystolicDataflow = Literal["os", "ws", "is"]


def systolic_cycles(layer: Layer, array: tuple[int, int], dataflow: SystolicDataflow) -> int:
    """Return the compute cycles of a layer on a systolic array.

    With T = E F output pixels, K = R S C products each and M filters on an array of Sr x Sc: the
    layer takes ``folds * cycles_per_fold - 1`` cycles, where

    - ``os``: ceil(T / Sr) ceil(M / Sc) folds of K + Sr + Sc - 2 cycles;
    - ``ws``: ceil(K / Sr) ceil(M / Sc) folds of T + 2 Sr + Sc - 2 cycles;
    - ``is``: ceil(K / Sr) ceil(T / Sc) folds of M + 2 Sr + Sc - 2 cycles.

    A grouped layer runs group after group.

    Parameters
    ----------
    layer : Layer
    array : (int, int)
        Rows and columns.
    dataflow : {"os", "ws", "is"}

    Returns
    -------
    int

    Examples
    --------
    >>> layer = Layer.conv("a", "conv", 64, 64, 18, kernel=3, padding=0)
    >>> [systolic_cycles(layer, (32, 32), d) for d in ("ws", "os", "is")]
    [12599, 10207, 22751]
    """
    if dataflow not in get_args(SystolicDataflow):
        raise ValueError(
            f"dataflow={dataflow!r}: allowed are {', '.join(get_args(SystolicDataflow))}"
        )
    rows, columns = array
    if rows < 1 or columns < 1:
        raise ValueError(f"array={array!r}: rows and columns must be at least 1")
    one = layer.one_group
    pixels = one.out[0] * one.out[1]
    products = one.kernel[0] * one.kernel[1] * one.channels
    if dataflow == "os":
        folds = -(-pixels // rows) * -(-one.filters // columns)
        per_fold = products + rows + columns - 2
    else:
        other, stream = (one.filters, pixels) if dataflow == "ws" else (pixels, one.filters)
        folds = -(-products // rows) * -(-other // columns)
        per_fold = stream + 2 * rows + columns - 2
    return layer.groups * (folds * per_fold - 1)
