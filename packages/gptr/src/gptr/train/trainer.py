"""Training loop: AdamW, warm-up and cosine, EMA, AMP, accumulation, bit-exact resume, torchrun."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gptr._denormals import flush_denormals
from gptr._files import write_text, write_with
from gptr.data.dataset import DiagramDataset, Target, make_target
from gptr.data.images import DataError
from gptr.data.sampler import epoch_indices, repeat_factors
from gptr.data.transforms import Transform
from gptr.evaluation.coco import Evaluation, evaluate
from gptr.model.gptr import GPTR, Features
from gptr.train.cache import FeatureCache


class TrainingDivergedError(ArithmeticError):
    """The loss is not finite; the batch was saved."""


@dataclass(frozen=True)
class TrainOptions:
    """How to train.

    Parameters
    ----------
    epochs, batch_size, accumulate
        An optimiser step sees batch_size * accumulate images (times the processes).
    learning_rate, backbone_rate, weight_decay, clip, warmup
        AdamW with a linear warm-up of ``warmup`` steps, then cosine to a twentieth.
    ema
        Decay of the averaged weights that are evaluated and saved; 0 switches it off.
    amp
        bfloat16 autocast.
    cache
        Cache features where the backbone is frozen (with mirrored images; no other augmentation).
    repeat
        Threshold of repeat-factor sampling; 0 switches it off.
    checkpoint_every, evaluate_every
        Steps between checkpoints, epochs between evaluations; 0 only at the end.
    steps
        Stop after so many steps, whatever the epochs say; 0 for no limit.
    """

    epochs: int = 20
    batch_size: int = 16
    accumulate: int = 1
    learning_rate: float = 1e-3
    backbone_rate: float = 1e-4
    weight_decay: float = 1e-4
    clip: float = 0.5
    warmup: int = 20
    ema: float = 0.0
    amp: bool = False
    cache: bool = True
    repeat: float = 0.0
    checkpoint_every: int = 0
    evaluate_every: int = 0
    steps: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("epochs", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise ValueError(f"learning_rate={self.learning_rate}: must be a positive number")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema={self.ema}: must lie in [0, 1)")


class _Step(nn.Module):
    """What DistributedDataParallel wraps: features or images in, loss out."""

    def __init__(self, model: GPTR) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Any, targets: list[Target], count: float) -> tuple[Tensor, dict]:
        features = inputs if isinstance(inputs, Features) else self.model.extract(inputs)
        out = self.model.detect(features, targets, count)
        if out.loss is None:
            raise AssertionError("targets give a loss")
        return out.loss, out.losses


class Trainer:
    """Trains a detector; a run that was killed continues to the same weights.

    Parameters
    ----------
    model
        The detector.
    train, val
        Data sets with the same classes.
    out
        Folder of the run: config.yaml, metrics.jsonl, checkpoint.safetensors, trainer_state.pt,
        and in the end config.json and model.safetensors (`GPTR.from_pretrained`).
    transform
        Augmentation of images that are not cached.
    cache
        A feature cache to use, where several runs share one.
    options
        Of `TrainOptions`.

    Raises
    ------
    DataError
        Before training, if an image has more objects than the model has queries.
    """

    def __init__(
        self, model: GPTR, train: DiagramDataset, val: DiagramDataset | None = None,
        out: str | Path | None = None, *, transform: Transform | None = None,
        cache: FeatureCache | None = None, device: str | torch.device = "cpu",
        on_epoch: Callable[[dict[str, Any]], None] | None = None, **options: Any,
    ) -> None:  # fmt: skip
        self.options = TrainOptions(**options)
        if not len(train):
            raise DataError("train is empty: at least one image is needed")
        if len(train.class_names) != model.config.num_classes:
            raise DataError(
                f"train has {len(train.class_names)} classes, the model {model.config.num_classes}"
            )
        c = model.config
        if c.decoder_layers and train.most_objects > c.queries:
            worst = max(train.records, key=lambda r: len(r.labels))
            raise DataError(
                f"{worst.name}: {len(worst.labels)} objects, queries={c.queries}; build the model "
                f"with queries={train.most_objects} or more"
            )
        if (train.class_names, train.category_ids) != (c.class_names, c.category_ids):
            from dataclasses import replace

            names = {"class_names": train.class_names, "category_ids": train.category_ids}
            model.config = replace(c, **names)  # type: ignore[arg-type]
        self.rank = int(os.environ.get("RANK", 0))
        self.world = int(os.environ.get("WORLD_SIZE", 1))
        if self.world > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if torch.device(device).type == "cuda" else "gloo")
        self.device = torch.device(device)
        self.model = model.to(self.device)
        self.train_data, self.val_data = train, val
        self.out = Path(out) if out is not None else None
        self.transform = transform
        self.on_epoch = on_epoch
        o = self.options
        self.cache = cache
        if self.cache is None and o.cache and c.freeze_backbone and transform is None:
            self.cache = FeatureCache(model, train, flip=True)
        self.factors = repeat_factors(train, o.repeat) if o.repeat else np.ones(len(train))
        groups: list[dict[str, Any]] = [
            {"params": [], "lr": o.learning_rate}, {"params": [], "lr": o.backbone_rate}
        ]  # fmt: skip
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                groups[name.startswith("backbone.")]["params"].append(parameter)
        groups = [g for g in groups if g["params"]]
        self.base_rates = [g["lr"] for g in groups]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=o.weight_decay)
        self.ema = {k: v.detach().clone() for k, v in model.state_dict().items()} if o.ema else None
        self.step = 0
        self.losses: list[float] = []
        self.history: list[dict[str, Any]] = []
        self.runner: nn.Module = _Step(model)
        if self.world > 1:
            self.runner = nn.parallel.DistributedDataParallel(
                self.runner, find_unused_parameters=True
            )

    @property
    def batches_per_epoch(self) -> int:
        """Optimiser steps of an epoch."""
        size = self.options.batch_size * self.options.accumulate * self.world
        return max(1, -(-len(epoch_indices(self.factors, self.options.seed, 0)) // size))

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the run."""
        total = self.options.epochs * self.batches_per_epoch
        return min(total, self.options.steps) if self.options.steps else total

    def _rate(self, step: int) -> float:
        if step < self.options.warmup:
            return (step + 1) / self.options.warmup
        span = max(1, self.total_steps - self.options.warmup)
        return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - self.options.warmup) / span))

    def _batch(self, epoch: int, number: int, part: int) -> tuple[Any, list[Target], list[int]]:
        o = self.options
        order = epoch_indices(self.factors, o.seed, epoch)
        size = o.batch_size * self.world
        start = (number * o.accumulate + part) * size + self.rank * o.batch_size
        chosen = [int(order[i % len(order)]) for i in range(start, start + o.batch_size)]
        whole = self.batches_per_epoch * o.accumulate * size
        if self.world == 1 and start + o.batch_size > len(order) and whole > len(order):
            chosen = [int(i) for i in order[start : start + o.batch_size]] or chosen
        rng = np.random.default_rng([o.seed, epoch, number, part, self.rank])
        if self.cache is not None:
            rows = [
                i + (self.cache.length if self.cache.views == 2 and rng.random() < 0.5 else 0)
                for i in chosen
            ]
            targets = [self.cache.targets[r] for r in rows]
            inputs: Any = self.cache.batch(rows)
        else:
            inputs, targets = [], []
            for i in chosen:
                record = self.train_data.records[i]
                image, boxes, labels = record.load(), record.xyxy, record.labels
                if self.transform is not None:
                    image, boxes, labels = self.transform(image, boxes, labels, rng)
                inputs.append(image)
                targets.append(make_target(boxes, labels, image.shape[:2]))
        limit = self.model.config.queries if self.model.config.decoder_layers else 10**9
        targets = [{k: v[:limit].to(self.device) for k, v in target.items()} for target in targets]
        return inputs, targets, chosen

    def train_step(self) -> float:
        """Take one optimiser step; returns the loss."""
        with flush_denormals():
            return self._train_step()

    def _train_step(self) -> float:
        o = self.options
        self.model.train()
        epoch, number = divmod(self.step, self.batches_per_epoch)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * self._rate(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        parts = [self._batch(epoch, number, part) for part in range(o.accumulate)]
        # every part is divided by the mean count of all parts: accumulation is one large batch
        objects = sum(len(t["labels"]) for _, targets, _ in parts for t in targets)
        count = torch.tensor(objects / o.accumulate, device=self.device)
        if self.world > 1:
            dist.all_reduce(count)
            count /= self.world
        for inputs, targets, chosen in parts:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=o.amp):
                loss, _ = self.runner(inputs, targets, count.item())
            if not bool(torch.isfinite(loss)):
                where = self._save_batch(targets, chosen)
                raise TrainingDivergedError(
                    f"the loss is {loss.item()} at step {self.step}; {where}lower learning_rate="
                    f"{o.learning_rate} or look at these images: "
                    f"{', '.join(self.train_data.records[i].name for i in chosen[:3])}"
                )
            (loss / o.accumulate).backward()
            total += loss.item() / o.accumulate
        nn.utils.clip_grad_norm_(
            [p for g in self.optimizer.param_groups for p in g["params"]], o.clip
        )
        self.optimizer.step()
        if self.ema is not None:
            for k, v in self.model.state_dict().items():
                if v.dtype.is_floating_point:
                    self.ema[k].lerp_(v, 1 - o.ema)
                else:
                    self.ema[k].copy_(v)
        self.step += 1
        return total

    def _save_batch(self, targets: list[Target], chosen: list[int]) -> str:
        if self.out is None:
            return ""
        path = self.out / f"diverged_step{self.step}.pt"
        content = {"indices": chosen, "targets": targets}
        write_with(path, lambda p: torch.save(content, p))
        return f"the batch is in {path}; "

    def fit(self, *, resume: bool = False, until: int | None = None) -> list[dict[str, Any]]:
        """Train to the end, or to step ``until``; returns one row per epoch.

        Parameters
        ----------
        resume
            Continue from the checkpoint in ``out``.
        """
        if resume:
            self.load_checkpoint()
        else:
            torch.manual_seed(self.options.seed + self.rank)
        last = min(self.total_steps, until if until is not None else self.total_steps)
        if self.out is not None and self.rank == 0:
            content = {"model": self.model.config.to_dict(), "training": asdict(self.options)}
            write_text(self.out / "config.yaml", yaml.safe_dump(content, sort_keys=False))
        start, cpu = time.monotonic(), time.process_time()
        while self.step < last:
            self.losses.append(self.train_step())
            done = self.step >= self.total_steps
            if self.step % self.batches_per_epoch == 0 or done:
                self._finish_epoch(done, time.monotonic() - start, time.process_time() - cpu)
            every = self.options.checkpoint_every
            if self.out is not None and self.rank == 0 and every and self.step % every == 0:
                self.save_checkpoint()
        if self.out is not None and self.rank == 0:
            self.save_checkpoint()
            if self.step >= self.total_steps:
                with self.averaged():
                    self.model.save_pretrained(self.out)
        return self.history

    def _finish_epoch(self, done: bool, seconds: float, cpu_seconds: float) -> None:
        epoch = -(-self.step // self.batches_per_epoch)
        row: dict[str, Any] = {
            "epoch": epoch,
            "step": self.step,
            "loss": float(np.mean(self.losses)) if self.losses else float("nan"),
            "seconds": round(seconds, 2),
            "cpu_seconds": round(cpu_seconds, 2),
            "law_weights": self.model.law_weights(),
        }
        self.losses = []
        every = self.options.evaluate_every
        if self.val_data is not None and ((every and epoch % every == 0) or done):
            found = self.evaluate()
            row |= {k: found.stats[k] for k in ("AP", "AP50", "AP75")}
        self.history.append(row)
        if self.out is not None and self.rank == 0:
            lines = "".join(json.dumps(r) + "\n" for r in self.history)
            write_text(self.out / "metrics.jsonl", lines)
        if self.on_epoch is not None and self.rank == 0:
            self.on_epoch(row)

    def averaged(self) -> _Swap:
        """Return a context in which the model has the averaged weights."""
        return _Swap(self.model, self.ema)

    def evaluate(self, data: DiagramDataset | None = None) -> Evaluation:
        """Evaluate the (averaged) weights; in several processes each takes its share of images."""
        data = data if data is not None else self.val_data
        if data is None:
            raise ValueError("val is None: there is nothing to evaluate on")
        with self.averaged():
            if self.world == 1:
                return evaluate(self.model, data, counts=self.train_data.counts)
            from gptr.evaluation.coco import detect_all, evaluate_detections

            mine = list(range(self.rank, len(data), self.world))
            found = detect_all(self.model, data.subset(mine))
            gathered: list[Any] = [None] * self.world
            dist.all_gather_object(gathered, list(zip(mine, found, strict=True)))
            merged = {i: d for part in gathered for i, d in part}
            return evaluate_detections(
                data, [merged[i] for i in range(len(data))], self.train_data.counts
            )

    def save_checkpoint(self) -> None:
        """Write weights and everything a resumed run needs."""
        if self.out is None:
            raise ValueError("out is None: give the trainer a folder")
        state = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        if self.ema is not None:
            state |= {f"ema.{k}": v for k, v in self.ema.items()}
        state = {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}
        state["step"] = torch.tensor(self.step)
        extra = {
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "losses": self.losses,
            "history": json.dumps(self.history),
            "options": json.dumps(asdict(self.options)),
        }
        # state first: a run killed between the two files is noticed by the step in both
        write_with(self.out / "trainer_state.pt", lambda p: torch.save(extra, p))
        write_with(self.out / "checkpoint.safetensors", lambda p: save_file(state, p))

    def load_checkpoint(self) -> None:
        """Read what `save_checkpoint` wrote.

        Raises
        ------
        ValueError
            If there is none, or it belongs to other options.
        """
        if self.out is None or not (self.out / "trainer_state.pt").is_file():
            raise ValueError(f"{self.out}: no checkpoint to resume from")
        extra = torch.load(self.out / "trainer_state.pt", weights_only=True)
        state = load_file(self.out / "checkpoint.safetensors")
        if json.loads(extra["options"]) != asdict(self.options):
            raise ValueError(f"{self.out}: the checkpoint was made with other options")
        if int(state.pop("step")) != extra["step"]:
            raise ValueError(f"{self.out}: the two files of the checkpoint are of different steps")
        split = {"model": {}, "ema": {}}  # type: dict[str, dict[str, Tensor]]
        for name, value in state.items():
            kind, _, key = name.partition(".")
            split[kind][key] = value.to(self.device)
        self.model.load_state_dict(split["model"])
        if self.ema is not None:
            self.ema = split["ema"]
        self.optimizer.load_state_dict(extra["optimizer"])
        self.step = extra["step"]
        self.losses = list(extra["losses"])
        self.history = json.loads(extra["history"])
        torch.set_rng_state(extra["rng"])


class _Swap:
    """Puts averaged weights into a model for a while."""

    def __init__(self, model: GPTR, weights: dict[str, Tensor] | None) -> None:
        self.model, self.weights = model, weights

    def __enter__(self) -> None:
        if self.weights is not None:
            self.kept = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
            self.model.load_state_dict(self.weights)

    def __exit__(self, *_: object) -> None:
        if self.weights is not None:
            self.model.load_state_dict(self.kept)
