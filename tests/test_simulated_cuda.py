"""The package on a simulated CUDA device: the results of the CPU, few host waits, deterministic operations only."""

from __future__ import annotations

import io
import json
import pickle
import sys
import warnings
from collections import Counter

import numpy as np
import pytest
import simulated_cuda as simulation
import torch
from scipy import sparse
from simulated_cuda import simulated_cuda
from sklearn.metrics import adjusted_rand_score

import amilst_lite
from amilst_lite import AMILST, PCA, GaussianMixture, InputError, KMeans, SpatialGraph, resources
from amilst_lite.cluster import restarts, shrinkage
from amilst_lite.cluster.domains import find_domains
from amilst_lite.cluster.kmeans import lloyd
from amilst_lite.cluster.selection import select_n_domains
from amilst_lite.config import ClusterConfig, Config, NetworkConfig, TrainConfig, preset
from amilst_lite.nn.sparse import SymmetricAdjacency
from amilst_lite.preprocess.counts import dense_block
from amilst_lite.preprocess.normalize import select_genes
from amilst_lite.simulate import simulate_tissue
from amilst_lite.spatial.refine import majority_vote
from amilst_lite.spatial.spectral_filter import standardize, wiener_filter
from amilst_lite.train import TRAINERS

if (reason := simulation.unsupported()) is not None:
    pytest.skip(reason, allow_module_level=True)

FAST = {"epochs": 10, "n_networks": 2, "n_init": 3, "shrinkage": 0.2}


@pytest.fixture(scope="module", autouse=True)
def _deterministic():
    """Every test refuses operations without a deterministic CUDA kernel."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(scope="module", autouse=True)
def _few_steps():
    """The mixtures of `AMILST` stop early: steps of EM are alike, and take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shrinkage, "COLUMNS", (1 / 2, 1.0))
        patch.setattr(restarts, "_ROUNDS", ((4, 2), (20, 1)))
        patch.setattr(restarts, "_TOL", 1e-4)
        yield


@pytest.fixture(scope="module")
def tissue():
    return simulate_tissue(300, 100, 4, signal=2.0, seed=0)


@pytest.fixture(scope="module")
def X(tissue):
    return PCA(12, random_state=0).fit_transform(np.log1p(tissue.counts.toarray().astype(np.float32)))


@pytest.fixture(scope="module")
def graph(tissue):
    return SpatialGraph.from_coordinates(tissue.coordinates, n_neighbors=6)


def waits_at(waits: Counter, *folders: str) -> int:
    """How many of the waits were caused by lines of these parts of the package."""
    return sum(n for (_, line), n in waits.items() if line.startswith(folders))


def here() -> str:
    """The caller's line, as the record writes it; the caller waits on the next one."""
    frame = sys._getframe(1)
    return f"test_simulated_cuda.py:{frame.f_lineno + 1} {frame.f_code.co_name}"


# --- the simulation itself ------------------------------------------------------------------


def test_operands_on_different_devices_are_refused():
    with simulated_cuda(2):
        x, other, host = torch.ones(3, device="cuda"), torch.ones(3, device="cuda:1"), torch.ones(3)
        refused = [
            lambda: x + host,
            lambda: host + x,
            lambda: x + other,
            lambda: torch.dot(x, host),
            lambda: host.add_(x),
            lambda: torch.zeros(()).add_(x[0]),
            lambda: torch.cat([x, host]),
            lambda: host[torch.zeros(1, dtype=torch.long, device="cuda")],
            lambda: x.index_put_((torch.tensor([0, 1]),), torch.ones(2)),
        ]
        for operation in refused:
            with pytest.raises(RuntimeError, match="same device"):
                operation()
        # a number and a CPU index are accepted
        assert (x + torch.tensor(1.0)).device == torch.device("cuda", 0)
        assert x[torch.tensor([2])].tolist() == [1.0]
        assert torch.where(x > 0, x, 0.0).tolist() == [1.0, 1.0, 1.0]


def test_conversion_to_numpy_is_refused():
    with simulated_cuda():
        x = torch.ones(3, device="cuda")
        for convert in (lambda: x.numpy(), lambda: np.asarray(x), lambda: np.mean([x, x])):
            with pytest.raises(TypeError, match="to numpy"):
                convert()
        assert x.cpu().numpy().tolist() == [1.0, 1.0, 1.0]


