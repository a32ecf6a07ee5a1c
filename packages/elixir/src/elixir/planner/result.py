"""The plan: what lives where, what it will cost, and why."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from elixir._files import write_text
from elixir.errors import InfeasiblePlanError, StalePlanError
from elixir.units import format_bytes, parse_bytes

SCHEMA = 1
TIERS = ("host", "device", "disk", "pinned")
SHARDS = ("replicate", "shard", "expert")
OPERATORS = ("column", "row")


@dataclass(frozen=True)
class ChunkPlan:
    """Parameters that travel together.

    Attributes
    ----------
    parameters
        Names, in order of first use.
    offsets
        Byte offset of each parameter; multiples of 64.
    bytes
        Bytes of the chunk in the compute dtype.
    tier
        ``host``: parameters visit the device, states stay on the host; ``pinned``: parameters
        stay on
        the device, states on the host; ``device``: all stays on the device; ``disk``: as host,
        with the
        optimizer states on disk.
    shard
        How ranks divide it: ``shard`` (states and gradients divided, parameters gathered after
        the step),
        ``replicate`` (every rank updates all of it), ``expert`` (as shard, each expert a chunk: one
        without tokens is not loaded; over several ranks zeros stand for its gradients).
    gradients
        How often each parameter receives a gradient in one backward pass of the trace.
    """

    parameters: tuple[str, ...]
    offsets: tuple[int, ...]
    bytes: int
    trainable: int
    tier: str = "host"
    shard: str = "shard"
    gradients: tuple[int, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A memory plan for one model, batch and budget.

    Attributes
    ----------
    device_budget, host_budget
        Bytes; the host budget may be None.
    activation_bytes, offload_bytes, gradient_bytes, cache_bytes, resident_bytes
        The parts of the device budget: activations at their peak, activations and gradients on
        their way out, the travelling chunks' cache, chunks that stay.
    recompute, offload
        Modules whose activations are recomputed, and those whose activations visit the host;
        all others keep theirs.
    host_bytes, disk_bytes
        What the other tiers hold; of several ranks, one rank's share.
    least_budget
        Fewest bytes of device memory for which a plan exists.
    splits
        Weights in tiles: the modules that use one, and the rows of a tile.
    operators
        Linear maps divided over ``tensor_parallel`` ranks: module, ``column`` or ``row``, and
        whether the divided activation joins there (a column's output is gathered, a row's input
        cut) instead of staying divided between a column and a row.
    predicted
        Seconds, traffic and stalls of a step from the event simulator.
    """

    fingerprint: str
    policy: str
    device: str
    dtype: str
    device_budget: int
    host_budget: int | None
    chunks: tuple[ChunkPlan, ...]
    steps: tuple[tuple[int, ...], ...]
    forward_steps: int
    step_seconds: tuple[float, ...]
    extras: dict[str, tuple[str, ...]]
    recompute: tuple[str, ...]
    offload: tuple[str, ...]
    offloads: tuple[tuple[int, int, int, int], ...]
    offload_bytes: int
    activation_bytes: int
    gradient_bytes: int
    cache_bytes: int
    resident_bytes: int
    host_bytes: int
    disk_bytes: int
    least_budget: int
    prefetch: int
    step_in_backward: bool
    keep_gradients: bool
    optimizer: str
    moments: str
    world: int
    hardware: dict[str, Any]
    predicted: dict[str, float]
    batch: tuple[str, ...] = ()
    batch_bytes: int = 0
    notes: tuple[str, ...] = ()
    splits: tuple[tuple[tuple[str, ...], int], ...] = ()
    tensor_parallel: int = 1
    operators: tuple[tuple[str, str, bool], ...] = ()
    schema_version: int = SCHEMA
    again: Callable[..., Plan] | None = field(default=None, compare=False, repr=False)

    def __repr__(self) -> str:
        return (
            f"Plan({self.policy}: {len(self.chunks)} chunks, device "
            f"{format_bytes(self.device_bytes)} of "
            f"{format_bytes(self.device_budget)}, host {format_bytes(self.host_bytes)}, predicted "
            f"{self.predicted['seconds']:.4g} s per step)"
        )

    @property
    def device_bytes(self) -> int:
        """Bytes of device memory that the plan uses."""
        moving = self.offload_bytes + self.gradient_bytes + self.cache_bytes
        return self.activation_bytes + moving + self.resident_bytes

    def explain(self) -> str:
        """Return the plan in words: tiers, bytes, predicted step, bottleneck, least budget."""
        p = self.predicted
        tiers = {tier: [c for c in self.chunks if c.tier == tier] for tier in TIERS}
        busy = {k: p[k] for k in ("compute", "h2d", "d2h", "adam", "disk")}
        slowest = max(busy, key=lambda k: busy[k])
        lines = [
            f"device  {format_bytes(self.device_bytes)} of {format_bytes(self.device_budget)}",
            f"        activations {format_bytes(self.activation_bytes)}"
            + (f", {len(self.recompute)} modules recomputed" if self.recompute else "")
            + (f", {len(self.offload)} modules offloaded" if self.offload else ""),
            *(
                [f"        activations on their way {format_bytes(self.offload_bytes)}"]
                if self.offload
                else []
            ),
            f"        gradients on their way {format_bytes(self.gradient_bytes)}",
            f"        chunk cache {format_bytes(self.cache_bytes)}",
            f"        resident chunks {format_bytes(self.resident_bytes)}",
            f"host    {format_bytes(self.host_bytes)}"
            + (f" of {format_bytes(self.host_budget)}" if self.host_budget else ""),
        ]
        if self.disk_bytes:
            lines.append(f"disk    {format_bytes(self.disk_bytes)}")
        for modules, rows in self.splits:
            lines.append(f"split   {', '.join(f'{m}.weight' for m in modules)}: {rows} rows a tile")
        if self.operators:
            kinds = {k: [o for o in self.operators if o[1] == k] for k in OPERATORS}
            lines.append(
                f"divided over {self.tensor_parallel} ranks: "
                + ", ".join(
                    f"{len(found)} {kind} ({sum(whole for *_, whole in found)} "
                    + ("gather their output)" if kind == "column" else "cut a whole input)")
                    for kind, found in kinds.items()
                    if found
                )
            )
        lines += [
            "chunks  "
            + ", ".join(
                f"{len(found)} {tier} ({format_bytes(sum(c.bytes for c in found))})"
                for tier, found in tiers.items()
                if found
            ),
            f"step    {p['seconds']:.4g} s predicted ({self.hardware.get('name', '')}); busy: "
            + ", ".join(f"{k} {v:.4g} s" for k, v in busy.items() if v),
            f"        {format_bytes(p['loaded_bytes'])} in by {int(p['loads'])} loads, "
            f"{format_bytes(p['stored_bytes'])} out"
            + (
                f", {format_bytes(p['offloaded_bytes'])} of activations out and in"
                if self.offload
                else ""
            )
            + f"; compute waits {p['stall']:.4g} s",
            f"limit   {slowest}",
            f"least   {format_bytes(self.least_budget)} ({self.least_budget} bytes) of device "
            f"memory",
        ]
        return "\n".join([*lines, *(f"note    {note}" for note in self.notes)])

    def what_if(self, device_budgets: Sequence[int | str]) -> list[dict[str, Any]]:
        """Plan again for other budgets.

        Returns
        -------
        list of dict
            ``device_budget``, ``feasible``, ``seconds``, ``loaded_bytes``, ``resident_bytes``,
            ``recomputed``, ``offloaded``.

        Raises
        ------
        ValueError
            If the plan was loaded from a file (it no longer has its trace).
        """
        rows: list[dict[str, Any]] = []
        for budget in device_budgets:
            size = parse_bytes(budget, "device_budget")
            try:
                plan = self._replan(device_budget=size)
            except InfeasiblePlanError:
                rows.append({"device_budget": size, "feasible": False})
                continue
            rows.append(
                {
                    "device_budget": size,
                    "feasible": True,
                    "seconds": plan.predicted["seconds"],
                    "loaded_bytes": plan.predicted["loaded_bytes"],
                    "resident_bytes": plan.resident_bytes,
                    "recomputed": len(plan.recompute),
                    "offloaded": len(plan.offload),
                }
            )
        return rows

    def override(self, pattern: str, *, tier: str | None = None, shard: str | None = None) -> Plan:
        """Attach a pattern to operators (the idea of the paper's first version) and plan again.

        Parameters
        ----------
        pattern
            Shell-style pattern of parameter names, such as ``"blocks.*.experts.*"``.
        tier
            ``host``, ``device``, ``disk`` or ``pinned``.
        shard
            ``replicate``, ``shard`` or ``expert``; or, for names of linear maps, ``column`` or
            ``row``: each rank of a ``tensor_parallel`` plan makes its part of the outputs, or takes
            its part of the inputs. The plan is then traced again.

        Raises
        ------
        ValueError
            For an unknown tier or shard, or a pattern that matches nothing.
        InfeasiblePlanError
            If the choice does not fit.
        """
        if tier is not None and tier not in TIERS:
            raise ValueError(f"tier={tier!r}: allowed are {', '.join(TIERS)}")
        if shard is not None and shard not in (*SHARDS, *OPERATORS):
            raise ValueError(f"shard={shard!r}: allowed are {', '.join((*SHARDS, *OPERATORS))}")
        if tier is not None and shard in OPERATORS:
            raise ValueError(f"override: shard={shard!r} names operators; give tier= by itself")
        if shard in OPERATORS and self.tensor_parallel == 1:
            raise ValueError(
                f"override: shard={shard!r} needs a plan made with tensor_parallel= of at least 2"
            )
        if tier is None and shard is None:
            raise ValueError("override: give tier or shard")
        return self._replan(override=(pattern, tier, shard))

    def _replan(self, **changes: Any) -> Plan:
        if self.again is None:
            raise ValueError(
                "plan: was loaded from a file; make it again with elixir.plan to change it"
            )
        return self.again(**changes)

    def check_model(self, fingerprint: str) -> None:
        """Raise StalePlanError if the plan was made for another model."""
        if fingerprint != self.fingerprint:
            raise StalePlanError(
                f"plan: made for a model with fingerprint {self.fingerprint}, this one has "
                f"{fingerprint}; make a new plan"
            )

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, whole or not at all."""
        data = asdict(replace(self, again=None))
        del data["again"]
        write_text(path, json.dumps(data, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan.

        Raises
        ------
        ValueError
            If the file is not a plan of this schema.
        """
        try:
            data = json.loads(Path(path).read_text())
            if data["schema_version"] != SCHEMA:
                raise ValueError(f"schema {data['schema_version']}, not {SCHEMA}")
            data["chunks"] = tuple(
                ChunkPlan(**c | {k: tuple(c[k]) for k in ("parameters", "offsets", "gradients")})
                for c in data["chunks"]
            )
            data["steps"] = tuple(tuple(s) for s in data["steps"])
            data["extras"] = {k: tuple(v) for k, v in data["extras"].items()}
            data["splits"] = tuple((tuple(m), rows) for m, rows in data.get("splits", ()))
            for key in ("step_seconds", "recompute", "offload", "notes", "batch"):
                data[key] = tuple(data[key])
            for key in ("offloads", "operators"):
                data[key] = tuple(tuple(row) for row in data.get(key, ()))
            return cls(**data)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path}: not a plan ({error})") from None
