"""Tables of conditionals: two positions (`PairTable`) or any number (`CubeTable`)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from .errors import InputError, SupportError, require

LEVELS = {
    "U": "unary: conditionals with one mask only (curl)",
    "P": "path: two orders of filling two masks",
    "M": "marginalisation: a marginal against the sum over its partner",
    "N": "nested span: a masked span against a longer one",
}


def as_log_table(name: str, value: Any, ndim: int | None = None) -> Float[np.ndarray, ...]:
    """Check an array of log-probabilities: finite or minus infinity, at most about zero.

    Raises
    ------
    InputError
        Wrong number of axes, NaN, plus infinity.
    """
    array = np.asarray(value, dtype=np.float64)
    if ndim is not None and array.ndim != ndim:
        raise InputError(
            f"{name} has shape {array.shape}: allowed is an array with {ndim} axes, one entry per"
            " pair of candidates"
        )
    if np.isnan(array).any() or np.isposinf(array).any():
        where = tuple(int(i) for i in np.argwhere(~(array < np.inf))[0])
        raise InputError(
            f"{name}{list(where)} = {array[where]}: allowed are log-probabilities, finite or -inf"
        )
    return array


def check_support(name: str, array: Float[np.ndarray, ...], axis: int) -> None:
    """Refuse a context whose conditional has no support at all."""
    empty = np.isneginf(array).all(axis=axis)
    if empty.any():
        where = [int(i) for i in np.argwhere(np.atleast_1d(empty))[0]]
        raise SupportError(
            f"{name}: context {where} gives every candidate probability zero; allowed is at least"
            " one candidate with positive probability; enlarge the candidate set"
        )


def normalise(array: Float[np.ndarray, ...], axis: int | tuple[int, ...]) -> Any:
    """Subtract the log-sum-exp along axes."""
    return array - logsumexp(array, axis=axis, keepdims=True)


@dataclass(frozen=True)
class PairTable:
    """What a model says about two positions of one sentence.

    Parameters
    ----------
    log_a_given_b : float [A, B]
        ``log p(a | b)``: first position masked, second one holds b.
    log_b_given_a : float [A, B]
        ``log p(b | a)``: the same layout, second position masked.
    log_m_i, log_m_j : float [A], [B], optional
        Both positions masked: log-probabilities of a at the first, of b at the second.
    log_z_a, log_z_b : float [B], [A], optional
        Log-normalisers of the raw logits in each context; the raw-logit MRF needs them.
    labels_a, labels_b : tuple of str, optional
        Text of the candidates.
    gold : (int, int), optional
        Row and column of the sentence's own tokens.
    text : str, optional
        The sentence with ``[1]`` and ``[2]`` in place of the two tokens.

    Notes
    -----
    Entries may be log-probabilities over the model's whole vocabulary, restricted to candidates.
    Curl and uniform marginal representation do not depend on that; Kullback-Leibler quantities and
    joints do, and use `renormalised`.

    Examples
    --------
    >>> joint = np.log([[0.1, 0.2], [0.3, 0.4]])
    >>> PairTable.from_joint(joint)
    PairTable(2 x 2 candidates, largest |curl| 0.000)
    """

    log_a_given_b: Float[np.ndarray, "A B"]
    log_b_given_a: Float[np.ndarray, "A B"]
    log_m_i: Float[np.ndarray, " A"] | None = None
    log_m_j: Float[np.ndarray, " B"] | None = None
    log_z_a: Float[np.ndarray, " B"] | None = None
    log_z_b: Float[np.ndarray, " A"] | None = None
    labels_a: tuple[str, ...] = ()
    labels_b: tuple[str, ...] = ()
    gold: tuple[int, int] | None = None
    text: str = ""
    info: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        first = as_log_table("log_a_given_b", self.log_a_given_b, 2)
        second = as_log_table("log_b_given_a", self.log_b_given_a, 2)
        if first.shape != second.shape:
            raise InputError(
                f"log_b_given_a has shape {second.shape}, log_a_given_b {first.shape}: allowed are"
                " equal shapes [A, B]; transpose the conditional whose axes are swapped"
            )
        require(min(first.shape) >= 1, "log_a_given_b", first.shape, "at least one candidate each")
        check_support("log_a_given_b", first, 0)
        check_support("log_b_given_a", second, 1)
        object.__setattr__(self, "log_a_given_b", first)
        object.__setattr__(self, "log_b_given_a", second)
        sizes = {
            "log_m_i": first.shape[0],
            "log_m_j": first.shape[1],
            "log_z_a": first.shape[1],
            "log_z_b": first.shape[0],
        }
        for name, size in sizes.items():
            value = getattr(self, name)
            if value is not None:
                value = as_log_table(name, value, 1)
                require(value.shape == (size,), name, value.shape, f"shape ({size},)")
                object.__setattr__(self, name, value)

    @classmethod
    def from_joint(cls, log_joint: Float[np.ndarray, "A B"], **fields: Any) -> PairTable:
        """Conditionals and marginals of an explicit joint distribution."""
        log_joint = normalise(as_log_table("log_joint", log_joint, 2), (0, 1))
        return cls(
            normalise(log_joint, 0),
            normalise(log_joint, 1),
            logsumexp(log_joint, axis=1),
            logsumexp(log_joint, axis=0),
            **fields,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of candidates (A, B)."""
        return self.log_a_given_b.shape[0], self.log_a_given_b.shape[1]

    @property
    def conditionals(self) -> tuple[Float[np.ndarray, "A B"], Float[np.ndarray, "A B"]]:
        """Both conditionals, in the order of their masked axis."""
        return self.log_a_given_b, self.log_b_given_a

    def renormalised(self) -> PairTable:
        """Conditionals and marginals that sum to one over the candidates."""
        margins: dict[str, Any] = {
            name: None if value is None else normalise(value, 0)
            for name, value in (("log_m_i", self.log_m_i), ("log_m_j", self.log_m_j))
        }
        return replace(
            self,
            log_a_given_b=normalise(self.log_a_given_b, 0),
            log_b_given_a=normalise(self.log_b_given_a, 1),
            log_z_a=None
            if self.log_z_a is None
            else self.log_z_a + logsumexp(self.log_a_given_b, axis=0),
            log_z_b=None
            if self.log_z_b is None
            else self.log_z_b + logsumexp(self.log_b_given_a, axis=1),
            **margins,
        )

    def need_margins(self) -> tuple[Float[np.ndarray, " A"], Float[np.ndarray, " B"]]:
        """Both-masked log-probabilities; refuse a table that has none."""
        if self.log_m_i is None or self.log_m_j is None:
            raise InputError(
                "table has no both-masked probabilities: allowed is a table with log_m_i and"
                " log_m_j; score the pattern with both positions masked"
            )
        return self.log_m_i, self.log_m_j

    def restrict(self, rows: Any, columns: Any) -> PairTable:
        """Keep some candidates; probabilities are kept as they are (see `renormalised`)."""
        rows, columns = np.asarray(rows), np.asarray(columns)

        def pick(value: Any, index: Any) -> Any:
            return None if value is None else value[index]

        gold = None
        if self.gold and self.gold[0] in rows and self.gold[1] in columns:
            gold = (int(np.argmax(rows == self.gold[0])), int(np.argmax(columns == self.gold[1])))
        return replace(
            self,
            log_a_given_b=self.log_a_given_b[np.ix_(rows, columns)],
            log_b_given_a=self.log_b_given_a[np.ix_(rows, columns)],
            log_m_i=pick(self.log_m_i, rows),
            log_m_j=pick(self.log_m_j, columns),
            log_z_a=pick(self.log_z_a, columns),
            log_z_b=pick(self.log_z_b, rows),
            labels_a=tuple(self.labels_a[i] for i in rows) if self.labels_a else (),
            labels_b=tuple(self.labels_b[i] for i in columns) if self.labels_b else (),
            gold=gold,
        )

    def to_frame(self) -> Any:
        """One row per cell, as a pandas DataFrame."""
        import pandas as pd

        a, b = np.indices(self.shape)
        columns: dict[str, Any] = {
            "a": [self.labels_a[i] for i in a.ravel()] if self.labels_a else a.ravel(),
            "b": [self.labels_b[i] for i in b.ravel()] if self.labels_b else b.ravel(),
            "log_a_given_b": self.log_a_given_b.ravel(),
            "log_b_given_a": self.log_b_given_a.ravel(),
        }
        return pd.DataFrame(columns)

    def __repr__(self) -> str:
        from .compat import worst_quadruple

        rows, columns = self.shape
        largest = abs(worst_quadruple(self).gap) if min(self.shape) > 1 else 0.0
        where = f", {self.text!r}" if self.text else ""
        return f"PairTable({rows} x {columns} candidates, largest |curl| {largest:.3f}{where})"


