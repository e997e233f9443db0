"""Counts to features, against dense formulas."""

import sys

import numpy as np
import pytest
from scipy import sparse

from amilst_lite.config import PRESETS, PreprocessConfig
from amilst_lite.errors import AmilstWarning, InputError
from amilst_lite.io import matrix
from amilst_lite.preprocess import (
    CountRows,
    is_on_disk,
    normalize,
    prepare,
    select_genes,
    survey,
)
from amilst_lite.preprocess.counts import LARGEST_COUNT

counts_module = sys.modules["amilst_lite.preprocess.counts"]
normalize_module = sys.modules[
    "amilst_lite.preprocess.normalize"
]  # the package exports a function of this name

N, G = 80, 120


@pytest.fixture
def counts():
    rng = np.random.default_rng(0)
    abundance = rng.gamma(0.5, 2.0, G)
    depth = rng.gamma(5.0, 0.3, (N, 1))
    dense = rng.poisson(depth * abundance)
    dense[:, 0] = 0  # never seen
    dense[:2, 1] = 1
    dense[2:, 1] = 0  # seen in two spots
    dense[5, 2] = 500  # more than 5 % of a spot
    return sparse.csr_matrix(dense.astype(np.float32))


def survey_of(counts):
    return survey(CountRows(counts))


def all_genes(**changes):
    return PreprocessConfig(n_top_genes=None, **changes)


def test_default_normalization_is_median_log(counts):
    before = counts.copy()
    normalized, genes, _ = normalize(counts, all_genes())
    dense = counts.toarray()
    seen = (dense > 0).sum(0) >= 3
    assert np.array_equal(genes, seen)
    kept = dense[:, seen]
    totals = kept.sum(1, keepdims=True)
    np.testing.assert_allclose(
        normalized[:].toarray(), np.log1p(kept / totals * np.median(totals)), rtol=1e-5
    )
    assert normalized[:].dtype == normalized.dtype == np.float32
    assert (counts != before).nnz == 0  # the input is unchanged


def test_published_normalization_leaves_dominant_genes_out_of_the_totals(counts):
    normalized, genes, _ = normalize(counts, PRESETS["published"].preprocess)
    kept = counts.toarray()[:, genes]
    dominant = (kept > 0.05 * kept.sum(1, keepdims=True)).any(0)
    assert dominant.any() and not dominant.all()
    others = kept[:, ~dominant].sum(1, keepdims=True)
    assert (others == 0).any()  # spots of dominant genes alone are scaled by all they have
    expected = np.log1p(kept / np.where(others > 0, others, kept.sum(1, keepdims=True)))
    np.testing.assert_allclose(normalized[:].toarray(), expected, rtol=1e-5, atol=1e-7)


def test_gene_choice_is_by_pearson_residuals(counts):
    dense = counts.toarray()[:, 1:].astype(np.float64)
    expected = dense.sum(1, keepdims=True) * dense.sum(0) / dense.sum()
    residuals = (dense - expected) / np.sqrt(expected + expected**2 / 100 + 1e-12)
    variance = np.clip(residuals, -np.sqrt(N), np.sqrt(N)).var(0)
    chosen = select_genes(sparse.csr_matrix(dense.astype(np.float32)), 30)
    assert np.array_equal(chosen, np.sort(np.argsort(-variance)[:30]))
    assert np.array_equal(select_genes(counts, G), np.arange(G))
    _, genes, _ = normalize(counts, PreprocessConfig(n_top_genes=30))
    assert genes.sum() == 30


