"""CIFAR-10 on one GPU: PreActResNet18, nine attacks, 5 % clean data, repairs side by side.

    python benchmarks/bench_gpu.py --data zip:CIFAR.zip --out benchmarks/results
    python benchmarks/bench_gpu.py --data cifar10-jpeg:DIR --epochs 40 --ratios 0.1,0.05,0.01 \
        --seconds 36000 --store cells --out benchmarks/results        # the whole leaderboard

The data are a zip file of train/CLASS/IMAGE.jpg and test/CLASS/IMAGE.jpg, or such a folder. Every
cell (attack, ratio, seed) goes to the store as soon as it is done, and a run that was stopped goes
on. Small batches leave a large GPU idle: several workers share it, so the seconds of a cell are
those of a shared GPU. Runs from the source tree with torch, numpy, scipy and Pillow.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
import tomllib
import types
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if "backdoor_ft" not in sys.modules:  # the modules alone, without what only the command line needs
    package = types.ModuleType("backdoor_ft")
    package.__path__ = [str(ROOT / "src" / "backdoor_ft")]
    sys.modules["backdoor_ft"] = package

import torch  # noqa: E402
from backdoor_ft.augment import Augment  # noqa: E402
from backdoor_ft.data import LabeledData, digits, load  # noqa: E402
from backdoor_ft.defenses.base import Defense  # noqa: E402
from backdoor_ft.defenses.departure import FST  # noqa: E402
from backdoor_ft.defenses.pruning import CLP  # noqa: E402
from backdoor_ft.defenses.tuning import FT, Scratch, SuperFT  # noqa: E402
from backdoor_ft.engine import Recipe, train  # noqa: E402
from backdoor_ft.metrics import defense_effectiveness, score  # noqa: E402
from backdoor_ft.models import PreActResNet, SmallCNN  # noqa: E402
from backdoor_ft.poison import PoisonPlan, poison  # noqa: E402
from backdoor_ft.schedules import CosineConfig  # noqa: E402
from backdoor_ft.stacked import fit_loop, fit_stacked  # noqa: E402
from backdoor_ft.triggers import (  # noqa: E402
    BPP,
    CTRL,
    SIG,
    AdaptiveBlend,
    BadNets,
    Blended,
    LowFrequency,
    SSBALike,
    WaNet,
)

AUGMENT = Augment(pad=4, flip=True)
GATE = 0.9
# attack -> trigger, options of poison(), and the most that clean-label attacks can poison
ATTACKS = {
    "blended": (Blended(0.2), {}),
    "badnets": (BadNets(3), {}),
    "lf": (LowFrequency(), {}),
    "ssba_like": (SSBALike(), {}),
    "wanet": (WaNet(strength=0.75), {"cover_ratio": 0.2}),
    "sig": (SIG(), {"label_map": "clean_label"}),
    "bpp": (BPP(), {"cover_ratio": 0.1}),
    "ctrl": (CTRL(), {"label_map": "clean_label"}),
    "adaptive_blend": (AdaptiveBlend(), {"cover_ratio": 0.05}),
}
PEAK = {"batch_size": 128, "augment": AUGMENT}
REPAIRS: dict[str, Defense] = {
    "FT": FT(steps=300, augment=AUGMENT),
    # the setting of bench_cifar.py
    "SFT": SuperFT(
        lr_max1=0.5, lr_max2=0.01, phase1=280, phase2=190, batch_size=128, augment=AUGMENT,
        mixup=False,
    ),
    "SFT, twice the peak, then the victim's answers": SuperFT(
        lr_max1=1.0, lr_max2=0.1, phase1=300, phase2=600, distill=0.95, batch_size=128,
        augment=AUGMENT, mixup=False,
    ),
    "FST": FST(steps=300, augment=AUGMENT),
    "CLP": CLP(),
    "scratch": Scratch(steps=470, augment=AUGMENT),
}  # fmt: skip
# best published means of BackdoorBench's leaderboard for PreActResNet18 with 5 % clean data
PUBLISHED = {0.1: 0.874, 0.05: 0.927, 0.01: 0.759}
DER_BAR = {0.1: 0.96, 0.05: 0.96, 0.01: 0.85}


def attacked(
    data: LabeledData, name: str, ratio: float, seed: int, recipe: Recipe, device: torch.device
) -> tuple[PoisonPlan, torch.nn.Module, float]:
    """Poison and train; return plan, victim, and seconds of the training."""
    trigger, extra = ATTACKS[name]
    if extra.get("label_map") == "clean_label":  # the target class alone is poisoned
        ratio = min(ratio, 0.9 * float((data.labels == 0).float().mean()))
    plan = poison(data, trigger=trigger, ratio=ratio, seed=seed, **extra)
    begun = time.monotonic()
    torch.manual_seed(seed)
    network = PreActResNet().to(device, memory_format=torch.channels_last)
    victim = train(network, plan.dataset, recipe=recipe, seed=seed)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return plan, victim, time.monotonic() - begun


def row(name: str, ratio: float, label: str, before: object, s: object, seconds: float,
        moved: float) -> list:  # fmt: skip
    der = defense_effectiveness(
        before.accuracy.value, before.attack_success.value, s.accuracy.value, s.attack_success.value
    )
    values = (
        s.accuracy.value, s.attack_success.value, s.robust_accuracy.value, der, seconds, moved,
    )  # fmt: skip
    return [name, ratio, label, *(round(v, 4) for v in values)]


def repaired(
    victim: torch.nn.Module,
    repairs: dict[str, Defense],
    clean: LabeledData,
    test: LabeledData,
    plan: PoisonPlan,
    seed: int,
) -> Iterator[tuple[str, object, float, float]]:
    """Yield label, score, seconds and displacement of every repair."""
    for label, defense in repairs.items():
        at = time.monotonic()
        result = defense.repair(victim, clean, seed=seed)
        yield label, score(result.model, test, plan), time.monotonic() - at, result.displacement


def stacked_rows(device: torch.device) -> list[list]:
    """Time 64 shadow networks of the digits, stacked and in a loop."""
    data, _ = digits(0)
    members = torch.rand(64, len(data), generator=torch.Generator().manual_seed(0)) < 0.5
    torch.manual_seed(0)
    fresh = [SmallCNN().to(device) for _ in range(64)]
    rate = CosineConfig(0.05, 30).learning_rate
    seconds: dict[str, list[float]] = {"loop": [], "stacked": []}
    for repeat in range(4):
        for label, work in (("loop", fit_loop), ("stacked", fit_stacked)):
            at = time.monotonic()
            work(fresh, data, members, steps=30, batch_size=64, rate=rate)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat:
                seconds[label].append(time.monotonic() - at)
    return [[k, round(statistics.median(v), 3), f"{min(v):.3f} ... {max(v):.3f}"]
            for k, v in seconds.items()]  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--data", default=os.environ.get("BACKDOOR_FT_CIFAR"),
                         help="zip:FILE, FILE.zip or cifar10-jpeg:DIR")  # fmt: skip
    options.add_argument("--store", type=Path, help="folder of the cells; a temporary one without")
    options.add_argument("--seconds", type=float, default=300, help="no new cell after this")
    options.add_argument("--workers", type=int, default=5, help="processes that share the GPU")
    options.add_argument("--epochs", type=int, default=15)
    options.add_argument("--ratios", default="0.1,0.05,0.01", help="poisoned shares, in this order")
    options.add_argument("--attacks", default=",".join(ATTACKS))
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--limit", type=int, default=None, help="training images of each class")
    options.add_argument("--device", default="cuda")
    arguments = options.parse_args()
    started = time.monotonic()
    if not arguments.data:
        print("left out: no photographs; pass --data zip:FILE or set BACKDOOR_FT_CIFAR")
        return
    cells = [
        (name, float(ratio))
        for ratio in arguments.ratios.split(",")
        for name in arguments.attacks.split(",")
    ]
    found: dict[tuple[str, float], list] = {}
    with tempfile.TemporaryDirectory() as folder:
        arguments.store = arguments.store or Path(folder)
        arguments.store.mkdir(parents=True, exist_ok=True)
        kind = "spawn" if arguments.device == "cuda" else "fork"
        pool = ProcessPoolExecutor(
            arguments.workers, multiprocessing.get_context(kind), set_up, (arguments,)
        )
        pending = {pool.submit(cell, *c): c for c in cells}
        try:
            for done in as_completed(pending, timeout=arguments.seconds):
                if not done.cancelled():
                    found[pending[done]] = done.result()
                    save(arguments, cells, found, [])
        except TimeoutError:
            print(f"the time is up after {time.monotonic() - started:.0f} s", flush=True)
        finally:
            children = list(pool._processes.values())
            pool.shutdown(wait=False, cancel_futures=True)
            for child in children:
                child.kill()
    save(arguments, cells, found, stacked_rows(torch.device(arguments.device)))


_worker: dict = {}


def set_up(arguments: argparse.Namespace) -> None:
    """Load the photographs in a worker."""
    torch.backends.cudnn.benchmark = True
    torch.set_num_threads(2)
    whole = load(arguments.data, "train", arguments.limit)
    clean, _ = whole.split(max(round(0.05 * len(whole)), 20), arguments.seed)
    steps = arguments.epochs * max(len(whole) // 256, 1)
    precision = "bfloat16" if arguments.device == "cuda" else "float32"
    _worker.update(
        arguments=arguments, whole=whole, clean=clean,
        test=load(arguments.data, "test", arguments.limit),
        recipe=Recipe(steps, 256, 0.1, augment=AUGMENT, precision=precision),
    )  # fmt: skip


def cell(name: str, ratio: float) -> list[list]:
    """Train one victim and repair it in every way; return and store the rows."""
    arguments, whole, test = (_worker[k] for k in ("arguments", "whole", "test"))
    recipe, clean, seed = _worker["recipe"], _worker["clean"], arguments.seed
    known = [name, ratio, seed, asdict(recipe), len(whole), len(test)]
    known += [[k, asdict(v)] for k, v in REPAIRS.items()]
    key = hashlib.sha256(json.dumps(known, default=str).encode()).hexdigest()[:16]
    path = arguments.store / f"{name}-{ratio}-{seed}-{key}.json"
    if path.exists():
        return json.loads(path.read_text())["rows"]
    device = torch.device(arguments.device)
    plan, victim, trained = attacked(whole, name, ratio, seed, recipe, device)
    on_gpu = device.type == "cuda"
    # the weights change between the steps of one context: they must not be kept in bfloat16
    with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu, cache_enabled=False):
        before = score(victim, test, plan)
        rows = [row(name, ratio, "none", before, before, trained, 0.0)]
        print(rows[-1], flush=True)
        for label, after, seconds, moved in repaired(victim, REPAIRS, clean, test, plan, seed):
            rows.append(row(name, ratio, label, before, after, seconds, moved))
            print(rows[-1], flush=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"rows": rows}))
    part.replace(path)
    return rows


def save(arguments: argparse.Namespace, cells: list, found: dict, stacked: list[list]) -> None:
    """Write the rows in the order of the cells."""
    rows = [r for c in cells for r in found.get(c, [])]
    left_out = [f"{name} at {ratio}" for name, ratio in cells if (name, ratio) not in found]
    if rows:
        write(arguments, rows, stacked, left_out)


def goals_of(rows: list[list], stacked: list[list], images: str) -> list:
    """Return the rows of the goals."""
    goals = []
    for ratio in dict.fromkeys(r[1] for r in rows):
        own = [r for r in rows if r[1] == ratio]
        victims = {r[0]: r for r in own if r[2] == "none" and r[4] >= GATE}
        weak = [r[0] for r in own if r[2] == "none" and r[4] < GATE]
        for label in dict.fromkeys(r[2] for r in own if r[2] != "none"):
            found = [r for r in own if r[2] == label and r[0] in victims]
            if not found:
                continue
            asr = [r[4] for r in found]
            drop = max(victims[r[0]][3] - r[3] for r in found)
            mean_drop = statistics.mean(victims[r[0]][3] - r[3] for r in found)
            der = statistics.mean(r[6] for r in found)
            met = None
            if label.startswith("SFT"):
                met = der >= DER_BAR.get(ratio, 0.96)
                if ratio >= 0.05:
                    met = bool(met and statistics.mean(asr) <= 0.02 and max(asr) <= 0.05
                               and drop <= 0.01)  # fmt: skip
            bar = f"DER at least {DER_BAR.get(ratio, 0.96):.2f}" + (
                ", mean ASR at most .02, worst .05, accuracy -1 point" if ratio >= 0.05 else ""
            )
            note = f"{len(found)} attacks, {images}, one seed, settings fixed in the script"
            if weak:
                note += f"; too weak to score: {', '.join(weak)}"
            if ratio in PUBLISHED:
                note += f"; best published mean DER {PUBLISHED[ratio]:.3f}"
            goals.append({
                "name": f"CIFAR-10, PreActResNet18, {100 * ratio:g} % poisoned, 5 % clean data:"
                f" {label}",
                "goal": bar,
                "measured": f"DER {der:.3f}, ASR {statistics.mean(asr):.3f} on average,"
                f" {max(asr):.3f} at worst, accuracy {-100 * mean_drop:+.1f} points on average,"
                f" {-100 * drop:+.1f} at worst",
                "met": met,
                "note": note,
            })  # fmt: skip
    trained = [r for r in rows if r[2] == "none" and r[4] >= 0.95]
    if trained:
        strongest = max(trained, key=lambda r: r[3])
        goals.append({
            "name": "training a backdoored PreActResNet18 (ASR at least .95)",
            "goal": "ACC at least .93 in at most 60 s",
            "measured": f"ACC {strongest[3]:.3f} in {strongest[7]:.0f} s",
            "met": bool(strongest[3] >= 0.93 and strongest[7] <= 60),
            "note": f"{images}; workers share the GPU",
        })  # fmt: skip
    if stacked:
        ratio = stacked[0][1] / stacked[1][1]
        goals.append({
            "name": "training 64 shadow networks at once against a loop on a GPU",
            "goal": "at least 8 times",
            "measured": f"{ratio:.1f} times",
            "met": bool(ratio >= 8),
            "note": "the digits' network, 30 steps of 64 samples, 3 interleaved repeats",
        })  # fmt: skip
    return goals


def write(
    arguments: argparse.Namespace,
    rows: list[list],
    stacked: list[list],
    left_out: list[str],
) -> None:
    """Write the result; called after every cell, so that a killed run leaves what it has."""
    device = torch.device(arguments.device)
    words = []
    for before, word in zip(["", *sys.argv[1:-1]], sys.argv[1:]):
        path = Path(word.removeprefix("zip:"))
        name = f"zip:{path.name}" if path.suffix == ".zip" else path.name
        words.append(
            "benchmarks/results" if before == "--out" else name if path.is_absolute()
            or path.suffix == ".zip" else word
        )  # fmt: skip
    columns = ["attack", "ratio", "repair", "ACC", "ASR", "RA", "DER", "s", "displacement"]
    part_of = "20,000 training images" if "24k" in arguments.data else f"{arguments.data}"
    goals = goals_of(rows, stacked, f"{part_of}, {arguments.epochs} epochs")
    left = f"; left out for time: {', '.join(left_out)}" if left_out else ""
    tables = [
        {"title": f"Every run; seconds of a GPU that {arguments.workers} workers share{left}",
         "columns": columns, "rows": rows},
    ]  # fmt: skip
    if stacked:
        tables.append({"title": "64 shadow networks", "columns": ["way", "s, median", "spread"],
                       "rows": stacked})  # fmt: skip
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    result = {
        "schema_version": 1,
        "package": "backdoor_ft",
        "version": version,
        "benchmark": "bench_gpu",
        "title": "CIFAR-10 on one GPU: PreActResNet18, 5 % clean data",
        "command": " ".join(["python benchmarks/bench_gpu.py", *words]),
        "environment": {
            "python": platform.python_version(),
            "platform": f"{platform.system()} {platform.machine()}",
            "cpu": platform.processor() or platform.machine(),
            **({"accelerator": torch.cuda.get_device_name()} if device.type == "cuda" else {}),
            "threads": torch.get_num_threads(),
            "versions": {"torch": torch.__version__},
        },
        "goals": goals,
        "tables": tables,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    part = arguments.out / ".bench_gpu.json.part"
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(arguments.out / "bench_gpu.json")
    if stacked:
        for goal in goals:
            print(f"{goal['name']}: {goal['measured']} (met {goal['met']})")


if __name__ == "__main__":
    main()
