"""Neighbors of points in space, and an order in which neighbors lie close in memory.

The only place that searches for neighbors by coordinates, that decides between tied neighbors and that
drops a point from its own neighbors. Nothing here depends on rotation, reflection, translation or scale of
the coordinates, nor (but for points at one place) on the order of the rows.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from scipy.spatial import cKDTree

from ..errors import InputError
from ..runtime import n_threads
from .grid import grid_search

__all__ = [
    "check_coordinates",
    "nearest_neighbors",
    "neighbors_within",
    "section_codes",
    "space_filling_order",
    "typical_degree",
    "typical_spacing",
]

# Distances that agree to this share tie. Far above rounding of float64 coordinates (1e-12 after a rotation)
# and of float32 ones (1e-6), far below the differences between neighbors that are not on a grid.
TIE = 1e-4
# With more than three dimensions an exact search pays only up to this many points.
_EXACT_SEARCH_BELOW = 4096
_ONE_AT_A_TIME = threading.Lock()
"""Held by approximate searches: numba may end the process if two threads run parallel code at once."""
# The box in which points are put on a grid exceeds them by these shares of their extent. Irrational, so that
# rows of a regular array do not lie on the borders between cells, where rounding would decide the order.
_MARGINS = (0.0318309886, 0.0271828183)
# Relative difference of moments below which a set of points counts as symmetric: above rounding.
_SYMMETRIC = 1e-6


def check_coordinates(coordinates: Any) -> np.ndarray:
    """Coordinates as a contiguous float64 array (N, D), D >= 2, all of them finite.

    Raises
    ------
    InputError
        Wrong shape, not numeric, NaN or infinite values.
    """
    if isinstance(coordinates, torch.Tensor):
        coordinates = coordinates.detach().cpu().numpy()
    try:
        points = np.ascontiguousarray(coordinates, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"coordinates must be a numeric matrix with one row per spot: {error}") from error
    if points.ndim != 2 or points.shape[1] < 2 or len(points) == 0:
        raise InputError(
            f"coordinates must have one row per spot and 2 or 3 columns; found shape {points.shape}."
        )
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if len(bad):
        raise InputError(
            f"{len(bad)} of {len(points)} spots have NaN or infinite coordinates "
            f"(first rows: {', '.join(map(str, bad[:5]))}). Drop these spots, or check whether the "
            "coordinates were matched to the right spot names."
        )
    return points


def section_codes(sample: Sequence[Any] | None, n_spots: int) -> tuple[np.ndarray, list[Any]]:
    """The section of each spot as a number (N,), and the names of the sections, sorted.

    Raises
    ------
    InputError
        ``sample`` has another length or missing values.
    """
    if sample is None:
        return np.zeros(n_spots, np.int64), [None]
    column = np.asarray(sample)
    if column.shape != (n_spots,):
        raise InputError(f"sample must name one section for each of {n_spots} spots; found {column.shape}.")
    codes, names = pd.factorize(column, sort=True)
    if (codes < 0).any():
        raise InputError(
            f"{int((codes < 0).sum())} of {n_spots} spots have no section (missing value in sample). "
            "Fill in their section or drop them."
        )
    return codes, list(names)


def nearest_neighbors(
    points: np.ndarray, k: int, *, seed: int = 0, device: str | torch.device = "cpu"
) -> tuple[sparse.csr_matrix, int]:
    """The k nearest others of every point, and all others that tie with the k-th.

    Parameters
    ----------
    points : ndarray of float64, (N, D)
        Finite.
    k : int
        From 1 to N - 1.
    seed : int
        For the approximate search in more than three dimensions; nothing else is random.
    device : str or torch.device
        Where the search in two and three dimensions runs; the neighbors are the same.

    Returns
    -------
    neighbors : csr_matrix, (N, N), int8
        Ones from each point to its neighbors; rows sorted, no loops. At least k in each row (fewer only
        where the approximate search fails).
    n_crowded : int
        Points that share their place with more than k others; they have k of these for neighbors.

    Notes
    -----
    Two and three dimensions: exact, by a k-d tree with ``torch.get_num_threads()`` threads, on a GPU by a grid;
    neighbors at the k-th distance, to a relative tolerance of 1e-4, are all included. More dimensions:
    nearest-neighbor descent (pynndescent) from 4,096 points on, where ties hardly occur.
    """
    n = len(points)
    # A k-d tree cannot split equal points: 1e5 cells at (0, 0) would cost 1e10 comparisons. More than k + 1
    # points at one place are therefore connected among themselves, each with its k successors in a ring,
    # and the other points see only the first k + 1 of them.
    by_place = np.lexsort(points.T)
    starts = np.ones(n, bool)
    starts[1:] = (points[by_place[1:]] != points[by_place[:-1]]).any(axis=1)
    first = np.flatnonzero(starts)  # (places,) into by_place
    size = np.diff(np.append(first, n))  # (places,)
    place, turn = np.empty((2, n), np.int64)  # of each point; 0, 1, ... among those at its place
    place[by_place] = np.cumsum(starts) - 1
    turn[by_place] = np.arange(n) - first[place[by_place]]
    crowded = size[place] > k + 1
    kept, asking = np.flatnonzero(turn <= k), np.flatnonzero(~crowded)

    sources, targets = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    if len(asking):
        source, target = _search(points[kept], points[asking], k + 1, seed, torch.device(device))
        sources.append(asking[source])
        targets.append(kept[target])
    members = np.flatnonzero(crowded)
    if len(members):
        home = place[members]
        ring = (turn[members, None] + np.arange(1, k + 1)) % size[home, None]
        sources.append(np.repeat(members, k))
        targets.append(by_place[first[home, None] + ring].ravel())
    source, target = np.concatenate(sources), np.concatenate(targets)
    other = source != target
    neighbors = _pattern(source[other], target[other], n)
    return neighbors, len(members)


def _search(
    points: np.ndarray, queries: np.ndarray, k: int, seed: int, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of query and point: the k nearest points of each query and those that tie with the last."""
    k = min(k, len(points))
    if device.type != "cpu" and points.shape[1] in (2, 3):
        found_on_device = grid_search(
            torch.from_numpy(points).to(device), torch.from_numpy(queries).to(device), k, TIE
        )
        source, target = (part.cpu().numpy() for part in found_on_device)
        return source, target
    if points.shape[1] > 3 and len(points) >= _EXACT_SEARCH_BELOW:
        from pynndescent import NNDescent  # slow to import, seldom needed

        threads = min(n_threads(), os.cpu_count() or 1)
        with _ONE_AT_A_TIME:
            index = NNDescent(
                points.astype(np.float32), n_neighbors=max(k, 15), random_state=seed, n_jobs=threads
            )
            if len(queries) == len(points):
                found = index.neighbor_graph[0][:, :k].astype(np.int64)
            else:
                found = index.query(queries.astype(np.float32), k=k)[0].astype(np.int64)
        source = np.repeat(np.arange(len(queries)), found.shape[1])
        valid = found.ravel() >= 0
        return source[valid], found.ravel()[valid]
    tree = cKDTree(points)
    asked = min(k + 1, len(points))
    distance, found = tree.query(queries, asked, workers=n_threads())
    distance, found = distance.reshape(-1, asked), found.reshape(-1, asked)
    reach = distance[:, k - 1] * (1 + TIE)
    tied = np.flatnonzero(distance[:, -1] <= reach) if asked > k else np.empty(0, np.int64)
    alone = np.setdiff1d(np.arange(len(queries)), tied, assume_unique=True)
    sources, targets = [np.repeat(alone, k)], [found[alone, :k].ravel()]
    if len(tied):
        balls = tree.query_ball_point(queries[tied], reach[tied], workers=n_threads())
        sources.append(np.repeat(tied, [len(ball) for ball in balls]))
        targets.append(np.concatenate([np.asarray(ball, np.int64) for ball in balls]))
    return np.concatenate(sources), np.concatenate(targets)


