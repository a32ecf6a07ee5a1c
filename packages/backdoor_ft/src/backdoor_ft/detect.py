"""Detectors, as advice: activation clustering, spectral signatures, MAD anomaly of triggers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


def activation_clusters(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    largest: float = 0.35,
    apart: float = 3.0,
) -> Bool[np.ndarray, " n"]:
    """Flag the smaller of two clusters of a class that looks poisoned (Chen et al. 2018).

    A class does where that cluster is small, or where its two clusters lie apart as no other
    class's do: their silhouette is more than `apart` scaled MADs above the median of the classes.
    The second sign is for poisons as many as the class's own samples.

    Parameters
    ----------
    features : last hidden features
    labels : as in the (poisoned) training set
    largest : largest share of a class that is small
    apart : scaled MADs of the silhouettes
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.metrics import silhouette_score

    smaller: list[np.ndarray] = []
    silhouettes: list[float] = []
    flagged = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        where = np.flatnonzero(labels == label)
        if len(where) < 10:
            continue
        width = min(10, len(where), features.shape[1])
        reduced = PCA(width, random_state=0).fit_transform(features[where])
        cluster = KMeans(2, n_init=4, random_state=0).fit_predict(reduced)
        small = cluster == np.bincount(cluster, minlength=2).argmin()
        smaller.append(where[small])
        both = 2 <= len(np.unique(cluster)) < len(where)
        silhouettes.append(float(silhouette_score(reduced, cluster)) if both else 0.0)
        if small.mean() <= largest:
            flagged[where[small]] = True
    if silhouettes:
        for members, index in zip(smaller, -anomaly_index(np.array(silhouettes))):
            if index > apart:
                flagged[members] = True
    return flagged


def spectral_scores(
    features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Return squared projections on each class's top singular vector (Tran et al. 2018)."""
    scores = np.zeros(len(labels))
    for label in np.unique(labels):
        where = np.flatnonzero(labels == label)
        centred = features[where] - features[where].mean(0)
        _, _, rows = np.linalg.svd(centred, full_matrices=False)
        scores[where] = (centred @ rows[0]) ** 2
    return scores


def anomaly_index(sizes: Float[np.ndarray, " classes"]) -> Float[np.ndarray, " classes"]:
    """Return how many scaled MADs each size lies below the median; above 2 is suspicious.

    Examples
    --------
    >>> anomaly_index(np.array([10.0, 11.0, 9.0, 10.0, 1.0])).argmax()
    np.int64(4)
    """
    median = float(np.median(sizes))
    mad = 1.4826 * float(np.median(np.abs(sizes - median)))
    return (median - np.asarray(sizes)) / max(mad, 1e-12)
