"""Adder and integer kernels against nn.Conv2d, cdist and AdderNet's formulation; one thread."""

import statistics

import torch
from common import arguments, goal, write
from nasa.checks import LAYERS, fastest, time_operators
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


def main() -> None:
    options = arguments(__doc__).parse_args()
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
    note = "median of the six layers; least CPU time of 9 runs, median of 5 rounds"
    goals = [
        goal("adder forward / nn.Conv2d", "<= 1.05", f"{forward:.2f} (spread {spread:.2f})",
             forward <= 1.05, note),
        goal("adder forward and backward / nn.Conv2d", "<= 1.20", f"{step:.2f}", step <= 1.20,
        note), goal("AdderNet's formulation / adder forward", ">= 150", f"{slow:.0f}", slow >= 150,
        note), goal("torch.cdist / adder forward", ">= 20", f"{distance:.1f}", distance >= 20,
        note), goal("nn.Conv2d float32 / int8 adder", ">= 2.5", f"{sad:.2f}", sad >= 2.5, note),
        goal("nn.Conv2d float32 / int8 shift", ">= 3.5", f"{shift:.2f}", shift >= 3.5,
             note + "; weights are packed in every call"),
    ]  # fmt: skip
    columns = list(rows[0])
    tables = [
        {
            "title": "Time over nn.Conv2d's (layer: C, F, kernel/stride, side; batch 8)",
            "columns": columns,
            "rows": [[row[c] for c in columns] for row in rows],
        }
    ]
    write(options.out, __file__, "Kernels", goals, tables)


if __name__ == "__main__":
    main()
