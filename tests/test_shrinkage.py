"""The shrinkage of the mixture by held-out blocks, and the average of several fits."""

from itertools import permutations

import numpy as np
import pytest
import torch
from mixtures import MODELS, groups, log_density, most_rows, posterior_of
from sklearn.metrics import adjusted_rand_score

from amilst_lite.cluster import averaging, blocks
from amilst_lite.cluster import shrinkage as module
from amilst_lite.cluster.averaging import FittedAverage, PrincipalAxes
from amilst_lite.cluster.restarts import Restarts
from amilst_lite.cluster.shrinkage import fit_average, held_out


def test_held_out_likelihood_is_that_of_the_other_half(monkeypatch):
    X, _ = groups()
    densities = []
    original = Restarts.search

    def recording(self, shares):
        found = original(self, shares)
        densities.extend(found)
        return found

    monkeypatch.setattr(Restarts, "search", recording)
    monkeypatch.setattr(blocks, "n_threads", lambda: 1)  # one half after the other
    shares = [0.05, 0.5]
    likelihood, agreement = held_out(torch.from_numpy(X), 3, shares, n_init=6)
    half = np.arange(len(X)) // 100 % 2
    for place in range(2):
        expected = log_density(X[half == 1], densities[place]).sum()
        expected += log_density(X[half == 0], densities[2 + place]).sum()
        assert likelihood[place] == pytest.approx(expected / len(X), rel=1e-5)
    best = int(np.argmax(likelihood))
    first, second = (posterior_of(X, densities[2 * part + best]) for part in (0, 1))
    overlap = first.T @ second
    most = max(overlap[range(3), order].sum() for order in map(list, permutations(range(3))))
    assert agreement == pytest.approx(most / len(X), rel=1e-5) and agreement > 0.9


def test_columns_are_enough_for_the_means_of_all_components(monkeypatch):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 12)).astype(np.float32)
    assert fit_average(X, 4, shrinkage=0.1, n_init=2).evidence.columns.tolist() == [6, 8, 12]
    assert fit_average(X, 10, shrinkage=0.1, n_init=2).evidence.columns.tolist() == [9, 12]
    assert fit_average(X, 20, shrinkage=0.1, n_init=2).evidence.columns.tolist() == [12]
    most_rows(monkeypatch, 300)
    assert fit_average(X, 6, shrinkage=0.1, n_init=2).evidence.columns.tolist() == [10, 12]


@pytest.mark.parametrize(("k", "columns"), [(3, [15, 20, 30]), (35, [34])])
def test_at_most_30_axes_or_those_of_the_means(k, columns):
    X = np.random.default_rng(0).standard_normal((200, 40)).astype(np.float32)
    average = fit_average(X, k, shrinkage=0.9, n_init=1)
    assert average.evidence.columns.tolist() == columns
    assert average.fitted.axes.axes.shape == (40, columns[-1])


def test_given_shrinkage_is_the_only_one_compared():
    X, truth = groups()
    average = fit_average(X, 3, shrinkage=0.25, n_init=4)
    assert average.evidence.shares.tolist() == [0.25]
    assert average.evidence.columns.tolist() == [3, 4, 6]
    np.testing.assert_allclose(average.evidence.weights, 1 / 3)
    assert adjusted_rand_score(truth, average.labels) > 0.95


def test_weights_are_zero_beyond_a_nat_and_fall_with_the_gap():
    likelihood = np.array([-5.0, -4.2, -4.0, -4.9, -5.1, np.nan])
    weights = module._weights(likelihood, module.SLACK)
    np.testing.assert_allclose(weights, [np.exp(-1.0), np.exp(-0.2), 1, np.exp(-0.9), 0, 0])
    np.testing.assert_array_equal(module._weights(likelihood, 0.0), [0, 0, 1, 0, 0, 0])


def test_many_rows_need_less_of_the_sphere_than_few():
    rng = np.random.default_rng(0)
    scales = np.array([0.2, 0.2, 0.2, 4, 4, 4])

    def best_share(n):
        truth = rng.permutation(np.arange(n) % 3)
        X = np.eye(3, 6)[truth] + rng.normal(size=(n, 6)) * scales
        likelihood, _ = held_out(torch.from_numpy(X.astype(np.float32)), 3, module.SHARES, n_init=8)
        return module.SHARES[int(np.argmax(likelihood))]

    assert best_share(2000) <= 0.03
    few = groups(n=40, d=6, apart=0.5)[0]
    likelihood, _ = held_out(torch.from_numpy(few), 3, module.SHARES, n_init=8)
    assert module.SHARES[int(np.argmax(likelihood))] >= 0.2