def test_gene_choice_is_by_the_average_over_neighbors(counts):
    dense = counts.toarray()[:, 1:].astype(np.float64)
    rng = np.random.default_rng(1)
    neighbors = sparse.random(N, N, 0.1, format="csr", random_state=rng, data_rvs=np.ones, dtype=np.float32)
    neighbors = neighbors.maximum(neighbors.T).tolil()
    neighbors.setdiag(0)
    neighbors[5] = neighbors[:, 5] = 0  # a spot without neighbors
    neighbors = neighbors.tocsr()
    neighbors.eliminate_zeros()
    expected = dense.sum(1, keepdims=True) * dense.sum(0) / dense.sum()
    residuals = (dense - expected) / np.sqrt(expected + expected**2 / 100 + 1e-12)
    residuals = np.clip(residuals, -np.sqrt(N), np.sqrt(N))
    A = neighbors.toarray()
    averaged = A @ residuals / np.maximum(A.sum(1, keepdims=True), 1)
    chosen = select_genes(sparse.csr_matrix(dense.astype(np.float32)), 30, neighbors)
    assert np.array_equal(chosen, np.sort(np.argsort(-averaged.var(0))[:30]))
    alone = select_genes(sparse.csr_matrix(dense.astype(np.float32)), 30)
    assert not np.array_equal(chosen, alone)


def test_depth_is_the_total_over_all_genes(counts):
    preparation = prepare(counts, PreprocessConfig(n_top_genes=30, n_components=5))
    np.testing.assert_allclose(preparation.depth, counts.toarray().sum(1))


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x.toarray(),
        lambda x: x.tocsc(),
        lambda x: x.tocoo(),
        lambda x: x.astype(np.float64),
        lambda x: x.astype(np.int32),
        lambda x: x.toarray().astype(np.int64),
        lambda x: np.asfortranarray(x.toarray()),
        lambda x: sparse.csr_array(x),
    ],
)
def test_every_form_of_the_counts_gives_the_same_features(counts, form):
    plain, other = prepare(counts), prepare(form(counts))
    np.testing.assert_array_equal(plain.features, other.features)


@pytest.mark.parametrize("form", ["memory", "csr on disk", "dense on disk"])
def test_many_blocks_give_the_same_features(counts, form, tmp_path, monkeypatch):
    import anndata
    import h5py

    rows = np.arange(N)
    ring = sparse.csr_matrix((np.ones(N, np.float32), (rows, (rows + 1) % N)))
    config = PreprocessConfig(n_top_genes=60, n_components=5)
    expected = prepare(counts, config, ring)
    monkeypatch.setattr(counts_module, "BLOCK_ENTRIES", 700)
    monkeypatch.setattr(normalize_module, "_SMALL", 0)
    if form != "memory":
        adata = anndata.AnnData(counts if form == "csr on disk" else counts.toarray())
        adata.write_h5ad(tmp_path / "section.h5ad")
        counts = anndata.read_h5ad(tmp_path / "section.h5ad", backed="r").X
        assert isinstance(counts, h5py.Dataset) == (form == "dense on disk")
        assert is_on_disk(counts)
    assert len(list(CountRows(counts))) > 1
    found = prepare(counts, config, ring)
    assert np.array_equal(found.genes, expected.genes)
    np.testing.assert_allclose(found.features, expected.features, rtol=1e-3, atol=1e-3)


def test_genes_are_chosen_on_a_sample_of_many_spots(counts, monkeypatch):
    monkeypatch.setattr(normalize_module, "_SELECTION_SPOTS", 30)
    monkeypatch.setattr(normalize_module, "_SELECTION_RUNS", 3)
    monkeypatch.setattr(counts_module, "BLOCK_ENTRIES", 700)
    rng = np.random.default_rng(0)
    order = rng.permutation(N)
    found = survey(CountRows(counts), order)
    starts = np.linspace(0, N - 10, 3).astype(int)
    chosen = np.sort(order[(starts[:, None] + np.arange(10)).ravel()])  # three stretches of ten spots
    np.testing.assert_array_equal(found.sampled, chosen)
    assert (found.sample != counts[chosen]).nnz == 0
    # shuffled rows, with the same curve through the section, give the same spots
    shuffle = rng.permutation(N)
    _, genes, _ = normalize(counts, PreprocessConfig(n_top_genes=20), order=order)
    _, others, _ = normalize(
        counts[shuffle], PreprocessConfig(n_top_genes=20), order=np.argsort(shuffle)[order]
    )
    np.testing.assert_array_equal(others, genes)


