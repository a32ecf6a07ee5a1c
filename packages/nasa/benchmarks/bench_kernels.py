"""Adder and integer kernels against nn.Conv2d, cdist and AdderNet's formulation; one thread."""

import json
import os
import statistics
import subprocess
import sys

import torch
from common import arguments, goal, write
from nasa.checks import LAYERS, fastest, instruction_ceilings, pointwise_shares, time_operators
from nasa.functional import adder_conv2d


def addernet(x, w, stride, padding):
    """AdderNet's formulation: unfold, then the norm of every difference at once."""
    columns = torch.nn.functional.unfold(x, w.shape[2:], 1, padding, stride)
    rows = columns.permute(1, 2, 0).reshape(columns.shape[1], -1)
    return -(w.reshape(len(w), -1).unsqueeze(2) - rows.unsqueeze(0)).abs().sum(1)


def cdist(x, w, stride, padding):
    columns = torch.nn.functional.unfold(x, w.shape[2:], 1, padding, stride)
    rows = columns.transpose(1, 2).reshape(-1, columns.shape[1])
    return -torch.cdist(rows, w.reshape(len(w), -1), p=1.0)


def forced(kernels: str, onednn: str = "") -> float:
    """Return the adder's forward ratio with forced instruction sets, ours and nn.Conv2d's."""
    env = {**os.environ, "NASA_ISA": kernels, "OMP_NUM_THREADS": "1"}
    if onednn:
        env["ONEDNN_MAX_CPU_ISA"] = onednn
    command = [sys.executable, "-m", "nasa", "ops", "bench", "--json"]
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    return statistics.median(row["adder forward ratio"] for row in json.loads(done.stdout))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--label", default="", help="ends the result's name: another processor")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = time_operators(repeats=9, rounds=5)
    ratios = []
    for c, f, k, stride, side in LAYERS:
        x, w = torch.randn(2, c, side, side), torch.randn(f, c, k, k)
        ours = fastest(lambda x=x, w=w, s=stride, p=k // 2: adder_conv2d(x, w, s, p), 9)
        slow = fastest(lambda x=x, w=w, s=stride, p=k // 2: addernet(x, w, s, p), 2)
        distance = fastest(lambda x=x, w=w, s=stride, p=k // 2: cdist(x, w, s, p), 3)
        ratios.append((slow / ours, distance / ours))

    def median(name):
        return statistics.median(r[name] for r in rows)

    forward, step = median("adder forward ratio"), median("adder forward+backward ratio")
    sad, shift = 1 / median("adder int8 ratio"), 1 / median("shift int8 ratio")
    slow, distance = (statistics.median(column) for column in zip(*ratios, strict=True))
    spread = max(v for r in rows for k, v in r.items() if k.startswith("adder forward spread"))
    narrow, both = forced("avx2"), forced("avx2", "AVX2")
    note = "median of the six layers; least CPU time of 9 runs, median of 5 rounds"
    note = f"{options.label}: {note}" if options.label else note
    goals = [
        goal("adder forward / nn.Conv2d", "<= 1.05", f"{forward:.2f} (spread {spread:.2f})",
             forward <= 1.05, note),
        goal("adder forward and backward / nn.Conv2d", "<= 1.20", f"{step:.2f}", step <= 1.20,
        note), goal("AdderNet's formulation / adder forward", ">= 150", f"{slow:.0f}", slow >= 150,
        note), goal("torch.cdist / adder forward", ">= 20", f"{distance:.1f}", distance >= 20,
        note), goal("nn.Conv2d float32 / int8 adder", ">= 2.5", f"{sad:.2f}", sad >= 2.5, note),
        goal("nn.Conv2d float32 / int8 shift", ">= 3.5", f"{shift:.2f}", shift >= 3.5, note),
        goal("adder forward on AVX2 / nn.Conv2d", "<= 2.0", f"{narrow:.2f}", narrow <= 2.0,
             "NASA_ISA=avx2; nn.Conv2d as it comes"),
        goal("adder forward on AVX2 / nn.Conv2d on AVX2", "not stated", f"{both:.2f}", None,
             "NASA_ISA=avx2 ONEDNN_MAX_CPU_ISA=AVX2: what a processor without AVX-512 sees"),
    ]  # fmt: skip
    shares = pointwise_shares()
    lowest = min(row["share"] for row in shares)
    goals.append(
        goal(
            "adder forward on 1x1 layers, share of the instruction ceiling",
            ">= 0.85",
            f"{lowest:.2f} at worst ({', '.join(format(row['share'], '.2f') for row in shares)})",
            lowest >= 0.85,
            "the kernel; with the operator's call and a new output "
            + ", ".join(format(row["operator share"], ".2f") for row in shares)
            + "; ceiling: the best formula in registers alone, same run"
            + (f"; {options.label}" if options.label else ""),
        )
    )
    ceilings = {name: instruction_ceilings(name) for name in ("avx512", "avx2")}
    columns = list(rows[0])
    tables = [
        {
            "title": "Time over nn.Conv2d's (layer: C, F, kernel/stride, side; batch 8)",
            "columns": columns,
            "rows": [[row[c] for c in columns] for row in rows],
        },
        {
            "title": "Accumulations in registers alone, over the multiply-adds of AVX-512",
            "columns": ["kernels", *ceilings["avx512"]],
            "rows": [
                [name, *(v / ceilings["avx512"]["multiply-add"] for v in values.values())]
                for name, values in ceilings.items()
            ],
        },
        {
            "title": "1x1 adder layers over their ceiling",
            "columns": list(shares[0]),
            "rows": [list(row.values()) for row in shares],
        },
    ]
    write(options.out, __file__, "Kernels", goals, tables, options.label)


if __name__ == "__main__":
    main()
