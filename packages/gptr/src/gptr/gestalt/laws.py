"""The three gestalt laws as row-stochastic matrices, and as products that never store one.

Similarity compares colour moments, proximity compares places, smoothness follows contours across
the borders that cells share (good continuation). Each is a masked softmax of logits; where the
logits have structure, their product with values is computed without an N x N matrix: proximity is
a separable filter, smoothness a walk on the grid.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from gptr.gestalt.descriptors import Descriptors

LAWS = ("similarity", "proximity", "smoothness")
FLOOR = 1e-4
"""Share of every pair of cells in the smoothness law: cells without a contour see all."""


def check_laws(laws: tuple[str, ...]) -> tuple[str, ...]:
    """Return the laws in their order, or raise naming the wrong one."""
    for law in laws:
        if law not in LAWS:
            raise ValueError(f"laws has {law!r}: allowed are {', '.join(LAWS)}")
    return tuple(law for law in LAWS if law in laws)


def masked_softmax(logits: Tensor, valid: Tensor) -> Tensor:
    """Softmax over valid columns; rows of invalid cells are zero.

    Parameters
    ----------
    logits
        (B, N, N).
    valid
        (B, N) bool.
    """
    rows = torch.softmax(logits.masked_fill(~valid[:, None, :], float("-inf")), -1)
    return torch.nan_to_num(rows) * valid[:, :, None]


def similarity_logits(
    features: Float[Tensor, "B N F"], temperature: Tensor | float
) -> Float[Tensor, "B N N"]:
    """Return -|c_i - c_j|^2 / (2 temperature^2)."""
    square = (features * features).sum(-1)
    distance = square[:, :, None] + square[:, None, :] - 2 * features @ features.transpose(1, 2)
    return -distance.clamp(min=0) / (2 * temperature**2)


def proximity_logits(places: Float[Tensor, "N 2"], sigma: Tensor | float) -> Float[Tensor, "N N"]:
    """Return -|p_i - p_j|^2 / (2 sigma^2), places and sigma in cells."""
    difference = places[:, None] - places[None]
    return -(difference * difference).sum(-1) / (2 * sigma**2)


def proximity_product(
    values: Float[Tensor, "B N D"],
    valid: Tensor,
    grid: tuple[int, int],
    sigma: Tensor,
) -> Float[Tensor, "B N D"]:
    """Return softmax(proximity) @ values without the matrix.

    A Gaussian of the distance is a product of one over rows and one over columns, so the softmax
    is a separable filter divided by the same filter of the mask: O(N (rows + columns)).
    """
    B, N, D = values.shape
    rows, columns = grid
    y = torch.arange(rows, device=values.device, dtype=values.dtype)
    x = torch.arange(columns, device=values.device, dtype=values.dtype)
    over_rows = torch.exp(-((y[:, None] - y) ** 2) / (2 * sigma**2))
    over_columns = torch.exp(-((x[:, None] - x) ** 2) / (2 * sigma**2))
    field = torch.cat((values * valid[..., None], valid[..., None].to(values)), -1)
    field = over_rows @ field.view(B, rows, columns * (D + 1))
    field = (over_columns @ field.view(B, rows, columns, D + 1)).view(B, N, D + 1)
    return field[..., :D] / field[..., D:].clamp(min=1e-20) * valid[..., None]


def continuation(
    descriptors: Descriptors, spread: Tensor | float
) -> tuple[Float[Tensor, "B R C"], Float[Tensor, "B R C"]]:
    """Return the strength of good continuation to the right and downwards, in [0, 1].

    M_ij = b_ij kappa_i kappa_j exp(-dtheta^2 / 2 spread^2): the edge map continues across the
    shared border within a pixel (b), both cells have one orientation (coherence kappa), and it
    turns by little (dtheta, in radians).
    """
    rows, columns = descriptors.grid
    B = len(descriptors.colour)
    tensor = descriptors.tensor.view(B, rows, columns, 3)
    links = descriptors.links.view(B, rows, columns, 2)
    direction, kappa = tensor[..., :2], tensor[..., 2]

    def strength(a: tuple, b: tuple, link: Tensor) -> Tensor:
        cosine = (direction[a] * direction[b]).sum(-1).clamp(-1, 1)
        turn = 0.5 * torch.acos(cosine)
        return link * kappa[a] * kappa[b] * torch.exp(-(turn**2) / (2 * spread**2))

    every, first, last = slice(None), slice(None, -1), slice(1, None)
    right = torch.zeros_like(kappa)
    down = torch.zeros_like(kappa)
    right = torch.nn.functional.pad(
        strength((every, every, first), (every, every, last), links[:, :, :-1, 0]), (0, 1)
    )
    down = torch.nn.functional.pad(
        strength((every, first), (every, last), links[:, :-1, :, 1]), (0, 0, 0, 1)
    )
    return right, down


def walks(
    values: Float[Tensor, "B D N"], right: Tensor, down: Tensor, decay: Tensor | float, hops: int
) -> Float[Tensor, "B D N"]:
    """Return sum over h = 0..hops of decay^h M^h values, for the symmetric grid matrix M.

    Horner's scheme: hops times values + decay M (the sum so far). In row-major order the four
    neighbours of a cell lie 1 and ``columns`` places away, so a step is four shifted products; the
    strengths that would lead out of the grid are zero.

    Parameters
    ----------
    right, down
        Entries of M to the right and downwards, (B, R, C).
    """
    B, rows, columns = right.shape
    N = rows * columns
    pad = torch.nn.functional.pad
    r = decay * pad(right[:, :, :-1], (0, 1)).view(B, 1, N)
    d = decay * pad(down[:, :-1], (0, 0, 0, 1)).view(B, 1, N)
    left, up = pad(r, (1, 0))[..., :N], pad(d, (columns, 0))[..., :N]
    total = values
    if not (torch.is_grad_enabled() or torch.jit.is_tracing()):  # the same sum in two buffers
        spare = [values.new_zeros(*values.shape[:2], N + 2 * columns) for _ in "ab"]
        inner = [w[..., columns : columns + N] for w in spare]
        inner[0].copy_(values)
        for i in range(hops):
            wide, total = spare[i % 2], inner[1 - i % 2]
            torch.mul(r, wide[..., columns + 1 : columns + 1 + N], out=total)
            total.addcmul_(left, wide[..., columns - 1 : columns - 1 + N])
            total.addcmul_(d, wide[..., 2 * columns : 2 * columns + N])
            total.addcmul_(up, wide[..., :N]).add_(values)
        return total
    for _ in range(hops):
        wide = pad(total, (columns, columns))
        total = torch.addcmul(values, r, wide[..., columns + 1 : columns + 1 + N])
        total = torch.addcmul(total, left, wide[..., columns - 1 : columns - 1 + N])
        total = torch.addcmul(total, d, wide[..., 2 * columns : 2 * columns + N])
        total = torch.addcmul(total, up, wide[..., :N])
    return total


def smoothness_product(
    values: Float[Tensor, "B N D"],
    valid: Tensor,
    right: Tensor,
    down: Tensor,
    decay: Tensor | float,
    hops: int,
    floor: float = FLOOR,
) -> Float[Tensor, "B N D"]:
    """Return softmax(log(floor + sum_h decay^h M^h)) @ values without the matrix: O(N hops).

    The softmax of a logarithm is division by the row sum, and the sum of powers is a walk.
    """
    D = values.shape[-1]
    seen = valid[:, None].to(values)
    field = torch.cat((values.transpose(1, 2) * seen, seen), 1)
    total = walks(field, right, down, decay, hops) + floor * field.sum(-1, keepdim=True)
    return (total[:, :D] / total[:, D:].clamp(min=1e-20) * seen).transpose(1, 2)


def contour_matrix(right: Tensor, down: Tensor) -> Float[Tensor, "B N N"]:
    """Return M as a dense symmetric matrix."""
    B, rows, columns = right.shape
    index = torch.arange(rows * columns, device=right.device).view(rows, columns)
    M = right.new_zeros(B, rows * columns, rows * columns)
    for strength, a, b in (
        (right[:, :, :-1], index[:, :-1], index[:, 1:]),
        (down[:, :-1], index[:-1], index[1:]),
    ):
        i, j = a.reshape(-1), b.reshape(-1)
        M[:, i, j] = M[:, j, i] = strength.reshape(B, -1)
    return M


BRIDGES = ((0, 2), (2, 0), (1, 2), (2, 1), (1, -2), (2, -1), (2, 2), (2, -2))


def bridges(descriptors: Descriptors, spread: Tensor | float) -> Float[Tensor, "B N N"]:
    """Return links over a junction, where two contours cross and orientation is undecided.

    Cells two steps apart are linked if both contours have one direction, the step goes along it,
    and the cell between holds edges of no single orientation: coherence there is lost, and a walk
    from neighbour to neighbour would turn into the other contour.
    """
    B = len(descriptors.colour)
    rows, columns = descriptors.grid
    field = descriptors.tensor.view(B, rows, columns, 3)
    filled = (descriptors.density.view(B, rows, columns) > 0).to(field)
    index = torch.arange(rows * columns, device=field.device).view(rows, columns)
    M = field.new_zeros(B, rows * columns, rows * columns)
    for dy, dx in BRIDGES:
        if rows <= dy or columns <= abs(dx):
            continue
        length = math.hypot(dy, dx)
        # the contour runs across the gradient: its double angle is the gradient's, negated
        along = field.new_tensor([(dx * dx - dy * dy), 2 * dx * dy]) / length**2

        def part(x: Tensor, y: int, c: int, dy: int = dy, dx: int = dx) -> Tensor:
            left, wide = max(0, -dx) + c, columns - abs(dx)
            return x[:, y : y + rows - dy, left : left + wide]

        a, b = part(field, 0, 0), part(field, dy, dx)
        strength = a[..., 2] * b[..., 2]
        for u, v in ((a[..., :2], b[..., :2]), (a[..., :2], -along), (b[..., :2], -along)):
            turn = 0.5 * torch.acos((u * v).sum(-1).clamp(-1, 1))
            strength = strength * torch.exp(-(turn**2) / (2 * spread**2))
        halves = {(dy // 2, int(dx / 2)), (-(-dy // 2), int(math.copysign(-(-abs(dx) // 2), dx)))}
        open_between = torch.stack(
            [part(filled, *h) * (1 - part(field, *h)[..., 2]) for h in halves]
        ).amax(0)
        strength = strength * open_between
        i, j = part(index[None], 0, 0).reshape(-1), part(index[None], dy, dx).reshape(-1)
        M[:, i, j] = M[:, j, i] = strength.reshape(B, -1)
    return M


def smoothness_weights(
    right: Tensor, down: Tensor, decay: float, hops: int, over: Tensor | None = None
) -> Float[Tensor, "B N N"]:
    """Return sum over h = 0..hops of decay^h M^h as a dense matrix.

    ``over`` adds `bridges`; M is then divided by the degrees of its rows and columns, so that the
    sum stays bounded whatever ``decay`` and ``hops`` are.
    """
    M = contour_matrix(right, down)
    if over is not None:
        M = M + over
        degree = M.sum(-1).clamp(min=1e-9).rsqrt()
        M = M * degree[:, :, None] * degree[:, None, :]
    step = total = torch.eye(M.shape[-1], device=M.device, dtype=M.dtype).expand_as(M)
    for _ in range(hops):
        step = decay * (step @ M)
        total = total + step
    return total
