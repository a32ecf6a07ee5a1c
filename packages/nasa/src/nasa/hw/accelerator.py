"""The chunked accelerator: memories, unit energies, area; read from YAML."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from nasa.hw.layer import OPERATOR_TYPES, OperatorType


@dataclass(frozen=True)
class Accelerator:
    """A chunked accelerator: one chunk of PEs per operator type around a shared global buffer.

    Attributes
    ----------
    name : str
    area : float
        Area budget, in areas of one MAC PE.
    pe_area : dict
        Area of one PE of each operator type, in the same unit.
    operation_pj : dict
        Energy of one operation of each type, picojoules.
    bits : dict
        Word width of each type's operands.
    access_pj : dict
        Energy of moving 16 bits: ``dram``, ``global_buffer``, ``noc``, ``register_file``,
        picojoules.
    global_buffer_words, input_register_words, weight_register_words : int
        Capacities; a tile must stay below them (strictly, as published).
    largest_filter_tile : int
        Largest M0.
    clock_hz : float
    compat : str or None
        ``"nasa-f"`` reproduces the published simulator, which charges every operation as a
        multiplication.
    """

    name: str
    area: float = 168.0
    pe_area: dict[str, float] = field(
        default_factory=lambda: {"conv": 1.0, "shift": 1 / 1.88, "adder": 1 / 1.88}
    )
    operation_pj: dict[str, float] = field(
        default_factory=lambda: {"conv": 0.2, "shift": 0.018, "adder": 0.022}
    )
    bits: dict[str, int] = field(default_factory=lambda: {"conv": 8, "shift": 6, "adder": 6})
    access_pj: dict[str, float] = field(
        default_factory=lambda: {
            "dram": 200.0,
            "global_buffer": 6.0,
            "noc": 2.0,
            "register_file": 1.0,
        }
    )
    global_buffer_words: int = 131070
    input_register_words: int = 48
    weight_register_words: int = 112
    largest_filter_tile: int = 16
    clock_hz: float = 250e6
    compat: str | None = None

    def __post_init__(self) -> None:
        for name in ("pe_area", "operation_pj", "bits"):
            table = getattr(self, name)
            if set(table) != set(OPERATOR_TYPES) or min(table.values()) <= 0:
                raise ValueError(
                    f"{name}={table}: needs a positive number for each of "
                    f"{', '.join(OPERATOR_TYPES)}"
                )
        levels = ("dram", "global_buffer", "noc", "register_file")
        if set(self.access_pj) != set(levels) or min(self.access_pj.values()) < 0:
            raise ValueError(
                f"access_pj={self.access_pj}: needs a number for each of {', '.join(levels)}"
            )
        positive = (
            "area", "global_buffer_words", "input_register_words", "weight_register_words",
            "largest_filter_tile", "clock_hz",
        )  # fmt: skip
        for name in positive:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be positive")
        if self.compat not in (None, "nasa-f"):
            raise ValueError(f"compat={self.compat!r}: allowed are null and 'nasa-f'")

    @classmethod
    def from_yaml(cls, source: str | Path) -> Accelerator:
        """Read a description: the name of one that is shipped, or a path.

        Raises
        ------
        ValueError
            If the file names an unknown field, or the name is unknown.

        Examples
        --------
        >>> Accelerator.from_yaml("nasa_45nm").area
        168.0
        """
        shipped = resources.files("nasa") / "configs" / "accelerators"
        names = sorted(
            f.name.removesuffix(".yaml") for f in shipped.iterdir() if f.name.endswith(".yaml")
        )
        if str(source) in names:
            text = (shipped / f"{source}.yaml").read_text()
        elif Path(source).is_file():
            text = Path(source).read_text()
        else:
            raise ValueError(
                f"accelerator={str(source)!r}: neither a file nor one of {', '.join(names)}"
            )
        try:
            data = yaml.safe_load(text)
        except yaml.YAMLError as error:
            line = str(error).replace("\n", " ")
            raise ValueError(f"accelerator={str(source)!r} is no YAML: {line}") from None
        if not isinstance(data, dict):
            raise ValueError(f"accelerator={str(source)!r}: a mapping of fields is needed")
        allowed = {f.name for f in fields(cls)}
        if unknown := set(data) - allowed:
            raise ValueError(
                f"accelerator={str(source)!r}: unknown fields {sorted(unknown)}; "
                f"allowed are {', '.join(sorted(allowed))}"
            )
        return cls(**data)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    def operation_energy_pj(self, operator: OperatorType) -> float:
        """Energy of one operation; the published simulator charges the multiplier's for all."""
        return self.operation_pj["conv" if self.compat == "nasa-f" else operator]
