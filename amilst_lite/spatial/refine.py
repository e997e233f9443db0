"""Refinement: each spot takes the domain of the majority of its spatial neighbors.

It removes isolated spots inside other domains and smooths borders. It also erases structures one or two spots
thick, so the refined labels complement the original ones and do not replace them.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import ArrayLike

from ..errors import InputError
from .neighbors import check_coordinates, nearest_neighbors, section_codes

__all__ = ["majority_vote"]


def majority_vote(
    labels: ArrayLike,
    neighbors: np.ndarray | sp.spmatrix | sp.sparray,
    n_neighbors: int = 6,
    sample: ArrayLike | None = None,
) -> np.ndarray:
    """Replace each label by the majority among the spot itself and its spatial neighbors.

    Parameters
    ----------
    labels : array-like, shape (n_spots,)
        The domains; none missing.
    neighbors : ndarray, shape (n_spots, 2) or (n_spots, 3), or sparse matrix, shape (n_spots, n_spots)
        Coordinates, in any unit; or a neighbor graph, of which only the positions of the non-zero
        entries matter, row by row.
    n_neighbors : int
        Nearest spots that vote, with all that tie with the last of them, when coordinates are given: 6 are
        the ring around a Visium spot. At most the number of spots of the section minus one.
    sample : array-like, shape (n_spots,), optional
        The section of each spot, when coordinates are given; only spots of the same section vote.

    Returns
    -------
    ndarray, shape (n_spots,)
        Refined labels, of the type given. A label changes only if one domain has strictly more votes than
        every other; a tie leaves it unchanged. No domain vanishes: if all its spots would change, they keep
        their label.

    Raises
    ------
    InputError
        Lengths or shapes disagree, a label is missing, a coordinate is not finite, ``n_neighbors`` is
        below 1, or ``sample`` comes with a graph.

    Notes
    -----
    All spots vote at once, so the result does not depend on their order. Time and memory are linear in the
    number of votes.
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
            raise InputError(
                "sample applies to coordinates only; a neighbor graph already defines the neighbors."
            )
        votes = _count_votes(own, len(domains), _pattern(neighbors, len(own)))
    else:
        votes = _count_votes(own, len(domains), _nearest(neighbors, len(own), n_neighbors, sample))
    refined = _winners(votes, own)
    # A domain that would vanish keeps its spots. This may empty the domain that had won them, hence the loop;
    # each round restores one for good, so K rounds are enough.
    while len(empty := np.setdiff1d(np.arange(len(domains)), refined)):
        back = np.isin(own, empty)
        refined[back] = own[back]
    return domains[refined]


def _pattern(graph: sp.spmatrix | sp.sparray, n_spots: int) -> sp.csr_matrix:
    """Ones where the graph has a non-zero entry off its diagonal."""
    if graph.shape != (n_spots, n_spots):
        raise InputError(f"the graph must be {n_spots} × {n_spots}, one row per label; found {graph.shape}.")
    edges = sp.coo_matrix(graph)
    edges.sum_duplicates()
    kept = (edges.data != 0) & (edges.row != edges.col)
    ones = np.ones(int(kept.sum()), dtype=np.float32)
    return sp.csr_matrix((ones, (edges.row[kept], edges.col[kept])), shape=graph.shape)


def _nearest(
    coordinates: np.ndarray, n_spots: int, n_neighbors: int, sample: ArrayLike | None
) -> sp.csr_matrix:
    """Ones from each spot to its nearest others in its own section."""
    points = check_coordinates(coordinates)
    if len(points) != n_spots:
        raise InputError(
            f"coordinates must have one row for each of the {n_spots} labels; found shape {points.shape}."
        )
    if n_neighbors < 1:
        raise InputError(f"n_neighbors must be an integer >= 1; found {n_neighbors}.")
    codes, names = section_codes(sample, n_spots)  # type: ignore[arg-type]
    adjacency = sp.csr_matrix((n_spots, n_spots), dtype=np.float32)
    for code in range(len(names)):
        spots = np.flatnonzero(codes == code)
        if (k := min(n_neighbors, len(spots) - 1)) > 0:
            found = nearest_neighbors(points[spots], k)[0].tocoo()
            votes = (found.data.astype(np.float32), (spots[found.row], spots[found.col]))
            adjacency += sp.csr_matrix(votes, shape=adjacency.shape)
    return adjacency


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
