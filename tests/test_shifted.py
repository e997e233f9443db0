"""Mixtures with shifted components against densities of scipy and one-by-one formulas."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from amilst_lite.cluster.shifted import PRIOR_COMPOSITION, SHARE, Spots, effects, em, maximize, summed

K, S, D = 3, 2, 4


@pytest.fixture(scope="module")
def data():
    """300 spots of three components in two sections, the second one shifted; labels of 5 restarts."""
    rng = np.random.default_rng(0)
    sections, domains = rng.permutation(np.repeat([0, 1], 150)), rng.integers(0, K, 300)
    X = 3 * np.eye(K, D)[domains] + 1.5 * sections[:, None] + rng.normal(size=(300, D))
    labels = rng.integers(0, K, (5, 300))
    labels[0] = domains
    return X - X.mean(0), sections, torch.from_numpy(labels)


@pytest.fixture(scope="module")
def started(data):
    X, sections, labels = data
    spots = Spots(X, sections, S)
    step = partial(maximize, scatter=spots.scatter, fixed=False)
    return spots, step, step(*spots.of_labels(labels, K), np.zeros((len(labels), S, D)))


def test_density_and_e_step_are_those_of_normal_distributions(data, started):
    X, sections, _ = data
    spots, _, components = started
    counts, sums, log_likelihood = spots.expect(components)
    for restart in range(5):
        one = components[restart]
        expected = np.empty((len(X), K))
        for i, section in enumerate(sections):
            for k in range(K):
                normal = multivariate_normal(one.centers[section, k], one.covariance)
                expected[i, k] = one.log_composition[section, k] + normal.logpdf(X[i])
        np.testing.assert_allclose(one.log_joint(X, sections), expected, rtol=1e-8)
        norm = logsumexp(expected, axis=1)
        posterior = np.exp(expected - norm[:, None])
        np.testing.assert_allclose(one.posterior(X, sections), posterior, atol=1e-8)
        np.testing.assert_allclose(log_likelihood[restart], norm.sum(), rtol=1e-6)
        for found, expected in zip(
            (counts[restart], sums[restart]), summed(X, sections, posterior, S), strict=True
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_hard_sums_are_those_of_one_hot_labels(data, started):
    X, sections, labels = data
    counts, sums = started[0].of_labels(labels, K)
    for restart, row in enumerate(labels.numpy()):
        expected = summed(X, sections, np.eye(K)[row], S)
        np.testing.assert_array_equal(counts[restart], expected[0])
        np.testing.assert_allclose(sums[restart], expected[1], atol=1e-4)


def test_m_step_is_a_regression_with_a_shrunken_covariance(data):
    X, sections, labels = data
    one_hot = np.eye(K)[labels[0].numpy()]
    counts, sums = summed(X, sections, one_hot, S)
    means, shift, _ = effects(counts, sums)
    # dummies of the components and of the second section; then the mean of the shifts over the spots is zero
    design = np.c_[one_hot, sections == 1]
    beta = np.linalg.lstsq(design, X, rcond=None)[0]
    share = (sections == 1).mean()
    np.testing.assert_allclose(shift, [-share * beta[K], (1 - share) * beta[K]], atol=1e-8)
    np.testing.assert_allclose(means, beta[:K] + share * beta[K], atol=1e-8)
    found = maximize(counts, sums, shift, scatter=X.T @ X, fixed=True)
    residual = X - design @ beta
    within = residual.T @ residual / len(X)
    sphere = SHARE * np.trace(within) + 1e-5 * np.trace(X.T @ X) / len(X)
    expected = (1 - SHARE) * within + sphere / D * np.eye(D)
    np.testing.assert_allclose(found.covariance, expected, atol=1e-8)
    composition = counts + PRIOR_COMPOSITION * counts.sum(0) / counts.sum()
    np.testing.assert_allclose(
        np.exp(found.log_composition), composition / composition.sum(1, keepdims=True), atol=1e-8
    )


def test_em_raises_the_likelihood_and_restarts_do_not_depend_on_each_other(started):
    spots, step, components = started
    before = spots.expect(components)[2]
    copy = components[:]
    batch = em(spots, components, step, 20, tol=0.0)
    np.testing.assert_array_equal(components.centers, copy.centers)  # the start is not overwritten
    assert (spots.expect(batch)[2] > before).all()
    for restart in range(5):
        alone = em(spots, components[[restart]], step, 20, tol=0.0)[0]
        np.testing.assert_allclose(alone.centers, batch[restart].centers, atol=1e-3)
        np.testing.assert_allclose(alone.covariance, batch[restart].covariance, atol=1e-3)


def test_em_stops_where_the_likelihood_hardly_rises(started):
    spots, step, components = started
    calls = []

    def counted(*moments):
        calls.append(len(moments[0]))
        return step(*moments)

    found = em(spots, components, counted, 500, tol=1e-4)
    assert calls[0] == 5 and calls == sorted(calls, reverse=True) and len(calls) < 500
    longer = em(spots, found, step, 5, tol=0.0)
    rise = spots.expect(longer)[2] - spots.expect(found)[2]
    assert (np.abs(rise) < 10 * 1e-4 * np.abs(spots.expect(found)[2])).all()


def test_shift_is_recovered_and_stays_where_it_is_fixed(started):
    spots, step, components = started
    found = em(spots, components[[0]], step, 100)[0]
    np.testing.assert_allclose(found.shift[1] - found.shift[0], 1.5, atol=0.35)
    given = np.broadcast_to(np.array([[-1.0], [1.0]]), (1, S, D))
    fixed = partial(maximize, scatter=spots.scatter, fixed=True)
    start = fixed(*(part[:1] for part in spots.expect(components)[:2]), given)
    np.testing.assert_array_equal(em(spots, start, fixed, 5).shift, given)


def test_a_section_without_spots_has_the_overall_composition(data):
    X, sections, labels = data
    spots = Spots(X, sections, S + 1)
    step = partial(maximize, scatter=spots.scatter, fixed=False)
    start = step(*spots.of_labels(labels, K), np.zeros((len(labels), S + 1, D)))
    found = em(spots, start, step, 20)[0]
    counts = spots.expect(found[None])[0][0]
    assert counts[S].sum() == 0
    np.testing.assert_allclose(np.exp(found.log_composition[S]), counts.sum(0) / counts.sum(), atol=0.01)
