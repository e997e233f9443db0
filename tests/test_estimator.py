"""`AMILST` on arrays."""

import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.metrics import adjusted_rand_score

from amilst_lite import AMILST, SpatialGraph
from amilst_lite import estimator as module
from amilst_lite.cluster.domains import find_domains
from amilst_lite.cluster.shrinkage import SHARES
from amilst_lite.config import Config
from amilst_lite.errors import AmilstWarning, InputError, MissingExtraError, TrainingDivergedError
from amilst_lite.spatial.spectral_filter import standardize

N, K = 240, 3
QUICK = {"epochs": 5, "n_networks": 2, "n_init": 6, "shrinkage": 0.2}


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
    return AMILST(K, seed=0, settings={**QUICK, "shrinkage": None}).fit(X, coordinates=coordinates)


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
    again = AMILST(K, seed=0, settings={**QUICK, "shrinkage": None}).fit(X, coordinates=coordinates)
    np.testing.assert_array_equal(again.embedding_, fitted.embedding_)
    np.testing.assert_array_equal(again.probabilities_, fitted.probabilities_)
    np.testing.assert_array_equal(
        AMILST(K, seed=0, settings={**QUICK, "shrinkage": None}).fit_predict(X, coordinates=coordinates),
        fitted.labels_,
    )


def test_every_form_of_the_features_gives_the_same(section, fitted):
    X, coordinates, _ = section
    for form in (X.astype(np.float64), torch.from_numpy(X), X.tolist()):
        other = AMILST(K, seed=0, settings=QUICK).fit(form, coordinates=coordinates)
        np.testing.assert_array_equal(other.embedding_, fitted.embedding_)


def test_unit_of_features_and_coordinates_does_not_matter(section, fitted):
    X, coordinates, _ = section
    other = AMILST(K, seed=0, settings=QUICK).fit(1024 * X, coordinates=256 * coordinates)
    np.testing.assert_allclose(other.embedding_, fitted.embedding_, atol=1e-4)


def test_a_graph_made_beforehand(section, fitted):
    X, coordinates, _ = section
    graph = SpatialGraph.from_coordinates(coordinates, n_neighbors=Config().graph.n_neighbors)
    other = AMILST(K, seed=0, settings=QUICK).fit(X, coordinates=coordinates, graph=graph)
    np.testing.assert_array_equal(other.labels_, fitted.labels_)


def test_samples_share_no_edge(section):
    X, coordinates, _ = section
    sample = np.repeat(["a", "b"], N // 2)
    model = AMILST(K, settings=QUICK).fit(X, coordinates=coordinates, sample=sample)
    rows, columns = model.graph_.connectivities().nonzero()
    assert (sample[rows] == sample[columns]).all()


@pytest.mark.parametrize("method", ["kmeans", "leiden"])
def test_other_clusterings(section, method):
    if method == "leiden":
        pytest.importorskip("igraph")
    X, coordinates, truth = section
    model = AMILST(K, settings={**QUICK, "method": method}).fit(X, coordinates=coordinates)
    assert np.array_equal(np.unique(model.labels_), np.arange(K))
    assert adjusted_rand_score(truth, model.labels_) > 0.6
    np.testing.assert_allclose(model.probabilities_.sum(1), 1, atol=1e-5)


def test_three_dimensions(section):
    X, coordinates, _ = section
    solid = np.c_[coordinates, np.zeros(N)]
    assert AMILST(K, settings=QUICK).fit(X, coordinates=solid).labels_.shape == (N,)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda X, c: (X[:-1], c), "one row per spot"),
        (lambda X, c: (X[:, 0], c), "shape"),
        (lambda X, c: (np.where(X > 3, np.nan, X), c), "features must be finite"),
        (lambda X, c: (np.full(X.shape, "a"), c), "must be numbers"),
        (lambda X, c: (np.ones_like(X), c), "same features"),
        (lambda X, c: (X, np.where(c > 0.9, np.nan, c)), "finite|NaN"),
        (lambda X, c: (X, np.ones_like(c)), "same place|one place"),
        (lambda X, c: (X[:4], c[:4]), "neighbors"),
    ],
)
def test_wrong_input(section, spoil, message):
    X, coordinates, _ = section
    X, coordinates = spoil(X, coordinates)
    with pytest.raises(InputError, match=message):
        AMILST(K, settings=QUICK).fit(X, coordinates=coordinates)


