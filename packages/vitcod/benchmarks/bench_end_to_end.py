"""DeiT-Tiny end to end at 90 % sparsity, one image, against the dense model.

    python benchmarks/bench_end_to_end.py --out DIR

Random weights: speed does not depend on them. One thread, thread time, interleaved. Amdahl's bound
is what attention of no cost at all would bring.
"""

from __future__ import annotations

import copy
import time
from functools import partial

import torch
from common import parser, write
from vitcod import VisionTransformer, patch
from vitcod.adapters import attention_modules
from vitcod.speed import attention_share, interleaved
from vitcod.synthetic import vit_like_plan


def masked_twin(model: torch.nn.Module, plan: object) -> torch.nn.Module:
    """Return the same model with the same masks, computed densely."""
    twin = copy.deepcopy(model)
    for (_, m), layer in zip(attention_modules(twin), plan):
        keep = torch.from_numpy(layer.keep.copy())[None]

        def forward(x: torch.Tensor, m: object = m, keep: torch.Tensor = keep) -> torch.Tensor:
            b, n, _ = x.shape
            q, k, v = m.qkv(x).reshape(b, n, 3, m.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=keep)
            return m.proj(out.transpose(1, 2).flatten(2))

        m.forward = forward
    return twin


def main() -> None:
    settings = parser(__doc__)
    settings.add_argument("--sizes", type=int, nargs="+", default=[224, 512, 1024])
    options = settings.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    goals, rows = [], []
    for size, bar, repeats in ((224, 1.15, 31), (512, 1.6, 9), (1024, 2.8, 5)):
        if size not in options.sizes:
            print(f"left out: {size}")
            continue
        tokens = (size // 16) ** 2 + 1
        dense = VisionTransformer(image=size, dim=192, depth=12, heads=3, classes=1000).eval()
        plan = vit_like_plan(12, 3, tokens, 0.9)
        sparse = patch(copy.deepcopy(dense), plan)
        images = torch.randn(8 if size == 224 else 2, 3, size, size)
        x = images[:1]
        with torch.no_grad():
            t = interleaved(
                {"dense": partial(dense, x), "sparse": partial(sparse, x)},
                repeats,
                time.thread_time,
            )
            a, b = sparse(images), masked_twin(dense, plan)(images)
        same = bool((a.argmax(-1) == b.argmax(-1)).all())
        ratio = t["dense"].median / t["sparse"].median
        share = attention_share(tokens, repeats=repeats)
        bound = 1 / (1 - share)
        rows.append(
            [
                size,
                tokens,
                round(t["dense"].median, 2),
                round(t["dense"].spread, 2),
                round(t["sparse"].median, 2),
                round(t["sparse"].spread, 2),
                round(ratio, 3),
                f"{100 * share:.0f} %",
                round(bound, 2),
                float((a - b).abs().max()),
            ]
        )
        goals.append(
            {
                "name": f"end to end, DeiT-T {size}, 90 %, over the dense model",
                "goal": f">= {bar}x, top-1 of the masked dense model",
                "measured": f"{ratio:.2f}x, top-1 {'identical' if same else 'different'}",
                "met": bool(ratio >= bar and same),
                "note": f"attention is {100 * share:.0f} % of the dense time here, which bounds the"
                f" ratio by {bound:.2f}x",
            }
        )
    table = {
        "title": "Milliseconds per image, one thread",
        "columns": [
            "image",
            "tokens",
            "dense",
            "spread",
            "vitcod",
            "spread",
            "ratio",
            "attention's share",
            "Amdahl's bound",
            "largest logit difference",
        ],
        "rows": rows,
    }
    write(options.out, "bench_end_to_end", "DeiT-Tiny end to end", goals, [table], 1)


if __name__ == "__main__":
    main()
