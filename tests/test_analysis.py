"""Several analyses at once, and what is common to all of them."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import amilst_lite as amilst
from amilst_lite import analysis, keys
from amilst_lite.errors import InputError
from amilst_lite.simulate import simulate_tissue
from amilst_lite.spatial import SpatialGraph

N = 480


@pytest.fixture(scope="module")
def section():
    """Six sections of one simulated tissue, with its true domains as those of a run."""
    tissue = simulate_tissue(N, 40, 3, seed=0)
    adata = ad.AnnData(tissue.counts, obs=pd.DataFrame(index=tissue.spot_names))
    adata.var_names = tissue.gene_names
    adata.obsm["spatial"] = tissue.coordinates
    for column in ("amilst_domain", "amilst_domain_refined"):
        adata.obs[column] = pd.Categorical(tissue.annotation)
    adata.obs["section"] = pd.qcut(tissue.coordinates[:, 0], 6, labels=list("abcdef")).astype(str)
    adata.obs["condition"] = np.where(adata.obs["section"] < "d", "x", "y")
    graph = SpatialGraph.from_coordinates(
        tissue.coordinates, n_neighbors=6, sample=adata.obs["section"].to_numpy()
    )
    adata.obsp["spatial_connectivities"] = graph.connectivities()
    adata.obsm["X_amilst"] = tissue.composition
    return adata


def test_all_analyses_write_their_slots_and_survive_a_file(section, tmp_path):
    adata = section.copy()
    tables = analysis.run(adata, list(analysis.ANALYSES), condition_key="condition", sample_key="section")
    assert set(tables) == set(analysis.ANALYSES) - {"comparison"} | {
        "comparison-composition",
        "comparison-contacts",
    }
    assert all(isinstance(table, pd.DataFrame) and len(table) for table in tables.values())
    for place, names in keys.ResultKeys().analysis_slots.items():
        # the others: plot.order_domains, and the UMAP, which is no table
        written = {name for name in names if "_ordered" not in name and not name.endswith("_umap")}
        assert written <= set(getattr(adata, place)), place
    adata.write_h5ad(tmp_path / "result.h5ad")
    back = ad.read_h5ad(tmp_path / "result.h5ad")
    pd.testing.assert_frame_equal(back.uns["amilst_markers"], tables["markers"], check_dtype=False)
    pd.testing.assert_frame_equal(
        back.uns["amilst_spatially_variable"], tables["spatially-variable"], check_names=False
    )
    assert dir(analysis) == analysis.__all__
    pd.testing.assert_frame_equal(back.obsm["amilst_border_distance"], tables["border-distance"])
    np.testing.assert_array_equal(back.uns["amilst_enrichment"]["z"], adata.uns["amilst_enrichment"]["z"])
    tree = adata.uns["amilst_connectivity"]["spatial"]["tree"]
    np.testing.assert_array_equal(back.uns["amilst_connectivity"]["spatial"]["tree"], tree)
    assert back.uns["amilst_comparison"]["condition_key"] == "condition"


def test_nothing_else_changes(section):
    adata = section.copy()
    before = adata.copy()
    analysis.run(adata, key_added="amilst")
    assert (adata.X != before.X).nnz == 0
    assert (adata.obsp["spatial_connectivities"] != before.obsp["spatial_connectivities"]).nnz == 0
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert set(adata.uns) <= set(keys.ResultKeys().analysis_slots["uns"])


def test_the_order_of_spots_does_not_matter(section):
    order = np.random.default_rng(0).permutation(N)
    names = ["markers", "spatially-variable", "enrichment", "shapes", "composition", "connectivity"]
    options = {
        "sample_key": "section",
        "n_permutations": 20,
        "identify": lambda half: (half.obsm["spatial"][:, 1] > half.obsm["spatial"][:, 1].mean()).astype(int),
    }
    expected = analysis.run(section.copy(), names, **options)
    found = analysis.run(section[order].copy(), names, **options)
    for name in names:
        pd.testing.assert_frame_equal(found[name], expected[name], rtol=1e-9)


def test_options_reach_the_analyses_that_have_them(section):
    names = ["enrichment", "spatially-variable"]
    tables = analysis.run(section.copy(), names, n_permutations=9, moments="randomization")
    assert "moran_p_permutation" in tables["spatially-variable"]
    assert tables["enrichment"]["p"].min() >= 0.1  # 9 permutations


def test_mistakes_are_refused_before_anything_is_computed(section):
    adata = section.copy()
    with pytest.raises(InputError, match="no analysis 'volcano'"):
        analysis.run(adata, ["markers", "volcano"])
    with pytest.raises(InputError, match="no option 'n_permutation'"):
        analysis.run(adata, ["markers"], n_permutation=10)
    with pytest.raises(InputError, match="needs condition_key"):
        analysis.run(adata, ["comparison"])
    assert not adata.uns


def test_thinning_with_identify_domains():
    tissue = simulate_tissue(300, 60, 3, signal=2, median_counts=300, seed=1)
    adata = ad.AnnData(tissue.counts, var=pd.DataFrame(index=tissue.gene_names))
    adata.obsm["spatial"] = tissue.coordinates
    quick = {"epochs": 4, "n_networks": 2, "n_init": 6, "shrinkage": 0.2, "network_share": 0.0}
    amilst.identify_domains(adata, 3, seed=0, **quick)
    table = analysis.marker_genes(adata, identify=lambda half: amilst.identify_domains(half, 3, **quick))
    assert (table["overlap"] > 0.6).all()
    assert np.corrcoef(table["z"], table["z_held_out"])[0, 1] > 0.8
