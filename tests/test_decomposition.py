"""PCA against scikit-learn and the singular value decomposition."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.decomposition import PCA as Theirs
from sklearn.utils.estimator_checks import parametrize_with_checks

from amilst_lite import PCA
from amilst_lite.errors import InputError, NotFittedError


def matrix(n=200, d=60, seed=0, density=0.3):
    rng = np.random.default_rng(seed)
    low = rng.gamma(1.0, 1.0, (n, 8)) @ rng.gamma(0.5, 1.0, (8, d))
    return (rng.poisson(low) * (rng.random((n, d)) < density)).astype(np.float32)


@parametrize_with_checks([PCA(2)])
def test_scikit_learn_checks(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)


@pytest.mark.parametrize("solver", ["exact", "randomized"])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix, torch.from_numpy])
@pytest.mark.parametrize("shape", [(200, 60), (40, 150)])
def test_follows_scikit_learn(solver, form, shape):
    X = matrix(*shape)
    ours, theirs = PCA(6, solver=solver).fit(form(X)), Theirs(6, svd_solver="full").fit(X.astype(np.float64))
    np.testing.assert_allclose(ours.explained_variance_, theirs.explained_variance_, rtol=2e-3)
    np.testing.assert_allclose(ours.explained_variance_ratio_, theirs.explained_variance_ratio_, rtol=2e-3)
    np.testing.assert_allclose(ours.singular_values_, theirs.singular_values_, rtol=2e-3)
    np.testing.assert_allclose(ours.mean_, X.mean(0), rtol=1e-4, atol=1e-5)
    cosines = np.abs((ours.components_[:3] * theirs.components_[:3]).sum(1))
    np.testing.assert_allclose(cosines, 1, atol=5e-3)
    scores = ours.transform(form(X))
    np.testing.assert_allclose(scores, (X - X.mean(0)) @ ours.components_.T, rtol=1e-2, atol=5e-3)


@pytest.mark.parametrize("clip", [None, 1.5])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_scaling_and_clipping_are_those_of_a_dense_matrix(form, clip):
    X = matrix()
    X[:, 4] = 2  # a constant column is centred and left at zero
    dense = X - X.mean(0, dtype=np.float64)
    spread = dense.std(0, ddof=1)
    dense /= np.where(spread > 1e-9, spread, 1)
    if clip is not None:
        dense = np.clip(dense, -clip, clip)
    ours = PCA(5, scale=True, clip=clip).fit(form(X))
    values = np.linalg.svd(dense - dense.mean(0), compute_uv=False)[:5]
    np.testing.assert_allclose(ours.singular_values_, values, rtol=2e-3)


def test_chunks_give_the_same_as_the_whole():
    X = matrix()
    whole = PCA(5, scale=True).fit(X)
    chunked = PCA(5, scale=True).fit_chunks(
        lambda: (sparse.csr_matrix(X[i : i + 50]) for i in range(0, 200, 50))
    )
    np.testing.assert_allclose(np.abs(chunked.components_), np.abs(whole.components_), atol=2e-3)
    np.testing.assert_allclose(chunked.explained_variance_, whole.explained_variance_, rtol=1e-3)


def test_inverse_transform_recovers_a_matrix_of_low_rank():
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(80, 4)) @ rng.normal(size=(4, 20)) + 5).astype(np.float32)
    pca = PCA(4)
    np.testing.assert_allclose(pca.inverse_transform(pca.fit_transform(X)), X, atol=1e-3)


def test_signs_and_bits_repeat():
    X = matrix()
    first, second = PCA(5).fit(X), PCA(5).fit(X)
    np.testing.assert_array_equal(first.components_, second.components_)
    largest = np.abs(first.components_).argmax(1)
    assert (first.components_[np.arange(5), largest] > 0).all()
    flipped = PCA(5).fit(X[::-1].copy())
    np.testing.assert_allclose(flipped.components_[:3], first.components_[:3], atol=5e-3)


def test_generators_are_left_alone():
    state = torch.get_rng_state()
    PCA(5, solver="randomized", random_state=3).fit(matrix())
    assert torch.equal(torch.get_rng_state(), state)


def test_sparse_input_is_never_dense_as_a_whole():
    import tracemalloc

    X = sparse.random(20_000, 4_000, 0.002, format="csr", dtype=np.float32, random_state=0)  # dense: 320 MB
    tracemalloc.start()
    PCA(5, solver="randomized").fit(X)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(2, 30),
    d=st.integers(1, 30),
    k=st.integers(1, 10),
    seed=st.integers(0, 99),
    scale=st.booleans(),
)
def test_components_are_orthonormal_and_variances_fall(n, d, k, seed, scale):
    X = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    pca = PCA(min(k, n, d), scale=scale).fit(X)
    assert np.isfinite(pca.components_).all()
    rank = int((pca.explained_variance_ > 1e-4 * pca.explained_variance_[0]).sum())
    kept = pca.components_[:rank]
    np.testing.assert_allclose(kept @ kept.T, np.eye(rank), atol=1e-3)
    assert (np.diff(pca.explained_variance_) <= 1e-5 * pca.explained_variance_[0]).all()


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (np.full((10, 3), np.nan), {}),
        (np.ones((10, 3)), {"n_components": 0}),
        (np.ones((10, 3)), {"solver": "lucky"}),
    ],
)
def test_wrong_input(data, options):
    with pytest.raises(InputError):
        PCA(**{"n_components": 2, **options}).fit(data)


def test_not_fitted():
    with pytest.raises(NotFittedError):
        PCA(2).transform(np.ones((3, 3)))
