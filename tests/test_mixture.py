"""The Gaussian mixture against scikit-learn, R's mclust, scipy and closed formulas."""

import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture as SklearnMixture
from sklearn.utils.estimator_checks import parametrize_with_checks

from amilst_lite.cluster import GaussianMixture
from amilst_lite.cluster.agglomeration import agglomerate
from amilst_lite.cluster.covariance import (
    MCLUST_NAMES,
    Setting,
    WorkingScale,
    canonical_model,
    maximize,
    natural,
)
from amilst_lite.cluster.features import features, n_features
from amilst_lite.config import COVARIANCE_TYPES
from amilst_lite.errors import AmilstWarning, InputError, NotFittedError

CUDA = pytest.param(
    "cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA")]
)
MODELS = list(MCLUST_NAMES.values())
GOLDEN = ["her2st_B1_pca10", "iris", "mpfc_BZ5_embedding", "starmap_pca15"]
CHECK = Path(__file__).resolve().parents[1] / "benchmarks" / "check_mixture.py"


def blobs(n=500, d=3, k=3, seed=0, distance=5.0):
    """A tied mixture with correlated columns."""
    random = np.random.default_rng(seed)
    labels = random.integers(k, size=n)
    spread = np.eye(d) + 0.5 * random.standard_normal((d, d)) / math.sqrt(d)
    return distance * random.standard_normal((k, d))[labels] + random.standard_normal((n, d)) @ spread, labels


def as_matrices(covariances, model, k, d):
    """Covariances of any shape as (K, d, d)."""
    identity = np.eye(d)
    return {
        "tied_spherical": lambda c: np.broadcast_to(c * identity, (k, d, d)),
        "spherical": lambda c: c[:, None, None] * identity,
        "tied_diag": lambda c: np.broadcast_to(np.diag(c), (k, d, d)),
        "diag": lambda c: c[:, :, None] * identity,
        "tied": lambda c: np.broadcast_to(c, (k, d, d)),
        "full": lambda c: c,
    }[model](covariances)


def log_joint(mixture, X, model):
    """log of weight times density by scipy: (n, K)."""
    k, d = mixture.means_.shape
    return np.stack(
        [
            np.log(weight) + multivariate_normal(mean, covariance).logpdf(X).reshape(len(X))
            for weight, mean, covariance in zip(
                mixture.weights_, mixture.means_, as_matrices(mixture.covariances_, model, k, d), strict=True
            )
        ],
        axis=1,
    )


@pytest.mark.filterwarnings("ignore::amilst_lite.errors.AmilstWarning")
@parametrize_with_checks(
    [GaussianMixture(), GaussianMixture(2, covariance_type="VVV"), GaussianMixture(2, covariance_type="diag")]
)
def test_scikit_learn_estimator_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def check_mixture():
    """The benchmark's ``main``."""
    return runpy.run_path(str(CHECK))["main"]


@pytest.mark.parametrize("name", GOLDEN)
def test_as_good_as_mclust(shared_dir, check_mixture, capsys, name):
    """The checks of benchmarks/check_mixture.py, with one seed: likelihood, labels, parameters, BIC."""
    path = shared_dir / "golden" / f"mclust_{name}.npz"
    if not path.exists():
        pytest.skip(f"no {path.name}")
    status = check_mixture([str(path), "--seeds", "1"])
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert printed.count(" ok\n") == 6


def test_benchmark_detects_a_worse_fit(shared_dir, check_mixture, tmp_path):
    with np.load(shared_dir / "golden" / "mclust_iris.npz") as file:
        data = dict(file)
    data["EEE/loglik"] = data["EEE/loglik"] + 10
    np.savez(tmp_path / "better.npz", **data)
    assert check_mixture([str(tmp_path / "better.npz"), "--seeds", "1"]) == 1