@pytest.mark.parametrize("k", [1, 0, -3, 2.5, "4", True, N + 1])
def test_wrong_number_of_domains(section, k):
    X, coordinates, _ = section
    with pytest.raises(InputError, match="domains"):
        AMILST(k, settings=QUICK).fit(X, coordinates=coordinates)


def test_init_only_stores_and_clones():
    model = AMILST(5, settings={"epochs": 3}, preset="nonsense", device="nowhere")
    assert clone(model).get_params() == model.get_params()
    with pytest.raises(InputError, match="unknown preset"):
        model.fit(np.ones((20, 2)), coordinates=np.ones((20, 2)))
    with pytest.raises(InputError, match="unknown setting"):
        AMILST(5, settings={"epoch": 3}).resolve_config()


def test_no_anndata_is_imported():
    code = (
        "import sys, numpy as np, amilst_lite\n"
        "rng = np.random.default_rng(0)\n"
        "model = amilst_lite.AMILST(2, settings={'epochs': 1, 'n_networks': 1, 'n_init': 2})\n"
        "model.fit(rng.normal(size=(40, 4)), coordinates=rng.random((40, 2)))\n"
        "print([m for m in ('anndata', 'matplotlib', 'pynndescent', 'igraph', 'umap') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_tensors_and_arrays_are_the_same(section, fitted):
    X, coordinates, _ = section
    given = torch.tensor(X)
    model = AMILST(K, seed=0, settings=QUICK).fit(given, coordinates=coordinates)
    assert np.array_equal(model.embedding_, fitted.embedding_)
    assert torch.equal(given, torch.tensor(X))
    given[7, 1] = torch.inf
    with pytest.raises(InputError, match="first row 7"):
        AMILST(K, settings=QUICK).fit(given, coordinates=coordinates)


def test_tiles_find_the_same_stripes(section):
    X, coordinates, truth = section
    model = AMILST(K, seed=0, settings={**QUICK, "batch_size": 70}).fit(X, coordinates=coordinates)
    assert adjusted_rand_score(truth, model.labels_) > 0.85


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("settings", [{}, {"batch_size": 100}], ids=["one batch", "tiles"])
def test_a_gpu_gives_nearly_the_same_and_repeats_its_bits(section, settings):
    X, coordinates, _ = section
    models = [
        AMILST(K, seed=1, device=device, settings=settings).fit(X, coordinates=coordinates)
        for device in ("cpu", "cuda", "cuda")
    ]
    assert np.array_equal(models[1].embedding_, models[2].embedding_)
    assert np.array_equal(models[1].probabilities_, models[2].probabilities_)
    assert adjusted_rand_score(models[0].labels_, models[1].labels_) > 0.95
    on_device = AMILST(K, seed=1, device="cuda", settings=settings).fit(
        torch.tensor(X).cuda(), coordinates=coordinates
    )
    assert np.array_equal(on_device.labels_, models[1].labels_)


def test_tensors_of_inference_mode_are_accepted(section, fitted):
    """For other states of torch see test_same_answer."""
    X, coordinates, _ = section
    with torch.inference_mode():
        model = AMILST(K, seed=0, settings=QUICK).fit(torch.from_numpy(X), coordinates=coordinates)
    np.testing.assert_array_equal(model.embedding_, fitted.embedding_)
    np.testing.assert_array_equal(model.labels_, fitted.labels_)


def test_effective_settings_are_recorded(section, fitted):
    X, coordinates, _ = section
    assert fitted.config_.train.n_networks == 2
    model = AMILST(K, settings={"epochs": 1, "n_init": 2}).fit(X, coordinates=coordinates)
    assert model.config_.train.n_networks == 1 == model.latent_.shape[1] // 28
    assert model.config_.cluster.network_share == 0  # without counts it cannot be decided
    assert model.settings == {"epochs": 1, "n_init": 2}


def test_spots_of_low_depth_follow_their_neighbors(section):
    X, coordinates, _ = section
    depth = np.full(len(X), 100.0)
    depth[::10] = 0.0
    noisy = X.copy()
    noisy[::10] = 50 * np.random.default_rng(0).normal(size=noisy[::10].shape)
    settings = {**QUICK, "network_share": 0.0}
    plain = AMILST(K, settings=settings).fit(noisy, coordinates=coordinates).embedding_
    filled = AMILST(K, settings=settings).fit(noisy, coordinates=coordinates, depth=depth).embedding_
    size = [np.square(each[::10]).sum() / np.square(each).sum() for each in (plain, filled)]
    assert size[1] < 0.5 * size[0]


@pytest.mark.parametrize("depth", [np.ones(3), "deep", -1.0, np.nan])
def test_unusable_depth_is_refused(section, depth):
    X, coordinates, _ = section
    values = np.full(len(X), depth) if isinstance(depth, float) else depth
    with pytest.raises(InputError, match="depth"):
        AMILST(K, settings=QUICK).fit(X, coordinates=coordinates, depth=values)


def test_without_counts_the_network_does_not_move_the_embedding(section, fitted):
    X, coordinates, _ = section
    filtered = AMILST(K, seed=0, settings={**QUICK, "network_share": 0.0}).fit(X, coordinates=coordinates)
    np.testing.assert_array_equal(fitted.embedding_, filtered.embedding_)


def test_given_shrinkage_is_the_only_one_compared(section, fitted):
    X, coordinates, _ = section
    assert fitted.evidence_.shares.tolist() == list(SHARES)
    given = AMILST(K, settings={**QUICK, "shrinkage": 0.3}).fit(X, coordinates=coordinates)
    assert given.evidence_.shares.tolist() == [0.3]


def test_blocks_are_held_out_in_the_order_of_the_graph(section, fitted, monkeypatch):
    X, coordinates, _ = section
    clustered = []

    def recording(embedding, *args, **options):
        clustered.append(embedding.numpy().copy())
        return find_domains(embedding, *args, **options)

    monkeypatch.setattr("amilst_lite.estimator.find_domains", recording)
    AMILST(K, seed=0, settings=QUICK).fit(X, coordinates=coordinates)
    np.testing.assert_array_equal(clustered[0], fitted.embedding_[fitted.graph_.order])


def test_spots_of_low_depth_are_averaged_with_their_neighbors(section):
    X, coordinates, _ = section
    depth = np.full(N, 1000)
    low = np.arange(0, N, 10)
    depth[low] = 0
    spoiled = X.copy()
    spoiled[low] = 0

    def embedding(values, given, **settings):
        model = AMILST(K, settings={**QUICK, "noise_band": None, **settings})
        return model.fit(values, coordinates=coordinates, depth=given).embedding_

    filled = embedding(spoiled, depth)
    neighbors = SpatialGraph.from_coordinates(coordinates, n_neighbors=Config().graph.n_neighbors)
    weights = neighbors.connectivities().toarray() * (depth > 0)
    expected = spoiled.copy()
    expected[low] = (weights @ spoiled / weights.sum(1, keepdims=True))[low]
    np.testing.assert_allclose(filled, standardize(torch.from_numpy(expected)).numpy(), atol=1e-4)
    plain = embedding(spoiled, None)
    np.testing.assert_array_equal(embedding(spoiled, np.full(N, 7.0)), plain)  # all alike
    np.testing.assert_array_equal(embedding(spoiled, depth, depth_floor=0.0), plain)


def test_depth_is_that_of_the_spot_in_any_order(section):
    X, coordinates, _ = section
    rng = np.random.default_rng(4)
    depth, shuffle = rng.uniform(1, 100, N), rng.permutation(N)
    first = AMILST(K, settings=QUICK).fit(X, coordinates=coordinates, depth=depth)
    second = AMILST(K, settings=QUICK)
    labels = second.fit_predict(X[shuffle], coordinates=coordinates[shuffle], depth=depth[shuffle])
    np.testing.assert_allclose(second.embedding_, first.embedding_[shuffle], atol=1e-3)
    assert adjusted_rand_score(labels, first.labels_[shuffle]) >= 0.99


def test_default_has_an_affine_decoder(section, fitted):
    from amilst_lite.nn.layers import Dense

    assert type(fitted.network_.decoder) is Dense
    assert fitted.network_.decoder.weight.device.type == "cpu"


@pytest.mark.parametrize(
    ("changes", "beside"),
    [
        ({}, True),
        ({"n_domains": None}, True),
        ({"settings": {**QUICK, "network_share": 0.0}}, True),
        ({"settings": {**QUICK, "network_share": 0.3}}, False),
        ({"settings": {**QUICK, "cluster_on": "latent"}}, False),
        ({"preset": "published", "settings": {"epochs": 2, "n_init": 2}}, False),
        ({"callback": lambda *_: None}, False),  # called in the thread of the caller
    ],
)
def test_clustering_beside_the_training_gives_the_same_bits(section, monkeypatch, changes, beside):
    X, coordinates, _ = section
    trained_in = []
    original = AMILST._train
    monkeypatch.setattr(
        AMILST, "_train", lambda *args: trained_in.append(threading.get_ident()) or original(*args)
    )

    def fit(n_threads):
        monkeypatch.setattr(module, "n_threads", lambda: n_threads)
        model = AMILST(**{"n_domains": K, "settings": QUICK, **changes})
        return model.fit(X, coordinates=coordinates)

    first, second = fit(1), fit(2)
    assert [thread != threading.get_ident() for thread in trained_in] == [False, beside]
    for name in ("labels_", "refined_labels_", "probabilities_", "embedding_", "latent_"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)
    assert first.history_ == second.history_ and first.config_ == second.config_
    assert list(first.seconds_) == list(second.seconds_)


def test_large_sections_are_trained_first(section, monkeypatch):
    X, coordinates, _ = section
    monkeypatch.setattr(module, "n_threads", lambda: 2)
    monkeypatch.setattr(module, "MOST_BESIDE", N - 1)
    monkeypatch.setattr(module, "beside", lambda _: pytest.fail("it ran beside"))
    AMILST(K, settings=QUICK).fit(X, coordinates=coordinates)


def test_interrupted_clustering_ends_the_training_beside_it(section, monkeypatch):
    X, coordinates, _ = section
    monkeypatch.setattr(module, "n_threads", lambda: 2)
    began = threading.Event()

    def interrupt(*_, **__):
        assert began.wait(30)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "find_domains", interrupt)
    original = module.TRAINERS["default"]._epoch
    monkeypatch.setattr(module.TRAINERS["default"], "_epoch", lambda self: began.set() or original(self))
    with pytest.raises(KeyboardInterrupt):  # not after a million epochs
        AMILST(K, settings={**QUICK, "epochs": 10**6}).fit(X, coordinates=coordinates)


