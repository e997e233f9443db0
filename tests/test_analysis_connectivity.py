"""Connectivity between domains, order of layers, depth."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.stats import pearsonr, spearmanr

from amilst_lite.analysis import domain_connectivity, tissue_depth
from amilst_lite.analysis.connectivity import connectivity, layer_order
from amilst_lite.analysis.neighborhood import contact_pairs
from amilst_lite.errors import InputError, MissingKeyError
from amilst_lite.spatial import SpatialGraph, majority_vote


def layered(n=1500, bounds=(0.15, 0.4, 0.5, 0.8), noise=0.0, seed=0):
    """Concentric layers; the names do not follow their order. Returns the AnnData and the true depth in [0, 1]."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(size=(n, 2)) * [2.0, 1.0]
    radius = np.hypot(points[:, 0] - 1.0, points[:, 1] + 1.5)
    depth = (radius - radius.min()) / np.ptp(radius)
    layer = np.searchsorted(bounds, depth)
    wrong = rng.random(n) < noise
    layer[wrong] = rng.integers(0, len(bounds) + 1, wrong.sum())
    adata = ad.AnnData(sp.csr_matrix((n, 1), dtype=np.float32))
    adata.obsm["spatial"] = points * 1000
    adata.obsp["spatial_connectivities"] = SpatialGraph.from_coordinates(
        points, n_neighbors=6
    ).connectivities()
    names = np.array(["c", "e", "a", "d", "b"])
    adata.obs["amilst_domain"] = pd.Categorical(names[layer])
    adata.obs["amilst_domain_refined"] = pd.Categorical(majority_vote(names[layer], points, 6))
    return adata, depth


def test_connectivity_follows_the_formula():
    rng = np.random.default_rng(0)
    dense = np.triu(rng.random((40, 40)) < 0.2, 1)
    codes = rng.integers(0, 3, 40)
    both = dense | dense.T
    found = connectivity(contact_pairs(sp.csr_matrix(dense), np.zeros(40, int)), codes, 3)
    sizes = np.bincount(codes)
    edges = np.array([[both[np.ix_(codes == a, codes == b)].sum() for b in range(3)] for a in range(3)])
    begin = edges.sum(axis=1)
    for a in range(3):
        for b in range(3):
            expected = (begin[a] * sizes[b] + begin[b] * sizes[a]) / 39
            assert found[a, b] == pytest.approx(0 if a == b else min(1, 2 * edges[a, b] / expected))


def test_connectivity_of_layers_is_a_chain():
    adata, _ = layered()
    table = domain_connectivity(adata)
    stored = adata.uns["amilst_connectivity"]
    order = ["c", "e", "a", "d", "b"]
    chain = table.loc[order, order].to_numpy()
    assert (np.diag(chain, 1) > 0.05).all() and np.allclose(np.triu(chain, 2), 0)
    np.testing.assert_array_equal(stored["spatial"]["tree"], table.to_numpy())  # a chain is its own tree
    assert list(stored["domains"]) == list(table.index) == ["a", "b", "c", "d", "e"]


def test_connectivity_in_the_embedding():
    adata, _ = layered(600)
    codes = adata.obs["amilst_domain"].cat.codes.to_numpy()
    centers = np.array([0, 1, 10, 11, 0.5])[codes]  # a, b and e are close to each other, and c to d
    rng = np.random.default_rng(1)
    adata.obsm["X_amilst"] = (centers[:, None] + rng.normal(scale=0.5, size=(600, 5))).astype(np.float32)
    domain_connectivity(adata)
    table = domain_connectivity(adata, "embedding", n_neighbors=10)
    assert table.loc["a", "e"] > 0.3 and table.loc["c", "d"] > 0.1
    assert table.loc[["a", "b", "e"], ["c", "d"]].to_numpy().max() == 0
    assert {"spatial", "embedding", "domains"} == set(adata.uns["amilst_connectivity"])
    tree = adata.uns["amilst_connectivity"]["embedding"]["tree"]
    assert (tree > 0).sum() == 2 * 3  # two parts of 3 and 2 domains
    np.testing.assert_array_equal(tree, tree.T)
    with pytest.raises(InputError, match="space must be one of"):
        domain_connectivity(adata, "time")
    with pytest.raises(InputError, match="below the number of spots"):
        domain_connectivity(adata, "embedding", n_neighbors=600)
    with pytest.raises(MissingKeyError, match="no 'X_pca'"):
        domain_connectivity(adata, "embedding", use_rep="X_pca")


