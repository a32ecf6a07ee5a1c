"""Measured latencies per workload, partition profile and batch size: what the planner works on."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from .errors import InputError

__all__ = ["Measurement", "MeasurementTable", "load_measurements", "paper_measurements"]

_COLUMNS = "workload,mode,profile,batch,latency_ms[,memory_mib][,activity][,status][,joules]"


@dataclass(frozen=True, order=True)
class Measurement:
    """One measured point.

    Parameters
    ----------
    workload, mode, profile : str
        What ran, ``infer`` or ``train``, and on which partition.
    batch : int
        Batch size.
    latency_ms : float
        Mean time of one batch in milliseconds; NaN where `status` is not ``ok``.
    memory_mib : float
        Device memory used, MiB; NaN where unknown.
    activity : float
        Graphics engine activity (GRACT), 0 to 1; NaN where unknown.
    status : str
        ``ok`` or ``oom``; an out-of-memory is never a zero.
    joules : float
        Measured energy per sample, J; NaN where unknown.
    """

    workload: str
    mode: str
    profile: str
    batch: int
    latency_ms: float
    memory_mib: float = math.nan
    activity: float = math.nan
    status: str = "ok"
    joules: float = math.nan

    @property
    def rate(self) -> float:
        """Samples per second: ``1000 * batch / latency_ms``; 0 where it does not run."""
        return 1000.0 * self.batch / self.latency_ms if self.status == "ok" else 0.0


class MeasurementTable:
    """Measured points, found by workload, mode, profile and batch.

    Examples
    --------
    >>> table = paper_measurements()
    >>> table
    MeasurementTable(32 points: bert-base/infer, resnet50/infer, vit-b16/infer)
    >>> round(table.get("resnet50", "infer", "7g.80gb", 256).rate)
    3070
    """

    def __init__(self, rows: Iterable[Measurement]) -> None:
        self._rows: dict[tuple[str, str, str, int], Measurement] = {}
        for row in rows:
            self._rows[row.workload, row.mode, row.profile, row.batch] = row

    def __iter__(self) -> Iterator[Measurement]:
        return iter(
            sorted(self._rows.values(), key=lambda r: (r.workload, r.mode, r.profile, r.batch))
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        names = ", ".join(f"{w}/{m}" for w, m in self.workloads)
        return f"MeasurementTable({len(self)} points: {names})"

    @property
    def workloads(self) -> tuple[tuple[str, str], ...]:
        """Pairs of workload and mode."""
        return tuple(sorted({(r.workload, r.mode) for r in self}))

    def get(self, workload: str, mode: str, profile: str, batch: int) -> Measurement | None:
        """Find one point, or None."""
        return self._rows.get((workload, mode, profile, batch))

    def select(
        self, workload: str, mode: str, profile: str | None = None
    ) -> tuple[Measurement, ...]:
        """Points of a workload, sorted by profile and batch.

        Raises
        ------
        InputError
            The workload was not measured at all.
        """
        if (workload, mode) not in self.workloads:
            known = ", ".join(f"{w} ({m})" for w, m in self.workloads)
            raise InputError.of("workload", f"{workload} ({mode})", known)
        return tuple(
            r
            for r in self
            if (r.workload, r.mode) == (workload, mode) and profile in (None, r.profile)
        )

    def to_csv(self) -> str:
        """Write the table in the form that `load_measurements` reads."""
        out = io.StringIO()
        names = ["workload", "mode", "profile", "batch", "latency_ms", "memory_mib", "activity",
                 "status", "joules"]  # fmt: skip
        writer = csv.DictWriter(out, names, lineterminator="\n")
        writer.writeheader()
        for row in self:
            writer.writerow(
                {k: "" if v != v else v for k, v in ((n, getattr(row, n)) for n in names)}
            )
        return out.getvalue()


def _number(text: str | None, name: str, where: str) -> float:
    if text is None or text.strip() in ("", "N/A", "nan"):
        return math.nan
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"{where}: {name} {text!r} is not allowed; allowed: a number") from None
    if value < 0 or math.isinf(value):
        raise InputError(f"{where}: {name} {text!r} is not allowed; allowed: a number >= 0")
    return value


def _batch(text: str | None, where: str) -> int:
    value = _number(text, "batch", where)
    if not (value >= 1 and value == int(value)):
        raise InputError(f"{where}: batch {text!r} is not allowed; allowed: an integer >= 1")
    return int(value)


def read_table(text: str, name: str = "table") -> MeasurementTable:
    """Read a tidy CSV with the columns of `_COLUMNS`.

    Raises
    ------
    InputError
        A column is missing or a cell is not what it must be; names the line.
    """
    reader = csv.DictReader(io.StringIO(text))
    try:
        lines = list(reader)
    except csv.Error as error:
        raise InputError(f"{name}: no CSV ({error})") from None
    needed = {"workload", "mode", "profile", "batch", "latency_ms"}
    if not needed <= set(reader.fieldnames or ()):
        raise InputError.of(f"columns of {name}", ",".join(reader.fieldnames or ()), _COLUMNS)
    rows = []
    for number, cells in enumerate(lines, start=2):
        where = f"{name} line {number}"
        if any(cells.get(k) is None for k in needed):
            raise InputError(f"{where}: has fewer columns than the header; allowed: {_COLUMNS}")
        latency = _number(cells["latency_ms"], "latency_ms", where)
        status = cells.get("status") or "ok"
        if status not in ("ok", "oom"):
            raise InputError(f"{where}: status {status!r} is not allowed; allowed: ok, oom")
        if status == "ok" and not latency > 0:
            raise InputError(
                f"{where}: latency_ms {cells['latency_ms']!r} is not allowed; allowed: > 0, "
                "or status oom"
            )
        if cells["mode"] not in ("infer", "train"):
            raise InputError(
                f"{where}: mode {cells['mode']!r} is not allowed; allowed: infer, train"
            )
        rows.append(
            Measurement(
                cells["workload"],
                cells["mode"],
                cells["profile"],
                _batch(cells["batch"], where),
                latency if status == "ok" else math.nan,
                _number(cells.get("memory_mib"), "memory_mib", where),
                _number(cells.get("activity"), "activity", where),
                status,
                _number(cells.get("joules"), "joules", where),
            )
        )
    return MeasurementTable(rows)


_OFFICIAL_NAMES = {"vision_transformer": "vit-b16"}


def read_official(path: Path, mode: str) -> list[Measurement]:
    """Read an ``integrated_result*.csv`` of the paper's repository.

    A latency of zero there means out of memory. The throughput column is ignored: for the language
    models it counts the keys of the tokenizer's output instead of the batch.
    """
    rows = []
    with path.open(newline="", encoding="utf-8") as stream:
        try:
            lines = list(csv.DictReader(stream))
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"profiles: {str(path)!r} is no CSV ({error})") from None
        for number, cells in enumerate(lines, start=2):
            where = f"{path.name} line {number}"
            if "model_name" not in cells or "mig_profile" not in cells:
                raise InputError.of(
                    f"columns of {path}", ",".join(cells), "model_name, mig_profile"
                )
            latency = _number(cells.get("latency"), "latency", where)
            name = _OFFICIAL_NAMES.get(cells["model_name"], cells["model_name"])
            if cells.get("seq_length"):
                name = f"{name}-s{int(float(cells['seq_length']))}"
            alive = latency > 0
            rows.append(
                Measurement(
                    name,
                    mode,
                    cells["mig_profile"],
                    _batch(cells.get("batch_size"), where),
                    latency if alive else math.nan,
                    _number(cells.get("fb_used_mean"), "fb_used_mean", where)
                    if alive
                    else math.nan,
                    _number(cells.get("gract_mean"), "gract_mean", where) if alive else math.nan,
                    "ok" if alive else "oom",
                )
            )
    return rows


def load_measurements(path: str | Path) -> MeasurementTable:
    """Read measurements from a CSV file, a folder of runs, or the paper's result folder.

    Parameters
    ----------
    path : path
        A tidy CSV; a folder that `migperf run` wrote (``summary.json`` files); or a folder with
        ``{infer,train}/*/integrated_result*.csv``.

    Raises
    ------
    InputError
        Nothing readable is there.
    """
    place = Path(path)
    if place.is_file():
        return read_table(_read(place), place.name)
    if not place.is_dir():
        raise InputError.of("profiles", str(path), "a CSV file or a folder of measurements")
    rows: list[Measurement] = []
    for mode in ("infer", "train"):
        for file in sorted(place.glob(f"{mode}/*/integrated_result*.csv")):
            rows += read_official(file, mode)
    for file in sorted(place.glob("**/summary.json")):
        rows += _from_summary(file)
    if not rows:
        raise InputError.of(
            "profiles", str(path), "a folder with summary.json or integrated_result*.csv files"
        )
    return MeasurementTable(rows)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"profiles: {str(path)!r} cannot be read ({error})") from None


def _from_summary(path: Path) -> list[Measurement]:
    try:
        data = json.loads(_read(path))
        return [Measurement(**row) for row in data["measurements"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"profiles: {str(path)!r} is no run summary ({error})") from None


def paper_measurements() -> MeasurementTable:
    """Points of the paper's A100-80GB measurements that the demo plans with.

    Mean batch latencies from the authors' repository at commit 5462a7c: ResNet-50, ViT-B/16 and
    BERT-base (sequence length 64) inference on 1g, 2g, 3g and 7g.
    """
    text = (resources.files("migperf") / "data" / "paper_a100_80gb.csv").read_text("utf-8")
    return read_table(text, "paper_a100_80gb.csv")
