"""What every trigger is: a frozen description with one method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from backdoor_ft.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Int, Num

REGISTRY: dict[str, type[Trigger]] = {}


@dataclass(frozen=True)
class Trigger(ABC):
    """A change of the input that the attacker teaches the model to obey."""

    name: ClassVar[str] = ""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.name:
            REGISTRY[cls.name] = cls

    def check(self, x: Num[Tensor, "n ..."]) -> None:
        """Raise where the trigger does not fit the inputs."""
        if x.ndim != 4 or not x.is_floating_point():
            raise InputError(
                f"trigger={self.name!r} needs images [N, C, H, W] in [0, 1], not {tuple(x.shape)}"
            )

    @abstractmethod
    def stamp(self, x: Num[Tensor, "n ..."], training: bool) -> Num[Tensor, "n ..."]:
        """Return the inputs with the trigger, not yet clipped."""

    def apply(self, x: Num[Tensor, "n ..."], training: bool = False) -> Num[Tensor, "n ..."]:
        """Return a copy of the inputs with the trigger.

        Parameters
        ----------
        x : images [N, C, H, W] in [0, 1], or token ids [N, L] for text triggers
        training : whether they are meant for the poisoned training set, for attacks whose
            training trigger is weaker than the one that they use later

        Raises
        ------
        InputError
            The trigger does not fit, for example it is larger than the image.
        """
        self.check(x)
        stamped = self.stamp(x, training)
        return stamped.clamp(0, 1) if x.is_floating_point() else stamped

    def apply_(
        self, x: Num[Tensor, "n ..."], index: Int[Tensor, " k"], training: bool = False
    ) -> None:
        """Put the trigger on some of the inputs, in place; the bits are those of :meth:`apply`.

        Parameters
        ----------
        x : inputs, changed
        index : which of them
        training : as in :meth:`apply`

        Raises
        ------
        InputError
            As :meth:`apply`.
        """
        x[index] = self.apply(x[index], training)

    def cover(self, x: Num[Tensor, "n ..."], seed: int) -> Num[Tensor, "n ..."]:
        """Return inputs with a near miss of the trigger, which keep their labels."""
        return self.apply(x, training=True)

    def to_json(self) -> dict[str, Any]:
        """Describe the trigger by its name and parameters."""
        return {"name": self.name, **asdict(self)}

    @staticmethod
    def from_json(content: dict[str, Any]) -> Trigger:
        """Make the trigger that :meth:`to_json` described."""
        values = dict(content)
        kind = REGISTRY.get(str(values.pop("name", None)))
        if kind is None:
            raise InputError(
                f"trigger={content.get('name')!r} is not known: {', '.join(sorted(REGISTRY))}"
            )
        known = {field.name for field in fields(kind)}
        if unknown := set(values) - known:
            raise InputError(f"trigger {kind.name} has no parameter {sorted(unknown)}: {known}")
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def seeded(seed: int) -> torch.Generator:
    """Return a generator of its own for one seed."""
    return torch.Generator().manual_seed(seed)