def test_a_chain_with_stray_contacts_is_put_in_order():
    rng = np.random.default_rng(2)
    order = rng.permutation(8)
    contacts = rng.integers(0, 4, size=(8, 8))
    contacts += contacts.T
    contacts[order[:-1], order[1:]] += rng.integers(40, 400, size=7)
    contacts = np.maximum(contacts, contacts.T)
    found = layer_order(contacts)
    assert found[0] < found[-1]
    assert found.tolist() in (order.tolist(), order[::-1].tolist())
    assert layer_order(contacts, int(found[-1])).tolist() == found[::-1].tolist()


def test_depth_is_the_true_depth():
    adata, truth = layered()
    table = tissue_depth(adata, first="c")
    assert table["domain"].tolist() == ["c", "e", "a", "d", "b"]
    depth = adata.obs["amilst_layer_depth"]
    assert depth.min() >= 0 and depth.max() <= 1 and depth.notna().all()
    assert pearsonr(depth, truth)[0] > 0.985 and spearmanr(depth, truth)[0] > 0.985
    radial = 1000 * (np.hypot(1, 2.5) - 1.5)
    np.testing.assert_allclose(table["thickness"], radial * np.array([0.15, 0.25, 0.1, 0.3, 0.2]), rtol=0.35)
    np.testing.assert_allclose(table["start"], np.cumsum(table["thickness"]) - table["thickness"])
    assert adata.uns["amilst_layers"] is table
    tissue_depth(adata)
    assert pearsonr(adata.obs["amilst_layer_depth"], truth)[0] < -0.98  # b, alphabetically before c, is first


def test_depth_with_spots_in_the_wrong_layer():
    adata, truth = layered(noise=0.1, seed=3)
    assert tissue_depth(adata, first="c")["domain"].tolist() == ["c", "e", "a", "d", "b"]
    assert pearsonr(adata.obs["amilst_layer_depth"], truth)[0] > 0.95


def test_some_of_the_domains_in_a_given_order():
    adata, truth = layered()
    table = tissue_depth(adata, ["d", "a", "e"], domain="amilst_domain")
    assert table["domain"].tolist() == ["d", "a", "e"]
    inside = adata.obs["amilst_domain"].isin(["d", "a", "e"])
    assert adata.obs["amilst_layer_depth"].notna().equals(inside)
    assert pearsonr(adata.obs["amilst_layer_depth"][inside], truth[inside])[0] < -0.97


def test_two_sections_have_one_depth():
    adata, truth = layered(900)
    other, _ = layered(900)
    both = ad.concat([adata, other], label="section", index_unique="-")
    both.obsp["spatial_connectivities"] = SpatialGraph.from_coordinates(
        both.obsm["spatial"], n_neighbors=6, sample=both.obs["section"].to_numpy()
    ).connectivities()
    for name in ("amilst_domain", "amilst_domain_refined"):
        both.obs[name] = both.obs[name].astype("category")
    tissue_depth(both, first="c", sample_key="section")
    first, second = both.obs["amilst_layer_depth"].to_numpy().reshape(2, -1)
    np.testing.assert_allclose(first, second, rtol=1e-6)
    assert pearsonr(first, truth)[0] > 0.98


def test_unusable_layers_are_refused():
    adata, _ = layered(300)
    with pytest.raises(InputError, match="no domain 'z'"):
        tissue_depth(adata, first="z")
    with pytest.raises(InputError, match="at least two different domains"):
        tissue_depth(adata, ["a", "a"])
    with pytest.raises(InputError, match="do not connect all of them"):
        layer_order(np.array([[5, 0], [0, 5]]))
    with pytest.raises(MissingKeyError, match="no column 'layer'"):
        tissue_depth(adata, domain="layer")
    assert "amilst_layer_depth" not in adata.obs


@pytest.mark.slow
def test_against_scanpy():
    scanpy = pytest.importorskip("scanpy")
    pytest.importorskip("igraph")
    adata, _ = layered(500, noise=0.2)
    graph = adata.obsp["spatial_connectivities"]
    adata.obsp["connectivities"] = adata.obsp["distances"] = graph
    adata.uns["neighbors"] = {
        "connectivities_key": "connectivities",
        "distances_key": "distances",
        "params": {"n_neighbors": 6, "method": "umap"},
    }
    assert (graph != graph.T).nnz == 0
    scanpy.tl.paga(adata, groups="amilst_domain")
    theirs = adata.uns["paga"]["connectivities"].toarray()
    np.testing.assert_allclose(domain_connectivity(adata).to_numpy(), theirs, atol=1e-6)
