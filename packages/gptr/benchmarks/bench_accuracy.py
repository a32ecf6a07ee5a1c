"""Accuracy over the base at one budget, on generated diagrams."""

import torch
from common import arguments, goal, write
from gptr.reproduce import reproduce


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--ablation", action="store_true", help="also laws alone and left out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    mini = reproduce(
        "mini",
        seeds=range(options.seeds),
        steps=options.steps,
        ablation=options.ablation,
        say=lambda text: print(text, flush=True),
    )
    gain, tail = mini.comparisons["gptr"]
    rows = mini.rows()
    seconds = {arm: sum(v["cpu_seconds"] for v in values) for arm, values in rows.items()}
    note = (
        f"150 training images, 60 Zipf classes, {options.seeds} seeds, "
        f"{options.steps} steps of 16; "
        f"laws similarity and proximity as attention bias; CPU seconds of gptr over base "
        f"{seconds['gptr'] / seconds['base']:.2f}"
    )
    relative = tail.difference / max(tail.a, 1e-9)
    goals = [
        goal(
            "AP over the base, equal steps",
            ">= +0.03, paired bootstrap p < .05",
            f"{gain.difference:+.3f} (95 % {gain.low:+.3f} to {gain.high:+.3f}, p {gain.p:.3f}; "
            f"{gain.a:.3f} to {gain.b:.3f})",
            gain.difference >= 0.03 and gain.p < 0.05,
            note,
        ),
        goal(
            "AP50 of the tail third, relative",
            ">= +20 %, p < .05",
            f"{100 * relative:+.0f} % ({tail.a:.3f} to {tail.b:.3f}, p {tail.p:.3f})",
            relative >= 0.2 and tail.p < 0.05,
            note,
        ),
    ]
    columns, table = mini.table()
    tables = [{"title": "mini: arms", "columns": columns, "rows": table}]
    write(options.out, __file__, "Accuracy over the base", goals, tables)


if __name__ == "__main__":
    main()
