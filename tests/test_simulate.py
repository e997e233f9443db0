"""Simulated tissue: statistics, determinism and validation of the parameters."""

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.spatial import cKDTree
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture

from amilst_lite.errors import InputError
from amilst_lite.simulate import simulate_tissue


@pytest.fixture(scope="module")
def tissue():
    return simulate_tissue()


def _row_average(coordinates, n_neighbors):
    """Row-stochastic matrix that averages over each spot and its neighbors."""
    n = len(coordinates)
    _, found = cKDTree(coordinates).query(coordinates, n_neighbors + 1)
    ones = np.ones(found.size)
    matrix = sp.csr_matrix((ones, (np.repeat(np.arange(n), n_neighbors + 1), found.ravel())), shape=(n, n))
    matrix = matrix.maximum(matrix.T)
    return sp.diags(1 / np.asarray(matrix.sum(axis=1)).ravel()) @ matrix


def _components(tissue, n_components=15):
    counts = tissue.counts.toarray()
    expression = np.log1p(1e4 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))
    expression = (expression - expression.mean(axis=0)) / np.maximum(expression.std(axis=0), 1e-9)
    return PCA(n_components, random_state=0).fit_transform(expression)


def _mixture_ari(tissue, features):
    mixture = GaussianMixture(len(tissue.domain_names), covariance_type="tied", n_init=5, random_state=0)
    return adjusted_rand_score(tissue.domains, mixture.fit_predict(features))


def test_types_and_shapes(tissue):
    counts = tissue.counts
    assert sp.isspmatrix_csr(counts) and counts.dtype == np.float32 and counts.shape == (2000, 500)
    assert counts.has_canonical_format and counts.data.min() >= 1
    np.testing.assert_array_equal(counts.data, np.round(counts.data))
    assert tissue.coordinates.shape == (2000, 2) and tissue.coordinates.dtype == np.float32
    assert tissue.domains.dtype == np.int64 and set(tissue.domains) == set(range(7))
    assert tissue.composition.shape == (2000, 11)
    np.testing.assert_allclose(tissue.composition.sum(axis=1), 1, rtol=1e-5)
    assert len(set(tissue.gene_names)) == 500 and len(set(tissue.spot_names)) == 2000
    assert tissue.annotation[0] == tissue.domain_names[tissue.domains[0]]


@pytest.mark.parametrize("layout", ["layers", "blobs"])
@pytest.mark.parametrize("arrangement", ["hexagonal", "cells"])
@pytest.mark.parametrize("n_nests", [0, 4])
def test_every_layout_has_the_requested_size_and_all_domains(layout, arrangement, n_nests):
    tissue = simulate_tissue(997, 61, 5, layout=layout, arrangement=arrangement, n_nests=n_nests, seed=3)
    assert tissue.counts.shape == (997, 61)
    assert set(tissue.domains) == set(range(5)) and len(tissue.domain_names) == 5
    assert (tissue.domain_names[-1] == "nest") == (n_nests > 0)
    if arrangement == "cells":
        assert set(np.unique(tissue.composition)) == {0, 1}


def test_few_spots_and_many_genes():
    assert set(simulate_tissue(40, 10, 2, seed=1).domains) == {0, 1}
    wide = simulate_tissue(60, 30_000, 3, median_counts=2000)  # one chunk holds 66 rows of these
    assert wide.counts.shape == (60, 30_000)
    assert np.median(np.asarray(wide.counts.sum(axis=1))) == pytest.approx(2000, rel=0.2)


def test_visium_grid_has_a_pitch_of_100_micrometers(tissue):
    distance, _ = cKDTree(tissue.coordinates).query(tissue.coordinates, k=7)
    np.testing.assert_allclose(distance[:, 1], 100, atol=0.1)
    # six neighbors at that distance, except at the boundary
    assert np.mean(np.abs(distance[:, 6] - 100) < 0.1) > 0.85
    assert tissue.spot_diameter == 55


def test_spots_are_not_in_spatial_order(tissue):
    step = np.linalg.norm(np.diff(tissue.coordinates, axis=0), axis=1)
    assert np.median(step) > 1000  # µm, of a section 5000 wide


def test_same_seed_gives_the_same_bits_and_another_seed_another_section():
    first, again, other = (simulate_tissue(500, 60, 4, seed=seed) for seed in (5, 5, 6))
    assert first.counts.data.tobytes() == again.counts.data.tobytes()
    assert first.counts.indices.tobytes() == again.counts.indices.tobytes()
    assert first.coordinates.tobytes() == again.coordinates.tobytes()
    np.testing.assert_array_equal(first.domains, again.domains)
    assert first.counts.nnz != other.counts.nnz
    assert not np.array_equal(first.coordinates, other.coordinates)


