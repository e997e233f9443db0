"""What a platform declares, and a run of the command on the files of each."""

import logging
import re

import anndata
import numpy as np
import pandas as pd
import pytest
import test_io_anndata_store as anndata_store
import test_io_long_table as long_table
from input_files import (
    BARCODES,
    write_10x_h5,
    write_coordinates,
    write_counts_table,
    write_mtx,
    write_text,
    write_visium,
)
from scipy import sparse
from test_io_arrays import spots_by_genes, write_slideseq
from test_io_imaging import write_cosmx, write_merscope, write_seqfish, write_seqfish_plus
from test_io_loom import write_loom
from test_io_stereoseq import write_gef, write_gem
from test_io_xenium import write_xenium

from amilst_lite.cli import main
from amilst_lite.config import Config
from amilst_lite.io import PLATFORMS, Platform
from amilst_lite.io.platform import input_lines, micrometers_per_unit, recommended_command, unit_of
from amilst_lite.spatial.graph import SpatialGraph


def platform(**options):
    return Platform(
        name="name",
        title="Title",
        files="files",
        read=anndata.read_h5ad,
        recognizes=lambda path: False,
        **options,
    )


def test_description(tmp_path, caplog):
    counts = sparse.csr_matrix(np.array([[1, 0], [0, 0], [0, 2], [0, 0]], dtype=np.float32))
    adata = anndata.AnnData(counts, obs=pd.DataFrame(index=list("abcd")))
    with caplog.at_level(logging.INFO, "amilst_lite"):
        described = platform(unit="pixel", geometry="square").describe(
            adata,
            tmp_path,
            left_out={"blanks": np.int64(3), "controls": 0},
            coordinate_unit="micrometer",
            more="x",
        )
    assert described is adata
    assert adata.uns["amilst_input"] == {
        "platform": "name",
        "coordinate_unit": "micrometer",
        "geometry": "square",
        "more": "x",
        "left_out": {"blanks": 3},
    }
    assert caplog.messages == [
        f"{tmp_path} (Title): left out 3 blanks",
        f"{tmp_path}: 2 of 4 spots have no counts and are kept: 'b', 'd'",
    ]
    adata.write_h5ad(tmp_path / "a.h5ad")
    assert anndata.read_h5ad(tmp_path / "a.h5ad").uns["amilst_input"]["left_out"] == {"blanks": 3}


def test_size_of_the_unit():
    adata = anndata.AnnData(np.zeros((2, 1), np.float32))
    assert unit_of(adata) == {"coordinate_unit": "unknown"}
    for described, size in (
        ({"coordinate_unit": "micrometer"}, 1.0),
        ({"coordinate_unit": "pixel", "micrometers_per_unit": 0.5}, 0.5),
        ({"coordinate_unit": "pixel"}, None),
    ):
        adata.uns["amilst_input"] = described
        assert micrometers_per_unit(adata) == size
        assert unit_of(adata) == {
            "coordinate_unit": described["coordinate_unit"],
            **({} if size is None else {"micrometers_per_unit": size}),
        }


def test_lines_and_command():
    adata = anndata.AnnData(np.zeros((4, 1), np.float32))
    assert input_lines(adata, 3.0) == [
        "platform: unknown",
        "unit of the coordinates: unknown",
        "geometry: unknown",
        "left out: nothing",
    ]
    adata.uns["amilst_input"] = {
        "platform": "visium_hd",
        "coordinate_unit": "pixel",
        "geometry": "square",
        "micrometers_per_unit": 0.25,
        "left_out": {"control probes": 3, "bins off the tissue": 7},
        "fields": "laid out",
    }
    assert input_lines(adata, 32.0) == [
        "platform: visium_hd",
        "unit of the coordinates: pixel of 0.25 µm; spacing 8 µm",
        "geometry: square grid, 8 neighbors (6 and all that tie)",
        "left out: 3 control probes, 7 bins off the tissue",
        "fields of view: laid out",
    ]
    given = {"coordinates": None, "bin_size": 8}
    assert recommended_command(adata, "my data/outs", given) == (
        "amilst run 'my data/outs' -o OUT --bin-size 8 --sample-key fov"
    )
    del adata.uns["amilst_input"]["fields"]
    adata.obs["Sample_ID"] = list("aabb")
    adata.obs["section"] = "s"  # a single one
    assert recommended_command(adata, "a.h5ad", {}) == "amilst run a.h5ad -o OUT --sample-key Sample_ID"
    del adata.obs["Sample_ID"]
    assert recommended_command(adata, "a.h5ad", {}) == "amilst run a.h5ad -o OUT"


