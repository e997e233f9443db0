"""Leiden with a search for the resolution, and the neighbor graph of an embedding."""

import random
import sys

import numpy as np
import pytest
from scipy import sparse
from sklearn.metrics import adjusted_rand_score

from amilst_lite.cluster.leiden import leiden, neighbor_graph, neighbor_vote
from amilst_lite.errors import AmilstWarning, InputError, MissingExtraError
from amilst_lite.spatial import neighbors

pytest.importorskip("igraph")


def blobs(k=4, n=160, apart=10.0, seed=0):
    rng = np.random.default_rng(seed)
    truth = np.arange(n) % k
    return (apart * np.eye(k, 8)[truth] + rng.normal(size=(n, 8))).astype(np.float32), truth


def test_neighbor_graph_equals_dense_search():
    X, _ = blobs()
    graph = neighbor_graph(X, 6)
    distances = np.linalg.norm(X[:, None].astype(float) - X[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    directed = (distances <= np.sort(distances, axis=1)[:, [5]] * (1 + 1e-4)).astype(float)
    assert graph.dtype == np.float32
    np.testing.assert_array_equal(graph.toarray(), directed + directed.T)


@pytest.mark.slow  # pynndescent compiles for half a minute
def test_approximate_neighbor_graph_is_close(monkeypatch):
    X, _ = blobs(n=400)
    exact = neighbor_graph(X, 10)
    monkeypatch.setattr(neighbors, "_EXACT_SEARCH_BELOW", 10)
    approximate = neighbor_graph(X, 10)
    shared = exact.multiply(approximate > 0).sum() / exact.sum()
    assert shared > 0.9


@pytest.mark.parametrize("k", [3, 4, 7])
def test_exactly_k_communities(k):
    X, truth = blobs(k)
    graph = neighbor_graph(X, 12)
    labels = leiden(graph, k, X, seed=1)
    assert np.array_equal(np.unique(labels), np.arange(k))
    assert adjusted_rand_score(truth, labels) == 1
    np.testing.assert_array_equal(labels, leiden(graph, k, X, seed=1))


def test_global_generator_of_python_is_not_changed():
    X, _ = blobs()
    random.seed(3)
    state = random.getstate()
    leiden(neighbor_graph(X, 12), 4, X)
    assert random.getstate() == state


def test_communities_are_merged_if_no_resolution_gives_k():
    """Three pieces without edges between them: two communities are impossible."""
    X, truth = blobs(3, apart=30.0)
    X[truth == 1] += [15.0, -15.0, 0, 0, 0, 0, 0, 0]  # the second is close to the first, the third distant
    with pytest.warns(AmilstWarning, match="were merged"):
        labels = leiden(neighbor_graph(X, 8), 2, X)
    assert set(labels) == {0, 1}
    assert len(set(labels[truth < 2])) == 1


def test_more_communities_than_exist():
    X, _ = blobs(2, n=6)
    full = sparse.csr_matrix(np.ones((6, 6), np.float32) - np.eye(6, dtype=np.float32))
    with pytest.raises(InputError, match="Expected 7 communities"):
        leiden(full, 7, X)


def test_missing_igraph_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "igraph", None)
    X, _ = blobs()
    with pytest.raises(MissingExtraError, match=r"amilst-lite\[leiden\]"):
        leiden(neighbor_graph(X, 6), 4, X)


def test_votes_equal_dense_formula():
    X, truth = blobs()
    graph = neighbor_graph(X, 6)
    votes = neighbor_vote(graph, truth, 4)
    weights = graph.toarray() + np.eye(len(X))
    expected = weights @ np.eye(4)[truth] / weights.sum(1, keepdims=True)
    np.testing.assert_allclose(votes, expected, rtol=1e-5)
