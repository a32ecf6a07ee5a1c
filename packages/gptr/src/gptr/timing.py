"""Times of the parts, and their peak memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gptr._denormals import flush_denormals
from gptr.gestalt.descriptors import Descriptors
from gptr.gestalt.laws import LAWS
from gptr.matching import HungarianMatcher
from gptr.model.encoder import EncoderLayer, Tokens


def median_ms(run: Callable[[], object], repeats: int) -> float:
    """Return the median time of a call in milliseconds, after one to warm up."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def matcher_problem(
    seed: int = 0, batch: int = 16, queries: int = 300, objects: int = 50, classes: int = 577
) -> tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
    """Return random logits, boxes and targets."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, queries, classes, generator=g)
    boxes = torch.rand(batch, queries, 4, generator=g) * 0.5 + 0.2
    targets = [
        {
            "labels": torch.randint(classes, (objects,), generator=g),
            "boxes": torch.rand(objects, 4, generator=g) * 0.5 + 0.2,
        }
        for _ in range(batch)
    ]
    return logits, boxes, targets


def matcher_time(repeats: int) -> dict[str, Any]:
    """Time the matcher at 16 images, 300 queries, 50 objects, 577 classes."""
    problem = matcher_problem()
    matcher = HungarianMatcher()
    return {
        "what": "matcher, B=16 Q=300 T=50 C=577",
        "ms": median_ms(lambda: matcher(*problem), repeats),
    }


def encoder_problem(nodes: int, d_model: int, seed: int = 0) -> tuple[Tensor, Tensor, Tokens]:
    """Return token states, positions and the geometry of one square level."""
    side = round(nodes**0.5)
    g = torch.Generator().manual_seed(seed)
    packed = torch.rand(1, side * side, 15, generator=g)
    angle = packed[..., 9] * 6.28
    packed[..., 9], packed[..., 10] = angle.cos(), angle.sin()
    packed[..., 12:14] = (packed[..., 12:14] > 0.7).float()
    valid = torch.ones(1, side * side, dtype=torch.bool)
    level = Descriptors.unpack(packed, valid, (side, side), 8)
    x = torch.randn(1, side * side, d_model, generator=g)
    return x, torch.randn_like(x), Tokens((level.places - side / 2)[None], [level], valid)


def encoder_times(
    nodes: Sequence[int], repeats: int, d_model: int = 256, heads: int = 8, ffn: int = 1024
) -> list[dict[str, Any]]:
    """Time an encoder layer without laws, with bias, and with messages, interleaved."""
    rows = []
    for count in nodes:
        x, position, tokens = encoder_problem(count, d_model)
        kinds = {"none": LAWS, "bias": LAWS, "bias: sim, prox": LAWS[:2], "gptr": LAWS}
        layers = {
            kind: EncoderLayer(d_model, heads, ffn, 0.0, kind.partition(":")[0], laws, 0).eval()
            for kind, laws in kinds.items()
        }
        times: dict[str, list[float]] = {mode: [] for mode in layers}
        with torch.no_grad(), flush_denormals():
            for i in range(repeats + 1):
                for mode, layer in layers.items():
                    start = time.perf_counter()
                    layer(x, position, tokens)
                    if i:
                        times[mode].append(1000 * (time.perf_counter() - start))
        for mode, values in times.items():
            # neighbours in time, so that a busy machine slows both sides of a ratio
            ratios = [b / a for a, b in zip(times["none"], values, strict=True)]
            rows.append(
                {
                    "what": f"encoder layer, {count} tokens, {mode}",
                    "nodes": count,
                    "mode": mode,
                    "ms": statistics.median(values),
                    "ratio": statistics.median(ratios),
                    "spread": max(ratios) - min(ratios),
                }
            )
    return rows
