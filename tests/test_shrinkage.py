"""The shrinkage of the mixture by held-out blocks, and the average of several fits."""

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.special import logsumexp, softmax
from scipy.stats import multivariate_normal
from sklearn.metrics import adjusted_rand_score

from amilst_lite.cluster import shrinkage as module
from amilst_lite.cluster.shrinkage import (
    FittedAverage,
    PrincipalAxes,
    fit_average,
    held_out,
    match_components,
)
from amilst_lite.errors import InputError
from amilst_lite.model_file import read_model, write_model

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


def test_principal_axes_keep_distances_and_drop_empty_columns():
    X, _ = groups()
    wide = np.concatenate([X, np.zeros((len(X), 2), np.float32), X[:, :1]], 1)
    fitted = PrincipalAxes.of(wide)
    axes = fitted.rotate(wide)
    assert axes.shape == (len(X), 6) and axes.dtype == fitted.axes.dtype == np.float32
    np.testing.assert_allclose(fitted.axes.T @ fitted.axes, np.eye(6), atol=1e-5)
    variances = axes.var(0)
    assert (np.diff(variances) <= 1e-4).all()
    np.testing.assert_allclose(np.cov(axes.T), np.diag(variances * len(X) / (len(X) - 1)), atol=1e-3)
    centered = wide - wide.mean(0)
    np.testing.assert_allclose(axes @ axes.T, centered @ centered.T, rtol=1e-3, atol=1e-2)
    new = groups(n=10, seed=1)[0]
    new = np.concatenate([new, np.ones((10, 2), np.float32), new[:, :1]], 1)
    np.testing.assert_allclose(fitted.rotate(new), (new - wide.mean(0)) @ fitted.axes, rtol=1e-3, atol=1e-4)


def test_held_out_likelihood_is_that_of_the_other_half(monkeypatch):
    X, _ = groups()
    densities = []
    original = module._Path.search

    def recording(self, shares):
        found = original(self, shares)
        densities.extend(found)
        return found

    monkeypatch.setattr(module._Path, "search", recording)
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
    monkeypatch.setattr(module, "_MOST_ROWS", 300)
    assert fit_average(X, 6, shrinkage=0.1, n_init=2).evidence.columns.tolist() == [10, 12]


@pytest.mark.parametrize("covariance_type", ["tied", "full", "diag", "spherical"])
def test_many_components_leave_an_optimum_that_restarts_end_in(monkeypatch, covariance_type):
    """Two groups in one component, and two components in another group."""
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(12), 60)
    X = (8 * rng.normal(size=(12, 5))[truth] + rng.normal(size=(720, 5))).astype(np.float32)
    start = torch.from_numpy(truth).int()
    start[truth == 1] = 0
    start[(truth == 2) & (X[:, 0] > X[truth == 2, 0].mean())] = 1
    monkeypatch.setattr(module, "short_kmeans", lambda *_: start[None])

    def agreement():
        path = module._Path(torch.from_numpy(X), 12, covariance_type, 1, 0, torch.device("cpu"))
        return [
            adjusted_rand_score(
                truth,
                module._posteriors(torch.from_numpy(X), [density], covariance_type, torch.device("cpu"))(
                    slice(None)
                ).argmax(1),
            )
            for density in path.search([0.01, 0.1, 0.5])
        ]

    assert min(agreement()) > 0.99
    monkeypatch.setattr(module, "_RESTARTS_SUFFICE", 12)
    assert max(agreement()) < 0.95


def test_covariance_is_shrunken_by_the_share():
    X, truth = groups(n=600, apart=12.0)
    path = module._Path(torch.from_numpy(X), 3, "tied", 4, 0, torch.device("cpu"))
    within = np.mean([np.cov(X[truth == k].T, ddof=0) for k in range(3)], axis=0)
    shares = [0.0, 0.3, 0.9]
    for share, density in zip(shares, path.fit(shares), strict=True):
        expected = (1 - share) * within + share * np.trace(within) / 6 * np.eye(6)
        np.testing.assert_allclose(covariance_of(density), expected, rtol=0.02, atol=0.01)


