"""Visium HD folders written by the tests, as Space Ranger 3 lays them out."""

import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from input_files import GENES, assert_is_section, truncate, write_10x_h5

from amilst_lite import io
from amilst_lite.errors import AmilstWarning, InputError, MissingExtraError
from amilst_lite.io import visium_hd

pytest.importorskip("pyarrow")

SIDE = 6  # bins of the smallest size, in each direction
PIXELS_PER_UM = 3.5


def barcode(size, row, column):
    return f"s_{size:03d}um_{row:05d}_{column:05d}-1"


def write_bins(folder, size, *, off_tissue=(), counted=None, barcodes_as=str, name=None):
    """A folder of bins in which the counts list bins in another order than the positions."""
    side = SIDE * 2 // size
    cells = [(row, column) for row in range(side) for column in range(side)]
    counts = np.random.default_rng(size).poisson(1, (len(cells), len(GENES))).astype(np.float32)
    frame = pd.DataFrame(
        {
            "barcode": [barcode(size, *cell) for cell in cells],
            "in_tissue": [int(i not in off_tissue) for i in range(len(cells))],
            "array_row": [row for row, _ in cells],
            "array_col": [column for _, column in cells],
            "pxl_row_in_fullres": [(row + 0.5) * size * PIXELS_PER_UM for row, _ in cells],
            "pxl_col_in_fullres": [1000 - column * size * PIXELS_PER_UM for _, column in cells],
        }
    )
    place = folder / (name or f"square_{size:03d}um")
    (place / "spatial").mkdir(parents=True)
    listed = frame.iloc[::-1].assign(barcode=lambda table: table["barcode"].map(barcodes_as))
    listed.to_parquet(place / "spatial" / "tissue_positions.parquet", index=False)
    factors = {
        "spot_diameter_fullres": size * PIXELS_PER_UM,
        "bin_size_um": float(size),
        "microns_per_pixel": 1 / PIXELS_PER_UM,
        "tissue_hires_scalef": 0.1,
    }
    (place / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    kept = [i for i in range(len(cells)) if i not in off_tissue]
    for file, rows in (("filtered", kept), ("raw", range(len(cells)))):
        rows = list(rows)
        write_10x_h5(place / f"{file}_feature_bc_matrix.h5", counts[rows], list(frame["barcode"].iloc[rows]))
    return frame.iloc[kept].reset_index(drop=True), counts[kept]


def write_section(folder, **options):
    folder = folder / "outs" / "binned_outputs"
    return {size: write_bins(folder, size, **options) for size in (2, 4, 6)}


def assert_is_bins(adata, frame, counts):
    assert_is_section(adata, list(frame["barcode"]), GENES, counts)
    np.testing.assert_array_equal(
        adata.obsm["spatial"], frame[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy()
    )
    assert adata.obsm["spatial"].dtype == np.float64
    for name in ("in_tissue", "array_row", "array_col"):
        assert list(adata.obs[name]) == list(frame[name])


@pytest.mark.parametrize("inside", ["", "outs", "outs/binned_outputs"])
@pytest.mark.parametrize("size", [2, 4])
def test_bins_of_a_size(tmp_path, monkeypatch, inside, size):
    monkeypatch.setattr("amilst_lite.io.parquet._ROWS", 5)
    bins = write_section(tmp_path / "run", off_tissue=(1, 3))
    adata = io.read(tmp_path / "run" / inside, bin_size=size)
    assert_is_bins(adata, *bins[size])
    record = adata.uns["amilst_input"]
    assert (record["platform"], record["coordinate_unit"], record["geometry"]) == (
        "visium_hd",
        "pixel",
        "square",
    )
    assert record["micrometers_per_unit"] == pytest.approx(1 / PIXELS_PER_UM)
    assert record["left_out"] == {}
    assert adata.uns["spatial"]["lib1"]["scalefactors"]["bin_size_um"] == size
    adata.write_h5ad(tmp_path / "again.h5ad")


@pytest.mark.parametrize("inside", ["", "filtered_feature_bc_matrix.h5"])
def test_folder_and_matrix_of_one_size(tmp_path, inside):
    bins = write_section(tmp_path)
    folder = tmp_path / "outs" / "binned_outputs" / "square_004um"
    assert_is_bins(io.read(folder / inside), *bins[4])
    assert_is_bins(io.read(folder / inside, bin_size=4, library_id="mine"), *bins[4])
    with pytest.raises(InputError, match="has bins of 4 µm, but none of 2 µm"):
        io.read(folder / inside, bin_size=2)


def test_renamed_folder_and_a_single_size(tmp_path):
    frame, counts = write_bins(tmp_path, 4, name="sample1")
    assert_is_bins(io.read(tmp_path / "sample1"), frame, counts)
    write_bins(tmp_path / "other", 6)
    assert io.read(tmp_path / "other").n_obs == 4


def test_default_size_and_missing_size(tmp_path):
    write_section(tmp_path)
    with pytest.raises(
        InputError, match=r"has bins of 2, 4, 6 µm, but none of 8 µm. Choose one .*--bin-size"
    ):
        io.read(tmp_path)
    frame, counts = write_bins(tmp_path / "outs" / "binned_outputs", 12, name="square_008um")
    assert_is_bins(io.read(tmp_path), frame, counts)


def test_raw_counts_without_bins_off_the_tissue(tmp_path):
    frame, counts = write_bins(tmp_path, 4, off_tissue=(0, 5))
    adata = io.read_visium_hd(tmp_path, filtered_counts_file=False)
    assert_is_bins(adata, frame, counts)
    assert adata.uns["amilst_input"]["left_out"] == {"bins off the tissue": 2}
    (tmp_path / "square_004um" / "filtered_feature_bc_matrix.h5").unlink()
    with pytest.raises(
        InputError, match=r"has no filtered_feature_bc_matrix\.h5.*filtered_counts_file=False"
    ):
        io.read_visium_hd(tmp_path)


def test_barcodes_as_bytes(tmp_path):
    bins = write_bins(tmp_path, 4, barcodes_as=str.encode)
    assert_is_bins(io.read(tmp_path), *bins)


def edit(folder, change):
    path = folder / "square_004um" / "spatial" / "tissue_positions.parquet"
    change(pd.read_parquet(path)).to_parquet(path, index=False)


@pytest.mark.parametrize("value", ["a", b"a", [1, 2], {"a": 1}, pd.Timestamp("2020-01-01")])
@pytest.mark.parametrize("name", ["array_col", "pxl_row_in_fullres"])
def test_positions_that_are_no_numbers(tmp_path, name, value):
    write_bins(tmp_path, 4)
    edit(tmp_path, lambda table: table.assign(**{name: [value] * len(table)}))
    with pytest.raises(
        InputError, match=rf"tissue_positions\.parquet: expected numbers in .*; found {name} \("
    ):
        io.read(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_pipes_in_the_folder_are_not_opened(tmp_path):
    """Who opens a pipe waits for its writer."""
    folder = write_cells(tmp_path / "cells")
    (folder / "cell_segmentations.geojson").unlink()
    os.mkfifo(folder / "cell_segmentations.geojson")
    with pytest.raises(InputError, match=r"geojson is a pipe, a socket or a device"):
        io.read(folder)
    write_bins(tmp_path / "bins", 4, name="renamed")
    factors = tmp_path / "bins" / "renamed" / "spatial" / "scalefactors_json.json"
    factors.unlink()
    os.mkfifo(factors)
    with pytest.raises(InputError, match="scalefactors_json.json is a pipe|no Visium HD folder|known format"):
        io.read(tmp_path / "bins" / "renamed")


def test_bins_without_position(tmp_path):
    frame, counts = write_bins(tmp_path, 4)
    edit(tmp_path, lambda table: table[table["barcode"] != barcode(4, 0, 1)])
    with pytest.warns(
        AmilstWarning, match=r"1 of 9 bins left out, which have no row \(e\.g\. 's_004um_00000_00001-1'"
    ):
        adata = io.read(tmp_path)
    kept = [i for i in range(9) if i != 1]
    assert_is_bins(adata, frame.iloc[kept], counts[kept])
    assert adata.uns["amilst_input"]["left_out"] == {"bins without position": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda table: table.drop(columns="array_row"),
            "has no column 'array_row'; expected barcode, in_tissue",
        ),
        (lambda table: pd.concat([table, table[:1]]), "barcodes repeat; expected one row for each bin"),
        (lambda table: table.assign(in_tissue=0), "no bin is in tissue"),
        (
            lambda table: table.assign(barcode=table["barcode"].str.replace("004", "008")),
            "0 of 9 bins match one of its 9 rows.*'s_004um_00000_00000-1'.*'s_008um.*Are they of the same bin size",
        ),
        (
            lambda table: table.assign(pxl_row_in_fullres=np.where(table["array_row"] == 1, np.nan, 1)),
            r"3 bins have no finite position \(e\.g\. 's_004um_00001_00000-1'",
        ),
    ],
)
def test_wrong_positions(tmp_path, change, message):
    write_bins(tmp_path, 4)
    edit(tmp_path, change)
    with pytest.raises(InputError, match=message):
        io.read(tmp_path)


# --- cells ----------------------------------------------------------------------------------


def write_cells(folder, *, numbers=range(1, 13), properties=lambda number: {"cell_id": number}):
    """Cells of Space Ranger 4: squares around (100 n, 7 n); the last one in two parts."""

    def square(x, y, half=2.0):
        corners = [[x - half, y - half], [x + half, y - half], [x + half, y + half], [x - half, y + half]]
        return [[*corners, corners[0]]]

    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": square(100 * number, 7 * number)},
            "properties": properties(number),
        }
        for number in reversed(numbers)
    ]
    if features:
        parts = [square(1200 - 30, 84), square(1200 + 10, 84, 2 * 3**0.5)]  # areas 1 : 3
        features[0]["geometry"] = {"type": "MultiPolygon", "coordinates": parts}
    place = folder / "segmented_outputs"
    write_10x_h5(place / "filtered_feature_cell_matrix.h5", barcodes=CELLS)
    outlines = {"type": "FeatureCollection", "name": "a", "features": features}
    (place / "cell_segmentations.geojson").write_text(json.dumps(outlines, indent=1))
    (place / "spatial").mkdir(exist_ok=True)
    (place / "spatial" / "scalefactors_json.json").write_text('{"microns_per_pixel": 0.25}')
    return place


