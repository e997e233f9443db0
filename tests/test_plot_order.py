"""Domains numbered along the tissue, or by similarity."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from amilst_lite import plot
from amilst_lite.errors import InputError, MissingKeyError
from amilst_lite.simulate import simulate_tissue

pytest.importorskip("matplotlib")


def _adata(points, true, seed=0, refined=True):
    """Domains under random numbers; ``names[k]`` is that of the true layer k."""
    n = int(true.max()) + 1
    names = np.random.default_rng(seed).permutation(n).astype(str)
    obs = pd.DataFrame(
        {"amilst_domain": pd.Categorical(names[true])}, index=[f"spot{i}" for i in range(len(true))]
    )
    if refined:
        obs["amilst_domain_refined"] = obs["amilst_domain"]
    return ad.AnnData(obs=obs, obsm={"spatial": points}), names


@pytest.mark.parametrize("seed", range(3))
def test_layers_are_numbered_along_the_tissue(seed):
    """With a tenth of the spots in a wrong layer."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(size=(2000, 2))
    layers = (points[:, 1] * 7).astype(int)
    found = np.where(rng.random(2000) < 0.1, rng.integers(0, 7, 2000), layers)
    adata, names = _adata(points, found, seed)
    new = plot.order_domains(adata)
    assert new == {name: str(k + 1) for k, name in enumerate(names)}  # y points downwards: the first is above
    np.testing.assert_array_equal(adata.obs["amilst_domain_ordered"].astype(int), found + 1)
    assert list(adata.obs["amilst_domain_ordered"].cat.categories) == list("1234567")


def test_the_order_of_the_rows_does_not_matter():
    points = np.random.default_rng(0).uniform(size=(9000, 2))
    adata, _ = _adata(points, (points[:, 1] * 4).astype(int))
    assert plot.order_domains(adata) == plot.order_domains(adata[::-1].copy())


def test_bent_layers():
    """Means of the positions would not tell: those of half rings are close to each other."""
    points = np.random.default_rng(0).uniform([-1, 0], 1, size=(4000, 2))
    radius = np.hypot(*points.T)
    points, layers = points[radius < 1], (radius[radius < 1] * 6).astype(int)
    adata, names = _adata(points, layers)
    new = [plot.order_domains(adata)[name] for name in names]
    assert new == list("123456")


def test_by_similarity():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 5, 300)
    adata, names = _adata(rng.uniform(size=(300, 2)), true)
    adata.obsm["X_amilst"] = np.column_stack([4.0 * true, rng.normal(size=300)]).astype(np.float32)
    new = [int(plot.order_domains(adata, "similarity")[name]) for name in names]
    assert new == [1, 2, 3, 4, 5] or new == [5, 4, 3, 2, 1]
    assert (new[0] < new[-1]) == (int(names[0]) < int(names[-1]))  # the lower number first


def test_sections_are_independent():
    """Two sections, mirrored and placed anywhere, have the order of one; layer 0 is in the first only."""
    points = np.random.default_rng(0).uniform(size=(3000, 2))
    layers = (points[:, 0] * 5).astype(int)
    mirrored, kept = points * [-1, 1] + [0.3, -0.2], layers > 0
    adata, names = _adata(np.concatenate([points, mirrored[kept]]), np.concatenate([layers, layers[kept]]))
    adata.obs["section"] = np.repeat(["a", "b"], [3000, kept.sum()])
    new = [int(plot.order_domains(adata, sample_key="section")[name]) for name in names]
    assert new == [1, 2, 3, 4, 5] or new == [5, 4, 3, 2, 1]


def test_the_columns_of_the_run_stay_and_both_new_ones_have_the_same_numbers():
    tissue = simulate_tissue(300, 20, 4, seed=1)
    adata, _ = _adata(tissue.coordinates, tissue.domains)
    adata.obs["amilst_domain_refined"] = pd.Categorical(
        np.roll(adata.obs["amilst_domain"], 1), ["0", "1", "2", "3"]
    )
    adata.uns["amilst_domain_colors"] = plot.palette(4)
    before = adata.copy()
    new = plot.order_domains(adata)
    pd.testing.assert_frame_equal(adata.obs[list(before.obs)], before.obs)
    assert adata.uns["amilst_domain_colors"] == before.uns["amilst_domain_colors"]
    for column in ("amilst_domain", "amilst_domain_refined"):
        assert list(adata.obs[f"{column}_ordered"]) == list(adata.obs[column].map(new))
    colors = adata.uns["amilst_domain_ordered_colors"]
    assert len(set(colors)) == 4 and colors == adata.uns["amilst_domain_refined_ordered_colors"]
    # the figure has these numbers and colors
    figure = plot.domains(adata, "amilst_domain_ordered", refined="amilst_domain_refined_ordered")
    texts = [
        text.get_text()[0]
        for axis in figure.axes
        if axis.get_legend()
        for text in axis.get_legend().get_texts()
    ]
    assert texts == list("1234")
    assert set(plot.stored_colors(adata, "amilst_domain_ordered").values()) == set(colors)


def test_sections_of_the_run_are_found_for_the_new_column():
    tissue = simulate_tissue(300, 20, 4, seed=1)
    adata, _ = _adata(tissue.coordinates, tissue.domains)
    adata.obs["section"] = np.repeat(["a", "b"], 150)
    adata.uns["amilst"] = {"sample_key": "section"}
    plot.order_domains(adata)
    titles = [axis.get_title(loc="left") for axis in plot.domains(adata, "amilst_domain_ordered").axes]
    assert titles[:2] == ["a", "b"]


def test_spots_without_a_domain_and_unused_categories():
    points = np.column_stack([np.zeros(40), np.arange(40.0)])
    labels = np.repeat(["x", "y", None, "z"], 10).astype(object)
    adata = ad.AnnData(
        obs=pd.DataFrame(
            {"region": pd.Categorical(labels, ["z", "unused", "y", "x"])}, index=[f"s{i}" for i in range(40)]
        ),
        obsm={"spatial": points},
    )
    assert plot.order_domains(adata, key="region") == {"x": "1", "y": "2", "z": "3"}
    assert adata.obs["region_ordered"].isna().sum() == 10
    assert plot.order_domains(adata[:10].copy(), key="region") == {"x": "1"}


def test_errors():
    adata, _ = _adata(np.random.default_rng(0).uniform(size=(20, 2)), np.arange(20) % 3)
    with pytest.raises(InputError, match="'position' or 'similarity'; found 'size'"):
        plot.order_domains(adata, "size")
    with pytest.raises(MissingKeyError, match="X_amilst"):
        plot.order_domains(adata, "similarity")
    with pytest.raises(MissingKeyError, match="'leiden'"):
        plot.order_domains(adata, key="leiden")
