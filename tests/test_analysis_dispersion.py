"""Dispersion of counts from neighboring spots."""

import numpy as np
import pytest
from scipy import sparse

from amilst_lite.analysis.dispersion import dispersions


def negative_binomial(mean, dispersion, seed):
    rng = np.random.default_rng(seed)
    rates = mean * rng.gamma(1 / dispersion, dispersion, size=mean.shape) if dispersion else mean
    return sparse.csr_matrix(rng.poisson(rates).astype(np.float32))


@pytest.mark.parametrize("dispersion", [0.0, 0.1, 0.5, 2.0])
def test_known_dispersions_are_found_whatever_the_tissue(dispersion):
    """Depth differs from spot to spot, and expression from domain to domain and smoothly within them."""
    rng = np.random.default_rng(1)
    n, n_genes = 4000, 30
    depth = rng.lognormal(0, 0.4, size=(n, 1))
    domains = np.repeat(rng.gamma(3.0, 1.0, size=(5, n_genes)), n // 5, axis=0)
    smooth = np.exp(0.5 * np.sin(np.linspace(0, 20, n)[:, None] + np.arange(n_genes)))
    mean = depth * domains * smooth
    # a gene that takes most counts, so that the total of a spot is its depth
    mean = np.hstack([mean, 3000 * depth])
    counts = negative_binomial(mean[:, :-1], dispersion, 2)
    counts = sparse.hstack([counts, negative_binomial(mean[:, -1:], 0.0, 3)], format="csr")
    found = dispersions(counts, np.zeros(n, np.int64))
    assert found.shape == (n_genes + 1,) and (found >= 0).all()
    # domains are five runs: few pairs of neighbors lie at a border
    assert found[:-1].mean() == pytest.approx(dispersion, rel=0.06, abs=0.02)
    pooled = (
        np.var(counts[:, :-1].toarray() / depth, axis=0)
        / np.mean(counts[:, :-1].toarray() / depth, axis=0) ** 2
    )
    assert (pooled > found[:-1] + 0.1).all()  # without neighbors, domains would count as noise


def test_equals_the_sum_over_pairs():
    rng = np.random.default_rng(0)
    counts = rng.poisson(1.5, size=(40, 6)) * rng.integers(1, 3, size=(40, 6))
    counts[:, 4] = 0
    counts[7] = 0  # a spot without counts
    sections = np.repeat([0, 1, 2], [15, 2, 23])
    size = counts.sum(axis=1) / counts.sum(axis=1).mean()
    within, between = np.zeros(6), np.zeros(6)
    for i in range(40):
        for j in range(i + 1, min(i + 4, 40)):
            if sections[i] != sections[j] or size[i] == 0 or size[j] == 0:
                continue
            weight = 1 / (1 / size[i] + 1 / size[j])
            within += weight * sum(counts[k] * (counts[k] - 1) / size[k] ** 2 for k in (i, j))
            between += 2 * weight * counts[i] * counts[j] / size[i] / size[j]
    expected = np.maximum(within / np.where(between, between, np.inf) - 1, 0)
    found = dispersions(sparse.csr_matrix(counts, dtype=np.float32), sections)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert found[4] == 0 < found[0]


def test_spots_that_cannot_be_compared():
    alone = sparse.csr_matrix(np.full((3, 2), 7, dtype=np.float32))
    np.testing.assert_array_equal(dispersions(alone, np.arange(3)), 0)
    np.testing.assert_array_equal(dispersions(alone[:1], np.zeros(1, np.int64)), 0)
    np.testing.assert_array_equal(
        dispersions(sparse.csr_matrix((5, 2), dtype=np.float32), np.zeros(5, int)), 0
    )
