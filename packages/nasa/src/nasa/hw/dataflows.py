"""The four dataflows in closed form: every tiling of a layer, its cycles, accesses and buffer use.

Loop bounds are M = M3 M2 M1 M0, C = C2 C1 C0, E = E3 E1 E0 and F = F3 F1 F0 with index 3 in DRAM, 2
in the global buffer, 1 across PEs, 0 in the register files. The formulas are those of the simulator
that the authors published with NASA-F, row stationary (``rs``), input stationary (``is``), weight
stationary (``ws``) and output stationary (``os``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from nasa.hw.layer import Layer

Dataflow = Literal["rs", "is", "ws", "os"]
DATAFLOWS: tuple[Dataflow, ...] = get_args(Dataflow)
FACTORS = ("M0", "M1", "M2", "M3", "C0", "C1", "C2", "E0", "E1", "E3", "F0", "F1", "F3")
LEVELS = ("dram", "global_buffer", "noc", "register_file")


@lru_cache(maxsize=4096)
def _splits(number: int, parts: int) -> Int[np.ndarray, "n parts"]:
    """Return every ordered factorisation of a number into a count of factors."""
    if parts == 1:
        return np.array([[number]], dtype=np.int64)
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    blocks = []
    for d in divisors:
        rest = _splits(number // d, parts - 1)
        blocks.append(np.hstack([np.full((len(rest), 1), d, dtype=np.int64), rest]))
    return np.vstack(blocks)


def _join(
    left: dict[str, np.ndarray],
    right: dict[str, np.ndarray],
    *limits: tuple[tuple[str, ...], float],
) -> dict[str, np.ndarray]:
    """Combine two sets of factors, keeping pairs whose products stay below the limits."""
    mask = np.True_
    for names, bound in limits:
        a = np.prod([left[n] for n in names if n in left], axis=0, dtype=np.int64)
        b = np.prod([right[n] for n in names if n in right], axis=0, dtype=np.int64)
        mask = mask & (np.multiply.outer(a, b) < bound)
    rows = len(next(iter(left.values())))
    columns = len(next(iter(right.values())))
    i, j = np.nonzero(np.broadcast_to(mask, (rows, columns)))
    return {n: v[i] for n, v in left.items()} | {n: v[j] for n, v in right.items()}


def _axis(number: int, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    return dict(zip(names, _splits(number, len(names)).T, strict=True))


@dataclass(frozen=True)
class Memories:
    """Capacities that tilings are held against, in words; every bound is strict."""

    processing_elements: int
    global_buffer: int
    input_register: int = 48
    weight_register: int = 112
    largest_filter_tile: int = 16


@dataclass(frozen=True)
class Tilings:
    """Every tiling of one call of a layer under one dataflow that fits the memories.

    Attributes
    ----------
    factors : dict of (n,) arrays
        The loop bounds.
    cycles : (n,) array
    accesses : dict of (n,) arrays
        Words moved at ``dram``, ``global_buffer``, ``noc``, ``register_file``.
    buffer : (n,) array
        Words held in the global buffer.
    processing_elements : (n,) array
        PEs in use; the array must have more.
    """

    factors: dict[str, Int[np.ndarray, " n"]]
    cycles: Int[np.ndarray, " n"]
    accesses: dict[str, Float[np.ndarray, " n"]]
    buffer: Int[np.ndarray, " n"]
    processing_elements: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.cycles)


def tilings(layer: Layer, dataflow: Dataflow, memories: Memories) -> Tilings:
    """Enumerate the tilings of one call of a layer (one group).

    Raises
    ------
    ValueError
        If the dataflow is unknown.

    Examples
    --------
    >>> layer = Layer.conv("pw", "conv", 24, 72, 16)
    >>> found = tilings(layer, "ws", Memories(100, 131070))
    >>> int(found.cycles.min())
    4608
    """
    if dataflow not in DATAFLOWS:
        raise ValueError(f"dataflow={dataflow!r}: allowed are {', '.join(DATAFLOWS)}")
    layer = layer.one_group
    t = {"rs": _rs_tilings, "is": _is_tilings, "ws": _ws_tilings, "os": _os_tilings}[dataflow](
        layer, memories
    )
    full = {name: t.get(name, np.ones(1, dtype=np.int64)) for name in FACTORS}
    n = max(len(v) for v in full.values())
    n = 0 if any(len(v) == 0 for v in t.values()) else n
    full = {name: np.broadcast_to(v, (n,)) if n else v[:0] for name, v in full.items()}
    buffer = _buffer(layer, full)
    keep = buffer < memories.global_buffer
    full = {name: v[keep] for name, v in full.items()}
    cycles, accesses, used = _costs(layer, dataflow, full)
    return Tilings(full, cycles, accesses, buffer[keep], used)


def _filters(layer: Layer, memories: Memories, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    m = _axis(layer.filters, names)
    keep = m["M0"] <= memories.largest_filter_tile
    return {n: v[keep] for n, v in m.items()}


def _pixels(
    layer: Layer, names_e: tuple[str, ...], names_f: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """Return the splits of E and F; but for fully connected layers E0 and F0 exceed 1."""
    e, f = _axis(layer.out[0], names_e), _axis(layer.out[1], names_f)
    if not layer.is_fully_connected:
        e = {n: v[e["E0"] != 1] for n, v in e.items()}
        f = {n: v[f["F0"] != 1] for n, v in f.items()}
    return _join(e, f)


def _rs_tilings(layer: Layer, memories: Memories) -> dict[str, np.ndarray]:
    r, s = layer.kernel
    pes = memories.processing_elements
    c = _axis(layer.channels, ("C0", "C1", "C2"))
    c = {n: v[c["C0"] * s < memories.input_register] for n, v in c.items()}
    mc = _join(
        _filters(layer, memories, ("M0", "M1", "M2", "M3")),
        c,
        (("M0", "C0"), memories.weight_register / s),
        (("M1", "C1"), pes / r),
    )
    e = _axis(layer.out[0], ("E1", "E3"))
    if not layer.is_fully_connected:
        e = {n: v[e["E1"] != 1] for n, v in e.items()}
    found = _join(mc, e, (("M1", "C1", "E1"), pes / r))
    return found | {"F0": np.full(len(found["M0"]), layer.out[1], dtype=np.int64)}


def _register_rows(layer: Layer, t: dict[str, np.ndarray]) -> np.ndarray:
    """Rows or columns of input that a register tile spans: the shorter side (IS and OS)."""
    r, u = layer.kernel[0], layer.stride
    shorter = np.where(t["F0"] > t["E0"], t["E0"], t["F0"])
    rows: np.ndarray = (shorter - 1) * u + r
    return rows


def _is_tilings(layer: Layer, memories: Memories) -> dict[str, np.ndarray]:
    r, s = layer.kernel
    pes = memories.processing_elements
    mc = _join(
        _filters(layer, memories, ("M0", "M1")),
        _axis(layer.channels, ("C0", "C1", "C2")),
        (("M0", "C0"), memories.weight_register / (r * s)),
        (("M1", "C1"), pes),
    )
    return _with_pixels(layer, memories, mc, ("E0", "E1", "E3"), ("F0", "F1", "F3"))


def _os_tilings(layer: Layer, memories: Memories) -> dict[str, np.ndarray]:
    r, s = layer.kernel
    mc = _join(
        _filters(layer, memories, ("M0", "M1", "M2", "M3")),
        _axis(layer.channels, ("C0", "C1")),
        (("M0", "C0"), memories.weight_register / (r * s)),
        (("M1", "C1"), memories.processing_elements),
    )
    return _with_pixels(layer, memories, mc, ("E0", "E1", "E3"), ("F0", "F1", "F3"))


def _with_pixels(
    layer: Layer,
    memories: Memories,
    mc: dict[str, np.ndarray],
    names_e: tuple[str, ...],
    names_f: tuple[str, ...],
) -> dict[str, np.ndarray]:
    ef = _pixels(layer, names_e, names_f)
    ef["rows"] = _register_rows(layer, ef)
    keep = (ef["rows"] * layer.kernel[1] < memories.input_register) & (
        ef["E1"] * ef["F1"] < memories.processing_elements
    )
    ef = {n: v[keep] for n, v in ef.items()}
    found = _join(
        mc,
        ef,
        (("M1", "C1", "E1", "F1"), memories.processing_elements),
        (("C0", "rows"), memories.input_register / layer.kernel[1]),
    )
    del found["rows"]
    return found


def _ws_tilings(layer: Layer, memories: Memories) -> dict[str, np.ndarray]:
    r, s = layer.kernel
    pes = memories.processing_elements / (r * s)
    c = _axis(layer.channels, ("C0", "C1", "C2"))
    c = {n: v[c["C0"] < memories.input_register] for n, v in c.items()}
    mc = _join(
        _filters(layer, memories, ("M0", "M1", "M2", "M3")),
        c,
        (("M0", "C0"), memories.weight_register),
        (("M1", "C1"), pes),
    )
    ef = _pixels(layer, ("E0", "E1"), ("F0", "F1"))
    return _join(mc, ef, (("M1", "C1", "E1", "F1"), pes))


def _buffer(layer: Layer, t: dict[str, np.ndarray]) -> np.ndarray:
    """Words of the global buffer: the input tile with its halo, and the output tile."""
    (r, s), u = layer.kernel, layer.stride
    rows, columns = t["E1"] * t["E0"], t["F1"] * t["F0"]
    inputs = t["C1"] * t["C0"] * ((rows - 1) * u + r) * ((columns - 1) * u + s)
    words: np.ndarray = inputs + t["M2"] * t["M1"] * t["M0"] * rows * columns
    return words


def _costs(
    layer: Layer, dataflow: Dataflow, t: dict[str, np.ndarray]
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Return cycles, accesses per level, and PEs in use."""
    (r, s), (e, f), u = layer.kernel, layer.out, layer.stride
    m0, m1, m2, m3 = (t[n] for n in ("M0", "M1", "M2", "M3"))
    c0, c1, c2 = (t[n] for n in ("C0", "C1", "C2"))
    e0, e1, e3 = (t[n] for n in ("E0", "E1", "E3"))
    f0, f1, f3 = (t[n] for n in ("F0", "F1", "F3"))
    n_in = layer.height * layer.width * layer.channels
    n_weight = r * s * layer.channels * layer.filters
    n_out = e * f * layer.filters
    rows, columns = r * e / layer.height, s * f / layer.width
    halo = e3 * ((e0 * e1 - 1) * u + r) * f3 * ((f0 * f1 - 1) * u + s) * layer.channels
    refill = np.maximum(2 * (c2 - 1), 1) * n_out
    if dataflow == "rs":
        used = m1 * c1 * e1 * r
        cycles = m3 * m2 * m0 * c2 * c0 * e3 * f * s
        dram = m3 * n_in + e3 * n_weight + n_out
        gb = m3 * m2 * n_in + refill
        noc = m3 * m2 * m1 * rows * n_in + e3 * e1 * n_weight
        noc = noc + np.maximum(c2 * (c1 * r - 1), 1) * n_out
        rf = m3 * m2 * m1 * m0 * rows * columns * n_in + e3 * e1 * f * n_weight
        rf = rf + np.maximum(2 * c2 * c1 * r * (c0 * s - 1), 1) * n_out
    elif dataflow == "is":
        used = c1 * e1 * f1 * m1
        cycles = m0 * c2 * c0 * e3 * e0 * f3 * f0 * r * s
        dram = n_in + e3 * f3 * n_weight + n_out
        gb = n_in + refill
        noc = m1 * halo + e3 * f3 * e1 * f1 * n_weight + np.maximum(c2 * (c1 - 1), 1) * n_out
        rf = m1 * m0 * n_in + e3 * f3 * e1 * f1 * e0 * f0 * n_weight
        rf = rf + np.maximum(2 * c2 * c1 * (c0 * r * s - 1), 1) * n_out
    elif dataflow == "ws":
        used = c1 * r * s * m1 * e1 * f1
        cycles = m3 * m2 * m0 * c2 * c0 * e0 * f0
        dram = m3 * n_in + n_weight + n_out
        gb = m3 * m2 * n_in + refill
        noc = m3 * m2 * m1 * n_in * rows * columns + e1 * f1 * n_weight
        noc = noc + np.maximum(c2 * (c1 * r * s - 1), 1) * n_out
        rf = m3 * m2 * m1 * m0 * n_in * rows * columns + e1 * f1 * e0 * f0 * n_weight
        rf = rf + np.maximum(2 * c2 * c1 * r * s * (c0 - 1), 1) * n_out
    else:
        used = m1 * f1 * e1 * c1
        cycles = m3 * m2 * m0 * c0 * e3 * e0 * f3 * f0 * r * s
        dram = m3 * n_in + e3 * f3 * n_weight + n_out
        gb = m3 * m2 * n_in + n_out
        noc = m3 * m2 * m1 * halo + e3 * f3 * e1 * f1 * n_weight + np.maximum(c1 - 1, 1) * n_out
        rf = m3 * m2 * m1 * m0 * n_in * rows * columns + e3 * f3 * e1 * f1 * e0 * f0 * n_weight
        rf = rf + np.maximum(2 * c1 * (c0 * r * s - 1), 1) * n_out
    accesses = dict(zip(LEVELS, (dram, gb, noc, rf), strict=True))
    shape = cycles.shape
    return (
        cycles,
        {k: np.broadcast_to(np.asarray(v, dtype=np.float64), shape) for k, v in accesses.items()},
        used,
    )
