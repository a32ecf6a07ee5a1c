"""Optimizer states of chunks: per parameter, on host, device or disk, in 32 or 8 bits."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elixir._native_loader import cuda
from elixir.memory.chunk import Chunk, Slot
from elixir.memory.mover import DiskFile
from elixir.memory.simulated import window
from elixir.optim.kernels import BLOCK, adamw8_, adamw_, adamw_reference_
from elixir.runtime.engine import Engine


@dataclass
class SlotState:
    """AdamW's state of one parameter's part on this rank.

    ``low`` and ``high`` bound the part in elements of the parameter.
    """

    low: int
    high: int
    step: int = 0
    master: Tensor | None = None
    exp_avg: Tensor | None = None
    exp_avg_sq: Tensor | None = None
    scales: tuple[Tensor, Tensor] | None = None
    disk_offset: int = -1

    @property
    def numel(self) -> int:
        """Elements of the part."""
        return self.high - self.low

    def tensors(self) -> list[Tensor]:
        """Return what must be kept to undo an update."""
        found = [self.master, self.exp_avg, self.exp_avg_sq, *(self.scales or ())]
        return [t for t in found if t is not None]


@dataclass
class Staging:
    """Host memory through which states on disk pass."""

    tensor: Tensor = field(default_factory=lambda: torch.empty(0))

    def get(self, numel: int) -> Tensor:
        """Return at least ``numel`` fp32 elements."""
        if self.tensor.numel() < numel:
            self.tensor = torch.empty(numel)
        return self.tensor


class ChunkStates:
    """States of all chunks of an engine.

    Parameters
    ----------
    engine
        Holds the chunks.
    eight_bit
        Keep moments in one byte each.
    """

    def __init__(self, engine: Engine, *, eight_bit: bool = False) -> None:
        self.engine, self.eight_bit = engine, eight_bit
        self.low_precision = engine.dtype != torch.float32
        self.slots: dict[str, SlotState] = {}
        self.files: dict[int, DiskFile] = {}
        self.staging = Staging()
        self._folder: Any = None
        for chunk in engine.chunks:
            for slot in chunk.slots:
                if slot.trainable:
                    self.slots[slot.name] = self._make(chunk, slot)

    def _make(self, chunk: Chunk, slot: Slot) -> SlotState:
        begin = slot.offset // chunk.dtype.itemsize
        state = SlotState(*self.engine.gradients.held_range(chunk, slot))
        n = state.numel
        if chunk.plan.tier == "device" and self.engine.world == 1:
            parts = [
                self.engine.arena.flat(o, chunk.numel, torch.float32)[begin : begin + n]
                for o in chunk.state_offsets
            ]
            state.exp_avg, state.exp_avg_sq = parts[:2]
            if self.low_precision:
                state.master = parts[2]
        elif chunk.plan.tier == "disk":
            if self.eight_bit:
                raise ValueError("moments='8bit': states on disk are fp32; choose one of both")
            self._to_disk(chunk, state)
        elif self.eight_bit:
            state.exp_avg = torch.zeros(n, dtype=torch.int8)
            state.exp_avg_sq = torch.zeros(n, dtype=torch.uint8)
            state.scales = (torch.zeros(-(-n // BLOCK)), torch.zeros(-(-n // BLOCK)))
        else:
            state.exp_avg, state.exp_avg_sq = torch.zeros(n), torch.zeros(n)
        if self.low_precision and state.master is None and state.disk_offset < 0:
            state.master = torch.empty(n)
        self.take_master(chunk, slot, state)
        return state

    def _to_disk(self, chunk: Chunk, state: SlotState) -> None:
        if chunk.index not in self.files:
            if self._folder is None:
                self._folder = tempfile.mkdtemp(prefix="elixir-", dir=self.engine.disk_folder)
            self.files[chunk.index] = DiskFile(
                Path(self._folder) / f"{self.engine.rank}-{chunk.index}.states"
            )
            self._ends = getattr(self, "_ends", {}) | {chunk.index: 0}
        state.disk_offset = self._ends[chunk.index]
        self._ends[chunk.index] += state.numel * (12 if self.low_precision else 8)
        self.files[chunk.index].write(torch.zeros(2 * state.numel), state.disk_offset)

    def take_master(self, chunk: Chunk, slot: Slot, state: SlotState) -> None:
        """Set the fp32 master from the parameter's present value."""
        if not self.low_precision:
            return
        value = chunk.flat(slot, chunk.host)[state.low : state.high].float()
        if state.disk_offset >= 0:
            self.files[chunk.index].write(value, state.disk_offset + 8 * state.numel)
        elif state.master is not None:
            state.master.copy_(value)

    def load(self, chunk: Chunk, state: SlotState) -> None:
        """Bring states from disk into staging memory."""
        if state.disk_offset < 0:
            return
        n, parts = state.numel, 3 if self.low_precision else 2
        whole = self.staging.get(parts * n)[: parts * n]
        self.files[chunk.index].read(whole, state.disk_offset)
        state.exp_avg, state.exp_avg_sq = whole[:n], whole[n : 2 * n]
        state.master = whole[2 * n :] if parts == 3 else None

    def store(self, chunk: Chunk, state: SlotState) -> None:
        """Write states back to disk."""
        if state.disk_offset < 0:
            return
        parts = 3 if self.low_precision else 2
        self.files[chunk.index].write(self.staging.tensor[: parts * state.numel], state.disk_offset)
        state.exp_avg = state.exp_avg_sq = state.master = None

    def update(
        self, chunk: Chunk, slot: Slot, options: dict[str, Any], whole: Tensor | None = None
    ) -> None:
        """Run AdamW on a parameter's part; ``options`` go to :func:`elixir.optim.adamw_`.

        The gradient is the chunk's, or ``whole`` (flat) where it is given.
        """
        state = self.slots[slot.name]
        state.step += 1
        n = state.numel
        if n == 0:
            return
        if whole is None:
            gradient = self.engine.gradients.own(chunk, slot, state.low, state.high)
        else:
            gradient = whole[state.low : state.high]
        self.load(chunk, state)
        assert state.exp_avg is not None
        assert state.exp_avg_sq is not None
        if self.engine.gradients.on_device(chunk):
            base = self.engine.arena.flat(chunk.offset, chunk.numel, chunk.dtype)
        else:
            base = chunk.host
        low = chunk.flat(slot, base)[state.low : state.high]
        master = low if state.master is None else state.master
        rounded = None if state.master is None else low
        if low.device.type == "cuda":
            _cuda_adamw(
                master, state.exp_avg, state.exp_avg_sq, gradient, rounded, state.step, options
            )
        elif state.scales is not None:
            extra = dict(options)
            if not extra.pop("decoupled", True):
                raise ValueError("moments='8bit': only decoupled decay (AdamW) is offered")
            adamw8_(
                master,
                state.exp_avg,
                state.exp_avg_sq,
                state.scales,
                gradient,
                rounded,
                step=state.step,
                first=state.low,
                **extra,
            )
        else:
            adamw_(
                window(master),
                window(state.exp_avg),
                window(state.exp_avg_sq),
                window(gradient),
                None if rounded is None else window(rounded),
                step=state.step,
                **options,
            )
        self.store(chunk, state)

    def keep(self, chunk: Chunk, slot: Slot) -> list[Tensor]:
        """Return copies with which :meth:`restore` undoes an update; on the host.

        On the device they would take memory that no plan counts.
        """
        state = self.slots[slot.name]
        self.load(chunk, state)
        value = self._value(chunk, slot, state)
        kept = [t.to("cpu", copy=True) for t in [value, *state.tensors()]]
        if state.disk_offset >= 0:
            state.exp_avg = state.exp_avg_sq = state.master = None
        return kept

    def restore(self, chunk: Chunk, slot: Slot, kept: list[Tensor]) -> None:
        """Undo an update exactly."""
        state = self.slots[slot.name]
        self.load(chunk, state)
        for target, old in zip(
            [self._value(chunk, slot, state), *state.tensors()], kept, strict=True
        ):
            target.copy_(old)
        self.store(chunk, state)
        state.step -= 1

    def _value(self, chunk: Chunk, slot: Slot, state: SlotState) -> Tensor:
        on_device = self.engine.gradients.on_device(chunk)
        base = (
            self.engine.arena.flat(chunk.offset, chunk.numel, chunk.dtype)
            if on_device
            else chunk.host
        )
        return chunk.flat(slot, base)[state.low : state.high]

    def read(self, chunk: Chunk, slot: Slot) -> dict[str, Tensor]:
        """Return copies of a part's fp32 master and moments."""
        from elixir.optim.kernels import dequantize

        state = self.slots[slot.name]
        self.load(chunk, state)
        assert state.exp_avg is not None
        assert state.exp_avg_sq is not None
        if state.scales is not None:
            m, v = dequantize(state.exp_avg, state.exp_avg_sq, state.scales)
        else:
            m, v = state.exp_avg, state.exp_avg_sq
        master = self._value(chunk, slot, state) if state.master is None else state.master
        result = {
            "master": master.float().cpu().clone(),
            "exp_avg": m.cpu().clone(),
            "exp_avg_sq": v.cpu().clone(),
        }
        if state.disk_offset >= 0:
            state.exp_avg = state.exp_avg_sq = state.master = None
        return result

    def write(self, chunk: Chunk, slot: Slot, values: dict[str, Tensor], step: int) -> None:
        """Set a part's moments, and master where given; fp32."""
        from elixir.optim.kernels import quantize_

        state = self.slots[slot.name]
        state.step = step
        self.load(chunk, state)
        assert state.exp_avg is not None
        assert state.exp_avg_sq is not None
        if state.scales is not None:
            quantize_(
                values["exp_avg"],
                values["exp_avg_sq"],
                state.exp_avg,
                state.exp_avg_sq,
                state.scales,
            )
        else:
            state.exp_avg.copy_(values["exp_avg"])
            state.exp_avg_sq.copy_(values["exp_avg_sq"])
        if "master" in values:
            self._value(chunk, slot, state).copy_(values["master"])
            if state.master is not None:
                state.master.copy_(values["master"])
        self.store(chunk, state)

    def close(self) -> None:
        """Remove files."""
        for file in self.files.values():
            file.close()
        self.files.clear()
        if self._folder is not None:
            Path(self._folder).rmdir()
            self._folder = None