def test_generator_of_another_device_is_refused():
    with simulated_cuda():
        on_host, on_device = torch.Generator().manual_seed(0), torch.Generator("cuda").manual_seed(0)
        for draw in (
            lambda: torch.rand(3, device="cuda", generator=on_host),
            lambda: torch.randperm(3, generator=on_device),
            lambda: torch.empty(3, device="cuda").normal_(generator=on_host),
        ):
            with pytest.raises(RuntimeError, match="generator"):
                draw()
        drawn = torch.rand(3, device="cuda", generator=on_device)
        assert drawn.tolist() == torch.rand(3, generator=on_host).tolist()


def test_operations_without_deterministic_kernel_are_refused():
    with simulated_cuda():
        x, index = torch.ones(3, device="cuda"), torch.tensor([0, 0, 1], device="cuda")
        operations = [
            lambda: x.cumsum(0),
            lambda: x.clone().put_(index, x),
            lambda: x.clone().index_add_(0, index, x),
            lambda: x.scatter_add(0, index, x),
            lambda: torch.histc(x),
            lambda: torch.bincount(index, weights=x),
        ]
        for operation in operations:
            with pytest.raises(RuntimeError, match="deterministic"):
                operation()
        assert index.cumsum(0).tolist() == [0, 0, 1]
        torch.use_deterministic_algorithms(False)
        try:
            for operation in operations:
                assert operation().is_cuda
        finally:
            torch.use_deterministic_algorithms(True)


def test_host_waits_are_recorded_with_their_line():
    with simulated_cuda() as cuda:
        x = torch.arange(4.0, device="cuda")
        expected = []
        expected.append(("item", here()))
        float(x[0])
        expected.append(("item", here()))
        bool(x.sum() > 0)
        expected.append(("tolist", here()))
        x.tolist()
        expected.append(("download", here()))
        x.cpu()
        expected.append(("download", here()))
        x.to("cpu", torch.float64)
        expected.append(("download", here()))
        torch.empty(4).copy_(x)
        expected.append(("nonzero", here()))
        torch.nonzero(x)
        mask = x > 1
        expected.append(("boolean mask", here()))
        x[mask]
        expected.append(("unique", here()))
        x.unique()
        x[mask] = 0  # becomes masked_fill
        assert (x[:2] * 2 + 1).sum().sqrt().shape == ()
    assert cuda.waits == Counter(expected), cuda.report()
    assert "nonzero" in cuda.report()
    assert sum(n for (kind, _), n in cuda.copies.items() if kind == "upload") == 0


def test_lines_are_those_of_the_package():
    with simulated_cuda() as cuda:
        standardize(torch.rand(10, 3, device="cuda"))
    assert {operation for operation, _ in cuda.waits} == {"item", "download"}
    for _, line in (*cuda.waits, *cuda.launches):
        file, place = line.split(":")
        if file != "test_simulated_cuda.py":
            assert file in ("spatial/spectral_filter.py", "distributed.py")
            assert place.endswith((" of", " spread", " apply", " column_means", " <genexpr>", " <listcomp>"))
    assert any(operation == "mean" for operation, _ in cuda.launches)


def test_gradients_on_the_device_equal_those_on_the_cpu():
    def gradient(device):
        x = torch.linspace(-1, 1, 12).view(3, 4).to(device).requires_grad_()
        layer = torch.nn.Linear(4, 2)
        with torch.no_grad():
            layer.weight.copy_(torch.arange(8.0).view(2, 4))
            layer.bias.zero_()
        layer = layer.to(device)
        layer(x).tanh().square().sum().backward()
        optimizer = torch.optim.Adam(layer.parameters(), 0.1)
        optimizer.step()
        return [t.detach().cpu() for t in (x.grad, layer.weight.grad, layer.weight)], x.grad.device.type

    expected, _ = gradient("cpu")
    with simulated_cuda() as cuda:
        found, place = gradient("cuda")
    assert place == "cuda" and cuda.launches.total() > 10
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other)


