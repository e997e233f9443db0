"""The input of a training step: the whole section, or a tile of it with its surroundings.

The number of optimization steps is fixed. A section that fits is one batch; a larger one is cut into tiles,
each with a halo of as many hops as the network has graph layers, so that the embedding of the tile's core
equals that on the whole graph. Training time then does not grow with the number of spots.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from typing import overload

import torch
from torch import Tensor

from ..nn.sparse import SymmetricAdjacency
from ..spatial.graph import SpatialGraph

__all__ = ["Batch", "Tiles", "largest_core", "make_batches"]

_KEPT_TILES = 32
"""Tiles that are kept; more of them are made again in every pass, which takes a third of what it takes to use them."""


class Batch:
    """A tile's core and halo, or the whole section. B spots with the halo, n without.

    Attributes
    ----------
    nodes : slice or Tensor of int64, (B,)
        Internal nodes of the graph, core and halo.
    core : slice
        Where among ``nodes`` the core lies: the spots that count in losses and results.
    rows : slice
        The core's n nodes in the graph's order.
    adjacency : SymmetricAdjacency, (B, B)
        Of the whole graph's Â.
    """

    def __init__(
        self,
        nodes: slice | Tensor,
        core: slice,
        rows: slice,
        adjacency: SymmetricAdjacency,
        graph: SpatialGraph,
    ) -> None:
        self.nodes, self.core, self.rows, self.adjacency = nodes, core, rows, adjacency
        self._graph = graph
        self.size = rows.stop - rows.start

    @cached_property
    def upper(self) -> Tensor:
        """(2, E) edges among the core, numbered within it, each once."""
        edges = self._graph.edges_within(self.rows)
        return edges[:, edges[0] < edges[1]].to(self.adjacency.device)

    @cached_property
    def lists(self) -> tuple[Tensor, Tensor, Tensor]:
        """Neighbors among the core: where each spot's begin (n,), how many (n,), all in one row (2E + 1,)."""
        edges = self._graph.edges_within(self.rows)
        degrees = torch.bincount(edges[0], minlength=self.size)
        # the list of a last spot without neighbors begins behind the others' end
        neighbors = torch.cat([edges[1], edges.new_zeros(1)])
        device = self.adjacency.device
        return (degrees.cumsum(0) - degrees).to(device), degrees.to(device), neighbors.to(device)


class Tiles(Sequence[Batch]):
    """The tiles of a graph, made when they are asked for; the latest are kept."""

    def __init__(self, graph: SpatialGraph, size: int, hops: int, device: torch.device) -> None:
        self._graph, self._hops, self._device = graph, hops, device
        self._bounds = graph.tile_bounds(size)
        self._kept: OrderedDict[int, Batch] = OrderedDict()

    def __len__(self) -> int:
        return len(self._bounds)

    @overload
    def __getitem__(self, place: int) -> Batch: ...
    @overload
    def __getitem__(self, place: slice) -> list[Batch]: ...
    def __getitem__(self, place: int | slice) -> Batch | list[Batch]:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        start, stop = self._bounds[place]  # raises IndexError at the end, as iteration needs it
        batch = self._kept.pop(place, None)
        if batch is None:
            tile = self._graph.tile(start, stop, self._hops)
            adjacency = SymmetricAdjacency(tile.adjacency.to(self._device))
            nodes = tile.nodes.to(self._device)
            batch = Batch(nodes, tile.core, slice(start, stop), adjacency, self._graph)
        self._kept[place] = batch
        if len(self._kept) > _KEPT_TILES:
            self._kept.popitem(last=False)
        return batch

    @property
    def largest(self) -> int:
        """Spots in the largest core."""
        return max(stop - start for start, stop in self._bounds)


def largest_core(batches: Sequence[Batch]) -> int:
    """Spots in the largest core of a batch."""
    return batches.largest if isinstance(batches, Tiles) else max(batch.size for batch in batches)


def make_batches(
    graph: SpatialGraph,
    size: int,
    hops: int,
    device: torch.device,
    adjacency: SymmetricAdjacency | None = None,
) -> Sequence[Batch]:
    """The whole graph as one batch, or tiles of at most ``size`` core spots with ``hops`` hops of halo.

    ``adjacency`` is Â of the whole graph on ``device``, if it has been made before.
    """
    if graph.n_spots <= size:
        everything = slice(0, graph.n_spots)
        adjacency = graph.normalized(device) if adjacency is None else adjacency
        return [Batch(everything, everything, everything, adjacency, graph)]
    return Tiles(graph, size, hops, device)
