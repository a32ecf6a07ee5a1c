"""Accuracy and speed of the operators against independent formulations."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nasa._native_loader import available, isa, native
from nasa._shapes import Conv2dShape
from nasa.functional import adder_conv2d, conv2d_int8, sad_conv2d, shift_conv2d

# channels, filters, kernel, stride, side: layers of the paper's macro network, batch 8
LAYERS: tuple[tuple[int, int, int, int, int], ...] = (
    (64, 64, 3, 1, 16),
    (64, 384, 1, 1, 16),
    (384, 64, 1, 1, 16),
    (16, 16, 3, 1, 32),
    (32, 64, 3, 2, 32),
    (112, 672, 1, 1, 8),
)


def reference_adder(
    x: Float[Tensor, "n c h w"], weight: Float[Tensor, "f c r s"], stride: int, padding: int
) -> Float[Tensor, "n f oh ow"]:
    """Return the adder convolution in float64, by unfolding and differences."""
    f, _, r, s = weight.shape
    columns = torch.nn.functional.unfold(x.double(), (r, s), 1, padding, stride)
    rows = weight.double().reshape(f, -1)
    out = -torch.stack([(columns - row[:, None]).abs().sum(1) for row in rows], 1)
    height = (x.shape[2] + 2 * padding - r) // stride + 1
    return out.view(x.shape[0], f, height, -1)


def check_operators(seed: int = 0) -> list[dict[str, Any]]:
    """Compare every operator with a float64 or integer reference; return one row per comparison.

    ``error`` is relative to the largest value for floating point and the number of differing
    elements for integers; ``passed`` states whether it is within the bound.
    """
    source = torch.Generator().manual_seed(seed)
    rows = []
    for c, f, k, stride, side in LAYERS:
        x = torch.randn(2, c, side, side, generator=source)
        w = torch.randn(f, c, k, k, generator=source)
        pad = k // 2
        name = f"{c}->{f} {k}x{k}/{stride} {side}x{side}"
        exact = reference_adder(x, w, stride, pad)

        def relative(y: Tensor, truth: Tensor) -> float:
            return float((y.double() - truth).abs().max() / truth.abs().max())

        for label, value in (
            ("adder", adder_conv2d(x, w, stride, pad)),
            ("adder exact", adder_conv2d(x, w, stride, pad, exact=True)),
        ):
            error = relative(value, exact)
            rows.append({"operator": label, "layer": name, "error": error, "passed": error < 3e-6})
        powers = torch.sign(w) * 2.0 ** torch.log2(w.abs().clamp(2.0**-31, 1)).round()
        truth = torch.nn.functional.conv2d(x.double(), powers.double(), None, stride, pad)
        error = relative(shift_conv2d(x, w, stride, pad, quantize_input=False), truth)
        rows.append({"operator": "shift", "layer": name, "error": error, "passed": error < 3e-6})
        xi = torch.randint(-128, 128, x.shape, generator=source, dtype=torch.int8)
        wi = torch.randint(-128, 128, w.shape, generator=source, dtype=torch.int8)
        wrong = int((sad_conv2d(xi, wi, stride, pad) != reference_adder(xi, wi, stride, pad)).sum())
        rows.append({"operator": "adder int8", "layer": name, "error": wrong, "passed": wrong == 0})
        products = torch.nn.functional.conv2d(xi.double(), wi.double(), None, stride, pad)
        wrong = int((conv2d_int8(xi, wi, stride, pad) != products).sum())
        rows.append({"operator": "shift int8", "layer": name, "error": wrong, "passed": wrong == 0})
    return rows


def fastest(run: Callable[[], object], repeats: int) -> float:
    """Return the least thread CPU time of several runs, seconds."""
    run()
    best = float("inf")
    for _ in range(repeats):
        start = time.thread_time()
        run()
        best = min(best, time.thread_time() - start)
    return best


def time_operators(
    layers: Sequence[tuple[int, int, int, int, int]] = LAYERS,
    *,
    batch: int = 8,
    repeats: int = 9,
    rounds: int = 3,
    backward: bool = True,
) -> list[dict[str, Any]]:
    """Time the operators against ``nn.Conv2d``'s on one thread, alternating; ratios of times.

    Each round takes the least time of several runs of each side; the ratio is the median over the
    rounds, and ``spread`` the largest distance from it.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [_time_layer(layer, batch, repeats, rounds, backward) for layer in layers]
    finally:
        torch.set_num_threads(threads)


