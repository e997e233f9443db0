"""Refinement: each spot takes the domain of the majority of its spatial neighbors.

It removes isolated spots inside other domains and smooths borders. It also erases structures one or two spots
thick, so the refined labels complement the original ones and do not replace them.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from numpy.typing import ArrayLike
from torch.nn import functional

from ..errors import InputError
from ..runtime import resolve_device
from .graph import SpatialGraph
from .neighbors import check_coordinates, nearest_neighbors, section_codes

__all__ = ["majority_vote"]

_DOMAINS = 8
"""Domains whose votes are counted at a time: two arrays of spots × this many float32."""


def majority_vote(
    labels: ArrayLike,
    neighbors: np.ndarray | sp.spmatrix | sp.sparray,
    n_neighbors: int = 6,
    sample: ArrayLike | None = None,
    *,
    graph: SpatialGraph | None = None,
    device: str | torch.device = "cpu",
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
    graph : SpatialGraph, optional
        Of the same spots in its internal order, with the same sections, when coordinates are given: the nearest
        spots are taken from its edges where these contain them, and not searched again.
    device : str or torch.device
        Where the votes are counted: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.

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
    resolved = resolve_device(device)
    domains, own = np.unique(given, return_inverse=True)
    if sp.issparse(neighbors):
        if sample is not None:
            raise InputError(
                "sample applies to coordinates only; a neighbor graph already defines the neighbors."
            )
        voters = _of_matrix(_pattern(neighbors, len(own)))
    else:
        points = _check_points(neighbors, len(own), n_neighbors)
        of_graph = None if graph is None else graph.nearest(n_neighbors, resolved)
        voters = _nearest(points, n_neighbors, sample, resolved) if of_graph is None else of_graph
    refined = _winners(torch.from_numpy(own).to(resolved), len(domains), *voters).cpu().numpy()
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


def _check_points(coordinates: np.ndarray, n_spots: int, n_neighbors: int) -> np.ndarray:
    points = check_coordinates(coordinates)
    if len(points) != n_spots:
        raise InputError(
            f"coordinates must have one row for each of the {n_spots} labels; found shape {points.shape}."
        )
    if n_neighbors < 1:
        raise InputError(f"n_neighbors must be an integer >= 1; found {n_neighbors}.")
    return points


def _nearest(
    points: np.ndarray, n_neighbors: int, sample: ArrayLike | None, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest others of each spot in its own section; see `_winners`."""
    codes, names = section_codes(sample, len(points))  # type: ignore[arg-type]
    adjacency = sp.csr_matrix((len(points), len(points)), dtype=np.int8)
    for code in range(len(names)):
        spots = np.flatnonzero(codes == code)
        if (k := min(n_neighbors, len(spots) - 1)) > 0:
            found = nearest_neighbors(points[spots], k, device=device)[0].tocoo()
            pairs = (found.data, (spots[found.row], spots[found.col]))
            adjacency += sp.csr_matrix(pairs, shape=adjacency.shape)
    return _of_matrix(adjacency)


def _of_matrix(pattern: sp.csr_matrix) -> tuple[torch.Tensor, torch.Tensor]:
    """The neighbors in the rows of a pattern; see `_winners`."""
    indices, offsets = pattern.indices, pattern.indptr
    return torch.from_numpy(indices.astype(offsets.dtype, copy=False)), torch.from_numpy(offsets)


def _winners(
    own: torch.Tensor, n_domains: int, neighbors: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """The domain with strictly the most votes at each spot; the spot's own where there is none.

    Parameters
    ----------
    own : Tensor of int64, (N,)
        The domain of each spot.
    n_domains : int
    neighbors : Tensor, (E,)
        The voters of each spot besides itself, all in one row.
    offsets : Tensor, (N + 1,)
        Where those of each spot begin.
    """
    neighbors, offsets = neighbors.to(own.device), offsets.to(own.device)
    winner, most = own.clone(), torch.zeros(len(own), device=own.device)
    alone = torch.ones_like(own, dtype=torch.bool)
    for first in range(0, n_domains, _DOMAINS):
        domains = torch.arange(first, min(first + _DOMAINS, n_domains), device=own.device)
        ballot = (own[:, None] == domains).float()
        votes = ballot
        if len(neighbors):
            votes = ballot + functional.embedding_bag(
                neighbors, ballot, offsets, mode="sum", include_last_offset=True
            )
        top, place = votes.max(1)
        # which of several equals `place` is does not matter: none of them wins
        unique = (votes == top[:, None]).sum(1) == 1
        alone = torch.where(top > most, unique, alone & (top < most))
        winner = torch.where(top > most, first + place, winner)
        most = torch.maximum(most, top)
    return torch.where(alone, winner, own)
