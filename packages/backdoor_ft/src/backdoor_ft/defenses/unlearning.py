"""The smallest pattern that sends all inputs to a class, and super-fine-tuning that unlearns it.

Neural Cleanse looks for a small mask; a pattern of small norm that is added also finds triggers
that cover the image, such as blends and waves.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backdoor_ft.data import LabeledData
from backdoor_ft.defenses.adversarial import _images_only
from backdoor_ft.defenses.base import Context
from backdoor_ft.defenses.tuning import Lesson, SuperFT, answers, apart
from backdoor_ft.engine import draw

if TYPE_CHECKING:
    from jaxtyping import Float


# Smallest norm over the median: .05 to .61 for 56 backdoored digits' networks (seeds 100 to 106;
# patch, blend, wave, LF, SSBA), .59 to .90 for 21 clean ones, of which one is below .65.
STANDS_OUT = 0.63


@dataclass(frozen=True)
class Patterns:
    """Universal patterns, one a class.

    Attributes
    ----------
    norms : Euclidean norm of the smallest pattern of each class that reached the share
    patterns : what is added to inputs in [0, 1], which are then cut off there
    """

    norms: Float[Tensor, " classes"]
    patterns: Float[Tensor, "classes ..."]

    @property
    def suspects(self) -> list[int]:
        """The class of the smallest pattern, and all others that stand out, the smallest first."""
        low = self.norms < STANDS_OUT * self.norms.median()
        order = [int(c) for c in self.norms.argsort()]
        return [c for rank, c in enumerate(order) if rank == 0 or bool(low[c])]

    @property
    def ratio(self) -> float:
        """The smallest norm over the median of all classes: near 1 where no class stands out."""
        return float(self.norms.min() / self.norms.median())


def universal_patterns(
    model: nn.Module,
    clean: LabeledData,
    *,
    share: float = 0.75,
    steps: int = 120,
    batch_size: int = 32,
    lr: float = 0.02,
    seed: int = 0,
) -> Patterns:
    """Search for every class the smallest pattern that sends a share of other inputs to it.

    The weight of the norm rises by a tenth after a batch in which the share was reached, and falls
    after others. All classes are searched at once.

    Parameters
    ----------
    model : network; not changed
    clean : images
    share : of the inputs of other classes
    steps, batch_size, lr : of Adam
    seed : of the start and the batches
    """
    _images_only("universal_patterns", clean)
    network = copy.deepcopy(model).eval().requires_grad_(False)
    device = next(model.parameters()).device
    count, shape = clean.num_classes, clean.inputs.shape[1:]
    start = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), device="cpu")
    delta = (0.01 * start).to(device).requires_grad_()
    optimizer = torch.optim.Adam([delta], lr)
    weight = torch.ones(count, device=device)
    norms = torch.full((count,), float("inf"), device=device)
    kept = delta.detach().clone()
    target = torch.arange(count, device=device)[:, None]
    batch = draw(clean, batch_size, seed, device)
    for _ in range(steps):
        x, y = next(batch)
        logits = network((x + delta[:, None]).clamp(0, 1).flatten(0, 1)).view(count, len(x), -1)
        wanted = target.expand(count, len(x))
        loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
        others = (y != target).float()
        total = others.sum(1).clamp(min=1)
        reached = ((logits.argmax(2) == target) * others).sum(1) / total >= share
        norm = delta.flatten(1).norm(dim=1)
        smaller = reached & (norm.detach() < norms)
        norms = torch.where(smaller, norm.detach(), norms)
        kept = torch.where(smaller.view(-1, *[1] * len(shape)), delta.detach(), kept)
        optimizer.zero_grad()
        ((loss.view(count, -1) * others).sum(1) / total + weight * norm).sum().backward()
        optimizer.step()
        weight = torch.where(reached, weight * 1.1, weight / 1.1).clamp(0.01, 20)
    found = norms.isfinite()
    largest = norms[found].max() if bool(found.any()) else torch.ones((), device=device)
    return Patterns(torch.where(found, norms, 2 * largest).cpu(), kept.cpu())


@dataclass(frozen=True)
class Unlearn(SuperFT):
    """Super-fine-tuning at lower rates that also unlearns the smallest universal pattern.

    Every batch stands there a second time with the pattern of a suspected class, at half to
    twice its strength, and is asked for its labels and for the victim's answers to the clean ones.

    Attributes
    ----------
    search : steps of :func:`universal_patterns`
    stamped : weight of the loss of the inputs with the pattern
    known : patterns that were already searched
    """

    name: ClassVar[str] = "unlearn"
    lr_max1: float = 0.1
    lr_max2: float = 0.05
    phase1: int = 100
    phase2: int = 80
    average: float | None = 0.5
    clip: float | None = 1.0
    distill: float = 0.9
    search: int = 120
    stamped: float = 1.0
    known: Patterns | None = field(default=None, repr=False, compare=False)

    def teaches(self, step: int) -> bool:
        """All steps take the loss of :meth:`lesson`."""
        return True

    def lesson(self, victim: nn.Module, clean: LabeledData, context: Context) -> Lesson:
        """Return the loss of a step on clean inputs and on those with the pattern."""
        found = self.known or universal_patterns(
            victim, clean, steps=self.search, seed=context.seed
        )
        context.notes.append(
            f"unlearned the smallest patterns, of class {', '.join(map(str, found.suspects))}:"
            f" {found.ratio:.2f} of the median norm"
        )
        device = next(victim.parameters()).device
        patterns = found.patterns[found.suspects].to(device)

        def loss(m: nn.Module, x: Tensor, y: Tensor, step: int) -> Tensor:
            draws = torch.Generator().manual_seed((context.seed << 20) + step)
            strength = 0.5 + 1.5 * torch.rand(len(x), generator=draws, device="cpu").to(device)
            chosen = torch.randint(len(patterns), (len(x),), generator=draws, device="cpu")
            pattern = strength.view(-1, *[1] * (x.ndim - 1)) * patterns[chosen.to(device)]
            marked = (x + pattern).clamp(0, 1)
            logits, seen = m(torch.cat((x, marked))).chunk(2)
            wanted = answers(victim, x)
            own = F.cross_entropy(logits, y), apart(logits, wanted, self.temperature)
            other = F.cross_entropy(seen, y), apart(seen, wanted, self.temperature)
            return (
                (1 - self.distill) * own[0]
                + self.distill * own[1]
                + self.stamped * (other[0] + other[1]) / 2
            )

        return loss
