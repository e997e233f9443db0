"""Refinement: each spot takes the domain that most of its neighbours on the section have.

It removes single spots astray in another domain and straightens borders. It also erases structures
one or two spots thick, so the refined labels belong beside the others, not in their place.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import ArrayLike
from scipy.spatial import cKDTree

from .errors import InputError
from .runtime import n_threads

__all__ = ["majority_vote"]


def majority_vote(
    labels: ArrayLike,
    neighbors: np.ndarray | sp.spmatrix | sp.sparray,
    n_neighbors: int = 6,
    sample: ArrayLike | None = None,
) -> np.ndarray:
    """Replace each label by the majority among the spot itself and its spatial neighbours.

    Parameters
    ----------
    labels : array-like, shape (n_spots,)
        The domains; none missing.
    neighbors : ndarray, shape (n_spots, 2) or (n_spots, 3), or sparse matrix, shape (n_spots, n_spots)
        Coordinates, in any unit; or a neighbour graph, of which only the places of the non-zero
        entries count, row by row.
    n_neighbors : int
        Nearest spots that vote, when coordinates are given: 6 are the ring around a Visium spot. At
        most the section's spots less one.
    sample : array-like, shape (n_spots,), optional
        The section of each spot, when coordinates are given: only spots of the same section vote.

    Returns
    -------
    ndarray, shape (n_spots,)
        Refined labels, of the type given. A spot moves only if one domain has strictly more votes
        than every other; a tie leaves it where it is. Every domain stays: if all spots of one would
        leave it, they keep their label.

    Raises
    ------
    InputError
        Lengths or shapes disagree, a label is missing, a coordinate is not finite, ``n_neighbors`` is
        below 1, or ``sample`` comes with a graph.

    Notes
    -----
    One round of votes, all at once: the outcome does not depend on the order of the spots. Time and
    memory are linear in the number of votes.
    """
    given: np.ndarray = np.asarray(labels)
    if given.ndim != 1 or pd.isna(given).any():
        raise InputError(
            f"labels must be one-dimensional with none missing; found shape {given.shape}, "
            f"{int(pd.isna(given).sum())} missing."
        )
    domains, own = np.unique(given, return_inverse=True)
    if sp.issparse(neighbors):
        if sample is not None:
            raise InputError("sample is for coordinates; a neighbour graph already says who neighbours whom.")
        votes = _count_votes(own, len(domains), _pattern(neighbors, len(own)))
    else:
        votes = _count_votes(own, len(domains), _nearest(neighbors, len(own), n_neighbors, sample))
    refined = _winners(votes, own)
    # A domain that would be emptied keeps its spots. Giving them back may empty the domain that had
    # won them, hence the loop; each round brings one back for good, so K rounds are enough.
    while len(empty := np.setdiff1d(np.arange(len(domains)), refined)):
        back = np.isin(own, empty)
        refined[back] = own[back]
    return domains[refined]


def _pattern(graph: sp.spmatrix | sp.sparray, n_spots: int) -> sp.csr_matrix:
    """Ones where the graph has a non-zero entry off its diagonal."""
    if graph.shape != (n_spots, n_spots):
        raise InputError(f"The graph must be {n_spots}×{n_spots}, as there are labels; found {graph.shape}.")
    edges = sp.coo_matrix(graph)
    edges.sum_duplicates()
    kept = (edges.data != 0) & (edges.row != edges.col)
    ones = np.ones(int(kept.sum()), dtype=np.float32)
    return sp.csr_matrix((ones, (edges.row[kept], edges.col[kept])), shape=graph.shape)


def _nearest(
    coordinates: np.ndarray,
    n_spots: int,
    n_neighbors: int,
    sample: ArrayLike | None,
) -> sp.csr_matrix:
    """Ones from each spot to its nearest others in its own section."""
    points = np.asarray(coordinates, dtype=np.float64)
    if points.ndim != 2 or len(points) != n_spots:
        raise InputError(
            f"coordinates must have one row for each of the {n_spots} labels; found shape {points.shape}."
        )
    if not np.isfinite(points).all():
        raise InputError("coordinates must be finite; found NaN or infinite values. Remove those spots.")
    if n_neighbors < 1:
        raise InputError(f"n_neighbors must be at least 1; found {n_neighbors}.")
    sections = np.zeros(n_spots) if sample is None else np.asarray(sample)
    if sections.shape != (n_spots,) or pd.isna(sections).any():
        raise InputError(f"sample must name the section of each of the {n_spots} spots, none missing.")
    sources, targets = [], []
    for section in pd.unique(sections):
        spots = np.flatnonzero(sections == section)
        k = min(n_neighbors, len(spots) - 1)
        if k == 0:
            continue  # a section of one spot: nobody to ask
        _, found = cKDTree(points[spots]).query(points[spots], k=k + 1, workers=n_threads())
        # Leave each spot itself out. Where more than k others lie at the very same place, it may not
        # be among those found: then the last of them goes.
        itself = found == np.arange(len(spots))[:, None]
        itself[~itself.any(axis=1), -1] = True
        sources.append(np.repeat(spots, k))
        targets.append(spots[found[~itself]])
    if not sources:
        return sp.csr_matrix((n_spots, n_spots), dtype=np.float32)
    source, target = np.concatenate(sources), np.concatenate(targets)
    ones = np.ones(len(source), dtype=np.float32)
    return sp.csr_matrix((ones, (source, target)), shape=(n_spots, n_spots))


def _count_votes(own: np.ndarray, n_domains: int, adjacency: sp.csr_matrix) -> sp.csr_matrix:
    """Votes for each domain at each spot, its own included; sparse, (n_spots, n_domains)."""
    n_spots = len(own)
    ballot = sp.csr_matrix(
        (np.ones(n_spots, dtype=np.float32), own, np.arange(n_spots + 1)), shape=(n_spots, n_domains)
    )
    return sp.csr_matrix(adjacency @ ballot + ballot)


def _winners(votes: sp.csr_matrix, own: np.ndarray) -> np.ndarray:
    """The domain with strictly the most votes at each spot; the spot's own where there is none."""
    starts = votes.indptr[:-1]  # no row is empty: each spot votes for itself
    most = np.maximum.reduceat(votes.data, starts)
    leads = votes.data == np.repeat(most, np.diff(votes.indptr))
    alone = np.add.reduceat(leads.astype(np.int64), starts) == 1
    spot = np.repeat(np.arange(len(own)), np.diff(votes.indptr))
    winner = own.copy()
    winner[spot[leads]] = votes.indices[leads]
    return np.where(alone, winner, own)
