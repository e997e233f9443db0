"""UMAP of the embedding: the slot, the figure, the files of a run."""

import json
import re
import sys
import types

import anndata as ad
import numpy as np
import pytest

import amilst_lite as amilst
from amilst_lite import analysis, plot
from amilst_lite.errors import InputError, MissingExtraError, MissingKeyError

QUICK = {"epochs": 3, "n_networks": 1, "n_init": 4}


@pytest.fixture(scope="module")
def run():
    adata = amilst.simulate_section(150, 30, 3, seed=1)
    amilst.identify_domains(adata, 3, **QUICK)
    return adata


@pytest.fixture
def asked(monkeypatch):
    """Options of each UMAP that is computed; the class is replaced, because compiling it takes long."""
    asked = []

    class Fake:
        def __init__(self, **options):
            asked.append(options)

        def fit_transform(self, values):
            return values[:, :2].astype(np.float64) * 3

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=Fake))
    return asked


def offsets(figure):
    points = np.asarray(figure.axes[0].collections[0].get_offsets())
    return points[np.lexsort(points.T)]


def test_umap_is_written_and_drawn(run, asked):
    adata = run.copy()
    points = analysis.umap(adata, n_neighbors=12, seed=5)
    assert asked == [{"n_neighbors": 12, "min_dist": 0.3, "random_state": 5, "n_jobs": 1}]
    assert points.dtype == np.float32 and points.shape == (150, 2)
    np.testing.assert_array_equal(adata.obsm["X_amilst_umap"], 3 * adata.obsm["X_amilst"][:, :2])
    adata.obsm["X_amilst_umap"] = -points  # the figure shows what is stored,
    np.testing.assert_array_equal(offsets(plot.umap(adata)), (-points)[np.lexsort(-points.T)])
    assert len(asked) == 1
    # unless it is asked for another
    np.testing.assert_array_equal(offsets(plot.umap(adata, n_neighbors=9)), points[np.lexsort(points.T)])
    assert asked[1:] == [{"n_neighbors": 9, "min_dist": 0.3, "random_state": 0, "n_jobs": 1}]


def test_another_run_removes_the_umap_of_earlier_domains(run, asked):
    adata = run.copy()
    analysis.umap(adata)
    amilst.identify_domains(adata, 2, **QUICK)
    assert "X_amilst_umap" not in adata.obsm


def test_a_run_stores_and_shows_the_umap(run, asked, tmp_path):
    adata = run.copy()
    summary = amilst.write_results(adata, tmp_path, umap=True)
    assert len(asked) == 1 and "umap.png" in summary["files"] and not summary["left_out"]
    stored = ad.read_h5ad(tmp_path / "result.h5ad").obsm["X_amilst_umap"]
    np.testing.assert_array_equal(stored, 3 * adata.obsm["X_amilst"][:, :2])
    page = (tmp_path / "report.html").read_text()
    meta = re.search(r'<script type="application/json" id="meta">(.*?)</script>', page)[1]
    assert json.loads(meta)["umap"] is True


def test_what_is_refused(run, monkeypatch):
    with pytest.raises(MissingKeyError, match="X_other"):
        analysis.umap(run, key_added="other")
    with pytest.raises(InputError, match=r"n_neighbors must lie in \[2, 149\] for 150 spots; found 150"):
        analysis.umap(run, n_neighbors=150)
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(MissingExtraError, match=r"umap-learn"):
        analysis.umap(run)
