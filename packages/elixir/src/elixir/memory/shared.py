"""Host memory that the ranks of one machine share: one copy of the parameters, not one each.

Reading needs no agreement between ranks, so ranks that route differently cannot wait for each
other. Writing does: a step begins when every rank of the machine has entered it, each rank then
writes its own part in place, and the step ends when every part is there. Between machines only
the parts that the other side lacks travel, through one rank per machine.
"""

from __future__ import annotations

import mmap
import os
import socket
import uuid
import warnings
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT = timedelta(minutes=30)


class SharedHost:
    """Bytes that exist once per machine.

    The memory has no name in any file system (``memfd_create``): it is gone when the last rank
    is, however the ranks end. Where ranks cannot open each other's memory, each keeps a copy.

    Parameters
    ----------
    size
        Bytes; the same on every rank.
    group
        The ranks; None for the default group.
    pin
        Whether to page-lock the memory for a CUDA device.

    Attributes
    ----------
    machines
        Ranks of the group by machine; the first rank of each leads it.
    data
        The bytes, as a flat ``uint8`` tensor.
    """

    def __init__(self, size: int, group: Any = None, *, pin: bool = False) -> None:
        self.size, self.group = size, group
        self.rank, self.world = dist.get_rank(group), dist.get_world_size(group)
        self._descriptor, self._pinned = -1, False
        self.machines = _by_machine(self._gather(_machine()))
        if not self._map(pin):
            self.machines = [[rank] for rank in range(self.world)]
            self.data = torch.zeros(size, dtype=torch.uint8, pin_memory=pin)
        self.mates = next(ranks for ranks in self.machines if self.rank in ranks)
        self.leads = self.mates[0] == self.rank
        token = self._gather(uuid.uuid4().hex)[0]
        self._mates = self._connect(f"{token}/{self.mates[0]}", self.mates)
        leaders = [ranks[0] for ranks in self.machines]
        self._leaders = self._connect(f"{token}/leaders", leaders) if self.leads else None
        self._gather(None)  # whoever closes early must not cut off a rank that still connects

    @property
    def shared(self) -> bool:
        """Whether another rank writes this memory as well."""
        return len(self.mates) > 1

    # -- construction ------------------------------------------------------------------------

    def _gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self.group)
        return values

    def _map(self, pin: bool) -> bool:
        """Map the leader's memory on every rank of the machine; all ranks succeed or none."""
        mates = next(ranks for ranks in self.machines if self.rank in ranks)
        trouble = ""
        if mates[0] == self.rank and len(mates) > 1:
            try:
                self._descriptor = os.memfd_create("elixir")
                os.posix_fallocate(self._descriptor, 0, self.size)
            except (AttributeError, OSError) as error:
                trouble = f"{self.size} bytes of shared memory: {error}"
        homes = self._gather((os.getpid(), self._descriptor))
        if mates[0] != self.rank:
            process, descriptor = homes[mates[0]]
            try:
                self._descriptor = os.open(f"/proc/{process}/fd/{descriptor}", os.O_RDWR)
            except OSError as error:
                trouble = f"the memory of rank {mates[0]}: {error}"
        if found := [text for text in self._gather(trouble) if text]:
            self.close()
            if self.rank == 0:
                warnings.warn(
                    f"every rank keeps its own copy of the parameters ({found[0]})",
                    RuntimeWarning,
                    stacklevel=2,
                )
            return False
        if len(mates) == 1:
            self.data = torch.zeros(self.size, dtype=torch.uint8, pin_memory=pin)
        else:
            self.data = self._view(mmap.MAP_SHARED)
            if pin:
                status = torch.cuda.cudart().cudaHostRegister(self.data.data_ptr(), self.size, 0)
                torch.cuda.check_error(int(status))
                self._pinned = True
        return True

    def _view(self, flags: int) -> Tensor:
        return torch.frombuffer(mmap.mmap(self._descriptor, self.size, flags), dtype=torch.uint8)

    def _connect(self, name: str, ranks: list[int]) -> Any:
        """Return a gloo group of its own: its operations never queue behind the training's."""
        if len(ranks) == 1:
            return None
        store = dist.PrefixStore(f"elixir/{name}", dist.distributed_c10d._get_default_store())
        return dist.ProcessGroupGloo(store, ranks.index(self.rank), len(ranks), TIMEOUT)

    # -- agreement ---------------------------------------------------------------------------

    def meet(self) -> None:
        """Return when every rank of this machine has come here; raise if one has died."""
        if self._mates is not None:
            self._mates.barrier().wait()

    def begin_exchange(self, piece: Tensor) -> list[Any]:
        """Start to complete a divided tensor with the parts of the other machines' ranks.

        Every leader calls it for the same tensors in the same order; wait for what it returns.

        Parameters
        ----------
        piece
            A part of :attr:`data`, divided evenly over all ranks.
        """
        if self._leaders is None:
            return []
        flat = piece.view(torch.uint8)
        share = flat.numel() // self.world
        works = []
        for root, ranks in enumerate(self.machines):
            options = dist.BroadcastOptions()
            options.rootRank, options.rootTensor = root, 0
            for low, high in _runs(ranks):
                part = flat[low * share : high * share]
                works.append(self._leaders.broadcast([part], options))
        return works

    def spread(self) -> None:
        """Give every machine the bytes of the first rank's; every rank calls it."""
        self.meet()
        if self._leaders is not None:
            options = dist.BroadcastOptions()
            options.rootRank, options.rootTensor = 0, 0
            self._leaders.broadcast([self.data], options).wait()
        self.meet()

    # -- edits -------------------------------------------------------------------------------

    def snapshot(self) -> Tensor:
        """Return the bytes as this rank may change them alone: a page is copied when written."""
        return self._view(mmap.MAP_PRIVATE) if self.shared else self.data

    def commit(self, edited: Tensor) -> None:
        """Take the leader's version of a :meth:`snapshot`; every rank calls it."""
        self.meet()
        if self.shared and self.leads:
            self.data.copy_(edited)
        self.meet()

    def close(self) -> None:
        """Release the descriptor; the memory lives as long as tensors use it."""
        if self._pinned:
            torch.cuda.check_error(
                int(torch.cuda.cudart().cudaHostUnregister(self.data.data_ptr()))
            )
            self._pinned = False
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._mates = self._leaders = None


def _machine() -> str:
    """Name this machine; ranks in different containers do not see each other's memory."""
    if name := os.environ.get("ELIXIR_MACHINE"):
        return name
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if not (boot.exists() and hasattr(os, "memfd_create")):
        return f"alone-{uuid.uuid4().hex}"
    return f"{socket.gethostname()} {boot.read_text().strip()} {space.readlink()}"


def _by_machine(names: Sequence[str]) -> list[list[int]]:
    found: dict[str, list[int]] = {}
    for rank, name in enumerate(names):
        found.setdefault(name, []).append(rank)
    return list(found.values())


def _runs(ranks: Sequence[int]) -> list[tuple[int, int]]:
    """Return the runs of consecutive ranks as half-open intervals."""
    runs: list[tuple[int, int]] = []
    for rank in ranks:
        if runs and runs[-1][1] == rank:
            runs[-1] = (runs[-1][0], rank + 1)
        else:
            runs.append((rank, rank + 1))
    return runs
