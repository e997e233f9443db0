"""The spatial neighbor graph.

``SpatialGraph.from_coordinates`` turns coordinates into an undirected graph A without loops, within each
section alone, and provides it in two orders:

* **internal** (``edges``, ``distances``, ``normalized()``): nodes sorted along a Hilbert curve, so that spots
  close in the tissue are close in memory. Training uses this one: features enter it with ``X[graph.order]``
  and results leave it with ``result[graph.rank]``.
* **the caller's** (``connectivities()``, ``distance_matrix()``): for AnnData.

Time O(N log N), memory O(N) for a given number of neighbors; no array is N × N.
"""

from __future__ import annotations

import math
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

from ..errors import InputError, warn
from ..nn.sparse import SymmetricAdjacency
from ..runtime import resolve_device
from .grid import nth_smallest
from .neighbors import (
    TIE,
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
_BLOCK = 1 << 20  # edges that are worked on at a time


@dataclass(frozen=True, eq=False)
class SpatialGraph:
    """An undirected neighbor graph of spots (or cells), without loops.

    Made by :meth:`from_coordinates`. Edges are in the internal order: internal node i is the
    caller's spot ``order[i]``.

    Attributes
    ----------
    order : ndarray
        (N,) int64, a permutation: the caller's index of each internal node. Sections are contiguous.
    offsets : Tensor
        (N + 1,) int64 on the CPU, where the neighbors of each internal node begin among ``columns``.
    columns : Tensor
        (E,) int32 on the CPU, the neighbors of each internal node, ascending: each edge in both directions, no
        loops, no repeats.
    distances : Tensor
        (E,) float32, length of each edge in the unit of the coordinates.
    n_nearest : int
        The edges contain this many nearest others of each node in its section, and those that tie with the
        last of them; 0 where that is not known.
    """

    order: np.ndarray = field(repr=False)
    offsets: torch.Tensor = field(repr=False)
    columns: torch.Tensor = field(repr=False)
    distances: torch.Tensor = field(repr=False)
    n_nearest: int = 0

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
        device: str | torch.device = "cpu",
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
        device : str or torch.device
            Where nearest neighbors are searched: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``. The graph is
            the same, and lies on the CPU.

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
        resolved = resolve_device(device)
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
                found, n_crowded = nearest_neighbors(inside, int(n_neighbors), seed=seed, device=resolved)
                crowded += n_crowded
                block = _symmetrize(found, symmetrization)
            orders.append(order)
            blocks.append(block)

        order = np.concatenate(orders)
        offsets, columns = _stacked(blocks)
        lengths = _lengths(points, order, offsets, columns)
        complete = radius is None and symmetrization == "union" and points.shape[1] <= 3
        graph = cls(order, offsets, columns, lengths, int(n_neighbors) if complete else 0)
        for message in _suspicions(graph, codes[order], names, crowded, n_neighbors):
            warn(message)
        return graph

    @property
    def n_spots(self) -> int:
        """Number of nodes, N."""
        return len(self.order)

    @property
    def n_edges(self) -> int:
        """Number of edges, each counted once."""
        return len(self.columns) // 2

    @property
    def edges(self) -> torch.Tensor:
        """(2, E) int64, rows and columns of all edges, sorted; built on access, since it takes 16 bytes an edge."""
        return torch.stack([self._rows(0, self.n_spots), self.columns.long()])

    @cached_property
    def rank(self) -> np.ndarray:
        """(N,) int64, the inverse of ``order``: the internal node of each of the caller's spots."""
        rank = np.empty_like(self.order)
        rank[self.order] = np.arange(len(self.order))
        return rank

    @property
    def degrees(self) -> torch.Tensor:
        """(N,) int64, number of neighbors of each internal node."""
        return self.offsets.diff()

    def nearest(self, k: int, device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor] | None:
        """The k nearest others of each internal node, and all that tie with the last of them.

        Returns
        -------
        neighbors : Tensor of int32 or int64, (E',)
            Of all nodes in one row, on ``device``.
        offsets : Tensor, (N + 1,)
            Where those of each node begin; of the same dtype.

        None instead where the edges may not contain them, or where nodes share a place: which of these are
        neighbors, the search decides.
        """
        if not 0 < k <= self.n_nearest or bool((self.distances == 0).any()):
            return None
        # in blocks: an edge takes 40 bytes in between
        whole = torch.device(device).type != "cpu"
        neighbors, degrees = [], []
        for start, stop in [(0, self.n_spots)] if whole else self._row_blocks():
            at = slice(int(self.offsets[start]), int(self.offsets[stop]))
            distances = self.distances[at].to(device)
            offsets = (self.offsets[start : stop + 1] - at.start).to(device)
            lengths = offsets.diff()
            reach = nth_smallest(distances, offsets[:-1], lengths, k) * (1 + TIE)
            near = distances <= torch.repeat_interleave(reach, lengths, output_size=len(distances))
            neighbors.append(self.columns[at].to(device)[near])
            degrees.append(functional.pad(near.cumsum(0), (1, 0))[offsets].diff())
        kept = functional.pad(torch.cat(degrees).cumsum(0), (1, 0))
        found = torch.cat(neighbors)
        if len(found) >= 2**31:
            return found.long(), kept
        return found, kept.to(found.dtype)

    @cached_property
    def components(self) -> np.ndarray:
        """(N,) int32, the connected component of each internal node, numbered from 0."""
        pattern = sparse.csr_matrix(
            (np.ones(len(self.columns), np.int8), self.columns.numpy(), self.offsets.numpy()),
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

    def normalized(self, device: str | torch.device = "cpu") -> SymmetricAdjacency:
        """Â as `adjacency`, float32, ready for products; made in blocks, without the COO tensor."""
        n = self.n_spots
        integer = torch.int32 if len(self.columns) + n < 2**31 else torch.int64
        columns = torch.empty(len(self.columns) + n, dtype=integer)
        values = torch.empty(len(columns))
        degrees = self.degrees
        scale = (degrees + 1).to(torch.float64).rsqrt()  # (N,)
        for start, stop in self._row_blocks():
            at = slice(int(self.offsets[start]), int(self.offsets[stop]))
            row, column = self._rows(start, stop), self.columns[at].long()
            above = column > row
            node = torch.arange(start, stop)
            n_below = torch.bincount(row[~above] - start, minlength=stop - start)
            loop_at = self.offsets[start:stop] + node + n_below
            edge_at = torch.arange(at.start, at.stop) + row + above
            columns[loop_at], columns[edge_at] = node.to(integer), column.to(integer)
            values[loop_at] = scale[start:stop].square().float()
            values[edge_at] = (scale[row] * scale[column]).float()
        offsets = (self.offsets + torch.arange(n + 1)).to(integer)
        return SymmetricAdjacency.of_csr(offsets.to(device), columns.to(device), values.to(device))

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
        for start, stop in self.tile_bounds(max_size):
            yield self.tile(start, stop, hops, dtype)

    def tile_bounds(self, max_size: int) -> list[tuple[int, int]]:
        """First and last node (exclusive) of the cores of `tiles`."""
        n_tiles = -(-self.n_spots // int(max_size))
        return list(pairwise(np.linspace(0, self.n_spots, n_tiles + 1).astype(np.int64).tolist()))

    def tile(self, start: int, stop: int, hops: int, dtype: torch.dtype = torch.float32) -> Tile:
        """The tile whose core are the nodes from ``start`` to ``stop`` (exclusive), see `tiles`."""
        nodes = torch.arange(start, stop)
        for _ in range(hops):
            nodes = torch.unique(torch.cat([nodes, self._edges_of(nodes)[1]]))  # sorted
        row, column = self._edges_of(nodes)
        place = torch.searchsorted(nodes, column).clamp_(max=len(nodes) - 1)
        inside = nodes[place] == column
        edges = torch.stack([torch.searchsorted(nodes, row[inside]), place[inside]])  # still sorted
        first = int(torch.searchsorted(nodes, start))
        degrees = self.offsets[nodes + 1] - self.offsets[nodes]
        return Tile(nodes, slice(first, first + stop - start), _normalize(edges, degrees, dtype))

    def subgraph(self, nodes: slice) -> SpatialGraph:
        """The graph among consecutive internal nodes, numbered from 0; its spots are these nodes in this order."""
        start, stop, _ = nodes.indices(self.n_spots)
        at = slice(int(self.offsets[start]), int(self.offsets[stop]))
        column = self.columns[at]
        inside = (column >= start) & (column < stop)
        kept = functional.pad(inside.cumsum(0), (1, 0))
        return SpatialGraph(
            order=np.arange(stop - start),
            offsets=kept[self.offsets[start : stop + 1] - at.start],
            columns=column[inside] - start,
            distances=self.distances[at][inside],
        )

    def to_arrays(self) -> dict[str, Any]:
        """The fields, as arrays of few bytes; see `from_arrays`."""
        return {
            "order": self.order,
            "offsets": self.offsets.numpy(),
            "columns": self.columns.numpy(),
            "distances": self.distances.numpy(),
            "n_nearest": self.n_nearest,
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, Any]) -> SpatialGraph:
        """The graph of `to_arrays`."""
        offsets, columns, distances = (
            torch.from_numpy(arrays[name]) for name in ("offsets", "columns", "distances")
        )
        return cls(arrays["order"], offsets, columns, distances, arrays["n_nearest"])

    def edges_within(self, nodes: slice) -> torch.Tensor:
        """(2, e) edges of a run of internal nodes among themselves, numbered from its first."""
        column = self.columns[self.offsets[nodes.start] : self.offsets[nodes.stop]].long()
        inside = (column >= nodes.start) & (column < nodes.stop)
        return torch.stack([self._rows(nodes.start, nodes.stop)[inside], column[inside]]) - nodes.start

    def _edges_of(self, nodes: torch.Tensor) -> torch.Tensor:
        """(2, e) edges that begin at the given, sorted, nodes."""
        degrees = self.offsets[nodes + 1] - self.offsets[nodes]
        skipped = self.offsets[nodes] - (torch.cumsum(degrees, 0) - degrees)
        at = torch.arange(int(degrees.sum())) + torch.repeat_interleave(skipped, degrees)
        return torch.stack([torch.repeat_interleave(nodes, degrees), self.columns[at].long()])

    def _rows(self, start: int, stop: int) -> torch.Tensor:
        """(e,) int64, the row of each edge that begins at the nodes from ``start`` to ``stop`` (exclusive)."""
        return torch.repeat_interleave(torch.arange(start, stop), self.offsets[start : stop + 1].diff())

    def _row_blocks(self) -> Iterator[tuple[int, int]]:
        """First and last node (exclusive) of runs with about `_BLOCK` edges."""
        return pairwise(_bounds(self.offsets.numpy()))

    def connectivities(self) -> sparse.csr_matrix:
        """A as (N, N) scipy CSR, float32 ones, in the caller's order (squidpy's connectivities)."""
        return self._caller_csr(None)

    def distance_matrix(self) -> sparse.csr_matrix:
        """Lengths of the edges as (N, N) scipy CSR, float32, in the caller's order.

        Spots at the same place are stored as explicit zeros.
        """
        return self._caller_csr(self.distances.numpy())

    def _caller_csr(self, values: np.ndarray | None) -> sparse.csr_matrix:
        """The edges with values in the internal order, or ones, in the caller's order; made in blocks."""
        starts, columns = self.offsets.numpy(), self.columns.numpy()
        degrees = np.diff(starts)[self.rank]
        indptr = np.concatenate([[0], np.cumsum(degrees)])
        integer = np.int32 if len(columns) < 2**31 else np.int64
        indices, data = np.empty(len(columns), integer), np.ones(len(columns), np.float32)
        for start, stop in pairwise(_bounds(indptr)):
            own, at = degrees[start:stop], slice(indptr[start], indptr[stop])
            source = np.arange(at.start, at.stop) + np.repeat(
                starts[self.rank[start:stop]] - indptr[start:stop], own
            )
            row, column = np.repeat(np.arange(start, stop), own), self.order[columns[source]]
            ascending = np.lexsort((column, row))
            indices[at] = column[ascending]
            if values is not None:
                data[at] = values[source[ascending]]
        shape = (self.n_spots, self.n_spots)
        matrix = sparse.csr_matrix((data, indices, indptr.astype(integer)), shape=shape)
        matrix.has_canonical_format = True
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


def _stacked(blocks: list[sparse.csr_matrix]) -> tuple[torch.Tensor, torch.Tensor]:
    """Offsets (N + 1,) and columns (E,) of one pattern per section, numbered consecutively; empties the list."""
    offsets = np.zeros(1 + sum(block.shape[0] for block in blocks), np.int64)
    columns = np.empty(sum(block.nnz for block in blocks), np.int32)
    at = begin = 0
    while blocks:
        block = blocks.pop(0)
        end = begin + block.shape[0]
        offsets[begin + 1 : end + 1] = at + block.indptr[1:].astype(np.int64)
        np.add(block.indices, begin, out=columns[at : at + block.nnz], casting="same_kind")
        at, begin = at + block.nnz, end
    return torch.from_numpy(offsets), torch.from_numpy(columns)


def _bounds(offsets: np.ndarray) -> list[int]:
    """Rows at which runs of rows with about `_BLOCK` entries begin, and their number; ``offsets``: (N + 1,)."""
    wanted = np.arange(0, offsets[-1], _BLOCK)
    return np.unique([*np.searchsorted(offsets, wanted), 0, len(offsets) - 1]).tolist()


def _lengths(
    points: np.ndarray, order: np.ndarray, offsets: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """(E,) float32, computed from the caller's coordinates, so that both directions agree to the bit."""
    lengths = torch.empty(len(columns), dtype=torch.float32)
    starts = offsets.numpy()
    for start, stop in pairwise(_bounds(starts)):
        at = slice(starts[start], starts[stop])
        row = order[np.repeat(np.arange(start, stop), np.diff(starts[start : stop + 1]))]
        column = order[columns[at].numpy()]
        lengths[at] = torch.from_numpy(np.linalg.norm(points[row] - points[column], axis=1))
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
