"""hdBPMN, photographs of hand-drawn diagrams: AP50 after an hour of one core at most."""

from pathlib import Path

import torch
from common import arguments, goal, write
from gptr.reproduce import reproduce


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--bpmn", type=Path, help="hdBPMN folder or zip with train/ and val/")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    if options.bpmn is None:
        print("bench_bpmn: left out, give --bpmn FOLDER or ZIP")
        return
    torch.set_num_threads(1)
    bpmn = reproduce(
        "bpmn",
        data=options.bpmn,
        seeds=[0],
        steps=options.steps,
        say=lambda text: print(text, flush=True),
    )
    best = max(r.evaluation.stats["AP50"] for r in bpmn.runs if r.arm == "gptr")
    spent = max(r.cpu_seconds for r in bpmn.runs)
    gain, _ = bpmn.comparisons["gptr"]
    note = (
        f"384 px, strides 16 and 32, frozen features, {options.steps} steps of 8; no pools, "
        "lanes, sub-processes"
    )
    goals = [
        goal(
            "hdBPMN, AP50 on the val photographs",
            ">= 0.75 after < 60 CPU-min",
            f"{best:.3f} after {spent / 60:.1f} CPU-min",
            best >= 0.75 and spent < 3600,
            note,
        ),
        goal(
            "hdBPMN, AP over the base, equal steps",
            "shown, no bar",
            f"{gain.difference:+.3f} (95 % {gain.low:+.3f} to {gain.high:+.3f}, p {gain.p:.3f})",
            None,
            f"one seed; {note}",
        ),
    ]
    columns, rows = bpmn.table()
    tables = [{"title": "hdBPMN: arms", "columns": columns, "rows": rows}]
    write(options.out, __file__, "Hand-drawn BPMN", goals, tables)


if __name__ == "__main__":
    main()
