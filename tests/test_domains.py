"""Domains from an embedding."""

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from amilst_lite.cluster import domains as module
from amilst_lite.cluster.domains import find_domains
from amilst_lite.cluster.mixture import GaussianMixture
from amilst_lite.config import COVARIANCE_TYPES, ClusterConfig
from amilst_lite.errors import InputError


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
    ("method", "used"), [("gmm", "GaussianMixture"), ("kmeans", "KMeans"), ("leiden", "leiden")]
)
def test_method_selects_the_clustering(monkeypatch, method, used):
    if method == "leiden":
        pytest.importorskip("igraph")
    calls = {name: recording(monkeypatch, name) for name in ("GaussianMixture", "KMeans", "leiden")}
    X, truth = blobs(3)
    domains = find_domains(X, 3, ClusterConfig(method=method, n_init=7), seed=5)
    assert {name for name, made in calls.items() if made} == {used}
    assert adjusted_rand_score(truth, domains.labels) == 1
    if method != "leiden":
        fitted = calls[used][0][2]
        assert fitted.n_init == 7 and fitted.random_state == 5


SHAPES = {
    "tied_spherical": (),
    "spherical": (3,),
    "tied_diag": (8,),
    "diag": (3, 8),
    "tied": (8, 8),
    "full": (3, 8, 8),
    "EII": (),
    "VII": (3,),
    "EEI": (8,),
    "VVI": (3, 8),
    "EEE": (8, 8),
    "VVV": (3, 8, 8),
}


@pytest.mark.parametrize("name", COVARIANCE_TYPES)
def test_covariance_type_selects_the_model(monkeypatch, name):
    mixtures = recording(monkeypatch, "GaussianMixture")
    config = ClusterConfig(covariance_type=name, covariance_prior=3.0, n_init=2)
    find_domains(blobs(3)[0], 3, config)
    ((_, _, mixture),) = mixtures
    assert mixture.covariance_prior == 3.0
    assert np.shape(mixture.covariances_) == SHAPES[name]


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


def test_log_odds_are_divided_by_the_temperature():
    X, _ = blobs(3, apart=2.0)
    config = ClusterConfig(n_init=8)
    domains = find_domains(X, 3, config, seed=2)
    mixture = GaussianMixture(3, n_init=8, covariance_prior=config.covariance_prior, random_state=2).fit(X)
    posterior = mixture.predict_proba(X)
    labels = posterior.argmax(1)
    order = np.argsort(-np.bincount(labels), kind="stable")
    posterior = posterior[:, order]
    assert np.array_equal(domains.labels, posterior.argmax(1))
    odds, flat = (np.log(p[:, 0] / p[:, 1]) for p in (posterior, domains.probabilities))
    some = np.abs(odds) < 50
    assert some.sum() > 20
    np.testing.assert_allclose(flat[some], odds[some] / 5, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["gmm", "kmeans", "leiden"])
def test_tensors_with_gradients_are_accepted(method):
    if method == "leiden":
        pytest.importorskip("igraph")
    X, truth = blobs(3)
    embedding = torch.from_numpy(X).requires_grad_()
    domains = find_domains(embedding, 3, ClusterConfig(method=method, n_init=4))
    assert adjusted_rand_score(truth, domains.labels) == 1
