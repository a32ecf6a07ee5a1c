"""From averaged attention maps to masks: information, ratio, std and random pruning.

Information pruning is the first half of the paper's Algorithm 1: per row, the shortest prefix of
the keys in descending order whose attention sums to at least theta.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from vitcod.errors import InputError
from vitcod.plan import LayerPlan, SparsityPlan
from vitcod.stats import AttentionStats

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

Method = Literal["info", "ratio", "std", "random", "local", "output"]
Scope = Literal["global", "layer"]


def information_mask(
    maps: Float[np.ndarray, "heads queries keys"],
    theta: float,
    official: bool = False,
) -> Bool[np.ndarray, "heads queries keys"]:
    """Keep per row the shortest prefix whose cumulative attention reaches theta (Algorithm 1).

    Parameters
    ----------
    maps : averaged attention probabilities; rows sum to 1
    theta : theta_p, mass to keep, in [0, 1]
    official : keep one key more, as the authors' ``gen_mask.py`` does

    Returns
    -------
    bool, True = kept; at least one key per row

    Examples
    --------
    >>> import numpy as np
    >>> a = np.array([[[0.5, 0.2, 0.3]]])
    >>> information_mask(a, 0.6).astype(int).tolist()
    [[[1, 0, 1]]]
    """
    if not 0 <= theta <= 1:
        raise InputError(f"theta={theta} is not allowed: 0 to 1")
    order, before = _prefixes(maps)
    kept = before < theta
    kept[..., 0] = True
    if official:
        kept[..., 1:] |= kept[..., :-1].copy()
    mask = np.zeros(maps.shape, bool)
    np.put_along_axis(mask, order, kept, -1)
    return mask


def _prefixes(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keys in descending order (ties: lower index first), and the mass before each of them."""
    maps = np.asarray(maps, np.float64)  # float32 sums differ between machines
    order = np.argsort(-maps, axis=-1)  # three times as fast as the stable sort, which ties need
    ranked = np.take_along_axis(maps, order, -1)
    tied = (ranked[..., 1:] == ranked[..., :-1]).any(-1)
    if tied.any():
        order[tied] = np.argsort(-maps[tied], axis=-1, kind="stable")
    # A row that sums to 1 within rounding must never run past its last key.
    before = np.zeros_like(ranked)
    np.cumsum(ranked[..., :-1], -1, out=before[..., 1:])
    return order, before