@pytest.mark.parametrize("name", ["her2st_B1_pca10", "iris"])
@pytest.mark.parametrize("model", list(MCLUST_NAMES))
def test_agglomeration_alone_reproduces_mclust(shared_dir, name, model):
    """With the same start and stopping rule, the labels of mclust."""
    with np.load(shared_dir / "golden" / f"mclust_{name}.npz") as file:
        X, k, labels, theirs = (
            file["X"],
            int(file["G"]),
            file[f"{model}/labels"],
            float(file[f"{model}/loglik"]),
        )
    mixture = GaussianMixture(k, covariance_type=model, init_params="agglomeration")
    if name == "her2st_B1_pca10" and model in ("EII", "EEI", "VVV"):
        # mclust stops on a plateau; a few more steps find a better optimum
        assert mixture.fit(X).log_likelihood_ > theirs - 0.1
    else:
        assert adjusted_rand_score(mixture.fit_predict(X), labels) > 0.97
        assert mixture.log_likelihood_ == pytest.approx(theirs, rel=1e-4)


def test_agglomeration_minimizes_its_criterion():
    """Against a search over all pairs at every step."""
    X, _ = blobs(n=24, d=2, distance=2.0)
    Z = (X - X.mean(0)) / X.std(0)
    left, singular, _ = np.linalg.svd(Z, full_matrices=False)
    Z = left * np.sqrt(singular)
    floor = np.square(Z).sum() / Z.size

    def term(rows):
        W = (Z[rows] - Z[rows].mean(0)).T @ (Z[rows] - Z[rows].mean(0))
        n = len(rows)
        det = np.linalg.det(W / n) if n > 2 else 0.0
        return n * np.log(det + (np.trace(W) + floor) / n)

    clusters = [[i] for i in range(len(Z))]
    while len(clusters) > 3:
        pairs = [(i, j) for i in range(len(clusters)) for j in range(i)]
        costs = [term(clusters[i] + clusters[j]) - term(clusters[i]) - term(clusters[j]) for i, j in pairs]
        i, j = pairs[int(np.argmin(costs))]
        clusters[j] += clusters.pop(i)
    direct = np.empty(len(Z), dtype=int)
    for label, rows in enumerate(clusters):
        direct[rows] = label
    assert adjusted_rand_score(direct, agglomerate(X, 3)) == 1


@pytest.mark.parametrize("model", MODELS)
def test_natural_parameters_give_the_density(model):
    """eta · phi plus the constant part against scipy, and the M-step against its definition."""
    X, labels = blobs(n=120, d=10)
    d = X.shape[1]
    scale = WorkingScale.of(np.zeros(d), np.cov(X.T, bias=True), model)
    Z = torch.from_numpy(X @ scale.forward)
    setting = Setting(model, len(Z), Z.T @ Z, 1e-12, 0.0, scale)
    base = torch.cat([torch.ones(1, len(Z), dtype=torch.float64), Z.T])
    phi = features(base, model)
    assert len(phi) == n_features(model, d)
    responsibilities = torch.softmax(
        torch.from_numpy(np.random.default_rng(0).standard_normal((3, len(X)))), 0
    )
    moments = (responsibilities @ phi.T)[None]
    parameters = maximize(moments, setting)
    eta, constant = natural(parameters, setting)
    weights, means, covariances = scale.to_data(parameters, model)

    share = responsibilities.numpy() / responsibilities.sum(1, keepdim=True).numpy()
    assert np.allclose(means, share @ X)
    assert np.allclose(weights, responsibilities.mean(1))
    within = np.stack([(X - m).T * r @ (X - m) for m, r in zip(means, share, strict=True)])
    mean_within = np.einsum("k,kij->ij", weights, within)
    expected = {
        "tied_spherical": np.trace(mean_within) / d,
        "spherical": np.trace(within, axis1=1, axis2=2) / d,
        "tied_diag": mean_within.diagonal(),
        "diag": np.diagonal(within, axis1=1, axis2=2),
        "tied": mean_within,
        "full": within,
    }[model]
    assert np.allclose(covariances, expected)

    joint = np.stack(
        [
            np.log(w) + multivariate_normal(m, c).logpdf(X)
            for w, m, c in zip(weights, means, as_matrices(covariances, model, 3, d), strict=True)
        ]
    )
    ours = torch.logsumexp(eta[0] @ phi, 0).sum() + constant[0]
    assert float(ours) == pytest.approx(np.logaddexp.reduce(joint).sum(), rel=1e-9)
    assert np.allclose(torch.softmax(eta[0] @ phi, 0), np.exp(joint - np.logaddexp.reduce(joint)))
    assert labels.shape == (120,)


