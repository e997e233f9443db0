"""Denoised expression: regression on the embedding, within sections."""

import anndata as ad
import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import LinearRegression

import amilst_lite as amilst
from amilst_lite.analysis.expression import denoise, expected_expression
from amilst_lite.errors import InputError, MissingKeyError


@pytest.fixture(scope="module")
def done():
    adata = amilst.simulate_section(600, 80, 3, seed=4)
    amilst.identify_domains(adata, 3, epochs=5, n_init=6, shrinkage=0.2)
    return adata


def log_normalized(counts):
    dense = counts.toarray().astype(np.float64)
    totals = dense.sum(1, keepdims=True)
    return np.log1p(dense / totals * np.median(totals))


def test_is_the_regression_on_the_embedding(done):
    E = done.obsm["X_amilst"]
    found = expected_expression(done.X, np.array([7, 3]), E, np.zeros(len(E), np.int64))
    expression = log_normalized(done.X)[:, [7, 3]]
    expected = LinearRegression().fit(E, expression).predict(E)
    np.testing.assert_allclose(found, np.maximum(expected, 0), atol=0.02)


def test_section_effects_are_removed():
    rng = np.random.default_rng(0)
    E = rng.normal(size=(400, 2)).astype(np.float32)
    sections = np.repeat([0, 1], 200)
    rates = np.exp(1.0 + 0.8 * E[:, :1] * [1, -1, 0.5, 0]) * 5
    rates[sections == 1, 0] *= 3  # a technical effect on one gene
    counts = sparse.csr_matrix(rng.poisson(rates).astype(np.float32))
    found = expected_expression(counts, np.arange(4), E, sections)
    apart = expected_expression(counts, np.arange(4), E, np.zeros(400, np.int64))
    one = LinearRegression().fit(np.column_stack([E, sections]), found[:, 0])
    assert abs(one.coef_[2]) < 0.02
    assert np.isfinite(apart).all() and (found >= 0).all()


def test_predicts_counts_that_were_set_aside():
    """Closer to the rates of the simulated domains than the expression itself."""
    adata = amilst.simulate_section(800, 80, 3, seed=5)
    rng = np.random.default_rng(0)
    kept = adata.copy()
    kept.X = adata.X.copy()
    kept.X.data = rng.binomial(adata.X.data.astype(int), 0.5).astype(np.float32)
    held_out = (adata.X - kept.X).toarray()
    kept.X.eliminate_zeros()
    amilst.identify_domains(kept, 3, epochs=5, n_init=6, shrinkage=0.2)
    denoise(kept)
    totals = np.maximum(held_out.sum(1, keepdims=True), 1)
    target = np.log1p(held_out / totals * np.median(totals))
    raw = log_normalized(kept.X)
    assert np.square(kept.layers["amilst_denoised"] - target).mean() < 0.75 * np.square(raw - target).mean()


def test_chosen_genes_are_columns_of_a_sparse_layer(done, tmp_path):
    adata = done.copy()
    names = [adata.var_names[9], adata.var_names[2]]
    denoise(adata, names)
    chosen = adata.layers["amilst_denoised"]
    assert sparse.issparse(chosen) and chosen.shape == adata.shape and chosen.dtype == np.float32
    assert list(np.flatnonzero(np.diff(chosen.indptr))) == [2, 9]
    denoise(adata, layer="everything")
    everything = adata.layers["everything"]
    np.testing.assert_allclose(chosen.toarray()[:, [2, 9]], everything[:, [2, 9]], rtol=1e-5, atol=1e-6)
    adata.write_h5ad(tmp_path / "result.h5ad")
    again = ad.read_h5ad(tmp_path / "result.h5ad")
    denoise(again, names[0])  # a single name; the layer is replaced
    assert list(np.flatnonzero(np.diff(again.layers["amilst_denoised"].indptr))) == [9]


def test_refusals(done, monkeypatch):
    with pytest.raises(MissingKeyError, match="Run identify_domains first"):
        denoise(amilst.simulate_section(50, 20, 2))
    with pytest.raises(MissingKeyError, match=r"no 'unknown'; it has 'gene.*\(80 genes\)"):
        denoise(done, ["unknown"])
    with pytest.raises(MissingKeyError, match="none were given"):
        denoise(done, [])
    monkeypatch.setattr("amilst_lite.analysis.expression.total_memory", lambda: 1000)
    with pytest.raises(InputError, match="Choose some genes"):
        denoise(done)
