"""Contacts between domains, distances to borders, shapes."""

from itertools import permutations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.spatial.distance import cdist

from amilst_lite.analysis import border_distances, domain_shapes, neighborhood_enrichment
from amilst_lite.analysis.neighborhood import contact_pairs, count_contacts, enrichment, shapes
from amilst_lite.errors import InputError, MissingKeyError
from amilst_lite.spatial import SpatialGraph


def grid(rows, columns, pitch=1.0):
    return pitch * np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2).astype(
        float
    )


def neighbors(points, n=4, sample=None):
    return SpatialGraph.from_coordinates(points, n_neighbors=n, sample=sample).connectivities()


def annotated(points, codes, sample=None, n=4):
    adata = ad.AnnData(sp.csr_matrix((len(points), 2), dtype=np.float32))
    adata.obsm["spatial"] = points
    adata.obs["amilst_domain"] = pd.Categorical([f"d{code}" for code in codes])
    if sample is not None:
        adata.obs["section"] = sample
    adata.obsp["spatial_connectivities"] = neighbors(points, n, sample)
    return adata


def test_pairs_and_counts_equal_the_double_sum():
    rng = np.random.default_rng(0)
    graph = sp.random(30, 30, density=0.2, format="csr", random_state=1)  # directed, weighted, with loops
    sections = rng.integers(0, 2, 30)
    codes = rng.integers(0, 3, 30)
    dense = graph.toarray() != 0
    dense = (dense | dense.T) & (sections[:, None] == sections[None, :])
    expected = np.zeros((3, 3), int)
    for i in range(30):
        for j in range(i):
            if dense[i, j]:
                expected[codes[i], codes[j]] += 1
                if codes[i] != codes[j]:
                    expected[codes[j], codes[i]] += 1
    pairs = contact_pairs(graph, sections)
    assert len(np.unique(pairs, axis=1).T) == pairs.shape[1]
    np.testing.assert_array_equal(count_contacts(pairs, codes, 3), expected)


def test_moments_are_those_of_all_permutations():
    """Seven spots, three domains: all 5,040 permutations."""
    rng = np.random.default_rng(1)
    graph = sp.csr_matrix(np.triu(rng.random((7, 7)) < 0.5, 1))
    sections, codes = np.zeros(7, int), np.array([0, 0, 0, 1, 1, 2, 2])
    pairs = contact_pairs(graph, sections)
    counts = np.array([count_contacts(pairs, codes[list(order)], 3) for order in permutations(range(7))])
    found = enrichment(pairs, codes, 3, sections)
    np.testing.assert_allclose(found.expected, counts.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.deviation, counts.std(axis=0), rtol=1e-9)


def test_moments_of_sections_add_up_and_agree_with_random_permutations():
    rng = np.random.default_rng(2)
    points = rng.uniform(size=(300, 2))
    sections = np.repeat([0, 1], [100, 200])
    codes = np.where(sections == 0, rng.integers(0, 3, 300), rng.integers(1, 4, 300))
    pairs = contact_pairs(neighbors(points, 6, sections), sections)
    found = enrichment(pairs, codes, 4, sections, n_permutations=2000, seed=1)
    by_normal = enrichment(pairs, codes, 4, sections)
    counts = []
    for _ in range(500):
        permuted = codes.copy()
        for section in (0, 1):
            permuted[sections == section] = rng.permutation(codes[sections == section])
        counts.append(count_contacts(pairs, permuted, 4))
    mean, deviation = np.mean(counts, axis=0), np.std(counts, axis=0)
    np.testing.assert_allclose(found.expected, mean, atol=(5 * deviation / np.sqrt(500)).max())
    np.testing.assert_allclose(found.deviation, deviation, rtol=0.15)
    assert found.count[0, 3] == 0 and np.isnan(found.z[0, 3])  # never in one section
    known = ~np.isnan(by_normal.p)
    np.testing.assert_allclose(found.p[known], by_normal.p[known], atol=0.12)  # counts are discrete


def test_few_spots_give_no_division_by_zero():
    pairs = np.array([[0, 2], [1, 3]])
    with np.errstate(all="raise"):
        found = enrichment(pairs, np.array([0, 1, 0, 1]), 2, np.array([0, 0, 1, 1]))
    np.testing.assert_array_equal(found.expected, [[0, 2], [2, 0]])
    assert np.isnan(found.z).all()