@pytest.mark.parametrize("model", MODELS)
def test_fitted_attributes_agree_with_scipy(model):
    X, truth = blobs()
    mixture = GaussianMixture(3, covariance_type=model, n_init=5).fit(X)
    joint = log_joint(mixture, X, model)
    scores = np.logaddexp.reduce(joint, axis=1)
    assert np.allclose(mixture.score_samples(X), scores)
    assert np.allclose(mixture.predict_proba(X), np.exp(joint - scores[:, None]))
    assert np.array_equal(mixture.predict(X), joint.argmax(1))
    assert mixture.predict(X).dtype == np.int64
    assert adjusted_rand_score(truth, mixture.predict(X)) == 1
    assert mixture.log_likelihood_ == pytest.approx(scores.sum())
    assert mixture.lower_bound_ == pytest.approx(scores.mean())
    assert mixture.score(X) == pytest.approx(scores.mean())
    assert mixture.bic(X) == pytest.approx(-2 * scores.sum() + mixture.n_parameters_ * np.log(len(X)))
    assert mixture.aic(X) == pytest.approx(-2 * scores.sum() + 2 * mixture.n_parameters_)
    assert mixture.converged_ and mixture.restart_log_likelihoods_.shape == (5,)
    if model in ("tied", "full"):
        factors, identity = mixture.precisions_cholesky_, np.eye(3)
        assert np.allclose(factors @ np.swapaxes(factors, -1, -2) @ mixture.covariances_, identity, atol=1e-8)
        assert np.allclose(factors, np.triu(factors))


@pytest.mark.parametrize("model", ["tied", "full", "diag", "spherical"])
def test_agrees_with_scikit_learn(model):
    X, _ = blobs(distance=2.0)
    theirs = SklearnMixture(3, covariance_type=model, n_init=10, tol=1e-8, max_iter=2000, random_state=0).fit(
        X
    )
    ours = GaussianMixture(3, covariance_type=model, tol=1e-10, max_iter=2000).fit(
        X, init=theirs.predict_proba(X)
    )
    assert ours.lower_bound_ == pytest.approx(theirs.score(X), abs=1e-5)
    assert np.allclose(ours.means_, theirs.means_, atol=1e-2)
    assert np.allclose(ours.covariances_, theirs.covariances_, atol=1e-2)
    assert ours.precisions_cholesky_.shape == theirs.precisions_cholesky_.shape
    assert ours.n_parameters_ == theirs._n_parameters()
    free = GaussianMixture(3, covariance_type=model).fit(X)
    assert free.lower_bound_ >= theirs.score(X) - 1e-4


def test_mclust_names_give_the_same_models():
    X, _ = blobs(200)
    for theirs, ours in MCLUST_NAMES.items():
        assert canonical_model(theirs) == canonical_model(ours) == ours
        first, second = (GaussianMixture(2, covariance_type=name, n_init=2).fit(X) for name in (theirs, ours))
        assert np.array_equal(first.covariances_, second.covariances_)


def test_all_configured_covariance_types_are_known():
    assert len(set(COVARIANCE_TYPES)) == 12
    assert {canonical_model(name) for name in COVARIANCE_TYPES} == set(MODELS)
    assert set(COVARIANCE_TYPES) == set(MODELS) | set(MCLUST_NAMES)