def test_labels_do_not_depend_on_the_basis_of_the_columns():
    X, truth = groups(n=500, apart=3.0)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0].astype(np.float32)
    first, second = fit_average(X, 3, n_init=8), fit_average(X @ rotation, 3, n_init=8)
    assert adjusted_rand_score(first.labels, second.labels) > 0.99
    assert adjusted_rand_score(truth, first.labels) > 0.8


@pytest.mark.parametrize("columns", [(1.0,), (0.5, 1.0)])
def test_posteriors_of_the_fits_are_averaged_and_tempered(monkeypatch, columns):
    X, _ = groups(n=600, apart=3.0)
    monkeypatch.setattr(module, "COLUMNS", columns)
    fits = []
    original = Restarts.fit

    def recording(self, shares):
        found = original(self, shares)
        fits.extend(zip(shares, found, strict=True))
        return found

    monkeypatch.setattr(Restarts, "fit", recording)
    average = fit_average(X, 3, n_init=8)
    fits.sort(
        key=lambda fit: fit[1][1].shape[1]
    )  # by columns: those of different columns may run side by side
    evidence = average.evidence
    assert evidence.weights.sum() == pytest.approx(1)
    gap = np.nanmax(evidence.log_likelihood, 1, keepdims=True) - evidence.log_likelihood
    assert ((evidence.weights > 0) == (gap <= 1)).all()
    weights = evidence.weights[evidence.weights > 0]
    assert len(fits) == len(weights) > 1
    assert [share for share, _ in fits] == evidence.shares[np.nonzero(evidence.weights)[1]].tolist()
    axes = PrincipalAxes.of(X).rotate(X)
    expected = np.zeros((600, 3))
    for weight, (_, density) in zip(weights, fits, strict=True):
        posterior = posterior_of(axes[:, : density[1].shape[1]], density)
        order = max(
            permutations(range(3)), key=lambda order: (average.probabilities * posterior[:, order]).sum()
        )
        expected += weight * posterior[:, order]
    expected = np.maximum(expected, 1e-12) ** (1 / evidence.temperature)
    np.testing.assert_allclose(average.probabilities, expected / expected.sum(1, keepdims=True), atol=1e-4)


def test_a_component_that_the_average_leaves_empty(monkeypatch):
    X, truth = groups(n=600, apart=3.0)
    averaged = []
    original = FittedAverage.average

    def losing_a_component(self, *rest):
        averaged.append(self.weights)
        posterior = original(self, *rest)
        if len(self.weights) > 1:
            posterior[:, 0] = 0
        return posterior

    monkeypatch.setattr(FittedAverage, "average", losing_a_component)
    average = fit_average(X, 3, n_init=8)
    assert len(averaged) == 2 and averaged[1].tolist() == [1.0]
    assert len(average.fitted.densities) == 1
    np.testing.assert_array_equal(average.fitted.predict_proba(X), average.probabilities)
    assert sorted(average.evidence.weights.ravel())[-2:] == [0, 1]
    assert adjusted_rand_score(truth, average.labels) > 0.8


@pytest.mark.parametrize(("n", "k"), [(2, 2), (3, 3), (5, 5), (20, 15)])
def test_nearly_as_many_components_as_rows(n, k):
    X = np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)
    average = fit_average(X, k, n_init=4)
    assert len(np.unique(average.labels)) == k
    np.testing.assert_allclose(average.probabilities.sum(1), 1, atol=1e-5)


def test_mean_confidence_follows_from_the_agreement(monkeypatch):
    rng = np.random.default_rng(0)
    X = (2 * np.eye(3, 6)[rng.integers(3, size=600)] + rng.normal(size=(600, 6))).astype(np.float32)
    targets = []
    original = averaging.temperature_for
    monkeypatch.setattr(
        module, "temperature_for", lambda rows, target: targets.append(target) or original(rows, target)
    )
    average = fit_average(X, 3, n_init=8)
    np.testing.assert_allclose(average.probabilities.sum(1), 1, atol=1e-5)
    assert targets == [pytest.approx(np.sqrt(average.evidence.agreement.mean()))]
    confidence, temperature = average.probabilities.max(1).mean(), average.evidence.temperature
    assert 1 <= temperature < 100
    assert confidence == pytest.approx(targets[0], abs=2e-3) if temperature > 1 else confidence <= targets[0]
    assert np.array_equal(average.labels, average.probabilities.argmax(1))


