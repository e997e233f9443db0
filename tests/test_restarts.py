"""Mixtures of several shares in one batch, and the moves between optima."""

import numpy as np
import pytest
import torch
from mixtures import covariance_of, groups
from sklearn.metrics import adjusted_rand_score

from amilst_lite.cluster import averaging, restarts
from amilst_lite.cluster.restarts import Restarts


@pytest.mark.parametrize("covariance_type", ["tied", "full", "diag", "spherical"])
def test_many_components_leave_an_optimum_that_restarts_end_in(monkeypatch, covariance_type):
    """Two groups in one component, and two components in another group."""
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(12), 60)
    X = (8 * rng.normal(size=(12, 5))[truth] + rng.normal(size=(720, 5))).astype(np.float32)
    start = torch.from_numpy(truth).int()
    start[truth == 1] = 0
    start[(truth == 2) & (X[:, 0] > X[truth == 2, 0].mean())] = 1
    monkeypatch.setattr(restarts, "short_kmeans", lambda *_: start[None])

    def agreement():
        path = Restarts(torch.from_numpy(X), 12, covariance_type, 1, 0, torch.device("cpu"))
        return [
            adjusted_rand_score(
                truth,
                averaging._posteriors(torch.from_numpy(X), [density], covariance_type, torch.device("cpu"))(
                    slice(None)
                ).argmax(1),
            )
            for density in path.search([0.01, 0.1, 0.5])
        ]

    assert min(agreement()) > 0.99
    monkeypatch.setattr(restarts, "_RESTARTS_SUFFICE", 12)
    assert max(agreement()) < 0.95


def test_covariance_is_shrunken_by_the_share():
    X, truth = groups(n=600, apart=12.0)
    path = Restarts(torch.from_numpy(X), 3, "tied", 4, 0, torch.device("cpu"))
    within = np.mean([np.cov(X[truth == k].T, ddof=0) for k in range(3)], axis=0)
    shares = [0.0, 0.3, 0.9]
    for share, density in zip(shares, path.fit(shares), strict=True):
        expected = (1 - share) * within + share * np.trace(within) / 6 * np.eye(6)
        np.testing.assert_allclose(covariance_of(density), expected, rtol=0.02, atol=0.01)


@pytest.mark.parametrize("covariance_type", ["tied", "full", "diag", "tied_diag"])
def test_shares_in_one_batch_are_fitted_as_each_alone(covariance_type):
    X, _ = groups(apart=6.0)
    shares = [0.05, 0.3, 0.8]
    path = Restarts(torch.from_numpy(X), 3, covariance_type, 5, 0, torch.device("cpu"))
    together = path.fit(shares)
    for share, (weights, means, factors) in zip(shares, together, strict=True):
        expected = path.fit([share])[0]
        # restarts that end in the same optimum number the components differently; rounding decides between them
        order = np.linalg.norm(means[:, None] - expected[1], axis=2).argmin(0)
        np.testing.assert_allclose(weights[order], expected[0], atol=0.01)
        np.testing.assert_allclose(means[order], expected[1], atol=0.01)
        factors = factors if covariance_type in ("tied", "tied_diag") else factors[order]
        np.testing.assert_allclose(factors, expected[2], rtol=0.01, atol=0.01)