CELLS = [f"cellid_{number:09d}-1" for number in range(1, 13)]


@pytest.mark.parametrize("block", [10, 1000, 10**6])
@pytest.mark.parametrize(
    "inside", ["segmented_outputs", "segmented_outputs/filtered_feature_cell_matrix.h5", ""]
)
def test_cells(tmp_path, monkeypatch, block, inside):
    monkeypatch.setattr(visium_hd, "_BLOCK", max(block, 60))  # the header is in the first block
    write_cells(tmp_path / "outs")
    adata = io.read(tmp_path / "outs" / inside)
    assert_is_section(adata, CELLS)
    np.testing.assert_allclose(adata.obsm["spatial"], np.outer(range(1, 13), [100, 7]), rtol=1e-12)
    record = adata.uns["amilst_input"]
    assert (record["platform"], record["geometry"], record["coordinate_unit"]) == (
        "visium_hd",
        "free",
        "pixel",
    )
    assert record["micrometers_per_unit"] == 0.25
    assert adata.uns["spatial"]["lib1"]["scalefactors"] == {"microns_per_pixel": 0.25}


def test_bins_come_before_cells(tmp_path):
    write_bins(tmp_path / "outs" / "binned_outputs", 4)
    place = write_cells(tmp_path / "outs")
    assert io.read(tmp_path / "outs").obs_names[0].startswith("s_004um")
    assert io.read(place).obs_names[0] == CELLS[0]
    with pytest.raises(InputError, match="not a Visium HD folder"):
        io.read(place, platform="visium_hd", bin_size=8)


