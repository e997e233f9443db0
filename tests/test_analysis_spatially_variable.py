"""Table of spatially variable genes."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from amilst_lite.analysis import spatially_variable_genes
from amilst_lite.analysis.multiple_testing import benjamini_hochberg
from amilst_lite.analysis.spatially_variable import spatially_variable
from amilst_lite.errors import InputError, MissingKeyError
from amilst_lite.spatial import SpatialGraph, gearys_c, morans_i


def section(n=400, n_genes=12, seed=0):
    """Poisson counts; the first three genes follow a gradient."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(size=(n, 2))
    rates = np.full((n, n_genes), 3.0)
    rates[:, :3] *= np.exp(2 * (points[:, :1] - 0.5))
    adata = ad.AnnData(sp.csr_matrix(rng.poisson(rates).astype(np.float32)))
    adata.var_names = [f"g{i}" for i in range(n_genes)]
    adata.obsm["spatial"] = points
    adata.obsp["spatial_connectivities"] = SpatialGraph.from_coordinates(
        points, n_neighbors=6
    ).connectivities()
    return adata


def log_normalized(counts):
    dense = counts.toarray().astype(np.float64)
    totals = dense.sum(axis=1, keepdims=True)
    return np.log1p(dense * np.median(totals) / totals)


def test_the_table_is_that_of_log_normalized_expression():
    adata = section()
    table = spatially_variable_genes(adata, row_normalize=False)
    assert table is adata.uns["amilst_spatially_variable"]
    assert set(table.index[:3]) == {"g0", "g1", "g2"} and table["moran_i"].is_monotonic_decreasing
    graph, expression = adata.obsp["spatial_connectivities"], log_normalized(adata.X)
    sorted_table = table.loc[adata.var_names]
    moran, geary = morans_i(expression, graph), gearys_c(expression, graph)
    np.testing.assert_allclose(sorted_table["moran_i"], moran.statistic, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(sorted_table["geary_c"], geary.statistic, rtol=1e-5)
    np.testing.assert_allclose(
        sorted_table["moran_p_adjusted"], by_definition(sorted_table["moran_p"]), rtol=1e-12
    )
    # a gene that follows the total of the others has a slight gradient of its own
    assert (sorted_table["moran_p_adjusted"][:3] < 1e-10).all()
    assert (sorted_table["moran_p_adjusted"][3:] > 1e-10).all()


def test_row_normalized_weights_sum_to_one():
    adata = section()
    graph = adata.obsp["spatial_connectivities"].astype(np.float64)
    expression = log_normalized(adata.X)
    table = spatially_variable(expression, graph, adata.var_names).loc[adata.var_names]
    mean = sp.diags(1 / np.asarray(graph.sum(axis=1)).ravel()) @ graph
    np.testing.assert_allclose(table["moran_i"], morans_i(expression, mean).statistic, rtol=1e-12)


def test_permutation_p_values_agree_with_the_analytic_ones():
    adata = section(150, 30, seed=1)
    table = spatially_variable_genes(adata, n_permutations=400, moments="randomization", seed=3)
    for name in ("moran", "geary"):
        p, by_permutation = table[f"{name}_p"], table[f"{name}_p_permutation"]
        assert by_permutation.min() >= 1 / 401
        # binomial error of 400 permutations, and that of the normal approximation
        assert np.abs(p - by_permutation).max() < 4 * np.sqrt(0.25 / 400) + 0.02
        assert table[f"{name}_p_permutation_adjusted"].notna().all()
    again = spatially_variable_genes(adata, n_permutations=400, moments="randomization", seed=3)
    pd.testing.assert_frame_equal(again, table)


def test_a_difference_between_sections_is_no_pattern():
    adata = section(300, 8, seed=2)
    rng = np.random.default_rng(5)
    codes = rng.permutation(np.repeat(["a", "b"], 150))
    counts = rng.poisson(np.where(codes == "a", 2.0, 20.0)[:, None], size=(300, 8))
    adata.X = sp.csr_matrix(counts.astype(np.float32))
    counts[:, 0] = rng.poisson(5, 300)  # what is constant after normalization would not differ
    adata.X = sp.csr_matrix(counts.astype(np.float32))
    adata.obs["section"] = codes
    graph = SpatialGraph.from_coordinates(adata.obsm["spatial"], n_neighbors=6, sample=codes)
    adata.obsp["spatial_connectivities"] = graph.connectivities()
    pooled = spatially_variable_genes(adata).loc["g0"]
    within = spatially_variable_genes(adata, sample_key="section", n_permutations=99).loc["g0"]
    assert pooled["moran_i"] > 0.3 and pooled["moran_p"] < 1e-6
    assert within["moran_p"] > 1e-3 and within["moran_p_permutation"] > 0.01
    assert within["geary_p"] > 1e-3


def test_genes_without_variance_come_last_and_are_not_tested():
    adata = section(100, 5)
    counts = adata.X.toarray()
    counts[:, 4] = 0
    adata.X = sp.csr_matrix(counts)
    table = spatially_variable_genes(adata)
    assert table.index[-1] == "g4" and table.loc["g4"].isna().all()
    assert table["moran_p_adjusted"].notna().sum() == 4


def by_definition(p):
    """The smallest level at which each hypothesis is rejected: level >= p_j m / rank_j for some p_j >= p."""
    p = np.asarray(p)
    level = p * len(p) / (p[None, :] <= p[:, None]).sum(axis=1)
    return np.array([level[p >= one].min() for one in p]).clip(max=1)


def test_benjamini_hochberg_equals_the_definition():
    p = np.random.default_rng(0).uniform(size=50) ** 2
    np.testing.assert_allclose(benjamini_hochberg(p), by_definition(p), rtol=1e-12)
    with_missing = np.insert(p, [0, 7], np.nan)
    found = benjamini_hochberg(with_missing)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(with_missing))
    np.testing.assert_allclose(found[~np.isnan(found)], by_definition(p), rtol=1e-12)


def test_missing_graph_and_unknown_options_are_refused():
    adata = section(60, 4)
    with pytest.raises(InputError, match="moments must be one of"):
        spatially_variable_genes(adata, moments="exact")
    with pytest.raises(InputError, match="n_permutations"):
        spatially_variable_genes(adata, n_permutations=-1)
    del adata.obsp["spatial_connectivities"]
    with pytest.raises(MissingKeyError, match="identify_domains or squidpy"):
        spatially_variable_genes(adata)
    assert "amilst_spatially_variable" not in adata.uns


@pytest.mark.slow
def test_against_squidpy():
    squidpy = pytest.importorskip("squidpy")
    adata = section(500, 20, seed=4)
    adata.X = log_normalized(adata.X).astype(np.float32)
    graph = adata.obsp["spatial_connectivities"]
    for transformation in (True, False):
        table = spatially_variable(adata.X, graph, adata.var_names, row_normalize=transformation)
        for mode, name, column in (("moran", "moran", "I"), ("geary", "geary", "C")):
            theirs = squidpy.gr.spatial_autocorr(
                adata, mode=mode, transformation=transformation, copy=True, show_progress_bar=False
            ).loc[table.index]
            ours = table["moran_i" if mode == "moran" else "geary_c"]
            np.testing.assert_allclose(ours, theirs[column], atol=1e-6)
            z = table[f"{name}_z"]
            # squidpy's one-sided p-values are on the side of the statistic
            on_the_same_side = (z > 0) if mode == "moran" else (z < 0)
            expected = np.where(on_the_same_side, theirs["pval_norm"], 1 - theirs["pval_norm"])
            np.testing.assert_allclose(table[f"{name}_p"], expected, atol=1e-6)
