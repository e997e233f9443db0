"""The input of a training step: the whole section, or a tile of it with its surroundings.

The number of optimization steps is fixed. A section that fits is one batch; a larger one is cut into tiles,
each with a halo of as many hops as the network has graph layers, so that the embedding of the tile's core
equals that on the whole graph. Training time then does not grow with the number of spots.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from ..nn.sparse import SymmetricAdjacency
from ..spatial.graph import SpatialGraph

__all__ = ["Batch", "make_batches"]


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
        self, nodes: slice | Tensor, core: slice, rows: slice, adjacency: SymmetricAdjacency, edges: Tensor
    ) -> None:
        self.nodes, self.core, self.rows, self.adjacency = nodes, core, rows, adjacency
        self._edges = edges
        self.size = rows.stop - rows.start

    @cached_property
    def upper(self) -> Tensor:
        """(2, E) edges among the core, numbered within it, each once."""
        return self._edges[:, self._edges[0] < self._edges[1]].to(self.adjacency.device)

    @cached_property
    def lists(self) -> tuple[Tensor, Tensor, Tensor]:
        """Neighbors among the core: where each spot's begin (n,), how many (n,), all in one row (2E + 1,)."""
        degrees = torch.bincount(self._edges[0], minlength=self.size)
        # the list of a last spot without neighbors begins behind the others' end
        neighbors = torch.cat([self._edges[1], self._edges.new_zeros(1)])
        device = self.adjacency.device
        return (degrees.cumsum(0) - degrees).to(device), degrees.to(device), neighbors.to(device)


def make_batches(
    graph: SpatialGraph,
    size: int,
    hops: int,
    device: torch.device,
    adjacency: SymmetricAdjacency | None = None,
) -> list[Batch]:
    """The whole graph as one batch, or tiles of at most ``size`` core spots with ``hops`` hops of halo.

    ``adjacency`` is Â of the whole graph on ``device``, if it has been made before.
    """
    if graph.n_spots <= size:
        everything = slice(0, graph.n_spots)
        if adjacency is None:
            adjacency = SymmetricAdjacency(graph.adjacency(device))
        return [Batch(everything, everything, everything, adjacency, graph.edges)]
    batches = []
    for tile in graph.tiles(size, hops):
        start = int(tile.nodes[tile.core.start])
        rows = slice(start, start + tile.core.stop - tile.core.start)
        batches.append(
            Batch(
                tile.nodes.to(device),
                tile.core,
                rows,
                SymmetricAdjacency(tile.adjacency.to(device)),
                graph.edges_within(rows),
            )
        )
    return batches
