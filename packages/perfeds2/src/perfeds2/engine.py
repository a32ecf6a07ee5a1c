"""The simulation: the clock closes rounds, the UEs compute, the server steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import vmap

from . import rng
from .clock import Round, make_clock
from .config import ExperimentConfig
from .data import FederatedData, load_data
from .errors import DivergedError, InputError, require
from .files import read_arrays, write_arrays
from .methods import ClientMethod
from .models import build_model
from .objective import Batch, FlatModel, cross_entropy
from .result import RunResult
from .server import VersionStore, aggregate
from .system import build_system

PURPOSES = (rng.INNER, rng.OUTER, rng.HESSIAN)
Progress = Callable[[int, float, float], None]


class Simulation:
    """Federated training in simulated time.

    Parameters
    ----------
    config : ExperimentConfig
        The experiment.
    model : nn.Module, optional
        Replaces the model of ``config.model``.
    loss : callable, optional
        ``loss(output, target)`` per sample; cross entropy by default.
    dataset : FederatedData, optional
        Replaces the data of ``config.data``.

    Examples
    --------
    >>> from perfeds2 import ExperimentConfig, Simulation
    >>> config = ExperimentConfig.from_dict({"train": {"rounds": 3}})
    >>> result = Simulation(config).run()
    >>> len(result.close_s), result.staleness[:10].tolist()
    (3, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    """

    def __init__(
        self,
        config: ExperimentConfig,
        model: nn.Module | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        dataset: FederatedData | None = None,
    ) -> None:
        self.config = config
        self.data = dataset if dataset is not None else load_data(config)
        require(self.data.ues == config.ues, "dataset", self.data.ues, f"ues = {config.ues} UEs")
        module = model if model is not None else build_model(config.model, self.data, config.seed)
        if config.train.precision == "float64":
            module = module.double()
        self.model = FlatModel(module, loss)
        self.system = build_system(config, self.model.size)
        self.clock = make_clock(self.system, config)
        self.method = ClientMethod(self.model, config.method, config.train.chunk)
        self.weights = self.model.initial()
        self.state = self.method.initial_state(self.weights, config.ues)
        self.store = VersionStore()
        self.store.put(0, self.weights)
        self._log: list[Round] = []
        self._served = np.zeros(config.ues, dtype=np.int64)
        self._history: list[tuple[float, float, float, float]] = []
        self._padded: list[tuple[Int[np.ndarray, " m"], tuple, tuple]] | None = None
        self.ue_loss = np.full(config.ues, np.nan)
        self.ue_accuracy = np.zeros(config.ues)

    def __repr__(self) -> str:
        return (
            f"Simulation({self.config.method.name}, {self.model.size} parameters, "
            f"{self.config.schedule.participants} of {self.config.ues} UEs, "
            f"round {self.clock.round_index})"
        )

    def batches(
        self, ues: Int[np.ndarray, " m"], jobs: Int[np.ndarray, " m"]
    ) -> tuple[Batch, Batch, Batch]:
        """Independent inner, outer and Hessian batches of jobs, (m, steps, batch, ...) each.

        Drawn with replacement from the training samples; they depend on (seed, UE, job) only.
        """
        m = self.config.method
        steps = self.method.batches_needed()
        drawn = []
        for purpose, size in zip(PURPOSES, (m.inner_batch, m.outer_batch, m.hessian_batch)):
            index = rng.choices(
                self.config.seed, ues, purpose, jobs, self.data.train.size[ues], steps * size
            )
            rows = self.data.train.start[ues][:, None] + index
            drawn.append(self.data.train.rows(rows.reshape(len(ues), steps, size)))
        return drawn[0], drawn[1], drawn[2]

    def client_updates(
        self,
        ues: Int[np.ndarray, " m"],
        jobs: Int[np.ndarray, " m"],
        sent: Float[Tensor, "m P"],
        state: Float[Tensor, "m Q"],
    ) -> tuple[Float[Tensor, "m P"], Float[Tensor, "m Q"]]:
        """Compute the UEs' updates from the weights they were sent; a pure function."""
        return self.method.updates(sent, state, *self.batches(ues, jobs))

    def apply(
        self,
        closed: Round,
        updates: Float[Tensor, "m P"],
        sent: Float[Tensor, "m P"],
        keep: Callable[[int], bool] | None = None,
    ) -> None:
        """Server step of a round; rows in ascending order of UE id.

        `keep` says which versions are still needed; by default those of the clock's jobs.
        """
        order = np.argsort(closed.ues, kind="stable")
        np.add.at(self._served, closed.ues, 1)  # FedBuff may hold a UE twice
        self.weights = aggregate(
            self.weights,
            sent,
            updates,
            closed.staleness[order],
            self.data.train.size[closed.ues[order]],
            self.config.server,
            self._served[closed.ues[order]],
        )
        self.store.put(closed.index + 1, self.weights)
        needed = keep or self.clock.is_live
        self.store.evict(lambda v: v == closed.index + 1 or needed(v))
        self._log.append(closed)

    def train_round(self, closed: Round, checkpoint: Path | None = None) -> None:
        """Compute the updates of a closed round at their stale weights and step.

        Raises
        ------
        DivergedError
            When an update is not finite; names the UE and the round.
        """
        order = np.argsort(closed.ues, kind="stable")
        ues = closed.ues[order]
        sent = self.store.stack(closed.versions[order])
        rows = torch.from_numpy(ues)
        updates, state = self.client_updates(ues, closed.jobs[order], sent, self.state[rows])
        finite = torch.isfinite(updates).all(1) & torch.isfinite(state).all(1)
        if not bool(finite.all()):
            ue = int(ues[int(torch.nonzero(~finite)[0, 0])])
            raise DivergedError(ue, closed.index, str(checkpoint) if checkpoint else None)
        if self.method.personal:
            self.state = self.state.clone()
            self.state[rows] = state
        self.apply(closed, updates, sent)

    def evaluate(self, weights: Float[Tensor, " P"] | None = None) -> tuple[float, float]:
        """Mean over UEs of the test loss and accuracy of the personal models.

        Sets `ue_loss` and `ue_accuracy`. Each UE adapts with its own training data; test data are
        used for nothing but this.
        """
        w = self.weights if weights is None else weights
        if self._padded is None:
            room = max(
                1, 40_000_000 // max(1, int(self.data.train.size.max()) * self.data.features)
            )
            groups = np.array_split(np.arange(self.config.ues), -(-self.config.ues // room))
            self._padded = [
                (ids, self.data.train.padded(ids), self.data.test.padded(ids)) for ids in groups
            ]
        for ids, train, test in self._padded:
            personal = self.method.personalised(w, self.state[torch.from_numpy(ids)], train)
            loss, correct = vmap(self._score)(personal, *test)
            self.ue_loss[ids] = loss.double().numpy()
            self.ue_accuracy[ids] = correct.double().numpy()
        return float(self.ue_loss.mean()), float(self.ue_accuracy.mean())

    def _score(self, w: Tensor, x: Tensor, y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model.outputs(w, x)
        total = mask.sum()
        loss = (self.model.per_sample(output, y) * mask).sum() / total
        if self.model.per_sample is not cross_entropy and output.shape[-1:] != (self.data.classes,):
            return loss, torch.zeros_like(loss)
        return loss, ((output.argmax(-1) == y) * mask).sum() / total

    def run(
        self,
        target_loss: float | None = None,
        rounds: int | None = None,
        max_events: int | None = None,
        checkpoint: str | Path | None = None,
        progress: Progress | None = None,
    ) -> RunResult:
        """Run until the target loss, the number of rounds or the simulated time is reached.

        Parameters
        ----------
        target_loss, rounds : optional
            Replace the values of ``config.train``; `rounds` counts from the start of training.
        max_events : int, optional
            Stop after so many clock events, also inside a round.
        checkpoint : path, optional
            File for checkpoints, every ``config.train.checkpoint_every`` rounds and at a failure.
        progress : callable, optional
            Called with (round, seconds, loss) after each evaluation.

        Raises
        ------
        DivergedError
            When an update is not finite.
        InfeasibleError
            When a round can never close.
        """
        t = self.config.train
        if t.threads:
            torch.set_num_threads(t.threads)
        target = t.target_loss if target_loss is None else target_loss
        limit = t.rounds if rounds is None else rounds
        path = Path(checkpoint) if checkpoint else None
        last_event = None if max_events is None else self.clock.events + max_events
        if not self._history:
            self._record(0, progress)
        stop = "rounds"
        while self.clock.round_index < limit:
            before = self._snapshot() if path else None
            left = None if last_event is None else last_event - self.clock.events
            closed = self.clock.next_round(left)
            if closed is None:
                stop = "events"
                break
            if t.max_time_s and closed.close_s > t.max_time_s:
                stop = "time"
                break
            k = closed.index + 1
            loss = np.inf
            try:
                self.train_round(closed, path)
                if k % t.eval_every == 0 or k == limit:
                    loss = self._record(k, progress, path)
            except DivergedError:
                if path and before:
                    self._return_to(before)
                    self.save(path)
                raise
            if loss < target:
                stop = "target"
                break
            if path and t.checkpoint_every and k % t.checkpoint_every == 0:
                self.save(path)
        if path:
            self.save(path)
        return self.result(stop)

    def _snapshot(self) -> tuple[dict[str, np.ndarray], Tensor, Tensor, list[tuple[int, Tensor]]]:
        return self.clock.state(), self.weights, self.state, self.store.items()

    def _return_to(
        self,
        before: tuple[dict[str, np.ndarray], Tensor, Tensor, list[tuple[int, Tensor]]],
    ) -> None:
        """Undo the last round."""
        clock, self.weights, self.state, held = before
        self.clock.restore(clock)
        self.store = VersionStore()
        for version, weights in held:
            self.store.put(version, weights)
        self._log = self._log[: self.clock.round_index]
        self._count_served()

    def _count_served(self) -> None:
        self._served[:] = 0
        for closed in self._log:
            np.add.at(self._served, closed.ues, 1)

    def record(self) -> float:
        """Evaluate the current weights and add a point to the history; return the loss."""
        return self._record(len(self._log), None)

    def _record(
        self, round_index: int, progress: Progress | None, path: Path | None = None
    ) -> float:
        loss, accuracy = self.evaluate()
        if not np.isfinite(loss):
            ue = int(np.flatnonzero(~np.isfinite(self.ue_loss))[0])
            raise DivergedError(ue, max(round_index - 1, 0), str(path) if path else None)
        seconds = self._log[-1].close_s if self._log else 0.0
        self._history.append((float(round_index), seconds, loss, accuracy))
        if progress:
            progress(round_index, seconds, loss)
        return loss

    def result(self, stop: str = "rounds") -> RunResult:
        """Collect what has been recorded so far."""
        history = np.array(self._history, dtype=float).reshape(-1, 4)
        log = self._log
        empty = np.empty(0)

        def column(name: str, kind: type) -> np.ndarray:
            parts = [getattr(r, name) for r in log] or [empty]
            return np.concatenate(parts).astype(kind)

        return RunResult(
            config=self.config,
            eval_round=history[:, 0].astype(np.int64),
            eval_s=history[:, 1],
            loss=history[:, 2],
            accuracy=history[:, 3],
            ue_loss=self.ue_loss.copy(),
            ue_accuracy=self.ue_accuracy.copy(),
            close_s=np.array([r.close_s for r in log]),
            counts=np.array([len(r.ues) for r in log], dtype=np.int64),
            arrival_s=column("arrival_s", np.float64),
            ues=column("ues", np.int64),
            versions=column("versions", np.int64),
            jobs=column("jobs", np.int64),
            bandwidth_hz=column("bandwidth_hz", np.float64),
            weights=self.weights.numpy().copy(),
            stop=stop,
            compute_s=self.system.compute_s,
            upload_bits=self.system.bits,
            compute_j=self.system.compute_j,
            power_w=self.system.power_w,
        )

    def save(self, path: str | Path) -> Path:
        """Write a checkpoint atomically; valid after any event."""
        arrays: dict[str, np.ndarray] = {
            f"clock/{name}": value for name, value in self.clock.state().items()
        }
        for version, weights in self.store.items():
            arrays[f"weights/{version}"] = weights.numpy()
        result = self.result()
        for name in (
            "close_s", "counts", "arrival_s", "ues", "versions", "jobs", "bandwidth_hz", "ue_loss",
            "ue_accuracy",
        ):  # fmt: skip
            arrays[f"log/{name}"] = getattr(result, name)
        arrays["history"] = np.array(self._history, dtype=float).reshape(-1, 4)
        arrays["state"] = self.state.numpy()
        arrays["global"] = self.weights.numpy()
        arrays["meta"] = np.array(json.dumps({"config": self.config.to_dict()}))
        return write_arrays(path, arrays)

    @classmethod
    def load(
        cls,
        path: str | Path,
        model: nn.Module | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        dataset: FederatedData | None = None,
    ) -> Simulation:
        """Continue from a checkpoint; equal, bit for bit, to a run that was not interrupted."""
        arrays = read_arrays(path, "checkpoint")
        try:
            config = ExperimentConfig.from_dict(json.loads(str(arrays["meta"]))["config"])
            sim = cls(config, model, loss, dataset)
            sim._restore(arrays)
        except (KeyError, json.JSONDecodeError, TypeError) as error:
            raise InputError(
                f"checkpoint = {str(path)!r}: allowed is a file of perfeds2; missing {error}"
            ) from None
        return sim

    def _restore(self, arrays: dict[str, np.ndarray]) -> None:
        prefix = "clock/"
        clock = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
        self.clock.restore(clock)
        self.weights = torch.from_numpy(arrays["global"])
        self.state = torch.from_numpy(arrays["state"])
        self.store = VersionStore()
        for name, value in arrays.items():
            if name.startswith("weights/"):
                self.store.put(int(name.removeprefix("weights/")), torch.from_numpy(value))
        self._history = [tuple(row) for row in arrays["history"].tolist()]
        self.ue_loss, self.ue_accuracy = arrays["log/ue_loss"], arrays["log/ue_accuracy"]
        cuts = np.cumsum(arrays["log/counts"])[:-1]
        columns = [
            np.split(arrays[f"log/{name}"], cuts)
            for name in ("ues", "versions", "jobs", "arrival_s", "bandwidth_hz")
        ]
        closes = arrays["log/close_s"].tolist()
        self._log = [Round(k, t, *(c[k] for c in columns)) for k, t in enumerate(closes)]
        self._count_served()