@pytest.mark.parametrize("covariance_type", ["tied", "full", "diag", "tied_diag"])
def test_shares_in_one_batch_are_fitted_as_each_alone(covariance_type):
    X, _ = groups(apart=6.0)
    shares = [0.05, 0.3, 0.8]
    path = module._Path(torch.from_numpy(X), 3, covariance_type, 5, 0, torch.device("cpu"))
    together = path.fit(shares)
    for share, (weights, means, factors) in zip(shares, together, strict=True):
        expected = path.fit([share])[0]
        # restarts that end in the same optimum number the components differently; rounding decides between them
        order = np.linalg.norm(means[:, None] - expected[1], axis=2).argmin(0)
        np.testing.assert_allclose(weights[order], expected[0], atol=0.01)
        np.testing.assert_allclose(means[order], expected[1], atol=0.01)
        factors = factors if covariance_type in ("tied", "tied_diag") else factors[order]
        np.testing.assert_allclose(factors, expected[2], rtol=0.01, atol=0.01)


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


def test_matching_recovers_permutations():
    rng = np.random.default_rng(0)
    labels = rng.integers(5, size=500)
    orders = [rng.permutation(5) for _ in range(4)]
    posteriors = np.stack([np.eye(5)[order[labels]] for order in orders])  # (P, N, K)
    overlap = np.einsum("pni,qnj->piqj", posteriors, posteriors)
    target = match_components(overlap, np.array([0.4, 0.3, 0.2, 0.1]))
    matched = [target[fit][orders[fit][labels]] for fit in range(4)]
    for other in matched[1:]:
        np.testing.assert_array_equal(matched[0], other)
    assert all(sorted(row) == list(range(5)) for row in target)


def test_labels_do_not_depend_on_the_basis_of_the_columns():
    X, truth = groups(n=500, apart=3.0)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0].astype(np.float32)
    first, second = fit_average(X, 3, n_init=8), fit_average(X @ rotation, 3, n_init=8)
    assert adjusted_rand_score(first.labels, second.labels) > 0.99
    assert adjusted_rand_score(truth, first.labels) > 0.8


def test_temperature_gives_the_mean_confidence():
    posterior = np.random.default_rng(0).dirichlet([0.05] * 4, size=3000).astype(np.float32)
    logarithm = module._logarithm(posterior)
    temperature = module._temperature(posterior, 0.7)
    flat = module._tempered(logarithm, temperature)
    assert flat.max(1).mean() == pytest.approx(0.7, abs=2e-3) and temperature > 1
    some = posterior.min(1) > 1e-9
    odds, flattened = (np.log(p[some, 0] / p[some, 1]) for p in (posterior, flat))
    np.testing.assert_allclose(flattened, odds / temperature, rtol=1e-3, atol=1e-4)
    assert module._temperature(posterior, 0.999) == 1  # never sharper than the mixture itself
    assert module._temperature(posterior, 0.1) == pytest.approx(100)


