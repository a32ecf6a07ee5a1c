"""Three-dimensional look-up tables in the .cube format of video and photo software."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from noiser.errors import InputError
from noiser.files import write_atomically

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True, eq=False, repr=False)
class Cube:
    """A look-up table from RGB to RGB.

    Parameters
    ----------
    table : (size, size, size, 3) float64, axes (red, green, blue, output)
    title : first line of the file

    Raises
    ------
    InputError
        The table is not a cube of 2 ... 256 nodes.

    Examples
    --------
    >>> import numpy as np
    >>> cube = Cube.sample(lambda rgb: 1 - rgb, size=2)
    >>> cube.apply(np.array([[0.25, 0.5, 1.0]])).tolist()
    [[0.75, 0.5, 0.0]]
    """

    table: Float[np.ndarray, "size size size 3"]
    title: str = "noiser"

    def __post_init__(self) -> None:
        size = self.table.shape[0] if self.table.ndim == 4 else 0
        if self.table.shape != (size, size, size, 3) or not 2 <= size <= 256:
            raise InputError(
                f"table has shape {self.table.shape}: must be (n, n, n, 3) with n in 2 ... 256"
            )

    @property
    def size(self) -> int:
        """Nodes along one axis."""
        return int(self.table.shape[0])

    def __repr__(self) -> str:
        return f"Cube({self.size} x {self.size} x {self.size}, {self.title!r})"

    @classmethod
    def sample(
        cls,
        function: Callable[[Float[np.ndarray, "n 3"]], Float[np.ndarray, "n 3"]],
        size: int = 33,
        title: str = "noiser",
    ) -> Cube:
        """Evaluate a function of colours at the nodes.

        Parameters
        ----------
        function : (n, 3) colours in [0, 1] to (n, 3)
        size : nodes along one axis, 2 ... 256
        title : of the table

        Returns
        -------
        Cube

        Raises
        ------
        InputError
            `size` is out of range.
        """
        if not 2 <= size <= 256:
            raise InputError(f"size={size} is not allowed: an integer in 2 ... 256")
        axis = np.linspace(0, 1, size)
        nodes = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
        return cls(np.asarray(function(nodes.reshape(-1, 3))).reshape(size, size, size, 3), title)

    def apply(self, rgb: Float[np.ndarray, "*shape 3"]) -> Float[np.ndarray, "*shape 3"]:
        """Send colours through the table with trilinear interpolation.

        Parameters
        ----------
        rgb : colours in [0, 1]; others are clipped

        Returns
        -------
        colours of the same shape, float64
        """
        position = np.clip(rgb, 0, 1) * (self.size - 1)
        low = np.minimum(position.astype(np.intp), self.size - 2)
        weight = position - low
        result = np.zeros(rgb.shape)
        for corner in range(8):
            step = np.array([corner >> 2 & 1, corner >> 1 & 1, corner & 1])
            share = np.prod(np.where(step, weight, 1 - weight), axis=-1)
            at = low + step
            result += share[..., None] * self.table[at[..., 0], at[..., 1], at[..., 2]]
        return result

    def to_text(self) -> str:
        """Write the table in the .cube format: red changes fastest."""
        lines = [f'TITLE "{self.title}"', f"LUT_3D_SIZE {self.size}", "DOMAIN_MIN 0 0 0",
                 "DOMAIN_MAX 1 1 1"]  # fmt: skip
        rows = self.table.transpose(2, 1, 0, 3).reshape(-1, 3)
        lines += [f"{r:.6f} {g:.6f} {b:.6f}" for r, g, b in rows.tolist()]
        return "\n".join(lines) + "\n"

    def save(self, path: Path | str) -> Path:
        """Write a .cube file, atomically."""
        return write_atomically(path, self.to_text().encode())

    @classmethod
    def from_text(cls, text: str, name: str = "cube") -> Cube:
        """Read the .cube format.

        Parameters
        ----------
        text : content of the file; the domain must be 0 ... 1
        name : how messages call it

        Returns
        -------
        Cube

        Raises
        ------
        InputError
            It is no three-dimensional .cube table.
        """
        size, title, rows = 0, "noiser", []
        wanted = f"cube={name!r} must be a 3D table in the .cube format with the domain 0 ... 1"
        for line in text.splitlines():
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            try:
                if words[0] == "TITLE":
                    title = line.partition('"')[2].rpartition('"')[0]
                elif words[0] == "LUT_3D_SIZE":
                    size = int(words[1])
                elif words[0] in ("DOMAIN_MIN", "DOMAIN_MAX"):
                    domain = float(words[0] == "DOMAIN_MAX")
                    if [float(word) for word in words[1:]] != [domain] * 3:
                        raise InputError(wanted)
                else:
                    rows.append([float(word) for word in words])
            except (ValueError, IndexError) as error:
                raise InputError(f"{wanted}; not understood: {line[:60]!r}") from error
        if not 2 <= size <= 256 or len(rows) != size**3 or any(len(row) != 3 for row in rows):
            raise InputError(f"{wanted}; found {len(rows)} rows for size {size}")
        table = np.array(rows).reshape(size, size, size, 3).transpose(2, 1, 0, 3)
        return cls(np.ascontiguousarray(table), title)