def neighbors_within(points: np.ndarray, radius: float) -> sparse.csr_matrix:
    """Ones between all points at most ``radius`` apart: (N, N) CSR, int8, symmetric, sorted, no loops."""
    pairs = cKDTree(points).query_pairs(radius, output_type="ndarray")  # (pairs, 2), each once
    return _pattern(pairs.ravel(), pairs[:, ::-1].ravel(), len(points))


def typical_degree(points: np.ndarray, radius: float) -> float:
    """Mean number of others within ``radius``, over about 1,000 of the points."""
    return float(cKDTree(points).query_ball_point(_some(points), radius, return_length=True).mean()) - 1


def typical_spacing(points: np.ndarray, k: int = 1) -> float:
    """Median distance to the k-th nearest other point, over about 1,000 of the points.

    If most points share their place with others, of the distinct places; 0 where there is only one.
    """
    if len(points) < 2:
        return 0.0
    distances, _ = cKDTree(points).query(_some(points), min(k + 1, len(points)))
    median = float(np.median(distances[:, -1]))
    if median == 0 and len(places := np.unique(points, axis=0)) < len(points):
        return typical_spacing(places, k)
    return median


def _some(points: np.ndarray) -> np.ndarray:
    return points[:: max(1, len(points) // 1000)]


def _pattern(source: np.ndarray, target: np.ndarray, n: int) -> sparse.csr_matrix:
    pattern = sparse.coo_matrix((np.ones(len(source), np.int8), (source, target)), shape=(n, n)).tocsr()
    pattern.sort_indices()
    return pattern


def space_filling_order(points: np.ndarray) -> np.ndarray:
    """Order of points (N, D) along a Hilbert curve through their first three principal axes; (N,) int64.

    The curve (Skilling 2004) is followed to 1/65536 of the extent in two dimensions; what is left is sorted
    by the coordinates themselves, so that equal points are adjacent.
    """
    bits = 16
    space = _principal_frame(points)[:, :3]
    low, extent = space.min(axis=0), space.max(axis=0) - space.min(axis=0)
    largest = float(extent.max()) or 1.0
    scale = (2**bits - 1) / (largest * (1 + sum(_MARGINS)))
    cells = ((space - low + _MARGINS[0] * largest) * scale).astype(np.int64)  # (N, axes)
    return np.lexsort((*space.T[::-1], _hilbert_position(cells, bits)))


def _hilbert_position(cells: np.ndarray, bits: int) -> np.ndarray:
    """Position along the Hilbert curve of cells (N, axes), integers below 2**bits; (N,) int64."""
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
    position = np.zeros_like(flip)
    for bit in range(bits - 1, -1, -1):
        for axis in axes:
            position = position << 1 | ((axis ^ flip) >> bit & 1)
    return position


def _principal_frame(points: np.ndarray) -> np.ndarray:
    """Points along their principal axes, each turned so that its third moment is positive.

    Random numbers are dealt out in the space-filling order, so it must not change when a section is rotated,
    mirrored or moved. Only a regular array of spots can be so symmetric that it has no such axes or
    directions; its own axes are used then, and the order still does not depend on that of the rows.
    """
    centered = points - points.mean(axis=0)
    variances, axes = np.linalg.eigh(centered.T @ centered)
    if (np.diff(variances) > _SYMMETRIC * variances[-1]).all():
        centered = centered @ axes[:, ::-1]
    third, scale = (centered**3).sum(axis=0), (np.abs(centered) ** 3).sum(axis=0)
    return centered * np.where(third < -_SYMMETRIC * scale, -1.0, 1.0)