def test_training_that_diverges_beside_the_clustering(section, monkeypatch):
    X, coordinates, _ = section
    monkeypatch.setattr(module, "n_threads", lambda: 2)
    with pytest.raises(TrainingDivergedError, match="of 5"):
        AMILST(K, settings={**QUICK, "learning_rate": 1e30}).fit(X, coordinates=coordinates)


def test_consensus_is_the_weighted_mean_of_features_and_reconstruction(section):
    X, coordinates, _ = section
    share = {w: AMILST(K, settings={**QUICK, "network_share": w}) for w in (0.0, 0.3, 1.0)}
    made = {w: model.fit(X, coordinates=coordinates).embedding_ for w, model in share.items()}
    np.testing.assert_allclose(made[0.3], 0.7 * made[0.0] + 0.3 * made[1.0], atol=1e-5)
    assert np.abs(made[0.0] - made[1.0]).max() > 0.01
    model = AMILST(K, settings={**QUICK, "cluster_on": "latent"}).fit(X, coordinates=coordinates)
    np.testing.assert_array_equal(model.embedding_, model.latent_)
    assert model.latent_.shape == (N, 2 * 28)


def test_no_filter_leaves_the_features_standardized(section):
    X, coordinates, _ = section
    settings = {**QUICK, "noise_band": None, "network_share": 0.0}
    plain = AMILST(K, settings=settings).fit(X, coordinates=coordinates).embedding_
    np.testing.assert_allclose(plain, standardize(torch.from_numpy(X)).numpy(), atol=1e-6)


