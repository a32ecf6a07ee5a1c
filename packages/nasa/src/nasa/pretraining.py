"""Progressive pretraining (PGP, section 3.2 of the paper) as a resumable schedule."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nasa.data import LabelledImages
from nasa.hw.layer import OperatorType
from nasa.space import Cell, SearchSpace
from nasa.supernet import SharedBlock, Supernet
from nasa.training import (
    History,
    Progress,
    Recipe,
    check_finite,
    clip_gradients,
    load_checkpoint,
    save_checkpoint,
)


@dataclass(frozen=True)
class Stage:
    """A stretch of the pretraining.

    Attributes
    ----------
    name : str
    epochs : int
    operators : tuple
        Types whose blocks are sampled.
    largest_only : bool
        Sample only blocks with the largest expansion (skips come in with the smaller ones).
    frozen : tuple
        Types whose convolution weights do not move; their batch norms do.
    """

    name: str
    epochs: int
    operators: tuple[OperatorType, ...]
    largest_only: bool = False
    frozen: tuple[OperatorType, ...] = ()

    def allowed(self, cell: Cell) -> list[int]:
        """Return the candidates of a cell that this stage samples."""
        blocks = [c for c in cell.candidates if not c.is_skip]
        largest = max(c.expansion for c in blocks)
        chosen = [
            i
            for i, c in enumerate(cell.candidates)
            if (not self.largest_only if c.is_skip else c.operator in self.operators)
            and (c.is_skip or not self.largest_only or c.expansion == largest)
        ]
        if not any(not cell.candidates[i].is_skip for i in chosen):
            # a cell without the stage's types keeps all of its own
            chosen = [i for i, c in enumerate(cell.candidates) if not c.is_skip]
        return chosen


class ProgressivePretraining:
    """Trains a supernet stage by stage on randomly sampled paths.

    Parameters
    ----------
    stages : sequence of Stage
    recipe : Recipe
        Its epochs are the stages'; the learning rate's cosine runs over all of them.
    paths : int
        Distinct candidates per cell and step, mixed with equal weights (the authors' ``act_num``).

    Examples
    --------
    >>> from nasa.space import SearchSpace
    >>> schedule = ProgressivePretraining.progressive(SearchSpace.hybrid_adder(), 120)
    >>> [(s.name, s.epochs) for s in schedule.stages][:3]
    [('conv, largest expansion', 20), ('conv', 20), ('adder, largest expansion', 20)]
    """

    def __init__(
        self, stages: Sequence[Stage], recipe: Recipe | None = None, *, paths: int = 2
    ) -> None:
        self.stages, self.recipe, self.paths = tuple(stages), recipe or Recipe(), paths
        if not self.stages or min(s.epochs for s in self.stages) < 1:
            raise ValueError("stages: at least one is needed, each with at least one epoch")
        if paths < 1:
            raise ValueError(f"paths={paths}: must be at least 1")

    @classmethod
    def progressive(
        cls, space: SearchSpace, epochs: int, recipe: Recipe | None = None, *, paths: int = 2
    ) -> ProgressivePretraining:
        """Return the published stages: a sixth of the epochs for each but the last, a third for it.

        Convolution (with shift, where the space has it) at the largest expansion, then all; adder
        likewise with the convolution weights frozen but sampled; then everything.
        """
        if epochs < 6:
            raise ValueError(f"epochs={epochs}: five stages need at least 6")
        multiplied = tuple(t for t in space.operators if t != "adder")
        everything = space.operators
        quarter = epochs // 6
        shares = (quarter, quarter, quarter, quarter, epochs - 4 * quarter)
        stages = [
            Stage("conv, largest expansion", shares[0], multiplied, True),
            Stage("conv", shares[1], multiplied),
            Stage("adder, largest expansion", shares[2], everything, True, multiplied),
            Stage("adder", shares[3], everything, False, multiplied),
            Stage("mixture", shares[4], everything),
        ]
        return cls(stages, recipe, paths=paths)

    @classmethod
    def vanilla(
        cls, space: SearchSpace, epochs: int, recipe: Recipe | None = None, *, paths: int = 2
    ) -> ProgressivePretraining:
        """Return a single stage with everything: FBNet's pretraining."""
        return cls([Stage("mixture", epochs, space.operators)], recipe, paths=paths)

    @property
    def epochs(self) -> int:
        """Epochs of all stages."""
        return sum(stage.epochs for stage in self.stages)

    def stage_of(self, epoch: int) -> Stage:
        """Return the stage that an epoch belongs to."""
        for stage in self.stages:
            if epoch < stage.epochs:
                return stage
            epoch -= stage.epochs
        raise ValueError(f"the schedule has {self.epochs} epochs")

    def run(
        self,
        supernet: Supernet,
        train: LabelledImages,
        *,
        seed: int = 0,
        checkpoint: str | Path | None = None,
        progress: Progress | None = None,
    ) -> History:
        """Train the supernet in place; resumes from the checkpoint if it exists.

        Raises
        ------
        nasa.training.TrainingDivergedError
            If the loss is no longer finite.
        """
        recipe = self.recipe
        optimizer = recipe.optimizer(supernet.parameters())
        history, first = History(), 0
        identity: dict[str, Any] = {
            "space": repr(supernet.space),
            "stages": repr(self.stages),
            "recipe": repr(recipe),
            "seed": seed,
        }
        if checkpoint and (state := load_checkpoint(checkpoint, "pretraining", identity)):
            supernet.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            history.rows, first = state["history"], state["epoch"]
        steps = -(-len(train) // recipe.batch_size)
        for epoch in range(first, self.epochs):
            stage = self.stage_of(epoch)
            _freeze(supernet, stage.frozen)
            supernet.train()
            allowed = [stage.allowed(cell) for cell in supernet.space.cells]
            total, seen = 0.0, 0
            for step, (images, labels) in enumerate(
                train.batches(recipe.batch_size, seed * 100003 + epoch)
            ):
                # a source of its own for each step: resuming needs no generator state
                draw = random.Random(f"{seed}/{epoch}/{step}")
                active = [draw.sample(c, min(self.paths, len(c))) for c in allowed]
                for group in optimizer.param_groups:
                    group["lr"] = recipe.rate((epoch + step / steps) / self.epochs)
                optimizer.zero_grad(set_to_none=True)
                loss = nn.functional.cross_entropy(supernet(images, active), labels)
                check_finite(loss, f"epoch {epoch} ({stage.name})", checkpoint)
                loss.backward()
                clip_gradients(supernet, recipe.clip_norm, recipe.clip)
                optimizer.step()
                total, seen = total + loss.item() * len(labels), seen + len(labels)
            row = {"epoch": epoch, "stage": stage.name, "loss": total / seen}
            history.rows.append(row)
            if checkpoint:
                state = {
                    "kind": "pretraining",
                    "identity": identity,
                    "model": supernet.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "history": history.rows,
                    "epoch": epoch + 1,
                }
                save_checkpoint(checkpoint, state)
            if progress:
                progress(row)
        _freeze(supernet, ())
        return history


def _freeze(supernet: Supernet, operators: Sequence[OperatorType]) -> None:
    """Freeze the convolution weights of blocks of some types, and free the others."""
    for module in supernet.modules():
        if isinstance(module, SharedBlock):
            for layer in (module.expand, module.depthwise, module.project):
                for parameter in layer.parameters():
                    parameter.requires_grad_(module.operator not in operators)


@torch.no_grad()
def path_losses(supernet: Supernet, data: LabelledImages, paths: int, seed: int) -> list[float]:
    """Return the cross entropy of random single paths in training mode (batch statistics)."""
    from nasa.arch import Architecture

    source, losses = random.Random(seed), []
    state = {k: v.clone() for k, v in supernet.state_dict().items()}
    supernet.train()
    for _ in range(paths):
        active = [[c] for c in Architecture.random(supernet.space, source).choices]
        losses.append(
            float(nn.functional.cross_entropy(supernet(data.images, active), data.labels))
        )
    supernet.load_state_dict(state)
    return losses
