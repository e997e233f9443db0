"""Leiden communities of an embedding, with the resolution searched for a wanted number of them.

Needs the extra ``leiden`` (igraph); imported only when used.
"""

from __future__ import annotations

import random
import warnings

import numpy as np
from scipy import sparse
from sklearn.neighbors import NearestNeighbors

from ..errors import AmilstWarning, InputError, MissingExtraError

__all__ = ["leiden", "neighbor_graph", "neighbor_vote"]

_EXACT_BELOW = 20_000  # spots; above, approximate neighbours are found much faster
_BISECTIONS = 25


def neighbor_graph(embedding: np.ndarray, n_neighbors: int = 20, seed: int = 0) -> sparse.csr_matrix:
    """Graph of nearest neighbours in the embedding.

    Parameters
    ----------
    embedding : ndarray, (N, C)
        One row a spot.
    n_neighbors : int
        Neighbours of each spot, itself not counted; fewer where there are not so many.
    seed : int
        For the approximate search of large N.

    Returns
    -------
    csr_matrix, (N, N), float32
        Symmetric: 2 where each is among the other's neighbours, 1 where one is, no loops.
    """
    n = len(embedding)
    k = min(n_neighbors, n - 1)
    if n < _EXACT_BELOW:
        neighbors = NearestNeighbors(n_neighbors=k).fit(embedding).kneighbors(return_distance=False)
    else:
        from pynndescent import NNDescent

        neighbors = NNDescent(embedding, n_neighbors=k + 1, random_state=seed).neighbor_graph[0]
    rows = np.repeat(np.arange(n), neighbors.shape[1])
    directed = sparse.csr_matrix((np.ones(rows.size, np.float32), (rows, neighbors.ravel())), shape=(n, n))
    directed.setdiag(0)
    directed.eliminate_zeros()
    return (directed + directed.T).tocsr()


def neighbor_vote(graph: sparse.csr_matrix, labels: np.ndarray, n_clusters: int) -> np.ndarray:
    """Share of each cluster among a spot and its neighbours: (N, K) float32, rows sum to one."""
    n = len(labels)
    member = sparse.csr_matrix((np.ones(n, np.float32), (np.arange(n), labels)), shape=(n, n_clusters))
    votes = np.asarray((graph @ member + member).todense())  # N × K
    return votes / votes.sum(1, keepdims=True)


def leiden(graph: sparse.csr_matrix, n_clusters: int, embedding: np.ndarray, seed: int = 0) -> np.ndarray:
    """Exactly K communities of largest modularity, by bisecting the resolution.

    Parameters
    ----------
    graph : csr_matrix, (N, N)
        Symmetric weights, see `neighbor_graph`.
    n_clusters : int
        K.
    embedding : ndarray, (N, C)
        Where no resolution gives exactly K, the nearest communities in it are joined.
    seed : int
        For the order in which nodes are moved; Python's global generator is left as it was.

    Returns
    -------
    ndarray of int64, (N,)
        Labels 0..K-1.

    Raises
    ------
    MissingExtraError
        igraph is not installed.
    InputError
        The graph falls into more pieces than K, so that no partition has K communities.

    Warns
    -----
    AmilstWarning
        No resolution gave exactly K; the message says what was done.

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
        # igraph draws from one generator for the whole process: lend it ours, and give back its own
        igraph.set_random_number_generator(random.Random(seed))
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
            f"Leiden finds no more than {labels.max() + 1} communities among {len(labels)} spots; "
            f"{n_clusters} were asked for. Ask for fewer, or use clustering by gmm."
        )
    warnings.warn(
        f"no resolution of Leiden gives exactly {n_clusters} communities; the {finer.max() + 1} it gave "
        "next above were joined, nearest first, until there were so many.",
        AmilstWarning,
        stacklevel=2,
    )
    return _join_nearest(finer, embedding, n_clusters)


def _join_nearest(labels: np.ndarray, embedding: np.ndarray, n_clusters: int) -> np.ndarray:
    """Join the two clusters whose union costs least (Ward 1963) until K are left."""
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
        keep, join = sorted(np.unravel_index(np.argmin(cost), cost.shape))
        labels[labels == join] = keep
        labels[labels > join] -= 1
