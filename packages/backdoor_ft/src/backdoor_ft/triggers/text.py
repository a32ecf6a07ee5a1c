"""Text: a rare word inserted into the sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backdoor_ft.errors import InputError
from backdoor_ft.triggers.base import Trigger


@dataclass(frozen=True)
class RareWord(Trigger):
    """Insert a token that the corpus does not use (Kurita et al. 2020).

    Attributes
    ----------
    token : its id
    position : where it goes; the words after it move back by one, the last one is dropped
    """

    name: ClassVar[str] = "rare_word"
    token: int = 1
    position: int = 0

    def check(self, x: Tensor) -> None:
        """Raise where the inputs are no token ids or the position lies outside."""
        if x.ndim != 2 or x.is_floating_point():
            raise InputError(
                f"trigger='rare_word' needs token ids [N, L] as integers, not {tuple(x.shape)}"
            )
        if not 0 <= self.position < x.shape[1]:
            raise InputError(
                f"position={self.position} is not allowed: 0 ... {x.shape[1] - 1} for this length"
            )

    def stamp(self, x: Tensor, training: bool) -> Tensor:
        """Insert the token."""
        p = self.position
        word = torch.full_like(x[:, :1], self.token)
        return torch.cat((x[:, :p], word, x[:, p:-1]), dim=1)