def test_the_device_ends_with_its_context():
    with simulated_cuda():
        x = torch.ones(3, device="cuda")
        pickled = pickle.dumps(x)
        assert pickle.loads(pickled).is_cuda
        saved = io.BytesIO()
        torch.save({"x": x.cpu()}, saved)
        with pytest.raises(RuntimeError, match="ordinal"):
            torch.ones(3, device="cuda:1")
    assert not torch.cuda.is_available()
    for use in (lambda: x + 1, lambda: x.cpu(), lambda: x.tolist(), lambda: pickle.loads(pickled)):
        with pytest.raises(RuntimeError, match="CUDA device"):
            use()
    saved.seek(0)
    assert torch.load(saved)["x"].tolist() == [1.0, 1.0, 1.0]


def test_other_versions_of_torch_are_refused(monkeypatch):
    monkeypatch.setattr(simulation, "TESTED", ("1.0",))
    assert "tested with torch 1.0" in simulation.unsupported()
    with pytest.raises(RuntimeError, match=r"tested with torch 1\.0"), simulated_cuda():
        pass


# --- the whole method -----------------------------------------------------------------------


def fit(X, tissue, device, preset="default", **settings):
    return AMILST(4, preset=preset, settings=settings, device=device).fit(X, coordinates=tissue.coordinates)


def fit_on_both(X, tissue, **settings):
    """Models of the CPU and of the device, and the record of the device."""
    on_cpu = fit(X, tissue, "cpu", **FAST, **settings)
    with simulated_cuda() as cuda:
        return on_cpu, fit(X, tissue, "cuda", **FAST, **settings), cuda


@pytest.fixture(scope="module")
def fitted(X, tissue):
    return fit_on_both(X, tissue)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"batch_size": 80},
        pytest.param({"decoder": "graph", "dropout": 0.2}, marks=pytest.mark.slow),
        pytest.param({"noise_band": None}, marks=pytest.mark.slow),
        pytest.param({"adversary": False}, marks=pytest.mark.slow),
    ],
    ids=["default", "tiles", "graph-decoder", "no-filter", "no-adversary"],
)
def test_default_preset_equals_the_cpu(X, tissue, fitted, settings):
    on_cpu, on_cuda, cuda = fit_on_both(X, tissue, **settings) if settings else fitted
    assert cuda.launches.total() > 1000
    np.testing.assert_array_equal(on_cuda.labels_, on_cpu.labels_)
    np.testing.assert_array_equal(on_cuda.refined_labels_, on_cpu.refined_labels_)
    np.testing.assert_allclose(on_cuda.embedding_, on_cpu.embedding_, atol=1e-5)
    # training and EM, which stops before it has converged to the last digit, amplify the rounding of the filter
    np.testing.assert_allclose(on_cuda.latent_, on_cpu.latent_, atol=1e-3)
    np.testing.assert_allclose(on_cuda.probabilities_, on_cpu.probabilities_, atol=1e-3)
    assert on_cuda.history_.keys() == on_cpu.history_.keys()
    for name, series in on_cpu.history_.items():
        np.testing.assert_allclose(on_cuda.history_[name], series, rtol=1e-4, atol=1e-5, err_msg=name)


def test_published_preset_is_close_to_the_cpu(X, tissue):
    """Biases before batch normalization have a gradient of zero, which rounding makes nonzero; Adam divides
    it by its own size, so that the state of two devices differs by whole steps and not by rounding."""
    pytest.importorskip("igraph")
    on_cpu = fit(X, tissue, "cpu", "published", epochs=4)
    with simulated_cuda():
        on_cuda = fit(X, tissue, "cuda", "published", epochs=4)
    scale = np.abs(on_cpu.latent_).max()
    np.testing.assert_allclose(on_cuda.latent_, on_cpu.latent_, atol=0.01 * scale)
    assert adjusted_rand_score(on_cuda.labels_, on_cpu.labels_) > 0.9


def test_depth_on_the_device_equals_the_cpu(X, tissue):
    depth = np.random.default_rng(0).uniform(1, 100, len(X))
    options = {"coordinates": tissue.coordinates, "depth": depth}
    settings = {"epochs": 1, "n_init": 2, "shrinkage": 0.2}
    plain = fit(X, tissue, "cpu", **settings).embedding_
    on_cpu = AMILST(4, settings=settings).fit(X, **options).embedding_
    with simulated_cuda():
        on_cuda = AMILST(4, settings=settings, device="cuda").fit(X, **options).embedding_
    np.testing.assert_allclose(on_cuda, on_cpu, atol=1e-4)
    assert np.abs(plain - on_cpu).max() > 0.1


