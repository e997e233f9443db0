"""The spatial neighbour graph: who lies next to whom in the tissue.

``SpatialGraph.from_coordinates`` turns coordinates into an undirected graph A without loops, within
each sample alone, and hands it out in two numberings:

* **internal** (``edges``, ``distances``, ``adjacency()``): nodes sorted along a Hilbert curve, so that
  spots close in the tissue are close in memory. Everything that trains uses this one: put features into
  it with ``X[graph.order]`` and results back with ``result[graph.rank]``.
* **the caller's** (``connectivities()``, ``distance_matrix()``): for AnnData and for anyone else.

Time O(N log N), memory O(N) for a given number of neighbours; nothing is ever N × N.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from torch.nn import functional

from .errors import AmilstWarning, InputError
from .runtime import n_threads

__all__ = ["SpatialGraph", "Tile"]

# A radius that gives more neighbours than this, on average, was meant in another unit.
_MOST_NEIGHBORS = 1000
# With more than three dimensions an exact search pays only up to this many points.
_EXACT_SEARCH_BELOW = 4096
# Small pieces of a section are worth a warning when they hold this share of its spots together.
_DETACHED_SHARE = 0.01


@dataclass(frozen=True, eq=False)
class SpatialGraph:
    """An undirected neighbour graph of spots (or cells), without loops.

    Made by :meth:`from_coordinates`. Edges are in the internal numbering: internal node i is the
    caller's spot ``order[i]``.

    Attributes
    ----------
    order : ndarray
        (N,) int64, a permutation: the caller's index of each internal node. Samples are contiguous.
    edges : Tensor
        (2, E) int64 on the CPU, internal numbering, each edge in both directions, no loops, no
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
        """Join each spot to its nearest neighbours, or to all within a radius, in its own sample.

        Parameters
        ----------
        coordinates : array-like
            (N, 2) or (N, 3), finite, any one unit. More columns are taken as a feature space.
        n_neighbors : int
            How many nearest others each spot is joined to. Not used when ``radius`` is given.
        radius : float, optional
            Join every pair at most this far apart, in the unit of the coordinates.
        sample : array-like, optional
            (N,), the sample (section) of each spot. No edge joins two samples.
        symmetrization : {"union", "mutual"}
            Of the pairs found by nearest neighbours keep those found from either side, or those
            found from both.
        seed : int
            For the approximate search in more than three dimensions; nothing else is random.

        Returns
        -------
        SpatialGraph

        Raises
        ------
        InputError
            Wrong shape; NaN or infinite coordinates; a sample with fewer than ``n_neighbors + 1``
            spots, or with all its spots at one place; a radius that is not positive or takes in
            over 1,000 neighbours a spot; an unknown option.

        Warns
        -----
        AmilstWarning
            Spots without a neighbour; many spots at one place; a sample whose graph falls into
            pieces.

        Notes
        -----
        Two and three dimensions: exact, by a k-d tree with ``torch.get_num_threads()`` threads. More:
        approximate by nearest-neighbour descent (pynndescent) from 4,096 points on. Spots at the
        same place are neighbours at distance 0, never each other's replacement: everyone gets
        ``n_neighbors`` others. Ties are broken by place, so the graph does not depend on the order
        in which the spots come.
        """
        points = _check_coordinates(coordinates)
        _check_options(n_neighbors, radius, symmetrization)
        codes, names = _check_sample(sample, len(points))
        # Spots of each sample, in the caller's order.
        groups = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])

        orders: list[np.ndarray] = []
        blocks: list[sparse.csr_matrix] = []
        crowded = 0
        for members, name in zip(groups, names, strict=True):
            label = "" if sample is None else f" of sample {str(name)!r}"
            order = members[_space_filling_order(points[members])]
            inside = points[order]
            if len(inside) > 1 and (inside.min(axis=0) == inside.max(axis=0)).all():
                raise InputError(
                    f"all {len(inside)} spots{label} lie at one place, {inside[0].tolist()}; "
                    "a neighbour graph needs coordinates that differ."
                )
            if radius is not None:
                block = _within_radius(inside, float(radius), label)
            else:
                found, n_crowded = _nearest(inside, int(n_neighbors), label, seed)
                crowded += n_crowded
                block = _symmetrize(found, symmetrization)
            orders.append(order)
            blocks.append(block)

        order = np.concatenate(orders)
        edges = _stack_edges(blocks)
        lengths = _lengths(points[order], edges)
        graph = cls(order=order, edges=edges, distances=lengths)
        for complaint in _complaints(graph, codes[order], names, crowded, n_neighbors):
            warnings.warn(complaint, AmilstWarning, stacklevel=2)
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
        """(N,) int64, number of neighbours of each internal node."""
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
            (N, N) coalesced sparse COO, internal numbering, symmetric to the bit.
        """
        return _normalize(self.edges, self.degrees, dtype).to(device)

    def tiles(self, max_size: int, hops: int, dtype: torch.dtype = torch.float32) -> Iterator[Tile]:
        """Cut the graph into pieces on which ``hops`` products with Â are exact for the piece's core.

        The cores are runs of the internal order, of at most ``max_size`` nodes and nearly equal; a
        space-filling curve makes them compact. Each comes with its halo, the nodes up to ``hops``
        edges away, and with the rows and columns of the *whole* graph's Â for both.

        Raises
        ------
        InputError
            ``max_size`` is below 1 or ``hops`` below 0.
        """
        if max_size < 1 or hops < 0:
            raise InputError(f"max_size must be at least 1, hops 0; found {max_size} and {hops}.")
        n_tiles = -(-self.n_spots // int(max_size))
        bounds = np.linspace(0, self.n_spots, n_tiles + 1).astype(np.int64).tolist()
        local = torch.full((self.n_spots,), -1)  # (N,), place of a node in the tile at hand
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
    """A piece of a graph with its surroundings, see :meth:`SpatialGraph.tiles`.

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
    """Â of sorted ``edges`` (2, E); ``degrees`` (N,) count the neighbours in the whole graph."""
    n = len(degrees)
    row, column = edges
    # The loop of node i goes between its neighbours below i and those above: everything is written
    # into its place, nothing has to be sorted.
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