def _cuda_adamw(
    master: Tensor,
    m: Tensor,
    v: Tensor,
    gradient: Tensor,
    low: Tensor | None,
    step: int,
    options: dict[str, Any],
) -> None:
    """Run AdamW where the states are: our kernel if it was built, else torch's fused one."""
    import ctypes
    import math

    library = cuda()
    b1, b2 = options["betas"]
    lr, wd, scale = options["lr"], options["weight_decay"], options["scale"]
    decoupled = options.get("decoupled", True)
    if library is not None:
        types = {torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
        numbers = (ctypes.c_float * 10)(
            scale,
            b1,
            1 - b1,
            b2,
            1 - b2,
            1 / math.sqrt(1 - b2**step),
            options["eps"],
            1 - lr * wd if decoupled else 1.0,
            lr / (1 - b1**step),
            0.0 if decoupled else wd,
        )
        status = library.elixir_cuda_adamw(
            numbers,
            master.data_ptr(),
            m.data_ptr(),
            v.data_ptr(),
            gradient.data_ptr(),
            types[gradient.dtype],
            0 if low is None else low.data_ptr(),
            0 if low is None else types[low.dtype],
            master.numel(),
            torch.cuda.current_stream(master.device).cuda_stream,
        )
        if status:
            raise RuntimeError(f"elixir_cuda_adamw: CUDA error {status}")
        return
    if not decoupled:
        adamw_reference_(
            master,
            m,
            v,
            gradient,
            lr=lr,
            betas=(b1, b2),
            eps=options["eps"],
            weight_decay=wd,
            step=step,
            scale=scale,
            decoupled=False,
        )
    else:
        g = gradient.float() if scale == 1 else gradient.float() * scale
        count = torch.tensor(float(step), device=master.device)
        torch._fused_adamw_(
            [master],
            [g],
            [m],
            [v],
            [],
            [count],
            lr=lr,
            beta1=b1,
            beta2=b2,
            weight_decay=wd,
            eps=options["eps"],
            amsgrad=False,
            maximize=False,
        )
    if low is not None:
        low.copy_(master)