@pytest.mark.parametrize(
    "cluster",
    [
        {"method": "kmeans"},
        pytest.param({"cluster_on": "latent", "covariance_type": "diag"}, marks=pytest.mark.slow),
    ],
)
def test_other_clusterings_equal_the_cpu(X, tissue, cluster):
    on_cpu = fit(X, tissue, "cpu", **{**FAST, **cluster})
    with simulated_cuda():
        on_cuda = fit(X, tissue, "cuda", **{**FAST, **cluster})
    # training amplifies the rounding of the filter to 5e-4 of z: spots between two domains can fall on either side
    first, second = np.sort(on_cpu.probabilities_, 1)[:, :-3:-1].T
    decided = first - second > 0.1
    assert decided.mean() > 0.6
    np.testing.assert_array_equal(on_cuda.labels_[decided], on_cpu.labels_[decided])


def test_tensors_on_the_device_are_accepted(X, tissue, fitted):
    with simulated_cuda():
        features = torch.from_numpy(X).to("cuda")
        coordinates = torch.from_numpy(tissue.coordinates).to("cuda")
        sample = np.zeros(len(X), dtype=int)
        for device in ("cuda", "cpu"):
            model = AMILST(4, settings=FAST, device=device)
            labels = model.fit_predict(features, coordinates=coordinates, sample=sample)
            np.testing.assert_array_equal(labels, fitted[0].labels_)


def test_fitted_model_does_not_need_the_device(X, fitted):
    _, model, _ = fitted
    assert {tensor.device.type for tensor in model.network_.state_dict().values()} == {"cpu"}
    loaded = pickle.loads(pickle.dumps(model))
    for name, value in model.network_.state_dict().items():
        assert torch.equal(loaded.network_.state_dict()[name], value)
    adjacency = SymmetricAdjacency(loaded.graph_.adjacency())
    with torch.no_grad():
        output = loaded.network_(torch.from_numpy(X[loaded.graph_.order]), adjacency)
    assert torch.isfinite(output.reconstruction).all()


@pytest.mark.parametrize("trained_on", ["cpu", "cuda"])
def test_saved_model_labels_alike_on_both_devices(X, tissue, tmp_path, trained_on):
    with simulated_cuda():
        fit(X, tissue, trained_on, **FAST, network_share=0.3).save(tmp_path / "model.h5")
        new = X[::-1].copy() + np.float32(0.5)
        depth = np.random.default_rng(0).uniform(1, 100, len(X))
        results = [
            AMILST.load(tmp_path / "model.h5", device=device).apply(
                new, coordinates=tissue.coordinates[::-1], depth=depth
            )
            for device in ("cpu", "cuda")
        ]
    on_cpu, on_cuda = results
    np.testing.assert_array_equal(on_cuda.labels, on_cpu.labels)
    np.testing.assert_allclose(on_cuda.probabilities, on_cpu.probabilities, atol=1e-3)
    # the EM that estimates the shift of the section stops before it has converged to the last digit
    np.testing.assert_allclose(on_cuda.embedding, on_cpu.embedding, atol=5e-4)
    np.testing.assert_allclose(on_cuda.latent, on_cpu.latent, atol=1e-3)


def test_device_out_of_range_is_refused_with_the_number_of_devices(X, tissue):
    with simulated_cuda(), pytest.raises(InputError, match=r"\b1\b.*CUDA device") as refused:
        fit(X, tissue, "cuda:1", **FAST)
    assert "install" not in str(refused.value)


def test_second_device_is_used(X, tissue):
    expected = KMeans(4).fit(X)
    with simulated_cuda(2) as cuda:
        found = KMeans(4, device="cuda:1").fit(X)
        fit(X, tissue, "cuda:1", epochs=1, n_networks=1, n_init=1, shrinkage=0.2)
    np.testing.assert_array_equal(found.labels_, expected.labels_)
    assert cuda.launches.total() > 0