def test_affine_equivariance():
    X, _ = blobs(distance=2.0)
    there = np.array([[3.0, 1, 0], [0, 1e-3, 0], [0, 0.5, 1e4]])
    first, second = GaussianMixture(3).fit(X), GaussianMixture(3).fit(X @ there - 1e5)
    assert np.array_equal(first.predict(X), second.predict(X @ there - 1e5))
    shift = len(X) * np.log(abs(np.linalg.det(there)))
    assert second.log_likelihood_ == pytest.approx(first.log_likelihood_ - shift, rel=1e-5)


def test_init_by_labels_or_responsibilities():
    X, truth = blobs(distance=2.0)
    labels = GaussianMixture(3).fit_predict(X, init=truth)
    assert adjusted_rand_score(labels, truth) > 0.8
    # component numbers are those of the labels
    assert (labels == truth).mean() > 0.8
    swapped = GaussianMixture(3).fit_predict(X, init=(truth + 1) % 3)
    assert (swapped == (truth + 1) % 3).mean() > 0.8
    soft = np.eye(3)[truth] + 0.1
    assert np.array_equal(GaussianMixture(3).fit_predict(X, init=torch.from_numpy(soft)), labels)
    for bad in (truth[:-1], truth + 1, -soft, np.zeros((len(X), 3)), soft[:, :2], truth.astype(float)):
        with pytest.raises(InputError, match="init must contain"):
            GaussianMixture(3).fit(X, init=bad)


def test_likelihood_increases_at_every_step():
    X, _ = blobs(distance=1.5)
    for model in MODELS:
        last = -np.inf
        for steps in (1, 2, 4, 8, 16):
            mixture = GaussianMixture(3, covariance_type=model, max_iter=steps, tol=0, n_init=1).fit(
                X, init=np.arange(len(X)) % 3
            )
            assert mixture.n_iter_ == steps and not mixture.converged_
            assert mixture.log_likelihood_ >= last - 1e-9 * abs(last)
            last = mixture.log_likelihood_


def test_subsample_gives_same_mixture():
    X, truth = blobs(n=8000)
    whole, part = GaussianMixture(3).fit(X), GaussianMixture(3, batch_size=500).fit(X)
    assert adjusted_rand_score(truth, part.predict(X)) == 1
    assert part.log_likelihood_ == pytest.approx(whole.log_likelihood_, rel=1e-5)


@pytest.mark.slow
def test_a_hundred_thousand_rows():
    X, truth = blobs(n=100_000, d=10, k=6)
    assert adjusted_rand_score(truth, GaussianMixture(6).fit_predict(X.astype(np.float32))) > 0.999


def test_shrinkage_towards_spherical_covariances():
    """A strong prior gives spherical covariances, in the units of the data and not of the working scale."""
    X, _ = blobs()
    X = X * [1.0, 5.0, 0.2]
    for model in ("tied", "full", "tied_diag", "diag"):
        free = GaussianMixture(3, covariance_type=model).fit(X)
        bound = GaussianMixture(3, covariance_type=model, covariance_prior=1e9).fit(X)
        ball = as_matrices(bound.covariances_, model, 3, 3)[0]
        assert np.allclose(ball, ball[0, 0] * np.eye(3), atol=1e-4 * ball[0, 0])
        assert free.log_likelihood_ > bound.log_likelihood_
    some = GaussianMixture(3, covariance_prior=100.0).fit(X)
    variance = np.trace(some.covariances_) / 3
    centered = X - some.means_[some.predict(X)]
    expected = (centered.T @ centered + 100 * variance * np.eye(3)) / (len(X) + 100)
    assert np.allclose(some.covariances_, expected, rtol=0.02, atol=0.02 * variance)


def test_shrinkage_interpolates_between_tied_and_spherical():
    X, _ = blobs(n=120)
    tied, weak, strong = (
        GaussianMixture(3, n_init=5, covariance_prior=prior).fit(X) for prior in (0, 1e-3, 1e7)
    )
    sphere = GaussianMixture(3, covariance_type="tied_spherical", n_init=5).fit(X)
    assert np.allclose(weak.covariances_, tied.covariances_, rtol=1e-2, atol=1e-2)
    assert strong.covariances_[0, 0] == pytest.approx(sphere.covariances_, rel=0.02)