def test_neighbors_of_a_sample_are_those_within_it(counts, monkeypatch):
    monkeypatch.setattr(normalize_module, "_SELECTION_SPOTS", 40)
    monkeypatch.setattr(normalize_module, "_SELECTION_RUNS", 4)
    order = np.random.default_rng(0).permutation(N)
    ring = sparse.lil_matrix((N, N), dtype=np.float32)
    for place in (-2, -1, 1, 2):
        ring[order, np.roll(order, place)] = 1
    neighbors = ring.tocsr()
    sampled = survey(CountRows(counts), order).sampled
    _, genes, _ = normalize(counts, PreprocessConfig(n_top_genes=25), neighbors, order)
    seen = np.flatnonzero((counts.toarray() > 0).sum(0) >= 3)
    within = neighbors[sampled][:, sampled]
    expected = seen[select_genes(counts[sampled][:, seen], 25, within)]
    np.testing.assert_array_equal(np.flatnonzero(genes), expected)
    _, alone, _ = normalize(counts, PreprocessConfig(n_top_genes=25), order=order)
    assert not np.array_equal(alone, genes)


@pytest.mark.parametrize("n_spots", [20_000, 20_100, 50_000])
def test_size_of_the_sample(n_spots):
    """At most 20,000 spots, in at most 40 stretches that reach from the first spot to the last."""
    sampled = survey(CountRows(sparse.csr_matrix(np.ones((n_spots, 2), np.float32)))).sampled
    stretches = np.split(sampled, np.flatnonzero(np.diff(sampled) > 1) + 1)
    assert (sampled[0], sampled[-1]) == (0, n_spots - 1)
    if n_spots == 50_000:
        assert [len(stretch) for stretch in stretches] == [500] * 40
    else:
        assert len(stretches) <= 40 and 19_000 < len(sampled) <= 20_000


def test_counts_stored_by_genes_on_disk_are_refused(counts, tmp_path):
    import anndata

    anndata.AnnData(counts.tocsc()).write_h5ad(tmp_path / "section.h5ad")
    with pytest.raises(InputError, match="stored by genes"):
        prepare(anndata.read_h5ad(tmp_path / "section.h5ad", backed="r").X)


def test_corrupt_counts_on_disk_are_named(counts, tmp_path):
    import anndata
    import h5py

    path = tmp_path / "section.h5ad"
    anndata.AnnData(counts).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        file["X/indices"][5] = G + 7  # no such gene
    with pytest.raises(InputError, match="spots 0 to 79 on disk are corrupt"):
        prepare(anndata.read_h5ad(path, backed="r").X)


@pytest.mark.parametrize("form", ["csr", "integers", "csc", "dense", "csr on disk", "dense on disk"])
def test_counts_that_float32_does_not_hold_are_refused(counts, form, tmp_path, monkeypatch):
    import anndata

    dense = counts.toarray().astype(np.int64)
    dense[70, 3] = LARGEST_COUNT - 1
    for value in (LARGEST_COUNT - 1, LARGEST_COUNT, 2**40):
        dense[71, 4] = value
        given = {"integers": sparse.csr_matrix(dense), "csc": sparse.csc_matrix(dense), "dense": dense}.get(
            form, sparse.csr_matrix(dense.astype(np.float64))
        )
        if "disk" in form:
            monkeypatch.setattr(counts_module, "BLOCK_ENTRIES", 900)
            stored = given if form == "csr on disk" else dense.astype(np.float64)
            anndata.AnnData(stored).write_h5ad(tmp_path / "section.h5ad")
            given = anndata.read_h5ad(tmp_path / "section.h5ad", backed="r").X
        if value < LARGEST_COUNT:
            survey_of(given)
            continue
        with pytest.raises(InputError, match=rf"below 16,777,216, .* found {value} in spot 71"):
            survey_of(given)


