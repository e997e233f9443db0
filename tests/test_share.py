"""The share of the network, by counts set aside."""

import sys

import numpy as np
import pytest
import torch
from scipy import sparse

from amilst_lite.config import Config
from amilst_lite.preprocess import CountRows
from amilst_lite.simulate import simulate_tissue
from amilst_lite.spatial.graph import SpatialGraph
from amilst_lite.train import share as module
from amilst_lite.train.share import network_share, rows_of, thin

counts_module = sys.modules["amilst_lite.preprocess.counts"]
CONFIG = Config().replace(epochs=3, n_components=8, n_top_genes=None)


@pytest.fixture(scope="module")
def tissue():
    return simulate_tissue(400, 60, 4, seed=0)


@pytest.fixture(scope="module")
def graph(tissue):
    return SpatialGraph.from_coordinates(tissue.coordinates, n_neighbors=6)


def test_thinned_counts_add_up(tissue):
    counts = sparse.csr_matrix(tissue.counts)
    kept, rest = thin(counts, 0.3, seed=1)
    np.testing.assert_array_equal((kept + rest).toarray(), counts.toarray())
    assert kept.sum() / counts.sum() == pytest.approx(0.3, abs=0.01)
    assert (kept.data > 0).all() and (rest.data > 0).all()
    again, _ = thin(counts, 0.3, seed=1)
    assert (again != kept).nnz == 0
    assert (thin(counts, 0.3, seed=2)[0] != kept).nnz > 0


def test_each_count_is_kept_with_the_same_probability():
    """Means and variances of a binomial distribution, and independence of the two parts of Poisson counts."""
    repeats = 20_000
    counts = sparse.csr_matrix(np.tile([[0, 1, 4, 25]], (repeats, 1)).astype(np.float32))
    kept = thin(counts, 0.3, seed=0)[0].toarray()
    size = np.array([0, 1, 4, 25])
    error = np.sqrt(0.21 * size / repeats)  # standard errors of the means
    assert (np.abs(kept.mean(0) - 0.3 * size) <= 5 * error).all()
    np.testing.assert_allclose(kept.var(0), 0.21 * size, rtol=0.06)
    poisson = np.random.default_rng(0).poisson(6.0, (repeats, 1)).astype(np.float32)
    part, rest = (half.toarray().ravel() for half in thin(sparse.csr_matrix(poisson), 0.5, seed=1))
    assert abs(np.corrcoef(part, rest)[0, 1]) < 5 / np.sqrt(repeats)
    assert part.var() == pytest.approx(3.0, rel=0.06) and part.mean() == pytest.approx(3.0, rel=0.03)


@pytest.mark.parametrize(("dispersion", "share"), [(0.5, 0.5), (2.0, 0.3)])
def test_parts_of_overdispersed_counts_are_independent(dispersion, share):
    """Negative binomial with the same overdispersion relative to their means, and uncorrelated."""
    repeats, mean = 40_000, 6.0
    rng = np.random.default_rng(0)
    rates = mean * rng.gamma(1 / dispersion, dispersion, (repeats, 1))
    counts = sparse.csr_matrix(rng.poisson(rates).astype(np.float32))
    together = [part.toarray().ravel() for part in thin(counts, share, seed=1)]
    assert np.corrcoef(together)[0, 1] > 0.2
    parts = thin(counts, share, 1, np.array([dispersion]))
    assert (parts[0] + parts[1] != counts).nnz == 0
    parts = [part.toarray().ravel() for part in parts]
    assert abs(np.corrcoef(parts)[0, 1]) < 5 / np.sqrt(repeats)
    assert abs(np.corrcoef(parts[0] > 1, parts[1] > 1)[0, 1]) < 5 / np.sqrt(repeats)
    for part, of in zip(parts, (share, 1 - share), strict=True):
        assert part.mean() == pytest.approx(of * mean, rel=0.03)
        assert part.var() == pytest.approx(of * (mean + dispersion * mean**2), rel=0.06)


def test_thinning_rounds_and_leaves_its_input():
    counts = sparse.csr_matrix(np.array([[0.4, 2.6, 0.0], [7.2, 0.0, 1.0]], dtype=np.float32))
    before = counts.copy()
    kept, rest = thin(counts, 0.5, seed=0)
    np.testing.assert_array_equal((kept + rest).toarray(), [[0, 3, 0], [7, 0, 1]])
    assert kept.dtype == rest.dtype == np.float32
    assert (counts != before).nnz == 0 and counts.nnz == before.nnz


