"""Leiden with a searched resolution, and what goes around it."""

import random
import sys

import numpy as np
import pytest
from scipy import sparse
from sklearn.metrics import adjusted_rand_score

from amilst_lite.cluster import leiden as room
from amilst_lite.cluster.domains import find_domains
from amilst_lite.cluster.leiden import leiden, neighbor_graph, neighbor_vote
from amilst_lite.config import ClusterConfig
from amilst_lite.errors import AmilstWarning, InputError, MissingExtraError

pytest.importorskip("igraph")


def blobs(k=4, n=160, apart=10.0, seed=0):
    rng = np.random.default_rng(seed)
    truth = np.arange(n) % k
    return (apart * np.eye(k, 8)[truth] + rng.normal(size=(n, 8))).astype(np.float32), truth


def test_neighbour_graph_counts_directions():
    X, _ = blobs()
    graph = neighbor_graph(X, 6)
    nearest = np.argsort(((X[:, None] - X[None]) ** 2).sum(-1), axis=1, kind="stable")[:, 1:7]
    directed = np.zeros((len(X), len(X)))
    directed[np.repeat(np.arange(len(X)), 6), nearest.ravel()] = 1
    np.testing.assert_array_equal(graph.toarray(), directed + directed.T)


@pytest.mark.slow  # pynndescent compiles for half a minute
def test_neighbour_graph_of_many_spots_is_nearly_exact(monkeypatch):
    X, _ = blobs(n=400)
    exact = neighbor_graph(X, 10)
    monkeypatch.setattr(room, "_EXACT_BELOW", 10)
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


def test_python_generator_is_left_as_it_was():
    X, _ = blobs()
    random.seed(3)
    state = random.getstate()
    leiden(neighbor_graph(X, 12), 4, X)
    assert random.getstate() == state


def test_communities_are_joined_when_no_resolution_gives_k():
    """Three pieces without edges between them: two communities are impossible."""
    X, truth = blobs(3, apart=30.0)
    X[truth == 1] += [15.0, -15.0, 0, 0, 0, 0, 0, 0]  # the second lies beside the first, the third far away
    with pytest.warns(AmilstWarning, match="joined, nearest first"):
        labels = leiden(neighbor_graph(X, 8), 2, X)
    assert set(labels) == {0, 1}
    assert len(set(labels[truth < 2])) == 1


def test_more_communities_than_can_be_found():
    X, _ = blobs(2, n=6)
    full = sparse.csr_matrix(np.ones((6, 6), np.float32) - np.eye(6, dtype=np.float32))
    with pytest.raises(InputError, match="asked for"):
        leiden(full, 7, X)


def test_without_igraph_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "igraph", None)
    X, _ = blobs()
    with pytest.raises(MissingExtraError, match=r"amilst-lite\[leiden\]"):
        leiden(neighbor_graph(X, 6), 4, X)


def test_votes_are_shares_of_the_neighbourhood():
    X, truth = blobs()
    graph = neighbor_graph(X, 6)
    votes = neighbor_vote(graph, truth, 4)
    weights = graph.toarray() + np.eye(len(X))
    expected = weights @ np.eye(4)[truth] / weights.sum(1, keepdims=True)
    np.testing.assert_allclose(votes, expected, rtol=1e-5)


@pytest.mark.parametrize("method", ["gmm", "kmeans", "leiden"])
def test_domains_are_ordered_by_size(method):
    X, truth = blobs(3)
    X, truth = X[truth != 1][:80], truth[truth != 1][:80]
    extra, _ = blobs(1, n=200, seed=1)
    X = np.concatenate([X, extra + np.float32(40)])
    domains = find_domains(X, 3, ClusterConfig(method=method, n_init=8), seed=2)
    sizes = np.bincount(domains.labels)
    assert (np.diff(sizes) <= 0).all() and sizes[0] == 200
    np.testing.assert_allclose(domains.probabilities.sum(1), 1, atol=1e-5)
    assert (domains.confidence > 0.5).mean() > 0.9


def test_too_few_different_profiles():
    X = np.repeat(np.eye(2, 3, dtype=np.float32), 10, axis=0)
    with pytest.raises(InputError, match="only 2 different profiles"):
        find_domains(X, 3)


def test_temperature_divides_the_log_odds_and_moves_no_label():
    X, _ = blobs(3, apart=2.0)
    plain, flat = (
        find_domains(X, 3, ClusterConfig(n_init=8, temperature=temperature), seed=2)
        for temperature in (1.0, 4.0)
    )
    assert np.array_equal(plain.labels, flat.labels)
    np.testing.assert_allclose(flat.probabilities.sum(1), 1, atol=1e-5)
    odds, flat_odds = (np.log(d.probabilities[:, 0] / d.probabilities[:, 1]) for d in (plain, flat))
    some = np.abs(odds) < 10
    assert some.sum() > 20
    np.testing.assert_allclose(flat_odds[some], odds[some] / 4, rtol=1e-3, atol=1e-3)