def test_readers_have_the_same_limit():
    assert matrix.LARGEST_COUNT == LARGEST_COUNT


def test_features_are_principal_components(counts):
    preparation = prepare(counts, all_genes(n_components=5, normalization="published"))
    normalized, _, _ = normalize(counts, all_genes(normalization="published"))
    dense = normalized[:].toarray()
    dense = (dense - dense.mean(0)) / dense.std(0, ddof=1)
    values = np.linalg.svd(dense, compute_uv=False)[:5]
    np.testing.assert_allclose(np.linalg.norm(preparation.features, axis=0), values, rtol=1e-4)
    assert preparation.features.dtype == np.float32


def test_components_are_limited_by_spots_and_genes(counts):
    assert prepare(counts[:10], all_genes(n_components=50)).features.shape == (10, 9)
    assert prepare(counts[:, 2:9], all_genes(n_components=50)).features.shape[1] <= 7


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x - 2 * x, "must not be negative"),
        (lambda x: x * np.float32(np.nan), "must be finite"),
        (lambda x: x * np.float32(np.inf), "must be finite"),
        (lambda x: x * 0, "all counts are zero"),
        (lambda x: x[:, :0], "spots × genes"),
    ],
)
def test_unusable_counts(counts, spoil, message):
    with pytest.raises(InputError, match=message):
        survey_of(spoil(counts))


def test_no_gene_left(counts):
    with pytest.raises(InputError, match="no gene is seen in at least 3 of 2 spots"):
        normalize(counts[:2], all_genes())


def test_suspicious_counts_warn(counts):
    with pytest.warns(AmilstWarning, match="should be integers"):
        survey_of(counts.log1p())
    empty = counts.copy().tolil()
    empty[3] = 0
    with pytest.warns(AmilstWarning, match="1 of 80 spots have no counts"):
        survey_of(empty.tocsr())


def test_an_empty_spot_or_gene_changes_no_other_feature(counts):
    wider = sparse.hstack([counts, sparse.csr_matrix((N, 3), dtype=np.float32)]).tocsr()
    np.testing.assert_array_equal(prepare(counts).features, prepare(wider).features)
    with pytest.warns(AmilstWarning, match="no counts"):
        taller = prepare(sparse.vstack([counts, sparse.csr_matrix((1, G), dtype=np.float32)]).tocsr())
    assert np.isfinite(taller.features).all()


@pytest.mark.slow
def test_published_recipe_against_scanpy(counts):
    sc = pytest.importorskip("scanpy")
    import anndata

    counts = counts + sparse.csr_matrix(np.eye(N, G, 30, dtype=np.float32))  # no spot of dominant genes alone
    adata = anndata.AnnData(counts.copy())
    sc.pp.filter_genes(adata, min_cells=3)
    sc.pp.normalize_total(adata, target_sum=1, exclude_highly_expressed=True)
    sc.pp.log1p(adata)
    normalized, _, _ = normalize(counts, PRESETS["published"].preprocess)
    np.testing.assert_allclose(normalized[:].toarray(), adata.X.toarray(), rtol=1e-5, atol=1e-7)
    sc.pp.scale(adata)
    sc.pp.pca(adata, n_comps=20, svd_solver="full")
    ours = prepare(counts, PreprocessConfig(
        n_top_genes=None, normalization="published", n_components=20
    )).features  # fmt: skip
    theirs = adata.obsm["X_pca"]
    signs = np.sign((ours * theirs).sum(0))
    np.testing.assert_allclose(ours * signs, theirs, rtol=1e-3, atol=1e-3)


