"""Workloads: one row per primitive convolution."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

OperatorType = Literal["conv", "shift", "adder"]
OPERATOR_TYPES: tuple[OperatorType, ...] = get_args(OperatorType)


@dataclass(frozen=True)
class Layer:
    """One convolution (or fully connected layer) as the accelerator sees it.

    Attributes
    ----------
    name : str
    operator : {"conv", "shift", "adder"}
    channels, filters : int
        C and M of the whole layer.
    height, width : int
        Input size H x W, without padding.
    kernel : (int, int)
        R x S.
    out : (int, int)
        Output size E x F.
    stride : int
    groups : int
        A grouped layer runs as ``groups`` calls of C / groups channels and M / groups filters, one
        after the other: channels of different groups share no PE.
    """

    name: str
    operator: OperatorType
    channels: int
    filters: int
    height: int
    width: int
    kernel: tuple[int, int]
    out: tuple[int, int]
    stride: int = 1
    groups: int = 1

    def __post_init__(self) -> None:
        if self.operator not in OPERATOR_TYPES:
            raise ValueError(
                f"layer {self.name!r}: operator={self.operator!r}, allowed are "
                f"{', '.join(OPERATOR_TYPES)}"
            )
        sizes = (self.channels, self.filters, self.height, self.width, *self.kernel, *self.out)
        if min(*sizes, self.stride, self.groups) < 1:
            raise ValueError(f"layer {self.name!r}: every size must be at least 1, got {self}")
        if self.channels % self.groups or self.filters % self.groups:
            raise ValueError(
                f"layer {self.name!r}: groups={self.groups} must divide channels={self.channels} "
                f"and filters={self.filters}"
            )

    @classmethod
    def conv(
        cls,
        name: str,
        operator: OperatorType,
        channels: int,
        filters: int,
        size: int | tuple[int, int],
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        padding: int | None = None,
    ) -> Layer:
        """Make a square-kernel layer; the padding defaults to "same" (kernel // 2).

        Examples
        --------
        >>> Layer.conv("a", "conv", 3, 16, 32, kernel=3, stride=2).out
        (16, 16)
        """
        height, width = (size, size) if isinstance(size, int) else size
        pad = kernel // 2 if padding is None else padding
        out = ((height + 2 * pad - kernel) // stride + 1, (width + 2 * pad - kernel) // stride + 1)
        return cls(
            name, operator, channels, filters, height, width, (kernel, kernel), out, stride, groups
        )

    @property
    def macs(self) -> int:
        """Multiply-accumulates, or shift- or add-accumulates."""
        r, s = self.kernel
        e, f = self.out
        return e * f * self.filters * r * s * (self.channels // self.groups)

    @property
    def is_fully_connected(self) -> bool:
        """Whether the output is a single pixel."""
        return self.out == (1, 1)

    @property
    def one_group(self) -> Layer:
        """The call that is repeated for every group."""
        c, m = self.channels // self.groups, self.filters // self.groups
        return replace(self, channels=c, filters=m, groups=1)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {**self.__dict__, "kernel": list(self.kernel), "out": list(self.out)}


class Workload:
    """A named list of layers.

    Examples
    --------
    >>> first = Layer.conv("a", "conv", 3, 8, 8, 3)
    >>> w = Workload("two", [first, Layer.conv("b", "adder", 8, 8, 8)])
    >>> w
    Workload('two', 2 layers, 0.018 M MAC: conv 0.014, adder 0.004)
    """

    def __init__(self, name: str, layers: Iterable[Layer]) -> None:
        self.name, self.layers = name, tuple(layers)
        if not self.layers:
            raise ValueError(f"workload {name!r} has no layer")

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __repr__(self) -> str:
        shares = self.macs()
        parts = ", ".join(f"{t} {shares[t] / 1e6:.3f}" for t in OPERATOR_TYPES if shares[t])
        total = sum(shares.values()) / 1e6
        return f"Workload({self.name!r}, {len(self)} layers, {total:.3f} M MAC: {parts})"

    def macs(self) -> dict[OperatorType, int]:
        """Return the multiply-accumulates of each operator type."""
        return {t: sum(la.macs for la in self if la.operator == t) for t in OPERATOR_TYPES}

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "schema_version": 1,
            "name": self.name,
            "layers": [layer.to_json() for layer in self],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Workload:
        """Read what :meth:`to_json` wrote."""
        if data.get("schema_version") != 1:
            raise ValueError(f"schema_version={data.get('schema_version')!r}: allowed is 1")
        rows = data["layers"]
        layers = [
            Layer(**{**row, "kernel": tuple(row["kernel"]), "out": tuple(row["out"])})
            for row in rows
        ]
        return cls(data["name"], layers)