@dataclass(frozen=True)
class CubeTable:
    """Unary conditionals of k positions over their candidate sets.

    Parameters
    ----------
    conditionals : tuple of k float arrays [V_1, ..., V_k]
        ``conditionals[i][x] = log p(x_i | the other positions of x)``.
    labels : tuple of k tuples of str, optional
    """

    conditionals: tuple[Float[np.ndarray, ...], ...]
    labels: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        arrays = tuple(
            as_log_table(f"conditionals[{i}]", c) for i, c in enumerate(self.conditionals)
        )
        require(len(arrays) >= 2, "conditionals", len(arrays), "one array for each of k >= 2 axes")
        for i, array in enumerate(arrays):
            if array.ndim != len(arrays) or array.shape != arrays[0].shape:
                raise InputError(
                    f"conditionals[{i}] has shape {array.shape}: allowed is"
                    f" {arrays[0].shape} with {len(arrays)} axes"
                )
            check_support(f"conditionals[{i}]", array, i)
        object.__setattr__(self, "conditionals", arrays)

    @classmethod
    def from_joint(cls, log_joint: Float[np.ndarray, ...]) -> CubeTable:
        """Conditionals of an explicit joint distribution."""
        log_joint = as_log_table("log_joint", log_joint)
        return cls(tuple(normalise(log_joint, axis) for axis in range(log_joint.ndim)))

    @property
    def shape(self) -> tuple[int, ...]:
        """Numbers of candidates of each position."""
        return tuple(self.conditionals[0].shape)

    def renormalised(self) -> CubeTable:
        """Conditionals that sum to one over the candidates."""
        return replace(
            self,
            conditionals=tuple(normalise(c, axis) for axis, c in enumerate(self.conditionals)),
        )

    def __repr__(self) -> str:
        return f"CubeTable({' x '.join(map(str, self.shape))} candidates)"


Table = PairTable | CubeTable


def axis_conditionals(table: Table) -> tuple[Float[np.ndarray, ...], ...]:
    """Conditionals of a table, one array per masked axis, all in the layout of the cells."""
    return tuple(table.conditionals)
