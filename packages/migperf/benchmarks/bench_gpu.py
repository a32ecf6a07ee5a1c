"""Studies on a real GPU: alone, time-slicing and MPS shares, with the driver's readings beside.

It changes no setting of the GPU (no MIG mode, no clocks): MIG layouts are only read. Needs the
extras torch and transformers.
"""

from __future__ import annotations

import contextlib

from common import goal, parse, table, write
from migperf import Node, Study
from migperf.errors import MigperfError
from migperf.partitions.registry import diagnose
from migperf.telemetry.nvml import read_gpu

# The first that works there is measured.
MODELS = {
    "BERT (batch 8, 128 tokens)": {"model": "hf:bert", "batch": 8, "sequence": 128},
    "ViT-B/16 (batch 8)": {"model": "vit_base_patch16_224", "batch": 8, "image": 224},
    "perceptron (batch 256, width 4096)": {"model": "mlp", "batch": 256, "width": 4096},
}
CASES = {
    "timeslice": [("gpu", 1), ("gpu*2", -1)],
    "mps": [("50%*2", 1), ("50%*2", -1)],
}


def study(backend: str, model: dict) -> Study:
    workload = {"framework": "torch", "mode": "infer", **model}
    return Study.from_dict(
        {
            "cases": [
                {"backend": backend, "layout": layout, "tenants": tenants}
                for layout, tenants in CASES[backend]
            ],
            "tenants": [{"name": name, "workload": workload} for name in ("one", "two")],
            "repeat": 2,
            "duration_s": 3,
            "warmup_s": 1,
            "seed": 0,
        }
    )


def milliseconds(row: dict) -> list[float | None]:
    values = [row.get(name, float("nan")) for name in ("p50_ms", "p99_ms")]
    return [None if v != v else round(v, 3) for v in values]


def main() -> None:
    arguments = parse(__doc__ or "")
    try:
        node = Node.open()
    except MigperfError as error:
        print(f"bench_gpu: left out, {error}")
        return
    with contextlib.closing(node):
        if not node.gpus:
            print("bench_gpu: left out, the driver sees no GPU")
            return
        name, mig = node.gpus[0].name, node.gpus[0].mig_mode()
        before = read_gpu(node.gpus[0])
    doctor = [
        [backend, "yes" if state.ok else "no", isolates, state.reason]
        for backend, (state, isolates) in diagnose().items()
    ]
    works = {row[0] for row in doctor if row[1] == "yes"}
    goals, rows = [], []
    for backend in CASES:
        if backend not in works:
            reason = next(row[3] for row in doctor if row[0] == backend)
            goals.append(goal(f"{backend} on a real GPU", "runs", f"not here: {reason}", None))
            continue
        result, failures = None, []
        for what, model in MODELS.items():
            try:
                result = study(backend, model).run(allow_noise=True)
                break
            except MigperfError as error:
                failures.append(f"{what}: {error}")
        if result is None:
            text = f"failed: {'; '.join(failures)}"
            goals.append(goal(f"{backend} on a real GPU", "runs", text, False))
            continue
        alone, together = (case.label for case in result.cases)
        found = {
            label: [r for r in result.rows() if r["case"] == label] for label in (alone, together)
        }
        total = sum(r.get("throughput", 0.0) for r in found[together])
        single = found[alone][0].get("throughput", float("nan"))
        goals.append(
            goal(
                f"{backend} on a real GPU, two servers of {what}",
                "runs; the tenants together, and the isolation index, are shown",
                f"{total / single:.2f} times one tenant's throughput, isolation index "
                f"{result.isolation_index(alone, together):.2f}",
                None,
                "; ".join([name, *(result.noise or ["quiet host"]), *failures]),
            )
        )
        rows += [
            [r["case"], r["tenant"], r.get("throughput_text", r["status"]), *milliseconds(r)]
            for r in result.rows()
        ]
    with contextlib.closing(Node.open()) as node:
        after = read_gpu(node.gpus[0])
        same = node.gpus[0].mig_mode() == mig
    if before.energy_joules is not None and after.energy_joules is not None:
        spent = after.energy_joules - before.energy_joules
        goals.append(
            goal(
                "energy counter of the driver over the studies",
                "rises",
                f"{spent:.0f} J",
                spent > 0,
            )
        )
    goals.append(goal("MIG mode after the studies", "as before", str(same).lower(), same))
    tables = [
        table("Backends", ["backend", "works", "isolates", "reason"], doctor),
        table("Cases", ["case", "tenant", "samples/s", "p50 ms", "p99 ms"], rows),
    ]
    write(
        arguments.out, __file__, f"Partitions of {name}", goals, tables, ("torch", "transformers")
    )


if __name__ == "__main__":
    main()