@pytest.mark.parametrize("form", ["sparse", "dense", "csc", "sparse on disk", "dense on disk"])
@pytest.mark.parametrize("block_entries", [4_000_000, 900])
def test_rows_are_the_same_from_memory_and_disk(tissue, tmp_path, monkeypatch, form, block_entries):
    import anndata

    monkeypatch.setattr(counts_module, "BLOCK_ENTRIES", block_entries)
    rows = np.random.default_rng(0).permutation(400)[:90]
    whole = sparse.csr_matrix(tissue.counts)
    expected = whole[rows].toarray()
    counts = {"sparse": whole, "csc": whole.tocsc()}.get(form, whole.toarray())
    if form.endswith("on disk"):
        path = tmp_path / "section.h5ad"
        anndata.AnnData(whole if form.startswith("sparse") else whole.toarray()).write_h5ad(path)
        counts = anndata.read_h5ad(path, backed="r").X
        assert (len(list(CountRows(counts))) > 1) == (block_entries == 900)
    found = rows_of(counts, rows)
    np.testing.assert_array_equal(found.toarray(), expected)
    assert sparse.issparse(found) and found.format == "csr" and found.dtype == np.float32


def test_deviance_is_that_of_the_dense_formula(tissue):
    counts = sparse.csr_matrix(tissue.counts)[:40]
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(size=(40, 3)))
    predict = module._Prediction(counts, "median")
    found = predict(features, features)
    dense, depth = counts.toarray().astype(float), counts.toarray().sum(1)
    expression = np.log1p(dense / depth[:, None] * np.median(depth))
    halves = np.arange(40) // 10 % 2
    X = np.column_stack([np.ones(40), features.numpy()])
    for half in (0, 1):
        fit, rest = halves == half, halves != half
        ridge = 0.01 * np.square(X[fit, 1:]).sum() * np.diag([0, 1, 1, 1])
        B = np.linalg.solve(X[fit].T @ X[fit] + ridge, X[fit].T @ expression[fit])
        total = dense[fit].sum(0)
        scale = np.where(total > 0, total, 0.5) / (depth[fit] @ np.exp(X[fit] @ B))
        mean = np.exp(X[rest] @ B) * scale * depth[rest, None]
        log = np.log(np.where(dense[rest] > 0, dense[rest] / mean, 1))
        expected = 2 * (dense[rest] * log - dense[rest] + mean).sum(1)
        np.testing.assert_allclose(found[rest], expected, rtol=1e-4)


def test_deviance_with_spots_and_genes_without_counts():
    """A spot without counts has no deviance; a gene not seen where the map is fitted has a finite one."""
    dense = np.random.default_rng(0).poisson(2.0, (40, 6))
    dense[3] = 0
    dense[:10, 2] = dense[20:30, 2] = 0  # not seen in the blocks of the first half
    features = torch.from_numpy(np.random.default_rng(1).normal(size=(40, 2)))
    predict = module._Prediction(sparse.csr_matrix(dense.astype(np.float32)), "median")
    found = predict(features, features)
    assert found[3] == 0
    assert np.isfinite(found).all() and (np.delete(found, 3) > 0).all()


def test_the_map_is_fitted_to_other_blocks(tissue):
    """What the map was fitted to in one half matters only for the other half."""
    counts = sparse.csr_matrix(tissue.counts)[:40]
    rng = np.random.default_rng(0)
    fitted_to, features = (torch.from_numpy(rng.normal(size=(40, 3))) for _ in range(2))
    found = module._Prediction(counts, "median")(features, fitted_to)
    first = np.arange(40) // 10 % 2 == 0
    changed = fitted_to.clone()
    changed[torch.from_numpy(first)] *= -1
    other = module._Prediction(counts, "median")(features, changed)
    np.testing.assert_allclose(other[first], found[first], rtol=1e-6)
    assert not np.allclose(other[~first], found[~first], rtol=1e-2)


class _Result:
    def __init__(self, reconstruction):
        self.reconstruction = reconstruction


def test_a_reconstruction_of_noise_gets_no_share(tissue, graph, monkeypatch):
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32)) / 3
    monkeypatch.setattr(module.Trainer, "run", lambda self, callback=None: _Result(noise))
    evidence = network_share(tissue.counts, graph, CONFIG)
    assert evidence.share == 0
    assert evidence.deviance[0] < evidence.deviance[-1]


def test_the_noise_free_truth_gets_a_share(monkeypatch):
    """Without a filter, the features are noisy; the reconstruction is the same components of the true rates."""
    rng = np.random.default_rng(0)
    places = rng.random((500, 2))
    graph = SpatialGraph.from_coordinates(places, n_neighbors=6)
    phases, loadings = rng.uniform(0, 6, (3, 1)), rng.normal(0, 0.6, (3, 80))
    fields = np.sin(2 * np.pi * (places @ rng.normal(0, 1, (2, 3))) + phases.T)
    rates = np.exp(fields @ loadings + rng.normal(0, 0.5, 80))
    rates *= 60 / rates.sum(1, keepdims=True)
    counts = sparse.csr_matrix(rng.poisson(rates).astype(np.float32))
    prepared = []
    original = module.prepare

    def recording(*args, **options):
        prepared.append(original(*args, **options))
        return prepared[-1]

    def truth(self, callback=None):
        found = prepared[-1]
        median = np.median(found.depth)
        expression = np.log1p(rates / rates.sum(1, keepdims=True) * median)[graph.order][:, found.genes]
        scores = torch.from_numpy(found.pca.transform(sparse.csr_matrix(expression.astype(np.float32))))
        features = torch.from_numpy(found.features)
        scale = features.var(0, unbiased=False).sum().sqrt()
        return _Result((scores - scores.mean(0)) / scale)

    monkeypatch.setattr(module, "prepare", recording)
    monkeypatch.setattr(module.Trainer, "run", truth)
    evidence = network_share(counts, graph, CONFIG.replace(noise_band=None, depth_floor=0.0))
    assert evidence.share > 0  # small, as most of the deviance is the noise of the counts set aside
    assert evidence.deviance.argmin() == 2
    assert evidence.deviance[0] - evidence.deviance[-1] > 5 * evidence.error[-1]
    assert evidence.raw_deviance == pytest.approx(evidence.deviance[0], rel=1e-4)  # there is no filter


