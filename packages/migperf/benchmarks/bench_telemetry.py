"""Telemetry: published aggregates, a scrape of 56 instances, energy sums, frameworks."""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import goal, parse, table, write
from migperf import Node, enumerate_layouts, load_board
from migperf.compat import check_frameworks
from migperf.energy import InstanceActivity, attribute_energy
from migperf.exporter import Exporter
from migperf.telemetry.dcgm_text import read_log
from migperf.telemetry.nvml import read_gpu
from prometheus_client.parser import text_string_to_metric_families


def published_rows(folder: Path) -> tuple[int, int]:
    """Rows of the published tables that the raw DCGM logs reproduce to the last digit."""
    equal = total = 0
    for file in sorted(folder.glob("*/*/integrated_result*.csv")):
        log = read_log(file.with_name("dcgm.csv"))
        with file.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                if not float(row["start_timestamp"]):
                    continue  # ran out of memory
                window = (float(row["start_timestamp"]), float(row["end_timestamp"]))
                activity = log.window("gr_engine_active", *window)
                memory = log.window("fb_used", *window)
                found = [
                    round(v, 3) for v in (activity.mean, activity.std, memory.mean, memory.std)
                ]
                names = ("gract_mean", "gract_std", "fb_used_mean", "fb_used_std")
                total += 1
                equal += found == [float(row[n]) for n in names]
    return equal, total


def scrape() -> tuple[float, int]:
    with Node.open(sim="dgx-h100") as node:
        for gpu in node.gpus:
            gpu.apply("1g.10gb*7")
        exporter = Exporter(node, "host")
        exporter.page()
        times = []
        for _ in range(15):
            started = time.perf_counter()
            page = exporter.page()
            times.append((time.perf_counter() - started) * 1000)
        families = list(text_string_to_metric_families(page.decode()))
        exporter.close()
        instances = sum(len(f.samples) for f in families if f.name == "DCGM_FI_DEV_FB_USED")
    return statistics.median(times), instances


def sampling_share() -> tuple[float, float | None]:
    """Share of one core that reading a GPU with seven instances at 10 Hz takes: ours, nvitop's."""

    def share(read: Callable[[], object]) -> float:
        for _ in range(5):
            read()
        rounds = []
        for _ in range(7):
            # Core time: other work on the machine does not count.
            started = time.process_time()
            for _ in range(20):
                read()
            rounds.append((time.process_time() - started) / 20)
        return 10 * statistics.median(rounds)

    with Node.open(sim="h100-80gb") as node:
        node.gpus[0].apply("1g.10gb*7")
        own = share(lambda: read_gpu(node.gpus[0]))
        try:
            from nvitop import Device, ResourceMetricCollector
        except ImportError:
            print("left out: nvitop (not installed)")
            return own, None
        collector = ResourceMetricCollector(Device.all())
        collector.activate("share")
        return own, share(collector.take_snapshots)


def main() -> None:
    arguments = parse(__doc__ or "", tables=True)
    goals, tables = [], []
    if arguments.tables:
        equal, total = published_rows(Path(arguments.tables))
        goals.append(
            goal(
                "published GRACT and FB means and deviations from the raw logs",
                "190 of 190 rows exact",
                f"{equal} of {total}",
                equal == total == 190,
            )
        )
    else:
        print("left out: the published tables (give --tables or MIGPERF_TABLES)")
    median, instances = scrape()
    goals.append(
        goal(
            "scrape of 56 instances, parsed by prometheus_client",
            "<= 10 ms",
            f"{median:.1f} ms (median of 15), {instances} instances",
            median <= 10 and instances == 56,
        )
    )
    generator = np.random.default_rng(0)
    worst = 0.0
    for layout in enumerate_layouts("a100-80gb"):
        parts = [
            InstanceActivity(f"{i}", n, float(generator.random()))
            for i, n in enumerate(layout.multiset)
        ]
        shares = attribute_energy(load_board("a100-80gb"), parts, 12345.6, 60.0)
        worst = max(worst, shares.imbalance)
    goals.append(
        goal(
            "energy of instances sums to the counter, 297 layouts",
            "within 0.1 %",
            f"largest difference {100 * worst:.1e} %",
            worst <= 1e-3,
        )
    )
    own, theirs = sampling_share()
    beside = "" if theirs is None else f"; nvitop's ResourceMetricCollector {theirs:.2%}"
    goals.append(
        goal(
            "reading a GPU with seven instances at 10 Hz, share of one core (core time)",
            "<= 1 % of throughput",
            f"{own:.3%}{beside}",
            own <= 0.01,
            "What a sampler takes from a tenant is at most the core time it uses. The driver is "
            "the simulated one; a real driver's calls take longer.",
        )
    )
    rows = check_frameworks(duration=0.4)
    working = sorted({r.framework for r in rows if r.status == "ok"})
    both = [f for f in working if sum(r.framework == f and r.status == "ok" for r in rows) == 2]
    goals.append(
        goal(
            "frameworks that ran inference or training here",
            ">= 4",
            f"{len(working)} ({', '.join(working)}); both modes: {', '.join(both)}",
            len(working) >= 4,
        )
    )
    tables.append(
        table(
            "Frameworks on this machine (batch 8, one core)",
            ["framework", "model", "mode", "status", "samples/s"],
            [
                [
                    r.framework,
                    r.model,
                    r.mode,
                    r.status,
                    round(r.throughput) if r.status == "ok" else None,
                ]
                for r in rows
            ],
        )
    )
    write(
        arguments.out,
        __file__,
        "Telemetry",
        goals,
        tables,
        (
            "prometheus-client",
            "nvitop",
            "torch",
            "timm",
            "transformers",
            "onnxruntime",
            "jax",
            "tensorflow-cpu",
            "openvino",
        ),
        " --tables TABLES",
    )


if __name__ == "__main__":
    main()
