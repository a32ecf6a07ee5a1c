"""An architecture: one choice per cell, its JSON, its workload, its network."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasa._files import write_text
from nasa.hw.layer import Layer, OperatorType, Workload
from nasa.space import Candidate, Cell, SearchSpace

if TYPE_CHECKING:
    from nasa.network import HybridNet


@dataclass(frozen=True)
class Architecture:
    """One choice for every cell of a space. Hashable; a JSON file holds it with its space.

    Attributes
    ----------
    space : SearchSpace
    choices : tuple of int
        Index into each cell's candidates.

    Examples
    --------
    >>> space = SearchSpace.from_yaml("digits")
    >>> arch = Architecture(space, (0, 1, 2, 6))
    >>> arch
    Architecture('digits': conv-e1-k3 conv-e3-k3 shift-e1-k3 skip)
    >>> Architecture.from_json(arch.to_json()) == arch
    True
    """

    space: SearchSpace
    choices: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", tuple(int(c) for c in self.choices))
        cells = self.space.cells
        if len(self.choices) != len(cells):
            raise ValueError(
                f"choices has {len(self.choices)} entries, the space {self.space.name!r} has "
                f"{len(cells)} cells"
            )
        for cell, choice in zip(cells, self.choices, strict=True):
            if not 0 <= choice < len(cell.candidates):
                raise ValueError(
                    f"choices[{cell.index}]={choice}: the cell has candidates 0 to "
                    f"{len(cell.candidates) - 1}"
                )

    def __repr__(self) -> str:
        return f"Architecture({self.space.name!r}: {' '.join(str(c) for c in self.candidates)})"

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """The chosen candidates, input to output."""
        return tuple(
            cell.candidates[choice]
            for cell, choice in zip(self.space.cells, self.choices, strict=True)
        )

    @classmethod
    def random(cls, space: SearchSpace, seed: int | random.Random) -> Architecture:
        """Draw every choice uniformly."""
        source = seed if isinstance(seed, random.Random) else random.Random(seed)
        return cls(space, tuple(source.randrange(len(cell.candidates)) for cell in space.cells))

    def with_operators(self, operators: Iterable[OperatorType]) -> Architecture:
        """Return the same topology with other operator types, one per cell (skips stay)."""
        choices = []
        for cell, candidate, operator in zip(
            self.space.cells, self.candidates, operators, strict=True
        ):
            wanted = candidate
            if not candidate.is_skip:
                wanted = Candidate(candidate.expansion, candidate.kernel, operator)
            if wanted not in cell.candidates:
                raise ValueError(
                    f"cell {cell.index} of {self.space.name!r} does not offer {wanted}"
                )
            choices.append(cell.candidates.index(wanted))
        return Architecture(self.space, tuple(choices))

    def workload(self) -> Workload:
        """Return one row per convolution, stem, head and classifier included."""
        space = self.space
        channels, height, width = space.image
        layers = [
            Layer.conv(
                "stem", "conv", channels, space.stem_channels, (height, width), 3, space.stem_stride
            )
        ]
        for cell, candidate in zip(space.cells, self.candidates, strict=True):
            layers += cell_layers(cell, candidate)
        last = space.cells[-1].out_channels
        layers.append(Layer.conv("head", "conv", last, space.head_channels, space.out_size))
        layers.append(Layer.conv("classifier", "conv", space.head_channels, space.classes, 1))
        return Workload(space.name, layers)

    def build(self) -> HybridNet:
        """Return a network of its own, freshly initialised."""
        from nasa.network import HybridNet

        return HybridNet(self)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "schema_version": 1,
            "space": self.space.to_json(),
            "choices": list(self.choices),
            "candidates": [str(c) for c in self.candidates],
        }

    @classmethod
    def from_json(cls, data: Any) -> Architecture:
        """Read what :meth:`to_json` wrote."""
        if not isinstance(data, dict) or data.get("schema_version") != 1:
            raise ValueError("an architecture is a JSON object with schema_version 1")
        found = cls(SearchSpace.from_json(data["space"]), tuple(data["choices"]))
        names = data.get("candidates")
        if names is not None and names != [str(c) for c in found.candidates]:
            raise ValueError("the architecture's choices and candidates contradict each other")
        return found

    def save(self, path: str | Path) -> None:
        """Write the JSON, whole or not at all."""
        write_text(path, json.dumps(self.to_json(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Architecture:
        """Read a JSON file.

        Raises
        ------
        ValueError
            If the file is missing, no JSON, or no architecture.
        """
        try:
            data = json.loads(Path(path).read_text())
        except OSError as error:
            raise ValueError(f"architecture={str(path)!r}: {error.strerror}") from None
        except ValueError as error:
            raise ValueError(f"architecture={str(path)!r} is no JSON: {error}") from None
        try:
            return cls.from_json(data)
        except (KeyError, TypeError) as error:
            raise ValueError(f"architecture={str(path)!r} lacks {error}") from None


def cell_layers(cell: Cell, candidate: Candidate) -> list[Layer]:
    """Return the convolutions of a cell under a candidate."""
    name, stride = f"cell{cell.index}", cell.stride
    inputs, outputs = cell.in_channels, cell.out_channels
    if candidate.operator is None:
        if cell.keeps_shape:
            return []
        skip = Layer.conv(f"{name}.skip", "conv", inputs, outputs, cell.size, 1, stride, padding=0)
        return [skip]
    operator, kernel, middle = candidate.operator, candidate.kernel, inputs * candidate.expansion
    out = (-(-cell.size[0] // stride), -(-cell.size[1] // stride))
    return [
        Layer.conv(f"{name}.expand", operator, inputs, middle, cell.size),
        Layer.conv(
            f"{name}.depthwise", operator, middle, middle, cell.size, kernel, stride, middle
        ),
        Layer.conv(f"{name}.project", operator, middle, outputs, out),
    ]
