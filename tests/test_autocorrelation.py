from itertools import permutations

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.spatial import cKDTree

from amilst_lite.errors import InputError
from amilst_lite.spatial.autocorrelation import gearys_c, morans_i, spatial_autocorrelation


def _knn(coordinates, k, weighted=False):
    n = len(coordinates)
    distance, found = cKDTree(coordinates).query(coordinates, k + 1)
    values = 1 / distance[:, 1:].ravel() if weighted else np.ones(n * k)
    return sp.csr_matrix((values, (np.repeat(np.arange(n), k), found[:, 1:].ravel())), shape=(n, n))


@pytest.fixture(scope="module")
def section():
    """120 spots and 7 genes: noise, a gradient, counts, and one that is the same everywhere."""
    rng = np.random.default_rng(0)
    coordinates = rng.uniform(size=(120, 2))
    expression = rng.normal(size=(120, 7))
    expression[:, 1] += 4 * coordinates[:, 0]
    expression[:, 2] = rng.poisson(0.4, size=120)
    expression[:, 3] = 5.0
    expression[:, 4] = 1e6 + expression[:, 1]  # far from zero: cancellation would show
    return coordinates, expression


def _dense_moran(x, w):
    z = x - x.mean()
    return (
        len(x) / w.sum() * sum(w[i, j] * z[i] * z[j] for i in range(len(x)) for j in range(len(x))) / (z @ z)
    )


def _dense_geary(x, w):
    z = x - x.mean()
    return (
        (len(x) - 1)
        / (2 * w.sum())
        * sum(w[i, j] * (x[i] - x[j]) ** 2 for i in range(len(x)) for j in range(len(x)))
        / (z @ z)
    )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix, sp.coo_array])
def test_against_the_double_sum(section, weighted, form):
    coordinates, expression = section
    graph = _knn(coordinates, 5, weighted)  # directed
    genes = [0, 1, 2, 4]
    w = graph.toarray()
    moran, geary = morans_i(form(expression), graph), gearys_c(form(expression), graph)
    np.testing.assert_allclose(
        moran.statistic[genes], [_dense_moran(expression[:, g], w) for g in genes], rtol=1e-8
    )
    np.testing.assert_allclose(
        geary.statistic[genes], [_dense_geary(expression[:, g], w) for g in genes], rtol=1e-8
    )
    assert moran.statistic[1] == pytest.approx(moran.statistic[4], rel=1e-6)
    for found in (moran, geary):
        assert np.isnan([found.statistic[3], found.z[3], found.p[3]]).all()
        assert np.isfinite(np.delete(found.p, 3)).all()


def test_moments_equal_those_of_normal_noise():
    """Mean and deviation of many independent normal genes on one graph, directed and weighted."""
    rng = np.random.default_rng(1)
    graph = _knn(rng.uniform(size=(60, 2)), 6, weighted=True)
    noise = rng.normal(size=(60, 20_000))
    for statistic in (morans_i, gearys_c):
        found = statistic(noise, graph)
        assert found.statistic.mean() == pytest.approx(found.expectation, abs=4 * found.deviation[0] / 140)
        assert found.statistic.std() == pytest.approx(found.deviation[0], rel=0.03)
        assert found.z.std() == pytest.approx(1, rel=0.03)
        assert np.mean(found.p < 0.05) == pytest.approx(0.05, abs=0.015)  # skewed at 60 spots


def test_smooth_patterns_are_significant_and_checkerboards_are_not():
    side = np.arange(20)
    coordinates = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    graph = _knn(coordinates + np.random.default_rng(2).normal(scale=1e-3, size=(400, 2)), 4)
    board = (coordinates.sum(axis=1) % 2).astype(float)  # neighbors always differ
    halves = (coordinates[:, 0] < 10).astype(float)
    moran, geary = (f(np.stack([halves, board], axis=1), graph) for f in (morans_i, gearys_c))
    assert moran.statistic[0] > 0.8 and moran.statistic[1] < -0.8
    assert geary.statistic[0] < 0.2 and geary.statistic[1] > 1.8
    for found in (moran, geary):
        assert found.p[0] < 1e-10 and found.p[1] > 0.999


def test_loops_scale_and_shift_do_not_matter(section):
    coordinates, expression = section
    graph = _knn(coordinates, 5)
    for statistic in (morans_i, gearys_c):
        expected = statistic(expression, graph)
        for other in (
            statistic(expression, graph + 3 * sp.eye(120)),
            statistic(expression, 7 * graph),
            statistic(2.5 * expression - 40, graph),
        ):
            np.testing.assert_allclose(other.z, expected.z, rtol=1e-5)


def test_block_size_does_not_change_the_result(section, monkeypatch):
    coordinates, expression = section
    graph = _knn(coordinates, 5)
    expected = morans_i(expression, graph)
    monkeypatch.setattr("amilst_lite.spatial.autocorrelation._BLOCK_ENTRIES", 250)  # two genes at a time
    for form in (np.asarray, sp.csr_matrix):
        np.testing.assert_allclose(
            morans_i(form(expression), graph).statistic, expected.statistic, rtol=1e-10
        )


def test_tiles_and_threads_do_not_change_the_result(section, monkeypatch):
    coordinates, expression = section
    graph = _knn(coordinates, 5, weighted=True)
    expected = spatial_autocorrelation(expression, graph, moments="randomization")
    monkeypatch.setattr("amilst_lite.spatial.autocorrelation._TILE", 16)
    found = []
    for threads in (1, 3):
        monkeypatch.setattr("amilst_lite.spatial.autocorrelation.n_threads", lambda threads=threads: threads)
        found.append(spatial_autocorrelation(sp.csr_matrix(expression), graph, moments="randomization"))
    for one, other, by_default in zip(*found, expected, strict=True):
        np.testing.assert_array_equal(one.z, other.z)
        np.testing.assert_allclose(one.statistic, by_default.statistic, rtol=1e-9)
        np.testing.assert_allclose(one.deviation, by_default.deviation, rtol=1e-9)