def test_same_seed_same_bits():
    X, _ = groups(apart=1.0)
    first, second = (fit_average(X, 4, n_init=6, seed=3).probabilities for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("model", MODELS)
def test_every_covariance_model_finds_separate_groups(model):
    X, truth = groups(apart=12.0)
    assert adjusted_rand_score(truth, fit_average(X, 3, covariance_type=model, n_init=4).labels) == 1


def test_many_rows_are_compared_on_some_blocks(monkeypatch):
    most_rows(monkeypatch, 600)
    X, truth = groups(n=3000, apart=6.0)
    sizes = []
    original = Restarts.__init__

    def recording(self, X, *args, **options):
        sizes.append(len(X))
        original(self, X, *args, **options)

    monkeypatch.setattr(Restarts, "__init__", recording)
    average = fit_average(X, 3, n_init=6)
    assert sizes == [300] * 4 + [3000] * 2  # two halves for each number of columns, then all rows
    assert (average.evidence.weights > 0).sum(1).tolist() == [1, 1]
    assert adjusted_rand_score(truth, average.labels) > 0.97


def test_halves_of_many_rows_hold_some_rows_of_every_block(monkeypatch):
    most_rows(monkeypatch, 600)
    X = np.arange(3000, dtype=np.float32)[:, None] + np.zeros((1, 2), np.float32)
    X[:, 1] = np.random.default_rng(0).normal(size=3000)
    found = []
    original = Restarts.__init__

    def recording(self, X, *args, **options):
        found.append(np.sort(X[:, 0].numpy()).astype(int))
        original(self, X, *args, **options)

    monkeypatch.setattr(Restarts, "__init__", recording)
    monkeypatch.setattr(blocks, "n_threads", lambda: 1)  # one half after the other
    held_out(torch.from_numpy(X), 2, [0.1], n_init=2)
    assert [set(rows // 100) for rows in found] == [set(range(0, 30, 2)), set(range(1, 30, 2))]
    assert all(np.bincount(rows // 100)[rows // 100].min() >= 19 for rows in found)


def test_columns_without_variance_and_few_rows():
    X, _ = groups(n=24, apart=12.0)
    X[:, 3:] = 0
    average = fit_average(X, 3, n_init=4)
    assert np.isfinite(average.probabilities).all() and len(np.unique(average.labels)) == 3


def test_many_rows_are_fitted_in_part_and_labeled_in_pieces(monkeypatch):
    X, truth = _blobs_in_blocks(6000)
    whole = fit_average(X, 3, n_init=4)
    monkeypatch.setattr(averaging, "ROWS_AT_A_TIME", 2000)
    monkeypatch.setattr(module, "_FITTED_ROWS", 2000)
    part = fit_average(X, 3, n_init=4)
    assert part.probabilities.shape == (6000, 3) and part.probabilities.dtype == np.float32
    np.testing.assert_allclose(part.probabilities.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(part.fitted.predict_proba(X), part.probabilities)
    for found in (whole, part):
        assert adjusted_rand_score(truth, found.labels) > 0.95
    assert adjusted_rand_score(whole.labels, part.labels) > 0.97


def _blobs_in_blocks(n):
    """Rows of three components, in runs of 200 of the same, and the components."""
    rng = np.random.default_rng(0)
    truth = np.repeat(rng.integers(3, size=n // 200), 200)
    centers = 6 * rng.normal(size=(3, 4)) / 2
    return (centers[truth] + rng.normal(size=(n, 4))).astype(np.float32), truth


@pytest.mark.parametrize("n", [400, 900])
def test_side_by_side_and_in_turn_give_the_same_bits(monkeypatch, n):
    """Halves and fits of few rows (at most 600 here) run side by side where there are two threads."""
    most_rows(monkeypatch, 600)
    X, _ = groups(n)
    found = []
    for threads in (1, 2):
        monkeypatch.setattr(blocks, "n_threads", lambda threads=threads: threads)
        found.append(fit_average(X, 3, n_init=4))
    one, two = found
    np.testing.assert_array_equal(one.probabilities, two.probabilities)
    np.testing.assert_array_equal(one.evidence.log_likelihood, two.evidence.log_likelihood)
