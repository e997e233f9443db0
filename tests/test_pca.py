"""PCA against scikit-learn and the dense formula, for every kind of input and every solver."""

import h5py
import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA as SklearnPCA
from sklearn.utils.estimator_checks import parametrize_with_checks

import amilst_lite.preprocess.pca as decomposition
from amilst_lite.errors import InputError, NotFittedError
from amilst_lite.preprocess.pca import PCA

CUDA = pytest.param(
    "cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA")]
)


def counts(n, d, rank=6, zeros=0.6, seed=0):
    """Non-negative, mostly zero, of low rank plus noise; columns of different scale."""
    random = np.random.default_rng(seed)
    low = random.gamma(1.0, 1.0, (n, rank)) @ random.gamma(1.0, 1.0, (rank, d))
    X = (low + 0.1 * random.random((n, d))) * random.gamma(2.0, 1.0, d)
    return np.where(random.random((n, d)) < zeros, 0, X)


def dense_oracle(X, k, center, scale, clip):
    """Components by the definition: standardize, clip, center, SVD."""
    z = X - X.mean(0) if center else X
    if scale:
        deviation = X.std(0, ddof=1)
        z = z / np.where(deviation > 0, deviation, 1)
    if clip is not None:
        z = z.clip(-clip, clip)
    if center:
        z = z - z.mean(0)
    _, singular, axes = np.linalg.svd(z, full_matrices=False)
    return z, singular, axes[:k]


@pytest.mark.filterwarnings("ignore::amilst_lite.errors.AmilstWarning")
@parametrize_with_checks([PCA(), PCA(2, scale=True, clip=2.0, solver="randomized")])
def test_scikit_learn_estimator_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("shape", [(300, 40), (40, 300)], ids=["tall", "wide"])
@pytest.mark.parametrize("kind", ["array", "csr", "csc", "tensor"])
@pytest.mark.parametrize(
    ("center", "scale", "clip"),
    [(True, False, None), (True, True, None), (True, True, 1.5), (False, False, None), (False, True, 1.0)],
)
def test_exact_solver_equals_dense_formula(shape, kind, center, scale, clip):
    X = counts(*shape)
    z, singular, axes = dense_oracle(X, 5, center, scale, clip)
    converted = {
        "array": X,
        "csr": scipy.sparse.csr_matrix(X),
        "csc": scipy.sparse.csc_array(X),
        "tensor": torch.from_numpy(X),
    }[kind]
    pca = PCA(5, center=center, scale=scale, clip=clip, solver="exact").fit(converted)
    assert pca.solver_ == "exact"
    assert np.allclose(pca.singular_values_, singular[:5], rtol=1e-9)
    assert np.allclose(pca.explained_variance_, singular[:5] ** 2 / (len(X) - 1), rtol=1e-9)
    assert np.allclose(pca.explained_variance_ratio_, singular[:5] ** 2 / (singular**2).sum(), rtol=1e-9)
    signs = np.sign((pca.components_ * axes).sum(1))
    assert np.allclose(pca.components_, axes * signs[:, None], atol=1e-8)
    assert np.allclose(pca.transform(converted), z @ axes.T * signs, atol=1e-7 * singular[0])


@pytest.mark.parametrize("kind", ["array", "csr"])
@pytest.mark.parametrize(
    ("center", "scale", "clip"), [(True, False, None), (True, True, 1.5), (False, True, None)]
)
def test_randomized_solver_is_close(kind, center, scale, clip):
    X = counts(500, 200, zeros=0.2)
    _, singular, _ = dense_oracle(X, 5, center, scale, clip)
    pca = PCA(5, center=center, scale=scale, clip=clip, solver="randomized")
    pca.fit(X if kind == "array" else scipy.sparse.csr_matrix(X))
    assert np.allclose(pca.singular_values_, singular[:5], rtol=1e-3)
    assert np.allclose(pca.explained_variance_ratio_, singular[:5] ** 2 / (singular**2).sum(), rtol=2e-3)
    assert np.allclose(pca.components_ @ pca.components_.T, np.eye(5), atol=1e-10)


def test_agrees_with_scikit_learn_in_float32():
    X = counts(400, 60).astype(np.float32)
    ours, theirs = PCA(8).fit(X), SklearnPCA(8, svd_solver="full").fit(X.astype(float))
    assert ours.components_.dtype == ours.transform(X).dtype == np.float32
    assert np.allclose(ours.explained_variance_, theirs.explained_variance_, rtol=1e-5)
    assert np.allclose(np.abs((ours.components_ * theirs.components_).sum(1)), 1, atol=1e-5)
    assert np.allclose(ours.mean_, theirs.mean_, rtol=1e-6)


