"""Leiden communities of an embedding, with a search for the resolution that gives K of them.

Needs the optional package igraph (extra ``leiden``), imported where used.
"""

from __future__ import annotations

import random
import threading

import numpy as np
from scipy import sparse

from ..errors import InputError, MissingExtraError, warn
from ..spatial.neighbors import nearest_neighbors

__all__ = ["leiden", "neighbor_graph", "neighbor_vote"]

_BISECTIONS = 25
_ONE_AT_A_TIME = threading.Lock()
"""Held by searches, which take random numbers from the generator of the process."""


def neighbor_graph(embedding: np.ndarray, n_neighbors: int = 20, seed: int = 0) -> sparse.csr_matrix:
    """Graph of nearest neighbors in the embedding.

    Parameters
    ----------
    embedding : ndarray, (N, C)
        One row per spot.
    n_neighbors : int
        Neighbors of each spot, without itself; at most N - 1. Tied ones are all included.
    seed : int
        For the approximate search that is used for many spots.

    Returns
    -------
    csr_matrix, (N, N), float32
        Symmetric: 2 between mutual neighbors, 1 where only one is a neighbor of the other; no loops.
    """
    directed, _ = nearest_neighbors(embedding, min(n_neighbors, len(embedding) - 1), seed=seed)
    return (directed + directed.T).astype(np.float32).tocsr()


def neighbor_vote(graph: sparse.csr_matrix, labels: np.ndarray, n_clusters: int) -> np.ndarray:
    """Weighted share of each cluster among a spot and its neighbors: (N, K) float32, rows sum to one."""
    n = len(labels)
    member = sparse.csr_matrix((np.ones(n, np.float32), (np.arange(n), labels)), shape=(n, n_clusters))
    votes = np.asarray((graph @ member + member).todense())  # N × K
    return votes / votes.sum(1, keepdims=True)


def leiden(graph: sparse.csr_matrix, n_clusters: int, embedding: np.ndarray, seed: int = 0) -> np.ndarray:
    """Exactly K communities by modularity, with bisection of the resolution.

    Parameters
    ----------
    graph : csr_matrix, (N, N)
        Symmetric weights, see `neighbor_graph`.
    n_clusters : int
        K.
    embedding : ndarray, (N, C)
        Decides which communities are merged where no resolution gives exactly K.
    seed : int
        For the order in which nodes are moved. Python's global generator is not changed.

    Returns
    -------
    ndarray of int64, (N,)
        Labels 0..K-1.

    Raises
    ------
    MissingExtraError
        igraph is not installed.
    InputError
        No resolution up to 1,000 gives as many as K communities.

    Warns
    -----
    AmilstWarning
        No resolution gives exactly K, and communities were merged.

    Notes
    -----
    Traag, Waltman & van Eck 2019, with modularity as in Reichardt & Bornholdt 2006.
    """
    try:
        import igraph
    except ImportError as error:
        raise MissingExtraError.for_package("igraph", "leiden", "Leiden clustering") from error
    upper = sparse.triu(graph, k=1).tocoo()
    network = igraph.Graph(n=graph.shape[0], edges=np.column_stack([upper.row, upper.col]))

    def partition(resolution: float) -> np.ndarray:
        # igraph has one generator per process: set ours, then restore its default
        with _ONE_AT_A_TIME:
            # repeatable, not secret
            igraph.set_random_number_generator(random.Random(seed))  # nosec B311
            try:
                communities = network.community_leiden(
                    objective_function="modularity", weights=upper.data, resolution=resolution, n_iterations=4
                )
            finally:
                igraph.set_random_number_generator(random)
        return np.asarray(communities.membership, dtype=np.int64)

    finer: np.ndarray | None = None
    low, high = 0.0, 1.0
    labels = partition(high)
    while labels.max() + 1 < n_clusters and high < 1000:
        low, high = high, 2 * high
        labels = partition(high)
    for _ in range(_BISECTIONS):
        found = labels.max() + 1
        if found == n_clusters:
            return labels
        if found > n_clusters and (finer is None or found <= finer.max() + 1):
            finer = labels
        middle = 0.5 * (low + high)
        labels = partition(middle)
        low, high = (low, middle) if labels.max() + 1 > n_clusters else (middle, high)
    if labels.max() + 1 == n_clusters:
        return labels
    if finer is None:
        raise InputError(
            f"Expected {n_clusters} communities; Leiden finds at most {labels.max() + 1} among {len(labels)} "
            'spots. Set fewer domains (--n-domains), or use method "gmm".'
        )
    warn(
        f"No resolution of Leiden gives exactly {n_clusters} communities; the closest pairs of "
        f"{finer.max() + 1} communities were merged."
    )
    return _merge_nearest(finer, embedding, n_clusters)


def _merge_nearest(labels: np.ndarray, embedding: np.ndarray, n_clusters: int) -> np.ndarray:
    """Merge the two clusters with the least increase of variance (Ward 1963) until K remain."""
    labels = labels.copy()
    while True:
        sizes = np.bincount(labels).astype(np.float64)
        n_found = len(sizes)
        if n_found <= n_clusters:
            return labels
        sums = np.stack([np.bincount(labels, column) for column in embedding.T.astype(np.float64)], axis=1)
        means = sums / sizes[:, None]
        squared = ((means[:, None] - means[None]) ** 2).sum(-1)
        cost = squared * (sizes[:, None] * sizes[None] / (sizes[:, None] + sizes[None]))
        np.fill_diagonal(cost, np.inf)
        keep, merged = sorted(np.unravel_index(np.argmin(cost), cost.shape))
        labels[labels == merged] = keep
        labels[labels > merged] -= 1
