"""Compiled kernels (csrc/bindings.cpp); vitcod.native is their Python face."""

import numpy as np

Four = tuple[int, int, int, int]
Five = tuple[int, int, int, int, int]

class Layout:
    queries: int
    keys: int
    entries: int
    def __init__(
        self,
        heads: int,
        queries: int,
        keys: int,
        ptr: np.ndarray,
        idx: np.ndarray,
        order: np.ndarray,
        kinds: np.ndarray,
        block: int,
    ) -> None: ...

def instructions(name: str) -> str: ...
def use_openmp(path: str) -> bool: ...
def forward(
    layout: Layout,
    batch: int,
    dim: int,
    value_dim: int,
    q: Four,
    k: Four,
    v: Four,
    out: Four,
    lse: int,
    bias: Five,
    scale: float,
    threads: int,
    instructions: str,
    /,
) -> None: ...
def backward(
    layout: Layout,
    batch: int,
    dim: int,
    value_dim: int,
    q: Four,
    k: Four,
    v: Four,
    out: Four,
    lse: int,
    bias: Five,
    grad_out: Four,
    dq: Four,
    dk: Four,
    dv: Four,
    probability: int,
    score: int,
    scale: float,
    threads: int,
    instructions: str,
    /,
) -> None: ...
