"""What a search returns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nasa._files import write_text
from nasa.arch import Architecture
from nasa.training import History


@dataclass(frozen=True)
class Evaluated:
    """An architecture with its supernet accuracy and its mapped EDP (1e-6 J s)."""

    architecture: Architecture
    accuracy: float
    edp: float

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "choices": list(self.architecture.choices),
            "accuracy": self.accuracy,
            "edp": self.edp,
        }


@dataclass(frozen=True)
class SearchResult:
    """Outcome of a search.

    Attributes
    ----------
    strategy : str
    architecture : Architecture
        The best one.
    history : History
    evaluated : tuple of Evaluated
        Everything that was evaluated (empty for a differentiable search).
    probabilities : list of lists
        Per cell, of a differentiable search.
    """

    strategy: str
    architecture: Architecture
    history: History
    evaluated: tuple[Evaluated, ...] = ()
    probabilities: list[list[float]] = field(default_factory=list)

    @property
    def pareto(self) -> list[Evaluated]:
        """The evaluated architectures that no other beats in both accuracy and EDP, by EDP."""
        return pareto_front(self.evaluated)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "schema_version": 1,
            "strategy": self.strategy,
            "architecture": self.architecture.to_json(),
            "history": self.history.rows,
            "evaluated": [e.to_json() for e in self.evaluated],
            "probabilities": self.probabilities,
        }

    def save(self, path: str | Path) -> None:
        """Write the JSON, whole or not at all."""
        write_text(path, json.dumps(self.to_json(), indent=1) + "\n")


def pareto_front(points: Sequence[Evaluated]) -> list[Evaluated]:
    """Return the points that no other dominates, by ascending EDP."""
    front: list[Evaluated] = []
    for point in sorted(points, key=lambda p: (p.edp, -p.accuracy)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front


def hypervolume(points: Sequence[Evaluated], edp: float, accuracy: float = 0.0) -> float:
    """Return the area that the points dominate, up to the reference EDP and accuracy."""
    area, last = 0.0, edp
    for point in reversed(
        [p for p in pareto_front(points) if p.edp < edp and p.accuracy > accuracy]
    ):
        area += (last - point.edp) * (point.accuracy - accuracy)
        last = point.edp
    return area
