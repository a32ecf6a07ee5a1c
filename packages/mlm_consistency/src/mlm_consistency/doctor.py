"""Checks of an installation."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from . import compat, joints
from .mini import NAMES, bundled
from .tables import PairTable


def run_checks() -> list[dict[str, Any]]:
    """Check bundled weights, a known joint, a known gap and one score of each miniature."""
    checks = []

    def add(name: str, found: Any, good: bool) -> None:
        checks.append({"name": name, "found": found, "good": bool(good)})

    for name in NAMES:
        folder = bundled(name)
        manifest = json.loads((folder / "manifest.json").read_text())
        digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        add(f"{name}: checksum of the weights", digest[:12], digest == manifest["sha256"])
    rng = np.random.default_rng(0)
    table = PairTable.from_joint(rng.normal(size=(6, 7)))
    gap = abs(compat.worst_quadruple(table).gap)
    add("curl of a known joint (nats)", gap, gap < 1e-10)
    joint = joints.ag(table)
    add("Arnold-Gokhale gap of a known joint", joint.gap, joint.gap < 1e-10)
    first = np.log([[0.25, 0.75], [0.75, 0.25]])
    found = float(compat.curl(first, np.log(np.full((2, 2), 0.5)))[0, 0])
    add("ln 9 from a two by two table", found, abs(abs(found) - np.log(9)) < 1e-12)
    from .eoc import EnsembleOfConditionals
    from .evaluator import ConsistencyEvaluator

    small = ConsistencyEvaluator("mini-bert")
    shape = small.pair("and the [1] of the [2] came upon him .", top_k=4).shape
    add("mini-bert scores a pair", "x".join(map(str, shape)), shape == (4, 4))
    word = EnsembleOfConditionals("mini-t5", "baseline,offset:1").predict(
        "in the beginning god created the heaven and the", ["earth", "camel"]
    )
    add("mini-t5 completes a verse", word.completion, word.completion == "earth")
    return checks
