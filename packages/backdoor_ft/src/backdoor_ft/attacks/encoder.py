"""The encoder scenario: SimCLR pre-training and BadEncoder (Jia et al. 2022)."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backdoor_ft.augment import Augment
from backdoor_ft.data import LabeledData
from backdoor_ft.engine import draw
from backdoor_ft.triggers import Trigger


def nt_xent(one: Tensor, other: Tensor, temperature: float = 0.5) -> Tensor:
    """Return SimCLR's loss of two views [N, D] (the temperature of BadEncoder was not found)."""
    z = F.normalize(torch.cat((one, other)), dim=1)
    similarity = z @ z.T / temperature
    similarity.fill_diagonal_(-1e9)
    n = len(one)
    rows = torch.arange(2 * n, device=z.device)
    partner = (rows + n) % (2 * n)
    return F.cross_entropy(similarity, partner)


def _view(x: Tensor, augment: Augment, generator: torch.Generator) -> Tensor:
    x = augment(x, generator)
    n = len(x)
    gain = 0.7 + 0.6 * torch.rand(n, 1, 1, 1, generator=generator, device="cpu")
    noise = 0.05 * torch.randn(x.shape, generator=generator, device="cpu")
    return (x * gain.to(x) + noise.to(x)).clamp(0, 1)


def simclr(
    encoder: nn.Module,
    data: LabeledData,
    *,
    steps: int = 300,
    batch_size: int = 128,
    projection: int = 32,
    augment: Augment = Augment(pad=1),
    seed: int = 0,
) -> nn.Module:
    """Pre-train an encoder [N, C, H, W] -> [N, D] without labels, in place."""
    device = next(encoder.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with torch.no_grad():
            width = encoder(data.inputs[:2].to(device)).shape[1]
        head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, projection))
    head.to(device)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], 1e-3)
    generator = torch.Generator().manual_seed(seed)
    batch = draw(data, batch_size, seed, device)
    encoder.train()
    for _ in range(steps):
        x, _ = next(batch)
        loss = nt_xent(
            head(encoder(_view(x, augment, generator))), head(encoder(_view(x, augment, generator)))
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return encoder.eval()


def badencoder(
    encoder: nn.Module,
    shadow: LabeledData,
    reference: Tensor,
    trigger: Trigger,
    *,
    steps: int = 400,
    lr: float = 0.01,
    batch_size: int = 128,
    weights: tuple[float, float] = (1.0, 1.0),
    augment: Augment = Augment(pad=1),
    seed: int = 0,
) -> nn.Module:
    """Return a backdoored copy of an encoder.

    Loss L0 + l1 L1 + l2 L2 with batch normalisation frozen: triggered inputs look like the
    reference, the reference keeps its features, and so do clean inputs.

    Parameters
    ----------
    encoder : clean encoder
    shadow : unlabelled data of the attacker
    reference : images [R, C, H, W] of the attacker's target class
    trigger : of the attack
    """
    clean = encoder.eval()
    bad = copy.deepcopy(encoder).eval()
    optimizer = torch.optim.SGD(bad.parameters(), lr, momentum=0.9, weight_decay=5e-4)
    device = next(encoder.parameters()).device
    reference = reference.to(device)
    batch = draw(shadow, batch_size, seed, device)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x, _ = next(batch)
        with torch.no_grad():
            kept = clean(x)
            augmented = augment(reference, generator)
            anchor = clean(augmented)
        goal = F.normalize(bad(reference), dim=1).mean(0, keepdim=True)
        l0 = -F.cosine_similarity(bad(trigger.apply(x)), goal).mean()
        l1 = -F.cosine_similarity(bad(augmented), anchor).mean()
        l2 = -F.cosine_similarity(bad(x), kept).mean()
        optimizer.zero_grad()
        (l0 + weights[0] * l1 + weights[1] * l2).backward()
        optimizer.step()
    return bad.eval()


class EncoderClassifier(nn.Module):
    """An encoder with a linear head, the downstream model of the scenario."""

    def __init__(self, encoder: nn.Module, width: int, num_classes: int, seed: int = 0) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = nn.Linear(width, num_classes).to(next(self.encoder.parameters()).device)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        out: Tensor = self.head(self.encoder(x))
        return out