def test_cells_without_outline(tmp_path):
    with pytest.warns(
        AmilstWarning, match=r"geojson: 2 of 12 cells have no outline \(e\.g\. 'cellid_000000001-1'"
    ):
        adata = io.read(write_cells(tmp_path, numbers=range(3, 13)))
    assert list(adata.obs_names) == CELLS[2:]
    assert adata.uns["amilst_input"]["left_out"] == {"cells without an outline": 2}
    with pytest.raises(InputError, match=r"12 of 12 cells have no outline.*Are both files of one section\?"):
        io.read(write_cells(tmp_path, numbers=range(20, 30)))


def test_wrong_outlines(tmp_path):
    place = write_cells(tmp_path)
    outlines = place / "cell_segmentations.geojson"
    text = outlines.read_text()
    for broken, message in (
        (text[: len(text) // 2], r"geojson cannot be read as outlines of cells"),
        (text.replace("features", "shapes"), "does not begin with a list of features"),
        (text.replace('"cell_id"', '"id"'), r"geojson cannot be read as outlines.*cell_id"),
        (text.replace('"cell_id": 7', '"cell_id": 8'), "cell_id repeats"),
    ):
        outlines.write_text(broken)
        with pytest.raises(InputError, match=message):
            io.read(place)
    (place / "filtered_feature_cell_matrix.h5").rename(place / "raw_feature_cell_matrix.h5")
    with pytest.raises(
        InputError, match=r"has no filtered_feature_cell_matrix\.h5.*filtered_counts_file=False"
    ):
        io.read(place)


# --- both -----------------------------------------------------------------------------------


def test_missing_and_broken_parts(tmp_path):
    write_bins(tmp_path, 4)
    folder = tmp_path / "square_004um"
    positions = folder / "spatial" / "tissue_positions.parquet"
    truncate(positions)
    with pytest.raises(InputError, match=r"tissue_positions\.parquet cannot be read as a table of positions"):
        io.read(tmp_path)
    positions.unlink()
    with pytest.raises(
        InputError, match=r"has no positions of the bins: expected spatial/tissue_positions\.parquet"
    ):
        io.read(tmp_path)
    shutil.rmtree(folder)
    write_bins(tmp_path, 4)
    truncate(folder / "filtered_feature_bc_matrix.h5")
    with pytest.raises(
        InputError, match=r"filtered_feature_bc_matrix\.h5 cannot be read as a 10x HDF5 matrix"
    ):
        io.read(tmp_path)
    with pytest.raises(InputError, match="is not a Visium HD folder: expected binned_outputs/square_008um"):
        io.read(folder / "spatial", platform="visium_hd")


def test_without_pyarrow(tmp_path, without_package):
    write_bins(tmp_path, 4)
    without_package("pyarrow")
    with pytest.raises(MissingExtraError, match=r"tissue_positions\.parquet needs .*'pyarrow'.*\[parquet\]"):
        io.read(tmp_path)
