"""Checkpoints that any plan and any number of ranks can load.

A checkpoint is per parameter: name, shape, and flat pieces ``[low, high)`` of master and moments,
never the chunk layout. The manifest is replaced last, so a kill leaves the old checkpoint or the
new.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from elixir._files import write_text
from elixir.errors import CorruptCheckpointError
from elixir.memory.chunk import Slot
from elixir.runtime.optimizer import ChunkOptimizer

SCHEMA = 1
KEYS = ("master", "exp_avg", "exp_avg_sq")


def save(
    folder: str | Path, optimizer: ChunkOptimizer, extra: dict[str, Any] | None = None
) -> None:
    """Write model and optimizer; every rank calls it.

    Parameters
    ----------
    folder
        A former checkpoint there is replaced at the very end.
    optimizer
        From :func:`elixir.initialize`; it knows the model.
    extra
        Anything JSON can hold, such as the step and the data position.
    """
    engine = optimizer.engine
    if optimizer.states is None:
        raise ValueError(
            "optimizer: checkpoints hold AdamW states; save other optimizers with state_dict"
        )
    target = Path(folder)
    engine.settle()
    name = _shared(f"data-{uuid.uuid4().hex[:12]}", engine)
    place = target / name
    place.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for chunk in engine.chunks:
        if chunk.replicated and engine.rank:
            continue
        for slot in chunk.slots:
            if slot.part is None and engine.link is not None and engine.link.rank:
                continue
            label = slot.name if slot.part is None else f"{slot.name}@{slot.part.index}"
            first = 0
            if slot.origin is not None:
                label, first = slot.origin.name, slot.origin.first
            if slot.trainable:
                part = optimizer.states.slots[slot.name]
                if part.numel == 0:
                    continue
                for key, value in optimizer.states.read(chunk, slot).items():
                    tensors[f"{label}|{first + part.low}|{first + part.high}|{key}"] = value
            elif engine.rank == 0:
                value = chunk.flat(slot, chunk.host).float().clone()
                tensors[f"{label}|{first}|{first + slot.numel}|master"] = value
    if engine.first:
        for key, value in engine.model.named_buffers():
            tensors[f"{key}|buffer"] = value.detach().cpu().clone().contiguous()
    place_of = "" if engine.link is None else f"-{engine.link.rank}"
    path = place / f"rank-{engine.rank}{place_of}.safetensors"
    save_file(tensors, path)
    entry = {"file": f"{name}/{path.name}", "sha256": _hash(path)}
    entries: list[Any] = [entry]
    if engine.world > 1:
        entries = [None] * engine.world
        dist.all_gather_object(entries, entry, group=engine.group)
    if engine.link is not None:
        lines: list[Any] = [None] * engine.link.size
        dist.all_gather_object(lines, entries, group=engine.link.group)
        entries = [e for line in lines for e in line]
    if engine.first:
        manifest = {
            "schema_version": SCHEMA,
            "fingerprint": engine.plan.fingerprint,
            "world": engine.world,
            "files": entries,
            "parameters": {
                _name(s): {
                    "shape": _shape(s),
                    "stride": s.stride if _shape(s) == s.size else _dense(_shape(s)),
                    "parts": None if s.part is None else [s.part.dim, s.part.count, *s.stride],
                    "step": optimizer.states.slots[s.name].step if s.trainable else 0,
                }
                for c in engine.chunks
                for s in c.slots
            },
            "groups": [
                {
                    k: v
                    for k, v in g.items()
                    if k != "params" and isinstance(v, int | float | list | tuple)
                }
                for g in optimizer.param_groups
            ],
            "loss_scale": optimizer.scaler.scale if optimizer.scaler else None,
            "extra": extra or {},
        }
        write_text(target / "manifest.json", json.dumps(manifest, indent=1) + "\n")
        for old in target.glob("data-*"):
            if old.name != name:
                shutil.rmtree(old)
    if engine.world > 1:
        dist.barrier(group=engine.group)
    if engine.link is not None:
        dist.barrier(group=engine.link.group)


def load(folder: str | Path, optimizer: ChunkOptimizer) -> dict[str, Any]:
    """Load a checkpoint under any plan and any number of ranks; return its ``extra``.

    Raises
    ------
    CorruptCheckpointError
        If it is incomplete, damaged or of another model; nothing was changed then.
    """
    engine = optimizer.engine
    if optimizer.states is None:
        raise ValueError(
            "optimizer: checkpoints hold AdamW states; load other optimizers with load_state_dict"
        )
    manifest = inspect(folder)
    if manifest["fingerprint"] != engine.plan.fingerprint:
        raise CorruptCheckpointError(f"{folder}: is a checkpoint of another model")
    reader = _Reader(Path(folder), manifest)
    with engine.edit():
        for chunk in engine.chunks:
            if not (chunk.replicated or engine.shared is None or engine.shared.leads):
                continue  # the machine's first rank writes for all
            for slot in chunk.slots:
                about = manifest["parameters"][_name(slot)]
                engine.value(chunk, slot).copy_(_mine(reader, slot, about, "master"))
    engine.begin_update()
    for chunk in engine.chunks:
        for slot in chunk.slots:
            about = manifest["parameters"][_name(slot)]
            if not slot.trainable:
                continue
            part = optimizer.states.slots[slot.name]
            values = {}
            for key in KEYS:
                arranged = torch.empty_strided(slot.size, slot.stride)
                arranged.copy_(_mine(reader, slot, about, key))
                values[key] = arranged.as_strided((slot.numel,), (1,))[part.low : part.high]
            if not optimizer.states.low_precision:
                del values["master"]
            optimizer.states.write(chunk, slot, values, about["step"])
    engine.end_update()
    for chunk in engine.chunks:
        engine.invalidate(chunk)
    buffers = dict(engine.model.named_buffers())
    for key, value in reader.buffers().items():
        if key in buffers:
            buffers[key].copy_(value)
    for group, saved in zip(optimizer.param_groups, manifest["groups"], strict=True):
        group.update({k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()})
    if optimizer.scaler and manifest["loss_scale"]:
        optimizer.scaler.scale = manifest["loss_scale"]
    return dict(manifest["extra"])


def _mine(reader: _Reader, slot: Slot, about: dict[str, Any], key: str) -> Tensor:
    """Return a saved parameter as this rank has it: whole, its part, or a tile."""
    saved = reader.read(_name(slot), torch.Size(about["shape"]).numel(), key)
    value = saved.as_strided(about["shape"], about["stride"])
    if slot.origin is not None:
        first = slot.origin.first
        return value.reshape(-1)[first : first + slot.numel].view(slot.size)
    return value if slot.part is None else slot.part.cut(value)


def _name(slot: Slot) -> str:
    return slot.name if slot.origin is None else slot.origin.name


def _shape(slot: Slot) -> tuple[int, ...]:
    """Return the shape of the whole parameter."""
    whole = slot.part or slot.origin
    return slot.size if whole is None else whole.shape


def _dense(shape: Sequence[int]) -> tuple[int, ...]:
    return torch.empty(tuple(shape), device="meta").stride()


def inspect(folder: str | Path) -> dict[str, Any]:
    """Return a checkpoint's manifest after checking every file's hash.

    Raises
    ------
    CorruptCheckpointError
        If the manifest or a file is missing or damaged.
    """
    place = Path(folder)
    try:
        manifest = json.loads((place / "manifest.json").read_text())
        if manifest["schema_version"] != SCHEMA:
            raise ValueError(f"schema {manifest['schema_version']}, not {SCHEMA}")
        files = [(place / f["file"], f["sha256"]) for f in manifest["files"]]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CorruptCheckpointError(f"{place}: no readable manifest.json ({error})") from None
    for path, expected in files:
        if not path.is_file():
            raise CorruptCheckpointError(f"{path}: is missing")
        if _hash(path) != expected:
            raise CorruptCheckpointError(f"{path}: differs from its hash in the manifest")
    return dict(manifest)


def reshard(folder: str | Path, out: str | Path, world: int) -> None:
    """Divide a checkpoint's pieces for another number of ranks (loading does not need it)."""
    if world < 1:
        raise ValueError(f"world={world}: must be at least 1")
    manifest = inspect(folder)
    reader = _Reader(Path(folder), manifest)
    target = Path(out)
    name = f"data-{uuid.uuid4().hex[:12]}"
    (target / name).mkdir(parents=True)
    entries = []
    for rank in range(world):
        tensors = {}
        for parameter, about in manifest["parameters"].items():
            numel = torch.Size(about["shape"]).numel()
            low, high = rank * numel // world, (rank + 1) * numel // world
            for key in KEYS:
                if reader.has(parameter, key) and high > low:
                    piece = reader.read(parameter, numel, key)[low:high].clone()
                    tensors[f"{parameter}|{low}|{high}|{key}"] = piece
        if rank == 0:
            tensors |= {f"{k}|buffer": v for k, v in reader.buffers().items()}
        path = target / name / f"rank-{rank}.safetensors"
        save_file(tensors, path)
        entries.append({"file": f"{name}/{path.name}", "sha256": _hash(path)})
    manifest |= {"files": entries, "world": world}
    for about in manifest["parameters"].values():
        about["parts"] = None
    write_text(target / "manifest.json", json.dumps(manifest, indent=1) + "\n")


