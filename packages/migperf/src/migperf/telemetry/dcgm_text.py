"""Text that DCGM tools write: logs of samples, and the Prometheus page of dcgm-exporter."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from prometheus_client.parser import text_string_to_metric_families

from ..errors import InputError

__all__ = ["FIELDS", "SampleLog", "WindowMean", "parse_exporter", "read_log"]

# Field ids, their older names, and the names of the 2026 headers.
FIELDS: dict[int, tuple[str, ...]] = {
    1001: ("gr_engine_active", "GRACT", "gr_engine_util_ratio"),
    1002: ("sm_active", "SMACT", "sm_util_ratio"),
    1003: ("sm_occupancy", "SMOCC", "sm_occupancy_ratio"),
    1004: ("tensor_active", "TENSO", "tensor_util_ratio"),
    1005: ("dram_active", "DRAMA", "dram_util_ratio"),
    1006: ("fp64_active", "FP64A"),
    1007: ("fp32_active", "FP32A"),
    1008: ("fp16_active", "FP16A"),
    155: ("power_usage", "POWER"),
    156: ("total_energy_consumption", "TOTEC"),
    203: ("gpu_util", "GPUTL"),
    250: ("fb_total", "FBTTL"),
    251: ("fb_free", "FBFRE"),
    252: ("fb_used", "FBUSD"),
    253: ("fb_reserved", "FBRSV"),
}
_BY_NAME = {alias.lower(): names[0] for names in FIELDS.values() for alias in names}


@dataclass(frozen=True)
class WindowMean:
    """Mean and population standard deviation over a window; NaN without samples."""

    mean: float
    std: float
    samples: int


class SampleLog:
    """A log of samples, one row per entity and second.

    Parameters
    ----------
    times : array of int, shape (n,), seconds
        Unix time of each row.
    entities : array of int, shape (n,)
        Entity (GPU or GPU instance) of each row.
    columns : dict of str to array, shape (n,)
        Values by field name; NaN where the log says ``N/A``.
    """

    def __init__(
        self,
        times: Int[np.ndarray, " n"],
        entities: Int[np.ndarray, " n"],
        columns: dict[str, Float[np.ndarray, " n"]],
    ) -> None:
        self.times = times
        self.entities = entities
        self.columns = columns

    def __repr__(self) -> str:
        return f"SampleLog({self.times.size} rows: {', '.join(self.columns)})"

    def window(self, field: str, start: float, end: float, entity: int | None = None) -> WindowMean:
        """Mean over ``start <= time <= end``, both inclusive; ``N/A`` samples are left out."""
        if field not in self.columns:
            raise InputError.of("field", field, ", ".join(self.columns))
        inside = (self.times >= start) & (self.times <= end)
        if entity is not None:
            inside &= self.entities == entity
        values = self.columns[field][inside]
        values = values[~np.isnan(values)]
        if values.size == 0:
            return WindowMean(math.nan, math.nan, 0)
        return WindowMean(float(values.mean()), float(values.std()), int(values.size))


def read_log(path: str | Path) -> SampleLog:
    """Read a CSV log with the columns ``EntityId``, ``TimeStamp`` and DCGM field names.

    Raises
    ------
    InputError
        A column is unknown or a cell is neither a number nor ``N/A``.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as stream:
            rows = list(csv.reader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"log: {str(path)!r} cannot be read ({error})") from None
    header = rows[0] if rows else []
    if "EntityId" not in header or "TimeStamp" not in header:
        raise InputError.of(f"columns of {path}", header, "EntityId, TimeStamp and DCGM fields")
    names = [h if h in ("EntityId", "TimeStamp") else _BY_NAME.get(h.lower(), "") for h in header]
    if "" in names:
        raise InputError.of(f"column of {path}", header[names.index("")], ", ".join(_BY_NAME))
    data: dict[str, list[float]] = {n: [] for n in names}
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise InputError(
                f"log: line {number} of {path} has {len(row)} cells, not {len(header)}"
            )
        for name, cell in zip(names, row, strict=True):
            try:
                data[name].append(math.nan if cell in ("N/A", "") else float(cell))
            except ValueError:
                raise InputError(
                    f"log: line {number} of {path}: {cell!r} is not allowed; allowed: number or N/A"
                ) from None
    times = np.array(data.pop("TimeStamp"))
    entities = np.array(data.pop("EntityId"))
    if np.isnan(times).any() or np.isnan(entities).any():
        raise InputError(f"log: {path} has rows without TimeStamp or EntityId")
    return SampleLog(
        times.astype(np.int64), entities.astype(np.int64), {k: np.array(v) for k, v in data.items()}
    )


def parse_exporter(text: str) -> dict[tuple[str, str, str], float]:
    """Read a Prometheus page of dcgm-exporter.

    Returns
    -------
    dict of (field, gpu, GPU instance id) to float
        The instance id is empty for the whole GPU. Ratios stay 0 to 1.

    Examples
    --------
    >>> page = 'DCGM_FI_PROF_GR_ENGINE_ACTIVE{gpu="0",GPU_I_ID="2"} 0.5'
    >>> parse_exporter(page)
    {('gr_engine_active', '0', '2'): 0.5}
    """
    found = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                name = sample.name
                for prefix in ("DCGM_FI_PROF_", "DCGM_FI_DEV_"):
                    name = name.removeprefix(prefix)
                field = _BY_NAME.get(name.lower())
                if field is not None:
                    gpu, part = sample.labels.get("gpu", ""), sample.labels.get("GPU_I_ID", "")
                    found[field, gpu, part] = float(sample.value)
    except (ValueError, IndexError, KeyError) as error:
        raise InputError(f"exporter page: not in Prometheus text format ({error})") from None
    return found
