"""Groups of rows, and mixtures computed by scipy, for the tests of clustering."""

import numpy as np
from scipy.special import logsumexp, softmax
from scipy.stats import multivariate_normal

from amilst_lite.cluster import averaging, restarts
from amilst_lite.cluster import shrinkage as module

MODELS = ["tied_spherical", "spherical", "tied_diag", "diag", "tied", "full"]


def groups(n=400, k=3, d=6, apart=4.0, seed=0):
    """Every block of consecutive rows holds all k groups; correlated noise."""
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.arange(n) % k)
    mixing = rng.normal(size=(d, d)) / np.sqrt(d)
    X = apart * np.eye(k, d)[truth] + rng.normal(size=(n, d)) @ mixing
    return X.astype(np.float32), truth


def covariance_of(density):
    factor = density[2]
    return np.linalg.inv(factor @ factor.T)


def log_joint(X, density):
    weights, means, _ = density
    covariance = covariance_of(density)
    return np.stack(
        [
            np.log(w) + multivariate_normal(m, covariance).logpdf(X)
            for w, m in zip(weights, means, strict=True)
        ]
    )


def log_density(X, density):
    return logsumexp(log_joint(X, density), axis=0)


def posterior_of(X, density):
    return softmax(log_joint(X, density), axis=0).T


def most_rows(monkeypatch, n):
    """More rows than n are treated as many."""
    for part in (module, restarts, averaging):
        monkeypatch.setattr(part, "MOST_ROWS", n)
