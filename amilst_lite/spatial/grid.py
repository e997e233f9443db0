"""Exact nearest neighbors in two and three dimensions by a grid of cells, in torch.

A k-d tree is the faster search on a CPU, but its branches do not suit a GPU. Here the points are sorted by
their cell, and each query is compared with the points in its own cell and those around it. That is exact if the
neighbors found lie nearer than the border of these cells. A query for which they do not is repeated with cells of
twice the size, and one whose cells are crowded starts with smaller ones, so that the density may vary by any factor.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["grid_search", "nth_smallest"]

_EXPECTED = 1.5
"""Points per neighbor asked for, in a circle (ball) with the radius of a cell, if they were uniformly spread."""
_CROWDED = 4
"""A query starts with smaller cells where it would be compared with this many times the points expected."""
_CELLS = {2: 2**30, 3: 2**20}
"""Most cells along an axis: the number of a cell fits in int64."""
_CPU_PAIRS, _DEVICE_PAIRS = 1 << 18, 1 << 22
"""Pairs of query and point compared at a time, about 60 bytes each."""
_ROUNDING = 1e-6
"""Relative error of the distance to a border of a cell, far above that of float64."""


class _Grid:
    """Points (n, D) sorted by cells of side ``side``."""

    def __init__(self, points: Tensor, low: Tensor, shape: list[int], side: float) -> None:
        self.low, self.shape, self.side = low, shape, side
        code = self._code(self.cells(points))
        self.codes, self.order = torch.sort(code, stable=True)
        self.points = points[self.order]

    @classmethod
    def of(cls, points: Tensor, low: Tensor, extent: list[float], side: float) -> _Grid:
        return cls(points, low, [1 + int(length / side) for length in extent], side)

    def cells(self, points: Tensor) -> Tensor:
        """The cell of each point: (n, D) int64."""
        cells = ((points - self.low) / self.side).long()
        for axis, size in enumerate(self.shape):  # rounding at the upper border
            cells[:, axis].clamp_(max=size - 1)
        return cells

    def _code(self, cells: Tensor) -> Tensor:
        code = cells[:, 0].clone()
        for axis in range(1, len(self.shape)):
            code.mul_(self.shape[axis]).add_(cells[:, axis])
        return code

    def around(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Where the points of the 3^D cells around each of ``cells`` (m, D) lie among the sorted ones.

        Cells along the last axis are consecutive, so that there are J = 3^(D − 1) runs for each cell.

        Returns
        -------
        starts, lengths : Tensor, (m, J), int64
        """
        starts, lengths = [], []
        first = (cells[:, -1] - 1).clamp_(min=0)
        last = (cells[:, -1] + 1).clamp_(max=self.shape[-1] - 1)
        for step in itertools.product((-1, 0, 1), repeat=len(self.shape) - 1):
            row = cells.clone()
            inside = torch.ones_like(first, dtype=torch.bool)
            for axis, by in enumerate(step):
                row[:, axis] += by
                inside &= (row[:, axis] >= 0) & (row[:, axis] < self.shape[axis])
            row[:, -1] = 0
            begin = self._code(row)
            start = torch.searchsorted(self.codes, begin + first)
            stop = torch.searchsorted(self.codes, begin + last, right=True)
            starts.append(start)
            lengths.append(torch.where(inside, stop - start, 0))
        return torch.stack(starts, 1), torch.stack(lengths, 1)

    def border(self, points: Tensor, cells: Tensor) -> Tensor:
        """Distance within which all points lie in the cells around that of each point (m, D): (m,)."""
        nearest = points.new_full((len(points),), math.inf)
        for axis, size in enumerate(self.shape):
            place, cell = points[:, axis] - self.low[axis], cells[:, axis]
            below = torch.where(cell > 1, place - (cell - 1) * self.side, math.inf)
            above = torch.where(cell < size - 2, (cell + 2) * self.side - place, math.inf)
            nearest = torch.minimum(nearest, torch.minimum(below, above))
        return nearest * (1 - _ROUNDING)

    def search(
        self, queries: Tensor, asking: Tensor, k: int, tie: float
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Pairs of those ``queries`` (m, D) in ``asking`` that are certain, and the ones that are not."""
        sources, targets, again = [], [], []
        places = queries[asking]
        cells = self.cells(places)
        starts, lengths = self.around(cells)
        border = self.border(places, cells)
        integer = torch.int32 if len(self.points) < 2**31 else torch.int64
        for batch, width in _batches(lengths.sum(1)):
            if width < k:
                again.append(asking[batch])
                continue
            index, valid = _ragged(starts[batch], lengths[batch], width)
            distance = self._distances(places[batch], index).masked_fill_(~valid, math.inf)
            nearest = distance.topk(k, 1, largest=False).values[:, -1]
            reach = nearest * (1 + tie)
            certain = torch.isfinite(nearest) & (reach <= border[batch])
            row, column = torch.nonzero((distance <= reach[:, None]) & certain[:, None], as_tuple=True)
            sources.append(asking[batch[row]].to(integer))
            targets.append(self.order[index[row, column]].to(integer))
            again.append(asking[batch[~certain]])
        return sources, targets, torch.cat(again)

    def _distances(self, places: Tensor, index: Tensor) -> Tensor:
        """Distances of ``places`` (b, D) to the sorted points of ``index`` (b, W): (b, W)."""
        square = torch.zeros(index.shape, dtype=places.dtype, device=places.device)
        for axis in range(places.shape[1]):
            square += (self.points[:, axis][index] - places[:, axis, None]).square_()
        return square.sqrt_()


def _batches(lengths: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Rows of the same length, to within a factor of two, and that length: batches of bounded memory."""
    powers = 2 ** torch.arange(1, 62, device=lengths.device)
    power, by_length = torch.sort(torch.bucketize(lengths, powers), stable=True)
    entries = _CPU_PAIRS if lengths.device.type == "cpu" else _DEVICE_PAIRS
    for place, rows in enumerate(by_length.split(torch.bincount(power).tolist())):
        for batch in rows.split(max(1, entries >> (place + 1))):
            if len(batch):
                yield batch, 2 << place


def nth_smallest(values: Tensor, starts: Tensor, lengths: Tensor, n: int) -> Tensor:
    """The n-th smallest value of each row; infinity for rows of fewer.

    Parameters
    ----------
    values : Tensor, (E,)
    starts, lengths : Tensor of int64, (m,)
        Where the values of each row begin, and how many there are.
    n : int
    """
    found = values.new_full((len(starts),), math.inf)
    for rows, width in _batches(lengths):
        if width >= n:
            index, valid = _ragged(starts[rows, None], lengths[rows, None], width)
            row = values[index].masked_fill_(~valid, math.inf)
            found[rows] = row.topk(n, 1, largest=False).values[:, -1]
    return found


def _ragged(starts: Tensor, lengths: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The numbers in J runs for each row, side by side, and which of them are valid: (b, width)."""
    ends = lengths.cumsum(1)  # (b, J)
    place = torch.arange(width, device=starts.device).expand(len(starts), -1).contiguous()
    run = torch.searchsorted(ends, place, right=True)
    valid = run < starts.shape[1]
    run.clamp_(max=starts.shape[1] - 1)
    index = (starts - ends + lengths).gather(1, run) + place
    return index.masked_fill_(~valid, 0), valid


def grid_search(points: Tensor, queries: Tensor, k: int, tie: float) -> tuple[Tensor, Tensor]:
    """The k nearest points of each query, and all that tie with the last of them.

    Parameters
    ----------
    points : Tensor of float64, (n, D)
        D is 2 or 3. Best without more than about k points at one place.
    queries : Tensor of float64, (m, D)
        On the same device, each at the place of a point.
    k : int
        1 to n.
    tie : float
        Distances up to ``1 + tie`` times the k-th are included.

    Returns
    -------
    source, target : Tensor of int32, int64 from 2^31 points on
        Pairs of a query and a point, in no particular order. Memory besides them is linear in n and m.
    """
    low = points.amin(0)
    extent = (points.amax(0) - low).tolist()
    dimensions = points.shape[1]
    # the side at which a circle (ball) of this radius has `_EXPECTED` points for each neighbor
    spread = [length for length in extent if length > 0]
    if not spread:
        spread = [1.0]
    ball = {1: 2.0, 2: math.pi, 3: 4 / 3 * math.pi}[len(spread)]
    side = (_EXPECTED * k / len(points) / ball * math.prod(spread)) ** (1 / len(spread))
    finest = max(spread) / (_CELLS[dimensions] - 1)
    expected = _EXPECTED * k / ball * 3 ** len(spread)

    side = max(side, finest)
    grid = _Grid.of(points, low, extent, side)
    waiting: list[tuple[float, Tensor]] = []
    asking = torch.arange(len(queries), device=queries.device)
    while True:
        crowded = grid.around(grid.cells(queries[asking]))[1].sum(1) > _CROWDED * expected
        if side / 2 < finest:
            crowded.fill_(False)
        waiting.append((side, asking[~crowded]))
        asking = asking[crowded]
        if len(asking) == 0:
            break
        side /= 2
        grid = _Grid.of(points, low, extent, side)

    sources, targets = [], []
    asking = asking.new_empty(0)
    while waiting or len(asking):
        if waiting:
            side, here = waiting.pop()
            asking = torch.cat([here, asking])
        if len(asking):
            if grid.side != side:
                grid = _Grid.of(points, low, extent, side)
            found = grid.search(queries, asking, k, tie)
            sources += found[0]
            targets += found[1]
            asking = found[2]
        if not waiting:
            side *= 2
    return torch.cat(sources), torch.cat(targets)
