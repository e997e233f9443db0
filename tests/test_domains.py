"""Domains from an embedding."""

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from amilst_lite.cluster import domains as module
from amilst_lite.cluster.domains import find_domains
from amilst_lite.cluster.shrinkage import MixtureAverage, fit_average
from amilst_lite.config import COVARIANCE_TYPES, ClusterConfig
from amilst_lite.errors import AmilstWarning, InputError


def blobs(k=4, n=160, apart=10.0, seed=0):
    rng = np.random.default_rng(seed)
    truth = np.arange(n) % k
    return (apart * np.eye(k, 8)[truth] + rng.normal(size=(n, 8))).astype(np.float32), truth


def recording(monkeypatch, name):
    """Replace a clustering of the module by itself, and return the list of what it was called with or built."""
    calls = []
    original = getattr(module, name)

    def replacement(*args, **options):
        result = original(*args, **options)
        calls.append((args, options, result))
        return result

    monkeypatch.setattr(module, name, replacement)
    return calls


@pytest.mark.parametrize("method", ["gmm", "kmeans", "leiden"])
def test_domains_are_ordered_by_size(method):
    if method == "leiden":
        pytest.importorskip("igraph")
    X, truth = blobs(3)
    X = X[truth != 1][:80]
    extra, _ = blobs(1, n=200, seed=1)
    X = np.concatenate([X, extra + np.float32(40)])
    domains = find_domains(X, 3, ClusterConfig(method=method, n_init=8), seed=2)
    sizes = np.bincount(domains.labels)
    assert (np.diff(sizes) <= 0).all() and sizes[0] == 200
    np.testing.assert_allclose(domains.probabilities.sum(1), 1, atol=1e-5)
    assert (domains.confidence > 0.5).mean() > 0.9


@pytest.mark.parametrize(
    ("method", "used"), [("gmm", "fit_average"), ("kmeans", "KMeans"), ("leiden", "leiden")]
)
def test_method_selects_the_clustering(monkeypatch, method, used):
    if method == "leiden":
        pytest.importorskip("igraph")
    calls = {name: recording(monkeypatch, name) for name in ("fit_average", "KMeans", "leiden")}
    X, truth = blobs(3)
    domains = find_domains(X, 3, ClusterConfig(method=method, n_init=7), seed=5)
    assert {name for name, made in calls.items() if made} == {used}
    assert adjusted_rand_score(truth, domains.labels) == 1
    if method == "kmeans":
        fitted = calls[used][0][2]
        assert fitted.n_init == 7 and fitted.random_state == 5
    if method == "gmm":
        options = calls[used][0][1]
        assert options["n_init"] == 7 and options["seed"] == 5
    assert (domains.evidence is not None) == (method == "gmm")


@pytest.mark.parametrize("name", COVARIANCE_TYPES)
def test_covariance_type_and_shrinkage_reach_the_mixture(monkeypatch, name):
    calls = recording(monkeypatch, "fit_average")
    X, truth = blobs(3)
    domains = find_domains(X, 3, ClusterConfig(covariance_type=name, shrinkage=0.2, n_init=2))
    ((_, options, _),) = calls
    assert options["covariance_type"] == name and options["shrinkage"] == 0.2
    assert domains.evidence.shares.tolist() == [0.2]
    assert adjusted_rand_score(truth, domains.labels) == 1


def test_neighbor_graph_has_twenty_neighbors(monkeypatch):
    graphs = recording(monkeypatch, "neighbor_graph")
    find_domains(blobs(3)[0], 3, ClusterConfig(method="kmeans", n_init=2))
    ((_, _, graph),) = graphs
    # each directed edge adds one to both triangles; ties with the 20th neighbor are included
    assert 20 <= graph.sum() / (2 * graph.shape[0]) < 20.5


def test_too_few_distinct_rows():
    X = np.repeat(np.eye(2, 3, dtype=np.float32), 10, axis=0)
    with pytest.raises(InputError, match="n_domains=3 distinct rows in the embedding; found 2"):
        find_domains(X, 3)


def test_probabilities_are_those_of_the_average_in_order_of_size():
    X, _ = blobs(3, apart=2.0)
    domains = find_domains(X, 3, ClusterConfig(n_init=8), seed=2)
    average = fit_average(X, 3, n_init=8, seed=2)
    order = np.argsort(-np.bincount(average.labels, minlength=3), kind="stable")
    np.testing.assert_array_equal(domains.probabilities, average.probabilities[:, order])
    assert np.array_equal(domains.labels, domains.probabilities.argmax(1))


def test_mixture_gives_the_domains_in_the_same_order_to_other_rows():
    X, truth = blobs(4, n=400, apart=3.0)
    X = X[(truth != 1) | (np.arange(400) < 100)]
    order = np.random.default_rng(0).permutation(len(X))
    X = X[order]
    domains = find_domains(X, 4, ClusterConfig(n_init=8), seed=2)
    average = fit_average(X, 4, n_init=8, seed=2)
    assert not np.array_equal(domains.labels, average.labels)  # the order of size is another one
    np.testing.assert_array_equal(domains.mixture.predict_proba(X), domains.probabilities)
    reversed_rows = domains.mixture.predict_proba(X[::-1])
    np.testing.assert_array_equal(reversed_rows.argmax(1), domains.labels[::-1])


@pytest.mark.parametrize("method", ["kmeans", "leiden"])
def test_other_clusterings_keep_no_mixture(method):
    if method == "leiden":
        pytest.importorskip("igraph")
    domains = find_domains(blobs(3)[0], 3, ClusterConfig(method=method, n_init=2))
    assert domains.mixture is None and domains.evidence is None


def test_domains_without_spots_are_reported(monkeypatch):
    X, truth = blobs(3)
    fitted = fit_average(X, 3, n_init=2)
    evidence = fitted.evidence
    posterior = np.eye(3, dtype=np.float32)[np.minimum(truth, 1)]
    average = MixtureAverage(posterior.argmax(1), posterior, evidence, fitted.fitted)
    monkeypatch.setattr(module, "fit_average", lambda *_, **__: average)
    with pytest.warns(AmilstWarning, match="1 of 3 domains have no spots.*--n-domains"):
        domains = find_domains(X, 3)
    assert np.bincount(domains.labels, minlength=3).tolist() == [106, 54, 0]
    assert domains.probabilities.shape == (160, 3) and domains.evidence is evidence


def test_rows_at_two_places_and_one_beside_them():
    X = np.repeat(np.eye(2, 3, dtype=np.float32), 100, axis=0)
    X = np.concatenate([X, X[:1] + np.float32(1e-4)])
    domains = find_domains(X, 3, ClusterConfig(n_init=4))
    np.testing.assert_allclose(domains.probabilities.sum(1), 1, atol=1e-5)
    assert not set(domains.labels[:100]) & set(domains.labels[100:200])


@pytest.mark.parametrize("method", ["gmm", "kmeans", "leiden"])
def test_tensors_with_gradients_are_accepted(method):
    if method == "leiden":
        pytest.importorskip("igraph")
    X, truth = blobs(3)
    embedding = torch.from_numpy(X).requires_grad_()
    domains = find_domains(embedding, 3, ClusterConfig(method=method, n_init=4))
    assert adjusted_rand_score(truth, domains.labels) == 1
