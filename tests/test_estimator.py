"""The array door."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.metrics import adjusted_rand_score

from amilst_lite import AMILST, SpatialGraph
from amilst_lite.config import Config
from amilst_lite.errors import InputError
from amilst_lite.estimator import standardize

N, K = 240, 3
QUICK = {"epochs": 5, "members": 2, "n_init": 6}


@pytest.fixture(scope="module")
def section():
    """Three stripes of noisy features."""
    rng = np.random.default_rng(0)
    coordinates = rng.random((N, 2)).astype(np.float32)
    truth = (coordinates[:, 0] * K).astype(int)
    X = rng.normal(0, 1, (N, 8)).astype(np.float32)
    X[:, :K] += 3.0 * np.eye(K)[truth]
    return X, coordinates, truth


@pytest.fixture(scope="module")
def fitted(section):
    X, coordinates, _ = section
    return AMILST(K, seed=0, settings=QUICK).fit(X, coordinates)


def test_finds_stripes(section, fitted):
    assert adjusted_rand_score(section[2], fitted.labels_) > 0.85


def test_fitted_attributes(section, fitted):
    assert fitted.labels_.dtype == np.int64
    assert np.array_equal(np.unique(fitted.labels_), np.arange(K))
    sizes = np.bincount(fitted.labels_)
    assert (np.diff(sizes) <= 0).all()  # the largest first
    assert fitted.embedding_.shape[0] == N and fitted.embedding_.dtype == np.float32
    np.testing.assert_allclose(fitted.probabilities_.sum(1), 1, atol=1e-5)
    np.testing.assert_array_equal(fitted.confidence_, fitted.probabilities_[np.arange(N), fitted.labels_])
    assert fitted.refined_labels_.shape == (N,)
    assert fitted.n_features_in_ == 8
    assert set(fitted.seconds_) == {"graph", "filter", "train", "cluster", "refine"}
    assert isinstance(fitted.config_, Config)


def test_same_seed_same_bits(section, fitted):
    X, coordinates, _ = section
    again = AMILST(K, seed=0, settings=QUICK).fit(X, coordinates)
    np.testing.assert_array_equal(again.embedding_, fitted.embedding_)
    np.testing.assert_array_equal(again.probabilities_, fitted.probabilities_)
    np.testing.assert_array_equal(
        AMILST(K, seed=0, settings=QUICK).fit_predict(X, coordinates), fitted.labels_
    )


def test_every_form_of_the_features_gives_the_same(section, fitted):
    X, coordinates, _ = section
    for form in (X.astype(np.float64), torch.from_numpy(X), X.tolist()):
        other = AMILST(K, seed=0, settings=QUICK).fit(form, coordinates)
        np.testing.assert_array_equal(other.embedding_, fitted.embedding_)


def test_unit_of_features_and_coordinates_does_not_matter(section, fitted):
    X, coordinates, _ = section
    other = AMILST(K, seed=0, settings=QUICK).fit(1024 * X, 256 * coordinates)
    np.testing.assert_allclose(other.embedding_, fitted.embedding_, atol=1e-4)


def test_a_graph_made_beforehand(section, fitted):
    X, coordinates, _ = section
    graph = SpatialGraph.from_coordinates(coordinates, n_neighbors=Config().graph.n_neighbors)
    other = AMILST(K, seed=0, settings=QUICK).fit(X, coordinates, graph=graph)
    np.testing.assert_array_equal(other.labels_, fitted.labels_)


def test_samples_share_no_edge(section):
    X, coordinates, _ = section
    sample = np.repeat(["a", "b"], N // 2)
    model = AMILST(K, settings=QUICK).fit(X, coordinates, sample=sample)
    rows, columns = model.graph_.connectivities().nonzero()
    assert (sample[rows] == sample[columns]).all()


@pytest.mark.parametrize("method", ["kmeans", "leiden"])
def test_other_clusterings(section, method):
    if method == "leiden":
        pytest.importorskip("igraph")
    X, coordinates, truth = section
    model = AMILST(K, settings={**QUICK, "method": method}).fit(X, coordinates)
    assert np.array_equal(np.unique(model.labels_), np.arange(K))
    assert adjusted_rand_score(truth, model.labels_) > 0.6
    np.testing.assert_allclose(model.probabilities_.sum(1), 1, atol=1e-5)


def test_three_dimensions(section):
    X, coordinates, _ = section
    solid = np.c_[coordinates, np.zeros(N)]
    assert AMILST(K, settings=QUICK).fit(X, solid).labels_.shape == (N,)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda X, c: (X[:-1], c), "one row a spot"),
        (lambda X, c: (X[:, 0], c), "shape"),
        (lambda X, c: (np.where(X > 3, np.nan, X), c), "features must be finite"),
        (lambda X, c: (X.astype(str) + "a", c), "must be numbers"),
        (lambda X, c: (np.ones_like(X), c), "same features"),
        (lambda X, c: (X, np.where(c > 0.9, np.nan, c)), "finite|NaN"),
        (lambda X, c: (X, np.ones_like(c)), "same place|one place"),
        (lambda X, c: (X[:4], c[:4]), "neighbours|neighbors"),
    ],
)
def test_wrong_input(section, spoil, message):
    X, coordinates, _ = section
    with pytest.raises(InputError, match=message):
        AMILST(K, settings=QUICK).fit(*spoil(X, coordinates))


@pytest.mark.parametrize("k", [1, 0, -3, 2.5, "4", True, N + 1])
def test_wrong_number_of_domains(section, k):
    X, coordinates, _ = section
    with pytest.raises(InputError, match="domains"):
        AMILST(k, settings=QUICK).fit(X, coordinates)


def test_init_only_stores_and_clones():
    model = AMILST(5, settings={"epochs": 3}, preset="nonsense", device="nowhere")
    assert clone(model).get_params() == model.get_params()
    with pytest.raises(InputError, match="unknown preset"):
        model.fit(np.ones((20, 2)), np.ones((20, 2)))
    with pytest.raises(InputError, match="unknown setting"):
        AMILST(5, settings={"epoch": 3}).resolve_config()


def test_no_anndata_is_imported():
    code = (
        "import sys, numpy as np, amilst_lite\n"
        "rng = np.random.default_rng(0)\n"
        "model = amilst_lite.AMILST(2, settings={'epochs': 1, 'members': 1, 'n_init': 2})\n"
        "model.fit(rng.normal(size=(40, 4)), rng.random((40, 2)))\n"
        "print([m for m in ('anndata', 'matplotlib', 'pynndescent', 'igraph', 'umap') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_standardize_keeps_relative_scales():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 2.0, 1.0]) + 7
    scaled = standardize(x)
    assert scaled.var(0, unbiased=False).sum().item() == pytest.approx(1, rel=1e-5)
    ratio = scaled.std(0) / x.std(0)
    torch.testing.assert_close(ratio, ratio[:1].expand(3))


def test_tensors_and_arrays_are_the_same(section, fitted):
    X, coordinates, _ = section
    given = torch.tensor(X)
    model = AMILST(K, seed=0, settings=QUICK).fit(given, coordinates)
    assert np.array_equal(model.embedding_, fitted.embedding_)
    assert torch.equal(given, torch.tensor(X))
    given[7, 1] = torch.inf
    with pytest.raises(InputError, match="first row 7"):
        AMILST(K, settings=QUICK).fit(given, coordinates)


def test_tiles_find_the_same_stripes(section):
    X, coordinates, truth = section
    model = AMILST(K, seed=0, settings={**QUICK, "batch_size": 70}).fit(X, coordinates)
    assert adjusted_rand_score(truth, model.labels_) > 0.85


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("settings", [{}, {"batch_size": 100}], ids=["one batch", "tiles"])
def test_a_gpu_gives_nearly_the_same_and_repeats_its_bits(section, settings):
    X, coordinates, _ = section
    models = [
        AMILST(K, seed=1, device=device, settings=settings).fit(X, coordinates)
        for device in ("cpu", "cuda", "cuda")
    ]
    assert np.array_equal(models[1].embedding_, models[2].embedding_)
    assert np.array_equal(models[1].probabilities_, models[2].probabilities_)
    assert adjusted_rand_score(models[0].labels_, models[1].labels_) > 0.95
    on_device = AMILST(K, seed=1, device="cuda", settings=settings).fit(torch.tensor(X).cuda(), coordinates)
    assert np.array_equal(on_device.labels_, models[1].labels_)
