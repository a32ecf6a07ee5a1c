"""Copies between tiers: host threads with a throttle, CUDA streams, disk."""

from __future__ import annotations

import os
import queue
import threading
import time
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from elixir.optim.kernels import copy_


class Handle(Protocol):
    """A copy under way."""

    def wait(self) -> None:
        """Return when the consumer may read the target."""


class Done:
    """A copy that has already happened."""

    def wait(self) -> None:
        """Return at once."""


DONE = Done()


class HostMover:
    """Copies for the emulated device.

    Parameters
    ----------
    h2d, d2h
        Bytes per second; None copies at once, in the caller.
    latency
        Seconds per copy.
    """

    def __init__(
        self, h2d: float | None = None, d2h: float | None = None, latency: float = 0.0
    ) -> None:
        for name, rate in (("h2d", h2d), ("d2h", d2h)):
            if rate is not None and rate <= 0:
                raise ValueError(f"{name}={rate}: must be positive")
        self.moved = {"h2d": 0, "d2h": 0}
        self.copies = {"h2d": 0, "d2h": 0}
        self._latency = latency
        self._lanes = {
            "h2d": _Lane(h2d, latency) if h2d else None,
            "d2h": _Lane(d2h, latency) if d2h else None,
        }

    def _go(self, direction: str, target: Tensor, source: Tensor) -> Handle:
        self.moved[direction] += target.nbytes
        self.copies[direction] += 1
        lane = self._lanes[direction]
        if lane is None:
            copy_(target, source)
            return DONE
        return lane.submit(target, source)

    def h2d(self, target: Tensor, source: Tensor) -> Handle:
        """Copy a flat tensor to the device."""
        return self._go("h2d", target, source)

    def d2h(self, target: Tensor, source: Tensor) -> Handle:
        """Copy a tensor to the host; the source is kept alive until then."""
        if not (target.is_contiguous() and source.is_contiguous()):
            source = source.contiguous()
        return self._go("d2h", target, source)

    def mark(self) -> Any:
        """Return a mark of compute's present work; None where copies are in its order."""
        return None

    def after(self, mark: Any) -> None:
        """Let later uploads wait for a mark."""

    def close(self) -> None:
        """End the threads."""
        for lane in self._lanes.values():
            if lane is not None:
                lane.close()


class _Ticket:
    def __init__(self, target: Tensor, source: Tensor) -> None:
        self.submitted = time.perf_counter()
        self.target, self.source = target, source
        self.event = threading.Event()
        self.error: BaseException | None = None

    def wait(self) -> None:
        self.event.wait()
        if self.error is not None:
            raise self.error


class _Lane:
    """A thread that copies in order, no faster than its rate."""

    def __init__(self, rate: float, latency: float) -> None:
        self.rate, self.latency = rate, latency
        self.queue: queue.SimpleQueue[_Ticket | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def submit(self, target: Tensor, source: Tensor) -> _Ticket:
        ticket = _Ticket(target, source)
        self.queue.put(ticket)
        return ticket

    def _run(self) -> None:
        free = 0.0
        while (ticket := self.queue.get()) is not None:
            # a late wake-up of this thread is not the emulated bus's: a copy that was waiting
            # begins when the one before it ended
            begin = max(free, ticket.submitted)
            free = begin + self.latency + ticket.target.nbytes / self.rate
            try:
                with torch.no_grad():
                    copy_(ticket.target, ticket.source, free)
            except BaseException as error:  # handed to whoever waits
                ticket.error = error
            ticket.target = ticket.source = None  # type: ignore[assignment]
            ticket.event.set()

    def close(self) -> None:
        self.queue.put(None)
        self.thread.join()


class CudaMover:
    """Copies on two streams of a CUDA device, beside compute.

    Parameters
    ----------
    device
        A CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.up = torch.cuda.Stream(device)
        self.down = torch.cuda.Stream(device)
        self.moved = {"h2d": 0, "d2h": 0}
        self.copies = {"h2d": 0, "d2h": 0}

    def h2d(self, target: Tensor, source: Tensor) -> Handle:
        """Copy pinned memory to the device; ``wait`` orders the current stream after it."""
        self.moved["h2d"] += target.nbytes
        self.copies["h2d"] += 1
        with torch.cuda.stream(self.up):
            target.copy_(source, non_blocking=True)
            event = torch.cuda.Event()
            event.record(self.up)
        return _StreamWait(event, self.device)

    def d2h(self, target: Tensor, source: Tensor) -> Handle:
        """Copy to pinned memory after compute's present work; ``wait`` blocks the host."""
        self.moved["d2h"] += target.nbytes
        self.copies["d2h"] += 1
        self.down.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.down):
            target.copy_(source, non_blocking=True)
            source.record_stream(self.down)
            event = torch.cuda.Event()
            event.record(self.down)
        return _HostWait(event, source)

    def mark(self) -> Any:
        """Return an event after the kernels given to compute so far."""
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return event

    def after(self, mark: Any) -> None:
        """Let later uploads wait for a mark."""
        self.up.wait_event(mark)

    def close(self) -> None:
        """Wait for the streams."""
        self.up.synchronize()
        self.down.synchronize()


class _StreamWait:
    def __init__(self, event: Any, device: torch.device) -> None:
        self.event, self.device = event, device

    def wait(self) -> None:
        torch.cuda.current_stream(self.device).wait_event(self.event)

    def synchronize(self) -> None:
        self.event.synchronize()


class _HostWait:
    def __init__(self, event: Any, source: Tensor) -> None:
        self.event, self.source = event, source

    def wait(self) -> None:
        self.event.synchronize()
        self.source = None  # type: ignore[assignment]


class DiskFile:
    """Flat fp32 states of one chunk in a file.

    Parameters
    ----------
    path
        The file; made, and removed by :meth:`close`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        self.moved = 0

    def write(self, tensor: Tensor, offset: int = 0) -> None:
        """Write a contiguous tensor at a byte offset."""
        data = memoryview(tensor.view(torch.uint8).numpy())  # type: ignore[arg-type]
        done = 0
        while done < len(data):
            done += os.pwrite(self.descriptor, data[done:], offset + done)
        self.moved += done

    def read(self, tensor: Tensor, offset: int = 0) -> None:
        """Fill a contiguous tensor from a byte offset.

        Raises
        ------
        OSError
            If the file ends early.
        """
        data = memoryview(tensor.view(torch.uint8).numpy())  # type: ignore[arg-type]
        done = 0
        while done < len(data):
            count = os.preadv(self.descriptor, [data[done:]], offset + done)
            if count == 0:
                raise OSError(f"{self.path}: ends after {offset + done} bytes")
            done += count
        self.moved += done

    def close(self) -> None:
        """Remove the file."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
            self.path.unlink(missing_ok=True)