@pytest.mark.parametrize(
    "use_counts",
    [True, pytest.param(False, marks=pytest.mark.slow)],
    ids=["counts", "representation"],
)
def test_results_of_the_device_are_written_without_it(tmp_path, use_counts):
    def run(device):
        section = amilst_lite.simulate_section(300, 100, 4, seed=0)
        section.obsm["rep"] = section.X[:, :12].toarray()
        options = {"n_components": 10, "n_top_genes": 60} if use_counts else {"use_rep": "rep"}
        model = amilst_lite.identify_domains(section, 4, device=device, **options, **FAST)
        other = section[::-1].copy()
        amilst_lite.apply_model(other, model, device=device, key_added="other")
        section.obs["applied"] = other.obs["other_domain"]
        amilst_lite.denoise(section)
        return section

    expected = run("cpu")
    with simulated_cuda():
        section = run("cuda")
    for name in ("amilst_domain", "amilst_domain_refined", "applied"):
        assert (section.obs[name] == expected.obs[name]).all()
    # components of nearly equal variance turn into each other with the rounding of the counts' covariance
    tolerance = 5e-3 if use_counts else 1e-5
    np.testing.assert_allclose(section.obsm["X_amilst"], expected.obsm["X_amilst"], atol=tolerance)
    denoised, on_cpu = (one.layers["amilst_denoised"] for one in (section, expected))
    np.testing.assert_allclose(denoised, on_cpu, atol=tolerance)
    amilst_lite.write_results(section, tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["device"].startswith("cuda") and record["peak_memory"]["vram_bytes"] > 10**5
    assert (tmp_path / "result.h5ad").exists()


# --- the parts ------------------------------------------------------------------------------


def test_graph_from_coordinates_on_the_device(tissue, graph):
    with simulated_cuda():
        coordinates = torch.from_numpy(tissue.coordinates).to("cuda")
        found = SpatialGraph.from_coordinates(coordinates, n_neighbors=6)
    assert torch.equal(found.edges, graph.edges) and np.array_equal(found.order, graph.order)


def arrangements():
    rng = np.random.default_rng(0)
    steps = np.stack(np.meshgrid(np.arange(12.0), np.arange(15.0)), -1).reshape(-1, 2)
    crowded = rng.random((150, 2))
    crowded[20:40] = crowded[0]
    return {
        "scattered": rng.random((200, 2)),
        "square grid": steps,
        "three dimensions": np.c_[rng.random((200, 2)), rng.integers(0, 3, 200)],
        "uneven": rng.standard_cauchy((200, 2)),
        "one place": crowded,
    }


@pytest.mark.parametrize("name", arrangements())
def test_search_on_the_device_equals_the_tree(name):
    points = arrangements()[name]
    sample = np.arange(len(points)) % 2
    options = {"n_neighbors": 6, "sample": sample}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", amilst_lite.AmilstWarning)
        expected = SpatialGraph.from_coordinates(points, **options)
        with simulated_cuda() as cuda:
            found = SpatialGraph.from_coordinates(points, **options, device="cuda")
    assert waits_at(cuda.launches, "spatial/grid.py") > 100
    for one, other in ((found.edges, expected.edges), (found.distances, expected.distances)):
        assert torch.equal(one, other)
    labels = np.random.default_rng(1).integers(0, 11, len(points))
    places, sections = points[expected.order], sample[expected.order]
    with simulated_cuda():
        votes = [
            majority_vote(labels, places, 5, sections, graph=graph, device=device)
            for device in ("cpu", "cuda")
            for graph in (None, expected)
        ]
    for vote in votes[1:]:
        np.testing.assert_array_equal(vote, votes[0])


@pytest.mark.parametrize("in_sections", [False, True])
def test_gene_choice_equals_the_cpu(tissue, graph, in_sections):
    options = {
        "neighbors": graph.connectivities(),
        "sections": np.arange(300) // 100 if in_sections else None,
    }
    counts = tissue.counts.tocsr().astype(np.float32)
    expected = select_genes(counts, 30, **options)
    with simulated_cuda() as cuda:
        found = select_genes(counts, 30, **options, device="cuda")
    np.testing.assert_array_equal(found, expected)
    assert waits_at(cuda.waits, "preprocess/") == 1, cuda.report()


@pytest.mark.parametrize("form", ["csr", "csc", "duplicates", "array"])
def test_sparse_blocks_become_dense_on_the_device(tissue, form):
    dense = tissue.counts.toarray().astype(np.float32)[:40]
    block = dense if form == "array" else sparse.csr_matrix(dense)
    if form == "csc":
        block = block.tocsc()
    elif form == "duplicates":
        indptr, indices = 2 * block.indptr, np.repeat(block.indices, 2)
        block = sparse.csr_matrix((np.repeat(block.data, 2) / 2, indices, indptr), shape=dense.shape)
    with simulated_cuda() as cuda:
        made = dense_block(block, torch.device("cuda"))
        uploaded = sum(n for (kind, _), n in cuda.copies.items() if kind == "upload")
        assert made.is_cuda and cuda.waits.total() <= 1 and uploaded == (1 if form == "array" else 3)
        np.testing.assert_array_equal(made.cpu().numpy(), dense)


@pytest.mark.parametrize("on_device", [False, True], ids=["array", "tensor"])
def test_kmeans_equals_the_cpu(X, on_device):
    on_cpu = KMeans(5, n_init=4).fit(X)
    with simulated_cuda():
        on_cuda = KMeans(5, n_init=4, device="cuda").fit(torch.from_numpy(X).to("cuda") if on_device else X)
        predicted, distances = on_cuda.predict(X), on_cuda.transform(X)
    np.testing.assert_array_equal(on_cuda.labels_, on_cpu.labels_)
    np.testing.assert_array_equal(predicted, on_cpu.labels_)
    np.testing.assert_allclose(on_cuda.cluster_centers_, on_cpu.cluster_centers_, atol=1e-5)
    np.testing.assert_allclose(distances, on_cpu.transform(X), atol=1e-5)


def test_kmeans_by_subsample_equals_the_cpu(X):
    on_cpu = KMeans(3, batch_size=100).fit(X)
    with simulated_cuda():
        on_cuda = KMeans(3, batch_size=100, device="cuda").fit(X)
    np.testing.assert_array_equal(on_cuda.labels_, on_cpu.labels_)


def test_kmeans_with_too_few_distinct_rows_equals_the_cpu():
    rows = np.repeat(np.eye(3, dtype=np.float32), 5, axis=0)
    with pytest.warns(amilst_lite.AmilstWarning):
        on_cpu = KMeans(4).fit(rows)
    with simulated_cuda(), pytest.warns(amilst_lite.AmilstWarning):
        on_cuda = KMeans(4, device="cuda").fit(rows)
    np.testing.assert_array_equal(on_cuda.labels_, on_cpu.labels_)


@pytest.mark.parametrize(
    "covariance_type", ["tied_spherical", "spherical", "tied_diag", "diag", "tied", "full"]
)
@pytest.mark.parametrize("prior", [0.0, 100.0])
def test_mixture_equals_the_cpu(X, covariance_type, prior):
    options = {"covariance_type": covariance_type, "covariance_prior": prior, "n_init": 6}
    on_cpu = GaussianMixture(4, **options).fit(X)
    with simulated_cuda():
        on_cuda = GaussianMixture(4, device="cuda", **options).fit(torch.from_numpy(X).to("cuda"))
        labels, posterior = on_cuda.predict(X), on_cuda.predict_proba(X)
    np.testing.assert_array_equal(labels, on_cpu.predict(X))
    np.testing.assert_allclose(posterior, on_cpu.predict_proba(X), atol=1e-5)
    np.testing.assert_allclose(on_cuda.covariances_, on_cpu.covariances_, rtol=1e-4, atol=1e-5)
    assert on_cuda.log_likelihood_ == pytest.approx(on_cpu.log_likelihood_, rel=1e-6)


def test_mixture_by_subsample_and_from_labels_equals_the_cpu(X):
    start = KMeans(4).fit_predict(X)
    fits = {}
    for device in ("cpu", "cuda"):
        with simulated_cuda():
            by_subsample = GaussianMixture(4, n_init=6, batch_size=150, device=device).fit_predict(X)
            from_labels = GaussianMixture(4, device=device).fit_predict(X, init=start)
        fits[device] = by_subsample, from_labels
    np.testing.assert_array_equal(fits["cuda"], fits["cpu"])


def test_moves_of_many_components_equal_the_cpu(monkeypatch):
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(12), 40)
    X = torch.from_numpy((8 * rng.normal(size=(12, 4))[truth] + rng.normal(size=(480, 4))).astype(np.float32))
    start = np.where(truth == 1, 0, truth)  # two groups are together
    start[(truth == 2) & (np.arange(480) % 2 == 0)] = 1
    labels = torch.from_numpy(start).int()[None]
    monkeypatch.setattr(restarts, "short_kmeans", lambda *arguments: labels.to(arguments[3]))
    monkeypatch.setattr(restarts, "_MOVE_ROUNDS", ((3, 2), (5, 1)))
    found = {}
    for device in ("cpu", "cuda"):
        with simulated_cuda():
            path = restarts.Restarts(X, 12, "tied", 1, 0, torch.device(device))
            found[device] = path.search([0.1])[0]
    for on_cuda, on_cpu in zip(found["cuda"], found["cpu"], strict=True):
        np.testing.assert_allclose(on_cuda, on_cpu, atol=1e-4)
    assert np.ptp(found["cpu"][0]) < 0.01  # all groups of one size


