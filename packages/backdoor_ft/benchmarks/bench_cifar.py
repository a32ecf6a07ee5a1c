"""CIFAR-10 photographs on a processor: a small residual network, FT against SFT, two attacks.

The photographs are a zip file of train/CLASS/IMAGE.jpg and test/CLASS/IMAGE.jpg, by --cifar or the
environment variable BACKDOOR_FT_CIFAR. Cells go to a store, and a run that was stopped goes on.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from backdoor_ft.bench import Matrix, run_matrix
from common import goal, parser, write

ATTACKS = ("badnets", "blended")
SUPERFT = {"lr_max1": 0.5, "lr_max2": 0.01, "phase1": 280, "phase2": 190, "batch_size": 128,
           "mixup": False}  # fmt: skip
SHIFT = {"pad": 2}  # the victims' own augmentation
# share of the clean training images -> settings of the repairs
CLEAN = {
    1.0: {
        "ft": {"steps": 470, "augment": SHIFT},
        "superft": {**SUPERFT, "augment": SHIFT},
        "scratch": {"steps": 470, "augment": SHIFT},
    },
    0.1: {
        "ft": {"steps": 470, "augment": SHIFT},
        "superft": {**SUPERFT, "augment": SHIFT},
        "fst": {"steps": 300, "augment": SHIFT},
        "clp": {},
        "anp": {"steps": 600},
        # a quarter of the authors' rate for the masks, which leaves RNP stronger here
        "rnp": {"recover_lr": 0.05},
    },
}

# the filters train a network anew, as long as the victim was trained
ANEW = {"steps": 940, "batch_size": 128, "augment": SHIFT}
FILTERS = {
    "activation_clustering": ANEW,
    "spectral": ANEW,
    "abl": {**ANEW, "isolation_steps": 470},
}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--cifar", type=Path, default=os.environ.get("BACKDOOR_FT_CIFAR"))
    options.add_argument("--limit", type=int, default=600, help="training images of each class")
    options.add_argument("--store", type=Path, help="folder of the cells; a temporary one without")
    options.add_argument("--filters", action="store_true", help="also AC, spectral and ABL")
    arguments = options.parse_args()
    if arguments.cifar is None or not Path(arguments.cifar).exists():
        print("left out: no photographs; pass --cifar FILE or set BACKDOOR_FT_CIFAR")
        return
    torch.set_num_threads(arguments.threads)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for share, repairs in CLEAN.items():
            if arguments.filters and share == 1:
                repairs = repairs | FILTERS
            matrix = Matrix(
                data=f"zip:{arguments.cifar}", model="resnet8", recipe="cifar-small",
                attacks=ATTACKS, defenses=("none", *repairs), clean=share, limit=arguments.limit,
                settings=repairs,
            )  # fmt: skip
            found = run_matrix(
                matrix, arguments.store or folder, on_cell=lambda row: print(row, flush=True)
            )
            rows += [{**row, "clean": round(share * 10 * arguments.limit)} for row in found]
    goals = []
    none = {r["attack"]: r for r in rows if r["defense"] == "none"}
    for share in CLEAN:
        images = round(share * 10 * arguments.limit)
        own = [r for r in rows if r["clean"] == images]
        sft = [r for r in own if r["defense"] == "superft"]
        ft = [r for r in own if r["defense"] == "ft"]
        drop = max(none[r["attack"]]["acc"] - r["acc"] for r in sft)
        worst = max(r["asr"] for r in sft)
        bar = "ASR at most .10" if share < 1 else "ASR at most .10, fall of accuracy 1 point"
        fell = f"accuracy {-100 * drop:+.1f} points at worst"
        goals.append(
            goal(
                f"CIFAR-10 in miniature: super-fine-tuning on {images} clean images",
                bar,
                f"ASR {worst:.3f} at worst, {fell};"
                f" plain fine-tuning leaves {min(r['asr'] for r in ft):.3f} at least",
                bool(worst <= 0.1 and (share < 1 or drop <= 0.01)),
                f"{10 * arguments.limit} training images, 8-layer residual network, one seed",
            )
        )
    keys = ("acc", "asr", "ra", "der", "dose", "displacement", "cpu_s")
    table = {
        "title": "Every run",
        "columns": ["attack", "clean images", "repair", *keys, "status"],
        "rows": [
            [r["attack"], r["clean"], r["defense"], *(round(r[k], 3) for k in keys), r["status"]]
            for r in rows
        ],
    }
    write(arguments, "bench_cifar", "CIFAR-10 photographs on a processor", goals, [table])


if __name__ == "__main__":
    main()