def test_enrichment_of_two_halves():
    points = grid(10, 10)
    adata = annotated(points, (points[:, 0] > 4.5).astype(int))
    adata.obsp["spatial_connectivities"] = SpatialGraph.from_coordinates(points, radius=1.1).connectivities()
    table = neighborhood_enrichment(adata).set_index(["domain", "other"])
    assert table.loc[("d0", "d1"), "contacts"] == 10
    assert table.loc[("d0", "d0"), "contacts"] == 5 * 9 + 4 * 10
    assert table.loc[("d0", "d1"), "z"] < -5 and table.loc[("d0", "d0"), "z"] > 4
    assert table.loc[("d0", "d1"), "share"] == 1 and np.isnan(table.loc[("d0", "d0"), "share"])
    stored = adata.uns["amilst_enrichment"]
    assert list(stored["domains"]) == ["d0", "d1"] and stored["contacts"][1, 0] == 10
    assert stored["z"].shape == (2, 2)


def test_distances_equal_all_pairs():
    rng = np.random.default_rng(3)
    points = rng.uniform(size=(120, 2))
    sections, codes = rng.integers(0, 2, 120), rng.integers(0, 3, 120)
    codes[(sections == 1) & (codes == 2)] = 0  # a domain that one section does not contain
    adata = annotated(points, codes, sections)
    adata.obs["section"] = sections
    table = border_distances(adata, sample_key="section")
    distance = cdist(points, points)
    for domain in range(3):
        for spot in range(120):
            others = (sections == sections[spot]) & ((codes == domain) != (codes[spot] == domain))
            sign = -1 if codes[spot] == domain else 1
            expected = sign * distance[spot, others].min() if others.any() else np.nan
            assert table.iloc[spot, domain] == pytest.approx(expected, rel=1e-6, nan_ok=True)
    assert table["d2"][sections == 1].isna().all()
    stored = adata.obsm["amilst_border_distance"]
    assert stored.dtypes.eq(np.float32).all() and list(stored.columns) == ["d0", "d1", "d2"]


def test_shapes_of_known_figures():
    pitch = 2.0
    points = grid(40, 60, pitch)
    x, y = points.T / pitch
    codes = np.zeros(len(points), int)
    codes[np.hypot(x - 15, y - 20) < 10.2] = 1  # a disk
    codes[(x >= 30) & (x < 50) & (y >= 10) & (y < 30)] = 2  # a square
    codes[(x >= 56) & (y < 38)] = 3  # a bar of 4 × 38
    codes[(x < 3) & (y < 3)] = 3  # and a square of 3 × 3
    pairs = contact_pairs(neighbors(points), np.zeros(len(points), int))
    table = shapes(points, pairs, codes, 4, np.zeros(len(points), int)).set_index("domain")
    assert table["n_spots"].tolist() == np.bincount(codes).tolist()
    np.testing.assert_allclose(table["area"], np.bincount(codes) * pitch**2, rtol=1e-9)
    assert table["n_parts"].tolist() == [1, 1, 1, 2]
    assert table.loc[1, "compactness"] == pytest.approx(1, abs=0.01)
    assert table.loc[2, "compactness"] == pytest.approx(3 / np.pi, abs=0.01)
    ratio = 38 / 4
    bar = 6 / np.pi / (ratio + 1 / ratio)
    assert table.loc[3, "compactness"] == pytest.approx((152 * bar + 9 * 3 / np.pi) / 161, abs=0.02)
    assert table.loc[3, "largest_part"] == pytest.approx(152 / 161)
    assert table.loc[2, "contacts_inside"] == pytest.approx(1 - 80 / 1600)


def test_shapes_do_not_depend_on_place_scale_rotation_or_order():
    rng = np.random.default_rng(4)
    points = rng.uniform(size=(200, 2))
    codes = (points[:, 0] > 0.3 + 0.2 * rng.random(200)).astype(int)
    expected = domain_shapes(annotated(points, codes))
    angle, order = 0.7, rng.permutation(200)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    found = domain_shapes(annotated((5 * points @ turn + 100)[order], codes[order]))
    pd.testing.assert_frame_equal(found.drop(columns="area"), expected.drop(columns="area"), rtol=1e-6)
    np.testing.assert_allclose(found["area"], 25 * expected["area"])


