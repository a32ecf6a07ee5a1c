"""Studies on a real GPU: alone, time-slicing and MPS shares, with the driver's readings beside.

It changes no setting of the GPU (no MIG mode, no clocks): MIG layouts are only read. Needs the
extras torch and transformers. Each backend has a time limit and the result file is written again
after each, so that a run that is cut off leaves what was measured; the whole ends within 150 s.
``--model tiny`` takes the first model whose name begins so, for trying the script.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import goal, table, write
from migperf import Node, Study
from migperf.errors import MigperfError
from migperf.partitions.registry import diagnose
from migperf.telemetry.nvml import read_gpu

# The first that works there is measured.
MODELS = {
    "BERT (batch 8, 128 tokens)": {"model": "hf:bert", "batch": 8, "sequence": 128},
    "ViT-B/16 (batch 8)": {"model": "vit_base_patch16_224", "batch": 8, "image": 224},
    "perceptron (batch 256, width 4096)": {"model": "mlp", "batch": 256, "width": 4096},
    "tiny perceptron (batch 8, width 64)": {"model": "mlp", "batch": 8, "width": 64},
}
SECONDS = 60  # per backend
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
            "repeat": 1,
            "duration_s": 3,
            "warmup_s": 0.5,
            "seed": 0,
        }
    )


def milliseconds(row: dict) -> list[float | None]:
    values = [row.get(name, float("nan")) for name in ("p50_ms", "p99_ms")]
    return [None if v != v else round(v, 3) for v in values]


def measure(backend: str, out: Path, chosen: str) -> None:
    """Measure one backend in this process and write what was found; run by `bounded`."""
    result, failures = None, []
    for what, model in MODELS.items():
        if not what.startswith(chosen):
            continue
        try:
            result = study(backend, model).run(allow_noise=True)
            break
        except MigperfError as error:
            failures.append(f"{what}: {error}")
    if result is None:
        found = {"goal": goal(f"{backend} on a real GPU", "runs", f"failed: {failures}", False),
                 "rows": []}  # fmt: skip
    else:
        alone, together = (case.label for case in result.cases)
        rows = result.rows()
        total = sum(r.get("throughput", 0.0) for r in rows if r["case"] == together)
        single = next(r.get("throughput", float("nan")) for r in rows if r["case"] == alone)
        text = f"{total / single:.2f} times one tenant's throughput, isolation index "
        text += f"{result.isolation_index(alone, together):.2f}"
        joules = [r["joules_per_sample"] for r in rows if r["case"] == alone]
        if joules and joules[0] == joules[0]:
            text += f", {joules[0]:.3g} J per sample alone"
        found = {
            "goal": goal(
                f"{backend} on a real GPU, two servers of {what}",
                "runs; the tenants together, and the isolation index, are shown",
                text,
                None,
                "; ".join([*(result.noise or ["quiet host"]), *failures]),
            ),
            "rows": [
                [r["case"], r["tenant"], r.get("throughput_text", r["status"]), *milliseconds(r)]
                for r in rows
            ],
        }
    out.write_text(json.dumps(found), encoding="utf-8")


def bounded(backend: str, chosen: str, seconds: float = SECONDS) -> dict:
    """Measure a backend in a process group that is ended after `seconds`."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        process = subprocess.Popen(
            [sys.executable, __file__, "--backend", backend, "--model", chosen, "--out", str(out)],
            start_new_session=True,
        )
        try:
            process.wait(timeout=seconds)
            why = f"ended with {process.returncode}"
        except subprocess.TimeoutExpired:
            # Ctrl-C first, so that an MPS daemon is ended and settings are put back.
            why = f"not finished within {seconds:g} s"
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if out.is_file():
            found: dict = json.loads(out.read_text(encoding="utf-8"))
            return found
    return {"goal": goal(f"{backend} on a real GPU", "runs", why, False), "rows": []}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the JSON file")
    parser.add_argument("--model", default="", help="how the name of the model begins")
    parser.add_argument("--backend", choices=CASES, help="measure this one only, into the file OUT")
    arguments = parser.parse_args()
    if not any(what.startswith(arguments.model) for what in MODELS):
        parser.error(f"--model: {arguments.model!r} begins none of {', '.join(MODELS)}")
    if arguments.backend:
        measure(arguments.backend, arguments.out, arguments.model)
        return
    started = time.monotonic()
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
    goals: list[dict] = []
    rows: list[list] = []

    def save(*more: dict) -> None:
        tables = [
            table("Backends", ["backend", "works", "isolates", "reason"], doctor),
            table("Cases", ["case", "tenant", "samples/s", "p50 ms", "p99 ms"], rows),
        ]
        peers = ("torch", "transformers")
        title = f"Partitions of {name}"
        options = f" --model {arguments.model}" if arguments.model else ""
        write(arguments.out, __file__, title, [*goals, *more], tables, peers, options)

    for backend in CASES:
        if backend in works:
            found = bounded(backend, arguments.model)
            goals.append(found["goal"])
            rows += found["rows"]
        else:
            reason = next(row[3] for row in doctor if row[0] == backend)
            goals.append(goal(f"{backend} on a real GPU", "runs", f"not here: {reason}", None))
        print(f"bench_gpu: {backend} done after {time.monotonic() - started:.0f} s", flush=True)
        save()
    with contextlib.closing(Node.open()) as node:
        after = read_gpu(node.gpus[0])
        same = node.gpus[0].mig_mode() == mig
    more = [goal("MIG mode after the studies", "as before", str(same).lower(), same)]
    if before.energy_joules is not None and after.energy_joules is not None:
        spent = after.energy_joules - before.energy_joules
        more.append(
            goal("energy counter of the driver over the studies", "rises", f"{spent:.0f} J",
                 spent > 0)
        )  # fmt: skip
    save(*more)


if __name__ == "__main__":
    main()
