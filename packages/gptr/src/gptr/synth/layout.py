"""Where symbols stand and which of them are connected."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import networkx as nx
import numpy as np


@dataclass
class Layout:
    """Centres in 0..1 and directed edges."""

    centres: np.ndarray
    edges: list[tuple[int, int]]

    @property
    def signature(self) -> str:
        """Return a text that two layouts share only if places (to 1/64) and edges agree."""
        grid = np.round(self.centres * 64).astype(np.int32)
        order = np.lexsort(grid.T)
        rank = np.argsort(order)
        edges = sorted((int(rank[a]), int(rank[b])) for a, b in self.edges)
        return hashlib.sha256(repr((grid[order].tolist(), edges)).encode()).hexdigest()[:16]


def _spread(centres: np.ndarray) -> np.ndarray:
    low, high = centres.min(0), centres.max(0)
    return np.asarray((centres - low) / np.maximum(high - low, 1e-6))


def make_layout(kind: str, count: int, rng: np.random.Generator) -> Layout:
    """Return a layout (``layered``, ``spring``, ``grid``, ``ring``), stretched at random.

    Without the stretch a layout of two or three symbols would always fill the same corners.
    """
    layout = _arrange(kind, count, rng)
    scale = rng.uniform(0.6, 1.0, 2)
    layout.centres = layout.centres * scale + rng.uniform(0, 1 - scale)
    return layout


def _arrange(kind: str, count: int, rng: np.random.Generator) -> Layout:
    graph = nx.DiGraph()
    graph.add_nodes_from(range(count))
    if kind == "ring":
        angle = np.linspace(0, 2 * np.pi, count, endpoint=False) + rng.uniform(0, 2 * np.pi)
        radius = rng.uniform(0.3, 0.5, count)
        centres = 0.5 + np.stack((np.cos(angle), np.sin(angle)), -1) * radius[:, None]
        edges = [(i, (i + 1) % count) for i in range(count) if rng.random() < 0.4]
        return Layout(_spread(centres), edges)
    if kind == "grid":
        columns = int(np.ceil(np.sqrt(count)))
        cells = rng.permutation(columns * max(1, -(-count // columns)))[:count]
        centres = np.stack((cells % columns, cells // columns), -1).astype(float)
        centres += rng.uniform(-0.25, 0.25, centres.shape)
        for i in range(count):
            d = np.abs(centres - centres[i]).sum(1)
            d[i] = np.inf
            if count > 1:
                graph.add_edge(i, int(d.argmin()))
        return Layout(_spread(centres), list(graph.edges))
    for i in range(1, count):
        graph.add_edge(int(rng.integers(max(0, i - 3), i)), i)
    for _ in range(count // 3):
        a, b = sorted(int(v) for v in rng.choice(count, 2, replace=False)) if count > 1 else (0, 0)
        if a != b:
            graph.add_edge(a, b)
    if kind == "layered":
        for generation, nodes in enumerate(nx.topological_generations(graph)):
            for node in nodes:
                graph.nodes[node]["layer"] = generation
        align = "vertical" if rng.random() < 0.5 else "horizontal"
        places = nx.multipartite_layout(graph, subset_key="layer", align=align)
    else:
        start = {i: rng.uniform(0, 1, 2) for i in range(count)}
        places = nx.spring_layout(graph, pos=start, iterations=30, seed=int(rng.integers(2**31)))
    centres = _spread(np.array([places[i] for i in range(count)], float))
    # a column or row of its own would collapse to one line: jitter keeps it apart
    return Layout(
        np.clip(centres + rng.uniform(-0.05, 0.05, centres.shape), 0, 1), list(graph.edges)
    )
