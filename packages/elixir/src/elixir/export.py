"""A plan for other engines, for when a model outgrows one node."""

from __future__ import annotations

import json
from typing import Any

from elixir.planner.result import Plan


def to_deepspeed(plan: Plan, *, batch_per_rank: int = 1) -> dict[str, Any]:
    """Return a DeepSpeed configuration with the plan's tiers as ZeRO-3 settings.

    The live-parameter and prefetch sizes (in elements) are the plan's cache and look-ahead; chunks
    that stay become the persistence threshold.
    """
    if batch_per_rank < 1:
        raise ValueError(f"batch_per_rank={batch_per_rank}: must be at least 1")
    itemsize = 4 if plan.dtype == "float32" else 2
    tiers = {c.tier for c in plan.chunks}
    largest = max(c.bytes for c in plan.chunks) // itemsize
    zero: dict[str, Any] = {
        "stage": 3,
        "stage3_max_live_parameters": max(plan.cache_bytes // itemsize, largest),
        "stage3_prefetch_bucket_size": plan.prefetch * largest,
        "stage3_param_persistence_threshold": 0,
        "reduce_bucket_size": max(plan.gradient_bytes // itemsize, largest),
        "overlap_comm": True,
    }
    if tiers & {"host", "disk"}:
        zero["offload_param"] = {"device": "cpu", "pin_memory": plan.device != "cpu"}
    if tiers & {"host", "pinned", "disk"}:
        where = "nvme" if "disk" in tiers else "cpu"
        zero["offload_optimizer"] = {"device": where, "pin_memory": plan.device != "cpu"}
        states = sum(c.trainable for c in plan.chunks) or 1
        moving = sum(c.trainable for c in plan.chunks if c.tier != "device")
        if where == "cpu":
            zero["offload_optimizer"]["ratio"] = round(moving / states, 4)
    config = {
        "train_micro_batch_size_per_gpu": batch_per_rank,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
    }
    if plan.dtype == "bfloat16":
        config["bf16"] = {"enabled": True}
    if plan.dtype == "float16":
        config["fp16"] = {"enabled": True}
    return config


def to_fsdp2(plan: Plan) -> str:
    """Return Python that applies ``fully_shard`` with the plan's tiers to a model."""
    offload = any(c.tier != "device" for c in plan.chunks)
    policy = (
        "CPUOffloadPolicy(pin_memory=torch.cuda.is_available())" if offload else "OffloadPolicy()"
    )
    mixed = (
        "MixedPrecisionPolicy()"
        if plan.dtype == "float32"
        else f"MixedPrecisionPolicy(param_dtype=torch.{plan.dtype}, reduce_dtype=torch.float32)"
    )
    names = sorted(
        {n.rsplit(".", 2)[0] for c in plan.chunks for n in c.parameters if n.count(".") > 2}
    )
    lines = [
        "import torch",
        "from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, "
        "OffloadPolicy, fully_shard",
        "",
        "",
        "def apply(model, mesh):",
        f"    options = dict(mesh=mesh, mp_policy={mixed}, offload_policy={policy},",
        f"                   reshard_after_forward={offload})",
        f"    for name in {json.dumps(sorted(names, key=lambda n: -n.count('.')))}:",
        "        fully_shard(model.get_submodule(name), **options)",
        "    return fully_shard(model, **options)",
    ]
    return "\n".join(lines) + "\n"
