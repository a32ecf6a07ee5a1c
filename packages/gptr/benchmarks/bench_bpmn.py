"""hdBPMN, photographs of hand-drawn diagrams: AP50 after an hour of one core at most."""

import time
from pathlib import Path

import torch
from common import arguments, goal, write
from gptr.reproduce import reproduce


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--bpmn", type=Path, help="hdBPMN folder or zip with train/ and val/")
    parser.add_argument("--steps", type=int, default=300, help="of both arms at 384 pixels")
    parser.add_argument("--size", type=int, default=640, help="pixels of the long run")
    parser.add_argument("--long", type=int, default=1700, help="steps of gptr in the long run")
    options = parser.parse_args()
    if options.bpmn is None:
        print("bench_bpmn: left out, give --bpmn FOLDER or ZIP")
        return
    torch.set_num_threads(1)

    def run(**settings):
        start = time.process_time()
        found = reproduce(
            "bpmn",
            data=options.bpmn,
            seeds=[0],
            say=lambda text: print(text, flush=True),
            **settings,
        )
        return found, time.process_time() - start

    long, whole = run(steps=options.long, size=options.size, only=["gptr"])
    pair, _ = run(steps=options.steps)
    best = long.runs[0]
    gain, _ = pair.comparisons["gptr"]
    left_out = "no pools, lanes, sub-processes"
    goals = [
        goal(
            "hdBPMN, AP50 on the val photographs",
            ">= 0.75 after < 60 CPU-min",
            f"{best.evaluation.stats['AP50']:.3f} after {best.cpu_seconds / 60:.0f} CPU-min "
            f"({whole / 60:.0f} with reading, features and evaluation)",
            best.evaluation.stats["AP50"] >= 0.75 and whole < 3600,
            f"{options.size} px, stride 16, frozen features, {options.long} steps of 8; {left_out}",
        ),
        goal(
            "hdBPMN, AP over the base, equal steps",
            "shown, no bar",
            f"{gain.difference:+.3f} (95 % {gain.low:+.3f} to {gain.high:+.3f}, p {gain.p:.3f})",
            None,
            "one seed; 384 px, strides 16 and 32, frozen features, "
            f"{options.steps} steps of 8; {left_out}",
        ),
    ]
    tables = []
    for title, found in ((f"gptr alone, {options.size} pixels", long), ("Arms, 384 pixels", pair)):
        columns, rows = found.table()
        tables.append({"title": f"hdBPMN: {title}", "columns": columns, "rows": rows})
    counts = best.evaluation
    tables.append(
        {
            "title": "hdBPMN: AP50 of each class in the long run",
            "columns": ["class", "AP50"],
            "rows": [
                [name, f"{value:.3f}"]
                for name, value in zip(counts.class_names, counts.class_ap50, strict=True)
                if value is not None
            ],
        }
    )
    tables.append(
        {
            "title": "hdBPMN: detections of the long run above 0.3, by kind",
            "columns": ["kind", "count"],
            "rows": [[kind, count] for kind, count in counts.errors.items()],
        }
    )
    write(options.out, __file__, "Hand-drawn BPMN", goals, tables)


if __name__ == "__main__":
    main()