def test_published_recipe_takes_the_features_as_they_are(section):
    X, coordinates, _ = section
    settings = {"epochs": 2, "method": "gmm", "n_init": 2}
    model = AMILST(K, preset="published", settings=settings).fit(X, coordinates=coordinates)
    assert {"clustering", "prior", "adversarial"} <= set(model.history_)
    assert "filter" not in model.seconds_ and len(model.history_["epoch"]) == 4


@pytest.mark.parametrize(
    ("n_spots", "n_domains", "settings", "error"),
    [
        (19, None, {}, "at least 20 spots"),
        (240, 1, {}, "integer >= 2"),
        (240, 241, {}, "must not exceed the number of spots"),
    ],
)
def test_what_cannot_be_run_is_refused_before_training(section, n_spots, n_domains, settings, error):
    X, coordinates, _ = section
    model = AMILST(n_domains, settings=settings, callback=lambda *_: pytest.fail("training began"))
    with pytest.raises(InputError, match=error):
        model.fit(X[:n_spots], coordinates=coordinates[:n_spots])


@pytest.mark.parametrize("seed", [-1, 2**70, 1.5])
def test_seeds_are_refused_before_training(section, seed):
    X, coordinates, _ = section
    model = AMILST(K, seed=seed, callback=lambda *_: pytest.fail("training began"))
    with pytest.raises(InputError, match="seed"):
        model.fit(X, coordinates=coordinates)


