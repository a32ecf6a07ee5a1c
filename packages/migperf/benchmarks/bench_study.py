"""A study on the cores of this machine: the time it takes, intervals, isolation, or a refusal."""

from __future__ import annotations

import time
from pathlib import Path

from common import goal, parse, table, write
from migperf import Study
from migperf.errors import NoisyHost

STUDY = Path(__file__).parents[1] / "examples" / "cpu.yaml"


def main() -> None:
    arguments = parse(__doc__ or "")
    study = Study.from_yaml(STUDY)
    started = time.monotonic()
    refused = ""
    try:
        result = study.run()
    except NoisyHost as error:
        refused = str(error)
    seconds = time.monotonic() - started
    goals = [
        goal(
            "`migperf run examples/cpu.yaml` on 2 cores",
            "<= 5 min",
            f"{seconds:.0f} s" + (" until it refused" if refused else ""),
            None if refused else seconds <= 300,
        )
    ]
    tables = []
    if refused:
        goals.append(goal("refuses a noisy host (exit code 7)", "refusal", "refused", True))
        goals.append(
            goal(
                "interval half-width and isolation index on a quiet host",
                "<= 5 %, >= 0.9",
                "not measured: the host was not quiet",
                None,
                refused,
            )
        )
    else:
        rows = result.rows()
        width = max(r["throughput_half_width"] for r in rows)
        index = result.isolation_index("cpuset:1c*2 alone", "cpuset:1c*2")
        shared = result.isolation_index("whole:2c", "shared:1c*2")
        goals += [
            goal("95 % interval half-width of throughput", "<= 5 %", f"{width:.1%}", width <= 0.05),
            goal(
                "isolation index of disjoint cores, p99 alone / p99 together",
                ">= 0.9",
                f"{index:.2f} (shared cores {shared:.2f})",
                index >= 0.9,
            ),
        ]
        tables.append(
            table(
                "Cases",
                ["case", "tenant", "samples/s", "p50 ms", "p99 ms"],
                [
                    [
                        r["case"],
                        r["tenant"],
                        r["throughput_text"],
                        round(r["p50_ms"], 3),
                        round(r["p99_ms"], 3) if r["p99_ms"] == r["p99_ms"] else None,
                    ]
                    for r in rows
                ],
            )
        )
    write(arguments.out, __file__, "Study on CPU partitions", goals, tables)


if __name__ == "__main__":
    main()
