"""From requests to log-probabilities: deduplication, buckets, memory budget, cache, resume."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError, ProbeError, ScoreError, require
from .files import read_arrays, write_arrays
from .scorers.base import Request, Scorer, Scores

SHARD_REQUESTS = 4096


@dataclass
class PlanStatistics:
    """What a planner did: requests, forwards of distinct inputs, batches, halvings, cache hits."""

    requests: int = 0
    sequences: int = 0
    tokens: int = 0
    batches: int = 0
    halvings: int = 0
    shards: int = 0
    cached_shards: int = 0


class Planner:
    """Answers requests with a scorer.

    Equal inputs are run once. Inputs of equal length share a batch, so nothing is padded and no
    attention mask is needed. A batch is as large as the memory budget allows and is halved when
    memory runs out. With a cache folder, requests are answered in shards whose file names are
    checksums of scorer and requests: a run that was killed goes on where it was, and because a
    shard's batches never depend on other shards, its numbers are the same bits.

    Parameters
    ----------
    scorer : Scorer
    budget_bytes : int
        Activations and logits of one batch.
    max_batch : int
    cache : path, optional
        Folder for the shards.
    progress : callable, optional
        Called with done and total shards.
    """

    def __init__(
        self,
        scorer: Scorer,
        budget_bytes: int = 2**28,
        max_batch: int = 256,
        cache: str | Path | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> None:
        require(budget_bytes >= 1, "budget_bytes", budget_bytes, "at least 1")
        self.scorer = scorer
        self.budget_bytes = budget_bytes
        self.max_batch = max_batch
        self.cache = None if cache is None else Path(cache)
        self.progress = progress
        self.statistics = PlanStatistics()

    def score(self, requests: Sequence[Request]) -> list[Scores]:
        """Answer requests in their order.

        Raises
        ------
        ProbeError
            An input is longer than the model takes: nothing is truncated.
        ScoreError
            Logits are NaN, or no token has any probability; names the request.
        """
        self.statistics.requests += len(requests)
        for n, request in enumerate(requests):
            if len(request.ids) > self.scorer.max_length:
                raise ProbeError(
                    f"request {n} has {len(request.ids)} tokens: allowed are"
                    f" {self.scorer.max_length}; nothing is truncated, shorten the text"
                )
            if not 0 <= request.position < len(request.ids):
                raise ProbeError(
                    f"request {n} reads position {request.position}: allowed is 0 to"
                    f" {len(request.ids) - 1}"
                )
        parts = [requests[i : i + SHARD_REQUESTS] for i in range(0, len(requests), SHARD_REQUESTS)]
        rank, world = _rank_and_world()
        if world > 1 and self.cache is None:
            raise InputError(
                "cache = None: allowed is a folder that all processes share; a run of several"
                " processes exchanges its shards there"
            )
        if world > 1:
            for index in range(rank, len(parts), world):
                self._shard(parts[index])
            _barrier()
        out: list[Scores] = []
        for index, part in enumerate(parts):
            out += self._shard(part)
            if self.progress:
                self.progress(index + 1, len(parts))
        return out

    def _shard(self, requests: Sequence[Request]) -> list[Scores]:
        self.statistics.shards += 1
        if self.cache is None:
            return self._compute(requests)
        key = hashlib.sha256(
            json.dumps(
                [
                    self.scorer.fingerprint,
                    self.budget_bytes,
                    self.max_batch,
                    [[r.ids, r.position, r.candidates, r.top] for r in requests],
                ]
            ).encode()
        ).hexdigest()[:40]
        path = self.cache / f"shard-{key}.npz"
        if path.exists():
            try:
                found = unpack(read_arrays(path, "cache"))
            except InputError as error:
                raise InputError(f"{error}; delete the file to compute it again") from None
            self.statistics.cached_shards += 1
            return found
        found = self._compute(requests)
        write_arrays(path, pack(found))
        return found

    def _compute(self, requests: Sequence[Request]) -> list[Scores]:
        wanted: dict[tuple[int, ...], dict[int, list[int]]] = {}
        for n, request in enumerate(requests):
            wanted.setdefault(request.ids, {}).setdefault(request.position, []).append(n)
        buckets: dict[int, list[tuple[int, ...]]] = {}
        for ids in wanted:
            buckets.setdefault(len(ids), []).append(ids)
        self.statistics.sequences += len(wanted)
        self.statistics.tokens += sum(map(len, wanted))
        out: list[Scores | None] = [None] * len(requests)
        for length in sorted(buckets):
            # inputs with one place first: a scorer may treat them faster
            group = sorted(buckets[length], key=lambda ids: len(wanted[ids]) > 1)
            places = max(len(wanted[ids]) for ids in group)
            cost = self.scorer.bytes_per_sequence(length) + places * 12 * self.scorer.vocab_size
            size = int(max(1, min(self.max_batch, self.budget_bytes // cost)))
            start = 0
            while start < len(group):
                batch = group[start : start + size]
                try:
                    self._batch(batch, wanted, requests, out)
                except (MemoryError, RuntimeError) as error:
                    if not _out_of_memory(error) or len(batch) == 1:
                        raise
                    size = len(batch) // 2
                    self.statistics.halvings += 1
                    continue
                start += len(batch)
        return [scores for scores in out if scores is not None]

    def _batch(
        self,
        batch: list[tuple[int, ...]],
        wanted: dict[tuple[int, ...], dict[int, list[int]]],
        requests: Sequence[Request],
        out: list[Scores | None],
    ) -> None:
        import torch

        places = [(row, p) for row, ids in enumerate(batch) for p in wanted[ids]]
        rows = np.asarray([row for row, _ in places])
        positions = np.asarray([p for _, p in places])
        self.statistics.batches += 1
        logits = self.scorer.logits(np.asarray(batch, np.int64), rows, positions)
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        log_z = torch.logsumexp(logits, dim=-1)
        # NaN and "no token at all" both show in the normaliser; plus infinity does too
        if not bool(torch.isfinite(log_z).all()):
            at = int((~torch.isfinite(log_z)).nonzero()[0])
            n = wanted[batch[rows[at]]][int(positions[at])][0]
            raise ScoreError(
                f"request {n} (position {int(positions[at])} of {len(batch[0])} tokens): the"
                " logits hold NaN, +inf or only -inf; allowed are logits with a finite"
                " normaliser; use float32"
            )
        plain: list[tuple[int, int]] = []
        rest: list[tuple[int, int]] = []
        for at, (row, position) in enumerate(places):
            for n in wanted[batch[row]][position]:
                (plain if len(requests[n].candidates) == 1 else rest).append((at, n))
        if plain:
            index = torch.tensor([at for at, _ in plain], device=logits.device)
            token = torch.tensor([requests[n].candidates[0] for _, n in plain])
            found = (logits[index, token.to(logits.device)] - log_z[index]).double().cpu().numpy()
            z = log_z[index].double().cpu().numpy()
            for k, (_, n) in enumerate(plain):
                out[n] = Scores(
                    np.asarray(requests[n].candidates, np.int64), found[k : k + 1], float(z[k])
                )
        # requests with the same candidates (a pair table has two such sets) are read together
        groups: dict[tuple[tuple[int, ...], int], list[tuple[int, int]]] = {}
        for at, n in rest:
            groups.setdefault((requests[n].candidates, requests[n].top), []).append((at, n))
        z = log_z.double().cpu().numpy()
        for (candidates, top), members in groups.items():
            index = torch.tensor([at for at, _ in members], device=logits.device)
            part = logits[index]
            if candidates:
                ids = torch.tensor(candidates, device=logits.device).expand(len(members), -1)
            elif top:
                ids = torch.topk(part, min(top, part.shape[-1])).indices
            else:
                ids = torch.arange(part.shape[-1], device=logits.device).expand(len(members), -1)
            values = (part.gather(1, ids) - log_z[index, None]).double().cpu().numpy()
            tokens = ids.cpu().numpy()
            for k, (at, n) in enumerate(members):
                out[n] = Scores(tokens[k], values[k], float(z[at]))


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text or "bad alloc" in text


def _rank_and_world() -> tuple[int, int]:
    """Rank and size of the torch.distributed group, if there is one."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _barrier() -> None:
    import torch.distributed as dist

    dist.barrier()


def pack(scores: Sequence[Scores]) -> dict[str, Any]:
    """Arrays of a shard."""
    return {
        "length": np.asarray([len(s.ids) for s in scores]),
        "ids": np.concatenate([s.ids for s in scores]) if scores else np.empty(0, np.int64),
        "log_p": np.concatenate([s.log_p for s in scores]) if scores else np.empty(0),
        "log_z": np.asarray([s.log_z for s in scores]),
    }


def unpack(arrays: dict[str, Any]) -> list[Scores]:
    """Scores of a shard's arrays."""
    cuts = np.cumsum(arrays["length"])[:-1]
    return [
        Scores(ids, log_p, float(z))
        for ids, log_p, z in zip(
            np.split(arrays["ids"], cuts), np.split(arrays["log_p"], cuts), arrays["log_z"]
        )
    ]


__all__ = ["PlanStatistics", "Planner", "Request", "Scores"]
