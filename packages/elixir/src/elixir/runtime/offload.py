"""Saved activations on the host: out when autograd saves them, back before their node runs.

A storage is moved once, however many operators saved a view of it, and comes back in the reverse
order, a few storages ahead. The profiler runs the same :class:`Tape` over fake tensors, so the peak
of live bytes that it predicts is the one of training.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

AHEAD = 4
"""Storages that are brought back before their node asks."""
LEAST_BYTES = 1024
"""Smaller storages stay: a copy costs more than it frees."""

Hooks = tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]


class Carrier(Protocol):
    """Moves bytes for a :class:`Tape`."""

    def out(self, tensor: Tensor) -> Any:
        """Start to copy a tensor's whole storage away; return what finds it again."""

    def back(self, token: Any) -> Tensor:
        """Make room on the device and start the copy; return the storage's bytes."""

    def arrived(self, token: Any) -> None:
        """Return when compute may read what :meth:`back` returned."""

    def free(self, token: Any) -> None:
        """Forget the host's copy."""


class _Record:
    """One storage that left the device."""

    __slots__ = ("__weakref__", "carrier", "device", "index", "line", "token", "uses")

    def __init__(self, carrier: Carrier, token: Any, line: list[Any]) -> None:
        self.carrier, self.token, self.line = carrier, token, line
        self.index, self.uses = len(line), 0
        self.device: Tensor | None = None
        line.append(weakref.ref(self))

    def load(self) -> None:
        if self.device is None:
            self.device = self.carrier.back(self.token)

    def done(self) -> None:
        self.uses -= 1
        if self.uses <= 0:
            self.device = None

    def __del__(self) -> None:
        self.carrier.free(self.token)


class _Handle:
    """A saved tensor: a view of a record."""

    __slots__ = ("dtype", "offset", "open", "record", "size", "stride")

    def __init__(self, record: _Record, tensor: Tensor) -> None:
        self.record, self.open = record, True
        self.size, self.stride, self.dtype = tensor.size(), tensor.stride(), tensor.dtype
        self.offset = tensor.storage_offset()
        record.uses += 1

    def close(self) -> None:
        if self.open:
            self.open = False
            self.record.done()

    def __del__(self) -> None:
        self.close()


class Tape:
    """Packs saved tensors into the carrier's keeping.

    Parameters
    ----------
    carrier
        Copies.
    stays
        Tells which tensors are never moved (parameters, buffers).
    ahead
        Storages brought back early.
    """

    def __init__(
        self, carrier: Carrier, stays: Callable[[Tensor], bool], ahead: int = AHEAD
    ) -> None:
        self.carrier, self.stays, self.ahead = carrier, stays, ahead
        self._known: dict[tuple[int, int], weakref.ref[_Record]] = {}
        self._line: list[Any] = []

    def pack(self, tensor: Tensor) -> Any:
        """Return a handle in place of a tensor, or the tensor where it stays."""
        if tensor.layout != torch.strided or self.stays(tensor):
            return tensor
        storage = tensor.untyped_storage()
        if storage.nbytes() < LEAST_BYTES:
            return tensor
        key = storage._cdata, tensor._version
        known = self._known.get(key)
        record = known() if known else None
        if record is None:
            record = _Record(self.carrier, self.carrier.out(tensor), self._line)
            self._known[key] = weakref.ref(record)
            weakref.finalize(storage, self._known.pop, key, None)
        return _Handle(record, tensor)

    def unpack(self, saved: Any) -> Tensor:
        """Return a handle's tensor, and start to bring back what was saved before it."""
        if not isinstance(saved, _Handle):
            return saved  # type: ignore[no-any-return]
        record = saved.record
        record.load()
        assert record.device is not None
        self.carrier.arrived(record.token)
        line = record.line
        for index in range(record.index - 1, max(record.index - 1 - self.ahead, -1), -1):
            other = line[index]()
            if other is not None and other.uses > 0:
                other.load()
        whole = record.device.numel() // saved.dtype.itemsize * saved.dtype.itemsize
        flat = record.device[:whole].view(saved.dtype)
        saved.close()
        return flat.as_strided(saved.size, saved.stride, saved.offset)

    def begin(self) -> None:
        """Start a forward pass: what it saves comes back in its own order."""
        self._line = []


class HostCarrier:
    """Host buffers and the engine's mover.

    Parameters
    ----------
    mover
        Copies in both directions.
    device
        Where storages come back to.
    room
        Bytes that may still wait on the device for their copy out.
    """

    def __init__(self, mover: Any, device: torch.device, room: int) -> None:
        self.mover, self.device, self.room = mover, device, room
        self.moved = 0
        self._pool: dict[int, list[Tensor]] = {}
        self._flight: deque[tuple[Any, int]] = deque()
        self._waiting = 0

    def out(self, tensor: Tensor) -> Any:
        """Copy a storage to a host buffer."""
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        with _disable_current_modes(), torch.no_grad():
            spare = self._pool.get(size)
            pin = self.device.type == "cuda"
            host = spare.pop() if spare else torch.empty(size, dtype=torch.uint8, pin_memory=pin)
            flat = torch.empty(0, dtype=torch.uint8, device=tensor.device)
            flat.set_(storage, 0, (size,), (1,))
            handle = self.mover.d2h(host, flat)
        self.moved += size
        self._flight.append((handle, size))
        self._waiting += size
        while self._waiting > self.room and self._flight:
            first, old = self._flight.popleft()
            first.wait()
            self._waiting -= old
        return [host, handle, None]

    def back(self, token: Any) -> Tensor:
        """Allocate on the device and copy back."""
        host, leaving, _ = token
        leaving.wait()
        with torch.no_grad():
            device = torch.empty(host.numel(), dtype=torch.uint8, device=self.device)
        with _disable_current_modes(), torch.no_grad():
            if self.device.type == "cuda":
                # the block may have been read by kernels that are still queued
                self.mover.after(self.mover.mark())
                device.record_stream(self.mover.up)
            token[2] = self.mover.h2d(device, host)
        return device

    def arrived(self, token: Any) -> None:
        """Wait for the copy."""
        if token[2] is not None:
            token[2].wait()
            token[2] = None

    def free(self, token: Any) -> None:
        """Keep the buffer for the next storage of its size."""
        host, leaving, arriving = token
        leaving.wait()
        if arriving is not None:
            getattr(arriving, "synchronize", arriving.wait)()
        self._pool.setdefault(host.numel(), []).append(host)


def install(module: nn.Module, hooks: Hooks) -> None:
    """Let what a module's forward pass saves go through ``hooks``."""
    original = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with torch.autograd.graph.saved_tensors_hooks(*hooks):
            return original(*args, **kwargs)

    forward.elixir_original = module.__dict__.get("forward")  # type: ignore[attr-defined]
    module.forward = forward


@contextmanager
def offloaded(model: nn.Module, names: Sequence[str], hooks: Hooks) -> Iterator[None]:
    """Offload what the named modules save while the context is open."""
    from elixir.runtime.recompute import uninstall

    modules = dict(model.named_modules())
    if unknown := [name for name in names if name not in modules]:
        raise ValueError(f"offload={unknown[0]!r}: the model has no such module")
    installed = []
    try:
        for name in names:
            install(modules[name], hooks)
            installed.append(modules[name])
        yield
    finally:
        for module in reversed(installed):
            uninstall(module)