# ---- what was handed in ----


def _check_coordinates(coordinates: Any) -> np.ndarray:
    """Coordinates as (N, D) float64, contiguous, all of them finite."""
    try:
        points = np.ascontiguousarray(coordinates, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"coordinates must be a matrix of numbers, one row a spot: {error}") from error
    if points.ndim != 2 or points.shape[1] < 2 or len(points) == 0:
        raise InputError(
            f"coordinates must have one row a spot and 2 or 3 columns; found shape {points.shape}."
        )
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if len(bad):
        raise InputError(
            f"{len(bad)} of {len(points)} spots have NaN or infinite coordinates "
            f"(first rows: {', '.join(map(str, bad[:5]))}). Drop these spots, or see whether the "
            "coordinates were matched to the right spot names."
        )
    return points


def _check_options(n_neighbors: int, radius: float | None, symmetrization: str) -> None:
    if symmetrization not in ("union", "mutual"):
        raise InputError(f"symmetrization must be 'union' or 'mutual'; found {symmetrization!r}.")
    if radius is not None:
        if not (isinstance(radius, (int, float, np.number)) and 0 < float(radius) < math.inf):
            raise InputError(f"radius must be a positive, finite number; found {radius!r}.")
    elif not (isinstance(n_neighbors, (int, np.integer)) and n_neighbors >= 1) or n_neighbors is True:
        raise InputError(f"n_neighbors must be a whole number of at least 1; found {n_neighbors!r}.")


def _check_sample(sample: Sequence[Any] | None, n_spots: int) -> tuple[np.ndarray, list[Any]]:
    """Each spot's sample as a number, and the samples' names, sorted."""
    if sample is None:
        return np.zeros(n_spots, np.int64), [None]
    column = np.asarray(sample)
    if column.shape != (n_spots,):
        raise InputError(f"sample must name one sample for each of {n_spots} spots; found {column.shape}.")
    codes, names = pd.factorize(column, sort=True)
    if (codes < 0).any():
        raise InputError(
            f"{int((codes < 0).sum())} of {n_spots} spots have no sample (missing value). "
            "Name their sample or drop them."
        )
    return codes, list(names)