def test_shapes_by_section_and_in_three_dimensions():
    points = np.column_stack([grid(8, 8), np.zeros(64)])
    points[::2, 2] = 0.5
    sections = np.repeat(["s1", "s2"], 32)
    codes = np.where(sections == "s1", 0, np.arange(64) % 2)
    adata = annotated(points, codes, sections)
    table = domain_shapes(adata, sample_key="section")
    assert table[["section", "domain"]].to_numpy().tolist() == [["s1", "d0"], ["s2", "d0"], ["s2", "d1"]]
    assert table["n_spots"].tolist() == [32, 16, 16] and table["share"].tolist() == [1, 0.5, 0.5]
    assert table["compactness"].isna().all()
    assert adata.uns["amilst_shapes"] is table


def test_what_is_missing_is_named():
    adata = annotated(grid(5, 5), np.arange(25) % 2)
    with pytest.raises(MissingKeyError, match="no column 'patient'"):
        border_distances(adata, sample_key="patient")
    with pytest.raises(MissingKeyError, match="no neighbor graph 'other'"):
        neighborhood_enrichment(adata, connectivities_key="other")
    with pytest.raises(InputError, match="n_permutations"):
        neighborhood_enrichment(adata, n_permutations=1.5)
    del adata.obsm["spatial"]
    with pytest.raises(MissingKeyError, match="no coordinates"):
        domain_shapes(adata)


def test_the_graph_and_the_sections_of_the_run_are_used():
    points = grid(6, 6)
    sections = np.repeat(["a", "b"], 18)
    adata = annotated(points, np.arange(36) % 2, sections)
    adata.obsp["mine"] = neighbors(points, 8, sections)
    adata.uns["amilst"] = {
        "connectivities_key": "mine",
        "sample_key": "section",
        "versions": {"amilst-lite": "0.1.0"},
    }
    expected = contact_pairs(adata.obsp["mine"], (sections == "b").astype(int)).shape[1]
    assert neighborhood_enrichment(adata)["contacts"].sum() == expected
    adata.obsp["mine"] = neighbors(points, 8)  # edges between sections are left out
    assert neighborhood_enrichment(adata)["contacts"].sum() < adata.obsp["mine"].nnz / 2


@pytest.mark.slow
@pytest.mark.parametrize("by_section", [False, True])
def test_against_squidpy(by_section):
    squidpy = pytest.importorskip("squidpy")
    rng = np.random.default_rng(5)
    points = rng.uniform(size=(300, 2))
    sections = pd.Categorical(np.repeat(["a", "b"], 150))
    codes = (points[:, 0] * 3 + rng.normal(scale=0.4, size=300)).clip(0, 2.9).astype(int)
    adata = annotated(points, codes, np.asarray(sections))
    adata.obs["section"] = sections
    n, seed = 200, 3
    theirs = squidpy.gr.nhood_enrichment(
        adata,
        "amilst_domain",
        library_key="section" if by_section else None,
        n_perms=n,
        seed=seed,
        n_jobs=1,
        copy=True,
        show_progress_bar=False,
    )
    numbers = (sections.codes if by_section else np.zeros(300)).astype(np.int64)
    pairs = contact_pairs(adata.obsp["spatial_connectivities"], np.zeros(300, np.int64))
    both_directions = 1 + np.eye(3)
    found = enrichment(pairs, codes, 3, numbers)
    np.testing.assert_array_equal(found.count * both_directions, theirs.counts)
    # the same permutations as squidpy's: the same z
    stream = np.random.RandomState(seed)
    permuted, counts = codes.astype(np.uint32), []
    for _ in range(n):
        for section in np.unique(numbers):
            own = permuted[numbers == section]
            stream.shuffle(own)
            permuted[numbers == section] = own
        counts.append(count_contacts(pairs, permuted.astype(np.int64), 3))
    z = (found.count - np.mean(counts, axis=0)) / np.std(counts, axis=0)
    np.testing.assert_allclose(z, theirs.zscore, atol=1e-6)
    # and the exact moments agree with those permutations to their error
    np.testing.assert_allclose(found.z, theirs.zscore, rtol=0.3, atol=0.5)