def _importance(
    maps: np.ndarray, method: str, rng: np.random.Generator, grid: Any, special: int
) -> np.ndarray:
    """Per entry a figure such that `keep = figure <= threshold` is the method's mask."""
    if method in ("info", "output"):
        if method == "output":
            maps = maps / np.maximum(maps.sum(-1, keepdims=True), 1e-300)
        figure = np.empty(maps.shape)
        rows = max(1, 2**18 // maps.shape[-1])  # so many stay in the cache
        for head, start in itertools.product(range(len(maps)), range(0, maps.shape[1], rows)):
            part = head, slice(start, start + rows)
            order, before = _prefixes(maps[part])
            np.put_along_axis(figure[part], order, before, -1)
        return figure
    if method == "ratio":
        order, _ = _prefixes(maps)
        figure = np.empty(maps.shape)
        rank = np.broadcast_to(np.arange(maps.shape[-1]) / maps.shape[-1], maps.shape)
        np.put_along_axis(figure, order, rank, -1)
        return figure
    if method == "std":
        mean, std = maps.mean(-1, keepdims=True), maps.std(-1, keepdims=True)
        return np.asarray(-(maps - mean) / np.maximum(std, 1e-300))
    if method == "random":
        return rng.random(maps.shape)
    if grid is None:
        raise InputError("method='local' needs a square grid of patches: use another method")
    tokens = maps.shape[-1]
    figure = np.zeros(maps.shape)
    y, x = np.divmod(np.arange(tokens - special), grid[1])
    distance = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2
    figure[:, special:, special:] = distance + 1e-6 * rng.random((maps.shape[0], *distance.shape))
    return figure


def _protect(shape: tuple[int, ...], protect: tuple[str, ...], special: int) -> np.ndarray:
    forced = np.zeros(shape, bool)
    for name in protect:
        if name not in ("cls", "diagonal"):
            raise InputError(f"protect={name!r} is not allowed: 'cls' or 'diagonal'")
        if name == "cls":  # class, distillation and register tokens alike
            forced[:, :special] = True
            forced[:, :, :special] = True
        else:
            n = min(shape[1:])
            forced[:, np.arange(n), np.arange(n)] = True
    return forced


def _tile_maps(maps: np.ndarray, rows: int, order: np.ndarray) -> np.ndarray:
    """Average the maps over groups of `rows` rows in walking order: the group shares its keys."""
    ordered = maps[:, order]
    result = np.empty_like(maps)
    for start in range(0, maps.shape[1], rows):
        group = order[start : start + rows]
        result[:, group] = ordered[:, start : start + rows].mean(1, keepdims=True)
    return result


def prune(
    stats: AttentionStats,
    sparsity: float | None = None,
    method: Method = "info",
    scope: Scope = "global",
    protect: tuple[str, ...] = ("cls",),
    tile_rows: int | None = None,
    theta: float | None = None,
    official: bool = False,
    seed: int = 0,
) -> SparsityPlan:
    """Choose the kept keys from averaged attention maps.

    Parameters
    ----------
    stats : averaged maps
    sparsity : share of scores to drop, 0 to 1; the threshold is solved exactly, to one entry
    method : "info" (Algorithm 1), "ratio" (keys per row), "std" (mean + c std per row), "output"
        (information pruning of ``E[a^2 |v - o|^2]``), and the controls "random" and "local"
    scope : one threshold for the model ("global") or per layer
    protect : "cls" keeps rows and columns of the special tokens, "diagonal" each token itself
    tile_rows : groups of so many rows (in Z-order) share one choice of keys; None: each row its own
    theta : threshold instead of `sparsity`: theta_p for "info"
    official : the authors' off-by-one (one key more per row); needs `theta` and "info"
    seed : of "random", and of ties in "local"

    Returns
    -------
    SparsityPlan; ``info`` holds the threshold

    Raises
    ------
    InputError
        A sparsity that the protected entries do not allow, or contradictory arguments.

    Examples
    --------
    >>> import numpy as np, vitcod
    >>> rng = np.random.default_rng(0)
    >>> stats = vitcod.AttentionStats([rng.dirichlet(np.ones(17), (2, 17))], images=1)
    >>> f"{vitcod.prune(stats, sparsity=0.5).sparsity:.2f}"
    '0.50'
    """
    if method not in get_args(Method):
        raise InputError(f"method={method!r} is not allowed: one of {', '.join(get_args(Method))}")
    if scope not in get_args(Scope):
        raise InputError(f"scope={scope!r} is not allowed: 'global' or 'layer'")
    if (sparsity is None) == (theta is None):
        raise InputError("sparsity and theta: give exactly one of them")
    if sparsity is not None and not 0 <= sparsity < 1:
        raise InputError(f"sparsity={sparsity} is not allowed: at least 0 and below 1, e.g. 0.9")
    if official and (theta is None or method != "info"):
        raise InputError("official=True needs theta and method='info'")
    if tile_rows is not None and tile_rows < 1:
        raise InputError(f"tile_rows={tile_rows} is not allowed: an integer of at least 1")
    stats.check()
    if method == "output" and stats.output_scores is None:
        raise InputError("method='output' needs collect_attention(..., output_scores=True)")
    rng = np.random.default_rng(seed)
    source = stats.output_scores if method == "output" and stats.output_scores else stats.maps
    special = stats.special_tokens
    figures, forced = [], []
    for maps in source:
        maps = np.asarray(maps, np.float64)
        if tile_rows:
            maps = _tile_maps(maps, tile_rows, row_order(maps.shape[1], stats.grid, special))
        figures.append(_importance(maps, method, rng, stats.grid, special))
        forced.append(_protect(maps.shape, protect, special))
    thresholds: list[float]
    if theta is not None:
        thresholds = [theta] * len(figures)
        if method == "info":
            masks = [information_mask(m, theta, official) | f for m, f in zip(source, forced)]
        else:
            masks = [_at_least_one(x <= theta, x) | f for x, f in zip(figures, forced)]
    else:
        assert sparsity is not None
        masks, thresholds = _solve(figures, forced, sparsity, scope)
    info = {
        "method": method,
        "scope": scope,
        "protect": list(protect),
        "tile_rows": tile_rows,
        "official": official,
        "threshold": thresholds if scope == "layer" else thresholds[0],
        "images": stats.images,
        "maps": stats.checksum(),
    }
    layers = tuple(LayerPlan.from_mask(m, f"layer {i}") for i, m in enumerate(masks))
    return SparsityPlan(layers, special, stats.grid, info)


def _at_least_one(keep: np.ndarray, figure: np.ndarray) -> np.ndarray:
    np.put_along_axis(keep, figure.argmin(-1)[..., None], True, -1)
    return keep


def _solve(
    figures: list[np.ndarray], forced: list[np.ndarray], sparsity: float, scope: str
) -> tuple[list[np.ndarray], list[float]]:
    """Threshold with exactly the wanted number of kept entries; ties in reading order."""
    groups = (
        [list(range(len(figures)))] if scope == "global" else [[i] for i in range(len(figures))]
    )
    masks: list[np.ndarray] = [np.empty(0)] * len(figures)
    thresholds = [0.0] * len(figures)
    for group in groups:
        flat, must = [], []
        for i in group:
            base = _at_least_one(forced[i].copy(), figures[i])
            must.append(base.ravel())
            flat.append(figures[i].ravel())
        if len(group) == 1:
            figure, base = flat[0], must[0]
        else:
            figure, base = np.concatenate(flat), np.concatenate(must)
        wanted, least = round((1 - sparsity) * len(figure)), int(base.sum())
        if wanted < least:
            raise InputError(
                f"sparsity={sparsity} is not possible: protected entries and one key per row"
                f" allow at most {1 - least / len(figure):.4f}; protect less"
            )
        keep, extra, threshold = base, wanted - least, 0.0
        if extra:
            values = np.where(base, np.inf, figure)
            values.partition(extra - 1)
            threshold = float(values[extra - 1])
            keep = base | (figure < threshold)
            ties = np.flatnonzero((figure == threshold) & ~base)
            keep[ties[: wanted - int(keep.sum())]] = True
        start = 0
        for i in group:
            size = figures[i].size
            masks[i] = keep[start : start + size].reshape(figures[i].shape)
            thresholds[i] = threshold
            start += size
    return masks, thresholds


def morton(grid: tuple[int, int]) -> Int[np.ndarray, " tokens"]:
    """Patches in Z-order: indices of a row-major grid, sorted by interleaved bits.

    Examples
    --------
    >>> morton((2, 4)).tolist()
    [0, 1, 4, 5, 2, 3, 6, 7]
    """
    y, x = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    code = np.zeros(len(y), np.int64)
    for bit in range(16):
        code |= ((x >> bit) & 1) << (2 * bit) | ((y >> bit) & 1) << (2 * bit + 1)
    return np.argsort(code, kind="stable")


def row_order(
    tokens: int, grid: tuple[int, int] | None, special: int
) -> Int[np.ndarray, " tokens"]:
    """Return special tokens, then patches in Z-order where there is a grid."""
    if grid is None or grid[0] * grid[1] + special != tokens:
        return np.arange(tokens)
    return np.concatenate([np.arange(special), special + morton(grid)])