# ---- finding neighbours ----


def _space_filling_order(points: np.ndarray) -> np.ndarray:
    """Sort points along a Hilbert curve over their first three columns (Skilling 2004).

    The curve is followed to 1/65536 of the extent in two dimensions; what is left is sorted by the
    coordinates themselves, so that the order depends on places only and equal points are adjacent.
    """
    bits = 16
    space = points[:, :3]
    low = space.min(axis=0)
    extent = float((space.max(axis=0) - low).max()) or 1.0
    cells = ((space - low) / extent * (2**bits - 1)).astype(np.int64)  # (N, axes)
    axes = [np.ascontiguousarray(axis) for axis in cells.T]

    # Skilling's transform, on all points at once: undo the reflections and swaps of each level, ...
    for bit in range(bits - 1, 0, -1):
        below = (1 << bit) - 1
        for axis in axes:
            reflect = (axis >> bit & 1).astype(bool)
            swap = np.where(reflect, 0, (axes[0] ^ axis) & below)
            axes[0] ^= np.where(reflect, below, swap)
            axis ^= swap
    # ... then Gray-encode,
    for before, axis in pairwise(axes):
        axis ^= before
    flip = np.zeros_like(axes[0])
    for bit in range(bits - 1, 0, -1):
        flip ^= (axes[-1] >> bit & 1) * ((1 << bit) - 1)
    # ... and read the bits of all axes in turn as one number.
    key = np.zeros_like(flip)
    for bit in range(bits - 1, -1, -1):
        for axis in axes:
            key = key << 1 | ((axis ^ flip) >> bit & 1)
    return np.lexsort((*points.T[::-1], key))


def _nearest(points: np.ndarray, k: int, label: str, seed: int) -> tuple[np.ndarray, int]:
    """The k nearest others of every point, (N, k); and how many points are crowded at one place.

    ``points`` come sorted such that equal ones are adjacent.
    """
    n = len(points)
    if n < k + 1:
        raise InputError(
            f"{n} spots{label} are too few for {k} neighbours each: at most n_neighbors={n - 1} is "
            "possible, and small samples may better be dropped."
        )
    # A k-d tree cannot split equal points: 1e5 cells at (0, 0) would cost 1e10 comparisons. More than
    # k + 1 at one place are therefore joined among themselves, k successors each in a ring, and the
    # rest of the tissue sees only the first k + 1 of them, which is as many as anyone can need.
    new_place = np.ones(n, bool)
    new_place[1:] = (points[1:] != points[:-1]).any(axis=1)
    place = np.cumsum(new_place) - 1  # (N,)
    first = np.flatnonzero(new_place)  # (places,)
    size = np.diff(np.append(first, n))  # (places,)
    turn = np.arange(n) - first[place]  # (N,), 0, 1, ... at each place
    crowded = size[place] > k + 1
    n_crowded = int(crowded.sum())
    kept = np.flatnonzero(turn <= k)
    asking = np.flatnonzero(~crowded)

    neighbors = np.empty((n, k), np.int64)
    if len(asking):
        found = _search(points[kept], points[asking], k + 1, seed)  # (asking, k + 1) into kept
        found = np.where(found >= 0, kept[found], -1)
        # Each spot finds itself, anywhere among the spots at its place, or not at all when k + 1
        # others are there: leave out itself, or else the last.
        itself = found == asking[:, None]
        itself[~itself.any(axis=1), -1] = True
        neighbors[asking] = found[~itself].reshape(len(asking), k)
    if n_crowded:
        who = np.flatnonzero(crowded)
        home = place[who]
        ring = (turn[who, None] + np.arange(1, k + 1)) % size[home, None]
        neighbors[who] = first[home, None] + ring
    return neighbors, n_crowded


