"""A device emulated on the CPU that refuses what a real one would refuse."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from elixir.errors import BudgetExceededError
from elixir.runtime.engine import Engine


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live storages made by operators while it is active.

    Attributes
    ----------
    live, peak
        Bytes now, and at most.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.samples: list[int] = []
        self._known: set[int] = set()

    def track(self, tensor: Tensor) -> None:
        """Count a tensor that exists already."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size

    def check(self, func: Any, inputs: list[Tensor]) -> None:
        """See an operator before it runs."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        self.check(func, inputs)
        out = func(*args, **kwargs)
        read = {t.untyped_storage()._cdata for t in inputs}
        for t in tree_flatten(out)[0]:
            if isinstance(t, Tensor) and t.untyped_storage()._cdata not in read:
                self.track(t)
        self.samples.append(self.live)
        return out


class StrictDevice(LiveBytes):
    """Treats what operators make as device memory, with a hard budget.

    An operator of the forward or backward pass that reads a host copy raises, as on a real device;
    so does an allocation over the budget.

    Parameters
    ----------
    engine
        Its arena counts against the budget; its host copies are forbidden to operators.
    budget
        Bytes; by default the plan's device budget.
    """

    def __init__(self, engine: Engine, budget: int | None = None) -> None:
        super().__init__()
        self.engine = engine
        self.budget = engine.plan.device_budget if budget is None else budget
        self.live = self.peak = engine.arena.size
        self._known.add(engine.arena.buffer.untyped_storage()._cdata)
        self._host = {c.host.untyped_storage()._cdata for c in engine.chunks}
        self._allowed = 0

    def check(self, func: Any, inputs: list[Tensor]) -> None:
        """Refuse operators that compute on host copies."""
        if func in (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default):
            return
        if torch.ops.aten.detach.default is func or func.namespace != "aten" or func.is_view:
            return
        for t in inputs:
            if t.untyped_storage()._cdata in self._host:
                raise RuntimeError(f"{func}: reads a host copy as if it were on the device")

    def track(self, tensor: Tensor) -> None:
        """Count an allocation, or refuse it."""
        super().track(tensor)
        if self.live > self.budget:
            raise BudgetExceededError(
                f"strict device: {self.live} bytes live, the budget is {self.budget}"
            )