@pytest.mark.parametrize(("n_errors", "clear"), [(1.9, False), (2.1, True), (-5.0, False)])
def test_an_improvement_has_to_exceed_two_standard_errors(tissue, graph, monkeypatch, n_errors, clear):
    spread = np.where(np.arange(400) % 2, 1.0, -1.0)
    improvement = spread + n_errors * spread.std() / np.sqrt(400)  # of each spot, at a share of one

    def deviance(self, features, fitted_to):
        return 10.0 - float((features - fitted_to).mean()) * improvement

    # the reconstruction is one above the features everywhere, so that the mean difference is the share
    monkeypatch.setattr(module.Trainer, "run", lambda self, callback=None: _Result(self.features + 1))
    monkeypatch.setattr(module._Prediction, "__call__", deviance)
    evidence = network_share(tissue.counts, graph, CONFIG)
    np.testing.assert_allclose(evidence.error, np.array([0, 0.5, 1]) / 20, rtol=1e-4)
    np.testing.assert_allclose(evidence.deviance, 10 - evidence.shares * n_errors / 20, rtol=1e-5)
    assert evidence.share == pytest.approx(n_errors / 200 if clear else 0.0, rel=1e-4)


def test_a_better_reconstruction_gets_a_share(tissue, graph, monkeypatch):
    """The filtered features are made worse; the reconstruction is what they were."""
    original = module.denoise
    kept = []

    def worse(*args, **options):
        filtered = original(*args, **options)
        kept.append(filtered)
        noise = torch.from_numpy(np.random.default_rng(0).normal(size=filtered.shape)).to(filtered)
        return filtered + noise * filtered.std(0)

    monkeypatch.setattr(module, "denoise", worse)
    monkeypatch.setattr(module.Trainer, "run", lambda self, callback=None: _Result(kept[-1]))
    evidence = network_share(tissue.counts, graph, CONFIG)
    assert evidence.share > 0
    best = evidence.deviance.min()
    assert evidence.share == pytest.approx(1 - best / evidence.deviance[0], rel=1e-6)


def test_same_seed_same_evidence_and_other_seed_other_counts(tissue, graph):
    first, second, other = (network_share(tissue.counts, graph, CONFIG, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.deviance, second.deviance)
    assert first.share == second.share
    assert not np.array_equal(first.deviance, other.deviance)
    assert np.isfinite(first.deviance).all() and np.isfinite(first.raw_deviance)
    assert first.error[0] == 0 and (first.error[1:] > 0).all()


def test_of_many_spots_neighboring_ones_are_used(tissue, graph, monkeypatch):
    monkeypatch.setattr(module, "_MOST_SPOTS", 150)
    seen = []
    original = module.prepare

    def recording(counts, *args, **options):
        seen.append(counts.shape[0])
        return original(counts, *args, **options)

    monkeypatch.setattr(module, "prepare", recording)
    assert 0 <= network_share(tissue.counts, graph, CONFIG).share < 1
    assert seen == [150]


def test_spots_left_without_counts_give_no_warning_of_their_own(graph):
    """Warnings are errors in these tests: of half the counts, more spots are empty than of all of them."""
    sparser = simulate_tissue(400, 60, 4, seed=0, median_counts=6).counts
    kept, _ = thin(rows_of(sparser, graph.order), 0.5, seed=0)
    assert (kept.sum(1) == 0).sum() > 10
    evidence = network_share(sparser, graph, CONFIG)
    assert np.isfinite(evidence.deviance).all()


def test_spots_without_any_counts_decide_for_the_filter(tissue, graph, monkeypatch):
    """The spots compared may lie where the section has no counts."""
    monkeypatch.setattr(module, "_MOST_SPOTS", 150)
    dense = sparse.csr_matrix(tissue.counts).toarray()
    dense[graph.order[100:300]] = 0
    evidence = network_share(sparse.csr_matrix(dense), graph, CONFIG)
    assert evidence.share == 0 and np.isnan(evidence.deviance).all() and np.isnan(evidence.raw_deviance)
