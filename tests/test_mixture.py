"""The Gaussian mixture against scikit-learn, R's mclust and closed formulas."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture as Theirs
from sklearn.utils.estimator_checks import parametrize_with_checks

from amilst_lite import GaussianMixture
from amilst_lite.errors import AmilstWarning, InputError, NotFittedError

MODELS = {
    "EII": "tied_spherical", "VII": "spherical", "EEI": "tied_diag", "VVI": "diag", "EEE": "tied", "VVV": "full",
}  # fmt: skip


def blobs(n=300, k=3, d=4, seed=0, apart=6.0):
    rng = np.random.default_rng(seed)
    truth = np.arange(n) % k
    spread = rng.normal(size=(d, d)) * 0.4 + np.eye(d)
    return (apart * np.eye(k, d)[truth] + rng.normal(size=(n, d)) @ spread).astype(np.float32), truth


@parametrize_with_checks([GaussianMixture(n_init=2, max_iter=50)])
def test_scikit_learn_checks(estimator, check):
    with warnings.catch_warnings():
        # the checks ask for components that tiny data cannot fill; that we say so is right
        warnings.simplefilter("ignore", AmilstWarning)
        check(estimator)


@pytest.mark.parametrize("name", ["tied", "full", "diag", "spherical"])
def test_reaches_scikit_learns_likelihood(name):
    X, truth = blobs()
    ours = GaussianMixture(3, covariance_type=name, n_init=10).fit(X)
    theirs = Theirs(3, covariance_type=name, n_init=10, random_state=0, tol=1e-6, max_iter=500).fit(X)
    assert ours.score(X) >= theirs.score(X) - 1e-3
    assert adjusted_rand_score(truth, ours.predict(X)) > 0.9
    assert ours.n_parameters_ == theirs._n_parameters()
    assert ours.bic(X) == pytest.approx(
        -2 * ours.score(X) * len(X) + ours.n_parameters_ * np.log(len(X)), rel=1e-6
    )
    assert ours.aic(X) == pytest.approx(-2 * ours.score(X) * len(X) + 2 * ours.n_parameters_, rel=1e-6)


def test_density_is_the_formula():
    X, _ = blobs()
    mixture = GaussianMixture(3, n_init=5).fit(X)
    joint = np.stack(
        [
            np.log(w) + multivariate_normal(m, mixture.covariances_).logpdf(X.astype(np.float64))
            for w, m in zip(mixture.weights_, mixture.means_, strict=True)
        ],
        axis=1,
    )
    expected = np.logaddexp.reduce(joint, axis=1)
    np.testing.assert_allclose(mixture.score_samples(X), expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(mixture.predict_proba(X), np.exp(joint - expected[:, None]), atol=1e-3)
    assert mixture.lower_bound_ == pytest.approx(expected.mean(), rel=1e-5)
    assert mixture.log_likelihood_ == pytest.approx(expected.sum(), rel=1e-5)
    precision = mixture.precisions_cholesky_ @ mixture.precisions_cholesky_.T
    np.testing.assert_allclose(precision @ mixture.covariances_, np.eye(4), atol=1e-4)


@pytest.mark.parametrize(("mclust", "ours"), MODELS.items())
def test_both_families_of_names_mean_the_same(mclust, ours):
    X, _ = blobs()
    first = GaussianMixture(3, covariance_type=mclust, n_init=3).fit(X)
    second = GaussianMixture(3, covariance_type=ours, n_init=3).fit(X)
    np.testing.assert_array_equal(first.means_, second.means_)
    np.testing.assert_array_equal(first.covariances_, second.covariances_)


@pytest.mark.parametrize("file", ["iris", "starmap_pca15", "her2st_B1_pca10"])
def test_against_mclust(shared_dir, file):
    path = shared_dir / "golden" / f"mclust_{file}.npz"
    if not path.exists():
        pytest.skip(f"no {path.name}")
    with np.load(path) as golden:
        X, k = golden["X"], int(golden["G"])
        for name in MODELS:
            mixture = GaussianMixture(k, covariance_type=name).fit(X)
            theirs = float(golden[f"{name}/loglik"])
            assert mixture.log_likelihood_ >= theirs - 1e-3 * abs(theirs), name
            assert mixture.n_parameters_ == int(golden[f"{name}/n_parameters"]), name
            if abs(mixture.log_likelihood_ - theirs) <= 1e-4 * abs(theirs):
                assert adjusted_rand_score(golden[f"{name}/labels"], mixture.predict(X)) >= 0.98, name


def test_spherical_prior_runs_from_tied_to_spherical():
    X, _ = blobs(n=120)
    tied = GaussianMixture(3, n_init=5).fit(X)
    sphere = GaussianMixture(3, covariance_type="tied_spherical", n_init=5).fit(X)
    weak = GaussianMixture(3, n_init=5, covariance_prior=1e-3).fit(X)
    strong = GaussianMixture(3, n_init=5, covariance_prior=1e7).fit(X)
    np.testing.assert_allclose(weak.covariances_, tied.covariances_, rtol=1e-2, atol=1e-2)
    off_diagonal = strong.covariances_ - np.diag(np.diag(strong.covariances_))
    assert np.abs(off_diagonal).max() < 1e-3 * strong.covariances_[0, 0]
    assert strong.covariances_[0, 0] == pytest.approx(sphere.covariances_, rel=0.02)


def test_beginning_from_given_labels():
    X, truth = blobs()
    by_labels = GaussianMixture(3).fit(X, init=truth)
    by_share = GaussianMixture(3).fit(X, init=np.eye(3)[truth])
    np.testing.assert_allclose(by_labels.means_, by_share.means_, rtol=1e-4, atol=1e-4)
    assert adjusted_rand_score(truth, by_labels.predict(X)) > 0.9
    with pytest.raises(InputError):
        GaussianMixture(3).fit(X, init=truth[:-1])


def test_same_seed_same_bits_and_generators_untouched():
    X, _ = blobs(apart=2.0)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = (GaussianMixture(4, random_state=3, n_init=8).fit(X) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    np.testing.assert_array_equal(first.means_, second.means_)
    np.testing.assert_array_equal(first.predict_proba(X), second.predict_proba(X))


def test_scale_and_dtype_of_the_data_do_not_matter():
    X, _ = blobs()
    plain = GaussianMixture(3, n_init=5).fit_predict(X)
    for other in (X.astype(np.float64), torch.from_numpy(X), X * np.float32(1e-4), X * np.float32(1e5) + 1e6):
        assert adjusted_rand_score(plain, GaussianMixture(3, n_init=5).fit_predict(other)) > 0.98


def test_many_rows_are_searched_on_a_part_and_finished_on_all():
    X, truth = blobs(n=30_000, k=4)
    mixture = GaussianMixture(4, n_init=4, batch_size=3000).fit(X)
    assert adjusted_rand_score(truth, mixture.predict(X)) > 0.9
    assert mixture.predict_proba(X).shape == (30_000, 4)


def test_samples_look_like_the_mixture():
    X, _ = blobs()
    mixture = GaussianMixture(3, n_init=5).fit(X)
    drawn, labels = mixture.sample(20_000)
    np.testing.assert_allclose(np.bincount(labels) / 20_000, mixture.weights_, atol=0.02)
    for k in range(3):
        np.testing.assert_allclose(drawn[labels == k].mean(0), mixture.means_[k], atol=0.12)


def test_too_few_different_rows_warn():
    X = np.repeat(np.eye(2, 3, dtype=np.float32), 20, axis=0)
    with pytest.warns(AmilstWarning, match="only 2"):
        GaussianMixture(4, n_init=3).fit(X)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(3, 40),
    d=st.integers(1, 5),
    k=st.integers(1, 3),
    kind=st.sampled_from(["random", "repeated", "line", "constant column"]),
    model=st.sampled_from(list(MODELS)),
    seed=st.integers(0, 99),
)
def test_odd_data_give_finite_results(n, d, k, kind, model, seed):
    X = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    if kind == "repeated":
        X[1::2] = X[: len(X[1::2])]
    if kind == "line":
        X = np.outer(np.arange(n), np.ones(d)).astype(np.float32)
    if kind == "constant column":
        X[:, 0] = 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AmilstWarning)
        mixture = GaussianMixture(k, covariance_type=model, n_init=2, max_iter=20).fit(X)
    probabilities = mixture.predict_proba(X)
    assert np.isfinite(probabilities).all()
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-4)
    assert np.array_equal(probabilities.argmax(1), mixture.predict(X))


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (np.full((10, 2), np.nan), {}),
        (np.ones((2, 2)), {"n_components": 3}),
        (np.ones((10, 2)), {"covariance_type": "XYZ"}),
        (np.ones((10, 2)), {"n_components": 0}),
        (np.ones((10, 2)), {"n_init": 0}),
        (np.ones((10, 2)), {"covariance_prior": -1.0}),
        (np.ones(10), {}),
    ],
)
def test_wrong_input(data, options):
    with pytest.raises(InputError):
        GaussianMixture(**{"n_components": 2, **options}).fit(data)


def test_not_fitted():
    with pytest.raises(NotFittedError):
        GaussianMixture(2).predict(np.ones((3, 2)))