def test_global_generator_is_not_used():
    np.random.seed(1)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    simulate_tissue(200, 40, 4)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_depth_does_not_depend_on_chunks(monkeypatch):
    """Chunks of 7 rows and a single chunk have the same expected total counts."""
    monkeypatch.setattr("amilst_lite.simulate._CHUNK_ENTRIES", 60 * 7)
    small = simulate_tissue(500, 60, 4, dropout=0, dispersion=0, seed=2)
    monkeypatch.undo()
    large = simulate_tissue(500, 60, 4, dropout=0, dispersion=0, seed=2)
    # different random streams with the same expectation: totals differ by Poisson noise only
    a, b = (np.asarray(t.counts.sum(axis=1)).ravel() for t in (small, large))
    z = (a - b) / np.sqrt(a + b)
    assert abs(z.mean()) < 0.2 and z.std() == pytest.approx(1, abs=0.15)


def test_counts_are_negative_binomial():
    """For one domain, one cell type and equal depth, the variance exceeds the mean by φ·mean²."""
    tissue = simulate_tissue(
        20_000, 40, 2, arrangement="cells", signal=0, dispersion=0.5, dropout=0, median_counts=400
    )
    poisson = simulate_tissue(
        20_000, 40, 2, arrangement="cells", signal=0, dispersion=0, dropout=0, median_counts=400
    )
    excess = []
    for t in (tissue, poisson):
        one_type = t.composition.argmax(axis=1) == t.composition.sum(axis=0).argmax()
        counts = t.counts[one_type].toarray()
        total = counts.sum(axis=1, keepdims=True)
        alike = np.abs(np.log(total / np.median(total))).ravel() < 0.1
        share = counts[alike]
        mean, variance = share.mean(axis=0), share.var(axis=0)
        excess.append(np.median(((variance - mean) / mean**2)[mean > 1]))
    assert 0.2 < excess[0] < 1.2
    assert abs(excess[1]) < 0.1


def test_depth_varies_and_follows_the_trend(tissue):
    total = np.asarray(tissue.counts.sum(axis=1)).ravel()
    assert np.median(total) == pytest.approx(400, rel=0.15)
    assert 0.25 < np.log(total).std() < 0.7
    assert np.corrcoef(np.log(total), np.log(tissue.trend))[0, 1] > 0.3


def test_genes_span_orders_of_magnitude(tissue):
    mean = np.sort(np.asarray(tissue.counts.mean(axis=0)).ravel())
    assert mean[-1] / mean[25] > 100
    assert mean[-50:].sum() > 0.4 * mean.sum()  # a tenth of the genes has a large part of the counts


def test_markers_are_increased_in_their_domain(tissue):
    counts = tissue.counts.toarray()
    share = counts / counts.sum(axis=1, keepdims=True)
    for domain in range(7):
        inside = tissue.domains == domain
        ratio = share[inside].mean(axis=0) / share[~inside].mean(axis=0)
        own = tissue.marker_genes[domain]
        assert np.median(ratio[own]) > 1.3 * np.median(ratio[~own])


def test_dropout_removes_low_counts_first():
    full = simulate_tissue(1000, 100, 4, dropout=0)
    holed = simulate_tissue(1000, 100, 4, dropout=0.8)
    lost = 1 - holed.counts.getnnz(axis=0) / full.counts.getnnz(axis=0)
    mean = np.asarray(full.counts.mean(axis=0)).ravel()
    assert lost[mean < 0.2].mean() > 0.5 > 0.2 > lost[mean > 5].mean()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_domains_need_expression_and_coordinates(seed):
    tissue = simulate_tissue(seed=seed)
    features = _components(tissue)
    assert 0.25 < _mixture_ari(tissue, features) < 0.65
    average = _row_average(tissue.coordinates, 12)
    assert _mixture_ari(tissue, average @ (average @ features)) > 0.85


