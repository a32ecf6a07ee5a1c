"""Membership inference: loss and modified entropy, shadow models, LiRA, RMIA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve
from torch import nn

from backdoor_ft.data import LabeledData
from backdoor_ft.engine import predict
from backdoor_ft.errors import InputError
from backdoor_ft.schedules import CosineConfig
from backdoor_ft.stacked import fit_many

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Membership:
    """How well an attack tells members from others.

    Attributes
    ----------
    attack : its name
    auc, auc_interval : area under the ROC curve with its 95 % bootstrap interval
    tpr_at_1, tpr_at_01 : true-positive rate at 1 % and 0.1 % false positives
    tpr_at_1_interval : bootstrap interval of the first
    """

    attack: str
    auc: float
    auc_interval: tuple[float, float]
    tpr_at_1: float
    tpr_at_1_interval: tuple[float, float]
    tpr_at_01: float
    scores: np.ndarray = field(repr=False, compare=False)
    members: np.ndarray = field(repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, without the scores."""
        return {k: v for k, v in vars(self).items() if k not in ("scores", "members")}

    def plot(self) -> Figure:
        """Draw the ROC curve on logarithmic axes."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4, 4), layout="constrained")
        axis = figure.subplots()
        false, true, _ = roc_curve(self.members, self.scores)
        axis.loglog(np.maximum(false, 1e-4), np.maximum(true, 1e-4), label=self.attack)
        axis.plot([1e-4, 1], [1e-4, 1], "--", color="gray", label="chance")
        axis.set_xlabel("false positive rate")
        axis.set_ylabel("true positive rate")
        axis.legend()
        return figure


def tpr_at(scores: np.ndarray, members: np.ndarray, rate: float) -> float:
    """Return the largest true-positive rate at no more than `rate` false positives."""
    false, true, _ = roc_curve(members, scores, drop_intermediate=False)
    return float(true[false <= rate].max())


def judge(attack: str, scores: np.ndarray, members: np.ndarray, seed: int = 0) -> Membership:
    """Return AUC and rates of an attack's scores, members and others resampled apart."""
    inside, outside = scores[members], scores[~members]
    if len(inside) < 2 or len(outside) < 2:
        raise InputError("members and others need at least 2 samples each")
    draw = np.random.default_rng(seed)
    aucs, rates = [], []
    truth = np.concatenate((np.ones(len(inside), bool), np.zeros(len(outside), bool)))
    for _ in range(200):
        again = np.concatenate(
            (draw.choice(inside, len(inside)), draw.choice(outside, len(outside)))
        )
        aucs.append(roc_auc_score(truth, again))
        rates.append(tpr_at(again, truth, 0.01))
    a, r = np.quantile(aucs, [0.025, 0.975]), np.quantile(rates, [0.025, 0.975])
    return Membership(
        attack,
        float(roc_auc_score(members, scores)),
        (float(a[0]), float(a[1])),
        tpr_at(scores, members, 0.01),
        (float(r[0]), float(r[1])),
        tpr_at(scores, members, 0.001),
        scores,
        members,
    )


def balanced(members: LabeledData, others: LabeledData, seed: int = 0) -> tuple[Any, Any]:
    """Return index arrays with equally many members and others of each class.

    Sets that differ in their classes make an attack look accurate that only sees the class.
    """
    draw = np.random.default_rng(seed)
    one, two = [], []
    for label in range(members.num_classes):
        a = np.flatnonzero(members.labels.numpy() == label)
        b = np.flatnonzero(others.labels.numpy() == label)
        count = min(len(a), len(b))
        one.append(draw.permutation(a)[:count])
        two.append(draw.permutation(b)[:count])
    return np.concatenate(one), np.concatenate(two)


def log_probabilities(model: nn.Module, data: LabeledData) -> np.ndarray:
    """Return log softmax outputs [N, K] in double precision."""
    found: np.ndarray = predict(model, data.inputs).double().log_softmax(1).numpy()
    return found


def confidence(model: nn.Module, data: LabeledData) -> Float[np.ndarray, " n"]:
    """Return LiRA's statistic, log p(y) - log(1 - p(y)), computed without cancellation."""
    logits = predict(model, data.inputs).double()
    own = logits.gather(1, data.labels[:, None])[:, 0]
    rest = logits.scatter(1, data.labels[:, None], -torch.inf)
    found: np.ndarray = (own - rest.logsumexp(1)).numpy()
    return found


def modified_entropy(model: nn.Module, data: LabeledData) -> Float[np.ndarray, " n"]:
    """Return Mentr (Song & Mittal 2021): small for a confident and right prediction."""
    logp = log_probabilities(model, data)
    p = np.exp(logp)
    rows = np.arange(len(data))
    y = data.labels.numpy()
    other = -p * np.log1p(-np.minimum(p, 1 - 1e-12))
    other[rows, y] = 0
    return np.asarray(-(1 - p[rows, y]) * logp[rows, y] + other.sum(1))


def metric_attacks(
    model: nn.Module, members: LabeledData, others: LabeledData, seed: int = 0
) -> list[Membership]:
    """Attack by a threshold on the loss and on the modified entropy."""
    i, j = balanced(members, others, seed)
    one, two = members.subset(torch.as_tensor(i)), others.subset(torch.as_tensor(j))
    truth = np.concatenate((np.ones(len(one), bool), np.zeros(len(two), bool)))
    out = []
    for name, statistic in (
        ("loss", confidence),
        ("entropy", lambda m, d: -modified_entropy(m, d)),
    ):
        scores = np.concatenate((statistic(model, one), statistic(model, two)))
        out.append(judge(name, scores, truth, seed))
    return out


