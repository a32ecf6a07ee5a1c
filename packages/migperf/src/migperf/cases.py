"""What a study file says: cases, tenants, and the shorthands that expand to cases."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from .errors import InputError
from .partitions.registry import BACKENDS
from .tenants import Tenant
from .workloads.base import WorkloadSpec

__all__ = ["Case", "read_study"]

_FIELDS = ("backend", "layouts", "tenants", "cases", "interference", "sweep", "repeat",
           "duration_s", "warmup_s", "seed", "target_half_width")  # fmt: skip
_MOST_COPIES = 16


@dataclass(frozen=True)
class Case:
    """A backend with a layout, and who runs on it.

    Parameters
    ----------
    backend, layout : str
        Such as ``cpuset`` and ``1c*2``.
    tenants : int or tuple of str
        How many of the study's tenants run, counted from the first, where -1 means one per
        partition; or their names, in the order of the partitions. ``name-2`` is a second copy.
    batch : int
        Batch size instead of the tenants' own; 0 keeps theirs.
    """

    backend: str
    layout: str
    tenants: int | tuple[str, ...] = -1
    batch: int = 0

    @property
    def label(self) -> str:
        """Name in results."""
        text = f"{self.backend}:{self.layout}"
        if isinstance(self.tenants, tuple):
            text += f" [{' + '.join(self.tenants)}]"
        elif self.tenants == 1 and "*" in self.layout:
            text += " alone"
        return f"{text} batch {self.batch}" if self.batch else text

    @property
    def is_pair(self) -> bool:
        """Whether two tenants were named to run side by side."""
        return isinstance(self.tenants, tuple) and len(self.tenants) == 2

    def choose(self, tenants: Iterable[Tenant]) -> list[Tenant]:
        """Tenants that run, in the order of the partitions.

        Parameters
        ----------
        tenants : iterable of Tenant
            Those of the study.
        """
        everybody = with_copies(tenants)
        if isinstance(self.tenants, tuple):
            named = {t.name: t for t in everybody}
            chosen = [named[n] for n in self.tenants]
        else:
            chosen = everybody if self.tenants < 0 else everybody[: self.tenants]
        if not self.batch:
            return chosen
        return [replace(t, workload=replace(t.workload, batch=self.batch)) for t in chosen]


def with_copies(tenants: Iterable[Tenant]) -> list[Tenant]:
    """All tenants, then copies of them with numbered names."""
    first = list(tenants)
    return first + [
        replace(t, name=f"{t.name}-{copy}") for copy in range(2, _MOST_COPIES + 1) for t in first
    ]


def read_study(data: object) -> tuple[tuple[Case, ...], tuple[Tenant, ...], dict[str, Any]]:
    """Read the mapping of a study file.

    ``interference: [{backend, layout}]`` becomes, for every pair of tenants in both orders, a case
    with the two side by side, and one with each alone in the first partition of the same layout.
    ``sweep: {batches: [...], partitions: [{backend, layout}], tenants: [...]}`` becomes a case per
    tenant (default all), partition and batch size, the tenant alone.

    Returns
    -------
    cases, tenants, rest
        The rest holds repeat, duration, warmup, seed and target_half_width.

    Raises
    ------
    InputError
        A field is not what it must be.
    """
    if not isinstance(data, dict) or not set(data) <= set(_FIELDS):
        raise InputError.of("study", data, f"a mapping with {', '.join(_FIELDS)}")
    tenants = tuple(_tenant(t, i) for i, t in enumerate(_list(data, "tenants")))
    if len({t.name for t in tenants}) < len(tenants):
        raise InputError.of("tenants", [t.name for t in tenants], "each name once")
    cases = [*_plain_cases(data, tenants), *_pairs(data, tenants), *_sweep(data, tenants)]
    for case in cases:
        if case.backend not in BACKENDS:
            raise InputError.of("backend", case.backend, ", ".join(BACKENDS))
    if len({c.label for c in cases}) < len(cases):
        raise InputError.of("cases", [c.label for c in cases], "each case once")
    rest = {
        "repeat": int(_positive(data, "repeat", 5)),
        "duration": _positive(data, "duration_s", 10.0),
        "warmup": _positive(data, "warmup_s", 0.5),
        "seed": int(data.get("seed", 0)),
        "target_half_width": float(data.get("target_half_width", 0.0)),
    }
    return tuple(cases), tenants, rest


def _plain_cases(data: dict[str, Any], tenants: tuple[Tenant, ...]) -> list[Case]:
    if "cases" in data:
        found = []
        for number, row in enumerate(_list(data, "cases")):
            place = _place(row, f"cases[{number}]", "tenants")
            who = row.get("tenants", -1)
            found.append(replace(place, tenants=_who(who, tenants)))
        return found
    if "layouts" not in data and ("interference" in data or "sweep" in data):
        return []
    backend = str(data.get("backend", "cpuset"))
    return [Case(backend, str(x)) for x in _list(data, "layouts")]


def _pairs(data: dict[str, Any], tenants: tuple[Tenant, ...]) -> list[Case]:
    if "interference" not in data:
        return []
    found = []
    names = [t.name for t in tenants]
    for number, row in enumerate(_list(data, "interference")):
        place = _place(row, f"interference[{number}]")
        found += [replace(place, tenants=(one,)) for one in names]
        found += [
            replace(place, tenants=(one, f"{two}-2" if one == two else two))
            for one in names
            for two in names
        ]
    return found


def _sweep(data: dict[str, Any], tenants: tuple[Tenant, ...]) -> list[Case]:
    if "sweep" not in data:
        return []
    sweep = data["sweep"]
    fields = {"batches", "partitions"}
    if not isinstance(sweep, dict) or not fields <= set(sweep) <= fields | {"tenants"}:
        raise InputError.of("sweep", sweep, "a mapping with batches, partitions and tenants")
    names = _who(sweep.get("tenants", [t.name for t in tenants]), tenants)
    if not isinstance(names, tuple):
        raise InputError.of("sweep.tenants", names, "a list of names")
    batches = _list(sweep, "batches")
    if any(type(b) is not int or b < 1 for b in batches):
        raise InputError.of("sweep.batches", batches, "integers >= 1")
    places = [
        _place(row, f"sweep.partitions[{number}]")
        for number, row in enumerate(_list(sweep, "partitions"))
    ]
    return [
        replace(place, tenants=(name,), batch=batch)
        for place in places
        for name in names
        for batch in batches
    ]


def _place(row: object, where: str, *more: str) -> Case:
    allowed = {"backend", "layout", *more}
    if not isinstance(row, dict) or not set(row) <= allowed or "backend" not in row:
        raise InputError.of(where, row, ", ".join(("backend", "layout", *more)))
    return Case(str(row["backend"]), str(row.get("layout", "1c")))


def _who(value: object, tenants: tuple[Tenant, ...]) -> int | tuple[str, ...]:
    if isinstance(value, list) and value:
        known = {t.name for t in with_copies(tenants)}
        if any(not isinstance(v, str) or v not in known for v in value):
            raise InputError.of("cases.tenants", value, ", ".join(t.name for t in tenants))
        return tuple(value)
    if type(value) is not int or value == 0 or value < -1:
        raise InputError.of(
            "cases.tenants", value, "an integer >= 1, -1 for one per partition, or a list of names"
        )
    return value


def _list(data: dict[str, Any], name: str) -> list[Any]:
    value = data.get(name)
    if not isinstance(value, list) or not value:
        raise InputError.of(name, value, "a list with at least one entry")
    return value


def _positive(data: dict[str, Any], name: str, default: float) -> float:
    value = data.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise InputError.of(name, value, "a number > 0")
    return float(value)


def _tenant(row: object, number: int) -> Tenant:
    allowed = {"name", "workload", "arrivals", "slo", "queue_limit"}
    if not isinstance(row, dict) or not set(row) <= allowed or "workload" not in row:
        raise InputError.of(f"tenants[{number}]", row, "name, workload, arrivals, slo, queue_limit")
    slo = row.get("slo") or {}
    if not isinstance(slo, dict) or not set(slo) <= {"p99_ms"}:
        raise InputError.of(f"tenants[{number}].slo", slo, "{p99_ms: MILLISECONDS}")
    arrivals = row.get("arrivals")
    if arrivals is not None and not isinstance(arrivals, dict):
        raise InputError.of(
            f"tenants[{number}].arrivals", arrivals, "a mapping such as {poisson: 30}"
        )
    return Tenant(
        str(row.get("name", f"tenant{number + 1}")),
        WorkloadSpec.from_dict(row["workload"]),
        arrivals,
        slo.get("p99_ms"),
        row.get("queue_limit", 10000),
    )
