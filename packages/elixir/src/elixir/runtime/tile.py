"""Weights split along their first dimension: a linear map or an embedding larger than the device.

The module's weight becomes tiles, small modules of its own, which chunks hold apart and the engine
fetches one after another (ZeRO-Infinity's memory-centric tiling). Names and shapes that a user or a
checkpoint sees stay those of the whole weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elixir.profile.parts import Origin


@dataclass(frozen=True)
class Split:
    """A weight in tiles of ``rows`` rows, and the modules that use it (more than one if tied)."""

    modules: tuple[str, ...]
    rows: int


class _Tile(nn.Module):
    """Some rows of a weight.

    Every call uses an alias of the weight as its autograd leaf and hands the gradient to the
    weight's hooks: a tied weight's first gradient does not wait on the device for the second.
    """

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, first: int) -> None:
        super().__init__()
        self.weight, self.bias, self.first = weight, bias, first

    def _leaf(self) -> Tensor:
        weight = self.weight
        if not (weight.requires_grad and torch.is_grad_enabled()):
            return weight
        leaf = weight.detach().requires_grad_()

        def deliver(alias: Tensor) -> None:
            hooks = list((weight._post_accumulate_grad_hooks or {}).values())
            for hook in hooks:
                hook(alias)
            if not hooks:
                before = torch.zeros_like(weight) if weight.grad is None else weight.grad
                weight.grad = before if alias.grad is None else before + alias.grad
            alias.grad = None

        leaf.register_post_accumulate_grad_hook(deliver)
        return leaf

    def forward(self, x: Tensor, out: Tensor | None = None, padding: int | None = None) -> Tensor:
        """Return this part of a product or, for indices, the rows that are here and ``out``."""
        if x.is_floating_point():
            return F.linear(x, self._leaf(), self.bias)
        here = (x >= self.first) & (x < self.first + len(self.weight))
        index = torch.where(here, x - self.first, 0)
        own = None if padding is None else padding - self.first
        own = own if own is not None and 0 <= own < len(self.weight) else None
        rows = F.embedding(index, self._leaf(), own)
        mask = here.unsqueeze(-1)
        return torch.where(mask, rows, torch.zeros_like(rows) if out is None else out)


def _usable(module: nn.Module) -> bool:
    if type(module).forward is nn.Linear.forward:
        return True
    if type(module).forward is not nn.Embedding.forward:
        return False
    return not (module.sparse or module.scale_grad_by_freq) and module.max_norm is None


def find(
    model: nn.Module, bound: int, itemsize: int, skip: Iterable[str] = (), *, tied: bool = True
) -> tuple[Split, ...]:
    """Return how to split every linear map's and embedding's weight of more than ``bound`` bytes.

    Weights that other modules or modules in ``skip`` use stay whole, and tied ones unless ``tied``.
    """
    users: dict[int, list[str]] = {}
    weights: dict[int, nn.Parameter] = {}
    skipped, modules = set(skip), dict(model.named_modules())
    for name, module in modules.items():
        for key, p in module._parameters.items():
            if p is not None:
                plain = key == "weight" and _usable(module) and name not in skipped
                users.setdefault(id(p), []).append(name if plain else "")
                weights[id(p)] = p
    found = []
    for key, names in users.items():
        weight = weights[key]
        size = weight.numel() * itemsize
        if size <= bound or "" in names or len(weight) < 2 or (len(names) > 1 and not tied):
            continue
        tiles = min(-(-size // max(bound, 1)), len(weight))
        found.append(Split(tuple(names), -(-len(weight) // tiles)))
    return tuple(found)


def _linear(tiles: Sequence[_Tile], module: nn.Module) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        y: Tensor = torch.cat([tile(x) for tile in tiles], -1)
        bias = module._parameters.get("bias")  # of a tied weight: its tiles have none
        return y if bias is None else y.add(bias)

    return forward


def _lookup(tiles: Sequence[_Tile], padding: int | None) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        out: Tensor = tiles[0](x, None, padding)
        for tile in tiles[1:]:
            out = tile(x, out, padding)
        return out

    return forward


def _cut(p: nn.Parameter, name: str, first: int, rows: int) -> nn.Parameter:
    tile = nn.Parameter(p.data[first : first + rows], p.requires_grad)
    width = p.numel() // len(p)
    tile._elixir_origin = Origin(name, tuple(p.shape), first * width)  # type: ignore[attr-defined]
    return tile


class Tiles:
    """The split weights of a model; made, they are in place until :meth:`remove`.

    Parameters
    ----------
    model
        Its modules get tiles.
    splits
        From :func:`find`.
    """

    def __init__(self, model: nn.Module, splits: Sequence[Split]) -> None:
        self.model = model
        self.of: dict[int, list[nn.Parameter]] = {}
        self.names: dict[str, list[str]] = {}
        self._undo: list[tuple[nn.Module, dict[str, nn.Parameter | None], int]] = []
        modules = dict(model.named_modules())
        for split in splits:
            users = [modules[name] for name in split.modules]
            weight, bias = users[0]._parameters["weight"], users[0]._parameters.get("bias")
            assert weight is not None
            bias = bias if len(users) == 1 else None
            name = split.modules[0]
            tiles = []
            for first in range(0, len(weight), split.rows):
                part = _cut(weight, f"{name}.weight", first, split.rows)
                also = None if bias is None else _cut(bias, f"{name}.bias", first, split.rows)
                tiles.append(_Tile(part, also, first))
            self.of[id(weight)] = [t.weight for t in tiles]
            if bias is not None:
                self.of[id(bias)] = [t.bias for t in tiles if t.bias is not None]
            for user, where in zip(users, split.modules, strict=True):
                self._undo.append((user, dict(user._parameters), len(tiles)))
                keys = ("weight",) if bias is None else ("weight", "bias")
                for key in keys:
                    names = [f"{where}.tile{k}.{key}" for k in range(len(tiles))]
                    self.names[f"{where}.{key}"] = names
                    del user._parameters[key]
                for k, tile in enumerate(tiles):
                    user.add_module(f"tile{k}", tile)
                run: Any = _linear(tiles, user)
                if isinstance(user, nn.Embedding):
                    run = _lookup(tiles, user.padding_idx)
                user.forward = run

    def release(self) -> None:
        """Give back the whole weights' memory: the chunks have their values."""
        for _, parameters, _ in self._undo:
            for p in parameters.values():
                if p is not None and id(p) in self.of:
                    p.data = p.data.new_empty(0)

    def expand(self, parameters: Iterable[Any]) -> list[Any]:
        """Return parameters (or groups) with the tiles in place of split ones."""
        found: list[Any] = []
        for entry in parameters:
            if isinstance(entry, dict):
                inner = entry["params"]
                inner = [inner] if isinstance(inner, Tensor) else inner
                found.append({**entry, "params": self.expand(inner)})
            else:
                found += self.of.get(id(entry), [entry])
        return found

    def join_state(self, state: dict[str, Any], prefix: str) -> None:
        """Put whole weights in place of the tiles in a state dict."""
        entries = list(state.items())
        starts = {prefix + names[0]: (prefix + name, names) for name, names in self.names.items()}
        tiles = {prefix + n for names in self.names.values() for n in names}
        state.clear()
        for key, value in entries:
            if key in starts:
                name, names = starts[key]
                given = dict(entries)
                state[name] = torch.cat([given[prefix + n] for n in names])
            elif key not in tiles:
                state[key] = value

    def cut_state(self, state: dict[str, Any], prefix: str) -> None:
        """Put tiles in place of whole weights in a state dict that is about to be loaded."""
        own = dict(self.model.named_parameters(remove_duplicate=False))
        for name, names in self.names.items():
            whole = state.pop(prefix + name, None)
            if whole is not None:
                sizes = [len(own[n]) for n in names]
                if sum(sizes) != len(whole):
                    raise ValueError(f"{name}: has {len(whole)} rows, the model {sum(sizes)}")
                state |= dict(zip((prefix + n for n in names), whole.split(sizes), strict=True))

    def remove(self, *, values: bool = True) -> None:
        """Give the modules their whole weights back, with the tiles' values."""
        done = set()
        for module, parameters, count in reversed(self._undo):
            for p in parameters.values():
                if values and p is not None and id(p) in self.of and id(p) not in done:
                    p.data = torch.cat([t.data for t in self.of[id(p)]])
                    done.add(id(p))
            module._parameters.clear()
            module._parameters.update(parameters)
            for k in range(count):
                del module._modules[f"tile{k}"]
            module.__dict__.pop("forward", None)
        self._undo.clear()


@contextmanager
def tiled(model: nn.Module, splits: Sequence[Split]) -> Iterator[None]:
    """Let a trace see a model's tiles; the model is left unchanged."""
    tiles = Tiles(model, splits)
    try:
        yield
    except AttributeError as error:
        names = ", ".join(m for s in splits for m in s.modules)
        raise ValueError(
            f"split: a weight of {names} is read outside its module ({error})"
        ) from None
    finally:
        tiles.remove(values=False)
