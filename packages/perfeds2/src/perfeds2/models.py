"""Small models for the experiments; any module without buffers can be used instead."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import ModelConfig
from .data import FederatedData
from .errors import require


class SmallCNN(nn.Module):
    """Two convolutions and a linear layer for square one-channel images given as flat vectors."""

    def __init__(self, side: int, classes: int, width: int) -> None:
        super().__init__()
        self.side = side
        self.conv1 = nn.Conv2d(1, width, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, stride=2, padding=1)
        last = ((side + 1) // 2 + 1) // 2
        self.head = nn.Linear(width * last * last, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of shape (batch, side * side)."""
        x = x.reshape(-1, 1, self.side, self.side)
        x = torch.tanh(self.conv2(torch.tanh(self.conv1(x))))
        out: Tensor = self.head(x.flatten(1))
        return out


class CharGRU(nn.Module):
    """Next-character model: embedding, one GRU cell written out, linear layer.

    Written out because the fused operator has no vectorised second derivative.
    """

    def __init__(self, symbols: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.embed = nn.Parameter(torch.randn(symbols, hidden) * 0.1)
        self.input = nn.Linear(hidden, 3 * hidden)
        self.recurrent = nn.Linear(hidden, 3 * hidden)
        self.head = nn.Linear(hidden, symbols)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the character after a window of shape (batch, length) of symbol ids."""
        e = self.embed[x.long()]
        h = torch.zeros(x.shape[0], self.hidden, dtype=e.dtype)
        for t in range(x.shape[1]):
            ri, zi, ni = self.input(e[:, t]).chunk(3, -1)
            rh, zh, nh = self.recurrent(h).chunk(3, -1)
            r, z = torch.sigmoid(ri + rh), torch.sigmoid(zi + zh)
            h = (1 - z) * torch.tanh(ni + r * nh) + z * h
        out: Tensor = self.head(h)
        return out


def build_model(config: ModelConfig, data: FederatedData, seed: int) -> nn.Module:
    """Model for a data set, initialised from a seed without touching the global generator."""
    features, classes = data.features, data.classes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % (1 << 31))
        if config.kind == "softmax":
            linear = nn.Linear(features, classes)
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
            return linear
        if config.kind == "mlp":
            return nn.Sequential(
                nn.Linear(features, config.hidden), nn.Tanh(), nn.Linear(config.hidden, classes)
            )
        if config.kind == "cnn":
            side = round(features**0.5)
            require(side * side == features, "model.kind", "cnn", "square one-channel images")
            return SmallCNN(side, classes, config.hidden)
        return CharGRU(classes, config.hidden)