def test_missing_igraph_is_found_before_training(section, monkeypatch):
    X, coordinates, _ = section
    monkeypatch.setattr("amilst_lite.estimator.find_spec", lambda name: None)
    model = AMILST(K, preset="published", callback=lambda *_: pytest.fail("training began"))
    with pytest.raises(MissingExtraError, match=r"amilst-lite\[leiden\]"):
        model.fit(X, coordinates=coordinates)


def test_sparse_features_are_refused_with_advice(section):
    from scipy import sparse

    X, coordinates, _ = section
    with pytest.raises(InputError, match="found a sparse matrix. Reduce counts first"):
        AMILST(K).fit(sparse.csr_matrix(X), coordinates=coordinates)


def test_in_a_scikit_learn_pipeline(section, fitted):
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    X, coordinates, _ = section
    pipeline = make_pipeline(FunctionTransformer(), AMILST(K, seed=0, settings=QUICK))
    labels = pipeline.fit_predict(X, amilst__coordinates=coordinates)
    np.testing.assert_array_equal(labels, fitted.labels_)


def test_result_does_not_depend_on_order_rotation_or_scale(section, fitted):
    X, coordinates, _ = section
    shuffle = np.random.default_rng(4).permutation(N)
    turned = 100 * coordinates[shuffle].astype(float) @ [[0.8, -0.6], [0.6, 0.8]]
    other = AMILST(K, seed=0, settings=QUICK).fit(X[shuffle], coordinates=turned)
    np.testing.assert_allclose(other.embedding_, fitted.embedding_[shuffle], atol=1e-3)
    assert adjusted_rand_score(other.labels_, fitted.labels_[shuffle]) >= 0.99


def sections_with_an_effect(n_sections=3, effect=6.0, seed=0):
    """Sections of stripes of three domains on grids, the features of each shifted."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.arange(18), np.arange(12)), -1).reshape(-1, 2).astype(float)
    domains = np.tile((grid[:, 0] // 6).astype(int), n_sections)
    sections = np.repeat(np.arange(n_sections), len(grid))
    shifts = effect * rng.normal(size=(n_sections, 8)) / np.sqrt(8)
    X = 4 * np.eye(3, 8)[domains] + shifts[sections] + rng.normal(size=(len(domains), 8))
    return X.astype(np.float32), np.tile(grid, (n_sections, 1)), sections, domains


def test_section_effects_are_corrected_and_recorded():
    X, coordinates, sections, domains = sections_with_an_effect()
    names = np.array(["a", "b", "c"])[sections]
    model = AMILST(3, settings={"epochs": 2, "shrinkage": 0.2}, device="cpu")
    labels = model.fit_predict(X, coordinates=coordinates, sample=names)
    assert model.section_effect_.method in ("center", "shift")
    assert model.seconds_["correct"] > 0
    assert adjusted_rand_score(domains, labels) > 0.9


def test_domains_that_follow_the_sections_are_reported():
    X, coordinates, sections, domains = sections_with_an_effect(effect=20.0)
    model = AMILST(3, settings={"epochs": 2, "shrinkage": 0.2, "batch_correction": "none"}, device="cpu")
    with pytest.warns(AmilstWarning, match="largely follow the sections.*--batch-correction"):
        labels = model.fit_predict(X, coordinates=coordinates, sample=sections)
    assert model.section_effect_.method == "none"
    assert adjusted_rand_score(domains, labels) < 0.3


@pytest.mark.parametrize("method", ["none", "center", "shift", "offsets"])
@pytest.mark.filterwarnings("ignore:the domains largely follow")
def test_batch_correction_is_the_one_named(method):
    X, coordinates, sections, _ = sections_with_an_effect()
    settings = {"epochs": 1, "shrinkage": 0.2, "n_init": 4, "batch_correction": method}
    model = AMILST(3, settings=settings, device="cpu").fit(X, coordinates=coordinates, sample=sections)
    assert model.section_effect_.method == method
    assert (model.section_effect_.offsets is not None) == (method == "offsets")
    assert (model.section_effect_.strength > 0.1) == (method != "none")
