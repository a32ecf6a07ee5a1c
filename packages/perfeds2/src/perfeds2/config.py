"""Configuration of an experiment: frozen dataclasses, one per TOML table, checked on load."""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .channel import check_power_w
from .errors import InputError, require

NO_BOUND = -1  # staleness without a bound


@dataclass(frozen=True)
class DataConfig:
    """Where the samples come from and how they are split over UEs.

    Attributes
    ----------
    source : str
        ``digits`` (inside scikit-learn), ``npz`` (arrays ``train_<ue>_x`` ...), ``folder``
        (one npz per UE), ``text`` (a play, split by speaker) or ``synthetic``.
    path : str
        File or folder of ``npz``, ``folder`` and ``text``.
    partition : str
        ``classes``, ``dirichlet``, ``shards``, ``quantity_lognormal`` or ``by_key``.
    labels_per_ue : int
        Labels each UE holds (``classes``, ``shards``).
    concentration : float
        Dirichlet concentration, or the sigma of ``quantity_lognormal``.
    test_fraction : float
        Share of each UE's samples kept for testing.
    """

    source: str = "digits"
    path: str = ""
    partition: str = "classes"
    labels_per_ue: int = 4
    concentration: float = 0.5
    test_fraction: float = 0.25


@dataclass(frozen=True)
class ModelConfig:
    """Model of every UE: ``softmax``, ``mlp``, ``cnn`` or ``chargru``."""

    kind: str = "softmax"
    hidden: int = 32


@dataclass(frozen=True)
class SystemConfig:
    """Cell, radio and processors; the defaults are ours.

    Attributes
    ----------
    bandwidth_hz : float
        Uplink band of the cell.
    power_w : float
        Transmit power of a UE in watts (10 dBm are 0.01 W).
    noise_dbm_per_hz : float
        Noise density.
    radius_m, min_distance_m : float
        UEs are uniform in the disc between these radii.
    path_loss : str
        ``3gpp`` or ``power`` (with ``path_loss_exponent``).
    fading : bool
        Rayleigh block fading.
    outage_probability : float
        Share of draws treated as outage: the UE waits ``outage_retry_s`` and draws again.
    coherence_s : float
        Redraw the channel every so many seconds; 0 redraws once per upload.
    frequency_min_hz, frequency_max_hz : float
        Processor frequencies, uniform.
    cycles_per_sample : float
        Processor cycles per sample.
    samples_per_update : int
        Samples touched by one update; 0 takes the sum of the method's batches.
    compute_law : str
        ``fixed``, ``exponential`` or ``lognormal`` (with ``compute_spread``) around the mean.
    payload_bits : float
        Bits of one upload; 0 takes 32 bits per parameter.
    failure_rate : float
        Probability that an update is lost on arrival.
    trace : str
        CSV file with one row per UE instead of the random cell.
    capacitance : float
        Effective switched capacitance for the energy of computing.
    """

    bandwidth_hz: float = 1e6
    power_w: float = 0.01
    noise_dbm_per_hz: float = -174.0
    radius_m: float = 200.0
    min_distance_m: float = 10.0
    path_loss: str = "3gpp"
    path_loss_exponent: float = 3.8
    fading: bool = True
    outage_probability: float = 0.01
    outage_retry_s: float = 0.1
    coherence_s: float = 0.0
    frequency_min_hz: float = 1e8
    frequency_max_hz: float = 1e9
    cycles_per_sample: float = 2e6
    samples_per_update: int = 0
    compute_law: str = "fixed"
    compute_spread: float = 0.3
    payload_bits: float = 0.0
    failure_rate: float = 0.0
    trace: str = ""
    capacitance: float = 1e-28


@dataclass(frozen=True)
class ScheduleConfig:
    """When a round closes and who sends over which share of the band.

    Attributes
    ----------
    participants : int
        A, updates that close a round; equal to the number of UEs it is synchronous.
    staleness : int
        S, hard bound on the rounds an update may be behind; -1 for none, 0 is synchronous.
    scheduling : str
        ``arrival``, ``greedy`` or ``exact_round``.
    bandwidth : str
        ``equal``, ``proportional``, ``optimal`` or ``processor_sharing``.
    restart : str
        ``close``: participants continue when the round closes; ``arrival``: at once (FedBuff).
    churn : tuple of (float, int, str)
        Events (seconds, UE, ``join`` | ``leave`` | ``fail``).
    """

    participants: int = 10
    staleness: int = NO_BOUND
    scheduling: str = "arrival"
    bandwidth: str = "equal"
    restart: str = "close"
    churn: tuple[tuple[float, int, str], ...] = ()