@pytest.mark.parametrize("solver", ["exact", "randomized"])
def test_far_from_the_origin(solver):
    random = np.random.default_rng(0)
    X = random.standard_normal((500, 4)) @ random.standard_normal((4, 20))
    near, far = PCA(4, solver=solver).fit(X), PCA(4, solver=solver).fit(X + 1e7)
    assert np.allclose(near.explained_variance_, far.explained_variance_, rtol=1e-6)
    single = PCA(4, solver=solver).fit((X + 1000).astype(np.float32))
    assert np.allclose(near.explained_variance_, single.explained_variance_, rtol=1e-3)


@pytest.mark.parametrize("solver", ["exact", "randomized"])
@pytest.mark.parametrize("clip", [None, 2.0])
def test_chunks_give_same_result_as_matrix(tmp_path, solver, clip):
    X = counts(700, 30)
    options = {"scale": True, "clip": clip, "solver": solver}
    whole = PCA(4, **options).fit(X)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["X"] = X
        from_file = PCA(4, **options).fit_chunks(file["X"])
        scores = from_file.transform_chunks(file["X"])
    parts = [X[:100], scipy.sparse.csr_matrix(X[100:450]), X[450:]]
    from_parts = PCA(4, **options).fit_chunks(lambda: iter(parts))
    for pca in (from_file, from_parts):
        assert np.allclose(pca.explained_variance_, whole.explained_variance_, rtol=1e-8)
        assert np.allclose(pca.components_, whole.components_, atol=1e-7)
        assert pca.n_samples_ == 700 and pca.n_features_in_ == 30
    assert np.allclose(scores, whole.transform(X), atol=1e-6)


def test_invalid_chunks():
    with pytest.raises(InputError, match="found none"):
        PCA(2).fit_chunks(lambda: iter([]))
    with pytest.raises(InputError, match="NaN"):
        PCA(2).fit_chunks(lambda: iter([np.ones((5, 3)), np.full((5, 3), np.nan)]))


@pytest.mark.parametrize("shape", [(20_000, 500), (1500, 8000)], ids=["tall", "wide"])
@pytest.mark.parametrize("solver", ["exact", "randomized"])
def test_sparse_matrix_is_not_converted_to_dense(monkeypatch, shape, solver):
    X = scipy.sparse.random(*shape, density=0.01, format="csr", dtype=np.float32, random_state=0)
    largest = 0
    dense = decomposition.dense_block

    def recorded(block, device):
        nonlocal largest
        largest = max(largest, block.shape[0] * block.shape[1])
        return dense(block, device)

    monkeypatch.setattr(decomposition, "dense_block", recorded)
    PCA(3, scale=True, clip=5.0, solver=solver).fit_transform(X)
    assert 0 < largest <= 8 * decomposition._CPU_BLOCK < X.shape[0] * X.shape[1] / 2


def test_sparse_and_dense_give_same_bits():
    X = counts(200, 50)
    ours = PCA(3, scale=True, clip=1.0).fit(X)
    assert np.array_equal(
        ours.components_, PCA(3, scale=True, clip=1.0).fit(scipy.sparse.csr_matrix(X)).components_
    )


@pytest.mark.parametrize("solver", ["exact", "randomized"])
def test_same_seed_same_bits_without_global_generators(solver):
    X = counts(300, 80)
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002 - the global generator is tested
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = (PCA(4, solver=solver, random_state=7).fit(X) for _ in range(2))
    assert np.array_equal(first.components_, second.components_)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    largest = np.abs(first.components_).argmax(1)
    assert (first.components_[np.arange(4), largest] > 0).all()


def test_input_is_not_modified():
    X = counts(100, 20)
    for matrix in (X.copy(), scipy.sparse.csr_matrix(X), torch.from_numpy(X.copy())):
        PCA(3, scale=True, clip=1.0).fit_transform(matrix)
        values = matrix.toarray() if scipy.sparse.issparse(matrix) else np.asarray(matrix)
        assert np.array_equal(values, X)


def test_components_beyond_the_rank_are_orthonormal():
    random = np.random.default_rng(0)
    for shape in ((30, 12), (12, 30)):
        X = random.standard_normal((shape[0], 2)) @ random.standard_normal((2, shape[1]))
        pca = PCA(8).fit(X)
        assert np.allclose(pca.components_ @ pca.components_.T, np.eye(8), atol=1e-8)
        assert np.allclose(pca.explained_variance_[2:], 0, atol=1e-9)


