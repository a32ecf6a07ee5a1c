"""Defences that see the poisoned training set: ABL, activation clustering, spectral signatures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backdoor_ft.augment import NO_AUGMENT, Augment
from backdoor_ft.data import LabeledData
from backdoor_ft.defenses.base import Context, Defense, head_inputs
from backdoor_ft.defenses.tuning import reinitialise
from backdoor_ft.detect import activation_clusters, spectral_scores
from backdoor_ft.engine import predict
from backdoor_ft.errors import InputError
from backdoor_ft.models import head_of
from backdoor_ft.schedules import CosineConfig


def _training_set(context: Context) -> LabeledData:
    if context.poisoned is None:
        raise InputError("poisoned=None is not allowed: this defence filters the training set")
    return context.poisoned


def _retrain(
    model: nn.Module,
    kept: LabeledData,
    context: Context,
    how: ABL | ActivationClustering | SpectralSignatures,
) -> nn.Module:
    fresh = reinitialise(model)
    rate = CosineConfig(how.lr, how.steps).learning_rate
    context.fit(
        fresh, kept, steps=how.steps, batch_size=how.batch_size, rate=rate, augment=how.augment
    )
    return fresh


@dataclass(frozen=True)
class ABL(Defense):
    """Anti-backdoor learning (Li et al. 2021).

    A fresh network is trained on the poisoned set with local gradient ascent, sign(loss - gamma) x
    loss; the share with the lowest loss is isolated; a second network is trained on the rest and
    then unlearns the isolated samples.
    """

    name: ClassVar[str] = "abl"
    needs: ClassVar[frozenset[str]] = frozenset({"poisoned_train_set"})
    gamma: float = 0.5
    isolate: float = 0.05
    isolation_steps: int = 150
    steps: int = 400
    unlearn_steps: int = 60
    lr: float = 0.05
    unlearn_lr: float = 5e-4
    batch_size: int = 64
    augment: Augment = NO_AUGMENT

    def run(self, model: nn.Module, clean: LabeledData, context: Context) -> nn.Module:
        """Isolate, train, unlearn."""
        data = _training_set(context)

        def ascent(m: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(m(x), y)
            (torch.sign(loss.detach() - self.gamma) * loss).backward()
            optimizer.step()
            return loss.detach()

        scout = reinitialise(model)
        size = self.batch_size
        rate = CosineConfig(self.lr, self.isolation_steps, constant=True).learning_rate
        context.fit(
            scout,
            data,
            steps=self.isolation_steps,
            batch_size=size,
            rate=rate,
            update=ascent,
            augment=self.augment,
        )
        losses = F.cross_entropy(predict(scout, data.inputs), data.labels, reduction="none")
        count = max(round(self.isolate * len(data)), 2)
        order = losses.argsort()
        isolated, rest = data.subset(order[:count]), data.subset(order[count:])
        repaired = _retrain(model, rest, context, self)

        def unlearn(m: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(m(x), y)
            # a mistake that is already made is not driven further
            (-loss.clamp(max=4.0)).backward()
            optimizer.step()
            return loss.detach()

        rate = CosineConfig(self.unlearn_lr, self.unlearn_steps, constant=True).learning_rate
        context.fit(
            repaired, isolated, steps=self.unlearn_steps, batch_size=size, rate=rate, update=unlearn
        )
        return repaired


@dataclass(frozen=True)
class ActivationClustering(Defense):
    """Activation clustering (Chen et al. 2018): drop the small cluster of each class, retrain."""

    name: ClassVar[str] = "activation_clustering"
    needs: ClassVar[frozenset[str]] = frozenset({"poisoned_train_set"})
    largest: float = 0.35
    lr: float = 0.05
    steps: int = 400
    batch_size: int = 64
    augment: Augment = NO_AUGMENT

    def run(self, model: nn.Module, clean: LabeledData, context: Context) -> nn.Module:
        """Flag, drop, retrain."""
        data = _training_set(context)
        features = head_inputs(model, head_of(model)[1], data.inputs).numpy()
        flagged = activation_clusters(features, data.labels.numpy(), self.largest)
        context.notes.append(f"{int(flagged.sum())} of {len(data)} training samples dropped")
        kept = data.subset(torch.as_tensor(~flagged))
        return _retrain(model, kept, context, self)


@dataclass(frozen=True)
class SpectralSignatures(Defense):
    """Spectral signatures (Tran et al. 2018): drop 1.5 x epsilon of each class, retrain."""

    name: ClassVar[str] = "spectral"
    needs: ClassVar[frozenset[str]] = frozenset({"poisoned_train_set"})
    epsilon: float = 0.1
    lr: float = 0.05
    steps: int = 400
    batch_size: int = 64
    augment: Augment = NO_AUGMENT

    def run(self, model: nn.Module, clean: LabeledData, context: Context) -> nn.Module:
        """Score, drop, retrain."""
        data = _training_set(context)
        features = head_inputs(model, head_of(model)[1], data.inputs).numpy()
        scores = spectral_scores(features, data.labels.numpy())
        keep = np.ones(len(data), dtype=bool)
        budget = 1.5 * self.epsilon * len(data)
        for label in np.unique(data.labels.numpy()):
            where = np.flatnonzero(data.labels.numpy() == label)
            count = min(int(budget), int(0.5 * len(where)))
            keep[where[np.argsort(scores[where])[len(where) - count :]]] = False
        context.notes.append(f"{int((~keep).sum())} of {len(data)} training samples dropped")
        kept = data.subset(torch.as_tensor(keep))
        return _retrain(model, kept, context, self)
