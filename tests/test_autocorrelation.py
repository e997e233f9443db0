import numpy as np
import pytest
import scipy.sparse as sp
from scipy.spatial import cKDTree

from amilst_lite.errors import InputError
from amilst_lite.spatial.autocorrelation import gearys_c, morans_i


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
        assert found.statistic.mean() == pytest.approx(found.expectation, abs=4 * found.deviation / 140)
        assert found.statistic.std() == pytest.approx(found.deviation, rel=0.03)
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