def test_no_signal_means_no_domains():
    tissue = simulate_tissue(1000, 200, 4, signal=0)
    assert not tissue.marker_genes.any()
    assert abs(_mixture_ari(tissue, _components(tissue))) < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "rings"}, "layout"),
        ({"arrangement": "square"}, "arrangement"),
        ({"n_domains": 1}, "n_domains must be an integer >= 2; found 1"),
        ({"n_domains": 7.0}, "n_domains must be an integer >= 2; found 7.0"),
        ({"n_spots": 139}, "7 domains need n_spots >= 140; found 139"),
        ({"n_spots": "2000"}, "n_spots must be an integer >= 1; found '2000'"),
        ({"n_spots": None}, "n_spots must be an integer"),
        ({"n_genes": 34}, "7 domains need n_genes >= 35; found 34"),
        ({"n_genes": 50.5}, "n_genes must be an integer"),
        ({"n_nests": -1}, "n_nests must be an integer >= 0"),
        ({"n_nests": True}, "n_nests must be an integer >= 0"),
        ({"n_nests": 2, "n_domains": 2}, "n_nests > 0 needs n_domains >= 3"),
        ({"n_nests": 30}, "30 nests and 7 domains need n_spots >= 2100"),
        ({"dispersion": -0.1}, "dispersion must be a finite number >= 0"),
        ({"dispersion": 10.1}, "dispersion must be <= 10"),
        ({"signal": float("nan")}, "signal must be a finite number >= 0"),
        ({"signal": "1"}, "signal must be a finite number"),
        ({"dropout": 1.0}, "dropout must be < 1"),
        ({"median_counts": 0}, "median_counts must be a finite number > 0"),
        ({"median_counts": float("inf")}, "median_counts must be a finite number > 0"),
        ({"seed": -1}, "seed .*must be an integer"),
        ({"seed": 2**32}, "seed .*must be an integer"),
        ({"seed": 1.0}, "seed .*must be an integer"),
        ({"seed": None}, "seed .*must be an integer"),
    ],
)
def test_invalid_parameters(options, message):
    with pytest.raises(InputError, match=message):
        simulate_tissue(**options)


def test_numpy_scalars_are_accepted():
    sizes = {"n_spots": np.int64(100), "n_genes": np.int32(40), "n_domains": np.int64(3)}
    numbers = {"signal": np.float32(1), "dropout": np.float64(0.1), "seed": np.int64(4)}
    given = simulate_tissue(**sizes, **numbers)
    expected = simulate_tissue(100, 40, 3, signal=1.0, dropout=0.1, seed=4)
    assert (given.counts != expected.counts).nnz == 0


@pytest.mark.slow
def test_time_is_linear_and_memory_sparse_for_a_large_section():
    import time
    import tracemalloc

    clock = []
    for n_spots in (20_000, 80_000):
        start = time.perf_counter()
        simulate_tissue(n_spots, 300, 20, layout="blobs", arrangement="cells")
        clock.append(time.perf_counter() - start)
    assert clock[1] < 8 * clock[0]
    tracemalloc.start()
    tissue = simulate_tissue(80_000, 300, 20, layout="blobs", arrangement="cells")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    held = tissue.counts.data.nbytes + tissue.counts.indices.nbytes
    assert peak < 2.5 * held + 150e6


def test_sections_share_domains_and_genes_but_not_outline_or_counts():
    first, second = (simulate_tissue(1500, 200, 5, dispersion=0, section=number) for number in (0, 1))
    np.testing.assert_array_equal(first.marker_genes, second.marker_genes)
    assert first.gene_names.tolist() == second.gene_names.tolist()
    assert not np.array_equal(first.coordinates, second.coordinates)
    assert first.counts.nnz != second.counts.nnz
    means = [np.asarray(one.counts.mean(axis=0)).ravel() for one in (first, second)]
    assert np.corrcoef(*np.log(np.maximum(means, 0.01)))[0, 1] > 0.98


def test_section_effect_is_a_factor_for_each_gene():
    plain, affected, other = (
        simulate_tissue(3000, 200, 5, dispersion=0, dropout=0, section=number, section_effect=effect)
        for number, effect in ((1, 0.0), (1, 0.5), (2, 0.5))
    )
    np.testing.assert_array_equal(plain.coordinates, affected.coordinates)
    base, *changed = (np.asarray(one.counts.sum(axis=0)).ravel() for one in (plain, affected, other))
    frequent = base > 300
    factors = [np.log(one[frequent] / base[frequent]) for one in changed]
    assert abs(factors[0].std() - 0.5) < 0.1  # of the logarithm
    assert abs(np.corrcoef(*factors)[0, 1]) < 0.3  # sections have effects of their own
    # depth does not change: the effect is relative between genes
    assert abs(np.log(affected.counts.sum() / plain.counts.sum())) < 0.05


@pytest.mark.parametrize("options", [{"section": -1}, {"section": 1.5}, {"section_effect": -0.1}])
def test_unusable_sections_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        simulate_tissue(500, 100, 5, **options)
