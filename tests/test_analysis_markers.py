"""Marker genes: the rank-sum test, and p-values from counts that were set aside."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.stats import mannwhitneyu
from sklearn.cluster import KMeans
from sklearn.metrics import roc_auc_score

from amilst_lite.analysis import marker_genes, markers
from amilst_lite.analysis.markers import rank_sums
from amilst_lite.analysis.multiple_testing import benjamini_hochberg
from amilst_lite.errors import InputError, MissingKeyError


@pytest.fixture(scope="module")
def expression():
    """Log counts with many ties, a gene seen nowhere, one seen everywhere, explicit zeros."""
    rng = np.random.default_rng(0)
    dense = np.log1p(rng.poisson(0.7, size=(200, 25))).astype(np.float32)
    dense[:, 3] = 0
    dense[:, 4] = np.log1p(5)
    dense[:, 5] = rng.gamma(1.0, size=200)  # without ties
    matrix = sp.csr_matrix(dense)
    matrix.data[:40] = 0
    return matrix, rng.integers(0, 4, size=200)


def against_scipy(matrix, codes, found):
    dense = matrix.toarray().astype(np.float64)
    varying = np.ptp(dense, axis=0) > 0
    for group in range(found.p.shape[0]):
        inside, outside = dense[codes == group], dense[codes != group]
        expected = mannwhitneyu(inside[:, varying], outside[:, varying], method="asymptotic")
        np.testing.assert_allclose(found.p[group, varying], expected.pvalue, rtol=1e-10)
        pairs = len(inside) * len(outside)
        np.testing.assert_allclose(found.auc[group, varying] * pairs, expected.statistic, rtol=1e-10)
        assert np.isnan(found.p[group, ~varying]).all()
        np.testing.assert_allclose(found.auc[group, ~varying], 0.5)
        np.testing.assert_allclose(found.share_inside[group], (inside > 0).mean(axis=0))
        np.testing.assert_allclose(found.share_outside[group], (outside > 0).mean(axis=0))
        change = np.log2((np.expm1(inside).sum(axis=0) + 1) / len(inside)) - np.log2(
            (np.expm1(outside).sum(axis=0) + 1) / len(outside)
        )
        np.testing.assert_allclose(found.log2_fold_change[group], change, atol=1e-5)


def test_equals_mannwhitneyu(expression):
    matrix, codes = expression
    found = rank_sums(matrix, codes, 4)
    against_scipy(matrix, codes, found)
    assert found.auc[1, 5] == pytest.approx(roc_auc_score(codes == 1, matrix[:, [5]].toarray().ravel()))
    np.testing.assert_array_equal(np.sign(found.z[:, 5]), np.sign(found.auc[:, 5] - 0.5))


@pytest.mark.parametrize("entries", [1, 300, 10**9])
def test_blocks_do_not_change_the_result(expression, entries, monkeypatch):
    matrix, codes = expression
    monkeypatch.setattr(markers, "_BLOCK_ENTRIES", entries)
    against_scipy(matrix, codes, rank_sums(matrix, codes, 4))


def test_unusable_input_is_refused(expression):
    matrix, codes = expression
    with pytest.raises(InputError, match="none empty"):
        rank_sums(matrix, codes, 5)
    for bad in (-1, np.inf, np.nan):
        broken = matrix.copy()
        broken.data[7] = bad
        with pytest.raises(InputError, match="finite and not negative"):
            rank_sums(broken, codes, 4)


def test_the_matrix_is_never_dense():
    import tracemalloc

    rng = np.random.default_rng(1)
    matrix = sp.random(20_000, 3_000, density=0.005, format="csr", dtype=np.float32, random_state=rng)
    codes = rng.integers(0, 10, size=20_000)
    tracemalloc.start()
    rank_sums(matrix, codes, 10)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60e6  # dense: 240 MB


def noise(n=300, n_genes=60, seed=0, dispersion=0.0):
    """Counts without any domain."""
    rng = np.random.default_rng(seed)
    rates = np.tile(rng.gamma(2.0, 1.5, size=n_genes), (n, 1))
    if dispersion:
        rates = rates * rng.gamma(1 / dispersion, dispersion, size=rates.shape)
    adata = ad.AnnData(sp.csr_matrix(rng.poisson(rates).astype(np.float32)))
    adata.obsm["spatial"] = rng.uniform(size=(n, 2))
    return adata


def cluster(adata, seed=0):
    """Two clusters of the log-normalized counts in X."""
    counts = adata.X.toarray()
    expression = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 200)
    return KMeans(2, n_init=3, random_state=seed).fit_predict(expression)


@pytest.mark.parametrize("dispersion", [0.0, 0.5])
def test_p_values_are_right_in_noise_where_naive_ones_are_not(dispersion):
    """With binomial thinning, 12 % would be below 0.05 at a dispersion of 0.5."""
    naive, safe = [], []
    for seed in range(8):
        adata = noise(seed=seed, dispersion=dispersion)
        adata.obs["amilst_domain"] = pd.Categorical(cluster(adata))
        table = marker_genes(adata, identify=cluster, seed=seed)
        naive.append(table["p_naive"])
        safe.append(table["p"].dropna())
    naive, safe = (np.concatenate(values) < 0.05 for values in (naive, safe))
    assert naive.mean() > 0.15
    assert 0.03 < safe.mean() < 0.07  # 960 tests


def test_true_markers_are_found_and_their_domain_again():
    adata = noise(400, 40, seed=3)
    truth = np.repeat(["left", "middle", "right"], [100, 100, 200])
    counts = adata.X.toarray()
    rng = np.random.default_rng(0)
    for domain, genes in (("left", slice(0, 4)), ("middle", slice(4, 8)), ("right", slice(8, 12))):
        counts[truth == domain, genes] += rng.poisson(6, size=((truth == domain).sum(), 4))
    adata.X = sp.csr_matrix(counts)
    adata.obs["amilst_domain"] = pd.Categorical(truth)
    seen = []

    def identify(half):
        assert "amilst_domain" not in half.obs and "spatial" in half.obsm
        seen.append(half.X.sum() / counts.sum())
        names = {"left": "2", "middle": "3", "right": "1"}
        half.obs["amilst_domain"] = pd.Categorical([names[name] for name in truth])

    table = marker_genes(adata, identify=identify, share=0.6)
    assert seen == [pytest.approx(0.6, abs=0.02)]
    assert list(table["domain"].unique()) == ["left", "middle", "right"]
    assert (table["overlap"] == 1).all()
    for domain, genes in (("left", range(4)), ("middle", range(4, 8)), ("right", range(8, 12))):
        own = table[table["domain"] == domain]
        assert own["z"].is_monotonic_decreasing
        assert set(own["gene"][:4]) == set(map(str, genes))
        assert (own["p_adjusted"][:4] < 1e-6).all() and (own["log2_fold_change_held_out"][:4] > 0.4).all()
        assert (own["auc_held_out"][:4] > 0.7).all()
        np.testing.assert_allclose(own["p_naive_adjusted"], benjamini_hochberg(own["p_naive"].to_numpy()))
    assert table.equals(adata.uns["amilst_markers"])


def test_without_identify_there_are_naive_p_values_only():
    adata = noise(60, 10)
    adata.obs["region"] = ["a"] * 20 + ["b"] * 40
    table = marker_genes(adata, domain="region", key_added="mine")
    assert "p" not in table and "p_naive" in table and len(table) == 20
    assert adata.uns["mine_markers"] is table


def test_a_domain_that_is_not_found_again_has_no_p_value():
    adata = noise(90, 10)
    adata.obs["amilst_domain"] = pd.Categorical(np.repeat(["a", "b", "c"], [50, 30, 10]))
    table = marker_genes(adata, identify=lambda half: np.repeat([0, 1], [50, 40]))
    assert table.groupby("domain")["p"].apply(lambda p: p.isna().all()).tolist() == [False, False, True]
    assert table[table["domain"] == "b"]["overlap"].iloc[0] == pytest.approx(0.75)


def test_counts_that_cannot_be_used_are_refused():
    adata = noise(60, 10)
    with pytest.raises(MissingKeyError, match="Run identify_domains first"):
        marker_genes(adata)
    adata.obs["amilst_domain"] = "a"
    with pytest.raises(InputError, match="at least 2 domains"):
        marker_genes(adata)
    adata.obs["amilst_domain"] = pd.Categorical(["a", "b", None] * 20)
    with pytest.raises(InputError, match="no value for 20 of 60"):
        marker_genes(adata)
    adata.obs["amilst_domain"] = pd.Categorical(["a", "b"] * 30)
    with pytest.raises(InputError, match="share must be between"):
        marker_genes(adata, identify=cluster, share=1.0)
    with pytest.raises(InputError, match="return a label for each of 60 spots; found NoneType"):
        marker_genes(adata, identify=lambda half: None)
    adata.X = adata.X * 0.5
    with pytest.raises(InputError, match="integers to be thinned"):
        marker_genes(adata, identify=cluster)
    assert "amilst_markers" not in adata.uns
