"""Latency model: error on profiles that were left out, on the measured A100-80GB tables."""

from __future__ import annotations

import statistics

from common import goal, parse, table, write
from migperf import load_measurements
from migperf.perfmodel import leave_one_profile_out

SERIES = (
    ("resnet50", "infer"),
    ("vit-b16", "infer"),
    ("bert-base-s64", "infer"),
    ("resnet50", "train"),
    ("bert-base-s64", "train"),
)


def main() -> None:
    arguments = parse(__doc__ or "", tables=True)
    goals, tables = [], []
    if arguments.tables:
        measured = load_measurements(arguments.tables)
        rows, inner = [], []
        for workload, mode in SERIES:
            errors = leave_one_profile_out(measured, workload, mode)
            inner += [errors["2g.20gb"], errors["3g.40gb"]]
            rows.append(
                [
                    f"{workload} {mode}",
                    *(round(errors[p], 1) for p in ("1g.10gb", "2g.20gb", "3g.40gb", "7g.80gb")),
                ]
            )
        mean, worst = statistics.mean(inner), max(inner)
        goals = [
            goal(
                "mean error of 2g and 3g when left out, five series",
                "<= 5 %",
                f"{mean:.1f} %",
                mean <= 5,
            ),
            goal(
                "worst series",
                "<= 8 %",
                f"{worst:.1f} % (resnet50 train, 3g)",
                worst <= 8,
                "Tried: fixed sharpness 2 to 6, ridge terms, no per-batch constants, choosing "
                "among these by nested leave-one-out or AICc. Without per-batch constants this "
                "series falls to 3.6 % and BERT training rises to 15 %; no rule that sees only "
                "the other profiles picks right for both.",
            ),
        ]
        tables = [
            table(
                "Mean absolute percentage error of the profile left out",
                ["series", "1g", "2g", "3g", "7g"],
                rows,
            )
        ]
    else:
        print("left out: everything (give --tables or MIGPERF_TABLES)")
    write(arguments.out, __file__, "Latency model", goals, tables, (), " --tables TABLES")


if __name__ == "__main__":
    main()