@dataclass(frozen=True)
class MethodConfig:
    """What a UE computes from the weights it received.

    Attributes
    ----------
    name : str
        ``perfedavg``, ``fedavg``, ``fedprox``, ``pfedme``, ``ditto``, ``apfl`` or ``fedrep``.
    estimator : str
        Meta-gradient of ``perfedavg``: ``exact``, ``fo`` or ``hf``.
    alpha : float
        Step of the personal adaptation.
    adapt_steps : int
        Full-batch adaptation steps after training, for evaluation.
    inner_batch, outer_batch, hessian_batch : int
        Independent batch sizes.
    local_steps : int
        Steps of a UE per update.
    local_step : float
        Step size of the local steps when there are several of them.
    proximal : float
        mu of FedProx, lambda of pFedMe and Ditto.
    mix : float
        Mixing weight of APFL.
    difference : float
        Half-width of the finite difference of ``hf``.
    """

    name: str = "perfedavg"
    estimator: str = "exact"
    alpha: float = 0.1
    adapt_steps: int = 1
    inner_batch: int = 16
    outer_batch: int = 16
    hessian_batch: int = 16
    local_steps: int = 1
    local_step: float = 0.1
    proximal: float = 0.1
    mix: float = 0.5
    difference: float = 1e-3


@dataclass(frozen=True)
class ServerConfig:
    """How the server uses the updates of a round.

    Attributes
    ----------
    step : float
        beta, server step.
    rule : str
        ``average`` or ``fedasync`` (mix the UE's model in; needs participants = 1).
    staleness_weight : str
        ``constant``, ``polynomial`` (1 + tau)^-a, ``hinge`` or ``fedbuff`` 1/sqrt(1 + tau).
    weight_exponent, hinge_from : float
        a, and the staleness from which the hinge falls.
    data_weighted : bool
        Weight updates by the UE's number of samples.
    participation_weighted : bool
        Weight updates by the inverse of how often the UE took part so far, with mean 1 in a round:
        against the preference of first-A rounds for fast UEs.
    """

    step: float = 4.0
    rule: str = "average"
    staleness_weight: str = "constant"
    weight_exponent: float = 0.5
    hinge_from: float = 4.0
    data_weighted: bool = False
    participation_weighted: bool = False


@dataclass(frozen=True)
class TrainConfig:
    """Limits and bookkeeping of a run.

    Attributes
    ----------
    rounds : int
        Server rounds K at most.
    target_loss : float
        Stop once the mean personalised test loss is below; 0 never stops early.
    max_time_s : float
        Simulated seconds at most; 0 for no limit.
    eval_every : int
        Rounds between evaluations.
    chunk : int
        UEs computed in one vectorised call; results do not depend on it.
    checkpoint_every : int
        Rounds between checkpoints, 0 for none.
    threads : int
        Torch threads, 0 leaves the setting alone.
    precision : str
        ``float32`` or ``float64``.
    """

    rounds: int = 100
    target_loss: float = 0.0
    max_time_s: float = 0.0
    eval_every: int = 1
    chunk: int = 64
    checkpoint_every: int = 0
    threads: int = 0
    precision: str = "float32"