def export_safetensors(
    folder: str | Path, out: str | Path, dtype: torch.dtype = torch.float32
) -> int:
    """Write a checkpoint's parameters and buffers as one safetensors file; return their number."""
    from elixir._files import write_with

    manifest = inspect(folder)
    reader = _Reader(Path(folder), manifest)
    tensors = {}
    for name, about in manifest["parameters"].items():
        numel = torch.Size(about["shape"]).numel()
        value = reader.read(name, numel, "master").as_strided(about["shape"], about["stride"])
        tensors[name] = value.to(dtype).contiguous().clone()
    tensors |= reader.buffers()
    write_with(out, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    return len(tensors)


def export_dcp(folder: str | Path, out: str | Path) -> None:
    """Write a checkpoint in the format of ``torch.distributed.checkpoint``, per parameter."""
    import torch.distributed.checkpoint as dcp

    manifest = inspect(folder)
    reader = _Reader(Path(folder), manifest)
    state: dict[str, Tensor] = {}
    for name, about in manifest["parameters"].items():
        numel = torch.Size(about["shape"]).numel()
        for key, prefix in zip(KEYS, ("model", "exp_avg", "exp_avg_sq"), strict=True):
            if reader.has(name, key):
                value = reader.read(name, numel, key).as_strided(about["shape"], about["stride"])
                state[f"{prefix}.{name}"] = value.contiguous()
    dcp.save(state, checkpoint_id=str(out), no_dist=True)


class _Reader:
    """Reads pieces of parameters from all files of a checkpoint."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.pieces: dict[tuple[str, str], list[tuple[int, int, Path, str]]] = {}
        self.buffer_keys: dict[str, tuple[Path, str]] = {}
        self.about = manifest["parameters"]
        for entry in manifest["files"]:
            path = folder / entry["file"]
            try:
                with safe_open(path, "pt") as file:
                    keys = list(file.keys())
            except (SafetensorError, OSError) as error:
                raise CorruptCheckpointError(f"{path}: {error}") from None
            for key in keys:
                parts = key.split("|")
                if parts[-1] == "buffer":
                    self.buffer_keys[parts[0]] = (path, key)
                else:
                    piece = (int(parts[1]), int(parts[2]), path, key)
                    self.pieces.setdefault((parts[0], parts[3]), []).append(piece)

    def has(self, name: str, key: str) -> bool:
        return (name, key) in self.pieces or (f"{name}@0", key) in self.pieces

    def read(self, name: str, numel: int, key: str) -> Tensor:
        about = self.about[name]
        if not about.get("parts"):
            return self._read(name, numel, key)
        dim, count, *stride = about["parts"]
        shape = list(about["shape"])
        shape[dim] //= count
        parts = [
            self._read(f"{name}@{k}", numel // count, key).as_strided(shape, stride)
            for k in range(count)
        ]
        return torch.cat(parts, dim).flatten()

    def _read(self, name: str, numel: int, key: str) -> Tensor:
        whole, filled = torch.empty(numel), 0
        for low, high, path, label in self.pieces.get((name, key), ()):
            with safe_open(path, "pt") as file:
                whole[low:high] = file.get_tensor(label)
            filled += high - low
        if filled != numel:
            raise CorruptCheckpointError(f"{name}: {filled} of {numel} elements of {key} are there")
        return whole

    def buffers(self) -> dict[str, Tensor]:
        found = {}
        for name, (path, key) in self.buffer_keys.items():
            with safe_open(path, "pt") as file:
                found[name] = file.get_tensor(key)
        return found


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _shared(value: str, engine: Any) -> str:
    holder = [value]
    if engine.world > 1:
        source = dist.get_global_rank(engine.group, 0) if engine.group else 0
        dist.broadcast_object_list(holder, src=source, group=engine.group)
    if engine.link is not None:
        source = dist.get_global_rank(engine.link.group, 0)
        dist.broadcast_object_list(holder, src=source, group=engine.link.group)
    return str(holder[0])