def _time_layer(
    layer: tuple[int, int, int, int, int], batch: int, repeats: int, rounds: int, backward: bool
) -> dict[str, Any]:
    c, f, k, stride, side = layer
    source = torch.Generator().manual_seed(0)
    x = torch.randn(batch, c, side, side, generator=source)
    w = torch.randn(f, c, k, k, generator=source)
    xi = torch.randint(-128, 128, x.shape, generator=source, dtype=torch.int8)
    xi = xi.contiguous(memory_format=torch.channels_last)
    wi = torch.randint(-128, 128, w.shape, generator=source, dtype=torch.int8)
    wi = wi.contiguous(memory_format=torch.channels_last)  # as an integer layer keeps it
    pad = k // 2
    gx, gw = x.clone().requires_grad_(), w.clone().requires_grad_()
    grad = torch.randn_like(torch.nn.functional.conv2d(x, w, None, stride, pad))

    def step(function: Callable[..., Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(function(gx, gw, None, stride, pad), (gx, gw), grad)

    def adder(a: Tensor, b: Tensor, _: None, s: int, p: int) -> Tensor:
        return adder_conv2d(a, b, s, p)

    conv = torch.nn.functional.conv2d
    sides: dict[str, Callable[[], object]] = {
        "conv": lambda: conv(x, w, None, stride, pad),
        "adder forward": lambda: adder_conv2d(x, w, stride, pad),
        "adder int8": lambda: sad_conv2d(xi, wi, stride, pad),
        "shift int8": lambda: conv2d_int8(xi, wi, stride, pad),
    }
    if backward:
        sides |= {"conv step": step(conv), "adder step": step(adder)}
    ratios: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        times = {name: fastest(run, repeats) for name, run in sides.items()}
        for name, value in times.items():
            ratios[name].append(value / times["conv step" if name == "adder step" else "conv"])
    row: dict[str, Any] = {"layer": f"{c},{f},{k}x{k}/{stride},{side}"}
    for name, label in (
        ("adder forward", "adder forward ratio"),
        ("adder step", "adder forward+backward ratio"),
        ("adder int8", "adder int8 ratio"),
        ("shift int8", "shift int8 ratio"),
    ):
        if name in ratios:
            values = sorted(ratios[name])
            row[label] = values[len(values) // 2]
            row[f"{label[:-6]} spread"] = max(values[-1] - row[label], row[label] - values[0])
    return row


FORMULAS = ("multiply-add", "max and multiply-add", "max and add", "absolute difference")
"""What `instruction_ceilings` accumulates: a convolution's sum, and three ways to |x - w|."""


def instruction_ceilings(name: str = "", *, repeats: int = 9) -> dict[str, float]:
    """Measure how many elements per second one thread accumulates in registers alone.

    No kernel of a formula can be faster than its ceiling. An adder layer needs the sum of
    max(x, w) only, as |x - w| = 2 max(x, w) - x - w; its ceiling is the best of the last three.

    Parameters
    ----------
    name
        ``avx512`` or ``avx2``; empty for the kernels in use.

    Returns
    -------
    dict
        Elements per second of processor time, by the names in `FORMULAS`.

    Raises
    ------
    ValueError
        If these kernels are absent, or portable: what a compiler makes of them is no fixed
        sequence of instructions.
    """
    module, name = native(), name or isa()
    if module is None:
        raise ValueError("the compiled kernels are absent: there is no ceiling to measure")
    if not module.probe(0, 1, name):
        raise ValueError(f"name={module.isa(name)!r}: allowed are avx512 and avx2")
    steps = 200_000
    count = module.probe(0, steps, name)
    return {
        formula: count / fastest(lambda i=i: module.probe(i, steps, name), repeats)  # type: ignore[misc]
        for i, formula in enumerate(FORMULAS)
    }


def pointwise_shares(*, batch: int = 8, repeats: int = 9, rounds: int = 5) -> list[dict[str, Any]]:
    """Time the 1x1 adder layers of `LAYERS` beside their instruction ceiling, on one thread.

    Returns
    -------
    list of dict
        ``share``: the kernel's rate of |x - w|, into an output that is there, over the best ceiling
        that `instruction_ceilings` measures in the same round, the median over the rounds;
        ``spread``: the largest distance from it; ``operator share``: the same with the operator's
        call and its new output.

    Raises
    ------
    ValueError
        As `instruction_ceilings`.
    """
    module, threads = native(), torch.get_num_threads()
    if module is None:
        raise ValueError("the compiled kernels are absent: there is no ceiling to measure")
    torch.set_num_threads(1)
    source = torch.Generator().manual_seed(0)
    rows = []
    try:
        for c, f, k, stride, side in LAYERS:
            if k != 1:
                continue
            x = torch.randn(batch, c, side, side, generator=source)
            w = torch.randn(f, c, 1, 1, generator=source)
            out = adder_conv2d(x, w, stride)
            z = Conv2dShape.of(x, w, [stride] * 2, [0, 0], [1, 1], 1).numbers()
            addresses = [t.data_ptr() for t in (x, w, out)]
            sides: tuple[Callable[[], object], ...] = (
                partial(module.adder_forward, z, *addresses, False, 1, isa()),
                partial(adder_conv2d, x, w, stride),
            )
            shares: list[list[float]] = [[], []]
            for _ in range(rounds):
                best = max(list(instruction_ceilings(repeats=repeats).values())[1:])
                for into, run in zip(shares, sides, strict=True):
                    into.append(out.numel() * c / fastest(run, repeats) / best)
            kernel, operator = (sorted(values)[rounds // 2] for values in shares)
            rows.append(
                {
                    "layer": f"{c},{f},1x1/{stride},{side}",
                    "share": kernel,
                    "spread": max(abs(v - kernel) for v in shares[0]),
                    "operator share": operator,
                }
            )
    finally:
        torch.set_num_threads(threads)
    return rows


def doctor() -> list[tuple[str, str, str]]:
    """Return what works here: (part, state, advice)."""
    kernels = available()
    native = [name for name in kernels if name != "torch"]
    rows = [
        (
            "compiled kernels",
            f"{', '.join(native)} (in use: {kernels[0]})" if native else "absent",
            ""
            if native
            else "install a C++17 compiler and CMake, then: pip install --force-reinstall nasa",
        ),
        ("torch", f"{torch.__version__}, {torch.get_num_threads()} thread(s)", ""),
    ]
    for module, extra, what in (
        ("sklearn", "demo", "the digits data set"),
        ("pymoo", "search", "NSGA-II"),
        ("zigzag", "bench", "comparison with ZigZag"),
    ):
        try:
            __import__(module)
            rows.append((what, "there", ""))
        except ImportError:
            rows.append((what, "absent", f"pip install nasa[{extra}]"))
    return rows
