"""Composition of sections, and comparison of conditions by permuting sections."""

from itertools import combinations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from amilst_lite.analysis import compare_conditions, domain_composition
from amilst_lite.analysis.composition import compare_groups, composition, contact_enrichment
from amilst_lite.analysis.neighborhood import contact_pairs, enrichment
from amilst_lite.errors import InputError, MissingKeyError
from amilst_lite.spatial import SpatialGraph

LEFT = np.array([False] * 4 + [True] * 4)


def cohort(n_sections=8, n=60, shift=0.0, seed=0):
    """Sections with domains at random; d2 is more frequent in the second half of the sections by ``shift``."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(size=(n_sections * n, 2))
    section = np.repeat([f"s{i}" for i in range(n_sections)], n)
    treated = np.repeat(np.arange(n_sections) >= n_sections // 2, n)
    codes = rng.integers(0, 3, len(points))
    codes[treated & (rng.random(len(points)) < shift)] = 2
    adata = ad.AnnData(sp.csr_matrix((len(points), 1), dtype=np.float32))
    adata.obs["amilst_domain"] = pd.Categorical([f"d{code}" for code in codes])
    adata.obs["section"] = section
    adata.obs["condition"] = np.where(treated, "treated", "control")
    graph = SpatialGraph.from_coordinates(points, n_neighbors=5, sample=section)
    adata.obsp["spatial_connectivities"] = graph.connectivities()
    adata.obsm["spatial"] = points
    return adata


def test_composition_equals_the_cross_table():
    adata = cohort()
    table = domain_composition(adata, sample_key="section")
    expected = pd.crosstab(adata.obs["section"], adata.obs["amilst_domain"])
    found = table.pivot(index="section", columns="domain", values="n_spots")
    np.testing.assert_array_equal(found.to_numpy(), expected.to_numpy())
    np.testing.assert_allclose(table.groupby("section")["share"].sum(), 1)
    assert adata.uns["amilst_composition"] is table
    np.testing.assert_array_equal(
        composition(np.array([1, 1]), 2, np.array([2, 0])), [[0, 1], [0, 0], [0, 1]]
    )


def test_p_values_are_those_of_all_assignments():
    values = np.random.default_rng(1).normal(size=(8, 3))
    values[:, 2] = 1.0  # no difference
    found = compare_groups(values, LEFT)
    differences = []
    for chosen in combinations(range(8), 4):
        inside = np.isin(np.arange(8), chosen)
        differences.append(values[inside].mean(axis=0) - values[~inside].mean(axis=0))
    differences = np.abs(differences)
    observed = np.abs(values[LEFT].mean(axis=0) - values[~LEFT].mean(axis=0))
    close = np.isclose(differences, observed, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.p, (close | (differences > observed)).mean(axis=0))
    np.testing.assert_allclose(found.p_mid, found.p - 0.5 * close.mean(axis=0), err_msg="ties count half")
    scaled = differences[:, :2] / values[:, :2].std(axis=0)
    largest = scaled.max(axis=1)[:, None]
    np.testing.assert_allclose(
        found.p_adjusted[:2], (largest >= observed[:2] / values[:, :2].std(axis=0) - 1e-9).mean(axis=0)
    )
    assert found.p[2] == found.p_adjusted[2] == 1 and found.difference[2] == 0
    assert found.exact and found.n_assignments == 70


def test_complete_separation_has_the_smallest_possible_p():
    values = np.concatenate([np.zeros(4), np.ones(4)])[:, None] + np.arange(8)[:, None] * 0.01
    found = compare_groups(values, LEFT)
    assert found.p[0] == pytest.approx(2 / 70) and found.difference[0] == pytest.approx(1.04)


def test_many_sections_are_sampled():
    rng = np.random.default_rng(2)
    second = np.arange(24) >= 12
    values = rng.normal(size=(24, 2))
    values[:, 1] += 2 * second
    found = compare_groups(values, second, n_permutations=2000, seed=1)
    assert not found.exact and found.n_assignments == 2001
    assert found.p[1] < 0.002 and found.p[0] > 0.01
    assert compare_groups(values, second, n_permutations=2000, seed=1).p.tolist() == found.p.tolist()


def test_false_positives_in_null_cohorts():
    """1,000 cohorts of 4 + 4 sections: rates of p <= 0.05 that the 35 possible values allow, 1/35 and 2/35."""
    rng = np.random.default_rng(3)
    found = [compare_groups(rng.dirichlet(np.ones(5), size=8), LEFT) for _ in range(1000)]
    conservative = np.mean([one.p <= 0.05 for one in found])
    mid = np.mean([one.p_mid <= 0.05 for one in found])
    family = np.mean([one.p_adjusted.min() <= 0.05 for one in found])
    assert conservative == pytest.approx(1 / 35, abs=0.008)
    assert mid == pytest.approx(2 / 35, abs=0.01)
    assert family == pytest.approx(1 / 35, abs=0.02)


def test_contact_enrichment_is_that_of_each_section_alone():
    adata = cohort(3)
    sections = pd.factorize(adata.obs["section"])[0]
    codes = adata.obs["amilst_domain"].cat.codes.to_numpy().astype(np.int64)
    order = np.random.default_rng(4).permutation(len(codes))
    graph = adata.obsp["spatial_connectivities"]
    pairs = contact_pairs(graph[order][:, order], sections[order])
    found = contact_enrichment(pairs, codes[order], 3, sections[order])
    for section in range(3):
        own = sections == section
        alone = contact_pairs(graph[own][:, own], np.zeros(own.sum(), int))
        one = enrichment(alone, codes[own], 3, np.zeros(own.sum(), int))
        expected = np.log2((one.count + 0.5) / (one.expected + 0.5))[np.triu_indices(3)]
        np.testing.assert_allclose(found[section], expected, rtol=1e-12)


def test_conditions_that_differ_are_told_apart():
    adata = cohort(shift=0.5)
    shares, contacts = compare_conditions(adata, "condition", sample_key="section")
    d2 = shares.set_index("domain").loc["d2"]
    assert d2["p"] == pytest.approx(2 / 70) and d2["difference"] > 0.2
    assert d2["second"] - d2["first"] == pytest.approx(d2["difference"])
    assert len(contacts) == 6 and {"domain", "other", "p_mid", "p_adjusted"} <= set(contacts)
    stored = adata.uns["amilst_comparison"]
    assert list(stored["conditions"]) == ["control", "treated"] and stored["exact"]
    same = compare_conditions(cohort(seed=7), "condition", sample_key="section")[0]
    assert same["p"].min() > 0.05


def test_the_order_of_spots_does_not_matter():
    adata = cohort(6)
    order = np.random.default_rng(5).permutation(adata.n_obs)
    shuffled = adata[order].copy()
    for first, second in zip(
        compare_conditions(adata, "condition", sample_key="section"),
        compare_conditions(shuffled, "condition", sample_key="section"),
        strict=True,
    ):
        pd.testing.assert_frame_equal(first, second)


def test_unusable_designs_are_refused():
    adata = cohort(5)
    with pytest.raises(InputError, match="at least 3 sections in each group; found 2 and 3"):
        compare_conditions(adata, "condition", sample_key="section")
    with pytest.raises(InputError, match="found 1 and 0"):  # no sections are known
        compare_groups(np.zeros((1, 2)), np.array([False]))
    adata = cohort(6)
    with pytest.raises(MissingKeyError, match="no column 'dose'"):
        compare_conditions(adata, "dose", sample_key="section")
    with pytest.raises(InputError, match="must have two conditions; found 6"):
        compare_conditions(adata, "section", sample_key="section")
    adata.obs.loc[adata.obs_names[0], "condition"] = "treated"
    with pytest.raises(InputError, match="section 's0' has several or none"):
        compare_conditions(adata, "condition", sample_key="section")
    assert "amilst_comparison" not in adata.uns
