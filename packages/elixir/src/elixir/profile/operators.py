"""Patterns of operators: which linear maps are divided by column or row, and where they join.

A column-parallel map's output may stay divided only if nothing but element-wise operators lies
between it and row-parallel maps. One forward pass on fake tensors decides that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from elixir.profile.trace import call, swapped

KINDS = ("column", "row")
Rule = tuple[str, str]


@dataclass(frozen=True)
class Operator:
    """A linear map that is divided over ranks.

    Attributes
    ----------
    module
        Its name.
    kind
        ``column``: each rank makes its part of the outputs; ``row``: each rank takes its part of
        the inputs and the results are added.
    whole
        Whether the divided activation joins here: a column's output is gathered, a row's input is
        cut from a whole one.
    """

    module: str
    kind: str
    whole: bool


def output_dim(module: nn.Module) -> int | None:
    """Return the dimension of a linear map's weight that counts outputs; None for others."""
    if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
        return 0
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # of transformers' GPT-2
        return 1
    return None


def match(model: nn.Module, rules: Sequence[Rule], ways: int) -> dict[str, str]:
    """Return each divided module's kind; later rules win.

    Raises
    ------
    ValueError
        For a pattern without a linear map, a tied weight, or a size that ``ways`` does not divide.
    """
    found: dict[str, str] = {}
    for pattern, kind in rules:
        hit = [
            name
            for name, module in model.named_modules()
            if output_dim(module) is not None
            and (fnmatchcase(name, pattern) or fnmatchcase(f"{name}.weight", pattern))
        ]
        if not hit:
            raise ValueError(
                f"override: pattern {pattern!r} matches no operator that shard={kind!r} can "
                "divide; allowed are nn.Linear and transformers' Conv1D"
            )
        found |= dict.fromkeys(hit, kind)
    owners: dict[int, int] = {}
    for module in model.modules():
        for p in module._parameters.values():
            owners[id(p)] = owners.get(id(p), 0) + 1
    modules = dict(model.named_modules())
    for name, kind in found.items():
        module = modules[name]
        weight, dim = module._parameters["weight"], output_dim(module)
        assert weight is not None
        assert dim is not None
        if owners[id(weight)] > 1:
            raise ValueError(f"override: {name}.weight is tied and cannot be divided by {kind}")
        size = weight.shape[dim if kind == "column" else 1 - dim]
        if size % ways:
            raise ValueError(
                f"override: {name} has {size} {'outputs' if kind == 'column' else 'inputs'}, "
                f"which {ways} ranks do not divide"
            )
    return found


def joins(model: nn.Module, batch: Any, kinds: Mapping[str, str]) -> set[str]:
    """Return columns that must gather and rows that take a whole input."""
    names = set(kinds)
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def make(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        with mode:
            new = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
        return nn.Parameter(new, False) if isinstance(value, nn.Parameter) else new

    tags, rng = _Tags(), torch.random.get_rng_state()
    try:
        with swapped(model, make), tags.watching(model, kinds), mode, tags, torch.no_grad():
            inputs = tree_map(make, batch)
            output = call(model, inputs)
            tags.reject(tree_flatten(output)[0])
    except (RuntimeError, TypeError, NotImplementedError, ValueError):
        return names  # its shapes depend on data: every operator joins by itself
    finally:
        torch.random.set_rng_state(rng)
    fed = set().union(*(t for calls in tags.fed.values() for t in calls))
    tags.failed |= {n for n, kind in kinds.items() if kind == "column" and n not in fed}
    groups = [*tags.together, *(frozenset().union(*calls) for calls in tags.fed.values())]
    for row, calls in tags.fed.items():
        if not all(calls):
            tags.failed |= frozenset().union(*calls)
            tags.failed.add(row)
    while more := {n for g in groups if g & tags.failed for n in g} - tags.failed:
        tags.failed |= more
    rows = {n for n, kind in kinds.items() if kind == "row"}
    apart = {
        n
        for n in rows
        if n in tags.fed and all(tags.fed[n]) and not frozenset().union(*tags.fed[n]) & tags.failed
    }
    return (tags.failed | rows) - apart


class _Tags(TorchDispatchMode):
    """Follows divided activations from columns through element-wise operators to rows."""

    VIEWS = ("view", "_unsafe_view", "reshape", "unsqueeze", "alias", "detach", "clone", "_to_copy")

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[int, frozenset[str]] = {}
        self.kept: list[Any] = []
        self.failed: set[str] = set()
        self.fed: dict[str, list[frozenset[str]]] = {}
        self.together: set[frozenset[str]] = set()
        self.inside = 0

    def tag(self, tensor: Tensor, names: frozenset[str]) -> None:
        storage = tensor.untyped_storage()
        self.kept.append(storage)  # its address must not be used again
        self.of[storage._cdata] = names
        self.together.add(names)

    def tags(self, tensor: Any) -> frozenset[str]:
        if not isinstance(tensor, Tensor):
            return frozenset()
        return self.of.get(tensor.untyped_storage()._cdata, frozenset())

    def reject(self, tensors: Sequence[Any]) -> None:
        for tensor in tensors:
            self.failed |= self.tags(tensor)

    @contextmanager
    def watching(self, model: nn.Module, kinds: Mapping[str, str]) -> Iterator[None]:
        handles: list[Any] = []
        modules = dict(model.named_modules())

        def before(name: str, kind: str) -> Callable[..., None]:
            def hook(_: nn.Module, args: Any) -> None:
                given = self.tags(args[0]) if args else frozenset()
                if kind == "row":
                    self.fed.setdefault(name, []).append(given)
                else:
                    self.failed |= given
                self.inside += 1

            return hook

        def after(name: str, kind: str) -> Callable[..., None]:
            def hook(_: nn.Module, __: Any, output: Any) -> None:
                self.inside -= 1
                if kind == "column":
                    self.tag(output, frozenset([name]))

            return hook

        try:
            for name, kind in kinds.items():
                handles.append(modules[name].register_forward_pre_hook(before(name, kind)))
                handles.append(modules[name].register_forward_hook(after(name, kind)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self.inside:
            return out
        if func.namespace == "prim":  # asks for a device or a layout, not for values
            return out
        inputs = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        outputs = [t for t in tree_flatten(out)[0] if isinstance(t, Tensor)]
        found = frozenset().union(*map(self.tags, inputs))
        if not found:
            return out
        if self._keeps(func, inputs, outputs):
            for tensor in outputs:
                self.tag(tensor, found)
        else:
            self.failed |= found
        return out

    def _keeps(self, func: Any, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> bool:
        """Whether an operator works on every element of the last dimension by itself."""
        divided = [t for t in inputs if self.tags(t)]
        last = divided[0].shape[-1]
        if any(t.dim() == 0 or t.shape[-1] != last for t in [*divided, *outputs]):
            return False
        if func.overloadpacket.__name__ in self.VIEWS:
            return True
        others = [t for t in inputs if not self.tags(t)]
        alike = all(t.dim() == 0 or t.shape[-1] == 1 for t in others)
        return torch.Tag.pointwise in func.tags and alike
