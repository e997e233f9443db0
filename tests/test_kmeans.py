"""KMeans against scikit-learn."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans as Theirs
from sklearn.utils.estimator_checks import parametrize_with_checks

from amilst_lite import KMeans
from amilst_lite.errors import AmilstWarning, InputError, NotFittedError


def cloud(n=400, d=5, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) + 3 * rng.normal(size=(6, d))[np.arange(n) % 6]).astype(np.float32)


@parametrize_with_checks([KMeans(n_init=2, n_clusters=3)])
def test_scikit_learn_checks(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AmilstWarning)
        check(estimator)


@pytest.mark.parametrize("k", [2, 6, 15])
def test_inertia_is_no_worse_than_scikit_learns(k):
    X = cloud()
    ours, theirs = KMeans(k, n_init=10, random_state=0).fit(X), Theirs(k, n_init=10, random_state=0).fit(X)
    assert ours.inertia_ <= theirs.inertia_ * 1.001


@pytest.mark.parametrize("file", ["iris", "starmap_pca15", "her2st_B1_pca10", "mpfc_BZ5_embedding"])
def test_inertia_on_golden_matrices(shared_dir, file):
    path = shared_dir / "golden" / f"mclust_{file}.npz"
    if not path.exists():
        pytest.skip(f"no {path.name}")
    with np.load(path) as golden:
        X, k = golden["X"], int(golden["G"])
    for seed in range(3):
        ours, theirs = (
            make(k, n_init=10, random_state=seed).fit(X).inertia_ for make in (KMeans, Theirs)
        )  # fmt: skip
        assert ours <= theirs * 1.001


def test_fitted_attributes_agree_with_each_other():
    X = cloud()
    kmeans = KMeans(6, random_state=1).fit(X)
    distances = ((X[:, None] - kmeans.cluster_centers_[None]) ** 2).sum(-1)
    np.testing.assert_array_equal(kmeans.labels_, distances.argmin(1))
    assert kmeans.inertia_ == pytest.approx(distances.min(1).sum(), rel=1e-4)
    np.testing.assert_allclose(kmeans.transform(X), np.sqrt(distances), rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(kmeans.predict(X), kmeans.labels_)
    assert kmeans.score(X) == pytest.approx(-kmeans.inertia_, rel=1e-4)


def test_same_seed_same_bits_and_generators_untouched():
    X = cloud()
    state = torch.get_rng_state()
    first, second = (KMeans(6, random_state=2).fit(X) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(first.cluster_centers_, second.cluster_centers_)


def test_many_rows():
    X = cloud(n=30_000)
    ours = KMeans(6, n_init=3, batch_size=3000, random_state=0).fit(X)
    theirs = Theirs(6, n_init=3, random_state=0).fit(X)
    assert ours.inertia_ <= theirs.inertia_ * 1.01
    assert len(np.unique(ours.labels_)) == 6


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(2, 40),
    d=st.integers(1, 4),
    k=st.integers(1, 6),
    repeat=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_cluster_has_rows_where_there_are_enough_different_ones(n, d, k, repeat, seed):
    X = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    if repeat:
        X[1::2] = X[: len(X[1::2])]
    if n < k:
        with pytest.raises(InputError):
            KMeans(k, n_init=2).fit(X)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AmilstWarning)
        labels = KMeans(k, n_init=2).fit_predict(X)
    assert len(np.unique(labels)) == min(k, len(np.unique(X, axis=0)))


def test_wrong_input():
    with pytest.raises(InputError):
        KMeans(3).fit(np.full((10, 2), np.inf))
    with pytest.raises(InputError):
        KMeans(0).fit(np.ones((10, 2)))
    with pytest.raises(NotFittedError):
        KMeans(2).predict(np.ones((3, 2)))