def test_duplicate_entries_are_summed(counts):
    """CSR allows several entries of one spot and gene; scipy sums them, and so do we."""
    twice = counts.copy()
    twice.data = np.repeat(counts.data, 2)
    twice.data[::2] -= 1
    twice.data[1::2] = 1
    twice.indices = np.repeat(counts.indices, 2)
    twice.indptr = 2 * counts.indptr
    twice = sparse.csr_matrix((twice.data, twice.indices, twice.indptr), shape=counts.shape)
    assert twice.nnz == 2 * counts.nnz
    stored = twice.data.copy()
    expected, found = prepare(counts), prepare(twice)
    np.testing.assert_array_equal(found.features, expected.features)
    np.testing.assert_array_equal(found.genes, expected.genes)
    assert twice.nnz == 2 * counts.nnz and np.array_equal(twice.data, stored)  # the input is unchanged


def test_preprocessing_settings_are_wired(counts):
    config = PreprocessConfig(n_top_genes=40, n_components=6)
    prepared = prepare(counts, config)
    assert prepared.genes.sum() == 40 and prepared.features.shape == (N, 6)
    assert not prepared.pca.scale and prepare(counts, PRESETS["published"].preprocess).pca.scale


def test_counts_left_on_disk_give_what_counts_in_memory_give(tmp_path, monkeypatch):
    """Above a size, the chosen counts are read again in every pass; features have the same bits."""
    import anndata

    monkeypatch.setattr(normalize_module, "_SMALL", 100)
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.poisson(rng.random(60), (400, 60)).astype(np.float32))
    path = tmp_path / "section.h5ad"
    anndata.AnnData(counts).write_h5ad(path)
    for config in (PreprocessConfig(n_components=5), PreprocessConfig(n_components=5, n_top_genes=20)):
        on_disk = anndata.read_h5ad(path, backed="r").X
        expected, found = prepare(counts, config), prepare(on_disk, config)
        np.testing.assert_array_equal(found.features, expected.features)
        np.testing.assert_array_equal(found.genes, expected.genes)
        np.testing.assert_array_equal(found.gene_totals, np.asarray(counts.sum(0)).ravel()[found.genes])
        assert found.target == expected.target
        chosen = normalize(on_disk, config)[0].counts
        assert isinstance(chosen, CountRows) and not sparse.issparse(chosen.counts)


def test_neighbors_are_asked_for_only_if_genes_are_selected():
    rng = np.random.default_rng(1)
    counts = sparse.csr_matrix(rng.poisson(1.0, (50, 30)).astype(np.float32))
    ring = sparse.csr_matrix(np.roll(np.eye(50), 1, axis=1) + np.roll(np.eye(50), -1, axis=1))
    calls = []

    def neighbors():
        calls.append(1)
        return ring

    prepare(counts, PreprocessConfig(n_components=3), neighbors)
    assert not calls
    config = PreprocessConfig(n_components=3, n_top_genes=10)
    found = prepare(counts, config, neighbors)
    assert len(calls) == 1
    np.testing.assert_array_equal(found.genes, prepare(counts, config, ring).genes)


def test_rows_are_taken_in_the_order_asked_for(monkeypatch):
    monkeypatch.setattr(counts_module, "BLOCK_ENTRIES", 300)
    rng = np.random.default_rng(2)
    counts = sparse.csr_matrix(rng.poisson(1.0, (100, 20)).astype(np.float32))
    rows, genes = CountRows(counts), rng.random(20) < 0.5
    read = []
    monkeypatch.setattr(rows, "_all_genes", lambda at: read.append(at.start) or counts[at])
    for spots in (np.array([70, 3, 99, 4]), np.array([5]), np.arange(100)):
        np.testing.assert_array_equal(rows.take(spots).toarray(), counts[spots].toarray())
    assert len(read) < 3 * len(list(rows._slices()))  # blocks without any of them are not read
    assert rows.take(np.empty(0, np.int64)).shape == (0, 20)
    few = CountRows(counts, genes)
    assert few.shape == (100, genes.sum())
    np.testing.assert_array_equal(few[10:20].toarray(), counts[10:20].toarray()[:, genes])
    np.testing.assert_array_equal(few.totals(), counts.toarray()[:, genes].sum(1))