def test_constant_columns():
    X = counts(60, 6)
    X[:, 2] = 0.1
    pca = PCA(3, scale=True).fit(X)
    assert pca.scale_[2] == 1
    assert np.allclose(pca.components_[:, 2], 0, atol=1e-10)
    nothing = PCA(2, scale=True).fit(np.full((10, 4), 0.1))
    assert np.allclose(nothing.explained_variance_, 0) and np.isfinite(nothing.components_).all()


def test_n_components_above_the_smaller_side():
    assert PCA(30).fit(counts(50, 8)).n_components_ == 8
    assert PCA(30).fit(counts(8, 50)).components_.shape == (8, 50)


def test_inverse_transform():
    X = counts(80, 10)
    for scale in (False, True):
        pca = PCA(10, scale=scale).fit(X)
        assert np.allclose(pca.inverse_transform(pca.transform(X)), X)
    with pytest.raises(InputError, match="10 columns of scores"):
        pca.inverse_transform(X[:, :3])


def test_auto_selects_the_solver_by_cost():
    assert PCA(5).fit(counts(200, 30)).solver_ == "exact"
    pca = PCA(5)
    assert pca._choose_solver(1_000_000, 100, False) == "exact"
    assert pca._choose_solver(100_000, 20_000, False) == "randomized"
    assert pca._choose_solver(None, 2000, False) == "exact"
    assert PCA(5, solver="randomized")._choose_solver(10, 10, False) == "randomized"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_components": 0}, "n_components"),
        ({"n_components": 2.5}, "n_components"),
        ({"n_components": True}, "n_components"),
        ({"clip": -1.0}, "clip"),
        ({"solver": "fast"}, "solver"),
        ({"random_state": -1}, "random_state"),
        ({"device": "mps"}, "device"),
        ({"device": "unknown"}, "device"),
    ],
)
def test_invalid_parameters(options, message):
    with pytest.raises(InputError, match=message):
        PCA(**options).fit(counts(20, 5))


def test_invalid_input():
    X = counts(20, 5)
    with pytest.raises(NotFittedError):
        PCA().transform(X)
    with pytest.raises(InputError, match="NaN"):
        PCA().fit(np.where(X.max() == X, np.nan, X))
    with pytest.raises(InputError, match="at least 2 rows"):
        PCA().fit(X[:1])
    with pytest.raises(InputError, match="features"):
        PCA(2).fit(X).transform(X[:, :3])


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(2, 40),
    d=st.integers(1, 25),
    k=st.integers(1, 6),
    seed=st.integers(0, 10_000),
    repeated=st.booleans(),
    constant=st.booleans(),
    solver=st.sampled_from(["exact", "randomized"]),
)
def test_scores_have_the_explained_variances(n, d, k, seed, repeated, constant, solver):
    X = counts(n, d, rank=3, seed=seed)
    if repeated:
        X[n // 2 :] = X[0]
    if constant:
        X[:, 0] = 3.0
    pca = PCA(k, scale=True, solver=solver).fit(X)
    scores = pca.transform(X)
    size = 1e-8 * (1 + d)
    assert np.allclose(scores.mean(0), 0, atol=size)
    assert np.allclose(scores.var(0, ddof=1), pca.explained_variance_, atol=size)
    assert np.allclose(pca.components_ @ pca.components_.T, np.eye(pca.n_components_), atol=1e-7)
    assert (np.diff(pca.explained_variance_) <= size).all()
    assert pca.explained_variance_ratio_.sum() <= 1 + 1e-9


@pytest.mark.parametrize("device", [CUDA])
def test_devices_agree(device):
    X = counts(3000, 400).astype(np.float32)
    for solver in ("exact", "randomized"):
        here = PCA(5, scale=True, clip=3.0, solver=solver).fit(X)
        there = PCA(5, scale=True, clip=3.0, solver=solver, device=device).fit(X)
        assert np.allclose(here.explained_variance_, there.explained_variance_, rtol=1e-4)
        assert np.allclose(np.abs((here.components_ * there.components_).sum(1)), 1, atol=1e-3)


def test_signs_do_not_depend_on_the_order_of_the_rows():
    """One-hot types of equal frequency give a component with two opposite entries of equal size."""
    rng = np.random.default_rng(0)
    types = rng.permutation(np.repeat(np.arange(5), [1500, 1500, 700, 300, 100]))
    X = (0.37 * np.eye(5)[types]).astype(np.float32)
    components = PCA(4).fit(X).components_
    sizes = np.sort(np.abs(components), axis=1)
    assert (sizes[:, -1] - sizes[:, -2]).min() < 1e-5
    for seed in range(20):
        shuffled = X[np.random.default_rng(seed).permutation(len(X))]
        np.testing.assert_allclose(PCA(4).fit(shuffled).components_, components, atol=1e-5)
