"""Figure of marker genes: what is drawn equals dense formulas."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.stats import spearmanr

from amilst_lite import analysis, plot
from amilst_lite.errors import InputError, MissingKeyError

pytest.importorskip("matplotlib")

from matplotlib.collections import EllipseCollection
from matplotlib.colors import to_hex


@pytest.fixture
def adata():
    """Three domains and 12 genes; genes 0 to 2, 3 to 5 and 6 to 8 are raised in one of them each."""
    rng = np.random.default_rng(0)
    domain = np.arange(240) % 3
    rate = np.full((240, 12), 0.6)
    for k in range(3):
        rate[domain == k, 3 * k : 3 * k + 3] *= 6
    return ad.AnnData(
        sparse.csr_matrix(rng.poisson(rate).astype(np.float32)),
        obs=pd.DataFrame(
            {"amilst_domain": pd.Categorical((domain + 1).astype(str))},
            index=[f"spot{i}" for i in range(240)],
        ),
        var=pd.DataFrame({"symbol": [f"S{i}" for i in range(12)]}, index=[f"gene{i}" for i in range(12)]),
    )


def _expected(adata, genes, labels):
    """Mean of log(1 + normalized counts), relative to the highest, and share of spots; by dense formulas."""
    counts = np.asarray(adata.X.todense(), dtype=np.float64)
    total = counts.sum(axis=1)
    values = np.log1p(counts / total[:, None] * np.median(total))[:, adata.var_names.get_indexer(genes)]
    names = sorted(set(labels[~pd.isna(labels)]))
    mean = np.array([values[labels == name].mean(axis=0) for name in names])
    return mean / mean.max(axis=0), np.array([(values[labels == name] > 0).mean(axis=0) for name in names])


def _genes(figure):
    return [text.get_text() for text in figure.axes[0].get_xticklabels()]


def test_dots(adata):
    analysis.marker_genes(adata)
    figure = plot.marker_genes(adata, 3)
    genes = _genes(figure)
    assert [set(genes[i : i + 3]) for i in (0, 3, 6)] == [
        {f"gene{i}" for i in range(3 * k, 3 * k + 3)} for k in range(3)
    ]
    mean, share = _expected(adata, genes, adata.obs["amilst_domain"].to_numpy())
    dots = next(item for item in figure.axes[0].collections if isinstance(item, EllipseCollection))
    x, y = np.asarray(dots.get_offsets()).astype(int).T
    area = (2 * dots._widths) ** 2  # matplotlib keeps half of the diameter
    np.testing.assert_allclose(area / 0.85**2, share[y, x], rtol=1e-6)
    darkness = -dots.get_facecolors()[:, :3].sum(axis=1)
    assert spearmanr(darkness, mean[y, x]).statistic > 0.99
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == list("123")
    # the colors of the domains are those on the tissue
    swatches = next(item for item in figure.axes[0].collections if not isinstance(item, EllipseCollection))
    assert [to_hex(color).upper() for color in swatches.get_facecolors()] == list(plot.palette(3))


def test_heatmap_of_given_genes(adata):
    adata.obs["amilst_domain"] = adata.obs["amilst_domain"].astype(object)
    adata.obs.iloc[:9, 0] = None
    genes = ["gene7", "gene0", "gene7"]
    figure = plot.marker_genes(adata, genes=genes, kind="heatmap", symbols="symbol")
    assert _genes(figure) == ["S7", "S0"]  # each once
    mean, _ = _expected(adata, genes[:2], adata.obs["amilst_domain"].to_numpy())
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), mean, rtol=1e-5)


def test_counts_in_a_layer_and_stored_colors(adata):
    expected = (
        plot.marker_genes(adata, genes=["gene1", "gene4"], kind="heatmap").axes[0].images[0].get_array()
    )
    adata.layers["counts"] = adata.X.copy()
    adata.X = sparse.csr_matrix(adata.shape, dtype=np.float32)
    adata.uns["amilst_domain_colors"] = ["#111111", "#222222", "#333333"]
    axis = plot.marker_genes(adata, genes=["gene1", "gene4"], kind="heatmap").axes[0]
    np.testing.assert_array_equal(axis.images[0].get_array(), expected)
    assert [to_hex(color) for color in axis.collections[0].get_facecolors()] == adata.uns[
        "amilst_domain_colors"
    ]


def test_a_gene_without_counts(adata):
    adata.X = sparse.csr_matrix(adata.X.multiply(np.arange(12) != 5))
    image = plot.marker_genes(adata, genes=["gene5", "gene6"], kind="heatmap").axes[0].images[0].get_array()
    assert (image[:, 0] == 0).all() and image[:, 1].max() == 1


def test_labels_are_drawn_literally_and_the_file_is_reproducible(adata, tmp_path):
    adata.var_names = ["$x$", *adata.var_names[1:]]
    for name in ("first.svg", "second.svg"):
        plot.save(plot.marker_genes(adata, genes=["$x$", "gene2"]), tmp_path / name)
    assert (tmp_path / "first.svg").read_bytes() == (tmp_path / "second.svg").read_bytes()
    label = plot.marker_genes(adata, genes=["$x$"]).axes[0].get_xticklabels()[0]
    assert label.get_text() == "$x$" and not label.get_parse_math()


def test_errors(adata):
    with pytest.raises(MissingKeyError, match=r"analysis\.marker_genes first"):
        plot.marker_genes(adata)
    with pytest.raises(InputError, match="'dots' or 'heatmap'"):
        plot.marker_genes(adata, kind="violin")
    with pytest.raises(MissingKeyError, match="lacks nothing_like_it"):
        plot.marker_genes(adata, genes=["gene1", "nothing_like_it"])
    with pytest.raises(MissingKeyError, match="var\\['name'\\]"):
        plot.marker_genes(adata, genes=["gene1"], symbols="name")
    with pytest.raises(InputError, match=r"found \['gene1'\]. Name genes with genes=\[...\]"):
        plot.marker_genes(adata, ["gene1"])
    with pytest.raises(MissingKeyError, match="lacks gene77;"):
        plot.marker_genes(adata, genes="gene77")
    with pytest.raises(InputError, match="1 to 200 genes; found 0"):
        plot.marker_genes(adata, genes=[])
    with pytest.raises(MissingKeyError, match="'leiden'"):
        plot.marker_genes(adata, key="leiden")