def test_scale_and_shift_invariance_in_float32():
    X, truth = blobs()
    X = X.astype(np.float32)
    for other in (X * np.float32(1e-4), X * np.float32(1e5) + np.float32(1e6)):
        assert adjusted_rand_score(truth, GaussianMixture(3, n_init=5).fit_predict(other)) == 1


def test_same_seed_same_bits_without_global_state():
    X, _ = blobs(n=700, k=5, distance=1.0)
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002 - the global generator is tested
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), torch.get_num_threads()  # noqa: NPY002
    for model in MODELS:
        first, second = (
            GaussianMixture(5, covariance_type=model, n_init=6, random_state=9).fit(X) for _ in range(2)
        )
        assert np.array_equal(first.means_, second.means_)
        assert np.array_equal(first.covariances_, second.covariances_)
        assert np.array_equal(first.predict_proba(X), second.predict_proba(X))
        assert np.array_equal(first.predict(X), GaussianMixture(**first.get_params()).fit_predict(X))
    assert first.sample(5)[0].shape == (5, 3)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    assert torch.get_num_threads() == before[2]


def test_bits_do_not_depend_on_number_of_threads():
    X, _ = blobs(n=12_000, d=8, k=4, distance=1.0)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(GaussianMixture(4, covariance_type="full", n_init=4, max_iter=20).fit(X))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(results[0].means_, results[1].means_)
    assert np.array_equal(results[0].covariances_, results[1].covariances_)


def test_arrays_tensors_and_dtypes_give_same_result():
    X, _ = blobs()
    X = X.astype(np.float32)
    expected = GaussianMixture(3).fit(X)
    for converted in (X.astype(float), torch.from_numpy(X), torch.from_numpy(X).double(), X.tolist()):
        mixture = GaussianMixture(3).fit(converted)
        assert np.array_equal(mixture.predict(converted), expected.predict(X))
        assert mixture.log_likelihood_ == pytest.approx(expected.log_likelihood_, rel=1e-6)
    assert np.isfinite(GaussianMixture(2).fit(torch.arange(10).view(5, 2)).means_).all()


@pytest.mark.parametrize("model", MODELS)
def test_samples_follow_the_mixture(model):
    X, _ = blobs()
    mixture = GaussianMixture(3, covariance_type=model, n_init=3).fit(X)
    drawn, labels = mixture.sample(40_000)
    assert drawn.shape == (40_000, 3) and labels.dtype == np.int64
    assert np.allclose(np.bincount(labels) / len(labels), mixture.weights_, atol=0.02)
    matrices = as_matrices(mixture.covariances_, model, 3, 3)
    for k in range(3):
        members = drawn[labels == k]
        assert np.allclose(members.mean(0), mixture.means_[k], atol=0.1)
        assert np.allclose(np.cov(members.T), matrices[k], atol=0.1 * matrices[k].max())


@pytest.mark.parametrize("model", MODELS)
def test_columns_without_information(model):
    """Constant, duplicate and linearly dependent columns do not change the labels."""
    X, truth = blobs()
    X = np.column_stack([X, np.full(len(X), 0.1), X[:, 0], X[:, 0] + X[:, 1]])
    mixture = GaussianMixture(3, covariance_type=model, n_init=5).fit(X)
    assert adjusted_rand_score(truth, mixture.predict(X)) == 1
    assert np.isfinite(mixture.score_samples(X)).all()