@pytest.mark.parametrize(
    ("geometry", "n", "change"),
    [
        (*grid, change)
        for grid in (("hexagonal", 6), ("square", 8))
        for change in ("exact", "turned", "sheared")
    ]
    + [("hexagonal", 6, "rounded")],  # diagonals of a square grid no longer tie
)
def test_neighbors_on_a_grid(geometry, n, change):
    """The default number of neighbors yields what `input_lines` says, also where an image has distorted the grid."""
    row, column = np.divmod(np.arange(900), 30)
    points = np.column_stack(
        [column + row % 2 / 2, row * 3**0.5 / 2] if geometry == "hexagonal" else [column, row]
    )
    turn = np.array([[np.cos(0.02), -np.sin(0.02)], [np.sin(0.02), np.cos(0.02)]])
    points = {
        "exact": points,
        "turned": 29.3 * points @ turn,
        "sheared": 29.3 * points @ turn * [1, 1.002],
        "rounded": np.rint(137.5 * points @ turn),
    }[change]
    graph = SpatialGraph.from_coordinates(points, n_neighbors=Config().graph.n_neighbors)
    inside = ((row > 1) & (row < 28) & (column > 1) & (column < 28))[graph.order]
    degrees = graph.degrees.numpy()[inside]
    assert np.median(degrees) == n and abs(degrees.mean() - n) < 0.25


def write_st(folder):
    return write_text(
        folder / "mOB.tsv.gz", spots_by_genes([f"{i % 4}x{i // 4}" for i in range(len(BARCODES))]), True
    )


def write_visium_hd(folder):
    import test_io_visium_hd  # skips without pyarrow

    test_io_visium_hd.write_bins(folder, 4)
    return folder


def write_visium_hd_cells(folder):
    import test_io_visium_hd

    return test_io_visium_hd.write_cells(folder)


def write_spatialdata(folder):
    import test_io_spatialdata  # skips without zarr

    table = test_io_spatialdata.make_table(obsm={"spatial": np.arange(24.0).reshape(12, 2)})
    return test_io_spatialdata.write_store(folder / "s.zarr", 2, table=table)


def with_coordinates(path):
    return path, "--coordinates", write_coordinates(path.parent / "xy.csv")


WRITERS = {
    "merscope": write_merscope,
    "xenium": write_xenium,
    "cosmx": write_cosmx,
    "seqfish": write_seqfish,
    "seqfish_plus": write_seqfish_plus,
    "slideseq": write_slideseq,
    "st": write_st,
    "loom": lambda folder: write_loom(folder / "a.loom"),
    "visium": write_visium,
    "visium_hd": write_visium_hd,
    "visium_hd_cells": write_visium_hd_cells,
    "stereoseq": lambda folder: (write_gem(folder / "a.gem.gz"), "--bin-size", "30"),
    "stereoseq_gef": lambda folder: (write_gef(folder / "a.gef"), "--bin-size", "30"),
    "spatialdata": write_spatialdata,
    "anndata_zarr": lambda folder: anndata_store.write(anndata_store.make(), folder / "a.zarr", 3),
    "h5ad": lambda folder: anndata_store.write(anndata_store.make(), folder / "a.h5ad", "h5ad"),
    "h5ad_gz": lambda folder: anndata_store.write(anndata_store.make(), folder / "a.h5ad.gz", "gz"),
    "long_table": lambda folder: long_table.write(folder / "a.tsv.gz"),
    "10x_h5": lambda folder: with_coordinates(write_10x_h5(folder / "a.h5")),
    "10x_mtx": lambda folder: with_coordinates(write_mtx(folder / "mtx")),
    "table": lambda folder: with_coordinates(write_counts_table(folder / "a.csv")),
}
"""Name of the platform, and what distinguishes several kinds of files → their writer; options follow the path."""


def test_every_platform_has_files():
    assert {platform.name for platform in PLATFORMS} <= set(WRITERS)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name != "merscope" else []) for name in WRITERS]
)
def test_files_of_the_vendor_to_domains_and_figure(tmp_path, name):
    (tmp_path / "input").mkdir()
    written = WRITERS[name](tmp_path / "input")
    given = list(map(str, written if isinstance(written, tuple) else (written,)))
    out = tmp_path / "out"
    assert main(["run", *given, "-k", "2", "-o", str(out), "--epochs", "2", "--n-init", "2", "-q"]) == 0
    result = anndata.read_h5ad(out / "result.h5ad")
    assert set(result.obs["amilst_domain"]) == {"1", "2"}
    assert result.uns["amilst_input"]["platform"] == re.sub("_(plus|cells|gef)$", "", name)
    assert len(pd.read_csv(out / "domains.csv")) == result.n_obs >= 9
    assert (out / "domains.png").stat().st_size > 1000