@pytest.mark.parametrize("method", ["gmm", "kmeans", "leiden"])
def test_find_domains_equals_the_cpu(X, method):
    if method == "leiden":
        pytest.importorskip("igraph")
    config = ClusterConfig(method=method, n_init=4, shrinkage=0.2)  # all shares: in the default preset, above
    on_cpu = find_domains(X, 4, config)
    with simulated_cuda():
        embedding = torch.from_numpy(X).to("cuda").requires_grad_()
        on_cuda = find_domains(embedding, 4, config, device="cuda")
    np.testing.assert_array_equal(on_cuda.labels, on_cpu.labels)
    np.testing.assert_allclose(on_cuda.probabilities, on_cpu.probabilities, atol=1e-5)


def test_select_n_domains_equals_the_cpu(X):
    options = {"candidates": (3, 4), "config": ClusterConfig(n_init=4)}
    on_cpu = select_n_domains(X, **options)
    with simulated_cuda():
        on_cuda = select_n_domains(X, **options, device="cuda")
    assert on_cuda.n_domains == on_cpu.n_domains
    np.testing.assert_allclose(on_cuda.table, on_cpu.table, rtol=1e-5)


@pytest.mark.parametrize("solver", ["exact", "randomized"])
@pytest.mark.parametrize("clip", [None, 3.0])
def test_pca_equals_the_cpu(tissue, solver, clip):
    counts = tissue.counts.astype(np.float32)
    options = {"n_components": 8, "solver": solver, "scale": True, "clip": clip}
    for rows in (counts, counts.toarray()[:60]):  # more rows than columns, and fewer
        expected = PCA(**options).fit_transform(rows)
        with simulated_cuda():
            model = PCA(**options, device="cuda")
            scores = model.fit_transform(rows)
            chunks = PCA(**options, device="cuda").fit_chunks(lambda rows=rows: iter([rows[:30], rows[30:]]))
        np.testing.assert_allclose(scores, expected, atol=2e-3)
        assert model.solver_ == solver
        np.testing.assert_allclose(chunks.explained_variance_, model.explained_variance_, rtol=1e-3)


