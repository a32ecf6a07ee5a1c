"""Time to value on an easy set, and memory of the laws."""

import statistics
import subprocess
import sys
import time

import torch
from common import arguments, goal, write
from gptr.config import GPTRConfig
from gptr.evaluation.coco import evaluate
from gptr.model.gptr import GPTR
from gptr.synth.generate import generate_splits
from gptr.train import FeatureCache, Trainer

MEMORY = """
import re, torch
from pathlib import Path
from gptr.gestalt.laws import LAWS
from gptr.model.encoder import EncoderLayer
from gptr.timing import encoder_problem
torch.set_num_threads(1)
mode = {mode!r}
x, position, tokens = encoder_problem({nodes}, 256)
layer = EncoderLayer(256, 8, 1024, 0.0, mode, LAWS, 0)
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
layer(x.requires_grad_(), position, tokens).sum().backward()
print((peak() - before) / 1024)
"""


def peak_mib(mode: str, nodes: int) -> float:
    """Return what a forward and backward of one layer adds to the process's peak."""
    script = MEMORY.format(mode=mode, nodes=nodes)
    found = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    return float(found.stdout)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=450)
    options = parser.parse_args()
    torch.set_num_threads(1)

    wall = time.perf_counter()
    splits = generate_splits(
        {"train": 1200, "val": 200}, family="architecture", classes=30, size=192, seed=11
    )
    rows, caches = [], None
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        model = GPTR(GPTRConfig.preset("gptr-tiny", num_classes=30, strides=(16,)))
        if caches is None:
            caches = FeatureCache(model, splits["train"]), FeatureCache(model, splits["val"])
        start = time.process_time()
        Trainer(
            model, splits["train"], cache=caches[0], epochs=10**6, steps=options.steps,
            batch_size=16, learning_rate=1e-3, seed=seed,
        ).fit()  # fmt: skip
        spent = time.process_time() - start
        stats = evaluate(model, splits["val"], cache=caches[1]).stats
        if not rows:
            wall = time.perf_counter() - wall
        rows.append([seed, round(stats["AP"], 3), round(stats["AP50"], 3), round(spent)])
        print(rows[-1], flush=True)
    ap = statistics.median(r[1] for r in rows)
    spent = statistics.median(r[3] for r in rows)
    nodes = 4096
    memory = {mode: peak_mib(mode, nodes) for mode in ("none", "bias", "gptr")}
    sizes = {mode: peak_mib(mode, nodes // 4) for mode in ("bias", "gptr")}
    goals = [
        goal(
            "easy set: 1,200 images, 30 classes, 192 px",
            "AP >= .60 in <= 60 CPU-s of training",
            f"AP {ap:.3f} in {spent} CPU-s (medians of {options.seeds} seeds)",
            ap >= 0.6 and spent <= 60,
            f"family architecture, {options.steps} steps of 16 at stride 16 (chosen on another "
            "draw), cached frozen features; "
            f"drawing, features, one training and evaluation took {wall / 60:.1f} minutes",
        ),
        goal(
            "encoder layer with three laws, 4,096 tokens, forward and backward",
            "< 500 MB beside nothing N x N",
            f"bias {memory['bias']:.0f} MiB, messages {memory['gptr']:.0f} MiB (no laws "
            f"{memory['none']:.0f} MiB)",
            max(memory.values()) * 1.048576 < 500,
            "growth of the process's peak, d 256; at 1,024 tokens "
            f"{sizes['bias']:.0f} and {sizes['gptr']:.0f} MiB",
        ),
    ]
    tables = [
        {"title": "easy set", "columns": ["seed", "AP", "AP50", "CPU-s"], "rows": rows},
    ]
    write(options.out, __file__, "Time to value, memory", goals, tables)


if __name__ == "__main__":
    main()
