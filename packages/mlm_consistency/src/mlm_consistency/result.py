"""Results of a measurement, their summary, files and comparison."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError, require
from .files import write_atomic, write_json
from .stats import bootstrap, paired_bootstrap
from .tables import PairTable

SCHEMA_VERSION = 1

# name in the summary: column, absolute value first?, statistic
_SUMMARY = {
    "gamma": ("u_gamma_gold", True),
    "gamma_grid": ("u_gamma_median", False),
    "gamma_max": ("u_gamma_max", False),
    "curl_rms": ("u_curl_rms", False),
    "gibbs_tv": ("u_gibbs_tv", False),
    "ag_objective": ("u_ag_objective", False),
    "path": ("p_path_gold", True),
    "path_relative": ("p_relative_gold", False),
    "marginal_tv": ("m_tv_i", False),
}
LEVEL_OF = {
    "gamma": "U", "gamma_grid": "U", "gamma_max": "U", "curl_rms": "U", "gibbs_tv": "U",
    "ag_objective": "U", "path": "P", "path_relative": "P", "disagreement": "P",
    "marginal_tv": "M",
}  # fmt: skip


def column(rows: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    """One column of the rows as floats; NaN where a row has none."""
    return np.asarray([float(row.get(name, np.nan)) for row in rows])


def summarise(
    rows: Sequence[dict[str, Any]], floor: dict[str, Any], seed: int = 0
) -> dict[str, Any]:
    """Medians, means and 90 % quantiles with bootstrap intervals, per measure and level."""
    summary: dict[str, Any] = {"n": len(rows)}
    for name, (source, absolute) in _SUMMARY.items():
        values = column(rows, source)
        values = np.abs(values[np.isfinite(values)]) if absolute else values[np.isfinite(values)]
        if not len(values):
            continue
        summary[name] = {
            "level": LEVEL_OF[name],
            "median": bootstrap(values, np.median, seed).estimate,
            "median_interval": _ends(values, np.median, seed),
            "mean": float(values.mean()),
            "mean_interval": _ends(values, np.mean, seed),
            "p90": float(np.quantile(values, 0.9)),
        }
    flags = column(rows, "p_disagreement")
    flags = flags[np.isfinite(flags)]
    if len(flags):
        summary["disagreement"] = {
            "level": "P",
            "mean": float(flags.mean()),
            "mean_interval": _ends(flags, np.mean, seed),
        }
    joints: dict[str, Any] = {}
    pattern = re.compile(r"joint_(.+)_([up]_nll)")
    for key in sorted({k for row in rows for k in row}):
        if match := pattern.fullmatch(key):
            values = column(rows, key)
            joints.setdefault(match[1], {})[match[2]] = {
                "mean": float(np.nanmean(values)),
                "mean_interval": _ends(values, np.mean, seed),
            }
    summary["joints"] = joints
    if "gamma" in summary and floor.get("gamma_p95") is not None:
        summary["gamma"]["floor_p95"] = floor["gamma_p95"]
        summary["path_floor_p95"] = floor["path_p95"]
        above = np.abs(column(rows, "u_gamma_gold")) > floor["gamma_p95"]
        summary["gamma"]["share_above_floor"] = float(above.mean())
    return summary


def _ends(values: np.ndarray, statistic: Any, seed: int) -> list[float]:
    found = bootstrap(values, statistic, seed)
    return [found.low, found.high]


@dataclass(frozen=True)
class ConsistencyReport:
    """Result of `ConsistencyEvaluator.measure`.

    Parameters
    ----------
    rows : list of dict
        One per probe; the first letter of a column is its level (u, p, m), ``joint_`` for joints.
    summary : dict
    skipped : dict
        Why sentences or probes were left out, with counts.
    floor : dict
        Noise floor: how far the gaps move when they are computed more exactly.
    settings : dict
    tables : list of PairTable
        Only on a fresh measurement; not saved.
    """

    rows: list[dict[str, Any]]
    summary: dict[str, Any]
    skipped: dict[str, int]
    floor: dict[str, Any]
    settings: dict[str, Any]
    tables: list[PairTable] = field(default_factory=list, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Everything but the rows."""
        return {
            "schema_version": SCHEMA_VERSION,
            "settings": self.settings,
            "summary": self.summary,
            "skipped": self.skipped,
            "floor": self.floor,
            "worst": self.worst(5),
        }

    def to_frame(self) -> Any:
        """One row per probe."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def worst(self, n: int = 5) -> list[dict[str, Any]]:
        """Probes with the largest gaps: text, quadruple in words, gap."""
        order = np.argsort(-column(self.rows, "u_gamma_max"), kind="stable")[:n]
        return [
            {
                "id": self.rows[i]["id"],
                "text": self.rows[i]["text"],
                "quadruple": self.rows[i]["u_worst"],
                "gap": self.rows[i]["u_gamma_max"],
            }
            for i in order
        ]

    def plot(self, ax: Any = None) -> Any:
        """Histogram of the gold gaps with the noise floor."""
        from .figures import gap_histogram

        return gap_histogram(self, ax)

    def save(self, out: str | Path) -> Path:
        """Write report.json, probes.parquet, probes.csv and report.html into a folder."""
        from .report import measurement_page

        out = Path(out)
        frame = self.to_frame()
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False)
        write_atomic(out / "probes.parquet", lambda file: file.write(buffer.getvalue()))
        text = frame.to_csv(index=False)
        write_atomic(out / "probes.csv", lambda file: file.write(text.encode()))
        write_json(out / "report.json", self.to_json())
        measurement_page(self, out / "report.html")
        return out / "report.html"

    @classmethod
    def load(cls, folder: str | Path) -> ConsistencyReport:
        """Read what `save` wrote."""
        import pandas as pd

        folder = Path(folder)
        try:
            content = json.loads((folder / "report.json").read_text())
            frame = pd.read_parquet(folder / "probes.parquet")
            rows = [
                {k: v for k, v in row.items() if v is not None}
                for row in frame.to_dict(orient="records")
            ]
            return cls(
                rows, content["summary"], content["skipped"], content["floor"], content["settings"]
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            text = " ".join(str(error).split())[:160]
            raise InputError(
                f"run = {str(folder)!r}: allowed is a folder written by measure; {text}"
            ) from None

    def __repr__(self) -> str:
        gamma = self.summary.get("gamma", {})
        path = self.summary.get("path", {})
        return (
            f"ConsistencyReport({self.settings.get('model')!r}, {len(self.rows)} probes, median"
            f" |gamma| {gamma.get('median', float('nan')):.4g}, median |path|"
            f" {path.get('median', float('nan')):.4g}, floor"
            f" {self.floor.get('gamma_p95', float('nan')):.1e})"
        )


_GATE = re.compile(r"^\s*([a-z_]+)\.(median|mean|p90)\s*([<>])\s*([+-]?\d+(?:\.\d+)?)\s*(%?)\s*$")


@dataclass(frozen=True)
class Gate:
    """A condition under which a comparison fails, such as ``gamma.median>+5%``."""

    measure: str
    statistic: str
    sign: str
    amount: float
    percent: bool

    @classmethod
    def parse(cls, text: str) -> Gate:
        """Read ``measure.statistic>+5%`` (relative change) or ``measure.statistic>0.7`` (level)."""
        match = _GATE.match(text)
        if not match:
            raise InputError(
                f"fail_if = {text!r}: allowed is MEASURE.STATISTIC>NUMBER[%], as gamma.median>+5%"
            )
        return cls(match[1], match[2], match[3], float(match[4]), bool(match[5]))

    def fails(self, before: float, after: float) -> bool:
        """Whether the condition holds for B against A."""
        value = 100 * (after / before - 1) if self.percent and before else after
        return value > self.amount if self.sign == ">" else value < self.amount


def compare(
    first: ConsistencyReport, second: ConsistencyReport, gates: Sequence[str] = (), seed: int = 0
) -> dict[str, Any]:
    """Is B more consistent than A? Paired over common probes where there are any.

    Returns
    -------
    dict
        ``rows`` (measure, A, B, change, interval of the mean difference, p-values), ``failed``
        gates, ``paired`` number of common probes.
    """
    left = {row["id"]: row for row in first.rows}
    right = {row["id"]: row for row in second.rows}
    common = [k for k in left if k in right and left[k]["text"] == right[k]["text"]]
    rows = []
    for name, (source, absolute) in _SUMMARY.items():
        if name not in first.summary or name not in second.summary:
            continue
        before, after = first.summary[name]["median"], second.summary[name]["median"]
        row: dict[str, Any] = {
            "measure": name,
            "level": LEVEL_OF[name],
            "a": before,
            "b": after,
            "change_percent": 100 * (after / before - 1) if before else None,
        }
        if len(common) >= 2:
            x = column([left[k] for k in common], source)
            y = column([right[k] for k in common], source)
            if absolute:
                x, y = np.abs(x), np.abs(y)
            good = np.isfinite(x) & np.isfinite(y)
            if good.sum() >= 2:
                found = paired_bootstrap(x[good], y[good], seed, 4000)
                row["mean_reduction"] = found.difference.estimate
                row["interval"] = [found.difference.low, found.difference.high]
                row["p_b_smaller"] = found.p_value
        rows.append(row)
    failed = []
    for text in gates:
        gate = Gate.parse(text)
        values = []
        for side in (first, second):
            entry = side.summary.get(gate.measure)
            require(
                entry is not None and gate.statistic in entry,
                "fail_if",
                text,
                f"a measure of both runs: {', '.join(r['measure'] for r in rows)}",
            )
            assert entry is not None
            values.append(float(entry[gate.statistic]))
        if gate.fails(*values):
            failed.append(f"{text}: A {values[0]:.4g}, B {values[1]:.4g}")
    return {
        "schema_version": SCHEMA_VERSION,
        "a": first.settings,
        "b": second.settings,
        "paired": len(common),
        "rows": rows,
        "failed": failed,
    }


__all__ = ["ConsistencyReport", "Gate", "compare", "summarise"]
