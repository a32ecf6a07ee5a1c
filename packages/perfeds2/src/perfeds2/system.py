"""The UEs of an experiment as arrays: compute time, channel, payload; random cell or trace."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from . import rng
from .channel import check_power_w, path_gain, snr_density_hz
from .config import ExperimentConfig, SystemConfig
from .energy import compute_energy_j, compute_time_s, upload_energy_j
from .errors import InputError, require


@dataclass(frozen=True)
class System:
    """UEs of one cell.

    Attributes
    ----------
    compute_s : float array of shape (n,)
        Mean compute time of one update in seconds.
    snr_hz : float array of shape (n,)
        Mean received power over noise density in Hz (fading multiplies it).
    bits : float array of shape (n,)
        Payload of one upload.
    compute_j : float array of shape (n,)
        Energy of computing one update in joules.
    power_w : float array of shape (n,)
        Transmit power.
    config : SystemConfig
        Band, fading, outage and laws.
    """

    compute_s: Float[np.ndarray, " ues"]
    snr_hz: Float[np.ndarray, " ues"]
    bits: Float[np.ndarray, " ues"]
    compute_j: Float[np.ndarray, " ues"]
    power_w: Float[np.ndarray, " ues"]
    config: SystemConfig

    @property
    def ues(self) -> int:
        """Number of UEs."""
        return len(self.compute_s)

    @property
    def fading_floor(self) -> float:
        """Channel gain below which a draw is an outage."""
        p = self.config.outage_probability if self.config.fading else 0.0
        return -math.log1p(-p)

    def upload_energy_j(self, upload_s: Float[np.ndarray, " ues"]) -> Float[np.ndarray, " ues"]:
        """Radio energy in joules of uploads of the given lengths."""
        return upload_energy_j(self.power_w, upload_s)

    def __repr__(self) -> str:
        return (
            f"System({self.ues} UEs, compute {np.median(self.compute_s):.3g} s, "
            f"SNR density {np.median(self.snr_hz):.3g} Hz, {np.median(self.bits):.0f} bit, "
            f"band {self.config.bandwidth_hz:.3g} Hz)"
        )


def build_system(config: ExperimentConfig, parameters: int = 0) -> System:
    """UEs of an experiment, from its seed or its trace file.

    Parameters
    ----------
    config : ExperimentConfig
        Experiment; `system` and `method` are used.
    parameters : int
        Model size, for the payload when ``system.payload_bits`` is 0.

    Examples
    --------
    >>> from perfeds2 import ExperimentConfig
    >>> build_system(ExperimentConfig(), parameters=650).bits[0]
    np.float64(20800.0)
    """
    s, n = config.system, config.ues
    m = config.method
    samples = s.samples_per_update or (m.inner_batch + m.outer_batch + m.hessian_batch)
    payload = s.payload_bits or 32.0 * parameters
    require(payload > 0, "system.payload_bits", payload, "positive bits when there is no model")
    columns: dict[str, np.ndarray] = read_trace(s.trace, n) if s.trace else {}
    ids = np.arange(n)
    if "frequency_hz" in columns:
        frequency = columns["frequency_hz"]
    else:
        u = rng.uniforms(config.seed, ids, rng.SPEED)[:, 0]
        frequency = s.frequency_min_hz + u * (s.frequency_max_hz - s.frequency_min_hz)
    power = columns.get("power_w", np.full(n, s.power_w))
    if "snr_density_hz" in columns:
        snr = columns["snr_density_hz"]
    else:
        if "distance_m" in columns:
            distance = columns["distance_m"]
        else:
            v = rng.uniforms(config.seed, ids, rng.PLACEMENT)[:, 0]
            low, high = s.min_distance_m**2, s.radius_m**2
            distance = np.sqrt(low + v * (high - low))
        snr = snr_density_hz(
            power, path_gain(distance, s.path_loss, s.path_loss_exponent), s.noise_dbm_per_hz
        )
    cycles = columns.get("cycles_per_sample", np.full(n, s.cycles_per_sample))
    compute = columns.get("compute_s", compute_time_s(cycles, samples, frequency))
    bits = columns.get("bits", np.full(n, float(payload)))
    energy = compute_energy_j(cycles, samples, frequency, s.capacitance)
    return System(compute, snr, bits, energy, power, s)


TRACE_COLUMNS = (
    "frequency_hz",
    "distance_m",
    "power_w",
    "snr_density_hz",
    "cycles_per_sample",
    "compute_s",
    "bits",
)


def read_trace(path: str | Path, ues: int | None = None) -> dict[str, Float[np.ndarray, " ues"]]:
    """Columns of a CSV file with a header and one row per UE.

    Parameters
    ----------
    path : path
        File with any of the columns `TRACE_COLUMNS`; a column ``ue`` must count 0, 1, 2, ...
    ues : int, optional
        Number of rows to expect.

    Raises
    ------
    InputError
        With file, line and column of the first unusable value.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file, strict=True))
    except FileNotFoundError:
        raise InputError(f"trace = {str(path)!r}: allowed is an existing CSV file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        text = " ".join(str(error).split())
        raise InputError(f"trace = {str(path)!r}: allowed is a CSV file; {text}") from None
    rows = [row for row in rows if row]
    if len(rows) < 2:
        raise InputError(f"trace = {str(path)!r}: allowed is a header and at least one row")
    header = [name.strip() for name in rows[0]]
    for name in header:
        if name not in (*TRACE_COLUMNS, "ue") or header.count(name) > 1:
            raise InputError(
                f"{path.name}: column {name!r}: allowed are, once each, ue, "
                f"{', '.join(TRACE_COLUMNS)}"
            )
    table = np.empty((len(rows) - 1, len(header)))
    for line, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise InputError(
                f"{path.name}, line {line}: {len(row)} values; allowed are {len(header)}"
            )
        for column, text in enumerate(row):
            try:
                value = float(text)
            except ValueError:
                value = math.nan
            lowest = -1.0 if header[column] == "ue" else 0.0
            if not (math.isfinite(value) and value > lowest):
                raise InputError(
                    f"{path.name}, line {line}, column {header[column]} = {text!r}: "
                    "allowed is a finite positive number"
                )
            table[line - 2, column] = value
    columns = {name: table[:, i].copy() for i, name in enumerate(header)}
    order = columns.pop("ue", np.arange(len(table)))
    if not np.array_equal(order, np.arange(len(table))):
        raise InputError(f"{path.name}: column ue: allowed are 0, 1, 2, ... in order")
    if ues is not None and len(table) != ues:
        raise InputError(f"{path.name}: {len(table)} rows; allowed are ues = {ues}")
    if "power_w" in columns:
        check_power_w(columns["power_w"], f"{path.name} column power_w")
    return columns
