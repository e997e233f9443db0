"""The spatial neighbor graph.

``SpatialGraph.from_coordinates`` turns coordinates into an undirected graph A without loops, within each
section alone, and provides it in two orders:

* **internal** (``edges``, ``distances``, ``adjacency()``): nodes sorted along a Hilbert curve, so that spots
  close in the tissue are close in memory. Training uses this one: features enter it with ``X[graph.order]``
  and results leave it with ``result[graph.rank]``.
* **the caller's** (``connectivities()``, ``distance_matrix()``): for AnnData.

Time O(N log N), memory O(N) for a given number of neighbors; no array is N × N.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from torch.nn import functional

from ..errors import AmilstWarning, InputError
from .neighbors import (
    check_coordinates,
    nearest_neighbors,
    neighbors_within,
    section_codes,
    space_filling_order,
    typical_degree,
)

__all__ = ["SpatialGraph", "Tile"]

# A radius that gives more neighbors than this, on average, is probably in another unit.
_MOST_NEIGHBORS = 1000
# Small pieces of a section are worth a warning when they hold this share of its spots together.
_DETACHED_SHARE = 0.01


@dataclass(frozen=True, eq=False)
class SpatialGraph:
    """An undirected neighbor graph of spots (or cells), without loops.

    Made by :meth:`from_coordinates`. Edges are in the internal order: internal node i is the
    caller's spot ``order[i]``.

    Attributes
    ----------
    order : ndarray
        (N,) int64, a permutation: the caller's index of each internal node. Sections are contiguous.
    edges : Tensor
        (2, E) int64 on the CPU, internal order, each edge in both directions, no loops, no
        repeats, sorted by row, then column.
    distances : Tensor
        (E,) float32, length of each edge in the unit of the coordinates.
    """

    order: np.ndarray = field(repr=False)
    edges: torch.Tensor = field(repr=False)
    distances: torch.Tensor = field(repr=False)

    @classmethod
    def from_coordinates(
        cls,
        coordinates: Any,
        *,
        n_neighbors: int = 12,
        radius: float | None = None,
        sample: Sequence[Any] | None = None,
        symmetrization: Literal["union", "mutual"] = "union",
        seed: int = 0,
    ) -> SpatialGraph:
        """Connect each spot to its nearest neighbors, or to all within a radius, in its own section.

        Parameters
        ----------
        coordinates : array-like
            (N, 2) or (N, 3), finite, any one unit. More columns are taken as a feature space.
        n_neighbors : int
            Nearest others to which each spot is connected, and all that tie with the last of them (relative
            tolerance 1e-4): on a square grid 6 neighbors are 8. Not used when ``radius`` is given.
        radius : float, optional
            Connect every pair at most this far apart, in the unit of the coordinates.
        sample : array-like, optional
            (N,), the section of each spot. No edge connects two sections.
        symmetrization : {"union", "mutual"}
            Keep pairs of which one is among the other's nearest neighbors, or only pairs of which each is.
        seed : int
            For the approximate search in more than three dimensions; nothing else is random.

        Returns
        -------
        SpatialGraph

        Raises
        ------
        InputError
            Wrong shape; NaN or infinite coordinates; a section with fewer than ``n_neighbors + 1`` spots, or
            with all its spots at one place; a radius that is not positive or contains over 1,000 neighbors
            per spot; an unknown option.

        Warns
        -----
        AmilstWarning
            Spots without a neighbor; many spots at one place; a section whose graph is not connected.

        Notes
        -----
        See `amilst_lite.spatial.neighbors.nearest_neighbors` for the search. Spots at the same place are
        neighbors at distance 0. The graph depends on the places only: not on rotation, reflection,
        translation or scale of the coordinates, nor on the order of the rows.
        """
        points = check_coordinates(coordinates)
        _check_options(n_neighbors, radius, symmetrization)
        codes, names = section_codes(sample, len(points))
        # the spots of each section, in the caller's order
        groups = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])

        orders: list[np.ndarray] = []
        blocks: list[sparse.csr_matrix] = []
        crowded = 0
        for members, name in zip(groups, names, strict=True):
            label = "" if sample is None else f" of section {str(name)!r}"
            order = members[space_filling_order(points[members])]
            inside = points[order]
            if len(inside) > 1 and (inside.min(axis=0) == inside.max(axis=0)).all():
                raise InputError(
                    f"all {len(inside)} spots{label} lie at one place, {inside[0].tolist()}; "
                    "a neighbor graph needs distinct coordinates."
                )
            if radius is not None:
                block = _within_radius(inside, float(radius), label)
            else:
                if len(inside) < n_neighbors + 1:
                    raise InputError(
                        f"{len(inside)} spots{label} are too few for {n_neighbors} neighbors each: at most "
                        f"n_neighbors={len(inside) - 1} is possible; consider dropping small sections."
                    )
                found, n_crowded = nearest_neighbors(inside, int(n_neighbors), seed=seed)
                crowded += n_crowded
                block = _symmetrize(found, symmetrization)
            orders.append(order)
            blocks.append(block)

        order = np.concatenate(orders)
        edges = _stack_edges(blocks)
        lengths = _lengths(points[order], edges)
        graph = cls(order=order, edges=edges, distances=lengths)
        for message in _suspicions(graph, codes[order], names, crowded, n_neighbors):
            warnings.warn(message, AmilstWarning, stacklevel=2)
        return graph

    @property
    def n_spots(self) -> int:
        """Number of nodes, N."""
        return len(self.order)

    @property
    def n_edges(self) -> int:
        """Number of edges, each counted once."""
        return self.edges.shape[1] // 2

    @cached_property
    def rank(self) -> np.ndarray:
        """(N,) int64, the inverse of ``order``: the internal node of each of the caller's spots."""
        rank = np.empty_like(self.order)
        rank[self.order] = np.arange(len(self.order))
        return rank

    @cached_property
    def degrees(self) -> torch.Tensor:
        """(N,) int64, number of neighbors of each internal node."""
        return torch.bincount(self.edges[0], minlength=self.n_spots)

    @cached_property
    def components(self) -> np.ndarray:
        """(N,) int32, the connected component of each internal node, numbered from 0."""
        pattern = sparse.csr_matrix(
            (np.ones(self.edges.shape[1], np.int8), self.edges[1].numpy(), self._row_starts.numpy()),
            shape=(self.n_spots, self.n_spots),
        )
        return connected_components(pattern, directed=False)[1]

    @property
    def n_components(self) -> int:
        """Number of connected components."""
        return int(self.components.max()) + 1

    def adjacency(
        self, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """Â = D^-1/2 (A + I) D^-1/2, D the degrees of A + I (Kipf & Welling 2017, equation 2).

        Returns
        -------
        Tensor
            (N, N) coalesced sparse COO, internal order, symmetric to the bit.
        """
        return _normalize(self.edges, self.degrees, dtype).to(device)

    def tiles(self, max_size: int, hops: int, dtype: torch.dtype = torch.float32) -> Iterator[Tile]:
        """Cut the graph into tiles on whose cores ``hops`` products with Â are exact.

        The cores are runs of the internal order, of at most ``max_size`` nodes and nearly equal; a
        space-filling curve makes them compact. Each has a halo, the nodes up to ``hops`` edges away, and the
        rows and columns of the *whole* graph's Â for both.

        Raises
        ------
        InputError
            ``max_size`` is below 1 or ``hops`` below 0.
        """
        if max_size < 1 or hops < 0:
            raise InputError(f"max_size must be >= 1 and hops >= 0; found {max_size} and {hops}.")
        n_tiles = -(-self.n_spots // int(max_size))
        bounds = np.linspace(0, self.n_spots, n_tiles + 1).astype(np.int64).tolist()
        local = torch.full((self.n_spots,), -1)  # (N,), position of a node in the current tile
        for start, stop in pairwise(bounds):
            nodes = torch.arange(start, stop)
            for _ in range(hops):
                nodes = torch.unique(torch.cat([nodes, self._edges_of(nodes)[1]]))  # sorted
            local[nodes] = torch.arange(len(nodes))
            edges = local[self._edges_of(nodes)]
            edges = edges[:, edges[1] >= 0]  # (2, edges inside), still sorted
            first = int(local[start])
            local[nodes] = -1
            adjacency = _normalize(edges, self.degrees[nodes], dtype)
            yield Tile(nodes, slice(first, first + stop - start), adjacency)

    def subgraph(self, nodes: slice) -> SpatialGraph:
        """The graph among consecutive internal nodes, numbered from 0; its spots are these nodes in this order."""
        start, stop, _ = nodes.indices(self.n_spots)
        inside = ((self.edges >= start) & (self.edges < stop)).all(0)
        return SpatialGraph(
            order=np.arange(stop - start),
            edges=self.edges[:, inside] - start,
            distances=self.distances[inside],
        )

    def edges_within(self, nodes: slice) -> torch.Tensor:
        """(2, e) edges of a run of internal nodes among themselves, numbered from its first."""
        start, stop = int(self._row_starts[nodes.start]), int(self._row_starts[nodes.stop])
        edges = self.edges[:, start:stop]
        inside = (edges[1] >= nodes.start) & (edges[1] < nodes.stop)
        return edges[:, inside] - nodes.start

    def _edges_of(self, nodes: torch.Tensor) -> torch.Tensor:
        """(2, e) edges that begin at the given, sorted, nodes."""
        degrees = self.degrees[nodes]
        skipped = self._row_starts[nodes] - (torch.cumsum(degrees, 0) - degrees)
        return self.edges[:, torch.arange(int(degrees.sum())) + torch.repeat_interleave(skipped, degrees)]

    @cached_property
    def _row_starts(self) -> torch.Tensor:
        """(N + 1,), where the edges of each internal node begin."""
        return functional.pad(torch.cumsum(self.degrees, 0), (1, 0))

    def connectivities(self) -> sparse.csr_matrix:
        """A as (N, N) scipy CSR, float32 ones, in the caller's order (squidpy's connectivities)."""
        return self._caller_csr(np.ones(self.edges.shape[1], np.float32))

    def distance_matrix(self) -> sparse.csr_matrix:
        """Lengths of the edges as (N, N) scipy CSR, float32, in the caller's order.

        Spots at the same place are stored as explicit zeros.
        """
        return self._caller_csr(self.distances.numpy())

    def _caller_csr(self, values: np.ndarray) -> sparse.csr_matrix:
        row, column = self.order[self.edges.numpy()]
        matrix = sparse.coo_matrix((values, (row, column)), shape=(self.n_spots, self.n_spots)).tocsr()
        matrix.sort_indices()
        return matrix


@dataclass(frozen=True, eq=False)
class Tile:
    """A part of a graph with its surroundings, see :meth:`SpatialGraph.tiles`.

    Attributes
    ----------
    nodes : Tensor
        (M,) int64, internal nodes of the whole graph, core and halo together, ascending.
    core : slice
        Where among ``nodes`` the core lies. The cores of all tiles are each node once, in order.
    adjacency : Tensor
        (M, M) coalesced sparse COO: the rows and columns ``nodes`` of the whole graph's Â.
    """

    nodes: torch.Tensor
    core: slice
    adjacency: torch.Tensor


def _normalize(edges: torch.Tensor, degrees: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Â of sorted ``edges`` (2, E); ``degrees`` (N,) count the neighbors in the whole graph."""
    n = len(degrees)
    row, column = edges
    # The loop of node i is stored between its neighbors below i and those above: every entry is written
    # into its final position, and no sort is needed.
    above = column > row  # (E,)
    node = torch.arange(n)
    n_below = torch.bincount(row[~above], minlength=n)  # (N,)
    counts = torch.bincount(row, minlength=n)  # (N,)
    loop_at = torch.cumsum(counts, 0) - counts + node + n_below  # (N,)
    edge_at = torch.arange(len(row)) + row + above  # (E,)

    indices = torch.empty((2, len(row) + n), dtype=torch.int64)
    indices[:, loop_at] = node
    indices[:, edge_at] = edges
    scale = (degrees + 1).to(torch.float64).rsqrt()  # (N,)
    values = torch.empty(len(row) + n, dtype=dtype)
    values[loop_at] = (scale * scale).to(dtype)
    values[edge_at] = (scale[row] * scale[column]).to(dtype)
    return torch.sparse_coo_tensor(indices, values, (n, n), check_invariants=False, is_coalesced=True)


def _check_options(n_neighbors: int, radius: float | None, symmetrization: str) -> None:
    if symmetrization not in ("union", "mutual"):
        raise InputError(f"symmetrization must be 'union' or 'mutual'; found {symmetrization!r}.")
    if radius is not None:
        if not (isinstance(radius, (int, float, np.number)) and 0 < float(radius) < math.inf):
            raise InputError(f"radius must be a positive, finite number; found {radius!r}.")
    elif not (isinstance(n_neighbors, (int, np.integer)) and n_neighbors >= 1) or n_neighbors is True:
        raise InputError(f"n_neighbors must be an integer >= 1; found {n_neighbors!r}.")


def _symmetrize(directed: sparse.csr_matrix, how: str) -> sparse.csr_matrix:
    """Directed pattern (ones) to a symmetric one."""
    both = directed + directed.T.tocsr()  # 2 where each found the other
    if how == "mutual":
        both.data[both.data < 2] = 0
        both.eliminate_zeros()
    return both


def _within_radius(points: np.ndarray, radius: float, label: str) -> sparse.csr_matrix:
    typical = typical_degree(points, radius)
    if typical > _MOST_NEIGHBORS:
        raise InputError(
            f"radius={radius:g} gives about {typical:,.0f} neighbors to each spot{label}. Choose a "
            "smaller one, in the unit of the coordinates (pixels and micrometers are often confused)."
        )
    return neighbors_within(points, radius)


def _stack_edges(blocks: list[sparse.csr_matrix]) -> torch.Tensor:
    """(2, E) int64 of one pattern per section, numbered consecutively."""
    edges = torch.empty((2, sum(block.nnz for block in blocks)), dtype=torch.int64)
    at = 0
    begin = 0
    for block in blocks:
        part = edges[:, at : at + block.nnz].numpy()
        part[0] = np.repeat(np.arange(begin, begin + block.shape[0]), np.diff(block.indptr))
        np.add(block.indices, begin, out=part[1])
        at += block.nnz
        begin += block.shape[0]
    return edges


def _lengths(points: np.ndarray, edges: torch.Tensor, chunk: int = 1 << 20) -> torch.Tensor:
    """(E,) float32, computed from the coordinates, so that both directions agree to the bit."""
    lengths = torch.empty(edges.shape[1], dtype=torch.float32)
    for at in range(0, edges.shape[1], chunk):
        row, column = edges[:, at : at + chunk].numpy()
        lengths[at : at + chunk] = torch.from_numpy(np.linalg.norm(points[row] - points[column], axis=1))
    return lengths


def _suspicions(
    graph: SpatialGraph, codes: np.ndarray, names: list[Any], crowded: int, n_neighbors: int
) -> Iterator[str]:
    """Warnings about an unlikely graph. ``codes``: (N,), the section of each internal node."""
    n = graph.n_spots
    if crowded:
        yield (
            f"{crowded} of {n} spots have the same coordinates as more than {n_neighbors} others, which are "
            "then their only neighbors. Check whether missing coordinates were filled in."
        )
    degrees = graph.degrees.numpy()
    alone = int((degrees == 0).sum())
    if alone:
        yield (
            f"{alone} of {n} spots have no neighbor. Use a larger radius (or n_neighbors), "
            "symmetrization='union', or drop them."
        )
    pieces = []
    sizes = np.bincount(graph.components)
    for code, name in enumerate(names):
        inside = np.unique(graph.components[(codes == code) & (degrees > 0)])
        if len(inside) < 2:
            continue
        largest, total = sizes[inside].max(), sizes[inside].sum()
        if total - largest >= _DETACHED_SHARE * total:
            where = "" if name is None else f"section {str(name)!r}: "
            pieces.append(
                f"{where}{len(inside)} pieces, {total - largest} of {total} spots not in the largest"
            )
    if pieces:
        yield (
            "the neighbor graph is not connected (" + "; ".join(pieces[:5]) + "). This is expected if the "
            "tissue is in pieces; if the data hold several sections, pass their column as sample "
            "(sample_key, --sample-key)."
        )
