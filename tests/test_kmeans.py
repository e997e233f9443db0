"""KMeans against scikit-learn and the dense formulas."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans as SklearnKMeans
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch.utils._python_dispatch import TorchDispatchMode

from amilst_lite.cluster import KMeans
from amilst_lite.cluster.kmeans import _draw, assign, improve, lloyd, plus_plus
from amilst_lite.errors import AmilstWarning, InputError, NotFittedError
from amilst_lite.runtime import make_generator

CUDA = pytest.param(
    "cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA")]
)
GOLDEN = ["her2st_B1_pca10", "iris", "mpfc_BZ5_embedding", "starmap_pca15"]


def blobs(n=600, d=5, k=4, seed=0, distance=6.0):
    random = np.random.default_rng(seed)
    labels = random.integers(k, size=n)
    return distance * random.standard_normal((k, d))[labels] + random.standard_normal((n, d)), labels


@pytest.mark.filterwarnings("ignore::amilst_lite.errors.AmilstWarning")
@parametrize_with_checks([KMeans()])
def test_scikit_learn_estimator_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("n_init", [1, 10])
def test_inertia_at_most_that_of_scikit_learn(shared_dir, name, n_init):
    path = shared_dir / "golden" / f"mclust_{name}.npz"
    if not path.exists():
        pytest.skip(f"no {path.name}")
    with np.load(path) as file:
        X, k = file["X"], int(file["G"])
    for seed in range(3):
        ours = KMeans(k, n_init=n_init, random_state=seed).fit(X)
        theirs = SklearnKMeans(k, n_init=n_init, random_state=seed).fit(X)
        assert ours.inertia_ <= 1.001 * theirs.inertia_


def test_assign_equals_dense_formulas():
    X, _ = blobs(n=3000)
    X = torch.from_numpy(X).float()
    centers = plus_plus(X, 4, 6, make_generator(0))
    assert centers.shape == (6, 4, 5)
    labels, distances, counts, sums = assign(X, centers)
    squared = (X[None, :, None] - centers[:, None]).square().sum(-1)  # (R, n, K)
    smallest, nearest = squared.min(-1)
    assert torch.equal(labels.long(), nearest)
    assert torch.allclose(distances + X.square().sum(1), smallest, atol=1e-3)
    for restart in range(6):
        for k in range(4):
            members = nearest[restart] == k
            assert counts[restart, k] == members.sum()
            assert torch.allclose(sums[restart, k], X[members].sum(0).double(), rtol=1e-4, atol=1e-2)


def test_plus_plus_centers_are_distant_rows():
    X, labels = blobs(distance=50.0)
    X = torch.from_numpy(X).float()
    for centers in plus_plus(X, 4, 8, make_generator(1)):
        rows = torch.cdist(centers, X, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
        assert torch.equal(X[rows], centers)
        assert len(set(labels[rows.numpy()])) == 4


def test_draw_is_proportional_and_exact():
    weights = torch.tensor([[0.0, 3.0, 0.0, 1.0, 4.0], [0.0, 0.0, 1e-30, 0.0, 1e-30]])
    draws = ((torch.arange(1000) + 0.5) / 1000).repeat(2, 1)
    rows = _draw(weights, draws)
    assert np.array_equal(np.bincount(rows[0]), [0, 375, 0, 125, 500])
    assert np.array_equal(np.bincount(rows[1]), [0, 0, 500, 0, 500])


class CumulativeSums(TorchDispatchMode):
    """Records the dtypes of all cumulative sums."""

    def __init__(self):
        super().__init__()
        self.dtypes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "cumsum" in str(function):
            self.dtypes.append(args[0].dtype)
        return function(*args, **(kwargs or {}))


def test_cumulative_sums_are_over_integers():
    """On a GPU, those of floats differ from run to run and are refused by deterministic algorithms."""
    with CumulativeSums() as recorded:
        KMeans(4, n_init=2).fit(blobs()[0])
    assert len(recorded.dtypes) >= 4
    assert not any(dtype.is_floating_point for dtype in recorded.dtypes)


def test_lloyd_and_improve_do_not_increase_inertia():
    X, _ = blobs(k=8, distance=2.0)
    X = torch.from_numpy(X).float()
    centers = plus_plus(X, 8, 3, make_generator(0))
    before = None
    for _ in range(6):
        centers, inertia, _ = lloyd(X, centers, 1, 0.0)
        assert before is None or (inertia <= before * (1 + 1e-6)).all()
        before = inertia
    _, better = improve(X, centers[0], inertia[0], 0.0, make_generator(0))
    assert better <= inertia[0]


def test_fitted_attributes_are_consistent():
    X, truth = blobs()
    kmeans = KMeans(4).fit(X)
    assert adjusted_rand_score(truth, kmeans.labels_) == 1
    assert kmeans.labels_.dtype == np.int64
    assert np.array_equal(kmeans.labels_, kmeans.predict(X))
    assert np.array_equal(kmeans.labels_, KMeans(4).fit_predict(X))
    distances = kmeans.transform(X)
    assert np.allclose(distances, np.linalg.norm(X[:, None] - kmeans.cluster_centers_, axis=-1))
    assert np.isclose(kmeans.inertia_, np.square(distances.min(1)).sum())
    assert np.isclose(kmeans.score(X), -kmeans.inertia_)
    for k in range(4):
        assert np.allclose(kmeans.cluster_centers_[k], X[kmeans.labels_ == k].mean(0), atol=1e-4)


def test_subsample_gives_same_clusters():
    X, truth = blobs(n=6000)
    kmeans = KMeans(4, batch_size=500).fit(X)
    assert adjusted_rand_score(truth, kmeans.labels_) == 1
    assert np.isclose(kmeans.inertia_, KMeans(4).fit(X).inertia_, rtol=1e-5)


def test_scale_and_shift_invariance():
    X, truth = blobs()
    for scale, shift in ((1e-12, 0.0), (1e12, 0.0), (1.0, 1e7)):
        kmeans = KMeans(4).fit(X * scale + shift)
        assert adjusted_rand_score(truth, kmeans.labels_) == 1


def test_tensors_and_arrays_give_same_result():
    X, _ = blobs()
    for dtype in (np.float32, np.float64):
        array = KMeans(4).fit(X.astype(dtype))
        tensor = KMeans(4).fit(torch.from_numpy(X.astype(dtype)))
        assert np.array_equal(array.labels_, tensor.labels_)
        assert np.array_equal(array.labels_, tensor.predict(torch.from_numpy(X.astype(dtype))))


def test_same_seed_same_bits_without_global_state():
    X, _ = blobs(n=3000, k=6, distance=1.0)
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002 - the global generator is tested
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), torch.get_num_threads()  # noqa: NPY002
    first, second, other = (KMeans(6, n_init=2, random_state=seed).fit(X) for seed in (5, 5, 6))
    assert np.array_equal(first.cluster_centers_, second.cluster_centers_)
    assert not np.array_equal(first.cluster_centers_, other.cluster_centers_)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    assert torch.get_num_threads() == before[2]
    assert KMeans(3, random_state=None).fit(X).labels_.shape == (3000,)


def test_more_clusters_than_distinct_rows():
    X = np.repeat([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]], 5, axis=0)
    with pytest.warns(AmilstWarning, match="found 3"):
        labels = KMeans(5).fit_predict(X)
    assert adjusted_rand_score(labels, np.repeat([0, 1, 2], 5)) == 1
    with pytest.warns(AmilstWarning, match="found 1"):
        KMeans(2).fit(np.ones((6, 3)))


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 60),
    d=st.integers(1, 4),
    k=st.integers(1, 9),
    values=st.sampled_from([2, 5, 1000]),
    seed=st.integers(0, 1000),
)
@example(n=15, d=3, k=9, values=2, seed=181)  # equal centers but for rounding
@example(
    n=28, d=2, k=8, values=2, seed=979
)  # an inertia of rounding alone, which swaps lower again and again
def test_exact_number_of_clusters(n, d, k, values, seed):
    """Integer grids: duplicates, collinear points, constant columns, rows equally near to two centers."""
    X = np.random.default_rng(seed).integers(values, size=(n, d)).astype(float)
    if n < k:
        with pytest.raises(InputError, match="n_samples"):
            KMeans(k).fit(X)
        return
    n_distinct = len(np.unique(X, axis=0))
    with warnings.catch_warnings():
        if n_distinct < k:
            warnings.simplefilter("ignore", AmilstWarning)
        kmeans = KMeans(k, n_init=2).fit(X)
    assert len(np.unique(kmeans.labels_)) == min(k, n_distinct)
    pairs = np.unique(np.column_stack([X, kmeans.labels_]), axis=0)
    assert len(pairs) == n_distinct  # identical rows have identical labels
    assert np.array_equal(kmeans.labels_, kmeans.predict(X))
    squared = np.square(X - kmeans.cluster_centers_[kmeans.labels_]).sum()
    assert np.isclose(kmeans.inertia_, squared, atol=1e-6 * values**2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_clusters": 0}, "n_clusters"),
        ({"n_clusters": 2.5}, "n_clusters"),
        ({"n_init": 0}, "n_init"),
        ({"max_iter": True}, "max_iter"),
        ({"tol": -1}, "tol"),
        ({"batch_size": 3}, "batch_size"),
        ({"random_state": -1}, "random_state"),
        ({"random_state": 2**32}, "random_state"),
        ({"tol": float("nan")}, "tol"),
        ({"device": "mps"}, "device"),
        ({"device": "unknown"}, "device"),
    ],
)
def test_invalid_parameters(options, message):
    with pytest.raises(InputError, match=message):
        KMeans(**options).fit(blobs(50)[0])


def test_invalid_input():
    X, _ = blobs(50)
    with pytest.raises(NotFittedError):
        KMeans(2).predict(X)
    broken = X.copy()
    broken[3, 1] = np.nan
    for bad in (broken, torch.from_numpy(broken)):
        with pytest.raises(InputError, match="NaN"):
            KMeans(2).fit(bad)
    for other in (X[:, :3], torch.from_numpy(X[:, :3])):
        with pytest.raises(InputError, match="features"):
            KMeans(2).fit(X).predict(other)
    with pytest.raises(InputError, match="2D"):
        KMeans(2).fit(torch.ones(4))


@pytest.mark.parametrize("device", [CUDA])
def test_devices_agree(device):
    X, _ = blobs(n=5000, k=6, distance=2.0)
    here, there = KMeans(6).fit(X), KMeans(6, device=device).fit(X)
    assert adjusted_rand_score(here.labels_, there.labels_) > 0.99
    assert np.isclose(here.inertia_, there.inertia_, rtol=1e-4)
