"""Import hook that declares torchvision's operators where its native library does not load."""

from __future__ import annotations

import sys
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

DECLARED = ("nms", "qnms")
"""Operators that torchvision's Python part names while it is imported."""

library: Any = None
"""The torch library that holds the declarations (they vanish with it); None if none was needed."""


def load_native(folder: Path) -> bool:
    """Tell whether torchvision's operators are there, loading its library if it can be."""
    import torch

    for path in (folder / f"_C{suffix}" for suffix in [*EXTENSION_SUFFIXES, ".pyd"]):
        if path.exists():
            try:
                torch.ops.load_library(str(path))
            except OSError:  # a library that it is linked against is missing
                continue
    return hasattr(torch.ops.torchvision, "nms")


def declare() -> None:
    """Declare the operators, without an implementation."""
    global library
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in DECLARED:
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


class Finder:
    """Meta path finder that acts once, on the first import of torchvision, and finds nothing."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Prepare torch for torchvision; leave the finding to the finders that follow."""
        if name == "torchvision":
            sys.meta_path.remove(cls)
            spec = PathFinder.find_spec(name)
            folders = spec.submodule_search_locations if spec is not None else None
            has_torch = PathFinder.find_spec("torch") is not None
            if folders and has_torch and not load_native(Path(folders[0])):
                declare()
        return None


def register() -> None:
    """Put the finder in front, once."""
    if Finder not in sys.meta_path:
        sys.meta_path.insert(0, Finder)