@dataclass(frozen=True)
class ExperimentConfig:
    """One experiment; the defaults run Per-FedAvg on digits over 20 UEs, half of them per round.

    Examples
    --------
    >>> config = ExperimentConfig.from_dict({"schedule": {"participants": 5}})
    >>> config.schedule.participants, config.ues
    (5, 20)
    >>> ExperimentConfig.from_dict({"schedule": {"participants": 50}})
    Traceback (most recent call last):
        ...
    perfeds2.errors.InputError: schedule.participants = 50: allowed is 1 to ues = 20
    """

    ues: int = 20
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    system: SystemConfig = field(default_factory=SystemConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        check(self)

    @classmethod
    def from_dict(cls, tables: dict[str, Any]) -> ExperimentConfig:
        """Build from nested tables; unknown keys and wrong types are refused by name."""
        built: ExperimentConfig = _build(cls, tables, "")
        return built

    @classmethod
    def from_toml(cls, path: str | Path) -> ExperimentConfig:
        """Read a TOML file."""
        path = Path(path)
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"experiment = {str(path)!r}: allowed is an existing file") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise InputError(
                f"experiment = {str(path)!r}: allowed is a TOML file; {_one_line(error)}"
            ) from None
        return cls.from_dict(tables)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, accepted by `from_dict`."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """Canonical JSON text."""
        return json.dumps(self.to_dict(), sort_keys=True)

    def with_(self, **tables: dict[str, Any] | int) -> ExperimentConfig:
        """Copy with some values changed.

        Examples
        --------
        >>> ExperimentConfig().with_(server={"step": 2.0}, seed=3).server.step
        2.0
        """
        merged = self.to_dict()
        for name, change in tables.items():
            if isinstance(change, dict):
                merged[name] = {**merged[name], **change}
            else:
                merged[name] = change
        return self.from_dict(merged)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _build(cls: Any, tables: dict[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(cls)
    if not isinstance(tables, dict):
        raise InputError(f"{prefix.rstrip('.')} = {tables!r}: allowed is a table")
    for key in tables:
        if key not in hints:
            raise InputError(f"{prefix}{key}: unknown key; allowed are {', '.join(sorted(hints))}")
    values: dict[str, Any] = {}
    for key, value in tables.items():
        hint = hints[key]
        name = f"{prefix}{key}"
        if dataclasses.is_dataclass(hint):
            values[key] = _build(hint, value, f"{name}.")
        elif hint in (int, float, str, bool):
            values[key] = _scalar(hint, value, name)
        else:
            values[key] = _churn(value, name)
    return cls(**values)


def _scalar(hint: type, value: Any, name: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 10**300 else math.inf
    if hint is int and name.endswith("staleness") and value in ("inf", math.inf):
        value = NO_BOUND
    if type(value) is not hint:
        raise InputError(f"{name} = {value!r}: allowed is a value of type {hint.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name} = {value!r}: allowed is a finite number")
    return value


def _churn(value: Any, name: str) -> tuple[tuple[float, int, str], ...]:
    rows = []
    for row in value:
        try:
            time_s, ue, kind = row
            rows.append((float(time_s), int(ue), str(kind)))
        except (TypeError, ValueError):
            raise InputError(
                f"{name} = {row!r}: allowed are rows [seconds, ue, 'join' | 'leave' | 'fail']"
            ) from None
    return tuple(rows)


def check(config: ExperimentConfig) -> None:
    """Refuse values out of range and combinations without a meaning."""
    n = config.ues
    require(1 <= n <= 100_000_000, "ues", n, "1 to 100000000")
    require(0 <= config.seed < 2**63, "seed", config.seed, "0 to 2**63 - 1")
    _check_choices(config)
    _check_system(config.system)
    _check_schedule(config.schedule, n)
    m, t = config.method, config.train
    for name, value in (
        ("method.inner_batch", m.inner_batch),
        ("method.outer_batch", m.outer_batch),
        ("method.hessian_batch", m.hessian_batch),
        ("method.local_steps", m.local_steps),
        ("method.adapt_steps", m.adapt_steps + 1),
        ("model.hidden", config.model.hidden),
        ("train.rounds", t.rounds),
        ("train.eval_every", t.eval_every),
        ("train.chunk", t.chunk),
        ("train.checkpoint_every", t.checkpoint_every + 1),
        ("train.threads", t.threads + 1),
        ("data.labels_per_ue", config.data.labels_per_ue),
    ):
        require(value >= 1, name, value, "at least 1")
    require(m.alpha >= 0, "method.alpha", m.alpha, "0 or more")
    require(m.difference > 0, "method.difference", m.difference, "positive")
    require(m.proximal >= 0, "method.proximal", m.proximal, "0 or more")
    require(0 <= m.mix <= 1, "method.mix", m.mix, "0 to 1")
    require(m.local_step > 0, "method.local_step", m.local_step, "positive")
    require(config.server.step > 0, "server.step", config.server.step, "positive")
    require(
        0 < config.data.test_fraction < 1,
        "data.test_fraction",
        config.data.test_fraction,
        "between 0 and 1",
    )
    require(
        config.data.concentration > 0, "data.concentration", config.data.concentration, "positive"
    )
    if config.server.rule == "fedasync":
        require(
            config.schedule.participants == 1,
            "schedule.participants",
            config.schedule.participants,
            "1 with server.rule = 'fedasync'",
        )
        require(
            config.server.step <= 1,
            "server.step",
            config.server.step,
            "at most 1 with server.rule = 'fedasync'",
            "it is the weight of the UE's model",
        )
        for name in ("data_weighted", "participation_weighted"):
            value = getattr(config.server, name)
            require(not value, f"server.{name}", value, "false with server.rule = 'fedasync'")


CHOICES = {
    "data.source": ("digits", "npz", "folder", "text", "synthetic"),
    "data.partition": ("classes", "dirichlet", "shards", "quantity_lognormal", "by_key"),
    "model.kind": ("softmax", "mlp", "cnn", "chargru"),
    "system.path_loss": ("3gpp", "power"),
    "system.compute_law": ("fixed", "exponential", "lognormal"),
    "schedule.scheduling": ("arrival", "greedy", "exact_round"),
    "schedule.bandwidth": ("equal", "proportional", "optimal", "processor_sharing"),
    "schedule.restart": ("close", "arrival"),
    "method.name": ("perfedavg", "fedavg", "fedprox", "pfedme", "ditto", "apfl", "fedrep"),
    "method.estimator": ("exact", "fo", "hf"),
    "server.rule": ("average", "fedasync"),
    "server.staleness_weight": ("constant", "polynomial", "hinge", "fedbuff"),
    "train.precision": ("float32", "float64"),
}


def _check_choices(config: ExperimentConfig) -> None:
    for name, allowed in CHOICES.items():
        table, key = name.split(".")
        value = getattr(getattr(config, table), key)
        require(value in allowed, name, value, " | ".join(allowed))


def _check_system(s: SystemConfig) -> None:
    check_power_w(s.power_w, "system.power_w")
    require(
        s.bandwidth_hz > 0, "system.bandwidth_hz", s.bandwidth_hz, "positive Hz", "1 MHz is 1e6"
    )
    require(
        -300 < s.noise_dbm_per_hz < 0, "system.noise_dbm_per_hz", s.noise_dbm_per_hz, "-300 to 0"
    )
    require(
        0 < s.min_distance_m < s.radius_m,
        "system.min_distance_m",
        s.min_distance_m,
        f"between 0 and radius_m = {s.radius_m}",
    )
    require(
        1e4 <= s.frequency_min_hz <= s.frequency_max_hz,
        "system.frequency_min_hz",
        s.frequency_min_hz,
        f"1e4 to frequency_max_hz = {s.frequency_max_hz}",
        "0.5 GHz is 5e8",
    )
    require(s.cycles_per_sample > 0, "system.cycles_per_sample", s.cycles_per_sample, "positive")
    for name in ("samples_per_update", "payload_bits", "coherence_s", "compute_spread"):
        value = getattr(s, name)
        require(value >= 0, f"system.{name}", value, "0 or more")
    require(s.outage_retry_s > 0, "system.outage_retry_s", s.outage_retry_s, "positive seconds")
    for name in ("outage_probability", "failure_rate"):
        value = getattr(s, name)
        require(0 <= value < 1, f"system.{name}", value, "0 <= p < 1")


def least_staleness(ues: int, participants: int) -> int:
    """Smallest positive bound S that |A_k| = A can hold: ceil(n / A) - 1 (pigeonhole).

    Examples
    --------
    >>> least_staleness(20, 5), least_staleness(20, 20)
    (3, 0)
    """
    return -(-ues // participants) - 1


def _check_schedule(s: ScheduleConfig, n: int) -> None:
    require(1 <= s.participants <= n, "schedule.participants", s.participants, f"1 to ues = {n}")
    least = least_staleness(n, s.participants)
    require(
        s.staleness in (NO_BOUND, 0) or s.staleness >= max(least, 1),
        "schedule.staleness",
        s.staleness,
        f"-1 (no bound), 0 (synchronous) or at least {max(least, 1)} for "
        f"{s.participants} of {n} participants",
        "with fewer, more UEs are due in a round than it takes; raise participants or staleness",
    )
    if s.restart == "arrival":
        require(
            s.staleness == NO_BOUND,
            "schedule.staleness",
            s.staleness,
            "-1 with restart = 'arrival'",
        )
        require(
            s.scheduling == "arrival" and s.bandwidth in ("equal", "proportional"),
            "schedule.restart",
            s.restart,
            "'close' unless scheduling is 'arrival' over fixed shares",
        )
    if s.bandwidth == "processor_sharing":
        require(
            s.scheduling == "arrival",
            "schedule.bandwidth",
            s.bandwidth,
            "equal | proportional | optimal with a scheduler that closes with its set",
        )
    if s.bandwidth == "optimal" and s.scheduling == "arrival":
        require(
            s.participants == n or s.staleness == 0,
            "schedule.bandwidth",
            s.bandwidth,
            "equal | proportional | processor_sharing with scheduling = 'arrival'",
            "a common finishing time needs a scheduled set: use greedy or exact_round",
        )
    if s.scheduling == "exact_round":
        require(
            s.bandwidth == "optimal",
            "schedule.bandwidth",
            s.bandwidth,
            "'optimal' with scheduling = 'exact_round'",
        )
    for time_s, ue, kind in s.churn:
        require(time_s >= 0 and math.isfinite(time_s), "schedule.churn", time_s, "seconds >= 0")
        require(0 <= ue < n, "schedule.churn", ue, f"UE ids 0 to {n - 1}")
        require(kind in ("join", "leave", "fail"), "schedule.churn", kind, "join | leave | fail")