def test_moments_of_randomization_are_those_of_all_orders():
    """Seven skewed values, directed weights: all 5,040 orders."""
    rng = np.random.default_rng(6)
    graph = sp.csr_matrix(rng.random((7, 7)) * (rng.random((7, 7)) < 0.5))
    values = rng.gamma(0.5, size=7)
    orders = values[np.array(list(permutations(range(7))))].T  # 7 × 5,040
    one = spatial_autocorrelation(values[:, None], graph, moments="randomization", n_permutations=2000)
    for found, every, side in zip(one, spatial_autocorrelation(orders, graph), (1, -1), strict=True):
        assert found.expectation == pytest.approx(every.statistic.mean(), rel=1e-9)
        assert found.deviation[0] == pytest.approx(every.statistic.std(), rel=1e-9)
        share = np.mean(side * every.statistic >= side * found.statistic - 1e-9)
        assert found.p_permutation[0] == pytest.approx(share, abs=0.05)


def test_permutations_stay_within_sections(section):
    """A gene that is constant in each section has nothing to permute."""
    coordinates, expression = section
    sections = np.repeat([3, 1, 2], 40)
    graph = sp.block_diag([_knn(coordinates[sections == code], 5) for code in (3, 1, 2)]).tocsr()
    genes = np.column_stack([sections, sections + expression[:, 0], expression[:, 0]])
    moran, geary = spatial_autocorrelation(genes, graph, sections=sections, n_permutations=50)
    assert np.isnan(moran.p_permutation[0]) and np.isnan(geary.statistic[0])
    for found in (moran, geary):  # what differs between sections only does not count
        np.testing.assert_allclose(found.statistic[1], found.statistic[2], rtol=1e-6)
        assert found.p_permutation[1] == found.p_permutation[2]


def test_expectation_with_sections_is_that_of_noise():
    rng = np.random.default_rng(7)
    sections = np.repeat([0, 1, 2, 3], [10, 20, 30, 20])
    blocks = [_knn(rng.uniform(size=(size, 2)), 3) for size in (10, 20, 30, 20)]
    found = spatial_autocorrelation(rng.normal(size=(80, 20_000)), sp.block_diag(blocks), sections=sections)
    for one in found:
        error = one.statistic.std() / np.sqrt(20_000)
        assert one.statistic.mean() == pytest.approx(one.expectation, abs=5 * error)
        assert abs(one.expectation - (1 if one is found[1] else 0)) > 0.03


def test_a_complete_graph_has_no_variance():
    complete = sp.csr_matrix(np.ones((30, 30)))
    found = morans_i(np.random.default_rng(3).normal(size=(30, 2)), complete)
    np.testing.assert_allclose(found.statistic, -1 / 29)
    assert np.isnan(found.p).all()


def test_sparse_expression_is_never_dense_as_a_whole():
    import tracemalloc

    rng = np.random.default_rng(4)
    expression = sp.random(20_000, 2_000, density=0.01, format="csr", random_state=rng)  # dense: 320 MB
    graph = _knn(rng.uniform(size=(20_000, 2)), 6)
    tracemalloc.start()
    found = morans_i(expression, graph)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.isfinite(found.statistic).all()
    assert peak < 180e6


@pytest.mark.parametrize(
    ("expression", "graph", "match"),
    [
        (np.zeros((5, 2)), sp.eye(6, format="csr"), "positive sum"),
        (np.zeros((5, 2)), sp.csr_matrix(np.ones((6, 6))), "one row for each"),
        (np.zeros(6), sp.csr_matrix(np.ones((6, 6))), "one row for each"),
        (np.full((6, 1), np.nan), sp.csr_matrix(np.ones((6, 6))), "finite"),
        (np.zeros((6, 1)), sp.csr_matrix(np.full((6, 6), np.inf)), "finite"),
        (np.zeros((6, 1)), np.ones((6, 6)), "sparse"),
        (np.zeros((6, 1)), sp.csr_matrix((6, 5)), "square"),
        (np.zeros((3, 1)), sp.csr_matrix(np.ones((3, 3))), "4 spots"),
    ],
)
def test_invalid_input_is_refused(expression, graph, match):
    for statistic in (morans_i, gearys_c):
        with pytest.raises(InputError, match=match):
            statistic(expression, graph)


@pytest.mark.slow
def test_against_scanpy(section):
    scanpy = pytest.importorskip("scanpy")
    coordinates, expression = section
    genes = [0, 1, 2]
    graph = _knn(coordinates, 5, weighted=True)
    expected = scanpy.metrics.morans_i(graph, expression[:, genes].T)
    np.testing.assert_allclose(morans_i(expression[:, genes], graph).statistic, expected, rtol=1e-5)
    expected = scanpy.metrics.gearys_c(graph, expression[:, genes].T)
    np.testing.assert_allclose(gearys_c(expression[:, genes], graph).statistic, expected, rtol=1e-5)


def test_input_arrays_are_unchanged(section):
    coordinates, expression = section
    graph = _knn(coordinates, 5)
    before = expression.copy(), graph.copy()
    morans_i(expression, graph)
    gearys_c(expression, graph)
    np.testing.assert_array_equal(expression, before[0])
    assert (graph != before[1]).nnz == 0