@pytest.mark.parametrize("columns", [(1.0,), (0.5, 1.0)])
def test_posteriors_of_the_fits_are_averaged_and_tempered(monkeypatch, columns):
    X, _ = groups(n=600, apart=3.0)
    monkeypatch.setattr(module, "COLUMNS", columns)
    fits = []
    original = module._Path.fit

    def recording(self, shares):
        found = original(self, shares)
        fits.extend(zip(shares, found, strict=True))
        return found

    monkeypatch.setattr(module._Path, "fit", recording)
    average = fit_average(X, 3, n_init=8)
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
    original = module._temperature
    monkeypatch.setattr(
        module, "_temperature", lambda rows, target: targets.append(target) or original(rows, target)
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
    monkeypatch.setattr(module, "_MOST_ROWS", 600)
    X, truth = groups(n=3000, apart=6.0)
    sizes = []
    original = module._Path.__init__

    def recording(self, X, *args, **options):
        sizes.append(len(X))
        original(self, X, *args, **options)

    monkeypatch.setattr(module._Path, "__init__", recording)
    average = fit_average(X, 3, n_init=6)
    assert sizes == [300] * 4 + [3000] * 2  # two halves for each number of columns, then all rows
    assert (average.evidence.weights > 0).sum(1).tolist() == [1, 1]
    assert adjusted_rand_score(truth, average.labels) > 0.97


def test_halves_of_many_rows_hold_some_rows_of_every_block(monkeypatch):
    monkeypatch.setattr(module, "_MOST_ROWS", 600)
    X = np.arange(3000, dtype=np.float32)[:, None] + np.zeros((1, 2), np.float32)
    X[:, 1] = np.random.default_rng(0).normal(size=3000)
    found = []
    original = module._Path.__init__

    def recording(self, X, *args, **options):
        found.append(np.sort(X[:, 0].numpy()).astype(int))
        original(self, X, *args, **options)

    monkeypatch.setattr(module._Path, "__init__", recording)
    held_out(torch.from_numpy(X), 2, [0.1], n_init=2)
    assert [set(rows // 100) for rows in found] == [set(range(0, 30, 2)), set(range(1, 30, 2))]
    assert all(np.bincount(rows // 100)[rows // 100].min() >= 19 for rows in found)


def test_columns_without_variance_and_few_rows():
    X, _ = groups(n=24, apart=12.0)
    X[:, 3:] = 0
    average = fit_average(X, 3, n_init=4)
    assert np.isfinite(average.probabilities).all() and len(np.unique(average.labels)) == 3


@pytest.fixture(scope="module")
def average():
    return fit_average(groups(n=600, apart=3.0)[0], 3, n_init=8)


@pytest.mark.parametrize("model", [*MODELS, "EEE"])
def test_training_rows_get_the_same_bits_from_a_file_too(tmp_path, model):
    X, _ = groups(n=600, apart=3.0)
    average = fit_average(X, 3, covariance_type=model, n_init=4)
    assert average.evidence.temperature == average.fitted.temperature
    np.testing.assert_array_equal(average.fitted.predict_proba(X), average.probabilities)
    write_model(tmp_path / "m.h5", {"mixture": average.fitted.to_arrays()}, {})
    again = FittedAverage.from_arrays(read_model(tmp_path / "m.h5")[0]["mixture"], model)
    np.testing.assert_array_equal(again.predict_proba(X), average.probabilities)
    assert again.covariance_type == average.fitted.covariance_type


def test_training_rows_get_the_same_bits_of_many_rows(monkeypatch):
    monkeypatch.setattr(module, "_MOST_ROWS", 600)
    X, _ = groups(n=3000, apart=3.0)
    average = fit_average(X, 3, n_init=6)
    np.testing.assert_array_equal(average.fitted.predict_proba(X), average.probabilities)


def test_new_rows_get_the_tempered_average_of_the_posteriors(average):
    new, _ = groups(n=250, apart=3.0, seed=4)
    fitted = average.fitted
    rotated = fitted.axes.rotate(new)
    expected = np.zeros((250, 3))
    for weight, density, target in zip(fitted.weights, fitted.densities, fitted.target, strict=True):
        expected[:, target] += weight * posterior_of(rotated[:, : density[1].shape[1]], density)
    expected = np.maximum(expected, 1e-12) ** (1 / fitted.temperature)
    found = fitted.predict_proba(new)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected / expected.sum(1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(fitted.predict_proba(new[:1]), found[:1], atol=1e-6)
    np.testing.assert_array_equal(fitted.predict_proba(new.astype(np.float64)), found)


def test_rows_are_processed_in_blocks(average, monkeypatch):
    from amilst_lite.cluster import blocks

    X, _ = groups(n=600, apart=3.0)
    sizes = []
    original = module._posteriors

    def recording(*args):
        of_block = original(*args)
        return lambda rows: sizes.append(rows.stop - rows.start) or of_block(rows)

    monkeypatch.setattr(blocks, "_CPU_BLOCK", 1)
    monkeypatch.setattr(module, "_posteriors", recording)
    np.testing.assert_allclose(average.fitted.predict_proba(X), average.probabilities, atol=1e-6)
    assert sorted(sizes) == [88, 256, 256]


def test_components_can_be_reordered_twice(average):
    X, _ = groups(n=600, apart=3.0)
    once = average.fitted.reordered(np.array([2, 0, 1]))
    np.testing.assert_array_equal(once.predict_proba(X), average.probabilities[:, [2, 0, 1]])
    twice = once.reordered(np.array([1, 0, 2]))
    np.testing.assert_array_equal(twice.predict_proba(X), average.probabilities[:, [0, 2, 1]])
    again = FittedAverage.from_arrays(twice.to_arrays(), "tied")
    np.testing.assert_array_equal(again.predict_proba(X), twice.predict_proba(X))


def test_rows_far_away_have_finite_probabilities(average):
    X = np.full((2, 6), 1e6, np.float32)
    found = average.fitted.predict_proba(X)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 7), (6,), (0, 6)])
def test_rows_of_another_shape_are_refused(average, shape):
    with pytest.raises(InputError, match="expected rows of 6 columns, as in training; found shape"):
        average.fitted.predict_proba(np.ones(shape, np.float32))


def changed(arrays, name, value):
    """A copy with one entry replaced, or removed for None; "0/means" is one of the first fit."""
    arrays = {**arrays, "fits": {key: dict(fit) for key, fit in arrays["fits"].items()}}
    place, _, name = name.rpartition("/")
    part = arrays["fits"][place] if place else arrays
    part[name] = value(part[name]) if callable(value) else value
    if part[name] is None:
        del part[name]
    return arrays


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("fits", None, "must have fits 0, 1"),
        ("fits", lambda fits: {**fits, "x": fits["0"]}, "must have fits 0, 1"),
        ("fits", lambda fits: {"0": fits["0"]}, "one number of components and fits"),
        ("fits", lambda fits: {**fits, "0": np.ones(3)}, "arrays in fit 0"),
        ("target", lambda target: target.astype(float), "integers in 'target'"),
        ("target", lambda target: target * 0, "found others"),
        ("target", lambda target: target + 1, "found others"),
        ("order", np.array([0, 1, 3]), "found others"),
        ("order", np.array([0, 1]), "one length K"),
        ("weights", lambda weights: -weights, "found others"),
        ("temperature", np.array(0.5), "temperature of at least 1"),
        ("temperature", np.array(np.inf), "finite"),
        ("axes", lambda axes: axes[:, :2], "found others"),
        ("axes", lambda axes: axes.astype(np.float64), "found others"),
        ("0/means", lambda means: means[:, :1], "one length d"),
        ("0/means", lambda means: means[0], "'means' as an array of 2 dimensions"),
        ("0/factors", lambda factors: -factors, "found others"),
        ("0/factors", lambda factors: factors * np.nan, "finite"),
        ("0/weights", None, "must have the arrays factors, means, weights; found factors, means"),
    ],
)
def test_arrays_that_are_no_average(average, name, value, message):
    arrays = changed(average.fitted.to_arrays(), name, value)
    with pytest.raises(InputError, match=message) as caught:
        FittedAverage.from_arrays(arrays, "tied")
    assert "the mixture of the model must have" in str(caught.value)


def test_many_rows_are_fitted_in_part_and_labeled_in_pieces(monkeypatch):
    X, truth = _blobs_in_blocks(6000)
    whole = fit_average(X, 3, n_init=4)
    monkeypatch.setattr("amilst_lite.cluster.shrinkage._ALL_ROWS", 2000)
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


def test_leading_axes_do_not_depend_on_blocks(monkeypatch):
    X = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32) * [4, 3, 2, 1] + 5
    X = X.astype(np.float32)
    whole = PrincipalAxes.of(X)
    monkeypatch.setattr("amilst_lite.cluster.shrinkage._ALL_ROWS", 64)
    np.testing.assert_allclose(PrincipalAxes.of(X).axes, whole.axes, atol=1e-5)
