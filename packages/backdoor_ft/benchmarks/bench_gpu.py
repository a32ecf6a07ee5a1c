"""CIFAR-10 in miniature on one GPU: PreActResNet18, 5 % clean data, repairs side by side.

The photographs are a zip file of train/CLASS/IMAGE.jpg and test/CLASS/IMAGE.jpg, by --zip or the
environment variable BACKDOOR_FT_CIFAR. Runs from the source tree with torch, numpy, scipy, Pillow.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import tomllib
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if "backdoor_ft" not in sys.modules:  # the modules alone, without what only the command line needs
    package = types.ModuleType("backdoor_ft")
    package.__path__ = [str(ROOT / "src" / "backdoor_ft")]
    sys.modules["backdoor_ft"] = package

import torch  # noqa: E402
from backdoor_ft.augment import Augment  # noqa: E402
from backdoor_ft.data import image_zip  # noqa: E402
from backdoor_ft.defenses.departure import FST  # noqa: E402
from backdoor_ft.defenses.tuning import FT, Scratch, SuperFT  # noqa: E402
from backdoor_ft.engine import Recipe, train  # noqa: E402
from backdoor_ft.metrics import defense_effectiveness, score  # noqa: E402
from backdoor_ft.models import PreActResNet  # noqa: E402
from backdoor_ft.poison import poison  # noqa: E402
from backdoor_ft.triggers import BadNets, Blended, LowFrequency, SSBALike, WaNet  # noqa: E402

AUGMENT = Augment(pad=4, flip=True)
ATTACKS = {
    "badnets": (BadNets(3), {}),
    "blended": (Blended(0.2), {}),
    "lf": (LowFrequency(), {}),
    "ssba_like": (SSBALike(), {}),
    "wanet": (WaNet(strength=0.75), {"cover_ratio": 0.2}),
}
REPAIRS = {
    "FT": FT(steps=400, augment=AUGMENT),
    "SFT peak .3": SuperFT(lr_max1=0.3, lr_max2=0.03, phase1=300, phase2=200, batch_size=128,
                           augment=AUGMENT),
    "SFT peak 1": SuperFT(lr_max1=1.0, lr_max2=0.05, phase1=300, phase2=200, batch_size=128,
                          augment=AUGMENT),
    "FST": FST(steps=400, augment=AUGMENT),
    "scratch": Scratch(steps=500, augment=AUGMENT),
}  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--zip", type=Path, default=os.environ.get("BACKDOOR_FT_CIFAR"))
    options.add_argument("--seconds", type=float, default=140, help="no new attack after this")
    options.add_argument("--epochs", type=int, default=15)
    options.add_argument("--limit", type=int, default=None, help="training images of each class")
    options.add_argument("--device", default="cuda")
    arguments = options.parse_args()
    started = time.monotonic()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    if arguments.zip is None or not Path(arguments.zip).exists():
        print("left out: no photographs; pass --zip FILE or set BACKDOOR_FT_CIFAR")
        return
    device = torch.device(arguments.device)
    torch.backends.cudnn.benchmark = True
    clean_train = image_zip(arguments.zip, "train", arguments.limit)
    test = image_zip(arguments.zip, "test", arguments.limit)
    clean, _ = clean_train.split(max(round(0.05 * len(clean_train)), 20), 0)
    print(
        f"{len(clean_train)} + {len(test)} images, {time.monotonic() - started:.0f} s", flush=True
    )
    rows, victims, left_out = [], {}, []
    steps = arguments.epochs * (len(clean_train) // 256)
    recipe = Recipe(steps, 256, 0.1, augment=AUGMENT)
    longest = 0.0
    for name, (trigger, extra) in ATTACKS.items():
        if time.monotonic() - started + longest > arguments.seconds:
            left_out.append(name)
            continue
        begun = time.monotonic()
        plan = poison(clean_train, trigger=trigger, ratio=0.1, seed=0, **extra)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            torch.manual_seed(0)
            network = PreActResNet().to(device, memory_format=torch.channels_last)
            victim = train(network, plan.dataset, recipe=recipe, seed=0)
            if device.type == "cuda":
                torch.cuda.synchronize()
            trained = time.monotonic() - begun
            before = score(victim, test, plan)
            victims[name] = (before, trained)
            entries = [("none", before, trained, 0.0)]
            for label, defense in REPAIRS.items():
                at = time.monotonic()
                result = defense.repair(victim, clean, seed=0)
                entries.append(
                    (label, score(result.model, test, plan), time.monotonic() - at,
                     result.displacement)
                )  # fmt: skip
        longest = max(longest, time.monotonic() - begun)
        for label, s, seconds, moved in entries:
            der = defense_effectiveness(
                before.accuracy.value, before.attack_success.value,
                s.accuracy.value, s.attack_success.value,
            )  # fmt: skip
            values = (
                s.accuracy.value, s.attack_success.value, s.robust_accuracy.value, der, seconds,
                moved,
            )  # fmt: skip
            rows.append([name, label, *(round(v, 4) for v in values)])
            print(rows[-1], flush=True)
    write(arguments, version, rows, victims, left_out, len(clean))


def write(
    arguments: argparse.Namespace,
    version: str,
    rows: list,
    victims: dict,
    left_out: list,
    clean: int,
) -> None:
    strong = [n for n, (s, _) in victims.items() if s.attack_success.value >= 0.9]
    goals = []
    for label in REPAIRS:
        own = [r for r in rows if r[1] == label and r[0] in strong]
        if not own:
            continue
        asr = [r[3] for r in own]
        drops = [victims[r[0]][0].accuracy.value - r[2] for r in own]
        der = sum(r[5] for r in own) / len(own)
        met = None
        if label.startswith("SFT"):
            met = bool(sum(asr) / len(asr) <= 0.02 and max(asr) <= 0.05 and max(drops) <= 0.01)
        goals.append({
            "name": f"CIFAR-10 in miniature, {label}, {clean} clean images, {len(own)} attacks",
            "goal": "mean ASR at most 2 %, worst 5 %, fall of accuracy at most 1 point, DER .96",
            "measured": f"mean ASR {sum(asr) / len(asr):.3f}, worst {max(asr):.3f}, accuracy"
            f" {-100 * max(drops):+.1f} points at worst, DER {der:.3f}",
            "met": met,
            "note": "20,000 training images instead of 50,000; one seed; settings fixed in the"
            " script before any ASR was seen",
        })  # fmt: skip
    device = torch.device(arguments.device)
    on_gpu = device.type == "cuda"
    result = {
        "schema_version": 1,
        "package": "backdoor_ft",
        "version": version,
        "benchmark": "bench_gpu",
        "title": "CIFAR-10 in miniature: PreActResNet18, 10 % poisoned, 5 % clean data",
        "command": "python benchmarks/bench_gpu.py --out benchmarks/results --zip CIFAR.zip",
        "environment": {
            "python": platform.python_version(),
            "platform": f"{platform.system()} {platform.machine()}",
            "cpu": platform.processor() or platform.machine(),
            **({"accelerator": torch.cuda.get_device_name()} if on_gpu else {}),
            "threads": torch.get_num_threads(),
            "versions": {"torch": torch.__version__},
        },
        "goals": goals,
        "tables": [
            {
                "title": "Every run; seconds of wall time" + (
                    f"; left out for time: {', '.join(left_out)}" if left_out else ""
                ),
                "columns": ["attack", "repair", "ACC", "ASR", "RA", "DER", "s", "displacement"],
                "rows": rows,
            }
        ],
    }  # fmt: skip
    arguments.out.mkdir(parents=True, exist_ok=True)
    part = arguments.out / ".bench_gpu.json.part"
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(arguments.out / "bench_gpu.json")
    for row in goals:
        print(f"{row['name']}: {row['measured']} (met {row['met']})")


if __name__ == "__main__":
    main()