@pytest.mark.parametrize("model", MODELS)
def test_few_and_equal_rows(model):
    one = GaussianMixture(1, covariance_type=model).fit(np.array([[1.0, 2.0, 3.0]]))
    assert np.array_equal(one.predict([[5.0, 5.0, 5.0]]), [0])
    X = np.repeat([[0.0, 0.0], [1.0, 5.0], [2.0, -5.0]], 4, axis=0)
    labels = GaussianMixture(3, covariance_type=model, n_init=4).fit_predict(X)
    assert adjusted_rand_score(labels, np.repeat([0, 1, 2], 4)) == 1
    with pytest.warns(AmilstWarning, match="Only 3 of n_components=4 components"):
        GaussianMixture(4, covariance_type=model, n_init=4).fit(X)


def test_empty_component_is_reseeded():
    X, truth = blobs()
    start = np.minimum(truth, 1)  # the third component starts empty
    for model in MODELS:
        mixture = GaussianMixture(3, covariance_type=model)
        assert len(np.unique(mixture.fit_predict(X, init=start))) == 3


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 60),
    d=st.integers(1, 5),
    k=st.integers(1, 5),
    model=st.sampled_from(MODELS),
    kind=st.sampled_from(["normal", "collinear", "constant column", "heavy tails", "clumps"]),
    seed=st.integers(0, 1000),
)
@pytest.mark.filterwarnings("ignore::amilst_lite.errors.AmilstWarning")
def test_arbitrary_rows(n, d, k, model, kind, seed):
    random = np.random.default_rng(seed)
    X = random.standard_normal((n, d))
    if kind == "collinear":
        X = random.standard_normal((n, 1)) * random.standard_normal(d)
    elif kind == "constant column":
        X[:, 0] = 7.0
    elif kind == "heavy tails":
        X = random.standard_cauchy((n, d))
    elif kind == "clumps":
        X = np.round(X)
    mixture = GaussianMixture(k, covariance_type=model, n_init=3, max_iter=30)
    if n < k:
        with pytest.raises(InputError, match="n_samples"):
            mixture.fit(X)
        return
    labels = mixture.fit_predict(X)
    assert np.array_equal(labels, mixture.predict(X))
    probabilities = mixture.predict_proba(X)
    assert np.allclose(probabilities.sum(1), 1) and np.array_equal(probabilities.argmax(1), labels)
    assert np.isfinite(mixture.score_samples(X)).all()
    assert mixture.weights_.sum() == pytest.approx(1) and (mixture.weights_ >= 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_components": 0}, "n_components"),
        ({"covariance_type": "EEV"}, "EEE"),
        ({"covariance_type": None}, "covariance_type"),
        ({"n_init": 1.5}, "n_init"),
        ({"max_iter": 0}, "max_iter"),
        ({"tol": -1e-3}, "tol"),
        ({"reg_covar": 0}, "reg_covar"),
        ({"covariance_prior": -1}, "covariance_prior"),
        ({"init_params": "random"}, "init_params"),
        ({"n_components": 5, "batch_size": 3}, "batch_size"),
        ({"random_state": "seed"}, "random_state"),
        ({"device": "unknown"}, "device"),
    ],
)
def test_invalid_parameters(options, message):
    with pytest.raises(InputError, match=message):
        GaussianMixture(**options).fit(blobs(50)[0])


def test_invalid_input():
    X, _ = blobs(50)
    with pytest.raises(NotFittedError):
        GaussianMixture().sample()
    with pytest.raises(NotFittedError):
        GaussianMixture().predict(X)
    with pytest.raises(InputError, match="1D"):
        GaussianMixture(2).fit(np.ones(10))
    X[3, 1] = np.inf
    for bad in (X, torch.from_numpy(X)):
        with pytest.raises(InputError, match="infinity"):
            GaussianMixture(2).fit(bad)


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("model", MODELS)
def test_devices_agree(device, model):
    X, _ = blobs(n=3000, d=6, k=4)
    here = GaussianMixture(4, covariance_type=model).fit(X)
    there = GaussianMixture(4, covariance_type=model, device=device).fit(X)
    assert adjusted_rand_score(here.predict(X), there.predict(X)) > 0.99
    assert here.log_likelihood_ == pytest.approx(there.log_likelihood_, rel=1e-4)
