"""Nearest neighbors by a grid, compared with all distances and with the k-d tree."""

import numpy as np
import pytest
import torch
from scipy import sparse

from amilst_lite.spatial import grid
from amilst_lite.spatial.grid import grid_search, nth_smallest
from amilst_lite.spatial.neighbors import TIE, _search

CPU = torch.device("cpu")


def square(n):
    return np.stack(np.meshgrid(np.arange(n), np.arange(n + 3)), -1).reshape(-1, 2).astype(float)


def point_sets():
    rng = np.random.default_rng(0)
    flat, steps = rng.random((600, 2)), square(22)
    return {
        "uniform": flat,
        "uniform, 3-D": rng.random((600, 3)),
        "square": steps,
        "hexagonal": np.c_[steps[:, 0] + 0.5 * (steps[:, 1] % 2), steps[:, 1] * 3**0.5 / 2],
        "cubic": np.stack(np.meshgrid(*[np.arange(8)] * 3), -1).reshape(-1, 3).astype(float),
        "slices": np.c_[100 * flat, rng.integers(0, 3, 600) * 10.0],
        "density without bounds": rng.standard_cauchy((600, 2)),
        "density without bounds, 3-D": rng.standard_cauchy((600, 3)),
        "one far away": np.r_[flat, [[1e7, -1e7]]],
        "two scales": np.r_[1e-6 * flat, 1 + flat],
        "far from the origin": flat + 1e6,
        "line": np.c_[flat[:, 0], np.zeros(600)],
        "nearly a line": np.c_[flat[:, 0], 1e-9 * flat[:, 1]],
        "diagonal": flat[:, [0, 0]],
        "few places": np.round(15 * flat[:300]),
        "one place": np.ones((5, 2)),
        "two points": np.array([[0.0, 0.0], [3.0, 4.0]]),
    }


def pairs(source, target, n):
    found = sparse.coo_matrix((np.ones(len(source), int), (source, target)), shape=(n, n)).tocsr()
    assert found.nnz == len(source)  # each pair once
    return found


@pytest.mark.parametrize("k", [1, 7])
@pytest.mark.parametrize("name", point_sets())
def test_neighbors_are_those_of_the_tree(name, k):
    points = point_sets()[name]
    k = min(k, len(points))
    found = grid_search(torch.from_numpy(points), torch.from_numpy(points), k, TIE)
    expected = _search(points, points, k, 0, CPU)
    difference = pairs(*found, len(points)) != pairs(*expected, len(points))
    assert difference.nnz == 0


def test_neighbors_are_those_of_all_distances():
    rng = np.random.default_rng(1)
    points = torch.from_numpy(np.r_[rng.random((200, 3)), square(9) @ rng.random((2, 3))])
    queries = points[torch.randperm(len(points), generator=torch.Generator().manual_seed(0))[:50]]
    distances = torch.cdist(queries, points, compute_mode="donot_use_mm_for_euclid_dist")
    expected = distances <= distances.sort(1).values[:, 4:5] * (1 + TIE)
    source, target = grid_search(points, queries, 5, TIE)
    found = torch.zeros_like(expected)
    found[source, target] = True
    assert torch.equal(found, expected)


def test_memory_of_a_batch_is_bounded(monkeypatch):
    """One place of many points among others: the queries there are compared with all of them, one by one."""
    rng = np.random.default_rng(0)
    points = torch.from_numpy(np.r_[rng.random((100, 2)), np.full((50, 2), 0.5)])
    whole = grid_search(points, points, 4, TIE)
    monkeypatch.setattr(grid, "_CPU_PAIRS", 1 << 7)
    largest = 0
    ragged = grid._ragged

    def recorded(*args):
        nonlocal largest
        index, valid = ragged(*args)
        largest = max(largest, index.numel())
        return index, valid

    monkeypatch.setattr(grid, "_ragged", recorded)
    found = grid_search(points, points, 4, TIE)
    assert 0 < largest <= 1 << 7  # of 7,500 pairs
    assert (pairs(*found, 150) != pairs(*whole, 150)).nnz == 0


def test_nth_smallest_of_rows():
    rng = np.random.default_rng(0)
    lengths = torch.tensor([0, 1, 5, 2, 40, 3])
    values = torch.from_numpy(rng.random(int(lengths.sum())))
    rows = [row.sort().values for row in values.split(lengths.tolist())]
    for n in (1, 2, 3, 6):
        expected = torch.tensor([row[n - 1] if len(row) >= n else np.inf for row in rows])
        assert torch.equal(nth_smallest(values, lengths.cumsum(0) - lengths, lengths, n), expected)
