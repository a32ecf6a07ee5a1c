"""The benchmark matrix: content-addressed cells, killed and resumed without loss."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import time
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backdoor_ft.attacks import PRESETS, attack
from backdoor_ft.auto import repair
from backdoor_ft.ckpt import load_model, save_model
from backdoor_ft.data import LabeledData, load
from backdoor_ft.defenses import REGISTRY, make
from backdoor_ft.errors import DivergedError, InputError
from backdoor_ft.files import make_folder, write_atomically
from backdoor_ft.metrics import defense_effectiveness, score
from backdoor_ft.models import build
from backdoor_ft.poison import PoisonPlan

COLUMNS = (
    "dataset", "backbone", "attack", "defense", "ratio", "seed", "acc", "acc_low", "acc_high",
    "asr", "asr_low", "asr_high", "ra", "der", "dose", "displacement", "cpu_s", "status",
)  # fmt: skip


@dataclass(frozen=True)
class Matrix:
    """All combinations of attacks, defences, ratios and seeds on one data set and network.

    Attributes
    ----------
    data, model, recipe : as the command line takes them
    attacks, defenses : names; "none" and "auto" are defences too
    ratios, seeds : poison ratios and seeds
    clean : share of the training set that the defender has
    gate : ASR that an attack must reach; weaker victims are marked and not repaired
    limit : most images of each class, for zip files
    settings : parameters of defences, by name: ``{"superft": {"lr_max1": 0.5}}``
    """

    data: str = "digits"
    model: str = "cnn"
    recipe: str = "digits"
    attacks: tuple[str, ...] = ("badnets", "blended", "sig")
    defenses: tuple[str, ...] = ("none", "ft", "superft", "scratch")
    ratios: tuple[float, ...] = (0.1,)
    seeds: tuple[int, ...] = (0,)
    clean: float = 1.0
    gate: float = 0.9
    limit: int | None = None
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := set(self.attacks) - {*PRESETS, "input_aware"}:
            raise InputError(f"attacks={sorted(unknown)} is not known: {', '.join(PRESETS)}")
        if unknown := set(self.defenses) - {*REGISTRY, "none", "auto"}:
            raise InputError(
                f"defenses={sorted(unknown)} is not known: none, auto, {', '.join(REGISTRY)}"
            )
        if not 0 < self.clean <= 1:
            raise InputError(f"clean={self.clean} is not allowed: 0 < clean <= 1")
        for name, config in self.settings.items():
            make(name, **config)

    @staticmethod
    def read(path: Path | str) -> Matrix:
        """Read a TOML file with the fields of this class."""
        try:
            table = tomllib.loads(Path(path).read_text())
            fields: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in table.items()
            }
            return Matrix(**fields)
        except (OSError, ValueError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            line = str(error).splitlines()[0]
            raise InputError(f"matrix={str(path)!r} cannot be read: {line}") from error

    def cells(self) -> list[tuple[str, str, float, int]]:
        """Return attack, defence, ratio and seed of each cell; one victim's cells in a row."""
        return [
            (a, d, r, s)
            for a, r, s, d in itertools.product(
                self.attacks, self.ratios, self.seeds, self.defenses
            )
        ]


