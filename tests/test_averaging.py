"""The average of several mixtures, on rows of training and on others."""

import numpy as np
import pytest
from mixtures import MODELS, groups, most_rows, posterior_of

from amilst_lite.cluster import averaging
from amilst_lite.cluster.averaging import FittedAverage, PrincipalAxes, match_components
from amilst_lite.cluster.shrinkage import fit_average
from amilst_lite.errors import InputError
from amilst_lite.model_file import read_model, write_model


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


def test_temperature_gives_the_mean_confidence():
    posterior = np.random.default_rng(0).dirichlet([0.05] * 4, size=3000).astype(np.float32)
    logarithm = averaging._logarithm(posterior)
    temperature = averaging.temperature_for(posterior, 0.7)
    flat = averaging._tempered(logarithm, temperature)
    assert flat.max(1).mean() == pytest.approx(0.7, abs=2e-3) and temperature > 1
    some = posterior.min(1) > 1e-9
    odds, flattened = (np.log(p[some, 0] / p[some, 1]) for p in (posterior, flat))
    np.testing.assert_allclose(flattened, odds / temperature, rtol=1e-3, atol=1e-4)
    assert averaging.temperature_for(posterior, 0.999) == 1  # never sharper than the mixture itself
    assert averaging.temperature_for(posterior, 0.1) == pytest.approx(100)


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
    most_rows(monkeypatch, 600)
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
    original = averaging._posteriors

    def recording(*args):
        of_block = original(*args)
        return lambda rows: sizes.append(rows.stop - rows.start) or of_block(rows)

    monkeypatch.setattr(blocks, "_CPU_BLOCK", 1)
    monkeypatch.setattr(averaging, "_posteriors", recording)
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


def test_leading_axes_do_not_depend_on_blocks(monkeypatch):
    X = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32) * [4, 3, 2, 1] + 5
    X = X.astype(np.float32)
    whole = PrincipalAxes.of(X)
    monkeypatch.setattr(averaging, "ROWS_AT_A_TIME", 64)
    np.testing.assert_allclose(PrincipalAxes.of(X).axes, whole.axes, atol=1e-5)
