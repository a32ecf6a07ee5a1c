"""Shared fixtures: simulated machines in temporary folders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from migperf import Node, Simulator


@pytest.fixture
def open_sim(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Open simulated nodes, one after the other; all are closed at the end."""
    opened: list[Node] = []

    def start(machine: str = "a100-40gb", **options: object) -> Node:
        for node in opened:
            node.close()
        state = tmp_path / f"machine{len(opened)}"
        node = Node.open(
            Simulator.create(machine, state, **options),  # type: ignore[arg-type]
            state_dir=tmp_path / "journals",
        )
        opened.append(node)
        return node

    yield start
    for node in opened:
        node.close()