def _search(points: np.ndarray, queries: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Indices of the k points nearest to each query, (queries, k); -1 where none was found."""
    if points.shape[1] <= 3 or len(points) < _EXACT_SEARCH_BELOW:
        tree = cKDTree(points)
        found = tree.query(queries, k, workers=n_threads())[1]
        return found.reshape(len(queries), k)
    from pynndescent import NNDescent  # slow to import, seldom needed

    threads = min(n_threads(), os.cpu_count() or 1)
    index = NNDescent(points.astype(np.float32), n_neighbors=max(k, 15), random_state=seed, n_jobs=threads)
    if len(queries) == len(points):
        return index.neighbor_graph[0][:, :k].astype(np.int64)
    return index.query(queries.astype(np.float32), k=k)[0].astype(np.int64)


def _symmetrize(neighbors: np.ndarray, how: str) -> sparse.csr_matrix:
    """(N, k) neighbours, -1 for none, to the symmetric pattern of a CSR matrix, sorted."""
    n = len(neighbors)
    found = np.sort(neighbors, axis=1)
    valid = found >= 0
    starts = np.concatenate([[0], np.cumsum(valid.sum(axis=1))])
    columns = found[valid].astype(np.int32 if n < 2**31 else np.int64)
    directed = sparse.csr_matrix((np.ones(len(columns), np.int8), columns, starts), shape=(n, n))
    both = directed + directed.T.tocsr()  # 2 where each found the other
    if how == "mutual":
        both.data[both.data < 2] = 0
        both.eliminate_zeros()
    return both


def _within_radius(points: np.ndarray, radius: float, label: str) -> sparse.csr_matrix:
    """Every pair at most ``radius`` apart, as the symmetric pattern of a CSR matrix, sorted."""
    n = len(points)
    tree = cKDTree(points)
    some = points[:: max(1, n // 1000)]
    typical = float(tree.query_ball_point(some, radius, return_length=True).mean()) - 1
    if typical > _MOST_NEIGHBORS:
        raise InputError(
            f"radius={radius:g} gives about {typical:,.0f} neighbours to each spot{label}. Choose a "
            "smaller one, in the unit of the coordinates (pixels and micrometres are often confused)."
        )
    pairs = tree.query_pairs(radius, output_type="ndarray")  # (pairs, 2), each once
    once = sparse.coo_matrix((np.ones(len(pairs), np.int8), pairs.T), shape=(n, n)).tocsr()
    return once + once.T.tocsr()


def _stack_edges(blocks: list[sparse.csr_matrix]) -> torch.Tensor:
    """(2, E) int64 of one pattern a sample, numbered one after the other."""
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
    """(E,) float32: taken anew from the coordinates, so that both directions agree to the bit."""
    lengths = torch.empty(edges.shape[1], dtype=torch.float32)
    for at in range(0, edges.shape[1], chunk):
        row, column = edges[:, at : at + chunk].numpy()
        lengths[at : at + chunk] = torch.from_numpy(np.linalg.norm(points[row] - points[column], axis=1))
    return lengths


# ---- what is usable but probably not meant ----


def _complaints(
    graph: SpatialGraph, codes: np.ndarray, names: list[Any], crowded: int, n_neighbors: int
) -> Iterator[str]:
    """What looks wrong about a graph. ``codes``: (N,), the sample of each internal node."""
    n = graph.n_spots
    if crowded:
        yield (
            f"{crowded} of {n} spots share their place with more than {n_neighbors} others, so all "
            "their neighbours are there. Are their coordinates missing and filled in?"
        )
    degrees = graph.degrees.numpy()
    alone = int((degrees == 0).sum())
    if alone:
        yield (
            f"{alone} of {n} spots have no neighbour and see only themselves. Take a larger radius, "
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
            where = "" if name is None else f"sample {str(name)!r}: "
            pieces.append(
                f"{where}{len(inside)} pieces, {total - largest} of {total} spots not in the largest"
            )
    if pieces:
        yield (
            "the neighbour graph is not connected (" + "; ".join(pieces[:5]) + "). Fine when the tissue "
            "itself is in pieces; if several sections are in this table, name their column as sample."
        )