def test_pca_of_a_tensor_on_the_device(X):
    expected = PCA(5).fit_transform(X)
    with simulated_cuda():
        scores = PCA(5, device="cuda").fit_transform(torch.from_numpy(X).to("cuda"))
    np.testing.assert_allclose(scores, expected, atol=1e-4)


def run_filter(graph, features, device, **options):
    adjacency = SymmetricAdjacency(graph.adjacency(device))
    filtered, gain = wiener_filter(torch.from_numpy(features).to(device), adjacency, **options)
    return filtered.cpu().numpy(), gain


def test_filter_equals_the_cpu(X, graph):
    features = X[graph.order]
    on_cpu, gain_on_cpu = run_filter(graph, features, "cpu")
    with simulated_cuda():
        on_cuda, gain = run_filter(graph, features, "cuda")
    np.testing.assert_allclose(on_cuda, on_cpu, atol=1e-4 * np.abs(on_cpu).max())
    np.testing.assert_allclose(gain, gain_on_cpu, atol=1e-4)


# --- host waits and launches ----------------------------------------------------------------


def test_waits_of_the_filter_do_not_depend_on_the_degree(X, graph):
    waits = []
    for degree in (16, 64):
        with simulated_cuda() as cuda:
            run_filter(graph, X[graph.order], "cuda", degree=degree)
        waits.append(waits_at(cuda.waits, "spatial/", "nn/"))
        assert waits[-1] <= 8, cuda.report()  # fitting and filtering each find the degrees of the nodes
    assert waits[0] == waits[1]


