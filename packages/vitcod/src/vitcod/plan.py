"""Which keys every query keeps: the plan of a layer and of a model, and its file format."""

from __future__ import annotations

import hashlib
import itertools
import json
import weakref
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitcod.errors import InputError
from vitcod.files import write_atomically
from vitcod.layout import CostModel, build

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Bool, Int32, Int64

FORMAT = 1
_numbers = itertools.count()
# Plans by number: operators take numbers, not objects. A plan is here while somebody holds it.
PLANS: weakref.WeakValueDictionary[int, LayerPlan] = weakref.WeakValueDictionary()


@dataclass(frozen=True, eq=False)
class LayerPlan:
    """The fixed attention mask of one layer, and how its tokens are ordered.

    Parameters
    ----------
    keep : bool, (heads, queries, keys); True where the score is computed
    order : int, (heads, queries); the order in which kernels walk the rows
    permutation : int, (heads, keys); polarized order, global tokens first; None before `polarize`
    num_global : int, (heads,); tokens in the denser block (N_gt); None before `polarize`
    """

    keep: Bool[np.ndarray, "heads queries keys"]
    order: Int32[np.ndarray, "heads queries"]
    permutation: Int32[np.ndarray, "heads keys"] | None = None
    num_global: Int64[np.ndarray, " heads"] | None = None
    _cache: dict[Any, Any] = field(default_factory=dict, repr=False)
    is_dense: bool = field(init=False, repr=False)
    number: int = field(init=False, repr=False)
    shape: tuple[int, int, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Plain values, so that torch.compile reads them as constants.
        object.__setattr__(self, "is_dense", bool(self.keep.all()))
        object.__setattr__(self, "number", next(_numbers))
        object.__setattr__(self, "shape", tuple(int(n) for n in self.keep.shape))
        PLANS[self.number] = self

    @classmethod
    def from_mask(
        cls,
        keep: Bool[np.ndarray, "heads queries keys"],
        name: str = "mask",
    ) -> LayerPlan:
        """Make a plan from a boolean mask, True = kept.

        Parameters
        ----------
        keep : bool, (heads, queries, keys) or (queries, keys); array or tensor
        name : how errors call it

        Raises
        ------
        InputError
            Not boolean, not two- or three-dimensional, empty, or a row without a key.

        Examples
        --------
        >>> import numpy as np
        >>> print(LayerPlan.from_mask(np.tri(4, dtype=bool)))
        LayerPlan: 1 heads, 4 queries, 4 keys, density 62.50 %
        """
        mask = np.asarray(keep)
        if mask.dtype != bool:
            raise InputError(
                f"{name} has dtype {mask.dtype}: a boolean array, True where a key is kept"
            )
        mask = mask[None] if mask.ndim == 2 else mask
        if mask.ndim != 3 or 0 in mask.shape:
            raise InputError(f"{name} has shape {mask.shape}: (heads, queries, keys), none of 0")
        empty = np.argwhere(~mask.any(2))
        if len(empty):
            head, row = (int(i) for i in empty[0])
            raise InputError(
                f"{name} keeps no key in row {row} of head {head}: every query needs a key"
            )
        mask = np.array(mask, order="C")  # its own copy: a plan does not change
        mask.flags.writeable = False
        rows = np.tile(np.arange(mask.shape[1], dtype=np.int32), (mask.shape[0], 1))
        return cls(mask, rows)

    @property
    def heads(self) -> int:
        """Number of heads."""
        return self.shape[0]

    @property
    def queries(self) -> int:
        """Number of queries."""
        return self.shape[1]

    @property
    def keys(self) -> int:
        """Number of keys."""
        return self.shape[2]

    @property
    def nnz(self) -> Int64[np.ndarray, " heads"]:
        """Kept entries of each head."""
        found: np.ndarray = self.keep.sum((1, 2))
        return found

    @property
    def density(self) -> float:
        """Kept share of the layer's scores, 0 to 1."""
        return float(self.nnz.sum() / self.keep.size)

    @property
    def sparsity(self) -> float:
        """Dropped share of the layer's scores, 0 to 1."""
        return 1 - self.density

    def csr(self) -> tuple[Int64[np.ndarray, " rows_1"], Int32[np.ndarray, " entries"]]:
        """Row pointers over heads*queries rows, and the kept keys of each row, ascending."""
        if "csr" not in self._cache:
            counts = self.keep.sum(2).ravel()
            ptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
            self._cache["csr"] = ptr, np.nonzero(self.keep)[2].astype(np.int32)
        found: tuple[np.ndarray, np.ndarray] = self._cache["csr"]
        return found

    def native_layout(self, model: CostModel | None = None, kinds: list[str] | None = None) -> Any:
        """Return the compiled kernels' form of the plan, built once (``csrc/layout.hpp``)."""
        if model is None and kinds is None:
            found = self._cache.get("native")
            if found is not None:
                return found
        key = "native" if model is None and kinds is None else (model, tuple(kinds or ()))
        if key not in self._cache:
            self._cache[key] = build(self, model or CostModel(), kinds)
        return self._cache[key]

    def polarized(self, head: int) -> Bool[np.ndarray, "queries keys"]:
        """Mask of a head with rows and columns in polarized order (columns only if not square)."""
        if self.permutation is None:
            raise InputError("plan is not polarized: call vitcod.polarize(plan) first")
        columns = self.permutation[head]
        mask: np.ndarray = self.keep[head][:, columns]
        return mask[columns] if self.queries == self.keys else mask

    def to_text(self, head: int = 0, width: int = 64, polarized: bool = False) -> str:
        """Draw the mask of a head with characters: density of each cell from ' ' to '█'."""
        if not 0 <= head < self.heads:
            raise InputError(f"head={head} is not allowed: 0 to {self.heads - 1}")
        mask = self.polarized(head) if polarized else self.keep[head]
        columns = min(width, self.keys)
        rows = min(max(width // 2, 1), self.queries)
        r = np.arange(self.queries) * rows // self.queries
        c = np.arange(self.keys) * columns // self.keys
        cells, counts = np.zeros((rows, columns)), np.zeros((rows, columns))
        np.add.at(cells, (r[:, None], c[None]), mask)
        np.add.at(counts, (r[:, None], c[None]), 1)
        levels = np.ceil(cells / counts * 4).astype(int)
        return "\n".join("".join(" ░▒▓█"[v] for v in line) for line in levels)

    def __str__(self) -> str:
        text = (
            f"LayerPlan: {self.heads} heads, {self.queries} queries, {self.keys} keys,"
            f" density {100 * self.density:.2f} %"
        )
        if self.num_global is not None:
            text += f", global tokens {' '.join(str(n) for n in self.num_global)}"
        return text


@dataclass(frozen=True, eq=False)
class SparsityPlan:
    """The masks of all layers, with where they came from.

    Parameters
    ----------
    layers : one `LayerPlan` per attention layer, in the order of the model
    special_tokens : tokens before the patches (class, distillation, registers)
    grid : rows and columns of patches; None where the tokens are no grid
    info : method, threshold, source: JSON values
    """

    layers: tuple[LayerPlan, ...]
    special_tokens: int = 0
    grid: tuple[int, int] | None = None
    info: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_masks(
        cls, masks: Any, special_tokens: int = 1, info: dict[str, Any] | None = None
    ) -> SparsityPlan:
        """Make a plan from boolean masks, True = kept, (layers, heads, queries, keys) or a list.

        Raises
        ------
        InputError
            See `LayerPlan.from_mask`; the message names the layer.
        """
        layers = tuple(LayerPlan.from_mask(m, f"layer {i}") for i, m in enumerate(masks))
        if not layers:
            raise InputError("masks is empty: at least one layer is needed")
        first = layers[0]
        side = round(max(first.keys - special_tokens, 0) ** 0.5)
        square = first.queries == first.keys and side**2 == first.keys - special_tokens
        return cls(layers, special_tokens, (side, side) if square else None, info or {})

    def layer(self, index: int) -> LayerPlan:
        """Return the plan of one layer."""
        if not 0 <= index < len(self.layers):
            raise InputError(f"layer={index} is not allowed: 0 to {len(self.layers) - 1}")
        return self.layers[index]

    def __iter__(self) -> Iterator[LayerPlan]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def sparsity(self) -> float:
        """Dropped share of all scores, 0 to 1."""
        return 1 - sum(int(p.nnz.sum()) for p in self) / sum(p.keep.size for p in self)

    def checksum(self) -> str:
        """SHA-256 of masks, orders and permutations."""
        digest = hashlib.sha256()
        for plan in self:
            digest.update(repr(plan.keep.shape).encode())
            digest.update(np.packbits(plan.keep).tobytes())
            digest.update(np.ascontiguousarray(plan.order, np.int32).tobytes())
            if plan.permutation is not None and plan.num_global is not None:
                digest.update(np.ascontiguousarray(plan.permutation, np.int32).tobytes())
                digest.update(np.ascontiguousarray(plan.num_global, np.int64).tobytes())
        return digest.hexdigest()

    def resize(self, rows: int, columns: int) -> SparsityPlan:
        """Transfer the plan to another grid of patches; every token takes its nearest cell's keys.

        Parameters
        ----------
        rows, columns : patches of the new grid

        Raises
        ------
        InputError
            The plan has no grid, or the new one has no patch.
        """
        if self.grid is None:
            raise InputError("plan has no square grid of patches: resize needs one")
        if rows < 1 or columns < 1:
            raise InputError(f"grid={rows}x{columns} is not allowed: at least 1x1")
        y = (np.arange(rows) + 0.5) * self.grid[0] / rows
        x = (np.arange(columns) + 0.5) * self.grid[1] / columns
        cell = (y.astype(int)[:, None] * self.grid[1] + x.astype(int)[None]).ravel()
        source = np.concatenate([np.arange(self.special_tokens), self.special_tokens + cell])
        layers = tuple(
            LayerPlan.from_mask(p.keep[:, source][:, :, source], f"layer {i}")
            for i, p in enumerate(self)
        )
        info = {**self.info, "resized_from": list(self.grid)}
        return SparsityPlan(layers, self.special_tokens, (rows, columns), info)

    def shard_heads(self, rank: int, world: int) -> SparsityPlan:
        """Keep the heads of one tensor-parallel rank: a contiguous share of every layer."""
        if world < 1 or not 0 <= rank < world:
            raise InputError(f"rank={rank}, world={world} is not allowed: 0 <= rank < world")
        shards = []
        for i, plan in enumerate(self):
            if plan.heads % world:
                raise InputError(
                    f"world={world} does not divide the {plan.heads} heads of layer {i}"
                )
            share = plan.heads // world
            own = slice(rank * share, (rank + 1) * share)
            shards.append(
                LayerPlan(
                    plan.keep[own],
                    plan.order[own],
                    None if plan.permutation is None else plan.permutation[own],
                    None if plan.num_global is None else plan.num_global[own],
                )
            )
        return replace(self, layers=tuple(shards))

    def save(self, path: Path | str) -> Path:
        """Write the plan as safetensors: bit-packed masks, int32 orders, checksum; no pickle."""
        from safetensors.numpy import save

        arrays: dict[str, np.ndarray] = {}
        for i, plan in enumerate(self):
            arrays[f"{i}.keep"] = np.packbits(plan.keep)
            arrays[f"{i}.shape"] = np.array(plan.keep.shape, np.int64)
            arrays[f"{i}.order"] = np.ascontiguousarray(plan.order, np.int32)
            if plan.permutation is not None and plan.num_global is not None:
                arrays[f"{i}.permutation"] = np.ascontiguousarray(plan.permutation, np.int32)
                arrays[f"{i}.num_global"] = np.ascontiguousarray(plan.num_global, np.int64)
        header = {
            "format": FORMAT,
            "version": version("vitcod"),
            "layers": len(self),
            "special_tokens": self.special_tokens,
            "grid": self.grid,
            "info": self.info,
            "checksum": self.checksum(),
        }
        return write_atomically(path, save(arrays, {"vitcod": json.dumps(header, sort_keys=True)}))

    @classmethod
    def load(cls, path: Path | str) -> SparsityPlan:
        """Read a plan and check it against its checksum.

        Raises
        ------
        InputError
            No such file, not a plan, damaged, or of a newer format.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="numpy") as file:
                header = json.loads((file.metadata() or {}).get("vitcod", "null"))
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"plan={str(path)!r} cannot be read ({reason}): a file written by plan.save"
            ) from error
        if not isinstance(header, dict) or "checksum" not in header:
            raise InputError(f"plan={str(path)!r} is no vitcod plan: a file written by plan.save")
        if header["format"] > FORMAT:
            raise InputError(
                f"plan={str(path)!r} has format {header['format']}: at most {FORMAT}; update vitcod"
            )
        layers = []
        try:
            for i in range(header["layers"]):
                shape = tuple(int(n) for n in arrays[f"{i}.shape"])
                size = int(np.prod(shape))
                keep = np.unpackbits(arrays[f"{i}.keep"], count=size).astype(bool).reshape(shape)
                plan = LayerPlan.from_mask(keep, f"layer {i}")
                layers.append(
                    replace(
                        plan,
                        order=arrays[f"{i}.order"],
                        permutation=arrays.get(f"{i}.permutation"),
                        num_global=arrays.get(f"{i}.num_global"),
                    )
                )
        except (KeyError, ValueError) as error:
            raise InputError(f"plan={str(path)!r} is damaged ({error}): write it again") from error
        grid = tuple(header["grid"]) if header["grid"] else None
        found = cls(tuple(layers), header["special_tokens"], grid, header["info"])
        if found.checksum() != header["checksum"]:
            raise InputError(f"plan={str(path)!r} does not match its checksum: write it again")
        return found

    def __str__(self) -> str:
        grid = f"{self.grid[0]}x{self.grid[1]} patches" if self.grid else "no grid"
        lines = [
            f"SparsityPlan: {len(self)} layers, sparsity {100 * self.sparsity:.2f} %,"
            f" {self.special_tokens} special tokens, {grid}"
        ]
        for i, plan in enumerate(self):
            each = " ".join(f"{100 * n / (plan.queries * plan.keys):5.1f}" for n in plan.nnz)
            line = f"  layer {i:2}: density of heads {each} %"
            if plan.num_global is not None:
                line += f", global tokens {' '.join(str(n) for n in plan.num_global)}"
            lines.append(line)
        return "\n".join(lines)