@dataclass(frozen=True)
class Shadows:
    """Shadow models and which samples each was trained on."""

    models: list[nn.Module] = field(repr=False)
    members: Bool[np.ndarray, "models n"] = field(repr=False)
    data: LabeledData = field(repr=False)


def train_shadows(
    fresh: Sequence[nn.Module],
    data: LabeledData,
    *,
    steps: int = 300,
    batch_size: int = 64,
    lr: float = 0.05,
    group: int = 16,
    seed: int = 0,
) -> Shadows:
    """Train shadow models on random halves; every sample is in half of them (LiRA's design).

    Parameters
    ----------
    fresh : networks with their first weights, an even number
    data : members and others together
    steps, batch_size, lr : of each training
    group : models that are trained as one stack, where stacking is the faster way
    """
    if len(fresh) < 2 or len(fresh) % 2:
        raise InputError(f"shadows={len(fresh)} is not allowed: an even number of at least 2")
    draw = np.random.default_rng(seed)
    order = np.argsort(draw.random((len(fresh), len(data))), axis=0)
    members = order < len(fresh) // 2
    rate = CosineConfig(lr, steps).learning_rate
    trained: list[nn.Module] = []
    for start in range(0, len(fresh), group):
        stop = min(start + group, len(fresh))
        trained += fit_many(
            fresh[start:stop],
            data,
            torch.as_tensor(members[start:stop]),
            steps=steps,
            batch_size=batch_size,
            rate=rate,
            seeds=[seed * 1000 + k for k in range(start, stop)],
        )
    return Shadows(trained, members, data)


def lira(
    target: Float[np.ndarray, " n"],
    shadows: Float[np.ndarray, "models n"],
    members: Bool[np.ndarray, "models n"],
    fixed_variance: bool = False,
) -> Float[np.ndarray, " n"]:
    """Return LiRA's log likelihood ratio (Carlini et al. 2022), Gaussians per sample.

    Parameters
    ----------
    target : confidences of the attacked model
    shadows : confidences of the shadow models
    members : which samples each shadow was trained on
    fixed_variance : one variance for all samples, for few shadows
    """
    inside = np.where(members, shadows, np.nan)
    outside = np.where(members, np.nan, shadows)
    mean_in, mean_out = np.nanmean(inside, 0), np.nanmean(outside, 0)
    if fixed_variance:
        std_in = np.sqrt(np.nanmean((inside - mean_in) ** 2))
        std_out = np.sqrt(np.nanmean((outside - mean_out) ** 2))
    else:
        std_in, std_out = np.nanstd(inside, 0), np.nanstd(outside, 0)
    a = norm.logpdf(target, mean_in, std_in + 1e-30)
    return np.asarray(a - norm.logpdf(target, mean_out, std_out + 1e-30))


def rmia(
    target: Float[np.ndarray, " n"],
    shadows: Float[np.ndarray, "models n"],
    population: Float[np.ndarray, " z"],
    population_shadows: Float[np.ndarray, "models z"],
    gamma: float = 1.0,
) -> Float[np.ndarray, " n"]:
    """Return RMIA's score (Zarifzadeh et al. 2024): share of a population that x beats.

    All arguments are probabilities of the true class; the population stands for the world.
    """
    ratio = target / np.maximum(shadows.mean(0), 1e-30)
    world = population / np.maximum(population_shadows.mean(0), 1e-30)
    ordered = np.sort(world)
    return np.asarray(np.searchsorted(ordered * gamma, ratio, side="right") / len(ordered))


def shadow_attacks(
    model: nn.Module, members: LabeledData, others: LabeledData, shadows: Shadows, seed: int = 0
) -> list[Membership]:
    """Attack by LiRA, RMIA and a classifier trained on the shadows' outputs.

    Parameters
    ----------
    model : attacked
    members, others : truth about the attacked model; both parts of ``shadows.data``
    shadows : from :func:`train_shadows` on the concatenation of members and others
    """
    if len(members) + len(others) != len(shadows.data):
        raise InputError("shadows must be trained on members followed by others")
    i, j = balanced(members, others, seed)
    index = np.concatenate((i, len(members) + j))
    data = shadows.data.subset(torch.as_tensor(index))
    truth = np.concatenate((np.ones(len(i), bool), np.zeros(len(j), bool)))
    target = confidence(model, data)
    found = np.stack([confidence(m, data) for m in shadows.models])
    inside = shadows.members[:, index]
    out = [judge("lira", lira(target, found, inside, len(shadows.models) < 32), truth, seed)]
    sigmoid = 1 / (1 + np.exp(-np.clip(target, -500, 500)))
    shadow_p = 1 / (1 + np.exp(-np.clip(found, -500, 500)))
    draw = np.random.default_rng(seed).permutation(len(index))[: len(index) // 2]
    score = rmia(sigmoid, shadow_p, sigmoid[draw], shadow_p[:, draw])
    out.append(judge("rmia", score + 1e-9 * target, truth, seed))
    classifier = LogisticRegression(max_iter=200)
    features = np.stack((found.ravel(), np.minimum(found, 0).ravel()), 1)
    classifier.fit(features, inside.ravel())
    asked = np.stack((target, np.minimum(target, 0)), 1)
    out.append(judge("shadow", classifier.decision_function(asked), truth, seed))
    return out