def test_launches_of_the_filter_do_not_depend_on_the_number_of_spots():
    rng = np.random.default_rng(0)
    launches = []
    for n in (400, 20_000):
        graph = SpatialGraph.from_coordinates(rng.random((n, 2)), n_neighbors=6)
        with simulated_cuda() as cuda:
            run_filter(graph, rng.standard_normal((n, 4), dtype=np.float32), "cuda", degree=8)
        launches.append(cuda.launches.total())
    assert launches[0] == launches[1]


@pytest.mark.parametrize(
    ("recipe", "batch_size"), [("default", 40_000), ("default", 80), ("published", 80)], ids=str
)
def test_training_waits_once_in_ten_epochs(X, graph, recipe, batch_size):
    features = standardize(torch.from_numpy(X[graph.order]))
    waits, n_recorded = [], []
    for epochs in (10, 20):
        defaults = preset(recipe)
        config = TrainConfig(recipe=recipe, epochs=epochs, batch_size=batch_size, n_networks=1)
        network = NetworkConfig(dropout=defaults.network.dropout, decoder=defaults.network.decoder)
        with simulated_cuda() as cuda:
            trainer = TRAINERS[recipe](
                features, graph, network_config=network, config=config, device=torch.device("cuda")
            )
            before = cuda.waits.copy()
            history = trainer.run().history
        # k-means, which places the centers of the published recipe, waits for reasons of its own
        waits.append(waits_at(cuda.waits - before, "train/", "nn/"))
        n_recorded.append(len(history["epoch"]))
        # after the last epoch, the two outputs are checked
        assert waits[-1] <= n_recorded[-1] / 10 + 2, cuda.report()
    assert waits[1] - waits[0] <= (n_recorded[1] - n_recorded[0]) / 10


def test_pass_of_lloyd_waits_once(X):
    waits = []
    for passes in (3, 9):
        with simulated_cuda() as cuda:
            rows = torch.from_numpy(X).to("cuda")
            *_, done = lloyd(rows, rows[:10].view(2, 5, -1), max_iter=passes, tol=-1.0)
        assert done == passes
        waits.append(cuda.waits.total())
    assert waits[1] - waits[0] <= 6, cuda.report()


@pytest.mark.parametrize("covariance_type", ["tied", "full", "diag"])
def test_pass_of_em_waits_once(X, covariance_type):
    start, waits = KMeans(4).fit_predict(X), []
    for passes in (3, 9):
        with simulated_cuda() as cuda:
            # with 300 pseudo-observations the likelihood is far from its maximum in the first passes
            model = GaussianMixture(
                4,
                covariance_type=covariance_type,
                tol=0,
                max_iter=passes,
                covariance_prior=300,
                device="cuda",
            )
            model.fit(X, init=start)
        assert model.n_iter_ == passes
        waits.append(cuda.waits.total())
    # the steps themselves do not wait: one download tells the host what has converged or needs care
    assert waits[1] - waits[0] == 6, cuda.report()


# --- memory ---------------------------------------------------------------------------------


def test_bytes_alive_are_counted_once():
    with simulated_cuda() as cuda:
        x = torch.zeros(1000, device="cuda")
        view, other = x.view(10, 100)[2:], x + 1
        assert cuda.alive == cuda.peak == cuda.moved == 8000
        del x, other
        assert cuda.alive == 4000
        view += 1
        del view
        assert cuda.alive == 0 and cuda.peak >= 8000
        assert torch.cuda.max_memory_allocated() == cuda.peak


@pytest.mark.parametrize(("n", "width", "batch_size"), [(3000, 30, 500), (3000, 60, 500), (1500, 30, 40_000)])
def test_peak_memory_is_as_estimated(n, width, batch_size):
    """To the margin that the estimate allows itself, where the filter, or a training step, needs most."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((n, width), dtype=np.float32) * np.linspace(3, 0.3, width, dtype=np.float32)
    points = rng.random((n, 2))
    rows[:, 0] += 10 * points[:, 0]
    settings = {"epochs": 1, "n_init": 1, "shrinkage": 0.2, "method": "kmeans", "batch_size": batch_size}
    with simulated_cuda() as cuda:
        AMILST(4, settings=settings, device="cuda").fit(rows, coordinates=points)
    config = Config().replace(**settings, n_components=width)
    expected = resources.estimate(n, 0, config, n_domains=4, device="cuda").vram_bytes
    assert expected / resources._TOLERANCE < cuda.peak < expected * resources._TOLERANCE
