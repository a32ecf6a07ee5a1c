"""What a run leaves behind: history, updates, per-UE accuracy; plain arrays, savable."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from .config import ExperimentConfig
from .errors import InputError
from .files import read_arrays, write_arrays

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SCHEMA_VERSION = 1


@dataclass
class RunResult:
    """Outcome of a simulation.

    Attributes
    ----------
    config : ExperimentConfig
        What was run.
    eval_round, eval_s, loss, accuracy : arrays of shape (evaluations,)
        Rounds, simulated seconds, mean personalised test loss and accuracy over UEs.
    ue_loss, ue_accuracy : float arrays of shape (n,)
        Personalised test loss and accuracy of each UE at the end.
    close_s, counts : arrays of shape (K,)
        End and size of each round.
    arrival_s, ues, versions, jobs, bandwidth_hz : arrays of shape (updates,)
        Updates in the order of their arrival, round by round.
    weights : float array of shape (P,)
        Final global weights.
    stop : str
        ``target``, ``rounds``, ``time`` or ``events``.
    compute_s, upload_bits, compute_j : float arrays of shape (n,)
        Mean compute time, payload and compute energy of one update.
    """

    config: ExperimentConfig
    eval_round: Int[np.ndarray, " evaluations"]
    eval_s: Float[np.ndarray, " evaluations"]
    loss: Float[np.ndarray, " evaluations"]
    accuracy: Float[np.ndarray, " evaluations"]
    ue_loss: Float[np.ndarray, " ues"]
    ue_accuracy: Float[np.ndarray, " ues"]
    close_s: Float[np.ndarray, " rounds"]
    counts: Int[np.ndarray, " rounds"]
    arrival_s: Float[np.ndarray, " updates"]
    ues: Int[np.ndarray, " updates"]
    versions: Int[np.ndarray, " updates"]
    jobs: Int[np.ndarray, " updates"]
    bandwidth_hz: Float[np.ndarray, " updates"]
    weights: Float[np.ndarray, " P"]
    stop: str
    compute_s: Float[np.ndarray, " ues"]
    upload_bits: Float[np.ndarray, " ues"]
    compute_j: Float[np.ndarray, " ues"]
    power_w: Float[np.ndarray, " ues"]
    schema_version: int = field(default=SCHEMA_VERSION)

    @property
    def rounds(self) -> Int[np.ndarray, " updates"]:
        """Round of each update."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @property
    def staleness(self) -> Int[np.ndarray, " updates"]:
        """Rounds by which each update was behind."""
        return np.asarray(self.rounds - self.versions)

    @property
    def participation(self) -> Float[np.ndarray, " ues"]:
        """Relative participation eta_i of each UE."""
        return np.bincount(self.ues, minlength=self.config.ues) / max(len(self.counts), 1)

    @property
    def started_s(self) -> Float[np.ndarray, " updates"]:
        """When the UE received the weights of each update (end of the round before its version)."""
        return np.asarray(np.concatenate([[0.0], self.close_s])[self.versions])

    @property
    def energy_j(self) -> float:
        """Energy of all used updates: computing, and sending from the end of computing.

        Waiting for a share of the band counts as sending; an upper estimate.
        """
        on_air = self.arrival_s - self.started_s - self.compute_s[self.ues]
        air = self.power_w[self.ues] * np.maximum(on_air, 0.0)
        return float(self.compute_j[self.ues].sum() + air.sum())

    @property
    def uplink_bits(self) -> float:
        """Bits of all used updates."""
        return float(self.upload_bits[self.ues].sum())

    @property
    def jain_fairness(self) -> float:
        """Jain's index of the UEs' accuracies, 1 when all are equal."""
        a = self.ue_accuracy
        return float(a.sum() ** 2 / (len(a) * (a**2).sum())) if a.any() else 0.0

    def time_to(self, target_loss: float) -> float:
        """Return the simulated seconds until the test loss was below a target; inf if never."""
        below = np.flatnonzero(self.loss < target_loss)
        return float(self.eval_s[below[0]]) if below.size else float("inf")

    def rounds_to(self, target_loss: float) -> float:
        """Server rounds until the test loss was first below a target; inf if it never was."""
        below = np.flatnonzero(self.loss < target_loss)
        return float(self.eval_round[below[0]]) if below.size else float("inf")

    def summary(self) -> dict[str, Any]:
        """Collect the figures a table shows."""
        tau = self.staleness
        eta = self.participation
        least = float(eta.min())
        return {
            "rounds": len(self.counts),
            "simulated_s": float(self.close_s[-1]) if len(self.close_s) else 0.0,
            "loss": float(self.loss[-1]) if len(self.loss) else None,
            "accuracy": float(self.accuracy[-1]) if len(self.accuracy) else None,
            "stop": self.stop,
            "mean_staleness": float(tau.mean()) if len(tau) else 0.0,
            "max_staleness": int(tau.max()) if len(tau) else 0,
            "participation_ratio": float(eta.max() / least) if least > 0 else None,
            "jain_fairness": self.jain_fairness,
            "uplink_bits": self.uplink_bits,
            "energy_j": self.energy_j,
        }

    def to_frame(self) -> Float[np.ndarray, " evaluations"]:
        """History as a structured array (columns round, seconds, loss, accuracy)."""
        columns = [self.eval_round, self.eval_s, self.loss, self.accuracy]
        names = ("round", "seconds", "loss", "accuracy")
        table = np.empty(
            len(self.loss), dtype=[(name, column.dtype) for name, column in zip(names, columns)]
        )
        for name, column in zip(names, columns):
            table[name] = column
        return table

    def plot(self, ax: Axes | None = None) -> Axes:
        """Test loss against simulated seconds."""
        import matplotlib.pyplot as plt

        if ax is None:
            _, ax = plt.subplots()
        ax.plot(self.eval_s, self.loss)
        ax.set_xlabel("simulated seconds")
        ax.set_ylabel("personalised test loss")
        return ax

    def __repr__(self) -> str:
        s = self.summary()
        loss = "nan" if s["loss"] is None else f"{s['loss']:.4g}"
        return (
            f"RunResult({s['rounds']} rounds, {s['simulated_s']:.4g} simulated s, loss {loss}, "
            f"max staleness {s['max_staleness']}, stopped by {self.stop})"
        )

    _ARRAYS = (
        "eval_round", "eval_s", "loss", "accuracy", "ue_loss", "ue_accuracy", "close_s", "counts",
        "arrival_s", "ues", "versions", "jobs", "bandwidth_hz", "weights", "compute_s",
        "upload_bits", "compute_j", "power_w",
    )  # fmt: skip

    def save(self, path: str | Path) -> Path:
        """Write an npz file atomically."""
        arrays = {name: getattr(self, name) for name in self._ARRAYS}
        arrays["meta"] = np.array(
            json.dumps(
                {
                    "schema_version": SCHEMA_VERSION,
                    "stop": self.stop,
                    "config": self.config.to_dict(),
                }
            )
        )
        return write_arrays(path, arrays)

    @classmethod
    def load(cls, path: str | Path) -> RunResult:
        """Read what `save` wrote."""
        arrays = read_arrays(path, "run")
        try:
            meta = json.loads(str(arrays.pop("meta")))
            config = ExperimentConfig.from_dict(meta["config"])
            columns: dict[str, Any] = {name: arrays[name] for name in cls._ARRAYS}
            return cls(config=config, stop=meta["stop"], **columns)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise InputError(
                f"run = {str(path)!r}: allowed is a file written by perfeds2 run; missing {error}"
            ) from None