def address(content: dict[str, Any]) -> str:
    """Return the name of a stored artefact: a hash of all that it depends on."""
    text = json.dumps({"version": version("backdoor-ft"), **content}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def run_matrix(
    matrix: Matrix,
    store: Path | str,
    *,
    on_cell: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Compute every cell that the store does not hold yet, and return the long table.

    A cell is one JSON file under its address, written under another name and renamed; a kill at
    any moment loses the cell in progress and nothing else. ``table.csv`` is written at the end.

    Parameters
    ----------
    matrix : what to run
    store : folder
    on_cell : called with each row
    """
    root = make_folder(store)
    make_folder(root / "cells")
    make_folder(root / "victims")
    train, test = load(matrix.data, "train", matrix.limit), load(matrix.data, "test", matrix.limit)
    digest = train.digest()[:16]
    common = {"data": digest, "model": matrix.model, "recipe": matrix.recipe}
    rows: list[dict[str, Any]] = []
    for name, defense, ratio, seed in matrix.cells():
        key = {**common, "attack": name, "ratio": ratio, "seed": seed}
        of_cell = {**key, "defense": defense, "clean": matrix.clean, "gate": matrix.gate}
        if defense in REGISTRY:  # with the defaults, which may change between two runs
            of_cell["settings"] = asdict(make(defense, **matrix.settings.get(defense, {})))
        cell = address(of_cell)
        path = root / "cells" / f"{cell}.json"
        if path.exists():
            row = json.loads(path.read_text())
        else:
            victim, plan = _victim(root / "victims" / address(key), matrix, train, key)
            row = _cell(matrix, train, test, victim, plan, defense, ratio, seed, name)
            write_atomically(path, json.dumps(row).encode())
        rows.append(row)
        if on_cell is not None:
            on_cell(row)
    write_atomically(root / "table.csv", table_csv(rows).encode())
    return rows


def _victim(
    folder: Path, matrix: Matrix, train: LabeledData, key: dict[str, Any]
) -> tuple[nn.Module, PoisonPlan]:
    size = train.inputs.shape[-1]
    channels = train.inputs.shape[1] if train.inputs.ndim == 4 else 1

    def factory() -> nn.Module:
        return build(matrix.model, channels, train.num_classes, size, int(key["seed"]))

    if (folder / "model.safetensors").exists():  # written last
        return load_model(factory(), folder / "model.safetensors"), PoisonPlan.load(folder, train)
    model, plan = attack(
        str(key["attack"]), factory, train,
        ratio=float(key["ratio"]), recipe=matrix.recipe, seed=int(key["seed"]),
    )  # fmt: skip
    make_folder(folder)
    plan.save(folder)
    save_model(model, folder / "model.safetensors")
    return model, plan


def _cell(
    matrix: Matrix,
    train: LabeledData,
    test: LabeledData,
    victim: nn.Module,
    plan: PoisonPlan,
    defense: str,
    ratio: float,
    seed: int,
    name: str,
) -> dict[str, Any]:
    before = score(victim, test, plan)
    row: dict[str, Any] = {
        "dataset": train.name, "backbone": matrix.model, "attack": name, "defense": defense,
        "ratio": ratio, "seed": seed, "dose": 0.0, "displacement": 0.0, "cpu_s": 0.0,
    }  # fmt: skip
    after, status = before, "done"
    if before.attack_success.value < matrix.gate:
        status = "weak attack"
    elif defense != "none":
        clean = train
        if matrix.clean < 1:
            count = max(round(matrix.clean * len(train)), train.num_classes)
            clean, _ = train.split(count, seed + 17)
        started = time.process_time()
        try:
            found = repair(
                victim, clean, method=defense, poisoned=plan.dataset, seed=seed,
                max_acc_drop=0.02 if defense == "auto" else None,
                **matrix.settings.get(defense, {}),
            )  # fmt: skip
            after = score(found.model, test, plan)
            row |= {"dose": found.dose, "displacement": found.displacement}
            status = "done" if found.accepted else "refused by the guard"
        except (InputError, DivergedError) as error:
            status = f"failed: {error}"
        row["cpu_s"] = round(time.process_time() - started, 3)
    a, s = after.accuracy, after.attack_success
    return row | {
        "acc": a.value, "acc_low": a.low, "acc_high": a.high,
        "asr": s.value, "asr_low": s.low, "asr_high": s.high, "ra": after.robust_accuracy.value,
        "der": defense_effectiveness(
            before.accuracy.value, before.attack_success.value, a.value, s.value
        ),
        "status": status,
    }  # fmt: skip


def table_csv(rows: list[dict[str, Any]]) -> str:
    """Return the long table as CSV."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: row[k] for k in COLUMNS})
    return buffer.getvalue()


def describe(matrix: Matrix) -> dict[str, Any]:
    """Return a matrix as plain values."""
    return {**asdict(matrix), "torch": torch.__version__}


def table_parquet(rows: list[dict[str, Any]]) -> bytes:
    """Return the long table as a Parquet file.

    Raises
    ------
    InputError
        pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise InputError(
            "a Parquet table needs pyarrow: pip install 'backdoor-ft[parquet]'"
        ) from error
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{k: r[k] for k in COLUMNS} for r in rows]), sink)
    return sink.getvalue()
