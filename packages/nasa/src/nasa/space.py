"""Search spaces: which blocks each cell may hold (section 3.1 of the paper)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from nasa.hw.layer import OPERATOR_TYPES, OperatorType


@dataclass(frozen=True)
class Candidate:
    """One choice of a cell: an inverted residual block (E, K, T), or a skip.

    Attributes
    ----------
    expansion, kernel : int
        E and K; 0 for a skip.
    operator : {"conv", "shift", "adder"} or None
        T, the type of all three layers of the block; None for a skip.
    """

    expansion: int
    kernel: int
    operator: OperatorType | None

    @property
    def is_skip(self) -> bool:
        """Whether the cell is skipped."""
        return self.operator is None

    def __str__(self) -> str:
        return "skip" if self.is_skip else f"{self.operator}-e{self.expansion}-k{self.kernel}"


SKIP = Candidate(0, 0, None)


@dataclass(frozen=True)
class Cell:
    """Position of a cell: its channels, stride, input size and choices."""

    index: int
    in_channels: int
    out_channels: int
    stride: int
    size: tuple[int, int]
    candidates: tuple[Candidate, ...]

    @property
    def keeps_shape(self) -> bool:
        """Whether input and output have the same shape (then a block is residual)."""
        return self.stride == 1 and self.in_channels == self.out_channels


@dataclass(frozen=True)
class SearchSpace:
    """A macro network and the choices of its cells.

    Attributes
    ----------
    name : str
    operators : tuple
        Types a block may have.
    stages : tuple of (cells, channels, stride)
    expansions, kernels : tuple of int
        E and K; as in FBNet (1, 3), (3, 3), (6, 3), (1, 5) ...
    cells_without_adder : int
        So many cells at either end offer no adder (what the authors' code does; the paper's count
        of 19**22 ignores it).
    stem_channels, stem_stride, head_channels : int
    image : (channels, height, width)
    classes : int

    Examples
    --------
    >>> space = SearchSpace.hybrid_all()
    >>> len(space.cells), len(space.cells[10].candidates), len(space.cells[0].candidates)
    (22, 19, 13)
    >>> space.size == 13**6 * 19**16
    True
    """

    name: str
    operators: tuple[OperatorType, ...]
    stages: tuple[tuple[int, int, int], ...]
    expansions: tuple[int, ...] = (1, 3, 6)
    kernels: tuple[int, ...] = (3, 5)
    cells_without_adder: int = 0
    stem_channels: int = 16
    stem_stride: int = 1
    head_channels: int = 1504
    image: tuple[int, int, int] = (3, 32, 32)
    classes: int = 10

    def __post_init__(self) -> None:
        for name in ("operators", "expansions", "kernels", "image"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "stages", tuple(tuple(stage) for stage in self.stages))
        unknown = set(self.operators) - set(OPERATOR_TYPES)
        if unknown or not self.operators:
            raise ValueError(
                f"operators={list(self.operators)}: allowed are {', '.join(OPERATOR_TYPES)}"
            )
        if not self.stages or any(len(stage) != 3 or min(stage) < 1 for stage in self.stages):
            raise ValueError(f"stages={self.stages}: needs triples of cells, channels and stride")
        if not self.expansions or min(self.expansions) < 1:
            raise ValueError(f"expansions={self.expansions}: needs integers of at least 1")
        if not self.kernels or any(k < 1 or k % 2 == 0 for k in self.kernels):
            raise ValueError(f"kernels={self.kernels}: needs odd integers")
        if len(self.image) != 3 or min(self.image) < 1:
            raise ValueError(f"image={self.image}: needs channels, height and width")
        if self.classes < 2:
            raise ValueError(f"classes={self.classes}: at least 2 are needed")

    @classmethod
    def from_yaml(cls, source: str | Path) -> SearchSpace:
        """Read a space: the name of one that is shipped, or a path."""
        shipped = resources.files("nasa") / "configs" / "spaces"
        names = sorted(
            f.name.removesuffix(".yaml") for f in shipped.iterdir() if f.name.endswith(".yaml")
        )
        if str(source) in names:
            text = (shipped / f"{source}.yaml").read_text()
        elif Path(source).is_file():
            text = Path(source).read_text()
        else:
            raise ValueError(f"space={str(source)!r}: neither a file nor one of {', '.join(names)}")
        try:
            data = yaml.safe_load(text)
        except yaml.YAMLError as error:
            line = str(error).replace("\n", " ")
            raise ValueError(f"space={str(source)!r} is no YAML: {line}") from None
        return cls.from_json(data)

    @classmethod
    def from_json(cls, data: Any) -> SearchSpace:
        """Read plain data."""
        allowed = {f.name for f in fields(cls)}
        if (
            not isinstance(data, dict)
            or set(data) - allowed
            or {"name", "operators", "stages"} - set(data)
        ):
            raise ValueError(
                f"a search space needs name, operators and stages, and may have "
                f"{', '.join(sorted(allowed))}; got "
                f"{sorted(data) if isinstance(data, dict) else data!r}"
            )
        return cls(**data)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def hybrid_shift(cls) -> SearchSpace:
        """Convolution and shift."""
        return cls.from_yaml("hybrid-shift")

    @classmethod
    def hybrid_adder(cls) -> SearchSpace:
        """Convolution and adder."""
        return cls.from_yaml("hybrid-adder")

    @classmethod
    def hybrid_all(cls) -> SearchSpace:
        """Convolution, shift and adder."""
        return cls.from_yaml("hybrid-all")

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The searchable cells, input to output."""
        total = sum(n for n, _, _ in self.stages)
        height, width = (-(-s // self.stem_stride) for s in self.image[1:])
        channels = self.stem_channels
        cells: list[Cell] = []
        for n, out, first in self.stages:
            for i in range(n):
                index, stride = len(cells), first if i == 0 else 1
                edge = min(index, total - 1 - index) < self.cells_without_adder
                operators = [t for t in self.operators if not (edge and t == "adder")]
                blocks = [
                    Candidate(e, k, t)
                    for t in operators
                    for k in self.kernels
                    for e in self.expansions
                ]
                cells.append(Cell(index, channels, out, stride, (height, width), (*blocks, SKIP)))
                height, width, channels = -(-height // stride), -(-width // stride), out
        return tuple(cells)

    @property
    def out_size(self) -> tuple[int, int]:
        """Height and width that the head sees."""
        last = self.cells[-1]
        return -(-last.size[0] // last.stride), -(-last.size[1] // last.stride)

    @property
    def size(self) -> int:
        """Number of architectures."""
        product = 1
        for cell in self.cells:
            product *= len(cell.candidates)
        return product
